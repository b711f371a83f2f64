"""The `minilens` command: a file for each command, with its options beside its code."""
