"""The one tree of errors; docs/errors.md has a line for each leaf.

A leaf has a stable ``code`` and a ``remedy``: the sentence that says what to do. A command that
fails prints one line made of code, message and remedy, and exits with ``exit_status``.

::

    FfmError
    ├── ConfigError
    │   ├── ConfigMissing            config-missing
    │   ├── ConfigSyntax             config-syntax
    │   ├── ConfigInvalid            config-invalid
    │   └── NameInvalid              name-invalid
    ├── DataError
    │   ├── DataMissing              data-missing
    │   ├── DataEmpty                data-empty
    │   ├── DataColumns              data-columns
    │   ├── DataFormat               data-format
    │   ├── DataLabels               data-labels
    │   └── DataScarce               data-scarce
    ├── ModelError
    │   ├── ModelMissing             model-missing
    │   ├── ModelDigest              model-digest
    │   ├── ModelUnsupported         model-unsupported
    │   └── AdapterInvalid           adapter-invalid
    ├── TrainingError
    │   ├── LossNotFinite            loss-not-finite
    │   ├── WorkerPaused             worker-paused
    │   ├── WorkerStuck              worker-stuck
    │   └── WorkerFailed             worker-failed
    ├── ProfileError
    │   ├── ProfileUnknown           profile-unknown
    │   └── PlanImpossible           plan-impossible
    ├── ResourceError
    │   └── MemoryLimitHit           memory-limit
    ├── WireError
    │   ├── MessageInvalid           message-invalid
    │   ├── MessageStale             message-stale
    │   ├── UpdateInvalid            update-invalid
    │   ├── BlobCorrupt              blob-corrupt
    │   ├── BlobOversize             blob-oversize
    │   ├── SignatureInvalid         signature-invalid
    │   ├── SenderUnknown            sender-unknown
    │   ├── RateExceeded             rate-exceeded
    │   └── Quarantined              quarantined
    ├── TrustError
    │   ├── TokenInvalid             token-invalid
    │   ├── TokenRefused             token-refused
    │   ├── TokenExpired             token-expired
    │   ├── DoorUnreachable          door-unreachable
    │   ├── DoorUntrusted            door-untrusted
    │   ├── MembershipOther          membership-other
    │   ├── NotJoined                not-joined
    │   ├── CertificateExpired       certificate-expired
    │   ├── CertificateRevoked       certificate-revoked
    │   ├── ClockWrong               clock-wrong
    │   └── IdentityBroken           identity-broken
    ├── BrokerError
    │   ├── BrokerUnavailable        broker-unavailable
    │   ├── BrokerProtocol           broker-protocol
    │   ├── BrokerCertificate        broker-certificate
    │   ├── BrokerRefused            broker-refused
    │   ├── BrokerLimit              broker-limit
    │   ├── IdentityTaken            identity-taken
    │   └── PortBusy                 port-busy
    ├── StorageError
    │   ├── PathUnwritable           path-unwritable
    │   ├── PathTaken                path-taken
    │   ├── DiskFull                 disk-full
    │   ├── FolderBusy               folder-busy
    │   ├── VersionLost              version-lost
    │   ├── VersionUnknown           version-unknown
    │   └── LedgerBroken             ledger-broken
    ├── BoardError
    │   ├── BoardOther               board-other
    │   ├── BootPartitionMissing     boot-partition
    │   └── WheelMissing             wheel-missing
    ├── NotHealthy                   not-healthy
    ├── ReleaseError
    │   ├── ReleaseInvalid           release-invalid
    │   ├── ReleaseOlder             release-older
    │   ├── ReleaseUnsuited          release-unsuited
    │   └── ReleaseFailed            release-failed
    ├── ExtraMissing                 extra-missing
    └── FleetError
        └── FleetStalled             fleet-stalled
"""

from __future__ import annotations

from typing import ClassVar


class FfmError(Exception):
    """Root of every error this project raises on purpose.

    Parameters
    ----------
    message
        What happened, with the name of the file, key, topic or value concerned.
    remedy
        Replaces the class's own sentence where the place knows better.
    quotes
        What there is to say of somebody's data itself: a label, the name of a column, which may be
        no name but the first of the texts. It is for who sits before the machine, and so in
        `line`; an agent never writes or sends it.
    """

    code: ClassVar[str] = "internal"
    remedy: ClassVar[str] = "run again with --debug and report the traceback"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str | None = None, quotes: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.quotes = quotes
        self.how_to_resolve = remedy or type(self).remedy

    def line(self) -> str:
        """Give the one readable line that a person sees."""
        # Libraries whose words are quoted in a message may have written several lines.
        return " ".join(f"error [{self.code}]: {self.told} -- {self.how_to_resolve}".split())

    @property
    def told(self) -> str:
        """The message with what it quotes."""
        return f"{self.message}; {self.quotes}" if self.quotes else self.message


class ConfigError(FfmError):
    """A configuration file cannot be used."""

    exit_status = 2


class ConfigMissing(ConfigError):
    """The file is not there or cannot be read."""

    code = "config-missing"
    remedy = "check the path given with --config"


class ConfigSyntax(ConfigError):
    """The file is not TOML."""

    code = "config-syntax"
    remedy = "mend the line named; the format is TOML"


class ConfigInvalid(ConfigError):
    """A key is unknown, missing, of the wrong type or out of range."""

    code = "config-invalid"
    remedy = "mend the key named"


class NameInvalid(ConfigError):
    """The name of a federation or an agent cannot stand in a topic."""

    code = "name-invalid"
    remedy = "use 1 to 64 of the characters a-z, 0-9 and -"


class DataError(FfmError):
    """A dataset cannot be used."""

    exit_status = 2


class DataMissing(DataError):
    """The file is not there or cannot be read."""

    code = "data-missing"
    remedy = "check the path of the data file"


class DataEmpty(DataError):
    """The file holds no example."""

    code = "data-empty"
    remedy = "give a file with at least one row of text and label"


class DataColumns(DataError):
    """The text or label column is not there or cannot be guessed."""

    code = "data-columns"
    remedy = "name the columns with --text and --label"


class DataFormat(DataError):
    """The file is not what its name says, or is broken."""

    code = "data-format"
    remedy = "give CSV, TSV, JSONL or Parquet; the ending of the name tells which"


class DataLabels(DataError):
    """Too few labels, or a label that the task does not know."""

    code = "data-labels"
    remedy = "a classification task needs at least two labels, known to hub and agents alike"


class DataScarce(DataError):
    """Too few distinct examples for what was asked."""

    code = "data-scarce"
    remedy = "give more data, or ask for fewer agents"


class ModelError(FfmError):
    """A base model or adapter cannot be used."""


class ModelMissing(ModelError):
    """No base model at the path or under the name."""

    code = "model-missing"
    remedy = "give a folder made by `ffm model prepare`"


class ModelDigest(ModelError):
    """The base on this machine is not bit-identical to the federation's."""

    code = "model-digest"
    remedy = "copy the federation's base folder again; every agent must hold the same bytes"


class ModelUnsupported(ModelError):
    """The base model is of a kind, or kept in a way, that this engine cannot train."""

    code = "model-unsupported"
    remedy = "use the torch engine for this base"


class AdapterInvalid(ModelError):
    """The adapter folder or file does not match the base or the format."""

    code = "adapter-invalid"
    remedy = "give an adapter folder in PEFT format made for this base"


class TrainingError(FfmError):
    """A piece of training did not finish."""


class LossNotFinite(TrainingError):
    """The loss became NaN or infinite; the last good state is kept."""

    code = "loss-not-finite"
    remedy = "lower learning_rate, or look at the examples of this shard"


class WorkerPaused(TrainingError):
    """The worker kept its state and ended because it was asked to."""

    code = "worker-paused"
    remedy = "nothing to do: it is started again when the profile allows"


class WorkerStuck(TrainingError):
    """The worker process showed no sign of life and was ended."""

    code = "worker-stuck"
    remedy = "nothing to do: it is started again; if it comes back, see the worker's log named"


class WorkerFailed(TrainingError):
    """The worker process ended without a result."""

    code = "worker-failed"
    remedy = "see the worker's log named in the message"


class ProfileError(FfmError):
    """A device profile cannot be used."""

    exit_status = 2


class ProfileUnknown(ProfileError):
    """No profile of that name is shipped and no file of that path exists."""

    code = "profile-unknown"
    remedy = "`ffm profile list` shows the names; a path to a TOML file works too"


class PlanImpossible(ProfileError):
    """No plan fits the profile."""

    code = "plan-impossible"
    remedy = "use a smaller adapter, shorter texts, a smaller base or a larger board"
    exit_status = 1


class ResourceError(FfmError):
    """A process met a limit of its device profile."""


class MemoryLimitHit(ResourceError):
    """The worker wanted more memory than its profile gives; it was stopped, the agent lives."""

    code = "memory-limit"
    remedy = "use a smaller batch, sequence length, rank or model, or raise memory_mb"


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


class StorageError(FfmError):
    """The disk does not take what must be kept."""


class PathUnwritable(StorageError):
    """A file or folder cannot be written."""

    code = "path-unwritable"
    remedy = "give a folder that this user may write, with free space"
    exit_status = 2


class PathTaken(StorageError):
    """A file is there already, and nobody has said that it may be replaced."""

    code = "path-taken"
    remedy = "look at it; `--yes` replaces it"
    exit_status = 2


class DiskFull(StorageError):
    """There is too little room for what is to be written; nothing was."""

    code = "disk-full"
    remedy = "make room there, or write less"
    exit_status = 2


class FolderBusy(StorageError):
    """Another process works in the same folder."""

    code = "folder-busy"
    remedy = "end the other process, or give each its own folder"


class VersionLost(StorageError):
    """The hub's current version is damaged on its disk in every form in which it is kept."""

    code = "version-lost"
    remedy = "restore the state folder from a backup, or move it away to start anew"


class VersionUnknown(StorageError):
    """The hub has no version of that number, or does not keep what was asked of it."""

    code = "version-unknown"
    remedy = "`ffm hub versions` shows which there are"
    exit_status = 2


class LedgerBroken(StorageError):
    """A hub's or an agent's database is corrupt, or belongs to another federation."""

    code = "ledger-broken"
    remedy = "restore the state folder from a backup, or move it away to start anew"


class BoardError(FfmError):
    """A board, or its card, cannot be prepared; nothing was written."""

    exit_status = 2


class BoardOther(BoardError):
    """A board or system of this kind is not prepared in this way."""

    code = "board-other"
    remedy = "install its own system first, then run `ffm install` on it"


class BootPartitionMissing(BoardError):
    """The folder is not the boot partition of a system that this can prepare."""

    code = "boot-partition"
    remedy = (
        "write Raspberry Pi OS (October 2025 or newer) or Ubuntu for Raspberry Pi on the card, "
        "and give the folder where its first partition is mounted"
    )


class WheelMissing(BoardError):
    """The folder holds no wheel of this project, or more than one."""

    code = "wheel-missing"
    remedy = "make it with `make bundle`, and give that folder"


class NotHealthy(FfmError):
    """The agent or hub asked about does not run, or no longer moves."""

    code = "not-healthy"
    remedy = "look into its log: `journalctl -u ffm-agent` or `-u ffm-hub`, or the container's"


class ReleaseError(FfmError):
    """A release of this software is not announced, or not taken by a board."""


class ReleaseInvalid(ReleaseError):
    """What was given as a wheel is none, is damaged, or is none that a release can be made of."""

    code = "release-invalid"
    remedy = "build it again with `pip wheel . --no-deps`"
    exit_status = 2


class ReleaseOlder(ReleaseError):
    """The release is older than what runs."""

    code = "release-older"
    remedy = "nothing to do; `ffm hub release --downgrade` is taken by newer boards, too"


class ReleaseUnsuited(ReleaseError):
    """The release is for another Python or machine, or this board does not update itself."""

    code = "release-unsuited"
    remedy = "make one for this board, or install it by hand"


class ReleaseFailed(ReleaseError):
    """The release did not work on this board, which went back and does not take it again."""

    code = "release-failed"
    remedy = "mend it and announce it anew; the board's log says more"


class ExtraMissing(FfmError):
    """An optional part is not installed."""

    code = "extra-missing"
    remedy = "install the extra named in the message"
    exit_status = 2


class FleetError(FfmError):
    """A fleet on this machine did not do what it was asked."""


class FleetStalled(FleetError):
    """The fleet made no progress within its time."""

    code = "fleet-stalled"
    remedy = "look into the logs folder named in the message"
