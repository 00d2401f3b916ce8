"""Label files as they are published: CSV, TSV or xlsx, by the names of their columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

from napari_lrmil.errors import ConfigError

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

    def records(self, layout: Layout) -> list[Record]:
        """Return rows by the layout's fields; an optional column that is absent gives "".

        Raises
        ------
        ConfigError
            Where the columns aren't the layout's, naming those expected and those found.
        """
        place = {_plain(name): index for index, name in enumerate(self.columns)}
        where: dict[str, int] = {}
        for key, names in (layout.needed | layout.optional).items():
            found = [place[_plain(name)] for name in names if _plain(name) in place]
            if found:
                where[key] = found[0]
        missing = [names[0] for key, names in layout.needed.items() if key not in where]
        used = set(where.values())
        unknown = [name for index, name in enumerate(self.columns) if index not in used]
        if missing or (layout.closed and unknown):
            wrong = [f"no column {', '.join(map(repr, missing))}"] if missing else []
            wrong += [f"unknown columns {_few(unknown)}"] if layout.closed and unknown else []
            raise ConfigError(
                f"{self.path.name} is not {layout.what}: {' and '.join(wrong)}. Expected are the columns "
                f"{layout.expected}; found: {_few(self.columns)}"
            )
        return [
            {key: row[where[key]] if key in where else "" for key in (*layout.needed, *layout.optional)}
            for row in self.rows
        ]


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
    lines = _read_xlsx(path, sheet) if path.suffix.lower() == ".xlsx" else _read_text(path)
    lines = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)]
    if header is not None:
        lines = [list(header), *lines]
    if len(lines) < 2:
        raise ConfigError(f"{path} has no rows")
    columns = lines[0]
    if header is not None and max(map(len, lines)) > len(columns):
        raise ConfigError(f"{path} has more columns than the expected {', '.join(columns)}")
    width = len(columns)
    # Spreadsheets pad rows, hand-made CSVs cut them short.
    rows = tuple(tuple((line + [""] * width)[:width]) for line in lines[1:])
    return Source(path, tuple(columns), rows)


def first_line(path: Path) -> list[str]:
    """Read the cells of the first line, to tell kinds of files apart."""
    lines = _read_xlsx(path, None) if path.suffix.lower() == ".xlsx" else _read_text(path)
    return [cell.strip() for cell in lines[0]] if lines else []


def _read_text(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            start = file.readline()
            file.seek(0)
            return list(csv.reader(file, delimiter="\t" if "\t" in start else ","))
    except FileNotFoundError as error:
        raise ConfigError(f"no such file: {path}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} can't be read as CSV or TSV: {error}") from error


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
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _few(names: Iterable[str], most: int = 12) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
