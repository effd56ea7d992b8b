"""alpha by the losses of training and validation."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from grokfused.schedules.group_option import GroupOption


def grokking_signal(train_loss: float | Tensor, val_loss: float | Tensor) -> float:
    """Returns how much worse validation is than training, in [0, 1]: 0 while it is not.

    ::

        signal = max(0, val_loss - train_loss) / max(val_loss, train_loss)        0 where both are 0

    Args:
        train_loss: >= 0; a number or a tensor of one, which is then read from its device.
        val_loss: Likewise.

    Raises:
        TypeError, ValueError: A loss is no number, not finite, or negative, of which no share can be taken;
            the message names it.
    """
    train, val = _loss("train_loss", train_loss), _loss("val_loss", val_loss)
    return max(0.0, val - train) / max(val, train) if max(val, train) > 0.0 else 0.0


def _loss(name: str, value: object) -> float:
    text = f"{name} must be a finite number >= 0, or a tensor of one"
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{text}, got shape {list(value.shape)}")
        if value.is_meta:
            raise ValueError(f"{text}, got one on the meta device, which has no value")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{text}, got {value!r}")
    if not 0.0 <= float(value) < math.inf:
        raise ValueError(f"{text}, got {value!r}")
    return float(value)


class GrokkingSignal(GroupOption):
    """Lowers alpha while validation is worse than training, as PyPI's grokadamw does.

    ::

        alpha = initial * exp(-rate * signal)        signal: ``grokking_signal(train_loss, val_loss)``

    ::

        signal = GrokkingSignal(optimizer)
        ...
        signal.update(train_loss, val_loss)  # as often as there are losses; holds until the next call

    ``initial`` is the alpha of each group when this was made, and stays in the group as ``initial_alpha``. As
    with a ``Schedule``, what others write into alpha holds until the next call: give alpha one or the other.

    Args:
        optimizer: Whose groups are written.
        rate: How much a signal of 1 lowers the logarithm of alpha. A finite number >= 0. (default: 0.1)

    Attributes:
        rate: As given.
        signal: The last one; 0 before the first.

    Raises:
        TypeError, ValueError: ``rate`` or an alpha is out of range. Nothing was changed.
    """

    rate: float
    signal: float

    def __init__(self, optimizer: Any, rate: float = 0.1) -> None:
        super().__init__(optimizer, "alpha")
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
            raise TypeError(f"rate must be a finite number >= 0, got {rate!r}")
        if not 0.0 <= float(rate) < math.inf:
            raise ValueError(f"rate must be a finite number >= 0, got {rate!r}")
        self.rate = float(rate)
        self._lower(0.0, self._bases())

    def update(self, train_loss: float | Tensor, val_loss: float | Tensor) -> float:
        """Takes new losses, writes alpha, and returns the signal.

        Raises:
            TypeError, ValueError: As for ``grokking_signal``. Nothing was changed.
        """
        self._lower(grokking_signal(train_loss, val_loss), self._bases())
        return self.signal

    def state_dict(self) -> dict[str, Any]:
        """Returns the last signal and the initial alphas, in plain values."""
        return {**super().state_dict(), "signal": self.signal}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a state dict, and writes alpha into the groups.

        Raises:
            ValueError: It is of other groups, or holds what is out of range. Nothing was changed.
        """
        bases = self._saved_bases(state_dict, "signal")
        signal = state_dict["signal"]
        if not isinstance(signal, float) or not 0.0 <= signal <= 1.0:
            raise ValueError(f"signal must be a float in [0, 1], got {signal!r}")
        self._lower(signal, bases)

    def _lower(self, signal: float, bases: list[float]) -> None:
        factor = math.exp(-self.rate * signal)
        self._write(lambda _, base: base * factor, bases)
        self.signal = signal
