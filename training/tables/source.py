"""Label files as they are published: CSV, TSV or xlsx, by the names of their columns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

from napari_lrmil.errors import ConfigError, TableError, shortened
from napari_lrmil.table import Line, lines_of, listed, read_lines

Record = dict[str, str]


@dataclass(frozen=True)
class Layout:
    """The columns of a kind of file.

    Attributes
    ----------
    what : str
        The file, as messages call it.
    needed, optional : dict
        Field to the names that its column may have. Case, spaces, dots and underscores don't count.
    closed : bool
        Other columns are an error: the file is another one than thought. Else they are left alone.
    """

    what: str
    needed: dict[str, tuple[str, ...]]
    optional: dict[str, tuple[str, ...]] = field(default_factory=dict)
    closed: bool = True

    def fits(self, columns: Iterable[str]) -> bool:
        """Return whether all needed columns are there."""
        there = {_plain(name) for name in columns}
        return all(there & {_plain(name) for name in names} for names in self.needed.values())

    @property
    def expected(self) -> str:
        """The columns, for messages."""
        needed = ", ".join(repr(names[0]) for names in self.needed.values())
        optional = ", ".join(repr(names[0]) for names in self.optional.values() if names[0])
        return needed + (f" and optionally {optional}" if optional else "")


@dataclass(frozen=True)
class Source:
    """A file's columns and rows, as text."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    """Where each row begins in the file, counted from 1."""

    def records(self, layout: Layout) -> list[Record]:
        """Return rows by the layout's fields; an optional column that is absent gives "".

        Raises
        ------
        ConfigError
            Where the columns aren't the layout's, naming those expected and those found.
        """
        place = {_plain(name): index for index, name in reversed(list(enumerate(self.columns)))}
        where: dict[str, int] = {}
        for key, names in (layout.needed | layout.optional).items():
            found = [place[_plain(name)] for name in names if _plain(name) in place]
            if found:
                where[key] = found[0]
        twice = [
            f"{self.columns[index]!r} (columns {listed(str(other + 1) for other in others)})"
            for index in where.values()
            if len(others := self._places(self.columns[index])) > 1
        ]
        missing = [names[0] for key, names in layout.needed.items() if key not in where]
        used = set(where.values())
        unknown = [name for index, name in enumerate(self.columns) if index not in used]
        if missing or twice or (layout.closed and unknown):
            wrong = [f"no column {', '.join(map(repr, missing))}"] if missing else []
            wrong += [f"twice the column {', '.join(twice)}"] if twice else []
            wrong += [f"unknown columns {_few(unknown)}"] if layout.closed and unknown else []
            raise ConfigError(
                f"{self.path.name} is not {layout.what}: {' and '.join(wrong)}. Expected are the columns "
                f"{layout.expected}; found: {shortened(_few(self.columns))}"
            )
        return [
            {key: row[where[key]] if key in where else "" for key in (*layout.needed, *layout.optional)}
            for row in self.rows
        ]

    def _places(self, column: str) -> list[int]:
        return [index for index, name in enumerate(self.columns) if _plain(name) == _plain(column)]


def read_source(path: Path, *, sheet: str | None = None, header: tuple[str, ...] | None = None) -> Source:
    """Read a CSV, TSV or xlsx file.

    Parameters
    ----------
    path : Path
    sheet : str, optional
        Of an xlsx file.
    header : tuple of str, optional
        Column names of a file that has none itself.

    Raises
    ------
    ConfigError
        Where it can't be read or has no rows.
    """
    lines = _lines(path, sheet)
    if header is not None:
        lines = [Line(0, header), *lines]
    if len(lines) < 2:
        raise ConfigError(f"{path} has no rows")
    columns = lines[0].cells
    width = len(columns)
    wide = [line.number for line in lines if len(line.cells) > width]
    if wide and header is not None:
        raise ConfigError(f"{path} has more columns than the expected {', '.join(columns)}")
    if wide:
        raise ConfigError(
            f"{path}: more cells than the {width} columns in {lines_of(wide)}; a name that holds a comma needs "
            "quotation marks around it"
        )
    # Hand-made CSVs cut rows short.
    rows = tuple((line.cells + ("",) * width)[:width] for line in lines[1:])
    return Source(path, columns, rows, tuple(line.number for line in lines[1:]))


def first_line(path: Path) -> list[str]:
    """Read the cells of the first line, to tell kinds of files apart."""
    lines = _lines(path, None)
    return list(lines[0].cells) if lines else []


def _lines(path: Path, sheet: str | None) -> list[Line]:
    """Read the rows that aren't blank, without space around their cells."""
    if path.suffix.lower() == ".xlsx":
        cells = [tuple(cell.strip() for cell in row) for row in _read_xlsx(path, sheet)]
        return [Line(number, row) for number, row in enumerate(cells, start=1) if any(row)]
    try:
        return read_lines(path)
    except TableError as error:
        raise ConfigError(str(error)) from error


def _read_xlsx(path: Path, sheet: str | None) -> list[list[str]]:
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise ConfigError(
            f"reading {path.name} needs openpyxl: pip install openpyxl, or save the sheet as CSV"
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"no such file: {path}") from error
    except (OSError, KeyError, ValueError, BadZipFile, InvalidFileException) as error:
        raise ConfigError(f"{path} can't be read as xlsx: {error}") from error
    try:
        if sheet is not None and sheet not in book.sheetnames:
            raise ConfigError(f"{path.name} has no sheet {sheet!r}, only {', '.join(book.sheetnames)}")
        cells = book[sheet or book.sheetnames[0]].iter_rows(values_only=True)
        return [["" if cell is None else _text(cell) for cell in row] for row in cells]
    finally:
        book.close()


def _text(cell: object) -> str:
    """Return a cell as text. Numbers in spreadsheets are floats: patient 12.0 is patient 12."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _few(names: Iterable[str], most: int = 12) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
