"""What a run leaves beside its picture: W&B, provenance, checkpoints, status."""
