"""A beta1 for each layer, with its own bias correction."""

import pytest
import torch
from stepping import assert_same_bits, new_param, train, values

from grokfused import GrokAdamW, layerwise_beta1


def model_of() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2), torch.nn.PReLU()
    )


def shown(groups: list[dict]) -> list[tuple[float, list[str]]]:
    return [(group["betas"][0], [name for name, _ in group["params"]]) for group in groups]


def test_of_a_model_the_parameters_of_one_module_are_a_layer() -> None:
    groups = layerwise_beta1(model_of(), 0.1, betas=(0.8, 0.99))
    names = [["0.weight", "0.bias"], ["2.weight", "2.bias"], ["3.weight"]]
    assert shown(groups) == list(zip([0.8, 0.8 * 0.9, 0.8 * 0.9**2], names, strict=True))
    assert {group["betas"][1] for group in groups} == {0.99}
    optimizer = GrokAdamW(groups)
    assert [group["param_names"] for group in optimizer.param_groups] == names


def test_of_groups_each_parameter_is_a_layer_counted_anew_and_options_stay() -> None:
    given = [
        {"params": [("a", new_param(2)), ("b", new_param(3))], "lr": 0.5},
        {"params": [("c", new_param(4)), ("d", new_param(5))], "betas": (0.5, 0.9), "mine": "kept"},
    ]
    groups = layerwise_beta1(given, 0.25)
    assert shown(groups) == [(0.9, ["a"]), (0.9 * 0.75, ["b"]), (0.5, ["c"]), (0.5 * 0.75, ["d"])]
    assert [group.get("lr") for group in groups] == [0.5, 0.5, None, None]
    assert [group.get("mine") for group in groups] == [None, None, "kept", "kept"]
    assert [list(group) for group in given] == [["params", "lr"], ["params", "betas", "mine"]]


def test_groups_of_an_optimizer_keep_their_names_too() -> None:
    owner = GrokAdamW(model_of().named_parameters(), lr=0.5)
    (first, second, *_) = groups = layerwise_beta1(owner.param_groups, 0.5)
    assert (shown([first, second]), first["lr"]) == ([(0.9, ["0.weight"]), (0.45, ["0.bias"])], 0.5)
    assert [group["param_names"] for group in GrokAdamW(groups).param_groups[:2]] == [
        ["0.weight"],
        ["0.bias"],
    ]


def test_there_is_one_group_for_each_beta1() -> None:
    params = [new_param(2) for _ in range(4)]
    assert [group["params"] for group in layerwise_beta1(params, 0.0)] == [params]
    for given, sizes in ((params, [(0.9, 1), (0.0, 3)]), ([{"params": []}], [(0.9, 0)])):
        found = [(group["betas"][0], len(group["params"])) for group in layerwise_beta1(given, 1.0)]
        assert found == sizes


def test_what_is_frozen_counts_no_layer() -> None:
    model = model_of()
    model[0].requires_grad_(False)
    assert shown(layerwise_beta1(model, 0.5)) == [
        (0.9, ["0.weight", "0.bias", "2.weight", "2.bias"]),
        (0.45, ["3.weight"]),
    ]


def test_the_first_update_is_lr_in_every_layer() -> None:
    """grokadamw's is 1.0, 1.9, ..., 9.98 times that, as it corrects the bias of beta1 in every layer."""
    params = [torch.zeros(1, requires_grad=True) for _ in range(60)]
    optimizer = GrokAdamW(layerwise_beta1(params, 0.1), lr=0.25, weight_decay=0.0, lamb=0.0)
    for param in params:
        param.grad = torch.ones(1)
    optimizer.step()
    assert torch.cat(params).neg().detach() == pytest.approx(torch.full((60,), 0.25), rel=1e-6)


def test_it_steps_as_groups_that_are_written_out() -> None:
    whole = GrokAdamW(layerwise_beta1([new_param(5, seed=n) for n in range(3)], 0.1), lr=1e-2)
    betas = [0.9, 0.9 * 0.9, 0.9 * 0.9**2]
    written_out = [{"params": [new_param(5, seed=n)], "betas": (beta, 0.999)} for n, beta in enumerate(betas)]
    by_hand = GrokAdamW(written_out, lr=1e-2)
    for optimizer in (whole, by_hand):
        train(optimizer, 5)
    assert_same_bits(values(whole), values(by_hand))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {"gamma": 1.5}, "gamma must be a number in \\[0, 1\\], got 1.5"),
        ([], {"gamma": float("nan")}, "gamma must be"),
        ([], {"gamma": None}, "gamma must be"),
        ([torch.ones(2)], {"betas": (1.0, 0.9)}, "beta parameter at index 0: 1.0"),
        ([torch.ones(2)], {"betas": (torch.tensor(0.9), 0.9)}, "betas must be two numbers here"),
        ([{"lr": 1.0}], {}, "a group must have 'params'"),
        ([{"params": {torch.ones(2)}}], {}, "must have an order, got a set"),
        ([1.0], {}, "a parameter must be a tensor, got float"),
        (torch.ones(2), {}, "must be a model, parameters or groups, got Tensor"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(given, options, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        layerwise_beta1(given, **{"gamma": 0.1, **options})
