"""Flower's side of the comparison: its processes on 127.0.0.1, its nodes through a counting relay.

Flower is not a dependency: it is installed into an environment of its own below the work folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.arena import Arena
from benchmarks.codecs.socket_rows import RunFailed, Seen, SocketRow, wait_for, watch
from benchmarks.relay import Relay, free_port
from benchmarks.simulation import Federation
from ffm_common.files import make_folder
from ffm_common.tensors import count
from ffm_common.tied import tied

FLOWER = "1.41.0"
"""The newest release whose dependencies could be installed when this was written."""

_SUBMIT_S = 300.0
_NO_UV = "--disable-runtime-dependency-installation"
_APP = """\
[project]
name = "peer"
version = "1.0.0"
description = "LoRA on text, beside ffm-edge."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "ffm"

[tool.flwr.app.components]
serverapp = "peer:server"
clientapp = "peer:client"
"""


def install(work: Path) -> Path:
    """Give the Python of an environment with Flower; made if it is not there.

    Raises
    ------
    RunFailed
        The package index does not give it.
    """
    home = work / f"flower-{FLOWER}"
    python = home / "bin" / "python"
    ready = home / "ready"
    if ready.exists():
        return python
    shutil.rmtree(home, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(home)],
        [str(python), "-m", "pip", "install", "-q", f"flwr=={FLOWER}", f"numpy=={np.__version__}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunFailed(done.stderr.strip().splitlines()[-1])
    # Behind Flower's own packages: what our engine needs (onnxruntime, tokenizers).
    ours = sysconfig.get_paths()["purelib"]
    theirs = next((home / "lib").glob("python*/site-packages"))
    (theirs / "ours.pth").write_text(f"{ours}\n")
    ready.touch()
    return python


def flower(work: Path, asked: Federation) -> Iterator[SocketRow]:
    """Run a federation of Flower's; give its versions as they come.

    Raises
    ------
    RunFailed
        It cannot be installed, or does not get to the next version.
    """
    work = work.resolve()
    python = install(work)
    # Made here, once: Flower's environment has no torch.
    start_tensors = Arena(asked.task, work).start(asked.seed)
    folder = make_folder(work / "flower-run")
    shutil.rmtree(folder)
    app = make_folder(folder / "app")
    shutil.copyfile(Path(__file__).with_name("flower_app.py"), app / "peer.py")
    (app / "pyproject.toml").write_text(_APP)
    control = free_port()
    home = make_folder(folder / "home")
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{control}"\n'
        "insecure = true\n"
    )
    rounds = folder / "rounds.jsonl"
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FFM_FLOWER_WORK": str(work),
        "FFM_FLOWER_ROUNDS": str(rounds),
        "FFM_FLOWER_FEDERATION": json.dumps(msgspec.to_builtins(asked)),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                tied([str(python.parent / arguments[0]), *arguments[1:]]),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    with contextlib.ExitStack() as stack:
        link = start("superlink", "flower-superlink", "--insecure", "--port", str(control), _NO_UV)
        stack.callback(_end, link)
        wait_for(control)
        proxy = Relay(control)
        stack.callback(proxy.close)
        for place in range(asked.agents):
            node = start(
                f"supernode-{place}",
                *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{proxy.port}"),
                *("--port", str(free_port()), "--node-config", f"partition-id={place}"),
            )
            stack.callback(_end, node)
        if start("run", "flwr", "run", str(app), "here").wait(_SUBMIT_S):
            raise RunFailed(f"flwr run: {(folder / 'run.log').read_text()}")
        whole = 2 * 4 * count(start_tensors) * asked.agents

        def look() -> list[Seen]:
            text = rounds.read_text() if rounds.exists() else ""
            lines = text[: text.rfind("\n") + 1].splitlines()
            return [
                Seen(row["version"], row["accuracy"], row["version"] * whole)
                for row in map(json.loads, lines)
            ]

        yield from watch("flower", asked, proxy, look)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
