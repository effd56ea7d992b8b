"""Other people's wrappers and loops around the optimizers: they train as around torch.optim's, and resume."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stepping import ADAM, assert_same_bits, through_a_file, ulps_of_the_largest, values
from torch import Tensor, nn
from torch.optim import swa_utils

from grokfused import GrokAdamW

OURS = {**ADAM, "lamb": 1.7, "alpha": 0.93}
WRAPPERS = {
    "SAM": lambda kind, params, options: _package().SAM(params, kind, rho=0.05, **options),
    "Lookahead": lambda kind, params, options: _package().Lookahead(kind(params, **options), k=2, alpha=0.4),
    "ScheduleFree": lambda kind, params, options: _package().ScheduleFreeWrapper(kind(params, **options)),
    "OrthoGrad": lambda kind, params, options: _package().OrthoGrad(kind(params, **options)),
    "TRAC": lambda kind, params, options: _package().TRAC(kind(params, **options)),
}


def _package() -> Any:
    return pytest.importorskip("pytorch_optimizer", reason="it is not installed (pip install '.[bench]')")


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))


def batch(number: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(number)
    inputs = torch.randn(32, 5, generator=random)
    return inputs, inputs[:, :3].argmax(1)


def trained(model: nn.Module, optimizer: Any, steps: range) -> list[float]:
    """Trains as each wrapper's documentation has it: with a closure, and its switch of weights if any."""
    losses = []
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in steps:
        inputs, targets = batch(step)

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        losses.append(closure().item())
        if type(optimizer).__name__ == "SAM":
            optimizer.step(closure)
        else:
            optimizer.step()
    return losses


def agree(ours: nn.Module, theirs: nn.Module) -> None:
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert ulps_of_the_largest(a.detach(), b.detach()) < 200  # of many steps, each through a gradient


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_trains_as_around_adamw(wrapper) -> None:
    models, losses = [], []
    for kind, options in (GrokAdamW, {**ADAM, "grad_filter": "none"}), (torch.optim.AdamW, ADAM):
        model = network()
        optimizer = WRAPPERS[wrapper](kind, model.parameters(), options)
        losses.append(trained(model, optimizer, range(20)))
        models.append(model)
    agree(*models)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_filter_resumes_bit_for_bit(wrapper) -> None:
    model = network()
    optimizer = WRAPPERS[wrapper](GrokAdamW, model.parameters(), OURS)
    trained(model, optimizer, range(4))
    weights, saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    trained(model, optimizer, range(4, 8))
    other = network()
    other.load_state_dict(weights)
    resumed = WRAPPERS[wrapper](GrokAdamW, other.parameters(), OURS)
    resumed.load_state_dict(saved)
    trained(other, resumed, range(4, 8))
    assert_same_bits(other.state_dict(), model.state_dict())


def test_averaged_weights_and_their_schedule_are_those_around_adamw() -> None:
    models = []
    for kind, options in (GrokAdamW, {**ADAM, "grad_filter": "none"}), (torch.optim.AdamW, ADAM):
        model = nn.Sequential(nn.BatchNorm1d(5), network())
        averaged = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        optimizer = kind(model.parameters(), **options)
        schedule = swa_utils.SWALR(optimizer, swa_lr=1e-2, anneal_epochs=5)
        for step in range(10):
            trained(model, optimizer, range(step, step + 1))
            averaged.update_parameters(model)
            schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)
        swa_utils.update_bn([batch(number)[0] for number in range(3)], averaged)
        models.append(averaged)
    agree(*models)


# --- a loop of reinforcement learning, as CleanRL writes them ----------------------------------------------


def walks(policy: Callable[[Tensor], tuple[Tensor, Tensor]], random: torch.Generator) -> tuple[Tensor, ...]:
    """Plays 8 walks of 16 steps on a line, right being good; returns what a policy learns from."""
    at = torch.zeros(8, 1)
    seen, taken, chances, rewards, guessed = [], [], [], [], []
    for _ in range(16):
        with torch.no_grad():
            logits, value = policy(at)
        action = torch.multinomial(logits.softmax(1), 1, generator=random)
        seen.append(at)
        taken.append(action)
        chances.append(logits.log_softmax(1).gather(1, action))
        guessed.append(value)
        at = (at + action.float() * 2 - 1).clamp(-4, 4)
        rewards.append(at / 4)
    returns, later = [], torch.zeros(8, 1)
    for reward in reversed(rewards):
        later = reward + 0.9 * later
        returns.insert(0, later)
    return tuple(torch.cat(part) for part in (seen, taken, chances, returns, guessed))


def played(kind: Any, options: dict[str, Any], updates: int = 12) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(1, 16), nn.Tanh())
    actor, critic = nn.Linear(16, 2), nn.Linear(16, 1)
    model = nn.ModuleList([body, actor, critic])
    optimizer = kind(model.parameters(), **options)
    random, mean_returns = torch.Generator().manual_seed(2), []

    def policy(seen: Tensor) -> tuple[Tensor, Tensor]:
        features = body(seen)
        return actor(features), critic(features)

    for update in range(updates):
        optimizer.param_groups[0]["lr"] = (1.0 - update / updates) * 1e-2
        seen, taken, chances, returns, guessed = walks(policy, random)
        mean_returns.append(returns.mean().item())
        better = returns - guessed
        for _ in range(2):
            for part in torch.randperm(len(seen), generator=random).split(32):
                logits, value = policy(seen[part])
                ratio = (logits.log_softmax(1).gather(1, taken[part]) - chances[part]).exp()
                gain = torch.min(ratio * better[part], ratio.clamp(0.8, 1.2) * better[part]).mean()
                loss = 0.5 * (value - returns[part]).square().mean() - gain
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
    return model, mean_returns


def test_a_loop_of_reinforcement_learning_learns_as_with_adamw_and_with_the_filter() -> None:
    _, ours = played(GrokAdamW, {**ADAM, "grad_filter": "none"})
    _, theirs = played(torch.optim.AdamW, ADAM)
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    _, filtered = played(GrokAdamW, {**OURS, "lamb": 0.5})
    for returns in ours, filtered:
        assert returns[-1] > returns[0] + 2


# --- timm --------------------------------------------------------------------------------------------------


def test_timm_makes_it_by_a_name_that_is_registered() -> None:
    timm = pytest.importorskip("timm.optim", reason="timm is not installed")
    from timm.optim._optim_factory import default_registry  # where it says that more are registered

    default_registry.register(timm.OptimInfo("grokfused", GrokAdamW, "Grokfast and AdamW", has_betas=True))
    model = network()
    optimizer = timm.create_optimizer_v2(
        model, opt="grokfused", lr=3e-3, weight_decay=0.1, layer_decay=0.7, alpha=0.9
    )
    assert type(optimizer) is GrokAdamW
    assert {group["alpha"] for group in optimizer.param_groups} == {0.9}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    losses = trained(model, optimizer, range(10))
    assert losses[-1] < losses[0]
    saved = through_a_file(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    assert values(optimizer)["0 step"].item() == 10
