"""What an agent may say: how much a second, and for how many seconds' worth of it at once.

Each limit is far above what the protocol, a bad link, a restarted hub and all of them together have
an agent say, and far below what would hurt the hub.
"""

from __future__ import annotations

from typing import Final

from federation.pace import Throttle
from hub.trust.quarantine import Quarantine

MESSAGES: Final = (10.0, 30.0)
"""States, offers, votes, renewals.

A version that is over in a second has an agent say some 8. Idle, it says an offer each 8 s and a
state each 10 s. The worst link connects anew after 0.5, 1, 2 ... s, or each 5 s, has 4 messages
said again each time, and doubles each. A hub that has stood still for a minute finds 140 of them.
"""
FETCHED: Final = (0.1, 30.0)
"""Downloads, in units of all that there is to fetch and `SLACK_CHUNKS` more.

A new agent fetches that once, or each chunk of it thrice where the link is bad; a version adds a
part of it.
"""
SLACK_CHUNKS: Final = 100
WASTED: Final = (10.0, 30.0)
"""Chunks of no use: a cut has 4 of them come again, the end of a version 4 come in vain."""
REFUSED: Final = (1.0, 60.0)
"""Messages that had to be refused: an agent of another release may have all its states refused."""
BAD_UPDATE: Final = 3
"""A whole update that had to be refused counts as so many messages."""
DROPPED: Final = (20.0, 50.0)
"""What was dropped for one of the first three limits. Beyond it, or `REFUSED`, is quarantine."""
UNBELIEVED: Final = (500.0, 10.0)
"""What nobody vouches for, of all together: checking a signature takes 0.04 to 0.2 ms."""
NEWCOMERS: Final = (1.0, 1000.0)
MOST_NAMES: Final = 10_000
"""New names, and names in all, in an open federation, whose ledger remembers each of them."""

_NEVER: Final = float("-inf")
_SLASHES_OF_A_CHUNK: Final = 2


class Record:
    """What one agent has left of all that, and how it stands (monotonic seconds).

    Attributes
    ----------
    until
        It is not heard before then.
    doubted_until
        Somebody else has lately spoken in its name.
    last
        Its last quarantine.
    """

    __slots__ = (
        "doubted_until",
        "dropped",
        "fetched",
        "last",
        "messages",
        "refused",
        "until",
        "wasted",
    )

    def __init__(self) -> None:
        self.doubted_until = _NEVER
        self.last: Quarantine | None = None
        self.forgive()

    def forgive(self) -> None:
        """Let it begin anew."""
        self.until = _NEVER
        self.messages = Throttle(*MESSAGES)
        self.fetched = Throttle(*FETCHED)
        self.wasted = Throttle(*WASTED)
        self.refused = Throttle(*REFUSED)
        self.dropped = Throttle(*DROPPED)

    def limit(self, rest: str) -> tuple[Throttle, str]:
        """Give what a message is charged to by the end of its topic, and what that is called."""
        if rest == "up/get":
            return self.fetched, "downloads"
        if of_chunk(rest):
            return self.wasted, "chunks that are not asked for, broken or doubled"
        return self.messages, "messages"


def of_chunk(rest: str) -> bool:
    """Tell whether what follows the name in a topic is that of a chunk, if it is any."""
    return rest.count("/") >= _SLASHES_OF_A_CHUNK
