"""The command ``fedwsa-learngene``: distil a learngene, initialise networks from it, compare."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# What trains is imported when all that can be wrong was found.

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from rich.console import Console

from experiments.commands.help import learngene_help
from experiments.commands.preamble import composing
from experiments.learngene.schema import LearngeneConfig, compose
from fedwsa.command_line import fail
from fedwsa.config.component import ConfigError
from fedwsa.data.evaluation import evaluate, measure_statistics
from fedwsa.data.examples import Examples, LabelledData
from fedwsa.data.federated import public_share
from fedwsa.data.loading import load, open_source
from fedwsa.fleet.devices import resolve_device
from fedwsa.learngene.fit import Lesson
from fedwsa.learngene.gene import Learngene
from fedwsa.learngene.pretrain import School
from fedwsa.learngene.progress import Watcher, watching
from fedwsa.models import build_model
from fedwsa.models.architecture import outline
from fedwsa.models.files import save_network
from fedwsa.runfolder.tensors import require_writable

_COMMAND = "fedwsa-learngene"
console = Console()


def open_data(config: LearngeneConfig) -> tuple[LabelledData, str]:
    """The data set, and its name."""
    source = open_source(config.dataset.source)
    with console.status("reading the data ..."):
        return load(source, config.cache_dir), source.key


def public_examples(config: LearngeneConfig, data: LabelledData) -> Examples:
    """The examples to learn from: the public share, of the classes that were asked for; maybe none.

    Raises
    ------
    ConfigError
        If there is no such class.
    """
    chosen = public_share(len(data.train), config.init.public, config.seed)
    if config.classes is not None:
        if max(config.classes) >= data.strata:
            raise ConfigError(f"classes: there are only {data.strata}, counted from 0")
        kept = data.train.strata[chosen].unsqueeze(1) == chosen.new_tensor(config.classes)
        chosen = chosen[kept.any(1)]
    return data.train[chosen]


def distil(config: LearngeneConfig) -> None:
    """Learn a learngene and write its file."""
    file = config.gene_file
    if config.init.target == "fedwsa.learngene.Standard":
        raise ConfigError("init=standard learns nothing; take wave, sws, tleg, selection or direct")
    require_writable(file, "init.file")
    data, source = open_data(config)
    require_family(config, data)
    with watching(console) as watch:
        school = _school(config, data, source, watch)
        if not len(school.lesson.examples):
            raise ConfigError(
                f"init.public={config.init.public:g}: there are no examples to learn from"
            )
        gene = school.learn(file)
    facts = gene.facts
    console.print(f"{gene.method} learngene of {gene.numbers:,} numbers in {file}", soft_wrap=True)
    if "teacher" in facts:
        accuracy = facts["teacher"]["test_accuracy"]
        console.print(f"teacher: {accuracy:.4f} on the test set of all classes")


def init(config: LearngeneConfig) -> None:
    """Make a network from a learngene and write it."""
    if config.out is None:
        raise ConfigError("out: must be given, the file of the network")
    out, wanted = Path(config.out), config.wanted
    require_writable(out, "out")
    gene = Learngene.load(config.gene_file)
    data, source = open_data(config)
    with watching(console) as watch:
        school = _school(config, data, source, watch)
        if gene.method == "wave" and not len(school.lesson.examples):
            console.print("init.public=0: scalers stay as they start, there are no examples")
        state = school.make(gene, wanted)
    model = build_model(wanted, data.shape, data.classes, config.seed)
    model.load_state_dict(state)
    measure_statistics(model, data.train.inputs, data.prepare, "cpu")
    score = evaluate(model, data.test, data, "cpu", 512)
    save_network(out, state, wanted, data)
    numbers = sum(t.numel() for t in state.values())
    result = f"{score.accuracy:.4f} on the test set"
    console.print(f"{wanted.name} of {numbers:,} numbers in {out}: {result}", soft_wrap=True)


def require_family(config: LearngeneConfig, data: LabelledData) -> None:
    """Refuse sizes that are no networks, naming the one."""
    for name, size in zip(config.sizes, config.family, strict=True):
        outline(size, data.shape, data.classes, f"sizes.{name}")


def _school(config: LearngeneConfig, data: LabelledData, source: str, watch: Watcher) -> School:
    lesson = Lesson(public_examples(config, data), data, resolve_device(config.device), config.seed)
    return School(
        config.init,
        config.pretraining,
        config.model,
        config.family,
        lesson,
        source,
        config.dataset.augment,
        watch,
    )


def bench(config: LearngeneConfig) -> None:
    """Compare the methods over a grid of sizes."""
    from experiments.learngene.bench import run

    run(config)


COMMANDS: dict[str, Callable[[LearngeneConfig], None]] = {
    "distil": distil,
    "init": init,
    "bench": bench,
}


def main() -> None:
    """Run the command: every error ends in one line and exit code 1."""
    words = sys.argv[1:]
    if not words or {"--help", "-h"} & set(words):
        with suppress(BrokenPipeError):
            print(learngene_help(), flush=True)
        return
    command, overrides = words[0], words[1:]
    if flags := [word for word in words if word.startswith("-")]:
        fail(_COMMAND, f"{flags[0]}: no such flag; --help shows commands, groups and keys")
    if command not in COMMANDS:
        fail(_COMMAND, f"{command}: no such command; there are {', '.join(COMMANDS)}")
    sys.path.append(os.getcwd())  # a model or method of one's own lies there
    with composing(_COMMAND, overrides, "learngene"):
        COMMANDS[command](compose(overrides))
