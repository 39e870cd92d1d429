from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ffm

HUB = """
federation = "demo"
base = "base"
[public]
train = "public.jsonl"
evaluation = "test.jsonl"
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a fresh process, as a person does."""
    command = [sys.executable, "-m", "ffm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
    """Give the words of every command and sub-command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield (name,)
                yield from ((name, *words) for words in commands(command))


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def modules_after(code: str) -> set[str]:
    """Give the top names of all modules that a fresh interpreter holds after `code`."""
    done = python(f"import sys\n{code}\nprint(*sorted({{n.split('.')[0] for n in sys.modules}}))")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_help_is_there_at_once() -> None:
    times = []
    for _ in range(5):
        started = time.monotonic()
        done = run("--help")
        times.append(time.monotonic() - started)
        assert done.returncode == 0
    assert min(times) < 0.3, times


def test_help_loads_nothing_heavy() -> None:
    loaded = modules_after("import ffm\nffm.parser().format_help()")
    assert not loaded & {"torch", "transformers", "numpy", "paho", "psutil", "rich", "asyncio"}


def test_an_idle_agent_holds_neither_numpy_nor_anything_heavy() -> None:
    loaded = modules_after("import edge_agent.supervisor")
    heavy = {"torch", "transformers", "peft", "numpy", "safetensors", "pyarrow", "onnxruntime"}
    assert not loaded & (heavy | {"cryptography"})


def test_an_idle_agent_holds_no_web_server() -> None:
    done = python("import edge_agent.supervisor, sys; print('http.server' in sys.modules)")
    assert done.stdout == "False\n"


def test_an_idle_agent_is_small() -> None:
    done = python(
        "import edge_agent.supervisor, psutil; print(psutil.Process().memory_info().rss >> 20)"
    )
    assert int(done.stdout) < 40


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    found = list(commands(ffm.parser()))
    assert {("demo",), ("hub", "run"), ("agent", "run"), ("model", "prepare")} <= set(found)
    for words in found:
        with pytest.raises(SystemExit) as ended:
            ffm.main([*words, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: ffm {' '.join(words)}")


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"ffm \d+\.\d+\.\d+\n", run("--version").stdout)


def test_a_command_that_fails_prints_one_line_with_its_code(tmp_path: Path) -> None:
    done = run("infer", "hello", "--adapter", str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"ffm: error \[adapter-invalid\]: [^\n]+ -- [^\n]+\n", done.stderr)
    assert str(tmp_path / "none") in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("--debug", "hub", "run", "--config", str(tmp_path / "none.toml"))
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ConfigMissing" in done.stderr


@pytest.mark.parametrize("kind", ["hub", "agent"])
def test_a_configuration_that_is_not_there_is_named(tmp_path: Path, kind: str) -> None:
    done = run(kind, "run", "--config", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert done.stderr.startswith("ffm: error [config-missing]: ")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "none.toml") in done.stderr


@pytest.mark.parametrize(
    ("line", "key", "allowed"),
    [
        ("[versions]\nbufer = 3\n", "versions.bufer", "count, buffer, min_updates, deadline_s"),
        ("[adapter]\nrnak = 3\n", "adapter.rnak", "kind, rank, alpha"),
        ("[oops]\n", "oops", "federation, base, public"),
    ],
)
def test_a_mistyped_key_is_named_with_file_and_what_is_allowed(
    tmp_path: Path, line: str, key: str, allowed: str
) -> None:
    path = tmp_path / "hub.toml"
    path.write_text(HUB + line)
    done = run("hub", "run", "--config", str(path))
    assert done.returncode == 2
    assert f"[config-invalid]: {path}: unknown key {key} (allowed here: {allowed}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_extra_is_one_line_that_names_it(tmp_path: Path) -> None:
    arguments = ["model", "prepare", "minilm", str(tmp_path / "base")]
    done = python(
        f"import sys; sys.modules['torch'] = None; import ffm; sys.exit(ffm.main({arguments}))"
    )
    assert done.returncode == 2
    assert done.stderr == (
        "ffm: error [extra-missing]: torch is not installed"
        " -- pip install 'ffm-edge[train]' brings it\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    done = python(
        "import sys; sys.modules['learning.base'] = None; sys.modules['profiles.profile'] = None\n"
        "import ffm; sys.exit(ffm.main(['profile', 'list']))"
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "ffm", "profile", "list"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "ffm: whoever read the output (head, less) has gone\n"
