"""States of 8 bits: what they weigh, what they cost in loss, how to look at them, and the way in and out.

python examples/eight_bit.py
"""

import argparse

import torch
from torch import nn

from grokfused import GrokAdamW, decode_state


def trained(steps, **options):
    """A small network after so many steps, with its optimizer and its last loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 32))
    optimizer = GrokAdamW(model.parameters(), lr=3e-3, grad_filter="none", **options)
    for step in range(steps):
        inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (model(inputs) - inputs.flip(1)).square().mean()
        loss.backward()
        optimizer.step()
    return model, optimizer, loss.item()


def bytes_of_states(optimizer):
    arrays = (value for state in optimizer.state.values() for key, value in state.items() if key != "step")
    return sum(array.numel() * array.element_size() for array in arrays)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=300)
options = parser.parse_args()
for name in ("float32", "bfloat16", "block8"):
    model, optimizer, loss = trained(options.steps, state_dtype=name)
    weight = bytes_of_states(optimizer) / sum(param.numel() for param in model.parameters())
    print(f"{name}: {weight:.2f} bytes of states a parameter, loss {loss:.4f}")

# A live state is codes; this shows the numbers they mean.
moment = decode_state(optimizer, model[0].weight)["exp_avg_sq"]
print(f"the second moment of the first layer: {moment.min().item():.2e} to {moment.max().item():.2e}")

# Out: a state dict for torch.optim, in float32. In: any of torch's, with the dtype written into its groups.
plain = torch.optim.AdamW(model.parameters())
plain.load_state_dict(optimizer.torch_state_dict())
saved = plain.state_dict()
for group in saved["param_groups"]:
    group["state_dtype"] = "block8"
again = GrokAdamW(model.parameters())
again.load_state_dict(saved)
back = decode_state(again, model[0].weight)["exp_avg_sq"]
print(f"through torch.optim.AdamW and back, bit for bit: {torch.equal(moment, back)}")
