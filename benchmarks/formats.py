"""One picture as a slide of every format that can be made here, with a word of one's own in each field of its metadata.

`FORMATS` maps a name to its writer. Each writer is given a folder, a stem, pixels, and `plant`: what it is to write into a
field, by the field's name; fields that mean something to readers come with the value that is right, and what is returned
in its place is written. Files are small and hold a pyramid where the format has one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from xml.sax.saxutils import escape, quoteattr

import imagecodecs
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from training.cohort.writer import area_pyramid

Pixels = NDArray[np.uint8]


class Plant(Protocol):
    """What is written into a field."""

    def __call__(self, field: str, value: str = "") -> str:
        """Return the text for a field; `value` is what readers want to see there, where they want anything."""
        ...


Writer = Callable[[Path, str, Pixels, Plant], Path]

MPP = 0.5
TILE_PX = 256
DOWNSAMPLES = (1, 4)
JPEG = 90

ASCII, BYTES = 2, 1
_TEXT_TAGS = {
    "DocumentName": 269, "Make": 271, "Model": 272, "PageName": 285, "DateTime": 306, "Artist": 315,
    "HostComputer": 316, "ImageID": 32781, "Copyright": 33432, "UniqueCameraModel": 50708,
}  # fmt: skip
_BYTE_TAGS = {"XMP": 700, "IPTC": 33723, "Photoshop": 34377}


def stained(side_px: int, seed: int) -> Pixels:
    """Return a picture (side, side, 3) of a pink and purple field on white glass; no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 90, (max(2, side_px // 12), max(2, side_px // 12), 3), np.uint8)
    texture = np.asarray(Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:side_px, :side_px] / side_px - 0.5
    inside = (x**2 + y**2 < 0.4**2)[..., None]
    return np.where(inside, np.array([130, 60, 130], np.uint8) + texture, np.uint8(244)).astype(np.uint8)


# ---- TIFF


def _text_tags(
    kind: str, plant: Plant, *, but: tuple[str, ...] = ()
) -> list[tuple[int, int, int, Any, bool]]:
    texts = [
        (code, ASCII, 0, plant(f"{kind} {name}"), True)
        for name, code in _TEXT_TAGS.items()
        if name not in but
    ]
    blobs = [
        (code, BYTES, 0, _xmp(plant(f"{kind} {name}")).encode(), True) for name, code in _BYTE_TAGS.items()
    ]
    return texts + blobs


def _xmp(text: str) -> str:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" dc:creator="{text}"/></rdf:RDF></x:xmpmeta>'
    )


def _write_tiff(
    path: Path,
    pixels: Pixels,
    *,
    descriptions: Callable[[int, int, int], str | bytes],
    software: str,
    tags: list[tuple[int, int, int, Any, bool]],
    subifds: bool = False,
    lossless: bool = False,
    jpeg_rgb: bool = False,
    resolution: bool = True,
) -> Path:
    options: dict[str, Any] = {"tile": (TILE_PX, TILE_PX), "metadata": None, "photometric": "rgb"}
    if lossless:
        options["compression"] = "deflate"
    else:
        options.update(compression="jpeg", compressionargs={"level": JPEG})
        if not jpeg_rgb:
            options["compressionargs"]["outcolorspace"] = "YCBCR"
    with tifffile.TiffWriter(path) as writer:
        for level, image in enumerate(area_pyramid(pixels, DOWNSAMPLES)):
            extra: dict[str, Any] = {}
            if resolution:
                per_cm = 1e4 / (MPP * DOWNSAMPLES[level])
                extra.update(resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")
            if level == 0:
                extra.update(extratags=tags, subifds=len(DOWNSAMPLES) - 1 if subifds else None)
            else:
                extra["subfiletype"] = 1
            text = descriptions(level, image.shape[1], image.shape[0])
            writer.write(image, description=text or None, software=software, **extra, **options)
    return path


def write_tiff(folder: Path, stem: str, pixels: Pixels, plant: Plant, *, lossless: bool = False) -> Path:
    """Write a plain tiled pyramid."""
    return _write_tiff(
        folder / f"{stem}.tiff",
        pixels,
        descriptions=lambda level, *_: plant(f"TIFF ImageDescription {level}"),
        software=plant("TIFF Software"),
        tags=_text_tags("TIFF", plant),
        lossless=lossless,
    )


def write_lossless_tiff(folder: Path, stem: str, pixels: Pixels, plant: Plant) -> Path:
    """Write a plain tiled pyramid whose pixels are those given, bit by bit."""
    return write_tiff(folder, stem, pixels, plant, lossless=True)


def write_aperio(folder: Path, stem: str, pixels: Pixels, plant: Plant) -> Path:
    """Write what Aperio's scanners do: ``key = value|...`` in the description."""
    keys = (
        "Filename",
        "User",
        "ImageID",
        "Title",
        "Date",
        "ScanScope ID",
        "Patient ID",
        "Patient Name",
        "Barcode",
    )

    def description(level: int, width: int, height: int) -> str:
        planted = "|".join(f"{key} = {plant(f'Aperio {key}')}" for key in keys) if level == 0 else ""
        return (
            f"Aperio Image Library v11.2.1 \r\n{width}x{height} [0,0 {width}x{height}] ({TILE_PX}x{TILE_PX}) "
            f"JPEG/RGB Q={JPEG}|AppMag = {plant('Aperio AppMag', '20')}|MPP = {plant('Aperio MPP', str(MPP))}|{planted}"
        )

    return _write_tiff(
        folder / f"{stem}.svs",
        pixels,
        descriptions=description,
        software=plant("Aperio Software"),
        tags=_text_tags("Aperio", plant),
        jpeg_rgb=True,
        resolution=False,
    )


def write_ome_tiff(folder: Path, stem: str, pixels: Pixels, plant: Plant) -> Path:
    """Write an OME-TIFF with people, places, a microscope and annotations in its XML."""

    def p(field: str, value: str = "") -> str:
        return quoteattr(plant(f"OME {field}", value))

    def t(field: str) -> str:
        return escape(plant(f"OME {field}"))

    height, width = pixels.shape[:2]
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'Creator={p("Creator")} UUID="urn:uuid:00000000-0000-4000-8000-000019531217">'
        f'<!-- {t("comment")} --><Project ID="Project:0" Name={p("Project Name")}><Description>{t("Project Description")}'
        f'</Description></Project><Dataset ID="Dataset:0" Name={p("Dataset Name")}/>'
        f'<Experimenter ID="Experimenter:0" FirstName={p("FirstName")} LastName={p("LastName")} Email={p("Email")} '
        f"UserName={p('UserName')} Institution={p('Institution')}/>"
        f'<Instrument ID="Instrument:0"><Microscope Manufacturer={p("Manufacturer")} SerialNumber={p("SerialNumber")}/>'
        f'<Objective ID="Objective:0" NominalMagnification={p("NominalMagnification", "20")} Model={p("Objective Model")}/>'
        "</Instrument>"
        f'<Image ID="Image:0" Name={p("Image Name")}><AcquisitionDate>1953-12-17T10:11:12</AcquisitionDate>'
        f'<Description>{t("Image Description")}</Description><InstrumentRef ID="Instrument:0"/>'
        f'<Pixels ID="Pixels:0" DimensionOrder={p("DimensionOrder", "XYCZT")} Type={p("Type", "uint8")} '
        f'SizeX={p("SizeX", str(width))} SizeY={p("SizeY", str(height))} SizeC={p("SizeC", "3")} SizeZ="1" SizeT="1" '
        f'Interleaved="true" PhysicalSizeX={p("PhysicalSizeX", str(MPP))} PhysicalSizeXUnit={p("PhysicalSizeXUnit", "µm")} '
        f'PhysicalSizeY={p("PhysicalSizeY", str(MPP))} PhysicalSizeYUnit="µm">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="3" Name={p("Channel Name")}/>'
        f'<TiffData IFD={p("IFD", "0")} PlaneCount="1"/></Pixels></Image><StructuredAnnotations>'
        f'<CommentAnnotation ID="Annotation:0" Namespace={p("Namespace")}><Description>{t("Annotation Description")}'
        f"</Description><Value>{t('CommentAnnotation')}</Value></CommentAnnotation>"
        f'<MapAnnotation ID="Annotation:1"><Value><M K={p("Map Key")}>{t("Map Value")}</M></Value></MapAnnotation>'
        f'<XMLAnnotation ID="Annotation:2"><Value><Patient Name={p("XML attribute")}>{t("XML text")}</Patient></Value>'
        "</XMLAnnotation></StructuredAnnotations></OME>"
    )
    return _write_tiff(
        folder / f"{stem}.ome.tif",
        pixels,
        descriptions=lambda level, *_: xml.encode() if level == 0 else b"",
        software=plant("OME Software"),
        tags=_text_tags("OME", plant),
        subifds=True,
    )


def write_philips(folder: Path, stem: str, pixels: Pixels, plant: Plant) -> Path:
    """Write what Philips's scanners do: an XML of DICOM-like attributes in the description."""
    height, width = pixels.shape[:2]

    def attribute(name: str, value: str, kind: str = "IString") -> str:
        return f'<Attribute Name="{name}" Group="0x301D" Element="0x1000" PMSVR="{kind}">{value}</Attribute>'

    def spacing(downsample: int) -> str:
        mm = plant("Philips spacing", str(MPP * downsample / 1000))
        return f"&quot;{mm}&quot; &quot;{mm}&quot;"

    names = (
        "DICOM_PATIENT_NAME", "DICOM_PATIENT_ID", "DICOM_ACCESSION_NUMBER", "DICOM_DEVICE_SERIAL_NUMBER",
        "DICOM_OPERATORS_NAME", "DICOM_INSTITUTION_NAME", "PIM_DP_UFS_BARCODE", "UFS_IMAGE_PATIENT", "DICOM_MANUFACTURER",
        "DICOM_ACQUISITION_DATETIME",
    )  # fmt: skip
    planted = "".join(attribute(name, escape(plant(f"Philips {name}"))) for name in names)
    levels = "".join(
        '<DataObject ObjectType="PixelDataRepresentation">'
        + attribute("DICOM_PIXEL_SPACING", spacing(d), "IDoubleArray")
        + attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", str(number), "IUInt16")
        + attribute(
            "PIIM_PIXEL_DATA_REPRESENTATION_COLUMNS",
            plant("Philips columns", str(-(-width // d // TILE_PX) * TILE_PX)),
            "IUInt32",
        )
        + attribute(
            "PIIM_PIXEL_DATA_REPRESENTATION_ROWS", str(-(-height // d // TILE_PX) * TILE_PX), "IUInt32"
        )
        + "</DataObject>"
        for number, d in enumerate(DOWNSAMPLES)
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + planted
        + '<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array>'
        '<DataObject ObjectType="DPScannedImage">'
        + attribute("PIM_DP_IMAGE_TYPE", plant("Philips image type", "WSI"))
        + attribute("DICOM_PIXEL_SPACING", spacing(1), "IDoubleArray")
        + attribute("PIM_DP_IMAGE_COMMENT", escape(plant("Philips image comment")))
        + '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01" '
        f'PMSVR="IDataObjectArray"><Array>{levels}</Array></Attribute></DataObject></Array></Attribute></DataObject>'
    )
    return _write_tiff(
        folder / f"{stem}.tiff",
        pixels,
        descriptions=lambda level, *_: xml if level == 0 else "",
        software=plant("Philips Software", "Philips DP v1.0"),
        tags=_text_tags("Philips", plant, but=("Make", "Model")),
        resolution=False,
    )


def write_hamamatsu(folder: Path, stem: str, pixels: Pixels, plant: Plant) -> Path:
    """Write what Hamamatsu's scanners do: levels of one JPEG each, private tags, a property map."""
    path = folder / f"{stem}.ndpi"
    with tifffile.TiffWriter(path) as writer:
        for level, image in enumerate(area_pyramid(pixels, DOWNSAMPLES)):
            per_cm = 1e4 / (MPP * DOWNSAMPLES[level])
            properties = "".join(
                f"{key}={plant(f'Hamamatsu {key}')}\r\n"
                for key in ("NDP.S/N", "Product", "Reference", "Patient", "User", "Barcode", "Date")
            )
            tags = [
                (65420, 3, 1, 1, True),
                (65421, 11, 1, 20.0 / DOWNSAMPLES[level], True),
                (65422, 9, 1, 0, True),
                (65423, 9, 1, 0, True),
                (65424, 9, 1, 0, True),
                (65427, ASCII, 0, plant("Hamamatsu reference"), True),
                (65449, ASCII, 0, properties, True),
                *_text_tags("Hamamatsu", plant, but=("Make", "Model")),
                (271, ASCII, 0, "Hamamatsu", True),
                (272, ASCII, 0, "NanoZoomer", True),
            ]
            writer.write(
                image, rowsperstrip=image.shape[0], compression="jpeg", compressionargs={"level": JPEG, "outcolorspace": "YCBCR"},
                photometric="rgb", resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", metadata=None,
                software=plant("Hamamatsu Software"), extratags=tags,
            )  # fmt: skip
    return path


# ---- folders of chunks and tiles


def write_ome_zarr(folder: Path, stem: str, pixels: Pixels, plant: Plant) -> Path:
    """Write an OME-Zarr 0.4, lossless, with planted attributes of group and arrays, and OME-XML as bioformats2raw's."""
    path = folder / f"{stem}.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=2)
    datasets = []
    for level, image in enumerate(area_pyramid(pixels, DOWNSAMPLES)):
        array = root.create_array(
            str(level), data=np.ascontiguousarray(image.transpose(2, 0, 1)), chunks=(3, TILE_PX, TILE_PX)
        )
        array.attrs["note"] = plant(f"Zarr array attribute {level}")
        scale = [1.0, MPP * DOWNSAMPLES[level], MPP * DOWNSAMPLES[level]]
        datasets.append(
            {
                "path": plant("Zarr dataset path", str(level)),
                "coordinateTransformations": [{"type": "scale", "scale": scale}],
            }
        )
    axes = [{"name": plant("Zarr axis name", "c"), "type": plant("Zarr axis type", "channel")}] + [
        {"name": each, "type": "space", "unit": plant("Zarr axis unit", "micrometer")} for each in "yx"
    ]
    root.attrs["multiscales"] = [
        {
            "version": plant("Zarr version", "0.4"), "axes": axes, "datasets": datasets, "name": plant("Zarr multiscales name"),
            "metadata": {"patient": plant("Zarr multiscales metadata")},
        }
    ]  # fmt: skip
    root.attrs["omero"] = {
        "name": plant("Zarr omero name"), "channels": [{"label": plant("Zarr channel"), "color": "FF0000"}] * 3,
    }  # fmt: skip
    root.attrs["patient"] = {"name": plant("Zarr patient"), plant("Zarr key"): 1}
    (path / "OME").mkdir()
    (path / "OME" / "METADATA.ome.xml").write_text(f"<OME><Image Name='{plant('Zarr OME-XML')}'/></OME>")
    return path


def write_deepzoom(folder: Path, stem: str, pixels: Pixels, plant: Plant) -> Path:
    """Write a DeepZoom image with comments, an element and an attribute more, and EXIF in its tiles."""
    path, tile_px = folder / f"{stem}.dzi", 254
    height, width = pixels.shape[:2]
    path.write_text(
        f'<?xml version="1.0"?><!-- {plant("DeepZoom comment")} --><Image TileSize="{plant("DeepZoom TileSize", str(tile_px))}" '
        f'Overlap="{plant("DeepZoom Overlap", "1")}" Format="{plant("DeepZoom Format", "jpg")}" '
        f'Patient="{plant("DeepZoom attribute")}" xmlns="http://schemas.microsoft.com/deepzoom/2008">'
        f'<Size Width="{plant("DeepZoom Width", str(width))}" Height="{height}"/><Note>{plant("DeepZoom element")}</Note></Image>'
    )
    exif = _exif("DeepZoom tile", plant)
    for number in range(math.ceil(math.log2(max(width, height))), -1, -1):
        level = path.with_name(f"{stem}_files") / str(number)
        level.mkdir(parents=True)
        for row in range(-(-pixels.shape[0] // tile_px)):
            for col in range(-(-pixels.shape[1] // tile_px)):
                top, left = max(0, row * tile_px - 1), max(0, col * tile_px - 1)
                tile = pixels[top : (row + 1) * tile_px + 1, left : (col + 1) * tile_px + 1]
                Image.fromarray(tile).save(level / f"{col}_{row}.jpg", quality=JPEG, exif=exif)
        half = (-(-pixels.shape[1] // 2), -(-pixels.shape[0] // 2))
        pixels = np.asarray(Image.fromarray(pixels).resize(half, Image.Resampling.BOX))
    return path


# ---- plain images


def _exif(kind: str, plant: Plant) -> Image.Exif:
    exif = Image.Exif()
    for name, code in {"ImageDescription": 270, **_TEXT_TAGS}.items():
        exif[code] = plant(f"{kind} EXIF {name}")
    exif.get_ifd(0x8769)[37510] = b"ASCII\0\0\0" + plant(f"{kind} EXIF UserComment").encode()
    return exif


def write_png(folder: Path, stem: str, pixels: Pixels, plant: Plant) -> Path:
    """Write a PNG with text chunks of all three kinds, a time and EXIF."""
    path, info = folder / f"{stem}.png", PngImagePlugin.PngInfo()
    info.add_text("Author", plant("PNG tEXt"))
    info.add_text("Description", plant("PNG zTXt"), zip=True)
    info.add_itxt("Title", plant("PNG iTXt"), zip=True)
    info.add_itxt("XML:com.adobe.xmp", _xmp(plant("PNG XMP")))
    info.add(b"tIME", struct.pack(">HBBBBB", 1953, 12, 17, 10, 11, 12))
    Image.fromarray(pixels).save(path, pnginfo=info, exif=_exif("PNG", plant))
    return path


def write_jpeg(folder: Path, stem: str, pixels: Pixels, plant: Plant) -> Path:
    """Write a JPEG with a comment and EXIF."""
    path = folder / f"{stem}.jpg"
    Image.fromarray(pixels).save(path, quality=95, exif=_exif("JPEG", plant), comment=plant("JPEG comment"))
    return path


# ---- DICOM


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


def _dicom_level(image: Pixels, number: int, series: str, mpp: float, plant: Plant) -> bytes:
    rows, cols = image.shape[:2]
    tiles = []
    for top in range(0, rows, TILE_PX):
        for left in range(0, cols, TILE_PX):
            tile = np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
            part = image[top : top + TILE_PX, left : left + TILE_PX]
            tile[: part.shape[0], : part.shape[1]] = part
            tiles.append(bytes(imagecodecs.jpeg8_encode(tile, level=JPEG, subsampling="422")))
    frames = b"".join(
        struct.pack("<HHI", 0xFFFE, 0xE000, len(tile) + len(tile) % 2) + tile + b"\0" * (len(tile) % 2)
        for tile in tiles
    )
    kind = "ORIGINAL\\PRIMARY\\VOLUME\\NONE" if number == 0 else "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED"
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
        (0x0028, 0x0010): _element((0x0028, 0x0010), "US", short(TILE_PX)),
        (0x0028, 0x0011): _element((0x0028, 0x0011), "US", short(TILE_PX)),
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
    pixel_data = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0
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
    return head + body + pixel_data + frames + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def write_dicom(folder: Path, stem: str, pixels: Pixels, plant: Plant) -> Path:
    """Write a folder of one DICOM file a level, with patient, people and places; a date in the series' UID."""
    path = folder / stem
    path.mkdir(parents=True)
    series = plant("DICOM SeriesInstanceUID", "1.2.826.0.1.3680043.8.498.19531217")
    for number, image in enumerate(area_pyramid(pixels, DOWNSAMPLES)):
        data = _dicom_level(image, number, series, MPP * DOWNSAMPLES[number], plant)
        (path / f"{number}.dcm").write_bytes(data)
    return path


# ---- MIRAX


_MIRAX_MOST_LEVELS = 3


def write_mirax(folder: Path, stem: str, pixels: Pixels, plant: Plant) -> Path:
    """Write a MIRAX slide: an empty `.mrxs`, and beside it an ini of settings, an index and the tiles."""
    parts, slide_id = folder / stem, plant("MIRAX SLIDE_ID").ljust(32, "0")[:32]
    parts.mkdir(parents=True)
    n_cols, n_rows = pixels.shape[1] // TILE_PX, pixels.shape[0] // TILE_PX
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
    for level, image in enumerate(area_pyramid(pixels, [2**each for each in range(n_levels)])):
        mpp, side = MPP * 2**level, f"{TILE_PX}"
        ini += [
            *(f"[LEVEL_{level}_SECTION]", "OVERLAP_X = 0.0", "OVERLAP_Y = 0.0"),
            f"MICROMETER_PER_PIXEL_X = {plant('MIRAX MICROMETER_PER_PIXEL_X', str(mpp))}",
            f"MICROMETER_PER_PIXEL_Y = {mpp}",
            f"IMAGE_FORMAT = {plant('MIRAX IMAGE_FORMAT', 'JPEG')}",
            *("IMAGE_FILL_COLOR_BGR = 16777215", f"DIGITIZER_WIDTH = {side}", f"DIGITIZER_HEIGHT = {side}"),
            f"IMAGE_CONCAT_FACTOR = {int(level > 0)}",
        ]
        page = b""
        for row in range(0, image.shape[0] // TILE_PX):
            for col in range(0, image.shape[1] // TILE_PX):
                tile = image[row * TILE_PX : (row + 1) * TILE_PX, col * TILE_PX : (col + 1) * TILE_PX]
                jpeg = bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(tile), level=JPEG))
                page += struct.pack("<4i", (row * n_cols + col) << level, len(data), len(jpeg), 0)
                data += jpeg
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
    path.write_bytes(b"")
    return path


FORMATS: dict[str, Writer] = {
    "tiff": write_tiff,
    "lossless tiff": write_lossless_tiff,
    "aperio": write_aperio,
    "ome-tiff": write_ome_tiff,
    "philips": write_philips,
    "hamamatsu": write_hamamatsu,
    "ome-zarr": write_ome_zarr,
    "deepzoom": write_deepzoom,
    "png": write_png,
    "jpeg": write_jpeg,
    "dicom": write_dicom,
    "mirax": write_mirax,
}
"""Name -> writer."""

WITHOUT_MPP = frozenset({"deepzoom", "png", "jpeg"})
"""Formats that can't say what a pixel measures."""
