"""Every backend equals the reference bit for bit, whatever the options, shapes and thread count."""

from itertools import product
from typing import Any

import pytest
import torch
from grid import FEWEST, GRID, QUICK, options, reference

import grokfused
from grokfused import GrokAdam, GrokAdamW
from grokfused.backends.reference import real_dtype
from grokfused.lab.agreement import Case, differing_bits, disagreements, run
from grokfused.state.arrays import NAMES
from grokfused.state.storage import OWN_STATES, PARAM_DTYPES
from grokfused.step.grad_filter import FILTERS
from grokfused.step.mask import MODES

THREADS = (1, 2, 3)


@pytest.fixture
def threads():
    """Restores torch's thread count."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Where the native backend runs here: on a machine with a GPU, there too.
AVAILABLE = {name: found["available"] for name, found in grokfused.info()["backends"].items()}
DEVICES = AVAILABLE["native"]
PLACES = [(name, device) for name in ("native", "triton") for device in AVAILABLE[name]]


def placed() -> list[Any]:
    """Returns each case at each place; Triton compiles for each, and `make test` takes its quick part."""
    return [
        pytest.param(
            case,
            *place,
            id="-".join([str(case), *place]),
            marks=pytest.mark.slow if place[0] == "triton" and case not in QUICK else (),
        )
        for place in PLACES
        for case in GRID
    ]


@pytest.mark.parametrize(("case", "backend", "device"), placed())
def test_a_backend_equals_the_reference_bit_for_bit(case: Case, backend: str, device: str, threads) -> None:
    # float64 is numbered where it steps: see grokfused.lab.agreement.compare.
    there = device != "cpu" and real_dtype(case.param_dtype) is torch.float64
    truth = run("reference", case, device) if there else reference(case)
    for count in THREADS if device == "cpu" else THREADS[:1]:
        threads(count)
        assert disagreements(run(backend, case, device), truth) == {}, f"{count} threads"


def test_the_grid_holds_every_option() -> None:
    states, updates = 4, len(FILTERS) * 2 * 2  # dtypes and roundings; filter, decay, AMSGrad
    narrow = [case for case in GRID if case.param_dtype not in OWN_STATES]
    assert len(set(narrow)) == 3 * states * updates + 2 * 2 * states
    assert sum(case.param_dtype is torch.float64 for case in GRID) == updates
    assert {case.param_dtype for case in GRID} == set(PARAM_DTYPES)
    for rounding in ("nearest", "stochastic", "kahan"):
        found = [case for case in GRID if case.param_rounding == rounding]
        for name in ("grad_filter", "decay", "amsgrad", "maximize", "grad_scale", "capturable"):
            values = FILTERS if name == "grad_filter" else (False, True)
            assert len({getattr(case, name) for case in found}) == len(values), (rounding, name)


@pytest.mark.parametrize(("part", "together"), [(QUICK, 2), (FEWEST, 1)], ids=["quick", "fewest"])
def test_parts_of_the_grid_hold_every_option(part, together) -> None:
    found, asked = (set().union(*(options(case, together) for case in grid)) for grid in (part, GRID))
    assert found == asked
    assert len(part) < len(GRID) / 4


# Where rounding, selection and special values meet: signed zeros, the smallest and largest numbers of
# each format, ties of 16-bit rounding, infinities and NaN.
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 5.9604645e-08, 2.98e-08, 6.1e-05, 65504.0, 65519.9]
SPECIAL += [65520.0, -65536.0, 3.3895314e38, 3.4028235e38, 1.00390625, 1.01171875, 1.0004883, 1.0014648]
SPECIAL += [float("inf"), float("-inf"), float("nan")]


STATES = [
    (torch.float32, "nearest"),
    (torch.bfloat16, "nearest"),
    (torch.bfloat16, "stochastic"),
    ("block8", "stochastic"),
]
# Everything else that selects code; float32 parameters are rounded to nearest whatever is asked for.
OTHERS = list(product((GrokAdam, GrokAdamW), FILTERS, (False, True)))


def stepped(kind, values, grads, place: str, **options) -> dict[str, torch.Tensor]:
    """Takes three steps and returns parameter and states."""
    param = values.to(place, copy=True).requires_grad_()
    narrow = options["state_dtype"] is torch.bfloat16
    window = {"window_size": 2, "window_dtype": torch.bfloat16 if narrow else torch.float32}
    optimizer = kind([param], lr=0.02, weight_decay=0.3, lamb=0.7, seed=11, **window, **options)
    for factor in (1.0, -0.5, 3.0):
        param.grad = (grads.float() * factor).to(place, values.dtype)
        optimizer.step()
    return {"param": param.detach().cpu()} | {
        name: state.cpu() for name, state in optimizer.state[param].items() if isinstance(state, torch.Tensor)
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("param_rounding", ["nearest", "stochastic", "kahan"])
@pytest.mark.parametrize(("state_dtype", "state_rounding"), STATES, ids=lambda value: str(value))
@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_special_values_take_the_same_way(
    param_dtype, state_dtype, state_rounding, param_rounding, device
) -> None:
    grid = torch.tensor(SPECIAL)
    values, grads = torch.cartesian_prod(grid, grid).to(param_dtype).unbind(1)
    storage = {
        "state_dtype": state_dtype,
        "state_rounding": state_rounding,
        "param_rounding": param_rounding,
    }
    for kind, grad_filter, amsgrad in OTHERS:
        options = {**storage, "grad_filter": grad_filter, "amsgrad": amsgrad}
        truth = stepped(kind, values, grads, "cpu", backend="reference", **options)
        native = stepped(kind, values, grads, device, backend="native", **options)
        wrong = {name: differing_bits(native[name], truth[name]) for name in truth}
        assert wrong == dict.fromkeys(truth, 0), (kind.__name__, grad_filter, amsgrad)


def nans(dtype: torch.dtype) -> torch.Tensor:
    """Returns every NaN of 16 bits; of float32 the same, each with all of its lower half set and without."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    if dtype is torch.float32:
        every = torch.cat([patterns << 16, patterns << 16 | 0xFFFF]).view(dtype)
    else:
        every = patterns.to(torch.int16).view(dtype)
    return every[every.isnan()]


def met_a_nan(kind, where: str, param_dtype: torch.dtype, backend: str, device: str, **options):
    """Returns what a step makes of NaNs in one array, or of a loss scale of NaN."""
    found = nans(options["state_dtype"] if where in NAMES else param_dtype)
    param = torch.ones(len(found), dtype=param_dtype, device=device).requires_grad_()
    optimizer = kind([param], lr=0.1, seed=3, amsgrad=True, weight_decay=0.1, backend=backend, **options)
    param.grad = torch.full_like(param, 0.5)
    optimizer.step()
    arrays = {"param": param.detach(), "grad": param.grad, **optimizer.state[param]}
    longest = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32).to(device)
    if where == "scale":
        optimizer.grad_scale, optimizer.found_inf = longest, torch.zeros_like(longest)
    else:
        arrays[where].copy_(found)
    optimizer.step()
    return {"param": param.detach().cpu()} | {
        name: state.cpu() for name, state in optimizer.state[param].items() if isinstance(state, torch.Tensor)
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [GrokAdam, GrokAdamW], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "where", ["param", "grad", "scale", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "grad_ema"]
)
@pytest.mark.parametrize("param_rounding", ["nearest", "stochastic", "kahan"])
@pytest.mark.parametrize(("state_dtype", "state_rounding"), STATES[:3], ids=lambda value: str(value))
@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_nan_of_any_bits_stays_one(
    param_dtype, state_dtype, state_rounding, param_rounding, where, kind, device
) -> None:
    options = {"state_dtype": state_dtype, "state_rounding": state_rounding, "param_rounding": param_rounding}
    truth = met_a_nan(kind, where, param_dtype, "reference", "cpu", **options)
    native = met_a_nan(kind, where, param_dtype, "native", device, **options)
    assert truth["param"].isnan().all()
    wrong = {name: differing_bits(native[name], truth[name]) for name in truth}
    assert wrong == dict.fromkeys(truth, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("run", [1, 700], ids="runs of {}".format)
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01, 0.0], ids="{} kept".format)
def test_a_long_tensor_is_stepped_alike_however_sparse_its_mask(density, run, mode) -> None:
    """How the CPU kernel walks a mask depends on how many of its words keep something, block by block.

    The random bits of bfloat16 states tell whether each element knows its place.
    """
    size, results = 50021, []
    for backend in ("native", "reference"):
        random = torch.Generator().manual_seed(4)
        param = torch.randn(size + 1, generator=random)[1:].requires_grad_()
        kept = torch.rand(-(-size // run), generator=random) < density
        mask = kept.repeat_interleave(run)[:size]
        mask[30_000:36_000] = torch.rand(6000, generator=random) < 0.3
        optimizer = GrokAdamW(
            [param], lr=3e-3, weight_decay=0.04, state_dtype=torch.bfloat16, backend=backend
        )
        for step in range(3):
            param.grad = torch.randn(size, generator=random)
            optimizer.step()
            if step == 0:
                optimizer.set_mask(param, mask, mode)
                with torch.no_grad():
                    param[::3000] = 0.5  # as someone may who loads values into a pruned parameter
        state = optimizer.state[param]
        results.append([param.detach(), *(state[key] for key in NAMES if key in state)])
    assert [differing_bits(ours, truth) for ours, truth in zip(*results, strict=True)] == [0] * 4
