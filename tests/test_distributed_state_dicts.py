"""torch.distributed.checkpoint.state_dict on one process: what it gets and sets, full, sharded and flattened.

tests/distributed_checkpoints.py does the same with shards, and through files.
"""

import copy
import itertools
from typing import Any

import pytest
import torch
from stepping import OPTIONS, assert_same_bits, through_a_file, train, values
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from grokfused import GrokAdam, GrokAdamW
from grokfused.dcp import LoadPlanner

FORMS = {
    "sharded": StateDictOptions(),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
    "flattened": StateDictOptions(flatten_optimizer_state_dict=True),
}
in_every_form = pytest.mark.parametrize("form", FORMS)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 2))


def masked(model: nn.Module, optimizer: GrokAdamW) -> None:
    for layer, mode in (model[0], "zero"), (model[1], "freeze"):
        optimizer.set_mask(layer.weight, layer.weight > 0, mode)


def filtered_late(_: nn.Module, optimizer: GrokAdamW) -> None:
    optimizer.param_groups[0]["grad_filter"] = "ema"


def about_to_be_filtered(model: nn.Module, optimizer: GrokAdamW) -> None:
    """Leaves slow gradients that begin with the next step, as an overflow has cancelled their first one."""
    filtered_late(model, optimizer)
    masked(model, optimizer)
    optimizer.found_inf = torch.ones(())
    train(optimizer, 1)
    optimizer.found_inf = None


WINDOW = {"grad_filter": "mean", "window_size": 6, "window_dtype": "bfloat16"}


def windowed(model: nn.Module, optimizer: GrokAdamW) -> None:
    """Leaves windows that began late and are not full."""
    optimizer.param_groups[0].update(WINDOW)
    masked(model, optimizer)


KINDS = {
    "masked": masked,
    "filtered late": filtered_late,
    "about to be filtered": about_to_be_filtered,
    "windowed late": windowed,
}


def in_use(kind: str) -> tuple[nn.Module, GrokAdamW]:
    model = network()
    begun = "ema" if kind == "masked" else "none"
    optimizer = GrokAdamW(model.parameters(), grad_filter=begun, **OPTIONS)
    train(optimizer, 2)
    KINDS[kind](model, optimizer)
    if kind != "about to be filtered":
        train(optimizer, 2, seed=5)
    optimizer.zero_grad()
    return model, optimizer


def tensors(saved: Any) -> list[Any]:
    """Returns the values of all states, however deep they lie."""
    if "state" in saved:
        return [value for state in saved["state"].values() for value in state.values()]
    return [value for key, value in saved.items() if key.startswith("state.")]


def is_of_no_use(name: str, optimizer: GrokAdamW) -> bool:
    """True for what says nothing any more, or is there because the loading optimizer had it."""
    return "grad_ema_start" in name or (
        "grad_ema" in name and optimizer.param_groups[0]["grad_filter"] == "mean"
    )


def assert_going_on_alike(
    model: nn.Module, optimizer: GrokAdamW, other: nn.Module, resumed: GrokAdamW
) -> None:
    other.load_state_dict(model.state_dict())
    for each in optimizer, resumed:
        train(each, 3, seed=6)
    found, expected = (
        {name: value for name, value in values(each).items() if not is_of_no_use(name, each)}
        for each in (resumed, optimizer)
    )
    assert_same_bits(found, expected)
    assert len(resumed.masks()) == len(optimizer.masks())


@pytest.mark.parametrize(
    ("form", "kind"),
    # Of what a full state dict has not, torch keeps what the loading optimizer has.
    [pair for pair in itertools.product(FORMS, KINDS) if pair != ("full", "about to be filtered")],
)
def test_a_round_trip_goes_on_bit_for_bit(form, kind) -> None:
    model, optimizer = in_use(kind)
    saved = through_a_file(get_optimizer_state_dict(model, optimizer, options=FORMS[form]))
    assert all(isinstance(value, Tensor) for value in tensors(saved))
    other = network()
    resumed = GrokAdamW(other.parameters(), **OPTIONS)
    if form == "flattened" and optimizer.masks():  # of such a one torch takes what there is a place for
        resumed.param_groups[0].update(WINDOW if kind == "windowed late" else {})
        train(resumed, 1)
        resumed.set_masks({layer.weight: layer.weight == 0 for layer in other})
        resumed.zero_grad()
    set_optimizer_state_dict(other, resumed, saved, options=FORMS[form])
    assert_going_on_alike(model, optimizer, other, resumed)


@in_every_form
def test_what_an_optimizer_has_and_the_saved_one_has_not_is_lost(form) -> None:
    model, optimizer = in_use("masked")
    for layer in model:
        optimizer.remove_mask(layer.weight)
    saved = get_optimizer_state_dict(model, optimizer, options=FORMS[form])
    other, resumed = in_use("about to be filtered")
    if form == "full":  # torch keeps what the loading one has
        with pytest.warns(match=r"saved with 0 masks, and 2 came.*remove_mask"):
            set_optimizer_state_dict(other, resumed, copy.deepcopy(saved), options=FORMS[form])
        assert len(resumed.masks()) == 2
        for layer in other:
            resumed.remove_mask(layer.weight)
    set_optimizer_state_dict(other, resumed, saved, options=FORMS[form])
    assert_going_on_alike(model, optimizer, other, resumed)


def test_masks_that_found_no_place_are_missed() -> None:
    options = FORMS["flattened"]
    model, optimizer = in_use("masked")
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    other = network()
    resumed = GrokAdamW(other.parameters(), **OPTIONS)
    with pytest.raises(
        ValueError,
        match=r"saved with 2 masks, of which 0 arrived.*take a step and then set any masks",
    ):
        set_optimizer_state_dict(other, resumed, saved, options=options)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_files_of_older_versions_load_with_the_planner(tmp_path) -> None:
    """They held a bool mask beside a string, and the start of the filter as a float."""
    model, optimizer = in_use("masked")
    saved = get_optimizer_state_dict(model, optimizer)
    for layer, mode in ("0", "zero"), ("1", "freeze"):
        state = saved["state"][f"{layer}.weight"]
        state |= {"mask": state["mask"] == 1, "mask_mode": mode, "grad_ema_start": 0.0}
    dcp.save({"optimizer": saved}, checkpoint_id=tmp_path)
    for places, planner in (False, LoadPlanner()), (True, LoadPlanner()), (True, None):
        other, resumed = in_use("masked") if places else (network(), None)
        resumed = resumed or GrokAdamW(other.parameters(), **OPTIONS)
        found = {"optimizer": get_optimizer_state_dict(other, resumed)}
        dcp.load(found, checkpoint_id=tmp_path, planner=planner)
        if planner is None:  # the modes are lost
            with pytest.raises(ValueError, match=r"holds 0, as where.*older checkpoint.*LoadPlanner"):
                set_optimizer_state_dict(other, resumed, found["optimizer"])
        else:
            set_optimizer_state_dict(other, resumed, found["optimizer"])
            assert_going_on_alike(*copy.deepcopy((model, optimizer)), other, resumed)


# --- the step of zeros by which torch has states made ------------------------------------------------------

SETTINGS = {
    "AdamW": (GrokAdamW, {}),
    "Adam, whose decay goes through the moments": (GrokAdam, {}),
    "lr is a tensor": (GrokAdamW, {"lr": torch.tensor(3e-3)}),
    "clipped": (GrokAdamW, {"max_grad_norm": 0.5}),
    "zero": (GrokAdamW, {"grad_ema_init": "zero"}),
    "reference": (GrokAdamW, {"backend": "reference"}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_state_dict_of_a_new_optimizer_changes_nothing_of_its_training(setting) -> None:
    kind, options = SETTINGS[setting]
    found = []
    for asked in False, True:
        model = network()
        optimizer = kind(model.parameters(), **{**OPTIONS, **options})
        if asked:
            saved = get_optimizer_state_dict(model, optimizer)
            assert {"step", "exp_avg", "exp_avg_sq", "grad_ema"} == saved["state"]["0.weight"].keys()
        train(optimizer, 3)
        found.append(values(optimizer))
    assert found[0]["0 step"].item() == 3
    assert_same_bits(found[1], found[0])


@pytest.mark.parametrize(
    "what", ["a gradient that is not 0", "a learning rate", "a parameter without one", "a state"]
)
def test_other_steps_on_zeros_count(what) -> None:
    params = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]
    optimizer = GrokAdamW(params, lr=1e-3 if what == "a learning rate" else 0.0)
    for param in params:
        param.grad = torch.zeros_like(param)
    if what == "a gradient that is not 0":
        params[1].grad[1] = 1e-3
    if what == "a parameter without one":
        params[1].grad = None
    if what == "a state":
        optimizer.set_mask(params[1], torch.ones(2, dtype=torch.bool))
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 1
    assert optimizer.state[params[0]]["grad_ema"].tolist() == [0.0, 0.0, 0.0]
