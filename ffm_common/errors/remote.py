"""What is wrong with others: messages, who says them, and the broker between."""

from __future__ import annotations

from ffm_common.errors.root import FfmError


class WireError(FfmError):
    """Something that came over the wire was refused; no state was changed."""


class MessageInvalid(WireError):
    """A control message does not match its schema or its limits."""

    code = "message-invalid"
    remedy = "hub and agents must run compatible versions"


class MessageStale(WireError):
    """A message is older than one that was heard before, and would undo what that said."""

    code = "message-stale"
    remedy = "nothing to do; if it goes on, see docs/trust.md on restored backups and replays"


class UpdateInvalid(WireError):
    """An update container does not match its format, its limits or this federation."""

    code = "update-invalid"
    remedy = "the sender must train from the version and base that the hub announced"


class BlobCorrupt(WireError):
    """A blob's bytes do not give its digest."""

    code = "blob-corrupt"
    remedy = "nothing to do: it is fetched again"


class BlobOversize(WireError):
    """A blob is announced larger than this side takes; nothing was allocated."""

    code = "blob-oversize"
    remedy = "raise the size limit here, or send fewer bits"


class SignatureInvalid(WireError):
    """A message or an update was not signed by whom it says; it was not looked at any further."""

    code = "signature-invalid"
    remedy = "if it goes on, find out who else speaks to this broker; a copied device must join"


class SenderUnknown(WireError):
    """A message of an agent that is no member, or none any more."""

    code = "sender-unknown"
    remedy = "let the device join with `ffm hub invite` and `ffm agent join`, or revoke it"


class RateExceeded(WireError):
    """More is said than work can explain, or than nobody can vouch for; it was dropped unread."""

    code = "rate-exceeded"
    remedy = "nothing to do if it is soon over; if not, see what that agent does"


class Quarantined(WireError):
    """The hub does not hear an agent for a while, for how it has behaved."""

    code = "quarantined"
    remedy = "mend the agent; at the hub `ffm hub agents` says why, and `ffm hub pardon` ends it"


class TrustError(FfmError):
    """A device or a hub cannot show who it is."""

    exit_status = 2


class TokenInvalid(TrustError):
    """The invitation is not what `ffm hub invite` printed."""

    code = "token-invalid"
    remedy = "copy the whole invitation again, or scan its QR code"


class TokenRefused(TrustError):
    """The hub does not let this device in: the invitation is used, too old or for another."""

    code = "token-refused"
    remedy = "ask for a new one: `ffm hub invite` at the hub"


class TokenExpired(TrustError):
    """The invitation runs out before the board can be expected to have used it."""

    code = "token-expired"
    remedy = "make one that lasts longer: `ffm hub invite --hours 72` at the hub"


class DoorUnreachable(TrustError):
    """The hub's door does not answer, or cannot be opened."""

    code = "door-unreachable"
    remedy = "start the hub, and see that this machine reaches its host and port; then try again"
    exit_status = 1


class DoorUntrusted(TrustError):
    """Who answers in the place of the hub's door is not the hub that made the invitation."""

    code = "door-untrusted"
    remedy = "find out who answers at that address; do not join there"


class MembershipOther(TrustError):
    """The device is in another federation or has another id, or is asked to."""

    code = "membership-other"
    remedy = "correct agent.toml; to start anew, remove the device's identity folder and join"


class NotJoined(TrustError):
    """The broker lets in members only, and this device has joined no federation."""

    code = "not-joined"
    remedy = (
        "`ffm agent join` with an invitation that `ffm hub invite` prints at the hub; where the "
        "broker takes anybody, correct its `url` and `ca`"
    )


class CertificateExpired(TrustError):
    """The certificate of this device has run out."""

    code = "certificate-expired"
    remedy = "nothing to do where the hub's door is reached: the agent fetches a new one there"


class CertificateRevoked(TrustError):
    """The hub has shut this device out."""

    code = "certificate-revoked"
    remedy = "ask at the hub; to be let in again, remove its identity folder and join anew"


class ClockWrong(TrustError):
    """The clock of this machine is so wrong that no certificate can be made or believed."""

    code = "clock-wrong"
    remedy = "set it, for instance with `timedatectl set-ntp true`, and try again"


class IdentityBroken(TrustError):
    """The files with the keys of this device or hub are damaged, incomplete or not private."""

    code = "identity-broken"
    remedy = "restore them from a backup; a device can also remove its identity folder and join"


class BrokerError(FfmError):
    """The MQTT broker cannot be used."""


class BrokerUnavailable(BrokerError):
    """No broker answers, or none can be started."""

    code = "broker-unavailable"
    remedy = "install mosquitto, or `pip install ffm-edge[broker]`, or give the broker's address"


class BrokerProtocol(BrokerError):
    """At the broker's port something else is spoken: TLS or not, a WebSocket or not."""

    code = "broker-protocol"
    remedy = "correct the scheme of the broker's url: mqtt, mqtts, ws or wss; and its port"


class BrokerCertificate(BrokerError):
    """The certificate of the broker, or of this side, was not accepted."""

    code = "broker-certificate"
    remedy = "check `ca`, the host in `url`, the dates of both certificates, and the board's clock"


class BrokerRefused(BrokerError):
    """The broker does not take the connection or a subscription."""

    code = "broker-refused"
    remedy = "look into the broker's log: its access rules, or its max_connections"


class BrokerLimit(BrokerError):
    """The broker takes no packets as large as a chunk."""

    code = "broker-limit"
    remedy = "let the broker take packets of 65536 bytes (mosquitto: max_packet_size)"


class IdentityTaken(BrokerError):
    """Another device has this agent's id, and has had it for longer."""

    code = "identity-taken"
    remedy = "give each device an id of its own in its agent.toml"
    exit_status = 2


class PortBusy(BrokerError):
    """The port asked for is in use."""

    code = "port-busy"
    remedy = "choose another port, or end the process that holds it"
