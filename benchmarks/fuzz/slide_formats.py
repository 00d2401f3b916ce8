"""A small whole slide in each format that the program reads, made here: what the attack on slides breaks."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

SIZE_XY = (768, 512)
MPP = 0.5
_TILE_PX = 128
_CODECS = ("jpeg", "adobe_deflate", "lzw", "jpeg2000", "webp", "zstd", "jpegxl", "packbits", "lerc", "png")


def write_all(folder: Path) -> dict[str, Path]:
    """Write every format into a folder of its own.

    Returns
    -------
    dict of str to Path
        What is opened, by the name of the format.
    """
    writers: dict[str, Callable[[Path], Path]] = {
        **{f"tiff {codec}": _tiff_writer(f"{codec}.tif", compression=codec) for codec in _CODECS},
        "tiff predictor": _tiff_writer("predictor.tif", compression="adobe_deflate", predictor=True),
        "bigtiff": _tiff_writer("big.tif", compression="jpeg", bigtiff=True),
        "tiff big-endian": _tiff_writer("mm.tif", compression="jpeg", byteorder=">"),
        "tiff planar": _tiff_writer("planar.tif", compression="adobe_deflate", planar=True),
        "tiff strips": _tiff_writer("strips.tif", compression="adobe_deflate", tile=None, rowsperstrip=64),
        "ome-tiff": write_ome_tiff,
        "aperio": write_aperio,
        "philips": write_philips,
        "trestle": write_trestle,
        "leica": write_leica,
        "ventana": write_ventana,
        "ndpi": write_ndpi,
        "vms": write_vms,
        "mirax": write_mirax,
        "dicom": write_dicom,
        "ome-zarr 0.4": lambda folder: write_ome_zarr(folder, 2),
        "ome-zarr 0.5": lambda folder: write_ome_zarr(folder, 3),
        "deepzoom": write_deepzoom,
        "png": lambda folder: _saved(picture(600, 400), folder / "region.png"),
        "jpeg": lambda folder: _saved(picture(600, 400), folder / "region.jpg"),
    }
    made = {}
    for name, write in writers.items():
        place = folder / name.replace(" ", "-")
        place.mkdir(parents=True)
        made[name] = write(place)
    return made


def picture(width: int, height: int) -> Pixels:
    """Glass with a round piece of stained tissue, smooth enough that levels look alike."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) / (width * 0.42)) ** 2 + ((y - height / 2) / (height * 0.42)) ** 2 < 1
    rng = np.random.default_rng(0)
    coarse = rng.integers(-30, 30, (height // 16 + 1, width // 16 + 1))
    noise = np.kron(coarse, np.ones((16, 16), np.int64))[:height, :width]
    pixels = np.full((height, width, 3), (243, 241, 243), np.int64)
    pixels[inside] = (190, 110, 170)
    pixels += (noise * inside)[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def levels_of(pixels: Pixels, n: int = 3, step: int = 2) -> list[Pixels]:
    """A picture and its reductions."""
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    sizes = [(width // step**level, height // step**level) for level in range(n)]
    return [np.asarray(image.resize(size, Image.Resampling.BOX)) for size in sizes]


def _saved(pixels: Pixels, path: Path, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def _jpeg(pixels: Pixels, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85, **options)
    return buffer.getvalue()


# ---- TIFF and its vendors


def _tiff_writer(name: str, **options: Any) -> Callable[[Path], Path]:
    return lambda folder: write_tiff(folder / name, **options)


def write_tiff(
    path: Path,
    *,
    levels: Sequence[Pixels] | None = None,
    descriptions: Sequence[str] = (),
    bigtiff: bool = False,
    byteorder: Literal["<", ">"] = "<",
    planar: bool = False,
    first: Callable[[tifffile.TiffWriter], None] | None = None,
    extra: Sequence[dict[str, Any]] = (),
    **options: Any,
) -> Path:
    """Write a pyramid of one directory a level.

    Parameters
    ----------
    path : Path
    levels : sequence of array, optional
    descriptions : sequence of str
        ImageDescription of the first levels.
    bigtiff, byteorder, planar
    first : callable, optional
        Writes what stands before the levels.
    extra : sequence of dict
        Options of the first levels.
    **options
        Of all levels, as `tifffile.TiffWriter.write` takes them.
    """
    options = {"tile": (_TILE_PX, _TILE_PX), "photometric": "rgb", "resolutionunit": "CENTIMETER", **options}
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as writer:
        if first is not None:
            first(writer)
        for level, pixels in enumerate(levels or levels_of(picture(*SIZE_XY))):
            own = dict(extra[level]) if level < len(extra) else {}
            if level < len(descriptions):
                own["description"] = descriptions[level]
            writer.write(
                np.ascontiguousarray(pixels.transpose(2, 0, 1)) if planar else pixels,
                planarconfig="separate" if planar else "contig",
                subfiletype=1 if level else 0,
                metadata=None,
                **({"resolution": (1e4 / MPP, 1e4 / MPP)} | options | own),
            )
    return path


def write_ome_tiff(folder: Path) -> Path:
    """A pyramid in SubIFDs, described by OME-XML."""
    path = folder / "pyramid.ome.tif"
    finest, *others = levels_of(picture(*SIZE_XY))
    options: dict[str, Any] = {"tile": (_TILE_PX, _TILE_PX), "photometric": "rgb", "compression": "jpeg"}
    size = {f"PhysicalSize{axis}": MPP for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(finest, subifds=len(others), metadata={"axes": "YXS", **size}, **options)
        for pixels in others:
            writer.write(pixels, subfiletype=1, **options)
    return path


def write_aperio(folder: Path) -> Path:
    """The slide, its thumbnail, levels, label and macro, as Aperio orders them."""
    levels = levels_of(picture(*SIZE_XY))
    path = folder / "aperio.svs"
    said = (
        "Aperio Image Library v11.2.1 \r\n{w}x{h} [0,0 {w}x{h}] ({t}x{t}) JPEG/RGB Q=85|AppMag = 20|MPP = 0.5"
    )
    with tifffile.TiffWriter(path) as writer:
        for level, pixels in enumerate(levels):
            height, width = pixels.shape[:2]
            text = said.format(w=width, h=height, t=_TILE_PX)
            writer.write(
                pixels,
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="jpeg",
                description=text,
                metadata=None,
            )
            if level == 0:
                writer.write(
                    levels[2],
                    photometric="rgb",
                    compression="jpeg",
                    rowsperstrip=16,
                    description=text,
                    metadata=None,
                )
        for name, kind in (("label", 1), ("macro", 9)):
            writer.write(
                picture(96, 80),
                photometric="rgb",
                compression="lzw",
                rowsperstrip=16,
                subfiletype=kind,
                description=f"Aperio Image Library v11.2.1 \r\n{name} 96x80",
                metadata=None,
            )
    return path


def write_philips(folder: Path) -> Path:
    """Levels padded to whole tiles, described by XML."""
    levels = levels_of(picture(1024, 512))
    spacing = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" '
        f'Element="0x0030" PMSVR="IDoubleArray">&quot;{MPP * 2**level / 1000:.6f}&quot; '
        f"&quot;{MPP * 2**level / 1000:.6f}&quot;</Attribute></DataObject>"
        for level in range(3)
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport"><Attribute '
        'Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array><DataObject '
        'ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301D" Element="0x1004" '
        'PMSVR="IString">WSI</Attribute><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" '
        'PMSVR="IDoubleArray">&quot;0.000500&quot; &quot;0.000500&quot;</Attribute><Attribute '
        'Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01" '
        f'PMSVR="IDataObjectArray"><Array>{spacing}</Array></Attribute></DataObject></Array></Attribute></DataObject>'
    )
    return write_tiff(
        folder / "philips.tiff",
        levels=levels,
        descriptions=(xml, "level=1 mag=10 quality=85", "level=2 mag=5 quality=85"),
        software="Philips DP v1.0",
        compression="jpeg",
        resolution=None,
        resolutionunit=None,
    )


def write_trestle(folder: Path) -> Path:
    """Described by a line in the first directory."""
    said = "Background Color=E6E6E6;White Balance=CDCCCD;Objective Power=20;JPEG Quality=85;OverlapsXY=0 0 0 0 0 0"
    return write_tiff(
        folder / "trestle.tif",
        descriptions=(said,),
        software="MedScan",
        compression="jpeg",
        resolution=(MPP, MPP),
        resolutionunit="NONE",
    )


def write_leica(folder: Path) -> Path:
    """A macro image and a pyramid that lies somewhere in it, described by XML."""
    levels = levels_of(picture(*SIZE_XY), step=4)
    nm = 10**6 * MPP / 1000
    size = [int(edge * nm) for edge in SIZE_XY]
    dimensions = "".join(
        f'<dimension sizeX="{pixels.shape[1]}" sizeY="{pixels.shape[0]}" r="{level}" ifd="{level + 1}" />'
        for level, pixels in enumerate(levels)
    )
    both = '<creationDate>2009-12-29T09:59:15Z</creationDate><device model="Leica SCN400;Leica SCN" version="1.0"/>'
    settings = (
        "<scanSettings><objectiveSettings><objective>{}</objective></objectiveSettings><illuminationSettings>"
        "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings>"
    )
    xml = (
        '<?xml version="1.0" encoding="utf-8"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" '
        'uuid="urn:uuid:00000000-0000-0000-0000-000000000001"><collection name="x" '
        f'uuid="urn:uuid:00000000-0000-0000-0000-000000000002" sizeX="{2 * size[0]}" sizeY="{2 * size[1]}"><barcode/>'
        f'<image name="macro" uuid="urn:uuid:00000000-0000-0000-0000-000000000003">{both}<pixels sizeX="256" '
        'sizeY="256"><dimension sizeX="256" sizeY="256" r="0" ifd="0"/></pixels><view '
        f'sizeX="{2 * size[0]}" sizeY="{2 * size[1]}" offsetX="0" offsetY="0" spacingZ="0"/>{settings.format(0.6)}</image>'
        f'<image name="main" uuid="urn:uuid:00000000-0000-0000-0000-000000000004">{both}<pixels sizeX="{SIZE_XY[0]}" '
        f'sizeY="{SIZE_XY[1]}">{dimensions}</pixels><view sizeX="{size[0]}" sizeY="{size[1]}" offsetX="100000" '
        f'offsetY="50000" spacingZ="0"/>{settings.format(20)}</image></collection></scn>'
    )

    def macro(writer: tifffile.TiffWriter) -> None:
        writer.write(
            picture(256, 256),
            tile=(_TILE_PX, _TILE_PX),
            photometric="rgb",
            compression="jpeg",
            description=xml,
            metadata=None,
        )

    return write_tiff(folder / "leica.scn", levels=levels, first=macro, bigtiff=True, compression="jpeg")


def write_ventana(folder: Path) -> Path:
    """A BIF: label, and levels of tiles whose places and overlaps XML gives."""
    columns, rows = SIZE_XY[0] // _TILE_PX, SIZE_XY[1] // _TILE_PX
    scan = '<iScan Magnification="20" ScanRes="0.5" UnitNumber="1" BuildVersion="3.3"{}>'
    label_scan = scan.format(' Z-layers="1"')
    label = f'<?xml version="1.0"?><Metadata>{label_scan}</iScan></Metadata>'
    joint = '<TileJointInfo FlagJoined="1" Confidence="100" Direction="{}" Tile1="{}" Tile2="{}" OverlapX="0" OverlapY="0"/>'

    def number(row: int, col: int) -> int:
        """Tiles are counted from the bottom, in lines to and fro."""
        up = rows - 1 - row
        return up * columns + (col if up % 2 == 0 else columns - 1 - col) + 1

    joints = [
        joint.format("RIGHT", number(row, col), number(row, col + 1))
        for row in range(rows)
        for col in range(columns - 1)
    ]
    joints += [
        joint.format("UP", number(row + 1, col), number(row, col))
        for row in range(rows - 1)
        for col in range(columns)
    ]
    xml = (
        f'<?xml version="1.0"?><EncodeInfo Ver="2"><SlideInfo>{scan.format("")}<AOI0 Left="0" Top="0" Right="1" '
        'Bottom="1"/></iScan></SlideInfo><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" '
        f'Width="{_TILE_PX}" Height="{_TILE_PX}" NumRows="{rows}" NumCols="{columns}" Pos-X="0" Pos-Y="0">'
        f'{"".join(joints)}</ImageInfo></SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )

    def xmp(text: str) -> list[tuple[int, int, int, bytes, bool]]:
        return [(700, 1, len(text), text.encode(), True)]

    def first(writer: tifffile.TiffWriter) -> None:
        writer.write(
            picture(96, 80), photometric="rgb", description="Label_Image", metadata=None, extratags=xmp(label)
        )

    levels = levels_of(picture(*SIZE_XY))
    return write_tiff(
        folder / "ventana.bif",
        levels=levels,
        first=first,
        bigtiff=True,
        compression="jpeg",
        resolution=None,
        resolutionunit=None,
        descriptions=[f"level={level} mag={20 / 2**level:g} quality=90" for level in range(len(levels))],
        extra=[{"extratags": xmp(xml)}],
    )


def write_ndpi(folder: Path) -> Path:
    """Each level is one JPEG in one strip, with Hamamatsu's own tags; then the macro image."""
    path = folder / "hamamatsu.ndpi"
    levels = levels_of(picture(*SIZE_XY))
    with tifffile.TiffWriter(path) as writer:
        for pixels, lens in zip([*levels, picture(128, 64)], (20.0, 10.0, 5.0, -1.0), strict=True):
            writer.write(
                pixels,
                photometric="rgb",
                compression="jpeg",
                rowsperstrip=pixels.shape[0],
                resolution=(1e4 / MPP * lens / 20, 1e4 / MPP * lens / 20) if lens > 0 else None,
                resolutionunit="CENTIMETER" if lens > 0 else None,
                metadata=None,
                extratags=[
                    (65420, 4, 1, 1, True),
                    (65421, 11, 1, lens, True),
                    (65422, 9, 1, 0, True),
                    (65423, 9, 1, 0, True),
                    (65424, 9, 1, 0, True),
                ],
            )
    return path


# ---- an index beside its files


def write_vms(folder: Path) -> Path:
    """An index in text, and JPEGs with restart markers."""
    restarts = {"restart_marker_rows": 1, "subsampling": 0}
    (folder / "image.jpg").write_bytes(_jpeg(picture(*SIZE_XY), **restarts))
    (folder / "map.jpg").write_bytes(_jpeg(levels_of(picture(*SIZE_XY))[2], **restarts))
    (folder / "macro.jpg").write_bytes(_jpeg(picture(96, 64)))
    path = folder / "slide.vms"
    path.write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\nImageFile=image.jpg\nMapFile=map.jpg\n"
        f"MacroImage=macro.jpg\nPhysicalWidth={int(SIZE_XY[0] * MPP * 1000)}\n"
        f"PhysicalHeight={int(SIZE_XY[1] * MPP * 1000)}\nLayerSpacing=0\nSourceLens=20",
        encoding="latin-1",
    )
    return path


def write_mirax(folder: Path, *, image_height: int = _TILE_PX) -> Path:
    """An ini file that describes an index of pages, that say where each JPEG lies in a data file.

    Parameters
    ----------
    folder : Path
    image_height : int
        What the ini file says that each image measures.
    """
    levels = levels_of(picture(*SIZE_XY))
    columns, rows = SIZE_XY[0] // _TILE_PX, SIZE_XY[1] // _TILE_PX
    parts = folder / "slide"
    parts.mkdir()
    data = bytearray(b"\0" * 64)
    tables = []
    for level, pixels in enumerate(levels):
        entries = []
        for y in range(0, pixels.shape[0], _TILE_PX):
            for x in range(0, pixels.shape[1], _TILE_PX):
                piece = np.full((_TILE_PX, _TILE_PX, 3), 255, np.uint8)
                there = pixels[y : y + _TILE_PX, x : x + _TILE_PX]
                piece[: there.shape[0], : there.shape[1]] = there
                stored = _jpeg(piece)
                place = (y // _TILE_PX * columns + x // _TILE_PX) * 2**level
                entries.append(struct.pack("<4i", place, len(data), len(stored), 0))
                data += stored
        tables.append(entries)
    (parts / "Data0000.dat").write_bytes(data)
    slide_id = "0" * 29 + "C01"
    root = 5 + len(slide_id) + 8
    lists = root + 4 * len(tables)
    at = lists
    records, pages = b"", b""
    for entries in tables:
        records += struct.pack("<i", at)
        pages += struct.pack("<4i", 0, at + 8, len(entries), 0) + b"".join(entries)
        at += 16 + 16 * len(entries)
    head = b"01.02" + slide_id.encode() + struct.pack("<2i", root, 0)
    (parts / "Index.dat").write_bytes(head + records + pages)
    lines = [
        "[GENERAL]",
        "SLIDE_VERSION = 01.02",
        f"SLIDE_ID = {slide_id}",
        f"IMAGENUMBER_X = {columns}",
        f"IMAGENUMBER_Y = {rows}",
        "OBJECTIVE_MAGNIFICATION = 20",
        "CameraImageDivisionsPerSide = 1",
        "[HIERARCHICAL]",
        "INDEXFILE = Index.dat",
        "HIER_COUNT = 1",
        "NONHIER_COUNT = 0",
        "HIER_0_NAME = Slide zoom level",
        f"HIER_0_COUNT = {len(levels)}",
    ]
    for level in range(len(levels)):
        lines += [
            f"HIER_0_VAL_{level} = ZoomLevel_{level}",
            f"HIER_0_VAL_{level}_SECTION = LAYER_0_LEVEL_{level}_SECTION",
        ]
    lines += ["[DATAFILE]", "FILE_COUNT = 1", "FILE_0 = Data0000.dat"]
    for level in range(len(levels)):
        lines += [
            f"[LAYER_0_LEVEL_{level}_SECTION]",
            "OVERLAP_X = 0.0",
            "OVERLAP_Y = 0.0",
            f"MICROMETER_PER_PIXEL_X = {MPP * 2**level}",
            f"MICROMETER_PER_PIXEL_Y = {MPP * 2**level}",
            "IMAGE_FORMAT = JPEG",
            "IMAGE_FILL_COLOR_BGR = 16777215",
            f"DIGITIZER_WIDTH = {_TILE_PX}",
            f"DIGITIZER_HEIGHT = {image_height}",
            f"IMAGE_CONCAT_FACTOR = {min(level, 1)}",
        ]
    (parts / "Slidedat.ini").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    path = folder / "slide.mrxs"
    path.write_bytes(_jpeg(picture(96, 64)))
    return path


def write_deepzoom(folder: Path) -> Path:
    """Levels down to a pixel, as JPEG tiles that overlap by one pixel."""
    path, (width, height), overlap = folder / "atlas.dzi", SIZE_XY, 1
    image = Image.fromarray(picture(*SIZE_XY))
    top = (max(SIZE_XY) - 1).bit_length()
    for level in range(top, -1, -1):
        scale = 2 ** (top - level)
        size = (-(-width // scale), -(-height // scale))
        place = folder / "atlas_files" / str(level)
        place.mkdir(parents=True)
        scaled = image.resize(size, Image.Resampling.BOX)
        for row in range(-(-size[1] // _TILE_PX)):
            for col in range(-(-size[0] // _TILE_PX)):
                box = (
                    max(0, col * _TILE_PX - overlap),
                    max(0, row * _TILE_PX - overlap),
                    min(size[0], (col + 1) * _TILE_PX + overlap),
                    min(size[1], (row + 1) * _TILE_PX + overlap),
                )
                scaled.crop(box).save(place / f"{col}_{row}.jpg", quality=85)
    path.write_text(
        f'<?xml version="1.0"?><Image TileSize="{_TILE_PX}" Overlap="{overlap}" Format="jpg" '
        f'xmlns="http://schemas.microsoft.com/deepzoom/2008"><Size Width="{width}" Height="{height}"/></Image>',
        encoding="utf-8",
    )
    return path


# ---- DICOM


def write_dicom(folder: Path) -> Path:
    """A folder of one series: two levels of JPEG frames and a label, explicit little endian."""
    place = folder / "series"
    place.mkdir()
    levels = levels_of(picture(*SIZE_XY), n=2)
    for number, pixels in enumerate(levels):
        kind = [
            "ORIGINAL" if number == 0 else "DERIVED",
            "PRIMARY",
            "VOLUME",
            "NONE" if number == 0 else "RESAMPLED",
        ]
        (place / f"level{number}.dcm").write_bytes(_dicom(pixels, kind, number, mpp=MPP * 2**number))
    label = picture(_TILE_PX, _TILE_PX)
    (place / "label.dcm").write_bytes(_dicom(label, ["ORIGINAL", "PRIMARY", "LABEL", "NONE"], 9, mpp=MPP))
    return place


def _dicom(pixels: Pixels, image_type: Sequence[str], number: int, *, mpp: float) -> bytes:
    height, width = pixels.shape[:2]
    frames = []
    for y in range(0, height, _TILE_PX):
        for x in range(0, width, _TILE_PX):
            frame = np.full((_TILE_PX, _TILE_PX, 3), 255, np.uint8)
            there = pixels[y : y + _TILE_PX, x : x + _TILE_PX]
            frame[: there.shape[0], : there.shape[1]] = there
            frames.append(_even(_jpeg(frame)))
    uid = "1.2.826.0.1.3680043.8.498"
    sop_class, own = "1.2.840.10008.5.1.4.1.1.77.1.6", f"{uid}.1.{number}"
    jpeg = "1.2.840.10008.1.2.4.50"
    meta = (
        _element(2, 1, "OB", b"\0\1")
        + _element(2, 2, "UI", sop_class)
        + _element(2, 3, "UI", own)
        + _element(2, 0x10, "UI", jpeg)
        + _element(2, 0x12, "UI", f"{uid}.9")
    )
    measures = _element(0x28, 0x30, "DS", f"{mpp / 1000:.6f}\\{mpp / 1000:.6f}")
    shared = _sequence(0x28, 0x9110, measures)
    offsets = [0]
    for stored in frames[:-1]:
        offsets.append(offsets[-1] + 8 + len(stored))
    body = (
        _element(8, 8, "CS", "\\".join(image_type))
        + _element(8, 0x16, "UI", sop_class)
        + _element(8, 0x18, "UI", own)
        + _element(8, 0x60, "CS", "SM")
        + _element(0x20, 0xD, "UI", f"{uid}.2")
        + _element(0x20, 0xE, "UI", f"{uid}.3")
        + _element(0x20, 0x9311, "CS", "TILED_FULL")
        + _element(0x28, 2, "US", struct.pack("<H", 3))
        + _element(0x28, 4, "CS", "YBR_FULL_422")
        + _element(0x28, 6, "US", struct.pack("<H", 0))
        + _element(0x28, 8, "IS", str(len(frames)))
        + _element(0x28, 0x10, "US", struct.pack("<H", _TILE_PX))
        + _element(0x28, 0x11, "US", struct.pack("<H", _TILE_PX))
        + _element(0x28, 0x100, "US", struct.pack("<H", 8))
        + _element(0x28, 0x101, "US", struct.pack("<H", 8))
        + _element(0x28, 0x102, "US", struct.pack("<H", 7))
        + _element(0x28, 0x103, "US", struct.pack("<H", 0))
        + _element(0x48, 6, "UL", struct.pack("<I", width))
        + _element(0x48, 7, "UL", struct.pack("<I", height))
        + _sequence(0x5200, 0x9229, shared)
        + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF)
        + _item(struct.pack(f"<{len(offsets)}I", *offsets))
        + b"".join(_item(stored) for stored in frames)
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    return b"\0" * 128 + b"DICM" + _element(2, 0, "UL", struct.pack("<I", len(meta))) + meta + body


def _element(group: int, number: int, kind: str, value: str | bytes) -> bytes:
    data = value.encode("ascii") if isinstance(value, str) else value
    if len(data) % 2:
        data += b"\0" if kind == "UI" else b" "
    if kind in ("OB", "SQ"):
        return struct.pack("<HH2sHI", group, number, kind.encode(), 0, len(data)) + data
    return struct.pack("<HH2sH", group, number, kind.encode(), len(data)) + data


def _sequence(group: int, number: int, content: bytes) -> bytes:
    return _element(group, number, "SQ", _item(content))


def _item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


# ---- OME-Zarr


def write_ome_zarr(folder: Path, version: int) -> Path:
    """An image of three levels; zarr format 2 is OME-Zarr 0.4, format 3 is 0.5."""
    path = folder / "image.ome.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=version)
    datasets = []
    for level, pixels in enumerate(levels_of(picture(*SIZE_XY))):
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        array = group.create_array(
            str(level), shape=planes.shape, chunks=(3, _TILE_PX, _TILE_PX), dtype="uint8"
        )
        array[:] = planes
        scale = [1.0, MPP * 2**level, MPP * 2**level]
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    image = {"name": "x", "datasets": datasets, "axes": axes}
    if version == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [image | {"version": "0.4"}]
    return path
