"""Results from the store alone: frames, tables."""
