"""Hashes of what each step is made from: a step with the same key isn't done again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_lrmil.model.encoder import weights_file
from training.config import content_hash
from training.data.store import EmbeddingStore
from training.data.table import SlideRow, Split
from training.stages.context import Context, file_hash
from training.stages.embed_tiles import jobs_for


@dataclass(frozen=True)
class Stage1Plan:
    """One training of f': for one fold, or for all.

    Attributes
    ----------
    folder : str
        ``shared`` or ``foldN``
    train, val : tuple of SlideRow
        `val` only chooses the epoch.
    split : Split, optional
        Whose teacher weights the children; None for uniform weights.
    """

    folder: str
    train: tuple[SlideRow, ...]
    val: tuple[SlideRow, ...]
    split: Split | None


class Keys:
    """The keys of a run's steps.

    Parameters
    ----------
    context : Context
    splits : sequence of Split
        Of the table, also where only some of them are run.
    """

    def __init__(self, context: Context, splits: Sequence[Split]) -> None:
        self._context = context
        n_folds = len(splits)
        # An encoder that serves all folds must not see what any of them holds out.
        self._free = set.intersection(*({row.slide_id for row in split.extra} for split in splits))
        stage1 = context.config.stage1
        uniform = stage1.weighting == "uniform"
        self.shares_encoder = uniform and (
            stage1.scope == "shared" or (stage1.scope == "auto" and n_folds > 1)
        )
        self._stamps: dict[bool, dict[str, str]] = {True: {}, False: {}}

    def teacher(self, split: Split) -> str:
        """Of a fold's teacher MIL, which sees the embeddings and none of the layers that lie beside them."""
        spec = self._context.hr_store().spec
        return content_hash(
            sorted((name, value) for name, value in spec.items() if name != "layers"),
            self._labelled(split.train, hr=True),
            self._labelled(split.val, hr=True),
            self._context.class_names,
            self._context.config.mil,
            self._context.config.run.seed,
        )

    def stage1_plan(self, split: Split) -> Stage1Plan:
        """Whose tiles the f' of this fold learns from."""
        config = self._context.config.stage1
        if not self.shares_encoder:
            weighted = config.weighting == "attention"
            # Unlabelled slides have no teacher attention: they serve only where the weights are uniform.
            train = split.train if weighted else (*split.train, *split.extra)
            if config.slides == "unlabelled" and not weighted:
                train = split.extra
            return Stage1Plan(f"fold{split.fold}", train, split.val, split if weighted else None)
        rows = [item.row for item in self._context.tiles.values()]
        if config.slides == "unlabelled":
            rows = [row for row in rows if row.slide_id in self._free]
        patients = sorted({row.patient_id for row in rows})
        rng = np.random.default_rng(self._context.config.run.seed)
        held_out = set(rng.permutation(patients)[: max(1, len(patients) // 10)].tolist())
        return Stage1Plan(
            "shared",
            tuple(row for row in rows if row.patient_id not in held_out),
            tuple(row for row in rows if row.patient_id in held_out),
            None,
        )

    def stage1(self, plan: Stage1Plan) -> str:
        """Of f'."""
        config = self._context.config
        start = config.student.weights
        return content_hash(
            self._context.hr_store().root.name,
            self._ids(plan.train, hr=True),
            self._ids(plan.val, hr=True),
            config.stage1,
            config.student,
            file_hash(weights_file(start)) if start is not None else None,
            config.run.seed,
            config.run.precision,
            self.teacher(plan.split) if plan.split is not None else None,
        )

    def student_file(self, plan: Stage1Plan) -> Path:
        """Where the weights of f' are."""
        return self._context.run_dir.path(plan.folder, "student_encoder.safetensors")

    def student_store(self, plan: Stage1Plan) -> EmbeddingStore:
        """LR embeddings by f', which has been trained."""
        config = self._context.config
        spec = config.student.spec or config.encoder.spec
        return self._context.lr_store(content_hash(spec, file_hash(self.student_file(plan))))

    def head(self, split: Split, store: EmbeddingStore, *, distil: bool) -> str:
        """Of a student's MIL head."""
        config = self._context.config
        return content_hash(
            store.root.name,
            self._labelled(split.train, hr=False),
            self._labelled(split.val, hr=False),
            self._context.class_names,
            config.mil,
            config.run.seed,
            (self.teacher(split), config.stage2.model_dump_json()) if distil else None,
        )

    def test(self, split: Split, head: str, *, hr: bool) -> str:
        """Of what a head says of the test slides."""
        patients = [row.patient_id for row in split.test]  # they stand in the table of predictions
        return content_hash(head, self._labelled(split.test, hr=hr), patients)

    def shortcut(self, split: Split, method: str) -> str:
        """Of what a baseline without an encoder says of the test slides."""
        return content_hash(
            method,
            self._context.geometry,
            self._context.class_names,
            [self._labelled(part, hr=False) for part in (split.train, split.val, split.test)],
            [row.patient_id for row in split.test],
        )

    def bundle(self, test: str) -> str:
        """Of a fold's bundle, which says of which config it comes; `test` is the key of its test predictions."""
        return content_hash(test, self._context.config)

    def _labelled(self, rows: Iterable[SlideRow], *, hr: bool) -> list[tuple[str, str | None]]:
        return [(name, row.label) for row, name in zip(rows, self._ids(rows, hr=hr), strict=True)]

    def _ids(self, rows: Iterable[SlideRow], *, hr: bool) -> list[str]:
        known, rows = self._stamps[hr], tuple(rows)
        new = [row for row in rows if row.slide_id not in known]
        for row, job in zip(
            new,
            jobs_for(self._context, self._context.tiles_of(new), self._context.hr_store(), hr=hr),
            strict=True,
        ):
            known[row.slide_id] = f"{row.slide_id} {job.stamp}"
        return [known[row.slide_id] for row in rows]
