"""Folds without a site in two parts, and how even they are."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from napari_lrmil.errors import ConfigError
from training.data.site_folds import deal_sites, unevenness
from training.data.splits import KeptSplits, Split, class_names, label_imbalance, make_splits, shared_between
from training.data.table import SlideRow


def row(
    name: str,
    site: str | None = "s",
    *,
    patient: str | None = None,
    label: str | None = "a",
    fold: str | None = None,
) -> SlideRow:
    return SlideRow(name, Path(f"{name}.svs"), patient or f"p-{name}", label, fold, site)


def hospitals(seed: int = 0, n_sites: int = 36, n_slides: int = 900, rare: float = 0.2) -> list[SlideRow]:
    """Few large and many small sites whose shares of the rare class differ, as in TCGA-BRCA."""
    rng = np.random.default_rng(seed)
    sizes = rng.dirichlet(np.ones(n_sites) * 0.6)
    rates = rng.beta(2, 2 / rare - 2, n_sites)
    rows = []
    for index in range(n_slides):
        site = int(rng.choice(n_sites, p=sizes))
        label = "ILC" if rng.random() < rates[site] else "IDC"
        rows.append(row(str(index), f"S{site:02}", patient=f"S{site:02}-{index // 2}", label=label))
    return rows


def ids(rows: tuple[SlideRow, ...]) -> set[str]:
    return {item.slide_id for item in rows}


def assert_apart(split: Split) -> None:
    for key in ("patient_id", "site"):
        train, val, test, extra = ({getattr(item, key) for item in part} for part in split[1:5])
        assert not train & val
        assert not train & test
        assert not val & test
        assert not extra & (val | test)


# --- whole sites are dealt -------------------------------------------------------------------------------------------


def test_whole_sites_are_dealt_and_folds_are_nearly_even() -> None:
    rows = hospitals()
    splits = make_splits(rows, n_folds=5, seed=0, preserved_sites=True)
    assert [split.fold for split in splits] == [0, 1, 2, 3, 4]
    for split in splits:
        assert_apart(split)
        assert ids(split.train) | ids(split.val) | ids(split.test) == {item.slide_id for item in rows}
    assert Counter(name for split in splits for name in ids(split.test)) == Counter(
        item.slide_id for item in rows
    )
    assert label_imbalance(splits) < 0.03


def test_folds_are_as_even_as_the_largest_site_lets_them() -> None:
    """A site with 42 % of a class puts some fold 22 points above an even share; the search adds next to nothing."""
    found, bounds, at_random = [], [], []
    for seed in range(8):
        rows = hospitals(seed)
        found.append(label_imbalance(make_splits(rows, n_folds=5, seed=0, preserved_sites=True)))
        by_label = Counter(item.label for item in rows)
        largest = max(
            n / by_label[label] for (_, label), n in Counter((r.site, r.label) for r in rows).items()
        )
        bounds.append(max(largest - 1 / 5, 0))
        rng = np.random.default_rng(seed)
        fold_of = {site: str(rng.integers(5)) for site in sorted({item.site or "" for item in rows})}
        try:
            dealt = [replace(item, fold=fold_of[item.site or ""]) for item in rows]
            at_random.append(label_imbalance(make_splits(dealt, n_folds=5, seed=0)))
        except ConfigError:  # a fold without a class
            continue
    assert all(one < bound + 0.03 for one, bound in zip(found, bounds, strict=True))
    assert np.median(found) < 0.2 * np.median(at_random)


def test_the_search_comes_near_the_best_deal_there_is() -> None:
    """Against all 3^7 ways to deal seven sites."""
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(12):
        counts = rng.poisson(rng.lognormal(1.5, 1, (7, 1)) * np.ones((1, 2))) + 1
        shares = counts / counts.sum(axis=0)
        fold_of = deal_sites(counts, n_folds=3, seed=0)
        assert fold_of is not None
        best = min(unevenness(shares, np.array(way), 3) for way in itertools.product(range(3), repeat=7))
        gaps.append(unevenness(shares, fold_of, 3) - best)
    assert min(gaps) > -1e-9
    assert max(gaps) < 0.01
    assert sum(gap < 1e-9 for gap in gaps) >= 10


def test_unevenness_of_a_deal_computed_by_hand() -> None:
    shares = np.array([[0.5, 0.2], [0.3, 0.8], [0.2, 0.0]])
    # Fold 0 holds 0.7 and 0.2, fold 1 holds 0.3 and 0.8 of the two classes.
    assert unevenness(shares, np.array([0, 1, 0]), 2) == pytest.approx(2 * 0.2**2 + 2 * 0.3**2)
    # A fold without the second class is fined.
    assert unevenness(shares, np.array([0, 0, 1]), 2) > 10


def test_label_imbalance_computed_by_hand() -> None:
    def part(labels: str) -> Split:
        return Split(0, (), (), tuple(row(str(i), label=label) for i, label in enumerate(labels)), ())

    assert label_imbalance([part("ab"), part("ab")]) == 0
    # Of four a: 3 and 1; of two b: 1 and 1. 3/4 is 1/4 above an even share.
    assert label_imbalance([part("aaab"), part("ab")]) == pytest.approx(0.25)


def test_the_seed_decides_the_deal() -> None:
    rows = hospitals()
    one = make_splits(rows, n_folds=5, seed=1, preserved_sites=True)
    assert one == make_splits(rows, n_folds=5, seed=1, preserved_sites=True)
    assert one != make_splits(rows, n_folds=5, seed=2, preserved_sites=True)


def test_without_the_wish_sites_are_ignored() -> None:
    rows = hospitals()
    blind = [SlideRow(item.slide_id, item.path, item.patient_id, item.label) for item in rows]
    with_sites = make_splits(rows, n_folds=5, seed=0)
    assert [ids(split.test) for split in with_sites] == [
        ids(split.test) for split in make_splits(blind, n_folds=5, seed=0)
    ]


def test_unlabelled_slides_of_held_out_sites_stay_out_of_that_fold() -> None:
    rows = [*hospitals(n_sites=20), row("u", "S03", label=None), row("free", "elsewhere", label=None)]
    used = 0
    for split in make_splits(rows, n_folds=5, seed=0, preserved_sites=True):
        assert_apart(split)
        assert "free" in ids(split.extra)
        used += "u" in ids(split.extra)
    assert used == 3  # all folds but those that test or validate its site


sites = st.lists(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3)), min_size=1, max_size=6),
    min_size=4,
    max_size=14,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(sites, st.integers(3, 5), st.integers(0, 3))
def test_no_site_is_ever_in_two_parts(drawn: list[list[tuple[str, int]]], n_folds: int, seed: int) -> None:
    rows = [
        row(f"{site}-{patient}-{slide}", f"S{site}", patient=f"{site}-{patient}", label=label)
        for site, patients in enumerate(drawn)
        for patient, (label, n_slides) in enumerate(patients)
        for slide in range(n_slides)
    ]
    rows += [row(f"u{site}", f"S{site}", label=None) for site in range(0, len(drawn), 3)]
    try:
        splits = make_splits(rows, n_folds=n_folds, seed=seed, preserved_sites=True)
    except ConfigError:
        assume(False)
    labelled = {item.slide_id for item in rows if item.label is not None}
    assert len(splits) == n_folds
    for split in splits:
        assert_apart(split)
        assert ids(split.train) | ids(split.val) | ids(split.test) == labelled
        assert {item.label for item in split.test} == {"a", "b"}
    tested = Counter(name for split in splits for name in ids(split.test))
    assert set(tested) == labelled
    assert set(tested.values()) == {1}


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 80), st.integers(20, 80), st.integers(3, 6), st.integers(0, 5))
def test_folds_by_patient_are_stratified(n_a: int, n_b: int, n_folds: int, seed: int) -> None:
    """One slide a patient: of each class no fold tests more than two slides more or less than its share."""
    rows = [row(f"{label}{i}", label=label) for label, n in (("a", n_a), ("b", n_b)) for i in range(n)]
    for split in make_splits(rows, n_folds=n_folds, seed=seed):
        counts = Counter(item.label for item in split.test)
        assert abs(counts["a"] - n_a / n_folds) <= 2
        assert abs(counts["b"] - n_b / n_folds) <= 2


# --- what can't be dealt ---------------------------------------------------------------------------------------------


def test_a_class_of_too_few_sites() -> None:
    rows = [row(f"{i}", f"S{i % 6}", label="a") for i in range(60)]
    rows += [row(f"b{i}", f"S{i % 4}", label="b") for i in range(20)]
    with pytest.raises(
        ConfigError, match=r"each class from as many sites; 'b' comes from 4\. Use fewer folds"
    ):
        make_splits(rows, n_folds=5, seed=0, preserved_sites=True)
    assert len(make_splits(rows, n_folds=4, seed=0, preserved_sites=True)) == 4


def test_sites_that_cannot_be_dealt_though_each_class_has_enough() -> None:
    """Three folds, three sites of each class: v and w hold a, c; x holds a, b; y holds b, c; z holds b.

    The fold of x gets its c from y alone, which leaves z for the b of two folds.
    """
    holds = {"v": "ac", "w": "ac", "x": "ab", "y": "bc", "z": "b"}
    counts = np.array([[int(label in labels) for label in "abc"] for labels in holds.values()])
    assert counts.sum(axis=0).tolist() == [3, 3, 3]
    assert deal_sites(counts, n_folds=3, seed=0) is None
    rows = [row(site + label, site, label=label) for site, labels in holds.items() for label in labels]
    with pytest.raises(ConfigError, match="no way was found to deal 5 sites into 3 folds"):
        make_splits(rows, n_folds=3, seed=0, preserved_sites=True)
    assert make_splits([*rows, row("b", "u", label="b")], n_folds=3, seed=0, preserved_sites=True)


@pytest.mark.parametrize(("extra", "message"), [
    (row("x", None), r"preserved sites need the column 'site'; it is empty for 1 slides: x"),
    (row("x", None, label=None), r"it is empty for 1 slides: x"),
    (row("x", "S01", patient="S00-0"), r"each patient at one site; 1 patients have several: S00-0"),
])  # fmt: skip
def test_tables_that_do_not_tell_the_site(extra: SlideRow, message: str) -> None:
    rows = [
        row(f"{i}", f"S{i % 10:02}", patient=f"S{i % 10:02}-0", label="ab"[i // 10 % 2]) for i in range(60)
    ]
    assert make_splits(rows, n_folds=5, seed=0, preserved_sites=True)
    with pytest.raises(ConfigError, match=message):
        make_splits([*rows, extra], n_folds=5, seed=0, preserved_sites=True)


def named(site_of_test: str) -> list[SlideRow]:
    rows = [
        row(f"{part}{i}", part, label="ab"[i % 2], fold=part) for part in ("train", "val") for i in range(4)
    ]
    return [*rows, *(row(f"test{i}", site_of_test, label="ab"[i % 2], fold="test") for i in range(4))]


def test_the_table_s_own_split_is_checked_for_sites() -> None:
    assert len(make_splits(named("test"), n_folds=5, seed=0, preserved_sites=True)) == 1
    assert len(make_splits(named("train"), n_folds=5, seed=0)) == 1
    with pytest.raises(
        ConfigError, match=r"1 sites are in two parts of the split: train\. The column 'fold'"
    ):
        make_splits(named("train"), n_folds=5, seed=0, preserved_sites=True)


def test_what_is_shared_between_parts_is_named_with_the_parts() -> None:
    parts = {
        "train": [row("1", "x"), row("2", "y")],
        "val": [row("3", "z")],
        "test": [row("4", "y"), row("5", None)],
    }
    assert shared_between(parts, lambda item: item.site) == {"y": ["train", "test"]}


# --- a part of its own for calibration -------------------------------------------------------------------------------


def patients(n: int, slides_each: int = 1) -> list[SlideRow]:
    return [
        row(f"{number}-{slide}", patient=f"p{number}", label="ab"[number % 2])
        for number in range(n)
        for slide in range(slides_each)
    ]


def test_half_of_the_validation_patients_choose_nothing_where_there_are_enough() -> None:
    whole = make_splits(patients(200, 2), n_folds=5, seed=3)
    parted = make_splits(patients(200, 2), n_folds=5, seed=3, calibration=0.5)
    for before, after in zip(whole, parted, strict=True):
        assert before.calibration == ()
        assert (before.train, before.test, before.extra) == (after.train, after.test, after.extra)
        assert sorted(ids(after.val) | ids(after.calibration)) == sorted(ids(before.val))
        of_val, of_calibration = (
            {item.patient_id for item in part} for part in (after.val, after.calibration)
        )
        assert not of_val & of_calibration
        assert len(of_calibration) == pytest.approx(len(of_val), abs=2)
        for part in (after.val, after.calibration):
            assert {item.label for item in part} == {"a", "b"}
        assert ids(after.labelled) == ids(before.labelled)
    assert parted == make_splits(patients(200, 2), n_folds=5, seed=3, calibration=0.5)
    assert parted != make_splits(patients(200, 2), n_folds=5, seed=4, calibration=0.5)


def test_few_validation_slides_stay_together() -> None:
    """Of 20 slides, two parts of 10 are too few to choose an epoch by."""
    for split in make_splits(patients(100), n_folds=5, seed=0, calibration=0.5):
        assert (len(split.val), split.calibration) == (20, ())


def test_a_table_may_name_its_calibration_slides() -> None:
    parts = ["train"] * 6 + ["val"] * 4 + ["calibration"] * 4 + ["test"] * 4
    rows = [row(str(n), patient=f"p{n}", label="ab"[n % 2], fold=part) for n, part in enumerate(parts)]
    (split,) = make_splits(rows, n_folds=5, seed=0, calibration=0.5)
    assert [item.slide_id for item in split.calibration] == ["10", "11", "12", "13"]
    assert KeptSplits.model_validate_json(KeptSplits.of([split], "k").model_dump_json()).splits() == [split]
    torn = [*rows, row("x", patient="p10", label="a", fold="train")]
    with pytest.raises(ConfigError, match="in two parts"):
        make_splits(torn, n_folds=5, seed=0)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("unsure", "says of slides"),
        ("Unlike  Training", "says of slides"),
        ("attention", "calls a channel of the heatmap"),
        ("Attention  for benign", "calls a channel of the heatmap"),
    ],
)
def test_a_class_called_as_what_the_program_says_itself_is_refused(label: str, said: str) -> None:
    rows = [row("a", label="benign"), row("b", label=label)]
    with pytest.raises(
        ConfigError,
        match=rf"^the label '{label}' can't be the name of a class: it is what the program itself {said}\. Call it",
    ):
        class_names(rows)
    assert class_names([row("a", label="attentive"), row("b", label="no attention")]) == (
        "attentive",
        "no attention",
    )
    assert class_names([row("a", label="benign"), row("b", label="unsure lesion")]) == (
        "benign",
        "unsure lesion",
    )
