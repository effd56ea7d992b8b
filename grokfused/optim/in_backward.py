"""Steps during the backward pass: each gradient is used and freed as soon as it is there.

The gradients of a model then never exist all at once. A parameter's step depends on no other parameter, so
the values are those of the ordinary step, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

from torch import Tensor

from grokfused.optim import op
from grokfused.state.storage import check_initialized
from grokfused.step.members import Members, Name
from grokfused.step.wrappers import exchanged_by_ddp


class Optimizer(op.Optimizer, Protocol):
    """What this needs of a GrokAdam."""

    _in_backward: StepInBackward | None
    grad_scale: Tensor | None
    found_inf: Tensor | None


def step_in_backward(optimizer: Optimizer) -> StepInBackward:
    """Steps each parameter of the optimizer inside ``backward()``, and sets its gradient to None.

    ``optimizer.step()`` is then no longer needed. It may be called, after every backward pass, by a loop or
    a scheduler that expects it: it runs its closure and step hooks, checks, and steps nothing. Schedulers,
    masks, groups and checkpoints work as ever. Gradients cannot be looked at after ``backward()``.

    Every backward pass is a step: to accumulate gradients, add the losses before it. A parameter whose
    gradient comes in two parts in one pass (reentrant checkpointing) takes two steps; where
    ``optimizer.step()`` is called, it raises on both. A copy of the optimizer, deep or pickled, takes
    ordinary steps.

    Args:
        optimizer: A GrokAdam or GrokAdamW whose parameters have no gradients now.

    Returns:
        A handle; its ``remove()``, or the end of its ``with`` block, brings the ordinary step back.

    Raises:
        TypeError: It is another optimizer.
        ValueError: ``max_grad_norm`` is set: it needs all gradients before the first step. Or a parameter is
            not initialised yet.
        RuntimeError: A parameter has a gradient, or the optimizer steps in backward already. Or the model
            is wrapped in ``DistributedDataParallel``, which exchanges gradients after the step would be
            taken, so that the processes would part. And later, in ``backward()`` or ``optimizer.step()``:
            the same, a loss scale, a gradient left over, one that was accumulated, or what an ordinary step
            raises.
    """
    return StepInBackward(optimizer)


class StepInBackward:
    """The handle of ``step_in_backward``."""

    def __init__(self, optimizer: Optimizer) -> None:
        if not hasattr(optimizer, "_in_backward"):
            raise TypeError(f"step_in_backward takes a GrokAdam or GrokAdamW, got {type(optimizer).__name__}")
        if optimizer._in_backward is not None:
            raise RuntimeError("this optimizer steps in backward already: remove() that handle first")
        self.optimizer = optimizer
        self._steps: Counter[Tensor] = Counter()  # since the last call of optimizer.step()
        self._guesses: dict[Tensor, tuple[int, int]] = {}  # where a parameter was found the last time
        for group in optimizer.param_groups:
            _refuse_clipping(group)
        self._refuse_leftovers("zero_grad() first")
        self._refuse_ddp()
        self._begun = False
        self._listed = Counter(self._params())
        for param in self._listed:
            check_initialized(param, self._name(param))
        # No other dtype can have a gradient.
        trainable = [param for param in self._listed if param.is_floating_point() or param.is_complex()]
        self._hooks = [_hook(param, self._step) for param in trainable]
        optimizer._in_backward = self

    def remove(self) -> None:
        """Gives stepping back to ``optimizer.step()``; a second time it does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.optimizer._in_backward is self:
            self.optimizer._in_backward = None

    def __enter__(self) -> StepInBackward:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def check(self) -> None:
        """Raises RuntimeError where ``optimizer.step()`` finds the backward pass did not do its work."""
        self._refuse_loss_scale()
        steps, self._steps = self._steps, Counter()
        for param, count in steps.items():
            if count > 1:
                raise RuntimeError(
                    f"{self._name(param)} has taken {count} steps since the last optimizer.step(): "
                    "gradients cannot be accumulated with step_in_backward; add the losses, go backward once"
                )
        self._refuse_leftovers(
            "with step_in_backward it had to be stepped in the backward pass. A gradient set by hand, or a "
            "group added later, needs the ordinary step, or a new handle"
        )

    def _params(self) -> list[Tensor]:
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    def _name(self, param: Tensor) -> Name:
        return Name(self.optimizer.param_groups, param)

    def _refuse_leftovers(self, what_to_do: str) -> None:
        for param in self._params():
            if param.grad is not None:
                raise RuntimeError(f"{self._name(param)} has a gradient: {what_to_do}")

    def _refuse_loss_scale(self) -> None:
        for name in ("grad_scale", "found_inf"):
            if getattr(self.optimizer, name, None) is not None:
                raise RuntimeError(
                    f"{name} is set, but the steps were taken in the backward pass, with the gradients of "
                    "the scaled loss: step_in_backward and GradScaler cannot be combined; train in bfloat16"
                )

    def _refuse_ddp(self) -> None:
        param = exchanged_by_ddp(self._params())
        if param is not None:
            raise RuntimeError(
                f"{self._name(param)} is one of a DistributedDataParallel model, which exchanges gradients "
                "after step_in_backward has used them: take ordinary steps, or use fully_shard (FSDP2)"
            )

    def _group_of(self, param: Tensor) -> dict[str, Any] | None:
        """Returns the group that a parameter is in now; None where it was taken out of the optimizer."""
        groups = self.optimizer.param_groups
        number, place = self._guesses.get(param, (0, 0))
        guessed = [group["params"] for group in groups[number : number + 1]]
        if any(other is param for params in guessed for other in params[place : place + 1]):
            return groups[number]
        for number, group in enumerate(groups):
            for place, other in enumerate(group["params"]):
                if other is param:
                    self._guesses[param] = number, place
                    return group
        return None

    def _step(self, param: Tensor) -> None:
        """Steps one parameter whose gradient has just come, and frees the gradient."""
        if not self._begun:
            self._refuse_ddp()  # the model may have been wrapped since
            self._begun = True
        self._refuse_loss_scale()
        group = self._group_of(param)
        if group is None or param.grad is None:
            return  # taken out of the optimizer, or taken away by another hook
        _refuse_clipping(group)
        times = self._listed[param]  # one step for each
        columns = [param] * times, [param] * times, [param.grad] * times, [0] * times
        op.take(self.optimizer, Members(self.optimizer, [group], *columns), {})
        self._steps[param] += 1
        param.grad = None


def _refuse_clipping(group: dict[str, Any]) -> None:
    if group["max_grad_norm"] is not None:
        raise ValueError(
            f"max_grad_norm={group['max_grad_norm']} cannot be used with step_in_backward: the norm is "
            "that of all gradients, and the first is stepped before the last is there"
        )


def _hook(param: Tensor, step: Any) -> Any:
    """Registers the hook, on a parameter that is frozen now too: torch keeps it for when it no longer is."""
    trained = param.requires_grad
    param.requires_grad_(True)
    try:
        return param.register_post_accumulate_grad_hook(step)
    finally:
        param.requires_grad_(trained)
