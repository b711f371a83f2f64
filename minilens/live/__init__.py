"""The page that computes: a model, its tokenizer and the lens in one HTML file."""
