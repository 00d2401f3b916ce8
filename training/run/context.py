"""A run as its steps see it: directory, config, slides, device; and the stores, bags and encoders that follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from napari_lrmil.model.encoder import Encoder, EncoderSpec, weights_file
from napari_lrmil.model.mil import MILSpec
from training.config import RunConfig
from training.data.bags import Bags, Instances, Several
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import Magnifications, Reading, SlideTiles, TileGeometry
from training.encoders import new_student, random_encoder, teacher_encoder, trained_student
from training.files import read_json_object
from training.hashing import content_hash, file_hash
from training.methods import TEACHER, Method
from training.progress import Reporter
from training.run.layout import Folder, RunDir
from training.run.locks import Locks
from training.runtime import Precision, Runtime
from training.stages.embed_tiles import EmbedJob
from training.stages.heads import MILSection

_RANDOM_SEED_OFFSET = 7919


@dataclass(frozen=True)
class Context:
    """A run: its directory, config, slides, device and processes."""

    run_dir: RunDir
    config: RunConfig
    geometry: TileGeometry
    tiles: dict[str, SlideTiles]
    class_names: tuple[str, ...]
    runtime: Runtime
    reporter: Reporter
    cluster: str | None = None
    """Address of a dask.distributed scheduler whose workers embed the slides."""
    layers_of_run: tuple[int, ...] | None = None
    """Blocks of f that any row of the run matches; None where that is for this config to say."""
    only_collects: bool = False
    """Whether what was trained is only compared: what isn't trained yet is an error."""

    def of_row(self, row: Method) -> Context:
        """Return the run as a row sees it, whose options are its config's."""
        config = self.config.of_row(row)
        if config == self.config:
            return self
        return replace(self, config=config, layers_of_run=self.stored_layers)

    @cached_property
    def locks(self) -> Locks:
        """Of the run directory."""
        return Locks(self.run_dir.root, self.reporter)

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self.runtime.device

    # --- seeds

    @property
    def head_seeds(self) -> tuple[int, ...]:
        """Of the heads; the first one's are exported."""
        return self.config.run.seeds or (self.config.run.seed,)

    @property
    def encoder_seeds(self) -> tuple[int, ...]:
        """Of f'; the first one is exported."""
        return self.config.stage1.seeds or (self.config.run.seed,)

    def folder_of(self, place: str, *, encoder_seed: int | None = None, seed: int | None = None) -> Folder:
        """Return the folder of what was made with certain seeds; the first ones', also None, have no name in it.

        Parameters
        ----------
        place : str
            ``foldN`` or ``shared``.
        encoder_seed, seed : int, optional
            Of f' and of the head.
        """
        parts = [place]
        if encoder_seed is not None and encoder_seed != self.encoder_seeds[0]:
            parts.append(f"encoder{encoder_seed}")
        if seed is not None and seed != self.head_seeds[0]:
            parts.append(f"seed{seed}")
        return self.run_dir.folder("/".join(parts))

    # --- slides

    @property
    def rows(self) -> list[SlideRow]:
        """All slides that can be used."""
        return [item.row for item in self.tiles.values()]

    @property
    def labelled(self) -> list[SlideRow]:
        """Those with a label."""
        return [row for row in self.rows if row.label is not None]

    def tiles_of(self, rows: Iterable[SlideRow]) -> list[SlideTiles]:
        """Return the tiles of some slides, in their order."""
        return [self.tiles[row.slide_id] for row in rows]

    def places_of(self, rows: Iterable[SlideRow], *, hr: bool) -> list[NDArray[np.int64]]:
        """Return the places (N, 2) of the tiles of some slides in one of the two grids."""
        return [item.hr_places if hr else item.lr_places for item in self.tiles_of(rows)]

    # --- embeddings

    @cached_property
    def encoder_hash(self) -> str:
        """Of f: architecture, weights, normalisation."""
        source = self.config.encoder.weights
        # Random weights depend on the seed.
        weights = f"seed {self.config.run.seed}" if source is None else file_hash(weights_file(source))
        return content_hash(self.config.encoder.spec, weights)

    @property
    def lr_tiles(self) -> Reading:
        """The student's tiles."""
        return Reading(1)

    @property
    def hr_tiles(self) -> Reading:
        """The teacher's."""
        return Reading(self.geometry.ratio)

    @property
    def stored_layers(self) -> tuple[int, ...]:
        """Blocks of f whose class tokens are stored of HR tiles: once, for all rows of the run."""
        return self.config.layers_of_rows if self.layers_of_run is None else self.layers_of_run

    def hr_store(self, layers: tuple[int, ...] | None = None) -> EmbeddingStore:
        """Return the teacher's embeddings of HR tiles, with the class token after each of `stored_layers` and maybe others;
        or those that have exactly `layers`."""
        wanted = self.stored_layers if layers is None else layers
        return self._store(self.hr_tiles, self.encoder_hash, wanted, exact=layers is not None)

    def lr_store(self, encoder_hash: str) -> EmbeddingStore:
        """Return the embeddings of LR tiles by some encoder."""
        return self._store(self.lr_tiles, encoder_hash)

    def magnifications(self, method: Method) -> Magnifications | None:
        """Return what the head of a method reads, where it reads several magnifications; the context may be any row's."""
        return self.config.magnifications_of(method)

    def readings(self, method: Method) -> tuple[Reading, ...]:
        """Return the tiles that a method's bags are made of, of several magnifications the coarsest first."""
        assert method.embedding is not None
        several = self.magnifications(method)
        return (method.embedding.reading(self.geometry.ratio),) if several is None else several.readings

    def several(self, method: Method, encoder_hash: str) -> Several | None:
        """Return the bags of a method by some encoder, where its head reads several magnifications."""
        several = self.magnifications(method)
        if several is None:
            return None
        stores = {reading: self._store(reading, encoder_hash) for reading in several.readings}
        return Several(stores, self.tiles, self.geometry)

    def read_store(self, reading: Reading) -> EmbeddingStore:
        """Return the teacher's embeddings of some tiles."""
        if reading == self.hr_tiles:
            return self.hr_store()
        return self._store(reading, self.encoder_hash, self._layers(reading))

    def random_lr_encoder(self) -> tuple[Encoder, EmbeddingStore]:
        """Return the baseline of random weights, which aren't those that a run without weights starts from."""
        seed = self.config.run.seed + _RANDOM_SEED_OFFSET
        encoder = random_encoder(self.config.encoder.spec, seed=seed, device=self.device)
        return encoder, self.lr_store(self.random_hash)

    @property
    def random_hash(self) -> str:
        """What the baseline of random weights is known by."""
        seed = self.config.run.seed + _RANDOM_SEED_OFFSET
        return f"random {seed} {self.config.encoder.spec.model_dump_json()}"

    def _layers(self, reading: Reading) -> tuple[int, ...]:
        """Return the blocks that stage 1 may match: those of HR tiles, and of LR tiles enlarged to as many."""
        return self.stored_layers if self.holds_targets(reading) else ()

    def holds_targets(self, reading: Reading) -> bool:
        """Whether some tiles are those whose embeddings stage 1 can have as targets."""
        return reading.factor == self.geometry.ratio and not reading.is_of_several

    def _turned(self, reading: Reading) -> bool:
        return self.holds_targets(reading) and self.config.stage1.turned

    def _store(
        self, reading: Reading, encoder_hash: str, layers: tuple[int, ...] = (), *, exact: bool = False
    ) -> EmbeddingStore:
        tiles = self.config.tiles
        kind = {self.lr_tiles: "lr", self.hr_tiles: "hr"}.get(
            reading,
            "enlarged" if reading.enlarged else "several" if reading.is_of_several else "mid",
        )
        spec = {
            "kind": kind,
            "encoder": encoder_hash,
            "tile_px": tiles.tile_px,
            "mpp": self.geometry.mpp(reading),
            "ratio": tiles.ratio,
            "min_tissue": tiles.min_tissue,
            "apply_icc": tiles.apply_icc,
            "layers": list(layers),
            "precision": self._precision(reading),
        }
        if self._turned(reading):
            spec["turned"] = True  # the targets are other ones; others' names stay as they were
        if reading.is_of_several:
            spec["coarsest"] = reading.coarsest  # whose grid and tissue mask these tiles share
        store = self._store_of(spec)
        if exact or not self.holds_targets(reading) or encoder_hash != self.encoder_hash:
            return store
        if store.key not in self._holding:
            self._holding[store.key] = self._store_holding(store)
        return self._holding[store.key]

    def _store_of(self, spec: dict[str, object], known_as: str = "") -> EmbeddingStore:
        name = f"{spec['kind']}-{content_hash(sorted(spec.items()))[:16]}"
        return EmbeddingStore(self._embeddings / name, spec, known_as)

    @cached_property
    def _holding(self) -> dict[str, EmbeddingStore]:
        return {}

    def _store_holding(self, wanted: EmbeddingStore) -> EmbeddingStore:
        """Return where targets of stage 1 lie, or where there are none yet, will lie with those of other layers."""
        if wanted.root.is_dir():
            return wanted
        layers, spec = set(self._layers_of(wanted.spec)), dict(wanted.spec)
        found = []
        for path in self._embeddings.glob(f"{spec['kind']}-*/store.json"):
            there: dict[str, object] = dict(read_json_object(path) or {})
            more = self._layers_of(there)
            if there | {"layers": None} == spec | {"layers": None} and layers <= set(more):
                found.append((len(more), more))
        spec["layers"] = (
            list(min(found)[1]) if found else sorted(layers | set(self.config.encoder.layers_beside))
        )
        return self._store_of(spec, wanted.key)

    @staticmethod
    def _layers_of(spec: Mapping[str, object]) -> tuple[int, ...]:
        layers = spec.get("layers")
        return tuple(layers) if isinstance(layers, list) else ()

    def shuffled_store(self, source: EmbeddingStore, key: str) -> EmbeddingStore:
        """Return where the HR embeddings of some slides lie in random order; `key` says of which slides."""
        spec = {**source.spec, "kind": "shuffled", "of": source.key, "key": key}
        return EmbeddingStore(self._embeddings / f"shuffled-{content_hash(sorted(spec.items()))[:16]}", spec)

    @property
    def _embeddings(self) -> Path:
        return self.config.run.embeddings or self.run_dir.embeddings

    def _precision(self, reading: Reading) -> Precision:
        # LR tiles are embedded at 32 bits whatever the run's precision, as they will be at inference; so is what is
        # compared with them.
        is_hr = reading.factor == self.geometry.ratio and reading.times == 1 and not reading.enlarged
        return self.config.run.precision if is_hr else "32-true"

    def jobs(
        self,
        rows: Sequence[SlideRow],
        store: EmbeddingStore,
        *,
        hr: bool = False,
        reading: Reading | None = None,
    ) -> list[EmbedJob]:
        """Return what is to be embedded of some slides, done or not.

        Parameters
        ----------
        rows : iterable of SlideRow
        store : EmbeddingStore
        hr : bool
            HR tiles, or LR tiles ...
        reading : Reading, optional
            ... unless others are named.
        """
        reading = reading or (self.hr_tiles if hr else self.lr_tiles)
        jobs = self._jobs(rows, store, reading)
        finest = reading.is_of_several and reading.times == 1
        if not finest or reading.factor not in (self.lr_tiles.factor, self.hr_tiles.factor):
            return jobs
        # Mostly tiles of the run, which are embedded before these.
        plain = Reading(reading.factor)
        same = self._store(plain, str(store.spec["encoder"]), self._layers(plain))
        return [
            replace(job, alike=other) for job, other in zip(jobs, self._jobs(rows, same, plain), strict=True)
        ]

    def _jobs(self, rows: Iterable[SlideRow], store: EmbeddingStore, reading: Reading) -> list[EmbedJob]:
        config = self.config
        return [
            EmbedJob(
                tiles,
                self.geometry,
                store,
                reading=reading,
                layers=self._layers_of(store.spec) if self.holds_targets(reading) else (),
                turned=self._turned(reading),
                batch_size=config.encoder.batch_size,
                threads=config.run.threads,
                precision=self._precision(reading),
            )
            for tiles in self.tiles_of(rows)
        ]

    def bags(self, store: Instances, rows: Sequence[SlideRow], *, share: float = 1.0) -> Bags:
        """Return the bags of some slides, of which a share of ``data.cache_gib`` stays in memory."""
        cache_bytes = share * self.config.data.cache_gib * 2**30
        return Bags(store, rows, self.class_names, cache_bytes=cache_bytes)

    # --- encoders and heads

    def teacher_encoder(self) -> Encoder:
        """Return f, frozen, in eval mode."""
        return teacher_encoder(self.config.encoder, seed=self.config.run.seed, device=self.device)

    def new_student(self, teacher: Encoder, seed: int) -> Encoder:
        """Return f' before stage 1, in train mode, always made anew."""
        return new_student(self.config.student, teacher, seed=seed, device=self.device)

    def student_encoder(self, weights: Mapping[str, torch.Tensor]) -> Encoder:
        """Return an f' that was trained, in eval mode."""
        return trained_student(weights, self.student_spec, device=self.device)

    @property
    def student_spec(self) -> EncoderSpec:
        """Of f'."""
        return self.config.student.spec_for(self.config.encoder.spec)

    def head_section(self, method: Method) -> MILSection:
        """Return what the head of a method is, and how it is trained; the context is that of its row."""
        return self.config.teacher_mil if method == TEACHER else self.config.student_mil

    def head_spec(self, method: Method, embed_dim: int) -> MILSpec:
        """Return what the head of a method, on embeddings of D numbers, is built from."""
        return self.head_section(method).spec(embed_dim, len(self.class_names))
