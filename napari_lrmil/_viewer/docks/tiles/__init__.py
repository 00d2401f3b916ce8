"""The dock "LRMIL: tiles": the tiles that count most and least, at higher power, and how to get to them."""
