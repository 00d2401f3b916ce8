"""Read a config, with sets of values and those of the command line over it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from napari_lrmil.errors import ConfigError, readable, reason_of, refuse_pipe, shortened
from training.config.run_config import RunConfig
from training.section import explained, nearest
from training.stages.heads import put_over

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_MOST_FAULTS = 10
"""That one message lists: a long list may be wrong in each of its items."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file and apply ``--set NAME`` and ``--section.key value`` pairs.

    Parameters
    ----------
    path : Path
    overrides : sequence of str
        ``["--run.seed", "3", ...]``; ``--run.seed=3`` works too. Values are read as TOML where they
        can be, else as text. ``--set heads/clam_sb`` puts the values of that file of training/configs, or of another file
        whose name ends with .toml, over those of the config, one set after the other; pairs come last.

    Raises
    ------
    ConfigError
        Naming the key, and for an unknown one the nearest that exists.
    """
    raw, pairs = _read(path), _pairs(overrides)
    for key, _, text in pairs:
        if key == "set":
            raw = _over(raw, _read(_set_file(text)))
    texts = {}
    for key, value, text in pairs:
        if key == "set":
            continue
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


def set_names() -> list[str]:
    """Return the names of the sets of this project, as ``heads/clam_sb``."""
    return sorted(
        str(path.relative_to(CONFIGS).with_suffix("").as_posix()) for path in CONFIGS.glob("*/*.toml")
    )


def _set_file(name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    known = set_names()
    if name not in known:
        raise ConfigError(
            f"no such set: {shortened(name)}; did you mean {nearest(name, known)}? There are {', '.join(known)}, and any file "
            "of one's own whose name ends with .toml"
        )
    return CONFIGS / f"{name}.toml"


def _over(raw: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a set over those of a config: section by section, key by key."""
    merged = dict(raw)
    for section, values in found.items():
        mine = raw.get(section)
        if not isinstance(values, dict) or not isinstance(mine, dict):
            merged[section] = values
        elif section == "mil":
            merged[section] = put_over(mine, values)
        else:
            merged[section] = mine | values
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        refuse_pipe(path)
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no such config: {path}") from error
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not valid TOML: {reason_of(error)}") from error


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
