"""Loading with torch.distributed.checkpoint, which reads only what the state dict has a place for.

Import it by its name: with it comes torch.distributed.checkpoint, which takes longer than all of grokfused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from grokfused.state.arrays import ARRAYS, MOMENTS, NAMES
from grokfused.state.saved_form import MASK
from grokfused.state.storage import state_like
from grokfused.step.grad_filter import STARTS

# What some states have and others have not.
PLACES = (*(array.name for array in ARRAYS if array.name not in MOMENTS), *sorted(MASK), *STARTS)


class LoadPlanner(DefaultLoadPlanner):
    """Loads the masks and arrays that a checkpoint holds, whichever the optimizer has had before.

    ::

        weights, states = get_state_dict(model, optimizer)
        found = {"model": weights, "optimizer": states}
        torch.distributed.checkpoint.load(found, checkpoint_id=folder, planner=LoadPlanner())
        set_state_dict(
            model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"]
        )

    Beside the moments, masks, the filters' memory, Kahan's rests and the largest second moments get a place,
    spread over the processes as the moments are, and those that the checkpoint lacks lose theirs. For the
    moments ``get_state_dict`` makes the places, in an optimizer that has no state yet: set masks of your own
    after loading. Takes the arguments of torch's ``DefaultLoadPlanner``.
    """

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Makes the places, once the checkpoint is known; torch.distributed.checkpoint calls it."""
        if metadata is not None:
            for path, state in _adam_states(state_dict, ""):
                _fit(state, path, metadata.state_dict_metadata)
        super().set_up_planner(state_dict, metadata, is_coordinator)


def _adam_states(found: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the states of all parameters, each after the beginning of its names in a checkpoint."""
    if isinstance(found, Mapping):
        if isinstance(found.get("exp_avg"), torch.Tensor):
            yield path, found  # type: ignore[misc]
        for key, value in found.items():
            yield from _adam_states(value, f"{path}{key}.")
    elif isinstance(found, (list, tuple)):
        for number, value in enumerate(found):
            yield from _adam_states(value, f"{path}{number}.")


def _fit(state: dict[str, Any], path: str, saved: Mapping[str, Any]) -> None:
    for key in PLACES:
        if path + key not in saved or key in MASK:  # a mask may be of another form than the optimizer's
            state.pop(key, None)
        if path + key in saved and key not in state:
            about = saved[path + key]
            state[key] = _place(key, state["exp_avg"], about)
    for key in [key for key in NAMES if key in state and path + key in saved]:
        about = saved[path + key]  # read into a narrower place, a state would lose bits
        if isinstance(about, TensorStorageMetadata) and about.properties.dtype != state[key].dtype:
            state[key] = _place(key, state["exp_avg"], about)


def _place(key: str, like: torch.Tensor, about: Any) -> Any:
    """Returns where something saved goes: a state is spread as a moment, in planes of it where it has more.

    What is no tensor (in older checkpoints) is put in the place of anything.
    """
    if not isinstance(about, TensorStorageMetadata):
        return 0
    if key in STARTS:
        return torch.zeros(about.size)
    planes = about.size[0] if len(about.size) > like.dim() else 1
    return state_like(like, about.properties.dtype, planes=planes)
