"""What a run writes, and reading it back: files, checkpoints, logs."""
