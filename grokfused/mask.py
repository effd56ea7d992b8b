"""Masks of other packages, as masks for ``optimizer.set_masks``."""

from grokfused.pruning.torch_prune import from_prune

__all__ = ["from_prune"]
