"""A certificate that is renewed in time, without anybody's help.

At two thirds of its life the hub is asked over MQTT, again and again, calmly. When it has run out,
as with a board that was in a drawer, the broker does not let us in any more; then it is asked at
its door. The next connection uses the new file.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from federation import messages
from federation.messages import Renew
from federation.topics import Topics
from federation.trust import membership
from federation.trust.joining import RENEW, RenewAtDoor
from federation.trust.membership import Credentials, Identity
from ffm_common.errors import FfmError, MessageInvalid

log = logging.getLogger("ffm.agent")

_DUE: Final = 2 / 3
_SPREAD: Final = 0.05  # boards that were let in together do not all ask together
_SHORTEST_S, _LONGEST_S = 2.0, 6 * 3600.0
_LOOKS: Final = 20
_LOOK_S: Final = 1.0


def at_door(identity: Identity, door: tuple[str, int] | None = None) -> Identity:
    """Ask the hub's door for a new certificate, and keep it if it lasts longer than ours.

    Parameters
    ----------
    door
        Host and port; None: where it was when the board joined.

    Raises
    ------
    DoorUnreachable, DoorUntrusted, ClockWrong
        It was not reached, or could not be believed.
    SenderUnknown, SignatureInvalid
        We are no member any more.
    IdentityBroken, PathUnwritable
        Our own folder cannot be used.
    """
    return _take(identity, _ask_door(identity, door))


def _ask_door(identity: Identity, door: tuple[str, int] | None = None) -> Credentials:
    from edge_agent.enrolment.asking import Authority, ask

    found = identity.membership
    authority = Authority(identity.trusted())
    return ask(
        door or found.door,
        authority,
        RENEW,
        lambda: RenewAtDoor.make(found.anchor, found.agent, identity.key),
        Credentials,
    )


def _take(identity: Identity, credentials: Credentials) -> Identity:
    """Put a certificate in the place of ours; one that is not newer may be an old message."""
    if credentials.ends <= identity.membership.ends:
        return identity
    if not membership.fits(credentials.certificate, identity.key_file):
        raise MessageInvalid("a certificate for another key")
    return identity.renew(credentials)


class Renewal:
    """The renewal of one agent's certificate.

    Parameters
    ----------
    identity
        What it has now; None: it is no member, and nothing is to be renewed.
    topics, publish
        How the hub is asked over MQTT: `publish` takes topic and payload.
    """

    def __init__(
        self, identity: Identity | None, topics: Topics, publish: Callable[[str, bytes], object]
    ) -> None:
        self._identity = identity
        self._topics = topics
        self._publish = publish
        self._share = _DUE + random.uniform(0, _SPREAD)  # noqa: S311 -- no secret
        self._look_at = self._ask_at = 0.0
        self._failures = 0
        self._answers: queue.SimpleQueue[Credentials | FfmError] = queue.SimpleQueue()
        self._asking: threading.Thread | None = None

    def tick(self, now: float, *, connected: bool) -> None:
        """Ask if it is time; `now` is in monotonic seconds, what counts is the wall clock's."""
        if now < self._look_at or self._identity is None:
            return
        self._look_at = now + _LOOK_S
        self._hear()
        found, wall = self._identity.membership, time.time()
        if wall < found.begins + self._share * (found.ends - found.begins) or now < self._ask_at:
            return
        left = found.ends - wall
        if connected:
            self._ask_at = now + min(_LONGEST_S, max(_SHORTEST_S, left / _LOOKS))
            asked = Renew(public=self._identity.key.public.hex())
            self._publish(self._topics.up(found.agent, "renew"), messages.encode(asked))
        elif left <= 0 and self._asking is None:
            log.warning("the certificate has run out; asking the hub's door for another")
            self._asking = threading.Thread(
                target=self._ask_door, args=(self._identity,), name="renewal", daemon=True
            )
            self._asking.start()

    def on_certificate(self, credentials: Credentials) -> None:
        """Keep what the hub has sent.

        Raises
        ------
        MessageInvalid
            It is for another key, or we are no member.
        PathUnwritable
            The folder does not take it.
        """
        before = self._identity
        if before is None:
            raise MessageInvalid("a certificate for who is no member")
        self._identity = _take(before, credentials)
        if self._identity is not before:
            log.info("the certificate is good until %s", _day(credentials.ends))

    def _ask_door(self, identity: Identity) -> None:
        """Run in a thread, as a door may keep us waiting."""
        try:
            self._answers.put(_ask_door(identity))
        except FfmError as error:
            self._answers.put(error)
        except Exception as error:  # noqa: BLE001 -- the loop must hear of it, or asks no more
            self._answers.put(FfmError(f"asking the door failed: {error!r}"))

    def _hear(self) -> None:
        """Take what the door has said, if it has."""
        try:
            answer = self._answers.get_nowait()
        except queue.Empty:
            return
        self._asking = None
        try:
            if isinstance(answer, FfmError):
                raise answer
            self.on_certificate(answer)
            self._failures = 0
        except FfmError as error:
            self._failures += 1
            pause = min(_LONGEST_S, 30.0 * 2 ** min(self._failures, 12)) * random.uniform(0.8, 1.2)  # noqa: S311 -- no secret
            self._ask_at = time.monotonic() + pause
            log.error("%s; again in %.0f s", error.line(), pause)


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
