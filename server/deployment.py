"""A run between real machines: its data, its log, and how it ends when it cannot go on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedwsa.algorithms.traits import traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.config.component import ConfigError, locate
from fedwsa.data.federated import FederatedData, open_federated
from fedwsa.data.own import is_own, open_reference, open_server
from fedwsa.schema.config import Config
from server.folder import require_begun
from server.nodes import PartitionGrid
from server.rounds import RunError

logger = logging.getLogger("fedwsa")


def open_fleet(config: Config, grid: Grid) -> tuple[FederatedData, PartitionGrid]:
    """Wait for the nodes, and the data of the run as the server sees them.

    Raises
    ------
    ConfigError
        If the data cannot be read, or the nodes cannot take part.
    """
    count, spec = config.clients.count, config.data_spec
    if not is_own(config.partition):
        data = open_federated(spec)  # before anybody is asked
        return data, PartitionGrid(grid, count)
    maker = locate(config.strategy.target, "strategy._target_")
    if not traits_of(maker).on_devices:
        raise ConfigError("strategy=centralised: there is no pool, with partition=own")
    whole, told = open_reference(spec)
    fleet = PartitionGrid(grid, count, reference=told.model_dump_json())
    return open_server(spec, whole, told, [fleet.examples[k] for k in range(count)]), fleet


def folder_of(context: Context) -> tuple[Path, bool]:
    """The run folder, and whether it holds the beginning of the run, which is to go on.

    Raises
    ------
    ConfigError
        If there is nothing to go on with.
    """
    begun = str(context.run_config.get("resume", ""))
    if not begun:
        return Path("runs") / f"flower-{context.run_id}", False
    require_begun(Path(begun))
    return Path(begun), True


def require_no_memory(strategy: Strategy) -> None:
    """Refuse checkpoints where clients remember, which they do at their nodes.

    Raises
    ------
    ConfigError
        Names the strategy.
    """
    for part in chain(strategy):
        if traits_of(part).clients_remember:
            raise ConfigError(
                f"checkpoint.every: with {type(part).__name__} the nodes of a deployment keep what "
                "a checkpoint of the server would lack; run it without"
            )


@contextmanager
def told() -> Iterator[None]:
    """Write what the run says to standard error, which Flower's log has, and why it ended early.

    The reason is a line; Flower, which logs the error once more, then leaves out the traceback.
    """
    handler = logging.StreamHandler(sys.stderr)  # the one that Flower has put in its place
    handler.setFormatter(logging.Formatter("fedwsa: %(message)s"))
    handler.setLevel(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)  # for run.log
    try:
        yield
    except (ConfigError, RunError) as error:
        logger.error("%s", error)
        logging.getLogger("flwr").addFilter(_without_traceback)
        raise error.with_traceback(None) from None
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _without_traceback(record: logging.LogRecord) -> bool:
    """A filter that takes the traceback of a refusal from what is logged."""
    if record.exc_info and isinstance(record.exc_info[1], ConfigError | RunError):
        record.exc_info = None
    return True
