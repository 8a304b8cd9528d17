"""What ``fedwsa-merge`` refuses of files that it can read, and of methods that it can find."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.commands.merge import main


def masked(seed: int, mask: list[int]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(4, 3, generator=random), "mask": torch.tensor(mask)}


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Run the command on two files, and what else there is; its line, and nothing written."""
    monkeypatch.chdir(tmp_path)
    save_file(masked(0, [1, 0, 1, 1]), "a.safetensors")
    save_file(masked(1, [1, 0, 1, 1]), "b.safetensors")

    def run(*words: str) -> str:
        asked = ["fedwsa-merge", "a.safetensors", "b.safetensors", *words, "--out", "m.safetensors"]
        monkeypatch.setattr(sys, "argv", asked)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code, said.out, said.err.count("\n")) == (1, "", 1)
        assert not Path("m.safetensors").exists()
        return said.err.removeprefix("fedwsa-merge: ").removesuffix("\n")

    return run


def test_the_mask_of_the_base_must_be_the_models(refuse) -> None:
    save_file(masked(2, [1, 0, 1, 0]), "base.safetensors")
    for method in ("task_arithmetic", "average"):  # whether it looks at the base or not
        line = refuse("--base", "base.safetensors", "--method", method)
        assert line.startswith("mask: base.safetensors has other values than a.safetensors, and")


def test_a_method_that_does_not_say_what_it_takes(refuse) -> None:
    line = refuse("--method", "torch.add")
    assert line.startswith("--method: add does not say which arguments it takes: name a function")


def test_weights_whose_sum_is_beyond_all_numbers(refuse) -> None:
    line = refuse("--weights", "1e308,1e308")
    assert line.startswith("--weights 1e308,1e308: weights must be non-negative with a positive, f")


def test_a_name_that_is_too_long_is_not_told_as_one_that_cannot_be_written(refuse) -> None:
    assert refuse("x" * 300).endswith("x: File name too long")
    assert "write" not in refuse("x" * 300)


def test_a_scripted_network_is_refused_without_a_word_of_torch(refuse) -> None:
    torch.jit.script(nn.Linear(2, 3)).save("scripted.pt")
    with warnings.catch_warnings(record=True) as told:
        line = refuse("scripted.pt")
    assert (line, told) == ("scripted.pt is damaged, or no file of weights", [])
