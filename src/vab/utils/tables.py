"""Tables in text files, whatever program wrote them: their encoding, their separator, their columns."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vab.errors import VABError, first_line
from vab.utils.remote import RemoteFile

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NO_SEPARATOR = "\x1f"  # of a table with one column, whose names may hold any of these
_MAX_COLUMNS_SHOWN = 12
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # with its end


class ListError(VABError, ValueError):
    """A list or a folder of media that cannot be used; the message is one line: its name and the reason."""


@dataclass(frozen=True)
class Table:
    """A table with a header. ``rows``: (line number, fields) of each row with something in it."""

    columns: tuple[str, ...]  # as they are written, without spaces around
    separator: str
    rows: Iterator[tuple[int, list[str]]]

    @property
    def names(self) -> list[str]:
        """The columns in lower case, by which they are found."""
        return [column.lower() for column in self.columns]

    def __str__(self) -> str:
        """What was found, for people: ``columns video, label, separated by semicolons``."""
        shown = [column[:40] for column in self.columns[:_MAX_COLUMNS_SHOWN]]
        if len(self.columns) > len(shown):
            shown.append("...")
        if len(shown) < 2:
            return f"one column, {shown[0]!r}" if shown else "no columns"
        return f"columns {', '.join(shown)}, separated by {SEPARATORS[self.separator]}"


def read_text(path: str | Path | RemoteFile, kind: type[VABError] = ListError) -> str:
    """A list's text: UTF-8, UTF-16, or as older programs write, Windows-1252; else an error of that kind."""
    try:
        data = path.read(kind) if isinstance(path, RemoteFile) else Path(path).read_bytes()
    except OSError as error:
        raise kind(f"{path}: {first_line(error)}") from None
    # The mark at the beginning decides; without it, the zeros beside the letters do.
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encodings = ["utf-16"] if wide else ["utf-8-sig", "cp1252", "latin-1"]
    if not wide and b"\0" in data[:2]:
        encodings = ["utf-16-le" if data[1:2] == b"\0" else "utf-16-be"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise kind(f"{path}: not a text file in UTF-8, UTF-16 or Windows-1252")


def read_table(path: str | Path | RemoteFile, wanted: Sequence[str]) -> Table:
    """Read a table with a header, of which any of the columns ``wanted`` (in lower case) is to be used.

    The separator is that of ``SEPARATORS`` by which the header has most of them, then most columns; a line
    such as ``sep=;`` in front of it, as Excel writes, says it. Where the header has spaces beside separators,
    the rows have them too, and they are dropped. Raises ``ListError``, also while the rows are read.
    """
    text = read_text(path)
    separators = list(SEPARATORS)
    line, _, rest = text.partition("\n")
    skipped = 0
    if line.strip()[:-1].lower() == "sep=" and line.strip()[-1] in SEPARATORS:
        text = rest
        separators = [line.strip()[-1]]
        skipped = 1

    # 1. The header, once by each separator; max takes the first of the best.
    headers = {separator: _header(path, text, separator) for separator in separators}

    def fitness(separator: str) -> tuple[int, int]:
        names = {name.strip().lower() for name in headers[separator]}
        return len(names & set(wanted)), len(headers[separator])

    separator = max(separators, key=fitness)
    header = headers[separator]
    columns = tuple(name.strip() for name in header)
    spaced = any(name != column for name, column in zip(header, columns, strict=True))

    # 2. The rows, as they are asked for.
    def rows() -> Iterator[tuple[int, list[str]]]:
        records = _records(path, text, separator if len(columns) > 1 else _NO_SEPARATOR, spaced)
        next(records, None)
        for number, fields in records:
            yield number + skipped, [field.strip() for field in fields] if spaced else fields

    return Table(columns, separator, rows())


def read_csv(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of a csv file without comments (``#``) and empty lines; else ``ListError``."""
    reader = csv.reader(_lines(read_text(path)), skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            if fields and not fields[0].startswith("#"):
                yield reader.line_num, [field.strip() for field in fields]
    except csv.Error as error:
        raise ListError(f"{path}: line {reader.line_num}: {error}") from None


def _lines(text: str) -> Iterator[str]:
    """The lines one by one: a list of two million, or a stream over them, takes several times their size."""
    return (line[0] for line in _LINE.finditer(text))


def _header(path: str | Path | RemoteFile, text: str, separator: str) -> list[str]:
    try:
        return next(_records(path, text, separator, False), (0, []))[1]
    except ListError:  # a quotation mark that only makes sense with another separator
        return []


def _records(
    path: str | Path | RemoteFile, text: str, separator: str, spaced: bool
) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of the records that are not empty."""
    # Strict tells a quotation mark that is never closed, but knows no space after one.
    reader = csv.reader(_lines(text), delimiter=separator, skipinitialspace=spaced, strict=not spaced)
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise ListError(f"{path}: line {reader.line_num}: {error}") from None
