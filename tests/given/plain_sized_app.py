"""A plain Flower app whose clients have networks of two widths."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedwsa.algorithms.sizes.heterofl import HeteroFL

client_app, server_app = ClientApp(), ServerApp()
report: dict[str, object] = {}
WIDTHS = {"S": 3, "L": 6}


def network(size: str) -> torch.nn.Module:
    width = WIDTHS[size]
    return torch.nn.Sequential(
        torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
    )


@client_app.query()
def query(msg: Message, context: Context) -> Message:
    size = "L" if context.node_config["partition-id"] == 0 else "S"  # or what the device knows
    answer = RecordDict({"config": ConfigRecord({"size": size})})
    return Message(answer, reply_to=msg)


@client_app.train()
def train(msg: Message, context: Context) -> Message:
    model = network(msg.content["config"]["size"])
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in torch.randn(5, 8, 4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
    arrays, metrics = ArrayRecord(model.state_dict()), MetricRecord({"num-examples": 40})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    states = {size: network(size).state_dict() for size in WIDTHS}
    shapes = {size: {k: t.shape for k, t in state.items()} for size, state in states.items()}
    strategy = HeteroFL(shapes, fraction_evaluate=0.0)
    start = strategy.join(states)
    result = strategy.start(grid, start, num_rounds=2)
    report.update(start=start, arrays=result.arrays)
    report.update(small=strategy.split(result.arrays, "S", server_round=2))
