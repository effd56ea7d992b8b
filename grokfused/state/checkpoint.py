"""What is loaded: states keep dtype and memory order, and a state dict of another model is refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfused.backends import block8
from grokfused.state.arrays import MOMENTS, NAMES, ROUNDED_DTYPES, Array, of_elements, there
from grokfused.state.blocks import in_8_bits
from grokfused.state.for_torch import ADAM_OPTIONS
from grokfused.state.prepare import wrong_step
from grokfused.state.saved_form import (
    MASK,
    MASKS,
    check_mask_of,
    masks_of,
    take_mask,
    there_in,
)
from grokfused.state.sharding import unlike
from grokfused.state.storage import (
    OWN_STATES,
    PARAM_DTYPES,
    STATE_DTYPES,
    state_dtype_for,
    state_like,
    widens,
)
from grokfused.step.clipping import max_norm_of
from grokfused.step.grad_filter import STARTS, WINDOW, WINDOW_START, is_pending
from grokfused.step.mask import NO_PLACE, zero_left_out
from grokfused.step.options import check_options

TO_RESHARD = (
    "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict spreads what get_optimizer_state_dict "
    "has returned; docs/distributed.md has it for a run that one process began"
)
GIVE = "give what an optimizer's state_dict() has returned"


def check_parts(state_dict: object) -> None:
    """Raises ValueError where a state dict is none, or lacks a part."""
    parts = {"state": Mapping, "param_groups": Sequence}
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"a state dict must be a dict, got {type(state_dict).__name__}: {GIVE}")
    for part, kind in parts.items():
        if not isinstance(state_dict.get(part), kind):
            found = _kind(state_dict, part)
            raise ValueError(
                f"a state dict must have a {kind.__name__.lower()} {part!r}, got {found}: {GIVE}"
            )


def _kind(found: Mapping[str, Any], name: str) -> str:
    return type(found[name]).__name__ if name in found else "none"


def _check_members(saved_group: object, name: str) -> None:
    if not isinstance(saved_group, dict):
        raise ValueError(f"{name} must be a dict of options and 'params', got {type(saved_group).__name__}")
    for part, of in {"params": (int, str), "param_names": (str,)}.items():
        members = saved_group.get(part, () if part == "param_names" else None)
        if not isinstance(members, (list, tuple)):
            raise ValueError(f"{name}[{part!r}] must be a list, got {_kind(saved_group, part)}: {GIVE}")
        for member in members:
            if not isinstance(member, of):
                kinds = " or ".join(kind.__name__ for kind in of)
                raise ValueError(f"{name}[{part!r}] must hold {kinds}, got {type(member).__name__}: {GIVE}")


def _check_keys(saved_groups: Sequence[Mapping[str, Any]], states: Mapping[Any, object]) -> None:
    keys = {key for saved_group in saved_groups for key in saved_group["params"]}
    # What is called otherwise than parameters are is another's: it is kept.
    kinds = (int, *map(type, keys))
    nobodys = [key for key in states if isinstance(key, kinds) and key not in keys]
    if nobodys:
        raise ValueError(f"the states {nobodys} belong to no parameter of the state dict's groups: {GIVE}")
    for key in keys & states.keys():
        if not isinstance(states[key], dict):
            found = type(states[key]).__name__
            why = "leave the key out where there is no state"
            raise ValueError(f"state[{key!r}] must be a dict of states, got {found}: {why}")


def _check_numbers(groups: Sequence[Mapping[str, Any]], saved_groups: Sequence[Mapping[str, Any]]) -> None:
    """A parameter that is listed twice has one number, and a number is that of one parameter."""
    keys = [key for saved_group in saved_groups for key in saved_group["params"]]
    params = [param for group in groups for param in group["params"]]
    owner = dict(zip(keys, params, strict=True))
    shared = {key for key, param in zip(keys, params, strict=True) if owner[key] is not param}
    if shared:
        raise ValueError(
            f"the groups of the state dict name the parameters {sorted(shared, key=str)} more than once, and "
            f"this optimizer has several in their places: {GIVE}"
        )


def _check_group(saved_group: Mapping[str, Any], options: dict[str, Any], name: str) -> None:
    lost = [option for option in ADAM_OPTIONS if option not in saved_group]
    if lost:
        raise ValueError(f"{name} lacks {lost}: it is not a group of an Adam or AdamW")
    try:
        check_options(options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: {error}") from error


def _check_masks(saved_group: Mapping[str, Any], states: Mapping[Any, Mapping[str, Any]], name: str) -> None:
    count, wanted = masks_of(saved_group, states), saved_group.get(MASKS)
    if wanted is None:  # not counted
        return
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        found = type(wanted).__name__
        raise ValueError(f"{name}[{MASKS!r}] must be the number of masks in it, got {found}: {GIVE}")
    if count < wanted:
        raise ValueError(f"{name} was saved with {wanted} masks, of which {count} arrived: {NO_PLACE}")
    if count > wanted:
        warnings.warn(
            f"{name} was saved with {wanted} masks, and {count} came: with full_state_dict, "
            "torch.distributed.checkpoint keeps those that the loading optimizer has (remove_mask before "
            "loading takes them away); or they were set under a ZeroRedundancyOptimizer after loading",
            stacklevel=5,
        )


def saved_states(
    groups: list[dict[str, Any]], state_dict: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[tuple[Tensor, Mapping[str, Any], Mapping[str, Any]]]:
    """Returns (parameter, options that its group will have, its saved state), of those that have one.

    Args:
        groups: The optimizer's parameter groups.
        state_dict: What ``load_state_dict`` was given.
        defaults: The options of a saved group that names only some (torch.optim's).

    Raises:
        ValueError: The state dict does not fit: other groups, options out of range, other shapes, missing
            states, or states that would lose bits in the dtype they would get. Nothing was changed.
    """
    check_parts(state_dict)
    saved_groups, states = state_dict["param_groups"], state_dict["state"]
    for number, saved_group in enumerate(saved_groups):
        _check_members(saved_group, f"param_groups[{number}]")
    sizes = [len(group["params"]) for group in groups]
    saved_sizes = [len(group["params"]) for group in saved_groups]
    if sizes != saved_sizes:
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group: it has groups of {saved_sizes} parameters, this optimizer {sizes}"
        )
    _check_numbers(groups, saved_groups)
    _check_keys(saved_groups, states)
    states = {key: there_in(state) if isinstance(state, dict) else state for key, state in states.items()}
    found: list[tuple[Tensor, Mapping[str, Any], Mapping[str, Any]]] = []
    lost = 0  # windows
    every_option = [{**defaults, **saved_group} for saved_group in saved_groups]
    for number, (group, saved_group) in enumerate(zip(groups, saved_groups, strict=True)):
        _check_group(saved_group, every_option[number], f"param_groups[{number}]")
        for key, param in dict(zip(saved_group["params"], group["params"], strict=True)).items():
            if state := states.get(key):
                _check_window(group, every_option[number], state, f"state[{key!r}]")
                lost += saved_group.get("grad_filter") == "mean" and "grad_window" not in state
                _check_state(param, state, every_option[number], f"state[{key!r}]")
                found.append((param, every_option[number], state))
        _check_masks(saved_group, states, f"param_groups[{number}]")
    max_norm_of(every_option)
    if lost:
        warnings.warn(
            f"{lost} states of groups with grad_filter='mean' have no window of gradients: they begin "
            "another one. torch.distributed.checkpoint loads a window only where there is a place for it: "
            "grokfused.dcp.LoadPlanner makes one, and so does a step with grad_filter='mean' before loading",
            stacklevel=4,
        )
    return found


def _check_window(
    group: Mapping[str, Any], options: Mapping[str, Any], state: Mapping[str, Any], name: str
) -> None:
    """Raises ValueError where a window comes into an optimizer that was made for another one, or in part."""
    parts = [key for key in ("grad_window", "grad_sum", WINDOW_START) if key in state]
    if 0 < len(parts) < 3:
        raise ValueError(f"{name} has of its window only {parts}: restore the rest, or leave these out")
    wanted, got = group["window_size"], options["window_size"]
    if "grad_window" in state and group["grad_filter"] == options["grad_filter"] == "mean" and wanted != got:
        raise ValueError(
            f"{name} has a window of {got} gradients, and this optimizer was made with window_size={wanted}: "
            f"make it with window_size={got}; or leave {parts} out of the state dict, and write the other "
            "window_size into its group: another window is then begun"
        )


def _check_state(param: Tensor, state: Mapping[str, Any], options: Mapping[str, Any], name: str) -> None:
    for key, value in state.items():
        if isinstance(value, Tensor) and value.is_meta and not param.is_meta:
            raise ValueError(f"{name}[{key!r}] is on the meta device and has no values: load them first")
    if MASK & set(state):
        try:
            check_mask_of(state, param, f"{name}'s parameter", any_device=True)
        except TypeError as error:
            raise ValueError(str(error)) from error
    missing = {"step", *MOMENTS} - set(state)
    if missing:
        why = NO_PLACE if "mask" in state else "it is not the state of an Adam or AdamW"
        raise ValueError(f"{name} lacks {sorted(missing)}: {why}")
    for key in ("step", *STARTS):
        if wrong := wrong_step(state.get(key, 0)):
            raise ValueError(f"{name}[{key!r}] {wrong}")
    for array in there(state):
        _check_array(param, state[array.name], array, options, f"{name}[{array.name!r}]")


def _check_array(param: Tensor, value: object, array: Array, options: Mapping[str, Any], name: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor of its parameter's shape, got {type(value).__name__}")
    if block8.DTYPE is value.dtype or array.name == block8.BASES:
        raise ValueError(f"{name} is a part of a live state of 8 bits: {GIVE}, where it is bfloat16")
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise ValueError(f"{name} must be a dense tensor, got {kind}: make it dense")
    if value.shape != (wanted := array.shape(param, options)):
        about = f" in a window of {options['window_size']}" if array.planes == WINDOW else ""
        raise ValueError(
            f"{name} has shape {list(value.shape)}, its parameter {list(param.shape)}{about} would have "
            f"{list(wanted)}: the state dict belongs to another model"
        )
    dtype = _dtype(array, param, value, options)
    difference = unlike(param, value, planes=array.planes_of(options))
    if difference:
        raise ValueError(f"{name} {difference}: {TO_RESHARD}")
    if array.like_param:  # Kahan's rest: of a rounded parameter, which may be of another dtype by now
        if value.dtype not in ROUNDED_DTYPES:
            raise ValueError(f"{name} must be bfloat16 or float16, got {value.dtype}: convert it first")
    elif value.dtype not in PARAM_DTYPES or value.is_complex() != dtype.is_complex:
        raise ValueError(f"{name} must be {dtype}, got {value.dtype}: convert the saved state first")
    elif dtype is block8.DTYPE or (value.dtype in OWN_STATES and dtype is not torch.bfloat16):
        pass  # as in torch, where states get the dtype of their parameter
    elif not widens(value.dtype, dtype):
        larger = f"make the optimizer with state_dtype={value.dtype}, or "
        raise ValueError(
            f"{name} is {value.dtype} and would lose bits as {dtype}: "
            f"{larger if value.dtype in STATE_DTYPES.values() else ''}convert the saved state first"
        )


def _dtype(array: Array, param: Tensor, value: Tensor, options: Mapping[str, Any]) -> torch.dtype:
    """Returns the dtype that a loaded array shall have; windows of one group may differ, and keep theirs."""
    if array.of == "window" and param.dtype not in OWN_STATES and value.dtype in STATE_DTYPES.values():
        return value.dtype
    return array.dtype(param, options, state_dtype_for(param, options["state_dtype"]))


@torch.no_grad()
def owned_state(param: Tensor, options: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state like the parameter's, ours with memory of its own: torch's loader would cast and share.

    What others have put there comes along, its tensors on the device of the parameter.
    """
    own = {"step", *STARTS, *MASK, *NAMES}
    in_bits = []  # the names of those to be stored in 8, once a mask has made its zeros
    state = {key: value if key in own else _moved(value, param.device) for key, value in saved.items()}
    for array in there(saved):
        if array.like_param and saved[array.name].dtype != param.dtype:
            del state[array.name]  # as in a step: what one rounding cut off says nothing of another's values
        else:
            kind = _dtype(array, param, saved[array.name], options)
            if kind is block8.DTYPE:
                kind = torch.float32
                in_bits.append(array.name)
            state[array.name] = state_like(param, kind, saved[array.name], array.planes_of(options))
    kept = take_mask(state, param)
    if kept is not None:
        zero_left_out(kept, of_elements(state))
    for key in STARTS:
        if key in state:  # but that of a window, of an older version
            start = float(state.pop(key))
            state |= {key: start} if key == WINDOW_START or is_pending({**state, key: start}, key) else {}
    state["step"] = torch.tensor(float(state["step"]), dtype=torch.float32, device="cpu")
    if in_bits:
        numbers = {name: state[name] for name in in_bits}
        state |= in_8_bits(numbers, param, options["seed"], float(state["step"]))
    return state


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) is dict:
        return {key: _moved(each, device) for key, each in value.items()}
    return type(value)(_moved(each, device) for each in value) if type(value) in (list, tuple) else value
