"""Which implementation runs a step: a table of names, each with the reason why it may refuse."""

from __future__ import annotations

import importlib
import platform
import warnings
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused._version import __version__
from grokfused.backends import gpus


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why."""


class Kind(NamedTuple):
    """What a backend must know of a bucket to say whether it can run it."""

    device: str
    dtype: torch.dtype  # of the parameters
    dense: bool  # the elements fill one stretch of memory, as they are: none changes when it is read
    gpu: int | None = None  # which one; None: the current one


# In the order in which "auto" asks. Each module has `adamw_step_` and `why_not(kind)`, may have `note(kind)`
# (what to know before the first step), and is imported when it is first asked, so that importing grokfused
# needs no compiler, no triton and no _C.
BACKENDS = {
    "native": "grokfused.backends.native",
    "triton": "grokfused.triton_kernels",
    "reference": "grokfused.backends.reference",
}
NAMES = ("auto", *BACKENDS)


def backend(name: str) -> ModuleType:
    """Imports the backend called ``name``."""
    return importlib.import_module(BACKENDS[name])


@cache
def native_table() -> Any:
    """Returns what lists and walks over parameters natively (csrc/walk.h), or None without ``_C``."""
    return backend("native").table


@lru_cache(maxsize=64)
def choose(name: str, kind: Kind) -> str:
    """Returns the name of the backend that runs a bucket of this kind.

    Args:
        name: A key of ``BACKENDS``, or "auto" for the first one that does not refuse.
        kind: What the bucket looks like.

    Raises:
        BackendUnavailable: ``name`` was asked for and refuses; the message carries its reason.
    """
    if name != "auto":
        reason = backend(name).why_not(kind)
        if reason:
            raise BackendUnavailable(f"backend={name!r} cannot run here: {reason}")
        _tell_note(name, kind)
        return name
    reasons: list[str] = []
    for candidate in BACKENDS:
        reason = backend(candidate).why_not(kind)
        if not reason:
            break
        reasons.append(f"{candidate}: {reason}")
    if candidate == "reference":
        warnings.warn(
            f"grokfused uses its slow reference backend on {kind.device}. " + "; ".join(reasons),
            RuntimeWarning,
            stacklevel=2,
        )
    _tell_note(candidate, kind)
    return candidate


def _note(name: str, kind: Kind) -> str | None:
    of_backend = getattr(backend(name), "note", None)
    return of_backend(kind) if of_backend else None


def _tell_note(name: str, kind: Kind) -> None:
    if told := _note(name, kind):
        warnings.warn(told, RuntimeWarning, stacklevel=3)


def choose_for(name: str, param: Tensor, dense: bool) -> str:
    """Returns ``choose`` for a parameter whose shard is dense or not."""
    return choose(name, kind_on(param.device, param.dtype, dense))


def kind_on(device: torch.device | str, dtype: torch.dtype, dense: bool = True) -> Kind:
    """Returns what a bucket on a device looks like."""
    device = torch.device(device)
    return Kind(device.type, dtype, dense, device.index)


def info() -> dict[str, Any]:
    """Says what is active on this machine and why.

    Returns:
        ``version``, ``torch`` and ``python`` (versions); ``build`` (how ``_C`` was built, or None; its
        ``cuda_error`` says why the CUDA kernels were not); ``gpus``, each with its compute capability;
        ``backends``: name -> {"available", "why_not", "note"}, asked for each device there is; ``auto``:
        device -> the backend that ``backend="auto"`` takes. The devices are "cpu" and "cuda"; where GPUs
        differ in their compute capability, each counts by itself ("cuda:0", "cuda:1").
        Where there is a GPU this initialises CUDA.
    """
    kinds = {device: kind_on(device, torch.float32) for device in ("cpu", *gpus.devices())}
    refusals = {
        name: {device: backend(name).why_not(kind) for device, kind in kinds.items()} for name in BACKENDS
    }
    notes = {name: {device: _note(name, kind) for device, kind in kinds.items()} for name in BACKENDS}
    return {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "build": backend("native").build_info(),
        "gpus": [str(gpu) for gpu in gpus.visible()],
        "backends": {
            name: {
                "available": [device for device, reason in reasons.items() if not reason],
                "why_not": {device: reason for device, reason in reasons.items() if reason},
                "note": {
                    device: told for device, told in notes[name].items() if told and not reasons[device]
                },
            }
            for name, reasons in refusals.items()
        },
        "auto": {device: next(name for name in BACKENDS if not refusals[name][device]) for device in kinds},
    }
