"""The encoders of a run: the teacher f, the student f' before and after stage 1, and an untrained one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from pydantic import Field, model_validator

from napari_lrmil.errors import EncoderError
from napari_lrmil.model.encoder import (
    CONVSTEM,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Encoder,
    EncoderSpec,
    load_weights,
    with_preset,
)
from napari_lrmil.model.tensors import shapes_alone
from training.section import Section


class _ViTSection(Section):
    """What the teacher's and the student's encoder have in common."""

    preset: str | None = Field(
        default=None,
        description="published encoder (docs/encoders.md): gives the fields that are not set here",
    )
    architecture: str | None = None
    options: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="of the constructor; beside a preset they win key by key"
    )
    weights: str | None = None
    mean: tuple[float, float, float] = Field(
        default=IMAGENET_MEAN, description="subtracted from RGB in 0..1, as in the encoder's pretraining"
    )
    std: tuple[float, float, float] = Field(default=IMAGENET_STD, description="divides it")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        try:
            filled = with_preset(given)
        except EncoderError as error:
            raise ValueError(str(error)) from error
        if isinstance(filled.get("weights"), str | Path):
            filled["weights"] = str(filled["weights"]) or None
        return filled

    def _spec(self, architecture: str) -> EncoderSpec:
        return EncoderSpec(architecture=architecture, options=self.options, mean=self.mean, std=self.std)


class EncoderSection(_ViTSection):
    """The teacher encoder f; the student starts from it."""

    architecture: str = Field(default=CONVSTEM, description="timm ViT, or convstem_vit")
    weights: str | None = Field(
        default=None,
        description='safetensors file or hf-hub:OWNER/NAME[/FILE]; none or "": random, for baselines only',
    )
    batch_size: int = Field(default=32, ge=1, description="tiles a step when embedding")
    stored_layers: tuple[int, ...] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # what is made without it keeps its key
        description="blocks whose class tokens of HR tiles are stored beside those that stage 1 matches, so that other "
        "stage1.layers embed nothing anew; each takes as much disk as the embeddings. Default: the paper's, the first two and "
        "the last but one; []: none",
    )

    @property
    def layers_beside(self) -> tuple[int, ...]:
        """What `stored_layers` says, of blocks that there are."""
        depth = encoder_depth(self.spec)
        wanted = (0, 1, depth - 2) if self.stored_layers is None else self.stored_layers
        return tuple(sorted({layer for layer in wanted if 0 <= layer < depth}))

    @property
    def spec(self) -> EncoderSpec:
        """What the model package builds from."""
        return self._spec(self.architecture)


class StudentSection(_ViTSection):
    """The student encoder f', where it isn't a copy of f: distilled in resolution and in size at once."""

    architecture: str | None = Field(
        default=None, description="timm ViT or convstem_vit; default: f' starts as a copy of f"
    )
    weights: str | None = Field(
        default=None,
        description='safetensors file or hf-hub:OWNER/NAME[/FILE] to start from; none or "": random',
    )
    layers: tuple[int, ...] | None = Field(
        default=None,
        description="its blocks that are matched with stage1.layers, one each; default: at the same relative depth",
    )
    token_px: int | None = Field(
        default=None,
        ge=1,
        description="edge of its tokens in pixels, where it isn't that of its weights: half as much (16 -> 8, 14 -> 7) "
        "reads the same LR tile with 4 times the tokens, in 4 times the time and more. The patch embedding is resampled; "
        "it must divide tiles.tile_px",
    )

    def spec_for(self, teacher: EncoderSpec) -> EncoderSpec:
        """Return what the model package builds f' from: its own architecture or f's, with its tokens.

        Raises
        ------
        EncoderError
            Where an encoder with a convolutional stem is given another size of tokens.
        """
        spec = teacher if self.architecture is None else self._spec(self.architecture)
        return spec if self.token_px is None else spec.with_token_px(self.token_px)


def encoder_depth(spec: EncoderSpec) -> int:
    """Return how many blocks an encoder has, without making its weights."""
    return _depth_and_width(spec.model_dump_json())[0]


def encoder_width(spec: EncoderSpec) -> int:
    """Return the length of an encoder's embeddings, without making its weights."""
    return _depth_and_width(spec.model_dump_json())[1]


@lru_cache(maxsize=64)
def _depth_and_width(spec: str) -> tuple[int, int]:
    """Return both of an encoder, given its spec as JSON: a config is asked for them with each store and each key."""
    with shapes_alone():
        encoder = Encoder(EncoderSpec.model_validate_json(spec))
    return encoder.depth, encoder.embed_dim


def random_encoder(spec: EncoderSpec, *, seed: int, device: torch.device) -> Encoder:
    """Return an encoder with fresh weights, frozen, in eval mode."""
    torch.manual_seed(seed)
    return Encoder(spec).requires_grad_(False).to(device).eval()


def teacher_encoder(section: EncoderSection, *, seed: int, device: torch.device) -> Encoder:
    """Return f, frozen, in eval mode."""
    encoder = random_encoder(section.spec, seed=seed, device=device)
    if section.weights is not None:
        load_weights(encoder, section.weights)
    return encoder.to(device).eval()


def new_student(section: StudentSection, teacher: Encoder, *, seed: int, device: torch.device) -> Encoder:
    """Return f' before stage 1, in train mode: a copy of f, or the student of the config.

    Always made anew: one that is carried over from another fold has seen this fold's test slides.
    """
    torch.manual_seed(seed)
    student = Encoder(section.spec_for(teacher.spec))
    other_token_px = section.token_px is not None
    if section.architecture is not None:
        if section.weights is not None:
            load_weights(student, section.weights, other_token_px=other_token_px)
    elif other_token_px:
        student.load_resampled(teacher)
    else:
        student.load_state_dict(teacher.state_dict())
    return student.to(device).train()


def train_last_blocks(encoder: Encoder, blocks: int) -> int:
    """Freeze an encoder but for its last blocks and the norm after them; what is below needs no graph.

    Parameters
    ----------
    encoder : Encoder
        Changed in place.
    blocks : int
        All of them where there are fewer.

    Returns
    -------
    int
        How many blocks are frozen.
    """
    blocks = min(blocks, encoder.depth)
    encoder.requires_grad_(False)
    for block in list(encoder.vit.blocks)[-blocks:]:
        block.requires_grad_(True)
    encoder.vit.norm.requires_grad_(True)
    return encoder.depth - blocks


def trained_student(
    weights: Mapping[str, torch.Tensor], spec: EncoderSpec, *, device: torch.device
) -> Encoder:
    """Return f' after stage 1, frozen, in eval mode."""
    encoder = Encoder(spec)
    encoder.vit.load_state_dict(weights)
    return encoder.requires_grad_(False).to(device).eval()
