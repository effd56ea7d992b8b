"""States of 8 bits wherever a step is taken, changed, saved, loaded and refused."""

import copy
import pickle

import pytest
import torch
from stepping import (
    ADAM,
    BACKENDS,
    OPTIONS,
    assert_same_bits,
    new_param,
    randn,
    through_a_file,
    train,
    values,
)

from grokfused import GrokAdamW, decode_state, step_in_backward

IN_8_BITS = {**OPTIONS, "state_dtype": "block8"}
HOW = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "clipped": {"max_grad_norm": 0.5},
    "mean": {"grad_filter": "mean", "window_size": 3},
    "no filter": {"grad_filter": "none"},
}


def pair(*shapes: tuple[int, ...], **options) -> list[GrokAdamW]:
    made = []
    for _ in range(2):
        params = [new_param(*shape, seed=seed) for seed, shape in enumerate(shapes)]
        made.append(GrokAdamW(params, **{**IN_8_BITS, **options}))
    return made


def params_of(optimizer: GrokAdamW) -> list[torch.Tensor]:
    return optimizer.param_groups[0]["params"]


def numbers(optimizer: GrokAdamW) -> list[dict[str, torch.Tensor]]:
    return [decode_state(optimizer, param) for param in params_of(optimizer)]


def assert_same_numbers(a: GrokAdamW, b: GrokAdamW) -> None:
    for mine, other in zip(numbers(a), numbers(b), strict=True):
        assert_same_bits(mine, other)


# --- saved and loaded ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", HOW)
def test_resuming_equals_never_having_stopped(how, backend) -> None:
    one, two = pair((33, 7), (5,), (0,), (), **HOW[how], backend=backend)
    train(one, 4)
    train(two, 4)
    saved = through_a_file(two.state_dict())
    _, resumed = pair((33, 7), (5,), (0,), (), **HOW[how], backend=backend)
    for param, other in zip(params_of(resumed), params_of(two), strict=True):
        param.data.copy_(other)
    resumed.load_state_dict(saved)
    assert_same_numbers(resumed, two)
    train(one, 3, seed=9)
    train(resumed, 3, seed=9)
    assert_same_bits(values(resumed), values(one))


def test_a_saved_state_is_bfloat16_of_the_parameters_shape() -> None:
    optimizer, _ = pair((3, 70))
    train(optimizer, 2)
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["state_dtype"] == "block8"
    found = {key: (value.dtype, value.shape) for key, value in saved["state"][0].items() if key != "step"}
    assert found == dict.fromkeys(("exp_avg", "exp_avg_sq", "grad_ema"), (torch.bfloat16, (3, 70)))


def test_a_zero_below_zero_is_not_lost_on_the_way() -> None:
    optimizer, resumed = pair((64,))
    train(optimizer, 1)
    param = params_of(optimizer)[0]
    optimizer.state[param]["grad_ema"].fill_(128)  # -0
    resumed.load_state_dict(optimizer.state_dict())
    assert (resumed.state[params_of(resumed)[0]]["grad_ema"] == 128).all()


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_a_checkpoint_of_8_bits_goes_on_in_others(state_dtype) -> None:
    optimizer, _ = pair((33, 7))
    train(optimizer, 3)
    saved = through_a_file(optimizer.state_dict())
    saved["param_groups"][0]["state_dtype"] = state_dtype
    param = new_param(33, 7)
    other = GrokAdamW([param], **OPTIONS)
    other.load_state_dict(saved)
    assert other.state[param]["exp_avg"].dtype is getattr(torch, state_dtype)
    assert "block_bases" not in other.state[param]
    assert_same_bits(decode_state(other, param), decode_state(optimizer, params_of(optimizer)[0]))
    train(other, 1)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_others_go_on_in_8_bits(state_dtype) -> None:
    param = new_param(33, 70)
    optimizer = GrokAdamW([param], state_dtype=state_dtype, **OPTIONS)
    train(optimizer, 3)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["state_dtype"] = "block8"
    other = GrokAdamW([new_param(33, 70)], **OPTIONS)
    other.load_state_dict(saved)
    own = decode_state(other, params_of(other)[0])
    for name, truth in decode_state(optimizer, param).items():
        assert (own[name] - truth).norm() < truth.norm() / 16, name
    train(other, 1)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_states_of_torch_are_taken_over(kind) -> None:
    param = new_param(40, 9)
    torchs = kind([param], amsgrad=True, **ADAM)
    train(torchs, 3)
    ours = GrokAdamW([new_param(40, 9)], amsgrad=True, **IN_8_BITS)
    ours.load_state_dict(torchs.state_dict())
    own = params_of(ours)[0]
    found = decode_state(ours, own)
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        truth = torchs.state[param][name]
        assert ours.state[own][name].dtype is torch.uint8
        assert (found[name] - truth).norm() < truth.norm() / 16, name
    train(ours, 2)
    back = kind([new_param(40, 9)], amsgrad=True)
    back.load_state_dict(ours.torch_state_dict())
    assert back.state_dict()["state"][0]["exp_avg"].dtype is torch.float32


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_alike(copied) -> None:
    optimizer, _ = pair((70, 3))
    train(optimizer, 2)
    other, _ = copied((optimizer, params_of(optimizer)))
    train(optimizer, 2, seed=4)
    train(other, 2, seed=4)
    assert_same_bits(values(other), values(optimizer))


def test_bytes_that_others_keep_beside_ours_are_theirs() -> None:
    optimizer, other = pair((70,))
    train(optimizer, 1)
    theirs = torch.arange(70).to(torch.uint8)
    optimizer.state[params_of(optimizer)[0]]["trac"] = theirs
    saved = through_a_file(optimizer.state_dict())
    assert torch.equal(saved["state"][0]["trac"], theirs)
    assert "trac" not in decode_state(optimizer, params_of(optimizer)[0])
    other.load_state_dict(saved)
    assert torch.equal(other.state[params_of(other)[0]]["trac"], theirs)


def test_parameters_without_values_have_places_for_codes() -> None:
    made = []
    for _ in range(2):
        param = torch.empty(3, 70, device="meta", requires_grad=True)
        param.grad = torch.empty_like(param)
        made.append(GrokAdamW([param], **IN_8_BITS))
    first, second = made
    first.step()
    saved = first.state_dict()
    assert saved["state"][0]["exp_avg"].dtype is torch.bfloat16
    second.load_state_dict(saved)
    second.step()
    state = second.state[params_of(second)[0]]
    assert (state["exp_avg"].dtype, state["exp_avg"].shape) == (torch.uint8, (3, 70))
    assert state["block_bases"].shape == (4,)


# --- wherever a step is taken ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_in_backward_is_the_ordinary_one(backend) -> None:
    found = []
    for in_backward in False, True:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(9, 17), torch.nn.Tanh(), torch.nn.Linear(17, 1))
        optimizer = GrokAdamW(model.parameters(), backend=backend, **IN_8_BITS)
        if in_backward:
            step_in_backward(optimizer)
        for step in range(4):
            model(randn(8, 9, seed=step)).pow(2).mean().backward()
            if not in_backward:
                optimizer.step()
                optimizer.zero_grad()
        found.append(values(optimizer))
    assert_same_bits(*found)


def test_compiled_and_device_numbered_steps_are_the_ordinary_ones() -> None:
    plain, compiled = pair((70, 3), (5,))
    counted, _ = pair((70, 3), (5,), capturable=True)
    step = torch.compile(compiled.step, backend="eager")
    for number in range(3):
        for optimizer in (plain, compiled, counted):
            for index, param in enumerate(params_of(optimizer)):
                param.grad = randn(*param.shape, seed=10 * number + index)
        plain.step()
        step()
        counted.step()
    assert_same_bits(values(compiled), values(plain))
    assert_same_bits(values(counted), values(plain))


def test_an_overflow_leaves_codes_and_bases_as_they_are() -> None:
    optimizer, _ = pair((130,))
    train(optimizer, 2)
    before = values(optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    train(optimizer, 1)
    assert_same_bits(values(optimizer), before)


def test_a_parameter_laid_otherwise_keeps_its_numbers() -> None:
    optimizer, _ = pair((4, 6, 5, 3), lr=0.0, betas=(1 - 1e-7, 1 - 1e-7), grad_filter="none")
    param = params_of(optimizer)[0]
    train(optimizer, 2)
    before = decode_state(optimizer, param)
    param.data = param.data.to(memory_format=torch.channels_last)
    optimizer.zero_grad()
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].stride() == param.stride()
    after = decode_state(optimizer, param)
    for name, array in before.items():
        assert (after[name] - array).norm() < array.norm() / 16, name


def test_a_module_that_becomes_wide_goes_on_in_its_own_numbers() -> None:
    optimizer, _ = pair((70,))
    param = params_of(optimizer)[0]
    train(optimizer, 2)
    before = decode_state(optimizer, param)
    param.data = param.data.double()
    param.grad = None
    train(optimizer, 1)
    assert optimizer.state[param]["exp_avg"].dtype is torch.float64
    assert "block_bases" not in optimizer.state[param]
    assert (optimizer.state[param]["exp_avg_sq"] - 0.993 * before["exp_avg_sq"].double() > -1e-9).all()


def test_states_keep_how_they_were_made_whatever_the_option_becomes() -> None:
    for first, later, dtype in (("block8", "float32", torch.uint8), ("float32", "block8", torch.float32)):
        optimizer, _ = pair((70,), (3,), state_dtype=first)
        params = params_of(optimizer)
        params[0].grad = randn(70)
        optimizer.step()
        optimizer.param_groups[0]["state_dtype"] = later
        train(optimizer, 1)
        assert optimizer.state[params[0]]["exp_avg"].dtype is dtype
        assert ("block_bases" in optimizer.state[params[1]]) == (later == "block8")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_filter_may_be_turned_off_and_on(backend) -> None:
    optimizer, other = pair((130,), backend=backend)
    for each in (optimizer, other):
        train(each, 2)
        each.param_groups[0]["grad_filter"] = "none"
        kept = decode_state(each, params_of(each)[0])["grad_ema"]
        train(each, 2)
        assert torch.equal(decode_state(each, params_of(each)[0])["grad_ema"], kept)
        each.param_groups[0]["grad_filter"] = "ema"
        train(each, 1)
    assert_same_bits(values(optimizer), values(other))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["zero", "freeze"])
def test_a_mask_holds_codes_too(mode, backend) -> None:
    optimizer, _ = pair((300,), backend=backend)
    param = params_of(optimizer)[0]
    train(optimizer, 2)
    kept = torch.rand(300, generator=torch.Generator().manual_seed(1)) < 0.5
    kept[64:128] = False
    before, codes = decode_state(optimizer, param), copy.deepcopy(optimizer.state[param])
    frozen = param.detach().clone()
    optimizer.set_mask(param, kept, mode)
    train(optimizer, 3)
    after = decode_state(optimizer, param)
    if mode == "freeze":
        assert torch.equal(param.detach()[~kept], frozen[~kept])
        for name in after:  # a block of which nothing is kept, to the bit
            assert torch.equal(optimizer.state[param][name][64:128], codes[name][64:128])
            left_out, was = after[name][~kept], before[name][~kept]
            assert (left_out - was).norm() < was.norm() / 8
    else:
        assert not param.detach()[~kept].any()
        assert not any(array[~kept].any() for array in after.values())
    for name in after:
        assert not torch.equal(after[name][kept], before[name][kept])


# --- refused ---------------------------------------------------------------------------------------------


def without_bases(state: dict) -> None:
    del state["block_bases"]


def short_bases(state: dict) -> None:
    state["block_bases"] = state["block_bases"][:-1]


def float_bases(state: dict) -> None:
    state["block_bases"] = state["block_bases"].float()


def one_of_float32(state: dict) -> None:
    state["exp_avg_sq"] = state["exp_avg_sq"].float()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (without_bases, "has lost 'block_bases'"),
        (short_bases, r"'block_bases' of .* must have shape torch.Size\(\[2\]\)"),
        (float_bases, "'block_bases' of .* must be torch.int32, got torch.float32"),
        (one_of_float32, "must all be float32, all bfloat16 or all of 8 bits, 'exp_avg_sq' is torch.float32"),
    ],
)
def test_a_state_that_someone_spoilt_is_refused_by_name(wrong, message) -> None:
    optimizer, _ = pair((70,))
    train(optimizer, 1)
    wrong(optimizer.state[params_of(optimizer)[0]])
    before = params_of(optimizer)[0].detach().clone()
    with pytest.raises(RuntimeError, match=message):
        train(optimizer, 1)
    assert torch.equal(params_of(optimizer)[0], before)


@pytest.mark.parametrize("part", ["exp_avg", "block_bases"])
def test_a_live_state_is_no_saved_one(part) -> None:
    optimizer, other = pair((70,))
    train(optimizer, 1)
    saved = optimizer.state_dict()
    saved["state"][0][part] = optimizer.state[params_of(optimizer)[0]][part]
    with pytest.raises(ValueError, match=f"{part}.*live state of 8 bits"):
        other.load_state_dict(saved)
