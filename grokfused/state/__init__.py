"""What is kept per parameter: arrays, how they lie in memory and over processes, and checkpoints."""
