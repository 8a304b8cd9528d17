"""Who is asked to train, by samples, turns, losses and utility."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.commands.simulate import simulate
from fedwsa.config.component import ConfigError
from fedwsa.fleet.samplers import Known, by_size, cyclic, power_of_choice, uniform, utility
from fedwsa.schema.compose import compose

SIZES = [10, 20, 30, 40]


def known(
    there: Sequence[int] = range(4),
    number: int = 1,
    losses: Mapping[int, float] | None = None,
    answered: Mapping[int, int] | None = None,
    seconds: Sequence[float] = (1, 1, 1, 1),
) -> Known:
    def draw(of_the_run: bool) -> torch.Generator:
        return torch.Generator().manual_seed(0 if of_the_run else number)

    losses = losses or {}
    return Known(
        number,
        list(there),
        4,
        lambda k: SIZES[k % 4],
        lambda k: seconds[k],
        losses,
        dict.fromkeys(losses, 1) if answered is None else answered,
        draw,
    )


@pytest.mark.parametrize(("sampler", "shares"), [(uniform, [1, 1, 1, 1]), (by_size, SIZES)])
def test_a_single_client_is_drawn_by_its_share(sampler, shares: list[int]) -> None:
    drawn = Counter(sampler(1, known(number=n))[0] for n in range(4000))
    for client, share in enumerate(shares):
        p = share / sum(shares)
        assert drawn[client] / 4000 == pytest.approx(p, abs=4 * (p * (1 - p) / 4000) ** 0.5)


def test_the_second_by_its_share_of_those_that_are_left() -> None:
    drawn = Counter(tuple(by_size(2, known(number=n))) for n in range(4000))
    p = 0.4 * (0.3 / 0.6)  # client 3 first, then 2 of the other 60
    assert drawn[3, 2] / 4000 == pytest.approx(p, abs=4 * (p * (1 - p) / 4000) ** 0.5)


def test_every_client_has_its_turn_once_in_a_cycle_and_who_was_away_is_next() -> None:
    answered: dict[int, int] = {}
    rounds = []
    for number in range(1, 5):
        chosen = cyclic(2, known(number=number, answered=answered))
        answered |= dict.fromkeys(chosen, number)
        rounds.append(chosen)
    assert rounds[:2] == rounds[2:]
    assert sorted(rounds[0] + rounds[1]) == [0, 1, 2, 3]
    away = rounds[0][0]
    assert away not in cyclic(2, known([k for k in range(4) if k != away], 5, answered=answered))
    answered |= dict.fromkeys(rounds[0][1:] + rounds[1], 5)
    assert cyclic(1, known(number=6, answered=answered)) == [away]


def test_power_of_choice_takes_the_largest_losses_of_its_candidates_and_who_has_none() -> None:
    losses = {0: 3.0, 1: 1.0, 2: 2.0}
    everybody = known(losses=losses)
    assert power_of_choice(3, everybody, candidates=2.0) == [3, 0, 2]
    for number in range(20):  # as many candidates as places: by size
        some = known(number=number, losses=losses)
        assert sorted(power_of_choice(2, some, candidates=1.0)) == sorted(by_size(2, some))


def test_utility_explores_who_never_trained_and_goes_by_samples_times_loss() -> None:
    losses = {0: 4.0, 1: 1.0}  # 40 and 20
    lately = dict.fromkeys(losses, 10**9)  # no bonus
    for number in range(20):
        chosen = utility(
            2, known(number=number, losses=losses), explore=0.5, seconds=None, penalty=2
        )
        assert len({*chosen} & {2, 3}) == 1
    drawn = Counter(
        utility(1, known([0, 1], n, losses, lately), explore=0.0, seconds=None, penalty=2)[0]
        for n in range(2, 4002)
    )
    assert drawn[0] / 4000 == pytest.approx(2 / 3, abs=0.03)
    # A client that takes four times as long as wished counts a sixteenth.
    slow = Counter(
        utility(1, known([0, 1], n, losses, lately, (4, 1)), explore=0.0, seconds=1.0, penalty=2)[0]
        for n in range(2, 4002)
    )
    assert slow[0] / 4000 == pytest.approx(2.5 / 22.5, abs=0.02)


def test_utility_prefers_who_was_not_seen_for_long() -> None:
    losses, answered = {0: 2.0, 1: 1.0}, {0: 99, 1: 1}  # 20 each
    drawn = Counter(
        utility(1, known([0, 1], n, losses, answered), explore=0.0, seconds=None, penalty=2)[0]
        for n in range(100, 4100)
    )
    assert drawn[1] / 4000 > 0.6


@pytest.mark.parametrize("count", [1, 4, 9])
def test_nobody_is_asked_twice_and_no_more_than_there_are(count: int) -> None:
    samplers = [
        uniform,
        by_size,
        cyclic,
        lambda n, k: power_of_choice(n, k, candidates=2.0),
        lambda n, k: utility(n, k, explore=0.2, seconds=None, penalty=2.0),
    ]
    for sampler in samplers:
        chosen = sampler(count, known(losses={1: 1.0}))
        assert len(chosen) == len({*chosen}) == min(count, 4)


SMALL = ["clients.count=6", "clients.fraction=0.5", "rounds=4", "local.epochs=1", "model.width=0.1"]


@pytest.mark.parametrize("name", ["by_size", "cyclic", "power_of_choice", "utility"])
def test_a_run_asks_whom_its_sampler_chooses(name: str, tmp_path: Path) -> None:
    words = [*SMALL, f"sampler={name}", f"cache_dir={tmp_path}/c", "clients.unseen=0.34"]
    config = compose(words)
    simulate(config, tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "history.csv", dtype={"cohort": str})
    cohorts = [{int(k) for k in cohort.split()} for cohort in table["cohort"]]
    assert [len(cohort) for cohort in cohorts] == [2] * 4  # half of the four that are not unseen
    assert not set.union(*cohorts) & config.unseen
    if name == "cyclic":
        assert len(cohorts[0] | cohorts[1]) == 4
        assert cohorts[:2] == cohorts[2:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sampler=utility strategy=dp_server_fixed", r"sampler: the price of privacy"),
        ("sampler=cyclic strategy=centralised", r"sampler: Centralised asks no client"),
        ("sampler=power_of_choice sampler.candidates=0.5", r"sampler\.candidates"),
        ("sampler._target_=tests.fleet.nothing", r"sampler\._target_"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_line(
    words: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(compose([*SMALL, f"cache_dir={tmp_path}/c", *words.split()]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
