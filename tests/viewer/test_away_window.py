"""A share or disk goes away while its slide is shown, and comes back: real files, a real disk that fails, real windows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from failing_disk import FailingDisk, failing_disk
from made_slides import write_slide
from napari.utils.notifications import Notification, notification_manager
from numpy.typing import NDArray
from real_windows import LONG_MS, open_slide, wait_for_jobs

from napari_lrmil._viewer.docks.classify.widget import ClassifyWidget
from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.layers import SLIDE_KEY
from napari_lrmil._viewer.window import State
from napari_lrmil.slide import Slide
from napari_lrmil.slide.cache import shared_cache

pytestmark = pytest.mark.usefixtures("alone")
STRIPES = (104, 152)
SIDE_PX = 2048


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """No test shows the tiles that another one decoded."""
    shared_cache().clear()
    yield
    shared_cache().clear()


@pytest.fixture
def notices() -> Iterator[list[str]]:
    """What napari pops up."""
    found: list[str] = []

    def received(notification: Notification) -> None:
        found.append(notification.message)

    notification_manager.notification_ready.connect(received)
    yield found
    notification_manager.notification_ready.disconnect(received)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    if sys.platform != "linux":
        pytest.skip("loop devices of Linux")
    with failing_disk(tmp_path, size_mib=48) as made:
        yield made


def stained() -> NDArray[np.uint8]:
    """(2048, 2048, 3): tissue but for a border of glass; no grey of equal parts."""
    noise = np.random.default_rng(0).integers(0, 40, (SIDE_PX, SIDE_PX, 1), dtype=np.uint8)
    pixels = np.array([190, 90, 170], np.uint8) + noise
    pixels[:200] = pixels[-200:] = (245, 244, 240)
    return pixels


def write_for_openslide(path: Path) -> Path:
    """With alpha, which our own reader of TIFF leaves to OpenSlide."""
    pixels = stained()
    whole = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    with tifffile.TiffWriter(path) as writer:
        for level, step in enumerate((1, 4)):
            writer.write(
                np.ascontiguousarray(whole[::step, ::step]), tile=(256, 256), photometric="rgb", metadata=None,
                compression="deflate", extrasamples=["unassalpha"], subfiletype=int(level > 0),
                resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def write_zarr(path: Path, *, mirrored: bool = False) -> Path:
    pixels = stained()[:, :: -1 if mirrored else 1]
    group = zarr.open_group(path, mode="w", zarr_format=3)
    for level in range(3):
        data = np.ascontiguousarray(pixels[:: 4**level, :: 4**level].transpose(2, 0, 1))
        group.create_array(str(level), shape=data.shape, chunks=(3, 256, 256), dtype="uint8")[:] = data
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5 * 4**level, 0.5 * 4**level]}],
        }
        for level in range(3)
    ]
    image = {"version": "0.5", "axes": [{"name": "c", "type": "channel"}, *space], "datasets": datasets}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return path


class Share:
    """A folder that can go away and come back, by being renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def fail(self) -> None:
        self.folder.rename(self.folder.with_name("away"))

    def come_back(self) -> None:
        self.folder.with_name("away").rename(self.folder)


KINDS = ["tiff on a disk that fails", "openslide on a disk that fails", "openslide", "ome-zarr"]


@pytest.fixture(params=KINDS)
def away(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FailingDisk | Share, Path]:
    """What will go away, and a slide on it."""
    kind, _, failing = request.param.partition(" ")
    share = request.getfixturevalue("disk") if failing else Share(tmp_path / "share")
    if kind == "tiff":
        return share, write_slide(share.folder / "far.tiff", size_xy=(SIDE_PX, SIDE_PX))
    if kind == "openslide":
        return share, write_for_openslide(share.folder / "far.tiff")
    return share, write_zarr(share.folder / "far.zarr")


@pytest.fixture
def dock(viewer: Any, bundle_dir: Path, qtbot: Any) -> ClassifyWidget:
    viewer.window.resize(1200, 900)
    main = dock_widget(viewer)
    main.controller.load_bundle(str(bundle_dir))
    qtbot.waitUntil(lambda: main.controller.bundle is not None, timeout=LONG_MS)
    return main


def look_around(viewer: Any) -> None:
    """Pan over the finest level in steps, each of which is drawn."""
    viewer.scene.camera.zoom = 2.0  # a pixel of the screen for one of level 0 at 0.5 µm/px
    for x in (250, 500, 750):
        viewer.scene.camera.center = (512, x)
        viewer.screenshot(canvas_only=True, flash=False)


def drawn(viewer: Any, slide: Slide) -> NDArray[np.uint8]:
    """The pixels that the layer of a slide has drawn last."""
    (layer,) = [each for each in viewer.layers if each.metadata.get(SLIDE_KEY) is slide]
    return np.asarray(layer._slice.image.view)


def striped(pixels: NDArray[np.uint8]) -> float:
    """Share of pixels that are of the stripes which stand for what couldn't be read."""
    grey = (pixels == pixels[..., :1]).all(axis=2) & np.isin(pixels[..., 0], STRIPES)
    return float(grey.mean())


def classified(dock: ClassifyWidget, qtbot: Any) -> None:
    dock.controller.classify()
    qtbot.waitUntil(lambda: dock.controller.state is not State.RUNNING, timeout=LONG_MS)


def test_a_share_goes_away_and_comes_back(
    away: tuple[FailingDisk | Share, Path],
    small_slide: Path,
    viewer: Any,
    dock: ClassifyWidget,
    notices: list[str],
    qtbot: Any,
) -> None:
    """One message, stripes instead of glass, no label; everything else goes on, and so does the slide once it is back."""
    share, path = away
    controller = dock.controller
    near = open_slide(viewer, small_slide)
    far = open_slide(viewer, path)
    told: list[str] = []

    def heard(_: object) -> None:
        if controller.slide is far and (not told or told[-1] != controller.error):
            told.append(controller.error)

    controller.changed.connect(heard)
    share.fail()
    look_around(viewer)
    qtbot.waitUntil(lambda: bool(controller.error), timeout=LONG_MS)
    for _ in range(3):
        look_around(viewer)
    assert [text for text in told if text] == [controller.error]
    assert "can't be read at the moment: it was moved or deleted, or the disk or share" in controller.error
    assert path.name in controller.error
    assert dock.run_section.error.isVisible()
    assert not dock.run_section.reopen.isVisible()
    pixels = drawn(viewer, far)
    assert striped(pixels) > 0.5
    assert (pixels > 235).all(axis=2).mean() < 0.2  # no glass where there is tissue
    assert not far.damaged_places

    classified(dock, qtbot)
    assert controller.state is State.FAILED
    assert controller.result is None
    assert [text for text in told if text] == [controller.error]  # still that one

    controller.choose_slide(controller.slides.index(near))
    assert controller.error == ""
    look_around(viewer)
    assert striped(drawn(viewer, near)) == 0
    classified(dock, qtbot)
    assert controller.result is not None
    controller.choose_slide(controller.slides.index(far))
    look_around(viewer)
    assert [text for text in told if text] == [controller.error]

    share.come_back()
    qtbot.waitUntil(lambda: not controller.error, timeout=LONG_MS)
    assert controller.slide is far
    look_around(viewer)
    assert striped(drawn(viewer, far)) == 0
    assert not far.damaged_places
    classified(dock, qtbot)
    assert controller.state is State.DONE
    assert controller.result is not None
    assert not notices


def test_another_slide_comes_back_in_its_place(
    tmp_path: Path, viewer: Any, dock: ClassifyWidget, notices: list[str], qtbot: Any
) -> None:
    share = Share(tmp_path / "share")
    path = write_zarr(share.folder / "far.zarr")
    far = open_slide(viewer, path)
    controller = dock.controller
    classified(dock, qtbot)
    assert controller.result is not None
    share.fail()
    shared_cache().clear()
    look_around(viewer)
    qtbot.waitUntil(lambda: "at the moment" in controller.error, timeout=LONG_MS)
    assert controller.result is not None  # it was made of what could be read
    share.folder.mkdir()
    write_zarr(path, mirrored=True)
    qtbot.waitUntil(lambda: "it was replaced" in controller.error, timeout=LONG_MS)
    assert controller.result is None
    assert controller.slide_replaced
    assert dock.run_section.reopen.isVisible()
    look_around(viewer)
    assert controller.slide is far
    assert not far.damaged_places
    controller.reopen_slide()
    assert controller.slide is not far
    assert controller.error == ""
    look_around(viewer)
    assert controller.slide is not None
    assert striped(drawn(viewer, controller.slide)) == 0
    assert not notices


def test_a_window_without_docks_says_it_once(
    tmp_path: Path, viewer: Any, notices: list[str], qtbot: Any
) -> None:
    share = Share(tmp_path / "share")
    path = write_zarr(share.folder / "far.zarr")
    (layer,) = viewer.open(path, plugin="napari-lrmil")
    slide = layer.metadata[SLIDE_KEY]
    share.fail()
    for _ in range(3):
        look_around(viewer)
    assert [text for text in notices if "can't be read at the moment" in text] == notices
    assert len(notices) == 1
    assert striped(drawn(viewer, slide)) > 0.5
    share.come_back()
    qtbot.waitUntil(lambda: striped(drawn(viewer, slide)) == 0, timeout=LONG_MS)
    share.fail()  # another outage is another message
    shared_cache().clear()
    look_around(viewer)
    assert len(notices) == 2
    share.come_back()
    qtbot.waitUntil(lambda: striped(drawn(viewer, slide)) == 0, timeout=LONG_MS)


def test_a_slide_that_is_closed_while_it_is_away_is_looked_for_no_more(
    tmp_path: Path, viewer: Any, dock: ClassifyWidget, qtbot: Any
) -> None:
    share = Share(tmp_path / "share")
    far = open_slide(viewer, write_zarr(share.folder / "far.zarr"))
    share.fail()
    look_around(viewer)
    qtbot.waitUntil(lambda: bool(dock.controller.error), timeout=LONG_MS)
    dock.canvas.remove_slide(far)
    assert far.closed
    assert dock.controller.error == ""
    wait_for_jobs(qtbot)
