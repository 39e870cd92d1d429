"""What is fed to the fuzzer: a parser, some valid inputs, and what makes a spoilt one plausible."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.fuzz.mutate import Form


class Subject(NamedTuple):
    """A parser that is ready.

    Attributes
    ----------
    parse
        Takes any bytes; gives a result or raises an `FfmError` of a code. It may check the result,
        too: a failed assertion is a finding like any other.
    seeds
        Valid inputs by name.
    form
        How they are spoilt.
    mend
        Sets right what would otherwise end nearly all inputs at the first check.
    """

    parse: Callable[[bytes], object]
    seeds: Mapping[str, bytes]
    form: Form = "bytes"
    mend: Callable[[bytes, random.Random], bytes] | None = None


class Parser(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the list in `benchmarks.fuzz.parsers`.

    Parameters
    ----------
    name
        Also of its folder in the corpus.
    make
        Builds it, given a folder for its files.
    inputs
        Its share of the inputs in all.
    memory_mb
        What it may take above what it holds when all seeds have been parsed once.
    """

    name: str
    make: Callable[[Path], Subject]
    inputs: int
    memory_mb: int = 64
