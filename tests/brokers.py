"""Brokers as others run them, and certificates for them, for tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from federation.connection.session import Event, Session
from ffm_common.tied import tied
from hub.broker import find_mosquitto

HOST = "127.0.0.1"
OPEN = "allow_anonymous true\n"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Mosquitto:
    """A mosquitto with settings of a test's own; `options` follow the listener's line."""

    def __init__(self, folder: Path, options: str = "", *, port: int = 0) -> None:
        program = find_mosquitto()
        if program is None:
            pytest.skip("mosquitto is not installed")
        folder.mkdir(exist_ok=True)
        self.port = port or free_port()
        self.log = folder / "mosquitto.log"
        config = folder / "mosquitto.conf"
        user = "user root\n" if os.geteuid() == 0 else ""
        # mosquitto 2.0 ends at once when all it has is a WebSocket.
        other = f"listener {free_port()} {HOST}\n" if "websockets" in options else ""
        config.write_text(f"{user}sys_interval 0\n{other}listener {self.port} {HOST}\n{options}\n")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                tied([program, "-c", str(config)]), stdout=log, stderr=log
            )
        until = time.monotonic() + 10
        # Asking at its port would not do: a connection without a word spoils its count of them.
        while " running" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Authority:
    """A small CA in a folder, made with the openssl of this machine."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._name = name
        self.certificate = folder / f"{name}.pem"
        self._openssl(
            f"req -x509 {_KEY} -keyout {name}.key -out {name}.pem -days 3650 -subj /CN={name}"
        )
        (folder / f"{name}.index").touch()
        (folder / f"{name}.cnf").write_text(
            f"[ca]\ndefault_ca = c\n[c]\ndatabase = {name}.index\nrand_serial = yes\n"
            f"default_md = sha256\nnew_certs_dir = .\ncertificate = {name}.pem\n"
            f"private_key = {name}.key\npolicy = p\nunique_subject = no\n[p]\n"
            "commonName = supplied\n"
        )

    def issue(
        self,
        name: str,
        hosts: str = "",
        start: str = "20200101000000Z",
        end: str = "20991231000000Z",
    ) -> tuple[Path, Path]:
        """Give the files of a certificate, for `hosts` as openssl writes them, and of its key."""
        self._openssl(f"req {_KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}")
        (self._folder / "names").write_text(f"subjectAltName = {hosts or 'DNS:' + name}\n")
        self._openssl(
            f"ca -batch -notext -config {self._name}.cnf -in {name}.csr -out {name}.pem "
            f"-startdate {start} -enddate {end} -extfile names"
        )
        return self._folder / f"{name}.pem", self._folder / f"{name}.key"

    def _openssl(self, arguments: str) -> None:
        done = subprocess.run(
            ["openssl", *arguments.split()],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


class Amqtt:
    """An amqtt whose listener is given as Python's text of a dictionary."""

    def __init__(self, listener: str) -> None:
        if importlib.util.find_spec("amqtt") is None:
            pytest.skip("amqtt is not installed")
        self.port = free_port()
        script = f"""
import asyncio
from amqtt.broker import Broker
async def serve():
    listener = {{**{listener}, "bind": "{HOST}:{self.port}"}}
    anonymous = {{"amqtt.plugins.authentication.AnonymousAuthPlugin": {{"allow_anonymous": True}}}}
    await Broker({{"listeners": {{"default": listener}}, "plugins": anonymous}}).start()
    print("running", flush=True)
    await asyncio.Event().wait()
asyncio.run(serve())
"""
        self.process = subprocess.Popen(
            tied([sys.executable, "-c", script]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"running\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()


def wait_for(session: Session, wanted: Callable[[Event], bool], seconds: float = 15.0) -> Event:
    """Give the first event of that kind; the test fails if none comes in time."""
    until = time.monotonic() + seconds
    heard: list[Event] = []
    while time.monotonic() < until:
        event = session.next(0.1)
        if event is not None:
            heard.append(event)
            if wanted(event):
                return event
    pytest.fail(f"not within {seconds} s; heard {heard!r:.500}")
