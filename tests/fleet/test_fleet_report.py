from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec

from fleet import report
from fleet.report import Baselines, Report, VersionReport


def example(*, baselines: Baselines | None = None) -> Report:
    versions = [
        VersionReport(
            version=number,
            accuracy=0.5 + number / 10,
            loss=1.0 / number,
            updates=4,
            closed_because="buffer",
            uplink_bytes=1_000_000,
            downlink_bytes=500_000,
            seconds=20.0,
        )
        for number in (1, 2)
    ]
    return Report(
        versions=versions,
        initial_accuracy=0.25,
        final_accuracy=0.7,
        fp32_update_bytes=1_364_000,
        adapter_path="runs/demo/adapter",
        base_path="runs/demo/base",
        evaluation_path="runs/demo/hub/test.jsonl",
        broker="mosquitto",
        seconds=61.4,
        seed=0,
        baselines=baselines,
        events=["agent rpi4-1 was lost in version 1"],
        config={"agents": 4},
    )


def test_the_report_is_json_that_reads_back_the_same(tmp_path: Path) -> None:
    report.write(tmp_path / "report.json", example())
    raw = (tmp_path / "report.json").read_bytes()
    assert json.loads(raw)["versions"][1]["uplink_bytes"] == 1_000_000
    assert msgspec.json.decode(raw, type=Report) == example()


def test_the_summary_says_what_came_out_and_what_it_cost() -> None:
    lines = report.summary(example()).splitlines()
    assert lines[0] == "accuracy 25.0% at first -> 70.0% after 2 versions, 8 updates, 61 s"
    assert "2.00 MB up, 1.00 MB down; one fp32 update would be 1.36 MB" in lines[1]
    assert "agent rpi4-1 was lost in version 1" in lines
    assert any("ffm infer --adapter runs/demo/adapter" in line for line in lines)


def test_the_summary_names_the_best_lone_device() -> None:
    alone = Baselines(alone={"a": 0.4, "b": 0.6, "c": 0.5}, hub_alone=0.55)
    text = report.summary(example(baselines=alone))
    assert "same steps alone: best device b 60.0%, hub on public data 55.0%" in text


def test_the_plot_is_drawn_without_a_screen(tmp_path: Path) -> None:
    # In a process of its own: matplotlib's import is slow, and changes warnings for all.
    path = tmp_path / "accuracy.png"
    (tmp_path / "report.json").write_bytes(
        msgspec.json.encode(example(baselines=Baselines(alone={"a": 0.4}, hub_alone=0.5)))
    )
    code = (
        "import sys, msgspec; from pathlib import Path; from fleet import report\n"
        "found = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=report.Report)\n"
        "report.plot(Path(sys.argv[2]), found)\n"
    )
    arguments = [str(tmp_path / "report.json"), str(path)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)
    assert path.read_bytes().startswith(b"\x89PNG")
