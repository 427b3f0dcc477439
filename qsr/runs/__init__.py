"""Training as it happens: the loop, its log, its checkpoints."""
