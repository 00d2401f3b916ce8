"""Several seeds in the config: ``0..9`` or a list."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_RANGE = re.compile(r"(\d+)\s*\.\.\s*(\d+)")


def _read(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if not isinstance(value, str):
        return value
    seeds: list[int] = []
    for part in value.split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is not None:
            first, last = map(int, found.groups())
            if last < first or last - first >= 1000:
                raise ValueError(f"{part.strip()!r} is no range of seeds, as 0..9 is")
            seeds += range(first, last + 1)
        elif part.strip().isdecimal():
            seeds.append(int(part))
        else:
            raise ValueError(f"{part.strip()!r} is no seed: give whole numbers, as in 0..9 or 0,3,5")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed is given twice in {value!r}")
    return tuple(seeds)


Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_read), Field(min_length=1)]
"""A tuple of whole numbers from 0, also as text: ``0..9``, ``0,3,5``."""
