"""Before stage 2: has a fold's teacher anything to give that LR tiles alone don't say?

Validation slides answer: the heads of all seeds, the teacher's on HR and those of LR from scratch, and the paired difference of
their AUC with its interval over patients and trainings. A teacher that isn't shown to be better is left aside in its fold: a
student that is guided by a blind teacher is led astray.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from training.intervals import FoldScores, resample_aucs


class Gate(BaseModel):
    """How a fold's teacher compares with LR from scratch on validation slides."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    teacher_auc: float | None
    """None where an AUC isn't defined, as with a class that no validation slide has."""
    scratch_auc: float | None
    low: float | None
    """Of the difference, 95 %."""
    high: float | None

    @property
    def is_open(self) -> bool:
        """Whether the teacher is shown to be better."""
        return self.low is not None and self.low > 0

    @property
    def text(self) -> str:
        """Both AUC and their difference, in words."""
        if self.teacher_auc is None or self.scratch_auc is None:
            return "no AUC is defined there"
        difference = f"{self.teacher_auc - self.scratch_auc:+.2f}"
        interval = "" if self.low is None else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return f"AUC {self.teacher_auc:.2f} and {self.scratch_auc:.2f}, difference {difference}{interval}"


def judge(teacher: FoldScores, scratch: FoldScores, *, n_resamples: int, seed: int) -> Gate:
    """Compare what both say of a fold's validation slides; as many trainings of each, of the same seeds."""
    try:
        found = resample_aucs(
            {"teacher": [teacher], "scratch": [scratch]}, n_resamples=n_resamples, seed=seed
        )
    except ValueError:
        return Gate(teacher_auc=None, scratch_auc=None, low=None, high=None)
    aucs = {f"{name}_auc": one.value for name, one in found.items()}
    try:
        _, low, high = found["teacher"].minus(found["scratch"]).interval()
    except ValueError:  # it is defined on too few resamples
        return Gate(**aucs, low=None, high=None)
    return Gate(**aucs, low=low, high=high)


def gate_note(gates: Mapping[int, Gate]) -> str:
    """Say in which folds, by number, the teacher is left aside and why; empty where in none."""
    closed = {fold: gate for fold, gate in gates.items() if not gate.is_open}
    if not closed:
        return ""
    of_each = [gate.text if len(gates) == 1 else f"fold {fold}: {gate.text}" for fold, gate in closed.items()]
    return (
        "the teacher is left aside, since on validation slides it isn't shown to be better than LR from scratch "
        f"({'; '.join(of_each)})"
    )
