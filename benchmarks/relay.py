"""A TCP relay on this machine, without root: it counts what goes through, and can be a bad link.

Bytes are counted as they are read from either end, whether or not they get any farther.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

_CHUNK: Final = 1 << 16
_HELD_BACK_S: Final = 0.2
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close() sends a RST


class Step(Protocol):
    """What is done to the bytes of one direction of one connection."""

    def feed(self, data: bytes) -> Iterable[bytes]:
        """Take bytes in; give what is to be passed on now."""

    def flush(self) -> bytes:
        """Give what was held back: nothing came after it for a while."""


class Relay:
    """Passes connections on to a port of this machine.

    Parameters
    ----------
    to
        The port.
    step
        Makes the step for one direction of a new connection; its argument says whether that is
        up, from those who connect.

    Attributes
    ----------
    port
        Where it listens.
    up, down
        Bytes read: from those who connect, and from where they are passed on to.
    cuts
        When this relay has reset connections that were open, in monotonic seconds.
    """

    def __init__(self, to: int, *, step: Callable[[bool], Step] | None = None) -> None:
        self._to = to
        self._step = step
        self.up = self.down = 0
        self.cuts: list[float] = []
        self._rate = self._limited_until = self._held_until = 0.0
        self._cut_in: dict[bool, int] = {}
        self._open: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._run(listener),), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End all connections, and listen no more."""
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection, now."""
        self._loop.call_soon_threadsafe(self._cut)

    def cut_after(self, count: int, *, up: bool) -> None:
        """Reset every connection once `count` more bytes have passed in one direction."""
        self._cut_in[up] = count

    @property
    def armed(self) -> bool:
        """Whether a cut is still to come."""
        return bool(self._cut_in)

    def disarm(self) -> None:
        """Forget the cuts that are still to come."""
        self._cut_in.clear()

    def hold(self, seconds: float) -> None:
        """Let nothing through for so long, in either direction: a black hole. Nothing is lost."""
        self._held_until = time.monotonic() + seconds

    @property
    def limited(self) -> bool:
        """Whether a rate is set."""
        return time.monotonic() < self._limited_until

    def limit(self, rate: float, seconds: float) -> None:
        """Let `rate` bytes a second through, each direction and connection, for so long."""
        self._rate, self._limited_until = rate, time.monotonic() + seconds

    async def _run(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._serve, sock=listener)
        await self._ending.wait()
        server.close()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_writer = None
        try:
            await self._pass_time(0)
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
            self._open.add((writer, far_writer))
            await asyncio.gather(
                self._pump(reader, far_writer, True), self._pump(far_reader, writer, False)
            )
        except (OSError, asyncio.CancelledError):
            pass  # one end is gone, or all are to go; asyncio would print a cancelled handler
        finally:
            if far_writer is None:
                writer.transport.abort()
            else:
                self._open.discard((writer, far_writer))
                for end in (writer, far_writer):
                    end.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, up: bool
    ) -> None:
        step = self._step(up) if self._step else None
        waiting = False
        while True:
            try:
                data = await asyncio.wait_for(
                    source.read(_CHUNK), _HELD_BACK_S if waiting else None
                )
            except TimeoutError:
                parts: Iterable[bytes] = [step.flush()] if step else []
                waiting = False
            else:
                if not data:
                    break
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
                parts = step.feed(data) if step else [data]
                waiting = step is not None
            for part in parts:
                await self._pass_on(part, sink, up)
        with contextlib.suppress(OSError):
            sink.write_eof()

    async def _pass_on(self, part: bytes, sink: asyncio.StreamWriter, up: bool) -> None:
        left = self._cut_in.get(up)
        if left is not None:
            self._cut_in[up] = left - len(part)
            if left <= len(part):
                part = part[:left]
        await self._pass_time(len(part))
        if sink.is_closing():
            raise ConnectionResetError
        sink.write(part)
        await sink.drain()
        if self._cut_in.get(up, 1) <= 0:
            del self._cut_in[up]
            # What was passed on is to arrive: a reset would overtake it.
            await asyncio.sleep(0.01)
            self._cut()

    async def _pass_time(self, count: int) -> None:
        """Wait as the link's rate and its black holes have it."""
        if self.limited:
            await asyncio.sleep(count / self._rate)
        while (rest := self._held_until - time.monotonic()) > 0:  # noqa: ASYNC110 -- it may grow
            await asyncio.sleep(rest)

    def _cut(self) -> None:
        if self._open:
            self.cuts.append(time.monotonic())
        for pair in list(self._open):
            for end in pair:
                sock = end.get_extra_info("socket")
                if sock is not None and not end.transport.is_closing():
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.transport.abort()
        self._open.clear()


def free_port() -> int:
    """Give a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
