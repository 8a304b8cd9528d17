"""What a client keeps from one message to the next: its Context, as the app left it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context, RecordDict, UserConfig

from fedwsa.simulation.transport import PackedContent, Record, each, own_record, pack, same, unpack

_OF_ANY_STATE = frozenset(vars(RecordDict()))


@dataclass(frozen=True)
class Kept:
    """What is kept of a context, for the store.

    Attributes
    ----------
    state : dict
        The packed records of its ``state``.
    beside : dict
        What the app has set on the ``state`` beside its records.
    others : dict
        All other attributes that the app has set or changed, its ``node_config`` among them.
    """

    state: PackedContent = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)


class OwnContext:
    """A client's context for one message, and how it was before.

    Parameters
    ----------
    run_id, node_id
        Of the run and the client.
    node_config
        That the client began with.
    run_config
        Of the run.
    kept
        What it keeps since its last message; None: nothing.
    """

    def __init__(
        self,
        run_id: int,
        node_id: int,
        node_config: UserConfig,
        run_config: UserConfig,
        kept: Kept | None,
    ) -> None:
        kept = kept or Kept()
        self.context = Context(
            run_id, node_id, dict(node_config), unpack(kept.state), dict(run_config)
        )
        self._new = dict(vars(self.context), node_config=node_config, run_config=run_config)
        del self._new["state"]
        self._before: dict[str, Record] = each(self.context.state, own_record)
        self._had_more = bool(kept.beside or kept.others)
        vars(self.context.state).update(kept.beside)
        vars(self.context).update(kept.others)

    def changed(self) -> Kept | None:
        """What is to be kept from now on; None: the same as before.

        Raises
        ------
        ValueError
            If the app has changed the ``run_config``, as in Flower.
        """
        now = dict(vars(self.context))
        if now["run_config"] != self._new["run_config"]:
            raise ValueError("The `run_config` field of the `Context` object cannot be modified")
        state = now["state"]
        others = {k: v for k, v in now.items() if k != "state" and not self._as_new(k, v)}
        if type(state) is not RecordDict:  # Flower keeps whatever is there
            return Kept(others=others | {"state": state})
        beside = {k: v for k, v in vars(state).items() if k not in _OF_ANY_STATE}
        # What another attribute holds may have changed inside: it is kept anew each time.
        if not (beside or others or self._had_more) and same(self._before, state):
            return None
        return Kept(pack(state), beside, others)

    def _as_new(self, name: str, value: object) -> bool:
        return name in self._new and repr(self._new[name]) == repr(value)
