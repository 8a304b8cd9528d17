"""Networks that read text character by character and predict the next one at each position."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding, scaled_dot_product_attention

from fedwsa.models import TextShape, scaled
from fedwsa.models.architecture import Architecture, Axes, Axis, described
from fedwsa.models.transformer import TRANSFORMER, count_heads

UNITS, HEAD = 128, 32
"""Units at width 1, and of an attention head where ``heads`` is not given."""


class _Lookup(nn.Module):
    """A vector for each code: the linear layer that would read the codes as one-hot vectors.

    Its weight is that layer's, ``(units, codes)``, so that outputs come first as everywhere: what
    a unit reads (normalised scopes) and which dimension gets wider are the same in all layers.
    """

    def __init__(self, codes: int, units: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(units, codes).normal_(std=std))

    def forward(self, codes: Tensor) -> Tensor:
        return embedding(codes, self.weight.t())


class _CharLSTM(nn.Module):
    """Embedding, recurrent layers, classifier; tokens ``(N, T)`` → logits ``(N, classes, T)``."""

    def __init__(self, classes: int, units: int, depth: int) -> None:
        super().__init__()
        self.embedding = _Lookup(classes, units, std=1.0)
        # A module each, so that layers are named by number and any of them is a block.
        self.layers = nn.ModuleList(nn.LSTM(units, units, batch_first=True) for _ in range(depth))
        self.head = nn.Linear(units, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x, _ = layer(x)
        logits: Tensor = self.head(x)
        return logits.transpose(1, 2)


def _gates(model: nn.Module) -> Axes:
    """The rows of the four gates lie one after another."""
    depth = len(model.layers)  # type: ignore[arg-type]
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return {f"layers.{i}.{name}": {0: Axis(parts=4)} for i in range(depth) for name in names}


@described(Architecture(blocks=r"^layers\.(\d+)\.", axes=_gates))
def char_lstm(
    text: TextShape, classes: int, *, width: PositiveFloat, depth: PositiveInt
) -> nn.Module:
    """``depth`` recurrent layers of 128·width units with forget gates, over learned embeddings.

    Embeddings have as many entries as a layer has units, so that all layers are alike.

    Source: the network for Shakespeare of arXiv 1602.05629, with other sizes.
    """
    return _CharLSTM(classes, scaled(UNITS, width), depth)


class _Attention(nn.Module):
    """Attention of each position to those up to it."""

    def __init__(self, units: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, units // heads
        self.qkv = nn.Linear(units, 3 * units)
        self.proj = nn.Linear(units, units)

    def forward(self, x: Tensor) -> Tensor:
        n, length, units = x.shape
        split = self.qkv(x).view(n, length, 3, self.heads, self.head_dim)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind()
        with sdpa_kernel(SDPBackend.MATH):  # as fast on short sequences, and clients can be stacked
            x = scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.proj(x.transpose(1, 2).reshape(n, length, units))
        return out


class _MLP(nn.Module):
    def __init__(self, units: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(units, hidden), nn.GELU(), nn.Linear(hidden, units)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class _Block(nn.Module):
    """Attention and two dense layers, each behind a norm and added to its input."""

    def __init__(self, units: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(units), _Attention(units, heads)
        self.norm2, self.mlp = nn.LayerNorm(units), _MLP(units, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _CharTransformer(nn.Module):
    """Embedding, blocks, classifier; tokens ``(N, T)`` → logits ``(N, classes, T)``."""

    def __init__(
        self, length: int, classes: int, units: int, depth: int, heads: int, hidden: int
    ) -> None:
        super().__init__()
        self.embedding = _Lookup(classes, units, std=0.02)
        self.positions = _Lookup(length, units, std=0.02)
        self.blocks = nn.ModuleList(_Block(units, heads, hidden) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(units), nn.Linear(units, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits.transpose(1, 2)


@described(TRANSFORMER)
def char_transformer(
    text: TextShape,
    classes: int,
    *,
    width: PositiveFloat,
    depth: PositiveInt,
    heads: PositiveInt | None,
    mlp_ratio: PositiveFloat,
) -> nn.Module:
    """A transformer of 128·width units that looks back only: ``depth`` blocks, learned positions.

    ``heads`` null: one for each 32 units, so that a head is the same in every width.

    Source: arXiv 1706.03762, the decoder alone, with norms before the layers.
    """
    units = scaled(UNITS, width)
    count = count_heads(heads, width, UNITS, HEAD)
    return _CharTransformer(text[0], classes, units, depth, count, round(units * mlp_ratio))
