"""What a parameter must be before it is stepped: checked by name, and what is missing or lies otherwise is
made or mended.

A step asks this only of the parameters that its walk could not take as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfused import backends
from grokfused.backends import block8
from grokfused.state.arrays import (
    ARRAYS,
    MOMENTS,
    ROUNDED_DTYPES,
    Array,
    of_elements,
    states_dtype,
    there,
    used,
)
from grokfused.state.blocks import as_numbers, relaid
from grokfused.state.saved_form import check_mask_of, take_mask
from grokfused.state.sharding import is_spread_at_sight, local, sharded_like, unlike
from grokfused.state.storage import (
    OWN_STATES,
    STATE_DTYPES,
    check_grad,
    check_initialized,
    check_memory,
    check_param,
    is_dense,
    is_unresolved,
    lies_like,
    state_like,
    widens,
)
from grokfused.step.grad_filter import STARTS, WINDOW, WINDOW_START, note_start, start_key
from grokfused.step.mask import check_packed, cleared, fitting
from grokfused.step.options import check_choices

Group = Mapping[str, Any]
State = dict[str, Any]
# torch's words, where they fit.
FUSED_META = (
    "`fused=True` requires all the params to be floating point Tensors of supported devices, but it is on "
    "the meta device and has no values; materialise it first"
)
OTHER_WINDOW = (
    ": a window keeps the size that it was made with. To start another one, take a step with another "
    "grad_filter, or delete grad_window and grad_sum from the states"
)
COUNTERS = (torch.float32, torch.float64, torch.int64, torch.int32)


def kind_of(param: Tensor) -> backends.Kind:
    """Returns what a backend must know of a parameter."""
    shard = local(param)
    return backends.kind_on(param.device, param.dtype, is_dense(shard) and not is_unresolved(shard))


def check_place(param: Tensor, grad: Tensor, state: Mapping[str, Any], group: Group, name: object) -> None:
    """Raises an error that names the parameter where it, its gradient or its state cannot be stepped."""
    check_initialized(param, name)
    check_param(param, name)
    check_memory(param, name)
    check_state(param, state, group, name)
    backends.choose(group["backend"], kind_of(param))
    check_grad(param, grad, name)
    if not grad._is_zerotensor():  # torch's promise of zeros, without memory of its own
        check_memory(grad, name, "the gradient of ")


def check_imagined(param: Tensor, grad: Tensor, state: State, group: Group, name: object) -> None:
    """Raises an error that names a parameter on the meta device where a step could not be taken."""
    if group["fused"]:
        raise RuntimeError(f"{name}: {FUSED_META}")
    check_choices(group)
    check_param(param, name)
    check_state(param, state, group, name)
    check_grad(param, grad, name)


def wrong_step(step: object) -> str | None:
    """Says what is wrong with a step count that someone else wrote, or returns None."""
    try:
        count = float("" if isinstance(step, (str, bytes)) else step)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return f"must be a number of steps, got {step!r}"
    if not is_count(count):
        return f"must be a whole number of steps in [0, 2**24], got {count}"
    if isinstance(step, Tensor) and step.dtype not in COUNTERS:
        return f"must be a tensor of float32, float64, int32 or int64, got {step.dtype}"
    return None


def is_count(step: float) -> bool:
    """True for what a float32 counter can have counted; NaN would make every parameter NaN."""
    return 0 <= step <= 2**24 and step % 1 == 0


def check_state(param: Tensor, state: Mapping[str, Any], group: Group, name: object) -> None:
    """Raises RuntimeError where a state that is there does not fit its parameter, or is there in part."""
    arrays = [array for array in there(state) if array.stays or array.is_used(group)]
    in_8_bits = getattr(state.get(MOMENTS[0]), "dtype", None) is block8.DTYPE
    parts = ("step", *MOMENTS, *([block8.BASES] if in_8_bits else []))
    for key in parts if arrays else ():
        if key not in state:
            raise RuntimeError(f"the state of {name} has lost {key!r}: restore it, or clear the state")
    if isinstance(state.get("mask"), Tensor):  # as saved, put in by hand
        check_mask_of(state, param, name)
    elif "mask" in state:
        check_packed(state["mask"], param, name)
    for key in ("step", *STARTS):
        if wrong := wrong_step(state.get(key, 0)):
            which = "step count" if key == "step" else f"note {key!r}"
            raise RuntimeError(f"the {which} of {name} {wrong}")
    if "grad_window" in [array.name for array in arrays] and WINDOW_START not in state:
        raise RuntimeError(
            f"the state of {name} has lost {WINDOW_START!r}, after how many steps its window was begun: "
            "restore it, or delete grad_window"
        )
    for array in arrays:
        value = state[array.name]
        which = f"the state {array.name!r} of {name}"
        if not isinstance(value, Tensor):
            raise RuntimeError(f"{which} must be a tensor, got {type(value).__name__}")
        shape = array.shape(param, group)
        wanted = {"shape": shape, "device": param.device, "layout": param.layout}
        for what, own in wanted.items():
            if own != getattr(value, what):
                is_other_window = what == "shape" and array.planes == WINDOW and value.shape[1:] == shape[1:]
                hint = OTHER_WINDOW if is_other_window else ""
                raise RuntimeError(f"{which} must have {what} {own}, got {getattr(value, what)}{hint}")
        difference = unlike(param, value, planes=array.planes_of(group))
        if difference:
            raise RuntimeError(f"{which} {difference}")
        if array.of in ("real", "bases"):
            own = array.dtype(param, group, value.dtype)
            if value.dtype != own and not (param.dtype in OWN_STATES and widens(value.dtype, own)):
                raise RuntimeError(f"{which} must be {own}, got {value.dtype}")
        elif array.of == "window" and param.dtype not in OWN_STATES:
            if value.dtype not in STATE_DTYPES.values():
                raise RuntimeError(f"{which} must be float32 or bfloat16, got {value.dtype}")
        elif array.like_param:
            if value.dtype not in ROUNDED_DTYPES:
                raise RuntimeError(f"{which} must have 16 bits, it is {value.dtype}")
        elif param.dtype in OWN_STATES:
            if not in_8_bits and not widens(value.dtype, param.dtype):
                raise RuntimeError(f"{which} must be {param.dtype} like the parameter, got {value.dtype}")
        elif value.dtype not in STATE_DTYPES.values() or value.dtype != state[MOMENTS[0]].dtype:
            raise RuntimeError(
                f"the states of {name} must all be float32, all bfloat16 or all of 8 bits, {array.name!r} is "
                f"{value.dtype}"
            )
        check_memory(value, which)


@torch.inference_mode(False)
@torch.no_grad()
def prepare_state(param: Tensor, state: State, group: Group) -> None:
    """Creates the states a parameter lacks, and lays those that lie otherwise as it lies itself.

    Those of a first step in inference mode are ordinary tensors too, which may be written outside of it.
    """
    step = state.get("step")
    if not isinstance(step, Tensor) or step.layout is not torch.strided or is_unresolved(step):
        # On the CPU and of this dtype, whatever default someone has set.
        state["step"] = torch.tensor(float(state.get("step", 0)), dtype=torch.float32, device="cpu")
    if param.dtype in OWN_STATES and block8.BASES in state:  # a module that has become float64
        numbers = as_numbers(state, param)
        state.clear()
        state.update(numbers)
    dtype = states_dtype(param, state, group)
    needed = used(param, group, dtype)
    drop_what_is_over(state, param, needed)
    relaid(state, param, group["seed"])
    for array in needed:
        own, planes = array.dtype(param, group, dtype), array.planes_of(group)
        if array.name in state:
            keeps = array.of == "window" and param.dtype not in OWN_STATES
            kept = state[array.name].dtype if keeps else own
            state[array.name] = _lying_like(param, state[array.name].to(kept), planes)
        else:
            state[array.name] = state_like(param, own, planes=planes)
            if array.option == ("grad_filter", group["grad_filter"]) and (key := start_key(group)):
                note_start(state, key)
    take_mask(state, param)
    if "mask" in state:
        arrays = of_elements({array.name: state[array.name] for array in needed})
        state["mask"] = cleared(fitting(state["mask"], param), arrays)


def drop_what_is_over(state: State, param: Tensor, needed: Sequence[Array]) -> None:
    """Takes away what a step without it makes wrong, and what is left of a part of that."""
    for array in (array for array in ARRAYS if not array.stays):
        together = [other for other in ARRAYS if other.option == array.option and not other.stays]
        # What was cut off from a value says nothing of those that other roundings put in its place.
        is_other = array.like_param and state.get(array.name, param).dtype != param.dtype
        if is_other or any(other not in needed or other.name not in state for other in together):
            for other in together:
                state.pop(other.name, None)
    if "grad_window" not in state:
        state.pop(WINDOW_START, None)


def _lying_like(param: Tensor, value: Tensor, planes: int) -> Tensor:
    own, shard = local(param), local(value)
    if (is_dense(own) and not lies_like(own, shard, planes)) or is_unresolved(shard):
        return state_like(param, value.dtype, value, planes)
    return value if is_spread_at_sight(param, value, planes) else sharded_like(param, shard, planes)


def place_counter(param: Tensor, state: State, device_numbers: bool, numbering: Sequence[str]) -> None:
    """Moves the step counter to the device that shall number the steps: the parameter's, or the host.

    Args:
        param: The parameter.
        state: Its state.
        device_numbers: Whether the device shall, where it can.
        numbering: The types of the devices that can.
    """
    step = state["step"]
    if param.device.type in numbering and (device_numbers or step.device.type != "cpu"):
        state["step"] = step.to(param.device, torch.float32)  # itself, where it is that already
    elif step.device.type != "cpu":
        state["step"] = step.cpu()


def imagine_step(param: Tensor, grad: Tensor, group: Group, state: State) -> None:
    """Does to a parameter without values what a step does beside the arithmetic: makes states, and counts.

    No tensor is asked for a number: under FakeTensorMode none has one.
    """
    check_choices(group)
    check_param(param, "a parameter")
    check_grad(param, grad, "a parameter")
    prepare_state(param, state, group)
    state["step"] += 1
