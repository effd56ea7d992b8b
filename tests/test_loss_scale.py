"""Mixed precision: gradients of a scaled loss are unscaled in the pass, and an overflow changes nothing."""

import copy
import pickle
from typing import Any

import pytest
import torch
from stepping import BACKENDS, OPTIONS, operators, values

from grokfused import GrokAdam, GrokAdamW
from grokfused.backends import reference as truth
from grokfused.lab.agreement import differing_bits
from grokfused.step import engine
from grokfused.step.device_scalars import table as device_table
from grokfused.step.members import with_grads
from grokfused.step.scalars import scalar_table, step_scalars

SCALE = 1024.0


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and not any(differing_bits(a[name], b[name]) for name in a)


def trained(optimizer: torch.optim.Optimizer, grads: list[torch.Tensor], scale: float | None) -> None:
    """Steps on each gradient, multiplied by the scale that is then told; on infinite ones, found_inf."""
    (param,) = optimizer.param_groups[0]["params"]
    for grad in grads:
        param.grad = grad * (scale or 1.0)
        if scale is not None:
            optimizer.grad_scale = torch.tensor([scale])
            optimizer.found_inf = torch.tensor([2.0 * (not grad.isfinite().all())])
        optimizer.step()


@pytest.mark.usefixtures("numbering")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"state_dtype": torch.bfloat16, "amsgrad": True, "maximize": True}])
def test_a_scaled_loss_takes_the_steps_of_the_unscaled_one(backend, options) -> None:
    torch.manual_seed(0)
    start, grads = torch.randn(33), list(torch.randn(6, 33))
    results = []
    for scale in (None, SCALE):  # a power of two: scaling and unscaling are exact
        optimizer = GrokAdamW([start.clone().requires_grad_()], **OPTIONS, **options, backend=backend)
        trained(optimizer, grads, scale)
        results.append(values(optimizer))
    assert same(*results)


@pytest.mark.usefixtures("numbering")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("overflows", [[0], [1], [2, 3], [0, 4]], ids=str)
def test_an_overflow_changes_nothing_not_even_the_step(backend, overflows) -> None:
    torch.manual_seed(0)
    start, grads = torch.randn(33), list(torch.randn(5, 33))
    overflowing = grads.copy()
    for place in overflows:
        overflowing.insert(place, torch.full((33,), float("inf")))
    results = []
    for sequence in (grads, overflowing):
        optimizer = GrokAdamW([start.clone().requires_grad_()], **OPTIONS, backend=backend)
        trained(optimizer, sequence, SCALE)
        results.append(values(optimizer))
    assert same(*results)
    assert results[0]["0 step"].item() == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_divided_by_the_scale_rounded_once(backend) -> None:
    param, scale = torch.zeros(1000, requires_grad=True), 3072.7
    grad = torch.randn(1000)
    optimizer = GrokAdam([param], **OPTIONS, backend=backend)
    trained(optimizer, [grad / scale], scale)
    factor = (torch.tensor(1.0, dtype=torch.float64) / torch.tensor(scale).double()).float()
    # A slow gradient starts as the gradient itself: what torch's own unscaling would have made of it.
    assert torch.equal(optimizer.state[param]["grad_ema"], (grad / scale * scale) * factor)
    assert torch.equal(param.grad, grad / scale * scale), "gradients are read only"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unscaled_by_the_user", [False, True])
def test_gradscaler_trains_as_without_it(backend, unscaled_by_the_user) -> None:
    def train(scaler: torch.amp.GradScaler | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Linear(7, 3)
        optimizer = GrokAdamW(model.parameters(), **OPTIONS, backend=backend)
        for number, inputs in enumerate(torch.randn(8, 5, 7)):
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            if scaler is None:
                if number != 3:
                    loss.backward()
                    optimizer.step()
                continue
            (scaler.scale(loss) * (float("inf") if number == 3 else 1.0)).backward()
            if unscaled_by_the_user:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        return values(optimizer)

    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)
    assert same(train(scaler), train(None))
    assert scaler.get_scale() != SCALE, "the scale has grown and shrunk on the way"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unscales_grads", [True, False])
def test_the_scaler_unscales_the_gradients_itself_where_it_is_asked_to(backend, unscales_grads) -> None:
    param = torch.zeros(3, requires_grad=True)
    optimizer = GrokAdamW([param], **OPTIONS, backend=backend, unscales_grads=unscales_grads)
    assert getattr(optimizer, "_step_supports_amp_scaling", False) is unscales_grads
    plain = GrokAdamW([torch.zeros(3, requires_grad=True)], **OPTIONS, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    overflow = 1
    for number in range(4):
        factor = float("inf") if number == overflow else 1.0 + number
        param.grad = None
        (scaler.scale(param.sum()) * factor).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if number != overflow:
            left = factor * (scale if unscales_grads else 1.0)
            assert torch.equal(param.grad, torch.full((3,), left)), "what others see after the step"
            plain.param_groups[0]["params"][0].grad = torch.full((3,), factor)
            plain.step()
    assert same(values(optimizer), values(plain))


def test_who_unscales_belongs_to_the_optimizer_and_outlives_copies_and_checkpoints() -> None:
    optimizer = GrokAdamW([torch.zeros(3, requires_grad=True)], **OPTIONS, unscales_grads=False)
    assert "unscales_grads" not in optimizer.param_groups[0]
    for duplicate in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert duplicate._step_supports_amp_scaling is False
    other = GrokAdamW([torch.zeros(3, requires_grad=True)], **OPTIONS)
    optimizer.load_state_dict(other.state_dict())
    assert optimizer._step_supports_amp_scaling is False
    with pytest.raises(TypeError, match="unscales_grads must be True or False, got 1"):
        GrokAdamW([torch.zeros(3, requires_grad=True)], **OPTIONS, unscales_grads=1)
    with pytest.raises(TypeError, match="did you mean 'unscales_grads'"):
        GrokAdamW([torch.zeros(3, requires_grad=True)], **OPTIONS, unscale_grads=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_scaler_leaves_nothing_behind(backend) -> None:
    param = torch.zeros(3, requires_grad=True)
    optimizer = GrokAdamW([param], **OPTIONS, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    scaler.scale(param.sum()).backward()
    scaler.step(optimizer)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
    assert set(optimizer.state_dict()) == {"state", "param_groups"}


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
@pytest.mark.parametrize("number", [4.0, torch.ones(2), "1"], ids=str)
def test_what_is_no_tensor_of_one_number_is_refused_by_name(name, number) -> None:
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = GrokAdamW([param], **OPTIONS)
    setattr(optimizer, name, number)
    with pytest.raises(TypeError, match=f"{name} must be a tensor of one number"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3))
    assert not optimizer.state


MEAN = {"grad_filter": "mean", "window_size": 4}


def options_of_a_group() -> dict[str, Any]:
    return dict(GrokAdamW([torch.zeros(1)], **OPTIONS).defaults)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.87, 0.993), (0.9, 0.98), (0.0, 0.5)], ids=str)
def test_the_device_derives_the_numbers_of_the_host(betas) -> None:
    count = 3000
    group = {**options_of_a_group(), "betas": betas, "eps": 3e-7, "weight_decay": 0.037}
    groups = [group, {**group, "maximize": True, "lr": torch.tensor(0.07)}, {**group, **MEAN, "lamb": 5.0}]
    groups[1]["betas"] = (torch.tensor(betas[0]), torch.tensor([betas[1]]))
    numbers, starts = [t % 3 for t in range(count)], [1.0 + t % 5 for t in range(count)]
    steps = torch.arange(count, dtype=torch.float32)
    table = device_table(groups, numbers, starts, steps.unbind(), torch.device("cpu"))
    rows = [step_scalars(groups[numbers[t]], t + 1.0, starts[t]) for t in range(count)]
    assert torch.equal(table, scalar_table(rows))


def grouped(kinds: list[dict[str, Any]], dtype: torch.dtype) -> GrokAdamW:
    """Returns an optimizer of 300 parameters in 30 groups, whose steps its device counts: 0 to 6 so far."""
    params = [torch.ones(1, dtype=dtype, requires_grad=True) for _ in range(300)]
    groups = [{**kinds[n % len(kinds)], "params": params[n::30], "alpha": 0.5 + n / 100} for n in range(30)]
    optimizer = GrokAdamW(groups, backend="native", capturable=True)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    for step, param in enumerate(params):
        optimizer.state[param]["step"].fill_(step % 7)
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.87, 0.993), (0.0, 0.5)], ids=str)
def test_native_code_derives_them_there_alike(betas, dtype, monkeypatch) -> None:
    monkeypatch.setattr(engine, "NUMBERING_DEVICES", ("cpu",))
    as_tensors = (torch.tensor(betas[0]), torch.tensor([betas[1]]).double())
    kinds = [
        {"lr": 3e-3, "betas": betas, "maximize": True},
        {"lr": torch.tensor(0.07), "betas": as_tensors},
        {"lr": torch.tensor(0.3, dtype=torch.bfloat16), "betas": betas, "weight_decay": 0.5},
    ]
    for kept in {}, MEAN, {**MEAN, "filter_type": "sum"}, {**MEAN, "filter_warmup": False}:
        gate = {**kept, "filter_start_step": 2, "filter_stop_step": 6}
        optimizer = grouped([{**kind, **gate} for kind in kinds], dtype)
        (bucket,) = engine.ready(with_grads(optimizer), {})._buckets
        steps = [
            (group, optimizer.state[param]["step"].item())
            for group in optimizer.param_groups
            for param in group["params"]
        ]
        rows = [step_scalars(group, step + 1.0, 1.0) for group, step in steps]
        assert torch.equal(bucket[-1], scalar_table(rows, bucket[-1].dtype))


def test_native_code_derives_them_without_operators_of_torch(monkeypatch) -> None:
    monkeypatch.setattr(engine, "NUMBERING_DEVICES", ("cpu",))
    optimizer = grouped([{"lr": torch.tensor(0.07)}, {"weight_decay": 0.5}], torch.float32)
    assert {*operators(optimizer.step)} <= {"aten::empty", "aten::detach", "grokfused::native"}


def test_a_changed_number_and_a_changed_tensor_reach_the_device() -> None:
    group = {**options_of_a_group(), "lr": torch.tensor(0.5), "betas": (0.87, torch.tensor([0.993]))}
    one = ([group], [0], [1.0], [torch.zeros(())], torch.device("cpu"))
    place = truth.Scalars._fields.index
    before = device_table(*one)
    group["lr"].fill_(0.25)
    group["betas"][1].fill_(0.75)
    group["lamb"] = 5.0
    after = device_table(*one)
    assert after[0, place("step_size")] == before[0, place("step_size")] / 2
    assert after[0, place("beta2")] == 0.75
    assert after[0, place("denom_scale")] == 2.0
    assert after[0, place("lamb")] == 5.0
