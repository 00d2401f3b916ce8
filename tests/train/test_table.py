"""The slide table and its splits: everything wrong at once, and no patient in two parts."""

from __future__ import annotations

import codecs
import contextlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from napari_lrmil.errors import ConfigError
from training.data.splits import Split, class_names, make_splits
from training.data.table import DataSection, SlideRow, read_table

HEAD = "slide_id,path,patient_id,label"


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "slides.csv"
    path.write_text(text)
    return path


def row(name: str, patient: str | None = None, label: str | None = "a", fold: str | None = None) -> SlideRow:
    return SlideRow(name, Path(f"{name}.svs"), patient or f"p-{name}", label, fold)


def balanced(n: int, **options: str) -> list[SlideRow]:
    return [row(f"s{index}", label="ab"[index % 2], **options) for index in range(n)]


def ids(rows: tuple[SlideRow, ...]) -> set[str]:
    return {item.slide_id for item in rows}


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_table_is_read_as_it_stands(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        f"\ufeff{HEAD},fold,mpp,site,stain\n"
        " s1 ,sub/a.svs,p1,benign,train,0.25,TCGA,HE\n"
        "s2,/abs/b.svs,p2,,unlabelled,,,\n",
    )
    first, second = read_table(path)
    assert first == SlideRow("s1", tmp_path / "sub" / "a.svs", "p1", "benign", "train", "TCGA", 0.25)
    assert second == SlideRow("s2", Path("/abs/b.svs"), "p2", None, "unlabelled", None, None)


@pytest.mark.parametrize(("text", "message"), [
    ("slide_id,path,patient,label\na,a.svs,p,x\n", r"column 'patient_id' is missing; is it 'patient'\?"),
    ("SlideID,path,patient_id,labels\na,a.svs,p,x\n", r"is it 'SlideID'\?; column 'label' is missing; is it 'labels'"),
    (HEAD + "\n", "the table has no rows"),
    ("", "column 'slide_id' is missing"),
    (HEAD + "\n,a.svs,p,x\n", "line 2: slide_id is empty"),
    (HEAD + "\na,,p,x\n", "line 2: path is empty"),
    (HEAD + "\na,a.svs,,x\n", "line 2: patient_id is empty"),
    (HEAD + "\n../a,a.svs,p,x\n", r"line 2: slide_id '\.\./a' must not hold path separators"),
    (HEAD + "\n.a,a.svs,p,x\n", "begin with a dot"),
    (HEAD + ",mpp\na,a.svs,p,x,half\n", "line 2: mpp 'half' is no number above 0"),
    (HEAD + ",mpp\na,a.svs,p,x,-1\n", "line 2: mpp '-1' is no number above 0"),
    (HEAD + ",mpp\na,a.svs,p,x,nan\n", "line 2: mpp 'nan' is no number above 0"),
    (HEAD + "\na,a.svs,p,x\na,b.svs,q,x\na,c.svs,q,x\n", "slide_id 'a' appears 3 times"),
    (HEAD + "\na,x/../s.svs,p,x\nb,s.svs,q,y\n", r"slides a, b are one file, s\.svs"),
])  # fmt: skip
def test_what_is_wrong_with_a_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_table(table(tmp_path, text))


def test_everything_wrong_is_listed_at_once(tmp_path: Path) -> None:
    text = HEAD + ",mpp\na,a.svs,p,x,half\nb,,p,x,\nc/d,c.svs,p,x,\ne,e.svs,p,x,\ne,f.svs,p,x,\n"
    with pytest.raises(ConfigError) as caught:
        read_table(table(tmp_path, text))
    for part in ("line 2: mpp", "line 3: path", "line 4: slide_id 'c/d'", "'e' appears 2 times"):
        assert part in str(caught.value)


def test_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such slide table"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="can't be read as CSV"):
        read_table(tmp_path)
    (tmp_path / "slide.svs").write_bytes(b"II*\x00\xff\xfe\x80" * 30)
    with pytest.raises(ConfigError, match="can't be read as CSV"):
        read_table(tmp_path / "slide.svs")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_dialects_and_headers_as_the_worklist_reads_them(tmp_path: Path, delimiter: str) -> None:
    text = ",Slide_ID, path,Patient_ID ,LABEL\n0,s1,a.svs,p1,x\n\n,,,,\n1,s2,b.svs,p2,y\n"
    path = tmp_path / "slides.csv"
    path.write_bytes(codecs.BOM_UTF16_LE + text.replace(",", delimiter).encode("utf-16-le"))
    assert [(row.slide_id, row.patient_id, row.label) for row in read_table(path)] == [
        ("s1", "p1", "x"),
        ("s2", "p2", "y"),
    ]


def test_a_column_twice_and_unquoted_commas_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="column 'label' stands 2 times, as columns 4 and 5"):
        read_table(table(tmp_path, HEAD + ",label\na,a.svs,p,x,Z\n"))
    with pytest.raises(ConfigError, match="lines 2, 4: more cells than the 4 columns"):
        read_table(table(tmp_path, HEAD + "\na,a.svs,Doe, J,x\nb,b.svs,q,x\nc,c.svs,Doe, K,x\n"))
    with pytest.raises(ConfigError, match="line 3: the row ends before 'label'"):
        read_table(table(tmp_path, HEAD + "\na,a.svs,p,x\nb,b.svs,q\n"))


def test_lines_are_those_of_the_file_behind_blank_rows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 5: path is empty"):
        read_table(table(tmp_path, HEAD + "\na,a.svs,p,x\n\n,,,\nb,,q,y\n"))


@pytest.mark.parametrize("text", ["nan", "NaN", "NA", "n/a", "#N/A", "<NA>", "None", "null", " "])
def test_labels_that_stand_for_none_are_none(tmp_path: Path, text: str) -> None:
    said: list[str] = []
    rows = read_table(table(tmp_path, f"{HEAD}\na,a.svs,p,x\nb,b.svs,q,{text}\n"), note=said.append)
    assert [row.label for row in rows] == ["x", None]
    assert said == (
        [f"slides.csv: the label {text!r} was taken for none, so that slides are unlabelled: line 3"]
        if text.strip()
        else []
    )


def test_a_patient_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2: patient_id 'nan' names nobody"):
        read_table(table(tmp_path, HEAD + "\na,a.svs,nan,x\n"))


@pytest.mark.parametrize(("lines", "message"), [
    ("a,a.svs,p,1\nb,b.svs,q,1.0\nc,c.svs,r,0", r"label: '1' \(line 2\) and '1\.0' \(line 3\) look like one"),
    ("a,a.svs,p,1\nb,b.svs,q,01\nc,c.svs,r,0", r"label: '1' \(line 2\) and '01' \(line 3\) look like one"),
    ("a,a.svs,p,Tumor\nb,b.svs,q,tumor\nc,c.svs,r,normal", r"label: 'Tumor' \(line 2\) and 'tumor' \(line 3\)"),
    ("a,a.svs,7,x\nb,b.svs,7.0,x\nc,c.svs,07,y", "patient_id: line 2, line 3 and line 4 look like one"),
    ("S1,a.svs,p,x\ns1,b.svs,q,y", r"slide_id: 'S1' \(line 2\) and 's1' \(line 3\) look like one"),
])  # fmt: skip
def test_one_name_spelt_twice_stops_unless_it_is_allowed(tmp_path: Path, lines: str, message: str) -> None:
    path = table(tmp_path, f"{HEAD}\n{lines}\n")
    with pytest.raises(ConfigError, match=message + r".*data\.allow_similar_names = true"):
        read_table(path)
    said: list[str] = []
    assert len(read_table(path, allow_similar_names=True, note=said.append)) == lines.count("\n") + 1
    assert len(said) == 1
    assert DataSection(slides=path, allow_similar_names=True).rows() == read_table(
        path, allow_similar_names=True
    )


def test_sites_spelt_twice_stop_where_folds_keep_them_apart(tmp_path: Path) -> None:
    path = table(tmp_path, f"{HEAD},site\na,a.svs,p,x,Oslo\nb,b.svs,q,y,OSLO\n")
    assert len(DataSection(slides=path).rows()) == 2
    with pytest.raises(ConfigError, match=r"site: 'Oslo' \(line 2\) and 'OSLO' \(line 3\)"):
        DataSection(slides=path, preserved_sites=True).rows()


@given(
    st.lists(
        st.sampled_from(
            [*'abp,;\t\n\r"x7~/\\\0', "7.0", "07", "nan", "~nobody", "é", HEAD, HEAD.replace(",", ";"), "\n"]
        ),
        max_size=60,
    )
)
def test_any_table_is_read_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes((HEAD + "\n" + "".join(parts)).encode())
    with contextlib.suppress(ConfigError):
        read_table(path)


def test_one_class_is_no_classifier() -> None:
    with pytest.raises(ConfigError, match=r"at least two classes; the column 'label' holds only 'a'"):
        class_names([row("1"), row("2")])
    with pytest.raises(ConfigError, match="holds none"):
        make_splits([row("1", label=None)], n_folds=5, seed=0)
    assert class_names([row("1", label="b"), row("2", label="a"), row("3", label=None)]) == ("a", "b")


# --- named folds -----------------------------------------------------------------------------------------------------


def named() -> list[SlideRow]:
    rows = []
    for part in ("train", "val", "test"):
        rows += [row(f"{part}{index}", label="ab"[index % 2], fold=part) for index in range(4)]
    return [*rows, row("u", label=None, fold="unlabelled"), row("v", label=None)]


def test_official_split_is_taken_as_it_is() -> None:
    (split,) = make_splits(named(), n_folds=5, seed=0)
    assert split.fold == 0
    for part in ("train", "val", "test"):
        assert ids(getattr(split, part)) == {f"{part}{index}" for index in range(4)}
    assert ids(split.extra) == {"u", "v"}


@pytest.mark.parametrize(("extra", "message"), [
    (row("x", patient="p-test1", label="b", fold="train"), r"1 patients are in two parts.*their slides: x, test1"),
    (row("x", patient="p-test1", label=None, fold="unlabelled"), r"in two parts.*test1, x"),
    (row("x", patient="p-val1", label=None), r"in two parts"),
    (row("x", label=None, fold="test"), r"slides of val or test have no label: x"),
    (row("x", label="a", fold="unlabelled"), r"slides marked unlabelled have a label: x"),
    (row("x", label="a", fold="tset"), r"'tset': use either whole numbers or the names train, val, calibration, test"),
    (row("x", label="a", fold="3"), r"mixes kinds"),
    (row("x", label="a"), r"column 'fold' is empty for 1 labelled slides: x"),
    (row("x", label="c", fold="train"), r"val has no slide of class c"),
])  # fmt: skip
def test_wrong_named_splits(extra: SlideRow, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_splits([*named(), extra], n_folds=5, seed=0)


def test_an_unlabelled_slide_of_a_training_patient_is_welcome() -> None:
    (split,) = make_splits([*named(), row("x", patient="p-train1", label=None)], n_folds=5, seed=0)
    assert "x" in ids(split.extra)


def test_a_part_without_slides_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"test has no slide of class a, b \(0 slides in all\)"):
        make_splits([item for item in named() if item.fold != "test"], n_folds=5, seed=0)


# --- numbered folds --------------------------------------------------------------------------------------------------


def test_numbered_folds_are_each_tested_once_and_the_next_validates() -> None:
    rows = [row(f"s{index}", label="ab"[index % 2], fold=str(index // 2)) for index in range(10)]
    splits = make_splits(rows, n_folds=99, seed=0)
    assert [split.fold for split in splits] == [0, 1, 2, 3, 4]
    for split in splits:
        assert {item.fold for item in split.test} == {str(split.fold)}
        assert {item.fold for item in split.val} == {str((split.fold + 1) % 5)}
        assert len(split.train) == 6


def test_two_folds_are_too_few() -> None:
    rows = [row(f"s{index}", label="ab"[index % 2], fold=str(index // 2)) for index in range(4)]
    with pytest.raises(ConfigError, match="at least 3 folds; there are 2"):
        make_splits(rows, n_folds=5, seed=0)


def test_a_patient_in_two_numbered_folds_stops_the_run() -> None:
    rows = [row(f"s{index}", label="ab"[index % 2], fold=str(index // 2)) for index in range(10)]
    rows.append(row("x", patient="p-s0", label="a", fold="3"))
    with pytest.raises(ConfigError, match="1 patients are in two parts"):
        make_splits(rows, n_folds=5, seed=0)


def test_five_folds_are_60_20_20_by_patient() -> None:
    splits = make_splits(balanced(50), n_folds=5, seed=0)
    assert len(splits) == 5
    tested = Counter(name for split in splits for name in ids(split.test))
    assert set(tested.values()) == {1}
    assert len(tested) == 50
    for split in splits:
        assert (len(split.train), len(split.val), len(split.test)) == (30, 10, 10)
        for part in (split.train, split.val, split.test):
            assert Counter(item.label for item in part) == {"a": len(part) // 2, "b": len(part) // 2}


def test_the_seed_decides_the_split() -> None:
    rows = balanced(30)
    assert make_splits(rows, n_folds=5, seed=3) == make_splits(rows, n_folds=5, seed=3)
    assert make_splits(rows, n_folds=5, seed=3) != make_splits(rows, n_folds=5, seed=4)


@pytest.mark.parametrize(("rows", "message"), [
    (balanced(4), r"5 folds need as many patients; there are 4"),
    ([row(f"s{i}", label="b" if i < 3 else "a") for i in range(20)], r"5 folds need as many patients of each class; 'b' has 3"),
    ([row(f"s{i}", patient=f"p{i % 4}", label="ab"[i % 2]) for i in range(20)], r"5 folds need as many patients; there are 4"),
])  # fmt: skip
def test_too_few_patients_for_the_folds(rows: list[SlideRow], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_splits(rows, n_folds=5, seed=0)


def test_an_unlabelled_slide_of_a_held_out_fold_stays_out_however_the_number_is_written() -> None:
    rows = [
        row(f"s{fold}{label}", f"p{fold}{label}", label, f"0{fold}") for fold in range(4) for label in "ab"
    ]
    rows.append(row("extra", "other", None, "01"))
    uses = {split.fold: bool(split.extra) for split in make_splits(rows, n_folds=5, seed=0)}
    assert uses == {0: False, 1: False, 2: True, 3: True}  # fold 0 is validated on fold 1


def test_unlabelled_slides_of_held_out_patients_stay_out_of_that_fold() -> None:
    """Else stage 1 would see the test patient; and refusing the table would rule out k-fold with unlabelled slides."""
    rows = [*balanced(20), row("u", patient="p-s3", label=None), row("free", label=None)]
    splits = make_splits(rows, n_folds=5, seed=0)
    used = 0
    for split in splits:
        held_out = {item.patient_id for item in (*split.val, *split.test)}
        assert not held_out & {item.patient_id for item in split.extra}
        assert "free" in ids(split.extra)
        used += "u" in ids(split.extra)
    assert used == 3  # of five folds, all but those that test or validate its patient


patients = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 2)), min_size=6, max_size=40
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(patients, st.integers(3, 6), st.integers(0, 5))
def test_no_patient_is_ever_in_two_parts(drawn: list[tuple[str, int, int]], n_folds: int, seed: int) -> None:
    rows = []
    for number, (label, n_slides, n_unlabelled) in enumerate(drawn):
        for index in range(n_slides):
            rows.append(row(f"{number}-{index}", patient=f"p{number}", label=label))
        for index in range(n_unlabelled):
            rows.append(row(f"{number}-u{index}", patient=f"p{number}", label=None))
    try:
        splits = make_splits(rows, n_folds=n_folds, seed=seed)
    except ConfigError:
        assume(False)
    labelled = {item.slide_id for item in rows if item.label is not None}
    assert [split.fold for split in splits] == list(range(n_folds))
    for split in splits:
        assert_apart(split)
        assert ids(split.train) | ids(split.val) | ids(split.test) == labelled
    tested = Counter(name for split in splits for name in ids(split.test))
    assert set(tested) == labelled
    assert set(tested.values()) == {1}


def assert_apart(split: Split) -> None:
    people = [{item.patient_id for item in part} for part in (split.train, split.val, split.test)]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]
    assert not {item.patient_id for item in split.extra} & (people[1] | people[2])


def test_splitting_is_quick_for_thousands_of_slides() -> None:
    rng = np.random.default_rng(0)
    rows = [
        row(f"s{index}", patient=f"p{index // 2}", label="ab"[int(label)])
        for index, label in enumerate(np.repeat(rng.integers(2, size=1500), 2))
    ]
    assert len(make_splits(rows, n_folds=5, seed=0)) == 5
