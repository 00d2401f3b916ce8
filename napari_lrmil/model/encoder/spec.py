"""Everything needed to build an encoder, weights apart."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

CONVSTEM = "convstem_vit"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Options = dict[str, int | float | bool | str]


class EncoderSpec(BaseModel):
    """Everything needed to build an encoder, weights apart.

    `architecture` is a timm model name (a vision transformer with a class token) or ``convstem_vit``,
    a small ViT whose tokens come from four 3x3 stride-2 convolutions: it trains in minutes where a plain
    patch embedding doesn't. `options` go to the constructor; layer classes are given by name, as in
    ``{"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str = CONVSTEM
    options: Options = Field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
