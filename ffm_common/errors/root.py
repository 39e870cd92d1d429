"""The root of every error that is raised on purpose."""

from __future__ import annotations

from typing import ClassVar


class FfmError(Exception):
    """Root of every error this project raises on purpose.

    Parameters
    ----------
    message
        What happened, with the name of the file, key, topic or value concerned.
    remedy
        Replaces the class's own sentence where the place knows better.
    quotes
        What there is to say of somebody's data itself: a label, the name of a column, which may be
        no name but the first of the texts. It is for who sits before the machine, and so in
        `line`; an agent never writes or sends it.
    """

    code: ClassVar[str] = "internal"
    remedy: ClassVar[str] = "run again with --debug and report the traceback"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str | None = None, quotes: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.quotes = quotes
        self.how_to_resolve = remedy or type(self).remedy

    def line(self) -> str:
        """Give the one readable line that a person sees."""
        # Libraries whose words are quoted in a message may have written several lines.
        return " ".join(f"error [{self.code}]: {self.told} -- {self.how_to_resolve}".split())

    @property
    def told(self) -> str:
        """The message with what it quotes."""
        return f"{self.message}; {self.quotes}" if self.quotes else self.message
