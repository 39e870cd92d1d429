"""A federation's keys, for tests of who may be believed."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from federation.trust.anchor import Anchor
from federation.trust.keys import SealingKey, SigningKey


class Keys(NamedTuple):
    """The hub's keys, an agent's, and what everybody knows."""

    hub: SigningKey
    opens: SealingKey
    agent: SigningKey
    anchor: Anchor


def new_keys(federation: str = "home") -> Keys:
    hub, opens = SigningKey.generate(), SealingKey.generate()
    anchor = Anchor(federation=federation, signs=hub.public.hex(), opens=opens.public.hex())
    return Keys(hub, opens, SigningKey.generate(), anchor)


@pytest.fixture
def keys() -> Keys:
    return new_keys()
