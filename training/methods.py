"""What a run compares: the one table of methods. Config, pipeline, results and report take theirs from here.

A method is an embedding of a slide's tiles, a head on the bag of them, and the losses that train the head. Beside them
stand shortcut baselines, which can't know what the label is about: what they reach is not the method's merit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator


@dataclass(frozen=True)
class Embedding:
    """Which encoder reads which tiles: teacher f, student f' or an untrained one, at high or low resolution."""

    encoder: Literal["teacher", "student", "random"]
    resolution: Literal["hr", "lr"]

    @property
    def is_hr(self) -> bool:
        """Whether HR tiles are read."""
        return self.resolution == "hr"


CROSS_ENTROPY = ("ce",)
TEACHER_TERMS = ("bag", "soft", "hard")
"""What the teacher adds in stage 2: the names that `SlideDistillation` gives the weighted terms, in its order."""
DISTILLATION = (*CROSS_ENTROPY, *TEACHER_TERMS)
"""The terms of L2, weighted in ``[stage2]``: the cross-entropy, and those that the teacher adds."""


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Attributes
    ----------
    key : str
        In the config, in the names of files and in ``results.json``.
    name : str
        In tables and plots.
    embedding : Embedding, optional
        None for baselines that take numbers of the whole slide instead.
    slide_features : tuple of str
        These numbers, by their names in `ShortcutFeatures`.
    head : {"abmil", "logistic"}
    losses : tuple of str
        Of the head.
    bar : str
        What the progress bar calls its training.
    is_shortcut : bool
    long_name : str
        Where nothing else says that it is a shortcut; as `name` where empty.
    """

    key: str
    name: str
    embedding: Embedding | None
    head: Literal["abmil", "logistic"]
    losses: tuple[str, ...]
    slide_features: tuple[str, ...] = ()
    bar: str = ""
    is_shortcut: bool = False
    long_name: str = ""

    @property
    def is_distilled(self) -> bool:
        """Whether the teacher's words on the training slides take part in training the head."""
        return self.losses != CROSS_ENTROPY

    @property
    def is_of_student(self) -> bool:
        """Whether it reads tiles by f', which stage 1 has trained."""
        return self.embedding is not None and self.embedding.encoder == "student"

    @property
    def full_name(self) -> str:
        """Its name where nothing else says that it is a shortcut."""
        return self.long_name or self.name


_HR = Embedding("teacher", "hr")
_LR = Embedding("teacher", "lr")
_STUDENT = Embedding("student", "lr")
_RANDOM = Embedding("random", "lr")

METHODS = (
    Method("teacher_hr", "teacher on HR", _HR, "abmil", CROSS_ENTROPY, bar="Teacher MIL"),
    Method("lr_scratch", "LR from scratch", _LR, "abmil", CROSS_ENTROPY, bar="LR from scratch"),
    Method("stage1_only", "stage 1 only", _STUDENT, "abmil", CROSS_ENTROPY, bar="Stage 1 only"),
    Method("stage2_only", "stage 2 only", _LR, "abmil", DISTILLATION, bar="Stage 2 only"),
    Method("lrmil", "LRMIL", _STUDENT, "abmil", DISTILLATION, bar="Stage 2: slides"),
    Method(
        "tissue_fraction",
        "tissue alone",
        None,
        "logistic",
        CROSS_ENTROPY,
        slide_features=("tissue_fraction", "tissue_mm2"),
        is_shortcut=True,
        long_name="shortcut: tissue fraction",
    ),
    Method(
        "rgb",
        "colour alone",
        None,
        "logistic",
        CROSS_ENTROPY,
        slide_features=("rgb_mean", "rgb_std"),
        is_shortcut=True,
        long_name="shortcut: mean and std of RGB",
    ),
    Method(
        "random_init",
        "random encoder",
        _RANDOM,
        "abmil",
        CROSS_ENTROPY,
        bar="Random encoder",
        is_shortcut=True,
        long_name="shortcut: random-init encoder",
    ),
)
"""In the order of the tables."""

BY_KEY = {method.key: method for method in METHODS}
TEACHER = BY_KEY["teacher_hr"]
"""The method from whose head the distilled ones learn; it is trained in every run."""
OURS = BY_KEY["lrmil"]
"""The method that is exported and that the others are compared with; it is trained in every run."""
METHOD_KEYS = tuple(method.key for method in METHODS if not method.is_shortcut)
SHORTCUT_KEYS = tuple(method.key for method in METHODS if method.is_shortcut)


def wanted_methods(methods: tuple[str, ...], shortcuts: tuple[str, ...]) -> tuple[Method, ...]:
    """Return the methods of a run in the order that the config names them, `OURS` always among them."""
    keys = dict.fromkeys((*methods, *shortcuts, OURS.key))
    return tuple(BY_KEY[key] for key in keys)


def in_table_order(keys: list[str], *, ours_last: bool = False) -> list[str]:
    """Return keys in the order of the tables, methods proper first; those that the table doesn't know come after these.

    Parameters
    ----------
    keys : list of str
    ours_last : bool
        Put LRMIL at the end of the methods proper, so that it is read against the others.
    """

    def rank(key: str) -> tuple[int, int, int]:
        if key in SHORTCUT_KEYS:
            return 1, SHORTCUT_KEYS.index(key), 0
        place = METHOD_KEYS.index(key) if key in METHOD_KEYS else len(METHOD_KEYS)
        return 0, len(METHOD_KEYS) + 1 if ours_last and key == OURS.key else place, keys.index(key)

    return sorted(keys, key=rank)


def method_name(key: str) -> str:
    """Return a method's name in tables and plots; that of an unknown key is the key in words."""
    return BY_KEY[key].name if key in BY_KEY else key.replace("_", " ")


def full_name(key: str) -> str:
    """Return a method's name where nothing else says that it is a shortcut; an unknown key as it is."""
    return BY_KEY[key].full_name if key in BY_KEY else key


def _known(*keys: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in keys:
            *first, last = map(repr, keys)
            raise ValueError(f"Input should be {', '.join(first)} or {last}")
        return value

    return AfterValidator(check)


MethodKey = Annotated[str, _known(*METHOD_KEYS)]
ShortcutKey = Annotated[str, _known(*SHORTCUT_KEYS)]
