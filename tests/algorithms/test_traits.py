"""What strategies say of themselves, and that nothing else about them is guessed."""

from __future__ import annotations

import ast
from dataclasses import fields, replace
from typing import Any, ClassVar

import pytest
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    QFedAvg,
    Strategy,
)

from fedwsa.algorithms.apfl.server import APFL
from fedwsa.algorithms.averaging import answers_of, averaged, averages_by
from fedwsa.algorithms.beside.server import Beside, Telling
from fedwsa.algorithms.centralised import Centralised
from fedwsa.algorithms.ditto.server import Ditto
from fedwsa.algorithms.exits.server import DepthFL, EarlyExits, ScaleFL
from fedwsa.algorithms.fedala.server import FedALA
from fedwsa.algorithms.fedbabu.server import FedBABU
from fedwsa.algorithms.feddf.server import FedDF
from fedwsa.algorithms.feddyn.server import FedDyn
from fedwsa.algorithms.fedexp.server import FedExP
from fedwsa.algorithms.fednova.server import FedNova
from fedwsa.algorithms.fedproto.server import FedProto
from fedwsa.algorithms.fedrep.server import FedRep
from fedwsa.algorithms.fjord.server import FjORD
from fedwsa.algorithms.guard.guard import Guard
from fedwsa.algorithms.ifca.server import IFCA
from fedwsa.algorithms.memory.server import Remembering
from fedwsa.algorithms.moon.server import Moon
from fedwsa.algorithms.oneshot.server import OneShot
from fedwsa.algorithms.per_fedavg.server import PerFedAvg
from fedwsa.algorithms.personal.fedbn import FedBN
from fedwsa.algorithms.personal.fedper import FedPer
from fedwsa.algorithms.personal.local import LocalOnly
from fedwsa.algorithms.personal.server import Personal
from fedwsa.algorithms.pfedme.server import PFedMe
from fedwsa.algorithms.privacy import is_private
from fedwsa.algorithms.robust.server import (
    CentredClipping,
    DivideAndConquer,
    FLTrust,
    GeometricMedian,
    NormClipping,
    RobustAverage,
)
from fedwsa.algorithms.run_facts import RunFacts, require
from fedwsa.algorithms.scaffold.client import Scaffold as Correction
from fedwsa.algorithms.scaffold.server import Scaffold
from fedwsa.algorithms.sizes.exclusive import Exclusive
from fedwsa.algorithms.sizes.fedrolex import FedRolex
from fedwsa.algorithms.sizes.fedwave import FedWave
from fedwsa.algorithms.sizes.heterofl import HeteroFL
from fedwsa.algorithms.sizes.server import SizedFedAvg
from fedwsa.algorithms.statistics import AveragedStatistics
from fedwsa.algorithms.traits import Traits, traits_of
from fedwsa.algorithms.wsa.server import FedWSA
from fedwsa.config.component import ConfigError
from fedwsa.models.inputs import ImageShape
from fedwsa.schema.compose import compose
from fedwsa.wire.names import NOVA_WEIGHT, SCAFFOLD_CHANGE, SCAFFOLD_CONTROL
from server.deployment import open_fleet
from server.sizes import SizedModels
from server.strategy import build_strategy
from tests.given.floors import ROOT, modules

EXITED = (EarlyExits, DepthFL, ScaleFL)
OVERLAPPING = (SizedFedAvg, HeteroFL, FedRolex, FjORD, *EXITED, FedWave, Exclusive)
SIZED = (*OVERLAPPING, FedDF)
PERSONAL = (Personal, FedPer, FedBN, LocalOnly, FedRep, FedProto)
BESIDE = (Beside, Ditto, APFL, PFedMe)
REMEMBERING = (Remembering, Scaffold, FedDyn, Moon, *PERSONAL, *BESIDE, FedALA)
ROBUST = (
    *(RobustAverage, GeometricMedian, CentredClipping, NormClipping),
    *(DivideAndConquer, FLTrust, FedExP),
)
BRINGING = (*EXITED, FjORD, *BESIDE[1:], FedRep, FedProto, PerFedAvg, FedBABU, FedALA, IFCA)
OURS = (
    *SIZED,
    *(Telling, PerFedAvg, FedBABU, IFCA),
    *REMEMBERING,
    *ROBUST,
    FedNova,
    OneShot,
    Centralised,
    FedWSA,
    Guard,
    AveragedStatistics,
)
AVERAGING = (FedAvg, FedAvgM, FedProx, FedAdam, FedYogi, FedAdagrad)
PRIVATE = (
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyClientSideAdaptiveClipping,
)
PLAIN = (FedMedian, FedTrimmedAvg, Krum, Bulyan)


def where(field: str) -> dict[type, Any]:
    """The classes, ours and Flower's, that are not plain in a field, and what they say."""
    plain = getattr(Traits(), field)
    said = {k: getattr(traits_of(k), field) for k in (*OURS, *AVERAGING, *PRIVATE, *PLAIN, QFedAvg)}
    return {kind: value for kind, value in said.items() if value != plain}


@pytest.mark.parametrize(
    ("field", "kinds"),
    [
        ("adds_noise", PRIVATE),
        ("needs_losses", [QFedAvg]),
        ("needs_sgd", [*BESIDE, FedNova, Scaffold]),
        ("no_scopes", [Centralised, LocalOnly, FedProto, IFCA]),
        ("on_devices", [Centralised]),
        ("has_global_model", [*PERSONAL, IFCA]),
        ("whole_models", [*SIZED, *PERSONAL, Scaffold, OneShot, IFCA]),
        ("sends_weights", [LocalOnly, FedProto]),
        ("clients_remember", REMEMBERING),
        ("takes_pulls", [FedDyn]),
        ("objectives", BRINGING),  # the older ones of ours come with the package
        ("answers", [Scaffold]),
        ("rate", [FedAdam, FedYogi, FedAdagrad, FedAvgM, PFedMe]),
        (
            "requires",
            [
                *(*SIZED, *ROBUST, *PERSONAL),
                *(Scaffold, OneShot, Moon, FedBABU, IFCA),
            ],
        ),
        (
            "transient",
            [*SIZED, *ROBUST, FedNova, FedDyn, OneShot, FedWSA, Guard, PFedMe, IFCA, FedProto],
        ),
        (
            "wants",
            [
                *(*SIZED, *PRIVATE, FedNova, FedDyn, Scaffold, OneShot),
                *(FedPer, FedRep, FedBN, FedBABU, FedALA, FLTrust, FedProto),
            ],
        ),
        (
            "averages_by",
            [
                *(*OVERLAPPING, *AVERAGING, FedNova, FedDyn, Moon, Centralised),
                *(*BESIDE, PerFedAvg, FedBABU, FedALA),
                *(FedWSA, Guard, AveragedStatistics),
            ],
        ),
    ],
)
def test_ours_and_flower_s_say_what_they_are(field: str, kinds: list[type]) -> None:
    assert {*where(field)} == {*kinds}


def test_each_field_is_in_the_test_above() -> None:
    marks = test_ours_and_flower_s_say_what_they_are.pytestmark
    asked = {field for field, _ in marks[0].args[1]}
    assert asked == {field.name for field in fields(Traits)}


def test_what_they_say() -> None:
    assert traits_of(FedPer).wants == ("head",)
    assert traits_of(DepthFL).wants == ("shapes", "classifier", "exits")
    assert {traits_of(kind).wants for kind in PRIVATE} == {("num_sampled_clients",)}
    assert traits_of(Scaffold()) == traits_of(Scaffold) == Scaffold.traits
    assert averages_by(FedNova()) == NOVA_WEIGHT
    assert averages_by(FedAvg(weighted_by_key="n")) == "n"
    shapes = {"L": {"w": (2,)}}
    assert averages_by(Guard(HeteroFL(shapes))) == "num-examples"
    assert averages_by(HeteroFL(shapes, weighted="clients")) is None
    assert averages_by(Guard(FedAvg(), max_norm_ratio=2)) is None


class Said(FedAvg):
    """A stranger's, that says much."""

    traits: ClassVar[Traits] = Traits(
        averages_by="weight",
        wants=("head", "norms"),
        adds_noise=True,
        needs_losses=True,
        needs_sgd=True,
        no_scopes="why",
        on_devices=False,
        has_global_model=False,
        whole_models=False,
        sends_weights=False,
        clients_remember=True,
        takes_pulls=True,
        objectives=(Correction,),
        answers=(("asked", "answered"),),
        rate="pace",
        transient=("notes",),
        requires=True,
    )

    def __init__(self, head: str = "", norms: tuple[str, ...] = ()) -> None:
        super().__init__()

    def require(self, run: RunFacts) -> None:
        raise ValueError(f"rounds: {run.rounds} are not mine")


class Silent(Said):
    """Whose constructor takes less."""

    def __init__(self, head: str = "") -> None:
        super().__init__(head)


class SaidAgain(Said):
    traits = Traits()


def test_a_stranger_s_are_read_and_a_subclass_says_again_by_what_it_averages() -> None:
    plain = Traits()
    assert traits_of(Said) == Said.traits
    assert all(getattr(Said.traits, f.name) != getattr(plain, f.name) for f in fields(plain))
    assert traits_of(Silent()) == replace(Said.traits, averages_by=None, wants=("head",))
    assert traits_of(SaidAgain) == replace(plain, adds_noise=True)  # noise is not unsaid


class OfFlowers(DifferentialPrivacyServerSideFixedClipping):
    """Whose parameter of that name is its own."""

    def __init__(self, num_sampled_clients: str = "mine") -> None:
        super().__init__(FedAvg(), 1.0, 1.0, 1)


def test_subclasses_of_flower_s_inherit_what_they_are_and_not_what_they_are_given() -> None:
    assert traits_of(OfFlowers) == Traits(adds_noise=True)
    assert traits_of(type("Mine", (QFedAvg,), {})) == Traits(needs_losses=True)
    assert averages_by(type("Mine", (FedAvg,), {})()) is None


def maker(head: str = "") -> FedAvg:
    return FedAvg()


def silent_maker() -> FedAvg:
    return FedAvg()


maker.traits = Traits(adds_noise=True, wants=("head", "norms"))


def test_a_function_says_it_by_an_attribute() -> None:
    assert traits_of(maker) == Traits(adds_noise=True, wants=("head",))
    assert traits_of(silent_maker) == traits_of(print) == Traits()


class Namesake(FedAvg):
    """Whose attributes are called like our fields, and mean other things."""

    averages_by, wants, adds_noise, needs_sgd, transient = "mine", ("head",), True, True, "mine"
    has_global_model = on_devices = whole_models = has_own = False
    clients_remember = takes_pulls = requires = no_scopes = answers = "mine"
    traits = "friendly"

    def __init__(self, head: str = "mine", merge: str = "mine", norms: str = "mine") -> None:
        super().__init__()
        self.given = (head, merge, norms)

    def require(self, *_: Any) -> None:
        raise AssertionError("nobody said that it is there")


def test_attributes_and_parameters_of_a_stranger_that_are_called_like_ours_mean_nothing() -> None:
    assert traits_of(Namesake) == traits_of(Namesake()) == Traits()
    assert averages_by(FedWSA(Namesake())) is None
    assert not is_private(Namesake())
    config = compose([f"strategy._target_={__name__}.Namesake", "strategy.args={}"])
    built: Any = build_strategy(config, SizedModels.of(config, ImageShape(1, 8, 8), 10))
    assert built.given == ("mine", "mine", "mine")
    assert not config.private


def test_a_stranger_refuses_a_run_and_is_given_what_it_wants() -> None:
    name = f"strategy._target_={__name__}.Said"
    config = compose([name, "strategy.args={}", "rounds=3"])
    with pytest.raises(ConfigError, match=r"^rounds: 3 are not mine \(.*test_traits\.py:\d+\)$"):
        build_strategy(config, SizedModels.of(config, ImageShape(1, 8, 8), 10))


def test_who_trains_on_no_device_has_no_pool_where_the_data_are_at_the_nodes() -> None:
    config = compose(["strategy=centralised", "partition=own"])
    grid: Any = None  # nobody is asked before
    with pytest.raises(ConfigError, match=r"^strategy=centralised: there is no pool, with part"):
        open_fleet(config, grid)


def facts(**own: Any) -> RunFacts:
    usual = {"rounds": 1, "epochs": 2, "cohort": 3, "private": False, "transforms_weights": False}
    usual |= {
        "attackers": 0,
        "init": "Standard",
        "models": {},
        "shapes": {},
        "example_shape": ImageShape(1, 8, 8),
    }
    return RunFacts(**{**usual, **own})


def test_each_of_a_chain_may_refuse() -> None:
    require(Guard(FedWSA(Scaffold())), facts())
    with pytest.raises(ValueError, match="Scaffold needs more of a client than one noised model"):
        require(Guard(FedWSA(Scaffold())), facts(private=True))
    require(Guard(Namesake()), facts(private=True))


@pytest.mark.parametrize("wants", [("everything",), ["head"], "head"])
def test_wanting_what_there_is_not_is_refused_where_it_is_written(wants: Any) -> None:
    with pytest.raises(ValueError, match="wants must be a tuple of names among shapes, axes, head"):
        Traits(wants=wants)


def test_the_judge_is_told_what_answers_what_also_at_the_workers() -> None:
    pairs = ((SCAFFOLD_CONTROL, SCAFFOLD_CHANGE),)
    assert answers_of(Guard(FedWSA(Scaffold()))) == pairs
    assert answers_of(Guard(Namesake())) == ()

    class Averaging(Scaffold):
        traits = replace(Scaffold.traits, averages_by="num-examples")

    reduction: Any = averaged(Averaging(), []).reduction  # type: ignore[attr-defined]
    assert reduction.rules.answers == pairs


def test_no_app_asks_for_the_kind_of_one_of_our_strategies() -> None:
    """But for FedWSA, which is no kind to find out: a run has it where ``wsa.enabled`` says so."""
    ours = {kind.__name__ for kind in OURS} - {"FedWSA"}
    apps = [f for f in modules() if f.relative_to(ROOT).parts[0] in ("server", "clients")]
    assert len(apps) > 20
    for file in apps:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "isinstance",
                "issubclass",
            ):
                names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                assert not names & ours, f"{file}:{node.lineno}"


def test_all_strategies_of_ours_are_in_this_test() -> None:
    def heirs(kind: type) -> set[type]:
        return {kind}.union(*(heirs(heir) for heir in kind.__subclasses__()))

    ours = {k for k in heirs(Strategy) if k.__module__.startswith("fedwsa.")}
    assert {k.__name__ for k in ours} - {"Wrapper", "Accounted"} == {k.__name__ for k in OURS}
