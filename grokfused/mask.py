"""Sparsity masks: which elements of a parameter take the step, packed to one bit each.

A mask is a bool tensor of its parameter's shape. Inside it lies in the parameter's memory order, 32
elements to a word, as csrc/step/mask.h reads it: 0.125 bytes per element.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from grokfused.reference import LANES, kept_elements, memory_order
from grokfused.sharding import local, sharded_like, unlike

# What becomes of the elements left out: they are 0, or stay as they are. A mode's place is its number.
MODES = ("zero", "freeze")


class PackedMask(NamedTuple):
    """A mask as it lies in an optimizer's state.

    ``words`` is int32 [elements / 32, rounded up], the elements being those of ``shape`` with the dimensions
    in ``order`` (``reference.memory_order`` of the parameter); ``mode`` is a name in ``MODES``. Of a
    DTensor it is the mask of this process's shard.
    """

    words: Tensor
    shape: torch.Size
    order: tuple[int, ...]
    mode: str


def pack(mask: Tensor, param: Tensor, mode: str) -> PackedMask:
    """Packs a mask in the memory order of its parameter.

    Args:
        mask: bool, of the parameter's shape and on its device.
        param: The parameter; only its layout matters.
        mode: A name in ``MODES``.
    """
    mask, param = local(mask), local(param)
    order = tuple(memory_order(param))
    flat = mask.permute(order).reshape(-1)
    bits = flat.new_zeros(-(-flat.numel() // LANES) * LANES, dtype=torch.uint8)
    bits[: flat.numel()] = flat
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=mask.device)
    words = (bits.view(-1, 8) * weights).sum(1, dtype=torch.uint8).view(torch.int32)
    return PackedMask(words, mask.shape, order, mode)


def unpack(packed: PackedMask, param: Tensor) -> Tensor:
    """Returns a packed mask as bool, in its parameter's shape and memory order; of a DTensor, a DTensor."""
    return sharded_like(param, _unpacked(packed))


def _unpacked(packed: PackedMask) -> Tensor:
    shape, order = packed.shape, packed.order
    kept = kept_elements(packed.words, shape.numel()).view([shape[dim] for dim in order])
    return kept.permute([order.index(dim) for dim in range(len(order))])


def fitting(packed: PackedMask, param: Tensor) -> PackedMask:
    """Returns the mask in the parameter's memory order, packed anew where it was in another."""
    if tuple(memory_order(local(param))) == packed.order:
        return packed
    return pack(_unpacked(packed), param, packed.mode)


def check_mask(mask: object, param: Tensor, name: str, *, any_device: bool = False) -> None:
    """Raises TypeError or ValueError where a mask does not fit the parameter called ``name``."""
    if not isinstance(mask, Tensor):
        instead = "; remove_mask takes a mask off" if mask is None else ""
        raise TypeError(f"the mask of {name} must be a bool tensor, got {type(mask).__name__}{instead}")
    if mask.dtype is not torch.bool:
        raise TypeError(
            f"the mask of {name} must be a bool tensor, True where an element is kept, got {mask.dtype}"
        )
    if mask.layout is not torch.strided:
        raise TypeError(f"the mask of {name} must be a dense tensor, got layout {mask.layout}")
    for what in ("shape",) if any_device else ("shape", "device"):
        own, other = getattr(param, what), getattr(mask, what)
        if own != other:
            raise ValueError(f"the mask of {name} must have its {what} {own}, got {other}")
    difference = unlike(param, mask)
    if difference:
        raise ValueError(f"the mask of {name} {difference}")


def check_packed(packed: PackedMask, param: Tensor, name: str) -> None:
    """Raises RuntimeError where a mask in a state fits its parameter no longer."""
    for what, mine in (("shape", packed.shape), ("device", packed.words.device)):
        own = getattr(local(param), what)
        if own != mine:
            raise RuntimeError(
                f"the mask of {name} was set for {what} {mine}, the parameter has {own}: set it again"
            )


def check_mode(mode: object) -> None:
    """Raises ValueError for a mode that there is not."""
    if not (isinstance(mode, str) and mode in MODES):
        raise ValueError(f"the mode of a mask must be one of {MODES}, got {mode!r}")


@torch.no_grad()
def zero_left_out(mask: Tensor, arrays: Iterable[Tensor]) -> None:
    """Sets to 0, by selection, what a mask leaves out of a parameter and its states."""
    for array in arrays:
        local(array).masked_fill_(~local(mask), 0)


class PrunedStates:
    """Keeps at 0 what masks in mode "zero" leave out of a bucket's states, whoever else writes those.

    A kernel looks only at the parameters there: the states are 0 since the mask was set. Their version
    counters tell whether another operation has written one in between.

    Args:
        packed: The mask of each parameter, or None.
    """

    def __init__(self, packed: Iterable[PackedMask | None]) -> None:
        self.masks = [(place, mask) for place, mask in enumerate(packed) if mask and mask.mode == "zero"]
        self.seen: list[int] = []

    def _look(self, arrays: Sequence[Sequence[Tensor]]) -> list[int]:
        tensors = [tensor for array in arrays for tensor in array]
        # A tensor made in inference mode counts no versions: it is taken for one that was not written.
        counted = (0 if tensor.is_inference() else tensor._version for tensor in tensors)
        return [*map(id, tensors), *counted]

    def clear(self, arrays: Sequence[Sequence[Tensor]]) -> None:
        """Clears the states before a step, if someone has written any since ``remember``."""
        if self.masks and self._look(arrays) != self.seen:
            for place, mask in self.masks:
                zero_left_out(_unpacked(mask), [array[place] for array in arrays if array])

    def remember(self, arrays: Sequence[Sequence[Tensor]]) -> None:
        """Notes how a step has left the states."""
        if self.masks:
            self.seen = self._look(arrays)


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
