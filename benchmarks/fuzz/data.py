"""Data files as people give them: tables, texts, pictures."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.fuzz.subject import Subject
from learning.images.pictures import Pictures, decoded, resized
from learning.texts.data import Rows, stream_texts

_CSV = (
    b'text,label\n"a cat, that ""sleeps""",animal\nthe dog barks,animal\n'
    b'a hammer,tool\n"two\nlines",tool\n'
)
_HEADERLESS = b"the dog barks\tanimal\na hammer\ttool\nthe saw cuts\ttool\nan owl\tanimal\n"
_JSONL = b"""\
{"text": "a cat", "label": "animal", "more": [1, {"a": null}], "n": 1.5}
{"text": "a \\u00e9 hammer", "label": "tool", "n": NaN}
{"text": null, "label": "tool"}
"""
_TXT = "Once upon a time.\nA cat.<|endoftext|>Another text, é.\n<|endoftext|>".encode()


def _rows(path: Path) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        path.write_bytes(data)
        rows = Rows(path)
        taken = [(len(row.text), row.label) for row in rows]
        for row in taken:
            json.dumps(row).encode()
        return rows.describe()

    return parse


def csv(work: Path) -> Subject:
    """CSV, with a comma or a semicolon between."""
    seeds = {"quotes": _CSV, "semicolons": _CSV.replace(b",", b";"), "bom": b"\xef\xbb\xbf" + _CSV}
    return Subject(_rows(work / "x.csv"), seeds, "lines")


def tsv(work: Path) -> Subject:
    """TSV, quoted or not."""
    seeds = {"headerless": _HEADERLESS, "quoted": b'text\tlabel\n"a ""b"""\tx\n"c"\ty\n'}
    return Subject(_rows(work / "x.tsv"), seeds, "lines")


def jsonl(work: Path) -> Subject:
    """One JSON object a line."""
    return Subject(_rows(work / "x.jsonl"), {"three": _JSONL}, "lines")


def one_json_line(work: Path) -> Subject:
    """One JSON object, spoilt as JSON is."""
    seed = b'{"text": "a cat", "label": "animal", "more": [1, {"a": null}], "n": 1.5}'
    return Subject(_rows(work / "x.ndjson"), {"one": seed}, "json")


def plain_text(work: Path) -> Subject:
    """A text for a language model."""
    path = work / "x.txt"

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return [len(part.text) for part in stream_texts(path)]

    return Subject(parse, {"two": _TXT}, "lines")


def parquet(work: Path) -> Subject:
    """Parquet with columns of many types."""
    import datetime as dt

    import pyarrow as pa
    from pyarrow import parquet as files

    table = pa.table(
        {
            "text": ["a cat", "the dog", None],
            "label": pa.array(["x", "y", "x"]).dictionary_encode(),
            "when": pa.array([1_700_000_000_000_000] * 3, pa.timestamp("us", tz="UTC")),
            "day": pa.array([dt.date(2024, 5, 1)] * 3),
            "price": pa.array([1, 2, 3], pa.decimal128(9, 2)),
            "score": [0.5, float("nan"), 2.0],
            "list": [[1], [], None],
        }
    )
    seeds = {}
    for name in ("none", "snappy", "zstd"):
        sink = io.BytesIO()
        files.write_table(table, sink, compression=name)
        seeds[name] = sink.getvalue()
    return Subject(_rows(work / "x.parquet"), seeds)


# -- pictures -------------------------------------------------------------------------------------


def _picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> bytes:
    from PIL import Image

    shape = (size[1], size[0]) if mode in {"L", "P"} else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(sink, kind)
    return sink.getvalue()


def pictures(_: Path) -> Subject:
    """PNG, JPEG, BMP and WebP."""

    def parse(data: bytes) -> object:
        found = decoded(data, 3, "a picture")
        assert found.shape[2] == 3
        return resized(found, 4, 4).sum()

    def mend(data: bytes, draw: random.Random) -> bytes:
        """Have the checksums of a PNG fit."""
        if not data.startswith(b"\x89PNG\r\n\x1a\n") or draw.random() < 0.2:
            return data
        parts, at = [data[:8]], 8
        while at + 12 <= len(data):
            (length,) = struct.unpack_from(">I", data, at)
            body = data[at + 4 : at + 8 + length]
            if len(body) < 4 + length:
                break
            parts.append(data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big"))
            at += 12 + length
        return b"".join(parts) + data[at:]

    seeds = {
        "png": _picture("PNG"),
        "png-grey": _picture("PNG", "L"),
        "png-palette": _picture("PNG", "P"),
        "png-clear": _picture("PNG", "RGBA"),
        "jpeg": _picture("JPEG"),
        "bmp": _picture("BMP"),
        "webp": _picture("WEBP"),
    }
    return Subject(parse, seeds, mend=mend)


def _examples(path: Path) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        path.write_bytes(data)
        found = Pictures(path, 1)
        labels = found.labels()
        taken = 0
        for picture in found:
            taken += int(resized(picture.pixels, 4, 4).shape == (4, 4, 1))
            if taken == 200:
                break
        return labels, taken

    return parse


def picture_zip(work: Path) -> Subject:
    """A zip with a folder of pictures per label."""
    seeds = {}
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", method) as archive:
            archive.writestr("cats/one.png", _picture("PNG", "L"))
            archive.writestr("dogs/two.jpg", _picture("JPEG", "L"))
            archive.writestr("readme.txt", "none")
        seeds[name] = sink.getvalue()
    return Subject(_examples(work / "x.zip"), seeds)


def picture_arrays(work: Path) -> Subject:
    """An npz of pixels and labels."""
    draw = np.random.default_rng(0)
    seeds = {}
    for name, shape in (("grey", (3, 5, 4)), ("colour", (3, 5, 4, 3))):
        sink = io.BytesIO()
        x = draw.integers(0, 255, shape, np.uint8)
        np.savez(sink, x=x, y=np.array(["a", "b", "a"]))
        seeds[name] = sink.getvalue()
    sink = io.BytesIO()
    np.savez_compressed(sink, x=x, y=np.array([0, 1, 0]))
    seeds["packed"] = sink.getvalue()

    def mend(data: bytes, draw: random.Random) -> bytes:
        """Have the checksums of a zip's members fit."""
        return data if draw.random() < 0.2 else with_checksums(data)

    return Subject(_examples(work / "x.npz"), seeds, mend=mend)


def with_checksums(data: bytes) -> bytes:
    """Write the right CRC-32 of each stored member into the heads of a zip, as far as it goes."""
    body = bytearray(data)
    at = 0
    sums = {}
    while (at := data.find(b"PK\x03\x04", at)) >= 0 and at + 30 <= len(data):
        method, size, name, extra = (
            int.from_bytes(data[at + a : at + a + n], "little")
            for a, n in ((8, 2), (18, 4), (26, 2), (28, 2))
        )
        begin = at + 30 + name + extra
        if size == 0xFFFFFFFF:  # zip64, as numpy writes it
            size = int.from_bytes(data[at + 30 + name + 12 : at + 30 + name + 20], "little")
        content = data[begin : begin + min(size, len(data))]
        if method == 0:
            sums[at] = zlib.crc32(content)
            body[at + 14 : at + 18] = sums[at].to_bytes(4, "little")
        at += 4
    at = 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0 and at + 46 <= len(data):
        place = int.from_bytes(data[at + 42 : at + 46], "little")
        if place in sums:
            body[at + 16 : at + 20] = sums[place].to_bytes(4, "little")
        at += 4
    return bytes(body)
