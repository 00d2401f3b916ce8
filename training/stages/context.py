"""What every stage needs to know of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from napari_lrmil.model.encoder import Encoder, load_encoder_weights
from training.config import RunConfig
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles, TileGeometry
from training.progress import Reporter
from training.run_dir import RunDir, load_tensors


@dataclass(frozen=True)
class Context:
    """A run: its directory, config, slides and device."""

    run_dir: RunDir
    config: RunConfig
    geometry: TileGeometry
    tiles: dict[str, SlideTiles]
    class_names: tuple[str, ...]
    device: torch.device
    reporter: Reporter

    def store(self, kind: str) -> EmbeddingStore:
        """Embeddings of one kind: ``hr``, ``lr-teacher``, ``fold0/lr-student``."""
        return EmbeddingStore(self.run_dir.path(*kind.split("/")[:-1], "embeddings", kind.split("/")[-1]))

    def tiles_of(self, rows: Iterable[SlideRow]) -> list[SlideTiles]:
        """The tiles of some slides, in their order."""
        return [self.tiles[row.slide_id] for row in rows]

    def teacher_encoder(self) -> Encoder:
        """f, frozen, in eval mode."""
        torch.manual_seed(self.config.run.seed)
        encoder = Encoder(self.config.encoder.spec)
        if self.config.encoder.weights is not None:
            load_encoder_weights(encoder, self.config.encoder.weights)
        encoder.requires_grad_(False)
        return encoder.to(self.device).eval()

    def student_encoder(self, name: str) -> Encoder:
        """f' of stage 1, in eval mode."""
        encoder = Encoder(self.config.encoder.spec)
        encoder.vit.load_state_dict(load_tensors(self.run_dir.path(name)))
        return encoder.to(self.device).eval()
