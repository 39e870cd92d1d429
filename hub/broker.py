"""The MQTT broker: the one that is given, else a mosquitto as our child, else amqtt as our child.

The protocol never relies on what a broker promises to keep, so a child keeps nothing on disk.
"""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from federation.connection.carrier import PLAIN, Carrier, speaks_tls
from federation.connection.probe import PACKET_BYTES, greet, packet_limit
from ffm_common.errors import (
    BrokerLimit,
    BrokerProtocol,
    BrokerUnavailable,
    FfmError,
    PortBusy,
)
from ffm_common.files import make_folder, write_atomic
from ffm_common.tied import tied
from hub import mosquitto
from hub.trust.access import Access

Kind: TypeAlias = Literal["auto", "mosquitto", "amqtt", "external"]

_LOG = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[1]
_START_S: Final = 15.0
_STOP_S: Final = 3.0
_PATIENCE_S: Final = 30.0
_ASK_S: Final = 2.0
_TRIES: Final = 5
_LOG_BYTES: Final = 4 << 20


class Broker:
    """A broker that answers.

    A child broker is bound to the thread that calls `start`: it is ended when that thread ends,
    however it ends. Call it from the hub's main thread.

    Parameters
    ----------
    folder
        Takes the child's configuration and log.
    kind
        ``external``: use the one at `host` and `port`; ``mosquitto`` or ``amqtt``: start it;
        ``auto``: mosquitto if it is installed, else amqtt with a warning.
    host
        Where an external broker is, or which address a child listens on.
    port
        0 lets a child take a free one.
    carrier
        How an external broker is spoken to.
    access
        Who may connect to a child, over TLS only, and do what there; None: anybody, anything. Its
        files must have been written. An external one is shown the certificate of the hub in it,
        where `carrier` names none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kind: Kind = "auto",
        host: str = "127.0.0.1",
        port: int = 0,
        carrier: Carrier = PLAIN,
        access: Access | None = None,
    ) -> None:
        self._folder = folder
        self._choice: Kind = kind
        self._bind = host
        self._port = port
        self._access = access
        self._child: subprocess.Popen[bytes] | None = None
        self._in_touch_at: float | None = None
        self.kind: Kind = kind
        """Which one it is; never ``auto`` once started."""
        self.host = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host  # noqa: S104
        """Where the hub itself reaches it."""
        self.port = port
        self.carrier = carrier
        """How the hub itself speaks to it."""
        if access is not None:
            self.carrier = access.carrier(carrier if kind == "external" else None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        """The log of a child."""
        return self._folder / "broker.log"

    def start(self) -> None:
        """Make sure that a broker answers.

        Raises
        ------
        BrokerUnavailable
            None answers, or none can be started.
        BrokerProtocol, BrokerCertificate, BrokerLimit
            It cannot be spoken to, or not enough.
        PortBusy
            The port asked for is in use.
        PathUnwritable
            The folder does not take configuration and log.
        """
        if self._choice == "external":
            self._reach()
            return
        program = None if self._choice == "amqtt" else find_mosquitto()
        if self._choice == "mosquitto" and program is None:
            raise BrokerUnavailable("mosquitto is not installed")
        if program is None and self._access is not None:
            raise BrokerUnavailable(
                "amqtt, which is for demonstrations, cannot keep members from others",
                remedy='install mosquitto, or say trust = "open" where only friends are',
            )
        if program is None:
            if importlib.util.find_spec("amqtt") is None:
                raise BrokerUnavailable("neither mosquitto nor amqtt is installed")
            _LOG.warning(
                "the broker is amqtt, for demonstrations only: install mosquitto for real use"
            )
        if self._access is None and not _is_loopback(self._bind):
            _LOG.warning("anybody who reaches %s may connect to the broker", self._bind)
        self.kind = "amqtt" if program is None else "mosquitto"
        make_folder(self._folder)
        for tries_left in reversed(range(_TRIES)):
            try:
                self.port = _free_port(self._bind, self._port)
                self._spawn(program)
            except PortBusy:
                if self._port or not tries_left:
                    raise
            else:
                self._port = self.port  # started again, it must be where everybody looks for it
                return

    def stop(self) -> None:
        """End the child, if there is one."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None

    def reload(self) -> None:
        """Have a child read the files of `Access` anew; who is connected stays so."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGHUP)

    def tend(self, now: float, *, in_touch: bool) -> None:
        """Start a child again that has died, or has not let us in for 30 s although it runs.

        Its log is kept small: whoever knocks without a certificate writes a line into it.

        Parameters
        ----------
        now
            Monotonic seconds.
        in_touch
            Whether there is a connection to it.
        """
        if self._child is not None and self.log.stat().st_size > _LOG_BYTES:
            os.truncate(self.log, 0)
        if in_touch or self._choice == "external" or self._in_touch_at is None:
            self._in_touch_at = now
        hangs = now - self._in_touch_at > _PATIENCE_S
        if self._choice != "external" and (hangs or not (in_touch or self.alive())):
            _LOG.warning("the broker has %s; starting it again", "hung" if hangs else "died")
            self.stop()
            self.start()
            self._in_touch_at = now

    def alive(self) -> bool:
        """Tell whether the child runs, or whether the external broker answers."""
        if self._choice == "external":
            return answers(self._bind, self._port, self.carrier)
        return self._child is not None and self._child.poll() is None

    def _reach(self) -> None:
        """Make sure that an external broker can be spoken to."""
        where = f"{self._bind}:{self._port}"
        try:
            found = greet(self._bind, self._port, self.carrier)
        except OSError as error:
            words = error.strerror or error
            raise BrokerUnavailable(f"cannot reach {where}: {words}") from error
        if not found:
            if self.carrier == PLAIN and speaks_tls(self._bind, self._port):
                raise BrokerProtocol(f"TLS is spoken at {where}")
            raise BrokerUnavailable(f"no MQTT broker answers at {where}")
        limit = packet_limit(self._bind, self._port, self.carrier)
        if limit is not None and limit < PACKET_BYTES:
            raise BrokerLimit(
                f"{where} takes packets of {limit} bytes, and those of chunks have {PACKET_BYTES}"
            )

    def _spawn(self, program: str | None) -> None:
        """Start the child, a mosquitto at `program` or else amqtt, and wait until it answers."""
        if program is None:
            # Its folder is named, as a hub run from a checkout is not on the child's path.
            command = [sys.executable, "-m", "hub.embedded_broker"]
            command += ["--host", self._bind, "--port", str(self.port)]
        else:
            config = self._folder / "mosquitto.conf"
            who = mosquitto.ANYBODY if self._access is None else self._access.options()
            # Started by root, it would become another user, and may then not even see its folder.
            who += "user root\n" if os.geteuid() == 0 else ""
            text = mosquitto.configuration(self._bind, self.port, who)
            write_atomic(config, text.encode())
            command = [program, "-c", str(config)]
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        self.log.write_bytes(b"")
        with self.log.open("ab") as log:  # or what is cut off would leave a hole
            self._child = subprocess.Popen(
                tied(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
                process_group=0,  # Ctrl-C is for the hub, which still has goodbyes to say
            )
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self._child.poll() is None:
            try:
                if greet(self.host, self.port, self.carrier, _ASK_S):
                    return
            except (OSError, BrokerProtocol):
                pass
            except FfmError:  # waiting mends no clock, and no file
                self.stop()
                raise
            time.sleep(0.02)
        self.stop()
        said = self.log.read_bytes()[-500:].decode("utf-8", "replace").strip()
        last = said.splitlines()[-1] if said else "it said nothing"
        if "in use" in said:
            raise PortBusy(f"port {self.port} of {self._bind} is in use")
        raise BrokerUnavailable(f"{self.kind} did not start: {last} (see {self.log})")


def find_mosquitto() -> str | None:
    """Find mosquitto on PATH, or where distributions put it out of a user's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which("mosquitto", path=path)


def answers(host: str, port: int, carrier: Carrier = PLAIN, timeout: float = _ASK_S) -> bool:
    """Tell whether an MQTT broker answers there, be it with a refusal."""
    try:
        return greet(host, port, carrier, timeout)
    except (OSError, FfmError):
        return False


def _free_port(host: str, port: int) -> int:
    """Give `port`, or a free one for 0; raise PortBusy or BrokerUnavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as probe:
            found: int = probe.getsockname()[1]
            return found
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortBusy(f"port {port} of {host} is in use") from error
        raise BrokerUnavailable(f"cannot listen on {host}:{port}: {error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
