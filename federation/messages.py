"""What is said: small JSON messages with a limit on every field.

A field that a newer sender adds is ignored, so that hub and agents may be upgraded one by one; only
a task is refused when it is not understood whole. A field that has its default is left out, and
what is above 1 KiB is compressed with zlib.
"""

from __future__ import annotations

import zlib
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from ffm_common.errors import MessageInvalid
from ffm_common.numbering import NUMBER_PATTERN, WHEEL_PATTERN
from ffm_common.reading import Unreadable, from_json
from ffm_common.task import Task

MAX_MESSAGE_BYTES = 64 * 1024
MAX_RANGES = 512
MAX_CHAIN = 64
MAX_WHEELS = 64
_MAX_TEXT = 500
# Below this a person reads the wire with mosquitto_sub; above, labels repeat themselves.
_PLAIN_BYTES: Final = 1024
_ZLIB: Final = b"\x78"  # no JSON starts with an x

Digest: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Name: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z0-9-]{1,64}\Z")]
Text: TypeAlias = Annotated[str, Meta(max_length=_MAX_TEXT)]
Code: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z0-9.-]{1,64}\Z")]
Label: TypeAlias = Annotated[str, Meta(max_length=128)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
Version: TypeAlias = Annotated[int, Meta(ge=-1, le=2**31)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0.0)]
Ranges: TypeAlias = Annotated[
    tuple[tuple[Count, Count], ...], Meta(min_length=1, max_length=MAX_RANGES)
]
"""Chunk indices as pairs (first, last + 1)."""
AgentStatus: TypeAlias = Literal[
    "starting",
    "idle",
    "downloading",
    "training",
    "uploading",
    "paused",
    "failed",
    "lost",
    "left",
]
HubStatus: TypeAlias = Literal["starting", "open", "closing", "finished", "left", "lost"]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything said over the wire."""


class AgentState(Message, frozen=True, kw_only=True):
    """How an agent is (retained; its last will is the same with status ``lost``).

    `boot` counts the starts of the agent: a ``lost`` of an earlier boot is stale. `version` is
    the version held (-1: none). Memory is in MB, resident: of the supervisor now, and of the
    worker at its peak, beside what the plan foresaw; so with the seconds of an optimizer step.
    `fresh`: its data have changed since its last update.
    Bytes are MQTT payload since this boot. What was sent grows with every message, this one too:
    that tells which of two states is the older.
    """

    status: AgentStatus
    boot: Count
    profile: Label = ""
    version: Version = -1
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    memory_mb: Annotated[float, Meta(ge=0.0)] = 0.0
    worker_memory_mb: Annotated[float, Meta(ge=0.0)] = 0.0
    planned_memory_mb: Annotated[float, Meta(ge=0.0)] = 0.0
    step_s: Seconds = 0.0
    planned_step_s: Seconds = 0.0
    fresh: bool = False
    sent_bytes: Count = 0
    received_bytes: Count = 0
    detail: Text = ""

    def __post_init__(self) -> None:
        """Cut the free text, which often is somebody's error message, to what may be sent."""
        msgspec.structs.force_setattr(self, "detail", _said(self.detail))
        msgspec.structs.force_setattr(self, "profile", _said(self.profile))


class HubState(Message, frozen=True, kw_only=True):
    """How the hub is (retained; its last will is the same with status ``lost``).

    `version` is the one being made, `updates` of `expected` have been counted for it.
    """

    status: HubStatus
    boot: Count
    version: Version = -1
    updates: Count = 0
    expected: Count = 0
    detail: Text = ""

    def __post_init__(self) -> None:
        """Cut the free text to what may be sent."""
        msgspec.structs.force_setattr(self, "detail", _said(self.detail))


class Link(Message, frozen=True, kw_only=True):
    """A container on the way to a version, and its size in bytes."""

    blob: Digest
    size: Annotated[int, Meta(ge=1, le=2**53)]


class Manifest(Message, frozen=True, kw_only=True):
    """The current version (retained): what to fetch, and how to train from it.

    `chain` names the containers that lead to the version: a keyframe, then a delta from each
    version to the next. `content` is the digest of the tensors that they decode to, `base` the
    base model these belong to, `spec` their names and shapes, `task` what is to be learned and
    how, `codec` how updates are encoded. `down_bits` is about what a version costs in bits per
    parameter for who fetches every one. `deadline_s` is how many seconds the version stays open
    after it was published; `open` is False when no updates are wanted (any more). Each agent waits
    a random share of `spread_s` seconds before it fetches, so that a broadcast makes no storm.
    An update made from one of the `max_staleness` versions before this one is welcome, too: who is
    at work on such a one finishes it first. `chosen` are the agents that are asked to train; None
    is all. `issued` grows with every manifest of a hub that signs them, so that an older one, said
    again, is not taken for the newest.
    """

    federation: Name
    version: Annotated[int, Meta(ge=0, le=2**31)]
    chain: Annotated[tuple[Link, ...], Meta(min_length=1, max_length=MAX_CHAIN)]
    content: Digest
    base: Digest
    spec: Digest
    task: Task
    codec: Code
    down_bits: Annotated[float, Meta(ge=0.0, le=64.0)]
    deadline_s: Seconds
    open: bool
    spread_s: Annotated[float, Meta(ge=0.0, le=86400.0)] = 0.0
    max_staleness: Annotated[int, Meta(ge=0, le=1000)] = 0
    chosen: Annotated[tuple[Name, ...], Meta(max_length=1000)] | None = None
    issued: Count = 0

    @property
    def blob(self) -> str:
        """The last container's digest, which no other version has."""
        return self.chain[-1].blob


class ReleasedWheel(Link, frozen=True, kw_only=True):
    """A wheel of a release; `name` is that of its file."""

    name: Annotated[str, Meta(pattern=rf"\A{WHEEL_PATTERN}\Z", max_length=200)]


class Release(Message, frozen=True, kw_only=True):
    """What software boards may update themselves to (retained); without wheels, none.

    `version` is that of our own wheel, the first; the others are what it needs and boards may not
    have. `python` and `machine` are the only ones that it is for, "" for any; `unpacked` is its
    size on the disk. Who runs a newer version takes it only if it is meant as a `downgrade`.
    `issued` grows with every release of a hub, so that an older one, said again, is not taken for
    the newest. `spread_s` is as in a manifest.
    """

    federation: Name
    version: Annotated[str, Meta(pattern=rf"\A{NUMBER_PATTERN}\Z")]
    wheels: Annotated[tuple[ReleasedWheel, ...], Meta(max_length=MAX_WHEELS)]
    python: Annotated[str, Meta(pattern=r"\A(3\.[0-9]{1,2})?\Z")] = ""
    machine: Annotated[str, Meta(pattern=r"\A[a-z0-9_]{0,16}\Z")] = ""
    unpacked: Count = 0
    downgrade: bool = False
    issued: Count
    spread_s: Annotated[float, Meta(ge=0.0, le=86400.0)] = 0.0

    @property
    def name(self) -> str:
        """What a board calls it on its disk, unlike any other release of this hub."""
        return f"{self.version}-{self.issued}"


class Offer(Message, frozen=True, kw_only=True):
    """Agent: I have this update (`size` bytes) for `version`.

    It counts for `examples`: those trained on, fewer where they hardly tell labels apart. Training
    ended at `loss`, after `seconds`. `again` says that the same was offered before on this
    connection, and whatever the hub has asked for since was sent.
    """

    digest: Digest
    size: Annotated[int, Meta(ge=1, le=2**53)]
    version: Annotated[int, Meta(ge=0, le=2**31)]
    examples: Annotated[int, Meta(ge=1, le=2**53)]
    loss: float | None = None
    seconds: Seconds = 0.0
    again: bool = False


class Vote(Message, frozen=True, kw_only=True):
    """Agent: what `version` is worth on `examples` of mine that I never train on.

    `loss` is their mean in nats (of tokens, for a language model); `accuracy` from 0 to 1.
    """

    version: Annotated[int, Meta(ge=0, le=2**31)]
    loss: Annotated[float, Meta(ge=0.0, le=1e6)]
    accuracy: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    examples: Annotated[int, Meta(ge=1, le=2**53)]


class Need(Message, frozen=True, kw_only=True):
    """Hub: of the blob offered, send these chunks; if none: offer it again in `wait_s` seconds.

    Named are the first few that are not on the hub's disk, and so a chunk is named again and again
    while it is on its way. What was sent in this `attempt` is not sent again in it; a new attempt
    says that it does not come any more. Attempts are counted on from a random number above 0.

    Who is told to wait is asked sooner when there is room sooner.
    """

    digest: Digest
    ranges: Annotated[tuple[tuple[Count, Count], ...], Meta(max_length=MAX_RANGES)] = ()
    wait_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 0.0
    attempt: Count = 0


class Done(Message, frozen=True, kw_only=True):
    """Hub: the update is durable here and counted for `version`; forget it."""

    digest: Digest
    version: Version


class Reject(Message, frozen=True, kw_only=True):
    """Hub: the update will never be counted, for the reason `code`; forget it."""

    digest: Digest
    code: Code
    why: Text = ""

    def __post_init__(self) -> None:
        """Cut the free text to what may be sent."""
        msgspec.structs.force_setattr(self, "why", _said(self.why))


class Get(Message, frozen=True, kw_only=True):
    """Agent: of this blob, send me these chunks."""

    digest: Digest
    ranges: Ranges


class Renew(Message, frozen=True, kw_only=True):
    """Agent: make me a new certificate for my public key (in hex); answered by `Credentials`."""

    public: Digest


class Gone(Message, frozen=True, kw_only=True):
    """Hub: no such blob here (any more); read the manifest again."""

    digest: Digest


class InQuarantine(Message, frozen=True, kw_only=True):
    """Hub: for so many seconds nothing is heard of you, for the reason `why`."""

    seconds: Seconds
    why: Text = ""

    def __post_init__(self) -> None:
        """Cut the free text to what may be sent."""
        msgspec.structs.force_setattr(self, "why", _said(self.why))


Receipt: TypeAlias = Done | Reject

T = TypeVar("T", bound=Message)

_ENCODER = msgspec.json.Encoder()


def encode(message: Message) -> bytes:
    """Give the JSON of `message`, at most 64 KiB; compressed where that is above 1 KiB.

    Raises
    ------
    MessageInvalid
        A field is out of its limits: better said here than by a receiver far away.
    """
    payload = _ENCODER.encode(message)
    if len(payload) > _PLAIN_BYTES:
        payload = zlib.compress(payload, 9)
    decode(payload, type(message))
    return payload


def decode(payload: bytes, kind: type[T]) -> T:
    """Read `payload` as a message of type `kind`; its size is checked before it is parsed.

    The limit of 64 KiB holds for what is sent and for what that is decompressed.

    Raises
    ------
    MessageInvalid
        Too large, not JSON, a field missing, of the wrong type, or out of its limits.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageInvalid(f"{kind.__name__} of {len(payload)} bytes is too large")
    if payload.startswith(_ZLIB):
        payload = _inflate(payload, kind.__name__)
    try:
        return from_json(payload, kind)
    except Unreadable as error:
        raise MessageInvalid(f"{kind.__name__}: {error}") from error


def _said(text: str) -> str:
    """Give what of a free text may be sent, and may stand in somebody's log or terminal."""
    text = text[:_MAX_TEXT]
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else " " for each in text)


def _inflate(payload: bytes, name: str) -> bytes:
    """Decompress; what would become too large is given up at the limit."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(payload, MAX_MESSAGE_BYTES)
    except zlib.error as error:
        raise MessageInvalid(f"{name}: {error}") from error
    if not stream.eof or stream.unused_data:
        raise MessageInvalid(f"{name} is too large, cut short or too long when decompressed")
    return plain
