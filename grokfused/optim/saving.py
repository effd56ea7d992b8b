"""The optimizers' state dicts: ours, loaded and saved, and one for torch.optim."""

from __future__ import annotations

from typing import Any

from torch._compile import _disable_dynamo

from grokfused.state.for_torch import for_torch
from grokfused.state.state_dict import load, saved


class Saving:
    """The part of an optimizer that saves its state and loads one."""

    @_disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Returns the state as torch.optim does, in tensors only.

        A mask is a uint8 tensor of its parameter's shape: 1 where an element takes the step; where it is left
        out, 2 in mode "zero", 3 in mode "freeze". A filter's memory is left out where it was turned on late
        and an overflow has cancelled its first step: it is made anew.
        """
        return saved(self)

    def torch_state_dict(self) -> dict[str, Any]:
        """Returns a state dict that torch.optim's optimizer of the same parameters loads and goes on from.

        That of GrokAdam is for torch.optim.Adam, that of GrokAdamW for AdamW (also ``fused=True``). It holds
        the step counts, the moments, widened to float32 where they are bfloat16, and the options that torch
        has; the slow gradient and the options that are ours are left out, ``max_grad_norm`` with them. It
        shares no memory with this optimizer. torch's ``load_state_dict`` rounds the moments to the dtype of
        their parameter.

        Raises:
            ValueError: A parameter has a mask, which torch.optim would ignore; the message names it.
            RuntimeError: A state does not fit its parameter, or has lost a moment.
        """
        return for_torch(self)

    @_disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict; states keep the dtype they were saved in and get memory of their own.

        Takes the state dicts of torch.optim.Adam and AdamW too: the moments are adopted and the slow
        gradient starts at the next gradient. ``kahan_comp`` of a parameter that has another dtype by now is
        left out, as in a step: what one rounding cut off says nothing of another's values.

        Raises:
            ValueError: The state dict does not fit (other groups, options out of range, other shapes, missing
                states, masks or values, or a dtype that would lose bits). Nothing was changed.
        """
        load(self, state_dict)
