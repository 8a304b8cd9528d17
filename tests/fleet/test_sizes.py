"""Who gets which size: counts and costs worked out by hand."""

from __future__ import annotations

import shlex
from collections import Counter

import pytest
from torch import nn

from fedwsa.config.component import ConfigError
from fedwsa.fleet.size_rules import by_share, by_speed, forward_flops
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from fedwsa.schema.fleet import Fleet

DIGITS = (ImageShape(1, 8, 8), 10)


@pytest.mark.parametrize(
    ("shares", "clients", "counts"),
    [
        ({"S": 0.5, "M": 0.3, "L": 0.2}, 10, {"S": 5, "M": 3, "L": 2}),
        # Quotas 3.5, 2.1, 1.4: five are whole, the two left go to the remainders 0.5 and 0.4.
        ({"S": 0.5, "M": 0.3, "L": 0.2}, 7, {"S": 4, "M": 2, "L": 1}),
        ({"S": 5, "M": 3, "L": 2}, 7, {"S": 4, "M": 2, "L": 1}),
        # Equal remainders: who is named first.
        ({"S": 1, "L": 1}, 3, {"S": 2, "L": 1}),
        ({"L": 1, "S": 1}, 3, {"S": 1, "L": 2}),
        ({"S": 1.0, "L": 0}, 3, {"S": 3}),
        # 0.1 · 3 is more than 0.3 in floating point; as written it is 3 of 30.
        ({"S": 0.1, "M": 0.2, "L": 0.7}, 30, {"S": 3, "M": 6, "L": 21}),
    ],
)
def test_shares_become_counts_by_largest_remainder(shares, clients, counts) -> None:
    assert Counter(by_share(shares, clients, seed=0)) == counts


def test_who_gets_a_size_is_drawn_by_the_seed() -> None:
    shares = {"S": 0.5, "L": 0.5}
    assert by_share(shares, 40, 1) == by_share(shares, 40, 1)
    assert by_share(shares, 40, 1) != by_share(shares, 40, 2)
    assert by_share(shares, 40, 1) != ["S"] * 20 + ["L"] * 20


def test_a_device_gets_the_largest_size_that_it_carries() -> None:
    costs = {"L": 100.0, "S": 6.0, "M": 25.0}
    assert by_speed(costs, [0.25] * 3) == ["M"] * 3
    assert by_speed(costs, [0.2499] * 3) == ["S"] * 3
    assert by_speed(costs, [2.0] * 2) == ["L"] * 2
    assert by_speed(costs, [0.01] * 2) == ["S"] * 2  # nobody gets less than the smallest
    assert by_speed(costs, [0.3, 1.0, 0.1]) == ["M", "L", "S"]


def test_flops_of_a_forward_pass() -> None:
    # A multiply-add is two operations: 2·(64·200 + 200·10); 2·9·3·8·(4·4) for a 3x3 convolution.
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))
    assert forward_flops(dense, ImageShape(1, 8, 8)) == 2 * (64 * 200 + 200 * 10)
    assert forward_flops(nn.Conv2d(3, 8, 3, padding=1), ImageShape(3, 4, 4)) == 2 * 9 * 3 * 8 * 16
    assert dense.training
    config = compose(["model=resnet20", "model.norm=static", "model.width=0.25"])
    shape = ImageShape(3, 32, 32)
    assert forward_flops(build_model(config.model, shape, 10, seed=0), shape) > 0


def test_a_size_replaces_arguments_of_the_model() -> None:
    config = compose(["sizes.XL={width: 2.0, depth: 8}", "sizes.S.width=0.3", "model.depth=4"])
    assert config.model_of("XL").arguments == {"width": 2.0, "depth": 8}
    assert config.model_of("S").arguments == {"width": 0.3, "depth": 4}
    assert config.model_of(None) == config.model_of("model") == config.model
    assert config.size_names == ["model"]
    assert Fleet(config).sizes(*DIGITS) == ["model"] * 10
    with pytest.raises(ConfigError, match="there is no size XS; there are S, M, L, XL, model"):
        config.model_of("XS")


def test_sizes_by_list_and_by_speed() -> None:
    listed = compose(["clients.sizes=[S,L,model]", "clients.count=3"])
    assert Fleet(listed).sizes(*DIGITS) == ["S", "L", "model"]
    assert listed.size_names == ["S", "L", "model"]
    # 64·w + w·w + w·10 with w = 50, 100, 200: 6200, 17,400, 54,800, so M is 0.3175 of L.
    for speed, size in ((0.32, "M"), (0.31, "S"), (1.0, "L")):
        fast = compose(["clients.sizes=speed", f"clients.speeds=[{speed}]", "clients.count=2"])
        assert Fleet(fast).sizes(*DIGITS) == [size, size]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "'clients.sizes={S: 0.5, Q: 0.5}'",
            "clients.sizes: there is no size Q; there are S, M, L",
        ),
        ("'clients.sizes={S: 0, L: 0}'", "clients.sizes: the shares must have a positive sum"),
        ("'clients.sizes={S: -1, L: 2}'", "clients.sizes: the share of S must be zero or a posit"),
        ("'clients.sizes={S: much}'", "clients.sizes: the share of S must be zero or a positive"),
        (
            "'clients.sizes={S: 0.99, L: 0.01}'",
            "clients.sizes: a share of 0.01 for L is none of 10 clients",
        ),
        ("'clients.sizes=[S,L]'", "clients.sizes: 2 sizes are listed for 10 clients"),
        ("clients.sizes=fast", "clients.sizes: must be null, speed, shares as {S: 0.5, L: 0.5}"),
        ("'clients.speeds=[]'", "clients.speeds: list should have at least 1 item"),
        ("'sizes.model={width: 1}'", "sizes: 'model' cannot name a size"),
        ("'sizes={a/b: {width: 1}}'", "sizes: 'a/b' cannot name a size"),
        ("sizes.S._target_=torch.nn.Linear", "sizes: S._target_: all sizes are of one kind"),
        ("sizes.S=3", "sizes.S: must be a group of keys"),
    ],
)
def test_wrong_sizes_are_one_line(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(shlex.split(overrides))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
