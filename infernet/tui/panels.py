"""How the live view looks: pure functions from the model to lines of text, each as wide as it may be.

Lines are `rich.text.Text`, never markup, so that a name with square brackets in it is a name. Colours are those of the
terminal; without colour, what matters is still said in words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.text import Text

from infernet.cli.output import duration, size
from infernet.cli.status import peers_in_words
from infernet.tui.model import Model, NodeView
from protocol.formats.amounts import format_usd

PANELS: Final = ("overview", "jobs", "peers", "gpus", "log")
KEYS: Final = "q quit  r refresh  d drain  tab/1-5 panel  / filter log  ? help"
#: Columns and lines for which all this is made.
WIDTH_MIN: Final = 80
HEIGHT_MIN: Final = 24
_FIELDS: Final = ("engine", "coordinator", "peers", "jobs", "earned")
HELP: Final = (
    "The live view of the node that runs on this machine.",
    "",
    "1 to 5, tab     the panel: overview, jobs, peers, GPUs, log",
    "up, down, page  scroll, where there is more than fits",
    "/               only lines of the log with these words; Esc shows all",
    "r               ask the node again, now",
    "d               let the node finish its jobs and end (asks first)",
    "q               leave; the node goes on",
    "",
    "Of jobs there is who asks, for which model, and how fast it goes:",
    "never what is asked or answered. The pace is tokens of answers a",
    "second, of all jobs together, over the last minutes.",
    "",
    "Redeemed is what the coordinator has acknowledged; waiting is in",
    "vouchers that were not redeemed yet.",
)
_BARS: Final = "▁▂▃▄▅▆▇█"
_LEVEL_STYLES: Final = {"warning": "yellow", "error": "red", "critical": "bold red", "debug": "dim"}
#: How the names of styles are shown where colour is not wanted.
_COLOURLESS: Final = {"yellow": "bold", "red": "bold reverse", "bold red": "bold reverse", "green": "", "cyan": ""}


@dataclass(frozen=True)
class Look:
    """How lines are drawn: with colour or without."""

    has_colour: bool = True

    def style(self, name: str) -> str:
        return name if self.has_colour else _COLOURLESS.get(name, name)

    def text(self, *parts: tuple[str, str]) -> Text:
        line = Text(no_wrap=True)
        for words, style in parts:
            line.append(words, self.style(style))
        return line


@dataclass(frozen=True)
class _Column:
    """One with no width takes what the others leave."""

    title: str
    width: int | None
    is_right: bool = False


def header(model: Model, look: Look, width: int) -> Text:
    """Who it is, and how it is, in one line."""
    node = model.node
    if model.is_looking:
        return _fit(look.text(("infernet", "bold"), (f"  {model.away}", "")), width)
    if model.away:
        return _fit(look.text(("infernet", "bold"), ("  not connected: ", "red"), (model.away, "")), width)
    line = look.text((node.name or "(no name)", "bold"), (f"  {node.role}  up {duration(node.uptime_s)}  ", ""))
    if node.ends_in_s is not None:
        line.append(f"ending, in {duration(node.ends_in_s)} at the latest", look.style("yellow"))
    elif node.hours.startswith(("outside", "paused")):
        line.append(node.hours, look.style("yellow"))
    elif node.link and node.link != "connected":
        line.append(f"link {node.link}", look.style("yellow"))
    else:
        line.append("running", look.style("green"))
    return _fit(line, width)


def keys(width: int, height: int) -> str:
    """What can be pressed; on a screen that is too small, that it is."""
    if width >= WIDTH_MIN and height >= HEIGHT_MIN:
        return KEYS
    return f"cut off: {width}x{height}, made for {WIDTH_MIN}x{HEIGHT_MIN}  q quit  ? help"


def tabs(model: Model, look: Look, active: str, width: int) -> Text:
    """The panels, with how much is in each."""
    counts = {
        "jobs": len(model.jobs) + model.jobs_left_out,
        "peers": sum(bool(peer.how) for peer in model.peers),
        "gpus": len(model.gpus or ()),
    }
    parts: list[tuple[str, str]] = []
    for number, name in enumerate(PANELS, 1):
        label = f" {number} {name}" + (f" {counts[name]}" if counts.get(name) else "") + " "
        parts += [(label, "reverse" if name == active else ""), (" ", "")]
    return _fit(look.text(*parts), width)


def panel(model: Model, look: Look, name: str, width: int, height: int) -> list[Text]:
    """The lines of a panel; all but the overview may have more of them than fit."""
    if name == "overview":
        return overview(model, look, width, height)
    lines = {"jobs": jobs, "peers": peers, "gpus": gpus, "log": log}[name]
    return lines(model, look, width)


def overview(model: Model, look: Look, width: int, height: int) -> list[Text]:
    """The node, its pace, its jobs and the end of its log, as much of each as fits."""
    lines = [*_away(model, look, width), *_fields(model, look, width), Text()]
    lines += pace(model, look, width, 2 if height < 30 else 4)
    # A title and a line between.
    room = max(0, height - len(lines) - 1)
    job_lines = jobs(model, look, width)
    shown = min(len(job_lines), max(2, room // 3)) if room > 3 else 0
    lines += [Text(), *job_lines[:shown]] if shown else []
    if height >= 30:
        for more in (gpus(model, look, width), peers(model, look, width)):
            lines += [Text(), *more[: max(2, room // 5)]]
    room = height - len(lines) - 2
    if room > 0:
        lines += [Text(), _fit(look.text(("log", "bold")), width), *log(model, look, width, is_filtered=False)[-room:]]
    return lines[:height]


def _away(model: Model, look: Look, width: int) -> list[Text]:
    if not model.away:
        return []
    return [
        *wrapped(look.text((model.away, "red")), width),
        _fit(look.text(("This is tried again every second; q leaves. ", ""), (_past(model), "dim")), width),
        Text(),
    ]


def _past(model: Model) -> str:
    return "What follows is how it was." if model.node.name else ""


def _engine(node: NodeView) -> str:
    if node.loading_s is not None:
        return f"loading for {duration(node.loading_s)}"
    return node.engine or "none"


def _fields(model: Model, look: Look, width: int) -> list[Text]:
    if not model.is_known:
        # Nothing of this was said yet, not even that there is none.
        return [_fit(look.text((f"{name:13}", "dim"), ("-", "")), width) for name in _FIELDS]
    node = model.node
    link = node.link or ("no link" if node.coordinator else "none")
    is_linked = node.link in ("connected", "") or not node.coordinator
    rows: list[tuple[str, str, str]] = [
        ("engine", f"{_engine(node)}: {', '.join(node.models) or 'no model'}", ""),
        ("", node.engine_trouble, "yellow"),
        ("hours", node.hours, "yellow" if node.hours.startswith(("outside", "paused")) else ""),
        ("coordinator", f"{node.coordinator} {link}".strip(), "" if is_linked else "yellow"),
        ("", node.link_trouble, "yellow"),
        ("peers", f"{peers_in_words(node.peers, node.peers_known)}; reachability: {node.reached or 'unknown'}", ""),
        ("jobs", _jobs_in_words(model), ""),
        ("earned", _earned(model), "green" if node.earned_uusd else ""),
        ("", node.money_trouble, "red"),
    ]
    return [_fit(look.text((f"{name:13}", "dim"), (words, style)), width) for name, words, style in rows if words]


def _jobs_in_words(model: Model) -> str:
    node = model.node
    return (
        f"{node.running} running, {node.waiting} waiting, {node.done} done, {node.failed} failed; "
        f"{node.asked} asked by this node"
    )


def _earned(model: Model) -> str:
    node = model.node
    if not node.has_money:
        return "nothing: no coordinator holds money for this node"
    return f"{format_usd(node.earned_uusd)} redeemed, {format_usd(node.unclaimed_uusd)} waiting"


def pace(model: Model, look: Look, width: int, height: int) -> list[Text]:
    """Tokens a second over the last minutes, as bars that stand on the last of these lines."""
    most = max(model.history, default=0.0)
    title = look.text(("tokens/s", "dim"), (f"     {model.tokens_per_s:.1f} now, {most:.1f} at most", ""))
    values = list(model.history)[-width:]
    steps = (height - 1) * len(_BARS)
    levels = [round(value / most * steps) if most > 0 else 0 for value in values]
    # Something is never shown as nothing.
    levels = [max(level, 1) if value > 0 else 0 for level, value in zip(levels, values, strict=True)]
    rows = []
    for row in range(height - 2, -1, -1):
        heights = (min(max(level - row * len(_BARS), 0), len(_BARS)) for level in levels)
        rows.append("".join(" " if count == 0 else _BARS[count - 1] for count in heights).rjust(width))
    return [_fit(title, width), *(look.text((row, "cyan")) for row in rows)]


def jobs(model: Model, look: Look, width: int) -> list[Text]:
    columns = (
        *(_Column("job of", 8), _Column("model", None), _Column("state", 6), _Column("in", 6, True)),
        *(_Column("out", 6, True), _Column("tok/s", 6, True), _Column("age", 10, True)),
    )
    rows = [
        [
            *(job.asker, job.model, job.state, f"{job.prompt_tokens}", f"{job.output_tokens}"),
            *(f"{job.tokens_per_s:.1f}" if job.tokens_per_s else "-", duration(job.age_s)),
        ]
        for job in model.jobs
    ]
    empty = "no job runs here now" if model.is_known else "-"
    return _table(columns, rows, look, width, empty, model.jobs_left_out)


def peers(model: Model, look: Look, width: int) -> list[Text]:
    columns = (
        *(_Column("peer", 20 if width < 100 else 32), _Column("node", 8), _Column("role", 10), _Column("how", 6)),
        *(_Column("trip", 7, True), _Column("load", 4, True), _Column("models", None)),
    )
    rows = [
        [
            *(peer.name or "-", peer.node, peer.role, peer.how or "-"),
            *(
                "-" if peer.round_trip_ms is None else f"{peer.round_trip_ms:.0f} ms",
                f"{peer.load}/8" if peer.models else "-",
            ),
            peer.models or "-",
        ]
        for peer in model.peers
    ]
    styles = ["" if peer.how else "dim" for peer in model.peers]
    return _table(
        columns,
        rows,
        look,
        width,
        "no other node is known yet" if model.is_known else "-",
        model.peers_left_out,
        styles,
    )


def gpus(model: Model, look: Look, width: int) -> list[Text]:
    columns = (
        *(_Column("gpu", 4), _Column("model", None), _Column("busy", 6, True), _Column("memory", 18, True)),
        *(_Column("temp", 6, True),),
    )
    cards = model.gpus or ()
    rows = [
        [
            *(f"{card.index}", card.trouble or card.model, _percent(card.busy_percent)),
            *(_memory(card.used_bytes, card.memory_bytes), _celsius(card.temperature_c)),
        ]
        for card in cards
    ]
    styles = ["yellow" if card.trouble else "" for card in cards]
    empty = "looking for GPUs" if model.gpus is None else "no GPU here: jobs run on the processor"
    return _table(columns, rows, look, width, empty, 0, styles)


def _percent(value: int | None) -> str:
    return "-" if value is None else f"{value} %"


def _celsius(value: int | None) -> str:
    return "-" if value is None else f"{value} °C"


def _memory(used: int | None, total: int | None) -> str:
    if total is None:
        return "-"
    return size(total) if used is None else f"{size(used)} of {size(total)}"


def log(model: Model, look: Look, width: int, *, is_filtered: bool = True) -> list[Text]:
    rows = model.shown_log() if is_filtered else model.log
    lines = [_fit(look.text((row.text, _LEVEL_STYLES.get(row.level, ""))), width) for row in rows]
    if is_filtered and model.log_filter:
        lines.append(_fit(look.text((f"{len(rows)} of {len(model.log)} lines have: {model.log_filter}", "dim")), width))
    elif not lines:
        lines.append(_fit(look.text((model.log_trouble or "nothing was written down yet", "dim")), width))
    return lines


# ---------------------------------------------------------------- lines


def _table(
    columns: Sequence[_Column],
    rows: Sequence[Sequence[str]],
    look: Look,
    width: int,
    empty: str,
    left_out: int,
    styles: Sequence[str] = (),
) -> list[Text]:
    if not rows:
        title = columns[0].title.split()[0]
        return [_fit(look.text((f"{title:13}", "dim"), (empty, "")), width)]
    taken = sum(column.width or 0 for column in columns) + 2 * (len(columns) - 1)
    widths = [column.width if column.width is not None else max(4, width - taken) for column in columns]
    lines = [_row([column.title for column in columns], columns, widths, look, "bold", width)]
    for number, row in enumerate(rows):
        lines.append(_row(row, columns, widths, look, styles[number] if styles else "", width))
    if left_out:
        lines.append(_fit(look.text((f"... and {left_out} more", "dim")), width))
    return lines


def _row(
    cells: Sequence[str], columns: Sequence[_Column], widths: Sequence[int], look: Look, style: str, width: int
) -> Text:
    line = Text(no_wrap=True)
    for cell, column, cell_width in zip(cells, columns, widths, strict=True):
        text = Text(cell, look.style(style), no_wrap=True)
        text.truncate(cell_width, overflow="ellipsis")
        # By cells, not by letters: some letters take two.
        missing = cell_width - text.cell_len
        pad: Callable[[int], None] = text.pad_left if column.is_right else text.pad_right
        pad(max(0, missing))
        line.append_text(text)
        line.append("  ")
    return _fit(line, width)


def _fit(line: Text, width: int) -> Text:
    line.rstrip()
    line.truncate(max(1, width), overflow="ellipsis")
    return line


def wrapped(line: Text, width: int) -> list[Text]:
    """A sentence over as many lines as it needs."""
    words = line.plain.split(" ")
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    style = line.spans[0].style if line.spans else ""
    return [_fit(Text(text, style, no_wrap=True), width) for text in lines]
