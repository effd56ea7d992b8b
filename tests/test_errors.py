"""What is wrong is refused by name, at once, and whole: afterwards nothing has changed."""

import copy
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from stepping import BACKENDS, OPTIONS
from torch import Tensor

import grokfused.ops  # noqa: F401  (registers the op)
from grokfused import BackendUnavailable, GrokAdam, GrokAdamW
from grokfused.lab.agreement import differing_bits

NAN, INF = math.nan, math.inf


class Snapshot:
    """Copies of everything an optimizer owns, to tell whether anything changed."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.params = [param for group in optimizer.param_groups for param in group["params"]]
        self.tensors = self._tensors()
        self.options = copy.deepcopy(self._options())

    def _tensors(self) -> list[tuple[str, Tensor]]:
        found = []
        for index, param in enumerate(self.params):
            arrays = {"param": param.detach(), **self.optimizer.state.get(param, {})}
            found += [
                (f"{index} {name}", value.clone() if not value.is_meta else value)
                for name, value in arrays.items()
            ]
        return found

    def _options(self) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]

    def assert_unchanged(self) -> None:
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        assert list(map(id, params)) == list(map(id, self.params))
        # repr, because NaN is not equal to itself.
        assert repr(self._options()) == repr(self.options)
        tensors = self._tensors()
        assert [name for name, _ in tensors] == [name for name, _ in self.tensors]
        for (name, now), (_, before) in zip(tensors, self.tensors, strict=True):
            if not now.is_meta:
                assert bits_equal(now, before), name


def bits_equal(a: Tensor, b: Tensor) -> bool:
    if a.element_size() in (2, 4):
        return differing_bits(a, b) == 0
    return torch.equal(a, b)


def param(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype).requires_grad_()


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
        "grad_filter": "('ema', 'none')",
        "grad_ema_init": "('first', 'zero')",
        "state_rounding": "('stochastic', 'nearest')",
        "backend": "('auto', 'native', 'triton', 'reference')",
    }
    for name, allowed in choices.items():
        for value in ("EMA", "", None, 1, ["ema"]):
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


@pytest.mark.parametrize(
    ("misspelt", "meant"), [("lam", "lamb"), ("weight_deacy", "weight_decay"), ("beta", "betas")]
)
def test_a_misspelt_group_key_is_refused(misspelt, meant) -> None:
    optimizer = GrokAdamW([param(4)], **OPTIONS)
    before = Snapshot(optimizer)
    with pytest.raises(TypeError, match=f"did you mean '{meant}'"):
        optimizer.add_param_group({"params": [param(3)], misspelt: 0.5})
    before.assert_unchanged()
    with pytest.raises(TypeError, match=f"did you mean '{meant}'"):
        GrokAdamW([{"params": [param(3)], misspelt: 0.5}], **OPTIONS)


def test_group_keys_of_other_tools_are_kept() -> None:
    optimizer = GrokAdamW([{"params": [param(3)], "name": "head", "initial_lr": 0.1, "lr_scale": 2}])
    group = optimizer.param_groups[0]
    assert (group["name"], group["initial_lr"], group["lr_scale"]) == ("head", 0.1, 2)


# --- parameters ------------------------------------------------------------------------------------------

BAD_PARAMS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "complex": (lambda: param(3, dtype=torch.complex64), TypeError, "complex.*torch.view_as_real"),
    "integer": (lambda: torch.zeros(3, dtype=torch.int64), TypeError, "float32, bfloat16 or float16.*int64"),
    "bool": (lambda: torch.zeros(3, dtype=torch.bool), TypeError, "float32, bfloat16 or float16.*bool"),
    "float64": (lambda: param(3, dtype=torch.float64), TypeError, "float32, bfloat16 or float16.*float64"),
    "sparse": (lambda: torch.zeros(3).to_sparse().requires_grad_(), TypeError, "dense tensor.*sparse"),
    "expanded": (lambda: torch.ones(1).expand(3).requires_grad_(), ValueError, "overlaps itself.*expanded"),
    "overlapping": (
        lambda: torch.ones(9).as_strided((4, 4), (1, 1)).requires_grad_(),
        ValueError,
        "overlaps itself",
    ),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
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
        GrokAdamW([("head.weight", param(3, dtype=torch.float64))])
    with pytest.raises(TypeError, match=r"parameter 1 of group 0"):
        GrokAdamW([param(3), param(3, dtype=torch.float64)])


def test_no_parameters_and_the_same_parameter_twice_are_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        GrokAdamW([])
    shared = param(3)
    optimizer = GrokAdamW([shared])
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [shared]})
    before.assert_unchanged()


# --- steps -----------------------------------------------------------------------------------------------


class WithGrad(torch.nn.Parameter):
    """A parameter whose gradient is whatever it is told to be; torch's own setter would refuse some."""

    given: Tensor | None = None

    @property
    def grad(self) -> Tensor | None:
        return self.given

    @grad.setter
    def grad(self, grad: Tensor | None) -> None:
        self.given = grad


Errors = type[Exception] | tuple[type[Exception], ...]
Break = Callable[[torch.optim.Optimizer, Tensor], None]


def with_grad(change: Callable[[Tensor], Tensor]) -> Break:
    def spoil(optimizer: torch.optim.Optimizer, victim: Tensor) -> None:
        assert victim.grad is not None
        victim.grad = change(victim.grad)

    return spoil


def with_data(change: Callable[[Tensor], Tensor], *, grad_too: bool) -> Break:
    def spoil(optimizer: torch.optim.Optimizer, victim: Tensor) -> None:
        victim.data = change(victim.data)
        if grad_too:
            victim.grad = torch.ones_like(victim.data)

    return spoil


def with_option(**changes: Any) -> Break:
    return lambda optimizer, victim: optimizer.param_groups[-1].update(changes)


def with_state_of_another_shape(optimizer: torch.optim.Optimizer, victim: Tensor) -> None:
    state = optimizer.state[victim]
    state.setdefault("step", torch.zeros(()))
    for name in ("exp_avg", "exp_avg_sq", "grad_ema"):
        state[name] = torch.zeros(7)


def without_option(name: str) -> Break:
    return lambda optimizer, victim: optimizer.param_groups[-1].pop(name)


BREAKS: dict[str, tuple[Break, Errors, str]] = {
    "sparse gradient": (with_grad(Tensor.to_sparse), RuntimeError, "sparse_coo.*nn.Embedding"),
    "gradient of another size": (with_grad(lambda g: g[:2]), RuntimeError, r"shape|strides"),
    "gradient of another shape": (with_grad(lambda g: g.reshape(6, 4)), RuntimeError, "shape"),
    "gradient of fewer dimensions": (with_grad(lambda g: g.reshape(24)), RuntimeError, "shape"),
    "gradient of another dtype": (with_grad(Tensor.half), RuntimeError, "float16"),
    "wider gradient": (with_grad(Tensor.double), RuntimeError, "float64|Double"),
    "complex gradient": (with_grad(lambda g: g.to(torch.complex64)), RuntimeError, "complex|Complex"),
    "gradient on another device": (with_grad(lambda g: g.to("meta")), RuntimeError, "device"),
    "parameter of another shape": (
        with_data(lambda p: p.reshape(6, 4), grad_too=False),
        RuntimeError,
        "shape",
    ),
    "parameter cut short": (with_data(lambda p: p[:2], grad_too=False), RuntimeError, "shape"),
    "parameter and gradient cut short": (
        with_data(lambda p: p[:2], grad_too=True),
        RuntimeError,
        "shape|state",
    ),
    "parameter made float64": (
        with_data(Tensor.double, grad_too=True),
        (TypeError, RuntimeError),
        "float32, bfloat16 or float16",
    ),
    "parameter expanded": (
        with_data(lambda p: p[:1, :1].expand(4, 6), grad_too=True),
        (ValueError, RuntimeError),
        "overlap",
    ),
    "state of another shape": (with_state_of_another_shape, (RuntimeError, ValueError), "shape|size"),
    **{
        f"without {name}": (without_option(name), ValueError, rf"param_groups\[.\] has lost \['{name}'\]")
        for name in ("lr", "lamb", "weight_decay", "max_grad_norm", "maximize", "seed")
    },
    "lr < 0": (with_option(lr=-0.5), ValueError, "learning rate: -0.5"),
    "lr a word": (with_option(lr="0.5"), TypeError, "lr must be .*'0.5' of type str"),
    "betas >= 1": (with_option(betas=(0.9, 1.0)), ValueError, "index 1: 1.0"),
    "one beta": (with_option(betas=0.9), TypeError, "betas"),
    "eps < 0": (with_option(eps=-1e-3), ValueError, "epsilon value: -0.001"),
    "weight_decay nan": (with_option(weight_decay=NAN), ValueError, "weight_decay value: nan"),
    "alpha 1": (with_option(alpha=1.0), ValueError, r"alpha value: 1.0 .*\[0, 1\)"),
    "lamb inf": (with_option(lamb=INF), ValueError, "lamb value: inf"),
    "unknown filter": (with_option(grad_filter="mean"), ValueError, "grad_filter.*'mean'"),
    "unknown init": (with_option(grad_ema_init="last"), ValueError, "grad_ema_init.*'last'"),
    "unknown backend": (with_option(backend="cuda"), ValueError, "backend.*'cuda'"),
    "unknown rounding": (with_option(state_rounding="up"), ValueError, "state_rounding.*'up'"),
    "unknown state dtype": (with_option(state_dtype="int8"), ValueError, "state_dtype.*'int8'"),
    "amsgrad a word": (with_option(amsgrad="no"), TypeError, "amsgrad.*'no'"),
    "maximize a word": (with_option(maximize="no"), TypeError, "maximize.*'no'"),
    "differentiable": (with_option(differentiable=True), ValueError, "differentiable"),
    "foreach and fused": (with_option(foreach=True, fused=True), RuntimeError, "fused.*foreach"),
    "seed a fraction": (with_option(seed=0.5), TypeError, "seed.*0.5"),
    "seed of too many bits": (with_option(seed=2**70), ValueError, f"seed.*{2**70}"),
}
# Without states a shorter parameter is as good as any; of the other one see the next test.
FIRST_STEP = BREAKS.keys() - {"parameter and gradient cut short"}
LATER_STEP = BREAKS.keys() - {"gradient on another device"}
CASES = [(name, 0) for name in BREAKS if name in FIRST_STEP]
CASES += [(name, 3) for name in BREAKS if name in LATER_STEP]


@pytest.mark.parametrize("place", ["only", "second group", "second bucket"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "steps"), CASES, ids=[f"{name} after {steps} steps" for name, steps in CASES]
)
def test_a_step_that_cannot_be_taken_changes_nothing(name, steps, backend, place) -> None:
    spoil, error, message = BREAKS[name]
    first_dtype = torch.bfloat16 if place == "second bucket" else torch.float32
    params = [] if place == "only" else [WithGrad(torch.ones(5, dtype=first_dtype))]
    victim = WithGrad(torch.ones(4, 6))
    params.append(victim)
    optimizer = GrokAdamW([{"params": [each]} for each in params], backend=backend, **OPTIONS)
    for each in params:
        each.grad = torch.full_like(each, 0.5)
    for _ in range(steps):
        optimizer.step()
    spoil(optimizer, victim)
    before = Snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.step()
    before.assert_unchanged()


FOREIGN_GRAD = """
import sys
sys.path.insert(0, "tests")
from test_errors import BACKENDS, GrokAdamW, Snapshot, WithGrad, torch
for backend in BACKENDS:
    param = WithGrad(torch.ones(4, 6))
    param.grad = torch.ones(4, 6)
    optimizer = GrokAdamW([param], backend=backend)
    optimizer.step()
    optimizer.step()
    param.grad = torch.ones(4, 6, device="meta")
    before = Snapshot(optimizer)
    try:
        optimizer.step()
    except RuntimeError as error:
        before.assert_unchanged()
        print(error)
"""


def test_a_gradient_that_moved_to_another_device_is_refused(request) -> None:
    # In a process of its own: reading at an address of that device would end it.
    root = request.config.rootpath
    shown = subprocess.run([sys.executable, "-c", FOREIGN_GRAD], capture_output=True, text=True, cwd=root)
    assert shown.returncode == 0, shown.stderr
    refused = re.findall(
        "must have device cpu, got meta|must be on one device, got .'cpu', 'meta'", shown.stdout
    )
    assert len(refused) == len(BACKENDS)


@pytest.mark.parametrize("first", [[], [3]], ids=["only", "second bucket"])
def test_a_refusing_backend_changes_nothing(first) -> None:
    base = torch.ones(4, 6)
    params = [*(param(size, dtype=torch.bfloat16) for size in first), base[:, ::2].requires_grad_()]
    optimizer = GrokAdamW(params, backend="native", **OPTIONS)
    for each in params:
        each.grad = torch.ones_like(each)
    before = Snapshot(optimizer)
    with pytest.raises(BackendUnavailable, match=r"backend='native' cannot run here: .*gaps"):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.filterwarnings("ignore:grokfused takes its slow reference backend:RuntimeWarning")
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_parameter_without_memory_is_refused(backend) -> None:
    params = [param(3), torch.ones(4, device="meta").requires_grad_()]
    optimizer = GrokAdamW(params, backend=backend, **OPTIONS)
    for each in params:
        each.grad = torch.ones_like(each)
    before = Snapshot(optimizer)
    with pytest.raises((RuntimeError, TypeError, ValueError), match="meta"):
        optimizer.step()
    before.assert_unchanged()


def test_a_closure_that_raises_changes_nothing() -> None:
    victim = param(3)
    optimizer = GrokAdamW([victim], **OPTIONS)
    victim.grad = torch.ones(3)
    optimizer.step()
    before = Snapshot(optimizer)

    def closure() -> None:
        raise KeyError("no batch left")

    with pytest.raises(KeyError, match="no batch left"):
        optimizer.step(closure)
    before.assert_unchanged()


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_goes_on_after_a_refused_step(backend) -> None:
    results = []
    for stumble in (False, True):
        victim = param(4, 6)
        optimizer = GrokAdamW([victim], backend=backend, **OPTIONS)
        victim.grad = torch.full((4, 6), 0.5)
        optimizer.step()
        if stumble:
            victim.grad = torch.ones(4, 6).to_sparse()
            with pytest.raises(RuntimeError, match="sparse"):
                optimizer.step()
            optimizer.param_groups[0]["alpha"] = 2.0
            victim.grad = torch.full((4, 6), 0.5)
            with pytest.raises(ValueError, match="alpha"):
                optimizer.step()
            optimizer.param_groups[0]["alpha"] = OPTIONS["alpha"]
        optimizer.step()
        results.append({"param": victim.detach(), **optimizer.state[victim]})
    for name in results[0]:
        assert differing_bits(results[0][name], results[1][name]) == 0


# --- the op itself ---------------------------------------------------------------------------------------

LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "grad_emas")
OP = torch.ops.grokfused.adamw_step_


def op_arguments(amsgrad: bool = True) -> dict[str, Any]:
    """Good arguments for two tensors; every list of tensors is filled."""
    arguments: dict[str, Any] = {
        name: [torch.full((4, 6), 0.5), torch.full((7,), 0.25)] for name in LISTS if amsgrad or name[0] != "m"
    }
    arguments.setdefault("max_exp_avg_sqs", [])
    return {
        **arguments,
        "masks": [torch.ones(1, dtype=torch.int32), torch.empty(0, dtype=torch.int32)],
        "steps": torch.zeros(2),
        "scalars": torch.full((2, 13), 0.5),
        "rows": [0, 1],
        "grad_filter": "ema",
        "decay": "decoupled",
        "amsgrad": amsgrad,
        "state_rounding": "nearest",
        "seed": 3,
        "mask_modes": [1, 0],
    }


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def spoil(arguments: dict[str, Any]) -> None:
        arguments[name] = change(arguments[name])

    return spoil


def second(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], None]:
    return changed(name, lambda tensors: [tensors[0], change(tensors[1])])


def first(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], None]:
    return changed(name, lambda tensors: [change(tensors[0]), tensors[1]])


def every(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], None]:
    def spoil(arguments: dict[str, Any]) -> None:
        for name in LISTS:
            arguments[name] = [change(tensor) for tensor in arguments[name]]

    return spoil


BAD_CALLS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unused list": (changed("amsgrad", lambda _: False), "max_exp_avg_sqs must hold 0 tensors"),
    "unused filter state": (changed("grad_filter", lambda _: "none"), "grad_emas must hold 0 tensors"),
    "integer params": (every(Tensor.int), "float32, bfloat16 or float16"),
    "float64 params": (every(Tensor.double), "float32, bfloat16 or float16"),
    "params with gaps": (
        every(lambda t: torch.stack([t, t], dim=-1)[..., 0]),
        r"params\[0\] must fill its memory.*strides \[12, 2\]",
    ),
    "expanded params": (every(lambda t: t.flatten()[0].expand(t.shape)), r"params\[0\] must fill its memory"),
    "too few rows": (changed("rows", lambda rows: rows[:1]), "rows must hold 2 integers.* got 1"),
    "too many rows": (changed("rows", lambda rows: [*rows, 0]), "rows must hold 2 integers.* got 3"),
    "negative row": (changed("rows", lambda _: [0, -1]), r"rows must be in \[0, 2\), got -1"),
    "row past the table": (changed("rows", lambda _: [0, 2]), r"rows must be in \[0, 2\), got 2"),
    "empty table": (changed("scalars", lambda s: s[:0]), r"rows must be in \[0, 0\)"),
    "narrow table": (changed("scalars", lambda s: s[:, :12].clone()), r"scalars .*\[rows, 13\].*\[2, 12\]"),
    "wide table": (changed("scalars", lambda s: torch.ones(2, 14)), r"scalars .*\[rows, 13\].*\[2, 14\]"),
    "flat table": (changed("scalars", Tensor.flatten), r"scalars .*\[rows, 13\].*\[26\]"),
    "float64 table": (changed("scalars", Tensor.double), "scalars must be a contiguous float32"),
    "transposed table": (
        changed("scalars", lambda s: s.t().contiguous().t()),
        "scalars must be a contiguous float32",
    ),
    "table elsewhere": (changed("scalars", lambda s: s.to("meta")), "must be on one device"),
    "too few steps": (changed("steps", lambda s: s[:1]), r"steps .*shape \[2\], got float32 \[1\]"),
    "steps in a matrix": (changed("steps", lambda s: s[None]), r"steps .*shape \[2\], got float32 \[1, 2\]"),
    "integer steps": (changed("steps", Tensor.int), "steps must be a contiguous float32"),
    "steps with gaps": (changed("steps", lambda s: torch.zeros(4)[::2]), "steps must be a contiguous"),
    "unknown filter": (changed("grad_filter", lambda _: "mean"), "grad_filter must be none or ema, got mean"),
    "unknown decay": (changed("decay", lambda _: "l2"), "decay must be coupled or decoupled, got l2"),
    "unknown rounding": (
        changed("state_rounding", lambda _: "up"),
        "state_rounding must be nearest or stochastic, got up",
    ),
    "too few masks": (changed("masks", lambda masks: masks[:1]), "masks must hold 2 tensors"),
    "bool mask": (
        first("masks", Tensor.bool),
        r"masks\[0\] must be contiguous int32 words, \[1\].* got Bool",
    ),
    "long mask": (
        first("masks", lambda m: m.repeat(2)),
        r"masks\[0\] must be .*int32 words, \[1\].* int32 \[2\]",
    ),
    "matrix mask": (
        first("masks", lambda m: m[None]),
        r"masks\[0\] must be .*int32 words, .* int32 \[1, 1\]",
    ),
    "mask elsewhere": (first("masks", lambda m: m.to("meta")), "device|meta|Meta"),
    "too few modes": (
        changed("mask_modes", lambda _: [1]),
        "mask_modes must hold one integer per mask, got 1 for 2",
    ),
    "unknown mode": (
        changed("mask_modes", lambda _: [2, 0]),
        r"mask_modes must be 0 \(zero\) or 1 \(freeze\), got 2",
    ),
}
for _name in LISTS:
    BAD_CALLS[f"{_name}: too many"] = (changed(_name, lambda x: [*x, x[0].clone()]), "must hold [23] tensors")
    if _name == "params":
        _message = r"params\[1\] must be float32 like params\[0\]"
    else:
        _message = rf"{_name}\[1\] must be float32, got bfloat16"
        BAD_CALLS[f"{_name}: too few"] = (changed(_name, lambda x: x[:1]), f"{_name} must hold 2 tensors")
        BAD_CALLS[f"{_name}: of another shape"] = (
            second(_name, lambda t: t[:6].clone()),
            rf"{_name}\[1\] must have the shape of params\[1\], \[7\], got \[6\]",
        )
        BAD_CALLS[f"{_name}: of the same size"] = (
            first(_name, lambda t: t.reshape(6, 4)),
            rf"{_name}\[0\] must have the shape of params\[0\]",
        )
        BAD_CALLS[f"{_name}: of other strides"] = (
            first(_name, lambda t: t.t().contiguous().t()),
            rf"{_name}\[0\] must have the strides of params\[0\], \[6, 1\], got \[1, 4\]",
        )
        BAD_CALLS[f"{_name}: with gaps"] = (
            second(_name, lambda t: torch.stack([t, t], dim=-1)[..., 0]),
            rf"{_name}\[1\] must have the strides of params\[1\], \[1\], got \[2\]",
        )
    BAD_CALLS[f"{_name}: of another dtype"] = (second(_name, Tensor.bfloat16), _message)
    BAD_CALLS[f"{_name}: elsewhere"] = (second(_name, lambda t: t.to("meta")), "device|meta|Meta")


@pytest.mark.parametrize("name", BAD_CALLS)
def test_the_op_refuses_bad_arguments_and_changes_nothing(name) -> None:
    spoil, message = BAD_CALLS[name]
    arguments = op_arguments()
    spoil(arguments)
    tensors = [tensor for key in LISTS for tensor in arguments[key]] + [arguments["steps"]]
    tensors = [tensor for tensor in tensors if not tensor.is_meta]
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(RuntimeError, match=message):
        OP(**arguments)
    assert all(map(bits_equal, tensors, before))


def test_the_op_takes_good_arguments() -> None:
    arguments = op_arguments()
    before = arguments["params"][1].clone()
    OP(**arguments)
    assert not torch.equal(arguments["params"][1], before)
    assert arguments["steps"].tolist() == [0.5, 0.5]
    nothing = {name: [] for name in (*LISTS, "masks", "mask_modes")}
    OP(**{**op_arguments(), **nothing, "steps": torch.zeros(0), "rows": []})


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_torch_itself_finds_the_op_registered_well(amsgrad, requires_grad) -> None:
    arguments = op_arguments(amsgrad)
    for tensor in arguments["params"]:
        tensor.requires_grad_(requires_grad)
    names = (*LISTS, "masks", "steps", "scalars", "rows")
    positional = tuple(arguments.pop(name) for name in names)
    checks = torch.library.opcheck(OP.default, positional, arguments)
    assert checks == dict.fromkeys(checks, "SUCCESS")


@pytest.mark.parametrize("of", ["param", "grad"])
@pytest.mark.parametrize("earlier_steps", [0, 1])
def test_freed_storage_is_refused(earlier_steps, of) -> None:
    param = torch.ones(4, requires_grad=True)
    param.grad = torch.ones(4)
    optimizer = GrokAdamW([param], backend="native")
    for _ in range(earlier_steps):
        optimizer.step()
    (param if of == "param" else param.grad).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=rf"{of}s\[0\] has no memory: its storage was freed"):
        optimizer.step()
