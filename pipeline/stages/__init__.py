"""The stages of dvc.yaml, one module each; none imports another."""
