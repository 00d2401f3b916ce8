"""python -m benchmarks.fuzz.run_files: the files that a training run keeps for itself, broken, then read by the next one.

A tiny run, finished, and one that was stopped while it trained a head. Right is what an undisturbed run comes to (weights,
curves, predictions, results, the report's page), or a sentence that says what isn't as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from typer.testing import CliRunner

from benchmarks.fuzz.attack import (
    JSON_TOKENS,
    Target,
    WrongValue,
    broken,
    flipped,
    main,
    spoil_file,
    with_odd_value,
)
from benchmarks.fuzz.kills import TINY_RUN, trained
from napari_lrmil.errors import LRMILError
from training.cohort import CohortConfig, generate_cohort
from training.report.build import build_report
from training.report.data import read_run
from training.run.cli import app
from training.run.layout import RunDir
from training.run.markers import Markers
from training.studies.runs import read_experiment

LIMIT_S = 60.0
"""Where a spoiled file has all be trained anew."""
_DATE = datetime(2026, 1, 1, tzinfo=UTC)
_TOKENS = (*JSON_TOKENS, b"0.5", b"1", b"nan", b"lrmil", b"\n")
_FEW = (
    "--evaluate.methods", '["lr_scratch"]', "--evaluate.shortcuts", '["rgb"]', "--evaluate.bootstrap", "100",
    "--mil.epochs", "3", "--stage1.epochs", "1", "--stage1.pairs_per_epoch", "32", "--stage1.val_pairs", "16",
    "--run.checkpoint_seconds", "0", "--run.threads", "1",
)  # fmt: skip
_OURS = (
    "config.json", "splits.json", "results.json", "done/*", "*/metrics/*", "*/checkpoints/*", "*/mil/*", "*/fits/*",
    "*/teacher_outputs.safetensors", "*/student_encoder.safetensors", "*/predictions/*", "*/test_attention/*",
    "*/calibration/*", "*/bundle/*", "tile_index/*", "shortcuts/*", "embeddings.zarr/*/store.json",
    "embeddings.zarr/*/*/manifest.json", "embeddings.zarr/*/*/zarr.json", "embeddings.zarr/*/*/*/c/*/*",
)  # fmt: skip
"""All that is attacked: each pattern as often as any other."""


class Refused(LRMILError):
    """What the command said, or the report."""


def targets() -> Iterable[Target]:
    """Return what is attacked here."""
    return (
        Target("training run: resumed", _make, _spoil, _resume, Refused, limit_s=LIMIT_S),
        Target(
            "training run: stopped, then resumed", _make_stopped, _spoil, _resume, Refused, limit_s=LIMIT_S
        ),
        Target("training run: reported", _make, _spoil, _report, limit_s=LIMIT_S),
    )


def _command(folder: Path) -> list[str]:
    slides = folder.parent / "slides"
    return [str(slides / "config.toml"), *_FEW, "--run.out_dir", str(folder / "run")]


def _make(folder: Path) -> None:
    """Train: the run believes to lie where its copies will."""
    slides, inside = folder.parent / "slides", folder.with_name("inside")
    if not (slides / "expected").exists():
        config = CohortConfig(n_unlabelled=1, n_train=4, n_val=2, n_test=2, width_px=512, height_px=512)
        table = generate_cohort(slides, config, seed=77)
        (slides / "config.toml").write_text(TINY_RUN.format(slides=table.absolute()), encoding="utf-8")
        _run(inside)
        shutil.copytree(inside / "run", slides / "expected")
        shutil.rmtree(inside)
    shutil.copytree(slides / "expected", folder / "run")


def _make_stopped(folder: Path) -> None:
    _make(folder)
    run = folder / "run"
    # As a kill leaves it between the last checkpoint of a head and its marker: made by such a run itself.
    inside = folder.with_name("inside")
    shutil.rmtree(run)
    write = Markers.write

    def stop(self: Markers, step: str, key: str, files: Iterable[Path] = ()) -> None:
        if step == "fold0/lrmil":
            raise KeyboardInterrupt
        write(self, step, key, files)

    Markers.write = stop  # type: ignore[method-assign]  # the run is stopped there
    try:
        CliRunner().invoke(app, _command(inside))
    finally:
        Markers.write = write  # type: ignore[method-assign]
    assert (inside / "run" / "fold0" / "checkpoints" / "lrmil.safetensors").is_file()
    shutil.move(inside / "run", run)
    shutil.rmtree(inside)


def _spoil(folder: Path, rng: Random) -> str:
    run = folder / "run"
    by_kind = [sorted(path for path in run.glob(pattern) if path.is_file()) for pattern in _OURS]
    path = rng.choice(rng.choice([paths for paths in by_kind if paths]))
    what = path.relative_to(run).as_posix()
    fault = rng.randrange(7)
    data = path.read_bytes()
    if fault == 0 or not data:
        return f"{what}: {spoil_file(path, rng)}"
    if fault == 1:
        path.write_bytes(flipped(data, rng))
        return f"a bit of {what}"
    if fault == 2:
        path.write_bytes(broken(data, _TOKENS, rng))
        return f"bytes of {what}"
    if fault == 3:
        old = rng.choice((b"0", b"1", b"true", b"s0", b"test", b"benign"))
        path.write_bytes(data.replace(old, rng.choice((b"2", b"9", b"lesion", b"false", b"nan"))))
        return f"other words in {what}"
    if fault == 4:
        others = [one for one in path.parent.parent.rglob(f"*{path.suffix}") if one.is_file() and one != path]
        if others:
            other = rng.choice(sorted(others))
            path.write_bytes(other.read_bytes())
            return f"{what} is {other.name[-30:]}"
    try:
        document, said = with_odd_value(json.loads(data), rng)
        path.write_text(json.dumps(document), encoding="utf-8")
    except ValueError:
        path.write_bytes(data[: rng.randrange(len(data))])
        return f"{what} cut"
    return f"{said} in {what}"


def _run(folder: Path) -> str:
    """Return what the command said."""
    done = CliRunner().invoke(app, _command(folder))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if done.exit_code:
        said = done.output[done.output.rfind("error:") :]
        raise Refused(said)
    return done.output


def _resume(folder: Path) -> None:
    expected = folder.parent / "slides" / "expected"
    said = " ".join(_run(folder).split())
    wanted, found = (_learnt(run) for run in (expected, folder / "run"))
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd and all(f"{name} isn't as" in said for name in odd):
        raise Refused(f"what only a report shows: {', '.join(odd)}")
    if odd:
        raise WrongValue(f"others than undisturbed: {', '.join(odd)[:200]}")


def _learnt(run: Path) -> dict[str, str]:
    return {name: value for name, value in trained(run).items() if "/checkpoints/" not in name}


@cache
def _page(run: Path) -> tuple[str, str]:
    """Return an undisturbed run's page, and what is read of it for the experiments."""
    with TemporaryDirectory(dir=run.parent) as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run, copy)
        return _said(copy)


def _said(run: Path) -> tuple[str, str]:
    page = build_report(run, out=run.parent / "page.html", n_examples=0, date=_DATE, device="cpu")
    fold = RunDir(run).fold(0)
    experiment = read_experiment([run])
    more = [
        repr(experiment.probabilities),
        *(repr(sorted(fold.read_attention(name).items())) for name in fold.attended_methods()),
    ]
    return page.read_text(encoding="utf-8"), "\n".join(more)


def _report(folder: Path) -> None:
    wanted = _page(folder.parent / "slides" / "expected")
    notes = read_run(folder / "run").notes
    if notes != read_run(folder.parent / "slides" / "expected").notes:
        raise Refused(" ".join(notes))
    if _said(folder / "run") != wanted:
        raise WrongValue("another page, or other predictions or attention, without a word")


if __name__ == "__main__":
    main(__doc__, targets)
