"""Where Hydra looks for options: in ``conf/``, then in a ``conf`` folder where the person is."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from fedwsa.config import own_options


class OwnOptions(SearchPathPlugin):
    """Options of one's own, such as ``conf/model/mine.yaml``; ours come first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder, if there is one."""
        folder = own_options()
        if folder is not None:
            search_path.append("working-directory", f"file://{folder}")


def register() -> None:
    """Let Hydra know, before it composes; once or more."""
    Plugins.instance().register(OwnOptions)
