"""Self-attention and the pre-norm transformer block, of layers that give per-example gradients.

Attention is `Linear` projections around `scaled_dot_product_attention`: `nn.MultiheadAttention` keeps its weights where
DP-SGD can't see them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head self-attention, softmax(QK^T / sqrt(d)) V for each head (Vaswani et al. 2017, equation 1).

    Maps tokens (batch, places, dim) to the same shape.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        # A key bias adds the same number to all scores of a query and cancels in the softmax: under DP-SGD it
        # would be a parameter that only ever receives noise.
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """Attended tokens (batch, places, dim).

        Args:
            tokens: (batch, places, dim).
            seen: what each place may look at, truth values (batch or 1, 1, places or 1, places); None: everything.
        """
        query, key, value = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        mixed: torch.Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """One pre-norm transformer block; maps tokens (batch, places, dim) to the same shape.

    Args:
        dim: width of a token.
        heads: attention heads; divides `dim`.
        hidden: width of the hidden layer.
        dropout: probability that a value of a half's output is left out in a training step.
    """

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.attention, self.dropout = nn.LayerNorm(dim), Attention(dim, heads), nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, dim),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (batch, places, dim) after attention and the perceptron, each with its residual path."""
        # Not `+=`: hooks need each layer's output as it was.
        tokens = tokens + self.dropout(self.attention(self.norm(tokens), seen))
        mixed: torch.Tensor = tokens + self.mlp(tokens)
        return mixed
