from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SERVICE = """
import logging, sys, time
from ffm_common.errors import PortBusy
from ffm_common.service import serve

class Sleeper:
    stopping = False
    def run(self):
        logging.getLogger("ffm.test").info("awake")
        while not self.stopping:
            time.sleep(0.01)
        print("clean end", flush=True)
    def stop(self):
        self.stopping = True

sys.exit(serve(Sleeper))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_service_cleanly(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as service:
        assert service.stderr is not None
        line = service.stderr.readline()
        assert "INFO" in line
        assert "ffm.test: awake" in line
        service.send_signal(number)
        out, _ = service.communicate(timeout=20)
        assert out == "clean end\n"
        assert service.returncode == 0


def test_a_service_that_ends_by_itself_ends_well() -> None:
    code = SERVICE.replace("stopping = False", "stopping = True")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout) == (0, "clean end\n")
