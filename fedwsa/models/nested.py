"""A smaller network inside a larger one, by the larger one's weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from fedwsa.models.architecture import Axes, first_units, selection, window


class Nested:
    """A network whose weights are those of a larger one that it has room for: the first units.

    Parameters
    ----------
    model
        Of the smaller size; its own weights mean nothing.
    whole
        Of the larger size.
    axes
        How the units of the larger size lie in its tensors.

    Raises
    ------
    ValueError
        If one has no part in the other, or the smaller one has a recurrent layer, which torch
        calls with its own weights whatever it is given.
    """

    def __init__(self, model: nn.Module, whole: nn.Module, axes: Axes) -> None:
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            raise ValueError("torch cannot call a recurrent layer with a part of its weights")
        self._model = model.requires_grad_(False)
        shapes = {name: tensor.shape for name, tensor in whole.named_parameters()}
        self._windows = {
            name: window(
                selection(shapes[name], tensor.shape, axes.get(name, {}), first_units),
                shapes[name],
            )
            for name, tensor in model.named_parameters()
        }

    def __call__(self, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The answer by the larger network's weights as they are, with a gradient to them."""
        parts = {
            name: weights[name] if where is None else weights[name][where]
            for name, where in self._windows.items()
        }
        self._model.train()
        answer: Tensor = functional_call(self._model, parts, (inputs,))
        return answer
