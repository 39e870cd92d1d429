"""Going back: a real ledger, a real registry, and what a hub makes of a wish."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from federation.messages import Offer, Reject
from ffm_common import tensors as shape
from ffm_common.errors import PathUnwritable, VersionUnknown
from ffm_common.task import Adapter
from ffm_common.tensors import content_digest
from hub.config import Gate, Versions
from hub.intake import Intake
from hub.making.downlink import RESIDUAL, Before
from hub.versions import rollback
from hub.versions.ledger import LeftOut
from hub.versions.lineage import astray, lineage
from hub.versions.registry import KEPT, Registry
from hub.versions.restore import restore
from hub.versions.rollback import Rollbacks
from learning.adapter import WEIGHTS
from quantization.updates.container import shapes_of, unpack
from tests.hub.home import BASE, Home, tensors


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    found = Home(tmp_path)
    yield found
    found.close()


def test_a_wish_from_another_process_is_taken_up_about_the_version_that_is_open(home: Home) -> None:
    for seed in range(3):
        row = home.commit(seed)
    assert home.rollbacks.reason(row, None, now=0.0) is None
    code = "import sys; from pathlib import Path; from hub.versions.rollback import ask; "
    code += "ask(Path(sys.argv[1]), 0, 'it speaks nonsense')"
    subprocess.run([sys.executable, "-c", code, str(home.folder / "ledger.db")], check=True)
    assert home.rollbacks.reason(row, None, now=0.5) is None  # looked just now
    assert home.rollbacks.reason(row, None, now=2.0) == "rollback to 0"
    found = home.rollbacks.of(row)
    assert found is not None
    assert (found.version, found.content) == (0, content_digest(tensors(0)))
    assert found.record.parent == 0
    assert found.record.verdict is not None
    assert "it speaks nonsense" in found.record.verdict.why
    assert found.record.medians == {"others": 0.0}  # as it was then
    assert found.record.reputation["ann"] == 0.8  # nobody is blamed for what a person wants
    home.close()
    again = Home(home.folder)  # a hub that was killed in between comes to the same
    assert again.rollbacks.reason(row, "buffer", now=0.0) == "rollback to 0"
    assert again.rollbacks.of(row) == found
    again.commit(0, parent=0)
    assert again.registry.astray == {1, 2}
    assert again.rollbacks.reason(again.ledger.versions()[-1], None, now=9.0) is None
    again.close()


@pytest.mark.parametrize(
    ("version", "why"), [(9, "no version 9"), (1, "kept no more"), (KEPT + 3, "already")]
)
def test_a_wish_that_cannot_be_granted_is_refused(home: Home, version: int, why: str) -> None:
    for seed in range(KEPT + 5):
        if seed != 9:
            home.commit(seed)
    rows = [row for row in home.ledger.versions() if row.version != 9]
    with pytest.raises(VersionUnknown, match=why):
        rollback.check(rows, version)
    rollback.ask(home.folder / "ledger.db", 900, "")
    row = rows[-1]
    assert home.rollbacks.reason(row, None, now=0.0) is None
    assert "no version 900" in home.rollbacks.trouble
    assert home.rollbacks.wanted(row.version) is None
    with pytest.raises(PathUnwritable):
        rollback.ask(home.folder / "nowhere.db", 1, "")


def test_devices_have_a_version_taken_back_when_it_closes(home: Home) -> None:
    for seed in range(3):
        row = home.commit(seed)
        home.vote(row.version, 0.5)
    assert home.rollbacks.reason(row, "buffer", now=0.0) == "buffer"
    row = home.commit(3)
    home.vote(row.version, 2.5)
    assert home.rollbacks.reason(row, None, now=9.0) is None  # others may still say otherwise
    assert home.rollbacks.reason(row, "buffer", now=9.0) == "rollback to 2"
    found = home.rollbacks.of(row)
    assert found is not None
    assert found.content == content_digest(tensors(2))
    # Which of them it was is not known.
    assert found.record.reputation == {"ann": 0.8, "bob": 0.8, "eve": 0.8}
    assert found.record.verdict is not None
    assert found.record.verdict.devices is not None
    assert found.record.verdict.devices.bad
    # What the version has now is what the devices said was good; it is not taken back again.
    row = home.commit(2, parent=2)
    home.vote(row.version, 0.5)
    assert home.rollbacks.reason(row, "deadline", now=9.0) == "deadline"


def test_a_hub_without_a_gate_asks_no_device(home: Home) -> None:
    for loss in (0.5, 9.0):
        home.vote(home.commit(int(loss)).version, loss)
    row = home.ledger.versions()[-1]
    silent = Rollbacks(home.ledger, home.registry, Gate(enabled=False))
    assert silent.reason(row, "buffer", now=0.0) == "buffer"


def test_where_the_disk_has_spoiled_the_version_it_is_the_one_before_that(home: Home) -> None:
    for seed in range(4):
        row = home.commit(seed)
    rollback.ask(home.folder / "ledger.db", 2, "")
    assert home.rollbacks.reason(row, None, now=0.0) == "rollback to 2"
    weights = home.folder / "versions" / "2" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    found = home.rollbacks.of(row)
    assert found is not None
    assert found.version == 1
    for version in (0, 1):
        (home.folder / "versions" / str(version) / WEIGHTS).unlink()
    assert home.rollbacks.of(row) is None
    assert "nothing older" in home.rollbacks.trouble


def test_what_was_made_from_a_version_that_was_taken_back_counts_for_nothing(home: Home) -> None:
    home.commit(0)
    home.commit(1)
    home.update("ann", 1, counted_for=1)
    home.update("bob", 0, counted_for=1)
    home.update("eve", 1, counted_for=2)  # late, where some staleness is allowed
    home.update("joe", 0, counted_for=2)  # late, too, but from a version that was good
    left_out = tuple(LeftOut(agent, "version 1 was taken back") for agent in ("ann", "bob"))
    home.commit(0, parent=0, left_out=left_out)
    faults = {
        (row.agent, row.version): row.fault
        for version in (1, 2)
        for row in home.ledger.updates(version)
    }
    assert faults["ann", 1] == faults["bob", 0] == "version 1 was taken back"
    assert faults["eve", 1] == "made from version 1, taken back"
    assert faults["joe", 0] is None
    rules = Versions(max_staleness=3)
    intake = Intake(
        home.registry, home.ledger, home.store, Adapter(rank=4, alpha=4), BASE, rules=rules
    )
    intake.open = True
    assert [one.agent for one in intake.counted(2)] == ["joe"]
    offer = Offer(digest="cd" * 32, size=100, version=1, examples=10)
    answer = intake.admit("zoe", offer)
    assert isinstance(answer, Reject)
    assert answer.code == "version-closed"
    assert intake.admit("zoe", msgspec.structs.replace(offer, version=0)) is None
    assert intake.admit("eve", msgspec.structs.replace(offer, version=2)) is None


def test_lineage_goes_back_over_versions_that_were_taken_back(home: Home) -> None:
    rows = [home.commit(seed) for seed in range(3)]
    rows.append(home.commit(1, parent=1))
    rows.append(home.commit(4))
    rows.append(home.commit(0, parent=0))
    rows.append(home.commit(6))
    assert lineage(rows[:5]) == [4, 3, 1, 0]
    assert astray(rows[:5]) == {2}
    assert lineage(rows) == [6, 5, 0]
    assert astray(rows) == {1, 2, 3, 4}
    assert lineage([]) == []
    reopened = Registry(
        home.folder / "versions", home.folder / "carried", home.ledger, home.store, BASE
    )
    assert reopened.astray == {1, 2, 3, 4}


@pytest.mark.parametrize("codec", ["ecsq2", "eden1", "int8", "fp32"])
@pytest.mark.parametrize(("older", "keyframe"), [(5, False), (5, True), (3, False)])
def test_a_version_that_has_anothers_content_has_it_to_the_bit(
    tmp_path: Path, codec: str, older: int, keyframe: bool
) -> None:
    truth, wanted = tensors(5), tensors(older)
    shape.save(tmp_path / RESIDUAL, {name: 0 * array + 1 for name, array in truth.items()})
    before = Before(8, truth, tmp_path)
    sent = restore(wanted, before, version=9, base=BASE, codec=codec, keyframe=keyframe, seed=4)
    header, decoded = unpack(sent.blob, shapes_of(truth), base=BASE)
    found = decoded if sent.kind == "version" else shape.add(truth, decoded)
    assert header.version == 9
    assert content_digest(found) == content_digest(sent.truth) == content_digest(wanted)
    small = older == 5 and not keyframe
    assert sent.kind == ("delta" if small else "version")
    if codec == "ecsq2" and small:
        assert len(sent.blob) < 300
    assert all((array == (older == 5)).all() for array in sent.residual.values())


def test_what_cannot_be_read_is_no_wish(home: Home) -> None:
    row = home.commit(0)
    home.ledger.put("rollback", "nonsense")
    assert home.rollbacks.reason(row, None, now=0.0) is None
    assert home.ledger.pinned("rollback") is None
    home.ledger.put(f"rollback/{row.version}", "nonsense")
    assert home.rollbacks.wanted(row.version) is None


def goes_back(home: Home) -> None:
    """Do what the hub does with a wish, from wherever it has been killed."""
    row = home.registry.current
    assert row is not None
    if row.version == 2 and (reason := home.rollbacks.reason(row, None, now=0.0)):
        home.ledger.pin("closed/2", reason)
        found = home.rollbacks.of(row)
        assert found is not None
        left_out = tuple(LeftOut(one.agent, "taken back") for one in home.ledger.updates(2))
        home.commit(found.version, parent=found.version, left_out=left_out)


def end_of(home: Home) -> tuple[object, ...]:
    """Name all that is in the ledger in the end."""
    rows = [(row.version, row.content, row.record) for row in home.ledger.versions()]
    faults = [(one.agent, one.fault) for one in home.ledger.updates(2)]
    notes = [
        home.ledger.pinned(key) for key in ("rollback", "rollback/2", "rollback/3", "closed/2")
    ]
    return rows, faults, notes, home.registry.astray


def test_a_hub_killed_at_any_statement_goes_back_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    start = Home(tmp_path / "start")
    for seed in range(3):
        start.commit(seed)
    start.update("ann", 2, counted_for=2)
    rollback.ask(tmp_path / "start" / "ledger.db", 0, "it was better")
    start.close()
    ends, number, died = [], 0, True
    while died:
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "start", folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which it has not
            child = os.fork()
        if child == 0:
            _goes_back_and_dies(folder, number)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        home = Home(folder)
        goes_back(home)
        ends.append(end_of(home))
        home.close()
        shutil.rmtree(folder)
        number += 1
    assert number > 10
    assert all(end == ends[-1] for end in ends)
    assert ends[-1][3] == {1, 2}


def _goes_back_and_dies(folder: Path, number: int) -> None:
    """Be the child; never returns."""
    left = number

    def count(_: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(42)

    try:
        home = Home(folder)
        home.ledger._db._sql.set_trace_callback(count)
        goes_back(home)
        os._exit(0)
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
        os._exit(1)
