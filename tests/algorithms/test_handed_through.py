"""Somebody's strategies and models inside ours: what they have is reached, and nothing guessed."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from types import MethodType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn

from fedwsa.algorithms.averaging import averages_by, weighs_by
from fedwsa.algorithms.feddyn.server import FedDyn
from fedwsa.algorithms.guard.guard import Guard
from fedwsa.algorithms.personal.fedper import FedPer
from fedwsa.algorithms.privacy import is_private
from fedwsa.algorithms.scaffold.server import Scaffold
from fedwsa.algorithms.traits import Traits, traits_of
from fedwsa.algorithms.wrapping import chain
from fedwsa.algorithms.wsa.client import ScopeAlignment
from fedwsa.algorithms.wsa.server import FedWSA
from fedwsa.command_line import of_system
from fedwsa.config.component import Component, ConfigError
from fedwsa.config.explain import explain
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape
from fedwsa.wire import messages
from fedwsa.wire.names import NUM_EXAMPLES
from server.deployment import require_no_memory
from tests.given.fedwsa import content


class Theirs(FedAvg):
    """With a method, attributes and a loop of its own, which calls its own kind's."""

    def __init__(self, head: str = "mine", **options: Any) -> None:
        super().__init__(**options)
        self.head, self.strength, self.best = head, "theirs", 0.0

    def set_place(self, place: str) -> None:
        self.place = place

    def _remember(self, accuracy: float) -> None:
        self.best = accuracy

    def configure_train(self, *_: Any) -> list[Any]:
        return []

    def start(self, grid: Any, initial_arrays: Any, num_rounds: int = 1, **named: Any) -> Any:
        self._remember(0.5)
        messages_ = list(self.configure_train(1, initial_arrays, grid.config, grid))
        return self, self.place, messages_, super().summary


@pytest.mark.parametrize("wrap", [FedWSA, lambda s: Guard(FedWSA(s)), lambda s: FedWSA(Guard(s))])
def test_methods_attributes_and_the_loop_of_a_wrapped_strategy(wrap, monkeypatch) -> None:
    theirs = Theirs()
    ours = wrap(theirs)
    ours.set_place("here")
    assert (ours.place, ours.head) == ("here", "mine")
    called = []
    usual = type(ours).configure_train
    monkeypatch.setattr(
        type(ours), "configure_train", lambda *given: called.append(1) or usual(*given)
    )
    arrays = ArrayRecord({"w": messages.to_arrays({"w": torch.randn(3, 2)})["w"]})
    found, place, sent, _ = ours.start(SimpleNamespace(config={}), arrays, num_rounds=1)
    assert (place, sent, theirs.best, ours.best) == ("here", [], 0.5, 0.5)
    assert found is theirs
    assert called  # the outermost hooks, not theirs alone
    assert not {"configure_train", "summary"} & vars(theirs).keys()


class Registered(FedAvg):
    """Whose subclasses are counted, with a slot, and a loop that looks at its own type."""

    __slots__ = ("where",)
    kinds: ClassVar[list[str]] = []

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        Registered.kinds.append(cls.__name__)

    def __init__(self) -> None:
        super().__init__()
        self.where, self.called = "slot", []

    def configure_train(self, *_: Any) -> list[Any]:
        self.called.append("theirs")
        self.summary()  # its own, within ours
        return []

    def summary(self) -> None:
        self.called.append("summary")

    def start(self, grid: Any, initial_arrays: Any, num_rounds: int = 1, **named: Any) -> Any:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda n: self.configure_train(n, initial_arrays, {}, grid), [1, 2]))
        return type(self), self.where


def noting(monkeypatch) -> list[str]:
    called: list[str] = []
    usual = FedWSA.configure_train

    def noted(*given: Any) -> Any:
        called.append("ours")
        return usual(*given)

    monkeypatch.setattr(FedWSA, "configure_train", noted)
    return called


def test_a_loop_runs_on_the_strategy_itself(monkeypatch) -> None:
    theirs, called = Registered(), noting(monkeypatch)
    arrays = messages.to_arrays({"w": torch.randn(3, 2)})
    assert FedWSA(theirs).start(None, arrays) == (Registered, "slot")
    assert called == ["ours"] * 2
    assert sorted(theirs.called) == ["summary", "summary", "theirs", "theirs"]
    assert Registered.kinds == []


def test_a_loop_that_was_put_onto_an_instance_runs(monkeypatch) -> None:
    theirs, called = FedAvg(), noting(monkeypatch)
    theirs.configure_train = lambda *_: []

    def start(self: Any, grid: Any, initial_arrays: Any) -> str:
        self.configure_train(1, initial_arrays, {}, grid)
        raise LookupError("the loop's own")

    theirs.start = MethodType(start, theirs)
    arrays = messages.to_arrays({"w": torch.randn(3, 2)})
    hook = theirs.configure_train
    with pytest.raises(LookupError, match="the loop's own"):
        Guard(FedWSA(theirs)).start(None, arrays)
    assert called == ["ours"]
    assert theirs.configure_train is hook
    assert "aggregate_train" not in vars(theirs)


def test_a_setting_of_ours_is_not_theirs() -> None:
    theirs = Theirs()
    ours = FedWSA(theirs, strength=3.0)
    assert (ours.strength, theirs.strength) == (3.0, "theirs")
    for twin in (copy.copy(ours), copy.deepcopy(ours)):
        assert twin.head == "mine"
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = ours.nothing_of_this_name


@pytest.mark.parametrize("prefix", ["_orig_mod", "module", "_module"])
def test_a_wrapped_model_is_aligned_as_the_plain_one(prefix: str) -> None:
    plain = nn.Linear(4, 3)
    outer = nn.Module()
    outer.add_module(prefix, copy.deepcopy(plain))
    for model in (plain, outer):
        ScopeAlignment(model, content(names=["weight"])).add_gradient()
    wrapped = dict(outer.named_parameters())[f"{prefix}.weight"]
    assert plain.weight.grad is not None
    assert plain.weight.grad.abs().sum() > 0
    assert torch.equal(wrapped.grad, plain.weight.grad)


def test_gradients_per_sample_are_refused() -> None:
    model = nn.Linear(4, 3)
    model.weight.grad_sample = None  # as Opacus's GradSampleModule marks what it trains
    with pytest.raises(ValueError, match=r"the optimiser makes \.grad anew"):
        ScopeAlignment(model, content(names=["weight"]))
    model = nn.Linear(4, 3)
    alignment = ScopeAlignment(model, content(names=["weight"]))
    model.weight.grad_sample = None  # wrapped afterwards
    with pytest.raises(ValueError, match=r"the optimiser makes \.grad anew"):
        alignment.add_gradient()


def test_nothing_is_filled_in_by_the_name_of_a_parameter() -> None:
    assert traits_of(Theirs).wants == ()
    assert traits_of(FedPer).wants == ("head",)
    for wrong in (("everything",), ["head"], "head"):
        with pytest.raises(ValueError, match="wants must be a tuple of names among shapes"):
            Traits(wants=wrong)


def test_a_setting_of_theirs_is_set_where_it_is_read() -> None:
    theirs = Theirs()
    ours = Guard(FedWSA(theirs, strength=3.0))
    ours.head, ours.fraction_train, ours.note = "another", 0.5, "new"
    assert (theirs.head, theirs.fraction_train) == ("another", 0.5)
    assert ours.note == "new"
    assert not hasattr(theirs, "note")
    ours.strength = 5.0  # of the aligning one, not theirs
    assert (ours.strategy.strength, theirs.strength) == (5.0, "theirs")
    copy.deepcopy(ours).head = "of the twin"
    assert theirs.head == "another"


def test_a_hook_that_was_put_onto_an_instance_is_called_within_ours(monkeypatch) -> None:
    theirs, called = Theirs(), noting(monkeypatch)
    theirs.configure_train = lambda *_: called.append("theirs") or []
    ours = FedWSA(theirs)
    arrays = messages.to_arrays({"w": torch.randn(3, 2)})
    theirs.place = "here"
    ours.start(SimpleNamespace(config={}), arrays, num_rounds=1)
    assert called == ["ours", "theirs"]


class Namesake(FedAvg):
    """Whose attributes have the names of ours, and mean other things."""

    needs_sgd = no_scopes = clients_remember = takes_pulls = "theirs"
    on_devices = has_global_model = averages_by = transient = wants = traits = None
    adds_noise = requires = True
    _pending_events = None


class Other(Strategy):
    """None of Flower's, to whom ``weighted_by_key`` is something else."""

    weighted_by_key = has_global_model = 3

    configure_train = aggregate_train = configure_evaluate = aggregate_evaluate = summary = (
        lambda *_: None
    )


def test_an_attribute_of_a_stranger_means_nothing_to_us() -> None:
    theirs = Namesake()
    assert [traits_of(part) for part in chain(theirs)] == [Traits()]
    assert not is_private(FedWSA(theirs))
    assert averages_by(theirs) is None
    require_no_memory(theirs)
    Guard(theirs).skip(1)
    assert weighs_by(Guard(Other())) == NUM_EXAMPLES
    assert weighs_by(Guard(FedAvg(weighted_by_key="n"))) == "n"
    for ours, key in ((Scaffold(), "needs_sgd"), (FedDyn(alpha=0.1), "takes_pulls")):
        assert [getattr(traits_of(part), key) for part in chain(Guard(ours))] == [False, True]


def lazy(image: Any, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


def test_a_lazy_network_is_refused() -> None:
    component = Component.of(f"{__name__}.lazy")
    with pytest.raises(ConfigError, match=r"model: 1.weight has no shape yet \(a lazy module"):
        build_model(component, ImageShape(1, 8, 8), 10, seed=0)


def test_errors_of_the_system_say_what_they_are_of() -> None:
    assert of_system(OSError(28, "No space left", "/a/b")) == "cannot use /a/b: No space left"
    said = of_system(OSError("AF_UNIX path length cannot exceed 107 bytes"))
    assert said == "OSError: AF_UNIX path length cannot exceed 107 bytes"


def test_a_comma_is_told_with_its_quotes() -> None:
    error = ValueError("Ambiguous value for argument 'dataset.path=/a,b'\n1. To use it as a list")
    said = explain(error, ["rounds=1", "dataset.path=/a,b"])
    assert said.startswith("dataset.path: a comma separates the runs of --multirun")
    assert said.endswith("""'dataset.path="/a,b"'""")
