"""What a generated cohort looks like: one frozen, strict model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MPP_L0 = 0.5
"""µm a level-0 pixel measures (20x). Every length of the generator is stated in µm and drawn at this scale."""

MASK_DOWNSAMPLE = 16
"""Level-0 pixels a pixel of the lesion mask and of the slide's layout measures."""

LEVEL_DOWNSAMPLES = (1, 4, 16)

CLASS_NAMES = ("benign", "lesion")

Signal = Literal["both", "detail", "architecture"]

Fold = Literal["unlabelled", "train", "val", "test"]
FOLDS: tuple[Fold, ...] = ("unlabelled", "train", "val", "test")


class CohortConfig(BaseModel):
    """Parameters of a generated cohort. An unknown key is an error.

    Everything that a slide shows, apart from its lesions, is drawn in the same way for both classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_unlabelled: int = Field(24, ge=0, description="slides without a label, for stage 1 and pretraining")
    n_train: int = Field(40, ge=0)
    n_val: int = Field(20, ge=0)
    n_test: int = Field(40, ge=0)

    width_px: int = Field(2048, ge=512, le=65536, multiple_of=64, description="level-0 pixels")
    height_px: int = Field(2048, ge=512, le=65536, multiple_of=64, description="level-0 pixels")
    jpeg_quality: int = Field(88, ge=50, le=100)

    signal: Signal = Field(
        "both",
        description="what tells a lesion. both: fewer and larger nuclei, seen at 20x and at 5x. detail: a grain of the same "
        "nuclei's chromatin, finer than a pixel at 5x. architecture: how crowded and empty squares of 32 µm (an HR tile of "
        "64 px) lie to each other; each square alone is as in benign tissue",
    )
    lesion_fraction_min: float = Field(0.07, gt=0, le=0.9, description="share of a positive slide's tissue")
    lesion_fraction_max: float = Field(0.14, gt=0, le=0.9)
    lesion_radius_ratio: float = Field(1.6, ge=1, le=2.5, description="radius, lesion / ordinary nuclei")
    # Below about 0.6 of the squared radius ratio the nuclei are too pale for the colours to be matched.
    lesion_chromatin_ratio: float = Field(
        1.9, ge=1, le=5, description="chromatin per nucleus, its inverse: number"
    )

    lesion_grain: float = Field(
        0.5, ge=0, le=2, description="of the chromatin, pixel by pixel, where the signal is detail"
    )

    nuclei_per_mm2: float = Field(4600, gt=100, le=12000, description="ordinary nuclei in cellular tissue")
    stain_variation: float = Field(1.0, ge=0, le=2, description="0: every slide has the same stain")
    pen_probability: float = Field(0.3, ge=0, le=1, description="share of slides with pen marks")
    aggregates_max: int = Field(3, ge=0, le=20, description="lymphoid aggregates a slide: 0 to this many")

    @model_validator(mode="after")
    def _fractions_in_order(self) -> CohortConfig:
        if self.lesion_fraction_min > self.lesion_fraction_max:
            raise ValueError("lesion_fraction_min is above lesion_fraction_max")
        return self

    @property
    def shape_l0_yx(self) -> tuple[int, int]:
        """Height and width in level-0 pixels."""
        return self.height_px, self.width_px

    def n_slides(self, fold: Fold) -> int:
        """Return the number of slides in a fold."""
        return {
            "unlabelled": self.n_unlabelled,
            "train": self.n_train,
            "val": self.n_val,
            "test": self.n_test,
        }[fold]
