"""The Triton backend: a mirror of csrc/step, room by room, and one kernel for a whole bucket.

Installed as ``grokfused.triton_kernels``; it imports torch and triton only.
"""

from __future__ import annotations

from typing import Any

_missing: str | None = None
try:
    from .launcher import INTERPRETED, adamw_step_
except ImportError as error:  # triton is an extra
    _missing = f"triton cannot be imported ({error}); pip install 'grokfused[triton]'"

__all__ = ["adamw_step_", "why_not"]


def why_not(kind: Any) -> str | None:
    """Says why this backend cannot run a bucket of this kind (``backends.Kind``), or None."""
    if _missing:
        return _missing
    if kind.device == "cpu" and not INTERPRETED:
        return "Triton has no CPU of its own (TRITON_INTERPRET=1 turns its slow interpreter on)"
    if str(kind.dtype) in ("torch.float64", "torch.complex128"):
        return f"its kernels compute in float32, and there is a {kind.dtype} parameter"
    if not kind.dense:
        return (
            "a parameter has gaps in its memory (a strided view), or is negated or conjugated only when read"
        )
    return None
