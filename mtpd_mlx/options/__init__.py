"""Every option of every command: one frozen dataclass a concern holds its default, its range and its help. Nothing heavy."""
