"""What an encoder reads: an item's row by a template, a user's history in words."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from recsys_llm.errors import ConfigError, RowError, SchemaError, did_you_mean

_UNREADABLE = re.compile("[\x00\ud800-\udfff]")
_SEPARATOR = re.compile(r"[\W_]*")
_OPENING, _CLOSING = "([{", ")]}"
_SENTENCE_ENDS = ".!?"

SEPARATOR = ". "
"""Between the entries of a user's text."""
LONGEST_TOKEN = 32
"""Characters of a token at most, when a word is cut that is too long by itself."""


def clean_text(text: str) -> str:
    r"""Return ``text`` without what no tokenizer or file can hold.

    NUL becomes a space, a surrogate pair the character that it stands for, a lone surrogate U+FFFD. Everything else
    (emoji, right-to-left marks, any script) is kept.

    Examples
    --------
    >>> clean_text("a\x00b"), clean_text("\ud83d\ude00") == "\U0001f600", clean_text("\ud83d!")
    ('a b', True, '�!')
    """
    if _UNREADABLE.search(text) is None:
        return text
    return text.replace("\x00", " ").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def template_columns(template: str) -> tuple[str, ...]:
    """Return the columns that a template reads, in order of first use.

    Raises
    ------
    ConfigError
        The template has no field, an unmatched brace, or a field that is more than a column's name: positional,
        attribute or index access, a conversion or a format specification.

    Examples
    --------
    >>> template_columns("{title}. {text}")
    ('title', 'text')
    """
    return tuple(dict.fromkeys(field.column for field in _parse(template).fields))


def item_documents(batch: pa.RecordBatch, template: str, *, source: str) -> list[str]:
    """Return one text per row of ``batch``.

    Whitespace runs become one space. A null or blank field is left out together with the separator and the label before
    it (``"{title}. Plot: {text}"`` without a text is ``"Title."``), so no dangling punctuation remains; a row without
    any value is ``""``. Numbers, booleans and times are written as Arrow casts them to strings.

    Parameters
    ----------
    batch
        Rows with at least the columns of ``template``.
    template
        Python format string with column names only, such as ``"{title}. {text}"``; ``{{`` and ``}}`` are braces.
    source
        Where the rows come from; only for messages.

    Raises
    ------
    ConfigError
        The template is not valid; see :func:`template_columns`.
    SchemaError
        A column is missing, or holds values that have no text form (structs, lists, bytes).
    RowError
        A string is not valid UTF-8.

    Examples
    --------
    >>> rows = pa.RecordBatch.from_pydict({"title": ["Toy Story", "Heat", None], "year": [1995, None, 1996]})
    >>> item_documents(rows, "{title} ({year}).", source="items")
    ['Toy Story (1995).', 'Heat.', '(1996).']
    """
    parsed = _parse(template)
    values = [_strings(batch, field.column, template, source) for field in parsed.fields]
    return [_render(parsed, row) for row in zip(*values, strict=True)]


def user_document(parts: Sequence[tuple[Sequence[str], int]], cost: Callable[[str], int]) -> str:
    """Return a user's profile, recent items and own words as one text whose parts are bounded in tokens.

    Of each part the entries that fit are kept; the first that doesn't is cut at a word, and older ones are left out.
    Blank entries are left out, and a repeated one is kept where it is first.

    Parameters
    ----------
    parts
        Entries of each part, newest first, and the tokens that they may have together.
    cost
        Tokens of an entry in the text, with the separator before it.

    Examples
    --------
    >>> words = lambda entry: len(entry.split())
    >>> user_document([(["Toy Story", "Heat", "Toy Story"], 9), (["loved it more than once"], 3)], words)
    'Toy Story. Heat. loved it more'
    >>> user_document([], words)
    ''
    """
    kept: dict[str, None] = {}
    for entries, tokens in parts:
        room = tokens
        for line in dict.fromkeys(one_line(entry) for entry in entries):
            if not line or line in kept:
                continue
            fitting = _shortened(line, room, cost)
            if fitting:
                kept.setdefault(fitting)
            if fitting != line:
                break
            room -= cost(line)
    return SEPARATOR.join(kept)


def one_line(text: str) -> str:
    """Return ``text`` cleaned, with every run of whitespace as one space."""
    return " ".join(clean_text(text).split())


def _shortened(line: str, room: int, cost: Callable[[str], int]) -> str:
    """Return the longest start of ``line`` that fits, whole words if one does; "" where nothing fits."""
    if room <= 0:
        return ""
    if cost(line) <= room:
        return line
    words = line.split(" ", room)[:room]
    count = _last_fitting(len(words), lambda number: cost(" ".join(words[:number])) <= room)
    if count:
        return " ".join(words[:count])
    word = words[0][: LONGEST_TOKEN * room]
    return word[: _last_fitting(len(word), lambda number: cost(word[:number]) <= room)]


def _last_fitting(most: int, fits: Callable[[int], bool]) -> int:
    """Return a number up to ``most`` that fits and whose successor doesn't, by bisection; 0 where 1 doesn't fit."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class _Field:
    separator: str
    """What divides it from the field before: the run of characters that are no letters or digits."""
    label: str
    """Words before the value, such as ``Plot: ``."""
    column: str


@dataclass(frozen=True)
class _Template:
    fields: tuple[_Field, ...]
    end: str


@lru_cache(maxsize=64)
def _parse(template: str) -> _Template:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"template {template!r}: {error}; write a literal brace as {{{{ or }}}}") from None
    fields: list[_Field] = []
    literal = ""
    for text, column, specification, conversion in parts:
        literal += text
        if column is None:
            continue
        if specification or conversion or re.fullmatch(r"[^\W\d]\w*", column) is None:
            found = column + (f"!{conversion}" if conversion else "") + (f":{specification}" if specification else "")
            raise ConfigError(f"template {template!r}: expected only column names in braces, found {{{found}}}")
        separator = _SEPARATOR.match(literal)
        cut = separator.end() if separator is not None else 0
        fields.append(_Field(literal[:cut], literal[cut:], column))
        literal = ""
    if not fields:
        raise ConfigError(f"template {template!r}: expected at least one column such as {{title}}, found none")
    return _Template(tuple(fields), literal)


def _render(template: _Template, values: Sequence[str]) -> str:
    text = ""
    skipped = ""  # separators of the blank fields since the last value
    for field, value in zip(template.fields, values, strict=True):
        separator = _without_closing(field.separator, skipped)
        if not value:
            skipped += field.separator
            continue
        if not text:  # nothing to divide from yet; an opening bracket belongs to the value
            separator = "".join(character for character in separator if character in _OPENING)
        text += separator + field.label + value
        skipped = ""
    if not text:
        return ""
    if not skipped:
        return one_line(text + template.end)
    end = next((character for character in skipped + template.end if character in _SENTENCE_ENDS), "")
    return one_line(text + end)


def _without_closing(separator: str, skipped: str) -> str:
    """Drop the bracket that closes around a blank field."""
    opened = skipped.rstrip()[-1:]
    if opened and opened in _OPENING and separator.lstrip()[:1] == _CLOSING[_OPENING.index(opened)]:
        return separator.lstrip()[1:]
    return separator


def _strings(batch: pa.RecordBatch, column: str, template: str, source: str) -> list[str]:
    if column not in batch.schema.names:
        hint = did_you_mean(column, batch.schema.names)
        raise SchemaError(f"{source}: no column {column!r}, which the template {template!r} reads; {hint}")
    array = batch.column(column)
    if not _has_text_form(array.type):
        raise SchemaError(
            f"{source}: column {column!r}: expected strings or numbers for the template {template!r}, "
            f"found {array.type}; join or cast it in the source"
        )
    texts = array.cast(pa.string())
    try:
        return ["" if text is None else one_line(text) for text in texts.to_pylist()]
    except UnicodeDecodeError:
        row = next(row for row in range(len(texts)) if not _is_utf8(texts[row]))
        raise RowError(f"{source}: row {row} of the batch, column {column!r}: not valid UTF-8; repair it") from None


def _has_text_form(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _has_text_form(kind.value_type)
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_utf8(scalar: pa.StringScalar) -> bool:
    try:
        scalar.as_py()
    except UnicodeDecodeError:
        return False
    return True
