"""What lies in memory: which parameters and gradients can be stepped, and the states made for them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from grokfused.backends import block8
from grokfused.state.sharding import ONE_PER_BLOCK, gathered_grad, is_partial, local, sharded_like, unlike

PARAM_DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
SHOWN_DTYPES = ", ".join(str(dtype).removeprefix("torch.") for dtype in PARAM_DTYPES)
# Of parameters whose states have their dtype, whatever the option says.
OWN_STATES = (torch.float64, torch.complex64, torch.complex128)
STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "block8": block8.DTYPE}
PARAM_ROUNDINGS = ("nearest", "stochastic", "kahan")


def dtype_name(option: str, dtype: object) -> str:
    """Returns "float32" or "bfloat16" for a torch.dtype or its name, "block8" too for states.

    Raises:
        ValueError: It is another one.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in STATE_DTYPES or (option != "state_dtype" and name == "block8"):
        more = ', or "block8"' if option == "state_dtype" else ""
        raise ValueError(f"{option} must be torch.float32 or torch.bfloat16{more}, got {dtype!r}")
    return name


def state_dtype_for(param: Tensor, name: object, option: str = "state_dtype") -> torch.dtype:
    """Returns the dtype of a parameter's states: its own where it is wide or complex, else the option's."""
    return param.dtype if param.dtype in OWN_STATES else STATE_DTYPES[dtype_name(option, name)]


def widens(state: torch.dtype, own: torch.dtype) -> bool:
    """True where states of one dtype are the same numbers in another."""
    return torch.promote_types(state, own) is own and state.is_complex == own.is_complex


def is_unresolved(tensor: Tensor) -> bool:
    """True for a tensor that is negated or conjugated only when it is read."""
    return tensor.is_neg() or tensor.is_conj()


def _significant_dims(tensor: Tensor) -> list[tuple[int, int]]:
    """Returns (stride, size) of the dimensions that move through memory, innermost first."""
    dims = zip(tensor.stride(), tensor.shape, strict=True)
    return sorted((stride, size) for stride, size in dims if size != 1)


def overlaps_itself(tensor: Tensor) -> bool:
    """True when two elements may share memory, as in an expanded tensor."""
    reach = 1  # elements from the first one to the end of the dimensions seen so far
    for stride, size in _significant_dims(tensor) if tensor.numel() else ():
        if stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def is_dense(tensor: Tensor) -> bool:
    """True when the elements fill one stretch of memory, each once, in any order of dimensions."""
    expected = 1
    for stride, size in _significant_dims(tensor) if tensor.numel() else ():
        if stride != expected:
            return False
        expected *= size
    return True


def check_param(param: object, name: object) -> None:
    """Raises TypeError or ValueError, naming the parameter, where no step could be taken."""
    if not isinstance(param, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(param).__name__}")
    if param.dtype not in PARAM_DTYPES:
        raise TypeError(f"{name} must be one of {SHOWN_DTYPES}, got {param.dtype}")
    if param.is_conj():
        raise ValueError(f"{name} is conjugated only when read: optimise what resolve_conj() returns")
    if param.layout is not torch.strided or param.is_nested:
        kind = "a nested tensor" if param.is_nested else f"layout {param.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}")
    if is_partial(param):
        raise ValueError(f"{name} is a DTensor that is still to be summed (Partial): redistribute it first")
    if overlaps_itself(local(param)):
        raise ValueError(
            f"{name} overlaps itself in memory (shape {list(param.shape)}, strides "
            f"{list(param.stride())}): optimise the tensor it was expanded from"
        )


def check_initialized(param: Tensor, name: object) -> None:
    """Raises ValueError for a parameter of a lazy module, which an optimizer may own but not step."""
    if is_lazy(param):
        raise ValueError(f"{name} has no values: run its lazy module once first")


def check_has_values(param: Tensor, name: object) -> None:
    """Raises ValueError for a parameter that may be owned but not stepped: lazy, or on the meta device."""
    check_initialized(param, name)
    if param.device.type == "meta":
        raise ValueError(f"{name} is on the meta device and has no values to update; materialise it first")


def check_grad(param: Tensor, grad: Tensor, name: object) -> None:
    """Raises RuntimeError where a gradient is sparse, or has another shape, dtype, device or mesh."""
    if grad.layout is not torch.strided:
        raise RuntimeError(
            f"the gradient of {name} is {grad.layout}: GrokAdam and GrokAdamW do not support sparse "
            "gradients; make it dense (nn.Embedding(sparse=False)), or use torch.optim.SparseAdam"
        )
    for what in ("shape", "dtype", "device"):
        own, other = getattr(param, what), getattr(grad, what)
        if own != other:
            raise RuntimeError(f"the gradient of {name} must have {what} {own}, got {other}")
    difference = unlike(param, grad, any_placements=True)
    if difference:
        raise RuntimeError(f"the gradient of {name} {difference}")


def address(tensor: Tensor) -> int:
    """Returns where a tensor lies in memory; 0 for a fake one, which lies nowhere."""
    return 0 if hasattr(tensor, "fake_mode") else tensor.data_ptr()


def check_memory(tensor: Tensor, name: object, which: str = "") -> None:
    """Raises RuntimeError for a tensor of which this process holds no elements to read."""
    shard = local(tensor)
    try:
        there = shard.numel() == 0 or shard.is_meta or address(shard) != 0
    except RuntimeError:  # one that wraps something else
        there = False
    if not there:
        raise RuntimeError(
            f"{which}{name} has no memory: its storage was freed, or it only stands for other tensors"
        )


def fitting_grad(param: Tensor, grad: Tensor) -> Tensor:
    """Returns a checked gradient, its shard where it is sharded, in the parameter's memory order.

    It is copied only if it lies otherwise, and moved between processes only if it is spread otherwise.
    """
    grad, param = gathered_grad(param, grad), local(param)
    if grad._is_zerotensor():
        return torch.zeros_like(param)
    # As after p.grad = p.data: the step would write what it has yet to read.
    is_written = grad.untyped_storage().data_ptr() == param.untyped_storage().data_ptr()
    if not (is_written or is_unresolved(grad)) and (same_order(param, grad) or not is_dense(param)):
        return grad
    return torch.empty_like(param).copy_(grad)


def lies_like(param: Tensor, state: Tensor, planes: int) -> bool:
    """True when a state, or each plane of it, lies as its parameter does; each plane after the last.

    One value per block, in place of planes: when it fills its memory in order.
    """
    if planes == ONE_PER_BLOCK:
        return state.is_contiguous()
    if planes == 1:
        return same_order(param, state)
    return same_order(param, state[0]) and (state.stride(0) == param.numel() or not param.numel())


def same_order(a: Tensor, b: Tensor) -> bool:
    """True when two tensors of one shape lie in memory in the same order."""
    dims = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(size == 1 or x == y for size, x, y in dims)


def state_like(param: Tensor, dtype: torch.dtype, value: Tensor | None = None, planes: int = 1) -> Tensor:
    """Returns a state of the parameter's shape, device and memory order: zeros, or a copy of value.

    With more than one plane it is so many of them, one after the other.
    """
    shard = local(param)
    if planes == ONE_PER_BLOCK:
        blocks = block8.count_of(shard.numel())
        made = torch.zeros(blocks, dtype=dtype, device=shard.device) if value is None else value
        return made.to(shard.device, dtype, copy=value is not None).contiguous()
    state = torch.zeros_like(shard, dtype=dtype, memory_format=torch.preserve_format)
    if planes > 1:
        stride = (shard.numel(), *state.stride())
        state = torch.empty_strided((planes, *shard.shape), stride, dtype=dtype, device=shard.device).zero_()
    return sharded_like(param, state if value is None else state.copy_(local(value)), planes)
