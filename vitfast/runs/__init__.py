"""What a training run leaves on disk: its directory, checkpoints and environment."""
