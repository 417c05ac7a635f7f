"""The loss terms and their weighted sum."""
