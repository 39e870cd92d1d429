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

from ffm_common.errors.local import (
    AdapterInvalid,
    ConfigError,
    ConfigInvalid,
    ConfigMissing,
    ConfigSyntax,
    DataColumns,
    DataEmpty,
    DataError,
    DataFormat,
    DataLabels,
    DataMissing,
    DataScarce,
    LossNotFinite,
    MemoryLimitHit,
    ModelDigest,
    ModelError,
    ModelMissing,
    ModelUnsupported,
    NameInvalid,
    PlanImpossible,
    ProfileError,
    ProfileUnknown,
    ResourceError,
    TrainingError,
    WorkerFailed,
    WorkerPaused,
    WorkerStuck,
)
from ffm_common.errors.remote import (
    BlobCorrupt,
    BlobOversize,
    BrokerCertificate,
    BrokerError,
    BrokerLimit,
    BrokerProtocol,
    BrokerRefused,
    BrokerUnavailable,
    CertificateExpired,
    CertificateRevoked,
    ClockWrong,
    DoorUnreachable,
    DoorUntrusted,
    IdentityBroken,
    IdentityTaken,
    MembershipOther,
    MessageInvalid,
    MessageStale,
    NotJoined,
    PortBusy,
    Quarantined,
    RateExceeded,
    SenderUnknown,
    SignatureInvalid,
    TokenExpired,
    TokenInvalid,
    TokenRefused,
    TrustError,
    UpdateInvalid,
    WireError,
)
from ffm_common.errors.root import (
    FfmError,
)
from ffm_common.errors.state import (
    BoardError,
    BoardOther,
    BootPartitionMissing,
    DiskFull,
    ExtraMissing,
    FleetError,
    FleetStalled,
    FolderBusy,
    LedgerBroken,
    NotHealthy,
    PathTaken,
    PathUnwritable,
    ReleaseError,
    ReleaseFailed,
    ReleaseInvalid,
    ReleaseOlder,
    ReleaseUnsuited,
    StorageError,
    VersionLost,
    VersionUnknown,
    WheelMissing,
)

__all__ = [
    "AdapterInvalid",
    "BlobCorrupt",
    "BlobOversize",
    "BoardError",
    "BoardOther",
    "BootPartitionMissing",
    "BrokerCertificate",
    "BrokerError",
    "BrokerLimit",
    "BrokerProtocol",
    "BrokerRefused",
    "BrokerUnavailable",
    "CertificateExpired",
    "CertificateRevoked",
    "ClockWrong",
    "ConfigError",
    "ConfigInvalid",
    "ConfigMissing",
    "ConfigSyntax",
    "DataColumns",
    "DataEmpty",
    "DataError",
    "DataFormat",
    "DataLabels",
    "DataMissing",
    "DataScarce",
    "DiskFull",
    "DoorUnreachable",
    "DoorUntrusted",
    "ExtraMissing",
    "FfmError",
    "FleetError",
    "FleetStalled",
    "FolderBusy",
    "IdentityBroken",
    "IdentityTaken",
    "LedgerBroken",
    "LossNotFinite",
    "MembershipOther",
    "MemoryLimitHit",
    "MessageInvalid",
    "MessageStale",
    "ModelDigest",
    "ModelError",
    "ModelMissing",
    "ModelUnsupported",
    "NameInvalid",
    "NotHealthy",
    "NotJoined",
    "PathTaken",
    "PathUnwritable",
    "PlanImpossible",
    "PortBusy",
    "ProfileError",
    "ProfileUnknown",
    "Quarantined",
    "RateExceeded",
    "ReleaseError",
    "ReleaseFailed",
    "ReleaseInvalid",
    "ReleaseOlder",
    "ReleaseUnsuited",
    "ResourceError",
    "SenderUnknown",
    "SignatureInvalid",
    "StorageError",
    "TokenExpired",
    "TokenInvalid",
    "TokenRefused",
    "TrainingError",
    "TrustError",
    "UpdateInvalid",
    "VersionLost",
    "VersionUnknown",
    "WheelMissing",
    "WireError",
    "WorkerFailed",
    "WorkerPaused",
    "WorkerStuck",
]
