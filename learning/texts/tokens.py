"""A base's tokenizer without transformers: the `tokenizers` library and two JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ffm_common.errors import ModelMissing

FILES = ("tokenizer.json", "tokenizer_config.json")


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

        try:
            config = msgspec.json.decode((folder / FILES[1]).read_bytes(), type=dict[str, Any])
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(folder / FILES[0]))
        except Exception as error:  # the library raises plain Exception
            raise ModelMissing(f"{folder} holds no usable tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self.pad_token_id = self._special(config.get("pad_token"))
        self.eos_token_id = self._special(config.get("eos_token"))

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
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return {"input_ids": [each.ids for each in encoded]}

    def _special(self, token: str | dict[str, Any] | None) -> int | None:
        if token is None:
            return None
        text = token if isinstance(token, str) else token["content"]
        number: int | None = self._tokenizer.token_to_id(text)
        return number
