"""The steps of LRMIL. They meet only through files in the run directory (method.md section 3)."""
