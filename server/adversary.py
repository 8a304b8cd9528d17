"""Attackers among the clients: what they send is forged where the answers of a round come in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedwsa import seeding
from fedwsa.algorithms.attacks.attack import Known, ModelAttack, open_attack
from fedwsa.algorithms.wsa.client import ScopeAlignment
from fedwsa.algorithms.wsa.instruction import ScopeInstruction
from fedwsa.schema.config import Config
from fedwsa.wire import messages
from fedwsa.wire.content import Content
from fedwsa.wire.names import PERSONAL


@dataclass(frozen=True)
class Adversary:
    """All attackers of a run, who conspire.

    They train as all do: what they would send honestly is what an attack begins with. The rest of
    what they say is as it was, but for scopes, which are those of the forged weights: others would
    give them away.

    Attributes
    ----------
    attack : ModelAttack
    clients : collection of int
        Who attacks.
    seed : int
        Of the run.
    """

    attack: ModelAttack
    clients: Collection[int]
    seed: int

    @classmethod
    def of(cls, config: Config) -> Adversary | None:
        """The one of a run; None where everybody sends what was trained."""
        if not config.attack.share:
            return None
        attack = open_attack(config.attack.rule)
        if not isinstance(attack, ModelAttack):
            return None
        return cls(attack, config.attackers, config.seed)

    def forged(
        self,
        number: int,
        asked: Sequence[Message],
        replies: Sequence[Message],
        client_of: Callable[[int], int],
    ) -> list[Message]:
        """The answers of a round, the attackers' forged.

        Parameters
        ----------
        number
            Of the round.
        asked
            What was sent.
        client_of
            Node → client.

        Raises
        ------
        ValueError
            If the attack makes no update of these.
        """
        sent = {message.metadata.message_id: message.content for message in asked}
        updates: dict[int, Tensor] = {}
        for i, reply in enumerate(replies):
            if reply.has_content() and messages.model_arrays(reply.content) is not None:
                updates[i] = _update(sent[reply.metadata.reply_to_message_id], reply.content)
        liars = [i for i in updates if client_of(replies[i].metadata.src_node_id) in self.clients]
        if not liars:
            return list(replies)
        own = torch.stack([updates[i] for i in liars])
        honest = [u for i, u in updates.items() if i not in liars]
        known = Known(
            own,
            torch.stack(honest) if honest else own[:0],
            seeding.generator(self.seed, "attack", number),
        )
        told = list(replies)
        for i, update in zip(liars, self._made(known), strict=True):
            begun = sent[replies[i].metadata.reply_to_message_id]
            told[i] = _with(replies[i], begun, update)
        return told

    def _made(self, known: Known) -> Tensor:
        """What the attack makes of what it knows, an update for each attacker."""
        made, wanted = self.attack.forge(known), known.own.shape
        name = type(self.attack).__name__
        if not isinstance(made, Tensor):
            raise ValueError(f"{name}.forge() must return a Tensor, not {type(made).__name__}")
        if made.shape not in (wanted, wanted[1:]):
            raise ValueError(
                f"{name}.forge() must return updates {tuple(wanted)} or {tuple(wanted[1:])}, not "
                f"{tuple(made.shape)}"
            )
        return made.expand(wanted)


def _model(content: RecordDict) -> tuple[str, ArrayRecord]:
    """The model among records, with its record's name."""
    arrays = messages.model_arrays(content)
    assert arrays is not None
    return next(name for name, record in content.items() if record is arrays), arrays


def _numbers(arrays: ArrayRecord) -> dict[str, Tensor]:
    """What of a model has a direction to go in."""
    tensors = messages.to_tensors(arrays)
    return {name: t for name, t in tensors.items() if t.is_floating_point()}


def _update(sent: RecordDict, answered: RecordDict) -> Tensor:
    """Trained weights less those that were received, ``(D,)``."""
    begun = _numbers(_model(sent)[1])
    trained = _numbers(_model(answered)[1])
    return torch.cat([(t.float() - begun[name].float()).flatten() for name, t in trained.items()])


def _with(reply: Message, sent: RecordDict, update: Tensor) -> Message:
    """An answer with another update, and what it says of it."""
    begun = _numbers(_model(sent)[1])
    name, arrays = _model(reply.content)
    new, place = messages.to_tensors(arrays), 0
    for key, tensor in _numbers(arrays).items():
        piece = update[place : place + tensor.numel()].view(tensor.shape)
        new[key] = (begun[key].float() + piece).to(tensor.dtype)
        place += tensor.numel()
    forged = copy.copy(reply)
    forged.content = content = RecordDict({**reply.content, name: messages.to_arrays(new)})
    asked = cast(Content, sent)  # what is looked up of it, records of Flower have too
    if (instruction := ScopeInstruction.from_content(asked)) is not None:
        kept = sent.array_records.get(PERSONAL)  # stays with the client, which tells of it alone
        others = {} if kept is None else messages.to_tensors(kept)
        said = ScopeAlignment({**others, **new}, asked).end()
        forged_layers = [layer in new for layer in instruction.target.names]
        for key, metrics in messages.metric_records(reply.content).items():
            own = {k: _of(forged_layers, said.get(k), v) for k, v in metrics.items()}
            content[key] = MetricRecord(own)
    return forged


def _of(forged: Sequence[bool], said: Any, honest: Any) -> Any:
    """A metric, of each layer what is said of it if it is forged."""
    if said is None:
        return honest
    each = zip(forged, said, honest, strict=True)
    return [lie if layer else true for layer, lie, true in each]
