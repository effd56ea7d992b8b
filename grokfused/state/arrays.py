"""The arrays that a step keeps per parameter: one row each, from which all else follows.

States, checks, checkpoints, sharding, the lists that a backend is given and the bytes that a step moves are
read off this table. The C++ column is the `rows` of the rooms in csrc/step; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused.backends import block8
from grokfused.backends.reference import real_dtype
from grokfused.state.sharding import ONE_PER_BLOCK, local, planed
from grokfused.state.storage import OWN_STATES, state_dtype_for
from grokfused.step.grad_filter import FILTERS, WINDOW

ROUNDED_DTYPES = (torch.bfloat16, torch.float16)  # of parameters that a step rounds


class Array(NamedTuple):
    """A state array of a step: its parameter's shape and memory order once or several times, or per block.

    Attributes:
        name: Its key in ``optimizer.state[param]``.
        option: The option of the group that brings it, with its value; None: every step has it.
        planes: How many values it keeps of each element: 1. ``WINDOW``: so many as the option `window_size`
            says, [window_size, *the parameter's shape]; step t writes plane (t - 1) % window_size. 0
            (``ONE_PER_BLOCK``): one value for each block of neighbours in memory order
            (``backends.block8``), [blocks], and of a DTensor those of this process's shard.
        of: Whose dtype it has: that of the "states", of the "window" (each as its option says), of the
            "param", or the "real" numbers in which a step is computed; or int32, as "bases". One of the
            parameter's is there only beside a parameter that is rounded, bases only beside states of 8 bits.
        stays: Whether it stays where a step does without it. Else what it holds would be wrong afterwards:
            it is dropped.
    """

    name: str
    option: tuple[str, object] | None = None
    planes: int = 1
    of: str = "states"
    stays: bool = True

    def is_used(self, options: Mapping[str, Any]) -> bool:
        """True where a group's options bring it; one of some ``of`` there is only beside what it is of."""
        return self.option is None or options[self.option[0]] == self.option[1]

    @property
    def like_param(self) -> bool:
        """Whether it is of the parameter's dtype."""
        return self.of == "param"

    def planes_of(self, options: Mapping[str, Any]) -> int:
        """Returns its number of planes in a group, or ``ONE_PER_BLOCK``."""
        return int(options["window_size"]) if self.planes == WINDOW else self.planes

    def shape(self, param: Tensor, options: Mapping[str, Any]) -> torch.Size:
        """Returns its shape beside a parameter of a group."""
        if self.planes == ONE_PER_BLOCK:
            return torch.Size([block8.count_of(local(param).numel())])
        return torch.Size(planed(param.shape, self.planes_of(options)))

    def dtype(self, param: Tensor, options: Mapping[str, Any], states: torch.dtype) -> torch.dtype:
        """Returns its dtype beside a parameter of a group, whose states have the dtype ``states``."""
        if self.of == "window":
            return state_dtype_for(param, options["window_dtype"], "window_dtype")
        if self.of == "real":
            return param.dtype if param.is_complex() else real_dtype(param.dtype)
        if self.of == "bases":
            return torch.int32
        return param.dtype if self.like_param else states


ARRAYS = (
    Array("exp_avg"),
    Array("exp_avg_sq"),
    *(
        Array(name, ("grad_filter", key), *memory)
        for key, kind in FILTERS.items()
        for name, memory in kind.states.items()
    ),
    Array("max_exp_avg_sq", ("amsgrad", True)),
    Array("kahan_comp", ("param_rounding", "kahan"), of="param", stays=False),
    Array(block8.BASES, planes=ONE_PER_BLOCK, of="bases"),
)
NAMES = tuple(array.name for array in ARRAYS)
# Of every state that is there at all.
MOMENTS = tuple(array.name for array in ARRAYS if array.option is None and array.of == "states")


def used(param: Tensor, options: Mapping[str, Any], states: torch.dtype) -> list[Array]:
    """Returns the arrays that a step of this parameter needs, whose states have the dtype ``states``."""
    there_is = {"param": param.dtype in ROUNDED_DTYPES, "bases": states is block8.DTYPE}
    return [array for array in ARRAYS if array.is_used(options) and there_is.get(array.of, True)]


def there(state: Mapping[str, Any]) -> list[Array]:
    """Returns the arrays that a state has."""
    return [array for array in ARRAYS if array.name in state]


def of_elements(state: Mapping[str, Any]) -> list[Tensor]:
    """Returns the tensors of a state that have values of each element, of which a mask leaves some out."""
    return [state[array.name] for array in there(state) if array.planes != ONE_PER_BLOCK]


def states_dtype(param: Tensor, state: Mapping[str, Any], options: Mapping[str, Any]) -> torch.dtype:
    """Returns the dtype of a parameter's states: that which they have, or else what the group says."""
    kept = state.get(MOMENTS[0])
    if isinstance(kept, Tensor) and param.dtype not in OWN_STATES:
        return kept.dtype
    return state_dtype_for(param, options["state_dtype"])
