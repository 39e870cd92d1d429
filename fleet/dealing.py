"""A dataset of the user's, or docstrings of this machine, dealt to a hub and its agents."""

from __future__ import annotations

from pathlib import Path

from fleet.layout import Layout
from fleet.partition import Split, split
from fleet.table import Screen
from learning.texts.data import Example, label_names, load_labelled, require_labels

_PER_AREA = 300
_TEST, _PUBLIC, _PUBLIC_PER_LABEL = 400, 100, 10


def deal(
    data: Path | None,
    layout: Layout,
    screen: Screen,
    *,
    text: str | None,
    label: str | None,
    agents: int,
    alpha: float,
    seed: int,
) -> Split:
    """Read or collect the data and deal it out; the first thing, so that bad data stops here.

    Parameters
    ----------
    data, text, label
        Own labelled text and its columns; None: docstrings of this machine's Python.
    alpha
        Dirichlet parameter; smaller is less alike.

    Raises
    ------
    DataError
        Its leaves say what is wrong with the data.
    """
    if data is None:
        from fleet.docstrings import collect

        screen.say("collecting docstrings of this machine's Python")
        examples: list[Example] = collect(_PER_AREA, seed, cache=layout.out.parent / "cache")
    else:
        labelled = load_labelled(data, text=text, label=label)
        screen.say(f"{data}: {labelled.describe()}")
        examples = labelled.examples
    require_labels(examples)
    labels = label_names(examples)
    parts = split(
        examples,
        agents=agents,
        alpha=alpha,
        public=max(_PUBLIC, _PUBLIC_PER_LABEL * len(labels)),
        test=max(_TEST, 4 * len(labels)),
        seed=seed,
    )
    sizes = ", ".join(str(len(shard)) for shard in parts.agents)
    screen.say(
        f"{len(labels)} labels; private examples per agent: {sizes}; "
        f"public {len(parts.public)}, held out {len(parts.test)}; to {layout.out}"
    )
    return parts
