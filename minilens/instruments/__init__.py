"""Measurements on a model: patching, attribution, heads, the geometry of its embeddings."""
