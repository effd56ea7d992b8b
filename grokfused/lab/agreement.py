"""The agreement grid: every backend on every device against the reference, bit for bit.

The test suite runs it, and so does ``grokfused verify``: the way to trust a new GPU, torch or compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from grokfused import GrokAdam, GrokAdamW, backends
from grokfused.backends.reference import real_dtype
from grokfused.state.arrays import NAMES
from grokfused.state.storage import OWN_STATES, PARAM_DTYPES
from grokfused.step.grad_filter import FILTERS

# Edges of vector widths, of dimensions and of memory orders; "many" is split between threads. The last ones
# are put under masks after their first step.
SHAPES = {
    "scalar": [],
    "empty": [0],
    "one": [1],
    "below a vector": [7],
    "a vector": [8],
    "above a vector": [9],
    "matrix": [31, 33],
    "odd": [4097],
    "transposed": [65, 17],
    "channels last": [3, 5, 4, 2],
    "odd offset": [1023],
    "many": [70001],
    "zero mask, transposed": [65, 33],
    "zero mask of blocks": [300, 96],
    "freeze mask": [2049],
    "freeze mask of blocks, odd offset": [9601],
}


class Case(NamedTuple):
    """One combination of everything that selects code."""

    param_dtype: torch.dtype
    param_rounding: str
    state_dtype: torch.dtype | str
    state_rounding: str
    grad_filter: str
    decay: str
    amsgrad: bool
    maximize: bool
    grad_scale: float | None  # of a loss that was scaled; one of the steps then overflows
    capturable: bool

    @property
    def window_dtype(self) -> torch.dtype:
        """Of the gradients in a window; each decay goes with one of them."""
        return torch.bfloat16 if self.decay == "coupled" else torch.float32

    def __str__(self) -> str:
        words = [
            str(self.param_dtype),
            *([] if self.param_rounding == "nearest" else [self.param_rounding]),
            str(self.state_dtype),
            self.state_rounding,
            self.grad_filter,
            self.decay,
        ]
        words += ["amsgrad"] * self.amsgrad + ["maximize"] * self.maximize
        words += [f"scaled by {self.grad_scale}"] * (self.grad_scale is not None)
        words += ["capturable"] * self.capturable
        return "-".join(words).replace("torch.", "")


def cases() -> Iterator[Case]:
    """Yields the grid: all combinations, and of those of the other roundings of parameters a part."""
    states: list[tuple[torch.dtype | str, str]] = [
        (torch.float32, "nearest"),
        (torch.bfloat16, "nearest"),
        (torch.bfloat16, "stochastic"),
        ("block8", "stochastic"),
    ]
    params = (torch.float32, torch.bfloat16, torch.float16)
    decays = ("coupled", "decoupled")
    for param, state, kind, decay, amsgrad in product(params, states, FILTERS, decays, (False, True)):
        # What is only a factor of the gradient, or says who numbers the steps, needs no product of its own.
        scale = 3072.5 if amsgrad else None
        yield Case(param, "nearest", *state, kind, decay, amsgrad, amsgrad, scale, capturable=kind == "none")
    for n, (param, kind, decay, amsgrad) in enumerate(product(OWN_STATES, FILTERS, decays, (False, True))):
        if param is torch.float64 or n % 3 == 0:  # a complex number is two real ones
            scale = 3072.5 if amsgrad else None
            rest = (amsgrad, amsgrad, scale, kind == "none")
            yield Case(param, "nearest", torch.float32, "nearest", kind, decay, *rest)
    # With each rounding and each kind of states, and with each rounding all values of the other options.
    for n, (param, rounding, (state, of_it)) in enumerate(
        product(params[1:], ("stochastic", "kahan"), states)
    ):
        kind, decay, amsgrad = list(FILTERS)[n % len(FILTERS)], decays[n // 2 % 2], (n + n // 3) % 3 == 1
        scale = None if amsgrad else 3072.5
        yield Case(param, rounding, state, of_it, kind, decay, amsgrad, not amsgrad, scale, n % 2 == 0)


def cases_of(backend: str, device: str) -> list[Case]:
    """Returns the part of the grid whose dtypes a backend takes: Triton's kernels have no float64."""
    why_not = backends.backend(backend).why_not
    takes = {
        dtype: why_not(backends.kind_on(device, dtype)) is None
        or why_not(backends.kind_on(device, torch.float32)) is not None
        for dtype in PARAM_DTYPES
    }
    return [case for case in cases() if takes[case.param_dtype]]


def _laid_out(name: str, values: Tensor) -> Tensor:
    """Returns the values in the memory order that the shape's name tells."""
    if "transposed" in name:
        return values.t().contiguous().t()
    if name == "channels last":
        return values.contiguous(memory_format=torch.channels_last)
    if "odd offset" in name:
        return torch.cat([values.new_zeros(1), values])[1:]
    return values


def _random(shape: Sequence[int], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """Returns normal numbers; of a dtype of 16 bits, rounded ones."""
    drawn = dtype if dtype in OWN_STATES else torch.float32
    return torch.randn(shape, generator=random, dtype=drawn).to(dtype)


def parameters(dtype: torch.dtype, device: str) -> list[Tensor]:
    """Returns one parameter per shape, the same values on every device."""
    random = torch.Generator().manual_seed(1)
    made = []
    for name, shape in SHAPES.items():
        values = _random(shape, dtype, random).to(device)
        made.append(_laid_out(name, values).detach().requires_grad_())
    return made


def set_masks(optimizer: GrokAdam, params: list[Tensor]) -> None:
    """Puts the masks on that the shapes' names tell; a third of the elements or of the blocks is kept."""
    random = torch.Generator().manual_seed(3)
    for name, param in zip(SHAPES, params, strict=True):
        if "mask" in name and not param.is_complex():
            block = 96 if "blocks" in name else 1
            kept = torch.rand(-(-param.numel() // block), generator=random) < 1 / 3
            mask = kept.repeat_interleave(block)[: param.numel()].view(param.shape)
            optimizer.set_mask(param, mask.to(param.device), name.split()[0])


def set_grads(params: list[Tensor], random: torch.Generator) -> None:
    """Gives each parameter a gradient whose size varies over twelve orders of magnitude."""
    for param in params:
        grad = _random(param.shape, param.dtype if param.dtype in OWN_STATES else torch.float32, random)
        grad = grad * 10.0 ** torch.randint(-9, 3, param.shape, generator=random)
        param.grad = torch.empty_like(param).copy_(grad.to(param.dtype))


def run(backend: str, case: Case, device: str = "cpu", steps: int = 5) -> dict[str, Tensor]:
    """Takes steps and returns all parameters and states, by name, on the CPU.

    Args:
        backend: A name in ``grokfused.backends.BACKENDS``.
        case: What to run. No hyperparameter has its default value.
        device: Where the parameters live.
        steps: How many steps.

    Raises:
        BackendUnavailable: The backend cannot run there; the message says why.
    """
    params = parameters(case.param_dtype, device)
    kind = GrokAdam if case.decay == "coupled" else GrokAdamW
    optimizer = kind(
        params,
        lr=3e-3,
        betas=(0.87, 0.993),
        eps=3e-7,
        weight_decay=0.037,
        amsgrad=case.amsgrad,
        grad_filter=case.grad_filter,
        alpha=0.93,
        lamb=1.7,
        window_size=3,
        window_dtype=case.window_dtype,
        filter_type="sum" if case.amsgrad else "mean",
        filter_warmup=not case.maximize,
        maximize=case.maximize,
        capturable=case.capturable,
        state_dtype=case.state_dtype,
        state_rounding=case.state_rounding,
        param_rounding=case.param_rounding,
        seed=7,
        backend=backend,
    )
    random = torch.Generator().manual_seed(2)
    for number in range(steps):
        set_grads(params, random)
        if number == 1:
            set_masks(optimizer, params)
        if case.grad_scale is not None:  # what torch.amp.GradScaler does
            optimizer.grad_scale = torch.tensor(case.grad_scale, device=device)
            optimizer.found_inf = torch.tensor(float(number == 2), device=device)
        optimizer.step()
    results = {}
    for name, param in zip(SHAPES, params, strict=True):
        results[f"{name} param"] = param.detach().cpu()
        for key in ("step", *NAMES):
            if key in optimizer.state[param]:
                results[f"{name} {key}"] = optimizer.state[param][key].cpu()
    return results


def differing_bits(a: Tensor, b: Tensor) -> int:
    """Counts the elements that differ in any bit; every NaN counts as the same."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return max(a.numel(), b.numel(), 1)
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    same = (a.contiguous().view(integers) == b.contiguous().view(integers)) | (a.isnan() & b.isnan())
    return int((~same).sum())


def disagreements(results: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, int]:
    """Returns how many elements differ, for each tensor in which some do."""
    counts = {name: differing_bits(results[name], truth[name]) for name in truth}
    return {name: count for name, count in counts.items() if count}


def compare(
    backend: str, device: str, grid: Sequence[Case], done: Callable[[], None]
) -> dict[str, dict[str, int]]:
    """Returns, for each case in which ``backend`` differs from the reference, what differs.

    Args:
        backend: A name in ``grokfused.backends.BACKENDS``.
        device: Where ``backend`` runs; the reference is taken on the CPU.
        grid: The cases.
        done: Called after each case.

    Raises:
        BackendUnavailable: The backend cannot run there; the message says why.
    """
    wrong = {}
    for case in grid:
        # float64 shows the last bit of a power, in which devices differ: its numbers are derived there too.
        where = device if real_dtype(case.param_dtype) is torch.float64 else "cpu"
        differing = disagreements(run(backend, case, device), run("reference", case, where))
        if differing:
            wrong[str(case)] = differing
        done()
    return wrong
