"""The program around the live view: keys, panels and their places on the screen, with Textual."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Final, Protocol

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widgets import Input, Static

from infernet.tui import panels
from infernet.tui.feed import Away, Gpus, LogLines, News, Snapshot, Told
from infernet.tui.model import Model
from infernet.tui.panels import PANELS, Look

# What follows each other faster than this is drawn once.
_DRAW_S: Final = 0.05
_FRAME_LINES: Final = 3


class Source(Protocol):
    """Where news come from, and where wishes go: `feed.Feed`."""

    def start(self, tell: Callable[[News], object]) -> None: ...
    def stop(self) -> None: ...
    def refresh(self) -> None: ...
    def drain(self) -> None: ...


class Arrived(Message):
    """A piece of news."""

    def __init__(self, news: News) -> None:
        super().__init__()
        self.news = news


class Box(ModalScreen[bool]):
    """Some lines in the middle of the screen. With `asks` only `y` says yes; otherwise any key ends it."""

    CSS = """
    Box { align: center middle; background: ansi_default; }
    Box > Vertical { width: 76; max-width: 100%; height: auto; max-height: 100%; border: solid ansi_default;
        background: ansi_default; color: ansi_default; padding: 0 1; }
    Box Static { background: ansi_default; color: ansi_default; }
    """

    def __init__(self, lines: tuple[str, ...], *, asks: bool) -> None:
        super().__init__()
        self._lines = lines
        self._asks = asks

    def compose(self) -> ComposeResult:
        ending = "y yes   any other key no" if self._asks else "any key goes back"
        yield Vertical(Static(Text("\n".join((*self._lines, "", ending))), markup=False))

    def on_key(self, event: events.Key) -> None:
        event.stop()
        self.dismiss(self._asks and event.key == "y")


class LiveView(App[None]):
    """The live view."""

    TITLE = "infernet"
    ENABLE_COMMAND_PALETTE = False
    # Keys are for the view, until somebody wants to filter.
    AUTO_FOCUS = None
    CSS = """
    Screen, #header, #tabs, #body, #panel, #keys, #filter { background: ansi_default; color: ansi_default; }
    #header, #tabs, #keys { height: 1; width: 100%; }
    #body { height: 1fr; scrollbar-size-vertical: 1; scrollbar-background: ansi_default;
        scrollbar-color: ansi_default; scrollbar-color-hover: ansi_default; scrollbar-color-active: ansi_default;
        scrollbar-background-hover: ansi_default; scrollbar-background-active: ansi_default; }
    #panel { height: auto; width: 100%; }
    #filter { display: none; height: 1; border: none; padding: 0; }
    #filter:focus { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "leave", "quit"),
        Binding("ctrl+c", "leave", "quit", priority=True),
        ("r", "again", "refresh"),
        ("d", "drain", "drain"),
        ("question_mark", "explain", "help"),
        ("slash", "filter", "filter the log"),
        ("escape", "unfilter", "show all of the log"),
        # Else these would go to the next thing that takes keys, and there is one only.
        Binding("tab", "step(1)", "next panel", priority=True),
        Binding("shift+tab", "step(-1)", "panel before", priority=True),
        *((str(number), f"show('{name}')", name) for number, name in enumerate(PANELS, 1)),
        ("up", "scroll('up')", ""),
        ("down", "scroll('down')", ""),
        ("pageup", "scroll('page_up')", ""),
        ("pagedown", "scroll('page_down')", ""),
        ("home", "scroll('home')", ""),
        ("end", "scroll('end')", ""),
    ]

    def __init__(self, source: Source, look: Look) -> None:
        super().__init__(ansi_color=True)
        self.model = Model()
        self._source = source
        self._look = look
        self._panel = PANELS[0]
        self._notice = ""
        self._is_due = False

    def compose(self) -> ComposeResult:
        yield Static(id="header", markup=False)
        yield Static(id="tabs", markup=False)
        with VerticalScroll(id="body", can_focus=False):
            yield Static(id="panel", markup=False)
        yield Input(id="filter", placeholder="words of the log", compact=True, select_on_focus=False, disabled=True)
        yield Static(id="keys", markup=False)

    def on_mount(self) -> None:
        self._draw()
        self._source.start(self._hear)

    def on_unmount(self) -> None:
        self._source.stop()

    # ------------------------------------------------------------ news

    def _hear(self, news: News) -> None:
        """Called from the threads of the source."""
        # The loop may have ended since they looked.
        with suppress(RuntimeError):
            self.post_message(Arrived(news))

    def on_arrived(self, message: Arrived) -> None:
        match message.news:
            case Snapshot(data):
                self.model.take_snapshot(data)
            case Away(why):
                self.model.take_away(why)
            case LogLines(lines, trouble):
                self.model.take_log(lines, trouble)
            case Gpus(rows):
                self.model.gpus = rows
            case Told(text):
                self._notice = text
        self._draw_soon()

    # ------------------------------------------------------------ keys

    def action_leave(self) -> None:
        self.exit()

    def action_again(self) -> None:
        self._notice = ""
        self._source.refresh()
        self._draw()

    def action_show(self, name: str) -> None:
        self._panel = name
        self._notice = ""
        self._draw()
        body = self._body
        # Of a log the end is news.
        body.call_after_refresh(body.scroll_end if name == "log" else body.scroll_home, animate=False)

    def action_step(self, by: int) -> None:
        if isinstance(self.screen, Box):
            self.screen.dismiss(False)
            return
        self.action_show(PANELS[(PANELS.index(self._panel) + by) % len(PANELS)])

    def action_scroll(self, where: str) -> None:
        getattr(self._body, f"scroll_{where}")(animate=False)

    def action_explain(self) -> None:
        self.push_screen(Box(panels.HELP, asks=False))

    def action_drain(self) -> None:
        if self.model.away:
            self._say("there is no node to drain")
            return
        node = self.model.node
        lines = (
            "Let the node finish its jobs and end?",
            f"{node.running} run for others, {node.waiting} wait and are sent elsewhere. It takes no new ones,",
            "and nothing but a new start makes it take jobs again.",
        )
        self.push_screen(Box(lines, asks=True), self._drain_if)

    def _drain_if(self, is_wanted: bool | None) -> None:
        if is_wanted:
            self._say("telling the node")
            self._source.drain()

    def action_filter(self) -> None:
        self.action_show("log")
        words = self._words
        words.disabled, words.display = False, True
        words.value = self.model.log_filter
        words.focus()

    def action_unfilter(self) -> None:
        self._end_typing()
        self._words.value = self.model.log_filter = ""
        self._draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.model.log_filter = event.value[:200]
        self._draw_soon()

    def on_input_submitted(self) -> None:
        self._end_typing()
        self._draw()

    def _end_typing(self) -> None:
        words = self._words
        words.disabled, words.display = True, False
        self.set_focus(None)

    def _say(self, text: str) -> None:
        self._notice = text
        self._draw()

    # ------------------------------------------------------------ drawing

    @property
    def _body(self) -> VerticalScroll:
        return self._view.query_one("#body", VerticalScroll)

    @property
    def _words(self) -> Input:
        return self._view.query_one("#filter", Input)

    @property
    def _view(self) -> Screen[object]:
        # Not the one on top: news come while a box lies over it, too.
        return self.screen_stack[0]

    def _show(self, part: str, text: Text) -> None:
        self._view.query_one(f"#{part}", Static).update(text)

    def on_resize(self) -> None:
        self._draw_soon()

    def _draw_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self.set_timer(_DRAW_S, self._draw)

    def _draw(self) -> None:
        self._is_due = False
        # A timer or a change of size may come before there is anything to draw on, and when there is no more.
        if not self.screen_stack:
            return
        # A column is the scroll bar's.
        width, height = max(20, self.size.width - 1), max(1, self.size.height - _FRAME_LINES)
        body = self._body
        was_at_end = body.scroll_offset.y >= body.max_scroll_y
        look, model = self._look, self.model
        self._show("header", panels.header(model, look, width))
        self._show("tabs", panels.tabs(model, look, self._panel, width))
        lines = panels.panel(model, look, self._panel, width, height)
        self._show("panel", Text("\n", no_wrap=True).join(lines))
        keys = look.text(
            (self._notice or panels.keys(self.size.width, self.size.height), "" if self._notice else "dim")
        )
        keys.truncate(width, overflow="ellipsis")
        self._show("keys", keys)
        if self._panel == "log" and was_at_end:
            body.call_after_refresh(body.scroll_end, animate=False)
