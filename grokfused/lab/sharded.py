"""A small GPT on several processes, its weights and states sharded over them (FSDP2), with a checkpoint.

    torchrun --nproc-per-node 2 -m grokfused.lab.sharded --steps 200 --checkpoint runs/sharded

Each process learns x + y mod p from its part of every batch. Started again with the same folder, on as many
processes or on others, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard

from grokfused import GrokAdamW
from grokfused.lab.model import Decoder

MODULUS = 7
BATCH = 256  # over all processes


def new_model() -> Decoder:
    """Returns the network, each block gathered for the time it computes; the same on all processes."""
    torch.manual_seed(0)
    model = Decoder(MODULUS + 1, dim=64, length=3)
    # Logits of their own memory: FSDP2 warns of a view, whose backward pass it could miss.
    model.register_forward_hook(lambda module, inputs, logits: logits.clone())
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def my_batch(step: int) -> tuple[Tensor, Tensor]:
    """Returns this process's questions "x y =", int64 [part, 3], and their sums [part]."""
    random = torch.Generator().manual_seed(step)
    pairs = torch.randint(MODULUS, (BATCH, 2), generator=random)
    tokens = torch.cat([pairs, torch.full((BATCH, 1), MODULUS)], dim=1)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    return tokens[mine], pairs.sum(1)[mine] % MODULUS


def saved(model: nn.Module, optimizer: GrokAdamW) -> dict[str, Any]:
    """Returns what a checkpoint holds."""
    weights, states = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": states}


def resume(model: nn.Module, optimizer: GrokAdamW, folder: Path | None) -> int:
    """Restores the latest checkpoint, if there is one, and returns how many steps were taken."""
    steps = sorted(int(path.name) for path in folder.glob("[0-9]*")) if folder else []
    if not folder or not steps:
        return 0
    found = saved(model, optimizer)
    load(found, checkpoint_id=folder / str(steps[-1]))
    set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
    return steps[-1]


def main() -> None:
    """Trains, and reports and saves in the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="how many to take (default: 200)")
    parser.add_argument("--checkpoint", type=Path, help="a folder to resume from and to save to")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    model = new_model()
    optimizer = GrokAdamW(model.parameters(), lr=3e-3)
    begin = resume(model, optimizer, options.checkpoint)
    end = begin + options.steps
    loss = torch.zeros(())
    for step in range(begin, end):
        tokens, sums = my_batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens), sums)
        loss.backward()
        optimizer.step()
    average = loss.detach() / dist.get_world_size()
    dist.all_reduce(average)
    if options.checkpoint:
        save(saved(model, optimizer), checkpoint_id=options.checkpoint / str(end))
    if dist.get_rank() == 0:
        print(f"step {end} on {dist.get_world_size()} processes: loss {average.item():.4f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
