"""Measurements on a model: patching, attribution, heads, circuits, the geometry of its embeddings."""
