"""Everything needed to build an encoder, weights apart."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

CONVSTEM = "convstem_vit"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Options = dict[str, int | float | bool | str]

_LARGEST_OPTION = 16_384
"""Of numbers in `options`: no encoder has as many of anything."""
_LARGEST = {"depth": 256}
_Positive = Annotated[float, Field(gt=0)]


class EncoderSpec(BaseModel):
    """Everything needed to build an encoder, weights apart.

    `architecture` is a timm model name (a vision transformer with a class token) or ``convstem_vit``,
    a small ViT whose tokens come from four 3x3 stride-2 convolutions: it trains in minutes where a plain
    patch embedding doesn't. `options` go to the constructor; layer classes are given by name, as in
    ``{"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: str = CONVSTEM
    options: Options = Field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[_Positive, _Positive, _Positive] = IMAGENET_STD

    @field_validator("options")
    @classmethod
    def _options_are_of_an_encoder(cls, options: Options) -> Options:
        for name, value in options.items():
            largest = _LARGEST.get(name, _LARGEST_OPTION)
            if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= largest):
                raise ValueError(f"{name} is {value}; an encoder's is at most {largest}")
        return options
