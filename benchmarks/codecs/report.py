"""What the codec benchmark found, for people: tables and plots."""

from __future__ import annotations

import statistics

from benchmarks.codecs.rates import bound
from benchmarks.codecs.reckoning import (
    AVERAGED,
    FP32,
    Findings,
    arms,
    final,
    gap,
    goal,
    mean_curve,
    protocol,
    tasks,
    thrift,
)
from benchmarks.result import DOCS

_BEGIN, _END = "<!-- tables -->", "<!-- end of tables -->"


def tables(found: Findings) -> str:
    """Give everything as Markdown."""
    lines = ["| codec | parameters | bytes | bits | error | above bound | encode | decode |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| `{row.codec}` | {row.parameters:,} | {row.bytes:,} | {row.bits:.3f} | {row.error:.4g} "
        f"| {'' if row.gap is None else f'{row.gap:.3f}'} | {row.encode_ms:.1f} ms, "
        f"{row.encode_mb_s:.0f} MB/s | {row.decode_ms:.1f} ms, {row.decode_mb_s:.0f} MB/s |"
        for row in found.rates
    ]
    for agents, participation in dict.fromkeys(
        (d.cell.federation.agents, d.cell.federation.participation) for d in found.done
    ):
        lines += ["", f"{agents} agents, {participation:.0%} in each version:", ""]
        lines += _ladder(found, agents, participation)
    if found.socket:
        lines += ["", "| system | version | accuracy | MB up | MB down | seconds |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| {row.system} | {row.version} | {row.accuracy:.3f} | {row.up_bytes / 1e6:.2f} "
            f"| {row.down_bytes / 1e6:.2f} | {row.seconds:.0f} |"
            for row in found.socket
        ]
    if (share := protocol(found)) is not None:
        lines += [
            "",
            f"Flower sends {share.flower:.2f} bytes for each byte of float32.",
            f"Our protocol adds {share.ours:.0f} bytes per agent and version.",
        ]
    return "\n".join(lines)


def write_tables(found: Findings) -> None:
    """Put the tables into their place in docs/updates.md."""
    path = DOCS / "updates.md"
    before, rest = path.read_text().split(_BEGIN)
    after = rest.split(_END)[1]
    path.write_text(f"{before}{_BEGIN}\n\n{tables(found)}\n\n{_END}{after}")


def _ladder(found: Findings, agents: int, participation: float) -> list[str]:
    names = tasks(found)
    head = " | ".join(f"{name}: accuracy | points below fp32 | kB an agent" for name in names)
    extra = (agents, participation) == (6, 1.0)
    ratio = "".join(f" | {name}: Flower's bytes / ours" for name in names) if extra else ""
    columns = 1 + (4 if extra else 3) * len(names)
    lines = [f"| up + down | {head}{ratio} |", "|---" * columns + "|"]
    for arm in arms(found):
        cells = []
        for task in names:
            runs = [
                done.versions
                for done in found.done
                if done.cell.arm == arm
                and done.cell.federation.task == task
                and done.cell.federation.agents == agents
                and done.cell.federation.participation == participation
            ]
            if not runs:
                break
            lost = gap(found, arm, task, setting=(agents, participation))
            sent = statistics.fmean(run[-1].up_bytes + run[-1].down_bytes for run in runs)
            noise = f" ± {lost.noise:.2f}" if lost.runs > 1 else ""
            cells += [
                f"{statistics.fmean(map(final, runs)):.4f}",
                f"{lost.points:+.2f}{noise} ({lost.runs})",
                f"{sent / agents / 1e3:,.0f}",
            ]
        else:
            if extra:
                cells += [_times(thrift(found, arm, task)) for task in names]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}" if ratio else "not reached"


def plots(found: Findings) -> None:
    """Draw accuracy against bytes, and rate against distortion."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = tasks(found)
    figure, axes = plt.subplots(
        1, len(names), figsize=(6 * len(names), 4.8), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[0], names, strict=True):
        for arm in arms(found):
            curve = [point for point in mean_curve(found, arm, task) if point[0] > 0]
            label = "Flower" if arm == AVERAGED else arm
            style = "--" if arm in {FP32, AVERAGED} else "-"
            axis.plot(
                [sent / 1e6 for sent, _ in curve],
                [accuracy for _, accuracy in curve],
                style,
                label=label,
                linewidth=1.2,
            )
        if mean_curve(found, FP32, task):
            axis.axhline(goal(found, task), color="#888888", linewidth=0.7)
        axis.set(xscale="log", xlabel="MB per agent, up and down", ylabel="accuracy", title=task)
    axes[0][0].legend(fontsize=7)
    figure.savefig(DOCS / "updates-accuracy.png", dpi=130)
    plt.close(figure)

    figure, axis = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    errors = [0.95 * 0.94**step for step in range(120)]
    axis.plot([bound(error) for error in errors], errors, color="#444444", label="Shannon")
    axis.plot(
        [bound(error, unbiased=True) for error in errors],
        errors,
        color="#444444",
        linestyle=":",
        label="Shannon, unbiased",
    )
    for family, colour in (("ecsq", "#c06014"), ("eden", "#1f6f8b"), ("int8", "#7a4988")):
        rows = [
            row for row in found.rates if row.codec.startswith(family) and row.parameters < 500_000
        ]
        axis.plot(
            [row.bits for row in rows], [row.error for row in rows], "o", color=colour, label=family
        )
    axis.set(xscale="log", yscale="log", ylabel="squared error / energy")
    axis.set(xlabel="bits per parameter, whole container", xlim=(0.08, 10), ylim=(2e-5, 1.1))
    axis.legend(fontsize=8)
    figure.savefig(DOCS / "updates-rate-distortion.png", dpi=130)
    plt.close(figure)
