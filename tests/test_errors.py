"""Options and parameters that cannot be are refused by name, before anything has changed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from snapshot import INF, NAN, Snapshot, param
from stepping import BACKENDS, OPTIONS, assert_same_bits, train, values
from torch import Tensor

from grokfused import GrokAdam, GrokAdamW, step_in_backward

# --- options ---------------------------------------------------------------------------------------------


class Bad(NamedTuple):
    """An option that must be refused, with words that the message must hold."""

    name: str
    value: Any
    error: type[Exception]
    words: tuple[str, ...]


def bad_options() -> list[Bad]:
    numbers = {
        "lr": ("lr", "finite number >= 0"),
        "eps": ("eps", "finite number >= 0"),
        "weight_decay": ("weight_decay", "finite number >= 0"),
        "alpha": ("alpha", "[0, 1)"),
        "lamb": ("lamb", "finite number"),
    }
    outside = {
        "lr": (-1.0, NAN, INF, torch.tensor(-1.0), torch.tensor([NAN])),
        "eps": (-1e-9, NAN, INF),
        "weight_decay": (-0.5, NAN, INF),
        "alpha": (-0.1, 1.0, 1.5, NAN, INF),
        "lamb": (NAN, INF, -INF),
    }
    rows = []
    for name, words in numbers.items():
        for value in outside[name]:
            shown = value.item() if isinstance(value, Tensor) else value
            rows.append(Bad(name, value, ValueError, (*words, str(shown))))
        for value in ("0.1", None, True, [0.1], 1j, *([] if name == "lr" else [torch.tensor([0.5])])):
            rows.append(Bad(name, value, TypeError, (*words, repr(value))))
    two = torch.tensor([0.25, 0.5])
    rows.append(Bad("lr", two, ValueError, ("Tensor lr must be 1-element", "[2]")))
    rows.append(Bad("betas", (0.9, two), ValueError, ("Tensor betas[1] must be 1-element", "[2]")))
    words = ("beta", "[0, 1)")
    for betas in ((1.0, 0.9), (0.9, -0.25), (NAN, 0.9), (0.9, INF)):
        index = 0 if not 0 <= betas[0] < 1 else 1
        rows.append(Bad("betas", betas, ValueError, (*words, f"index {index}", str(betas[index]))))
    for wrong in (0.9, None, (0.9,), (0.9, 0.99, 0.999), "ab", ("0.9", 0.99), (0.9, True)):
        rows.append(Bad("betas", wrong, TypeError, ("betas", "[0, 1)")))
    choices = {
        "grad_filter": "('ema', 'mean', 'none')",
        "grad_ema_init": "('first', 'zero')",
        "state_rounding": "('stochastic', 'nearest')",
        "param_rounding": "('nearest', 'stochastic', 'kahan')",
        "backend": "('auto', 'native', 'triton', 'reference')",
    }
    for name, allowed in choices.items():
        for value in ("EMA", "", None, 1, ["ema"], numpy.array(["ema", "none"])):
            rows.append(Bad(name, value, ValueError, (name, allowed, repr(value))))
    for value in (torch.float64, torch.float16, torch.int8, "float8", None, 16):
        rows.append(
            Bad(
                "state_dtype",
                value,
                ValueError,
                ("state_dtype", "torch.float32 or torch.bfloat16", repr(value)),
            )
        )
    for name in ("amsgrad", "maximize", "capturable", "differentiable"):
        for value in (1, "yes", None):
            rows.append(Bad(name, value, TypeError, (name, "True or False", repr(value))))
    for name in ("foreach", "fused"):
        for value in ("yes", 1, 0):
            rows.append(Bad(name, value, TypeError, (name, "None, True or False", repr(value))))
    for value in (0, 0.0, -1.0, NAN, INF, 1e39):
        rows.append(Bad("max_grad_norm", value, ValueError, ("max_grad_norm", "> 0", repr(value))))
    for value in ("1", True, [1.0], torch.tensor(1.0)):
        rows.append(Bad("max_grad_norm", value, TypeError, ("max_grad_norm", "> 0", repr(value))))
    for value in (1.5, "1", None, True):
        rows.append(Bad("seed", value, TypeError, ("seed", "integer", repr(value))))
    # The op takes 64 bits.
    rows.append(Bad("seed", 2**70, ValueError, ("seed", str(2**70))))
    rows.append(Bad("differentiable", True, ValueError, ("differentiable=True is not supported",)))
    # Finite, but not as the float32 that the step computes with: every element would become NaN.
    rows.append(Bad("lamb", 1e39, ValueError, ("lamb", "1e+39")))
    rows.append(Bad("lr", 1e39, ValueError, ("learning rate", "1e+39")))
    for name in ("lr", "eps", "weight_decay", "alpha", "lamb", "max_grad_norm"):
        rows.append(Bad(name, 10**400, ValueError, (name.split("_")[-1][:2], str(10**400))))
    rows.append(Bad("lr", torch.ones((), device="meta"), ValueError, ("Tensor lr", "meta device")))
    return rows


BAD_OPTIONS = bad_options()
OPTION_IDS = [f"{bad.name}={bad.value!r}".replace("\n", "") for bad in BAD_OPTIONS]


@pytest.mark.parametrize("bad", BAD_OPTIONS, ids=OPTION_IDS)
@pytest.mark.parametrize("kind", [GrokAdamW, GrokAdam])
def test_a_bad_option_is_refused_by_the_constructor(kind, bad: Bad) -> None:
    with pytest.raises(bad.error) as raised:
        kind([param(3)], **{bad.name: bad.value})
    for word in bad.words:
        assert word in str(raised.value)


@pytest.mark.parametrize("bad", BAD_OPTIONS, ids=OPTION_IDS)
def test_a_bad_option_is_refused_in_a_group(bad: Bad) -> None:
    group = {"params": [param(3)], bad.name: bad.value}
    with pytest.raises(bad.error):
        GrokAdamW([{"params": [param(4)]}, group], **OPTIONS)
    optimizer = GrokAdamW([param(4)], **OPTIONS)
    before = Snapshot(optimizer)
    with pytest.raises(bad.error) as raised:
        optimizer.add_param_group(group)
    for word in bad.words:
        assert word in str(raised.value)
    before.assert_unchanged()


@pytest.mark.parametrize("kind", [GrokAdamW, GrokAdam])
def test_flags_that_exclude_each_other_are_refused_in_torchs_words(kind) -> None:
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        kind([param(3)], foreach=True, fused=True)
    with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
        kind([param(3)], fused=True, differentiable=True)


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("lambda_", "lamb"),
        ("lamda", "lamb"),
        ("alphas", "alpha"),
        ("weigth_decay", "weight_decay"),
        ("beta", "betas"),
        ("learning_rate", None),
        ("grad_filters", "grad_filter"),
        ("statedtype", "state_dtype"),
        ("xyz", None),
    ],
)
@pytest.mark.parametrize("kind", [GrokAdamW, GrokAdam])
def test_an_unknown_keyword_is_refused_and_the_nearest_one_named(kind, unknown, nearest) -> None:
    with pytest.raises(TypeError) as raised:
        kind([param(3)], **{unknown: 0.5})
    assert repr(unknown) in str(raised.value)
    assert (f"did you mean {nearest!r}?" if nearest else "known are ['lr', 'betas'") in str(raised.value)


# --- parameters ------------------------------------------------------------------------------------------


BAD_PARAMS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "conjugated": (
        lambda: torch.ones(3, dtype=torch.complex64).conj().requires_grad_(),
        ValueError,
        r"conjugated only when read.*resolve_conj",
    ),
    "float8": (
        lambda: torch.zeros(3, dtype=torch.float8_e4m3fn).requires_grad_(),
        TypeError,
        "float32, bfloat16, float16, float64, complex64, complex128, got torch.float8",
    ),
    "sparse": (lambda: torch.zeros(3).to_sparse().requires_grad_(), TypeError, "dense tensor.*sparse"),
    "expanded": (lambda: torch.ones(1).expand(3).requires_grad_(), ValueError, "overlaps itself.*expanded"),
    "overlapping": (
        lambda: torch.ones(9).as_strided((4, 4), (1, 1)).requires_grad_(),
        ValueError,
        "overlaps itself",
    ),
    "nested": (
        lambda: torch.nested.nested_tensor(
            [torch.ones(2), torch.ones(3)], layout=torch.jagged, requires_grad=True
        ),
        TypeError,
        "dense tensor, got a nested tensor",
    ),
    "no tensor": (lambda: [1.0], TypeError, "must be a torch.Tensor, got list"),
    "not a leaf": (lambda: param(3) * 2, ValueError, "non-leaf"),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_a_parameter_that_cannot_be_stepped_is_refused(make, error, message) -> None:
    with pytest.raises(error, match=message):
        GrokAdamW([param(4), make()], **OPTIONS)
    optimizer = GrokAdamW([param(4)], **OPTIONS)
    before = Snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [param(4), make()], "lr": 0.25})
    before.assert_unchanged()


def test_a_refused_parameter_is_called_by_its_name() -> None:
    with pytest.raises(TypeError, match=r"parameter 'head.weight' of group 0"):
        GrokAdamW([("head.weight", param(3).detach().to(torch.float8_e5m2).requires_grad_())])
    with pytest.raises(TypeError, match=r"parameter 1 of group 0"):
        GrokAdamW([param(3), param(3).detach().to(torch.float8_e5m2).requires_grad_()])


# Frozen ones are accepted, as by torch: what is checked is what is stepped.
FROZEN: dict[str, Callable[[], Tensor]] = {
    "integer": lambda: torch.arange(3),
    "bool": lambda: torch.zeros(3, dtype=torch.bool),
    "float8": lambda: torch.zeros(3, dtype=torch.float8_e4m3fn),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "expanded": lambda: torch.ones(1).expand(3),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", FROZEN.values(), ids=FROZEN)
def test_a_frozen_parameter_may_be_anything(make, backend) -> None:
    trained = param(4)
    optimizer = GrokAdamW([("frozen", make()), ("trained", trained)], backend=backend, **OPTIONS)
    optimizer.add_param_group({"params": [("later", make())]})
    with step_in_backward(optimizer):
        trained.sum().backward()
    trained.grad = torch.ones(4)
    optimizer.step()
    assert list(optimizer.state) == [trained]
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[trained]["step"] == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["integer", "bool", "expanded"])
def test_a_frozen_parameter_is_refused_by_name_once_it_is_to_be_stepped(kind, backend) -> None:
    frozen = FROZEN[kind]()
    optimizer = GrokAdamW([("frozen", frozen), ("trained", param(4))], backend=backend, **OPTIONS)
    frozen.grad = torch.ones_like(frozen)
    before = Snapshot(optimizer)
    _, error, message = BAD_PARAMS.get(kind, (None, TypeError, rf"float32, bfloat16.*{frozen.dtype}"))
    for act in (optimizer.step, lambda: optimizer.set_mask(frozen, torch.ones(3, dtype=torch.bool))):
        with pytest.raises(error, match=f"parameter 'frozen' of group 0.*{message}"):
            act()
        before.assert_unchanged()


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_of_lazy_modules_train_once_they_are_initialized(backend) -> None:
    models = [torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 1)) for _ in range(2)]
    optimizer = GrokAdamW(models[0].named_parameters(), backend=backend, **OPTIONS)
    optimizer.step()
    for act in (
        lambda: optimizer.set_mask("0.weight", torch.ones(3, 2, dtype=torch.bool)),
        lambda: step_in_backward(optimizer),
    ):
        with pytest.raises(
            ValueError, match=r"'0.weight' of group 0 \(not initialised yet\).*lazy module once"
        ):
            act()
    with torch.no_grad():
        for model in models:
            model(torch.ones(4, 2))
    models[1].load_state_dict(models[0].state_dict())
    late = GrokAdamW(models[1].named_parameters(), backend=backend, **OPTIONS)
    for each in (optimizer, late):
        train(each, 3)
    assert_same_bits(values(optimizer), values(late))


def test_a_model_in_place_of_its_parameters_is_named() -> None:
    model = torch.nn.Linear(2, 2)
    for params in model, [{"params": model}]:
        with pytest.raises(TypeError, match=r"params must be .*, got Linear: give its parameters\(\)"):
            GrokAdamW(params)


def test_no_parameters_and_the_same_parameter_twice_are_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        GrokAdamW([])
    shared = param(3)
    optimizer = GrokAdamW([shared])
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [shared]})
    before.assert_unchanged()
