"""The guard over hand-made messages: what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    Strategy,
)
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwsa import FedWSA
from fedwsa.algorithms.guard.apart import scopes_apart
from fedwsa.algorithms.guard.guard import Guard
from fedwsa.algorithms.scaffold.server import Scaffold
from fedwsa.simulation.reduce import Averaged
from fedwsa.wire import messages
from tests.given.fedwsa import Nodes, answer, arrays_of, net
from tests.given.guard import START, asked, record, reply, values

pytestmark = pytest.mark.usefixtures("task_identity")


def reasons(guard: Guard) -> dict[int, tuple[str, str]]:
    assert guard.gathered is not None
    return {i.node: (i.kind, i.reason) for i in guard.gathered.incidents}


def with_arrays(**changed: np.ndarray | None) -> Callable[[Message], None]:
    def change(message: Message) -> None:
        arrays = {k: a.numpy() for k, a in message.content["arrays"].items()}
        kept = {k: v for k, v in {**arrays, **changed}.items() if v is not None}
        message.content["arrays"] = record(kept)

    return change


def with_metrics(**changed: Any) -> Callable[[Message], None]:
    def change(message: Message) -> None:
        named = {k.replace("_", "-"): v for k, v in changed.items()}
        kept = {**message.content["metrics"], **named}
        message.content["metrics"] = MetricRecord(kept)

    return change


def with_bytes(data: bytes, stype: str = "numpy.ndarray") -> Callable[[Message], None]:
    def change(message: Message) -> None:
        message.content["arrays"]["b"] = Array("float32", (2,), stype, data)

    return change


LARGE = np.full(2, 1e30, np.float32)
HUGE_HEADER = Array(np.zeros(2, np.float32)).data.replace(b"(2,)", b"(2**9,)")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_arrays(b=np.array([0, np.nan], np.float32)), "wrong arrays: b is NaN or infinite"),
        (with_arrays(b=np.array([np.inf, 0], np.float32)), "wrong arrays: b is NaN or infinite"),
        (with_arrays(b=LARGE), "wrong arrays: b is absurdly large"),
        (with_arrays(b=None), "wrong arrays: missing b"),
        (with_arrays(c=np.zeros(1)), "wrong arrays: unknown c"),
        (with_arrays(b=np.zeros(3, np.float32)), r"wrong arrays: b is (3,), not (2,)"),
        (with_arrays(b=np.zeros(2)), "wrong arrays: b is float64, not float32"),
        (with_arrays(b=np.zeros(2, np.int32)), "wrong arrays: b is int32, not float32"),
        (with_bytes(b"no array"), "wrong arrays: cannot be read: ValueError"),
        (with_bytes(HUGE_HEADER), "wrong arrays: cannot be read: ValueError"),
        (with_bytes(b"", "pickle"), "wrong arrays: cannot be read: ValueError"),
        (with_metrics(num_examples=0), "num-examples must be positive"),
        (with_metrics(num_examples=-3), "num-examples must be positive"),
        (with_metrics(num_examples=math.nan), "metric num-examples is NaN or infinite"),
        (with_metrics(num_examples=101), "num-examples is absurd: 101, at most 100 counts"),
        (with_metrics(num_examples=[1]), "the metrics have no number num-examples"),
        (with_metrics(loss=math.inf), "metric loss is NaN or infinite"),
        (with_metrics(loss=1e300), "metric loss is absurdly large"),
        (lambda m: m.content.pop("metrics"), "the reply must hold exactly one MetricRecord"),
        (lambda m: m.content.pop("arrays"), "the reply must hold one ArrayRecord"),
        (with_metrics(more=1.0), "its records or metrics are not those of the other clients"),
        (
            lambda m: m.content.update({"second": m.content["metrics"]}),
            "the reply must hold exactly one MetricRecord",
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused_with_its_reason(change, reason: str) -> None:
    guard = Guard(FedAvg(), max_examples=100)
    sent = asked(guard)
    replies = [reply(m, value) for m, value in zip(sent, (1.0, 9.0, 3.0), strict=True)]
    change(replies[1])
    arrays, metrics = guard.aggregate_train(1, replies)
    [(node, (kind, why))] = reasons(guard).items()
    assert (node, kind) == (2, "rejected")
    assert why.startswith(reason)
    np.testing.assert_array_equal(arrays["w"].numpy(), np.full((2, 3), 2.0))
    assert metrics["loss"] == 0.5


def test_what_the_server_says_of_a_node_that_is_gone_is_the_node_s() -> None:
    guard = Guard(FedAvg())
    sent = asked(guard)
    for number, message in enumerate(sent):  # as Flower's grids name what they send
        message.metadata.__dict__["_message_id"] = f"message-{number}"
    gone = Message(Error(5, "Node Unavailable"), reply_to=sent[1])
    gone.metadata.__dict__["_src_node_id"] = 1  # the SuperLink's
    sent[1].metadata.__dict__["_dst_node_id"] = 78  # no node of the others
    replies = [reply(sent[0], 4.0), gone, reply(sent[2], 2.0)]
    arrays, _ = guard.aggregate_train(1, replies)
    assert reasons(guard) == {78: ("failed", "Node Unavailable")}
    np.testing.assert_array_equal(arrays["b"].numpy(), [3.0, 3.0])


def test_who_failed_who_is_silent_and_who_was_not_asked_do_not_count() -> None:
    guard = Guard(FedAvg())
    sent = asked(guard, 4)
    stranger, *_ = asked(Guard(FedAvg()), 9)
    stranger.metadata.__dict__["_dst_node_id"] = 77
    failed = Message(Error(2, "the battery is empty\nTraceback ..."), reply_to=sent[1])
    replies = [reply(sent[0], 4.0), failed, reply(sent[3], 2.0), reply(sent[0], 900.0)]
    arrays, _ = guard.aggregate_train(1, [*replies, reply(stranger, 900.0)])
    assert {n: k for n, (k, _) in reasons(guard).items()} == {2: "failed", 3: "missing"}
    np.testing.assert_array_equal(arrays["b"].numpy(), [3.0, 3.0])


def test_a_scope_that_is_impossible_or_not_that_of_its_arrays_is_refused() -> None:
    lies = {
        1: lambda m: m.update({"wsa-mean": [0.0]}),
        2: lambda m: m.update({"wsa-spread": [-1.0, *m["wsa-spread"][1:]]}),
        3: lambda m: m.update({"wsa-mean": [m["wsa-mean"][0] + 0.1, *m["wsa-mean"][1:]]}),
        4: lambda m: m.update({"wsa-spread": [1.5 * v for v in m["wsa-spread"]]}),
        5: lambda m: m.update({"wsa-kl": [-1.0] * len(m["wsa-kl"])}),
        6: lambda m: m.pop("wsa-kl"),
    }
    guard = Guard(FedWSA(FedAvg()))
    sent = asked(guard, 8, arrays_of(net()))
    replies = [answer(m, net(seed), 10) for seed, m in enumerate(sent)]
    for client, lie in lies.items():
        lie(replies[client - 1].content["metrics"])
    arrays, _ = guard.aggregate_train(1, replies)
    assert set(reasons(guard)) == set(lies)
    assert "wsa-mean must be a list of 2 numbers" in reasons(guard)[1][1]
    assert "negative variance" in reasons(guard)[2][1]
    assert "not that of its array" in reasons(guard)[3][1]
    assert "not that of its array" in reasons(guard)[4][1]
    honest = [messages.to_tensors(arrays_of(net(seed))) for seed in (6, 7)]
    expected = (honest[0]["0.weight"] + honest[1]["0.weight"]) / 2
    torch.testing.assert_close(messages.to_tensors(arrays)["0.weight"], expected)


@pytest.mark.parametrize("fusion", ["moments", "mean_variance", "mean_std"])
@pytest.mark.parametrize("normalise", [False, True])
def test_honest_scopes_are_accepted_under_every_rule(fusion, normalise: bool) -> None:
    guard = Guard(FedWSA(FedAvg(), fusion=fusion, normalise=normalise))
    sent = asked(guard, 3, arrays_of(net()))
    arrays, _ = guard.aggregate_train(1, [answer(m, net(i), 10) for i, m in enumerate(sent)])
    assert arrays is not None
    assert reasons(guard) == {}


def test_a_control_variate_that_is_missing_or_has_another_shape_is_refused() -> None:
    guard = Guard(Scaffold())
    sent = asked(guard, 3)
    replies = [reply(m) for m in sent]
    zeros = {k: np.zeros_like(v) for k, v in START.items()}
    replies[0].content["scaffold-change"] = record(zeros)
    replies[1].content["scaffold-change"] = record({**zeros, "b": np.zeros(5, np.float32)})
    arrays, _ = guard.aggregate_train(1, replies)
    assert arrays is not None
    assert reasons(guard) == {
        2: ("rejected", "scaffold-change: b is (5,), not (2,)"),
        3: ("rejected", "the reply lacks scaffold-change"),
    }


def test_an_update_many_times_as_long_as_the_median_is_refused() -> None:
    # Updates of length 1, 2, 3, 40: median 2.5, so that only the last exceeds 5 times it.
    guard = Guard(FedAvg(), max_norm_ratio=5.0)
    replies = [reply(m, v) for m, v in zip(asked(guard, 4), (1.0, -2.0, 3.0, 40.0), strict=True)]
    arrays, _ = guard.aggregate_train(1, replies)
    assert reasons(guard) == {4: ("rejected", "its update is 16 times as long as the median")}
    np.testing.assert_allclose(arrays["b"].numpy(), 2 / 3, rtol=1e-6)


def test_two_updates_have_no_median_to_be_judged_by() -> None:
    guard = Guard(FedAvg(), max_norm_ratio=2.0)
    guard.aggregate_train(1, [reply(m, v) for m, v in zip(asked(guard, 2), (1, 900), strict=True)])
    assert reasons(guard) == {}


def test_only_norms_need_the_single_replies() -> None:
    assert isinstance(asked(Guard(FedAvg())), Averaged)
    assert isinstance(asked(Guard(FedWSA(FedAvg())), start=arrays_of(net())), Averaged)
    assert not isinstance(asked(Guard(FedAvg(), max_norm_ratio=3.0)), Averaged)
    assert not isinstance(asked(Guard(FedMedian())), Averaged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_examples": 0}, "max_examples must be above 0"),
        ({"max_norm_ratio": 1}, "max_norm_ratio must be above 1"),
        ({"min_results": 0}, "min_results must be a number of clients, or a share"),
        ({"min_results": 2.5}, "min_results must be a number of clients, or a share"),
        ({"repeats": -1}, "repeats must not be negative"),
        ({"below": "wait"}, "below must be one of stop, skip"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guard(FedAvg(), **options)


def private(strategy: Strategy) -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(strategy, 1.0, 1.0, 3)


def test_the_guard_stands_outside_privacy_wrappers_which_clip_by_themselves() -> None:
    with pytest.raises(ValueError, match="clip every update"):
        Guard(private(FedAvg()), max_norm_ratio=3.0)
    guard = Guard(private(FedAvg()))
    replies = [reply(m, v) for m, v in zip(asked(guard), (1.0, 0.0, 1.0), strict=True)]
    # Flower divides by the norm of an update; with an error reply it releases nothing.
    assert guard.aggregate_train(1, replies) == (None, None)
    assert reasons(guard) == {2: ("rejected", "an update of zero cannot be clipped")}
    replies = [reply(m) for m in asked(guard)]
    turned = dict(reversed(replies[2].content["arrays"].items()))
    replies[2].content["arrays"] = ArrayRecord(turned)
    guard.aggregate_train(1, replies)
    [(_, why)] = reasons(guard).values()
    assert why == "its arrays stand in another order, and cannot be clipped"


def test_an_evaluation_may_lack_samples_but_not_sense() -> None:
    guard = Guard(FedAvg(), scores=("accuracy",))
    sent = list(guard.configure_evaluate(1, record(START), ConfigRecord(), Nodes(4)))
    scores = [(10, 0.5), (0, math.nan), (-1, 0.9), (math.inf, 0.9)]
    replies = []
    for message, (examples, accuracy) in zip(sent, scores, strict=True):
        metrics = MetricRecord({"num-examples": examples, "accuracy": accuracy})
        replies.append(Message(RecordDict({"metrics": metrics}), reply_to=message))
    assert guard.aggregate_evaluate(1, replies)["accuracy"] == 0.5


# --- anything at all ---------------------------------------------------------------------------


numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.lists(st.floats(), max_size=3),
    st.lists(st.integers(-9, 9), max_size=3),
)
metric_records = st.dictionaries(
    st.sampled_from(["num-examples", "loss", "wsa-mean", "wsa-spread", "wsa-kl", "x"]),
    numbers,
    max_size=6,
)
encoded = st.one_of(
    values.map(Array),
    values.map(Array),
    st.builds(
        lambda dtype, shape, stype, data: Array(dtype, shape, stype, data),
        st.sampled_from(["float32", "object", "no such"]),
        st.sampled_from([(2, 3), (2,), (0,), (10**12,)]),
        st.sampled_from(["numpy.ndarray", "pickle"]),
        st.one_of(
            st.binary(max_size=40),
            values.map(lambda v: Array(v).data[:-3]),
            values.map(lambda v: Array(v).data.replace(b"(2, 3)", b"(9, 9)")),
        ),
    ),
)
array_records = st.dictionaries(st.sampled_from(["w", "b", "c"]), encoded, max_size=3)
contents = st.builds(
    lambda arrays, metrics, second: RecordDict(
        {
            **({"arrays": ArrayRecord(arrays)} if arrays is not None else {}),
            **({"metrics": MetricRecord(metrics)} if metrics is not None else {}),
            **({"second": ArrayRecord(second)} if second is not None else {}),
        }
    ),
    st.one_of(
        st.fixed_dictionaries({"w": values, "b": values}).map(
            lambda r: {k: Array(v) for k, v in r.items()}
        ),
        array_records,
        st.none(),
    ),
    st.one_of(
        st.fixed_dictionaries({"num-examples": numbers, "loss": numbers}),
        metric_records,
        st.none(),
    ),
    st.one_of(st.none(), st.none(), st.none(), array_records),
)


@settings(max_examples=400)
@given(st.lists(contents, min_size=1, max_size=4), st.booleans(), st.sampled_from([None, 3.0]))
def test_whatever_clients_send_the_aggregate_is_finite_and_nothing_is_raised(
    broken: list[RecordDict], wsa: bool, ratio: float | None
) -> None:
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    strategy = FedWSA(FedAvg()) if wsa else FedAvg()
    guard = Guard(strategy, below="skip", max_norm_ratio=ratio)
    replies = [Message(c, reply_to=m) for c, m in zip(broken, asked(guard, 4), strict=False)]
    arrays, metrics = guard.aggregate_train(1, replies)
    judged = guard.gathered
    assert len(judged.accepted) + len(judged.lost()) == 4
    assert (arrays is not None) == bool(judged.accepted)
    if arrays is not None:
        assert all(np.isfinite(a.numpy()).all() for a in arrays.values())
        assert np.isfinite([v for v in metrics.values() if not isinstance(v, list)]).all()


def with_spread(*spreads: float) -> list[RecordDict]:
    """A client's model each: two entries ±σ, so that its scope is N(0, σ²)."""
    return [
        RecordDict({"arrays": record({"w": np.array([[-s, s]]), "b": np.array([s])})})
        for s in spreads
    ]


def test_scopes_are_compared_with_the_median_of_the_cohort() -> None:
    found = scopes_apart(with_spread(1.0, 1.0, 3.0))
    assert [layer for layer, _ in found] == ["w"] * 3
    # KL(N(0, 9) ‖ N(0, 1)) = ln(1/3) + 9/2 − 1/2
    np.testing.assert_allclose([kl for _, kl in found], [0, 0, 4 - np.log(3)], atol=1e-9)


def test_two_widths_of_one_initialisation_are_not_apart() -> None:
    """σ ∝ 1/√fan_in: rows of two entries ±1/√2, and of eight ±1/√8, are one normalised scope."""
    narrow, wide = (
        RecordDict({"arrays": record({"w": np.tile([[-1.0, 1.0]], (1, n // 2)) / np.sqrt(n)})})
        for n in (2, 8)
    )
    found = scopes_apart([narrow, wide, wide])
    np.testing.assert_allclose([kl for _, kl in found], 0, atol=1e-12)


def test_a_client_without_layers_is_no_further_than_anybody() -> None:
    bare = RecordDict({"arrays": record({"b": np.ones(1)})})
    assert scopes_apart([*with_spread(1.0, 1.0), bare])[2] == ("", 0.0)


@pytest.mark.parametrize(("limit", "refused"), [(2.89, True), (2.91, False)])
def test_a_model_of_another_scope_is_refused(limit: float, refused: bool) -> None:
    guard = Guard(FedAvg(), max_scope_kl=limit)
    start = record({"w": np.zeros((1, 2)), "b": np.zeros(1)})
    sent = asked(guard, 3, start=start)
    replies = []
    for message, content in zip(sent, with_spread(1.0, 1.0, 3.0), strict=True):
        content["metrics"] = MetricRecord({"num-examples": 1.0})
        replies.append(Message(content, reply_to=message))
    arrays, _ = guard.aggregate_train(1, replies)
    why = "the scope of w is 2.9 nats from the cohort's median"
    assert reasons(guard) == ({3: ("rejected", why)} if refused else {})
    np.testing.assert_allclose(arrays["b"].numpy(), 1.0 if refused else 5 / 3, rtol=1e-6)
