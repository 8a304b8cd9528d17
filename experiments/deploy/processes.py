"""The programs of a federation on this machine: started, watched, ended whatever happens."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import psutil

from fedwsa.config.component import ConfigError
from fedwsa.descendants import end_descendants

_PROBLEM = re.compile(r"^\[|error:|refused|denied|failed to|in use", re.IGNORECASE)
_VARIABLE = "FEDWSA_FEDERATION"  # which all that belongs together inherits
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def free_port(wanted: int | None = None) -> int:
    """A port of 127.0.0.1 that nobody listens at.

    Raises
    ------
    ConfigError
        If the one that is wanted is in use.
    """
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise ConfigError(f"--port {wanted}: {reason}; take another, or none") from None
        return int(probe.getsockname()[1])


class Processes:
    """Programs that end together.

    Parameters
    ----------
    logs
        Folder of their output.
    environment
        Variables beside those of this process.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._mark = uuid4().hex
        self.logs, self._environment = logs, {**environment, _VARIABLE: self._mark}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while found := self.alive():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._running.values():
                process.poll()  # takes note of its end
            time.sleep(0.05)

    def alive(self) -> list[int]:
        """All that run of the programs started here, and of what they started.

        Some are nobody's children any more: a SuperNode that ends leaves its SuperExec behind. All
        have inherited a variable.
        """
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # ended meanwhile, or somebody else's
                if process.environ().get(_VARIABLE) == self._mark:
                    found.append(process.pid)
        return found

    def start(self, name: str, words: Sequence[str | Path]) -> None:
        """Start a program of this environment; what it prints goes to ``NAME.log``."""
        with (self.logs / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [str(word) for word in words],
                cwd=self.logs.parent,
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to answer
            )

    def _variables(self) -> dict[str, str]:
        # Flower starts its own programs by their bare names.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, "PATH": path, **self._environment}

    def finish(self, name: str, seconds: float) -> None:
        """Return once a program has ended well.

        Raises
        ------
        ConfigError
            If it fails or takes longer; with the last line that it printed.
        """
        self.wait(f"{name} to end", lambda: self.code(name) is not None, seconds)
        if self.code(name):
            raise ConfigError(f"{name} failed: {self.last_line(name)}")

    def wait(self, what: str, done: Callable[[], bool], seconds: float, *needed: str) -> None:
        """Return once something is so.

        Raises
        ------
        ConfigError
            If it takes longer, or a program that it needs has ended.
        """
        end = time.monotonic() + seconds
        while not done():
            for name in needed:
                if self.code(name) is not None:
                    raise ConfigError(f"{name} has ended: {self.last_line(name)}")
            if time.monotonic() > end:
                raise ConfigError(f"waited {seconds:g} s for {what}; see the logs in {self.logs}")
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """End a program and all that it started, as a power cut does."""
        process = self._running[name]
        end_descendants(process.pid)
        process.kill()
        process.wait()

    def stop(self, name: str) -> None:
        """Ask a program to end, as whoever starts it again does, and wait for it."""
        self._running[name].terminate()
        self._running[name].wait()

    def code(self, name: str) -> int | None:
        """Its exit code; None: it runs."""
        return self._running[name].poll()

    def log(self, name: str) -> str:
        """What it has printed."""
        text = (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return _COLOURS.sub("", text)

    def last_line(self, name: str) -> str:
        """The last line that names an error, or else the last one."""
        lines = [line.strip() for line in self.log(name).splitlines() if line.strip()]
        errors = [line for line in lines if _PROBLEM.search(line)]
        return (errors or lines or ["it printed nothing"])[-1]


def answers(port: int) -> bool:
    """Whether somebody listens at a port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
