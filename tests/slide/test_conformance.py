"""File by file: what each shared slide is, and that its pixels are right."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
import pytest
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.errors import SlideError, UnknownMppError
from napari_lrmil.slide import Slide

CMU = "slides_real/CMU-1-Small-Region.svs"
DICOM = "slides_real/CMU-1-Small-Region-dicom"
TINY = "slides_real/fixtures_tiny"


@dataclass(frozen=True)
class Expected:
    """What a file says of itself. `grey_error`: mean absolute difference from CMU's pixels, None: others."""

    path: str
    vendor: str
    backend: str
    sizes: list[tuple[int, int]]
    mpp: tuple[float, float] | None = (0.499, 0.499)
    bounds: tuple[int, int, int, int] | None = None
    associated: tuple[str, ...] = ()
    power: float | None = None
    grey_error: float | None = None

    def __str__(self) -> str:
        return self.path


def _cmu(path: str, vendor: str, backend: str, sizes: list[tuple[int, int]], **more: object) -> Expected:
    return Expected(path, vendor, backend, sizes, **{"grey_error": 6.0, **more})  # type: ignore[arg-type]


THREE = [(2220, 2967), (555, 741), (138, 185)]
PADDED = [(2304, 3072), (576, 768), (144, 192)]
ASSOCIATED = ("label", "macro", "thumbnail")

EXPECTED = [
    _cmu(CMU, "aperio", "tiff", [(2220, 2967)], associated=ASSOCIATED, power=20.0, grey_error=0.0),
    _cmu(DICOM, "dicom", "openslide", [(2220, 2967)], associated=ASSOCIATED),
    Expected(
        "slides_real/tcga-cr-7395-01a-01-ts1.svs",
        "aperio",
        "tiff",
        [(4443, 3567), (2221, 1783)],
        mpp=None,
        associated=("thumbnail",),
    ),
    Expected(
        "slides_real/test3-DAPI-2-387.ndpi",
        "hamamatsu",
        "openslide",
        [(3968 >> n, 4864 >> n) for n in range(7)],
        mpp=(0.2281750559028887, 0.2281750559028887),
        associated=("macro",),
        power=40.0,
    ),
    Expected(
        "slides_real/multiframe_camelyon_challenge_image.dcm",
        "dicom",
        "openslide",
        [(1152, 700)],
        mpp=None,  # 28.969: an overview, too coarse to be believed
    ),
    Expected(
        f"{TINY}/boxes.tiff",
        "generic-tiff",
        "tiff",
        [(300, 250), (150, 125), (75, 62), (37, 31)],
        mpp=None,  # 353: 72 dpi, which is a screen's
    ),
    Expected(f"{TINY}/boxes.png", "png", "image", [(300, 250)], mpp=None),
    Expected(f"{TINY}/boxes_0.dcm", "dicom", "openslide", [(16, 16)], associated=("thumbnail",), power=20.0),
    Expected(f"{TINY}/boxes_1.dcm", "dicom", "openslide", [(16, 16)], associated=("thumbnail",), power=20.0),
    Expected(f"{TINY}/highdicom_sm_image.dcm", "dicom", "openslide", [(50, 50)]),
    Expected(f"{TINY}/plain.svs", "aperio", "tiff", [(16, 16)], associated=("thumbnail",), power=20.0),
    _cmu(
        "slides_repacked/cmu_aperio_pyramid.svs",
        "aperio",
        "tiff",
        THREE,
        associated=("thumbnail",),
        power=20.0,
    ),
    _cmu("slides_repacked/cmu_generic_pyramid.tiff", "generic-tiff", "tiff", THREE),
    _cmu("slides_repacked/cmu_pyramid.ome.tiff", "ome-tiff", "tiff", THREE),
    _cmu("slides_repacked/cmu_philips.tiff", "philips", "tiff", PADDED),
    _cmu(
        "slides_repacked/cmu_leica.scn",
        "leica",
        "openslide",
        [(6660, 5934), (1665, 1484), (414, 369)],
        bounds=(2220, 1483, 2220, 2967),
        associated=("macro",),
        power=20.0,
    ),
    _cmu(
        "slides_repacked/cmu_ventana.bif", "ventana", "openslide", PADDED, associated=("macro",), power=20.0
    ),
    _cmu("slides_repacked/cmu_trestle.tif", "trestle", "tiff", THREE, power=20.0),
    _cmu(
        "slides_repacked/vms/cmu.vms",
        "hamamatsu",
        "openslide",
        [
            (2208, 2960),
            (1104, 1480),
            (552, 740),
            (276, 370),
            (138, 185),
            (69, 92),
            (34, 46),
            (17, 23),
        ],
        associated=("macro",),
        power=20.0,
    ),
    _cmu(
        "slides_repacked/mrxs/cmu.mrxs",
        "mirax",
        "openslide",
        [(2304, 3072), (1152, 1536), (576, 768), (288, 384)],
        power=20.0,
    ),
]
REFUSED = {
    "broken.svs": "not a slide that OpenSlide can read",
    "unopenable_small_dicom.dcm": "not a slide that OpenSlide can read",
    "unreadable.svs": "opens, but its pixels can't be read",
}


@pytest.fixture(scope="module")
def cmu_pixels(shared_data: Path) -> NDArray[np.uint8]:
    """All of CMU through OpenSlide, (2967, 2220, 3): what the repacked files were made from."""
    with openslide.OpenSlide(shared_data / CMU) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3].copy()


@pytest.mark.parametrize("expected", EXPECTED, ids=str)
def test_says_what_it_is(expected: Expected, shared_data: Path) -> None:
    with Slide(shared_data / expected.path) as slide:
        assert slide.metadata["vendor"] == expected.vendor
        assert slide.metadata["backend"] == expected.backend
        assert list(slide.level_dimensions_xy) == expected.sizes
        assert slide.bounds_l0_xywh == (expected.bounds or (0, 0, *expected.sizes[0]))
        assert slide.associated_images == expected.associated
        assert slide.metadata["objective_power"] == expected.power
        width, height = expected.sizes[0]
        assert slide.level_downsamples == pytest.approx(
            [(width / w + height / h) / 2 for w, h in expected.sizes], rel=1e-12
        )
        if expected.mpp is None:
            assert not slide.has_mpp
            with pytest.raises(UnknownMppError, match="--mpp"):
                _ = slide.mpp_xy
        else:
            assert slide.mpp_xy == pytest.approx(expected.mpp, rel=1e-8)


@pytest.mark.parametrize("expected", [e for e in EXPECTED if e.grey_error is not None], ids=str)
def test_holds_cmus_pixels(expected: Expected, shared_data: Path, cmu_pixels: NDArray[np.uint8]) -> None:
    assert expected.grey_error is not None
    with Slide(shared_data / expected.path) as slide:
        left, top, _, _ = slide.bounds_l0_xywh
        region = slide.read_region((left + 700, top + 900), 0, (512, 512))
        # JPEG at quality 85 moved a grey level by 5.3 on average when these files were made.
        assert _mean_error(region, cmu_pixels[900:1412, 700:1212]) <= expected.grey_error
        quarter = np.asarray(Image.fromarray(cmu_pixels).reduce(4))
        for level, downsample in enumerate(slide.level_downsamples):
            if round(downsample) != 4:
                continue
            region = slide.read_region((left + 800, top + 800), level, (128, 128))
            errors = {
                (dy, dx): _mean_error(region, quarter[200 + dy : 328 + dy, 200 + dx : 328 + dx])
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
            }
            # Made with another filter than this test's, but a pixel off would be twice as far away.
            assert min(errors, key=errors.__getitem__) == (0, 0)
            assert errors[0, 0] < 10.5


@pytest.mark.parametrize("expected", [e for e in EXPECTED if e.backend != "image"], ids=str)
def test_equals_openslide(expected: Expected, shared_data: Path) -> None:
    path = shared_data / expected.path
    if path.is_dir():
        path = next(iter(sorted(path.glob("*.dcm"))))
    with Slide(path) as slide, openslide.OpenSlide(path) as reference:
        for level in range(reference.level_count):
            width, height = (min(700, side) for side in reference.level_dimensions[level])
            theirs = np.asarray(reference.read_region((0, 0), level, (width, height)))
            assert theirs.dtype == np.uint8
            ours = slide.read_region((0, 0), level, (width, height))
            opaque = theirs[..., 3] == 255
            np.testing.assert_array_equal(ours[opaque], theirs[opaque][:, :3])
            assert (ours[theirs[..., 3] == 0] == 255).all()


@pytest.mark.parametrize("expected", EXPECTED, ids=str)
def test_associated_images_come_on_request(expected: Expected, shared_data: Path) -> None:
    with Slide(shared_data / expected.path) as slide:
        for name in slide.associated_images:
            image = slide.read_associated(name)
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
        with pytest.raises(SlideError, match="no associated image 'portrait'"):
            slide.read_associated("portrait")


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_opening_in_one_sentence(name: str, shared_data: Path) -> None:
    with pytest.raises(SlideError, match=REFUSED[name]) as refusal:
        Slide(shared_data / TINY / name)
    assert "\n" not in str(refusal.value)
    assert str(shared_data) not in str(refusal.value)


def test_any_file_of_a_dicom_slide_is_the_slide(shared_data: Path) -> None:
    with Slide(shared_data / DICOM) as whole:
        fingerprint = whole.fingerprint()
        pixels = whole.read_region((500, 500), 0, (64, 64))
    files = sorted((shared_data / DICOM).glob("*.dcm"))
    assert len(files) == 4
    for file in files:
        with Slide(file) as slide:
            assert slide.fingerprint() == fingerprint
            np.testing.assert_array_equal(slide.read_region((500, 500), 0, (64, 64)), pixels)


def test_a_folder_of_several_dicom_slides_is_refused(shared_data: Path) -> None:
    with pytest.raises(SlideError, match="more than one DICOM slide"):
        Slide(shared_data / TINY)


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="neither DICOM files nor an OME-Zarr"):
        Slide(tmp_path)


def test_openslide_sees_one_level_where_ome_tiff_has_three(shared_data: Path) -> None:
    path = shared_data / "slides_repacked/cmu_pyramid.ome.tiff"
    with Slide(path, backend="openslide") as slide:
        assert slide.level_dimensions_xy == ((2220, 2967),)
    with Slide(path) as slide:
        assert slide.level_dimensions_xy == tuple(THREE)


@pytest.mark.parametrize("name", ["\N{MICROSCOPE} plain.svs", "Präparat №1.svs"])
def test_names_of_any_script(name: str, shared_data: Path, tmp_path: Path) -> None:
    copy = shutil.copy(shared_data / TINY / "plain.svs", tmp_path / name)
    with Slide(copy) as slide, Slide(shared_data / TINY / "plain.svs") as original:
        np.testing.assert_array_equal(
            slide.read_region((0, 0), 0, (16, 16)), original.read_region((0, 0), 0, (16, 16))
        )
        assert slide.fingerprint() == original.fingerprint()


def test_metadata_holds_no_identifiers(cmu_svs: Path) -> None:
    with openslide.OpenSlide(cmu_svs) as reference:
        secrets = [
            reference.properties[f"aperio.{key}"] for key in ("ImageID", "ScanScope ID", "User", "Filename")
        ]
    with Slide(cmu_svs) as slide:
        told = str(slide.metadata)
    for secret in secrets:
        assert secret not in told


def _mean_error(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())
