"""The dock "LRMIL: tiles": the tiles that count most and least, at higher power."""

from __future__ import annotations

from functools import partial
from typing import Any

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QKeyEvent, QPixmap, QResizeEvent
from qtpy.QtWidgets import (
    QListView,
    QListWidget,
    QListWidgetItem,
    QSlider,
    QSpinBox,
    QSplitter,
    QWidget,
)

from napari_lrmil._viewer.docks.docked import DockedWidget
from napari_lrmil._viewer.docks.tiles.panel import MAX_K, TileEntry, TilesPanel
from napari_lrmil._viewer.docks.tiles.presenter import Pixels, TilesPresenter
from napari_lrmil._viewer.qt import parts
from napari_lrmil._viewer.qt.section import Section

NEXT_KEY, PREVIOUS_KEY = "Alt-Right", "Alt-Left"
FIRST_KEY = "H"
"""The hottest one."""
_LEAST_PX, _START_PX, _MOST_PX = 64, 112, 512
_SIDE_BY_SIDE_PX, _LEAST_HEIGHT_PX = 560, 260
_NUMBER = Qt.ItemDataRole.UserRole
_CHOSEN_STYLE = "QListView::item:selected { border: 2px solid #3d8fd1; }"
_WAITING = QColor(128, 128, 128, 70)


class TileList(QListWidget):
    """Images in rows, as many as fit; arrow keys move, a click or Enter goes to the tile.

    Parameters
    ----------
    name : str
        For screen readers.
    """

    wanted = Signal(int)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.setAccessibleName(name)
        self.setMinimumWidth(120)
        self.setToolTip("Click a tile, or choose it by arrow keys and press Enter, to see it on the slide")
        self.setViewMode(QListView.ViewMode.IconMode)
        self.setResizeMode(QListView.ResizeMode.Adjust)
        self.setMovement(QListView.Movement.Static)
        self.setUniformItemSizes(True)
        self.setMinimumHeight(110)
        self.setStyleSheet(_CHOSEN_STYLE)
        self.show_size(_START_PX)
        self.itemClicked.connect(lambda item: self.wanted.emit(item.data(_NUMBER)))

    def show_size(self, px: int) -> None:
        """Draw the images this large."""
        self.setIconSize(QSize(px, px))
        self.setGridSize(QSize(px + 12, px + 14 + self.fontMetrics().height()))

    def show_entries(self, entries: tuple[TileEntry, ...]) -> None:
        """Show these tiles, without their images."""
        self.clear()
        waiting = QPixmap(_START_PX, _START_PX)
        waiting.fill(_WAITING)
        for entry in entries:
            item = QListWidgetItem(QIcon(waiting), entry.caption)
            item.setData(_NUMBER, entry.n)
            item.setToolTip(entry.tool_tip)
            item.setData(Qt.ItemDataRole.AccessibleDescriptionRole, entry.tool_tip)
            self.addItem(item)

    def item_of(self, n: int) -> QListWidgetItem | None:
        """The item of a tile."""
        items = (self.item(row) for row in range(self.count()))
        return next((item for item in items if item.data(_NUMBER) == n), None)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter goes to the tile, on every platform; letters are left to the window, where they are keys."""
        item = self.currentItem()
        if event.text().isalpha():
            event.ignore()
            return
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and item is not None:
            self.wanted.emit(item.data(_NUMBER))
            return
        super().keyPressEvent(event)


class TilesWidget(DockedWidget):
    """Tiles that count most and least for the result, at higher power."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.setObjectName("lrmil_gallery")
        self.channel = parts.narrow_combo(
            tool_tip="Rank the tiles by attention, or by what each does to the probability of a class",
            name="Rank tiles by",
        )
        self.k = QSpinBox()
        self.k.setRange(1, MAX_K)
        self.k.setToolTip("How many tiles of each kind")
        self.k.setAccessibleName("Number of tiles")
        self.k.setKeyboardTracking(False)
        self.size_px = QSlider(Qt.Orientation.Horizontal)
        self.size_px.setRange(_LEAST_PX, _MOST_PX)
        self.size_px.setPageStep(64)
        self.size_px.setSingleStep(16)
        self.size_px.setValue(_START_PX)
        self.size_px.setToolTip("How large the images are drawn")
        self.size_px.setAccessibleName("Size of the images")
        self.hint = parts.wrapped_label(style=parts.HINT_STYLE)
        self.error = parts.wrapped_label(style=parts.ERROR_STYLE)
        self.top_title, self.bottom_title = (parts.wrapped_label(style=parts.HEADING_STYLE) for _ in range(2))
        self.top, self.bottom = TileList("Tiles that count most"), TileList("Tiles that count least")
        self.note = parts.wrapped_label()
        self.presenter = TilesPresenter(self, self.canvas, self.background)
        self._lay_out()
        self.setMinimumHeight(_LEAST_HEIGHT_PX)
        self._connect()
        self.begin(self.presenter)

    def show_panel(self, panel: TilesPanel) -> None:
        """Show tiles, or what to do to get some."""
        self._content.setVisible(not panel.hint)
        parts.show_text(self.hint, panel.hint)
        parts.show_text(self.error, "")
        parts.fill_combo(self.channel, panel.channels, panel.channel_index)
        self.k.blockSignals(True)
        self.k.setValue(panel.k)
        self.k.blockSignals(False)
        self.top_title.setText(panel.top_title)
        self.bottom_title.setText(panel.bottom_title)
        self.top.show_entries(panel.top)
        self.bottom.show_entries(panel.bottom)
        self.note.setText(panel.note)

    def show_image(self, n: int, pixels: Pixels) -> None:
        """Show a tile's image."""
        pixmap = QPixmap.fromImage(parts.to_image(pixels))
        icon = QIcon(pixmap)
        icon.addPixmap(pixmap, QIcon.Mode.Selected)  # the chosen tile keeps its stain: Qt would tint it
        for tiles in (self.top, self.bottom):
            item = tiles.item_of(n)
            if item is not None:
                item.setIcon(icon)

    def show_error(self, text: str) -> None:
        """Say why images are missing."""
        parts.show_text(self.error, text)

    def select(self, n: int) -> None:
        """Choose a tile in its list, and in no other."""
        for tiles in (self.top, self.bottom):
            item = tiles.item_of(n)
            tiles.setCurrentItem(item)
            if item is not None:
                tiles.scrollToItem(item)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Both lists side by side where the dock is wide, as below the canvas."""
        super().resizeEvent(event)
        wide = self.width() > max(_SIDE_BY_SIDE_PX, 1.3 * self.height())
        self._halves.setOrientation(Qt.Orientation.Horizontal if wide else Qt.Orientation.Vertical)

    def _lay_out(self) -> None:
        content = Section()
        content.add_field("Rank &by", self.channel)
        content.add_field("Tiles each", self.k)
        content.add_field("Si&ze", self.size_px)
        self._halves = QSplitter(Qt.Orientation.Vertical)
        self._halves.setChildrenCollapsible(False)
        for title, tiles in ((self.top_title, self.top), (self.bottom_title, self.bottom)):
            half = Section()
            half.column.addWidget(title)
            half.column.addWidget(tiles, 1)
            self._halves.addWidget(half)
        content.column.addWidget(self._halves, 1)
        content.column.addWidget(self.note)
        self._content: QWidget = content
        self.column.addWidget(self.hint)
        self.column.addWidget(self.error)
        self.column.addWidget(content, 1)
        self.column.addStretch(0)

    def _connect(self) -> None:
        presenter = self.presenter
        self.channel.activated.connect(presenter.choose_channel)
        self.k.valueChanged.connect(presenter.choose_k)
        for tiles in (self.top, self.bottom):
            self.size_px.valueChanged.connect(tiles.show_size)
            tiles.wanted.connect(presenter.go_to)
        for key, by in ((NEXT_KEY, 1), (PREVIOUS_KEY, -1)):
            self.canvas.bind_key(key, partial(self._step, by))
        self.canvas.bind_key(FIRST_KEY, self._to_first)
        self.ending.callback(self.canvas.clear_tile_mark)

    def _to_first(self) -> None:
        if self.controller is not None:
            self.presenter.go_to_first()

    def _step(self, by: int) -> None:
        if self.controller is not None:  # its dock was closed
            self.presenter.step(by)
