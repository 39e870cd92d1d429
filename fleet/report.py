"""What a run leaves for people and programs: report.json, a plot, a summary in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ffm_common.files import write_atomic


class VersionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One version: accuracy and loss on the held-out data, and what making it cost.

    Bytes are MQTT payload that the hub received (uplink) and sent (downlink), counted.
    """

    version: int
    accuracy: float
    loss: float
    updates: int
    closed_because: str
    uplink_bytes: int
    downlink_bytes: int
    seconds: float


class Baselines(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy after the same number of local steps: each device alone, and the hub alone."""

    alone: dict[str, float]
    hub_alone: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole run.

    Parameters
    ----------
    fp32_update_bytes
        What one update would weigh uncompressed.
    adapter_path
        Folder of the final adapter, in PEFT format.
    events
        What went other than planned: agents or hub lost and back.
    """

    versions: list[VersionReport]
    initial_accuracy: float
    final_accuracy: float
    fp32_update_bytes: int
    adapter_path: str
    base_path: str
    evaluation_path: str
    broker: str
    seconds: float
    seed: int
    baselines: Baselines | None
    events: list[str]
    config: dict[str, Any]


def write(path: Path, report: Report) -> None:
    """Write report.json, atomically."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def summary(report: Report) -> str:
    """Say in a few lines what came out."""
    up = sum(version.uplink_bytes for version in report.versions)
    down = sum(version.downlink_bytes for version in report.versions)
    updates = sum(version.updates for version in report.versions)
    lines = [
        (
            f"accuracy {report.initial_accuracy:.1%} at first -> {report.final_accuracy:.1%} "
            f"after {len(report.versions)} versions, {updates} updates, {report.seconds:.0f} s"
        ),
        (
            f"over MQTT ({report.broker}): {up / 1e6:.2f} MB up, {down / 1e6:.2f} MB down; "
            f"one fp32 update would be {report.fp32_update_bytes / 1e6:.2f} MB"
        ),
    ]
    if report.baselines is not None:
        best, accuracy = max(report.baselines.alone.items(), key=lambda item: item[1])
        lines.append(
            f"same steps alone: best device {best} {accuracy:.1%}, "
            f"hub on public data {report.baselines.hub_alone:.1%}"
        )
    lines += report.events
    lines += [
        f'ask it:  ffm infer --adapter {report.adapter_path} "your text"',
        f"check:   ffm evaluate {report.evaluation_path} --adapter {report.adapter_path}",
    ]
    return "\n".join(lines)


def plot(path: Path, report: Report) -> None:
    """Draw accuracy against version and against cumulative bytes, with the baselines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    accuracy = [report.initial_accuracy] + [v.accuracy for v in report.versions]
    numbers = [0] + [v.version for v in report.versions]
    total, megabytes = 0, [0.0]
    for version in report.versions:
        total += version.uplink_bytes + version.downlink_bytes
        megabytes.append(total / 1e6)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, places, label in (
        (axes[0], numbers, "version"),
        (axes[1], megabytes, "MB over MQTT, up and down, cumulative"),
    ):
        axis.plot(places, accuracy, marker="o", color="#1f6f8b", label="federation")
        axis.axhline(report.initial_accuracy, color="#888888", linestyle=":", label="at first")
        if report.baselines is not None:
            for place, value in enumerate(sorted(report.baselines.alone.values())):
                axis.axhline(
                    value,
                    color="#c06014",
                    linewidth=0.9,
                    linestyle="--",
                    label=None if place else "each device alone",
                )
            axis.axhline(
                report.baselines.hub_alone,
                color="#7a4988",
                linestyle="-.",
                label="hub alone (public data)",
            )
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, held-out text")
    axes[0].set_ylim(0, 1)
    axes[0].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
