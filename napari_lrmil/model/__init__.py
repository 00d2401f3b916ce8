"""Models: encoders, MIL aggregators and the bundle that carries both. Knows no slide and no window."""
