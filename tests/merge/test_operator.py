"""What an operator says of itself, and what is taken from one that says nothing."""

from __future__ import annotations

import copy
import importlib
import inspect
import re
from functools import partial

import pytest
import torch

from fedwsa.config.component import ConfigError, call, check_arguments, locate
from fedwsa.config.places import options
from fedwsa.merge import NEEDS, Declared, aligned, needs, operator
from fedwsa.merge.average import average
from fedwsa.merge.permutation import permutation_wsa
from fedwsa.merge.range import common_range
from fedwsa.merge.wsa import wsa
from tests.given import ROOT

MODELS = [{"w": torch.tensor([[1.0, 3.0]])}, {"w": torch.tensor([[5.0, 5.0]])}]


def silent(models, *, base, fishers=None, weights=None):
    return dict(base)


@operator(needs=["base"])
def first(models, *, base, fishers: int = 2, weights=None):
    """Not the models."""
    return {name: fishers * tensor for name, tensor in base.items()}


def test_one_that_says_nothing_needs_what_it_takes() -> None:
    assert needs(silent, "merge") == {"base", "fishers"}
    assert needs(partial(silent, weights=[1]), "merge") == {"base", "fishers"}
    assert aligned(silent) is None


def test_one_that_says_what_it_needs_gets_no_more() -> None:
    assert needs(first, "merge") == needs(partial(first, fishers=3), "merge") == {"base"}
    made = call(f"{__name__}.first", {"fishers": 3}, "merge", MODELS, supplied={"base": MODELS[0]})
    assert made["w"].tolist() == [[3.0, 9.0]]
    with pytest.raises(ConfigError, match=r"merge\.fishers: .*integer"):
        check_arguments(first, {"fishers": "many"}, "merge", 1, {"base", "weights"})


def test_what_ours_say_is_what_they_take() -> None:
    for component in options("merge").values():
        ours = locate(component.target, "merge")
        assert needs(ours, "merge") == inspect.signature(ours).parameters.keys() & {*NEEDS}
    moving = {n for n, c in options("merge").items() if aligned(locate(c.target, "merge"))}
    assert moving == {"wsa", "range", "percentile", "permutation_wsa"}


def test_it_is_the_function_that_it_marks() -> None:
    assert isinstance(first, Declared)
    assert (first.__name__, first.__doc__) == ("first", "Not the models.")
    assert list(inspect.signature(first).parameters) == ["models", "base", "fishers", "weights"]
    assert copy.deepcopy(first) is first  # by its name, as functions travel
    assert first.__reduce__() == "first"


@pytest.mark.parametrize("moving", [wsa, common_range])
def test_the_average_of_the_moved_models_is_what_is_merged(moving) -> None:
    merged = average(aligned(moving)(MODELS, weights=[1, 3]), weights=[1, 3])
    torch.testing.assert_close(merged, moving(MODELS, weights=[1, 3]))
    assert not torch.allclose(merged["w"], average(MODELS, weights=[1, 3])["w"])


def test_units_stay_where_they_are_when_a_model_is_moved_alone() -> None:
    torch.testing.assert_close(aligned(permutation_wsa)(MODELS, seed=3), aligned(wsa)(MODELS))


@pytest.mark.parametrize(
    ("needed", "message"),
    [("grads", r"silent needs \['grads'\]; there are base, fishers"),
     ("permutations", r"silent needs \['permutations'\], which it does not take")],
)  # fmt: skip
def test_what_cannot_be_needed_is_refused(needed: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operator(needs=[needed])(silent)


def test_the_operator_of_the_page_runs(tmp_path, monkeypatch) -> None:
    page = (ROOT / "docs" / "merging.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    [code] = [block for block in blocks if "@operator" in block]
    (tmp_path / "of_the_page.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    shrunk = importlib.import_module("of_the_page").shrunk
    assert needs(shrunk, "merge") == {"base"}
    assert shrunk(MODELS, base=MODELS[0])["w"].tolist() == [[4.0, 7.0]]
    assert aligned(shrunk)(MODELS)[1]["w"].tolist() == [[2.5, 2.5]]
