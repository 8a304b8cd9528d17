"""The weights that a run begins with: each network's own, or from a learngene."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from fedwsa.config.component import ConfigError
from fedwsa.data.federated import FederatedData
from fedwsa.data.loading import open_source
from fedwsa.learngene import Standard
from fedwsa.learngene.fit import Lesson
from fedwsa.learngene.gene import Learngene
from fedwsa.learngene.pretrain import School, build_method
from fedwsa.learngene.progress import Watcher, watching
from fedwsa.models import state
from fedwsa.schema.config import Config
from server.sizes import SizedModels

logger = logging.getLogger("fedwsa")


def save_learned(folder: Path, learned: Mapping[str, Learngene], largest: str) -> None:
    """``learngene.safetensors``, of the largest size or of all; ``learngene-SIZE.safetensors``."""
    for size, gene in learned.items():
        single = size == largest
        gene.save(folder / ("learngene.safetensors" if single else f"learngene-{size}.safetensors"))


def initialise(
    sizes: SizedModels,
    wanted: Iterable[str],
    largest: str,
    config: Config,
    data: FederatedData,
    device: str,
    console: Console,
) -> dict[str, Learngene]:
    """Give the networks of a run their initial weights, in place.

    Without ``init.file`` the learngene is learned here, from the public examples.

    Parameters
    ----------
    sizes
        The networks, with standard weights.
    wanted
        The sizes whose weights the run begins with.
    largest
        Name of the largest size: teacher and auxiliary network.

    Returns
    -------
    dict of str to Learngene
        What they were made of: one for all sizes under the name of the largest, or one for each.

    Raises
    ------
    ConfigError
        If there are no examples to learn from, or no network can be made.
    """
    method = build_method(config.init.method)
    if isinstance(method, Standard):
        if config.init.file is not None:
            raise ConfigError("init.file: init=standard takes no file")
        return {}
    public = data.whole.train[data.public]
    found = None if config.init.file is None else Learngene.load(Path(config.init.file))
    if found is None and not len(public):
        raise ConfigError(
            "init.public=0: there are no examples to learn from; give it a share, or init.file"
        )
    lesson = Lesson(public, data.whole, device, config.seed)
    names = list(dict.fromkeys(wanted))
    used: dict[str, Learngene] = {}
    with watching(console) as watch:
        for name in names:
            auxiliary = largest if method.serves == "family" else name
            family = names if auxiliary == largest else [name]
            school = _school(config, auxiliary, family, lesson, watch)
            if auxiliary not in used:
                used[auxiliary] = school.learn() if found is None else found
            if found is not None:
                _warn_of_other_data(found, school)
            made = school.make(used[auxiliary], config.model_of(name))
            _begin(sizes.models[name], made)
    return used


@torch.no_grad()
def _begin(network: nn.Module, made: Mapping[str, Tensor]) -> None:
    """Give a network what was made for it; counts stay as they begin.

    Raises
    ------
    ConfigError
        If what does not travel is another: clients build it as the network here.
    """
    before = {name: t.clone() for name, t in state.staying(network).items()}
    network.load_state_dict(made)
    for name, tensor in state.staying(network).items():
        if not state.is_count(tensor) and not torch.equal(tensor, before[name]):
            raise ConfigError(
                f"init.file: {name} is another than in this run, and does not travel: take the "
                "seed with which the file was learned"
            )
        tensor.copy_(before[name])


def _school(
    config: Config, auxiliary: str, family: Iterable[str], lesson: Lesson, watch: Watcher
) -> School:
    """Where the learngene of some sizes is learned, on the network of one of them."""
    return School(
        config.init,
        config.pretraining,
        config.model_of(auxiliary),
        [config.model_of(name) for name in family],
        lesson,
        open_source(config.dataset.source).key,
        config.dataset.augment,
        watch,
    )


def _warn_of_other_data(gene: Learngene, school: School) -> None:
    """Say that a learngene may have seen examples that clients have here."""
    seen = gene.facts.get("data", {}).get("hash")
    if seen != school.data_hash():
        logger.warning(
            "init.file was learned from other data than this run's public ones, perhaps from "
            "clients' own; the same data set, seed and init.public keep them apart"
        )
