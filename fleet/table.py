"""The live table of a running fleet; plain lines where the output is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from federation.messages import AgentState, HubState
from hub.versions.ledger import VersionRow

if TYPE_CHECKING:
    from rich.console import Group


class Screen:
    """Shows a fleet while it runs; writes to standard error, so that --json stays clean."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        # No markup: an error's code in brackets is no style, and a stray one would end the run.
        self._console = Console(stderr=True, markup=False, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._terminal = sys.stderr.isatty()
        self._told = 0

    def __enter__(self) -> Self:
        if self._terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Print a line above the table."""
        # No wrapping: a path or a command must be whole to be copied.
        self._console.print(line, soft_wrap=True)

    def show(
        self,
        hub: HubState | None,
        agents: Mapping[str, AgentState],
        versions: Sequence[VersionRow],
    ) -> None:
        """Draw the present state; without a terminal, a line for each new version."""
        if self._terminal:
            self._live.update(_tables(hub, agents, versions), refresh=True)
            return
        for row in versions[self._told :]:
            self.say(
                f"version {row.version}: accuracy {row.accuracy:.3f}, loss {row.loss:.3f}, "
                f"{row.updates} updates, {row.uplink_bytes} bytes up, "
                f"{row.downlink_bytes} down, {row.seconds:.0f} s"
            )
        self._told = len(versions)


def _tables(
    hub: HubState | None, agents: Mapping[str, AgentState], versions: Sequence[VersionRow]
) -> Group:
    from rich.console import Group
    from rich.table import Table

    people = Table(title="agents", title_justify="left")
    for name in ("agent", "profile", "state", "step", "loss"):
        people.add_column(name)
    for name in ("s/step (plan)", "worker MB (plan)", "supervisor MB", "kB up", "kB down"):
        people.add_column(name, justify="right")
    for name, state in sorted(agents.items()):
        people.add_row(
            name,
            state.profile,
            state.status + (f": {state.detail[:40]}" if state.detail else ""),
            f"{state.step}/{state.steps}",
            "" if state.loss is None else f"{state.loss:.3f}",
            f"{state.step_s:.2f} ({state.planned_step_s:.2f})",
            f"{state.worker_memory_mb:.0f} ({state.planned_memory_mb:.0f})",
            f"{state.memory_mb:.0f}",
            f"{state.sent_bytes / 1e3:.0f}",
            f"{state.received_bytes / 1e3:.0f}",
        )
    made = Table(title="versions", title_justify="left")
    for name in ("version", "accuracy", "loss", "updates", "kB up", "kB down", "seconds"):
        made.add_column(name, justify="right")
    for row in versions:
        made.add_row(
            str(row.version),
            f"{row.accuracy:.1%}",
            f"{row.loss:.3f}",
            str(row.updates),
            f"{row.uplink_bytes / 1e3:.0f}",
            f"{row.downlink_bytes / 1e3:.0f}",
            f"{row.seconds:.0f}",
        )
    line = "hub: starting"
    if hub is not None:
        line = f"hub: {hub.status}, version {hub.version}, {hub.updates} of {hub.expected} updates"
        line += f" ({hub.detail})" if hub.detail else ""
    return Group(people, made, line)
