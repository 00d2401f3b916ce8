"""Files for others, from the window."""
