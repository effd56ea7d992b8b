"""grokfused.compat.GrokAdamW's state: what is loaded, saved, copied and refused."""

import copy
import pickle
from typing import Any

import pytest
import torch
from stepping import assert_same_bits, new_param, through_a_file, train, values
from test_compat import AGREES, OPTIONS, TOLERANCE, difference, of_two_groups, params_in

import grokfused
from grokfused import step_in_backward
from grokfused.compat import GrokAdamW
from grokfused.step.members import with_grads

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.cuda.amp.autocast",
    "ignore:User provided device_type of 'cuda'",
    "ignore:CUDA is not available",
)


def first_betas(optimizer: GrokAdamW) -> list[float]:
    """The first beta of each parameter in a step."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    stepped = optimizer.as_stepped(with_grads(optimizer))
    return [stepped.groups[number]["betas"][0] for number in stepped.group_of]


def with_values_of(optimizer: Any, other: Any) -> Any:
    for param, value in zip(params_in(optimizer), params_in(other), strict=True):
        param.copy_(value)
    return optimizer


class TestTheirs:
    @pytest.mark.parametrize("through", [through_a_file, copy.deepcopy], ids=["a file", "a copy"])
    def test_its_run_is_gone_on_with(self, grokadamw, through) -> None:
        other = of_two_groups(grokadamw, **AGREES)
        train(other, 10)
        other.param_groups[0]["lr"] = 5e-3
        ours = with_values_of(of_two_groups(GrokAdamW, gamma=0.0, lr=1.0, gradient_clipping=7.0), other)
        ours.load_state_dict(through(other.state_dict()))
        assert [group["lr"] for group in ours.param_groups] == [5e-3, 3e-3]
        for optimizer in (ours, other):
            train(optimizer, 10, seed=9)
        assert difference(ours, other) <= TOLERANCE

    def test_beside_its_own_parameters_late_gradients_are_told_apart(self, grokadamw) -> None:
        params = [new_param(3, seed=n) for n in range(3)]
        other = grokadamw(params)
        for param in reversed(params):
            param.grad = torch.ones(3)
            other.step()
        saved = other.state_dict()
        ours = GrokAdamW(params)
        ours.load_state_dict(saved)
        assert [ours.state[param]["step"].item() for param in params] == [1, 2, 3]
        for param in params:
            assert torch.equal(
                ours.state[param]["grad_ema"], other.param_groups[0]["state"][param]["grok_ema"]
            )
        fresh = GrokAdamW([new_param(3, seed=n) for n in range(3)])
        with pytest.raises(
            ValueError, match="has 3 states for 3 parameters, in the order of their first gradients"
        ):
            fresh.load_state_dict(through_a_file(saved))
        assert not fresh.state

    def test_of_what_its_loading_leaves_behind_the_newest_counts(self, grokadamw) -> None:
        first, second = (of_two_groups(grokadamw, **AGREES) for _ in range(2))
        train(first, 4)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        train(second, 3)
        saved = through_a_file(second.state_dict())
        assert len(saved["param_groups"][0]["state"]) == 4
        ours = of_two_groups(GrokAdamW, **AGREES)
        ours.load_state_dict(saved)
        assert {state["step"].item() for state in ours.state.values()} == {3}

    def test_layers_get_the_betas_that_were_saved(self, grokadamw) -> None:
        other = of_two_groups(grokadamw, gamma=0.5)
        train(other, 2)
        ours = of_two_groups(GrokAdamW, gamma=0.1, betas=(0.5, 0.9))
        ours.load_state_dict(through_a_file(other.state_dict()))
        assert [group["betas"] for group in ours.param_groups] == [(0.87, 0.993)] * 2
        assert first_betas(ours) == [0.87, 0.87 / 2] * 2

    def test_frozen_parameters_and_a_state_without_steps_are_no_obstacle(self, grokadamw) -> None:
        def of(kind: Any) -> Any:
            params = [new_param(3), new_param(4).requires_grad_(False), new_param(5)]
            return kind(params, gamma=0.5)

        other, ours = of(grokadamw), of(GrokAdamW)
        ours.load_state_dict(through_a_file(other.state_dict()))
        assert not ours.state
        for param in other.param_groups[0]["params"]:
            param.grad = torch.ones_like(param) if param.requires_grad else None
        other.step()
        ours.load_state_dict(through_a_file(other.state_dict()))
        assert [param.numel() for param in ours.state] == [3, 5]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_narrow_states_are_widened(self, grokadamw, dtype) -> None:
        other, ours = (kind([new_param(6, dtype=dtype)]) for kind in (grokadamw, GrokAdamW))
        train(other, 2)
        ours.load_state_dict(through_a_file(other.state_dict()))
        (state,), (saved,) = ours.state.values(), other.param_groups[0]["state"].values()
        for name, theirs in (("exp_avg", "exp_avg"), ("exp_avg_sq", "exp_avg_sq"), ("grad_ema", "grok_ema")):
            assert saved[theirs].dtype is dtype
            assert state[name].dtype is torch.float32
            assert torch.equal(state[name], saved[theirs].float())
        train(ours, 1)

    def test_what_does_not_fit_is_refused_and_changes_nothing(self, grokadamw) -> None:
        other = of_two_groups(grokadamw, gamma=0.5)
        train(other, 2)
        saved = through_a_file(other.state_dict())
        lacking = {**saved, "param_groups": copy.deepcopy(saved["param_groups"])}
        for each in lacking["param_groups"][1]["state"].values():
            del each["grok_ema"]
        others = {
            "has 2 groups, this optimizer 1": GrokAdamW([new_param(2)]),
            "has 2 parameters in the state dict, 1 here": GrokAdamW(
                [{"params": [new_param(2)]}, {"params": [new_param(2)]}]
            ),
            "shape \\[7, 3\\], its parameter \\[3, 7\\]": GrokAdamW(
                [{"params": [new_param(3, 7), new_param(5)]}, {"params": [new_param(4, 2, 2), new_param()]}]
            ),
        }
        for message, optimizer in others.items():
            before = copy.deepcopy([{**group, "params": None} for group in optimizer.param_groups])
            with pytest.raises(ValueError, match=message):
                optimizer.load_state_dict(saved)
            assert [{**group, "params": None} for group in optimizer.param_groups] == before
            assert not optimizer.state
        with pytest.raises(ValueError, match=r"a state in param_groups\[1\] lacks \['grok_ema'\]"):
            of_two_groups(GrokAdamW).load_state_dict(lacking)


class TestOurs:
    def test_functions_are_not_saved_and_stay_those_that_there_are(self) -> None:
        functions = [lambda: 0.5]
        optimizer = of_two_groups(GrokAdamW, grokking_signal_fns=functions)
        train(optimizer, 2)
        saved = through_a_file(optimizer.state_dict())
        assert {group["grokking_signal_fns"] for group in saved["param_groups"]} == {None}
        assert optimizer.param_groups[0]["grokking_signal_fns"] is functions
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["grokking_signal_fns"] is functions

    @pytest.mark.parametrize(
        "again", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))]
    )
    def test_a_copy_steps_on_alike(self, again) -> None:
        optimizer = of_two_groups(GrokAdamW)
        train(optimizer, 3)
        copied = again(optimizer)
        for each in (optimizer, copied):
            train(each, 3)
            each.add_param_group({"params": [new_param(3)]})
            train(each, 1)
        assert_same_bits(values(optimizer), values(copied))

    def test_a_state_of_grokfused_loads(self) -> None:
        other = grokfused.GrokAdamW([new_param(5)], lr=0.5, alpha=0.3)
        train(other, 2)
        optimizer = GrokAdamW([new_param(5)], alpha_init=0.6)
        optimizer.load_state_dict(through_a_file(other.state_dict()))
        train(optimizer, 1)
        train(other, 1)
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["alpha_init"]) == (0.5, 0.6)
        (state,), (others,) = optimizer.state.values(), other.state.values()
        assert state["step"].item() == 3
        assert not torch.equal(state["grad_ema"], others["grad_ema"])  # the one of alpha_init

    def test_a_loss_scale_and_an_overflow_are_no_matter(self) -> None:
        optimizer = of_two_groups(GrokAdamW)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        before = copy.deepcopy(params_in(optimizer))
        for factor in (float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(
                sum((factor * param).sum() for group in optimizer.param_groups for param in group["params"])
            ).backward()
            scaler.step(optimizer)
            scaler.update()
            assert all(map(torch.equal, before, params_in(optimizer))) == (factor != 1.0)

    def test_a_group_that_does_not_fit_is_refused(self) -> None:
        optimizer = of_two_groups(GrokAdamW)
        with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
            optimizer.add_param_group({"params": [new_param(2), optimizer.param_groups[0]["params"][0]]})
        with pytest.raises(ValueError, match="Invalid gamma value: 2"):
            optimizer.add_param_group({"params": [new_param(2)], "gamma": 2})
        assert len(optimizer.param_groups) == 2

    def test_in_the_backward_pass_layers_are_the_same_and_clipping_is_refused(self) -> None:
        found = []
        for in_backward in (False, True):
            optimizer = of_two_groups(GrokAdamW, gamma=0.5, gradient_clipping=0.0)
            params = [param for group in optimizer.param_groups for param in group["params"]]
            handle = step_in_backward(optimizer) if in_backward else None
            for _ in range(3):
                sum(param.square().sum() for param in params).backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append(values(optimizer))
        assert_same_bits(*found)
        optimizer.param_groups[0]["gradient_clipping"] = 1.0
        with pytest.raises(ValueError, match=r"gradient_clipping=1\.0 cannot be used with step_in_backward"):
            params[0].sum().backward()
        handle.remove()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"alpha_init": 1.0}, r"Invalid alpha_init value: 1.0 \(alpha_init must be a number in \[0, 1\)"),
            ({"gamma": -0.1}, "Invalid gamma value: -0.1"),
            ({"grokking_signal_decay_rate": float("nan")}, "Invalid grokking_signal_decay_rate value: nan"),
            ({"gradient_clipping": None}, "gradient_clipping must be a number or infinity, got None"),
            ({"grokking_signal_fns": [0.5]}, "grokking_signal_fns must be None or a list of functions"),
            ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
            ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ],
        ids=str,
    )
    def test_what_is_out_of_range_is_refused_by_its_name(self, options, message) -> None:
        with pytest.raises((TypeError, ValueError), match=message):
            GrokAdamW([new_param(2)], **{**OPTIONS, **options})
        if not {"betas", "lr"} & set(options):
            optimizer = GrokAdamW([new_param(2)])
            optimizer.param_groups[0].update(options)
            with pytest.raises((TypeError, ValueError), match=message):
                train(optimizer, 1)
            assert not optimizer.state

    def test_a_function_that_raises_is_left_out_with_a_warning(self) -> None:
        optimizer = of_two_groups(GrokAdamW, grokking_signal_fns=[lambda: 1 / 0, lambda: 0.5])
        with pytest.warns(RuntimeWarning, match=r"raised ZeroDivisionError.* and is left out"):
            train(optimizer, 2)
        without = of_two_groups(GrokAdamW, grokking_signal_fns=[lambda: 0.5])
        train(without, 2)
        assert_same_bits(values(optimizer), values(without))
