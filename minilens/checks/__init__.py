"""Whether a checkpoint is what it says."""
