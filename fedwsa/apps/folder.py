"""What the ``pyproject.toml`` of a Flower App says, and what a command line changes of it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from flwr.app import UserConfig
from flwr.cli.config_utils import load_and_validate
from flwr.common.config import flatten_dict, get_metadata_from_config, parse_config_args

from fedwsa.config.component import ConfigError
from fedwsa.config.nearest import nearest

_FILE = "pyproject.toml"


@dataclass(frozen=True)
class AppFolder:
    """A Flower App.

    Attributes
    ----------
    path : Path
        Of the folder, absolute.
    server, client : str
        Where the apps are: ``module:attribute``.
    config : dict
        Its ``[tool.flwr.app.config]``, flat: nested names are written with dots.
    federations : dict
        Its ``[tool.flwr.federations]``, as they stand.
    identity, version : str
        What Flower calls the app: publisher/name, and its version.
    """

    path: Path
    server: str
    client: str
    config: UserConfig
    federations: Mapping[str, Any]
    identity: str
    version: str

    @classmethod
    def read(cls, path: Path) -> AppFolder:
        """What stands in a folder.

        Raises
        ------
        ConfigError
            If no Flower App does.
        """
        path = path.expanduser().resolve()
        file = path / _FILE
        if not file.is_file():
            what = "has no pyproject.toml" if path.is_dir() else "is no folder"
            raise ConfigError(f"{path} {what}: an app is a folder as `flwr new` makes it")
        try:
            tomllib.loads(file.read_text(encoding="utf-8"))
            found, _ = load_and_validate(file, check_module=False)  # importing says it better
            config = flatten_dict(found["tool"]["flwr"]["app"].get("config", {}))
        except (ValueError, OSError) as error:
            raise ConfigError(f"{file}: {_in_a_line(str(error))}") from None
        of = found["tool"]["flwr"]
        parts = of["app"]["components"]
        identity, version = get_metadata_from_config(found)
        federations = of.get("federations", {})
        return cls(
            path, parts["serverapp"], parts["clientapp"], config, federations, identity, version
        )

    def configured(self, words: Sequence[str]) -> UserConfig:
        """The values of a command line's ``--run-config``: pairs, or the name of a TOML file.

        Raises
        ------
        ConfigError
            If they cannot be read, or the app has no such key.
        """
        found = pairs("--run-config", words)
        if unknown := next((key for key in found if key not in self.config), None):
            raise ConfigError(
                f"--run-config: the app has no {unknown}; {nearest(unknown, self.config)}"
            )
        return found


@dataclass(frozen=True)
class Federation:
    """How an app is simulated; None: nobody said it.

    Attributes
    ----------
    supernodes : int, optional
        How many clients there are.
    cpus, gpus : float, optional
        Of a worker.
    init : dict
        For ``ray.init``.
    verbose : bool
        Whether Flower's debug messages are shown.
    """

    supernodes: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    init: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = False


_KINDS: dict[str, tuple[type, ...]] = {
    "num-supernodes": (int,),
    "client-resources-num-cpus": (int, float),
    "client-resources-num-gpus": (int, float),
    "init-args-num-cpus": (int,),
    "init-args-num-gpus": (int,),
    "init-args-logging-level": (str,),
    "init-args-log-to-driver": (bool,),
    "verbose": (bool,),
    "backend": (str,),
}
"""What ``--federation-config`` knows, by Flower's names."""


def federation_of(app: AppFolder, name: str | None, words: Sequence[str]) -> Federation:
    """The federation that an app is simulated in.

    Parameters
    ----------
    name
        Of a federation in the app's ``pyproject.toml`` or a connection in Flower's own
        ``config.toml``; None: the app's default, if it has one.
    words
        Of ``--federation-config``, which changes it.

    Raises
    ------
    ConfigError
        If there is none of that name, it is a deployment, or a value is none.
    """
    settings = _flat(_options(app, name)) | pairs("--federation-config", words)
    for key, value in settings.items():
        if key not in _KINDS:
            raise ConfigError(f"--federation-config: there is no {key}; {nearest(key, _KINDS)}")
        if type(value) not in _KINDS[key]:  # true is an int, elsewhere
            raise ConfigError(f"--federation-config: {key} cannot be {value!r}")
    if settings.get("backend", "ray") != "ray":
        raise ConfigError(
            f"--federation-config: backend cannot be {settings['backend']!r}, but ray"
        )
    init = {
        key.removeprefix("init-args-").replace("-", "_"): value
        for key, value in settings.items()
        if key.startswith("init-args-")
    }
    return Federation(
        settings.get("num-supernodes"),
        settings.get("client-resources-num-cpus"),
        settings.get("client-resources-num-gpus"),
        init,
        settings.get("verbose", False),
    )


def _options(app: AppFolder, name: str | None) -> Mapping[str, Any]:
    known = {k: v for k, v in app.federations.items() if isinstance(v, Mapping)}
    if name is None:
        name = app.federations.get("default")
        if not isinstance(name, str):
            return {}
    else:
        known = _connections() | known
    if name not in known:
        hint = nearest(name, known) if known else "neither the app nor Flower's config.toml has any"
        raise ConfigError(f"there is no federation {name}; {hint}")
    options = known[name].get("options", {})
    if "address" in known[name] and not options:
        raise ConfigError(
            f"federation {name} is a SuperLink at {known[name]['address']}, where `flwr run` goes"
        )
    return options if isinstance(options, Mapping) else {}


def _connections() -> dict[str, Any]:
    """Those of Flower's own configuration, which is not made where it is missing."""
    home = os.environ.get("FLWR_HOME") or str(Path.home() / ".flwr")
    try:
        held = tomllib.loads((Path(home) / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = held.get("superlink", {})
    return {k: v for k, v in found.items() if isinstance(v, Mapping)}


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """A federation's section under the names of ``--federation-config``."""
    backend = options.get("backend", {})
    flat = {key: value for key, value in options.items() if key != "backend"}
    if isinstance(backend, Mapping):
        for part in ("client-resources", "init-args"):
            values = backend.get(part, {})
            flat |= {f"{part}-{key.replace('_', '-')}": value for key, value in values.items()}
        if "name" in backend:
            flat["backend"] = backend["name"]
    return flat


def pairs(option: str, words: Sequence[str]) -> dict[str, Any]:
    """What Flower's options say: ``a=1 b="x"``, more than once, or the name of a TOML file.

    Raises
    ------
    ConfigError
        If that is neither.
    """
    try:
        found: dict[str, Any] = parse_config_args(list(words))
    except click.ClickException:
        found = {}
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{option}: {_in_a_line(str(error))}") from None
    if words and not found:
        raise ConfigError(
            f"{option}: {' '.join(words)!r} are no pairs as in 'a=1 b=0.5 c=true d=\"x\"', where "
            "strings have quotes of their own"
        )
    return found


def _in_a_line(text: str) -> str:
    return "; ".join(line.strip(" -") for line in text.splitlines() if line.strip(" -"))
