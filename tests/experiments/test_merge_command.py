"""The command ``fedwsa-merge``: what it writes, what it prints, what it refuses."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from experiments.commands.merge import main
from fedwsa import seeding
from fedwsa.config.component import Component, ConfigError
from fedwsa.data.loading import load, open_source
from fedwsa.merge.average import average
from fedwsa.merge.fisher import fisher
from fedwsa.merge.fisher_information import fisher_information
from fedwsa.merge.ugm import ugm
from fedwsa.merge.wsa import wsa
from fedwsa.models import build_model
from fedwsa.models.files import load_network, save_network
from fedwsa.schema.compose import compose
from tests.given.commands import called

MLP = Component.of("fedwsa.models.mlp.mlp", width=0.2, depth=1)
RESNET = Component.of("fedwsa.models.resnet.resnet", width=0.25, depth=8, norm="batch")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def digits(cache):
    return load(open_source(compose([]).dataset.source), cache)


@pytest.fixture
def call(cache, tmp_path, monkeypatch, capsys):
    """Run the command in a folder; its exit code, what it printed, what it said was wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDWSA_CACHE", cache)
    return called("fedwsa-merge", main, monkeypatch, capsys)


def network(file: str, digits, seed: int, component: Component = MLP) -> dict[str, Tensor]:
    """A file of ours, of a network with random weights."""
    model = build_model(component, digits.shape, digits.classes, seed)
    state = {k: t.clone() for k, t in model.state_dict().items()}
    save_network(Path(file), state, component, digits, seed)
    return state


def refused(found: tuple[int, str, str]) -> str:
    """The line, of a command that wrote nothing else."""
    code, printed, line = found
    assert code == 1
    assert printed == ""
    assert line.count("\n") == 1
    return line.removeprefix("fedwsa-merge: ").rstrip("\n")


def test_it_writes_what_the_operator_gives_and_how_it_was_made(call, digits) -> None:
    states = [network(f"{k}.safetensors", digits, k) for k in range(2)]
    code, printed, wrong = call("0.safetensors", "1.safetensors", "--weights", "3,1",
                                "--out", "merged.safetensors")  # fmt: skip
    assert (code, wrong) == (0, "")
    found = load_file("merged.safetensors")
    for name, tensor in wsa(states, weights=[3, 1]).items():
        assert torch.equal(found[name], tensor)
    assert "hidden0.weight" in printed
    with safe_open("merged.safetensors", "pt") as opened:
        facts = json.loads(opened.metadata()["fedwsa"])
    assert facts["model"]["_target_"] == MLP.target
    told = facts["merged"]
    assert (told["method"], told["weights"]) == ("wsa", [3, 1])
    assert [i["file"] for i in told["inputs"]] == ["0.safetensors", "1.safetensors"]
    assert all(len(i["sha256"]) == 64 for i in told["inputs"])
    assert load_network(Path("merged.safetensors")).classes == 10
    assert sorted(p.name for p in Path().iterdir()) == [
        "0.safetensors", "1.safetensors", "merged.safetensors"
    ]  # fmt: skip


def test_state_dicts_of_torch_save_are_read_too(call, digits) -> None:
    states = [network(f"{k}.safetensors", digits, k) for k in range(2)]
    torch.save(states[0], "a.pt")
    torch.save({"state_dict": states[1], "epoch": 3}, "b.pth")
    torch.save(states[1], "old.pt", _use_new_zipfile_serialization=False)
    for other in ("b.pth", "old.pt"):
        code, _, wrong = call("a.pt", other, "--method", "average", "--out", "m.safetensors",
                              "--force")  # fmt: skip
        assert (code, wrong) == (0, "")
        for name, tensor in load_file("m.safetensors").items():
            assert torch.equal(tensor, average(states)[name])


class Evil:
    def __reduce__(self):
        return os.system, ("touch run",)


def test_a_file_with_code_is_refused_and_nothing_is_run(call, digits) -> None:
    state = network("a.safetensors", digits, 0)
    torch.save({**state, "extra": Evil()}, "evil.pt")
    torch.save(nn.Linear(2, 2), "module.pt")
    for file in ("evil.pt", "module.pt"):
        line = refused(call("a.safetensors", file, "--out", "m.safetensors"))
        assert line == (
            f"{file} holds code or objects beside weights, or is damaged; none of it was run: "
            "save the state dict alone"
        )
    assert not Path("run").exists()
    assert not Path("m.safetensors").exists()


def told(file: str, state: dict[str, Tensor], **changes: object) -> None:
    """A file that says of its network what another does, but for some changes."""
    with safe_open("0.safetensors", "pt") as opened:
        facts = json.loads(opened.metadata()["fedwsa"])
    save_file(state, file, {"fedwsa": json.dumps({**facts, **changes})})


def test_a_file_cannot_say_what_is_imported_and_called(call, digits, tmp_path) -> None:
    state = network("0.safetensors", digits, 0)
    (tmp_path / "evil_net.py").write_text(
        "from pathlib import Path\nPath('run').touch()\nfrom fedwsa.models.mlp import mlp as make\n"
    )
    own = MLP.model_dump(by_alias=True) | {"_target_": "evil_net.make"}
    told("own.safetensors", state, model=own)
    words = ["own.safetensors", "own.safetensors", "--evaluate", "dataset=digits"]
    for method in ("average", "fisher"):
        line = refused(call(*words, "--method", method))
        assert line.startswith("own.safetensors is of a network of evil_net.make, which is none")
    line = refused(call(*words[:2], "--method", "permutation", "--out", "m.safetensors"))
    assert "evil_net.make, which is none of ours" in line
    with pytest.raises(ConfigError, match=r"evil_net.make, which is none of ours"):
        load_network(Path("own.safetensors"))
    assert not Path("run").exists()
    assert call(*words, "--builder", "evil_net.make")[0] == 0  # who says so themselves
    assert Path("run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"data": None},
        {"shape": None},
        {"shape": "x"},
        {"classes": "x"},
        {"model": "x"},
        {"data": 1},
    ],
)
def test_damaged_metadata_are_refused(changes, call, digits) -> None:
    told("hurt.safetensors", network("0.safetensors", digits, 0), **changes)
    line = refused(call("hurt.safetensors", "0.safetensors", "--out", "m.safetensors"))
    assert line == "hurt.safetensors: what it says of its network is damaged"


def test_models_without_a_layer_that_has_a_scope_are_merged_too(call) -> None:
    for name, one in {"a": 1.0, "b": 3.0}.items():
        huge = torch.full((2, 2), one * 1e20)  # whose squares are infinite
        save_file({"b": torch.full((5,), one), "w": huge}, f"{name}.safetensors")
    code, _, wrong = call("a.safetensors", "b.safetensors", "--method", "average",
                          "--out", "m.safetensors")  # fmt: skip
    assert (code, wrong) == (0, "")
    assert load_file("m.safetensors")["b"].tolist() == [2.0] * 5


def test_tensors_that_cannot_be_merged_are_named(call) -> None:
    for kind, said in {
        torch.float8_e4m3fn: "weights of float8_e4m3fn cannot be merged",
        torch.complex64: "complex weights cannot be merged",
    }.items():
        save_file({"w": torch.ones(2, 2).to(kind)}, "a.safetensors")
        line = refused(call("a.safetensors", "a.safetensors", "--out", "m.safetensors"))
        assert line == f"w: {said}"
    torch.save({"w": torch.eye(2).to_sparse()}, "sparse.pt")
    line = refused(call("sparse.pt", "sparse.pt", "--out", "m.safetensors"))
    assert line == "sparse.pt: w is sparse, quantized or without content"
    torch.save({"w": nn.Parameter(torch.ones(2, 2))}, "p.pt")
    words = ["p.pt", "p.pt", "--base", "p.pt", "--method", "ties", "--out", "m.safetensors"]
    assert call(*words)[0] == 0


def test_what_an_operator_of_one_s_own_returns_is_looked_at(call, digits, tmp_path) -> None:
    network("a.safetensors", digits, 0)
    (tmp_path / "odd_merge.py").write_text(
        "def nothing(models, *, weights=None): pass\n"
        "def less(models, *, weights=None): return {'head.bias': models[0]['head.bias']}\n"
        "def nan(models, *, weights=None): return {k: v / 0 for k, v in models[0].items()}\n"
    )
    for name, said in {
        "nothing": "it must return a dict of tensors by name",
        "less": "the merged model lacks head.weight, which the first has",
        "nan": ": the merged model has NaN or infinite entries",
    }.items():
        words = ["--method", f"odd_merge.{name}", "--out", "m.safetensors"]
        assert said in refused(call("a.safetensors", "a.safetensors", *words))
    assert not Path("m.safetensors").exists()


def test_accuracies_of_inputs_of_rescaled_ones_and_of_the_merged_model(call, digits) -> None:
    states = [network(f"{k}.safetensors", digits, k) for k in range(2)]
    _, printed, _ = call("0.safetensors", "1.safetensors", "--evaluate", "dataset=digits")

    def accuracy(state: dict[str, Tensor]) -> str:
        model = build_model(MLP, digits.shape, digits.classes, 0)
        model.load_state_dict(state)
        with torch.no_grad():
            hits = model.eval()(digits.prepare(digits.test.inputs)).argmax(1) == digits.test.labels
        return f"{hits.float().mean():.4f}"

    rows = dict(line.strip().rsplit(None, 2)[:2] for line in printed.splitlines() if "." in line)
    assert rows["0.safetensors"] == accuracy(states[0])
    assert rows["1.safetensors"] == accuracy(states[1])
    moved = wsa.aligned(states)
    assert rows["0.safetensors, rescaled"] == accuracy(moved[0])
    assert rows["1.safetensors, rescaled"] == accuracy(moved[1])
    assert rows["merged by wsa"] == accuracy(wsa(states))


def test_a_table_of_all_methods_says_what_the_others_need(call, digits) -> None:
    for k in range(3):
        network(f"{k}.safetensors", digits, k)
    words = ["0.safetensors", "1.safetensors", "--method", "all", "--evaluate", "dataset=digits"]
    code, printed, _ = call(*words)
    assert code == 0
    assert "ties: needs --base FILE, the weights that the models began with\n" in printed
    rows = [line.split()[0] for line in printed.splitlines() if line.startswith(" ")]
    assert {"average", "wsa", "range", "percentile", "stages"} <= set(rows)
    _, printed, _ = call(*words, "--base", "2.safetensors")
    rows = [line.split()[0] for line in printed.splitlines() if line.startswith(" ")]
    assert {"ties", "task_arithmetic"} <= set(rows)


def test_fisher_information_is_computed_on_the_data_at_hand(call, digits) -> None:
    states = [network(f"{k}.safetensors", digits, k) for k in range(3)]
    base = states.pop()
    found = {}
    for method in ("fisher", "ugm"):
        words = ["--base", "2.safetensors", "--evaluate", "dataset=digits", "--samples", "40"]
        code, printed, wrong = call("0.safetensors", "1.safetensors", "--method", method, *words,
                              "--out", f"{method}.safetensors")  # fmt: skip
        assert (code, wrong) == (0, "")
        found[method] = load_file(f"{method}.safetensors")
        count = sum(t.numel() for t in found[method].values())
        assert f" of {count:,} entries have no Fisher information in any model" in printed

    def known(state: dict[str, Tensor]) -> dict[str, Tensor]:
        model = build_model(MLP, digits.shape, digits.classes, 0)
        model.load_state_dict(state)
        random = seeding.generator(0, "fisher")
        chosen = torch.randperm(len(digits.train), generator=random)[:40]
        inputs = digits.train.inputs[chosen]
        return fisher_information(model, inputs, random=random, prepare=digits.prepare)

    fishers, base_fisher = [known(state) for state in states], known(base)
    expected = {
        "fisher": fisher(states, fishers=fishers),
        "ugm": ugm(states, base=base, fishers=fishers, base_fisher=base_fisher, prior=0.01),
    }
    for method, state in expected.items():
        for name, tensor in state.items():
            torch.testing.assert_close(found[method][name], tensor)
            assert not torch.equal(tensor, average(states)[name])
    files = ["0.safetensors", "1.safetensors", "--method", "fisher", "--out", "m.safetensors"]
    assert refused(call(*files)) == (
        "--method fisher needs --evaluate dataset=..., data to compute the Fisher information on"
    )


def test_batch_norm_s_statistics_are_estimated_averaged_on_purpose_or_refused(call, digits) -> None:
    states = [network(f"{k}.safetensors", digits, k, RESNET) for k in range(2)]
    files = ["0.safetensors", "1.safetensors", "--out", "m.safetensors", "--method", "average"]
    assert refused(call(*files)).startswith("the models have BatchNorm, whose statistics belong")
    assert call(*files, "--batch-norm", "average")[0] == 0
    name = "norm.running_mean"
    both = load_file("m.safetensors")
    torch.testing.assert_close(both[name], (states[0][name] + states[1][name]) / 2)
    assert call(*files, "--force", "--evaluate", "dataset=digits")[0] == 0
    merged = load_file("m.safetensors")
    # The stem's are the mean over all training images of what the merged convolution gives; the
    # digits are fewer than those that are looked at, and the last batch is only a little smaller.
    with torch.no_grad():
        seen = functional.conv2d(
            digits.prepare(digits.train.inputs), merged["stem.weight"], padding=1
        )
    torch.testing.assert_close(merged[name], seen.mean((0, 2, 3)), rtol=0.1, atol=0.02)
    assert not torch.allclose(merged[name], both[name], atol=0.02)
    # A model with itself: what its statistics gain is no merit of merging.
    words = ["0.safetensors", "0.safetensors", "--method", "average", "--evaluate"]
    _, printed, _ = call(*words, "dataset=digits")
    rows = dict(line.strip().rsplit(None, 2)[:2] for line in printed.splitlines() if "0." in line)
    assert rows["0.safetensors, statistics anew"] == rows["merged by average"]
    line = refused(call(*words, "dataset=digits", "subset.train=1"))
    assert line == "--evaluate: BatchNorm's statistics need at least one batch to be measured on"


def test_what_cannot_be_merged_is_refused_in_one_line(call, digits, tmp_path) -> None:
    network("a.safetensors", digits, 0)
    state = network("b.safetensors", digits, 1)
    wide = MLP.replace(width=0.4)
    network("wide.safetensors", digits, 1, wide)
    plain = {k: t.clone() for k, t in state.items()}
    save_file({k: t for k, t in plain.items() if k != "head.bias"}, "short.safetensors")
    plain["head.weight"][0, 3] = math.nan
    save_file(plain, "nan.safetensors")
    Path("junk.safetensors").write_bytes(b"junk")
    Path("junk.pt").write_bytes(b"junk")
    Path("there.safetensors").write_bytes(b"kept")
    out = ["--out", "m.safetensors"]
    for words, said in [
        (["a.safetensors", "wide.safetensors", *out], "are of other networks: "),
        (["a.safetensors", "short.safetensors", *out],
         "short.safetensors lacks head.bias, which a.safetensors has"),
        (["a.safetensors", "nan.safetensors", *out],
         "head.weight: nan.safetensors has NaN or infinite entries"),
        (["a.safetensors", "none.safetensors", *out], "there is no file none.safetensors"),
        (["a.safetensors", "junk.safetensors", *out], "junk.safetensors is damaged, or no"),
        (["a.safetensors", "junk.pt", *out], "junk.pt is damaged, or no file of weights"),
        (["a.safetensors", *out], "one model is merged already: name two or more"),
        (["a.safetensors", "b.safetensors"], "nothing to do: give --out FILE, --evaluate"),
        (["a.safetensors", "b.safetensors", "--out", "there.safetensors"],
         "--out there.safetensors: is there already; --force writes over it"),
        (["a.safetensors", "b.safetensors", "--out", "m.pt"], "must end in .safetensors"),
        (["a.safetensors", "b.safetensors", *out, "--weights", "0,0"],
         "--weights 0,0: weights must be non-negative with a positive, finite sum"),
        (["a.safetensors", "b.safetensors", *out, "--weights", "1,2,3"],
         "2 models need as many weights"),
        (["a.safetensors", "b.safetensors", *out, "--method", "none"],
         "--method none: there are average, "),
        (["a.safetensors", "b.safetensors", *out, "--method", "ties"],
         "--method ties needs --base FILE"),
        (["a.safetensors", "b.safetensors", *out, "--option", "flor=1"],
         "--option.flor: wsa has no such argument"),
        (["a.safetensors", "b.safetensors", *out, "--option", "fusion=sum"], "--option.fusion"),
        (["a.safetensors", "b.safetensors", *out, "--option", "floor"], "must be KEY=VALUE"),
        (["a.safetensors", "b.safetensors", "--evaluate", "dataset=none"],
         "dataset=none: no such option"),
        (["a.safetensors", "b.safetensors", "--method", "all", *out], "--method all compares"),
    ]:  # fmt: skip
        line = refused(call(*words))
        assert said in line, line
        assert not Path("m.safetensors").exists()
        assert Path("there.safetensors").read_bytes() == b"kept"
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".part"]


def test_tokens_must_be_the_same(call, digits) -> None:
    network("a.safetensors", digits, 0)
    with safe_open("a.safetensors", "pt") as opened:
        facts = json.loads(opened.metadata()["fedwsa"])
        state = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    for name, vocabulary in {"x": "abc", "y": "abd"}.items():
        facts["data"] = {"kind": "text", "vocabulary": vocabulary}
        save_file(state, f"{name}.safetensors", {"fedwsa": json.dumps(facts)})
    line = refused(call("x.safetensors", "y.safetensors", "--out", "m.safetensors"))
    assert line == "x.safetensors and y.safetensors have other tokens: 'c' is in one alone"


def test_a_method_of_one_s_own_goes_by_its_path(call, digits, tmp_path) -> None:
    network("a.safetensors", digits, 0)
    state = network("b.safetensors", digits, 1)
    (tmp_path / "mine_merge.py").write_text(
        "def last(models, *, weights=None, times: float = 1.0):\n"
        "    return {k: times * models[-1][k] for k in models[-1]}\n"
    )
    words = ["--method", "mine_merge.last", "--option", "times=2", "--out", "m.safetensors"]
    assert call("a.safetensors", "b.safetensors", *words)[0] == 0
    assert torch.equal(load_file("m.safetensors")["head.bias"], 2 * state["head.bias"])


def test_the_command_is_there_and_explains_itself() -> None:
    command = Path(sys.executable).parent / "fedwsa-merge"
    said = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "fedwsa-merge a.safetensors b.safetensors --method wsa --out merged.safetensors" in said


def test_networks_with_masks_of_their_own_are_not_merged_as_one(call, digits) -> None:
    masked = Component.of("tests.given.odd_models.masked")
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        network(f"{name}.safetensors", digits, seed, masked)
    words = ["--evaluate", "dataset=digits", "--builder", masked.target, "--out", "out.safetensors"]
    line = refused(call("a.safetensors", "b.safetensors", *words))
    assert line.startswith("mask is no part of a file but drawn by its run's seed, 0 of a.safe")
    assert not Path("out.safetensors").exists()
    assert call("a.safetensors", "c.safetensors", *words)[0] == 0
