"""Proves artifacts right: the model as transformers computes it, against what the vendor's runtime would compute."""
