"""python -m benchmarks.fuzz.kills: `lrmil predict`, training runs and verdicts, killed at random moments.

After each kill what the program had said to be saved is looked for: a printed line, a row of the table, a step that is
marked as done, a verdict. What lies under its final name must be whole. Then the same command is given again, and killed
again, and at last it runs to its end: it must end like a run that nobody killed.

With --folder a run of this script that was stopped goes on where it was. Seeds fix signals and moments, not what the
program was just doing then.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from napari_lrmil.export.errors import ResultFileError
from napari_lrmil.export.result import read_prediction
from napari_lrmil.worklist import Worklist
from training.cohort import CohortConfig, generate_cohort
from training.notice import RESUMABLE

ROOT = Path(__file__).resolve().parents[2]
TINY_RUN = """
[run]
out_dir = "run"
seed = 5
device = "cpu"

[data]
slides = "{slides}"

[tiles]
tile_px = 32
mpp_lr = 2.0
ratio = 4

[encoder]
architecture = "vit_tiny_patch16_224"
options = {{ patch_size = 8, img_size = 32, embed_dim = 24, depth = 3, num_heads = 2 }}
batch_size = 64

[mil]
hidden_dim = 16
epochs = 4
patience = 2
learning_rate = 5e-3

[stage1]
layers = [0, 2]
epochs = 2
pairs_per_epoch = 160
val_pairs = 64

[evaluate]
bootstrap = 100

[export]
name = "Tiny student"
demonstration = true
licence = "bsd-3-clause"
"""
"""The config of a training run of seconds."""

Signals = Sequence[signal.Signals]
SIGNALS = (*[signal.SIGKILL] * 7, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Seven of ten can't be noticed by the program."""
_START_S = 1.0
"""Before it, Python itself is starting, and says so with a traceback if Ctrl-C is pressed."""
_MOST_KILLS = 4
"""Of one run, before it may end."""
_END_S = 900.0
_TOLD = re.compile(r"^\d+/\d+ (\S+): (\w+) ([01]\.\d{3}), ", re.MULTILINE)
_MAY_DIFFER = ("seconds",)
"""Of a result, how long it took."""


@dataclass
class Tally:
    """How an attack went.

    Attributes
    ----------
    trials : int
        Runs that were killed and then brought to their end.
    kills : dict of str to int
        By signal.
    reported : int
        What was said to be saved before a kill, and looked for after it.
    resumed : int
        Of these, what the next run took over without doing it again.
    scratch : int
        Hidden unfinished files that lay there after a kill.
    faults : list of str
    """

    trials: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    reported: int = 0
    resumed: int = 0
    scratch: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def n_kills(self) -> int:
        """All of them."""
        return sum(self.kills.values())

    def killed(self, number: signal.Signals) -> None:
        """Count a kill."""
        self.kills[number.name] = self.kills.get(number.name, 0) + 1

    def line(self, name: str) -> str:
        """Return the figures for people."""
        by_signal = ", ".join(f"{count} {name}" for name, count in sorted(self.kills.items()))
        return (
            f"{name}: {self.n_kills} kills ({by_signal}) of {self.trials} runs; {self.reported} reported as saved and "
            f"looked for, {self.resumed} taken over by the next run, {self.scratch} unfinished files left, "
            f"{len(self.faults)} faults"
        )


class Reference(NamedTuple):
    """What runs that nobody killed have left.

    Attributes
    ----------
    folder : Path
        With ``out`` of the classification, and ``config.toml`` and ``run`` where there was a training.
    slides, bundle : Path
        Folder of slides, and what they are classified with.
    predict_s, train_s : float
        How long it took.
    """

    folder: Path
    slides: Path
    bundle: Path
    predict_s: float
    train_s: float = 0.0


class Fault(Exception):
    """Something that must not be."""


def make_reference(folder: Path) -> Reference:
    """Make slides, train on them and classify them, unless that was done before."""
    known, slides, bundle = (
        folder / "reference.json",
        folder / "cohort" / "slides",
        folder / "run" / "fold0" / "bundle",
    )
    if known.exists():
        return Reference(folder, slides, bundle, *json.loads(known.read_text()))
    config = CohortConfig(n_unlabelled=2, n_train=6, n_val=3, n_test=4, width_px=512, height_px=512)
    table = generate_cohort(folder / "cohort", config, seed=77)
    (folder / "config.toml").write_text(TINY_RUN.format(slides=table.absolute()))
    begin = time.monotonic()
    _run(train_command(folder, folder / "run"), folder)
    train_s = time.monotonic() - begin
    made = classified(folder, slides, bundle)._replace(train_s=train_s)
    known.write_text(json.dumps([made.predict_s, train_s]))
    return made


def classified(folder: Path, slides: Path, bundle: Path) -> Reference:
    """Classify a folder of slides."""
    begin = time.monotonic()
    _run(predict_command(slides, bundle, folder / "out"), folder)
    return Reference(folder, slides, bundle, time.monotonic() - begin)


def _run(command: Sequence[str], folder: Path) -> None:
    said = folder / "said.txt"
    if run_to_its_end(command, said, cache=folder / "cache") != 0:
        raise RuntimeError(said.read_text())


def predict_command(slides: Path, bundle: Path, out: Path) -> list[str]:
    """Return the arguments after ``python`` of a classification on the CPU."""
    return [
        *("-m", "napari_lrmil", "predict", str(slides), "--bundle", str(bundle)),
        *("--out", str(out), "--device", "cpu"),
    ]


def train_command(folder: Path, out: Path) -> list[str]:
    """Return the arguments after ``python`` of a training run that keeps its state after every epoch."""
    options = ("--run.checkpoint_seconds", "0", "--run.out_dir", str(out))
    return ["-m", "training.run", str(folder / "config.toml"), *options]


@contextmanager
def running(command: Sequence[str], said: Path, *, cache: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a Python process whose both streams go into a file; it is killed at the end of the block."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "LRMIL_CACHE_DIR": str(cache),
        "COLUMNS": "300",
    }
    with said.open("wb") as out:
        process = subprocess.Popen([sys.executable, *command], stdout=out, stderr=out, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def run_to_its_end(command: Sequence[str], said: Path, *, cache: Path) -> int:
    """Return the exit status of a Python process."""
    with running(command, said, cache=cache) as process:
        return process.wait(_END_S)


def kill_at(
    command: Sequence[str],
    said: Path,
    *,
    cache: Path,
    number: signal.Signals,
    after_s: float,
    after: Callable[[], bool] | None = None,
) -> bool:
    """Run a Python process and send it a signal; return whether that ended it.

    Parameters
    ----------
    command : sequence of str
    said : Path
        File for both streams.
    cache : Path
    number : Signals
    after_s : float
        When, counted from its start, or from when `after` holds.
    after : callable, optional

    Raises
    ------
    Fault
        Where it ended in another way.
    """
    with running(command, said, cache=cache) as process:
        until = time.monotonic() + _END_S
        while after is not None and not after() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        with suppress(subprocess.TimeoutExpired):
            process.wait(after_s if number is signal.SIGKILL or after is not None else max(after_s, _START_S))
        process.send_signal(number)
        status = process.wait(_END_S)
    text = said.read_text(errors="replace")
    if status == 0:
        return False
    if status not in (-number, 128 + number, *([RESUMABLE] if number is signal.SIGTERM else [])):
        raise Fault(f"{number.name} ended it with status {status}: {text[-500:]}")
    if "Traceback" in text:
        raise Fault(f"{number.name}: a traceback: {text[-1500:]}")
    return True


# ---- lrmil predict


def attack_predict(
    reference: Reference, work: Path, seed: int, n_kills: int, tally: Tally, *, signals: Signals = SIGNALS
) -> None:
    """Kill `lrmil predict` once to four times, and let it end."""
    rng = random.Random(f"predict {seed}")
    out, cache, said = work / "out", work / "cache", work / "said.txt"
    command = predict_command(reference.slides, reference.bundle, out)
    n_slides = len(list(reference.slides.iterdir()))
    told: dict[str, str] = {}
    for _ in range(rng.randint(1, min(_MOST_KILLS, n_kills))):
        number = rng.choice(signals)
        line = rng.randrange(n_slides)
        early = rng.random() < 0.25
        killed = kill_at(
            command,
            said,
            cache=cache,
            number=number,
            after_s=rng.uniform(0, reference.predict_s) if early else rng.expovariate(1 / 0.05),
            after=None if early else _lines_told(said, line),
        )
        told |= {stem: label for stem, label, _ in _TOLD.findall(said.read_text(errors="replace"))}
        if killed:
            tally.killed(number)
        tally.scratch += sum(path.name.startswith(".") for path in work.rglob("*"))
        tally.reported += len(told)
        _check_results(reference, out, told)
    if run_to_its_end(command, said, cache=cache) != 0:
        raise Fault(f"the next run doesn't end: {said.read_text()[-500:]}")
    again = said.read_text()
    from_cache = set(re.findall(r"^\d+/\d+ (\S+): .*, from cache$", again, re.MULTILINE))
    if not set(told) <= from_cache:
        raise Fault(f"computed again though reported: {sorted(set(told) - from_cache)}")
    tally.resumed += len(told)
    _check_results(reference, out, {stem: label for stem, label, _ in _TOLD.findall(again)})
    names = [
        sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
        for folder in (out, reference.folder / "out")
    ]
    if names[0] != names[1]:
        raise Fault(f"at the end there are {names[0]}")
    tables = [_table(folder / "predictions.csv") for folder in (out, reference.folder / "out")]
    if tables[0] != tables[1]:
        raise Fault("at the end the table is another one")


def _lines_told(said: Path, count: int) -> Callable[[], bool]:
    return lambda: len(_TOLD.findall(said.read_text(errors="replace"))) >= count


def _check_results(reference: Reference, out: Path, told: dict[str, str]) -> None:
    """Look whether what was told is there, and whether all that is there is whole.

    Raises
    ------
    Fault
    """
    expected = reference.folder / "out"
    if out.exists():
        for path in sorted(out.iterdir()):
            if path.name.startswith(".") or path.name == "predictions.csv":
                continue
            if not _same_file(path, expected / path.name):
                raise Fault(f"{path.name} is not what an undisturbed run writes")
            if path.suffix == ".json":
                try:
                    read_prediction(path)
                except ResultFileError as error:
                    raise Fault(str(error)) from error
    rows = _table(out / "predictions.csv")
    all_rows = _table(expected / "predictions.csv")
    if len({row["slide"] for row in rows}) != len(rows):
        raise Fault("a slide has two rows")
    if any(row not in all_rows for row in rows):
        raise Fault(
            f"rows that an undisturbed run doesn't write: {[row for row in rows if row not in all_rows]}"
        )
    in_table = {row["slide"]: row["label"] for row in rows}
    for stem, label in told.items():
        if in_table.get(stem) != label:
            raise Fault(f"{stem} was reported as {label}, the table says {in_table.get(stem)}")
        if not ((out / f"{stem}.json").exists() and (out / f"{stem}.csv").exists()):
            raise Fault(f"{stem} was reported, its files are absent")


def _same_file(path: Path, other: Path) -> bool:
    if not other.exists():
        return False
    if path.suffix != ".json":
        return path.read_bytes() == other.read_bytes()
    try:
        values = [json.loads(each.read_bytes()) for each in (path, other)]
    except ValueError:
        return False
    return _without_times(values[0]) == _without_times(values[1])


def _without_times(value: dict[str, object]) -> dict[str, object]:
    return {key: part for key, part in value.items() if key not in _MAY_DIFFER}


def _table(path: Path) -> list[dict[str, str]]:
    """The rows of ``predictions.csv`` without times; in the order of names."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(None in row or None in row.values() for row in rows):
        raise Fault("a row of the table is torn")
    kept = [{key: value for key, value in row.items() if key not in _MAY_DIFFER} for row in rows]
    return sorted(kept, key=lambda row: row["slide"])


# ---- training


def attack_training(
    reference: Reference, work: Path, seed: int, n_kills: int, tally: Tally, *, signals: Signals = SIGNALS
) -> None:
    """Kill a training run once to four times, and let it end."""
    rng = random.Random(f"train {seed}")
    run, said, cache = work / "run", work / "said.txt", work / "cache"
    command = train_command(reference.folder, run)
    marked: dict[str, int] = {}
    for _ in range(rng.randint(1, min(_MOST_KILLS, n_kills))):
        number = rng.choice(signals)
        if kill_at(command, said, cache=cache, number=number, after_s=rng.uniform(0, reference.train_s)):
            tally.killed(number)
        now = _marks(run)
        lost = {name for name, when in marked.items() if now.get(name) != when}
        if lost:
            raise Fault(f"steps that were done are done again or lost: {sorted(lost)}")
        marked = now
        tally.reported += len(marked)
        tally.scratch += sum(path.name.startswith(".") for path in run.rglob("*"))
        results = run / "results.json"
        if results.exists() and not _same_file(results, reference.folder / "run" / "results.json"):
            raise Fault("results.json holds something else")
    if run_to_its_end(command, said, cache=cache) != 0:
        raise Fault(f"the next run doesn't end: {said.read_text()[-500:]}")
    now = _marks(run)
    again = {name for name, when in marked.items() if now[name] != when}
    if again:
        raise Fault(f"steps that were done are done again: {sorted(again)}")
    tally.resumed += len(marked)
    hashes = [trained(each) for each in (run, reference.folder / "run")]
    different = [
        name for name in hashes[0].keys() | hashes[1].keys() if hashes[0].get(name) != hashes[1].get(name)
    ]
    if different:
        raise Fault(f"other results than of an undisturbed run: {sorted(different)}")


def _marks(run: Path) -> dict[str, int]:
    """When each step was marked as done."""
    return {path.name: path.stat().st_mtime_ns for path in (run / "done").glob("[!.]*")}


def trained(run: Path) -> dict[str, str]:
    """Return hashes of what a run has learnt and measured: weights, curves, predictions, results."""
    found = [
        *run.rglob("*.safetensors"),
        *run.rglob("metrics/*.csv"),
        *run.rglob("predictions/*"),
        run / "results.json",
    ]
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if path.is_file() and not path.name.startswith(".")
    }


# ---- verdicts

_REVIEWER = """
import sys
from pathlib import Path
from napari_lrmil.worklist import ReviewFile, Worklist

folder, name, start = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
worklist = Worklist.open(folder)
path = folder / name

def saved(number):
    print(number, flush=True)
"""
_DIRECTLY = """
for number in range(start, 10**9):
    worklist.note_verdict(path, "agree", "x" * (number % 7 * 700) + str(number))
    worklist.reviews.write_waiting()
    saved(number)
"""
"""As scripts do: wait for each."""
_BY_THE_WINDOW = """
from qtpy.QtCore import QCoreApplication, QTimer
from napari_lrmil._viewer.docks.worklist.verdicts import VerdictWriter
from napari_lrmil._viewer.qt.background import QtBackground
from napari_lrmil.worklist import Saved

app = QCoreApplication([])
noted = start - 1
told = start - 1

def changed():
    global told
    worklist.look_what_is_saved()
    n_waiting = len(worklist.reviews.waiting)
    if (worklist[path].saved is Saved.YES) != (n_waiting == 0):
        raise SystemExit("the row says something else than the file")
    if noted - n_waiting > told:
        told = noted - n_waiting
        saved(told)

writer = VerdictWriter(QtBackground(), changed)

def judge():
    global noted
    if len(worklist.reviews.waiting) > 3:
        return
    noted += 1
    worklist.note_verdict(path, "agree", "x" * (noted % 7 * 700) + str(noted))
    writer.write(worklist.reviews)

clock = QTimer()
clock.timeout.connect(judge)
clock.start(1)
app.exec_()
"""
"""As the dock does: noted at once, written behind the window."""


def attack_verdicts(work: Path, seed: int, tally: Tally) -> None:
    """Kill one of two processes that write verdicts into the same file, and go on.

    The other one is killed after it, so that each dies beside a living one or a dead one.
    """
    rng = random.Random(f"verdicts {seed}")
    folder = work / "slides"
    if not folder.exists():
        folder.mkdir(parents=True)
        for name in ("s1.svs", "s2.svs"):
            (folder / name).write_bytes(name.encode())
    starts = {path.name: _last_number(folder, path) + 1 for path in sorted(folder.glob("*.svs"))}
    code = _REVIEWER + (_BY_THE_WINDOW if rng.random() < 0.3 else _DIRECTLY)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "QT_QPA_PLATFORM": "offscreen"}
    reviewers = {
        name: subprocess.Popen(
            [sys.executable, "-c", code, str(folder), name, str(start)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        for name, start in starts.items()
    }
    told: dict[str, int] = {}
    for name, process in reviewers.items():
        assert process.stdout is not None
        first = _line_of(process)  # it is at work
        time.sleep(rng.uniform(0, 0.06))
        process.kill()
        lines = [first, *process.stdout.read().split("\n")[:-1]]
        process.stdout.close()
        process.wait()
        if not first:
            raise Fault("no verdict could be saved: a stale lock?")
        told[name] = int(lines[-1])
        tally.killed(signal.SIGKILL)
        tally.reported += len(lines)
    for name, number in told.items():
        kept = _last_number(folder, folder / name)
        if kept < number:
            raise Fault(f"{name}: verdict {number} was reported as saved, the file ends with {kept}")
    if rng.random() < 0.2 or tally.trials == 0:
        _check_lines((folder / "lrmil-review.jsonl").read_bytes().splitlines(), told)
    if rng.random() < 0.1:  # a new file is made under fire, too
        (folder / "lrmil-review.jsonl").unlink()


def _line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints; empty where it prints none."""
    assert process.stdout is not None
    watchdog = threading.Timer(_END_S, process.kill)
    watchdog.start()
    try:
        return process.stdout.readline()
    finally:
        watchdog.cancel()


def _last_number(folder: Path, slide: Path) -> int:
    worklist = Worklist.open(folder)
    if any("was cut off" not in problem for problem in worklist.reviews.problems):
        raise Fault(f"lines that can't be read: {worklist.reviews.problems}")
    note = worklist[slide].note.lstrip("x")
    return int(note) if note else -1


def _check_lines(lines: Sequence[bytes], told: dict[str, int]) -> None:
    """Look whether every verdict has its line, in order, not only the last one.

    Raises
    ------
    Fault
    """
    numbers: dict[str, list[int]] = {name: [] for name in told}
    for raw in lines:
        with suppress(ValueError):
            line = json.loads(raw)
            numbers[line["slide"]].append(int(line["note"].lstrip("x")))
    for name, found in numbers.items():
        if found != list(range(found[0], found[0] + len(found))):
            raise Fault(f"{name}: verdicts are lost or twice")


# ---- all


def attack(
    name: str, one: Callable[[Path, int, int, Tally], None], *, count: int, seed: int, folder: Path
) -> Tally:
    """Repeat an attack until there were `count` kills; go on from what the folder says of an earlier run."""
    kept = folder / f"{name}-{seed}.json"
    tally = Tally(**json.loads(kept.read_text())) if kept.exists() else Tally()
    work = folder / f"{name}-work"
    while tally.n_kills < count:
        try:
            one(work, seed + 1000 * tally.trials, count - tally.n_kills, tally)
        except Fault as fault:
            tally.faults.append(f"{name}, seed {seed}, run {tally.trials}: {fault}")
            shutil.move(work, folder / f"{name}-fault-{len(tally.faults)}")
        tally.trials += 1
        kept.write_text(json.dumps(asdict(tally)))
    shutil.rmtree(work, ignore_errors=True)
    return tally


def begin_empty(one: Callable[[Path, int, int, Tally], None]) -> Callable[[Path, int, int, Tally], None]:
    """Let a run begin in an empty folder."""

    def begin(work: Path, seed: int, n_kills: int, tally: Tally) -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        one(work, seed, n_kills, tally)

    return begin


def main() -> None:
    """Kill, and print how it went."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--predict", type=int, default=50, help="kills of lrmil predict")
    parser.add_argument("--train", type=int, default=50, help="kills of training runs")
    parser.add_argument("--verdicts", type=int, default=400, help="kills of processes that write verdicts")
    parser.add_argument(
        "--signals",
        nargs="+",
        choices=sorted({number.name for number in SIGNALS}),
        help="with which predict and training are ended; default: seven of ten SIGKILL, and each of the others",
    )
    parser.add_argument("--folder", type=Path, help="where it works, and goes on if it was stopped")
    options = parser.parse_args()
    # Started with nohup, or behind a shell, this process ignores them, and so would all that it starts.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals = [signal.Signals[name] for name in options.signals] if options.signals else SIGNALS
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        reference = make_reference(folder.absolute())
        attacks: dict[str, tuple[int, Callable[[Path, int, int, Tally], None]]] = {
            "verdicts": (options.verdicts, lambda work, seed, _, tally: attack_verdicts(work, seed, tally)),
            "predict": (options.predict, begin_empty(partial(attack_predict, reference, signals=signals))),
            "train": (options.train, begin_empty(partial(attack_training, reference, signals=signals))),
        }
        for name, (count, one) in attacks.items():
            tally = attack(name, one, count=count, seed=options.seed, folder=folder.absolute())
            print(tally.line(name), flush=True)
            for fault in tally.faults:
                print(f"  {fault}", flush=True)


if __name__ == "__main__":
    main()
