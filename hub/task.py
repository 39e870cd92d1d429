"""The federation's task: what hub.toml says, with the labels of the hub's own data."""

from __future__ import annotations

from ffm_common.task import Task
from hub.config import Located
from learning.texts.data import Rows, require_labels


def task_of(located: Located) -> Task:
    """Build the task; a classification's labels are those of the hub's own data.

    Raises
    ------
    DataError
        That data cannot be used; the leaf says why.
    """
    config, public = located.config, located.config.public
    labels: list[str] = []
    # The files of a folder come and go; what is learned does not.
    whole = [] if located.train.is_dir() else [located.train]
    if config.task == "image-classification":
        from learning.images.pictures import labels_of

        labels = labels_of([*whole, located.evaluation])
    elif config.task == "classification":
        labels = require_labels(
            example
            for path in (*whole, located.evaluation)
            for example in Rows(path, text=public.text, label=public.label)
        )
    return Task(
        kind=config.task,
        labels=tuple(labels),
        adapter=config.adapter,
        training=config.training,
        seed=config.seed,
    )
