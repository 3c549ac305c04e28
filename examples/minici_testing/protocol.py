"""What a well-behaved runner does, as numbered rules that `Tape.assert_protocol` checks.

1. The first piece of a trace starts at 0, and each further piece where the last acknowledged one ended.
2. After 416 the next piece starts at the size that the answer's `Range` gave.
3. A piece has as many bytes as its `Content-Range` says.
4. The final state is sent until it is acknowledged, and not again after that.
5. Nothing of a job is sent once its final state is acknowledged.
6. Once an answer said that a job is canceled or gone, its runner stops: no output, no artifacts, one final state.
7. A running job is heard of at least every ten minutes, by the server's clock.
8. An answer of 5xx, or none, is followed by the same request again, as long as the runner goes on at all.
9. A job's token is used for that job alone.
10. A job that was claimed is brought to a final state, or its runner was told to stop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tape import Exchange

SILENCE = 600           # seconds of rule 7
JOB = re.compile(r'/(?:jobs|builds)/([0-9]+)(?:/(trace|trace\.txt|artifacts))?(?:\.json)?$')
CLAIM = re.compile(r'/(?:jobs/request|builds/register)(?:\.json)?$')
#: The first line of each rule above, by number.
RULES = {int(number): text for number, text in re.findall(r'^([0-9]+)\. (.+)$', __doc__ or '', re.M)}
FINAL = ('success', 'failed')
STOPPED = ('canceled', 'failed')     # `canceling` lets a job end in good order


class ProtocolError(AssertionError):
    """A runner on the tape broke a rule; `broken` lists the numbers of the rules."""

    def __init__(self, breaches: Sequence[Breach]) -> None:
        self.broken = sorted({breach.rule for breach in breaches})
        lines = [str(breach) for breach in breaches]
        super().__init__('\n'.join(['the runner does not keep to the protocol:', *lines]))


@dataclass
class Breach:
    """A rule that was broken, by which exchange, and how."""

    rule: int
    exchange: Exchange
    what: str

    def __str__(self) -> str:
        return f'  rule {self.rule} ({RULES[self.rule]})\n    {self.what}\n    {self.exchange}'


@dataclass
class Job:
    """What is known of a job at one point of the tape."""

    id: str
    token: str
    heard: float
    size: int = 0               # bytes of the trace that were acknowledged
    told: int | None = None     # the size that a 416 gave
    finished: bool = False      # whether a final state was acknowledged
    stopped: bool = False       # whether an answer said that the job is over
    last_words: int = 0         # final states sent after that
    unanswered: Exchange | None = None
    last: Exchange | None = None
    breaches: list[Breach] = field(default_factory=list)

    def wrong(self, rule: int, exchange: Exchange, what: str) -> None:
        """Note that a rule was broken."""
        self.breaches.append(Breach(rule, exchange, what))


def check_protocol(exchanges: Iterable[Exchange], except_rules: Iterable[int] = ()) -> None:
    """Raise ProtocolError when a runner broke any of the rules but those in `except_rules`."""
    passed = set(except_rules)
    breaches = [breach for breach in find_breaches(exchanges) if breach.rule not in passed]
    if breaches:
        raise ProtocolError(breaches)


def find_breaches(exchanges: Iterable[Exchange]) -> list[Breach]:
    """Return every breach of a rule, in the order of the tape."""
    jobs: dict[str, Job] = {}
    breaches = []
    for exchange in exchanges:
        if CLAIM.search(exchange.path):
            jobs.update((job.token, job) for job in claimed(exchange))
            continue
        match = JOB.search(exchange.path)
        job = jobs.get(token_of(exchange)) if match else None
        if job is None or match is None or exchange.method == 'GET':
            continue
        if job.id != match[1]:
            job.wrong(9, exchange, f'the token is that of job {job.id}')
            continue
        follow(job, exchange, match[2] or '')
    for job in jobs.values():
        end(job)
        breaches += job.breaches
    return sorted(breaches, key=lambda breach: (breach.exchange.number, breach.rule))


def claimed(exchange: Exchange) -> Iterator[Job]:
    """Yield the job that an answer handed out, if it did."""
    job = exchange.answer_json
    if exchange.status == 201 and isinstance(job, dict):
        yield Job(str(job['id']), job['token'], exchange.moment, last=exchange)


def token_of(exchange: Exchange) -> str:
    """Return the name of the job token that a request came with."""
    header = exchange.header('Job-Token') or exchange.header('Build-Token')
    return str(header or exchange.parameters.get('token') or '')


def follow(job: Job, exchange: Exchange, part: str) -> None:
    """Check one request about a job, and learn from its answer."""
    if exchange.moment - job.heard > SILENCE:
        job.wrong(7, exchange, f'nothing was heard of the job for {exchange.moment - job.heard:.0f} s')
    job.heard = exchange.moment
    state = exchange.parameters.get('state') if exchange.method == 'PUT' else None
    repeated = is_repeated(job, exchange)
    if job.finished:
        again = state in FINAL
        job.wrong(4 if again else 5, exchange, 'the final state had been acknowledged before')
    elif job.stopped:
        check_stopped(job, exchange, state)
    elif not repeated and job.unanswered is not None:
        job.wrong(8, exchange, f'#{job.unanswered.number} had no good answer and was not repeated')
    if exchange.method == 'PATCH':
        check_piece(job, exchange)
    learn(job, exchange, state)


def is_repeated(job: Job, exchange: Exchange) -> bool:
    """Tell whether a request is the one again that had no good answer."""
    before = job.unanswered
    return before is not None and (before.method, before.path) == (exchange.method, exchange.path)


def check_stopped(job: Job, exchange: Exchange, state: object) -> None:
    """Check a request about a job whose runner has been told that it is over."""
    if state in FINAL:
        job.last_words += 1
    output = exchange.method == 'PATCH' and exchange.size > 0
    if output or exchange.method == 'POST' or job.last_words > 1:
        job.wrong(6, exchange, 'its runner had been told that the job is over')


def check_piece(job: Job, exchange: Exchange) -> None:
    """Check where a piece of the trace starts and how long it is."""
    match = re.match(r'\s*([0-9]+)-([0-9]*)', exchange.header('Content-Range') or '')
    if match is None:
        job.wrong(1, exchange, 'it has no Content-Range')
        return
    start = int(match[1])
    if job.told is not None and start != job.told:
        job.wrong(2, exchange, f'it starts at {start}, the server had asked for {job.told}')
    elif job.told is None and start != job.size:
        job.wrong(1, exchange, f'it starts at {start}, the acknowledged trace ends at {job.size}')
    length = int(match[2]) - start if match[2] else exchange.size
    if exchange.size and length not in (exchange.size, exchange.size - 1):     # old runners count the end exclusive
        job.wrong(3, exchange, f'Content-Range is {match[0].strip()}, the body has {exchange.size} bytes')


def learn(job: Job, exchange: Exchange, state: object) -> None:
    """Take down what the answer told the runner."""
    job.last = exchange
    failed = exchange.status == 0 or exchange.status >= 500
    job.unanswered = exchange if failed else None
    if failed:
        return
    acknowledged = re.fullmatch('0-([0-9]+)', exchange.answer_header('Range') or '')
    if exchange.method == 'PATCH' and acknowledged:
        job.size = int(acknowledged[1])
        job.told = job.size if exchange.status == 416 else None
    if state in FINAL and exchange.status == 200:
        job.finished = True
    status = exchange.answer_header('Job-Status') or exchange.answer_header('Build-Status')
    gone = exchange.status in (403, 404)
    if not job.finished and (gone or status in STOPPED):
        job.stopped = True


def end(job: Job) -> None:
    """Check how a job was left at the end of the tape."""
    if job.finished or job.stopped or job.last is None:
        return
    if job.unanswered is None:
        job.wrong(10, job.last, f'job {job.id} was claimed and never finished')
    else:
        job.wrong(8, job.unanswered, 'it had no good answer and was not repeated')


