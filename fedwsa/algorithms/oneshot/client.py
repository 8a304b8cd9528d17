"""The Fisher information of what a client has trained, where the server asks for it."""

from __future__ import annotations

from torch import Tensor, nn

from fedwsa.algorithms.objective import LocalRun, Objective, Weights
from fedwsa.data.evaluation import measure_statistics
from fedwsa.merge.fisher_information import fisher_information
from fedwsa.wire.content import Content, find_record
from fedwsa.wire.names import FISHER, FISHER_LABELS, FISHER_LAYERS


class FisherInformation(Objective):
    """The diagonal Fisher information of a trained model on its samples, sent beside it.

    Of the plain task loss on samples as they are, not augmented; with the observed labels, or with
    labels drawn from the model, as the server wishes.
    """

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        asked = find_record(content, FISHER_LABELS)
        if asked is None or local is None or local.samples is None:
            raise ValueError("Fisher information needs the server's wish and the client's samples")
        self._samples, self._observed = local.samples, asked[FISHER_LABELS] == "observed"
        self._names: list[str] = list(asked[FISHER_LAYERS])
        self._measured: dict[str, Tensor] = {}

    @classmethod
    def asked(cls, content: Content) -> bool:
        """Whether the server wants it beside the model."""
        return find_record(content, FISHER_LABELS) is not None

    def after(self, model: nn.Module) -> None:
        """Measure the Fisher information of the trained model."""
        of = self._samples
        measure_statistics(model, of.inputs, of.prepare, of.inputs.device)
        self._measured = fisher_information(
            model,
            of.inputs,
            of.labels if self._observed else None,
            random=of.generator("fisher"),
            prepare=of.prepare,
        )

    def records(self) -> dict[str, dict[str, Tensor]]:
        """Of the arrays that the server names."""
        return {FISHER: {name: self._measured[name] for name in self._names}}
