"""Measures on the tensors of checkpoints as they lie on disk: numpy alone, streamed, never torch."""
