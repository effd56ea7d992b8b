"""The network of the Grokfast paper's algorithmic experiment: a two-layer Transformer decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and MLP; the first LayerNorm acts on the stream itself, as in the authors' model."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, causal: Tensor, last_only: bool = False) -> Tensor:
        """Maps [batch, tokens, dim] to the same, or to [batch, 1, dim] for the last token alone."""
        x = self.ln_1(x)
        queries = x[:, -1:] if last_only else x  # the last token sees all others: no mask
        attended, _ = self.attention(
            queries, x, x, attn_mask=None if last_only else causal, need_weights=False
        )
        x = queries + attended
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result


class Decoder(nn.Module):
    """Predicts the token after the last one.

    Only that prediction reaches the loss, so the last block computes nothing for the other tokens:
    the same function, the same gradients, about half the work.

    Args:
        token_count: How many tokens there are.
        dim: Width. (default: 128)
        layers: Blocks. (default: 2)
        heads: Attention heads. (default: 4)
        length: Tokens of a sequence at most. (default: 5)
    """

    def __init__(
        self, token_count: int, dim: int = 128, layers: int = 2, heads: int = 4, length: int = 5
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(token_count, dim)
        self.position_embedding = nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, token_count, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens, int64 [batch, tokens], to logits, float32 [batch, token_count]."""
        count = tokens.shape[1]
        positions = torch.arange(count, device=tokens.device)
        causal = torch.ones(count, count, dtype=torch.bool, device=tokens.device).triu(1)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        *first, last = self.blocks
        for block in first:
            x = block(x, causal)
        logits: Tensor = self.head(self.ln_f(last(x, causal, last_only=True)))
        return logits[:, 0]
