"""What an optimizer and its parameters are, to see that a refusal changed nothing."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from grokfused.lab.agreement import differing_bits

NAN, INF = math.nan, math.inf


class Snapshot:
    """Copies of everything an optimizer owns, to tell whether anything changed."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.params = [param for group in optimizer.param_groups for param in group["params"]]
        self.tensors = self._tensors()
        self.options = copy.deepcopy(self._options())

    def _tensors(self) -> list[tuple[str, Tensor]]:
        found = []
        for index, param in enumerate(self.params):
            arrays = {"param": param.detach(), **self.optimizer.state.get(param, {})}
            found += [
                (f"{index} {name}", value.clone() if not value.is_meta else value)
                for name, value in arrays.items()
            ]
        return found

    def _options(self) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]

    def assert_unchanged(self) -> None:
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        assert list(map(id, params)) == list(map(id, self.params))
        # repr, because NaN is not equal to itself.
        assert repr(self._options()) == repr(self.options)
        tensors = self._tensors()
        assert [name for name, _ in tensors] == [name for name, _ in self.tensors]
        for (name, now), (_, before) in zip(tensors, self.tensors, strict=True):
            if not now.is_meta:
                assert bits_equal(now, before), name


def bits_equal(a: Tensor, b: Tensor) -> bool:
    if a.element_size() in (2, 4):
        return differing_bits(a, b) == 0
    return torch.equal(a, b)


def param(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype).requires_grad_()
