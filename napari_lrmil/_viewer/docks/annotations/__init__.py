"""Annotations drawn on a slide: named, classed, kept beside it, exchanged with QuPath."""
