"""What heads, adapters and bases are on disk, for every runtime: no MLX here."""
