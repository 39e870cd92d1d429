"""hub.toml: the federation's task, its public data, when a version closes, which broker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from federation.connection.address import TLS_PORT, Address, BrokerAddress, locate
from federation.messages import MAX_CHAIN
from federation.trust.joining import DOOR_PORT
from ffm_common import config
from ffm_common.config import Config, Name
from ffm_common.errors import ConfigInvalid, UpdateInvalid
from ffm_common.task import Adapter, TaskKind, Training
from hub.broker import Kind
from hub.robust.defence import Defence
from hub.switching.policy import policy_of
from hub.trust.authority import LIFE_DAYS
from hub.versions.registry import KEPT
from quantization.updates import codec
from quantization.updates.rates import DELTA, KEYFRAME, KEYFRAME_EVERY

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
# Bounded: what is announced to the agents must be a number, and infinity is none in JSON.
_YEAR_S = 366 * 86400
_DAY_S = 86400.0
_MOMENT_S = 2.0
Seconds = Annotated[float, msgspec.Meta(gt=0, le=_YEAR_S)]


class BrokerChoice(BrokerAddress, frozen=True, kw_only=True):
    """Which MQTT broker: one that runs already, or one that the hub starts as its child.

    Parameters
    ----------
    kind
        ``external``: use the one at host and port, or at url; ``mosquitto`` or ``amqtt``: start it;
        ``auto``: external if there is a url, else mosquitto if it is on this machine, else amqtt.
    port
        0 lets the hub choose a free one. Not given, it is 8883 for the TLS that the hub's own
        broker speaks to members, else 1883.
    """

    kind: Kind = "auto"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None

    @property
    def choice(self) -> Kind:
        """Which kind that is, as far as it can be told by now."""
        return "external" if self.url is not None else self.kind


class DoorChoice(Config, frozen=True, kw_only=True):
    """Where boards ask to be let in, in a federation of members.

    Parameters
    ----------
    enabled
        False: nobody can join, nor renew a certificate that has run out.
    host
        The address to listen on; None: that of the broker, and for one that the hub does not start
        any address of this machine.
    port
        0: any that is free.
    certificate_days
        How long a board's certificate is valid; it is renewed after two thirds of that.
    """

    enabled: bool = True
    host: str | None = None
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = DOOR_PORT
    certificate_days: Annotated[float, msgspec.Meta(gt=0, le=3650)] = LIFE_DAYS


class Versions(Config, frozen=True, kw_only=True):
    """When a version closes, and when there are enough of them.

    Parameters
    ----------
    count
        The last version; 0 goes on for ever.
    buffer
        A version closes when this many updates have arrived.
    min_updates
        It closes at the deadline only with at least this many; else it stays open.
    deadline_s
        Seconds from the moment the first agent is there.
    grace_s
        How long an agent that vanished is still waited for.
    max_staleness
        An update may be made from so many versions before the one that is open; what comes while
        the next is being made counts for that. 0, with a `buffer` of all agents, is synchronous.
    select
        How many agents are asked to train from a version, in turn; 0: all.
    exit_when_done
        End the process after the last version has been fetched by all that are there.
    """

    count: Count = 0
    buffer: Positive = 4
    min_updates: Positive = 1
    deadline_s: Seconds = 600.0
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=_YEAR_S)] = 10.0
    max_staleness: Annotated[int, msgspec.Meta(ge=0, lt=KEPT)] = 0
    select: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    exit_when_done: bool = False

    def __post_init__(self) -> None:
        """Refuse what can never fill the buffer."""
        if 0 < self.select < self.buffer:
            raise ValueError("select: fewer agents than the buffer wants updates")


class Network(Config, frozen=True, kw_only=True):
    """What the lines of hub and broker carry.

    Parameters
    ----------
    send_kbit_s
        Rate at which a new version goes out, all agents together, 1000 bit/s: they are asked to
        spread their downloads over as long as that takes.
    in_flight_mb
        What agents may have under way to the hub at once, MB; others wait their turn. The broker
        must hold that for the hub, and the hub get through it in 10 seconds.
    """

    send_kbit_s: Positive = 100_000
    in_flight_mb: Positive = 8

    def spread_s(self, size: int, agents: int) -> float:
        """Give how long all take to fetch `size` bytes each, in seconds; 0 where that is short."""
        seconds = 8 * size * agents / (1000 * self.send_kbit_s)
        return round(min(seconds, _DAY_S), 1) if seconds > _MOMENT_S else 0.0


class Public(Config, frozen=True, kw_only=True):
    """The hub's own data: what it may train on, and what it judges versions by.

    Parameters
    ----------
    train
        A labelled text file, or a folder of such files, which is watched: a new or changed one is
        taken in as it comes.
    evaluation
        A labelled text file. The labels of both, together, are the task's; where `train` is a
        folder, whose files come and go, those of `evaluation` alone.
    text, label
        Columns of all; guessed if not named.
    policy
        How much public data has to say (`hub.switching.policy`): ``adaptive``, ``never``,
        ``always``, ``warmup-then-federated`` or ``fixed:r``.
    steps
        Optimizer steps on each of two halves of `train`, per version; None: as many as a device.
    warmup_steps
        At most so many before the first update, until the loss no longer falls; 0: none.
    replay
        Share of older examples in the steps that take a new file in.
    """

    train: str
    evaluation: str
    text: str | None = None
    label: str | None = None
    policy: str = "adaptive"
    steps: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    warmup_steps: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 100
    replay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5


OptimizerName = Literal["fedavg", "nesterov", "fedadam", "fedyogi"]
_RATES: Mapping[OptimizerName, float] = {
    "fedavg": 1.0,
    "nesterov": 1.0,
    "fedadam": 0.01,
    "fedyogi": 0.01,
}


class Server(Config, frozen=True, kw_only=True):
    """What the hub makes of the mean of the updates (`hub.aggregation.server_optimizer.step`).

    Parameters
    ----------
    optimizer
        ``nesterov``: outer momentum; ``fedadam``, ``fedyogi``: adaptive steps; ``fedavg``: the mean
        itself is the next version.
    learning_rate
        None is the optimizer's own: 1, for FedAdam and FedYogi 0.01. FedAvg has none.
    momentum
        Of Nesterov's. More gets ahead in the first versions and oscillates in later ones.
    beta_1, beta_2, tau
        Of FedAdam and FedYogi: how long moments last, and what keeps a step from being too large.
    """

    optimizer: OptimizerName = "nesterov"
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.3
    beta_1: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.99
    tau: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-3

    @property
    def rate(self) -> float:
        """The learning rate, or the optimizer's own."""
        return self.learning_rate or _RATES[self.optimizer]


class Gate(Config, frozen=True, kw_only=True):
    """When a version is taken back (`hub.gate.judges`).

    Parameters
    ----------
    enabled
        False lets every version pass.
    tolerance
        Share of the loss that one version may cost, whatever else is usual.
    """

    enabled: bool = True
    tolerance: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.05


Trust = Literal["enrolled", "open"]


class HubConfig(Config, frozen=True, kw_only=True):
    """One federation. Paths are relative to the file's own folder.

    Parameters
    ----------
    trust
        ``enrolled``: members only, every message signed, every update sealed; ``open``: whatever
        the broker delivers is believed. Not given, it is open where only this machine reaches the
        broker, and enrolled elsewhere.
    base
        Folder made by ``ffm model prepare``.
    task
        ``classification`` of labelled text; of plain text ``causal-lm``, the next token, or
        ``masked-lm``, hidden tokens (encoders); ``image-classification`` of pictures (ViT).
    codec_up
        How updates are encoded. One unbiased bit is enough where four or more devices take part;
        with fewer take eden2 to eden4; with six or more, eden0.5 halves the bytes once more.
    codec_keyframe, codec_delta, keyframe_every
        How versions are encoded: one in so many whole, the others as what changed.
    profile
        What the hub's own worker may use of this machine.
    """

    federation: Name
    base: str
    public: Public
    trust: Trust | None = None
    task: TaskKind = "classification"
    folder: str = "state"
    profile: str = "gateway"
    broker: BrokerChoice = BrokerChoice()
    door: DoorChoice = DoorChoice()
    adapter: Adapter = Adapter()
    training: Training = Training()
    versions: Versions = Versions()
    network: Network = Network()
    server: Server = Server()
    defence: Defence = Defence()
    gate: Gate = Gate()
    codec_up: str = "eden1"
    codec_keyframe: str = KEYFRAME
    codec_delta: str = DELTA
    keyframe_every: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHAIN)] = KEYFRAME_EVERY
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """A hub's configuration with its paths made absolute."""

    config: HubConfig
    base: Path
    folder: Path
    train: Path
    evaluation: Path
    broker: Address = Address()

    @property
    def trust(self) -> Trust:
        """What `trust` says, or what it is if it says nothing."""
        return self.config.trust or ("open" if self.broker.loopback else "enrolled")


def load(path: Path) -> Located:
    """Read hub.toml; ConfigError leaves name the file and key at fault."""
    found = config.load(path, HubConfig)
    for key in ("codec_up", "codec_keyframe", "codec_delta"):
        try:
            codec.by_name(getattr(found, key))
        except UpdateInvalid as error:
            raise ConfigInvalid(f"{path}: {key}: {error.message}") from error
    try:
        policy_of(found.public.policy)
    except ConfigInvalid as error:
        raise ConfigInvalid(f"{path}: public.policy: {error.message}") from error
    if found.broker.url is not None and found.broker.kind not in {"auto", "external"}:
        raise ConfigInvalid(f"{path}: broker.url: is for a broker that the hub does not start")
    home = path.resolve().parent
    located = Located(
        config=found,
        base=home / found.base,
        folder=home / found.folder,
        train=home / found.public.train,
        evaluation=home / found.public.evaluation,
        broker=locate(found.broker, path),
    )
    own_for_members = located.trust == "enrolled" and found.broker.choice != "external"
    if found.broker.port is None and own_for_members:
        address = msgspec.structs.replace(located.broker, port=TLS_PORT)
        located = msgspec.structs.replace(located, broker=address)
    return located
