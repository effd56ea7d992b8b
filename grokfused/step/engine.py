"""One step, from what is there now to what is written: ``ready`` checks, ``run`` changes.

Nothing of a step is kept for the next one. Parameters, gradients, states, step counters and masks are read
where they are when ``ready`` is called, by one walk; what that cannot take is checked by name and mended;
then each bucket is given to its backend.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grokfused import backends
from grokfused.backends.reference import real_dtype
from grokfused.state.memory import refuse_what_does_not_fit
from grokfused.state.prepare import check_imagined, check_place, imagine_step, place_counter, prepare_state
from grokfused.state.sharding import is_sharded, local
from grokfused.state.storage import fitting_grad
from grokfused.step import device_scalars
from grokfused.step.clipping import Clip, GradScale, divisor, max_norm_of
from grokfused.step.members import Members
from grokfused.step.norm import total_norm
from grokfused.step.options import check_options, refuse_incomplete
from grokfused.step.policy import Policy, policies_of
from grokfused.step.scalars import scalar_table, step_scalars
from grokfused.step.walk import Walk
from grokfused.step.wrappers import warn_of_partial_norm

# Where a step may be numbered by the device; elsewhere the host waits for what it has to know.
NUMBERING_DEVICES = ("cuda",)
CPU = torch.device("cpu")
NONE = torch.zeros((), device=CPU)


def ready(members: Members, scale: GradScale) -> Step:
    """Checks a step on these parameters, and prepares their states.

    Args:
        members: What is stepped.
        scale: What divides the gradients and may cancel the step; see ``clipping.given_scale``.

    Raises:
        ValueError, TypeError, RuntimeError, BackendUnavailable: An option, a parameter, a state or a
            gradient cannot be used; the message names it, and nothing was changed.
    """
    try:
        return Step(members.owner.as_stepped(members), scale)
    except KeyError:
        refuse_incomplete(members.groups, members.owner.defaults)
        raise


class Step:
    """A step that has been checked."""

    def __init__(self, members: Members, scale: GradScale) -> None:
        self._members = members
        max_norm = max_norm_of(members.groups)
        scaled = bool(scale) or max_norm is not None
        self._policies, self._policy_of = policies_of(members.groups, members.owner.decay, scaled)
        self._fitted: Mapping[int, Tensor] | None = None
        self._only_makes_states = False
        self._walk = self._walked(members, None)
        self._imagined: list[tuple[Tensor, Tensor, Tensor, dict[str, Any]]] = []
        if any(members.params[place].is_meta for place in self._walk.unfit):
            members = self._leave_out_meta(members)
        while places := self._to_mend():
            self._fitted = {**(self._fitted or {}), **self._prepared(places)}
            self._walk = self._walked(members, self._fitted)
        self._begins = self._walk.begins
        if self._fitted or self._walk.itself is not None:
            self._refuse(self._walk, 0)
        self._scale = scale
        self._clip = Clip(total_norm(members.grads), max_norm) if max_norm and members.grads else None
        self._buckets = self._derived(members, self._walk)
        if max_norm is not None:
            warn_of_partial_norm(members.owner, members.keys)

    def run(self) -> None:
        """Takes the step. Parameters that share memory are stepped one after the other, in their order."""
        if self._only_makes_states:
            return
        if self._imagined and not self._is_cancelled():
            for key, param, grad, group in self._imagined:
                imagine_step(param, grad, group, self._members.owner.state[key])
        if not self._begins:
            self._run(self._members, self._walk, self._buckets)
            return
        members = self._members
        for begin, end in itertools.pairwise([0, *self._begins, len(members.params)]):
            part = members.part(begin, end)
            walk = self._walked(part, self._fitted_between(begin, end))
            if walk.unfit:  # the part before has written: a backend of Python's counts as anyone's writing
                mended = self._prepared([begin + place for place in walk.unfit])
                self._fitted = {**(self._fitted or {}), **mended}
                walk = self._walked(part, self._fitted_between(begin, end))
            self._refuse(walk, begin)
            self._run(part, walk, self._derived(part, walk))

    def _leave_out_meta(self, members: Members) -> Members:
        """Notes the parameters on the meta device, checked, and returns the others, walked anew.

        As in torch.optim: their states are made, their steps counted, and nothing is computed.
        """
        for place, param in enumerate(members.params):
            if param.is_meta:
                key, grad = members.keys[place], members.grads[place]
                group = members.groups[members.group_of[place]]
                check_imagined(param, grad, members.owner.state.get(key, {}), group, members.name(place))
                self._imagined.append((key, param, grad, group))
        self._members = members.some([not param.is_meta for param in members.params])
        self._walk = self._walked(self._members, None)
        return self._members

    def _is_cancelled(self) -> bool:
        """Asks whether an overflow cancels the step; the host waits for the answer."""
        found_inf = self._scale.get("found_inf")
        return found_inf is not None and not found_inf.is_meta and found_inf.item() != 0

    def _to_mend(self) -> list[int]:
        """Returns the places that the walk could not take, or that share memory with themselves, but once."""
        places, fitted, itself = self._walk.unfit, self._fitted or {}, self._walk.itself
        if itself is not None:
            places = [*places, itself]
        return places and [place for place in places if place not in fitted]

    def _fitted_between(self, begin: int, end: int) -> Mapping[int, Tensor] | None:
        found = self._fitted
        return found and {place - begin: found[place] for place in range(begin, end) if place in found}

    def _walked(self, members: Members, fitted: Mapping[int, Tensor] | None) -> Any:
        table = backends.native_table()
        walk = table.walk if table else Walk
        return walk(members, self._policies, self._policy_of, fitted, NUMBERING_DEVICES)

    @torch.no_grad()
    def _prepared(self, unfit: list[int]) -> dict[int, Tensor]:
        """Checks all of these places, then mends them; returns place -> the gradient to take."""
        members = self._members
        for number in {members.group_of[place] for place in unfit}:
            check_options(members.groups[number])
        _refuse_capture([members.params[place] for place in unfit])
        for place in unfit:
            param, state, group = members.about(place)
            check_place(param, members.grads[place], state, group, members.name(place))
        refuse_what_does_not_fit(members.about(place) for place in unfit)
        self._only_makes_states = _is_for_states(members)
        fitted = {}
        for place in unfit:
            param, number = members.params[place], members.group_of[place]
            state = members.owner.state.setdefault(members.keys[place], {})
            prepare_state(param, state, members.groups[number])
            policy = self._policies[self._policy_of[number]]
            place_counter(param, state, policy.device_numbers, NUMBERING_DEVICES)
            fitted[place] = fitting_grad(param, members.grads[place])
        return fitted

    def _refuse(self, walk: Any, begin: int) -> None:
        """Raises RuntimeError where a walk of the places from ``begin`` on cannot be stepped after all."""
        if walk.unfit:
            name = self._members.name(begin + walk.unfit[0])
            raise RuntimeError(f"{name} changed while its step was being prepared, by another thread")
        if walk.itself is not None:
            name = self._members.name(begin + walk.itself)
            raise RuntimeError(
                f"{name}, its gradient and its states share memory with each other: give each its own"
            )

    def _derived(self, members: Members, walk: Any) -> list[Any]:
        """Has the walk derive what the host knows; returns each bucket, its scale and the device's table."""
        walk.derive(members.groups, step_scalars)
        plain = not self._scale and self._clip is None
        return [
            (*kind, *(self._numbers(members, walk, bucket, kind) if kind[1] or not plain else ({}, None)))
            for bucket, kind in enumerate(walk.kinds)
        ]

    @torch.no_grad()
    def _numbers(self, members: Members, walk: Any, bucket: int, kind: Any) -> tuple[Any, Tensor | None]:
        """Returns what divides a bucket's gradients and may cancel it, and the device's table or None."""
        (backend, on_device, _, place), scale, clipping = kind, dict(self._scale), None
        device = members.params[place].device if on_device else CPU
        real = real_dtype(members.params[place].dtype)
        if self._clip and on_device and backend == "native":
            clipping = device_scalars.clipping(self._clip, scale.get("grad_scale"), device, real)
            scale["grad_scale"] = clipping[-1]
        elif self._clip:
            scale["grad_scale"] = divisor(self._clip, scale.get("grad_scale"))
        for name, number in scale.items():
            dtype = real if name == "grad_scale" else torch.float32
            scale[name] = number.to(device, dtype).resolve_neg().reshape(())
        if not on_device:
            return scale, None
        if backend == "native":
            return scale, device_scalars.derive_there(members.groups, walk, bucket, device, real, clipping)
        asked = (members.groups, walk.groups(bucket), walk.starts(bucket), walk.lists(bucket)["step"])
        return scale, device_scalars.table(*asked, device, real)

    def _run(self, members: Members, walk: Any, buckets: list[Any]) -> None:
        for bucket, (backend, on_device, policy, place, scale, table) in enumerate(buckets):
            if not on_device and scale and scale.pop("found_inf", NONE).item() != 0:
                continue
            if backend != "native":
                real = real_dtype(members.params[place].dtype)
                numbers = scalar_table(walk.scalars(), real) if table is None else table
                _run_lists(backend, walk, bucket, self._policies[policy], numbers, scale)
            elif torch.autograd.profiler._is_profiler_enabled:  # no operator of torch's tells it
                with torch.profiler.record_function("grokfused::native"):
                    walk.run(bucket, table, scale.get("grad_scale"), scale.get("found_inf"))
            else:
                walk.run(bucket, table, scale.get("grad_scale"), scale.get("found_inf"))
        _note_written(members.params, walk.sharded)


def _is_for_states(members: Members) -> bool:
    """True for a step that is taken to have the states made, as torch.distributed.checkpoint takes it.

    It is the first one, with a learning rate of 0, and gradients of zeros for all that requires one. Counted,
    it would be the one whose gradient the slow gradient starts as.
    """
    owner = members.owner
    if owner.state or any(float(group["lr"]) for group in members.groups):
        return False
    required = sum(param.requires_grad for group in owner.param_groups for param in group["params"])
    return len(members.params) >= required and not total_norm(members.grads).item()


def _run_lists(
    backend: str, walk: Any, bucket: int, policy: Policy, scalars: Tensor, scale: GradScale
) -> None:
    """Gives a bucket to a backend of Python's."""
    lists = {name: list(map(_as_real, tensors)) for name, tensors in walk.lists(bucket).items()}
    own = {name: lists.pop(name) for name in ("param", "grad", "step", "mask")}
    backends.backend(backend).adamw_step_(
        *own.values(),
        lists,
        scalars,
        walk.rows(bucket),
        mask_modes=walk.modes(bucket),
        **policy.for_backend(),
        **scale,
    )


def _as_real(tensor: Tensor | None) -> Tensor | None:
    """Returns a complex tensor as pairs of real numbers, as which it is stepped."""
    return tensor if tensor is None or not tensor.is_complex() else torch.view_as_real(tensor)


def _note_written(params: list[Tensor], sharded: bool) -> None:
    """Does what torch's in-place operations do: a backward pass through the old values then fails loudly."""
    torch.autograd.graph.increment_version(params)
    if sharded:  # autograd looks at either
        torch.autograd.graph.increment_version([local(param) for param in params if is_sharded(param)])


def _refuse_capture(params: list[Tensor]) -> None:
    """Raises RuntimeError inside a graph capture: what is prepared once is no part of every step."""
    if any(param.is_cuda for param in params) and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the first step, and one after an option, a state or a list of parameters has changed, cannot be "
            "captured in a CUDA graph: take a step before the capture and change nothing between the two"
        )
