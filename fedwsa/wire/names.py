"""The language that servers and clients share: names of records and of keys.

One place, because the two sides never import each other. Record names are Flower's defaults,
so that our clients answer any Flower strategy and our strategies lead any Flower client.

===============  ======================  ======================================================
message          record                  holds
===============  ======================  ======================================================
train, evaluate  ``arrays``              the model's floating-point state, half precision as single
(down)           ``config``              ``server-round``; what strategies add for the clients, for
                                         instance the ``size`` of model that the arrays are for,
                                         or the ``deadline`` in simulated seconds to stop at; from
                                         strategies whose clients remember ``accepted-round``, the
                                         last one of which the receiver's answer counts, 0 if none
train, evaluate  ``config``              ``model-staying``: marks of the tensors that do not travel,
(down)                                   which a client has built like the server's (JSON);
                                         ``data-mark``: likewise of the data and their shares;
                                         where nodes have data of their own ``data-reference``
train            ``config``, ``metrics`` settings and answers of one algorithm: ``proximal-mu``;
                                         ``moon-…``; ``fednova…``; ``feddyn-alpha``,
                                         ``feddyn-count``; ``pooled``, a share of all samples
train (down)     ``wsa-target``          FedWSA: ``mean`` and ``variance``, a number per layer
train (up)       ``arrays``, ``metrics``  the trained model; ``num-examples``, ``train_loss``; from
                                         FedWSA's clients ``wsa-mean``, ``wsa-spread``,
                                         ``wsa-kl``, a number per layer; among clients of
                                         several sizes ``wsa-present``, 1 or 0 per layer
train            ``wsa-scope``, among    FedWSA under differential privacy, if wished so: mean and
(down, up)       the ``arrays``          spread of each layer, to be noised with the weights
train            ``config``, ``metrics`` ``class-rows``: names of the arrays that have a row for
                                         each class; clients answer ``classes``, 1 or 0 for each
train (down)     ``scaffold-control``    SCAFFOLD: the server's control variate
train (up)       ``scaffold-change``     SCAFFOLD: how the client's changed, of what it trains
train (up)       ``feddyn-pull``         FedDyn with WSA: the gradient of WSA's term at the trained
                                         model, which is kept out of the client's
train (up)       ``fisher``              one-shot: the diagonal Fisher information of the trained
                                         model, for the arrays that ``config`` names in
                                         ``fisher-layers``, with labels by ``fisher-labels``
train, evaluate  ``personal``            FedPer, FedBN, local training: what stays with the client,
(down)                                   as one begins that has none yet
evaluate (down)  ``adapt-epochs``        epochs that a client trains before, for this evaluation
evaluate (up)    ``metrics``             ``num-examples``, ``accuracy``, ``loss``
train (up)       ``metrics``             ``wire-bytes`` that a compressed model took; the arrays are
                                         as they arrive
query (down)     ``data-reference``      where nodes have data of their own: what the server's are
                                         like (``fedwsa.data.own``), as JSON
query (up)       ``config``              ``partition-id`` of the node, and its ``size``; of a node
                                         with data of its own ``num-examples``
===============  ======================  ======================================================
"""

from __future__ import annotations

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
NUM_EXAMPLES, LOSS, ACCURACY = "num-examples", "loss", "accuracy"
TRAIN_LOSS = "train_loss"  # as Flower's QFedAvg looks for it
STAYING = "model-staying"
SERVER_ROUND, PARTITION_ID = "server-round", "partition-id"
ACCEPTED_ROUND = "accepted-round"
ADAPT = "adapt-epochs"
WIRE_BYTES = "wire-bytes"
PROXIMAL_MU = "proximal-mu"
SIZE, SIZE_RATE = "size", "size-rate"
EXIT_DEPTHS = "exit-depths"
POOLED = "pooled"
PERSONAL = "personal"
MOON_WEIGHT, MOON_TEMPERATURE = "moon-mu", "moon-temperature"
NOVA = "fednova"
NOVA_WEIGHT, NOVA_LENGTH, NOVA_SQUARE = "fednova-weight", "fednova-length", "fednova-square"
DYN_ALPHA, DYN_COUNT, DYN_PULL = "feddyn-alpha", "feddyn-count", "feddyn-pull"
DEADLINE = "deadline"
DATA_PATH, DATA_REFERENCE = "data-path", "data-reference"
DATA_MARK = "data-mark"

NUMBER_BYTES = 8
"""Of a metric on the wire."""

UNUSABLE_REPLY = 1001
"""Flower error code (free above 1000) for a reply that cannot be averaged."""

REFUSED = 1002
"""Likewise of a node that cannot take part in the run; its reason is one line."""

LOST_MEMORY = 1003
"""Likewise of a client that does not have what it kept after its accepted round."""

SCAFFOLD_CONTROL, SCAFFOLD_CHANGE = "scaffold-control", "scaffold-change"

CLASS_ROWS, CLASSES = "class-rows", "classes"

FISHER = "fisher"
FISHER_LAYERS, FISHER_LABELS = "fisher-layers", "fisher-labels"

SCOPE_TARGET = "wsa-target"
TARGET_MEAN, TARGET_VARIANCE = "mean", "variance"
SCOPE_LAYERS, SCOPE_FUSION = "wsa-layers", "wsa-fusion"
SCOPE_STRENGTH, SCOPE_REDUCTION, SCOPE_FLOOR = "wsa-strength", "wsa-reduction", "wsa-floor"
SCOPE_NORMALISE, SCOPE_PARTIAL = "wsa-normalise", "wsa-partial"
SCOPE_MEAN, SCOPE_SPREAD, SCOPE_KL = "wsa-mean", "wsa-spread", "wsa-kl"
SCOPE_PRESENT = "wsa-present"
SCOPE_REPORTED = "wsa-reported"
SCOPE_ARRAY = "wsa-scope"
