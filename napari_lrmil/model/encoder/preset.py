"""What is to be known of a published encoder."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from napari_lrmil.model.encoder.spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec, Options


class EncoderPreset(BaseModel):
    """A published encoder. LRMIL takes its class token, and its tokens without class token and registers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    hub_id: str = Field(description="repository on huggingface.co")
    file: str = Field(description="of the weights, in the repository")
    licence: str = Field(description="of the weights; they are never part of this project")
    gated: bool = Field(description="access has to be requested at `url` first")
    architecture: str = Field(description="timm name")
    options: Options = Field(description="of timm's constructor")
    token_px: int
    embed_dim: int = Field(description="of the class token")
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    mpp: tuple[float, ...] = Field(description="µm/px it was trained at; empty: natural images")
    tile_px: int = Field(default=224, description="recommended edge of a tile")
    parameters_m: float = Field(description="millions of parameters, as published or as the file's size says")
    citation: str
    note: str = ""
    unconfirmed: tuple[str, ...] = Field(
        default=(), description="fields taken from secondary sources: compare them with the model card"
    )

    @property
    def spec(self) -> EncoderSpec:
        """What is built."""
        return EncoderSpec(architecture=self.architecture, options=self.options, mean=self.mean, std=self.std)

    @property
    def source(self) -> str:
        """Where the weights come from, as `load_weights` and the config key ``encoder.weights`` take it."""
        return f"hf-hub:{self.hub_id}/{self.file}"

    @property
    def url(self) -> str:
        """The model card, where access is requested too."""
        return f"https://huggingface.co/{self.hub_id}"
