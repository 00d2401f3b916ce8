"""What a run compares: the one table of methods. Config, pipeline, results and report take theirs from here.

A method is an embedding of a slide's tiles, a head on the bag of them, and the losses that train the head. Beside them
stand shortcut baselines, which can't know what the label is about: what they reach is not the method's merit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator

from training.data.tile_index import MID_FACTOR, Reading

Encoding = Literal[
    "teacher",
    "student",
    "student_shuffled",
    "student_enlarged",
    "end_to_end",
    "end_to_end_scratch",
    "random",
]
"""Whose numbers: f, f', f' trained towards the targets of other tiles or of enlarged LR pixels, f' or f as it comes out of
training on the labels with its head, or an untrained f."""


@dataclass(frozen=True)
class Embedding:
    """What a bag's instances are: which encoder reads which tiles, and what is made of what it says.

    Attributes
    ----------
    key : str
        In the config.
    name : str
        In words.
    encoder : Encoding
    pixels : {"hr", "mid", "lr", "enlarged"}
        mid: half the LR tile's µm/px; enlarged: LR pixels enlarged `times` times.
    times : int
        Tiles along the edge of an LR tile, where `pixels` leaves it open.
    derived : {"", "subset", "children_mean", "ridge"}
        What becomes of the embeddings that are stored.
    """

    key: str
    name: str
    encoder: Encoding
    pixels: Literal["hr", "mid", "lr", "enlarged"]
    times: int = 1
    derived: Literal["", "subset", "children_mean", "ridge"] = ""

    @property
    def on_lr_tiles(self) -> bool:
        """Whether an instance is an LR tile, onto which the teacher's attention can be gathered."""
        return self.pixels == "lr" or self.derived == "children_mean"

    @property
    def is_of_student(self) -> bool:
        """Whether stage 1, or a control in its place, has trained the encoder."""
        return self.encoder.startswith("student")

    @property
    def is_end_to_end(self) -> bool:
        """Whether the encoder has learned from the labels, together with the head."""
        return self.encoder.startswith("end_to_end")

    @property
    def has_magnifications(self) -> bool:
        """Whether a head of several magnifications can read it: tiles of the slide itself, at any µm/px, by one encoder."""
        return self.pixels != "enlarged" and not self.derived and not self.is_end_to_end

    def reading(self, ratio: int) -> Reading:
        """Return which tiles its encoder reads; `ratio` is mpp_lr / mpp_hr."""
        factor = {"hr": ratio, "mid": MID_FACTOR, "lr": 1, "enlarged": self.times}[self.pixels]
        return Reading(factor, enlarged=self.pixels == "enlarged")


HR = Embedding("hr", "f on HR", "teacher", "hr")
LR = Embedding("lr", "f on LR", "teacher", "lr")
STUDENT = Embedding("student", "f' on LR", "student", "lr")
RANDOM = Embedding("random", "untrained encoder on LR", "random", "lr")
_CONTROLS = (
    Embedding("lr_enlarged_2", "f on LR enlarged 2 times", "teacher", "enlarged", 2),
    Embedding("lr_enlarged_4", "f on LR enlarged 4 times", "teacher", "enlarged", 4),
    Embedding("hr_subset", "f on a random part of HR", "teacher", "hr", derived="subset"),
    Embedding("hr_children_mean", "mean of the HR children", "teacher", "hr", derived="children_mean"),
    Embedding("ridge", "ridge f(LR) to HR", "teacher", "lr", derived="ridge"),
    Embedding("student_shuffled", "f' of shuffled targets", "student_shuffled", "lr"),
    Embedding("student_enlarged", "f' of enlarged LR", "student_enlarged", "lr"),
    Embedding("mid", "f between LR and HR", "teacher", "mid"),
)
EMBEDDINGS = {one.key: one for one in (HR, LR, STUDENT, *_CONTROLS, RANDOM)}
"""All that a row can name."""
LEAST_MID_RATIO = 4
"""Below it there is no resolution between LR and HR."""

_LEARNED = (
    Embedding("end_to_end", "f' trained on labels", "end_to_end", "lr"),
    Embedding("end_to_end_scratch", "f trained on labels", "end_to_end_scratch", "lr"),
)
LEARNED = {one.key: one for one in _LEARNED}
"""Beside these, what comes with its head."""

CROSS_ENTROPY = ("ce",)
TEACHER_TERMS = ("bag", "soft", "hard")
"""What the teacher adds in stage 2 by LRMIL's own objective: its terms, in its order."""
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
    head : {"mil", "logistic"}
        One on bags, see ``[mil]``, or a regression on numbers of the slide.
    losses : tuple of str
        Of the head.
    bar : str
        What the progress bar calls its training.
    is_shortcut : bool
    long_name : str
        Where nothing else says that it is a shortcut; as `name` where empty.
    options : mapping
        Section of the config -> its values for this row alone: of student, stage1, mil and stage2.
    """

    key: str
    name: str
    embedding: Embedding | None
    head: Literal["mil", "logistic"]
    losses: tuple[str, ...]
    slide_features: tuple[str, ...] = ()
    bar: str = ""
    is_shortcut: bool = False
    long_name: str = ""
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict, hash=False)

    @property
    def may_be_chosen(self) -> bool:
        """Whether a bundle of it can be made: an encoder that isn't a control, tiles of the slide or a part of them, a head."""
        one = self.embedding
        return (
            one is not None
            and one.encoder in ("teacher", "student")
            and one.pixels != "enlarged"
            and one.derived in ("", "subset")
        )

    @property
    def is_distilled(self) -> bool:
        """Whether the teacher's words on the training slides take part in training the head."""
        return self.losses != CROSS_ENTROPY

    @property
    def is_of_student(self) -> bool:
        """Whether it reads tiles by f', which stage 1, or a control in its place, has trained."""
        return self.embedding is not None and self.embedding.is_of_student

    @property
    def is_end_to_end(self) -> bool:
        """Whether its head is trained together with its encoder."""
        return self.embedding is not None and self.embedding.is_end_to_end

    @property
    def is_after_stage1(self) -> bool:
        """Whether its encoder has gone through stage 1."""
        return self.is_of_student or (self.embedding is not None and self.embedding.encoder == "end_to_end")

    @property
    def full_name(self) -> str:
        """Its name where nothing else says that it is a shortcut."""
        return self.long_name or self.name


DECISIVE = (
    Method("teacher_hr", "teacher on HR", HR, "mil", CROSS_ENTROPY, bar="Teacher MIL"),
    Method("lr_scratch", "LR from scratch", LR, "mil", CROSS_ENTROPY, bar="LR from scratch"),
    Method("stage1_only", "stage 1 only", STUDENT, "mil", CROSS_ENTROPY, bar="Stage 1 only"),
    Method("stage2_only", "stage 2 only", LR, "mil", DISTILLATION, bar="Stage 2 only"),
    Method("lrmil", "LRMIL", STUDENT, "mil", DISTILLATION, bar="Stage 2: slides"),
)
"""What would falsify the paper."""
END_TO_END = (
    Method("end_to_end", "end to end", _LEARNED[0], "mil", CROSS_ENTROPY, bar="End to end"),
    Method(
        "end_to_end_scratch",
        "end to end, no stage 1",
        _LEARNED[1],
        "mil",
        CROSS_ENTROPY,
        bar="End to end, no stage 1",
    ),
)
"""Encoder and head trained together on the label."""
SHORTCUTS = (
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
        RANDOM,
        "mil",
        CROSS_ENTROPY,
        bar="Random encoder",
        is_shortcut=True,
        long_name="shortcut: random-init encoder",
    ),
)
CONTROLS = (
    *(Method(one.key, one.name, one, "mil", CROSS_ENTROPY, bar=one.name) for one in _CONTROLS),
    SHORTCUTS[-1],
)
"""What tells why LRMIL works: a head on each of the other embeddings."""


def paper_rows(depth: int) -> tuple[Method, ...]:
    """Return LRMIL as the paper has it where this project's defaults differ, one difference a row.

    Parameters
    ----------
    depth : int
        Blocks of f: its layers are the first two and the last but one, 0, 1 and 10 of 12.
    """
    layers = tuple(sorted({0, min(1, depth - 1), max(0, depth - 2)}))
    attention = {"weighting": "attention", "scope": "fold", "slides": "train"}
    options: dict[str, tuple[str, dict[str, Mapping[str, object]]]] = {
        "paper_attention": ("LRMIL, by attention", {"stage1": attention}),
        "paper_mean": ("LRMIL, mean attention", {"stage2": {"aggregation": "mean"}}),
        "paper_ungated": ("LRMIL, ungated head", {"mil": {"name": "abmil", "gated": False}}),
        "paper_layers": ("LRMIL, early layers", {"stage1": {"layers": layers}}),
        "paper_unshifted": ("LRMIL, unshifted", {"stage1": {"shifted": False}}),
    }
    return tuple(
        Method(key, name, STUDENT, "mil", DISTILLATION, bar=name, options=own)
        for key, (name, own) in options.items()
    )


METHODS = (*DECISIVE, *SHORTCUTS)
"""What a run compares whose config doesn't say, in the order of the tables."""
KNOWN = (*DECISIVE, *END_TO_END, *CONTROLS[:-1], *paper_rows(12), *SHORTCUTS)
"""All that have a name of their own, in the order of the tables."""
SETS = ("decisive", "controls", "paper", "end_to_end", "all")
BY_KEY = {method.key: method for method in KNOWN}
TEACHER = BY_KEY["teacher_hr"]
"""The method from whose head the distilled ones learn; it is trained in every run."""
OURS = BY_KEY["lrmil"]
"""The method that is exported and that the others are compared with; it is trained in every run."""
METHOD_KEYS = tuple(method.key for method in DECISIVE)
SHORTCUT_KEYS = tuple(method.key for method in SHORTCUTS)


def rows_of_set(name: str, *, ratio: int, depth: int | None) -> tuple[Method, ...]:
    """Return the rows of a named set that a ratio allows; `depth`, blocks of f, is needed for paper and all."""
    if name == "end_to_end":
        return END_TO_END
    controls = tuple(
        row
        for row in CONTROLS
        if row.embedding is not None and (row.embedding.pixels != "mid" or ratio >= LEAST_MID_RATIO)
    )
    if name in ("decisive", "controls"):
        return DECISIVE if name == "decisive" else controls
    assert depth is not None
    paper = paper_rows(depth)
    return paper if name == "paper" else (*DECISIVE, *controls, *paper)


def wanted_methods(methods: tuple[str, ...], shortcuts: tuple[str, ...]) -> tuple[Method, ...]:
    """Return the methods of a run in the order that the config names them, `OURS` always among them."""
    keys = dict.fromkeys((*methods, *shortcuts, OURS.key))
    return tuple(BY_KEY[key] for key in keys)


def in_table_order(keys: list[str], *, ours_last: bool = False) -> list[str]:
    """Return keys in the order of the tables, methods proper first; those that no table knows come after these.

    Parameters
    ----------
    keys : list of str
    ours_last : bool
        Put LRMIL at the end of the methods proper, so that it is read against the others.
    """
    known = list(BY_KEY)

    def rank(key: str) -> tuple[int, int, int]:
        if key in SHORTCUT_KEYS:
            return 1, SHORTCUT_KEYS.index(key), 0
        place = known.index(key) if key in BY_KEY else len(known)
        return 0, len(known) + 1 if ours_last and key == OURS.key else place, keys.index(key)

    return sorted(keys, key=rank)


def method_name(key: str, result: Mapping[str, object] | None = None) -> str:
    """Return a method's name in tables and plots; of a key that no table knows, that of its row, or the key in words.

    Parameters
    ----------
    key : str
    result : mapping, optional
        Its row of ``results.json``, which names it.
    """
    if key in BY_KEY:
        return BY_KEY[key].name
    return str((result or {}).get("name") or key.replace("_", " "))


def full_name(key: str, result: Mapping[str, object] | None = None) -> str:
    """Return a method's name where nothing else says that it is a shortcut; else as `method_name`."""
    if key in BY_KEY:
        return BY_KEY[key].full_name
    return str((result or {}).get("name") or key)


def _known(*keys: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in keys:
            *first, last = map(repr, keys)
            raise ValueError(f"Input should be {', '.join(first)} or {last}")
        return value

    return AfterValidator(check)


MethodKey = Annotated[str, _known(*METHOD_KEYS)]
ShortcutKey = Annotated[str, _known(*SHORTCUT_KEYS)]
