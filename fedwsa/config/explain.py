"""Hydra's errors, which run over several lines, as one line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf

from fedwsa.config.places import CONFIG_DIR


def explain(
    error: Exception,
    overrides: Sequence[str] = (),
    config: str = "config",
    command: str = "fedwsa",
) -> str:
    """One line for a person: what is wrong, what is allowed.

    ``overrides`` are those of the command, whose groups tell which keys there are; ``config`` is
    the file of ``conf/`` that it composes.
    """
    text = str(error) or str(error.__cause__ or type(error).__name__)
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(unknown[1], overrides, config, command)
    if option := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        offered = re.search(r"Available options in '[^']+':\n((?:\t.*\n?)+)", text)
        allowed = ", ".join(offered[1].split()) if offered else "none"
        return f"{option[1]}={option[2]}: no such option; allowed: {allowed}"
    if group := re.search(r"Could not override '?([\w/]+)'?\.?\s+No match in the defaults", text):
        return _unknown_key(group[1], overrides, config, command)
    if isinstance(error, OverrideParseException):
        typed = str(error.override).lstrip("+")
        if "=" not in typed:
            return f"{typed!r} is no KEY=VALUE; {command} --help lists the keys"
        return (
            f"cannot read {typed!r}; a value with special characters needs quotes that "
            "reach Hydra, for instance 'wsa.layers=\"^conv\"'"
        )
    if swept := next(
        (o for o in overrides if "mbiguous value for argument" in text and "," in o), None
    ):
        key, _, value = swept.partition("=")
        return (
            f"{key}: a comma separates the runs of --multirun; of one value, as a path, it needs "
            f"quotes that reach Hydra: '{key}=\"{value}\"'"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _unknown_key(key: str, overrides: Sequence[str], config: str, command: str) -> str:
    groups = [o for o in overrides if (CONFIG_DIR / o.partition("=")[0]).is_dir() and "," not in o]
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            values = OmegaConf.to_container(compose(config, groups), resolve=False)
    except (HydraException, ValueError):
        return f"{key}: unknown key; {command} --help lists all"
    known, group = list(_keys(values)), key.rpartition(".")[0]
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    if group and close == [group]:
        own = (name.removeprefix(f"{group}.") for name in known if name.startswith(f"{group}."))
        hint = f"{group} has {', '.join(name for name in own if '.' not in name)}; "
    return f"{key}: unknown key; {hint}{command} --help lists all"


def _keys(values: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
