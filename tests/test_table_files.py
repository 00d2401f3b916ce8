"""The reader of tables: any spreadsheet's CSV, or one error that names the lines."""

from __future__ import annotations

import codecs
import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_lrmil.atomic import write_csv
from napari_lrmil.errors import TableError
from napari_lrmil.table import (
    Line,
    alike,
    mpp_of,
    parse_lines,
    path_of,
    read_lines,
    read_table_file,
)

COLUMNS = ("path", "label", "mpp")
MARKS = {"utf-8": b"", "utf-8-sig": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}


def written(rows: list[list[str]], delimiter: str, codec: str, end: str) -> bytes:
    text = io.StringIO(newline="")
    # The writer leaves line breaks other than its own without quotation marks.
    quoting = (
        csv.QUOTE_ALL if any(set("\r\n") & set(cell) for row in rows for cell in row) else csv.QUOTE_MINIMAL
    )
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return MARKS[codec] + text.getvalue().encode(codec)


def said(tmp_path: Path, data: str | bytes, needed: tuple[str, ...] = ("path",)) -> str:
    path = tmp_path / "table.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    optional = tuple(name for name in COLUMNS if name not in needed)
    with pytest.raises(TableError) as caught:
        read_table_file(path, needed=needed, optional=optional)
    return str(caught.value)


# --- dialects --------------------------------------------------------------------------------------------------------

cells = st.text(
    st.characters(blacklist_categories=("Cs", "Cc")) | st.sampled_from(",;\t\"'\n\r \u2028"), max_size=8
)
dialects = st.tuples(
    st.sampled_from(",;\t"), st.sampled_from(sorted(MARKS)), st.sampled_from(["\n", "\r\n", "\r"])
)


@given(st.lists(st.lists(cells, min_size=3, max_size=3), max_size=6), dialects)
def test_what_was_written_is_read_in_every_dialect(
    rows: list[list[str]], dialect: tuple[str, str, str]
) -> None:
    data = written([list(COLUMNS), *rows], *dialect)
    found = parse_lines(data, COLUMNS)
    stripped = [tuple(cell.strip() for cell in row) for row in rows]
    assert [line.cells for line in found] == [COLUMNS, *(row for row in stripped if any(row))]


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_rows_or_a_table_error(data: bytes) -> None:
    try:
        found = parse_lines(data, COLUMNS)
    except TableError:
        return
    assert all(any(line.cells) and line.number > 0 for line in found)


table_bytes = st.lists(
    st.sampled_from(
        [b"path", b"label", b"mpp", b",", b";", b"\t", b"\n", b"\r", b'"', b" ", b"a.svs", b"0.5"]
    )
    | st.sampled_from(
        [b"\xff", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"sep=;\n", b"nan", b"\xc3\xbc", b"\xed\xa0\x80"]
    ),
    max_size=40,
).map(b"".join)


@given(table_bytes)
def test_any_table_is_read_or_a_table_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(data)
    try:
        table = read_table_file(path, needed=("path",), optional=("label", "mpp"))
    except TableError:
        return
    for record in table.records:
        assert set(record.cells) == set(COLUMNS)


def test_the_first_line_of_excel_decides() -> None:
    assert parse_lines(b"sep=;\r\npath;label\r\na,b.svs;x\r\n", COLUMNS)[1] == Line(3, ("a,b.svs", "x"))


def test_the_delimiter_is_the_one_that_finds_the_columns() -> None:
    found = parse_lines(b"path;size, in mm, of the piece\na.svs;1\n", COLUMNS)
    assert found[1].cells == ("a.svs", "1")


# --- rows ------------------------------------------------------------------------------------------------------------


def test_blank_rows_are_passed_and_lines_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('\n,,\npath, Label ,"two\nlines"\n\n,,\n  a.svs , x\n"b\n.svs",y,z\nc.svs,,\n')
    table = read_table_file(path, needed=("path",), optional=("label",))
    assert [(record.line, *record.cells.values()) for record in table.records] == [
        (7, "a.svs", "x"),
        (8, "b\n.svs", "y"),
        (10, "c.svs", ""),
    ]


def test_a_row_that_does_not_fit_the_header_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("path,label\na.svs,Doe, J\nb.svs,x\nc.svs,x,\nd.svs\n")
    table = read_table_file(path, needed=("path", "label"))
    assert [record.line for record in table.records] == [3]
    assert [problem.text.partition(";")[0] for problem in table.problems] == [
        "line 5: the row ends before 'label'",
        "lines 2, 4: more cells than the 2 columns",
    ]


@pytest.mark.parametrize(("data", "message"), [
    ("path,label,Label \na,b,c\n", "column 'label' stands 2 times, as columns 2 and 3"),
    ("pth,label\na,b\n", "column 'path' is missing; is it 'pth'?"),
    ('"",label\n"1","a"\n', "column 'path' is missing"),
    ("path\n\n,,\n".replace(",,", ""), "has no rows"),
    ("", "column 'path' is missing"),
    ('path\n"a.svs\nb.svs\n', "the quotation mark in line 2 is never closed"),
    ('path\n"a"b.svs\n', "line 2: text stands behind a closing quotation mark"),
    ("path\nM\xfcller.svs\n".encode("latin-1"), "line 2 isn't UTF-8 text; save it as 'CSV UTF-8'"),
    ("path\na.svs\n".encode("utf-16-le"), "line 1 holds zero bytes"),
    (b"path\n" + b"a" * 200_000 + b"\n", "line 2 has a cell of more than"),
])  # fmt: skip
def test_what_is_wrong_is_one_error_with_its_line(tmp_path: Path, data: str | bytes, message: str) -> None:
    assert message in said(tmp_path, data)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such slide table"):
        read_table_file(tmp_path / "absent.csv", needed=("path",))
    for path in (tmp_path, tmp_path / "a\0b"):
        with pytest.raises(TableError, match="can't be read as CSV"):
            read_lines(path)


def test_a_column_without_a_name_is_never_used(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('"","path",""\n"7","a.svs","8"\n')
    (record,) = read_table_file(path, needed=("path",), optional=("label", "mpp")).records
    assert record.cells == {"path": "a.svs", "label": "", "mpp": ""}


# --- cells -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [
    ("7", "7.0"), ("7", "07"), ("7.0", "007"), ("P7", "p07"), ("Tumor", "tumor"), ("Tumor cell", "Tumor  cell"),
    ("tumor", "tu\u200bmor"), ("T2", "T\u00b2"), ("1.5", "1.50"), ("M\u00fcller", "Mu\u0308ller"), ("0", "0.0"), ("0", "00"),
    ("100000", "1E+05"), ("1000", "1e3"), ("123457000000", "1.23457E+11"), ("15", "1.50e1"),
])  # fmt: skip
def test_names_that_look_like_one(one: str, other: str) -> None:
    found = alike([(2, one), (3, other), (4, one), (5, "another"), (6, "")])
    assert found is not None
    assert found.line == 2
    assert found.text == f"{one!r} (lines 2, 4) and {other!r} (line 3) look like one"
    assert alike([(2, one), (3, other)], by_line=True) == (2, "line 2 and line 3 look like one")


@pytest.mark.parametrize("names", [
    ("7", "70"), ("1.5", "15"), ("1.10", "1.1.0"), ("HER2+", "HER2-"), ("a01b1", "a1b01"), ("P1", "Q1"), ("7", "7", "8"),
    ("1.01", "1.1"), ("", "0"), ("IDC", "ILC"), ("s1", "s10"), ("100000", "1E+06"), ("1.25e1", "12"), ("1", "1e999"),
])  # fmt: skip
def test_names_that_do_not(names: tuple[str, ...]) -> None:
    assert alike(enumerate(names, start=2)) is None


def test_a_long_cell_takes_no_time() -> None:
    assert alike([(2, "0" * 100_000 + "x"), (3, "0" * 99_999 + "x")]) is None


@pytest.mark.parametrize(
    ("text", "value"), [("", None), ("0.25", 0.25), ("5e-1", 0.5), (".5", 0.5), ("1.", 1.0)]
)
def test_pixel_sizes(text: str, value: float | None) -> None:
    assert mpp_of(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e999", "half", "1_0", "0,25", "\u0661"])
def test_no_pixel_sizes(text: str) -> None:
    with pytest.raises(TableError, match="is no number above 0" + ("; write 0.25" if "," in text else "")):
        mpp_of(text)


def test_paths(tmp_path: Path) -> None:
    assert path_of("sub/a.svs", tmp_path) == tmp_path / "sub" / "a.svs"
    assert path_of("/b.svs", tmp_path) == Path("/b.svs")
    for text in ("~nosuchuser/a.svs", "\ud800.svs"):
        with pytest.raises(TableError, match="can't be one"):
            path_of(text, tmp_path)


def test_names_that_a_spreadsheet_would_run_survive_every_table(tmp_path: Path) -> None:
    names = ['=HYPERLINK("http://x","y")', "+1", "-cmd", "@sum", "'=1", "plain", "it's"]
    path = tmp_path / "table.csv"
    write_csv(path, ["slide_id", "label"], [[name, name] for name in names])
    with path.open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    table = read_table_file(path, needed=("slide_id", "label"))
    assert [record.cells["slide_id"] for record in table.records] == names
