"""An enrolled federation as it runs: real hub, broker and agents, and those who are no members."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from federation.connection.carrier import Carrier, Tls
from federation.connection.session import Connected, Disconnected, Received, Session
from federation.topics import Topics
from federation.trust.membership import Identity, key_for
from hub.broker import find_mosquitto
from hub.trust import authority as authority_module
from hub.trust.authority import Authority
from hub.trust.members import Members
from tests.brokers import wait_for
from tests.guarded import keep, reason, tls_of

if TYPE_CHECKING:
    from tests.e2e.conftest import NewTown, Started, Town
