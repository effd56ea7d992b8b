"""The native backend: loads ``_C`` and wraps the op ``torch.ops.grokfused.adamw_step_``."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PARAM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STATE_DTYPES = (torch.float32, torch.bfloat16)

_missing: str | None = None
try:
    import grokfused._C as _C
except ImportError as error:  # not built, or built for another Python or torch
    _missing = f"grokfused._C cannot be imported ({error})"
    _build_error = Path(__file__).with_name("_build_error.txt")
    if _build_error.exists():
        _missing += f"; its build failed:\n{_build_error.read_text().strip()}"


def build_info() -> dict[str, Any] | None:
    """Returns how ``_C`` was built (version, torch target, compiler, flags), or None without it."""
    return None if _missing else dict(_C.build_info())


def why_not(kind: Any) -> str | None:
    """Says why this backend cannot run a bucket of this kind (``backends.Kind``), or None."""
    if _missing:
        return _missing
    if kind.device not in _devices():
        return f"_C was built without a kernel for {kind.device}"
    if not kind.dense:
        return "a parameter has gaps in its memory (a strided view)"
    return None


def _devices() -> tuple[str, ...]:
    return ("cpu", "cuda") if _C.build_info()["cuda_architectures"] else ("cpu",)


def adamw_step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    grad_emas: list[Tensor],
    steps: Tensor,
    scalars: Tensor,
    rows: list[int],
    **options: Any,
) -> None:
    """Updates params, states and step counters in place, in one pass; see ``reference.adamw_step_``.

    Raises:
        RuntimeError: A tensor does not fit its parameter; nothing was changed.
    """
    torch.ops.grokfused.adamw_step_.default(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs,
        grad_emas,
        steps,
        scalars,
        rows,
        **options,
    )
    # What torch's own in-place operations do: a backward pass through the old values then fails loudly.
    torch.autograd.graph.increment_version(params)


class Stepper:
    """``adamw_step_`` for one bucket, step after step.

    The first step goes through the op, which checks every tensor. As long as all tensors then lie where
    they lay, the next ones run the same kernel on the remembered addresses: for hundreds of small tensors
    the checks would cost more than the arithmetic. Shapes and memory orders of the gradients, which are new
    tensors in each step, are compared by ``plan.Plan.grads`` before. Tensors that are negated only when
    read, or that have no memory at all (empty or lazily zero), always take the way of the op, whose
    dispatcher knows them.
    """

    def __init__(self) -> None:
        self.known: object = None  # what the op has checked
        self.launch: Any = None

    def __call__(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        grad_emas: list[Tensor],
        steps: Tensor,
        scalars: Tensor,
        rows: list[int],
        **options: Any,
    ) -> None:
        """Takes one step; arguments and errors are those of ``adamw_step_``."""
        kept = (params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_emas)
        addresses = [list(map(_address, array)) for array in kept]
        grad_addresses = list(map(_address, grads))
        seen = (addresses, [grad.dtype for grad in grads])
        plain = 0 not in grad_addresses and not any(map(Tensor.is_neg, grads)) and all(map(_is_cpu, grads))
        if plain and seen == self.known:
            self.launch.step(grad_addresses, scalars.data_ptr(), rows, steps.data_ptr())
            torch.autograd.graph.increment_version(params)
            return
        self.known = None
        adamw_step_(params, grads, *kept[1:], steps, scalars, rows, **options)
        if params[0].device.type == "cpu" and not any(tensor.is_neg() for array in kept for tensor in array):
            dtypes = (str(tensor.dtype).removeprefix("torch.") for tensor in (params[0], exp_avgs[0]))
            sizes = list(map(Tensor.numel, params))
            self.launch = _C.CpuLaunch(*dtypes, addresses, sizes, **options)
            self.alive = kept  # while these live, no other tensor can come to lie at their addresses
            self.known = seen


_address = Tensor.data_ptr
_is_cpu = operator.attrgetter("is_cpu")

if not _missing:
    # The op has no derivative. Falling through says so at once; torch's stand-in for a missing autograd
    # kernel would look at every tensor of every step first.
    _library = torch.library.Library("grokfused", "IMPL")
    _library.impl("adamw_step_", torch.library.fallthrough_kernel, "Autograd")

    @torch.library.register_fake("grokfused::adamw_step_")  # type: ignore[untyped-decorator]
    def _adamw_step_fake(*args: Any, **options: Any) -> None:
        """Has no output to give a shape to; but real tensors among those without memory must not be lost."""
        tensors = [t for arg in args for t in (arg if isinstance(arg, (list, tuple)) else [arg])]
        devices = {str(tensor.device) for tensor in tensors if isinstance(tensor, Tensor)}
        if "meta" in devices and len(devices) > 1:
            raise RuntimeError(f"grokfused: all tensors must be on one device, got {sorted(devices)}")
