"""FedProto, the client half of :class:`fedwsa.algorithms.fedproto.server.FedProto`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fedwsa.algorithms.objective import (
    ForwardPass,
    LocalRun,
    Objective,
    Others,
    Weights,
)
from fedwsa.models.representation import Tap
from fedwsa.wire.content import Content

PROTOTYPES, MEANS, COUNTS = "fedproto prototypes", "means", "counts"


class Prototypes(Objective):
    """Keep what goes into the classifier near the prototype of each sample's class.

    Local loss = task loss + λ·‖z − C_y‖² / features, where C_y is the mean of all clients'
    representations of class y; a class that nobody has told of yet adds nothing. The client tells
    the means of its own samples by the trained network.

    Source: arXiv 2105.00243, equation 7.
    """

    settings: ClassVar[str] = "fedproto"

    def __init__(self, model: Weights, content: Content, local: LocalRun | None = None) -> None:
        if local is None or local.samples is None:
            raise ValueError("FedProto needs the client's samples")
        self._pull, self._samples = float(content[self.settings]["pull"]), local.samples
        sent = content.get(PROTOTYPES)
        device = local.samples.labels.device
        self._means = None if sent is None else sent[MEANS].to(device)
        self._known = None if sent is None else sent[COUNTS].to(device) > 0
        self._told: dict[str, Tensor] = {}

    def others(self) -> Others | None:
        """None before anybody told of a class: then the loss is that of the task."""
        return None if self._means is None or not self._pull else {}

    def loss(self, seen: ForwardPass) -> Tensor:
        """λ times the mean squared distance of each sample to the prototype of its class."""
        assert self._means is not None
        assert self._known is not None
        away = (seen.represented() - self._means[seen.labels]).square().mean(-1)
        pulled: Tensor = self._pull * away * self._known[seen.labels]
        return pulled

    @torch.no_grad()
    def after(self, model: nn.Module) -> None:
        """Take the means of the client's samples."""
        model.eval()
        samples = self._samples
        sums: Tensor | None = None
        with Tap(model) as tap:
            for inputs, labels in samples.batches():
                model(inputs)
                found = tap.take()
                assert found is not None  # or the server would have refused the model
                if sums is None:
                    sums = found.new_zeros(samples.classes, found.shape[-1])
                sums.index_add_(0, labels.flatten(), found.flatten(0, -2))
        assert sums is not None  # who trains has samples
        counts = torch.bincount(samples.labels.flatten(), minlength=samples.classes).to(sums)
        self._told = {MEANS: sums / counts.clamp(min=1)[:, None], COUNTS: counts}

    def records(self) -> dict[str, dict[str, Tensor]]:
        """The client's prototypes."""
        return {PROTOTYPES: self._told}
