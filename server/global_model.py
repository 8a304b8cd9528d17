"""The global model, one network of each size: scored after a round, and saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedwsa import seeding
from fedwsa.algorithms.attacks.attack import DataAttack, open_attack
from fedwsa.algorithms.sizes.server import sized
from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.config.blame import blaming
from fedwsa.data.evaluation import Score, evaluate, measure_statistics
from fedwsa.data.examples import Examples
from fedwsa.data.federated import FederatedData
from fedwsa.data.own import is_own
from fedwsa.fleet.size_rules import WHOLE
from fedwsa.models import exchange, state
from fedwsa.models.files import save_network
from fedwsa.schema.config import Config
from fedwsa.wire import messages
from server.record import RoundRecord
from server.rounds import RunError
from server.sizes import SizedModels


@dataclass(frozen=True)
class GlobalModel:
    """What the arrays of a round stand for: the state of each size's network.

    Attributes
    ----------
    config : Config
    data : FederatedData
    sizes : SizedModels
        The networks, into which states are loaded.
    strategy : Strategy
    device : str
    folder : Path
        Where it is saved.
    """

    config: Config
    data: FederatedData
    sizes: SizedModels
    strategy: Strategy
    device: str
    folder: Path

    @property
    def largest(self) -> str:
        """The size whose network is the global model."""
        inner = sized(self.strategy)
        return WHOLE if inner is None else inner.largest

    @property
    def network(self) -> nn.Module:
        """The network of the largest size."""
        return self.sizes.models[self.largest]

    @property
    def exists(self) -> bool:
        """Whether what the strategy aggregates is a model to test."""
        return all(traits_of(part).has_global_model for part in chain(self.strategy))

    @property
    def validates(self) -> bool:
        """Whether there is a global model and a split to validate it on."""
        return len(self.data.validation) > 0 and self.exists

    def score(self, arrays: ArrayRecord, number: int) -> dict[str, Score]:
        """The model of each size on the global test set, after a round, the largest first.

        None of a strategy that leaves each client a model of its own.
        """
        if not self.exists:
            return {}
        sizes = sorted(self.sizes.models, key=lambda size: size != self.largest)
        test = self.data.whole.test
        return {size: self._score_on(test, arrays, size, number) for size in sizes}

    def validate(self, arrays: ArrayRecord, number: int) -> Score:
        """The global model on the examples that were kept for choosing: the mean over the sizes."""
        chosen = self.data.whole.train[self.data.validation]
        scores = [self._score_on(chosen, arrays, size, number) for size in self.sizes.models]
        accuracy, loss = (fmean(getattr(s, of) for s in scores) for of in ("accuracy", "loss"))
        return Score(accuracy, loss, len(chosen))

    @property
    def is_aimed_at(self) -> bool:
        """Whether an attack wants it to answer something of its own."""
        return self._aimed is not None and self.exists

    @cached_property
    def _aimed(self) -> Examples | None:
        attack = open_attack(self.config.attack.rule)
        if not isinstance(attack, DataAttack) or not self.config.attack.share:
            return None
        return attack.aimed(self.data.whole.test)

    def succumbs(self, arrays: ArrayRecord, number: int) -> float:
        """How often the global model answers what the attack wants."""
        assert self._aimed is not None
        return self._score_on(self._aimed, arrays, self.largest, number).accuracy

    def _score_on(self, examples: Examples, arrays: ArrayRecord, size: str, number: int) -> Score:
        batch = self.config.evaluation.batch_size
        with blaming(RunError, f"round {number}: evaluating the model raised "):
            model = self._loaded(arrays, size, number)
            return evaluate(model, examples, self.data.whole, self.device, batch)

    def _loaded(self, arrays: ArrayRecord, size: str, number: int) -> nn.Module:
        """The network of a size after a round, statistics of static norms measured anew."""
        model = self.sizes.models[size]
        exchange.load_travelling(model, messages.to_tensors(self._state(arrays, size, number)))
        if state.measured(model):
            measure_statistics(model, self._trained_on, self.data.whole.prepare, self.device)
        return model

    @cached_property
    def _trained_on(self) -> Tensor:
        """Inputs, as stored, in a random order: of the clients' training samples.

        Where these are at their nodes, of what the server has and does not validate on.
        """
        if is_own(self.config.partition):
            kept = torch.ones(len(self.data.whole.train), dtype=torch.bool)
            kept[self.data.validation] = False
            chosen = kept.nonzero().flatten()
        else:
            clients = range(len(self.data.partition.shares))
            chosen = torch.cat([self.data.split(client)[0] for client in clients])
        random = seeding.generator(self.config.seed, "statistics")
        return self.data.whole.train.inputs[chosen[torch.randperm(len(chosen), generator=random)]]

    def _state(self, arrays: ArrayRecord, size: str, number: int) -> ArrayRecord:
        """The state of a size's model in the arrays after a round."""
        inner = sized(self.strategy)
        return arrays if inner is None else inner.plain(arrays, size, number)

    def save_all(self, last: RoundRecord) -> None:
        """``model.safetensors``, of the largest size; one of each if they share not all."""
        if last.score is None or last.arrays is None:  # each client has a model of its own
            return
        inner = sized(self.strategy)
        wanted = {"model.safetensors": self.largest}
        if inner is not None and inner.has_own:
            wanted |= {f"model-{size}.safetensors": size for size in self.sizes.models}
        for file, size in wanted.items():
            self.save(file, size, last.arrays, last.round)

    def save(self, file: str, size: str, arrays: ArrayRecord, number: int) -> None:
        """The network of a size, after a round: all that its state dict has."""
        model = self._loaded(arrays, size, number)
        component, seed = self.config.model_of(size), self.config.seed
        save_network(self.folder / file, model.state_dict(), component, self.data.whole, seed)


def initial_arrays(models: Mapping[str, nn.Module], strategy: Strategy) -> ArrayRecord:
    """The arrays that a run begins with: the state of each size's model, put together."""
    # Copies: the models are scored with others' weights later.
    states = {
        size: {k: t.clone() for k, t in exchange.travelling_state(model).items()}
        for size, model in models.items()
    }
    inner = sized(strategy)
    return messages.to_arrays(states[WHOLE]) if inner is None else inner.join(states)
