"""Every option of every command: one frozen dataclass per concern with default, range and help. Nothing heavy.
Called by the commands, and by whatever reads an option."""
