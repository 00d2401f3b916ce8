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
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
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

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.mil import AnyMILSpec, MILOutput, MILSpec, build_mil
from napari_lrmil.terminal import Commands, errors_as_messages
from training.checkpoint import Files
from training.data.bags import SlideBag
from training.loop import Recipe, Session, Task, fit
from training.progress import Reporter
from training.runtime import Runtime
from training.stages.heads import InTensors

WIDTHS = (256, 128, 64)
DROPOUT = 0.5
PUBLISHED = {
    "musk1": {"ABMIL": "0.892 ± 0.040", "gated ABMIL": "0.900 ± 0.050", "dsmil": "0.932"},
    "musk2": {"ABMIL": "0.858 ± 0.048", "gated ABMIL": "0.863 ± 0.042", "dsmil": "0.930"},
    "fox": {"ABMIL": "0.615 ± 0.043", "gated ABMIL": "0.603 ± 0.029", "dsmil": "0.729"},
    "tiger": {"ABMIL": "0.839 ± 0.022", "gated ABMIL": "0.845 ± 0.018", "dsmil": "0.869"},
    "elephant": {"ABMIL": "0.868 ± 0.022", "gated ABMIL": "0.857 ± 0.027", "dsmil": "0.925"},
}
"""Accuracy and its spread by name of the file, as remembered of the ABMIL and the DSMIL paper: check before quoting."""
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
    """Read bags in the order of their first rows.

    Raises
    ------
    ConfigError
        Where the file isn't such a table.
    """
    found: dict[str, tuple[int, list[list[float]]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.reader(file), start=1):
                label, features = int(row[0]), [float(cell) for cell in row[2:]]
                known = found.setdefault(row[1], (label, []))
                if known[0] != label or label not in (0, 1) or not features:
                    raise ValueError(
                        f"line {line}: label 0 or 1, the same in all rows of a bag, then features"
                    )
                known[1].append(features)
        return [
            SlideBag(name, torch.tensor(instances, dtype=torch.float32), label)
            for name, (label, instances) in found.items()
        ]
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{path} can't be read as bags: {error}") from error


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


def accuracy(
    variant: Variant, train: Sequence[SlideBag], test: Sequence[SlideBag], *, epochs: int, seed: int
) -> float:
    """Return the share of test bags that a head trained on the others gets right."""
    train, test = standardised(train, test)
    torch.manual_seed(seed)
    instances = {"embed_dim": train[0].instance_embeddings.shape[1], "n_classes": 2}
    model = build_mil(_SPECS.validate_python(variant.spec | instances))

    def batches(epoch: int) -> list[SlideBag]:
        return [train[place] for place in np.random.default_rng((seed, epoch)).permutation(len(train))]

    def losses(wrapped: nn.Module, bag: SlideBag) -> dict[str, Tensor]:
        output = MILOutput.of_tensors(wrapped(bag.on(torch.device("cpu"))))
        return {"loss": torch.stack(list(model.losses(output, bag.label).values())).sum()}

    done = 0

    def validate() -> dict[str, float]:
        nonlocal done
        done += 1
        return {"epochs": float(done)}  # the last one stays

    task = Task(
        batches=batches,
        steps_per_epoch=len(train),
        losses=losses,
        validate=validate,
        score=lambda metrics: (metrics["epochs"],),
        names=lambda bag, losses: bag.name,
    )
    recipe = Recipe(epochs=epochs, learning_rate=5e-4, weight_decay=5e-3, seed=seed, rising_epochs=5)
    with TemporaryDirectory() as folder:
        files, reporter = Files(Path(folder) / "fit.csv"), Reporter(Console(file=io.StringIO()))
        fit(
            model,
            task,
            recipe,
            Session(Runtime("cpu").head_fabric, files, reporter, variant.name),
            called=InTensors(model),
        )
    with torch.inference_mode():
        right = [int(model(bag.instance_embeddings).bag_logits.argmax()) == bag.label for bag in test]
    return float(np.mean(right))


def cross_validate(
    variant: Variant, bags: Sequence[SlideBag], *, n_folds: int, epochs: int, seed: int
) -> NDArray[np.float64]:
    """Return the accuracy of each fold, (n_folds,)."""
    labels = [bag.label for bag in bags]
    parts = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(labels, labels)
    return np.asarray(
        [
            accuracy(
                variant,
                [bags[place] for place in train],
                [bags[place] for place in test],
                epochs=epochs,
                seed=1000 * seed + fold,
            )
            for fold, (train, test) in enumerate(parts)
        ]
    )


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="A CSV file of one benchmark.", show_default=False)],
    seeds: Annotated[str, typer.Option(help="Of the repeats.")] = "0,1,2,3,4",
    folds: Annotated[int, typer.Option(min=2)] = 10,
    epochs: Annotated[int, typer.Option(min=1)] = 40,
    heads: Annotated[str, typer.Option(help="Rows by name, with commas between; all without it.")] = "",
) -> None:
    """Print the table."""
    with errors_as_messages():
        bags = read_bags(data)
        repeats = [int(word) for word in seeds.split(",")]
        wanted = {word.strip() for word in heads.split(",")} - {""}
        if unknown := wanted - {variant.name for variant in VARIANTS}:
            names = ", ".join(dict.fromkeys(variant.name for variant in VARIANTS))
            raise ConfigError(f"no row of these names: {', '.join(sorted(unknown))}; there are {names}")
        n_positive = sum(bag.label for bag in bags)
        print(
            f"{data.stem}: {len(bags)} bags, {n_positive} positive; {len(repeats)} x {folds} folds, "
            f"seeds {seeds}, {epochs} epochs\n"
        )
        print("| head | layers before the attention | accuracy | sd of repeats | published | s |")
        print("|---|---|---|---|---|---|")
        for variant in VARIANTS:
            if wanted and variant.name not in wanted:
                continue
            started = time.perf_counter()
            means = [
                cross_validate(variant, bags, n_folds=folds, epochs=epochs, seed=seed).mean()
                for seed in repeats
            ]
            known = PUBLISHED.get(data.stem, {}).get(variant.name) if variant.published else None
            print(
                f"| {variant.name} | {variant.layers} | {np.mean(means):.3f} | "
                f"{np.std(means, ddof=1) if len(means) > 1 else 0:.3f} | "
                f"{known or '-'} | {time.perf_counter() - started:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    app(prog_name="python -m training.studies.mil_classic")
