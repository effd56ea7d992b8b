"""FSDP2: a Transformer sharded over processes, which saves, and resumes on any number of them.

torchrun --standalone --nproc-per-node 2 examples/fsdp2.py --steps 100 --folder runs/fsdp2
torchrun --standalone --nproc-per-node 3 examples/fsdp2.py --steps 100 --folder runs/fsdp2   # goes on
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

from grokfused import GrokAdamW
from grokfused.dcp import LoadPlanner

P, BATCH = 7, 240  # learns a + b mod P; the batch is that of all processes together


def new_model():
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(64, 4, 256, 0.0, batch_first=True) for _ in range(2)]
    model = nn.Sequential(nn.Embedding(P, 64), *layers, nn.Flatten(), nn.Linear(2 * 64, P))
    for layer in layers:
        fully_shard(layer)  # gathered while it computes
    return fully_shard(model)


def my_batch(step):
    """This process's part of a batch: pairs [part, 2] and their sums [part]."""
    pairs = torch.randint(P, (BATCH, 2), generator=torch.Generator().manual_seed(step))
    mine = pairs[dist.get_rank() :: dist.get_world_size()]
    return mine, mine.sum(1) % P


def parts(model, optimizer):
    weights, states = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": states}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--folder", type=Path, help="resume from here, and save here")
options = parser.parse_args()
dist.init_process_group("gloo")
model = new_model()
optimizer = GrokAdamW(model.parameters(), lr=3e-3, alpha=0.9, lamb=0.5, max_grad_norm=1.0)

begin = max([int(each.name) for each in options.folder.glob("[0-9]*")] if options.folder else [], default=0)
if begin:
    found = parts(model, optimizer)
    dcp.load(found, checkpoint_id=options.folder / str(begin), planner=LoadPlanner())
    set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
end = begin + options.steps
for step in range(begin, end):
    pairs, sums = my_batch(step)
    optimizer.zero_grad()
    loss = cross_entropy(model(pairs), sums)
    loss.backward()
    optimizer.step()
if options.folder:
    dcp.save(parts(model, optimizer), checkpoint_id=options.folder / str(end))
average = loss.detach() / dist.get_world_size()
dist.all_reduce(average)
if dist.get_rank() == 0:
    print(
        f"steps {begin} to {end} on {dist.get_world_size()} processes: loss {average.item():.4f}", flush=True
    )
dist.destroy_process_group()
