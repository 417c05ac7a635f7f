"""Measures of a saved picture that no experiment optimises, so that any two can be compared."""
