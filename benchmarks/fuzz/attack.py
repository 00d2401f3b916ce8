"""What all attacks share: break a copy, use it under watch, count how it went.

A use gives the right value, or the error that its reader promises, in one sentence; in 10 s and 1 GB; and it runs no
code, starts no process, opens no connection and touches nothing outside of its folder. Each attempt has a random
generator of its own, so that one can be repeated alone: ``--from 17 --tries 1``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from napari_lrmil.errors import LRMILError

LIMIT_S = 10.0
LIMIT_BYTES = 10**9
_HARD_LIMITS = 3.0
"""After so many times the limit, an attempt is ended."""
_MOST_SAID = 5000
"""Characters: a table that is wrong says so for several lines of it."""
_RIGHT, _REFUSED = "right", "refused"
_OTHER, _SLOW, _MEMORY, _DIED, _WRONG, _TOUCHED = (
    "other exceptions",
    "over time",
    "over memory",
    "died",
    "wrong",
    "touched",
)
_FAULTS = (_OTHER, _WRONG, _TOUCHED, _SLOW, _MEMORY, _DIED)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
    "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip
_FORBIDDEN = {
    "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile",
    "socket.connect", "pty.spawn", "webbrowser.open", "code.__new__", "pickle.find_class",
}  # fmt: skip


class WrongValue(Exception):
    """A value came of something broken that isn't the right one."""


class _TooLong(BaseException):
    """The attempt doesn't end; no `except Exception` catches this."""


@dataclass(frozen=True)
class Target:
    """Something that the program reads.

    Attributes
    ----------
    name : str
    make : callable
        Makes a good one in an empty folder.
    spoil : callable
        Breaks a copy of it, by a random generator; returns what it did.
    use : callable
        Uses it as the program does; raises `WrongValue` where that gives what it shouldn't.
    promised : type of LRMILError, or several
        What the use may raise.
    limit_s : float
        How long one use may take.
    """

    name: str
    make: Callable[[Path], None]
    spoil: Callable[[Path, Random], str]
    use: Callable[[Path], object]
    promised: type[LRMILError] | tuple[type[LRMILError], ...] = LRMILError
    limit_s: float = LIMIT_S


@dataclass(frozen=True)
class Attempt:
    """How one went."""

    number: int
    kind: str
    text: str = ""
    seconds: float = 0.0
    n_bytes: int = 0


@dataclass
class Tally:
    """How all attempts on a target went."""

    name: str
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """Attempts by kind."""
        return Counter(attempt.kind for attempt in self.attempts)

    @property
    def faults(self) -> list[str]:
        """What was neither right nor refused."""
        return [f"{self.name} {a.number}: {a.kind}: {a.text}" for a in self.attempts if a.kind in _FAULTS]


def attack(
    target: Target,
    folder: Path,
    *,
    seed: int,
    count: int,
    start: int = 0,
    told: Callable[[Attempt], None] | None = None,
) -> Tally:
    """Attack a target in this process.

    Parameters
    ----------
    target : Target
    folder : Path
        Empty; everything happens below it.
    seed, count, start : int
        Attempts ``start`` to ``start + count - 1`` of the seed.
    told : callable, optional
        Gets each attempt when it has ended.
    """
    good, inside, outside = folder / "good", folder / "inside", folder / "outside"
    good.mkdir()
    _make_outside(outside)
    before = _listing(outside)
    target.make(good)
    tally = Tally(target.name)
    with _own_folders(folder):
        for number in range(start, start + count):
            rng = Random(f"{target.name} {seed} {number}")
            _remove(inside)
            shutil.copytree(good, inside, symlinks=True)
            what = target.spoil(inside, rng)
            attempt = _attempt(target, number, inside, what)
            if _listing(outside) != before:
                attempt = Attempt(number, _TOUCHED, f"the folder beside it changed; {what}")
                _remove(outside)
                _make_outside(outside)
                before = _listing(outside)
            tally.attempts.append(attempt)
            if told is not None:
                told(attempt)
    _remove(inside)
    return tally


def _attempt(target: Target, number: int, inside: Path, what: str) -> Attempt:
    _forget_peak()
    held = _peak_bytes()
    begin = time.perf_counter()
    kind, text = _RIGHT, what
    with _watched(inside.parent) as touched:
        try:
            with _time_limit(_HARD_LIMITS * target.limit_s):
                target.use(inside)
        except target.promised as error:
            kind, said = _REFUSED, str(error)
            if not said or len(said) > _MOST_SAID:
                kind, text = _OTHER, f"an error of {len(said):,} characters: {said[:200]!r}; {what}"
        except WrongValue as error:
            kind, text = _WRONG, f"{error}; {what}"
        except MemoryError as error:
            kind, text = _MEMORY, f"{error}; {what}"
        except _TooLong:
            kind, text = _SLOW, f"did not end; {what}"
        except Exception as error:  # noqa: BLE001 - to be counted
            kind, text = _OTHER, f"{type(error).__name__}: {str(error)[:300]}; {what}"
    seconds, n_bytes = time.perf_counter() - begin, max(0, _peak_bytes() - held)
    if touched:
        kind, text = _TOUCHED, f"{touched[0]}; {what}"
    elif seconds > target.limit_s:
        kind, text = _SLOW, f"{seconds:.1f} s; {what}"
    elif n_bytes > LIMIT_BYTES:
        kind, text = _MEMORY, f"{n_bytes / 1e9:.1f} GB; {what}"
    return Attempt(number, kind, text, seconds, n_bytes)


def attack_in_child(target: Target, *, seed: int, count: int, start: int) -> Tally:
    """Attack a target in a process of its own; where that dies, the attempt is counted and the next ones go on."""
    tally = Tally(target.name)
    end = start + count
    while start < end:
        with tempfile.TemporaryDirectory(prefix="lrmil-fuzz-") as folder:
            log = Path(folder) / "log"
            log.touch()
            pid = os.fork()
            if pid == 0:
                _child(target, Path(folder), log, seed, end - start, start)
            status = os.waitpid(pid, 0)[1]
            done = [Attempt(**json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]
        tally.attempts += done
        start += len(done)
        if start < end:
            tally.attempts.append(Attempt(start, _DIED, f"status {status}"))
            start += 1
    return tally


def _child(target: Target, folder: Path, log: Path, seed: int, count: int, start: int) -> None:
    place = folder / "place"
    place.mkdir()
    # Beyond the limit by far, so that the machine isn't taken along.
    most = _virtual_bytes() + 6 * LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    status = 1
    warnings.simplefilter("ignore")
    try:
        with log.open("a", encoding="utf-8", buffering=1) as file:
            attack(
                target,
                place,
                seed=seed,
                count=count,
                start=start,
                told=lambda attempt: print(json.dumps(asdict(attempt)), file=file, flush=True),
            )
        status = 0
    except BaseException as error:  # noqa: BLE001 - a forked process goes no further
        print(f"{target.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def main(description: str, targets: Callable[[], Iterable[Target]]) -> None:
    """Attack each target and print how it went, as rows of a table."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tries", type=int, default=500, help="attempts on each target for each seed")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--from", type=int, default=0, dest="start", help="number of the first attempt")
    parser.add_argument("--only", default="", help="targets with this in their name")
    options = parser.parse_args()
    columns = ("what", "tried", _RIGHT, _REFUSED, *_FAULTS, "longest, s", "most memory, MB")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for target in targets():
        if options.only not in target.name:
            continue
        tally = Tally(target.name)
        for seed in options.seed:
            found = attack_in_child(target, seed=seed, count=options.tries, start=options.start)
            tally.attempts += found.attempts
            for fault in found.faults:
                print(f"  seed {seed}, {fault}", file=sys.stderr, flush=True)
        print(_row(tally), flush=True)


def _row(tally: Tally) -> str:
    counts = tally.counts
    cells = [
        tally.name,
        len(tally.attempts),
        counts[_RIGHT],
        counts[_REFUSED],
        *(counts[kind] for kind in _FAULTS),
    ]
    longest = max((attempt.seconds for attempt in tally.attempts), default=0.0)
    most = max((attempt.n_bytes for attempt in tally.attempts), default=0)
    return f"| {' | '.join(map(str, cells))} | {longest:.2f} | {most / 1e6:.0f} |"


# ---- watching


_watching: dict[str, object] = {}
_is_hooked = False


@contextmanager
def _watched(root: Path) -> Iterator[list[str]]:
    """Fill a list with what is done outside of a folder, and with what shouldn't be done at all."""
    global _is_hooked
    if not _is_hooked:
        sys.addaudithook(_audit)
        _is_hooked = True
    touched: list[str] = []
    _watching.update(root=f"{root}{os.sep}", outside=f"{root / 'outside'}{os.sep}", touched=touched)
    try:
        yield touched
    finally:
        _watching.clear()


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if not _watching or (event != "open" and event not in _CHANGES and event not in _FORBIDDEN):
        return
    touched = _watching["touched"]
    assert isinstance(touched, list)
    if event in _FORBIDDEN:
        # The program's own: what opens slides first, and the version that a bundle is exported by.
        if "napari_lrmil.slide.helper" in str(arguments) or "'git', 'rev-parse'" in str(arguments):
            return
        touched.append(f"{event} {str(arguments)[:200]}")
        return
    paths = (
        arguments[:1]
        if event == "open"
        else [a for a in arguments if isinstance(a, str | bytes | os.PathLike)]
    )
    for path in paths:
        if isinstance(path, int) or path is None:  # a file that is open already
            continue
        place = os.fsdecode(path)  # type: ignore[arg-type]  # of an audit event: str, bytes or path
        base = arguments[-1]  # a folder that is open, where the path starts
        if event != "open" and isinstance(base, int) and base >= 0 and not os.path.isabs(place):
            place = os.path.join(os.readlink(f"/proc/self/fd/{base}"), place)
        text = os.path.abspath(place)
        if text.startswith(str(_watching["outside"])):
            touched.append(f"{event} {text}")
        elif event == "open" and not _writes(arguments):
            continue
        elif not (text.startswith(str(_watching["root"])) or "__pycache__" in text or text == os.devnull):
            touched.append(f"{event} {text}")


def _writes(arguments: Sequence[object]) -> bool:
    flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
    mode = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], str) else ""
    return bool(flags & _WRITES) or bool(set(mode) & set("wax+"))


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _own_folders(folder: Path) -> Iterator[None]:
    """Home, cache and data folder below `folder`."""
    own = {name: str(folder / name.lower()) for name in ("HOME", "LRMIL_CACHE_DIR", "LRMIL_DATA_DIR")}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _make_outside(outside: Path) -> None:
    (outside / "folder").mkdir(parents=True)
    (outside / "secret.txt").write_text("nobody's business\n", encoding="utf-8")
    (outside / "folder" / "note.txt").write_text("mine\n", encoding="utf-8")


def _listing(folder: Path) -> list[tuple[str, float, bytes]]:
    return [
        (str(path.relative_to(folder)), path.lstat().st_mtime, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    ]


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # then the peak is that of the process so far
        return


def _peak_bytes() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _virtual_bytes() -> int:
    return _status("VmSize") or 2**40


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


# ---- breaking


def broken(good: bytes, tokens: Sequence[bytes], rng: Random) -> bytes:
    """Return bytes with one to three faults: changed, cut, doubled, or swapped for others that mean something."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        fault = rng.randrange(11) // 2  # cut off at the end half as often
        if fault == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif fault == 1:
            data[at : at + rng.randint(0, 8)] = rng.choice(tokens)
        elif fault == 2:
            del data[at : at + rng.randint(1, 40)]
        elif fault == 3:
            data[at:at] = data[at : at + rng.randint(1, 200)]
        elif fault == 4:
            data[at:at] = rng.choice(tokens)
        else:
            del data[at + rng.randrange(len(data) + 1) :]
    return bytes(data)


def flipped(good: bytes, rng: Random) -> bytes:
    """Return bytes of which one has one other bit."""
    data = bytearray(good)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


JSON_TOKENS = (
    b"null", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"[]", b"{}", b'"\\ud800"', b"[" * 5000, b'{"a":' * 5000,
    b"9" * 5000, b"-0", b"0", b"-1", b"1000000000000", b"true", b'"', b",", b"\xff", b"\0", b"1e308", b'"x"',
    b"\xed\xa0\x80", b"0.5", b"'", b"\n",
)  # fmt: skip
ODD_VALUES: tuple[object, ...] = (
    0, -1, 1, 2, 0.5, 10**12, -(10**12), 10**30, 1e308, 1e-320, float("nan"), float("inf"), float("-inf"), True, False,
    None, "", "x", "1", "\ud800", "\x1b[2J", "a\0b", "a\nb", "<script>alert(1)</script>", "[bold]x[/]", "=1+1", "../../x",
    "/etc/passwd", "~nosuchuser", "a" * 100_000, [], {}, [[]], {"a": 1}, [0] * 100_000, "\u202etxet", "NaN",
)  # fmt: skip


def with_odd_value(document: object, rng: Random) -> tuple[object, str]:
    """Return a JSON value with one of its parts changed, left out, doubled or added, and what was done."""
    places = list(_places(document, ()))
    place = rng.choice(places)
    if not place:
        return rng.choice(ODD_VALUES), "another document"
    parent: Any = document  # lists and objects in each other
    for key in place[:-1]:
        parent = parent[key]
    last = place[-1]
    value_there = parent[last]
    name = ".".join(map(str, place))
    fault = rng.randrange(8)
    if fault == 0:
        del parent[last]
        return document, f"without {name}"
    if fault == 1 and isinstance(parent, dict):
        parent[rng.choice(("x", "", "\ud800", "__class__"))] = rng.choice(ODD_VALUES)
        return document, f"more beside {name}"
    if fault == 2 and isinstance(parent, list):
        parent.append(value_there)
        return document, f"{name} twice"
    value = rng.choice(ODD_VALUES)
    parent[last] = value
    return document, f"{name} = {str(value)[:40]!r}"


def _places(value: object, place: tuple[object, ...]) -> Iterator[tuple[object, ...]]:
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from _places(part, (*place, key))


def spoil_file(path: Path, rng: Random) -> str:
    """Put something else in a file's place: nothing, a folder, a link, a pipe, a device, a file of 1 TB without content."""
    fault = rng.randrange(9)
    outside = path.resolve()
    while outside.name != "inside":
        outside = outside.parent
    outside = outside.with_name("outside")
    path.unlink()
    if fault == 0:
        return f"{path.name} is missing"
    if fault == 1:
        path.mkdir()
    elif fault == 2:
        path.symlink_to(outside / "secret.txt")
    elif fault == 3:
        path.symlink_to(path.name)
    elif fault == 4:
        path.symlink_to(outside / "folder")
    elif fault == 5:
        os.mkfifo(path)
    elif fault == 6:
        path.symlink_to("/dev/zero")
    elif fault == 7:
        with path.open("wb") as file:
            file.truncate(10**12)
    else:
        path.touch()
    return f"{path.name} as oddity {fault}"
