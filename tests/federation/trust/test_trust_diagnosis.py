from __future__ import annotations

import msgspec
import pytest

from federation.trust.anchor import Anchor
from federation.trust.diagnosis import diagnose
from federation.trust.membership import Membership
from ffm_common.errors import (
    BrokerCertificate,
    BrokerProtocol,
    BrokerRefused,
    BrokerUnavailable,
    FfmError,
)

DAY = 86_400
BEGINS, ENDS = 1_800_000_000, 1_800_000_000 + 365 * DAY
MEMBER = Membership(
    agent="kitchen",
    anchor=Anchor(federation="home", signs="aa" * 32, opens="bb" * 32),
    host="hub",
    port=8883,
    tls=True,
    door=("hub", 8884),
    begins=BEGINS,
    ends=ENDS,
)


def alert(words: str) -> BrokerCertificate:
    return BrokerCertificate(f"hub:8883 does not accept our certificate: {words}")


HANGS_UP = BrokerRefused("hub:8883 hangs up instead of answering")
NOT_YET = BrokerCertificate("the certificate of hub:8883 is not yet valid")


@pytest.mark.parametrize("failure", [alert("sslv3 alert bad certificate"), HANGS_UP, NOT_YET])
def test_a_clock_in_1970_is_to_blame_and_waited_for(failure: FfmError) -> None:
    said = diagnose(failure, MEMBER, 200.0).line()
    assert said.startswith(
        "error [clock-wrong]: the clock of this device says 1970-01-01 00:03 UTC"
    )
    assert "its certificate begins on 2027-01-15 08:00 UTC" in said
    assert "goes on when the clock is right" in said


@pytest.mark.parametrize("failure", [alert("sslv3 alert certificate expired"), HANGS_UP])
def test_a_certificate_that_ran_out_says_so_with_both_dates(failure: FfmError) -> None:
    found = diagnose(failure, MEMBER, ENDS + 2 * DAY)
    assert found.code == "certificate-expired"
    assert "ended on 2028-01-15 08:00 UTC" in found.message
    assert "the clock of this device says 2028-01-17" in found.message


@pytest.mark.parametrize("words", ["certificate expired", "bad certificate"])
def test_a_good_certificate_that_the_broker_takes_for_old_means_that_a_clock_is_wrong(
    words: str,
) -> None:
    found = diagnose(alert(f"sslv3 alert {words}"), MEMBER, BEGINS + DAY)
    assert found.code == "clock-wrong"
    assert "the clock of one of the two is wrong" in found.message


def test_a_device_that_was_revoked_hears_of_it() -> None:
    found = diagnose(alert("sslv3 alert certificate revoked"), MEMBER, BEGINS + DAY)
    assert found.code == "certificate-revoked"
    assert found.message.startswith("kitchen was revoked: hub:8883")


@pytest.mark.parametrize("words", ["tlsv1 alert unknown ca", "tlsv1 alert decrypt error"])
def test_a_broker_of_another_federation_is_told_of(words: str) -> None:
    found = diagnose(alert(words), MEMBER, BEGINS + DAY)
    assert found.code == "broker-certificate"
    assert "another authority" in found.message


@pytest.mark.parametrize(
    "failure",
    [
        alert("tlsv13 alert certificate required"),
        alert("sslv3 alert handshake failure"),
        BrokerCertificate("the certificate of hub:8883 is not trusted: self-signed"),
        BrokerProtocol("TLS is spoken at hub:8883"),
    ],
)
def test_a_device_that_has_not_joined_is_told_how(failure: FfmError) -> None:
    said = diagnose(failure, None, BEGINS).line()
    assert said.startswith("error [not-joined]: ")
    assert failure.message in said
    assert "ffm agent join" in said


@pytest.mark.parametrize("membership", [None, MEMBER])
@pytest.mark.parametrize(
    "failure", [BrokerUnavailable("cannot reach hub:8883"), BrokerProtocol("not MQTT but HTTP")]
)
def test_what_has_nothing_to_do_with_certificates_stays_as_it_is(
    failure: FfmError, membership: Membership | None
) -> None:
    assert diagnose(failure, membership, 0.0) is failure


def test_without_another_cause_the_brokers_own_words_stay() -> None:
    for failure in (HANGS_UP, alert("sslv3 alert certificate unknown")):
        assert diagnose(failure, MEMBER, BEGINS + DAY) is failure


def test_a_renewed_certificate_counts_at_once() -> None:
    renewed = msgspec.structs.replace(MEMBER, ends=ENDS + 365 * DAY)
    assert diagnose(HANGS_UP, renewed, ENDS + DAY) is HANGS_UP
