"""The field µm/px of the main dock: typed in any locale, kept, corrected, and for the rest of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_slides import write_slide
from qtpy.QtCore import QLocale, Qt
from qtpy.QtTest import QTest

from napari_lrmil._viewer.docks.classify.widget import ClassifyWidget
from napari_lrmil._viewer.session import dock_widget
from napari_lrmil._viewer.window import State
from napari_lrmil.cache import open_slide
from napari_lrmil.slide import Slide

LEFT = Qt.MouseButton.LeftButton
SIZE = (512, 384)


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRMIL_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def widget(viewer: Any) -> ClassifyWidget:
    return dock_widget(viewer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two slides that say nothing, one that says 0.5, and a file that is no slide."""
    (tmp_path / "slides").mkdir()
    for name, size, mpp in (("a", SIZE, None), ("b", (640, 384), None), ("c", (768, 384), 0.5)):
        write_slide(tmp_path / "slides" / f"{name}.tif", size_xy=size, mpp=mpp)
    (tmp_path / "slides" / "d.tif").write_bytes(b"no slide")
    return tmp_path / "slides"


@pytest.fixture(params=["de_DE", "en_US"])
def locale(request: pytest.FixtureRequest) -> Iterator[str]:
    before = QLocale()
    QLocale.setDefault(QLocale(request.param))
    yield request.param
    QLocale.setDefault(before)


def type_mpp(widget: ClassifyWidget, text: str) -> None:
    section = widget.slide_section
    section.mpp.selectAll()
    QTest.keyClick(section.mpp, Qt.Key.Key_Delete)
    QTest.keyClicks(section.mpp, text)
    QTest.mouseClick(section.set_mpp, LEFT)


@pytest.mark.usefixtures("locale")
@pytest.mark.parametrize("text", ["0.25", "0,25"])
def test_point_and_comma_in_any_locale(widget: ClassifyWidget, folder: Path, text: str) -> None:
    widget.controller.open_slide(folder / "a.tif")
    type_mpp(widget, text)
    assert widget.controller.slide is not None
    assert widget.controller.slide.mpp_xy == (0.25, 0.25)


def test_what_is_no_number_is_not_taken(widget: ClassifyWidget, folder: Path) -> None:
    widget.controller.open_slide(folder / "a.tif")
    type_mpp(widget, "abc-.")
    assert widget.slide_section.mpp.text() == "."
    assert widget.controller.state is State.NEEDS_MPP


def test_what_no_slide_has_is_told_and_can_be_typed_again(widget: ClassifyWidget, folder: Path) -> None:
    widget.controller.open_slide(folder / "a.tif")
    type_mpp(widget, "250")
    assert "250 µm/px isn't plausible" in widget.controller.error
    assert widget.slide_section.mpp_row.isVisibleTo(widget)
    type_mpp(widget, "0.25")
    assert widget.controller.error == ""
    assert widget.controller.state is not State.NEEDS_MPP


def test_it_comes_back_and_can_be_corrected(viewer: Any, widget: ClassifyWidget, folder: Path) -> None:
    section = widget.slide_section
    widget.controller.open_slide(folder / "a.tif")
    assert section.change_mpp.isHidden()
    type_mpp(widget, "0.3")
    assert section.mpp_row.isHidden()
    viewer.layers.clear()

    widget.controller.open_slide(folder / "a.tif")
    slide = widget.controller.slide
    assert slide is not None
    assert slide.mpp_xy == (0.3, 0.3)
    assert "0.3 from what was typed in the window" in section.facts.text()
    QTest.mouseClick(section.change_mpp, LEFT)
    assert not section.mpp_row.isHidden()
    assert section.mpp.text() == "0.3"
    type_mpp(widget, "0.25")
    assert slide.mpp_xy == (0.25, 0.25)
    assert tuple(viewer.layers[0].scale) == (0.25, 0.25)
    assert viewer.layers[0].metadata["lrmil"]["mpp"] == (0.25, 0.25)
    assert section.mpp_row.isHidden()

    QTest.mouseClick(section.change_mpp, LEFT)
    type_mpp(widget, "")
    assert widget.controller.state is State.NEEDS_MPP
    assert viewer.layers[0].metadata["lrmil"]["mpp"] is None
    with open_slide(folder / "a.tif") as again:
        assert not again.has_mpp


def test_a_wrong_value_of_the_file_can_be_corrected(widget: ClassifyWidget, folder: Path) -> None:
    section = widget.slide_section
    widget.controller.open_slide(folder / "c.tif")
    assert section.mpp_row.isHidden()
    QTest.mouseClick(section.change_mpp, LEFT)
    type_mpp(widget, "0.25")
    assert "0.25 from the value given; the TIFF tag says 0.5" in section.facts.text()


def test_it_holds_for_the_folder_where_that_is_wanted(
    widget: ClassifyWidget, folder: Path, qtbot: Any
) -> None:
    widget.controller.open_slide(folder / "a.tif")
    widget.slide_section.folder_too.setChecked(True)
    type_mpp(widget, "0.25")

    def kept() -> bool:
        with open_slide(folder / "b.tif") as slide:
            return slide.has_mpp and slide.mpp_xy == (0.25, 0.25)

    qtbot.waitUntil(kept, timeout=20_000)
    with open_slide(folder / "c.tif") as slide:
        assert slide.mpp_xy == (0.5, 0.5)


def test_a_value_that_is_not_believed_is_named(widget: ClassifyWidget, tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", size_xy=SIZE, mpp=352.8)
    widget.controller.open_slide(tmp_path / "a.tif")
    assert widget.controller.state is State.NEEDS_MPP
    hint = widget.run_section.hint.text()
    assert "353 (the TIFF tag; 0.05 to 20 µm/px is plausible)" in hint
    with Slide(tmp_path / "a.tif") as slide:
        assert not slide.has_mpp
