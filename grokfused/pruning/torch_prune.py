"""The masks of ``torch.nn.utils.prune``, taken over."""

from __future__ import annotations

from torch import Tensor, nn


def from_prune(module: nn.Module) -> dict[str, Tensor]:
    """Takes over the masks of ``torch.nn.utils.prune`` and removes its reparametrisation.

    Every pruned parameter becomes an ordinary one again, with 0 where it was pruned, so it has to be taken
    over before the optimizer is made.

    Args:
        module: A module; all modules in it are looked at too.

    Returns:
        Name of the parameter in ``module`` -> bool mask of its shape, for ``optimizer.set_masks``.

    Raises:
        ValueError: Nothing in the module is pruned.
    """
    from torch.nn.utils import prune  # an import of its own that few need

    masks = {}
    for path, child in list(module.named_modules()):
        for name in [name for name in child._parameters if name.endswith("_orig")]:
            weight = name.removesuffix("_orig")
            mask = child._buffers.get(f"{weight}_mask")
            if mask is not None:
                masks[f"{path}.{weight}" if path else weight] = mask.bool()
                prune.remove(child, weight)
    if not masks:
        raise ValueError("nothing in this module is pruned with torch.nn.utils.prune")
    return masks
