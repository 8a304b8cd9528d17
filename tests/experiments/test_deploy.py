"""Keys, ports and programs of a federation; the slow ones are real deployments on 127.0.0.1."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from safetensors.torch import load_file

from experiments.commands.simulate import simulate
from experiments.deploy import keys
from experiments.deploy.federation import LocalFederation, variables
from experiments.deploy.keys import write_keys
from experiments.deploy.processes import Processes, free_port
from fedwsa.config.component import ConfigError
from fedwsa.schema.compose import compose
from tests.given import ROOT


def test_keys_fit_together_and_are_private(tmp_path) -> None:
    write_keys(tmp_path, ["fl.example.org", "127.0.0.1"], 2, days=30)
    authority, own = (
        x509.load_pem_x509_certificate((tmp_path / f).read_bytes())
        for f in ("ca.crt", "server.crt")
    )
    own.verify_directly_issued_by(authority)
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    left = own.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29) < left < timedelta(days=30)
    publics = set()
    for node in ("node-0", "node-1"):
        private = load_ssh_private_key((tmp_path / node).read_bytes(), None)
        public = load_ssh_public_key((tmp_path / f"{node}.pub").read_bytes())
        assert private.public_key() == public
        publics.add((tmp_path / f"{node}.pub").read_text())
        assert (tmp_path / node).stat().st_mode & 0o077 == 0
    assert len(publics) == 2
    with pytest.raises(ConfigError, match=r"holds ca\.crt, .* already"):
        write_keys(tmp_path, ["localhost"], 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", ""], "--host '' is no address and no name of a machine"),
        (["--host", "bad host!é"], "--host 'bad host!é' is no address and no name of a machine"),
        (["--host", "a", "--days", "1e9"], "--days 1e+09: must be above 0, and 36500 at most"),
        (["--host", "a", "--nodes", "0"], "--nodes 0: must be above 0"),
    ],
)
def test_keys_that_cannot_be_are_refused_in_one_line(
    words, said, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["keys", str(tmp_path / "keys"), *words])
    with pytest.raises(SystemExit) as ended:
        keys.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"keys: {said}\n"
    assert not (tmp_path / "keys").exists()


def test_a_port_in_use_is_refused_in_one_line(tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: Address already in use; take"):
            free_port(port)
        command = [sys.executable, "-m", "experiments.deploy", "--port", str(port)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"deploy-demo: --port {port}: Address already in use; take another, or none\n"
    )


def test_programs_end_together_and_orphans_with_them(tmp_path) -> None:
    orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'])"
    with Processes(tmp_path, {}) as processes:
        processes.start("parent", [sys.executable, "-c", orphan])
        processes.finish("parent", 60)
        processes.start("other", [sys.executable, "-c", "import time; time.sleep(600)"])
        assert processes.code("other") is None
    assert processes.alive() == []
    assert processes.code("other") == -signal.SIGKILL


def test_a_program_that_fails_is_told_with_its_last_line(tmp_path) -> None:
    with Processes(tmp_path, {}) as processes:
        processes.start("p", [sys.executable, "-c", "import sys; sys.exit('error: x')"])
        with pytest.raises(ConfigError, match=r"p failed: error: x$"):
            processes.finish("p", 60)


@pytest.mark.slow
@pytest.mark.timeout(1700)
def test_the_demonstration_learns_what_the_simulation_does_and_leaves_nobody(tmp_path) -> None:
    command = [sys.executable, "-m", "experiments.deploy", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the model is the simulation's: allclose" in done.stdout
    assert "stranger, whose key nobody registered: " in done.stdout
    assert "Failed to activate SuperNode" in done.stdout
    assert [f"round {n}: accuracy" in done.stdout for n in (1, 2, 3)] == [True] * 3
    assert alive_below(tmp_path / "kept") == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_ends_every_program(tmp_path) -> None:
    command = [sys.executable, "-m", "experiments.deploy", "--keep", str(tmp_path / "kept")]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 500
        while not (tmp_path / "kept" / "logs" / "node-0.log").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=600)
    finally:
        process.terminate()  # it ends its programs then, too
    assert process.returncode == 130
    assert said == "deploy-demo: interrupted\n"
    assert alive_below(tmp_path / "kept") == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_vanishes_does_not_hang_the_run(tmp_path) -> None:
    """Killed in round 2, which goes on without it when `clients.timeout` is over."""
    # On a busy machine the other node may be late, too: the run goes on then.
    words = "rounds=3 clients.count=2 clients.timeout=40 guard.below=skip device=cpu"
    with Processes(tmp_path / "logs", variables(tmp_path)) as processes:
        federation = LocalFederation(tmp_path, processes, 2)
        start(federation, [0, 1])
        run = federation.submit(words)
        folder = federation.run_folder(run)
        first = lambda: len(rows(folder / "history.csv")) == 1  # noqa: E731
        processes.wait("the first round", first, 400)
        processes.kill("node-1")
        processes.wait("the end", (folder / "result.json").exists, 300)
    assert processes.alive() == []
    table = rows(folder / "history.csv")
    assert ["1" in row["failed"].split() for row in table[1:]] == [True, True]
    assert [row["cohort"] for row in table] == ["0 1"] * 3
    events = (json.loads(s) for s in (folder / "events.jsonl").read_text().splitlines())
    first, *later = (e for e in events if e["client"] == 1 and e["round"] > 1)
    missing = {"round": 2, "stage": "train", "client": 1, "kind": "missing"}
    assert first == {**missing, "reason": "no answer in 40 s"}
    # The server has noticed by then, and says so at once.
    assert later[-1]["round"] == 3
    assert later[-1]["kind"] == "failed"
    assert "Node Unavailable" in later[-1]["reason"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_is_started_again_takes_part_in_a_run_whose_clients_remember(tmp_path) -> None:
    """Its variate is gone: it says so, and begins anew, as the server does with its own of it."""
    words = "rounds=1000 strategy=scaffold wsa=on clients.count=2 clients.timeout=100 device=cpu"
    with Processes(tmp_path / "logs", variables(tmp_path)) as processes:
        federation = LocalFederation(tmp_path, processes, 2)
        start(federation, [0, 1])
        folder = federation.run_folder(federation.submit(words))
        failed = lambda: [row["failed"] for row in rows(folder / "history.csv")]  # noqa: E731
        processes.wait("the first round", lambda: failed() == [""], 400)
        processes.stop("node-1")
        federation.start_node("node-1", {"partition-id": 1}, federation.keys / "node-1")
        back = lambda: "1" in failed() and failed()[-1] == ""  # noqa: E731
        processes.wait("the node to be back", back, 400, "server", "node-1")
    events = [json.loads(s) for s in (folder / "events.jsonl").read_text().splitlines()]
    assert any("has lost what it kept" in event["reason"] for event in events)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_with_one_partition_end_the_run_in_one_line(tmp_path) -> None:
    with Processes(tmp_path / "logs", variables(tmp_path)) as processes:
        federation = LocalFederation(tmp_path, processes, 2)
        start(federation, [1, 1])
        run = federation.submit("clients.count=2 device=cpu")
        ended = lambda: federation.status(run)[0].startswith("finished")  # noqa: E731
        processes.wait("the end", ended, 400)
        assert federation.status(run)[0] == "finished:failed"
        assert federation.status(run)[1].endswith("two nodes have partition 1")
        said = federation.said(run)
    assert said.count("fedwsa: two nodes have partition 1\n") == 1
    assert "Traceback" not in said
    assert not federation.run_folder(run).exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_killed_in_a_run_goes_on_after_its_restart(tmp_path) -> None:
    """The whole machine is gone, but for its disk; the nodes come back by themselves."""
    words = "rounds=3 strategy=fedavgm wsa=on clients.count=2 checkpoint.every=1 device=cpu"
    with Processes(tmp_path / "logs", variables(tmp_path)) as processes:
        federation = LocalFederation(tmp_path, processes, 2)
        start(federation, [0, 1])
        folder = federation.run_folder(federation.submit(words))
        second = lambda: len(rows(folder / "history.csv")) >= 2  # noqa: E731
        processes.wait("the second round", second, 400)
        processes.kill("server")
        assert not (folder / "result.json").exists()
        federation.start_server()
        federation.submit(words, resume=str(folder))
        processes.wait("the end", (folder / "result.json").exists, 400)
    whole = compose([*words.split(), f"cache_dir={tmp_path / 'cache'}", "runtime.workers=1"])
    simulate(whole, tmp_path / "whole")
    models = [load_file(f / "model.safetensors") for f in (folder, tmp_path / "whole")]
    for name, tensor in models[0].items():
        torch.testing.assert_close(tensor, models[1][name], rtol=0, atol=2e-4)  # rounding
    assert [row["round"] for row in rows(folder / "history.csv")] == ["1", "2", "3"]


def start(federation: LocalFederation, partitions: list[int]) -> None:
    """A server, and a node for each partition."""
    federation.start_server()
    for node, partition in enumerate(partitions):
        federation.register(node)
        key = federation.keys / f"node-{node}"
        federation.start_node(f"node-{node}", {"partition-id": partition}, key)


def rows(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def alive_below(folder: Path) -> list[int]:
    """Processes whose Flower home is in a folder."""
    mark = f"FLWR_HOME={folder / 'flwr'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("days", "ca", "said"),
    [
        (-1.0, None, "certificate has expired"),
        (1.0, "foreign/ca.crt", "unable to get local issuer certificate"),
    ],
)
def test_nodes_refuse_a_server_without_a_valid_certificate(tmp_path, days, ca, said) -> None:
    write_keys(tmp_path / "foreign", ["localhost", "127.0.0.1"], 1)
    with Processes(tmp_path / "logs", variables(tmp_path)) as processes:
        federation = LocalFederation(tmp_path, processes, 1, days=days)
        federation.start_server()
        trusted = None if ca is None else tmp_path / ca
        federation.start_node("node", {"partition-id": 0}, federation.keys / "node-0", trusted)
        processes.wait("the node to give up", lambda: processes.code("node") is not None, 600)
        assert processes.code("node") != 0
        assert said in processes.log("node")
    assert processes.alive() == []
