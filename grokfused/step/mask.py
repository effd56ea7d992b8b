"""Sparsity masks: which elements of a parameter take the step, packed to one bit each.

A mask is a bool tensor of its parameter's shape. Inside it lies in the parameter's memory order, 32
elements to a word, as csrc/step/mask.h reads it: 0.125 bytes per element.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused.backends import block8
from grokfused.backends.reference import in_memory_order, memory_order
from grokfused.backends.storage import LANES, kept_elements
from grokfused.state.sharding import local, sharded_like, unlike
from grokfused.state.storage import address

# What becomes of the elements left out: they are 0, or stay as they are. A mode's place is its number.
MODES = ("zero", "freeze")
# What a saved mask says of an element: it takes the step, or is left out by a mode. Nothing is 0: so a place
# into which no mask was read is known, and one into which a bool mask was.
KEPT = 1
CODES = {"zero": 2, "freeze": 3}
NO_PLACE = (
    "torch.distributed.checkpoint reads only what the loading optimizer has a place for: load with "
    "planner=grokfused.dcp.LoadPlanner(); or, before loading, take a step and then set any masks on those "
    "parameters"
)


class PackedMask(NamedTuple):
    """A mask as it lies in an optimizer's state.

    ``words`` is int32 [elements / 32, rounded up], the elements being those of ``shape`` with the dimensions
    in ``order`` (``reference.memory_order`` of the parameter); ``mode`` is a name in ``MODES``. Of a
    DTensor it is the mask of this process's shard. ``seen`` tells which states were 0 where the mask prunes,
    as ``cleared`` left them.
    """

    words: Tensor
    shape: torch.Size
    order: tuple[int, ...]
    mode: str
    seen: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedMask, tuple(self)[:4]  # copied states are other tensors than those that were seen


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


def coded(packed: PackedMask, param: Tensor) -> Tensor:
    """Returns a packed mask as it is saved: uint8, ``KEPT`` or its mode's code; of a DTensor, a DTensor."""
    kept = _unpacked(packed)
    return sharded_like(
        param, torch.full_like(kept, CODES[packed.mode], dtype=torch.uint8).masked_fill_(kept, KEPT)
    )


def decoded(mask: Tensor) -> tuple[Tensor, str]:
    """Returns the mask, as bool, and the mode of one that was saved; of a DTensor, this process's shard.

    Where nothing is left out the mode says nothing, and is "zero".
    """
    codes = local(mask)
    freezes = not codes.is_meta and (codes == CODES["freeze"]).any()
    return codes == KEPT, "freeze" if freezes else "zero"


def check_codes(mask: Tensor, name: object) -> None:
    """Raises ValueError where a saved mask holds other codes than those of one mode."""
    if mask.is_meta:
        return
    found = set(local(mask).unique().tolist())
    if 0 in found:
        raise ValueError(
            f"the mask of {name} holds 0, as where none was read, or one of an older checkpoint: {NO_PLACE}"
        )
    if not any(found <= {KEPT, code} for code in CODES.values()):
        raise ValueError(f"the mask of {name} must hold {KEPT} and one of {CODES}, got {sorted(found)}")


def check_mask(
    mask: object, param: Tensor, name: object, *, any_device: bool = False, dtype: torch.dtype = torch.bool
) -> None:
    """Raises TypeError or ValueError where a mask does not fit the parameter called ``name``."""
    if not isinstance(mask, Tensor):
        instead = "; remove_mask takes a mask off" if mask is None else ""
        raise TypeError(f"the mask of {name} must be a bool tensor, got {type(mask).__name__}{instead}")
    if mask.dtype is not dtype:
        raise TypeError(
            f"the mask of {name} must be a bool tensor, True where an element is kept, got {mask.dtype}"
        )
    if param.is_complex():
        raise TypeError(f"{name} is {param.dtype}: masks of complex parameters are not supported")
    if mask.layout is not torch.strided:
        raise TypeError(f"the mask of {name} must be a dense tensor, got layout {mask.layout}")
    for what in ("shape",) if any_device else ("shape", "device"):
        own, other = getattr(param, what), getattr(mask, what)
        if own != other:
            raise ValueError(f"the mask of {name} must have its {what} {own}, got {other}")
    difference = unlike(param, mask)
    if difference:
        raise ValueError(f"the mask of {name} {difference}")


def check_packed(packed: PackedMask, param: Tensor, name: object) -> None:
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
    left_out = ~local(mask)
    for array in map(local, arrays):
        if array.dtype is block8.DTYPE:  # whose bytes lie otherwise in a block; code 0 is 0
            flat = block8.laid(in_memory_order(left_out, array).reshape(-1))
            view = in_memory_order(array, array)
            view.masked_fill_(flat.view(view.shape), 0)
        else:
            array.masked_fill_(left_out, 0)


def cleared(packed: PackedMask, arrays: Sequence[Tensor]) -> PackedMask:
    """Makes states 0 where a mask of mode "zero" prunes, if anyone has written them since that was done.

    A kernel looks only at the parameters there. Who writes a state counts up its version, or puts another
    tensor or other memory in its place; a step does neither.

    Returns:
        The mask, with a note of how the states were left.
    """
    if packed.mode == "freeze" or _same(packed.seen, _seen(arrays)):
        return packed
    zero_left_out(_unpacked(packed), arrays)
    return packed._replace(seen=_seen(arrays))


def _seen(arrays: Sequence[Tensor]) -> tuple[Any, ...]:
    """Returns, for each state, the tensor (weakly), its address and its version."""
    tensors = map(local, arrays)
    # A tensor made in inference mode counts no versions: it is taken for one that was not written.
    seen = ((weakref.ref(t), address(t), 0 if t.is_inference() else t._version) for t in tensors)
    return tuple(itertools.chain.from_iterable(seen))


def _same(noted: tuple[Any, ...], seen: tuple[Any, ...]) -> bool:
    """True for equal notes; == on two references would compare the tensors' elements."""
    return len(noted) == len(seen) and all(
        a is b or (isinstance(a, int) and a == b) for a, b in zip(noted, seen, strict=True)
    )
