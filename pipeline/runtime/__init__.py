"""What the machine offers: devices, precisions, reproducible sums, the Lightning trainer."""
