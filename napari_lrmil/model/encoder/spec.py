"""Everything needed to build an encoder, weights apart."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from napari_lrmil.errors import EncoderError

CONVSTEM = "convstem_vit"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Options = dict[str, int | float | bool | str]

_LARGEST_OPTION = 16_384
"""Of numbers in `options`: no encoder has as many of anything."""
_LARGEST = {"depth": 256}
_LONGEST_TEXT = 200
_MOST_OPTIONS = 50
_Positive = Annotated[float, Field(gt=0)]


class EncoderSpec(BaseModel):
    """Everything needed to build an encoder, weights apart.

    `architecture` is a timm model name (a vision transformer with a class token) or ``convstem_vit``,
    a small ViT whose tokens come from four 3x3 stride-2 convolutions: it trains in minutes where a plain
    patch embedding doesn't. `options` go to the constructor; layer classes are given by name, as in
    ``{"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: str = Field(default=CONVSTEM, max_length=_LONGEST_TEXT)
    options: Options = Field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[_Positive, _Positive, _Positive] = IMAGENET_STD

    def with_token_px(self, token_px: int) -> EncoderSpec:
        """Return the same encoder with tokens of another edge in pixels.

        Raises
        ------
        EncoderError
            Where its tokens come from a convolutional stem.
        """
        if self.architecture == CONVSTEM:
            raise EncoderError(
                f"the tokens of {CONVSTEM} come from a convolutional stem of 16 px a token, which can't be resampled to "
                f"{token_px} px; take a vision transformer with a patch embedding"
            )
        return self.model_copy(update={"options": {**self.options, "patch_size": token_px}})

    @field_validator("options")
    @classmethod
    def _options_are_of_an_encoder(cls, options: Options) -> Options:
        if len(options) > _MOST_OPTIONS:
            raise ValueError(f"{len(options)} options; an encoder has at most {_MOST_OPTIONS}")
        for name, value in options.items():
            if len(name) > _LONGEST_TEXT or (isinstance(value, str) and len(value) > _LONGEST_TEXT):
                raise ValueError(f"{name[:20]} is longer than {_LONGEST_TEXT} characters")
            largest = _LARGEST.get(name, _LARGEST_OPTION)
            if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= largest):
                raise ValueError(f"{name} is {value}; an encoder's is at most {largest}")
            if isinstance(value, int | float) and value < 0:
                raise ValueError(f"{name} is {value}; an encoder's is not below 0")
        return options
