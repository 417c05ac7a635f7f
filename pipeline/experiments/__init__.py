"""Runs one experiment or many of them, and reads their results."""
