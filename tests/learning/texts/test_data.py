"""Labelled text from files: columns found, faults named, nothing silently wrong."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffm_common.errors import (
    DataColumns,
    DataEmpty,
    DataError,
    DataFormat,
    DataLabels,
    DataMissing,
    ExtraMissing,
    PathUnwritable,
)
from learning.texts.data import (
    END_OF_TEXT,
    MAX_TEXT_CHARACTERS,
    PART_CHARACTERS,
    Example,
    Rows,
    label_names,
    load_labelled,
    read_labelled,
    read_texts,
    require_labels,
    stream_texts,
    write_jsonl,
)

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
TWO = [Example("good film", "pos"), Example("bad film", "neg")]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the shared data are not on this machine: {path}")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\ngood film,pos\nbad film,neg\n"),
        ("a.csv", "label,text\r\npos,good film\r\nneg,bad film\r\n"),
        ("a.CSV", '\ufeffid,Sentence,CATEGORY\n1,"good film",pos\n2,bad film,neg\n'),
        ("a.csv", "text;label\ngood film;pos\nbad film;neg"),
        ("a.csv", ",text,label\n0,good film,pos\n1,bad film,neg\n"),
        ("a.tsv", "good film\tpos\nbad film\tneg\n"),
        ("a.tsv", "text\tlabel\n\ngood film\tpos\n\nbad film\tneg\n\n"),
        ("a.tsv", '"good film"\tpos\nbad film\tneg\n'),
        ("a.jsonl", '{"text": "good film", "label": "pos"}\n\n{"label":"neg","text":"bad film"}'),
        ("a.ndjson", '{"id":7,"review":"good film","y":"pos"}\n{"review":"bad film","y":"neg"}'),
    ],
)  # fmt: skip
def test_every_text_format_gives_the_same_examples(tmp_path: Path, name: str, content: str) -> None:
    assert read_labelled(put(tmp_path, name, content)) == TWO


def test_parquet_gives_the_same_examples_and_ignores_columns_that_are_no_text(
    tmp_path: Path,
) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"image": [b"\xff", b"\0"], "boxes": [[1], [2]]}
    columns |= {"text": ["good film", "bad film"], "label": ["pos", "neg"]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = load_labelled(tmp_path / "a.parquet")
    assert found.examples == TWO
    assert found.columns.names == ("text", "label")


def test_typed_labels_become_plain_words(tmp_path: Path) -> None:
    lines = '{"text":"a b","label":%s}\n'
    path = put(tmp_path, "a.jsonl", "".join(lines % x for x in ("0", "true", "1.5", '"x"')))
    assert [example.label for example in read_labelled(path)] == ["0", "true", "1.5", "x"]


def test_rows_without_text_or_label_are_counted_not_fatal(tmp_path: Path) -> None:
    content = "text,label\ngood film,pos\n,pos\nno label,\nshort\na,b,pos\nbad film,neg,\n"
    found = load_labelled(put(tmp_path, "a.csv", content))
    assert found.examples == TWO
    assert found.skipped == 4
    assert "4 rows skipped" in found.describe()
    nulls = '{"text":null,"label":"x"}\n{"text":"t","label":NaN}\n{"text":"t","label":"x"}\n'
    assert load_labelled(put(tmp_path, "a.jsonl", nulls)).skipped == 2


def test_a_text_beyond_the_limit_is_cut_and_counted(tmp_path: Path) -> None:
    content = "text\tlabel\n" + "w" * (MAX_TEXT_CHARACTERS + 1) + "\tx\nshort\ty\n"
    found = load_labelled(put(tmp_path, "a.tsv", content))
    assert [len(example.text) for example in found.examples] == [MAX_TEXT_CHARACTERS, 5]
    assert found.cut == 1


def test_the_log_says_which_columns_were_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    read_labelled(put(tmp_path, "a.csv", "body,topic\ngood film,pos\nbad film,neg\n"))
    assert "2 examples, 2 labels; text from column 'body', label from column 'topic'" in caplog.text


def test_unknown_names_are_guessed_by_the_values(tmp_path: Path) -> None:
    rows = "".join(f"{i},an utterly long piece number {i},{'ab'[i % 2]}\n" for i in range(20))
    columns = load_labelled(put(tmp_path, "a.csv", "nr,zin,klasse\n" + rows)).columns
    assert (columns.names, columns.text, columns.label) == (("nr", "zin", "klasse"), 1, 2)
    assert columns.header
    assert columns.guessed


def test_a_label_that_looks_like_a_column_name_is_not_taken_for_a_header(tmp_path: Path) -> None:
    content = "who is he\tquestion\ngo there\torder\nwho is she\tquestion\n"
    assert len(read_labelled(put(tmp_path, "a.tsv", content))) == 3


@pytest.mark.parametrize(("text", "label"), [("0", "1"), ("0", None), (None, "1")])
def test_columns_without_a_header_are_named_by_position(
    tmp_path: Path, text: str | None, label: str | None
) -> None:
    path = put(tmp_path, "a.tsv", "good film\t1\nbad film\t0\n")
    found = load_labelled(path, text=text, label=label)
    assert found.examples == [Example("good film", "1"), Example("bad film", "0")]
    assert not found.columns.header


def test_named_columns_win_over_the_known_names(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "text,label,premise,kind\na,b,good film,pos\nc,d,bad film,neg\n")
    assert read_labelled(path, text="Premise", label="kind") == TWO


def test_an_absent_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "text,label\ngood film,pos\n")
    with pytest.raises(DataColumns, match=r"no column 'utterance'") as caught:
        read_labelled(path, text="utterance")
    assert "no column 'utterance'; it has 'text', 'label' --" in caught.value.line()
    with pytest.raises(DataColumns, match="no column '2'"):
        read_labelled(path, label="2")
    with pytest.raises(DataColumns, match="same column, number 0"):
        read_labelled(path, text="text", label="text")


@pytest.mark.parametrize(
    ("name", "content", "asked"),
    [
        ("a.csv", "the secret,x\nof one,y\n", {"text": "text"}),  # the first row is no header
        ("a.csv", "the secret,z\n" + "of one,y\n" * 5, {"label": "label"}),  # or is taken for one
        ("a.tsv", "the secret\n", {}),
        ("a.csv", "text,label\nthe secret,\n", {}),
        ("a.jsonl", '{"the secret": "x"}\n', {}),
        ("a.csv", 'text,label\n"the secret,x\n', {}),
        ("a.jsonl", '{"text": "the secret", "label": "x"\n', {}),
        ("a.csv", "text,label\nthe secret" + " x" * 70_000 + ",y\n", {}),
        ("a.csv", b"text,label\nthe secret \xff,y\n", {}),
    ],
)
def test_what_an_error_says_quotes_no_text(
    tmp_path: Path, name: str, content: str | bytes, asked: dict[str, str]
) -> None:
    path = put(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        list(Rows(path, **asked))
    assert "secret" not in caught.value.message
    with pytest.raises(DataError) as caught:
        list(stream_texts(path, text="utterance"))
    assert "secret" not in caught.value.message


def test_what_is_noted_about_a_file_names_columns_by_position(tmp_path: Path) -> None:
    rows = Rows(put(tmp_path, "a.csv", "the secret,z\n" + "of one,y\nof two,x\n" * 5))
    assert len(list(rows)) == 10  # the first row looked like a header
    assert "text from column number 0, label from column number 1" in rows.describe()
    assert "secret" not in rows.describe()


@pytest.mark.parametrize(
    "content",
    [
        "only one column\nof words\nand words\n",
        "id,text\n" + "".join(f"{i},words number {i}\n" for i in range(50)),
    ],
)
def test_columns_that_cannot_be_told_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataColumns, match="cannot tell which column is the label"):
        read_labelled(put(tmp_path, "a.csv", content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", ""), ("a.csv", "\ufeff"), ("a.csv", "\n\n  \n"), ("a.csv", "text,label\n"),
        ("a.tsv", "text\tlabel"), ("a.jsonl", "\n"), ("a.jsonl", '{"text":"a","label":" "}'),
    ],
)  # fmt: skip
def test_a_file_without_an_example_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataEmpty):
        read_labelled(put(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.docx", "text,label\na,b\n", "the ending '.docx' is none of .csv"),
        ("a", "text,label\na,b\n", "the ending ''"),
        ("a.csv", "text,label\ncaf\xe9,b\n".encode("latin-1"), "not UTF-8 at byte 14"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), "not UTF-8 at byte 0"),
        ("a.tsv", b"\xef\xbb\xbfa\tb\nc\0\td\n", "NUL byte at byte 8"),
        ("a.csv", 'text,label\na,b\n"c,d\ne,f\n', "begins at line 3: unexpected end of data"),
        ("a.csv", "text,label\n" + "w" * 140_000 + ",b\n", "field larger than field limit"),
        ("a.csv", "x," * 2000 + "\n", "2001 columns"),
        ("a.jsonl", '{"text":"a","label":"b"}\n{"text":', "line 2 is not JSON"),
        ("a.jsonl", '["a","b"]\n', "line 1 is not a JSON object"),
        ("a.jsonl", '{"text":"\\ud800","label":"b"}\n', "line 1 is not JSON"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("a.parquet", b"PAR1 this is none PAR1", "is not Parquet"),
        ("a.parquet", b"", "is not Parquet"),
    ],
)
def test_a_broken_file_is_refused_and_the_place_named(
    tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    with pytest.raises(DataFormat, match=says):
        read_labelled(put(tmp_path, name, content))


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    with pytest.raises(DataFormat, match="the line at byte 0 has more than"):
        read_labelled(put(tmp_path, "a.tsv", b"x" * (9 << 20)))


def test_a_file_beyond_the_size_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.truncate(600 << 20)
    with pytest.raises(DataFormat, match="600 MiB, the limit is 512 MiB"):
        read_labelled(path)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path, tmp_path / ("n" * 300 + ".csv"), "a\0.csv"):
        with pytest.raises(DataMissing):
            read_labelled(path)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExtraMissing) as caught:
        read_labelled(put(tmp_path, "a.parquet", b"PAR1"))
    assert "pip install 'ffm-edge[data]'" in caught.value.line()


def test_quotes_in_a_corpus_tsv_are_plain_characters(tmp_path: Path) -> None:
    content = '"The end" he said\tx\nan inch is 1"\ty\n"open\tx\nshut"\ty\n'
    texts = [example.text for example in read_labelled(put(tmp_path, "a.tsv", content))]
    assert texts == ['"The end" he said', 'an inch is 1"', '"open', 'shut"']
    spreadsheet = '"The ""end"" he said"\tx\nplain\ty\n'
    assert read_labelled(put(tmp_path, "b.tsv", spreadsheet))[0].text == 'The "end" he said'


def test_fewer_than_two_labels_are_no_classification_task() -> None:
    assert require_labels(TWO) == label_names(TWO) == ["neg", "pos"]
    with pytest.raises(DataLabels, match="only one label: 'pos'"):
        require_labels(TWO[:1])
    with pytest.raises(DataLabels, match="no labels"):
        require_labels([])


def test_an_unwritable_place_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(PathUnwritable):
        write_jsonl(tmp_path / "absent" / "a.jsonl", TWO)
    assert list(tmp_path.iterdir()) == []


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).map(str.strip).filter(bool)


@given(st.lists(st.builds(Example, words, words), min_size=1, max_size=20))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, examples: list[Example]
) -> None:
    path = tmp_path_factory.mktemp("written") / "a.jsonl"
    write_jsonl(path, examples)
    assert read_labelled(path) == examples


@given(st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]), st.binary(max_size=200))
def test_any_bytes_give_examples_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, ending: str, content: bytes
) -> None:
    path = put(tmp_path_factory.mktemp("any"), "a" + ending, content)
    try:
        examples = read_labelled(path)
    except DataError:
        return
    assert all(example.text and example.label for example in examples)


@given(
    st.sampled_from([".csv", ".tsv", ".jsonl"]),
    st.text(st.sampled_from('ab1",;\t\n\r {}:[]\\utextlabel'), max_size=120),
)
def test_any_punctuation_gives_examples_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, ending: str, content: str
) -> None:
    path = put(tmp_path_factory.mktemp("any"), "a" + ending, content)
    try:
        examples = read_labelled(path)
    except DataError:
        return
    assert all(example.text and example.label for example in examples)


@pytest.mark.parametrize(
    ("name", "rows", "labels", "taken"),
    [
        ("banking77/train.csv", 10003, 77, ("text", "category")),
        ("sst2/sentences_train.tsv", 6920, 2, ("0", "1")),
        ("sst2/train.tsv", 67349, 2, ("sentence", "label")),
        ("sst2/dev.tsv", 872, 2, ("content", "label")),
        ("qnli/dev.tsv", 5463, 2, ("sentence", "label")),
        ("mnli/mnli_dev_matched.jsonl", 9815, 3, ("premise", "label")),
    ],
)
def test_published_datasets_are_read_whole(
    name: str, rows: int, labels: int, taken: tuple[str, str]
) -> None:
    found = load_labelled(shared(name))
    columns = found.columns
    assert (len(found.examples), len(label_names(found.examples))) == (rows, labels)
    assert (columns.names[columns.text], columns.names[columns.label]) == taken
    assert found.skipped == 0


def test_published_files_under_other_names_are_read_too(tmp_path: Path) -> None:
    spam = put(tmp_path, "spam.tsv", shared("sms_spam/SMSSpamCollection").read_bytes())
    assert label_names(load_labelled(spam).examples) == ["Ham", "Spam"]
    pairs = put(tmp_path, "mrpc.tsv", shared("mrpc/msr_paraphrase_train.txt").read_bytes())
    found = load_labelled(pairs)
    assert len(found.examples) == 4076
    assert label_names(found.examples) == ["0", "1"]


@given(
    st.lists(st.text(alphabet=" \nab\u00e9<", max_size=40), max_size=6),
    st.integers(0, 3),
)
def test_documents_are_what_splitting_the_whole_file_gives(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], blank: int
) -> None:
    content = END_OF_TEXT.join([*texts, " " * blank])
    path = tmp_path_factory.mktemp("texts") / "a.txt"
    path.write_text(content, newline="")
    wanted = [part.strip() for part in content.split(END_OF_TEXT) if part.strip()]
    if wanted:
        assert read_texts(path) == wanted
    else:
        with pytest.raises(DataEmpty, match="no text"):
            read_texts(path)


@pytest.mark.parametrize("unit", ["a line of words\n", "words and words ", "x"])
def test_a_long_document_comes_in_parts_that_lose_nothing(tmp_path: Path, unit: str) -> None:
    long = (unit * (3 * PART_CHARACTERS // len(unit) + 7)).strip()
    path = put(tmp_path, "a.txt", f"first\n{END_OF_TEXT}\n  {long}\n\n{END_OF_TEXT}\nlast\n")
    parts = list(stream_texts(path))
    assert max(len(part.text) for part in parts) <= PART_CHARACTERS
    assert sum(part.last for part in parts) == 3
    assert len(parts) > 5
    assert read_texts(path) == ["first", long, "last"]
    if unit != "x":  # a part ends where a line or a word does
        assert all(part.last or part.text[-1] in "\nsd" for part in parts)


def test_texts_of_a_table_come_from_its_column(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "id,body\n1, one \n2,\n3,three\n")
    assert read_texts(path, text="body") == ["one", "three"]
    with pytest.raises(DataColumns, match="no column 'text'") as caught:
        list(stream_texts(path))
    assert "it has id, body" in caught.value.line()


def test_rows_come_one_by_one_and_an_error_when_it_is_reached(tmp_path: Path) -> None:
    head = "text,label\n" + "good film,pos\nbad film,neg\n" * 600
    rows = Rows(put(tmp_path, "a.csv", head.encode() + b"\xff\xfe,pos\n"))
    found: list[Example] = []
    with pytest.raises(DataFormat, match="UTF-8"):
        found.extend(rows)
    assert len(found) == 1200
    rows = Rows(put(tmp_path, "b.csv", head + ",pos\n"))
    assert next(iter(rows)) == Example("good film", "pos")
    assert len(list(rows)) == 1199
    assert "1 rows skipped" in rows.describe()
    assert "1200 examples, 2 labels" in rows.describe()
