"""Lenses with weights of their own: what they are, how they are fitted, and how they are kept."""
