"""The grid of strategies, models and alignment that runs are tried on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from fedwsa.config.places import CONFIG_DIR
from fedwsa.schema.compose import compose
from fedwsa.schema.config import Config

STRATEGIES = sorted(file.stem for file in (CONFIG_DIR / "strategy").glob("*.yaml"))
_IMAGES = ["dataset._target_=tests.given.small_images.small_images", "partition=iid"]
MODELS = {
    "mlp": ["dataset=digits", "model=mlp", "model.width=0.1"],
    "all": ["model._target_=tests.given.odd_models.everything", "~model.depth", "~model.width"],
    "cnn": [*_IMAGES, "model=cnn", "model.width=0.1"],
    "cnn_pfl": [*_IMAGES, "model=cnn_pfl", "model.width=0.1"],
    "resnet20": [*_IMAGES, "model=resnet20", "model.width=0.25", "model.norm=batch"],
    "vit": [*_IMAGES, "model=vit", "model.width=0.125", "model.depth=2"],
}
REFUSED = {  # strategy, model or WSA → why
    ("fedbn", "mlp"): "no normalisation layers",
    ("fedbn", "cnn"): "no normalisation layers",
    ("fedbn", "cnn_pfl"): "no normalisation layers",
    ("wave", "all"): "no weight that templates could make",
    ("fltrust", "on"): "set init.public",
    ("fltrust", "off"): "set init.public",
    ("feddf", "on"): "give it a share, as init.public",
    ("feddf", "off"): "give it a share, as init.public",
    ("local", "on"): "no weights are averaged",
    ("fedproto", "on"): "no weights are averaged",
    ("ifca", "on"): "each cluster has scopes of its own",
    ("centralised", "on"): "trained in one place",
    ("oneshot", "on"): "trains its clients once",  # its own: tests/algorithms/test_oneshot.py
    ("oneshot", "off"): "trains its clients once",
}


def refusal(strategy: str, model: str, wsa: str) -> str | None:
    """Why a cell cannot be, if it cannot."""
    return REFUSED.get((strategy, model)) or REFUSED.get((strategy, wsa))


def every_cell(models: Iterable[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for each strategy, with and without WSA, on each of some models."""

    def each(test: Callable[..., None]) -> Callable[..., None]:
        for name, values in (("model", models), ("wsa", ["off", "on"]), ("strategy", STRATEGIES)):
            test = pytest.mark.parametrize(name, values)(test)
        return test

    return each


def composed(strategy: str, wsa: str, model: str, cache: str, *more: str) -> Config:
    """A small run of a cell: two rounds of three clients, but for what follows."""
    fleet = ["rounds=2", "clients.count=3", "local.epochs=1", "runtime.workers=1"]
    kept = ["checkpoint.every=1", "evaluation.clients_every=2", f"cache_dir={cache}"]
    words = [*fleet, *MODELS[model], f"strategy={strategy}", f"wsa={wsa}", *kept]
    return compose([*words, *more])
