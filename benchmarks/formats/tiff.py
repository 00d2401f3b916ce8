"""Writers of TIFF: plain ones, OME-TIFF, and what scanners of six makes write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import tifffile

from benchmarks.formats.writing import JPEG, LAYOUT, MPP, TEXT_TAGS, Layout, Pixels, Plant, small, xmp

ASCII, BYTES = 2, 1
_BYTE_TAGS = {"XMP": 700, "IPTC": 33723, "Photoshop": 34377}
_Tag = tuple[int, int, int, Any, bool]


def _text_tags(kind: str, plant: Plant, *, but: Collection[str] = ()) -> list[_Tag]:
    texts = [
        (code, ASCII, 0, plant(f"{kind} {name}"), True) for name, code in TEXT_TAGS.items() if name not in but
    ]
    blobs = [
        (code, BYTES, 0, xmp(plant(f"{kind} {name}")).encode(), True)
        for name, code in _BYTE_TAGS.items()
        if name not in but
    ]
    return texts + blobs


def _write_pyramid(
    path: Path,
    pixels: Pixels,
    layout: Layout,
    *,
    description: Callable[[int, int, int], str | bytes],
    software: str,
    tags: Sequence[_Tag],
    subifds: bool = False,
    compression: str = "jpeg",
    jpeg_rgb: bool = False,
    resolution: Literal["in a cm", "of a pixel", "none"] = "in a cm",
    planar: bool = False,
    bigtiff: bool = False,
    byteorder: Literal["<", ">"] = "<",
    before: Callable[[tifffile.TiffWriter], None] = lambda writer: None,
    after_first: Callable[[tifffile.TiffWriter, str | bytes], None] = lambda writer, text: None,
    **options: Any,
) -> Path:
    """Write one directory a level.

    Parameters
    ----------
    path, pixels, layout
    description : callable
        Level, width and height -> ImageDescription; empty for none.
    software : str
    tags : sequence
        More of the first level.
    subifds : bool
        The other levels lie within the first one.
    compression, jpeg_rgb, resolution, planar, bigtiff, byteorder
        The resolution stands as pixels in a cm, as µm of a pixel, or not at all.
    before, after_first : callable
        Write other images before all levels, and after the first, whose description they get.
    **options
        Of each level, as `tifffile.TiffWriter.write` takes them.
    """
    options = {"tile": (layout.tile_px, layout.tile_px), **options}
    if compression == "jpeg":
        options["compressionargs"] = {"level": JPEG} | ({} if jpeg_rgb else {"outcolorspace": "YCBCR"})
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as writer:
        before(writer)
        for level, image in enumerate(layout.levels(pixels)):
            extra: dict[str, Any] = {"subfiletype": 1}
            if level == 0:
                extra = {"extratags": tags, "subifds": len(layout.downsamples) - 1 if subifds else None}
            if resolution == "in a cm":
                per_cm = 1e4 / (MPP * layout.downsamples[level])
                extra |= {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            elif resolution == "of a pixel":
                extra |= {"resolution": (MPP, MPP), "resolutionunit": "NONE"}
            text = description(level, image.shape[1], image.shape[0])
            writer.write(
                np.ascontiguousarray(image.transpose(2, 0, 1)) if planar else image,
                planarconfig="separate" if planar else "contig",
                photometric="rgb",
                compression=compression,
                description=text or None,
                software=software,
                metadata=None,
                **extra,
                **options,
            )
            if level == 0:
                after_first(writer, text)
    return path


def write_tiff(
    folder: Path,
    stem: str,
    pixels: Pixels,
    plant: Plant,
    layout: Layout = LAYOUT,
    *,
    compression: str = "jpeg",
    **options: Any,
) -> Path:
    """Write a plain pyramid, tiled if nothing else is said; other options as `_write_pyramid` takes them."""
    return _write_pyramid(
        folder / f"{stem}.tiff",
        pixels,
        layout,
        description=lambda level, *_: plant(f"TIFF ImageDescription {level}"),
        software=plant("TIFF Software"),
        tags=_text_tags("TIFF", plant),
        compression=compression,
        **options,
    )


def write_lossless_tiff(
    folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT
) -> Path:
    """Write a plain tiled pyramid whose pixels are those given, bit by bit."""
    return write_tiff(folder, stem, pixels, plant, layout, compression="deflate")


def write_aperio(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
    """Write what Aperio's scanners do: ``key = value|...`` in the description; thumbnail, label and macro image."""
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
            f"Aperio Image Library v11.2.1 \r\n{width}x{height} [0,0 {width}x{height}] ({layout.tile_px}x{layout.tile_px}) "
            f"JPEG/RGB Q={JPEG}|AppMag = {plant('Aperio AppMag', '20')}|MPP = {plant('Aperio MPP', str(MPP))}|{planted}"
        )

    def thumbnail(writer: tifffile.TiffWriter, text: str | bytes) -> None:
        image = small(pixels, 192, 128)
        writer.write(
            image, photometric="rgb", compression="jpeg", rowsperstrip=16, description=text, metadata=None
        )

    path = _write_pyramid(
        folder / f"{stem}.svs",
        pixels,
        layout,
        description=description,
        software=plant("Aperio Software"),
        tags=_text_tags("Aperio", plant),
        jpeg_rgb=True,
        resolution="none",
        after_first=thumbnail,
    )
    with tifffile.TiffWriter(path, append=True) as writer:
        for name, kind in (("label", 1), ("macro", 9)):
            text = f"Aperio Image Library v11.2.1 \r\n{name} 96x80|{plant(f'Aperio {name}')}"
            writer.write(
                small(pixels, 96, 80),
                photometric="rgb",
                compression="lzw",
                rowsperstrip=16,
                subfiletype=kind,
                description=text,
                metadata=None,
            )
    return path


def write_ome_tiff(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
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
    return _write_pyramid(
        folder / f"{stem}.ome.tif",
        pixels,
        layout,
        description=lambda level, *_: xml.encode() if level == 0 else b"",
        software=plant("OME Software"),
        tags=_text_tags("OME", plant),
        subifds=True,
    )


def write_philips(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
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
            plant("Philips columns", str(-(-width // d // layout.tile_px) * layout.tile_px)),
            "IUInt32",
        )
        + attribute(
            "PIIM_PIXEL_DATA_REPRESENTATION_ROWS",
            str(-(-height // d // layout.tile_px) * layout.tile_px),
            "IUInt32",
        )
        + "</DataObject>"
        for number, d in enumerate(layout.downsamples)
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
    return _write_pyramid(
        folder / f"{stem}.tiff",
        pixels,
        layout,
        description=lambda level, *_: xml if level == 0 else "",
        software=plant("Philips Software", "Philips DP v1.0"),
        tags=_text_tags("Philips", plant, but=("Make", "Model")),
        resolution="none",
    )


def write_hamamatsu(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
    """Write what Hamamatsu's scanners do: levels of one JPEG each, private tags, a property map, a macro image."""
    path = folder / f"{stem}.ndpi"
    images = [*layout.levels(pixels), small(pixels, 128, 64)]
    lenses = [*(20.0 / downsample for downsample in layout.downsamples), -1.0]
    keys = ("NDP.S/N", "Product", "Reference", "Patient", "User", "Barcode", "Date")
    properties = "".join(f"{key}={plant(f'Hamamatsu {key}')}\r\n" for key in keys)
    tags = [
        (65427, ASCII, 0, plant("Hamamatsu reference"), True),
        (65449, ASCII, 0, properties, True),
        *_text_tags("Hamamatsu", plant, but=("Make", "Model")),
        (271, ASCII, 0, "Hamamatsu", True),
        (272, ASCII, 0, "NanoZoomer", True),
    ]
    with tifffile.TiffWriter(path) as writer:
        for image, lens in zip(images, lenses, strict=True):
            per_cm = 1e4 / MPP * lens / 20
            own = [(65420, 3, 1, 1, True), (65421, 11, 1, lens, True)]
            own += [(code, 9, 1, 0, True) for code in (65422, 65423, 65424)]
            writer.write(
                image,
                rowsperstrip=image.shape[0],
                compression="jpeg",
                compressionargs={"level": JPEG, "outcolorspace": "YCBCR"},
                photometric="rgb",
                resolution=(per_cm, per_cm) if lens > 0 else None,
                resolutionunit="CENTIMETER" if lens > 0 else None,
                metadata=None,
                software=plant("Hamamatsu Software"),
                extratags=[*own, *tags],
            )
    return path


def write_trestle(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
    """Write what Trestle's MedScan does: ``key=value;...`` in the description, the pixel's size as resolution."""
    said = ";".join(
        (
            "Background Color=E6E6E6",
            "White Balance=CDCCCD",
            f"Objective Power={plant('Trestle Objective Power', '20')}",
            "JPEG Quality=85",
            f"OverlapsXY={plant('Trestle OverlapsXY', ' '.join('0' * 2 * len(layout.downsamples)))}",
            *(f"{key}={plant(f'Trestle {key}')}" for key in ("Patient", "Slide", "Operator", "Barcode")),
        )
    )
    return _write_pyramid(
        folder / f"{stem}.tif",
        pixels,
        layout,
        description=lambda level, *_: said if level == 0 else "",
        software=plant("Trestle Software", "MedScan"),
        tags=_text_tags("Trestle", plant),
        resolution="of a pixel",
    )


def write_leica(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
    """Write what Leica's scanners do: XML tells where in a macro image the pyramid lies."""

    def p(field: str, value: str = "") -> str:
        return quoteattr(plant(f"Leica {field}", value))

    height, width = pixels.shape[:2]
    nm = 1000 * MPP
    size = [int(edge * nm) for edge in (width, height)]
    dimensions = "".join(
        f'<dimension sizeX="{width // d}" sizeY="{height // d}" r="{level}" ifd="{level + 1}" />'
        for level, d in enumerate(layout.downsamples)
    )
    both = (
        f"<creationDate>1953-12-17T09:59:15Z</creationDate><device model={p('device model', 'Leica SCN400;Leica SCN')} "
        f"version={p('device version')}/>"
    )

    def settings(objective: str) -> str:
        return (
            f"<scanSettings><objectiveSettings><objective>{objective}</objective></objectiveSettings>"
            "<illuminationSettings><numericalAperture>0.4</numericalAperture><illuminationSource>"
            f"{plant('Leica illumination', 'brightfield')}</illuminationSource></illuminationSettings></scanSettings>"
        )

    def uuid(number: int) -> str:
        return f'"urn:uuid:00000000-0000-0000-0000-19531217000{number}"'

    xml = (
        '<?xml version="1.0" encoding="utf-8"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" '
        f"uuid={uuid(1)}><!-- {escape(plant('Leica comment'))} --><collection name={p('collection name')} uuid={uuid(2)} "
        f'sizeX="{2 * size[0]}" sizeY="{2 * size[1]}"><barcode>{escape(plant("Leica barcode"))}</barcode>'
        f'<image name={p("macro name")} uuid={uuid(3)}>{both}<pixels sizeX="256" sizeY="256"><dimension sizeX="256" '
        f'sizeY="256" r="0" ifd="0"/></pixels><view sizeX="{2 * size[0]}" sizeY="{2 * size[1]}" offsetX="0" offsetY="0" '
        f'spacingZ="0"/>{settings("0.6")}</image><image name={p("image name")} uuid={uuid(4)}>{both}'
        f'<pixels sizeX={p("sizeX", str(width))} sizeY="{height}">{dimensions}</pixels><view sizeX={p("view", str(size[0]))} '
        f'sizeY="{size[1]}" offsetX="100000" offsetY="50000" spacingZ="0"/>{settings(plant("Leica objective", "20"))}'
        "</image></collection></scn>"
    )

    def macro(writer: tifffile.TiffWriter) -> None:
        writer.write(
            small(pixels, 256, 256),
            tile=(layout.tile_px, layout.tile_px),
            photometric="rgb",
            compression="jpeg",
            description=xml,
            metadata=None,
        )

    return _write_pyramid(
        folder / f"{stem}.scn",
        pixels,
        layout,
        description=lambda *_: "",
        software=plant("Leica Software"),
        tags=_text_tags("Leica", plant),
        bigtiff=True,
        before=macro,
    )


def write_ventana(folder: Path, stem: str, pixels: Pixels, plant: Plant, layout: Layout = LAYOUT) -> Path:
    """Write a BIF: a label, and levels of tiles whose places and overlaps XML gives."""
    rows, columns = (int(edge) // layout.tile_px for edge in pixels.shape[:2])

    def scan(kind: str) -> str:
        own = " ".join(
            f"{key}={quoteattr(plant(f'Ventana {kind} {key}'))}"
            for key in ("UnitNumber", "UserName", "BuildVersion", "BarCode1", "BarCode2", "SlideAnnotation")
        )
        power, mpp = plant(f"Ventana {kind} Magnification", "20"), plant(f"Ventana {kind} ScanRes", str(MPP))
        return f'<iScan Magnification="{power}" ScanRes="{mpp}" ScanDate="17.12.1953" {own} Z-layers="1">'

    def number(row: int, col: int) -> int:
        """Tiles are counted from the bottom, in lines to and fro."""
        up = rows - 1 - row
        return up * columns + (col if up % 2 == 0 else columns - 1 - col) + 1

    joint = '<TileJointInfo FlagJoined="1" Confidence="100" Direction="{}" Tile1="{}" Tile2="{}" OverlapX="0" OverlapY="0"/>'
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
        f'<?xml version="1.0"?><EncodeInfo Ver="2"><SlideInfo>{scan("slide")}<AOI0 Left="0" Top="0" Right="1" Bottom="1"/>'
        '</iScan></SlideInfo><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" '
        f'Width="{layout.tile_px}" Height="{layout.tile_px}" NumRows="{rows}" NumCols="{columns}" Pos-X="0" Pos-Y="0">'
        f'{"".join(joints)}</ImageInfo></SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )

    def described(text: str) -> list[_Tag]:
        return [(700, BYTES, len(text), text.encode(), True)]

    def label(writer: tifffile.TiffWriter) -> None:
        text = f'<?xml version="1.0"?><Metadata>{scan("label")}</iScan></Metadata>'
        writer.write(
            small(pixels, 96, 80),
            photometric="rgb",
            description="Label_Image",
            metadata=None,
            extratags=described(text),
        )

    return _write_pyramid(
        folder / f"{stem}.bif",
        pixels,
        layout,
        description=lambda level, *_: f"level={level} mag={20 / layout.downsamples[level]:g} quality={JPEG}",
        software=plant("Ventana Software"),
        tags=[*_text_tags("Ventana", plant, but=("XMP",)), *described(xml)],
        resolution="none",
        bigtiff=True,
        before=label,
    )
