"""Where Hydra looks for options: in ``conf/``, then in a ``conf`` folder where the person is."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from fedwsa.config.places import CONFIG_DIR, own_options

logger = logging.getLogger("fedwsa")


class OwnOptions(SearchPathPlugin):
    """Options of one's own, such as ``conf/model/mine.yaml``; ours come first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder, if there is one."""
        folder = own_options()
        if folder is not None:
            _warn_of_hidden(folder)
            search_path.append("working-directory", f"file://{folder}")


@lru_cache(maxsize=1)
def _warn_of_hidden(folder: Path) -> None:
    """Say once which of somebody's options are not found, and why."""
    for file in sorted(folder.glob("*/**/*.y*ml")):
        own = file.relative_to(folder)
        if file.suffix == ".yml":
            logger.warning("conf/%s is not used: its name must end in .yaml", own)
        elif (CONFIG_DIR / own).exists():
            logger.warning("conf/%s is not used: an option of ours has that name", own)


def register() -> None:
    """Let Hydra know, before it composes; once or more."""
    Plugins.instance().register(OwnOptions)
