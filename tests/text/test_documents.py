"""Rows and histories become texts by stated rules; nulls, odd characters and wrong templates have theirs."""

from __future__ import annotations

import string
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_llm.errors import ConfigError, RowError, SchemaError
from recsys_llm.text import clean_text, item_documents, template_columns, user_document

TWO = "{title}. {text}"


def rows(**columns: object) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def render(template: str, **values: object) -> str:
    return item_documents(rows(**{name: [value] for name, value in values.items()}), template, source="items")[0]


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Heat", "A film.", "Heat. A film."),
        ("Heat", "", "Heat."),
        ("Heat", None, "Heat."),
        ("Heat", " \n\t ", "Heat."),
        ("", "A film.", "A film."),
        (None, "A film", "A film"),
        (None, None, ""),
        ("  To \n\n be ", "or\u00a0not", "To be. or not"),
        ("a\x00b", "c\x00", "a b. c"),
        ("{text}", "{0}", "{text}. {0}"),
        ("😀 שלום", "日本", "😀 שלום. 日本"),
    ],
)
def test_the_default_template(title, text, expected):
    assert render(TWO, title=title, text=text) == expected


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("{a} ({b}). {c}", {"a": "x", "b": "1", "c": "z"}, "x (1). z"),
        ("{a} ({b}). {c}", {"a": "x", "b": None, "c": "z"}, "x. z"),
        ("{a} ({b}). {c}", {"a": "x", "b": None, "c": None}, "x."),
        ("{a} ({b}). {c}", {"a": None, "b": "1", "c": "z"}, "(1). z"),
        ("{a}, {b}. {c}", {"a": "x", "b": "", "c": "z"}, "x. z"),
        ("{a}, {b}", {"a": "x", "b": ""}, "x"),
        ("{a}, {b}", {"a": "", "b": "y"}, "y"),
        ("Title: {a}. Plot: {b}", {"a": "x", "b": "y"}, "Title: x. Plot: y"),
        ("Title: {a}. Plot: {b}", {"a": "", "b": "y"}, "Plot: y"),
        ("Title: {a}. Plot: {b}", {"a": "x", "b": ""}, "Title: x."),
        ("{a} by {b}!", {"a": "x", "b": "y"}, "x by y!"),
        ("{a} by {b}!", {"a": "x", "b": ""}, "x!"),
        ("{a} {a}", {"a": "x"}, "x x"),
        ("{{{a}}}", {"a": "x"}, "{x}"),
        ("{a}", {"a": "...!"}, "...!"),
    ],
)
def test_blank_fields_leave_no_dangling_punctuation(template, values, expected):
    assert render(template, **values) == expected


def test_numbers_times_and_dictionaries_have_a_text_form():
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array([1995, None]),
            pa.array([1.5, 2.0]),
            pa.array([True, None]),
            pa.array(["a", None]).dictionary_encode(),
            pa.array([datetime(2020, 1, 2, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
            pa.array(["x", "y"], pa.large_string()),
            pa.nulls(2),
        ],
        names=["year", "price", "new", "kind", "when", "large", "nothing"],
    )
    found = item_documents(batch, "{year} {price} {new} {kind} {when} {large} {nothing}", source="items")
    assert found == ["1995 1.5 true a 2020-01-02 00:00:00.000000Z x", "2 y"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{}", r"expected only column names in braces, found \{\}"),
        ("{0}", r"found \{0\}"),
        ("{title.upper}", r"found \{title.upper\}"),
        ("{title[0]}", r"found \{title\[0\]\}"),
        ("{title!r}", r"found \{title!r\}"),
        ("{title:>99}", r"found \{title:>99\}"),
        ("{title", "write a literal brace"),
        ("title}", "write a literal brace"),
        ("plain words", "at least one column"),
        ("", "at least one column"),
    ],
)
def test_templates_that_are_more_than_column_names_are_refused(template, message):
    with pytest.raises(ConfigError, match=message):
        template_columns(template)
    with pytest.raises(ConfigError, match=message):
        item_documents(rows(title=["x"]), template, source="items")


def test_columns_of_a_template_are_named_once_in_order():
    assert template_columns("{b} {a} {b}") == ("b", "a")


def test_a_missing_column_is_named_with_the_nearest():
    with pytest.raises(SchemaError, match=r"shop.parquet: no column 'titel'.*did you mean 'title'"):
        item_documents(rows(title=["x"]), "{titel}", source="shop.parquet")


@pytest.mark.parametrize("values", [pa.array([["a"]]), pa.array([{"a": 1}]), pa.array([b"a"])])
def test_a_column_without_a_text_form_is_refused(values):
    with pytest.raises(SchemaError, match="shop: column 'title': expected strings or numbers"):
        item_documents(pa.RecordBatch.from_arrays([values], names=["title"]), "{title}", source="shop")


def test_bytes_that_are_no_utf8_are_refused_with_their_row():
    good, bad = b"ok", b"\xed\xa0\x80"
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2, 5)))
    array = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(good + bad)])
    with pytest.raises(RowError, match="shop: row 1 of the batch, column 'title': not valid UTF-8"):
        item_documents(pa.RecordBatch.from_arrays([array], names=["title"]), "{title}", source="shop")


def test_an_empty_batch_has_no_documents():
    batch = pa.RecordBatch.from_arrays([pa.array([], pa.string())], names=["title"])
    assert item_documents(batch, "{title}", source="items") == []


readable = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.tuples(st.none() | readable, st.none() | readable), max_size=8))
def test_documents_are_one_clean_line_that_holds_every_value(pairs):
    batch = pa.RecordBatch.from_arrays(
        [pa.array([pair[side] for pair in pairs], pa.string()) for side in (0, 1)], names=["title", "text"]
    )
    documents = item_documents(batch, TWO, source="items")
    assert len(documents) == len(pairs)
    for document, pair in zip(documents, pairs, strict=True):
        assert document == " ".join(document.split()) and "\x00" not in document
        kept = [" ".join(clean_text(value or "").split()) for value in pair]
        assert all(value in document for value in kept)
        assert bool(document) == any(kept)
        if kept[0] and kept[1]:
            assert document == f"{kept[0]}. {kept[1]}"
    one_by_one = [item_documents(batch.slice(row, 1), TWO, source="items")[0] for row in range(len(pairs))]
    assert one_by_one == documents


@given(st.text(st.characters(), max_size=40))
def test_cleaning_gives_valid_unicode_once_and_for_all(text):
    cleaned = clean_text(text)
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned and "\x00" not in cleaned
    assert clean_text(cleaned) == cleaned
    if not any(character == "\x00" or "\ud800" <= character <= "\udfff" for character in text):
        assert cleaned == text


def words_and_separator(entry):
    return len(entry.split()) + 1


ROOMY = 1000


@pytest.mark.parametrize(
    ("profile", "items", "words", "expected"),
    [
        ("", [], [], ""),
        (" ", ["", "  "], [""], ""),
        ("", ["Toy Story", "Heat"], [], "Toy Story. Heat"),
        ("", ["Toy Story", "Heat"], ["pixar", "fun for all"], "Toy Story. Heat. pixar. fun for all"),
        ("Sweden", ["Toy Story"], ["pixar"], "Sweden. Toy Story. pixar"),
        ("", [], ["pixar"], "pixar"),
        ("", ["a", "b", "a"], ["b", "c"], "a. b. c"),
        ("", [" a\n b "], ["\x00"], "a b"),
    ],
)
def test_user_documents(profile, items, words, expected):
    parts = [([profile], ROOMY), (items, ROOMY), (words, ROOMY)]
    assert user_document(parts, words_and_separator) == expected


@pytest.mark.parametrize(
    ("entries", "tokens", "expected"),
    [
        (["one two three"], 4, "one two three"),
        (["one two three"], 3, "one two"),
        (["one two three"], 1, ""),
        (["one two three"], 0, ""),
        (["one two", "three four five", "six"], 6, "one two. three four"),
        (["one two", "three", "six"], 4, "one two"),
        (["one", "one", "one", "two"], 4, "one. two"),
    ],
)
def test_the_first_entry_that_does_not_fit_is_cut_and_older_ones_are_left_out(entries, tokens, expected):
    assert user_document([(entries, tokens)], words_and_separator) == expected


def test_a_word_that_does_not_fit_alone_is_cut():
    assert user_document([(["日本語の映画"], 3)], len) == "日本語"
    assert user_document([(["a" * 1_000_000], 7)], lambda entry: -(-len(entry) // 4)) == "a" * 28


letters = st.text(string.ascii_letters, min_size=1, max_size=5)


@given(
    st.lists(letters, max_size=6, unique=True),
    st.lists(st.text(string.digits, min_size=1, max_size=5), max_size=6, unique=True),
)
def test_a_user_s_newest_come_first(items, words):
    document = user_document([(items, ROOMY), (words, ROOMY)], words_and_separator)
    assert document.split(". ") == ([*items, *words] or [""])
    if len(items) > 1:
        assert document != user_document([(items[::-1], ROOMY), (words, ROOMY)], words_and_separator)


entries = st.lists(st.lists(letters, min_size=1, max_size=5).map(" ".join), max_size=5)


@given(st.lists(st.tuples(entries, st.integers(0, 12)), max_size=3))
def test_each_part_keeps_to_its_tokens(parts):
    document = user_document(parts, words_and_separator)
    kept = document.split(". ") if document else []
    assert sum(map(words_and_separator, kept)) <= sum(tokens for _, tokens in parts)
    for texts, tokens in parts:
        alone = user_document([(texts, tokens)], words_and_separator)
        assert sum(map(words_and_separator, alone.split(". ") if alone else [])) <= tokens
        distinct = list(dict.fromkeys(texts))
        found = alone.split(". ") if alone else []
        assert found[:-1] == distinct[: len(found) - 1] if found else True
        if found:  # only the last one may be cut
            assert distinct[len(found) - 1].startswith(found[-1])
