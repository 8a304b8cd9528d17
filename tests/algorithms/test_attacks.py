"""What each attack's paper says of it, on updates of a few entries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from fedwsa.algorithms.attacks.attack import Known, attackers
from fedwsa.algorithms.attacks.data import Backdoor, LabelFlip
from fedwsa.algorithms.attacks.model import (
    ALIE,
    IPM,
    FreeRider,
    Gaussian,
    MinMax,
    MinSum,
    Scaled,
    SignFlip,
)
from fedwsa.config.component import ConfigError
from fedwsa.data.examples import Examples
from fedwsa.schema.compose import compose


def known(own: int = 3, honest: int = 7, entries: int = 5, seed: int = 0) -> Known:
    random = torch.Generator().manual_seed(seed)
    updates = torch.randn(own + honest, entries, generator=random) + 1
    return Known(updates[:own], updates[own:], random)


def test_one_that_is_scaled_by_the_clients_is_the_average_of_clients_that_stand_still() -> None:
    still = Known(torch.tensor([[3.0, -1.0]]), torch.zeros(4, 2), torch.Generator())
    sent = torch.cat([Scaled(None).forge(still), still.honest])
    assert torch.equal(sent.mean(0), still.own[0])


def test_a_sign_flip_of_half_the_clients_stops_the_average() -> None:
    own = torch.tensor([[1.0, 2.0]])
    sent = SignFlip(1.0).forge(Known(own, own, torch.Generator()))
    assert torch.equal((sent + own) / 2, torch.zeros(1, 2))


def test_noise_has_no_direction_and_the_length_of_an_honest_update() -> None:
    of = known(entries=20_000)
    sent = Gaussian(2.0).forge(of)
    rms = of.own.square().mean(1).sqrt()
    torch.testing.assert_close(sent.square().mean(1).sqrt(), 2 * rms, rtol=0.03, atol=0)
    assert torch.cosine_similarity(sent, of.own).abs().max() < 0.04  # 5 / √20,000
    assert not torch.equal(sent[0], sent[1])


def test_a_free_rider_sends_back_what_it_got() -> None:
    assert torch.equal(FreeRider(0.0).forge(known()), torch.zeros(3, 5))


@pytest.mark.parametrize(("clients", "liars"), [(50, 24), (50, 10), (10, 2), (11, 3)])
def test_alie_goes_as_far_as_its_paper_s_quantile(clients: int, liars: int) -> None:
    own = torch.zeros(liars, 1)
    own[0::2], own[1::2] = 1.0, 3.0
    sent = ALIE(None).forge(Known(own, torch.zeros(clients - liars, 1), torch.Generator()))
    supporters = clients // 2 + 1 - liars
    z = norm.ppf((clients - liars - supporters) / (clients - liars))
    mean, spread = np.mean(own.numpy()), np.std(own.numpy())
    np.testing.assert_allclose(sent.numpy(), [mean - z * spread], rtol=1e-5)


def test_alie_alone_or_among_equals_is_honest_and_never_looks_at_the_others() -> None:
    of = known(own=1)
    assert torch.equal(ALIE(None).forge(of), of.own[0])
    blind = Known(known().own, torch.full((7, 5), torch.nan), torch.Generator())
    assert torch.equal(ALIE(1.0).forge(blind), ALIE(1.0).forge(known()))


@pytest.mark.parametrize(("scale", "backwards"), [(7 / 3 - 0.01, False), (7 / 3 + 0.01, True)])
def test_ipm_turns_the_average_from_honest_by_liars_on(scale: float, backwards: bool) -> None:
    of = known(own=3, honest=7)
    sent = IPM(scale).forge(of).expand(3, -1)
    average = torch.cat([sent, of.honest]).mean(0)
    assert bool(average @ of.honest.mean(0) < 0) == backwards


@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
@pytest.mark.parametrize("kind", [MinMax, MinSum])
def test_the_farthest_that_hides_hides_and_no_farther(kind, direction: str) -> None:
    of = known(entries=30)
    attack = kind(direction)
    sent, updates = attack.forge(of).double(), of.all.double()
    mean = updates.mean(0)
    assert attack.hides(mean + 0.9999 * (sent - mean), updates)
    assert not attack.hides(mean + 1.001 * (sent - mean), updates)
    assert (sent - mean) @ mean < 0 or direction == "std"
    # By hand: no honest update is as far from the others as the limit allows.
    apart = torch.cdist(updates, updates)
    if kind is MinMax:
        assert float((sent - updates).norm(dim=1).max()) == pytest.approx(float(apart.max()), 1e-4)
    else:
        most = float(apart.square().sum(1).max())
        assert float((sent - updates).square().sum()) == pytest.approx(most, 1e-4)


def test_labels_are_mirrored_and_inputs_are_not() -> None:
    own = Examples(torch.arange(4.0)[:, None], torch.tensor([0, 1, 8, 9]))
    poisoned = LabelFlip().poison(own, 10, torch.Generator())
    assert poisoned.labels.tolist() == [9, 8, 1, 0]
    assert torch.equal(poisoned.inputs, own.inputs)
    assert torch.equal(LabelFlip().poison(poisoned, 10, torch.Generator()).labels, own.labels)


def test_who_attacks_goes_by_the_seed_alone() -> None:
    found = [attackers(20, 0.25, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert all(len(of) == 5 and of <= set(range(20)) for of in found)
    assert attackers(20, 0.0, 0) == frozenset()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attack=ipm", "attack.share=1"], "attack.share"),
        (
            ["attack=ipm", "privacy.local={clipping_norm: 1.0, epsilon: 0.5}"],
            "attack does not go with privacy.local",
        ),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(words)


def pictures(count: int) -> Examples:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 200, (count, 1, 8, 8), generator=random, dtype=torch.uint8)
    return Examples(pixels, torch.arange(count) % 10)


def test_a_backdoor_marks_a_part_of_the_images_and_leaves_the_rest() -> None:
    own, attack = pictures(1000), Backdoor(target=7, size=2, part=0.3)
    found = attack.poison(own, 10, torch.Generator().manual_seed(1))
    marked = (found.inputs[:, 0, 6:, 6:] == 255).flatten(1).all(1)
    assert 0.3 - 3 * 0.0145 < marked.float().mean() < 0.3 + 3 * 0.0145  # √(0.3·0.7/1000)
    assert set(found.labels[marked].tolist()) == {7}
    assert torch.equal(found.labels[~marked], own.labels[~marked])
    assert torch.equal(found.inputs[~marked], own.inputs[~marked])
    rest = torch.ones(8, 8, dtype=torch.bool)
    rest[6:, 6:] = False
    assert torch.equal(found.inputs[:, :, rest], own.inputs[:, :, rest])
    assert int(own.inputs.max()) < 200  # the client's own images are as they were


def test_it_is_measured_on_images_of_other_classes() -> None:
    aimed = Backdoor(target=7, size=2, part=0.3).aimed(pictures(100))
    assert aimed is not None
    assert len(aimed) == 90
    assert set(aimed.labels.tolist()) == {7}
    assert bool((aimed.inputs[:, 0, 6:, 6:] == 255).all())


def test_alie_says_where_it_does_nothing() -> None:
    assert "one alone" in str(ALIE(None).idle(10, 1))
    assert "z is 0" in str(ALIE(None).idle(10, 2))
    assert ALIE(None).idle(10, 3) is None
    assert ALIE(1.5).idle(10, 2) is None
    assert SignFlip(1.0).idle(10, 1) is None


def test_without_an_attack_nobody_attacks_whatever_a_sweep_s_share() -> None:
    assert compose(["attack=none", "attack.share=0.3"]).attackers == frozenset()
    assert len(compose(["attack=ipm", "attack.share=0.3"]).attackers) == 3
