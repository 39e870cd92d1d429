from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import ffm
from benchmarks.chaos import fixed
from federation.trust import bundle
from federation.trust.keys import SigningKey
from ffm_common.errors import IdentityBroken
from ffm_common.files import sha256_bytes, sha256_file
from learning import adapter, base
from learning.adapter import Card

KEY = SigningKey.generate()


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Give a folder with two bases, and an adapter to the first that a hub has signed."""
    fixed.write_base(tmp_path / "base")
    fixed.write_base(tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text() + " ")
    found = base.describe(tmp_path / "other")
    files = {name: sha256_file(tmp_path / "other" / name) for name in found.files}
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    told = {"digest": sha256_bytes(text.encode()), "weights": "fp32", "source": "none"}
    (tmp_path / "other" / "base.json").write_text(json.dumps({**told, "files": files}))
    sign(tmp_path / "adapter", base.describe(tmp_path / "base").digest)
    return tmp_path


def sign(folder: Path, base_digest: str) -> None:
    folder.mkdir()
    card = Card(base="base", base_digest=base_digest, version=4, task=fixed.task(1))
    adapter.save_tensors(folder, fixed.fresh(1), card)
    bundle.sign(folder, KEY, federation="home", version=4, base=base_digest)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, Any]]]:
    status = ffm.main(["version", "--json", *words])
    return status, json.loads(capsys.readouterr().out)


def test_without_more_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert ffm.main(["version"]) == 0
    assert re.fullmatch(r"ffm \S+\n", capsys.readouterr().out)


def test_what_is_whole_and_the_hubs_is_good(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(shelf / name) for name in ("base", "adapter")]
    for whose in ([], ["--key", KEY.public.hex()]):
        status, (first, second) = told(capsys, "--verify", *paths, *whose)
        assert status == 0
        assert (first["kind"], second["kind"]) == ("base", "adapter")
        assert first["digest"] == second["base"] == base.describe(shelf / "base").digest
        assert second["digest"] == bundle.digest_of(shelf / "adapter")
        assert second["signed_by"] == KEY.public.hex()
        assert (second["federation"], second["version"]) == ("home", 4)
    assert ffm.main(["version", "--verify", *paths, "--key", KEY.public.hex()]) == 0
    out = capsys.readouterr().out
    assert "whole, and the one that the signed adapter names" in out
    assert "whole, and signed by that hub" in out


def test_the_identity_of_an_agent_or_hub_says_whose_it_must_be(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shelf / "identity").mkdir()
    KEY.save(shelf / "identity" / "hub.key")
    words = ("--verify", str(shelf / "adapter"), "--identity", str(shelf / "identity"))
    assert told(capsys, *words)[0] == 0
    SigningKey.generate().save(shelf / "identity" / "hub.key")
    status, (found,) = told(capsys, *words)
    assert status == 1
    assert found["why"] == "whole, but signed by another hub"
    assert ffm.main(["version", "--verify", "x", "--identity", str(shelf)]) == 2
    assert IdentityBroken.code in capsys.readouterr().err


def test_a_bit_that_has_flipped_is_found(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, code in (
        (shelf / "adapter" / "adapter_model.safetensors", "adapter-invalid"),
        (shelf / "base" / "model.safetensors", "model-digest"),
    ):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        status, (found,) = told(capsys, "--verify", str(path.parent))
        assert status == 1
        assert found["digest"] is None
        assert code in found["why"]
        assert path.name in found["why"]


def test_an_adapter_that_nobody_has_signed_is_good_for_who_names_no_hub(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shelf / "adapter" / bundle.FILE).unlink()
    status, (found,) = told(capsys, "--verify", str(shelf / "adapter"))
    assert (status, found["signed_by"]) == (0, None)
    assert "signed by nobody" in found["why"]
    words = ("--verify", str(shelf / "adapter"), "--key", KEY.public.hex())
    assert told(capsys, *words)[0] == 1


def test_a_base_must_be_the_one_that_the_adapter_was_made_for(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(shelf / name) for name in ("other", "adapter")]
    status, (found, _) = told(capsys, "--verify", *paths)
    assert status == 1
    assert found["why"] == "whole, but not the base that the signed adapter names"
    shutil.rmtree(shelf / "adapter")
    assert told(capsys, "--verify", str(shelf / "other"))[0] == 0


def test_what_is_neither_is_named(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, (found,) = told(capsys, "--verify", str(shelf / "nothing"))
    assert status == 1
    assert "model-missing" in found["why"]
