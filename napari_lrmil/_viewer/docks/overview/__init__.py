"""The dock "LRMIL: overview": where on the slide one is, and how much is magnified."""
