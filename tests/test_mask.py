"""The mask room: what is left out is 0 or untouched, exactly, whatever else happens."""

import pytest
import torch
from masked import DTYPES, ROUNDING, bits, made, set_grad, some, states, turned
from stepping import BACKENDS, OPTIONS

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.bench.probes import probe
from grokfused.step import mask

# Words: whole, cut, of one lane; and every memory order there is.
SHAPES = [[], [0], [1], [31], [32], [33], [7, 9], [64, 96]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_mask_comes_back_as_it_was_set(shape) -> None:
    param = made(shape)
    optimizer = GrokAdamW([param])
    kept = some(param)
    optimizer.set_mask(param, kept)
    (found,) = optimizer.masks().values()
    assert torch.equal(found, kept)
    assert optimizer.state[param]["mask"].words.shape == (-(-param.numel() // 32),)


def test_bit_i_of_word_w_belongs_to_element_32_w_plus_i_in_memory_order() -> None:
    param = made([3, 30])  # transposed: element 32 in memory is [2, 10]
    kept = torch.zeros(3, 30, dtype=torch.bool)
    kept[2, 10] = kept[1, 0] = True
    words = mask.pack(kept, param, "zero").words
    assert words.tolist() == [0b10, 0b1, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_someone_writes_into_pruned_states_is_gone_after_the_step(backend) -> None:
    param, kept = made([65, 33]), torch.zeros(65, 33, dtype=torch.bool)
    kept[3, 5] = True
    optimizer = GrokAdamW([param, made([3])], backend=backend, **OPTIONS)
    optimizer.set_mask(param, kept)
    for number in range(4):
        set_grad(param, seed=number, special=False)
        optimizer.step()
        assert all(state[~kept].eq(0).all() and state[kept].ne(0).all() for state in states(optimizer, param))
        if number == 1:
            optimizer.state[param]["exp_avg"].fill_(1.0)
        if number == 2:
            optimizer.state[param]["grad_ema"] = torch.ones_like(param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 31, 33, 513, 16_384, 40_001])
def test_one_number_written_anywhere_into_a_long_pruned_stretch_is_found(size, dtype) -> None:
    """Native code reads such a stretch from several places side by side: none may be left out."""
    param, kept = made([70_000], dtype), torch.zeros(70_000, dtype=torch.bool)
    begin = 9_999
    kept[[begin - 1, begin + size]] = True
    optimizer = GrokAdamW([param], backend="native", **OPTIONS)
    optimizer.set_mask(param, kept)
    param.grad = torch.ones_like(param)
    optimizer.step()
    for place in {begin, begin + size - 1, *(begin + size * part // 9 for part in range(9))}:
        with torch.no_grad():
            param[place] = 3e-7
        optimizer.step()
        assert param.count_nonzero() == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [GrokAdam, GrokAdamW])
def test_zero_keeps_parameter_and_states_at_zero_whatever_comes(kind, dtype, state_dtype, backend) -> None:
    params = [made(shape, dtype, seed) for seed, shape in enumerate(SHAPES)]
    options = {**OPTIONS, "state_dtype": state_dtype, "param_rounding": ROUNDING[dtype], "seed": 3}
    optimizer = kind(params, amsgrad=True, backend=backend, **options)
    for param in params:
        set_grad(param, 5, special=False)  # momentum of before the mask
    optimizer.step()
    optimizer.set_masks({param: some(param) for param in params})
    for number in range(3):
        for param in params:
            kept = some(param)
            for tensor in (param, *states(optimizer, param)):
                assert bits(tensor)[~kept].eq(0).all(), f"before step {number}"
            set_grad(param, 6 + number)
            with torch.no_grad():
                param.add_(1.0)  # what any code may do to a weight
        optimizer.step()
    for param in params:
        for tensor in (param, *states(optimizer, param)):
            assert bits(tensor)[~some(param)].eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_freeze_touches_no_bit(dtype, state_dtype, backend) -> None:
    params = [made(shape, dtype, seed) for seed, shape in enumerate(SHAPES)]
    options = {**OPTIONS, "state_dtype": state_dtype, "param_rounding": ROUNDING[dtype]}
    optimizer = GrokAdamW(params, amsgrad=True, backend=backend, **options)
    for param in params:
        set_grad(param, 5)  # the special values reach parameters and states
    optimizer.step()
    with torch.no_grad():
        for param in params:  # NaN with a payload that arithmetic would not keep
            bits(param)[some(param, 0.1, seed=9)] = {
                2: 0x7C01 if dtype is torch.float16 else 0x7F81,
                4: 0x7F800001,
            }[param.element_size()]
    optimizer.set_masks({param: some(param) for param in params}, mode="freeze")
    before = [[bits(t).clone() for t in (p, *states(optimizer, p))] for p in params]
    for number in range(3):
        for param in params:
            set_grad(param, 6 + number)
        optimizer.step()
    for param, arrays in zip(params, before, strict=True):
        left_out = ~some(param)
        for tensor, old in zip((param, *states(optimizer, param)), arrays, strict=True):
            assert torch.equal(bits(tensor)[left_out], old[left_out])
    assert not torch.equal(bits(params[-1]), before[-1][0]), "what is kept has moved"


@pytest.mark.parametrize("mode", mask.MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_kept_takes_the_step_it_would_take_alone(backend, mode) -> None:
    masked, free = made([64, 96]), made([64, 96])
    optimizers = [
        GrokAdamW([p], backend=backend, state_dtype=torch.bfloat16, seed=4, **OPTIONS) for p in (masked, free)
    ]
    optimizers[0].set_mask(masked, some(masked), mode)
    for number in range(3):
        for param, optimizer in zip((masked, free), optimizers, strict=True):
            set_grad(param, number, special=False)
            optimizer.step()
    assert torch.equal(masked[some(masked)], free[some(masked)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_of_true_changes_nothing_and_one_of_false_stops_everything(backend) -> None:
    params = [made([64, 96]) for _ in range(3)]
    optimizer = GrokAdamW(params, backend=backend, **OPTIONS)
    optimizer.set_mask(params[1], torch.ones(64, 96, dtype=torch.bool))
    optimizer.set_mask(params[2], torch.zeros(64, 96, dtype=torch.bool), "freeze")
    before = params[2].detach().clone()
    for number in range(2):
        for param in params:
            set_grad(param, number, special=False)
        optimizer.step()
    assert torch.equal(params[0], params[1])
    assert torch.equal(params[2], before)


def test_masked_and_unmasked_parameters_take_their_step_in_one_call() -> None:
    params = [made([8, 9]) for _ in range(4)]
    optimizer = GrokAdamW(params, backend="native")
    optimizer.set_mask(params[0], some(params[0]))
    optimizer.set_mask(params[1], some(params[1]), "freeze")
    for param in params:
        set_grad(param, 1)
    assert probe(optimizer.step, "cpu").launches == 1


def test_setting_a_mask_takes_effect_at_once_and_replaces_the_one_before() -> None:
    param = made([7, 9])
    optimizer = GrokAdamW([param], **OPTIONS)
    set_grad(param, 1, special=False)
    optimizer.step()
    optimizer.set_mask(param, torch.ones(7, 9, dtype=torch.bool), "freeze")
    first, second = some(param, seed=3), some(param, seed=4)
    optimizer.set_mask(param, first)
    assert not param[~first].any()
    optimizer.set_mask(param, second)
    assert torch.equal(optimizer.masks()[param], second)
    assert not param[~(first & second)].any()
    assert not any(state[~(first & second)].any() for state in states(optimizer, param))


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_its_removal_all_elements_learn_again(backend) -> None:
    param = made([7, 9])
    optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
    optimizer.set_mask(param, some(param))
    set_grad(param, 1, special=False)
    optimizer.step()
    optimizer.remove_mask(param)
    assert optimizer.masks() == {}
    set_grad(param, 2, special=False)
    optimizer.step()
    assert param[~some(param)].all()


def test_a_parameter_that_was_turned_keeps_its_mask() -> None:
    param = torch.randn(5, 7).requires_grad_()
    optimizer = GrokAdamW([param], **OPTIONS)
    kept = some(param)
    optimizer.set_mask(param, kept)
    for turn in (turned, torch.Tensor.contiguous):
        param.data = turn(param.data)
        set_grad(param, 1)
        optimizer.step()
        assert torch.equal(optimizer.masks()[param], kept)
        assert not param[~kept].any()


def test_a_parameter_with_gaps_has_its_mask_on_the_reference() -> None:
    base = torch.randn(6, 10)
    param = base[:, ::2].requires_grad_()
    optimizer = GrokAdamW([param], backend="reference", **OPTIONS)
    kept = some(param)
    optimizer.set_mask(param, kept)
    set_grad(param, 1)
    optimizer.step()
    assert not param[~kept].any()
    assert base[:, 1::2].all()


# --- what is refused -------------------------------------------------------------------------------------


KEPT = torch.ones(7, 9, dtype=torch.bool)
REFUSED = {
    "another shape": (KEPT[:6], ValueError, r"shape torch.Size\(\[7, 9\]\), got torch.Size\(\[6, 9\]\)"),
    "another dtype": (KEPT.float(), TypeError, "must be a bool tensor, True where .* got torch.float32"),
    "another device": (KEPT.to("meta"), ValueError, "must have its device cpu, got meta"),
    "no tensor": ([[True]], TypeError, "must be a bool tensor, got list"),
    "none": (None, TypeError, "must be a bool tensor, got NoneType; remove_mask takes a mask off"),
    "sparse": (KEPT.to_sparse(), TypeError, "must be a dense tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_that_does_not_fit_is_refused_and_nothing_changes(name) -> None:
    bad, error, message = REFUSED[name]
    params = [made([7, 9]), made([7, 9])]
    optimizer = GrokAdamW(params)
    with pytest.raises(error, match=f"mask of parameter 1 of group 0.*{message}"):
        optimizer.set_masks({params[0]: ~KEPT, params[1]: bad})
    assert optimizer.masks() == {}
    assert torch.equal(params[0], made([7, 9]))


def test_only_parameters_of_the_optimizer_and_known_modes_are_taken() -> None:
    param = made([7, 9])
    optimizer = GrokAdamW([param])
    with pytest.raises(TypeError, match="masks must map parameters or their names to masks, got NoneType"):
        optimizer.set_masks(None)
    with pytest.raises(ValueError, match=r"parameter of this optimizer, got one of shape \[7, 9\]"):
        optimizer.set_mask(made([7, 9]), KEPT)
    with pytest.raises(
        ValueError, match=r"no parameter of this optimizer is called 'weight'.*named_parameters"
    ):
        optimizer.set_masks({"weight": KEPT})
    with pytest.raises(ValueError, match="parameter of this optimizer, got 0"):
        optimizer.set_masks({0: KEPT})
    named = GrokAdamW([("weight", param)])
    with pytest.raises(ValueError, match=r"parameter 'weight' of .* is given two masks"):
        named.set_masks({"weight": KEPT, param: KEPT})
    with pytest.raises(ValueError, match=r"must be one of \('zero', 'freeze'\), got 'prune'"):
        optimizer.set_mask(param, KEPT, "prune")
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 .* has no mask"):
        optimizer.remove_mask(param)
    assert optimizer.masks() == {}


def test_a_mask_whose_parameter_has_changed_its_shape_is_refused_at_the_step() -> None:
    param = made([7, 9])
    optimizer = GrokAdamW([param])
    optimizer.set_mask(param, KEPT)
    param.data = torch.ones(3)
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"the mask of parameter 0 .* was set for shape .*set it again"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_that_someone_deletes_from_the_state_is_gone_at_the_next_step(backend) -> None:
    param = made([40])
    optimizer = GrokAdamW([param], backend=backend)
    optimizer.set_masks({param: some(param)})
    for seed in range(3):
        set_grad(param, seed, special=False)
        optimizer.step()
    pruned = param == 0
    del optimizer.state[param]["mask"]
    set_grad(param, 3, special=False)
    optimizer.step()
    assert pruned.any()
    assert (param != 0).all()
