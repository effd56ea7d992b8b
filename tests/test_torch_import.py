"""State dicts of torch.optim: their moments are adopted, and training goes on as torch would."""

import pytest
import torch
from checkpointing import copies
from stepping import ADAM, BACKENDS, through_a_file, train

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.agreement import differing_bits

PAIRS = [(GrokAdamW, torch.optim.AdamW), (GrokAdam, torch.optim.Adam)]


@pytest.mark.parametrize("amsgrad", [False, True], ids=["adam", "amsgrad"])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["AdamW", "Adam"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_optims_moments_are_adopted_and_the_slow_gradient_starts_next(
    backend, ours, theirs, amsgrad
) -> None:
    param = torch.randn(9, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torchs = theirs([param], foreach=False, amsgrad=amsgrad, **ADAM)
    train(torchs, 3)
    saved = through_a_file(torchs.state_dict())
    adopted = copies([param])
    optimizer = ours(adopted, alpha=0.93, lamb=1.7, backend=backend)
    optimizer.load_state_dict(saved)
    state = optimizer.state[adopted[0]]
    for key, value in torchs.state[param].items():
        assert differing_bits(state[key], value) == 0, key
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in ADAM} == ADAM
    assert (group["alpha"], group["lamb"], group["backend"]) == (0.93, 1.7, backend)
    train(optimizer, 1, seed=5)
    assert state is optimizer.state[adopted[0]]
    assert state["step"] == 4
    assert differing_bits(state["grad_ema"], adopted[0].grad) == 0


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["AdamW", "Adam"])
def test_training_from_torch_optims_state_goes_on_as_torch_would(ours, theirs) -> None:
    param = torch.randn(9, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torchs = theirs([param], foreach=False, **ADAM)
    train(torchs, 3)
    adopted = copies([param])
    optimizer = ours(adopted, lamb=0.0)
    optimizer.load_state_dict(torchs.state_dict())
    for each in (torchs, optimizer):
        train(each, 20, seed=5)
    # torch rounds in another order: a few units in the last place (1.2e-7) of the largest parameter.
    assert (adopted[0] - param).abs().max() <= 4 * 1.2e-7 * param.abs().max()


def test_torch_optims_half_precision_states_are_widened_exactly() -> None:
    param = torch.randn(33, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    torchs = torch.optim.AdamW([param], foreach=False, **ADAM)
    train(torchs, 3)
    adopted = copies([param])
    optimizer = GrokAdamW(adopted)
    optimizer.load_state_dict(torchs.state_dict())
    for key in ("exp_avg", "exp_avg_sq"):
        assert differing_bits(optimizer.state[adopted[0]][key], torchs.state[param][key].float()) == 0


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor(3), torch.tensor([3.0])], ids=repr)
def test_what_else_torch_and_its_schedulers_write_is_kept(step) -> None:
    model = torch.nn.Linear(3, 2)
    torchs = torch.optim.AdamW(model.named_parameters(), **ADAM)
    torch.optim.lr_scheduler.StepLR(torchs, 5)
    train(torchs, 3)
    saved = torchs.state_dict()
    for state in saved["state"].values():
        state["step"] = step
    optimizer = GrokAdamW(model.parameters())
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["param_names"], group["initial_lr"]) == (["weight", "bias"], ADAM["lr"])
    assert [(state["step"].shape, state["step"].item()) for state in optimizer.state.values()] == 2 * [
        ((), 3)
    ]
