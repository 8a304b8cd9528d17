"""Where a default stands in conf/ and in a signature of ours, it is one."""

from __future__ import annotations

import inspect
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from fedwsa.config.component import locate
from fedwsa.config.places import options
from tests.given.floors import ROOT


def groups() -> list[Path]:
    return [f for f in sorted((ROOT / "conf").iterdir()) if f.is_dir() and f.name[0] != "_"]


def test_conf_and_signatures_agree() -> None:
    """Where several options name one builder, the others are what they are for another value:
    then one of them has the signature's."""
    values: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for file in (f for group in groups() for f in sorted(group.glob("*.yaml"))):
        held = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        target = held.get("_target_", "")
        if target.startswith(("fedwsa.", "server.", "clients.")):
            for key, value in {**held, **(held.get("args") or {})}.items():
                values[target, key].append(value)
    compared = 0
    for (target, key), given in values.items():
        parameter = inspect.signature(locate(target, "conf")).parameters.get(key)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            assert parameter.default in given, f"{target}.{key}: {parameter.default} and {given}"
            compared += 1
    assert compared > 30


def test_the_prior_of_ugm() -> None:
    ugm = options("merge")["ugm"]
    signature = inspect.signature(locate(ugm.target, "merge")).parameters
    assert signature["prior"].default == ugm.arguments["prior"] == 0.01
