"""A network memorises (a + b) mod 31 and understands it only later: with and without the filter.

python examples/grokking.py     # a minute
"""

import argparse

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from grokfused import GrokAdam

P = 31
PAPER = {"lr": 3e-3, "weight_decay": 0.005}
OPTIMIZERS = {  # the paper's optimizer without and with its filter, and the field's baseline
    "GrokAdam, no filter": lambda params: GrokAdam(params, **PAPER, grad_filter="none"),
    "GrokAdam, alpha 0.98, lamb 2": lambda params: GrokAdam(params, **PAPER, alpha=0.98, lamb=2.0),
    "AdamW, decay 1": lambda params: torch.optim.AdamW(params, 3e-3, (0.9, 0.98), weight_decay=1.0),
}


class Net(nn.Module):
    """Adds two numbers: pairs [n, 2] -> logits [n, P]."""

    def __init__(self, width=128):
        super().__init__()
        self.numbers = nn.Embedding(P, width)
        self.layers = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, P))

    def forward(self, pairs):
        return self.layers(self.numbers(pairs).flatten(1))


def data(share=0.5):
    """All pairs and their sums, in two parts: to train on and to be asked."""
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    sums, cut = pairs.sum(1) % P, round(share * len(pairs))
    return [(pairs[part], sums[part]) for part in (order[:cut], order[cut:])]


def accuracy(model, questions, answers):
    with torch.no_grad():
        return (model(questions).argmax(1) == answers).float().mean().item()


def arrivals(make, epochs, every=20):
    """Trains, and returns the epochs at which 95 % of the trained and of the unseen pairs were right."""
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model.parameters())
    found = [None, None]
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        cross_entropy(model(DATA[0][0]), DATA[0][1]).backward()
        optimizer.step()
        if epoch % every == 0:
            for which, (questions, answers) in enumerate(DATA):
                if found[which] is None and accuracy(model, questions, answers) >= 0.95:
                    found[which] = epoch
            if None not in found:
                break
    return found


DATA = data()
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6_000)
    options = parser.parse_args()
    for name, make in OPTIMIZERS.items():
        memorised, understood = arrivals(make, options.epochs)
        print(
            f"{name}: memorised at epoch {memorised}, understood at {understood} (of {options.epochs})",
            flush=True,
        )
