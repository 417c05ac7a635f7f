"""What a run leaves beside its picture: W&B run, provenance, checkpoints, status."""
