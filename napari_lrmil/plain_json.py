"""JSON from anywhere: a value, or a ValueError."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:  # whatever stands there: callers look at it
    """Return the value that a JSON text describes.

    Raises
    ------
    ValueError
        Where it isn't JSON, isn't text, or is nested too deeply or has numbers too long to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
