"""Where an agent belongs: to a hub that has let it in, or to whatever the broker brings together.

Enrolled, it believes its hub alone, signs all that it says, and seals its updates to the hub.
"""

from __future__ import annotations

import time

from edge_agent.config import IDENTITY, Located
from federation.trust import membership, sealing, voice
from federation.trust.diagnosis import diagnose
from federation.trust.sealing import Terms
from federation.trust.voice import UNSIGNED, Voice
from ffm_common.errors import FfmError, IdentityBroken


class Belonging:
    """An agent's membership, if it has one.

    Parameters
    ----------
    located
        The agent's configuration.

    Attributes
    ----------
    identity
        None where it is no member.
    voice
        How it speaks and hears.
    """

    def __init__(self, located: Located) -> None:
        self.identity = located.identity
        self._folder = located.folder / IDENTITY
        tls = located.broker.carrier.tls
        self._shows_another = tls is not None and tls.certificate is not None
        self.voice: Voice = UNSIGNED
        if self.identity is not None:
            self.voice = voice.of_agent(self.identity.membership.anchor, self.identity.key)

    @property
    def enrolled(self) -> bool:
        """Whether the agent is a member."""
        return self.identity is not None

    @property
    def hub(self) -> str:
        """The public key of its hub, in hex; "" where it is no member."""
        return "" if self.identity is None else self.identity.membership.anchor.signs

    def seal(self, container: bytes, terms: Terms) -> bytes:
        """Give what is sent of an update: sealed to the hub, or as it is where there is no seal."""
        if self.identity is None:
            return container
        return sealing.seal(container, terms, self.identity.membership.anchor, self.identity.key)

    def explain(self, failure: FfmError) -> FfmError:
        """Say more of why the broker does not let us in; may be called from any thread."""
        try:
            identity = membership.load(self._folder)  # it may have been renewed
        except IdentityBroken as error:
            return error
        if identity is None:
            return failure if self._shows_another else diagnose(failure, None, time.time())
        return diagnose(failure, identity.membership, time.time())
