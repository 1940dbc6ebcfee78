"""What every panel has from its base: guarded callbacks, work of which the newest wins, and an end."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets
import pandas as pd
import pytest
import traitlets
from ipywidgets.widgets.widget import _instances
from matplotlib.figure import Figure

from workbench.errors import Cancelled, WorkbenchError
from workbench.ui.panel import Panel, from_user, shows_errors

SECONDS = 10


class State(traitlets.HasTraits):
    value = traitlets.Int(0)


class CountingPanel(Panel):
    """A slider over a state's value."""

    def __init__(self, state: State, inner: Panel | None = None) -> None:
        self.state = state
        self.slider = ipywidgets.IntSlider(max=1000)
        super().__init__([self.slider, *([inner] if inner is not None else [])], "wb-counting")
        self.slider.observe(self.moved, "value")
        self.watch(state, self.changed, "value")

    @from_user
    def moved(self, change: Any) -> None:
        if change["new"] == 13:
            raise WorkbenchError("13 <is> unlucky", allowed="other numbers")
        self.state.value = change["new"]

    @shows_errors
    def changed(self, change: Any) -> None:
        with self.showing():
            self.slider.value = change["new"]


@pytest.fixture
def panel() -> CountingPanel:
    return CountingPanel(State())


def test_widgets_and_state_follow_each_other(panel: CountingPanel) -> None:
    panel.slider.value = 5
    assert panel.state.value == 5
    panel.state.value = 7
    assert panel.slider.value == 7


def test_it_can_be_found_by_its_classes(panel: CountingPanel) -> None:
    assert {"wb-panel", "wb-counting"} <= set(panel._dom_classes)


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (WorkbenchError("13 <is> unlucky", fix="take 14"), "13 &lt;is&gt; unlucky; take 14"),
        (ZeroDivisionError("division"), "ZeroDivisionError: division. Choose something else, or run the cell again"),
        (Cancelled("by hand"), "stopped"),
    ],
)
def test_errors_become_the_status_line(panel: CountingPanel, error: Exception, shown: str) -> None:
    with panel.guard():
        raise error
    assert shown in panel.status
    assert ("wb-error" in panel.status) == (not isinstance(error, Cancelled))
    panel.say("a <line>")
    assert "a &lt;line&gt;" in panel.status
    panel.say("")
    assert panel.status == ""


def test_an_error_in_a_callback_is_told(panel: CountingPanel) -> None:
    panel.slider.value = 13
    assert "13 &lt;is&gt; unlucky; allowed: other numbers" in panel.status
    assert panel.state.value == 0


def test_what_one_thread_shows_is_no_excuse_for_another(panel: CountingPanel) -> None:
    shows, go_on = threading.Event(), threading.Event()

    def show() -> None:
        with panel.showing():
            shows.set()
            go_on.wait(SECONDS)

    thread = threading.Thread(target=show)
    thread.start()
    assert shows.wait(SECONDS)
    panel.slider.value = 5  # a person moves it meanwhile
    go_on.set()
    thread.join(SECONDS)
    assert panel.state.value == 5


def test_showing_may_be_nested(panel: CountingPanel) -> None:
    with panel.showing():
        with panel.showing():
            pass
        assert panel.is_showing
    assert not panel.is_showing


def test_of_many_requests_the_newest_is_shown(panel: CountingPanel) -> None:
    first, go_on, worked, shown = threading.Event(), threading.Event(), [], []

    def work(number: int) -> Callable[[], int]:
        def one() -> int:
            worked.append(number)
            first.set()
            assert go_on.wait(SECONDS)
            return number

        return one

    panel.compute(work(0), shown.append)
    assert first.wait(SECONDS)
    for number in range(1, 20):
        panel.compute(work(number), shown.append)
    go_on.set()
    panel.settle(SECONDS)
    assert worked == [0, 19]
    assert shown == [19]


def test_kinds_of_work_do_not_wait_for_each_other(panel: CountingPanel) -> None:
    go_on, shown = threading.Event(), threading.Event()
    panel.compute(lambda: go_on.wait(SECONDS), lambda _: None, "slow")
    panel.compute(lambda: None, lambda _: shown.set(), "quick")
    assert shown.wait(SECONDS)
    with pytest.raises(TimeoutError, match=r"the panel is still computing after 0\.01 s"):
        panel.settle(0.01)
    go_on.set()
    panel.settle(SECONDS)


def test_settling_waits_for_what_is_asked_for_meanwhile(panel: CountingPanel) -> None:
    shown: list[int] = []

    def more(number: int) -> None:
        shown.append(number)
        if number < 3:
            panel.compute(lambda: number + 1, more, f"kind {number}")

    panel.compute(lambda: 0, more)
    panel.settle(SECONDS)
    assert shown == [0, 1, 2, 3]


def test_errors_while_computing_and_showing_are_told(panel: CountingPanel) -> None:
    def fail(*_: Any) -> None:
        raise WorkbenchError("it broke")

    panel.compute(fail, lambda _: None)
    panel.settle(SECONDS)
    assert "it broke" in panel.status
    panel.say("")
    panel.compute(lambda: 1, fail)
    panel.settle(SECONDS)
    assert "it broke" in panel.status
    panel.compute(lambda: 1, lambda _: panel.say("better"))
    panel.settle(SECONDS)
    assert "better" in panel.status


def test_a_closed_panel_and_those_inside_hear_nothing_more() -> None:
    state = State()
    inner = CountingPanel(state)
    outer = CountingPanel(state, inner)
    outer.close()
    outer.close()
    state.value = 9
    assert (outer.slider.value, inner.slider.value) == (0, 0)


def test_a_panel_that_was_never_finished_can_be_closed() -> None:
    class Unfinished(Panel):
        def __init__(self) -> None:
            pass

    Unfinished().close()


def test_a_panel_without_anything_to_show_is_empty(panel: CountingPanel) -> None:
    assert panel.frame.empty
    assert panel.figure is None
    assert "image/png" not in _bundle(panel)


class Pictured(Panel):
    @property
    def figure(self) -> Figure:
        figure = Figure()
        figure.add_subplot()
        return figure


class Broken(Panel):
    @property
    def figure(self) -> Figure:
        raise RuntimeError("no ink")


def test_places_without_widgets_get_a_text_and_a_picture() -> None:
    data = _bundle(Pictured([]))
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert "Pictured" in data["text/plain"]


class Slow(Panel):
    """Its picture is there after a while."""

    def __init__(self, free: threading.Event) -> None:
        super().__init__([])
        self.picture: Figure | None = None
        self.compute(lambda: free.wait(SECONDS), self.take)

    def take(self, _result: Any) -> None:
        self.picture = Pictured([]).figure

    @property
    def figure(self) -> Figure | None:
        return self.picture


def test_a_panel_that_was_just_made_has_its_picture() -> None:
    free = threading.Event()
    panel = Slow(free)
    threading.Timer(0.1, free.set).start()
    assert "image/png" in _bundle(panel)


def test_a_picture_that_takes_long_does_not_hold_the_widget_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.ui.panel.PICTURE_S", 0.05)
    free = threading.Event()
    panel = Slow(free)
    data = _bundle(panel)
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "image/png" not in data
    assert panel.is_computing
    free.set()
    panel.settle(SECONDS)
    assert not panel.is_computing


def test_without_a_picture_the_table_is_shown() -> None:
    class Tabled(Panel):
        @property
        def frame(self) -> pd.DataFrame:
            return pd.DataFrame({"choice": ["<b>"] * 41})

    shown = _bundle(Tabled([]))["text/html"]
    assert "<table" in shown
    assert shown.count("&lt;b&gt;") == 40
    assert "1 more rows" in shown


def test_two_threads_never_draw_at_once(panel: CountingPanel) -> None:
    drawing, go_on, second = threading.Event(), threading.Event(), threading.Event()

    def show(_: Any) -> None:
        drawing.set()
        assert go_on.wait(SECONDS)
        assert not second.is_set()

    panel.compute(lambda: None, show, "one")
    assert drawing.wait(SECONDS)
    panel.compute(lambda: None, lambda _: second.set(), "another")
    assert not second.wait(0.1)
    go_on.set()
    panel.settle(SECONDS)
    assert second.is_set()
    assert panel.status == ""


def test_what_became_outdated_while_another_drew_is_not_shown(panel: CountingPanel) -> None:
    shown: list[int] = []
    with panel.drawing:
        panel.compute(lambda: 1, shown.append)
        assert not _idle_within(panel, 0.1)
        panel.compute(lambda: 2, shown.append)
    panel.settle(SECONDS)
    assert shown == [2]


def test_a_closed_panel_leaves_no_widget_behind() -> None:
    before = set(_instances)
    state = State()
    panel = CountingPanel(state, CountingPanel(state))
    panel.children = (ipywidgets.Accordion([ipywidgets.HBox([CountingPanel(state)])]), *panel.children)
    assert len(set(_instances) - before) > 10
    inner = panel.children[0].children[0].children[0]
    panel.close()
    assert set(_instances) - before == set()
    state.value = 9
    assert inner.slider.value == 0


def _idle_within(panel: Panel, timeout_s: float) -> bool:
    try:
        panel.settle(timeout_s)
    except TimeoutError:
        return False
    return True


def test_a_picture_that_fails_does_not_take_the_widget_away() -> None:
    data = _bundle(Broken([]))
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "image/png" not in data


def _bundle(panel: Panel) -> dict[str, Any]:
    bundle = panel._repr_mimebundle_()
    found: dict[str, Any] = bundle[0] if isinstance(bundle, tuple) else bundle
    return found
