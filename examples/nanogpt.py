"""A small GPT learns Python's language reference, byte by byte: AdamW and GrokAdamW side by side.

python examples/nanogpt.py --steps 500
python examples/nanogpt.py --steps 1000 --folder runs/nanogpt   # started again, it goes on where it stopped
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from grokfused import GrokAdamW

WIDTH, HEADS, LAYERS, WINDOW, BATCH = 64, 4, 2, 32, 32
TRAIN, HELD_OUT = torch.tensor(list("\n".join(topics.values()).encode())).chunk(2)
OPTIMIZERS = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=3e-3),
    "GrokAdamW, no filter": lambda params: GrokAdamW(params, lr=3e-3, grad_filter="none"),
    "GrokAdamW, alpha 0.9, lamb 0.5": lambda params: GrokAdamW(params, lr=3e-3, alpha=0.9, lamb=0.5),
}


class GPT(nn.Module):
    """Predicts the next byte: tokens [batch, length] -> logits [batch, length, 256]."""

    def __init__(self):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(WINDOW, WIDTH)
        options = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, **options)
        self.blocks = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        embedded = self.bytes(tokens) + self.places(torch.arange(length))
        return self.head(self.blocks(embedded, mask, is_causal=True))


def loss_on(model, text, step):
    """The mean loss, in nats a byte, of the batch with this number."""
    begin = torch.randint(len(text) - WINDOW - 1, (BATCH, 1), generator=torch.Generator().manual_seed(step))
    windows = text[begin + torch.arange(WINDOW + 1)]
    return cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def train(name, steps, folder):
    """Trains to so many steps, from a checkpoint if there is one; returns the held-out loss."""
    torch.manual_seed(0)
    model = GPT()
    optimizer = OPTIMIZERS[name](model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    file = folder / f"{name}.pt" if folder else None
    if file and file.exists():
        for key, state in torch.load(file, weights_only=True).items():
            parts[key].load_state_dict(state)
    for step in range(schedule.last_epoch, steps):
        optimizer.zero_grad()
        loss_on(model, TRAIN, step).backward()
        optimizer.step()
        schedule.step()
    if file:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({key: part.state_dict() for key, part in parts.items()}, file)
    with torch.no_grad():
        return sum(loss_on(model, HELD_OUT, step).item() for step in range(20)) / 20


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--folder", type=Path, help="resume from here, and save here")
options = parser.parse_args()
for name in OPTIMIZERS:
    print(f"{name}: {train(name, options.steps, options.folder):.4f} nats a byte after {options.steps} steps")
