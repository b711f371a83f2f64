"""What a checkpoint's files say: where they are, the settings, the tensors, the tokenizer."""
