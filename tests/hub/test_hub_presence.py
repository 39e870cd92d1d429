from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from federation.messages import AgentState
from ffm_common.errors import MessageStale
from hub.presence import Presence
from hub.versions.ledger import Ledger


def test_who_has_the_name_of_a_forgotten_agent_next_begins_anew(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        presence = Presence(ledger, signed=True)
        assert presence.hear("kitchen", AgentState(status="idle", boot=7))
        with pytest.raises(MessageStale):
            presence.hear("kitchen", AgentState(status="idle", boot=1))
        presence.forget("kitchen")
        assert not presence.here
        assert presence.hear("kitchen", AgentState(status="idle", boot=1))
        presence.forget("nobody")
