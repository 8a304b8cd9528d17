"""Feature skew: what a client's own sensor does to its images.

A client draws its conditions once, keyed by (seed, client), and all its images are seen under
them, in training and on its hold-out; the global test set is not touched. A skew is a class with
two methods, found by the path in ``conf/skew/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Protocol

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fedwsa import seeding
from fedwsa.config.blame import blaming
from fedwsa.config.component import Component, ConfigError, build
from fedwsa.remembered import in_run


class Skew(Protocol):
    """Conditions that differ from client to client; made from the keys of its yaml."""

    def draw(self, random: np.random.Generator) -> dict[str, float]:
        """A client's conditions, by name; none, if it sees its images as they are."""

    def apply(self, pixels: Tensor, drawn: Mapping[str, float], random: torch.Generator) -> Tensor:
        """The images ``(n, C, H, W)``, uint8, as this client sees them: a new tensor.

        ``random`` is keyed by the client, and the same in all rounds.
        """


class NoSkew:
    """Every client sees its images as they are."""

    def draw(self, random: np.random.Generator) -> dict[str, float]:
        """No figures: a client's images are not changed."""
        return {}

    def apply(self, pixels: Tensor, drawn: Mapping[str, float], random: torch.Generator) -> Tensor:
        """The same images."""
        return pixels


class Noise:
    """Gaussian noise, its level drawn for each client.

    Parameters
    ----------
    level
        The largest standard deviation, of pixels in [0, 1]; a client's is uniform below it.

    Notes
    -----
    Source: arXiv 2102.02079, section 3.2 (there the levels are evenly spaced). The noise of an
    image stays the same in all rounds: it is the data that is noisy.
    """

    def __init__(self, *, level: NonNegativeFloat) -> None:
        self.level = level

    def draw(self, random: np.random.Generator) -> dict[str, float]:
        """The client's standard deviation."""
        return {"level": random.uniform(0.0, self.level)}

    def apply(self, pixels: Tensor, drawn: Mapping[str, float], random: torch.Generator) -> Tensor:
        """Add the noise; what leaves the range of pixels is cut off."""
        noise = torch.randn(pixels.shape, generator=random).mul_(255 * drawn["level"])
        return _as_pixels(noise.add_(pixels))


class Rotation:
    """A rotation about the centre, its angle drawn for each client.

    Parameters
    ----------
    degrees
        A client's angle is uniform in ± this, counter-clockwise. Without ``angles``.
    angles
        A client's angle is one of these, in degrees.

    Notes
    -----
    Bilinear; what turns in from outside is black. Source of rotations by a choice of angles:
    arXiv 2006.04088, section 6.2.
    """

    def __init__(
        self,
        *,
        degrees: NonNegativeFloat,
        angles: Annotated[list[float], Field(min_length=1)] | None,
    ) -> None:
        self.degrees, self.angles = degrees, angles

    def draw(self, random: np.random.Generator) -> dict[str, float]:
        """The client's angle."""
        if self.angles is None:
            return {"angle": random.uniform(-self.degrees, self.degrees)}
        return {"angle": float(random.choice(self.angles))}

    def apply(self, pixels: Tensor, drawn: Mapping[str, float], random: torch.Generator) -> Tensor:
        """Turn all images by the angle."""
        n, channels, height, width = pixels.shape
        cos, sin = (f(math.radians(drawn["angle"])) for f in (math.cos, math.sin))
        # Coordinates run from −1 to 1 on both sides: where sides differ, so do their units.
        turn = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
        # One grid serves all, so the images are the channels of one: three times as fast.
        stacked = pixels.reshape(1, n * channels, height, width).float()
        grid = affine_grid(turn[None], list(stacked.shape), align_corners=False)
        return _as_pixels(grid_sample(stacked, grid, align_corners=False)).view(pixels.shape)


class Colour:
    """A shift of each colour channel, drawn for each client.

    Parameters
    ----------
    shift
        Each of the client's three shifts is uniform in ± this, of pixels in [0, 1].

    Notes
    -----
    Ours. Grey images take the first shift: they become darker or brighter.
    """

    def __init__(self, *, shift: NonNegativeFloat) -> None:
        self.shift = shift

    def draw(self, random: np.random.Generator) -> dict[str, float]:
        """The client's shifts."""
        return {name: random.uniform(-self.shift, self.shift) for name in ("red", "green", "blue")}

    def apply(self, pixels: Tensor, drawn: Mapping[str, float], random: torch.Generator) -> Tensor:
        """Add the shifts; what leaves the range of pixels is cut off."""
        shifts = torch.tensor([drawn[name] for name in ("red", "green", "blue")])
        channels = torch.arange(pixels.shape[1]) % 3
        return _as_pixels(pixels.float().add_(255 * shifts[channels].view(-1, 1, 1)))


def _as_pixels(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)


def open_skew(component: Component, pixels: Tensor | None = None) -> Skew:
    """The skew that the configuration names.

    Raises
    ------
    ConfigError
        If there is none at the path, an argument is wrong, or ``pixels``, inputs of the data
        set, are no images.
    """
    skew = build(component, "skew")
    if not (callable(getattr(skew, "draw", None)) and callable(getattr(skew, "apply", None))):
        raise ConfigError(f"skew._target_: {component.target} has no draw and apply")
    if pixels is not None and not isinstance(skew, NoSkew) and pixels.dim() != 4:
        raise ConfigError(f"skew: {component.name} changes images, and this data set has none")
    return skew  # type: ignore[no-any-return]


@in_run(1)  # a client asks at every message
def _opened(component: Component) -> Skew:
    return open_skew(component)


def leaves_alone(component: Component) -> bool:
    """Whether every client sees its images as they are."""
    return isinstance(_opened(component), NoSkew)


def drawn(component: Component, seed: int, clients: int) -> list[dict[str, float]]:
    """What each client draws."""
    skew = _opened(component)
    with blaming(ConfigError, f"skew={component.name}: "):
        return [_draw(skew, seed, client) for client in range(clients)]


def _draw(skew: Skew, seed: int, client: int) -> dict[str, float]:
    return skew.draw(np.random.default_rng(seeding.key(seed, "skew", client)))


def skewed(component: Component, pixels: Tensor, seed: int, client: int, held: bool) -> Tensor:
    """Images of a client as it sees them.

    Parameters
    ----------
    pixels
        uint8, shape ``(n, C, H, W)``.
    held
        Whether they are its hold-out, whose noise is its own.
    """
    if leaves_alone(component):  # a generator would cost more than a step of a small client
        return pixels
    skew = _opened(component)
    own = _draw(skew, seed, client)
    if not own:
        return pixels
    return skew.apply(pixels, own, seeding.generator(seed, "skewed", client, int(held)))
