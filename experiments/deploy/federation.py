"""A SuperLink and SuperNodes on 127.0.0.1, with TLS and nodes that prove who they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.deploy.keys import write_keys
from experiments.deploy.processes import Processes, answers, free_port
from fedwsa.config.component import ConfigError
from fedwsa.launcher import APPS
from fedwsa.runfolder.files import write_text

NAME = "demo"
"""Of the connection, in Flower's configuration."""

_BIN = Path(sys.executable).parent
_START = 240.0  # seconds that a program has to start: a busy machine takes long
_HOSTS = ["localhost", "127.0.0.1"]


def variables(folder: Path) -> dict[str, str]:
    """Of all programs: everything below one folder, nothing fetched or reported."""
    return {
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "FEDWSA_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }


class LocalFederation:
    """A server and nodes, as programs.

    Parameters
    ----------
    folder
        Of keys, logs and runs.
    processes
        Runs the programs.
    nodes
        How many have a key that is to be registered.
    port
        Of the server; None: a free one.
    days
        How long the server's certificate is valid.
    """

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        nodes: int,
        port: int | None = None,
        days: float = 1.0,
    ) -> None:
        self.folder, self.processes, self.nodes = folder, processes, nodes
        self.keys = folder / "keys"
        self.port = free_port(port)
        write_keys(self.keys, _HOSTS, nodes, days)
        home = folder / "flwr"
        home.mkdir(parents=True, exist_ok=True)
        write_text(
            home / "config.toml",
            f'[superlink.{NAME}]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.keys / "ca.crt"}"\n',
        )

    def start_server(self) -> None:
        """Start the SuperLink, and return once it listens."""
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--enable-supernode-auth"]
        words += ["--disable-runtime-dependency-installation"]
        words += ["--database", str(self.folder / "server.db")]  # keys outlive it
        for flag, name in {"ca-certfile": "ca.crt", "certfile": "server.crt"}.items():
            words += [f"--ssl-{flag}", str(self.keys / name)]
        words += ["--ssl-keyfile", str(self.keys / "server.key")]
        self.processes.start("server", [_BIN / "flower-superlink", *words])
        listening = lambda: answers(self.port)  # noqa: E731
        self.processes.wait("the server to listen", listening, _START, "server")

    def register(self, node: int) -> None:
        """Let the server know the public key of a node."""
        key = self.keys / f"node-{node}.pub"
        said = self._flwr(f"register-{node}", "supernode", "register", key, NAME)
        _answer(said, f"node {node} could not be registered")

    def start_node(
        self, name: str, config: Mapping[str, int | str], key: Path, ca: Path | None = None
    ) -> None:
        """Start a SuperNode with a private key, and a certificate of the authority it trusts."""
        pairs = " ".join(f"{k}={json.dumps(v)}" for k, v in config.items())
        words: list[str | Path] = [_BIN / "flower-supernode"]
        words += ["--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port())]
        words += ["--root-certificates", ca or self.keys / "ca.crt"]
        words += ["--auth-supernode-private-key", key, "--node-config", pairs]
        self.processes.start(name, words)

    def submit(self, overrides: str, resume: str = "") -> int:
        """Hand a run to the server, maybe one to go on with in its folder; returns its id."""
        run_config = f"overrides={json.dumps(overrides)} resume={json.dumps(resume)}"
        said = self._flwr("submit", "run", APPS, NAME, "-c", run_config)
        return int(_answer(said, "the run was refused")["run-id"])

    def status(self, run: int) -> tuple[str, str]:
        """How a run stands, and what Flower says to it."""
        said = self._flwr("status", "list", NAME, "--run-id", str(run))
        [found] = _answer(said, "the run is unknown")["runs"]
        return str(found["status"]), str(found["status-details"])

    def said(self, run: int) -> str:
        """What the ServerApp of a run has printed, as ``flwr run --stream`` shows it."""
        self.processes.start("said", [_BIN / "flwr", "log", "--show", str(run), NAME])
        self.processes.finish("said", _START)
        return self.processes.log("said")

    def _flwr(self, name: str, *words: str | Path) -> str:
        """What a command of Flower's says, as JSON, whether it worked or not."""
        self.processes.start(name, [_BIN / "flwr", *words, "--format", "json"])
        self.processes.wait(name, lambda: self.processes.code(name) is not None, _START)
        return self.processes.log(name)

    def run_folder(self, run: int) -> Path:
        """Where the server leaves the files of a run."""
        return self.folder / "runs" / f"flower-{run}"


def _answer(text: str, problem: str) -> dict[str, Any]:
    """What ``flwr --format json`` says, if it says success."""
    start = text.find("{")
    try:
        said: dict[str, Any] = json.loads(text[start:])
    except ValueError:
        lines = text.strip().splitlines() or ["no answer"]
        raise ConfigError(f"{problem}: {lines[-1]}") from None
    if not said.get("success"):
        raise ConfigError(f"{problem}: {' '.join(str(said.get('error-message')).split())}")
    return said
