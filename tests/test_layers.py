"""The house's floors: a package imports only packages below it, heavy libraries stay where due."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Top to bottom; those on one floor never import each other.
FLOORS = [
    {"ffm"},
    {"fleet"},
    {"edge_agent", "hub"},
    {"federation"},
    {"learning"},
    {"quantization"},
    {"profiles"},
    {"ffm_common", "ffm_launch"},
]
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
NEVER = {("federation", "learning")}
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "onnx", "onnxruntime"}
# These may import something heavy at their top, since all others import them only when called.
HEAVY_AT_TOP = {
    "learning.torch.lean",
    "learning.torch.cut",
    "learning.torch.full",
    "learning.torch.loss",
    "learning.onnx.artifacts",
    "learning.onnx.attention",
    "learning.onnx.export",
    "learning.onnx.graph",
    "learning.onnx.loss",
    "learning.onnx.models",
    "learning.onnx.ops",
    "learning.onnx.weights",
    "quantization.weights_frozen",
}
MOST_LINES = 600

FILES = [ROOT / "ffm.py", ROOT / "ffm_launch.py"] + [
    path
    for packages in FLOORS[1:]
    for package in sorted(packages)
    for path in sorted((ROOT / package).rglob("*.py"))
]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}


def imports(tree: ast.AST, *, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Give every module that is imported, and whether only when a function is called."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            yield from ((f"{node.module}.{alias.name}", lazy) for alias in node.names)
        deeper = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, lazy=deeper)


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Parse the whole house, once."""
    return {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


@functools.cache
def all_imports() -> list[tuple[str, str, bool]]:
    """Give (the module that imports, what it imports, whether lazily) for the whole house."""
    return [(name, other, lazy) for name, tree in trees().items() for other, lazy in imports(tree)]


def top(name: str) -> str:
    return name.partition(".")[0]


def test_a_package_imports_only_packages_below_it() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, other, _ in all_imports()
        if top(name) != top(other)
        and top(other) in FLOOR
        and (FLOOR[top(other)] <= FLOOR[top(name)] or (top(name), top(other)) in NEVER)
    ]
    assert wrong == []


def test_heavy_libraries_are_imported_only_where_models_are() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, other, _ in all_imports()
        if top(other) in HEAVY and not name.startswith(("learning.", "quantization.weights"))
    ]
    assert wrong == []


def test_heavy_libraries_are_imported_only_when_they_are_needed() -> None:
    wrong = [
        f"{name} imports {other} outside a function"
        for name, other, lazy in all_imports()
        if not lazy
        and name not in HEAVY_AT_TOP
        and (top(other) in HEAVY or ".".join(other.split(".")[:2]) in HEAVY_AT_TOP)
    ]
    assert wrong == []


# What runs what it reads; ruff looks for ``eval`` and ``exec``.
UNSAFE_MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.hub.load", "torch.jit.load"}
GUARD = "NO_FOREIGN_CODE"


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Name what could run what a file or a stranger says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).replace("np.", "numpy.")
            if called in UNSAFE_CALLS:
                yield called
            if called.endswith(".from_pretrained") and called.startswith(("Auto", "kind")):
                given = [ast.unparse(word.value) for word in node.keywords if word.arg is None]
                if not any(each.endswith(GUARD) for each in given):
                    yield f"{called} without {GUARD}"
            for word in node.keywords:
                allowed = isinstance(word.value, ast.Constant) and word.value.value is False
                if word.arg in {"allow_pickle", "trust_remote_code"} and not allowed:
                    yield f"{called}({word.arg}=...)"
    yield from (other for other, _ in imports(tree) if top(other) in UNSAFE_MODULES)


def test_nothing_that_is_read_is_ever_run() -> None:
    """No pickle in any form, no ``torch.load``, no code that a model's folder brings."""
    wrong = [f"{name}: {what}" for name, tree in trees().items() for what in unsafe(tree)]
    assert wrong == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import torch\nx = torch.load('x', weights_only=True)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=flag)",
        "model.from_pretrained('x', trust_remote_code=True)",
        "AutoModel.from_pretrained('x')",
    ],
)
def test_what_runs_what_it_reads_is_seen(source: str) -> None:
    assert list(unsafe(ast.parse(source))) != []


def test_no_module_is_too_long_to_be_read_at_night() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_every_package_of_ours_has_its_floor() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    ours = set(FLOOR) - {"ffm", "ffm_launch"}
    assert packages - {"tests", "benchmarks", "scripts"} == ours


def test_the_walk_sees_lazy_nested_and_relative_imports() -> None:
    source = "import a\ndef f():\n    from b import c\n    class D:\n        import e.g\n"
    assert list(imports(ast.parse(source))) == [("a", False), ("b.c", True), ("e.g", True)]
    with pytest.raises(AssertionError, match="absolute"):
        list(imports(ast.parse("from . import x")))
