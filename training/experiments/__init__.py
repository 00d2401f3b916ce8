"""Experiments: data made ready for them, and the table of their results."""
