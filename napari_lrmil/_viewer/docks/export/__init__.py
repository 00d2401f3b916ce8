"""The dock "LRMIL: export": files of the current result for others."""
