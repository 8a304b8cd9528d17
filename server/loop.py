"""The rounds of a run, one after the other: train, aggregate, score, evaluate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fedwsa.algorithms.wsa.server import FedWSA, ScopeReport
from fedwsa.data.evaluation import Score
from fedwsa.data.federated import SMALLEST_WITH_HOLD_OUT
from fedwsa.models import exchange
from fedwsa.schema.config import Config
from fedwsa.wire import messages
from fedwsa.wire.names import ACCURACY, NUM_EXAMPLES, TRAIN_LOSS
from server.cohorts import Cohorts, leaves_it_to_the_strategy
from server.global_model import GlobalModel
from server.rates import Rates
from server.record import ClientScores, Evaluated, RoundRecord, Scored, Trained
from server.rounds import Conversation, RunError
from server.systems import Plan, Systems

logger = logging.getLogger("fedwsa")


class RoundLoop:
    """Runs a strategy over the clients of a fleet.

    Parameters
    ----------
    conversation
        With the clients.
    arrays
        The model that it begins with.
    config
        The run.
    model
        Scores the arrays of a round.
    rates
        Of each round.
    systems
        The simulated devices; None: everybody is there and answers.
    price
        What privacy has cost after a training, asked once of each.
    is_over
        Whether the run ends, asked once of each round: of its score on the validation split.

    Attributes
    ----------
    arrays : ArrayRecord
        The global model after the rounds so far.
    clock : float
        Simulated seconds since the run began.
    """

    def __init__(
        self,
        conversation: Conversation,
        arrays: ArrayRecord,
        config: Config,
        model: GlobalModel,
        rates: Rates,
        systems: Systems | None = None,
        price: Callable[[Trained], float | None] = lambda trained: None,
        is_over: Callable[[Score | None], bool] | None = None,
    ) -> None:
        self._talk, self._strategy = conversation, conversation.strategy
        self.arrays, self._reference = arrays, messages.to_tensors(arrays)
        self._config, self._model, self._systems = config, model, systems
        self._rates = rates
        self._price, self._is_over = price, is_over
        self._cohorts = None
        if systems is not None and not leaves_it_to_the_strategy(config):
            self._cohorts = Cohorts(config, systems)
        self.clock = 0.0

    def begin(self, state: Mapping[str, Any]) -> None:
        """Before the first round: as a checkpoint has it (:meth:`state`); empty: from nothing."""
        self.clock = state.get("clock", 0.0)
        if self._cohorts is not None:
            self._cohorts.begin(state.get("cohorts", {}))

    def state(self) -> dict[str, Any]:
        """What the next round depends on, beside the model."""
        state: dict[str, Any] = {"clock": self.clock}
        return state if self._cohorts is None else state | {"cohorts": self._cohorts.state()}

    def run(self, number: int) -> RoundRecord:
        """Run one round; :attr:`arrays` is the new global model afterwards.

        Raises
        ------
        RunError
            If fewer clients gave a usable answer than the guard needs, and it is to stop then; or
            the aggregate is not finite.
        """
        trained, seconds = self._train(number)
        start = time.perf_counter()
        scored = self._score(number)
        over = self._is_over is not None and self._is_over(scored.validation)
        last = over or number == self._config.rounds
        evaluated = self._evaluate(number, last)
        return RoundRecord(
            number,
            self.arrays,
            self._price(trained),
            last,
            {**seconds, "evaluate": time.perf_counter() - start},
            **vars(trained),
            **vars(scored),
            **vars(evaluated),
        )

    def _train(self, number: int) -> tuple[Trained, dict[str, float]]:
        """The training, whose model :attr:`arrays` has then, and the seconds of its phases."""
        start = time.perf_counter()
        talk, systems = self._talk, self._systems
        lr, server_lr = self._rates.begin(number)
        waited = self._wait()
        there = self._there(number)
        if self._cohorts is not None:
            count = max(1, int(self._config.clients.fraction * len(there)))
            there = frozenset(self._cohorts.choose(number, there, count))
        asked = talk.asked_to_train(number, self.arrays, there)
        cohort = sorted(talk.client_of(m.metadata.dst_node_id) for m in asked)
        plan = Plan(asked, {}, {}, [], [])  # all of them answer
        if systems is not None:
            plan = systems.plan(number, asked, talk.client_of, self.clock)
        gathered, enough = talk.train(number, plan.sent, len(cohort))
        answers, lost = talk.by_client(gathered.accepted), talk.by_client(gathered.lost())
        costs = None
        if systems is not None:
            costs = systems.costs(plan, gathered.replies, answers, talk.client_of)
            self.clock += costs.seconds
            costs = replace(costs, seconds=waited + costs.seconds)
        if self._cohorts is not None:
            self._cohorts.note(number, answers)
        sent = time.perf_counter()
        loss = self._train_loss(answers) if enough else None
        moved = enough and self._aggregate(number, gathered.replies)
        trained = Trained(
            cohort=tuple(cohort),
            dropped=tuple(plan.dropped),
            late=tuple(plan.late),
            failed=tuple(sorted(lost)),
            rejected=tuple(sorted(k for k, i in lost.items() if i.kind == "rejected")),
            answers=answers,
            train_loss=loss,
            scopes=self._scopes(moved),
            costs=costs,
            moved=moved,
            lr=lr,
            server_lr=server_lr,
        )
        return trained, {"train": sent - start, "aggregate": time.perf_counter() - sent}

    def _scopes(self, moved: bool) -> ScopeReport | None:
        """What FedWSA measured in a round."""
        return self._strategy.report if moved and isinstance(self._strategy, FedWSA) else None

    def _train_loss(self, answers: Mapping[int, MetricRecord]) -> float | None:
        """The clients' mean task loss; None where they withhold it."""
        if self._config.withheld:
            return None
        told = answers.values()
        losses = np.array([messages.number(m, TRAIN_LOSS) for m in told])
        examples = np.array([messages.number(m, NUM_EXAMPLES) for m in told])
        return float(losses @ examples / examples.sum())

    def _aggregate(self, number: int, replies: list[Message]) -> bool:
        """Let the strategy make a model of the replies; whether it did."""
        with self._talk.hook("aggregate_train", number):
            arrays, _ = self._strategy.aggregate_train(number, replies)
        if arrays is None:
            logger.warning("round %d: the strategy returned no model, the old one stays", number)
            return False
        name = type(self._strategy).__name__
        if not isinstance(arrays, ArrayRecord):
            where = f"round {number}: {name}.aggregate_train"
            raise RunError(f"{where} must return an ArrayRecord, not a {type(arrays).__name__}")
        if problem := exchange.unusable(messages.to_tensors(arrays), self._reference):
            raise RunError(f"round {number}: the model that {name} returned is unusable: {problem}")
        self.arrays = messages.cast_like(arrays, self._reference)
        return True

    def _score(self, number: int) -> Scored:
        """The global model on what the server has, if it is due."""
        due = number == self._config.rounds or number % self._config.evaluation.every == 0
        if not due:
            return Scored()
        model, arrays = self._model, self.arrays
        sizes = model.score(arrays, number)
        validation = model.validate(arrays, number) if model.validates else None
        success = model.succumbs(arrays, number) if model.is_aimed_at else None
        return Scored(sizes=sizes, validation=validation, attack_success=success)

    def _evaluate(self, number: int, last: bool) -> Evaluated:
        """The global model at the clients, if it is due."""
        due = last or number % self._config.evaluation.clients_every == 0
        if not due or self._config.withheld:  # their accuracies are releases, too
            return Evaluated()
        if not self._model.data.has_hold_outs:
            if last:
                logger.info("no client has the %d samples of a hold-out", SMALLEST_WITH_HOLD_OUT)
            return Evaluated()
        config, everybody = self._config, range(self._config.clients.count)
        evaluated = self._ask(number, self._seen(everybody))
        if not last:
            return evaluated
        adapt = config.evaluation.adapt
        if adapt:
            adapted = self._ask(number, self._seen(everybody), adapt).clients
            evaluated = replace(evaluated, adapted=adapted)
        if config.unseen:
            evaluated = replace(evaluated, unseen=self._ask(number, config.unseen).clients)
        if config.unseen and adapt:
            adapted = self._ask(number, config.unseen, adapt).clients
            evaluated = replace(evaluated, unseen_adapted=adapted)
        return evaluated

    def _wait(self) -> float:
        """Until somebody is there, which takes so many simulated seconds."""
        waited = 0.0 if self._systems is None else self._systems.waits(self.clock)
        self.clock += waited
        return waited

    def _there(self, number: int) -> Collection[int]:
        """The clients that may be asked to train now; at least one, or Flower waits for ever."""
        everybody = range(self._config.clients.count)
        if self._systems is None:
            return self._seen(everybody)
        there = self._seen(self._systems.there(number, self.clock))
        learning = [] if there else sorted(self._seen(everybody))
        return there or [learning[number % len(learning)]]

    def _seen(self, there: Collection[int]) -> Collection[int]:
        """Clients without those that never train."""
        return frozenset(there) - self._config.unseen if self._config.unseen else there

    def _ask(self, number: int, clients: Collection[int], adapt: int = 0) -> Evaluated:
        """Let clients evaluate, perhaps after they adapted the model to themselves."""
        talk = self._talk
        asked = talk.asked_to_evaluate(number, self.arrays, clients, adapt)
        gathered = talk.evaluate(number, asked)
        held_out = [r for r in gathered.replies if r.has_content() and _examples(r) > 0]
        scores = None
        if held_out:
            scores = ClientScores.of(
                [messages.number(m, ACCURACY) for m in messages.reply_metrics(held_out)]
            )
            if not adapt and not self._config.unseen.issuperset(clients):
                with talk.hook("aggregate_evaluate", number):
                    self._strategy.aggregate_evaluate(number, held_out)
        return Evaluated(
            clients=scores,
            evaluations=talk.by_client(gathered.accepted),
            failed_evaluation=tuple(sorted(talk.by_client(gathered.lost()))),
        )


def _examples(reply: Message) -> float:
    return messages.number(messages.reply_metrics([reply])[0], NUM_EXAMPLES)
