"""What `ffm bench train` found, as a table that may be posted."""

from __future__ import annotations

import platform
from importlib import metadata

import msgspec

from profiles.detect import detect
from profiles.sensors import Root

_PACKAGES = (
    "ffm-edge",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "onnxruntime-training",
    "onnxruntime",
    "numpy",
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way of training.

    Parameters
    ----------
    way
        Engine, weights and settings.
    step_seconds
        Median, on the clock.
    tokens_per_s
        None of them is padding.
    peak_mb, anonymous_mb
        Highest resident memory, and how much of that no file stands behind.
    of_peak
        Operations that the step cannot do without, over what this machine's matrix products reach
        in its time, in the format that this way multiplies in.
    failure
        Why there are no figures.
    """

    way: str
    step_seconds: float = 0.0
    tokens_per_s: float = 0.0
    peak_mb: float = 0.0
    anonymous_mb: float = 0.0
    of_peak: float = 0.0
    failure: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found, and on what.

    Parameters
    ----------
    gflops
        Highest rate of matrix products by format, GFLOP/s.
    """

    board: str
    system: str
    profile: str
    memory_mb: int
    threads: int
    allocator: str
    versions: dict[str, str]
    model: str
    batch: int
    length: int
    steps: int
    gflops: dict[str, float]
    rows: tuple[Row, ...]

    def lines(self) -> str:
        """Give the table, in Markdown."""
        peaks = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in self.gflops.items())
        found = [
            f"board: {self.board}",
            f"system: {self.system}; {self.allocator}",
            f"profile: {self.profile}, {self.memory_mb} MB, threads {self.threads}",
            f"matrix products: {peaks or 'not measured'}",
            f"versions: {', '.join(f'{name} {one}' for name, one in self.versions.items())}",
            f"training: {self.model}; {self.batch} x {self.length} tokens, median of {self.steps}",
            "",
            "| way | tokens/s | s/step | peak MB | anonymous MB | of matrix-product peak |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            figures = (
                f"{row.tokens_per_s:.0f} | {row.step_seconds:.3g} | {row.peak_mb:.0f} | "
                f"{row.anonymous_mb:.0f} | {row.of_peak:.0%}"
            )
            found.append(f"| {row.way} | {row.failure + ' | | | |' if row.failure else figures} |")
        return "\n".join(found) + "\n"


def board() -> str:
    """Name this machine as it names itself, with its cores and memory."""
    facts = detect(Root()).facts
    memory = f", {facts.board_memory_mb / 1024:.1f} GB" if facts.board_memory_mb else ""
    return f"{facts.model or platform.machine()}, {facts.cores} x {facts.cpu}{memory}"


def system() -> str:
    """Name the kernel and the Python."""
    return f"{platform.system()} {platform.release()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Give the versions of what takes part, as far as it is installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
