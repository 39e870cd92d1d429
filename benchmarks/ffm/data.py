"""Who holds what: few examples on each device, and public data that is not like theirs."""

from __future__ import annotations

import json
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from benchmarks.models import DATA
from benchmarks.tasks import TaskName, training_set
from ffm_common.seeds import derive
from fleet.partition import split
from learning.texts.data import Example, read_labelled, require_labels

PublicKind: TypeAlias = Literal["part", "other", "phrases", "short"]
Trained: TypeAlias = Literal["lora", "prompt", "full"]

# A device has few examples: with thousands on each there is nothing that public data could add.
_EACH, _HELD_OUT = 100, 20
# Pairs teach so little each that with 80 of them there is nothing to be learned at all.
_EACH_PAIRS = 300
_PUBLIC, _CHECKED = 400, 100
_LONGEST_PHRASE = 5
# Pairs of as many words at most are public, and nobody's else.
_SHORT: dict[TaskName, int] = {"mrpc": 30, "qnli": 24, "mnli": 16}
# Intents of CLINC150 that ask for the same as one of banking77, in other people's words.
_SAME = {
    "card_declined": "declined_card_payment",
    "damaged_card": "card_not_working",
    "exchange_rate": "exchange_rate",
    "expiration_date": "card_about_to_expire",
    "international_fees": "card_payment_fee_charged",
    "new_card": "order_physical_card",
    "pin_change": "change_pin",
    "replacement_card_duration": "card_delivery_estimate",
    "report_fraud": "compromised_card",
    "report_lost_card": "lost_or_stolen_card",
}


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A federation and the public data of its hub.

    Parameters
    ----------
    public
        How it differs from the devices': ``part``, the same source but half of the labels;
        ``other``, CLINC150's wording of ten of banking77's labels; ``phrases``, SST-2's phrases of
        up to five words, in place of sentences; ``short``, the pairs of the fewest words.
    alpha
        How alike the devices' label mixtures are: each is drawn from a Dirichlet distribution with
        this parameter for every label, the convention of most of the literature (NIID-Bench, Li et
        al. 2022). `fleet.partition.split` takes their sum.
    trained
        Kind of the adapter.
    """

    task: TaskName
    public: PublicKind
    agents: int
    alpha: float
    seed: int
    trained: Trained = "lora"

    @property
    def name(self) -> str:
        """A name that tells it from all others."""
        parts = (self.task, self.public, f"{self.agents}", f"{self.alpha:g}", f"{self.seed}")
        return "-".join(parts) + self.suffix

    @property
    def suffix(self) -> str:
        """What names of another adapter than LoRA end with."""
        return "" if self.trained == "lora" else f"-{self.trained}"


class Dealt(msgspec.Struct, frozen=True):
    """The data of a setting; no text is in two places.

    Parameters
    ----------
    devices, own
        What each device trains on, and what it holds out to judge versions by.
    public, check
        What the hub trains on, and what it holds out.
    """

    devices: list[list[Example]]
    own: list[list[Example]]
    public: list[Example]
    check: list[Example]


def deal(setting: Setting, *, each: int | None = None) -> Dealt:
    """Deal a setting's data out; public data depends on task, kind and seed alone.

    Parameters
    ----------
    each
        Examples of a device, those that it holds out included; by default few.
    """
    short = setting.public == "short"
    if each is None:
        each = _EACH_PAIRS if short else _EACH
    examples = training_set(setting.task)
    candidates = _published(setting, examples)
    published = candidates[: _PUBLIC + _CHECKED]
    taken = {example.text for example in (candidates if short else published)}
    private = [example for example in examples if example.text not in taken]
    alpha = setting.alpha * len(require_labels(examples))
    shares = split(
        private, agents=setting.agents, alpha=alpha, public=0, test=0, seed=setting.seed
    ).agents
    return Dealt(
        devices=[share[_HELD_OUT:each] for share in shares],
        own=[share[:_HELD_OUT] for share in shares],
        public=published[_CHECKED:],
        check=published[:_CHECKED],
    )


def _published(setting: Setting, examples: list[Example]) -> list[Example]:
    """Give all that may be public, shuffled."""
    rng = np.random.default_rng(derive(setting.seed, "public", setting.public))
    if setting.public == "part":
        labels = require_labels(examples)
        chosen = set(rng.permutation(labels)[: len(labels) // 2].tolist())
        found = [example for example in examples if example.label in chosen]
    elif setting.public == "other":
        intents = json.loads((DATA / "clinc150" / "data_full.json").read_bytes())["train"]
        found = [Example(text, _SAME[intent]) for text, intent in intents if intent in _SAME]
    elif setting.public == "short":
        most = _SHORT[setting.task]
        found = [example for example in examples if len(example.text.split()) <= most]
    else:
        phrases = read_labelled(DATA / "sst2" / "train.tsv")
        found = [each for each in phrases if len(each.text.split()) <= _LONGEST_PHRASE]
    return [found[place] for place in rng.permutation(len(found))]
