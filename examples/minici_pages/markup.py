"""The pieces of markup that several pages are made of: status marks, moments, durations, tags."""

from __future__ import annotations

import html
import json
import re
import statistics
from collections.abc import Mapping, Sequence

from minici import GIB, KIB, MIB, Row, iso_time

#: The strokes in the disc that stands for a status, as an SVG path.
MARKS = {
    'success': 'M4.7 8.3l2.2 2.2 4.4-4.8',
    'failed': 'M5.4 5.4l5.2 5.2m0-5.2l-5.2 5.2',
    'warning': 'M8 4.2v4.6m0 2.2v.6',
    'running': 'M8 4v4l2.8 1.7',
    'preparing': 'M8 7.9v.2',
    'created': 'M8 7.9v.2',
    'pending': 'M6.2 5.3v5.4m3.6-5.4v5.4',
    'waiting_for_resource': 'M6.2 5.3v5.4m3.6-5.4v5.4',
    'canceling': 'M4.8 11.2l6.4-6.4',
    'canceled': 'M4.8 11.2l6.4-6.4',
    'manual': 'M6.3 4.9v6.2L11.3 8z',
    'skipped': 'M4.6 5.3L7.3 8l-2.7 2.7m4-5.4L11.3 8l-2.7 2.7',
    'scheduled': 'M8 4v4l2.8 1.7',
}
SIZES = ((GIB, 'GiB'), (MIB, 'MiB'), (KIB, 'KiB'))


class Markup(str):
    """A text that is markup already; templates escape every other value."""

    __slots__ = ()

    def __html__(self) -> Markup:
        """Return the markup, as libraries for templates agree to ask for it."""
        return self


#: What a text must not have in markup.
SPECIAL = re.compile('[&<>"\']')


def escape(value: object) -> str:
    """Return a value as markup: what has `__html__` as that says, None as nothing, anything else escaped."""
    if hasattr(value, '__html__'):
        return value.__html__()
    if value is None:
        return ''
    text = str(value)
    if SPECIAL.search(text):    # most texts have nothing to escape, and a page has hundreds
        return html.escape(text)
    return text


def mark(status: str) -> Markup:
    """Return the disc that stands for a status."""
    return DISCS[status]


def draw_disc(status: str) -> Markup:
    """Return the disc of a status as inline SVG, which the style colours."""
    return Markup(f'<svg class="mark {status}" viewBox="0 0 16 16" aria-hidden="true">'
                  f'<circle cx="8" cy="8" r="7.5"/><path d="{MARKS[status]}"/></svg>')


DISCS = {status: draw_disc(status) for status in MARKS}


def moment(seconds: float | None) -> Markup:
    """Return a moment in UTC; the script turns it into an age."""
    text = iso_time(seconds, 'seconds')
    if not text:
        return Markup()
    day, clock_time = text[:10], text[11:16]
    return Markup(f'<time datetime="{text}">{day} {clock_time} UTC</time>')


def clock(seconds: float) -> str:
    """Return a duration in seconds as a clock shows it: ``4:05`` or ``1:04:05``."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    if minutes < 60:
        return f'{minutes}:{rest:02d}'
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{rest:02d}'


def span(row: Row, now: float) -> Markup:
    """Return how long a job or pipeline took; the script keeps counting for one that still runs."""
    started, finished = row['started_at'], row['finished_at']
    if not started:
        return Markup()
    if finished is None:
        return Markup(f'<span class="span" data-since="{int(started)}">{clock(now - started)}</span>')
    return Markup(f'<span class="span">{clock(finished - started)}</span>')


def about(info: Mapping[str, object]) -> str:
    """Return in one line what a runner says about itself."""
    names = ('name', 'version', 'platform', 'architecture', 'executor')
    return ' '.join(str(info[name]) for name in names if info.get(name))


def tag_marks(row: Row) -> Markup:
    """Return the tags of a runner or job."""
    tags = json.loads(row['tags'])
    marks = [f'<span class="tag">{html.escape(tag)}</span>' for tag in tags]
    return Markup(' '.join(marks))


def size_text(size: int) -> str:
    """Return a number of bytes in the unit that people would choose."""
    for unit, name in SIZES:
        if size >= unit:
            return f'{size / unit:.1f} {name}'
    return f'{size} B'


def trend(pipelines: Sequence[Row]) -> Markup:
    """Return a line of bars for pipelines, newest first: how long each took, in the colour of its status."""
    bars = []
    times = [run_time(pipeline) for pipeline in pipelines]
    longest = max(times, default=0) or 1
    for place, (pipeline, seconds) in enumerate(zip(reversed(pipelines), reversed(times), strict=True)):
        height = 4 + round(18 * seconds / longest)
        status = pipeline['status']
        bars.append(f'<rect class="{status}" x="{7 * place}" y="{22 - height}" width="5" height="{height}"/>')
    width = 7 * len(pipelines)
    told, drawn = trend_text(pipelines), ''.join(bars)
    return Markup(f'<svg class="trend" viewBox="0 0 {width} 22" width="{width}" height="22" role="img" '
                  f'aria-label="{escape(told)}">{drawn}</svg>')


def trend_text(pipelines: Sequence[Row]) -> str:
    """Return in words how the last pipelines went: how many passed, and how long one took."""
    passed = sum(pipeline['status'] == 'success' for pipeline in pipelines)
    times = [seconds for seconds in map(run_time, pipelines) if seconds]
    middle = clock(statistics.median(times)) if times else '0:00'
    return f'{passed} of the last {len(pipelines)} passed; half of them took less than {middle}'


def run_time(row: Row) -> float:
    """Return for how many seconds a finished job or pipeline ran, 0 without a run."""
    if not row['started_at'] or not row['finished_at']:
        return 0
    return max(0, row['finished_at'] - row['started_at'])
