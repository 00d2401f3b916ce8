"""The few figures of a result that a list of slides shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_lrmil.model.calibration import UNLIKE_TRAINING, answer_of
from napari_lrmil.wording import status_of

if TYPE_CHECKING:
    from napari_lrmil.predict import SlidePrediction


@dataclass(frozen=True)
class ResultSummary:
    """A `SlidePrediction` without its tiles, C classes.

    Attributes
    ----------
    called : str
        The class that is called; where it isn't the `answer`, it is not to be used.
    probability : float
        Of that class.
    class_names, class_probabilities : tuples of length C
    prediction_set : tuple of str, or None
        Conformal set; None where the bundle states no level.
    unsure, out_of_distribution : bool
    ood_score : float or None
    n_tiles : int
    seconds : float
        That the prediction took when it was made.
    fingerprint, bundle_name, bundle_sha256 : str
    status : tuple of str
        What must be read beside the answer, see `napari_lrmil.wording.Status`; empty in summaries that an earlier version
        kept, as are the following.
    coverage, ood_threshold : float or None
    version : str
        Of the program that made the result.
    """

    called: str
    probability: float
    class_names: tuple[str, ...]
    class_probabilities: tuple[float, ...]
    prediction_set: tuple[str, ...] | None
    unsure: bool
    out_of_distribution: bool
    ood_score: float | None
    n_tiles: int
    seconds: float
    fingerprint: str
    bundle_name: str
    bundle_sha256: str
    status: tuple[str, ...] = ()
    coverage: float | None = None
    ood_threshold: float | None = None
    version: str = ""

    @property
    def answer(self) -> str:
        """See `SlidePrediction.answer`."""
        return answer_of(self.called, out_of_distribution=self.out_of_distribution)

    @property
    def label(self) -> str | None:
        """See `SlidePrediction.label`."""
        return None if self.answer == UNLIKE_TRAINING else self.called


def summarise(prediction: SlidePrediction) -> ResultSummary:
    """The summary of a prediction."""
    return ResultSummary(
        called=prediction.called,
        probability=prediction.called_probability,
        class_names=prediction.class_names,
        class_probabilities=tuple(prediction.class_probabilities.tolist()),
        prediction_set=prediction.prediction_set,
        unsure=prediction.unsure,
        out_of_distribution=prediction.out_of_distribution,
        ood_score=prediction.ood_score,
        n_tiles=len(prediction.tiles),
        seconds=prediction.seconds,
        fingerprint=prediction.slide_fingerprint,
        bundle_name=prediction.bundle_name,
        bundle_sha256=prediction.bundle_sha256,
        status=tuple(status.value for status in status_of(prediction)),
        coverage=prediction.coverage,
        ood_threshold=prediction.ood_threshold,
        version=prediction.version,
    )
