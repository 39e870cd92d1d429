"""A base's tokenizer without transformers: the `tokenizers` library and two JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ffm_common.errors import ModelMissing
from ffm_common.reading import Unreadable, read_json

FILES = ("tokenizer.json", "tokenizer_config.json")
_MOST_BYTES: Final = 64 << 20


class _Added(msgspec.Struct, frozen=True):
    """A token beside the vocabulary."""

    content: Annotated[str, Meta(max_length=1000)]


class _File(msgspec.Struct, frozen=True):
    """What of ``tokenizer.json`` has limits here."""

    added_tokens: Annotated[list[_Added], Meta(max_length=100_000)] = []


class _Token(msgspec.Struct, frozen=True):
    """A special token, as transformers writes it."""

    content: str


class _Config(msgspec.Struct, frozen=True):
    """What of ``tokenizer_config.json`` counts here."""

    pad_token: str | _Token | None = None
    eos_token: str | _Token | None = None


def check(folder: Path) -> None:
    """Look at ``tokenizer.json`` before the library does, whose time grows with squares.

    Raises
    ------
    ModelMissing
        It is too large, too deep, or has tokens that are too long.
    """
    try:
        read_json(folder / FILES[0], _File, most=_MOST_BYTES)
    except (OSError, Unreadable) as error:
        raise ModelMissing(f"{folder / FILES[0]}: {error}") from error


class Tokenizer:
    """Called as a transformers tokenizer is, for what `learning.texts.batches` asks of one.

    Parameters
    ----------
    folder
        Holds ``tokenizer.json`` and ``tokenizer_config.json``.

    Raises
    ------
    ModelMissing
        They are not there, or are not what their names say.
    """

    def __init__(self, folder: Path) -> None:
        import tokenizers

        check(folder)
        try:
            config = read_json(folder / FILES[1], _Config)
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(folder / FILES[0]))
        except Exception as error:  # the library raises plain Exception
            raise ModelMissing(f"{folder} holds no usable tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self.pad_token_id = self._special(config.pad_token)
        self.eos_token_id = self._special(config.eos_token)

    def __call__(
        self,
        texts: Sequence[str],
        *,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        **unasked: bool,
    ) -> dict[str, list[list[int]]]:
        """Give ``{"input_ids": ...}``: each text's tokens, cut to `max_length` if so wanted.

        What else transformers would return is said in `unasked` not to be wanted.
        """
        if any(unasked.values()):
            raise TypeError(f"only input_ids are given, not {', '.join(unasked)}")
        if truncation and max_length is not None:
            self._tokenizer.enable_truncation(max_length)
        else:
            self._tokenizer.no_truncation()
        try:
            encoded = self._tokenizer.encode_batch(
                list(texts), add_special_tokens=add_special_tokens
            )
        except Exception as error:  # the library raises plain Exception
            # Its words are left out: they may quote the text.
            raise ModelMissing("the base's tokenizer cannot be used on texts") from error
        return {"input_ids": [each.ids for each in encoded]}

    def _special(self, token: str | _Token | None) -> int | None:
        if token is None:
            return None
        text = token if isinstance(token, str) else token.content
        number: int | None = self._tokenizer.token_to_id(text)
        return number
