"""What is known of a transformer's weights, whatever it reads."""

from __future__ import annotations

from torch import nn

from fedwsa.models import scaled
from fedwsa.models.architecture import Architecture, Axes, Axis


def _axes(model: nn.Module) -> Axes:
    """The rows of q, k and v lie one after another, each by heads; the projection undoes it."""
    axes: dict[str, dict[int, Axis]] = {}
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type]
        head = int(block.attn.head_dim)
        attention = f"blocks.{i}.attn"
        axes[f"{attention}.qkv.weight"] = axes[f"{attention}.qkv.bias"] = {0: Axis(3, head)}
        axes[f"{attention}.proj.weight"] = {1: Axis(1, head)}
    return axes


TRANSFORMER = Architecture(
    groups={
        "attn.qkv": r"^blocks\.\d+\.attn\.qkv\.weight$",
        "attn.proj": r"^blocks\.\d+\.attn\.proj\.weight$",
        "mlp.fc1": r"^blocks\.\d+\.mlp\.fc1\.weight$",
        "mlp.fc2": r"^blocks\.\d+\.mlp\.fc2\.weight$",
    },
    blocks=r"^blocks\.(\d+)\.",
    axes=_axes,
    head=r"(norm|head)\.",
)
"""Of networks whose ``blocks`` have ``attn`` (with ``head_dim``, ``qkv``, ``proj``) and ``mlp``
(``fc1``, ``fc2``), as timm's have."""


def count_heads(heads: int | None, width: float, base: int, each: int) -> int:
    """How many heads attention has: ``heads``, or one for ``each`` units.

    There are ``base`` units at width 1.

    Raises
    ------
    ValueError
        If they do not divide the units.
    """
    units = scaled(base, width)
    if heads is None and units % each:
        raise ValueError(
            f"width {width:g} gives {units} units, which are no heads of {each}; take a multiple "
            f"of {each / base:g}, or give heads"
        )
    count = heads or units // each
    if units % count:
        raise ValueError(f"heads={count} does not divide {units} units (width {width:g})")
    return count
