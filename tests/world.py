"""An optimizer and all that users do to it between steps; tests/test_sequences.py puts it in any order."""

import copy
import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from grokfused import GrokAdam

OPTIONS = {
    "lr": 3e-3,
    "betas": (0.87, 0.993),
    "eps": 3e-7,
    "weight_decay": 0.037,
    "alpha": 0.93,
    "lamb": 1.7,
    "seed": 5,
    "param_rounding": "kahan",
    "window_size": 3,
}
SHAPES = [[2, 3, 4, 5], [4, 4], [7], [], [33, 9], [5, 3], [70]]
DTYPES = [torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.float32]
DTYPES += [torch.complex64, torch.float64]


def new_param(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
    return drawn(shape, dtype, torch.Generator().manual_seed(seed)).requires_grad_()


def drawn(shape: Sequence[int], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    wide = dtype if dtype in (torch.complex64, torch.float64) else torch.float32
    return torch.randn(shape, generator=random, dtype=wide).to(dtype)


class World:
    """An optimizer, its parameters, and everything that may be done to them between steps.

    The same actions in two worlds of different backends must leave the same bits.
    """

    def __init__(self, kind: type[GrokAdam], backend: str, state_dtype: torch.dtype | str) -> None:
        self.params = [new_param(*pair, seed) for seed, pair in enumerate(zip(SHAPES, DTYPES, strict=True))]
        groups = [{"params": self.params[:3]}, {"params": self.params[3:], "lamb": 0.6}]
        self.backend = backend
        self.optimizer = kind(groups, backend=backend, state_dtype=state_dtype, **OPTIONS)
        self.dropped: set[int] = set()
        self.steps = 0

    def step(self) -> None:
        """Takes a step on every parameter whose gradient was not dropped since the last one."""
        random = torch.Generator().manual_seed(self.steps)
        for index, param in enumerate(self.params):
            grad = drawn(param.shape, param.dtype, random)
            param.grad = None if index in self.dropped else grad
        self.dropped.clear()
        self.steps += 1
        self.optimizer.step()

    def step_beside_a_reader(self) -> None:
        """Takes a step in another thread, while this one looks at the states."""
        with ThreadPoolExecutor(1) as pool:
            step = pool.submit(self.step)
            while not step.done():
                [state.get("exp_avg") for state in list(self.optimizer.state.values())]
            step.result()

    def drop(self, index: int) -> None:
        self.dropped.add(index % len(self.params))

    def turn_grad(self, index: int) -> None:
        """Takes a step on gradients of which one lies in memory unlike its parameter."""
        for param in self.params:
            if param.grad is None:
                param.grad = torch.full_like(param, 0.25)
        param = self.params[index % len(self.params)]
        param.grad = turned(param.grad.clone())
        self.optimizer.step()

    def set_option(self, group: int, name: str, value: Any) -> None:
        own = self.optimizer.param_groups[group % len(self.optimizer.param_groups)]
        if not (value == "nearest" and name == "state_rounding" and own["state_dtype"] == "block8"):
            own[name] = value

    def add_group(self, index: int) -> None:
        index %= len(SHAPES)
        param = new_param(SHAPES[index], DTYPES[index], seed=len(self.params))
        self.params.append(param)
        self.optimizer.add_param_group({"params": [param], "alpha": 0.8})

    def save_and_load(self) -> None:
        """Puts new parameters and a fresh optimizer of other options in the place of the old ones."""
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        news = {param: param.detach().clone().requires_grad_() for param in self.params}
        groups = [{"params": [news[p] for p in group["params"]]} for group in self.optimizer.param_groups]
        self.params = list(news.values())
        self.optimizer = type(self.optimizer)(groups, lr=0.5, lamb=0.1, backend=self.backend)
        with warnings.catch_warnings():  # of a window that the filter, just turned on, has yet to begin
            warnings.filterwarnings("ignore", ".*have no window of gradients")
            self.optimizer.load_state_dict(torch.load(file, weights_only=True))

    def turn_param(self, index: int) -> None:
        """Changes the memory order of a parameter, as model.to(memory_format=...) does."""
        param = self.params[index % len(self.params)]
        param.data = turned(param.data)

    def cast(self, index: int, dtype: torch.dtype) -> None:
        """Changes the dtype of a parameter, as model.bfloat16() does."""
        param = self.params[index % len(self.params)]
        if param.is_complex():
            return
        if param.dtype is torch.float64:  # its states have too many bits for another dtype
            self.optimizer.state.pop(param, None)
        param.grad = None
        param.data = param.data.to(dtype)

    def set_mask(self, index: int, density: float, mode: str) -> None:
        """Puts a parameter under a mask of whole words and single elements, half and half."""
        param = self.params[index % len(self.params)]
        if param.is_complex():
            return
        random = torch.Generator().manual_seed(self.steps)
        mask = torch.rand(param.shape, generator=random) < density
        if param.dim() > 1:
            mask[: len(mask) // 2] = density > 0.5
        self.optimizer.set_mask(param, mask, mode)

    def remove_mask(self, index: int) -> None:
        param = self.params[index % len(self.params)]
        if param in self.optimizer.masks():
            self.optimizer.remove_mask(param)

    def clear(self, index: int) -> None:
        """Drops a parameter's state, or with it all states."""
        if index == 0:
            self.optimizer.state.clear()
        self.optimizer.state.pop(self.params[index % len(self.params)], None)

    def rebind(self, index: int) -> None:
        """Gives the states of a parameter other memory, as code that moves or offloads them does."""
        for key, tensor in self.optimizer.state.get(self.params[index % len(self.params)], {}).items():
            if isinstance(tensor, Tensor):
                tensor.data = tensor.data.clone(memory_format=torch.preserve_format)
                assert key != "mask"

    def exchange(self, index: int) -> None:
        """Puts other tensors in the place of a parameter's states, of which one has other values."""
        state = self.optimizer.state.get(self.params[index % len(self.params)], {})
        for key in ("exp_avg", "grad_ema"):
            if key in state:
                state[key] = changed(state[key].clone(memory_format=torch.preserve_format))

    def write_state(self, index: int) -> None:
        """Writes a state in place, where a mask prunes it too."""
        state = self.optimizer.state.get(self.params[index % len(self.params)], {})
        if "exp_avg_sq" in state:
            changed(state["exp_avg_sq"])

    def count(self, index: int, kind: str) -> None:
        """Puts the user's own step counter in the place of the optimizer's."""
        state = self.optimizer.state.get(self.params[index % len(self.params)], {})
        if "step" in state:
            step = float(state["step"])
            makers = {
                "number": lambda: int(step),
                "float64": lambda: torch.tensor(step, dtype=torch.float64),
                "int64 [1]": lambda: torch.tensor([int(step)]),
            }
            state["step"] = makers[kind]()

    def move(self, index: int) -> None:
        """Moves a parameter to the next group."""
        groups = self.optimizer.param_groups
        for number, group in enumerate(groups):
            if len(group["params"]) > 1:
                param = group["params"].pop(index % len(group["params"]))
                groups[(number + 1) % len(groups)]["params"].append(param)
                return

    def share(self, index: int) -> None:
        """Adds a parameter that shares half of its memory with another one."""
        owner = self.params[index % len(self.params)]
        if owner.dim() and owner.is_contiguous():
            flat = owner.data.view(-1)
            self.params.append(flat[len(flat) // 2 :].detach().requires_grad_())
            self.optimizer.add_param_group({"params": [self.params[-1]], "lr": 0.01})

    def disturb(self, index: int) -> None:
        """Writes a parameter as any code may."""
        param = self.params[index % len(self.params)]
        param.data.add_(0.5)

    def duplicate(self) -> None:
        self.params, self.optimizer = copy.deepcopy((self.params, self.optimizer))

    def results(self) -> dict[str, Tensor]:
        found = {}
        for index, param in enumerate(self.params):
            found[f"{index} param"] = param.detach()
            for key, state in self.optimizer.state.get(param, {}).items():
                value = state.words if key == "mask" else torch.as_tensor(state)
                found[f"{index} {key}"] = value.float() if key == "step" else value
        return found


def changed(state: Tensor) -> Tensor:
    """Writes a state in place: numbers, or codes of 8 bits."""
    return state.add_(16 if state.dtype is torch.uint8 else 0.125)


def turned(tensor: Tensor) -> Tensor:
    """Returns the same values in another memory order: C order and its reverse by turns."""
    if tensor.dim() > 1 and tensor.is_contiguous():
        return (
            tensor.permute(*reversed(range(tensor.dim())))
            .contiguous()
            .permute(*reversed(range(tensor.dim())))
        )
    return tensor.contiguous()
