"""Pictures from folders, zips and arrays: which label each has, and what is refused."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from ffm_common.errors import DataEmpty, DataFormat, DataLabels, DataMissing, ExtraMissing
from ffm_common.task import Adapter, Task
from learning.images import pictures
from learning.images.geometry import Geometry
from learning.images.pictures import Pictures, decoded, labels_of
from learning.images.shards import ImageShard, image_shard
from learning.texts.cache import TokenCache

GREY = Geometry(channels=1, height=6, width=5, patch=1)
COLOUR = Geometry(channels=3, height=6, width=5, patch=1)
TASK = Task(kind="image-classification", labels=("cat", "dog"), adapter=Adapter(kind="full"))


def pixels(number: int, *, colour: bool = True) -> NDArray[np.uint8]:
    shape = (6, 5, 3) if colour else (6, 5)
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder of two cats, a dog and an owl, as PNG."""
    for number, name in enumerate(("cat/1", "cat/2", "dog/1", "owl/1")):
        path = tmp_path / "animals" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(path)
    (tmp_path / "animals" / "notes.txt").write_text("mine")
    return tmp_path / "animals"


def zipped(folder: Path) -> Path:
    out = folder.with_suffix(".zip")
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder.parent))
    return out


def in_arrays(folder: Path) -> Path:
    out = folder.with_suffix(".npz")
    labels = np.array(["cat", "cat", "dog", "owl"])
    np.savez(out, x=np.stack([pixels(number) for number in range(4)]), y=labels)
    return out


@pytest.mark.parametrize("form", ["folder", "zip", "npz"])
def test_all_forms_hold_the_same_pictures(folder: Path, form: str) -> None:
    path = {"zip": zipped, "npz": in_arrays, "folder": Path}[form](folder)
    found = list(Pictures(path, 3))
    assert [picture.label for picture in found] == ["cat", "cat", "dog", "owl"]
    for number, picture in enumerate(found):
        np.testing.assert_array_equal(picture.pixels, pixels(number))
    assert Pictures(path, 3).labels() == ["cat", "dog", "owl"]


def test_pictures_of_other_sizes_and_colours_are_brought_to_the_bases(folder: Path) -> None:
    Image.fromarray(np.full((40, 20), 200, np.uint8)).save(folder / "cat" / "large.png")
    shard = image_shard(folder, TASK, COLOUR)
    assert len(shard) == 4
    batch = shard.collate([2])
    assert batch.ids.shape == (1, 3, 6, 5)
    assert (batch.ids == 200).all()
    assert image_shard(folder, TASK, GREY).collate([0]).ids.shape == (1, 1, 6, 5)


def test_labels_that_the_task_lacks_are_left_out(folder: Path) -> None:
    shard = image_shard(folder, TASK, COLOUR)
    assert (len(shard), shard.skipped) == (3, 1)
    batch = shard.collate([0, 2])
    assert batch.targets.tolist() == [0, 1]
    np.testing.assert_array_equal(batch.ids[1], pixels(2).transpose(2, 0, 1))
    strangers = Task(kind="image-classification", labels=("a", "b"))
    with pytest.raises(DataLabels):
        image_shard(folder, strangers, COLOUR)


def test_a_cache_gives_the_same_and_sees_a_folder_change(folder: Path, tmp_path: Path) -> None:
    cache = TokenCache(tmp_path / "cache", 1.0)
    first = image_shard(folder, TASK, COLOUR, cache=cache)
    again = image_shard(folder, TASK, COLOUR, cache=cache)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    np.testing.assert_array_equal(first.collate([0, 1, 2]).ids, again.collate([0, 1, 2]).ids)
    Image.fromarray(pixels(9)).save(folder / "dog" / "2.png")
    assert len(image_shard(folder, TASK, COLOUR, cache=cache)) == 4


@given(arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3)))
def test_every_byte_comes_back(found: NDArray[np.uint8]) -> None:
    geometry = Geometry(
        channels=found.shape[0], height=found.shape[1], width=found.shape[2], patch=1
    )
    flat = np.zeros(-(-found.size // 4) * 4, np.uint8)
    flat[: found.size] = found.ravel()
    shard = ImageShard([flat.view(np.int32)], np.array([0]), geometry)
    np.testing.assert_array_equal(shard.collate([0]).ids[0], found)


def test_draws_are_those_of_texts(folder: Path) -> None:
    shard = image_shard(folder, TASK, COLOUR)
    assert sorted(shard.draw(3, 5, 0)) == [0, 1, 2]
    assert shard.draw(3, 5, 1) == shard.draw(3, 5, 1)
    sizes = [len(batch.targets) for batch in shard.micro_batches([0, 1, 2], 2)]
    assert sum(sizes) == 3
    assert max(sizes) <= 2


def test_what_is_no_picture_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (folder / "cat" / "broken.jpg").write_bytes(b"no picture at all")
    with pytest.raises(DataFormat) as caught:
        list(Pictures(folder, 3))
    assert "it is cat/broken.jpg" in caught.value.line()
    assert "broken.jpg" not in caught.value.message  # which an agent would send
    with pytest.raises(DataMissing):
        Pictures(tmp_path / "nothing", 3)
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(DataFormat):
        Pictures(tmp_path / "table.csv", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataEmpty):
        list(Pictures(tmp_path / "empty", 3))


def test_arrays_of_the_bases_size_need_no_pillow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays_ = in_arrays(folder)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert len(image_shard(arrays_, TASK, COLOUR)) == 3
    with pytest.raises(ExtraMissing, match="Pillow"):
        image_shard(folder, TASK, COLOUR)


def test_the_labels_of_several_files_are_the_tasks(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "more.npz", x=np.zeros((1, 6, 5), np.uint8), y=np.array(["bee"]))
    assert labels_of([folder, tmp_path / "more.npz"]) == ["bee", "cat", "dog", "owl"]
    with pytest.raises(DataLabels, match="bee"):
        labels_of([tmp_path / "more.npz"])


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded() -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    with pytest.raises(DataFormat, match="huge"):
        decoded(b"\x89PNG\r\n\x1a\n" + chunk, 1, "huge.png")


@pytest.mark.parametrize("wrong", [b"", b"PK\x03\x04 cut short", b"\x93NUMPY"])
@pytest.mark.parametrize("ending", [".zip", ".npz"])
def test_a_broken_archive_is_refused(tmp_path: Path, ending: str, wrong: bytes) -> None:
    path = tmp_path / f"broken{ending}"
    path.write_bytes(wrong)
    with pytest.raises(DataFormat):
        list(Pictures(path, 3))


def test_arrays_of_other_numbers_or_shapes_are_refused(tmp_path: Path) -> None:
    wrong: list[NDArray[Any]] = [np.zeros((2, 6, 5)), np.zeros((2, 6, 5, 2), np.uint8)]
    for number, x in enumerate(wrong):
        path = tmp_path / f"{number}.npz"
        np.savez(path, x=x, y=np.zeros(2, int))
        with pytest.raises(DataFormat):
            list(Pictures(path, 3))
    np.savez(tmp_path / "objects.npz", x=np.zeros((1, 6, 5), np.uint8), y=np.array([{}]))
    with pytest.raises(DataFormat):
        list(Pictures(tmp_path / "objects.npz", 3))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fail where more than 2 MB are allocated, by numpy or Python."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("little_memory")
def test_a_zip_that_packs_far_too_much_is_unpacked_to_the_limit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_MOST_BYTES", 1000)
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("cat/1.png", "w") as file,
    ):
        for _ in range(500):
            file.write(bytes(100_000))
    with pytest.raises(DataFormat, match=r"a picture of .*bomb\.zip has more than"):
        list(Pictures(tmp_path / "bomb.zip", 3))


def npz(path: Path, x: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", x)
        with archive.open("y.npy", "w") as file:
            npy.write_array(file, np.array(["cat"]))
    return path


@pytest.mark.usefixtures("little_memory")
def test_an_array_is_no_larger_than_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = io.BytesIO()
    npy.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (1, 100_000, 100_000)}
    )
    with pytest.raises(DataFormat, match="100000, 100000"):
        list(Pictures(npz(tmp_path / "liar.npz", head.getvalue()), 3))
    monkeypatch.setattr(pictures, "_MOST_ARRAY_BYTES", 1000)
    with pytest.raises(DataFormat, match="unpacks to"):
        list(Pictures(npz(tmp_path / "bomb.npz", bytes(10_000)), 3))


def test_a_picture_that_another_program_would_have_to_draw_is_not_opened() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(DataFormat, match="cannot identify"):
        decoded(postscript, 3, "cat.png")


def test_a_picture_that_is_too_large_a_file_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_MOST_BYTES", 10)
    with pytest.raises(DataFormat, match=r"a picture of .* has more than"):
        list(Pictures(folder, 3))
