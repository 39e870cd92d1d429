"""Labelled pictures as people have them: a folder or a zip of a folder per label, or arrays in npz.

Only a picture at a time is decoded, by Pillow; arrays need no library.
"""

from __future__ import annotations

import io
import lzma
import math
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ffm_common.errors import DataEmpty, DataFormat, DataLabels, DataMissing, ExtraMissing

_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
# A file may say that it is far larger than it is: nothing on a board is.
_MOST_PIXELS = 64 << 20
_MOST_BYTES = 128 << 20
_BLOCK = 1 << 20
_MOST_ARRAY_BYTES = 512 << 20
_MOST_NAMES = 1 << 20
_KINDS = frozenset("biufSU")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
# What the library raises for a file that is broken, encrypted or packed in a strange way.
_BROKEN_ZIP = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, KeyError, ValueError),
    *(NotImplementedError, RuntimeError, OverflowError, zlib.error, lzma.LZMAError, struct.error),
)
_GREY, _COLOUR = 2, 3
_FEWEST_LABELS = 2


class Picture(NamedTuple):
    """One example: its pixels, uint8, shape (height, width, 1 or 3), and its label."""

    pixels: NDArray[np.uint8]
    label: str


class Pictures:
    """The pictures of a file or folder, in the order of their names.

    Parameters
    ----------
    path
        A folder or a zip, in which a picture's label is the name of the folder that it is in; or an
        npz with ``x``, uint8 of shape (examples, height, width) or (examples, height, width, 3),
        and ``y``, labels of shape (examples,).
    channels
        1: grey, 3: colour; what is otherwise is converted.

    Raises
    ------
    DataMissing, DataFormat
        There is nothing, or it is none of these.
    """

    def __init__(self, path: Path, channels: int) -> None:
        self._path = path
        self._channels = channels
        if not path.exists():
            raise DataMissing(f"cannot read {path}: there is none")
        if not path.is_dir() and path.suffix.lower() not in {".zip", ".npz"}:
            raise DataFormat(
                f"{path} holds no pictures",
                remedy="give a folder or a zip with a folder of pictures per label, or an npz",
            )

    def __iter__(self) -> Iterator[Picture]:
        """Decode them, one after the other; DataEmpty after the last if there was none."""
        empty = True
        for picture in self._read():
            empty = False
            yield picture
        if empty:
            raise DataEmpty(f"{self._path} holds no picture")

    def labels(self) -> list[str]:
        """Give the labels of all, each once, sorted; no picture is decoded."""
        if self._path.suffix.lower() == ".npz":
            found = {str(label) for label in self._arrays()[1].tolist()}
        else:
            found = {_label(name) for name in self._names()}
        return sorted(found)

    def _read(self) -> Iterator[Picture]:
        if self._path.is_dir():
            for name in self._names():
                yield self._decode(read_picture(self._path, name), name)
        elif self._path.suffix.lower() == ".zip":
            with self._archive() as archive:
                for name in self._names():
                    yield self._decode(self._member(archive, name), name)
        else:
            pixels, labels = self._arrays()
            for each, label in zip(pixels, labels.tolist(), strict=True):
                yield Picture(_in_channels(each, self._channels), str(label))

    def _names(self) -> list[str]:
        """List the pictures, sorted."""
        if self._path.is_dir():
            found = (p.relative_to(self._path).as_posix() for p in self._path.rglob("*"))
            names = [name for name in found if (self._path / name).is_file()]
        else:
            with self._archive() as archive:
                names = archive.namelist()
        return sorted(
            name
            for name in names
            if (path := PurePosixPath(name)).suffix.lower() in _ENDINGS and len(path.parts) > 1
        )

    def _archive(self) -> zipfile.ZipFile:
        try:
            archive = zipfile.ZipFile(self._path)
        except _BROKEN_ZIP as error:
            raise DataFormat(f"cannot read {self._path}: {error}") from error
        if len(archive.namelist()) > _MOST_NAMES:
            archive.close()
            raise DataFormat(f"{self._path} holds more than {_MOST_NAMES} files")
        return archive

    def _member(self, archive: zipfile.ZipFile, name: str) -> bytearray:
        """Unpack a picture's file; not more of it than may be, whatever it packs."""
        try:
            with archive.open(name) as file:
                data = _read(file, _MOST_BYTES + 1)
        except _BROKEN_ZIP as error:
            raise DataFormat(
                f"cannot read a picture of {self._path}: {error}", quotes=f"it is {name}"
            ) from error
        return _of_size(data, f"a picture of {self._path}", name)

    def _arrays(self) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        with self._archive() as archive:
            pixels, labels = (self._array(archive, name) for name in ("x.npy", "y.npy"))
        grey = pixels.ndim == _GREY + 1
        colour = pixels.ndim == _COLOUR + 1 and pixels.shape[-1] in {1, 3}
        right = pixels.dtype == np.uint8 and (grey or colour) and pixels.size
        if not right or labels.shape != (len(pixels),):
            raise DataFormat(
                f"{self._path}: x is {pixels.dtype} of shape {pixels.shape}, y of {labels.shape}"
            )
        return pixels, labels

    def _array(self, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
        """Unpack an array that says before how large it is."""
        try:
            size = archive.getinfo(name).file_size
            if size > _MOST_ARRAY_BYTES:
                raise DataFormat(f"{name} of {self._path} unpacks to {size >> 20} MiB")
            with archive.open(name) as file:
                return _array_in(file, size)
        except (*_BROKEN_ZIP, tokenize.TokenError, SyntaxError, TypeError) as error:
            raise DataFormat(f"cannot read {name} of {self._path}: {error}") from error

    def _decode(self, data: bytes | bytearray, name: str) -> Picture:
        pixels = decoded(data, self._channels, f"a picture of {self._path}", name)
        return Picture(pixels, _label(name))


def labels_of(paths: Sequence[Path]) -> list[str]:
    """Give the labels of some files or folders, each once, sorted.

    Raises
    ------
    DataMissing, DataFormat, DataLabels
        One cannot be read, or there are not two labels in all of them.
    """
    found = {label for path in paths for label in Pictures(path, _COLOUR).labels()}
    if len(found) < _FEWEST_LABELS:
        raise DataLabels(
            f"the pictures of {', '.join(map(str, paths))} have labels {sorted(found)}",
            remedy="put the pictures of each label into a folder of its name",
        )
    return sorted(found)


def decoded(
    data: bytes | bytearray, channels: int, source: str, name: str = ""
) -> NDArray[np.uint8]:
    """Decode the bytes of a picture's file; gives shape (height, width, channels).

    Raises
    ------
    DataFormat
        They are none, or of more pixels than a board may be made to hold; `source` is named, and
        the picture's own `name` quoted.
    """
    quotes = f"it is {name}" if name else ""
    pillow = _pillow()
    try:
        # These alone: of others, some are handed to programs of this machine.
        with pillow.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise DataFormat(f"{source}: it has too many pixels", quotes=quotes)
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (DataFormat, MemoryError):
        raise
    except Exception as error:  # what Pillow raises depends on the format
        raise DataFormat(
            f"cannot decode {source}: {error}",
            remedy="give PNG, JPEG, BMP or WebP",
            quotes=quotes,
        ) from error
    return _in_channels(pixels, channels)


def read_picture(folder: Path, name: str) -> bytearray:
    """Read a picture's file.

    Raises
    ------
    DataMissing, DataFormat
        It cannot be read, or is larger than a board may be made to hold.
    """
    try:
        with (folder / name).open("rb") as file:
            return _of_size(_read(file, _MOST_BYTES + 1), f"a picture of {folder}", name)
    except OSError as error:
        raise DataMissing(
            f"cannot read a picture of {folder}: {error.strerror or error}",
            quotes=f"it is {name}",
        ) from error


def _of_size(data: bytearray, source: str, name: str) -> bytearray:
    if len(data) > _MOST_BYTES:
        raise DataFormat(f"{source} has more than {_MOST_BYTES >> 20} MiB", quotes=f"it is {name}")
    return data


def _read(file: IO[bytes], most: int) -> bytearray:
    """Read up to so many bytes, and allocate no more than there are."""
    data = bytearray()
    while block := file.read(min(_BLOCK, most - len(data))):
        data += block
    return data


def _array_in(file: IO[bytes], size: int) -> NDArray[Any]:
    """Read an array in numpy's format from `size` bytes; ValueError where it is not that large.

    numpy would first allocate what the head of the file says.
    """
    version = npy.read_magic(file)
    heads = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in heads:
        raise ValueError(f"an array in format {version}")
    shape, by_columns, dtype = heads[version](file)
    if dtype.kind not in _KINDS:
        raise ValueError(f"it holds {dtype}, not numbers or texts")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise ValueError(f"{dtype} of shape {shape} in {size} bytes")
    data = _read(file, count * dtype.itemsize)
    flat = np.frombuffer(data, dtype, count) if count * dtype.itemsize else np.empty(count, dtype)
    if dtype.kind == "U":
        points = flat.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if points.max(initial=0) > sys.maxunicode:
            raise ValueError("a text in it is none")
    return flat.reshape(shape, order="F" if by_columns else "C")


def resized(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Scale a picture, shape (height, width, channels), by Pillow; nothing where it fits."""
    if pixels.shape[:2] == (height, width):
        return pixels
    pillow = _pillow()
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    image = pillow.fromarray(flat).resize((width, height), pillow.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, -1)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ExtraMissing(
            "pictures are decoded and scaled by Pillow, which is not installed",
            remedy="pip install pillow, or give an npz of the base's own size",
        ) from error
    return Image


def _label(name: str) -> str:
    return PurePosixPath(name).parent.name


def _in_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Give shape (height, width, channels): grey is the mean of the colours."""
    if pixels.ndim == _GREY:
        pixels = pixels[:, :, None]
    if pixels.shape[2] == channels:
        return pixels
    if channels == 1:
        return np.asarray(pixels.mean(axis=2, keepdims=True), np.uint8)
    return np.repeat(pixels, channels, axis=2)
