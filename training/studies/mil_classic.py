"""``python -m training.studies.mil_classic --data musk1.csv``: MIL heads on a classic benchmark, against published accuracy.

Rows of the table are instances: label of the bag (0 or 1), id of the bag, features; no header. The protocol is that of
Ilse, Tomczak & Welling (ICML 2018): 10-fold cross-validation, five times, mean accuracy at probability 0.5. What their
paper leaves open is fixed here, before the first run, and the same for all rows:

- folds are stratified by label and drawn anew for each repeat, from seeds 0 to 4;
- features are standardised with mean and standard deviation of the training folds' instances;
- ABMIL's layers before the attention are 256, 128 and 64 wide as in their paper, or none, the attention's hidden layer
  is 64; the other heads are as wide, 64, where their papers choose 512 for slides, and TransMIL has 16 landmarks, since
  a bag here has some six instances; what else they have by default is their papers';
- each head is trained with its own loss;
- AdamW, rate 5e-4 after 5 epochs of rising, weight decay 5e-3, dropout 0.5, one bag a step, 40 epochs, the last weights:
  there is no validation part and no choice of an epoch.

Dropout (0.1 or 0.5) was chosen for ABMIL by one repeat with seed 1000, whose folds are not in the table; nothing else was
tried, and nothing for the other heads. `--heads` takes some of the rows by name.

`--out FILE.csv` keeps the accuracy of each fold as soon as it is known: the same command goes on where it was killed, and
does nothing over that is there already. A change of the bags, of a head's numbers or of the protocol does it anew.

Not in it: ZoomMIL and HDMIL, which need bags at several magnifications, and FOCUS, which needs texts of its classes.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from pydantic import TypeAdapter
from rich.console import Console
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from napari_lrmil.atomic import write_csv
from napari_lrmil.errors import ConfigError
from napari_lrmil.model.mil import AnyBag, AnyMILSpec, MILModel, MILOutput, MILSpec, build_mil
from napari_lrmil.terminal import Commands, errors_as_messages
from training.checkpoint import Files
from training.data.bags import SlideBag
from training.hashing import content_hash
from training.loop import Recipe, Session, Task, fit
from training.progress import Reporter
from training.runtime import Runtime
from training.stages.heads import InTensors

WIDTHS = (256, 128, 64)
DROPOUT = 0.5
PUBLISHED = {
    "musk1": {"ABMIL": "0.892 ± 0.040", "gated ABMIL": "0.900 ± 0.050", "dsmil": "0.932 ± 0.023"},
    "musk2": {"ABMIL": "0.858 ± 0.048", "gated ABMIL": "0.863 ± 0.042", "dsmil": "0.930"},
    "fox": {"ABMIL": "0.615 ± 0.043", "gated ABMIL": "0.603 ± 0.029", "dsmil": "0.729"},
    "tiger": {"ABMIL": "0.839 ± 0.022", "gated ABMIL": "0.845 ± 0.018", "dsmil": "0.869"},
    "elephant": {"ABMIL": "0.868 ± 0.022", "gated ABMIL": "0.857 ± 0.027", "dsmil": "0.925"},
}
"""Accuracy and its spread by name of the file, as remembered of the ABMIL and the DSMIL paper: check before quoting.

DSMIL's is no estimate of the same thing: its authors' `train_mil.py` takes, of each test fold, the best epoch and the best
threshold on that fold.
"""
_LABELS = {0.0: 0, -1.0: 0, 1.0: 1}
_COLUMNS = ("key", "data", "head", "layers", "seed", "fold", "folds", "epochs", "accuracy", "seconds")
_RECIPE = Recipe(epochs=40, learning_rate=5e-4, weight_decay=5e-3, seed=0, rising_epochs=5)
"""Of all folds alike, but for epochs and seed."""
_SPECS: TypeAdapter[MILSpec] = TypeAdapter(AnyMILSpec)
app = Commands(add_completion=False, pretty_exceptions_enable=False)


class Variant(NamedTuple):
    """A row of the table."""

    name: str
    layers: str
    """Before the attention, as the table says it."""
    spec: dict[str, object]
    """What its spec has beside the widths of instances and classes."""
    published: bool = True
    """Whether the published head of this name is built so."""


def _abmil(name: str, gated: bool, widths: tuple[int, ...]) -> Variant:
    keys: dict[str, object] = {"hidden_dim": 64, "gated": gated, "dropout": DROPOUT, "projection": widths}
    return Variant(name, ", ".join(map(str, widths)) or "none", keys | {"name": "abmil"}, bool(widths))


_WIDTH: dict[str, object] = {"projection_dim": 64, "hidden_dim": 64, "dropout": DROPOUT}
VARIANTS = (
    *(
        _abmil(name, gated, widths)
        for widths in (WIDTHS, ())
        for name, gated in (("ABMIL", False), ("gated ABMIL", True))
    ),
    Variant("mean", "none", {"name": "mean", "dropout": DROPOUT}),
    Variant("max", "none", {"name": "max", "dropout": DROPOUT}),
    Variant("clam_sb", "64", _WIDTH | {"name": "clam_sb"}),
    Variant("clam_mb", "64", _WIDTH | {"name": "clam_mb"}),
    Variant("dsmil", "none", {"name": "dsmil", "query_dim": 64, "dropout": DROPOUT}),
    Variant("transmil", "64", {"name": "transmil", "dim": 64, "landmarks": 16, "dropout": DROPOUT}),
    *(
        Variant(f"dtfd {selection}", "64", _WIDTH | {"name": "dtfd", "selection": selection})
        for selection in ("afs", "max", "maxmin")
    ),
)


def read_bags(path: Path) -> list[SlideBag]:
    """Read bags in the order of their first rows: of any number of features, bags named as they like, in any order.

    A header line and empty lines are passed over; labels are 0 and 1, or -1 and 1.

    Raises
    ------
    ConfigError
        Where the file isn't such a table, naming the line.
    """
    found: dict[str, tuple[int, list[list[float]]]] = {}
    width = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line, row in enumerate(csv.reader(file), start=1):
                if not any(row) or (line == 1 and not _is_number(row[0])):
                    continue
                label, features = _LABELS.get(float(row[0])), [float(cell) for cell in row[2:]]
                width = width or len(features)
                if label is None or not features:
                    raise ValueError(f"line {line}: a label of 0 or 1, the id of a bag, then features")
                if len(features) != width:
                    raise ValueError(f"line {line}: {len(features)} features, where others have {width}")
                if not np.isfinite(features).all():
                    raise ValueError(f"line {line}: a feature isn't a finite number")
                known = found.setdefault(row[1].strip(), (label, []))
                if known[0] != label:
                    raise ValueError(
                        f"line {line}: bag {row[1].strip()!r} has another label in a line before"
                    )
                known[1].append(features)
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{path} can't be read as bags: {error}") from error
    if len({label for label, _ in found.values()}) < 2:
        raise ConfigError(f"{path} can't be read as bags: there must be some of each label")
    return [
        SlideBag(name, torch.tensor(instances, dtype=torch.float32), label)
        for name, (label, instances) in found.items()
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def standardised(
    train: Sequence[SlideBag], test: Sequence[SlideBag]
) -> tuple[list[SlideBag], list[SlideBag]]:
    """Return both with mean 0 and standard deviation 1 of each feature over the training instances."""
    instances = torch.cat([bag.instance_embeddings for bag in train])
    mean, std = instances.mean(dim=0), instances.std(dim=0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))

    def scaled(bag: SlideBag) -> SlideBag:
        return bag._replace(instance_embeddings=(bag.instance_embeddings - mean) / std)

    return [scaled(bag) for bag in train], [scaled(bag) for bag in test]


def train_head(
    model: MILModel, bags: Sequence[tuple[str, AnyBag, int]], recipe: Recipe, *, name: str = ""
) -> MILModel:
    """Train a head in place with its own loss, all epochs of a recipe, and return it in eval mode.

    Parameters
    ----------
    model : MILModel
    bags : sequence of (str, bag, int)
        Name, bag and label of each.
    recipe : Recipe
    name : str
        For errors.
    """

    def batches(epoch: int) -> list[tuple[str, AnyBag, int]]:
        return [bags[place] for place in np.random.default_rng((recipe.seed, epoch)).permutation(len(bags))]

    def losses(wrapped: nn.Module, one: tuple[str, AnyBag, int]) -> dict[str, Tensor]:
        output = MILOutput.of_tensors(wrapped(one[1]))
        return {"loss": torch.stack(list(model.losses(output, one[2]).values())).sum()}

    done = 0

    def validate() -> dict[str, float]:
        nonlocal done
        done += 1
        return {"epochs": float(done)}  # the last one stays

    task = Task(
        batches=batches,
        steps_per_epoch=len(bags),
        losses=losses,
        validate=validate,
        score=lambda metrics: (metrics["epochs"],),
        names=lambda one, losses: one[0],
    )
    with TemporaryDirectory() as folder:
        files, reporter = Files(Path(folder) / "fit.csv"), Reporter(Console(file=io.StringIO()))
        session = Session(Runtime("cpu").head_fabric, files, reporter, name)
        fit(model, task, recipe, session, called=InTensors(model))
    return model


def accuracy(
    variant: Variant, train: Sequence[SlideBag], test: Sequence[SlideBag], *, epochs: int, seed: int
) -> float:
    """Return the share of test bags that a head trained on the others gets right."""
    train, test = standardised(train, test)
    torch.manual_seed(seed)
    instances = {"embed_dim": train[0].instance_embeddings.shape[1], "n_classes": 2}
    model = train_head(
        build_mil(_SPECS.validate_python(variant.spec | instances)),
        [(bag.name, bag.on(torch.device("cpu")), bag.label) for bag in train],
        replace(_RECIPE, epochs=epochs, seed=seed),
        name=variant.name,
    )
    with torch.inference_mode():
        right = [int(model(bag.instance_embeddings).bag_logits.argmax()) == bag.label for bag in test]
    return float(np.mean(right))


class KeptFolds:
    """Accuracies by what they depend on, in a CSV file that is written anew after each; without a file only in memory.

    Raises
    ------
    ConfigError
        Where the file is there and is no such table.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._rows: dict[str, tuple[object, ...]] = {}
        if path is None or not path.exists():
            return
        try:
            with path.open(newline="", encoding="utf-8") as file:
                columns, *rows = csv.reader(file)
                if tuple(columns) != _COLUMNS:
                    raise ValueError(f"its columns aren't {', '.join(_COLUMNS)}")
                self._rows = {row[0]: (*row[:-2], float(row[-2]), float(row[-1])) for row in rows}
        except (OSError, ValueError, IndexError) as error:
            raise ConfigError(f"{path} can't be read as accuracies of folds: {error}") from error

    def get(self, key: str) -> tuple[float, float] | None:
        """Return accuracy and seconds, where they are known."""
        row = self._rows.get(key)
        return None if row is None else (float(str(row[-2])), float(str(row[-1])))

    def add(self, key: str, *cells: object) -> None:
        """Keep a row: `_COLUMNS` after the key."""
        self._rows[key] = (key, *cells)
        if self._path is not None:
            write_csv(self._path, _COLUMNS, self._rows.values())


class Repeat(NamedTuple):
    """Of one head, all folds once."""

    accuracies: NDArray[np.float64]
    """(n_folds,)"""
    seconds: float


def cross_validate(
    variant: Variant,
    bags: Sequence[SlideBag],
    *,
    n_folds: int,
    epochs: int,
    seed: int,
    kept: KeptFolds | None = None,
    name: str = "",
) -> Repeat:
    """Return the accuracy of each fold; those that are kept aren't trained again.

    Parameters
    ----------
    variant : Variant
    bags : sequence of SlideBag
    n_folds : int
    epochs : int
    seed : int
    kept : KeptFolds, optional
    name : str
        Of the bags, in the file.
    """
    kept = KeptFolds() if kept is None else kept
    labels = [bag.label for bag in bags]
    least = min(labels.count(label) for label in (0, 1))
    if least < n_folds:
        raise ConfigError(f"{n_folds} folds need as many bags of each label; of one there are {least}")
    of_bags = [(bag.name, bag.label, bag.instance_embeddings.numpy().tobytes()) for bag in bags]
    of_all = content_hash(_RECIPE, sorted(variant.spec.items()), n_folds, epochs, of_bags)[:16]
    parts = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(labels, labels)
    found = []
    for fold, (train, test) in enumerate(parts):
        key = f"{of_all}-{seed}-{fold}"
        known = kept.get(key)
        if known is None:
            started = time.process_time()
            right = accuracy(
                variant,
                [bags[place] for place in train],
                [bags[place] for place in test],
                epochs=epochs,
                seed=1000 * seed + fold,
            )
            known = right, round(time.process_time() - started, 2)
            kept.add(key, name, variant.name, variant.layers, seed, fold, n_folds, epochs, *known)
        found.append(known)
    return Repeat(np.asarray([right for right, _ in found]), sum(seconds for _, seconds in found))


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="A CSV file of one benchmark.", show_default=False)],
    seeds: Annotated[str, typer.Option(help="Of the repeats.")] = "0,1,2,3,4",
    folds: Annotated[int, typer.Option(min=2)] = 10,
    epochs: Annotated[int, typer.Option(min=1)] = 40,
    heads: Annotated[
        str, typer.Option(help="Rows by name, with commas between, in this order; all without it.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            help="A CSV file that keeps each fold: the command goes on from it.", show_default=False
        ),
    ] = None,
) -> None:
    """Print the table."""
    with errors_as_messages():
        bags, kept = read_bags(data), KeptFolds(out)
        try:
            repeats = [int(word) for word in seeds.split(",")]
        except ValueError as error:
            raise ConfigError(f"--seeds {seeds!r}: numbers with commas between") from error
        wanted = list(dict.fromkeys(word.strip() for word in heads.split(",") if word.strip()))
        names = list(dict.fromkeys(variant.name for variant in VARIANTS))
        if unknown := set(wanted) - set(names):
            raise ConfigError(
                f"no row of these names: {', '.join(sorted(unknown))}; there are {', '.join(names)}"
            )
        n_positive = sum(bag.label for bag in bags)
        print(
            f"{data.stem}: {len(bags)} bags, {n_positive} positive; {len(repeats)} x {folds} folds, "
            f"seeds {seeds}, {epochs} epochs\n"
        )
        print("| head | layers before the attention | accuracy | sd of repeats | published | s |")
        print("|---|---|---|---|---|---|")
        for variant in sorted(VARIANTS, key=lambda one: wanted.index(one.name) if one.name in wanted else -1):
            if wanted and variant.name not in wanted:
                continue
            told = [
                cross_validate(
                    variant, bags, n_folds=folds, epochs=epochs, seed=seed, kept=kept, name=data.stem
                )
                for seed in repeats
            ]
            means = [repeat.accuracies.mean() for repeat in told]
            known = PUBLISHED.get(data.stem, {}).get(variant.name) if variant.published else None
            print(
                f"| {variant.name} | {variant.layers} | {np.mean(means):.3f} | "
                f"{np.std(means, ddof=1) if len(means) > 1 else 0:.3f} | "
                f"{known or '-'} | {sum(repeat.seconds for repeat in told):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    app(prog_name="python -m training.studies.mil_classic")
