"""The words of a result, the same in the window, in reports, in tables and in files. No Qt, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

from napari_lrmil.model.card import DEMONSTRATION_NOTE
from napari_lrmil.model.card import UNLIKE_TRAINING as _UNLIKE

if TYPE_CHECKING:  # predict loads torch
    from napari_lrmil.evidence import DeletionCurve
    from napari_lrmil.model.speed import Speed
    from napari_lrmil.predict import SlidePrediction

NOT_FOR_DIAGNOSIS = "DEMONSTRATION ONLY – NOT FOR DIAGNOSIS"
NOT_CLEARED_NOTE = "Not cleared as a medical device; not a diagnosis."
ATTENTION_NOTE = "Attention shows what the model looked at, not that there is disease."

NOT_TO_BE_USED = "Not to be used: the slide is unlike those that the model was trained on."
"""Stands beside whatever the model says of a slide that is unlike those of training."""

_SAME_THRESHOLD = 1e-6
_GAIN_THAT_COUNTS = 0.02
"""Area between the curves of a bag whose tiles all say the same differs from 0 by less."""


class Status(StrEnum):
    """What must be read beside an answer."""

    OK = "ok"
    """Nothing of the below."""
    UNSURE = "unsure"
    """Several classes remain possible, or none is probable enough."""
    UNLIKE_TRAINING = _UNLIKE
    """The slide is farther from those of training than the model's limit: this is the answer, and there is no label."""
    OTHER_STAIN = "other stain"
    """The slide looks immunostained, and the model is made for H&E."""
    DAMAGED = "damaged tiles"
    """Some tiles of the slide can't be decoded; the result is of the others."""
    DEMONSTRATION = "demonstration"
    """The model is made to show the program: not for diagnosis."""


def status_of(prediction: SlidePrediction) -> tuple[Status, ...]:
    """All that holds of a prediction, or `Status.OK` alone."""
    holds = {
        Status.UNSURE: prediction.unsure,
        Status.UNLIKE_TRAINING: prediction.out_of_distribution,
        Status.OTHER_STAIN: prediction.tiles.immunostained,
        Status.DAMAGED: prediction.damaged_tiles > 0,
        Status.DEMONSTRATION: prediction.demonstration,
    }
    return tuple(status for status, true in holds.items() if true) or (Status.OK,)


def answer_text(prediction: SlidePrediction, *, decimals: int = 0, between: str = " ") -> str:
    """The answer, a label with its probability."""
    if prediction.label is None:
        return prediction.answer
    return f"{prediction.label}{between}{percent_text(prediction.called_probability, decimals=decimals)}"


def withheld_text(prediction: SlidePrediction, *, decimals: int = 0) -> str:
    """What the model would say of a slide that is unlike those of training; empty where it is said anyway."""
    if prediction.label is not None:
        return ""
    share = percent_text(prediction.called_probability, decimals=decimals)
    return f"It would say: {prediction.called} {share}"


def counted_answer(answer: str, label: str | None, *, unsure: bool) -> str:
    """An answer among others that are counted: a label that is unsure isn't counted with those that are not."""
    return f"{answer} ({Status.UNSURE})" if unsure and label is not None else answer


def counts_text(answers: Iterable[str]) -> str:
    """How many slides have which answer, as ``7 lesion, 3 benign, 2 unlike training``; the most frequent label first.

    Parameters
    ----------
    answers : iterable of str
        See `counted_answer`.
    """
    counts = Counter(answers)
    ranked = sorted(counts, key=lambda answer: (answer == _UNLIKE, -counts[answer], answer))
    return ", ".join(f"{counts[answer]:,} {answer}" for answer in ranked)


def use_note(*, demonstration: bool) -> str:
    """What a result may be used for."""
    return DEMONSTRATION_NOTE if demonstration else NOT_CLEARED_NOTE


def percent_text(probability: float, *, decimals: int = 0) -> str:
    """A probability in percent, never rounded to a certainty it doesn't claim."""
    least = 10.0 ** -(decimals + 2)
    if probability >= 1 or probability <= 0:
        return "100 %" if probability >= 1 else "0 %"
    if probability > 1 - least:
        return f"> {_percent(1 - least, decimals)}"
    if probability < least:
        return f"< {_percent(least, decimals)}"
    return _percent(probability, decimals)


def _percent(share: float, decimals: int) -> str:
    return f"{share:.{decimals}%}".replace("%", " %")


def duration_text(seconds: float) -> str:
    """Seconds as a reader says them."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def time_taken_text(seconds: float) -> str:
    """How long a prediction took, short ones to a tenth of a second."""
    return f"{seconds:.1f} s" if seconds < 10 else duration_text(seconds)


def speed_text(speed: Speed) -> str:
    """How long a bundle takes on this machine, reading the slide apart."""
    return f"1 cm² of tissue: {duration_text(speed.seconds)} on {speed.device}"


def with_minus_sign(number: str) -> str:
    """A number as text with the minus sign of print in place of the hyphen."""
    return number.replace("-", "−")


def set_text(prediction: SlidePrediction) -> str:
    """The classes that are left at the bundle's coverage, in plain words."""
    left, coverage = prediction.prediction_set, prediction.coverage
    if left is None or coverage is None:
        return "No set of classes: this model states none."
    share = _percent(coverage, 0)
    if not left:
        return f"Unsure: no class is probable enough at {share}"
    if len(left) == 1:
        return f"Only {left[0]} fits at {share}"
    return f"Unsure: {', '.join(left[:-1])} or {left[-1]} at {share}"


def operating_text(prediction: SlidePrediction) -> str:
    """From where on a class is called; empty where the most probable one is."""
    thresholds = prediction.thresholds
    if thresholds is None or max(thresholds) - min(thresholds) < _SAME_THRESHOLD:
        return ""
    names = prediction.class_names
    if len(names) == 2:
        return f"{names[1]} is called from {percent_text(thresholds[1], decimals=1)} on"
    shares = ", ".join(
        f"{name} {percent_text(value, decimals=1)}" for name, value in zip(names, thresholds, strict=True)
    )
    return f"Called is the class farthest above its threshold, as a multiple: {shares}"


def distance_text(prediction: SlidePrediction) -> str:
    """How far a slide is from those of training."""
    if prediction.ood_score is None or prediction.ood_threshold is None:
        return "Distance to the training slides: this model states none"
    return f"Distance to the training slides: {prediction.ood_score:.3g} (warning above {prediction.ood_threshold:.3g})"


def unlike_training_text(prediction: SlidePrediction) -> str:
    """The warning that a slide is unlike those of training; empty where there is no reason to warn."""
    if not prediction.out_of_distribution:
        return ""
    return (
        "This slide looks unlike the training slides, by stain, scanner or tissue: the model has no answer for it. "
        f"{distance_text(prediction)}."
    )


def damaged_text(prediction: SlidePrediction) -> str:
    """How much of the slide couldn't be read; empty where all of it could."""
    damaged = prediction.damaged_tiles
    if not damaged:
        return ""
    tiles = "1 tile is" if damaged == 1 else f"{damaged} tiles are"
    return f"{tiles} damaged in the file, grey stripes on the slide: the result doesn't know what was there."


def other_stain_text(prediction: SlidePrediction) -> str:
    """The warning that a slide isn't stained with H&E; empty where there is no reason to warn."""
    if not prediction.tiles.immunostained:
        return ""
    share = percent_text(prediction.tiles.brown_share)
    return (
        f"This slide looks immunostained ({share} of its tissue is brown), and the model is made for H&E unless its card "
        "says otherwise: don't rely on the result."
    )


def slide_warnings(prediction: SlidePrediction) -> tuple[str, ...]:
    """Why a result shouldn't be relied on, as far as the slide is the reason."""
    return tuple(
        filter(
            None, (other_stain_text(prediction), unlike_training_text(prediction), damaged_text(prediction))
        )
    )


def saturated_text(prediction: SlidePrediction) -> str:
    """That percentage points tell nothing here; empty where they do."""
    if not prediction.saturated:
        return ""
    return (
        f"The probability is saturated ({percent_text(prediction.called_probability)}): percentage points "
        "can't tell the tiles apart; log-odds can."
    )


def evidence_notes(prediction: SlidePrediction) -> tuple[str, ...]:
    """What must be known beside evidence: that it isn't to be used, that it is saturated, that it isn't to be relied on."""
    unreliable = _MATTER_LESS[0].upper() + _MATTER_LESS[1:] + "." if _misleading(prediction.deletion) else ""
    unlike = "" if prediction.label is not None else NOT_TO_BE_USED
    return tuple(filter(None, (unlike, saturated_text(prediction), unreliable, estimated_text(prediction))))


def estimated_text(prediction: SlidePrediction) -> str:
    """That contributions are estimates, and of how many tiles; empty where all are exact."""
    exact = prediction.exact_tiles
    if exact is None:
        return ""
    n, left = int(exact.sum()), int((~exact).sum())
    return (
        f"Contributions are exact for {n} of {n + left} tiles, those that the model's gradient says matter most; the other "
        f"{left} are estimates, as leaving each of them out would take too long."
    )


_MATTER_LESS = "these tiles matter less than tiles by chance: don't rely on the heatmap"


def _misleading(curve: DeletionCurve) -> bool:
    return curve.area_gain <= -_GAIN_THAT_COUNTS


def curve_text(curve: DeletionCurve) -> str:
    """What a deletion curve says of the heatmap: whether the tiles that it names matter."""
    gain = curve.area_gain
    flat = (
        "the probability is saturated and hardly falls, so this can't tell whether these tiles matter"
        if curve.saturated
        else "no tile matters much more than another"
    )
    meaning = (
        "these tiles carry the result"
        if gain > _GAIN_THAT_COUNTS
        else _MATTER_LESS
        if _misleading(curve)
        else flat
    )
    return f"Area gained over random: {with_minus_sign(f'{gain:+.2f}')}, {meaning}."
