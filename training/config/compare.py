"""``[[compare]]``: the rows of the comparison as the config names them, a set or one of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from napari_lrmil.model.mil import HEADS
from training.methods import (
    BY_KEY,
    CONTROLS,
    CROSS_ENTROPY,
    DECISIVE,
    DISTILLATION,
    EMBEDDINGS,
    END_TO_END,
    LEARNED,
    LEAST_MID_RATIO,
    SETS,
    SHORTCUTS,
    Method,
)
from training.section import Section, known_or_nearest

_EMBEDDINGS = EMBEDDINGS | LEARNED
_RESERVED = ("stage1", "teacher_mil", "ridge_fit", "export", "bundle")
"""Steps and curves of a fold."""
_BUILT_IN = {row.key for row in (*DECISIVE, *END_TO_END, *CONTROLS, *SHORTCUTS)}
"""Rows that a key alone names; those of the paper depend on the encoder and come as a set."""
_KEY = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class CompareRow(Section):
    """What is compared: a named set of rows, or a row of one's own."""

    set: str | None = Field(
        default=None,
        description="decisive: teacher, LR from scratch, either stage alone, LRMIL; controls: a head on each other "
        "embedding; paper: LRMIL with the paper's choices, one a row; all: these three; end_to_end: f' or f trained on the "
        "labels together with the head",
    )
    key: str | None = Field(
        default=None,
        description="of a row of one's own, in results.json and the names of files: a-z, 0-9, _ and -; alone: one of the "
        "program's rows (lr_scratch, lr_enlarged_2, ...)",
    )
    name: str | None = Field(default=None, max_length=80, description="in tables; default: made of the rest")
    embedding: str | None = Field(
        default=None, description="what the bag's instances are: " + ", ".join(_EMBEDDINGS)
    )
    head: str | None = Field(
        default=None,
        description="of the bag: " + ", ".join(HEADS) + "; default that of [mil]; its keys in mil.head",
    )
    losses: tuple[str, ...] = Field(
        default=CROSS_ENTROPY,
        description='terms of L2 that train the head: ["ce"] or more of ' + ", ".join(DISTILLATION),
    )
    student: dict[str, Any] = Field(
        default_factory=dict, description="values of [student] for this row alone"
    )
    stage1: dict[str, Any] = Field(default_factory=dict, description="values of [stage1] for this row alone")
    mil: dict[str, Any] = Field(
        default_factory=dict,
        description="values of [mil] for this row alone; its teacher stays that of [mil]",
    )
    stage2: dict[str, Any] = Field(
        default_factory=dict, description="values of [stage2] for this row alone: weights of the terms, ..."
    )

    end_to_end: dict[str, Any] = Field(
        default_factory=dict, description="values of [end_to_end] for this row alone"
    )

    @field_validator("set")
    @classmethod
    def _known_set(cls, value: str | None) -> str | None:
        return value if value is None else known_or_nearest(value, SETS, "set")

    @field_validator("embedding")
    @classmethod
    def _known_embedding(cls, value: str | None) -> str | None:
        return value if value is None else known_or_nearest(value, _EMBEDDINGS, "embedding")

    @field_validator("head")
    @classmethod
    def _known_head(cls, value: str | None) -> str | None:
        if value is not None:
            known_or_nearest(value, HEADS, "head")
        return value

    @field_validator("losses")
    @classmethod
    def _known_losses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            known_or_nearest(one, DISTILLATION, "loss")
        if not value or len(set(value)) < len(value):
            raise ValueError("name one loss at least, and each once")
        return tuple(term for term in DISTILLATION if term in value)

    @model_validator(mode="after")
    def _whole(self) -> CompareRow:
        if self.set is not None:
            more = self._given - {"set"}
            if more:
                raise ValueError(
                    f"a row is a set or one of its own: beside set = {self.set!r} leave out {min(more)!r}"
                )
            return self
        if self._is_built_in:
            return self
        if self.key is None or self.embedding is None:
            missing = "key" if self.key is None else "embedding"
            raise ValueError(f"a row needs {missing!r}, or names a set ({', '.join(SETS)})")
        if _KEY.fullmatch(self.key) is None:
            raise ValueError(f"key {self.key!r}: take up to 40 of a-z, 0-9, _ and -, a letter or digit first")
        if self.key in _RESERVED or self.key.startswith("test_") or self.key in BY_KEY:
            of_its_own = "; alone, it names the program's own row" if self.key in _BUILT_IN else ""
            raise ValueError(
                f"key {self.key!r} is taken by this program: with other values take another{of_its_own}"
            )
        embedding = _EMBEDDINGS[self.embedding]
        needs_attention = not self._bag_objectives or "lrmil" in self._bag_objectives
        if self.is_distilled and needs_attention and not embedding.on_lr_tiles:
            raise ValueError(
                f"{self.key}: losses {list(self._losses)} need instances that are LR tiles, onto which the teacher's attention "
                f'can be gathered; those of {self.embedding!r} aren\'t: take ["ce"]'
            )
        if self.head is not None and "name" in self.mil:
            raise ValueError(f"{self.key}: head and mil.name say the same: leave out one")
        if embedding.is_end_to_end and self.is_distilled:
            raise ValueError(
                f'{self.key}: {self.embedding!r} learns from the label alone: take losses = ["ce"]'
            )
        if self.end_to_end and not embedding.is_end_to_end:
            raise ValueError(f"{self.key}: end_to_end concerns {' and '.join(LEARNED)} alone")
        if (self.stage1 or self.student) and not embedding.is_of_student:
            section = "stage1" if self.stage1 else "student"
            raise ValueError(
                f"{self.key}: {section} concerns f' alone, and {self.embedding!r} isn't read by f'"
            )
        return self

    @property
    def is_distilled(self) -> bool:
        """Whether more than the label trains its head."""
        return self._losses != CROSS_ENTROPY

    @property
    def _losses(self) -> tuple[str, ...]:
        """Terms of L2; where a row names objectives of stage 2, all that they have."""
        return DISTILLATION if self._bag_objectives and "losses" not in self.model_fields_set else self.losses

    @property
    def _bag_objectives(self) -> tuple[str, ...]:
        return _names(self.stage2)

    @property
    def _given(self) -> frozenset[str]:
        """Keys that say something: not the default, which kept configs write out."""
        return frozenset(
            name
            for name, value in self
            if value != type(self).model_fields[name].get_default(call_default_factory=True)
            and (name, value) != ("head", "abmil")  # in configs that were kept when there was no other
        )

    @property
    def _is_built_in(self) -> bool:
        """Whether a row of the program is named, by its key alone."""
        return self.key in _BUILT_IN and self._given == {"key"}

    def row(self, ratio: int) -> Method:
        """Return the row of one's own, or the program's row that a key alone names.

        Raises
        ------
        ValueError
            Where the ratio doesn't allow it.
        """
        assert self.key is not None
        built_in = BY_KEY[self.key] if self._is_built_in else None
        embedding = built_in.embedding if built_in is not None else _EMBEDDINGS[str(self.embedding)]
        if embedding is not None and embedding.pixels == "mid" and ratio < LEAST_MID_RATIO:
            raise ValueError(
                f"compare row {self.key!r}: embedding 'mid' needs tiles.ratio of {LEAST_MID_RATIO} or more; with {ratio} "
                "there is no resolution between LR and HR"
            )
        if built_in is not None:
            return built_in
        assert embedding is not None
        sections = {
            name: getattr(self, name) for name in ("student", "stage1", "mil", "stage2", "end_to_end")
        }
        if self.head is not None:
            sections["mil"] = {"name": self.head, **sections["mil"]}
        if self.is_distilled:
            absent = {f"l_{term}": 0.0 for term in DISTILLATION if term not in self._losses}
            sections["stage2"] = {**absent, **sections["stage2"]}
        options = {name: values for name, values in sections.items() if values}
        of_head = ("ce", *self._bag_objectives) if self._bag_objectives else self._losses
        terms = ", " + " + ".join(of_head) if self.is_distilled else ""
        if _names(self.stage1):
            terms = f", stage 1 by {' + '.join(_names(self.stage1))}{terms}"
        own = "".join(
            f", {name}.{key} = {value}"
            for name in sections
            for key, value in getattr(self, name).items()
            if key != "objectives"
        )
        head = "" if self.head in (None, "abmil") else f", {self.head}"
        name = self.name or embedding.name + head + terms + own
        return Method(self.key, name, embedding, "mil", self._losses, bar=name, options=options)


def _names(section: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the objectives among a section's values; whether they are right is checked with the section."""
    given = section.get("objectives")
    items = given if isinstance(given, list | tuple) else ()
    return tuple(str(one["name"]) for one in items if isinstance(one, Mapping) and "name" in one)
