"""What was refused of what came: counted, and said now and then.

Anybody who reaches the broker may send anything as often as he likes, and a board's log is on a
card that wears. So of each sender a line a minute is written, and not many of all together.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Final

from federation.topics import ChunkRoute, ClaimRoute, MessageRoute, StateRoute, Topics
from ffm_common.errors import MessageInvalid, SenderUnknown, WireError

HUB: Final = "the hub"
STRANGERS: Final = "strangers"
"""All who are no members, or whose topic tells no name."""
OTHERS: Final = "others"

_SAY_AGAIN_S: Final = 60.0
_MOST_LINES: Final = 20
_MOST_SENDERS: Final = 1000


class Refusals:
    """Counts what was refused, by who is said to have sent it.

    Parameters
    ----------
    log
        Hears of it.
    topics
        Of the federation: they tell the sender.

    Attributes
    ----------
    counts
        (sender, code of the error) -> how many messages. The 1,001st sender, and all after it, are
        counted as `OTHERS`.
    """

    def __init__(self, log: logging.Logger, topics: Topics) -> None:
        self._log = log
        self._topics = topics
        self.counts: Counter[tuple[str, str]] = Counter()
        self._senders: Counter[str] = Counter()
        self._said: dict[str, float] = {}
        self._lines = 0
        self._since = float("-inf")

    def note(self, topic: str, error: WireError) -> None:
        """Count a message under `topic` that was refused for `error`; perhaps say so."""
        sender = STRANGERS if isinstance(error, SenderUnknown) else self._sender(topic)
        if sender not in self._senders and len(self._senders) >= _MOST_SENDERS:
            sender = OTHERS
        self.counts[sender, error.code] += 1
        self._senders[sender] += 1
        now = time.monotonic()
        if now >= self._since + _SAY_AGAIN_S:
            self._since, self._lines = now, 0
        said = self._said.get(sender, float("-inf"))
        if self._lines < _MOST_LINES and now >= said + _SAY_AGAIN_S:
            self._lines += 1
            self._said[sender] = now
            count = self._senders[sender]
            self._log.warning("refused from %s, %d by now: %s", sender, count, error.line())

    def _sender(self, topic: str) -> str:
        try:
            route = self._topics.parse(topic)
        except MessageInvalid:
            return STRANGERS
        match route:
            case StateRoute(agent) | ClaimRoute(agent):
                return agent
            case MessageRoute(agent) | ChunkRoute(agent) if route.direction == "up":
                return agent
            case _:
                return HUB
