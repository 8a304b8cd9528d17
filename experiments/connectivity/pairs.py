"""The two networks of a pair, trained as clients train."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clients.training import Samples, train
from experiments.connectivity.schema import Condition, ConnectivityConfig, Init
from fedwsa import seeding
from fedwsa.algorithms.wsa.client import ScopeAlignment
from fedwsa.algorithms.wsa.instruction import ScopeInstruction
from fedwsa.data.examples import Examples, LabelledData
from fedwsa.data.partitioners import dirichlet
from fedwsa.merge.states import State
from fedwsa.models import build_model
from fedwsa.schema.conditions import Conditions
from fedwsa.scope.weight_scope import WeightScope
from fedwsa.wire.content import Content

_SIDES = (0, 1)
_FEWEST = 10  # examples of a half


@dataclass(frozen=True)
class Pair:
    """Which pair of networks.

    Attributes
    ----------
    seed : int
    init : str
        Whether they start from the same weights.
    condition : str
        Its name.
    wsa : bool
        Whether both are trained towards a common scope.
    """

    seed: int
    init: Init
    condition: str
    wsa: bool


class Trainer:
    """Trains the networks of pairs; one that several pairs have is trained once."""

    def __init__(self, config: ConnectivityConfig, data: LabelledData, device: str) -> None:
        self.config, self.data, self.device = config, data, device
        self._known: dict[tuple[object, ...], State] = {}

    def states(self, pair: Pair) -> list[State]:
        """The two trained states, A and B."""
        condition = self.config.conditions[pair.condition]
        return [self._state(pair, condition, side) for side in _SIDES]

    def network(self, seed: int, init: Init = "same", side: int = 0) -> nn.Module:
        """A network as it starts."""
        if init == "apart" and side:
            seed = seeding.key(seed, "the other network")
        return build_model(self.config.model, self.data.shape, self.data.classes, seed)

    def _state(self, pair: Pair, condition: Condition, side: int) -> State:
        conditions = self._conditions(condition if side else Condition())
        # Without a target, A is the same whatever B starts from.
        init = pair.init if side or pair.wsa else "same"
        key = (pair.seed, side, init, pair.wsa, condition.data, conditions)
        if key not in self._known:
            self._known = {k: s for k, s in self._known.items() if k[0] == pair.seed}
            self._known[key] = self._train(pair, condition, conditions, side)
        return self._known[key]

    def _conditions(self, condition: Condition) -> Conditions:
        given = condition.model_dump(exclude={"data", "lr"}, exclude_none=True)
        local = self.config.local.model_copy(update=given)
        if condition.lr is not None:
            local = local.model_copy(update={"lr": condition.lr, "adam_lr": condition.lr})
        return Conditions.usual(local)

    def _train(
        self, pair: Pair, condition: Condition, conditions: Conditions, side: int
    ) -> dict[str, Tensor]:
        model = self.network(pair.seed, pair.init, side).to(self.device)
        objectives = [ScopeAlignment(model, self._target(pair))] if pair.wsa else []
        samples = self._samples(self._share(condition, pair.seed)[side], pair.seed, side)
        purpose = "dropout of a pair"
        with seeding.seeded(pair.seed, purpose, side):
            key = seeding.key(pair.seed, purpose, side)
            train(model, samples, self.config.local, conditions, objectives, key)
        return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}

    def _target(self, pair: Pair) -> Content:
        """What a server would announce: the fused scope of both networks as they start."""
        wsa = self.config.wsa
        starts = [self.network(pair.seed, pair.init, side) for side in _SIDES]
        scopes = [WeightScope.measure(model, wsa.layers) for model in starts]
        target = WeightScope.fuse(scopes, fusion=wsa.fusion)
        told = (wsa.strength, wsa.fusion, wsa.reduction, wsa.floor)
        return ScopeInstruction(target, *told).to_records()

    def _share(self, condition: Condition, seed: int) -> list[Examples]:
        """The examples of A and of B."""
        train, strata = self.data.train, self.data.train.strata
        if condition.data == "same":
            return [train, train]
        if condition.data == "labels":
            first = strata < -(-self.data.strata // 2)
            return [train[first.nonzero().flatten()], train[(~first).nonzero().flatten()]]
        key = seeding.key(seed, "halves of a pair")
        shares = dirichlet(strata.numpy(), 2, key, alpha=self.config.alpha, min_size=_FEWEST)
        return [train[torch.from_numpy(share)] for share in shares]

    def _samples(self, own: Examples, seed: int, side: int) -> Samples:
        random = seeding.generator(seed, "batches of a pair", side)
        augment = self.data.augmentation(self.config.dataset.augment)

        def prepare(inputs: Tensor) -> Tensor:
            return self.data.prepare(inputs if augment is None else augment(inputs, random))

        return Samples(own.inputs.to(self.device), own.labels.to(self.device), prepare, random)
