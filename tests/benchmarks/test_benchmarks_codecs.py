"""The codec benchmark's own reckoning: bytes at the socket, and who needs how many."""

from __future__ import annotations

import pytest

from benchmarks.codecs import reckoning
from benchmarks.codecs.cells import Cell, Done, cells
from benchmarks.codecs.rates import adapter, bound
from benchmarks.codecs.socket_rows import SocketRow
from benchmarks.simulation import Federation, VersionRow
from ffm_common.tensors import count

FLOWER, FP32, ONE = "fp32, A and B averaged", "fp32 both ways", "eden1 + ecsq2"


def versions(accuracies: list[float], each: int) -> list[VersionRow]:
    """Give versions whose updates and deltas take `each` bytes a version, over all agents."""
    return [
        VersionRow(
            version=number,
            accuracy=accuracy,
            whole=accuracy if number >= len(accuracies) - 3 else None,
            loss=1.0,
            up_bytes=number * each,
            down_bytes=number * each,
            movement=0.1,
        )
        for number, accuracy in enumerate(accuracies)
    ]


def done(arm: str, accuracies: list[float], each: int, seed: int = 0) -> Done:
    asked = Federation(task="sst2", up="eden1", down="ecsq2", seed=seed)
    cell = Cell(arm=arm, averaged=arm == FLOWER, federation=asked)
    return Done(cell=cell, versions=versions(accuracies, each), seconds=1.0)


def sockets(system: str, each: int, payload: int) -> list[SocketRow]:
    return [
        SocketRow(
            system=system,
            agents=2,
            version=number,
            accuracy=0.5,
            up_bytes=500 + number * each,
            down_bytes=700 + number * each,
            payload_bytes=number * payload,
            seconds=1.0,
        )
        for number in range(4)
    ]


LEARNS = [0.5, 0.6, 0.7, 0.8, 0.8, 0.8]
FOUND = reckoning.Findings(
    [],
    [
        done(FP32, LEARNS, 6_000_000),
        done(FLOWER, LEARNS, 6_000_000),
        done(ONE, [0.5, 0.5, 0.6, 0.7, 0.8, 0.79], 60_000),
        done("never", [0.5] * 6, 60_000),
    ],
    # Flower sends 1.2 bytes for one; ours adds 100 bytes an agent and version.
    [*sockets("flower", 1200, 2000), *sockets("ours", 600, 1000)],
)


def test_what_a_protocol_adds_is_taken_from_versions_after_the_first() -> None:
    share = reckoning.protocol(FOUND)
    assert share is not None
    assert share.flower == pytest.approx(1.2)
    assert share.ours == pytest.approx(100)


def test_without_both_systems_nothing_is_said_of_protocols() -> None:
    assert reckoning.protocol(reckoning.Findings([], FOUND.done, sockets("ours", 1, 1))) is None


def test_bytes_are_those_to_the_first_version_that_is_good_enough() -> None:
    # Flower is there at version 3, ours at version 4.
    theirs, mine = 3 * 2 * 1e6 * 1.2, 4 * (2 * 10_000 + 100)
    assert reckoning.thrift(FOUND, ONE, "sst2") == pytest.approx(theirs / mine)
    assert reckoning.thrift(FOUND, "never", "sst2") == 0


def test_points_lost_are_means_over_the_last_versions_and_over_seeds() -> None:
    lost = reckoning.gap(FOUND, ONE, "sst2", setting=(6, 1.0))
    assert lost.runs == 1
    assert lost.points == pytest.approx(100 * (0.8 - (0.7 + 0.8 + 0.79) / 3))
    both = reckoning.Findings(
        [], [*FOUND.done, done(FP32, LEARNS, 1, seed=1), done(ONE, LEARNS, 1, seed=1)], []
    )
    second = reckoning.gap(both, ONE, "sst2", setting=(6, 1.0))
    assert second.runs == 2
    assert second.points == pytest.approx(lost.points / 2)


def test_every_cell_has_its_own_name_and_fp32_stands_beside_it() -> None:
    for quick in (True, False):
        listed = cells(quick=quick)
        assert len(set(listed)) == len(listed)
        baselines = {
            (c.federation.task, c.federation.agents, c.federation.participation, c.federation.seed)
            for c in listed
            if c.arm == FP32
        }
        for cell in listed:
            asked = cell.federation
            assert (asked.task, asked.agents, asked.participation, asked.seed) in baselines


def test_the_adapters_measured_have_the_parameters_that_are_claimed() -> None:
    assert [count(adapter(layers)) for layers in (15, 30)] == [460_800, 921_600]
    assert bound(0.25) == pytest.approx(1)
    assert bound(1 / 3, unbiased=True) == pytest.approx(1)
