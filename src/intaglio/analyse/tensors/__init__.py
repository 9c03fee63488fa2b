"""What the numbers about tensors on disk say, in sentences."""
