"""Files of weights: several with an index, names that wrappers have added to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.commands.merge import main
from experiments.merge.files import ModelFile
from fedwsa.config.component import Component, ConfigError
from fedwsa.data.sources import digits
from fedwsa.models import build_model
from fedwsa.models.files import load_network, save_network
from fedwsa.models.weights import open_weights, plain_names
from fedwsa.schema.compose import compose
from fedwsa.scope.weight_scope import WeightScope
from server.strategy import _scope_of
from tests.given.commands import called

INDEX = "model.safetensors.index.json"
HALVES = {"one.safetensors": ["a.weight"], "two.safetensors": ["a.bias", "b.weight"]}
PLACE = {key: shard for shard, keys in HALVES.items() for key in keys}


def state(seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (2, 4)}
    return {k: torch.randn(s, generator=random) for k, s in shapes.items()}


def sharded(folder: Path, tensors: dict[str, Tensor], place: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for shard in set(place.values()):
        held = {k: t for k, t in tensors.items() if place[k] == shard}
        save_file(held, folder / shard, {"format": "pt"})
    index = folder / INDEX
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": place}))
    return index


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return called("fedwsa-merge", main, monkeypatch, capsys)


def test_a_sharded_model_is_read_and_merged_into_one_file(call, tmp_path: Path) -> None:
    index = sharded(tmp_path / "big", state(0), PLACE)
    save_file(state(1), "b.safetensors")
    words = [str(index), "b.safetensors", "--method", "average", "--out", "m.safetensors"]
    assert call(*words)[0] == 0
    found = load_file("m.safetensors")
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, (state(0)[key] + state(1)[key]) / 2)
    assert found.keys() == state(0).keys()
    before = ModelFile(index).digest
    save_file({"a.weight": torch.ones(4, 3)}, tmp_path / "big" / "one.safetensors")
    assert ModelFile(index).digest != before  # of the weights, not of the index alone


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda m: m.update(c="three.safetensors"),
            "no file three.safetensors, which is to have c",
        ),
        (lambda m: m.update(c="two.safetensors"), "two.safetensors lacks c, which the index"),
        (lambda m: m.pop("a.bias"), "two.safetensors has a.bias, which the index does not name"),
        (
            lambda m: m.update({"a.bias": "one.safetensors"}),
            "one.safetensors lacks a.bias, which the index says it has",
        ),
        (lambda m: m.update(c="../x.safetensors"), "c is to be in ../x.safetensors, outside"),
        (lambda m: m.update(c="/x.safetensors"), "c is to be in /x.safetensors, outside"),
        (lambda m: m.update(c="x" * 300 + ".safetensors"), ".safetensors, which is to have c"),
        (lambda m: m.update(c="x.bin"), "c is to be in x.bin, which is no safetensors file"),
        (lambda m: m.update(c=3), "the file of c must be a name, not 3"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(change, said, call, tmp_path) -> None:
    place = dict(PLACE)
    index = sharded(tmp_path / "big", state(0), PLACE)
    save_file(state(0), tmp_path / "x.safetensors")
    change(place)
    index.write_text(json.dumps({"weight_map": place}))
    save_file(state(1), "b.safetensors")
    for words in (["b.safetensors", str(index)], ["b.safetensors", "x.safetensors", "--base",
                                                  str(index)]):  # fmt: skip
        code, printed, line = call(*words, "--out", "m.safetensors")
        assert (code, printed, line.count("\n")) == (1, "", 1)
        assert said in line
    assert not Path("m.safetensors").exists()


def test_a_tensor_in_two_files_and_a_key_named_twice_are_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path / "big", state(0), PLACE)
    save_file({k: state(0)[k] for k in ("a.weight", "a.bias")}, index.parent / "one.safetensors")
    with pytest.raises(ConfigError, match=r"a\.bias is in one\.safetensors and in two\.safet"):
        open_weights(index)
    index.write_text('{"weight_map": {"w": "one.safetensors", "w": "two.safetensors"}}')
    with pytest.raises(ConfigError, match="names w twice"):
        open_weights(index)
    for text in ("{", "[]", "{}", '{"weight_map": []}'):
        index.write_text(text)
        with pytest.raises(ConfigError, match="no weight_map"):
            open_weights(index)
    with pytest.raises(ConfigError, match=f"is a folder; name a file in it, as .*{INDEX}"):
        open_weights(index.parent)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_module.", "_orig_mod.module.", "module._orig_mod."]
)
@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_names_that_a_wrapper_has_added_to_are_those_of_the_network(prefix, form, call) -> None:
    wrapped = {prefix + k: t for k, t in state(0).items()}
    save_file(wrapped, "a.safetensors")
    torch.save({"state_dict": wrapped}, "a.pt")
    save_file(state(1), "b.safetensors")
    words = [f"a.{form}", "b.safetensors", "--method", "average", "--out", "m.safetensors"]
    code, printed, _ = call(*words)
    assert code == 0
    assert f"a.{form}: names are read without what a wrapper added, as {prefix}a." in printed
    found = load_file("m.safetensors")
    assert found.keys() == state(0).keys()
    torch.testing.assert_close(found["a.bias"], (state(0)["a.bias"] + state(1)["a.bias"]) / 2)


def test_what_wrappers_of_torch_call_their_tensors() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    for wrapped in (nn.DataParallel(net), torch.compile(net), torch.compile(nn.DataParallel(net))):
        assert list(plain_names(wrapped.state_dict(), Path("f"))) == list(net.state_dict())
    inner = nn.Sequential(torch.compile(nn.Linear(3, 4)), nn.Linear(4, 2))
    assert list(plain_names(inner.state_dict(), Path("f"))) == list(nn.Sequential(
        nn.Linear(3, 4), nn.Linear(4, 2)).state_dict())  # fmt: skip


def test_prefixes_of_some_names_only_are_told_and_two_of_one_name_refused(call) -> None:
    mixed = {("module." if k[0] == "a" else "") + k: t for k, t in state(0).items()}
    assert list(plain_names(mixed, Path("f"))) == list(mixed)  # a layer may be called so
    save_file(mixed, "a.safetensors")
    save_file(state(1), "b.safetensors")
    code, _, line = call("b.safetensors", "a.safetensors", "--out", "m.safetensors")
    assert (code, line.count("\n")) == (1, 1)
    assert "a.safetensors lacks a." in line
    assert "not all, begin with module. as module.a." in line
    with pytest.raises(ConfigError, match=r"_orig_mod\.w and w are both w"):
        plain_names(["_orig_mod.w", "w"], Path("f"))


def test_a_network_of_ours_is_read_from_either(tmp_path: Path) -> None:
    data = digits().decode()
    mlp = Component.of("fedwsa.models.mlp.mlp", width=0.1, depth=1)
    tensors = build_model(mlp, data.shape, data.classes, 3).state_dict()
    save_network(tmp_path / "whole.safetensors", tensors, mlp, data)
    with safe_open(tmp_path / "whole.safetensors", "pt") as opened:
        facts = {"fedwsa": opened.metadata()["fedwsa"]}
    save_file({f"module.{k}": t for k, t in tensors.items()}, tmp_path / "p.safetensors", facts)
    place = {k: f"{i % 2}.safetensors" for i, k in enumerate(tensors)}
    index = sharded(tmp_path / "parts", tensors, place)
    index.write_text(json.dumps({"metadata": facts, "weight_map": place}))
    for file in (tmp_path / "p.safetensors", index):
        found = load_network(file).module.state_dict()
        assert all(torch.equal(found[k], tensors[k]) for k in tensors)


def test_a_network_whose_layers_are_called_as_a_wrapper_s_keeps_their_names(call) -> None:
    data = digits().decode()
    inside = Component.of("tests.given.odd_models.inside")
    nets = [build_model(inside, data.shape, data.classes, seed) for seed in range(3)]
    states = [net.state_dict() for net in nets]
    assert list(states[0]) == ["module.1.weight", "module.1.bias"]
    for k in (0, 1):
        save_network(Path(f"{k}.safetensors"), states[k], inside, data)
    torch.save(states[2], "2.pt")
    torch.save(nn.DataParallel(nets[2]).state_dict(), "wrapped.pt")
    found = load_network(Path("0.safetensors"), [inside.target]).module.state_dict()
    assert all(torch.equal(found[k], t) for k, t in states[0].items())
    wsa = compose(["wsa=on", "wsa.target=fixed", "wsa.scope=0.safetensors"]).wsa
    assert _scope_of(wsa).names == ("module.1.weight",)
    for files in (["2.pt", "0.safetensors"], ["wrapped.pt", "--base", "0.safetensors"],
                  ["0.safetensors", "--base", "1.safetensors"],
                  ["0.safetensors", "1.safetensors"]):  # fmt: skip
        method = "task_arithmetic" if "--base" in files else "average"
        words = ["--method", method, "--out", "m.safetensors", "--force"]
        code, printed, _ = call(*files, *words)
        assert code == 0
        assert ("wrapped.pt: names are read without" in printed) == ("wrapped.pt" in files)
        assert load_file("m.safetensors").keys() == states[0].keys()
    merged = load_network(Path("m.safetensors"), [inside.target]).module.state_dict()
    mean = (states[0]["module.1.bias"] + states[1]["module.1.bias"]) / 2
    torch.testing.assert_close(merged["module.1.bias"], mean)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_one_model_is_taken_away_from_its_base(method: str, call) -> None:
    """θ_0 − (θ − θ_0): by hand, 2·θ_0 − θ."""
    save_file(state(0), "base.safetensors")
    save_file(state(1), "a.safetensors")
    words = ["a.safetensors", "--method", method, "--option", "scale=-1", "--out", "m.safetensors"]
    words += ["--option", "density=1.0"] if method == "ties" else []
    assert call(*words)[0] == 1  # without its base
    assert call(*words, "--base", "base.safetensors")[0] == 0
    for key, tensor in load_file("m.safetensors").items():
        torch.testing.assert_close(tensor, 2 * state(0)[key] - state(1)[key])
    code, _, line = call("a.safetensors", "--base", "base.safetensors", "--method", "wsa",
                         "--out", "n.safetensors")  # fmt: skip
    assert (code, line.count("\n")) == (1, 1)
    assert "one model is merged already: name two or more" in line


def test_a_fixed_scope_is_measured_in_either_kind_of_file(tmp_path: Path) -> None:
    index = sharded(tmp_path / "parts", state(0), PLACE)
    save_file({f"module.{k}": t for k, t in state(0).items()}, tmp_path / "p.safetensors")
    for file in (index, tmp_path / "p.safetensors"):
        wsa = compose(["wsa=on", "wsa.target=fixed", f"wsa.scope={file}"]).wsa
        scope, expected = _scope_of(wsa), WeightScope.measure(state(0))
        assert sorted(scope.names) == sorted(expected.names)
        assert torch.equal(scope.only(expected.names).variance, expected.variance)
