"""The jobs of a pipeline as its page shows them: by stage, copies of a job together, what failed first."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minici import CANCELABLE, PLAYABLE, RETRYABLE, Row, composite_status, status_words

from .frame import template
from .markup import Markup, clock, run_time

#: What a failure reason means, as the end of a sentence that begins with "Failed: ".
FAILURES = {
    'script_failure': 'the script ended with an error',
    'runner_system_failure': 'the runner broke down',
    'stuck_or_timeout_failure': 'the runner fell silent, or the job ran for too long',
    'job_execution_timeout': 'the job ran for longer than its timeout',
    'missing_dependency_failure': 'artifacts that the job depends on are gone',
    'runner_unsupported': 'the runner cannot do what the job asks for',
    'image_pull_failure': 'the image could not be pulled',
    'trace_size_exceeded': 'the log outgrew max_trace_size',
    'claims_unanswered': 'no runner that took the job ever answered',
    'unknown_failure': 'the runner gave no reason',
}
ICONS = {'cancel': '\u2715', 'retry': '\u21bb', 'play': '\u25b6\ufe0e'}
PLAY_LABELS = {'manual': 'Run', 'scheduled': 'Run now'}
#: The kinds that jobs are counted by, most urgent first, and the statuses that each stands for.
KINDS = {
    'failed': ('failed',),
    'warning': ('warning',),
    'running': ('running', 'canceling', 'preparing'),
    'manual': ('manual',),
    'waiting': ('created', 'pending', 'waiting_for_resource', 'scheduled'),
    'passed': ('success',),
    'canceled': ('canceled',),
    'skipped': ('skipped',),
}
KIND_OF = {status: kind for kind, statuses in KINDS.items() for status in statuses}
ORDER = {kind: place for place, kind in enumerate(KINDS)}
#: Kinds that stay in view, however many jobs a pipeline has.
URGENT = ('failed', 'warning', 'running', 'manual')
#: Statuses of jobs for which a pipeline offers to be retried.
UNSUCCESSFUL = ('failed', 'warning', 'canceled')
#: A pipeline of more jobs than this folds what has passed or waits, and names its failures on top.
LARGE = 40
#: Copies of one job that a small pipeline shows at once.
SHOWN_COPIES = 6
#: What tells the copies of a job apart: `test 1/3`, `test: [linux, 3.12]`.
COPY = re.compile(r'(?s)(.+?)[\s:]+(\[.*\]|\d+[\s:/\\]+\d+)')


def job_mark(job: Row) -> str:
    """Return the status that a job's mark shows: an allowed failure only warns."""
    if job['status'] == 'failed' and job['allow_failure']:
        return 'warning'
    return job['status']


def job_actions(job: Row) -> list[tuple[str, str, str]]:
    """Return what can be done with a job: for each verb its label and the question to confirm first."""
    actions = []
    if job['status'] in PLAYABLE:
        question = job['manual_confirmation'] or ''
        actions.append(('play', PLAY_LABELS[job['status']], question))
    if job['status'] in CANCELABLE and job['status'] != 'manual':
        actions.append(('cancel', 'Cancel', ''))
    if job['status'] in RETRYABLE and not job['retried']:
        actions.append(('retry', 'Retry', ''))
    return actions


@dataclass(eq=False)
class Card:
    """One job as a page shows it."""

    number: int
    name: str
    stage: str
    status: str                     # as `job_mark` returns it
    label: str                      # the name, or what tells this copy from the others
    reason: str = ''                # why it waits or failed, unless its stage says so
    held: bool = False              # whether it waits for the stages before its own
    needs: str = ''
    since: float | None = None      # when it started, while it runs
    took: str = ''                  # how long it ran, once it is finished
    share: int = 0                  # of the longest run in this pipeline, in percent
    action: tuple[str, str, str] | None = None
    downstream: dict[str, Any] | None = None    # id, status and project path of the pipeline that it has started

    @property
    def kind(self) -> str:
        """The kind that the job is counted by."""
        return KIND_OF[self.status]


@dataclass
class Group:
    """Jobs that are shown together: the copies of one job, or those of a kind in a large pipeline."""

    name: str               # of the copies, '' for a kind
    cards: list[Card]
    open: bool = False
    key: str = ''           # stays the same while the page is open

    @property
    def counts(self) -> list[tuple[str, int]]:
        """How many cards there are of each kind."""
        return count_kinds(self.cards)

    @property
    def urgent(self) -> list[Card]:
        """The cards that stay in view when the group is folded."""
        return [card for card in self.cards if not self.open and card.kind == 'failed']

    @property
    def folded(self) -> list[Card]:
        """The other cards."""
        shown = self.urgent
        return [card for card in self.cards if card not in shown]


@dataclass
class Stage:
    """A stage: its jobs in groups, and what it waits for."""

    name: str
    status: str
    cards: list[Card]
    waits: list[tuple[int, str]]    # how many jobs wait for the same reason, and the reason
    groups: list[Group] = field(default_factory=list)
    singles: list[Card] = field(default_factory=list)

    @property
    def counts(self) -> list[tuple[str, int]]:
        """How many jobs there are of each kind."""
        return count_kinds(self.cards)


def count_kinds(cards: Iterable[Card]) -> list[tuple[str, int]]:
    """Return how many cards there are of each kind, most urgent first."""
    counts = collections.Counter(card.kind for card in cards)
    return [(kind, counts[kind]) for kind in KINDS if counts[kind]]


def urgency(card: Card) -> int:
    """Return the place of a card's kind, most urgent first."""
    return ORDER[card.kind]


def shown_reason(job: Row, reason: str | None) -> str:
    """Return why a job waits, or why it failed unless its script did."""
    if reason:
        return reason
    failure = job['failure_reason']
    if job['status'] != 'failed' or failure in (None, 'script_failure'):
        return ''
    return FAILURES.get(failure, failure)


def failure_text(job: Row) -> str:
    """Return in a sentence why a job failed."""
    if job['failure_message']:
        return f'Failed: {job["failure_message"]}.'
    reason = FAILURES.get(job['failure_reason'], job['failure_reason'])
    code = job['exit_code']
    if code is None:
        return f'Failed: {reason}.'
    if job['failure_reason'] == 'script_failure':
        return f'Failed: the script exited with code {code}.'
    return f'Failed: {reason} (exit code {code}).'


def needed_names(job: Row) -> str:
    """Return the names of the jobs that a job needs, '' when it waits for the stages before."""
    if not job['needs']:
        return ''
    return ', '.join(json.loads(job['needs'])) or 'nothing'


def make_cards(jobs: Sequence[Row], reasons: Sequence[str | None]) -> list[Card]:
    """Return the cards of a pipeline's jobs; `reasons` say why each of them waits."""
    longest = max((run_time(job) for job in jobs), default=0) or 1
    return [make_card(job, reason, longest) for job, reason in zip(jobs, reasons, strict=True)]


def make_card(job: Row, reason: str | None, longest: float) -> Card:
    """Return the card of a job that waits for a `reason`; `longest` is the longest run of its pipeline in seconds."""
    name = job['name']
    card = Card(job['id'], name, job['stage'], job_mark(job), name)
    card.reason = shown_reason(job, reason)
    card.needs = needed_names(job)
    card.held = job['status'] == 'created' and not job['needs']
    card.action = next(iter(job_actions(job)), None)
    card.downstream = json.loads(job['downstream'] or 'null')
    if job['started_at'] and job['finished_at'] is None:
        card.since = job['started_at']
    elif job['started_at']:
        seconds = run_time(job)
        card.took = clock(seconds)
        card.share = round(100 * seconds / longest)
    return card


def make_stages(cards: Sequence[Card], *, large: bool) -> list[Stage]:
    """Return the stages of a pipeline; a `large` one folds what is not urgent."""
    stages: list[Stage] = []
    unfinished: list[str] = []
    for name, members in itertools.groupby(cards, lambda card: card.stage):
        stage = make_stage(name, list(members), unfinished)
        group_copies(stage, large=large)
        if large:
            fold_kinds(stage)
        stage.groups.sort(key=lambda group: ORDER[group.counts[0][0]])
        stages.append(stage)
        if any(card.kind in ('running', 'waiting') for card in stage.cards):
            unfinished.append(name)
    return stages


def make_stage(name: str, cards: list[Card], unfinished: Sequence[str]) -> Stage:
    """Return a stage that says once what several of its jobs wait for; `unfinished` stages stand before it."""
    status = composite_status(map(effect, cards))
    waits = []
    for reason, waiting in shared_reasons(cards).items():
        told = reason
        if unfinished and any(card.held for card in waiting):
            stages = ', '.join(unfinished)
            told = f'waiting for {stages}'
        waits.append((len(waiting), told))
        for card in waiting:
            card.reason = ''
    return Stage(name, status, cards, waits)


def shared_reasons(cards: Iterable[Card]) -> dict[str, list[Card]]:
    """Return the reasons for which several jobs wait, and these jobs."""
    reasons: dict[str, list[Card]] = {}
    for card in cards:
        if card.kind == 'waiting' and card.reason:
            reasons.setdefault(card.reason, []).append(card)
    return {reason: waiting for reason, waiting in reasons.items() if len(waiting) > 1}


def effect(card: Card) -> tuple[str, bool]:
    """Return the status of a card's job, and whether its failure is allowed."""
    if card.status == 'warning':
        return 'failed', True
    return card.status, False


def group_copies(stage: Stage, *, large: bool) -> None:
    """Sort the cards of a stage into copies of one job and single jobs."""
    for family, copies in by_family(stage.cards).items():
        if len(copies) == 1:
            stage.singles += copies
            continue
        for card in copies:
            suffix = card.name[len(family):]
            card.label = suffix.lstrip(' :')
        copies.sort(key=urgency)
        group = Group(family, copies, key=f'{stage.name}/{family}')
        group.open = not large and len(copies) <= SHOWN_COPIES
        stage.groups.append(group)


def by_family(cards: Iterable[Card]) -> dict[str, list[Card]]:
    """Return cards by the name that copies of a job share."""
    families: dict[str, list[Card]] = {}
    for card in cards:
        family = card.name
        copy = COPY.fullmatch(family)
        if copy:
            family = copy[1]
        families.setdefault(family, []).append(card)
    return families


def fold_kinds(stage: Stage) -> None:
    """Fold the single jobs of a stage that are not urgent, those of each kind together."""
    kinds: dict[str, list[Card]] = {}
    for card in stage.singles:
        kinds.setdefault(card.kind, []).append(card)
    stage.singles = []
    for kind, cards in kinds.items():
        if kind in URGENT or len(cards) == 1:
            stage.singles += cards
        else:
            stage.groups.append(Group('', cards, key=f'{stage.name}/{kind}'))
    stage.singles.sort(key=urgency)


# -- markup

#: Stands in kept markup for the time that a running job has taken so far.
CLOCK = '\0'


@dataclass
class Board:
    """The markup of a pipeline's jobs; it stays the same until one of them changes."""

    kinds: Markup               # how many jobs there are of each kind
    pieces: Sequence[str]       # the jobs; between two pieces belongs the clock of a running one
    since: Sequence[float]      # when those running jobs started
    total: int
    large: bool
    may_retry: bool = False

    def jobs(self, now: float) -> Markup:
        """Return the markup of the jobs, with their clocks as of now."""
        clocks = [clock(now - started) for started in self.since]
        pairs = itertools.zip_longest(self.pieces, clocks, fillvalue='')
        return Markup(''.join(itertools.chain.from_iterable(pairs)))


@functools.lru_cache(maxsize=32)
def draw_board(jobs: tuple[Row, ...], reasons: tuple[str | None, ...], here: str, mounted: str, owner: bool,
               wanted: str, name: str) -> Board:
    """Return the board of a pipeline, drawn once for each state of its jobs.

    `reasons` say why each job waits. `here` is the address of the pipeline, below `mounted`, that of all pages.
    `wanted` is a kind and `name` a part of the names of the jobs to show, '' for all.
    """
    cards = make_cards(jobs, reasons)
    filtered = bool(wanted or name)
    large = len(cards) > LARGE
    part = name.lower()
    shown = [card for card in cards if wanted in ('', card.kind) and part in card.name.lower()]
    names = dict(here=here, filtered=filtered)
    counts = count_kinds(cards)
    kinds = template('kinds').render(names, counts=counts, statuses=KINDS, wanted=wanted)
    drawing = Drawing(here.rpartition('/pipelines/')[0], mounted, owner)
    stages = make_stages(shown, large=large and not filtered)
    failures = []
    if large and not filtered:
        failures = [card for card in cards if card.kind == 'failed']
    text = template('board').render(names, failures=failures, stages=stages, draw=drawing.draw)
    board = Board(Markup(kinds), text.split(CLOCK), drawing.since, len(cards), large)
    board.may_retry = any(card.status in UNSUCCESSFUL for card in cards)
    return board


class Drawing:
    """Draws cards below the address of a project's pages, and notes when the jobs that still run began."""

    def __init__(self, base: str, mounted: str, owner: bool) -> None:
        self._base = base
        self._mounted = mounted
        self._owner = owner
        self._template = template('card')
        self.since: list[float] = []

    def draw(self, card: Card, label: str) -> Markup:
        """Return the markup of a card."""
        icon, took = '', card.took
        if card.action and self._owner:
            icon = ICONS[card.action[0]]
        if card.since:
            took = CLOCK
            self.since.append(card.since)
        here = f'{self._base}/jobs/{card.number}'
        shown_status = status_words(card.status)
        names = dict(card=card, label=label, here=here, icon=icon, took=took)
        text = self._template.render(names, word=shown_status, root=self._mounted)
        return Markup(text)
