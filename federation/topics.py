"""Where each message goes: one subtree per agent, so that one access rule per agent suffices.

::

    ffm/v1/<federation>/hub/state                         retained, last will of the hub
    ffm/v1/<federation>/hub/manifest                      retained
    ffm/v1/<federation>/hub/release                       retained, in a federation of members
    ffm/v1/<federation>/agent/<id>/state                  retained, last will of the agent
    ffm/v1/<federation>/agent/<id>/claim                  retained, for who else has that id
    ffm/v1/<federation>/agent/<id>/up/<kind>              agent -> hub: offer, get, vote, renew
    ffm/v1/<federation>/agent/<id>/up/<digest>/<index>    agent -> hub: one chunk
    ffm/v1/<federation>/agent/<id>/down/<kind>            hub -> agent: need, done, reject, gone,
                                                          certificate, quarantine
    ffm/v1/<federation>/agent/<id>/down/<digest>/<index>  hub -> agent: one chunk

At most 7 slashes and 256 bytes, which the tightest hosted broker (AWS IoT Core) still takes.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias, cast

import msgspec

from ffm_common.errors import MessageInvalid, NameInvalid

HubKind: TypeAlias = Literal["state", "manifest", "release"]
UpKind: TypeAlias = Literal["offer", "get", "vote", "renew"]
DownKind: TypeAlias = Literal["need", "done", "reject", "gone", "certificate", "quarantine"]

_NAME = re.compile(r"[a-z0-9-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_INDEX = re.compile(r"0|[1-9][0-9]{0,6}")
_KINDS = {
    "up": ("offer", "get", "vote", "renew"),
    "down": ("need", "done", "reject", "gone", "certificate", "quarantine"),
}
_HUB_KINDS = ("state", "manifest", "release")
_MAX_TOPIC = 256


class HubRoute(msgspec.Struct, frozen=True):
    """A retained topic of the hub."""

    kind: HubKind


class StateRoute(msgspec.Struct, frozen=True):
    """The retained state of one agent."""

    agent: str


class ClaimRoute(msgspec.Struct, frozen=True):
    """Who works under the id of one agent."""

    agent: str


class MessageRoute(msgspec.Struct, frozen=True):
    """A control message to (down) or from (up) one agent."""

    agent: str
    kind: UpKind | DownKind

    @property
    def direction(self) -> Literal["up", "down"]:
        """Who speaks: ``up`` is the agent, ``down`` the hub."""
        return "up" if self.kind in _KINDS["up"] else "down"


class ChunkRoute(msgspec.Struct, frozen=True):
    """Chunk `index` of the blob `digest`, to (down) or from (up) one agent."""

    agent: str
    direction: Literal["up", "down"]
    digest: str
    index: int


Route: TypeAlias = HubRoute | StateRoute | ClaimRoute | MessageRoute | ChunkRoute


def check_name(name: str) -> str:
    """Give `name` back if it may stand in a topic and in a file name.

    Raises
    ------
    NameInvalid
        It is not 1 to 64 characters of a-z, 0-9 and -.
    """
    if not _NAME.fullmatch(name):
        raise NameInvalid(f"{name[:80]!r} is not a name of a federation or an agent")
    return name


def is_digest(text: str) -> bool:
    """Tell whether `text` is a SHA-256 in lower-case hex, and so safe as a file name."""
    return _DIGEST.fullmatch(text) is not None


class Topics:
    """The topics of one federation.

    Parameters
    ----------
    federation
        Its name: 1 to 64 characters of a-z, 0-9 and -.
    """

    def __init__(self, federation: str) -> None:
        self.federation = check_name(federation)
        self.prefix = f"ffm/v1/{federation}/"
        self.hub_state = f"{self.prefix}hub/state"
        self.manifest = f"{self.prefix}hub/manifest"
        self.release = f"{self.prefix}hub/release"

    def agent_state(self, agent: str) -> str:
        """Give the retained state topic of `agent`."""
        return f"{self._agent(agent)}state"

    def claim(self, agent: str) -> str:
        """Give the topic under which `agent` says which process it is."""
        return f"{self._agent(agent)}claim"

    def up(self, agent: str, kind: UpKind) -> str:
        """Give the topic of a control message from `agent`."""
        return f"{self._agent(agent)}up/{kind}"

    def down(self, agent: str, kind: DownKind) -> str:
        """Give the topic of a control message to `agent`."""
        return f"{self._agent(agent)}down/{kind}"

    def chunk_up(self, agent: str, digest: str, index: int) -> str:
        """Give the topic of one chunk from `agent`."""
        return f"{self._agent(agent)}up/{digest}/{index}"

    def chunk_down(self, agent: str, digest: str, index: int) -> str:
        """Give the topic of one chunk to `agent`."""
        return f"{self._agent(agent)}down/{digest}/{index}"

    @property
    def agent_state_of_all(self) -> str:
        """The filter of every agent's state."""
        return f"{self.prefix}agent/+/state"

    def for_hub(self) -> list[str]:
        """Give the hub's subscriptions; no two overlap, or it would get every message twice."""
        agents = f"{self.prefix}agent/+/"
        return [f"{agents}up/#", f"{agents}state", self.hub_state]

    def for_agent(self, agent: str) -> list[str]:
        """Give the subscriptions of `agent`."""
        return [f"{self._agent(agent)}down/#", self.claim(agent), f"{self.prefix}hub/#"]

    def parse(self, topic: str) -> Route:
        """Tell what a topic of this federation carries.

        Raises
        ------
        MessageInvalid
            It is none of the topics above.
        """
        if len(topic) <= _MAX_TOPIC and topic.startswith(self.prefix):
            match topic.removeprefix(self.prefix).split("/"):
                case ["hub", kind] if kind in _HUB_KINDS:
                    return HubRoute(cast("HubKind", kind))
                case ["agent", agent, "state"] if _NAME.fullmatch(agent):
                    return StateRoute(agent)
                case ["agent", agent, "claim"] if _NAME.fullmatch(agent):
                    return ClaimRoute(agent)
                case ["agent", agent, ("up" | "down") as direction, kind] if (
                    _NAME.fullmatch(agent) and kind in _KINDS[direction]
                ):
                    return MessageRoute(agent, cast("UpKind | DownKind", kind))
                case ["agent", agent, ("up" | "down") as direction, digest, index] if (
                    _NAME.fullmatch(agent) and is_digest(digest) and _INDEX.fullmatch(index)
                ):
                    return ChunkRoute(agent, direction, digest, int(index))
        raise MessageInvalid(f"unknown topic {topic[:_MAX_TOPIC]!r}")

    def _agent(self, agent: str) -> str:
        return f"{self.prefix}agent/{check_name(agent)}/"
