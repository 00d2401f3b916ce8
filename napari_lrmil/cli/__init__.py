"""`lrmil`: predictions without a window. Loads neither Qt nor napari."""
