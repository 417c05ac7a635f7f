"""Experiments: what their folders hold, and how many of them are run."""
