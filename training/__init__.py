"""Builds LRMIL models from a table of slides: ``python -m training.run CONFIG``."""
