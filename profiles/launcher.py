"""The first moments of a worker: die with the parent, wait until the limits stand, become it.

Run by path (``python -I -S launcher.py READY PARENT PROGRAM ARGUMENT...``), so only the standard
library is here. The parent limits this process from outside while it waits, reads the limits back,
and then sends one byte on standard input; no line of the worker ever runs without its limits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
GO = b"g"


def main(arguments: list[str]) -> int:
    """Wait at the gate, then replace this process by the program; returns only on failure."""
    ready, parent, program = int(arguments[0]), int(arguments[1]), arguments[2:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1  # the parent was gone before the signal was asked for
    # Closed by a successful exec, which the parent sees as the end of the pipe.
    os.set_inheritable(ready, False)
    os.write(ready, b"r")
    if os.read(0, 1) != GO:
        return 1
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)  # noqa: S606
    except OSError as error:
        os.write(ready, f"{program[0]}: {error.strerror}".encode())
    return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
