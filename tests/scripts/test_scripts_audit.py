"""An audit that could not ask never looks like one that has found nothing."""

from __future__ import annotations

from typing import Any

from scripts.audit import FOUND, NOT_DONE, verdict

# As pip-audit 2.10 prints them.
CLEAN: dict[str, Any] = {"name": "idna", "version": "3.20", "vulns": []}
SKIPPED: dict[str, Any] = {"name": "torch", "skip_reason": "Dependency not found on PyPI ..."}
HARMFUL: dict[str, Any] = {
    "name": "requests",
    "version": "2.25.0",
    "vulns": [
        {"id": "PYSEC-2023-74", "fix_versions": ["2.31.0"], "aliases": [], "description": ""}
    ],
}


def test_nothing_known_of_packages_that_were_all_looked_up_is_good() -> None:
    assert verdict([CLEAN, CLEAN]) == (["audit: nothing is known against 1 packages"], 0)


def test_a_known_vulnerability_is_named_once_with_the_version_that_mends_it() -> None:
    lines, status = verdict([HARMFUL, CLEAN, HARMFUL])
    assert (lines, status) == (["requests 2.25.0: PYSEC-2023-74, mended in 2.31.0"], FOUND)


def test_a_registry_that_knows_nothing_is_no_audit() -> None:
    for packages in ([], [SKIPPED]):
        lines, status = verdict(packages)
        assert lines[0].startswith("AUDIT NOT DONE: 0 packages looked up")
        assert status == NOT_DONE


def test_a_package_that_could_not_be_looked_up_is_not_passed_over() -> None:
    lines, status = verdict([CLEAN, SKIPPED])
    assert lines == ["AUDIT NOT DONE: 1 packages looked up, 1 unknown there"]
    assert status == NOT_DONE
    lines, status = verdict([HARMFUL, SKIPPED])
    assert len(lines) == 2
    assert status == FOUND
