"""Slide table, splits, tile index, embedding store, bags and tile pairs."""
