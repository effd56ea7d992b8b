"""Windows of gradients wherever a step is taken, changed, saved, loaded and refused."""

import copy
import io
from itertools import product

import pytest
import torch
from windowed import BACKENDS, made, run, same, states_of

from grokfused import GrokAdamW
from grokfused.backends.windows import TURN
from grokfused.lab.agreement import differing_bits

# --- wherever a step is taken ----------------------------------------------------------------------------

HOW = {
    "float32": {},
    "bfloat16 window": {"window_dtype": torch.bfloat16},
    "bfloat16 states": {"state_dtype": torch.bfloat16, "amsgrad": True, "seed": 3},
    "clipped": {"max_grad_norm": 0.5},
    "sum": {"filter_type": "sum", "filter_warmup": False, "lamb": 0.4},
    "two stages": {"filter_start_step": 4, "filter_stop_step": 9},
}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64]
)
@pytest.mark.parametrize("how", HOW)
def test_backends_agree_through_two_windows(how, dtype) -> None:
    results = []
    for backend in BACKENDS:
        optimizer, params = made((2300,), (13, 3), dtype=dtype, backend=backend, **HOW[how])
        for step in range(13):
            if step == 4 and not dtype.is_complex:
                kept = torch.rand(2300, generator=torch.Generator().manual_seed(1)) < 0.3
                optimizer.set_mask(params[0], kept, "freeze")
                optimizer.set_mask(params[1], kept[:39].view(13, 3), "zero")
            run(optimizer, params, [step])
        results.append(optimizer)
    assert same(*results)


@pytest.mark.parametrize("mode", ["zero", "freeze"])
def test_a_mask_holds_the_window_too(mode) -> None:
    optimizer, (param,) = made((3 * TURN,))
    run(optimizer, [param], range(3))
    kept = torch.rand(3 * TURN, generator=torch.Generator().manual_seed(1)) < 0.5
    optimizer.set_mask(param, kept, mode)
    before = copy.deepcopy(optimizer.state[param])
    run(optimizer, [param], range(3, 14))
    for name in ("grad_window", "grad_sum"):
        left_out, was = optimizer.state[param][name][..., ~kept], before[name][..., ~kept]
        assert differing_bits(left_out, was if mode == "freeze" else torch.zeros_like(was)) == 0


def test_an_overflow_leaves_the_window_as_it_is() -> None:
    optimizer, (param,) = made((900,))
    run(optimizer, [param], range(7))
    before = states_of(optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(1.0)
    run(optimizer, [param], [7])
    assert all(differing_bits(a, b) == 0 for a, b in zip(states_of(optimizer), before, strict=True))


def test_steps_that_the_device_counts_are_the_same(monkeypatch) -> None:
    from grokfused.step import engine

    plain, plain_params = made((2100,), (5,))
    run(plain, plain_params, range(9))
    monkeypatch.setattr(engine, "NUMBERING_DEVICES", ("cpu",))
    counted, params = made((2100,), (5,), capturable=True)
    run(counted, params, range(9))
    assert same(plain, counted)


# --- when it filters -------------------------------------------------------------------------------------


def test_a_window_that_was_left_begins_anew_and_is_never_misread() -> None:
    """Its size, its sum and where it stands are those of the steps since then, in either order of filters."""
    optimizer, (param,) = made((1500,), backend="native")
    other, (its,) = made((1500,), backend="reference")
    order = ["mean"] * 8 + ["none"] * 2 + ["mean"] * 7 + ["ema"] * 3 + ["mean"] * 7
    for step, name in enumerate(order):
        for each, owned in ((optimizer, param), (other, its)):
            each.param_groups[0]["grad_filter"] = name
            run(each, [owned], [step])
        state = optimizer.state[param]
        window = {"grad_window", "grad_sum", "grad_window_start"}
        assert window & state.keys() == (window if name == "mean" else set())
        resumed, _ = made((1500,), grad_filter=name)
        resumed.load_state_dict(optimizer.state_dict())  # also of a state that has had a window once
        assert ("grad_ema" in state) == ("ema" in order[: step + 1])
        if name == "mean":
            begun = max(k for k in range(step + 1) if k == 0 or order[k - 1] != "mean")
            last = [
                torch.randn(1500, generator=torch.Generator().manual_seed(10 * k))
                for k in range(begun, step + 1)
            ]
            # Summed in another order: some roundings of float32.
            assert torch.allclose(state["grad_sum"], sum(last[-5:]), rtol=0, atol=1e-5)
    assert same(optimizer, other)


def test_a_late_window_waits_until_it_is_full() -> None:
    optimizer, (param,) = made((40,), grad_filter="none")
    plain, (its,) = made((40,), grad_filter="none")
    run(optimizer, [param], range(3))
    run(plain, [its], range(3))
    optimizer.param_groups[0]["grad_filter"] = "mean"
    run(optimizer, [param], range(3, 7))
    run(plain, [its], range(3, 7))
    assert differing_bits(param, its) == 0  # four of five
    run(optimizer, [param], [7])
    run(plain, [its], [7])
    assert differing_bits(param, its) > 30


# --- saved and loaded ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "late"), list(product([3, 5, 8], [False, True])))
@pytest.mark.parametrize("window_dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_goes_on_in_the_middle_of_a_window(before, late, window_dtype) -> None:
    def fresh():
        optimizer, params = made((1100,), (4, 3), window_dtype=window_dtype)
        if late:
            optimizer.param_groups[0]["grad_filter"] = "none"
            run(optimizer, params, range(2))
            optimizer.param_groups[0]["grad_filter"] = "mean"
        return optimizer, params

    whole, params = fresh()
    run(whole, params, range(2, 2 + before))
    file = io.BytesIO()
    torch.save([whole.state_dict(), [param.detach() for param in params]], file)
    file.seek(0)
    saved, values = torch.load(file, weights_only=True)
    resumed, its = made((1100,), (4, 3))  # of another window_dtype at times: states keep theirs
    for param, value in zip(its, values, strict=True):
        param.data.copy_(value)
    resumed.load_state_dict(saved)
    assert resumed.state[its[0]]["grad_window"].dtype is window_dtype
    run(whole, params, range(2 + before, 16))
    run(resumed, its, range(2 + before, 16))
    assert same(whole, resumed)


def test_a_window_of_another_size_is_refused_by_name() -> None:
    saved, params = made((30,))
    run(saved, params, range(3))
    other, _ = made((30,), window_size=6)
    with pytest.raises(ValueError, match=r"a window of 5 gradients.*made with window_size=6.*window_size=5"):
        other.load_state_dict(saved.state_dict())
    assert not other.state
    before = states_of(saved)
    saved.param_groups[0]["window_size"] = 9
    with pytest.raises(RuntimeError, match=r"grad_window.*\[9, 30\]\), got .*\[5, 30\]\): a window keeps"):
        run(saved, params, [3])
    assert all(differing_bits(a, b) == 0 for a, b in zip(states_of(saved), before, strict=True))


def test_torchs_adam_goes_on_without_the_window() -> None:
    optimizer, (param,) = made((30,))
    run(optimizer, [param], range(3))
    state = optimizer.torch_state_dict()
    assert set(state["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert not {"window_size", "filter_type", "window_dtype"} & set(state["param_groups"][0])
    torch.optim.Adam([param]).load_state_dict(state)


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_that_do_not_fit_are_refused_before_anything_is_allocated(backend) -> None:
    optimizer, params = made((1000, 1000), (10,), window_size=2**24, backend=backend)
    for param in params:
        param.grad = torch.ones_like(param)
    need = (1_000_000 + 10) * 2**24 * 4
    with pytest.raises(MemoryError, match=f"take {need:,} bytes on cpu.* are free.*window_size"):
        optimizer.step()
    assert not any(optimizer.state.values())
    with pytest.raises(MemoryError, match="bytes on cpu"):
        optimizer.set_mask(params[0], torch.ones(1000, 1000, dtype=torch.bool))
    assert not any(optimizer.state.values())


BAD = [
    ({"window_size": 1}, ValueError, r"window_size must be an integer in \[2, 16777216\], got 1"),
    ({"window_size": 2.5}, TypeError, "window_size must be an integer"),
    ({"window_size": True}, TypeError, "window_size must be an integer"),
    ({"filter_type": "median"}, ValueError, r"filter_type must be one of \('mean', 'sum'\)"),
    ({"filter_warmup": 1}, TypeError, "filter_warmup must be True or False"),
    ({"window_dtype": torch.float16}, ValueError, "window_dtype must be torch.float32 or torch.bfloat16"),
    ({"filter_start_step": -1}, ValueError, "filter_start_step must be an integer"),
    (
        {"filter_start_step": 9, "filter_stop_step": 8},
        ValueError,
        r"filter_stop_step must be at least filter_start_step, 9, got 8",
    ),
    ({"filter_stop_step": "8"}, TypeError, "filter_stop_step must be an integer"),
]


@pytest.mark.parametrize(("options", "kind", "words"), BAD, ids=str)
def test_an_option_out_of_its_range_is_refused(options, kind, words) -> None:
    with pytest.raises(kind, match=words):
        GrokAdamW([torch.ones(2, requires_grad=True)], **options)
    optimizer, (param,) = made((2,))
    optimizer.param_groups[0].update(options)
    param.grad = torch.ones(2)
    with pytest.raises(kind, match=words):
        optimizer.step()
    assert not optimizer.state


# --- what others do to it --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("note", ["soon", None, float("nan"), -3.0, 1e9, "lost"])
def test_a_note_of_the_windows_beginning_that_is_none_is_refused_by_name(backend, note) -> None:
    optimizer, (param,) = made((9,), backend=backend)
    run(optimizer, [param], range(3))
    if note == "lost":
        del optimizer.state[param]["grad_window_start"]
    else:
        optimizer.state[param]["grad_window_start"] = note
    before = states_of(optimizer)
    with pytest.raises(RuntimeError, match=r"'grad_window_start'.*(of parameter 0|was begun)"):
        run(optimizer, [param], [3])
    assert all(differing_bits(a, b) == 0 for a, b in zip(states_of(optimizer), before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_count_set_back_before_the_window_amplifies_nothing(backend) -> None:
    optimizer, (param,) = made((9,), backend=backend, grad_filter="none", filter_warmup=False)
    run(optimizer, [param], range(3))
    optimizer.param_groups[0]["grad_filter"] = "mean"
    run(optimizer, [param], [3])
    plain = copy.deepcopy(optimizer)
    for each, name in ((optimizer, "mean"), (plain, "none")):
        (owned,) = each.param_groups[0]["params"]
        each.state[owned]["step"].fill_(2.0)
        each.param_groups[0]["grad_filter"] = name
        run(each, [owned], [4])
    assert differing_bits(param, plain.param_groups[0]["params"][0]) == 0


def test_a_parameter_cast_to_float64_takes_its_window_along() -> None:
    optimizer, (param,) = made((9,), window_dtype=torch.bfloat16)
    run(optimizer, [param], range(7))
    param.grad, param.data = None, param.data.double()
    run(optimizer, [param], [7])
    state = optimizer.state[param]
    assert {state[key].dtype for key in ("exp_avg", "grad_window", "grad_sum")} == {torch.float64}


def test_windows_of_one_group_keep_their_dtypes_and_a_size_changed_before_saving_is_no_loss() -> None:
    optimizer, params = made((9,), (4,), window_dtype=torch.bfloat16)
    run(optimizer, params[:1], range(2))
    optimizer.param_groups[0]["window_dtype"] = "float32"
    run(optimizer, params, range(2, 4))
    optimizer.param_groups[0]["window_size"] = 9
    resumed, its = made((9,), (4,))
    resumed.load_state_dict(optimizer.state_dict())
    dtypes = [resumed.state[param]["grad_window"].dtype for param in its]
    assert dtypes == [torch.bfloat16, torch.float32]
    assert resumed.param_groups[0]["window_size"] == 5
    optimizer.param_groups[0]["grad_filter"] = "none"
    other, _ = made((9,), (4,), grad_filter="none")
    other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("part", ["grad_window", "grad_sum"])
def test_a_window_of_which_someone_has_taken_a_part_begins_anew(part) -> None:
    optimizer, (param,) = made((3,))
    run(optimizer, [param], range(6))
    del optimizer.state[param][part]
    assert not {key for key in optimizer.state_dict()["state"][0] if key.startswith(("grad_w", "grad_s"))}
    run(optimizer, [param], [6])
    state = optimizer.state[param]
    assert state["grad_window_start"] == 6.0
    assert torch.equal(state["grad_sum"], param.grad)


def test_a_window_in_part_is_refused_and_a_missing_one_told_once() -> None:
    optimizer, params = made(*[(3,)] * 20)
    run(optimizer, params, range(2))
    saved = optimizer.state_dict()
    partly = copy.deepcopy(saved)
    del partly["state"][7]["grad_sum"]
    other, _ = made(*[(3,)] * 20)
    with pytest.raises(
        ValueError, match=r"state\[7\] has of its window only \['grad_window', 'grad_window_st"
    ):
        other.load_state_dict(partly)
    for state in saved["state"].values():
        for key in ("grad_window", "grad_sum", "grad_window_start"):
            del state[key]
    with pytest.warns(UserWarning, match="20 states of groups .* begin another") as told:
        other.load_state_dict(saved)
    assert len(told) == 1
    adam = torch.optim.Adam([torch.zeros(3, requires_grad=True)])
    adam.param_groups[0]["params"][0].grad = torch.ones(3)
    adam.step()
    mine, _ = made((3,))
    mine.load_state_dict(adam.state_dict())  # and of torch's no warning, which the tests make an error
