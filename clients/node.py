"""The node that the ClientApp runs on: which client it is, and where its data are."""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, Message

from fedwsa.config.component import ConfigError
from fedwsa.data.federated import FederatedData, shared_federated
from fedwsa.data.own import is_own, open_node
from fedwsa.schema.config import Config
from fedwsa.schema.fleet import Fleet
from fedwsa.wire.content import Content, find_record
from fedwsa.wire.names import DATA_MARK, DATA_PATH, DATA_REFERENCE, NUM_EXAMPLES, PARTITION_ID, SIZE


def client_of(context: Context) -> int:
    """The client that this node is.

    Raises
    ------
    ConfigError
        If the node was not told.
    """
    found = context.node_config.get(PARTITION_ID)
    if not isinstance(found, int) or isinstance(found, bool):
        raise ConfigError("start the node with --node-config partition-id=NUMBER, from 0")
    return found


def introduce(config: Config, message: Message, context: Context) -> ConfigRecord:
    """Who this node is in a run, once it has seen that it has data.

    Raises
    ------
    ConfigError
        If it cannot take part.
    """
    client, count = client_of(context), config.clients.count
    if not 0 <= client < count:
        raise ConfigError(f"partition-id={client}: the run has clients.count={count}, from 0")
    data = open_data(config, message.content, context)
    record = ConfigRecord({PARTITION_ID: client})
    if config.clients.sizes is not None:
        shape, classes = data.whole.shape, data.whole.classes
        record[SIZE] = Fleet(config).sizes(shape, classes)[client]
    if is_own(config.partition):
        record[NUM_EXAMPLES] = len(data.partition.shares[client])
    return record


def open_data(config: Config, content: Content, context: Context) -> FederatedData:
    """The data set of the run, or with ``partition=own`` what this node has.

    Of the server's own data each message tells again: a node that was restarted knows nothing.

    Raises
    ------
    ConfigError
        If the node has no data, or data of its own in a run that shares one data set out.
    """
    path = context.node_config.get(DATA_PATH)
    if not is_own(config.partition):
        if path is not None:
            raise ConfigError(
                "this node has data of its own (data-path): it takes part in runs with "
                "partition=own; others want a node without data-path"
            )
        return shared_federated(config.data_spec)
    if path is None:
        raise ConfigError(
            "partition=own: this node has no data; start it with --node-config "
            "\"partition-id=NUMBER data-path='FOLDER'\""
        )
    told = find_record(content, DATA_REFERENCE)
    if told is None:
        raise ConfigError("partition=own: the server has not said what its data are like")
    return open_node(
        config.data_spec,
        str(path),
        client_of(context),
        config.clients.count,
        str(told[DATA_REFERENCE]),
    )


def require_same_data(data: FederatedData, content: Content) -> None:
    """Refuse to train on other data, or other shares of them, than the server has.

    Raises
    ------
    ConfigError
        If they differ.
    """
    told = find_record(content, DATA_MARK)
    if told is not None and told[DATA_MARK] != data.mark:
        raise ConfigError(
            "partition: the data or their shares here are not the server's: a data set or a "
            "partition function must make the same each time, drawing from the seed alone"
        )
