"""The dock "LRMIL: classify slide": slide, model, label, and the evidence for it."""
