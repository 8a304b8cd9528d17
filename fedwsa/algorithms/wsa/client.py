"""Weight scope alignment, the client half of :class:`fedwsa.algorithms.wsa.server.FedWSA`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fedwsa.algorithms.objective import LocalRun, Objective, Weights, gradients, trainable
from fedwsa.algorithms.wsa.instruction import REPORTED, ScopeInstruction
from fedwsa.scope.moments import moments
from fedwsa.scope.weight_scope import WeightScope, add_kl_gradient_, fan_in, kl_divergence, spread
from fedwsa.wire.content import Content
from fedwsa.wire.names import SCOPE_ARRAY, SCOPE_PRESENT

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_module|module)\.")


def _plainly_named(weights: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The weights by the names that they have without what a model was wrapped in.

    That are ``torch.compile``, ``DistributedDataParallel`` and Opacus's ``GradSampleModule``.
    """
    if all(name in weights for name in wanted):
        return dict(weights)
    return {_WRAPPERS.sub("", name): weight for name, weight in weights.items()}


def _require_plain(weights: Iterable[Tensor]) -> None:
    """Refuse weights with gradients per sample, as Opacus's ``GradSampleModule`` computes them.

    Its optimiser makes ``.grad`` anew of them at its step: what was added to it before would be
    without effect.

    Raises
    ------
    ValueError
        Of such weights.
    """
    if any(hasattr(weight, "grad_sample") for weight in weights):
        raise ValueError(
            "the model has gradients per sample (Opacus), of which the optimiser makes .grad anew "
            "at its step, so that weight scope alignment would be without effect; train without "
            "it, and add noise to the update (Flower's LocalDpMod) or at the server"
        )


class ScopeAlignment(Objective):
    """Regularise local training towards the weight scope that the server announces.

    Local loss = task loss + λ · Σ_l KL( N(μ_l, σ_l²) ‖ N(μ̃_l, σ̃_l²) ). The gradient of the
    second part is added in closed form; strength, target, layers and the rest come with the
    message, so there is nothing to configure at the client.

    Among clients of several sizes a client leaves out the layers that it lacks, and says so; a
    normalised target is brought to the fan-in that its layers have, and its scopes are reported
    normalised (see :class:`fedwsa.algorithms.wsa.server.FedWSA`).

    Source: Weight Scope Alignment, arXiv 2408.12237.

    Parameters
    ----------
    model
        Holds the received weights.
    local
        Told of the pull, if given, for those who keep it out of what they measure.
    content
        Of the train message. Without a target in it, nothing is added and nothing reported.

    Raises
    ------
    ValueError
        If the server names a layer that is not a parameter of the model.

    Examples
    --------
    In the ``@app.train()`` function of a Flower ClientApp::

        alignment = ScopeAlignment(model, msg.content)   # the model holds the received arrays
        for images, labels in batches:
            optimizer.zero_grad()
            loss_fn(model(images), labels).backward()
            alignment.add_gradient()
            optimizer.step()
        metrics = MetricRecord({"num-examples": n, **alignment.end()})
    """

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        self.target: WeightScope | None = None
        self._local = local
        instruction = ScopeInstruction.from_content(content)
        if instruction is None:
            return
        self.instruction, self.target = instruction, instruction.target
        self._among = any(SCOPE_ARRAY in record for record in content.values())
        weights = _plainly_named(trainable(model), self.target.names)
        self._present = [name in weights for name in self.target.names]
        if not instruction.partial and not all(self._present):
            unknown = self.target.names[self._present.index(False)]
            raise ValueError(
                f"the server aligns {unknown}, which is no parameter of this model; "
                "choose the layers with FedWSA(layers=...)"
            )
        self._named = [name for name in self.target.names if name in weights]
        self._weights = [weights[name] for name in self._named]
        _require_plain(weights.values())
        if instruction.partial:
            self.target = self.target.only(self._named)
        # On the wire scopes are normalised, here they are of weights as this client has them.
        self._root = torch.ones(len(self._weights), dtype=torch.float64)
        if instruction.normalise:
            self._root = fan_in(self._weights).sqrt()
            self.target = self.target.times(1 / self._root)
        if local is not None and instruction.strength and self._weights:
            local.pulls.append(self.pull)

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether the server announced a target."""
        return ScopeInstruction.from_content(content) is not None

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add λ·∇KL to the gradients of the layers that take part."""
        if self.target is not None and self.instruction.strength and self._weights:
            _require_plain(self._weights)  # the model may have been wrapped since
            self._add_to(gradients(self._weights), self._weights)

    @classmethod
    @torch.no_grad()
    def add_gradients(
        cls,
        objectives: Sequence[Objective],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
    ) -> None:
        """Likewise for all clients of a stack: they have one target."""
        first = objectives[0]
        assert isinstance(first, ScopeAlignment)
        if first.target is None or not first._weights:
            return
        wanted = first._named
        held, added = (_plainly_named(of, wanted) for of in (weights, gradients))
        first._add_to([added[n] for n in wanted], [held[n] for n in wanted], stacked=True)

    @torch.no_grad()
    def pull(self) -> dict[str, Tensor]:
        """λ·∇KL by name, at the weights as they are."""
        added = [torch.zeros_like(weight) for weight in self._weights]
        self._add_to(added, self._weights)
        return dict(zip(self._named, added, strict=True))

    def _add_to(
        self, gradients: list[Tensor], weights: list[Tensor], stacked: bool = False
    ) -> None:
        assert self.target is not None
        add_kl_gradient_(
            gradients,
            weights,
            self.target,
            self.instruction.strength,
            reduction=self.instruction.reduction,
            floor=self.instruction.floor,
            stacked=stacked,
        )

    @torch.no_grad()
    def end(self) -> dict[str, float | list[float]]:
        """Scope of what is sent of the trained model and its KL to the target, a number per layer.

        Nothing where the server does not want to know it, under differential privacy.
        """
        if self.target is None or not self.instruction.reported:
            return {}
        reported: dict[str, list[float]] = {key: [] for key in REPORTED}
        if self._weights:
            mean, variance = (m.cpu() for m in moments(self._sent()))
            floor = self.instruction.floor
            kl = kl_divergence(mean, variance, self.target.mean, self.target.variance, floor)
            mean, variance = mean * self._root, variance * self._root.square()
            found = (mean, spread(mean, variance, self.instruction.fusion), kl)
            reported = {k: v.tolist() for k, v in zip(REPORTED, found, strict=True)}
        if not self.instruction.partial:
            return dict(reported)
        # Flower averages lists of one length: a number for each layer that the server named.
        present: list[float] = [float(here) for here in self._present]
        return {SCOPE_PRESENT: present, **{k: self._fill(v) for k, v in reported.items()}}

    def _sent(self) -> list[Tensor]:
        """The layers as the server gets them; those that stay with the client as they are."""
        shared = {} if self._local is None else self._local.shared
        pairs = zip(self._named, self._weights, strict=True)
        return [shared.get(name, weight).to(weight.device) for name, weight in pairs]

    @classmethod
    def answers_beside(cls, content: Content) -> bool:
        """Only where scopes go among the arrays."""
        return any(SCOPE_ARRAY in record for record in content.values())

    @torch.no_grad()
    def arrays(self) -> dict[str, Tensor]:
        """Mean and spread of each layer, shape ``(2, L)``, where they go among the arrays."""
        if self.target is None or not self._among:
            return {}
        mean, variance = (m.cpu() for m in moments(self._weights))
        mean, variance = mean * self._root, variance * self._root.square()
        found = torch.stack([mean, spread(mean, variance, self.instruction.fusion)])
        return {SCOPE_ARRAY: found.float()}

    def _fill(self, values: list[float]) -> list[float]:
        """The values of the layers that are here, zeros for the others."""
        given = iter(values)
        return [next(given) if here else 0.0 for here in self._present]
