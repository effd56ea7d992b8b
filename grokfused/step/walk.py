"""The walk of csrc/walk.h without it, for a machine where it could not be built.

Python has then looked at every parameter (state/prepare.py); what is left is to sort them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused.backends import choose_for
from grokfused.backends.reference import Scalars
from grokfused.state.arrays import states_dtype, used
from grokfused.state.sharding import is_sharded, local
from grokfused.state.storage import is_dense, is_unresolved
from grokfused.step.grad_filter import first_filtered_step
from grokfused.step.mask import MODES
from grokfused.step.members import Members
from grokfused.step.policy import Policy


class Alike(NamedTuple):
    """What the places of a bucket have in common."""

    backend: str
    numbers_on_device: bool
    policy: int
    param_dtype: torch.dtype
    state_dtype: torch.dtype
    device: torch.device


class Walk:
    """Sorts the places of a step into buckets; attributes and methods are those of ``_C.Walk``."""

    def __init__(
        self,
        members: Members,
        policies: Sequence[Policy],
        policy_of: Sequence[int],
        fitted: Mapping[int, Tensor] | None,
        numbering: Sequence[str],
    ) -> None:
        count = len(members.keys)
        self.unfit = [place for place in range(count) if place not in (fitted or {})]
        self.keys: list[tuple[int, float, float]] = []
        self._places: dict[Alike, list[int]] = {}
        self._rows: list[int] = []
        self._starts: list[float] = []
        self._scalars = list[Scalars]()
        self.begins, self.itself = list[int](), None
        self.sharded = any(map(is_sharded, members.params))
        self._members, self._tensors = members, list[dict[str, Any]]()
        if self.unfit or not fitted:
            return
        for place in range(count):
            number = members.group_of[place]
            self._sort(place, fitted[place], policies[policy_of[number]], policy_of[number], numbering)
        self.begins, self.itself = _sharing(self._tensors)

    def _sort(
        self,
        place: int,
        grad: Tensor,
        policy: Policy,
        number: int,
        numbering: Sequence[str],
    ) -> None:
        param, state = self._members.params[place], self._members.owner.state[self._members.keys[place]]
        group = self._members.group_of[place]
        options = self._members.groups[group]
        names = [array.name for array in used(param, options, states_dtype(param, state, options))]
        shard, step = local(param), state["step"]
        tensors = {"param": shard, "grad": grad, "step": step, **{name: local(state[name]) for name in names}}
        self._tensors.append(tensors)
        by_device = param.device.type in numbering and (policy.device_numbers or step.device.type != "cpu")
        backend = choose_for(policy.backend, param, is_dense(shard) and not is_unresolved(shard))
        start = first_filtered_step(state, policy.start) if policy.start else 0.0
        alike = Alike(backend, by_device, number, param.dtype, tensors[names[0]].dtype, param.device)
        self._places.setdefault(alike, []).append(place)
        self._starts.append(start)
        key = (group, 0.0 if by_device else float(step), start)
        if key not in self.keys:
            self.keys.append(key)
        self._rows.append(self.keys.index(key))

    @property
    def kinds(self) -> list[tuple[str, bool, int, int]]:
        """Backend, whether the device numbers the steps, policy and first place of each bucket."""
        return [(*alike[:3], places[0]) for alike, places in self._places.items()]

    def derive(self, groups: Sequence[dict[str, Any]], ask: Callable[..., Scalars]) -> None:
        """Derives the rows of ``keys``; ``ask`` is ``scalars.step_scalars``."""
        self._scalars = [ask(groups[group], count + 1.0, start) for group, count, start in self.keys]

    def scalars(self) -> Sequence[Sequence[float]]:
        """Returns the rows."""
        return self._scalars

    def _of(self, bucket: int) -> list[int]:
        return list(self._places.values())[bucket]

    def rows(self, bucket: int) -> list[int]:
        """Returns the row of ``keys`` of each place."""
        return [self._rows[place] for place in self._of(bucket)]

    def groups(self, bucket: int) -> list[int]:
        """Returns the number of each place's group."""
        return [self._members.group_of[place] for place in self._of(bucket)]

    def starts(self, bucket: int) -> list[float]:
        """Returns the first step of each place's filter, 0 where it starts as zero."""
        return [self._starts[place] for place in self._of(bucket)]

    def modes(self, bucket: int) -> list[int]:
        """Returns the mode of each place's mask, by its place in ``MODES``."""
        return [MODES.index(mask.mode) if mask else 0 for mask in self._masks(bucket)]

    def _masks(self, bucket: int) -> list[Any]:
        keys = (self._members.keys[place] for place in self._of(bucket))
        return [self._members.owner.state[key].get("mask") for key in keys]

    def lists(self, bucket: int) -> dict[str, list[Any]]:
        """Returns the tensors of a bucket by name, and "mask": its words, or None."""
        found: dict[str, list[Any]] = {}
        for place in self._of(bucket):
            for name, tensor in self._tensors[place].items():
                found.setdefault(name, []).append(tensor)
        return {**found, "mask": [mask and mask.words for mask in self._masks(bucket)]}


def _sharing(tensors: Sequence[Mapping[str, Tensor]]) -> tuple[list[int], int | None]:
    """Returns what csrc/overlap.h does: where parts of a step begin, and a place that shares with itself."""
    extents = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + _reach(tensor), place, name != "grad")
        for place, named in enumerate(tensors)
        for name, tensor in named.items()
        if tensor.numel()
    )
    after, itself, still_open = [-1] * len(tensors), None, list[tuple[int, int, int, bool]]()
    for extent in extents:
        still_open = [other for other in still_open if other[1] > extent[0]]
        for other in still_open:
            if other[3] or extent[3]:
                first, last = sorted((other[2], extent[2]))
                itself = last if first == last else itself
                after[last] = max(after[last], first if first != last else -1)
        still_open.append(extent)
    begins = [0]
    for place, shares in enumerate(after):
        if shares >= begins[-1]:
            begins.append(place)
    return begins[1:], itself


def _reach(tensor: Tensor) -> int:
    dims = zip(tensor.shape, tensor.stride(), strict=True)
    return (sum((size - 1) * stride for size, stride in dims) + 1) * tensor.element_size()
