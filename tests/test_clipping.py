"""Clipping in the pass: clip_grad_norm_ and a step, without its write to the gradients."""

import copy
import io
import itertools

import pytest
import torch
from stepping import BACKENDS, OPTIONS, values

from grokfused import GrokAdamW
from grokfused.lab.agreement import differing_bits
from grokfused.step.clipping import Clip, divisor
from grokfused.step.norm import total_norm

SHAPES = ([], [1], [7], [31, 33], [4097])
SCALE = 1024.0


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and not any(differing_bits(a[name], b[name]) for name in a)


def model(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in SHAPES]


def set_grads(params: list[torch.Tensor], step: int, factor: float = 1.0) -> None:
    torch.manual_seed(100 + step)
    for param in params:
        param.grad = (torch.randn(param.shape) * factor).to(param.dtype)


@pytest.mark.usefixtures("numbering")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"maximize": True, "amsgrad": True}, {"grad_filter": "none"}, {"capturable": True}],
    ids=str,
)
def test_it_is_clip_grad_norm_and_a_step(backend, options) -> None:
    params, clipped_params = model(), model()
    ours = GrokAdamW(params, **OPTIONS, **options, max_grad_norm=0.7, backend=backend)
    plain = GrokAdamW(clipped_params, **OPTIONS, **options, backend=backend)
    for step in range(6):
        set_grads(params, step)
        set_grads(clipped_params, step)
        before = [param.grad.clone() for param in params]
        ours.step()
        assert all(map(torch.equal, before, [param.grad for param in params])), "gradients are read only"
        torch.nn.utils.clip_grad_norm_(clipped_params, 0.7)
        plain.step()
    # We divide by 1 / coefficient where torch multiplies by it: two roundings of 2**-24 per gradient. In the
    # parameters, of order 1, they show as one of a step's lr = 3e-3: far below one rounding of the parameter.
    for name, value in values(ours).items():
        torch.testing.assert_close(value, values(plain)[name], rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("numbering")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [1e-3, 0.0])
def test_gradients_below_the_limit_are_not_touched(backend, factor) -> None:
    results = []
    for max_grad_norm in (1.0, None):
        params = model()
        optimizer = GrokAdamW(params, **OPTIONS, max_grad_norm=max_grad_norm, backend=backend)
        for step in range(3):
            set_grads(params, step, factor)
            optimizer.step()
        results.append(values(optimizer))
    assert same(*results)


@pytest.mark.usefixtures("numbering")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_the_filter_sees_the_clipped_gradient(backend, state_dtype) -> None:
    """A coefficient that is a power of two divides exactly: bits are those of gradients so divided."""
    results = []
    for max_grad_norm in (None, 0.25 * (8.0 + 1e-6)):
        params = [torch.zeros(64, requires_grad=True), torch.ones(2, requires_grad=True)]
        optimizer = GrokAdamW(
            params, **OPTIONS, max_grad_norm=max_grad_norm, state_dtype=state_dtype, backend=backend
        )
        for _ in range(4):
            factor = 0.25 if max_grad_norm is None else 1.0
            params[0].grad, params[1].grad = torch.full((64,), factor), torch.zeros(2)
            optimizer.step()
        results.append(values(optimizer))
    assert same(*results)


@pytest.mark.usefixtures("numbering")
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradscaler_clips_in_true_units_and_an_overflow_changes_nothing(backend) -> None:
    def train(scaler: torch.amp.GradScaler | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(7, 3)
        optimizer = GrokAdamW(layer.parameters(), **OPTIONS, max_grad_norm=0.05, backend=backend)
        for number, inputs in enumerate(torch.randn(8, 5, 7)):
            optimizer.zero_grad()
            loss = layer(inputs).square().mean()
            if scaler is not None:
                (scaler.scale(loss) * (float("inf") if number == 3 else 1.0)).backward()
                scaler.step(optimizer)
                scaler.update()
            elif number != 3:
                loss.backward()
                optimizer.step()
        return values(optimizer)

    # Powers of two: scaling, unscaling and the norm of it are exact.
    assert same(train(torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)), train(None))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["zero", "freeze"])
def test_masks_hold_and_masked_elements_count_in_the_norm(backend, mode) -> None:
    params, others = model(), model()
    ours = GrokAdamW(params, **OPTIONS, max_grad_norm=0.5, backend=backend)
    scaled = GrokAdamW(others, **OPTIONS, backend=backend)
    mask = torch.rand(31, 33) < 0.5
    ours.set_mask(params[3], mask, mode)
    scaled.set_mask(others[3], mask, mode)
    for step in range(3):
        set_grads(params, step)
        set_grads(others, step)
        norm = total_norm([param.grad for param in params])
        scaled.grad_scale = 1.0 / (0.5 / (norm + 1e-6))
        ours.step()
        scaled.step()
    assert same(values(ours), values(scaled))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_gradients_have_a_norm_in_float32(backend, dtype) -> None:
    grads = [torch.full((2000,), 3000.0, dtype=dtype), torch.tensor(1.0), torch.ones(7, dtype=dtype)]
    # Beyond float16, whose own norm is infinite.
    expected = torch.cat([grad.double().reshape(-1) for grad in grads]).norm().float()
    assert torch.equal(total_norm(grads), expected)
    params = [torch.zeros_like(grad, requires_grad=True) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    GrokAdamW(params, **OPTIONS, max_grad_norm=1.0, backend=backend).step()
    assert all(param.isfinite().all() and param.ne(0).any() for param in params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_does_what_it_does_to_clip_grad_norm(backend, value) -> None:
    params, others = model(), model()
    ours = GrokAdamW(params, **OPTIONS, max_grad_norm=0.7, backend=backend)
    plain = GrokAdamW(others, **OPTIONS, backend=backend)
    for group in (params, others):
        set_grads(group, 0)
        group[2].grad[3] = value
    ours.step()
    torch.nn.utils.clip_grad_norm_(others, 0.7)
    plain.step()
    for param, other in zip(params, others, strict=True):
        assert torch.equal(param.isnan(), other.isnan())
        assert torch.equal(param.nan_to_num(), other.nan_to_num())
    share = sum(param.isnan().sum() for param in params)
    assert share == (sum(param.numel() for param in params) if value != value else 1)


# From one that no number divides to those that are none; the limit lies between.
NORMS = [0.0, 1e-42, 1e-7, 0.3, 0.7, 0.7 + 1e-6, 3.1415927, 1e4, 3e38, float("inf"), float("nan")]
LIMIT = 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_the_divisor_is_one_over_what_clip_grad_norm_multiplies_by(norm, dtype) -> None:
    param, number = torch.zeros(1, dtype=dtype, requires_grad=True), torch.tensor(norm, dtype=dtype)
    param.grad = torch.ones(1, dtype=dtype)
    torch.nn.utils.clip_grads_with_norm_([param], LIMIT, number)
    assert not differing_bits(divisor(Clip(number, LIMIT), None).reshape(1), 1.0 / param.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_parameters_with_a_gradient_count(backend) -> None:
    params, others = model(), model()[:3]
    for group in (params[:3], others):
        set_grads(group, 0)
    GrokAdamW(params, **OPTIONS, max_grad_norm=0.3, backend=backend).step()
    GrokAdamW(others, **OPTIONS, max_grad_norm=0.3, backend=backend).step()
    assert all(map(torch.equal, params[:3], others))
    GrokAdamW(model(), **OPTIONS, max_grad_norm=0.3, backend=backend).step()  # no gradient at all


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_limit_may_change_between_steps(backend) -> None:
    results = []
    for limits in itertools.repeat((0.1, 10.0, None), 2):
        params = model()
        optimizer = GrokAdamW(params, **OPTIONS, max_grad_norm=3.0, backend=backend)
        for step, limit in enumerate(limits):
            if results:
                optimizer = copy.deepcopy(optimizer)  # which has no plan: nothing remembered can be stale
                params = optimizer.param_groups[0]["params"]
            optimizer.param_groups[0]["max_grad_norm"] = limit
            set_grads(params, step)
            optimizer.step()
        results.append(values(optimizer))
    assert same(*results)


def test_groups_that_disagree_are_refused() -> None:
    first, second = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="must be equal in all groups"):
        GrokAdamW([{"params": first, "max_grad_norm": 1.0}, {"params": second}], **OPTIONS)
    optimizer = GrokAdamW([first], **OPTIONS, max_grad_norm=1.0)
    with pytest.raises(ValueError, match="must be equal in all groups"):
        optimizer.add_param_group({"params": [second], "max_grad_norm": 2.0})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [second]})
    assert optimizer.param_groups[1]["max_grad_norm"] == 1.0
    optimizer.param_groups[1]["max_grad_norm"] = None
    first.grad = second.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"equal in all groups, got \[1.0, None\]"):
        optimizer.step()
    assert torch.equal(first, torch.ones(3))
    assert not optimizer.state


def test_a_checkpoint_carries_the_limit_and_one_from_before_leaves_the_optimizers_own() -> None:
    optimizer = GrokAdamW(model(), **OPTIONS, max_grad_norm=0.7)
    set_grads(optimizer.param_groups[0]["params"], 0)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = GrokAdamW(model(), **OPTIONS)
    other.load_state_dict(saved)
    assert other.param_groups[0]["max_grad_norm"] == 0.7
    del saved["param_groups"][0]["max_grad_norm"]
    other = GrokAdamW(model(), **OPTIONS, max_grad_norm=0.2)
    other.load_state_dict(saved)
    assert other.param_groups[0]["max_grad_norm"] == 0.2
