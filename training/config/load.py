"""Read a config, with values of the command line over it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from napari_lrmil.errors import ConfigError, readable, reason_of, refuse_pipe, shortened
from training.config.run_config import RunConfig
from training.section import explained

_MOST_FAULTS = 10
"""That one message lists: a long list may be wrong in each of its items."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file and apply ``--section.key value`` pairs.

    Parameters
    ----------
    path : Path
    overrides : sequence of str
        ``["--run.seed", "3", ...]``; ``--run.seed=3`` works too. Values are read as TOML where they
        can be, else as text.

    Raises
    ------
    ConfigError
        Naming the key, and for an unknown one the nearest that exists.
    """
    try:
        refuse_pipe(path)
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no such config: {path}") from error
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not valid TOML: {reason_of(error)}") from error
    texts = {}
    for key, value, text in _pairs(overrides):
        texts[key] = text
        *sections, name = key.split(".")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--{key}: {section!r} is not a section")
        place[name] = value
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        numbers = [key for key in texts if any(_is_text(item, key) for item in error.errors())]
        if numbers:  # a text that looks like a number: --export.name 2026
            quoted = [word for key in numbers for word in (f"--{key}", json.dumps(texts[key]))]
            return load_config(path, [*overrides, *quoted])
        faults = error.errors()
        more = f"; and {len(faults) - _MOST_FAULTS:,} more" if len(faults) > _MOST_FAULTS else ""
        told = "; ".join(explained(item, RunConfig) for item in faults[:_MOST_FAULTS])
        raise ConfigError(f"{path.name}: {told}{more}") from error


def _is_text(item: ErrorDetails, key: str) -> bool:
    return item["type"] == "string_type" and ".".join(map(str, item["loc"])) == key


def _pairs(overrides: Sequence[str]) -> list[tuple[str, object, str]]:
    words = list(overrides)
    pairs = []
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"expected --section.key, got {word!r}")
        key, has_value, text = word[2:].partition("=")
        if not has_value:
            if not words:
                raise ConfigError(f"--{key} needs a value")
            text = words.pop(0)
        if readable(text) != text:  # config.json couldn't keep it
            raise ConfigError(f"--{key}: {shortened(text)!r} has characters that no file takes")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = text
        pairs.append((key, value, text))
    return pairs
