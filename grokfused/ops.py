"""The native backend: loads ``_C`` and wraps the op ``torch.ops.grokfused.adamw_step_``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Of a bucket: states, step counters, packed masks, words of masks (csrc/launch.h).
Members = tuple[list[dict[str, Any]], list[Tensor], list[Any], list[Tensor]]
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
    elif Path(__file__).parents[1].joinpath("setup.py").exists():
        _missing += "; this is the source folder: start Python elsewhere to import the installed package"


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
        return "a parameter has gaps in its memory (a strided view), or is negated only when read"
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
    kahan_comps: list[Tensor],
    masks: list[Tensor],
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
        kahan_comps,
        masks,
        steps,
        scalars,
        rows,
        **options,
    )
    # What torch's own in-place operations do: a backward pass through the old values then fails loudly.
    torch.autograd.graph.increment_version(params)


class Stepper:
    """``adamw_step_`` for one bucket, step after step.

    The first step goes through the op, which checks every tensor, and is remembered. As long as all tensors
    then are what they were and lie where they lay, and each gradient fits its parameter (``knows``), the next
    ones run the same kernel on the remembered addresses (``repeat``): for hundreds of small tensors the op's
    way would cost more than the arithmetic. Tensors that are negated only when read, or that have no memory
    of their own (lazily zero, fake), always take the way of the op, whose dispatcher knows them.
    """

    def __init__(self) -> None:
        self.launch: Any = None
        self.repeats = False  # the coming step is one that the launch knows

    def __call__(self, *arguments: Any, **options: Any) -> None:
        """Takes one step; arguments and errors are those of ``adamw_step_``."""
        self.launch = None
        adamw_step_(*arguments, **options)

    def knows(self, params: list[Tensor], grads: list[Tensor], members: Members) -> bool:
        """Says whether these are the tensors of the last step; gradients may be new ones of the same kind.

        Args:
            params: The parameters; DTensors too.
            grads: Their gradients; of DTensors, this process's shards.
            members: Their states, and what is kept of those.
        """
        self.repeats = (
            self.launch is not None
            and self.launch.knows(params, grads, members)
            and not any(map(Tensor.is_neg, grads))
        )
        return self.repeats

    def count(self, steps: Tensor) -> float | None:
        """Returns the first step counter, on the host; None where someone may have written one of them."""
        return self.launch.count(steps.data_ptr()) if self.repeats else None

    def repeat(
        self,
        params: list[Tensor],
        steps: Tensor,
        scalars: list[Any] | Tensor,
        rows: list[int],
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Takes one step on the very tensors that ``knows`` was asked about and said yes to.

        Other arguments are those of ``adamw_step_``, but for ``scalars``: the rows of the table where the
        host numbers the steps, and the table itself where the device does.
        """
        self.repeats = False
        table = scalars.data_ptr() if isinstance(scalars, Tensor) else scalars
        scale = 0 if grad_scale is None else grad_scale.data_ptr()
        found = 0 if found_inf is None else found_inf.data_ptr()
        self.launch.step(table, rows, steps.data_ptr(), scale, found)
        torch.autograd.graph.increment_version(params)

    def remember(
        self,
        arrays: list[list[Tensor]],
        params: list[Tensor],
        members: Members,
        names: list[str | None],
        *,
        sharded: bool,
        **options: Any,
    ) -> None:
        """Remembers a step that was taken.

        Args:
            arrays: What was stepped: params, grads, states, masks.
            params: The parameters, as for ``knows``.
            members: As for ``knows``.
            names: Of the states' arrays, in the order of the op's arguments; None for those not used.
            sharded: Whether there are DTensors among the parameters and states.
            options: Those of ``adamw_step_``, without tensors.
        """
        kept, device = (arrays[0], *arrays[2:]), params[0].device.type
        if _exchange and device in _devices() and not any(t.is_neg() for array in kept for t in array):
            dtypes = (str(tensor.dtype).removeprefix("torch.") for tensor in (params[0], arrays[2][0]))
            self.launch = _C.Launch(
                _exchange, device, *dtypes, params, members, names, sharded=sharded, **options
            )


# torch 2.10 has no such table; each step then takes the way of the op.
_exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)

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
