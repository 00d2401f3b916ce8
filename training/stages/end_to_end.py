"""Stage 3, end to end: an encoder and its head learn together from the slides' labels, an LR bag read as pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from napari_lrmil.model.bundle import stored_weights
from napari_lrmil.model.encoder import Encoder
from napari_lrmil.model.mil import MILModel, MILOutput
from napari_lrmil.slide import choose_level, iter_tiles
from training.data.bags import read_ahead
from training.data.tile_index import SlideTiles, TileGeometry
from training.encoders import train_last_blocks
from training.loop import Recipe, Session, Task, fit
from training.metrics import auc
from training.section import Section
from training.stages.heads import (
    FittedHead,
    InTensors,
    MILSection,
    balanced_order,
    class_weights,
    head_fit,
)

_ADAPTED = ("qkv", "proj")
"""The linear layers of a block's attention."""


class EndToEndSection(Section):
    """Encoder and head trained together on the label; the head is that of ``[mil]``, but for how it is trained."""

    train: Literal["all", "last_blocks", "lora"] = Field(
        default="last_blocks",
        description="of the encoder. all: every weight; last_blocks: end_to_end.blocks blocks and the norm after them; "
        "lora: low-rank adapters of these blocks' attention, merged into the weights in the end",
    )
    blocks: int = Field(
        default=4,
        ge=1,
        description="the last so many blocks, or all where there are fewer; those below are frozen, and need no graph",
    )
    lora_rank: int = Field(default=8, ge=1, le=256, description="of the adapters")
    epochs: int = Field(default=20, ge=1, description="at most")
    min_epochs: int = Field(
        default=5,
        ge=1,
        description="weights of an earlier epoch are not kept; at most half of end_to_end.epochs",
    )
    patience: int = Field(
        default=5,
        ge=1,
        description="epochs without a better validation AUC before stopping, after min_epochs",
    )
    learning_rate: float = Field(
        default=1e-5, gt=0, description="of the encoder, with AdamW; adapters bear 10 times more"
    )
    head_learning_rate: float = Field(default=2e-4, gt=0, description="of the head")
    warmup_epochs: float = Field(default=1.0, ge=0, description="over which both rates rise from 0")
    weight_decay: float = Field(default=1e-3, ge=0, description="of AdamW")
    accumulate: int = Field(default=1, ge=1, description="slides a step")
    max_tiles: int = Field(
        default=256,
        ge=1,
        description="of a slide in a training step, drawn anew each time; validation and test read all of them",
    )
    chunk_tiles: int = Field(default=16, ge=1, description="tiles that go through the encoder at once")
    checkpointing: bool = Field(
        default=True,
        description="recompute a chunk's activations in the backward pass, a third more time: of a bag's activations one "
        "chunk's are held at once, beside its tiles and their gradients, which grow with the bag",
    )

    def recipe(self, seed: int) -> Recipe:
        """Return how the weights are fitted."""
        return Recipe(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            learning_rates={"head.": self.head_learning_rate},
            weight_decay=self.weight_decay,
            seed=seed,
            accumulate=self.accumulate,
            patience=self.patience,
            min_epochs=min(self.min_epochs, max(1, self.epochs // 2)),
            rising_epochs=self.warmup_epochs,
        )


class PixelBag(NamedTuple):
    """One slide in a training step: (N, T, T, 3) uint8 tiles in RGB and its class as an index."""

    name: str
    tiles: Tensor
    label: int


class PixelBags(Protocol):
    """The bags of labelled slides, as pixels, read when they are asked for."""

    names: Sequence[str]
    labels: NDArray[np.int64]
    """(number of bags,) classes"""

    def n_tiles(self, index: int) -> int:
        """Return the number of tiles of a bag."""

    def batches(self, index: int, chosen: NDArray[np.int64] | None, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the (B, T, T, 3) tiles of a bag, at most `size` at once: the chosen ones in their order, or all."""


class SlidePixels:
    """The LR tiles of slides.

    Parameters
    ----------
    slides : sequence of SlideTiles
        With a label.
    geometry : TileGeometry
    class_names : tuple of str
    threads : int
        Tiles decoded at once.
    """

    def __init__(
        self,
        slides: Sequence[SlideTiles],
        geometry: TileGeometry,
        class_names: tuple[str, ...],
        *,
        threads: int,
    ) -> None:
        self._slides, self._geometry, self._threads = slides, geometry, threads
        self.names: Sequence[str] = [item.row.slide_id for item in slides]
        labels = []
        for item in slides:
            if item.row.label is None:
                raise ValueError(f"{item.row.slide_id} has no label")
            labels.append(class_names.index(item.row.label))
        self.labels: NDArray[np.int64] = np.asarray(labels, np.int64)

    def n_tiles(self, index: int) -> int:
        """Return the number of LR tiles with tissue of a slide."""
        return len(self._slides[index].lr_places)

    def batches(self, index: int, chosen: NDArray[np.int64] | None, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the (B, T, T, 3) tiles of a slide.

        Raises
        ------
        SlideError
        """
        item = self._slides[index]
        places = item.lr_places if chosen is None else item.lr_places[chosen]
        wanted = [(row, col) for row, col in places.tolist()]
        with self._geometry.open(item.row) as slide:
            grid = self._geometry.lr_grid(slide)
            level = choose_level(slide.level_mpps, grid.spec.mpp)
            yield from iter_tiles(slide, grid, level, wanted, batch_size=size, threads=self._threads)
            slide.check_unchanged()


class LowRank(nn.Module):
    """A frozen linear layer with a trained change of low rank, which begins at 0.

    Parameters
    ----------
    frozen : nn.Linear
    rank : int
    """

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        like = {"device": frozen.weight.device, "dtype": frozen.weight.dtype}
        self.down = nn.Linear(frozen.in_features, rank, bias=False, **like)
        self.up = nn.Linear(rank, frozen.out_features, bias=False, **like)
        nn.init.zeros_(self.up.weight)

    def forward(self, values: Tensor) -> Tensor:
        """Return the layer's output with the change."""
        changed: Tensor = self.frozen(values) + self.up(self.down(values))
        return changed

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the frozen layer, with the change in its weights."""
        self.frozen.weight += self.up.weight @ self.down.weight
        return self.frozen


def add_adapters(encoder: Encoder, *, blocks: int, rank: int) -> None:
    """Put adapters on the attention of the last blocks."""
    for block in list(encoder.vit.blocks)[-blocks:]:
        for name in _ADAPTED:
            setattr(block.attn, name, LowRank(getattr(block.attn, name), rank))


def merge_adapters(encoder: Encoder) -> None:
    """Make a plain encoder of one with adapters, which says the same."""
    for block in encoder.vit.blocks:
        for name in _ADAPTED:
            layer = getattr(block.attn, name)
            if isinstance(layer, LowRank):
                setattr(block.attn, name, layer.merged())


class EndToEnd(nn.Module):
    """Encoder and head; sets which weights of the encoder are trained.

    Parameters
    ----------
    encoder : Encoder
        Changed in place; see `merge_adapters` for "lora".
    head : MILModel
    section : EndToEndSection
    """

    def __init__(self, encoder: Encoder, head: MILModel, section: EndToEndSection) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self._chunk_tiles, self._checkpointing = section.chunk_tiles, section.checkpointing
        self._n_frozen = 0
        if section.train == "all":
            encoder.requires_grad_(True)
        else:
            self._n_frozen = train_last_blocks(encoder, section.blocks)
        if section.train == "lora":
            encoder.requires_grad_(False)
            add_adapters(encoder, blocks=section.blocks, rank=section.lora_rank)

    def forward(self, tiles: Tensor) -> MILOutput:
        """Return what the head says of a bag of (N, T, T, 3) uint8 tiles, which may lie on another device."""
        output: MILOutput = self.head(
            torch.cat([self._embed(chunk) for chunk in torch.split(tiles, self._chunk_tiles)])
        )
        return output

    def _embed(self, chunk: Tensor) -> Tensor:
        pixels = self.encoder.preprocess(chunk.to(self.encoder.vit.pos_embed.device))
        if not self._n_frozen:
            return self._lightly(lambda given: self.encoder(given).embedding, pixels)
        with torch.no_grad():
            ((tokens, prefix),) = self.encoder.vit.forward_intermediates(
                pixels,
                indices=[self._n_frozen - 1],
                return_prefix_tokens=True,
                norm=False,
                output_fmt="NLC",
                stop_early=True,
                intermediates_only=True,
            )
            hidden = torch.cat([prefix, tokens], dim=1)  # as timm has them
        return self._lightly(self._upper, hidden)

    def _upper(self, hidden: Tensor) -> Tensor:
        for block in list(self.encoder.vit.blocks)[self._n_frozen :]:
            hidden = block(hidden)
        normed: Tensor = self.encoder.vit.norm(hidden)
        return normed[:, 0]

    def _lightly(self, work: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        if not (self._checkpointing and torch.is_grad_enabled()):
            return work(given)
        embeddings: Tensor = checkpoint(work, given, use_reentrant=False)
        return embeddings


def fit_end_to_end(
    encoder: Encoder,
    train: PixelBags,
    val: PixelBags,
    section: EndToEndSection,
    mil: MILSection,
    session: Session,
    *,
    n_classes: int,
    seed: int,
    class_names: tuple[str, ...] | None = None,
) -> FittedHead:
    """Train an encoder in place, and a fresh head on it, which is returned in eval mode.

    Stopped on the AUC of `val` (of equal ones the smaller loss). The same seed gives the same weights on the same
    machine. There are no restarts.

    Parameters
    ----------
    encoder : Encoder
        f', or f for a training from scratch; on the session's device. Afterwards a plain encoder in eval mode, its weights
        rounded as a bundle stores them.
    train, val : PixelBags
    section : EndToEndSection
    mil : MILSection
        What the head is built from, how classes are balanced, and when it counts as fitted.
    session : Session
    n_classes : int
    seed : int
        Of head, adapters, order, tiles and dropout.
    class_names : tuple of str, optional
        For a head that reads texts of them.
    """
    device = session.fabric.device
    torch.manual_seed(seed)
    head = mil.build(encoder.embed_dim, class_names or tuple(map(str, range(n_classes)))).to(device)
    model = EndToEnd(encoder, head, section)
    weights = torch.from_numpy(class_weights(train.labels, n_classes)) if mil.balance == "loss" else None

    def batches(epoch: int, start: int = 0) -> Iterator[PixelBag]:
        rng = np.random.default_rng((seed, epoch))
        order = (
            balanced_order(train.labels, rng) if mil.balance == "bags" else rng.permutation(len(train.labels))
        ).tolist()
        drawn = []
        for index in order:
            n = train.n_tiles(index)
            drawn.append((index, np.sort(rng.permutation(n)[: section.max_tiles])))
        return read_ahead(lambda one: _read(train, *one, section.chunk_tiles), drawn[start:])

    def losses(wrapped: nn.Module, bag: PixelBag) -> dict[str, Tensor]:
        output = MILOutput.of_tensors(wrapped(bag.tiles))
        terms = head.losses(output, bag.label, class_weights=weights)
        return {"loss": torch.stack(list(terms.values())).sum()} | (terms if len(terms) > 1 else {})

    def validate() -> dict[str, float]:
        logits = served_logits(encoder, head, val, device, section.chunk_tiles)
        return {
            "val_auc": auc(val.labels, torch.softmax(logits, dim=1).numpy()),
            "val_loss": float(F.cross_entropy(logits, torch.from_numpy(val.labels))),
        }

    task = Task(
        batches=batches,
        steps_per_epoch=len(train.labels),
        losses=losses,
        validate=validate,
        score=lambda metrics: (round(metrics["val_auc"], 6), -metrics["val_loss"]),
        names=lambda bag, losses: bag.name,
        rest=batches,
    )
    result = fit(model, task, section.recipe(seed), session, called=InTensors(model))
    merge_adapters(encoder)
    encoder.requires_grad_(False).eval()
    # Rounded: what is evaluated is what a bundle serves.
    encoder.vit.load_state_dict(stored_weights(encoder.vit.state_dict()))
    head.load_state_dict(stored_weights(head.state_dict()))
    logits = served_logits(encoder, head, train, device, section.chunk_tiles)
    return FittedHead(head, head_fit(result, train.labels, logits.numpy(), mil))


@torch.inference_mode()
def served_logits(
    encoder: Encoder, head: MILModel, bags: PixelBags, device: torch.device, size: int
) -> Tensor:
    """Return the (number of bags, C) float64 logits over all tiles, at 32 bits from embeddings of 16, as at inference."""
    logits = []
    for index in range(len(bags.labels)):
        parts = [
            encoder(encoder.preprocess(torch.from_numpy(tiles).to(device))).embedding.half().float()
            for tiles in bags.batches(index, None, size)
        ]
        logits.append(head(torch.cat(parts)).bag_logits.double().cpu())
    return torch.stack(logits)


def _read(bags: PixelBags, index: int, chosen: NDArray[np.int64], size: int) -> PixelBag:
    tiles = np.concatenate(list(bags.batches(index, chosen, size)))
    return PixelBag(bags.names[index], torch.from_numpy(tiles), int(bags.labels[index]))
