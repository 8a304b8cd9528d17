"""The command ``fedwsa-merge``: one model from several, and what each method gives."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from rich.console import Console
from torch import Tensor

from experiments.commands.preamble import composing
from experiments.merge import report
from experiments.merge.data import DataAtHand
from experiments.merge.files import ModelFile, require_one_kind
from experiments.merge.methods import Ingredients, Method, merge, method_of
from fedwsa.command_line import Parser, in_one_line
from fedwsa.config.component import ConfigError
from fedwsa.config.places import options
from fedwsa.data.evaluation import Score
from fedwsa.merge.states import is_statistic, require_alike, require_same, shares
from fedwsa.models.weights import prefix_hint
from fedwsa.runfolder.tensors import require_writable, write_tensors

_COMMAND = "fedwsa-merge"
_EXAMPLES = """\
examples:
  fedwsa-merge a.safetensors b.safetensors --method wsa --out merged.safetensors
  fedwsa-merge a.safetensors b.safetensors --weights 3,1 --out merged.safetensors
  fedwsa-merge runs/*/*/model.safetensors --method all --evaluate dataset=digits
  fedwsa-merge a.pt b.pt --base start.pt --method ties --option density=0.1 --out merged.safetensors

FILES are safetensors, the index of several (model.safetensors.index.json), or state dicts that
torch.save wrote (.pt, .pth), of one architecture. With --base, task_arithmetic, ties and ugm take
one file too: --option scale=-1 takes away what it has learned.
Models with BatchNorm carry statistics that belong to their own weights: with --evaluate they are
estimated anew for the merged weights, on the training part; without data, say
--batch-norm average. docs/merging.md has the methods, what they promise and their sources.
"""

console = Console()


def _parser() -> Parser:
    parser = Parser(
        prog=_COMMAND,
        description="Merge models of one architecture.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--method", default="wsa", metavar="NAME", help=f"{', '.join(options('merge'))}; all: a "
        "table of what each gives; or the dotted path of your own; default: wsa"
    )  # fmt: skip
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the method"
    )
    parser.add_argument("--weights", metavar="W,W,...", help="such as examples; default: equal")
    parser.add_argument("--base", type=Path, metavar="FILE", help="what the models began with")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the merged model (safetensors)")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    parser.add_argument(
        "--evaluate", nargs="+", metavar="KEY=VALUE", help="data at hand: dataset=..., its keys"
    )
    parser.add_argument(
        "--batch-norm", choices=["average"], help="without data: average the statistics as well"
    )
    parser.add_argument(
        "--builder", action="append", default=[], metavar="PATH", help="what builds a network of "
        "your own, as model._target_ has it; files that name others than ours are not built else"
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=1000, help="for the Fisher information; default: 1000"
    )
    return parser


def main() -> None:
    """Run the command: every error ends in one line and exit code 1."""
    given = _parser().parse_args(sys.argv[1:])
    sys.path.append(os.getcwd())  # a method of one's own lies there
    with in_one_line(_COMMAND), composing(_COMMAND, given.evaluate or []):
        _run(given)


def _run(given: argparse.Namespace) -> None:
    if given.method == "all" and (given.out or given.option or not given.evaluate):
        raise ConfigError("--method all compares on data: --evaluate, and no --out or --option")
    if given.method != "all" and not (given.out or given.evaluate):
        raise ConfigError("nothing to do: give --out FILE, --evaluate dataset=..., or both")
    if given.samples < 1:
        raise ConfigError(f"--samples {given.samples}: must be above 0")
    wanted = None if given.method == "all" else method_of(given.method, given.option)
    out: Path | None = given.out
    if out is not None:
        _require_free(out, given.force)
    _require_enough(given, wanted)
    ingredients = _open(given)
    if wanted is None:
        _compare(ingredients)
        return
    models = ingredients.models
    with console.status(f"merging {len(models)} models by {wanted.name} ..."):
        merged = merge(wanted, ingredients)
        if ingredients.data is not None and _has_statistics(merged):
            merged = ingredients.data.with_statistics(merged, models[0].facts)
    console.print(report.scopes(models, merged, ingredients.weights))
    if (zero := ingredients.unseen()) is not None:
        line = "{:,} of {:,} entries have no Fisher information in any model; without a prior they "
        line += "take the plain mean"
        console.print(line.format(*zero), soft_wrap=True, highlight=False)
    if ingredients.data is not None:
        console.print(report.accuracies(_scores(wanted, merged, ingredients)))
    if out is not None:
        write_tensors(out, merged, {"fedwsa": json.dumps(_facts(wanted, ingredients))}, "--out")
        numbers = f"{report.size(merged):,} numbers"
        console.print(f"{numbers} in {out}", soft_wrap=True, highlight=False)


def _require_enough(given: argparse.Namespace, wanted: Method | None) -> None:
    """One model alone can be merged with what it began with: half of what it learned, or less."""
    alone = given.base is not None if wanted is None else "base" in wanted.needs
    if len(given.files) < 2 and not alone:
        raise ConfigError(
            "one model is merged already: name two or more, or --base FILE and a method that "
            "begins there, as task_arithmetic"
        )


def _open(given: argparse.Namespace) -> Ingredients:
    """Everything that was named, checked."""
    models = [ModelFile(file) for file in given.files]
    base = None if given.base is None else ModelFile(given.base)
    everything = models if base is None else [*models, base]
    require_one_kind(everything)
    if ours := next((m for m in everything if m.facts), None):  # it has its network's own names
        for model in everything:
            model.name_as(ours)
    weights = _weights(given.weights, len(models))
    try:
        require_alike(everything)
        require_same(everything)
    except ValueError as error:
        line = _named(str(error), [str(m.file) for m in everything])
        hint = next(filter(None, (prefix_hint(m) for m in everything)), "")
        raise ConfigError(f"{line}{hint}") from None
    for model in everything:
        if model.wrapped is not None:
            line = f"{model.file}: names are read without what a wrapper added, as {model.wrapped}"
            console.print(line, soft_wrap=True, highlight=False)
    data = None
    if given.evaluate is not None:
        data = DataAtHand(given.evaluate, models, console, given.builder)
    elif _has_statistics(models[0]) and given.batch_norm is None:
        raise ConfigError(
            "the models have BatchNorm, whose statistics belong to their own weights: give data, "
            "--evaluate dataset=..., to estimate them anew, or say --batch-norm average"
        )
    return Ingredients(models, weights, base, data, given.samples, given.builder)


def _named(line: str, files: Sequence[str]) -> str:
    """The files instead of their numbers."""
    for number, file in reversed(list(enumerate(files, 1))):
        line = line.replace(f"model {number}", file)
    return line


def _weights(text: str | None, count: int) -> list[float] | None:
    if text is None:
        return None
    try:
        found = [float(word) for word in text.split(",")]
        shares(found, count)
    except ValueError as error:
        raise ConfigError(f"--weights {text}: {error}") from None
    return found


def _require_free(out: Path, force: bool) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: must end in .safetensors")
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder")
    if not os.path.lexists(out):  # a link that leads nowhere is there, too
        require_writable(out, "--out")
    elif not force:
        raise ConfigError(f"--out {out}: is there already; --force writes over it")


def _has_statistics(state: Mapping[str, Tensor]) -> bool:
    return any(is_statistic(name) for name in state)


def _scores(
    method: Method, merged: Mapping[str, Tensor], given: Ingredients
) -> list[tuple[str, Score]]:
    """Of each input, of each after rescaling, of the merged model."""
    data, models = given.data, given.models
    assert data is not None
    rows = _inputs(models, data)
    for model, moved in zip(models, given.rescaled(method), strict=False):
        if _has_statistics(moved):
            moved = data.with_statistics(moved, model.facts)
        rows.append((f"{model.file}, rescaled", data.score(moved, model.facts)))
    return [*rows, (f"merged by {method.name}", data.score(merged, models[0].facts))]


def _inputs(models: Sequence[ModelFile], data: DataAtHand) -> list[tuple[str, Score]]:
    """Of each input; with BatchNorm also as the other rows are, its statistics measured anew."""
    rows = [(str(model.file), data.score(model, model.facts)) for model in models]
    for model in models:
        if _has_statistics(model):
            fresh = data.with_statistics(model, model.facts)
            rows.append((f"{model.file}, statistics anew", data.score(fresh, model.facts)))
    return rows


def _compare(given: Ingredients) -> None:
    """A row for each method."""
    data, models = given.data, given.models
    assert data is not None
    rows, absent = _inputs(models, data), {}
    with console.status("merging ...") as status:
        for name in options("merge"):
            method = method_of(name)
            status.update(f"merging by {name} ...")
            if lacks := given.lacking(method):
                absent[name] = f"needs {lacks}"
                continue
            try:
                merged = merge(method, given)
            except ConfigError as error:
                absent[name] = str(error)
                continue
            if _has_statistics(merged):
                merged = data.with_statistics(merged, models[0].facts)
            rows.append((name, data.score(merged, models[0].facts)))
    console.print(report.accuracies(rows))
    for name, why in absent.items():
        console.print(f"{name}: {why}", soft_wrap=True, highlight=False)


def _facts(method: Method, given: Ingredients) -> dict[str, Any]:
    """What the file says: of what network it is, and what was merged and how."""
    base = given.base
    return {
        **{k: v for k, v in given.models[0].facts.items() if k != "merged"},
        "merged": {
            "method": method.name,
            "operator": method.component.target,
            "options": method.component.arguments,
            "weights": given.weights,
            "inputs": [{"file": m.file.name, "sha256": m.digest} for m in given.models],
            "base": None if base is None else {"file": base.file.name, "sha256": base.digest},
            "fedwsa": version("fedwsa"),
        },
    }


if __name__ == "__main__":
    main()
