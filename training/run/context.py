"""A run as its steps see it: directory, config, slides, device; and the stores, bags and encoders that follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from napari_lrmil.model.encoder import Encoder, EncoderSpec, weights_file
from napari_lrmil.model.mil import MILSpec
from training.config import RunConfig
from training.data.bags import Bags
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles, TileGeometry
from training.encoders import new_student, random_encoder, teacher_encoder, trained_student
from training.hashing import content_hash, file_hash
from training.progress import Reporter
from training.run.layout import Folder, RunDir
from training.runtime import Runtime
from training.stages.embed_tiles import EmbedJob

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

    def hr_store(self) -> EmbeddingStore:
        """Return the teacher's embeddings of HR tiles, with the class token after each of ``stage1.layers``."""
        return self._store("hr", self.encoder_hash, layers=self.config.stage1.layers)

    def lr_store(self, encoder_hash: str) -> EmbeddingStore:
        """Return the embeddings of LR tiles by some encoder."""
        return self._store("lr", encoder_hash, layers=())

    def random_lr_encoder(self) -> tuple[Encoder, EmbeddingStore]:
        """Return the baseline of random weights, which aren't those that a run without weights starts from."""
        seed = self.config.run.seed + _RANDOM_SEED_OFFSET
        store = self.lr_store(f"random {seed} {self.config.encoder.spec.model_dump_json()}")
        return random_encoder(self.config.encoder.spec, seed=seed, device=self.device), store

    def _store(self, kind: str, encoder_hash: str, *, layers: tuple[int, ...]) -> EmbeddingStore:
        tiles = self.config.tiles
        mpp = tiles.mpp_lr if kind == "lr" else tiles.mpp_lr / tiles.ratio
        spec = {
            "kind": kind,
            "encoder": encoder_hash,
            "tile_px": tiles.tile_px,
            "mpp": mpp,
            "ratio": tiles.ratio,
            "min_tissue": tiles.min_tissue,
            "apply_icc": tiles.apply_icc,
            "layers": list(layers),
            # LR tiles are embedded at 32 bits whatever the run's precision, as they will be at inference.
            "precision": self.config.run.precision if kind == "hr" else "32-true",
        }
        if kind == "hr" and self.config.stage1.turned:
            spec["turned"] = True  # the targets are other ones; others' names stay as they were
        root = self.config.run.embeddings or self.run_dir.embeddings
        return EmbeddingStore(root / f"{kind}-{content_hash(sorted(spec.items()))[:16]}", spec)

    def jobs(self, rows: Iterable[SlideRow], store: EmbeddingStore, *, hr: bool) -> list[EmbedJob]:
        """Return what is to be embedded of some slides, done or not."""
        config = self.config
        return [
            EmbedJob(
                tiles,
                self.geometry,
                store,
                hr=hr,
                layers=config.stage1.layers if hr else (),
                turned=hr and config.stage1.turned,
                batch_size=config.encoder.batch_size,
                threads=config.run.threads,
                precision=config.run.precision,
            )
            for tiles in self.tiles_of(rows)
        ]

    def bags(self, store: EmbeddingStore, rows: Sequence[SlideRow], *, share: float = 1.0) -> Bags:
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

    def student_encoder(self, folder: Folder) -> Encoder:
        """Return the f' of a folder after stage 1, in eval mode."""
        return trained_student(folder.read_student(), self.student_spec, device=self.device)

    @property
    def student_spec(self) -> EncoderSpec:
        """Of f'."""
        return self.config.student.spec_for(self.config.encoder.spec)

    def head_spec(self, embed_dim: int) -> MILSpec:
        """Return what a head on embeddings of D numbers is built from."""
        return self.config.mil.spec(embed_dim, len(self.class_names))
