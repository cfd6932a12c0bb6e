"""The commands, by what they are for: each module declares its own and makes one call for each."""
