"""The native backend: loads ``_C``, whose walk finds and steps parameters (csrc/walk.h).

Relied on beside torch's public interface: ``Tensor.__dlpack_c_exchange_api__``, the table of functions by
which native code reads a tensor without asking Python (DLPack 1.3; torch 2.11 or newer). Without it there is
no native backend. And ``Tensor._cdata`` and ``torch._C._dispatch_keys``, from which native code learns where
a tensor says that it is negated or conjugated when it is read; where it cannot learn it, it asks the tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grokfused.backends import choose_for, gpus
from grokfused.state.arrays import ARRAYS
from grokfused.state.sharding import dtensor_class

_exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
_missing: str | None = None if _exchange else "this torch cannot exchange tensors: it must be 2.11 or newer"
_error_file = Path(__file__).parents[1].joinpath("_build_error.txt")
_build_error = _error_file.read_text().strip() if _error_file.exists() else None
try:
    import grokfused._C as _C
except ImportError as error:  # not built, or built for another Python or torch
    _missing = f"grokfused._C cannot be imported ({error})"
    if _build_error:
        _missing += f"; its build failed:\n{_build_error}"
    elif Path(__file__).parents[2].joinpath("setup.py").exists():
        _missing += "; this is the source folder: start Python elsewhere to import the installed package"


def build_info() -> dict[str, Any] | None:
    """Returns how ``_C`` was built (version, torch target, compilers, flags), or None without it.

    ``cuda_error`` says why it has no CUDA kernels where they were to be built, and is None otherwise.
    """
    if _missing:
        return None
    facts = dict(_C.build_info())
    return {**facts, "cuda_error": None if facts["cuda_architectures"] else _build_error}


def why_not(kind: Any) -> str | None:
    """Says why this backend cannot run a bucket of this kind (``backends.Kind``), or None."""
    if _missing:
        return _missing
    if kind.device != "cpu" and (reason := _why_no_kernel(kind.device)):
        return reason
    if not kind.dense:
        return (
            "a parameter has gaps in its memory (a strided view), or is negated or conjugated only when read"
        )
    return None


def note(kind: Any) -> str | None:
    """Says what a user should know before the first step on a bucket of this kind, or None."""
    return gpus.note(_architectures()) if kind.device == "cuda" and not _missing else None


def _architectures() -> tuple[str, ...]:
    return tuple(_C.build_info()["cuda_architectures"])


def _why_no_kernel(device: str) -> str | None:
    built = _architectures()
    if device == "cuda" and built:
        return gpus.why_not(built)
    lacks = f"_C was built without a kernel for {device}"
    return f"{lacks}:\n{_build_error}" if device == "cuda" and _build_error else lacks


def new_table(keys: Callable[[Tensor], int]) -> Any:
    """Returns the table of csrc/place.h: what is the same in every walk.

    Args:
        keys: Tensor -> its dispatch keys, by which one that is negated or conjugated when it is read is told.
    """
    sample, number = torch.empty(0, device="cpu"), torch.empty(0, dtype=torch.complex64, device="cpu")
    samples = [sample, torch._neg_view(sample), torch.nn.Parameter(sample)]
    known = [keys(sample), keys(samples[1]), keys(number.conj()) & ~keys(number)]
    rows = [(array.name, array.planes, array.of, array.stays) for array in ARRAYS]
    return _C.Table(_exchange, rows, choose_for, dtensor_class, samples, known)


table = None if _missing else new_table(lambda tensor: torch._C._dispatch_keys(tensor).raw_repr())
