"""Measurements of the pipeline; nothing here is part of it."""
