"""A base with its adapter and tokenizer, built once for training, evaluating and answering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ffm_common.errors import ModelDigest
from ffm_common.task import Task
from learning import adapter, engines
from learning.answers import Answer, answers, most_likely
from learning.texts.batches import Shard
from learning.texts.cache import TokenCache
from learning.texts.shards import Reader
from profiles.calibration import Products


class Learner:
    """A quantized base with an adapter for a task: what a worker trains and a person asks.

    Parameters
    ----------
    folder
        The prepared base, or a training step exported from it.
    task
        Kind, labels, adapter and training settings; the fresh adapter starts from its seed.
    checkpointing
        Compute activations again in the backward pass instead of keeping them.
    threads
        Threads to compute with; by default what the environment says.
    products
        Format in which torch multiplies frozen matrices.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        *,
        checkpointing: bool = False,
        threads: int | None = None,
        products: Products = "fp32",
    ) -> None:
        self.folder = folder
        self.task = task
        self._sees = task.kind == "image-classification"
        self._tokenizer = None if self._sees else engines.load_tokenizer(folder)
        self.engine = engines.open_engine(
            folder, task, checkpointing=checkpointing, threads=threads, products=products
        )

    @classmethod
    def load(cls, folder: Path, base_folder: Path | None = None) -> Self:
        """Open a trained adapter folder on its base.

        Raises
        ------
        AdapterInvalid, ModelMissing, ModelDigest
            The adapter is none, or the base is not the one that it was trained on.
        """
        card = adapter.read_card(folder)
        where = base_folder or Path(card.base)
        if engines.verify(where).base_digest != card.base_digest:
            raise ModelDigest(f"{folder} was trained on another base than {where}")
        found = cls(where, card.task)
        found.engine.write(adapter.load_tensors(folder))
        return found

    def shard(
        self,
        path: Path,
        *,
        text: str | None = None,
        label: str | None = None,
        max_length: int | None = None,
        cache: TokenCache | None = None,
    ) -> Shard:
        """Read and tokenize a data file: labelled text or pictures, or plain text.

        With a `cache` that is done once, and the tokens are a mapped file; without, they are held
        in memory.

        Raises
        ------
        DataError
            The file cannot be used; the leaf says why.
        """
        if self._sees:
            from learning.images.geometry import Geometry
            from learning.images.shards import image_shard

            return image_shard(path, self.task, Geometry.of(self.folder), cache=cache)
        length = max_length or self.task.training.max_length
        reader = Reader(self.task, self._tokenizer, length, text=text, label=label)
        return reader.shard(path, cache=cache, base=engines.describe(self.folder).base_digest)

    def split(
        self,
        path: Path,
        share: float,
        *,
        text: str | None = None,
        label: str | None = None,
        max_length: int | None = None,
        cache: TokenCache | None = None,
    ) -> tuple[Shard, Shard | None]:
        """Give the shard of a data file without what is held out of it, and that, if there is any.

        Parameters
        ----------
        share
            How much of the file is held out; a text's own hash says which of them.

        Raises
        ------
        DataError
            The file cannot be used; the leaf says why.
        """
        if self._sees:
            return self.shard(path, cache=cache), None
        length = max_length or self.task.training.max_length
        reader = Reader(self.task, self._tokenizer, length, text=text, label=label)
        base = engines.describe(self.folder).base_digest
        return reader.split(path, share, cache=cache, base=base)

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """Give the most likely label of each text, or of the picture in each file."""
        if self._sees:
            from learning.images.geometry import Geometry
            from learning.images.shards import pictures_batch

            batch = pictures_batch([Path(text) for text in texts], Geometry.of(self.folder))
            return most_likely(texts, self.task, self.engine.logits(batch.ids, batch.mask))
        return answers(texts, self.task, self._tokenizer, self.engine.logits)
