"""Loading with torch.distributed.checkpoint, which reads only what the state dict has a place for.

Import it by its name: with it comes torch.distributed.checkpoint, which takes longer than all of grokfused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata


class LoadPlanner(DefaultLoadPlanner):
    """Loads the masks and Kahan's rests that a checkpoint holds, whichever the optimizer has had before.

    ::

        weights, states = get_state_dict(model, optimizer)
        found = {"model": weights, "optimizer": states}
        torch.distributed.checkpoint.load(found, checkpoint_id=folder, planner=LoadPlanner())
        set_state_dict(
            model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"]
        )

    They get a place beside the moments, spread over the processes as those are, and those that the
    checkpoint lacks lose theirs. For the moments ``get_state_dict`` makes the places, in an optimizer that
    has no state yet: set masks of your own after loading. Takes the arguments of torch's
    ``DefaultLoadPlanner``.
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
    rest = saved.get(path + "kahan_comp")
    places: dict[str, Callable[[], object]] = {
        "mask": lambda: torch.zeros_like(state["exp_avg"], dtype=torch.bool),
        "mask_mode": str,
        "grad_ema_start": float,
        "kahan_comp": lambda: torch.zeros_like(state["exp_avg"], dtype=rest.properties.dtype),  # type: ignore[union-attr]
    }
    for key, place in places.items():
        if path + key not in saved:
            state.pop(key, None)
        elif key not in state:
            state[key] = place()
