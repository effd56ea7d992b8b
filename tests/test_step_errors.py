"""A step that cannot be taken is refused by name, and changes nothing."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from snapshot import INF, NAN, Snapshot, param
from stepping import BACKENDS, OPTIONS
from torch import Tensor

from grokfused import BackendUnavailable, GrokAdamW
from grokfused.lab.agreement import differing_bits


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
    "parameter of 8 bits": (
        with_data(lambda p: p.to(torch.float8_e4m3fn), grad_too=True),
        (TypeError, RuntimeError),
        "one of float32, bfloat16",
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
    "lr nan": (with_option(lr=NAN), ValueError, "learning rate: nan .*finite number, or a tensor"),
    "lr a tensor of infinity": (with_option(lr=torch.tensor(-INF)), ValueError, "learning rate: -inf"),
    "lr a word": (with_option(lr="0.5"), TypeError, "lr must be .*'0.5' of type str"),
    "beta1 1": (
        with_option(betas=(1.0, 0.9)),
        ValueError,
        "index 0: 1.0 .*finite number other than 1 and -1",
    ),
    "beta1 -1": (with_option(betas=(torch.tensor(-1.0), 0.9)), ValueError, "index 0: -1.0"),
    "beta1 inf": (with_option(betas=(INF, 0.9)), ValueError, "index 0: inf"),
    "beta2 > 1": (with_option(betas=(0.9, 1.5)), ValueError, r"index 1: 1.5 .*\[-1, 1\]"),
    "one beta": (with_option(betas=0.9), TypeError, "betas"),
    "eps inf": (with_option(eps=INF), ValueError, "epsilon value: inf"),
    "weight_decay nan": (with_option(weight_decay=NAN), ValueError, "weight_decay value: nan"),
    "alpha > 1": (with_option(alpha=1.5), ValueError, r"alpha value: 1.5 .*\[-1, 1\]; a wrapper"),
    "lamb inf": (with_option(lamb=INF), ValueError, "lamb value: inf"),
    "unknown filter": (with_option(grad_filter="median"), ValueError, "grad_filter.*'median'"),
    "unknown init": (with_option(grad_ema_init="last"), ValueError, "grad_ema_init.*'last'"),
    "unknown backend": (with_option(backend="cuda"), ValueError, "backend.*'cuda'"),
    "unknown rounding": (with_option(state_rounding="up"), ValueError, "state_rounding.*'up'"),
    "unknown rounding of parameters": (with_option(param_rounding="up"), ValueError, "param_rounding.*'up'"),
    "unknown state dtype": (with_option(state_dtype="int8"), ValueError, "state_dtype.*'int8'"),
    "amsgrad a word": (with_option(amsgrad="no"), TypeError, "amsgrad.*'no'"),
    "maximize a word": (with_option(maximize="no"), TypeError, "maximize.*'no'"),
    "differentiable": (with_option(differentiable=True), ValueError, "differentiable"),
    "foreach and fused": (with_option(foreach=True, fused=True), RuntimeError, "fused.*foreach"),
    "seed a fraction": (with_option(seed=0.5), TypeError, "seed.*0.5"),
    "amsgrad a tensor": (with_option(amsgrad=torch.ones(2)), TypeError, "amsgrad must be True or False"),
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
from test_step_errors import BACKENDS, GrokAdamW, Snapshot, WithGrad, torch
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


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_parameter_on_the_meta_device_is_stepped_as_by_torch(backend) -> None:
    def optimizer(*params: torch.Tensor) -> GrokAdamW:
        made = GrokAdamW(params, backend=backend, **OPTIONS)
        for _ in range(2):
            for each in params:
                each.grad = torch.ones_like(each)
            made.step()
        return made

    with_values, without = param(3), torch.ones(4, device="meta").requires_grad_()
    mixed, plain = optimizer(without, with_values), optimizer(alone := param(3))
    assert torch.equal(with_values, alone)
    state = mixed.state[without]
    assert state["step"].item() == mixed.state[with_values]["step"].item() == 2
    assert state.keys() == plain.state[alone].keys()
    assert all(state[name].is_meta and state[name].shape == (4,) for name in ("exp_avg", "exp_avg_sq"))
    # An overflow changes nothing.
    mixed.found_inf = torch.ones(1)
    mixed.step()
    assert state["step"].item() == mixed.state[with_values]["step"].item() == 2
    del mixed.found_inf
    # Checked before anything changes, as others are.
    mixed.state[with_values]["step"] = torch.tensor(0.5)
    before = Snapshot(mixed)
    with pytest.raises(RuntimeError, match="must be a whole number of steps"):
        mixed.step()
    before.assert_unchanged()
    mixed.param_groups[0]["fused"] = True
    with pytest.raises(RuntimeError, match="on the meta device and has no values"):
        mixed.step()


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_whose_memory_was_freed_is_refused_by_name(backend) -> None:
    param = torch.ones(4, requires_grad=True)
    param.grad = torch.ones(4)
    param.grad.untyped_storage().resize_(0)
    optimizer = GrokAdamW([param], backend=backend)
    with pytest.raises(RuntimeError, match=r"the gradient of parameter 0 of group 0 .* has no memory"):
        optimizer.step()
    assert not optimizer.state
