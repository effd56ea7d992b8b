"""grokfused.compat.GrokAdamW beside PyPI's grokadamw: where both agree, and each difference."""

import copy
import inspect
import math
import re
from itertools import chain
from typing import Any

import pytest
import torch
from stepping import assert_same_bits, new_param, randn, through_a_file, train, values
from torch import Tensor

from grokfused.compat import GrokAdamW
from grokfused.step.members import with_grads

# What grokadamw says of torch.cuda.amp.autocast, which it enters in each step.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.cuda.amp.autocast",
    "ignore:User provided device_type of 'cuda'",
    "ignore:CUDA is not available",
)
OPTIONS = {"lr": 1e-2, "betas": (0.87, 0.993), "weight_decay": 0.05, "alpha_init": 0.9, "lamb": 1.3}
SHAPES = ((7, 3), (5,), (4, 2, 2), ())
AGREES = {"gamma": 0.0, "gradient_clipping": 0.0}  # where their faults do not act
# Largest difference, of the largest element, measured over 100 steps: 8.5e-8, less than one float32 rounding.
TOLERANCE = 2e-7


def params_of(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [new_param(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(SHAPES)]


def of_two_groups(kind: Any, **options: Any) -> Any:
    params = params_of()
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 3e-3, "weight_decay": 0.3}]
    return kind(groups, **{**OPTIONS, **options})


def params_in(optimizer: Any) -> list[Tensor]:
    return [param.detach() for group in optimizer.param_groups for param in group["params"]]


def difference(ours: Any, grokadamw: Any) -> float:
    """The largest difference of two optimizers' parameters, of the largest element of each."""
    pairs = zip(params_in(ours), params_in(grokadamw), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


class TestAsTheirs:
    def test_it_takes_their_arguments_in_their_order_with_their_defaults(self, grokadamw) -> None:
        def arguments(kind: Any) -> list[tuple[str, Any, Any]]:
            found = inspect.signature(kind.__init__).parameters.values()
            return [(each.name, each.default, each.kind) for each in found]

        assert arguments(GrokAdamW) == arguments(grokadamw)

    def test_on_one_stream_of_gradients_both_take_the_same_steps(self, grokadamw) -> None:
        signal = {}
        functions = [lambda: signal["now"], lambda: None]
        ours, other = (
            of_two_groups(kind, grokking_signal_fns=functions, **AGREES) for kind in (GrokAdamW, grokadamw)
        )
        start = [param.clone() for param in params_in(ours)]
        for step in range(100):
            signal["now"] = step % 7 / 7
            for optimizer in (ours, other):
                train(optimizer, 1, seed=step)
        assert difference(ours, other) <= TOLERANCE
        assert not any(torch.equal(a, b) for a, b in zip(start, params_in(ours), strict=True))
        states = [state for group in other.param_groups for state in group["state"].values()]
        for param, state in zip(params_in(ours), states, strict=True):
            (mine,) = [state for key, state in ours.state.items() if key.data_ptr() == param.data_ptr()]
            assert mine["step"] == state["step"] == 100
            for name, other_name in (
                ("exp_avg", "exp_avg"),
                ("exp_avg_sq", "exp_avg_sq"),
                ("grad_ema", "grok_ema"),
            ):
                # grokadamw orders and fuses its roundings in another way.
                torch.testing.assert_close(mine[name], state[other_name], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("losses", [(0.5, 2.0), (2.0, 0.5), (None, 2.0), (0.0, 0.0)], ids=str)
    def test_losses_in_the_groups_make_the_signal(self, grokadamw, losses) -> None:
        ours, other = (of_two_groups(kind, **AGREES) for kind in (GrokAdamW, grokadamw))
        for optimizer in (ours, other):
            optimizer.param_groups[1].update(zip(("train_loss", "eval_loss"), losses, strict=True))
            train(optimizer, 20)
        alphas = [group["alpha"] for group in ours.as_stepped(with_grads(ours)).groups]
        assert alphas == [0.9, 0.9 * math.exp(-0.1 * 0.75) if losses == (0.5, 2.0) else 0.9]
        assert difference(ours, other) <= TOLERANCE

    def test_their_options_in_a_group_count_from_the_next_step_on(self, grokadamw) -> None:
        optimizers = [
            of_two_groups(kind, grokking_signal_fns=[lambda: 1.0], **AGREES)
            for kind in (GrokAdamW, grokadamw)
        ]
        for optimizer in optimizers:
            train(optimizer, 3)
            for group in optimizer.param_groups:
                group.update(alpha_init=0.5, lamb=0.7, grokking_signal_decay_rate=1.0)
            train(optimizer, 10)
        assert difference(*optimizers) <= TOLERANCE

    def test_the_signal_is_asked_for_after_the_closure_and_hooks_run_once(self) -> None:
        said: list[str] = []
        optimizer = GrokAdamW([param := new_param(3)], grokking_signal_fns=[lambda: said.append("signal")])
        param.grad = torch.ones(3)
        optimizer.register_step_pre_hook(lambda *_: said.append("before"))
        optimizer.register_step_post_hook(lambda *_: said.append("after"))
        assert optimizer.step(lambda: said.append("closure") or 7.0) == 7.0
        assert said == ["before", "closure", "signal", "after"]


class TestDifferences:
    """One test for each line of the docstring's list; its docstring is that line."""

    def test_bias_correction(self, grokadamw) -> None:
        """The first moment of each layer is corrected by that layer's beta1; theirs by the first layer's."""
        firsts = []
        for kind in (GrokAdamW, grokadamw):
            params = [torch.zeros(1, requires_grad=True) for _ in range(11)]
            optimizer = kind(params, lr=0.25, lamb=0.0, weight_decay=0.0)
            for param in params:
                param.grad = torch.ones(1)
            optimizer.step()
            firsts.append([-param.item() / 0.25 for param in params])
        assert firsts[0] == pytest.approx([1.0] * 11, rel=1e-6)
        expected = [(1 - 0.9 * 0.9**layer) / (1 - 0.9) for layer in range(11)]
        assert firsts[1] == pytest.approx(expected, rel=1e-4)
        assert max(expected) > 6.8

    def test_clipping(self, grokadamw) -> None:
        """gradient_clipping limits the norm of all gradients together; theirs that of each by itself."""
        ours, other = (
            of_two_groups(kind, gamma=0.0, gradient_clipping=0.5) for kind in (GrokAdamW, grokadamw)
        )
        together, alone = (of_two_groups(grokadamw, **AGREES) for _ in range(2))
        for step in range(20):
            train(ours, 1, seed=step)
            train(other, 1, seed=step)
            for optimizer in (together, alone):
                lists = [[param for group in optimizer.param_groups for param in group["params"]]]
                lists = lists if optimizer is together else [[param] for param in lists[0]]
                random = torch.Generator().manual_seed(step)
                for param in chain.from_iterable(lists):
                    param.grad = torch.randn(param.shape, generator=random)
                for params in lists:
                    torch.nn.utils.clip_grad_norm_(params, 0.5)
                optimizer.step()
        assert difference(ours, together) <= 2 * TOLERANCE
        assert difference(other, alone) <= 2 * TOLERANCE
        assert difference(ours, other) > 0.01

    def test_gradients(self, grokadamw) -> None:
        """p.grad is not written; theirs is clipped in place."""
        for kind, kept in ((GrokAdamW, True), (grokadamw, False)):
            param = new_param(5)
            param.grad = given = 9.0 * randn(5)
            before = given.clone()
            kind([param]).step()
            assert param.grad is given
            assert torch.equal(given, before) == kept

    def test_eps(self, grokadamw) -> None:
        """eps is added to the bias-corrected root, as in torch; theirs to the root before that correction."""
        params = {kind: new_param(50) for kind in (torch.optim.AdamW, GrokAdamW, grokadamw)}
        for kind, param in params.items():
            optimizer = kind(
                [param], lr=1e-2, **({} if kind is torch.optim.AdamW else {**AGREES, "lamb": 0.0})
            )
            for step in range(5):
                param.grad = 1e-7 * randn(50, seed=step)
                optimizer.step()
        adamw, ours, other = (param.detach() for param in params.values())
        assert (ours - adamw).abs().max() <= 1e-6
        assert (other - adamw).abs().max() > 0.01

    @pytest.mark.filterwarnings("ignore:.*converting a tensor with requires_grad=True")
    def test_saved_states(self, grokadamw) -> None:
        """A saved state holds tensors by number, and resumes; theirs holds parameters, and starts anew."""
        for kind in (GrokAdamW, grokadamw):
            whole = of_two_groups(kind)
            train(whole, 5)
            resumed = of_two_groups(kind)
            saved = through_a_file(whole.state_dict())
            for param, value in zip(params_in(resumed), params_in(whole), strict=True):
                param.copy_(value)
            resumed.load_state_dict(saved)
            for optimizer in (whole, resumed):
                train(optimizer, 5, seed=9)
            if kind is GrokAdamW:
                assert_same_bits(values(whole), values(resumed))
            else:
                assert saved["state"] == {}
                assert all(isinstance(key, Tensor) for key in saved["param_groups"][0]["state"])
                assert difference(whole, resumed) > 1e-3

    def test_states(self, grokadamw) -> None:
        """States lie beside their parameter, in float32; theirs on the CPU, in the parameter's dtype."""
        for kind, dtype in ((GrokAdamW, torch.float32), (grokadamw, torch.bfloat16)):
            optimizer = kind([param := new_param(4, dtype=torch.bfloat16)])
            train(optimizer, 1)
            state = optimizer.state[param] or optimizer.param_groups[0]["state"][param]
            assert state["exp_avg_sq"].dtype == dtype

    def test_groups(self, grokadamw) -> None:
        """Layers are the parameters of a group that require a gradient; theirs those that have one now."""
        ours, other = (
            of_two_groups(kind, gamma=0.5, gradient_clipping=0.0, lamb=0.0) for kind in (GrokAdamW, grokadamw)
        )
        firsts = []
        for optimizer in (ours, other):
            second = [param for group in optimizer.param_groups for param in group["params"]][1]
            second.grad = torch.ones(5)  # and none for the first
            optimizer.step()
            state = optimizer.state[second] or optimizer.param_groups[0]["state"][second]
            firsts.append(state["exp_avg"])
        torch.testing.assert_close(firsts[0], torch.full((5,), 1 - 0.87 / 2))
        torch.testing.assert_close(firsts[1], torch.full((5,), 1 - 0.87))
        frozen = of_two_groups(GrokAdamW, gamma=0.5, gradient_clipping=0.0, lamb=0.0)
        first, second = frozen.param_groups[0]["params"]
        first.requires_grad_(False)
        second.grad = torch.ones(5)
        frozen.step()
        torch.testing.assert_close(frozen.state[second]["exp_avg"], torch.full((5,), 1 - 0.87))

    def test_signals_below_0(self, grokadamw) -> None:
        """A signal below 0 counts as 0; theirs raises alpha above alpha_init, beyond 1 too."""
        ours, without, other = (
            of_two_groups(
                kind, grokking_signal_fns=[lambda now=signal: now], grokking_signal_decay_rate=1.0, **AGREES
            )
            for kind, signal in ((GrokAdamW, -1.0), (grokadamw, 0.0), (grokadamw, -1.0))
        )
        for optimizer in (ours, without, other):
            train(optimizer, 50)
        assert difference(ours, without) <= TOLERANCE
        assert difference(other, without) > 0.01

    def test_losses(self, grokadamw) -> None:
        """A loss below 0, and a loss or signal that is not finite, is an error; theirs goes on."""
        for losses in ((math.nan, 1.0), (1.0, math.inf), (-1.0, 1.0)):
            for kind in (GrokAdamW, grokadamw):
                optimizer = of_two_groups(kind)
                optimizer.param_groups[0].update(zip(("train_loss", "eval_loss"), losses, strict=True))
                before = copy.deepcopy(params_in(optimizer))
                if kind is grokadamw:
                    train(optimizer, 1)
                    continue
                with pytest.raises(ValueError, match=r"(train|val)_loss must be a finite number >= 0"):
                    train(optimizer, 1)
                assert all(map(torch.equal, before, params_in(optimizer)))
        optimizer = of_two_groups(GrokAdamW, grokking_signal_fns=[lambda: math.nan])
        with pytest.raises(ValueError, match="must return a finite number or None, got nan"):
            train(optimizer, 1)

    def test_there_is_one_for_each_line_of_the_docstring(self) -> None:
        lines = re.findall(r"^    - (.*)$", GrokAdamW.__doc__, re.MULTILINE)
        tests = [getattr(type(self), name).__doc__ for name in vars(type(self)) if name.startswith("test_")]
        assert lines == [line for line in tests if line]
