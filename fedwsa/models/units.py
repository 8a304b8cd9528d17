"""Which units of a network may change places, for chains of layers and for residual networks."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedwsa.models.architecture import Axes, Units

_VECTORS = ("weight", "bias", "running_mean", "running_var")


@dataclass
class _Found:
    """What is known so far of a network, on the way from its input to its output."""

    groups: dict[str, dict[int, str]] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)

    def layer(self, name: str, module: nn.Module, reads: str | None, gives: str | None) -> None:
        """A dense layer or a convolution; None: units that keep their places."""
        weight: dict[int, str] = {} if gives is None else {0: gives}
        if reads is not None:
            weight[1] = reads
        if weight:
            self.groups[f"{name}.weight"] = weight
        if gives is not None and module.bias is not None:
            self.groups[f"{name}.bias"] = {0: gives}

    def norm(self, name: str, module: nn.Module, group: str | None) -> None:
        """A norm over the units of a group; other modules, such as ``Identity``, have none."""
        if group is None or not isinstance(module, _BatchNorm | nn.GroupNorm):
            return
        for vector in _VECTORS:
            if getattr(module, vector, None) is not None:
                self.groups[f"{name}.{vector}"] = {0: group}
        if isinstance(module, nn.GroupNorm):
            known = self.blocks.setdefault(group, module.num_groups)
            if known != module.num_groups:
                raise ValueError(f"{name}: units of {known} and of {module.num_groups} groups")


def chain(model: nn.Module, axes: Axes | None = None) -> Units:
    """Layers one after the other: the units of each but the last are a group.

    Parameters
    ----------
    model
        A ``Sequential`` of dense layers, convolutions, norms, and what treats all units alike.
    axes
        Its unusual axes: the layer behind the convolutions reads flattened channels.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    last = [name for name, module in model.named_children() if isinstance(module, kinds)][-1]
    found = _Found()
    stream: str | None = None
    for name, module in model.named_children():
        if isinstance(module, kinds):
            gives = None if name == last else name
            found.layer(name, module, stream, gives)
            stream = gives
        else:
            found.norm(name, module, stream)
    return Units(found.groups, axes or {}, found.blocks)


def residual(model: nn.Module) -> Units:
    """:func:`fedwsa.models.resnet.resnet`: basic blocks between a stem and a classifier.

    What blocks read from and add to is one group, up to a projection in a shortcut, behind which
    another begins; each block has a group of its own between its convolutions.
    """
    found, stream = _Found(), "stem"
    found.layer("stem", model.get_submodule("stem"), None, stream)
    found.norm("norm", model.get_submodule("norm"), stream)
    stages = [(n, m) for n, m in model.named_children() if isinstance(m, nn.Sequential)]
    for stage, blocks in stages:
        for number, block in blocks.named_children():
            name = f"{stage}.{number}"
            shortcut = block.get_submodule("downsample") if _projects(block) else None
            gives = stream if shortcut is None else name
            inner = f"{name}.conv1"
            found.layer(inner, block.get_submodule("conv1"), stream, inner)
            found.norm(f"{name}.bn1", block.get_submodule("bn1"), inner)
            found.layer(f"{name}.conv2", block.get_submodule("conv2"), inner, gives)
            found.norm(f"{name}.bn2", block.get_submodule("bn2"), gives)
            if shortcut is not None:
                found.layer(f"{name}.downsample.0", shortcut.get_submodule("0"), stream, gives)
                found.norm(f"{name}.downsample.1", shortcut.get_submodule("1"), gives)
            stream = gives
    found.layer("head", model.get_submodule("head"), stream, None)
    return Units(found.groups, {}, found.blocks)


def _projects(block: nn.Module) -> bool:
    return any(name == "downsample" for name, _ in block.named_children())
