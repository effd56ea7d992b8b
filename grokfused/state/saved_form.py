"""How a state looks where it is saved: tensors only, those that are arrays as they are.

So torch.distributed.checkpoint can flatten, spread and merge it. Two things of a live state are no tensor:
its mask, packed, and the notes of when filters began.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from grokfused.backends import block8
from grokfused.state.arrays import MOMENTS, NAMES
from grokfused.state.blocks import as_numbers
from grokfused.state.sharding import is_sharded, local, part_of, sharded_like
from grokfused.state.storage import STATE_DTYPES
from grokfused.step.grad_filter import FILTERS, STARTS, WINDOW_START, is_pending
from grokfused.step.mask import (
    PackedMask,
    check_codes,
    check_mask,
    check_mode,
    coded,
    decoded,
    pack,
    unpack,
)

WINDOW_PARTS = tuple(FILTERS["mean"].states)
MASK = {"mask", "mask_mode"}  # of a saved state; the mode, a string beside a bool mask, is of older versions
MASKS = "masks"  # of a saved group: how many of its parameters have one


def as_saved(groups: list[dict[str, Any]], state_dict: dict[str, Any]) -> dict[str, Any]:
    """Returns the state dict with each state in its saved form.

    A mask is a tensor of codes (``mask.coded``). The memory of a filter whose first step was cancelled by an
    overflow is left out: it is made anew, and begins with the next step. (Not where torch keeps what the
    loading optimizer has, with ``full_state_dict``: zeros.) Each group tells how many ``masks`` it has, so
    that none is lost unnoticed on the way, and the ``state_dtype``, ``window_dtype`` and ``window_size`` that
    its states have: they keep those with which they were made, whatever the options have become.

    Args:
        groups: The optimizer's parameter groups.
        state_dict: Its state dict, in which parameters have numbers.
    """
    states = dict(state_dict["state"])
    for key, param in enumerate(param for group in groups for param in group["params"]):
        state = states.get(key)
        if isinstance(state, dict) and (
            not state.keys().isdisjoint((block8.BASES, *STARTS, *WINDOW_PARTS))
            or isinstance(state.get("mask"), PackedMask)
        ):
            states[key] = _saved(state, param)
    saved_groups = [
        {**group, **_kept_options(group, state_dict["state"]), MASKS: masks_of(group, states)}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "state": states, "param_groups": saved_groups}


def _kept_options(group: Mapping[str, Any], states: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the options for which states were made; the wider one, where it was changed in between."""
    own = [state for key in group["params"] if isinstance(state := states.get(key), dict)]
    kept: dict[str, Any] = {}
    for option, array in {"state_dtype": MOMENTS[0], "window_dtype": "grad_window"}.items():
        found = {state[array].dtype for state in own if isinstance(state.get(array), Tensor)}
        names = [name for name, dtype in STATE_DTYPES.items() if dtype in found]
        kept |= {option: names[0]} if names else {}
    sizes = {len(state["grad_window"]) for state in own if isinstance(state.get("grad_window"), Tensor)}
    return kept | ({"window_size": sizes.pop()} if sizes else {})


def _saved(state: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
    pending = [kind for kind in FILTERS.values() if is_pending(state, kind.start)]
    memory = {name for kind in pending for name in kind.states}
    shown = as_numbers(state, param).items()
    saved = {key: value for key, value in shown if key not in (*STARTS, *memory)}
    if not state.keys() >= {*WINDOW_PARTS, WINDOW_START}:  # someone has taken a part away: a step begins anew
        saved = {key: value for key, value in saved.items() if key not in WINDOW_PARTS}
    elif "grad_window" in saved:
        # [1]: of [], torch.distributed.checkpoint makes an error where the loading optimizer has none.
        saved[WINDOW_START] = torch.tensor([float(state[WINDOW_START])], dtype=torch.float32, device="cpu")
    if isinstance(mask := state.get("mask"), PackedMask):
        saved["mask"] = coded(mask, param)
    return saved


def there_in(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a saved state has.

    Of a flattened one, torch.distributed.checkpoint makes an empty dict of what it has not, and the loading
    optimizer has.
    """
    ours = {*STARTS, *MASK, *NAMES}
    return {key: value for key, value in state.items() if not (key in ours and value == {})}


def check_mask_of(state: Mapping[str, Any], param: Tensor, name: object, *, any_device: bool = False) -> None:
    """Raises TypeError or ValueError where the mask of a saved state is none, or does not fit."""
    mask = _spread(state.get("mask"), param)
    if isinstance(mask, Tensor) and mask.dtype is torch.uint8:
        check_mask(mask, param, name, any_device=any_device, dtype=torch.uint8)
        check_codes(mask, name)
    else:
        check_mask(mask, param, name, any_device=any_device)
        check_mode(state.get("mask_mode"))


def _spread(mask: Any, param: Tensor) -> Any:
    """Returns a mask as the parameter is spread, where it is whole.

    torch.distributed.checkpoint spreads only what the loading optimizer has a place for.
    """
    is_whole = is_sharded(param) and isinstance(mask, Tensor) and not is_sharded(mask)
    return part_of(param, mask) if is_whole and mask.shape == param.shape else mask


def _decoded(state: Mapping[str, Any], param: Tensor) -> tuple[Tensor, str]:
    mask = _spread(state["mask"], param)
    return decoded(mask) if mask.dtype is torch.uint8 else (mask, state["mask_mode"])


def take_mask(state: dict[str, Any], param: Tensor) -> Tensor | None:
    """Packs the mask of a state, where it lies there in its saved form.

    Returns:
        It, as bool, where what it leaves out shall be 0.
    """
    if not isinstance(state.get("mask"), Tensor):
        return None
    kept, mode = _decoded(state, param)
    kept = kept.to(param.device)
    state["mask"] = pack(kept, param, mode)
    state.pop("mask_mode", None)
    return kept if mode == "zero" else None


def kept_of(state: Mapping[str, Any], param: Tensor) -> Tensor:
    """Returns the mask of a state, packed or in its saved form, as bool."""
    mask = state["mask"]
    if not isinstance(mask, Tensor):
        return unpack(mask, param)
    return sharded_like(param, local(_decoded(state, param)[0]))


def make_place(groups: Iterable[dict[str, Any]]) -> None:
    """Gives live groups the key under which saved ones have the number of their masks, with no number.

    torch.distributed.checkpoint and ``torch.optim._stateless`` know only the keys that live groups have. And
    ZeroRedundancyOptimizer saves its own copies of live groups, which are not told of masks.
    """
    for group in groups:
        group[MASKS] = None


def masks_of(group: Mapping[str, Any], states: Mapping[Any, Mapping[str, Any]]) -> int:
    """Returns how many parameters of a saved group have a mask."""
    found = [states.get(key) for key in {*group["params"]}]
    return sum(isinstance(state, dict) and "mask" in state for state in found)
