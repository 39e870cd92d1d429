"""Real text that every machine has: docstrings, to be told apart by subject area.

The sources of the standard library and of the installed packages are parsed, never imported. An
area is a row of a plain table; the names that would give it away are masked.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import random
import re
import sys
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from ffm_common.errors import ConfigInvalid, DataError, DataScarce
from ffm_common.files import make_folder, sha256_file
from learning.texts.data import Example, read_labelled, write_jsonl

# Area -> modules and packages; of a package, every module below it. What is absent is left out.
AREAS: dict[str, str] = {
    "code and packaging": (
        "ast compileall dis distutils ensurepip importlib inspect modulefinder opcode pickletools"
        " pkgutil py_compile pyclbr runpy symtable tokenize typing venv zipapp"
        " packaging pycparser setuptools mypy mypyc.irbuild"
    ),
    "concurrency": (
        "asyncio concurrent multiprocessing queue sched selectors signal subprocess threading"
        " psutil"
    ),
    "deep learning": (
        "accelerate bitsandbytes peft torch.nn torch.optim transformers.generation"
        " transformers.modeling_utils transformers.trainer transformers.optimization"
        " transformers.pipelines transformers.quantizers transformers.models.llama"
    ),
    "files and storage": (
        "_pyio bz2 dbm filecmp fileinput genericpath glob gzip lzma ntpath os pathlib"
        " posixpath shelve shutil sqlite3 stat tarfile tempfile zipfile"
        " filelock fsspec pathspec pyarrow.dataset pyarrow.fs pyarrow.parquet"
    ),
    "graphs": "graphlib networkx.algorithms networkx.classes networkx.generators",
    "mathematics": (
        "_pydecimal fractions numbers random statistics"
        " mpmath numpy.fft numpy.lib numpy.linalg numpy.ma numpy.polynomial numpy._core.fromnumeric"
        " numpy._core.numeric sympy.functions sympy.ntheory"
    ),
    "networking": (
        "ftplib http imaplib ipaddress nntplib poplib smtplib socket socketserver ssl telnetlib"
        " urllib wsgiref xmlrpc amqtt paho requests urllib3 websockets"
    ),
    "plotting and graphics": (
        "tkinter turtle PIL matplotlib mpl_toolkits"
    ),
    "testing and debugging": (
        "bdb cProfile doctest faulthandler logging pdb profile pstats timeit trace traceback"
        " tracemalloc unittest warnings _pytest hypothesis numpy.testing"
    ),
    "text processing": (
        "base64 codecs configparser csv difflib gettext html json pprint quopri re shlex"
        " string textwrap xml charset_normalizer jinja2 markdown_it pygments pyparsing yaml"
    ),
}  # fmt: skip

FEWEST_PER_AREA = 60
SHORTEST, LONGEST = 40, 300

_ENOUGH = 120
_FILES_PER_MODULE = 40
_FILE_BYTES = 1 << 20
_MASK = "X"
_NOT_PARSED = {"test", "tests", "_vendor", "vendored", "conftest.py", "lexers", "__pycache__"}
_LETTERS = 0.7
# These words give an area away wherever they stand; other names only in their own package.
_TELLING = "matplotlib|mpl|networkx|np|numpy|nx|pyplot|pytest|pytorch|torch"

_END_OF_PROSE = re.compile(
    r"^\s*(?:>>>|\.\. |:\w+[^:]*:\s|@\w+|[-=~^*]{3,}\s*$|\|"
    r"|(?:args?|arguments|parameters?|params|returns?|raises|yields?|examples?|notes?|usage"
    r"|attributes|keyword arguments|see also|references|todo|inputs?|outputs?)\s*:{1,2}\s*$)",
    re.IGNORECASE | re.MULTILINE,
)
_UNDERLINED = re.compile(r"^[^\n]+\n\s*[-=~^]{3,}\s*$", re.MULTILINE)
_SIGNATURE = re.compile(r"^[\w.]+\([^\n]*\)(?:\s*(?:->|=>|:)[^\n]*)?$", re.MULTILINE)
_ROLE = re.compile(r":[\w:]+:`~?([^`<]*?)\s*(?:<[^`]*>)?`")
_LINK = re.compile(r"https?://\S+")


def collect(limit_per_area: int, seed: int, cache: Path | None = None) -> list[Example]:
    """Collect docstrings of this machine's Python, labelled by subject area.

    The text is the beginning of a function's or class's docstring, `SHORTEST` to `LONGEST`
    characters long. Areas with fewer than `FEWEST_PER_AREA` texts (packages missing) are left out.
    The same installation and arguments give the same list, sorted.

    Parameters
    ----------
    limit_per_area
        At most so many of each area, 1 or more, spread evenly over its modules.
    seed
        Of the choice where there are more.
    cache
        A folder to keep the result in; it is used again while the sources stay as they are.

    Raises
    ------
    ConfigInvalid
        `limit_per_area` is below 1.
    DataScarce
        Fewer than two areas have enough: this Python comes without sources.
    PathUnwritable
        The cache folder takes no file.
    """
    if limit_per_area < 1:
        raise ConfigInvalid(f"limit_per_area is {limit_per_area}, it must be 1 or more")
    sources = {
        area: {module: _sources(module) for module in modules.split()}
        for area, modules in AREAS.items()
    }
    if cache is None:
        return _choose(sources, limit_per_area, seed)
    kept = make_folder(cache) / f"docstrings-{_digest(sources, limit_per_area, seed)}.jsonl"
    if kept.exists():
        try:
            return read_labelled(kept, text="text", label="label")
        except DataError:
            pass  # damaged from outside: made again below
    examples = _choose(sources, limit_per_area, seed)
    write_jsonl(kept, examples)
    return examples


def _sources(module: str) -> list[Path]:
    """Give the source files of a module or package, sorted; none if it is not installed."""
    top, *below = module.split(".")
    # The standard library is looked up in its own folder, so that a file beside the user's script
    # with the same name does not hide it. PathFinder finds without importing.
    own = [sysconfig.get_path("stdlib")] if top in sys.stdlib_module_names else None
    spec = PathFinder.find_spec(top, own)
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        files = [Path(spec.origin)] if spec.origin else []
    else:
        files = []
        for folder in spec.submodule_search_locations:
            place = Path(folder).joinpath(*below)
            files += (
                [place.with_suffix(".py"), *place.rglob("*.py")] if below else place.rglob("*.py")
            )
        files = [file for file in files if _NOT_PARSED.isdisjoint(file.relative_to(folder).parts)]
    files = sorted(
        file
        for file in set(files)
        if file.suffix == ".py"
        and not file.name.startswith("test_")
        and file.is_file()
        and file.stat().st_size <= _FILE_BYTES
    )
    return files[:: -(-len(files) // _FILES_PER_MODULE) or 1]


def _digest(sources: dict[str, dict[str, list[Path]]], limit: int, seed: int) -> str:
    """Name a result by all that it depends on."""
    digest = hashlib.sha256(f"{sha256_file(Path(__file__))} {limit} {seed}".encode())
    for modules in sources.values():
        for files in modules.values():
            for file in files:
                state = file.stat()
                digest.update(f"\n{file} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _choose(sources: dict[str, dict[str, list[Path]]], limit: int, seed: int) -> list[Example]:
    found: dict[str, list[list[str]]] = {}
    areas_of: defaultdict[str, set[str]] = defaultdict(set)
    for area, modules in sources.items():
        found[area] = []
        for module, files in modules.items():
            texts = {_essence(text): text for file in files for text in _texts(file, module)}
            found[area].append([texts[key] for key in sorted(texts)])
            for key in texts:
                areas_of[key].add(area)
    rng = random.Random(seed)  # noqa: S311 - a choice of examples, no secret
    examples: list[Example] = []
    for area, pools in found.items():
        seen: set[str] = set()
        for pool in pools:
            # What is said in two areas belongs to neither.
            pool[:] = [text for text in pool if len(areas_of[_essence(text)]) == 1]
            rng.shuffle(pool)
        chosen: list[str] = []
        while len(chosen) < limit and any(pools):
            for pool in filter(None, pools):
                text = pool.pop()
                if _essence(text) not in seen:
                    seen.add(_essence(text))
                    chosen.append(text)
        if len(chosen) >= min(limit, FEWEST_PER_AREA):
            examples += [Example(text=text, label=area) for text in chosen[:limit]]
    if len({example.label for example in examples}) < 2:  # noqa: PLR2004 - nothing to tell apart
        raise DataScarce(
            "too few docstrings are installed with this Python",
            remedy="use a Python that comes with its sources, or give a data file",
        )
    return sorted(examples)


def _essence(text: str) -> str:
    """Reduce a text to its words, so that x and y versions of one sentence count once."""
    return " ".join(word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 2)  # noqa: PLR2004


def _texts(file: Path, module: str) -> Iterator[str]:
    names = _mask(module, file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # templates and sources for another Python
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = _prose(ast.get_docstring(node, clean=False) or "", names)
            if text is not None:
                yield text


def _mask(module: str, file: Path) -> re.Pattern[str]:
    """Match the names of a package and module, dotted or not."""
    top = module.split(".", maxsplit=1)[0].strip("_")
    if top in sys.stdlib_module_names or module.strip("_") == "pydecimal":
        own = {top, top.removeprefix("py"), file.stem.strip("_")}
        # Case matters: `http` is the module, HTTP is the thing it is about.
        names = "|".join(map(re.escape, sorted(own - {"init", ""})))
        return re.compile(rf"\b(?:{names}|(?i:{_TELLING}))(?:\.\w+)*\b")
    return re.compile(rf"\b(?:{re.escape(top)}|{_TELLING})(?:\.\w+)*\b", re.IGNORECASE)


def _prose(doc: str, names: re.Pattern[str]) -> str | None:
    """Give the cleaned beginning of a docstring; None if it says too little."""
    doc = inspect.cleandoc(doc)
    for end in (_END_OF_PROSE.search(doc), _UNDERLINED.search(doc)):
        if end is not None:
            doc = doc[: end.start()]
    text = ""
    for paragraph in re.split(r"\n\s*\n", _SIGNATURE.sub("", doc)):
        text = f"{text} {' '.join(paragraph.split())}".strip()
        if len(text) >= _ENOUGH:
            break
    text = _LINK.sub("", _ROLE.sub(r"\1", text))
    text = names.sub(_MASK, re.sub(r"[`*]+", "", text))
    text = " ".join(text.split()).rstrip(":")
    if len(text) > LONGEST:
        text = text[: LONGEST + 1].rsplit(" ", 1)[0]
    letters = sum(character.isalpha() or character == " " for character in text)
    if not SHORTEST <= len(text) <= LONGEST or letters < _LETTERS * len(text):
        return None
    return text
