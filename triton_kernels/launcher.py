"""Launches the kernel: the table of a bucket's tensors, and the call that every backend of Python's takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import columns
from .grad_filter import ARRAYS as FILTER_ARRAYS
from .grad_filter import FILTERS
from .kernel import adamw_kernel

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Elements that a program steps at once, four a thread; of states in 8 bits eight, which are two words.
# Programs are small, and three at least share a multiprocessor's 65,536 registers. The interpreter pays per
# tile.
TILE, BLOCK8_TILE = (1 << 15, 1 << 15) if INTERPRETED else (512, 1024)
# A program steps more tiles where there would be more programs than this to a multiprocessor.
PROGRAMS = 1 if INTERPRETED else 32
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
# ptxas would rather spill a few registers than use more than 128.
ON_NVIDIA = {**OPTIONS, "maxnreg": 168}
STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}
PARAM_ROUNDING = {"nearest": 0, "stochastic": 1, "kahan": 2}


class Table(NamedTuple):
    """Where a bucket's tensors lie, on their device."""

    slices: Tensor  # int64 [tensors, columns]
    tensors: Tensor  # int32 [chunks]: the tensor of a chunk
    first_chunks: Tensor  # int32 [tensors]
    rows: Tensor  # int32 [tensors]: the row of scalars
    tiles: int  # of a chunk
    chunks: int


@lru_cache(maxsize=16)
def _table(
    slice_columns: tuple[tuple[int, ...], ...], rows: tuple[int, ...], tile: int, device: torch.device
) -> Table:
    """Returns the table of these addresses and sizes: the same one wherever they are the same."""
    slices = torch.tensor(slice_columns, dtype=torch.int64).T.contiguous()
    tiles, counts = _cut(slice_columns[columns.SIZE.value], tile, _processors(device))
    first = (counts.cumsum(0) - counts).to(torch.int32)
    tensors = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(counts)
    on_host = (slices, tensors, first, torch.tensor(rows, dtype=torch.int32))
    slices, tensors, first, row_of = (part.to(device) for part in on_host)
    return Table(slices, tensors, first, row_of, tiles, chunks=int(counts.sum()))


def _cut(sizes: Sequence[int], tile: int, processors: int) -> tuple[int, Tensor]:
    """Returns the tiles to a chunk, and the chunks of each tensor: an empty one has one, too."""
    tiles = 1
    while True:
        counts = torch.tensor([max(1, -(-size // (tiles * tile))) for size in sizes])
        if tiles * tile >= max(sizes) or counts.sum() <= PROGRAMS * processors:
            return tiles, counts
        tiles *= 2


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


# Tables that a captured graph reads at each replay: no one tells when it is gone.
_captured: list[Table] = []


def _table_of(
    slice_columns: tuple[tuple[int, ...], ...], rows: tuple[int, ...], tile: int, device: torch.device
) -> Table:
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    made = _table.cache_info().misses
    table = _table(slice_columns, rows, tile, device)
    if capturing:
        if _table.cache_info().misses != made:
            raise RuntimeError(
                "a step of the Triton backend can be captured in a CUDA graph only with the very tensors of "
                "a step before, gradients included: keep them (zero_grad(set_to_none=False)), or use the "
                "native backend"
            )
        _captured.append(table)
    return table


def tile_of(state: int) -> int:
    """Returns how many elements a program steps at once whose states are stored so (``STORAGE``)."""
    return BLOCK8_TILE if state == STORAGE[torch.uint8] else TILE


def _addresses(tensors: Sequence[Tensor | None], count: int) -> tuple[int, ...]:
    found = tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)
    return found or (0,) * count


def _aligned(params: Sequence[Tensor], arrays: Mapping[str, Sequence[Tensor]]) -> tuple[int, ...]:
    """Returns 1 for each parameter whose arrays, and each plane of them, begin where a wide access may."""
    found = []
    for t, param in enumerate(params):
        begins = [tensors[t].data_ptr() for tensors in arrays.values()]
        begins += [a[t].stride(0) * a[t].itemsize for a in arrays.values() if a[t].dim() > param.dim()]
        found.append(int(not any(begin % 16 for begin in begins)))
    return tuple(found)


def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    steps: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    states: Mapping[str, Sequence[Tensor]],
    scalars: Tensor,
    rows: Sequence[int],
    *,
    mask_modes: Sequence[int],
    grad_filter: str,
    decay: str,
    state_rounding: str,
    param_rounding: str,
    seed: int,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Updates params, states and step counters in place; arguments as of ``reference.adamw_step_``.

    Where ``scalars`` lie on the host, so do ``steps``.

    Raises:
        ValueError: There is no such filter.
    """
    if grad_filter not in FILTERS:
        raise ValueError(f"grad_filter must be one of {list(FILTERS)}, got {grad_filter!r}")
    device, count = params[0].device, len(params)
    on_host = scalars.device.type == "cpu" and device.type != "cpu"
    arrays = {"param": params, "grad": grads, **states}
    named = [arrays.get(name, ()) for name in (*columns.ARRAYS, *FILTER_ARRAYS)]
    at_steps = _addresses((), count) if on_host else _addresses(steps, count)
    sizes = tuple(param.numel() for param in params)
    about = (_addresses(masks, count), at_steps, tuple(mask_modes), sizes, _aligned(params, arrays))
    state_dtype = states["exp_avg"][0].dtype
    tile = tile_of(STORAGE[state_dtype])
    table = _table_of((*about, *(_addresses(tensors, count) for tensors in named)), tuple(rows), tile, device)
    window = states.get("grad_window")
    with torch.cuda.device(device if device.type == "cuda" else -1):
        adamw_kernel[(table.chunks,)](
            *table[:5],
            scalars.to(device, non_blocking=True),
            None if grad_scale is None else grad_scale.to(device),
            None if found_inf is None else found_inf,
            seed & 0xFFFFFFFF,
            len(window[0]) if window else 0,
            HAS_SCALE=grad_scale is not None,
            HAS_FOUND_INF=found_inf is not None,
            STEPS_HERE=not on_host,
            PARAM=STORAGE[params[0].dtype],
            STATE=STORAGE[state_dtype],
            WINDOW=STORAGE[window[0].dtype] if window else 0,
            STOCHASTIC=state_rounding == "stochastic" and state_dtype is torch.bfloat16,
            PARAM_ROUNDING=PARAM_ROUNDING[param_rounding] if params[0].dtype.itemsize == 2 else 0,
            FILTER=FILTERS[grad_filter],
            COUPLED=decay == "coupled",
            AMSGRAD="max_exp_avg_sq" in states,
            TILE=tile,
            MASKED=any(mask is not None for mask in masks),
            **(ON_NVIDIA if device.type == "cuda" and torch.version.cuda else OPTIONS),
        )
    if on_host:
        for step, row in zip(steps, rows, strict=True):
            step.fill_(scalars[row, 0])
