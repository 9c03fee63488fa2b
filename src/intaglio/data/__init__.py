"""A person's data: read, repaired, encoded for a model, and checked before any work."""
