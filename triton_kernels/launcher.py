"""Launches the kernel: the table of a bucket's tensors, and the op of the native one's signature."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .kernel import adamw_kernel

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Elements per program; not swept on a GPU yet. The interpreter pays per program.
CHUNK = 1 << 15 if INTERPRETED else 2048
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
# ptxas would rather spill a few registers than use more than 128.
ON_NVIDIA = {**OPTIONS, "maxnreg": 224}
STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
PARAM_ROUNDING = {"nearest": 0, "stochastic": 1, "kahan": 2}


class Table:
    """Where a bucket's tensors lie, on their device: made anew when one of them has moved.

    Args:
        addresses: Array -> the addresses of its tensors, in the order of csrc/step/slice.h; 0 where unused.
        modes: Of the masks, which are the last of the arrays.
        sizes: Elements of each tensor.
        device: Where the tensors are.
    """

    def __init__(
        self,
        addresses: Sequence[Sequence[int]],
        modes: Sequence[int],
        sizes: Sequence[int],
        device: torch.device,
    ) -> None:
        aligned = [
            int(all(address % 16 == 0 for address in tensor)) for tensor in zip(*addresses[:-1], strict=True)
        ]
        self.addresses = addresses
        columns = [*addresses, list(modes) or [0] * len(sizes), sizes, aligned]
        self.slices = torch.tensor(columns, dtype=torch.int64).T.contiguous().to(device)
        counts = torch.tensor([max(1, -(-size // CHUNK)) for size in sizes])
        first = (counts.cumsum(0) - counts).to(torch.int32)
        self.chunks = int(counts.sum())
        self.tensors = torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(counts).to(device)
        self.first_chunks = first.to(device)


def _addresses(arrays: Sequence[Sequence[Tensor]], count: int) -> list[list[int]]:
    return [[tensor.data_ptr() for tensor in array] or [0] * count for array in arrays]


class Stepper:
    """``adamw_step_`` for one bucket, step after step: it remembers where the tensors lie."""

    repeats = False  # all else is checked anew

    def __init__(self) -> None:
        self.table: Table | None = None
        self.known_rows: tuple[Sequence[int], Tensor] | None = None

    def __call__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        max_exp_avg_sqs: Sequence[Tensor],
        grad_emas: Sequence[Tensor],
        kahan_comps: Sequence[Tensor],
        masks: Sequence[Tensor],
        steps: Tensor,
        scalars: Tensor,
        rows: Sequence[int],
        *,
        grad_filter: str,
        decay: str,
        amsgrad: bool,
        state_rounding: str,
        param_rounding: str,
        seed: int,
        mask_modes: Sequence[int] = (),
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Takes one step; arguments and errors are those of ``adamw_step_``."""
        on_host = scalars.device.type == "cpu" and params[0].device.type != "cpu"
        if on_host and found_inf is not None and found_inf.item() != 0:
            return
        device = params[0].device
        arrays = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_emas, kahan_comps, masks)
        addresses = _addresses(arrays, len(params))
        if self.table is None or self.table.addresses != addresses:
            self.table = Table(addresses, mask_modes, [param.numel() for param in params], device)
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
                PARAM_ROUNDING=PARAM_ROUNDING[param_rounding] if params[0].dtype.itemsize == 2 else 0,
                EMA=grad_filter == "ema",
                COUPLED=decay == "coupled",
                AMSGRAD=amsgrad,
                CHUNK=CHUNK,
                MASKED=bool(masks),
                **(ON_NVIDIA if device.type == "cuda" and torch.version.cuda else OPTIONS),
            )
        if on_host:
            steps.copy_(scalars[list(rows), 0])

    def knows(self, *tensors: Any) -> bool:
        """Says whether these tensors were checked before: only addresses are remembered."""
        return False

    def count(self, steps: Tensor) -> float | None:
        """Returns the first step counter where it is known that no one has written any: never."""
        return None

    def remember(self, *tensors: Any, **options: Any) -> None:
        """Is told what has just been stepped."""


# The signature of the native op (csrc/op.cpp), so that torch.compile sees what is read and written.
SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] grad_emas, Tensor(f!)[] kahan_comps, Tensor[] masks, "
    "Tensor(g!) steps, Tensor scalars, int[] rows, *, str grad_filter, str decay, bool amsgrad, "
    "str state_rounding, str param_rounding, int seed, int[] mask_modes=[], "
    "Tensor? grad_scale=None, Tensor? found_inf=None) -> ()"
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
