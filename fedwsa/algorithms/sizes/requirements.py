"""Which runs do not go with clients of several sizes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flwr.serverapp.strategy import Strategy

from fedwsa.algorithms.run_facts import RunFacts

logger = logging.getLogger("fedwsa")


def require_no_classes_told(strategy: Strategy, classifier: Sequence[str], run: RunFacts) -> None:
    """Refuse averaging by class in a private run.

    Raises
    ------
    ValueError
        Names the strategy.
    """
    if run.private and classifier:
        raise ValueError(
            f"strategy.args.class_rows: {type(strategy).__name__} needs to know which classes a "
            "client has, which a private run keeps; set it to false"
        )


def warn_of_learned(run: RunFacts) -> None:
    """Say that a scaler makes a part of a learned network too loud.

    It makes up for standard weights, whose activations are small in a small part. Of a network
    that init=wave has learned on digits, the largest curvature of a quarter's loss grows from 18
    to 752 by it, where SGD with momentum 0.9 is stable up to 3.8/lr: lr 0.01 was borne, and
    better than without, 0.03 not. Weights cannot make up for it: sizes share their entries, and
    each would need them divided by another rate.
    """
    if run.init != "Standard":
        logger.warning(
            "strategy.args.scaler: init=%s gives weights that are at scale already, and small "
            "sizes may become unstable (on digits, at local.lr=0.03 and above): if their accuracy "
            "falls, lower local.lr or set it to false",
            run.init.lower(),
        )
