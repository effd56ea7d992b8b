"""torch.compile: the step is one op of the graph, the same to the bit, and compiled once."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from stepping import OPTIONS, values
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters

from grokfused import GrokAdam, GrokAdamW, compiled, step_in_backward
from grokfused.lab.agreement import differing_bits

# Keeps gradients exact, where "inductor" may round a model's arithmetic in another way than eager torch. It
# hands copies of the parameters to the step, where "inductor" hands over the parameters themselves.
EXACT = "aot_eager"
# An experiment of torch's, without which every backward() is a break in the graph.
TRACES_BACKWARD = hasattr(torch._dynamo.config, "trace_autograd_ops")
needs_traced_backward = pytest.mark.skipif(
    not TRACES_BACKWARD, reason="this torch breaks the graph at every backward()"
)

Made = tuple[nn.Module, GrokAdam]
Train = Callable[[], Any]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    # The "eager" backend (torch 2.13) leaves a no_grad of the graph on where something raises in it.
    assert torch.is_grad_enabled()


def made(**options: Any) -> Made:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    return model, GrokAdamW(model.named_parameters(), **{**OPTIONS, **options})


def set_grads(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=generator)


def loss_of(model: nn.Module) -> Tensor:
    return model(torch.ones(2, 7)).square().mean()


def no_recompilation(step: int) -> Any:
    tracing = {"trace_autograd_ops": True} if TRACES_BACKWARD else {}
    return torch._dynamo.config.patch(error_on_recompile=step > 0, **tracing)


def assert_same(found: GrokAdam, expected: GrokAdam) -> None:
    ours, theirs = values(found), values(expected)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if differing_bits(ours[name], theirs[name])]


def assert_compiled_is_the_same(
    make: Callable[[], Made],
    train: Callable[[nn.Module, GrokAdam], Train],
    before: Callable[[nn.Module, GrokAdam, int], Any] = lambda *_: None,
    *,
    backend: str = EXACT,
    fullgraph: bool = True,
) -> None:
    """Trains twice, once compiled, and compares; with fullgraph nothing is compiled after the first step."""
    plain, traced = make(), make()
    eager = train(*plain)
    fast = torch.compile(train(*traced), backend=backend, fullgraph=fullgraph)
    for step in range(4):
        for (model, optimizer), run in ((plain, eager), (traced, fast)):
            set_grads(model, step)
            before(model, optimizer, step)
            with no_recompilation(step if fullgraph else 0):
                run()
    assert_same(traced[1], plain[1])


def only_the_step(_: nn.Module, optimizer: GrokAdam) -> Train:
    return optimizer.step


def change_hyperparameters(_: nn.Module, optimizer: GrokAdam, step: int) -> None:
    optimizer.param_groups[0].update(
        lr=0.001 * (step + 1), alpha=0.9 + 0.01 * step, lamb=1.0 - step, betas=(0.8 + 0.01 * step, 0.99)
    )


def change_everything(model: nn.Module, optimizer: GrokAdam, step: int) -> None:
    """Does what an eager loop may do between two steps."""
    if step:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(step)) > 0.5
        optimizer.set_mask("0.weight", mask, "freeze" if step % 2 else "zero")
    optimizer.param_groups[0].update(
        maximize=step > 1, amsgrad=step > 2, weight_decay=0.0 if step == 1 else 0.1
    )
    model[2].bias.grad = None


def scale_gradients(_: nn.Module, optimizer: GrokAdam, step: int) -> None:
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0 + step), torch.tensor(float(step == 1))


@pytest.mark.parametrize("backend", ["eager", EXACT, "inductor"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # inductor's own
def test_numbers_may_change_between_compiled_steps(backend) -> None:
    assert_compiled_is_the_same(made, only_the_step, change_hyperparameters, backend=backend)
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("options", "before"),
    [
        ({}, change_everything),
        ({"max_grad_norm": 0.3}, change_hyperparameters),
        ({"state_dtype": torch.bfloat16}, change_hyperparameters),
        ({"backend": "reference"}, change_hyperparameters),
        ({"max_grad_norm": 0.3}, scale_gradients),
        ({}, lambda model, *_: model.zero_grad()),
        ({}, lambda _, optimizer, step: optimizer.step()),
    ],
    ids=[
        "everything changes",
        "clipping",
        "bfloat16 states",
        "reference",
        "loss scale",
        "no gradients",
        "eager steps between",
    ],
)
def test_a_compiled_step_does_what_an_eager_one_does(options, before) -> None:
    assert_compiled_is_the_same(lambda: made(**options), only_the_step, before)


def test_hyperparameters_that_are_tensors_may_change_in_the_graph() -> None:
    def train(_: nn.Module, optimizer: GrokAdam) -> Train:
        lr, beta = optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][1]

        def run() -> None:
            lr.mul_(0.5)
            optimizer.step()
            beta.mul_(0.9)
            optimizer.step()
            lr.mul_(1.7)

        return run

    def make() -> Made:
        return made(lr=torch.tensor(3e-3), betas=(0.87, torch.tensor(0.993)))

    assert_compiled_is_the_same(make, train)


def test_parameters_may_be_read_and_changed_in_the_graph() -> None:
    def train(model: nn.Module, optimizer: GrokAdam) -> Train:
        @torch.no_grad()
        def run() -> None:
            old = [param.clone() for param in model.parameters()]
            torch._foreach_mul_(list(model.parameters()), 0.5)
            optimizer.step()
            torch._foreach_add_(list(model.parameters()), old)

        return run

    assert_compiled_is_the_same(made, train)


def test_a_loss_scale_may_be_set_in_the_graph() -> None:
    scale = torch.tensor(3.0)

    def train(_: nn.Module, optimizer: GrokAdam) -> Train:
        def run() -> None:
            optimizer.grad_scale, optimizer.found_inf = scale * 2, scale * 0
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf

        return run

    assert_compiled_is_the_same(made, train)


@needs_traced_backward
def test_a_training_step_is_one_graph() -> None:
    def train(model: nn.Module, optimizer: GrokAdam) -> Train:
        def run() -> Tensor:
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return run

    def before(model: nn.Module, optimizer: GrokAdam, step: int) -> None:
        change_hyperparameters(model, optimizer, step)
        optimizer.zero_grad()

    assert_compiled_is_the_same(made, train, before)


def test_a_training_step_breaks_only_where_torch_breaks_it() -> None:
    def train(model: nn.Module, optimizer: GrokAdam) -> Train:
        def run() -> None:
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()

        return run

    with torch._dynamo.config.patch(trace_autograd_ops=False) if TRACES_BACKWARD else nullcontext():
        (_, plain), (_, traced) = pair = made(), made()
        runs = train(*pair[0]), torch.compile(train(*pair[1]), backend=EXACT)
        for _ in range(3):
            for run in runs:
                run()
    assert_same(traced, plain)
    assert len(counters["graph_break"]) == 2, "Tensor.backward and Optimizer.zero_grad"
    assert not any("_untraced_step" in reason for reason in counters["graph_break"])


@needs_traced_backward
def test_closures_and_hooks_are_traced() -> None:
    def train(model: nn.Module, optimizer: GrokAdam) -> Train:
        def halve_gradients(*_: Any) -> None:
            torch._foreach_mul_([param.grad for param in model.parameters()], 0.5)

        def decay(*_: Any) -> None:
            with torch.no_grad():
                torch._foreach_mul_(list(model.parameters()), 0.9)

        optimizer.register_step_pre_hook(halve_gradients)
        optimizer.register_step_post_hook(decay)

        def closure() -> Tensor:
            loss = loss_of(model)
            loss.backward()
            return loss.detach()

        return lambda: optimizer.step(closure)

    assert_compiled_is_the_same(made, train)


def sets_lr(_: nn.Module, optimizer: GrokAdam) -> Train:
    def run() -> None:
        optimizer.param_groups[0]["lr"] = 0.02
        optimizer.step()

    return run


def sets_mask(_: nn.Module, optimizer: GrokAdam) -> Train:
    mask = torch.arange(35).view(5, 7) % 3 > 0

    def run() -> None:
        optimizer.set_mask("0.weight", mask)
        optimizer.step()

    return run


def reads_states(_: nn.Module, optimizer: GrokAdam) -> Train:
    def run() -> int:
        known = len(optimizer.state)
        optimizer.step()
        return known

    return run


def sets_gradient_to_none(model: nn.Module, optimizer: GrokAdam) -> Train:
    def run() -> None:
        model[0].weight.grad = None
        optimizer.step()

    return run


def steps_in_backward(_: nn.Module, optimizer: GrokAdam) -> Train:
    optimizer.zero_grad()
    step_in_backward(optimizer)
    return optimizer.step


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")  # of set_mask
def test_masks_may_be_set_in_compiled_code() -> None:
    assert_compiled_is_the_same(made, sets_mask, fullgraph=False)


@pytest.mark.parametrize("train", [sets_lr, reads_states, sets_gradient_to_none])
def test_the_graph_breaks_where_it_has_changed_what_the_op_reads(train) -> None:
    assert_compiled_is_the_same(made, train, fullgraph=False)
    assert any("_untraced_step" in reason for reason in counters["graph_break"])
    model, optimizer = made()
    set_grads(model, 0)
    with pytest.raises(Unsupported):
        torch.compile(train(model, optimizer), backend="eager", fullgraph=True)()


def test_the_graph_breaks_where_the_step_was_taken_in_backward() -> None:
    (model, plain), (twin, traced) = made(), made()
    step_in_backward(plain)
    step_in_backward(traced)
    step = torch.compile(traced.step, backend="eager")
    for _ in range(2):
        for each, take in ((model, plain.step), (twin, step)):
            loss_of(each).backward()
            take()
    assert_same(traced, plain)
    twin[0].bias.grad = torch.ones(5)
    with pytest.raises(RuntimeError, match="had to be stepped in the backward pass"):
        step()


@pytest.mark.parametrize("key", ["exp_avg", "step"])
def test_a_graph_that_reads_the_states_it_steps_is_refused(key) -> None:
    model, optimizer = made()
    set_grads(model, 0)

    def run() -> Tensor:
        optimizer.step()
        return optimizer.state[model[0].weight][key] * 2

    before = [param.clone() for param in model.parameters()]
    with pytest.raises(RuntimeError, match=r"reads optimizer\.state"):
        torch.compile(run, backend=EXACT, fullgraph=True)()
    assert all(map(torch.equal, model.parameters(), before))


def test_one_optimizer_of_several_models_steps_the_one_that_was_trained() -> None:
    def trained(compiled: bool) -> GrokAdam:
        torch.manual_seed(0)
        models = [nn.Linear(3, 2) for _ in range(2)]
        optimizer = GrokAdam([param for model in models for param in model.parameters()], **OPTIONS)

        def run(model: nn.Module) -> None:
            torch._foreach_mul_([param.grad for param in model.parameters()], 2.0)
            optimizer.step()

        step = torch.compile(run, backend=EXACT, fullgraph=True) if compiled else run
        for seed in range(4):
            for number, model in enumerate(models):
                set_grads(model, 2 * seed + number)
            step(models[seed % 2])
        return optimizer

    assert_same(trained(compiled=True), trained(compiled=False))


def test_optimizers_and_their_copies_are_told_apart() -> None:
    step = torch.compile(lambda optimizer: optimizer.step(), backend="eager", fullgraph=True)
    model, optimizer = made()
    set_grads(model, 0)
    step(optimizer)
    pairs = [
        made(),
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
        (model, optimizer),
    ]
    twins = copy.deepcopy(pairs)
    for number, (one, traced) in enumerate(pairs):
        set_grads(one, number)
        step(traced)
    set_grads(model, 7)
    with no_recompilation(1):
        step(optimizer)
    for number, (one, plain) in enumerate(twins):
        set_grads(one, number)
        plain.step()
    set_grads(twins[-1][0], 7)
    twins[-1][1].step()
    for (_, traced), (_, plain) in zip(pairs, twins, strict=True):
        assert_same(traced, plain)


def test_compiled_code_keeps_no_optimizer_alive() -> None:
    step = torch.compile(lambda optimizer: optimizer.step(), backend=EXACT, fullgraph=True)
    model, optimizer = made()
    set_grads(model, 0)
    step(optimizer)
    weight = model[0].weight
    alive = [weakref.ref(each) for each in (optimizer, weight, optimizer.state[weight]["exp_avg"])]
    name = optimizer._name
    assert name in vars(compiled._groups)
    del model, optimizer, weight
    gc.collect()
    assert [each() for each in alive] == [None] * 3
    assert name not in vars(compiled._groups)
    model, optimizer = made()
    twin, plain = made()
    for each in (model, twin):
        set_grads(each, 1)
    step(optimizer)
    plain.step()
    assert_same(optimizer, plain)


def test_another_list_of_groups_is_refused() -> None:
    model, optimizer = made()
    step = torch.compile(optimizer.step, backend=EXACT, fullgraph=True)
    set_grads(model, 0)
    step()
    optimizer.param_groups = list(optimizer.param_groups)
    before = values(optimizer)
    with pytest.raises(RuntimeError, match=r"exchanged for another list.*torch\.compiler\.reset"):
        step()
    after = values(optimizer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.compiler.reset()
    step()
    assert optimizer.state[model[0].bias]["step"] == 2


def test_a_group_that_has_lost_an_option_is_refused() -> None:
    model, optimizer = made()
    set_grads(model, 0)
    step = torch.compile(optimizer.step, backend=EXACT, fullgraph=True)
    step()
    for name in ("lr", "betas", "seed"):
        value = optimizer.param_groups[0].pop(name)
        with pytest.raises(ValueError, match=rf"param_groups\[0\] has lost \['{name}'\]"):
            step()
        optimizer.param_groups[0][name] = value
    step()
    assert optimizer.state[model[0].bias]["step"] == 2


def test_the_op_passes_the_checks_of_torch() -> None:
    model, optimizer = made(lr=torch.tensor(0.1))
    # The op counts the step in the optimizer, and torch's checks call it several times and compare: with
    # gradients of 0 only the decay moves the parameters, as far in every step.
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    torch.compile(optimizer.step, backend="eager", fullgraph=True)()
    params = [param.detach().clone() for param in model.parameters()]
    grads = [torch.zeros_like(param) for param in params]
    arguments = (
        params,
        grads,
        [torch.tensor(0.2)],
        torch.tensor(4.0),
        None,
        (0,),
        (0, 1, 2, 3),
        optimizer._name,
    )
    found = torch.library.opcheck(torch.ops.grokfused.optimizer_step_.default, arguments)
    assert set(found.values()) == {"SUCCESS"}
    assert len(found) == 4
