"""Sorts parameters into buckets that one call of one backend updates, and takes their step."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused import backends
from grokfused.device_scalars import DeviceScalars
from grokfused.grad_filter import FILTERS, first_ema_step, note_start
from grokfused.grad_scale import GradScale
from grokfused.mask import MODES, PrunedStates, check_packed, fitting
from grokfused.reference import Scalars
from grokfused.scalars import scalar_table, step_scalars
from grokfused.sharding import is_sharded, local, shards, unlike
from grokfused.storage import (
    ROUNDED_DTYPES,
    STATE_DTYPES,
    is_dense,
    param_rounding_of,
    same_order,
    state_like,
)

Group = Mapping[str, Any]
State = dict[str, Any]
# Where a step may be numbered by the device; elsewhere the host waits for what it has to know.
NUMBERING_DEVICES = ("cuda",)
# Options that decide where a parameter goes, not what happens to it.
NOT_FOR_THE_OP = ("device", "param_dtype", "state_dtype", "backend", "numbers_on_device", "sharded")
STATE_ARRAYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "grad_ema", "kahan_comp")


class Options(NamedTuple):
    """What the parameters of a bucket have in common; all else may differ between them."""

    device: torch.device
    param_dtype: torch.dtype
    state_dtype: torch.dtype
    backend: str
    grad_filter: str
    decay: str
    amsgrad: bool
    state_rounding: str
    param_rounding: str
    seed: int
    numbers_on_device: bool
    sharded: bool


def _used_arrays(grad_filter: str, amsgrad: bool, param_rounding: str) -> tuple[str, ...]:
    largest = ("max_exp_avg_sq",) if amsgrad else ()
    comp = ("kahan_comp",) if param_rounding == "kahan" else ()
    return ("exp_avg", "exp_avg_sq", *largest, *FILTERS[grad_filter], *comp)


def prepare_state(param: Tensor, state: State, group: Group) -> None:
    """Creates the states a parameter lacks, and brings those of another memory order into its own."""
    # Whatever default dtype or device someone has set.
    state.setdefault("step", torch.zeros((), dtype=torch.float32, device="cpu"))
    if "mask" in state:
        state["mask"] = fitting(state["mask"], param)
    dtype = STATE_DTYPES[group["state_dtype"]]
    if "exp_avg" in state:
        dtype = state["exp_avg"].dtype
    used = _used_arrays(group["grad_filter"], group["amsgrad"], param_rounding_of(param, group))
    if "kahan_comp" not in used or state.get("kahan_comp", param).dtype != param.dtype:
        # What was cut off from a value says nothing of those that other roundings put in its place.
        state.pop("kahan_comp", None)
    for name in used:
        if name not in state:
            state[name] = state_like(param, param.dtype if name == "kahan_comp" else dtype)
            if name == "grad_ema":
                note_start(state)
        elif is_dense(local(param)) and not same_order(local(param), local(state[name])):
            state[name] = state_like(param, state[name].dtype, state[name])


def kind_of(param: Tensor) -> backends.Kind:
    """Returns what a backend must know of a parameter."""
    shard = local(param)
    return backends.Kind(param.device.type, is_dense(shard) and not shard.is_neg())


def wrong_step(step: object) -> str | None:
    """Says what is wrong with a step count that someone else wrote, or returns None."""
    try:
        count = float("" if isinstance(step, (str, bytes)) else step)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return f"must be a number of steps, got {step!r}"
    if not is_count(count):
        return f"must be a whole number of steps in [0, 2**24], got {count}"
    return None


def is_count(step: float) -> bool:
    """True for what a float32 counter can have counted; NaN would make every parameter NaN."""
    return 0 <= step <= 2**24 and step % 1 == 0


def check_state(param: Tensor, state: Mapping[str, Any], name: str) -> None:
    """Raises RuntimeError where a state that is there does not fit its parameter, or is there in part."""
    if any(key in state for key in STATE_ARRAYS):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if key not in state:
                raise RuntimeError(f"the state of {name} has lost {key!r}: restore it, or clear the state")
    if "mask" in state:
        check_packed(state["mask"], param, name)
    wrong = wrong_step(state.get("step", 0))
    if wrong:
        raise RuntimeError(f"the step count of {name} {wrong}")
    for key in (key for key in STATE_ARRAYS if key in state):
        value = state[key]
        if not isinstance(value, Tensor):
            raise RuntimeError(f"the state {key!r} of {name} must be a tensor, got {type(value).__name__}")
        for what in ("shape", "device", "layout"):
            own, other = getattr(param, what), getattr(value, what)
            if own != other:
                raise RuntimeError(f"the state {key!r} of {name} must have {what} {own}, got {other}")
        difference = unlike(param, value)
        if difference:
            raise RuntimeError(f"the state {key!r} of {name} {difference}")
        if key == "kahan_comp":
            if value.dtype not in ROUNDED_DTYPES:
                raise RuntimeError(f"the state {key!r} of {name} must have 16 bits, it is {value.dtype}")
        elif value.dtype not in STATE_DTYPES.values() or value.dtype != state["exp_avg"].dtype:
            raise RuntimeError(
                f"the states of {name} must all be float32 or all bfloat16, {key!r} is {value.dtype}"
            )


def options_of(param: Tensor, state: State, group: Group, decay: str, scaled: bool) -> Options:
    """Returns which bucket a prepared parameter belongs to."""
    device_decides = bool(group["capturable"]) or scaled
    return Options(
        device=param.device,
        param_dtype=param.dtype,
        state_dtype=state["exp_avg"].dtype,
        backend=backends.choose(group["backend"], kind_of(param)),
        grad_filter=group["grad_filter"],
        # Without decay the two are one; decoupled it is p * 1, which keeps even an infinite p.
        decay=decay if group["weight_decay"] else "decoupled",
        amsgrad=group["amsgrad"],
        state_rounding=group["state_rounding"],
        param_rounding=param_rounding_of(param, group),
        seed=group["seed"],
        numbers_on_device=device_decides and param.device.type in NUMBERING_DEVICES,
        sharded=is_sharded(param),
    )


class Bucket:
    """Parameters of equal options, with their states and groups, in one order."""

    def __init__(self, options: Options) -> None:
        self.adamw_step_ = backends.stepper(options.backend)
        self.keywords = options._asdict()
        for not_for_the_op in NOT_FOR_THE_OP:
            del self.keywords[not_for_the_op]
        self.device = options.device if options.numbers_on_device else torch.device("cpu")
        self.numbers_on_device = options.numbers_on_device
        used = _used_arrays(options.grad_filter, options.amsgrad, options.param_rounding)
        self.names = [name if name in used else None for name in STATE_ARRAYS]
        self.indices: list[int] = []
        self.owned: list[Tensor] = []  # the parameters as the user holds them
        self.sharded = options.sharded
        self.states: list[State] = []
        self.groups: list[Group] = []  # the distinct ones
        self.group_numbers: list[int] = []  # parameter -> its group among them
        self.ema_starts: list[float] = []  # parameter -> the step its slow gradient starts in
        self.distances: list[float] = []  # parameter -> its step count less that of the first one

    def add(self, index: int, param: Tensor, state: State, group: Group) -> None:
        """Appends a parameter; ``index`` is the place of its gradient among all gradients."""
        self.indices.append(index)
        self.owned.append(param)
        self.states.append(state)
        if not any(group is known for known in self.groups):
            self.groups.append(group)
        self.group_numbers.append(next(n for n, g in enumerate(self.groups) if g is group))
        self.ema_starts.append(first_ema_step(group, state))

    def close(self) -> None:
        """Moves the step counters into one tensor; ``state["step"]`` of each parameter is a view of it.

        One tensor is read, passed and advanced at once; hundreds of them would cost more than the
        arithmetic of a small model.
        """
        counts = [float(state["step"]) for state in self.states]
        self.steps = torch.tensor(counts, dtype=torch.float32, device=self.device)
        self._collect_masks()
        self.step_views = list(self.steps.unbind())
        for state, view in zip(self.states, self.step_views, strict=True):
            state["step"] = view
        self.members = (self.states, self.step_views, self.packed, self.masks)
        if self.numbers_on_device:
            self.rows = list(range(len(self.states)))
            self.device_scalars = DeviceScalars(self.groups, self.group_numbers, self.ema_starts, self.device)

    def _collect_masks(self) -> None:
        """Lists the packed masks for the op: none, or one per parameter, of no words where it has none."""
        self.packed = [state.get("mask") for state in self.states]
        self.pruned = PrunedStates(self.packed)
        self.masks: list[Tensor] = []
        self.keywords["mask_modes"] = []
        if any(self.packed):
            none = torch.empty(0, dtype=torch.int32, device=self.owned[0].device)
            self.masks = [mask.words if mask else none for mask in self.packed]
            self.keywords["mask_modes"] = [MODES.index(mask.mode) if mask else 0 for mask in self.packed]

    def owns(self) -> bool:
        """True while no one has put another object in the place of a step counter or a mask."""
        steps = [state.get("step") for state in self.states]
        packed = [state.get("mask") for state in self.states]
        return all(map(operator.is_, [*steps, *packed], [*self.step_views, *self.packed]))

    def scalars(self) -> list[Scalars] | Tensor:
        """Returns the rows of scalars of this step, one per group and step count there is.

        Where the device numbers the steps, it is the table of them, on the device.
        """
        if self.numbers_on_device:
            return self.device_scalars.table(self.steps)
        count = self.adamw_step_.count(self.steps)
        if count is None or not is_count(count):
            count = self._count()
        return [
            step_scalars(self.groups[number], count + 1.0 + distance, start)
            for number, start, distance in self.row_keys
        ]

    def _count(self) -> float:
        """Reads all step counters, which someone may have written, and returns the first one."""
        steps = self.steps.tolist()
        distances = [step - steps[0] for step in steps]
        if distances != self.distances or not is_count(steps[0]):
            for state in self.states:
                wrong = wrong_step(state["step"])
                if wrong:
                    raise RuntimeError(f"the step count of a parameter {wrong}")
            keys = list(zip(self.group_numbers, self.ema_starts, distances, strict=True))
            self.row_keys = list(dict.fromkeys(keys))
            self.rows = [self.row_keys.index(key) for key in keys]
            self.distances = distances
        first: float = steps[0]
        return first

    def grads(self, every: list[Tensor]) -> list[Tensor]:
        """Returns the gradients of the bucket, of all that there are."""
        if len(every) == len(self.indices):
            return every
        return [every[index] for index in self.indices]

    def knows(self, params: list[Tensor], grads: list[Tensor]) -> bool:
        """Says whether the next step can be the last one again, with other gradients of the same kind."""
        known: bool = self.adamw_step_.knows(params, grads, self.members)
        return known

    def _state_arrays(self) -> list[list[Tensor]]:
        """Returns the arrays of the states for the backend: of DTensors, this process's shards."""
        used = [[state[name] for state in self.states] if name else [] for name in self.names]
        return [*map(shards, used)] if self.sharded else used

    def step_(
        self, params: list[Tensor], grads: list[Tensor], scalars: list[Scalars] | Tensor, scale: GradScale
    ) -> None:
        """Updates the bucket in place.

        Args:
            params: The parameters.
            grads: Of DTensors, this process's shards.
            scalars: What ``scalars()`` has returned.
            scale: What multiplies the gradients, and may cancel the step.
        """
        there = {name: number.to(self.device, torch.float32).reshape(()) for name, number in scale.items()}
        repeats = self.adamw_step_.repeats
        states = [] if repeats and not self.pruned.masks else self._state_arrays()
        self.pruned.clear(states)
        if repeats:
            self.adamw_step_.repeat(params, self.steps, scalars, self.rows, **there)
        else:
            arrays = [shards(params) if self.sharded else params, grads, *states, self.masks]
            table = scalars if isinstance(scalars, Tensor) else scalar_table(scalars)
            self.adamw_step_(*arrays, self.steps, table, self.rows, **self.keywords, **there)
            self.adamw_step_.remember(
                arrays, params, self.members, self.names, sharded=self.sharded, **self.keywords
            )
        if self.sharded:  # a step notes its change of one of the two, autograd looks at either
            torch.autograd.graph.increment_version(shards(params) if repeats else params)
        self.pruned.remember(states)


def into_buckets(members: Iterable[tuple[Tensor, State, Group]], decay: str, scaled: bool) -> list[Bucket]:
    """Sorts prepared parameters into as few buckets as their options allow."""
    buckets: dict[Options, Bucket] = {}
    for index, (param, state, group) in enumerate(members):
        options = options_of(param, state, group, decay, scaled)
        if options not in buckets:
            buckets[options] = Bucket(options)
        buckets[options].add(index, param, state, group)
    for bucket in buckets.values():
        bucket.close()
    return list(buckets.values())
