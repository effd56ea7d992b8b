"""The two optimizers, and the ways in which they are stepped."""
