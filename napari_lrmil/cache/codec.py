"""Frozen results as plain JSON values and arrays, and back: by their type hints, so no class is named in a file."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Collection, Mapping
from typing import Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]
JSONValue: TypeAlias = "bool | int | float | str | list[JSONValue] | dict[str, JSONValue] | None"

_PLAIN = (str, bool, int, float)


def flatten(value: object, arrays: Arrays, *, name: str = "", leave_out: Collection[str] = ()) -> JSONValue:
    """A value as JSON can hold it; its arrays go into `arrays`, under dotted names.

    Parameters
    ----------
    value : object
        Of dataclasses, NamedTuples, tuples, arrays, str, bool, int, float and None.
    arrays : dict
        Filled here.
    name : str
        Where the value stands.
    leave_out : collection of str
        Fields of a dataclass, at the top only.

    Raises
    ------
    TypeError
        Where something else is among them.
    """
    if isinstance(value, np.ndarray):
        # ascontiguousarray would make a vector of a scalar.
        arrays[name] = value if value.flags.c_contiguous else value.copy(order="C")
        return {"array": name}
    if isinstance(value, np.generic):
        return flatten(value.item(), arrays, name=name)
    parts = _parts_of(value)
    if parts is not None:
        return {
            key: flatten(part, arrays, name=f"{name}.{key}" if name else key)
            for key, part in parts.items()
            if key not in leave_out
        }
    if isinstance(value, tuple | list):
        return [flatten(part, arrays, name=f"{name}.{index}") for index, part in enumerate(value)]
    if value is None or isinstance(value, _PLAIN):
        return value
    raise TypeError(f"{name or 'the value'} is a {type(value).__name__}, which has no place in a result")


def restore(
    hint: object, value: JSONValue, arrays: Mapping[str, NDArray[np.generic]], **filled: object
) -> object:
    """The value of type `hint` that `flatten` was given.

    Parameters
    ----------
    hint : type
    value : JSON value
    arrays : mapping of str to array
    **filled
        Fields that were left out.

    Raises
    ------
    KeyError, TypeError, ValueError
        Where `value` isn't of that type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return restore(hint, value, arrays)
    if origin is np.ndarray or hint is np.ndarray:
        return arrays[str(_dict(value)["array"])]
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{value!r} is no list")
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(restore(kind, part, arrays) for kind, part in zip(kinds, value, strict=True))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{value!r} is none of {arguments}")
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in _PLAIN:
        if type(value) is not hint:
            raise TypeError(f"{value!r} is no {hint.__name__}")
        return value
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or hasattr(hint, "_fields")):
        hints, parts = get_type_hints(hint), _dict(value)
        unknown = set(parts) - set(hints)
        if unknown:
            raise ValueError(f"{hint} has no {sorted(unknown)}")
        made: Callable[..., object] = hint
        return made(**{key: restore(hints[key], part, arrays) for key, part in parts.items()}, **filled)
    raise TypeError(f"results hold nothing of type {hint}")


def _dict(value: JSONValue) -> dict[str, JSONValue]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no JSON object")
    return value


def _parts_of(value: object) -> dict[str, object] | None:
    """Fields of a dataclass or NamedTuple by name; None for anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    names = getattr(value, "_fields", None)
    if isinstance(value, tuple) and names is not None:
        return {name: getattr(value, name) for name in names}
    return None
