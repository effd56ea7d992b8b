"""Steps inside backward(): the gradients of a model never exist together, and memory peaks lower.

python examples/step_in_backward.py
"""

import argparse
import contextlib
import multiprocessing
import resource

import torch
from torch import nn

from grokfused import GrokAdamW, step_in_backward


def peak(layers, width, inside):
    """Takes three steps in this process; returns the MB by which its memory grew at most, and the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    optimizer = GrokAdamW(model.parameters(), lr=1e-4, grad_filter="none", state_dtype="block8")
    inputs = torch.randn(8, width)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with step_in_backward(optimizer) if inside else contextlib.nullcontext():
        for _ in range(3):
            loss = (model(inputs) - inputs).square().mean()
            loss.backward()
            if not inside:
                optimizer.step()
                optimizer.zero_grad()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) / 1024, loss.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    options = parser.parse_args()
    size = options.layers * options.width**2 * 4 / 2**20
    print(f"{size:.0f} MB of parameters, and as much of gradients; states of 8 bits")
    for inside in (False, True):
        # In a process of its own: the system remembers the largest memory that a process ever had.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            megabytes, loss = pool.apply(peak, (options.layers, options.width, inside))
        name = "inside backward()" if inside else "after backward() "
        print(f"steps {name}: {megabytes:.0f} MB more at the peak, loss {loss:.6f}", flush=True)


if __name__ == "__main__":
    main()
