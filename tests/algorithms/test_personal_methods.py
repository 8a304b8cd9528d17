"""FedRep, FedBABU, FedALA, IFCA and FedProto, and the others' limits, in whole runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from clients.phases import conditions_in, phases_of
from experiments.commands.simulate import simulate
from fedwsa.algorithms.fedala.client import AdaptiveLocalAggregation
from fedwsa.algorithms.fedproto.client import COUNTS, MEANS, PROTOTYPES, Prototypes
from fedwsa.algorithms.fedproto.server import FedProto
from fedwsa.algorithms.fedrep.client import HeadThenBody
from fedwsa.algorithms.ifca.client import BestOfSeveral
from fedwsa.algorithms.ifca.server import IFCA
from fedwsa.algorithms.objective import ForwardPass, LocalRun, Phase, TrainedOn
from fedwsa.config.component import ConfigError
from fedwsa.models import build_model
from fedwsa.models.inputs import ImageShape
from fedwsa.runfolder import state_files
from fedwsa.schema.compose import compose
from fedwsa.schema.conditions import Conditions
from fedwsa.wire import messages
from tests.given.training import data, net

TINY = ["clients.count=4", "local.epochs=2", "model.width=0.1", "partition.alpha=0.5", "rounds=3"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def played(folder: Path, cache: str, *overrides: str) -> dict[str, Any]:
    """The state of a run before its last round."""
    kept = ["checkpoint.every=1", "evaluation.clients_every=1"]
    simulate(compose([*TINY, f"cache_dir={cache}", *kept, *overrides]), folder)
    return state_files.read(sorted((folder / "checkpoints").iterdir())[-1])


def shared(state: dict[str, Any]) -> dict[str, Tensor]:
    return messages.to_tensors(state["arrays"])


FEDAVG = [
    "ditto",
    "apfl",
    "fedala strategy.args.rate=0",
    "fedala strategy.args.layers=0",
]


def test_limits_of_the_personal_algorithms_are_fedavg(  # to the bit, where it averages alike
    cache: str, tmp_path: Path
) -> None:
    """Of those with a model beside it the shared one always is."""
    alone = "runtime.cohort=off"
    plain = shared(played(tmp_path / "fedavg", cache, alone))
    for number, words in enumerate(FEDAVG):
        strategy = f"strategy={words}".split()
        state = shared(played(tmp_path / str(number), cache, alone, *strategy))
        assert all(torch.equal(state[k], plain[k]) for k in plain), words
    one = shared(played(tmp_path / "ifca", cache, "strategy=ifca", "strategy.args.clusters=1"))
    for name, tensor in plain.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-4, atol=1e-6)
    moved = shared(played(tmp_path / "ala", cache, alone, "strategy=fedala"))
    assert not all(torch.equal(moved[k], plain[k]) for k in plain)


def test_fedproto_without_a_pull_is_training_alone_and_with_one_is_not(
    cache: str, tmp_path: Path
) -> None:
    tables = []
    for name in ("local", "fedproto strategy.args.pull=0", "fedproto strategy.args.pull=5"):
        folder = tmp_path / name.replace(" ", "-")
        played(folder, cache, *f"strategy={name}".split())
        columns = ["train_loss", "client_accuracy_mean"]
        tables.append(pd.read_csv(folder / "history.csv")[columns])
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert tables[0]["train_loss"][0] == tables[2]["train_loss"][0]  # nobody has told yet
    assert (tables[0]["train_loss"][1:] != tables[2]["train_loss"][1:]).all()


def test_fedbabu_leaves_the_head_and_has_the_body_of_fedrep_without_its_heads(
    cache: str, tmp_path: Path
) -> None:
    babu = shared(played(tmp_path / "babu", cache, "strategy=fedbabu"))
    rep = shared(played(tmp_path / "rep", cache, "strategy=fedrep", "strategy.args.head_epochs=0"))
    first = build_model(compose(TINY).model, ImageShape(1, 8, 8), 10, seed=0).state_dict()
    for name, tensor in babu.items():
        if name.startswith("head"):
            torch.testing.assert_close(tensor, first[name], rtol=1e-6, atol=0)  # of an average
        else:
            torch.testing.assert_close(tensor, rep[name], rtol=1e-4, atol=1e-6)
            assert not torch.equal(tensor, first[name])


def test_fedrep_trains_the_head_while_the_body_stands_still_and_the_body_after(
    cache: str, tmp_path: Path
) -> None:
    """Its first phase alone: heads that are FedPer's with a frozen body."""
    words = ["strategy=fedrep", "strategy.args.head_epochs=3", "local.epochs=1"]
    state = played(tmp_path / "rep", cache, *words, "runtime.cohort=off")
    stacked = played(tmp_path / "stacked", cache, *words, "runtime.cohort=4")
    for client, kept in state["clients"].items():
        other = messages.to_tensors(stacked["clients"][client]["personal"])
        for name, head in messages.to_tensors(kept["personal"]).items():
            torch.testing.assert_close(other[name], head, rtol=1e-4, atol=1e-6)
    for name, tensor in shared(state).items():
        torch.testing.assert_close(shared(stacked)[name], tensor, rtol=1e-4, atol=1e-6)


def test_phases_share_the_steps_that_a_client_has_time_for() -> None:
    content = {"fedrep": {"head-epochs": 2}, "personal": {"head": torch.zeros(1)}}
    phases = phases_of([HeadThenBody], content)
    assert [phase.trains("head") for phase in phases if phase.trains] == [True, False]
    every = conditions_in(phases, Conditions(0.1, 0.0, 5, 3), 20)
    assert [(own.epochs, own.steps) for own in every] == [(2, None), (3, None)]
    cut = conditions_in(phases, Conditions(0.1, 0.0, 5, 3, steps=10), 20)
    assert [own.steps for own in cut] == [10, 2]
    short = conditions_in(phases, Conditions(0.1, 0.0, 5, 3, steps=6), 20)
    assert [own.steps for own in short] == [6, 0]


def test_two_algorithms_with_phases_are_refused() -> None:
    class Other(HeadThenBody):
        @classmethod
        def phases(cls, content):
            return (Phase(),)

    content = {"fedrep": {"head-epochs": 2}, "personal": {"head": torch.zeros(1)}}
    with pytest.raises(ValueError, match="HeadThenBody and Other both say how a round is divided"):
        phases_of([HeadThenBody, Other], content)


def on(x: Tensor, y: Tensor) -> TrainedOn:
    return TrainedOn(x, y, 3, lambda p: p, lambda purpose: torch.Generator().manual_seed(1))


def test_a_step_of_fedala_is_that_of_the_parts_derivative() -> None:
    x, y = data(40)  # one batch
    received = net()
    last = {name: p.detach() + 0.3 for name, p in received.named_parameters()}
    parts = {"2.weight": torch.full((3, 8), 0.5), "2.bias": torch.full((3,), 0.25)}
    told = {"fedala": {"high": list(parts), "rate": 2.0, "samples": 1.0}}
    state = {"fedala": last, "fedala parts": parts}
    leaves = {name: part.clone().requires_grad_() for name, part in parts.items()}
    mixed = {
        name: last[name] + (received.get_parameter(name).detach() - last[name]) * part
        for name, part in leaves.items()
    }
    loss = nn.functional.cross_entropy(torch.func.functional_call(received, mixed, (x,)), y)
    slopes = torch.autograd.grad(loss, list(leaves.values()))
    AdaptiveLocalAggregation.settle(model := net(), told, state, on(x, y))
    for (name, part), slope in zip(parts.items(), slopes, strict=True):
        learned = (part - 2.0 * slope).clamp(0, 1)
        torch.testing.assert_close(state["fedala parts"][name], learned)
        way = net().get_parameter(name).detach() - last[name]
        torch.testing.assert_close(model.get_parameter(name).detach(), last[name] + way * learned)


def test_fedala_gets_from_a_worse_global_model_nearer_to_the_client_s_own() -> None:
    x, y = data(200)
    own, worse = net(), net()
    optimiser = torch.optim.SGD(own.parameters(), lr=0.5)
    for _ in range(200):
        optimiser.zero_grad()
        nn.functional.cross_entropy(own(x), y).backward()
        optimiser.step()
    with torch.no_grad():  # the same body, and the opposite head
        worse.load_state_dict(own.state_dict())
        worse[2].weight.neg_()
        worse[2].bias.neg_()
    told = {"fedala": {"high": ["2.weight", "2.bias"], "rate": 2.0, "samples": 1.0}}
    state = {"fedala": own.state_dict()}
    before = nn.functional.cross_entropy(worse(x), y)
    AdaptiveLocalAggregation.settle(worse, told, state, on(x, y))
    after, least = (nn.functional.cross_entropy(model(x), y) for model in (worse, own))
    # Convex in the head; it ends where ten losses differ little.
    assert least < after < before - 0.1


def test_fedala_leaves_the_lower_layers_and_who_has_no_last_model() -> None:
    told = {"fedala": {"high": ["2.weight", "2.bias"], "rate": 1.0, "samples": 0.5}}
    x, y = data(40)
    model, plain = net(), net()
    AdaptiveLocalAggregation.settle(model, told, {}, on(x, y))
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    last = {name: p.detach() + 0.5 for name, p in net().named_parameters()}
    AdaptiveLocalAggregation.settle(model, told, {"fedala": last}, on(x, y))
    assert torch.equal(model[0].weight, plain[0].weight)
    assert not torch.equal(model[2].weight, plain[2].weight)


NODES = itertools.count(1)


def answer(arrays: ArrayRecord, metrics: dict[str, float], **records: ArrayRecord) -> Message:
    """Of a node of its own."""
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics), **records})
    asked = Message(RecordDict(), dst_node_id=next(NODES), message_type="train")
    return Message(content, reply_to=asked)


def test_ifca_takes_the_model_with_the_least_loss_and_averages_each_cluster(
    task_identity: None,
) -> None:
    x, y = data(100)
    good, bad = net(), net()
    with torch.no_grad():
        bad[2].bias.add_(torch.tensor([9.0, 0.0, 0.0]))
    for first, second, best in ((good, bad, 0.0), (bad, good, 1.0)):
        others = {f"1/{k}": t for k, t in second.state_dict().items()}
        content = {"arrays": first.state_dict(), "ifca": others}
        model = net()
        objective = BestOfSeveral(model, content, LocalRun(0.1, samples=on(x, y)))
        assert objective.end() == {"ifca-cluster": best}
        assert torch.equal(model[2].bias, good[2].bias)
    strategy = IFCA(clusters=3)
    strategy.others = {f"{k}/w": torch.full((2,), 10.0 * k) for k in (1, 2)}

    def told(value: float, count: int, cluster: float) -> Message:
        arrays = messages.to_arrays({"w": torch.full((2,), value)})
        return answer(arrays, {"num-examples": count, "ifca-cluster": cluster})

    replies = [told(1.0, 1, 0.0), told(4.0, 2, 0.0), told(8.0, 5, 1.0), told(9.0, 5, 7.0)]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays["w"].numpy().tolist() == [3.0, 3.0]
    assert strategy.others["1/w"].tolist() == [8.0, 8.0]
    assert strategy.others["2/w"].tolist() == [20.0, 20.0]  # nobody took it


def test_the_prototypes_are_the_means_of_each_class_over_all_samples_of_all_clients(
    task_identity: None,
) -> None:
    model, parts = net(), [data(30), data(50)]
    shapes = {"model": {name: tuple(p.shape) for name, p in model.named_parameters()}}
    strategy, told = FedProto(shapes, pull=1.0), []
    for x, y in parts:
        run = LocalRun(0.1, samples=on(x, y))
        client = Prototypes(model, {"fedproto": {"pull": 1.0}}, run)
        client.after(model)
        sent = {n: messages.to_arrays(t) for n, t in client.records().items()}
        told.append(answer(messages.to_arrays({}), {"num-examples": len(y)}, **sent))
    strange = {MEANS: torch.full((3, 8), torch.nan), COUNTS: torch.ones(3)}
    lie = {PROTOTYPES: messages.to_arrays(strange)}
    told.append(answer(messages.to_arrays({}), {"num-examples": 1}, **lie))
    strategy.aggregate_train(1, told)
    x, y = (torch.cat(of) for of in zip(*parts, strict=True))
    features = model[:2](x)
    for label in range(3):
        mean = features[y == label].mean(0).detach()
        torch.testing.assert_close(strategy.prototypes[MEANS][label], mean)


def test_the_loss_of_fedproto_is_the_distance_to_the_prototype_of_the_sample_s_class() -> None:
    means, counts = torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([4.0, 0.0])
    content = {"fedproto": {"pull": 2.0}, PROTOTYPES: {MEANS: means, COUNTS: counts}}
    x, y = torch.tensor([[3.0, 4.0], [5.0, 5.0]]), torch.tensor([0, 1])
    client = Prototypes(net(), content, LocalRun(0.1, samples=on(x, y)))
    seen = ForwardPass(x, y, lambda: x, lambda name: x, x, lambda z: z)
    assert client.loss(seen).tolist() == [2.0 * 25 / 2, 0.0]  # class 1 is not known yet


def test_fedproto_goes_with_clients_of_several_depths(cache: str, tmp_path: Path) -> None:
    """Each trains a network of its own; what they share has one length."""
    sizes = ["clients.sizes=[S, L, S, L]", "~sizes", "+sizes={S: {depth: 1}, L: {depth: 3}}"]
    state = played(tmp_path / "run", cache, "strategy=fedproto", *sizes)
    kept = {client: set(records["personal"]) for client, records in state["clients"].items()}
    assert kept[0] == kept[2]
    assert kept[0] < kept[1]
    memory = state["strategy"][0]["prototypes"]
    assert memory["means"].shape == (10, 20)
    assert memory["counts"].sum() > 1000  # of all clients
    apart = ["clients.sizes=[S, L, S, L]", "~sizes", "+sizes={S: {width: 0.1}, L: {width: 0.2}}"]
    words = [o for o in TINY if "width" not in o] + ["strategy=fedproto", *apart]
    with pytest.raises(ConfigError, match=r"clients\.sizes: FedProto compares .* 20 in S, 40 in L"):
        simulate(compose([*words, f"cache_dir={cache}"]), tmp_path / "refused")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("strategy=ditto strategy.args.pull=-1", r"strategy\.args\.pull"),
        ("strategy=apfl strategy.args.share=2", r"strategy\.args\.share"),
        ("strategy=ifca strategy.args.clusters=0", r"strategy\.args\.clusters"),
        ("strategy=fedrep strategy.args.personal=nomatch", r"personal: matches no array"),
        ("strategy=ifca wsa=on", r"each cluster has scopes of its own"),
        ("strategy=ditto local.optimiser=adam", r"Ditto counts steps of SGD"),
        (
            "strategy=fedrep dataset._target_=tests.given.small_images.small_images "
            "partition=iid model=cnn local.weight_augmentation=translate",
            r"FedRep trains the weights as they are; set it to off",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: str, message: str, cache: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        simulate(compose([f"cache_dir={cache}", *words.split()]), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


OURS = ["apfl", "ditto", "fedala", "fedbabu", "fedproto", "fedrep", "ifca", "per_fedavg", "pfedme"]


@pytest.mark.slow
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("strategy", OURS)
def test_two_workers_give_what_one_does(strategy: str, cache: str, tmp_path: Path) -> None:
    """The shared model, and what each client keeps."""
    one, two = (
        played(
            tmp_path / str(workers),
            cache,
            f"strategy={strategy}",
            "runtime.cohort=off",
            f"runtime.workers={workers}",
        )
        for workers in (1, 2)
    )
    for name, tensor in shared(one).items():
        torch.testing.assert_close(shared(two)[name], tensor, rtol=1e-4, atol=1e-6)
    assert one["clients"].keys() == two["clients"].keys()
    for client, kept in one["clients"].items():
        for name, record in kept.items():
            tensors = messages.to_tensors(record)
            for key, other in messages.to_tensors(two["clients"][client][name]).items():
                torch.testing.assert_close(other, tensors[key], rtol=1e-4, atol=1e-6)
