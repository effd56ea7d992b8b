"""Parameters of 16 bits: what "stochastic" and "kahan" promise, and what becomes of what was cut off."""

import copy
import pickle

import pytest
import torch
from stepping import BACKENDS, OPTIONS, values
from torch import Tensor

from grokfused import GrokAdam, GrokAdamW, step_in_backward
from grokfused.lab.agreement import differing_bits

HALVES = [torch.bfloat16, torch.float16]
ROUNDINGS = ["nearest", "stochastic", "kahan"]
# Without memory and with equal gradients, a step moves every element by lr, to rounding.
STEADY = {"betas": (0.0, 0.0), "eps": 0.0, "lamb": 0.0, "weight_decay": 0.0}


def new_param(count: int, dtype: torch.dtype = torch.bfloat16, seed: int = 1) -> Tensor:
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).requires_grad_()


def train(optimizer: torch.optim.Optimizer, steps: int, seed: int = 2) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.randn(param.shape, generator=random).to(param.dtype)
        optimizer.step()


def assert_same(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    mine, others = values(ours), values(theirs)
    assert mine.keys() == others.keys()
    assert {name: differing_bits(mine[name], others[name]) for name in mine} == dict.fromkeys(mine, 0)


# --- what each is for ------------------------------------------------------------------------------------


def walked(dtype: torch.dtype, rounding: str, backend: str, steps: int = 400, count: int = 2048) -> Tensor:
    """Returns where parameters of 1 are after steps of 1e-4 down: at 0.96 without rounding, as float64."""
    param = torch.ones(count, dtype=dtype, requires_grad=True)
    optimizer = GrokAdamW([param], lr=1e-4, **STEADY, param_rounding=rounding, seed=6, backend=backend)
    for _ in range(steps):
        param.grad = torch.full_like(param, 0.5)
        optimizer.step()
    rest = optimizer.state[param].get("kahan_comp", torch.zeros(()))
    return param.detach().double() + rest.double()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_sum_of_small_steps_is_lost_by_nearest_and_kept_by_the_others(dtype, backend) -> None:
    goal = 1 - 400 * 1e-4
    nearest, stochastic, kahan = (walked(dtype, rounding, backend) for rounding in ROUNDINGS)
    assert (nearest == 1).all(), "each step is below half the distance of two numbers"
    # What the rest's own rounding cuts off, in each of 400 steps at most: half its distance of two numbers.
    most = {torch.bfloat16: 2.0**-18, torch.float16: 2.0**-24}[dtype]
    assert ((kahan - goal).abs() <= 400 * most).all()
    assert (kahan - goal).abs().max() < (nearest - goal).abs().max() / 10
    # A rounding's variance is at most distance**2 / 4; the mean of all is within 4 standard errors.
    distance = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    assert (stochastic.mean() - goal).abs() < 4 * (400 / 4 / 2048) ** 0.5 * distance
    assert stochastic.unique().numel() > 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameters_bits_depend_on_seed_step_and_element_only(backend) -> None:
    def rounded(count: int, seed: int, steps: int = 1) -> Tensor:
        param = torch.ones(count, dtype=torch.bfloat16, requires_grad=True)
        optimizer = GrokAdam(
            [param], lr=1e-3, **STEADY, param_rounding="stochastic", seed=seed, backend=backend
        )
        for _ in range(steps):
            with torch.no_grad():
                param.fill_(1.0)
            param.grad = torch.full_like(param, 0.5)
            optimizer.step()
        return param.detach()

    base = rounded(1000, seed=4)
    assert base.unique().numel() == 2
    assert differing_bits(base[:10], rounded(10, seed=4)) == 0
    assert differing_bits(base, rounded(1000, seed=5)) > 100
    assert differing_bits(base, rounded(1000, seed=4, steps=2)) > 100


# --- what is not finite ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_an_infinite_or_undefined_parameter_is_with_kahan_what_it_is_with_nearest(dtype, backend) -> None:
    largest = torch.finfo(dtype).max
    start = torch.tensor([largest, -largest, torch.inf, -torch.inf, torch.nan, 1.0, -0.5], dtype=dtype)
    results = []
    for rounding in "nearest", "kahan":
        param = start.clone().requires_grad_()
        # A step that takes the largest numbers over the edge, and others that follow it.
        options = {**STEADY, "lr": largest / 8, "param_rounding": rounding}
        optimizer = GrokAdamW([param], **options, backend=backend)
        for _ in range(3):
            param.grad = -start.nan_to_num(1.0).sign()
            optimizer.step()
        results.append(param.detach())
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        results.append(param.detach())
    nearest, after, kahan, kahan_after = results
    assert nearest[:5].tolist()[:4] == [torch.inf, -torch.inf] * 2
    for found in (after, kahan, kahan_after):
        assert differing_bits(found[:5], nearest[:5]) == 0
    assert (optimizer.state[param]["kahan_comp"][:5] == 0).all()


# --- the rest as a state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_parameters_step_as_ever_beside_others(backend, rounding) -> None:
    optimizers = []
    for chosen in (rounding, "nearest"):
        params = [new_param(33, torch.float32), new_param(9, torch.bfloat16, seed=3)]
        optimizers.append(GrokAdamW(params, **OPTIONS, param_rounding=chosen, backend=backend))
        train(optimizers[-1], 3)
    (wide, narrow), (other_wide, other_narrow) = (o.param_groups[0]["params"] for o in optimizers)
    assert differing_bits(wide.detach(), other_wide.detach()) == 0
    assert differing_bits(narrow.detach(), other_narrow.detach()) > 0
    state = optimizers[0].state
    assert "kahan_comp" not in state[wide]
    assert ("kahan_comp" in state[narrow]) == (rounding == "kahan")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_rest_has_the_parameters_dtype_shape_and_order(dtype) -> None:
    param = torch.randn(5, 3).t().to(dtype).requires_grad_()
    optimizer = GrokAdamW([param], **OPTIONS, param_rounding="kahan", state_dtype=torch.bfloat16)
    train(optimizer, 2)
    rest = optimizer.state[param]["kahan_comp"]
    assert (rest.dtype, rest.shape, rest.stride()) == (dtype, param.shape, param.stride())
    assert rest.count_nonzero() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_turned_off_it_forgets_and_turned_on_again_it_begins_with_nothing(backend) -> None:
    switched, fresh = (GrokAdamW([new_param(40)], **OPTIONS, backend=backend) for _ in range(2))
    switched.param_groups[0]["param_rounding"] = "kahan"
    train(switched, 3)
    (param,) = switched.param_groups[0]["params"]
    switched.param_groups[0]["param_rounding"] = "stochastic"
    train(switched, 1)
    assert "kahan_comp" not in switched.state[param]
    # From here on as an optimizer that has never had any.
    with torch.no_grad():
        fresh.param_groups[0]["params"][0].copy_(param)
    fresh.load_state_dict(copy.deepcopy(switched.state_dict()))
    for optimizer in switched, fresh:
        optimizer.param_groups[0]["param_rounding"] = "kahan"
        train(optimizer, 2, seed=8)
    assert_same(switched, fresh)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_cast_to_another_dtype_begins_with_nothing(backend) -> None:
    optimizer = GrokAdamW([new_param(40)], **OPTIONS, param_rounding="kahan", backend=backend)
    (param,) = optimizer.param_groups[0]["params"]
    train(optimizer, 2)
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        param.grad = None
        param.data = param.data.to(dtype)
        train(optimizer, 1)
        rest = optimizer.state[param].get("kahan_comp")
        assert (rest.dtype if rest is not None else None) == (None if dtype is torch.float32 else dtype)


def test_a_rest_of_other_bits_or_another_shape_is_refused() -> None:
    for wrong in (torch.zeros(40), torch.zeros(3, dtype=torch.bfloat16)):
        optimizer = GrokAdamW([new_param(40)], **OPTIONS, param_rounding="kahan")
        train(optimizer, 1)
        (param,) = optimizer.param_groups[0]["params"]
        saved = optimizer.state_dict()
        saved["state"][0] = {**saved["state"][0], "kahan_comp": wrong}
        with pytest.raises(ValueError, match="'kahan_comp'"):
            optimizer.load_state_dict(saved)
        optimizer.state[param]["kahan_comp"] = wrong
        before = param.detach().clone()
        with pytest.raises(RuntimeError, match="'kahan_comp'"):
            train(optimizer, 1)
        assert torch.equal(param, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_rest_of_another_dtype_than_the_parameters_is_not_loaded(dtype) -> None:
    source = GrokAdamW([new_param(40)], **OPTIONS, param_rounding="kahan")
    train(source, 2)
    saved = copy.deepcopy(source.state_dict())
    loaded, without = (GrokAdamW([new_param(40, dtype)], **OPTIONS) for _ in range(2))
    loaded.load_state_dict(saved)
    assert "kahan_comp" not in loaded.state[loaded.param_groups[0]["params"][0]]
    del saved["state"][0]["kahan_comp"]
    without.load_state_dict(saved)
    for optimizer in loaded, without:
        train(optimizer, 2, seed=9)
    assert_same(loaded, without)


def test_an_overflow_under_a_loss_scale_leaves_the_rest() -> None:
    optimizer = GrokAdamW([new_param(40)], **OPTIONS, param_rounding="kahan")
    train(optimizer, 2)
    before = values(optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    train(optimizer, 1)
    after = values(optimizer)
    assert {name: differing_bits(after[name], before[name]) for name in before} == dict.fromkeys(before, 0)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_steps_in_backward_round_alike(rounding) -> None:
    optimizers = [GrokAdamW([new_param(40)], **OPTIONS, param_rounding=rounding) for _ in range(2)]
    for number in range(3):
        for optimizer, inside in zip(optimizers, (True, False), strict=True):
            (param,) = optimizer.param_groups[0]["params"]
            loss = (param * (number + 0.3)).sin().sum()
            if inside:
                with step_in_backward(optimizer):
                    loss.backward()
            else:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    assert_same(*optimizers)


# --- masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zero", "freeze"])
def test_a_mask_zeroes_the_rest_at_once_or_leaves_it(mode) -> None:
    optimizer = GrokAdamW([new_param(70)], **OPTIONS, param_rounding="kahan")
    (param,) = optimizer.param_groups[0]["params"]
    train(optimizer, 2)
    before = optimizer.state[param]["kahan_comp"].clone()
    kept = torch.arange(70) % 3 == 0
    kept[:32] = False
    assert before[~kept].count_nonzero() > 20
    optimizer.set_mask(param, kept, mode)
    for _ in range(2):
        found = optimizer.state[param]["kahan_comp"]
        expected = before[~kept] if mode == "freeze" else torch.zeros_like(before)[~kept]
        assert differing_bits(found[~kept], expected) == 0
        train(optimizer, 1)
    assert differing_bits(optimizer.state[param]["kahan_comp"][kept], before[kept]) > 0


# --- checkpoints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_was_saved_goes_on_bit_for_bit(dtype, rounding) -> None:
    whole = GrokAdamW([new_param(40, dtype)], **OPTIONS, param_rounding=rounding, seed=3)
    train(whole, 3)
    resumed = GrokAdamW([whole.param_groups[0]["params"][0].detach().clone().requires_grad_()], lr=0.5)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert resumed.param_groups[0]["param_rounding"] == rounding
    for optimizer in whole, resumed:
        train(optimizer, 2, seed=9)
    assert_same(whole, resumed)


def test_a_state_dict_without_the_rest_starts_it_at_zero() -> None:
    complete, without, torchs = (
        GrokAdamW([new_param(40)], **OPTIONS, param_rounding="kahan") for _ in range(3)
    )
    train(complete, 2)
    (param,) = complete.param_groups[0]["params"]
    saved = copy.deepcopy(complete.state_dict())
    complete.state[param]["kahan_comp"].zero_()
    del saved["state"][0]["kahan_comp"]
    plain = copy.deepcopy(saved)
    plain["state"][0] = {key: plain["state"][0][key] for key in ("step", "exp_avg", "exp_avg_sq")}
    for optimizer, state_dict in (without, saved), (torchs, plain):
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].copy_(param)
        optimizer.load_state_dict(state_dict)
    for optimizer in complete, without, torchs:
        train(optimizer, 2, seed=9)
    assert_same(complete, without)
    assert torchs.state[torchs.param_groups[0]["params"][0]]["kahan_comp"].count_nonzero() > 0


@pytest.mark.filterwarnings("ignore:.*torch.distributed:UserWarning")
@pytest.mark.parametrize(("saved", "before"), [("kahan", "nearest"), ("nearest", "kahan")])
def test_a_distributed_checkpoint_brings_the_rest_it_holds_and_no_other(saved, before, tmp_path) -> None:
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    from grokfused.dcp import LoadPlanner

    models = [torch.nn.Linear(5, 3).to(torch.bfloat16) for _ in range(2)]
    roundings = (saved, before)
    whole, resumed = (
        GrokAdamW(model.parameters(), **OPTIONS, param_rounding=rounding)
        for model, rounding in zip(models, roundings, strict=True)
    )
    train(whole, 3)
    train(resumed, 2, seed=7)
    resumed.zero_grad()
    whole.zero_grad()
    for model, optimizer, planner in (models[0], whole, None), (models[1], resumed, LoadPlanner()):
        weights, states = get_state_dict(model, optimizer)
        found = {"model": weights, "optimizer": states}
        if planner is None:
            checkpoint.save(found, checkpoint_id=tmp_path)
        else:
            checkpoint.load(found, checkpoint_id=tmp_path, planner=planner)
            set_state_dict(
                model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"]
            )
    for optimizer in whole, resumed:
        train(optimizer, 2, seed=9)
    assert_same(whole, resumed)


def test_an_optimizer_pickled_before_there_was_a_choice_rounds_to_nearest() -> None:
    optimizer = GrokAdamW([new_param(40)], **OPTIONS)
    state = optimizer.__getstate__()
    old = {**state, "defaults": {k: v for k, v in state["defaults"].items() if k != "param_rounding"}}
    old["param_groups"] = [
        {k: v for k, v in group.items() if k != "param_rounding"} for group in state["param_groups"]
    ]
    restored = GrokAdamW.__new__(GrokAdamW)
    restored.__setstate__(pickle.loads(pickle.dumps(old)))
    assert restored.param_groups[0]["param_rounding"] == restored.defaults["param_rounding"] == "nearest"
    train(restored, 1)
