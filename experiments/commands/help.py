"""``fedwsa --help``: the groups and keys as ``conf/`` has them, with the comments that explain."""

from __future__ import annotations

from pathlib import Path

from fedwsa.config.places import CONFIG_DIR, own_options

_USAGE = """\
fedwsa: federated-learning simulations with weight scope alignment

Usage: fedwsa [GROUP=OPTION ...] [KEY=VALUE ...]
       fedwsa --multirun wsa=off,on seed=0,1,2    every combination, then a comparison
       fedwsa --multirun hydra/sweeper=optuna ... a search by Optuna: hydra.sweeper.trials,
                                                  .sampler, .pruning, .storage (docs/studies.md)
       fedwsa resume=RUN                          go on with an interrupted run (checkpoint.every)
       fedwsa --cfg job [...]                     show the composed run, start nothing
       fedwsa --version                           likewise of the other commands

Examples:
  fedwsa wsa=on strategy=fedprox partition.alpha=0.1 rounds=50
  fedwsa dataset=parquet dataset.path=DIR model=cnn clients.count=100 clients.fraction=0.1
  fedwsa strategy._target_=flwr.serverapp.strategy.FedYogi strategy.args.eta=0.01

A strategy of Flower or of your own goes by its dotted path; strategy.args takes any of its
arguments. A folder conf/ where you are adds options to the groups (conf/model/mine.yaml).
HYDRA_FULL_ERROR=1 shows the traceback of an error, run.log has those of clients; --hydra-help has
Hydra's flags.
Each run leaves a folder under runs/, which README.md explains.
"""


_LEARNGENE = """\
fedwsa-learngene: initialise networks of any size from what one network has learned

Usage: fedwsa-learngene distil init.file=FILE [GROUP=OPTION ...] [KEY=VALUE ...]
           learn a learngene from the public share of the training images, and write it
       fedwsa-learngene init init.file=FILE size=SIZE out=FILE [...]
           make a network of it; SIZE is a name in `sizes`, or '{width: 0.5, depth: 3}'
       fedwsa-learngene bench [...]
           a grid of sizes, each initialised by each method and trained; tables and a picture

Examples:
  fedwsa-learngene distil init.file=wave.safetensors
  fedwsa-learngene init init.file=wave.safetensors size=S out=small.safetensors
  fedwsa 'clients.sizes={S: 0.5, L: 0.5}' strategy=heterofl init=wave init.file=wave.safetensors

An interrupted distil or bench goes on where it stopped when it is called again. A learngene is
one safetensors file, which says what it is made of.
"""


_PARTITION = """\
fedwsa-partition: share a data set out among clients, say how skewed that is, train nothing

Usage: fedwsa-partition [GROUP=OPTION ...] [KEY=VALUE ...] [out=FOLDER]
           a table; partition.json and partition.png in FOLDER (runs/partitions/DATE/TIME)

Examples:
  fedwsa-partition partition=dirichlet partition.alpha=0.1 clients.count=20
  fedwsa-partition dataset=parquet dataset.path=DIR dataset.id_column=writer \\
      partition=natural clients.count=null out=writers
  fedwsa partition=from_file partition.path=writers/partition.json clients.count=null

The words are those of fedwsa, and the partition is the one that a run with them has. What matters
here, beside the groups below: clients.count (10; null: as many as there are, for partitions that
know), seed (0), init.public (0.0: share of the training set that no client gets), cache_dir.
"""


_CONNECTIVITY = """\
experiments.connectivity: what lies on the line between two networks, and what it takes to cross

Usage: python -m experiments.connectivity [GROUP=OPTION ...] [KEY=VALUE ...]
           train pairs of networks under different conditions, with and without WSA, and measure
           the barrier between them as they are, rescaled, permuted, and both; tables, pictures

Examples:
  python -m experiments.connectivity '~conditions.labels' 'seeds=[0]' folder=runs/brief
  python -m experiments.connectivity dataset=parquet dataset.path=DIR subset.train=5000 model=cnn

Called again, the same command goes on: finished pairs stay; seeds and conditions may be added.
"""


def help_text() -> str:
    """Of ``fedwsa``; every default and explanation is read from the yaml files."""
    return _whole(_USAGE, "config")


def learngene_help() -> str:
    """Text of ``fedwsa-learngene --help``."""
    return _whole(_LEARNGENE, "learngene")


def connectivity_help() -> str:
    """Of ``python -m experiments.connectivity``."""
    return _whole(_CONNECTIVITY, "connectivity")


def partition_help() -> str:
    """Of ``fedwsa-partition``: the two groups that it reads."""
    text = (CONFIG_DIR / "config.yaml").read_text(encoding="utf-8")
    chosen = _chosen(text.partition("\n\n")[0])
    groups = [_group(name, chosen[name]) for name in ("dataset", "partition")]
    return "\n".join([_PARTITION.rstrip("\n"), *groups])


def _whole(usage: str, config: str) -> str:
    text = (CONFIG_DIR / f"{config}.yaml").read_text(encoding="utf-8")
    defaults, _, rest = text.partition("\n\n")
    parts = [usage, "Keys and their defaults:\n", _indent(rest.partition("\nhydra:")[0])]
    for line in defaults.splitlines():  # files that are part of this one
        if line.startswith("  - ") and ": " not in line and "_self_" not in line:
            parts += ["", _indent(_body(CONFIG_DIR / f"{line.strip('- ')}.yaml"))]
    parts += [_group(group, default) for group, default in _chosen(defaults).items()]
    return "\n".join(part for part in parts if part)


def _chosen(defaults: str) -> dict[str, str]:
    """The default option of each group."""
    return dict(
        line.strip("- ").replace('"', "").split(": ")
        for line in defaults.splitlines()
        if line.startswith("  - ") and ": " in line and "hydra/" not in line
    )


def _group(group: str, default: str) -> str:
    group, _, place = group.partition("@")
    if place:  # its options stand where the group is shown by its own name
        return (
            f"\nGroup {group} again, for {place}: {group}@{place}=OPTION (default: {default}),\n"
            f"and the keys of each option as {place}.KEY=VALUE.\n"
        )
    parts = [f"\nGroup {group}, and the keys of each option as {group}.KEY=VALUE:\n"]
    files = sorted((CONFIG_DIR / group).glob("*.yaml"))
    if (own := own_options()) is not None:
        ours = {file.name for file in files}
        files += [f for f in sorted((own / group).glob("*.yaml")) if f.name not in ours]
    for file in files:
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
