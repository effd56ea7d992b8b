"""Prune, rewind, train under the mask: a lottery ticket of a network that has understood its task.

    python examples/tickets.py     # under a minute

After "Bridging Lottery Ticket and Grokking" (arXiv:2310.19470); `grokfused reproduce tickets` repeats
the whole experiment.
"""

import argparse
import copy

import torch
from grokking import DATA, PAPER, Net, accuracy  # the file beside this one
from torch.nn.functional import cross_entropy

from grokfused import GrokAdam, pruning


def train(model, epochs, masks=None):
    """Trains, under masks if there are any; returns the epoch at which 95 % of unseen pairs were right."""
    optimizer = GrokAdam(model.named_parameters(), **PAPER, alpha=0.98, lamb=2.0)
    if masks:
        optimizer.set_masks(masks)  # pruned weights and their states are exactly 0, now and after every step
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        cross_entropy(model(DATA[0][0]), DATA[0][1]).backward()
        optimizer.step()
        if epoch % 20 == 0 and accuracy(model, *DATA[1]) >= 0.95:
            return epoch
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6_000)
    parser.add_argument("--density", type=float, default=0.4, help="share of the weights that is kept")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Net()
    beginning = copy.deepcopy(model.state_dict())
    print(f"dense: understood at epoch {train(model, options.epochs)}", flush=True)

    ticket = pruning.find_ticket(
        model, beginning, options.density
    )  # the largest weights, and where they began
    ticket.save("ticket.pt")
    random = pruning.find_masks(model, "random", options.density, seed=0)
    for name, masks in {"ticket": pruning.Ticket.load("ticket.pt").masks, "random mask": random}.items():
        pruning.Ticket(masks, beginning).rewind(model)  # the first weights, 0 where it is pruned
        when = train(model, options.epochs, masks)
        kept = sum(int((weight != 0).sum()) for key, weight in model.named_parameters() if key in masks)
        print(f"{name}: understood at epoch {when}, with {kept:,} weights", flush=True)


if __name__ == "__main__":
    main()
