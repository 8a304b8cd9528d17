"""Composing a run from the Hydra tree in ``conf/``, and checking it against its schema."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel
from pydantic import ValidationError as PydanticError

from fedwsa.config.component import ConfigError, one_line
from fedwsa.config.places import CONFIG_DIR
from fedwsa.data.federated import open_federated
from fedwsa.remembered import in_run
from fedwsa.schema.config import Config

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra is imported where something is composed: the workers of a simulation, which get a composed
# run, are spared it.

_Schema = TypeVar("_Schema", bound=BaseModel)


def parse(composed: DictConfig) -> Config:
    """Check what Hydra composed as a run; see :func:`parse_as`.

    ``clients.count: null`` becomes the number of clients that the partition has, so that nothing
    else meets it; the data are opened for that.
    """
    values = _plain(composed)
    clients = values.get("clients")
    if isinstance(clients, dict) and clients.get("count", 1) is None:
        # Any number, so that all other keys are checked before.
        one = _checked(Config, {**values, "clients": {**clients, "count": 1, "sizes": None}})
        opened = open_federated(one.data_spec.model_copy(update={"clients": None}))
        count = len(opened.partition.shares)
        values = {**values, "clients": {**clients, "count": count}}
    return _checked(Config, values)


def parse_as(schema: type[_Schema], composed: DictConfig) -> _Schema:
    """Check what Hydra composed against a schema.

    Raises
    ------
    ConfigError
        All that is wrong, on one line.
    """
    return _checked(schema, _plain(composed))


def _plain(composed: DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: must be given") from None
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    return cast(dict[str, Any], values)


def _checked(schema: type[_Schema], values: Mapping[str, Any]) -> _Schema:
    try:
        return schema.model_validate(values)
    except PydanticError as error:
        raise ConfigError(one_line(error)) from None


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose a run from ``conf/`` and overrides as on the command line; see :func:`compose_as`."""
    return parse(_composed_by_hydra("config", overrides))


def compose_as(schema: type[_Schema], name: str, overrides: Sequence[str] = ()) -> _Schema:
    """Compose the file ``name`` of ``conf/`` with overrides, and check it against a schema.

    Raises
    ------
    ConfigError
        If a value is wrong. Unknown keys and options raise Hydra's own errors.
    """
    return parse_as(schema, _composed_by_hydra(name, overrides))


def _composed_by_hydra(name: str, overrides: Sequence[str]) -> DictConfig:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fedwsa.config.search_path import register

    register()
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return hydra.compose(name, overrides=free_arguments(overrides))
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # what Hydra does not foresee, as local=0
        raise ConfigError(f"cannot compose {shlex.join(overrides)}: {error}") from error


def from_run_config(run_config: Mapping[str, object]) -> Config:
    """Compose the run of a deployment: Flower's run_config takes scalars, so all is in one.

    Parameters
    ----------
    run_config
        Its ``overrides`` are written as on the command line; none: the defaults.

    Raises
    ------
    ConfigError
        If they cannot be composed.
    """
    from hydra.errors import HydraException

    words = str(run_config.get("overrides", ""))
    try:
        return _composed(words)
    except HydraException as error:
        from fedwsa.config.explain import explain  # which imports this module

        raise ConfigError(f"overrides: {explain(error, shlex.split(words))}") from None
    except ConfigError:
        raise
    except ValueError as error:  # quotes that do not match
        raise ConfigError(f"overrides: {error}") from None


@in_run(1)  # a client asks at every message
def _composed(overrides: str) -> Config:
    return compose(shlex.split(overrides))


_FREE = ("strategy.args.", "strategy.args=", "sizes.", "sizes=", "tracker.", "bench.variants.")
_REPLACED = ("clients.sizes", "bench.variants")


def free_arguments(overrides: Sequence[str]) -> list[str]:
    """Let ``strategy.args.KEY=VALUE`` name any key: Hydra wants ``++`` before a new one.

    ``sizes.NAME.KEY=VALUE`` and ``tracker.NAME.KEY=VALUE`` likewise. Mappings that say all at once
    take the place of what was there, which Hydra would merge them with. Everything else stays
    closed; the arguments are checked against the signatures of strategy, model and tracker.
    """
    found: list[str] = []
    for override in overrides:
        if override.partition("=")[0] in _REPLACED:
            found.append(f"{override.partition('=')[0]}=null")
        found.append(f"++{override}" if override.startswith(_FREE) else override)
    return found
