"""From pictures to a shard: decoded and scaled once, kept as bytes, drawn as texts are.

A picture goes where a text's tokens do, four pixels to a number, so cache, draws and micro-batches
are those of texts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import DataLabels
from ffm_common.files import listing
from ffm_common.task import Task
from learning.engine import Batch
from learning.images.geometry import Geometry
from learning.images.pictures import Pictures, decoded, read_picture, resized
from learning.texts import packed
from learning.texts.batches import Shard
from learning.texts.cache import TokenCache, key_of
from learning.texts.pieces import Piece

_log = logging.getLogger(__name__)
_PACKED = 4


class ImageShard(Shard):
    """Pictures with their labels.

    Parameters
    ----------
    ids
        The bytes of each picture, shape (channels, height, width), four in an int32.
    targets
        Label index of each, shape (examples,).
    """

    def __init__(
        self,
        ids: Sequence[NDArray[np.int32]],
        targets: NDArray[np.integer] | None,
        geometry: Geometry,
        skipped: int = 0,
    ) -> None:
        super().__init__(ids, targets, 0, skipped)
        self._geometry = geometry

    def holding(
        self, ids: Sequence[NDArray[np.int32]], targets: NDArray[np.integer] | None
    ) -> ImageShard:
        """Give a shard of the same kind with other examples."""
        return ImageShard(ids, targets, self._geometry)

    def collate(self, places: Sequence[int]) -> Batch:
        """Give pixels, 0 to 255, shape (batch, channels, height, width)."""
        assert self.targets is not None  # noqa: S101 - every picture has a label
        g = self._geometry
        rows = np.stack([self.ids[place] for place in places]).view(np.uint8)[:, : g.size]
        pixels = rows.reshape(-1, g.channels, g.height, g.width).astype(np.int64)
        mask = np.ones((len(places), g.places), dtype=np.int64)
        return Batch(pixels, mask, self.targets[list(places)].astype(np.int64))


def image_shard(
    path: Path, task: Task, geometry: Geometry, *, cache: TokenCache | None = None
) -> ImageShard:
    """Read a folder or file of pictures; from the cache, if there is one and it has them.

    Pictures of labels that the task lacks are left out.

    Raises
    ------
    DataError
        It cannot be used; the leaf says why.
    """

    def read() -> tuple[Iterable[Piece | None], Callable[[], str]]:
        return _pieces(Pictures(path, geometry.channels), task.labels, geometry), str

    if cache is None:
        run = packed.in_memory(read()[0])
    else:
        found = listing(path) if path.is_dir() else ""
        run = cache.fetch(key_of(path, "pictures", found, task.labels, geometry), read)
    if run.contents.skipped:
        _log.info("%s: %d pictures of other labels are left out", path, run.contents.skipped)
    return ImageShard(run.ids, run.targets, geometry, run.contents.skipped)


def pictures_batch(paths: Sequence[Path], geometry: Geometry) -> Batch:
    """Read the pictures in some files; their targets are zero.

    Raises
    ------
    DataMissing, DataFormat
        One cannot be read; it is named.
    """
    pieces = []
    for path in paths:
        pixels = decoded(read_picture(path.parent, path.name), geometry.channels, str(path))
        pieces.append(_packed(pixels, geometry))
    shard = ImageShard(pieces, np.zeros(len(pieces), np.int64), geometry)
    return shard.collate(range(len(pieces)))


def _packed(pixels: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.int32]:
    """Scale a picture of shape (height, width, channels) and pack its bytes."""
    fitting = resized(pixels, geometry.height, geometry.width)
    flat = np.zeros(-(-geometry.size // _PACKED) * _PACKED, np.uint8)
    flat[: geometry.size] = fitting.transpose(2, 0, 1).reshape(-1)
    return flat.view(np.int32)


def _pieces(
    pictures: Pictures, labels: Sequence[str], geometry: Geometry
) -> Iterator[Piece | None]:
    index = {label: place for place, label in enumerate(labels)}
    known, other = 0, ""
    for picture in pictures:
        target = index.get(picture.label)
        if target is None:
            other = picture.label
            yield None
            continue
        known += 1
        yield Piece(_packed(picture.pixels, geometry), target)
    if not known:
        raise DataLabels("no picture has a label of this task", quotes=f"one is {other!r}")
