"""Fine-tune the LayerNorms of a network and nothing else: a few hundred numbers learn a new task.

python examples/finetune_ln.py
"""

import argparse

import torch
from torch import nn
from torch.nn.functional import mse_loss

from grokfused import GrokAdamW


def network():
    return nn.Sequential(
        *(nn.Linear(8, 64), nn.LayerNorm(64), nn.GELU()),
        *(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()),
        nn.Linear(64, 1),
    )


def batch(step, phase):
    """Waves, whose phase is the task."""
    inputs = torch.randn(128, 8, generator=torch.Generator().manual_seed(step))
    return inputs, torch.sin(inputs.sum(1, keepdim=True) + phase)


def train(model, optimizer, steps, phase):
    for step in range(steps):
        inputs, wanted = batch(step, phase)
        optimizer.zero_grad()
        loss = mse_loss(model(inputs), wanted)
        loss.backward()
        optimizer.step()
    return loss.item()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=1_000)
options = parser.parse_args()
torch.manual_seed(0)
model = network()
first = train(model, GrokAdamW(model.parameters(), lr=3e-3, grad_filter="none"), options.steps, phase=0.0)
print(f"trained: loss {first:.4f} with {sum(p.numel() for p in model.parameters()):,} parameters")

before = {name: param.clone() for name, param in model.state_dict().items()}
norms = {
    param for module in model.modules() if isinstance(module, nn.LayerNorm) for param in module.parameters()
}
for param in model.parameters():
    param.requires_grad_(param in norms)
# Frozen parameters may stay in the optimizer: they get no state and no step.
optimizer = GrokAdamW(model.parameters(), lr=1e-2, weight_decay=0.0, alpha=0.9, lamb=0.5)
inputs, wanted = batch(0, phase=1.0)
print(f"new task: loss {mse_loss(model(inputs), wanted).item():.4f} before")
last = train(model, optimizer, options.steps, phase=1.0)
changed = [name for name, param in model.state_dict().items() if not torch.equal(param, before[name])]
print(f"fine-tuned: loss {last:.4f} with {sum(p.numel() for p in norms):,} parameters ({', '.join(changed)})")
print(f"states: {len(optimizer.state)} of {len(list(model.parameters()))} parameters have one")
