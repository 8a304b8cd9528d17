"""Feature skew: what is drawn, what it does to images, and that it reaches the clients."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from clients import samples as own_samples
from clients.network import Network, network_for
from clients.received import Received
from experiments.commands.simulate import simulate
from fedwsa.config.component import Component, ConfigError
from fedwsa.data.federated import FederatedData, open_federated
from fedwsa.data.skew import Colour, Noise, Rotation, drawn, open_skew, skewed
from fedwsa.models import build_model
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config
from fedwsa.wire.names import POOLED

IMAGES = torch.randint(
    0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
RANDOM = torch.Generator()
OPTIONS: dict[str, dict[str, object]] = {
    "NoSkew": {},
    "Noise": {"level": 0.2},
    "Rotation": {"degrees": 30.0, "angles": None},
    "Colour": {"shift": 0.2},
}


def skew(name: str, **changes: object) -> Component:
    return Component.of(f"fedwsa.data.skew.{name}", **OPTIONS[name]).replace(**changes)


def seen(component: Component, client: int, seed: int = 0, held: bool = False) -> Tensor:
    return skewed(component, IMAGES, seed, client, held)


@pytest.mark.parametrize("name", ["Noise", "Rotation", "Colour"])
def test_a_client_s_conditions_follow_from_seed_and_client(name: str) -> None:
    component = skew(name)
    before = IMAGES.clone()
    assert torch.equal(seen(component, 3), seen(component, 3))
    for other in (seen(component, 4), seen(component, 3, seed=1)):
        assert not torch.equal(seen(component, 3), other)
    assert torch.equal(IMAGES, before)
    assert seen(component, 3).dtype == torch.uint8
    assert drawn(component, 0, 5)[:3] == drawn(component, 0, 3)


def test_nothing_is_the_images_themselves() -> None:
    assert seen(skew("NoSkew"), 0) is IMAGES
    assert drawn(skew("NoSkew"), 0, 2) == [{}, {}]
    for component in (
        skew("Noise", level=0.0),
        skew("Rotation", degrees=0.0),
        skew("Colour", shift=0.0),
    ):
        assert torch.equal(seen(component, 0), IMAGES)


def test_noise_has_the_level_that_the_client_drew() -> None:
    grey = torch.full((200, 1, 16, 16), 128, dtype=torch.uint8)
    noisy = Noise(level=1.0).apply(grey, {"level": 0.1}, RANDOM.manual_seed(0)).float()
    # 25.5 in pixels; rounding to whole ones adds a variance of 1/12.
    assert noisy.std().item() == pytest.approx((25.5**2 + 1 / 12) ** 0.5, rel=0.01)
    assert noisy.mean().item() == pytest.approx(128, abs=0.5)
    levels = [own["level"] for own in drawn(skew("Noise", level=0.3), 0, 2000)]
    assert 0 <= min(levels) < 0.01
    assert 0.29 < max(levels) <= 0.3


def test_training_and_hold_out_have_noise_of_their_own() -> None:
    component = skew("Noise")
    assert not torch.equal(seen(component, 3), seen(component, 3, held=True))


def test_quarter_turns_are_exact() -> None:
    turn = Rotation(degrees=0.0, angles=None)
    for quarters in range(-1, 4):
        turned = turn.apply(IMAGES, {"angle": 90.0 * quarters}, RANDOM)
        assert torch.equal(turned, torch.rot90(IMAGES, quarters, (2, 3)))


def test_a_turn_and_its_opposite_leave_the_middle_of_a_smooth_image() -> None:
    # A slope survives bilinear interpolation exactly: v = 4 x + 2 y, turned by a about the centre.
    size, angle = 17, 30.0
    y, x = torch.meshgrid(torch.arange(size) - 8.0, torch.arange(size) - 8.0, indexing="ij")
    image = (100 + 4 * x + 2 * y).round().to(torch.uint8)[None, None]
    turned = Rotation(degrees=0.0, angles=None).apply(image, {"angle": angle}, RANDOM)[0, 0]
    # Counter-clockwise in the picture, whose y runs down: a pixel shows what stood at its own
    # place turned clockwise by the angle.
    cos, sin = torch.tensor(angle).deg2rad().cos(), torch.tensor(angle).deg2rad().sin()
    expected = 100 + 4 * (cos * x - sin * y) + 2 * (sin * x + cos * y)
    middle = (x.square() + y.square()).sqrt() <= 7
    assert (turned[middle].float() - expected[middle]).abs().max() <= 1.0


def test_turning_keeps_angles_where_images_are_not_square() -> None:
    # A bright bar along the width of a wide image, turned by 90°: it stands upright in the middle.
    image = torch.zeros(1, 1, 9, 17, dtype=torch.uint8)
    image[..., 4, :] = 255
    turned = Rotation(degrees=0.0, angles=None).apply(image, {"angle": 90.0}, RANDOM)[0, 0]
    assert (turned[:, 8] == 255).all()
    assert int((turned > 0).sum()) == 9


def test_angles_are_drawn_from_the_list() -> None:
    angles = [0.0, 90.0, 180.0, 270.0]
    found = {own["angle"] for own in drawn(skew("Rotation", angles=angles), 0, 100)}
    assert found == set(angles)


def test_colours_are_shifted_and_cut_off_at_the_ends() -> None:
    images = torch.tensor([10, 100, 250], dtype=torch.uint8).view(1, 3, 1, 1)
    own = {"red": -0.2, "green": 0.1, "blue": 0.1}
    # -51, +25.5 and +25.5 of 255; 125.5 is rounded to the even number.
    assert Colour(shift=0.2).apply(images, own, RANDOM).flatten().tolist() == [0, 126, 255]
    grey = images[:, 1:2]
    assert Colour(shift=0.2).apply(grey, own, RANDOM).flatten().tolist() == [49]


class Mirror:
    """A stranger's: every second client holds its camera the other way round."""

    def draw(self, random) -> dict[str, float]:
        return {"mirrored": float(random.integers(2))}

    def apply(self, pixels, drawn, random) -> Tensor:
        return pixels.flip(3) if drawn["mirrored"] else pixels


def test_a_stranger_s_skew_goes_by_its_path() -> None:
    component = Component.of("tests.data.test_skew.Mirror")
    for client, own in enumerate(drawn(component, 0, 8)):
        expected = IMAGES.flip(3) if own["mirrored"] else IMAGES
        assert torch.equal(seen(component, client), expected)


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (skew("Noise", level=-1.0), r"skew\.level: input should be greater than or equal to 0"),
        (skew("Rotation", angles=[]), r"skew\.angles: .*at least 1 item"),
        (Component.of("fedwsa.data.skew.Blur"), r"skew\._target_: .* has no Blur"),
        (Component.of("fractions.Fraction"), r"skew\._target_: .* no draw and apply"),
    ],
)
def test_what_is_no_skew_is_refused(component: Component, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_skew(component)


def test_inputs_that_are_no_images_are_refused() -> None:
    text = torch.zeros(5, 80, dtype=torch.uint8)
    open_skew(skew("NoSkew"), text)
    with pytest.raises(ConfigError, match="skew: Colour changes images, and this data set has no"):
        open_skew(skew("Colour"), text)


def network_of(config: Config, data: FederatedData) -> Network:
    images = data.whole
    model = build_model(config.model, images.shape, images.classes, 0)
    return network_for(
        config.model, images.shape, images.classes, "cpu", dict(model.state_dict()), seed=0
    )


def test_clients_train_on_what_they_see_and_the_test_set_is_left_alone(tmp_path: Path) -> None:
    words = ["clients.count=4", "partition=iid", f"cache_dir={tmp_path}"]
    config = compose([*words, "skew=colour"])
    data = open_federated(config.data_spec)
    pool, network = data.whole.train.inputs, network_of(config, data)
    received = Received(data, network, "cpu", {}, {}, {}, [])
    samples = own_samples.samples_of(config, received, (1, 2))
    chosen, held = data.split(2)
    assert torch.equal(samples.inputs, skewed(config.skew, pool[chosen], 0, 2, held=False))
    assert not torch.equal(samples.inputs, pool[chosen])
    assert torch.equal(samples.labels, data.whole.train.labels[chosen])
    assert torch.equal(own_samples.samples_of(config, received, (7, 2)).inputs, samples.inputs)
    own = own_samples.seen(config, data, 2, held=True)
    assert torch.equal(own.inputs, skewed(config.skew, pool[held], 0, 2, held=True))
    assert torch.equal(own.labels, data.whole.train.labels[held])


def test_the_centralised_reference_pools_what_the_clients_see(tmp_path: Path) -> None:
    config = compose(["clients.count=4", "partition=iid", f"cache_dir={tmp_path}", "skew=noise"])
    data = open_federated(config.data_spec)
    seen_by = [own_samples.seen(config, data, k, held=False).inputs for k in range(4)]
    content = {POOLED: {POOLED: 1.0}}
    received = Received(data, network_of(config, data), "cpu", content, {}, {}, [])
    assert torch.equal(own_samples.samples_of(config, received, (1, 0)).inputs, torch.cat(seen_by))


def test_a_run_with_skew_trains_alone_and_in_cohorts_alike_and_says_who_drew_what(
    tmp_path: Path,
) -> None:
    words = ["clients.count=6", "partition=iid", "rounds=2", f"cache_dir={tmp_path / 'c'}"]
    words += ["local.epochs=1", "evaluation.clients_every=1"]

    def run(name: str, *more: str) -> pd.DataFrame:
        simulate(compose([*words, *more]), tmp_path / name)
        return pd.read_csv(tmp_path / name / "history.csv")

    alone = run("alone", "skew=rotation", "skew.angles=[90.0,180.0]", "runtime.cohort=off")
    together = run("together", "skew=rotation", "skew.angles=[90.0,180.0]", "runtime.cohort=3")
    plain = run("plain", "runtime.cohort=off")
    same = ["accuracy", "loss", "client_accuracy_mean"]
    pd.testing.assert_frame_equal(alone[same], together[same], rtol=1e-4)
    assert alone["loss"].iloc[-1] > plain["loss"].iloc[-1]  # the test images are not turned
    table = pd.read_csv(tmp_path / "alone" / "skew.csv")
    assert table["client"].tolist() == list(range(6))
    assert set(table["angle"]) <= {90.0, 180.0}
    assert not (tmp_path / "plain" / "skew.csv").exists()
