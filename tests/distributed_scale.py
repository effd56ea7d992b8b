"""Cases of tests/test_distributed.py: what multiplies the gradients of a step, clipping and a loss scale."""

from pathlib import Path

import torch
import torch.distributed as dist
from distributed_group import assert_same_states, give_grads, network, sharded_network
from stepping import OPTIONS
from torch.distributed.tensor import DTensor

from grokfused import GrokAdamW


def a_scaled_loss(_: Path) -> None:
    plain, model = network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), **OPTIONS)
    for net, optimizer in (plain, one), (model, many):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(3):
            give_grads(net, step)
            if step == 1:  # an overflow in one shard cancels the step on all processes
                bad = next(net.parameters()).grad
                local = bad.to_local() if isinstance(bad, DTensor) else bad
                if local is bad or dist.get_rank() == 1:
                    local[-1] = torch.inf
            scaler.scale(torch.ones(()))
            scaler.step(optimizer)
            scaler.update()
    assert_same_states(many, one)
    assert all(state["step"].item() == 2 for state in many.state.values())


CASES = [a_scaled_loss]
