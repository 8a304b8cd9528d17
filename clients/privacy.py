"""What a client does for privacy: clipping where Flower's wrappers ask for it, noise of its own."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM

from fedwsa import seeding
from fedwsa.schema.config import Config
from fedwsa.wire.content import find_record


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


def noise_if_wished(
    config: Config, message: Message, context: Context, call_next: ClientAppCallable, *key: int
) -> Message:
    """Flower's local mod, where the client's own configuration wishes it.

    Two updates of norm C at most differ by 2C at most, which is the sensitivity.

    Parameters
    ----------
    key
        Round and client, by which the noise is drawn unless it is to be secret.
    """
    local = config.privacy.local
    if local is None:
        return call_next(message, context)
    mod = LocalDpMod(
        local.clipping_norm, 2 * local.clipping_norm, local.epsilon, config.privacy.delta
    )
    # The training is over when the noise is drawn: it draws from generators of its own.
    with seeding.noise(config.seed, config.privacy.noise, "local privacy", *key):
        return mod(message, context, call_next)


def clipped_and_noised(
    config: Config, message: Message, context: Context, reply: Message, key: tuple[int, int]
) -> Message:
    """The answer to a message, as both would have it of a client that trains alone."""

    def noised(message: Message, context: Context) -> Message:
        return noise_if_wished(config, message, context, lambda *_: reply, *key)

    return clip_if_asked(message, context, noised)
