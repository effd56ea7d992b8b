"""The native backend: loads ``_C``, whose walk finds and steps parameters (csrc/walk.h).

Relied on beside torch's public interface: ``Tensor.__dlpack_c_exchange_api__``, the table of functions by
which native code reads a tensor without asking Python (DLPack 1.3; torch 2.11 or newer). Without it there is
no native backend. And ``Tensor._cdata`` and ``torch._C._dispatch_keys``, from which native code learns where
a tensor says that it is negated or conjugated when it is read; where it cannot learn it, it asks the tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grokfused.backends import choose_for
from grokfused.state.arrays import ARRAYS
from grokfused.state.sharding import dtensor_class

_exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
_missing: str | None = None if _exchange else "this torch cannot exchange tensors: it must be 2.11 or newer"
try:
    import grokfused._C as _C
except ImportError as error:  # not built, or built for another Python or torch
    _missing = f"grokfused._C cannot be imported ({error})"
    _build_error = Path(__file__).parents[1].joinpath("_build_error.txt")
    if _build_error.exists():
        _missing += f"; its build failed:\n{_build_error.read_text().strip()}"
    elif Path(__file__).parents[2].joinpath("setup.py").exists():
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
        return (
            "a parameter has gaps in its memory (a strided view), or is negated or conjugated only when read"
        )
    return None


@lru_cache(maxsize=1)
def _devices() -> tuple[str, ...]:
    return ("cpu", "cuda") if _C.build_info()["cuda_architectures"] else ("cpu",)


def new_table(keys: Callable[[Tensor], int]) -> Any:
    """Returns the table of csrc/place.h: what is the same in every walk.

    Args:
        keys: Tensor -> its dispatch keys, by which one that is negated or conjugated when it is read is told.
    """
    sample, number = torch.empty(0, device="cpu"), torch.empty(0, dtype=torch.complex64, device="cpu")
    samples = [sample, torch._neg_view(sample), torch.nn.Parameter(sample)]
    known = [keys(sample), keys(samples[1]), keys(number.conj()) & ~keys(number)]
    rows = [(array.name, array.like_param, array.planes) for array in ARRAYS]
    return _C.Table(_exchange, rows, choose_for, dtensor_class, samples, known)


table = None if _missing else new_table(lambda tensor: torch._C._dispatch_keys(tensor).raw_repr())
