"""One-shot federated learning: clients train once to the end, the server merges their models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from logging import INFO
from typing import Any, ClassVar, Literal, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore import log
from torch import Tensor

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.run_facts import RunFacts, require_no_noise
from fedwsa.algorithms.traits import Traits
from fedwsa.merge import Operator, needs
from fedwsa.merge.fisher_checks import unseen
from fedwsa.merge.states import require_alike
from fedwsa.models.architecture import Units
from fedwsa.scope.weight_scope import choose
from fedwsa.wire import messages
from fedwsa.wire.names import FISHER, FISHER_LABELS, FISHER_LAYERS

Labels = Literal["observed", "drawn"]


class OneShot(FedAvg):
    """One round: the cohort trains, and its models are merged by any operator of ``fedwsa.merge``.

    Weights are the examples. What an operator needs beside models it gets so: ``base`` is what
    the clients were sent; ``fishers`` come from the clients, each taking the diagonal Fisher
    information of its trained model on its own training samples
    (:class:`fedwsa.algorithms.oneshot.client.FisherInformation`), as large as the model;
    ``permutations`` are given; ``base_fisher`` is left to the operator's default, since nobody
    has trained the base.

    Metrics are averaged as FedAvg does.

    Parameters
    ----------
    merge
        The operator; its options are bound (:func:`functools.partial`).
    labels
        Of the Fisher information: those that clients have observed, or drawn from their models.
    buffers
        Names of arrays that are not trained, and have no Fisher information.
    permutations
        Which units of the network may change places; None: it is not known.
    sampling
        As for Flower's FedAvg.

    Raises
    ------
    ValueError
        If the operator needs permutations and they are not given.
    """

    traits: ClassVar[Traits] = Traits(
        wants=("merge", "buffers", "permutations"),
        whole_models=False,
        requires=True,
        transient=("merge", "permutations", "_received"),
    )
    rounds = 1

    def __init__(
        self,
        merge: Operator,
        *,
        labels: Labels = "observed",
        buffers: Sequence[str] = (),
        permutations: Units | None = None,
        **sampling: Unpack[Sampling],
    ) -> None:
        super().__init__(**sampling)
        self.merge, self._needs = merge, sorted(needs(merge, "merge"))
        self.labels = choose(Labels, labels, "labels")
        self.buffers = frozenset(buffers)
        self.permutations = permutations
        if "permutations" in self._needs and permutations is None:
            raise ValueError("the operator needs permutations, which are not known of this model")
        self._received: dict[str, Tensor] = {}

    @property
    def asks_for_fishers(self) -> bool:
        """Whether clients send more than one model."""
        return "fishers" in self._needs

    def require(self, run: RunFacts) -> None:
        """Refuse more rounds than one, and to ask for what no noise covers.

        Raises
        ------
        ValueError
            Says what to set.
        """
        if run.rounds != self.rounds:
            raise ValueError(
                f"rounds: {type(self).__name__} trains its clients once: set rounds=1, and "
                f"local.epochs (now {run.epochs}) to as many as they are to train"
            )
        if self.asks_for_fishers:
            require_no_noise(self, run)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model, and ask for Fisher information where the operator needs it."""
        if server_round > self.rounds:
            raise ValueError("clients train once: a single round, with as many epochs as it takes")
        self._received = messages.to_tensors(arrays)
        if self.asks_for_fishers:
            config[FISHER_LAYERS] = [k for k in arrays if k not in self.buffers]
            config[FISHER_LABELS] = self.labels
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the models.

        Raises
        ------
        ValueError
            If a reply lacks the Fisher information, or the models cannot be merged.
        """
        given = list(replies)
        usable = [reply for reply in given if reply.has_content()]
        fishers = [_fisher(reply) for reply in usable] if self.asks_for_fishers else []
        models = [_model(reply) for reply in usable]
        averaged, metrics = super().aggregate_train(server_round, given)
        if averaged is None or metrics is None:
            return averaged, metrics
        require_alike([self._received, *models])
        supplied: dict[str, Any] = {
            "base": self._received,
            "fishers": fishers,
            "permutations": self.permutations,
        }
        weights = [messages.number(m, self.weighted_by_key) for m in messages.reply_metrics(usable)]
        if fishers:
            log(INFO, "merge: %d of %d entries have no Fisher information", *unseen(fishers))
        asked = {need: supplied[need] for need in self._needs if need in supplied}
        return messages.to_arrays(self.merge(models, weights=weights, **asked)), metrics


def _model(reply: Message) -> dict[str, Tensor]:
    arrays = messages.model_arrays(reply.content)
    if arrays is None:
        raise ValueError("a reply must hold one ArrayRecord, or one named arrays")
    return messages.to_tensors(arrays)


def _fisher(reply: Message) -> dict[str, Tensor]:
    """Taken out of the reply, so that the model is its only record of arrays."""
    record = reply.content.pop(FISHER, None)
    if not isinstance(record, ArrayRecord):
        raise ValueError(
            "a client does not send the Fisher information of its model; it must answer as "
            "fedwsa.algorithms.oneshot.client does"
        )
    return messages.to_tensors(record)
