"""PyTorch's own material for testing optimizers, used on ours: its inputs, its error inputs, its schedulers.

``torch.testing._internal.common_optimizers`` lists what the optimizers of torch must take and must refuse.
Here an ``OptimizerInfo`` of each of our classes hands the lists of Adam and AdamW to tests of our own, on
every backend there is. Backends are compared bit for bit; what an optimizer shows its users (hooks, groups,
names, learning rates) is compared with what torch's own optimizer shows when the same is done to it.
"""

import copy
import pickle
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from stepping import ulps_of_the_largest, values
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optim_db,
)

import grokfused
from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.agreement import differing_bits, disagreements

# What torch's own suite has and this file has not.
LEFT_OUT = {
    "differentiable, complex parameters, sparse gradients": "refused by name: tests/test_errors.py",
    "foreach and fused against forloop": "here without effect; our backends are compared instead",
    "gradient scaling, found_inf": "tests/test_loss_scale.py",
    "graphs, several devices, large tensors": "need a GPU: tests/test_cuda_device.py",
    "peak memory of foreach": "nothing is allocated: tests/test_optimizer.py",
    "torch.compile": "torch checks the op itself: tests/test_errors.py",
}
# Torch's error inputs that are no errors here.
TAKEN = {
    "lr as Tensor doesn't work with foreach & not capturable": "foreach has no effect",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": "nor here",
    "betas must be either both floats or both Tensors": "each is read by itself, as OneCycleLR leaves them",
}

THEIRS = {GrokAdam: torch.optim.Adam, GrokAdamW: torch.optim.AdamW}


def info_of(kind: type[GrokAdam]) -> OptimizerInfo:
    """Returns torch's information on the optimizer that ``kind`` replaces, as it holds for ours."""
    theirs = next(info for info in optim_db if info.optim_cls is THEIRS[kind])
    return OptimizerInfo(
        kind,
        optim_inputs_func=theirs.optim_inputs_func,
        optim_error_inputs_func=theirs.optim_error_inputs_func,
        scheduler_inputs=theirs.scheduler_inputs,
        supported_impls=("foreach", "fused"),
        not_og_supported_flags=theirs.not_og_supported_flags,
        has_capturable_arg=True,
        supports_complex=False,
        supports_fused_on=("cpu", "cuda"),
    )


INFOS = [info_of(kind) for kind in THEIRS]


def inputs_of(info: OptimizerInfo, flags: bool = False) -> list[OptimizerInput]:
    """Returns torch's inputs: those for a CUDA device, which are all it has; their tensors lie on the CPU."""
    if flags:
        return _get_optim_inputs_including_global_cliquey_kwargs("cuda", torch.float32, info)
    return info.optim_inputs_func("cuda")


def label(value: Any) -> str:
    return getattr(value, "name", None) or getattr(value, "desc", None) or str(value)


def by_input(flags: bool = False) -> pytest.MarkDecorator:
    pairs = [(info, given) for info in INFOS for given in inputs_of(info, flags)]
    return pytest.mark.parametrize(("info", "given"), pairs, ids=label)


by_info = pytest.mark.parametrize("info", INFOS, ids=label)
AVAILABLE = {name: found["available"] for name, found in grokfused.info()["backends"].items()}
PLACES = [(name, device) for name in AVAILABLE for device in AVAILABLE[name]]
on_every_backend = pytest.mark.parametrize(("backend", "device"), PLACES)
against_the_reference = pytest.mark.parametrize(
    ("backend", "device"), [place for place in PLACES if place != ("reference", "cpu")]
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(31, 33), (7,), (), (0,), (3, 0)]


def new_params(device: str = "cpu", dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=random).to(device, dtype) for dtype in dtypes for shape in SHAPES]
    return [param.requires_grad_() for param in made]


def copies(params: list[Tensor]) -> list[Tensor]:
    return [param.detach().clone().requires_grad_() for param in params]


def own(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns options of this optimizer's own: a scheduler writes into a learning rate that is a tensor."""
    return copy.deepcopy(kwargs)


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def train(optimizer: torch.optim.Optimizer, steps: range = range(3)) -> None:
    """Takes steps on gradients that depend on the step's number and the parameter's shape and dtype only."""
    for step in steps:
        for param in params_of(optimizer):
            random = torch.Generator().manual_seed(step)
            param.grad = torch.randn(param.shape, generator=random).to(param.device, param.dtype)
        optimizer.step()


def assert_within_four_ulps(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """See test_without_amplification_it_is_torch_optim in test_optimizer.py, the suite's only tolerance."""
    for a, b in zip(params_of(ours), params_of(theirs), strict=True):
        if a.numel():
            assert ulps_of_the_largest(a.detach().cpu(), b.detach()) <= 4


def assert_same_bits(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> None:
    ours, theirs = ({name: value.cpu() for name, value in values(each).items()} for each in (a, b))
    assert ours.keys() == theirs.keys()
    assert disagreements(ours, theirs) == {}


# --- what torch's optimizers take ------------------------------------------------------------------------


@against_the_reference
@by_input(flags=True)
def test_a_backend_equals_the_reference_on_every_input(info, given, backend, device) -> None:
    found = [
        info.optim_cls(new_params(place), backend=name, **own(given.kwargs))
        for name, place in ((backend, device), ("reference", "cpu"))
    ]
    for optimizer in found:
        train(optimizer)
    assert_same_bits(*found)


@on_every_backend
@by_input()
def test_it_goes_in_the_right_direction(info, given, backend, device) -> None:
    params = new_params(device)
    optimizer = info.optim_cls(params, backend=backend, **own(given.kwargs))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = sum((param.float() - 0.5).square().sum() for param in params)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(set(losses), reverse=not given.kwargs.get("maximize", False))


@on_every_backend
@by_input()
def test_without_amplification_it_is_torchs_optimizer(info, given, backend, device) -> None:
    kwargs = {key: value for key, value in own(given.kwargs).items() if key != "capturable"}
    ours = info.optim_cls(new_params(device, DTYPES[:1]), lamb=0.0, backend=backend, **own(kwargs))
    theirs = THEIRS[info.optim_cls](new_params(dtypes=DTYPES[:1]), foreach=False, **own(kwargs))
    train(ours, range(10))
    train(theirs, range(10))
    assert_within_four_ulps(ours, theirs)


@on_every_backend
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize(
    ("info", "number"),
    [(info, number) for info in INFOS for number in range(len(info.scheduler_inputs))],
    ids=label,
)
def test_schedulers_drive_it_as_they_drive_torchs_optimizer(info, number, tensor_lr, backend, device) -> None:
    ours = info.optim_cls(new_params(device, DTYPES[:1]), lamb=0.0, backend=backend)
    reference = info.optim_cls(new_params(dtypes=DTYPES[:1]), lamb=0.0, backend="reference")
    theirs = THEIRS[info.optim_cls](new_params(dtypes=DTYPES[:1]), foreach=False)
    rates: dict[Any, list[float]] = {ours: [], reference: [], theirs: []}
    for optimizer, seen in rates.items():
        optimizer.param_groups[0]["lr"] = torch.tensor(0.01) if tensor_lr else 0.01
        schedules = [make(optimizer) for make in info.scheduler_inputs[number]]
        for step in range(25):
            train(optimizer, range(step, step + 1))
            for schedule in schedules:
                schedule.step(*([1.0] if isinstance(schedule, ReduceLROnPlateau) else []))
            seen.append(float(optimizer.param_groups[0]["lr"]))
    assert rates[ours] == rates[reference] == rates[theirs]
    assert len(set(rates[ours])) > 1
    assert_same_bits(ours, reference)
    assert_within_four_ulps(ours, theirs)


# --- what torch's optimizers refuse ----------------------------------------------------------------------


def error_inputs() -> list[Any]:
    """Returns (class, error input) for all of torch's; those for a CUDA device only where there is one."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [
        pytest.param(info.optim_cls, bad, id=f"{info.name}-{device}-{bad.optimizer_error_input.desc}")
        for info in INFOS
        for device in devices
        for bad in info.optim_error_inputs_func(device, torch.float32)
    ]


@pytest.mark.parametrize(("kind", "bad"), error_inputs())
def test_what_torch_refuses_is_refused_in_torchs_words(kind, bad: ErrorOptimizerInput) -> None:
    given = bad.optimizer_error_input
    params = given.params if given.params is not None else new_params()
    assert bad.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    if given.desc in TAKEN:
        with pytest.raises(bad.error_type, match=bad.error_regex):
            THEIRS[kind](params, **own(given.kwargs))
        train(kind(params, **own(given.kwargs)))
    elif bad.error_type is UserWarning:
        with pytest.warns(bad.error_type, match=bad.error_regex):
            kind(params, **own(given.kwargs))
    else:
        with pytest.raises(bad.error_type, match=bad.error_regex):
            kind(params, **own(given.kwargs))


# --- groups ----------------------------------------------------------------------------------------------


@on_every_backend
@by_input()
def test_a_group_steps_like_an_optimizer_of_its_own(info, given, backend, device) -> None:
    params, alone = new_params(device), new_params(device)
    options = {"lr": 0.02, "weight_decay": 0.3}
    together = info.optim_cls(params[:7], backend=backend, **own(given.kwargs))
    together.add_param_group({"params": params[7:], **options})
    train(together)
    first = info.optim_cls(alone[:7], backend=backend, **own(given.kwargs))
    second = info.optim_cls(alone[7:], backend=backend, **{**own(given.kwargs), **options})
    train(first)
    train(second)
    pairs = zip(params, alone, strict=True)
    assert [differing_bits(a.detach(), b.detach()) for a, b in pairs] == [0] * len(params)


@on_every_backend
@by_input()
def test_without_gradients_a_step_changes_nothing_and_zero_gradients_move_nothing(
    info, given, backend, device
) -> None:
    kwargs = {**own(given.kwargs), "weight_decay": 0.0}
    optimizer = info.optim_cls(new_params(device), backend=backend, **kwargs)
    before = values(optimizer)
    optimizer.step()
    assert values(optimizer).keys() == before.keys()
    for param in params_of(optimizer):
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert disagreements(values(optimizer), before) == {}
    assert all(state["step"] == 1 for state in optimizer.state.values())


# --- saved, copied, loaded -------------------------------------------------------------------------------


def through_a_file(optimizer: GrokAdam) -> GrokAdam:
    """Returns another optimizer, made with other options, that has loaded the state of this one."""
    file = BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = type(optimizer)(
        copies(params_of(optimizer)),
        lr=0.7,
        amsgrad=not optimizer.defaults["amsgrad"],
        maximize=not optimizer.defaults["maximize"],
        lamb=0.0,
    )
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


WAYS: dict[str, Callable[[GrokAdam], GrokAdam]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "a file": through_a_file,
}


@pytest.mark.parametrize("way", WAYS)
@on_every_backend
@by_input()
def test_it_goes_on_from_a_copy_as_if_never_copied(info, given, backend, device, way) -> None:
    optimizer = info.optim_cls(new_params(device), backend=backend, **own(given.kwargs))
    train(optimizer)
    other = WAYS[way](optimizer)
    train(optimizer, range(3, 6))
    train(other, range(3, 6))
    assert_same_bits(optimizer, other)
    groups = [
        [{key: value for key, value in group.items() if key != "params"} for group in each.param_groups]
        for each in (optimizer, other)
    ]
    assert repr(groups[0]) == repr(groups[1])


@on_every_backend
@by_input()
def test_state_dicts_of_older_versions_load(info, given, backend, device) -> None:
    """They lack the flags that came later, and count steps with a Python number."""
    optimizer = info.optim_cls(new_params(device), backend=backend, **own(given.kwargs))
    train(optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    flags = {flag: saved["param_groups"][0].pop(flag) for flag in info.not_og_supported_flags}
    other = info.optim_cls(copies(params_of(optimizer)), backend=backend, **own(given.kwargs))
    other.load_state_dict(saved)
    assert {flag: other.param_groups[0][flag] for flag in flags} == flags
    train(optimizer, range(3, 6))
    train(other, range(3, 6))
    assert_same_bits(optimizer, other)


NAMES = {"named": ["a", "b"], "named otherwise": ["c", "d"], "unnamed": None}


@pytest.mark.parametrize("saved_as", NAMES)
@pytest.mark.parametrize("loaded_into", NAMES)
@by_info
def test_names_of_parameters_are_kept_and_loaded_as_by_torch(info, saved_as, loaded_into) -> None:
    found = []
    for kind in (info.optim_cls, THEIRS[info.optim_cls]):
        optimizers = []
        for names in (NAMES[saved_as], NAMES[loaded_into]):
            params = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]
            optimizers.append(kind(list(zip(names, params, strict=True)) if names else params))
            train(optimizers[-1])
        optimizers[1].load_state_dict(optimizers[0].state_dict())
        train(optimizers[1])
        found.append([each.state_dict()["param_groups"][0].get("param_names") for each in optimizers])
        assert all(state["step"] == 6 for state in optimizers[1].state.values())
    assert found[0] == found[1]


@by_info
def test_defaults_changed_after_loading_hold_for_new_groups_only_as_in_torch(info) -> None:
    for kind in (info.optim_cls, THEIRS[info.optim_cls]):
        optimizer = kind([torch.ones(3, requires_grad=True)], lr=0.5)
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.defaults["lr"] = 0.25
        optimizer.add_param_group({"params": torch.ones(2, requires_grad=True)})
        train(optimizer)
        assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]


# --- hooks -----------------------------------------------------------------------------------------------


def what_hooks_see(kind: type[torch.optim.Optimizer]) -> list[Any]:
    """Has every hook there is note its call; returns the notes."""
    param = torch.ones(3, requires_grad=True)
    optimizer = kind([param])
    seen: list[Any] = []

    def note(name: str, answer: Callable[..., Any] = lambda *_: None) -> Callable[..., Any]:
        def hook(who: torch.optim.Optimizer, *given: Any) -> Any:
            moved = bool((param != 1).any())
            shown = [
                sorted(each) if isinstance(each, dict) else [each is who for each in each] for each in given
            ]
            seen.append((name, who is optimizer, moved, shown))
            return answer(*given)

        return hook

    optimizer.register_step_pre_hook(note("step pre"))
    optimizer.register_step_pre_hook(note("step pre again", lambda args, kwargs: (args, kwargs)))
    optimizer.register_step_post_hook(note("step post"))
    optimizer.register_state_dict_pre_hook(note("state_dict pre"))
    optimizer.register_state_dict_post_hook(note("state_dict post", lambda found: {**found, "more": 1}))
    optimizer.register_load_state_dict_pre_hook(note("load pre", lambda given: dict(given)))
    optimizer.register_load_state_dict_post_hook(note("load post"))
    param.grad = torch.ones(3)
    optimizer.step()
    optimizer.step(lambda: 1.0)
    seen.append(sorted(optimizer.state_dict()))
    optimizer.load_state_dict(optimizer.state_dict())
    return seen


@by_info
def test_hooks_see_what_they_see_with_torchs_optimizer(info) -> None:
    assert what_hooks_see(info.optim_cls) == what_hooks_see(THEIRS[info.optim_cls])
