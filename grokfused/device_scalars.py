"""The scalars of a step that only the device can number: captured in a graph, or under a loss scale.

Whether a step counts is then known to the device alone (an overflow cancels it), and the host must not
wait for it. The formulas are those of ``scalars.derive``; here they run on float64 tensors of the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfused.scalars import Hyperparameters, checked_hyperparameters, derive, grad_factor

Group = Mapping[str, Any]


def _rates(group: Group) -> tuple[Any, ...]:
    """Returns what may be a tensor, in the order of ``Hyperparameters``."""
    return (group["lr"], *group["betas"])


class DeviceScalars:
    """Makes the table of scalars on the device: one row per tensor.

    A hyperparameter that is a number is copied to the device when it changes, and a graph replays the one
    that was captured. A learning rate or a beta that is a tensor of the device is read there in every step.

    Args:
        groups: The distinct parameter groups.
        group_numbers: Tensor -> its group among them.
        ema_starts: Tensor -> the step in which its slow gradient starts as the gradient itself.
        device: Where the tensors are.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        group_numbers: Sequence[int],
        ema_starts: Sequence[float],
        device: torch.device,
    ) -> None:
        self.groups, self.device = groups, device
        self.group_numbers = torch.tensor(group_numbers, device=device)
        self.ema_starts = torch.tensor(ema_starts, dtype=torch.float64, device=device)
        self.copied: list[tuple[float, ...]] = []

    def table(self, steps: Tensor) -> Tensor:
        """Returns the scalars of the step after ``steps`` (float32 [tensors]): [tensors, fields of Scalars].

        Raises:
            TypeError, ValueError: A hyperparameter is no number or out of range; the message names it.
        """
        numbers = [self._numbers(group) for group in self.groups]
        if numbers != self.copied:
            by_group = torch.tensor(numbers, dtype=torch.float64, device=self.device)
            self.by_tensor = by_group[self.group_numbers].T.contiguous()
            self.rates = [rate.unbind() for rate in by_group.T[: len(_rates(self.groups[0]))]]
            self.copied = numbers
        columns = list(self.by_tensor.unbind())
        for index, given in enumerate(zip(*map(_rates, self.groups), strict=True)):
            if any(map(self._reads, given)):
                rates = [
                    value.detach().double().reshape(()) if self._reads(value) else rate
                    for value, rate in zip(given, self.rates[index], strict=True)
                ]
                columns[index] = torch.stack(rates)[self.group_numbers]
        lr, beta1, beta2, eps, weight_decay, alpha, lamb, factor = columns
        step = steps.double() + 1.0
        alpha = alpha * (step != self.ema_starts)
        values: Any = Hyperparameters(lr, (beta1, beta2), eps, weight_decay, alpha, lamb)  # type: ignore[arg-type]
        row: Any = derive(values, step=step, grad_factor=factor, sqrt=torch.sqrt)
        return torch.stack(row, dim=1).float()

    def _reads(self, value: object) -> bool:
        """True for a tensor whose value the host must not ask for."""
        return isinstance(value, Tensor) and value.device == self.device and value.numel() == 1

    def _numbers(self, group: Group) -> tuple[float, ...]:
        """Returns what the host knows: hyperparameters, and the gradients' factor."""
        known = dict(group)
        if self._reads(group["lr"]):
            known["lr"] = 0.0
        if isinstance(group["betas"], (tuple, list)):
            known["betas"] = [0.0 if self._reads(beta) else beta for beta in group["betas"]]
        lr, betas, *others = checked_hyperparameters(known)
        return (lr, *betas, *others, grad_factor(group))
