"""Where a simulation is started: its configuration, event loops, modules that the driver finds."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from pathlib import Path

import pytest
import ray
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedwsa.descendants import family
from fedwsa.simulation import SimulationError, run_simulation
from fedwsa.simulation.cluster import connect

PROGRAMS = ("raylet/raylet", "gcs_server", "/log_monitor.py", "/monitor.py", "dashboard.py")
pytestmark = pytest.mark.usefixtures("two_workers")


def asking(found: list[dict[str, object]]) -> ServerApp:
    """A ServerApp that asks two clients, and notes what they say."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        found.append(dict(context.run_config))
        messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        replies = grid.send_and_receive(messages)
        found.extend(dict(r.content["c"]) if r.has_content() else {"": r.error} for r in replies)

    return app


def telling() -> ClientApp:
    """A ClientApp that says what its context has been given."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({"c": ConfigRecord(dict(context.run_config))}), reply_to=message)

    return app


def test_the_run_s_configuration_reaches_server_and_clients() -> None:
    given = {"lr": 0.1, "model.name": "cnn", "rounds": 3, "amp": True}
    found: list[dict[str, object]] = []
    run_simulation(asking(found), telling(), 2, workers=1, run_config=given)
    assert found == [given] * 3


@pytest.mark.parametrize("given", [{"a": [1]}, {"a": {"b": 1}}, {1: "a"}, {"a": None}])
def test_what_no_flower_app_can_have_is_refused(given) -> None:
    with pytest.raises(SimulationError, match=r"run_config: .* must be a string"):
        run_simulation(asking([]), telling(), 1, run_config=given)


def test_what_means_nothing_here_is_warned_of(caplog) -> None:
    found: list[dict[str, object]] = []
    backend = {"client-resources": {"num-cpus": 1, "memory": 1e6}, "actor": {"tensorflow": 0}}
    run_simulation(asking(found), telling(), 1, workers=1, backend_config=backend)
    assert found == [{}, {}]
    # By identity: where the logger has a handler of its own, caplog sees a record twice.
    warned = {id(r): r.getMessage() for r in caplog.records if r.name == "fedwsa"}
    assert list(warned.values()) == [
        "backend_config: actor, client_resources.memory: unknown here, and ignored"
    ]


def test_an_event_loop_may_run_outside_and_another_inside() -> None:
    found: list[str] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        async def inside() -> None:
            found.append("inside")

        asyncio.run(inside())
        raise KeyError("of the app")

    async def notebook() -> None:
        run_simulation(app, telling(), 1, workers=1)

    with pytest.raises(KeyError, match="of the app"):
        asyncio.run(notebook())
    assert found == ["inside"]


def test_a_module_that_only_the_driver_finds(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "only_the_driver_s.py").write_text(
        "from flwr.app import ConfigRecord, Message, RecordDict\n"
        "from flwr.clientapp import ClientApp\n"
        "client = ClientApp()\n"
        "@client.query()\n"
        "def query(message, context):\n"
        "    return Message(RecordDict({'c': ConfigRecord({'x': 1})}), reply_to=message)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("only_the_driver_s")
    found: list[dict[str, object]] = []
    try:
        run_simulation(asking(found), module.client, 2, workers=1)
    finally:
        del sys.modules["only_the_driver_s"]
    assert found == [{}, {"x": 1}, {"x": 1}]


@pytest.mark.parametrize("shown", [False, True])
def test_ray_starts_no_program_that_nobody_asks_anything(shown: bool) -> None:
    ray.shutdown()
    connect(None, num_cpus=1, log_to_driver=shown)
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in family(os.getpid())]
    running = {name for name in PROGRAMS for line in lines if name in line}
    assert running == {"raylet/raylet", "gcs_server"} | ({"/log_monitor.py"} if shown else set())
    found: list[dict[str, object]] = []
    run_simulation(asking(found), telling(), 2, workers=1, run_config={"lr": 0.1})
    assert found == [{"lr": 0.1}] * 3
    ray.shutdown()
    connect(None, num_cpus=2)  # as the other tests found it
