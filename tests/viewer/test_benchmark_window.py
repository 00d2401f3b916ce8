"""The watch of the benchmarks on a real widget: what is painted when, and how long the event loop stands still."""

from __future__ import annotations

import time

import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtWidgets import QWidget

from benchmarks.window import Watch

PAUSE_S = 0.06


@pytest.fixture
def widget(qtbot: QtBot) -> QWidget:
    made = QWidget()
    qtbot.addWidget(made)
    with qtbot.waitExposed(made):
        made.show()
    return made


def test_seconds_count_from_the_action_to_the_painting(widget: QWidget) -> None:
    def action() -> None:
        time.sleep(PAUSE_S)
        widget.update()

    took = Watch(widget).run(action, {"painted": lambda: True}, quiet_s=0.05)
    assert took.shown["painted"] >= PAUSE_S
    assert took.settled >= took.shown["painted"]
    assert max(took.blocks) >= PAUSE_S


def test_a_painting_before_the_condition_holds_does_not_count(widget: QWidget) -> None:
    begun: list[float] = []

    def action() -> None:
        begun.append(time.perf_counter())
        widget.update()

    def holds_later() -> bool:
        widget.update()
        return time.perf_counter() - begun[0] > PAUSE_S

    took = Watch(widget).run(action, {"late": holds_later}, quiet_s=0.05)
    assert took.shown["late"] >= PAUSE_S


def test_what_never_comes_is_given_up(widget: QWidget) -> None:
    begun = time.monotonic()
    took = Watch(widget).run(widget.update, {"never": lambda: False}, quiet_s=0.02, most_s=0.2)
    assert took.shown == {}
    assert 0.2 <= time.monotonic() - begun < 5


def test_at_least_as_long_as_told(widget: QWidget) -> None:
    begun = time.monotonic()
    took = Watch(widget).run(lambda: None, {}, least_s=0.2, quiet_s=0.02)
    assert time.monotonic() - begun >= 0.2
    assert took.blocks
