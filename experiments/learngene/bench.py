"""The learngene benchmark: a grid of sizes, each initialised by each method and then trained.

For each seed the public images teach, other images train the networks, and the test set scores
them. All methods see the same images, and those that learn get the same operations in total:
what WAVE takes for its auxiliary network and the scalers of all sizes. Methods that serve a
width or a size only share it out among as many learngenes.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from experiments.learngene import cli
from experiments.learngene.downstream import downstream
from experiments.learngene.schema import LearngeneConfig
from experiments.learngene.summary import summarise
from fedwsa.config.component import Component, ConfigError, build
from fedwsa.data.evaluation import evaluate, measure_statistics
from fedwsa.data.examples import LabelledData
from fedwsa.fleet.devices import resolve_device
from fedwsa.learngene import METHODS
from fedwsa.learngene.base import Method, Target, Task, frozen
from fedwsa.learngene.fit import Lesson, Recipe, fit
from fedwsa.learngene.gene import Learngene
from fedwsa.learngene.pretrain import School
from fedwsa.learngene.progress import watching
from fedwsa.models import InputShape, build_model
from fedwsa.models.architecture import outline
from fedwsa.models.files import load_network, save_network
from fedwsa.models.flops import forward_flops, step_flops
from fedwsa.runfolder.files import whole_lines, write_text

STANDARD = "standard"
COLUMNS = ["seed", "method", "width", "depth", "epoch", "flops", "accuracy", "loss"]
COSTS = ["seed", "method", "numbers", "parameters", "learn_flops", "fit_flops", "teacher_flops"]


def run(config: LearngeneConfig) -> None:
    """Run the benchmark, or what of it is missing in its folder, and summarise it.

    Raises
    ------
    ConfigError
        If there are not enough images, a teacher is given, or the folder holds results of other
        settings.
    """
    if config.pretraining.teacher is not None:
        raise ConfigError("pretraining.teacher: the benchmark trains a teacher for each seed")
    folder = Path(config.bench.folder)
    settings = _settings(config, folder)
    data, source = cli.open_data(config)
    runs = [
        SeedRun(config.model_copy(update={"seed": seed}), data, source, folder)
        for seed in config.bench.seeds
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "settings.json", settings)
    except OSError as error:
        raise ConfigError(f"bench.folder: cannot write {folder}: {error.strerror}") from None
    for run_ in runs:
        run_.run()
    text = summarise(folder)
    cli.console.print(text, highlight=False, soft_wrap=True)
    cli.console.print(
        f"saved to {folder}/: results-SEED.csv, costs-SEED.csv, summary.md, grid.png, "
        "operations.png"
    )


def _settings(config: LearngeneConfig, folder: Path) -> str:
    """What the results of a folder hold for; seeds may be added.

    Raises
    ------
    ConfigError
        If the folder has results of others.
    """
    bench = config.bench.model_copy(update={"seeds": [0], "folder": ""})
    settings = config.model_copy(update={"bench": bench, "device": "auto", "cache_dir": ""})
    text = settings.model_dump_json(by_alias=True, indent=2) + "\n"
    file = folder / "settings.json"
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise ConfigError(f"bench.folder: {folder} has results of other settings; name another")
    return text


class SeedRun:
    """All methods and sizes for one seed."""

    def __init__(
        self, config: LearngeneConfig, data: LabelledData, source: str, folder: Path
    ) -> None:
        self.config, self.bench, self.folder = config, config.bench, folder
        self.seed, self.device = config.seed, resolve_device(config.device)
        self.sizes = [
            config.model.replace(width=w, depth=d)
            for w, d in product(config.bench.widths, config.bench.depths)
        ]
        largest = {"width": max(config.bench.widths), "depth": max(config.bench.depths)}
        lesson = Lesson(cli.public_examples(config, data), data, self.device, self.seed)
        self.school = School(
            config.init,
            config.pretraining,
            config.model.replace(**largest),
            self.sizes,
            lesson,
            source,
            config.dataset.augment,
        )
        self.down = downstream(config, data, self.device)
        if not len(lesson.examples):
            raise ConfigError(
                f"init.public={config.init.public:g}: there are no examples to learn from"
            )
        for size in self.sizes:
            outline(size, data.shape, data.classes, "bench.widths, bench.depths")
        self._require_makeable()
        self.results = folder / f"results-{self.seed}.csv"
        self.costs = folder / f"costs-{self.seed}.csv"
        self._teacher: nn.Module | None = None

    @property
    def _names(self) -> list[str]:
        """Of the methods, WAVE's variants last."""
        return [*self.bench.methods, *(self.bench.variants or {})]

    def _require_makeable(self) -> None:
        """Refuse methods that cannot be, before anything is learned.

        Raises
        ------
        ConfigError
            If an argument is wrong, or a method makes nothing for a size.
        """
        lesson, recipe = self.school.lesson, self.school.recipe("learn")
        shape, classes = self._shape, self.school.classes
        task = Task(self.school.model, self.sizes, shape, classes, lesson, recipe)
        for name in self._names:
            try:
                self._named(name).check(task)
            except ConfigError as error:
                raise ConfigError(f"bench: {name}: {error}") from None

    def run(self) -> None:
        """Run what is missing."""
        done = _read(self.results, COLUMNS)
        missing = [
            (name, size)
            for name in self._names
            for size in self.sizes
            if not _has(done, name, size, len(self._epochs(name)))
        ]
        with watching(cli.console) as watch:
            self.school = replace(self.school, watch=watch)
            for name in dict.fromkeys(name for name, _ in missing):
                self._method(name, [size for other, size in missing if other == name])

    def _epochs(self, name: str) -> list[int]:
        """After which epochs networks of a method are scored."""
        usual, long = self.bench.epochs, self.bench.long
        if name != STANDARD or long is None:
            return sorted({*usual})
        return sorted({*usual, *(epoch * long for epoch in usual)})

    def _named(self, name: str) -> Method:
        """The method of a name; a variant is WAVE with other arguments."""
        wish = self.config.init.method
        if name in METHODS:
            return build(wish, "init") if name == self._chosen else METHODS[name]()
        of_wave = wish if self._chosen == "wave" else Component.of("fedwsa.learngene.Wave")
        variant = of_wave.replace(**(self.bench.variants or {})[name])
        method: Method = build(variant, f"bench.variants.{name}")
        return method

    @cached_property
    def _chosen(self) -> str:
        """The name of the method of ``init``."""
        method: Method = build(self.config.init.method, "init")
        return method.name

    def _method(self, name: str, sizes: list[Component]) -> None:
        method = self._named(name)
        genes: dict[str, Learngene] = {}
        for size in self.sizes:
            key = _key(method, size)
            if key not in genes:
                genes[key] = self._gene(name, method, key, size)
        teacher = step_flops(self._network(self.school.model), self._shape, self._batch)
        networks = [self._network(size) for size in self.sizes]
        costs = {
            "numbers": sum(g.numbers for g in genes.values()),
            "parameters": sum(p.numel() for network in networks for p in network.parameters()),
            "learn_flops": sum(g.facts["learn_flops"] for g in genes.values()),
            "fit_flops": sum(map(self._fit_flops, self.sizes)) if method.fits else 0,
            "teacher_flops": teacher * self.config.pretraining.teach.steps * method.teaches,
        }
        known = _read(self.costs, COSTS)
        if not (known["method"] == name).any():
            _append(self.costs, COSTS, [{"seed": self.seed, "method": name, **costs}])
        for size in sizes:
            rows = self._train(name, method, genes[_key(method, size)], size)
            _append(self.results, COLUMNS, rows)

    @property
    def _shape(self) -> InputShape:
        return self.school.shape

    @property
    def _batch(self) -> int:
        return self.config.pretraining.learn.batch_size

    def _network(self, model: Component) -> nn.Module:
        return build_model(model, self._shape, self.school.classes, self.seed).to(self.device)

    def _fit_flops(self, size: Component) -> int:
        training = self.config.pretraining.fit
        return training.steps * step_flops(self._network(size), self._shape, training.batch_size)

    def _budget(self) -> int:
        """Operations that a method may take: those of WAVE."""
        learn = self.config.pretraining.learn
        step = step_flops(self._network(self.school.model), self._shape, self._batch)
        return learn.steps * (step + self._forward()) + sum(map(self._fit_flops, self.sizes))

    def _forward(self) -> int:
        """Operations of the teacher's answer to a batch."""
        model = self._network(self.school.model)
        return forward_flops(model, self._shape, self._batch)

    def _gene(self, name: str, method: Method, key: str, size: Component) -> Learngene:
        """The learngene that serves a size, from its file if it is there."""
        file = self.folder / "genes" / f"{self.seed}-{name}-{key}.safetensors"
        if file.exists():
            return Learngene.load(file)
        sizes = [s for s in self.sizes if _key(method, s) == key]
        auxiliary = self.school.model
        if method.serves == "width":
            depth = max(int(s.arguments["depth"]) for s in sizes)
            auxiliary = self.config.model.replace(width=size.arguments["width"], depth=depth)
        elif method.serves == "size":
            auxiliary = size
        steps, per_step = self._steps(method, auxiliary)
        label = f"seed {self.seed}: {name} {key}".rstrip()
        task = Task(
            auxiliary,
            sizes,
            self._shape,
            self.school.classes,
            self.school.lesson,
            replace(self.school.recipe("learn"), steps=steps),
            teacher=self._taught() if method.teaches else None,
            temperature=self.config.pretraining.temperature,
            hard=self.config.pretraining.hard,
            report=self.school.watch(label, steps) if method.trains else None,
        )
        gene = method.learn(task)
        gene.facts["learn_flops"] = steps * per_step * method.trains
        gene.save(file)
        return gene

    def _steps(self, method: Method, auxiliary: Component) -> tuple[int, int]:
        """How long a learngene may be learned, and the operations of a step."""
        per_step = step_flops(self._network(auxiliary), self._shape, self._batch)
        if method.teaches:
            per_step += self._forward()
        if method.name == "wave":
            return self.config.pretraining.learn.steps, per_step
        keys = {_key(method, s) for s in self.sizes}
        return self._budget() // len(keys) // per_step, per_step

    def _taught(self) -> nn.Module:
        """The teacher, trained when it is first needed."""
        if self._teacher is None:
            file = self.folder / "genes" / f"{self.seed}-teacher.safetensors"
            self._teacher = frozen(teacher_of(self.school, file))
        return self._teacher

    def _train(
        self, name: str, method: Method, gene: Learngene, size: Component
    ) -> list[dict[str, Any]]:
        """Initialise a network, train it, and score it after the epochs that were asked for."""
        lesson, classes = self.down.lesson, self.down.classes
        # On the public images: the others see none of the networks' own images beforehand. Where
        # the task is another one they cannot tell anything, and scalers stay as they start.
        public = self.school.lesson if self.bench.transfer is None else None
        target = Target(size, classes, public, self.school.recipe("fit"), self.seed)
        model = build_model(size, self._shape, classes, self.seed)
        model.load_state_dict(method.initialise(gene, target))
        model.to(self.device)
        per_epoch = max(1, len(lesson.examples) // self.bench.batch_size)
        test, rows = self.down.data.test, []
        facts = {"seed": self.seed, "method": name, "width": size.arguments["width"]}
        facts["depth"] = size.arguments["depth"]
        label = f"seed {self.seed}: {name}, {facts['width']} x {facts['depth']}"
        epochs = self._epochs(name)
        report = self.school.watch(label, per_epoch * max(epochs))
        flops = step_flops(self._network(size), self._shape, self.bench.batch_size)

        def score(step: int, _: float = 0.0) -> None:
            if step:
                report(step, _)
            epoch, rest = divmod(step, per_epoch)
            if rest or epoch not in epochs:
                return
            data = self.down.data
            measure_statistics(model, lesson.examples.inputs, data.prepare, self.device)
            found = evaluate(model, test, data, self.device, 512)
            model.train()
            scores = {"accuracy": found.accuracy, "loss": found.loss}
            rows.append({**facts, "epoch": epoch, "flops": step * flops, **scores})

        score(0)
        recipe = Recipe(
            per_epoch * max(epochs),
            self.bench.batch_size,
            self.bench.lr,
            self.config.pretraining.learn.weight_decay,
            cosine=False,
            warmup=0.0,
            augment=self.down.augment,
        )
        fit(model, lesson, recipe, purpose="downstream", report=score)
        return rows


def teacher_of(school: School, file: Path) -> nn.Module:
    """The teacher, kept in a file for the next time."""
    if file.exists():
        return load_network(file).module.to(school.lesson.device)
    model, _ = school.teacher()
    save_network(file, model.state_dict(), school.model, school.lesson.data)
    return model


def _key(method: Method, size: Component) -> str:
    """Names the learngene that serves a size."""
    parts = {"family": (), "width": ("width",), "size": ("width", "depth")}[method.serves]
    return "-".join(f"{part}{size.arguments[part]:g}" for part in parts)


def _read(file: Path, columns: list[str]) -> pd.DataFrame:
    return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=columns)


def _has(done: pd.DataFrame, method: str, size: Component, rows: int) -> bool:
    same = done[(done["method"] == method) & (done["width"] == size.arguments["width"])]
    return int((same["depth"] == size.arguments["depth"]).sum()) == rows


def _append(file: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if not file.exists():
        writer.writeheader()
    writer.writerows(rows)
    before = whole_lines(file) if file.exists() else ""
    write_text(file, before + text.getvalue())
