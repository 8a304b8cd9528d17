"""Data at hand: what models reach on it, BatchNorm's statistics, Fisher information."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from experiments.merge.files import ModelFile
from fedwsa import seeding
from fedwsa.config.component import Component, ConfigError
from fedwsa.data.evaluation import Score, evaluate
from fedwsa.data.examples import LabelledData
from fedwsa.data.federated import subset
from fedwsa.data.loading import KINDS, load, open_source
from fedwsa.merge.fisher_information import fisher_information
from fedwsa.models import build_model
from fedwsa.models.batch_norm import reestimate
from fedwsa.models.files import built, component_of
from fedwsa.models.inputs import described_shape
from fedwsa.models.state import marks, staying, unlike
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config

_BATCH = 256
_STATISTICS = 5000
"""Training examples from which BatchNorm's statistics are estimated, at most."""


class DataAtHand:
    """A data set, and networks of one kind on it.

    Parameters
    ----------
    overrides
        As on the command line of ``fedwsa``: ``dataset=…`` and its keys, ``subset``, ``seed``.
    models
        The files; the first says what network they are of.
    console
        Where progress is shown.
    builders
        Of networks of one's own, which may be built.

    Raises
    ------
    ConfigError
        If the file does not say, the data are not such as the network looks at, or the networks
        differ in what their files lack.
    """

    def __init__(
        self,
        overrides: Sequence[str],
        models: Sequence[ModelFile],
        console: Console,
        builders: Collection[str] = (),
    ) -> None:
        model = models[0]
        self.config: Config = compose(list(overrides))
        self.component: Component = component_of(model.facts, model.file, builders)
        with console.status("reading the data ..."):
            whole = load(open_source(self.config.dataset.source), self.config.cache_dir)
        if (ours := described_shape(whole.shape)) != (theirs := model.facts["shape"]):
            raise ConfigError(
                f"--evaluate: an example of the data is {_told(ours)}, {model.file} is for "
                f"{_told(theirs)}"
            )
        if whole.classes != model.facts["classes"]:
            raise ConfigError(
                f"--evaluate: the data have {whole.classes} classes, {model.file} knows "
                f"{model.facts['classes']}"
            )
        self.train = subset(whole.train, self.config.subset.train)
        self.test = subset(whole.test, self.config.subset.test)
        self._whole, self._facts = whole, model.facts
        for other in models[1:]:
            self._require_built_alike(model, other)

    def _require_built_alike(self, model: ModelFile, other: ModelFile) -> None:
        """Refuse networks whose seeds drew tensors that no file holds, as a fixed random mask."""
        seeds = [int(m.facts.get("seed", 0)) for m in (model, other)]
        if seeds[0] == seeds[1]:
            return
        shape, classes = self._whole.shape, self._whole.classes
        one, two = (build_model(self.component, shape, classes, seed) for seed in seeds)
        first, second = (
            {k: t for k, t in staying(m).items() if k not in m.state_dict()} for m in (one, two)
        )
        if name := unlike(marks(first), second):
            raise ConfigError(
                f"{name} is no part of a file but drawn by its run's seed, {seeds[0]} of "
                f"{model.file} and {seeds[1]} of {other.file}: these are two networks; register it "
                "with persistent=True, or train both with one seed"
            )

    def _as_seen_by(self, facts: Mapping[str, object]) -> LabelledData:
        """The data set, prepared as for the training of a network."""
        told = {k: v for k, v in dict(facts["data"]).items() if k != "kind"}  # type: ignore[call-overload]
        kind = KINDS[self._whole.kind]
        try:
            return kind(self.train, self.test, self._whole.classes, **told)
        except (TypeError, ValueError):
            raise ConfigError("what a file says of its data is damaged") from None

    def network(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The network with these weights."""
        try:
            return built(self.component, self._facts, state, "what is merged")
        except RuntimeError as error:
            raise ConfigError(" ".join(str(error).split())) from None

    def score(self, state: Mapping[str, Tensor], facts: Mapping[str, object]) -> Score:
        """Accuracy and loss on the test part."""
        data = self._as_seen_by(facts)
        return evaluate(self.network(state), data.test, data, "cpu", _BATCH)

    def with_statistics(
        self, state: Mapping[str, Tensor], facts: Mapping[str, object]
    ) -> dict[str, Tensor]:
        """The weights, with BatchNorm's statistics estimated on the training part."""
        model, data = self.network(state), self._as_seen_by(facts)
        try:
            reestimate(model, self._inputs(data))
        except ValueError as error:
            raise ConfigError(f"--evaluate: {error}") from None
        own = model.state_dict()
        return {name: own[name].clone() for name in state}

    def _inputs(self, data: LabelledData) -> Iterator[Tensor]:
        order = torch.randperm(
            len(data.train), generator=seeding.generator(self.config.seed, "statistics")
        )[:_STATISTICS]
        for chosen in torch.split(order, _BATCH):
            if len(chosen) > 1:  # the variance of one is none
                yield data.prepare(data.train.inputs[chosen])

    def fisher(
        self, state: Mapping[str, Tensor], facts: Mapping[str, object], count: int
    ) -> dict[str, Tensor]:
        """The diagonal Fisher information, on training examples drawn by the seed.

        Labels are drawn from what the network predicts.
        """
        data = self._as_seen_by(facts)
        random = seeding.generator(self.config.seed, "fisher")
        chosen = torch.randperm(len(data.train), generator=random)[:count]
        try:
            return fisher_information(
                self.network(state), data.train.inputs[chosen], random=random, prepare=data.prepare
            )
        except ValueError as error:
            raise ConfigError(f"Fisher information: {error}") from None


def _told(shape: Mapping[str, Any]) -> str:
    """The shape of an example, to be read."""
    sizes = ", ".join(f"{name} {size}" for name, size in shape.items() if name != "kind")
    return f"{shape['kind']} ({sizes})"
