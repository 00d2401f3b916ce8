"""How the directories of a TIFF are stored, of either byte order and offset size (TIFF 6.0, BigTIFF)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
"""Bytes that a value of each type takes."""

SUBIFDS = 330
"""The tag that names the directories below one."""

MAX_ENTRIES = 2**12
"""No directory has more; what says that it has is rubbish."""

HEAD_BYTES = 16
"""In which the first directory's offset is, of BigTIFF; of others, in the first half."""


@dataclass(frozen=True)
class DirectoryFormat:
    """The pieces of a file's directories: the number of entries, the entries, the offset of the next one.

    Attributes
    ----------
    order : str
        As `struct` has it.
    count, entry, offset : struct.Struct
        An entry is tag, type, number of values, and the values or where they are.
    first : int
        Offset of the first directory.
    """

    order: str
    count: struct.Struct
    entry: struct.Struct
    offset: struct.Struct
    first: int


def directory_format(head: bytes) -> DirectoryFormat | None:
    """Return how the directories are stored of a file that begins with `head`; None where it is no TIFF.

    Parameters
    ----------
    head : bytes
        `HEAD_BYTES` of it, or all where it has fewer.
    """
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return None
    (magic,) = struct.unpack_from(f"{order}H", head, 2)
    big = magic == 43
    if magic not in (42, 43) or (big and len(head) < HEAD_BYTES):
        return None
    offset = struct.Struct(order + ("Q" if big else "I"))
    return DirectoryFormat(
        order=order,
        count=struct.Struct(order + ("Q" if big else "H")),
        entry=struct.Struct(order + ("HHQ8s" if big else "HHI4s")),
        offset=offset,
        first=int(offset.unpack_from(head, 8 if big else 4)[0]),
    )
