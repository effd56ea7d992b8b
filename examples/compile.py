"""torch.compile with the optimizer inside: one graph, nothing compiled anew when options change.

python examples/compile.py                     # compiles for some seconds, needs a C++ compiler
python examples/compile.py --backend eager     # traces only
"""

import argparse
import copy

import torch
from torch import nn

from grokfused import GrokAdamW

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--backend", default="inductor")
options = parser.parse_args()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))
twin = copy.deepcopy(model)
optimizer, eager = (GrokAdamW(each.parameters(), lr=1e-2, alpha=0.9, lamb=0.5) for each in (model, twin))
compiled_graphs = []


def counting(graph, inputs):
    """The backend, which notes each graph that is compiled."""
    compiled_graphs.append(graph)
    return torch._dynamo.lookup_backend(options.backend)(graph, inputs)


@torch.compile(backend=counting, fullgraph=True)
def step():
    optimizer.step()


for number in range(6):
    inputs = torch.randn(32, 16, generator=torch.Generator().manual_seed(number))
    for each in (model, twin):
        each.zero_grad()
        each(inputs).square().mean().backward()
    if number == 3:  # a schedule writes new values: nothing is compiled anew
        for each in (optimizer, eager):
            each.param_groups[0].update(lr=3e-3, lamb=0.2)
    step()
    eager.step()

same = all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
print(f"6 steps, {len(compiled_graphs)} graph(s) compiled, equal to eager bit for bit: {same}")
