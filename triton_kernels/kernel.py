"""The one kernel, the order of its rooms (csrc/step/element_step.h), and its launcher.

Memory: 36 bytes per float32 element with the EMA filter (reads param, grad, exp_avg, exp_avg_sq, grad_ema:
20; writes all but grad: 16), 28 without; 24 with bfloat16 states. Per program besides: one row of the tables.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import adamw, grad_filter, storage

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Elements per program; not swept on a GPU yet. The interpreter pays per program.
CHUNK = 1 << 15 if INTERPRETED else 2048
WARPS = 8
# The columns of the scalar table: csrc/step/scalars.h.
STEP, GRAD_FACTOR, ALPHA, ALPHA_WEIGHT, LAMB, WEIGHT_DECAY, PARAM_SCALE = (tl.constexpr(k) for k in range(7))
BETA1_WEIGHT, BETA2, BETA2_WEIGHT, STEP_SIZE, DENOM_SCALE, EPS = (tl.constexpr(k) for k in range(7, 13))
ROW = tl.constexpr(13)
# The columns of the table of slices: csrc/step/slice.h, and whether all arrays begin where a pack may.
PARAM_AT, GRAD_AT, EXP_AVG_AT, EXP_AVG_SQ_AT, MAX_EXP_AVG_SQ_AT, GRAD_EMA_AT = (
    tl.constexpr(k) for k in range(6)
)
SIZE, IS_ALIGNED, SLICE = (tl.constexpr(k) for k in range(6, 9))
STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@triton.jit
def _step_chunk(
    slice_,
    begin,
    size,
    numbers,
    factor,
    key,
    PARAM: tl.constexpr,
    STATE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    EMA: tl.constexpr,
    COUPLED: tl.constexpr,
    AMSGRAD: tl.constexpr,
    CHUNK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    # WHOLE: the chunk is full and every array aligned, so that accesses are 16 bytes wide and need no mask.
    i = begin + tl.arange(0, CHUNK)
    mask = i < size
    param_at = storage.pointers(tl.load(slice_ + PARAM_AT), i, PARAM, WHOLE)
    grad_at = storage.pointers(tl.load(slice_ + GRAD_AT), i, PARAM, WHOLE)
    exp_avg_at = storage.pointers(tl.load(slice_ + EXP_AVG_AT), i, STATE, WHOLE)
    exp_avg_sq_at = storage.pointers(tl.load(slice_ + EXP_AVG_SQ_AT), i, STATE, WHOLE)
    param = storage.load(param_at, mask, PARAM, WHOLE)
    grad = storage.load(grad_at, mask, PARAM, WHOLE)
    exp_avg = storage.load(exp_avg_at, mask, STATE, WHOLE)
    exp_avg_sq = storage.load(exp_avg_sq_at, mask, STATE, WHOLE)
    drawn = storage.random_bits(key, i.to(tl.uint32)) if STOCHASTIC else 0

    grad = grad * factor
    if EMA:
        grad_ema_at = storage.pointers(tl.load(slice_ + GRAD_EMA_AT), i, STATE, WHOLE)
        grad_ema = storage.load(grad_ema_at, mask, STATE, WHOLE)
        grad, grad_ema = grad_filter.ema(
            grad, grad_ema, tl.load(numbers + ALPHA), tl.load(numbers + ALPHA_WEIGHT), tl.load(numbers + LAMB)
        )
        storage.store(grad_ema_at, grad_ema, drawn, mask, STATE, STOCHASTIC, WHOLE)
    param, grad = adamw.decayed(
        param, grad, tl.load(numbers + WEIGHT_DECAY), tl.load(numbers + PARAM_SCALE), COUPLED
    )
    exp_avg, exp_avg_sq = adamw.moments(
        grad,
        exp_avg,
        exp_avg_sq,
        tl.load(numbers + BETA1_WEIGHT),
        tl.load(numbers + BETA2),
        tl.load(numbers + BETA2_WEIGHT),
    )
    storage.store(exp_avg_at, exp_avg, drawn, mask, STATE, STOCHASTIC, WHOLE)
    storage.store(exp_avg_sq_at, exp_avg_sq, drawn, mask, STATE, STOCHASTIC, WHOLE)
    second_moment = exp_avg_sq
    if AMSGRAD:
        largest_at = storage.pointers(tl.load(slice_ + MAX_EXP_AVG_SQ_AT), i, STATE, WHOLE)
        second_moment = adamw.largest_second_moment(storage.load(largest_at, mask, STATE, WHOLE), exp_avg_sq)
        storage.store(largest_at, second_moment, drawn, mask, STATE, STOCHASTIC, WHOLE)
    param = adamw.moved(
        param,
        exp_avg,
        second_moment,
        tl.load(numbers + STEP_SIZE),
        tl.load(numbers + DENOM_SCALE),
        tl.load(numbers + EPS),
    )
    storage.store(param_at, param, 0, mask, PARAM, False, WHOLE)


@triton.jit(do_not_specialize=["seed"])
def adamw_kernel(
    slices,  # int64 [tensors, SLICE]
    tensors,  # int32 [chunks]: the tensor of a chunk
    first_chunks,  # int32 [tensors]
    rows,  # int32 [tensors]: the row of scalars
    scalars,  # float32 [rows, ROW]
    steps,  # float32 [tensors], written where STEPS_HERE
    grad_scale,
    found_inf,
    seed,
    HAS_SCALE: tl.constexpr,
    HAS_FOUND_INF: tl.constexpr,
    STEPS_HERE: tl.constexpr,
    PARAM: tl.constexpr,
    STATE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    EMA: tl.constexpr,
    COUPLED: tl.constexpr,
    AMSGRAD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    cancelled = False
    if HAS_FOUND_INF:
        cancelled = tl.load(found_inf) != 0
    if not cancelled:
        chunk = tl.program_id(0)
        tensor = tl.load(tensors + chunk)
        slice_ = slices + tensor.to(tl.int64) * SLICE
        numbers = scalars + tl.load(rows + tensor).to(tl.int64) * ROW
        begin = (chunk - tl.load(first_chunks + tensor)).to(tl.int64) * CHUNK
        size = tl.load(slice_ + SIZE)
        step = tl.load(numbers + STEP)
        factor = tl.load(numbers + GRAD_FACTOR)
        if HAS_SCALE:
            factor = tl.div_rn(factor, tl.load(grad_scale))
        key = storage.random_key(seed.to(tl.uint32), step.to(tl.int32).to(tl.uint32))
        whole = (begin + CHUNK <= size) & (tl.load(slice_ + IS_ALIGNED) != 0)
        if whole:
            _step_chunk(
                slice_, begin, size, numbers, factor, key,
                PARAM, STATE, STOCHASTIC, EMA, COUPLED, AMSGRAD, CHUNK, True,
            )  # fmt: skip
        else:
            _step_chunk(
                slice_, begin, size, numbers, factor, key,
                PARAM, STATE, STOCHASTIC, EMA, COUPLED, AMSGRAD, CHUNK, False,
            )  # fmt: skip
        if STEPS_HERE:
            if begin == 0:
                tl.store(steps + tensor, step)


class Table:
    """Where a bucket's tensors lie, on their device: made anew when one of them has moved.

    Args:
        addresses: Array -> the addresses of its tensors, in the order of csrc/step/slice.h; 0 where unused.
        sizes: Elements of each tensor.
        device: Where the tensors are.
    """

    def __init__(
        self, addresses: Sequence[Sequence[int]], sizes: Sequence[int], device: torch.device
    ) -> None:
        aligned = [
            int(all(address % 16 == 0 for address in tensor)) for tensor in zip(*addresses, strict=True)
        ]
        self.addresses = addresses
        self.slices = torch.tensor([*addresses, sizes, aligned], dtype=torch.int64).T.contiguous().to(device)
        counts = torch.tensor([max(1, -(-size // CHUNK)) for size in sizes])
        first = (counts.cumsum(0) - counts).to(torch.int32)
        self.chunks = int(counts.sum())
        self.tensors = torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(counts).to(device)
        self.first_chunks = first.to(device)


def _addresses(arrays: Sequence[Sequence[Tensor]], count: int) -> list[list[int]]:
    return [[tensor.data_ptr() for tensor in array] or [0] * count for array in arrays]


class Stepper:
    """``adamw_step_`` for one bucket, step after step: it remembers where the tensors lie."""

    def __init__(self) -> None:
        self.table: Table | None = None
        self.known_rows: tuple[Sequence[int], Tensor] | None = None

    def knows(self, *tensors: Any) -> bool:
        """Says whether these tensors were checked before: only addresses are remembered."""
        return False

    def __call__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        max_exp_avg_sqs: Sequence[Tensor],
        grad_emas: Sequence[Tensor],
        steps: Tensor,
        scalars: Tensor,
        rows: Sequence[int],
        *,
        grad_filter: str,
        decay: str,
        amsgrad: bool,
        state_rounding: str,
        seed: int,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Takes one step; arguments and errors are those of ``adamw_step_``."""
        on_host = scalars.device.type == "cpu" and params[0].device.type != "cpu"
        if on_host and found_inf is not None and found_inf.item() != 0:
            return
        device = params[0].device
        arrays = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_emas)
        addresses = _addresses(arrays, len(params))
        if self.table is None or self.table.addresses != addresses:
            self.table = Table(addresses, [param.numel() for param in params], device)
        if self.known_rows is None or self.known_rows[0] != rows:  # a graph cannot hold a copy from the host
            self.known_rows = (list(rows), torch.tensor(rows, dtype=torch.int32).to(device))
        table = self.table
        with torch.cuda.device(device if device.type == "cuda" else -1):
            adamw_kernel[(table.chunks,)](
                table.slices,
                table.tensors,
                table.first_chunks,
                self.known_rows[1],
                scalars.to(device, non_blocking=True),
                steps if not on_host else None,
                None if grad_scale is None else grad_scale.to(device),
                None if found_inf is None or on_host else found_inf,
                seed & 0xFFFFFFFF,
                HAS_SCALE=grad_scale is not None,
                HAS_FOUND_INF=found_inf is not None and not on_host,
                STEPS_HERE=not on_host,
                PARAM=STORAGE[params[0].dtype],
                STATE=STORAGE[exp_avgs[0].dtype],
                STOCHASTIC=state_rounding == "stochastic" and exp_avgs[0].dtype is torch.bfloat16,
                EMA=grad_filter == "ema",
                COUPLED=decay == "coupled",
                AMSGRAD=amsgrad,
                CHUNK=CHUNK,
                num_warps=WARPS,
                enable_fp_fusion=False,
            )
        if on_host:
            steps.copy_(scalars[list(rows), 0])


# The signature of the native op (csrc/op.cpp), so that torch.compile sees what is read and written.
SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] grad_emas, Tensor(f!) steps, Tensor scalars, int[] rows, *, "
    "str grad_filter, str decay, bool amsgrad, str state_rounding, int seed, Tensor? grad_scale=None, "
    "Tensor? found_inf=None) -> ()"
)


def _adamw_step_triton(params: Sequence[Tensor], *arguments: Any, **options: Any) -> None:
    if params:
        Stepper()(params, *arguments, **options)


# Not torch.library.custom_op, which takes no tensor by keyword only.
_library = torch.library.Library("grokfused", "FRAGMENT")
_library.define("adamw_step_triton_" + SCHEMA)
_library.impl("adamw_step_triton_", _adamw_step_triton, "CompositeExplicitAutograd")
torch.library.register_fake("grokfused::adamw_step_triton_", lambda *arguments, **options: None)


def adamw_step_(*arguments: Any, **options: Any) -> None:
    """Updates params, states and step counters in place; arguments as ``grokfused.reference.adamw_step_``."""
    torch.ops.grokfused.adamw_step_triton_.default(*arguments, **options)
