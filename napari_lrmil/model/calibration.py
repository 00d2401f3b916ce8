"""From bag logits to a label: scaled logits, probabilities, and the thresholds at which a class is called. No torch.

All three come from validation slides. `called_class` is the one rule by which a class is called, in training and serving;
`answer_of` is the one that says whether that class is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Array = NDArray[np.float64]

UNLIKE_TRAINING = "unlike training"
"""The answer where there is no label: the slide is farther from those of training than the model's limit."""


class VectorScaling(BaseModel):
    """A temperature and a bias for each class (Guo et al., ICML 2017), applied to bag logits before the softmax."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperatures: tuple[float, ...] = Field(min_length=2, description="the bag logits are divided by them")
    biases: tuple[float, ...] = Field(description="added afterwards")

    @model_validator(mode="after")
    def _match(self) -> VectorScaling:
        if len(self.biases) != len(self.temperatures):
            raise ValueError(f"{len(self.temperatures)} temperatures and {len(self.biases)} biases")
        if min(self.temperatures) <= 0:
            raise ValueError("a temperature isn't above 0")
        return self

    @classmethod
    def of_temperature(cls, temperature: float, n_classes: int) -> VectorScaling:
        """Return the scaling by one temperature alone, as in bundles of format versions 1 and 2."""
        return cls(temperatures=(temperature,) * n_classes, biases=(0.0,) * n_classes)

    def scaled(self, bag_logits: Array) -> Array:
        """Return scaled logits, (..., C)."""
        found: Array = bag_logits / np.asarray(self.temperatures) + np.asarray(self.biases)
        return found


class OperatingPoint(BaseModel):
    """When a class is called: the one whose probability is the largest multiple of its threshold.

    Thresholds sum to 1. With two classes the second is called from its threshold on; with equal thresholds the most probable
    class is called.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rule: Literal["youden", "sensitivity", "specificity"] = Field(
        description="how it was chosen on validation: youden takes the largest sum of the classes' sensitivities"
    )
    thresholds: tuple[float, ...] = Field(min_length=2, description="one a class")
    positive: str | None = Field(
        default=None, description="of two classes, the one that sensitivity and specificity speak of"
    )
    wanted: float | None = Field(
        default=None, gt=0, lt=1, description="sensitivity or specificity that validation was to reach"
    )

    @model_validator(mode="after")
    def _sound(self) -> OperatingPoint:
        if min(self.thresholds) <= 0 or not math.isclose(sum(self.thresholds), 1, abs_tol=1e-6):
            raise ValueError("thresholds must be above 0 and sum to 1")
        return self


def called_class(class_probabilities: Array, thresholds: Sequence[float] | None) -> NDArray[np.int64]:
    """Return the index of the class that is called, of (..., C) probabilities; equal multiples go to the first.

    Parameters
    ----------
    class_probabilities : (..., C) array
    thresholds : sequence of C floats, optional
        None calls the most probable class.
    """
    multiples = class_probabilities if thresholds is None else class_probabilities / np.asarray(thresholds)
    return np.asarray(multiples.argmax(axis=-1), np.int64)


def answer_of(called: str, *, out_of_distribution: bool) -> str:
    """Return what is answered: the class that is called, or `UNLIKE_TRAINING` in its place.

    Parameters
    ----------
    called : str
    out_of_distribution : bool
        Whether the slide is farther from those of training than the model's limit; False where it has none.
    """
    return UNLIKE_TRAINING if out_of_distribution else called
