"""What writes one option into all groups: values are checked together, then written together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grokfused.step.scalars import checked_number

OPTIONS = ("alpha", "lamb", "weight_decay")


class GroupOption:
    """One option of all groups of an optimizer, written anew from what it was at first."""

    def __init__(self, optimizer: Any, option: str) -> None:
        if option not in OPTIONS:
            hint = ": for lr there is torch.optim.lr_scheduler" if option == "lr" else ""
            raise ValueError(f"option must be one of {OPTIONS}, got {option!r}{hint}")
        groups = getattr(optimizer, "param_groups", None)
        if not isinstance(groups, list):
            raise TypeError(f"optimizer must be an optimizer, got {type(optimizer).__name__}")
        if option in getattr(optimizer, "derived_options", ()):
            name = type(optimizer).__name__
            raise ValueError(f"{option} in the groups of this {name} counts for nothing: see its docstring")
        self.optimizer, self.option = optimizer, option
        self.base_values: list[float] = []
        self._last: list[float] = []

    def get_last_values(self) -> list[float]:
        """Returns what was last written, a float for each group."""
        return list(self._last)

    def state_dict(self) -> dict[str, Any]:
        """Returns where it stands, in plain values. What the constructor was given is not in it."""
        return {"option": self.option, "base_values": list(self.base_values)}

    def _write(self, value: Callable[[int, float], Any], bases: list[float]) -> None:
        """Writes into each group ``value(its number, its base)``; whatever fails has changed nothing yet."""
        groups = self.optimizer.param_groups
        found = [self._checked(number, value(number, base)) for number, base in enumerate(bases)]
        for group, base, number in zip(groups, bases, found, strict=True):
            group[f"initial_{self.option}"] = base
            group[self.option] = number
        self.base_values, self._last = bases, found

    def _bases(self) -> list[float]:
        """Returns the values of all groups to start from; groups may have been added."""
        groups = self.optimizer.param_groups
        if len(groups) < len(self.base_values):
            raise ValueError(f"the optimizer has {len(groups)} groups, and had {len(self.base_values)}")
        found = list(self.base_values)
        for number, group in enumerate(groups[len(found) :], len(found)):
            if self.option not in group:
                raise ValueError(
                    f"param_groups[{number}] has no {self.option!r}: give a GrokAdam or GrokAdamW"
                )
            found.append(self._checked(number, group.get(f"initial_{self.option}", group[self.option])))
        return found

    def _checked(self, number: int, value: object) -> float:
        try:
            return checked_number(self.option, value, given=True)
        except (TypeError, ValueError) as error:
            raise type(error)(f"param_groups[{number}]: {error}") from error

    def _saved_bases(self, state_dict: object, place: str) -> list[float]:
        """Returns the base values of a state dict that fits; raises ValueError where it does not."""
        keys = ("option", "base_values", place)
        if not isinstance(state_dict, Mapping) or not all(key in state_dict for key in keys):
            raise ValueError(f"a state dict must be one of {type(self).__name__}, with {keys}")
        if state_dict["option"] != self.option:
            raise ValueError(
                f"the state dict is of {state_dict['option']!r}, this one drives {self.option!r}"
            )
        bases, groups = state_dict["base_values"], self.optimizer.param_groups
        if not isinstance(bases, Sequence) or len(bases) != len(groups):
            raise ValueError(f"the optimizer has {len(groups)} groups, base_values is {bases!r}")
        return [self._checked(number, base) for number, base in enumerate(bases)]
