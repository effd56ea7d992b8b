"""The mask room: what is left out is 0 or untouched, exactly, whatever else happens."""

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import BACKENDS, OPTIONS
from torch import Tensor, nn
from torch.nn.utils import prune

from grokfused import GrokAdam, GrokAdamW, mask
from grokfused.buckets import STATE_ARRAYS
from grokfused.lab.agreement import differing_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Words: whole, cut, of one lane; and every memory order there is.
SHAPES = [[], [0], [1], [31], [32], [33], [7, 9], [64, 96]]


def turned(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def made(shape: list[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return turned(values.to(dtype)).requires_grad_()


def some(param: Tensor, density: float = 0.4, seed: int = 1) -> Tensor:
    return torch.rand(param.shape, generator=torch.Generator().manual_seed(seed)) < density


def set_grad(param: Tensor, seed: int, special: bool = True) -> None:
    random = torch.Generator().manual_seed(seed)
    grad = torch.randn(param.shape, generator=random)
    if special and param.numel():
        flat = grad.view(-1)
        for value in (torch.nan, torch.inf, -torch.inf):
            flat[torch.randint(param.numel(), (1 + param.numel() // 8,), generator=random)] = value
    param.grad = torch.empty_like(param).copy_(grad.to(param.dtype))


def states(optimizer: GrokAdam, param: Tensor) -> list[Tensor]:
    return [optimizer.state[param][key] for key in STATE_ARRAYS if key in optimizer.state[param]]


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
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [GrokAdam, GrokAdamW])
def test_zero_keeps_parameter_and_states_at_zero_whatever_comes(kind, dtype, state_dtype, backend) -> None:
    params = [made(shape, dtype, seed) for seed, shape in enumerate(SHAPES)]
    optimizer = kind(params, amsgrad=True, state_dtype=state_dtype, backend=backend, seed=3, **OPTIONS)
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
    optimizer = GrokAdamW(params, amsgrad=True, state_dtype=state_dtype, backend=backend, **OPTIONS)
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


def test_masked_and_unmasked_parameters_take_their_step_in_one_call(monkeypatch) -> None:
    import grokfused.ops

    calls = []
    op = grokfused.ops.adamw_step_
    monkeypatch.setattr(grokfused.ops, "adamw_step_", lambda *a, **k: (calls.append(len(a[0])), op(*a, **k)))
    params = [made([8, 9]) for _ in range(4)]
    optimizer = GrokAdamW(params, backend="native")
    optimizer.set_mask(params[0], some(params[0]))
    optimizer.set_mask(params[1], some(params[1]), "freeze")
    for param in params:
        set_grad(param, 1)
    optimizer.step()
    assert calls == [4]


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


# --- names, checkpoints, copies ---------------------------------------------------------------------------


def test_names_and_parameters_mean_the_same() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = GrokAdamW(model.named_parameters())
    kept = {"0.weight": some(model[0].weight), model[1].weight: some(model[1].weight)}
    optimizer.set_masks(kept, mode="freeze")
    found = optimizer.masks()
    assert list(found) == [model[0].weight, model[1].weight]
    assert torch.equal(found[model[0].weight], kept["0.weight"])
    optimizer.remove_mask("0.weight")
    optimizer.set_masks(optimizer.masks())  # what masks() returns can be set again
    assert list(optimizer.masks()) == [model[1].weight]


def through_a_file(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("mode", mask.MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_checkpoint_holds_a_bool_mask_and_goes_on_bit_for_bit(dtype, mode) -> None:
    params = [made([33, 5], dtype), made([40], dtype)]
    optimizer = GrokAdamW(params, state_dtype=torch.bfloat16, **OPTIONS)
    set_grad(params[0], 1, special=False)
    optimizer.step()
    optimizer.set_mask(params[0], some(params[0]), mode)
    saved = through_a_file(optimizer.state_dict())
    assert torch.equal(saved["state"][0]["mask"], some(params[0]))
    assert saved["state"][0]["mask_mode"] == mode
    copies = [param.detach().contiguous().requires_grad_() for param in params]  # in another memory order
    resumed = GrokAdamW(copies)
    resumed.load_state_dict(saved)
    assert resumed.state[copies[0]]["mask"].words.dtype is torch.int32
    for number in range(2):
        for each, other in zip(params, copies, strict=True):
            set_grad(each, 3 + number, special=False)
            other.grad = each.grad.contiguous()
        optimizer.step()
        resumed.step()
    if torch.bfloat16 is not optimizer.state[params[1]]["exp_avg"].dtype:
        assert differing_bits(copies[0].detach(), params[0].detach()) == 0
    assert differing_bits(copies[1].detach(), params[1].detach()) == 0
    assert torch.equal(resumed.masks()[copies[0]], some(params[0]))


def test_a_mask_may_be_saved_before_the_first_step() -> None:
    param, other = made([7, 9]), made([7, 9])
    optimizer, resumed = GrokAdamW([param]), GrokAdamW([other])
    optimizer.set_mask(param, some(param), "freeze")
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert torch.equal(resumed.masks()[other], some(param))
    set_grad(other, 1)
    resumed.step()
    assert torch.equal(other[~some(param)], made([7, 9])[~some(param)])


def test_a_state_dict_without_masks_takes_them_away_and_one_that_is_wrong_is_refused() -> None:
    param = made([7, 9])
    optimizer = GrokAdamW([param])
    plain = copy.deepcopy(optimizer.state_dict())
    optimizer.set_mask(param, some(param))
    saved = through_a_file(optimizer.state_dict())
    for spoilt, message in (
        ({"mask": saved["state"][0]["mask"]}, "mode of a mask must be one of .* got None"),
        ({"mask_mode": "zero"}, "must be a bool tensor"),
        ({"mask": torch.ones(7, 9), "mask_mode": "zero"}, "must be a bool tensor.* got torch.float32"),
        ({"mask": torch.ones(9, 7, dtype=torch.bool), "mask_mode": "zero"}, "must have its shape"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict({**saved, "state": {0: spoilt}})
        assert torch.equal(optimizer.masks()[param], some(param))
    optimizer.load_state_dict(plain)
    assert optimizer.masks() == {}


def test_a_mask_that_got_lost_on_the_way_is_missed() -> None:
    params = [made([7, 9]), made([5]), made([3])]
    optimizer = GrokAdamW([{"params": params[:2]}, {"params": params[2:]}])
    for param in params[:2]:
        optimizer.set_mask(param, some(param))
    saved = through_a_file(optimizer.state_dict())
    assert [group["masks"] for group in saved["param_groups"]] == [2, 0]
    for key in "mask", "mask_mode":
        del saved["state"][1][key]
    with pytest.raises(ValueError, match="saved with 2 masks, of which 1 came"):
        optimizer.load_state_dict(saved)
    assert len(optimizer.masks()) == 2
    saved["param_groups"][0]["masks"] = 1  # on purpose
    optimizer.load_state_dict(saved)
    assert list(optimizer.masks()) == params[:1]
    assert all("masks" not in group for group in optimizer.param_groups)


def test_a_mask_is_refused_where_its_parameters_states_cannot_be_made() -> None:
    param, other = made([7, 9]), made([3])
    optimizer = GrokAdamW([param, other])
    optimizer.param_groups[0]["state_dtype"] = "float8"
    with pytest.raises(ValueError, match="state_dtype must be one of"):
        optimizer.set_masks({param: some(param), other: some(other)})
    assert not optimizer.state
    optimizer.param_groups[0]["state_dtype"] = "float32"
    set_grad(other, 1)
    optimizer.step()
    del optimizer.state[other]["exp_avg"]
    with pytest.raises(RuntimeError, match="has lost 'exp_avg'"):
        optimizer.set_masks({param: some(param), other: some(other)})
    assert optimizer.masks() == {}


def test_a_copy_and_a_pickled_optimizer_have_masks_of_their_own() -> None:
    param = made([7, 9])
    optimizer = GrokAdamW([param], **OPTIONS)
    optimizer.set_mask(param, some(param))
    copied_param, copied = copy.deepcopy((param, optimizer))
    copied.remove_mask(copied_param)
    assert list(optimizer.masks()) == [param]


# --- what is refused ----------------------------------------------------------------------------------------

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


# --- torch.nn.utils.prune -----------------------------------------------------------------------------------


def test_masks_of_torch_prune_are_taken_over() -> None:
    model = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 5))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.random_structured(model[1], "weight", amount=2, dim=0)
    prune.random_unstructured(model[1], "bias", amount=1)
    expected = {
        name.removesuffix("_mask"): values.clone().bool()
        for name, values in model.named_buffers()
        if name.endswith("_mask")
    }
    inputs = torch.randn(3, 9)
    output = model(inputs).detach()
    found = mask.from_prune(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert {name for name, _ in model.named_parameters()} == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert torch.equal(model(inputs), output)
    optimizer = GrokAdamW(model.named_parameters(), **OPTIONS)
    optimizer.set_masks(found)
    model(inputs).sum().backward()
    optimizer.step()
    assert all(not dict(model.named_parameters())[name][~kept].any() for name, kept in found.items())


def test_a_module_that_is_not_pruned_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing in this module is pruned"):
        mask.from_prune(nn.Linear(2, 2))


# --- any sequence -------------------------------------------------------------------------------------------


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
