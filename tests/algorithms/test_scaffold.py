"""SCAFFOLD (arXiv 1910.06378): control variates over hand-made messages, without a runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedwsa.algorithms.objective import LocalRun
from fedwsa.algorithms.scaffold.client import Scaffold as Correction
from fedwsa.algorithms.scaffold.client import plain_steps
from fedwsa.algorithms.scaffold.server import Scaffold
from fedwsa.models import exchange
from fedwsa.wire import messages
from tests.given.fedwsa import Nodes
from tests.given.quadratics import BEGIN, JOINT, A, B, Point, begin, gradient

pytestmark = pytest.mark.usefixtures("task_identity")


def local_training(
    message: Message, client: int, state: dict, steps: int, lr: float, momentum: float = 0.0
) -> Message:
    content = {
        k: messages.to_tensors(r) if isinstance(r, ArrayRecord) else r
        for k, r in message.content.items()
    }
    model = Point()
    exchange.load_travelling(model, messages.to_tensors(message.content["arrays"]))
    local = LocalRun(lr, momentum, state)
    correction = Correction(model, content, local)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    for _ in range(steps):
        model.w.grad = gradient(model, client)
        correction.add_gradient()
        optimizer.step()
    metrics = MetricRecord({"num-examples": 10, **correction.end()})
    records = {k: messages.to_arrays(t) for k, t in correction.records().items()}
    arrays = messages.to_arrays(exchange.travelling_state(model))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics, **records}), reply_to=message)


def one_round(strategy: Scaffold, arrays: ArrayRecord, states: list[dict], **training):
    sent = strategy.configure_train(1, arrays, ConfigRecord({"server-round": 1}), Nodes(3))
    by_node = sorted(sent, key=lambda m: m.metadata.dst_node_id)
    replies = [
        local_training(
            m, m.metadata.dst_node_id - 1, states[m.metadata.dst_node_id - 1], **training
        )
        for m in by_node
    ]
    averaged, _ = strategy.aggregate_train(1, replies)
    return averaged


def test_the_first_round_is_fedavg_and_leaves_the_mean_gradient() -> None:
    # One step, all controls zero: w_i = w − η·g_i(w), so c_i = g_i(w) and c their mean.
    strategy, states = Scaffold(), [{}, {}, {}]
    averaged = one_round(strategy, begin(), states, steps=1, lr=0.1)
    w = np.array(BEGIN)
    gradients = np.array([a * (w - np.array(b)) for a, b in zip(A, B, strict=True)])
    np.testing.assert_allclose(averaged["w"].numpy(), w - 0.1 * gradients.mean(0))
    for state, found in zip(states, gradients, strict=True):
        np.testing.assert_allclose(state["scaffold"]["w"], found)
    np.testing.assert_allclose(strategy.control["w"], gradients.mean(0))


def test_with_all_clients_the_server_s_control_is_the_mean_of_theirs_in_every_round() -> None:
    strategy, states, arrays = Scaffold(), [{}, {}, {}], begin()
    for _ in range(5):
        arrays = one_round(strategy, arrays, states, steps=4, lr=0.1)
        mean = torch.stack([s["scaffold"]["w"] for s in states]).mean(0)
        torch.testing.assert_close(strategy.control["w"], mean)
        assert mean.abs().max() > 0.01


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_reaches_the_joint_minimiser_which_fedavg_misses(momentum: float) -> None:
    strategy, states, arrays = Scaffold(), [{}, {}, {}], begin()
    for _ in range(400):
        arrays = one_round(strategy, arrays, states, steps=5, lr=0.02, momentum=momentum)
    np.testing.assert_allclose(arrays["w"].numpy(), JOINT, atol=1e-6)
    # FedAvg: the same without corrections stops where the mean of K steps' drift is zero.
    without = Scaffold()
    arrays = begin()
    for _ in range(400):
        without.control = None
        arrays = one_round(without, arrays, [{}, {}, {}], steps=5, lr=0.02, momentum=momentum)
    assert np.abs(arrays["w"].numpy() - JOINT).max() > 1e-3


def test_momentum_goes_as_far_as_more_plain_steps() -> None:
    # v_j = m·v_{j−1} + 1 from zero: the path of a constant gradient, summed by hand.
    for momentum in (0.0, 0.5, 0.9):
        speed = way = 0.0
        for steps in range(1, 6):
            speed = momentum * speed + 1
            way += speed
            assert plain_steps(steps, momentum) == pytest.approx(way)


def test_only_those_who_answered_move_the_control_by_their_share_of_all() -> None:
    # c += (|S|/N)·mean over S: with one of three clients, a third of its change.
    strategy, states = Scaffold(), [{}, {}, {}]
    sent = strategy.configure_train(1, begin(), ConfigRecord({"server-round": 1}), Nodes(3))
    by_node = sorted(sent, key=lambda m: m.metadata.dst_node_id)
    replies = [local_training(by_node[0], 0, states[0], steps=1, lr=0.1)]
    replies += [Message(Error(2, "gone"), reply_to=m) for m in by_node[1:]]
    strategy.aggregate_train(1, replies)
    gradient = A[0] * (np.array(BEGIN) - np.array(B[0]))
    np.testing.assert_allclose(strategy.control["w"], gradient / 3)


def test_clients_of_another_algorithm_are_refused() -> None:
    strategy = Scaffold()
    [message, *_] = strategy.configure_train(1, begin(), ConfigRecord(), Nodes(3))
    content = RecordDict({"arrays": begin(), "metrics": MetricRecord({"num-examples": 1})})
    with pytest.raises(ValueError, match="does not report the change of its control variate"):
        strategy.aggregate_train(1, [Message(content, reply_to=message)])


def test_without_the_server_s_control_it_is_not_asked_for() -> None:
    assert not Correction.asked({"config": {}})
    with pytest.raises(ValueError, match="SCAFFOLD needs the server's variate"):
        Correction(Point(), {"config": {}}, LocalRun(0.1))
