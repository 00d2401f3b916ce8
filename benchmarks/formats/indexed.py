"""Writers of slides that are an index and, beside it, the files that it names: MIRAX and Hamamatsu's VMS."""

from __future__ import annotations

import struct
from pathlib import Path

from benchmarks.formats.writing import LAYOUT, MPP, Layout, Pixels, Plant, exif, jpeg, small, tiles_of

_MIRAX_MOST_LEVELS = 3


def write_mirax(
    folder: Path,
    stem: str,
    pixels: Pixels,
    plant: Plant,
    layout: Layout = LAYOUT,
    *,
    image_height: int | None = None,
) -> Path:
    """Write a MIRAX slide: a small JPEG as `.mrxs`, and beside it an ini of settings, an index and the tiles.

    Each level is half as large as the one before it, whatever the layout says.

    Parameters
    ----------
    folder, stem, pixels, plant, layout
    image_height : int, optional
        What the ini says that each tile measures; by default what it does.
    """
    parts, slide_id = folder / stem, plant("MIRAX SLIDE_ID").ljust(32, "0")[:32]
    parts.mkdir(parents=True)
    n_cols, n_rows = pixels.shape[1] // layout.tile_px, pixels.shape[0] // layout.tile_px
    n_levels = min(_MIRAX_MOST_LEVELS, min(n_cols, n_rows).bit_length())
    general = (
        "SLIDE_NAME",
        "PROJECT_NAME",
        "SLIDE_CREATIONDATETIME",
        "SLIDE_UTC_CREATIONDATETIME",
        "PATIENT",
        "BARCODE",
    )
    version, power = plant("MIRAX SLIDE_VERSION", "01.02"), plant("MIRAX OBJECTIVE_MAGNIFICATION", "20")
    ini = [
        *("[GENERAL]", f"SLIDE_VERSION = {version}", f"SLIDE_ID = {slide_id}", f"IMAGENUMBER_X = {n_cols}"),
        *(
            f"IMAGENUMBER_Y = {n_rows}",
            f"OBJECTIVE_MAGNIFICATION = {power}",
            "CameraImageDivisionsPerSide = 1",
        ),
        *(f"{key} = {plant(f'MIRAX {key}')}" for key in general),
        *(
            "[HIERARCHICAL]",
            f"INDEXFILE = {plant('MIRAX INDEXFILE', 'Index.dat')}",
            "HIER_COUNT = 1",
            "NONHIER_COUNT = 0",
        ),
        *("HIER_0_NAME = Slide zoom level", f"HIER_0_COUNT = {n_levels}"),
    ]
    for level in range(n_levels):
        ini += [
            f"HIER_0_VAL_{level} = ZoomLevel_{level}",
            f"HIER_0_VAL_{level}_SECTION = LEVEL_{level}_SECTION",
        ]
    ini += ["[DATAFILE]", "FILE_COUNT = 1", f"FILE_0 = {plant('MIRAX FILE_0', 'Data0000.dat')}"]
    data, pages = b"\0" * 64, []
    for level, image in enumerate(
        Layout(layout.tile_px, tuple(2**each for each in range(n_levels))).levels(pixels)
    ):
        mpp = MPP * 2**level
        ini += [
            *(f"[LEVEL_{level}_SECTION]", "OVERLAP_X = 0.0", "OVERLAP_Y = 0.0"),
            f"MICROMETER_PER_PIXEL_X = {plant('MIRAX MICROMETER_PER_PIXEL_X', str(mpp))}",
            f"MICROMETER_PER_PIXEL_Y = {mpp}",
            f"IMAGE_FORMAT = {plant('MIRAX IMAGE_FORMAT', 'JPEG')}",
            *(
                "IMAGE_FILL_COLOR_BGR = 16777215",
                f"DIGITIZER_WIDTH = {layout.tile_px}",
                f"DIGITIZER_HEIGHT = {image_height or layout.tile_px}",
            ),
            f"IMAGE_CONCAT_FACTOR = {int(level > 0)}",
        ]
        page = b""
        across = -(-image.shape[1] // layout.tile_px)
        for number, tile in enumerate(tiles_of(image, layout.tile_px)):
            row, col = divmod(number, across)
            stored = jpeg(tile)
            page += struct.pack("<4i", (row * n_cols + col) << level, len(data), len(stored), 0)
            data += stored
        pages.append(struct.pack("<2i", len(page) // 16, 0) + page)
    (parts / "Slidedat.ini").write_text("\r\n".join(ini) + "\r\n", encoding="utf-8-sig")
    (parts / "Data0000.dat").write_bytes(data)
    index = b"01.02" + slide_id.encode() + struct.pack("<2i", 45, 0)
    at = len(index) + 4 * n_levels
    heads, body = b"", b""
    for page in pages:
        heads += struct.pack("<i", at)
        body += struct.pack("<2i", 0, at + 8) + page
        at += 8 + len(page)
    (parts / "Index.dat").write_bytes(index + heads + body)
    path = folder / f"{stem}.mrxs"
    path.write_bytes(jpeg(small(pixels, 96, 64), exif=exif("MIRAX", plant), comment=plant("MIRAX comment")))
    return path


def write_vms(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
    """Write an index in text and, beside it, JPEGs of the slide, its overview and the macro image."""
    del layout  # one image in one file
    height, width = pixels.shape[:2]
    restarts = {"restart_marker_rows": 1, "subsampling": 0}
    images = {
        "ImageFile": jpeg(
            pixels, **restarts, exif=exif("VMS image", plant), comment=plant("VMS image comment")
        ),
        "MapFile": jpeg(small(pixels, width // 4, height // 4), **restarts, exif=exif("VMS map", plant)),
        "MacroImage": jpeg(small(pixels, 96, 64), exif=exif("VMS macro", plant)),
    }
    lines = ["[Virtual Microscope Specimen]", "NoLayers=1", "NoJpegColumns=1", "NoJpegRows=1"]
    for key, stored in images.items():
        file = folder / f"{stem}-{key}.jpg"
        file.write_bytes(stored)
        lines.append(f"{key}={file.name}")
    lines += [
        f"PhysicalWidth={plant('VMS PhysicalWidth', str(int(width * MPP * 1000)))}",
        f"PhysicalHeight={int(height * MPP * 1000)}",
        "LayerSpacing=0",
        f"SourceLens={plant('VMS SourceLens', '20')}",
        *(
            f"{key}={plant(f'VMS {key}')}"
            for key in ("Reference", "AuthCode", "Patient", "Barcode", "ScanTime")
        ),
    ]
    path = folder / f"{stem}.vms"
    path.write_text("\n".join(lines), encoding="latin-1")
    return path
