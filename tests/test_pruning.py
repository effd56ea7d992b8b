"""Pruning: every score against its definition, masks exact to the element, tickets that come back whole."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from grokfused import pruning
from grokfused.pruning import SCORES, Ticket, find_masks, find_ticket, jaccard_distance, masks_from_scores

WEIGHTS = ("0.weight", "2.weight")


def network(seed: int = 0) -> nn.Sequential:
    """A network small enough for a whole Hessian; float64, so that two ways to a score can be compared."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(7)
    return [
        (torch.randn(6, 4, generator=random).double(), torch.randint(3, (6,), generator=random))
        for _ in range(count)
    ]


def loss_of_weights(model: nn.Module, temperature: float = 1.0):
    """The loss as a function of all prunable weights in one vector."""
    named = dict(model.named_parameters())

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([named[name].numel() for name in WEIGHTS])
        weights = {name: part.view_as(named[name]) for name, part in zip(WEIGHTS, parts, strict=True)}
        losses = [
            nn.functional.cross_entropy(functional_call(model, weights, (x,)) / temperature, y)
            for x, y in batches()
        ]
        return torch.stack(losses).mean()

    return loss, torch.cat([named[name].detach().reshape(-1) for name in WEIGHTS])


def flat(scores: dict[str, Tensor]) -> Tensor:
    assert tuple(scores) == WEIGHTS
    return torch.cat([score.reshape(-1) for score in scores.values()])


def test_magnitude_is_the_absolute_value() -> None:
    model = network()
    assert torch.equal(pruning.magnitude(model)["0.weight"], model[0].weight.detach().abs())


def test_random_depends_on_its_seed_alone() -> None:
    one, same, other = (flat(pruning.random(network(), seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_snip_is_how_the_loss_feels_each_element_of_the_mask() -> None:
    model = network()
    loss, weights = loss_of_weights(model)
    mask = torch.ones_like(weights).requires_grad_()
    (felt,) = torch.autograd.grad(loss(weights * mask), mask)
    # Two ways through autograd in float64: their roundings differ.
    torch.testing.assert_close(
        flat(pruning.snip(model, nn.functional.cross_entropy, batches())), felt.abs() / felt.abs().sum()
    )


@pytest.mark.parametrize("temperature", [200.0, 3.0])
def test_grasp_is_the_weight_times_hessian_times_gradient(temperature) -> None:
    model = network()
    loss, weights = loss_of_weights(model, temperature)
    hessian = torch.autograd.functional.hessian(loss, weights)
    (gradient,) = torch.autograd.grad(loss(weights.requires_grad_()), weights)
    expected = weights.detach() * (hessian @ gradient)
    found = flat(pruning.grasp(model, nn.functional.cross_entropy, batches(), temperature=temperature))
    assert expected.abs().max() > 1e-9, "the comparison would hold for zeros"
    # A whole Hessian and a product with one, in float64: their roundings differ.
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-7)


def test_synflow_is_the_sum_over_all_paths_through_a_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    first, second = model[0].weight.detach().abs().double(), model[2].weight.detach().abs().double()
    through = [torch.zeros_like(first), torch.zeros_like(second)]
    for i in range(3):
        for j in range(4):
            for k in range(2):
                path = first[j, i] * second[k, j]
                through[0][j, i] += path
                through[1][k, j] += path
    found = pruning.synflow(model, None, [(torch.randn(5, 3), None)])
    for score, expected in zip(found.values(), through, strict=True):
        torch.testing.assert_close(score, expected)


@pytest.mark.parametrize("name", SCORES)
def test_a_score_leaves_the_model_and_its_gradients_alone(name) -> None:
    model = network()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = SCORES[name](model, nn.functional.cross_entropy, batches())
    assert {key: score.shape for key, score in scores.items()} == {key: before[key].shape for key in WEIGHTS}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_what_is_prunable_is_a_predicate() -> None:
    assert set(pruning.magnitude(network(), prunable=lambda name, _: name == "0.bias")) == {"0.bias"}
    with pytest.raises(ValueError, match="no parameter of this model is prunable"):
        pruning.magnitude(network(), prunable=lambda *_: False)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_masks_keep_exactly_the_share_that_was_asked_for(scope, density) -> None:
    random = torch.Generator().manual_seed(1)
    scores = {"a": torch.rand(7, 9, generator=random), "b": 9 * torch.rand(40, generator=random)}
    masks = masks_from_scores(scores, density, scope)
    if scope == "global":
        assert sum(int(mask.sum()) for mask in masks.values()) == round(density * 103)
        kept = torch.cat([scores[name][mask] for name, mask in masks.items()])
        left = torch.cat([scores[name][~mask] for name, mask in masks.items()])
        assert not kept.numel() or not left.numel() or kept.min() >= left.max()
    else:
        assert [int(mask.sum()) for mask in masks.values()] == [round(density * 63), round(density * 40)]


def test_of_equal_scores_the_first_are_kept() -> None:
    masks = masks_from_scores({"a": torch.ones(2, 3), "b": torch.ones(4)}, 0.7)
    assert masks["a"].all()
    assert masks["b"].tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"a": torch.ones(3)}, 1.2), r"density.*\[0, 1\].*1.2"),
        (({"a": torch.ones(3)}, 0.5, "layer"), "scope.*'layer'"),
        (({"a": torch.tensor([1.0, torch.nan])}, 0.5), "a hold NaN"),
    ],
    ids=["density", "scope", "nan"],
)
def test_bad_arguments_of_masks_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        masks_from_scores(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "weight"}, "score must be one of"),
        ({"schedule": "cubic"}, "schedule must be one of"),
        ({"rounds": 0}, "rounds must be >= 1"),
        ({"density": -0.1}, "density"),
        ({"density": "0.1"}, "density.*must be a number, got '0.1'"),
        (
            {"score": "snip", "loss_fn": nn.functional.cross_entropy},
            r"needs batches, .*, got \(\)",
        ),
        ({"score": "grasp", "batches": [(None, None)]}, "needs loss_fn, .*, got None"),
        ({"score": "snip", "loss_fn": [(None, None)]}, r"needs loss_fn, .*, got \[\(None, None\)\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_of_a_search_are_named(change, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        find_masks(**{"model": network(), "score": "magnitude", "density": 0.5, **change})


@pytest.mark.parametrize("schedule", pruning.SCHEDULES)
def test_rounds_prune_step_by_step_and_bring_nothing_back(schedule) -> None:
    seen: list[int] = []

    def score(model, *_):
        seen.append(sum(int((p != 0).sum()) for name, p in model.named_parameters() if name in WEIGHTS))
        return {name: torch.rand_like(p) for name, p in model.named_parameters() if name in WEIGHTS}

    torch.manual_seed(0)
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    masks = find_masks(model, score, 0.2, rounds=4, schedule=schedule)
    shares = {"linear": [1, 0.8, 0.6, 0.4], "exponential": [0.2 ** (r / 4) for r in range(4)]}[schedule]
    assert seen == [round(share * 35) for share in shares]
    assert sum(int(mask.sum()) for mask in masks.values()) == 7
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_distance_of_masks_is_jaccards() -> None:
    one = {"a": torch.tensor([True, True, False, False])}
    other = {"a": torch.tensor([True, False, True, False])}
    assert jaccard_distance(one, other) == pytest.approx(2 / 3)
    assert jaccard_distance(one, one) == 0.0
    assert jaccard_distance({"a": torch.zeros(2, dtype=torch.bool)}, {"a": torch.zeros(2).bool()}) == 0.0
    with pytest.raises(ValueError, match="same names and shapes"):
        jaccard_distance(one, {"b": other["a"]})


def test_a_ticket_rewinds_and_comes_back_from_its_file(tmp_path) -> None:
    model = network()
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param))
    ticket = find_ticket(model, initial, 0.4)
    assert torch.equal(flat(ticket.masks), flat(masks_from_scores(pruning.magnitude(model), 0.4))), (
        "the masks are those of the trained weights"
    )
    ticket.save(tmp_path / "ticket.pt")
    loaded = Ticket.load(tmp_path / "ticket.pt")
    other = network(seed=5)
    loaded.rewind(other)
    for name, value in other.state_dict().items():
        expected = initial[name] * ticket.masks[name] if name in ticket.masks else initial[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("p", [1, 2])
def test_the_dense_control_has_the_tickets_norm(p) -> None:
    model = network()
    initial = model.state_dict()
    ticket = find_ticket(model, initial, 0.4)
    weights = [initial[name].clone() for name in WEIGHTS]
    kept = sum((w * ticket.masks[n]).norm(p) for n, w in zip(WEIGHTS, weights, strict=True))
    ticket.rewind_dense(model, p)
    scaled = [dict(model.named_parameters())[name].detach() for name in WEIGHTS]
    # A product and a sum of norms, in another order.
    torch.testing.assert_close(sum(w.norm(p) for w in scaled), kept)
    for before, after in zip(weights, scaled, strict=True):
        torch.testing.assert_close(after / before, torch.full_like(before, ticket.norm_ratio(p)))
    with pytest.raises(ValueError, match="p must be 1 or 2, got 3"):
        ticket.rewind_dense(model, 3)


def test_what_is_no_ticket_is_refused(tmp_path) -> None:
    torch.save({"model": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no ticket"):
        Ticket.load(tmp_path / "other.pt")
    Ticket({"a": torch.ones(2)}, {"a": torch.ones(2)}).save(tmp_path / "no masks.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:100])
    torch.save({"masks": 5, "initial_state": None}, tmp_path / "empty.pt")
    for name in ("no masks", "cut", "empty"):
        with pytest.raises(ValueError, match="holds no ticket"):
            Ticket.load(tmp_path / f"{name}.pt")
    with pytest.raises(ValueError, match="initial_state lacks"):
        find_ticket(network(), {}, 0.5)
    model = network()
    cut = {name: tensor[:1] for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"initial_state\[.*\] has shape .*, the model's"):
        find_ticket(model, cut, 0.5)


def test_a_network_that_begins_at_zero_has_no_norm_to_scale() -> None:
    model = network()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="weights are all 0"):
        find_ticket(model, zeros, 0.5).rewind_dense(model, 2)


class Idle(nn.Module):
    """A network with a weight that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, inputs):
        return self.used(inputs)


@pytest.mark.parametrize("score", ["snip", "grasp", "synflow"])
def test_a_weight_without_effect_scores_nothing_and_a_loader_is_taken(score) -> None:
    model = Idle()
    data = torch.utils.data.TensorDataset(torch.randn(8, 3), torch.randint(2, (8,)))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    found = SCORES[score](model, nn.functional.cross_entropy, loader)
    assert found["unused.weight"].eq(0).all()
    assert found["used.weight"].ne(0).all()
    if score != "synflow":
        model.unused.weight.requires_grad_(False)
        with pytest.raises(ValueError, match=r"\['unused.weight'\] are frozen"):
            SCORES[score](model, nn.functional.cross_entropy, loader)
