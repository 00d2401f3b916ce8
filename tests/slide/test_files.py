"""What belongs to a slide on disk: every part counts, nothing else does, and single files keep their keys."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from seen_slides import remember
from slide_files import smooth_pixels, write_pyramid

from napari_lrmil.cache import ResultCache
from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide
from napari_lrmil.slide.files import parts_of, pixel_files, slide_id_of, stored_chunks
from napari_lrmil.slide.identity import fingerprint_of, stamp_of, state_of
from napari_lrmil.worklist import find_slides


def names(paths: Sequence[Path]) -> list[str]:
    return sorted(path.name for path in paths)


@pytest.fixture
def copied(shared_data: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A shared slide's folder, copied so that it may be changed."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(shared_data / name, tmp_path / Path(name).name))

    return copy


def write_ome(
    path: Path, uuid: str, images: Sequence[Sequence[tuple[str, str]]], *, value: int = 0, own: bool = True
) -> Path:
    """An OME-TIFF whose XML gives the file and UUID of each plane of each image."""
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
        + f' UUID="{uuid}">' * own
        + ">" * (not own)
    )
    for number, planes in enumerate(images):
        xml += (
            f'<Image ID="Image:{number}"><Pixels ID="Pixels:{number}" DimensionOrder="XYCZT" Type="uint8" SizeX="128" '
            f'SizeY="96" SizeC="3" SizeZ="{len(planes)}" SizeT="1"><Channel ID="Channel:{number}:0" SamplesPerPixel="3"/>'
        )
        for z, (file, of) in enumerate(planes):
            xml += f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{file}">{of}</UUID></TiffData>'
        xml += "</Pixels></Image>"
    pixels = np.full((96, 128, 3), value, np.uint8)
    tifffile.imwrite(
        path, pixels, photometric="rgb", tile=(64, 64), description=xml + "</OME>", metadata=None
    )
    return path


# --- parts ---


def test_vms_names_hold_spaces_and_equals_signs(copied: Callable[[str], Path]) -> None:
    """The slide opens, and opening, cache and list agree on its files."""
    folder = copied("slides_repacked/vms")
    index = folder / "cmu.vms"
    with Slide(index) as slide:
        before = slide.fingerprint()
    text = index.read_text("latin-1")
    for old, new in (("cmu_image.jpg", "my slide=1.jpg"), ("cmu_map.jpg", "map a = b.jpg")):
        (folder / old).rename(folder / new)
        text = text.replace(old, new)
    index.write_text(text, "latin-1")
    wanted = ["cmu.vms", "cmu_macro.jpg", "map a = b.jpg", "my slide=1.jpg"]
    assert names(pixel_files(index)) == names(parts_of(index)) == wanted
    with Slide(index) as slide:
        # The sizes of all parts and the ends of the largest: the image, whatever it is called.
        assert slide.fingerprint() == fingerprint_of([folder / name for name in wanted]) != before
    known = state_of(index)
    os.utime(folder / "my slide=1.jpg", (1e9, 1e9))
    assert state_of(index) != known
    assert names(find_slides(folder)) == ["cmu.vms"]


def test_vms_values_that_are_empty_or_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "in/b.jpg", "in/my map=1.tif", "in/slide.tif", "Layer"):
        (tmp_path / name).write_bytes(b"x")
    index = tmp_path / "in" / "s.VMS"
    index.write_bytes(
        b"[Virtual Microscope Specimen]\r\nEmpty=\r\nImageFile= b.jpg \r\nMapFile=../a.jpg\r\nX=..\\a.jpg\r\nLayer\r\n"
        b"Other=my map=1.tif"
    )
    assert names(parts_of(index)) == ["b.jpg", "my map=1.tif", "s.VMS"]
    assert names(find_slides(tmp_path / "in")) == ["s.VMS", "slide.tif"]


@pytest.mark.parametrize(("folder", "slide", "part"), [
    ("slides_repacked/mrxs", "cmu.mrxs", "cmu/Data0000.dat"),
    ("slides_repacked/vms", "cmu.vms", "cmu_image.jpg"),
    ("slides_real/CMU-1-Small-Region-dicom", "", "*.dcm"),
])  # fmt: skip
def test_every_part_counts(folder: str, slide: str, part: str, copied: Callable[[str], Path]) -> None:
    root = copied(folder)
    path = root / slide if slide else root
    with Slide(path) as opened:
        files, print_before = set(opened.files), opened.fingerprint()
    changed = sorted(root.glob(part))[0]
    assert changed in files
    assert set(parts_of(path)) == files
    before = state_of(path), stamp_of(path)
    stat = changed.stat()
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert state_of(path) != before[0]
    assert stamp_of(path) != before[1]
    with Slide(path) as opened:
        assert opened.fingerprint() == print_before  # times don't make another slide


def test_a_dicom_slide_among_others_keeps_its_stamp(shared_data: Path, copied: Callable[[str], Path]) -> None:
    """Its files are those of its series; a new slide in the folder embeds nobody anew."""
    folder = copied("slides_real/CMU-1-Small-Region-dicom")
    one = sorted(folder.iterdir())[0]
    with Slide(one) as slide:
        fingerprint = slide.fingerprint()
    stamp = stamp_of(one)
    shutil.copy(shared_data / "slides_real" / "multiframe_camelyon_challenge_image.dcm", folder / "other.dcm")
    assert stamp_of(one) == stamp
    with Slide(one) as slide:
        assert slide.fingerprint() == fingerprint


def test_zarr_counts_its_metadata_and_all_levels(tmp_path: Path) -> None:
    path = tmp_path / "slide.zarr"
    for file in ("0/c/0", "1/c/0", "1/zarr.json"):
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(b"x")
    datasets = [{"path": "0"}, {"path": "1"}]
    document = {"attributes": {"ome": {"multiscales": [{"datasets": datasets}]}}}
    (path / "zarr.json").write_text(json.dumps(document))
    assert names(pixel_files(path)) == ["0", "zarr.json", "zarr.json"]
    for level in ("0", "1"):
        before = state_of(path)
        os.utime(path / level / "c" / "0", (1e9, 1e9))
        assert state_of(path) != before
    (path / "zarr.json").unlink()
    (path / ".zattrs").write_text(json.dumps({"multiscales": [{"datasets": datasets}]}))
    assert names(pixel_files(path)) == [".zattrs", "0", "zarr.json"]
    (path / ".zattrs").write_text("[")
    assert names(pixel_files(path)) == [".zattrs"]


def test_planes_of_an_ome_tiff_in_other_files_belong_to_it(tmp_path: Path) -> None:
    planes = [("z0.ome.tif", "urn:uuid:0"), ("z 1.ome.tiff", "urn:uuid:1"), ("gone.ome.tif", "urn:uuid:2")]
    other = [("other.ome.tif", "urn:uuid:9")]
    first = write_ome(tmp_path / "z0.ome.tif", "urn:uuid:0", [planes, other], value=10)
    second = write_ome(tmp_path / "z 1.ome.tiff", "urn:uuid:1", [planes, other], value=200)
    alone = write_ome(tmp_path / "other.ome.tif", "urn:uuid:9", [planes, other])
    assert names(parts_of(first)) == names(parts_of(second)) == ["z 1.ome.tiff", "z0.ome.tif"]
    assert names(parts_of(alone)) == ["other.ome.tif"]  # another image of the same set
    before = state_of(first), stamp_of(first), state_of(alone)
    os.utime(second, (1e9, 1e9))
    assert state_of(first) != before[0]
    assert stamp_of(first) != before[1]
    assert state_of(alone) == before[2]
    # What is read lies in the file that was opened, so two files of a set are two slides.
    with Slide(first) as one, Slide(second) as two:
        assert one.read_region((5, 5), 0, (1, 1)).max() == 10
        assert two.read_region((5, 5), 0, (1, 1)).min() == 200
        assert one.fingerprint() != two.fingerprint()


def test_a_renamed_copy_of_an_ome_tiff_has_no_other_part(tmp_path: Path) -> None:
    planes = [("one.ome.tif", "urn:uuid:1")]
    one = write_ome(tmp_path / "one.ome.tif", "urn:uuid:1", [planes])
    copy = Path(shutil.copy(one, tmp_path / "copy.ome.tif"))
    assert parts_of(copy) == (copy,)
    unnamed = write_ome(tmp_path / "no.ome.tif", "", [[("no.ome.tif", "urn:uuid:1")]], own=False)
    assert parts_of(unnamed) == (unnamed,)
    plain = write_pyramid(tmp_path / "plain.ome.tif", smooth_pixels(128, 96), [(128, 96), (64, 48)], ome=True)
    assert parts_of(plain) == (plain,)


def test_a_companion_file_describes_the_planes(tmp_path: Path) -> None:
    planes = [("a.ome.tif", "urn:uuid:a"), ("b.ome.tif", "urn:uuid:b")]
    whole = write_ome(tmp_path / "whole.ome.tif", "urn:uuid:c", [planes])
    with tifffile.TiffFile(whole) as tif:
        assert tif.ome_metadata is not None
        (tmp_path / "s.companion.ome").write_text(tif.ome_metadata)
    whole.unlink()
    for name in "ab":
        xml = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
            f'<BinaryOnly MetadataFile="s.companion.ome" UUID="urn:uuid:{name}"/></OME>'
        )
        tifffile.imwrite(
            tmp_path / f"{name}.ome.tif", np.zeros((96, 128, 3), np.uint8), description=xml, metadata=None
        )
    assert names(parts_of(tmp_path / "a.ome.tif")) == ["a.ome.tif", "b.ome.tif", "s.companion.ome"]


@pytest.mark.parametrize("content", [b"", b"II*\0", b"II*\0\x08\0\0\0\xff\xff", b"no tiff at all"])
def test_an_ome_tiff_that_is_none_has_itself_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    path.write_bytes(content)
    assert parts_of(path) == (path,)
    assert state_of(path) is not None


# --- keys that users have ---


def test_single_files_keep_state_and_stamp(tmp_path: Path) -> None:
    """Written out: caches and embedding stores of earlier versions are found by these."""
    path = tmp_path / "slide.svs"
    path.write_bytes(b"12345")
    os.utime(path, ns=(10**18, 10**18 + 7))
    assert stamp_of(path) == f"5-{10**18 + 7}"
    told = json.dumps([str(path.resolve()), [["slide.svs", 5, 10**18 + 7]]])
    assert state_of(path) == hashlib.sha256(told.encode()).hexdigest()
    assert fingerprint_of([path])[-24:] == hashlib.sha256(b"5" + b"12345" + b"12345").hexdigest()[:24]
    assert state_of(tmp_path / "absent.svs") is None
    with pytest.raises(FileNotFoundError):
        stamp_of(tmp_path / "absent.svs")


def test_a_link_is_known_by_what_it_leads_to(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    path.write_bytes(b"x")
    (tmp_path / "link.svs").symlink_to(path)
    assert state_of(tmp_path / "link.svs") == state_of(path)
    cache = ResultCache(tmp_path / "cache")
    remember(cache, path, "1" * 64)
    assert cache.known_fingerprint(tmp_path / "link.svs") == "1" * 64


def test_ids_are_names_without_endings(tmp_path: Path) -> None:
    paths = ["a.b.svs", "a.ome.tiff", "c.v2", "d.ZARR", "e.dcm", "f.png", "g"]
    assert [slide_id_of(Path(path)) for path in paths] == ["a.b", "a.ome", "c.v2", "d", "e", "f", "g"]


def test_a_series_uid_that_begins_as_another_is_another(tmp_path: Path) -> None:
    def write(name: str, uid: bytes) -> Path:
        uid += b"\0" * (len(uid) % 2)
        element = b"\x20\x00\x0e\x00UI" + len(uid).to_bytes(2, "little") + uid
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + element + b"\x20\x00\x11\x00IS\x02\x001 ")
        return tmp_path / name

    one, two = write("1.dcm", b"1.2.826.777.1"), write("2.dcm", b"1.2.826.777.1")
    ten, deeper = write("10.dcm", b"1.2.826.777.10"), write("11.dcm", b"1.2.826.777.1.5")
    longer = write("0.dcm", b"2.1.2.826.777.1")
    assert pixel_files(one, series_uid="1.2.826.777.1") == (one, two)
    assert pixel_files(ten, series_uid="1.2.826.777.10") == (ten,)
    assert pixel_files(deeper, series_uid="1.2.826.777.1.5") == (deeper,)
    assert pixel_files(longer, series_uid="2.1.2.826.777.1") == (longer,)


# --- what would take for ever ---


@pytest.mark.parametrize(("element", "says"), [
    (b"\x48\0\x02\x03UL\x04\0", "holds 2 optical paths .channels., but a slide needs one RGB image$"),
    (b"\x48\0\x03\x03UL\x04\0", "TotalPixelMatrixFocalPlanes value 2 != 1"),
])  # fmt: skip
def test_dicom_of_several_channels_or_focal_planes_is_refused(
    element: bytes, says: str, copied: Callable[[str], Path]
) -> None:
    folder = copied("slides_real/CMU-1-Small-Region-dicom")
    for file in folder.iterdir():
        held = file.read_bytes()
        assert held.count(element + b"\1\0\0\0") == 1
        if b"VOLUME" in held:
            file.write_bytes(held.replace(element + b"\1\0\0\0", element + b"\2\0\0\0"))
    with pytest.raises(SlideError, match=says) as refusal:
        Slide(folder)
    assert str(folder) not in str(refusal.value)


@pytest.mark.parametrize("name", ["a.svs", "a.vms", "a.ome.tif", "a.zarr", "a"])
def test_links_to_themselves_are_refused(name: str, tmp_path: Path) -> None:
    path, other = tmp_path / name, tmp_path / f"other-{name}"
    path.symlink_to(path)
    for link in (path, other):
        assert state_of(link) is None
        with pytest.raises(
            SlideError, match="leads nowhere, or to itself" if link == path else "no such slide"
        ):
            Slide(link)
    path.unlink()
    path.symlink_to(other)
    other.symlink_to(path)
    with pytest.raises(SlideError, match="leads nowhere, or to itself"):
        Slide(path)


def test_a_zarr_that_holds_itself_is_walked_once(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    (path / "0" / "c").mkdir(parents=True)
    (path / "0" / "c" / "1").write_bytes(b"x")
    (path / "0" / "c" / "up").symlink_to(path)
    document = {
        "attributes": {"ome": {"multiscales": [{"datasets": [{"path": "0"}, {"path": "../outside"}]}]}}
    }
    (path / "zarr.json").write_text(json.dumps(document))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"x")
    assert [chunk.name for chunk in stored_chunks(path)] == ["0/c/1", "0/c/up"]
    assert names(pixel_files(path)) == ["zarr.json"]
    before = state_of(path)
    (tmp_path / "outside" / "secret").write_bytes(b"other")
    assert state_of(path) == before


@pytest.mark.parametrize("text", [
    "NoLayers=a" + " " * 60_000 + "b\n",
    "".join(f"File{number}={number}.jpg\n" for number in range(5_000)),
    "Image=" + "a" * 2**20,
    "Image=a.vms\n" * 5_000,
])  # fmt: skip
def test_a_large_index_is_read_or_refused_at_once(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.vms"
    path.write_text("[Virtual Microscope Specimen]\n" + text)
    started = time.perf_counter()
    assert names(find_slides(tmp_path)) == ["a.vms"]
    state_of(path)
    with pytest.raises(SlideError):
        Slide(path)
    assert time.perf_counter() - started < 5


def test_an_index_names_so_many_parts_at_most(tmp_path: Path) -> None:
    path = tmp_path / "a.vms"
    path.write_text("".join(f"File{number}={number}.jpg\n" for number in range(5_000)))
    with pytest.raises(OSError, match="more than 4,096 files"):
        parts_of(path)
    assert state_of(path) is None  # nothing is kept of it
