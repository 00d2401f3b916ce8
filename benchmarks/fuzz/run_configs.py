"""python -m benchmarks.fuzz.run_configs: configs of training runs, as files and as options of the command line.

Each is read as `python -m training.run` reads it, written and read again as a run keeps it, and its folds are dealt.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random

from pydantic import BaseModel

from benchmarks.fuzz.attack import ODD_VALUES, Target, WrongValue, broken, main
from napari_lrmil.errors import ConfigError
from training.config import RunConfig, load_config
from training.data.splits import make_splits

_GOOD = b"""[run]
out_dir = "run"
seed = 3
device = "cpu"
[data]
slides = "slides.csv"
n_folds = 5
[tiles]
tile_px = 64
mpp_lr = 2.0
[encoder]
architecture = "vit"
options = { patch_px = 16 }
[stage1]
layers = [0, 1]
epochs = 2
learning_rate = 1e-3
[stage2]
l_soft = 0.5
[mil]
epochs = 30
gated = true
[export]
name = "a student"
"""
_TOKENS = (
    b"[", b"]", b"=", b'"', b"'", b"{", b"}", b"\n", b".", b"[[" * 3000, b"inf", b"nan", b"-1", b"0", b"9" * 5000, b"1e999",
    b"true", b"\xff", b"\0", b"1979-05-27T07:32:00Z", b'"\\ud800"', b"../../", b"/dev/zero", b"[run]\n", b"a.b.c=1\n",
    b"1000000000000", b'"""', b"#", b"~nosuchuser", b"a={b=" * 2000,
)  # fmt: skip
_TABLE = "slide_id,path,patient_id,label\n" + "".join(
    f"s{i},s{i}.tiff,p{i},{'ab'[i % 2]}\n" for i in range(40)
)


def _keys(model: type[BaseModel], before: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}"


_KEYS = sorted(_keys(RunConfig))


def _make(folder: Path) -> None:
    (folder / "config.toml").write_bytes(_GOOD)
    (folder / "slides.csv").write_text(_TABLE)
    (folder / "words").write_text("")


def _spoil_file(folder: Path, rng: Random) -> str:
    (folder / "config.toml").write_bytes(broken(_GOOD, _TOKENS, rng))
    return "bytes"


def _spoil_words(folder: Path, rng: Random) -> str:
    words = []
    for _ in range(rng.randint(1, 3)):
        key = (
            rng.choice(_KEYS)
            if rng.random() < 0.9
            else rng.choice(("x", "run", "run.", ".", "run.seed.x", ""))
        )
        value = rng.choice(
            (*map(str, ODD_VALUES), "[[" * 3000, "a.b=1", '"', "{", "1979-05-27", "0x10", "[0,1]")
        )
        words += [f"--{key}={value}"] if rng.random() < 0.5 else [f"--{key}", value]
    if rng.random() < 0.1:
        words = words[:-1]
    text = "\0\0".join(words)
    (folder / "words").write_text(text, encoding="utf-8", errors="surrogatepass")
    return repr(text[:300])


def _use(folder: Path) -> None:
    text = (folder / "words").read_text(encoding="utf-8", errors="surrogatepass")
    place = ["--data.slides", str(folder / "slides.csv")]
    config = load_config(folder / "config.toml", [*place, *(text.split("\0\0") if text else ())])
    kept = RunConfig.model_validate_json(config.model_dump_json())
    if kept != config:
        raise WrongValue("a config that is kept is another")
    rows = config.data.rows(lambda note: None)
    splits = make_splits(
        rows,
        n_folds=config.data.n_folds,
        seed=config.run.seed,
        preserved_sites=config.data.preserved_sites,
        calibration=config.data.calibration,
    )
    for split in splits:
        parts = (split.train, split.val, split.test, split.calibration)
        patients = [{row.patient_id for row in part} for part in parts]
        if sum(map(len, patients)) != len(set().union(*patients)):
            raise WrongValue("a patient is in two parts of a fold")


def targets() -> Iterable[Target]:
    """Return what is attacked here: the file, and options of the command line."""
    return (
        Target("run config: file", _make, _spoil_file, _use, ConfigError),
        Target("run config: options", _make, _spoil_words, _use, ConfigError),
    )


if __name__ == "__main__":
    main(__doc__, targets)
