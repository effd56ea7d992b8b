"""Measures one optimizer step on shards (FSDP2), which is mostly the host's work: no step communicates.

    torchrun --standalone --nproc-per-node 2 -m bench.step_sharded

The network is the demonstration's; "plain" is the same step on tensors of the shards' sizes that are no
DTensors. Times are those of the first process, while the others do the same.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from grokfused.lab.bench.implementations import FUSED, IMPLEMENTATIONS, OURS
from grokfused.lab.bench.probes import machine
from grokfused.lab.bench.timing import Step, Turns, in_turns, ratios, spread, timed
from grokfused.lab.model import Decoder

SHARDED = " on FSDP2"


def sharded_parameters() -> list[torch.Tensor]:
    """Returns the network's parameters, with gradients as FSDP2 gives them."""
    torch.manual_seed(0)
    model = Decoder(99)
    model.register_forward_hook(lambda module, inputs, logits: logits.clone())  # FSDP2 warns of views
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    model(torch.randint(99, (16, 5))).square().mean().backward()
    return list(model.parameters())


def plain(params: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns tensors like the shards, with gradients."""
    found = []
    for param in params:
        shard = param.detach().to_local().clone().requires_grad_()  # type: ignore[attr-defined]
        shard.grad = param.grad.to_local().clone()  # type: ignore[union-attr]
        found.append(shard)
    return found


def steps() -> dict[str, Step]:
    """Returns the steps of both optimizers, on DTensors and on plain tensors."""
    found: dict[str, Step] = {}
    for name in (OURS, FUSED):
        make = IMPLEMENTATIONS[name].make
        found[name + SHARDED] = make(sharded_parameters())
        found[name] = make(plain(sharded_parameters()))
    for step in found.values():
        step()
        step()
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=201)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    made = steps()
    # As many rounds in each process: they step together.
    turns = Turns(0.0, least=rounds)
    taken = in_turns(list(made.values()), turns, lambda step: timed(step, 5))
    times = dict(zip(made, taken, strict=True))
    if dist.get_rank() == 0:
        command = f"python -m bench.step_sharded --rounds {rounds}"
        print({**machine(command), "processes": dist.get_world_size()})
        base = times[FUSED + SHARDED]
        for name, values in times.items():
            median, low, high = spread(values)
            share = ratios(values, base).median
            print(f"{name:24} {median:.3f} ms ({low:.3f}-{high:.3f}), {share:.2f} of {FUSED + SHARDED}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
