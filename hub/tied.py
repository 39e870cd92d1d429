"""Run a command that dies with its parent: ``python tied.py <parent's pid> <command> ...``.

The kernel is asked (PR_SET_PDEATHSIG) in the child itself and not between fork and exec, where
Python code may deadlock in a parent that has threads. The request survives exec; it is bound to
the parent *thread* that started the child. Linux only: elsewhere the command just runs.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == int(sys.argv[1]):  # else the parent died before it could be asked for
        os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606
