"""Who is measured: ours in every variant, torch's own, and Grokfast as one would write it with torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused import GrokAdamW
from grokfused.backends import BACKENDS, reference
from grokfused.backends.storage import LANES
from grokfused.lab.bench.cases import Shapes
from grokfused.lab.bench.timing import Step
from grokfused.lab.bench.traffic import Traffic, traffic, under_masks
from grokfused.state.storage import PARAM_ROUNDINGS
from grokfused.step.grad_filter import FILTERS
from grokfused.step.mask import pack
from grokfused.step.scalars import step_scalars

# Nobody's defaults: one that a peer ignores would show in its results.
LR, BETAS, EPS, WEIGHT_DECAY = 2e-3, (0.85, 0.98), 3e-9, 0.03
ALPHA, LAMB = 0.95, 1.5
ADAMW: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
OURS, FUSED, COPY = "GrokAdamW", "AdamW(fused)", "copy_"
FOREACH_EMA = f"foreach EMA + {FUSED}"
PYTHON_EMA = f"Python Grokfast + {FUSED}"
MASKED_FUSED = f"foreach EMA + grad * mask + {FUSED} + param * mask"
NARROW = "GrokAdamW, bfloat16 states"
NARROWEST = "GrokAdamW, bfloat16 parameters and states"
EIGHT_BITS = "GrokAdamW, 8-bit states"
CLIPPING, CLIP_FIRST, CLIP_FUSED = f"{OURS}(max_grad_norm)", f"clip + {OURS}", f"clip + {FUSED}"
MAX_NORM = 1.0  # the gradients' is far above: every step clips
DENSITIES = (1.0, 0.5, 0.1, 0.01)
NO_FILTER = {"grad_filter": "none"}


class Place(NamedTuple):
    """Where and in which dtype the parameters are."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32


class Mask(NamedTuple):
    """The kind of mask every parameter is under: ``layout`` is "unstructured" or "whole rows"."""

    layout: str
    density: float

    def of(self, params: list[Tensor]) -> list[Tensor]:
        """Returns a bool mask per parameter, the same ones each time."""
        random = torch.Generator(params[0].device).manual_seed(1)
        return [self._one(param, random) for param in params]

    def _one(self, param: Tensor, random: torch.Generator) -> Tensor:
        def kept(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=random, device=param.device) < self.density

        if self.layout == "unstructured":
            return kept(*param.shape)
        if param.dim() > 1:
            return kept(len(param)).view(-1, *[1] * (param.dim() - 1)).expand(param.shape)
        runs = kept(-(-param.numel() // LANES))  # of a vector, its words
        return runs.repeat_interleave(LANES)[: param.numel()]


class Work(NamedTuple):
    """What is done in a step, said as the options and the mask of the GrokAdamW that does the same.

    ``states``: "ours", of the dtype that GrokAdamW keeps them in; "as params", of that of the parameters; or
    of "8 bits".
    """

    options: Mapping[str, Any] = {}
    mask: Mask | None = None
    states: str = "ours"

    def traffic(self, params: list[Tensor]) -> Traffic:
        """Returns what a step that does this must move at least, in bytes per element."""
        dtype = params[0].dtype
        itemsize = {"ours": None, "as params": dtype.itemsize, "8 bits": 1}[self.states]
        dense = traffic(self.options, dtype, itemsize)
        if self.mask is None:
            return dense
        packed = [pack(mask, p, "zero") for mask, p in zip(self.mask.of(params), params, strict=True)]
        return under_masks(dense, packed, dtype)


GROKFAST = Work(states="as params")  # of those who write it with torch


@dataclass(frozen=True)
class Implementation:
    """Somebody's way to take a step.

    ``make`` is given parameters with gradients and returns the step. ``work`` is None for the copy, which is
    no step. ``writes_grads``: the step changes the gradients, which are then restored before each timing.
    ``window_bytes``: what a window of gradients takes for each element. ``dtype``: of its parameters, where
    that is not the case's.
    """

    name: str
    make: Callable[[list[Tensor]], Step]
    work: Work | None = field(default_factory=Work)
    writes_grads: bool = False
    window_bytes: int = 0
    dtype: torch.dtype | None = None


def parameters(shapes: Shapes, place: Place = Place()) -> list[Tensor]:  # noqa: B008  (immutable)
    """Returns parameters with gradients, the same values each time."""
    device, dtype = place
    random = torch.Generator(device).manual_seed(0)
    params = [torch.randn(s, generator=random, dtype=dtype, device=device).requires_grad_() for s in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=random, dtype=dtype, device=device)
    return params


def grads_of(params: list[Tensor]) -> list[Tensor]:
    """Returns the gradients of parameters that all have one."""
    return [param.grad for param in params if param.grad is not None]


def ours(name: str = OURS, mask: Mask | None = None, **options: Any) -> Implementation:
    """Returns a GrokAdamW with these options, whose parameters are under such masks."""

    def make(params: list[Tensor]) -> Step:
        optimizer = GrokAdamW(params, **ADAMW, alpha=ALPHA, lamb=LAMB, **options)
        if mask is not None:
            optimizer.set_masks(dict(zip(params, mask.of(params), strict=True)))
        return optimizer.step

    return Implementation(name, make, Work(options, mask))


def torchs(kind: str, **options: Any) -> list[Implementation]:
    """Returns torch's AdamW of one kind: alone, after a foreach EMA, and that under masks.

    The masks are of the parameters' dtype, as ``torch.nn.utils.prune`` keeps them: nothing has to be
    converted in a step. What they leave out is taken from gradients before, from weights after.
    """
    mask, name = Mask("unstructured", 0.1), f"AdamW({kind})"

    def adamw(params: list[Tensor]) -> Step:
        return torch.optim.AdamW(params, **ADAMW, **options).step

    def after_ema(params: list[Tensor]) -> Step:
        step_adamw, grads = adamw(params), grads_of(params)
        emas = [grad.clone() for grad in grads]

        def step() -> None:
            torch._foreach_lerp_(emas, grads, 1 - ALPHA)
            torch._foreach_add_(grads, emas, alpha=LAMB)
            step_adamw()

        return step

    def under_mask(params: list[Tensor]) -> Step:
        step_after_ema, grads = after_ema(params), grads_of(params)
        factors = [kept.to(p.dtype) for kept, p in zip(mask.of(params), params, strict=True)]

        @torch.no_grad()
        def step() -> None:
            torch._foreach_mul_(grads, factors)
            step_after_ema()
            torch._foreach_mul_(params, factors)

        return step

    masked = f"foreach EMA + grad * mask + {name} + param * mask"
    return [
        Implementation(name, adamw, Work(NO_FILTER, states="as params")),
        Implementation(f"foreach EMA + {name}", after_ema, GROKFAST, writes_grads=True),
        Implementation(masked, under_mask, GROKFAST._replace(mask=mask), writes_grads=True),
    ]


def python_grokfast(params: list[Tensor]) -> Step:
    """Grokfast-EMA as the paper's algorithm 2 reads, one tensor after the other, then the fused AdamW."""
    optimizer = torch.optim.AdamW(params, **ADAMW, fused=True)
    emas = [grad.clone() for grad in grads_of(params)]

    def step() -> None:
        for number, param in enumerate(params):
            assert param.grad is not None
            emas[number] = ALPHA * emas[number] + (1 - ALPHA) * param.grad
            param.grad = param.grad + LAMB * emas[number]
        optimizer.step()

    return step


def compiled_reference(params: list[Tensor]) -> Step:
    """The definition of the step, compiled by torch once for tensors of every size, and called for each."""
    states = [
        {name: torch.zeros_like(p, dtype=torch.float32).view(-1) for name in ("exp_avg", "exp_avg_sq")}
        | {"grad_ema": grad.float().view(-1).clone()}
        for p, grad in zip(params, grads_of(params), strict=True)
    ]
    group = GrokAdamW(params, **ADAMW, alpha=ALPHA, lamb=LAMB).param_groups[0]
    steps = 0

    def update(param: Tensor, grad: Tensor, state: dict[str, Tensor], numbers: Any) -> None:
        values = {"param": param.float(), "grad": grad.float(), **state}
        new = reference.step(values, reference.Scalars(*numbers.unbind()), "ema", "decoupled")
        param.copy_(new["param"])
        for name, array in state.items():
            array.copy_(new[name])

    compiled = torch.compile(update, dynamic=True)

    @torch.no_grad()
    def step() -> None:
        nonlocal steps
        steps += 1
        numbers = torch.tensor(step_scalars(group, float(steps), 0.0), device=params[0].device)
        for param, state in zip(params, states, strict=True):
            compiled(param.view(-1), param.grad.view(-1), state, numbers)  # type: ignore[union-attr]

    return step


def clipped(name: str, implementation: Implementation) -> Implementation:
    """Returns torch's clipping, which reads the gradients to measure and again to scale them, and a step."""
    assert implementation.work is not None
    work = implementation.work
    options = {**work.options, "max_grad_norm": MAX_NORM}

    def make(params: list[Tensor]) -> Step:
        take_step = implementation.make(params)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
            take_step()

        return step

    return Implementation(name, make, work._replace(options=options), writes_grads=True)


def copy(params: list[Tensor]) -> Step:
    """One ``copy_`` of a float32 tensor as long as all parameters together."""
    count = sum(param.numel() for param in params)
    source, target = torch.ones(count, device=params[0].device), torch.zeros(count, device=params[0].device)
    return lambda: target.copy_(source)


def _variants() -> list[Implementation]:
    """Ours: every option that changes what is moved or done, and every backend by name."""
    narrow: dict[str, Any] = {"state_dtype": torch.bfloat16}
    filters = [name for name in FILTERS if name != "ema"]
    masks = [Mask("unstructured", density) for density in DENSITIES]
    masks += [Mask("whole rows", density) for density in DENSITIES[1:]]
    return [
        ours(),
        ours(NARROW, **narrow),
        ours(f"{NARROW}, nearest", **narrow, state_rounding="nearest"),
        replace(ours(NARROWEST, **narrow), dtype=torch.bfloat16),
        ours(EIGHT_BITS, state_dtype="block8"),
        ours(CLIPPING, max_grad_norm=MAX_NORM),
        ours("GrokAdamW, capturable", capturable=True),
        *(ours(f"GrokAdamW, grad_filter={name}", grad_filter=name) for name in filters),
        *(ours(f"GrokAdamW, param_rounding={name}", param_rounding=name) for name in PARAM_ROUNDINGS[1:]),
        *(ours(f"GrokAdamW, backend={name}", backend=name) for name in list(BACKENDS)[1:]),
        *(ours(f"{mask.layout}, {mask.density:.0%} kept", mask) for mask in masks),
    ]


KINDS: dict[str, dict[str, bool]] = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
IMPLEMENTATIONS: dict[str, Implementation] = {
    each.name: each
    for each in [
        *_variants(),
        *(each for kind, options in KINDS.items() for each in torchs(kind, **options)),
        clipped(CLIP_FIRST, ours()),
        clipped(CLIP_FUSED, torchs("fused", fused=True)[0]),
        Implementation(PYTHON_EMA, python_grokfast, GROKFAST, writes_grads=True),
        Implementation("torch.compile of the reference", compiled_reference),
        Implementation(COPY, copy, work=None),
    ]
}
