"""The base of the config's sections, each of which stands beside the code that it configures; and their errors in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import get_args

from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails

from napari_lrmil.errors import shortened


class Section(BaseModel):
    """A section of the config: no unknown keys, no changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def explained(item: ErrorDetails, root: type[BaseModel]) -> str:
    """Say what is wrong with a value of `root`, and of an unknown key which one is nearest."""
    place = [str(part) for part in item["loc"]]
    if item["type"] != "extra_forbidden":
        return shortened(f"{'.'.join(place) or 'the whole'}: {item['msg'].removeprefix('Value error, ')}")
    model = root
    alternatives: dict[str, type[BaseModel]] = {}
    for part in place[:-1]:
        if part.isdecimal():  # of a list of sections
            continue
        if part in alternatives:  # which of several sections, by its name
            model, alternatives = alternatives[part], {}
            continue
        sections = _sections(model.model_fields[part].annotation)
        model, alternatives = sections[0], _by_name(sections) if len(sections) > 1 else {}
    near = nearest(place[-1], model.model_fields)
    return f"unknown key {shortened('.'.join(place))!r}; did you mean {'.'.join([*place[:-1], near])!r}?"


def _sections(annotation: object) -> list[type[BaseModel]]:
    """Return the sections that an annotation names, however deep: of a list, of alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]


def _by_name(sections: Iterable[type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """Return alternatives by the only name that each takes."""
    return {str(get_args(one.model_fields["name"].annotation)[0]): one for one in sections}


def names_of(alternatives: object) -> list[str]:
    """Return the names that tell the sections of a union apart."""
    return list(_by_name(_sections(alternatives)))


def nearest(wanted: str, known: Iterable[str]) -> str:
    """Return the one of some names that is most like `wanted`."""
    return difflib.get_close_matches(wanted, list(known), n=1, cutoff=0.0)[0]


def known_or_nearest(value: str, known: Iterable[str], what: str) -> str:
    """Return a name that is known; else raise ValueError, naming the nearest."""
    known = list(known)
    if value not in known:
        raise ValueError(f"unknown {what} {shortened(value)!r}; did you mean {nearest(value, known)!r}?")
    return value
