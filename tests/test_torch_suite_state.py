"""PyTorch's own optimizer suite: what is saved, copied and loaded, and hooks."""

import copy
import pickle
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from stepping import values
from torch import Tensor
from torch_inputs import (
    INFOS,
    THEIRS,
    assert_same_bits,
    by_input,
    label,
    new_params,
    on_every_backend,
    own,
    params_of,
    train,
)

from grokfused import GrokAdam
from grokfused.lab.agreement import differing_bits, disagreements

by_info = pytest.mark.parametrize("info", INFOS, ids=label)


def copies(params: list[Tensor]) -> list[Tensor]:
    return [param.detach().clone().requires_grad_() for param in params]


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


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@on_every_backend
@by_info
def test_a_step_on_a_state_dict_that_is_swapped_in_is_the_step_of_its_optimizer(
    info, backend, device, masked
) -> None:
    """As in torch's test_stateless.py: what is put in is stepped, its counters count, and all comes back."""
    stateless = pytest.importorskip("torch.optim._stateless", reason="torch 2.13 or newer")
    live, other = (info.optim_cls(new_params(device), backend=backend) for _ in range(2))
    train(live)
    if masked:
        other.set_masks({param: param > 0 for param in params_of(other)})
    train(other, range(2))
    before = values(live)
    given, saved = copies(params_of(other)), copy.deepcopy(other.state_dict())
    counters = [state["step"] for state in saved["state"].values()]
    with stateless.swap_in_optimizer_params_and_state(live, dict(enumerate(given)), saved):
        assert len(live.masks()) == (len(given) if masked else 0)
        train(live, range(2, 3))
        assert all(live.state[param]["step"] is step for param, step in zip(given, counters, strict=True))
    train(other, range(2, 3))
    assert [step.item() for step in counters] == [3.0] * len(given)
    for a, b in zip(given, params_of(other), strict=True):
        assert differing_bits(a.detach().cpu(), b.detach().cpu()) == 0
    assert disagreements(values(live), before) == {}


@by_info
def test_parameters_without_values_are_refused_in_torchs_words_where_torch_refuses(info) -> None:
    for kind in (info.optim_cls, THEIRS[info.optim_cls]):
        param = torch.ones(3, device="meta", requires_grad=True)
        optimizer = kind([param], fused=True)
        param.grad = torch.ones(3, device="meta")
        with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be floating point"):
            optimizer.step()


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
