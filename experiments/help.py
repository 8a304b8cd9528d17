"""``fedwsa --help``: the groups and keys as ``conf/`` has them, with the comments that explain."""

from __future__ import annotations

from pathlib import Path

from fedwsa.config import CONFIG_DIR

_USAGE = """\
fedwsa: federated-learning simulations with weight scope alignment

Usage: fedwsa [GROUP=OPTION ...] [KEY=VALUE ...]
       fedwsa --multirun wsa=off,on seed=0,1,2    every combination, then a comparison
       fedwsa --cfg job [...]                     show the composed run, start nothing

Examples:
  fedwsa wsa=on strategy=fedprox partition.alpha=0.1 rounds=50
  fedwsa dataset=parquet dataset.path=DIR model=cnn clients.count=100 clients.fraction=0.1
  fedwsa strategy._target_=flwr.serverapp.strategy.FedYogi strategy.args.eta=0.01

A strategy of Flower or of your own goes by its dotted path; strategy.args takes any of its
arguments. HYDRA_FULL_ERROR=1 shows the traceback of an error; --hydra-help has Hydra's flags.
Each run leaves a folder under runs/, which README.md explains.
"""


def help_text() -> str:
    """All of it; every default and explanation is read from the yaml files."""
    text = (CONFIG_DIR / "config.yaml").read_text(encoding="utf-8")
    defaults, _, rest = text.partition("\n\n")
    chosen = dict(
        line.strip("- ").replace('"', "").split(": ")
        for line in defaults.splitlines()
        if line.startswith("  - ") and ": " in line and "hydra/" not in line
    )
    parts = [_USAGE, "Keys and their defaults:\n", _indent(rest.partition("\nhydra:")[0])]
    for group, default in chosen.items():
        parts.append(f"\nGroup {group}, and the keys of each option as {group}.KEY=VALUE:\n")
        for file in sorted((CONFIG_DIR / group).glob("*.yaml")):
            mark = "  (default)" if file.stem == default else ""
            parts.append(f"  {group}={file.stem}{mark}")
            parts.append(_indent(_body(file), 6))
    return "\n".join(part for part in parts if part)


def _body(file: Path) -> str:
    """A yaml without what only Hydra reads."""
    kept = []
    in_defaults = False
    for line in file.read_text(encoding="utf-8").splitlines():
        in_defaults = line == "defaults:" or (in_defaults and line.startswith("  - "))
        if not in_defaults and not line.startswith(("_target_", "# @package")):
            kept.append(line)
    return "\n".join(kept).strip("\n")


def _indent(text: str, by: int = 2) -> str:
    return "\n".join(" " * by + line if line else "" for line in text.strip("\n").splitlines())
