"""One run: from a table of slides to a bundle, all steps of LRMIL (``python -m training.run CONFIG``)."""
