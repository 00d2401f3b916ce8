"""Tables as people keep them: CSV out of any spreadsheet, read with care, or refused with the lines of the file.

What would put a value into another column than the one meant (an unquoted comma, a column named twice) is an
error, never a guess; so are bytes that aren't the encoding they claim to be. Several names of one thing are found
by `alike`; what they mean for a worklist or a training run is decided there.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from napari_lrmil.errors import TableError, readable, refuse_pipe, shortened

NO_VALUE = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "none", "null"})
"""How programs write a cell without a value, in small letters."""
MAX_TABLE_BYTES = 256 * 2**20

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
# UTF-32 before UTF-16: the mark of the latter is the beginning of the former's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAVE_AS = "save it as 'CSV UTF-8', as spreadsheets call it"
_MOST_SHOWN = 20
_LONGEST_NAME = 500  # what is longer is no name with a number in it


class Line(NamedTuple):
    """A row that isn't blank: where it begins in the file, counted from 1, and its cells without space around."""

    number: int
    cells: tuple[str, ...]


class Problem(NamedTuple):
    """Something wrong: the line to sort it by, and what is said."""

    line: int
    text: str


class Record(NamedTuple):
    """A row of a table: its line in the file, and its cells by the name of their column, "" where there is none."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """The rows of a table.

    Attributes
    ----------
    path : Path
    records : tuple of Record
    problems : tuple of Problem
        Rows that don't fit the header; give them to `refuse` with what else is wrong. Such rows aren't
        among `records`.
    """

    path: Path
    records: tuple[Record, ...]
    problems: tuple[Problem, ...]


def read_table_file(
    path: Path, *, needed: Sequence[str], optional: Sequence[str] = (), what: str = "slide table"
) -> Table:
    """Read the columns of a CSV that a program uses; others are left alone.

    The first row that isn't blank names the columns; case, and space around a name, don't count, and a column
    without a name is never one that is used. See `read_lines` for delimiters and encodings.

    Parameters
    ----------
    path : Path
    needed, optional : sequence of str
        Names of columns in small letters.
    what : str
        The file, as messages call it.

    Raises
    ------
    TableError
        Where it can't be read, has no rows, or a column is missing or there twice.
    """
    wanted = (*needed, *optional)
    lines = read_lines(path, wanted, what=what)
    header = lines[0] if lines else Line(1, ())
    names = [column_key(cell) for cell in header.cells]
    problems = []
    for name in wanted:
        places = [place for place, found in enumerate(names, start=1) if found == name]
        if len(places) > 1:
            problems.append(
                f"column {name!r} stands {len(places)} times, as columns {listed(map(str, places))}: rename or delete "
                "all but one"
            )
        elif not places and name in needed:
            near = difflib.get_close_matches(
                name, [found for found in names if found and found not in wanted], n=1
            )
            hint = f"; is it {header.cells[names.index(near[0])]!r}?" if near else ""
            problems.append(f"column {name!r} is missing{hint}")
    if problems and any("missing" in problem for problem in problems):
        problems.append(f"the first line must name the columns, such as {','.join(needed)}")
    if problems or len(lines) < 2:
        raise TableError(f"{path}: " + ("; ".join(problems) or "the table has no rows"))
    place_of = {name: names.index(name) for name in wanted if name in names}
    records = []
    wide: list[int] = []
    short: dict[str, list[int]] = {}
    for line, cells in lines[1:]:
        absent = [name for name in needed if place_of[name] >= len(cells)]
        if len(cells) > len(names):
            wide.append(line)
        elif absent:
            short.setdefault(listed(map(repr, absent)), []).append(line)
        else:
            padded = cells + ("",) * (len(names) - len(cells))
            records.append(
                Record(
                    line,
                    {name: as_it_was(padded[place_of[name]]) if name in place_of else "" for name in wanted},
                )
            )
    ragged = [
        Problem(found[0], f"{lines_of(found)}: the row ends before {absent}")
        for absent, found in short.items()
    ]
    if wide:
        ragged.append(
            Problem(
                wide[0],
                f"{lines_of(wide)}: more cells than the {len(names)} columns; a name that holds a comma, semicolon or "
                "tab needs quotation marks around it",
            )
        )
    return Table(path, tuple(records), tuple(ragged))


def read_lines(path: Path, columns: Collection[str] = (), *, what: str = "file") -> list[Line]:
    """Read the rows of a CSV that aren't blank.

    Commas, semicolons or tabs part the cells: whichever finds most of `columns` in the first row, else most
    cells. A first line ``sep=;``, which spreadsheets write, decides it. Text is UTF-8, or UTF-16 or UTF-32 with a
    byte order mark.

    Raises
    ------
    TableError
        Where it is no such file.
    """
    try:
        refuse_pipe(path)
        with path.open("rb") as file:
            data = file.read(MAX_TABLE_BYTES + 1)
    except FileNotFoundError as error:
        raise TableError(f"no such {what}: {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise TableError(
            f"{shortened(str(path))} can't be read as CSV: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        return parse_lines(data, columns)
    except TableError as error:
        raise TableError(f"{shortened(str(path))} can't be read as CSV: {error}") from error


def parse_lines(data: bytes, columns: Collection[str] = ()) -> list[Line]:
    """Read the rows of a CSV's bytes; see `read_lines`.

    Raises
    ------
    TableError
    """
    if len(data) > MAX_TABLE_BYTES:
        raise TableError(f"it holds more than {MAX_TABLE_BYTES // 2**20} MiB: no table of slides does")
    text = _decoded(data)
    declared = re.match(r'"?sep=([,;\t])"?\s*?(?:\r\n|\r|\n|$)', text)
    if declared is not None:
        return list(_rows(text, declared[1]))[1:]
    found: dict[str, tuple[int, int]] = {}
    failures: dict[str, TableError] = {}
    for delimiter in _DELIMITERS:
        try:
            first = next(_rows(text, delimiter), Line(1, ()))
        except TableError as error:
            failures[delimiter] = error
            continue
        known = {column_key(cell) for cell in first.cells} & set(columns)
        found[delimiter] = (len(known), len(first.cells))
    if not found:
        raise failures[","]
    # The first of equals.
    return list(_rows(text, max(found, key=lambda delimiter: found[delimiter])))


def alike(cells: Iterable[tuple[int, str]], *, by_line: bool = False, most: int = 5) -> Problem | None:
    """Find names that are spelt differently but look like one: Tumor and tumor, 7, 7.0 and 07, 100000 and 1E+05.

    Case, space, forms of a letter, characters that can't be seen, zeros before a number, ``.0`` behind it and powers of
    ten make no difference to what people mean by a name; spreadsheets change them unasked.

    Parameters
    ----------
    cells : iterable of (int, str)
        Line and text of each cell of a column.
    by_line : bool
        Say the lines alone, of names that shouldn't be printed.
    most : int
        So many are said.

    Returns
    -------
    Problem, optional
        Such as "'7' (lines 2, 4) and '7.0' (line 3) look like one"; None where there are none.
    """
    spellings: dict[str, dict[str, list[int]]] = {}
    for line, text in cells:
        if text:
            spellings.setdefault(_spelling_key(text), {}).setdefault(text, []).append(line)
    groups = [group for group in spellings.values() if len(group) > 1]
    if not groups:
        return None
    texts = [
        listed(
            lines_of(lines) if by_line else f"{text!r} ({lines_of(lines)})" for text, lines in group.items()
        )
        for group in groups[:most]
    ]
    more = f"; and {len(groups) - most:,} more" if len(groups) > most else ""
    first = min(lines[0] for group in groups for lines in group.values())
    return Problem(first, "; ".join(texts) + more + " look like one" + (" each" if len(groups) > 1 else ""))


def refuse(path: Path, problems: Iterable[Problem]) -> None:
    """Raise what is wrong with a table, by line; nothing where nothing is.

    Raises
    ------
    TableError
    """
    texts = [shortened(problem.text) for problem in sorted(problems, key=lambda problem: problem.line)]
    if texts:
        more = f"; and {len(texts) - _MOST_SHOWN:,} more" if len(texts) > _MOST_SHOWN else ""
        raise TableError(f"{path}: " + "; ".join(texts[:_MOST_SHOWN]) + more)


def mpp_of(text: str) -> float | None:
    """Return the µm/px that a cell gives; None where it is empty.

    Raises
    ------
    TableError
        Where it is no number above 0.
    """
    if not text:
        return None
    # Python would take 1_0 for 10.
    value = float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", text, re.ASCII) else 0.0
    if not 0 < value < float("inf"):
        point = f"; write {text.replace(',', '.')}" if re.fullmatch(r"\d+,\d+", text) else ""
        raise TableError(f"mpp {text!r} is no number above 0{point}")
    return value


def path_of(text: str, folder: Path) -> Path:
    """Return the path that a cell gives; a relative one starts at the table's folder.

    Raises
    ------
    TableError
        Where it can be none.
    """
    try:
        path = folder / Path(text).expanduser()
        os.fsencode(path)
    except (RuntimeError, ValueError) as error:  # the home of nobody; text that no file system holds
        raise TableError(f"path {text!r} can't be one: {error}") from error
    return path


def lines_of(numbers: Sequence[int], most: int = 5) -> str:
    """Return lines as words: "line 3", "lines 3, 4 and 5 more"."""
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    more = f" and {len(numbers) - most:,} more" if len(numbers) > most else ""
    return "lines " + ", ".join(map(str, numbers[:most])) + more


def listed(texts: Iterable[str]) -> str:
    """Return texts as words: "a, b and c"."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


def column_key(name: str) -> str:
    """Return a column's name without what doesn't count in it."""
    return name.strip("\ufeff \t\xa0").casefold()


def _decoded(data: bytes) -> str:
    mark, codec = next(((mark, codec) for mark, codec in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(codec)
    except UnicodeDecodeError as error:
        line = body[: error.start].decode(codec, "replace").count("\n") + 1
        raise TableError(f"line {line} isn't {codec.upper()} text; {_SAVE_AS}") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise TableError(f"line {line} holds zero bytes, which text doesn't; {_SAVE_AS}")
    return text


def _rows(text: str, delimiter: str) -> Iterator[Line]:
    """Yield rows that aren't blank; strict, or an open quotation mark would swallow rows without a word."""
    # newline="": line breaks within quotation marks stay, and each kind of them ends a line.
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    begin = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise TableError(f"the quotation mark in line {begin} is never closed") from error
            if "field larger" in str(error):
                raise TableError(
                    f"line {begin} has a cell of more than {csv.field_size_limit():,} characters; is a quotation "
                    "mark never closed?"
                ) from error
            raise TableError(
                f"line {reader.line_num}: text stands behind a closing quotation mark ({error})"
            ) from error
        if cells is None:
            return
        stripped = tuple(cell.strip() for cell in cells)
        if any(stripped):
            yield Line(begin, stripped)
        begin = reader.line_num + 1


def _spelling_key(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(
        letter
        for letter in plain
        if not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf")
    )
    if len(plain) > _LONGEST_NAME:
        return plain
    power = re.fullmatch(r"(\d+)(?:\.(\d+))?e\+?(\d{1,2})", plain)
    if power is not None:  # as spreadsheets write long numbers
        whole, fraction, zeros = power[1], (power[2] or "").rstrip("0"), int(power[3])
        if len(fraction) <= zeros:
            plain = whole + fraction.ljust(zeros, "0")
    number = re.fullmatch(r"(\D*?)0*(\d+)(?:\.0*)?", plain)
    if number is not None:
        return number[1] + number[2]
    decimal = re.fullmatch(r"0*(\d*\.\d*?[1-9])0*", plain)
    return decimal[1] if decimal is not None else plain


def spreadsheet_safe(text: str) -> str:
    """The text as any program reads it, with an apostrophe in front where a spreadsheet would run it as a formula."""
    # The csv module leaves a lone carriage return unquoted, and readers take it for the end of a row.
    text = readable(text.replace("\r\n", "\n").replace("\r", "\n"))
    # What begins as a text that was made safe gets another one, so that `as_it_was` gives back every text.
    begins = text.lstrip("'").lstrip(" ")
    return f"'{text}" if begins.startswith(("=", "+", "-", "@", "\t", "\n")) else text


def as_it_was(cell: str) -> str:
    """The text that `spreadsheet_safe` made this cell of."""
    return cell[1:] if cell.startswith("'") and spreadsheet_safe(cell[1:]) == cell else cell
