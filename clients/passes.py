"""Forward passes as the losses of objectives see them, of one model and of a stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedwsa.algorithms.objective import ForwardPass, Objective, Others, overrides
from fedwsa.models.attributes import copied
from fedwsa.models.representation import Tap


def losing(objectives: Sequence[Objective]) -> list[tuple[Objective, Others | None]]:
    """Those with a loss, each with the weights that it looks at; None: it adds nothing now."""
    found = [one for one in objectives if overrides(type(one), "loss")]
    return [(one, one.others()) for one in found]


def each_loss(objective: Objective, seen: ForwardPass, samples: int) -> Tensor:
    """An objective's loss of each sample: ``(N,)``.

    Raises
    ------
    ValueError
        If it is none of each sample.
    """
    found = objective.loss(seen)
    if not isinstance(found, Tensor) or found.dim() == 0 or len(found) != samples:
        raise ValueError(
            f"{type(objective).__name__}.loss() must return a loss for each sample, (N,) or (N, …)"
        )
    return found if found.dim() == 1 else found.flatten(1).mean(1)


class SinglePasses:
    """The passes of one model in training, while entered.

    Parameters
    ----------
    model
        With the weights that the training begins with.
    objectives
        Were made for it.
    """

    def __init__(self, model: nn.Module, objectives: Sequence[Objective]) -> None:
        self._asking = [(one, others) for one, others in losing(objectives) if others is not None]
        self._tap, self._taps = Tap(model), ExitStack()
        self._represent = [
            {name: self._copy(model, weights) for name, weights in others.items()}
            for _, others in self._asking
        ]

    def __enter__(self) -> Self:
        if self._asking:
            self._taps.enter_context(self._tap)
        return self

    def __exit__(self, *ended: object) -> None:
        self._taps.close()

    def _copy(self, model: nn.Module, weights: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """A network of its own: torch does not call a recurrent layer with weights of others."""
        other = copied(model).eval()
        if unknown := other.load_state_dict(dict(weights), strict=False).unexpected_keys:
            raise _unknown(unknown[0])
        return partial(_represented, other, self._taps.enter_context(Tap(other)))

    def losses(
        self, inputs: Tensor, labels: Tensor, logits: Tensor, masked: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """What each objective adds for a batch that the model has just answered by ``logits``."""
        found, own = [], partial(_caught, self._tap.take())
        for (objective, _), of in zip(self._asking, self._represent, strict=True):
            by_name = partial(_by_name, of, inputs)
            seen = ForwardPass(inputs, labels, own, by_name, logits, masked)
            added = each_loss(objective, seen, len(inputs)).mean()
            if added.requires_grad:  # a constant has no gradient to add
                found.append(added)
        return found


def _unknown(name: str) -> ValueError:
    return ValueError(f"a loss looks at weights of another network; the model has no {name}")


def _caught(representation: Tensor | None) -> Tensor:
    """What a tap has caught.

    Raises
    ------
    ValueError
        If the model has called no linear layer.
    """
    if representation is None:
        raise ValueError("a loss compares what goes into a linear layer; the model calls none")
    return representation


@torch.no_grad()
def _represented(model: nn.Module, tap: Tap, inputs: Tensor) -> Tensor:
    model(inputs)
    return _caught(tap.take())


def _by_name(of: Mapping[str, Callable[[Tensor], Tensor]], inputs: Tensor, name: str) -> Tensor:
    return of[name](inputs)


Row = tuple[dict[str, dict[str, Tensor]], Tensor]
"""What clients look at, ``(K, …)``, and whether each does."""


class StackedPasses:
    """The same of K clients at once, within a ``vmap`` over them, while entered.

    Parameters
    ----------
    model
        Its layers are called; what clients have in common is in its own tensors.
    objectives
        Of each client.
    begun
        What each client has for itself at the beginning, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Sequence[Sequence[Objective]],
        begun: Sequence[Mapping[str, Tensor]],
    ) -> None:
        self._model, self._tap = model, Tap(model)
        self._asked: list[Objective] = []
        self._held: list[Row] = []
        for alike in zip(*map(losing, objectives), strict=True):
            wanting = [(one, others) for one, others in alike if others is not None]
            if wanting:
                self._asked.append(wanting[0][0])
                names = list(wanting[0][1])
                self._held.append(self._row(names, [others for _, others in alike], begun))

    def _row(
        self,
        names: Sequence[str],
        of_each: Sequence[Others | None],
        begun: Sequence[Mapping[str, Tensor]],
    ) -> Row:
        """Whose loss is not asked for looks at its own weights: what comes of it is finite."""
        common = dict([*self._model.named_parameters(), *self._model.named_buffers()])
        held: dict[str, dict[str, Tensor]] = {}
        for name in names:
            of_name = [{} if others is None else others[name] for others in of_each]
            keys = {key for weights in (*of_name, *begun[:1]) for key in weights}
            if unknown := keys - common.keys():
                raise _unknown(min(unknown))
            held[name] = {
                key: torch.stack(
                    [
                        weights.get(key, own.get(key, common[key])).detach().to(common[key].dtype)
                        for weights, own in zip(of_name, begun, strict=True)
                    ]
                )
                for key in common
                if key in keys
            }
        device = next(self._model.parameters()).device
        return held, torch.tensor([others is not None for others in of_each], device=device)

    def __enter__(self) -> Self:
        if self._asked:
            self._tap.__enter__()
        return self

    def __exit__(self, *ended: object) -> None:
        if self._asked:
            self._tap.__exit__()

    def rows(self, chosen: slice | Tensor) -> list[Row]:
        """What clients look at, of those that are chosen: to be mapped over."""
        return [
            ({n: {k: t[chosen] for k, t in of.items()} for n, of in held.items()}, asks[chosen])
            for held, asks in self._held
        ]

    def loss(
        self,
        inputs: Tensor,
        labels: Tensor,
        rows: Sequence[Row],
        logits: Tensor,
        masked: Callable[[Tensor], Tensor],
    ) -> Tensor | None:
        """What objectives add for each sample of a client's batch, just answered: ``(N,)``."""
        total, own = None, partial(_caught, self._tap.take())
        for objective, (held, asks) in zip(self._asked, rows, strict=True):
            by_name = partial(self._by, held, inputs)
            seen = ForwardPass(inputs, labels, own, by_name, logits, masked)
            found = torch.where(asks, each_loss(objective, seen, len(inputs)), 0.0)
            total = found if total is None else total + found
        return total

    def _by(self, held: Mapping[str, Mapping[str, Tensor]], inputs: Tensor, name: str) -> Tensor:
        with torch.no_grad(), _evaluating(self._model):
            functional_call(self._model, dict(held[name]), (inputs,))
        return _caught(self._tap.take())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode; afterwards each module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
