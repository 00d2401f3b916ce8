"""What every stage needs to know of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from napari_lrmil.model.encoder import Encoder, load_weights, weights_file
from training.checkpoint import Files
from training.config import RunConfig, content_hash
from training.data.bags import Bags
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles, TileGeometry
from training.progress import Reporter
from training.run_dir import RunDir, load_tensors
from training.runtime import Runtime

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

    @cached_property
    def encoder_hash(self) -> str:
        """Of f: architecture, weights, normalisation."""
        source = self.config.encoder.weights
        # Random weights depend on the seed.
        weights = f"seed {self.config.run.seed}" if source is None else file_hash(weights_file(source))
        return content_hash(self.config.encoder.spec, weights)

    def hr_store(self) -> EmbeddingStore:
        """The teacher's embeddings of HR tiles, with the class token after each of ``stage1.layers``."""
        return self._store("hr", self.encoder_hash, layers=self.config.stage1.layers)

    def lr_store(self, encoder_hash: str) -> EmbeddingStore:
        """Embeddings of LR tiles by some encoder."""
        return self._store("lr", encoder_hash, layers=())

    def random_lr_encoder(self) -> tuple[Encoder, EmbeddingStore]:
        """The baseline of random weights, which aren't those that a run without weights starts from."""
        seed = self.config.run.seed + _RANDOM_SEED_OFFSET
        store = self.lr_store(f"random {seed} {self.config.encoder.spec.model_dump_json()}")
        return self.random_encoder(seed), store

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
        root = self.config.run.embeddings or self.run_dir.path("embeddings.zarr")
        return EmbeddingStore(root / f"{kind}-{content_hash(sorted(spec.items()))[:16]}", spec)

    def tiles_of(self, rows: Iterable[SlideRow]) -> list[SlideTiles]:
        """The tiles of some slides, in their order."""
        return [self.tiles[row.slide_id] for row in rows]

    def bags(self, store: EmbeddingStore, rows: Iterable[SlideRow], *, share: float = 1.0) -> Bags:
        """The bags of some slides, of which a share of ``data.cache_gib`` stays in memory."""
        cache_bytes = share * self.config.data.cache_gib * 2**30
        return Bags(store, rows, self.class_names, cache_bytes=cache_bytes)

    def files(self, folder: str, stage: str, key: str) -> Files:
        """Where a stage writes its metrics and checkpoints."""
        return Files(
            metrics_csv=self.run_dir.path(folder, "metrics", f"{stage}.csv"),
            tensorboard=self.run_dir.path("tensorboard", folder, stage),
            checkpoint=self.run_dir.path(folder, "checkpoints", f"{stage}.safetensors"),
            key=key,
            checkpoint_seconds=self.config.run.checkpoint_seconds,
        )

    def teacher_encoder(self) -> Encoder:
        """f, frozen, in eval mode."""
        encoder = self.random_encoder(self.config.run.seed)
        if self.config.encoder.weights is not None:
            load_weights(encoder, self.config.encoder.weights)
        return encoder.to(self.device).eval()

    def random_encoder(self, seed: int) -> Encoder:
        """The architecture of f with fresh weights, frozen, in eval mode."""
        torch.manual_seed(seed)
        return Encoder(self.config.encoder.spec).requires_grad_(False).to(self.device).eval()

    def new_student(self, teacher: Encoder) -> Encoder:
        """f' before stage 1, in train mode: a copy of f, or the student of the config.

        Always made anew: one that is carried over from another fold has seen this fold's test slides.
        """
        spec = self.config.student.spec
        torch.manual_seed(self.config.run.seed)
        student = Encoder(spec or self.config.encoder.spec)
        if spec is None:
            student.load_state_dict(teacher.state_dict())
        elif self.config.student.weights is not None:
            load_weights(student, self.config.student.weights)
        return student.to(self.device).train()

    def student_encoder(self, path: Path) -> Encoder:
        """f' of stage 1, in eval mode."""
        encoder = Encoder(self.config.student.spec or self.config.encoder.spec)
        encoder.vit.load_state_dict(load_tensors(path))
        return encoder.requires_grad_(False).to(self.device).eval()


def file_hash(path: Path) -> str:
    """SHA-256 of a file: another file at the same path is another encoder."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
