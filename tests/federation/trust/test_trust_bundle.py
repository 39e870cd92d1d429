from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.trust import bundle
from federation.trust.bundle import FILE, Bundle
from federation.trust.keys import SigningKey
from ffm_common.errors import AdapterInvalid, SignatureInvalid

KEY = SigningKey.generate()
BASE = "ab" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a signed adapter."""
    for name in ("adapter_model.safetensors", "adapter_config.json", "ffm.json"):
        (tmp_path / name).write_text(f"content of {name}")
    bundle.sign(tmp_path, KEY, federation="home", version=7, base=BASE)
    return tmp_path


def test_what_was_signed_is_told(folder: Path) -> None:
    found = bundle.check(folder)
    assert found is not None
    assert (found.federation, found.version, found.base) == ("home", 7, BASE)
    assert found.hub == KEY.public.hex()
    assert sorted(found.files) == ["adapter_config.json", "adapter_model.safetensors", "ffm.json"]
    assert found.digest == bundle.digest_of(folder)


def test_of_what_was_never_signed_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "ffm.json").touch()
    assert bundle.check(tmp_path) is None


def alter(folder: Path) -> None:
    (folder / "ffm.json").write_text("content of ffm.jsoN")


def remove(folder: Path) -> None:
    (folder / "ffm.json").unlink()


def add(folder: Path) -> None:
    (folder / "more.bin").touch()


def link(folder: Path) -> None:
    (folder / "ffm.json").unlink()
    (folder / "ffm.json").symlink_to(folder / "adapter_config.json")


def nest(folder: Path) -> None:
    (folder / "checkpoint").mkdir()


@pytest.mark.parametrize("do", [alter, remove, add, link, nest])
def test_a_folder_that_holds_anything_else_is_not_whole(
    folder: Path, do: Callable[[Path], None]
) -> None:
    do(folder)
    with pytest.raises(AdapterInvalid):
        bundle.check(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"federation": "work"},
        {"version": 8},
        {"base": "cd" * 32},
        {"hub": SigningKey.generate().public.hex()},
        {"files": {"ffm.json": "ab" * 32}},
    ],
)
def test_what_is_said_of_it_is_signed_too(folder: Path, change: dict[str, object]) -> None:
    found = msgspec.json.decode((folder / FILE).read_bytes(), type=Bundle)
    contents = msgspec.structs.replace(found.contents, **change)
    other = msgspec.structs.replace(found, contents=contents)
    (folder / FILE).write_bytes(msgspec.json.encode(other))
    with pytest.raises(SignatureInvalid):
        bundle.check(folder)


@pytest.mark.parametrize("name", ["../ffm.json", "a/b", ".hidden", "", "x" * 200, "a\0b"])
def test_a_name_that_could_be_a_path_is_refused(folder: Path, name: str) -> None:
    raw = msgspec.json.decode((folder / FILE).read_bytes())
    raw["contents"]["files"] = {name: "ab" * 32}
    (folder / FILE).write_bytes(msgspec.json.encode(raw))
    with pytest.raises(AdapterInvalid):
        bundle.check(folder)


@given(st.binary(max_size=300))
def test_anything_in_the_place_of_the_signature_is_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / FILE).write_bytes(raw)
    with pytest.raises(AdapterInvalid):
        bundle.check(folder)
