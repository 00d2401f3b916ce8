"""The classic MIL benchmark: any table of its shape is read, and a killed command goes on where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from napari_lrmil.errors import ConfigError
from training.studies import mil_classic
from training.studies.mil_classic import VARIANTS, KeptFolds, Variant, app, cross_validate, read_bags

MEAN, MAX = (next(one for one in VARIANTS if one.name == name) for name in ("mean", "max"))


def write_table(path: Path, *, n_features: int = 7, n_positive: int = 6, n_negative: int = 14) -> Path:
    """Bags of other names, another width and balance than MUSK1's; positive ones have an instance far out."""
    rng = np.random.default_rng(0)
    lines = []
    for bag in range(n_positive + n_negative):
        label = int(bag < n_positive)
        rows = rng.normal(size=(rng.integers(1, 9), n_features))
        rows[0, 0] += 6 * label
        rows[:, -1] = 3.0  # the same in all instances
        lines += [f"{label},mol-{bag} a,{','.join(f'{cell:.6g}' for cell in row)}" for row in rows]
    rng.shuffle(lines)  # the rows of a bag needn't stand together
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_of_other_width_names_and_balance_is_read(tmp_path: Path) -> None:
    path = write_table(tmp_path / "other.csv")
    bags = read_bags(path)
    assert sorted(bag.name for bag in bags) == sorted(f"mol-{bag} a" for bag in range(20))
    assert sum(bag.label for bag in bags) == 6
    assert {bag.instance_embeddings.shape[1] for bag in bags} == {7}
    assert sum(len(bag.instance_embeddings) for bag in bags) == len(path.read_text().splitlines())


def test_a_header_empty_lines_and_labels_of_minus_one_are_read(tmp_path: Path) -> None:
    path = tmp_path / "bags.csv"
    path.write_text("\ufefflabel,bag,f1,f2\r\n1.0,a,1,2e0\r\n\r\n-1,b,3,4\r\n1,a,5,6\r\n", encoding="utf-8")
    bags = read_bags(path)
    assert [(bag.name, bag.label) for bag in bags] == [("a", 1), ("b", 0)]
    assert bags[0].instance_embeddings.tolist() == [[1, 2], [5, 6]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,a,1\n2,b,1\n", "line 2: a label of 0 or 1"),
        ("1,a,1\n0,a,1\n", "line 2: bag 'a' has another label"),
        ("1,a,1\n0,b,1,2\n", "line 2: 2 features, where others have 1"),
        ("1,a,1\n0,b,nan\n", "line 2: a feature isn't a finite number"),
        ("1,a,1\n0,b,x\n", "could not convert"),
        ("1,a\n", "line 1: a label of 0 or 1"),
        ("1,a,1\n1,b,2\n", "some of each label"),
        ("", "some of each label"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bags.csv").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_bags(tmp_path / "bags.csv")


def test_a_killed_command_goes_on_after_the_folds_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_table(tmp_path / "other.csv"), tmp_path / "folds.csv"
    asked = ["--data", str(data), "--seeds", "0,1", "--folds", "3", "--epochs", "1", "--heads", "max,mean"]
    real, trained = mil_classic.accuracy, []

    def counted(variant: Variant, *args: object, **keywords: object) -> float:
        if len(trained) == 4:
            raise KeyboardInterrupt
        trained.append(variant.name)
        return real(variant, *args, **keywords)

    monkeypatch.setattr(mil_classic, "accuracy", counted)
    killed = CliRunner().invoke(app, [*asked, "--out", str(out)])
    assert killed.exit_code != 0
    assert trained == ["max"] * 4  # in the order that was asked for
    assert len(out.read_text().splitlines()) == 1 + 4
    monkeypatch.setattr(mil_classic, "accuracy", real)
    whole = CliRunner().invoke(app, [*asked, "--out", str(out)])
    plain = CliRunner().invoke(app, asked)
    assert len(out.read_text().splitlines()) == 1 + 2 * 2 * 3
    # All but the seconds is what a command that nothing stopped says.
    told = [line.rsplit("|", 2)[0] for line in whole.output.splitlines()]
    assert told == [line.rsplit("|", 2)[0] for line in plain.output.splitlines()]

    def never(*args: object, **keywords: object) -> float:
        raise AssertionError("all folds are kept")

    monkeypatch.setattr(mil_classic, "accuracy", never)
    assert CliRunner().invoke(app, [*asked, "--out", str(out)]).output == whole.output


def test_folds_of_other_bags_or_another_head_are_not_taken(tmp_path: Path) -> None:
    kept, bags = KeptFolds(tmp_path / "folds.csv"), read_bags(write_table(tmp_path / "other.csv"))
    cross_validate(MEAN, bags, n_folds=2, epochs=1, seed=0, kept=kept)
    for variant, of, epochs in ((MEAN, bags[1:], 1), (MAX, bags, 1), (MEAN, bags, 2)):
        before = len((tmp_path / "folds.csv").read_text().splitlines())
        cross_validate(variant, of, n_folds=2, epochs=epochs, seed=0, kept=kept)
        assert len((tmp_path / "folds.csv").read_text().splitlines()) == before + 2


def test_too_few_bags_of_a_label_for_the_folds_are_refused(tmp_path: Path) -> None:
    bags = read_bags(write_table(tmp_path / "other.csv"))
    with pytest.raises(ConfigError, match="of one there are 6"):
        cross_validate(MEAN, bags, n_folds=7, epochs=1, seed=0)


def test_a_file_of_something_else_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "folds.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="can't be read as accuracies of folds"):
        KeptFolds(tmp_path / "folds.csv")
    assert (tmp_path / "folds.csv").read_text() == "a,b\n1,2\n"
