"""minici: a GitLab-compatible CI coordinator in one file.

Stock GitLab runners of every era, from ``gitlab-ci-multi-runner`` 1.x to today's ``gitlab-runner``,
register here, claim jobs, stream traces and exchange artifacts; GitLab API clients list, cancel,
retry, erase and play them. Run it::

    python minici.py --db ci.sqlite

or embed it::

    import minici

    ci = minici.Coordinator()                       # a temporary directory, gone on close
    project = ci.create_project('group/demo')
    pipeline = ci.create_pipeline(project, ref='main', sha='1' * 40,
                                  content={'test': {'script': ['make test']}})
    with minici.Server(ci, port=0) as server:       # a real socket; point any runner at server.url
        print(server.url, ci.registration_token)
    ci.close()

The sections, each using only those above it:

    ground      Settings, Errors, Vocabulary
    language    Pipeline rules, YAML, Expressions, Keywords, Includes, Pipeline files, Repositories,
                Library, Compilers
    storage     Schema, Database, Traces, Artifacts, Reports
    domain      Store, Accounts, Projects, Runners, Jobs, Dependencies, Tests, Waiting, Processing,
                Compiling, Pipelines, Bridges, Schedules, Releases, Retention, Queue, Uploads, Checks, Backups,
                Coordinator
    HTTP        Routes, Request bodies, Calls, Responses, Guards, Entities, Shared responses, Runner API,
                Legacy CI API, Jobs and pipelines API, Administration API, Schedules API,
                Webhooks, Git over HTTP, Repository API, Operations, Application, Server
    command     Local runner, Local runs, Runs by GitLab Runner, Command line
"""

from __future__ import annotations

if __name__ == '__main__':  # hand over to the imported module: there is one of it, and Python keeps its bytecode
    import importlib
    import sys
    try:
        importlib.import_module('minici')
    except ModuleNotFoundError:
        sys.exit(f'minici: {sys.exc_info()[1]}. Install what minici needs with\n'
                 f'  {sys.executable} -m pip install bottle cronsim multipart PyYAML regex waitress')
    sys.exit(sys.modules['minici'].main())

import atexit
import base64
import bisect
import codecs
import collections
import contextlib
import copy
import dataclasses
import errno
import functools
import hashlib
import hmac
import importlib.machinery
import importlib.util
import inspect
import io
import ipaddress
import itertools
import json
import logging
import mimetypes
import operator
import os
import pickle
import re
import secrets
import select
import selectors
import shutil
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
import urllib.parse
import warnings
import zlib
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias, cast, runtime_checkable

import bottle
import waitress.adjustments
import waitress.buffers
import waitress.channel
import waitress.parser
import waitress.server
import waitress.task

try:
    import fcntl
except ImportError:  # not POSIX: one process per database then, the in-process locks still hold
    fcntl = None  # type: ignore[assignment]


class Later(types.ModuleType):
    """A module that is imported when it is first used: an idle server needs none of these."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

    def __getattr__(self, name: str) -> Any:
        module = importlib.import_module(self.__name__)
        vars(self).update(vars(module))
        return getattr(module, name)


if TYPE_CHECKING:
    import argparse
    import difflib
    import graphlib
    import gzip
    import lzma
    import shlex
    import zipfile
    import zoneinfo
    from concurrent import futures
    from http.client import HTTPMessage, HTTPResponse
    from urllib.request import Request
    from xml.parsers import expat

    import cronsim
    import multipart
    import regex
    import yaml
else:
    argparse = Later('argparse')
    graphlib = Later('graphlib')
    gzip = Later('gzip')
    lzma = Later('lzma')
    difflib = Later('difflib')
    shlex = Later('shlex')
    zipfile = Later('zipfile')
    zoneinfo = Later('zoneinfo')
    futures = Later('concurrent.futures')
    expat = Later('xml.parsers.expat')
    cronsim = Later('cronsim')
    multipart = Later('multipart')
    regex = Later('regex')
    try:
        yaml = Later('yaml')
    except ModuleNotFoundError:  # the extra `yaml` is not installed: pipeline files are then JSON
        yaml = None

__version__ = '0.1.0'
__all__ = [
    'BadRequest', 'Busy', 'CIError', 'Conflict', 'Coordinator', 'Forbidden', 'JobSpec', 'MethodNotAllowed',
    'NotFound', 'PipelineSpec', 'RangeMismatch', 'Server', 'Settings', 'TooLarge', 'Unauthorized',
    'compile_pipeline', 'create_app', 'main',
]

log = logging.getLogger('minici')
access_log = logging.getLogger('minici.access')
JSON = dict[str, Any]       # a JSON object
Members = Mapping[str, Any]  # one that is only read
Record = Members | sqlite3.Row      # values by name, whether read from the database or not


# Settings #####################################################################################

KIB, MIB, GIB = 1024, 1024 ** 2, 1024 ** 3

MAX_PARAMETERS_BODY = 1 * MIB       # bytes of a JSON or form body, except on a job's PUT
MAX_UNTRUSTED_BODY = 64 * KIB       # bytes of a body that are read before a good token is known
MAX_UNTRUSTED_MEMORY = 16 * MIB     # bytes of such bodies that a server holds together
MAX_HEADERS = 32 * KIB              # bytes of a request's headers
MAX_STRANGERS = 100                 # connections of one address that have not brought a good token yet
ACCEPTED_AT_ONCE = 20               # waiting connections that are accepted before the others have their turn
HEADER_TIMEOUT = 10                 # seconds a client has for the headers of a request
MIN_BODY_PACE = 1 * KIB             # bytes a second that a body must keep up
DRAIN_TIMEOUT = 30                  # seconds that a refused request is read on, so that its client sees the answer
MAX_DRAINED = 64 * MIB              # bytes that are read then, at most
STALL_TIMEOUT = 60                  # seconds without taking any of its answer after which a client is given up
IDLE_TIMEOUT = 120                  # seconds that a connection may stay open without a request
MAX_TRACE_BODY = 32 * MIB           # bytes of a job's PUT: old runners send the whole log there
MAX_FIELD = 64 * KIB                # bytes of one ordinary field beside an uploaded file
MAX_FIELDS = 20                     # parts of one upload
MAX_ZIP_ENTRIES = 100_000           # entries of an archive that is opened for a single file
MAX_ZIP_DIRECTORY = 16 * MIB        # bytes of that archive's directory
MAX_PLAIN_TRACE = 32 * MIB          # bytes of a trace that are shown as plain text; of a longer one, its end
MAX_CLAIM_ATTEMPTS = 3              # times a job is handed out before its claims count as lost
MAX_TAGS = 50                       # tags of a runner, GitLab's limit
MAX_MANAGERS = 1000                 # machines of one runner that are remembered, those that came last
MAX_SYSTEM_ID = 64                  # characters of such a machine's id, GitLab's limit
MAX_FEATURES = 100                  # features of a runner that are stored, each with so many characters at most
MANAGER_AGE = 7 * 86400             # seconds without a word after which such a machine is forgotten, as in GitLab
ONLINE_FOR = 3600                   # seconds since its last contact that a runner counts as online
USE_INTERVAL = 600                  # seconds between two writes of a private token's `last_used_at`
TOKEN_LIFETIME = 365 * 86400        # seconds until a private token expires that people make on a page
CONTACT_INTERVAL = 60               # seconds between two writes of a runner's `contacted_at`
SWEEP_INTERVAL = 30                 # seconds between two sweeps made by `request_job`
HOOK_TIMEOUT = 60                   # seconds that --hook's command may take
MAX_HOOK_OUTPUT = 500               # bytes of its errors that are logged
REFUSALS_NOTED = 1000               # addresses and routes whose last refusal is remembered, so that it is logged once
UPKEEP_INTERVAL = 5                 # seconds of real time between two sweeps made by a server
TIDY_INTERVAL = 3600                # seconds between two removals of old pipelines and leftover files
REFS_SEEN_FOR = 86400               # seconds until a repository is asked again whether a branch exists
REFS_TIMEOUT = 60                   # seconds that asking all repositories about their branches may take
UNKNOWN_REFS = 100                  # refs of a project without a repository whose last success is kept
EVENTS_KEPT = 10_000                # status changes that are kept for callbacks that have not heard of them yet
DELETED_AT_ONCE = 50                # pipelines that are deleted in one transaction
BACKUP_TRIES = 5                    # copies of a database while artifacts are removed; then writers wait for one
VACUUMED_AT_ONCE = 500              # pages that are returned to the disk in one transaction
WATCHED_FOR = 60                    # seconds after its last reader that a trace counts as watched
MAX_TRACE_REFUSALS = 2              # times a runner is told to send a trace again that does not match
MAX_ARTIFACTS = 20                   # files of one job
MAX_UNPACKED = 64 * MIB             # bytes of a file out of an archive that may be packed beyond MAX_UNPACKED_RATIO
MAX_UNPACKED_RATIO = 100            # bytes of a larger one for each packed byte
MAX_DOTENV = 64 * KIB               # bytes of an unpacked dotenv report
LOCK_TIMEOUT = 3.0                  # seconds a writer waits for this process's other writers
BUSY_TIMEOUT = 3.0                  # seconds it then waits for other processes
RETRY_AFTER = 2                     # seconds a client is told to wait after a 503
GIT_TIMEOUT = 60                    # seconds that all git calls for one pipeline may take
MAX_GIT_SERVERS = 16                # fetching clients that are answered at the same time
MAX_GIT_CALLS = 300                 # calls of git for one pipeline
MAX_GIT_OUTPUT = 8 * MIB            # bytes that one call of git may print
MAX_GIT_PATHS = 20_000              # files of a commit, or files that differ between two
MAX_GIT_FILE = 2 * MIB              # bytes of one file that is read from a repository
MAX_DESCRIBED_REFS = 5000           # branches and tags whose commits are remembered
MAX_COMMIT_MESSAGE = 64 * KIB       # bytes of a commit's message that are kept
MAX_GIT_COMPLAINT = 16 * KIB        # bytes of what git complains about that are read
MAX_GIT_MEMORY = 512 * MIB          # bytes of memory of one git process, mapped files aside (Linux)
MAX_PATH = 4096                     # bytes of a path that a file of git's names
GIT_LOCAL_TIMEOUT = 600             # seconds one git call may take for the person at the command line
PATTERN_TIMEOUT = 5.0               # seconds all patterns of one pipeline may search
MAX_COMPILATIONS = 2                # pipeline files that one process compiles at a time
COMPILE_WAIT = 30                   # seconds that a further one waits for its turn
COMPILE_TIMEOUT = 5.0               # seconds of processor time that compiling one pipeline may take
COMPILE_PATIENCE = 60               # seconds without a word after which a process that compiles is given up
MAX_COMPILE_MEMORY = 256 * MIB      # bytes of memory that compiling one pipeline may take (Linux)
MAX_COMPILED = 64 * MIB             # bytes of a compiled pipeline on its way from that process
MAX_FILE_SIZE = 2 * MIB             # bytes of one pipeline file, GitLab's limit
MAX_FILE_DEPTH = 100                # levels of mappings and lists in it, GitLab's limit
MAX_FILE_NODES = 100_000            # values in a pipeline file once its aliases and references are expanded
MAX_FILE_TEXT = 16 * MIB            # characters in them
MAX_INCLUDES = 150                  # files that one pipeline may be made of, GitLab's limit
FETCH_TIMEOUT = 30                  # seconds that fetching an included file may take
MAX_CACHED_INCLUDES = 500           # fetched files that are kept
MAX_CHILD_LEVELS = 2                # levels of child pipelines, GitLab's limit
MAX_UPSTREAM = 20                   # pipelines that one may descend from
MAX_FAMILY = 1000                   # pipelines that may descend from one, GitLab's limit
MAX_KEY_FILES = 2                   # files that the key of a cache is made of, GitLab's limit
MAX_INPUT_OPTIONS = 50              # values that one input may choose from, GitLab's limit
MAX_CHILD_INCLUDES = 3              # files that one child pipeline may be made of directly, GitLab's limit
MAX_DEPTH = 11                      # levels of `extends` and of `!reference`, GitLab's limit
MAX_VARIABLE = 64 * KIB             # characters of a variable once what it names is put in
MAX_JOBS = 1000                     # jobs of one pipeline
MAX_SPECS = 16 * MIB                # characters of their scripts and variables
MAX_PARALLEL = 200                  # jobs that one `parallel` may make, GitLab's limit
MAX_NEEDS = 50                      # jobs that one job may need by name, GitLab's limit
MAX_JOB_TAGS = 49                   # tags of one job; GitLab wants fewer than 50
MAX_GLOBS = 50                      # paths of one `changes` or `exists`, GitLab's limit
MAX_CACHES = 4                      # caches of one job, GitLab's limit
MAX_FALLBACK_KEYS = 5               # keys that a cache may fall back to, GitLab's limit
MAX_PIPELINE_NAME = 255             # characters of the name of a pipeline, GitLab's limit
MAX_JOB_TIMEOUT = 30 * 86400        # seconds a job may ask for
MAX_START_IN = 7 * 86400            # seconds a job may be delayed
MAX_PROBLEMS = 20                   # messages about one file
SIGNED_IN_FOR = 30 * 86400          # seconds a browser stays signed in
COPY_CHUNK = 256 * KIB              # bytes moved at once between sockets and files
MAX_REPORT = 32 * MIB               # bytes of a job's unpacked test reports
MAX_REPORT_DEPTH = 100              # levels of elements in a test report
MAX_REPORT_TEXT = 8 * MIB           # characters of a job's test report that are stored
MAX_TEST_CASES = 20_000             # test cases of a job
MAX_TEST_NAME = 255                 # characters of a test's name, class, file or suite
MAX_TEST_OUTPUT = 64 * KIB          # characters of what a test case says about its failure
REPORT_TIMEOUT = 5.0                # seconds of processor time that reading a job's test reports may take
MAX_COUNTED = 10_000                # rows beyond which a list is served without totals, as GitLab does
WATCHED_INTERVAL = 3                # seconds between two PATCHes while somebody reads the trace
QUIET_INTERVAL = 30                 # seconds between two PATCHes while nobody does
MAX_DURATION = 1000 * 31557600      # seconds

DURATION_UNITS = {
    1: ('s', 'sec', 'secs', 'second', 'seconds'),
    60: ('m', 'min', 'mins', 'minute', 'minutes'),
    3600: ('h', 'hr', 'hrs', 'hour', 'hours'),
    86400: ('d', 'dy', 'day', 'days'),
    7 * 86400: ('w', 'wk', 'wks', 'week', 'weeks'),
    30 * 86400: ('mo', 'mos', 'month', 'months'),
    31557600: ('y', 'yr', 'yrs', 'year', 'years'),
}
SECONDS_PER = {name: seconds for seconds, names in DURATION_UNITS.items() for name in names}
SMALL_NUMBERS = (
    'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven', 'twelve',
    'thirteen', 'fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen', 'nineteen')
TENS = ('twenty', 'thirty', 'forty', 'fifty', 'sixty', 'seventy', 'eighty', 'ninety')
NUMBER_WORD = re.compile(rf'\b(?:({"|".join(TENS)})(?:[ -]({"|".join(SMALL_NUMBERS[1:10])}))?|'
                         rf'({"|".join(SMALL_NUMBERS)}))\b')
DURATION_PART = re.compile(r'([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([a-z]+)(?:\s|,|(?<=\s)(?:and|with|plus)\b)*')


def parse_duration(text: str) -> float | None:
    """Return the seconds in a human duration, or None for one without end (``never``, ``0``).

    Takes what GitLab takes: ``7 days``, ``1h30m``, ``4 weeks and 3 days``, ``one hour``, ``4:01:01``, ``90``.
    Raises ValueError for anything else.
    """
    words = NUMBER_WORD.sub(number_of_words, text.strip().lower())
    if words == 'never':
        return None
    if clock := re.fullmatch(r'([0-9]{1,9}):([0-5]?[0-9])(?::([0-5]?[0-9]))?', words):
        large, small, seconds = clock.groups()
        if seconds is None:
            words = f'{large} minutes {small} seconds'
        else:
            words = f'{large} hours {small} minutes {seconds} seconds'
    if re.fullmatch(r'[0-9]{1,12}(\.[0-9]{1,6})?', words):
        words += 's'
    total = 0.0
    position = 0
    while position < len(words) or not words:
        match = DURATION_PART.match(words, position)
        if not match or match[2] not in SECONDS_PER:
            raise ValueError(f'{text[:80]!r} is not a duration such as "7 days", "1h 30m" or "never"')
        total += float(match[1]) * SECONDS_PER[match[2]]
        position = match.end()
    if total > MAX_DURATION:
        raise ValueError(f'{text[:80]!r} is longer than a thousand years; say "never"')
    return total or None


def number_of_words(match: re.Match[str]) -> str:
    """Return the digits of a number below a hundred that is written in words."""
    tens, unit, small = match.groups()
    if small:
        return str(SMALL_NUMBERS.index(small))
    number = 20 + 10 * TENS.index(tens)
    if unit:
        number += SMALL_NUMBERS.index(unit)
    return str(number)


def parse_timeout(value: float | str) -> float:
    """Return the seconds in a duration that has an end; raise ValueError for anything else."""
    seconds = parse_duration(str(value))
    if seconds is None:
        raise ValueError(f'{value!r} is not a time greater than zero')
    return seconds


def parse_lifetime(text: str) -> str:
    """Return `text` if it is a duration or ``never``; raise ValueError for anything else."""
    parse_duration(text)
    return text


def parse_size(value: int | str) -> int:
    """Return the bytes that `value` (``1048576``, ``100M``, ``1.5 GiB``) stands for, or raise ValueError."""
    text = str(value)
    match = re.fullmatch(r'\s*([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([kmg]?)(?:i?b)?\s*', text, re.I)
    if not match:
        raise ValueError(f'{text!r} is not a size such as "500K", "100M" or "2G"')
    unit = {'': 1, 'k': KIB, 'm': MIB, 'g': GIB}[match[2].lower()]
    return int(float(match[1]) * unit)


def parse_text(text: str) -> str:
    """Return `text`, which may be anything."""
    return text


def parse_reserve(text: str) -> str:
    """Return `text` if it is a size, a percentage, or several with commas; raise ValueError for anything else."""
    reserved_bytes(text, 0)
    return text


def reserved_bytes(text: str, total: int) -> int:
    """Return the bytes that a text such as ``512M, 2%`` reserves on a disk of `total` bytes: the smallest part.

    Raises ValueError for anything else.
    """
    parts = []
    for part in text.split(','):
        percent = re.fullmatch(r'\s*([0-9]{1,2}(?:\.[0-9]{1,3})?)\s*%\s*', part)
        parts.append(int(total * float(percent[1]) / 100) if percent else parse_size(part.strip()))
    return min(parts)


def parse_url(text: str) -> str:
    """Return an http address without a trailing slash, or '' for none; raise ValueError for anything else."""
    if text and not re.fullmatch(r'https?://[^\s/?#@"\'<>]+(/[^\s?#"\'<>]*)?', text):
        raise ValueError(f'{text!r} is not an address such as https://ci.example.com')
    return text.rstrip('/')


def parse_networks(text: str) -> str:
    """Return addresses and networks with commas between them; raise ValueError for anything else."""
    networks = [str(ipaddress.ip_network(part.strip(), strict=False)) for part in text.split(',') if part.strip()]
    return ','.join(networks)


def is_in_networks(address: str, networks: str) -> bool:
    """Tell whether an address belongs to one of the networks that `parse_networks` returned."""
    if not networks:
        return False
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(network) for network in networks.split(','))


def parse_hosts(text: str) -> str:
    """Return host names with commas between them, ``*`` for any; raise ValueError for anything else."""
    hosts = [host.strip().lower() for host in text.split(',') if host.strip()]
    for host in hosts:
        if not re.fullmatch(r'\*|[a-z0-9._-]+(:[0-9]{1,5})?', host):
            raise ValueError(f'{host!r} is not a host such as gitlab.com or files.example.com:8443')
    return ','.join(hosts)


def parse_include_map(text: str) -> str:
    """Return pairs ``PREFIX=URL`` with spaces between them; raise ValueError for anything else."""
    for pair in text.split():
        prefix, _, url = pair.partition('=')
        if not prefix or not re.match(r'(https?|ssh|git)://.|file:///', url):
            raise ValueError(f'{pair!r} is not PREFIX=URL, such as group/ci=https://gitlab.com/group/ci.git')
    return ' '.join(text.split())


def setting(default: Any, parser: Callable[[Any], Any], meaning: str) -> Any:
    """Declare one setting: its default, the parser of its values and what it means.

    The parser gets a text from the command line or a value from Python; it raises ValueError for a bad one.
    """
    return field(default=default, metadata={'parser': parser, 'help': meaning})


# Nobody compares two of these: without `eq`, as elsewhere, Python has less to compile at each import.
@dataclass(frozen=True, eq=False)
class Settings:
    """What an operator may change; each is a keyword of `Coordinator` and a command-line option."""

    max_trace_size: int = setting(100 * MIB, parse_size, 'bytes of one trace; a job that writes more fails')
    max_artifacts_size: int = setting(GIB, parse_size, 'bytes of one uploaded archive or report')
    artifacts_expire_in: str = setting('never', parse_lifetime, 'lifetime of artifacts that name none')
    stuck_timeout: float = setting(600, parse_timeout, 'silence after which a running job fails')
    claim_timeout: float = setting(120, parse_timeout, 'silence after which an unanswered claim is requeued')
    job_timeout: float = setting(3600, parse_timeout, 'time a job may run when neither it nor its project says')
    retention_age: str = setting('30 days', parse_lifetime, 'age at which finished pipelines are removed')
    retention_size: int = setting(10 * GIB, parse_size,
                                  'bytes of traces and artifacts beyond which the oldest are removed')
    disk_reserve: str = setting('512M, 2%', parse_reserve,
                                'free disk space that uploads leave for traces and states; of several the smallest')
    project_share: str = setting('50%', parse_reserve,
                                 'disk space that the artifacts of one project may take; of several the smallest')
    external_url: str = setting('', parse_url, 'address that people and runners use, when a proxy hides it')
    trusted_proxies: str = setting('', parse_networks, 'reverse proxies whose X-Forwarded-For is believed, '
                                                       'with commas: 10.0.0.2, 192.168.0.0/24')
    public: bool = setting(False, bool, 'let anybody read the pages and badges')
    public_imports_only: bool = setting(False, bool,
                                        'import and include from http and https addresses on the internet alone')
    no_registration_token: bool = setting(False, bool, 'refuse registration by token: people create runners instead')
    metrics_token: str = setting('', parse_text, 'secret that lets monitors on other machines read /-/metrics')
    include_hosts: str = setting('', parse_hosts, 'hosts that pipeline files may include from, with commas; * for any')
    include_map: str = setting('', parse_include_map, 'where included projects are that are not here: PREFIX=URL ...')
    access_log: bool = setting(False, bool, 'log one line for each request')

    @classmethod
    def read(cls, given: Members) -> Settings:
        """Return settings with the `given` values; raise TypeError for an unknown name, ValueError for a bad value."""
        parsers = {item.name: item.metadata['parser'] for item in dataclasses.fields(cls)}
        values = {}
        for name, value in given.items():
            if name not in parsers:
                raise TypeError(f'{name!r} is not a setting; they are {", ".join(parsers)}')
            values[name] = parsers[name](value)
        return cls(**values)


# Errors #######################################################################################

class CIError(Exception):
    """The base of all errors that minici raises for its caller; each subclass has an HTTP status.

    `detail` says what was wrong: a text follows the status's own phrase, as in GitLab; a mapping of
    field names to lists of texts is a validation error and stands alone. `headers` are sent with the
    answer. `body_key` is the member of the JSON body that holds the text (GitLab uses two).
    """

    status = 500
    phrase = 'Internal Server Error'
    body_key = 'message'

    def __init__(self, detail: str | Members = '', headers: Mapping[str, str] | None = None) -> None:
        self.detail = detail
        self.headers = dict(headers or {})
        shown = self.message
        if not isinstance(shown, str):
            shown = json.dumps(shown)
        super().__init__(shown)

    @property
    def problems(self) -> list[str]:
        """The error messages as a flat list."""
        if isinstance(self.message, str):
            return [self.message]
        return [text for texts in self.message.values() for text in texts]

    @property
    def message(self) -> str | Members:
        """What the answer says: GitLab's ``403 Forbidden - reason``, or the validation errors."""
        if not isinstance(self.detail, str):
            return self.detail
        text = f'{self.status} {self.phrase}'
        if self.detail:
            text += f' - {self.detail}'
        return text


class BadRequest(CIError):
    """The request breaks a rule."""
    status = 400
    phrase = 'Bad request'


class InvalidParameter(BadRequest):
    """A parameter is missing or malformed; GitLab's framework reports this without a status in the text."""
    body_key = 'error'

    @property
    def message(self) -> str | Members:
        return self.detail


class Unauthorized(CIError):
    """The request has no valid credentials."""
    status = 401
    phrase = 'Unauthorized'


class Forbidden(CIError):
    """The credentials do not allow this, or the state of the thing does not."""
    status = 403
    phrase = 'Forbidden'


class JobNotRunning(Forbidden):
    """The job is no longer with its runner, or never was; `job_status` is its status."""

    def __init__(self, job_status: str) -> None:
        self.job_status = job_status
        super().__init__(f'Job is not running (it is {job_status})')


class NotFound(CIError):
    """There is no such thing; `detail` names the kind of thing, as in ``404 Project Not Found``."""
    status = 404
    phrase = 'Not Found'

    @property
    def message(self) -> str | Members:
        if self.detail:
            return f'404 {self.detail} Not Found'
        return '404 Not Found'


class MethodNotAllowed(CIError):
    """The address exists, but not for this method."""
    status = 405
    phrase = 'Not Allowed'
    body_key = 'error'


class Conflict(CIError):
    """The request conflicts with what somebody else did first."""
    status = 409
    phrase = 'Conflict'


class TooLarge(CIError):
    """A body or file is larger than its limit."""
    status = 413
    phrase = 'Request Entity Too Large'


class ChecksumMismatch(CIError):
    """The stored trace differs from the one that its runner sent; the runner is to send it all again."""
    status = 412
    phrase = 'Precondition Failed'


class Misdirected(CIError):
    """The pages do not answer to this host name: another site may have pointed it here."""
    status = 421
    phrase = 'Misdirected Request'


class RangeMismatch(CIError):
    """A trace chunk does not start at `size`, the number of bytes that are stored."""
    status = 416
    phrase = 'Range Not Satisfiable'
    body_key = 'error'

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__('', {'Range': f'0-{size}'})


class Busy(CIError):
    """The server has trouble that may pass; a runner retries, instead of killing its job as on 403 or 404."""
    status = 503
    phrase = 'Service Unavailable'

    def __init__(self, detail: str) -> None:
        super().__init__(detail, {'Retry-After': str(RETRY_AFTER)})


# Vocabulary ###################################################################################

#: Columns that `repr` does not show: secrets, and what would fill a screen.
HIDDEN_COLUMNS = frozenset((
    'token', 'token_hash', 'holder_hash', 'runners_token', 'webhook_token', 'value', 'variables', 'pipeline_variables',
    'dotenv', 'import_url', 'spec', 'commit_info', 'info'))


class Row(sqlite3.Row):
    """A row of the database: its columns by name, as keys (``row['status']``) or attributes (``row.status``).

    The columns and what they mean are in the schema (`MIGRATIONS`); rows of jobs have those of
    `JOB_ROWS` too. `repr` leaves out secrets and empty columns.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except IndexError:
            known = ', '.join(self.keys())
            raise AttributeError(f'this row has no column {name!r}; it has {known}') from None

    def __repr__(self) -> str:
        names = [name for name in self.keys() if name not in HIDDEN_COLUMNS and self[name] is not None]
        shown = ' '.join(f'{name}={self[name]!r}' for name in names)
        return f'<Row {shown}>'


# These tuples are interpolated into SQL: the repr of several plain words is a valid SQL list.
JOB_STATUSES = ('created', 'pending', 'running', 'success', 'failed', 'canceled', 'skipped', 'manual',
                'scheduled', 'canceling', 'preparing', 'waiting_for_resource')
FINISHED = ('success', 'failed', 'canceled', 'skipped')
PIPELINE_FILE = '.gitlab-ci.yml'
#: Paths that no project can have: these addresses are the API's.
RESERVED_PATHS = 'api/(?:v[0-9]+|graphql)|ci/(?:api|builds|runners)|hooks'
ALIVE = ('running', 'canceling')    # a runner has the job, and its token works
HELD = ('pending', *ALIVE)          # as ALIVE, and the jobs that a runner prepares: those have a token, too
CANCELABLE = ('created', 'waiting_for_resource', 'pending', 'running', 'canceling', 'manual', 'scheduled')
RETRYABLE = ('success', 'failed', 'canceled')
PLAYABLE = ('manual', 'scheduled')

FAILURE_REASONS = frozenset((
    'unknown_failure', 'script_failure', 'api_failure', 'stuck_or_timeout_failure', 'runner_system_failure',
    'missing_dependency_failure', 'runner_unsupported', 'stale_schedule', 'job_execution_timeout',
    'archived_failure', 'unmet_prerequisites', 'scheduler_failure', 'data_integrity_failure',
    'forward_deployment_failure', 'user_blocked', 'project_deleted', 'no_matching_runner',
    'trace_size_exceeded', 'builds_disabled', 'environment_creation_failure', 'deployment_rejected',
    'failed_outdated_deployment_job', 'image_pull_failure', 'runner_interrupted', 'claims_unanswered'))


#: How artifacts of a type are packed; every other report comes as it is.
ARTIFACT_FORMATS = {'archive': 'zip', 'lsif': 'zip', **dict.fromkeys((
    'junit', 'metrics', 'cobertura', 'coverage_report', 'dotenv', 'cyclonedx', 'metadata', 'annotations'), 'gzip')}


@dataclass(frozen=True)
class JobSpec:
    """One job of a pipeline as its author wrote it, defaults applied.

    `script` already holds `before_script`; `image`, `services`, `artifacts` and `cache` have the shape
    that today's runners receive (GitLab's `jobs/request` answer); `dependencies` of None means all
    jobs of earlier stages. A failure with one of `allow_failure_exit_codes` is allowed like any with
    `allow_failure`. `timeout` is in seconds, None for the project's.
    """

    name: str
    script: Sequence[str]
    stage: str = 'test'
    after_script: Sequence[str] = ()
    when: str = 'on_success'
    allow_failure: bool = False
    allow_failure_exit_codes: Sequence[int] = ()
    tag_list: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    image: Members | None = None
    services: Sequence[Members] = ()
    artifacts: Sequence[Members] = ()
    cache: Sequence[Members] = ()
    dependencies: Sequence[str] | None = None
    needs: Sequence[Members] | None = None
    timeout: int | None = None
    start_in: int | None = None
    retry: Members | None = None
    interruptible: bool = False
    resource_group: str | None = None
    coverage: str | None = None
    environment: Members | None = None
    hooks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    raw_variables: Sequence[str] = ()
    manual_confirmation: str | None = None
    release: Members | None = None
    pages: bool | Members | None = None
    trigger: Members | None = None
    cross_needs: Sequence[Members] = ()
    id_tokens: Sequence[str] = ()


JOB_SPEC_DEFAULTS = dataclasses.asdict(JobSpec(name='', script=()))


def spec_text(job: JobSpec) -> str:
    """Return the JSON under which a JobSpec is stored: the fields that are not as by default."""
    given = {name: value for name, value in vars(job).items() if value != JOB_SPEC_DEFAULTS[name]}
    return json.dumps(given, separators=(',', ':'))


def stored_spec(job: Row) -> JSON:
    """Return the fields of a stored job's JobSpec, to be read only; what was left out has its default."""
    return parsed_spec(job['spec'])


@functools.lru_cache(maxsize=64)
def parsed_spec(text: str) -> JSON:
    """Return a stored spec; a claim asks for the same one at many places."""
    return {**JOB_SPEC_DEFAULTS, **json.loads(text)}


def environment_of(job: Row) -> str | None:
    """Return the name of a stored job's environment, or None if it has none."""
    environment = stored_spec(job)['environment']
    return environment and environment.get('name')


@dataclass(frozen=True)
class PipelineSpec:
    """What a pipeline file asks for: the stages in order and the jobs to be created in them."""

    stages: Sequence[str]
    jobs: Sequence[JobSpec]
    name: str | None = None
    auto_cancel: str = 'conservative'
    auto_cancel_failure: str = 'none'
    filtered: bool = False              # its workflow rules want no pipeline
    warnings: Sequence[str] = ()
    decisions: Mapping[str, str] = field(default_factory=dict)
    merged: Members | None = None     # the file, with all that it includes, extends and refers to in place


def matches_ref(patterns: str | None, ref: str, tag: bool, default_branch: str) -> bool:
    """Tell whether a project protects a ref; `patterns` is its `protected_refs`, NULL for the default branch."""
    wanted = [f'refs/heads/{default_branch}']
    if patterns is not None:
        wanted = json.loads(patterns)
    full = f'refs/tags/{ref}' if tag else f'refs/heads/{ref}'
    return any(re.fullmatch('.*'.join(map(re.escape, pattern.split('*'))), full) for pattern in wanted)


def clean_ref_patterns(patterns: Iterable[str]) -> str:
    """Return patterns of protected refs as they are stored; a short name is a branch's."""
    full = [pattern if pattern.startswith('refs/') else f'refs/heads/{pattern}' for pattern in patterns]
    for pattern in full:
        check_ref(pattern.replace('*', 'x'))
    return json.dumps(sorted(set(full)))


def check_variable(variable: Members) -> JSON:
    """Return a variable given as `key`, `value` and `variable_type`; raise BadRequest if it is not one."""
    key = variable.get('key')
    value = variable.get('value')
    kind = variable.get('variable_type') or 'env_var'
    if not isinstance(key, str) or not re.fullmatch(r'[A-Za-z0-9_]{1,255}', key):
        raise BadRequest({'key': [f'{key!r} is not a name of letters, digits and "_"']})
    if not isinstance(value, str):
        raise BadRequest({'value': [f'the value of {key} must be a text']})
    if kind not in ('env_var', 'file'):
        raise BadRequest({'variable_type': [f'the variable_type of {key} must be env_var or file']})
    checked = {'key': key, 'value': value, 'variable_type': kind}
    for flag in ('raw', 'masked'):
        if variable.get(flag) is True:
            checked[flag] = True
    return checked


GITLAB_VERSION = '17.11.0'          # the GitLab whose API this is, for clients that ask


def server_variables(address: str) -> JSON:
    """Return the predefined variables that tell jobs about the server at an address."""
    url = urllib.parse.urlsplit(address)
    major, minor, patch = GITLAB_VERSION.split('.')
    return {
        'CI_SERVER': 'yes',
        'CI_SERVER_NAME': 'GitLab',
        'CI_SERVER_URL': address,
        'CI_SERVER_HOST': url.hostname,
        'CI_SERVER_PROTOCOL': url.scheme,
        'CI_SERVER_FQDN': url.netloc,
        'CI_SERVER_PORT': url.port or {'https': 443}.get(url.scheme, 80),
        'CI_SERVER_REVISION': __version__,
        'CI_SERVER_VERSION': GITLAB_VERSION,
        'CI_SERVER_VERSION_MAJOR': major,
        'CI_SERVER_VERSION_MINOR': minor,
        'CI_SERVER_VERSION_PATCH': patch,
        'CI_API_V4_URL': f'{address}/api/v4',
        'CI_API_GRAPHQL_URL': f'{address}/api/graphql',
        'CI_TEMPLATE_REGISTRY_HOST': 'registry.gitlab.com',     # where the images of GitLab's templates are
        'GITLAB_FEATURES': '',      # of licenses: none
    }


def user_variables(user_id: int | None, username: str | None, address: str) -> JSON:
    """Return the predefined variables about the user who started a job.

    Users have no mailbox here; the address is of the form that GitLab gives to those who hide theirs.
    """
    if user_id is None:
        return {}
    host = urllib.parse.urlsplit(address).hostname
    return {
        'GITLAB_USER_ID': user_id,
        'GITLAB_USER_LOGIN': username,
        'GITLAB_USER_NAME': username,
        'GITLAB_USER_EMAIL': f'{user_id}-{username}@users.noreply.{host}',
    }


def pipeline_variables(facts: Record) -> JSON:
    """Return the predefined variables that all jobs of a pipeline share. A value of None means "not set".

    `facts` are columns of a job's row: what is known of its project, commit and pipeline.
    """
    request = merge_request_of(facts)
    triggered = 'true' if facts['source'] == 'trigger' else None
    variables: JSON = {
        'CI': 'true',
        'GITLAB_CI': 'true',
        'CI_CONFIG_PATH': facts['ci_config_path'] or PIPELINE_FILE,
        'CI_PIPELINE_SOURCE': facts['source'],
        'CI_PIPELINE_TRIGGERED': triggered,
        'CI_BUILD_TRIGGERED': triggered,
    }
    variables.update(project_variables(facts))
    variables.update(commit_variables(facts))
    variables.update(ref_variables(facts, request))
    variables.update(merge_request_variables(request, facts))
    return variables


def project_variables(facts: Record) -> JSON:
    """Return the predefined variables about the project of a pipeline."""
    path = facts['project_path']
    namespace, _, name = path.rpartition('/')
    return {
        'CI_PROJECT_ID': facts['project_id'],
        'CI_PROJECT_NAME': name,
        'CI_PROJECT_TITLE': facts['project_name'],
        'CI_PROJECT_PATH': path,
        'CI_PROJECT_PATH_SLUG': slug(path),
        'CI_PROJECT_NAMESPACE': namespace,
        'CI_PROJECT_NAMESPACE_ID': facts['namespace_id'],
        'CI_PROJECT_ROOT_NAMESPACE': namespace.partition('/')[0],
        'CI_PROJECT_VISIBILITY': facts['visibility'],
        'CI_DEFAULT_BRANCH': facts['default_branch'],
    }


def commit_variables(facts: Record) -> JSON:
    """Return the predefined variables about the commit of a pipeline, under their modern and their old names."""
    sha = facts['sha']
    commit = json.loads(facts['commit_info'] or '{"message": ""}')
    message = commit['message']
    title, _, description = message.partition('\n')
    author = None
    if 'author_name' in commit:
        author = f'{commit["author_name"]} <{commit["author_email"]}>'
    return {
        'CI_COMMIT_SHA': sha,
        'CI_BUILD_REF': sha,
        'CI_COMMIT_SHORT_SHA': sha[:8],
        'CI_COMMIT_BEFORE_SHA': facts['before_sha'],
        'CI_BUILD_BEFORE_SHA': facts['before_sha'],
        'CI_COMMIT_MESSAGE': message,
        'CI_COMMIT_TITLE': title,
        'CI_COMMIT_DESCRIPTION': description.strip(),
        'CI_COMMIT_AUTHOR': author,
        'CI_COMMIT_MESSAGE_IS_TRUNCATED': str('truncated' in commit).lower(),
        'CI_COMMIT_TIMESTAMP': commit.get('committed_date'),
    }


def ref_variables(facts: Record, request: JSON) -> JSON:
    """Return the predefined variables about the branch or tag of a pipeline, of a merge request its source branch."""
    ref = request.get('source_branch') or facts['ref']
    variables: JSON = {
        'CI_COMMIT_REF_NAME': ref,
        'CI_BUILD_REF_NAME': ref,
        'CI_COMMIT_REF_SLUG': slug(ref),
        'CI_BUILD_REF_SLUG': slug(ref),
        'CI_COMMIT_REF_PROTECTED': str(bool(facts['protected'])).lower(),
    }
    if facts['tag']:
        variables['CI_COMMIT_TAG'] = ref
        variables['CI_BUILD_TAG'] = ref
    elif not request:
        variables['CI_COMMIT_BRANCH'] = ref
    return variables


def merge_request_of(facts: Record) -> JSON:
    """Return what is known of a pipeline's merge request; nothing when it has none."""
    if 'merge_request' not in facts.keys():     # noqa: SIM118 - a Row is no mapping
        return {}
    return json.loads(facts['merge_request'] or '{}')


def merge_request_variables(request: JSON, facts: Record) -> JSON:
    """Return the predefined variables of a merge request pipeline; nothing when there is no merge request.

    `request` has `iid`, `source_branch` and `target_branch`, and as far as it is known `title`,
    `description`, `labels`, `draft`, `source_project_path`, `source_project_url`, `project_url` and
    `base_sha`, the commit that it is compared with.
    """
    if not request:
        return {}
    project_path = facts['project_path']
    projects = {
        'CI_MERGE_REQUEST_SOURCE_PROJECT_PATH': request.get('source_project_path') or project_path,
        'CI_MERGE_REQUEST_SOURCE_PROJECT_URL': request.get('source_project_url'),
        'CI_MERGE_REQUEST_PROJECT_ID': facts['project_id'],
        'CI_MERGE_REQUEST_PROJECT_PATH': project_path,
        'CI_MERGE_REQUEST_PROJECT_URL': request.get('project_url'),
    }
    target_protected = str(request['target_branch'] == facts['default_branch']).lower()
    draft = str(bool(request.get('draft'))).lower()
    labels = ','.join(request.get('labels') or ())
    return {
        'CI_MERGE_REQUEST_ID': request['iid'],
        'CI_MERGE_REQUEST_IID': request['iid'],
        'CI_MERGE_REQUEST_REF_PATH': facts['ref'],
        'CI_MERGE_REQUEST_EVENT_TYPE': 'detached',
        'CI_MERGE_REQUEST_TITLE': request.get('title'),
        'CI_MERGE_REQUEST_DESCRIPTION': request.get('description'),
        'CI_MERGE_REQUEST_LABELS': labels or None,
        'CI_MERGE_REQUEST_DRAFT': draft,
        'CI_MERGE_REQUEST_SOURCE_BRANCH_NAME': request['source_branch'],
        'CI_MERGE_REQUEST_TARGET_BRANCH_NAME': request['target_branch'],
        'CI_MERGE_REQUEST_TARGET_BRANCH_PROTECTED': target_protected,
        'CI_MERGE_REQUEST_DIFF_BASE_SHA': request.get('base_sha'),
        'CI_MERGE_REQUEST_SQUASH_ON_MERGE': 'false',
        **projects,
    }


def token_hash(token: str) -> str:
    """Return the SHA-256 under which a token is stored and found; a random secret needs no salt."""
    return hashlib.sha256(token.encode('utf-8', 'surrogatepass')).hexdigest()


def same_secret(given: str | None, expected: str | None) -> bool:
    """Tell in constant time whether two secrets are equal; a missing or empty one equals nothing."""
    if not given or not expected:
        return False
    return hmac.compare_digest(given.encode('utf-8', 'surrogatepass'), expected.encode())


def iso_time(seconds: float | None, digits: str = 'milliseconds') -> str | None:
    """Return a moment (seconds since 1970) the way GitLab writes it: UTC, to the `digits`, ``Z``."""
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(round(seconds, 3), timezone.utc)
    return moment.isoformat(timespec=digits).removesuffix('+00:00') + 'Z'


MOMENT = re.compile(r'''
    (?P<year>[0-9]{4})-?(?P<month>[0-9]{2})-?(?P<day>[0-9]{2})
    (?:[Tt\ ](?P<hour>[0-9]{2}):?(?P<minute>[0-9]{2})(?::?(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,12}))?)?)?
    \ ?(?P<zone>[Zz]|UTC|(?P<sign>[+\ -])(?P<zone_hour>[0-9]{2})(?::?(?P<zone_minute>[0-9]{2}))?)?''', re.VERBOSE)


def parse_moment(text: str) -> float:
    """Return a moment in ISO 8601 as seconds since 1970, UTC unless it says otherwise; raise ValueError for others.

    A blank stands for the plus sign of a time zone: that is what an unencoded one becomes in a query.
    """
    match = MOMENT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'{text[:80]!r} is not a moment such as "2017-03-01T10:00:00Z"')
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    date = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    seconds = date.timestamp() + float(f'0.{match["fraction"] or 0}')
    offset = int(match['zone_hour'] or 0) * 3600 + int(match['zone_minute'] or 0) * 60
    if match['sign'] == '-':
        offset = -offset
    return seconds - offset


def scope_fits(scope: str, environment: str | None) -> bool:
    """Tell whether an environment scope (``*``, a name, or a pattern with ``*``) is for an environment.

    A job without an environment is in the scope of ``*`` alone.
    """
    if environment is None:
        return scope == '*'
    first, *others = scope.split('*')
    if not others:
        return scope == environment
    last = others.pop()
    position = len(first)
    end = len(environment) - len(last)
    if not environment.startswith(first) or not environment.endswith(last) or position > end:
        return False
    for part in others:
        found = environment.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True


def trace_offset(content_range: str | None) -> int:
    """Return where a trace chunk starts, from its Content-Range header.

    Only the start counts: runners up to 11.10 write the end exclusive, later ones inclusive, and
    other clients nonsense. Raises InvalidParameter when there is no such header or it is malformed.
    """
    if not content_range:
        raise InvalidParameter('400 Missing header Content-Range')
    match = re.fullmatch(r'\s*(?:bytes[ =])?\s*([0-9]{1,18})-[0-9]{0,18}(?:/(?:[0-9]{1,18}|\*))?\s*', content_range)
    if not match:
        raise InvalidParameter('400 Bad Content-Range: expected <start>-<end>, in bytes')
    return int(match[1])


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the half-open range that a download's Range header asks for, or None for the whole file.

    Several ranges at once and malformed ones mean the whole file (RFC 9110 allows it). A range beyond
    `size` raises RangeMismatch.
    """
    match = re.fullmatch(r'\s*bytes=([0-9]{0,18})-([0-9]{0,18})\s*', header or '')
    if not match or not (match[1] or match[2]):
        return None
    start = 0
    stop = size
    if not match[1]:    # the last so many bytes
        start = max(0, size - int(match[2]))
    else:
        start = int(match[1])
        if match[2]:
            stop = min(size, int(match[2]) + 1)
        if match[2] and int(match[2]) < start:
            return None
    if start >= size:
        raise RangeMismatch(size)
    return start, stop


def slug(text: str) -> str:
    """Return `text` as GitLab makes CI_COMMIT_REF_SLUG: lower case, ``[a-z0-9-]``, 63 characters at most."""
    return re.sub(r'[^a-z0-9]', '-', text.lower())[:63].strip('-')


NO_REF = re.compile('[\x00-\x20\x7f~^:?*\\[\\\\\ud800-\udfff]|\\.\\.|@\\{')    # git allows no such name of a ref


def check_ref(ref: str) -> str:
    """Return `ref` if git could have a branch or tag of that name; raise BadRequest otherwise."""
    parts = ref.split('/')
    if (not ref or len(ref) > 255 or NO_REF.search(ref) or ref in ('@', '.') or ref.startswith('-') or ref.endswith('.')
            or not all(parts) or any(part.startswith('.') or part.endswith('.lock') for part in parts)):
        raise BadRequest({'base': [f'Reference not found: {ref!r} is not a name a branch or tag can have']})
    return ref


def check_sha(sha: str) -> str:
    """Return `sha` in lower case if it is a whole commit id; runners crash on shorter ones."""
    if not re.fullmatch(r'[0-9a-fA-F]{40}|[0-9a-fA-F]{64}', sha):
        raise BadRequest({'sha': ['must be a whole commit id: 40 or 64 hexadecimal digits']})
    return sha.lower()


def is_public_address(address: str) -> bool:
    """Tell whether an IP address is one of the internet."""
    return ipaddress.ip_address(address.partition('%')[0]).is_global


def public_addresses(host: str) -> list[str]:
    """Return the addresses of a host on the internet; raise OSError if it has others, or none.

    Who connects uses these: a name that is looked up again may mean something else by then.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = [str(address[0]) for *_, address in found]
    if not all(map(is_public_address, addresses)):
        raise OSError(f'{host} is not on the internet')
    return addresses


def connect_publicly(address: tuple[str, int], *options: Any) -> socket.socket:
    """Connect to a host on the internet, as `socket.create_connection` does; raise OSError for any other."""
    host, port = address
    error = OSError(f'{host} has no address')
    for found in public_addresses(host):
        try:
            return socket.create_connection((found, port), *options)
        except OSError as failure:
            error = failure
    raise error


def check_import_url(url: str) -> str:
    """Return `url` if both git and every runner can clone from it; raise BadRequest otherwise.

    Runners need a real URL: the ``git@host:path`` form is a parse error in new ones.
    """
    address = r'(https?|ssh|git)://([^/@]*@)?[A-Za-z0-9\[][^@]*|file:///.+'
    readable = url.isprintable() and ' ' not in url and re.fullmatch(address, url)
    with contextlib.suppress(ValueError):
        if readable and (url.startswith('file:') or urllib.parse.urlsplit(url).port != 0):
            return url
    raise BadRequest({'import_url': ['must be an address such as https://host/group/project.git, '
                                     'ssh://git@host/project.git or file:///srv/git/project.git']})


def clean_tags(tags: Iterable[str]) -> list[str]:
    """Return tags stripped, without blanks and repeats, sorted: one spelling for each set of tags."""
    cleaned = sorted({tag.strip() for tag in tags} - {''})
    if len(cleaned) > MAX_TAGS:
        raise BadRequest({'tags_list': [f'Too many tags specified. Please limit the number of tags to {MAX_TAGS}']})
    return cleaned


# Pipeline rules ###############################################################################
#
# Pure functions of statuses: what several jobs add up to, and what happens to the jobs after them.

#: For each `when`, the combined earlier statuses under which a job runs; under any other it is skipped.
RUNS_AFTER = {
    'on_success': ('success', 'skipped'),
    'manual': ('success', 'skipped'),
    'delayed': ('success', 'skipped'),
    'on_failure': ('failed',),
    'always': ('success', 'failed', 'skipped'),
}
#: The same for a job with `needs`: a skipped need makes it skipped, too.
RUNS_AFTER_NEEDS = {
    **RUNS_AFTER,
    'on_success': ('success',),
    'manual': ('success',),
    'delayed': ('success',),
}
#: The status of a job when its turn comes, by its `when`; every other job is queued.
STARTS_AS = {'manual': 'manual', 'delayed': 'scheduled'}
#: The status of a job that runs at once, by its kind: a build waits for a runner, a bridge needs none.
STARTS_BY_KIND = {'build': 'pending', 'bridge': 'running'}
#: The statuses that do not hold later jobs back: a failure that is allowed is a warning.
PASSED = frozenset(('skipped', 'success', 'warning', 'ignored'))
#: The first of these whose set holds every status seen is the combined status.
COMBINED = (
    ('skipped', frozenset(('skipped', 'ignored'))),
    ('success', PASSED),
    ('created', frozenset(('created', 'warning', 'ignored'))),
    ('canceled', PASSED | {'canceled'}),
    ('pending', frozenset(('pending', 'created', 'skipped', 'warning', 'ignored'))),
)
#: Otherwise the first of these statuses that was seen decides.
DECIDING = {
    'running': 'running',
    'pending': 'running',
    'waiting_for_resource': 'waiting_for_resource',
    'manual': 'manual',
    'scheduled': 'scheduled',
    'created': 'running',
    'canceling': 'canceling',
}


def composite_status(jobs: Iterable[tuple[str, bool]], *, needed: bool = False) -> str:
    """Return the one status that stands for `jobs`, pairs of a status and its `allow_failure`.

    The rules and their order are GitLab's, the same for a stage, a pipeline and "everything before
    this job"; no job at all counts as success. An allowed failure and an optional manual job do not
    hold later jobs back. With `needed`, a skipped job makes the whole skipped.
    """
    seen = {effective_status(status, bool(allowed)) for status, allowed in jobs}
    if not seen:
        return 'success'
    if needed and seen & {'skipped', 'ignored'}:
        return 'skipped'
    for result, among in COMBINED:
        if seen <= among:
            return result
    for status, result in DECIDING.items():
        if status in seen:
            return result
    return 'failed'


def effective_status(status: str, allow_failure: bool) -> str:
    """Return how a job's status counts for the jobs after it."""
    if allow_failure and status in ('failed', 'canceled'):
        return 'warning'
    if allow_failure and status == 'manual':
        return 'ignored'
    return status


def next_statuses(jobs: Sequence[Record]) -> dict[int, str]:
    """Return the new status of every waiting job whose turn has come, by the job's id.

    `jobs` are the latest jobs of one pipeline in the order of their stages. Each has `id`, `name`,
    `kind`, `stage_idx`, `status`, `when_`, `allow_failure`, `resource_group` and `needs`: JSON of the
    names it waits for, None for all earlier stages.
    """
    course = Course(jobs)
    while course.advance():     # a skipped job may free later ones, even in its own stage
        pass
    return course.changed


def status_after_stages(job: Record, before: str) -> str:
    """Return the status of a created job once the stages before its own add up to `before`."""
    if before not in FINISHED:
        return 'created'
    return status_of_turn(job, before in RUNS_AFTER[job['when_']])


def status_after_needs(job: Record, needed: Sequence[tuple[str, bool]]) -> str:
    """Return the status of a created job that needs jobs with these pairs of a status and its `allow_failure`."""
    before = composite_status(needed, needed=True)
    runs = before in RUNS_AFTER_NEEDS[job['when_']]
    if before not in FINISHED or runs and any(is_open(*pair) for pair in needed):
        return 'created'    # one skipped need is enough to skip a job, but to run it waits for all of them
    return status_of_turn(job, runs)


def status_of_turn(job: Record, runs: bool) -> str:
    """Return the status of a job whose turn has come."""
    if not runs:
        return 'skipped'
    if job['when_'] in STARTS_AS:
        return STARTS_AS[job['when_']]
    if job['resource_group']:
        return 'waiting_for_resource'
    return STARTS_BY_KIND[job['kind']]


def is_open(status: str, allow_failure: bool) -> bool:
    """Tell whether a job holds back those after it: it has not finished, and is no optional manual job."""
    return status not in FINISHED and not (status == 'manual' and allow_failure)


class Course:
    """The jobs of one pipeline while their next statuses are worked out."""

    def __init__(self, jobs: Sequence[Record]) -> None:
        self._jobs = jobs
        self._pairs = {job['name']: (job['status'], bool(job['allow_failure'])) for job in jobs}
        self.changed: dict[int, str] = {}

    def advance(self) -> bool:
        """Go through the jobs once; tell whether any of them changed."""
        changed = False
        earlier: set[tuple[str, bool]] = set()      # what the stages before this one came to
        for _, stage in itertools.groupby(self._jobs, key=lambda job: job['stage_idx']):
            jobs = list(stage)
            before = composite_status(earlier)
            for job in jobs:
                changed |= self._advance_job(job, before)
            earlier.update(self._pairs[job['name']] for job in jobs)
        return changed

    def _advance_job(self, job: Record, before: str) -> bool:
        """Give a job its next status; tell whether it changed."""
        status, allowed = self._pairs[job['name']]
        if status != 'created':
            return False
        if job['needs'] is None:
            new = status_after_stages(job, before)
        else:
            names = [name for name in json.loads(job['needs']) if name in self._pairs]
            new = status_after_needs(job, [self._pairs[name] for name in names])
        if new == 'created':
            return False
        self._pairs[job['name']] = (new, allowed)
        self.changed[job['id']] = new
        return True


# YAML #########################################################################################
#
# Text in, mappings and lists that know their lines out. Scalars, anchors and merge keys have the
# meaning that Psych gives them, the library with which GitLab reads its files.

Value = Any                         # of a pipeline file: None, a boolean, a number, a text, a Map or a Seq
Mark = tuple[str, int, int]         # a file's name, line and column, both from 1

NO_TEXT = re.compile('[\0\ud800-\udfff]')


class Budget:
    """What compiling one pipeline may still cost: processor time, time for patterns, values and characters."""

    def __init__(self) -> None:
        self._stop_at = time.thread_time() + COMPILE_TIMEOUT
        self._pattern_seconds = PATTERN_TIMEOUT
        self._checks = 0
        self.values = self.characters = 0

    def check(self) -> None:
        """Raise BadRequest when the processor time is used up; only each 32nd call looks, because that takes time."""
        self._checks += 1
        if self._checks % 32 == 1 and time.thread_time() > self._stop_at:
            raise BadRequest({'base': [f'the file takes more than {COMPILE_TIMEOUT:g} seconds to compile; '
                                       'split it, or use fewer jobs and variables']})

    def spend(self, values: int, characters: int, mark: Mark | None = None) -> None:
        """Count values and characters, of which the last stand at `mark`; raise BadRequest beyond their limits."""
        self.values += values
        self.characters += characters
        if self.values > MAX_FILE_NODES:
            raise BadRequest({'base': [f'{place_of(mark)}the file has more than {MAX_FILE_NODES} values once aliases '
                                       'and references are expanded']})
        if self.characters > MAX_FILE_TEXT:
            raise BadRequest({'base': [f'{place_of(mark)}the file has over {MAX_FILE_TEXT} characters once aliases '
                                       'are expanded']})

    def find_all(self, pattern: regex.Pattern[str], text: str, written: str = '') -> Iterator[regex.Match[str]]:
        """Yield where a pattern occurs in a text; all patterns of a pipeline share one deadline.

        GitLab's engine takes linear time. This one does not, so a deadline ends it, and other
        threads go on meanwhile. Raises BadRequest when the deadline has passed.
        """
        started = time.monotonic()
        try:
            yield from pattern.finditer(text, timeout=max(self._pattern_seconds, 0.001), concurrent=True)
        except TimeoutError:
            text = written or pattern.pattern.replace(r'\Z', '$')
            raise BadRequest({'base': [f'the pattern {text!r} takes too long: all patterns of a pipeline have '
                                       f'{PATTERN_TIMEOUT:g} seconds together']}) from None
        finally:
            self._pattern_seconds -= time.monotonic() - started


class Report:
    """Collects what is wrong with a pipeline file, and what deserves a warning."""

    def __init__(self) -> None:
        self.budget = Budget()
        self.warnings: dict[str, None] = {}     # in order, each once
        self._problems: dict[tuple[object, ...], str] = {}

    def wrong(self, complaint: str, mark: Mark | None = None, path: tuple[str, ...] = (), *, word: object = '',
              known: Iterable[str] = ()) -> None:
        """Note a problem: file, line, column, keyword, and what was expected.

        A line that several jobs share is reported for the first of them. `word` is what somebody may
        have meant as one of the `known` ones.
        """
        key: tuple[object, ...] = (path, complaint)
        if mark:
            key = (mark, path[-1:], complaint)
        if key in self._problems:
            return
        hint = ''
        if len(self._problems) < MAX_PROBLEMS:
            hint = nearest_word(word, known)
        subject = ':'.join(path)
        if subject:
            subject += ' '
        self._problems[key] = f'{place_of(mark)}{subject}{complaint}{hint}'

    def take(self, problem: str) -> None:
        """Note a problem that names its own place, unless it is noted already."""
        if problem not in self._problems.values():
            self._problems[problem,] = problem

    def warn(self, text: str) -> None:
        """Note a warning."""
        self.warnings[text] = None

    def check(self) -> None:
        """Raise BadRequest with all problems, if there are any."""
        if not self._problems:
            return
        told = list(self._problems.values())
        more = len(told) - MAX_PROBLEMS
        if more > 0:
            told[MAX_PROBLEMS:] = [f'and {more} more']
        raise BadRequest({'base': told})


def place_of(mark: Mark | None) -> str:
    """Return a mark as it stands in front of a message."""
    if mark:
        return '{}:{}:{}: '.format(*mark)
    return ''


def nearest_word(word: object, known: Iterable[str]) -> str:
    """Return ``; did you mean "x"?`` for the known word that is most like `word`, or an empty text."""
    others = [name for name in known if name != word]
    found = difflib.get_close_matches(str(word)[:100], others, 1, 0.6)
    if not found:
        return ''
    return f'; did you mean "{found[0]}"?'


class Marked:
    """A mapping or list of a pipeline file, with its place and that of each of its values."""

    def __init__(self, values: Iterable[Value] = (), mark: Mark | None = None,
                 marks: Mapping[Value, Mark | None] | None = None) -> None:
        super().__init__(values)  # type: ignore[call-arg]
        self.mark = mark
        self.marks = dict(marks or {})


class Map(Marked, dict):  # type: ignore[type-arg]
    """A mapping of a pipeline file."""

    def put(self, key: str, value: Value, mark: Mark | None) -> None:
        """Set a value and its place."""
        self[key] = value
        self.marks[key] = mark

    def put_all(self, other: Map) -> None:
        """Set all values of another mapping, as a merge key does."""
        self.update(other)
        self.marks.update(dict.fromkeys(other))
        self.marks.update(other.marks)

    def over(self, base: Map) -> Map:
        """Return `base` with this mapping laid over it, deeply; lists and texts are replaced."""
        merged = Map(base, self.mark, base.marks)
        merged.put_all(self)
        for key in self.keys() & base.keys():
            own = self[key]
            below = base[key]
            if isinstance(own, Map) and isinstance(below, Map):
                merged[key] = own.over(below)
        return merged


class Seq(Marked, list):  # type: ignore[type-arg]
    """A list of a pipeline file."""


class Reference(Seq):
    """A ``!reference [job, keyword]`` that is not looked up yet."""


# -- scalars

# What Psych tells apart by its first characters: these texts can only be words.
WORDS = re.compile(r'[^0-9.:-]?(?:[^\W\d]|[\s!@#$%^&*(){}<>|/\\~;=])+')
TIMES = re.compile(r'-?\d{4}-\d{1,2}-\d{1,2}(?:[Tt]|\s+)\d{1,2}:\d\d:\d\d(?:\.\d*)?'
                   r'(?:\s*(?:Z|[-+]\d{1,2}:?(?:\d\d)?))?', re.A)
DATES = re.compile(r'\d{4}-(?:1[012]|0\d|\d)-(?:[12]\d|3[01]|0\d|\d)', re.A)
SEXAGESIMALS = re.compile(r'[-+]?[0-9][0-9_]*(?::[0-5]?[0-9]){1,2}(\.[0-9_]*)?')
FLOATS = re.compile(r'[-+]?(?:[0-9][0-9_,]*)?\.[0-9]*(?:[eE][-+][0-9]+)?')
INTEGERS = re.compile(r'[-+]?(?:0b[01_,]+|0[0-7_,]+|0|[1-9](?:[0-9]|,[0-9]|_[0-9])*|0x[0-9a-fA-F_,]+)')
CONSTANTS = {
    '~': None, 'null': None, 'yes': True, 'true': True, 'on': True, 'no': False, 'false': False, 'off': False,
    '.inf': float('inf'), '+.inf': float('inf'), '-.inf': -float('inf'), '.nan': float('nan')}


def plain_scalar(text: str) -> Value:
    """Return the value of an unquoted scalar as Psych has it; raise ValueError when there is none.

    A symbol (``:name``) is its text; so is a date, which GitLab refuses.
    """
    if not text:
        return None
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    if WORDS.match(text) or '\n' in text:
        return text
    if is_date(text):
        return text
    if text.startswith(':') and len(text) > 1:
        quoted = re.match(r''':(["'])(.*)\1''', text)
        if quoted:
            return quoted[2].removeprefix(':')
        return text[1:]
    return yaml_number(text)


def is_date(text: str) -> bool:
    """Tell whether Psych would take an unquoted scalar for a date or time."""
    if not DATES.fullmatch(text):
        return TIMES.fullmatch(text) is not None
    try:
        year, month, day = map(int, text.split('-'))
        return datetime(year, month, day) is not None
    except ValueError:
        return False


class WrittenNumber(float):
    """A number with a fraction that knows how the file writes it: 3.10 is another version than 3.1."""

    text: str

    def __new__(cls, value: str, text: str = '') -> WrittenNumber:
        number = super().__new__(cls, value)
        number.text = text
        return number


def yaml_number(text: str) -> int | float | str:
    """Return the number that Psych sees in an unquoted scalar, or the text when it is none."""
    sexagesimal = SEXAGESIMALS.fullmatch(text)
    if sexagesimal:
        kind = int if sexagesimal[1] is None else float
        total: int | float = 0
        for factor, part in zip((3600, 60, 1), text.replace('_', '').split(':'), strict=False):
            total += factor * kind(part.rstrip('.'))
        return total
    bare = re.sub('[,_]', '', text)
    if FLOATS.fullmatch(text) and bare.strip('+-') != '.':
        return WrittenNumber(bare, text)
    if INTEGERS.fullmatch(text):
        octal = re.sub('^([+-]?)0([0-9])', r'\g<1>0o\2', bare)      # as Python writes it
        return int(octal, 0)
    return text


def text_of(value: bool | int | float | str) -> str:
    """Return a scalar as the text that Ruby makes of it."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    if value != value:
        return 'NaN'
    if value in (float('inf'), -float('inf')):
        if value > 0:
            return 'Infinity'
        return '-Infinity'
    text = repr(value)
    if '.' in text:
        return text
    return text.replace('e', '.0e')


# -- documents

SCALAR_TAGS: dict[str, type | tuple[type, ...]] = {
    'tag:yaml.org,2002:int': int, 'tag:yaml.org,2002:float': (int, float), 'tag:yaml.org,2002:bool': bool,
    'tag:yaml.org,2002:null': type(None)}
TEXT_TAGS = ('!', '!str', 'tag:yaml.org,2002:str')


class YamlFile:
    """YAML text on its way to Map and Seq, event by event."""

    def __init__(self, text: str, name: str, report: Report) -> None:
        self._text = text
        self._name = name
        self._report = report
        self._anchors: dict[str, tuple[Value, int, int]] = {}   # a value, the values in it, and its characters
        self._open: dict[str, Value] = {}       # where the anchors around this place stand

    def document(self) -> Value:
        """Return the document of the file; raise BadRequest with its first fault."""
        loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
        try:
            self._next = loader(self._text).get_event
            self._next()
            found = None
            while isinstance(start := self._next(), yaml.DocumentStartEvent):
                if found is not None:
                    raise self._refusal(start.start_mark, 'a second document starts here; only a header with spec '
                                        'may stand before the jobs')
                found = self._value(self._next(), 0)
                self._next()
            return found
        except yaml.MarkedYAMLError as error:
            raise self._fault(error) from None
        except (yaml.YAMLError, ValueError) as error:
            raise self._refusal(None, f'is not YAML: {" ".join(str(error).split())}') from None

    def _fault(self, error: yaml.MarkedYAMLError) -> BadRequest:
        """Return a syntax error as a refusal that says what to do about the common ones."""
        mark = error.problem_mark or error.context_mark
        problem = error.problem or 'is not YAML'
        lines = self._text.splitlines()
        line = lines[mark.line] if mark and mark.line < len(lines) else ''
        if 'quoted scalar' in (error.context or ''):
            return self._refusal(error.context_mark, f'{problem} ({error.context}): the quote that opens here '
                                 'is never closed')
        if '\t' in line[:len(line) - len(line.lstrip())] or mark and line[mark.column:mark.column + 1] == '\t':
            return self._refusal(mark, f'{problem}: there is a tab; indent with spaces')
        if 'mapping values' in problem:
            problem += ': a ": " inside a text makes it a mapping; quote the line'
        return self._refusal(mark, f'{problem} ({error.context or "syntax"})')

    def _refusal(self, mark: Value, complaint: str) -> BadRequest:
        return BadRequest({'base': [place_of(self._mark(mark)) + complaint]})

    def _mark(self, mark: Value) -> Mark:
        if mark:
            return (self._name, mark.line + 1, mark.column + 1)
        return (self._name, 1, 1)

    def _value(self, event: Value, depth: int) -> Value:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        budget = self._report.budget
        values = budget.values
        characters = budget.characters
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        else:
            self._open[event.anchor] = event.start_mark
            value = self._collection(event, depth + 1)
            self._open.pop(event.anchor, None)
        if event.anchor:
            self._anchors[event.anchor] = (value, budget.values - values, budget.characters - characters)
        return value

    def _alias(self, event: Value) -> Value:
        if event.anchor in self._open:
            raise self._refusal(self._open[event.anchor], 'an alias stands inside what it names')
        if event.anchor not in self._anchors:
            raise self._refusal(event.start_mark, f'found undefined alias *{event.anchor}')
        value, values, characters = self._anchors[event.anchor]
        self._report.budget.spend(values, characters, self._mark(event.start_mark))
        return value

    def _scalar(self, event: Value) -> Value:
        text = event.value
        tag = event.tag
        self._report.budget.spend(1, len(text))
        if not text.isascii() and NO_TEXT.search(text) or '\0' in text:
            raise self._refusal(event.start_mark, 'NUL and unpaired surrogates are not allowed')
        if tag in TEXT_TAGS or event.style and not tag:
            return text
        if tag and tag not in SCALAR_TAGS:
            raise self._refusal(event.start_mark, f'the tag {tag} is not supported')
        try:
            value = plain_scalar(text)
        except ValueError:
            raise self._refusal(event.start_mark, f'{text[:40]!r} is not a number') from None
        if isinstance(value, str) and text[:1].isdigit() and is_date(text):
            self._report.warn(f"{place_of(self._mark(event.start_mark))}GitLab does not take a date; quote it: "
                              f"'{text}'")
        if tag and not isinstance(value, SCALAR_TAGS[tag]) or isinstance(value, int) and value.bit_length() > 64:
            kind = tag.rpartition(':')[2] if tag else 'int'
            raise self._refusal(event.start_mark, f'{text[:40]!r} is no {kind}')
        return value

    def _collection(self, event: Value, depth: int) -> Value:
        if depth > MAX_FILE_DEPTH:
            raise self._refusal(event.start_mark, f'is nested too deeply: {MAX_FILE_DEPTH} levels are allowed')
        self._report.budget.spend(1, 0)
        self._report.budget.check()
        reference = event.tag == '!reference' and isinstance(event, yaml.SequenceStartEvent)
        if event.tag and not reference and event.tag not in ('!', 'tag:yaml.org,2002:map', 'tag:yaml.org,2002:seq'):
            raise self._refusal(event.start_mark, f'the tag {event.tag} is not supported')
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(event, depth)
        return self._sequence(event, depth, Reference if reference else Seq)

    def _sequence(self, event: Value, depth: int, kind: type[Seq]) -> Seq:
        result = kind(mark=self._mark(event.start_mark))
        while not isinstance(item := self._next(), yaml.SequenceEndEvent):
            result.marks[len(result)] = self._mark(item.start_mark)
            result.append(self._value(item, depth))
        return result

    def _mapping(self, event: Value, depth: int) -> Map:
        result = Map(mark=self._mark(event.start_mark))
        written = dict[str, int]()
        while not isinstance(key := self._next(), yaml.MappingEndEvent):
            name = self._key(key)
            mark = self._mark(key.start_mark)
            item = self._next()
            value = self._value(item, depth)
            if name == '<<':
                self._merge(result, value, item)
                continue
            if name in written:
                self._report.warn(f'{place_of(mark)}{name} stands here and in line {written[name]}: '
                                  'the earlier one has no effect')
            written[name] = mark[1]
            result.put(name, value, mark)
        return result

    def _key(self, event: Value) -> str:
        value = self._value(event, MAX_FILE_DEPTH) if isinstance(event, yaml.AliasEvent) else event
        if isinstance(value, str):
            return value
        if not isinstance(event, yaml.ScalarEvent):
            raise self._refusal(event.start_mark, 'a key must be a text')
        if event.anchor:
            self._anchors[event.anchor] = (event.value, 1, len(event.value))
        self._report.budget.spend(1, len(event.value))
        if NO_TEXT.search(event.value):
            raise self._refusal(event.start_mark, 'NUL and unpaired surrogates are not allowed')
        return str(event.value)

    def _merge(self, result: Map, value: Value, item: Value) -> None:
        """Merge what ``<<`` names over the keys that stand before it; of a list, the earlier mapping wins."""
        for other in reversed(value) if isinstance(value, Seq) else [value]:
            if not isinstance(other, Map):
                mark = getattr(value, 'mark', None) or self._mark(item.start_mark)
                raise BadRequest({'base': [f'{place_of(mark)}<< must name a mapping or a list of mappings']})
            result.put_all(other)


def decoded_text(content: object, name: str) -> str | Mapping[str, Value]:
    """Return a pipeline file as text, or the mapping that it is already; raise BadRequest for anything else."""
    if isinstance(content, Mapping):
        return content
    if not isinstance(content, (str, bytes)):
        raise BadRequest({'base': [f'{name}:1:1: must be a mapping of jobs and keywords']})
    if len(content) > MAX_FILE_SIZE:
        raise BadRequest({'base': [f'{name}: has {len(content)} bytes; {MAX_FILE_SIZE} are allowed']})
    try:
        if isinstance(content, bytes):
            return content.decode('utf-8-sig')
        return content
    except UnicodeDecodeError:
        raise BadRequest({'base': [f'{name}: is not UTF-8 text']}) from None


HEADER = re.compile(r'(?:---[^\n]*\n|[ \t]*\n|#[^\n]*\n)*spec[ \t]*:')
DIVIDER = re.compile(r'^---(?=\s|\Z)[^\n]*', re.M)


def split_header(text: str) -> tuple[str, str]:
    """Return the header of a file, ``spec`` and what belongs to it, and the rest on its own lines."""
    start = HEADER.match(text)
    divider = DIVIDER.search(text, start.end()) if start else None
    if divider is None:
        return '', text
    header = text[:divider.start()]
    return header, '\n' * header.count('\n') + text[divider.end():]


def load_text(text: str, name: str, report: Report) -> Value:
    """Return the value of YAML text: mappings and lists that know their lines.

    JSON text is YAML too, and all there is without PyYAML; JSON's escapes beyond 16 bits, and its
    tabs, are not YAML. Raises BadRequest, with line and column, when the text cannot be read.
    """
    try:
        if yaml is None or text.lstrip()[:1] in ('{', '['):
            return marked_value(json.loads(text), name)
    except ValueError as error:
        if yaml is None:
            raise BadRequest({'base': [f'{name}: is not JSON: {error}; reading YAML needs PyYAML: '
                                       'python -m pip install PyYAML']}) from None
    except RecursionError:
        raise BadRequest({'base': [f'{name}: is nested too deeply']}) from None
    return YamlFile(text, name, report).document()


def marked_value(value: object, name: str) -> Value:
    """Return plain mappings and lists as Map and Seq; raise BadRequest when they go too deep."""
    try:
        return mark_plain(value)
    except RecursionError:
        raise BadRequest({'base': [f'{name}: is nested too deeply']}) from None


def mark_plain(value: object) -> Value:
    """Return plain mappings and lists as Map and Seq that know no lines."""
    if isinstance(value, Mapping):
        return Map({mark_plain(str(key)): mark_plain(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return Seq(mark_plain(item) for item in value)
    if isinstance(value, str) and NO_TEXT.search(value):
        raise BadRequest({'base': ['NUL and unpaired surrogates are not allowed']})
    return value


# Expressions ##################################################################################
#
# What rules are made of: expressions, patterns, globs, and variables with the variables in them.

#: The kinds of tokens of an expression, in the order in which they are tried.
TOKENS = re.compile(r'''\s*(?:
    (?P<variable>\$\w+)
    | (?P<input>\$\[\[\s*inputs\.[\w-]+\s*\]\])
    | (?P<text>"[^"]*"|'[^']*')
    | (?P<pattern>/(?:[^/\\]|\\.)+/[ismU]*)
    | (?P<word>\b(?:null|true|false)\b)
    | (?P<operator>==|!=|=~|!~|&&|\|\||\(|\)|!)
    )''', re.X | re.S)
Token = tuple[str, str]             # its kind and its text
Node = tuple[Value, ...]            # an operator or a kind of value, and what it works on


class ExpressionParser:
    """Reads GitLab's expression of ``rules:if``.

    There are variables, texts, patterns, null, ``== != =~ !~ && || !`` and parentheses.
    """

    def __init__(self, text: str) -> None:
        self._tokens: list[Token] = []
        self._depth = 0
        position = 0
        text = text.strip()
        while position < len(text):
            match = TOKENS.match(text, position)
            if not match or not match.lastgroup:
                after_operator = bool(self._tokens) and self._tokens[-1][0] == 'operator'
                raise ValueError(unreadable(text[position:].strip(), after_operator=after_operator))
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()
        self._tokens.reverse()

    def parse(self) -> Node:
        """Return the expression as a tree; raise ValueError when it is none."""
        tree = self._or()
        if self._tokens:
            raise ValueError(f'{self._tokens[-1][1]!r} is not expected where it stands')
        return tree

    def _take(self, *operators: str) -> str | None:
        if self._tokens and self._tokens[-1][0] == 'operator' and self._tokens[-1][1] in operators:
            return self._tokens.pop()[1]
        return None

    def _or(self) -> Node:
        tree = self._and()
        while self._take('||'):
            tree = ('||', tree, self._and())
        return tree

    def _and(self) -> Node:
        tree = self._comparison()
        while self._take('&&'):
            tree = ('&&', tree, self._comparison())
        return tree

    def _comparison(self) -> Node:
        tree = self._operand()
        while sign := self._take('==', '!=', '=~', '!~'):
            tree = (sign, tree, self._operand())
        return tree

    def _operand(self) -> Node:
        self._depth += 1
        if self._depth > 200:
            raise ValueError('it is too long')
        if self._take('!'):
            return ('!', self._operand())
        if self._take('('):
            tree = self._or()
            if not self._take(')'):
                raise ValueError('a ")" is missing')
            return tree
        if not self._tokens or self._tokens[-1][0] == 'operator':
            raise ValueError('a variable, text or pattern is missing')
        kind, text = self._tokens.pop()
        if kind == 'pattern':
            if text.rindex('/') < 3:
                raise ValueError(f'{text!r} is no pattern: GitLab wants at least two characters between the slashes')
            return ('value', written_pattern(text.replace(r'\/', '/')))
        if kind == 'text':
            return ('value', text[1:-1])
        if kind == 'word':
            return ('value', {'null': None, 'true': True, 'false': False}[text])
        if kind == 'input':
            return ('variable', text.strip('$[] \t\n'))
        return ('variable', text[1:])


def unreadable(text: str, *, after_operator: bool) -> str:
    """Return what is wrong with the part of an expression that cannot be read."""
    word = re.match(r'[\w.-]+', text)
    if word and after_operator:
        return f'put quotes around {word[0][:80]}'
    if re.match(r'=(?![=~])', text):
        return 'use == to compare'
    if text.startswith('${'):
        return f'write ${re.sub("[^A-Za-z0-9_].*", "", text[2:])} without braces: GitLab takes no braces here'
    if text.startswith('/'):
        return f'{text[:20]!r} is no pattern: write /.../ with any of the flags i, s, m, U'
    return f'it cannot be read from {text[:20]!r} on'


def variables_in(tree: Node) -> set[str]:
    """Return the names of the variables in an expression; an input is called ``inputs.NAME`` there."""
    kind, *parts = tree
    if kind == 'variable':
        return set(parts)
    return set().union(*(variables_in(part) for part in parts if isinstance(part, tuple)))


@functools.lru_cache(4096)
def parse_expression(text: str) -> Node:
    """Return an expression as a tree; raise ValueError when it is none."""
    return ExpressionParser(text).parse()


def is_true(tree: Node, scope: Scope, budget: Budget) -> bool:
    """Tell whether an expression is true where these variables are known."""
    value = evaluate(tree, scope, budget)
    return value is not None and value is not False and value != ''


def evaluate(tree: Node, scope: Scope, budget: Budget) -> Value:
    """Return the value of an expression; between `&&` and `||` an empty text is true, as in Ruby."""
    kind, left, *rest = tree
    if kind == 'value':
        return left
    if kind == 'variable':
        return scope.get(left)
    if kind == '!':
        return not is_true(left, scope, budget)
    value = evaluate(left, scope, budget)
    if kind in ('&&', '||'):
        decided = (value is None or value is False) == (kind == '&&')
        if decided:
            return value
        return evaluate(rest[0], scope, budget)
    other = evaluate(rest[0], scope, budget)
    if kind in ('==', '!='):
        return (value == other) is (kind == '==')
    return is_match(value, other, budget) is (kind == '=~')


def is_match(text: Value, pattern: Value, budget: Budget) -> bool:
    """Tell whether a pattern, or a text that may hold one, occurs in a text; nothing counts as an empty text."""
    written = ''
    if isinstance(pattern, str):
        written = 'of a variable'   # its text may be a secret
        try:
            pattern = written_pattern(pattern) or pattern
        except ValueError:
            raise BadRequest({'base': ['a variable that a rule uses as a pattern is not a regular expression with '
                                       'RE2 syntax']}) from None
    text = '' if text is None else text
    if isinstance(pattern, str) and isinstance(text, str):
        return text in pattern
    if not isinstance(pattern, regex.Pattern) or not isinstance(text, str):
        return False
    return any(budget.find_all(pattern, text, written))


# -- patterns and globs

# What other engines know and RE2, GitLab's engine, does not.
NOT_RE2 = re.compile(r'\(\?<?[=!]|\(\?>|\(\?\(|[*+?}]\+')
NOT_RE2_ESCAPES = re.compile(r'\\[1-9hHGKRXZk]')
PATTERN_PARTS = re.compile(r'\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\$', re.S)
PATTERN = re.compile(r'/(.*)/([ismU]*)', re.S)


@functools.lru_cache(4096)
def re2_pattern(pattern: str, flags: str = '') -> regex.Pattern[str]:
    """Compile a regular expression of RE2's; raise ValueError when it is none.

    ``$`` is the end of the text alone, unless the flag `m` is set.
    """
    parts = PATTERN_PARTS.findall(pattern)
    bare = PATTERN_PARTS.sub('.', pattern)      # so that what stands around them does not meet
    unknown = [part for part in parts if NOT_RE2_ESCAPES.fullmatch(part)] + NOT_RE2.findall(bare)
    if unknown:
        raise ValueError(f'{pattern!r} is not a regular expression with RE2 syntax: {unknown[0]} is unknown to it')
    known = {'i': regex.I, 's': regex.S, 'm': regex.M}
    values = [known[flag] for flag in set(flags) & known.keys()]
    if 'm' not in flags and not re.match(r'\(\?[a-zA-Z]*m', pattern):
        pattern = PATTERN_PARTS.sub(with_end_of_text, pattern)
    try:
        return regex.compile(pattern.replace(r'\z', r'\Z'), functools.reduce(operator.or_, values, regex.ASCII))
    except (regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f'{pattern!r} is not a regular expression: {error}') from None


def with_end_of_text(match: re.Match[str]) -> str:
    """Return part of a pattern with ``$`` as the end of the whole text."""
    if match[0] == '$':
        return r'\Z'
    return match[0]


def written_pattern(text: str) -> regex.Pattern[str] | None:
    """Return the pattern that a text such as ``/^v[0-9]+/i`` is, None when it is any other text."""
    match = PATTERN.fullmatch(text)
    if not match:
        return None
    return re2_pattern(match[1], match[2])


GLOB_PARTS = re.compile(r'(?<![^/{,])\*\*/|\*+|\?|\[!?[^\]]+\]|[{},]|\\.|.', re.S)
GLOB_MEANINGS = {'**/': r'(?:[^\x00]*/)?', '?': r'[^/\x00]', '{': '(?:', '}': ')'}


@functools.lru_cache(4096)
def glob_pattern(glob: str) -> regex.Pattern[str]:
    """Return a glob (``**/``, ``*``, ``?``, ``[a-z]``, ``{a,b}``) as a pattern for paths with NULs between them."""
    parts = []
    depth = 0
    for token in GLOB_PARTS.findall(glob):
        depth += (token == '{') - (token == '}')
        if token in GLOB_MEANINGS:
            parts.append(GLOB_MEANINGS[token])
        elif token[0] == '*':
            parts.append(r'[^/\x00]*')
        elif token == ',' and depth:
            parts.append('|')
        elif token[0] == '[' and len(token) > 1:
            parts.append(token.replace('[!', r'[^/\x00', 1))
        else:
            parts.append(re.escape(token[-1]))
    with contextlib.suppress(regex.error, RecursionError, OverflowError):
        return regex.compile(rf'(?:^|\x00)(?:{"".join(parts)})(?=\x00|\Z)')
    return regex.compile(rf'(?:^|\x00){re.escape(glob)}(?=\x00|\Z)')


def fits_any(globs: Iterable[str], paths: Iterable[str], budget: Budget) -> bool:
    """Tell whether any of the paths fits any of the globs."""
    text = '\0'.join(paths)
    if not text:
        return False
    return any(any(budget.find_all(glob_pattern(glob), text, glob)) for glob in globs)


# -- variables

REFERENCES = re.compile(r'\$([A-Za-z_]\w*)|\$\{([A-Za-z_]\w*)\}|%([A-Za-z_]\w*)%', re.A)
RUNNER_REFERENCES = re.compile(r'\$\$|%%|\$([A-Za-z_]\w*)|\$\{([A-Za-z_]\w*)\}|%([A-Za-z_]\w*)%', re.A)


@dataclass(frozen=True)
class Variable:
    """A variable of the file; a `raw` one reaches the job without the variables in it replaced."""

    value: str
    raw: bool = False


class Scope:
    """The variables that are known somewhere, in layers of which a later one wins."""

    def __init__(self, *layers: Mapping[str, str] | Mapping[str, Variable]) -> None:
        self._layers = layers[::-1]
        self._expanded = dict[str, str]()

    def _find(self, name: str) -> Variable | None:
        """Return a variable, None when it is not known."""
        for layer in self._layers:
            if name in layer:
                found = layer[name]
                return found if isinstance(found, Variable) else Variable(found)
        return None

    def get(self, name: str) -> str | None:
        """Return the value of a variable as it was written, None when it is not known."""
        found = self._find(name)
        if found is None:
            return None
        return found.value

    def expanded(self, name: str, above: tuple[str, ...] = ()) -> str | None:
        """Return a variable with the variables in its value replaced; raise ValueError when it grows too long.

        Variables that name each other in a circle stay as they are.
        """
        found = self._find(name)
        if found is None:
            return None
        value = found.value
        if found.raw or not ('$' in value or '%' in value):
            return value
        if name in above or len(above) >= 50:
            return value
        if name not in self._expanded:
            self._expanded[name] = self._replaced(value, (*above, name))
        return self._expanded[name]

    def _replaced(self, value: str, above: tuple[str, ...], missing: str | None = None, *, nested: bool = True) -> str:
        """Return a text with variables replaced; `missing` stands for those not known, None: they stay."""
        length = 0

        def replacement(match: re.Match[str]) -> str:
            nonlocal length
            name = match[1] or match[2] or match[3]
            found = self.expanded(name, above) if nested else self.get(name)
            if found is None:
                found = match[0] if missing is None else missing
            length += len(found)
            if length > MAX_VARIABLE:
                raise ValueError(f'the variable {above[-1] if above else name} comes to more than '
                                 f'{MAX_VARIABLE} characters')
            return found

        return REFERENCES.sub(replacement, value)

    def expand(self, text: str, *, nested: bool = True) -> str:
        """Return a text with variables replaced; what is not known becomes nothing."""
        return self._replaced(text, (), '', nested=nested)

    def expand_known(self, text: str, *, nested: bool = True) -> str:
        """Return a text with variables replaced; what is not known stays as it is written."""
        return self._replaced(text, (), nested=nested)


def sort_and_expand_all(variables: Sequence[Mapping[str, Value]]) -> list[dict[str, Value]]:
    """Return a job's variables, as its runner receives them, with the variables in them replaced.

    As in GitLab: what is not defined stays, ``$$`` and ``%%`` stay, and so do references to raw
    variables and files, which the runner replaces. When variables name each other in a circle,
    all of them stay as they are.
    """
    latest = {str(item['key']): item for item in variables}
    done: dict[str, str] = {}

    def value_of(name: str, above: tuple[str, ...]) -> str:
        if name in above:
            raise ValueError(f'the variables {", ".join(above)} name each other in a circle')
        if name not in done:
            done[name] = expanded(latest[name], (*above, name))
        return done[name]

    def expanded(item: Mapping[str, Value], above: tuple[str, ...]) -> str:
        value = str(item['value'])
        if item.get('raw') or not ('$' in value or '%' in value):
            return value

        def replacement(match: re.Match[str]) -> str:
            name = match[1] or match[2] or match[3]
            known = latest.get(name) if name else None
            if known is None or name == above[-1] or known.get('file') or known.get('raw'):
                return match[0]
            return value_of(name, above)

        result = RUNNER_REFERENCES.sub(replacement, value)
        if len(result) <= MAX_VARIABLE:
            return result
        return value

    copies = [dict(item) for item in variables]
    try:
        values = {place: expanded(item, (str(item['key']),)) for place, item in enumerate(copies)
                  if '$' in str(item['value']) or '%' in str(item['value'])}
    except (ValueError, RecursionError):
        values = {}
    for place, value in values.items():
        copies[place]['value'] = value
    return copies


def environment_slug(name: str) -> str:
    """Return CI_ENVIRONMENT_SLUG: 24 of ``[a-z0-9-]`` at most, a letter first, a hash at the end if that loses any."""
    text = re.sub('[^a-z0-9]', '-', name.lower())
    if not text[:1].isalpha():
        text = 'env-' + text
    text = re.sub('-+', '-', text)
    if len(text) <= 24 and text == name:
        return text.removesuffix('-')
    number = int(hashlib.sha256(name.encode()).hexdigest(), 16)
    suffix = ''
    for _ in range(6):
        number, digit = divmod(number, 36)
        suffix = '0123456789abcdefghijklmnopqrstuvwxyz'[digit] + suffix
    short = text[:17]
    return short + ('' if short.endswith('-') else '-') + suffix


#: The tier of an environment by a word in its name, as GitLab guesses it.
TIERS = {
    'development': r'dev|review|trunk',
    'testing': r'test|tst|int|ac(?:ce)?pt|qa|qc|control|quality',
    'staging': r'sta?g|mode?l|pre|demo|non',
    'production': r'pro?d|live',
}


def environment_tier(environment: Members) -> str:
    """Return the tier that a job names for its environment, or the one that its name suggests."""
    if 'deployment_tier' in environment:
        return str(environment['deployment_tier'])
    for tier, pattern in TIERS.items():
        if re.search(pattern, environment['name'], re.I):
            return tier
    return 'other'


def environment_variables(environment: Members | None) -> JSON:
    """Return the predefined variables of a job's environment."""
    if environment is None:
        return {}
    return {
        'CI_ENVIRONMENT_NAME': environment['name'],
        'CI_ENVIRONMENT_SLUG': environment_slug(environment['name']),
        'CI_ENVIRONMENT_URL': environment.get('url'),
        'CI_ENVIRONMENT_ACTION': environment.get('action', 'start'),
        'CI_ENVIRONMENT_TIER': environment_tier(environment),
    }


# Keywords #####################################################################################
#
# A reader for each keyword: it takes the value at a spot of the file and returns what it means, or
# complains. The tables of fields say which keywords a mapping may have.

Fields = dict[str, Value]           # a mapping whose values have been read, by keyword


class Spot:
    """One value of a pipeline file, the spot and the key that lead to it, and the report for its problems."""

    __slots__ = ('above', 'key', 'mark', 'report', 'value')

    def __init__(self, value: Value, mark: Mark | None, report: Report, above: Spot | None = None,
                 key: Value = '') -> None:
        self.value = value
        self.mark = mark
        self.report = report
        self.above = above
        self.key = key

    @property
    def path(self) -> tuple[str, ...]:
        """The keys that lead here from the top of the file."""
        if self.above is None:
            return ()
        return (*self.above.path, str(self.key))

    def __getitem__(self, key: Value) -> Spot:
        return Spot(self.value[key], self.value.marks.get(key) or self.mark, self.report, self, key)

    def __contains__(self, key: Value) -> bool:
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def at(self, key: str) -> Spot:
        """Return the spot of a keyword of this mapping, this spot itself when it does not have the keyword."""
        if key in self:
            return self[key]
        return self

    def wrong(self, complaint: str, word: object = '', known: Iterable[str] = ()) -> None:
        """Note what is wrong here, and what was expected; `word` may be a misspelling of a `known` one."""
        self.report.wrong(complaint, self.mark, self.path, word=word, known=known)

    def fields(self, readers: Mapping[str, Reader], *required: str, **defaults: Value) -> Fields:
        """Return this mapping with each value read by its key's reader; complain about other and missing keys."""
        if not isinstance(self.value, dict):
            self.wrong(f'must be a mapping, with any of {", ".join(readers)}')
            return defaults
        for key, value in self.value.items():
            if key not in readers:
                self.unknown(key, readers)
            elif value is not None:
                defaults[key] = readers[key](self[key])
        for key in required:
            if not defaults.get(key):
                self.wrong(f'must have a {key}')
        return defaults

    def unknown(self, key: str, readers: Mapping[str, Reader]) -> None:
        """Complain about a keyword of this mapping."""
        told = 'is a keyword that minici does not know here'
        if len(readers) < 12:
            told += f'; it knows {", ".join(readers)}'
        self[key].wrong(told, key, readers)

    def text(self) -> str:
        """Return this text."""
        if isinstance(self.value, str):
            return self.value
        if isinstance(self.value, (bool, int, float)):
            self.wrong(f"must be a text: write '{self.written()}'")
        elif isinstance(self.value, dict) and len(self.value) == 1:
            self.wrong('must be a text, and a ": " makes it a mapping: quote the line')
        else:
            self.wrong('must be a text')
        return ''

    def written(self) -> str:
        """Return this scalar as it stands in the file, as far as that is known."""
        if isinstance(self.value, WrittenNumber):
            return self.value.text
        if isinstance(self.value, str):
            return self.value
        return text_of(self.value)

    def scalar(self) -> str:
        """Return this text, number or boolean as a text."""
        if isinstance(self.value, (bool, int, float)):
            return text_of(self.value)
        return self.text()

    def flag(self) -> bool:
        """Return this boolean."""
        if not isinstance(self.value, bool):
            self.wrong('must be true or false')
        return self.value is True

    def spots(self, depth: int = 1) -> list[Spot]:
        """Return the items of this list and of lists in it; a single value stands for a list of one."""
        if not isinstance(self.value, list):
            return [self]
        items = [self[index] for index in range(len(self.value))]
        if depth == 1:
            return items
        return [inner for item in items for inner in item.spots(depth - 1)]

    def texts(self) -> list[str]:
        """Return this text, or list of texts, or lists of them (anchors and references make those), as one list."""
        if not isinstance(self.value, (str, list)):
            self.text()
            return []
        if is_plain_list(self.value):
            return list(self.value)
        return [spot.text() for spot in self.spots(10)]

    def items(self) -> list[str]:
        """Return this list of texts; GitLab takes no single text in its place, and no lists in it."""
        if is_plain_list(self.value):
            return list(self.value)
        if isinstance(self.value, list):
            return [spot.text() for spot in self.spots()]
        self.wrong(f'must be a list: write [{self.written()}]' if isinstance(self.value, str) else 'must be a list')
        return []

    def duration(self) -> str:
        """Return this duration as it was written."""
        self.seconds()
        return self.scalar()

    def seconds(self) -> int | None:
        """Return this duration in seconds, 0 when it has no end, None when it is no duration."""
        try:
            return int(parse_duration(self.scalar()) or 0)
        except ValueError as error:
            self.wrong(f'must be a duration: {error}')
            return None


Reader = Callable[[Spot], Value]    # of one value


def is_plain_list(value: Value) -> bool:
    """Tell whether a value is a list of texts; only what is anything else needs a spot of its own."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


# -- readers of common kinds

def anything(spot: Spot) -> Value:
    """Read a value that is only kept; what JSON has no number for becomes a text."""
    return json.loads(json.dumps(spot.value), parse_constant=str)


def untouched(spot: Spot) -> Spot:
    """Leave a value to be read later."""
    return spot


def one_of(*choices: str) -> Reader:
    """Return a reader of a text that must be one of `choices`."""
    def read(spot: Spot) -> str:
        if spot.value in choices:
            return str(spot.value)
        spot.wrong(f'must be one of {", ".join(choices)}', spot.value, choices)
        return choices[0]
    return read


def number_between(low: int, high: int) -> Reader:
    """Return a reader of a whole number between two others, both included."""
    def read(spot: Spot) -> int:
        if isinstance(spot.value, int) and not isinstance(spot.value, bool) and low <= spot.value <= high:
            return spot.value
        spot.wrong(f'must be a whole number from {low} to {high}')
        return low
    return read


def refused(why: str) -> Reader:
    """Return a reader that complains about a keyword, whatever stands there."""
    return lambda spot: spot.wrong(f'is not supported: {why}')


def listed(read: Reader) -> Reader:
    """Return a reader of one value or a list of them."""
    return lambda spot: [read(item) for item in spot.spots(10)]


def strictly_listed(read: Reader) -> Reader:
    """Return a reader of a list of values, where GitLab takes no single one."""
    def read_all(spot: Spot) -> list[Value]:
        if isinstance(spot.value, list):
            return [read(item) for item in spot.spots(10)]
        spot.wrong('must be a list')
        return []
    return read_all


def nested_items(spot: Spot) -> list[str]:
    """Return a list of texts, or of lists of them."""
    if isinstance(spot.value, list):
        return spot.texts()
    return spot.items()


def at_most(limit: int, read: Reader) -> Reader:
    """Return a reader that also complains about a list of more than `limit` items."""
    def read_some(spot: Spot) -> Value:
        if isinstance(spot.value, list) and len(spot.value) > limit:
            spot.wrong(f'has {len(spot.value)} items; {limit} are allowed')
        return read(spot)
    return read_some


def list_or_mapping(read: Reader) -> Reader:
    """Return a reader of one value or a list of them, where GitLab takes no text in the place of a list."""
    def read_all(spot: Spot) -> list[Value]:
        if isinstance(spot.value, str):
            return spot.items()
        return [read(item) for item in spot.spots(10)]
    return read_all


def mapping(readers: Mapping[str, Reader], *required: str) -> Reader:
    """Return a reader of a mapping; some of its keys may be required."""
    return lambda spot: spot.fields(readers, *required)


# -- variables, images, services

VARIABLE_NAME = re.compile(r'[A-Za-z0-9_]{1,255}')
JOB_VARIABLE_FIELDS: dict[str, Reader] = {'value': Spot.scalar, 'expand': Spot.flag}
VARIABLE_FIELDS: dict[str, Reader] = {
    **JOB_VARIABLE_FIELDS, 'description': Spot.text, 'options': listed(Spot.scalar)}


def read_variables(spot: Spot, fields: Mapping[str, Reader]) -> dict[str, Variable]:
    """Return variables: texts and numbers as texts, and those with any of the attributes `fields`."""
    if not isinstance(spot.value, dict):
        spot.wrong('must be a mapping of names to values')
        return {}
    found = {}
    for key, value in spot.value.items():
        if not VARIABLE_NAME.fullmatch(key):
            check_odd_name(spot[key])
        if isinstance(value, str):
            found[key] = Variable(value)
        else:
            found[key] = read_variable(spot[key], fields)
    return found


def check_odd_name(spot: Spot) -> None:
    """Complain about the name of a variable that no job could have; warn of one that shells do not know."""
    if re.fullmatch(r'[^\s=\0]{1,255}', spot.key):
        spot.report.warn(f'{place_of(spot.mark)}shells do not know variables of such a name: {spot.key}')
    else:
        spot.wrong('is not a name of letters, digits and "_"')


def read_variable(spot: Spot, fields: Mapping[str, Reader]) -> Variable:
    """Return one variable; null is an empty text."""
    if spot.value is None:
        return Variable('')
    if not isinstance(spot.value, dict) or not fields:
        return Variable(spot.scalar())
    found = spot.fields(fields, value='')
    options = found.get('options')
    if options and found['value'] not in options:
        spot.wrong(f'must be one of its options: {", ".join(options)}')
    return Variable(found['value'], found.get('expand') is False)


def read_global_variables(spot: Spot) -> dict[str, Variable]:
    """Return the variables of a file, which people may choose."""
    return read_variables(spot, VARIABLE_FIELDS)


def read_job_variables(spot: Spot) -> dict[str, Variable]:
    """Return the variables of a job."""
    return read_variables(spot, JOB_VARIABLE_FIELDS)


def read_plain_variables(spot: Spot) -> dict[str, Variable]:
    """Return the variables of a rule or a service, which have no attributes."""
    return read_variables(spot, {})


def values_of(variables: Mapping[str, Variable]) -> dict[str, str]:
    """Return variables with their values alone."""
    return {key: variable.value for key, variable in variables.items()}


IMAGE_FIELDS: dict[str, Reader] = {
    'name': Spot.text, 'entrypoint': Spot.items, 'pull_policy': listed(one_of('always', 'if-not-present', 'never')),
    'docker': mapping({'platform': Spot.text, 'user': Spot.scalar}), 'kubernetes': mapping({'user': Spot.scalar})}
SERVICE_FIELDS: dict[str, Reader] = {
    **IMAGE_FIELDS, 'command': Spot.items, 'alias': Spot.text, 'variables': read_plain_variables}


def read_image(spot: Spot, fields: Mapping[str, Reader] = IMAGE_FIELDS) -> Fields:
    """Return an image in the shape that runners receive."""
    if not isinstance(spot.value, dict):
        return {'name': spot.text()}
    image = spot.fields(fields, 'name')
    options = {key: image.pop(key) for key in ('docker', 'kubernetes') if key in image}
    if options:
        image['executor_opts'] = options
    if 'variables' in image:
        image['variables'] = [{'key': key, 'value': value} for key, value in values_of(image['variables']).items()]
    return image


def read_service(spot: Spot) -> Fields:
    """Return a service in the shape that runners receive."""
    return read_image(spot, SERVICE_FIELDS)


# -- artifacts, caches

REPORT_KINDS = (
    'accessibility', 'annotations', 'api_fuzzing', 'browser_performance', 'cluster_image_scanning', 'codequality',
    'container_scanning', 'coverage_fuzzing', 'coverage_report', 'cyclonedx', 'dast', 'dependency_scanning', 'dotenv',
    'junit', 'license_scanning', 'load_performance', 'lsif', 'metrics', 'performance', 'repository_xray',
    'requirements', 'requirements_v2', 'sast', 'secret_detection', 'terraform')


COVERAGE_REPORT_FIELDS: dict[str, Reader] = {'coverage_format': one_of('cobertura', 'jacoco'), 'path': Spot.text}


def read_coverage_report(spot: Spot) -> list[str]:
    """Return the path of a coverage report."""
    found = spot.fields(COVERAGE_REPORT_FIELDS, *COVERAGE_REPORT_FIELDS, path='')
    return [found['path']]


def read_reports(spot: Spot) -> list[Fields]:
    """Return a job's reports, each an upload of its own that is made whatever becomes of the job."""
    readers = dict.fromkeys(REPORT_KINDS, Spot.texts)
    found = spot.fields({**readers, 'coverage_report': read_coverage_report})
    return [{
        'name': 'junit.xml' if kind == 'junit' else kind,
        'paths': paths,
        'when': 'always',
        'untracked': False,
        'artifact_type': kind,
        'artifact_format': ARTIFACT_FORMATS.get(kind, 'raw'),
    } for kind, paths in found.items()]


ARTIFACTS_FIELDS: dict[str, Reader] = {
    'name': Spot.text, 'paths': Spot.items, 'exclude': Spot.items, 'untracked': Spot.flag,
    'expire_in': Spot.duration,
    'when': one_of('on_success', 'on_failure', 'always'), 'reports': read_reports, 'expose_as': Spot.text,
    'public': Spot.flag, 'access': one_of('all', 'developer', 'maintainer', 'none')}


def read_artifacts(spot: Spot) -> list[Fields]:
    """Return what a job keeps, as the list of uploads that runners receive: the archive, then each report."""
    found = spot.fields(ARTIFACTS_FIELDS, untracked=False, paths=[], when='on_success')
    reports = found.pop('reports', [])
    if 'access' in found and 'public' in found:
        spot.wrong('cannot have both access and public')
    if 'expose_as' in found and not found['paths']:
        spot.wrong('with expose_as needs paths')
    for key in ('expose_as', 'public', 'access'):
        found.pop(key, None)
    if 'expire_in' in found:
        for report in reports:
            report['expire_in'] = found['expire_in']
    if not found['paths'] and not found['untracked']:
        return reports
    return [{**found, 'artifact_type': 'archive', 'artifact_format': 'zip'}, *reports]


def read_cache_key(spot: Spot) -> str | Fields:
    """Return the key of a cache, or the files that it is made of (`JobReader` looks at them)."""
    if isinstance(spot.value, dict):
        found = spot.fields({'files': Spot.items, 'files_commits': Spot.items, 'prefix': Spot.text})
        named = [found[name] for name in ('files', 'files_commits') if name in found]
        if len(named) != 1:
            spot.wrong('must have files or files_commits, and one of them only')
        elif not 1 <= len(named[0]) <= MAX_KEY_FILES:
            spot.wrong(f'names {len(named[0])} files; 1 to {MAX_KEY_FILES} are allowed')
        return found
    key = spot.scalar()
    path = urllib.parse.unquote(key)
    if '/' in path:
        spot.wrong('must not have a "/"')
    elif path in ('.', '..'):
        spot.wrong('must not be "." or ".."')
    return key


CACHE_FIELDS: dict[str, Reader] = {
    'key': read_cache_key, 'paths': Spot.items, 'untracked': Spot.flag, 'unprotect': Spot.flag,
    'policy': Spot.text, 'when': one_of('on_success', 'on_failure', 'always'),
    'fallback_keys': at_most(MAX_FALLBACK_KEYS, Spot.items)}
CACHE_POLICIES = ('pull-push', 'pull', 'push')


def read_caches(spot: Spot) -> list[Fields]:
    """Return a job's caches in the shape that runners receive; an empty one switches the default off."""
    caches = []
    for item in spot.spots(10):
        if not item.value:
            continue
        cache = item.fields(CACHE_FIELDS, key='default', untracked=False, paths=[], policy='pull-push',
                            when='on_success')
        if cache['policy'] not in CACHE_POLICIES and '$' not in cache['policy']:
            one_of(*CACHE_POLICIES)(item['policy'])
        caches.append(cache)
    return caches


# -- how often and in how many copies

def read_allow_failure(spot: Spot) -> bool | list[int]:
    """Return whether any failure is allowed, or the exit codes with which one is."""
    if isinstance(spot.value, dict):
        codes: list[int] = spot.fields({'exit_codes': listed(number_between(0, 255))}, exit_codes=[])['exit_codes']
        return codes
    return spot.flag()


def read_retry(spot: Spot) -> Fields:
    """Return how often a failed job is tried again, and after which failures."""
    if not isinstance(spot.value, dict):
        return {'max': number_between(0, 2)(spot), 'when': ['always'], 'exit_codes': []}
    when = one_of('always', 'stuck_or_timeout_failure', *sorted(FAILURE_REASONS))
    readers = {'max': number_between(0, 2), 'when': listed(when), 'exit_codes': listed(number_between(0, 255))}
    return spot.fields(readers, max=0, when=[] if 'exit_codes' in spot else ['always'], exit_codes=[])


def read_matrix(spot: Spot) -> list[dict[str, str]]:
    """Return every combination of the values of each mapping of a matrix."""
    if not isinstance(spot.value, list):
        spot.wrong('must be a list of mappings of variables to values')
        return []
    combinations: list[dict[str, str]] = []
    for row in spot.spots():
        if not isinstance(row.value, dict):
            row.wrong('must be a mapping of variables to values')
            continue
        values = [read_matrix_values(row[name], name) for name in row.value if name in row]
        combinations += map(dict, itertools.islice(itertools.product(*values), MAX_PARALLEL + 1))
    return combinations


def read_matrix_values(spot: Spot, name: str) -> list[tuple[str, str]]:
    """Return the name and each value of one variable of a matrix."""
    return [(name, value.scalar()) for value in spot.spots(10)]


def read_parallel(spot: Spot) -> int | list[dict[str, str]]:
    """Return how many copies of a job there are, or the variables of each."""
    if not isinstance(spot.value, dict):
        return int(number_between(1, MAX_PARALLEL)(spot))
    combinations: list[dict[str, str]] = spot.fields({'matrix': read_matrix}, matrix=[])['matrix']
    if not 1 <= len(combinations) <= MAX_PARALLEL:
        spot.wrong(f'must make 1 to {MAX_PARALLEL} jobs, and makes {len(combinations)}')
    return combinations[:MAX_PARALLEL]


# -- needs

@dataclass(frozen=True)
class Need:
    """A job that another one needs: of its pipeline, of another `pipeline`, or of another `project`."""

    spot: Spot
    job: str = ''
    artifacts: bool = True
    optional: bool = False
    parallel: int | list[dict[str, str]] | None = None
    pipeline: str = ''
    project: str = ''
    ref: str = ''


NEED_FIELDS: dict[str, Reader] = {
    'job': Spot.text, 'artifacts': Spot.flag, 'optional': Spot.flag, 'parallel': read_parallel,
    'pipeline': Spot.scalar, 'project': Spot.text, 'ref': Spot.text}


def mirrored_need(needs: Value) -> Value:
    """Return the first entry of an unread `needs` that names a pipeline and no job, None when there is none."""
    entries = needs if isinstance(needs, list) else [needs]
    return next((need for need in entries if isinstance(need, dict) and 'pipeline' in need and 'job' not in need), None)


def read_need(spot: Spot) -> Need:
    """Return one entry of `needs`; one with a pipeline and no job makes its job mirror that pipeline's status."""
    if isinstance(spot.value, str):
        return Need(spot, spot.value)
    found = spot.fields(NEED_FIELDS)
    if not found.get('job') and 'pipeline' not in found:
        spot.wrong('must have a job')
    if 'project' in found and 'ref' not in found:
        spot.wrong('must have a ref beside its project')
    return Need(spot, **found)


# -- environments, timeouts, rules

DASHBOARD_FIELDS: dict[str, Reader] = {'namespace': Spot.text, 'flux_resource_path': Spot.text}
KUBERNETES_FIELDS: dict[str, Reader] = {
    **DASHBOARD_FIELDS, 'agent': Spot.text, 'dashboard': mapping(DASHBOARD_FIELDS),
    'managed_resources': mapping({'enabled': Spot.flag})}
ENVIRONMENT_NAME = re.compile(r'(?!/)[\w/${}. -]+(?<!/)', re.ASCII)


def read_environment_name(spot: Spot) -> str:
    """Return the name of an environment, of the characters that GitLab takes."""
    name = spot.text()
    if name and not ENVIRONMENT_NAME.fullmatch(name):
        spot.wrong("must consist of letters, digits, spaces and any of -_/${}. and have no / at either end")
    return name


ENVIRONMENT_FIELDS: dict[str, Reader] = {
    **dict.fromkeys(('url', 'on_stop', 'auto_stop_in', 'deployment_tier'), Spot.text),
    'name': read_environment_name, 'kubernetes': mapping(KUBERNETES_FIELDS),
    'action': one_of('start', 'prepare', 'stop', 'verify', 'access')}


def read_environment(spot: Spot) -> Fields:
    """Return a job's environment, which is only kept and shown."""
    if not isinstance(spot.value, dict):
        return {'name': read_environment_name(spot)}
    return spot.fields(ENVIRONMENT_FIELDS, 'name')


def read_coverage(spot: Spot) -> str:
    """Return the pattern, without its slashes, that finds a job's coverage in its trace."""
    text = spot.text()
    if not PATTERN.fullmatch(text):
        spot.wrong('must be a regular expression between slashes, such as /\\d+%/')
        return text
    pattern = text[1:].rpartition('/')[0]
    try:
        re2_pattern(pattern)
    except ValueError as error:
        spot.wrong(str(error))
    return pattern


def read_timeout(spot: Spot) -> int | None:
    """Return a job's timeout in seconds."""
    seconds = spot.seconds()
    if seconds is not None and not 0 < seconds <= MAX_JOB_TIMEOUT:
        spot.wrong(f'must be more than nothing and at most {MAX_JOB_TIMEOUT // 86400} days')
    return seconds


#: Where a pipeline may come from.
PIPELINE_SOURCES = (
    'api', 'chat', 'external', 'external_pull_request_event', 'merge_request_event', 'parent_pipeline', 'pipeline',
    'push', 'schedule', 'trigger', 'web', 'webide')
#: The words in only and except that stand for where a pipeline came from.
SOURCE_WORDS = {
    'api': 'api', 'pushes': 'push', 'web': 'web', 'triggers': 'trigger', 'schedules': 'schedule',
    'pipelines': 'pipeline', 'external': 'external', 'chat': 'chat', 'merge_requests': 'merge_request_event',
    'external_pull_requests': 'external_pull_request_event'}


@dataclass(frozen=True)
class RefName:
    """One word of `only` or `except`: a name, a pattern or a kind of pipeline, of one project if it says so."""

    word: str
    pattern: regex.Pattern[str] | None = None
    project: str = ''


def read_ref(spot: Spot) -> RefName:
    """Return one word of `only` or `except`."""
    if not isinstance(spot.value, str):
        spot.wrong('must be a text: a name, a /pattern/ or a kind of pipeline')
        return RefName('')
    word, _, project = spot.value.partition('@')
    if spot.value.startswith('/') and re.search(r'/[ismU]*$', spot.value):
        word = spot.value
        project = ''
    try:
        return RefName(word, written_pattern(word), project)
    except ValueError as error:
        spot.wrong(str(error))
        return RefName('')


def read_condition(spot: Spot) -> Node:
    """Return an expression as a tree."""
    try:
        return parse_expression(spot.text())
    except ValueError as error:
        spot.wrong(f'is not an expression: {error}')
        return ('value', None)


def read_refs(spot: Spot) -> Fields:
    """Return what `only` or `except` names."""
    if not isinstance(spot.value, dict):
        return {'refs': listed(read_ref)(spot)}
    return spot.fields({'refs': listed(read_ref), 'variables': strictly_listed(read_condition),
                        'changes': Spot.items, 'kubernetes': refused('there are no clusters here')})


@dataclass(frozen=True)
class Globs:
    """The paths of ``rules:changes`` or ``rules:exists``, and what they are compared with or looked up in."""

    spot: Spot
    paths: Sequence[str] = ()
    compare_to: str = ''
    project: str = ''
    ref: str = ''


def read_paths(spot: Spot) -> list[str]:
    """Return the globs of ``rules:changes`` or ``rules:exists``."""
    globs: list[str] = at_most(MAX_GLOBS, Spot.items)(spot)
    return globs


CHANGES_FIELDS: dict[str, Reader] = {
    'paths': read_paths, 'compare_to': Spot.text, 'regexp': refused('name paths')}
EXISTS_FIELDS: dict[str, Reader] = {
    'paths': read_paths, 'project': Spot.text, 'ref': Spot.text, 'regexp': refused('name paths')}


def read_globs(spot: Spot, readers: Mapping[str, Reader]) -> Globs:
    """Return the paths of ``rules:changes`` or ``rules:exists``, which may stand beside other keys."""
    if not isinstance(spot.value, dict):
        return Globs(spot, read_paths(spot))
    fields = spot.fields(readers)
    fields.pop('regexp', None)
    if 'paths' not in spot and 'regexp' not in spot:
        spot.wrong('must have paths')
    if 'ref' in fields and 'project' not in fields:
        spot.wrong('must have a project beside its ref')
    return Globs(spot, **fields)


def read_changes(spot: Spot) -> Globs:
    """Return the paths of ``rules:changes``."""
    return read_globs(spot, CHANGES_FIELDS)


def read_exists(spot: Spot) -> Globs:
    """Return the paths of ``rules:exists``."""
    return read_globs(spot, EXISTS_FIELDS)


def read_inherited(spot: Spot) -> bool | list[str]:
    """Return which defaults or global variables a job takes over: all, none, or those it names."""
    if isinstance(spot.value, bool):
        return spot.value
    return spot.texts()


WHENS = ('on_success', 'on_failure', 'always', 'manual', 'delayed')
AUTO_CANCEL_FIELDS: dict[str, Reader] = {
    'on_new_commit': one_of('conservative', 'interruptible', 'none'), 'on_job_failure': one_of('none', 'all')}
INCLUDE_RULE_FIELDS: dict[str, Reader] = {
    'if': read_condition, 'changes': read_changes, 'exists': read_exists, 'when': one_of('always', 'never')}
WORKFLOW_RULE_FIELDS: dict[str, Reader] = {
    **INCLUDE_RULE_FIELDS, 'needs': list_or_mapping(read_need), 'start_in': Spot.seconds, 'allow_failure': Spot.flag,
    'variables': read_plain_variables, 'auto_cancel': mapping(AUTO_CANCEL_FIELDS)}
RULE_FIELDS: dict[str, Reader] = {
    **WORKFLOW_RULE_FIELDS, 'when': one_of(*WHENS, 'never'), 'interruptible': Spot.flag}


@dataclass(frozen=True)
class Rule:
    """One entry of `rules`: its clauses, and what it sets when they all hold."""

    spot: Spot | None = None
    fields: Mapping[str, Value] = field(default_factory=dict)

    def get(self, key: str) -> Value:
        """Return what the rule says of a keyword, None for nothing."""
        return self.fields.get(key)

    @property
    def variables(self) -> dict[str, Variable]:
        """The variables that the rule sets."""
        found: dict[str, Variable] = self.fields.get('variables', {})
        return found


def read_rule(spot: Spot, fields: Mapping[str, Reader]) -> Rule:
    """Return one rule and where it stands."""
    if isinstance(spot.value, dict) and not spot.value:
        spot.wrong('must say something')
    return Rule(spot, spot.fields(fields))


def rules_of(fields: Mapping[str, Reader]) -> Reader:
    """Return a reader of rules that may have some keywords; there must be a list of at least one rule."""
    def read(spot: Spot) -> list[Rule]:
        if not isinstance(spot.value, list) or not spot.value:
            spot.wrong('must be a list of at least one rule')
            return []
        return [read_rule(item, fields) for item in spot.spots(10)]
    return read


# -- triggers

@dataclass(frozen=True)
class Trigger:
    """What a bridge starts: a pipeline of a `project`, or a child pipeline of what `include` names."""

    spot: Spot
    project: str = ''
    branch: str = ''
    include: Spot | None = None
    strategy: str = ''
    forward: Mapping[str, bool] = field(default_factory=dict)
    inputs: Mapping[str, Value] = field(default_factory=dict)


TRIGGER_FIELDS: dict[str, Reader] = {
    'project': Spot.text, 'branch': Spot.text, 'include': untouched, 'strategy': one_of('depend', 'mirror'),
    'forward': mapping({'yaml_variables': Spot.flag, 'pipeline_variables': Spot.flag}), 'inputs': anything}


def read_trigger(spot: Spot) -> Trigger:
    """Return what a job with `trigger` starts."""
    if isinstance(spot.value, str):
        if not spot.value:
            spot.wrong('must not be empty')
        return Trigger(spot, spot.value)
    found = spot.fields(TRIGGER_FIELDS)
    if ('project' in found) == ('include' in found):
        spot.wrong('must have a project or an include')
    if 'branch' in found and 'include' in found:
        spot.wrong('has a branch, and a child pipeline has that of its parent')
    if 'include' in found and len(found['include'].spots()) > MAX_CHILD_INCLUDES:
        spot.wrong(f'includes more than {MAX_CHILD_INCLUDES} files')
    return Trigger(spot, **found)


# -- the tables

INCLUDE_FIELDS: dict[str, Reader] = {
    **dict.fromkeys(('local', 'project', 'template', 'remote', 'component', 'ref', 'artifact', 'job', 'integrity'),
                    Spot.text),
    'file': Spot.texts, 'rules': rules_of(INCLUDE_RULE_FIELDS), 'inputs': anything, 'cache': anything}
INCLUDE_KINDS = ('local', 'project', 'template', 'remote', 'component', 'artifact')
RELEASE_FIELDS: dict[str, Reader] = {
    **dict.fromkeys(('name', 'description', 'tag_name', 'tag_message', 'ref', 'released_at'), Spot.text),
    'milestones': Spot.texts, 'assets': mapping({'links': listed(mapping(
        dict.fromkeys(('name', 'url', 'filepath', 'link_type'), Spot.text), 'name', 'url'))})}


def read_id_tokens(spot: Spot) -> list[str]:
    """Return the names of the ID tokens that a job asks for; none are issued."""
    if not isinstance(spot.value, dict):
        spot.wrong('must be a mapping of names to tokens')
        return []
    for name in spot.value:
        spot[name].fields({'aud': Spot.texts}, 'aud')
        spot.report.warn(f'{place_of(spot[name].mark)}{":".join(spot.path)} the variable {name} will be missing: '
                         'minici issues no ID tokens')
    return list(spot.value)


def read_pages(spot: Spot) -> bool | Fields:
    """Return whether a job publishes pages, or how."""
    if not isinstance(spot.value, dict):
        return bool(spot.value)
    return spot.fields({'path_prefix': Spot.scalar, 'expire_in': read_lifetime, 'publish': Spot.text})


def read_lifetime(spot: Spot) -> str:
    """Return a duration as it was written; it may have variables."""
    if isinstance(spot.value, str) and REFERENCES.search(spot.value):
        return spot.value
    return spot.duration()


DEFAULT_FIELDS: dict[str, Reader] = {
    'image': read_image, 'services': strictly_listed(read_service), 'before_script': Spot.texts,
    'after_script': Spot.texts, 'cache': at_most(MAX_CACHES, read_caches), 'artifacts': read_artifacts,
    'tags': at_most(MAX_JOB_TAGS, Spot.items),
    'timeout': read_timeout, 'retry': read_retry,
    'interruptible': Spot.flag, 'hooks': mapping({'pre_get_sources_script': Spot.texts}), 'id_tokens': read_id_tokens,
    'identity': refused('minici knows no cloud providers')}


def read_inherited_defaults(spot: Spot) -> bool | list[str]:
    """Return which defaults a job takes over."""
    found = read_inherited(spot)
    if isinstance(spot.value, list):
        for item in spot.spots():
            one_of(*DEFAULT_FIELDS)(item)
    return found


def read_pipeline_name(spot: Spot) -> str:
    """Return the name of a pipeline before the variables in it are replaced."""
    name = spot.text()
    if len(name) > MAX_PIPELINE_NAME:
        spot.wrong(f'has {len(name)} characters; {MAX_PIPELINE_NAME} are allowed')
    return name


PROCESSABLE_FIELDS: dict[str, Reader] = {
    'stage': Spot.text, 'variables': read_job_variables, 'needs': list_or_mapping(read_need), 'when': one_of(*WHENS),
    'allow_failure': read_allow_failure, 'only': read_refs, 'except': read_refs, 'rules': rules_of(RULE_FIELDS),
    'extends': anything, 'parallel': read_parallel, 'resource_group': Spot.text, 'start_in': Spot.seconds,
    'inherit': mapping({'default': read_inherited_defaults, 'variables': read_inherited}),
    'environment': read_environment,
    'interruptible': Spot.flag, 'manual_confirmation': Spot.text}
JOB_FIELDS: dict[str, Reader] = {
    **DEFAULT_FIELDS, **PROCESSABLE_FIELDS, 'script': Spot.texts, 'dependencies': Spot.items, 'coverage': read_coverage,
    'release': mapping(RELEASE_FIELDS, 'tag_name', 'description'), 'pages': read_pages, 'publish': Spot.text,
    'secrets': refused('minici reads no vaults'), 'run': refused('use script'),
    'dast_configuration': refused('minici has no scanners')}
BRIDGE_FIELDS: dict[str, Reader] = {**PROCESSABLE_FIELDS, 'trigger': read_trigger}
GLOBAL_FIELDS: dict[str, Reader] = {
    'stages': nested_items, 'types': nested_items, 'variables': read_global_variables, 'include': anything,
    'default': mapping(DEFAULT_FIELDS),
    'workflow': mapping({'rules': rules_of(WORKFLOW_RULE_FIELDS), 'name': read_pipeline_name,
                         'auto_cancel': mapping(AUTO_CANCEL_FIELDS)}),
    **{key: DEFAULT_FIELDS[key] for key in ('image', 'services', 'before_script', 'after_script', 'cache')}}


# Includes #####################################################################################
#
# Rules decide, inputs are put in, and the files that `include` names are merged: what happens to a
# pipeline file before its jobs are read. Files come from a `Tree` or a `Library`, never from here.

class Tree(Protocol):
    """What a compiler asks of a repository."""

    def file(self, sha: str, path: str) -> bytes | None:
        """Return a file as it is at a commit, or None when there is none."""

    def files(self, sha: str) -> Sequence[str]:
        """Return the paths of all files at a commit."""

    def changes(self, base: str, sha: str) -> Sequence[str] | None:
        """Return the paths that differ between a commit (or ref) and a later commit, None when that cannot be told."""


@runtime_checkable
class History(Protocol):
    """A tree with a history."""

    def compare(self, ref: str, sha: str) -> Sequence[str] | None:
        """Return the paths that a commit changed since its history left that of a branch or tag, None if it never did.

        Raises BadRequest when there is no such branch or tag.
        """

    def last_commit(self, sha: str, path: str) -> str | None:
        """Return the newest commit up to this one that changed a file, None if there is none."""


@dataclass(frozen=True)
class Place:
    """Where a file stands: the files that it includes as local come from there."""

    tree: Tree
    sha: str
    name: str = ''      # of another project and ref, in front of its files' names in messages


class Library(Protocol):
    """Finds files outside the repository; each method raises BadRequest when it cannot, and says what would help."""

    def project(self, path: str, ref: str) -> Place:
        """Return the files of another project at a ref, by default its default branch."""

    def component(self, project: str, version: str) -> tuple[Place, str]:
        """Return the files of a component project at a version, and what that version is called in full."""

    def remote(self, url: str, integrity: str) -> bytes:
        """Return the file at an https address; `integrity` is ``sha256-`` and a hash in Base64, or empty."""

    def template(self, name: str) -> bytes:
        """Return one of GitLab's own templates."""

    def artifact(self, job: str, path: str) -> bytes:
        """Return a file out of the artifacts of a job of the parent pipeline."""


class NoFiles:
    """A repository without files, of which nothing is known."""

    def file(self, sha: str, path: str) -> None:
        """Return None: there are no files."""

    def files(self, sha: str) -> Sequence[str]:
        """Return no paths."""
        return ()

    def changes(self, base: str, sha: str) -> None:
        """Return None: what changed cannot be told."""


@dataclass(frozen=True, eq=False)
class Facts:
    """What a pipeline file may ask about: the ref, where the pipeline came from, variables and files.

    `predefined` are the variables that the file may override, `variables` those that override the
    file. Without a `library`, only local files can be included.
    """

    ref: str
    tag: bool
    source: str
    before_sha: str
    place: Place
    project_path: str = ''
    variables: Mapping[str, str] = field(default_factory=dict)
    predefined: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Value] = field(default_factory=dict)
    library: Library | None = None


# -- rules

@dataclass(frozen=True)
class Decision:
    """Whether something is included, the rule that decided, and the reason in words."""

    included: bool
    rule: Rule
    reason: str


class RuleEvaluator:
    """Decides by the facts of a pipeline which rule applies."""

    def __init__(self, facts: Facts, report: Report, name: str) -> None:
        self._facts = facts
        self._report = report
        self._name = name
        self._changes: dict[str, Sequence[str] | BadRequest | None] = {}
        self._files = functools.cache(self._paths)

    def decide(self, rules: Sequence[Rule], scope: Scope) -> Decision:
        """Return what the first rule says whose clauses all hold."""
        for rule in rules:
            notes = self._holding(rule, scope)
            if notes is not None:
                return Decision(rule.get('when') != 'never', rule, reason_of(rule, notes, self._name))
        return Decision(False, Rule(), 'no rule fits')

    def _holding(self, rule: Rule, scope: Scope) -> list[str] | None:
        """Return what there is to say about a rule whose clauses all hold, None when one does not."""
        notes: list[str] = []
        if 'if' in rule.fields and not is_true(rule.get('if'), scope, self._report.budget):
            return None
        if 'changes' in rule.fields:
            changed = self.is_changed(rule.get('changes'), scope)
            if changed is False:
                return None
            notes.append('changes: assumed true' if changed is None else 'changes')
        if 'exists' in rule.fields:
            if not self._exists(rule.get('exists'), scope):
                return None
            notes.append('exists')
        return notes

    def is_changed(self, globs: Globs, scope: Scope) -> bool | None:
        """Tell whether any of the paths differs from what was there before, None when that cannot be told."""
        base = self._facts.before_sha
        if globs.compare_to:
            base = self.expanded(scope, globs.compare_to, globs.spot).removeprefix('refs/heads/')
        if base not in self._changes:
            self._changes[base] = self._changes_since(base, bool(globs.compare_to))
        changed = self._changes[base]
        if changed is None:
            return None
        if isinstance(changed, BadRequest):
            globs.spot.wrong(f'has compare_to: {base}, which cannot be compared with: {changed.problems[0]}')
            return False
        paths = [self.expanded(scope, path, globs.spot) for path in globs.paths]
        return fits_any(paths, changed, self._report.budget)

    @staticmethod
    def expanded(scope: Scope, text: str, spot: Spot) -> str:
        """Return a text with variables, and the variables in those, replaced."""
        try:
            return scope.expand_known(text)
        except ValueError as error:
            spot.wrong(str(error))
            return text

    def _changes_since(self, base: str, named: bool) -> Sequence[str] | BadRequest | None:
        """Return the paths that differ from a commit or ref, None when that is unknown, the error for a wrong ref."""
        if not set(base) - {'0'}:
            return None
        place = self._facts.place
        try:
            if named and isinstance(place.tree, History):
                return place.tree.compare(base, place.sha)
            return place.tree.changes(base, place.sha)
        except BadRequest as error:
            return error

    def _exists(self, globs: Globs, scope: Scope) -> bool:
        """Tell whether any of the paths exists."""
        place = self._facts.place
        if globs.project:
            project, ref = (self.expanded(scope, text, globs.spot) for text in (globs.project, globs.ref))
            found = place_in_library(self._facts, globs.spot.at('project'), project, ref)
            if found is None:
                return False
            place = found
        paths = [self.expanded(scope, path, globs.spot) for path in globs.paths]
        paths = [f'{path}**/*' if path.endswith('/') else path for path in paths]      # a directory: any file in it
        return fits_any(paths, self._files(place), self._report.budget)

    @staticmethod
    def _paths(place: Place) -> Sequence[str]:
        return place.tree.files(place.sha)


def reason_of(rule: Rule, notes: Sequence[str], file: str) -> str:
    """Return in words which rule decided, by which clause, and where it stands if not in `file` itself."""
    if rule.spot is None:
        return 'no condition'
    name = ':'.join(rule.spot.path[-2:])
    mark = rule.spot.mark
    if mark is None:
        place = ''
    elif mark[0] == file:
        place = f' (line {mark[1]})'
    else:
        place = f' ({mark[0]}, line {mark[1]})'
    condition = rule.spot['if'].value if 'if' in rule.spot else ''
    if notes and not condition:
        return f'{name} {", ".join(notes)}{place}'
    return f'{name}{place}: ' + ', '.join([condition or 'no condition', *notes])


def place_in_library(facts: Facts, spot: Spot, project: str, ref: str) -> Place | None:
    """Return the files of another project at a ref; complain when they cannot be had."""
    try:
        if facts.library is None:
            raise BadRequest({'base': [f'the files of {project} cannot be read here']})
        return facts.library.project(project, ref)
    except BadRequest as error:
        spot.wrong(f'names {project}: {error.problems[0]}')
        return None


# -- inputs

INPUT_KINDS: dict[str, type | tuple[type, ...]] = {
    'string': str, 'number': (int, float), 'boolean': bool, 'array': list}


def read_options(spot: Spot) -> list[Value]:
    """Return the values that an input may have."""
    if not isinstance(spot.value, list):
        spot.wrong('must be a list')
        return []
    if len(spot.value) > MAX_INPUT_OPTIONS:
        spot.wrong(f'has {len(spot.value)} options; {MAX_INPUT_OPTIONS} are allowed')
    return [anything(option) for option in spot.spots()]


def read_input_rule(spot: Spot) -> Fields:
    """Return one rule of an input: the `options` and the `default` that hold where `if` is true."""
    rule = spot.fields({'if': read_condition, 'options': read_options, 'default': anything})
    if isinstance(spot.value, dict) and 'default' in spot.value:
        rule.setdefault('default', None)
    if 'options' not in rule and ('if' not in rule or 'default' not in rule):
        told = 'must have options or a default' if 'if' in rule else 'must have options: it has no if'
        spot.wrong(told)
    return rule


INPUT_FIELDS: dict[str, Reader] = {
    'default': anything, 'description': Spot.text, 'options': read_options, 'regex': Spot.text,
    'type': one_of(*INPUT_KINDS), 'rules': listed(read_input_rule)}
SPEC_FIELDS: dict[str, Reader] = {
    'inputs': untouched, 'include': untouched, 'description': Spot.text,
    'component': listed(one_of('name', 'sha', 'version', 'reference'))}
BLOCK = re.compile(r'\$\[\[\s*(\S(?:.*?\S)?)\s*\]\]')
FUNCTIONS = ('expand_vars', 'posix_escape', 'split', 'truncate')
TRUNCATE = re.compile(r'truncate\(\s*(\d+)\s*,\s*(\d+)\s*\)')
SPLIT = re.compile(r"split\('([^']+)'\)")


class InputReader:
    """Reads the header of a file, ``spec:inputs``, and puts the inputs into the rest of it."""

    def __init__(self, header: Spot, scope: Scope, component: Mapping[str, str]) -> None:
        self._scope = scope
        self._component = component
        spec = header.fields({'spec': mapping(SPEC_FIELDS)}).get('spec') or {}
        self._declared: Spot | None = spec.get('inputs')
        self._header = header

    def values(self, given: Mapping[str, Value], spot: Spot) -> dict[str, Value]:
        """Return the value of each input; complain about those that are missing, unknown or of another kind."""
        declared = self._declared
        if declared is None:
            names: list[str] = []
        elif isinstance(declared.value, dict):
            names = list(declared.value)
        else:
            declared.wrong('must be a mapping of names to inputs')
            return {}
        for name in given:
            if name not in names:
                spot.wrong(f'gives the input {name}, which the file does not have', name, names)
        inputs = {name: self._fields(declared[name]) for name in names if declared is not None}
        self._check_rules(inputs)
        wanted = {name: as_input(given[name], fields.get('type', 'string'))
                  for name, fields in inputs.items() if name in given}
        found: dict[str, Value] = {}
        for name, fields in inputs.items():
            known = {**found, **wanted}
            found[name] = self._value(name, self._ruled(fields, known), wanted, spot)
        return found

    @staticmethod
    def _fields(declared: Spot) -> Fields:
        """Return what the file says of an input, and where."""
        if declared.value is None:
            return {'spot': declared}
        fields = declared.fields(INPUT_FIELDS, spot=declared)
        if isinstance(declared.value, dict) and 'default' in declared.value:
            fields.setdefault('default', None)
        kind = fields.get('type', 'string')
        if 'rules' in fields and fields.keys() & {'options', 'default'}:
            declared.wrong('has rules, which cannot stand beside options or default')
        if kind == 'boolean' and 'options' in fields:
            declared['options'].wrong('cannot be given for a boolean')
        if kind != 'string' and 'regex' in fields:
            declared['regex'].wrong('can be given for a string only')
        return fields

    @staticmethod
    def _check_rules(inputs: Mapping[str, Fields]) -> None:
        """Complain about rules that name inputs that are not there, or each other in a circle."""
        graph: dict[str, set[str]] = {}
        for name, fields in inputs.items():
            trees = [rule['if'] for rule in fields.get('rules', ()) if 'if' in rule]
            asked = set().union(*map(variables_in, trees))
            graph[name] = {text.removeprefix('inputs.') for text in asked}
            for unknown in sorted(graph[name] - inputs.keys()):
                fields['spot'].at('rules').wrong(f'name {unknown}, which is no input of the file', unknown, inputs)
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            names = error.args[1]
            inputs[names[0]]['spot'].at('rules').wrong(f'go round in a circle: {", ".join(names)}')

    def _ruled(self, fields: Fields, known: Mapping[str, Value]) -> Fields:
        """Return an input with the options and the default of its first rule that holds."""
        rules = fields.get('rules', ())
        if any('default' in rule or 'if' not in rule for rule in rules):
            fields = {'default': None, **fields}
        scope = Scope({f'inputs.{name}': value for name, value in known.items()})
        for rule in rules:
            if 'if' not in rule or is_true(rule['if'], scope, self._header.report.budget):
                return {**fields, **rule}
        return fields

    def _value(self, name: str, fields: Fields, given: Mapping[str, Value], spot: Spot) -> Value:
        kind = fields.get('type', 'string')
        default = as_input(fields.get('default'), kind)
        if 'default' not in fields and name not in given:
            spot.wrong(f'must give the input {name}: it has no default')
        elif fields.get('default') is not None or kind != 'string' and name not in given:
            self._check(default, fields, fields['spot'], f'has a default of the input {name}')
        if name not in given:
            return default
        self._check(given[name], fields, spot, f'has a value of the input {name}')
        return given[name]

    @staticmethod
    def _check(value: Value, fields: Fields, spot: Spot, subject: str) -> None:
        """Complain about a value that is not what its input says."""
        kind = fields.get('type', 'string')
        options = fields.get('options')
        if options and kind == 'string':
            options = [as_input(option, kind) for option in options]
        chosen = value if isinstance(value, list) else [value]
        if not isinstance(value, INPUT_KINDS[kind]) or isinstance(value, bool) and kind != 'boolean':
            spot.wrong(f'{subject} that is not {a_kind(kind)}')
        elif options is not None and any(item not in options for item in chosen):
            told = ', '.join(map(plain_text, options))
            spot.wrong(f'{subject} that is none of its options: {told}', value, options)
        elif 'regex' in fields and kind == 'string':
            try:
                if not any(spot.report.budget.find_all(re2_pattern(fields['regex']), str(value))):
                    spot.wrong(f'{subject} that does not match {fields["regex"]}')
            except ValueError as error:
                spot.wrong(f'{subject} whose regex cannot be read: {error}')

    def interpolate(self, text: str, inputs: Mapping[str, Value]) -> str:
        """Return the text of a file with each ``$[[ inputs.name ]]`` replaced; JSON stands for what is no text."""
        def replacement(match: re.Match[str]) -> str:
            access, *calls = [part.strip() for part in match[1].split('|')]
            if access.startswith('matrix.'):
                return match[0]
            value = self._lookup(access, inputs)
            if len(calls) > 3:
                self._header.wrong(f'is used with more than three functions in {match[0]}')
            for call in calls[:3]:
                value = self._apply(call, value)
            if isinstance(value, str):
                return value
            return json.dumps(value)

        return BLOCK.sub(replacement, text)

    def _lookup(self, access: str, inputs: Mapping[str, Value]) -> Value:
        kind, _, name = access.partition('.')
        known = {'inputs': inputs, 'component': self._component}.get(kind, {})
        if name not in known:
            self._header.wrong(f'has no {access}, which the file uses', name, known)
        value = known.get(name)
        if value is None:
            return ''
        return value

    def _apply(self, call: str, value: Value) -> Value:
        """Return what one of the functions makes of a value."""
        truncate = TRUNCATE.fullmatch(call)
        split = SPLIT.fullmatch(call)
        if not truncate and not split and call not in ('expand_vars', 'posix_escape'):
            self._header.wrong(f'is used with {call}, which is no function', call, FUNCTIONS)
        elif not isinstance(value, str):
            self._header.wrong(f'is used with {call}, which takes a text')
        elif truncate:
            start = int(truncate[1])
            return value[start:start + int(truncate[2])]
        elif split:
            parts = map(str.strip, value.split(split[1]))
            return list(filter(None, parts))
        elif call == 'expand_vars':
            return self._scope.expand_known(value, nested=False)
        else:
            return re.sub(r'[^A-Za-z0-9_\-.,:+/@\n]', r'\\\g<0>', value).replace('\n', "'\n'") or "''"
        return value


def as_input(value: Value, kind: str) -> Value:
    """Return a value as the kind of its input says: a string is made of anything, all else may be written as JSON."""
    if kind == 'string':
        if isinstance(value, (bool, int, float)):
            return text_of(value)
        return plain_text(value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def merged_yaml(merged: Mapping[str, Value]) -> str:
    """Return a merged pipeline file as YAML."""
    text = json.dumps(merged, indent=2)
    if yaml is None:
        return text
    return yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True, explicit_start=True)


def plain_text(value: Value) -> str:
    """Return a value as people would type it."""
    if value is None:
        return ''
    if isinstance(value, str):
        return value
    return json.dumps(value)


def a_kind(kind: str) -> str:
    """Return the name of a kind with its article."""
    if kind == 'array':
        return 'an array'
    return f'a {kind}'


# -- files

@dataclass(frozen=True)
class Found:
    """An included file: its name for messages, its content, and where the files that it includes come from."""

    name: str
    content: bytes
    place: Place
    component: Mapping[str, str] = field(default_factory=dict)


class Includes:
    """Puts a pipeline file and all that it includes together."""

    def __init__(self, facts: Facts, report: Report, evaluator: RuleEvaluator) -> None:
        self._facts = facts
        self._report = report
        self._evaluator = evaluator
        self._scope = Scope(facts.predefined, facts.variables)
        self._count = 0
        self._readers: dict[str, Callable[[Fields, Place, Spot], Iterator[Found]]] = {
            'local': self._local, 'project': self._project, 'template': self._template, 'remote': self._remote,
            'component': self._component, 'artifact': self._artifact}

    def load(self, content: str | bytes | Mapping[str, Value], name: str, given: Mapping[str, Value], place: Place,
             spot: Spot | None = None, component: Mapping[str, str] | None = None) -> Map:
        """Return a file as a mapping, the inputs given to it put in.

        `place` is where the files come from that it includes, `spot` where the inputs are given.
        """
        text = decoded_text(content, name)
        if isinstance(text, Mapping):
            loaded = marked_value(text, name)
        else:
            header, text = split_header(text)
            if header:
                top = self._header(load_text(header, name, self._report), place)
                reader = InputReader(top, self._scope, component or {})
                inputs = reader.values(given, spot or top)
                text = reader.interpolate(text, inputs)
                self._report.check()
                if len(text) > MAX_FILE_SIZE:
                    raise BadRequest({'base': [f'{name}: has more than {MAX_FILE_SIZE} bytes with its inputs']})
                given = {}
            loaded = load_text(text, name, self._report)
        if not isinstance(loaded, Map):
            raise BadRequest({'base': [f'{name}:1:1: must be a mapping of jobs and keywords']})
        if given:
            (spot or Spot(loaded, loaded.mark, self._report)).wrong(
                f'gives the inputs {", ".join(given)}, and the file has no spec:inputs')
        return loaded

    def _header(self, header: Value, place: Place) -> Spot:
        """Return the header of a file, with the inputs of the files under ``spec:include`` among its own."""
        top = Spot(header, getattr(header, 'mark', None), self._report)
        spec = header.get('spec') if isinstance(header, Map) else None
        if not isinstance(spec, Map) or spec.get('include') is None:
            return top
        inputs = Map(mark=spec.mark)
        files = itertools.chain.from_iterable(self._files(spot, place) for spot in top['spec']['include'].spots())
        shared = [load_text(str(decoded_text(file.content, file.name)), file.name, self._report) for file in files]
        for declared in [*shared, Map({'inputs': spec.get('inputs')}, spec.mark)]:
            self._add_inputs(inputs, Spot(declared, getattr(declared, 'mark', None), self._report))
        whole = Map(spec, spec.mark, spec.marks)
        whole.put('inputs', inputs, spec.mark)
        return Spot(Map({'spec': whole}, top.mark), top.mark, self._report)

    def _files(self, spot: Spot, place: Place) -> Iterator[Found]:
        """Yield the files that one entry of ``spec:include`` names."""
        source = self._source(spot, ('local', 'project', 'remote'))
        if source is None:
            return
        kind, fields = source
        try:
            for found in self._readers[kind](fields, place, spot):
                self._count_file(spot)
                yield found
        except BadRequest as error:
            spot.at(kind).wrong(f'names {fields[kind]}: {"; ".join(error.problems)}')

    @staticmethod
    def _add_inputs(inputs: Map, declared: Spot) -> None:
        """Add the inputs that one file declares; each may be declared once."""
        found = declared.fields({'inputs': untouched}).get('inputs')
        if found is None or not isinstance(found.value, Map):
            return
        for name, value in found.value.items():
            if name in inputs:
                found[name].wrong('is declared twice')
            inputs.put(name, value, found.value.marks.get(name))

    def merged(self, root: Map, place: Place, above: tuple[str, ...] = ()) -> Map:
        """Return a file laid over the files that it includes; a later include wins over an earlier one."""
        if root.get('include') is None:
            return root
        base = Map(mark=root.mark)
        for spot in Spot(root, root.mark, self._report)['include'].spots():
            for file in self._entry(spot, place, above):
                base = file.over(base)
        self._report.check()
        return root.over(base)

    def _entry(self, spot: Spot, place: Place, above: tuple[str, ...]) -> Iterator[Map]:
        """Yield the files that one entry of `include` names, with all that they include."""
        source = self._source(spot, INCLUDE_KINDS)
        if source is None:
            return
        kind, fields = source
        if 'rules' in fields and not self._evaluator.decide(fields['rules'], self._scope).included:
            return
        try:
            for found in self._readers[kind](fields, place, spot):
                yield from self._file(found, fields.get('inputs') or {}, spot.at('inputs'), above)
        except BadRequest as error:
            spot.at(kind).wrong(f'names {fields[kind]}: {"; ".join(error.problems)}')

    def _source(self, spot: Spot, kinds: Sequence[str]) -> tuple[str, Fields] | None:
        """Return what kind of file an entry names and what else it says, None when it names none of `kinds`."""
        if isinstance(spot.value, dict):
            fields = spot.fields(INCLUDE_FIELDS)
        else:
            text = spot.text()
            fields = {'remote' if re.match(r'https?://', text) else 'local': text}
        named = [kind for kind in INCLUDE_KINDS if fields.get(kind)]
        if len(named) != 1 or named[0] not in kinds:
            spot.wrong(f'must name one of {", ".join(kinds)}')
            return None
        for key in (*INCLUDE_KINDS, 'ref', 'job'):
            if key in fields:
                fields[key] = self._scope.expand(fields[key], nested=False)
        return named[0], fields

    def _file(self, found: Found, inputs: Mapping[str, Value], spot: Spot, above: tuple[str, ...]) -> Iterator[Map]:
        """Yield one included file with what it includes; one that includes itself is left out."""
        if found.name in above:
            return
        self._count_file(spot)
        loaded = None
        try:
            loaded = self.load(found.content, found.name, inputs, found.place, spot, found.component)
        except BadRequest as error:
            for problem in error.problems:      # each names its own place
                self._report.take(problem)
        if loaded is not None:
            yield self.merged(loaded, found.place, (*above, found.name))

    def _count_file(self, spot: Spot) -> None:
        """Count a file that is included; raise BadRequest when there are too many."""
        self._count += 1
        self._report.budget.check()
        if self._count > MAX_INCLUDES:
            spot.wrong(f'makes this more than {MAX_INCLUDES} files')
            self._report.check()

    def _local(self, fields: Fields, place: Place, spot: Spot) -> Iterator[Found]:
        path = fields['local'].lstrip('/')
        if '*' not in path:
            yield from self._read(place, [path], spot, 'which is not in the repository')
            return
        wild = re.escape(path).replace(r'\*\*', r'[^\x00]*').replace(r'\*', r'[^/\x00]*')     # not the globs of rules
        pattern = regex.compile(rf'(?:^|\x00)({wild})(?=\x00|\Z)')
        paths = '\0'.join(sorted(place.tree.files(place.sha)))
        names = [match[1] for match in self._report.budget.find_all(pattern, paths, path) if match[1]]
        yield from self._read(place, [name for name in names if is_yaml(name)], spot, 'which is not in the repository')

    def _read(self, place: Place, paths: Iterable[str], spot: Spot, missing: str) -> Iterator[Found]:
        """Yield files of a repository."""
        for path in paths:
            if not is_yaml(path):
                spot.wrong(f'names {path}, and a pipeline file ends in .yml or .yaml')
                continue
            content = place.tree.file(place.sha, path)
            if content is None:
                spot.wrong(f'names {place.name}{path}, {missing}')
            else:
                yield Found(place.name + path, content, place)

    def _project(self, fields: Fields, place: Place, spot: Spot) -> Iterator[Found]:
        if not fields.get('file'):
            spot.wrong('must name a file of the project')
            return
        other = self._library().project(fields['project'], fields.get('ref', ''))
        paths = [self._scope.expand(path, nested=False).lstrip('/') for path in fields['file']]
        yield from self._read(other, paths, spot, 'which that project does not have')

    def _component(self, fields: Fields, place: Place, spot: Spot) -> Iterator[Found]:
        """Yield a component: ``HOST/PROJECT/NAME@VERSION`` is templates/NAME.yml or templates/NAME/template.yml."""
        address, _, version = fields['component'].partition('@')
        _, _, path = address.partition('/')
        project, _, name = path.rpartition('/')
        if not version or not project:
            spot.wrong('names a component, which is written HOST/PROJECT/NAME@VERSION')
            return
        other, full = self._library().component(address.rpartition('/')[0], version)
        component = {'name': name, 'sha': other.sha, 'version': full, 'reference': version}
        for path in (f'templates/{name}.yml', f'templates/{name}/template.yml'):
            content = other.tree.file(other.sha, path)
            if content is not None:
                yield Found(other.name + path, content, other, component)
                return
        spot.wrong(f'names {fields["component"]}, and {project} has no templates/{name}.yml '
                   f'nor templates/{name}/template.yml')

    def _remote(self, fields: Fields, place: Place, spot: Spot) -> Iterator[Found]:
        url = fields['remote']
        integrity = fields.get('integrity', '')
        if not is_yaml(urllib.parse.urlsplit(url).path):
            spot.wrong(f'names {url}, and a pipeline file ends in .yml or .yaml')
            return
        yield Found(url, self._library().remote(url, integrity), Place(NoFiles(), ''))

    def _template(self, fields: Fields, place: Place, spot: Spot) -> Iterator[Found]:
        name = fields['template']
        if not name.endswith('.gitlab-ci.yml'):
            spot.wrong(f'names {name}, and the name of a template ends in .gitlab-ci.yml')
            return
        yield Found(name, self._library().template(name), Place(NoFiles(), ''))

    def _artifact(self, fields: Fields, place: Place, spot: Spot) -> Iterator[Found]:
        if not fields.get('job'):
            spot.wrong('must name the job that makes the artifact')
            return
        content = self._library().artifact(fields['job'], fields['artifact'])
        yield Found(fields['artifact'], content, self._facts.place)

    def _library(self) -> Library:
        if self._facts.library is None:
            raise BadRequest({'base': ['only files of the repository can be included here']})
        return self._facts.library


def is_yaml(path: str) -> bool:
    """Tell whether GitLab would include a file of this name."""
    return path.lower().endswith(('.yml', '.yaml'))


# Pipeline files ###############################################################################
#
# A pipeline file in, a PipelineSpec out: includes, `extends` and `!reference` are resolved, each job's
# keywords are read, its rules decide whether it is in, and its needs are linked to other jobs.

DEFAULT_STAGES = ('build', 'test', 'deploy')


class Resolver:
    """Resolves `extends` and `!reference` in a file that is merged from all its includes."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._done: dict[str, Map] = {}
        self._untouched: dict[int, int] = {}    # how many values stand in a mapping or list without references, by id

    def resolve(self, root: Map) -> Map:
        """Return the file with nothing left to look up."""
        extended = Map(root, root.mark, root.marks)
        for name, value in root.items():
            if isinstance(value, Map) and name not in GLOBAL_FIELDS:
                extended[name] = self._extended(Spot(root, root.mark, self._report), name, ())
        self._report.check()
        resolved: Map = self._referenced(extended, extended, ())
        self._report.check()
        return resolved

    def _extended(self, root: Spot, name: str, below: tuple[str, ...]) -> Map:
        """Return a job laid over the jobs it extends."""
        own: Map = root.value[name]
        if own.get('extends') is None:
            return own
        if name in self._done:
            return self._done[name]
        base = Map(mark=own.mark)
        spot = root[name]['extends']
        for parent in spot.texts():
            if not isinstance(root.value.get(parent), Map):
                jobs = (key for key in root.value if key not in GLOBAL_FIELDS)
                spot.wrong(f'names {parent}, and there is no such job', parent, jobs)
            elif parent in (*below, name) or len(below) >= MAX_DEPTH - 1:
                spot.wrong(f'names {parent}, which goes round in circles or too deep')
            else:
                base = self._extended(root, parent, (*below, name)).over(base)
        merged = self._done[name] = own.over(base)
        merged.pop('extends', None)
        return merged

    def _referenced(self, root: Map, value: Value, above: tuple[tuple[str, ...], ...]) -> Value:
        """Return a value with each `!reference` in it replaced by what it names; untouched values stay as they are."""
        if isinstance(value, Reference):
            return self._looked_up(root, value, above)
        if not isinstance(value, (Map, Seq)):
            return value
        size = self._untouched.get(id(value), 0)
        if above:
            self._report.budget.spend(size or len(value), 0, value.mark)
        if size:
            return value
        items = value.values() if isinstance(value, Map) else value
        found = [self._referenced(root, item, above) for item in items]
        if all(map(operator.is_, found, items)):
            self._untouched[id(value)] = len(found) + sum(self._untouched.get(id(item), 0) for item in found)
            return value
        if isinstance(value, Map):
            return Map(zip(value, found, strict=True), value.mark, value.marks)
        return Seq(found, value.mark, value.marks)

    def _looked_up(self, root: Map, reference: Reference, above: tuple[tuple[str, ...], ...]) -> Value:
        """Return what a `!reference` names."""
        keys = tuple(str(key) for key in reference)
        found: Value = root
        for key in keys:
            found = found.get(key) if isinstance(found, Map) else None
        spot = Spot(reference, reference.mark, self._report)
        if found is None or not keys:
            spot.wrong(f'!reference [{", ".join(keys)}] names nothing', ''.join(keys[:1]), root)
            return None
        if keys in above or len(above) >= MAX_DEPTH - 1:
            spot.wrong(f'!reference [{", ".join(keys)}] goes round in circles or too deep')
            return None
        return self._referenced(root, found, (*above, keys))


# -- jobs

@dataclass(eq=False)
class Draft:
    """One job on its way to a JobSpec; `parallel` makes several of one job of the file."""

    name: str
    spot: Spot
    keywords: Fields                            # what the job says and inherits, read
    layers: Sequence[Mapping[str, Variable]]    # its variables; a later layer wins, and jobs share what they inherit
    group: str = ''                             # the job's name in the file
    matrix: Mapping[str, str] = field(default_factory=dict)     # its own row of a matrix
    copies: tuple[int, int] | None = None       # its number and how many there are
    predefined: Mapping[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Variable]:
        """The variables of the job."""
        found: dict[str, Variable] = {}
        for layer in self.layers:
            found.update(layer)
        return found

    @property
    def stage(self) -> str:
        """The stage of the job."""
        return str(self.keywords['stage'])

    def get(self, keyword: str, default: Value = None) -> Value:
        """Return what the job says of a keyword."""
        return self.keywords.get(keyword, default)

    def wrong(self, complaint: str, keyword: str = '', word: object = '', known: Iterable[str] = ()) -> None:
        """Complain about the job, or about one of its keywords if it stands in the job itself."""
        self.spot.at(keyword).wrong(complaint, word, known)


class JobReader:
    """Reads the jobs of a resolved file: keywords, what they inherit, copies and variables."""

    def __init__(self, facts: Facts, report: Report, stages: Sequence[str]) -> None:
        self._facts = facts
        self._report = report
        self._stages = stages
        self._file = functools.cache(self._blob)

    def read(self, spot: Spot, name: str, defaults: Fields, variables: dict[str, Variable]) -> list[Draft]:
        """Return a job as one draft for each of its parallel copies."""
        if not isinstance(spot.value, dict):
            spot.wrong('must be a mapping: a job with a script, or a keyword that minici does not know',
                       name, GLOBAL_FIELDS)
            return []
        self._report.budget.check()
        mirror = not spot.value.get('script') and mirrored_need(spot.value.get('needs')) is not None
        bridge = 'trigger' in spot or mirror
        own = spot.fields(BRIDGE_FIELDS if bridge else JOB_FIELDS)
        inherit = own.get('inherit', {})
        inherited = {} if bridge else inherited_values(defaults, inherit.get('default', True))
        keywords = {**inherited, **own}
        layers = (inherited_values(variables, inherit.get('variables', True)), own.get('variables', {}))
        draft = Draft(name, spot, keywords, layers, group=name)
        self._check(draft, own, bridge=bridge)
        if not bridge:
            self._complete(draft)
        return parallel_copies(draft)

    def _check(self, draft: Draft, own: Fields, *, bridge: bool) -> None:
        """Complain about what the keywords of a job may not be together."""
        spot = draft.spot
        keywords = draft.keywords
        if not 0 < len(draft.name) <= 255:
            spot.wrong('must have a name of 1 to 255 characters')
        if not bridge and not spot.value.get('script') and not own.get('run'):
            spot.wrong('must have a script')
        if keywords.setdefault('stage', 'test') not in self._stages:
            listed_stages = ', '.join(self._stages)
            draft.wrong(f'names the stage {draft.stage}, which is none of {listed_stages}', 'stage',
                        draft.stage, self._stages)
            keywords['stage'] = self._stages[0]
        if 'rules' in own:
            if 'only' in own or 'except' in own:
                spot.wrong('cannot have rules together with only or except')
            if 'start_in' in own:
                draft.wrong('cannot stand beside rules: write it into a rule', 'start_in')
        ways = [(own, spot)] + [(rule.fields, rule.spot) for rule in own.get('rules', ()) if rule.spot]
        for fields, place in ways:
            delayed = fields.get('when') == 'delayed' and (fields is not own or 'rules' not in own)
            if delayed and not 0 < (fields.get('start_in') or 0) <= MAX_START_IN:
                place.wrong('is delayed and needs start_in, of at most a week')
            elif 'start_in' in fields and fields.get('when') != 'delayed':
                place.wrong('has start_in, which needs when: delayed')
        if bridge and own.get('when') == 'delayed':
            draft.wrong('must be one of on_success, on_failure, always, manual in a job with trigger', 'when')

    def _complete(self, draft: Draft) -> None:
        """Put in what follows from a job's keywords: keys of caches, artifacts of pages."""
        keywords = draft.keywords
        keywords['cache'] = [{**cache, 'key': self._cache_key(cache['key'], index)}
                             for index, cache in enumerate(keywords.get('cache', ()))]
        pages = keywords.get('pages', draft.name == 'pages')
        if not pages:
            return
        path = keywords.get('publish') or 'public'
        if isinstance(pages, dict):
            path = pages.get('publish') or path
        artifacts = keywords.get('artifacts', [])
        archives = [upload for upload in artifacts if upload['artifact_type'] == 'archive']
        if not archives:
            archive = {'untracked': False, 'paths': [path], 'when': 'on_success', 'artifact_type': 'archive',
                       'artifact_format': 'zip'}
            keywords['artifacts'] = [archive, *artifacts]
        elif path not in archives[0]['paths']:
            archive = {**archives[0], 'paths': [*archives[0]['paths'], path]}
            keywords['artifacts'] = [archive if upload is archives[0] else upload for upload in artifacts]

    def _cache_key(self, key: str | Fields, index: int) -> str:
        """Return the key of a cache; one of files changes with what they hold, or with their commits, as in GitLab.

        `index` is the cache's place among those of its job: two caches that name the same files stay apart.
        """
        if isinstance(key, str):
            return key
        files = key.get('files', [])
        ids = {self._file(path) for path in self._expand(files)}
        ids |= {self._last_commit(path) for path in key.get('files_commits', ())}
        ids.discard('')
        digest = 'default'
        if ids:
            digest = hashlib.sha1('-'.join(sorted(ids)).encode(), usedforsecurity=False).hexdigest()
        prefix = key.get('prefix', '')
        if index and not prefix:
            prefix = '_'.join([str(index), *(name.partition('.')[0] for name in files)])
        return '-'.join(part for part in (prefix, digest) if part)

    def _expand(self, names: Iterable[str]) -> list[str]:
        """Return paths, with the files that fit in the place of globs."""
        place = self._facts.place
        paths = []
        for name in names:
            if '*' not in name:
                paths.append(name)
                continue
            text = '\0'.join(place.tree.files(place.sha))
            found = self._report.budget.find_all(glob_pattern(name), text)
            paths += [match[0].strip('\0') for match in found]
        return paths

    def _last_commit(self, path: str) -> str:
        """Return the commit that has last changed a file, an empty text when that is not known."""
        place = self._facts.place
        if not isinstance(place.tree, History):
            return ''
        return place.tree.last_commit(place.sha, path) or ''

    def _blob(self, path: str) -> str:
        """Return the id that git gives to the content of a file, an empty text when there is no such file."""
        place = self._facts.place
        content = place.tree.file(place.sha, path)
        if content is None:
            return ''
        return hashlib.sha1(b'blob %d\0%b' % (len(content), content), usedforsecurity=False).hexdigest()

    def scope_of(self, draft: Draft) -> Scope:
        """Return the variables that the rules of a job know."""
        return Scope(self._facts.predefined, draft.predefined, *draft.layers, self._facts.variables)

    def predefine(self, draft: Draft) -> None:
        """Set the predefined variables that are known of a job before it exists."""
        known = {
            'CI_JOB_NAME': draft.name,
            'CI_JOB_NAME_SLUG': slug(draft.name),
            'CI_JOB_GROUP_NAME': draft.group,
            'CI_JOB_STAGE': draft.stage,
            'CI_NODE_TOTAL': '1',
        }
        if draft.get('when') in ('manual', 'delayed'):
            known['CI_JOB_MANUAL'] = 'true'
        draft.predefined = known
        environment = draft.get('environment')
        if not environment:
            return
        name = self.expanded(draft, environment.get('name', ''), 'environment')
        known['CI_ENVIRONMENT_NAME'] = name
        known['CI_ENVIRONMENT_ACTION'] = environment.get('action', 'start')
        for key in ('url', 'deployment_tier'):
            if key in environment:
                known['CI_ENVIRONMENT_' + key.rpartition('_')[2].upper()] = environment[key]

    def expanded(self, draft: Draft, text: str, keyword: str, *, keep: bool = False) -> str:
        """Return a text of a job with variables, and the variables in those, replaced.

        With `keep`, what is not known stays as it is written, else it becomes nothing.
        """
        if '$' not in text and '%' not in text:
            return text
        scope = self.scope_of(draft)
        try:
            if keep:
                return scope.expand_known(text)
            return scope.expand(text)
        except ValueError as error:
            draft.wrong(str(error), keyword)
            return text


def inherited_values(whole: dict[str, Value], choice: bool | list[str]) -> dict[str, Value]:
    """Return what `inherit` leaves of the defaults or variables."""
    if choice is True:
        return whole
    return {key: whole[key] for key in choice or () if key in whole}


def parallel_copies(draft: Draft) -> list[Draft]:
    """Return the copies that `parallel` makes of a job, each with its name and variables; the job alone without it."""
    parallel = draft.get('parallel')
    if parallel is None:
        return [draft]
    numbered = isinstance(parallel, int)
    rows = [{}] * parallel if numbered else parallel
    copies = []
    for index, row in enumerate(rows, 1):
        suffix = f' {index}/{parallel}'
        if not numbered:
            values = ', '.join(row.values())
            suffix = f': [{values}]'
        numbers = {'CI_NODE_INDEX': str(index), 'CI_NODE_TOTAL': str(len(rows))}
        own = {key: Variable(value) for key, value in {**row, **numbers}.items()}
        keywords = dict(draft.keywords)
        layers = (*draft.layers, own)
        made = dataclasses.replace(draft, name=draft.name + suffix, keywords=keywords, layers=layers, matrix=row,
                                   copies=(index, len(rows)))
        copies.append(made)
    return copies


def with_one_job_a_name(jobs: Mapping[str, Sequence[Draft]]) -> dict[str, list[Draft]]:
    """Return jobs with the later of those that have one name in the place of the earlier ones, as in GitLab."""
    latest: dict[str, Draft] = {}
    for draft in itertools.chain.from_iterable(jobs.values()):
        earlier = latest.get(draft.name)
        if earlier:
            told = 'the matrix makes it twice' if earlier.spot is draft.spot else f'so is one of {earlier.group}'
            draft.spot.report.warn(f'{place_of(draft.spot.mark)}a job of {draft.group} is called {draft.name}, and '
                                   f'{told}: the later counts')
        latest[draft.name] = draft
    return {name: [latest[draft.name] for draft in drafts] for name, drafts in jobs.items()}


# -- needs

MATRIX_BLOCK = re.compile(r'\$\[\[\s*matrix\.([A-Za-z0-9_-]+)\s*\]\]')


class Linker:
    """Finds the jobs that jobs need and depend on, and complains about those that cannot be had."""

    def __init__(self, included: Sequence[Draft], jobs: Mapping[str, Sequence[Draft]], stages: Sequence[str]) -> None:
        self._jobs = jobs
        self._stages = {stage: index for index, stage in enumerate(stages)}
        self._named: dict[str, Sequence[Draft]] = {}
        for copies in jobs.values():
            self._named.update({draft.name: [draft] for draft in copies})
        self._named.update(jobs)
        self._running = {draft.name for draft in included}

    def check_stop(self, draft: Draft) -> None:
        """Complain about the job that stops a job's environment."""
        environment = draft.get('environment') or {}
        stopper = environment.get('on_stop')
        if not stopper:
            return
        if stopper not in self._jobs:
            draft.wrong(f'has on_stop: {stopper}, and there is no such job', 'environment', stopper, self._jobs)
            return
        for other in self._jobs[stopper][:1]:
            theirs = other.get('environment') or {}
            if theirs.get('name') != environment.get('name'):
                draft.wrong(f'has on_stop: {stopper}, a job of another environment', 'environment')
            elif theirs.get('action') != 'stop':
                draft.wrong(f'has on_stop: {stopper}, which must have action: stop', 'environment')

    def needs(self, draft: Draft) -> list[dict[str, Value]] | None:
        """Return the jobs of this pipeline that a job needs, None when it waits for stages."""
        needs: Sequence[Need] | None = draft.get('needs')
        if needs is None:
            return None
        if len(needs) > MAX_NEEDS:
            draft.spot.wrong(f'needs {len(needs)} jobs; {MAX_NEEDS} are allowed')
        found: dict[str, bool] = {}
        seen: set[str] = set()
        for need in needs[:MAX_NEEDS]:
            if not need.job or need.pipeline or need.project:
                continue
            if need.job in seen and need.parallel is None:
                need.spot.wrong(f'needs {need.job} twice')
            seen.add(need.job)
            for other in self._needed(draft, need):
                found[other.name] = need.artifacts
        return [{'name': name, 'artifacts': artifacts} for name, artifacts in found.items()]

    def _needed(self, draft: Draft, need: Need) -> list[Draft]:
        """Return the copies that one need names."""
        copies = [other for other in self._named.get(need.job, ()) if other.name in self._running]
        if need.job not in self._named:
            if not need.optional:
                need.spot.wrong(f'needs {need.job}, and there is no such job', need.job, self._named)
        elif not copies and not need.optional:
            need.spot.wrong(f'needs {need.job}, which is not in this pipeline; make it optional '
                            'or give both jobs the same rules')
        elif self._are_later(copies, draft):
            need.spot.wrong(f'needs {need.job}, which is in a later stage')
        if not isinstance(need.parallel, list):
            return copies
        wanted = []
        for row in need.parallel:
            values = {name: self._in_matrix(draft, need, text) for name, text in row.items()}
            fitting = [other for other in copies if [*values.items()] == [*other.matrix.items()]]
            if not fitting and not need.optional:
                told = ', '.join(f'{name}: {value}' for name, value in values.items())
                need.spot.wrong(f'needs {need.job} with {told}, and no copy of it in this pipeline has that')
            wanted += fitting
        return wanted

    @staticmethod
    def _in_matrix(draft: Draft, need: Need, text: str) -> str:
        """Return a value of a needed matrix with the values of the job's own matrix put in."""
        def replacement(match: re.Match[str]) -> str:
            if match[1] not in draft.matrix:
                need.spot.wrong(f'uses matrix.{match[1]}, which {draft.group} does not have', match[1], draft.matrix)
            return draft.matrix.get(match[1], '')

        return MATRIX_BLOCK.sub(replacement, text)

    def _are_later(self, others: Iterable[Draft], draft: Draft) -> bool:
        own = self._stages[draft.stage]
        return any(self._stages[other.stage] > own for other in others)

    def dependencies(self, draft: Draft) -> list[str] | None:
        """Return the jobs whose artifacts a job asks for, None for all before it."""
        names: Sequence[str] | None = draft.get('dependencies')
        if names is None:
            return None
        needs: Sequence[Need] = draft.get('needs') or ()
        needed = {other.name for need in needs for other in self._named.get(need.job, ())}
        found = []
        for name in names:
            others = self._named.get(name, ())
            if name not in self._named:
                draft.wrong(f'names {name}, and there is no such job', 'dependencies', name, self._named)
            elif needs and needed.isdisjoint(other.name for other in others):
                draft.wrong(f'names {name}, which must be among its needs', 'dependencies')
            elif any(other is draft for other in others):
                draft.wrong(f'names {name}, the job itself', 'dependencies')
            elif draft.get('needs') is None and self._are_later(others, draft):
                draft.wrong(f'names {name}, which is in a later stage', 'dependencies')
            found += [other.name for other in others]
        return found

    def check_circles(self, specs: Sequence[JobSpec]) -> None:
        """Complain about jobs that wait for each other."""
        graph = {spec.name: [need['name'] for need in spec.needs or ()] for spec in specs}
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            circle = error.args[1][::-1]        # each needs the next; the last is the first again
            start = circle.index(min(circle))
            names = [*circle[start:-1], *circle[:start], circle[start]]
            self._named[names[0]][0].wrong(f'goes round in a circle: {" needs ".join(names)}', 'needs')


# -- the compiler

class Compiler:
    """One pipeline file on its way to a PipelineSpec."""

    def __init__(self, facts: Facts, name: str = PIPELINE_FILE) -> None:
        self._facts = facts
        self._name = name
        self._report = Report()
        self._evaluator = RuleEvaluator(facts, self._report, name)
        self._decisions: dict[str, str] = {}

    def compile(self, content: str | bytes | Mapping[str, Value]) -> PipelineSpec:
        """Return the pipeline; raise BadRequest with all that is wrong."""
        merged = self._merged(content)
        spot = Spot(merged, merged.mark, self._report)
        names = [key for key in merged if key not in GLOBAL_FIELDS and not key.startswith('.')]
        found = {key: read(spot[key]) for key, read in GLOBAL_FIELDS.items() if key in spot}
        stages = stages_of(found)
        workflow = found.get('workflow', {})
        variables = found.get('variables', {})
        decision = self._workflow(workflow, variables)
        variables = {**variables, **decision.rule.variables}
        reader = JobReader(self._facts, self._report, stages)
        defaults = self._defaults(spot, found)
        jobs = with_one_job_a_name({name: reader.read(spot[name], name, defaults, variables) for name in names})
        if not names:
            spot.wrong('must have at least one job that is not hidden')
        included = self._included(jobs, reader, workflow) if decision.included else []
        specs = self._specs(included, jobs, stages, reader)
        name = self._global_scope(variables).expand(workflow.get('name', '')).strip()
        self._report.check()
        auto_cancel = {**workflow.get('auto_cancel', {}), **(decision.rule.get('auto_cancel') or {})}
        return PipelineSpec(
            stages=stages, jobs=specs, name=name or None, decisions=self._decisions, merged=merged,
            auto_cancel=auto_cancel.get('on_new_commit', 'conservative'),
            auto_cancel_failure=auto_cancel.get('on_job_failure', 'none'),
            filtered=not decision.included, warnings=tuple(self._report.warnings))

    def _merged(self, content: str | bytes | Mapping[str, Value]) -> Map:
        """Return the file with all that it includes, extends and refers to in place."""
        includes = Includes(self._facts, self._report, self._evaluator)
        root = includes.load(content, self._name, self._facts.inputs, self._facts.place)
        whole = includes.merged(root, self._facts.place, (self._name,))
        self._report.check()
        merged = Resolver(self._report).resolve(whole)
        if 'include' in merged:
            merged = Map(merged, merged.mark, merged.marks)
            del merged['include']
        return merged

    def _global_scope(self, variables: Mapping[str, Variable]) -> Scope:
        return Scope(self._facts.predefined, variables, self._facts.variables)

    def _workflow(self, workflow: Fields, variables: Mapping[str, Variable]) -> Decision:
        """Return whether there is a pipeline at all."""
        if 'rules' not in workflow:
            return Decision(True, Rule(), 'no rules')
        return self._evaluator.decide(workflow['rules'], self._global_scope(variables))

    @staticmethod
    def _defaults(spot: Spot, found: Fields) -> Fields:
        """Return what jobs inherit; complain about what stands under default and beside it."""
        defaults = found.get('default', {})
        for key in defaults:
            if key in found:
                spot[key].wrong('is also set under default; keep one')
        return {**{key: found[key] for key in DEFAULT_FIELDS if key in found}, **defaults}

    def _included(self, jobs: Mapping[str, Sequence[Draft]], reader: JobReader, workflow: Fields) -> list[Draft]:
        """Return the jobs that their rules let in."""
        included = []
        drafts = {draft.name: draft for draft in itertools.chain.from_iterable(jobs.values())}
        for draft in drafts.values():
            self._report.budget.check()
            reader.predefine(draft)
            if self._is_included(draft, reader.scope_of(draft), 'rules' in workflow):
                included.append(draft)
        if len(included) > MAX_JOBS:
            raise BadRequest({'base': [f'the file makes {len(included)} jobs; {MAX_JOBS} are allowed in a pipeline']})
        return included

    def _is_included(self, draft: Draft, scope: Scope, has_workflow: bool) -> bool:
        """Tell whether a job's rules, or `only` and `except`, let it in; what a rule sets is put into the job."""
        if 'rules' in draft.keywords:
            decision = self._evaluator.decide(draft.get('rules'), scope)
            self._decisions[draft.name] = ('' if decision.included else 'left out: ') + decision.reason
            if decision.included:
                self._apply(draft, decision.rule)
            return decision.included
        if 'only' not in draft.keywords and 'except' not in draft.keywords:
            included = has_workflow or self._facts.source != 'merge_request_event'
            reason = 'no rules' if included else 'left out: without rules a job runs for branches and tags only'
            self._decisions[draft.name] = reason
            return included
        only: dict[str, Value] = {'refs': None}
        if has_workflow and 'only' not in draft.keywords:
            only = {}
        only.update(draft.get('only', {}))
        wanted = all(self._matches(only, scope))
        unwanted = any(self._matches(draft.get('except', {}), scope))
        included = wanted and not unwanted
        self._decisions[draft.name] = 'only and except fit' if included else 'left out by only or except'
        return included

    @staticmethod
    def _apply(draft: Draft, rule: Rule) -> None:
        """Put what a rule sets into a job."""
        draft.keywords.setdefault('allow_failure', draft.get('when') == 'manual')   # a rule's `when: manual` blocks
        for key in ('when', 'start_in', 'allow_failure', 'needs', 'interruptible'):
            if key in rule.fields:
                draft.keywords[key] = rule.fields[key]
        draft.layers = (*draft.layers, rule.variables)

    def _matches(self, refs: Fields, scope: Scope) -> list[bool]:
        """Tell of each kind of condition that `only` or `except` has whether any of its members fits."""
        kinds = []
        if 'refs' in refs:
            kinds.append(self._is_ref_among(refs['refs']))
        if 'variables' in refs:
            kinds.append(any(is_true(tree, scope, self._report.budget) for tree in refs['variables']))
        if 'changes' in refs:
            spot = Spot(None, None, self._report)
            kinds.append(self._evaluator.is_changed(Globs(spot, refs['changes']), scope) is not False)
        return kinds

    def _is_ref_among(self, refs: Sequence[RefName] | None) -> bool:
        """Tell whether any word of `only` or `except` fits; without words, branches and tags do."""
        if refs is None:
            return self._facts.source != 'merge_request_event'
        return any(self._is_ref(ref) for ref in refs)

    def _is_ref(self, ref: RefName) -> bool:
        """Tell whether one word fits: a name, a pattern, or a kind of pipeline."""
        facts = self._facts
        word = ref.word
        if ref.project and ref.project.lower() != facts.project_path.lower():
            return False
        if word in SOURCE_WORDS or word == facts.source.removesuffix('_event'):     # `schedule` is `schedules` too
            return facts.source == SOURCE_WORDS.get(word, facts.source)
        if facts.source == 'merge_request_event':   # all else is of branches and tags
            return False
        if ref.pattern:
            return any(self._report.budget.find_all(ref.pattern, facts.ref))
        if word in ('branches', 'tags'):
            return facts.tag == (word == 'tags')
        return word == facts.ref

    def _specs(self, included: Sequence[Draft], jobs: Mapping[str, Sequence[Draft]], stages: Sequence[str],
               reader: JobReader) -> list[JobSpec]:
        """Return the jobs that will be created, each with the names of those that it needs."""
        linker = Linker(included, jobs, stages)
        size = 0
        specs = []
        for draft in included:
            size += size_of(draft)
            if size > MAX_SPECS:
                raise BadRequest({'base': [f'the jobs of the file come to more than {MAX_SPECS // MIB} MiB: scripts '
                                           'and variables count for each job that has them']})
        for draft in included:
            self._report.budget.check()
            linker.check_stop(draft)
            specs.append(job_spec(draft, reader, linker))
        linker.check_circles(specs)
        return specs


VARIABLE_MARKS = len('"": "", ')      # characters around the name and the value of a stored variable


def stages_of(found: Fields) -> list[str]:
    """Return the stages of a pipeline in order, `.pre` first and `.post` last."""
    listed_stages = found.get('stages') or found.get('types') or DEFAULT_STAGES
    middle = [stage for stage in listed_stages if stage not in ('.pre', '.post')]
    return ['.pre', *dict.fromkeys(middle), '.post']


def size_of(draft: Draft) -> int:
    """Return about how many characters a job will take where it is stored."""
    scripts = [draft.get(keyword, ()) for keyword in ('before_script', 'script', 'after_script')]
    lines = sum(map(len, itertools.chain.from_iterable(scripts)))
    variables = draft.variables
    names = sum(map(len, variables))
    values = sum(len(variable.value) for variable in variables.values())
    return lines + names + values + VARIABLE_MARKS * len(variables)


def job_spec(draft: Draft, reader: JobReader, linker: Linker) -> JobSpec:
    """Return one job as it will be created."""
    keywords = draft.keywords
    spec = {key: value for key, value in keywords.items() if key in KEPT}
    spec['name'] = draft.name
    spec['script'] = keywords.get('before_script', []) + keywords.get('script', [])
    variables = draft.variables
    spec['variables'] = values_of(variables)
    spec['raw_variables'] = [key for key, variable in variables.items() if variable.raw]
    spec['tag_list'] = [reader.expanded(draft, tag, 'tags', keep=True) for tag in keywords.get('tags', ())]
    spec['needs'] = linker.needs(draft)
    spec['cross_needs'] = cross_needs(draft, reader.scope_of(draft))
    spec['dependencies'] = linker.dependencies(draft)
    allowed = keywords.get('allow_failure', keywords.get('when') == 'manual')
    spec['allow_failure'] = allowed is True
    if isinstance(allowed, list):
        spec['allow_failure_exit_codes'] = allowed
    if 'environment' in spec:
        spec['environment'] = {**spec['environment'], 'name': draft.predefined['CI_ENVIRONMENT_NAME']}
    if 'resource_group' in spec:
        spec['resource_group'] = reader.expanded(draft, spec['resource_group'], 'resource_group')
    if 'trigger' in spec:
        spec['trigger'] = downstream_of(spec['trigger'])
    upstream = [need for need in keywords.get('needs', ()) if need.pipeline and not need.job]
    if upstream:
        spec['trigger'] = upstream_of(draft, upstream)
        spec['needs'] = None    # it goes by stages, as in GitLab
    return JobSpec(**spec)


#: The keywords of a job that a JobSpec takes as they were read.
KEPT = frozenset((
    'stage', 'after_script', 'when', 'image', 'services', 'artifacts', 'cache', 'timeout', 'start_in', 'retry',
    'interruptible', 'coverage', 'hooks', 'manual_confirmation', 'release', 'pages', 'id_tokens', 'environment',
    'resource_group', 'trigger'))


def cross_needs(draft: Draft, scope: Scope) -> list[dict[str, Value]]:
    """Return the jobs of other pipelines and projects whose artifacts a job gets."""
    found = []
    for need in draft.get('needs') or ():
        if not need.job or not need.pipeline and not need.project:
            continue
        found.append({
            'project': scope.expand(need.project),
            'ref': scope.expand(need.ref),
            'pipeline': scope.expand(need.pipeline),
            'job': scope.expand(need.job),
            'artifacts': need.artifacts,
            'optional': need.optional,
        })
    return found


def downstream_of(trigger: Trigger) -> dict[str, Value]:
    """Return what a bridge starts, as it is stored."""
    return {
        'project': trigger.project,
        'branch': trigger.branch,
        'include': anything(trigger.include) if trigger.include else None,
        'strategy': trigger.strategy,
        'forward': dict(trigger.forward),
        'inputs': trigger.inputs,
        'upstream': '',
    }


def upstream_of(draft: Draft, needs: Sequence[Need]) -> dict[str, Value]:
    """Return the project whose pipeline a job mirrors, as what bridges start is stored."""
    if draft.get('script') or draft.get('trigger'):
        needs[0].spot.wrong('must have a job: only a job without script and trigger mirrors a pipeline')
    if len(needs) > 1:
        needs[1].spot.wrong('names a second pipeline, and a job mirrors one only')
    return {**downstream_of(Trigger(needs[0].spot)), 'upstream': needs[0].pipeline}


#: The facts of a pipeline that nobody has told.
UNKNOWN_FACTS: JSON = {
    'sha': '',
    'before_sha': '0' * 40,
    'commit_info': None,
    'protected': False,
    'visibility': 'private',
    'ci_config_path': '',
}


def compile_pipeline(content: str | bytes | Mapping[str, Value], *, ref: str = 'main', tag: bool = False,
                     source: str = 'api', name: str = PIPELINE_FILE, facts: Record | None = None,
                     variables: Mapping[str, str] | None = None, repository: Tree | None = None,
                     predefined: Mapping[str, str] | None = None, inputs: Mapping[str, Value] | None = None,
                     library: Library | None = None) -> PipelineSpec:
    """Return the pipeline that a pipeline file makes for a branch or tag.

    `facts` may stand in for `ref`, `tag` and `source`. Rules may ask for the `predefined` variables
    (by default those that follow from the facts), over which stand the file's own and then
    `variables`. `repository` is where included and changed files are looked up, `library` where
    those of other projects and addresses are; `inputs` are for the file's ``spec:inputs``. Raises
    BadRequest with a list of what is wrong: file, line, column, keyword and what was expected. A
    keyword that minici does not know is refused by name, never ignored.
    """
    known: dict[str, Value] = {**UNKNOWN_FACTS, 'ref': ref, 'tag': tag, 'source': source}
    if facts is not None:
        known.update({key: facts[key] for key in dict(facts)})
    if predefined is None:
        predefined = known_variables(known)
    place = Place(repository or NoFiles(), known['sha'] or '')
    project_path = known.get('project_path', '')
    asked = Facts(ref=known['ref'], tag=bool(known['tag']), source=known['source'], before_sha=known['before_sha'],
                  place=place, project_path=project_path, variables=variables or {}, predefined=predefined,
                  inputs=inputs or {}, library=library)
    compiler = Compiler(asked, name)
    return compiler.compile(content)


def known_variables(facts: Mapping[str, Value]) -> dict[str, str]:
    """Return the predefined variables that follow from the facts of a pipeline."""
    if 'project_path' in facts:
        values = pipeline_variables(facts)
    else:
        kind = 'CI_COMMIT_TAG' if facts['tag'] else 'CI_COMMIT_BRANCH'
        values = {'CI_PIPELINE_SOURCE': facts['source'], 'CI_COMMIT_REF_NAME': facts['ref'],
                  'CI_COMMIT_REF_SLUG': slug(facts['ref']), 'CI_DEFAULT_BRANCH': 'main', kind: facts['ref']}
    if facts['source'] == 'merge_request_event':
        values.pop('CI_COMMIT_BRANCH', None)
    return texts_of(values)


def texts_of(values: Mapping[str, Value]) -> dict[str, str]:
    """Return values as texts, without those that are None."""
    return {name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Choice:
    """A variable or an input of a pipeline file that people choose when they start a pipeline by hand."""

    name: str
    value: str                  # what it is unless somebody chooses
    description: str = ''
    options: Sequence[str] = ()
    kind: str = 'string'        # an input's: 'string', 'number', 'boolean' or 'array'
    required: bool = False


def read_choices(content: str | bytes | Mapping[str, Value]) -> tuple[list[Choice], list[Choice]]:
    """Return the variables that a pipeline file offers for choice, and its inputs.

    A variable is offered when it has a description or options, as GitLab does. What includes declare is
    not looked for. Raises BadRequest when the file is not YAML.
    """
    report = Report()
    text = decoded_text(content, PIPELINE_FILE)
    header: Value = {}
    if not isinstance(text, Mapping):
        head, text = split_header(text)
        header = load_text(head, PIPELINE_FILE, report) if head else {}
        text = load_text(text, PIPELINE_FILE, report)
    variables = member_of(text, 'variables')
    detailed = [(name, value) for name, value in variables.items() if isinstance(value, Mapping)]
    offered = [(name, value) for name, value in detailed if value.get('description') or value.get('options')]
    inputs = member_of(member_of(header, 'spec'), 'inputs')
    return ([read_choice(name, value, value.get('value')) for name, value in offered],
            [read_input(name, value) for name, value in inputs.items()])


def member_of(value: Value, name: str) -> Mapping[str, Value]:
    """Return a mapping within a mapping, {} where there is none."""
    found = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(found, Mapping):
        return found
    return {}


def read_choice(name: str, fields: Mapping[str, Value], value: Value, **more: Any) -> Choice:
    """Return a choice from what a file says of it; a list or a truth value is written as JSON."""
    options = fields.get('options')
    if not isinstance(options, list):
        options = []
    description = str(fields.get('description') or '')
    return Choice(str(name), plain_text(value), description, [plain_text(option) for option in options], **more)


def read_input(name: str, declared: Value) -> Choice:
    """Return an input as a choice."""
    fields = declared if isinstance(declared, Mapping) else {}
    kind = str(fields.get('type') or 'string')
    return read_choice(name, fields, fields.get('default'), kind=kind, required='default' not in fields)


# Repositories #################################################################################
#
# git obeys the configuration of the repository that it runs in: a remote's `uploadpack`, a file system
# monitor, filters and hooks are commands. So it only runs in directories that minici has made, whose
# configuration is ours, and never learns what a repository on this machine configures for itself.

#: The settings of every git of ours: no pack is mapped whole, and large files are streamed.
GIT_CONFIG = {
    'core.bigFileThreshold': '1m',
    'core.packedGitWindowSize': '32m',
    'core.packedGitLimit': '256m',
    'core.fsmonitor': 'false',
    'core.hooksPath': os.devnull,
    'protocol.version': '2',
}
#: Answers git's question for a password from the environment, which `ps` does not show.
CREDENTIAL_HELPER = ('!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" '
                     '"$MINICI_GIT_USERNAME" "$MINICI_GIT_PASSWORD"; }; f')


class Unreadable(BadRequest):
    """A repository cannot be read."""

    def __init__(self, reason: str) -> None:
        super().__init__({'base': [f'The repository cannot be read: {reason}']})


class OutputTooLong(Unreadable):
    """A call of git prints more than it may; `printed` is the beginning."""

    def __init__(self, limit: int, printed: bytes) -> None:
        super().__init__(f'git prints more than {limit} bytes')
        self.printed = printed


def git_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a git that asks nobody anything, with `more` in the place of our own for git."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
    variables.update(GIT_TERMINAL_PROMPT='0', GIT_ASKPASS='', GIT_ALLOW_PROTOCOL='https:http:ssh:git:file',
                     GIT_SSH_COMMAND='ssh -oBatchMode=yes', GIT_CONFIG_NOSYSTEM='1', GIT_NO_LAZY_FETCH='1',
                     GIT_OPTIONAL_LOCKS='0', LC_ALL='C')
    variables.update(more)
    return variables


def run_git(arguments: Sequence[str], directory: Path | None, *, given: bytes = b'', timeout: float = GIT_TIMEOUT,
            limit: int | None = None, environment: Mapping[str, str] = MappingProxyType({})
            ) -> subprocess.CompletedProcess[bytes]:
    """Run git in a directory, with `given` as its standard input, and return its exit status and output.

    Without a directory it runs in the root of the file system: the process itself may stand in a
    repository that somebody else configures.

    git asks nobody anything, speaks only the protocols that an `import_url` may have, and is killed with
    all that it started after `timeout` seconds. It sees none of our own variables for git; `environment`
    adds some. Raises Unreadable when git is missing or takes too long, OutputTooLong when it prints more
    than `limit` bytes; with a limit its memory is limited, too.
    """
    variables = git_environment(environment)
    try:
        with tempfile.TemporaryFile() as source:
            source.write(given)
            source.seek(0)
            with subprocess.Popen(['git', *arguments], cwd=directory or os.sep, env=variables, stdin=source, bufsize=0,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
                if limit is not None:
                    limit_memory(process)
                try:
                    printed, said = read_both(process, limit, time.monotonic() + timeout)
                finally:
                    end_group(process)
    except OSError as error:
        raise Unreadable(str(error)) from None
    return subprocess.CompletedProcess(process.args, process.returncode, printed, said)


def pinned_settings(url: str) -> dict[str, str]:
    """Return git's settings that hold it to the addresses that the host of a URL has on the internet now.

    Raises BadRequest for a host that has others, and for a protocol in which git would look it up again.
    """
    parts = urllib.parse.urlsplit(url)
    try:
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise OSError('only http and https')
        addresses = public_addresses(parts.hostname)
    except OSError:
        raise BadRequest({'import_url': ['must be an http or https address on the internet: --public-imports-only '
                                         'is set']}) from None
    pinned = {'http.followRedirects': 'false'}
    if parts.hostname not in addresses:
        port = parts.port or {'http': 80, 'https': 443}[parts.scheme]
        pinned['http.curloptResolve'] = f'{parts.hostname}:{port}:{",".join(addresses)}'
    return pinned


def git_reason(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the line in which git says why it failed."""
    lines = done.stderr.decode('utf-8', 'replace').strip().splitlines() or ['git failed']
    return next((line for line in lines if line.startswith('fatal: ')), lines[-1])


class Git:
    """Runs git in one directory of ours, with a deadline for all calls together and a limit on what each prints."""

    def __init__(self, directory: Path, url: str = '', settings: Mapping[str, str] = MappingProxyType({})) -> None:
        """Prepare to run in `directory`; `url` may be asked, with its credentials; `settings` are more of git's."""
        self.directory = directory
        self.url, self._username, self._password = split_credentials(url)
        self._settings = settings
        self._deadline = time.monotonic() + GIT_TIMEOUT
        self._calls = 0

    def capabilities(self) -> bytes:
        """Return what the server of the address says it can do, as the oldest protocol has it: words in a text."""
        packets = self.directory / 'packets'
        environment = {**self._environment(), 'GIT_TRACE_PACKET': str(packets)}
        left = max(0.0, self._deadline - time.monotonic())
        run_git(['-c', 'protocol.version=0', 'ls-remote', '--end-of-options', self.url, 'HEAD'], self.directory,
                timeout=left, limit=MAX_GIT_OUTPUT, environment=environment)
        try:
            with open(packets, 'rb') as trace:
                return trace.read(64 * KIB)     # they stand behind the first ref
        except FileNotFoundError:
            return b''
        finally:
            packets.unlink(missing_ok=True)

    def _environment(self) -> dict[str, str]:
        """Return the variables that give git its directory, our settings and the credentials."""
        environment = {'GIT_DIR': str(self.directory)}
        pairs = [*GIT_CONFIG.items(), *self._settings.items()]
        if self._username or self._password:
            environment.update(MINICI_GIT_USERNAME=self._username, MINICI_GIT_PASSWORD=self._password)
            pairs += [('credential.helper', ''), ('credential.helper', CREDENTIAL_HELPER)]
        environment['GIT_CONFIG_COUNT'] = str(len(pairs))
        for index, (name, value) in enumerate(pairs):
            environment[f'GIT_CONFIG_KEY_{index}'] = name
            environment[f'GIT_CONFIG_VALUE_{index}'] = value
        return environment

    def run(self, *arguments: str, missing_ok: bool = False, limit: int = MAX_GIT_OUTPUT,
            cut: bool = False) -> bytes | None:
        """Run git and return what it printed, or None if it fails and `missing_ok`.

        Output beyond `limit` bytes is left out with `cut`, else refused. Raises Unreadable, which says
        what git said, when it fails, prints or takes too much.
        """
        self._calls += 1
        if self._calls > MAX_GIT_CALLS:
            raise Unreadable(f'the pipeline needs more than {MAX_GIT_CALLS} calls of git')
        left = max(0.0, self._deadline - time.monotonic())
        try:
            done = run_git(arguments, self.directory, timeout=left, limit=limit, environment=self._environment())
        except OutputTooLong as error:
            if cut:
                return error.printed
            raise
        if done.returncode == 0:
            return done.stdout
        if missing_ok:
            return None
        reason = git_reason(done)
        for secret in (self._username, self._password):
            if secret:
                reason = reason.replace(secret, '***').replace(urllib.parse.quote(secret, safe=''), '***')
        raise Unreadable(reason)


def split_credentials(url: str) -> tuple[str, str, str]:
    """Return an address without its credentials, the user's name and the password; ssh keeps its user's name."""
    scheme, separator, rest = url.partition('://')
    authority, slash, path = rest.partition('/')
    user, at, host = authority.rpartition('@')
    if not at:
        return url, '', ''
    name, _, password = user.partition(':')
    kept = f'{name}@' if scheme == 'ssh' and name else ''
    bare = f'{scheme}{separator}{kept}{host}{slash}{path}'
    return bare, urllib.parse.unquote(name), urllib.parse.unquote(password)


def limit_memory(process: subprocess.Popen[bytes]) -> None:
    """Limit the memory of a child process, where the system can do that to a process that runs already."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import resource
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (MAX_GIT_MEMORY, MAX_GIT_MEMORY))


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and its children: git-remote-https would wait on without its parent."""
    if process.poll() is None and hasattr(os, 'killpg'):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def read_both(process: subprocess.Popen[bytes], limit: int | None, ends: float) -> tuple[bytes, bytes]:
    """Return what a process prints, and what it complains of.

    Raises OutputTooLong when it prints more than `limit` bytes, Unreadable when it has not finished at
    `ends`, by the monotonic clock.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    printed = bytearray()
    said = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, printed)
        selector.register(process.stderr, selectors.EVENT_READ, said)
        while selector.get_map():
            ready = selector.select(max(0.0, ends - time.monotonic()))
            if not ready:
                raise Unreadable('git took too long')
            for key, _ in ready:
                chunk = os.read(key.fd, COPY_CHUNK)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.data is printed or len(said) < MAX_GIT_COMPLAINT:
                    key.data.extend(chunk)
            if limit is not None and len(printed) > limit:
                raise OutputTooLong(limit, bytes(printed[:limit]))
    try:
        process.wait(max(0.01, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise Unreadable('git took too long') from None
    return bytes(printed), bytes(said)


def make_repository(git: Git) -> None:
    """Make the directory that `git` runs in an empty bare repository."""
    git.directory.mkdir(mode=0o700)
    git.run('init', '--quiet', '--bare', '--template=', '--end-of-options', str(git.directory))


def full_names(ref: str) -> dict[str, bool]:
    """Return the full names that a ref can have, the preferred one first, and whether each is a tag's."""
    if ref.startswith('refs/'):     # of a merge request, for example
        return {ref: ref.startswith('refs/tags/')}
    return {f'refs/heads/{ref}': False, f'refs/tags/{ref}': True}


def short_name(ref: str) -> str:
    """Return the short name of a branch or tag; other refs, as those of merge requests, have none."""
    return re.sub('^refs/(heads|tags)/', '', ref)


def git_directory(path: Path) -> tuple[Path, Path]:
    """Return where a repository on this machine keeps its HEAD, and its objects and refs; raise if it is none."""
    inside = path / '.git'
    found = path
    if inside.exists():
        found = inside
    if found.is_file():     # a worktree, or a submodule: the file says where
        with found.open(errors='surrogateescape') as file:
            pointer = file.read(MAX_PATH)
        found = path / pointer.removeprefix('gitdir:').strip()
    common = found / 'commondir'
    shared = found
    if common.is_file():
        with common.open(errors='surrogateescape') as file:
            shared = found / file.read(MAX_PATH).strip()
    if not ((found / 'HEAD').is_file() and (shared / 'objects').is_dir() and (shared / 'refs').is_dir()):
        raise FileNotFoundError(path)
    return found, shared


def borrow_repository(path: Path, directory: Path) -> None:
    """Make `directory` a bare repository of ours that shows the objects and refs of the one at `path`.

    Nothing is copied, and git never reads the configuration at `path`: of that file only the two facts
    are taken over without which the objects and refs could not be read. Raises BadRequest if there is
    no repository at `path`, or minici may not read it: the answer does not say which.
    """
    try:
        found, shared = git_directory(path)
        head = (found / 'HEAD').read_bytes()[:MAX_PATH]
        directory.mkdir(mode=0o700, exist_ok=True)
        for name in ('objects', 'refs', 'packed-refs', 'shallow', 'reftable'):
            if (shared / name).exists():
                (directory / name).symlink_to((shared / name).resolve())
        (directory / 'HEAD').write_bytes(head)
        extensions = stored_extensions(shared / 'config')
        config = '[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n' + ''.join(extensions)
        (directory / 'config').write_text(config)
    except (OSError, ValueError):
        raise Unreadable(f'{path} is no git repository that minici may read') from None


def stored_extensions(config: Path) -> list[str]:
    """Return the lines of a repository's configuration file that say how its objects and refs are stored."""
    if not config.is_file():
        return []
    text = config.read_text(errors='replace')
    sections = re.findall(r'^\s*\[extensions\]([^\[]*)', text, re.M | re.I)
    lines = re.findall(r'^\s*((?:objectformat|refstorage)\s*=\s*[a-z0-9]+)\s*$', '\n'.join(sections), re.M | re.I)
    return [f'\t{line}\n' for line in lines]


def gives_reachable_commits(config: Path) -> bool:
    """Tell whether a repository's configuration file lets clients fetch commits by their ids."""
    text = config.read_text(errors='replace') if config.is_file() else ''
    sections = re.findall(r'^\s*\[uploadpack\]([^\[]*)', text, re.M | re.I)
    allowed = r'^\s*allow(?:reachable|any)sha1inwant\s*(?:=\s*(?:true|yes|on|1)\s*)?$'
    return any(re.search(allowed, section, re.M | re.I) for section in sections)


@dataclass(frozen=True)
class GitRef:
    """A branch or tag: its full name, what it points to (a commit, or the object of an annotated tag), its commit."""

    full_name: str
    target: str
    sha: str


#: What git tells of a commit that a ref points to.
REF_COMMIT_FIELDS = {
    'author_name': 'authorname',
    'author_email': 'authoremail',
    'authored_date': 'authordate:iso-strict',
    'committer_name': 'committername',
    'committer_email': 'committeremail',
    'committed_date': 'committerdate:iso-strict',
    'message': 'contents',
    'parent_ids': 'parent',
}
#: What git tells of a ref: of an annotated tag a star stands before what its commit says.
REF_FIELDS = ('refname', 'objecttype', 'taggerdate:iso-strict', *REF_COMMIT_FIELDS.values(),
              *(f'*{name}' for name in REF_COMMIT_FIELDS.values()))
REF_FORMAT = ''.join(f'%({name})%00' for name in REF_FIELDS)


def described_ref(record: Mapping[str, str]) -> JSON:
    """Return the commit of a ref from what git tells of it by `REF_FIELDS`."""
    annotated = record['objecttype'] == 'tag'
    star = '*' if annotated else ''
    found: JSON = {key: record[star + name] for key, name in REF_COMMIT_FIELDS.items()}
    for key in ('author_email', 'committer_email'):
        found[key] = found[key].strip('<>')
    found['parent_ids'] = found['parent_ids'].split()
    found['tag_message'] = found['tagged_at'] = None
    if annotated:
        found['tag_message'] = record['contents'].rstrip('\n')
        found['tagged_at'] = record['taggerdate:iso-strict']
    return found


class Repository:
    """A git repository, read by a few git calls within a directory of ours.

    `url` is a project's `import_url`: one on this machine is borrowed, a remote one is fetched, commit by
    commit as they are asked for, with `public_only` from the internet alone. Every failure is a BadRequest
    that says what git said.
    """

    def __init__(self, url: str, scratch: Path, *, public_only: bool = False) -> None:
        self._url = check_import_url(url)
        self._scratch = scratch
        self._settings = pinned_settings(url) if public_only else {}
        self._local = url.startswith('file://')

    def __enter__(self) -> Repository:
        self._temporary = Path(tempfile.mkdtemp('.git', dir=self._scratch))
        directory = self._temporary / 'repository.git'
        try:
            if self._local:
                path = urllib.parse.unquote(self._url.removeprefix('file://'))
                borrow_repository(Path(path), directory)
                self._git = Git(directory, str(directory))
            else:
                self._git = Git(directory, self._url, self._settings)
                make_repository(self._git)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _fetch(self, refspec: str, *, missing_ok: bool = False) -> None:
        """Fetch one commit of a remote repository, by its id or a ref."""
        if not self._local:
            self._git.run('fetch', '--quiet', '--no-tags', '--depth=1', '--end-of-options', self._git.url, refspec,
                          missing_ok=missing_ok)

    def default_branch(self) -> str:
        """Return the branch that HEAD names."""
        printed = self._git.run('ls-remote', '--symref', '--end-of-options', self._git.url, 'HEAD') or b''
        for line in printed.decode().splitlines():
            if line.startswith('ref: refs/heads/'):
                branch, _, _ = line.removeprefix('ref: refs/heads/').partition('\t')
                return branch
        raise BadRequest({'base': ['The repository has no branch checked out; name a ref']})

    def resolve(self, ref: str) -> tuple[str, bool]:
        """Return the sha that a branch or tag points to, and whether it is a tag; fetch it if need be.

        `ref` is a short name, or a full one such as ``refs/tags/v1``. Of a branch and a tag with the
        same short name the branch is meant.
        """
        name, sha, tag = self._listed(ref)
        self._fetch(f'+{name}:{name}')
        return sha, tag

    def _listed(self, ref: str) -> tuple[str, str, bool]:
        """Return the full name of a branch or tag, its commit, and whether it is a tag; raise BadRequest if unknown."""
        names = full_names(check_ref(ref))
        peeled = [f'{name}^{{}}' for name, tag in names.items() if tag]
        printed = self._git.run('ls-remote', '--end-of-options', self._git.url, *names, *peeled) or b''
        lines = [line.partition('\t') for line in printed.decode().splitlines()]
        shas = {name: sha for sha, _, name in lines}
        for name, tag in names.items():
            if name in shas:
                return name, shas.get(f'{name}^{{}}', shas[name]), tag
        raise BadRequest({'base': ['Reference not found']})

    def gives_any_commit(self) -> bool:
        """Tell whether every client may fetch any commit by its id, and not only what refs point to.

        Servers always allow it in the newest protocol; older clients need `uploadpack.allowReachableSHA1InWant`.
        """
        if self._local:
            path = urllib.parse.unquote(self._url.removeprefix('file://'))
            _, shared = git_directory(Path(path))
            return gives_reachable_commits(shared / 'config')
        return b'allow-reachable-sha1-in-want' in self._git.capabilities()

    def contains(self, ref: str, sha: str) -> bool:
        """Tell whether a commit is part of the history of a branch or tag."""
        name, tip, _ = self._listed(ref)
        if tip == check_sha(sha):
            return True
        history = self._git if self._local else self._fetch_history(name)
        return history.run('merge-base', '--is-ancestor', sha, name, missing_ok=True) is not None

    def _fetch_history(self, wanted: str, left_out: str = 'tree:0', *, missing_ok: bool = False) -> Git:
        """Return a repository of ours with all commits of a ref or up to one commit.

        `left_out` says which of their objects are not needed, for servers that can leave some out:
        ``tree:0`` all else, ``blob:none`` the content of files.
        """
        directory = self._temporary / f'{left_out.partition(":")[0]}.git'
        history = Git(directory, self._url)
        if not directory.exists():
            make_repository(history)
        refspec = f'+{wanted}:{wanted}' if wanted.startswith('refs/') else wanted
        history.run('fetch', '--quiet', '--no-tags', f'--filter={left_out}', '--end-of-options', history.url, refspec,
                    missing_ok=missing_ok)
        return history

    def commit(self, sha: str) -> JSON:
        """Return the message, author, committer, dates and parents of a commit.

        A message is cut after MAX_COMMIT_MESSAGE bytes.
        """
        raw = self._raw_commit(check_sha(sha))
        if raw is None:
            self._fetch(sha, missing_ok=True)
            raw = self._raw_commit(sha)
        if raw is None:
            raise BadRequest({'base': [f'The commit {sha[:8]} is not in the repository']})
        header, _, _ = raw.partition(b'\n\n')
        parents = re.findall(rb'^parent ([0-9a-f]+)$', header, re.M)    # in a shallow history `log` hides them
        layout = {'author_name': '%an', 'author_email': '%ae', 'authored_date': '%aI', 'committer_name': '%cn',
                  'committer_email': '%ce', 'committed_date': '%cI', 'message': '%B'}
        shown = self._git.run('log', '--no-walk', '--no-show-signature', '--encoding=UTF-8',
                              f'--format={"%x00".join(layout.values())}', '--end-of-options', sha,
                              limit=MAX_COMMIT_MESSAGE, cut=True) or b''
        values = shown.decode('utf-8', 'replace').split('\0', len(layout) - 1)
        found: JSON = dict(itertools.zip_longest(layout, values, fillvalue=''))
        found['message'] = found['message'].rstrip('\n') + '\n'
        if len(shown) >= MAX_COMMIT_MESSAGE:
            found['truncated'] = True
        found['parent_ids'] = [parent.decode() for parent in parents]
        return found

    def _raw_commit(self, sha: str) -> bytes | None:
        return self._git.run('cat-file', 'commit', sha, missing_ok=True, limit=MAX_COMMIT_MESSAGE, cut=True)

    def tags(self) -> set[str]:
        """Return the names of all tags."""
        printed = self._git.run('ls-remote', '--quiet', '--tags', '--refs', '--end-of-options', self._git.url) or b''
        return set(re.findall(r'\trefs/tags/(.+)', printed.decode('utf-8', 'replace')))

    def list_refs(self, kind: str) -> dict[str, GitRef]:
        """Return the branches (`kind` is ``heads``) or the tags (``tags``), by their names in order."""
        printed = self._git.run('ls-remote', '--quiet', f'--{kind}', '--end-of-options', self._git.url) or b''
        found = re.findall(rf'^([0-9a-f]+)\t(refs/{kind}/(.+?))(\^{{}})?$', printed.decode('utf-8', 'replace'), re.M)
        refs: dict[str, GitRef] = {}
        for sha, full_name, name, peeled in found:      # the commit of an annotated tag comes after the tag itself
            target = refs[name].target if peeled else sha
            refs[name] = GitRef(full_name, target, sha)
        return dict(sorted(refs.items()))

    def describe_refs(self, refs: Sequence[GitRef]) -> list[JSON]:
        """Return the commits of branches or tags as `commit` does, by one fetch and one call of git.

        With the commit of an annotated tag come its `tag_message` and `tagged_at`, else None.
        """
        names = [ref.full_name for ref in refs]
        if not self._local:     # the parents come along, or git would hide that there are any
            self._git.run('fetch', '--quiet', '--no-tags', '--depth=2', '--filter=tree:0', '--end-of-options',
                          self._git.url, *(f'+{name}:{name}' for name in names))
        printed = self._git.run('for-each-ref', f'--format={REF_FORMAT}', *names) or b''
        values = printed.decode('utf-8', 'replace').split('\0')[:-1]
        size = len(REF_FIELDS)
        records = {}
        for start in range(0, len(values), size):
            record = dict(zip(REF_FIELDS, values[start:start + size], strict=True))
            records[record['refname'].strip()] = described_ref(record)
        return [records[name] for name in names if name in records]

    def refs(self) -> set[str]:
        """Return the names of all branches and tags."""
        printed = self._git.run('ls-remote', '--quiet', '--heads', '--tags', '--end-of-options', self._git.url) or b''
        found = re.findall(r'\trefs/(?:heads|tags)/(.+)', printed.decode('utf-8', 'replace'))
        return set(found)

    def file(self, sha: str, path: str) -> bytes | None:
        """Return a file as it is at a commit, or None when the commit has no such file."""
        try:
            return self._git.run('cat-file', 'blob', f'{check_sha(sha)}:{path}', missing_ok=True, limit=MAX_GIT_FILE)
        except OutputTooLong:
            raise Unreadable(f'{path} has more than {MAX_GIT_FILE} bytes') from None

    def files(self, sha: str) -> list[str]:
        """Return the paths of all files at a commit."""
        return self._paths('ls-tree', '-r', '-z', '--name-only', check_sha(sha))

    def _paths(self, *arguments: str) -> list[str]:
        """Return the paths that git lists with NUL after each."""
        try:
            printed = self._git.run(*arguments) or b''
        except OutputTooLong:
            raise Unreadable(f'git {arguments[0]} lists more than {MAX_GIT_PATHS} files') from None
        if printed.count(b'\0') > MAX_GIT_PATHS:
            raise Unreadable(f'git {arguments[0]} lists more than {MAX_GIT_PATHS} files')
        return printed.decode('utf-8', 'replace').split('\0')[:-1]

    def changes(self, base: str, sha: str) -> list[str] | None:
        """Return the paths that differ between a commit (or ref) and a later commit, None when that cannot be told."""
        if not set(base) - {'0'}:
            return None
        try:
            earlier = base
            if not re.fullmatch('[0-9a-f]{40,64}', base):
                earlier, _ = self.resolve(base)
            self.commit(earlier)
        except BadRequest:
            return None
        return self._paths('diff-tree', '-r', '--name-only', '-z', '--no-renames', earlier, check_sha(sha))

    def compare(self, ref: str, sha: str) -> list[str] | None:
        """Return the paths that a commit changed since its history left that of a branch or tag, None if it never did.

        Raises BadRequest when there is no such branch or tag.
        """
        base = self.merge_base(ref, check_sha(sha))
        if base is None:
            return None
        return self.changes(base, sha)

    def last_commit(self, sha: str, path: str) -> str | None:
        """Return the newest commit up to this one that changed a file, None if there is none."""
        history = self._git
        if not self._local:
            history = self._fetch_history(check_sha(sha), 'blob:none')
        printed = history.run('rev-list', '--max-count=1', check_sha(sha), '--', path, missing_ok=True)
        return (printed or b'').decode().strip() or None

    def merge_base(self, ref: str, sha: str) -> str | None:
        """Return the commit where the history of a commit leaves that of a branch or tag, None if they share none."""
        name, tip, _ = self._listed(ref)
        history = self._git
        if not self._local:
            self._fetch_history(name)
            history = self._fetch_history(sha, missing_ok=True)
        printed = history.run('merge-base', tip, sha, missing_ok=True)
        if printed is None:
            return None
        return printed.decode().strip()


class Checkout:
    """A directory on this machine whose files are read as they stand, committed or not.

    It is usually the working tree of a git repository, but need not be. Neither the configuration nor
    the hooks and filters of that repository are used: git runs in the bare repository `store`, which
    `snapshot` makes, with a configuration of ours. `path` may lie anywhere inside the working tree.
    """

    def __init__(self, path: Path, store: Path) -> None:
        path = path.resolve()
        self.store = store
        inside = (parent for parent in (path, *path.parents) if (parent / '.git').exists())
        self.root = next(inside, path)
        self._git_directory = self._find_git_directory()
        self._common_directory = self._git_directory
        if self._git_directory and (self._git_directory / 'commondir').is_file():
            self._common_directory = self._git_directory / (self._git_directory / 'commondir').read_text().strip()

    def _find_git_directory(self) -> Path | None:
        """Return where git keeps its files; in a linked working tree `.git` is a file that names the place."""
        entry = self.root / '.git'
        if not entry.is_file():
            if entry.is_dir():
                return entry
            return None
        pointer = entry.read_text(errors='replace').strip()
        return self.root / pointer.removeprefix('gitdir: ')

    @functools.cached_property
    def branch(self) -> str | None:
        """The branch that is checked out, even one without commits; None for a detached HEAD or without git."""
        if self._git_directory is None:
            return None
        head = (self._git_directory / 'HEAD').read_text(errors='replace').strip()
        prefix = 'ref: refs/heads/'
        if not head.startswith(prefix):
            return None
        return head.removeprefix(prefix)

    @functools.cached_property
    def remote_url(self) -> str | None:
        """The address of the remote `origin`."""
        if self._common_directory is None:
            return None
        config = self._common_directory / 'config'
        done = run_git(['config', '--file', str(config), '--no-includes', 'remote.origin.url'], None)
        return done.stdout.decode(errors='replace').strip() or None

    @functools.cached_property
    def default_branch(self) -> str:
        """The default branch: that of `origin`, or else `main` or `master` if there is one, or the one checked out."""
        if self.remote_default_branch:
            return self.remote_default_branch
        for name in ('main', 'master'):
            if self._has_branch(name):
                return name
        return self.branch or 'main'

    def _has_branch(self, name: str) -> bool:
        """Tell whether there is a local branch of that name."""
        if self._common_directory is None:
            return False
        packed = self._common_directory / 'packed-refs'
        if packed.is_file() and f' refs/heads/{name}\n' in packed.read_text(errors='replace'):
            return True
        return (self._common_directory / 'refs' / 'heads' / name).is_file()

    @functools.cached_property
    def remote_default_branch(self) -> str | None:
        """The default branch of the remote `origin`, as far as it is known here."""
        if self._common_directory is None:
            return None
        pointer = self._common_directory / 'refs' / 'remotes' / 'origin' / 'HEAD'
        with contextlib.suppress(OSError):
            return pointer.read_text().strip().removeprefix('ref: refs/remotes/origin/')
        return None

    def git(self, *arguments: str, given: bytes = b'', index: str = 'snapshot.index', **environment: str) -> bytes:
        """Run git in the store with the files of the checkout as its working tree, and return what it printed.

        Raises BadRequest, with git's reason, when it fails.
        """
        places = {
            'GIT_DIR': str(self.store),
            'GIT_WORK_TREE': str(self.root),
            'GIT_INDEX_FILE': str(self.store / index),
        }
        outside = self.store
        if self.store.is_relative_to(self.root):    # there git would look at a part of the working tree alone
            outside = Path(self.root.anchor)
        done = run_git(arguments, outside, given=given, timeout=GIT_LOCAL_TIMEOUT,
                       environment={**self._configuration, **places, **environment})
        if done.returncode:
            raise BadRequest({'base': [f'The checkout {self.root} cannot be read: {git_reason(done)}']})
        return done.stdout

    @functools.cached_property
    def _configuration(self) -> dict[str, str]:
        """The variables that give git our configuration in the place of the user's."""
        return {
            'GIT_CONFIG_GLOBAL': str(self.store / 'minici.gitconfig'),
            'GIT_ATTR_NOSYSTEM': '1',
        }

    def find_commit(self, name: str, merging: str = '') -> str | None:
        """Return the commit that a branch, tag or other name stands for in the store, None if there is none.

        With `merging` it is the commit where the history of that other commit has left this one's.
        """
        with contextlib.suppress(BadRequest):
            found = self.git('rev-parse', '--verify', '--quiet', '--end-of-options', f'{name}^{{commit}}')
            if merging:
                found = self.git('merge-base', found.decode().strip(), merging)
            return found.decode().strip()
        return None

    def snapshot(self, ref: str, *, tag: bool = False, hidden: Iterable[Path] = ()) -> tuple[str, bool]:
        """Commit the files as they stand to a branch or tag of the store.

        Return the sha, and whether anything is not committed in the checkout; if nothing is, the sha is
        that of its own commit. What git ignores stays out, and so do the `hidden` paths. The local
        branches and tags of the checkout come along. Raises BadRequest when git cannot read it.
        """
        self._prepare_store(hidden)
        head = self._fetch_history()
        self._update_index()
        tree = self.git('write-tree').decode().strip()
        sha = head
        if not head or self.git('rev-parse', f'{head}^{{tree}}').decode().strip() != tree:
            sha = self._commit(tree, head)
        full_name = ref
        if not ref.startswith('refs/'):
            full_name = f'refs/tags/{ref}' if tag else f'refs/heads/{ref}'
        self.git('update-ref', check_ref(full_name), sha)
        return sha, sha != head

    def _prepare_store(self, hidden: Iterable[Path]) -> None:
        """Make the bare repository, if need be, with our configuration and the paths that stay out."""
        if not (self.store / 'HEAD').exists():
            self.store.mkdir(mode=0o700, parents=True, exist_ok=True)
            run_git(['init', '--quiet', '--bare', '--template=', '.'], self.store)
            (self.store / 'info').mkdir(mode=0o700, exist_ok=True)
        ignored = run_git(['config', '--global', '--type=path', 'core.excludesFile'], None).stdout.decode().strip()
        lines = ['[gc]', '\tauto = 0', '[core]', '\tuntrackedCache = false']
        if ignored:
            lines.append(f'\texcludesFile = {quoted_for_git(ignored)}')
        (self.store / 'minici.gitconfig').write_text('\n'.join(lines) + '\n')
        excluded = ''
        if self._common_directory and (self._common_directory / 'info' / 'exclude').is_file():
            excluded = (self._common_directory / 'info' / 'exclude').read_text(errors='replace')
        for path in hidden:
            if path.resolve().is_relative_to(self.root):
                excluded += f'\n/{path.resolve().relative_to(self.root).as_posix()}*\n'
        (self.store / 'info' / 'exclude').write_text(excluded)

    def _fetch_history(self) -> str:
        """Fetch the branches and tags of the checkout; return the commit that is checked out, '' without one."""
        if self._git_directory is None:
            return ''
        with tempfile.TemporaryDirectory(dir=self.store) as temporary:
            borrowed = Path(temporary, 'checkout.git')
            borrow_repository(self.root, borrowed)
            return self._fetch_borrowed(str(borrowed))

    def _fetch_borrowed(self, url: str) -> str:
        """Fetch all of the repository at `url`; return the commit that is checked out, '' without one."""
        if not self.git('ls-remote', '--end-of-options', url, 'HEAD'):
            return ''
        self.git('fetch', '--quiet', '--force', '--prune', '--update-shallow', '--no-auto-gc', '--no-write-fetch-head',
                 '--end-of-options', url, *(f'+refs/{kind}/*:refs/{kind}/*' for kind in ('heads', 'tags', 'remotes')),
                 '+HEAD:refs/minici/head')
        return self.git('rev-parse', 'refs/minici/head').decode().strip()

    def _update_index(self) -> None:
        """Bring the snapshot's index up to date with the files of the checkout."""
        listing = self.store / 'checkout.index'
        listing.unlink(missing_ok=True)
        if self._git_directory and (self._git_directory / 'index').exists():
            shutil.copyfile(self._git_directory / 'index', listing)
        tracked = set()
        modules = []
        for entry in self.git('ls-files', '-z', '--stage', index=listing.name).split(b'\0')[:-1]:
            facts, _, path = entry.partition(b'\t')
            if facts.startswith(b'160000 '):    # a submodule: the commit is all that belongs to this repository
                modules.append(b'160000 ' + facts.split()[1] + b'\t' + path)
            tracked.add(path)
        others = self.git('ls-files', '-z', '--others', '--exclude-standard', index=listing.name).split(b'\0')
        top = os.fsencode(self.root)
        wanted = {path for path in tracked.union(others) if path and is_plain_file(os.path.join(top, path))}
        known = set(self.git('ls-files', '-z').split(b'\0')[:-1])
        self.git('update-index', '-z', '--force-remove', '--stdin', given=b'\0'.join([*(known - wanted), b'']))
        self.git('update-index', '-z', '--index-info', given=b'\0'.join([*modules, b'']))
        self.git('update-index', '-z', '--add', '--replace', '--stdin', given=b'\0'.join([*sorted(wanted), b'']))

    def _commit(self, tree: str, head: str) -> str:
        """Commit a tree on top of the commit that is checked out; the same files make the same commit."""
        parents = []
        date = '@0 +0000'
        if head:
            parents = ['-p', head]
            date = self.git('show', '--no-patch', '--format=%cI', head).decode().strip()
        committed = self.git('commit-tree', tree, *parents, '-m', 'Uncommitted changes',
                             GIT_AUTHOR_NAME='minici', GIT_AUTHOR_EMAIL='minici@localhost', GIT_AUTHOR_DATE=date,
                             GIT_COMMITTER_NAME='minici', GIT_COMMITTER_EMAIL='minici@localhost',
                             GIT_COMMITTER_DATE=date)
        return committed.decode().strip()


def quoted_for_git(text: str) -> str:
    """Return a text as a value in a configuration file of git."""
    escaped = text.replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n')
    return f'"{escaped}"'


def is_plain_file(path: bytes) -> bool:
    """Tell whether a path is a file or a link, not a directory, device or nothing."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


# Library ######################################################################################
#
# The files that a pipeline file includes from elsewhere: other projects, components, https addresses,
# GitLab's templates, artifacts of the parent pipeline. What was fetched once is kept in a cache.

TEMPLATES = 'https://gitlab.com/gitlab-org/gitlab/-/raw/master/lib/gitlab/ci/templates/'
#: A version of a component that never changes its files: all numbers, or a commit.
FIXED_VERSION = re.compile(r'v?[0-9]+\.[0-9]+\.[0-9]+\S*|[0-9a-f]{40}|[0-9a-f]{64}')
NUMBERED = re.compile(r'v?([0-9]+)\.([0-9]+)\.([0-9]+)')


class FileCache:
    """Keeps files that were fetched, by a key, the newest MAX_CACHED_INCLUDES of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, key: str) -> Path:
        return self._directory / hashlib.sha256(key.encode()).hexdigest()

    def get(self, key: str) -> bytes | None:
        """Return the file that is kept under a key, None when there is none."""
        try:
            return self._path(key).read_bytes()
        except OSError:
            return None

    def put(self, key: str, content: bytes) -> None:
        """Keep a file; a full disk only means that it is fetched again."""
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:
                file.write(content)
            os.replace(file.name, self._path(key))
            kept = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime)
            for path in kept[:-MAX_CACHED_INCLUDES]:
                path.unlink()


class CachedTree:
    """The files of a repository at a version that never changes; the repository is opened for what is not cached."""

    def __init__(self, cache: FileCache, key: str, find: Callable[[], tuple[Repository, str]]) -> None:
        self._cache = cache
        self._key = key
        self._find = functools.cache(find)

    @property
    def sha(self) -> str:
        """The commit of the version."""
        kept = self._cache.get(self._key)
        if kept is None:
            kept = self._find()[1].encode()
            self._cache.put(self._key, kept)
        return kept.decode()

    def file(self, sha: str, path: str) -> bytes | None:
        """Return a file, or None when there is none; an empty file in the cache stands for none."""
        key = f'{self._key}/{path}'
        content = self._cache.get(key)
        if content is None:
            repository, found = self._find()
            content = repository.file(found, path) or b''
            self._cache.put(key, content)
        return content or None

    def files(self, sha: str) -> Sequence[str]:
        """Return the paths of all files."""
        repository, found = self._find()
        return repository.files(found)

    def changes(self, base: str, sha: str) -> None:
        """Return None: what changed in another project is never asked."""


class IncludeLibrary:
    """Finds files outside the repository of one pipeline; use it as a context manager.

    `find_url` returns the import_url of a project here, or None; `hosts` are the names that may be
    asked by https and `mapped` pairs ``PREFIX=URL`` for projects that are elsewhere, both as in the
    settings; with `public_only` they must be on the internet. `read_artifact` returns a file out of the
    artifacts of a job of the parent pipeline.
    """

    def __init__(self, scratch: Path, cache: FileCache, find_url: Callable[[str], str | None], hosts: str,
                 mapped: str, read_artifact: Callable[[str, str], bytes] | None = None, *,
                 public_only: bool = False) -> None:
        self._scratch = scratch
        self._cache = cache
        self._find_url = find_url
        self._hosts = set(hosts.split(','))
        self._mapped = [pair.split('=', 1) for pair in mapped.split()]
        self._read_artifact = read_artifact
        self._public_only = public_only
        self._open = contextlib.ExitStack()
        self._repositories: dict[str, Repository] = {}

    def __enter__(self) -> IncludeLibrary:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()

    def _repository(self, url: str) -> Repository:
        """Return a repository, which stays open until the end."""
        if url not in self._repositories:
            repository = Repository(url, self._scratch, public_only=self._public_only)
            self._repositories[url] = self._open.enter_context(repository)
        return self._repositories[url]

    def _mapped_url(self, path: str) -> str | None:
        """Return where the map says that a project is; of several prefixes the longest counts."""
        for prefix, url in sorted(self._mapped, key=lambda pair: -len(pair[0])):
            if path == prefix.rstrip('/'):
                return url
            folder = prefix.rstrip('/') + '/'
            if path.startswith(folder):
                return f'{url.rstrip("/")}/{path.removeprefix(folder)}.git'
        return None

    def _may_ask(self, host: str) -> bool:
        return '*' in self._hosts or host.lower() in self._hosts

    def project(self, path: str, ref: str) -> Place:
        """Return the files of another project at a ref, by default its default branch."""
        url = self._find_url(path) or self._mapped_url(path)
        if url is None:
            raise BadRequest({'base': [f'the project {path} is not here: create it with its import_url, or start '
                                       f'minici with --include-map {path}=https://gitlab.com/{path}.git']})
        repository = self._repository(url)
        if re.fullmatch('[0-9a-f]{40,64}', ref):
            sha = ref
            repository.commit(sha)
        else:
            sha, _ = repository.resolve(ref or repository.default_branch())
        return Place(repository, sha, f'{path}@{ref or sha[:8]}:')

    def component(self, project: str, version: str) -> tuple[Place, str]:
        """Return the files of a component project at a version, and what that version is called in full.

        `project` begins with its host. A version is a commit, a tag, a branch, ``~latest``, or the
        first numbers of one: ``1`` and ``1.2`` mean the newest that begins with them.
        """
        host, _, path = project.partition('/')
        url = self._mapped_url(project) or self._find_url(path) or self._mapped_url(path)
        if url is None and self._may_ask(host):
            url = f'https://{project}.git'
        if url is None:
            raise BadRequest({'base': [f'the project {project} is not here: create {path} with its import_url, or '
                                       f'start minici with --include-map {project}=https://{project}.git']})
        name = f'{project}@{version}:'
        if FIXED_VERSION.fullmatch(version) and not url.startswith('file://'):
            tree = CachedTree(self._cache, f'{url}@{version}', lambda: self._version(url, version)[:2])
            return Place(tree, tree.sha, name), version
        repository, sha, full = self._version(url, version)
        return Place(repository, sha, name), full

    def _version(self, url: str, version: str) -> tuple[Repository, str, str]:
        """Return a repository, the commit of a version of it, and the version in full."""
        repository = self._repository(url)
        if re.fullmatch('[0-9a-f]{40,64}', version):
            repository.commit(version)
            return repository, version, version
        tags = repository.tags()
        name = version if version in tags else newest_version(version, tags) or version
        sha, _ = repository.resolve(f'refs/tags/{name}' if name in tags else name)
        return repository, sha, name

    def remote(self, url: str, integrity: str) -> bytes:
        """Return the file at an https address.

        One whose `integrity` is known comes from the cache if it is there; any other is fetched, and
        comes from the cache only if that fails.
        """
        kept = self._cache.get(url)
        if integrity and kept is not None and integrity == integrity_of(kept):
            return kept
        try:
            content = self._fetch(url)
        except OSError as error:
            if kept is None or integrity:
                raise BadRequest({'base': [f'{url} cannot be fetched: {error}']}) from None
            log.warning('%s cannot be fetched: %s. An earlier copy is used.', url, error)
            return kept
        if integrity and integrity != integrity_of(content):
            raise BadRequest({'base': [f'{url} has the integrity {integrity_of(content)}, not {integrity}']})
        self._cache.put(url, content)
        return content

    def template(self, name: str) -> bytes:
        """Return one of GitLab's own templates, from the cache if it is there."""
        if not re.fullmatch(r'[A-Za-z0-9_+-][A-Za-z0-9_.+-]*(/[A-Za-z0-9_+-][A-Za-z0-9_.+-]*)*', name):
            raise BadRequest({'base': ['that is not the name of a template']})
        kept = self._cache.get(TEMPLATES + name)
        if kept is not None:
            return kept
        return self.remote(TEMPLATES + name, '')

    def artifact(self, job: str, path: str) -> bytes:
        """Return a file out of the artifacts of a job of the parent pipeline."""
        if self._read_artifact is None:
            raise BadRequest({'base': ['only a child pipeline can include an artifact']})
        return self._read_artifact(job, path)

    def _fetch(self, url: str) -> bytes:
        """Return what is at an https address; raise BadRequest when it may not be asked, OSError when it fails."""
        self._check_address(url)
        ends = time.monotonic() + FETCH_TIMEOUT
        content = bytearray()
        connect = connect_publicly if self._public_only else socket.create_connection
        with open_address(url, self._check_address, connect) as answer:
            while chunk := answer.read1(COPY_CHUNK):
                content += chunk
                if len(content) > MAX_FILE_SIZE:
                    raise BadRequest({'base': [f'{url} has more than {MAX_FILE_SIZE} bytes']})
                if time.monotonic() > ends:
                    raise TimeoutError(f'it takes more than {FETCH_TIMEOUT} seconds')
        return bytes(content)

    def _check_address(self, url: str) -> None:
        """Raise BadRequest unless an address is https and its host may be asked."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != 'https' or not parts.hostname:
            raise BadRequest({'base': [f'{url} is not an https address']})
        if not self._may_ask(parts.netloc) and not self._may_ask(parts.hostname):
            raise BadRequest({'base': [f'{parts.hostname} may not be asked: start minici with '
                                       f'--include-hosts {parts.netloc}']})


def open_address(url: str, check: Callable[[str], None], connect: Callable[..., socket.socket]) -> HTTPResponse:
    """Open an https address for reading; `check` raises for an address that a redirect must not lead to.

    `connect` opens each connection; the name of the host stays what its certificate must show.
    """
    from http.client import HTTPSConnection
    from urllib.request import HTTPRedirectHandler, HTTPSHandler, build_opener  # large, and few files include addresses

    class Redirects(HTTPRedirectHandler):
        """Follows redirects to addresses that pass the check."""

        def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage,
                             newurl: str) -> Request | None:
            """Return the request that follows a redirect."""
            check(newurl)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    class Connection(HTTPSConnection):
        """A connection that `connect` opens."""

        def __init__(self, host: str, **options: Any) -> None:
            super().__init__(host, **options)
            self._create_connection = connect

    class Opener(HTTPSHandler):
        """Opens https addresses over such connections."""

        def https_open(self, req: Request) -> HTTPResponse:
            """Send a request and return the answer."""
            return self.do_open(Connection, req)

    answer: HTTPResponse = build_opener(Redirects, Opener).open(url, timeout=FETCH_TIMEOUT)
    return answer


def integrity_of(content: bytes) -> str:
    """Return the hash of a file as `include:integrity` writes it."""
    return 'sha256-' + base64.b64encode(hashlib.sha256(content).digest()).decode()


def newest_version(wanted: str, tags: Iterable[str]) -> str | None:
    """Return the newest version among tags that ``~latest`` or the first numbers of a version mean, None for none."""
    found = []
    for tag in tags:
        numbers = NUMBERED.fullmatch(tag)
        if numbers:
            found.append((tuple(map(int, numbers.groups())), tag))
    if wanted != '~latest':
        prefix = wanted.removeprefix('v') + '.'
        found = [(numbers, tag) for numbers, tag in found if tag.removeprefix('v').startswith(prefix)]
    if found:
        return max(found)[1]
    return None


# Compilers ####################################################################################
#
# What a repository or the network brought is compiled in processes of their own: their memory is not
# the server's, requests are answered meanwhile, and the system ends one that takes too much. Such a
# process is sent pickles; what it sends is JSON, because it has read what nobody trusts.

@dataclass(frozen=True, eq=False)
class Foreign:
    """A pipeline file that a repository or the network brought."""

    content: str | bytes | Mapping[str, Value]


#: What a process that compiles may ask of a repository or a library.
QUESTIONS = frozenset((
    'file', 'files', 'changes', 'compare', 'last_commit', 'project', 'component', 'remote', 'template', 'artifact'))
#: The signals by which a process ends that has taken too much.
ENDED_BY_FILE = frozenset(-number for number in (
    signal.SIGXCPU, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS))


class Pipe:
    """Sends and receives messages through a socket, each behind its length."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._file = stream.makefile('rb')

    def send(self, message: bytes) -> None:
        """Send a message; raise OSError when nobody takes it."""
        self._stream.sendall(struct.pack('>Q', len(message)) + message)     # one piece wakes the other side once

    def receive(self, most: int = sys.maxsize) -> bytes:
        """Return the next message; raise EOFError at the end, OSError when none comes or it has `most` bytes."""
        size, = struct.unpack('>Q', self._read(8))
        if size >= most:
            raise OSError('the message is too long')
        return self._read(size)

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def close(self) -> None:
        """Close the socket."""
        self._file.close()
        self._stream.close()


class Outgoing(pickle.Pickler):
    """Pickles what a process that compiles is sent; repositories and libraries stay here, and are numbers there."""

    def __init__(self, file: IO[bytes], kept: list[Any]) -> None:
        super().__init__(file)
        self._kept = kept

    def persistent_id(self, obj: object) -> tuple[int, bool] | None:
        """Return the number of a repository or library and whether it has a history, None for all else."""
        if not isinstance(obj, Repository | CachedTree | IncludeLibrary):
            return None
        self._kept.append(obj)
        return len(self._kept) - 1, isinstance(obj, History)


class Incoming(pickle.Unpickler):
    """Reads what a process that compiles is sent."""

    def __init__(self, data: bytes, pipe: Pipe) -> None:
        super().__init__(io.BytesIO(data))
        self._pipe = pipe

    def persistent_load(self, pid: tuple[int, bool]) -> Asked:
        """Return what stands for a repository or library."""
        number, has_history = pid
        return AskedHistory(self._pipe, number) if has_history else Asked(self._pipe, number)


class Asked:
    """A repository or library of another process, which is asked through a pipe."""

    def __init__(self, pipe: Pipe, number: int) -> None:
        self._pipe = pipe
        self._number = number

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self._ask, name)

    def _ask(self, name: str, *about: Value) -> Any:
        question = {'of': self._number, 'ask': name, 'about': about}
        self._pipe.send(json.dumps(question).encode())
        found, answer = Incoming(self._pipe.receive(), self._pipe).load()
        if not found:
            raise BadRequest(answer)
        return answer


class AskedHistory(Asked):
    """A repository of another process, whose history can be asked for."""

    def compare(self, ref: str, sha: str) -> Any:
        """Return the paths that a commit changed since its history left that of a ref."""
        return self._ask('compare', ref, sha)

    def last_commit(self, sha: str, path: str) -> Any:
        """Return the newest commit that changed a file."""
        return self._ask('last_commit', sha, path)


class CompilerProcess:
    """A process that compiles pipeline files, one after another."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        program = f'import sys; sys.path[:] = sys.argv[1:]; import {__name__}; {__name__}.serve_compilations()'
        with theirs:
            self._process = subprocess.Popen([sys.executable, '-c', program, *sys.path], stdin=theirs.fileno(),
                                             stdout=subprocess.DEVNULL, start_new_session=True)
        ours.settimeout(COMPILE_PATIENCE)
        self._pipe = Pipe(ours)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def request(self, work: str, arguments: JSON) -> JSON:
        """Return the answer to a request; until it is there, answer what the process asks.

        Raises BadRequest when the file took too much, and Busy when the process ended in another way.
        """
        kept: list[Any] = []
        try:
            self._send((work, arguments), kept)
            while 'ask' in (message := self._receive()):
                self._send(self._answer(message, kept), kept)
        except (EOFError, OSError):
            raise self._failure() from None
        return message

    def _send(self, value: object, kept: list[Any]) -> None:
        buffer = io.BytesIO()
        Outgoing(buffer, kept).dump(value)
        self._pipe.send(buffer.getvalue())

    def _receive(self) -> JSON:
        message: JSON = json.loads(self._pipe.receive(MAX_COMPILED))
        return message

    @staticmethod
    def _answer(question: JSON, kept: Sequence[Any]) -> tuple[bool, object]:
        """Return whether a question has an answer, and the answer or the refusal."""
        if question['ask'] not in QUESTIONS:
            raise EOFError
        try:
            return True, getattr(kept[question['of']], question['ask'])(*question['about'])
        except BadRequest as error:
            return False, error.detail

    def _failure(self) -> CIError:
        """End the process and return why it gave no answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)       # it ends by itself, unless it was only silent
        self.stop()
        if self._process.returncode in ENDED_BY_FILE:
            return too_much()
        return Busy('The process that compiles pipeline files has ended; see the log of the server')

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Leave the process to this one's parent, which it belongs to."""
        self._pipe.close()
        self._process.returncode = 0


class CompilerPool:
    """The processes that compile for this one: at most MAX_COMPILATIONS, started when they are first needed."""

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.stop)

    def _reset(self) -> None:
        self._turns = threading.BoundedSemaphore(MAX_COMPILATIONS)
        self._idle: list[CompilerProcess] = []
        self._all: set[CompilerProcess] = set()

    def _forget(self) -> None:
        """Begin anew in a forked child."""
        for process in self._all:
            process.forget()
        self._reset()

    def stop(self) -> None:
        """End all processes."""
        while self._all:
            self._all.pop().stop()
        self._idle.clear()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn to compile: a file may take much memory, and many at a time would take it many times."""
        if not self._turns.acquire(timeout=COMPILE_WAIT):
            raise Busy('Too many pipeline files are being compiled')
        try:
            yield
        finally:
            self._turns.release()

    def request(self, work: str, **arguments: Any) -> Any:
        """Return the result of some work (`WORK`) of a process; raise BadRequest for a file that it refuses."""
        with self.turn():
            process = self._find()
            try:
                answer = process.request(work, arguments)
            except BaseException:
                self._drop(process)
                raise
            if 'spent' in answer:
                self._drop(process)
            else:
                self._idle.append(process)
        if 'refusal' in answer:
            raise BadRequest(answer['refusal'])
        return answer['result']

    def _find(self) -> CompilerProcess:
        while self._idle:
            process = self._idle.pop()
            if process.alive:
                return process
            self._drop(process)
        process = CompilerProcess()
        self._all.add(process)
        return process

    def _drop(self, process: CompilerProcess) -> None:
        self._all.discard(process)
        process.stop()

    def compile(self, content: str | bytes | Mapping[str, Value], **options: Any) -> PipelineSpec:
        """Return the pipeline that `compile_pipeline` makes of a file."""
        found = self.request('compile', content=content, **options)
        jobs = [JobSpec(**job) for job in found.pop('jobs')]
        return PipelineSpec(jobs=jobs, **found)

    def choices(self, content: str | bytes | Mapping[str, Value]) -> list[list[Choice]]:
        """Return what `read_choices` finds in a file."""
        return [[Choice(**choice) for choice in kind] for kind in self.request('choices', content=content)]


COMPILERS = CompilerPool()


# -- what such a process does

def compile_alone(content: str | bytes | Mapping[str, Value], *, merged: bool, **options: Any) -> PipelineSpec:
    """Return the pipeline of a file, with the whole file if it is asked for."""
    spec = compile_pipeline(content, **options)
    if merged:
        return spec
    return dataclasses.replace(spec, merged=None)


WORK: dict[str, Callable[..., Any]] = {'compile': compile_alone, 'choices': read_choices, 'merged_yaml': merged_yaml}


def too_much() -> BadRequest:
    """Return the refusal of a file that takes too much to compile."""
    return BadRequest({'base': [f'the file takes more than {COMPILE_TIMEOUT:g} seconds or {MAX_COMPILE_MEMORY // MIB} '
                                'MiB to compile; split it, or use fewer jobs and variables']})


def serve_compilations() -> None:
    """Do the work that the process sends which has started this one, until it ends."""
    pipe = Pipe(socket.socket(fileno=0))
    os.nice(5)      # whoever asks the server comes first
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            work, arguments = Incoming(pipe.receive(), pipe).load()
            limit_resources()
            pipe.send(done_work(work, arguments))


def done_work(work: str, arguments: JSON) -> bytes:
    """Return the answer to a request: a result or a refusal."""
    try:
        result = WORK[work](**arguments)
        return json.dumps({'result': result}, default=vars).encode()
    except BadRequest as error:
        return json.dumps({'refusal': error.detail}).encode()
    except MemoryError:
        return json.dumps({'refusal': too_much().detail, 'spent': True}).encode()


def limit_resources() -> None:
    """Let the system end this process when the next file takes too much time, and refuse it too much memory."""
    import resource
    spent = time.process_time()
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent + COMPILE_TIMEOUT) + 2, most))
    with contextlib.suppress(FileNotFoundError):    # other systems than Linux do not tell
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        size = pages * resource.getpagesize() + MAX_COMPILE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


# Schema #######################################################################################

APPLICATION_ID = 0x6d636369         # 'mcci': how SQLite's `file` magic tells this database from others

MIGRATIONS = ("""
-- One step of MIGRATIONS is one version of the database; a released step is never edited.
-- Moments are seconds since 1970 by the coordinator's clock; booleans are 0 or 1; lists are JSON.

CREATE TABLE setting (              -- single facts about this installation
    key     TEXT PRIMARY KEY,       -- 'instance', 'registration_token'
    value   TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE queue (                -- one row: the value that X-GitLab-Last-Update carries
    version INTEGER NOT NULL        -- grows whenever a job may have become claimable
);
INSERT INTO queue VALUES (1);

CREATE TABLE user (                 -- the owner of private tokens; there are no passwords
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    username    TEXT NOT NULL UNIQUE,
    created_at  REAL NOT NULL
);

CREATE TABLE private_token (
    token_hash  TEXT PRIMARY KEY,   -- SHA-256 of what the client sends as PRIVATE-TOKEN
    user_id     INTEGER NOT NULL REFERENCES user,
    scope       TEXT NOT NULL CHECK (scope IN ('api', 'read_api')),
    created_at  REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE project (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    path            TEXT NOT NULL UNIQUE,       -- with its namespace: 'group/demo'
    name            TEXT NOT NULL,              -- for people
    import_url      TEXT,                       -- handed to runners as it is; NULL: pipelines bring sha and content
    default_branch  TEXT NOT NULL,
    runners_token   TEXT NOT NULL UNIQUE,       -- registers runners for this project alone; readable, people copy it
    webhook_token   TEXT NOT NULL,              -- a forge proves itself with it; readable, people copy it
    shared_runners_enabled INTEGER NOT NULL,    -- whether instance runners may take its jobs
    build_timeout   INTEGER NOT NULL,           -- seconds a job may run when it does not say
    allow_git_fetch INTEGER NOT NULL,           -- whether runners may fetch into an old working copy
    last_iid        INTEGER NOT NULL DEFAULT 0, -- the newest pipeline's number within the project
    created_at      REAL NOT NULL
);

CREATE TABLE variable (             -- of a project, or of the whole instance
    id            INTEGER PRIMARY KEY,
    project_id    INTEGER REFERENCES project ON DELETE CASCADE, -- NULL: all projects
    key           TEXT NOT NULL,
    value         TEXT NOT NULL,
    variable_type TEXT NOT NULL CHECK (variable_type IN ('env_var', 'file')),
    masked        INTEGER NOT NULL, -- runners put asterisks in its place in traces
    protected     INTEGER NOT NULL, -- only for pipelines of the default branch
    raw           INTEGER NOT NULL, -- `$` in it means nothing
    description   TEXT
);
CREATE UNIQUE INDEX variable_key ON variable (coalesce(project_id, 0), key);

CREATE TABLE trigger_token (        -- starts pipelines of one project
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    token       TEXT NOT NULL,      -- readable, people copy it
    description TEXT NOT NULL,
    user_id     INTEGER NOT NULL REFERENCES user,
    created_at  REAL NOT NULL,
    updated_at  REAL NOT NULL,
    last_used   REAL
);
CREATE INDEX trigger_of_project ON trigger_token (project_id);

CREATE TABLE event (                -- a job or pipeline changed its status: told to hooks, then removed
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    kind        TEXT NOT NULL CHECK (kind IN ('job', 'pipeline')),
    object_id   INTEGER NOT NULL,   -- of the job or pipeline
    status      TEXT NOT NULL,      -- what it changed to
    before      TEXT NOT NULL       -- what it was
);

CREATE TABLE tag_set (              -- each distinct set of tags that a job ever asked for
    id      INTEGER PRIMARY KEY,
    tags    TEXT NOT NULL UNIQUE    -- sorted JSON list; '[]' stands for untagged jobs
);

CREATE TABLE runner (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    token_hash      TEXT NOT NULL UNIQUE,       -- SHA-256 of the runner's own token
    runner_type     TEXT NOT NULL CHECK (runner_type IN ('instance_type', 'project_type')),
    creator_id      INTEGER REFERENCES user,    -- who made it; NULL: it registered itself
    description     TEXT NOT NULL,
    tags            TEXT NOT NULL,              -- sorted JSON list
    run_untagged    INTEGER NOT NULL,
    locked          INTEGER NOT NULL,           -- may not be enabled in further projects
    active          INTEGER NOT NULL,           -- 0: paused
    access_level    TEXT NOT NULL CHECK (access_level IN ('not_protected', 'ref_protected')),
    maximum_timeout INTEGER,                    -- seconds; caps every job's own timeout
    maintenance_note TEXT,
    info            TEXT NOT NULL,              -- what it last said of itself: name, version, platform, ...
    ip_address      TEXT,
    created_at      REAL NOT NULL,
    contacted_at    REAL                        -- written at most once a minute
);

CREATE TABLE runner_manager (       -- the machines that share one runner's token
    runner_id    INTEGER NOT NULL REFERENCES runner ON DELETE CASCADE,
    system_id    TEXT NOT NULL,     -- 's_...' or 'r_...', the machine's own word
    info         TEXT NOT NULL,     -- as runner.info, of this machine
    ip_address   TEXT,
    created_at   REAL NOT NULL,
    contacted_at REAL NOT NULL,
    PRIMARY KEY (runner_id, system_id)
) WITHOUT ROWID;

CREATE TABLE runner_project (       -- the projects of a project runner
    runner_id   INTEGER NOT NULL REFERENCES runner ON DELETE CASCADE,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    PRIMARY KEY (runner_id, project_id)
) WITHOUT ROWID;

CREATE TABLE runner_tag_set (       -- which sets of tags a runner serves: a claim looks nowhere else
    runner_id   INTEGER NOT NULL REFERENCES runner ON DELETE CASCADE,
    tag_set_id  INTEGER NOT NULL REFERENCES tag_set,
    PRIMARY KEY (runner_id, tag_set_id)
) WITHOUT ROWID;

CREATE TABLE pipeline (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    iid         INTEGER NOT NULL,   -- its number within the project
    ref         TEXT NOT NULL,      -- branch or tag name
    tag         INTEGER NOT NULL,   -- whether `ref` is a tag
    name        TEXT,               -- from workflow:name
    auto_cancel TEXT NOT NULL,      -- workflow:auto_cancel:on_new_commit
    sha         TEXT NOT NULL,
    before_sha  TEXT NOT NULL,      -- 40 zeros when unknown
    source      TEXT NOT NULL,      -- 'api', 'push', 'web', ...
    status      TEXT NOT NULL,      -- composite_status() of its latest jobs
    variables   TEXT NOT NULL,      -- JSON list of {key, value, ...} given when it was made
    commit_info TEXT,               -- JSON: the commit's message, author and dates; NULL when it could not be read
    user_id     INTEGER REFERENCES user,
    created_at  REAL NOT NULL,
    updated_at  REAL NOT NULL,
    started_at  REAL,
    finished_at REAL,
    UNIQUE (project_id, iid)
);
CREATE INDEX pipeline_ref ON pipeline (project_id, ref, status, id);

CREATE TABLE job (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    pipeline_id INTEGER NOT NULL REFERENCES pipeline ON DELETE CASCADE,
    name        TEXT NOT NULL,
    stage       TEXT NOT NULL,
    stage_idx   INTEGER NOT NULL,   -- its stage's place in the pipeline, from 0
    status      TEXT NOT NULL CHECK (status IN (
                    'created', 'pending', 'running', 'success', 'failed', 'canceled', 'skipped', 'manual',
                    'scheduled', 'canceling', 'preparing', 'waiting_for_resource')),
    when_       TEXT NOT NULL CHECK (when_ IN ('on_success', 'on_failure', 'always', 'manual', 'delayed')),
    allow_failure INTEGER NOT NULL,
    retried     INTEGER NOT NULL DEFAULT 0, -- 1: a newer job of the same name stands in for it
    tag_set_id  INTEGER NOT NULL REFERENCES tag_set,
    shared      INTEGER NOT NULL,   -- its project's shared_runners_enabled, here for the index below
    runner_id   INTEGER REFERENCES runner ON DELETE SET NULL,
    token_hash  TEXT,               -- SHA-256 of the token made at its claim; NULL: no token works
    attempts    INTEGER NOT NULL DEFAULT 0, -- claims so far
    system_id   TEXT,               -- which of the runner's machines has it
    needs       TEXT,               -- JSON list of the names it waits for; NULL: the stages before its own
    resource_group TEXT,            -- one job of a group is queued or running at a time
    interruptible INTEGER NOT NULL, -- whether a newer pipeline of the ref may cancel it while it runs
    timeout     INTEGER,            -- seconds; NULL: the project's
    failure_reason TEXT,
    exit_code   INTEGER,
    trace_state TEXT,               -- JSON: what the last PUT said of the trace, how often it was refused
    coverage    REAL,               -- per cent
    user_id     INTEGER REFERENCES user,    -- who started or last played it
    created_at  REAL NOT NULL,
    queued_at   REAL,               -- when it became pending
    scheduled_at REAL,              -- when a delayed job is due
    started_at  REAL,
    finished_at REAL,
    erased_at   REAL,
    variables   TEXT NOT NULL DEFAULT '[]', -- JSON list given when it was played
    dotenv      TEXT NOT NULL DEFAULT '[]', -- JSON list from its dotenv report, for the jobs after it
    spec        TEXT NOT NULL       -- JSON of its JobSpec
);
CREATE INDEX job_of_project ON job (project_id, id);
CREATE INDEX job_of_pipeline ON job (pipeline_id, stage_idx, id);
CREATE INDEX job_of_runner ON job (runner_id, id);
CREATE INDEX job_token ON job (token_hash) WHERE token_hash IS NOT NULL;
CREATE INDEX job_scheduled ON job (scheduled_at) WHERE status = 'scheduled';
CREATE INDEX job_of_group ON job (project_id, resource_group, id) WHERE resource_group IS NOT NULL;
CREATE INDEX job_alive ON job (id) WHERE status IN ('running', 'canceling');
CREATE INDEX job_pending_shared ON job (tag_set_id, id) WHERE status = 'pending' AND shared = 1;
CREATE INDEX job_pending_project ON job (project_id, tag_set_id, id) WHERE status = 'pending';

CREATE TRIGGER job_enqueued AFTER UPDATE OF status ON job WHEN NEW.status = 'pending'
BEGIN UPDATE queue SET version = version + 1; END;
CREATE TRIGGER job_created_pending AFTER INSERT ON job WHEN NEW.status = 'pending'
BEGIN UPDATE queue SET version = version + 1; END;
CREATE TRIGGER runner_changed AFTER UPDATE OF tags, run_untagged, active, runner_type, access_level ON runner
BEGIN UPDATE queue SET version = version + 1; END;
CREATE TRIGGER runner_enabled AFTER INSERT ON runner_project
BEGIN UPDATE queue SET version = version + 1; END;
CREATE TRIGGER job_shared AFTER UPDATE OF shared ON job
BEGIN UPDATE queue SET version = version + 1; END;

CREATE TRIGGER job_status AFTER UPDATE OF status ON job WHEN NEW.status <> OLD.status
BEGIN INSERT INTO event (kind, object_id, status, before) VALUES ('job', NEW.id, NEW.status, OLD.status); END;
CREATE TRIGGER pipeline_status AFTER UPDATE OF status ON pipeline WHEN NEW.status <> OLD.status
BEGIN INSERT INTO event (kind, object_id, status, before) VALUES ('pipeline', NEW.id, NEW.status, OLD.status); END;

CREATE TABLE artifact (
    id          INTEGER PRIMARY KEY,
    job_id      INTEGER NOT NULL REFERENCES job ON DELETE CASCADE,
    file_type   TEXT NOT NULL,      -- 'archive', 'junit', 'dotenv', ...
    file_format TEXT NOT NULL,      -- 'zip', 'gzip' or 'raw'
    filename    TEXT NOT NULL,      -- what the runner called it; only ever displayed
    stored_as   TEXT NOT NULL,      -- its name in the data directory
    size        INTEGER NOT NULL,   -- bytes
    sha256      TEXT NOT NULL,
    created_at  REAL NOT NULL,
    expire_at   REAL,               -- NULL: kept
    UNIQUE (job_id, file_type)
);
CREATE INDEX artifact_expiry ON artifact (expire_at) WHERE expire_at IS NOT NULL;
""", """
-- What the pages need: browsers that sign in, and lists across projects.

ALTER TABLE private_token ADD COLUMN description TEXT NOT NULL DEFAULT '';  -- what it is for, in its owner's words
ALTER TABLE private_token ADD COLUMN expires_at REAL;                       -- NULL: it works until it is revoked
CREATE INDEX pipeline_of_project ON pipeline (project_id, id);
CREATE INDEX pipeline_of_project_ref ON pipeline (project_id, ref, id);
CREATE INDEX pipeline_of_project_status ON pipeline (project_id, status, id);
CREATE INDEX pipeline_of_ref ON pipeline (ref, id);
CREATE INDEX pipeline_of_ref_status ON pipeline (ref, status, id);
CREATE INDEX pipeline_status ON pipeline (status, id);
CREATE INDEX pipeline_of_sha ON pipeline (sha, id);
CREATE INDEX job_queue ON job (id) WHERE status = 'pending';
""", """
-- Upkeep: which refs still exist, which tag sets no job needs, and how many jobs have each status.

ALTER TABLE queue RENAME TO queue_version;

CREATE TABLE live_ref (             -- refs of old pipelines that their repository still had
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    ref         TEXT NOT NULL,
    seen_at     REAL NOT NULL,      -- when the repository was last seen to have it
    PRIMARY KEY (project_id, ref)
) WITHOUT ROWID;

CREATE INDEX job_of_tag_set ON job (tag_set_id);
CREATE INDEX job_count ON job (status) WHERE id > 0;    -- true of every job: only the query that counts them says so
""", """
-- Where pipelines come from: schedules, and merge requests of forges.

CREATE TABLE pipeline_schedule (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    description TEXT NOT NULL,
    ref         TEXT NOT NULL,      -- branch or tag, or its full name
    cron        TEXT NOT NULL,      -- five fields
    cron_timezone TEXT NOT NULL,    -- as in the tz database: 'UTC', 'Europe/Berlin'
    active      INTEGER NOT NULL,
    variables   TEXT NOT NULL,      -- JSON list of {key, value, variable_type, raw}
    inputs      TEXT NOT NULL,      -- JSON object
    user_id     INTEGER REFERENCES user,    -- its owner
    next_run_at REAL,               -- NULL: it never runs
    created_at  REAL NOT NULL,
    updated_at  REAL NOT NULL
);
CREATE INDEX schedule_of_project ON pipeline_schedule (project_id, id);
CREATE INDEX schedule_due ON pipeline_schedule (next_run_at) WHERE active;

ALTER TABLE pipeline ADD COLUMN schedule_id INTEGER REFERENCES pipeline_schedule ON DELETE SET NULL;
ALTER TABLE pipeline ADD COLUMN merge_request TEXT; -- JSON: what is known of the merge request; NULL: there is none
CREATE INDEX pipeline_of_schedule ON pipeline (schedule_id, id) WHERE schedule_id IS NOT NULL;
ALTER TABLE project ADD COLUMN fork_pipelines INTEGER NOT NULL DEFAULT 0;  -- whether forks' merge requests run here
""", """
-- Lists and counts that cost the same however many jobs there are.

CREATE INDEX job_of_project_status ON job (project_id, status, id);
DROP INDEX job_count;

CREATE TABLE job_tally (            -- how many jobs of a project have a status
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    status      TEXT NOT NULL,
    jobs        INTEGER NOT NULL,
    PRIMARY KEY (project_id, status)
) WITHOUT ROWID;
INSERT INTO job_tally SELECT project_id, status, count(*) FROM job GROUP BY project_id, status;

CREATE TRIGGER job_counted AFTER INSERT ON job
BEGIN
    INSERT INTO job_tally VALUES (NEW.project_id, NEW.status, 1) ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER job_recounted AFTER UPDATE OF status ON job WHEN NEW.status <> OLD.status
BEGIN
    UPDATE job_tally SET jobs = jobs - 1 WHERE project_id = OLD.project_id AND status = OLD.status;
    INSERT INTO job_tally VALUES (NEW.project_id, NEW.status, 1) ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER job_uncounted AFTER DELETE ON job
BEGIN
    UPDATE job_tally SET jobs = jobs - 1 WHERE project_id = OLD.project_id AND status = OLD.status;
END;
""", """
-- What clients of GitLab's API look for: test reports, releases, and settings of projects and variables.

CREATE TABLE test_report (          -- the junit report of a job
    job_id      INTEGER PRIMARY KEY REFERENCES job ON DELETE CASCADE,
    success     INTEGER NOT NULL,   -- test cases by status
    failed      INTEGER NOT NULL,
    skipped     INTEGER NOT NULL,
    error       INTEGER NOT NULL,
    total_time  REAL NOT NULL,      -- seconds
    suite_error TEXT                -- what was wrong with the files; NULL: nothing
);

CREATE TABLE test_case (
    id          INTEGER PRIMARY KEY,
    job_id      INTEGER NOT NULL REFERENCES job ON DELETE CASCADE,
    status      TEXT NOT NULL CHECK (status IN ('success', 'failed', 'skipped', 'error')),
    suite       TEXT NOT NULL,      -- the innermost test suite
    classname   TEXT NOT NULL,
    name        TEXT NOT NULL,
    file        TEXT NOT NULL,      -- '' when the report does not say
    time        REAL NOT NULL,      -- seconds
    message     TEXT NOT NULL,      -- why it failed, was skipped or had an error, in a line
    output      TEXT NOT NULL,      -- the same at length
    attachment  TEXT NOT NULL,      -- path of a screenshot among the job's artifacts
    flaky       INTEGER NOT NULL    -- it passed after it had failed
);
CREATE INDEX test_case_of_job ON test_case (job_id, status);

CREATE TABLE release (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    tag         TEXT NOT NULL,
    name        TEXT NOT NULL,
    description TEXT NOT NULL,
    sha         TEXT,               -- the commit of the tag; NULL: unknown, for want of a repository
    links       TEXT NOT NULL,      -- JSON list of {id, name, url, direct_asset_path, link_type}
    milestones  TEXT NOT NULL,      -- JSON list of titles
    user_id     INTEGER REFERENCES user,
    created_at  REAL NOT NULL,
    released_at REAL NOT NULL,
    UNIQUE (project_id, tag)
);

CREATE TABLE job_token_allowlist (  -- whose jobs may start pipelines of a project
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    allowed_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    PRIMARY KEY (project_id, allowed_id)
) WITHOUT ROWID;

CREATE TABLE namespace (            -- what stands before the last slash of projects' paths
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    path        TEXT NOT NULL UNIQUE    -- '' for projects without a namespace
);
INSERT INTO namespace (path)
SELECT DISTINCT rtrim(rtrim(path, replace(path, '/', '')), '/')
  FROM project;

ALTER TABLE project ADD COLUMN description TEXT;
ALTER TABLE project ADD COLUMN visibility TEXT NOT NULL DEFAULT 'private' CHECK (visibility IN ('private', 'public'));
ALTER TABLE project ADD COLUMN ci_config_path TEXT NOT NULL DEFAULT '';     -- '': .gitlab-ci.yml
ALTER TABLE variable ADD COLUMN environment_scope TEXT NOT NULL DEFAULT '*';    -- an environment, or a pattern with *
DROP INDEX variable_key;
CREATE UNIQUE INDEX variable_key ON variable (coalesce(project_id, 0), key, environment_scope);
""", """
-- What follows the finish of a job is looked up, however many jobs its pipeline has.

CREATE INDEX job_outcome ON job (pipeline_id, status, allow_failure, stage_idx) WHERE retried = 0;
CREATE INDEX job_name ON job (pipeline_id, name);
CREATE INDEX job_next ON job (pipeline_id, stage_idx) WHERE retried = 0 AND status = 'created' AND needs IS NULL;

CREATE TABLE job_need (             -- the names in job.needs
    pipeline_id INTEGER NOT NULL,
    name        TEXT NOT NULL,      -- of the job that is needed
    job_id      INTEGER NOT NULL REFERENCES job ON DELETE CASCADE,  -- the job that needs it
    PRIMARY KEY (pipeline_id, name, job_id)
) WITHOUT ROWID;
CREATE INDEX job_need_of_job ON job_need (job_id, name);
INSERT OR IGNORE INTO job_need SELECT job.pipeline_id, need.value, job.id FROM job JOIN json_each(job.needs) AS need;

CREATE TRIGGER job_needs AFTER INSERT ON job WHEN NEW.needs IS NOT NULL
BEGIN
    INSERT OR IGNORE INTO job_need SELECT NEW.pipeline_id, value, NEW.id FROM json_each(NEW.needs);
END;
""", """
-- A runner may prepare a job that it has claimed: the job has a token then, and is pending until the runner accepts it.

ALTER TABLE job ADD COLUMN claimed_at REAL;         -- when a runner claimed it, or last said that it prepares it
ALTER TABLE job ADD COLUMN failure_message TEXT;    -- what people should know beyond the failure_reason
UPDATE job SET claimed_at = started_at WHERE status IN ('running', 'canceling');

DROP INDEX job_pending_shared;
DROP INDEX job_pending_project;
CREATE INDEX job_pending_shared ON job (tag_set_id, id) WHERE status = 'pending' AND token_hash IS NULL AND shared = 1;
CREATE INDEX job_pending_project ON job (project_id, tag_set_id, id) WHERE status = 'pending' AND token_hash IS NULL;
CREATE INDEX job_prepared ON job (id) WHERE status = 'pending' AND token_hash IS NOT NULL;
""", """
-- Protection belongs to a commit on a ref and is decided when a pipeline is created.

ALTER TABLE project ADD COLUMN protected_refs TEXT; -- JSON list of full names with '*'; NULL: default branch
ALTER TABLE pipeline ADD COLUMN protected INTEGER NOT NULL DEFAULT 0;   -- it may have protected variables
ALTER TABLE job ADD COLUMN protected INTEGER NOT NULL DEFAULT 0;        -- its pipeline's, here for the indexes below
UPDATE pipeline SET protected = 1
 WHERE NOT tag AND ref = (SELECT default_branch FROM project WHERE project.id = project_id);
UPDATE job SET protected = 1 WHERE pipeline_id IN (SELECT id FROM pipeline WHERE protected);
CREATE INDEX job_protected_shared ON job (tag_set_id, id)
    WHERE status = 'pending' AND token_hash IS NULL AND shared = 1 AND protected = 1;
CREATE INDEX job_protected_project ON job (project_id, tag_set_id, id)
    WHERE status = 'pending' AND token_hash IS NULL AND protected = 1;
""", """
-- Bridges: jobs that start pipelines instead of running on a runner.

ALTER TABLE job ADD COLUMN kind TEXT NOT NULL DEFAULT 'build' CHECK (kind IN ('build', 'bridge'));
ALTER TABLE pipeline ADD COLUMN bridge_id INTEGER REFERENCES job ON DELETE SET NULL;    -- the job that started it
ALTER TABLE pipeline ADD COLUMN auto_cancel_failure TEXT NOT NULL DEFAULT 'none';   -- auto_cancel:on_job_failure
CREATE UNIQUE INDEX pipeline_of_bridge ON pipeline (bridge_id) WHERE bridge_id IS NOT NULL;

DROP TRIGGER job_counted;           -- bridges are listed apart, and counted by nobody
DROP TRIGGER job_recounted;
DROP TRIGGER job_uncounted;
CREATE TRIGGER job_counted AFTER INSERT ON job WHEN NEW.kind = 'build'
BEGIN
    INSERT INTO job_tally VALUES (NEW.project_id, NEW.status, 1) ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER job_recounted AFTER UPDATE OF status ON job WHEN NEW.status <> OLD.status AND NEW.kind = 'build'
BEGIN
    UPDATE job_tally SET jobs = jobs - 1 WHERE project_id = OLD.project_id AND status = OLD.status;
    INSERT INTO job_tally VALUES (NEW.project_id, NEW.status, 1) ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER job_uncounted AFTER DELETE ON job WHEN OLD.kind = 'build'
BEGIN
    UPDATE job_tally SET jobs = jobs - 1 WHERE project_id = OLD.project_id AND status = OLD.status;
END;
""", """
-- Browsers have sessions of their own, and private tokens say when they were last used.

CREATE TABLE session (              -- a browser that is signed in
    session_hash TEXT PRIMARY KEY,  -- SHA-256 of the cookie
    user_id     INTEGER NOT NULL REFERENCES user,
    scope       TEXT NOT NULL CHECK (scope IN ('api', 'read_api')),
    token_hash  TEXT REFERENCES private_token ON DELETE CASCADE,    -- of the token it was made with; NULL: a link
    created_at  REAL NOT NULL,
    expires_at  REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX session_of_token ON session (token_hash);
ALTER TABLE private_token ADD COLUMN last_used_at REAL;     -- written at most every ten minutes
DELETE FROM private_token WHERE description = 'Signed in by link';
""", """
-- Variables that nobody is shown, once they are set.

ALTER TABLE variable ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0;  -- masked, and its value is shown to jobs alone
""", """
-- Environments are what jobs name: made with the first such job, as the last that succeeded left them.

ALTER TABLE job ADD COLUMN environment TEXT;    -- the name of its environment
UPDATE job SET environment = json_extract(spec, '$.environment.name');

CREATE TABLE environment (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    name        TEXT NOT NULL,
    job_id      INTEGER REFERENCES job ON DELETE SET NULL,  -- the last that succeeded
    created_at  REAL NOT NULL,
    updated_at  REAL NOT NULL,
    UNIQUE (project_id, name)
);
CREATE INDEX environment_job ON environment (job_id);
INSERT OR IGNORE INTO environment (project_id, name, created_at, updated_at)
SELECT project_id, environment, created_at, created_at
  FROM job
 WHERE environment IS NOT NULL
 ORDER BY id;

CREATE TRIGGER environment_made AFTER INSERT ON job WHEN NEW.environment IS NOT NULL
BEGIN
    INSERT OR IGNORE INTO environment (project_id, name, created_at, updated_at)
    VALUES (NEW.project_id, NEW.environment, NEW.created_at, NEW.created_at);
END;
CREATE TRIGGER environment_changed AFTER UPDATE OF status ON job
WHEN NEW.environment IS NOT NULL AND NEW.status = 'success' AND OLD.status <> 'success'
BEGIN
    UPDATE environment
       SET job_id = NEW.id, updated_at = NEW.finished_at
     WHERE project_id = NEW.project_id AND name = NEW.environment;
END;
""", """
-- How runners get the commit of a pipeline.

ALTER TABLE pipeline ADD COLUMN fetched_by TEXT NOT NULL DEFAULT 'ref' CHECK (fetched_by IN (
    'ref',      -- it was what the ref pointed to
    'history',  -- it was an older commit of the ref
    'sha'));    -- by its id: the server gives any commit
""", """
-- Two steps above grew after the first databases had taken them: those get the rest here.

CREATE INDEX IF NOT EXISTS pipeline_of_project ON pipeline (project_id, id);
CREATE INDEX IF NOT EXISTS pipeline_of_project_ref ON pipeline (project_id, ref, id);
CREATE INDEX IF NOT EXISTS pipeline_of_project_status ON pipeline (project_id, status, id);
CREATE INDEX IF NOT EXISTS pipeline_of_ref_status ON pipeline (ref, status, id);
CREATE INDEX IF NOT EXISTS pipeline_of_sha ON pipeline (sha, id);

CREATE TABLE IF NOT EXISTS namespace (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    path        TEXT NOT NULL UNIQUE
);
INSERT OR IGNORE INTO namespace (path)
SELECT DISTINCT rtrim(rtrim(path, replace(path, '/', '')), '/')
  FROM project;
""", """
-- A project has a share of the disk.

ALTER TABLE artifact ADD COLUMN project_id INTEGER;     -- its job's, here for the index
UPDATE artifact SET project_id = (SELECT project_id FROM job WHERE job.id = job_id);
CREATE INDEX artifact_of_project ON artifact (project_id, size);
""", """
-- A claim writes fewer pages: it changes no index that another one can stand in for.

DROP INDEX job_queue;
DROP INDEX job_of_runner;
DROP INDEX job_pending_shared;
DROP INDEX job_pending_project;
DROP INDEX job_protected_shared;
DROP INDEX job_protected_project;
CREATE INDEX job_of_runner ON job (runner_id, id) WHERE runner_id IS NOT NULL;
CREATE INDEX job_pending_shared ON job (tag_set_id, protected, id)
    WHERE status = 'pending' AND token_hash IS NULL AND shared = 1;
CREATE INDEX job_pending_project ON job (project_id, tag_set_id, protected, id)
    WHERE status = 'pending' AND token_hash IS NULL;

DROP TRIGGER job_status;
DROP TRIGGER pipeline_status;
ALTER TABLE event RENAME TO numbered_event;
CREATE TABLE event (                -- as before; its newest row is never deleted, so that its ids only grow
    id          INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL CHECK (kind IN ('job', 'pipeline')),
    object_id   INTEGER NOT NULL,   -- of the job or pipeline
    status      TEXT NOT NULL,      -- what it changed to
    before      TEXT NOT NULL       -- what it was
);
INSERT INTO event SELECT * FROM numbered_event;
DROP TABLE numbered_event;
CREATE TRIGGER job_status AFTER UPDATE OF status ON job WHEN NEW.status <> OLD.status
BEGIN INSERT INTO event (kind, object_id, status, before) VALUES ('job', NEW.id, NEW.status, OLD.status); END;
CREATE TRIGGER pipeline_status AFTER UPDATE OF status ON pipeline WHEN NEW.status <> OLD.status
BEGIN INSERT INTO event (kind, object_id, status, before) VALUES ('pipeline', NEW.id, NEW.status, OLD.status); END;
""")


# Database #####################################################################################

def sync_tree(directory: Path) -> None:
    """Flush the entries of a directory and of all directories below it to the disk."""
    sync_path(directory)
    for path in directory.rglob('*'):
        if path.is_dir():
            sync_path(path)


def sync_path(path: Path) -> None:
    """Flush a file's data, or a directory's entries, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no directories
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


#: How SQLite's messages begin that tell of a damaged file.
DAMAGE = ('database disk image is malformed', 'file is not a database')
#: How SQLite's messages begin that tell of locks, disks and files; Python 3.10 does not give their codes.
TROUBLE = (
    'database is locked',
    'database table is locked',
    'database schema is locked',
    'database or disk is full',
    'disk I/O error',
    'unable to open database file',
    'locking protocol',
    *DAMAGE,
)


class Database:
    """One SQLite file: writers take turns, readers never wait.

    A thread borrows a connection for each block and returns it; after a fork the child opens its own.
    This process opens the file only through SQLite: POSIX drops a process's locks on a file as soon
    as the process closes any handle of that file.
    """

    def __init__(self, path: Path, *, fsync: bool = True) -> None:
        if sqlite3.sqlite_version_info < (3, 35):
            raise CIError(f'minici needs SQLite 3.35 or later; this Python has {sqlite3.sqlite_version}')
        self.path = path
        self._fsync = fsync
        self._journals = 'MEMORY'   # where SQLite keeps the journal of a single statement
        self.damage = ''        # what SQLite found wrong with the file; nothing is read or written from then on
        log_file = path.with_name(f'{path.name}-wal')
        self.was_in_use = log_file.exists()     # by a process that runs still or was killed
        self._forget()
        with contextlib.suppress(FileExistsError):  # SQLite would let everybody read it, and it holds tokens
            path.touch(0o600, exist_ok=False)

    def _forget(self) -> None:
        """Reset to no connections; called again after a fork."""
        self._pid = os.getpid()
        self._write_lock = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []
        self.closed = False

    def _connect(self, *, writer: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None,
                                     check_same_thread=False, cached_statements=256)
        connection.row_factory = Row
        connection.execute('PRAGMA foreign_keys = ON')
        connection.execute('PRAGMA trusted_schema = OFF')
        if not writer:
            connection.execute('PRAGMA query_only = ON')
            return connection
        pages, = connection.execute('PRAGMA page_count').fetchone()
        if not pages:  # an older file changes its mode in `vacuum`
            connection.execute('PRAGMA auto_vacuum = INCREMENTAL')
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:  # the busy timeout does not cover this pragma when processes start together
            try:
                connection.execute('PRAGMA journal_mode = WAL').fetchall()
                break
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        connection.execute('PRAGMA journal_size_limit = 4194304').fetchall()
        connection.execute(f'PRAGMA temp_store = {self._journals}')
        connection.execute('PRAGMA synchronous = FULL')     # said explicitly: some builds of SQLite default to less
        if not self._fsync:
            connection.execute('PRAGMA synchronous = OFF')
        return connection

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._forget()  # the parent's handles stay untouched: SQLite forbids sharing them
        if self.closed:
            raise Busy('The database is closed')
        if self.damage:
            raise Busy(f'The database is damaged ({self.damage}): bring a backup back with `restore DIR`')

    def _translate(self, error: sqlite3.DatabaseError) -> NoReturn:
        """Raise Busy for an error of locks, disks and files; any other is a fault of ours and is raised as it is."""
        if not str(error).startswith(TROUBLE):
            raise error
        if str(error).startswith(DAMAGE):
            self._note_damage(str(error))
            self._check_process()
        log.warning('database: %s', error, exc_info=log.isEnabledFor(logging.DEBUG))
        raise Busy(f'The database answers: {error}') from error

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        """Convert lock, disk and I/O errors within the block into Busy."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            self._translate(error)

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection that only reads; fetch every row before the block ends.

        Raises Busy when the file cannot be read.
        """
        self._check_process()
        connection = None
        try:
            connection = self._borrow_reader()
            yield connection
        except sqlite3.DatabaseError as error:
            self._translate(error)
        finally:
            if connection is not None:
                self._return_reader(connection)

    def _borrow_reader(self) -> sqlite3.Connection:
        """Return a reading connection that nobody uses."""
        try:
            return self._readers.pop()
        except IndexError:
            return self._connect(writer=False)

    def _return_reader(self, connection: sqlite3.Connection) -> None:
        """Keep a reading connection for the next block."""
        if self.closed:
            connection.close()
        else:
            self._readers.append(connection)

    @contextlib.contextmanager
    def write(self, *, patient: bool = True) -> Iterator[sqlite3.Connection]:
        """Yield the writing connection inside BEGIN IMMEDIATE; commit at the end, or roll back.

        Do not read files or wait for the network within the block: other writers wait for its end.
        Raises Busy when they make this one wait for too long, and at once unless it is `patient`, or when
        the disk is full or fails.
        """
        self._check_process()
        if not self._write_lock.acquire(timeout=LOCK_TIMEOUT if patient else 0):
            raise Busy('Too many writers are waiting for the database')
        try:
            with self._trouble():
                if self._writer is None:
                    self._writer = self._connect(writer=True)
                connection = self._writer
                try:
                    self._begin(connection, patient)
                    yield connection
                    connection.execute('COMMIT')
                finally:
                    if connection.in_transaction:  # a full disk has rolled back already
                        connection.execute('ROLLBACK')
        finally:
            self._write_lock.release()

    def note(self, values: Members, *statements: str) -> None:
        """Execute statements in one transaction, or none of them when the database cannot be written at once.

        This is for what may as well be written the next time: a path that only reads waits for no lock.
        """
        with contextlib.suppress(Busy), self.write(patient=False) as c:
            for statement in statements:
                c.execute(statement, values)

    def is_writable(self) -> bool:
        """Tell whether the database can be written at once."""
        with contextlib.suppress(Busy), self.write(patient=False):
            return True
        return False

    @staticmethod
    def _begin(connection: sqlite3.Connection, patient: bool) -> None:
        """Take the write lock; unless `patient`, raise Busy at once when another process has it."""
        if patient:
            connection.execute('BEGIN IMMEDIATE')
            return
        connection.execute('PRAGMA busy_timeout = 0')
        try:
            connection.execute('BEGIN IMMEDIATE')
        except sqlite3.OperationalError as error:
            raise Busy(f'The database answers: {error}') from error
        finally:
            connection.execute(f'PRAGMA busy_timeout = {round(BUSY_TIMEOUT * 1000)}')

    def migrate(self) -> None:
        """Bring the schema to the newest version; refuse another program's file or a newer version."""
        with self.read() as c:  # before the first write, which would switch another program's file to WAL
            if self._version(c) == len(MIGRATIONS):
                return
        self._keep_journals('FILE')
        with self.write() as c:
            version = self._version(c)
            for script in MIGRATIONS[version:]:
                for statement in self._statements(script):
                    c.execute(statement)
            if version < len(MIGRATIONS):
                c.execute(f'PRAGMA user_version = {len(MIGRATIONS)}')
                c.execute(f'PRAGMA application_id = {APPLICATION_ID}')
        self._keep_journals('MEMORY')

    def _keep_journals(self, place: str) -> None:
        """Choose where SQLite keeps the journal of a single statement.

        A FILE is made anew for each statement that fires a trigger, and doubles its cost; it is for
        statements that change or copy the whole database.
        """
        self._journals = place
        if self._writer is not None:
            self._writer.execute(f'PRAGMA temp_store = {place}')

    def _version(self, c: sqlite3.Connection) -> int:
        """Return the schema's version; raise CIError for another program's file or a newer version of ours."""
        tables, = c.execute('SELECT count(*) FROM sqlite_master').fetchone()  # first: another process may migrate it
        version, = c.execute('PRAGMA user_version').fetchone()
        application, = c.execute('PRAGMA application_id').fetchone()
        if application != APPLICATION_ID and (application or tables):
            raise CIError(f'{self.path} is a database of another program; name another file')
        if version > len(MIGRATIONS):
            raise CIError(f'{self.path} was written by a newer minici (schema {version}, '
                          f'this one knows {len(MIGRATIONS)}); upgrade minici or restore a backup')
        return version

    @staticmethod
    def _statements(script: str) -> Iterator[str]:
        """Yield the statements of a script one by one; `executescript` would commit the open transaction."""
        statement = ''
        for line in script.splitlines(keepends=True):
            statement += line
            if sqlite3.complete_statement(statement):
                yield statement
                statement = ''

    def _note_damage(self, found: str) -> None:
        """Refuse every further block, and say so in the log once."""
        if not self.damage:
            log.error('%s is damaged: %s: stop the server and bring a backup back with `restore DIR`',
                      self.path, found)
        self.damage = found

    def check_pages(self) -> str:
        """Return what is wrong with the file's pages, '' when nothing is; afterwards a damaged one answers Busy."""
        with self.read() as c:
            found = c.execute('PRAGMA quick_check(1)').fetchone()[0]
        if found != 'ok':
            self._note_damage(found)
        return self.damage

    def shrink(self) -> None:
        """Return unused pages to the disk, a few in each transaction; needs incremental vacuum, see `vacuum`."""
        while self._can_shrink():
            with self.write() as c:
                c.execute(f'PRAGMA incremental_vacuum({VACUUMED_AT_ONCE})').fetchall()

    def _can_shrink(self) -> bool:
        """Tell whether there are unused pages and the file has incremental vacuum."""
        with self._trouble(), contextlib.closing(self._connect(writer=False)) as c:  # an older one remembers the mode
            mode, = c.execute('PRAGMA auto_vacuum').fetchone()
            unused, = c.execute('PRAGMA freelist_count').fetchone()
        return mode == 2 and unused > 0

    def vacuum(self) -> None:
        """Rewrite the whole file without unused pages; an older file gets incremental vacuum by it.

        Needs as much free disk space as the file has bytes in use. Raises Busy while others use the file.
        """
        self._check_process()
        with self._write_lock, self._trouble():
            if self._writer is None:
                self._writer = self._connect(writer=True)
            self._writer.execute('PRAGMA auto_vacuum = INCREMENTAL')
            self._keep_journals('FILE')
            try:
                self._writer.execute('VACUUM')
            finally:
                self._keep_journals('MEMORY')
            self._writer.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()

    def copy_to(self, target: Path) -> None:
        """Write a consistent copy to the new file `target`, readable by its owner alone, while others go on writing."""
        target.touch(0o600, exist_ok=False)
        with self.read() as c:
            c.execute('PRAGMA query_only = OFF')
            try:
                c.execute('VACUUM INTO :target', {'target': str(target)})
            finally:
                c.execute('PRAGMA query_only = ON')
        sync_path(target)

    def close(self) -> None:
        """Close every connection of this process; blocks still running in other threads fail with Busy."""
        if self._pid != os.getpid():
            return
        self.closed = True
        with self._write_lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        while self._readers:
            self._readers.pop().close()


@functools.cache
def empty_database() -> bytes:
    """Return the file of a database without rows; a process makes it once, for copying it is ten times as fast."""
    with tempfile.TemporaryDirectory(prefix='minici-') as folder:
        path = Path(folder, 'empty.sqlite')
        with contextlib.closing(Database(path, fsync=False)) as database:
            database.migrate()
        return path.read_bytes()


def create_database(path: Path, *, fsync: bool) -> None:
    """Make the file of a new database, readable by its owner alone, unless it exists: whole, or not at all."""
    log_file = path.with_name(f'{path.name}-wal')
    if path.exists() or log_file.exists():      # SQLite empties the log of a removed file before it makes a new one
        return
    part = path.with_name(f'.{path.name}.{os.getpid()}.{threading.get_ident()}.part')
    try:
        part.touch(0o600, exist_ok=False)
        part.write_bytes(empty_database())
        if fsync:
            sync_path(part)
        os.link(part, path)
    except OSError:     # it exists by now, or the file system knows no links: SQLite makes it, or says what is wrong
        return
    finally:
        part.unlink(missing_ok=True)
    if fsync:
        sync_path(path.parent)


# Traces #######################################################################################

#: What terminals obey and do not show: control sequences, and operating system commands such as titles and links.
ESCAPES = re.compile(rb'\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?')
SECTION_MARK = rb'section_(?:start|end):[0-9]+:[A-Za-z0-9_.-]+(?:\[[^\[\]\r\n]*\])?\r'
#: Section marks in a row, with the end of the line if nothing else stands behind them.
SECTION_MARKS = re.compile(SECTION_MARK + rb'(?:' + SECTION_MARK + rb')*(?:\r*\n)?')
#: The end of a piece of text that may go on as a section mark.
UNFINISHED_MARK = re.compile(rb'(?:s|se|sec|sect|secti|sectio|section|section_[^\r\n]{0,300})\Z')

# Runners from 18.7 on begin each line with the time and the stream (O: stdout, E: stderr) of what follows.
# The last of these 32 bytes is '+' when the line continues the line before, whose newline then is none.
STAMP_SIZE = 32     # bytes
STAMPED = re.compile(rb'[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z [0-9a-f]{2}[OE][ +]')
LINE_STAMP = re.compile(rb'\n....-..-..T..:..:..\.......Z [0-9a-f]{2}[OE] ')     # dots are faster than digits
CONTINUATION = re.compile(rb'\n....-..-..T..:..:..\.......Z [0-9a-f]{2}[OE]\+')
NEWLINE = re.compile(rb'\n')
LINE_END = re.compile(rb'\n(?!....-..-..T..:..:..\.......Z [0-9a-f]{2}[OE]\+)')


def remove_matches(pattern: re.Pattern[bytes], text: bytes) -> bytes:
    """Return text without what a pattern without groups matches; twice as fast as `sub`."""
    return b''.join(pattern.split(text))


def remove_stamps(data: bytes) -> bytes:
    """Return a piece of a stamped trace without the stamps behind its newlines, continued lines joined."""
    if b'+' in data:
        data = remove_matches(CONTINUATION, data)
    return b'\n'.join(LINE_STAMP.split(data))


def last_states(text: bytes) -> bytes:
    """Return text with the last state of each line that carriage returns rewrite."""
    first, *pieces = text.split(b'\r')
    kept = [first]
    for piece in filter(None, pieces):
        if not piece.startswith(b'\n'):
            rewritten = kept[-1]
            kept[-1] = rewritten[:rewritten.rfind(b'\n') + 1]
        kept.append(piece)
    return b''.join(kept)


def remove_section_marks(text: bytes) -> bytes:
    """Return text without section marks, and without the lines that hold nothing else."""
    def rest(found: re.Match[bytes]) -> bytes:
        first = found.start() == 0 or found.string[found.start() - 1] == ord(b'\n')
        if found[0].endswith(b'\n') and not first:
            return b'\n'
        return b''

    return SECTION_MARKS.sub(rest, text)


@dataclass(frozen=True, eq=False)
class TraceBlock:
    """Whole lines of a trace: their place in it, their bytes as they are stored, and their text."""

    offset: int         # of the first byte in the trace
    first_line: int     # the number of the first line, from 1
    data: bytes         # as stored
    stamped: bool       # whether lines begin with a time stamp

    @functools.cached_property
    def text(self) -> bytes:
        """Return the lines without time stamps, continued lines joined."""
        if not self.stamped:
            return self.data
        start = STAMP_SIZE if STAMPED.match(self.data) else 0
        return remove_stamps(self.data[start:])

    def count_ends(self, stop: int | None = None) -> int:
        """Return how many lines end in the block, or in its first `stop` bytes."""
        ends = self.data.count(b'\n', 0, stop)
        if self.stamped and b'+' in self.data:
            last = len(self.data) if stop is None else stop + STAMP_SIZE
            ends -= len(CONTINUATION.findall(self.data, 0, last))
        return ends

    def line_starts(self) -> list[int]:
        """Return where in `data` each line starts; the last start is the end of `data` if it ends with a line."""
        line_end = LINE_END if self.stamped else NEWLINE
        return [0, *(found.end() for found in line_end.finditer(self.data))]


class TraceDecoder:
    """Turn the bytes of a trace into text while they arrive, however they are cut into pieces.

    Time stamps and section marks are left out, colours and carriage returns stay.
    """

    LONG_LINE = 8 * KIB     # runners cut a line after so many bytes, or after a write that holds a CR

    def __init__(self) -> None:
        self._data = b''        # received, but the rest of a stamp may follow
        self._line = b''        # the end of what was received of the current line
        self._text = b''        # without stamps, but the rest of a section mark may follow
        self._stamped: bool | None = None
        self._stamp_due = True  # whether the next line begins in front of `_data`
        self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """Return the text that becomes certain with `data`; with `final`, all that is left."""
        self._text += self._without_stamps(self._data + data, final)
        unfinished = None
        if not final:
            unfinished = UNFINISHED_MARK.search(self._text, max(0, len(self._text) - 310))
        cut = unfinished.start() if unfinished else len(self._text)
        text = self._text[:cut]
        self._text = self._text[cut:]
        return self._decoder.decode(SECTION_MARKS.sub(self._line_end, text), final)

    @staticmethod
    def _line_end(found: re.Match[bytes]) -> bytes:
        """Return what is left of section marks: the end of their line."""
        if found[0].endswith(b'\n'):
            return b'\n'
        return b''

    def _without_stamps(self, data: bytes, final: bool) -> bytes:
        """Return `data` without stamps; keep back what cannot be told yet."""
        self._data = b''
        begins_like_one = data[:1].isdigit() and b'\n' not in data
        if self._stamped is None and not final and (not data or begins_like_one and len(data) < STAMP_SIZE):
            self._data = data
            return b''
        if self._stamped is None:
            self._stamped = STAMPED.match(data) is not None
        if not self._stamped:
            return data
        if self._stamp_due:
            if len(data) < STAMP_SIZE and not final:
                self._data = data
                return b''
            self._stamp_due = False
            if STAMPED.match(data):
                data = data[STAMP_SIZE:]
        return remove_stamps(data if final else self._certain(data))

    def _certain(self, data: bytes) -> bytes:
        """Return the part of `data` that is no piece of a stamp; the rest waits in `_data`."""
        newline = data.rfind(b'\n')
        line = self._line + data
        if newline >= 0 and len(data) - newline <= STAMP_SIZE:
            last = (self._line + data[:newline]).rpartition(b'\n')[2]
            goes_on = b'\r' in last or len(last) >= self.LONG_LINE     # then this newline may be none
            cut = newline if goes_on else newline + 1
            self._stamp_due = not goes_on
            self._data = data[cut:]
            data = data[:cut]
            line = last if goes_on else b''
        self._line = line.rpartition(b'\n')[2][-self.LONG_LINE:]
        return data


#: What stands before the forty digits of this program's tokens; runners that registered the old way have digits alone.
TOKEN_PREFIX = re.compile(rb'(?:glrt|mc[a-z])-(?:[0-9]{1,18}-)?\Z')
TOKEN_LENGTH = 80   # bytes of the longest token, with what must stand around it
DIGITS = b'0123456789abcdef'
#: Each hexadecimal digit as 0, any other byte as a blank: forty of a kind are found a hundred times faster.
DIGIT_SHAPE = bytes(b' 0'[byte in DIGITS] for byte in range(256))
FORTY_DIGITS = re.compile(b'0{40,}')


class Secrets:
    """What must not be read in a job's trace: tokens, and texts that are masked."""

    def __init__(self, texts: Iterable[str], hashes: Iterable[str | None]) -> None:
        """Prepare to mask `texts`, all tokens with a prefix, and the tokens whose SHA-256 is among `hashes`."""
        self._literals = sorted({text.encode() for text in texts if text}, key=len, reverse=True)
        self._hashes = frozenset(hashes)
        self.reach = max([TOKEN_LENGTH, *map(len, self._literals)])     # bytes around a piece that decide about it

    def mask(self, data: bytes) -> bytes:
        """Return `data` with as many asterisks in the place of each secret as it has bytes."""
        for literal in self._literals:
            data = data.replace(literal, b'*' * len(literal))
        masked = bytearray(data)
        for found in FORTY_DIGITS.finditer(data.translate(DIGIT_SHAPE)):
            start, end = found.span()
            prefix = TOKEN_PREFIX.search(data, max(0, start - TOKEN_LENGTH), start)
            if prefix:
                start = prefix.start()
                end = prefix.end() + 40
            if prefix or self._is_token(data[start:end]):
                masked[start:end] = b'*' * (end - start)
        return bytes(masked)

    def _is_token(self, digits: bytes) -> bool:
        """Tell a runner's token from the id of a commit."""
        return len(digits) == 40 and hashlib.sha256(digits).hexdigest() in self._hashes


class MaskedFile:
    """A trace opened for reading, with its secrets masked wherever a piece begins or ends."""

    def __init__(self, file: IO[bytes], secrets_: Secrets) -> None:
        self._file = file
        self._secrets = secrets_

    def __enter__(self) -> MaskedFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""
        start = self._file.tell()
        return self._masked(start, self._file.read(size))

    def readline(self, size: int = -1) -> bytes:
        """Return the rest of the line, up to `size` bytes."""
        start = self._file.tell()
        return self._masked(start, self._file.readline(size))

    def _masked(self, start: int, data: bytes) -> bytes:
        """Return the piece of the file that was just read, masked; secrets may reach over its ends."""
        if not data:
            return data
        before = max(0, start - self._secrets.reach)
        self._file.seek(before)
        around = self._file.read(start - before + len(data) + self._secrets.reach)
        self._file.seek(start + len(data))
        masked = self._secrets.mask(around)
        return masked[start - before:start - before + len(data)]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move within the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in the file."""
        return self._file.tell()

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TraceStore:
    """Append-only trace files, one for each job; the size of the file is the length of the trace.

    The first sign of life of a job's runner makes the file; its modification time is the last one, its
    access time is when somebody last read the trace. A trace is replaced by renaming a new file over it.
    """

    STRIPES = 64    # locks that all jobs share

    def __init__(self, directory: Path, *, clock: Callable[[], float], fsync: bool, max_size: int) -> None:
        self._directory = directory
        self._root = str(directory)
        self._clock = clock
        self._fsync = fsync
        self._max_size = max_size
        self._synced: set[Path] = set()
        self._locks = [threading.Lock() for _ in range(self.STRIPES)]
        directory.mkdir(mode=0o700, exist_ok=True)
        (directory / 'locks').mkdir(mode=0o700, exist_ok=True)

    def path(self, job_id: int) -> Path:
        """Return the path of a job's trace, whether it exists or not."""
        return Path(self._name(job_id))

    def _name(self, job_id: int) -> str:
        """Return the path as a text, where a request cannot wait for pathlib."""
        return f'{self._root}/{job_id // 1000:04d}/{job_id}.log'

    @contextlib.contextmanager
    def _locked(self, job_id: int) -> Iterator[None]:
        """Keep other threads, and with flock other processes, from changing a job's trace."""
        stripe = job_id % self.STRIPES
        with self._locks[stripe]:
            if fcntl is None:
                yield
                return
            lock_file = f'{self._root}/locks/{stripe:02d}'
            handle = os.open(lock_file, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)

    def append(self, job_id: int, start: int, data: bytes, check: Callable[[], None]) -> int:
        """Append `data` to a trace that is `start` bytes long, and return its new length in bytes.

        `check` runs under the lock; it raises if the caller may no longer write. Raises RangeMismatch
        when the trace has another length (nothing is written then), TooLarge when it would exceed the
        limit (what fits is written). The data is on disk when this returns or raises TooLarge.
        """
        with self._locked(job_id):
            check()
            path = self._name(job_id)
            read_at = self._last_read(path)
            handle = self._open_end(path)
            try:
                size = os.fstat(handle).st_size
                if start != size:
                    self._check_size(start + len(data))
                    raise RangeMismatch(size)
                self._write(handle, self._fitting(data, size), size)
            finally:
                os.close(handle)
            self._set_heard(path, read_at)
            if not start:
                self._sync_directories(self.path(job_id))
            self._check_size(start + len(data))
            return start + len(data)

    def _fitting(self, data: bytes, size: int = 0) -> bytes:
        """Return the start of `data` that a trace of `size` bytes has room for."""
        room = max(0, self._max_size - size)
        return data[:room]

    def _check_size(self, size: int) -> None:
        """Raise TooLarge if a trace of `size` bytes exceeds the limit."""
        if size > self._max_size:
            raise TooLarge(f'the trace has reached max_trace_size, {self._max_size} bytes')

    def _sync_directories(self, path: Path) -> None:
        """Flush a new trace's directory to disk, and the directory above when this process first uses the one."""
        if not self._fsync:
            return
        sync_path(path.parent)
        if path.parent not in self._synced:
            sync_path(self._directory)
            self._synced.add(path.parent)

    @staticmethod
    def _open_end(path: str) -> int:
        """Open a trace to write at its end; make it, for its owner alone, and its directory."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, 'O_CLOEXEC', 0)
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            return os.open(path, flags, 0o600)

    def _write(self, handle: int, data: bytes, offset: int = 0) -> None:
        """Write all of `data` at the file's end and flush it to disk; restore its old length when that fails."""
        rest = memoryview(data)
        try:
            while rest:
                written = os.write(handle, rest)
                rest = rest[written:]
            if self._fsync and data:
                os.fsync(handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, offset)
            raise

    @staticmethod
    def _last_read(path: Path | str) -> float:
        """Return when somebody last read a trace, or waited for its first byte; 0 if nobody ever did."""
        try:
            return os.stat(path).st_atime
        except FileNotFoundError:
            name, _ = os.path.splitext(path)
        with contextlib.suppress(FileNotFoundError):
            return os.stat(f'{name}.watched').st_atime
        return 0.0

    def _set_heard(self, path: Path | str, read_at: float) -> None:
        """Set the times of a trace: its runner was heard just now."""
        os.utime(path, (read_at, self._clock()))

    def replace(self, job_id: int, data: bytes, check: Callable[[], None]) -> None:
        """Replace a trace by `data`, completely or not at all; raises as `append` does."""
        with self._locked(job_id):
            check()
            path = self.path(job_id)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            part = path.with_suffix('.part')
            with self._open(part, 'wb') as file:
                self._write(file.fileno(), self._fitting(data))
            self._set_heard(part, self._last_read(path))
            os.replace(part, path)
            self._sync_directories(path)
            self._check_size(len(data))

    def heard(self, job_id: int, check: Callable[[], None]) -> None:
        """Record that the runner of a job was heard just now; `check` is that of `append`."""
        path = self.path(job_id)
        try:
            self._set_heard(path, self._last_read(path))
        except FileNotFoundError:
            with self._locked(job_id):
                check()
                path.parent.mkdir(mode=0o700, exist_ok=True)
                read_at = self._last_read(path)
                self._open(path, 'ab').close()
                self._set_heard(path, read_at)

    def restart(self, job_id: int, check: Callable[[], None]) -> None:
        """Restart a trace empty; keep its old content as `.kept` until `settle` keeps the longer of the two."""
        with self._locked(job_id):
            check()
            path = self.path(job_id)
            read_at = self._last_read(path)
            os.replace(path, path.with_suffix('.kept'))
            path.touch(0o600)
            self._set_heard(path, read_at)

    def settle(self, job_id: int, *, complete: bool = False) -> None:
        """Finish what `restart` began: keep the longer content, or the new one if it is `complete`."""
        kept = self.path(job_id).with_suffix('.kept')
        if kept.exists():
            with self._locked(job_id):
                if not complete and kept.stat().st_size > (self.size(job_id) or 0):
                    os.replace(kept, self.path(job_id))
                kept.unlink(missing_ok=True)

    def parts(self) -> Iterator[Path]:
        """Yield files left over from an interrupted `replace`, and marks of those who waited for a trace."""
        return itertools.chain(self._directory.glob('*/*.part'), self._directory.glob('*/*.watched'))

    def stored(self) -> Iterator[int]:
        """Yield the numbers of the jobs that have a trace."""
        return (int(path.stem) for path in self._directory.glob('*/*.log'))

    def unsettled(self) -> Iterator[int]:
        """Yield the ids of the jobs whose trace was restarted and not settled."""
        for path in self._directory.glob('*/*.kept'):
            yield int(path.stem)

    def looked_at(self, job_id: int) -> None:
        """Record that somebody reads a job's trace just now, if the file system lets us."""
        path = self.path(job_id)
        with contextlib.suppress(OSError), self._locked(job_id):
            if not path.exists():   # only its runner may begin a trace
                path = path.with_suffix('.watched')
                path.parent.mkdir(mode=0o700, exist_ok=True)
                path.touch(0o600)
            heard_at = os.stat(path).st_mtime
            os.utime(path, (self._clock(), heard_at))

    def is_watched(self, job_id: int) -> bool:
        """Tell whether somebody read a job's trace within the last minute."""
        last_read = self._last_read(self._name(job_id))
        return self._clock() - last_read < WATCHED_FOR

    def last_heard(self, job_id: int) -> float | None:
        """Return when the runner of a job was last heard, or None if it never was."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self._name(job_id)).st_mtime or None      # 0: a claim made the file in older versions
        return None

    def size(self, job_id: int) -> int | None:
        """Return the length of a job's trace in bytes, or None when there is none."""
        try:
            return os.stat(self._name(job_id)).st_size
        except FileNotFoundError:
            return None

    def checksum(self, job_id: int) -> str:
        """Return the CRC-32 of a job's trace as runners write it: ``crc32:`` and eight digits."""
        crc = 0
        with contextlib.suppress(NotFound), self.open(job_id) as file:
            while chunk := file.read(COPY_CHUNK):
                crc = zlib.crc32(chunk, crc)
        return f'crc32:{crc:08x}'

    def open(self, job_id: int, hidden: Secrets | None = None) -> IO[bytes]:
        """Open a job's trace for reading, with what is `hidden` masked; raise NotFound when there is none."""
        try:
            file = self._open(self.path(job_id), 'rb')
        except FileNotFoundError:
            raise NotFound('Trace') from None
        if hidden:
            return cast('IO[bytes]', MaskedFile(file, hidden))
        return file

    @staticmethod
    def _open(path: Path | str, mode: str) -> IO[bytes]:
        """Open a file, creating it for its owner alone, without touching its access time (see `looked_at`)."""
        def opener(name: str, flags: int) -> int:
            return os.open(name, flags | getattr(os, 'O_NOATIME', 0), 0o600)

        if mode == 'rb':
            return open(path, mode, opener=opener)
        return open(path, mode, buffering=0, opener=opener)

    def blocks(self, job_id: int, hidden: Secrets | None = None, *, offset: int = 0,
               first_line: int = 1) -> Iterator[TraceBlock]:
        """Yield a trace in blocks of about 1 MiB that end with a line, unless a line is longer than that.

        The first begins at `offset`, which is the end of an earlier block. What is `hidden` is masked.
        Raises NotFound when there is no trace.
        """
        with self.open(job_id, hidden) as file:
            stamped = self._is_stamped(file)
            file.seek(offset)
            while data := self._read_block(file, stamped):
                block = TraceBlock(offset, first_line, data, stamped)
                yield block
                offset += len(data)
                first_line += block.count_ends()

    @staticmethod
    def _is_stamped(file: IO[bytes]) -> bool:
        """Tell whether the lines of a trace begin with time stamps; leave `file` at its start."""
        stamp = file.read(STAMP_SIZE)
        file.seek(0)
        return STAMPED.match(stamp) is not None

    @staticmethod
    def _read_block(file: IO[bytes], stamped: bool) -> bytes:
        """Read 1 MiB and what follows up to the end of a line, 3 MiB at most."""
        data = file.read(MIB)
        data += file.readline(MIB)
        while stamped and data.endswith(b'\n'):
            stamp = file.read(STAMP_SIZE)
            file.seek(-len(stamp), os.SEEK_CUR)
            if not (STAMPED.match(stamp) and stamp.endswith(b'+')):
                break
            if len(data) > 2 * MIB:     # the newline is none: it belongs to the stamp that follows
                file.seek(-1, os.SEEK_CUR)
                return data[:-1]
            data += file.readline(MIB)
        return data

    def lines_backwards(self, job_id: int) -> Iterator[bytes]:
        """Yield the lines of a trace without time stamps, the last one first; a line over 1 MiB comes in pieces.

        Raises NotFound when there is no trace.
        """
        with self.open(job_id) as file:
            stamped = self._is_stamped(file)
            line_end = LINE_END if stamped else NEWLINE
            start = file.seek(0, os.SEEK_END)
            rest = b''      # of a line that begins further up
            while start:
                size = min(start, COPY_CHUNK)
                start -= size
                file.seek(start)
                data = file.read(size) + rest
                rest = b''
                found = line_end.search(data) if start else None
                if found:
                    rest = data[:found.start()]
                    data = data[found.end():]
                elif start and len(data) < MIB:
                    rest = data
                    continue
                block = TraceBlock(start, 0, data, stamped)
                yield from reversed(block.text.split(b'\n'))

    def plain(self, job_id: int, hidden: Secrets | None = None) -> Iterator[bytes]:
        """Yield a trace without time stamps, colours and section marks; of a line rewritten with CR, its last state.

        Of a trace longer than MAX_PLAIN_TRACE only the end is yielded, behind a line that says so.
        """
        start = (self.size(job_id) or 0) - MAX_PLAIN_TRACE
        offset = 0
        if start > 0:
            for block in self.blocks(job_id):
                offset = block.offset
                if offset + len(block.data) > start:
                    break
            if offset:
                yield b'[%d lines are left out here: the whole log is its raw form]\n' % (block.first_line - 1)
        for block in self.blocks(job_id, hidden, offset=offset):
            yield last_states(remove_section_marks(remove_matches(ESCAPES, block.text)))

    def remove_unheard(self, job_id: int, release: Callable[[], bool]) -> None:
        """Remove the trace of a runner that was never heard, if `release`, called under the lock, agrees."""
        with self._locked(job_id):
            if self.last_heard(job_id) is None and release():
                self.path(job_id).unlink(missing_ok=True)

    def remove(self, job_id: int) -> None:
        """Remove a job's trace, if it has one; raises OSError when that fails."""
        self.settle(job_id, complete=True)
        with self._locked(job_id):
            self.path(job_id).unlink(missing_ok=True)


# Artifacts ####################################################################################

class PartFile:
    """A file that is being received: counted, hashed and checked against the size limit as it is written."""

    def __init__(self, directory: Path, max_size: int) -> None:
        handle, name = tempfile.mkstemp('.part', dir=directory)
        self.path = Path(name)
        self.size = 0           # bytes
        self.filename = ''      # the client's name for it; only ever displayed
        self._max_size = max_size
        self._sha256 = hashlib.sha256()
        self._file = open(handle, 'wb', COPY_CHUNK)

    def write(self, chunk: bytes) -> None:
        """Append `chunk`; raise TooLarge, naming the limit, when the file exceeds it."""
        self.size += len(chunk)
        if self.size > self._max_size:
            raise TooLarge('file size has reached maximum size limit of '
                           f'{self._max_size} bytes (the setting max_artifacts_size)')
        self._sha256.update(chunk)
        self._file.write(chunk)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the bytes written so far, in hexadecimal."""
        return self._sha256.hexdigest()

    def flush(self, *, to_disk: bool = False) -> None:
        """Write buffered bytes to the file, and with `to_disk` the file to the disk."""
        self._file.flush()
        if to_disk:
            os.fsync(self._file.fileno())

    def discard(self) -> None:
        """Close the file and remove it, unless it has been moved to its place."""
        with contextlib.suppress(OSError):  # the buffered bytes may not fit on the disk
            self._file.close()
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:  # the answer is more important; upkeep removes the file later
            log.warning('%s stays for now: %s', self.path, error)

    def move(self, target: Path) -> None:
        """Close the file and rename it to `target`."""
        self._file.close()
        os.replace(self.path, target)


class ArtifactStore:
    """Archives and reports on disk, under names made here; never unpacked, never written twice."""

    def __init__(self, directory: Path, incoming: Path, *, fsync: bool, max_size: int, reserve: str) -> None:
        self._directory = directory
        self._reserve = reserve
        self.incoming = incoming
        self._fsync = fsync
        self._max_size = max_size
        directory.mkdir(mode=0o700, exist_ok=True)
        incoming.mkdir(mode=0o700, exist_ok=True)

    def check_room(self, size: int = 0) -> None:
        """Raise Busy when `size` more bytes would leave less than the reserve free for traces and states."""
        disk = shutil.disk_usage(self.incoming)
        reserve = reserved_bytes(self._reserve, disk.total)
        if disk.free - size < reserve:
            raise Busy(f'The disk has {disk.free} bytes free, and uploads leave {reserve} (the setting disk_reserve)')

    def receive(self) -> PartFile:
        """Return a new file to stream an upload into; pass it to `store` or `discard` it.

        Raises Busy when the disk has no more than its reserve free.
        """
        self.check_room()
        return PartFile(self.incoming, self._max_size)

    def store(self, job_id: int, part: PartFile) -> str:
        """Move a received file into the store, on disk, and return the name under which it is stored."""
        directory = self._directory / f'{job_id // 1000:04d}'
        directory.mkdir(mode=0o700, exist_ok=True)
        path = directory / f'{job_id}-{secrets.token_hex(8)}'
        part.flush(to_disk=self._fsync)
        part.move(path)
        if self._fsync:
            sync_path(directory)
            sync_path(self._directory)
        return f'{directory.name}/{path.name}'

    def open(self, stored_as: str) -> IO[bytes]:
        """Open a stored file for reading; raise NotFound when it is gone."""
        try:
            return open(self._directory / stored_as, 'rb')
        except FileNotFoundError:
            raise NotFound('Artifacts') from None

    def open_entry(self, stored_as: str, name: str) -> tuple[IO[bytes], int]:
        """Return one file out of a stored archive, and its size in bytes.

        The file is seekable; a large one is a temporary file. Raises NotFound when the archive or the
        entry is gone or is a directory, BadRequest when the archive cannot be read.
        """
        with self.opened_zip(stored_as) as bundle:
            entry = bundle.getinfo(name)
            if entry.is_dir():
                raise KeyError(name)
            packed = max(1, entry.compress_size)
            if entry.file_size > MAX_UNPACKED and entry.file_size > packed * MAX_UNPACKED_RATIO:
                raise TooLarge(f'the entry unpacks to {entry.file_size} bytes, more than {MAX_UNPACKED_RATIO} for each '
                               'packed one; download the archive')
            if entry.file_size > self._max_size:
                raise TooLarge(f'the entry unpacks to {entry.file_size} bytes')
            unpacked = tempfile.SpooledTemporaryFile(MIB, dir=str(self.incoming))
            try:
                with bundle.open(entry) as source:
                    shutil.copyfileobj(source, unpacked, COPY_CHUNK)
                size = unpacked.tell()
                unpacked.seek(0)
            except BaseException:
                unpacked.close()
                raise
            return unpacked, size  # type: ignore[return-value]

    @contextlib.contextmanager
    def opened_zip(self, stored_as: str) -> Iterator[zipfile.ZipFile]:
        """Open a stored archive; a KeyError inside becomes NotFound, a damaged archive BadRequest."""
        with self.open(stored_as) as archive:
            try:
                check_zip_directory(archive)
                with zipfile.ZipFile(archive) as bundle:
                    yield bundle
            except KeyError:
                raise NotFound('File') from None
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error,
                    lzma.LZMAError, struct.error, OSError) as error:
                if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                    raise
                raise BadRequest(f'The archive cannot be read: {error}') from error

    def remove(self, stored_names: Iterable[str]) -> None:
        """Remove stored files; one that is gone already is no error, one that cannot be removed is logged."""
        for stored_as in stored_names:
            try:
                (self._directory / stored_as).unlink(missing_ok=True)
            except OSError as error:  # upkeep tries it again: no row refers to the file any more
                log.warning('%s cannot be removed: %s', self._directory / stored_as, error)

    def stored_path(self, stored_as: str) -> Path:
        """Return where a stored file stands, whether it exists or not."""
        return self._directory / stored_as

    def stored(self) -> Iterator[tuple[str, float]]:
        """Yield the name and modification time of every file in the store."""
        for path in self._directory.glob('*/*'):
            name = path.relative_to(self._directory)
            with contextlib.suppress(FileNotFoundError):
                yield name.as_posix(), path.stat().st_mtime


RUBY_SPACE = '\0\t\n\v\f\r '    # what GitLab strips from names and values


def read_dotenv(part: PartFile) -> list[dict[str, str]]:
    """Return the variables of a received dotenv report; raise BadRequest when it is invalid.

    It is read as GitLab reads it: each file of the report is a gzip member of its own, only LF ends a
    line, and of a name that stands twice the last value counts.
    """
    part.flush()
    if part.size > MAX_DOTENV:
        raise BadRequest(f'Invalid Format: a dotenv report has {MAX_DOTENV} bytes at most')
    variables: dict[str, str] = {}
    try:
        for member in gzip_members(part.path.read_bytes(), MAX_DOTENV):
            variables.update(dotenv_variables(decode_dotenv(member)))
    except (EOFError, zlib.error):
        raise BadRequest(f'Invalid Format: not gzip, or more than {MAX_DOTENV} bytes unpacked') from None
    return [{'key': name, 'value': value} for name, value in variables.items()]


def dotenv_variables(text: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values of a dotenv file; raise BadRequest for a line that is none."""
    lines = text.split('\n')
    if lines[-1] == '':
        lines.pop()     # the file ends with a line
    for number, line in enumerate(lines, 1):
        name, equals, value = (part.strip(RUBY_SPACE) for part in line.partition('='))
        if not equals or not re.fullmatch(r'[A-Za-z0-9_]{1,255}', name) or '\0' in value:
            raise BadRequest(f'Invalid Format: line {number} of the dotenv report is not NAME=value')
        yield name, value


def gzip_members(packed: bytes, limit: int) -> Iterator[bytes]:
    """Yield the unpacked members of a gzip file; raise EOFError if one is incomplete or all exceed `limit` bytes."""
    while packed:
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        unpacked = member.decompress(packed, limit + 1)
        limit -= len(unpacked)
        if not member.eof or limit < 0:
            raise EOFError
        yield unpacked
        packed = member.unused_data


def decode_dotenv(content: bytes) -> str:
    """Return a dotenv file as text, without a byte order mark; PowerShell writes UTF-16."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode('utf-16' if marked else 'cp1252', 'replace')
    return text.removeprefix('\ufeff')


def check_zip_directory(archive: IO[bytes]) -> None:
    """Raise BadRequest for an archive whose directory would take much time or memory to read.

    An archive of a million empty files is small, and `zipfile` needs ten seconds and 270 MB for it.
    Counts the entries itself, because the count in the end record can lie.
    """
    size = archive.seek(0, os.SEEK_END)
    archive.seek(max(0, size - 65557))  # the end record has 22 bytes and a comment of 65,535 at most
    tail = archive.read()
    end = tail.rfind(b'PK\5\6')
    if end < 0 or len(tail) < end + 22:
        raise BadRequest('The archive cannot be read: it is not a zip file')
    directory = int.from_bytes(tail[end + 12:end + 16], 'little')
    locator = tail[max(0, end - 20):end]
    if locator.startswith(b'PK\6\7'):
        zip64 = tail[max(0, end - 76):end - 20]
        located = int.from_bytes(locator[8:16], 'little')
        # Newer versions of zipfile look for this record where the locator says, older ones before the locator.
        if not zip64.startswith(b'PK\6\6') or located != size - len(tail) + end - 76:
            raise BadRequest('The archive cannot be read: its zip64 records do not follow one another')
        directory = int.from_bytes(zip64[40:48], 'little')
    entries = 0
    if directory <= MAX_ZIP_DIRECTORY:
        end += size - len(tail)
        archive.seek(max(0, end - directory - 76))  # 76: the zip64 records before the end record
        entries = archive.read(directory + 76).count(b'PK\1\2')
    if entries > MAX_ZIP_ENTRIES or directory > MAX_ZIP_DIRECTORY:
        raise BadRequest(f'The archive has too many entries: single files are served from at most {MAX_ZIP_ENTRIES}')
    archive.seek(0)


# Reports ######################################################################################
#
# junit reports in, test cases out. The files come from jobs, so they are read in pieces, within limits
# on bytes, time, depth and cases, and without entities; what is wrong with one is told, never raised.

@dataclass(frozen=True)
class TestCase:
    """One test of a junit report; `message` and `output` tell why it failed, was skipped or had an error."""

    status: str             # 'success', 'failed', 'skipped' or 'error'
    name: str
    classname: str = ''
    suite: str = ''         # the name of the innermost test suite
    file: str = ''
    time: float = 0.0       # seconds
    message: str = ''
    output: str = ''
    attachment: str = ''    # the path of a screenshot among the artifacts
    flaky: bool = False     # it passed in the end, after it had failed


@dataclass(eq=False)
class TestReport:
    """The test cases of the junit files of a job, and what was wrong with the files."""

    cases: list[TestCase] = field(default_factory=list)
    error: str = ''

    def count(self, status: str) -> int:
        """Return how many tests came out with a status."""
        return sum(case.status == status for case in self.cases)

    @property
    def time(self) -> float:
        """The seconds that all tests took together."""
        return sum(case.time for case in self.cases)


#: What the elements of a test case make of it; of several, the first in this order counts.
CASE_STATUSES = {'failure': 'failed', 'error': 'error', 'skipped': 'skipped'}
FLAKY_ELEMENTS = ('flakyFailure', 'flakyError')
CASE_OUTPUT = ('system-out', *CASE_STATUSES)
ATTACHMENT = '[[ATTACHMENT|'


class JunitReader:
    """Reads junit files into a report: nested suites, several files, reruns and attachments as GitLab does."""

    def __init__(self) -> None:
        self.report = TestReport()
        self._seen: set[tuple[str, ...]] = set()
        self._left = MAX_REPORT_TEXT        # characters that may still be stored
        self._until = time.thread_time() + REPORT_TIMEOUT
        self._reset()

    def _reset(self) -> None:
        """Forget the elements of the file before."""
        self._path: list[str] = []          # the open elements
        self._suites: list[str] = []        # the names of the open test suites
        self._case: dict[str, str] | None = None
        self._parts: dict[str, str] = {}    # the messages in the open test case, by element
        self._outputs: dict[str, list[str]] = {}    # the pieces of its texts, by element
        self._output: list[str] | None = None       # those of the open element

    def read(self, chunks: Iterable[bytes]) -> None:
        """Read one file, given in pieces; note in the report what is wrong with it."""
        self._reset()
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.EntityDeclHandler = self._refuse_entities
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        try:
            for chunk in chunks:
                parser.Parse(chunk, False)
                if time.thread_time() > self._until:
                    raise ValueError(f'it takes more than {REPORT_TIMEOUT:g} seconds to read')
            parser.Parse(b'', True)
        except expat.ExpatError as error:
            self._note(f'JUnit XML parsing failed: {error}')
        except (ValueError, LookupError, EOFError, zlib.error) as error:
            self._note(f'JUnit data parsing failed: {error}')

    def _note(self, error: str) -> None:
        self.report.error = self.report.error or error

    @staticmethod
    def _refuse_entities(*_: object) -> NoReturn:
        raise ValueError('entities are not allowed')

    def _cut(self, text: str) -> str:
        """Return the beginning of a text, within the limits on one text and on all of them."""
        text = text[:min(MAX_TEST_OUTPUT, self._left)]
        self._left -= len(text)
        return text

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name)
        if len(self._path) > MAX_REPORT_DEPTH:
            raise ValueError(f'its elements are nested more than {MAX_REPORT_DEPTH} levels deep')
        if self._case is not None:
            self._start_part(name, attributes)
            return
        if len(self._suites) != len(self._path) - 1:
            return  # only suites and their cases count, and only within suites
        if name == 'testcase' and self._suites:
            self._case = attributes
            self._parts = {}
            self._outputs = {}
        elif name == 'testsuite' or self._path == ['testsuites']:
            self._suites.append(attributes.get('name', ''))

    def _start_part(self, name: str, attributes: dict[str, str]) -> None:
        """Open an element of a test case; what a rerun of the test says stays out."""
        if self._path[-2] != 'testcase':
            return
        if name in CASE_OUTPUT:
            self._output = self._outputs.setdefault(name, [])
        if name in CASE_STATUSES:
            self._parts.setdefault(name, '')
            self._parts.setdefault(f'{name} message', attributes.get('message', ''))
        elif name in FLAKY_ELEMENTS:
            self._parts[name] = ''

    def _text(self, text: str) -> None:
        if self._output is not None and self._path[-1] in CASE_OUTPUT:
            self._output.append(text)

    def _end(self, name: str) -> None:
        self._path.pop()
        if name == 'testcase' and self._case is not None and 'testcase' not in self._path:
            self._add_case(self._case)
            self._case = None
        elif self._case is None:
            if len(self._suites) > len(self._path):
                self._suites.pop()
        elif name in CASE_OUTPUT:
            self._output = None

    def _add_case(self, attributes: Mapping[str, str]) -> None:
        """Add a test case to the report, unless the report has it already with the same status."""
        element = next((name for name in CASE_STATUSES if name in self._parts), '')
        status = CASE_STATUSES.get(element, 'success')
        about = {name: attributes.get(name, '')[:MAX_TEST_NAME] for name in ('name', 'classname', 'file')}
        key = (status, *about.values())
        if key in self._seen:
            return
        if len(self._seen) >= MAX_TEST_CASES:
            raise ValueError(f'it has more than {MAX_TEST_CASES} test cases')
        self._seen.add(key)
        printed = ''.join(self._outputs.get('system-out', ()))
        flaky = any(name in self._parts for name in FLAKY_ELEMENTS)
        message = self._parts.get(f'{element} message', '')
        output = ''.join(self._outputs.get(element, ())).strip()
        self.report.cases.append(TestCase(
            status=status,
            suite=self._suites[-1][:MAX_TEST_NAME],
            time=parse_seconds(attributes.get('time', '')),
            message=self._cut(message),
            output=self._cut(output),
            attachment=attached_path(printed)[:MAX_TEST_NAME],
            flaky=flaky,
            **about))


def attached_path(printed: str) -> str:
    """Return the path in the first ``[[ATTACHMENT|path]]`` of what a test printed, '' if there is none.

    Each line is searched once. A regular expression would begin again at each mark that nothing closes.
    """
    for line in printed.split('\n'):
        _, _, rest = line.partition(ATTACHMENT)
        end = rest.find(']]', 1)
        if end > 0:
            return rest[:end]
    return ''


def parse_seconds(text: str) -> float:
    """Return the seconds that a test took; commas may group the digits, and what is no number counts as 0."""
    if not re.fullmatch(r'[0-9][0-9,]{0,17}(\.[0-9]{1,18})?|\.[0-9]{1,18}', text.strip()):
        return 0.0
    return float(text.replace(',', ''))


def read_junit(files: Iterable[Iterable[bytes]]) -> TestReport:
    """Return the report that junit files make together; each is given as its bytes in pieces."""
    reader = JunitReader()
    for chunks in files:
        reader.read(chunks)
    return reader.report


def read_junit_report(part: PartFile) -> TestReport:
    """Return the report of an uploaded junit artifact: gzip, in which each file is a member of its own."""
    part.flush()
    reader = JunitReader()
    with open(part.path, 'rb') as packed:
        unpacked = MemberReader(packed, MAX_REPORT)
        while unpacked.has_more():
            chunks = unpacked.chunks()
            reader.read(chunks)
            if not unpacked.skip(chunks):
                break
    return reader.report


class MemberReader:
    """Unpacks the members of a gzip file one after another, within a limit on the bytes of all of them."""

    def __init__(self, packed: IO[bytes], limit: int) -> None:
        self._packed = packed
        self._left = limit
        self._rest = b''
        self._complete = False      # the member that was read last ended well

    def has_more(self) -> bool:
        """Tell whether another member follows."""
        self._rest = self._rest or self._packed.read(COPY_CHUNK)
        return bool(self._rest)

    def chunks(self) -> Iterator[bytes]:
        """Yield the next member in pieces; raise EOFError or zlib.error if it is damaged, ValueError if too large."""
        self._complete = False
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        while not member.eof:
            source = member.unconsumed_tail or self._rest or self._packed.read(COPY_CHUNK)
            if not source:
                raise EOFError('the gzip file is cut short')
            self._rest = b''
            chunk = member.decompress(source, COPY_CHUNK)
            self._left -= len(chunk)
            if self._left < 0:
                raise ValueError('the files unpack to more bytes than are read')
            yield chunk
        self._rest = member.unused_data
        self._complete = True

    def skip(self, chunks: Iterator[bytes]) -> bool:
        """Pass over what is left of a member; tell whether the member is whole, so that another may follow."""
        with contextlib.suppress(EOFError, zlib.error, ValueError):
            collections.deque(chunks, maxlen=0)
        return self._complete


# Store ########################################################################################

#: A keyword that was left out, where None already means something.
UNCHANGED: Any = object()


def given_changes(**given: Any) -> JSON:
    """Return the keywords that were given, without those left UNCHANGED."""
    return {name: value for name, value in given.items() if value is not UNCHANGED}


def id_of(row: Row | None) -> int | None:
    """Return the id of a row, None for no row."""
    if row is None:
        return None
    return row['id']


def insert(c: sqlite3.Connection, table: str, **columns: Any) -> int:
    """Insert a row and return its id; the names of table and columns are always this module's own words."""
    names = ', '.join(columns)
    values = ', '.join(f':{name}' for name in columns)
    return c.execute(f"""
        INSERT INTO {table} ({names})
        VALUES ({values})
        """, columns).lastrowid or 0


def default_data(db: Path) -> Path:
    """Return the directory for traces and artifacts beside a database: ``ci.sqlite`` has ``ci-data``."""
    return db.with_name(f'{db.stem}-data')


def conditions(filters: Mapping[str, str], values: Members) -> str:
    """Return the WHERE clause of the `filters` whose value is set; the values stay parameters."""
    return ' AND '.join(text for name, text in filters.items() if values[name] is not None) or 'true'


class Store:
    """Holds the database, the clock, the settings and the directories, and looks rows up."""

    def __init__(self, db: str | os.PathLike[str] | None, data: str | os.PathLike[str] | None,
                 clock: Callable[[], float], fsync: bool, settings: Settings) -> None:
        self.settings = settings
        self.clock = clock
        self._pid = os.getpid()
        self._temporary = ''
        if db is None:
            self._temporary = tempfile.mkdtemp(prefix='minici-')
            db = Path(self._temporary, 'ci.sqlite')
        path = Path(db)
        self.data = Path(data or default_data(path))
        create_database(path, fsync=fsync)
        self.db = Database(path, fsync=fsync)
        try:
            self.db.migrate()
        except BaseException:
            self.db.close()
            raise
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.traces = TraceStore(self.data / 'traces', clock=clock, fsync=fsync, max_size=settings.max_trace_size)
        self.artifacts = ArtifactStore(self.data / 'artifacts', self.data / 'tmp', fsync=fsync,
                                       max_size=settings.max_artifacts_size, reserve=settings.disk_reserve)
        self._changed = threading.Condition()
        self._bridges_due: collections.deque[int] = collections.deque()     # of pipelines that were processed
        self._described: dict[str, JSON] = {}   # commits and annotated tags that were read, by id
        self.serves = False     # whether others wait for this process
        self.address = settings.external_url or 'http://localhost'      # a server that starts says where it listens

    def close(self) -> None:
        """Close the database; a temporary one is removed with its traces and artifacts."""
        self.db.close()
        self._announce()
        if self._temporary and self._pid == os.getpid():  # a forked child leaves its parent's alone
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _all(self, statement: str, **values: Any) -> list[Row]:
        """Return the rows that a SELECT finds."""
        with self.db.read() as c:
            return c.execute(statement, values).fetchall()

    def _one(self, statement: str, **values: Any) -> Row | None:
        """Return the first row that a SELECT finds, if any."""
        with self.db.read() as c:
            return c.execute(statement, values).fetchone()

    def _find(self, kind: str, statement: str, **values: Any) -> Row:
        """Return the first row that a SELECT finds; raise NotFound for a missing `kind` of thing."""
        row = self._one(statement, **values)
        if row is None:
            raise NotFound(kind)
        return row

    def _attempt(self, failure: str, action: Callable[..., Any], *values: Any) -> Any:
        """Return what `action` returns, or log the `failure` and return None when it raises."""
        try:
            return action(*values)
        except (Busy, OSError) as error:
            if not self.db.closed:
                log.warning('%s for now: %s', failure, error)
        except Exception:
            log.exception('%s for now', failure)
        return None

    def new_token(self, prefix: str = '') -> str:
        """Return a fresh secret of 160 random bits behind `prefix`, which tells people what it is for."""
        secret = self.random_hex(20)
        if prefix:
            return f'{prefix}-{secret}'
        return secret

    def random_hex(self, size: int) -> str:
        """Return `size` random bytes in hexadecimal; a test double overrides this to make the same ones in each run."""
        return secrets.token_hex(size)

    def _announce(self) -> None:
        """Wake the threads that wait for a change of a job."""
        with self._changed:
            self._changed.notify_all()

    def _setting(self, key: str) -> str:
        """Return a fact about this installation from the table `setting`."""
        row = self._find('Setting', """
            SELECT value
              FROM setting
             WHERE key = :key
            """, key=key)
        return row['value']


# Accounts #####################################################################################

class Accounts(Store):
    """The installation, its users, and the tokens and codes that they sign in with."""

    def _found_installation(self) -> None:
        """Give a new database its identity and tokens; the environment may set them for automation."""
        if self._one("SELECT 1 FROM setting WHERE key = 'instance'"):
            return
        registers = os.environ.get('MINICI_REGISTRATION_TOKEN') or self.new_token('mcg')
        private = os.environ.get('MINICI_PRIVATE_TOKEN')
        with self.db.write() as c:
            c.execute("""
                INSERT OR IGNORE INTO setting
                VALUES ('registration_token', :token)
                """, dict(token=registers))
            founded = c.execute("""
                INSERT OR IGNORE INTO setting
                VALUES ('instance', :name)
                """, dict(name=self.random_hex(8))).rowcount
            if founded and private:
                self._insert_private_token(c, private, 'root', 'api')

    @functools.cached_property
    def instance(self) -> str:
        """The random name of this installation."""
        return self._setting('instance')

    @property
    def registration_token(self) -> str:
        """The token that registers instance runners."""
        return self._setting('registration_token')

    def _insert_private_token(self, c: sqlite3.Connection, token: str, username: str, scope: str,
                              description: str = '', expires_at: float | None = None) -> None:
        """Store a private token of a user, who is created if need be."""
        values = dict(hash=token_hash(token), scope=scope, now=self.clock(), username=username,
                      description=description, expires_at=expires_at)
        c.execute("""
            INSERT OR IGNORE INTO user (username, created_at)
            VALUES (:username, :now)
            """, values)
        c.execute("""
            INSERT OR REPLACE INTO private_token (token_hash, user_id, scope, created_at, description, expires_at)
            SELECT :hash, id, :scope, :now, :description, :expires_at
              FROM user
             WHERE username = :username
            """, values)

    def create_private_token(self, username: str = 'root', scope: str = 'api', *, description: str = '',
                             lifetime: float | None = None) -> str:
        """Create a private token of a user and return it; it is stored only as a hash.

        The user is created if need be. `scope` is ``api`` or ``read_api`` (GET alone), `lifetime` the
        seconds until it expires, None for never. Raises BadRequest for another scope or a bad name.
        """
        if scope not in ('api', 'read_api'):
            raise BadRequest({'scope': ['must be api or read_api']})
        if not re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}', username):
            raise BadRequest({'username': ['must be letters, digits, "_", "-" and "."']})
        token = self.new_token('mcp')
        now = self.clock()
        expires_at = lifetime and now + lifetime
        with self.db.write() as c:
            self._insert_private_token(c, token, username, scope, description, expires_at)
            c.execute('DELETE FROM private_token WHERE expires_at <= :now', dict(now=now))
        return token

    def find_user(self, token: str) -> Row | None:
        """Return the user of a private token, with the token's `scope` and `token_hash`, or None."""
        return self._one("""
            SELECT user.*, scope, token_hash, last_used_at
              FROM private_token
              JOIN user ON user.id = user_id
             WHERE token_hash = :hash
               AND (expires_at IS NULL OR expires_at > :now)
            """, hash=token_hash(token), now=self.clock())

    def find_owner(self, row: Row) -> Row | None:
        """Return the user whose `user_id` a row holds, None if it has none."""
        return self._one('SELECT * FROM user WHERE id = :id', id=row['user_id'])

    def list_users(self, username: str | None = None, search: str = '') -> list[Row]:
        """Return the users whose name is `username` or contains `search`, newest first."""
        return self._all("""
            SELECT *, id AS user_id, created_at AS user_created_at
              FROM user
             WHERE (:username IS NULL OR lower(username) = lower(:username))
               AND instr(lower(username), :search)
             ORDER BY id DESC
            """, username=username, search=search.lower())

    def find_private_token(self, digest: str) -> Row:
        """Return the row of the private token with this hash; raise NotFound if there is none."""
        return self._find('Token', 'SELECT * FROM private_token WHERE token_hash = :hash', hash=digest)

    def list_private_tokens(self) -> list[Row]:
        """Return the private tokens that work, newest first, each with its `username` and hash."""
        return self._all("""
            SELECT private_token.*, username
              FROM private_token
              JOIN user ON user.id = user_id
             WHERE expires_at IS NULL OR expires_at > :now
             ORDER BY private_token.created_at DESC
            """, now=self.clock())

    def revoke_private_token(self, digest: str) -> None:
        """Revoke the private token whose `token_hash` is `digest`; raise NotFound if there is none."""
        with self.db.write() as c:
            revoked = c.execute('DELETE FROM private_token WHERE token_hash = :hash', dict(hash=digest)).rowcount
            if not revoked:
                raise NotFound('Token')

    def create_sign_in_code(self) -> str:
        """Return a new code that signs in one browser once; the previous code stops working."""
        code = self.new_token('mcs')
        with self.db.write() as c:
            c.execute("""
                INSERT OR REPLACE INTO setting
                VALUES ('sign_in_code', :hash)
                """, dict(hash=token_hash(code)))
        return code

    def sign_in(self, code: str) -> str:
        """Use up a sign-in code and return a session for it; raise Forbidden for any other code."""
        with self.db.write() as c:
            used = c.execute("""
                DELETE FROM setting
                 WHERE key = 'sign_in_code' AND value = :hash
                """, dict(hash=token_hash(code))).rowcount
            if not used:
                raise Forbidden('the sign-in link has been used, or is of an earlier start')
            c.execute("""
                INSERT OR IGNORE INTO user (username, created_at)
                VALUES ('root', :now)
                """, dict(now=self.clock()))
            user = c.execute("SELECT id FROM user WHERE username = 'root'").fetchone()
            return self._insert_session(c, user['id'], 'api', None)

    def sign_in_with(self, token: str) -> str:
        """Return a session for a private token, which ends with the token; raise Forbidden for any other text."""
        user = self.find_user(token)
        if user is None:
            raise Forbidden('this is no private token of this minici')
        with self.db.write() as c:
            return self._insert_session(c, user['id'], user['scope'], user['token_hash'])

    def _insert_session(self, c: sqlite3.Connection, user_id: int, scope: str, digest: str | None) -> str:
        """Store a new session and return what its browser keeps; sessions that have expired go."""
        session = self.new_token('mcc')
        now = self.clock()
        c.execute('DELETE FROM session WHERE expires_at <= :now', dict(now=now))
        insert(c, 'session', session_hash=token_hash(session), user_id=user_id, scope=scope, token_hash=digest,
               created_at=now, expires_at=now + SIGNED_IN_FOR)
        return session

    def find_session(self, session: str) -> Row | None:
        """Return the user of a session, with its `scope` and the `token_hash` that it was made with, or None."""
        return self._one("""
            SELECT user.*, session.scope, coalesce(session.token_hash, '') AS token_hash
              FROM session
              JOIN user ON user.id = session.user_id
              LEFT JOIN private_token AS token ON token.token_hash = session.token_hash
             WHERE session_hash = :hash
               AND session.expires_at > :now
               AND (token.expires_at IS NULL OR token.expires_at > :now)
            """, hash=token_hash(session), now=self.clock())

    def sign_out(self, session: str) -> None:
        """End a session."""
        with self.db.write() as c:
            c.execute("""
                DELETE FROM session
                 WHERE session_hash = :hash
                """, dict(hash=token_hash(session)))

    def note_use(self, user: Row) -> None:
        """Note that a private token, as `find_user` returned it, is in use; write at most every ten minutes."""
        now = self.clock()
        if user['last_used_at'] is not None and now - user['last_used_at'] < USE_INTERVAL:
            return
        self.db.note(dict(now=now, hash=user['token_hash']), """
            UPDATE private_token
               SET last_used_at = :now
             WHERE token_hash = :hash
            """)


# Projects #####################################################################################

PROJECT_PATH = re.compile(r'[A-Za-z0-9_][\w.\-]*(?:/[A-Za-z0-9_][\w.\-]*){0,19}', re.ASCII)
NO_PROJECT_PATH = re.compile(fr'[0-9]+$|(?:{RESERVED_PATHS})(?:/|$)|.*\.(?:git|atom|json)$')
PROJECT_SORTS = {name: name for name in ('id', 'name', 'path', 'last_activity_at')}
DIRECTIONS = {'asc': 'ASC', 'desc': 'DESC'}


def check_project_path(path: str) -> None:
    """Raise BadRequest when a project cannot have this path."""
    if len(path) > 255 or not PROJECT_PATH.fullmatch(path) or NO_PROJECT_PATH.match(path):
        raise BadRequest({'path': ['can contain only letters, digits, "_", "-" and ".", may carry a namespace '
                                   'before a "/", cannot be a mere number, cannot end in .git, .atom or .json '
                                   'and cannot begin as the addresses of the API do']})


def check_config_path(path: str) -> None:
    """Raise BadRequest when a pipeline file cannot stand at this path of a project's repository."""
    if path.startswith('/') or '..' in path.split('/') or '@' in path or '://' in path or len(path) > 255:
        raise BadRequest({'ci_config_path': ['must be a path in the repository of the project']})


#: The number of a project's namespace: of what stands before the last slash of its path.
NAMESPACE_ID = """(
    SELECT namespace.id
      FROM namespace
     WHERE namespace.path = rtrim(rtrim(project.path, replace(project.path, '/', '')), '/'))"""
#: A project with its namespace and the moment of its newest pipeline.
PROJECT_ROWS = f"""
    SELECT project.*, {NAMESPACE_ID} AS namespace_id,
           coalesce((SELECT created_at
                       FROM pipeline
                      WHERE project_id = project.id
                      ORDER BY id DESC
                      LIMIT 1), project.created_at) AS last_activity_at
      FROM project
    """
PROJECT_FILTERS = {
    'search': '(instr(lower(path), :search) OR instr(lower(name), :search))',
    'named': """(instr(lower(substr(path, 1 + length(rtrim(path, replace(path, '/', ''))))), :named)
               OR instr(lower(name), :named) OR instr(lower(description), :named))""",
    'visibility': 'visibility = :visibility',
    'id_after': 'id > :id_after',
    'id_before': 'id < :id_before',
    'active_after': 'last_activity_at > :active_after',
    'active_before': 'last_activity_at < :active_before',
}


class Projects(Accounts):
    """Projects with their variables and trigger tokens."""

    def create_project(self, path: str, *, name: str | None = None, import_url: str | None = None,
                       default_branch: str = 'main', shared_runners_enabled: bool = True,
                       build_timeout: int | None = None, allow_git_fetch: bool = True,
                       protected_refs: Iterable[str] | None = None, description: str | None = None,
                       visibility: str = 'private', ci_config_path: str = '') -> Row:
        """Create a project and return it.

        `path` may carry a namespace (``group/demo``) and is unique; `import_url` is where runners
        clone from, None when every pipeline brings its own sha and content. `build_timeout` is in
        seconds. `protected_refs` are branches or full names such as ``refs/tags/v*`` (``*`` stands for
        anything); None means the default branch. `visibility` is ``private`` or ``public``: whether
        anybody may read its pages and badges. `ci_config_path` is the path of its pipeline file, '' for
        ``.gitlab-ci.yml``. Raises BadRequest when the path is taken or invalid, or the address is unusable.
        """
        check_project_path(path)
        patterns = None if protected_refs is None else clean_ref_patterns(protected_refs)
        self._check_project(import_url, default_branch, build_timeout, visibility, ci_config_path)
        with self.db.write() as c:
            if c.execute('SELECT 1 FROM project WHERE path = :path COLLATE NOCASE', dict(path=path)).fetchone():
                raise BadRequest({'path': ['has already been taken']})
            c.execute('INSERT OR IGNORE INTO namespace (path) VALUES (:path)', dict(path=path.rpartition('/')[0]))
            project_id = insert(
                c, 'project', path=path, name=name or path.rpartition('/')[2], import_url=import_url,
                default_branch=default_branch, runners_token=path, webhook_token=self.new_token('mcw'),
                shared_runners_enabled=bool(shared_runners_enabled), allow_git_fetch=bool(allow_git_fetch),
                protected_refs=patterns, build_timeout=build_timeout or int(self.settings.job_timeout),
                created_at=self.clock(), description=description, visibility=visibility,
                ci_config_path=ci_config_path)
            self._set_runners_token(c, project_id)
        return self.find_project(project_id)

    def _check_import(self, url: str) -> None:
        """Raise BadRequest for an address that git does not accept, or that the settings do not allow."""
        check_import_url(url)
        if self.settings.public_imports_only:
            pinned_settings(url)

    def _check_project(self, import_url: str | None, default_branch: str, build_timeout: int | None, visibility: str,
                       ci_config_path: str) -> None:
        """Raise BadRequest for settings that a project cannot have: an address or branch that git does not accept."""
        check_config_path(ci_config_path)
        if visibility not in ('private', 'public'):
            raise BadRequest({'visibility': ['must be private or public']})
        if import_url is not None:
            self._check_import(import_url)
        check_ref(default_branch)
        if build_timeout is not None and build_timeout < 1:
            raise BadRequest({'build_timeout': ['must be a number of seconds']})

    def _set_runners_token(self, c: sqlite3.Connection, project_id: int) -> str:
        """Give a project a new registration token, which names the project, and return it."""
        token = self.new_token(f'mcg-{project_id}')
        c.execute("""
            UPDATE project
               SET runners_token = :token
             WHERE id = :id
            """, dict(token=token, id=project_id))
        return token

    def reset_registration_token(self, project: Row | None = None) -> str:
        """Replace the registration token of a project, or of the instance, and return the new one."""
        with self.db.write() as c:
            if project is not None:
                return self._set_runners_token(c, project['id'])
            token = self.new_token('mcg')
            c.execute("""
                UPDATE setting
                   SET value = :token
                 WHERE key = 'registration_token'
                """, dict(token=token))
            return token

    def find_project(self, project: Row | int | str | None) -> Row:
        """Return a project by number, path or row (which is read again); raise NotFound if there is none."""
        if isinstance(project, Row):
            project = project['id']
        if isinstance(project, int) or re.fullmatch('[0-9]{1,18}', str(project)):
            return self._find('Project', f'{PROJECT_ROWS} WHERE project.id = :id', id=project)
        row = self._one(f'{PROJECT_ROWS} WHERE project.path = :path', path=project)
        if row is not None:
            return row
        return self._find('Project', f'{PROJECT_ROWS} WHERE project.path = :path COLLATE NOCASE', path=project)

    def list_projects(self, *, search: str = '', named: str = '', visibility: str | None = None,
                      id_after: int | None = None, id_before: int | None = None, active_after: float | None = None,
                      active_before: float | None = None, limit: int = 20, offset: int = 0, order_by: str = 'id',
                      sort: str = 'desc') -> tuple[list[Row], int]:
        """Return a page of the projects whose path or name contains `search`, and the number of all that match.

        `named` is looked for in the name, the description and what the path has behind its namespace.
        `active_after` and `active_before` (seconds since 1970) are about the newest pipeline. `order_by`
        is `name`, `path`, `last_activity_at` or anything else for their age; `sort` is `asc` or `desc`.
        """
        order = PROJECT_SORTS.get(order_by, 'id')
        direction = DIRECTIONS.get(sort, 'DESC')
        values = dict(search=search.lower() or None, named=named.lower() or None, visibility=visibility,
                      id_after=id_after, id_before=id_before, active_after=active_after, active_before=active_before)
        where = conditions(PROJECT_FILTERS, values)
        counted = self._all(f"""
            SELECT count(*) AS projects
              FROM ({PROJECT_ROWS})
             WHERE {where}
            """, **values)
        rows = self._all(f"""
            SELECT *
              FROM ({PROJECT_ROWS})
             WHERE {where}
             ORDER BY {order} {direction}, id {direction}
             LIMIT :limit OFFSET :offset
            """, **values, limit=limit, offset=offset)
        return rows, counted[0]['projects']

    def edit_project(self, project: Row, *, name: str = UNCHANGED, import_url: str | None = UNCHANGED,
                     default_branch: str = UNCHANGED, shared_runners_enabled: bool = UNCHANGED,
                     build_timeout: int = UNCHANGED, allow_git_fetch: bool = UNCHANGED,
                     protected_refs: Iterable[str] | None = UNCHANGED,
                     fork_pipelines: bool = UNCHANGED, description: str | None = UNCHANGED,
                     visibility: str = UNCHANGED, ci_config_path: str = UNCHANGED) -> Row:
        """Change the given settings of a project, those of `create_project`, and return the project.

        `fork_pipelines` says whether merge requests of forks make pipelines here; at first they do not.
        """
        changes = given_changes(name=name, import_url=import_url, default_branch=default_branch,
                          build_timeout=build_timeout, shared_runners_enabled=shared_runners_enabled,
                          allow_git_fetch=allow_git_fetch, protected_refs=protected_refs,
                          fork_pipelines=fork_pipelines, description=description, visibility=visibility,
                          ci_config_path=ci_config_path)
        if changes.get('protected_refs') is not None:
            changes['protected_refs'] = clean_ref_patterns(changes['protected_refs'])
        branch = changes.get('default_branch', project['default_branch'])
        self._check_project(changes.get('import_url') or None, branch, changes.get('build_timeout'),
                            changes.get('visibility', 'private'), changes.get('ci_config_path', ''))
        with self.db.write() as c:
            before = c.execute('SELECT * FROM project WHERE id = :id', dict(id=project['id'])).fetchone()
            after = {**dict(before or project), **changes}
            c.execute("""
                UPDATE project
                   SET name = :name, import_url = :import_url, default_branch = :default_branch,
                       shared_runners_enabled = :shared_runners_enabled, build_timeout = :build_timeout,
                       allow_git_fetch = :allow_git_fetch, protected_refs = :protected_refs,
                       fork_pipelines = :fork_pipelines, description = :description, visibility = :visibility,
                       ci_config_path = :ci_config_path
                 WHERE id = :id
                """, after)
            if 'shared_runners_enabled' in changes:
                c.execute(f"""
                    UPDATE job
                       SET shared = :shared_runners_enabled
                     WHERE project_id = :id AND status NOT IN {FINISHED}
                    """, after)
        return self.find_project(project)

    def list_variables(self, project: Row | None) -> list[Row]:
        """Return the variables of a project, or those of the instance."""
        return self._all("""
            SELECT *
              FROM variable
             WHERE project_id IS :id
             ORDER BY key, environment_scope
            """, id=id_of(project))

    def find_variable(self, project: Row | None, key: str, environment_scope: str | None = None) -> Row:
        """Return a variable of a project, or of the instance.

        Raises NotFound if there is none, and Conflict if there are several and `environment_scope` is None.
        """
        rows = self._all("""
            SELECT *
              FROM variable
             WHERE coalesce(project_id, 0) = :id AND key = :key
               AND (:scope IS NULL OR environment_scope = :scope)
            """, id=id_of(project) or 0, key=key, scope=environment_scope)
        if not rows:
            raise NotFound('Variable')
        if len(rows) > 1:
            raise Conflict("There are multiple variables with provided parameters. "
                           "Please use 'filter[environment_scope]'")
        return rows[0]

    def set_variable(self, project: Row | None, key: str, value: str, *, variable_type: str = 'env_var',
                     masked: bool = False, hidden: bool = False, protected: bool = False, raw: bool = False,
                     description: str | None = None, environment_scope: str = '*', replace: bool = True) -> Row:
        """Set a variable for the jobs of a project, or of all projects, and return it.

        A masked value has 8 characters or more, on one line, without blanks; a `hidden` one is masked, and
        shown to jobs alone. Only jobs whose environment
        `environment_scope` names receive it: ``*`` for all, or a pattern with ``*``. Raises BadRequest
        when it cannot be masked, or exists already for this scope and `replace` is false.
        """
        check_variable({'key': key, 'value': value, 'variable_type': variable_type})
        masked = masked or hidden
        if masked and not re.fullmatch(r'[^\s\x00-\x20]{8,}', value):
            raise BadRequest({'value': ['cannot be masked: it must have 8 characters or more, and no blanks']})
        if not re.fullmatch(r'[A-Za-z0-9_/${}. *-]{1,255}', environment_scope):
            raise BadRequest({'environment_scope': ['must be the name of an environment, in which * stands for any '
                                                    'text']})
        project_id = id_of(project)
        with self.db.write() as c:
            known = c.execute("""
                DELETE FROM variable
                 WHERE coalesce(project_id, 0) = :id AND key = :key AND environment_scope = :scope
                """, dict(id=project_id or 0, key=key, scope=environment_scope)).rowcount
            if known and not replace:
                raise BadRequest({'key': [f'({key}) has already been taken']})
            insert(c, 'variable', project_id=project_id, key=key, value=value, masked=masked, hidden=hidden, raw=raw,
                   variable_type=variable_type, protected=protected, description=description,
                   environment_scope=environment_scope)
        return self.find_variable(project, key, environment_scope)

    def delete_variable(self, project: Row | None, key: str, environment_scope: str | None = None) -> None:
        """Remove a variable; raises what `find_variable` raises."""
        row = self.find_variable(project, key, environment_scope)
        with self.db.write() as c:
            c.execute('DELETE FROM variable WHERE id = :id', dict(id=row['id']))

    def _job_variables(self, facts: Record, environment: str | None = None) -> list[Row]:
        """Return the variables of the instance, then the project's, that jobs of a pipeline in an environment receive.

        Of several with one key and owner, the one whose scope says most counts.
        """
        rows = self._all("""
            SELECT *
              FROM variable
             WHERE (project_id IS NULL OR project_id = :id)
               AND (:protected OR NOT protected)
             ORDER BY project_id IS NOT NULL, key, environment_scope = :environment, length(environment_scope)
            """, id=facts['project_id'], protected=facts['protected'], environment=environment or '*')
        fitting = [row for row in rows if scope_fits(row['environment_scope'], environment)]
        return list({(row['project_id'], row['key']): row for row in fitting}.values())

    def masked_values(self, project_id: int | None = None) -> list[str]:
        """Return the masked values that jobs of a project, by default of any, receive."""
        rows = self._all("""
            SELECT value
              FROM variable
             WHERE masked AND (project_id IS NULL OR :id IS NULL OR project_id = :id)
            """, id=project_id)
        return [row['value'] for row in rows]

    def list_triggers(self, project: Row) -> list[Row]:
        """Return the trigger tokens of a project, with their owners."""
        return self._all("""
            SELECT trigger_token.*, username, user.created_at AS user_created_at
              FROM trigger_token
              JOIN user ON user.id = user_id
             WHERE project_id = :id
             ORDER BY trigger_token.id
            """, id=project['id'])

    def find_trigger(self, project: Row, trigger_id: int) -> Row:
        """Return a trigger token of a project; raise NotFound if there is none."""
        for row in self.list_triggers(project):
            if row['id'] == trigger_id:
                return row
        raise NotFound('Trigger')

    def create_trigger(self, project: Row, user: Row, description: str) -> Row:
        """Create a token that starts pipelines of a project on a user's behalf, and return its row."""
        now = self.clock()
        with self.db.write() as c:
            trigger_id = insert(c, 'trigger_token', project_id=project['id'], token=self.new_token('mct'),
                                user_id=user['id'], description=description, created_at=now, updated_at=now)
        return self.find_trigger(project, trigger_id)

    def edit_trigger(self, trigger: Row, description: str | None) -> None:
        """Change a trigger's description, or remove the trigger when `description` is None."""
        with self.db.write() as c:
            if description is None:
                c.execute('DELETE FROM trigger_token WHERE id = :id', dict(id=trigger['id']))
                return
            c.execute("""
                UPDATE trigger_token
                   SET description = :description, updated_at = :now
                 WHERE id = :id
                """, dict(id=trigger['id'], description=description, now=self.clock()))


# Runners ######################################################################################

#: The runners that run jobs, with the managers that do.
BUSY_MACHINES = """
    SELECT DISTINCT runner_id, system_id
      FROM job INDEXED BY job_alive
     WHERE status IN ('running', 'canceling')
    """
RUNNER_ROWS = f"""
    SELECT runner.*,
           runner.id IN (SELECT runner_id FROM ({BUSY_MACHINES})) AS is_busy,
           (SELECT json_group_array(project_id)
              FROM runner_project
             WHERE runner_id = runner.id) AS projects
      FROM runner
    """

# Record which runners can serve which tag sets; NULL means all.
MATCH_RUNNERS = """
    INSERT OR IGNORE INTO runner_tag_set (runner_id, tag_set_id)
    SELECT runner.id, tag_set.id
      FROM runner JOIN tag_set
     WHERE (:runner_id IS NULL OR runner.id = :runner_id)
       AND (:tag_set_id IS NULL OR tag_set.id = :tag_set_id)
       AND (runner.run_untagged OR tag_set.tags <> '[]')
       AND NOT EXISTS (SELECT 1
                         FROM json_each(tag_set.tags) AS wanted
                        WHERE wanted.value NOT IN (SELECT value FROM json_each(runner.tags)))
    """


def check_runner(tags: Sequence[str], run_untagged: bool, maximum_timeout: int | None) -> None:
    """Raise BadRequest when a runner's settings contradict each other or GitLab's rules."""
    if not tags and not run_untagged:
        raise BadRequest({'tags_list': ['can not be empty when runner is not allowed to pick untagged jobs']})
    if maximum_timeout is not None and maximum_timeout < 600:
        raise BadRequest({'maximum_timeout': ['needs to be at least 10 minutes']})


@functools.lru_cache(maxsize=256)
def parsed_info(text: str) -> JSON:
    """Return what a runner last said of itself, to be read only; each of its polls is compared with it."""
    said: JSON = json.loads(text)
    return said


class Runners(Projects):
    """Registered runners, their runner managers (machines), and the projects that they serve."""

    def register_runner(self, token: str, *, info: Members | None = None, ip_address: str | None = None,
                        description: str = '', maintenance_note: str | None = None, tag_list: Iterable[str] = (),
                        run_untagged: bool = True, locked: bool = False, active: bool = True,
                        access_level: str = 'not_protected', maximum_timeout: int | None = None) -> tuple[Row, str]:
        """Register a runner with a registration token; return it and its own token, shown only here.

        Its token has no prefix: runners name the build folder after a token's first characters and mask
        every prefix that the job names, which would leave `[MASKED]` in each path of a log.
        The instance's token makes a shared runner, a project's `runners_token` one for that project
        alone. The other keywords are those of `create_runner`, and `info` and `ip_address` what is
        known of the machine. Raises Forbidden for any other token.
        """
        project = self.project_of_registration(token)
        return self._insert_runner(
            self.new_token(), project, info=info or {}, ip_address=ip_address, description=description,
            maintenance_note=maintenance_note, tag_list=tag_list, run_untagged=run_untagged, locked=locked,
            active=active, access_level=access_level, maximum_timeout=maximum_timeout)

    def create_runner(self, project: Row | None = None, user: Row | None = None, *,
                      description: str = '', maintenance_note: str | None = None, tag_list: Iterable[str] = (),
                      run_untagged: bool = True, locked: bool = False, active: bool = True,
                      access_level: str = 'not_protected', maximum_timeout: int | None = None) -> tuple[Row, str]:
        """Create a runner on a person's behalf, for one project or all; return it and its ``glrt-`` token.

        `active=False` pauses it, a `locked` one cannot be assigned to further projects,
        `access_level='ref_protected'` keeps it for protected refs, and `maximum_timeout` (seconds, 600
        at least) caps the timeout of its jobs. Raises BadRequest for settings that contradict each other.
        """
        return self._insert_runner(
            self.new_token('glrt'), project, creator_id=id_of(user), description=description,
            maintenance_note=maintenance_note, tag_list=tag_list, run_untagged=run_untagged, locked=locked,
            active=active, access_level=access_level, maximum_timeout=maximum_timeout)

    def _insert_runner(self, token: str, project: Row | None, *, description: str, maintenance_note: str | None,
                       tag_list: Iterable[str], run_untagged: bool, locked: bool, active: bool, access_level: str,
                       maximum_timeout: int | None, info: Members | None = None,
                       ip_address: str | None = None, creator_id: int | None = None) -> tuple[Row, str]:
        """Store a runner, assign it to its project and match it with the tag sets."""
        tags = clean_tags(tag_list)
        check_runner(tags, run_untagged, maximum_timeout)
        runner_type = 'instance_type' if project is None else 'project_type'
        with self.db.write() as c:
            runner_id = insert(
                c, 'runner', token_hash=token_hash(token), runner_type=runner_type, creator_id=creator_id,
                description=description, tags=json.dumps(tags), run_untagged=run_untagged, locked=locked,
                active=active, access_level=access_level, maximum_timeout=maximum_timeout,
                maintenance_note=maintenance_note, info=json.dumps(info or {}), ip_address=ip_address,
                created_at=self.clock())
            if project is not None:
                insert(c, 'runner_project', runner_id=runner_id, project_id=project['id'])
            c.execute(MATCH_RUNNERS, dict(runner_id=runner_id, tag_set_id=None))
        return self.find_runner_by_id(runner_id), token

    def edit_runner(self, runner: Row, *, description: str = UNCHANGED, maintenance_note: str | None = UNCHANGED,
                    tag_list: Iterable[str] = UNCHANGED, run_untagged: bool = UNCHANGED, locked: bool = UNCHANGED,
                    active: bool = UNCHANGED, access_level: str = UNCHANGED,
                    maximum_timeout: int | None = UNCHANGED) -> Row:
        """Change the given settings of a runner, those of `create_runner`, and return it."""
        changes = given_changes(description=description, maintenance_note=maintenance_note, run_untagged=run_untagged,
                          locked=locked, active=active, access_level=access_level, maximum_timeout=maximum_timeout)
        if tag_list is not UNCHANGED:
            changes['tags'] = json.dumps(clean_tags(tag_list))
        with self.db.write() as c:
            before = c.execute('SELECT * FROM runner WHERE id = :id', dict(id=runner['id'])).fetchone()
            after = {**dict(before or runner), **changes}
            check_runner(json.loads(after['tags']), after['run_untagged'], after['maximum_timeout'])
            c.execute("""
                UPDATE runner
                   SET description = :description, maintenance_note = :maintenance_note, tags = :tags,
                       run_untagged = :run_untagged, locked = :locked, active = :active,
                       access_level = :access_level, maximum_timeout = :maximum_timeout
                 WHERE id = :id
                """, after)
            c.execute('DELETE FROM runner_tag_set WHERE runner_id = :id', after)
            c.execute(MATCH_RUNNERS, dict(runner_id=runner['id'], tag_set_id=None))
        return self.find_runner_by_id(runner['id'])

    def project_of_registration(self, token: str) -> Row | None:
        """Return the project of a registration token, None for the instance's; raise Forbidden for any other."""
        if self.settings.no_registration_token:
            raise Forbidden('registration by token is switched off here; create the runner in minici and use its token')
        if same_secret(token, self.registration_token):
            return None
        number = re.match(r'mcg-([0-9]{1,18})-', token)
        if number:
            with contextlib.suppress(NotFound):
                project = self.find_project(int(number[1]))
                if same_secret(token, project['runners_token']):
                    return project
        raise Forbidden('invalid token supplied')

    def find_runner(self, token: str, system_id: str = '') -> Row | None:
        """Return the runner that a token belongs to, or None.

        With it come the queue's `version`, when the next delayed job is due (`due_at`), and what is
        known of the runner manager `system_id`: `manager_info` and `manager_contacted_at`.
        """
        return self._one("""
            SELECT runner.*, queue_version.version,
                   (SELECT min(scheduled_at)
                      FROM job INDEXED BY job_scheduled
                     WHERE status = 'scheduled') AS due_at,
                   manager.info AS manager_info, manager.contacted_at AS manager_contacted_at
              FROM runner
              JOIN queue_version
              LEFT JOIN runner_manager AS manager
                     ON manager.runner_id = runner.id AND manager.system_id = :system_id
             WHERE token_hash = :hash
            """, hash=token_hash(token), system_id=system_id)

    def find_runner_by_id(self, runner_id: int) -> Row:
        """Return a runner with its `projects` (a JSON list of ids); raise NotFound if there is none."""
        return self._find('Runner', f"""
            {RUNNER_ROWS}
             WHERE id = :id
            """, id=runner_id)

    def list_runners(self, project: Row | None = None) -> list[Row]:
        """Return all runners, or those that may take a project's jobs, newest first."""
        if project is None:
            return self._all(f"""
                {RUNNER_ROWS}
                 ORDER BY id DESC
                """)
        return self._all(f"""
            {RUNNER_ROWS}
             WHERE runner_type = 'instance_type' AND :shared
                OR id IN (SELECT runner_id
                            FROM runner_project
                           WHERE project_id = :project_id)
             ORDER BY id DESC
            """, project_id=project['id'], shared=project['shared_runners_enabled'])

    def list_managers(self, runner: Row) -> list[Row]:
        """Return the runner managers: the machines that share a runner's token."""
        return self._all(f"""
            SELECT *, (runner_id, system_id) IN ({BUSY_MACHINES}) AS is_busy
              FROM runner_manager
             WHERE runner_id = :id
             ORDER BY created_at
            """, id=runner['id'])

    def verify_runner(self, token: str, system_id: str = '') -> Row:
        """Return the runner that a token belongs to, as `find_runner` does; raise Forbidden if there is none."""
        runner = self.find_runner(token, system_id)
        if runner is None:
            raise Forbidden()
        return runner

    def unregister_runner(self, runner: Row, system_id: str | None = None) -> None:
        """Remove a runner, or one of its runner managers.

        The jobs that it ran stay; those that it is running go on until they fall silent. Raises
        NotFound for an unknown `system_id`.
        """
        values = dict(id=runner['id'], system_id=system_id)
        with self.db.write() as c:
            if system_id is None:
                c.execute('DELETE FROM runner WHERE id = :id', values)
                return
            removed = c.execute("""
                DELETE FROM runner_manager
                 WHERE runner_id = :id AND system_id = :system_id
                """, values).rowcount
            if not removed:
                raise NotFound('Runner manager')

    def reset_runner_token(self, runner: Row) -> str:
        """Give a runner a new token and return it; the old one stops working."""
        prefix = '' if runner['creator_id'] is None else 'glrt'
        token = self.new_token(prefix)
        with self.db.write() as c:
            c.execute("""
                UPDATE runner
                   SET token_hash = :hash
                 WHERE id = :id
                """, dict(hash=token_hash(token), id=runner['id']))
        return token

    def enable_runner(self, runner: Row, project: Row, enabled: bool = True) -> None:
        """Assign a runner to a project, or unassign it; raise Forbidden, BadRequest or NotFound if that cannot be."""
        projects = json.loads(self.find_runner_by_id(runner['id'])['projects'])
        assigned = project['id'] in projects
        values = dict(runner_id=runner['id'], project_id=project['id'])
        if enabled:
            if runner['locked']:
                raise Forbidden('Runner is locked')
            if runner['runner_type'] != 'project_type':
                raise Forbidden('Runner is shared')
            if assigned:
                raise BadRequest({'runner_id': ['has already been taken']})
            with self.db.write() as c:
                insert(c, 'runner_project', **values)
            return
        if not assigned:
            raise NotFound('Runner')
        if len(projects) == 1:
            raise Forbidden('Only one project associated with the runner. Please remove the runner instead')
        with self.db.write() as c:
            c.execute("""
                DELETE FROM runner_project
                 WHERE runner_id = :runner_id AND project_id = :project_id
                """, values)

    def contact(self, runner: Row, info: Members, ip_address: str | None, system_id: str = '') -> None:
        """Record that a runner was here and what it said of itself; write at most once a minute.

        `runner` comes from `find_runner` for the same `system_id`. Raises BadRequest for too long a `system_id`.
        """
        if len(system_id) > MAX_SYSTEM_ID:
            raise BadRequest({'system_id': [f'is too long (maximum is {MAX_SYSTEM_ID} characters)']})
        before = runner['info']
        last = runner['contacted_at']
        if system_id:
            before = runner['manager_info']
            last = runner['manager_contacted_at']
        known = parsed_info(before or '{}')
        now = self.clock()
        said = known.copy()
        said.update((name, value) for name, value in info.items() if value)
        if last is not None and said == known and now - last < CONTACT_INTERVAL:
            return
        values = dict(id=runner['id'], system_id=system_id, info=json.dumps(said), ip_address=ip_address, now=now,
                      kept=MAX_MANAGERS)
        self.db.note(values, """
            UPDATE runner
               SET info = :info, ip_address = :ip_address, contacted_at = :now
             WHERE id = :id
            """, """
            INSERT INTO runner_manager (runner_id, system_id, info, ip_address, created_at, contacted_at)
            SELECT :id, :system_id, :info, :ip_address, :now, :now
             WHERE :system_id <> ''
            ON CONFLICT DO UPDATE
               SET info = :info, ip_address = :ip_address, contacted_at = :now
            """, """
            DELETE FROM runner_manager
             WHERE runner_id = :id
               AND system_id IN (
                   SELECT system_id
                     FROM runner_manager
                    WHERE runner_id = :id
                    ORDER BY contacted_at DESC, system_id = :system_id DESC
                    LIMIT -1 OFFSET :kept)
            """)

    def queue_value(self, runner: Row) -> str:
        """Return the opaque value that changes whenever a job may have become claimable."""
        return f'{self.instance}-{runner["version"]}'


# Jobs #########################################################################################

#: The artifacts of a job whose time is not over, as JSON.
KEPT_ARTIFACTS = """
           (SELECT json_group_array(json_object(
                       'file_type', file_type, 'size', size, 'filename', filename,
                       'file_format', file_format, 'expire_at', expire_at))
              FROM artifact
             WHERE job_id = job.id AND (expire_at IS NULL OR expire_at > :now)) AS artifacts
    """
# A job with all that answers about it show: its pipeline, project, user, runner and artifacts.
# CROSS JOIN keeps the order of the tables, whatever ANALYZE has seen.
JOB_COLUMNS = f"""
    SELECT job.*, tag_set.tags,
           pipeline.iid AS pipeline_iid, pipeline.ref, pipeline.tag, pipeline.sha, pipeline.before_sha,
           pipeline.source, pipeline.status AS pipeline_status, pipeline.variables AS pipeline_variables,
           pipeline.name AS pipeline_name, pipeline.commit_info, pipeline.merge_request, pipeline.fetched_by,
           pipeline.created_at AS pipeline_created_at,
           pipeline.updated_at AS pipeline_updated_at,
           project.path AS project_path, project.name AS project_name, project.import_url,
           project.default_branch, project.build_timeout, project.allow_git_fetch, project.visibility,
           project.ci_config_path, {NAMESPACE_ID} AS namespace_id,
           user.username, user.created_at AS user_created_at,
           runner.description AS runner_description, runner.runner_type, runner.active AS runner_active,
           runner.info AS runner_info, runner.ip_address AS runner_ip_address, runner.maximum_timeout,
           runner.created_at AS runner_created_at, runner.contacted_at AS runner_contacted_at,
           {KEPT_ARTIFACTS}
    """
JOB_JOINS = """
     CROSS JOIN tag_set ON tag_set.id = job.tag_set_id
     CROSS JOIN pipeline ON pipeline.id = job.pipeline_id
     CROSS JOIN project ON project.id = job.project_id
      LEFT JOIN user ON user.id = job.user_id
      LEFT JOIN runner ON runner.id = job.runner_id
    """
JOB_ROWS = f"""
    {JOB_COLUMNS}
      FROM job
    {JOB_JOINS}
    """

# A job as answers show it: why it waits, what it shares with other jobs, its artifacts. An entity adds the rest.
SHOWN_JOB_COLUMNS = f"""
    SELECT job.id, job.status, job.started_at, job.project_id, job.pipeline_id, job.stage_idx, job.needs,
           job.tag_set_id, tag_set.tags, job.resource_group, job.scheduled_at, job.claimed_at, job.runner_id,
           job.system_id, job.user_id, job.protected, job.failure_reason,
           pipeline.iid AS pipeline_iid, pipeline.ref, pipeline.sha, pipeline.source, pipeline.commit_info,
           pipeline.status AS pipeline_status, pipeline.created_at AS pipeline_created_at,
           pipeline.updated_at AS pipeline_updated_at, project.path AS project_path,
           user.username, user.created_at AS user_created_at,
           {KEPT_ARTIFACTS}
    """
SHOWN_JOB_JOINS = """
     CROSS JOIN tag_set ON tag_set.id = job.tag_set_id
     CROSS JOIN pipeline ON pipeline.id = job.pipeline_id
     CROSS JOIN project ON project.id = job.project_id
      LEFT JOIN user ON user.id = job.user_id
    """

JOB_FILTERS = {
    'project_id': 'job.project_id = :project_id',
    'pipeline_id': 'job.pipeline_id = :pipeline_id',
    'runner_id': 'job.runner_id = :runner_id',
    'scope': 'job.status IN (SELECT value FROM json_each(:scope))',
    'latest': 'job.retried = 0',
    'name': 'job.name = :name',
    'before': 'job.id < :before',
    'kind': 'job.kind = :kind',
}

#: The index that finds jobs by a filter, the most telling filter first.
JOB_INDEXES = {
    'pipeline_id': 'INDEXED BY job_of_pipeline',
    'runner_id': 'INDEXED BY job_of_runner',
    'project_id': 'INDEXED BY job_of_project',
}
TALLY_FILTERS = {
    'project_id': 'project_id = :project_id',
    'scope': 'status IN (SELECT value FROM json_each(:scope))',
}


class Jobs(Runners):
    """Jobs as people and runners look at them: lists, tokens, traces, artifacts, and why a job waits."""

    def find_job(self, job: Row | int, project: Row | None = None) -> Row:
        """Return a job (of `project`, if given) with all columns of JOB_ROWS; raise NotFound if there is none."""
        job_id = job['id'] if isinstance(job, Row) else job
        return self._find('', f"""
            {JOB_ROWS}
             WHERE job.id = :id
               AND (:project_id IS NULL OR job.project_id = :project_id)
            """, now=self.clock(), id=job_id, project_id=id_of(project))

    def list_jobs(self, *, project: Row | None = None, pipeline: Row | None = None, runner: Row | None = None,
                  scope: Sequence[str] = (), include_retried: bool = True, name: str | None = None,
                  before: int | None = None, limit: int = 20, offset: int = 0, entity: str | None = None,
                  base_url: str | None = None) -> list[Row]:
        """Return a page of jobs, newest first.

        The jobs are those of `project`, `pipeline` or `runner` (rows), in one of the statuses `scope`,
        called `name`. `include_retried=False` leaves out jobs that a newer one replaced. `before` is
        the id below which the page starts, for keyset paging. With `entity`, a SELECT expression, the
        rows have its value as `entity` and the columns of SHOWN_JOB_COLUMNS; links in it start with `base_url`.
        """
        values = self._job_filters(project, pipeline, runner, scope, include_retried, name)
        values.update(before=before, limit=limit, offset=offset, reach=limit + offset, now=self.clock())
        columns = JOB_COLUMNS
        joins = JOB_JOINS
        if entity is not None:
            columns = f'{SHOWN_JOB_COLUMNS}, {entity} AS entity'
            joins = SHOWN_JOB_JOINS
            values['base_url'] = base_url
        return self._all(f"""
            {columns}
              FROM ({self._page_of_jobs(values)}) AS page
             CROSS JOIN job ON job.id = page.id
            {joins}
             ORDER BY page.id DESC
            """, **values)

    def show_job(self, job: Row, entity: str, base_url: str) -> Row:
        """Return a job as `list_jobs` does with an `entity`; raise NotFound if it is gone."""
        return self._find('', f"""
            {SHOWN_JOB_COLUMNS}, {entity} AS entity
              FROM job
            {SHOWN_JOB_JOINS}
             WHERE job.id = :id
            """, id=job['id'], base_url=base_url, now=self.clock())

    @staticmethod
    def _page_of_jobs(values: JSON) -> str:
        """Return the SELECT that finds the ids of a page of jobs by the index for its filters."""
        where = conditions(JOB_FILTERS, values)
        index = next((index for name, index in JOB_INDEXES.items() if values[name] is not None), 'NOT INDEXED')
        if index != 'INDEXED BY job_of_project' or values['scope'] is None:
            return f"""
                SELECT id
                  FROM job {index}
                 WHERE {where}
                 ORDER BY id DESC
                 LIMIT :limit OFFSET :offset
                """
        where = conditions(JOB_FILTERS, {**values, 'scope': None})
        statuses = {f'status_{number}': status for number, status in enumerate(json.loads(values['scope']))}
        values.update(statuses)
        each = ' UNION ALL '.join(f"""
                SELECT *
                  FROM (SELECT id
                          FROM job INDEXED BY job_of_project_status
                         WHERE {where} AND status = :{name}
                         ORDER BY id DESC
                         LIMIT :reach)
                """ for name in statuses)
        return f"""
            SELECT id
              FROM ({each})
             ORDER BY id DESC
             LIMIT :limit OFFSET :offset
            """

    def count_jobs(self, *, project: Row | None = None, pipeline: Row | None = None, runner: Row | None = None,
                   scope: Sequence[str] = (), include_retried: bool = True, name: str | None = None,
                   limit: int) -> int:
        """Return how many jobs `list_jobs` finds with the same filters; counting stops at `limit`."""
        values = self._job_filters(project, pipeline, runner, scope, include_retried, name)
        given = {key for key, value in values.items() if value is not None}
        if given <= {'project_id', 'scope', 'kind'}:
            return self._tally_jobs(values, limit)
        found = self._all(f"""
            SELECT count(*) AS jobs
              FROM (SELECT 1
                      FROM job
                     WHERE {conditions(JOB_FILTERS, values)}
                     LIMIT :limit)
            """, **values, limit=limit)
        return found[0]['jobs']

    def _tally_jobs(self, values: Members, limit: int) -> int:
        """Return how many jobs of a project, or of all, have one of some statuses: nothing is counted."""
        found = self._all(f"""
            SELECT coalesce(sum(jobs), 0) AS jobs
              FROM job_tally
             WHERE {conditions(TALLY_FILTERS, values)}
            """, **values)
        return min(limit, found[0]['jobs'])

    @staticmethod
    def _job_filters(project: Row | None, pipeline: Row | None, runner: Row | None, scope: Sequence[str],
                     include_retried: bool, name: str | None, kind: str = 'build') -> JSON:
        """Return the parameters of JOB_FILTERS; None leaves a filter out."""
        statuses = sorted(set(scope))
        return {
            'project_id': id_of(project),
            'pipeline_id': id_of(pipeline),
            'runner_id': id_of(runner),
            'scope': json.dumps(statuses) if statuses else None,
            'latest': None if include_retried else True,
            'name': name,
            'before': None,
            'kind': kind,
        }

    def list_bridges(self, pipeline: Row, scope: Sequence[str] = ()) -> list[tuple[Row, int | None]]:
        """Return the latest bridges of a pipeline in one of the statuses `scope`, newest first.

        Beside each stands the id of the pipeline that it started, None for none.
        """
        values = self._job_filters(None, pipeline, None, scope, False, None, 'bridge')
        rows = self._all(f"""
            {JOB_ROWS}
             WHERE {conditions(JOB_FILTERS, values)}
             ORDER BY job.id DESC
            """, **values, now=self.clock())
        started = self._all("""
            SELECT bridge_id, id
              FROM pipeline
             WHERE bridge_id IN (SELECT value FROM json_each(:ids))
            """, ids=json.dumps([row['id'] for row in rows]))
        downstream = {row['bridge_id']: row['id'] for row in started}
        return [(row, downstream.get(row['id'])) for row in rows]

    def list_cards(self, pipeline: Row) -> list[Row]:
        """Return the latest jobs of a pipeline by stage, with the columns that an overview shows."""
        return self._all("""
            SELECT status, job.id, job.name, started_at, finished_at, needs, failure_reason, allow_failure, retried,
                   CASE WHEN status IN ('manual', 'scheduled')
                        THEN json_extract(spec, '$.manual_confirmation') END AS manual_confirmation,
                   stage, stage_idx, job.pipeline_id, job.project_id, job.tag_set_id, tags, resource_group,
                   scheduled_at, claimed_at, runner_id, protected, failure_message, kind,
                   (SELECT json_object('id', downstream.id, 'status', downstream.status, 'path', theirs.path)
                      FROM pipeline AS downstream
                      JOIN project AS theirs ON theirs.id = downstream.project_id
                     WHERE downstream.bridge_id = job.id) AS downstream
              FROM job INDEXED BY job_of_pipeline
             CROSS JOIN tag_set ON tag_set.id = job.tag_set_id
             WHERE pipeline_id = :id AND retried = 0
             ORDER BY stage_idx, job.id
            """, id=pipeline['id'])

    def list_running(self) -> list[Row]:
        """Return the jobs that are with a runner, oldest first."""
        return self._all(f"""
            {JOB_ROWS}
             WHERE job.status IN {ALIVE}
             ORDER BY job.id
            """, now=self.clock())

    def list_queue(self, limit: int = 20) -> list[Row]:
        """Return the jobs that wait for a runner, oldest first."""
        return self._all(f"""
            {JOB_ROWS}
             WHERE job.status = 'pending'
             ORDER BY job.id
             LIMIT :limit
            """, now=self.clock(), limit=limit)

    def authenticate_job(self, job_id: int, token: str, *, holder: bool = False) -> Row | None:
        """Return a job if `token` is its own and of its latest claim, or None.

        `holder=True` also accepts the token of the runner that holds the job and its project's
        `runners_token`, as the v1 pages promise. The job may be in any status. Raises NotFound when
        there is no such job.
        """
        row = self._find('', """
            SELECT job.*, runner.token_hash AS holder_hash, project.runners_token
              FROM job
             CROSS JOIN project ON project.id = job.project_id
              LEFT JOIN runner ON runner.id = job.runner_id
             WHERE job.id = :id
            """, id=job_id)
        digest = token_hash(token)
        known = [same_secret(digest, row['token_hash'])]
        if holder and row['token_hash']:
            known += [same_secret(digest, row['holder_hash']), same_secret(token, row['runners_token'])]
        if any(known):
            return row
        return None

    def find_job_by_token(self, token: str) -> Row | None:
        """Return the running job that a token belongs to, or None."""
        return self._one(f"""
            SELECT *
              FROM job INDEXED BY job_token
             WHERE token_hash = :hash AND status IN {HELD}
            """, hash=token_hash(token))

    def _check_alive(self, job: Row) -> None:
        """Raise JobNotRunning unless `job` is still with its runner, by the same claim."""
        now = self._one('SELECT status, token_hash FROM job WHERE id = :id', id=job['id'])
        if now is None:
            raise JobNotRunning('canceled')
        if now['status'] not in HELD or not same_secret(now['token_hash'], job['token_hash']):
            raise JobNotRunning(now['status'])

    def trace_size(self, job: Row) -> int:
        """Return the length of a job's trace in bytes, 0 without one."""
        return self.traces.size(job['id']) or 0

    def secrets_of(self, job: Row | int) -> Secrets:
        """Return what must not be read in a job's trace by anybody but its runner."""
        job_id = job['id'] if isinstance(job, Row) else job
        found = self._find('', """
            SELECT job.project_id, job.token_hash, runner.token_hash AS runner_hash, project.import_url,
                   project.runners_token
              FROM job
              JOIN project ON project.id = job.project_id
              LEFT JOIN runner ON runner.id = job.runner_id
             WHERE job.id = :id
            """, id=job_id)
        _, _, password = split_credentials(found['import_url'] or '')
        texts = [*self.masked_values(found['project_id']), found['runners_token'], self._setting('registration_token')]
        return Secrets([*texts, password, urllib.parse.quote(password, safe='')],
                       [found['token_hash'], found['runner_hash']])

    def open_trace(self, job: Row | int, *, masked: bool = False) -> IO[bytes]:
        """Return a job's trace opened for reading, its secrets `masked` or as its runner sent it.

        Raises NotFound before its claim and after an erase.
        """
        hidden = self.secrets_of(job) if masked else None
        try:
            return self.traces.open(job['id'] if isinstance(job, Row) else job, hidden)
        except NotFound:
            row = self.find_job(job)
            if row['started_at'] is None or row['erased_at'] is not None:
                raise
            return open(os.devnull, 'rb')  # its runner has written nothing

    def read_trace(self, job: Row | int) -> bytes:
        """Return a job's whole trace; raise NotFound before its claim and after an erase."""
        with self.open_trace(job) as file:
            return file.read()

    def find_artifact(self, job_id: int, file_type: str = 'archive') -> Row:
        """Return a job's artifact; raise NotFound when it has none, or it was erased or has expired."""
        return self._find('Artifacts', """
            SELECT *
              FROM artifact
             WHERE job_id = :id AND file_type = :type
               AND (expire_at IS NULL OR expire_at > :now)
            """, id=job_id, type=file_type, now=self.clock())

    def open_artifacts(self, job: Row | int, file_type: str = 'archive') -> tuple[Row, IO[bytes]]:
        """Return a job's artifact and its file opened for reading; raise NotFound when there is none."""
        artifact = self.find_artifact(job['id'] if isinstance(job, Row) else job, file_type)
        return artifact, self.artifacts.open(artifact['stored_as'])

    def find_job_with_artifacts(self, project: Row, ref: str, name: str) -> Row:
        """Return the newest job of that name with an archive in a successful pipeline of `ref`, or raise NotFound."""
        return self._find('', """
            SELECT job.*
              FROM pipeline
              JOIN job
                ON job.pipeline_id = pipeline.id AND job.name = :name AND job.retried = 0
              JOIN artifact
                ON artifact.job_id = job.id AND artifact.file_type = 'archive'
               AND (artifact.expire_at IS NULL OR artifact.expire_at > :now)
             WHERE pipeline.project_id = :project_id AND pipeline.ref = :ref AND pipeline.status = 'success'
             ORDER BY pipeline.id DESC
             LIMIT 1
            """, project_id=project['id'], ref=ref, name=name, now=self.clock())

    def keep_artifacts(self, job: Row) -> Row:
        """Let a job's artifacts never expire and return the job; raise NotFound when it has none."""
        with self.db.write() as c:
            kept = c.execute("""
                UPDATE artifact
                   SET expire_at = NULL
                 WHERE job_id = :id AND (expire_at IS NULL OR expire_at > :now)
                """, dict(id=job['id'], now=self.clock())).rowcount
            if not kept:
                raise NotFound('Artifacts')
        return self.find_job(job)

    def delete_artifacts(self, *, job: Row | None = None, project: Row | None = None) -> None:
        """Remove the artifacts of a job, or of all finished jobs of a project; traces stay."""
        self._delete_artifacts(f"""
            DELETE FROM artifact
             WHERE job_id = :job_id
                OR job_id IN (SELECT id
                                FROM job
                               WHERE project_id = :project_id AND status IN {FINISHED})
            RETURNING stored_as
            """, job_id=id_of(job), project_id=id_of(project))

    def _delete_artifacts(self, statement: str, **values: Any) -> None:
        """Delete rows of `artifact` by a statement that returns `stored_as`, then the files."""
        with self.db.write() as c:
            rows = c.execute(statement, values).fetchall()
        self.artifacts.remove(row['stored_as'] for row in rows)

    def erase_job(self, job: Row) -> Row:
        """Remove a finished job's trace and artifacts for good and return the job.

        Raises Forbidden when it has not finished or there is nothing to erase.
        """
        with self.db.write() as c:
            erased = c.execute(f"""
                UPDATE job
                   SET erased_at = :now, token_hash = NULL, dotenv = '[]'
                 WHERE id = :id AND status IN {FINISHED}
                   AND (started_at IS NOT NULL AND erased_at IS NULL
                        OR EXISTS (SELECT 1 FROM artifact WHERE job_id = :id))
                """, dict(id=job['id'], now=self.clock())).rowcount
            if erased:
                c.execute('DELETE FROM test_report WHERE job_id = :id', dict(id=job['id']))
                c.execute('DELETE FROM test_case WHERE job_id = :id', dict(id=job['id']))
        if not erased:
            raise Forbidden('Job is not erasable!')
        self.traces.remove(job['id'])
        self.delete_artifacts(job=job)
        return self.find_job(job)


# Dependencies #################################################################################

class Dependencies(Jobs):
    """Which jobs a job gets artifacts and variables of, of its own pipeline and of others."""

    def _dependencies(self, c: sqlite3.Connection, job: Row) -> list[Row]:
        """Return the jobs whose artifacts and variables `job` gets: all it waited for, unless it names some."""
        if job['needs'] is None and not job['stage_idx']:
            return self._cross_dependencies(c, job)     # it waited for nothing here
        values = dict(pipeline_id=job['pipeline_id'], stage_idx=job['stage_idx'], needs=job['needs'], now=self.clock())
        index = 'job_of_pipeline'
        waited_for = 'job.stage_idx < :stage_idx'
        if job['needs'] is not None:
            index = 'job_name'
            waited_for = 'job.name IN (SELECT value FROM json_each(:needs))'
        rows = c.execute(f"""
            SELECT job.*, pipeline.ref, pipeline.tag, pipeline.sha, project.name AS project_name,
                   artifact.filename AS artifacts_filename, artifact.size AS artifacts_size
              FROM job INDEXED BY {index}
             CROSS JOIN pipeline ON pipeline.id = job.pipeline_id
             CROSS JOIN project ON project.id = job.project_id
              LEFT JOIN artifact
                     ON artifact.job_id = job.id AND artifact.file_type = 'archive'
                    AND (artifact.expire_at IS NULL OR artifact.expire_at > :now)
             WHERE job.pipeline_id = :pipeline_id AND job.retried = 0 AND {waited_for}
             ORDER BY job.stage_idx, job.id
            """, values).fetchall()
        spec = stored_spec(job)
        barred = {need['name'] for need in spec['needs'] or () if not need['artifacts']}
        named = spec['dependencies']
        wanted = [row for row in rows if row['name'] not in barred and (named is None or row['name'] in named)]
        return wanted + self._cross_dependencies(c, job)

    def _cross_dependencies(self, c: sqlite3.Connection, job: Row) -> list[Row]:
        """Return the jobs of other pipelines and projects whose archives a job needs, as far as they are there."""
        needs = [need for need in stored_spec(job)['cross_needs'] if need['artifacts']]
        found = [self._cross_dependency(c, job, need) for need in needs]
        return [row for row in found if row is not None]

    def _cross_dependency(self, c: sqlite3.Connection, job: Row, need: Members) -> Row | None:
        """Return the job that a need of another pipeline or project means, None when none has succeeded.

        Of a pipeline it is its latest job, if it is of the same project; of a project's ref that of the
        newest pipeline in which it has left an archive, else of the newest in which it succeeded.
        """
        wanted = 'pipeline.id = :pipeline AND pipeline.project_id = :project_id'
        if need['project']:
            wanted = 'project.path = :project COLLATE NOCASE AND pipeline.ref = :ref'
        values = dict(need, project_id=job['project_id'], now=self.clock())
        row: Row | None = c.execute(f"""
            SELECT job.*, pipeline.ref, pipeline.tag, pipeline.sha, project.name AS project_name,
                   artifact.filename AS artifacts_filename, artifact.size AS artifacts_size
              FROM project
              JOIN pipeline ON pipeline.project_id = project.id
              JOIN job ON job.pipeline_id = pipeline.id AND job.name = :job AND job.retried = 0
              LEFT JOIN artifact
                     ON artifact.job_id = job.id AND artifact.file_type = 'archive'
                    AND (artifact.expire_at IS NULL OR artifact.expire_at > :now)
             WHERE {wanted} AND job.status = 'success'
             ORDER BY artifact.id IS NULL, pipeline.id DESC
             LIMIT 1
            """, values).fetchone()
        return row

    def _missing_dependency(self, c: sqlite3.Connection, job: Row, dependencies: Sequence[Row]) -> str | None:
        """Say which artifacts a claimed job cannot get, as GitLab fails it for; None when it can have all."""
        erased = [row['name'] for row in dependencies if row['erased_at'] is not None]
        if erased:
            return f'it depends on jobs whose artifacts were erased: {", ".join(erased)}'
        for need in stored_spec(job)['cross_needs']:
            if not need['artifacts'] or need.get('optional') or self._cross_dependency(c, job, need):
                continue
            place = f'pipeline {need["pipeline"]}'
            if need['project']:
                place = f'{need["project"]}, ref {need["ref"]}'
            return f'it needs the artifacts of {need["job"]} of {place}, and no such job has succeeded here'
        return None

    def may_read_artifacts(self, reader: Row, job_id: int) -> bool:
        """Tell whether a running job may read another's artifacts: those of the jobs it depends on."""
        with self.db.read() as c:
            return any(row['id'] == job_id for row in self._dependencies(c, reader))


# Tests ########################################################################################

class Tests(Dependencies):
    """The test cases that jobs reported, and their counts."""

    @staticmethod
    def _store_tests(c: sqlite3.Connection, job_id: int, report: TestReport) -> None:
        """Store what the junit report of a job says, instead of what an earlier one said."""
        counts = {status: report.count(status) for status in ('success', 'failed', 'skipped', 'error')}
        c.execute("""
            INSERT OR REPLACE INTO test_report
            VALUES (:job_id, :success, :failed, :skipped, :error, :total_time, :suite_error)
            """, dict(job_id=job_id, total_time=report.time, suite_error=report.error or None, **counts))
        c.execute('DELETE FROM test_case WHERE job_id = :job_id', dict(job_id=job_id))
        c.executemany("""
            INSERT INTO test_case (job_id, status, suite, classname, name, file, time, message, output, attachment,
                                   flaky)
            VALUES (:job_id, :status, :suite, :classname, :name, :file, :time, :message, :output, :attachment, :flaky)
            """, ({'job_id': job_id, **dataclasses.asdict(case)} for case in report.cases))

    def find_test_report(self, job: Row) -> Row | None:
        """Return the counts of a job's tests (`success`, `failed`, ...), or None if it reported none."""
        return self._one('SELECT * FROM test_report WHERE job_id = :id', id=job['id'])

    def list_test_reports(self, pipeline: Row) -> list[Row]:
        """Return the counts of tests of a pipeline's latest jobs, with `job_id` and `job_name`, in their order."""
        return self._all("""
            SELECT test_report.*, job.name AS job_name
              FROM job
              JOIN test_report ON test_report.job_id = job.id
             WHERE job.pipeline_id = :id AND job.retried = 0
             ORDER BY job.stage_idx, job.id
            """, id=pipeline['id'])

    def list_test_cases(self, job: Row | int, statuses: Sequence[str] = (), limit: int = MAX_TEST_CASES) -> list[Row]:
        """Return the tests that a job reported, in their order; of certain `statuses`, if any are given."""
        job_id = job if isinstance(job, int) else job['id']
        return self._all("""
            SELECT *
              FROM test_case
             WHERE job_id = :job_id
               AND (:statuses = '[]' OR status IN (SELECT value FROM json_each(:statuses)))
             ORDER BY id
             LIMIT :limit
            """, job_id=job_id, statuses=json.dumps(statuses), limit=limit)


# Waiting ######################################################################################

#: The statuses of jobs that are waiting for something: `pending_reason` says for what.
WAITING = ('created', 'pending', 'waiting_for_resource', 'manual', 'scheduled')

# The runners that may take jobs of a project, how far they could take one with a tag set, and one that is free.
UNCLAIMED = f"""
    WITH busy AS MATERIALIZED (
        SELECT runner_id
          FROM job INDEXED BY job_alive
         WHERE status IN {ALIVE} AND runner_id IS NOT NULL),
    candidate AS (
        SELECT runner.id, runner.active, coalesce(runner.contacted_at, 0) > :since AS online,
               :protected OR runner.access_level = 'not_protected' AS open,
               EXISTS (SELECT 1
                         FROM runner_tag_set
                        WHERE runner_id = runner.id AND tag_set_id = :tag_set_id) AS serving
          FROM project
         CROSS JOIN runner
         WHERE project.id = :project_id
           AND (runner.runner_type = 'instance_type' AND project.shared_runners_enabled
                OR runner.id IN (SELECT runner_id FROM runner_project WHERE project_id = :project_id)))
    SELECT count(*) AS runners,
           sum(serving) AS serving,
           sum(serving AND open) AS open,
           sum(serving AND open AND active) AS active,
           sum(serving AND open AND active AND online) AS online,
           max(CASE WHEN serving AND open AND active AND online AND id NOT IN busy THEN id END) AS free
      FROM candidate
    """


class Waiting(Tests):
    """Jobs as answers show them: the machines that they run on, and in words why one is not running yet."""

    def list_machines(self, jobs: Iterable[Row]) -> list[Row]:
        """Return the runners that jobs are with: a row for each of their managers (machines) among them.

        `system_id` and `manager`, its row as JSON, are NULL for a runner without managers.
        """
        machines = {(job['runner_id'], job['system_id']) for job in jobs if job['runner_id'] is not None}
        if not machines:
            return []
        return self._all(f"""
            WITH busy AS ({BUSY_MACHINES}),
                 wanted AS (
                     SELECT json_extract(value, '$[0]') AS runner_id, json_extract(value, '$[1]') AS system_id
                       FROM json_each(:machines))
            SELECT runner.*, wanted.system_id, runner.id IN (SELECT runner_id FROM busy) AS is_busy,
                   (SELECT json_object('system_id', system_id, 'info', info, 'ip_address', ip_address,
                                       'created_at', created_at, 'contacted_at', contacted_at,
                                       'is_busy', (runner_id, system_id) IN (SELECT runner_id, system_id FROM busy))
                      FROM runner_manager
                     WHERE runner_id = runner.id AND system_id = wanted.system_id) AS manager
              FROM wanted
             CROSS JOIN runner ON runner.id = wanted.runner_id
            """, machines=json.dumps(list(machines)))

    def started_trace_size(self, job: Row) -> int:
        """Return the length of a job's trace in bytes, 0 for a job that never started."""
        if job['started_at'] is None:
            return 0
        return self.trace_size(job)

    def pending_reason(self, job: Row) -> str | None:
        """Return in words why a job is not running, or None when it is or has finished."""
        return self.pending_reasons([job])[job['id']]

    def pending_reasons(self, jobs: Iterable[Row]) -> dict[int, str | None]:
        """Return what `pending_reason` says of each of many jobs, by id; what they share is looked up once."""
        once = functools.cache(lambda verb, *about: verb(*about))
        return {job['id']: self._pending_reason(job, once) for job in jobs}

    def _pending_reason(self, job: Row, once: Callable[..., Any]) -> str | None:
        """Return why one job waits; `once` calls a verb, or remembers what it returned for the same arguments."""
        status = job['status']
        if status == 'created':
            return once(self._waits_for, once, job['pipeline_id'], job['stage_idx'], job['needs'])
        if status == 'pending' and job['claimed_at'] is not None:
            return once(self._who_prepares, job['runner_id'])
        if status == 'pending':
            return once(self._why_unclaimed, job['project_id'], job['tag_set_id'], job['tags'], job['protected'])
        if status == 'waiting_for_resource':
            return once(self._resource_holder, job['project_id'], job['resource_group'])
        if status == 'manual':
            return 'waiting to be started by hand'
        if status == 'scheduled':
            return f'it is delayed until {iso_time(job["scheduled_at"])}'
        return None

    def unfit_reason(self, runner: Row, job: Row) -> str | None:
        """Return why a runner takes no jobs like this one, or None if it does.

        Whether it is online or busy is not asked: that passes.
        """
        if not runner['active']:
            return 'it is paused'
        if not self._serves(runner, job['project_id']):
            return 'it does not serve this project'
        tags = set(json.loads(job['tags']))
        lacking = sorted(tags - set(json.loads(runner['tags'])))
        if lacking:
            return f'it lacks {", ".join(lacking)}'
        if not tags and not runner['run_untagged']:
            return 'it takes only jobs with tags'
        if runner['access_level'] == 'ref_protected' and not job['protected']:
            return 'it is for protected refs'
        return None

    def _serves(self, runner: Row, project_id: int) -> bool:
        """Tell whether a runner is open to the jobs of a project."""
        runners = self.list_runners(self.find_project(project_id))
        return any(other['id'] == runner['id'] for other in runners)

    def _waits_for(self, once: Callable[..., Any], pipeline_id: int, stage_idx: int, needs: str | None) -> str:
        """Say which unfinished jobs stand before a created job: those it `needs`, or those of earlier stages."""
        unfinished = once(self._unfinished, pipeline_id)
        waited_for = (name for name, place in unfinished.items() if place < stage_idx)
        if needs:
            waited_for = (name for name in json.loads(needs) if name in unfinished)
        before = list(itertools.islice(waited_for, 6))
        more = ', ...' if before[5:] else ''
        return f'it waits for {", ".join(before[:5])}{more}'

    def _unfinished(self, pipeline_id: int) -> dict[str, int]:
        """Return the jobs of a pipeline that hold others back: their names and the places of their stages."""
        rows = self._all(f"""
            SELECT name, stage_idx
              FROM job
             WHERE pipeline_id = :id AND retried = 0 AND status NOT IN {FINISHED}
               AND NOT (status = 'manual' AND allow_failure)
             ORDER BY stage_idx, id
            """, id=pipeline_id)
        return {row['name']: row['stage_idx'] for row in rows}

    def _resource_holder(self, project_id: int, name: str) -> str:
        """Say which job holds a resource group."""
        holder = self._one("""
            SELECT id, name
              FROM job
             WHERE project_id = :project_id AND resource_group = :name
               AND status IN ('pending', 'running', 'canceling')
            """, project_id=project_id, name=name)
        if holder is None:
            return f'another job holds the resource group {name}'
        return f'job {holder["id"]} ({holder["name"]}) holds the resource group {name}'

    def _who_prepares(self, runner_id: int | None) -> str:
        """Say which runner has claimed a pending job."""
        if runner_id is None:
            return 'a runner that was removed was preparing it'
        runner = self.find_runner_by_id(runner_id)
        name = f' ({runner["description"]})' if runner['description'] else ''
        return f'runner {runner_id}{name} is preparing it'

    def _why_unclaimed(self, project_id: int, tag_set_id: int, tags: str, protected: int) -> str:
        """Say why no runner has taken a pending job of a project with these tags."""
        found = self._find('Project', UNCLAIMED, project_id=project_id, tag_set_id=tag_set_id, protected=protected,
                           since=self.clock() - ONLINE_FOR)
        if not found['runners']:
            return 'no runner is registered for its project'
        if not found['serving']:
            return self._missing_tags(json.loads(tags), self.list_runners(self.find_project(project_id)))
        if not found['open']:
            return 'every runner that could take it is for protected refs alone'
        if not found['active']:
            return 'every runner that could take it is paused'
        if not found['online']:
            return 'every runner that could take it is offline'
        if found['free'] is None:
            return 'every runner that could take it is busy'
        return f'runner {found["free"]} may take it when it asks again'

    @staticmethod
    def _missing_tags(tags: Sequence[str], runners: Iterable[Row]) -> str:
        """Say which of a job's tags the nearest of the runners lacks."""
        lacking = [sorted(set(tags) - set(json.loads(runner['tags']))) for runner in runners]
        nearest = min(lacking, key=len)
        if not nearest:
            return 'no runner takes jobs without tags'
        return f'no runner has all of its tags; the nearest lacks {", ".join(nearest)}'


# Processing ###################################################################################

# The status of a job that is queued; one with a resource group first has to get hold of that.
ENQUEUED = """
    CASE WHEN resource_group IS NOT NULL THEN 'waiting_for_resource'
         WHEN kind = 'bridge' THEN 'running'
         ELSE 'pending' END"""

# The jobs `again` to be reset after a retry: those skipped in later stages, and whatever needs one of them.
RESET_SKIPPED = """
    WITH RECURSIVE again (name) AS (
        SELECT name
          FROM job
         WHERE pipeline_id = :pipeline_id AND retried = 0
           AND (name = :name OR status = 'skipped' AND needs IS NULL AND stage_idx > :stage_idx)
        UNION
        SELECT job.name
          FROM again
          JOIN job ON job.pipeline_id = :pipeline_id AND job.retried = 0
         WHERE EXISTS (SELECT 1 FROM json_each(job.needs) WHERE value = again.name))
    UPDATE job
       SET status = 'created'
     WHERE pipeline_id = :pipeline_id AND retried = 0 AND status = 'skipped'
       AND name IN (SELECT name FROM again)
    """

# A job that its runner can end in good order is `canceling` until it did; any other is `canceled` at once.
CANCEL_AT_ONCE = f"""
    UPDATE job
       SET status = 'canceled', finished_at = max(:now, coalesce(started_at, :now))
     WHERE id IN (SELECT value FROM json_each(:ids)) AND status IN {CANCELABLE}
       AND NOT (status = 'running'
                AND EXISTS (SELECT 1
                              FROM runner
                              LEFT JOIN runner_manager AS manager
                                     ON manager.runner_id = runner.id AND manager.system_id = job.system_id
                              JOIN json_each(coalesce(manager.info, runner.info), '$.features') AS feature
                             WHERE runner.id = job.runner_id AND feature.value = 'cancel_gracefully'))
    """

# The statuses of the latest jobs of a pipeline, with and without `allow_failure`, and where each comes first.
STATUSES_SEEN = f"""
    WITH kind (status, allow_failure) AS (VALUES {', '.join(f"('{status}', 0), ('{status}', 1)"
                                                           for status in JOB_STATUSES)}),
    seen AS (
        SELECT kind.status, kind.allow_failure,
               (SELECT min(job.stage_idx)
                  FROM job INDEXED BY job_outcome
                 WHERE job.pipeline_id = :id AND job.retried = 0
                   AND job.status = kind.status AND job.allow_failure = kind.allow_failure) AS first_stage
          FROM kind)
    SELECT status, allow_failure, first_stage
      FROM seen
     WHERE first_stage IS NOT NULL
    """

# The created jobs that need one of some jobs, a row for each job that they need.
DEPENDENTS = """
    SELECT job.id, job.kind, job.name, job.when_, job.resource_group,
           needed.status AS needed_status, needed.allow_failure AS needed_allowed
      FROM (SELECT DISTINCT job_need.job_id
              FROM json_each(:names) AS given
             CROSS JOIN job_need ON job_need.pipeline_id = :id AND job_need.name = given.value) AS dependent
     CROSS JOIN job NOT INDEXED ON job.id = dependent.job_id AND job.status = 'created' AND job.retried = 0
     CROSS JOIN job_need AS need INDEXED BY job_need_of_job ON need.job_id = job.id
     CROSS JOIN job AS needed INDEXED BY job_name
             ON needed.pipeline_id = :id AND needed.name = need.name AND needed.retried = 0
    """


#: The statuses of the latest jobs of a pipeline: status, `allow_failure`, and the first stage with such a job.
Outcomes = list[tuple[str, bool, int]]
#: What a finished pipeline makes of the bridge that waits for it; otherwise the bridge is running.
MIRRORED = {'success': 'success', 'failed': 'failed', 'canceled': 'canceled', 'skipped': 'failed'}


class Processing(Waiting):
    """How jobs change: they start when those before them are done; people cancel, retry and play them."""

    @contextlib.contextmanager
    def _change(self, pipeline_id: int) -> Iterator[sqlite3.Connection]:
        """Yield a transaction that changes jobs of a pipeline; at its end process the pipeline, then wake waiters."""
        with self.db.write() as c:
            yield c
            self._process(c, pipeline_id)
        self._announce()

    def _process(self, c: sqlite3.Connection, pipeline_id: int) -> None:
        """Start every job of a pipeline whose turn has come, skip those that never run, update its status.

        Called inside each transaction that changed one of its jobs (GitLab's atomic processing).
        """
        jobs = c.execute("""
            SELECT id, kind, name, stage_idx, status, when_, allow_failure, needs, resource_group, project_id
              FROM job
             WHERE pipeline_id = :id AND retried = 0
             ORDER BY stage_idx, id
            """, dict(id=pipeline_id)).fetchall()
        self._start(c, next_statuses(jobs))
        self._settle(c, pipeline_id, self._outcomes(c, pipeline_id))
        if any(job['resource_group'] for job in jobs):
            self._hand_out_resources(c, jobs[0]['project_id'])

    def _start(self, c: sqlite3.Connection, statuses: Mapping[int, str]) -> None:
        """Give created jobs their next status, by id."""
        now = self.clock()
        c.executemany("""
            UPDATE job
               SET status = :new,
                   queued_at = CASE WHEN :new = 'pending' THEN :now END,
                   scheduled_at = CASE WHEN :new = 'scheduled'
                                       THEN :now + coalesce(json_extract(spec, '$.start_in'), 0) END
             WHERE id = :id AND status = 'created'
            """, [dict(id=job_id, new=status, now=now) for job_id, status in statuses.items()])
        self._bridges_due += [job_id for job_id, status in statuses.items() if status == 'running']

    def _process_after(self, c: sqlite3.Connection, finished: Row) -> None:
        """Process a pipeline as `_process` does, when one finished job is all that changed.

        It reads only the jobs that may follow, so it costs the same in a pipeline of ten jobs or a thousand.
        """
        pipeline_id = finished['pipeline_id']
        names = {finished['name']}
        grouped = finished['resource_group']
        while names:
            outcomes = self._outcomes(c, pipeline_id)
            following = [*self._next_of_stage(c, pipeline_id, outcomes), *self._next_of_needs(c, pipeline_id, names)]
            statuses = {}
            names = set()
            for job, status in following:
                if status != 'created':
                    statuses[job['id']] = status
                    grouped = grouped or job['resource_group']
                if status in ('skipped', 'manual'):     # such a job may free later ones at once
                    names.add(job['name'])
            self._start(c, statuses)
        if statuses:
            outcomes = self._outcomes(c, pipeline_id)
        self._settle(c, pipeline_id, outcomes)
        if grouped:
            self._hand_out_resources(c, finished['project_id'])

    @staticmethod
    def _outcomes(c: sqlite3.Connection, pipeline_id: int) -> Outcomes:
        """Return what the latest jobs of a pipeline have come to."""
        return [tuple(row) for row in c.execute(STATUSES_SEEN, dict(id=pipeline_id)).fetchall()]

    @staticmethod
    def _next_of_stage(c: sqlite3.Connection, pipeline_id: int, outcomes: Outcomes) -> list[tuple[Row, str]]:
        """Return the created jobs of the first stage with open jobs, and the status that each gets."""
        unfinished = [first for status, allowed, first in outcomes if is_open(status, allowed)]
        if not unfinished:
            return []
        stage = min(unfinished)
        jobs = c.execute("""
            SELECT id, kind, name, when_, resource_group
              FROM job INDEXED BY job_next
             WHERE pipeline_id = :id AND stage_idx = :stage
               AND retried = 0 AND status = 'created' AND needs IS NULL
            """, dict(id=pipeline_id, stage=stage)).fetchall()
        before = composite_status((status, allowed) for status, allowed, first in outcomes if first < stage)
        return [(job, status_after_stages(job, before)) for job in jobs]

    @staticmethod
    def _next_of_needs(c: sqlite3.Connection, pipeline_id: int, names: Iterable[str]) -> list[tuple[Row, str]]:
        """Return the created jobs that need one of the named jobs, and the status that each gets."""
        rows = c.execute(DEPENDENTS, dict(id=pipeline_id, names=json.dumps(list(names)))).fetchall()
        jobs = {row['id']: row for row in rows}
        needed: dict[int, list[tuple[str, bool]]] = {job_id: [] for job_id in jobs}
        for row in rows:
            needed[row['id']].append((row['needed_status'], row['needed_allowed']))
        return [(job, status_after_needs(job, needed[job_id])) for job_id, job in jobs.items()]

    def _settle(self, c: sqlite3.Connection, pipeline_id: int, outcomes: Outcomes) -> None:
        """Update the pipeline's status from the `outcomes` of its jobs."""
        status = composite_status((status, allowed) for status, allowed, _ in outcomes)
        changed_rows = c.execute("""
            UPDATE pipeline
               SET status = :status, updated_at = :now,
                   finished_at = CASE WHEN :finished
                                      THEN coalesce(finished_at, max(:now, coalesce(started_at, :now))) END
             WHERE id = :id
               AND (status <> :status OR (finished_at IS NULL) = :finished)
            RETURNING bridge_id
            """, dict(id=pipeline_id, status=status, now=self.clock(), finished=status in FINISHED)).fetchall()
        if changed_rows and status in FINISHED:
            self._wake_mirrors(c)
        if changed_rows and changed_rows[0]['bridge_id'] is not None:
            self._mirror(c, changed_rows[0]['bridge_id'], status)

    def _wake_mirrors(self, c: sqlite3.Connection) -> None:
        """Let the jobs look again that wait for a pipeline of another project to finish."""
        waiting = c.execute("""
            SELECT id
              FROM job INDEXED BY job_alive
             WHERE status IN ('running', 'canceling') AND kind = 'bridge' AND started_at IS NULL
               AND json_extract(spec, '$.trigger.upstream') <> ''
            """).fetchall()
        self._bridges_due += [row['id'] for row in waiting]

    def _mirror(self, c: sqlite3.Connection, bridge_id: int, status: str) -> None:
        """Give a bridge with a `strategy` the status of the pipeline that it started."""
        upstream = c.execute("""
            UPDATE job
               SET status = coalesce(:ended, 'running'),
                   finished_at = CASE WHEN :ended IS NOT NULL THEN :now END
             WHERE id = :id AND retried = 0 AND coalesce(json_extract(spec, '$.trigger.strategy'), '') <> ''
               AND status IN ('running', 'success', 'failed', 'canceled', 'skipped')
               AND status <> coalesce(:ended, 'running')
            RETURNING *
            """, dict(id=bridge_id, ended=MIRRORED.get(status), now=self.clock())).fetchall()
        for bridge in upstream:
            if bridge['status'] == 'running':
                self._reset_skipped(c, bridge)
            self._process(c, bridge['pipeline_id'])

    def _hand_out_resources(self, c: sqlite3.Connection, project_id: int) -> None:
        """Queue the oldest job that waits for each resource group of a project that no other job holds."""
        queued = c.execute("""
            UPDATE job
               SET status = CASE kind WHEN 'bridge' THEN 'running' ELSE 'pending' END, queued_at = :now
             WHERE id IN (SELECT min(waiting.id)
                            FROM job AS waiting
                           WHERE waiting.project_id = :project_id AND waiting.status = 'waiting_for_resource'
                             AND waiting.resource_group IS NOT NULL
                             AND NOT EXISTS (SELECT 1
                                               FROM job AS holder
                                              WHERE holder.project_id = :project_id
                                                AND holder.resource_group = waiting.resource_group
                                                AND holder.status IN ('pending', 'running', 'canceling'))
                           GROUP BY waiting.resource_group)
            RETURNING id, status, pipeline_id
            """, dict(project_id=project_id, now=self.clock())).fetchall()
        self._bridges_due += [row['id'] for row in queued if row['status'] == 'running']
        for row in queued:
            self._settle(c, row['pipeline_id'], self._outcomes(c, row['pipeline_id']))

    def cancel_job(self, job: Row) -> Row:
        """Cancel a job that has not finished; a finished one stays as it is. Return the job.

        A job whose runner can end it gracefully is `canceling` until it has; a second cancel is final.
        """
        with self._change(job['pipeline_id']) as c:
            self._cancel(c, [job])
        return self.find_job(job)

    def _cancel(self, c: sqlite3.Connection, jobs: Iterable[Row]) -> None:
        """Cancel those of the jobs that have not finished."""
        values = dict(now=self.clock(), ids=json.dumps([job['id'] for job in jobs]))
        c.execute(CANCEL_AT_ONCE, values)
        c.execute("""
            UPDATE job
               SET status = 'canceling'
             WHERE id IN (SELECT value FROM json_each(:ids)) AND status = 'running'
            """, values)
        self._cancel_downstream(c, values)

    def _cancel_after_failure(self, c: sqlite3.Connection, job: Row) -> None:
        """Cancel the other jobs of a pipeline when a job failed and `workflow:auto_cancel:on_job_failure` says so."""
        if job['status'] != 'failed' or job['allow_failure']:
            return
        others = c.execute("""
            SELECT job.id
              FROM pipeline
              JOIN job ON job.pipeline_id = pipeline.id
             WHERE pipeline.id = :id AND pipeline.auto_cancel_failure = 'all'
            """, dict(id=job['pipeline_id'])).fetchall()
        if others:
            self._cancel(c, others)
            self._process(c, job['pipeline_id'])

    def _cancel_downstream(self, c: sqlite3.Connection, values: Members) -> None:
        """Cancel the unfinished pipelines that bridges have started: all child pipelines, others that they wait for."""
        downstream = c.execute("""
            SELECT pipeline.id
              FROM json_each(:ids) AS bridge
              JOIN pipeline ON pipeline.bridge_id = bridge.value
              JOIN job ON job.id = bridge.value
             WHERE pipeline.finished_at IS NULL
               AND (pipeline.source = 'parent_pipeline' OR job.status = 'canceled')
            """, values).fetchall()
        for pipeline in downstream:
            jobs = c.execute('SELECT id FROM job WHERE pipeline_id = :id', dict(id=pipeline['id'])).fetchall()
            self._cancel(c, jobs)
            self._process(c, pipeline['id'])

    def retry_job(self, job: Row, user: Row | None = None) -> Row:
        """Create a new pending job of a finished one and return it; the old one keeps its status.

        Jobs that were skipped because of the old one are `created` again. Raises Forbidden when the
        job has not finished or was retried already.
        """
        with self._change(job['pipeline_id']) as c:
            retried = self._clone(c, job, user)
            if retried is None:
                raise Forbidden('Job is not retryable')
        return self.find_job(retried)

    @staticmethod
    def _is_retried(c: sqlite3.Connection, job: Row, spec: Members, failure_reason: str | None,
                    exit_code: int | None) -> bool:
        """Tell whether a job that failed for this reason is to be retried by its spec's `retry`."""
        retry = spec['retry']
        if not retry:
            return False
        if not {'always', failure_reason} & set(retry['when']) and exit_code not in retry['exit_codes']:
            return False
        tries, = c.execute("""
            SELECT count(*)
              FROM job
             WHERE pipeline_id = :pipeline_id AND name = :name
            """, dict(pipeline_id=job['pipeline_id'], name=job['name'])).fetchone()
        return tries <= retry['max']

    def _clone(self, c: sqlite3.Connection, job: Row, user: Row | None, variables: str = '[]',
               status: str = ENQUEUED) -> int | None:
        """Replace a retryable job by a copy and return the copy's id; return None for any other job.

        `status` is an SQL expression for the status of the copy.
        """
        replaced = c.execute(f"""
            UPDATE job
               SET retried = 1
             WHERE id = :id AND retried = 0 AND status IN {RETRYABLE}
            """, dict(id=job['id'])).rowcount
        if not replaced:
            return None
        clone = c.execute(f"""
            INSERT INTO job (project_id, pipeline_id, kind, name, stage, stage_idx, status, when_, allow_failure,
                             tag_set_id, shared, protected, needs, resource_group, interruptible, timeout, user_id,
                             created_at, queued_at, variables, environment, spec)
            SELECT job.project_id, pipeline_id, kind, job.name, stage, stage_idx, {status}, when_,
                   coalesce(json_extract(spec, '$.allow_failure'), 0),
                   tag_set_id, project.shared_runners_enabled, protected, needs, resource_group, interruptible, timeout,
                   coalesce(:user_id, user_id),
                   :now, :now, :variables, environment, spec
              FROM job
              JOIN project ON project.id = job.project_id
             WHERE job.id = :id
            """, dict(id=job['id'], user_id=id_of(user), variables=variables, now=self.clock())).lastrowid
        self._reset_skipped(c, job)
        self._bridges_due.append(clone or 0)
        return clone

    @staticmethod
    def _reset_skipped(c: sqlite3.Connection, job: Row) -> None:
        """Reset jobs skipped because of `job` to 'created'."""
        c.execute(RESET_SKIPPED, dict(pipeline_id=job['pipeline_id'], stage_idx=job['stage_idx'], name=job['name']))

    def play_job(self, job: Row, user: Row | None = None, variables: Iterable[Members] = ()) -> Row:
        """Queue a manual job and return it; one that has finished already is retried as a new job.

        `variables` reach this run alone. Raises BadRequest when there is nothing to play.
        """
        given = json.dumps([check_variable(variable) for variable in variables])
        values = dict(id=job['id'], now=self.clock(), user_id=id_of(user), variables=given)
        played: int | None = job['id']
        with self._change(job['pipeline_id']) as c:
            queued = c.execute(f"""
                UPDATE job
                   SET status = {ENQUEUED}, queued_at = :now, variables = :variables,
                       user_id = coalesce(:user_id, user_id)
                 WHERE id = :id AND status IN {PLAYABLE}
                """, values).rowcount
            if queued:
                self._reset_skipped(c, job)
                self._bridges_due.append(job['id'])
            elif job['when_'] == 'manual':
                played = self._clone(c, job, user, given)
            else:
                played = None
            if played is None:
                raise BadRequest('Unplayable Job')
        return self.find_job(played)


# Compiling ####################################################################################

def check_jobs(spec: PipelineSpec, place: str) -> None:
    """Raise BadRequest when a file has no job outside `.pre` and `.post` for a ref, which `place` names."""
    if spec.filtered:
        raise BadRequest({'base': ['Pipeline filtered out by workflow rules']})
    if all(job.stage in ('.pre', '.post') for job in spec.jobs):
        raise BadRequest({'base': ['The resulting pipeline would have been empty: '
                                   f'no job of the file is for {place}']})


@dataclass(frozen=True, eq=False)
class PipelinePlan:
    """A pipeline that has been compiled and not yet been created.

    `facts` are columns of its row and of its project's, `variables` those that it is given, `spec` its jobs.
    """

    project: Row
    facts: Members
    variables: Sequence[Members]
    spec: PipelineSpec
    user: Row | None = None


@dataclass(frozen=True, eq=False)
class Choices:
    """What people choose when they start a pipeline of a project by hand."""

    refs: Sequence[str]         # branches and tags, the default branch first
    variables: Sequence[Choice]
    inputs: Sequence[Choice]


class Compiling(Processing):
    """How the pipeline file of a project is found and compiled, with all that it includes."""

    def plan_pipeline(self, project: Row | int | str, ref: str, *, sha: str | None = None, content: Any = None,
                      variables: Iterable[Members] = (), source: str = 'api', user: Row | None = None,
                      tag: bool = False, before_sha: str | None = None,
                      merge_request: Members | None = None, schedule: Row | None = None,
                      inputs: Members = MappingProxyType({}), bridge: Row | None = None) -> PipelinePlan:
        """Compile the pipeline of a ref, for `create_planned`.

        `ref` is a branch or tag. `content` is a pipeline file as text, as a mapping, or a finished
        PipelineSpec; without it `.gitlab-ci.yml` is read from the project's repository at `sha`, or
        at what `ref` points to. `variables` are mappings with `key` and `value`, `inputs` are for the
        file's ``spec:inputs``. `tag` says what `ref` is when there is no repository to tell;
        `before_sha` what it pointed to before a push. `merge_request` is what `merge_request_variables`
        takes; `schedule` what runs it, `bridge` the job that starts it. Raises BadRequest when the ref,
        the file or a job is invalid.
        """
        project = self.find_project(project)
        facts = self._facts(project, ref, tag=tag, sha=sha, source=source)
        facts.update(before_sha=before_sha or '0' * 40, schedule_id=id_of(schedule), bridge_id=id_of(bridge))
        if merge_request:
            facts['merge_request'] = json.dumps(merge_request)
        given = [check_variable(variable) for variable in variables]
        with contextlib.ExitStack() as stack:
            repository = None
            if sha is not None:
                facts['sha'] = check_sha(sha)
            if sha is not None and content is not None:
                facts.update(tag=tag or ref.startswith('refs/tags/'), ref=short_name(ref))
                if project['import_url']:
                    facts['fetched_by'] = 'history'     # nobody has asked whether the ref points to it
                facts['protected'] = self._is_protected(facts)
            if sha is None or content is None or bridge is not None and project['import_url']:
                repository = stack.enter_context(self._repository(project))
                content = self._read_repository(repository, facts, content)
            if merge_request and repository:
                facts['merge_request'] = json.dumps(self._compared(repository, facts['sha'], merge_request))
            library = stack.enter_context(self._library(bridge))
            spec = self._spec(content, facts, given, user, repository, library, inputs)
        return PipelinePlan(project, facts, given, spec, user)

    @staticmethod
    def _compared(repository: Repository, sha: str, merge_request: Members) -> Members:
        """Return a merge request with its `base_sha`, the commit where it has left its target, if that can be told."""
        if merge_request.get('base_sha'):
            return merge_request
        with contextlib.suppress(BadRequest):
            return {**merge_request, 'base_sha': repository.merge_base(merge_request['target_branch'], sha)}
        return merge_request

    @staticmethod
    def _facts(project: Row, ref: str, *, tag: bool, sha: str | None, source: str) -> JSON:
        """Return what is known of a pipeline before its repository is read: columns of its row and its project's."""
        facts = {
            'project_id': project['id'],
            'project_path': project['path'],
            'project_name': project['name'],
            'namespace_id': project['namespace_id'],
            'default_branch': project['default_branch'],
            'protected_refs': project['protected_refs'],
            'visibility': project['visibility'],
            'ci_config_path': project['ci_config_path'],
        }
        facts.update(
            ref=check_ref(ref),
            tag=tag,
            sha=sha,
            before_sha='0' * 40,
            source=source,
            commit_info=None,
            merge_request=None,
            schedule_id=None,
            bridge_id=None,
            iid=project['last_iid'] + 1,
            protected=False,
            fetched_by='ref',
        )
        return facts

    @staticmethod
    def _is_protected(facts: Members) -> bool:
        """Tell whether the ref of a pipeline is protected; a merge request's is not, for nobody has accepted it."""
        protected = matches_ref(facts['protected_refs'], facts['ref'], facts['tag'], facts['default_branch'])
        return protected and facts['merge_request'] is None

    def lint(self, project: Row | None = None, content: Any = None, *, ref: str | None = None,
             inputs: Members = MappingProxyType({})) -> PipelineSpec:
        """Compile a pipeline file as for a push; raise BadRequest with all that is wrong with it.

        `content` is the file, by default the one in the project's repository at `ref` (a branch or tag,
        by default the default branch). With a project, included files are looked up in its repository.
        `inputs` are for the file's ``spec:inputs``.
        """
        with contextlib.ExitStack() as stack:
            library = stack.enter_context(self._library(None))
            if project is None:
                facts: JSON = dict(ref=ref or 'main', tag=False, sha='', source='push', before_sha='0' * 40)
                predefined = {**texts_of(server_variables(self.address)), **known_variables(facts)}
                return self._compile(content, merged=True, facts=facts, library=library, inputs=dict(inputs),
                                     predefined=predefined)
            facts, repository = self._facts(project, ref or project['default_branch'], tag=False, sha='',
                                            source='push'), None
            if content is None or project['import_url']:
                repository = stack.enter_context(self._repository(project))
                content = self._read_repository(repository, facts, content)
            return self._compile(content, merged=True, facts=facts, repository=repository, library=library,
                                 inputs=dict(inputs), predefined=self._predefined(facts))

    @property
    def _compiles_apart(self) -> bool:
        """Whether foreign files are compiled in other processes: others wait for a process that serves."""
        return self.serves and not self._temporary

    def _compile(self, content: Any, *, merged: bool = False, **options: Any) -> PipelineSpec:
        """Compile a pipeline file, in another process if it is foreign and others wait for this one."""
        if not isinstance(content, Foreign):
            with COMPILERS.turn():
                return compile_pipeline(content, **options)
        if self._compiles_apart:
            return COMPILERS.compile(content.content, merged=merged, **options)
        return self._compile(content.content, **options)

    def merged_yaml(self, merged: Members) -> str:
        """Return a pipeline file with all that it includes, extends and refers to in place, as YAML."""
        if not self._compiles_apart:
            return merged_yaml(merged)
        text: str = COMPILERS.request('merged_yaml', merged=merged)
        return text

    def list_choices(self, project: Row, ref: str) -> Choices:
        """Return the refs of a project's repository, and the variables and inputs that its file has at a ref.

        A project without a repository offers none. Raises BadRequest when the repository, the ref or the
        file cannot be read.
        """
        if not project['import_url']:
            return Choices([], [], [])
        facts = self._facts(project, ref, tag=False, sha='', source='web')
        with self._repository(project) as repository:
            names = repository.refs()
            content = self._read_repository(repository, facts, None)
        read = COMPILERS.choices if self._compiles_apart else read_choices
        variables, inputs = read(content.content)
        default = project['default_branch']
        return Choices(sorted(names, key=lambda name: (name != default, name)), variables, inputs)

    def _read_repository(self, repository: Repository, facts: JSON, content: Any) -> Any:
        """Complete the facts of a pipeline from its repository; return `content`, or else the repository's file."""
        given = facts['ref']
        found, facts['tag'] = repository.resolve(given)
        facts['ref'] = short_name(given)
        facts['sha'] = check_sha(facts['sha'] or found)
        facts['commit_info'] = json.dumps(repository.commit(facts['sha']))
        facts['fetched_by'] = 'ref' if facts['sha'] == found else 'history'
        if repository.gives_any_commit():
            facts['fetched_by'] = 'sha'
        if self._is_protected(facts):
            facts['protected'] = facts['sha'] == found or repository.contains(given, facts['sha'])
        path = facts['ci_config_path'] or PIPELINE_FILE
        if content is None:
            found_file = repository.file(facts['sha'], path)
            if found_file is None:
                raise BadRequest({'base': [f'Missing CI config file: {path} is not in the repository '
                                           f'at {facts["sha"][:8]}; add it or send content']})
            content = Foreign(found_file)
        return content

    def _spec(self, content: Any, facts: Members, given: list[JSON], user: Row | None,
              repository: Repository | None, library: Library, inputs: Members) -> PipelineSpec:
        """Compile a pipeline file for these facts and variables."""
        if isinstance(content, PipelineSpec):
            return content
        variables = self._user_variables(user)
        variables.update((row['key'], row['value']) for row in self._job_variables(facts))
        variables.update((variable['key'], variable['value']) for variable in given)
        base = merge_request_of(facts).get('base_sha') or facts['before_sha']
        compared = {**facts, 'before_sha': base}
        spec = self._compile(content, name=facts['ci_config_path'] or PIPELINE_FILE, repository=repository,
                             facts=compared, variables=variables, library=library, inputs=dict(inputs),
                             predefined=self._predefined(facts))
        hidden = Secrets(self.masked_values(facts['project_id']), [])
        name = hidden.mask((spec.name or '').encode()).decode()
        return dataclasses.replace(spec, name=name or None)     # a name is for all eyes

    def _predefined(self, facts: Members) -> dict[str, str]:
        """Return the predefined variables that are known before a pipeline exists."""
        more = {'CI_PROJECT_URL': f'{self.address}/{facts["project_path"]}', 'CI_PIPELINE_IID': facts['iid']}
        return texts_of({**server_variables(self.address), **more, **known_variables(facts)})

    def _user_variables(self, user: Row | None) -> dict[str, str]:
        """Return the variables about the user who starts a pipeline."""
        if user is None:
            return {}
        return texts_of(user_variables(user['id'], user['username'], self.address))

    def _repository(self, project: Row) -> contextlib.AbstractContextManager[Repository]:
        """Return a project's repository, to be entered; raise BadRequest when it has none."""
        if not project['import_url']:
            raise BadRequest({'base': [f'Project {project["path"]} has no import_url to read from; '
                                       'send both sha and content']})
        return Repository(project['import_url'], self.artifacts.incoming,
                          public_only=self.settings.public_imports_only)

    def _library(self, bridge: Row | None) -> IncludeLibrary:
        """Return what finds files that are included from elsewhere; `bridge` starts the child pipeline that asks."""
        read_artifact = None
        if bridge is not None:
            read_artifact = functools.partial(self._read_artifact, bridge['pipeline_id'])
        return IncludeLibrary(self.artifacts.incoming, FileCache(self.data / 'includes'), self._import_url,
                              self.settings.include_hosts, self.settings.include_map, read_artifact,
                              public_only=self.settings.public_imports_only)

    def _import_url(self, path: str) -> str | None:
        """Return the import_url of a project here, None when there is no such project or it has none."""
        row = self._one("""
            SELECT import_url
              FROM project
             WHERE path = :path COLLATE NOCASE
            """, path=path)
        if row is None:
            return None
        return row['import_url']

    def _read_artifact(self, pipeline_id: int, job_name: str, path: str) -> bytes:
        """Return a file out of the archive of a job of a pipeline."""
        row = self._one("""
            SELECT artifact.stored_as
              FROM job
              JOIN artifact ON artifact.job_id = job.id AND artifact.file_type = 'archive'
             WHERE job.pipeline_id = :pipeline_id AND job.name = :name AND job.retried = 0
            """, pipeline_id=pipeline_id, name=job_name)
        if row is None:
            raise BadRequest({'base': [f'the job {job_name} of the parent pipeline has no artifacts']})
        try:
            entry, size = self.artifacts.open_entry(row['stored_as'], path)
        except NotFound:
            raise BadRequest({'base': [f'the artifacts of {job_name} have no {path}']}) from None
        with entry:
            if size > MAX_FILE_SIZE:
                raise BadRequest({'base': [f'{path} has {size} bytes; {MAX_FILE_SIZE} are allowed']})
            return entry.read(MAX_FILE_SIZE)


# Pipelines ####################################################################################

PIPELINE_COLUMNS = """
    SELECT pipeline.*, pipeline.created_at AS pipeline_created_at, project.path AS project_path,
           user.username, user.created_at AS user_created_at
    """
PIPELINE_JOINS = """
     CROSS JOIN project ON project.id = pipeline.project_id
      LEFT JOIN user ON user.id = pipeline.user_id
    """
PIPELINE_ROWS = f"""
    {PIPELINE_COLUMNS}
      FROM pipeline
    {PIPELINE_JOINS}
    """
#: The index that finds pipelines by filters, newest first.
PIPELINE_INDEXES = {
    ('sha',): 'INDEXED BY pipeline_of_sha',
    ('project_id', 'ref', 'status'): 'INDEXED BY pipeline_ref',
    ('project_id', 'ref'): 'INDEXED BY pipeline_of_project_ref',
    ('project_id', 'status'): 'INDEXED BY pipeline_of_project_status',
    ('project_id',): 'INDEXED BY pipeline_of_project',
    ('ref', 'status'): 'INDEXED BY pipeline_of_ref_status',
    ('ref',): 'INDEXED BY pipeline_of_ref',
    ('status',): 'INDEXED BY pipeline_status',
    (): 'NOT INDEXED',
}

PIPELINE_FILTERS = {
    'project_id': 'pipeline.project_id = :project_id',
    'ref': 'pipeline.ref = :ref',
    'sha': 'pipeline.sha = :sha',
    'status': 'pipeline.status = :status',
    'source': 'pipeline.source = :source',
    'children': "(pipeline.source <> 'parent_pipeline' OR :children)",
    'name': 'pipeline.name = :name',
    'username': 'user.username = :username',
    'schedule_id': 'pipeline.schedule_id = :schedule_id',
    'created_after': 'pipeline.created_at > :created_after',
    'created_before': 'pipeline.created_at < :created_before',
    'updated_after': 'pipeline.updated_at > :updated_after',
    'updated_before': 'pipeline.updated_at < :updated_before',
    'yaml_errors': 'NOT :yaml_errors',      # a file with errors makes no pipeline here
    'scope': """CASE :scope
                WHEN 'running' THEN pipeline.status = 'running'
                WHEN 'pending' THEN pipeline.status IN ('pending', 'created', 'waiting_for_resource')
                WHEN 'finished' THEN pipeline.finished_at IS NOT NULL
                ELSE pipeline.tag = (:scope = 'tags')
                     AND pipeline.id IN (SELECT max(id)
                                           FROM pipeline
                                          WHERE project_id = :project_id
                                          GROUP BY ref, tag)
                END""",
}
PIPELINE_SORTS = {name: name for name in ('id', 'status', 'ref', 'updated_at', 'user_id')}


#: The facts of a plan that are columns of its pipeline.
PIPELINE_FACTS = ('ref', 'tag', 'sha', 'before_sha', 'source', 'commit_info', 'merge_request', 'schedule_id',
                  'protected', 'bridge_id', 'fetched_by')


class Pipelines(Compiling):
    """Pipelines are created, listed, canceled, retried and removed here."""

    def create_pipeline(self, project: Row | int | str, ref: str, *, sha: str | None = None, content: Any = None,
                        variables: Iterable[Members] = (), source: str = 'api', user: Row | None = None,
                        tag: bool = False, before_sha: str | None = None,
                        merge_request: Members | None = None, schedule: Row | None = None,
                        inputs: Members = MappingProxyType({}), bridge: Row | None = None) -> Row:
        """Create a pipeline and start its first stage; return it.

        The keywords are those of `plan_pipeline`. Pipelines of the ref for older commits are canceled
        according to `workflow:auto_cancel`. Raises BadRequest when the ref, the file or a job is invalid;
        nothing is created then.
        """
        return self.create_planned(self.plan_pipeline(
            project, ref, sha=sha, content=content, variables=variables, source=source, user=user, tag=tag,
            before_sha=before_sha, merge_request=merge_request, schedule=schedule, inputs=inputs, bridge=bridge))

    def create_planned(self, plan: PipelinePlan) -> Row:
        """Create the pipeline of a plan and start its first stage; return it.

        Raises BadRequest when the plan has no job outside `.pre` and `.post`.
        """
        kind = 'tag' if plan.facts['tag'] else 'branch'
        check_jobs(plan.spec, f'the {kind} {plan.facts["ref"]}')
        return self._insert_pipeline(plan.project, plan.user, plan.facts, plan.variables, plan.spec)

    def _insert_pipeline(self, project: Row, user: Row | None, facts: Members,
                         given: Sequence[Members], spec: PipelineSpec) -> Row:
        """Store a pipeline and its jobs, cancel what it supersedes, and start it."""
        now = self.clock()
        user_id = id_of(user)
        places = {stage: place for place, stage in enumerate(spec.stages)}
        columns = {name: facts[name] for name in PIPELINE_FACTS}
        with self.db.write() as c:
            numbered = c.execute("""
                UPDATE project
                   SET last_iid = last_iid + 1
                 WHERE id = :id
                RETURNING last_iid
                """, dict(id=project['id'])).fetchall()
            pipeline_id = insert(
                c, 'pipeline', **columns, project_id=project['id'], iid=numbered[0]['last_iid'], status='created',
                name=spec.name, auto_cancel=spec.auto_cancel, auto_cancel_failure=spec.auto_cancel_failure,
                variables=json.dumps(given), user_id=user_id,
                created_at=now, updated_at=now)
            for place, job in enumerate(sorted(spec.jobs, key=lambda job: places[job.stage])):
                insert(c, 'job', project_id=project['id'], pipeline_id=pipeline_id, user_id=user_id,
                       created_at=now + place / 1000,    # clients sort by it, and GitLab tells milliseconds
                       stage_idx=places[job.stage], tag_set_id=self._tag_set(c, job.tag_list),
                       shared=project['shared_runners_enabled'], protected=facts['protected'], **self._job_columns(job))
            self._supersede(c, facts, pipeline_id)
            self._process(c, pipeline_id)
        self._announce()
        log.info('pipeline %d of %s: %s at %s, from %s', pipeline_id, project['path'], facts['ref'], facts['sha'],
                 facts['source'])
        return self.find_pipeline(pipeline_id)

    @staticmethod
    def _job_columns(job: JobSpec) -> JSON:
        """Return the columns of a new job that follow from its spec alone."""
        needs = None
        if job.needs is not None:
            needs = json.dumps([need['name'] for need in job.needs])
        return {
            'kind': 'build' if job.trigger is None else 'bridge',
            'name': job.name,
            'stage': job.stage,
            'status': 'created',
            'when_': job.when,
            'allow_failure': job.allow_failure,
            'needs': needs,
            'resource_group': job.resource_group,
            'environment': (job.environment or {}).get('name'),
            'interruptible': job.interruptible,
            'timeout': job.timeout,
            'spec': spec_text(job),
        }

    def _supersede(self, c: sqlite3.Connection, facts: Members, pipeline_id: int) -> None:
        """Cancel what a new commit of a branch makes redundant in the pipelines of older ones."""
        if facts['tag'] or facts['source'] == 'parent_pipeline':
            return
        older = c.execute("""
            SELECT id, auto_cancel
              FROM pipeline
             WHERE project_id = :project_id AND ref = :ref AND NOT tag
               AND sha <> :sha AND id < :id AND auto_cancel <> 'none' AND finished_at IS NULL AND status <> 'manual'
            """, dict(project_id=facts['project_id'], ref=facts['ref'], sha=facts['sha'], id=pipeline_id)).fetchall()
        for pipeline in older:
            redundant = c.execute("""
                SELECT id
                  FROM job
                 WHERE pipeline_id = :id
                   AND (interruptible
                        OR :auto_cancel = 'conservative'
                           AND NOT EXISTS (SELECT 1
                                             FROM job
                                            WHERE pipeline_id = :id AND retried = 0
                                              AND started_at AND NOT interruptible))
                """, dict(id=pipeline['id'], auto_cancel=pipeline['auto_cancel'])).fetchall()
            self._cancel(c, redundant)
            self._process(c, pipeline['id'])

    @staticmethod
    def _tag_set(c: sqlite3.Connection, tags: Iterable[str]) -> int:
        """Return the id of a set of tags; a new set is matched with the runners there are."""
        wanted = json.dumps(clean_tags(tags))
        row = c.execute('SELECT id FROM tag_set WHERE tags = :tags', dict(tags=wanted)).fetchone()
        if row:
            return row['id']
        tag_set_id = insert(c, 'tag_set', tags=wanted)
        c.execute(MATCH_RUNNERS, dict(runner_id=None, tag_set_id=tag_set_id))
        return tag_set_id

    def is_open_to_job(self, project: Row, job: Row) -> bool:
        """Tell whether a job's token may reach a project: its own, or one whose allowlist names its own."""
        return job['project_id'] == project['id'] or self._one("""
            SELECT 1
              FROM job_token_allowlist
             WHERE project_id = :project_id AND allowed_id = :allowed_id
            """, project_id=project['id'], allowed_id=job['project_id']) is not None

    def allow_job_tokens(self, project: Row, other: Row, allowed: bool = True) -> None:
        """Let the jobs of another project start pipelines of a project, or no longer; NotFound if they may not."""
        values = dict(project_id=project['id'], allowed_id=other['id'])
        with self.db.write() as c:
            removed = c.execute("""
                DELETE FROM job_token_allowlist
                 WHERE project_id = :project_id AND allowed_id = :allowed_id
                """, values).rowcount
            if allowed:
                c.execute('INSERT INTO job_token_allowlist VALUES (:project_id, :allowed_id)', values)
            elif not removed:
                raise NotFound('Target project')

    def list_job_token_allowlist(self, project: Row) -> list[Row]:
        """Return the projects whose jobs may start pipelines of a project, itself first."""
        return self._all(f"""
            SELECT *
              FROM ({PROJECT_ROWS})
             WHERE id = :id OR id IN (SELECT allowed_id FROM job_token_allowlist WHERE project_id = :id)
             ORDER BY id <> :id, id
            """, id=project['id'])

    def trigger_pipeline(self, trigger: Row, ref: str, *, variables: Iterable[Members] = (),
                         inputs: Members = MappingProxyType({})) -> Row:
        """Create a pipeline on behalf of a trigger's owner: it runs what the repository has at `ref`."""
        user = self._one('SELECT * FROM user WHERE id = :id', id=trigger['user_id'])
        pipeline = self.create_pipeline(trigger['project_id'], ref, variables=variables, source='trigger', user=user,
                                        inputs=inputs)
        with self.db.write() as c:
            c.execute("""
                UPDATE trigger_token
                   SET last_used = :now
                 WHERE id = :id
                """, dict(now=self.clock(), id=trigger['id']))
        return pipeline

    def find_pipeline(self, pipeline: Row | int, project: Row | None = None) -> Row:
        """Return a pipeline (of `project`, if given) and its `coverage`; raise NotFound if there is none."""
        pipeline_id = pipeline['id'] if isinstance(pipeline, Row) else pipeline
        return self._find('Pipeline', f"""
            SELECT *, (SELECT avg(coverage)
                         FROM job INDEXED BY job_of_pipeline
                        WHERE pipeline_id = :id AND retried = 0) AS coverage
              FROM ({PIPELINE_ROWS} WHERE pipeline.id = :id)
             WHERE :project_id IS NULL OR project_id = :project_id
            """, id=pipeline_id, project_id=id_of(project))

    def list_pipelines(self, project: Row | None = None, *, ref: str | None = None, sha: str | None = None,
                       status: str | None = None, scope: str | None = None, source: str | None = None,
                       name: str | None = None, username: str | None = None, created_after: float | None = None,
                       created_before: float | None = None, updated_after: float | None = None,
                       updated_before: float | None = None, yaml_errors: bool | None = None,
                       schedule: Row | None = None, order_by: str = 'id',
                       sort: str = 'desc', limit: int = 20, offset: int = 0,
                       count_to: int = 10_001) -> tuple[list[Row], int]:
        """Return a page of a project's pipelines, or of all, newest first, and the number of all that match.

        Child pipelines are listed only when their source, `parent_pipeline`, is asked for.

        `scope` is GitLab's: `running`, `pending`, `finished`, `branches` or `tags` (the newest of each).
        Moments are seconds since 1970. `order_by` is `id`, `status`, `ref`, `updated_at` or `user_id`,
        `sort` is `asc` or `desc`. Counting stops at `count_to`.
        """
        values = dict(
            project_id=id_of(project), ref=ref, sha=sha, status=status, scope=scope, source=source, name=name,
            children=source is not None,
            username=username, created_after=created_after, created_before=created_before,
            updated_after=updated_after, updated_before=updated_before, yaml_errors=yaml_errors,
            schedule_id=id_of(schedule))
        where = conditions(PIPELINE_FILTERS, values)
        index = next(index for names, index in PIPELINE_INDEXES.items()
                     if all(values[name] is not None for name in names))
        direction = DIRECTIONS.get(sort, 'DESC')
        columns = dict.fromkeys((PIPELINE_SORTS.get(order_by, 'id'), 'id'))
        order = ', '.join(f'pipeline.{column} {direction}' for column in columns)
        with self.db.read() as c:
            total, = c.execute(f"""
                SELECT count(*)
                  FROM (SELECT 1
                          FROM pipeline {index}
                          LEFT JOIN user ON user.id = pipeline.user_id
                         WHERE {where}
                         LIMIT :count_to)
                """, {**values, 'count_to': count_to}).fetchone()
            rows = c.execute(f"""
                {PIPELINE_COLUMNS}
                  FROM pipeline {index}
                {PIPELINE_JOINS}
                 WHERE {where}
                 ORDER BY {order}
                 LIMIT :limit OFFSET :offset
                """, {**values, 'limit': limit, 'offset': offset}).fetchall()
        return rows, total

    def pipeline_duration(self, pipeline: Row) -> int | None:
        """Return the seconds during which jobs of a pipeline ran, waiting left out; None before the first."""
        periods = self._all("""
            SELECT started_at, coalesce(finished_at, :now) AS finished_at
              FROM job INDEXED BY job_of_pipeline
             WHERE pipeline_id = :id AND retried = 0 AND started_at IS NOT NULL
             ORDER BY started_at
            """, id=pipeline['id'], now=self.clock())
        if not periods:
            return None
        total = until = 0.0
        for period in periods:
            total += max(0, period['finished_at'] - max(period['started_at'], until))
            until = max(until, period['finished_at'])
        return int(total)

    def newest_pipelines(self, projects: Sequence[Row]) -> dict[int, Row]:
        """Return the newest pipelines of projects, by the project's id; one without any is left out."""
        ids = [project['id'] for project in projects]
        rows = self._all(f"""
            {PIPELINE_ROWS}
             WHERE pipeline.id IN (SELECT (SELECT max(id)
                                              FROM pipeline
                                             WHERE project_id = value AND source <> 'parent_pipeline')
                                     FROM json_each(:ids))
            """, ids=json.dumps(ids))
        return {row['project_id']: row for row in rows}

    def list_stages(self, pipelines: Sequence[Row]) -> dict[int, list[tuple[str, str]]]:
        """Return the stages of pipelines, by the pipeline's id: names and statuses in order."""
        found: dict[int, dict[str, list[tuple[str, bool]]]] = {pipeline['id']: {} for pipeline in pipelines}
        rows = self._all("""
            SELECT *, (SELECT stage
                         FROM job INDEXED BY job_of_pipeline
                        WHERE pipeline_id = kind.pipeline_id AND stage_idx = kind.stage_idx
                        LIMIT 1) AS stage
              FROM (SELECT DISTINCT pipeline_id, status, allow_failure, stage_idx
                      FROM job INDEXED BY job_outcome
                     WHERE pipeline_id IN (SELECT value FROM json_each(:ids)) AND retried = 0) AS kind
             ORDER BY pipeline_id, stage_idx
            """, ids=json.dumps(list(found)))
        for row in rows:
            stages = found[row['pipeline_id']]
            stages.setdefault(row['stage'], []).append((row['status'], row['allow_failure']))
        return {pipeline_id: [(stage, composite_status(jobs)) for stage, jobs in stages.items()]
                for pipeline_id, stages in found.items()}

    def cancel_pipeline(self, pipeline: Row) -> Row:
        """Cancel every job of a pipeline that has not finished; return the pipeline."""
        with self._change(pipeline['id']) as c:
            jobs = c.execute('SELECT id FROM job WHERE pipeline_id = :id', dict(id=pipeline['id'])).fetchall()
            self._cancel(c, jobs)
        return self.find_pipeline(pipeline)

    def retry_pipeline(self, pipeline: Row, user: Row | None = None) -> Row:
        """Retry every failed and canceled job of a pipeline and what was skipped after them; return it."""
        with self._change(pipeline['id']) as c:
            failed = c.execute("""
                SELECT *
                  FROM job
                 WHERE pipeline_id = :id AND retried = 0 AND status IN ('failed', 'canceled')
                 ORDER BY id
                """, dict(id=pipeline['id'])).fetchall()
            for job in failed:
                self._clone(c, job, user, status="'created'")
        return self.find_pipeline(pipeline)

    def delete_pipelines(self, pipelines: Sequence[Row]) -> None:
        """Remove pipelines with their jobs, traces and artifacts."""
        ids = json.dumps([pipeline['id'] for pipeline in pipelines])
        jobs = self._all("""
            SELECT id
              FROM job
             WHERE pipeline_id IN (SELECT value FROM json_each(:ids))
            """, ids=ids)
        self._delete_artifacts("""
            DELETE FROM artifact
             WHERE job_id IN (SELECT id
                                FROM job
                               WHERE pipeline_id IN (SELECT value FROM json_each(:ids)))
            RETURNING stored_as
            """, ids=ids)
        with self.db.write() as c:
            c.execute("""
                DELETE FROM pipeline
                 WHERE id IN (SELECT value FROM json_each(:ids))
                """, dict(ids=ids))
            for project_id in {pipeline['project_id'] for pipeline in pipelines}:
                self._hand_out_resources(c, project_id)
        self._announce()
        for job in jobs:
            self._attempt(f'the trace of job {job["id"]} stays', self.traces.remove, job['id'])

    def delete_project(self, project: Row) -> None:
        """Remove a project with its pipelines, jobs, traces and artifacts."""
        self.delete_pipelines(self._all('SELECT * FROM pipeline WHERE project_id = :id', id=project['id']))
        with self.db.write() as c:
            c.execute('DELETE FROM project WHERE id = :id', dict(id=project['id']))


# Bridges ######################################################################################

# A pipeline and those that it descends from, itself first.
UPSTREAM = """
    WITH RECURSIVE upstream (id, project_id, ref, source, bridge_id, distance) AS (
        SELECT id, project_id, ref, source, bridge_id, 0
          FROM pipeline
         WHERE id = :id
        UNION ALL
        SELECT pipeline.id, pipeline.project_id, pipeline.ref, pipeline.source, pipeline.bridge_id, distance + 1
          FROM upstream
          JOIN job ON job.id = upstream.bridge_id
          JOIN pipeline ON pipeline.id = job.pipeline_id
         WHERE distance < :limit)
    SELECT *
      FROM upstream
     ORDER BY distance
    """

# How many pipelines descend from one, counted up to a limit.
FAMILY = """
    WITH RECURSIVE family (id) AS (
        SELECT :id
        UNION ALL
        SELECT pipeline.id
          FROM family
          JOIN job ON job.pipeline_id = family.id AND job.kind = 'bridge'
          JOIN pipeline ON pipeline.bridge_id = job.id
         LIMIT :limit)
    SELECT count(*) AS pipelines
      FROM family
    """


class BridgeEnded(Exception):
    """A bridge starts nothing: its final status, why in GitLab's word, and why in words for people."""

    def __init__(self, status: str, reason: str, note: str) -> None:
        super().__init__(note)
        self.status = status
        self.reason = reason
        self.note = note


class Bridges(Pipelines):
    """Bridges start pipelines: child pipelines of their own project, and pipelines of other projects here."""

    def _announce(self) -> None:
        """Wake the threads that wait for a change of a job; start the pipelines of bridges whose turn has come."""
        super()._announce()
        while self._bridges_due and not self.db.closed:     # the sweep of the next start takes up what is left
            with contextlib.suppress(IndexError):   # another thread may be quicker
                self._start_bridge(self._bridges_due.popleft())

    def start_bridges(self) -> None:
        """Start the pipelines of bridges that a crash or a busy database has left without one."""
        left = self._all("""
            SELECT id, started_at
              FROM job INDEXED BY job_alive
             WHERE status IN ('running', 'canceling') AND kind = 'bridge'
               AND (started_at IS NULL OR started_at < :long_ago)
               AND NOT EXISTS (SELECT 1 FROM pipeline WHERE bridge_id = job.id)
            """, long_ago=self.clock() - self.settings.claim_timeout)
        for bridge in left:
            with self.db.write() as c:
                c.execute("""
                    UPDATE job
                       SET started_at = NULL
                     WHERE id = :id AND started_at IS :started_at AND status = 'running'
                    """, dict(bridge))
            self._start_bridge(bridge['id'])

    def _start_bridge(self, bridge_id: int) -> None:
        """Start the pipeline of a bridge, unless somebody else does or it is not its turn."""
        with self.db.write() as c:
            taken = c.execute("""
                UPDATE job
                   SET started_at = :now
                 WHERE id = :id AND kind = 'bridge' AND status = 'running' AND started_at IS NULL
                """, dict(id=bridge_id, now=self.clock())).rowcount
        if not taken:
            return
        bridge = self.find_job(bridge_id)
        trigger = stored_spec(bridge)['trigger']
        try:
            if trigger.get('upstream'):
                self._mirror_upstream(bridge, trigger)
                return
            self._start_downstream(bridge, trigger)
        except BridgeEnded as ended:
            self._end_bridge(bridge, ended.status, ended.reason, ended.note)
        except Busy as error:
            log.warning('bridge %d waits: %s', bridge_id, error)
        except CIError as error:
            self._end_bridge(bridge, 'failed', 'downstream_pipeline_creation_failed', '; '.join(error.problems))
        except Exception:
            log.exception('bridge %d', bridge_id)
            self._end_bridge(bridge, 'failed', 'data_integrity_failure', 'its pipeline could not be created')
        else:
            if not trigger['strategy']:
                self._end_bridge(bridge, 'success')

    def _end_bridge(self, bridge: Row, status: str, reason: str | None = None, note: str | None = None) -> None:
        """Finish a bridge and let its pipeline go on."""
        with self._change(bridge['pipeline_id']) as c:
            c.execute("""
                UPDATE job
                   SET status = :status, failure_reason = :reason, failure_message = :note, finished_at = :now
                 WHERE id = :id AND status = 'running'
                """, dict(id=bridge['id'], status=status, reason=reason, note=note, now=self.clock()))

    def _mirror_upstream(self, bridge: Row, trigger: Members) -> None:
        """Give a bridge the status of the newest pipeline of another project; let it wait until that has finished."""
        path = self._bridge_scope(bridge).expand(trigger['upstream'])
        project = self._one('SELECT * FROM project WHERE path = :path COLLATE NOCASE', path=path)
        if project is None:
            raise BridgeEnded('skipped', 'upstream_bridge_project_not_found',
                              f'the project {path} is not here; create it to have its status mirrored')
        with self.db.write() as c:
            c.execute("""
                UPDATE job
                   SET started_at = NULL
                 WHERE id = :id AND status = 'running'
                """, dict(id=bridge['id']))
        upstream = self._one("""
            SELECT id, status
              FROM pipeline
             WHERE project_id = :id AND ref = :ref AND NOT tag AND source <> 'parent_pipeline'
             ORDER BY id DESC
             LIMIT 1
            """, id=project['id'], ref=project['default_branch'])
        if upstream is not None and upstream['status'] in FINISHED:
            self._end_bridge(bridge, upstream['status'], note=f'pipeline {upstream["id"]} of {path}')

    def _start_downstream(self, bridge: Row, trigger: Members) -> Row:
        """Create the pipeline that a bridge starts; raise BridgeEnded when there is none to create."""
        scope = self._bridge_scope(bridge)
        variables = self._forwarded(bridge, trigger, scope)
        user = self._one('SELECT * FROM user WHERE id = :id', id=bridge['user_id'])
        if trigger['include'] is not None:
            self._check_family(bridge, child=True)
            content = Foreign({'include': trigger['include']})
            return self.create_pipeline(
                bridge['project_id'], bridge['ref'], sha=bridge['sha'], content=content,
                tag=bool(bridge['tag']), before_sha=bridge['before_sha'], variables=variables, user=user,
                source='parent_pipeline', merge_request=merge_request_of(bridge) or None, bridge=bridge)
        path = scope.expand(trigger['project'])
        project = self._one('SELECT * FROM project WHERE path = :path COLLATE NOCASE', path=path)
        if project is None:
            raise BridgeEnded('skipped', 'downstream_bridge_project_not_found',
                              f'the project {path} is not here; create it to have its pipeline started')
        if project['id'] == bridge['project_id']:
            raise BridgeEnded('failed', 'invalid_bridge_trigger',
                              'a project does not trigger itself; include a file to start a child pipeline')
        self._check_family(bridge, child=False)
        branch = scope.expand(trigger['branch']) or project['default_branch']
        return self.create_pipeline(project, branch, variables=variables, user=user, source='pipeline',
                                    inputs=trigger['inputs'], bridge=bridge)

    def _check_family(self, bridge: Row, *, child: bool) -> None:
        """Raise BridgeEnded when a further pipeline would go too deep, round in a circle, or be one too many."""
        above = self._all(UPSTREAM, id=bridge['pipeline_id'], limit=MAX_UPSTREAM)
        parents = itertools.takewhile(lambda pipeline: pipeline['source'] == 'parent_pipeline', above)
        if child and sum(1 for _ in parents) >= MAX_CHILD_LEVELS:
            raise BridgeEnded('failed', 'reached_max_descendant_pipelines_depth',
                              f'child pipelines have at most {MAX_CHILD_LEVELS} levels')
        seen = collections.Counter((row['project_id'], row['ref'], row['source']) for row in above)
        if not child and (len(above) > MAX_UPSTREAM or max(seen.values()) > 2):
            raise BridgeEnded('failed', 'pipeline_loop_detected', 'its pipeline would start itself again and again')
        family = self._all(FAMILY, id=above[-1]['id'], limit=MAX_FAMILY + 1)
        if family[0]['pipelines'] > MAX_FAMILY:
            raise BridgeEnded('failed', 'reached_max_pipeline_hierarchy_size',
                              f'more than {MAX_FAMILY} pipelines descend from one')

    def _bridge_scope(self, bridge: Row) -> Scope:
        """Return the variables that a bridge knows."""
        facts = {**dict(bridge), 'iid': bridge['pipeline_iid']}
        own = {
            'CI_PIPELINE_ID': str(bridge['pipeline_id']),
            'CI_JOB_ID': str(bridge['id']),
            'CI_JOB_NAME': bridge['name'],
            'CI_JOB_STAGE': bridge['stage'],
        }
        own.update(texts_of(environment_variables(stored_spec(bridge)['environment'])))
        given = self._reported(bridge) + [dict(row) for row in self._job_variables(facts)]
        given += json.loads(bridge['pipeline_variables']) + json.loads(bridge['variables'])
        spec = stored_spec(bridge)
        written = {key: Variable(value, key in spec['raw_variables']) for key, value in spec['variables'].items()}
        return Scope(self._predefined(facts), own, written,
                     {variable['key']: variable['value'] for variable in given})

    def _reported(self, bridge: Row) -> list[JSON]:
        """Return the variables that the jobs before a bridge have reported."""
        with self.db.read() as c:
            rows = self._dependencies(c, bridge)
        return [variable for row in rows for variable in json.loads(row['dotenv'])]

    def _forwarded(self, bridge: Row, trigger: Members, scope: Scope) -> list[JSON]:
        """Return the variables that a bridge gives to its pipeline, the variables in them replaced."""
        spec = stored_spec(bridge)
        found = []
        if trigger['forward'].get('yaml_variables', True):
            for key, value in spec['variables'].items():
                raw = key in spec['raw_variables']
                found.append({'key': key, 'value': value if raw else scope.expand(value), 'raw': raw})
        if trigger['forward'].get('pipeline_variables', False):
            found += json.loads(bridge['pipeline_variables'])
        return found + self._reported(bridge)

    def find_downstream(self, bridge: Row) -> Row | None:
        """Return the pipeline that a bridge has started, None when there is none."""
        return self._one(f"""
            {PIPELINE_ROWS}
             WHERE pipeline.bridge_id = :id
            """, id=bridge['id'])


# Schedules ####################################################################################

SCHEDULE_ROWS = """
    SELECT pipeline_schedule.*, user.username, user.created_at AS user_created_at,
           (SELECT max(id)
              FROM pipeline
             WHERE schedule_id = pipeline_schedule.id) AS last_pipeline_id
      FROM pipeline_schedule
      LEFT JOIN user ON user.id = pipeline_schedule.user_id
    """


def next_run(cron: str, cron_timezone: str, now: float) -> float:
    """Return the moment after `now` at which a cron expression of five fields fits the time of a zone.

    Raises BadRequest for an expression or a zone that is none, and for one that never fits.
    """
    try:
        zone = zoneinfo.ZoneInfo(cron_timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise BadRequest({'cron_timezone': [f'is invalid syntax: {cron_timezone!r} is no time zone such as '
                                            'Europe/Berlin']}) from None
    try:
        if len(cron.split()) != 5:
            raise ValueError('it has five fields: minute, hour, day, month, day of the week')
        moments = cronsim.CronSim(cron, datetime.fromtimestamp(now, zone))
        return next(moments).timestamp()
    except (cronsim.CronSimError, ValueError, StopIteration) as error:
        raise BadRequest({'cron': [f'is invalid syntax: {error or "it never fits"}']}) from None


class Schedules(Bridges):
    """Schedules: pipelines of a ref that are created again and again, at the times of a cron expression."""

    def list_schedules(self, project: Row, *, active: bool | None = None) -> list[Row]:
        """Return the schedules of a project; with `active` only those that are active, or those that are not."""
        return self._all(f"""
            {SCHEDULE_ROWS}
             WHERE project_id = :project_id AND (:active IS NULL OR active = :active)
             ORDER BY pipeline_schedule.id
            """, project_id=project['id'], active=active)

    def find_schedule(self, project: Row, schedule_id: int | str) -> Row:
        """Return a schedule of a project with its owner; raise NotFound if there is none."""
        return self._find('Pipeline Schedule', f"""
            {SCHEDULE_ROWS}
             WHERE pipeline_schedule.id = :id AND project_id = :project_id
            """, id=schedule_id, project_id=project['id'])

    def create_schedule(self, project: Row, user: Row | None, *, description: str, ref: str, cron: str,
                        cron_timezone: str = 'UTC', active: bool = True,
                        inputs: Members = MappingProxyType({})) -> Row:
        """Create a schedule that belongs to a user, and return it.

        `cron` has five fields, in the time of `cron_timezone` (``Europe/Berlin``). `inputs` are for the
        file's ``spec:inputs``. Raises BadRequest when the description is empty, the ref does not exist,
        or the expression or zone is invalid.
        """
        now = self.clock()
        columns = self._schedule_columns(project, description, ref, cron, cron_timezone)
        with self.db.write() as c:
            schedule_id = insert(c, 'pipeline_schedule', **columns, project_id=project['id'], user_id=id_of(user),
                                 active=bool(active), variables='[]', inputs=json.dumps(dict(inputs)), created_at=now,
                                 updated_at=now)
        return self.find_schedule(project, schedule_id)

    def edit_schedule(self, schedule: Row, *, description: str | None = None, ref: str | None = None,
                      cron: str | None = None, cron_timezone: str | None = None, active: bool | None = None,
                      inputs: Members | None = None) -> Row:
        """Change some of what `create_schedule` takes and return the schedule; its next run is reckoned anew."""
        project = self.find_project(schedule['project_id'])
        given = dict(description=description, ref=ref, cron=cron, cron_timezone=cron_timezone, active=active)
        wanted = {name: schedule[name] for name in given}
        wanted.update((name, value) for name, value in given.items() if value is not None)
        columns = self._schedule_columns(project, wanted['description'], wanted['ref'], wanted['cron'],
                                         wanted['cron_timezone'], known_ref=schedule['ref'])
        columns['active'] = bool(wanted['active'])
        columns['inputs'] = schedule['inputs']
        if inputs is not None:
            columns['inputs'] = json.dumps(dict(inputs))
        with self.db.write() as c:
            c.execute("""
                UPDATE pipeline_schedule
                   SET description = :description, ref = :ref, cron = :cron, cron_timezone = :cron_timezone,
                       active = :active, inputs = :inputs, next_run_at = :next_run_at, updated_at = :now
                 WHERE id = :id
                """, dict(columns, id=schedule['id'], now=self.clock()))
        return self.find_schedule(project, schedule['id'])

    def _schedule_columns(self, project: Row, description: str, ref: str, cron: str, cron_timezone: str, *,
                          known_ref: str | None = None) -> JSON:
        """Check what somebody wants of a schedule; return it as columns."""
        if not description.strip():
            raise BadRequest({'description': ["can't be blank"]})
        if ref != known_ref:
            ref = self._full_ref(project, ref)
        return {
            'description': description,
            'ref': ref,
            'cron': cron,
            'cron_timezone': cron_timezone,
            'next_run_at': next_run(cron, cron_timezone, self.clock()),
        }

    def _full_ref(self, project: Row, ref: str) -> str:
        """Return the full name of a branch or tag; raise BadRequest when the repository has none of that name."""
        check_ref(ref)
        if ref.startswith('refs/') or not project['import_url']:
            return next(iter(full_names(ref)))
        with self._repository(project) as repository:
            _, tag = repository.resolve(ref)
        if tag:
            return f'refs/tags/{ref}'
        return f'refs/heads/{ref}'

    def own_schedule(self, schedule: Row, user: Row) -> Row:
        """Make a user the owner of a schedule and return it."""
        with self.db.write() as c:
            c.execute("""
                UPDATE pipeline_schedule
                   SET user_id = :user_id, updated_at = :now
                 WHERE id = :id
                """, dict(id=schedule['id'], user_id=user['id'], now=self.clock()))
        return self.find_schedule(self.find_project(schedule['project_id']), schedule['id'])

    def delete_schedule(self, schedule: Row) -> None:
        """Remove a schedule; the pipelines that it created stay."""
        with self.db.write() as c:
            c.execute('DELETE FROM pipeline_schedule WHERE id = :id', dict(id=schedule['id']))

    def set_schedule_variable(self, schedule: Row, key: str, value: str, *, variable_type: str = 'env_var',
                              raw: bool = False, replace: bool = False) -> JSON:
        """Give the pipelines of a schedule a variable and return it.

        Raises BadRequest when there is one of that key already and `replace` is false, NotFound when
        there is none and `replace` is true.
        """
        variable = check_variable({'key': key, 'value': value, 'variable_type': variable_type, 'raw': raw})
        known = {item['key']: item for item in json.loads(schedule['variables'])}
        if key in known and not replace:
            raise BadRequest({'key': [f'({key}) has already been taken']})
        if key not in known and replace:
            raise NotFound('Pipeline Schedule Variable')
        known[key] = variable
        self._store_schedule_variables(schedule, list(known.values()))
        return variable

    def delete_schedule_variable(self, schedule: Row, key: str) -> JSON:
        """Remove a variable of a schedule and return it; raise NotFound if there is none."""
        known = {item['key']: item for item in json.loads(schedule['variables'])}
        if key not in known:
            raise NotFound('Pipeline Schedule Variable')
        removed = known.pop(key)
        self._store_schedule_variables(schedule, list(known.values()))
        return removed

    def _store_schedule_variables(self, schedule: Row, variables: Sequence[Members]) -> None:
        with self.db.write() as c:
            c.execute("""
                UPDATE pipeline_schedule
                   SET variables = :variables, updated_at = :now
                 WHERE id = :id
                """, dict(id=schedule['id'], variables=json.dumps(variables), now=self.clock()))

    def play_schedule(self, schedule: Row, user: Row | None = None) -> Row:
        """Create the pipeline of a schedule now, on behalf of `user` or its owner, and return it.

        Its next run stays when it was. Raises BadRequest as `create_pipeline` does.
        """
        owner = user
        if owner is None and schedule['user_id'] is not None:
            owner = self._one('SELECT * FROM user WHERE id = :id', id=schedule['user_id'])
        return self.create_pipeline(schedule['project_id'], schedule['ref'], source='schedule', user=owner,
                                    variables=json.loads(schedule['variables']), schedule=schedule,
                                    inputs=json.loads(schedule['inputs']))

    def run_due_schedules(self, now: float) -> None:
        """Create the pipelines of all schedules whose time has come; several missed runs are made up for by one."""
        due = self._all("""
            SELECT *
              FROM pipeline_schedule INDEXED BY schedule_due
             WHERE active AND next_run_at <= :now
             ORDER BY next_run_at
            """, now=now)
        for schedule in due:
            if self._postpone(schedule, now):
                self._run_schedule(schedule)

    def _postpone(self, schedule: Row, now: float) -> bool:
        """Move a schedule that is due to its next run; tell whether no other process was faster."""
        following = None
        with contextlib.suppress(BadRequest):   # a time zone may have been removed since
            following = next_run(schedule['cron'], schedule['cron_timezone'], now)
        with self.db.write() as c:
            moved = c.execute("""
                UPDATE pipeline_schedule
                   SET next_run_at = :following
                 WHERE id = :id AND active AND next_run_at = :next_run_at
                """, dict(id=schedule['id'], following=following, next_run_at=schedule['next_run_at']))
            return moved.rowcount > 0

    def _run_schedule(self, schedule: Row) -> None:
        """Create the pipeline of a schedule; what prevents it is logged, and stops no other."""
        try:
            self.play_schedule(schedule)
        except BadRequest as error:
            log.warning('schedule %s (%s) made no pipeline: %s', schedule['id'], schedule['description'],
                        '; '.join(error.problems))


# Releases #####################################################################################

RELEASE_ROWS = """
    SELECT release.*, project.path AS project_path, user.username, user.created_at AS user_created_at
      FROM release
      JOIN project ON project.id = release.project_id
      LEFT JOIN user ON user.id = release.user_id
    """


class Releases(Schedules):
    """What pipelines leave behind in a project: commit statuses, environments and releases; branches and tags."""

    def list_statuses(self, project: Row, sha: str, *, ref: str | None = None, stage: str | None = None,
                      name: str | None = None, pipeline_id: int | None = None, latest: bool = True,
                      newest_first: bool = False) -> list[Row]:
        """Return the jobs of a commit, with the columns of a commit status, oldest first.

        `latest` leaves out jobs that were retried.
        """
        direction = DIRECTIONS['desc' if newest_first else 'asc']
        return self._all(f"""
            SELECT job.id, job.status, job.name, job.stage, job.allow_failure, job.coverage, job.created_at,
                   job.started_at, job.finished_at, job.pipeline_id, job.user_id, pipeline.sha, pipeline.ref,
                   project.path AS project_path, user.username, user.created_at AS user_created_at
              FROM pipeline
              JOIN job ON job.pipeline_id = pipeline.id
              JOIN project ON project.id = pipeline.project_id
              LEFT JOIN user ON user.id = job.user_id
             WHERE pipeline.sha = :sha AND pipeline.project_id = :project_id
               AND (:latest = 0 OR job.retried = 0)
               AND (:ref IS NULL OR pipeline.ref = :ref)
               AND (:stage IS NULL OR job.stage = :stage)
               AND (:name IS NULL OR job.name = :name)
               AND (:pipeline_id IS NULL OR pipeline.id = :pipeline_id)
             ORDER BY job.id {direction}
            """, sha=sha, project_id=project['id'], latest=latest, ref=ref, stage=stage, name=name,
            pipeline_id=pipeline_id)

    def list_environments(self, project: Row, *, name: str | None = None, search: str = '') -> list[Row]:
        """Return the environments of a project, oldest first: of a name, with `search` in it.

        With each comes the `spec` of the last job that succeeded there, NULL before.
        """
        return self._all("""
            SELECT environment.*, job.spec
              FROM environment
              LEFT JOIN job ON job.id = environment.job_id
             WHERE environment.project_id = :project_id
               AND (:name IS NULL OR environment.name = :name)
               AND instr(lower(environment.name), :search)
             ORDER BY environment.id
            """, project_id=project['id'], name=name, search=search.lower())

    def find_environment(self, project: Row, environment_id: int) -> Row:
        """Return an environment of a project; raise NotFound if there is none."""
        for row in self.list_environments(project):
            if row['id'] == environment_id:
                return row
        raise NotFound('Environment')

    def list_refs(self, project: Row, kind: str, search: str = '') -> dict[str, GitRef]:
        """Return the branches (`kind` is ``heads``) or tags (``tags``) of a project's repository, by their names.

        `search` is a part of the name, ``^`` and ``$`` stand for its beginning and end. Raises BadRequest
        when the repository cannot be read.
        """
        with self._repository(project) as repository:
            refs = repository.list_refs(kind)
        start = search.startswith('^')
        end = search.endswith('$')
        part = search.removeprefix('^').removesuffix('$')
        return {name: ref for name, ref in refs.items()
                if part in name and (not start or name.startswith(part)) and (not end or name.endswith(part))}

    def find_commit(self, project: Row, name: str) -> str:
        """Return the sha that a branch, a tag or the first digits of a sha stand for; raise NotFound if there is none.

        A ref with a pipeline stands for the commit of its newest one, any other for what the repository says.
        """
        short = bool(re.fullmatch('[0-9a-f]{7,64}', name))
        found = self._all("""
            SELECT sha
              FROM (SELECT sha
                      FROM pipeline INDEXED BY pipeline_of_project_ref
                     WHERE project_id = :project_id AND ref = :name
                     ORDER BY id DESC
                     LIMIT 1)
             UNION ALL
            SELECT sha
              FROM (SELECT sha
                      FROM pipeline INDEXED BY pipeline_of_sha
                     WHERE :short AND sha BETWEEN :name AND :name || 'g' AND project_id = :project_id
                     LIMIT 1)
            """, project_id=project['id'], name=name, short=short)
        for row in found:
            return row['sha']
        if len(name) in (40, 64) and self.describe_commit(project, name):
            return name
        if project['import_url']:
            for kind in ('heads', 'tags'):
                refs = self.list_refs(project, kind)
                if name in refs:
                    return refs[name].sha
        raise NotFound('Commit')

    def describe_refs(self, project: Row, refs: Iterable[GitRef]) -> dict[GitRef, JSON]:
        """Return the commits of branches or tags as `Repository.describe_refs` does; each is fetched once."""
        found = {ref: self._described.get(ref.target) for ref in refs}
        unknown = [ref for ref, info in found.items() if info is None]
        if unknown:
            with self._repository(project) as repository:
                infos = repository.describe_refs(unknown)
            for ref, info in zip(unknown, infos, strict=True):
                found[ref] = self._remember(ref.target, info)
        return cast('dict[GitRef, JSON]', found)

    def describe_commit(self, project: Row, sha: str) -> JSON | None:
        """Return what `Repository.commit` says of a commit, None if it cannot be read."""
        info = self._described.get(sha)
        if info is None and project['import_url']:
            with contextlib.suppress(BadRequest), self._repository(project) as repository:
                info = self._remember(sha, repository.commit(sha))
        return info

    def _remember(self, object_id: str, info: JSON) -> JSON:
        """Remember what git tells of a commit or tag, which is never something else; return it."""
        if len(self._described) > MAX_DESCRIBED_REFS:
            self._described.clear()
        self._described[object_id] = info
        return info

    def list_releases(self, project: Row) -> list[Row]:
        """Return the releases of a project, newest first."""
        return self._all(f"""
            {RELEASE_ROWS}
             WHERE project_id = :project_id
             ORDER BY released_at DESC, release.id DESC
            """, project_id=project['id'])

    def find_release(self, project: Row, tag: str) -> Row:
        """Return the release of a tag of a project; raise NotFound if there is none."""
        return self._find('', f"""
            {RELEASE_ROWS}
             WHERE project_id = :project_id AND tag = :tag
            """, project_id=project['id'], tag=tag)

    def create_release(self, project: Row, tag: str, *, name: str = '', description: str = '', ref: str | None = None,
                       links: Sequence[Members] = (), milestones: Sequence[str] = (),
                       released_at: float | None = None, user_id: int | None = None) -> Row:
        """Create the release of a tag and return it.

        minici makes no tags: of one that the repository does not have, the release notes the commit of
        `ref`. Raises Conflict when the tag has a release, and BadRequest when no git tag can have such a name,
        or when the repository has no such tag and no `ref` is given.
        """
        check_ref(tag)
        sha = None
        if project['import_url']:
            with self._repository(project) as repository:
                known_tag = repository.list_refs('tags').get(tag)
                if known_tag is not None:
                    sha = known_tag.sha
                elif ref is None:
                    raise BadRequest(f'Ref is not specified, and the repository has no tag {tag}')
                elif re.fullmatch('[0-9a-f]{40}', ref):
                    sha = ref
                else:
                    sha, _ = repository.resolve(ref)
        now = self.clock()
        numbered = [{**link, 'id': number} for number, link in enumerate(links, 1)]
        with self.db.write() as c:
            known = c.execute("""
                SELECT 1
                  FROM release
                 WHERE project_id = :project_id AND tag = :tag
                """, dict(project_id=project['id'], tag=tag)).fetchone()
            if known:
                raise Conflict('Release already exists')
            insert(c, 'release', project_id=project['id'], tag=tag, name=name or tag, description=description, sha=sha,
                   links=json.dumps(numbered), milestones=json.dumps(list(milestones)), user_id=user_id,
                   created_at=now, released_at=released_at or now)
        return self.find_release(project, tag)

    def delete_release(self, release: Row) -> None:
        """Remove a release; its tag stays."""
        with self.db.write() as c:
            c.execute('DELETE FROM release WHERE id = :id', dict(id=release['id']))


# Retention ####################################################################################

UPKEEP_LOCK = 'upkeep.lock'     # in the data directory: held by the server that sweeps

#: Every pipeline, oldest first, with what retention asks of it.
PIPELINE_SIZES = """
    SELECT pipeline.id, pipeline.project_id, pipeline.ref, pipeline.status, pipeline.finished_at, live_ref.seen_at,
           (SELECT json_group_array(job.id)
              FROM job
             WHERE job.pipeline_id = pipeline.id) AS jobs,
           (SELECT coalesce(sum(artifact.size), 0)
              FROM job
              JOIN artifact ON artifact.job_id = job.id
             WHERE job.pipeline_id = pipeline.id) AS artifacts,
           pipeline.status = 'success' AND pipeline.id = (
               SELECT max(other.id)
                 FROM pipeline AS other
                WHERE other.project_id = pipeline.project_id
                  AND other.ref = pipeline.ref
                  AND other.status = 'success') AS last_success
      FROM pipeline
      LEFT JOIN live_ref ON live_ref.project_id = pipeline.project_id AND live_ref.ref = pipeline.ref
     ORDER BY pipeline.id
    """


def is_over_an_hour_old(path: Path) -> bool:
    """Tell whether a file was last written over an hour ago, by the system's clock; False when it is gone."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime < time.time() - 3600
    return False


def remove_path(path: Path) -> None:
    """Remove a file or a directory with all that it holds."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Retention(Releases):
    """What keeps the disk and the database small: old pipelines, expired artifacts and leftovers go."""

    def prune(self, *, dry_run: bool = False) -> list[Row]:
        """Remove finished pipelines that are too old, or too much together; return them, oldest first.

        A pipeline goes at `retention_age`. The last success of a ref stays while the ref exists and for
        `retention_age` after it was last seen. While all traces and artifacts together have more than
        `retention_size` bytes, or those of one project nearly its `project_share`, the project that has most
        of them loses its oldest pipeline, last successes after all others. `dry_run` only returns what would go.
        """
        rows = self._all(PIPELINE_SIZES)
        gone = self._too_old(rows, dry_run=dry_run)
        gone |= self._too_much([row for row in rows if row['id'] not in gone])
        removed = [row for row in rows if row['id'] in gone]
        for start in range(0, 0 if dry_run else len(removed), DELETED_AT_ONCE):
            self.delete_pipelines(removed[start:start + DELETED_AT_ONCE])
        if removed and not dry_run:
            log.info('upkeep: removed %d old pipelines', len(removed))
        return removed

    def _too_old(self, rows: Sequence[Row], *, dry_run: bool) -> set[int]:
        """Return the ids of the pipelines past `retention_age`, without the last successes that stay."""
        age = parse_duration(self.settings.retention_age)
        if age is None:
            return set()
        latest = self.clock() - age
        old = [row for row in rows if row['finished_at'] and row['finished_at'] <= latest]
        gone = {row['id'] for row in old}
        successes = collections.defaultdict(list)
        for row in old:
            if row['last_success']:
                successes[row['project_id']].append(row)
        deadline = time.monotonic() + REFS_TIMEOUT
        for project_id, lasting in successes.items():
            project = self.find_project(project_id)
            staying = self._lasting(project, lasting, latest, deadline, dry_run=dry_run)
            gone.difference_update(row['id'] for row in staying)
        return gone

    def _lasting(self, project: Row, rows: Sequence[Row], latest: float, deadline: float, *,
                 dry_run: bool) -> Sequence[Row]:
        """Return which last successes of a project's refs stay: `latest` is when their ref must have been seen.

        Without a repository nobody knows which refs exist: the newest UNKNOWN_REFS of them stay.
        """
        if not project['import_url']:
            return rows[-UNKNOWN_REFS:]
        now = self.clock()
        unseen = {row['ref'] for row in rows if not row['seen_at'] or now - row['seen_at'] >= REFS_SEEN_FOR}
        live = self._live_refs(project, unseen, deadline)
        if live and not dry_run:
            with self.db.write() as c:
                c.executemany("""
                    INSERT INTO live_ref (project_id, ref, seen_at)
                    VALUES (:project_id, :ref, :now)
                    ON CONFLICT (project_id, ref) DO UPDATE SET seen_at = :now
                    """, [dict(project_id=project['id'], ref=ref, now=now) for ref in live])
        return [row for row in rows if row['ref'] in live or row['seen_at'] and row['seen_at'] > latest]

    def _live_refs(self, project: Row, names: set[str], deadline: float) -> set[str]:
        """Return which of the refs a project's repository has; all of them when it does not answer by `deadline`."""
        if names and time.monotonic() < deadline:
            with contextlib.suppress(CIError, OSError):
                with Repository(project['import_url'], self.artifacts.incoming,
                                public_only=self.settings.public_imports_only) as repository:
                    return names & repository.refs()
        return names

    def _too_much(self, rows: Sequence[Row]) -> set[int]:
        """Return the ids of the pipelines to remove until the others fit into `retention_size` and `project_share`."""
        sizes: collections.Counter[int] = collections.Counter()
        removable = collections.defaultdict(list)   # by project, what goes first at the end
        for row in rows:
            sizes[row['project_id']] += self._stored_size(row)
            if row['finished_at']:
                removable[row['project_id']].append(row)
        for finished in removable.values():
            finished.sort(key=lambda row: (row['last_success'], row['id']), reverse=True)
        excess = sizes.total() - self.settings.retention_size
        room = self._project_share() * 0.9      # what comes until the next time needs a place, too
        gone = set()
        while removable:
            project_id = max(removable, key=sizes.__getitem__)
            if excess <= 0 and sizes[project_id] <= room:
                break
            row = removable[project_id].pop()
            if not removable[project_id]:
                del removable[project_id]
            size = self._stored_size(row)
            sizes[project_id] -= size
            excess -= size
            gone.add(row['id'])
        return gone

    def _project_share(self) -> int:
        """Return how many bytes of the disk the artifacts of one project may take."""
        return reserved_bytes(self.settings.project_share, shutil.disk_usage(self.data).total)

    def _stored_size(self, row: Row) -> int:
        """Return how many bytes the artifacts and traces of a pipeline have."""
        return row['artifacts'] + sum(self.traces.size(job_id) or 0 for job_id in json.loads(row['jobs']))

    def _remove_expired(self, now: float) -> None:
        """Delete the artifacts whose time is over."""
        if self._one('SELECT 1 FROM artifact WHERE expire_at <= :now', now=now):
            self._delete_artifacts("""
                DELETE FROM artifact
                 WHERE expire_at <= :now
                RETURNING stored_as
                """, now=now)

    def _tidy(self) -> None:
        """Delete status changes that every callback has heard of, silent machines, and tag sets that no job has."""
        with self.db.write() as c:
            c.execute('DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - :kept', dict(kept=EVENTS_KEPT))
            c.execute('DELETE FROM runner_manager WHERE contacted_at < :since', dict(since=self.clock() - MANAGER_AGE))
        unused = self._all("""
            SELECT id FROM tag_set
             WHERE NOT EXISTS (SELECT 1 FROM job INDEXED BY job_of_tag_set WHERE tag_set_id = tag_set.id)
             LIMIT 1000
            """)
        for row in unused:
            with self.db.write() as c:
                c.execute("""
                    DELETE FROM runner_tag_set
                     WHERE tag_set_id = :id
                       AND NOT EXISTS (SELECT 1 FROM job INDEXED BY job_of_tag_set WHERE tag_set_id = :id)
                    """, dict(id=row['id']))
                c.execute("""
                    DELETE FROM tag_set
                     WHERE id = :id
                       AND NOT EXISTS (SELECT 1 FROM job INDEXED BY job_of_tag_set WHERE tag_set_id = :id)
                    """, dict(id=row['id']))

    def _collect_garbage(self) -> None:
        """Delete files over an hour old that no row refers to, and settle the traces of jobs that were canceled."""
        for part in self._leftovers():
            self._attempt(f'{part} stays', remove_path, part)
        for job_id in self.traces.unsettled():
            if not self._all(f'SELECT 1 FROM job WHERE id = :id AND status IN {ALIVE}', id=job_id):
                self.traces.settle(job_id)  # it was canceled before its runner could send the trace again
        self.artifacts.remove(self._artifacts_without_row())
        for job_id in self._traces_without_row():
            self._attempt(f'the trace of job {job_id} stays', self.traces.remove, job_id)

    def _leftovers(self) -> list[Path]:
        """Return what uploads and replaced traces left behind over an hour ago."""
        parts = [*self.artifacts.incoming.iterdir(), *self.traces.parts()]
        return [part for part in parts if is_over_an_hour_old(part)]

    def _artifacts_without_row(self) -> list[str]:
        """Return the stored names of files over an hour old that no artifact refers to."""
        hour_ago = time.time() - 3600
        old = [name for name, modified in self.artifacts.stored() if modified < hour_ago]
        return self._without_row(old, """
            SELECT value
              FROM json_each(:given)
             WHERE value NOT IN (SELECT stored_as FROM artifact)
            """)

    def _traces_without_row(self) -> list[int]:
        """Return the ids of jobs that have a trace and no row."""
        return self._without_row(self.traces.stored(), """
            SELECT value
              FROM json_each(:given)
             WHERE NOT EXISTS (SELECT 1 FROM job WHERE id = value)
            """)

    def _without_row(self, given: Iterable[Any], statement: str) -> list[Any]:
        """Return the names or numbers among `given` for which `statement` finds no row."""
        return [row['value'] for row in self._all(statement, given=json.dumps(list(given)))]


# Queue ########################################################################################

# The oldest pending job among the tag sets that a runner serves: one seek for each set and protection.
OLDEST = """
    SELECT min(oldest) AS id
      FROM (SELECT (SELECT queued.id
                      FROM job AS queued INDEXED BY {index}
                     WHERE queued.status = 'pending' AND queued.token_hash IS NULL
                       AND {reach}
                       AND queued.tag_set_id = served.tag_set_id
                       AND queued.protected = ref.protected
                       AND (:job_age IS NULL OR queued.queued_at <= :now - :job_age)
                       AND (:pipeline_id IS NULL OR queued.pipeline_id = :pipeline_id)
                     ORDER BY queued.id
                     LIMIT 1) AS oldest
              FROM runner_tag_set AS served
              JOIN ({refs}) AS ref {projects}
             WHERE served.runner_id = :runner_id)
    """
#: The jobs that a runner reaches, by its type: of projects with shared runners, or of those that it is enabled for.
REACHES = {
    'instance_type': dict(index='job_pending_shared', reach='queued.shared = 1', projects=''),
    'project_type': dict(index='job_pending_project', reach='queued.project_id = enabled.project_id',
                         projects='JOIN runner_project AS enabled ON enabled.runner_id = served.runner_id'),
}
#: The jobs that a runner may take, by its access level: those of all refs, or of protected ones.
REFS = {
    'not_protected': 'SELECT 0 AS protected UNION ALL SELECT 1',
    'ref_protected': 'SELECT 1 AS protected',
}
#: By type and access level of the runner.
QUEUES = {(kind, level): OLDEST.format(**reach, refs=refs)
          for kind, reach in REACHES.items() for level, refs in REFS.items()}
CANDIDATES = {kind: f"""
    SELECT *, (SELECT ref FROM pipeline WHERE id = pipeline_id) AS ref,
           (SELECT status FROM pipeline WHERE id = pipeline_id) AS pipeline_status
      FROM job
     WHERE id = ({oldest})
    """ for kind, oldest in QUEUES.items()}
PREPARE = """
    UPDATE job
       SET runner_id = :runner_id, system_id = :system_id, token_hash = :token_hash, claimed_at = :now,
           attempts = attempts + 1
     WHERE id = :id AND status = 'pending' AND token_hash IS NULL
    """
# A claimed job is pending until its runner accepts it; for most runners that is at once.
CLAIM = """
    UPDATE job
       SET runner_id = :runner_id, system_id = :system_id, token_hash = :token_hash, claimed_at = :now,
           attempts = attempts + 1, status = 'running', started_at = :now
     WHERE id = :id AND status = 'pending' AND token_hash IS NULL
    """

ACCEPT = """
    UPDATE job
       SET status = 'running', started_at = :now
     WHERE id = :id AND status = 'pending' AND token_hash = :token_hash
    RETURNING *
    """

# A job that was being canceled ends as canceled, whatever its runner says.
FINISH = f"""
    UPDATE job
       SET status = CASE status WHEN 'canceling' THEN 'canceled' ELSE :status END,
           failure_reason = CASE status WHEN 'canceling' THEN NULL ELSE :failure_reason END,
           failure_message = :failure_message,
           exit_code = :exit_code, allow_failure = allow_failure OR :allowed,
           coverage = :coverage, finished_at = max(:now, coalesce(started_at, :now))
     WHERE id = :id AND status IN {HELD} AND token_hash IS :token_hash
    RETURNING *
    """

#: What a job may ask for that older runners would leave out, by the feature that they lack (GitLab's RUNNER_FEATURES).
KEYWORDS_BY_FEATURE = {
    'upload_multiple_artifacts': 'artifacts:reports',
    'artifacts_exclude': 'artifacts:exclude',
    'multi_build_steps': 'release',
    'return_exit_code': 'allow_failure:exit_codes',
    'fallback_cache_keys': 'cache:fallback_keys',
    'refspecs': 'merge request pipelines',
}

#: What a client is taken to support that announces no features, as no runner does: whatever it finds in a job, but
#: not the further steps of a release, which such clients never ran.
ASSUMED_FEATURES = frozenset(KEYWORDS_BY_FEATURE) - {'multi_build_steps'}


def unsupported_keywords(job: Row, features: Container[str]) -> list[str]:
    """Return what a job asks for that a runner with these features would leave out."""
    spec = stored_spec(job)
    artifacts = spec['artifacts']
    needed = {
        'upload_multiple_artifacts': any(item.get('artifact_type', 'archive') != 'archive' for item in artifacts),
        'artifacts_exclude': any(item.get('exclude') for item in artifacts),
        'multi_build_steps': spec['release'],
        'return_exit_code': spec['allow_failure_exit_codes'],
        'fallback_cache_keys': any(item.get('fallback_keys') for item in spec['cache']),
        'refspecs': job['ref'].startswith('refs/merge-requests/'),
    }
    return [KEYWORDS_BY_FEATURE[feature] for feature, wanted in needed.items() if wanted and feature not in features]


def find_coverage(lines: Iterable[bytes], pattern: str) -> float | None:
    """Return the first number that a job's coverage pattern finds; raise TimeoutError when that takes too long."""
    until = time.monotonic() + PATTERN_TIMEOUT
    for line in lines:
        text = line.decode('utf-8', 'replace').rstrip('\r')
        left = max(until - time.monotonic(), 0.001)
        found = regex.findall(pattern, text, timeout=left) or ['']
        last = found[-1]
        if isinstance(last, tuple):
            last = last[-1]     # several groups: the last one counts
        percentage = re.search(r'[0-9]+(?:\.[0-9]+)?', last)
        if percentage:
            return float(percentage[0])
    return None


@dataclass(frozen=True, eq=False)
class Claim:
    """A job that has just been handed to a runner.

    `token` is the only readable copy of the job's token. `dependencies` are the jobs of earlier
    stages, each with `artifacts_filename` and `artifacts_size` (NULL without an archive), `variables`
    those of the instance and the project. The job has two columns more: `moved_on` tells that its ref
    has a pipeline for a later commit, `queue_size` how many jobs of its project were pending.
    """

    job: Row
    token: str
    dependencies: Sequence[Row]
    variables: Sequence[Row] = ()


class Queue(Retention):
    """What runners do: claim a job, append to its trace, store its artifacts, finish it; and the sweep behind them."""

    def __init__(self, db: str | os.PathLike[str] | None, data: str | os.PathLike[str] | None,
                 clock: Callable[[], float], fsync: bool, settings: Settings) -> None:
        super().__init__(db, data, clock, fsync, settings)
        self._listening_since = self._swept_at = clock()
        self._ticked_at = time.monotonic()
        self._tidied_at = 0.0
        self._searched: dict[int, int] = {}     # by runner: the queue's version when it last asked in vain

    def poll(self, runner: Row, *, last_update: str | None = None, job_age: int | None = None,
             system_id: str | None = None, features: Collection[str] | None = None) -> Claim | None:
        """Return what `request_job` does, without a search while nothing has become claimable since the last in vain.

        `runner` must have been read just now, by `find_runner`: its `version` and `due_at` tell.
        """
        now = self.clock()
        is_due = runner['due_at'] is not None and runner['due_at'] <= now
        if is_due or abs(now - self._swept_at) >= SWEEP_INTERVAL:
            return self.request_job(runner, job_age=job_age, system_id=system_id, features=features)
        if not runner['active'] or last_update and last_update == self.queue_value(runner):
            return None
        if self._searched.get(runner['id']) == runner['version']:
            return None
        claim = self._claim(runner, now, job_age=job_age, system_id=system_id, features=features)
        if claim is None and job_age is None:
            self._searched[runner['id']] = runner['version']
        return claim

    def request_job(self, runner: Row, *, last_update: str | None = None, job_age: int | None = None,
                    system_id: str | None = None, pipeline: Row | None = None,
                    features: Collection[str] | None = None) -> Claim | None:
        """Claim the oldest job that a runner may take and return it, or None when there is none.

        The job is `running` from then on, with a token and an empty trace of its own. A paused runner
        gets nothing; `last_update` equal to `queue_value` skips the search; `job_age` leaves out jobs
        that have waited for fewer seconds. `system_id` names the runner manager. With `pipeline` only
        its jobs are looked at. `features` are the names that a runner announces, None for every one:
        jobs that need another fail as `runner_unsupported`, and with `two_phase_job_commit` the job
        stays `pending` until the runner accepts it (`update_job`).
        """
        now = self.clock()
        started = self._catch_up(now)
        if not runner['active'] or not started and last_update and last_update == self.queue_value(runner):
            return None
        return self._claim(runner, now, job_age=job_age, system_id=system_id, features=features,
                           pipeline_id=id_of(pipeline))

    def _claim(self, runner: Row, now: float, *, job_age: int | None, system_id: str | None,
               features: Collection[str] | None, pipeline_id: int | None = None) -> Claim | None:
        """Claim the oldest job that a runner may take, or return None."""
        wanted = dict(runner_id=runner['id'], system_id=system_id, now=now, job_age=job_age, pipeline_id=pipeline_id)
        kind = runner['runner_type'], runner['access_level']
        if self._all(QUEUES[kind], **wanted)[0]['id'] is None:  # an idle poll takes no lock
            return None
        accepted = 'two_phase_job_commit' not in (features or ())
        token = self.new_token('mcb')
        wanted['token_hash'] = token_hash(token)
        with self.db.write() as c:
            while oldest := c.execute(CANDIDATES[kind], wanted).fetchone():
                dependencies = self._dependencies(c, oldest)
                refusal = self._refusal(c, oldest, runner, features, dependencies)
                wanted['id'] = oldest['id']
                if refusal is None:
                    break
                c.execute(PREPARE, wanted)
                taken = c.execute('SELECT * FROM job WHERE id = :id', dict(id=oldest['id'])).fetchone()
                self._end(c, taken, 'failed', refusal[0], message=refusal[1])
            else:
                return None
            c.execute(CLAIM if accepted else PREPARE, wanted)
            if accepted and oldest['pipeline_status'] != 'running':
                self._start_pipeline(c, oldest['pipeline_id'], now)
            job = self._claimed_job(c, oldest['id'], now)
            claim = Claim(job, token, dependencies, self._job_variables(job, environment_of(job)))
        self._announce()
        return claim

    def _refusal(self, c: sqlite3.Connection, job: Row, runner: Row, features: Container[str] | None,
                 dependencies: Sequence[Row]) -> tuple[str, str] | None:
        """Return why a job fails that its runner would run without a keyword or an archive of it: reason, message."""
        lacking = [] if features is None else unsupported_keywords(job, features)
        if lacking:
            return 'runner_unsupported', (f'runner {runner["id"]} does not support {", ".join(lacking)}; '
                                          'update it, or give the job a tag that only newer runners have')
        missing = self._missing_dependency(c, job, dependencies)
        if missing:
            return 'missing_dependency_failure', missing
        return None

    def _catch_up(self, now: float) -> bool:
        """Start the delayed jobs that are due, and sweep now and then; tell whether there were such jobs.

        Whoever polls does not wait for this: while the database is locked it is left to the next poll.
        """
        due = self._due_pipelines(now)
        overdue = abs(now - self._swept_at) >= SWEEP_INTERVAL
        if not due and not overdue or not self.db.is_writable():
            return False
        self._start_due(now)
        if overdue:
            self.sweep()
        return bool(due)

    @staticmethod
    def _claimed_job(c: sqlite3.Connection, job_id: int, now: float) -> Row:
        """Return the row of a job within the transaction that claims it, with what only its runner is told."""
        return c.execute(f"""
            SELECT claimed.*,
                   EXISTS (SELECT 1
                             FROM pipeline INDEXED BY pipeline_of_project_ref
                            WHERE project_id = claimed.project_id AND ref = claimed.ref
                              AND id > claimed.pipeline_id AND sha <> claimed.sha) AS moved_on,
                   (SELECT jobs
                      FROM job_tally
                     WHERE project_id = claimed.project_id AND status = 'pending')
                   + (claimed.status <> 'pending') AS queue_size
              FROM ({JOB_ROWS}
                     WHERE job.id = :id) AS claimed
            """, dict(id=job_id, now=now)).fetchone()

    def _accept(self, c: sqlite3.Connection, job: Row, now: float) -> list[Row]:
        """Let a claimed job run; return its row, or nothing if it is not pending by this claim any more."""
        accepted = c.execute(ACCEPT, dict(id=job['id'], token_hash=job['token_hash'], now=now)).fetchall()
        if accepted:
            self._start_pipeline(c, job['pipeline_id'], now)
        return accepted

    def _accepted(self, job: Row) -> Row:
        """Return a job that its runner works on; one that was being prepared runs from now on.

        Whatever a runner sends but "still preparing" accepts its job, so that no lost request ends one.
        """
        if job['status'] != 'pending':
            return job
        with self.db.write() as c:
            accepted = self._accept(c, job, self.clock())
        self._announce()
        if not accepted:
            self._check_alive(job)
            return self.find_job(job)   # another request of the runner accepted it
        return accepted[0]

    def return_job(self, claim: Claim) -> None:
        """Put a job back into the queue whose claim could not be answered; the claim counts as no attempt."""
        with self._change(claim.job['pipeline_id']) as c:
            c.execute("""
                UPDATE job
                   SET status = 'pending', runner_id = NULL, system_id = NULL, token_hash = NULL, claimed_at = NULL,
                       started_at = NULL, attempts = attempts - 1
                 WHERE id = :id AND status IN ('pending', 'running') AND token_hash = :token_hash
                """, dict(id=claim.job['id'], token_hash=claim.job['token_hash']))

    @staticmethod
    def _start_pipeline(c: sqlite3.Connection, pipeline_id: int, now: float) -> None:
        """Update a pipeline's status when one of its jobs starts to run."""
        c.execute("""
            UPDATE pipeline
               SET status = 'running', started_at = coalesce(started_at, :now), updated_at = :now
             WHERE id = :id AND status <> 'running'
            """, dict(id=pipeline_id, now=now))

    def _due_pipelines(self, now: float) -> list[Row]:
        """Return the `pipeline_id` of each pipeline that has a delayed job whose time has come."""
        return self._all("""
            SELECT DISTINCT pipeline_id
              FROM job INDEXED BY job_scheduled
             WHERE status = 'scheduled' AND scheduled_at <= :now
            """, now=now)

    def _start_due(self, now: float) -> None:
        """Queue the delayed jobs whose time has come."""
        for row in self._due_pipelines(now):
            pipeline_id = row['pipeline_id']
            self._attempt(f'delayed jobs of pipeline {pipeline_id} stay', self._start_delayed, pipeline_id, now)

    def _start_delayed(self, pipeline_id: int, now: float) -> None:
        """Queue the delayed jobs of one pipeline whose time has come."""
        with self._change(pipeline_id) as c:
            c.execute(f"""
                UPDATE job
                   SET status = {ENQUEUED}, queued_at = :now
                 WHERE pipeline_id = :id AND status = 'scheduled' AND scheduled_at <= :now
                """, dict(id=pipeline_id, now=now))

    def update_job(self, job: Row, state: str | None = None, *, trace: bytes | None = None,
                   failure_reason: str | None = None, exit_code: int | None = None,
                   checksum: str | None = None, bytesize: int | None = None) -> str:
        """Take a runner's report on its job and return the job's status afterwards.

        `success` and `failed` finish it and let its pipeline go on; `pending` says that the runner still
        prepares it; anything else is a sign of life. `trace` replaces the whole trace. Repeating the
        final state is no error. Raises JobNotRunning when the job has left its runner in another way,
        BadRequest or Conflict for `pending` when it runs or is being canceled, and ChecksumMismatch
        while the trace does not have the `checksum` (``crc32:`` and 8 digits) and `bytesize` that its
        runner counted.
        """
        if job['status'] == state and state in ('success', 'failed'):
            return state
        if job['status'] not in HELD:
            raise JobNotRunning(job['status'])
        if state == 'pending':
            self._keep_claim(job)
            return state
        job = self._accepted(job)
        if trace is not None:
            with self._trace_limit(job):
                self.traces.replace(job['id'], trace, lambda: self._check_alive(job))
        if state not in ('success', 'failed'):
            self.traces.heard(job['id'], lambda: self._check_alive(job))
            return job['status']
        if checksum or bytesize is not None:
            self._check_trace(job, checksum, bytesize)
        reason = None
        if state == 'failed':
            reason = failure_reason if failure_reason in FAILURE_REASONS else 'unknown_failure'
        status = self._finish(job, state, reason, exit_code)
        if status is None:
            self._check_alive(job)
        return status or state

    def _keep_claim(self, job: Row) -> None:
        """Record that a runner still prepares its job."""
        if job['status'] == 'running':
            raise BadRequest('Job is running')
        with self.db.write() as c:
            kept = c.execute("""
                UPDATE job
                   SET claimed_at = :now
                 WHERE id = :id AND status = 'pending' AND token_hash = :token_hash
                """, dict(id=job['id'], token_hash=job['token_hash'], now=self.clock())).rowcount
        if not kept:
            self._check_alive(job)
            raise Conflict('Job is not being prepared')

    def _check_trace(self, job: Row, checksum: str | None, bytesize: int | None) -> None:
        """Compare a trace with the runner's checksum; on mismatch ask for it again, at most twice, then record it."""
        size = self.trace_size(job)
        stored = self.traces.checksum(job['id'])
        if bytesize in (None, size) and checksum in (None, stored):
            self.traces.settle(job['id'], complete=True)
            return
        before = json.loads(job['trace_state'] or '{"refusals": 0}')
        refusals = before['refusals'] + 1
        state = {
            'refusals': refusals,
            'expected': {'checksum': checksum, 'bytesize': bytesize},
            'stored': {'checksum': stored, 'bytesize': size},
        }
        with self.db.write() as c:
            c.execute("""
                UPDATE job
                   SET trace_state = :state
                 WHERE id = :id
                """, dict(state=json.dumps(state), id=job['id']))
        if refusals > MAX_TRACE_REFUSALS:
            log.warning('job %s: its trace is not what its runner counted: %s', job['id'], state)
            return
        if size >= (bytesize or 0):  # a shorter one is filled up: the runner learns its length from a 416
            self.traces.restart(job['id'], lambda: self._check_alive(job))
        raise ChecksumMismatch('send the trace again')

    def _finish(self, job: Row, status: str, failure_reason: str | None, exit_code: int | None = None) -> str | None:
        """Finish a job and process its pipeline; return the final status, or None if this claim was lost.

        A failed job is retried when its `retry` says so.
        """
        spec = stored_spec(job)
        coverage = None
        if spec['coverage']:
            with contextlib.suppress(NotFound, regex.error, TimeoutError):
                coverage = find_coverage(self.traces.lines_backwards(job['id']), spec['coverage'])
        with self.db.write() as c:
            final = self._end(c, job, status, failure_reason, exit_code=exit_code, coverage=coverage)
        if final:
            self._announce()
        self.traces.settle(job['id'])
        return final

    def _end(self, c: sqlite3.Connection, job: Row, status: str, failure_reason: str | None, *,
             message: str | None = None, exit_code: int | None = None, coverage: float | None = None) -> str | None:
        """Write a job's final status and let its pipeline go on; return as `_finish` does."""
        spec = stored_spec(job)
        allowed = status == 'failed' and exit_code in spec['allow_failure_exit_codes']
        ended = c.execute(FINISH, dict(
            id=job['id'], status=status, failure_reason=failure_reason, failure_message=message, exit_code=exit_code,
            allowed=allowed, token_hash=job['token_hash'], now=self.clock(), coverage=coverage)).fetchall()
        if not ended:
            return None
        if ended[0]['status'] == 'failed' and self._is_retried(c, job, spec, failure_reason, exit_code):
            self._clone(c, ended[0], None)
            self._process(c, job['pipeline_id'])
        else:
            self._cancel_after_failure(c, ended[0])
            self._process_after(c, ended[0])
        return ended[0]['status']

    @contextlib.contextmanager
    def _trace_limit(self, job: Row) -> Iterator[None]:
        """Fail a job whose trace outgrows the limit, and raise JobNotRunning for its runner."""
        try:
            yield
        except TooLarge:
            status = self._finish(job, 'failed', 'trace_size_exceeded')
            raise JobNotRunning(status or 'failed') from None

    def append_trace(self, job: Row, start: int, data: bytes) -> int:
        """Append `data` to a running job's trace at byte `start`; return its length when it is on disk.

        Empty data is a sign of life. Raises RangeMismatch, which knows the true length, when the trace
        does not end at `start`; JobNotRunning when the job has left its runner or outgrew max_trace_size.
        """
        job = self._accepted(job)
        with self._trace_limit(job):
            return self.traces.append(job['id'], start, data, lambda: self._check_alive(job))

    def sweep(self) -> None:
        """Do what time has made due: free disk space, requeue or fail silent jobs, start delayed ones.

        A server calls it every few seconds, `request_job` every half minute in other deployments; call
        it after moving the clock. What fails is logged and tried again the next time; it stops nothing else.
        """
        now = self.clock()
        self._note_gap(now)
        self._attempt('expired artifacts stay', self._remove_expired, now)
        if abs(now - self._tidied_at) >= TIDY_INTERVAL:
            self._tidied_at = now
            self._attempt('leftover files stay', self._collect_garbage)
            self._attempt('old pipelines stay', self.prune)
            self._attempt('old rows stay', self._tidy)
            self._attempt('unused pages stay', self.db.shrink)
        self._attempt('bridges wait', self.start_bridges)
        for job in self._attempt('silent jobs stay', self._alive_jobs) or []:
            self._attempt(f'job {job["id"]} stays as it is', self._check_silence, job, now)
        self._attempt('delayed jobs stay', self._start_due, now)
        self._attempt('schedules stay', self.run_due_schedules, now)

    def _note_gap(self, now: float) -> None:
        """Count silence anew when the machine was suspended or its clock set: no runner was silent then."""
        asleep = now - self._swept_at - (time.monotonic() - self._ticked_at)
        if self.clock is time.time and abs(asleep) > CONTACT_INTERVAL:
            self._listening_since = now
        self._swept_at = now
        self._ticked_at = time.monotonic()

    def listen_anew(self) -> None:
        """Count the silence of runners from now on, because this process could not hear them until now."""
        self._listening_since = self.clock()

    def _alive_jobs(self) -> list[Row]:
        """Return the jobs that are with a runner, those that it prepares included."""
        return self._all(f"""
            SELECT *
              FROM job INDEXED BY job_alive
             WHERE status IN {ALIVE} AND kind = 'build'
             UNION ALL
            SELECT *
              FROM job INDEXED BY job_prepared
             WHERE status = 'pending' AND token_hash IS NOT NULL
            """)

    def _check_silence(self, job: Row, now: float) -> None:
        """Requeue a job whose claim was never answered; fail a job whose runner fell silent."""
        if job['status'] == 'pending':
            if now - max(job['claimed_at'], self._listening_since) >= self.settings.claim_timeout:
                self._requeue(job)
            return
        heard = self.traces.last_heard(job['id'])
        silent = now - max(heard or job['started_at'], self._listening_since)
        if heard is None and silent >= self.settings.claim_timeout:
            self.traces.remove_unheard(job['id'], functools.partial(self._requeue, job))
        elif silent >= self.settings.stuck_timeout:
            log.info('job %s: its runner has been silent for %d s, so it failed', job['id'], silent)
            self._finish(job, 'failed', 'stuck_or_timeout_failure')

    def _requeue(self, job: Row) -> bool:
        """Return a job whose claim was never answered to the queue, its old token void; tell whether it left."""
        values = {name: job[name] for name in ('id', 'status', 'token_hash', 'claimed_at')}
        with self._change(job['pipeline_id']) as c:
            unanswered = c.execute("""
                SELECT 1
                  FROM job
                 WHERE id = :id AND status = :status AND token_hash = :token_hash AND claimed_at IS :claimed_at
                """, values).fetchall()
            if not unanswered:
                return False
            if job['attempts'] >= MAX_CLAIM_ATTEMPTS or job['status'] == 'canceling':
                log.info('job %s: %d claims were not answered, so it failed', job['id'], job['attempts'])
                self._end(c, job, 'failed', 'claims_unanswered')
                return False
            log.info('job %s: its claim was not answered, so it is pending again', job['id'])
            c.execute("""
                UPDATE job
                   SET status = 'pending', runner_id = NULL, token_hash = NULL, claimed_at = NULL, started_at = NULL
                 WHERE id = :id
                """, values)
            return True


# Uploads ######################################################################################

#: The types of artifacts that GitLab knows; a runner names one for each file that it uploads.
ARTIFACT_TYPES = frozenset((
    'archive', 'metadata', 'trace', 'junit', 'metrics', 'metrics_referee', 'network_referee', 'dotenv',
    'cobertura', 'coverage_report', 'jacoco', 'clusters', 'cluster_applications', 'sast', 'dependency_scanning',
    'secret_detection', 'container_scanning', 'cluster_image_scanning', 'dast', 'codequality',
    'license_management', 'license_scanning', 'performance', 'browser_performance', 'load_performance',
    'terraform', 'cyclonedx', 'requirements', 'requirements_v2', 'coverage_fuzzing', 'api_fuzzing',
    'accessibility', 'repository_xray', 'annotations', 'lsif', 'sarif', 'scip'))


class Uploads(Queue):
    """Takes the artifacts and reports that runners upload, within the budget of their job."""

    def store_artifacts(self, job: Row, part: PartFile, *, file_type: str = 'archive', file_format: str = 'zip',
                        expire_in: str | None = None, replace: bool = False) -> None:
        """Keep a received file as a running job's artifact of `file_type`.

        `expire_in` is a duration (`parse_duration`), None for the setting. A second file of the type
        takes the first one's place with `replace`; without it, the same content again is no error and
        other content raises BadRequest. The variables of a dotenv report reach the jobs after this one.
        Raises JobNotRunning when the job has left its runner.
        """
        if file_type not in ARTIFACT_TYPES:
            raise InvalidParameter('artifact_type does not have a valid value')
        try:
            lifetime = parse_duration(expire_in or self.settings.artifacts_expire_in)
        except ValueError as error:
            raise BadRequest(f'expire_in: {error}') from None
        dotenv = None
        if file_type == 'dotenv':
            dotenv = json.dumps(read_dotenv(part))
        tests = None
        if file_type == 'junit':
            tests = read_junit_report(part)
        job = self._accepted(job)
        self._check_alive(job)
        now = self.clock()
        stored_as = self.artifacts.store(job['id'], part)
        columns = dict(file_type=file_type, file_format=file_format, size=part.size, sha256=part.sha256,
                       filename=part.filename or 'artifacts.zip', stored_as=stored_as, created_at=now,
                       expire_at=lifetime and now + lifetime)
        unwanted = [stored_as]
        try:
            unwanted = self._insert_artifact(job, columns, dotenv, tests, replace)
        finally:
            self.artifacts.remove(unwanted)
        with contextlib.suppress(JobNotRunning):    # it may have finished meanwhile
            self.traces.heard(job['id'], lambda: self._check_alive(job))

    def _insert_artifact(self, job: Row, columns: Members, dotenv: str | None, tests: TestReport | None,
                         replace: bool) -> list[str]:
        """Store the row of an artifact; return the names of the files that no row refers to now."""
        with self.db.write() as c:
            held = c.execute(f"""
                UPDATE job
                   SET dotenv = coalesce(:dotenv, dotenv)
                 WHERE id = :id AND status IN {ALIVE} AND token_hash = :token_hash
                """, dict(id=job['id'], token_hash=job['token_hash'], dotenv=dotenv)).rowcount
            if not held:
                self._check_alive(job)
            before = c.execute("""
                SELECT *
                  FROM artifact
                 WHERE job_id = :id AND file_type = :type
                """, dict(id=job['id'], type=columns['file_type'])).fetchone()
            if before and not replace:
                if before['sha256'] != columns['sha256']:
                    raise BadRequest('another artifact of the same type already exists')
                return [columns['stored_as']]
            if before:
                c.execute('DELETE FROM artifact WHERE id = :id', dict(id=before['id']))
            self._check_artifact_budget(c, job, columns['size'])
            insert(c, 'artifact', job_id=job['id'], project_id=job['project_id'], **columns)
            if tests is not None:
                self._store_tests(c, job['id'], tests)
        if before:
            return [before['stored_as']]
        return []

    def _check_artifact_budget(self, c: sqlite3.Connection, job: Row, size: int) -> None:
        """Raise TooLarge when a job's artifacts would be too many, or its or its project's too large together."""
        files, bytes_held = c.execute("""
            SELECT count(*), coalesce(sum(size), 0)
              FROM artifact
             WHERE job_id = :id
            """, dict(id=job['id'])).fetchone()
        if files >= MAX_ARTIFACTS:
            raise TooLarge(f'a job may have {MAX_ARTIFACTS} artifacts')
        if bytes_held + size > self.settings.max_artifacts_size:
            raise TooLarge('the artifacts of the job have reached the maximum size limit of '
                           f'{self.settings.max_artifacts_size} bytes together (the setting max_artifacts_size)')
        held_by_project, = c.execute("""
            SELECT coalesce(sum(size), 0)
              FROM artifact INDEXED BY artifact_of_project
             WHERE project_id = :id
            """, dict(id=job['project_id'])).fetchone()
        share = self._project_share()
        if held_by_project + size > share:
            raise TooLarge(f'the artifacts of the project have reached its share of {share} bytes of the disk (the '
                           'setting project_share)')


# Checks #######################################################################################

@dataclass(frozen=True, eq=False)
class Finding:
    """One thing that is not as it must be, in a sentence; `repaired` when `check` has set it right."""

    text: str
    repaired: bool = False


class Checks(Uploads):
    """Compares the database with the files."""

    def check(self, *, repair: bool = False, checksums: bool = False) -> list[Finding]:
        """Return what differs between the database and the files, and which states make no sense.

        `checksums` reads every artifact whole. `repair` deletes rows without files and files without rows,
        and lets pipelines that are stuck go on; damaged pages of the database it cannot repair.
        """
        damage = self._check_database()
        if damage:
            return damage
        return [*self._check_artifacts(repair, checksums), *self._check_files(repair), *self._check_states(repair)]

    def _check_database(self) -> list[Finding]:
        """Return what SQLite finds wrong with the pages and the references."""
        found = self.db.check_pages()
        if found:
            return [Finding(f'the database is damaged: {found}; bring a backup back with `restore DIR`')]
        broken = self._all('PRAGMA foreign_key_check')
        return [Finding(f'row {row["rowid"]} of {row["table"]} refers to a row of {row["parent"]} that is not there')
                for row in broken]

    def _check_artifacts(self, repair: bool, checksums: bool) -> Iterator[Finding]:
        """Yield the artifacts whose file is missing or not what was received."""
        for row in self._all('SELECT * FROM artifact ORDER BY id'):
            problem = self._artifact_problem(row, checksums)
            if not problem:
                continue
            if repair:
                self._delete_artifacts("""
                    DELETE FROM artifact
                     WHERE id = :id
                    RETURNING stored_as
                    """, id=row['id'])
            yield Finding(f'artifact {row["file_type"]} of job {row["job_id"]} {problem}', repair)

    def _artifact_problem(self, row: Row, checksums: bool) -> str:
        """Return what is wrong with the file of an artifact, or ''."""
        path = self.artifacts.stored_path(row['stored_as'])
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return f'has no file ({path})'
        if size != row['size']:
            return f'has {size} bytes instead of {row["size"]} ({path})'
        if checksums and file_sha256(path) != row['sha256']:
            return f'has another content than was received ({path})'
        return ''

    def _check_files(self, repair: bool) -> Iterator[Finding]:
        """Yield the files that no row refers to."""
        paths = [*self._leftovers(), *map(self.artifacts.stored_path, self._artifacts_without_row())]
        for job_id in self._traces_without_row():
            paths.append(self.traces.path(job_id))
        for path in paths:
            if repair:
                remove_path(path)
            yield Finding(f'no row refers to {path}', repair)

    def _check_states(self, repair: bool) -> Iterator[Finding]:
        """Yield the pipelines that should have another status, or jobs that should have started."""
        unfinished = self._all(f"""
            SELECT id, status FROM pipeline WHERE status NOT IN {FINISHED}
            UNION
            SELECT pipeline.id, pipeline.status
              FROM job
              JOIN pipeline ON pipeline.id = job.pipeline_id
             WHERE job.status NOT IN {FINISHED}
             ORDER BY 1
            """)
        for row in unfinished:
            problem = self._state_problem(row)
            if problem and repair:
                with self._change(row['id']):
                    pass    # whatever changes a pipeline lets it go on
            if problem:
                yield Finding(f'pipeline {row["id"]} {problem}', repair)

    def _state_problem(self, row: Row) -> str:
        """Return what is wrong with the state of a pipeline, or ''."""
        jobs = self._all("""
            SELECT id, name, stage_idx, status, when_, allow_failure, needs, resource_group
              FROM job
             WHERE pipeline_id = :id AND retried = 0
             ORDER BY stage_idx, id
            """, id=row['id'])
        if next_statuses(jobs):
            return 'has jobs whose turn has come and that were not started'
        status = composite_status((job['status'], job['allow_failure']) for job in jobs)
        if status != row['status']:
            return f'is {row["status"]}, and its jobs are {status}'
        return ''


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(COPY_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def take_upkeep_lock(directory: Path) -> IO[str] | None:
    """Return the lock of the process that does the upkeep of a data directory, None while another holds it.

    It is held until it is closed; its content tells people which process that is. Raises OSError when
    the file cannot be made.
    """
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    file = open(directory / UPKEEP_LOCK, 'a+', opener=opener)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    with contextlib.suppress(OSError):  # on a full disk it stays empty
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
    return file


# Backups ######################################################################################

BACKUP_DATABASE = 'minici.sqlite'   # a backup's directory holds this file
BACKUP_DATA = 'minici-data'         # and this directory, so that it can be served as it is


class Backups(Checks):
    """Copies everything while it is in use, and brings such a copy back."""

    def backup(self, target: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write a consistent copy of the database, the traces and the artifacts to the new directory `target`.

        Others go on working meanwhile. Files that do not change any more are hard links where the disk
        allows. Raises Conflict when there is something at `target`, which `force` replaces. When it
        fails, nothing is left behind and what was at `target` stays.
        """
        directory = Path(target)
        if not force and directory.exists():
            raise Conflict(f'{directory} exists: name another directory, or replace it with --force')
        part = directory.with_name(f'{directory.name}.part')
        shutil.rmtree(part, ignore_errors=True)     # left by a backup that was killed
        try:
            self._copy_into(part)
            sync_tree(part)
            replace_directory(part, directory)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def _copy_into(self, directory: Path) -> None:
        """Fill a new directory with a consistent copy.

        The files come first, then the database, then the files that it refers to and that are newer. One
        that was removed in between makes a newer copy of the database necessary. After some of these,
        writers wait for the last one.
        """
        data = directory / BACKUP_DATA
        for inner in (directory, data, data / 'traces', data / 'artifacts'):
            inner.mkdir(mode=0o700)
        for stored_as, _ in self.artifacts.stored():
            link_or_copy(self.artifacts.stored_path(stored_as), data / 'artifacts' / stored_as)
        for job_id in self.traces.stored():
            path = self.traces.path(job_id)
            link_or_copy(path, data / 'traces' / path.parent.name / path.name)
        missing: set[str] = set()
        for number in range(BACKUP_TRIES + 1):
            writers = self.db.write() if number == BACKUP_TRIES else contextlib.nullcontext()
            with writers:
                jobs, gone = self._copy_database(directory)
            if gone <= missing:     # rows of a newer copy still refer to these: no writer has removed them
                break
            missing = gone
        if gone:
            log.warning('the backup %s lacks the files of %d artifacts, which are missing: see the command check',
                        directory, len(gone))
        self._complete_traces(data / 'traces', jobs)

    def _copy_database(self, directory: Path) -> tuple[dict[int, str], set[str]]:
        """Copy the database and the artifacts that it refers to.

        Returns the statuses of its jobs, by their ids, and the names of the artifacts that are not there.
        """
        target = directory / BACKUP_DATABASE
        target.unlink(missing_ok=True)
        self.db.copy_to(target)
        with contextlib.closing(Database(target)) as copied, copied.read() as c:
            stored = {row['stored_as'] for row in c.execute('SELECT stored_as FROM artifact')}
            jobs = {row['id']: row['status'] for row in c.execute('SELECT id, status FROM job')}
        return jobs, self._complete_artifacts(directory / BACKUP_DATA / 'artifacts', stored)

    def _complete_artifacts(self, directory: Path, stored: set[str]) -> set[str]:
        """Make a copy's artifacts those that are `stored`; return those that are not there."""
        for path in directory.glob('*/*'):
            if path.relative_to(directory).as_posix() not in stored:
                path.unlink()
        gone = set()
        for stored_as in stored:
            path = directory / stored_as
            if not path.exists() and not link_or_copy(self.artifacts.stored_path(stored_as), path):
                gone.add(stored_as)
        return gone

    def _complete_traces(self, directory: Path, jobs: Mapping[int, str]) -> None:
        """Make a copy's traces those of `jobs`, ids with their statuses; what still grows is copied, not linked."""
        for path in directory.glob('*/*.log'):
            if int(path.stem) not in jobs:
                path.unlink()
        for job_id in self.traces.stored():
            if job_id not in jobs:
                continue
            source = self.traces.path(job_id)
            path = directory / source.parent.name / source.name
            if jobs[job_id] in ALIVE:
                link_or_copy(source, path, link=False)
            elif not is_same_file(source, path):    # it was replaced, or is new
                link_or_copy(source, path)


def link_or_copy(source: Path, target: Path, *, link: bool = True) -> bool:
    """Make `target` a hard link to `source`, or a copy on disk where that is impossible; return False if it is gone."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    part = target.with_suffix('.copy')
    try:
        if link:
            with contextlib.suppress(OSError):  # another file system, or one without links
                target.unlink(missing_ok=True)
                os.link(source, target)
                return True
        with open(source, 'rb') as reading, open(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600), 'wb') as writing:
            shutil.copyfileobj(reading, writing, COPY_CHUNK)
            writing.flush()
            os.fsync(writing.fileno())
        os.replace(part, target)
    except FileNotFoundError:
        return False
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return True


def is_same_file(source: Path, target: Path) -> bool:
    """Tell whether two names stand for one file; True when `source` is gone, because then `target` is all there is."""
    try:
        return os.path.samefile(source, target)
    except FileNotFoundError:
        return not source.exists()


def replace_directory(part: Path, target: Path) -> None:
    """Put the directory `part` in the place of `target`, which may exist."""
    old = target.with_name(f'{target.name}.old')
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(part, target)
    sync_path(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore(source: str | os.PathLike[str], db: str | os.PathLike[str],
            data: str | os.PathLike[str] | None = None, *, force: bool = False) -> None:
    """Put the backup `source` in the place of the database `db` and the directory `data` beside it.

    What SQLite kept beside an older database (-wal, -shm) is removed, because it would be applied to the
    restored one. Raises Conflict when there is a database that `force` does not replace or while a server
    uses it, BadRequest when `source` is no backup or is damaged.
    """
    kept = Path(source)
    path = Path(db)
    directory = Path(data) if data is not None else default_data(path)
    if not (kept / BACKUP_DATABASE).is_file() or not (kept / BACKUP_DATA).is_dir():
        raise BadRequest({'source': [f'{kept} is not a backup: it has no {BACKUP_DATABASE} and {BACKUP_DATA}']})
    if path.exists() and not force:
        raise Conflict(f'{path} exists: name another database, or replace it with --force')
    lock = take_upkeep_lock(directory) if directory.exists() else contextlib.nullcontext()
    if lock is None:
        raise Conflict(f'a server uses {path}: stop it first')
    with lock:
        new_path = path.with_name(f'{path.name}.part')
        new_directory = directory.with_name(f'{directory.name}.part')
        shutil.rmtree(new_directory, ignore_errors=True)
        remove_database(new_path)
        try:
            copy_backup(kept, new_path, new_directory)
            remove_database(path, keep=True)
            replace_directory(new_directory, directory)
            os.replace(new_path, path)
            sync_path(path.parent)
        except BaseException:
            shutil.rmtree(new_directory, ignore_errors=True)
            remove_database(new_path)
            raise


def copy_backup(kept: Path, path: Path, directory: Path) -> None:
    """Copy a backup's database and files, flushed to the disk; raise BadRequest when the database is damaged."""
    with contextlib.closing(Database(kept / BACKUP_DATABASE)) as original:
        original.copy_to(path)
    with contextlib.closing(Database(path)) as copied:
        if copied.check_pages():
            raise BadRequest({'source': [f'{kept} is damaged: {copied.damage}']})
        copied.migrate()
    directory.mkdir(mode=0o700, parents=True)
    for source in sorted((kept / BACKUP_DATA).rglob('*')):
        target = directory / source.relative_to(kept / BACKUP_DATA)
        if source.is_dir():
            target.mkdir(mode=0o700)
        else:
            link_or_copy(source, target, link=False)
    sync_tree(directory)


def remove_database(path: Path, *, keep: bool = False) -> None:
    """Remove a database and what SQLite keeps beside it; with `keep` only the latter."""
    for suffix in ('-wal', '-shm', '-journal'):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if not keep:
        path.unlink(missing_ok=True)


# Coordinator ##################################################################################

@dataclass(frozen=True, eq=False)
class Figures:
    """What a monitor wants to know; times in seconds, sizes in bytes."""

    jobs: Mapping[str, int]     # how many have each status
    oldest_pending: float       # how long the job that became pending first has waited
    runners_registered: int
    runners_online: int
    database_bytes: int
    disk_free: int
    swept_at: float             # when this process last swept


class Coordinator(Backups):
    """A CI coordinator over one database file and one directory of traces and artifacts.

    `db` is the database's path, None for a temporary directory that is gone on `close`; `data` the
    directory for traces and artifacts, by default beside the database (``ci.sqlite``: ``ci-data``).
    Every moment is read from `clock` (seconds since 1970), so a test moves time instead of sleeping.
    `fsync=False` trades durability for speed in throw-away databases. The other keywords are the
    fields of `Settings`.

    The methods may be called from any thread and by several processes at once. They take and return
    rows of the tables (see Schema for the columns) and raise `CIError` and its subclasses: NotFound for
    a missing thing, BadRequest, Forbidden or Conflict for a refusal, Busy for trouble that passes.

    ====================  ========================================================================
    pipelines             `create_pipeline`, `lint`, `find_pipeline`, `list_pipelines`, `list_stages`,
                          `cancel_pipeline`, `retry_pipeline`, `delete_pipelines`, `prune`
    jobs                  `find_job`, `list_jobs`, `count_jobs`, `list_queue`, `list_running`, `wait`,
                          `pending_reason`, `cancel_job`, `retry_job`, `play_job`, `erase_job`
    traces, artifacts     `read_trace`, `open_trace`, `find_artifact`, `open_artifacts`,
                          `keep_artifacts`, `delete_artifacts`
    projects              `create_project`, `find_project`, `list_projects`, `edit_project`,
                          `delete_project`, `set_variable`, `list_variables`, `create_trigger`,
                          `trigger_pipeline`
    runners, for people   `create_runner`, `list_runners`, `edit_runner`, `enable_runner`,
                          `unregister_runner`, `reset_runner_token`, `registration_token`
    what runners do       `register_runner`, `verify_runner`, `request_job`, `append_trace`,
                          `store_artifacts`, `update_job`
    accounts              `create_private_token`, `find_user`, `list_private_tokens`,
                          `revoke_private_token`, `create_sign_in_code`, `sign_in`, `sign_out`
    operation             `sweep`, `backup`, `check`, `vacuum`, `figures`, `on_change`, `on_finish`,
                          `close`
    ====================  ========================================================================
    """

    def __init__(self, db: str | os.PathLike[str] | None = None, data: str | os.PathLike[str] | None = None, *,
                 clock: Callable[[], float] = time.time, fsync: bool = True, **settings: Any) -> None:
        super().__init__(db, data, clock, fsync, Settings.read(settings))
        self._found_installation()

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def vacuum(self) -> None:
        """Rewrite the database without unused pages, which afterwards return to the disk by themselves.

        Raises Busy while somebody else uses the database.
        """
        self.db.vacuum()

    def figures(self) -> Figures:
        """Return what a monitor wants to know of the jobs, the runners and the disk."""
        now = self.clock()
        counted = self._all("""
            SELECT status, sum(jobs) AS jobs
              FROM job_tally
             GROUP BY status
            HAVING sum(jobs) > 0
            """)
        oldest = self._one("""
            SELECT queued_at
              FROM job
             WHERE id = (SELECT min((SELECT id
                                       FROM job INDEXED BY job_of_project_status
                                      WHERE project_id = tally.project_id AND status = 'pending'
                                      ORDER BY id
                                      LIMIT 1))
                           FROM job_tally AS tally
                          WHERE tally.status = 'pending' AND tally.jobs > 0)
            """)
        runners = self._one("""
            SELECT count(*) AS registered, coalesce(sum(contacted_at > :since), 0) AS online
              FROM runner
            """, since=now - ONLINE_FOR)
        pages = self._one('SELECT page_count * page_size AS bytes FROM pragma_page_count, pragma_page_size')
        jobs = dict.fromkeys(JOB_STATUSES, 0)
        jobs.update((row['status'], row['jobs']) for row in counted)
        return Figures(
            jobs=jobs,
            oldest_pending=max(0, now - oldest['queued_at']) if oldest else 0,
            runners_registered=runners['registered'] if runners else 0,
            runners_online=runners['online'] if runners else 0,
            database_bytes=pages['bytes'] if pages else 0,
            disk_free=shutil.disk_usage(self.data).free,
            swept_at=self._swept_at,
        )

    def on_change(self, callback: Callable[[str, Row, str], object]) -> None:
        """Call back, from a thread of its own, when a job or pipeline has changed its status.

        `callback` takes ``job`` or ``pipeline``, the row as it is then, and the status that it had
        before. A status that has changed again is skipped. What it raises is logged and stops nothing.
        """
        newest = self._all('SELECT coalesce(max(id), 0) AS id FROM event')[0]['id']
        threading.Thread(target=self._tell, args=(callback, newest), daemon=True).start()

    def on_finish(self, callback: Callable[[Row], object]) -> None:
        """Call back as `on_change` does, with the row of each job and pipeline that has finished."""
        def finished(kind: str, row: Row, before: str) -> None:
            if row['status'] in FINISHED:
                callback(row)

        self.on_change(finished)

    def _tell(self, callback: Callable[[str, Row, str], object], position: int) -> None:
        """Call back for each event after `position` until the coordinator is closed."""
        while not self.db.closed:
            try:
                events = self._all("""
                    SELECT *
                      FROM event
                     WHERE id > :position
                     ORDER BY id
                     LIMIT 100
                    """, position=position)
                for event in events:
                    self._tell_event(callback, event)
                    position = event['id']
            except Busy:
                continue  # closed, or in trouble that may pass
            finally:
                with self._changed:
                    self._changed.wait(0.5)

    def _tell_event(self, callback: Callable[[str, Row, str], object], event: Row) -> None:
        """Call back for one event, unless its job or pipeline is gone or has changed again."""
        find = self.find_job if event['kind'] == 'job' else self.find_pipeline
        with contextlib.suppress(NotFound):
            row = find(event['object_id'])
            if row['status'] != event['status']:
                return  # a later event tells of it
            try:
                callback(event['kind'], row, event['before'])
            except Exception:
                log.exception('a callback for %s %s failed', event['kind'], event['object_id'])

    def wait(self, job: Row | int, timeout: float = 60, *, for_: Callable[[Row], bool] | None = None) -> Row:
        """Return a job as soon as it has finished, or as soon as `for_`, called with its row, is true.

        Raises TimeoutError, which says the job's status and why, after `timeout` seconds of real time.
        """
        deadline = time.monotonic() + timeout
        reached = for_ or (lambda row: row['status'] in FINISHED)
        while True:
            row = self.find_job(job)
            if reached(row):
                return row
            left = deadline - time.monotonic()
            if left <= 0:
                reason = self.pending_reason(row) or 'its runner has not finished it'
                raise TimeoutError(f'job {row["id"]} ({row["name"]}) is {row["status"]} after {timeout:g} s: {reason}')
            with self._changed:  # another process may change it, so look again soon in any case
                self._changed.wait(min(left, 0.1))


class Upkeep:
    """Sweeps a coordinator every few seconds, in a thread of its own, until it is stopped.

    Of several servers over one database one sweeps, the holder of a lock beside the traces; when it ends
    another takes over. Time is measured by the monotonic clock, what is due by the coordinator's own.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._ci = coordinator
        self._stopping = threading.Event()
        self._lock: IO[str] | None = None
        self._attempt(self._introduce)
        self._thread = threading.Thread(target=self._run, name='minici-upkeep', daemon=True)
        self._thread.start()

    @property
    def is_working(self) -> bool:
        """Whether this process sweeps; False where another server does, and after `stop`."""
        return self._lock is not None and self._thread.is_alive()

    def _holds_lock(self) -> bool:
        """Tell whether this server does the upkeep; take it over when nobody does."""
        if self._lock is None:
            self._lock = take_upkeep_lock(self._ci.data)
        return self._lock is not None

    def _introduce(self) -> None:
        """Say so when another server does the upkeep."""
        if not self._holds_lock():
            holder = (self._ci.data / UPKEEP_LOCK).read_text(errors='replace').strip()
            log.info('another server uses this database (%s) and does its upkeep; this one serves beside it', holder)

    def _run(self) -> None:
        if self._ci.db.was_in_use:
            self._attempt(self._ci.db.check_pages)
        expected = time.monotonic() + UPKEEP_INTERVAL
        while not self._stopping.wait(UPKEEP_INTERVAL):
            if time.monotonic() - expected > CONTACT_INTERVAL:
                self._ci.listen_anew()  # this process was stopped for a while
            self._attempt(self._sweep)
            expected = time.monotonic() + UPKEEP_INTERVAL

    def _sweep(self) -> None:
        if self._holds_lock():
            self._ci.sweep()

    def _attempt(self, action: Callable[[], Any]) -> None:
        """Call `action`; log what it raises, because the thread must go on."""
        try:
            action()
        except Exception as error:
            if not self._ci.db.closed:
                log.error('upkeep: %s', error, exc_info=not isinstance(error, (Busy, OSError)))

    def stop(self, grace: float = 5) -> None:
        """Stop sweeping; wait up to `grace` seconds for a sweep in progress."""
        self._stopping.set()
        self._thread.join(grace)
        if self._lock is not None:
            self._lock.close()
            self._lock = None


# Routes #######################################################################################

Guard = Callable[['Call'], Any]     # returns who is calling, or raises
Handler = Callable[..., Any]        # takes what its parameters name
Environ = JSON            # WSGI's


@dataclass(frozen=True, eq=False)
class Dialect:
    """The differences between the two runner protocols."""

    token_header: str                               # carries a job's token
    status_header: str                              # tells a runner its job's status
    unknown_job: type[CIError]                      # there is no job with that number
    missing_token: Callable[[], CIError]            # a runner sent no token
    patch_gone_status: int                          # answers a PATCH for a job that is no longer running
    put_gone_status: int                            # answers a PUT for such a job
    accepts_repeated_chunk: bool                    # whether the last chunk sent again is accepted, or 416
    unreadable_artifacts: type[CIError]             # the token belongs to no running job
    runner_token_works: bool                        # whether the runner's and the project's token work as the job's
    second_upload_replaces: bool                    # whether a second archive replaces the first
    missing_file: Callable[[], CIError]             # an upload without a file


#: A project's path in an address: none of its segments is ``-``, and no address of the API is ever taken for one.
PROJECT_PATTERN = rf'(?!(?:{RESERVED_PATHS}|-)(?:/|$))(?:(?!/-(?:/|$)).)+?'
#: The patterns of path arguments by kind, as in ``<job_id:job>``; an argument without a kind is one segment of text.
PATH_KINDS = {
    'path': '.+?',
    'project_key': '[^/]+',             # its number, or its path in percent encoding
    'project_path': PROJECT_PATTERN,    # its path as it is
    'job': '[^/]+',
    'pipeline': '[^/]+',
    'runner': '[^/]+',
    'trigger': '[^/]+',
    'schedule': '[^/]+',
}
#: Finds the row that a path argument of each kind names; arguments of other kinds are texts.
ROW_KINDS: dict[str, Callable[[Any, Any], Row]] = {
    'project': lambda call, key: call.ci.find_project(key),
    'job': lambda call, key: call.ci.find_job(key, call.project),
    'pipeline': lambda call, key: call.ci.find_pipeline(key, call.project),
    'runner': lambda call, key: call.ci.find_runner_by_id(key),
    'trigger': lambda call, key: call.ci.find_trigger(call.row('project'), key),
    'schedule': lambda call, key: call.ci.find_schedule(call.row('project'), key),
}


@dataclass(frozen=True, eq=False)
class Route:
    """One address: its method, its guard, and how its body is read."""

    method: str
    path: str
    auth: Guard
    handler: Handler
    dialect: Dialect | None = None
    status: int = 200                   # of the answer, unless the handler returns a whole response
    limit: int = MAX_PARAMETERS_BODY    # bytes of the body, uploads aside
    raw: bool = False                   # the body is data, never parameters
    upload: bool = False                # the part called `file` is streamed to disk
    refuse: Callable[[Any, CIError], bottle.HTTPResponse] | None = None    # presents a refusal; None: as JSON

    @functools.cached_property
    def kinds(self) -> dict[str, str]:
        """The arguments of the path and their kinds, '' for a text of one segment."""
        return dict(re.findall(r'<(\w+):?(\w*)>', self.path))

    @functools.cached_property
    def wanted(self) -> tuple[str, ...]:
        """The names of the handler's parameters."""
        return tuple(inspect.signature(self.handler).parameters)


ROUTES: list[Route] = []


def route(method: str, *paths: str, auth: Guard, table: list[Route] = ROUTES,
          **options: Any) -> Callable[[Handler], Handler]:
    """Record a handler for one method on one or more paths; `auth` is the guard that must let a call in.

    The handler receives what its parameters name: `call`, the rows that the path's arguments stand for
    (`project`, `job`, `pipeline`, `runner`, `trigger`), and the path's texts under their own names.
    Every row of the path must exist, wanted or not. `call.actor` is what the guard returned. The handler
    returns what is sent as JSON, nothing (204), or a bottle.HTTPResponse, or raises a CIError.
    """
    def record(handler: Handler) -> Handler:
        table.extend(Route(method, path, auth, handler, **options) for path in paths)
        return handler
    return record


# Request bodies ###############################################################################

class Repeated(list[Any]):
    """The values of a plain name that was given several times: a list where one is wanted, else the last counts."""


def nest(pairs: Iterable[tuple[str, Any]]) -> JSON:
    """Return parameters the way Rails reads their names: ``a[b]=1``, ``a[]=1``, ``a[][k]=1``.

    The values of a plain name that is given several times are kept as Repeated. Raises
    InvalidParameter for names that contradict each other.
    """
    def put(target: Any, name: str, keys: list[str], value: Any) -> None:
        if not keys:
            if isinstance(target.get(name), Repeated):
                target[name].append(value)
            elif name in target:
                target[name] = Repeated([target[name], value])
            else:
                target[name] = value
            return
        kind: Any = dict if keys[0] else list
        inner = target.setdefault(name, kind())
        if not isinstance(inner, kind):
            raise InvalidParameter(f'{name} is invalid')
        if keys[0]:
            put(inner, keys[0], keys[1:], value)
        elif len(keys) == 1:
            inner.append(value)
        else:
            if not inner or not isinstance(inner[-1], dict) or keys[1] in inner[-1]:
                inner.append({})
            put(inner[-1], keys[1], keys[2:], value)

    nested: JSON = {}
    for name, value in pairs:
        match = re.fullmatch(r'([^\[\]]+)((?:\[[^\[\]]*\]){1,6})', name)
        plain, keys = (match[1], match[2][1:-1].split('][')) if match else (name, [])
        put(nested, plain, keys, value)
    return nested


Extent = int
#: How much of a request a guard sees: the headers and the address, the start of the body as well, or everything.
HEAD, START, WHOLE = range(3)
PARAMETER_KINDS = ('application/json', 'application/x-www-form-urlencoded', 'multipart/form-data')


class BodyNeeded(Exception):
    """A guard asks for something that may stand in the part of the body that is not read yet."""


class KnownParameters(JSON):
    """The parameters that are known before the body is read; asking for another one raises BodyNeeded."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return a parameter that is known."""
        if name not in self:
            raise BodyNeeded(name)
        return self[name]


def leading_members(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the members of a JSON object that stand whole in a text that may be cut off anywhere."""
    decoder = json.JSONDecoder()
    position = len(text) - len(text.lstrip())
    expected = '{'
    while text.startswith(expected, position):
        try:
            name, position = decoder.raw_decode(text, next_word(text, position + 1))
            position = next_word(text, position)
            if not isinstance(name, str) or not text.startswith(':', position):
                return
            value, position = decoder.raw_decode(text, next_word(text, position + 1))
        except (ValueError, RecursionError):
            return
        position = next_word(text, position)
        if position == len(text):   # a number may go on
            return
        yield name, value
        expected = ','


def next_word(text: str, position: int) -> int:
    """Return the position of the next character that is not blank."""
    while text[position:position + 1].isspace():
        position += 1
    return position


class Body:
    """The parameters and the body of a request, read only as far as its sender may be believed."""

    def __init__(self, ci: Coordinator, declared: Route, environ: Environ) -> None:
        self.ci = ci
        self.route = declared
        self.environ = environ
        self.path_params: JSON = {}     # the texts in the path
        self.upload: PartFile | None = None
        self.trusted = False            # whether the caller has brought a good token: the whole body may be read
        self.arriving = False           # whether the server has only the start of the body so far
        self._extent = HEAD             # how much of the request the parameters are taken from
        self._start = b''               # the start of the body that was read already and is to be read again
        self._base_url: str | None = None
        self._params: JSON | None = None    # no cached_property: before Python 3.12 all calls would
        self._body: bytes | None = None     # wait for one lock while one of them reads its body

    def close(self) -> None:
        """Remove what an upload left behind."""
        if self.upload is not None:
            self.upload.discard()

    def header(self, name: str) -> str | None:
        """Return a header's value, or None when it is absent or empty."""
        key = name.upper().replace('-', '_')
        return self.environ.get(key if key in ('CONTENT_TYPE', 'CONTENT_LENGTH') else f'HTTP_{key}') or None

    @property
    def is_small(self) -> bool:
        """Tell whether a stranger may send all of the body, so that nobody need look at a part of it first."""
        length = self.body_length
        return length is not None and length <= MAX_UNTRUSTED_BODY and not self.route.upload

    def show(self, extent: Extent) -> None:
        """Choose how much of the request the parameters are taken from, as long as that is not everything."""
        if self._extent == WHOLE:
            return
        self._extent = extent
        self._params = None
        if self.route.raw or self._body_kind not in PARAMETER_KINDS:
            return
        known = {**self.query, **self.path_params}
        if extent == HEAD:
            self._params = KnownParameters(known)
        if extent == START:
            complete = self._read_start()
            if complete and not self.route.upload:
                self._extent = WHOLE
                return
            known = {**self.query, **self._leading_parameters(), **self.path_params}
            self._params = known if complete else KnownParameters(known)

    @property
    def body_limit(self) -> int:
        """The bytes that the body may have once the caller is trusted."""
        if self.route.upload:
            return self.ci.settings.max_artifacts_size + MIB
        return self.route.limit

    @property
    def body_length(self) -> int | None:
        """The bytes that the body has, None when only its end will tell."""
        given = self.environ.get('CONTENT_LENGTH') or ''
        if given and not (given.isdecimal() and given.isascii() and len(given) <= 18):
            raise InvalidParameter('Content-Length is invalid')
        if not given and self.environ.get('wsgi.input_terminated'):
            return None
        return int(given or 0)

    def _read_start(self) -> bool:
        """Read the start of the body, and return whether that is all of it."""
        length = self.body_length
        wanted = MAX_UNTRUSTED_BODY if length is None else min(length, MAX_UNTRUSTED_BODY)
        pieces = [self._start]
        size = len(self._start)
        while size < wanted:
            piece = self.environ['wsgi.input'].read(wanted - size)
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        self._start = b''.join(pieces)
        if self.arriving:
            return False
        if length is None:
            return size < MAX_UNTRUSTED_BODY
        return length <= MAX_UNTRUSTED_BODY

    def _read(self, size: int) -> bytes:
        """Return up to `size` further bytes of the body."""
        if self._start:
            piece = self._start[:size]
            self._start = self._start[size:]
            return piece
        return self.environ['wsgi.input'].read(size)

    def chunks(self, limit: int) -> Iterator[bytes]:
        """Yield the body in pieces; raise TooLarge beyond `limit` bytes, and beyond far fewer from strangers."""
        if not self.trusted:
            limit = min(limit, MAX_UNTRUSTED_BODY)
        length = self.body_length
        endless = length is None
        left = limit + 1 if length is None else length
        if left > limit and not endless:
            raise TooLarge(f'the body has {left} bytes, {limit} are accepted here')
        while left > 0:
            chunk = self._read(min(left, COPY_CHUNK))
            if not chunk:
                if endless:
                    return
                raise InvalidParameter('the body ends before its Content-Length')
            left -= len(chunk)
            if endless and left <= 0:
                raise TooLarge(f'the body has more than {limit} bytes')
            yield chunk

    @property
    def body(self) -> bytes:
        """The whole body, as it came."""
        if self._body is None:
            if self._extent == HEAD:
                raise BodyNeeded
            self._body = b''.join(self.chunks(self.route.limit))
        return self._body

    @property
    def query(self) -> JSON:
        """The parameters of the query string."""
        text = self.environ.get('QUERY_STRING')
        if not text:
            return {}
        return self._form(text)

    @staticmethod
    def _form(text: str) -> JSON:
        try:
            return nest(urllib.parse.parse_qsl(text, keep_blank_values=True, errors='strict', max_num_fields=10_000))
        except ValueError:
            raise InvalidParameter('the parameters are not UTF-8 in percent encoding') from None

    @property
    def params(self) -> JSON:
        """All parameters: a body's beat the query's, the path's beat both."""
        if self._params is None:
            given = self.query
            if not self.route.raw:
                given.update(self._read_body())
            given.update(self.path_params)
            self._params = given
        return self._params

    @property
    def _body_kind(self) -> str:
        """The media type of the body, without its options."""
        kind, _, _ = (self.header('Content-Type') or '').partition(';')
        return kind.strip().lower()

    def _leading_parameters(self) -> JSON:
        """Return the parameters that stand whole in the start of the body; anything malformed ends them."""
        if self._body_kind == 'multipart/form-data':
            pairs: list[tuple[str, Any]] = []
            with contextlib.suppress(CIError):
                pairs.extend(self._multipart_fields([self._start], MAX_FIELD))
            return nest(pairs)
        text = self._start.decode(errors='ignore')
        if self._body_kind == 'application/json':
            return dict(leading_members(text))
        whole, _, _ = text.rpartition('&')
        return self._form(whole)

    def _read_body(self) -> JSON:
        kind = self._body_kind
        if kind == 'multipart/form-data':
            return self._read_multipart()
        if kind not in PARAMETER_KINDS:
            return {}
        try:
            text = self.body.decode()
            if kind == 'application/x-www-form-urlencoded':
                return self._form(text)
            found = json.loads(text, parse_constant=int) if text.strip() else {}  # int('NaN') raises
            if '\\u' in text:
                json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no character
        except (ValueError, RecursionError):
            raise InvalidParameter(f'the body is not {kind} in UTF-8') from None
        if not isinstance(found, dict | None):
            raise InvalidParameter('the body must be a JSON object')
        return found or {}  # null is how GitLab's own Go client spells options that are not given

    def _read_multipart(self) -> JSON:
        """Return the fields of a form; the part `file` of an upload goes to disk as it comes."""
        chunks = self.chunks(self.body_limit)
        first = next(chunks, None)
        if first is None:
            return {}  # the type without a body is a client's habit, not a form cut short
        field_limit = MAX_FIELD if self.route.upload else self.body_limit
        pieces = itertools.chain([first], chunks, [None])
        return nest(self._multipart_fields(pieces, field_limit, self._sink))

    def _multipart_fields(self, pieces: Iterable[bytes | None], limit: int,
                          sink_of: Callable[[Any], PartFile | None] = lambda segment: None
                          ) -> Iterator[tuple[str, str]]:
        """Yield the fields of a form as they are complete; None among the pieces says that the form must end there.

        A field may have `limit` bytes; `sink_of` tells where the content of a part goes that is a file.
        """
        _, _, options = (self.header('Content-Type') or '').partition(';')
        try:
            _, parsed = multipart.parse_options_header(f'x;{options}')
            parser = multipart.PushMultipartParser(parsed.get('boundary', ''), max_segment_count=MAX_FIELDS)
            for piece in pieces:
                if piece is None:
                    parser.close()
                    return
                for event in parser.parse(piece):
                    if isinstance(event, multipart.MultipartSegment):
                        segment = event
                        value = bytearray()
                        sink = sink_of(event)
                    elif event is None:
                        if segment.filename is None:
                            yield segment.name, value.decode()
                    elif sink is not None:
                        sink.write(event)
                    elif segment.filename is None:
                        value += event
                        if len(value) > limit:
                            raise TooLarge(f'the field {segment.name!r} has more than {limit} bytes')
        except (multipart.MultipartError, UnicodeDecodeError) as error:
            raise InvalidParameter(f'the body is not a valid multipart form: {error}') from None

    def receive_upload(self) -> None:
        """Store the file of an upload; it is then in `upload`."""
        self._params = self.params

    def _sink(self, segment: Any) -> PartFile | None:
        """Return where an uploaded part goes: to disk, or nowhere."""
        if not self.route.upload or segment.name != 'file' or segment.filename is None or self.upload:
            return None
        self.upload = self.ci.artifacts.receive()
        base = re.sub(r'[\x00-\x1f\x7f]', '', segment.filename.replace('\\', '/').rpartition('/')[2])[:255]
        self.upload.filename = base if base.strip(' .') else 'artifacts'
        return self.upload


# Calls ########################################################################################

class Call(Body):
    """One request: where it came from, its parameters from every place, and who is calling."""

    def __init__(self, ci: Coordinator, declared: Route, environ: Environ) -> None:
        super().__init__(ci, declared, environ)
        self.actor: Any = None                          # what the guard returned
        self.rows: dict[str, Row] = {}                  # the rows that the path names, as far as they were looked up
        self.row_keys: JSON = {}                        # their numbers, and a project's number or path

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.environ['REQUEST_METHOD']

    @property
    def dialect(self) -> Dialect:
        """The runner protocol that this call speaks."""
        assert self.route.dialect is not None, 'only the runners\' routes have a dialect'
        return self.route.dialect

    @property
    def base_url(self) -> str:
        """This coordinator's address as the caller knows it, without a trailing slash."""
        if self._base_url is None:
            self._base_url = self.ci.settings.external_url or self._called_url()
        return self._base_url

    def _called_url(self) -> str:
        host = self.environ.get('HTTP_HOST', '')
        if not re.fullmatch(r'[A-Za-z0-9._\-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?', host):
            host = f'{self.environ["SERVER_NAME"]}:{self.environ["SERVER_PORT"]}'
        prefix = urllib.parse.quote(self.environ.get('SCRIPT_NAME', '').encode('latin-1'))
        return f'{self.environ["wsgi.url_scheme"]}://{host}{prefix}'

    @property
    def remote_address(self) -> str | None:
        """The caller's address; behind trusted proxies it is the one that the first of them saw."""
        networks = self.ci.settings.trusted_proxies
        addresses = [self.environ.get('REMOTE_ADDR') or '']
        forwarded = (self.header('X-Forwarded-For') or '').split(',')
        while forwarded and is_in_networks(addresses[-1], networks):
            addresses.append(forwarded.pop().strip())
        known = [address for address in addresses if address]
        if not known:
            return None
        return known[-1][:45]

    @property
    def given_token(self) -> str:
        """The token that a runner brings, as a parameter or in its protocol's header; '' without one."""
        return self.text('token') or self.header(self.dialect.token_header) or ''

    # -- the path

    def read_path(self, arguments: Mapping[str, str]) -> None:
        """Decode the path's arguments; raise InvalidParameter or NotFound for one that cannot name anything."""
        for name, encoded in arguments.items():
            kind = self.route.kinds[name].partition('_')[0]
            try:
                text = urllib.parse.unquote(encoded, errors='strict')
            except UnicodeDecodeError:
                raise InvalidParameter(f'{name} is invalid') from None
            if '\0' in text:
                raise InvalidParameter(f'{name} is invalid')
            if kind not in ROW_KINDS:
                self.path_params[name] = text
            elif kind == 'project':
                self.row_keys[kind] = text
            else:
                self.row_keys[kind] = self._row_number(name, text)

    def _row_number(self, name: str, text: str) -> int:
        """Return the number of a row; what is no number is 400 in GitLab's API, and 404 everywhere else."""
        if re.fullmatch('-?[0-9]{1,18}', text):
            return int(text)
        if self.route.path.startswith('/api/v4/'):
            raise InvalidParameter(f'{name} is invalid')
        raise NotFound()

    def row(self, kind: str) -> Row:
        """Return the row of a kind that the path names; raise NotFound if it does not exist.

        It is looked up once. A guard that knows the row already puts it into `rows`.
        """
        if kind not in self.rows:
            self.rows[kind] = ROW_KINDS[kind](self, self.row_keys[kind])
        return self.rows[kind]

    @property
    def project(self) -> Row | None:
        """The project that the path names, or None when the call is about the whole instance."""
        if 'project' not in self.row_keys:
            return None
        return self.row('project')

    def arguments(self) -> JSON:
        """Return what the handler's parameters name; raise NotFound if a row of the path does not exist."""
        for kind in self.row_keys:
            self.row(kind)
        given = {'call': self, **self.rows, **self.path_params}
        return {name: given[name] for name in self.route.wanted if name in given}

    # -- the parameters

    def value(self, name: str) -> Any:
        """Return a parameter as it came, or None if it is absent; of one that is repeated, the last value."""
        value = self.params.get(name)
        if isinstance(value, Repeated):
            return value[-1]
        return value

    def has(self, name: str) -> bool:
        """Tell whether a parameter is there and not empty."""
        return self.value(name) not in (None, '')

    def require(self, *names: str) -> None:
        """Raise InvalidParameter for the parameters that are absent."""
        missing = [name for name in names if not self.has(name)]
        if missing:
            raise InvalidParameter(f'{", ".join(missing)} {"is" if len(missing) == 1 else "are"} missing')

    def optional(self, name: str) -> str | None:
        """Return a text parameter, or None if it is absent."""
        value = self.value(name)
        if not isinstance(value, str | None):
            raise InvalidParameter(f'{name} is invalid')
        return value

    def text(self, name: str, default: str = '') -> str:
        """Return a text parameter, or `default` if it is absent."""
        value = self.optional(name)
        if value is None:
            return default
        return value

    def optional_choice(self, name: str, choices: Sequence[str]) -> str | None:
        """Return a text parameter that must be one of `choices`, or None if it is absent or empty."""
        value = self.optional(name) or None
        if value is not None and value not in choices:
            raise InvalidParameter(f'{name} does not have a valid value')
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """Return a text parameter that must be one of `choices`, or `default` if it is absent or empty."""
        return self.optional_choice(name, choices) or default

    def optional_integer(self, name: str) -> int | None:
        """Return a whole number, or None if the parameter is absent or empty."""
        value = self.value(name)
        if value in (None, ''):
            return None
        if isinstance(value, bool) or not re.fullmatch('-?[0-9]{1,18}', str(value)):
            raise InvalidParameter(f'{name} is invalid')
        return int(value)

    def integer(self, name: str, default: int = 0) -> int:
        """Return a whole number, or `default` if the parameter is absent or empty."""
        value = self.optional_integer(name)
        if value is None:
            return default
        return value

    def moment(self, name: str) -> float | None:
        """Return a moment in ISO 8601, as seconds since 1970, or None if the parameter is absent or empty."""
        text = self.text(name)
        if not text:
            return None
        try:
            return parse_moment(text)
        except ValueError:
            raise InvalidParameter(f'{name} is invalid') from None

    def optional_flag(self, name: str) -> bool | None:
        """Return a boolean in any spelling that Rails takes, or None if the parameter is absent or empty."""
        value = self.value(name)
        if value in (None, ''):
            return None
        spelling = str(value).lower()
        if spelling in ('true', 't', '1', 'on', 'yes'):
            return True
        if spelling in ('false', 'f', '0', 'off', 'no'):
            return False
        raise InvalidParameter(f'{name} is invalid')

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a boolean, or `default` if the parameter is absent or empty."""
        value = self.optional_flag(name)
        if value is None:
            return default
        return value

    def words(self, name: str) -> list[str]:
        """Return a list of texts, given as a list, as one text with commas, or under a name that is repeated."""
        value = self.params.get(name)
        if isinstance(value, dict):
            value = list(value.values())    # a[0]=... in a form
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | None) for item in items):
            raise InvalidParameter(f'{name} is invalid')
        joined = ','.join(item for item in items if item)
        return [text.strip() for text in joined.split(',') if text.strip()]

    def choices(self, name: str, allowed: Container[str]) -> list[str]:
        """Return a list of texts that must be among those allowed; an empty text in a list is not."""
        chosen = self.words(name)
        given = self.params.get(name)
        if isinstance(given, list) and '' in given or not all(text in allowed for text in chosen):
            raise InvalidParameter(f'{name} does not have a valid value')
        return chosen

    def mapping(self, name: str) -> JSON:
        """Return a parameter that is a mapping of names to values."""
        value = self.value(name)
        if value in (None, ''):
            return {}
        if not isinstance(value, dict):
            raise InvalidParameter(f'{name} is invalid')
        return value

    def mappings(self, name: str, *required: str) -> list[JSON]:
        """Return a parameter that is a list of mappings, each with the `required` keys."""
        value = self.value(name)
        if isinstance(value, dict) and all(key.isdecimal() for key in value):
            value = list(value.values())  # a[0][key]=... in a form
        if value in (None, ''):
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise InvalidParameter(f'{name} is invalid')
        for index, item in enumerate(value):
            for key in required:
                if item.get(key) is None:
                    raise InvalidParameter(f'{name}[{index}][{key}] is missing')
        return value


# Responses ####################################################################################

class Rendered(str):
    """A text that is JSON already."""


COMPACT_JSON = json.JSONEncoder(separators=(',', ':'), check_circular=False)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> bottle.HTTPResponse:
    """Return an answer of JSON; old runners take it only as exactly ``application/json``."""
    text = value if isinstance(value, Rendered) else COMPACT_JSON.encode(value)
    return bottle.HTTPResponse(text.encode(), status, {'Content-Type': 'application/json', **(headers or {})})


def empty_response(status: int, headers: Mapping[str, str] | None = None) -> bottle.HTTPResponse:
    """Return an answer without a body."""
    return bottle.HTTPResponse(b'', status, dict(headers or {}))


def error_response(error: CIError) -> bottle.HTTPResponse:
    """Return a refusal in GitLab's two forms: ``message`` from the API, ``error`` from its framework."""
    return json_response({error.body_key: error.message}, error.status, error.headers)


def json_refusal(call: Call, error: CIError) -> bottle.HTTPResponse:
    """Show a refusal to a program."""
    return error_response(error)


def hardened(response: bottle.HTTPResponse) -> bottle.HTTPResponse:
    """Return an answer with the headers that every one of ours has."""
    if 'Cache-Control' not in response.headers:
        response.headers['Cache-Control'] = 'private, no-store'
    response.headers['X-Content-Type-Options'] = 'nosniff'
    return response


class FileBody:
    """A window of a file: what a WSGI server needs to send a range, and no more."""

    def __init__(self, file: IO[bytes], start: int, stop: int) -> None:
        self._file = file
        self._start = start
        self._stop = stop
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes within the window, few at a time: each of many slow readers takes as much memory."""
        left = max(0, self._stop - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left, COPY_CHUNK))

    def seekable(self) -> bool:
        """Tell waitress that it may send this at its leisure."""
        return True

    def tell(self) -> int:
        """Return the position within the window."""
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move within the window."""
        origin = {os.SEEK_SET: self._start, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._stop}[whence]
        self._file.seek(origin + offset)
        return self.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def file_response(call: Call, file: IO[bytes], size: int, *, content_type: str, disposition: str,
                  etag: str = '') -> bottle.HTTPResponse:
    """Return a download of an open file: whole, or the range that the caller asks for."""
    headers = {'Content-Type': content_type, 'Content-Disposition': disposition, 'Accept-Ranges': 'bytes',
               'Content-Security-Policy': 'sandbox', 'Cache-Control': 'private, no-cache'}
    if etag:
        headers['ETag'] = f'"{etag}"'
        if call.header('If-None-Match') == headers['ETag']:
            file.close()
            return empty_response(304, headers)
    asked = call.header('Range')
    if call.header('If-Range') not in (None, headers.get('ETag')):
        asked = None  # what the caller has is another version
    try:
        part = byte_range(asked, size)
    except RangeMismatch as error:
        file.close()
        error.headers = {'Content-Range': f'bytes */{size}'}
        raise
    start, stop = part or (0, size)
    headers['Content-Length'] = str(stop - start)
    if part:
        headers['Content-Range'] = f'bytes {start}-{stop - 1}/{size}'
    return bottle.HTTPResponse(FileBody(file, start, stop), 206 if part else 200, headers)


def attachment_header(filename: str) -> str:
    """Return a Content-Disposition for a name that somebody else chose."""
    plain = re.sub(r'[^A-Za-z0-9._ ()+-]', '_', filename) or 'artifacts'
    return f'attachment; filename="{plain}"; filename*=UTF-8\'\'{urllib.parse.quote(filename, safe="")}'


def page_of(call: Call) -> tuple[int, int]:
    """Return the number of the page that is asked for and the rows on it (100 at most)."""
    numbers = {}
    for name, default in (('page', 1), ('per_page', 20)):
        numbers[name] = value = call.integer(name, default)
        if value < 1 or value > 10 ** 9:
            raise InvalidParameter(f'{name} does not have a valid value')
    return numbers['page'], min(100, numbers['per_page'])


def page_link(call: Call, **changes: int) -> str:
    """Return this call's address with some of its query parameters changed."""
    left_out = {*changes, 'private_token', 'job_token', 'access_token'}
    given = urllib.parse.parse_qsl(call.environ.get('QUERY_STRING', ''))
    kept = urllib.parse.urlencode([(name, value) for name, value in given if name not in left_out])
    changed = [f'{name}={value}' for name, value in changes.items()]
    query = '&'.join([kept, *changed] if kept else changed)
    return f'{call.base_url}{call.environ["minici.path"]}?{query}'


def paged_response(call: Call, items: Sequence[Any], total: int | None = None) -> bottle.HTTPResponse:
    """Return one page of a list, with GitLab's paging headers and links.

    `items` is that page of `total` items, or the whole list when `total` is None; a page may be Rendered.
    """
    page, per_page = page_of(call)
    if total is None:
        items, total = items[(page - 1) * per_page:page * per_page], len(items)
    counted = total <= MAX_COUNTED
    last = max(1, -(-total // per_page))
    links: dict[str, int] = {}
    if page > 1:
        links['prev'] = page - 1
    if page < last:
        links['next'] = page + 1
    links['first'] = 1
    if counted:
        links['last'] = last
    headers = {
        'X-Page': str(page),
        'X-Per-Page': str(per_page),
        'X-Prev-Page': str(links.get('prev', '')),
        'X-Next-Page': str(links.get('next', '')),
    }
    if counted:
        headers.update({'X-Total': str(total), 'X-Total-Pages': str(last)})
    addresses = {rel: page_link(call, page=number, per_page=per_page) for rel, number in links.items()}
    headers['Link'] = ', '.join(f'<{address}>; rel="{rel}"' for rel, address in addresses.items())
    return json_response(items, 200, headers)


# Guards #######################################################################################
#
# Each returns who is calling, or raises.

def public(call: Call) -> None:
    """Let everybody in."""


def registration_token(call: Call) -> str:
    """Authenticate by a registration token."""
    call.require('token')
    token = call.text('token')
    call.ci.project_of_registration(token)
    return token


def runner_token(call: Call) -> Row:
    """Authenticate by a runner's token."""
    token = call.text('token')
    if not token:
        raise call.dialect.missing_token()
    return call.ci.verify_runner(token, call.text('system_id'))


def named_job(call: Call, token: str) -> Row | None:
    """Return the job that the path names if `token` opens it, or None; raise an error if there is no such job."""
    try:
        job = call.ci.authenticate_job(call.row_keys['job'], token, holder=call.dialect.runner_token_works)
    except NotFound:
        raise call.dialect.unknown_job() from None
    if job is not None:
        call.rows['job'] = job
    return job


def job_token(call: Call) -> Row:
    """Authenticate by the token of the job that the path names.

    A wrong token in the query or a header is refused before the body is read.
    """
    early = str(call.query.get('token') or call.header(call.dialect.token_header) or '')
    if early and named_job(call, early) is None:
        raise refused_job_token(call, early)
    call.trusted = bool(early)
    if call.method == 'PUT':
        call.require('token')  # GitLab wants it as a parameter here
    if not same_secret(call.given_token, early) and named_job(call, call.given_token) is None:
        raise refused_job_token(call, call.given_token)
    return call.rows['job']


def refused_job_token(call: Call, token: str) -> Forbidden:
    """Return the refusal of a token that does not open a job; the project's own token may learn the job's status."""
    if call.dialect.runner_token_works:
        job = call.row('job')
        if same_secret(token, call.ci.find_project(job['project_id'])['runners_token']):
            return JobNotRunning(job['status'])
    return Forbidden()


def artifacts_token(call: Call) -> Row:
    """Authenticate by the token of the job whose artifacts these are, or of a running job that depends on it."""
    job = named_job(call, call.given_token)
    if job is not None:
        return job
    reader = call.ci.find_job_by_token(call.given_token)
    if reader is None:
        raise call.dialect.unreadable_artifacts()
    if not call.ci.may_read_artifacts(reader, call.row_keys['job']):
        raise Forbidden()
    return reader


def private_token(call: Call) -> Row:
    """Authenticate by a private token, in a header, as a parameter or as OAuth's bearer."""
    scheme, _, bearer = (call.header('Authorization') or '').partition(' ')
    token = call.header('PRIVATE-TOKEN')
    if not token and scheme.lower() == 'bearer':
        token = bearer.strip()
    user = call.ci.find_user(token or call.text('private_token') or call.text('access_token'))
    if user is None:
        raise Unauthorized()
    if user['scope'] != 'api' and call.method not in ('GET', 'HEAD'):
        raise Forbidden('the token has the scope read_api, this needs api')
    call.ci.note_use(user)
    return user


def calling_job(call: Call) -> Row | None:
    """Return the running job whose token came along, or None if no token of a job did; raise if it is not running."""
    token = call.header('JOB-TOKEN') or call.text('job_token')
    if not token:
        return None
    job = call.ci.find_job_by_token(token)
    if job is None:
        raise Unauthorized()
    return job


def job_or_private_token(call: Call) -> Row:
    """Authenticate by a private token, or by a running job's token, which opens its own project alone."""
    job = calling_job(call)
    if job is None:
        return private_token(call)
    if call.row('project')['id'] != job['project_id']:
        raise NotFound('Project')
    return job


def running_job(call: Call) -> Row:
    """Authenticate by a running job's token; a person learns that this is not for people."""
    job = None
    with contextlib.suppress(Unauthorized):
        job = calling_job(call)
    if job is None:
        private_token(call)
        raise NotFound()
    return job


def trigger_token(call: Call) -> Row:
    """Authenticate by a trigger token of the project, or by a running job that may start its pipelines."""
    call.require('token')
    project = call.row('project')
    for trigger in call.ci.list_triggers(project):
        if same_secret(call.text('token'), trigger['token']):
            return trigger
    job = call.ci.find_job_by_token(call.text('token'))
    if job is None or not call.ci.is_open_to_job(project, job):
        raise NotFound()
    return job


def webhook_token(call: Call) -> Row:
    """Authenticate a forge by the project's webhook token, or by a signature made with it."""
    try:
        project = call.row('project')
    except NotFound:
        raise Forbidden('the secret or signature is wrong') from None
    if same_secret(call.header('X-Gitlab-Token'), project['webhook_token']):
        return project
    github = call.header('X-Hub-Signature-256') or ''
    signature = github.removeprefix('sha256=') or call.header('X-Gitea-Signature') or call.header('X-Forgejo-Signature')
    if not signature:
        raise Forbidden('the secret or signature is wrong')
    digest = hmac.new(project['webhook_token'].encode(), call.body, hashlib.sha256).hexdigest()
    if not same_secret(signature, digest):
        raise Forbidden('the secret or signature is wrong')
    return project


def is_for_everybody(call: Call) -> bool:
    """Tell whether anybody may read what the path names: with --public everything, else what is of public projects."""
    if call.ci.settings.public:
        return True
    with contextlib.suppress(NotFound):
        return call.project is not None and call.project['visibility'] == 'public'
    return False


def badge_reader(call: Call) -> Row | None:
    """Authenticate by a private token; let everybody in with --public, or if the project is public."""
    if is_for_everybody(call):
        return None
    return private_token(call)


class RefusalLog:
    """Logs refused calls, at most one a second for each address and route, so that nobody can flood the log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._noted: dict[tuple[str | None, str], float] = {}

    def note(self, call: Call, error: CIError) -> None:
        """Log why a call was refused, and to whom; never its token."""
        caller = (call.remote_address, call.route.path)
        now = time.monotonic()
        with self._lock:
            if now - self._noted.get(caller, -1) < 1:
                return
            if len(self._noted) >= REFUSALS_NOTED:
                self._noted.clear()
            self._noted[caller] = now
        reason = ' '.join(str(error).split())
        log.info('%s %s from %s refused: %s', call.method, call.environ['minici.path'], caller[0], reason[:500])


#: Guards of what other machines send once and do not show to anybody when it is refused.
NOTED_GUARDS = (webhook_token, registration_token)


@dataclass(frozen=True, eq=False)
class Admission:
    """How many bytes of a body may be read, and the refusal if none may."""

    limit: int
    trusted: bool = False
    refusal: bottle.HTTPResponse | None = None


def look(call: Call, extent: Extent) -> bool:
    """Let the guard look at a part of the request; return False if it must see more to decide.

    A guard that knows who is calling has found a good token.
    """
    call.show(extent)
    try:
        call.actor = call.route.auth(call)
    except BodyNeeded:
        return False
    if call.actor is not None:
        call.trusted = True
    return True


def late_token() -> TooLarge:
    """Return the refusal for a body whose token does not begin in time."""
    return TooLarge(f'a token in the body must begin within its first {MAX_UNTRUSTED_BODY} bytes')


def authenticate(call: Call) -> None:
    """Find out who is calling. Of the body no more is read than a stranger may send, until a good token is found."""
    settled = False
    if not call.is_small:
        settled = look(call, HEAD)
        if not settled and not call.trusted:
            settled = look(call, START)
        if not settled and not call.trusted:
            raise late_token()
    if not settled:
        look(call, WHOLE)
    call.show(WHOLE)
    if call.route.upload:
        call.receive_upload()
    if call.trusted and 'minici.trust' in call.environ:
        call.environ['minici.trust']()


def admission(call: Call, start: bytes | None) -> Admission:
    """Return how much of a body may be read; `start` is the part that has arrived, None before it may be sent.

    Raises the refusal of the guard, and TooLarge when the body is larger than it may be.
    """
    call.arriving = True
    length = call.body_length or 0
    settled = look(call, HEAD)
    if not settled and not call.trusted and start is not None:
        settled = look(call, START)
    limit = call.body_limit if call.trusted else MAX_UNTRUSTED_BODY
    if length > limit and (settled or call.trusted):
        raise TooLarge(f'the body has {length} bytes, {limit} are accepted here')
    if start is not None and not call.trusted:
        raise TooLarge(f'the body has more than {limit} bytes') if settled else late_token()
    return Admission(limit, call.trusted)


#: The addresses behind which tokens, runners, variables and projects are changed.
AUDITED = re.compile('/(?:variables|triggers|tokens|sign_in|protected_|job_token_scope|reset_|edit|settings|runners?)'
                     '|/projects(?:/<id:project_key>)?$')


def audit(call: Call) -> None:
    """Log who changed tokens, runners, variables or projects, with what kind of token, and from where."""
    if call.method in ('GET', 'HEAD') or not AUDITED.search(call.route.path):
        return
    who = 'somebody'
    if isinstance(call.actor, Row):
        names = call.actor.keys()
        kind = next(name for name in ('username', 'access_level', 'token', 'id') if name in names)
        who = {'username': 'user', 'access_level': 'runner', 'token': 'trigger', 'id': 'job'}[kind]
        who = f'{who} {call.actor["username" if kind == "username" else "id"]}'
    log.info('audit: %s (%s) from %s: %s %s', who, call.route.auth.__name__, call.remote_address, call.method,
             call.environ['minici.path'])


def answer_call(declared: Route, arguments: Mapping[str, str], environ: Environ) -> bottle.HTTPResponse:
    """Answer a request: read the path, authenticate, call the handler, present its result or its refusal."""
    call = Call(environ['minici.ci'], declared, environ)
    try:
        call.read_path(arguments)
        authenticate(call)
        response = as_response(declared, declared.handler(**call.arguments()))
        audit(call)
    except Exception as error:
        response = refusal_response(call, error)
    finally:
        call.close()
    return hardened(response)


def refusal_response(call: Call, error: Exception) -> bottle.HTTPResponse:
    """Return the answer to a call that failed; what is not the caller's fault is logged."""
    declared = call.route
    refusal = CIError()
    if isinstance(error, CIError):
        refusal = error
    elif isinstance(error, (OSError, MemoryError)):     # a full disk, no descriptors left
        log.error('%s %s: %s', call.method, declared.path, error)
        refusal = Busy('The server is in trouble, see its log')
    else:
        log.error('%s %s failed', call.method, declared.path, exc_info=error)
    if isinstance(refusal, JobNotRunning) and declared.dialect:
        refusal.headers[declared.dialect.status_header] = refusal.job_status
    if declared.auth in NOTED_GUARDS:
        call.environ['minici.refusals'].note(call, refusal)
    refuse = declared.refuse or json_refusal
    return refuse(call, refusal)


def as_response(declared: Route, result: Any) -> bottle.HTTPResponse:
    """Return what a handler returned as a response."""
    if isinstance(result, bottle.HTTPResponse):
        return result
    if result is None:
        return empty_response(204)
    return json_response(result, declared.status)


# Entities #####################################################################################

class Viewer(Protocol):
    """Whoever an entity is made for: links in it start with the address that they use."""

    ci: Coordinator

    @property
    def base_url(self) -> str:
        """The coordinator's address, without a trailing slash."""


def pick(row: Record, *names: str) -> JSON:
    """Return some columns of a row as they are."""
    return {name: row[name] for name in names}


def pick_flags(row: Record, *names: str) -> JSON:
    """Return some columns of a row as booleans."""
    return {name: bool(row[name]) for name in names}


def pick_times(row: Record, *names: str) -> JSON:
    """Return some columns of a row as GitLab writes moments."""
    return {name: iso_time(row[name]) for name in names}


#: What GitLab tells of a user and minici does not ask.
USER_CONSTANTS: JSON = {
    'state': 'active',
    'locked': False,
    'avatar_url': None,
    'public_email': '',
    'is_admin': True,
    'bot': False,
    'bio': None,
    'location': None,
    'skype': '',
    'linkedin': '',
    'twitter': '',
    'discord': '',
    'github': '',
    'website_url': '',
    'job_title': '',
    'pronouns': None,
    'organization': None,
    'work_information': None,
    'local_time': None,
    'followers': 0,
    'following': 0,
}


def user_entity(row: Record, call: Viewer) -> JSON | None:
    """Return the user that a row names, or None."""
    if row['user_id'] is None:
        return None
    user = {'id': row['user_id'], 'name': row['username'], 'username': row['username']}
    user['web_url'] = f'{call.base_url}/{row["username"]}'
    user['created_at'] = iso_time(row['user_created_at'])
    user.update(USER_CONSTANTS)
    return user


def git_time(text: str) -> str | None:
    """Return a date as git prints it with GitLab's milliseconds, or None for what no client could read."""
    date = re.fullmatch('([0-9]{4}-.{14})(Z|[+-][01][0-9]:[0-5][0-9])', text)
    if date is None:
        return None
    return f'{date[1]}.000{date[2]}'


#: What is told of a commit that could not be read, for want of a repository.
UNREAD_COMMIT: JSON = {
    'author_name': '',
    'author_email': '',
    'authored_date': None,
    'committer_name': '',
    'committer_email': '',
    'committed_date': None,
    'message': '',
    'parent_ids': [],
}


def commit_entity(row: Row, call: Viewer) -> JSON:
    """Return a pipeline's commit as read from its repository; without one, its id and empty texts."""
    info = dict(UNREAD_COMMIT)
    if row['commit_info'] is not None:
        info.update(json.loads(row['commit_info']))
    for name in ('authored_date', 'committed_date'):
        info[name] = git_time(info[name] or '') or iso_time(row['pipeline_created_at'])
    return {
        'id': row['sha'],
        'short_id': row['sha'][:8],
        'title': info['message'].partition('\n')[0],
        'created_at': info['committed_date'],
        'trailers': {},
        'extended_trailers': {},
        **info,
        'web_url': f'{call.base_url}/{row["project_path"]}/-/commit/{row["sha"]}',
    }


def status_words(status: str) -> str:
    """Return a status as people say it."""
    if status == 'success':
        return 'passed'
    return status.replace('_', ' ')


def detailed_status(status: str, path: str, root: str) -> JSON:
    """Return the `detailed_status` of the pipeline at `path`; `root` is where minici is mounted."""
    words = status_words(status)
    return {
        'icon': f'status_{status}',
        'text': words,
        'label': words,
        'group': status,
        'tooltip': words,
        'has_details': True,
        'illustration': None,
        'favicon': f'{root}/-/favicon/{status}.svg',
        'details_path': root + path,
    }


def pipeline_entity(row: Row, call: Viewer, *, detail: bool = False) -> JSON:
    """Return a pipeline as lists show it, or in `detail` as its own page does."""
    path = f'/{row["project_path"]}/-/pipelines/{row["id"]}'
    pipeline = pick(row, 'id', 'iid', 'project_id', 'sha', 'ref', 'status', 'source', 'name')
    pipeline.update(pick_times(row, 'created_at', 'updated_at'))
    pipeline['web_url'] = call.base_url + path
    if detail:
        pipeline.update(pipeline_detail(row, call))
        root = urllib.parse.urlsplit(call.base_url).path
        pipeline['detailed_status'] = detailed_status(row['status'], path, root)
    return pipeline


def pipeline_detail(row: Row, call: Viewer) -> JSON:
    """Return the fields that only a pipeline's own page shows."""
    started = row['started_at']
    detail = pick(row, 'before_sha')
    detail.update(pick_flags(row, 'tag'))
    detail['yaml_errors'] = None
    detail['archived'] = False
    detail['user'] = user_entity(row, call)
    detail.update(pick_times(row, 'started_at', 'finished_at'))
    detail.update(dict.fromkeys(('committed_at', 'coverage', 'queued_duration')))
    detail['duration'] = call.ci.pipeline_duration(row)
    if row['coverage'] is not None:
        detail['coverage'] = f'{row["coverage"]:.2f}'
    if started:
        detail['queued_duration'] = int(started - row['created_at']) or None
    return detail


def runner_status(active: int, contacted_at: float | None, now: float) -> JSON:
    """Return a runner's `active`, `paused`, `online` and `status`, as GitLab derives them."""
    if contacted_at is None:
        online = None
        status = 'never_contacted'
    elif now - contacted_at < ONLINE_FOR:
        online = True
        status = 'online'
    else:
        online = False
        status = 'offline'
    return {'active': bool(active), 'paused': not active, 'online': online, 'status': status}


RUNNER_VERSION = ('version', 'revision', 'platform', 'architecture')


def execution_status(busy: int) -> str:
    """Return the `job_execution_status` of a runner or manager that runs jobs, or does not."""
    if busy:
        return 'active'
    return 'idle'


def runner_entity(row: Record, call: Viewer, *, detail: bool = False) -> JSON:
    """Return a runner as lists show it, or in `detail` with its settings and projects; never its token."""
    info = json.loads(row['info'])
    runner = pick(row, 'id', 'description', 'ip_address', 'runner_type')
    runner['is_shared'] = row['runner_type'] == 'instance_type'
    runner['name'] = info.get('name')
    runner['created_at'] = iso_time(row['created_at'])
    runner['created_by'] = None
    runner.update(runner_status(row['active'], row['contacted_at'], call.ci.clock()))
    runner['job_execution_status'] = execution_status(row['is_busy'])
    if not detail:
        return runner
    runner['tag_list'] = json.loads(row['tags'])
    runner.update(pick_flags(row, 'run_untagged', 'locked'))
    runner.update(pick(row, 'maximum_timeout', 'access_level', 'maintenance_note'))
    runner['contacted_at'] = iso_time(row['contacted_at'])
    runner['groups'] = []
    runner.update((name, info.get(name)) for name in RUNNER_VERSION)
    projects = [call.ci.find_project(key) for key in json.loads(row['projects'])]
    runner['projects'] = [project_entity(project, call) for project in projects]
    return runner


def manager_entity(row: Record, call: Viewer) -> JSON:
    """Return a runner manager: one of the machines that share a runner's token."""
    info = json.loads(row['info'])
    manager = pick(row, 'system_id', 'ip_address')
    manager['id'] = round(row['created_at'] * 1_000_000)    # it has no number: the moment of its creation lasts
    manager.update(pick_times(row, 'created_at', 'contacted_at'))
    manager['status'] = runner_status(1, row['contacted_at'], call.ci.clock())['status']
    manager['job_execution_status'] = execution_status(row['is_busy'])
    manager.update((name, info.get(name)) for name in RUNNER_VERSION)
    return manager


def sql_time(column: str) -> str:
    """Return the SQL for a moment as `iso_time` writes it."""
    return f"strftime('%Y-%m-%dT%H:%M:%fZ', {column}, 'unixepoch')"


def sql_flag(condition: str) -> str:
    """Return the SQL for a boolean of JSON."""
    return f"json(CASE WHEN {condition} THEN 'true' ELSE 'false' END)"


#: The SELECT expression of what the Jobs API shows of a job alone: the seed page's fields and the newer ones.
JOB_JSON = f"""json_object(
    'id', job.id,
    'status', job.status,
    'stage', job.stage,
    'name', job.name,
    'ref', pipeline.ref,
    'tag', {sql_flag('pipeline.tag')},
    'coverage', job.coverage,
    'allow_failure', {sql_flag('job.allow_failure')},
    'created_at', {sql_time('job.created_at')},
    'started_at', {sql_time('job.started_at')},
    'finished_at', {sql_time('job.finished_at')},
    'erased_at', {sql_time('job.erased_at')},
    'duration', max(0, round(
        coalesce(job.finished_at, CASE job.status WHEN 'running' THEN :now END) - job.started_at, 3)),
    'queued_duration', max(0, round(coalesce(job.started_at, job.finished_at, :now) - job.queued_at, 3)),
    'web_url', :base_url || '/' || project.path || '/-/jobs/' || job.id,
    'project', json('{{"ci_job_token_scope_enabled":false}}'),
    'trace_mismatch', json(job.trace_state),
    'archived', json('false'),
    'tag_list', json(tag_set.tags),
    'download_url', NULL
    )"""
def jobs_json(rows: Sequence[Row], call: Viewer) -> str:
    """Return jobs as the Jobs API shows them, JSON with commas between.

    `rows` are of `list_jobs` with JOB_JSON; what several of them share is rendered once.
    """
    reasons = call.ci.pending_reasons(rows)
    machines = {(row['id'], row['system_id']): machine_members(row, call) for row in call.ci.list_machines(rows)}
    pipelines = {row['pipeline_id']: row for row in rows}
    users = {row['user_id']: row for row in rows}
    commits = {key: members_json(pipeline_members(row, call)) for key, row in pipelines.items()}
    names = {key: members_json({'user': user_entity(row, call)}) for key, row in users.items()}
    texts = []
    for row in rows:
        shared = f'{commits[row["pipeline_id"]]},{names[row["user_id"]]}'
        machine = machines.get((row['runner_id'], row['system_id']), NO_MACHINE)
        files = files_json(row['artifacts'], call.ci.started_trace_size(row))
        why = why_json(row, reasons[row['id']])
        texts.append(f'{row["entity"][:-1]},{shared},{machine},{files},{why}}}')
    return ','.join(texts)


def members_json(members: JSON) -> str:
    """Return the members of a JSON object as text, without its braces."""
    return COMPACT_JSON.encode(members)[1:-1]


def pipeline_members(row: Row, call: Viewer) -> JSON:
    """Return what a job shows of its pipeline and commit."""
    pipeline: JSON = {'id': row['pipeline_id'], 'iid': row['pipeline_iid']}
    pipeline.update(pick(row, 'project_id', 'sha', 'ref'))
    pipeline['status'] = row['pipeline_status']
    pipeline['source'] = row['source']
    pipeline['created_at'] = iso_time(row['pipeline_created_at'])
    pipeline['updated_at'] = iso_time(row['pipeline_updated_at'])
    pipeline['web_url'] = f'{call.base_url}/{row["project_path"]}/-/pipelines/{row["pipeline_id"]}'
    return {'commit': commit_entity(row, call), 'pipeline': pipeline}


#: What a job shows before its claim.
NO_MACHINE = members_json({'runner': None, 'runner_manager': None})
#: What a job shows that neither waits nor has failed.
NO_REASON = members_json({'pending_reason': None})


def machine_members(row: Row, call: Viewer) -> str:
    """Return as text what a job shows of its runner and of the runner's manager; `row` is of `list_machines`."""
    manager = None
    if row['manager'] is not None:
        manager = manager_entity(json.loads(row['manager']), call)
    return members_json({'runner': runner_entity(row, call), 'runner_manager': manager})


@functools.lru_cache(maxsize=1024)
def files_json(artifacts: str, trace_size: int) -> str:
    """Return as text what a job shows of its artifacts, as far as they are kept, and of its trace."""
    kept = json.loads(artifacts)
    shown = [pick(file, 'file_type', 'size', 'filename', 'file_format') for file in kept]
    archives = [pick(file, 'filename', 'size') for file in kept if file['file_type'] == 'archive']
    expiries = [file['expire_at'] for file in kept if file['expire_at'] is not None]
    if trace_size:
        shown.append({'file_type': 'trace', 'size': trace_size, 'filename': 'job.log', 'file_format': None})
    return members_json({
        'artifacts_file': next(iter(archives), None),
        'artifacts': shown,
        'artifacts_expire_at': iso_time(max(expiries, default=None)),
    })


def why_json(row: Row, reason: str | None) -> str:
    """Return as text why a job waits; only a failed one tells why it failed."""
    why = {'pending_reason': reason}
    if row['status'] == 'failed':
        why['failure_reason'] = row['failure_reason'] or 'unknown_failure'
    elif reason is None:
        return NO_REASON
    return members_json(why)


def job_json(row: Row, call: Viewer) -> Rendered:
    """Return a job as the Jobs API shows it, as text."""
    shown = call.ci.show_job(row, JOB_JSON, call.base_url)
    return Rendered(jobs_json([shown], call))


def job_entity(row: Row, call: Viewer) -> JSON:
    """Return a job as the Jobs API shows it."""
    entity: JSON = json.loads(job_json(row, call))
    return entity


def project_entity(row: Row, call: Viewer, *, detail: bool = False) -> JSON:
    """Return a project; in `detail` with the token that registers its own runners."""
    namespace, _, path = row['path'].rpartition('/')
    url = f'{call.base_url}/{row["path"]}'
    import_url = redacted_url(row['import_url'])
    project = pick(row, 'id', 'name', 'description', 'visibility', 'default_branch', 'build_timeout')
    project['path'] = path
    project['path_with_namespace'] = row['path']
    project['name_with_namespace'] = f'{namespace} / {row["name"]}'.removeprefix(' / ')
    project.update(pick_times(row, 'created_at', 'last_activity_at'))
    project['web_url'] = url
    project['http_url_to_repo'] = project['ssh_url_to_repo'] = import_url or f'{url}.git'
    project['import_url'] = import_url
    project['namespace'] = namespace_entity(row['namespace_id'], namespace, call)
    project['shared_runners_enabled'] = bool(row['shared_runners_enabled'])
    project['ci_allow_fork_pipelines_to_run_in_parent_project'] = bool(row['fork_pipelines'])
    project['build_git_strategy'] = 'clone'
    if row['allow_git_fetch']:
        project['build_git_strategy'] = 'fetch'
    project['ci_config_path'] = row['ci_config_path'] or PIPELINE_FILE
    address = f'{call.base_url}/api/v4/projects/{row["id"]}'
    project['_links'] = {'self': address, 'repo_branches': f'{address}/repository/branches'}
    project.update(PROJECT_CONSTANTS)
    if detail:
        project['runners_token'] = row['runners_token']
        project['webhook_token'] = row['webhook_token']
        project['webhook_url'] = f'{call.base_url}/hooks/{row["id"]}'
    return project


#: The settings of a project that are the same for all of them; a call that asks for another value is refused.
PROJECT_SETTINGS: JSON = {
    'archived': False,
    'topics': [],
    'tag_list': [],
    'jobs_enabled': True,
    'public_jobs': True,
    'ci_default_git_depth': 0,
    'ci_forward_deployment_enabled': False,
    'ci_separated_caches': True,
    'ci_job_token_scope_enabled': False,
    'ci_push_repository_for_job_token_allowed': False,
    'restrict_user_defined_variables': False,
    'auto_cancel_pending_pipelines': 'enabled',
    'auto_devops_enabled': False,
    'keep_latest_artifact': False,
    'mirror': False,
}
#: What GitLab tells of a project besides, and minici does not have.
PROJECT_CONSTANTS: JSON = {
    **PROJECT_SETTINGS,
    'readme_url': None,
    'avatar_url': None,
    'forks_count': 0,
    'star_count': 0,
    'empty_repo': False,
    'import_status': 'none',
    'shared_with_groups': [],
    'group_runners_enabled': False,
    'issues_enabled': False,
    'merge_requests_enabled': False,
    'wiki_enabled': False,
    'snippets_enabled': False,
    'container_registry_enabled': False,
    'packages_enabled': False,
    'lfs_enabled': False,
    'service_desk_enabled': False,
    'request_access_enabled': False,
    'permissions': {'project_access': {'access_level': 50, 'notification_level': 3}, 'group_access': None},
}


def namespace_entity(namespace_id: int, path: str, call: Viewer) -> JSON:
    """Return the namespace of a project: a group, or root's own when the project's path has none."""
    kind = 'group'
    shown = path
    url = f'{call.base_url}/groups/{path}'
    if not path:
        kind = 'user'
        shown = 'root'
        url = f'{call.base_url}/root'
    name = shown.rpartition('/')[2]
    namespace = {'id': namespace_id, 'name': name, 'path': name, 'kind': kind, 'full_path': shown}
    return {**namespace, 'parent_id': None, 'avatar_url': None, 'web_url': url}


def redacted_url(url: str | None) -> str | None:
    """Return an address without the password or token in it."""
    return url and re.sub(r'(?<=//)[^/@\s]*@', '', url)


# -- what runners receive

#: Of the tokens that runners mask in logs. A runner's own token names the build folder and has none of them.
TOKEN_MASK_PREFIXES = ('mcb-', 'mcp-', 'mcg-', 'glrt-')
def predefined_variables(claim: Claim, call: Viewer, runner: Row) -> JSON:
    """Return the predefined variables of a job, by their modern and their old names; None means "not set"."""
    job = claim.job
    spec = stored_spec(claim.job)
    project_url = f'{call.base_url}/{job["project_path"]}'
    variables = server_variables(call.base_url)
    variables.update(pipeline_variables(job))
    variables['CI_NODE_TOTAL'] = 1
    variables['CI_PROJECT_URL'] = project_url
    variables['CI_REPOSITORY_URL'] = repository_url(claim, call)
    variables['CI_PIPELINE_ID'] = job['pipeline_id']
    variables['CI_PIPELINE_IID'] = job['pipeline_iid']
    variables['CI_PIPELINE_CREATED_AT'] = iso_time(job['pipeline_created_at'], 'seconds')
    variables['CI_PIPELINE_URL'] = f'{project_url}/-/pipelines/{job["pipeline_id"]}'
    variables['CI_JOB_ID'] = variables['CI_BUILD_ID'] = job['id']
    variables['CI_JOB_NAME'] = variables['CI_BUILD_NAME'] = job['name']
    variables['CI_JOB_NAME_SLUG'] = slug(job['name'])
    variables['CI_JOB_STAGE'] = variables['CI_BUILD_STAGE'] = job['stage']
    variables['CI_JOB_URL'] = f'{project_url}/-/jobs/{job["id"]}'
    variables['CI_JOB_STARTED_AT'] = iso_time(job['claimed_at'], 'seconds')
    if job['when_'] == 'manual':
        variables['CI_JOB_MANUAL'] = variables['CI_BUILD_MANUAL'] = 'true'
    if spec['image']:
        variables['CI_JOB_IMAGE'] = spec['image'].get('name')
    variables.update(environment_variables(spec['environment']))
    variables['CI_RUNNER_ID'] = runner['id']
    variables['CI_RUNNER_DESCRIPTION'] = runner['description']
    variables['CI_RUNNER_TAGS'] = json.dumps(json.loads(runner['tags']))
    variables['CI_JOB_TAGS'] = json.dumps(json.loads(job['tags']))
    variables['CI_JOB_TIMEOUT'] = job_timeout(job, runner)
    variables['CI_PIPELINE_NAME'] = job['pipeline_name']
    variables.update(user_variables(job['user_id'], job['username'], call.base_url))
    return variables


def runner_variable(key: str, value: str, *, shown: bool = False, masked: bool = False, file: bool = False,
                    raw: bool = False) -> JSON:
    """Return a variable in the shape that runners receive; `shown` ones are no secret."""
    variable: JSON = {'key': key, 'value': value, 'public': shown, 'masked': masked}
    if file:
        variable['file'] = True
    if raw:
        variable['raw'] = True
    return variable


def variables_of_job(claim: Claim, call: Viewer, runner: Row) -> list[JSON]:
    """Return all variables of a job in the shape that runners receive, expanded, later ones winning."""
    job = claim.job
    spec = stored_spec(claim.job)
    variables = [runner_variable(name, claim.token, masked=True) for name in ('CI_JOB_TOKEN', 'CI_BUILD_TOKEN')]
    for name, value in predefined_variables(claim, call, runner).items():
        if value is not None:
            secret = name == 'CI_REPOSITORY_URL'
            variables.append(runner_variable(name, str(value), shown=not secret, masked=secret))
    for name, value in spec['variables'].items():
        variables.append(runner_variable(name, value, shown=True, raw=name in spec['raw_variables']))
    given = [item for row in claim.dependencies for item in json.loads(row['dotenv'])]
    given += [dict(row) for row in claim.variables]
    given += json.loads(job['pipeline_variables'])
    given += json.loads(job['variables'])
    for item in given:
        flagged = {'file': item.get('variable_type') == 'file', 'raw': bool(item.get('raw'))}
        variables.append(runner_variable(item['key'], item['value'], masked=bool(item.get('masked')), **flagged))
    return sort_and_expand_all(variables)


def separated_caches(caches: Iterable[JSON], protected: bool) -> list[JSON]:
    """Return caches under the keys that runners use: jobs of other refs never write what protected ones read."""
    separated = []
    for cache in caches:
        suffix = 'protected' if protected and not cache.get('unprotect') else 'non_protected'
        fallback_keys = [f'{key}-{suffix}' for key in cache.get('fallback_keys') or ()]
        separated.append({**cache, 'key': f'{cache["key"]}-{suffix}', 'fallback_keys': fallback_keys})
    return separated


def repository_url(claim: Claim, call: Viewer) -> str:
    """Return where a runner clones from.

    What is on this machine is served by minici itself, with the job's token as the password. An address
    elsewhere is handed out as it is: a token added to it would leak to a foreign host.
    """
    url = claim.job['import_url']
    if url and not url.startswith('file://'):
        return url
    scheme, _, rest = call.base_url.partition('://')
    return f'{scheme}://gitlab-ci-token:{claim.token}@{rest}/{claim.job["project_path"]}.git'


def job_timeout(job: Row, runner: Row) -> int:
    """Return the seconds a job may run: its own or its project's limit, capped by the runner's."""
    own = job['timeout'] or job['build_timeout']
    return int(min(own, runner['maximum_timeout'] or own))


def job_payload(claim: Claim, call: Viewer, runner: Row) -> JSON:
    """Return a claimed job as `gitlab-runner` 9.0 and later expect it; every number is an integer."""
    job = claim.job
    spec = stored_spec(claim.job)
    timeout = job_timeout(claim.job, runner)
    variables = variables_of_job(claim, call, runner)
    payload: JSON = {'id': job['id'], 'token': claim.token, 'allow_git_fetch': bool(job['allow_git_fetch'])}
    payload['job_info'] = job_info(job)
    payload['git_info'] = git_info(job, repository_url(claim, call), variables)
    payload['runner_info'] = {'timeout': timeout, 'runner_session_url': None}
    payload['variables'] = variables
    payload['steps'] = job_steps(spec, timeout)
    payload['hooks'] = [{'name': name, 'script': script} for name, script in spec['hooks'].items()]
    payload['image'] = spec['image']
    payload['services'] = spec['services']
    payload['artifacts'] = spec['artifacts'] or None
    payload['cache'] = separated_caches(spec['cache'], claim.job['protected'])
    payload['credentials'] = []
    payload['dependencies'] = [dependency_entity(row, claim.token) for row in claim.dependencies]
    payload['features'] = RUNNER_FEATURES
    return payload


#: What runners are told about this server.
RUNNER_FEATURES = {
    'trace_sections': True,
    'failure_reasons': sorted(FAILURE_REASONS),
    'token_mask_prefixes': TOKEN_MASK_PREFIXES,
}


def job_info(job: Row) -> JSON:
    """Return the `job_info` of a claimed job."""
    info = pick(job, 'id', 'name', 'stage', 'project_id', 'project_name')
    info['project_full_path'] = job['project_path']
    info['pipeline_id'] = job['pipeline_id']
    info['namespace_id'] = info['root_namespace_id'] = job['namespace_id']
    if job['user_id'] is not None:
        info['user_id'] = job['user_id']
    info['queue_size'] = job['queue_size']
    info['queue_depth'] = 1     # the first job of the queue is taken
    info['time_in_queue_seconds'] = max(0, int(job['claimed_at'] - job['queued_at']))
    info['project_jobs_running_on_instance_runners_count'] = '+Inf'
    return info


def git_info(job: Row, repo_url: str, variables: Sequence[JSON]) -> JSON:
    """Return the `git_info` of a claimed job: what its runner fetches, and from where."""
    info: JSON = {'repo_url': repo_url}
    info.update(pick(job, 'ref', 'sha', 'before_sha'))
    info['ref_type'] = 'tag' if job['tag'] else 'branch'
    info['repo_object_format'] = {40: 'sha1', 64: 'sha256'}[len(job['sha'])]
    info['depth'] = git_depth(job, variables)
    info['refspecs'] = refspecs(job, info['depth'])
    info['protected'] = bool(job['protected'])
    return info


def git_depth(job: Row, variables: Sequence[JSON]) -> int:
    """Return how many commits a runner fetches, 0 for all.

    A shallow copy of a ref may lack the commit once the ref has moved on; then its whole history is
    fetched, unless the commit can be fetched by its id.
    """
    lost = job['fetched_by'] == 'history' or job['fetched_by'] == 'ref' and job['moved_on']
    given = [variable['value'] for variable in variables if variable['key'] == 'GIT_DEPTH']
    if lost or not given or not re.fullmatch('[0-9]{1,9}', given[-1]):
        return 0
    return int(given[-1])


def refspecs(job: Row, depth: int) -> list[str]:
    """Return what a runner fetches: the commit by its id, if that is possible everywhere, and refs.

    With a `depth` it is the ref of the pipeline, without one every branch and tag, as in GitLab.
    """
    ref = job['ref']
    specs = []
    if job['fetched_by'] == 'sha':
        specs.append(f'+{job["sha"]}:refs/pipelines/{job["pipeline_id"]}')
    if job['merge_request']:
        specs.append(f'+{ref}:{ref}')
    if not depth:
        specs += ['+refs/heads/*:refs/remotes/origin/*', '+refs/tags/*:refs/tags/*']
    elif job['tag']:
        specs.append(f'+refs/tags/{ref}:refs/tags/{ref}')
    elif not job['merge_request']:
        specs.append(f'+refs/heads/{ref}:refs/remotes/origin/{ref}')
    return specs


def job_steps(spec: JSON, timeout: int) -> list[JSON]:
    """Return the steps of a job: its script, its release, and what runs after them in any case."""
    step = {'timeout': timeout, 'when': 'on_success', 'allow_failure': False}
    steps = [{'name': 'script', 'script': spec['script'], **step}]
    if spec['release']:
        steps.append({'name': 'release', 'script': [release_command(spec['release'])], **step})
    if spec['after_script']:
        step.update(when='always', allow_failure=True)
        steps.append({'name': 'after_script', 'script': spec['after_script'], **step})
    return steps


def double_quoted(text: str) -> str:
    """Return a text in double quotes for a shell, which still expands variables in it."""
    escaped = re.sub(r'(["`\\])', r'\\\1', text)
    return f'"{escaped}"'


def release_command(release: Members) -> str:
    """Return the command with which a runner creates a job's release; the shell expands variables in it."""
    words = ['release-cli create']
    for name in ('name', 'description', 'tag_name', 'tag_message', 'ref', 'released_at'):
        if release.get(name):
            words.append(f'--{name.replace("_", "-")} {double_quoted(release[name])}')
    for milestone in release.get('milestones', ()):
        words.append(f'--milestone {double_quoted(milestone)}')
    for link in release.get('assets', {}).get('links', ()):
        words.append(f'--assets-link {double_quoted(json.dumps(link, separators=(",", ":")))}')
    return ' '.join(words)


def dependency_entity(row: Row, token: str) -> JSON:
    """Return a job whose artifacts another may fetch with its own token; no archive, no `artifacts_file`."""
    entity = {'id': row['id'], 'name': row['name'], 'token': token}
    if row['artifacts_filename'] is not None:
        entity['artifacts_file'] = {'filename': row['artifacts_filename'], 'size': row['artifacts_size']}
    return entity


# Shared responses #############################################################################

RUNNER_INFO = ('name', 'version', 'revision', 'platform', 'architecture', 'executor', 'shell')


def runner_info(call: Call) -> JSON:
    """Return what a runner says about itself in `info`."""
    said = call.mapping('info')
    info: JSON = {name: said[name][:255] for name in RUNNER_INFO if isinstance(said.get(name), str)}
    features = said.get('features')
    if isinstance(features, dict):
        able = sorted(name for name, able in features.items() if able is True and len(name) <= MAX_FEATURES)
        info['features'] = able[:MAX_FEATURES]
    return info


def runner_settings(call: Call) -> JSON:
    """Return the settings of a runner that the call gives, for `create_runner` and `edit_runner`."""
    if call.has('active') and call.has('paused'):
        raise InvalidParameter('active, paused are mutually exclusive')
    settings = {
        'description': call.optional('description'),
        'run_untagged': call.optional_flag('run_untagged'),
        'locked': call.optional_flag('locked'),
        'active': call.optional_flag('active'),
        'access_level': call.optional_choice('access_level', ('not_protected', 'ref_protected')),
        'maximum_timeout': call.optional_integer('maximum_timeout'),
        'maintenance_note': call.optional('maintenance_note') or call.optional('maintainer_note'),
    }
    if call.has('paused'):
        settings['active'] = not call.flag('paused')
    given: JSON = {name: value for name, value in settings.items() if value is not None}
    if 'tag_list' in call.params:
        given['tag_list'] = call.words('tag_list')
    return given


def register_runner(call: Call) -> tuple[Row, str]:
    """Register the runner that calls with a registration token; return it and its own token."""
    return call.ci.register_runner(call.actor, info=runner_info(call), ip_address=call.remote_address,
                                   **runner_settings(call))


def token_entity(token: str, **more: Any) -> JSON:
    """Return a new token; it never expires, and is shown this once."""
    return {**more, 'token': token, 'token_expires_at': None}


def claim_response(call: Call, payload: Callable[[Claim, Call, Row], Any],
                   nothing: Callable[[Mapping[str, str]], bottle.HTTPResponse]) -> bottle.HTTPResponse:
    """Hand the runner a job, or answer `nothing` with the queue's value, which it sends along next time."""
    runner = call.actor
    info = runner_info(call)
    system_id = call.text('system_id')
    last_update = call.optional('last_update')
    job_age = call.optional_integer('job_age')
    call.ci.contact(runner, info, call.remote_address, system_id)
    claim = call.ci.poll(runner, last_update=last_update, job_age=job_age, system_id=system_id or None,
                         features=info.get('features', ASSUMED_FEATURES))
    if claim is None:
        return nothing({'X-GitLab-Last-Update': call.ci.queue_value(runner)})
    try:
        return json_response(payload(claim, call, runner), 201)
    except BaseException:
        call.ci.return_job(claim)
        raise


def trace_interval(call: Call, job: Row) -> dict[str, str]:
    """Return the header that tells a runner how soon to send its next piece of the trace."""
    interval = QUIET_INTERVAL
    if call.ci.traces.is_watched(job['id']):
        interval = WATCHED_INTERVAL
    return {'X-GitLab-Trace-Update-Interval': str(interval)}


def update_response(call: Call, job: Row) -> bottle.HTTPResponse:
    """Accept a PUT: the job's state, and from old runners its whole trace."""
    output = call.mapping('output')
    checksum = output.get('checksum') or call.optional('checksum')
    bytesize = output.get('bytesize')
    if not isinstance(checksum, str | None) or not isinstance(bytesize, int | None):
        raise InvalidParameter('output is invalid')
    trace = None
    if call.optional('trace') is not None:
        trace = call.text('trace').encode()
    try:
        status = call.ci.update_job(
            job, call.optional('state'), trace=trace, checksum=checksum, bytesize=bytesize,
            failure_reason=call.optional('failure_reason'), exit_code=call.optional_integer('exit_code'))
    except JobNotRunning:
        if call.dialect.put_gone_status == 404:
            raise NotFound() from None
        raise
    headers = {call.dialect.status_header: status}
    if status in ALIVE:
        headers.update(trace_interval(call, job))
    return json_response(200, 200, headers)


def trace_response(call: Call, job: Row) -> bottle.HTTPResponse:
    """Accept a PATCH: a chunk of the trace that begins where the trace ends.

    The `Range` of the answer counts one past the last byte: runners go on from that number.
    """
    start = trace_offset(call.header('Content-Range'))
    data = call.body
    job_status = job['status']
    status = 202
    try:
        size = call.ci.append_trace(job, start, data)
        if job_status == 'pending':
            job_status = 'running'  # the first piece accepted it
    except JobNotRunning as gone:
        job_status = gone.job_status
        status = call.dialect.patch_gone_status
        if job_status == 'failed':
            status = 403    # the one answer that stops runners before 1.8
        size = call.ci.trace_size(job)
    except RangeMismatch as mismatch:
        size = mismatch.size
        repeated = data and start + len(data) == size     # the answer to the last chunk was lost
        if not repeated or not call.dialect.accepts_repeated_chunk:
            raise
    headers = {call.dialect.status_header: job_status, 'Range': f'0-{size}', **trace_interval(call, job)}
    if status == 403:
        raise Forbidden('Job is not running', headers)
    return empty_response(status, headers)


def store_upload(call: Call, job: Row) -> None:
    """Store the archive or report that a runner uploads."""
    if job['status'] not in HELD:
        raise JobNotRunning(job['status'])
    if call.upload is None:
        raise call.dialect.missing_file()
    file_type = call.text('artifact_type') or 'archive'
    file_format = call.text('artifact_format') or 'zip'
    if file_type in ARTIFACT_TYPES and file_format != ARTIFACT_FORMATS.get(file_type, 'raw'):
        raise BadRequest(f'artifacts of the type {file_type} do not come as {file_format}')
    call.ci.store_artifacts(job, call.upload, file_type=file_type, file_format=file_format,
                            expire_in=call.optional('expire_in'), replace=call.dialect.second_upload_replaces)


def artifacts_response(call: Call, job: Row, file_type: str = 'archive') -> bottle.HTTPResponse:
    """Send a job's archive or report."""
    artifact, file = call.ci.open_artifacts(job, file_type)
    disposition = attachment_header(artifact['filename'])
    response = file_response(call, file, artifact['size'], content_type='application/octet-stream',
                             disposition=disposition, etag=artifact['sha256'])
    response.headers['Content-Transfer-Encoding'] = 'binary'
    return response


def log_response(call: Call, job: Row) -> bottle.HTTPResponse:
    """Send a job's trace and mark it watched, so that its runner reports sooner; raise NotFound without a trace."""
    file = call.ci.open_trace(job, masked=True)
    call.ci.traces.looked_at(job['id'])
    size = os.fstat(file.fileno()).st_size
    disposition = f'inline; filename="{job["id"]}.log"'
    return file_response(call, file, size, content_type='text/plain; charset=utf-8', disposition=disposition)


def entry_response(call: Call, job: Row, path: str) -> bottle.HTTPResponse:
    """Send one file out of a job's archive, under its own name."""
    if '..' in path.split('/') or path.startswith('/'):
        raise BadRequest('the path must stay within the archive')
    archive = call.ci.find_artifact(job['id'])
    file, size = call.ci.artifacts.open_entry(archive['stored_as'], path)
    content_type, encoding = mimetypes.guess_type(path)
    if content_type is None or encoding is not None:
        content_type = 'application/octet-stream'
    disposition = attachment_header(path.rpartition('/')[2])
    return file_response(call, file, size, disposition=disposition, content_type=content_type)


# Runner API ###################################################################################
#
# A runner registers once, then asks for work until it gets a job; it sends the trace in chunks
# (PATCH), its state now and then (PUT), artifacts before the last PUT. Any of these may be repeated
# after a lost answer. The answers' status header is how it learns that its job was canceled.

V4 = Dialect(
    token_header='JOB-TOKEN',
    status_header='Job-Status',
    unknown_job=Forbidden,
    missing_token=lambda: InvalidParameter('token is missing'),
    patch_gone_status=403,
    put_gone_status=403,
    accepts_repeated_chunk=True,
    unreadable_artifacts=Unauthorized,
    runner_token_works=False,
    second_upload_replaces=False,
    missing_file=lambda: InvalidParameter('file is missing'),
)


@route('POST', '/api/v4/runners', auth=registration_token, status=201)
def register_runner_route(call: Call) -> JSON:
    """Register a runner; its own token is in the answer and nowhere else."""
    runner, token = register_runner(call)
    return token_entity(token, id=runner['id'])


@route('DELETE', '/api/v4/runners', auth=runner_token, dialect=V4)
def unregister_runner_route(call: Call) -> None:
    """Remove the runner whose token this is."""
    call.ci.unregister_runner(call.actor)


@route('DELETE', '/api/v4/runners/managers', auth=runner_token, dialect=V4)
def unregister_manager_route(call: Call) -> None:
    """Remove one of the runner managers (machines) that share a runner's token."""
    call.require('system_id')
    call.ci.unregister_runner(call.actor, call.text('system_id'))


@route('POST', '/api/v4/runners/verify', auth=runner_token, dialect=V4)
def verify_runner_route(call: Call) -> JSON:
    """Tell a runner that it is still registered."""
    call.ci.contact(call.actor, runner_info(call), call.remote_address, call.text('system_id'))
    return token_entity(call.text('token'), id=call.actor['id'])


@route('POST', '/api/v4/runners/reset_authentication_token', auth=runner_token, dialect=V4, status=201)
def reset_own_token_route(call: Call) -> JSON:
    """Give a runner a new token in exchange for its old one."""
    return token_entity(call.ci.reset_runner_token(call.actor))


@route('GET', '/api/v4/runners/router/discovery', auth=public)
def discover_router_route() -> bottle.HTTPResponse:
    """Say that there is no job router; the newest runners then poll."""
    return json_response({'message': '501 Not Implemented'}, 501)


@route('POST', '/api/v4/jobs/request', auth=runner_token, dialect=V4)
def request_job_route(call: Call) -> bottle.HTTPResponse:
    """Claim a job."""
    return claim_response(call, job_payload, lambda headers: empty_response(204, headers))


@route('PUT', '/api/v4/jobs/<id:job>', auth=job_token, dialect=V4, limit=MAX_TRACE_BODY)
def update_job_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Report a job's state; GitLab wants the token as a parameter here."""
    call.optional_choice('state', ('pending', 'running', 'success', 'failed'))
    return update_response(call, job)


@route('PATCH', '/api/v4/jobs/<id:job>/trace', auth=job_token, dialect=V4, limit=MAX_TRACE_BODY, raw=True)
def append_trace_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Add a chunk to a job's trace."""
    return trace_response(call, job)


@route('POST', '/api/v4/jobs/<id:job>/artifacts', auth=job_token, dialect=V4, upload=True)
def upload_artifacts_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Store an archive or report of a running job."""
    store_upload(call, job)
    return json_response(201, 201)


@route('GET', '/api/v4/jobs/<id:job>/artifacts', auth=artifacts_token, dialect=V4)
def download_artifacts_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Send a job's archive to the job itself or to a job that depends on it."""
    return artifacts_response(call, job)


@route('GET', '/api/v4/job', auth=running_job)
def current_job_route(call: Call) -> Rendered:
    """Return the job that a running job's token belongs to."""
    return job_json(call.actor, call)


# Legacy CI API ################################################################################
#
# The protocol of 2016, where a job is called a build. It answered at /ci/api/v1, before that at
# /api/v1, and in the oldest documents at /ci.

V1 = Dialect(
    token_header='BUILD-TOKEN',
    status_header='Build-Status',
    unknown_job=NotFound,
    missing_token=Forbidden,
    patch_gone_status=202,
    put_gone_status=404,
    accepts_repeated_chunk=False,
    unreadable_artifacts=Forbidden,
    runner_token_works=True,
    second_upload_replaces=True,
    missing_file=lambda: BadRequest('Missing artifacts file!'),
)
#: The agents that know 204 as "nothing to do"; the pattern alone decides, as in GitLab.
KNOWS_204 = re.compile(r'gitlab(?:-ci-multi)?-runner [0-9]+\.[0-9]+\.[0-9]+(?:~beta\.[0-9]+\.g[0-9a-f]+)? ')


def legacy_route(method: str, path: str, *, auth: Guard, **options: Any) -> Callable[[Handler], Handler]:
    """Record a handler at each of the three addresses of the old protocol."""
    paths = [prefix + path for prefix in ('/ci/api/v1', '/api/v1', '/ci')]
    return route(method, *paths, auth=auth, dialect=V1, **options)


def build_token(call: Call) -> Row:
    """Authenticate by the token of a build, or of the runner that holds it.

    A runner's token is looked at first: old runners ask for build -1 to learn whether they are
    still registered, and 404 means yes.
    """
    runner = call.ci.find_runner(call.given_token)
    job = None
    with contextlib.suppress(NotFound):
        job = call.ci.authenticate_job(call.row_keys['job'], call.given_token, holder=runner is not None)
    if job is None and runner is not None:
        raise NotFound()
    if job is None:
        raise Forbidden()
    call.rows['job'] = job
    return job


def named_runner_token(call: Call) -> Row:
    """Authenticate by a runner's token; here a missing token is told apart from a wrong one."""
    call.require('token')
    return runner_token(call)


BUILD_ARTIFACTS = ('name', 'untracked', 'paths', 'exclude', 'when', 'expire_in')    # that old runners know


def build_options(claim: Claim) -> JSON:
    """Return the `options` of a build: what is not its script."""
    spec = stored_spec(claim.job)
    options: JSON = {}
    if spec['image']:
        options['image'] = spec['image']['name']
    if spec['services']:
        options['services'] = [service['name'] for service in spec['services']]
    for item in spec['artifacts']:
        if item.get('artifact_type', 'archive') == 'archive':
            options['artifacts'] = {key: item[key] for key in BUILD_ARTIFACTS if key in item}
    for item in spec['cache'][:1]:
        suffix = 'protected' if claim.job['protected'] else 'non_protected'
        options['cache'] = {'key': f'{item["key"]}-{suffix}', 'untracked': item['untracked'], 'paths': item['paths']}
    if spec['after_script']:
        options['after_script'] = spec['after_script']
    if spec['dependencies'] is not None or spec['needs'] is not None:
        options['dependencies'] = [row['name'] for row in claim.dependencies]
    return options


def build_variable(variable: Members) -> JSON:
    """Return a variable in the shape that runners before 9.0 receive."""
    entity = {name: variable[name] for name in ('key', 'value', 'public')}
    if variable.get('file'):
        entity['file'] = True
    return entity


def build_payload(claim: Claim, call: Call, runner: Row) -> JSON:
    """Return a claimed job as runners before 9.0 expect it."""
    job = claim.job
    payload = build_summary(job, claim.token)
    payload['commands'] = '\n'.join(stored_spec(job)['script'])
    payload['repo_url'] = repository_url(claim, call)
    payload['before_sha'] = job['before_sha']
    payload['allow_git_fetch'] = bool(job['allow_git_fetch'])
    payload['options'] = build_options(claim)
    payload['timeout'] = job_timeout(job, runner)
    payload['variables'] = [build_variable(variable) for variable in variables_of_job(claim, call, runner)]
    payload['credentials'] = []
    payload['depends_on_builds'] = [build_dependency(row, claim.token) for row in claim.dependencies]
    return payload


def build_summary(job: Row, token: str) -> JSON:
    """Return what a build and the builds it depends on have in common."""
    summary = pick(job, 'id', 'ref', 'sha', 'status', 'name', 'stage', 'project_id', 'project_name')
    summary['tag'] = bool(job['tag'])
    summary['token'] = token
    return summary


def build_dependency(row: Row, token: str) -> JSON:
    """Return a build that another one depends on."""
    return {**build_summary(row, token), **dependency_entity(row, token)}


@legacy_route('POST', '/builds/register', auth=runner_token)
def register_build_route(call: Call) -> bottle.HTTPResponse:
    """Claim a build; old agents get 404 when there is none, a paused runner always does."""
    if not call.actor['active']:
        raise NotFound()

    def nothing(headers: Mapping[str, str]) -> bottle.HTTPResponse:
        if KNOWS_204.search(call.header('User-Agent') or ''):
            return empty_response(204, headers)
        return json_response({'message': '404 Not Found'}, 404, headers)

    return claim_response(call, build_payload, nothing)


@legacy_route('PUT', '/builds/<id:job>', auth=build_token, limit=MAX_TRACE_BODY)
def update_build_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Report a build's state and whole trace."""
    return update_response(call, job)


@legacy_route('PATCH', '/builds/<id:job>/trace.txt', auth=job_token, limit=MAX_TRACE_BODY, raw=True)
def append_build_trace_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Add a chunk to a build's trace."""
    return trace_response(call, job)


@legacy_route('POST', '/builds/<id:job>/artifacts/authorize', auth=job_token)
def authorize_build_artifacts_route(call: Call, job: Row) -> JSON:
    """Tell whether an upload of `filesize` bytes would be accepted."""
    if job['status'] not in ALIVE:
        raise JobNotRunning(job['status'])
    limit = call.ci.settings.max_artifacts_size
    if call.integer('filesize', 0) > limit:
        raise TooLarge(f'{limit} bytes are taken at most (the setting max_artifacts_size)')
    return {'MaximumSize': limit}


@legacy_route('POST', '/builds/<id:job>/artifacts', auth=job_token, upload=True, status=201)
def upload_build_artifacts_route(call: Call, job: Row) -> JSON:
    """Store a running build's archive; a second one replaces it."""
    store_upload(call, job)
    artifact = call.ci.find_artifact(job['id'])
    entity = build_summary(call.ci.find_job(job), call.given_token)
    entity['artifacts_file'] = {'filename': artifact['filename'], 'size': artifact['size']}
    entity['artifacts_expire_at'] = iso_time(artifact['expire_at'])
    return entity


@legacy_route('GET', '/builds/<id:job>/artifacts', auth=artifacts_token)
def download_build_artifacts_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Send a build's archive."""
    return artifacts_response(call, job)


@legacy_route('DELETE', '/builds/<id:job>/artifacts', auth=job_token)
def delete_build_artifacts_route(call: Call, job: Row) -> JSON:
    """Remove a build's archive; doing it again is no error. A build's own token stops working with the build."""
    if job['status'] not in ALIVE and same_secret(token_hash(call.given_token), job['token_hash']):
        raise JobNotRunning(job['status'])
    call.ci.delete_artifacts(job=job)
    return build_summary(call.ci.find_job(job), '')


@legacy_route('POST', '/runners/register', auth=registration_token, status=201)
def register_legacy_runner_route(call: Call) -> JSON:
    """Register a runner; as in 2016, invalid settings answer 404."""
    try:
        runner, token = register_runner(call)
    except BadRequest as error:
        if 'tags_list' in error.message:
            raise NotFound() from None
        raise
    return {'id': runner['id'], 'token': token}


@legacy_route('DELETE', '/runners/delete', auth=named_runner_token)
def delete_legacy_runner_route(call: Call) -> JSON:
    """Remove the runner whose token this is."""
    call.ci.unregister_runner(call.actor)
    return {'id': call.actor['id']}


# Jobs and pipelines API #######################################################################

PROJECT = '/api/v4/projects/<id:project_key>'
JOB = f'{PROJECT}/jobs/<job_id:job>'
PIPELINES = (f'{PROJECT}/pipelines', f'{PROJECT}/pipeline')  # the seed page writes the latter
PIPELINE = f'{PIPELINES[0]}/<pipeline_id:pipeline>'


def newest_pipeline(call: Call, project: Row, **filters: Any) -> Row | None:
    """Return the newest pipeline of a project's ref or sha, or None if there is none."""
    rows, _ = call.ci.list_pipelines(project, limit=1, count_to=1, **filters)
    return next(iter(rows), None)


#: The statuses that clients may ask for; no job of minici ever waits for a callback.
KNOWN_STATUSES = (*JOB_STATUSES, 'waiting_for_callback')


def jobs_response(call: Call, scope: Sequence[str], **filters: Any) -> bottle.HTTPResponse:
    """Return a page of jobs in the statuses of `scope`, by number or, with ``pagination=keyset``, by cursor."""
    number, per_page = page_of(call)
    if call.optional_choice('pagination', ('keyset', 'offset')) == 'keyset':
        return keyset_response(call, per_page, scope=scope, **filters)
    rows = call.ci.list_jobs(scope=scope, limit=per_page, offset=(number - 1) * per_page,
                              entity=JOB_JSON, base_url=call.base_url, **filters)
    total = call.ci.count_jobs(scope=scope, limit=MAX_COUNTED + 1, **filters)
    return paged_response(call, Rendered(f'[{jobs_json(rows, call)}]'), total)


def keyset_response(call: Call, per_page: int, **filters: Any) -> bottle.HTTPResponse:
    """Return the page of jobs after a cursor, the last job's id; its one header is the link to the next."""
    rows = call.ci.list_jobs(before=call.optional_integer('cursor'), limit=per_page + 1,
                              entity=JOB_JSON, base_url=call.base_url, **filters)
    headers = {}
    if len(rows) > per_page:
        rows.pop()
        link = page_link(call, cursor=rows[-1]['id'])
        headers['Link'] = f'<{link}>; rel="next"'
    return json_response(Rendered(f'[{jobs_json(rows, call)}]'), 200, headers)


@route('GET', f'{PROJECT}/jobs', auth=job_or_private_token)
def list_project_jobs_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """List a project's jobs, retried ones included, newest first."""
    return jobs_response(call, call.choices('scope', KNOWN_STATUSES), project=project)


@route('GET', *(f'{path}/<pipeline_id:pipeline>/jobs' for path in PIPELINES), auth=job_or_private_token)
def list_pipeline_jobs_route(call: Call, pipeline: Row) -> bottle.HTTPResponse:
    """List a pipeline's jobs, newest first."""
    scope = call.choices('scope', KNOWN_STATUSES)
    include_retried = call.flag('include_retried')
    return jobs_response(call, scope, pipeline=pipeline, include_retried=include_retried)


@route('GET', *(f'{path}/<pipeline_id:pipeline>/bridges' for path in PIPELINES), auth=job_or_private_token)
def list_bridges_route(call: Call, pipeline: Row) -> bottle.HTTPResponse:
    """List a pipeline's bridges with the pipelines that they have started, newest first."""
    number, per_page = page_of(call)
    found = call.ci.list_bridges(pipeline, call.choices('scope', KNOWN_STATUSES))
    start = (number - 1) * per_page
    entities = [bridge_entity(call, bridge, downstream) for bridge, downstream in found[start:start + per_page]]
    return paged_response(call, entities, len(found))


def bridge_entity(call: Call, bridge: Row, downstream: int | None) -> JSON:
    """Return a bridge: a job without a runner and artifacts, and the pipeline that it has started."""
    entity = job_entity(bridge, call)
    for key in ('runner', 'runner_manager', 'artifacts', 'artifacts_file', 'artifacts_expire_at', 'tag_list'):
        entity.pop(key, None)
    entity['downstream_pipeline'] = None
    if downstream is not None:
        entity['downstream_pipeline'] = pipeline_entity(call.ci.find_pipeline(downstream), call)
    return entity


def job_with_artifacts(call: Call, project: Row, ref: str) -> Row:
    """Return the job of the given name whose archive is the newest of a ref."""
    call.require('job')
    return call.ci.find_job_with_artifacts(project, ref, call.text('job'))


@route('GET', f'{PROJECT}/jobs/artifacts/<ref:path>/download', auth=job_or_private_token)
def download_latest_artifacts_route(call: Call, project: Row, ref: str) -> bottle.HTTPResponse:
    """Send the archive of a job's last success on a ref."""
    return artifacts_response(call, job_with_artifacts(call, project, ref))


@route('GET', f'{PROJECT}/jobs/artifacts/<ref:path>/raw/<path:path>', auth=job_or_private_token)
def download_latest_file_route(call: Call, project: Row, ref: str, path: str) -> bottle.HTTPResponse:
    """Send one file out of that archive."""
    return entry_response(call, job_with_artifacts(call, project, ref), path)


@route('GET', JOB, auth=job_or_private_token)
def show_job_route(call: Call, job: Row) -> Rendered:
    """Show one job."""
    return job_json(job, call)


@route('GET', f'{JOB}/trace', auth=job_or_private_token)
def show_trace_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Send a job's trace, or the requested range of it, so that it can be followed."""
    return log_response(call, job)


@route('GET', f'{JOB}/artifacts', auth=job_or_private_token)
def download_job_artifacts_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Send a job's archive."""
    return artifacts_response(call, job)


@route('GET', f'{JOB}/artifacts/<path:path>', auth=job_or_private_token)
def download_job_file_route(call: Call, job: Row, path: str) -> bottle.HTTPResponse:
    """Send one file out of a job's archive."""
    return entry_response(call, job, path)


@route('DELETE', f'{JOB}/artifacts', auth=private_token)
def delete_job_artifacts_route(call: Call, job: Row) -> None:
    """Remove a job's artifacts; the trace stays."""
    call.ci.delete_artifacts(job=job)


@route('DELETE', f'{PROJECT}/artifacts', auth=private_token, status=202)
def delete_project_artifacts_route(call: Call, project: Row) -> JSON:
    """Remove the artifacts of all finished jobs of a project."""
    call.ci.delete_artifacts(project=project)
    return {'message': '202 Accepted'}


@route('POST', f'{JOB}/artifacts/keep', auth=private_token)
def keep_job_artifacts_route(call: Call, job: Row) -> Rendered:
    """Keep a job's artifacts for good."""
    return job_json(call.ci.keep_artifacts(job), call)


@route('POST', f'{JOB}/cancel', auth=private_token, status=201)
def cancel_job_route(call: Call, job: Row) -> Rendered:
    """Cancel a job."""
    return job_json(call.ci.cancel_job(job), call)


@route('POST', f'{JOB}/retry', auth=private_token, status=201)
def retry_job_route(call: Call, job: Row) -> Rendered:
    """Run a job again, as a new one."""
    return job_json(call.ci.retry_job(job, call.actor), call)


@route('POST', f'{JOB}/erase', auth=private_token, status=201)
def erase_job_route(call: Call, job: Row) -> Rendered:
    """Remove a job's trace and artifacts."""
    return job_json(call.ci.erase_job(job), call)


@route('POST', f'{JOB}/play', auth=private_token)
def play_job_route(call: Call, job: Row) -> Rendered:
    """Start a manual job, with variables for this run."""
    variables = call.mappings('job_variables_attributes', 'key', 'value')
    return job_json(call.ci.play_job(job, call.actor, variables), call)


@route('POST', f'{PROJECT}/pipeline', auth=private_token, status=201)
def create_pipeline_route(call: Call, project: Row) -> JSON:
    """Create a pipeline for a ref; `sha` and `content` stand in for a repository."""
    call.require('ref')
    content = call.params.get('content') or None
    if not isinstance(content, str | dict | None):
        raise InvalidParameter('content is invalid')
    variables = call.mappings('variables', 'key', 'value')
    ref = call.text('ref')
    sha = call.text('sha') or None
    inputs = call.mapping('inputs')
    if content is not None:
        content = Foreign(content)
    pipeline = call.ci.create_pipeline(project, ref, sha=sha, content=content, tag=call.flag('tag'),
                                       variables=variables, user=call.actor, inputs=inputs)
    return pipeline_entity(pipeline, call, detail=True)


@route('GET', PIPELINES[0], auth=private_token)
def list_pipelines_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """List a project's pipelines, newest first."""
    number, per_page = page_of(call)
    filters: JSON = {}
    for name in ('ref', 'sha', 'source', 'name', 'username'):
        filters[name] = call.text(name) or None
    for name in ('created_after', 'created_before', 'updated_after', 'updated_before'):
        filters[name] = call.moment(name)
    filters['status'] = call.optional_choice('status', KNOWN_STATUSES)
    filters['scope'] = call.optional_choice('scope', ('running', 'pending', 'finished', 'branches', 'tags'))
    filters['yaml_errors'] = call.optional_flag('yaml_errors')
    filters['order_by'] = call.choice('order_by', ('id', 'status', 'ref', 'updated_at', 'user_id'), 'id')
    filters['sort'] = call.choice('sort', ('asc', 'desc'), 'desc')
    rows, total = call.ci.list_pipelines(project, limit=per_page, offset=(number - 1) * per_page, **filters)
    return paged_response(call, [pipeline_entity(row, call) for row in rows], total)


@route('GET', f'{PIPELINES[0]}/latest', auth=private_token)
def show_latest_pipeline_route(call: Call, project: Row) -> JSON:
    """Show the newest pipeline of a ref, by default the default branch."""
    row = newest_pipeline(call, project, ref=call.text('ref') or project['default_branch'])
    if row is None:
        raise NotFound('Pipeline')
    return pipeline_entity(call.ci.find_pipeline(row), call, detail=True)


def status_entity(row: Row, call: Call) -> JSON:
    """Return a job as the status of its commit."""
    status = pick(row, 'id', 'sha', 'ref', 'status', 'name', 'coverage', 'pipeline_id')
    address = f'{call.base_url}/{row["project_path"]}/-'
    status['target_url'] = f'{address}/jobs/{row["id"]}'
    status['description'] = None
    status.update(pick_times(row, 'created_at', 'started_at', 'finished_at'))
    status['allow_failure'] = bool(row['allow_failure'])
    status['author'] = user_entity(row, call)
    return status


@route('GET', f'{PROJECT}/repository/commits/<sha>/statuses', auth=private_token)
def list_statuses_route(call: Call, project: Row, sha: str) -> bottle.HTTPResponse:
    """List the statuses of a commit: the jobs of its pipelines."""
    commit = call.ci.find_commit(project, sha)
    ref = call.text('ref') or None
    stage = call.text('stage') or None
    job_name = call.text('name') or None
    pipeline_id = call.optional_integer('pipeline_id')
    way = call.choice('sort', ('asc', 'desc'), 'asc')
    rows = call.ci.list_statuses(project, commit, ref=ref, stage=stage, name=job_name, pipeline_id=pipeline_id,
                                 latest=not call.flag('all'), newest_first=way == 'desc')
    return paged_response(call, [status_entity(row, call) for row in rows])


#: The counts of a test report: how GitLab calls them, and the columns.
TEST_COUNTS = {'success_count': 'success', 'failed_count': 'failed', 'skipped_count': 'skipped', 'error_count': 'error'}


def suite_counts(rows: Sequence[Row]) -> JSON:
    """Return the counts of the tests of some jobs together."""
    total_time = sum(row['total_time'] for row in rows)
    counts: JSON = {'total_time': round(total_time, 6), 'total_count': 0}
    for name, column in TEST_COUNTS.items():
        counts[name] = sum(row[column] for row in rows)
        counts['total_count'] += counts[name]
    return counts


def test_suites(call: Call, pipeline: Row) -> dict[str, list[Row]]:
    """Return the test reports of a pipeline's jobs by the names of their suites; parallel jobs share one."""
    suites: dict[str, list[Row]] = {}
    for row in call.ci.list_test_reports(pipeline):
        name = re.sub(' [0-9]+/[0-9]+$', '', row['job_name'])
        suites.setdefault(name, []).append(row)
    return suites


def suite_error(rows: Sequence[Row]) -> str | None:
    """Return what is wrong with the reports of some jobs, or None."""
    return '\n'.join(row['suite_error'] for row in rows if row['suite_error']) or None


def test_case_entity(row: Row, call: Call, pipeline: Row) -> JSON:
    """Return one test of a test report."""
    entity = {name: row[name] or None for name in ('name', 'classname', 'file')}
    entity['status'] = row['status']
    entity['execution_time'] = row['time']
    entity['system_output'] = row['output'] or row['message'] or None
    entity['stack_trace'] = None
    entity['recent_failures'] = None
    entity['attachment_url'] = None
    if row['attachment']:
        path = urllib.parse.quote(row['attachment'])
        entity['attachment_url'] = (f'{call.base_url}/{pipeline["project_path"]}/-/jobs/{row["job_id"]}'
                                    f'/artifacts/file/{path}')
    return entity


@route('GET', f'{PIPELINE}/test_report', auth=private_token)
def show_test_report_route(call: Call, pipeline: Row) -> JSON:
    """Show the tests that a pipeline's jobs reported as junit, suite by suite."""
    suites = test_suites(call, pipeline)
    report = suite_counts([row for rows in suites.values() for row in rows])
    report['test_suites'] = []
    for name, rows in suites.items():
        cases = [case for row in rows for case in call.ci.list_test_cases(row['job_id'])]
        entities = [test_case_entity(case, call, pipeline) for case in cases]
        suite = {'name': name, **suite_counts(rows), 'suite_error': suite_error(rows), 'test_cases': entities}
        report['test_suites'].append(suite)
    return report


@route('GET', f'{PIPELINE}/test_report_summary', auth=private_token)
def show_test_summary_route(call: Call, pipeline: Row) -> JSON:
    """Show the counts of the tests that a pipeline's jobs reported as junit."""
    suites = test_suites(call, pipeline)
    counts = suite_counts([row for rows in suites.values() for row in rows])
    total = {'time': counts['total_time'], 'count': counts['total_count'], 'suite_error': None}
    total.update((column, counts[name]) for name, column in TEST_COUNTS.items())
    summaries = []
    for name, rows in suites.items():
        builds = [row['job_id'] for row in rows]
        summaries.append({'name': name, **suite_counts(rows), 'build_ids': builds, 'suite_error': suite_error(rows)})
    return {'total': total, 'test_suites': summaries}


@route('GET', f'{PIPELINE}/variables', auth=private_token)
def list_pipeline_variables_route(pipeline: Row) -> list[JSON]:
    """Show the variables that a pipeline was created with."""
    return [{'raw': False, **variable} for variable in json.loads(pipeline['variables'])]


@route('DELETE', PIPELINE, auth=private_token)
def delete_pipeline_route(call: Call, pipeline: Row) -> None:
    """Remove a pipeline with its jobs, traces and artifacts."""
    call.ci.delete_pipelines([pipeline])


@route('GET', *(f'{path}/<pipeline_id:pipeline>' for path in PIPELINES), auth=private_token)
def show_pipeline_route(call: Call, pipeline: Row) -> JSON:
    """Show one pipeline."""
    return pipeline_entity(pipeline, call, detail=True)


@route('POST', f'{PIPELINE}/cancel', auth=private_token)
def cancel_pipeline_route(call: Call, pipeline: Row) -> JSON:
    """Cancel all unfinished jobs of a pipeline."""
    return pipeline_entity(call.ci.cancel_pipeline(pipeline), call, detail=True)


@route('POST', f'{PIPELINE}/retry', auth=private_token, status=201)
def retry_pipeline_route(call: Call, pipeline: Row) -> JSON:
    """Retry the failed and canceled jobs of a pipeline."""
    return pipeline_entity(call.ci.retry_pipeline(pipeline, call.actor), call, detail=True)


# Administration API ###########################################################################

VISIBILITIES = ('private', 'public')


def given_setting(call: Call, name: str, example: Any) -> Any:
    """Return a setting of a call, of the type that an example has."""
    if isinstance(example, bool):
        return call.flag(name)
    if isinstance(example, int):
        return call.integer(name)
    if isinstance(example, list):
        return call.words(name)
    return call.text(name)


def refuse_unsupported(call: Call) -> None:
    """Refuse settings of a project that minici does not have, so that nobody believes that they work."""
    for name, value in PROJECT_SETTINGS.items():
        if call.has(name) and given_setting(call, name, value) != value:
            raise InvalidParameter(f'{name} is not supported by minici: it is always {json.dumps(value)}')


def may_fetch(call: Call) -> bool | None:
    """Return whether runners may fetch into an old working copy of a project, or None if the call does not say."""
    strategy = call.optional_choice('build_git_strategy', ('fetch', 'clone'))
    if strategy is None:
        return None
    return strategy == 'fetch'


@route('POST', '/api/v4/projects', auth=private_token, status=201)
def create_project_route(call: Call) -> JSON:
    """Create a project; `path` may carry a namespace and defaults to a form of `name`."""
    if not call.has('name'):
        call.require('path')
    path = call.text('path') or call.text('name')
    if not call.has('path') and not re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_.\-]*', path):
        path = re.sub('[^a-z0-9_]+', '-', path.lower()).strip('-') or '?'
    refuse_unsupported(call)
    if call.has('namespace_id'):
        raise InvalidParameter('namespace_id is not supported by minici: give the namespace in path')
    import_url = call.text('import_url') or None
    branch = call.text('default_branch') or 'main'
    build_timeout = call.optional_integer('build_timeout')
    shared = call.flag('shared_runners_enabled', True)
    description = call.optional('description')
    visibility = call.choice('visibility', VISIBILITIES, 'private')
    project = call.ci.create_project(
        path, name=call.optional('name'), import_url=import_url, default_branch=branch, build_timeout=build_timeout,
        shared_runners_enabled=shared, allow_git_fetch=may_fetch(call) is not False, description=description,
        visibility=visibility, ci_config_path=call.text('ci_config_path'))
    return project_entity(project, call, detail=True)


PROJECT_ORDERS = ('id', 'name', 'path', 'created_at', 'updated_at', 'last_activity_at', 'similarity', 'star_count')
#: Flags that no project of minici has: a list of those that have one is empty.
PROJECT_FLAGS = ('archived', 'starred', 'imported', 'with_issues_enabled', 'with_merge_requests_enabled',
                 'wiki_checksum_failed', 'repository_checksum_failed')
#: What no project of minici has a value of.
PROJECT_LABELS = ('topic', 'custom_attributes', 'marked_for_deletion_on')
#: Filters that minici does not know how to answer.
UNKNOWN_PROJECT_FILTERS = ('repository_storage', 'topic_id', 'with_programming_language')


def lists_nothing(call: Call) -> bool:
    """Tell whether a list of projects is only about those with something that no project has."""
    for name in UNKNOWN_PROJECT_FILTERS:
        if call.has(name):
            raise InvalidParameter(f'{name} is not supported by minici')
    if any(call.has(name) for name in PROJECT_LABELS) or call.optional_flag('active') is False:
        return True
    return any(call.flag(name) for name in PROJECT_FLAGS)


@route('GET', '/api/v4/projects', auth=private_token)
def list_projects_route(call: Call) -> bottle.HTTPResponse:
    """List the projects, newest first."""
    number, per_page = page_of(call)
    after = call.moment('last_activity_after') or call.moment('updated_after')
    before = call.moment('last_activity_before') or call.moment('updated_before')
    search = call.text('search')
    searched = 'named'
    if call.flag('search_namespaces') or '/' in search:
        searched = 'search'
    call.optional_choice('min_access_level', ('5', '10', '15', '20', '30', '40', '50'))     # one may do anything here
    filters: JSON = {
        searched: search,
        'visibility': call.optional_choice('visibility', (*VISIBILITIES, 'internal')),
        'id_after': call.optional_integer('id_after'),
        'id_before': call.optional_integer('id_before'),
        'active_after': after,
        'active_before': before,
        'order_by': call.choice('order_by', PROJECT_ORDERS, 'id'),
        'sort': call.choice('sort', ('asc', 'desc'), 'desc'),
    }
    if lists_nothing(call):
        return paged_response(call, [])
    rows, total = call.ci.list_projects(limit=per_page, offset=(number - 1) * per_page, **filters)
    return paged_response(call, [project_entity(row, call) for row in rows], total)


@route('GET', PROJECT, auth=private_token)
def show_project_route(call: Call, project: Row) -> JSON:
    """Show a project; to a token of scope `api` with the token that registers its runners."""
    return project_entity(project, call, detail=call.actor['scope'] == 'api')


@route('PUT', PROJECT, auth=private_token)
def edit_project_route(call: Call, project: Row) -> JSON:
    """Change a project's settings."""
    refuse_unsupported(call)
    if call.has('path') and call.text('path') != project['path'].rpartition('/')[2]:
        raise InvalidParameter('path is not supported by minici: a project keeps its path')
    changes: JSON = {
        'name': call.optional('name'),
        'description': call.optional('description'),
        'visibility': call.optional_choice('visibility', VISIBILITIES),
        'ci_config_path': call.optional('ci_config_path'),
        'import_url': call.optional('import_url'),
        'default_branch': call.optional('default_branch'),
        'build_timeout': call.optional_integer('build_timeout'),
        'shared_runners_enabled': call.optional_flag('shared_runners_enabled'),
        'allow_git_fetch': may_fetch(call),
        'fork_pipelines': call.optional_flag('ci_allow_fork_pipelines_to_run_in_parent_project'),
    }
    given = {name: value for name, value in changes.items() if value is not None}
    return project_entity(call.ci.edit_project(project, **given), call, detail=True)


@route('DELETE', PROJECT, auth=private_token, status=202)
def delete_project_route(call: Call, project: Row) -> JSON:
    """Remove a project with all that it holds."""
    call.ci.delete_project(project)
    return {'message': '202 Accepted'}


# -- variables

REF_PREFIXES = {'branches': 'refs/heads/', 'tags': 'refs/tags/'}


def protected_patterns(project: Row) -> list[str]:
    """Return the full names of a project's protected refs."""
    if project['protected_refs'] is None:
        return [f'refs/heads/{project["default_branch"]}']
    return json.loads(project['protected_refs'])


def ref_prefix(kind: str) -> str:
    """Return the beginning of the full names of refs of a kind; raise NotFound if there is no such kind."""
    if kind not in REF_PREFIXES:
        raise NotFound()
    return REF_PREFIXES[kind]


def protected_ref_entity(name: str) -> JSON:
    """Return a protected branch or tag: whoever may push to the repository may push to it."""
    levels = [{'id': 1, 'access_level': 30, 'access_level_description': 'Developers + Maintainers'}]
    return {
        'id': int(token_hash(name)[:8], 16),
        'name': name,
        'push_access_levels': levels,
        'merge_access_levels': levels,
        'create_access_levels': levels,
        'allow_force_push': True,
        'code_owner_approval_required': False,
    }


@route('GET', f'{PROJECT}/protected_<kind>', auth=private_token)
def list_protected_refs_route(call: Call, project: Row, kind: str) -> bottle.HTTPResponse:
    """List a project's protected branches or tags."""
    prefix = ref_prefix(kind)
    names = [pattern.removeprefix(prefix) for pattern in protected_patterns(project) if pattern.startswith(prefix)]
    return paged_response(call, [protected_ref_entity(name) for name in names])


@route('POST', f'{PROJECT}/protected_<kind>', auth=private_token, status=201)
def protect_ref_route(call: Call, project: Row, kind: str) -> JSON:
    """Protect a branch or tag, or all whose names match a pattern with ``*``."""
    call.require('name')
    name = call.text('name')
    patterns = protected_patterns(project)
    wanted = ref_prefix(kind) + name
    if wanted in patterns:
        raise Conflict(f'{name} is protected already')
    call.ci.edit_project(project, protected_refs=[*patterns, wanted])
    return protected_ref_entity(name)


@route('DELETE', f'{PROJECT}/protected_<kind>/<name:path>', auth=private_token)
def unprotect_ref_route(call: Call, project: Row, kind: str, name: str) -> None:
    """Protect a branch, a tag or a pattern no longer."""
    patterns = protected_patterns(project)
    unwanted = ref_prefix(kind) + name
    if unwanted not in patterns:
        raise NotFound('Protected ref')
    call.ci.edit_project(project, protected_refs=[pattern for pattern in patterns if pattern != unwanted])


VARIABLES = ('/api/v4/admin/ci/variables', f'{PROJECT}/variables')
VARIABLE = [f'{path}/<key>' for path in VARIABLES]


def variable_entity(row: Row) -> JSON:
    """Return a variable of a project or of the instance."""
    variable = pick(row, 'key', 'value', 'variable_type', 'description', 'environment_scope')
    variable.update(pick_flags(row, 'masked', 'protected', 'raw', 'hidden'))
    if row['hidden']:
        variable['value'] = None
    return variable


def named_variable(call: Call, key: str) -> Row:
    """Return the variable that the path and ``filter[environment_scope]`` name."""
    scope = call.mapping('filter').get('environment_scope')
    if not isinstance(scope, str | None):
        raise InvalidParameter('filter is invalid')
    return call.ci.find_variable(call.project, key, scope)


def set_variable(call: Call, key: str, before: Members) -> JSON:
    """Set a variable; what the call does not give stays as `before` has it, which is empty for a new one."""
    description = call.optional('description')
    if description is None:
        description = before.get('description')
    value = call.text('value', before.get('value', ''))
    variable_type = call.choice('variable_type', ('env_var', 'file'), before.get('variable_type', 'env_var'))
    hidden = bool(before.get('hidden', call.flag('masked_and_hidden')))     # once hidden, for ever
    masked = call.flag('masked', before.get('masked', False)) or hidden
    protected = call.flag('protected', before.get('protected', False))
    raw = call.flag('raw', before.get('raw', False))
    scope = call.text('environment_scope') or before.get('environment_scope', '*')
    moved = scope != before.get('environment_scope', scope)
    row = call.ci.set_variable(call.project, key, value, variable_type=variable_type, masked=masked, raw=raw,
                               hidden=hidden, protected=protected, description=description, environment_scope=scope,
                               replace=bool(before) and not moved)
    if moved:
        call.ci.delete_variable(call.project, key, before['environment_scope'])
    return variable_entity(row)


@route('GET', *VARIABLES, auth=private_token)
def list_variables_route(call: Call) -> bottle.HTTPResponse:
    """List the variables of the instance or of a project."""
    return paged_response(call, [variable_entity(row) for row in call.ci.list_variables(call.project)])


@route('POST', *VARIABLES, auth=private_token, status=201)
def create_variable_route(call: Call) -> JSON:
    """Create a variable."""
    call.require('key')
    if call.optional('value') is None:
        raise InvalidParameter('value is missing')
    return set_variable(call, call.text('key'), {})


@route('GET', *VARIABLE, auth=private_token)
def show_variable_route(call: Call, key: str) -> JSON:
    """Show a variable."""
    return variable_entity(named_variable(call, key))


@route('PUT', *VARIABLE, auth=private_token)
def edit_variable_route(call: Call, key: str) -> JSON:
    """Change a variable."""
    return set_variable(call, key, dict(named_variable(call, key)))


@route('DELETE', *VARIABLE, auth=private_token)
def delete_variable_route(call: Call, key: str) -> None:
    """Remove a variable."""
    call.ci.delete_variable(call.project, key, named_variable(call, key)['environment_scope'])


# -- triggers and webhooks

TRIGGERS = f'{PROJECT}/triggers'
TRIGGER = f'{TRIGGERS}/<trigger_id:trigger>'


def trigger_entity(row: Row, call: Call) -> JSON:
    """Return a trigger; its token is complete only for its owner."""
    token = row['token']
    if row['user_id'] != call.actor['id'] or call.actor['scope'] != 'api':
        token = token[:4]
    trigger = pick(row, 'id', 'description')
    trigger['token'] = token
    trigger.update(pick_times(row, 'created_at', 'updated_at', 'last_used'))
    trigger['expires_at'] = None
    trigger['owner'] = user_entity(row, call)
    return trigger


@route('GET', TRIGGERS, auth=private_token)
def list_triggers_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """List a project's triggers."""
    return paged_response(call, [trigger_entity(row, call) for row in call.ci.list_triggers(project)])


@route('POST', TRIGGERS, auth=private_token, status=201)
def create_trigger_route(call: Call, project: Row) -> JSON:
    """Create a token that starts pipelines of a project."""
    call.require('description')
    trigger = call.ci.create_trigger(project, call.actor, call.text('description'))
    return trigger_entity(trigger, call)


@route('GET', TRIGGER, auth=private_token)
def show_trigger_route(call: Call, trigger: Row) -> JSON:
    """Show a trigger."""
    return trigger_entity(trigger, call)


@route('PUT', TRIGGER, auth=private_token)
def edit_trigger_route(call: Call, project: Row, trigger: Row) -> JSON:
    """Change a trigger's description."""
    call.ci.edit_trigger(trigger, call.text('description'))
    return trigger_entity(call.ci.find_trigger(project, trigger['id']), call)


@route('DELETE', TRIGGER, auth=private_token)
def delete_trigger_route(call: Call, trigger: Row) -> None:
    """Remove a trigger."""
    call.ci.edit_trigger(trigger, None)


def triggered_pipeline(call: Call, ref: str) -> Row:
    """Create a pipeline on behalf of the trigger token that the call brings."""
    variables = call.mapping('variables')
    if not all(isinstance(value, str) for value in variables.values()):
        raise BadRequest('variables needs to be a map of key-valued strings')
    given = [{'key': key, 'value': value} for key, value in variables.items()]
    payload = {name: value for name, value in call.params.items() if name != 'token'}
    given.append({'key': 'TRIGGER_PAYLOAD', 'value': json.dumps(payload), 'variable_type': 'file', 'raw': True})
    if 'pipeline_id' in call.actor.keys():  # noqa: SIM118 - a job, not a trigger; a Row is no mapping
        return call.ci.create_pipeline(call.row('project'), ref, variables=given[:-1], source='pipeline',
                                       user=call.ci.find_owner(call.actor))
    return call.ci.trigger_pipeline(call.actor, ref, variables=given, inputs=call.mapping('inputs'))


@route('POST', f'{PROJECT}/trigger/pipeline', f'{PROJECT}/ref/<ref:path>/trigger/pipeline', auth=trigger_token,
       status=201)
def trigger_pipeline_route(call: Call) -> JSON:
    """Create a pipeline by a trigger token."""
    if call.header('X-Gitlab-Event') == 'Pipeline Hook':
        raise Forbidden('a pipeline does not start itself again')
    call.require('ref')
    return pipeline_entity(triggered_pipeline(call, call.text('ref')), call, detail=True)


@legacy_route('POST', '/projects/<id:project_key>/refs/<ref:path>/trigger', auth=trigger_token, status=201)
def trigger_builds_route(call: Call, ref: str) -> JSON:
    """Create a pipeline by a trigger token, as in 2016."""
    pipeline = triggered_pipeline(call, ref)
    return {'id': pipeline['id'], 'variables': call.mapping('variables') or None}


ALLOWLIST = f'{PROJECT}/job_token_scope/allowlist'


@route('GET', ALLOWLIST, auth=private_token)
def list_job_token_allowlist_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """List the projects whose jobs may start pipelines of a project."""
    return paged_response(call, [project_entity(row, call) for row in call.ci.list_job_token_allowlist(project)])


@route('POST', ALLOWLIST, auth=private_token, status=201)
def allow_job_tokens_route(call: Call, project: Row) -> JSON:
    """Let the jobs of another project start pipelines of a project."""
    call.require('target_project_id')
    other = call.ci.find_project(call.integer('target_project_id'))
    call.ci.allow_job_tokens(project, other)
    return {'source_project_id': project['id'], 'target_project_id': other['id']}


@route('DELETE', f'{ALLOWLIST}/<target>', auth=private_token)
def refuse_job_tokens_route(call: Call, project: Row, target: str) -> None:
    """Let the jobs of another project no longer start pipelines of a project."""
    call.ci.allow_job_tokens(project, call.ci.find_project(target), allowed=False)


# -- lint and badge

def lint_job_entity(name: str, job: JSON) -> JSON:
    """Return a job of a merged pipeline file as the linter lists it."""
    entity: JSON = {'name': name, 'stage': job.get('stage', 'test')}
    for script in ('before_script', 'script', 'after_script'):
        lines = job.get(script) or []
        entity[script] = [lines] if isinstance(lines, str) else lines
    entity['tag_list'] = job.get('tags') or []
    for policy in ('only', 'except'):
        entity[policy] = job.get(policy)
        if isinstance(entity[policy], list):
            entity[policy] = {'refs': entity[policy]}
    if 'rules' not in job:
        entity['only'] = entity['only'] or {'refs': ['branches', 'tags']}
    environment = job.get('environment')
    if isinstance(environment, dict):
        environment = environment.get('name')
    entity['environment'] = environment
    entity['when'] = job.get('when', 'on_success')
    entity['allow_failure'] = bool(job.get('allow_failure', False))
    entity['needs'] = job.get('needs')
    return entity


def lint_jobs(spec: PipelineSpec, *, created: bool) -> list[JSON]:
    """Return the jobs of a pipeline file; with `created`, only those that the pipeline would have."""
    jobs = {name: job for name, job in (spec.merged or {}).items()
            if name not in GLOBAL_FIELDS and not name.startswith('.') and isinstance(job, dict)}
    if created:
        names = {re.sub(r'( [0-9]+/[0-9]+|: \[.*\])$', '', job.name) for job in spec.jobs}
        jobs = {name: job for name, job in jobs.items() if name in names}
    return [lint_job_entity(name, job) for name, job in jobs.items()]


def lint_response(call: Call, content: Any, ref: str | None) -> JSON:
    """Return what is wrong with a pipeline file, or the whole file with its includes, as GitLab's linter does.

    With `dry_run` a file that makes no pipeline for the ref is invalid; with `include_jobs` its jobs are listed.
    """
    dry_run = call.flag('dry_run')
    include_jobs = call.flag('include_jobs')
    result: JSON = {'valid': True, 'status': 'valid', 'errors': [], 'warnings': [], 'merged_yaml': None, 'includes': []}
    if include_jobs:
        result['jobs'] = []
    try:
        given = None if content is None else Foreign(content)
        spec = call.ci.lint(call.project, given, ref=ref, inputs=call.mapping('inputs'))
        result['warnings'] = list(spec.warnings)
        result['merged_yaml'] = call.ci.merged_yaml(spec.merged or {})
        if include_jobs:
            result['jobs'] = lint_jobs(spec, created=dry_run)
        if dry_run:
            check_jobs(spec, f'the ref {ref}' if ref else 'the default branch')
    except BadRequest as error:
        result.update(valid=False, status='invalid', errors=error.problems)
    return result


@route('POST', '/api/v4/ci/lint', f'{PROJECT}/ci/lint', auth=private_token)
def lint_route(call: Call) -> JSON:
    """Check the pipeline file in the call."""
    call.require('content')
    content = call.params['content']
    if not isinstance(content, (str, dict)):
        raise InvalidParameter('content is invalid: it is the text of a pipeline file, or a mapping')
    return lint_response(call, content, call.optional('ref'))


@route('GET', f'{PROJECT}/ci/lint', auth=private_token)
def lint_repository_route(call: Call) -> JSON:
    """Check the pipeline file in a project's repository."""
    ref = call.optional('content_ref') or call.optional('dry_run_ref') or call.optional('ref')
    return lint_response(call, None, ref)


BADGE = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{label}: {value}">
<rect width="{width}" height="20" rx="3" fill="#555"/><rect x="60" width="{right}" height="20" rx="3" fill="{colour}"/>
<g fill="#fff" font-family="Verdana,sans-serif" font-size="11"><text x="7" y="14">{label}</text>
<text x="66" y="14">{value}</text></g></svg>
"""
BADGE_COLOURS = {'success': '#2da160', 'failed': '#d9534f', 'running': '#3c8dbc', 'pending': '#e0902b'}
BADGE_HEADERS = {
    'Content-Type': 'image/svg+xml',
    'Cache-Control': 'no-cache',
    'Content-Security-Policy': "default-src 'none'",
}


COVERAGE_COLOURS = ((95, '#2da160'), (75, '#7a9a1f'), (50, '#e0902b'), (0, '#d9534f'))  # from so many percent on


def badge_response(label: str, value: str, colour: str) -> bottle.HTTPResponse:
    """Return a badge: a label, and a value on a colour."""
    right = 12 + 7 * len(value)
    svg = BADGE.format(label=label, value=value, width=60 + right, right=right, colour=colour)
    return bottle.HTTPResponse(svg.encode(), 200, BADGE_HEADERS)


@route('GET', f'{PROJECT}/badges/<ref:path>/pipeline.svg', auth=badge_reader)
def show_badge_route(call: Call, project: Row, ref: str) -> bottle.HTTPResponse:
    """Draw the status of a ref's newest pipeline."""
    status = 'unknown'
    newest = newest_pipeline(call, project, ref=ref)
    if newest is not None:
        status = newest['status']
    return badge_response('pipeline', status_words(status), BADGE_COLOURS.get(status, '#9f9f9f'))


@route('GET', f'{PROJECT}/badges/<ref:path>/coverage.svg', auth=badge_reader)
def show_coverage_badge_route(call: Call, project: Row, ref: str) -> bottle.HTTPResponse:
    """Draw the coverage of a ref's newest pipeline that succeeded."""
    newest, _ = call.ci.list_pipelines(project, ref=ref, status='success', limit=1, count_to=1)
    coverage = call.ci.find_pipeline(newest[0])['coverage'] if newest else None
    if coverage is None:
        return badge_response('coverage', 'unknown', '#9f9f9f')
    colour = next(colour for least, colour in COVERAGE_COLOURS if coverage >= least)
    return badge_response('coverage', f'{coverage:.2f}%', colour)


@route('GET', '/api/v4/user', auth=private_token)
def show_user_route(call: Call) -> JSON | None:
    """Show the owner of the token."""
    row = call.actor
    return user_entity({'user_id': row['id'], 'username': row['username'], 'user_created_at': row['created_at']}, call)


@route('GET', '/api/v4/version', '/api/v4/metadata', auth=private_token)
def show_version_route() -> JSON:
    """Tell which GitLab's API this is, and which minici."""
    version: JSON = {'version': GITLAB_VERSION, 'revision': f'minici-{__version__}', 'enterprise': False}
    version['kas'] = {'enabled': False, 'externalUrl': None, 'externalK8sProxyUrl': None, 'version': None}
    return version


# -- runners, for people

RUNNER = '/api/v4/runners/<runner_id:runner>'
RUNNER_SCOPES = ('shared', 'specific', 'active', 'paused', 'online', 'offline')
RUNNER_STATES = ('online', 'offline', 'stale', 'never_contacted', 'active', 'paused')


def wanted_runners(call: Call) -> JSON:
    """Return the fields that a runner must have to be in a list: `type` and `scope` are older words for some."""
    scope = call.optional_choice('scope', RUNNER_SCOPES)
    status = call.optional_choice('status', RUNNER_STATES)
    kinds = {'shared': 'instance_type', 'specific': 'project_type', None: None}
    wanted = {
        'runner_type': call.optional_choice('type', ('instance_type', 'group_type', 'project_type')),
        'paused': call.optional_flag('paused'),
        'status': None,
    }
    wanted['runner_type'] = wanted['runner_type'] or kinds.get(scope)
    for said in (scope, status):
        if said in ('active', 'paused'):
            wanted['paused'] = said == 'paused'
    for said in (status, scope):
        if said in ('online', 'offline', 'stale', 'never_contacted'):
            wanted['status'] = said
    return {name: value for name, value in wanted.items() if value is not None}


def runners_response(call: Call, rows: list[Row]) -> bottle.HTTPResponse:
    """Return a page of runners, by kind, state and tags."""
    wanted = wanted_runners(call)
    tags = set(call.words('tag_list'))
    version = call.text('version_prefix')
    found = []
    for row in rows:
        runner = runner_entity(row, call)
        fits = all(runner[name] == value for name, value in wanted.items())
        known = json.loads(row['info']).get('version') or ''
        if fits and known.startswith(version) and tags <= set(json.loads(row['tags'])):
            found.append(runner)
    return paged_response(call, found)


@route('GET', '/api/v4/runners', '/api/v4/runners/all', auth=private_token)
def list_runners_route(call: Call) -> bottle.HTTPResponse:
    """List the runners."""
    return runners_response(call, call.ci.list_runners())


@route('GET', f'{PROJECT}/runners', auth=private_token)
def list_project_runners_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """List the runners that may take a project's jobs."""
    return runners_response(call, call.ci.list_runners(project))


@route('POST', '/api/v4/user/runners', auth=private_token, status=201)
def create_runner_route(call: Call) -> JSON:
    """Create a runner for all projects or one; `gitlab-runner register` wants its `glrt-` token."""
    call.require('runner_type')
    project = None
    if call.optional_choice('runner_type', ('instance_type', 'project_type')) == 'project_type':
        call.require('project_id')
        project = call.ci.find_project(call.integer('project_id'))
    runner, token = call.ci.create_runner(project, call.actor, **runner_settings(call))
    return token_entity(token, id=runner['id'])


@route('GET', RUNNER, auth=private_token)
def show_runner_route(call: Call, runner: Row) -> JSON:
    """Show one runner."""
    return runner_entity(runner, call, detail=True)


@route('PUT', RUNNER, auth=private_token)
def edit_runner_route(call: Call, runner: Row) -> JSON:
    """Change a runner's settings; pause it or let it go on."""
    changes = runner_settings(call)
    if not changes:
        raise InvalidParameter('description, active, paused, tag_list, run_untagged, locked, access_level, '
                               'maximum_timeout, maintenance_note are missing, at least one parameter must be provided')
    return runner_entity(call.ci.edit_runner(runner, **changes), call, detail=True)


@route('DELETE', RUNNER, auth=private_token)
def delete_runner_route(call: Call, runner: Row) -> None:
    """Remove a runner."""
    call.ci.unregister_runner(runner)


@route('GET', f'{RUNNER}/jobs', auth=private_token)
def list_runner_jobs_route(call: Call, runner: Row) -> bottle.HTTPResponse:
    """List the jobs that a runner was given, newest first."""
    status = call.optional_choice('status', KNOWN_STATUSES)
    scope = call.choices('scope', KNOWN_STATUSES)
    if status:
        scope = [status]
    return jobs_response(call, scope, runner=runner)


@route('GET', f'{RUNNER}/managers', auth=private_token)
def list_runner_managers_route(call: Call, runner: Row) -> list[JSON]:
    """List the runner managers (machines) that share a runner's token."""
    return [manager_entity(row, call) for row in call.ci.list_managers(runner)]


@route('POST', f'{RUNNER}/reset_authentication_token', auth=private_token, status=201)
def reset_runner_token_route(call: Call, runner: Row) -> JSON:
    """Give a runner a new token."""
    return token_entity(call.ci.reset_runner_token(runner))


@route('POST', '/api/v4/runners/reset_registration_token', f'{PROJECT}/runners/reset_registration_token',
       auth=private_token, status=201)
def reset_registration_token_route(call: Call) -> JSON:
    """Replace the token that registers runners for all projects, or for one."""
    return {'token': call.ci.reset_registration_token(call.project)}


@route('POST', f'{PROJECT}/runners', auth=private_token, status=201)
def enable_project_runner_route(call: Call, project: Row) -> JSON:
    """Assign a project runner to this project too."""
    call.require('runner_id')
    runner = call.ci.find_runner_by_id(call.integer('runner_id'))
    call.ci.enable_runner(runner, project)
    return runner_entity(runner, call)


@route('DELETE', f'{PROJECT}/runners/<runner_id:runner>', auth=private_token)
def disable_project_runner_route(call: Call, project: Row, runner: Row) -> None:
    """Unassign a project runner from this project."""
    call.ci.enable_runner(runner, project, enabled=False)


# Schedules API ################################################################################

SCHEDULES = f'{PROJECT}/pipeline_schedules'
SCHEDULE = f'{SCHEDULES}/<schedule_id:schedule>'


def schedule_entity(row: Row, call: Call, *, detail: bool = False) -> JSON:
    """Return a schedule as lists show it, or in `detail` with its last pipeline, variables and inputs."""
    schedule = pick(row, 'id', 'description', 'ref', 'cron', 'cron_timezone')
    schedule['next_run_at'] = iso_time(row['next_run_at'])
    schedule['active'] = bool(row['active'])
    schedule.update(pick_times(row, 'created_at', 'updated_at'))
    schedule['owner'] = user_entity(row, call)
    if not detail:
        return schedule
    schedule['last_pipeline'] = None
    if row['last_pipeline_id'] is not None:
        schedule['last_pipeline'] = pipeline_entity(call.ci.find_pipeline(row['last_pipeline_id']), call)
    schedule['variables'] = [schedule_variable_entity(item) for item in json.loads(row['variables'])]
    inputs = json.loads(row['inputs'])
    schedule['inputs'] = [{'name': name, 'value': value} for name, value in inputs.items()]
    return schedule


def schedule_variable_entity(variable: Members) -> JSON:
    """Return a variable of a schedule."""
    return {
        'key': variable['key'],
        'value': variable['value'],
        'variable_type': variable['variable_type'],
        'raw': bool(variable.get('raw')),
    }


def given_inputs(call: Call, known: Members) -> JSON | None:
    """Return the inputs of a schedule, those that it had changed as the call says; None when it says nothing."""
    if not call.has('inputs'):
        return None
    inputs = dict(known)
    for item in call.mappings('inputs', 'name'):
        if str(item.get('destroy', item.get('_destroy', ''))).lower() in ('true', '1'):
            inputs.pop(item['name'], None)
        elif 'value' in item:
            inputs[item['name']] = item['value']
        else:
            raise InvalidParameter('inputs[value] is missing')
    return inputs


@route('GET', SCHEDULES, auth=private_token)
def list_schedules_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """List a project's schedules."""
    scope = call.optional_choice('scope', ('active', 'inactive'))
    active = {'active': True, 'inactive': False}.get(scope or '')
    rows = call.ci.list_schedules(project, active=active)
    return paged_response(call, [schedule_entity(row, call) for row in rows])


@route('POST', SCHEDULES, auth=private_token, status=201)
def create_schedule_route(call: Call, project: Row) -> JSON:
    """Create a schedule."""
    for name in ('description', 'ref', 'cron'):
        call.require(name)
    zone = call.text('cron_timezone') or 'UTC'
    inputs = given_inputs(call, {}) or {}
    schedule = call.ci.create_schedule(
        project, call.actor, description=call.text('description'), ref=call.text('ref'), cron=call.text('cron'),
        cron_timezone=zone, active=call.flag('active', True), inputs=inputs)
    return schedule_entity(schedule, call, detail=True)


@route('GET', SCHEDULE, auth=private_token)
def show_schedule_route(call: Call, schedule: Row) -> JSON:
    """Show a schedule with its variables."""
    return schedule_entity(schedule, call, detail=True)


@route('PUT', SCHEDULE, auth=private_token)
def edit_schedule_route(call: Call, schedule: Row) -> JSON:
    """Change a schedule."""
    changed_schedule = call.ci.edit_schedule(
        schedule, description=call.optional('description'), ref=call.optional('ref'), cron=call.optional('cron'),
        cron_timezone=call.optional('cron_timezone'), active=call.optional_flag('active'),
        inputs=given_inputs(call, json.loads(schedule['inputs'])))
    return schedule_entity(changed_schedule, call, detail=True)


@route('DELETE', SCHEDULE, auth=private_token)
def delete_schedule_route(call: Call, schedule: Row) -> None:
    """Remove a schedule."""
    call.ci.delete_schedule(schedule)


@route('POST', f'{SCHEDULE}/take_ownership', auth=private_token)
def own_schedule_route(call: Call, schedule: Row) -> bottle.HTTPResponse:
    """Make the owner of the token the owner of a schedule."""
    if schedule['user_id'] == call.actor['id']:
        return json_response(schedule_entity(schedule, call, detail=True), 200)
    owned = call.ci.own_schedule(schedule, call.actor)
    return json_response(schedule_entity(owned, call, detail=True), 201)


@route('POST', f'{SCHEDULE}/play', auth=private_token, status=201)
def play_schedule_route(call: Call, schedule: Row) -> JSON:
    """Create the pipeline of a schedule now."""
    call.ci.play_schedule(schedule, call.actor)
    return {'message': '201 Created'}


@route('GET', f'{SCHEDULE}/pipelines', auth=private_token)
def list_scheduled_pipelines_route(call: Call, project: Row, schedule: Row) -> bottle.HTTPResponse:
    """List the pipelines that a schedule has created, oldest first."""
    number, per_page = page_of(call)
    rows, total = call.ci.list_pipelines(
        project, limit=per_page, offset=(number - 1) * per_page, schedule=schedule,
        sort=call.choice('sort', ('asc', 'desc'), 'asc'), status=call.optional_choice('status', JOB_STATUSES),
        scope=call.optional_choice('scope', ('running', 'pending', 'finished', 'branches', 'tags')))
    return paged_response(call, [pipeline_entity(row, call) for row in rows], total)


@route('POST', f'{SCHEDULE}/variables', auth=private_token, status=201)
def create_schedule_variable_route(call: Call, schedule: Row) -> JSON:
    """Give the pipelines of a schedule a variable."""
    call.require('key')
    call.require('value')
    kind = call.choice('variable_type', ('env_var', 'file'), 'env_var')
    variable = call.ci.set_schedule_variable(schedule, call.text('key'), call.text('value'), raw=call.flag('raw'),
                                             variable_type=kind)
    return schedule_variable_entity(variable)


def schedule_variable(schedule: Row, key: str) -> Members:
    """Return a variable of a schedule; raise NotFound if there is none."""
    for variable in json.loads(schedule['variables']):
        if variable['key'] == key:
            return variable
    raise NotFound('Pipeline Schedule Variable')


@route('GET', f'{SCHEDULE}/variables/<key>', auth=private_token)
def show_schedule_variable_route(schedule: Row, key: str) -> JSON:
    """Show a variable of a schedule."""
    return schedule_variable_entity(schedule_variable(schedule, key))


@route('PUT', f'{SCHEDULE}/variables/<key>', auth=private_token)
def edit_schedule_variable_route(call: Call, schedule: Row, key: str) -> JSON:
    """Change a variable of a schedule."""
    before = schedule_variable(schedule, key)
    value = call.optional('value')
    if value is None:
        value = before['value']
    raw = call.flag('raw', bool(before.get('raw')))
    kind = call.choice('variable_type', ('env_var', 'file'), before['variable_type'])
    variable = call.ci.set_schedule_variable(schedule, key, value, replace=True, raw=raw, variable_type=kind)
    return schedule_variable_entity(variable)


@route('DELETE', f'{SCHEDULE}/variables/<key>', auth=private_token, status=202)
def delete_schedule_variable_route(call: Call, schedule: Row, key: str) -> JSON:
    """Remove a variable of a schedule."""
    return schedule_variable_entity(call.ci.delete_schedule_variable(schedule, key))


# Webhooks #####################################################################################
#
# What Gitea, Forgejo, GitHub and GitLab tell of pushes, tags and merge requests ("pull requests"
# elsewhere). A pipeline is created for what has new commits; everything else is answered with 200.

EVENT_HEADERS = ('X-Gitlab-Event', 'X-Gitea-Event', 'X-Forgejo-Event', 'X-GitHub-Event')
SKIP_CI = re.compile(r'\[(ci[ _-]skip|skip[ _-]ci)\]', re.I)
#: What has happened to a merge request that has new commits, in the words of GitHub, of Gitea, and of GitLab.
NEW_COMMITS = ('opened', 'reopened', 'synchronize', 'synchronized', 'open', 'reopen', 'update')


class NothingToDo(Exception):
    """An event makes no pipeline; the text says why."""


def read_event(call: Call) -> tuple[str, JSON]:
    """Return the kind of a webhook's event in lower case, and its body; raise BadRequest if that is none."""
    kinds = [call.header(name) for name in EVENT_HEADERS if call.header(name)]
    kind = str(next(iter(kinds), 'no event')).lower()
    try:
        text: bytes | str = call.body
        if (call.header('Content-Type') or '').startswith('application/x-www-form-urlencoded'):
            text = urllib.parse.parse_qs(call.body)[b'payload'][0]
        event = json.loads(text)
    except (ValueError, KeyError, RecursionError):
        raise BadRequest('the body is no event in JSON') from None
    if not isinstance(event, dict):
        raise BadRequest('the body is no event in JSON')
    return kind, event


def part_of(event: Members, path: str) -> Any:
    """Return a value deep inside an event, None if it is not there; dots stand between the names."""
    value: Any = event
    for name in path.split('.'):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def list_of(event: Members, path: str) -> list[Any]:
    """Return a list deep inside an event, empty if it is not there; what stands there alone is a list of one."""
    value = part_of(event, path)
    if value is None or isinstance(value, list):
        return value or []
    return [value]


def required_field(event: Members, path: str) -> str:
    """Return a text deep inside an event; raise BadRequest, which names it, if it is not there."""
    value = part_of(event, path)
    if not isinstance(value, str) or not value:
        raise BadRequest(f'the event has no {path}')
    return value


def check_push(event: JSON) -> None:
    """Raise BadRequest if an event is no push, NothingToDo if it makes no pipeline."""
    ref, before, after = (event.get(name) for name in ('ref', 'before', 'after'))
    if not isinstance(ref, str) or not re.fullmatch('refs/(heads|tags)/(.+)', ref):
        raise BadRequest('the body is not a push event with ref, before and after')
    if not isinstance(before, str) or not isinstance(after, str) or not isinstance(event.get('commits') or [], list):
        raise BadRequest('before and after must be commit ids, and commits a list')
    check_sha(before)
    if not after.strip('0'):
        raise NothingToDo(f'{short_name(ref)} was removed')
    if skips_ci(event):
        raise NothingToDo('the commit says to skip CI')
    skip = part_of(event, 'push_options.ci.skip')
    if skip is not None and str(skip).lower() != 'false':
        raise NothingToDo('the push says to skip CI')


def skips_ci(push: Members) -> bool:
    """Tell whether the message of a push's newest commit says to skip CI."""
    commits = [push.get('head_commit'), *(push.get('commits') or ())]
    newest = [commit for commit in commits if isinstance(commit, dict) and commit.get('id') == push['after']]
    return any(SKIP_CI.search(str(commit.get('message'))) for commit in newest)


def push_variables(event: JSON) -> list[dict[str, str]]:
    """Return the variables that somebody gave as push options: ``git push -o ci.variable="NAME=value"``."""
    pairs = [str(text).partition('=') for text in list_of(event, 'push_options.ci.variable')]
    return [{'key': key, 'value': value} for key, _, value in pairs]


def push_pipeline(call: Call, project: Row, event: JSON) -> Row:
    """Create the pipeline of a push to a branch or tag."""
    check_push(event)
    sha = event['after']
    if event['ref'].startswith('refs/tags/'):
        sha = None      # the event may name the tag's own object
    return call.ci.create_pipeline(project, event['ref'], sha=sha, source='push', before_sha=event['before'],
                                   variables=push_variables(event))


@dataclass(frozen=True, eq=False)
class RequestShape:
    """Where the facts of a merge request stand in the events of a forge."""

    action: str
    number: str
    sha: str
    labels: str
    label_name: str
    sides: tuple[str, str]      # the projects that it comes from and goes to: they differ for a fork
    branches: Mapping[str, str]
    texts: Mapping[str, str]
    ref: str                    # the name that the forge gives to its newest commit


PULL_REQUEST = RequestShape(
    action='action',
    number='pull_request.number',
    sha='pull_request.head.sha',
    labels='pull_request.labels',
    label_name='name',
    sides=('pull_request.head.repo.full_name', 'pull_request.base.repo.full_name'),
    branches={
        'source_branch': 'pull_request.head.ref',
        'target_branch': 'pull_request.base.ref',
    },
    texts={
        'title': 'pull_request.title',
        'description': 'pull_request.body',
        'draft': 'pull_request.draft',
        'source_project_path': 'pull_request.head.repo.full_name',
        'source_project_url': 'pull_request.head.repo.html_url',
        'project_url': 'pull_request.base.repo.html_url',
    },
    ref='refs/pull/{}/head',
)
MERGE_REQUEST = RequestShape(
    action='object_attributes.action',
    number='object_attributes.iid',
    sha='object_attributes.last_commit.id',
    labels='labels',
    label_name='title',
    sides=('object_attributes.source_project_id', 'object_attributes.target_project_id'),
    branches={
        'source_branch': 'object_attributes.source_branch',
        'target_branch': 'object_attributes.target_branch',
    },
    texts={
        'title': 'object_attributes.title',
        'description': 'object_attributes.description',
        'draft': 'object_attributes.draft',
        'source_project_path': 'object_attributes.source.path_with_namespace',
        'source_project_url': 'object_attributes.source.web_url',
        'project_url': 'object_attributes.target.web_url',
    },
    ref='refs/merge-requests/{}/head',
)


def read_request(event: JSON, shape: RequestShape) -> JSON:
    """Return the facts of a merge request for `merge_request_variables`; raise BadRequest if any is missing."""
    iid = part_of(event, shape.number)
    if not isinstance(iid, int):
        raise BadRequest(f'the event has no {shape.number}')
    request: JSON = {'iid': iid}
    request.update((name, required_field(event, path)) for name, path in shape.branches.items())
    request.update((name, part_of(event, path)) for name, path in shape.texts.items())
    labels = [label.get(shape.label_name) for label in list_of(event, shape.labels) if isinstance(label, dict)]
    request['labels'] = [label for label in labels if isinstance(label, str)]
    return request


def merge_request_pipeline(call: Call, project: Row, event: JSON) -> Row:
    """Create the pipeline of a merge request that was opened, or has new commits."""
    shape = PULL_REQUEST
    if 'object_attributes' in event:
        shape = MERGE_REQUEST
    action = part_of(event, shape.action)
    if action not in NEW_COMMITS or action == 'update' and not part_of(event, 'object_attributes.oldrev'):
        raise NothingToDo(f'nothing to do for a merge request that is {action or "as it was"}')
    request = read_request(event, shape)
    sha = required_field(event, shape.sha)
    if SKIP_CI.search(str(part_of(event, 'object_attributes.last_commit.message'))):
        raise NothingToDo('the commit says to skip CI')
    source, target = (part_of(event, side) for side in shape.sides)
    if source != target and not project['fork_pipelines']:
        raise NothingToDo('merge requests of forks make no pipelines here; the project setting '
                          'ci_allow_fork_pipelines_to_run_in_parent_project lets them')
    ref = shape.ref.format(request['iid'])
    return call.ci.create_pipeline(project, ref, sha=sha, source='merge_request_event', merge_request=request)


#: Creates the pipeline of an event of each kind.
EVENT_PIPELINES: dict[str, Callable[[Call, Row, JSON], Row]] = {
    'push': push_pipeline,
    'push hook': push_pipeline,
    'tag push hook': push_pipeline,
    'pull_request': merge_request_pipeline,
    'merge request hook': merge_request_pipeline,
}


@route('POST', '/hooks/<project:project_path>', auth=webhook_token, raw=True)
def receive_webhook_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """Create a pipeline for a push or merge request that GitLab, Gitea, Forgejo or GitHub reports."""
    kind, event = read_event(call)
    if kind not in EVENT_PIPELINES:
        return json_response({'message': f'nothing to do for {kind}'})
    try:
        pipeline = EVENT_PIPELINES[kind](call, project, event)
    except NothingToDo as reason:
        return json_response({'message': str(reason)})
    return json_response(pipeline_entity(pipeline, call, detail=True), 201)


# Git over HTTP ################################################################################
#
# What minici can read on its own machine, and runners elsewhere cannot, it serves to them read-only:
# fetching over smart HTTP, by git's own http-backend in a repository of ours that borrows the objects.

MAX_GIT_REQUEST = 32 * MIB          # bytes of a request to fetch: it lists the commits that the other side has
GIT_URL = '/<project:project_path>.git'
GIT_SERVERS = threading.BoundedSemaphore(MAX_GIT_SERVERS)


def repository_reader(call: Call) -> Row:
    """Authenticate by a private token or the token of a running job, as the password of HTTP's basic scheme."""
    scheme, _, encoded = (call.header('Authorization') or '').partition(' ')
    password = ''
    with contextlib.suppress(ValueError):
        if scheme.lower() == 'basic':
            _, _, password = base64.b64decode(encoded, validate=True).decode().partition(':')
    user = call.ci.find_user(password)
    if user is not None:
        return user
    job = call.ci.find_job_by_token(password)
    if job is None:
        raise Unauthorized('', {'WWW-Authenticate': 'Basic realm="minici"'})
    if not call.ci.is_open_to_job(call.row('project'), job):
        raise NotFound('Project')
    return job


class GitAnswer:
    """The body of an answer: what git prints, as it prints it. `close` ends git, and does what is `left` to do then."""

    def __init__(self, process: subprocess.Popen[bytes], left: contextlib.ExitStack) -> None:
        self._process = process
        self._left = left
        self._timer = threading.Timer(GIT_LOCAL_TIMEOUT, process.kill)
        self._timer.start()

    def headers(self) -> dict[str, str]:
        """Return the headers that git prints first, in lower case."""
        assert self._process.stdout
        found = {}
        while line := self._process.stdout.readline(MAX_PATH).strip():
            name, _, value = line.decode('latin-1').partition(':')
            found[name.lower()] = value.strip()
        return found

    def __iter__(self) -> Iterator[bytes]:
        assert self._process.stdout
        while chunk := self._process.stdout.read1(COPY_CHUNK):     # type: ignore[attr-defined]
            yield chunk

    def close(self) -> None:
        """End git, if it still runs, and forget its directory."""
        self._timer.cancel()
        end_group(self._process)
        if self._process.stdout:
            self._process.stdout.close()
        self._process.wait()
        self._left.close()


@contextlib.contextmanager
def git_server() -> Iterator[None]:
    """Hold one of the places for a git that answers clients; raise Busy when all are taken."""
    if not GIT_SERVERS.acquire(blocking=False):
        raise Busy('Too many repositories are being fetched at once')
    try:
        yield
    finally:
        GIT_SERVERS.release()


def git_response(call: Call, project: Row, path: str) -> bottle.HTTPResponse:
    """Answer a request of git for a project's repository on this machine; raise NotFound if it has none here."""
    url = project['import_url'] or ''
    if not url.startswith('file://'):
        raise NotFound('Repository')
    with contextlib.ExitStack() as stack:
        stack.enter_context(git_server())
        directory = Path(tempfile.mkdtemp('.git', dir=call.ci.artifacts.incoming))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        borrow_repository(Path(urllib.parse.unquote(url.removeprefix('file://'))), directory / 'repository.git')
        process = start_git(call, directory, path)
        answer = GitAnswer(process, stack.pop_all())
    headers = answer.headers()
    status = int(headers.pop('status', '200').partition(' ')[0])
    if not headers:
        answer.close()
        raise Busy('git has failed')
    return bottle.HTTPResponse(answer, status, {name.title(): value for name, value in headers.items()})


def start_git(call: Call, directory: Path, path: str) -> subprocess.Popen[bytes]:
    """Start git's http-backend for a request, whose body it reads from a file."""
    settings = {**GIT_CONFIG, 'http.uploadpack': 'true', 'http.receivepack': 'false', 'http.getanyfile': 'false',
                'uploadpack.allowAnySHA1InWant': 'true', 'safe.directory': '*'}
    with open(directory / 'repository.git' / 'config', 'a') as config:
        for name, value in settings.items():
            section, _, key = name.partition('.')
            config.write(f'[{section}]\n\t{key} = {value}\n')
    request = {
        'GIT_CONFIG_GLOBAL': os.devnull,
        'GIT_HTTP_EXPORT_ALL': '1',
        'GIT_PROJECT_ROOT': str(directory),
        'PATH_INFO': f'/repository.git/{path}',
        'REQUEST_METHOD': call.method,
        'QUERY_STRING': 'service=git-upload-pack',
        'CONTENT_LENGTH': str(len(call.body)),
    }
    passed_on = {
        'GIT_PROTOCOL': 'Git-Protocol',
        'CONTENT_TYPE': 'Content-Type',
        'HTTP_CONTENT_ENCODING': 'Content-Encoding',
    }
    for name, header in passed_on.items():
        request[name] = call.header(header) or ''
    environment = git_environment(request)
    with tempfile.TemporaryFile(dir=directory) as body:
        body.write(call.body)
        body.seek(0)
        process = subprocess.Popen(['git', 'http-backend'], cwd=directory, env=environment, stdin=body,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    limit_memory(process)
    return process


@route('GET', f'{GIT_URL}/info/refs', auth=repository_reader)
def list_git_refs_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """List the branches and tags of a repository on this machine, for git to fetch them."""
    if call.text('service') != 'git-upload-pack':
        raise Forbidden('this repository is only for fetching, over smart HTTP')
    return git_response(call, project, 'info/refs')


@route('POST', f'{GIT_URL}/git-upload-pack', auth=repository_reader, raw=True, limit=MAX_GIT_REQUEST)
def fetch_git_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """Send the commits that git wants to fetch from a repository on this machine."""
    return git_response(call, project, 'git-upload-pack')


# Repository API ###############################################################################
#
# What a repository and its pipelines hold besides jobs: branches and tags as git has them, environments,
# releases; and the people behind the tokens.

def ref_commit_entity(sha: str, info: Members, project: Row, call: Call) -> JSON:
    """Return the commit of a branch, tag or release."""
    commit = {name: info[name] for name in ('author_name', 'author_email', 'committer_name', 'committer_email')}
    for name in ('authored_date', 'committed_date'):
        commit[name] = git_time(info[name])
    commit['id'] = sha
    commit['short_id'] = sha[:8]
    commit['title'] = info['message'].partition('\n')[0]
    commit['message'] = info['message']
    commit['created_at'] = commit['committed_date']
    commit['parent_ids'] = info['parent_ids']
    commit['trailers'] = {}
    commit['extended_trailers'] = {}
    commit['web_url'] = f'{call.base_url}/{project["path"]}/-/commit/{sha}'
    return commit


def is_protected_ref(project: Row, name: str, *, tag: bool) -> bool:
    """Tell whether pipelines of a branch or tag are protected."""
    return matches_ref(project['protected_refs'], name, tag, project['default_branch'])


def branch_entity(name: str, ref: GitRef, info: Members, project: Row, call: Call) -> JSON:
    """Return a branch."""
    protected = is_protected_ref(project, name, tag=False)
    return {
        'name': name,
        'merged': False,
        'protected': protected,
        'default': name == project['default_branch'],
        'developers_can_push': False,
        'developers_can_merge': False,
        'can_push': True,
        'web_url': f'{call.base_url}/{project["path"]}/-/tree/{urllib.parse.quote(name)}',
        'commit': ref_commit_entity(ref.sha, info, project, call),
    }


def tag_entity(name: str, ref: GitRef, info: Members, project: Row, call: Call) -> JSON:
    """Return a tag, with its release if it has one."""
    release = None
    with contextlib.suppress(NotFound):
        release = pick(call.ci.find_release(project, name), 'description')
        release['tag_name'] = name
    return {
        'name': name,
        'message': info.get('tag_message'),
        'target': ref.target,
        'commit': ref_commit_entity(ref.sha, info, project, call),
        'release': release,
        'protected': is_protected_ref(project, name, tag=True),
        'created_at': git_time(info.get('tagged_at') or ''),
    }


RefEntity = Callable[[str, GitRef, Members, Row, 'Call'], JSON]


NamedRefs = list[tuple[str, GitRef]]


def sorted_branches(call: Call, project: Row, branches: NamedRefs) -> NamedRefs:
    """Return branches in the order that the call wants: by default by name."""
    if call.has('regex'):
        raise InvalidParameter('regex is not supported by minici; search takes ^ and $')
    order, _, way = call.choice('sort', ('name_asc', 'updated_asc', 'updated_desc'), 'name_asc').partition('_')
    if order == 'name':
        return branches
    return by_commit_time(call, project, branches, descending=way == 'desc')


def by_commit_time(call: Call, project: Row, refs: NamedRefs, *, descending: bool) -> NamedRefs:
    """Return branches or tags by the time of their commits."""
    infos = call.ci.describe_refs(project, [ref for _, ref in refs])
    return sorted(refs, key=lambda ref: (moment_of_commit(infos[ref[1]]), ref[0]), reverse=descending)


def sorted_tags(call: Call, project: Row, tags: NamedRefs) -> NamedRefs:
    """Return tags in the order that the call wants: by default the newest commit first."""
    order = call.choice('order_by', ('name', 'updated', 'version'), 'updated')
    descending = call.choice('sort', ('asc', 'desc'), 'desc') == 'desc'
    if order == 'version':
        return sorted(tags, key=lambda tag: version_key(tag[0]), reverse=descending)
    if order == 'updated':
        return by_commit_time(call, project, tags, descending=descending)
    return sorted(tags, reverse=descending, key=lambda tag: tag[0])


def version_key(name: str) -> list[tuple[str, int]]:
    """Return what sorts names of tags as versions: numbers by their value."""
    return [(text, int(number or 0)) for text, number in re.findall('([^0-9]*)([0-9]{0,18})', name)]


def moment_of_commit(info: Members) -> float:
    """Return when a commit was made, 0 if that cannot be read."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(info['committed_date'].replace('Z', '+00:00')).timestamp()
    return 0.0


REF_ORDERS = {'heads': sorted_branches, 'tags': sorted_tags}


def refs_response(call: Call, project: Row, kind: str, entity: RefEntity) -> bottle.HTTPResponse:
    """Return a page of the branches or tags of a project's repository."""
    number, per_page = page_of(call)
    refs = list(call.ci.list_refs(project, kind, call.text('search')).items())
    refs = REF_ORDERS[kind](call, project, refs)
    shown = refs[(number - 1) * per_page:number * per_page]
    infos = call.ci.describe_refs(project, [ref for _, ref in shown])
    entities = [entity(name, ref, infos[ref], project, call) for name, ref in shown]
    return paged_response(call, entities, len(refs))


def ref_response(call: Call, project: Row, kind: str, name: str, entity: RefEntity) -> JSON:
    """Return one branch or tag of a project's repository."""
    ref = call.ci.list_refs(project, kind).get(name)
    if ref is None:
        raise NotFound({'heads': 'Branch', 'tags': 'Tag'}[kind])
    info = call.ci.describe_refs(project, [ref])[ref]
    return entity(name, ref, info, project, call)


@route('GET', f'{PROJECT}/repository/branches', auth=private_token)
def list_branches_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """List the branches of a project's repository."""
    return refs_response(call, project, 'heads', branch_entity)


@route('GET', f'{PROJECT}/repository/branches/<branch>', auth=private_token)
def show_branch_route(call: Call, project: Row, branch: str) -> JSON:
    """Show a branch of a project's repository."""
    return ref_response(call, project, 'heads', branch, branch_entity)


@route('GET', f'{PROJECT}/repository/tags', auth=private_token)
def list_tags_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """List the tags of a project's repository."""
    return refs_response(call, project, 'tags', tag_entity)


@route('GET', f'{PROJECT}/repository/tags/<tag_name>', auth=private_token)
def show_tag_route(call: Call, project: Row, tag_name: str) -> JSON:
    """Show a tag of a project's repository."""
    return ref_response(call, project, 'tags', tag_name, tag_entity)


# -- commits

@route('GET', f'{PROJECT}/repository/commits/<sha>', auth=private_token)
def show_commit_route(call: Call, project: Row, sha: str) -> JSON:
    """Show the commit that a branch, tag or sha stands for, with its newest pipeline."""
    commit = call.ci.find_commit(project, sha)
    row = newest_pipeline(call, project, ref=sha, sha=commit) or newest_pipeline(call, project, sha=commit)
    info = None
    if row is None or row['commit_info'] is None:
        info = call.ci.describe_commit(project, commit)
    if info is not None:
        entity = ref_commit_entity(commit, info, project, call)
    elif row is not None:
        entity = commit_entity(row, call)
    else:
        raise NotFound('Commit')
    return {**entity, **commit_status(project, row, call)}


def commit_status(project: Row, pipeline: Row | None, call: Call) -> JSON:
    """Return what is told of a commit beside it: its project, and its newest pipeline if it has one."""
    status: JSON = {'project_id': project['id'], 'status': None, 'last_pipeline': None}
    if pipeline is not None:
        status['status'] = pipeline['status']
        status['last_pipeline'] = pipeline_entity(pipeline, call)
    return status


# -- environments

def environment_entity(row: Row) -> JSON:
    """Return an environment."""
    last: JSON = {}
    if row['spec'] is not None:
        last = stored_spec(row)['environment'] or {}
    environment = pick(row, 'id', 'name')
    environment['external_url'] = last.get('url')
    environment['state'] = 'available'
    if last.get('action') == 'stop':
        environment['state'] = 'stopped'
    environment['slug'] = environment_slug(row['name'])
    environment['description'] = None
    environment['tier'] = environment_tier({**last, 'name': row['name']})
    environment['auto_stop_at'] = None
    environment.update(pick_times(row, 'created_at', 'updated_at'))
    return environment


@route('GET', f'{PROJECT}/environments', auth=private_token)
def list_environments_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """List the environments that jobs of a project name."""
    if call.has('name') and call.has('search'):
        raise InvalidParameter('name, search are mutually exclusive')
    if call.has('search') and len(call.text('search')) < 3:
        raise BadRequest('Search query is less than 3 characters')
    states = call.optional_choice('states', ('available', 'stopping', 'stopped'))
    rows = call.ci.list_environments(project, name=call.text('name') or None, search=call.text('search'))
    entities = [environment_entity(row) for row in rows]
    return paged_response(call, [entity for entity in entities if states in (None, entity['state'])])


@route('GET', f'{PROJECT}/environments/<environment_id>', auth=private_token)
def show_environment_route(call: Call, project: Row) -> JSON:
    """Show an environment and its last deployment."""
    row = call.ci.find_environment(project, call.integer('environment_id'))
    environment = environment_entity(row)
    environment['last_deployment'] = None
    if row['job_id'] is not None:
        environment['last_deployment'] = deployment_entity(call.ci.find_job(row['job_id']), call)
        environment['last_deployment']['environment'] = {name: environment[name] for name in BASIC_ENVIRONMENT}
    return environment


#: What is told of an environment beside a deployment.
BASIC_ENVIRONMENT = ('id', 'name', 'slug', 'external_url', 'created_at', 'updated_at')


def deployment_entity(job: Row, call: Call) -> JSON:
    """Return the last job of an environment as its deployment."""
    deployment = pick(job, 'id', 'ref', 'sha', 'status')
    deployment['iid'] = job['id']
    deployment['created_at'] = iso_time(job['created_at'])
    deployment['updated_at'] = iso_time(job['finished_at'] or job['started_at'] or job['created_at'])
    deployment['user'] = user_entity(job, call)
    deployment['deployable'] = job_entity(job, call)
    return deployment


# -- releases

RELEASES = f'{PROJECT}/releases'
LINK_TYPES = ('other', 'runbook', 'image', 'package')


def release_link_entity(link: JSON, url: str) -> JSON:
    """Return a link of a release."""
    path = link.get('direct_asset_path') or link.get('filepath')
    direct = link['url']
    if path:
        direct = f'{url}/downloads{path}'
    kind = link.get('link_type') or 'other'
    return {'id': link['id'], 'name': link['name'], 'url': link['url'], 'direct_asset_url': direct, 'link_type': kind}


def release_commit_entity(row: Row, call: Call) -> JSON:
    """Return the commit of a release; of one that cannot be read, its id and the moment of the release."""
    project = call.ci.find_project(row['project_id'])
    info = call.ci.describe_commit(project, row['sha'])
    if info is None:
        moment = iso_time(row['created_at'])
        info = {**UNREAD_COMMIT, 'authored_date': moment, 'committed_date': moment}
        return {**ref_commit_entity(row['sha'], info, project, call), **info, 'created_at': moment}
    return ref_commit_entity(row['sha'], info, project, call)


def release_entity(row: Row, call: Call) -> JSON:
    """Return a release."""
    base = f'{call.base_url}/{row["project_path"]}/-'
    tag = urllib.parse.quote(row['tag'])
    links = [release_link_entity(link, f'{base}/releases/{tag}') for link in json.loads(row['links'])]
    entity = pick(row, 'name', 'description')
    entity['tag_name'] = row['tag']
    entity.update(pick_times(row, 'created_at', 'released_at'))
    entity['upcoming_release'] = row['released_at'] > call.ci.clock()
    entity['author'] = user_entity(row, call)
    entity['commit'] = None
    entity['commit_path'] = None
    if row['sha']:
        entity['commit'] = release_commit_entity(row, call)
        entity['commit_path'] = f'/{row["project_path"]}/-/commit/{row["sha"]}'
    entity['tag_path'] = f'/{row["project_path"]}/-/tags/{tag}'
    entity['milestones'] = [{'title': title} for title in json.loads(row['milestones'])]
    entity['assets'] = {'count': len(links), 'sources': [], 'links': links}
    entity['evidences'] = []
    entity['_links'] = {'self': f'{base}/releases/{tag}'}
    return entity


def given_links(call: Call) -> list[JSON]:
    """Return the links that come with a new release; raise InvalidParameter for one that no page should show."""
    links = call.mapping('assets').get('links') or []
    if isinstance(links, dict):
        links = list(links.values())
    if not isinstance(links, list) or not all(isinstance(link, dict) for link in links):
        raise InvalidParameter('assets[links] is invalid')
    for link in links:
        texts = [link.get('name'), link.get('url'), link.get('direct_asset_path') or '', link.get('filepath') or '']
        if not all(isinstance(text, str) for text in texts) or not link['name']:
            raise InvalidParameter('assets[links] is invalid: each link has a name and a url')
        if not re.match('(https?|ftp)://', link['url']) or link.get('link_type', 'other') not in LINK_TYPES:
            raise InvalidParameter('assets[links] is invalid: a url begins with http://, https:// or ftp://')
    return [{name: link.get(name) for name in ('name', 'url', 'direct_asset_path', 'filepath', 'link_type')}
            for link in links]


@route('GET', RELEASES, auth=job_or_private_token)
def list_releases_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """List the releases of a project, newest first."""
    order = call.choice('order_by', ('released_at', 'created_at'), 'released_at')
    descending = call.choice('sort', ('asc', 'desc'), 'desc') == 'desc'
    rows = sorted(call.ci.list_releases(project), key=lambda row: (row[order], row['id']), reverse=descending)
    return paged_response(call, [release_entity(row, call) for row in rows])


@route('POST', RELEASES, auth=job_or_private_token, status=201)
def create_release_route(call: Call, project: Row) -> JSON:
    """Create the release of a tag; this is what the release step of a job asks for."""
    call.require('tag_name')
    user_id = call.actor['user_id'] if 'user_id' in call.actor.keys() else call.actor['id']  # noqa: SIM118
    tag_name = call.text('tag_name')
    description = call.text('description')
    ref = call.text('ref') or None
    links = given_links(call)
    milestones = call.words('milestones')
    released_at = call.moment('released_at')
    release = call.ci.create_release(project, tag_name, name=call.text('name'), description=description, ref=ref,
                                     links=links, milestones=milestones, released_at=released_at, user_id=user_id)
    return release_entity(release, call)


@route('GET', f'{RELEASES}/<tag_name>', auth=job_or_private_token)
def show_release_route(call: Call, project: Row, tag_name: str) -> JSON:
    """Show the release of a tag."""
    return release_entity(call.ci.find_release(project, tag_name), call)


@route('DELETE', f'{RELEASES}/<tag_name>', auth=private_token)
def delete_release_route(call: Call, project: Row, tag_name: str) -> JSON:
    """Remove the release of a tag; the tag stays."""
    release = call.ci.find_release(project, tag_name)
    call.ci.delete_release(release)
    return release_entity(release, call)


# -- people

#: Flags that no user of minici has: a list of those that have one is empty.
USER_FLAGS = ('blocked', 'external', 'auditors', 'exclude_active', 'exclude_humans')
#: Filters that minici does not know how to answer.
UNKNOWN_USER_FILTERS = ('public_email', 'created_after', 'created_before', 'two_factor', 'without_projects',
                        'extern_uid', 'saml_provider_id', 'order_by', 'sort')


@route('GET', '/api/v4/users', auth=private_token)
def list_users_route(call: Call) -> bottle.HTTPResponse:
    """List the users: the owners of private tokens."""
    for name in UNKNOWN_USER_FILTERS:
        if call.has(name):
            raise InvalidParameter(f'{name} is not supported by minici')
    rows = call.ci.list_users(call.text('username') or None, call.text('search'))
    if any(call.flag(name) for name in USER_FLAGS) or call.optional_flag('active') is False:
        rows = []
    return paged_response(call, [user_entity(row, call) for row in rows])


@route('GET', '/api/v4/users/<user_id>', auth=private_token)
def show_other_user_route(call: Call, user_id: str) -> JSON | None:
    """Show a user."""
    for row in call.ci.list_users():
        if str(row['id']) == user_id:
            return user_entity(row, call)
    raise NotFound('User')


@route('GET', '/api/v4/personal_access_tokens/self', auth=private_token)
def show_own_token_route(call: Call) -> JSON:
    """Describe the private token that the call brings."""
    row = call.ci.find_private_token(call.actor['token_hash'])
    expires_at = iso_time(row['expires_at'])
    return {
        'id': int(row['token_hash'][:12], 16),      # it has no number: this one is as lasting and as unique
        'name': row['description'] or row['scope'],
        'description': row['description'],
        'revoked': False,
        'active': True,
        'scopes': [row['scope']],
        'user_id': row['user_id'],
        'created_at': iso_time(row['created_at']),
        'last_used_at': iso_time(row['last_used_at']),
        'expires_at': expires_at and expires_at[:10],
    }


# Operations ###################################################################################

#: Upper bounds of the request times that are counted apart, in seconds.
TIME_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(eq=False)
class RouteFigures:
    """How often a route was called, how long its answers took, and how many bytes came and went."""

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    times: list[int] = field(default_factory=lambda: [0] * (len(TIME_BUCKETS) + 1))     # answers between the bounds
    seconds: float = 0
    received: int = 0
    sent: int = 0


class Metrics:
    """What an application has answered since it was made, by method and route."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._routes: dict[tuple[str, str], RouteFigures] = collections.defaultdict(RouteFigures)

    def count(self, method: str, path: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count one answer of the route with this path; bodies had `received` and `sent` bytes."""
        with self._lock:
            figures = self._routes[method, path]
            figures.statuses[status] += 1
            figures.seconds += seconds
            figures.received += received
            figures.sent += sent
            figures.times[bisect.bisect_left(TIME_BUCKETS, seconds)] += 1

    def lines(self) -> Iterator[str]:
        """Yield all samples in Prometheus's text format."""
        with self._lock:
            routes = copy.deepcopy(dict(self._routes))
        yield from described('minici_http_requests_total', 'counter', 'Requests answered.')
        for (method, path), figures in routes.items():
            for status, count in figures.statuses.items():
                labels = dict(method=method, route=path, status=str(status))
                yield sample('minici_http_requests_total', count, **labels)
        yield from described('minici_http_request_seconds', 'histogram', 'Time until an answer began.')
        for (method, path), figures in routes.items():
            yield from self._histogram(figures, method=method, route=path)
        claims = sum(figures.statuses[201] for (_, path), figures in routes.items() if path in CLAIM_PATHS)
        yield from single('minici_claims_total', 'counter', 'Jobs handed to runners.', claims)
        unavailable = sum(figures.statuses[503] for figures in routes.values())
        yield from single('minici_unavailable_total', 'counter', 'Requests answered with 503.', unavailable)
        received = sum(figures.received for figures in routes.values())
        yield from single('minici_received_bytes_total', 'counter', 'Bytes of request bodies.', received)
        sent = sum(figures.sent for figures in routes.values())
        yield from single('minici_sent_bytes_total', 'counter', 'Bytes of answers.', sent)

    @staticmethod
    def _histogram(figures: RouteFigures, **labels: str) -> Iterator[str]:
        """Yield the samples of one histogram."""
        name = 'minici_http_request_seconds'
        total = figures.statuses.total()
        within = itertools.accumulate(figures.times)
        for bound, count in zip(TIME_BUCKETS, within, strict=False):
            yield sample(f'{name}_bucket', count, **labels, le=str(bound))
        yield sample(f'{name}_bucket', total, **labels, le='+Inf')
        yield sample(f'{name}_sum', figures.seconds, **labels)
        yield sample(f'{name}_count', total, **labels)


CLAIM_PATHS = ('/api/v4/jobs/request', '/ci/api/v1/builds/register', '/api/v1/builds/register', '/ci/builds/register')


def described(name: str, kind: str, explanation: str) -> Iterator[str]:
    """Yield the two lines that introduce a metric."""
    yield f'# HELP {name} {explanation}'
    yield f'# TYPE {name} {kind}'


def sample(name: str, value: float, **labels: str) -> str:
    """Return one line of Prometheus's text format."""
    escaped = [(label, text.translate({92: r'\\', 34: r'\"', 10: r'\n'})) for label, text in labels.items()]
    inner = ','.join(f'{label}="{text}"' for label, text in escaped)
    if inner:
        return f'{name}{{{inner}}} {value!r}'
    return f'{name} {value!r}'


def single(name: str, kind: str, explanation: str, value: float) -> Iterator[str]:
    """Yield a metric of one sample."""
    yield from described(name, kind, explanation)
    yield sample(name, value)


def coordinator_lines(ci: Coordinator) -> Iterator[str]:
    """Yield what the database, the disk and the upkeep say."""
    figures = ci.figures()
    yield from described('minici_jobs', 'gauge', 'Jobs by status.')
    for status, count in figures.jobs.items():
        yield sample('minici_jobs', count, status=status)
    yield from single('minici_oldest_pending_seconds', 'gauge', 'How long the oldest pending job has waited.',
                      figures.oldest_pending)
    yield from single('minici_runners_registered', 'gauge', 'Registered runners.', figures.runners_registered)
    yield from single('minici_runners_online', 'gauge', f'Runners heard within {ONLINE_FOR} seconds.',
                      figures.runners_online)
    yield from single('minici_database_bytes', 'gauge', 'Size of the database.', figures.database_bytes)
    yield from single('minici_disk_free_bytes', 'gauge', 'Free bytes of the disk with traces and artifacts.',
                      figures.disk_free)
    yield from single('minici_last_sweep_timestamp_seconds', 'gauge', 'When this process last did its upkeep.',
                      figures.swept_at)
    yield from described('minici_build_info', 'gauge', 'The version that answers.')
    yield sample('minici_build_info', 1, version=__version__)


def monitor(call: Call) -> None:
    """Authenticate by a call from this machine, through no proxy, or by --metrics-token."""
    bearer = (call.header('Authorization') or '').removeprefix('Bearer ')
    given = call.optional('token') or bearer
    expected = call.ci.settings.metrics_token
    if expected and hmac.compare_digest(given.encode(), expected.encode()):
        return
    if given or not is_local(call):
        raise Unauthorized('ask from this machine, or bring the token of --metrics-token')


def is_local(call: Call) -> bool:
    """Tell whether a request comes from this machine, names it by a loopback address, and passed no proxy."""
    host = re.sub(r':[0-9]+$', '', call.header('Host') or '')
    proxied = any(call.header(name) for name in ('Forwarded', 'X-Forwarded-For', 'X-Real-Ip', 'Via'))
    return not proxied and is_loopback(host) and is_loopback(call.environ.get('REMOTE_ADDR') or '')


def is_loopback(host: str) -> bool:
    """Tell whether a name or address means this machine."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host.strip('[]')).is_loopback
    except ValueError:
        return False


def text_response(text: str, status: int = 200) -> bottle.HTTPResponse:
    """Return an answer of plain text."""
    return bottle.HTTPResponse(text.encode(), status, {'Content-Type': 'text/plain; version=0.0.4; charset=utf-8'})


@route('GET', '/-/health', auth=monitor)
def health_route() -> bottle.HTTPResponse:
    """Tell whether the server answers, in GitLab's words."""
    return text_response('GitLab OK')


@route('GET', '/-/liveness', auth=monitor)
def liveness_route() -> JSON:
    """Tell whether the server answers; the database is not asked."""
    return {'status': 'ok'}


@route('GET', '/-/readiness', auth=monitor)
def readiness_route(call: Call) -> bottle.HTTPResponse:
    """Tell whether the server can do its work; 503 while the database cannot be read or is damaged."""
    problem = ''
    try:
        call.ci.figures()
    except CIError as error:
        problem = str(error)
    check = {'status': 'failed', 'message': problem} if problem else {'status': 'ok'}
    answered = {'status': check['status'], 'master_check': [{'status': 'ok'}], 'db_check': [check]}
    return json_response(answered, 503 if problem else 200)


@route('GET', '/-/metrics', auth=monitor)
def metrics_route(call: Call) -> bottle.HTTPResponse:
    """Show the figures that Prometheus collects."""
    metrics: Metrics = call.environ['minici.metrics']
    lines = [*coordinator_lines(call.ci), *metrics.lines()]
    return text_response('\n'.join(lines) + '\n')


# Application ##################################################################################

PAGES = 'minici_pages'  # the package with the pages, which is served whenever it is installed
NO_PAGES = """minici is running. Its API works; its pages for browsers are not installed.

They are the package minici_pages, which `pip install` brings and which stands in `examples` of the repository:
run minici.py from there, or put minici_pages beside it. Then restart minici.
"""


def load_pages() -> types.ModuleType | None:
    """Return the package with the pages, or None where it is not installed.

    A checkout has it in ``examples``, beside this file; those pages are used before any that are installed.
    """
    if PAGES not in sys.modules:
        beside = [str(Path(__file__).parent / 'examples')]
        spec = importlib.machinery.PathFinder.find_spec(PAGES, beside) or importlib.util.find_spec(PAGES)
        if spec is None or spec.loader is None:
            return None
        sys.modules[PAGES] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PAGES])
    return sys.modules[PAGES]


def no_pages_route(call: Call) -> bottle.HTTPResponse:
    """Say that there are no pages here, and where they are."""
    return bottle.HTTPResponse(NO_PAGES.encode(), 200, {'Content-Type': 'text/plain; charset=utf-8'})


@functools.cache
def all_routes() -> tuple[Route, ...]:
    """Return the routes of the API and those of the pages, or one route that says that there are no pages."""
    pages = load_pages()
    return (*ROUTES, *(pages.ROUTES if pages else [Route('GET', '/', public, no_pages_route)]))


@functools.cache
def router() -> bottle.Bottle:
    """Return the table of routes, made once: that takes milliseconds, and it knows no coordinator."""
    table = bottle.Bottle()
    for kind, pattern in PATH_KINDS.items():
        table.router.add_filter(kind, lambda config, pattern=pattern: (pattern, None, None))
    for declared in all_routes():
        table.route(declared.path, declared.method, functools.partial(answer_call, declared))
    return table


def no_route(error: bottle.HTTPError, path: str) -> bottle.HTTPResponse:
    """Answer in JSON for addresses and methods that no route has."""
    if error.status_code == 405:
        allowed = {'Allow': error.headers['Allow']}
        return hardened(error_response(MethodNotAllowed(headers=allowed)))
    message = error.status_line
    if error.status_code == 404 and path.startswith(('/api/v4/', '/api/graphql')):     # as today's GitLab has them
        message += ' - minici has no such route'
    return hardened(json_response({'error': message}, error.status_code))


def body_of(response: bottle.HTTPResponse, request: Environ) -> Iterable[bytes]:
    """Return the body of an answer as a server wants it; what is not sent is closed."""
    body: Any = response.body
    if isinstance(body, bytes) and 'Content-Length' not in response:
        response.set_header('Content-Length', str(len(body)))
    if request['REQUEST_METHOD'] == 'HEAD' or response.status_code in (204, 304):
        response.close()
        return []
    if isinstance(body, bytes):
        return [body]
    if isinstance(body, FileBody):
        wrapper = request.get('wsgi.file_wrapper', bottle.WSGIFileWrapper)
        return cast('Iterable[bytes]', wrapper(body))
    return cast('Iterable[bytes]', body)


class Application:
    """The WSGI callable. It routes by the undecoded path, so that ``group%2Fdemo`` stays one segment."""

    def __init__(self, coordinator: Coordinator) -> None:
        coordinator.serves = True
        self._coordinator = coordinator
        self._router = router()
        self._metrics = Metrics()
        self._refusals = RefusalLog()
        self.routes = all_routes()

    def __call__(self, environ: JSON, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one WSGI request, count the answer, and log it with --access-log."""
        began = time.perf_counter()
        request = self._routed(environ)
        response = self._answer(request)
        body = body_of(response, request)
        sent = int(response.get_header('Content-Length', 0))
        self._note(request, response.status_code, sent, time.perf_counter() - began)
        start_response(response.status_line, response.headerlist)
        return body

    def _answer(self, request: Environ) -> bottle.HTTPResponse:
        """Find the route of a request and answer it."""
        try:
            matched, arguments = self._router.router.match(request)
        except bottle.HTTPError as error:
            return no_route(error, request['PATH_INFO'])
        request['bottle.route'] = matched
        response: bottle.HTTPResponse = matched.callback(arguments, request)
        return response

    def admit(self, environ: Environ, start: bytes | None) -> Admission:
        """Decide about a request before its body is read; `start` is the part that has arrived, None before it.

        A server that calls this when the headers are complete, and again when MAX_UNTRUSTED_BODY bytes
        of an untrusted body have arrived, reads no body for nothing.
        """
        began = time.perf_counter()
        request = self._routed(environ)
        request['wsgi.input'] = io.BytesIO(start or b'')
        admitted = self._admission(request, start)
        if admitted.refusal is not None:
            sent = len(admitted.refusal.body)
            self._note(request, admitted.refusal.status_code, sent, time.perf_counter() - began)
        return admitted

    def _admission(self, request: Environ, start: bytes | None) -> Admission:
        """Find the route of a request and ask its guard."""
        try:
            matched, arguments = self._router.router.match(request)
        except bottle.HTTPError as error:
            return Admission(0, refusal=no_route(error, request['PATH_INFO']))
        request['bottle.route'] = matched
        call = Call(self._coordinator, matched.callback.args[0], request)
        try:
            call.read_path(arguments)
            return admission(call, start)
        except Exception as error:
            return Admission(0, refusal=hardened(refusal_response(call, error)))

    def _routed(self, environ: Environ) -> Environ:
        """Return the environment with the undecoded path, as the router expects it, and with what handlers need."""
        path = self._raw_path(environ).rstrip('/') or '/'
        if path.endswith('.json') and '/artifacts/' not in path:
            path = path.removesuffix('.json')
        ours = {
            'PATH_INFO': path,
            'minici.path': path,
            'minici.ci': self._coordinator,
            'minici.metrics': self._metrics,
            'minici.refusals': self._refusals,
        }
        return {**environ, **ours}

    def _note(self, environ: Environ, status: int, sent: int, seconds: float) -> None:
        """Count an answer, and log it with --access-log."""
        # of all addresses that have no route together
        method = ''
        path = ''
        if 'bottle.route' in environ:
            method = environ['REQUEST_METHOD']
            path = environ['bottle.route'].rule
        given = environ.get('CONTENT_LENGTH') or ''
        received = int(given) if given.isdecimal() else 0
        self._metrics.count(method, path, status, seconds, received, sent)
        if self._coordinator.settings.access_log:
            access_log.info('%s %s %s %d %d %.0f ms', environ.get('REMOTE_ADDR') or '-', environ['REQUEST_METHOD'],
                            environ['minici.path'], status, sent, seconds * 1000)

    @staticmethod
    def _raw_path(environ: Members) -> str:
        """Return the path below the mount point, undecoded if the server tells it."""
        mount = environ.get('SCRIPT_NAME', '')
        decoded = mount + environ.get('PATH_INFO', '')
        sent = environ.get('REQUEST_URI') or environ.get('RAW_URI') or ''
        if not mount and sent == decoded and sent.isascii() and '%' not in sent:
            return sent     # as most are
        without_host = re.sub(r'^https?://[^/?]*', '', sent)
        raw, _, _ = without_host.partition('?')
        if urllib.parse.unquote(raw, 'latin-1') != decoded:  # missing, or a middleware has rewritten the path
            raw = urllib.parse.quote(decoded.encode('latin-1'), safe="/:@!$&'()*+,;=~")
        elif not raw.isascii():
            raw = urllib.parse.quote(raw.encode('latin-1'), safe="%/:@!$&'()*+,;=~")
        depth = mount.count('/')
        below = raw.split('/')[depth + 1:]
        return '/' + '/'.join(below)


def create_app(coordinator: Coordinator) -> Application:
    """Return a WSGI application that serves a coordinator; it can be mounted under any prefix."""
    return Application(coordinator)


# Server #######################################################################################
#
# waitress, which believes nobody: it reads all of a request before it asks whether anybody wants it.
# Here a request is admitted when its headers are complete (`Application.admit`), and until its sender
# has brought a good token, MAX_UNTRUSTED_BODY bytes of it are kept in memory and none on the disk.

TLS_HANDSHAKE = b'\x16'
STALL = 0.005       # seconds without the end of a task after which a further thread begins one
#: The addresses of runners that have jobs, and of monitors; some threads serve these alone.
URGENT_PATH = re.compile(r'/api/v4/jobs/|/(?:ci/)?api/v1/builds/|/ci/builds/|/-/(?:liveness|readiness|health|metrics)$')
#: The addresses of what compiles pipeline files, which may take its time; it has threads of its own, too.
COMPILING_PATH = re.compile(r'/hooks/|/-/pipelines/new$'
                            r'|(?:(?:/api/v4|/-)/.*/(?:pipeline|lint|play)|/refs/.*/trigger)(?:\.json)?/?$')


class SpoolBuffer(waitress.buffers.OverflowableBuffer):
    """A request body that is still arriving; a large one is kept in the data directory."""

    directory: Path
    buf: Any

    def _set_large_buffer(self) -> None:
        small = self.buf
        file = tempfile.TemporaryFile(dir=self.directory)
        self.buf = waitress.buffers.FileBasedBuffer(file, small)
        if small is not None:
            small.close()
        self.overflowed = True

    def close(self) -> None:
        """Give up the body; a full disk must not fail once more with what it has refused already."""
        with contextlib.suppress(OSError):
            super().close()


class Refusal:
    """Lets waitress send one of our answers where it would send an error of its own."""

    def __init__(self, response: bottle.HTTPResponse) -> None:
        self._response = response

    def to_response(self, ident: str | None) -> tuple[str, list[tuple[str, str]], bytes]:
        """Return the status line, the headers and the body."""
        headers = [*self._response.headerlist, ('Connection', 'close')]
        return self._response.status_line, headers, self._response.body


class RequestParser(waitress.parser.HTTPRequestParser):
    """Reads a request, and of its body no more than its sender may send."""

    adj: Any
    error: Any
    path = ''

    def __init__(self, adj: Any, channel: Channel) -> None:
        super().__init__(adj)
        self._channel = channel
        self._admission = Admission(MAX_UNTRUSTED_BODY)
        self._held = 0      # bytes that count as untrusted memory
        self._began = time.monotonic()

    def received(self, data: bytes) -> int:
        """Take a piece of the request and return how many of its bytes belong to it."""
        try:
            consumed = self._take_headers(data) if self.body_rcv is None else self._take_body(data)
        except OSError as error:
            log.error('the body of a request cannot be stored: %s', error)
            self._refuse(error_response(Busy('The server cannot store the request, see its log')))
        if self.error is None:
            return consumed
        self.completed = True
        self.expect_continue = False
        self._channel.drain()
        return len(data)    # nothing that follows a refused request is a request

    def _take_headers(self, data: bytes) -> int:
        """Take a part of the headers; ask about the body when they are complete, unless it is small."""
        if data.startswith(TLS_HANDSHAKE) and not self.header_plus:
            self._refuse(error_response(BadRequest('This port speaks plain HTTP: use http:// in the address')))
            return len(data)
        consumed = super().received(data)
        expected = self.expect_continue or self.chunked or self.content_length > MAX_UNTRUSTED_BODY
        if self.error is None and self.body_rcv is not None and expected:
            self._admit(None)
        return consumed

    def _take_body(self, data: bytes) -> int:
        """Take a part of the body; ask again when as much has come as a stranger may send."""
        room = self._admission.limit - self.body_bytes_received
        if room <= 0 and not self._admission.trusted:
            self._admit(self.body_rcv.getbuf().get(-1))
            room = self._admission.limit - self.body_bytes_received
        if room <= 0:
            if self.error is None:
                self._refuse(error_response(TooLarge(f'the body has more than {self._admission.limit} bytes')))
            return len(data)
        consumed = super().received(data[:room])
        if not self._admission.trusted and not self._channel.trusted:
            self._hold(consumed)
        return consumed

    def _hold(self, size: int) -> None:
        """Count `size` bytes of an untrusted body; refuse the request when there are too many of all clients."""
        self._held += size
        if self._channel.server.strangers.hold(size) > MAX_UNTRUSTED_MEMORY:
            self._refuse(error_response(Busy('Too many unauthenticated requests are being received')))

    def _release(self) -> None:
        self._channel.server.strangers.hold(-self._held)
        self._held = 0

    def _admit(self, start: bytes | None) -> None:
        """Ask the application how much of the body may be read; `start` is the part that has arrived."""
        self._admission = self._channel.admit(self, start)
        if self._admission.refusal is not None:
            self._refuse(self._admission.refusal)
        if self._admission.trusted:
            self._release()

    def _refuse(self, response: bottle.HTTPResponse) -> None:
        self.error = Refusal(response)

    def parse_header(self, header_plus: bytes) -> None:
        """Read the headers and choose where the body is kept; a body of two lengths is refused."""
        super().parse_header(header_plus)
        two_lengths = self.chunked and 'CONTENT_LENGTH' in self.headers
        if two_lengths or 'TRANSFER_ENCODING' in self.headers:  # waitress removes the one that it understands
            raise waitress.parser.ParsingError('Content-Length and Transfer-Encoding exclude each other')
        if self.body_rcv is not None:
            self.body_rcv.buf = SpoolBuffer(self.adj.inbuf_overflow)
            self.body_rcv.buf.directory = self.adj.directory

    def is_wanted(self) -> bool:
        """Tell whether the sender has brought a good token for this request."""
        return self._admission.trusted

    def is_overdue(self) -> bool:
        """Tell whether the headers take too long, or the body arrives too slowly."""
        allowed = HEADER_TIMEOUT + self.body_bytes_received / MIN_BODY_PACE
        return time.monotonic() - self._began > allowed

    def close(self) -> None:
        """Give up the body."""
        self._release()
        super().close()


class Task(waitress.task.WSGITask):
    """Answers one request; the application can tell the connection that its caller is trusted."""

    def get_environment(self) -> JSON:
        """Return the WSGI environment."""
        environ = super().get_environment()
        environ['minici.trust'] = self.channel.trust
        return environ


class RefusalTask(waitress.task.ErrorTask):
    """Sends a refusal; the channel then drains the connection and closes it."""

    def finish(self) -> None:
        """Send the rest of the refusal."""
        super().finish()
        self.close_on_finish = not self.channel.draining


class Channel(waitress.channel.HTTPChannel):
    """One client's connection.

    After a refusal the rest of what the client sends is read and thrown away for a while: if the
    connection were closed at once, it would be reset before the client reads the answer, and a runner
    would send the whole archive again, twice.
    """

    task_class = Task
    error_task_class = RefusalTask
    server: Listener

    def __init__(self, server: Listener, *arguments: Any, **options: Any) -> None:
        super().__init__(server, *arguments, **options)
        self.parser_class = functools.partial(RequestParser, channel=self)
        self.trusted = False        # whether the client has brought a good token on this connection
        self.draining = False       # whether what arrives is thrown away
        self._drained = 0
        self._half_closed = False
        self._since = time.monotonic()      # when it was accepted, or began to drain
        server.strangers.add(self)

    def admit(self, request: RequestParser, start: bytes | None) -> Admission:
        """Ask the application how much of a request's body may be read."""
        environ = Task(self, request).get_environment()
        return self.server.admit(environ, start)

    def trust(self) -> None:
        """Note that this client has brought a good token."""
        if not self.trusted:
            self.trusted = True
            self.server.strangers.remove(self)

    def drain(self) -> None:
        """Throw away whatever else arrives."""
        if not self.draining:
            self._since = time.monotonic()
        self.draining = True

    def readable(self) -> bool:
        """Tell the loop whether to read from this connection."""
        if self.draining:
            return not self.will_close
        return super().readable()

    def handle_read(self) -> None:
        """Read what has arrived."""
        if not self.draining:
            super().handle_read()
            return
        data = self.recv(self.adj.recv_bytes)
        self._drained += len(data)
        self.will_close = self._drained > MAX_DRAINED

    def writable(self) -> bool:
        """Tell the loop whether there is something to send or to close."""
        return super().writable() or (self.draining and not self.requests and not self._half_closed)

    def handle_write(self) -> None:
        """Send what waits; after a refusal only the client's side stays open."""
        super().handle_write()
        answered = not self.requests and not self.total_outbufs_len
        if self.draining and answered and self.connected and not self._half_closed:
            self._half_closed = True
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def is_overdue(self) -> bool:
        """Tell whether the client keeps this connection without using it."""
        age = time.monotonic() - self._since
        idle = time.time() - self.last_activity
        if self.draining:
            return age > DRAIN_TIMEOUT
        if self.requests or self.total_outbufs_len:
            return bool(self.total_outbufs_len) and idle > STALL_TIMEOUT
        if self.request is not None:
            return self.request.is_overdue()
        if self.last_activity == self.creation_time:    # it has sent nothing yet
            return age > HEADER_TIMEOUT
        return idle > IDLE_TIMEOUT

    def is_needless(self) -> bool:
        """Tell whether the client has asked for nothing that is being answered, and sends nothing that is wanted."""
        arriving = self.request is not None and self.request.is_wanted()
        return not self.requests and not arriving

    def handle_close(self) -> None:
        """Close the connection, and the spool file of a request that was not sent to its end."""
        self.server.strangers.remove(self)
        if self.request is not None:
            self.request.close()
        super().handle_close()


class Strangers:
    """The connections that have not brought a good token yet, the oldest first; and what they send.

    One address may hold MAX_STRANGERS of them, all together `most`, so that there is always room for who
    has a token.
    """

    def __init__(self, proxies: str, most: int) -> None:
        self._proxies = proxies
        self._most = most
        self._lock = threading.Lock()
        self._all: dict[Channel, None] = {}
        self._by_address: dict[str, dict[Channel, None]] = {}
        self._memory = 0

    def hold(self, size: int) -> int:
        """Count `size` further bytes of untrusted bodies in memory, and return how many there are."""
        with self._lock:
            self._memory += size
            return self._memory

    def add(self, channel: Channel) -> None:
        """Add a new connection; if there are too many now, the oldest needless one is closed, or else this one.

        A trusted proxy may hold any number: they are of many clients.
        """
        if is_in_networks(channel.addr[0], self._proxies):
            return
        with self._lock:
            held = self._by_address.setdefault(self._neighbourhood(channel), {})
            held[channel] = self._all[channel] = None
            if len(held) > MAX_STRANGERS:
                crowd = held
            elif len(self._all) > self._most:
                crowd = self._all
            else:
                return
            needless = (other for other in crowd if other.is_needless())
            victim = next(needless, channel)
            self._forget(victim)
        victim.will_close = True

    def remove(self, channel: Channel) -> None:
        """Forget a connection: it is closed, or its client is trusted now."""
        with self._lock:
            self._forget(channel)

    def _forget(self, channel: Channel) -> None:
        address = self._neighbourhood(channel)
        held = self._by_address.get(address, {})
        held.pop(channel, None)
        self._all.pop(channel, None)
        if not held:
            self._by_address.pop(address, None)

    @staticmethod
    def _neighbourhood(channel: Channel) -> str:
        """Return a client's address; of an IPv6 address the /64, all of which one client can have."""
        address = channel.addr[0]
        if ':' in address:
            return ':'.join(address.split(':')[:4])
        return address


class Dispatcher(waitress.task.ThreadedTaskDispatcher):
    """Threads that take turns: a task begins when the last one has ended, or does not get on.

    Python runs one thread at a time, and threads that work at once pass its lock on at every statement
    of SQL, which takes longer than the statement. While no task ends for `STALL` seconds, because the
    disk or a lock keeps it, another thread begins the next one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._turn: int | None = None   # the thread whose turn it is
        self._watched = False           # whether an idle thread watches if the tasks get on
        self._ended = 0                 # how many tasks have ended

    def add_task(self, task: Channel) -> None:
        """Queue a task."""
        with self.lock:
            self.queue.append(task)
            if self._turn is None or not self._watched:
                self.queue_cv.notify()

    def handler_thread(self, thread_no: int) -> None:
        """Do tasks until the dispatcher is shut down."""
        while (task := self._next(thread_no)) is not None:
            try:
                task.service()
            except BaseException:
                self.logger.exception('a request failed outside the application')

    def _next(self, thread_no: int) -> Channel | None:
        """End a thread's turn, and return its next task when it has one again, None when it is to end."""
        with self.lock:
            self._ended += 1
            if self._turn == thread_no:
                self._turn = None
            while not self.stop_count:
                is_free = bool(self.queue) and self._turn is None
                if is_free or self._sees_stall():
                    return self._begin(thread_no)
            self.stop_count -= 1
            self.threads.discard(thread_no)
            self.thread_exit_cv.notify()
        return None

    def _sees_stall(self) -> bool:
        """Wait until something changes; return True if tasks wait and none ended meanwhile. One thread watches that."""
        if not self.queue or self._watched:
            self.queue_cv.wait()
            return False
        self._watched = True
        ended = self._ended
        changed = self.queue_cv.wait(STALL)
        self._watched = False
        return not changed and bool(self.queue) and self._ended == ended

    def _begin(self, thread_no: int) -> Channel:
        """Give a thread the turn and return the next task."""
        self._turn = thread_no
        task: Channel = self.queue.popleft()
        if self.queue and not self._watched:
            self.queue_cv.notify()
        return task


def admit_everything(environ: Environ, start: bytes | None) -> Admission:
    """Admit all requests of an application that does not say which it wants."""
    return Admission(sys.maxsize, trusted=True)


class Listener(waitress.server.TcpWSGIServer):
    """waitress's server, with threads that only runners and monitors use, and others that compile pipeline files."""

    channel_class = Channel

    def __init__(self, application: Callable[..., Any], listener: socket.socket, options: Any,
                 proxies: str = '') -> None:
        self.strangers = Strangers(proxies, options.connection_limit // 2)
        self.admit = getattr(application, 'admit', admit_everything)
        self.urgent = Dispatcher()
        self.urgent.set_thread_count(options.threads)
        self.compiling = Dispatcher()
        others = Dispatcher()
        for dispatcher in (self.compiling, others):
            dispatcher.set_thread_count(max(1, options.threads // 2))
        address = (listener.family, listener.type, listener.proto, listener.getsockname())
        super().__init__(application, {}, _sock=listener, dispatcher=others, adj=options, sockinfo=address,
                         bind_socket=False)

    def handle_accept(self) -> None:
        """Accept the connections that wait, many at a time: a client must not queue behind all of a crowd."""
        for _ in range(ACCEPTED_AT_ONCE):
            before = len(self._map)
            super().handle_accept()
            if len(self._map) == before:
                break

    def add_task(self, task: Channel) -> None:
        """Queue a connection whose next request is complete."""
        path = task.requests[0].path
        dispatcher = self.task_dispatcher
        if URGENT_PATH.search(path):
            dispatcher = self.urgent
        elif COMPILING_PATH.search(path):
            dispatcher = self.compiling
        dispatcher.add_task(task)

    def shutdown(self) -> None:
        """Stop the threads."""
        for dispatcher in (self.task_dispatcher, self.urgent, self.compiling):
            dispatcher.shutdown()

    def maintenance(self, now: float) -> None:
        """Close the connections that take too long."""
        for channel in list(self.active_channels.values()):
            if channel.is_overdue():
                channel.will_close = True


class Server:
    """Serves a coordinator with waitress, in a thread of its own.

    The socket accepts connections when the constructor returns; `url` is its address. With `port` 0
    the system chooses the port. Use it as a context manager, or call `stop`. `threads` is the number
    of worker threads. Raises OSError when the address is taken.
    """

    def __init__(self, coordinator: Coordinator, host: str = '127.0.0.1', port: int = 0, *,
                 application: Callable[..., Any] | None = None, threads: int = 8) -> None:
        listener = open_listener(host, port)
        self.host = host
        self.port = listener.getsockname()[1]
        self.url = coordinator.address = coordinator.settings.external_url or http_url(host, self.port)
        if application is None:
            application = create_app(coordinator)
        options = server_options(threads, coordinator.artifacts.incoming)
        self._server = Listener(application, listener, options, coordinator.settings.trusted_proxies)
        self._thread = threading.Thread(target=self._server.run, name='minici', daemon=True)
        self._thread.start()
        self._upkeep = Upkeep(coordinator)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self, grace: float = 5) -> None:
        """Stop accepting, wait up to `grace` seconds for requests in flight, then close everything."""
        if not self._thread.is_alive():
            return
        self._in_loop(self._close_listener)
        self._upkeep.stop(grace)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and self._is_busy():
            time.sleep(0.01)
        self._in_loop(self._close_all)
        self._thread.join(grace)
        self._server.shutdown()

    def _in_loop(self, action: Callable[[], None]) -> None:
        """Run `action` in the loop's own thread, because sockets must not be closed while it polls them."""
        with contextlib.suppress(OSError):
            self._server.trigger.pull_trigger(action)

    def _is_busy(self) -> bool:
        """Tell whether a request is arriving, being answered, or its answer still being sent."""
        items = list(self._server._map.values())
        channels = [item for item in items if isinstance(item, Channel)]
        return any(channel.requests or channel.total_outbufs_len or channel.request for channel in channels)

    def _close_listener(self) -> None:
        self._server.del_channel()
        self._server.socket.close()

    def _close_all(self) -> None:
        for item in list(self._server._map.values()):
            item.close()


def server_options(threads: int, spool: Path) -> Any:
    """Return waitress's options; large bodies are kept in the directory `spool`."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # for send_bytes, which makes it 8 times faster
        options: Any = waitress.adjustments.Adjustments(
            threads=threads, send_bytes=MIB, recv_bytes=256 * KIB, asyncore_use_poll=True, ident=None,
            connection_limit=connection_limit(), max_request_header_size=MAX_HEADERS, cleanup_interval=1,
            max_request_body_size=sys.maxsize, clear_untrusted_proxy_headers=False)
    options.directory = spool
    return options


def open_listener(host: str, port: int) -> socket.socket:
    """Return a listening socket; an IPv6 address accepts IPv4 too where the system can do that."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, *_, address = found[0]
    dualstack = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    return socket.create_server(address, family=family, dualstack_ipv6=dualstack)


def http_url(host: str, port: int) -> str:
    """Return the address of a plain HTTP server; an IPv6 host gets its brackets."""
    name = f'[{host}]' if ':' in host else host
    return f'http://{name}:{port}'


def connection_limit() -> int:
    """Return how many connections to accept: 2,000, or fewer when the process may open fewer files."""
    try:
        import resource
    except ImportError:
        return 400
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors < 0:  # unlimited
        return 2000
    return max(20, min(2000, descriptors - 64))


# Local runner #################################################################################
#
# Runs one claimed job with a plain shell of this machine, from the payload that GitLab Runner would
# get and in the steps that its shell executor takes, through the coordinator's own verbs.

PUMP_INTERVAL = 0.1                 # seconds between two looks at a job's output
STORE_INTERVAL = 0.5                # seconds between two writes of it to the trace
AFTER_SCRIPT_TIMEOUT = 300          # seconds that after_script may take, as GitLab Runner has it
KILL_AFTER = 3                      # seconds between asking a job's processes to end and killing them
ENDS_WITH_JOB = ('CI_', 'GITLAB_', 'GIT_', 'MINICI_')   # prefixes of variables that jobs do not inherit


@dataclass(frozen=True, eq=False)
class Workshop:
    """Where the jobs of a run find their sources, work, and keep caches; `stopping` ends them all."""

    checkout: Path                  # the directory whose pipeline runs
    work: Path                      # a working copy for each job is made here
    caches: Path                    # archives that outlive the run
    store: Path                     # the bare repository that holds the snapshot
    keep: bool = False              # whether the working copies stay
    stopping: threading.Event = field(default_factory=threading.Event)


def plain_problems(error: CIError) -> list[str]:
    """Return what went wrong in words for a terminal, which knows nothing of HTTP's statuses."""
    if not isinstance(error.detail, str):
        return error.problems
    if isinstance(error, NotFound):
        return [f'there is no such {error.detail.lower() or "thing"}']
    return [error.detail or error.phrase]


class JobEnded(Exception):
    """A step of a job failed; `reason` is one of FAILURE_REASONS, `exit_code` the script's."""

    def __init__(self, message: str, reason: str = 'runner_system_failure', exit_code: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code


def section_mark(kind: str, name: str) -> bytes:
    """Return the mark that starts or ends a section of a trace now."""
    return f'section_{kind}:{int(time.time())}:{name}\r\033[0K'.encode()


class JobOutput:
    """The trace of a running job on its way to the coordinator and to whoever listens; secrets are masked.

    `listen` is called with each piece. Raises JobNotRunning when the job was canceled.
    """

    def __init__(self, ci: Coordinator, job: Row, secret_values: Iterable[str],
                 listen: Callable[[bytes], None]) -> None:
        self._ci = ci
        self._job = job
        self._listen = listen
        self._secrets = sorted({value.encode() for value in secret_values if value}, key=len, reverse=True)
        self._held = b''            # the beginning of what may turn out to be a secret
        self._unsaved = bytearray()
        self._size = 0
        self._saved_at = 0.0

    def write(self, data: bytes) -> None:
        """Add to the trace; what may be the beginning of a secret is held back until more comes."""
        data = self._held + data
        self._held = b''
        for secret in self._secrets:
            data = data.replace(secret, b'[MASKED]')
        keep = max((self._overlap(data, secret) for secret in self._secrets), default=0)
        self._held = data[len(data) - keep:]
        self._pass_on(data[:len(data) - keep])

    @staticmethod
    def _overlap(data: bytes, secret: bytes) -> int:
        """Return how many bytes at the end of `data` are the beginning of a secret."""
        longest = min(len(data), len(secret) - 1)
        return next((size for size in range(longest, 0, -1) if data.endswith(secret[:size])), 0)

    def _pass_on(self, data: bytes) -> None:
        if data:
            self._unsaved += data
            self._listen(data)
        if time.monotonic() - self._saved_at >= STORE_INTERVAL:
            self.save()

    def line(self, text: str, colour: str = '0') -> None:
        """Write a line of the runner's own."""
        self.write(f'\033[{colour}m{text}\033[0;m\n'.encode(errors='replace'))

    def note(self, text: str, colour: str) -> None:
        """Write a line that only the trace holds: whoever listens knows it already."""
        self.flush()
        self._unsaved += f'\033[{colour}m{text}\033[0;m\n'.encode(errors='replace')

    def flush(self) -> None:
        """Pass on what was held back: nothing more comes."""
        held = self._held
        self._held = b''
        self._pass_on(held)

    def save(self) -> None:
        """Append what has come since the last time to the stored trace; nothing is a sign of life."""
        data = bytes(self._unsaved)
        self._unsaved = bytearray()
        self._saved_at = time.monotonic()
        self._size = self._ci.append_trace(self._job, self._size, data)

    @contextlib.contextmanager
    def section(self, name: str, title: str) -> Iterator[None]:
        """Fold what is written inside under a title, as GitLab does."""
        self.write(section_mark('start', name) + f'\033[36;1m{title}\033[0;m\n'.encode())
        try:
            yield
        finally:
            self.write(section_mark('end', name))


class ShellJob:
    """One claimed job, run with a plain shell as its user; `payload` is what GitLab Runner would get for it."""

    def __init__(self, ci: Coordinator, claim: Claim, payload: Members, place: Workshop,
                 listen: Callable[[bytes], None]) -> None:
        self._ci = ci
        self._job = claim.job
        self._payload = payload
        self._place = place
        folder = place.work / f'{claim.job["id"]}-{slug(claim.job["name"])}'
        self._directory = folder / slug(claim.job['project_path'].rpartition('/')[2])
        self._files = folder / 'minici.tmp'
        self._deadline = time.monotonic() + payload['runner_info']['timeout']
        masked = [item['value'] for item in payload['variables'] if item.get('masked')]
        self._output = JobOutput(ci, self._job, masked, listen)
        self._environment: dict[str, str] = {}

    def run(self) -> str:
        """Take the job through all its steps and report the result; return the status that it ended with."""
        try:
            return self._report(self._run_steps())
        except JobNotRunning as gone:   # canceled
            return gone.job_status
        finally:
            shutil.rmtree(self._files, ignore_errors=True)
            if not self._place.keep:
                shutil.rmtree(self._directory.parent, ignore_errors=True)

    def _run_steps(self) -> JobEnded | None:
        """Take all the steps; return what failed, None for success."""
        failure: JobEnded | None = None
        try:
            self._prepare()
            self._run_script('step_script', 'Executing "step_script" stage of the job script', self._steps('script'))
        except JobEnded as error:
            failure = error
        except JobNotRunning:
            raise
        except CIError as error:
            failure = JobEnded('; '.join(plain_problems(error)))
        except (OSError, zipfile.BadZipFile) as error:
            failure = JobEnded(str(error))
        if self._directory.exists():
            failure = self._clean_up(failure)
        return failure

    def _report(self, failure: JobEnded | None) -> str:
        """Write the last line of the trace and tell the coordinator how the job ended."""
        if failure is None:
            self._output.note('Job succeeded', '32;1')
        else:
            self._output.note(f'ERROR: Job failed: {failure}', '31;1')
        self._output.save()
        if failure is None:
            return self._ci.update_job(self._job, 'success', exit_code=0)
        return self._ci.update_job(self._job, 'failed', failure_reason=failure.reason, exit_code=failure.exit_code)

    # -- before the script

    def _prepare(self) -> None:
        """Set up the variables, the sources, the caches and the artifacts of earlier jobs."""
        self._output.note(f'Running with minici {__version__} on this machine, in a plain shell', '1')
        self._files.mkdir(mode=0o700, parents=True)
        self._environment = self._job_environment()
        with self._output.section('get_sources', 'Getting source from Git repository'):
            self._get_sources()
        if hooks := [line for hook in self._payload['hooks'] for line in hook['script']]:
            self._run_script('pre_get_sources', 'Executing the hook pre_get_sources_script', hooks)
        if self._payload['cache']:
            with self._output.section('restore_cache', 'Restoring cache'):
                self._restore_caches()
        dependencies = [item for item in self._payload['dependencies'] if 'artifacts_file' in item]
        if dependencies:
            with self._output.section('download_artifacts', 'Downloading artifacts'):
                for item in dependencies:
                    self._download(item)

    def _job_environment(self) -> dict[str, str]:
        """Return the variables of the job on top of ours; those of the kind `file` are written to files."""
        known = {
            'CI_PROJECT_DIR': str(self._directory),
            'CI_BUILDS_DIR': str(self._place.work),
            'CI_CONCURRENT_ID': '0',
            'CI_SHARED_ENVIRONMENT': 'true',
            'CI_JOB_STATUS': 'running',
            'CI_REPOSITORY_URL': str(self._place.store),
        }
        raw: set[str] = set()
        for item in self._payload['variables']:
            value = item['value']
            if item.get('file'):
                path = self._files / item['key']
                path.write_text(value)
                path.chmod(0o600)
                value = str(path)
            if item['key'] != 'CI_REPOSITORY_URL':  # nobody serves it
                known[item['key']] = value
            raw.discard(item['key'])
            if item.get('raw') or item.get('file'):
                raw.add(item['key'])
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENDS_WITH_JOB)}
        given = {name: fill_in(value, known) for name, value in known.items() if name not in raw}
        return inherited | known | given

    def _get_sources(self) -> None:
        """Make a working copy of the snapshot, unless GIT_STRATEGY says otherwise."""
        strategy = self._environment.get('GIT_STRATEGY', 'clone')
        if strategy in ('none', 'empty'):
            self._output.line(f'No sources: GIT_STRATEGY is {strategy}')
            self._directory.mkdir(mode=0o700)
            return
        self._git('clone', '--quiet', '--shared', '--no-checkout', '--template=', '--end-of-options',
                  str(self._place.store), str(self._directory))
        if self._environment.get('GIT_CHECKOUT', 'true') != 'false':
            self._git('-C', str(self._directory), 'checkout', '--quiet', '--detach', self._job['sha'])
        commit = self._job['sha'][:8]
        self._output.line(f'Checked out {commit} as detached HEAD (ref is {self._job["ref"]})')
        submodules = self._environment.get('GIT_SUBMODULE_STRATEGY', 'none')
        if submodules not in ('none', 'normal', 'recursive'):
            raise JobEnded(f'unknown GIT_SUBMODULE_STRATEGY: {submodules}')
        if submodules != 'none':
            self._get_submodules(self._directory, self._place.checkout, recursive=submodules == 'recursive')

    def _get_submodules(self, directory: Path, source: Path, *, recursive: bool) -> None:
        """Check out the submodules of a working copy.

        Those that are checked out in `source`, the directory it is a copy of, come from there; the
        others from the addresses that `.gitmodules` gives.
        """
        inside = ('-C', str(directory))
        for name, path in self._submodules(directory):
            own = source / path
            borrowed = self._files / 'modules' / hashlib.sha256(os.fsencode(own)).hexdigest()
            borrowed.parent.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(Unreadable):
                borrow_repository(own, borrowed)
                self._git(*inside, 'config', f'submodule.{name}.url', borrowed.as_uri())
            self._git(*inside, 'submodule', '--quiet', 'update', '--init', '--', path)
            self._output.line(f'Checked out the submodule {path}')
            if recursive:
                self._get_submodules(directory / path, own, recursive=True)

    def _submodules(self, directory: Path) -> list[tuple[str, str]]:
        """Return the names and paths of the submodules of a working copy."""
        if not (directory / '.gitmodules').is_file():
            return []
        inside = ('-C', str(directory))
        staged = self._git(*inside, 'ls-files', '--stage', '-z').decode(errors='surrogateescape')
        paths = re.findall(r'(?:^|\0)160000 [^\t]*\t([^\0]+)', staged)
        named = self._git(*inside, 'config', '-z', '--file', '.gitmodules', '--get-regexp', r'^submodule\..*\.path$')
        known = re.findall(r'submodule\.(.*)\.path\n([^\0]*)\0', named.decode(errors='surrogateescape'))
        return [(name, path) for name, path in known if path in paths]

    def _git(self, *arguments: str) -> bytes:
        """Run git for the job's working copy, with the configuration of its store; return what it printed."""
        config = str(self._place.store / 'minici.gitconfig')
        done = run_git(arguments, self._place.work, timeout=GIT_LOCAL_TIMEOUT,
                       environment={'GIT_CONFIG_GLOBAL': config})
        if done.returncode:
            raise JobEnded(git_reason(done))
        return done.stdout

    def _download(self, item: Members) -> None:
        """Unpack the artifacts of an earlier job."""
        _, archive = self._ci.open_artifacts(item['id'])
        with archive:
            files = unpack(archive, self._directory)
        source = f'{item["name"]} ({item["id"]})'
        self._output.line(f'Downloading artifacts for {source}: {count_text(files, "file")}')

    # -- scripts

    def _steps(self, name: str) -> list[str]:
        """Return the commands of a step of the job."""
        return [line for step in self._payload['steps'] if step['name'] == name for line in step['script']]

    def _run_script(self, name: str, title: str, commands: Sequence[str]) -> None:
        """Run commands in one shell; raise JobEnded when one of them fails or time runs out."""
        with self._output.section(name, title):
            status = self._execute(name, commands)
        if status:
            raise JobEnded(f'exit code {status}', 'script_failure', status)

    def _execute(self, name: str, commands: Sequence[str]) -> int:
        """Run commands in one shell, passing on what they print; return the exit code."""
        shell = shutil.which('bash') or '/bin/sh'
        script = self._files / name
        script.write_text(shell_script(commands, shell, self._environment.get('CI_DEBUG_TRACE') == 'true'))
        # A pipe, not a file: a script that opens /dev/stderr anew would truncate a file.
        with subprocess.Popen([shell, str(script)], cwd=self._directory, env=self._environment, bufsize=0,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              start_new_session=True) as process:
            try:
                return self._pump(process)
            finally:
                stop_group(process)

    def _pump(self, process: subprocess.Popen[bytes]) -> int:
        """Pass on what a process prints until it ends; raise JobEnded when it takes too long or is interrupted."""
        assert process.stdout
        pipe = process.stdout.fileno()
        open_ended = True
        while open_ended or process.poll() is None:
            readable = self._wait_for(pipe if open_ended else None)
            data = b''
            if readable:
                data = os.read(pipe, COPY_CHUNK)
                open_ended = bool(data)
            self._output.write(data)
            if self._place.stopping.is_set():
                raise JobEnded('interrupted', 'runner_interrupted')
            if time.monotonic() > self._deadline:
                limit = self._payload['runner_info']['timeout']
                raise JobEnded(f'it took longer than {duration_text(limit)}', 'job_execution_timeout')
            if not readable and process.poll() is not None:
                break       # a process that was left behind holds the pipe
        self._output.flush()
        return exit_status(process.wait())

    @staticmethod
    def _wait_for(pipe: int | None) -> bool:
        """Wait a moment, or until something can be read from a pipe; tell whether it can."""
        pipes = [pipe] if pipe is not None else []
        return bool(select.select(pipes, [], [], PUMP_INTERVAL)[0])

    # -- after the script

    def _clean_up(self, failure: JobEnded | None) -> JobEnded | None:
        """Take the steps that follow the script, whatever became of it; return what failed first."""
        passed = failure is None
        self._deadline = time.monotonic() + AFTER_SCRIPT_TIMEOUT
        if commands := self._steps('after_script'):
            self._environment['CI_JOB_STATUS'] = 'success' if passed else 'failed'
            with contextlib.suppress(JobEnded):     # it changes nothing about the result
                self._run_script('after_script', 'Running after_script', commands)
        try:
            self._save_caches(passed)
            self._upload_artifacts(passed)
        except (JobEnded, CIError, OSError) as error:
            if isinstance(error, JobNotRunning):
                raise
            return failure or JobEnded(f'its artifacts or caches cannot be kept: {error}')
        return failure

    def _upload_artifacts(self, passed: bool) -> None:
        """Keep the job's artifacts and reports with the coordinator."""
        wanted = [item for item in self._payload['artifacts'] or () if wanted_after(item.get('when'), passed)]
        if not wanted:
            return
        result = 'success' if passed else 'failure'
        with self._output.section(f'upload_artifacts_on_{result}', 'Uploading artifacts'):
            for item in wanted:
                self._upload(item)

    def _upload(self, item: Members) -> None:
        """Keep one archive or report; none of its files being there is told and no failure."""
        files = self._find_files(item)
        kind = item['artifact_type']
        if not files:
            self._output.line('ERROR: No files to upload', '31;1')
            return
        name = fill_in(item.get('name') or kind, self._environment)
        part = self._ci.artifacts.receive()
        try:
            part.filename = pack(part, self._directory, files, item['artifact_format'], name)
            self._ci.store_artifacts(self._job, part, file_type=kind, file_format=item['artifact_format'],
                                     expire_in=item.get('expire_in'))
        finally:
            part.discard()
        number_of = count_text(len(files), 'file')
        self._output.line(f'Uploading {number_of} as "{kind}": {first_of(files)}')

    def _find_files(self, item: Members) -> list[str]:
        """Return the paths of the files that an artifact or cache names; say which of its patterns match nothing."""
        everything = list_files(self._directory)
        found: set[str] = set()
        for glob in item.get('paths') or ():
            matched = files_below(everything, self._relative(glob))
            if not matched:
                self._output.line(f'WARNING: {glob}: no matching files. Ensure that the artifact path is relative to '
                                  'the working directory', '33')
            found |= matched
        if item.get('untracked'):
            untracked = self._git('-C', str(self._directory), 'ls-files', '-z', '--others')
            found |= {os.fsdecode(path) for path in untracked.split(b'\0') if path}
        for glob in item.get('exclude') or ():
            found -= files_below(everything, self._relative(glob))
        return sorted(found)

    def _relative(self, glob: str) -> str:
        """Return a pattern with its variables expanded, relative to the working copy."""
        expanded = fill_in(glob, self._environment)
        return os.path.normpath(os.path.relpath(self._directory / expanded, self._directory))

    # -- caches

    def _cache_path(self, key: str) -> Path:
        """Return where the archive of a cache is kept; keys may hold anything, so that their hash names the file."""
        digest = hashlib.sha256(fill_in(key, self._environment).encode()).hexdigest()
        return self._place.caches / str(self._job['project_id']) / f'{digest[:32]}.zip'

    def _restore_caches(self) -> None:
        """Unpack the caches of the job, from the first of their keys that has one."""
        for item in self._payload['cache']:
            if item.get('policy') == 'push':
                continue
            keys = [item['key'], *(item.get('fallback_keys') or ())]
            key = next((key for key in keys if self._cache_path(key).exists()), None)
            if key is None:
                self._output.line(f'No cache for {fill_in(item["key"], self._environment)}')
                continue
            with open(self._cache_path(key), 'rb') as archive:
                files = unpack(archive, self._directory)
            self._output.line(f'Restored {count_text(files, "file")} from cache {fill_in(key, self._environment)}')

    def _save_caches(self, passed: bool) -> None:
        """Pack the caches of the job for the next one, where their policy and the result allow it."""
        for item in self._payload['cache']:
            if item.get('policy') == 'pull' or not wanted_after(item.get('when'), passed):
                continue
            with self._output.section('archive_cache', 'Saving cache'):
                files = self._find_files(item)
                path = self._cache_path(item['key'])
                if not files:
                    continue
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                part = path.with_suffix(f'.{self._job["id"]}.part')
                with open(part, 'wb') as file:
                    pack(file, self._directory, files, 'zip', 'cache')
                os.replace(part, path)
                key = fill_in(item['key'], self._environment)
                self._output.line(f'Saved {count_text(len(files), "file")} to cache {key}')


def fill_in(text: str, variables: Mapping[str, str]) -> str:
    """Return a text with ``$NAME`` and ``${NAME}`` replaced as GitLab Runner does: what is unknown becomes nothing."""
    def value_of(match: re.Match[str]) -> str:
        if match[0] == '$$':
            return '$'
        return variables.get(match[1] or match[2], '')

    return re.sub(r'\$\$|\$([A-Za-z_]\w*)|\$\{(\w+)\}', value_of, text)


def wanted_after(when: str | None, passed: bool) -> bool:
    """Tell whether what is kept `on_success`, `on_failure` or `always` is kept after this result."""
    if passed:
        return when in (None, 'always', 'on_success')
    return when in ('always', 'on_failure')


def shell_script(commands: Sequence[str], shell: str, traced: bool) -> str:
    """Return a script that shows each command before it runs it, and ends with the first that fails."""
    lines = ['set -e', 'set +o noclobber']
    if shell.endswith('bash'):
        lines.append('set -o pipefail')
    if traced:
        lines.append('set -x')
    for command in commands:
        first, _, more = command.strip('\n').partition('\n')
        shown = f'$ {first}'
        if more:
            shown += ' # collapsed multi-line command'
        lines += [f"printf '\\033[32;1m%s\\033[0;m\\n' {shlex.quote(shown)}", command]
    return '\n'.join([*lines, ''])


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started: ask first, then kill."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_AFTER)
        os.killpg(process.pid, signal.SIGKILL)


def exit_status(code: int) -> int:
    """Return an exit code as shells have it: 128 and its number for a signal."""
    if code < 0:
        return 128 - code
    return code


def list_files(directory: Path) -> list[str]:
    """Return the paths of all files and links below a directory, git's own excepted."""
    found = []
    for folder, folders, names in os.walk(directory):
        if '.git' in folders and folder == str(directory):
            folders.remove('.git')
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [os.path.relpath(os.path.join(folder, name), directory) for name in (*names, *links)]
    return found


def files_below(paths: Iterable[str], glob: str) -> set[str]:
    """Return the paths that a pattern names, by themselves or by one of their folders."""
    if glob == '.':
        return set(paths)
    pattern = glob_pattern(glob)
    known: dict[str, bool] = {'': False}

    def named(path: str) -> bool:
        if path not in known:
            known[path] = bool(pattern.match(path)) or named(path.rpartition('/')[0])
        return known[path]

    return {path for path in paths if named(path)}


def pack(target: IO[bytes] | PartFile, directory: Path, files: Sequence[str], file_format: str, name: str) -> str:
    """Write files of a directory to `target` as `zip`, `gzip` or `raw`; return the name of the result."""
    if file_format == 'zip':
        pack_zip(target, directory, files)
        return f'{name}.zip'
    if file_format == 'raw':
        target.write((directory / files[0]).read_bytes())
        return os.path.basename(files[0])
    for path in files:
        target.write(gzip.compress((directory / path).read_bytes()))
    return f'{name}.gz'


def pack_zip(target: IO[bytes] | PartFile, directory: Path, files: Sequence[str]) -> None:
    """Write files and links to a zip archive, as streamed as `target` wants it."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as bundle:
            for path in files:
                full = directory / path
                if full.is_symlink():
                    entry = zipfile.ZipInfo(path)
                    entry.create_system = 3
                    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
                    bundle.writestr(entry, os.readlink(full))
                elif full.is_file():
                    bundle.write(full, path)
        file.seek(0)
        while chunk := file.read(COPY_CHUNK):
            target.write(chunk)


def unpack(archive: IO[bytes], directory: Path) -> int:
    """Unpack a zip archive below a directory and return how many files it had; nothing gets outside of it."""
    count = 0
    top = directory.resolve()
    with zipfile.ZipFile(archive) as bundle:
        for entry in bundle.infolist():
            target = Path(os.path.normpath(top / entry.filename))
            if not target.is_relative_to(top) or not target.parent.resolve().is_relative_to(top):
                raise JobEnded(f'the archive has an entry that leads outside: {entry.filename}')
            if entry.is_dir():
                target.mkdir(mode=0o700, parents=True, exist_ok=True)
                continue
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if target.is_symlink() or target.is_file():
                target.unlink()
            unpack_entry(bundle, entry, target)
            count += 1
    return count


def unpack_entry(bundle: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    """Write one file or link of an archive, with its permissions."""
    mode = entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        target.symlink_to(bundle.read(entry).decode())
        return
    with bundle.open(entry) as source, open(target, 'wb') as file:
        shutil.copyfileobj(source, file, COPY_CHUNK)
    target.chmod(mode & 0o777 or 0o644)


def count_text(count: int, noun: str) -> str:
    """Return a number with its noun: ``1 file``, ``2 files``."""
    return f'{count} {plural(count, noun)}'


def plural(count: int, noun: str) -> str:
    """Return a noun for a number of things, without the number."""
    if count == 1:
        return noun
    return f'{noun}s'


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names, and how many there are besides."""
    more = len(names) - most
    shown = ', '.join(names[:most])
    if more > 0:
        shown += f' and {more} more'
    return shown


def duration_text(seconds: float) -> str:
    """Return a time as people say it: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``1 h 2 min``."""
    if seconds < 9.95:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f'{rest} s'
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes_left} min'
    if rest:
        return f'{minutes} min {rest} s'
    return f'{minutes} min'


# Local runs ###################################################################################
#
# `minici run`: the pipeline of a checkout, here and now. The coordinator hands out its jobs as to any
# runner; what they print is shown as it comes, and summed up at the end.

DEFAULT_DATABASE = 'minici.sqlite'
RUNNER_PROGRAM = 'gitlab-runner'
RUNNER_PAGE = 'https://docs.gitlab.com/runner/install/'
MAX_JOBS_SHOWN = 10_000             # jobs of a pipeline
RUNS_KEPT = 50                      # pipelines that the history of local runs holds
TESTS_SHOWN = 10                    # failed tests of a job that the summary names
TAIL_LINES = 20                     # lines of a failed job's trace that the summary repeats
NAME_WIDTH = 24                     # columns that a job's name in front of its lines may take
RUN_SOURCES = {
    'push': 'push',
    'tag': 'push',
    'merge_request': 'merge_request_event',
    'schedule': 'schedule',
}
#: How the status of a job is shown: a mark, a word, colours of the terminal (SGR).
OUTCOMES = {
    'success': ('✔', 'passed', '32'),
    'failed': ('✘', 'failed', '31'),
    'warning': ('!', 'failed, allowed', '33'),
    'canceled': ('■', 'canceled', '35'),
    'skipped': ('»', 'skipped', '2'),
    'manual': ('▷', 'manual', '36'),
    'created': ('·', 'not started', '2'),
    'pending': ('·', 'not started', '2'),
}
JOB_COLOURS = ('36', '35', '34', '33', '32', '96', '95', '94')
#: The runner's own sections, which are shown without their titles; those that scripts make are folded when they pass.
STEPS = ('step_script', 'pre_get_sources', 'after_script')
CHORES = ('get_sources', 'restore_cache', 'download_artifacts', 'archive_cache', 'upload_artifacts_on_success',
          'upload_artifacts_on_failure')
MARK_OF_SECTION = re.compile(rb'section_(start|end):([0-9]+):([A-Za-z0-9_.-]+)(?:\[[^\]\n]*\])?\r(?:\x1b\[0K)?')


class Screen:
    """A stream that lines are printed to, above a line of progress if it is a terminal.

    `colours` keeps the escape sequences for colours; all others are always taken out of what jobs print.
    """

    def __init__(self, out: IO[str], *, colours: bool | None = None) -> None:
        self._out = out
        self._lock = threading.RLock()
        self._progress = ''
        self.is_terminal = out.isatty()
        self.colours = bool(colours)
        if colours is None:
            self.colours = self.is_terminal and 'NO_COLOR' not in os.environ
        self.broken = False         # nobody reads any more, as after `| head`

    def paint(self, text: str, codes: str) -> str:
        """Return a text in a colour."""
        if not self.colours or not codes:
            return text
        return f'\033[{codes}m{text}\033[0m'

    def line(self, text: str = '') -> None:
        """Print a line above the progress."""
        with self._lock:
            erase = '\r\033[K' if self._progress else ''
            self._print(f'{erase}{text}\n{self._progress}')

    def progress(self, text: str) -> None:
        """Show what is going on in the last line of a terminal; an empty text takes it away."""
        if not self.is_terminal:
            return
        with self._lock:
            text = text[:shutil.get_terminal_size().columns - 1]
            if text != self._progress:
                self._progress = text
                self._print(f'\r\033[K{self.paint(text, "2")}')

    def _print(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except BrokenPipeError:
            self.broken = True
            self._out = open(os.devnull, 'w')

    def clean(self, data: bytes) -> str:
        """Return what a job printed as it may be shown: of the escape sequences only colours are left."""
        kept = ESCAPES.sub(lambda match: match[0] if self.colours and is_colour(match[0]) else b'', data)
        final = kept.rstrip(b'\r').rpartition(b'\r')[2]     # of a line that is rewritten, the last state
        text = final.decode('utf-8', 'replace')
        return re.sub(r'[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]', '', text)


def is_colour(escape: bytes) -> bool:
    """Tell whether an escape sequence changes nothing but colours."""
    return re.fullmatch(rb'\x1b\[[0-9;:]*m', escape) is not None


class JobView:
    """One job on the screen: its lines with its name in front, its sections folded when they pass."""

    def __init__(self, screen: Screen, prefix: str) -> None:
        self._screen = screen
        self._prefix = prefix
        self._rest = b''
        self._sections: list[tuple[str, int, bytes]] = []      # name, start and title of those that are open
        self._folded: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Show what the job has printed, as far as the lines are complete."""
        *lines, self._rest = (self._rest + data).split(b'\n')
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        """Take a line, which may begin with section marks."""
        while mark := MARK_OF_SECTION.search(line):
            if before := line[:mark.start()]:
                self._show(before)
            line = line[mark.end():]
            if mark[1] == b'start':
                self._sections.append((mark[3].decode(), int(mark[2]), line))
                if self._is_folded() and not MARK_OF_SECTION.search(line):
                    return      # the rest of the line is the title
            else:
                self._close(mark[3].decode(), int(mark[2]))
                if not line:
                    return
        if self._sections and line == self._sections[-1][2]:
            return
        self._show(line)

    def _is_folded(self) -> bool:
        return any(name not in STEPS + CHORES for name, _, _ in self._sections)

    def _show(self, line: bytes) -> None:
        """Print a line, or keep it while its section is folded; chores are printed faintly."""
        if self._is_folded():
            self._folded.append(line)
        elif not self._sections or self._sections[-1][0] in STEPS:
            self._print(line)
        elif self._sections[-1][0] != 'get_sources':
            text = ESCAPES.sub(b'', line).decode('utf-8', 'replace')
            colour = '33' if text.startswith(('WARNING', 'ERROR')) else '2'
            self._screen.line(self._prefix + self._screen.paint(text, colour))

    def _print(self, line: bytes) -> None:
        text = self._screen.clean(line).rstrip()
        end = '\033[0m' if '\033' in text else ''  # a colour that the job leaves on ends with its line
        self._screen.line(f'{self._prefix}{text}{end}')

    def _close(self, name: str, ended: int) -> None:
        """End a section; of the outermost folded one a single line remains, and its warnings."""
        if name not in [opened for opened, _, _ in self._sections]:
            return
        opened = ''
        if self._sections[-1][0] != name:
            self._unfold()      # the sections inside were left open: something failed there
        while opened != name:
            opened, started, title = self._sections.pop()
        if self._is_folded():
            return
        lines = self._folded
        self._folded = []
        if name not in STEPS + CHORES:
            said = self._screen.clean(ESCAPES.sub(b'', title)).strip() or name
            text = f'▸ {said}'
            if lines:
                text += f' · {count_text(len(lines), "line")}'
            if ended > started:
                text += f' ({ended - started} s)'
            self._screen.line(self._prefix + self._screen.paint(text, '2'))

    def end(self, job: Row) -> None:
        """Show what is left, after a failure also what was folded in the section that failed, and how the job ended."""
        if self._rest:
            self._take(self._rest)
        if job['status'] != 'success':
            self._unfold()
        self._screen.line(self._prefix + outcome_line(self._screen, job))
        if not self._prefix:
            self._screen.line()

    def _unfold(self) -> None:
        """Show what was folded after all."""
        lines = self._folded
        self._folded = []
        for line in lines:
            self._print(line)


def select_jobs(spec: PipelineSpec, names: Sequence[str]) -> PipelineSpec:
    """Return a pipeline of the named jobs and those that they need; parallel jobs go by their common name, too.

    The named jobs run at once, even manual ones. Raises BadRequest for a name that the pipeline does not have.
    """
    wanted: list[JobSpec] = []
    for name in names:
        found = [job for job in spec.jobs if name in (job.name, plain_name(job.name))]
        if not found:
            raise BadRequest({'job': [missing_job(spec, name)]})
        wanted += found
    kept: dict[str, JobSpec] = {}
    while wanted:
        job = wanted.pop()
        if job.name not in kept:
            kept[job.name] = dataclasses.replace(job, when='on_success', start_in=None)
            wanted += needed_jobs(spec, job)
    jobs = [kept[job.name] for job in spec.jobs if job.name in kept]
    return dataclasses.replace(spec, jobs=jobs)


def plain_name(name: str) -> str:
    """Return the name that the copies of a parallel job have in common."""
    return re.sub(r'(: \[.*\]| \d+/\d+)$', '', name)


def missing_job(spec: PipelineSpec, name: str) -> str:
    """Say that there is no such job in a pipeline, and why, or which there are."""
    if name in spec.decisions:
        return f'the job {name} is not part of this pipeline: {spec.decisions[name]}'
    near = difflib.get_close_matches(name, [job.name for job in spec.jobs], 1)
    if near:
        return f'there is no job {name}; did you mean {near[0]}?'
    return f'there is no job {name}; the pipeline has {", ".join(job.name for job in spec.jobs)}'


def needed_jobs(spec: PipelineSpec, job: JobSpec) -> list[JobSpec]:
    """Return the jobs whose result or artifacts a job needs."""
    if job.needs is not None:
        names = {need['name'] for need in job.needs}
        return [other for other in spec.jobs if other.name in names]
    if job.dependencies is not None:
        return [other for other in spec.jobs if other.name in job.dependencies]
    earlier = spec.stages[:spec.stages.index(job.stage)]
    return [other for other in spec.jobs if other.stage in earlier and other.artifacts]


def read_env_file(path: Path) -> list[JSON]:
    """Return the variables of a file with lines ``NAME=value``; raise BadRequest for any other line."""
    variables: list[JSON] = []
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        text = line.strip()
        if not text or text.startswith('#'):
            continue
        key, sign, value = text.removeprefix('export ').partition('=')
        if not sign or not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', key.strip()):
            raise BadRequest({'variable': [f'{path}:{number}: write it as NAME=value']})
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in '"\'':
            value = value[1:-1]
        variables.append({'key': key.strip(), 'value': value})
    return variables


def can_be_masked(value: str) -> bool:
    """Tell whether a value is long enough to be taken out of traces without harm."""
    return re.fullmatch(r'[^\x00-\x20]{8,}', value) is not None


def state_directory() -> Path:
    """Return the user's folder for the history of local runs."""
    return Path(os.environ.get('XDG_STATE_HOME') or Path.home() / '.local' / 'state') / 'minici'


def configuration_directory() -> Path:
    """Return the user's folder for the variables of local runs."""
    return Path(os.environ.get('XDG_CONFIG_HOME') or Path.home() / '.config') / 'minici'


def remote_path(url: str | None) -> str | None:
    """Return the path of a project in the address of its repository, None for one on this machine."""
    found = re.fullmatch(r'(?:(?:https?|ssh|git)://[^/]+/|[^/:]+@[^/:]+:)(.+?)(?:\.git)?/*', url or '')
    if not found:
        return None
    names = [re.sub(r'[^A-Za-z0-9_.\-]+', '-', name).strip('-.') for name in found[1].split('/')]
    return '/'.join(name for name in names if name) or None


def add_given(parser: argparse.ArgumentParser) -> None:
    """Add the options that give a pipeline variables and inputs."""
    parser.add_argument('--variable', action='append', default=[], metavar='K=V')
    parser.add_argument('--input', action='append', default=[], metavar='K=V', help='for spec:inputs of the file')


def command_inputs(options: argparse.Namespace) -> dict[str, str]:
    """Return the inputs of the command line; raise BadRequest for one that is not written K=V."""
    inputs = {}
    for text in options.input:
        key, sign, value = text.partition('=')
        if not sign:
            raise BadRequest({'input': [f'--input {text}: write it as NAME=VALUE']})
        inputs[key] = value
    return inputs


def given_variables(options: argparse.Namespace) -> list[JSON]:
    """Return the variables of the command line; raise BadRequest for one that is not written K=V."""
    variables: list[JSON] = []
    for text in options.variable:
        key, sign, value = text.partition('=')
        if not sign:
            raise BadRequest({'variable': [f'--variable {text}: write it as NAME=VALUE']})
        variables.append({'key': key, 'value': value})
    return variables


def project_name(path: Path) -> str:
    """Return a path for the project of a repository: its directory's name, as far as a path may hold it."""
    name = re.sub(r'[^A-Za-z0-9_.\-]+', '-', path.name.removesuffix('.git')).strip('-.')
    if not name:
        return 'project'
    if name.isdigit() or re.search(r'\.(atom|json)$', name):
        return f'project-{name}'
    return name


class LocalRun:
    """One run of the pipeline of a checkout; `options` are those of the command `run`."""

    def __init__(self, ci: Coordinator, options: argparse.Namespace, screen: Screen) -> None:
        self.ci = ci
        self._options = options
        self._screen = screen
        self.base_url = ci.settings.external_url or 'http://127.0.0.1:8080'     # where `minici` would serve it
        checkout = Checkout(Path(options.path), Path())
        if not (checkout.root / PIPELINE_FILE).exists():
            raise BadRequest({'path': [f'there is no {PIPELINE_FILE} in {checkout.root}']})
        identity = checkout.remote_url or str(checkout.root)
        name = remote_path(checkout.remote_url) or f'local/{project_name(checkout.root)}'
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        store = ci.data / 'snapshots' / f'{project_name(checkout.root)}-{digest}.git'
        self.checkout = Checkout(checkout.root, store)
        self.project = self._find_project(name, digest)
        self._variables = self._read_env_files()
        self._unused = False    # whether the jobs want images or services that they do not get
        self.dirty = False      # whether the snapshot holds anything that is not committed

    def _find_project(self, name: str, digest: str) -> Row:
        """Return the project of the checkout, made if need be; a second repository of one name gets another one."""
        url = 'file://' + urllib.parse.quote(str(self.checkout.store.resolve()))
        default = self.checkout.default_branch
        for path in (name, f'{name}-{digest}'):
            try:
                project = self.ci.find_project(path)
            except NotFound:
                return self.ci.create_project(path, import_url=url, default_branch=default)
            if project['import_url'] == url:
                return self.ci.edit_project(project, default_branch=default)
        raise BadRequest({'project': [f'the projects {name} and {name}-{digest} belong to other repositories']})

    def _read_env_files(self) -> list[JSON]:
        """Return the variables for all jobs, the more particular ones last; those of a person's files are masked."""
        variables: list[JSON] = []
        for path in (configuration_directory() / 'env', self.checkout.root / '.minici.env'):
            if path.is_file():
                variables += read_env_file(path)
        for item in variables:
            item['masked'] = can_be_masked(item['value'])
        if self._options.variables_file:
            variables += read_env_file(Path(self._options.variables_file))
        return variables + given_variables(self._options)

    # -- which jobs

    def plan(self) -> PipelinePlan:
        """Take a snapshot of the checkout and return the plan of its pipeline, with the jobs that are wanted."""
        tag = self._options.run_as == 'tag'
        ref = self._ref()
        hidden = [self.ci.db.path, self.ci.data, self.checkout.root / '.minici.env']
        sha, self.dirty = self.checkout.snapshot(ref, tag=tag, hidden=hidden)
        plan = self.ci.plan_pipeline(self.project, ref, sha=sha, variables=self._variables, tag=tag,
                                      source=RUN_SOURCES[self._options.run_as], inputs=command_inputs(self._options),
                                      **self._comparison(ref, sha))
        names = self._options.names
        if self._options.failed:
            names = names + self._failed_before()
        if names:
            plan = dataclasses.replace(plan, spec=select_jobs(plan.spec, names))
        return plan

    def _ref(self) -> str:
        """Return the branch or tag to run as."""
        if self._options.ref:
            return self._options.ref
        if self._options.run_as == 'tag':
            raise BadRequest({'ref': ['--as tag needs the name of a tag: add --ref NAME']})
        return self.checkout.branch or self.project['default_branch']

    def _comparison(self, ref: str, sha: str) -> JSON:
        """Return what `rules:changes` compares with, and the facts of a merge request."""
        since = self._options.changed_since
        if self._options.run_as == 'merge_request':
            target = self._options.target or self.project['default_branch']
            base = self.checkout.find_commit(since or target, sha)
            if base == sha:
                base = None     # it is the target itself: everything counts as changed
            return {'merge_request': {
                'iid': 1,
                'source_branch': ref,
                'target_branch': target,
                'title': f'Merge {ref} into {target}',
                'base_sha': base or '',
            }}
        if since:
            base = self.checkout.find_commit(since)
            if base is None:
                raise BadRequest({'changed_since': [f'--changed-since {since}: there is no such commit']})
            return {'before_sha': base}
        upstream = self.checkout.find_commit(f'refs/remotes/origin/{ref}')
        if upstream == sha:
            return {}       # nothing to push: everything counts as changed
        return {'before_sha': upstream}

    def _failed_before(self) -> list[str]:
        """Return the names of the jobs that failed in the last run of this checkout."""
        pipelines, _ = self.ci.list_pipelines(self.project, limit=1)
        if not pipelines:
            raise BadRequest({'failed': ['there is no earlier run of this repository']})
        jobs = self.ci.list_jobs(pipeline=pipelines[0], limit=MAX_JOBS_SHOWN, include_retried=False)
        names = [job['name'] for job in jobs if job['status'] in ('failed', 'canceled') and not job['allow_failure']]
        if not names:
            raise BadRequest({'failed': ['nothing failed in the last run']})
        return names

    # -- running them

    def run(self, plan: PipelinePlan) -> int:
        """Run the pipeline and show it; return the exit status: 0, 1, or 130 after Ctrl-C."""
        self._pipeline = self.ci.create_planned(plan)
        self._show_heading(plan)
        tags = sorted({tag for job in plan.spec.jobs for tag in job.tag_list})
        self._runner, self._token = self.ci.create_runner(self.project, description='minici run', tag_list=tags)
        self._started = time.monotonic()
        self._known = 1
        ended = False
        with tempfile.TemporaryDirectory(prefix='minici-run-', ignore_cleanup_errors=True) as work:
            place = Path(self._options.keep or work).resolve()
            self._place = Workshop(self.checkout.root, place, self.ci.data / 'caches', self.checkout.store,
                                   keep=bool(self._options.keep))
            try:
                self._work()
                ended = True
            except KeyboardInterrupt:
                pass
            finally:
                self._screen.progress('')
                if not ended or self._screen.broken:
                    self.ci.cancel_pipeline(self._pipeline)
                self.ci.unregister_runner(self._runner)
        if self._options.artifacts:
            self._fetch_artifacts()
        return self._summarize(ended)

    def _work(self) -> None:
        """Run jobs side by side until there is none left that may run."""
        running: dict[futures.Future[None], str] = {}
        with futures.ThreadPoolExecutor(self._options.parallel) as pool:
            try:
                while not self._screen.broken:
                    while len(running) < self._options.parallel and (claim := self._claim()):
                        running[pool.submit(self._run_job, claim)] = claim.job['name']
                    if not running:
                        return
                    done, _ = futures.wait(running, PUMP_INTERVAL, futures.FIRST_COMPLETED)
                    for future in done:
                        del running[future]
                        future.result()
                    self._show_progress(list(running.values()))
            finally:
                self._place.stopping.set()

    def _claim(self) -> Claim | None:
        """Return the next job that may run, None if there is none right now."""
        self._play(self._latest_jobs())
        for pipeline in self._family():
            if claim := self.ci.request_job(self._runner, pipeline=pipeline):
                return claim
        return None

    def _play(self, jobs: Iterable[Row]) -> None:
        """Start the delayed jobs, for nobody waits here, and the manual ones that were asked for."""
        for job in jobs:
            if job['status'] == 'scheduled' or job['status'] == 'manual' and self._is_named(job):
                self.ci.play_job(job)

    def _family(self) -> list[Row]:
        """Return the pipeline and those that its bridges have started in this project; the runner takes their tags."""
        family = [self._pipeline]
        for pipeline in family:
            started = [downstream for _, downstream in self.ci.list_bridges(pipeline) if downstream is not None]
            children = [self.ci.find_pipeline(number) for number in started]
            family += [child for child in children if child['project_id'] == self.project['id']]
        if len(family) > self._known:
            self._known = len(family)
            jobs = [job for pipeline in family for job in self.ci.list_jobs(pipeline=pipeline, limit=MAX_JOBS_SHOWN)]
            tags = {tag for job in jobs for tag in json.loads(job['tags'])}
            self._runner = self.ci.edit_runner(self._runner, tag_list=sorted(tags))
        return family

    def _is_named(self, job: Row) -> bool:
        """Tell whether a manual job was asked for."""
        return not {job['name'], plain_name(job['name'])}.isdisjoint(self._options.manual)

    def _latest_jobs(self) -> list[Row]:
        """Return the jobs of the pipeline and its children in their order, without those that were tried again."""
        found = []
        for pipeline in self._family():
            jobs = self.ci.list_jobs(pipeline=pipeline, limit=MAX_JOBS_SHOWN, include_retried=False)
            jobs += [bridge for bridge, _ in self.ci.list_bridges(pipeline) if not bridge['retried']]
            found += sorted(jobs, key=lambda job: (job['stage_idx'], job['id']))
        return found

    def _run_job(self, claim: Claim) -> None:
        """Run one job and show it."""
        prefix = self._begin(claim.job)
        view = JobView(self._screen, prefix)
        payload = job_payload(claim, self, self._runner)
        shell = ShellJob(self.ci, claim, payload, self._place, view.feed)
        shell.run()
        view.end(self.ci.find_job(claim.job))

    def _begin(self, job: Row) -> str:
        """Show that a job begins; return what stands in front of its lines."""
        prefix = self._prefix(job)
        if not prefix:
            self._screen.line(self._screen.paint(f'{job["stage"]}: {job["name"]}', '1'))
        return prefix

    def _prefix(self, job: Row) -> str:
        """Return what stands in front of a job's lines: its name, when several jobs may run side by side."""
        if self._options.parallel == 1 or self._width == 0:
            return ''
        shown = shortened(job['name'], self._width)
        return self._screen.paint(f'{shown:{self._width}} │ ', JOB_COLOURS[job['id'] % len(JOB_COLOURS)])

    # -- what is shown

    def _show_heading(self, plan: PipelinePlan) -> None:
        """Say what runs: the repository, the commit, the jobs of each stage, and what is not used."""
        jobs = plan.spec.jobs
        self._width = 0
        if len(jobs) > 1:
            self._width = min(NAME_WIDTH, max(len(job.name) for job in jobs))
        commit = plan.facts['sha'][:8]
        commit += ' with what is not committed' if self.dirty else ' as committed'
        title = [self._screen.paint(self.checkout.root.name, '1'), plan.facts['ref'], commit]
        if self._options.run_as != 'push':
            title.append(f'as {self._options.run_as.replace("_", " ")}')
        self._screen.line(' · '.join(title))
        width = max(len(stage) for stage in plan.spec.stages)
        for stage in plan.spec.stages:
            names = [job_label(job) for job in jobs if job.stage == stage]
            if names:
                self._screen.line(f'  {self._screen.paint(f"{stage:{width}}", "36")}  {first_of(names, 8)}')
        left_out = [name for name, reason in plan.spec.decisions.items() if reason.startswith('left out')]
        if left_out:
            text = f'left out by rules: {first_of(left_out, 4)} (--list says why)'
            self._screen.line(self._screen.paint(f'  {text}', '2'))
        self._show_unused(jobs)
        self._show_missing(jobs)
        self._screen.line()

    def _show_unused(self, jobs: Sequence[JobSpec]) -> None:
        """Name once what a plain shell cannot give the jobs."""
        images = {job.image['name'] for job in jobs if job.image}
        services = {service['name'] for job in jobs for service in job.services}
        unused = []
        if images:
            unused.append(f'{plural(len(images), "image")} {first_of(sorted(images))}')
        if services:
            unused.append(f'{plural(len(services), "service")} {first_of(sorted(services))}')
        self._unused = bool(unused)
        if unused:
            text = f'not used in a plain shell: {" and ".join(unused)}'
            self._screen.line(self._screen.paint(f'  {text}', '33'))

    def _show_missing(self, jobs: Sequence[JobSpec]) -> None:
        """Name the ID tokens that jobs ask for: nobody issues them."""
        for job in jobs:
            if job.id_tokens:
                tokens = ', '.join(job.id_tokens)
                text = f'{job.name} runs without {tokens}: minici issues no ID tokens'
                self._screen.line(self._screen.paint(f'  {text}', '33'))

    def hint(self) -> str:
        """Return how to get the images and services of the jobs, an empty text when they want none."""
        if not self._unused:
            return ''
        if shutil.which(RUNNER_PROGRAM):
            return f'minici run --runner uses images and services, by the {RUNNER_PROGRAM} on the PATH'
        return f'images and services need {RUNNER_PROGRAM} ({RUNNER_PAGE}); then add --runner'

    def _show_progress(self, running: Sequence[str]) -> None:
        """Show in the last line of the terminal how far the pipeline is."""
        jobs = self._latest_jobs()
        done = sum(job['status'] in FINISHED for job in jobs)
        left = len(jobs) - done - len(running)
        elapsed = duration_text(time.monotonic() - self._started)
        state = f'{done} done · {len(running)} running'
        if running:
            state += f' ({first_of(running)})'
        self._screen.progress(f'{state} · {left} left · {elapsed}')

    def _summarize(self, ended: bool) -> int:
        """Repeat what failed, show a table of the jobs and the result; return the exit status."""
        jobs = self._latest_jobs()
        failed = [job for job in jobs if outcome(job) in ('failed', 'warning')]
        if self._screen.broken:
            return 128 + signal.SIGPIPE
        if self._width:
            self._screen.line()
        for job in failed:
            if not job['allow_failure']:
                self._show_failure(job)
        self._show_table(jobs)
        took = duration_text(time.monotonic() - self._started)
        broken = [job for job in failed if not job['allow_failure']]
        title = f'run {self._pipeline["id"]}'
        if not ended:
            text = f'{title} was interrupted after {took}; its jobs are stopped'
            self._screen.line(self._screen.paint(text, '35'))
            return 130
        manual = [job['name'] for job in jobs if job['status'] == 'manual']
        if manual:
            self._screen.line(f'waiting to be started by hand: {first_of(manual)} (--manual NAME runs one)')
        stuck = [job for job in jobs if job['status'] in ('pending', 'running', 'waiting_for_resource', 'preparing')]
        for job in stuck:
            self._screen.line(f'{job["name"]} did not run: {self.ci.pending_reason(job)}')
        passed = not broken and not stuck and all(job['status'] != 'canceled' for job in jobs)
        said, colour = ('passed', '32;1') if passed else ('failed', '31;1')
        self._screen.line(self._screen.paint(f'{title} {said} in {took}', colour))
        return int(not passed)

    def _show_failure(self, job: Row) -> None:
        """Repeat the end of a failed job's trace."""
        title = f'── {job["name"]} failed: {failure_text(job)} '
        columns = min(100, shutil.get_terminal_size().columns)
        self._screen.line(self._screen.paint(f'{title:─<{columns}}', '31'))
        with contextlib.suppress(NotFound):
            for line in script_lines(self.ci.read_trace(job))[-TAIL_LINES:]:
                self._screen.line(f'  {self._screen.clean(line).rstrip()}')
        for case in self.ci.list_test_cases(job, ('failed', 'error'), TESTS_SHOWN):
            self._show_test(case)
        self._screen.line()

    def _show_test(self, case: Row) -> None:
        """Show a test that failed: its name, its place and the first line of what it said."""
        place = case['file'] or case['classname'] or case['suite']
        said, _, _ = (case['message'] or case['output']).strip().partition('\n')
        text = f'  ✘ {case["name"]}'
        if place:
            text += f' ({place})'
        self._screen.line(self._screen.paint(text, '31'))
        if said:
            self._screen.line('      ' + self._screen.clean(said.encode()).rstrip())

    def _show_table(self, jobs: Sequence[Row]) -> None:
        """Show each job with its result, time and artifacts."""
        rows = [('stage', 'job', 'result', 'time', '')]
        colours = ['2']
        for job in jobs:
            mark, said, colour = OUTCOMES[outcome(job)]
            took = ''
            if job['started_at'] and job['finished_at']:
                took = duration_text(job['finished_at'] - job['started_at'])
            rows.append((job['stage'], job['name'], f'{mark} {said}', took, self._remark(job)))
            colours.append(colour)
        print_table(self._screen, rows, colours)
        self._screen.line()

    def _remark(self, job: Row) -> str:
        """Return what there is to say about a finished job: its failure, coverage and artifacts."""
        remarks = []
        if outcome(job) in ('failed', 'warning'):
            remarks.append(failure_text(job))
        if report := self.ci.find_test_report(job):
            remarks.append(tests_text(report))
        if job['coverage'] is not None:
            remarks.append(f'coverage {job["coverage"]:g}%')
        remarks += [artifact_text(item) for item in json.loads(job['artifacts'])]
        return ', '.join(remarks)

    def list_jobs(self, plan: PipelinePlan) -> int:
        """Show which jobs the pipeline has, when they run, what they need, and why others are left out."""
        rows = [('stage', 'job', 'when', 'needs', 'why')]
        colours = ['2']
        for stage in plan.spec.stages:
            for job in plan.spec.jobs:
                if job.stage == stage:
                    why = plan.spec.decisions.get(job.name, '')
                    rows.append((stage, job.name, job.when, needs_text(job), why))
                    colours.append('')
        for name, reason in plan.spec.decisions.items():
            if reason.startswith('left out'):
                rows.append(('-', name, '-', '', reason))
                colours.append('2')
        print_table(self._screen, rows, colours)
        return 0

    def _fetch_artifacts(self) -> None:
        """Unpack the artifacts of the jobs into the checkout."""
        for job in self._latest_jobs():
            with contextlib.suppress(NotFound):
                _, archive = self.ci.open_artifacts(job)
                with archive:
                    files = unpack(archive, self.checkout.root)
                self._screen.line(f'{count_text(files, "file")} of {job["name"]} unpacked into {self.checkout.root}')


def script_lines(trace: bytes) -> list[bytes]:
    """Return the lines that the script of a job has printed; without them, all of the trace."""
    parts = re.split(rb'section_(?:start|end):[0-9]+:step_script\r(?:\x1b\[0K)?', trace)
    lines = trace.split(b'\n')
    if len(parts) > 1:
        lines = parts[1].split(b'\n')[1:]
    shown = (MARK_OF_SECTION.sub(b'', line) for line in lines)
    return [line for line in shown if line.strip()]


def needs_text(job: JobSpec) -> str:
    """Return the names of the jobs that a job needs, '' when it waits for the stages before it."""
    if job.needs is None:
        return ''
    return ', '.join(need['name'] for need in job.needs) or 'nothing'


def job_label(job: JobSpec) -> str:
    """Return a job's name, with what is special about when it runs."""
    if job.when == 'on_success':
        return job.name
    when = job.when.replace('_', ' ')
    return f'{job.name} ({when})'


def outcome(job: Row) -> str:
    """Return the key of OUTCOMES for a job."""
    if job['failure_reason'] == 'runner_interrupted':
        return 'canceled'
    if job['status'] == 'failed' and job['allow_failure']:
        return 'warning'
    if job['status'] in OUTCOMES:
        return job['status']
    return 'created'


def outcome_line(screen: Screen, job: Row) -> str:
    """Say in a line how a job ended, in which time, and why it failed."""
    mark, said, colour = OUTCOMES[outcome(job)]
    took = duration_text(max(0, (job['finished_at'] or 0) - (job['started_at'] or 0)))
    text = f'{mark} {said} in {took}'
    if outcome(job) in ('failed', 'warning'):
        text += f': {failure_text(job)}'
    return screen.paint(text, colour)


def failure_text(job: Row) -> str:
    """Say in words why a job failed."""
    if job['failure_message']:
        return job['failure_message']
    if job['failure_reason'] == 'script_failure' and job['exit_code'] is not None:
        return f'exit code {job["exit_code"]}'
    return (job['failure_reason'] or 'unknown_failure').replace('_', ' ')


def tests_text(report: Row) -> str:
    """Say how many tests a job has reported, and how many of them failed."""
    wrong = report['failed'] + report['error']
    total = wrong + report['success'] + report['skipped']
    if wrong:
        return f'{wrong} of {count_text(total, "test")} failed'
    return count_text(total, 'test')


def artifact_text(item: Members) -> str:
    """Say what kind of artifact a job left, and how large it is."""
    kind = item['file_type']
    if kind == 'archive':
        kind = 'artifacts'
    return f'{kind} {size_text(item["size"])}'


def size_text(size: int) -> str:
    """Return a number of bytes as people say it."""
    if size < 10 * KIB:
        return f'{size} B'
    if size < 10 * MIB:
        return f'{size / KIB:.0f} KiB'
    return f'{size / MIB:.0f} MiB'


def shortened(text: str, width: int) -> str:
    """Return a text that fits into so many columns."""
    if len(text) <= width:
        return text
    return text[:width - 1] + '…'


def print_table(screen: Screen, rows: Sequence[tuple[str, ...]], colours: Sequence[str]) -> None:
    """Print rows of text in columns, each row in its colour."""
    widths = [max(len(text) for text in column) for column in zip(*rows, strict=True)]
    for row, colour in zip(rows, colours, strict=True):
        cells = [f'{text:{width}}' for text, width in zip(row, widths, strict=True)]
        screen.line(screen.paint('  ' + '  '.join(cells).rstrip(), colour))




# Runs by GitLab Runner ########################################################################
#
# `minici run --runner`: the jobs of a local run in the hands of the genuine runner, which has images
# and services. A server of ours on a port of its own hands them out for as long as the run takes.

DEFAULT_IMAGE = 'debian:stable'     # of jobs that name none
RUNNER_TIMEOUT = 60                 # seconds that it has to register or unregister itself
#: The statuses of jobs that are with a runner or wait for one.
WITH_RUNNERS = ('pending', 'preparing', 'running', 'canceling', 'waiting_for_resource', 'scheduled')


class FollowedJob:
    """The trace of one job that runs somewhere else, shown as it grows."""

    def __init__(self, ci: Coordinator, job: Row, view: JobView) -> None:
        self._ci = ci
        self._id = job['id']
        self._view = view
        self._decoder = TraceDecoder()
        self._position = 0
        self._ended = False

    def read(self) -> None:
        """Show what the trace has grown by, and what became of the job once it has ended."""
        if self._ended:
            return
        job = self._ci.find_job(self._id)
        self._ended = job['status'] in FINISHED     # asked first: by then the rest of the trace is there
        self._ci.traces.looked_at(self._id)         # its runner then sends more of it more often
        with contextlib.suppress(NotFound), self._ci.traces.open(self._id) as file:
            file.seek(self._position)
            while data := file.read(MIB):
                self._position += len(data)
                self._show(data)
        if self._ended:
            self._show(b'', final=True)
            self._view.end(job)

    def _show(self, data: bytes, *, final: bool = False) -> None:
        text = self._decoder.feed(data, final=final)
        self._view.feed(text.encode())


class RunnerProcess:
    """A `gitlab-runner` of this machine, registered for one run and removed after it; a context manager.

    Its configuration and what it says are in `folder`. Raises BadRequest when it cannot be used.
    """

    def __init__(self, url: str, token: str, folder: Path, side_by_side: int) -> None:
        program = shutil.which(RUNNER_PROGRAM)
        if program is None:
            raise BadRequest({'runner': [f'--runner needs {RUNNER_PROGRAM} on the PATH: {RUNNER_PAGE} says how to '
                                         'get it']})
        self._program = program
        self._access = ['--url', url, '--token', token]
        self._config = folder / 'config.toml'
        self._log = folder / 'runner.log'
        self._folder = folder
        self._side_by_side = side_by_side
        self.executor = 'docker' if shutil.which('docker') else 'shell'

    def __enter__(self) -> RunnerProcess:
        self._config.write_text(f'concurrent = {self._side_by_side}\ncheck_interval = 1\n')
        chosen = ['--executor', self.executor]
        if self.executor == 'docker':
            chosen += ['--docker-image', DEFAULT_IMAGE, '--docker-pull-policy', 'if-not-present']
            chosen += ['--docker-network-mode', 'host']     # from inside, this machine's own address leads nowhere
        self._call('register', '--non-interactive', '--name', 'minici run', *self._access, *chosen)
        with open(self._log, 'ab') as log_file:
            self._process = subprocess.Popen(
                [self._program, 'run', '--config', str(self._config), '--working-directory', str(self._folder)],
                stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        stop_group(self._process)
        with contextlib.suppress(BadRequest):   # the run removes it, too
            self._call('unregister', '--all-runners')

    def _call(self, command: str, *arguments: str) -> None:
        """Run one of the program's commands to its end; raise BadRequest with its last words when it fails."""
        with open(self._log, 'ab') as log_file:
            done = subprocess.run([self._program, command, '--config', str(self._config), *arguments],
                                  stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, timeout=RUNNER_TIMEOUT)
        if done.returncode:
            raise self._failed(command, done.returncode)

    def check(self) -> None:
        """Raise BadRequest when the runner has ended by itself."""
        status = self._process.poll()
        if status is not None:
            raise self._failed('run', status)

    def _failed(self, command: str, status: int) -> BadRequest:
        """Return what is to be said of a command that has ended with this status."""
        said = self._log.read_text(errors='replace').strip()
        last = said.rpartition('\n')[2]
        return BadRequest({'runner': [f'{RUNNER_PROGRAM} {command} ended with {exit_status(status)}: {last}']})


class RunnerRun(LocalRun):
    """A local run whose jobs a `gitlab-runner` takes over HTTP."""

    def _work(self) -> None:
        """Show the jobs while the runner takes them, until there is none left that may run."""
        folder = self._place.work / 'runner'
        folder.mkdir(mode=0o700)
        with Server(self.ci, port=0) as server:
            runner = RunnerProcess(server.url, self._token, folder, self._options.parallel)
            text = f'the jobs run in {RUNNER_PROGRAM}, with its executor {runner.executor}'
            self._screen.line(self._screen.paint(text, '2'))
            with runner:
                try:
                    self._follow(runner)
                except KeyboardInterrupt:
                    self.ci.cancel_pipeline(self._pipeline)     # before the runner ends, which would fail its jobs
                    raise

    def _follow(self, runner: RunnerProcess) -> None:
        """Show the traces of the jobs as they grow, until no job is with the runner or waits for it."""
        shown: dict[int, FollowedJob] = {}
        while not self._screen.broken:
            jobs = self._latest_jobs()
            self._play(jobs)
            for job in jobs:
                if job['kind'] == 'build' and job['started_at'] and job['id'] not in shown:
                    view = JobView(self._screen, self._begin(job))
                    shown[job['id']] = FollowedJob(self.ci, job, view)
            for followed_job in shown.values():
                followed_job.read()
            open_jobs = [job for job in jobs if job['kind'] == 'build' and job['status'] in WITH_RUNNERS]
            if not open_jobs:
                return
            runner.check()
            self._show_progress([job['name'] for job in open_jobs if job['status'] in ALIVE])
            time.sleep(PUMP_INTERVAL)

    def _show_unused(self, jobs: Sequence[JobSpec]) -> None:
        """Say so when images cannot be used: without Docker the runner has only a shell, too."""
        if not shutil.which('docker'):
            super()._show_unused(jobs)

    def hint(self) -> str:
        """Return what is missing for images and services."""
        if not self._unused:
            return ''
        return 'images and services need Docker, too'


# Command line #################################################################################

Subcommands: TypeAlias = 'argparse._SubParsersAction[argparse.ArgumentParser]'


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; serving is what happens without a subcommand."""
    parser = argparse.ArgumentParser(prog='minici', description='A GitLab-compatible CI coordinator in one file.')
    parser.add_argument('--version', action='version', version=f'minici {__version__}')
    parser.add_argument('--db', help=f'the database (default: {DEFAULT_DATABASE}; of run: one in {state_directory()})')
    parser.add_argument('--data', help='directory for traces and artifacts (default: beside the database)')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (default: %(default)s)')
    parser.add_argument('--port', type=port_number, default=8080, help='port to listen on (default: %(default)s)')
    parser.add_argument('--hook', metavar='COMMAND', help='run this with JSON on its standard input whenever a job '
                                                          'or pipeline changes its status')
    for item in dataclasses.fields(Settings):
        add_setting(parser, item)
    parser.set_defaults(action=serve_command)
    commands = parser.add_subparsers(metavar='COMMAND')
    add_run_command(commands)
    add_submit_command(commands)
    add_operator_commands(commands)
    add_lint_command(commands)
    return parser


def port_number(text: str) -> int:
    """Return a TCP port; 0 lets the system choose one."""
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f'{port} is not a port: choose one from 1 to 65535, or 0 for any free one')
    return port


def add_setting(parser: argparse.ArgumentParser, item: dataclasses.Field) -> None:
    """Add the option of one field of `Settings`."""
    option = '--' + item.name.replace('_', '-')
    parse = item.metadata['parser']
    meaning = item.metadata['help']
    if parse is bool:
        parser.add_argument(option, action='store_true', help=meaning)
        return
    shown = str(item.default or 'none').replace('%', '%%')  # argparse fills in what stands behind a single one
    metavar = parse.__name__.removeprefix('parse_').upper()
    parser.add_argument(option, type=setting_reader(parse), default=item.default, metavar=metavar,
                        help=f'{meaning} (default: {shown})')


def setting_reader(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a setting's parser with errors that argparse shows as they are."""
    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as problem:
            raise argparse.ArgumentTypeError(str(problem)) from None
    return read


def add_run_command(commands: Subcommands) -> None:
    """Add the command that runs the pipeline of a checkout on this machine."""
    parser = commands.add_parser('run', help='run the pipeline of a checkout here and now, committed or not')
    parser.add_argument('paths', nargs='*', metavar='[PATH] [JOB ...]',
                        help='a directory (default: this one), then jobs to run, with what they need (default: all)')
    parser.add_argument('--list', action='store_true', help='only show which jobs there are, and why others are not')
    parser.add_argument('--failed', action='store_true', help='run again what failed the last time')
    parser.add_argument('--manual', action='append', default=[], metavar='JOB', help='run this manual job, too')
    parser.add_argument('--as', dest='run_as', choices=RUN_SOURCES, default='push',
                        help='what starts the pipeline (default: %(default)s)')
    parser.add_argument('--ref', help='branch or tag to run as (default: the one that is checked out)')
    parser.add_argument('--target', metavar='BRANCH', help='target of --as merge_request (default: the default branch)')
    parser.add_argument('--changed-since', metavar='REF', help='what rules:changes compares with')
    add_given(parser)
    parser.add_argument('--variables-file', metavar='FILE', help='lines K=V, as .minici.env in the checkout has them')
    parser.add_argument('--jobs', dest='parallel', type=int, default=os.cpu_count() or 1, metavar='N',
                        help='how many jobs may run side by side (default: %(default)s)')
    parser.add_argument('--runner', action='store_true',
                        help='let the gitlab-runner on the PATH run the jobs: it has images and services')
    parser.add_argument('--keep', metavar='DIR', help="keep the jobs' working copies in this directory")
    parser.add_argument('--artifacts', action='store_true', help='unpack the artifacts into the checkout afterwards')
    parser.add_argument('--colours', action=argparse.BooleanOptionalAction, help='(default: on a terminal)')
    parser.set_defaults(action=run_command)


def add_submit_command(commands: Subcommands) -> None:
    """Add the command that makes a pipeline of a repository."""
    submit = commands.add_parser('submit', help='make a pipeline of a git repository')
    submit.add_argument('path', help='the repository')
    submit.add_argument('--ref', help='branch or tag (default: the one that is checked out)')
    submit.add_argument('--project', metavar='PATH', help="the project's path (default: the name of the directory)")
    submit.add_argument('--source', default='push', help='push, schedule, web, ... (default: %(default)s)')
    add_given(submit)
    submit.add_argument('--follow', action='store_true', help='print the traces; exit with the result')
    submit.add_argument('--uncommitted', action='store_true', help='include what is not committed, or not even added')
    submit.set_defaults(action=submit_command)


def add_operator_commands(commands: Subcommands) -> None:
    """Add the commands for whoever looks after an existing database."""
    token = commands.add_parser('token', help='print a new private token')
    token.add_argument('--name', default='root', help='whose token it is (default: %(default)s)')
    token.add_argument('--scope', choices=('api', 'read_api'), default='api')
    token.add_argument('--expires-in', type=setting_reader(parse_lifetime), default='1 year', metavar='DURATION',
                       help='when it stops working, or "never" (default: %(default)s)')
    token.set_defaults(action=token_command)
    why = commands.add_parser('why', help='say why a job is not running')
    why.add_argument('job', type=int)
    why.set_defaults(action=why_command)
    prune = commands.add_parser('prune', help='remove finished pipelines that are too old or take too much space')
    prune.add_argument('--dry-run', action='store_true', help='only list them')
    prune.set_defaults(action=prune_command)
    add_backup_commands(commands)


def add_backup_commands(commands: Subcommands) -> None:
    """Add the commands that copy, bring back and check what an existing database and its directory hold."""
    backup = commands.add_parser('backup', help='copy database, traces and artifacts, consistently, while serving')
    backup.add_argument('directory', metavar='DIR')
    backup.add_argument('--force', action='store_true', help='replace what is there')
    backup.set_defaults(action=backup_command)
    back = commands.add_parser('restore', help='put a backup in the place of the database')
    back.add_argument('directory', metavar='DIR')
    back.add_argument('--force', action='store_true', help='replace the database that is there')
    back.set_defaults(action=restore_command)
    check = commands.add_parser('check', help='compare the database with the files; exit with 1 when they differ')
    check.add_argument('--repair', action='store_true', help='set right what can be')
    check.add_argument('--sha256', action='store_true', help='read every artifact whole and compare its checksum')
    check.set_defaults(action=check_command)
    vacuum = commands.add_parser('vacuum', help='rewrite the database without unused pages')
    vacuum.set_defaults(action=vacuum_command)


def add_lint_command(commands: Subcommands) -> None:
    """Add the command that checks a pipeline file."""
    parser = commands.add_parser('lint', help='check a pipeline file')
    parser.add_argument('file', nargs='?', default=PIPELINE_FILE, help='the file (default: %(default)s)')
    parser.add_argument('--plan', action='store_true', help='print which jobs would run, in order, and why')
    parser.add_argument('--ref', help='branch or tag (default: the default branch)')
    parser.add_argument('--tag', action='store_true', help='--ref is a tag')
    parser.add_argument('--source', default='push', type=pipeline_source,
                        help='merge_request_event, schedule, web, ... (default: %(default)s)')
    add_given(parser)
    parser.set_defaults(action=lint_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 after a complaint, 130 after Ctrl-C."""
    options = build_parser().parse_args(argv)
    try:
        return options.action(options)
    except CIError as error:
        complaints = plain_problems(error)
    except (OSError, sqlite3.Error) as error:
        complaints = [str(error)]
    except KeyboardInterrupt:
        print('minici: interrupted', file=sys.stderr)
        return 130
    for text in complaints:
        print(f'minici: {text}', file=sys.stderr)
    return 1


def open_existing(options: argparse.Namespace) -> Coordinator:
    """Return a coordinator over the database that the options name; raise BadRequest if it is missing."""
    path = options.db or DEFAULT_DATABASE
    if not os.path.exists(path):
        raise BadRequest({'db': [f'there is no database {path}; "minici --db {path}" makes one and serves it']})
    return open_coordinator(options)


def token_command(options: argparse.Namespace) -> int:
    """Print a new private token, alone on its line."""
    with open_existing(options) as ci:
        lifetime = parse_duration(options.expires_in)
        print(ci.create_private_token(options.name, options.scope, lifetime=lifetime))
    return 0


def backup_command(options: argparse.Namespace) -> int:
    """Copy database, traces and artifacts."""
    with open_existing(options) as ci:
        ci.backup(options.directory, force=options.force)
    return 0


def restore_command(options: argparse.Namespace) -> int:
    """Put a backup in the place of the database."""
    path = options.db or DEFAULT_DATABASE
    restore(options.directory, path, options.data, force=options.force)
    print(f'{path} is what {options.directory} holds')
    return 0


def check_command(options: argparse.Namespace) -> int:
    """Print what differs between the database and the files; return 1 when something still does."""
    with open_existing(options) as ci:
        findings = ci.check(repair=options.repair, checksums=options.sha256)
    for finding in findings:
        print(f'{finding.text} (repaired)' if finding.repaired else finding.text)
    return int(any(not finding.repaired for finding in findings))


def vacuum_command(options: argparse.Namespace) -> int:
    """Rewrite the database without unused pages."""
    with open_existing(options) as ci:
        ci.vacuum()
    return 0


def why_command(options: argparse.Namespace) -> int:
    """Say why a job is not running."""
    with open_existing(options) as ci:
        try:
            job = ci.find_job(options.job)
        except NotFound:
            raise BadRequest({'job': [f'job {options.job} does not exist']}) from None
        reason = ci.pending_reason(job)
    state = f'{job["name"]} is {job["status"]}'
    print(f'{state}: {reason}' if reason else state)
    return 0


def prune_command(options: argparse.Namespace) -> int:
    """Remove the pipelines that are too old or take too much space, or only list them."""
    with open_existing(options) as ci:
        for pipeline in ci.prune(dry_run=options.dry_run):
            finished = iso_time(pipeline['finished_at'])
            print(f'pipeline {pipeline["id"]} ({pipeline["ref"]}, {pipeline["status"]}, {finished})')
    return 0


def open_coordinator(options: argparse.Namespace) -> Coordinator:
    """Return a coordinator over the database that the options name; a missing one is made."""
    settings = {item.name: getattr(options, item.name) for item in dataclasses.fields(Settings)}
    return Coordinator(options.db or DEFAULT_DATABASE, options.data, **settings)


def split_paths(options: argparse.Namespace) -> None:
    """Tell the directory in front of the names of jobs from these."""
    options.path = '.'
    options.names = [*options.paths]
    if options.names and Path(options.names[0]).is_dir():
        options.path = options.names.pop(0)


def run_command(options: argparse.Namespace) -> int:
    """Run the pipeline of a checkout on this machine."""
    split_paths(options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    screen = Screen(sys.stdout, colours=options.colours)
    kept_apart = options.db is None
    if kept_apart:
        state_directory().mkdir(mode=0o700, parents=True, exist_ok=True)
        options.db = str(state_directory() / DEFAULT_DATABASE)
    options.include_hosts = options.include_hosts or '*'     # who runs a file here decides what it may ask
    with open_coordinator(options) as ci:
        kind = RunnerRun if options.runner else LocalRun
        local = kind(ci, options, screen)
        plan = local.plan()
        if options.list:
            return local.list_jobs(plan)
        status = local.run(plan)
        if screen.broken:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())     # what is buffered goes nowhere
        if kept_apart:
            ci.delete_pipelines(ci.list_pipelines(limit=RUNS_KEPT, offset=RUNS_KEPT)[0])
        if screen.is_terminal:
            screen.line(screen.paint(f'minici --db {options.db} shows it in a browser', '2'))
        if hint := local.hint():
            screen.line(screen.paint(hint, '2'))
        return status


class Directory:
    """The files below a directory, read as a `Repository` is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def file(self, sha: str, path: str) -> bytes | None:
        """Return a file's content, or None when there is none."""
        file = self._path / path
        if '..' in Path(path).parts or not file.is_file():
            return None
        return file.read_bytes()

    def files(self, sha: str) -> list[str]:
        """Return the paths of all files, git's own excepted."""
        found = (path.relative_to(self._path) for path in self._path.rglob('*') if path.is_file())
        return [path.as_posix() for path in found if '.git' not in path.parts]

    def changes(self, base: str, sha: str) -> None:
        """Return None: without a repository nobody knows what changed."""


def lint_command(options: argparse.Namespace) -> int:
    """Say what is wrong with a pipeline file, or which jobs it makes."""
    file = Path(options.file)
    with tempfile.TemporaryDirectory() as scratch:
        checkout = Checkout(file.absolute().parent, Path(scratch) / 'store.git')
        default = checkout.remote_default_branch or checkout.branch or 'main'
        cache = FileCache(cache_directory() / 'includes')
        library = IncludeLibrary(Path(scratch), cache, lambda path: None, options.include_hosts or '*',
                                 options.include_map)
        facts, predefined = lint_facts(options, default)
        variables = {given['key']: given['value'] for given in given_variables(options)}
        with library:
            spec = compile_pipeline(file.read_bytes(), facts=facts, variables=variables, predefined=predefined,
                                    name=options.file, repository=Directory(file.parent), library=library,
                                    inputs=command_inputs(options))
    for warning in spec.warnings:
        print(f'warning: {warning}', file=sys.stderr)
    print_plan(spec, options.plan)
    if spec.jobs or not options.plan:
        return 0
    reason = 'workflow:rules want no pipeline' if spec.filtered else 'every job is left out'
    print(f'minici: there would be no pipeline of {facts["ref"]}, source {facts["source"]}: {reason}', file=sys.stderr)
    return 1


def lint_facts(options: argparse.Namespace, default: str) -> tuple[JSON, dict[str, str]]:
    """Return what the command line says of a pipeline, and its predefined variables."""
    ref = options.ref or default
    facts = {
        **UNKNOWN_FACTS,
        'ref': ref,
        'tag': options.tag,
        'source': options.source,
        'sha': '0' * 40,
        'project_id': 1,
        'project_path': 'local/project',
        'project_name': 'project',
        'namespace_id': 1,
        'default_branch': default,
        'protected': ref == default and not options.tag,
    }
    predefined = {**texts_of(server_variables('http://localhost')), **known_variables(facts)}
    if options.source == 'merge_request_event':
        predefined.update(CI_MERGE_REQUEST_IID='1', CI_MERGE_REQUEST_SOURCE_BRANCH_NAME=ref,
                          CI_MERGE_REQUEST_TARGET_BRANCH_NAME=default)
    return facts, predefined


def cache_directory() -> Path:
    """Return where files that were fetched for commands of this user are kept."""
    home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(home).expanduser() / 'minici'


def pipeline_source(text: str) -> str:
    """Return a source of pipelines that GitLab knows; raise ArgumentTypeError for any other."""
    if text not in PIPELINE_SOURCES:
        raise argparse.ArgumentTypeError(f'{text!r} is none of {", ".join(PIPELINE_SOURCES)}'
                                         f'{nearest_word(text, PIPELINE_SOURCES)}')
    return text


def print_plan(spec: PipelineSpec, detailed: bool) -> None:
    """Print the jobs of a pipeline by stage; a detailed plan says when and why each runs or was left out."""
    for stage in spec.stages:
        for job in spec.jobs:
            if job.stage == stage:
                details = plan_details(spec, job) if detailed else ''
                print(f'{stage}: {job.name}{details}')
    left_out = {name: reason for name, reason in spec.decisions.items() if reason.startswith('left out')}
    if detailed:
        for name, reason in left_out.items():
            print(f'-: {name} ({reason})')


def plan_details(spec: PipelineSpec, job: JobSpec) -> str:
    """Return when a job runs, what it needs and which rule let it in."""
    details = job.when
    if job.needs is not None:
        names = ', '.join(need['name'] for need in job.needs)
        details += f', needs {names or "nothing"}'
    if job.trigger is not None:
        details += f', {trigger_text(job.trigger)}'
    return f' ({details}; {spec.decisions[job.name]})'


def trigger_text(trigger: Members) -> str:
    """Say what a bridge starts or mirrors."""
    if trigger['upstream']:
        return f'mirrors the newest pipeline of {trigger["upstream"]}'
    return f'starts {trigger["project"] or "a child pipeline"}'


def submit_command(options: argparse.Namespace) -> int:
    """Create a pipeline of a repository on this machine, and its project if need be."""
    screen = Screen(sys.stdout)
    with open_coordinator(options) as ci:
        path = Path(options.path).resolve()
        if options.uncommitted:
            project, ref, sha = submit_snapshot(ci, path, options)
        else:
            project, ref, sha = submit_commit(ci, path, options)
        pipeline = ci.create_pipeline(project, ref, sha=sha, source=options.source,
                                      variables=given_variables(options),
                                      inputs=command_inputs(options))
        commit = pipeline['sha'][:8]
        screen.line(f'pipeline {pipeline["id"]} of {project["path"]} at {commit}: {pipeline["status"]}')
        if not options.follow:
            return 0
        try:
            return follow(ci, pipeline, screen)
        except KeyboardInterrupt:
            screen.line(f'pipeline {pipeline["id"]} goes on without being followed; cancel it on its page, or with '
                        f'POST /api/v4/projects/{project["id"]}/pipelines/{pipeline["id"]}/cancel')
            return 130


def submit_commit(ci: Coordinator, path: Path, options: argparse.Namespace) -> tuple[Row, str, str | None]:
    """Return the project of a repository and the ref whose newest commit is built."""
    url = 'file://' + urllib.parse.quote(str(path))
    with Repository(url, ci.artifacts.incoming) as repository:
        branch = repository.default_branch()
    project = submitted_project(ci, options.project or project_name(path), url, branch)
    return project, options.ref or branch, None


def submit_snapshot(ci: Coordinator, path: Path, options: argparse.Namespace) -> tuple[Row, str, str | None]:
    """Return the project of a checkout as it stands, a ref and the commit of the snapshot."""
    name = options.project or f'{project_name(path)}-uncommitted'
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    checkout = Checkout(path, ci.data / 'snapshots' / f'{project_name(path)}-{digest}.git')
    ref = options.ref or checkout.branch or checkout.default_branch
    sha, _ = checkout.snapshot(ref, hidden=[ci.db.path, ci.data])
    url = 'file://' + urllib.parse.quote(str(checkout.store.resolve()))
    return submitted_project(ci, name, url, ref), ref, sha


def submitted_project(ci: Coordinator, name: str, url: str, branch: str) -> Row:
    """Return the project of a submitted repository, made if need be; a second one of the same name gets a number."""
    for path in itertools.chain([name], (f'{name}-{number}' for number in itertools.count(2))):
        try:
            project = ci.find_project(path)
        except NotFound:
            return ci.create_project(path, import_url=url, default_branch=branch)
        if project['import_url'] == url:
            return project
    raise AssertionError


def waiting_line(ci: Coordinator, jobs: Iterable[Row]) -> str | None:
    """Say why the oldest of a pipeline's jobs waits when none of them runs; None when there is nothing to say."""
    if any(job['status'] in ALIVE for job in jobs):
        return None
    waiting = [job for job in jobs if job['status'] in ('pending', 'waiting_for_resource', 'scheduled')]
    if not waiting:
        return None
    job = min(waiting, key=lambda job: job['id'])
    return f'{job["name"]} is {job["status"]}: {ci.pending_reason(job)}'


def follow(ci: Coordinator, pipeline: Row, screen: Screen) -> int:
    """Show the traces of a pipeline's jobs as they grow; return 0 unless one of them failed or was canceled.

    What only waits to be started by hand is not waited for.
    """
    followed: dict[int, FollowedJob] = {}
    reason = None
    while not screen.broken:
        status = ci.find_pipeline(pipeline)['status']
        jobs = ci.list_jobs(pipeline=pipeline, limit=MAX_JOBS_SHOWN)
        width = min(NAME_WIDTH, max(len(job['name']) for job in jobs))
        for job in reversed(jobs):
            if job['started_at'] and job['id'] not in followed:
                prefix = f'{shortened(job["name"], width):{width}} │ '
                followed[job['id']] = FollowedJob(ci, job, JobView(screen, prefix))
        for shown in followed.values():
            shown.read()
        before = reason
        reason = waiting_line(ci, jobs)
        if reason and reason != before:
            screen.line(reason)
        if status in (*FINISHED, 'manual'):
            screen.line(f'pipeline {pipeline["id"]}: {status}')
            return int(any(job['status'] in ('failed', 'canceled') and not (job['allow_failure'] or job['retried'])
                           for job in jobs))
        time.sleep(0.2)
    return 128 + signal.SIGPIPE


class Hook:
    """A command that is told of every change, tried again with growing pauses when it fails."""

    PAUSES = (1, 5, 25)     # seconds before each further try

    def __init__(self, ci: Coordinator, base_url: str, command: str) -> None:
        self.ci = ci
        self.base_url = base_url
        self._command = command

    def __call__(self, kind: str, row: Row, before: str) -> None:
        """Run the command with the job or pipeline as JSON on its standard input."""
        message = {'kind': kind, 'status': row['status'], 'before': before}
        if kind == 'job':
            message['job'] = job_entity(row, self)
            message['project'] = row['project_path']
        else:
            message |= self._pipeline_facts(row)
        problem = ''
        for pause in (0, *self.PAUSES):
            time.sleep(pause)
            problem = self._run(json.dumps(message))
            if not problem:
                return
        log.error('the hook failed for %s %s: %s', kind, row['id'], problem)

    def _run(self, message: str) -> str:
        """Run the command once, for HOOK_TIMEOUT seconds at most; return what went wrong, or ''."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
            given.write(message.encode())
            given.seek(0)
            process = subprocess.Popen(self._command, shell=True, stdin=given, stdout=subprocess.DEVNULL, stderr=said,
                                       start_new_session=True)
            try:
                status = process.wait(HOOK_TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with all that it started
                process.wait()
                return f'it had not ended after {HOOK_TIMEOUT} seconds and was killed'
            if status == 0:
                return ''
            said.seek(0)
            words = said.read(MAX_HOOK_OUTPUT).decode('utf-8', 'replace')
        return f'exit status {status}: {words}'

    def _pipeline_facts(self, row: Row) -> JSON:
        """Return a pipeline, its project's path and the status of the last finished pipeline of its ref before it."""
        project = self.ci.find_project(row['project_id'])
        finished, _ = self.ci.list_pipelines(project, ref=row['ref'], scope='finished')
        earlier = [other['status'] for other in finished if other['id'] < row['id']]
        decided = [status for status in earlier if status in ('success', 'failed')]
        return {
            'pipeline': pipeline_entity(self.ci.find_pipeline(row), self, detail=True),
            'project': project['path'],
            'previous_status': decided[0] if decided else None,
        }


def serve_command(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C, then finish what is in flight."""
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(levelname)s %(message)s')
    stopping = stop_signals()
    with open_coordinator(options) as ci, Server(ci, options.host, options.port) as server:
        if options.hook:
            ci.on_change(Hook(ci, server.url, options.hook))
        if options.host not in ('127.0.0.1', '::1', 'localhost'):
            print(f'warning: {options.host} is reachable from other machines, over plain HTTP', file=sys.stderr)
        print(f'minici {__version__} serves {ci.db.path} at {server.url}')
        offer_sign_in(ci, server.url)
        if not ci.settings.no_registration_token:
            print(f'register a runner:\n  gitlab-runner register --non-interactive --url {server.url}/ '
                  f'--registration-token {ci.registration_token} --executor shell')
        sys.stdout.flush()
        while not stopping.wait(1):
            pass
        server.stop(grace=30)
    return 0


def offer_sign_in(ci: Coordinator, url: str) -> None:
    """Show the sign-in link on a terminal; otherwise, where a log may keep it, only name the file that it is in."""
    link = f'{url}/-/sign_in?code={ci.create_sign_in_code()}'
    if sys.stdout.isatty():
        print(f'sign in once:\n  {link}')
        return
    path = ci.data / 'sign-in-link'
    path.unlink(missing_ok=True)
    path.touch(0o600, exist_ok=False)
    path.write_text(f'{link}\n')
    print(f'sign in once with the link in {path}')


def stop_signals() -> threading.Event:
    """Return an event that SIGTERM or Ctrl-C sets; the second signal ends the process at once."""
    stopping = threading.Event()

    def stop(*_: object) -> None:
        if stopping.is_set():
            os._exit(1)
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping
