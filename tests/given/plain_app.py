"""A plain Flower app: FedAvg on random data, and the four lines that add alignment."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedwsa import FedWSA, ScopeAlignment

client_app, server_app = ClientApp(), ServerApp()
report: dict[str, object] = {}


@client_app.train()
def train(msg: Message, context: Context) -> Message:
    model = torch.nn.Linear(4, 2)
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    alignment = ScopeAlignment(model, msg.content)
    for x in torch.randn(5, 8, 4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        alignment.add_gradient()
        optimizer.step()
    metrics = MetricRecord({"num-examples": 40, **alignment.end()})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedWSA(FedAvg(fraction_evaluate=0.0), strength=1.0)
    start = ArrayRecord(torch.nn.Linear(4, 2).state_dict())
    result = strategy.start(grid, start, num_rounds=2)
    report.update(arrays=result.arrays, scopes=strategy.report, target=strategy.target)
