"""Steps of the server without rounds: on the clock of the simulated devices, as answers come."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from torch import Tensor

from fedwsa import seeding
from fedwsa.fleet.staleness import moved, weight
from fedwsa.fleet.systems import drops_out
from fedwsa.wire import messages
from server.loop import RoundLoop
from server.record import Trained
from server.rounds import RunError
from server.systems import Costs, Systems

logger = logging.getLogger("fedwsa")


@dataclass(frozen=True, eq=False)
class Flight:
    """A training under way.

    Attributes
    ----------
    number : int
        Of all that were started, from 0.
    client : int
        Who trains.
    version : int
        How many steps the server had gone when it sent the model.
    ends : float
        When the answer is there, in simulated seconds of the run.
    answers : bool
        Whether there will be one.
    down, flops : float
        Bytes that were sent, and what the training takes.
    content : RecordDict or None
        Of the answer; None: it is not known yet, or there is none.
    """

    number: int
    client: int
    version: int
    ends: float
    answers: bool
    down: int
    flops: float
    content: RecordDict | None = None


class PacedLoop(RoundLoop):
    """A loop whose rounds are the server's steps: after so many answers, or each so many seconds.

    Events go by simulated time, and where that is the same by the order of their starts: how long
    anything takes here, and on how many workers, changes nothing. Clients that are sent a model
    between two steps are sent the same, and are trained in one go.
    """

    _systems: Systems
    _told = False  # of a period without an answer

    def begin(self, state: Mapping[str, Any]) -> None:
        """Before the first step: as a checkpoint has it, see :meth:`state`; empty: from nothing."""
        super().begin(state)
        self._started, self._failed = state.get("started", 0), state.get("failed", 0)
        self._flights = [Flight(**flight) for flight in state.get("flights", [])]
        self._versions: dict[int, dict[str, Tensor]] = {
            int(version): messages.to_tensors(arrays)
            for version, arrays in state.get("versions", {}).items()
        }

    @property
    def _most(self) -> int:
        """How many train at once."""
        return self._config.pace.clients(self._config.cohort)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the model."""
        return super().state() | {
            "started": self._started,
            "failed": self._failed,
            "flights": [dict(vars(flight)) for flight in self._flights],
            "versions": {str(k): messages.to_arrays(model) for k, model in self._versions.items()},
        }

    def _train(self, number: int) -> tuple[Trained, dict[str, float]]:
        """A step: what arrives until then, and the trainings that begin."""
        start, began, version = time.perf_counter(), self.clock, number - 1
        if not self._flights:
            self._wait()
        lr, server_lr = self._rates.begin(number)
        self._versions[version] = messages.to_tensors(self.arrays)
        asked = self._candidates(number)
        arrived = self._until_the_step(number, asked)
        new = [f for f in (*arrived, *self._flights) if f.version == version]
        contents = self._trained(number, asked, new)
        arrived, self._flights = (
            [replace(f, content=contents.get(f.number, f.content)) for f in flights]
            for flights in (arrived, self._flights)
        )
        sent = time.perf_counter()
        there = sorted((f for f in arrived if f.content), key=lambda f: (f.client, f.number))
        replies = [self._reply(flight, version) for flight in there]
        metrics = messages.reply_metrics(replies)
        answers = {f.client: found for f, found in zip(there, metrics, strict=True)}
        if self._cohorts is not None:
            self._cohorts.note(number, answers)
        stepped = bool(replies) and self._aggregate(number, replies)
        late = [version - flight.version for flight in there]
        needed = {flight.version for flight in self._flights}
        self._versions = {k: model for k, model in self._versions.items() if k in needed}
        trained = Trained(
            cohort=tuple(sorted(f.client for f in arrived)),
            dropped=tuple(sorted(f.client for f in arrived if not f.answers)),
            failed=tuple(sorted(f.client for f in arrived if f.answers and not f.content)),
            answers=answers,
            train_loss=self._train_loss(answers) if answers else None,
            scopes=self._scopes(stepped),
            costs=Costs(
                bytes_down=sum(f.down for f in new),
                bytes_up=sum(messages.sent_up(f.content) for f in there if f.content),
                seconds=self.clock - began,
                flops_per_client=sum(f.flops for f in there) / len(there) if there else None,
            ),
            moved=stepped,
            lr=lr,
            server_lr=server_lr,
            staleness=sum(late) / len(late) if late else None,
        )
        return trained, {"train": sent - start, "aggregate": time.perf_counter() - sent}

    def _candidates(self, number: int) -> dict[int, Message]:
        """Who may be sent the model, in the order in which they are, and what.

        Who trains already is not asked, nor is anybody twice between two steps.
        """
        pace, busy = self._config.pace, {flight.client for flight in self._flights}
        idle = [k for k in sorted(self._there(number)) if k not in busy]
        most = self._most + (pace.buffer or 0)
        if self._cohorts is not None:
            chosen = list(self._cohorts.choose(number, idle, most))
        else:
            generator = seeding.generator(self._config.seed, "pace", number)
            chosen = [
                idle[k] for k in torch.randperm(len(idle), generator=generator)[:most].tolist()
            ]
        # A strategy is asked in each step, also where nobody is free.
        asked = self._talk.asked_to_train(number, self.arrays, chosen or [*busy][:1])
        found = {self._talk.client_of(m.metadata.dst_node_id): m for m in asked}
        return {k: found[k] for k in chosen}

    def _until_the_step(self, number: int, asked: Mapping[int, Message]) -> list[Flight]:
        """Let clients begin and answer until the server goes a step; those that have."""
        pace, waiting = self._config.pace, iter(asked.items())
        until = float("inf") if pace.period is None else self.clock + pace.period
        arrived: list[Flight] = []
        self._fill(number, waiting)
        while self._flights:
            first = min(self._flights, key=lambda flight: (flight.ends, flight.number))
            if first.ends > until:
                break
            self._flights.remove(first)
            self.clock = max(self.clock, first.ends)
            arrived.append(first)
            if pace.buffer is not None and sum(f.answers for f in arrived) >= pace.buffer:
                break
            if pace.period is None:
                self._fill(number, waiting)
        if pace.period is not None:
            if not arrived and self._flights and not self._told:
                soonest = min(flight.ends for flight in self._flights)
                logger.warning(
                    "round %d: no answer in a period of %g simulated s; the first is there in %.3g",
                    number,
                    pace.period,
                    soonest - until,
                )
                self._told = True
            self.clock = until
        return arrived

    def _fill(self, number: int, waiting: Iterator[tuple[int, Message]]) -> None:
        """Let as many clients train as may."""
        config = self._config
        while len(self._flights) < self._most:
            if (chosen := next(waiting, None)) is None:
                return
            client, message = chosen
            task = self._systems.task(client, messages.payload(message.content))
            seconds = task.seconds(task.steps, task.down)
            away = self._systems.leaves(client, self.clock, seconds)
            drops = drops_out(config.seed, number, client, config.clients.dropout)
            flight = Flight(
                number=self._started,
                client=client,
                version=number - 1,
                ends=self.clock + seconds,
                answers=not (away or drops),
                down=task.down,
                flops=task.flops(task.steps),
            )
            self._flights.append(flight)
            self._started += 1

    def _trained(
        self, number: int, asked: Mapping[int, Message], flights: Sequence[Flight]
    ) -> dict[int, RecordDict]:
        """The answers of trainings that begin, by their numbers; of those that fail there is none.

        Raises
        ------
        RunError
            If as many as train at once have failed, one after the other.
        """
        flying = {f.client: f.number for f in flights if f.answers}
        sent = [asked[client] for client in sorted(flying)]
        if not sent:
            return {}
        gathered, _ = self._talk.train(number, sent, len(sent), single=True)
        self._failed = 0 if gathered.accepted else self._failed + len(gathered.lost())
        if self._failed >= self._most and self._config.guard.below == "stop":
            raise RunError(
                f"round {number}: the last {self._failed} answers have all failed: "
                f"{gathered.reason()}"
            )
        return {
            flying[self._talk.client_of(reply.metadata.src_node_id)]: reply.content
            for reply in gathered.rows
            if reply.has_content()
        }

    def _reply(self, flight: Flight, version: int) -> Message:
        """An answer as the strategy sees it: of a model that begins where the server's is now."""
        assert flight.content is not None
        pace = self._config.pace
        late = version - flight.version
        part = pace.rate * weight(pace.discount, late, pace.exponent, pace.bound)
        now, content = self._versions[version], flight.content
        begun = self._versions[flight.version] if pace.moves == "update" else now
        if part != 1 or (late and pace.moves == "update"):
            answer = messages.to_tensors(_arrays(content))
            shifted = moved(answer, begun, now, part, self._model.sizes.buffers)
            content = messages.with_model_arrays(content, messages.to_arrays(shifted))
        return Message(content, dst_node_id=1, message_type=MessageType.TRAIN)


def _arrays(content: RecordDict) -> ArrayRecord:
    arrays = messages.model_arrays(content)
    assert arrays is not None  # or the guard would have refused the answer
    return arrays
