"""A LensTable in, a picture out."""
