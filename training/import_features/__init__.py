"""HR embeddings that CLAM or TRIDENT made (HDF5), taken into a run: ``python -m training.import_features``."""
