"""What both sides remember: refused, lost, late and doubled answers leave no trace at either."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp.strategy import Strategy

from fedwsa.algorithms.feddyn.server import FedDyn
from fedwsa.algorithms.guard.guard import Guard
from fedwsa.algorithms.memory import client as memory
from fedwsa.algorithms.objective import Objective, gradients, trainable
from fedwsa.algorithms.scaffold.server import Scaffold
from fedwsa.wire import messages
from fedwsa.wire.names import LOST_MEMORY
from tests.given.fedwsa import Nodes
from tests.given.quadratics import JOINT, A, B, Descent, Exact, app, begin, run

pytestmark = pytest.mark.usefixtures("task_identity")

ALL = {"fraction_evaluate": 0.0, "min_train_nodes": 3, "min_available_nodes": 3}
Fate = Callable[[int, Message], list[Message]]
STEPS = Descent((5, 5, 5))


def refused(client: int, reply: Message) -> list[Message]:
    """NaN, for the guard to see."""
    bad = messages.to_arrays({"w": torch.full((2,), torch.nan, dtype=torch.float64)})
    reply.content["arrays"] = bad
    return [reply]


def restarted(client: int, reply: Message) -> list[Message]:
    return [reply]  # and :func:`rounds` takes what it kept


def lost(client: int, reply: Message) -> list[Message]:
    return []


def crashed(client: int, reply: Message) -> list[Message]:
    return [Message(Error(2, "gone"), reply_to=reply)]


def doubled(client: int, reply: Message) -> list[Message]:
    return [reply, reply]


def rounds(strategy: Strategy, training, count: int, fates: dict[int, Fate], more=()) -> np.ndarray:
    """Rounds over contexts as a node keeps them: it never hears what became of its answer."""
    client, arrays = app(training, more=more), begin()
    contexts = {n: Context(1, n, {"partition-id": n - 1}, RecordDict(), {}) for n in (1, 2, 3)}
    for number in range(1, count + 1):
        sent = strategy.configure_train(number, arrays, ConfigRecord(), Nodes(3))
        replies: list[Message] = []
        for message in sorted(sent, key=lambda m: m.metadata.dst_node_id):
            node = message.metadata.dst_node_id
            unharmed: Fate = lambda _, r: [r]  # noqa: E731
            fate = fates.get(number, unharmed) if node == number % 3 + 1 else unharmed
            if fate is restarted:
                contexts[node].state = RecordDict()
            try:
                reply = client(message, contexts[node])
            except memory.LostMemory as error:
                reply = Message(Error(LOST_MEMORY, str(error)), reply_to=message)
            replies += fate(node - 1, reply)
        new, _ = strategy.aggregate_train(number, replies)
        arrays = arrays if new is None else new
    return arrays["w"].numpy()


@pytest.mark.parametrize("fate", [refused, lost, crashed, doubled, restarted])
@pytest.mark.parametrize(
    ("make", "training", "count"),
    [(Scaffold, STEPS, 120), (lambda **k: FedDyn(0.5, **k), Exact(0.5), 160)],
    ids=["scaffold", "feddyn"],
)
def test_answers_that_do_not_count_leave_the_fixed_point_where_it_was(
    fate: Fate, make, training, count: int
) -> None:
    # Σ a_i (w − b_i) = 0 at [1/9, 16/9]·…: JOINT, [0.111, 1.778], where both sides agree.
    np.testing.assert_allclose(JOINT, [0.5 / 4.5, 8 / 4.5])
    strategy = Guard(make(**ALL), min_results=1)
    w = rounds(strategy, training, count, dict.fromkeys(range(1, 9), fate))
    np.testing.assert_allclose(w, JOINT, atol=1e-4)


def test_after_a_restart_the_server_s_memory_fits_what_the_clients_keep() -> None:
    # Client 3 restarts in round 2, is lost there, and all begin anew in round 3: FedAvg's round
    # from the mean of the others, in which c_i is the mean gradient of the client's steps.
    scaffold, dyn = Scaffold(**ALL), FedDyn(0.5, **ALL)
    two = rounds(scaffold, STEPS, 2, {2: restarted})
    assert scaffold.accepted == {}
    assert scaffold.control is not None
    assert not scaffold.control["w"].any()
    rounds(dyn, Exact(0.5), 2, {2: restarted})
    assert dyn.accepted == dyn.h == {}
    scaffold = Scaffold(**ALL)
    rounds(scaffold, STEPS, 3, {2: restarted})
    assert scaffold.accepted == {1: 3, 2: 3, 3: 3}
    gradients = []
    for a, b in zip(A, B, strict=True):
        w, seen = two.copy(), []
        for _ in range(5):
            seen.append(a * (w - np.array(b)))
            w = w - 0.1 * seen[-1]
        gradients.append(np.mean(seen, axis=0))
    assert scaffold.control is not None
    np.testing.assert_allclose(scaffold.control["w"], np.mean(gradients, axis=0), rtol=1e-12)


def test_without_a_guard_a_doubled_answer_counts_once() -> None:
    once, twice = (
        rounds(Scaffold(**ALL), STEPS, 5, fates) for fates in ({}, dict.fromkeys((2, 3), doubled))
    )
    np.testing.assert_array_equal(once, twice)


def test_a_cohort_below_the_quorum_leaves_no_trace() -> None:
    # Round 2 is skipped as a whole: the model stays, and with it all variates.
    strategy = Guard(Scaffold(**ALL), min_results=3, below="skip")
    harmed = rounds(strategy, STEPS, 6, {2: lost})
    plain = rounds(Guard(Scaffold(**ALL), min_results=3), STEPS, 5, {})
    np.testing.assert_allclose(harmed, plain, atol=1e-12)


class Refusing(Scaffold):
    """Refuses one client in its first rounds, as a guard would."""

    def aggregate_train(self, server_round, replies):
        given = list(replies)
        if server_round <= 6:
            node = 2 + server_round % 3
            given = [r for r in given if r.metadata.src_node_id != node]
        return super().aggregate_train(server_round, given)


@pytest.mark.parametrize("workers", [1, 2])
def test_in_the_engine_which_keeps_a_state_when_it_is_read(workers: int) -> None:
    strategy = Refusing(**ALL)
    models, metrics = run(strategy, app(STEPS), workers, 80)
    np.testing.assert_allclose(models[-1], JOINT, atol=1e-4)
    assert strategy.control is not None
    np.testing.assert_allclose(strategy.control["w"], metrics[-1]["control"], atol=1e-9)


def content(accepted: int, number: int) -> dict[str, dict[str, int]]:
    return {"config": {"accepted-round": accepted, "server-round": number}}


def test_a_client_goes_back_to_what_the_server_names_and_to_nothing_else() -> None:
    def said(value: float) -> memory.State:
        return {"scaffold": {"w": torch.tensor([value])}}

    kept = memory.keep(content(0, 3), {}, said(3.0))
    assert memory.recall(content(0, 4), kept) == {}
    assert memory.recall(content(3, 4), kept) == said(3.0)
    kept = memory.keep(content(3, 4), said(3.0), said(4.0))
    assert memory.recall(content(4, 5), kept) == said(4.0)
    assert memory.recall(content(3, 5), kept) == said(3.0)
    for accepted in (1, 2, 5):
        with pytest.raises(ValueError, match=rf"lost what it kept after round {accepted}, .*3 and"):
            memory.recall(content(accepted, 6), kept)
    with pytest.raises(ValueError, match=r"after round 2, .* \(there is: none\)"):
        memory.recall(content(2, 6), {})  # a node that was started again
    plain = said(1.0)  # of a strategy that names no round: as it is
    assert memory.recall({"config": {}}, memory.keep({"config": {}}, {}, plain)) == plain


def test_messages_of_one_round_share_their_content_and_all_share_the_model() -> None:
    strategy, arrays = Scaffold(**ALL), begin()
    strategy.accepted = {1: 4, 2: 4, 3: 2}
    sent = {
        m.metadata.dst_node_id: m.content
        for m in strategy.configure_train(5, arrays, ConfigRecord(), Nodes(3))
    }
    assert [int(sent[n]["config"]["accepted-round"]) for n in (1, 2, 3)] == [4, 4, 2]
    assert sent[1] is sent[2]
    assert sent[1]["arrays"] is sent[3]["arrays"] is arrays
    assert isinstance(arrays, ArrayRecord)


@pytest.mark.parametrize("weighted", ["examples", "clients"])
def test_scaffold_has_one_objective_for_models_and_variates(weighted: str) -> None:
    # p = (0.9, 0.05, 0.05) or a third each: the minimum of Σ p_i a_i/2 (w − b_i)².
    p = np.array([90, 5, 5]) / 100 if weighted == "examples" else np.full(3, 1 / 3)
    expected = np.average(np.array(B), axis=0, weights=p * A)
    strategy = Scaffold(weighted=weighted, **ALL)
    models, metrics = run(strategy, app(STEPS, (90, 5, 5)), 1, 150)
    np.testing.assert_allclose(models[-1], expected, atol=1e-4)
    assert strategy.control is not None
    np.testing.assert_allclose(strategy.control["w"], metrics[-1]["control"], atol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_pull_beside_the_loss_stays_out_of_the_variate(momentum: float) -> None:
    # Constant gradients: 2 of the loss and 3 of the pull, so c_i is 2, whatever the path.
    from fedwsa.algorithms.objective import LocalRun
    from fedwsa.algorithms.scaffold.client import Scaffold as Correction
    from tests.given.quadratics import Point

    model, state = Point(), {}
    local = LocalRun(0.1, momentum, state)
    local.pulls.append(lambda: {"w": torch.full((2,), 3.0, dtype=torch.float64)})
    zero = {"scaffold-control": {"w": torch.zeros(2, dtype=torch.float64)}}
    correction = Correction(model, zero, local)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    for _ in range(4):
        model.w.grad = torch.full((2,), 5.0, dtype=torch.float64)
        correction.add_gradient()
        optimizer.step()
    correction.end()
    torch.testing.assert_close(state["scaffold"]["w"], torch.full((2,), 2.0, dtype=torch.float64))


PULL = torch.tensor([0.3, -0.2], dtype=torch.float64)


class Constant(Objective):
    """A gradient that is the same everywhere, and not of the loss."""

    def __init__(self, model, content, local=None) -> None:
        self.weights = list(trainable(model).values())
        local.pulls.append(lambda: {"w": PULL})

    def add_gradient(self) -> None:
        for gradient in gradients(self.weights):
            gradient += PULL


def test_feddyn_with_a_pull_beside_the_loss_ends_where_both_are_in_balance() -> None:
    # At rest g_k = ∇L_k(w_k), so of ∇L_k − g_k + p + α(w_k − w_g) = 0 stays w_k = w_g − p/α =: w,
    # the same for all. That mean(w_k) − h/α is w_g again makes h = mean ∇L_k(w) = −p:
    # Σ a_k(w − b_k)/3 + p = 0, and the server's model is w + p/α.
    pull, alpha = PULL.numpy(), 0.5
    balance = (np.array(A) @ np.array(B) - 3 * pull) / sum(A)
    for count in (160, 320):  # it stays there
        strategy = FedDyn(alpha, **ALL)
        model = rounds(strategy, Exact(alpha), count, {}, [Constant])
        np.testing.assert_allclose(strategy.h["w"], -pull, atol=1e-5)
        np.testing.assert_allclose(model, balance + pull / alpha, atol=1e-4)
