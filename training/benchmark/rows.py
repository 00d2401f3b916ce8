"""Which rows a benchmark tries: those of the config, each head on HR and LR and as student, each objective in LRMIL's place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.mil import HEADS
from training.config import RunConfig
from training.config.compare import CompareRow
from training.methods import CONTROLS, DECISIVE, DISTILLATION, END_TO_END, OURS, TEACHER
from training.objectives import AnyBagObjective, AnyTileObjective
from training.section import known_or_nearest, names_of

_OWN = "lrmil"


class Row(NamedTuple):
    """A row that can be tried."""

    key: str
    kind: Literal["method", "objective"]
    entry: dict[str, Any]
    """As ``[[compare]]`` has it."""

    @property
    def names(self) -> tuple[str, ...]:
        """What chooses it on the command line: its key, of an objective also the objective's name."""
        return (self.key, self.key.partition("_")[2]) if self.kind == "objective" else (self.key,)


def rows_of(config: RunConfig) -> list[Row]:
    """Return all rows that a config's benchmark can try, in the order of the table."""
    found: dict[str, Row] = {}
    for entry in config.compare or (CompareRow(set="decisive"),):
        for row in _unfolded(entry, config):
            found.setdefault(row.key, row)
    for row in (*_heads(config.mil.name), *_objectives()):
        found.setdefault(row.key, row)
    fixed = (TEACHER.key, OURS.key)  # trained in every run
    first = [Row(key, "method", {"key": key}) for key in fixed]
    return [*first, *(row for row in found.values() if row.key not in fixed)]


def chosen(rows: Sequence[Row], methods: str | None, objectives: str | None) -> list[Row]:
    """Return the rows that the command line names; teacher and LRMIL always.

    Parameters
    ----------
    rows : sequence of Row
    methods, objectives : str, optional
        Keys with commas between, "all" or "none"; None for all.

    Raises
    ------
    ConfigError
        Naming the nearest of what is unknown.
    """
    wanted: set[str] = {TEACHER.key, OURS.key}
    for kind, text in (("method", methods), ("objective", objectives)):
        of_kind = [row for row in rows if row.kind == kind]
        if text in (None, "all"):
            wanted |= {row.key for row in of_kind}
            continue
        assert text is not None
        for name in (part.strip() for part in text.split(",")):
            if name in ("", "none"):
                continue
            try:
                known_or_nearest(name, [one for row in of_kind for one in row.names], kind)
            except ValueError as error:
                raise ConfigError(f"--{kind}s: {error}") from error
            wanted |= {row.key for row in of_kind if name in row.names}
    return [row for row in rows if row.key in wanted]


def inline(value: object) -> str:
    """Return a value as TOML writes it in one line; keys that are None are left out."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        parts = (f"{json.dumps(str(key))} = {inline(one)}" for key, one in value.items() if one is not None)
        return "{ " + ", ".join(parts) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _unfolded(entry: CompareRow, config: RunConfig) -> Iterable[Row]:
    if entry.set is None:
        assert entry.key is not None
        yield Row(entry.key, "method", entry.model_dump(exclude_unset=True))
        return
    sets = {"decisive": DECISIVE, "controls": CONTROLS, "end_to_end": END_TO_END}
    names = ("decisive", "controls", "paper") if entry.set == "all" else (entry.set,)
    wanted = {row.key for row in config.rows}
    for name in names:
        if name == "paper":  # its rows have options that no key names: tried together
            yield Row("paper", "method", {"set": "paper"})
            continue
        for row in sets[name]:
            if row.key in wanted:  # the ratio may not allow it
                yield Row(row.key, "method", {"key": row.key})


def _heads(own: str) -> Iterable[Row]:
    """Each head but the config's own on HR tiles, on LR tiles, and as LRMIL's student."""
    for name in (one for one in HEADS if one != own):
        for key, entry in (
            (f"hr_{name}", {"embedding": "hr"}),
            (f"lr_{name}", {"embedding": "lr"}),
            (f"student_{name}", {"embedding": "student", "losses": list(DISTILLATION)}),
        ):
            yield Row(key, "method", {"key": key, "head": name, **entry})


def _objectives() -> Iterable[Row]:
    """Each objective in place of LRMIL's: of tiles in stage 1, of bags in stage 2; the other stage stays LRMIL's."""
    student = {"embedding": "student"}
    for name in _others(AnyTileObjective):
        entry = {"losses": list(DISTILLATION), "stage1": {"layers": [], "objectives": [{"name": name}]}}
        named = {"key": f"stage1_{name}", "name": f"LRMIL, stage 1 by {name}"}
        yield Row(named["key"], "objective", {**named, **student, **entry})
    for name in _others(AnyBagObjective):
        entry = {"stage2": {"objectives": [{"name": name}]}}
        named = {"key": f"stage2_{name}", "name": f"LRMIL, stage 2 by {name}"}
        yield Row(named["key"], "objective", {**named, **student, **entry})


def _others(objectives: object) -> list[str]:
    return [name for name in names_of(objectives) if name != _OWN]
