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
    for part in place[:-1]:
        if part.isdecimal():  # of a list of sections
            continue
        section = model.model_fields[part].annotation
        sections = [one for one in (section, *get_args(section)) if isinstance(one, type)]
        model = next(one for one in sections if issubclass(one, BaseModel))
    near = nearest(place[-1], model.model_fields)
    return f"unknown key {shortened('.'.join(place))!r}; did you mean {'.'.join([*place[:-1], near])!r}?"


def nearest(wanted: str, known: Iterable[str]) -> str:
    """Return the one of some names that is most like `wanted`."""
    return difflib.get_close_matches(wanted, list(known), n=1, cutoff=0.0)[0]


def known_or_nearest(value: str, known: Iterable[str], what: str) -> str:
    """Return a name that is known; else raise ValueError, naming the nearest."""
    known = list(known)
    if value not in known:
        raise ValueError(f"unknown {what} {shortened(value)!r}; did you mean {nearest(value, known)!r}?")
    return value
