"""Where on the slide one is, and how much is magnified."""
