"""Who gets a certificate: a board with an invitation, and a member whose own grows old.

One that is new enough is given again. So whoever asks twice, as an answer was lost or a board lost
power, gets the same; and asking often makes nothing grow.
"""

from __future__ import annotations

import logging
import threading
import time

from federation.trust.joining import Join, RenewAtDoor
from federation.trust.membership import Credentials
from ffm_common.errors import MembershipOther, SenderUnknown, SignatureInvalid
from hub.trust.authority import LIFE_DAYS, Authority
from hub.trust.members import Members

log = logging.getLogger("ffm.hub")


class Issuer:
    """Certifies members; may be used from any thread.

    Parameters
    ----------
    days
        How long a certificate is valid.
    """

    def __init__(self, authority: Authority, members: Members, *, days: float = LIFE_DAYS) -> None:
        self._authority = authority
        self._members = members
        self._days = days
        self._lock = threading.Lock()

    def join(self, asked: Join) -> Credentials:
        """Let a board in.

        Raises
        ------
        SignatureInvalid
            The key is not that of who asks, or he asks another hub.
        MembershipOther
            He wants to be in another federation.
        TokenRefused
            His invitation is not good for that.
        """
        if not asked.signed(self._authority.fingerprint):
            raise SignatureInvalid("the request is not signed by the key in it, or for another hub")
        federation = self._authority.anchor.federation
        if asked.federation not in {None, federation}:
            raise MembershipOther(f"this is federation {federation}, not {asked.federation}")
        public, secret = bytes.fromhex(asked.public), bytes.fromhex(asked.secret)
        with self._lock:
            found = self._members.check(asked.agent, public, secret)
            if found is not None and _new_enough(found.credentials):
                self._members.use(secret, public)
                return found.credentials
            made = self._authority.certify(asked.agent, public, days=self._days)
            self._members.enrol(asked.agent, public, made, secret=secret)
        log.info("%s has joined", asked.agent)
        return made.credentials

    def renew_at_door(self, asked: RenewAtDoor) -> Credentials:
        """Give a member a certificate; raises as `renew`, and SignatureInvalid."""
        if not asked.signed(self._authority.anchor):
            raise SignatureInvalid("the request is not signed by the key in it, or for another hub")
        return self.renew(asked.agent, bytes.fromhex(asked.public))

    def renew(self, agent: str, public: bytes) -> Credentials:
        """Give a member a certificate for the key that it has proved to have.

        Raises
        ------
        SenderUnknown
            There is no such member in good standing, or it has another key.
        """
        with self._lock:
            found = self._members.member(agent)
            if found.public != public:
                raise SenderUnknown(f"{agent} is a member with another key")
            if _new_enough(found.credentials):
                return found.credentials
            made = self._authority.certify(agent, public, days=self._days)
            self._members.enrol(agent, public, made)
        log.info("%s has a new certificate", agent)
        return made.credentials


def _new_enough(credentials: Credentials) -> bool:
    """Tell whether more than half of a certificate's life is still to come."""
    return time.time() < (credentials.begins + credentials.ends) / 2
