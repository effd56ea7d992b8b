"""Any sequence of steps, masks, copies and checkpoints keeps every mask's promises."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import DTYPES, bits, made, set_grad, some, states
from stepping import BACKENDS, OPTIONS, through_a_file
from torch import Tensor

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.agreement import differing_bits
from grokfused.step import mask


class Watched:
    """One optimizer, and the mask, mode and values that each parameter must keep to."""

    def __init__(
        self, kind: type[GrokAdam], dtype: torch.dtype, state_dtype: torch.dtype, backend: str
    ) -> None:
        self.params = [made(shape, dtype, seed) for seed, shape in enumerate(([33, 3], [40], [2, 64]))]
        self.optimizer = kind(self.params, state_dtype=state_dtype, backend=backend, amsgrad=True, **OPTIONS)
        self.masks: dict[int, tuple[Tensor, str, list[Tensor]]] = {}
        self.backend, self.count = backend, 0

    def arrays(self, index: int) -> list[Tensor]:
        return [self.params[index].detach(), *states(self.optimizer, self.params[index])]

    def set(self, index: int, density: float, mode: str) -> None:
        kept = some(self.params[index], density, seed=self.count)
        self.optimizer.set_mask(self.params[index], kept, mode)
        self.masks[index] = (kept, mode, [bits(array).clone() for array in self.arrays(index)])

    def remove(self, index: int) -> None:
        if index in self.masks:
            self.optimizer.remove_mask(self.params[index])
            del self.masks[index]

    def step(self, index: int) -> None:
        """Steps on all parameters but one."""
        self.count += 1
        for number, param in enumerate(self.params):
            set_grad(param, 10 * self.count + number)
            if number == index:
                param.grad = None
        self.optimizer.step()

    def save_and_load(self, index: int) -> None:
        saved = through_a_file(self.optimizer.state_dict())
        self.params = [param.detach().clone().requires_grad_() for param in self.params]
        self.optimizer = type(self.optimizer)(self.params, backend=self.backend)
        self.optimizer.load_state_dict(saved)

    def check(self) -> None:
        found = self.optimizer.masks()
        assert [index for index, param in enumerate(self.params) if param in found] == sorted(self.masks)
        for index, (kept, mode, before) in self.masks.items():
            assert torch.equal(found[self.params[index]], kept)
            # States that a first step has made since begin at 0.
            zeros = [torch.zeros_like(bits(array)) for array in self.arrays(index)]
            expected = [*before, *zeros[len(before) :]] if mode == "freeze" else zeros
            for array, old in zip(self.arrays(index), expected, strict=True):
                assert torch.equal(bits(array)[~kept], old[~kept])


INDEX = st.integers(0, 2)
ACTIONS = st.one_of(
    st.tuples(st.just("set"), INDEX, st.sampled_from([0.0, 0.1, 0.6, 1.0]), st.sampled_from(mask.MODES)),
    st.tuples(st.sampled_from(["step", "step", "remove", "save_and_load"]), INDEX),
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from([GrokAdam, GrokAdamW]),
    dtype=st.sampled_from(DTYPES),
    state_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    sequence=st.lists(ACTIONS, min_size=3, max_size=12),
)
def test_any_sequence_keeps_the_promises_of_every_mask(kind, dtype, state_dtype, sequence) -> None:
    worlds = [Watched(kind, dtype, state_dtype, backend) for backend in BACKENDS]
    for name, *arguments in [*sequence, ("step", 2)]:
        for world in worlds:
            getattr(world, name)(*arguments)
            world.check()
    for first, second in zip(*(w.params for w in worlds), strict=True):
        assert differing_bits(first.detach(), second.detach()) == 0
