"""A dataset dealt to a fleet: nothing twice, nothing lost, the same each time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffm_common.errors import ConfigInvalid, DataLabels, DataScarce
from fleet.partition import HANDFUL, Split, split
from learning.texts.data import Example, label_names, load_labelled

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def dataset(counts: dict[str, int]) -> list[Example]:
    return [
        Example(f"{label} number {i}", label)
        for label, count in counts.items()
        for i in range(count)
    ]


def parts(dealt: Split) -> list[Example]:
    return [*dealt.test, *dealt.public, *(example for own in dealt.agents for example in own)]


counts = st.dictionaries(st.sampled_from("abcdefg"), st.integers(8, 80), min_size=2, max_size=7)
wishes = st.fixed_dictionaries(
    {
        "agents": st.integers(1, 30),
        "alpha": st.floats(1e-12, 1e9),
        "public": st.integers(0, 200),
        "test": st.integers(0, 200),
        "seed": st.integers(0, 2**64),
    }
)


@given(counts, wishes, st.randoms(use_true_random=False))
def test_every_text_is_in_one_place_and_the_order_of_the_file_does_not_matter(
    counts: dict[str, int], wishes: dict[str, int], shuffler: object
) -> None:
    examples = dataset(counts)
    try:
        dealt = split(examples, **wishes)
    except DataScarce:
        assert len(examples) < wishes["agents"] * HANDFUL + 2 * len(counts)
        return
    assert sorted(parts(dealt)) == sorted(examples)
    shuffler.shuffle(examples)  # type: ignore[attr-defined]
    assert split(examples, **wishes) == dealt


@given(counts, wishes)
def test_every_agent_has_a_handful_and_all_have_as_many(
    counts: dict[str, int], wishes: dict[str, int]
) -> None:
    try:
        sizes = [len(own) for own in split(dataset(counts), **wishes).agents]
    except DataScarce:
        return
    assert len(sizes) == wishes["agents"]
    assert min(sizes) >= HANDFUL
    assert max(sizes) - min(sizes) <= 1


@given(counts, wishes)
def test_test_and_public_are_balanced_and_leave_half_of_each_label(
    counts: dict[str, int], wishes: dict[str, int]
) -> None:
    dealt = split(dataset(counts), **(wishes | {"agents": 1}))
    assert len(dealt.test) <= wishes["test"]
    assert len(dealt.public) <= wishes["public"]
    tested = Counter(example.label for example in dealt.test)
    held = tested + Counter(example.label for example in dealt.public)
    assert all(held[label] <= counts[label] // 2 for label in counts)
    smallest = min(counts.values()) // 2
    if len(dealt.test) + len(dealt.public) <= smallest:  # no label at its limit
        assert max(tested.values(), default=0) - min(tested[label] for label in counts) <= 1


def test_a_large_test_set_leaves_a_text_to_publish() -> None:
    dealt = split(dataset({"a": 9, "b": 9}), agents=1, alpha=1.0, public=1, test=8, seed=0)
    assert (len(dealt.public), len(dealt.test)) == (1, 7)


def test_what_is_asked_is_given_where_there_is_enough() -> None:
    dealt = split(
        dataset(dict.fromkeys("abcde", 100)), agents=7, alpha=1.0, public=50, test=101, seed=0
    )
    assert (len(dealt.public), len(dealt.test)) == (50, 101)
    assert set(Counter(example.label for example in dealt.public).values()) == {10}
    assert sorted(Counter(example.label for example in dealt.test).values()) == [20, 20, 20, 20, 21]
    assert {len(own) for own in dealt.agents} == {49, 50}


def test_scarce_data_shrink_public_and_test_in_proportion() -> None:
    dealt = split(dataset({"a": 60, "b": 60}), agents=10, alpha=1.0, public=100, test=300, seed=0)
    assert (len(dealt.public), len(dealt.test)) == (10, 30)
    assert sum(map(len, dealt.agents)) == 80


def test_a_small_alpha_makes_agents_unlike_and_a_large_one_alike() -> None:
    examples = dataset(dict.fromkeys("abcdefghij", 200))

    def labels_each(alpha: float) -> float:
        dealt = split(examples, agents=20, alpha=alpha, public=0, test=0, seed=5)
        return sum(len(label_names(own)) for own in dealt.agents) / 20

    assert labels_each(0.01) < 4 < labels_each(1.0) < labels_each(1000.0) == 10


def test_a_text_that_comes_again_is_dealt_once() -> None:
    examples = dataset({"a": 40, "b": 40})
    again = [Example(f"  {e.text.upper()} ", e.label) for e in examples]
    dealt = split([*again, *examples], agents=2, alpha=1.0, public=10, test=10, seed=0)
    assert len(parts(dealt)) == 80
    assert len({e.text.strip().lower() for e in parts(dealt)}) == 80
    assert dealt.duplicates == 80


def test_another_seed_deals_otherwise() -> None:
    examples = dataset({"a": 40, "b": 40})
    first, second = (
        split(examples, agents=2, alpha=1.0, public=10, test=10, seed=seed) for seed in (0, 1)
    )
    assert first != second


def test_too_small_a_dataset_says_what_would_do() -> None:
    examples = dataset({"a": 20, "b": 20})
    with pytest.raises(DataScarce) as caught:
        split(examples, agents=10, alpha=1.0, public=10, test=10, seed=0)
    assert "give 84 or more or ask for 4 agents at most" in caught.value.line()
    assert split(examples, agents=4, alpha=1.0, public=10, test=10, seed=0).test
    enough = dataset({"a": 42, "b": 42})
    assert split(enough, agents=10, alpha=1.0, public=10, test=10, seed=0).test


def test_labels_of_one_text_each_cannot_be_held_out() -> None:
    examples = [Example(f"text {i}", f"label {i}") for i in range(60)]
    with pytest.raises(DataScarce, match="no label of 60"):
        split(examples, agents=1, alpha=1.0, public=0, test=10, seed=0)


def test_one_label_is_no_task() -> None:
    with pytest.raises(DataLabels):
        split(dataset({"a": 100}), agents=2, alpha=1.0, public=0, test=0, seed=0)


@pytest.mark.parametrize(
    "wrong",
    [{"agents": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"alpha": float("inf")},
     {"public": -1}, {"test": -1}, {"seed": -1}],
)  # fmt: skip
def test_an_argument_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    wishes: dict[str, float] = {"agents": 2, "alpha": 1.0, "public": 0, "test": 0, "seed": 0}
    with pytest.raises(ConfigInvalid, match=f"{next(iter(wrong))} is "):
        split(dataset({"a": 40, "b": 40}), **(wishes | wrong))  # type: ignore[arg-type]


def test_a_published_dataset_of_77_labels_is_dealt_to_fifty_agents() -> None:
    path = SHARED / "banking77" / "train.csv"
    if not path.exists():
        pytest.skip(f"the shared data are not on this machine: {path}")
    examples = load_labelled(path).examples
    dealt = split(examples, agents=50, alpha=0.5, public=770, test=1540, seed=0)
    assert (len(dealt.public), len(dealt.test)) == (770, 1540)
    for part, even in ((dealt.public, 10), (dealt.test, 20)):
        sizes = Counter(example.label for example in part)
        # A handful of labels have too few texts (the rarest 35); the others fill their place.
        assert len(sizes) == 77
        assert max(sizes.values()) <= even + 1
        assert sum(size >= even for size in sizes.values()) >= 70
    assert len(parts(dealt)) + dealt.duplicates == 10003
