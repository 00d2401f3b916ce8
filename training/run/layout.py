"""The run directory: every path in it, with what reads and what writes it. No other module spells a name in it.

::

    config.json  splits.json  results.json  report.html
    done/                    a marker a finished step: the hash of what it was made from, and those of its files
    tile_index/<slide>.json  shortcuts/<slide>.json  reads/<slide>.json
    tile_index/<factor>_<times>/<slide>.json   the tiles of heads of several magnifications
    embeddings.zarr/         unless run.embeddings is elsewhere
    .locks/                  who is at work at which step (`training.run.locks`)
    tensorboard/<folder>/<stage>/
    foldN/                   of the first seed; and shared/, of what serves all folds
        metrics/<stage>.csv  checkpoints/<stage>.safetensors
        mil/<method>.safetensors  fits/<method>.json  teacher_outputs.safetensors  student_encoder.safetensors
        encoders/<method>.safetensors of encoders that were trained together with their heads
        predictions/<method>.csv  val_predictions/<method>.csv  test_attention/<method>.safetensors  calibration/<method>.json
        bundle/  cheapest/ (where another row than LRMIL was chosen)
        student_shuffled/ student_enlarged/ stage1-HASH/   f' of rows of the comparison that train another one
        ridge_fit.safetensors
        seedS/               the same of heads of another seed, encoderS/ and encoderS/seedS/ of encoders of another seed

Steps meet only through files here; all are read through the markers (`training.run.markers`), which know how they were.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError

from napari_lrmil.atomic import fitting_name, write_text
from napari_lrmil.errors import BundleError, ConfigError, reason_of
from napari_lrmil.model.bundle import BundleInfo, load_info
from napari_lrmil.model.mil import MILModel, MILSpec, build_mil
from napari_lrmil.model.naming import BUNDLE_FILE
from napari_lrmil.outside import parse_json
from training.checkpoint import Files
from training.config import RunConfig, RunSection
from training.data.derived import RidgeFit
from training.data.predictions import (
    Predictions,
    SlideAttention,
    parse_attention,
    parse_predictions,
    write_attention,
    write_predictions,
)
from training.data.splits import KeptSplits, Split
from training.files import parse_tensors, save_tensors, write_json
from training.hashing import content_hash
from training.methods import TEACHER
from training.run.markers import CONFIG, CURE, FRONT, RESULTS, SPLITS, Markers, RunDirError, unreadable
from training.stages.calibrate import Calibration
from training.stages.distill_slides import TeacherOutput
from training.stages.front import Front
from training.stages.gate import Gate
from training.stages.heads import Fit, FittedHead

Curve = dict[str, NDArray[np.float64]]
"""Column of a metrics file -> one value an epoch; "epoch" is one of them."""


@dataclass(frozen=True)
class Folder:
    """``foldN``, or ``shared`` for what serves all folds; and their parts of other seeds, as ``fold0/encoder1/seed3``."""

    run_root: Path
    name: str

    @property
    def root(self) -> Path:
        """The folder itself."""
        return self.run_root / self.name

    @property
    def number(self) -> int:
        """Of a fold."""
        return int(self.name.partition("/")[0].removeprefix("fold"))

    def trainings(self) -> dict[tuple[str, str], Folder]:
        """Return a fold's folders by the seeds in their names, (encoder, head), in order: ``("encoder1", "seed3")``.

        Those of the first ones are empty, as they have none in their folder's name.
        """
        paths = (self.root, *(path for how in ("*", "*/*") for path in self.root.glob(how) if path.is_dir()))
        found = {}
        for path in paths:
            inside = path.relative_to(self.root).as_posix().removeprefix(".")
            if match := re.fullmatch(r"(encoder\d+)?/?(seed\d+)?", inside):
                place = f"{self.name}/{inside}" if inside else self.name
                found[match[1] or "", match[2] or ""] = Folder(self.run_root, place)
        return {key: found[key] for key in sorted(found, key=lambda key: [(len(one), one) for one in key])}

    @property
    def markers(self) -> Markers:
        """Of the steps of the run."""
        return Markers(self.run_root)

    # --- steps

    @property
    def stage1_step(self) -> str:
        """Name of the step that trains f'."""
        return f"{self.name}/stage1"

    @property
    def export_step(self) -> str:
        """Name of the step that exports the bundle."""
        return f"{self.name}/export"

    @property
    def ridge_step(self) -> str:
        """Name of the step that fits the ridge regression."""
        return f"{self.name}/ridge_fit"

    @property
    def gate_step(self) -> str:
        """Name of the step that asks whether the fold's teacher has anything to give."""
        return f"{self.name}/gate"

    def training_step(self, method: str) -> str:
        """Return the name of the step that trains a method's head."""
        return f"{self.name}/{'teacher_mil' if method == TEACHER.key else method}"

    def test_step(self, method: str) -> str:
        """Return the name of the step that asks a method about the test slides."""
        return f"{self.name}/test_{method}"

    # --- training

    @property
    def gate(self) -> Path:
        """How the fold's teacher compares with LR from scratch on validation slides."""
        return self.root / "gate.json"

    def write_gate(self, gate: Gate) -> None:
        """Keep how the teacher compares."""
        write_json(self.gate, gate.model_dump())

    def read_gate(self) -> Gate | None:
        """Return how the teacher compares; None where nobody has asked yet.

        Raises
        ------
        RunDirError
            Where the file is damaged.
        """
        if self.markers.find(self.gate_step) is None:
            return None
        try:
            return Gate.model_validate_json(self.markers.read(self.gate, self.gate_step))
        except FileNotFoundError:  # it is asked again
            return None
        except (OSError, ValidationError) as error:
            raise unreadable(self.gate, error) from error

    def metrics(self, stage: str) -> Path:
        """Return the table with a row an epoch of a stage, or of a method's head."""
        return self.root / "metrics" / f"{stage}.csv"

    def checkpoint(self, stage: str) -> Path:
        """Return the file from which a killed training goes on; it is gone once that is finished."""
        return self.root / "checkpoints" / f"{stage}.safetensors"

    def files(self, stage: str, key: str, section: RunSection) -> Files:
        """Return where a stage writes while it trains, and how often."""
        return Files(
            metrics_csv=self.metrics(stage),
            tensorboard=self.run_root / "tensorboard" / self.name / stage,
            checkpoint=self.checkpoint(stage),
            key=key,
            checkpoint_seconds=section.checkpoint_seconds,
            checkpoint_minutes=section.checkpoint_minutes,
            checkpoint_steps=section.checkpoint_steps,
        )

    def read_curve(self, stage: str) -> Curve | None:
        """Return the metrics of a stage or head; None where there are none.

        Raises
        ------
        RunDirError
            Where they are damaged.
        """
        curve = self._read_curve(self.metrics(stage), stage)
        if curve is None and stage == "stage1":  # where the first versions put it
            curve = self._read_curve(self.root / "student_encoder.csv", stage)
        return curve

    def lost_curve(self, stage: str) -> bool:
        """Whether a stage or head had metrics when it was finished, and they aren't there any more."""
        path = self.metrics(stage)
        return not path.exists() and self.markers.has_written(path, self._curve_step(stage))

    def _curve_step(self, stage: str) -> str:
        return self.stage1_step if stage == "stage1" else self.training_step(stage)

    def _read_curve(self, path: Path, stage: str) -> Curve | None:
        step = self._curve_step(stage)
        try:
            text = self.markers.read(path, step).decode()
            records = list(csv.DictReader(io.StringIO(text, newline="")))
            curve = {
                name: np.array([float(record[name]) for record in records], np.float64) for name in records[0]
            }
        except FileNotFoundError:
            return None
        except RunDirError as error:
            raise RunDirError(
                f"{str(error).removesuffix(CURE)}Delete it: the report then does without that curve."
            ) from error
        except (OSError, ValueError, TypeError, IndexError, csv.Error) as error:
            raise unreadable(path, error, " as the curve of a training") from error
        return curve if "epoch" in curve else None

    # --- weights

    @property
    def student_encoder(self) -> Path:
        """Weights of f'."""
        return self.root / "student_encoder.safetensors"

    @property
    def random_encoder(self) -> Path:
        """Weights of an f that was not pretrained, for the workers of a cluster."""
        return self.root / "random_encoder.safetensors"

    def read_student(self) -> dict[str, torch.Tensor]:
        """Return the weights of f'.

        Raises
        ------
        RunDirError
            Where they are missing or damaged.
        """
        return self._read_tensors(self.student_encoder, self.stage1_step)

    def _read_tensors(self, path: Path, step: str) -> dict[str, torch.Tensor]:
        try:
            return parse_tensors(self.markers.read(path, step))
        except (OSError, SafetensorError) as error:
            raise unreadable(path, error) from error

    @property
    def ridge_fit(self) -> Path:
        """The regression of f(LR) onto HR of the fold's training slides."""
        return self.root / "ridge_fit.safetensors"

    def write_ridge(self, fit: RidgeFit) -> None:
        """Keep that regression."""
        save_tensors(self.ridge_fit, {name: torch.tensor(value) for name, value in fit._asdict().items()})

    def read_ridge(self) -> RidgeFit:
        """Return it.

        Raises
        ------
        RunDirError
            Where it is missing or damaged.
        """
        kept = self._read_tensors(self.ridge_fit, self.ridge_step)
        return RidgeFit(kept["coefficients"].numpy(), kept["intercept"].numpy(), float(kept["strength"]))

    def head(self, method: str) -> Path:
        """Return the file of a method's MIL head."""
        return self.root / "mil" / f"{method}.safetensors"

    def encoder(self, method: str) -> Path:
        """Return the file of the encoder that was trained together with a method's head."""
        return self.root / "encoders" / f"{method}.safetensors"

    def read_encoder(self, method: str) -> dict[str, torch.Tensor]:
        """Return the weights of that encoder.

        Raises
        ------
        RunDirError
            Where they are missing or damaged.
        """
        return self._read_tensors(self.encoder(method), self.training_step(method))

    def fit(self, method: str) -> Path:
        """Return the file of how well a method learned its own training slides."""
        return self.root / "fits" / f"{method}.json"

    def write_fit(self, method: str, fit: Fit) -> None:
        """Keep how well a method learned its own training slides."""
        write_json(self.fit(method), fit.model_dump())

    def read_fit(self, method: str) -> Fit:
        """Return how well a method learned its own training slides.

        Raises
        ------
        RunDirError
            Where that is missing or damaged.
        """
        path = self.fit(method)
        try:
            return Fit.model_validate_json(
                self.markers.read(path, self.training_step(method), self.test_step(method))
            )
        except (OSError, ValidationError) as error:
            raise unreadable(path, error) from error

    def write_head(self, method: str, head: FittedHead) -> None:
        """Keep a method's MIL head, and how well it fits."""
        save_tensors(self.head(method), head.model.state_dict())
        self.write_fit(method, head.fit)

    def read_head(self, method: str, spec: MILSpec) -> MILModel:
        """Return a method's MIL head, in eval mode.

        Raises
        ------
        RunDirError
            Where it is missing or damaged.
        """
        model, path = build_mil(spec), self.head(method)
        try:
            model.load_state_dict(self._read_tensors(path, self.training_step(method)))
        except RuntimeError as error:
            raise unreadable(path, error, " as that head") from error
        return model.eval()

    @property
    def teacher_outputs(self) -> Path:
        """What the fold's teacher says of its training slides."""
        return self.root / "teacher_outputs.safetensors"

    def write_teacher_outputs(self, outputs: Mapping[str, TeacherOutput]) -> None:
        """Keep what the teacher says, by slide."""
        tensors = {
            f"{name}/{field}": value
            for name, output in outputs.items()
            for field, value in output._asdict().items()
            if value is not None
        }
        save_tensors(self.teacher_outputs, tensors)

    def read_teacher_outputs(self) -> dict[str, TeacherOutput]:
        """Return what the teacher says, by slide.

        Raises
        ------
        RunDirError
            Where that is missing or damaged.
        """
        tensors = self._read_tensors(self.teacher_outputs, self.training_step(TEACHER.key))
        names = dict.fromkeys(key.rpartition("/")[0] for key in tensors)
        attention = ("attention_logits", "attention_scores")
        try:
            return {
                name: TeacherOutput(
                    tensors[f"{name}/bag_logits"],
                    # Both or neither: a head without attention.
                    *(
                        tensors[f"{name}/{field}"]
                        if any(f"{name}/{one}" in tensors for one in attention)
                        else None
                        for field in attention
                    ),
                )
                for name in names
            }
        except KeyError as error:
            raise unreadable(self.teacher_outputs, error) from error

    # --- test slides

    def predictions(self, method: str) -> Path:
        """Return the table of what a method says of the test slides."""
        return self.root / "predictions" / f"{method}.csv"

    def predicted_methods(self) -> list[str]:
        """Return the methods that have predictions, in alphabetical order."""
        return sorted(path.stem for path in self.root.glob("predictions/*.csv"))

    def write_predictions(self, method: str, predictions: Predictions) -> None:
        """Keep what a method says of the test slides."""
        write_predictions(self.predictions(method), predictions)

    def read_predictions(self, method: str) -> Predictions:
        """Return what a method says of the test slides.

        Raises
        ------
        RunDirError
            Where the table is missing or damaged.
        """
        path = self.predictions(method)
        try:
            return parse_predictions(self.markers.read(path, self.test_step(method)))
        except FileNotFoundError as error:
            place = path.relative_to(self.run_root)
            raise RunDirError(f"{self.run_root} is not a finished run: it has no {place}. {CURE}") from error
        except (OSError, ValueError) as error:
            raise unreadable(path, error, " as predictions") from error

    def val_predictions(self, method: str) -> Path:
        """Return the table of what a method says of the validation slides, on which it was chosen."""
        return self.root / "val_predictions" / f"{method}.csv"

    def write_val_predictions(self, method: str, predictions: Predictions) -> None:
        """Keep what a method says of the validation slides."""
        write_predictions(self.val_predictions(method), predictions)

    def read_val_predictions(self, method: str) -> Predictions:
        """Return what a method says of the validation slides.

        Raises
        ------
        RunDirError
            Where the table is missing or damaged.
        """
        path = self.val_predictions(method)
        try:
            return parse_predictions(self.markers.read(path, self.test_step(method)))
        except (OSError, ValueError) as error:
            raise unreadable(path, error, " as predictions") from error

    def calibration(self, method: str) -> Path:
        """Return the file of how a method's numbers become a label."""
        return self.root / "calibration" / f"{method}.json"

    def write_calibration(self, method: str, calibration: Calibration) -> None:
        """Keep how a method's numbers become a label."""
        write_json(self.calibration(method), calibration.model_dump(mode="json"))

    def read_calibration(self, method: str) -> Calibration:
        """Return how a method's numbers become a label.

        Raises
        ------
        RunDirError
            Where that isn't known, as in runs of earlier versions.
        """
        path = self.calibration(method)
        try:
            return Calibration.model_validate_json(self.markers.read(path, self.test_step(method)))
        except (OSError, ValidationError) as error:
            raise RunDirError(f"{path} is missing or damaged. {CURE}") from error

    def attention(self, method: str) -> Path:
        """Return the file of a method's attention on the test slides."""
        return self.root / "test_attention" / f"{method}.safetensors"

    def attended_methods(self) -> list[str]:
        """Return the methods whose attention is kept, in alphabetical order."""
        return sorted(path.stem for path in self.root.glob("test_attention/*.safetensors"))

    def write_attention(self, method: str, slides: Mapping[str, SlideAttention]) -> None:
        """Keep the attention of a method on the test slides."""
        write_attention(self.attention(method), slides)

    def read_attention(self, method: str) -> dict[str, SlideAttention]:
        """Return the attention of a method on the test slides, by slide.

        Raises
        ------
        RunDirError
            Where it is missing or damaged.
        """
        path = self.attention(method)
        try:
            return parse_attention(self.markers.read(path, self.test_step(method)))
        except (OSError, ValueError) as error:
            raise unreadable(path, error, " as attention of test slides") from error

    @property
    def bundle(self) -> Path:
        """The fold's student."""
        return self.root / "bundle"

    @property
    def cheapest_bundle(self) -> Path:
        """The cheapest row that is good enough, where that isn't the student."""
        return self.root / "cheapest"

    def read_bundle_info(self) -> BundleInfo | None:
        """Return what the fold's bundle says of itself; None where it can't be read.

        Raises
        ------
        RunDirError
            Where that is something else than was exported.
        """
        try:
            self.markers.read(self.bundle / BUNDLE_FILE, self.export_step)
            return load_info(self.bundle)
        except (OSError, BundleError):
            return None


@dataclass(frozen=True)
class RunDir:
    """A run directory."""

    root: Path

    # --- folders

    @property
    def shared(self) -> Folder:
        """Of what serves all folds."""
        return Folder(self.root, "shared")

    def fold(self, number: int) -> Folder:
        """Return the folder of a fold."""
        return Folder(self.root, f"fold{number}")

    def folder(self, name: str) -> Folder:
        """Return a folder by its name, ``foldN`` or ``shared``."""
        return Folder(self.root, name)

    def folds(self) -> list[Folder]:
        """Return the folds that are there, in order."""
        names = [path.name for path in self.root.glob("fold*")]
        folds = [self.folder(name) for name in names if name.removeprefix("fold").isdecimal()]
        return sorted(folds, key=lambda fold: fold.number)

    def tested_folds(self) -> list[Folder]:
        """Return the folds that have predictions, in order."""
        return [fold for fold in self.folds() if fold.predicted_methods()]

    # --- the whole run

    @property
    def config_json(self) -> Path:
        """The resolved config."""
        return self.root / "config.json"

    @property
    def splits_json(self) -> Path:
        """Which slides train, validate and test in each fold."""
        return self.root / "splits.json"

    @property
    def results_json(self) -> Path:
        """Metrics of all methods; absent while a run is at work."""
        return self.root / "results.json"

    @property
    def kept_results_json(self) -> Path:
        """The same, kept for the next run, which needn't resample again."""
        return self.root / "done" / "results.json"

    @property
    def report_html(self) -> Path:
        """The report."""
        return self.root / "report.html"

    @property
    def tile_index(self) -> Path:
        """Folder of each slide's tiles."""
        return self.root / "tile_index"

    @property
    def embeddings(self) -> Path:
        """Folder of the stores of embeddings, unless the config has them elsewhere."""
        return self.root / "embeddings.zarr"

    def shortcut_features(self, slide_id: str) -> Path:
        """Return the file of what the baselines see of a slide."""
        return self.root / "shortcuts" / f"{fitting_name(slide_id)}.json"

    def reported_files(self) -> list[Path]:
        """Return the files that the report shows, those of all folds that are there."""
        found = [self.config_json, self.splits_json, self.results_json, self.front_json]
        for pattern in ("*/metrics/*.csv", "fold*/predictions/*.csv", f"fold*/bundle/{BUNDLE_FILE}"):
            found += sorted(self.root.glob(pattern))
        return [path for path in found if path.is_file()]

    def write_config(self, config: RunConfig) -> None:
        """Keep the resolved config."""
        key = content_hash(config)
        if not self.markers.is_done(CONFIG, key, [self.config_json]):
            write_text(self.config_json, config.model_dump_json(indent=2) + "\n")
            self.markers.write(CONFIG, key, [self.config_json])

    def read_config(self) -> RunConfig:
        """Return the config of the run.

        Raises
        ------
        RunDirError
            Where it is missing, damaged, or has keys that this version doesn't know.
        """
        try:
            return RunConfig.model_validate(self.read_config_values())
        except ValidationError as error:
            raise RunDirError(
                f"{self.config_json} isn't a config of this version: {reason_of(error)}"
            ) from error

    def read_config_values(self) -> dict[str, Any]:  # a config of any version: its values have any type
        """Return the config as it stands in the file, also one of another version.

        Raises
        ------
        RunDirError
            Where it is missing or damaged.
        """
        return self._read_json(self.config_json, CONFIG)

    def write_splits(self, splits: Sequence[Split], key: str) -> None:
        """Keep the splits, unless they are there already."""
        text = KeptSplits.of(splits, key).model_dump_json(indent=1) + "\n"
        made_from = content_hash(text)
        if not self.markers.is_done(SPLITS, made_from, [self.splits_json]):
            write_text(self.splits_json, text)
            self.markers.write(SPLITS, made_from, [self.splits_json])

    def read_splits(self) -> KeptSplits | None:
        """Return the splits of the run; None where there are none, as in runs of earlier versions.

        Raises
        ------
        RunDirError
            Where they are damaged.
        """
        try:
            return KeptSplits.model_validate_json(self.markers.read(self.splits_json, SPLITS))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise unreadable(self.splits_json, error, " as splits") from error

    def reads(self, slide_id: str) -> Path:
        """Return the file of how much of a slide each resolution reads."""
        return self.root / "reads" / f"{fitting_name(slide_id)}.json"

    @property
    def costs_json(self) -> Path:
        """What each way of reading costs."""
        return self.root / "done" / "costs.json"

    @property
    def front_json(self) -> Path:
        """The rows by what they cost, and which is chosen."""
        return self.root / "front.json"

    def read_front(self) -> Front | None:
        """Return the rows by what they cost; None where the run doesn't say, as runs of earlier versions.

        Raises
        ------
        RunDirError
            Where that is damaged.
        """
        try:
            return Front.model_validate_json(self.markers.read(self.front_json, FRONT))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise unreadable(self.front_json, error, " as rows by their costs") from error

    def write_front(self, front: Front) -> None:
        """Keep the rows by what they cost."""
        write_text(self.front_json, front.model_dump_json(indent=2) + "\n")

    def forget_front(self) -> None:
        """Take away what a run of another config said, before a run that says nothing of it."""
        self.markers.forget(FRONT)
        self.front_json.unlink(missing_ok=True)

    def write_kept_results(self, results: Mapping[str, Mapping[str, object]]) -> None:
        """Keep the metrics of all methods for the next run."""
        write_json(self.kept_results_json, results)

    def write_results(self, results: Mapping[str, Mapping[str, object]]) -> None:
        """Keep the metrics of all methods, byte by byte as they are kept for the next run."""
        write_json(self.results_json, results)

    def read_kept_results(self) -> dict[str, dict[str, Any]]:
        """Return the metrics of all methods as they are kept for the next run.

        Raises
        ------
        RunDirError
            Where they are missing or damaged.
        """
        return self._read_json(self.kept_results_json, RESULTS)

    def read_results(self) -> dict[str, dict[str, Any]]:  # numbers, counts and intervals by name
        """Return the metrics of all methods.

        Raises
        ------
        RunDirError
            Where they are missing or damaged.
        """
        return self._read_json(self.results_json, RESULTS, kept_as=self.kept_results_json)

    def _read_json(self, path: Path, step: str, *, kept_as: Path | None = None) -> dict[str, Any]:
        try:
            value = parse_json(self.markers.read(path, step, kept_as=kept_as))
        except FileNotFoundError as error:
            raise RunDirError(
                f"{self.root} is no run directory, or not a finished run: it has no {path.name}. {CURE}"
            ) from error
        except (OSError, ValueError) as error:
            raise unreadable(path, error, " as JSON") from error
        if not isinstance(value, dict):
            raise RunDirError(f"{path} is damaged. {CURE}")
        return value

    # --- the directory itself

    def prepare(self) -> None:
        """Make the directory.

        Raises
        ------
        ConfigError
            Where something else lies there.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise ConfigError(f"{self.root} can't be a run directory: {error.strerror}") from error

    @property
    def markers(self) -> Markers:
        """Of finished steps."""
        return Markers(self.root)

    def keep_only(self, made: Collection[tuple[str, str]]) -> None:
        """Remove what earlier configs left of test slides: it would pass for this run's.

        Parameters
        ----------
        made : collection of (folder, method)
            What is this run's.
        """
        for path in (
            *self.root.glob("fold*/**/predictions/*.csv"),
            *self.root.glob("fold*/**/val_predictions/*.csv"),
            *self.root.glob("fold*/**/test_attention/*"),
        ):
            if (path.parents[1].relative_to(self.root).as_posix(), path.stem) not in made:
                path.unlink()
