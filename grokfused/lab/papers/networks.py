"""The networks of the papers that are small enough to be written out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, normalize

from grokfused.lab.addition import MLP
from grokfused.lab.quantise import Norm, Scales, integer_layer


class Student(nn.Module):
    """784 - hidden - features - 10, with ReLU after the first two."""

    def __init__(self, hidden: int, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, features), nn.ReLU())
        self.head = nn.Linear(features, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images to features and logits."""
        features = self.body(images.flatten(1))
        return features, self.head(features)


class Reader(nn.Module):
    """Embedding, two layers of LSTM, and one output from its last state."""

    def __init__(self, embedding: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1_000, embedding)
        self.lstm = nn.LSTM(embedding, hidden, 2, batch_first=True)
        self.head = nn.Linear(hidden, 1)
        with torch.no_grad():
            for param in self.parameters():
                param.mul_(scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens [batch, length] to logits [batch]."""
        logits: Tensor = self.head(self.lstm(self.embedding(tokens))[0][:, -1])
        return logits[:, 0]


class GraphNetwork(nn.Module):
    """Two layers that add up neighbours, a matrix for each kind of bond; a sum over atoms; a perceptron."""

    def __init__(self, elements: int, width: int, scale: float) -> None:
        super().__init__()
        self.own = nn.ModuleList(nn.Linear(inputs, width) for inputs in (elements, width))
        self.joined = nn.ModuleList(nn.Linear(inputs, 4 * width, bias=False) for inputs in (elements, width))
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        with torch.no_grad():
            for param in self.parameters():
                param.mul_(scale)

    def forward(self, atoms: Tensor, bonds: Tensor) -> Tensor:
        """Maps atoms [n, atoms, elements] and bonds [n, 4, atoms, atoms] to a number each, [n]."""
        there = atoms.sum(2, keepdim=True)
        for own, joined in zip(self.own, self.joined, strict=True):
            messages = joined(atoms).unflatten(2, (4, -1)).transpose(1, 2)
            atoms = (own(atoms) + (bonds @ messages).sum(1)).relu() * there
        found: Tensor = self.head(atoms.sum(1))
        return found[:, 0]


class Convolutions(nn.Module):
    """Two convolutions with normalisation, and a linear layer, in integers; 0 bits are floats."""

    def __init__(self, width: int, bits: int, scales: Scales, l1: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, width, 3), nn.Conv2d(width, 2 * width, 3)
        self.norms = nn.ModuleList([Norm(width, l1), Norm(2 * width, l1)])
        self.head = nn.Linear(2 * width * 49, 10)
        self.conv, self.linear = (integer_layer(f, bits, scales) for f in (conv2d, linear))

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [batch, 1, 28, 28] to logits."""
        for layer, norm in zip((self.first, self.second), self.norms, strict=True):
            x = norm(self.conv(x, layer.weight, stride=2, padding=1)).relu()
        return self.linear(x.flatten(1), self.head.weight) + self.head.bias


class Block(nn.Module):
    """Attention and MLP of a Transformer, each behind a LayerNorm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixed, self.joined = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, tokens, dim] to the same."""
        q, k, v = self.mixed(self.norm_1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.joined(attended)
        result: Tensor = x + self.mlp(self.norm_2(x))
        return result


class ViT(nn.Module):
    """Patches of 7 x 7 of a 28 x 28 image; the mean of the tokens is the feature."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 7, 7)
        self.positions = nn.Parameter(0.02 * torch.randn(16, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)
        self.normed = False

    def features(self, images: Tensor) -> Tensor:
        """Maps images to features [batch, dim], of norm 1 where ``normed``."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        found: Tensor = self.norm(self.blocks(tokens)).mean(1)
        return normalize(found, dim=1) if self.normed else found

    def forward(self, images: Tensor) -> Tensor:
        """Maps images to logits."""
        found: Tensor = self.head(self.features(images))
        return found


class LowRank(nn.Module):
    """``W + B A`` of rank r, B = 0 at first (LoRA, arXiv:2106.09685)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight as it counts."""
        return weight + self.b @ self.a


class Observed(nn.Module):
    """The network, and what its optimizer saw last: in buffers, so that a checkpoint has them too."""

    stream: Tensor

    def __init__(self, network: MLP, steps: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("stream", torch.zeros(steps, 64))
        for number, param in enumerate(network.parameters()):
            self.register_buffer(f"slow_{number}", torch.zeros_like(param))

    def note(self, *_: object) -> None:
        """Notes the present gradients, before a step."""
        grads = self.grads()
        self.stream = torch.cat([self.stream[1:], grads[1].flatten()[None, :64]])
        for slow, grad in zip(self.slow(), grads, strict=True):
            slow.lerp_(grad, 0.02)

    def grads(self) -> list[Tensor]:
        """Returns the gradients."""
        return [param.grad for param in self.network.parameters() if param.grad is not None]

    def slow(self) -> list[Tensor]:
        """Returns their moving means, alpha 0.98."""
        return [buffer for name, buffer in self.named_buffers() if name.startswith("slow_")]

    def hidden(self, counts: Tensor) -> Tensor:
        """Returns what the ReLUs get, [n, hidden]."""
        return linear(counts, self.network.w_in @ self.network.embed)
