"""What a network says of an input before it answers: what goes into its last linear layer."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from fedwsa.scope.moments import precise


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """The linear layers of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


class Tap:
    """Catches what goes into the linear layer that a model calls last, while entered.

    Under ``torch.func.vmap`` what is caught is to be used inside it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._caught: Tensor | None = None

    def __enter__(self) -> Self:
        layers = linear_layers(self._model)
        self._hooks = [layer.register_forward_pre_hook(self._catch) for layer in layers]
        return self

    def __exit__(self, *ended: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._caught = inputs[0]

    def take(self) -> Tensor | None:
        """What was caught since the last call, half precision as single: ``(N, …, features)``."""
        caught, self._caught = self._caught, None
        return None if caught is None else precise(caught)
