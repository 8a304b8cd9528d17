"""How commands that compose a configuration end: an error of Hydra's is one line, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fedwsa.command_line import fail, of_system


@contextmanager
def composing(command: str, overrides: Sequence[str], config: str = "config") -> Iterator[None]:
    """Inside of :func:`in_one_line`: the same for Hydra's errors and for files it cannot use."""
    # Only now: commands that compose nothing do without Hydra's half second.
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fedwsa.config.explain import explain

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        fail(command, explain(error, overrides, config, command))
    except BrokenPipeError:
        raise
    except OSError as error:  # everything else says itself what it cannot do
        fail(command, of_system(error))
