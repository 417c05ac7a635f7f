"""Writes results: picture files with profile, resolution and settings, and the time-lapse."""
