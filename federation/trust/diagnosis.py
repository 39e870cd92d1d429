"""Why a broker does not take our certificate, as far as that can be told from here.

In TLS 1.3 a broker looks at it when for us the handshake is over: it hangs up, and at best leaves
a word or two in an alert. What it means is plain once our certificate's dates are held against
our clock, which on a board without a battery says 1970 until the network has told it better.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from federation.trust.membership import Membership
from ffm_common.errors import (
    BrokerCertificate,
    BrokerRefused,
    CertificateExpired,
    CertificateRevoked,
    ClockWrong,
    FfmError,
    NotJoined,
)

_TLS: Final = "TLS is spoken at"
_DATES: Final = ("certificate expired", "bad certificate")  # OpenSSL's "bad": not yet valid
_STRANGER: Final = ("unknown ca", "decrypt error")
_WAITS: Final = "nothing to do where the network tells the time: it goes on when the clock is right"


def diagnose(failure: FfmError, membership: Membership | None, now: float) -> FfmError:
    """Make of an error of a connection one that says what to do.

    Parameters
    ----------
    failure
        As a session has met it; what has nothing to do with certificates is given back.
    membership
        None: this device has joined no federation, and so shows no certificate.
    now
        What the clock of this device says, in seconds since 1970.
    """
    if membership is None:
        if isinstance(failure, BrokerCertificate) or _TLS in failure.message:
            return NotJoined(f"{failure.message}, and this device has joined no federation")
        return failure
    if not isinstance(failure, BrokerCertificate | BrokerRefused):
        return failure
    said, clock = failure.message, f"the clock of this device says {_date(now)}"
    begins, ends = _date(membership.begins), _date(membership.ends)
    if now < membership.begins:
        return ClockWrong(f"{clock}, and its certificate begins on {begins}", remedy=_WAITS)
    if now > membership.ends:
        return CertificateExpired(f"the certificate of this device ended on {ends}, and {clock}")
    if "certificate revoked" in said:
        return CertificateRevoked(f"{membership.agent} was revoked: {said}")
    if any(words in said for words in _DATES):
        return ClockWrong(
            f"the broker takes our certificate for ended or not yet begun, though {clock}, and it "
            f"is good from {begins} to {ends}: the clock of one of the two is wrong"
        )
    if any(words in said for words in _STRANGER):
        return BrokerCertificate(
            f"{said}: the broker knows another authority than the one that let this device in",
            remedy="look whether the broker's address is that of this federation",
        )
    return failure


def _date(seconds: float) -> str:
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M} UTC"
