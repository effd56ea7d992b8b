"""The arrays that a step keeps per parameter: one row each, from which all else follows.

States, checks, checkpoints, sharding, the lists that a backend is given and the bytes that a step moves are
read off this table. The C++ column is the `rows` of the rooms in csrc/step; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused.backends.blocks import count_of
from grokfused.backends.reference import real_dtype
from grokfused.state.sharding import ONE_PER_BLOCK, local, planed
from grokfused.step.grad_filter import FILTERS

ROUNDED_DTYPES = (torch.bfloat16, torch.float16)  # of parameters that a step rounds


class Array(NamedTuple):
    """A state array of a step: its parameter's shape and memory order once or several times, or per block.

    Attributes:
        name: Its key in ``optimizer.state[param]``.
        option: The option of the group that brings it, with its value; None: every step has it.
        like_param: Of the parameter's dtype, and there only beside one that is rounded: it says something of
            one rounding, and is dropped where that is another. Else it is of the states' dtype, and stays.
        planes: How many values it keeps of each element: step t reads and writes plane (t - 1) % planes. With
            more than one, its shape has this number before the parameter's. 0 (``ONE_PER_BLOCK``): one value
            for each block of neighbours in memory order (``backends.blocks``), [blocks] in the numbers in
            which a step is computed, and of a DTensor those of this process's shard.
    """

    name: str
    option: tuple[str, object] | None = None
    like_param: bool = False
    planes: int = 1

    def is_used(self, options: Mapping[str, Any]) -> bool:
        """True where a group's options bring it (beside a rounded parameter, if ``like_param``)."""
        return self.option is None or options[self.option[0]] == self.option[1]

    def shape(self, param: Tensor) -> torch.Size:
        """Returns its shape beside a parameter."""
        if self.planes == ONE_PER_BLOCK:
            return torch.Size([count_of(local(param).numel() * (2 if param.is_complex() else 1))])
        return torch.Size(planed(param.shape, self.planes))

    def dtype(self, param: Tensor, states: torch.dtype) -> torch.dtype:
        """Returns its dtype beside a parameter whose states have the dtype ``states``."""
        if self.planes == ONE_PER_BLOCK:
            return real_dtype(param.dtype)
        return param.dtype if self.like_param else states


ARRAYS = (
    Array("exp_avg"),
    Array("exp_avg_sq"),
    Array("max_exp_avg_sq", ("amsgrad", True)),
    *(
        Array(name, ("grad_filter", key), planes=planes)
        for key, kind in FILTERS.items()
        for name, planes in kind.states.items()
    ),
    Array("kahan_comp", ("param_rounding", "kahan"), like_param=True),
)
NAMES = tuple(array.name for array in ARRAYS)
# Of every state that is there at all.
MOMENTS = tuple(array.name for array in ARRAYS if array.option is None)


def used(param: Tensor, options: Mapping[str, Any]) -> list[Array]:
    """Returns the arrays that a step of this parameter needs."""
    rounded = param.dtype in ROUNDED_DTYPES
    return [array for array in ARRAYS if array.is_used(options) and (rounded or not array.like_param)]


def there(state: Mapping[str, Any]) -> list[Array]:
    """Returns the arrays that a state has."""
    return [array for array in ARRAYS if array.name in state]


def of_elements(state: Mapping[str, Any]) -> list[Tensor]:
    """Returns the tensors of a state that have values of each element, of which a mask leaves some out."""
    return [state[array.name] for array in there(state) if array.planes != ONE_PER_BLOCK]
