"""Keys, certificates and invitations are made when they are needed, and never committed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from federation.trust.invitation import Invitation
from federation.trust.keys import SigningKey
from scripts.lock import ROOT

# With the escaped line breaks of a string in a program, too.
PEM = re.compile(rb"-----BEGIN [A-Z0-9 ]+-----(?:\s|\\[nr])*[A-Za-z0-9+/=]{32}")
TOKEN = re.compile(rb"ffm1-[a-z2-7]{64}", re.IGNORECASE)


def test_nothing_that_opens_a_door_is_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    found = [
        path
        for path in paths
        if path.is_file()
        for text in [path.read_bytes()]
        if PEM.search(text) or TOKEN.search(text)
    ]
    assert not found


def test_this_would_be_seen(tmp_path: Path) -> None:
    SigningKey.generate().save(tmp_path / "key.pem")
    pem = (tmp_path / "key.pem").read_bytes()
    assert PEM.search(pem)
    assert PEM.search(repr(pem).encode())
    assert TOKEN.search(Invitation.draw("gateway.local", 8884, bytes(32)).token().encode())
