from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffm_common import config
from ffm_common.config import Config
from ffm_common.errors import ConfigError, ConfigInvalid, ConfigMissing, ConfigSyntax


class Inner(Config, frozen=True, kw_only=True):
    size: Annotated[int, msgspec.Meta(ge=1)] = 1
    name: str = "x"


class Outer(Config, frozen=True, kw_only=True):
    rate: Annotated[float, msgspec.Meta(gt=0, le=1)]
    inner: Inner = Inner()
    maybe: Inner | None = None
    words: tuple[str, ...] = ()


KEY = st.sampled_from(["rate", "inner", "maybe", "words", "size", "name", "typo"])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
TREE = st.recursive(PLAIN, lambda x: st.lists(x, max_size=2) | st.dictionaries(KEY, x, max_size=2))


def load(folder: Path, text: str) -> Outer:
    path = folder / "some.toml"
    path.write_text(text)
    return config.load(path, Outer)


def test_a_file_becomes_a_frozen_struct(tmp_path: Path) -> None:
    found = load(tmp_path, 'rate = 1\nwords = ["a", "b"]\n[inner]\nsize = 3\n')
    assert found == Outer(rate=1.0, inner=Inner(size=3), words=("a", "b"))
    with pytest.raises(AttributeError):
        found.rate = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rate = 1\nrat = 2\n", "unknown key rat (allowed here: rate, inner, maybe, words)"),
        ("rate = 1\n[inner]\nsiz = 2\n", "unknown key inner.siz (allowed here: size, name)"),
        ("rate = 1\n[maybe]\nsiz = 2\n", "unknown key maybe.siz (allowed here: size, name)"),
        ("", "missing key rate"),
        ('rate = "fast"\n', "rate: Expected `float`, got `str`"),
        ("rate = 0\n", "rate: Expected `float` > 0.0"),
        ("rate = nan\n", "rate: Expected `float` > 0.0"),
        ("rate = inf\n", "rate: Expected `float` <= 1.0"),
        ("rate = true\n", "rate: Expected `float`, got `bool`"),
        ("rate = 1\n[inner]\nsize = 0\n", "inner.size: Expected `int` >= 1"),
        ("rate = 1\n[inner]\nsize = 1.5\n", "inner.size: Expected `int`, got `float`"),
        ("rate = 1\nwords = [1]\n", "words[0]: Expected `str`, got `int`"),
        ("rate = 1\ninner = 3\n", "inner: Expected `object`, got `int`"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, text)
    assert caught.value.message == f"{tmp_path / 'some.toml'}: {said}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigMissing, match=str(tmp_path / "no.toml")):
        config.load(tmp_path / "no.toml", Outer)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigMissing, match="directory"):
        config.load(tmp_path, Outer)


@pytest.mark.parametrize("raw", [b"rate = ", b"rate = 1\nrate = 2\n", b"\xff\xfe", b"\x00", b"[["])
def test_what_is_not_toml_is_said_with_its_file(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigSyntax, match=str(path)):
        config.load(path, Outer)


def test_a_file_beyond_a_megabyte_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigSyntax, match="larger than"):
        load(tmp_path, "rate = 1\n#" + "x" * (1 << 20))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_config_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(raw)
    with contextlib.suppress(ConfigError):
        config.load(path, Outer)


@given(st.dictionaries(KEY, TREE, max_size=4))
def test_any_values_are_a_config_or_a_config_error(values: dict[str, Any]) -> None:
    try:
        found = config.convert(values, Outer, source="x.toml")
    except ConfigError as error:
        assert error.message.startswith("x.toml: ")  # noqa: PT017
        assert "\n" not in error.message  # noqa: PT017
    else:
        assert 0 < found.rate <= 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("words = " + "[" * 20_000 + "]" * 20_000, "nested too deeply"),
        ("inner = " + "{a=" * 20_000 + "1" + "}" * 20_000, "nested too deeply"),
        ("rate = " + "9" * 5000, "4300"),
        ("a." * 100_000 + "a = 1", "more than 16 parts"),
        ("[" + ' "a\\"" .' * 100_000 + "b]", "more than 16 parts"),
        ("inner = { " + "a . " * 100_000 + "a = 1 }", "more than 16 parts"),
    ],
)
def test_a_file_that_would_take_all_time_or_memory_is_no_toml_here(
    tmp_path: Path, text: str, says: str
) -> None:
    began = time.process_time()
    with pytest.raises(ConfigSyntax, match=says):
        load(tmp_path, text)
    assert time.process_time() - began < 2


def test_long_texts_with_many_dots_are_no_deep_keys(tmp_path: Path) -> None:
    text = "rate = 1\n" + 'words = ["' + "a.b." * 100 + '", "c.d"]\n# ' + "x." * 100 + "\n"
    assert len(load(tmp_path, text).words) == 2


class Loose(Config, frozen=True, kw_only=True):
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    count: int = 0
    more: dict[str, list[float]] | None = None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seconds = inf", "seconds"),
        ("seconds = 1e999", "seconds"),
        ("more = {a = [1.0, nan]}", r"more\.a"),
        ("count = 99999999999999999999", "count"),
    ],
)
def test_numbers_that_nothing_can_reckon_with_are_refused_by_key(
    tmp_path: Path, text: str, key: str
) -> None:
    path = tmp_path / "some.toml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=rf"some\.toml: {key}: a number that is infinite"):
        config.load(path, Loose)
