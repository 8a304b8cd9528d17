"""Clipping at the client, for Flower's privacy wrappers that ask for it."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp.mod import adaptiveclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM

from fedwsa.objectives import find_record


def asks_to_clip(message: Message) -> bool:
    """Whether the server names a clipping norm."""
    return find_record(message.content, KEY_CLIPPING_NORM) is not None


def clip_if_asked(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Flower's clipping mod, where a strategy asks for it.

    It refuses a message without a clipping norm, so that it cannot stand before every training.
    The adaptive one clips as the fixed one, and tells whether it had to, which the wrappers of
    fixed clipping leave alone.
    """
    if not asks_to_clip(message):
        return call_next(message, context)
    return adaptiveclipping_mod(message, context, call_next)
