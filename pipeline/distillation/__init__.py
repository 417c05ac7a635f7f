"""Trains the embedded network: knowledge distillation from VGG-19."""
