"""The optimizers' sparsity masks: setting, reading and removing them at any time in training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from grokfused.state.arrays import of_elements, there
from grokfused.state.memory import refuse_what_does_not_fit
from grokfused.state.prepare import check_state, prepare_state
from grokfused.state.saved_form import MASK, kept_of
from grokfused.state.storage import check_has_values, check_param
from grokfused.step.mask import check_mask, check_mode, pack, zero_left_out
from grokfused.step.members import param_names
from grokfused.step.options import check_options, refuse_incomplete


class Masking:
    """The part of an optimizer that puts its parameters under masks; they lie in its state."""

    defaults: dict[str, Any]
    param_groups: list[dict[str, Any]]
    state: defaultdict[Tensor, Any]

    def set_mask(self, param: Tensor | str, mask: Tensor, mode: str = "zero") -> None:
        """Puts a parameter under a sparsity mask from now on; see ``set_masks``."""
        self.set_masks({param: mask}, mode)

    def set_masks(self, masks: Mapping[Any, Tensor], mode: str = "zero") -> None:
        """Puts parameters under sparsity masks, at any time in training; a mask that was there is replaced.

        Args:
            masks: Parameter, or its name where the optimizer was given named parameters -> bool tensor of
                the parameter's shape and on its device, True where an element is kept.
            mode: "zero": parameter and states are exactly 0 where the mask is False, at once and after every
                step, whatever the gradient there. "freeze": they are not touched there, bit for bit.
                (default: "zero")

        Raises:
            TypeError, ValueError: A mask does not fit, its parameter is not the optimizer's, there is no such
                mode, or an option is out of its range; the message names it. Nothing was changed.
            RuntimeError: A state does not fit its parameter, or has lost a moment. Nothing was changed.
            MemoryError: Windows, which are made with the mask, would not fit. Nothing was changed.
        """
        check_mode(mode)
        if not isinstance(masks, Mapping):
            raise TypeError(f"masks must map parameters or their names to masks, got {type(masks).__name__}")
        refuse_incomplete(self.param_groups, self.defaults)
        for group in self.param_groups:
            check_options(group)
        groups = {param: group for group in self.param_groups for param in group["params"]}
        found = {}
        for key, mask in masks.items():
            param, name = self._owned(key)
            check_has_values(param, name)
            check_param(param, name)
            check_mask(mask, param, name)
            if param in found:
                raise ValueError(f"{name} is given two masks, by its name and by itself: give one")
            others = {key: value for key, value in self.state.get(param, {}).items() if key != "mask"}
            check_state(param, others, groups[param], name)
            found[param] = mask
        without = [param for param in found if not there(self.state.get(param, {}))]
        refuse_what_does_not_fit((param, {}, groups[param]) for param in without)
        for param, mask in found.items():
            state = self.state[param]
            state["mask"] = pack(mask, param, mode)
            if not there(state):
                # All states, before the first step too: a mask alone is what a checkpoint looks like of which
                # torch.distributed.checkpoint had no place for the rest.
                prepare_state(param, state, groups[param])
            if mode == "zero":
                zero_left_out(mask, [param, *of_elements(state)])

    def masks(self) -> dict[Tensor, Tensor]:
        """Returns the masks: parameter -> bool tensor of its shape, True where an element is kept."""
        states = {
            param: self.state.get(param, {}) for group in self.param_groups for param in group["params"]
        }
        return {param: kept_of(state, param) for param, state in states.items() if "mask" in state}

    def remove_mask(self, param: Tensor | str) -> None:
        """Lets all elements of a parameter take the step again, from the values and states they have.

        Raises:
            ValueError: The parameter is not the optimizer's, or has no mask.
        """
        owned, name = self._owned(param)
        if "mask" not in self.state.get(owned, {}):
            raise ValueError(f"{name} has no mask")
        for key in MASK:
            self.state[owned].pop(key, None)

    def _owned(self, key: object) -> tuple[Tensor, str]:
        """Returns the parameter that is meant, and how messages call it."""
        names = param_names(self.param_groups)
        if isinstance(key, str):
            for group in self.param_groups:
                if key in group.get("param_names", ()):
                    param = group["params"][group["param_names"].index(key)]
                    return param, names[param]
            raise ValueError(
                f"no parameter of this optimizer is called {key!r}: make it with model.named_parameters(), "
                "or give the parameter itself"
            )
        if not isinstance(key, Tensor) or key not in names:
            shown = f"one of shape {list(key.shape)}" if isinstance(key, Tensor) else repr(key)
            raise ValueError(f"a mask must be for a parameter of this optimizer, got {shown}")
        return key, names[key]
