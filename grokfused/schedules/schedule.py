"""An option over steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from grokfused.schedules.group_option import GroupOption
from grokfused.schedules.shapes import Value, corners_of, function_of


class Schedule(GroupOption):
    """Drives alpha, lamb or weight_decay over steps, as torch.optim.lr_scheduler drives lr.

    ::

        schedule = Schedule(optimizer, "lamb", WarmUp(500, Cosine(end=0.5, steps=10_000)))
        ...
        optimizer.step()
        schedule.step()

    After n calls of ``step()`` each group holds ``value(n, initial)``, a float. ``initial`` is what the group
    held when the schedule was made. As torch keeps ``initial_lr``, it stays in the group as ``initial_lamb``,
    and counts where it is there already. A group added later starts from its own.

    A schedule writes its own option and reads no other, so schedules of several options, and torch's own of
    lr, may be called in any order. What someone else writes into the option, a tensor too, holds until the
    next ``step()`` or ``load_state_dict()``; of two schedules of one option the last call counts. A captured
    CUDA graph replays the number that it was captured with.

    To resume, load the optimizer and the schedule, in any order: the values are those of the run that was not
    interrupted.

    Args:
        optimizer: Whose groups are written.
        option: "alpha", "lamb" or "weight_decay".
        value: ``Constant``, ``Linear``, ``Cosine`` or ``WarmUp``; or a number; or any function of the number
            of calls and the group's initial value that returns a number. Or a list with one of these for each
            group, None leaving a group alone.
        last_epoch: How many calls came before, less 1, for groups that have an ``initial_`` value from then.
            (default: -1)

    Attributes:
        last_epoch: How often ``step()`` was called.
        base_values: The initial value of each group.

    Raises:
        TypeError, ValueError: There is no such option; or a value is no number, or outside of the range in
            which the option may be given to the optimizer (``GrokAdam``): of the four shapes both ends are
            looked at here, of functions each value before it is written. Nothing was changed.
    """

    last_epoch: int

    def __init__(self, optimizer: Any, option: str, value: Any, last_epoch: int = -1) -> None:
        super().__init__(optimizer, option)
        self.each = isinstance(value, (list, tuple))
        given = value if isinstance(value, (list, tuple)) else [value]
        if self.each and not given:
            raise ValueError(f"{option} must have a schedule for each group, got an empty list")
        self.values = [None if self.each and one is None else function_of(one) for one in given]
        if isinstance(last_epoch, bool) or not isinstance(last_epoch, int) or last_epoch < -1:
            raise ValueError(f"last_epoch must be an integer >= -1, got {last_epoch!r}")
        for number, group in enumerate(optimizer.param_groups):
            if last_epoch >= 0 and f"initial_{option}" not in group:
                raise ValueError(f"param_groups[{number}] has no 'initial_{option}' to go on from")
        bases = self._bases()
        for number, base in enumerate(bases):
            for corner in corners_of(self._of(number)):
                self._checked(number, self._value(corner)(number, base))
        self._move(last_epoch + 1, bases)

    def step(self) -> None:
        """Moves on by one: call it after ``optimizer.step()``.

        Raises:
            TypeError, ValueError: As for the class. Nothing was changed.
        """
        self._move(self.last_epoch + 1, self._bases())

    def state_dict(self) -> dict[str, Any]:
        """Returns where the schedule stands, in plain values; the shape itself is not in it."""
        return {**super().state_dict(), "last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a state dict, and writes the values of that place into the groups.

        Raises:
            ValueError: It is of another option or of other groups, or holds what is out of range. Nothing was
                changed.
        """
        bases = self._saved_bases(state_dict, "last_epoch")
        epoch = state_dict["last_epoch"]
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"last_epoch must be an integer >= 0, got {epoch!r}")
        self._move(epoch, bases)

    def _move(self, epoch: int, bases: list[float]) -> None:
        self._write(self._value(epoch), bases)
        self.last_epoch = epoch

    def _of(self, number: int) -> Value | None:
        """Returns what a group's value is a function of."""
        return self.values[number if self.each else 0]

    def _value(self, epoch: int) -> Callable[[int, float], Any]:
        groups = self.optimizer.param_groups
        if self.each and len(self.values) != len(groups):
            raise ValueError(f"{self.option} has {len(self.values)} schedules for {len(groups)} groups")

        def value(number: int, base: float) -> Any:
            function = self._of(number)
            return groups[number][self.option] if function is None else function(epoch, base)

        return value
