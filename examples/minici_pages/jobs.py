"""Jobs: the page of one, its log, its artifacts, and what can be done with it."""

from __future__ import annotations

import json
import re
import tempfile
from typing import Any

import bottle

from minici import (
    MIB,
    Call,
    InvalidParameter,
    NotFound,
    Row,
    artifacts_response,
    empty_response,
    entry_response,
    file_response,
    log_response,
    status_words,
    stored_spec,
)

from .archives import list_entries
from .board import failure_text, job_actions, job_mark
from .frame import View, page, project_path, seen, web
from .logs import ERROR_LINE, find_lines, text_pattern
from .markup import Markup, clock, escape
from .reports import tests_panel
from .sessions import page_form, page_reader, page_user, root

JOB_PATH = '/<project:project_path>/-/jobs/<job:job>'
#: What a ref is, by the column `tag`.
REF_KINDS = ('Branch', 'Tag')
#: Hits that a search of a log returns at most.
MAX_HITS = 1000


def commit_of(row: Row) -> dict[str, str]:
    """Return the title and author of the commit of a pipeline or job, as far as they are known."""
    known = json.loads(row['commit_info'] or '{}')
    title = known.get('message', '').partition('\n')[0]
    return {'title': title, 'author': known.get('author_name', '')}


@web('GET', JOB_PATH, auth=page_reader)
def job_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Show a job: its log, live, and what is known about it."""
    spec = stored_spec(job)
    shown = dict(job)
    shown['manual_confirmation'] = spec['manual_confirmation']
    variables = dict(spec['variables'])
    given = json.loads(job['pipeline_variables']) + json.loads(job['variables'])
    variables.update((item['key'], None) for item in given)
    if call.actor is None:
        variables = dict.fromkeys(variables)
    pipeline = call.ci.find_pipeline(job['pipeline_id'])
    number, project = job['id'], job['project_path']
    view = View()
    view.job = shown
    view.facts = job_facts(job, spec)
    view.facts['Downstream'] = downstream_link(call, job)
    view.commit = commit_of(job)
    view.runner_info = json.loads(job['runner_info'] or '{}')
    view.artifacts = json.loads(job['artifacts'])
    view.variables = variables.items()
    view.reason = call.ci.pending_reason(job)
    view.failure = failure_text(job)
    view.trace_size = call.ci.traces.size(job['id'])
    view.attempts = call.ci.list_jobs(pipeline=pipeline, name=job['name'], limit=20)
    view.tests = tests_panel(call, job)
    view.job_mark = job_mark
    view.job_actions = job_actions
    shown_status = status_words(job['status'])
    title = f'{shown_status} · {job["name"]} #{number} · {project}'
    return page(call, 'job', title, view, below='Pipelines', status=job_mark(job))


def environment_link(environment: dict[str, Any]) -> str:
    """Return an environment's name, as a link if its address is one of the web without open variables."""
    name = environment.get('name') or ''
    address = environment.get('url') or ''
    if not re.fullmatch(r'(?i)https?://[^\s$]+', address):
        return name
    return Markup(f'<a href="{escape(address)}" rel="noopener noreferrer">{escape(name)}</a>')


def job_facts(job: Row, spec: dict[str, Any]) -> dict[str, str | None]:
    """Return what is known about a job, by the name that the page gives it."""
    facts: dict[str, str | None] = {}
    taken = job['started_at'] or job['finished_at']
    if taken and job['queued_at']:
        facts['Queued for'] = clock(taken - job['queued_at'])
    facts['Stage'] = job['stage']
    if spec['needs'] is not None:
        names = [need['name'] for need in spec['needs']]
        facts['Needs'] = ', '.join(names) or 'nothing'
    kind = REF_KINDS[job['tag']]
    facts[kind] = job['ref']
    if spec['environment']:
        facts['Environment'] = environment_link(spec['environment'])
    if job['coverage'] is not None:
        facts['Coverage'] = f'{job["coverage"]:g} %'
    facts['Started by'] = job['username']
    missing = spec['id_tokens']
    if missing:
        tokens = ', '.join(missing)
        facts['Missing'] = f'{tokens}: minici issues no ID tokens'
    return facts


def downstream_link(call: Call, job: Row) -> str | None:
    """Return a link to the pipeline that a bridge has started, None when there is none."""
    started = call.ci.find_downstream(job)
    if started is None:
        return None
    path = started['project_path']
    number = started['id']
    address = f'{root(call)}/{path}/-/pipelines/{number}'
    name = f'{path} #{number}'
    shown_status = status_words(started['status'])
    return Markup(f'<a href="{escape(address)}">{escape(name)}</a> {shown_status}')


@web('POST', f'{JOB_PATH}/<action>', auth=page_form)
def job_action_route(call: Call, job: Row, action: str) -> bottle.HTTPResponse:
    """Cancel, retry, play or erase a job, or keep its artifacts."""
    ci = call.ci
    match action:
        case 'cancel':
            ci.cancel_job(job)
        case 'retry':
            job = ci.retry_job(job, call.actor)
        case 'play':
            job = ci.play_job(job, call.actor)
        case 'erase':
            ci.erase_job(job)
        case 'keep':
            ci.keep_artifacts(job)
        case _:
            raise NotFound('Action')
    if call.text('back') == 'pipeline':
        return seen(call, f'{project_path(job)}/pipelines/{job["pipeline_id"]}')
    return seen(call, f'{project_path(job)}/jobs/{job["id"]}')


# -- the log

@web('GET', f'{JOB_PATH}/raw', auth=page_reader)
def raw_log_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Send a job's log as it is, or a range of it; an empty text while there is none."""
    try:
        return log_response(call, job)
    except NotFound:
        return empty_response(200, {'Content-Type': 'text/plain; charset=utf-8'})


@web('GET', f'{JOB_PATH}/plain', auth=page_reader)
def plain_log_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Send a job's log without colours and section marks."""
    text = tempfile.SpooledTemporaryFile(MIB, dir=str(call.ci.artifacts.incoming))  # a slow reader holds no thread
    if call.ci.traces.size(job['id']):
        for piece in call.ci.traces.plain(job['id'], call.ci.secrets_of(job)):
            text.write(piece)
    size = text.tell()
    text.seek(0)
    return file_response(call, text, size, content_type='text/plain; charset=utf-8',
                         disposition=f'inline; filename="{job["id"]}.txt"')


@web('GET', f'{JOB_PATH}/lines', auth=page_reader)
def log_lines_route(call: Call, job: Row) -> dict[str, list[tuple[int, int]]]:
    """Find lines of a log: by `number`, by the `offset` of a byte in them, by `search`, or all `errors`."""
    number, offset, search = call.optional_integer('number'), call.optional_integer('offset'), call.text('search')
    pattern = None
    if search:
        pattern = text_pattern(search)
    elif call.flag('errors'):
        pattern = ERROR_LINE
    if pattern is None and number is None and offset is None:
        raise InvalidParameter('number, offset, search, errors are missing, exactly one parameter must be provided')
    if not call.ci.traces.size(job['id']):
        return {'lines': []}
    limit = 1
    if search:
        limit = MAX_HITS
    hidden = call.ci.secrets_of(job)
    found = find_lines(call.ci.traces, job['id'], hidden=hidden, number=number, offset=offset, pattern=pattern,
                       limit=limit)
    return {'lines': found}


# -- artifacts

@web('GET', f'{JOB_PATH}/artifacts/browse', f'{JOB_PATH}/artifacts/browse/<folder:path>', auth=page_reader)
def artifacts_route(call: Call, job: Row, folder: str = '') -> bottle.HTTPResponse:
    """Show a folder of a job's archive."""
    artifact = call.ci.find_artifact(job['id'])
    if folder:
        folder = folder.rstrip('/') + '/'
    entries = list_entries(call.ci.artifacts, artifact['stored_as'], folder)
    title = f'Artifacts · {job["name"]} #{job["id"]}'
    return page(call, 'artifacts', title, below='Pipelines', job=job, folder=folder, artifact=artifact, entries=entries)


@web('GET', f'{JOB_PATH}/artifacts/file/<path:path>', auth=page_user)
def artifact_file_route(call: Call, job: Row, path: str) -> bottle.HTTPResponse:
    """Send one file out of a job's archive."""
    return entry_response(call, job, path)


@web('GET', f'{JOB_PATH}/artifacts/download', auth=page_user)
def artifacts_download_route(call: Call, job: Row) -> bottle.HTTPResponse:
    """Send a job's archive, or the report of a `file_type`."""
    return artifacts_response(call, job, call.text('file_type') or 'archive')
