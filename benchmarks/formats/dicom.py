"""Writer of a DICOM series, a file a level and one for the label."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import imagecodecs

from benchmarks.formats.writing import JPEG, LAYOUT, MPP, Layout, Pixels, Plant, small, tiles_of

_VL_WHOLE_SLIDE, _JPEG_BASELINE = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.1.2.4.50"
_LONG = frozenset({b"OB", b"SQ", b"UT", b"UN"})
_PATIENT = {
    (0x0008, 0x0050): ("SH", "AccessionNumber"), (0x0008, 0x0080): ("LO", "InstitutionName"),
    (0x0008, 0x0081): ("ST", "InstitutionAddress"), (0x0008, 0x0090): ("PN", "ReferringPhysicianName"),
    (0x0008, 0x1010): ("SH", "StationName"), (0x0008, 0x1030): ("LO", "StudyDescription"),
    (0x0008, 0x103E): ("LO", "SeriesDescription"), (0x0008, 0x1070): ("PN", "OperatorsName"),
    (0x0008, 0x1090): ("LO", "ManufacturerModelName"), (0x0010, 0x0010): ("PN", "PatientName"),
    (0x0010, 0x0020): ("LO", "PatientID"), (0x0010, 0x1000): ("LO", "OtherPatientIDs"),
    (0x0010, 0x1040): ("LO", "PatientAddress"), (0x0010, 0x4000): ("LT", "PatientComments"),
    (0x0018, 0x1000): ("LO", "DeviceSerialNumber"), (0x0020, 0x0010): ("SH", "StudyID"),
    (0x0020, 0x4000): ("LT", "ImageComments"), (0x0040, 0x0512): ("LO", "ContainerIdentifier"),
}  # fmt: skip


def _element(tag: tuple[int, int], vr: str, value: bytes) -> bytes:
    pad = b"\0" if vr in ("UI", "OB") else b" "
    value += pad * (len(value) % 2)
    head = struct.pack("<HH", *tag) + vr.encode()
    return (
        head
        + (struct.pack("<HI", 0, len(value)) if vr.encode() in _LONG else struct.pack("<H", len(value)))
        + value
    )


def _sequence(tag: tuple[int, int], *items: bytes) -> bytes:
    return _element(
        tag, "SQ", b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    )


def _file(
    image: Pixels, number: int, kind: str, series: str, mpp: float, plant: Plant, tile_px: int
) -> bytes:
    rows, cols = image.shape[:2]
    tiles = [
        bytes(imagecodecs.jpeg8_encode(tile, level=JPEG, subsampling="422"))
        for tile in tiles_of(image, tile_px)
    ]
    frames = [tile + b"\0" * (len(tile) % 2) for tile in tiles]
    starts = [0, *itertools.accumulate(len(frame) + 8 for frame in frames[:-1])]
    short, long = struct.Struct("<H").pack, struct.Struct("<I").pack
    spacing = plant("DICOM PixelSpacing", f"{mpp / 1000:.8g}")
    measures = _element((0x0018, 0x0050), "DS", b"0.004") + _element(
        (0x0028, 0x0030), "DS", f"{spacing}\\{spacing}".encode()
    )
    elements: dict[tuple[int, int], bytes] = {
        (0x0008, 0x0008): _element((0x0008, 0x0008), "CS", plant("DICOM ImageType", kind).encode()),
        (0x0008, 0x0016): _element((0x0008, 0x0016), "UI", _VL_WHOLE_SLIDE.encode()),
        (0x0008, 0x0018): _element((0x0008, 0x0018), "UI", f"{series}.{number + 1}".encode()),
        (0x0008, 0x0020): _element((0x0008, 0x0020), "DA", b"19531217"),
        (0x0008, 0x0060): _element((0x0008, 0x0060), "CS", b"SM"),
        (0x0010, 0x0030): _element((0x0010, 0x0030), "DA", b"19531217"),
        (0x0020, 0x000D): _element((0x0020, 0x000D), "UI", b"1.2.826.0.1.3680043.8.498.1"),
        (0x0020, 0x000E): _element((0x0020, 0x000E), "UI", series.encode()),
        (0x0020, 0x0052): _element((0x0020, 0x0052), "UI", f"{series}.99".encode()),
        (0x0020, 0x9311): _element((0x0020, 0x9311), "CS", plant("DICOM DimensionOrganizationType", "TILED_FULL").encode()),
        (0x0028, 0x0002): _element((0x0028, 0x0002), "US", short(3)),
        (0x0028, 0x0004): _element((0x0028, 0x0004), "CS", plant("DICOM PhotometricInterpretation", "YBR_FULL_422").encode()),
        (0x0028, 0x0006): _element((0x0028, 0x0006), "US", short(0)),
        (0x0028, 0x0008): _element((0x0028, 0x0008), "IS", plant("DICOM NumberOfFrames", str(len(tiles))).encode()),
        (0x0028, 0x0010): _element((0x0028, 0x0010), "US", short(tile_px)),
        (0x0028, 0x0011): _element((0x0028, 0x0011), "US", short(tile_px)),
        (0x0028, 0x0100): _element((0x0028, 0x0100), "US", short(8)),
        (0x0028, 0x0101): _element((0x0028, 0x0101), "US", short(8)),
        (0x0028, 0x0102): _element((0x0028, 0x0102), "US", short(7)),
        (0x0028, 0x0103): _element((0x0028, 0x0103), "US", short(0)),
        (0x0048, 0x0006): _element((0x0048, 0x0006), "UL", long(cols)),
        (0x0048, 0x0007): _element((0x0048, 0x0007), "UL", long(rows)),
        (0x0048, 0x0303): _element((0x0048, 0x0303), "UL", long(1)),
        (0x5200, 0x9229): _sequence((0x5200, 0x9229), _sequence((0x0028, 0x9110), measures)),
    }  # fmt: skip
    for tag, (vr, name) in _PATIENT.items():
        elements[tag] = _element(tag, vr, plant(f"DICOM {name}").encode())
    elements[(0x0009, 0x0010)] = _element((0x0009, 0x0010), "LO", plant("DICOM private creator").encode())
    body = b"".join(elements[tag] for tag in sorted(elements))
    pixel_data = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + b"".join(
        struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
        for item in (struct.pack(f"<{len(starts)}I", *starts), *frames)
    )
    meta = (
        _element((0x0002, 0x0001), "OB", b"\0\1")
        + _element((0x0002, 0x0002), "UI", _VL_WHOLE_SLIDE.encode())
        + _element((0x0002, 0x0003), "UI", f"{series}.{number + 1}".encode())
        + _element((0x0002, 0x0010), "UI", _JPEG_BASELINE.encode())
        + _element((0x0002, 0x0012), "UI", b"1.2.826.0.1.3680043.8.498.2")
        + _element((0x0002, 0x0016), "AE", plant("DICOM source title").encode()[:16])
    )
    head = b"\0" * 128 + b"DICM" + _element((0x0002, 0x0000), "UL", struct.pack("<I", len(meta))) + meta
    return head + body + pixel_data + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def write_dicom(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
    """Write a folder of one DICOM file a level, and the label, with patient, people and places; a date in the series' UID."""
    path = folder / stem
    path.mkdir(parents=True)
    series = plant("DICOM SeriesInstanceUID", "1.2.826.0.1.3680043.8.498.19531217")
    images = {
        str(number): (
            image,
            "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED" if number else "ORIGINAL\\PRIMARY\\VOLUME\\NONE",
        )
        for number, image in enumerate(layout.levels(pixels))
    }
    images["label"] = (small(pixels, layout.tile_px, layout.tile_px), "ORIGINAL\\PRIMARY\\LABEL\\NONE")
    for number, (name, (image, kind)) in enumerate(images.items()):
        mpp = MPP * pixels.shape[1] / image.shape[1]
        (path / f"{name}.dcm").write_bytes(_file(image, number, kind, series, mpp, plant, layout.tile_px))
    return path
