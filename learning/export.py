"""A fully trained model as a plain Hugging Face folder, which needs nothing of this project."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ffm_common.errors import ModelUnsupported, PathUnwritable
from ffm_common.files import make_folder
from learning import adapter, base
from learning.model import Learner
from learning.torch.engine import TorchEngine


def export(folder: Path, out: Path, *, base_folder: Path | None = None) -> None:
    """Write the model of a ``full`` adapter, weights in float32, with its tokenizer.

    ``AutoModelForCausalLM.from_pretrained(out)`` (or the class for its task) opens it.

    Parameters
    ----------
    folder
        The trained adapter.
    out
        A folder that is not there yet.
    base_folder
        The base, if it has moved.

    Raises
    ------
    AdapterInvalid, ModelMissing, ModelDigest
        As `Learner.load`.
    ModelUnsupported
        The adapter is of another kind.
    PathUnwritable
        `out` is there already, or cannot be written.
    """
    from transformers import AutoConfig

    card = adapter.read_card(folder)
    if card.task.adapter.kind != "full":
        raise ModelUnsupported(
            f"{folder} is {card.task.adapter.kind}, which is no model of its own",
            remedy="PEFT opens the folder as it is; `ffm model merge` makes one model of LoRA",
        )
    if out.exists():
        raise PathUnwritable(f"{out} is there already", remedy="name a new folder")
    where = base_folder or Path(card.base)
    engine = Learner.load(folder, where).engine
    assert isinstance(engine, TorchEngine)  # noqa: S101 - no other trains in full
    model = engine.model
    # The dropout is the base's: it was off here only so that a resumed run is the same run.
    made_from = AutoConfig.from_pretrained(str(where), **base.NO_FOREIGN_CODE)
    for name in base.DROPOUTS:
        if hasattr(made_from, name):
            setattr(model.config, name, getattr(made_from, name))
    if card.task.labels:
        model.config.id2label = dict(enumerate(card.task.labels))
        model.config.label2id = {label: at for at, label in enumerate(card.task.labels)}
    make_folder(out.parent)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        model.save_pretrained(part)
        base.load_companion(where).save_pretrained(part)
        base.make_readable(part)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
