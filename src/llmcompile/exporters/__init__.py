"""Backends: what each vendor's artifact looks like, and how it is made from canonical roles."""
