"""Examples: where they come from, which are taken, what is mixed in, how they are encoded and scored."""
