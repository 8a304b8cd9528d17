"""Differential privacy: what it costs, what clients still say, where WSA's target comes from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
)
from scipy.stats import norm

import clients.app
from experiments.commands.simulate import simulate
from fedwsa import FedWSA, ScopeAlignment, WeightScope, seeding
from fedwsa.algorithms.guard.guard import Guard
from fedwsa.algorithms.privacy import Accounted, accounted, local_multiplier, local_spent, spent
from fedwsa.algorithms.traits import Traits
from fedwsa.config.component import ConfigError
from fedwsa.schema.compose import compose
from fedwsa.wire import messages
from server.checkpoint import Checkpoints
from tests.given.fedwsa import Nodes, answer, arrays_of, net

pytestmark = pytest.mark.usefixtures("task_identity")

DELTA = 1e-5


def fixed(multiplier: float = 2.0, strategy: FedAvg | None = None, clip: float = 1.0):
    return DifferentialPrivacyServerSideFixedClipping(strategy or FedAvg(), multiplier, clip, 3)


def adaptive(multiplier: float = 0.2):
    return DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), multiplier, 3)


def one_round(strategy, number: int = 1, examples: tuple[int, ...] = (1, 1, 1)):
    """A round of three clients whose models are other networks."""
    config = ConfigRecord()
    sent = list(strategy.configure_train(number, arrays_of(net()), config, Nodes(3)))
    replies = [
        answer(m, net(i + 1), n) for i, (m, n) in enumerate(zip(sent, examples, strict=True))
    ]
    with seeding.seeded(0, "noise", number):
        return strategy.aggregate_train(number, replies)


def exact_delta(epsilon: float, z: float, releases: int) -> float:
    """δ(ε) of T Gaussian releases, in closed form: one of multiplier z/√T (arXiv 1805.06530, 8)."""
    mu = math.sqrt(releases) / z
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)


def by_renyi(z: float, releases: int) -> float:
    """ε from the Rényi curve T·α/(2z²), converted as in arXiv 2004.00010, proposition 12."""
    a = np.linspace(1.0001, 256, 1_000_000)
    bound = releases * a / (2 * z**2) + np.log1p(-1 / a) - (math.log(DELTA) + np.log(a)) / (a - 1)
    return float(bound.min())


@pytest.mark.parametrize("z", [0.8, 2.0, 10.0])
@pytest.mark.parametrize("releases", [1, 30])
def test_epsilon_is_that_of_the_renyi_curve_above_the_exact_one(z: float, releases: int) -> None:
    strategy = fixed(z)
    assert accounted(strategy, DELTA, 10) is strategy
    assert spent(strategy) == 0.0
    for number in range(1, releases + 1):
        arrays, _ = one_round(strategy, number)
        assert arrays is not None
    # The accountant looks at a grid of orders, hence a little above the best of all.
    assert by_renyi(z, releases) * 0.9999 <= spent(strategy) <= by_renyi(z, releases) * 1.01
    assert exact_delta(spent(strategy), z, releases) < DELTA


def test_epsilon_grows_with_each_round_and_not_with_one_that_releases_nothing() -> None:
    for strategy in (accounted(fixed(), DELTA, 10), accounted(adaptive(), DELTA, 10)):
        seen = [spent(strategy)]
        for number in (1, 2, 3):
            one_round(strategy, number)
            seen.append(spent(strategy))
        assert seen[0] == 0.0
        assert (np.diff(seen) > 0).all()


def test_clients_that_count_unequally_are_not_released() -> None:
    with pytest.raises(ValueError, match="equal client weights"):
        one_round(accounted(fixed(), DELTA, 10), examples=(1, 2, 1))
    strategy = accounted(adaptive(), DELTA, 10)
    assert one_round(strategy, examples=(1, 2, 1)) == (None, None)
    assert spent(strategy) == 0.0


def test_adaptive_clipping_counts_the_noise_that_was_drawn() -> None:
    # All three updates are far beyond the norm of 0.1: with the count's noise off, Flower lowers
    # the norm by exp(-0.2 (1 - 0.5)), and draws its noise by that one.
    inner = adaptive(0.2)
    z, sigma = inner.noise_multiplier, inner.clipped_count_stddev
    assert (z**-2 + (2 * sigma) ** -2) ** -0.5 == pytest.approx(0.2)
    inner._noisy_fraction = lambda count, total: count / total
    strategy = accounted(inner, DELTA, 10)
    assert isinstance(strategy, Accounted)
    one_round(strategy)
    drawn = z * math.exp(-0.1)
    expected = (drawn**-2 + (2 * sigma) ** -2) ** -0.5
    assert spent(strategy) == pytest.approx(by_renyi(expected, 1), rel=0.01)


def test_of_a_rule_whose_sensitivity_nobody_knows_there_is_no_epsilon(caplog) -> None:
    strategy = fixed(strategy=FedAdam())
    assert spent(accounted(strategy, DELTA, 10)) is None
    assert accounted(FedAvg(), DELTA, 10).__class__ is FedAvg


def test_local_privacy_costs_the_client_that_answers_most() -> None:
    # Flower's mod adds σ = Δ√(2 ln(1.25/δ))/ε; ten answers are one at z = σ/(Δ√10).
    z = local_multiplier(0.5, DELTA)
    assert z == pytest.approx(math.sqrt(2 * math.log(125_000)) / 0.5)
    assert local_spent(0.5, DELTA, 0) == 0.0
    assert local_spent(0.5, DELTA, 10) == pytest.approx(by_renyi(z, 10), rel=0.01)


def test_a_resumed_run_has_spent_what_it_had_spent(tmp_path: Path) -> None:
    before, after = (accounted(fixed(), DELTA, 10) for _ in range(2))
    kept = Checkpoints(tmp_path / "a", before)
    again = Checkpoints(tmp_path / "b", after)
    one_round(before)
    memory = json.loads(json.dumps(kept.memory()[0]["accountant"]))
    assert memory["compositions"][0]["count"] == 1
    again.restore([{**kept.memory()[0], "accountant": memory}, *kept.memory()[1:]])
    assert spent(after) == spent(before) > 0
    one_round(after, 2)
    assert spent(after) > spent(before)


# --- the scope -------------------------------------------------------------------------------


def test_measured_scopes_are_those_of_the_noised_average_and_nobody_reports_one() -> None:
    strategy = Guard(FedWSA(accounted(fixed(clip=5.0), DELTA, 10), source="measured"))
    sent = strategy.configure_train(1, arrays_of(net()), ConfigRecord(), Nodes(3))
    replies = [answer(m, net(i + 1), 1) for i, m in enumerate(sent)]
    for reply in replies:
        assert set(reply.content["metrics"]) == {"num-examples", "loss"}
        assert set(reply.content["arrays"]) == set(arrays_of(net()))
    with seeding.seeded(0, "noise"):
        arrays, _ = strategy.aggregate_train(1, replies)
    wsa = strategy.strategy
    noised = WeightScope.measure(messages.to_tensors(arrays))
    torch.testing.assert_close(wsa.target.variance, noised.variance)
    again = strategy.configure_train(2, arrays, ConfigRecord(), Nodes(3))
    assert again[0].content["wsa-target"]["variance"] == wsa.target.variance.tolist()
    plain = FedWSA(FedAvg(), source="measured")
    exact, _ = one_round(plain)
    widened = noised.variance - WeightScope.measure(messages.to_tensors(exact)).variance
    assert (widened > 0).all()  # the noise, 2·5/3, is in it


def test_noised_scopes_travel_among_the_arrays_and_are_clipped_with_them() -> None:
    strategy = FedWSA(fixed(1e-12, clip=1e4), source="noised")
    sent = list(strategy.configure_train(1, arrays_of(net()), ConfigRecord(), Nodes(3)))
    first = WeightScope.measure(net())
    np.testing.assert_allclose(
        sent[0].content["arrays"]["wsa-scope"].numpy()[0], first.mean, rtol=1e-6
    )
    models = [net(i + 1) for i in range(3)]
    replies = []
    for message, model in zip(sent, models, strict=True):
        alignment = ScopeAlignment(model, message.content)
        assert alignment.end() == {}
        content = {"arrays": arrays_of(model), "metrics": MetricRecord({"num-examples": 1})}
        content["arrays"] = ArrayRecord(
            {**content["arrays"], **messages.to_arrays(alignment.arrays())}
        )
        replies.append(Message(RecordDict(content), reply_to=message))
    arrays, _ = strategy.aggregate_train(1, replies)
    assert "wsa-scope" not in arrays
    # Hardly any noise and no clipping: the plain fused scope.
    expected = WeightScope.fuse([WeightScope.measure(m) for m in models], [1, 1, 1], "moments")
    torch.testing.assert_close(strategy.target.mean, expected.mean, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(strategy.target.variance, expected.variance, atol=1e-6, rtol=1e-4)
    # Noise far above any scope: its variances stay possible.
    loud = FedWSA(fixed(1e3, clip=1.0), source="noised")
    list(loud.configure_train(1, arrays_of(net()), ConfigRecord(), Nodes(3)))
    loud.aggregate_train(1, replies)
    assert (loud.target.variance >= 1e-8).all()


# --- whole runs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def run(cache: str, *overrides: str):
    fleet = ["clients.count=4", "local.epochs=1", "model.width=0.1", "runtime.workers=1"]
    return compose([*fleet, f"cache_dir={cache}", "partition=iid", "rounds=2", *overrides])


class Listener(type(clients.app.build())):
    """Our ClientApp, which writes down the names of all that its clients say."""

    def __init__(self, config, file: Path) -> None:
        super().__init__()
        honest = clients.app.build(config)

        def spoken(message, context):
            reply = honest(message, context)
            said = {k: sorted(record) for k, record in reply.content.items()}
            with file.open("a") as opened:
                opened.write(json.dumps({message.metadata.message_type: said}) + "\n")
            return reply

        for stage in (self.train, self.evaluate, self.query):
            stage()(spoken)


@pytest.mark.parametrize(
    "privacy",
    [
        ["strategy=dp_server_fixed"],
        ["strategy=dp_client_adaptive"],
        ["privacy.local={clipping_norm: 1.0, epsilon: 5.0}"],
        ["strategy=dp_client_fixed", "wsa.private=noised"],
    ],
    ids=["server", "client", "local", "noised"],
)
def test_clients_of_a_private_run_say_nothing_beside_their_model(
    privacy: list[str], cache: str, tmp_path: Path
) -> None:
    config = run(cache, "wsa=on", *privacy)
    result = simulate(config, tmp_path / "run", Listener(config, tmp_path / "said"))
    assert result["failed"] == 0
    said = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
    trained = [s["train"] for s in said if "train" in s]
    assert len(trained) == 2 * 4
    assert not any("evaluate" in s for s in said)
    allowed = {"num-examples", "norm_bit"}  # clipped or not: accounted for
    assert all(set(t) == {"arrays", "metrics"} for t in trained)
    assert all(set(t["metrics"]) <= allowed for t in trained)
    noised = "wsa.private=noised" in privacy
    assert all(("wsa-scope" in t["arrays"]) == noised for t in trained)
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["train_loss"].isna().all()
    assert 0 < history["epsilon"][0] < history["epsilon"][1] == result["epsilon"]
    # Four clients that each count once: the target is the scope of what was released.
    scopes = pd.read_csv(tmp_path / "run" / "scopes.csv")
    if not noised:
        np.testing.assert_array_equal(scopes["fused_std"], scopes["averaged_std"])


def test_secret_noise_does_not_repeat_and_keyed_noise_does(cache: str, tmp_path: Path) -> None:
    losses = {}
    for name, noise in (("a", "repeatable"), ("b", "repeatable"), ("c", "secret")):
        config = run(cache, "strategy=dp_server_fixed", "rounds=1", f"privacy.noise={noise}")
        losses[name] = simulate(config, tmp_path / name)["loss"]
    assert losses["a"] == losses["b"] != losses["c"]


class Namesake(FedAvg):
    """Whose parameters have the names of a privacy wrapper's, and mean other things."""

    def __init__(self, strategy: str = "mine", noise_multiplier: float = 0.0, **own: Any) -> None:
        super().__init__(**own)
        self.strategy, self.clipping_norm = strategy, 1.0


class Noisy(FedAvg):
    """Adds noise by a rule of its own."""

    traits = Traits(adds_noise=True)


class Derived(DifferentialPrivacyServerSideFixedClipping):
    """With other parameters."""

    def __init__(self, **own: Any) -> None:
        super().__init__(FedAvg(), 1.0, 1.0, **own)


def made(**own: Any) -> Derived:
    return Derived(**own)


def said(**own: Any) -> Derived:
    return Derived(**own)


said.traits = Traits(adds_noise=True)


@pytest.mark.parametrize(
    ("name", "private"),
    [("Namesake", False), ("Noisy", True), ("Derived", True), ("said", True), ("made", False)],
)
def test_a_strategy_is_private_by_its_class_or_by_what_it_says(name: str, private: bool) -> None:
    own = [f"strategy._target_={__name__}.{name}", "strategy.args={}"]
    assert compose(own).private is private
    inner = f"strategy.args={{strategy: {{_target_: {__name__}.{name}}}}}"
    assert compose([f"strategy._target_={__name__}.Namesake", inner]).private is private


def test_so_do_the_aligning_and_the_guarding_strategy() -> None:
    assert FedWSA(Namesake()).source == "reported"
    assert FedWSA(Noisy()).source == "measured"
    Guard(Namesake(), max_norm_ratio=3)
    with pytest.raises(ValueError, match="does not go with privacy wrappers"):
        Guard(Noisy(), max_norm_ratio=3)


def test_nobody_knows_the_price_of_a_stranger_s_noise(caplog) -> None:
    noisy = Noisy()
    assert accounted(noisy, DELTA, 3) is noisy
    assert "nobody knows the ε of Noisy" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [
                f"strategy._target_={__name__}.made",
                "strategy.args={num_sampled_clients: 4}",
            ],
            r"made makes a strategy that adds noise: say made.traits = Traits\(adds_noise=True\)",
        ),
        (
            ["strategy=dp_server_fixed", "privacy.local={clipping_norm: 1.0, epsilon: 1.0}"],
            "privacy.local does not go with a strategy that adds noise itself",
        ),
        (
            ["guard.repeats=1", "privacy.local={clipping_norm: 1.0, epsilon: 1.0}"],
            "privacy.local needs guard.repeats=0",
        ),
        (["privacy.local={clipping_norm: 0, epsilon: 1.0}"], "privacy.local.clipping_norm"),
        (["privacy.delta=1"], "privacy.delta"),
        (
            ["strategy=scaffold", "privacy.local={clipping_norm: 1.0, epsilon: 1.0}"],
            "Scaffold needs more of a client than one noised model",
        ),
        (
            ["strategy=qfedavg", "privacy.local={clipping_norm: 1.0, epsilon: 1.0}"],
            "QFedAvg needs the clients' losses: privacy.reports=clear",
        ),
        (["strategy=dp_server_fixed", "guard.max_norm_ratio=3"], "guard: max_norm_ratio does not"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    overrides: list[str], message: str, cache: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        simulate(run(cache, *overrides), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
