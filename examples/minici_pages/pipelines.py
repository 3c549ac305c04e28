"""Pipelines: the list of them, the form for a new one, and the page of one."""

from __future__ import annotations

import contextlib
import json
import urllib.parse
from collections.abc import Sequence

import bottle

from minici import (
    BadRequest,
    Call,
    Choices,
    CIError,
    Foreign,
    NotFound,
    Row,
    page_of,
    show_badge_route,
    show_coverage_badge_route,
    status_words,
)

from .board import KINDS, draw_board
from .frame import View, complaint, page, project_path, seen, web
from .jobs import commit_of
from .reports import summary
from .sessions import is_owner, page_form, page_owner, page_reader, root

#: The statuses that the list can be filtered by, most wanted first.
FILTERED_STATUSES = ('running', 'pending', 'success', 'failed', 'canceled', 'skipped', 'manual', 'scheduled', 'created')


@web('GET', '/', auth=page_reader)
def pipelines_route(call: Call) -> bottle.HTTPResponse:
    """Show the pipelines, newest first; filters are project, ref, status and sha."""
    wanted = {name: call.text(name) for name in ('project', 'ref', 'status', 'sha')}
    number, per_page = page_of(call)
    first = (number - 1) * per_page
    project = None
    if wanted['project']:
        project = call.ci.find_project(wanted['project'])
    pipelines, total = call.ci.list_pipelines(
        project, limit=per_page, offset=first, count_to=first + per_page + 1,
        ref=wanted['ref'] or None, status=wanted['status'] or None, sha=wanted['sha'] or None)
    projects = call.ci.list_projects(limit=100)[0]
    if project is not None:
        wanted['project'] = project['path']
        projects = [project, *(row for row in projects if row['id'] != project['id'])]
    newest = pipelines[0]['status'] if pipelines and number == 1 else ''
    view = View()
    view.wanted = wanted
    view.pipelines = pipelines
    view.commit_of = commit_of
    view.stages = call.ci.list_stages(pipelines)
    view.statuses = FILTERED_STATUSES
    view.number = number
    view.more = total > first + per_page
    view.projects = projects
    view.runners = call.ci.list_runners()
    return page(call, 'pipelines', 'Pipelines', view, status=newest)


@web('GET', '/-/pipelines/new', auth=page_owner)
def new_pipeline_page_route(call: Call, refusal: CIError | None = None) -> bottle.HTTPResponse:
    """Show the form for a new pipeline: the projects, or the branches, variables and inputs of one."""
    projects = call.ci.list_projects(limit=1000)[0]
    project = chosen_project(call, projects)
    ref = call.text('ref')
    choices, unread = Choices([], [], []), ''
    if project is not None:
        ref = ref or project['default_branch']
        try:
            choices = call.ci.list_choices(project, ref)
        except CIError as error:
            unread = complaint(error)
    view = View()
    view.projects = projects
    view.project = project
    view.ref = ref
    view.choices = choices
    view.unread = '' if refusal else unread
    view.given = call.text
    view.own_file = call.has('sha') or call.has('content')
    if project is not None and not project['import_url']:
        view.own_file = True
    return page(call, 'new_pipeline', 'New pipeline', view, below='Pipelines', refusal=refusal)


def chosen_project(call: Call, projects: Sequence[Row]) -> Row | None:
    """Return the project that the form is about, or None while there are several to choose from."""
    if call.has('project'):
        with contextlib.suppress(NotFound):
            return call.ci.find_project(call.text('project'))
    return projects[0] if len(projects) == 1 else None


@web('POST', '/-/pipelines/new', auth=page_form)
def new_pipeline_route(call: Call) -> bottle.HTTPResponse:
    """Create a pipeline from the form, or say what is wrong with it."""
    try:
        project = call.ci.find_project(call.text('project'))
        pipeline = call.ci.create_pipeline(
            project,
            call.text('ref') or project['default_branch'],
            sha=call.text('sha').strip() or None,
            content=Foreign(call.text('content')) if call.text('content') else None,
            source='web',
            user=call.actor,
            variables=given_variables(call),
            inputs=given_inputs(call),
        )
    except (BadRequest, NotFound) as refusal:
        return new_pipeline_page_route(call, refusal)
    return seen(call, f'{project_path(pipeline)}/pipelines/{pipeline["id"]}')


def given_variables(call: Call) -> list[dict[str, str]]:
    """Return the variables of the form: those of the file with what was chosen, and others, a line NAME=value each."""
    chosen = call.mapping('variable')
    variables = [{'key': name, 'value': str(value)} for name, value in chosen.items()]
    for line in call.text('variables').splitlines():
        name, equals, value = line.strip().partition('=')
        if equals:
            variables.append({'key': name, 'value': value})
        elif name:
            raise BadRequest({'variables': ['must be a line NAME=value for each']})
    return variables


def given_inputs(call: Call) -> dict[str, object]:
    """Return the inputs of the form; what is no text is written as JSON. Raises BadRequest if it is not."""
    inputs: dict[str, object] = {}
    for name, text in call.mapping('input').items():
        kind = call.mapping('kind').get(name, 'string')
        inputs[name] = text
        if kind != 'string':
            try:
                inputs[name] = json.loads(text)
            except ValueError:
                raise BadRequest({'inputs': [f'{name} must be a {kind}']}) from None
    return inputs


@web('GET', '/<project:project_path>/-/pipelines/<pipeline:pipeline>', auth=page_reader)
def pipeline_route(call: Call, pipeline: Row) -> bottle.HTTPResponse:
    """Show a pipeline: its jobs by stage, those of a `status` or `name` alone if asked for, and why jobs wait."""
    wanted = call.choice('status', ('', *KINDS), '')
    name = call.text('name') or ''
    jobs = tuple(call.ci.list_cards(pipeline))
    reasons = tuple(call.ci.pending_reasons(jobs).values())
    base = root(call) + project_path(pipeline)
    here = f'{base}/pipelines/{pipeline["id"]}'
    board = draw_board(jobs, reasons, here, root(call), is_owner(call.actor), wanted, name)
    shown_status = status_words(pipeline['status'])
    title = f'{shown_status} · #{pipeline["id"]} · {pipeline["ref"]} · {pipeline["project_path"]}'
    view = View()
    view.pipeline = pipeline
    view.commit = commit_of(pipeline)
    view.board = board
    view.tests = summary(call.ci.list_test_reports(pipeline))
    view.wanted = wanted
    view.name = name
    return page(call, 'pipeline', title, view, below='Pipelines', status=pipeline['status'])


@web('POST', '/<project:project_path>/-/pipelines/<pipeline:pipeline>/<action>', auth=page_form)
def pipeline_action_route(call: Call, pipeline: Row, action: str) -> bottle.HTTPResponse:
    """Cancel or retry a pipeline."""
    match action:
        case 'cancel':
            call.ci.cancel_pipeline(pipeline)
        case 'retry':
            call.ci.retry_pipeline(pipeline, call.actor)
        case _:
            raise NotFound('Action')
    return seen(call, f'{project_path(pipeline)}/pipelines/{pipeline["id"]}')


@web('GET', '/<project:project_path>/pipelines/<pipeline:pipeline>', auth=page_reader)
def old_pipeline_address_route(call: Call, pipeline: Row) -> bottle.HTTPResponse:
    """Lead to a pipeline from the address that GitLab gave it before 12.0."""
    return seen(call, f'{project_path(pipeline)}/pipelines/{pipeline["id"]}')


@web('GET', '/<project:project_path>/-/pipelines', '/<project:project_path>/-/jobs',
     '/<project:project_path>/-/commit/<sha>', auth=page_reader)
def project_pipelines_route(call: Call, project: Row, sha: str = '') -> bottle.HTTPResponse:
    """Lead to the pipelines of a project, or of one of its commits."""
    filters = {'project': project['path']}
    if sha:
        filters['sha'] = sha
    return seen(call, '/?' + urllib.parse.urlencode(filters, safe='/'))


@web('GET', '/<project:project_path>/badges/<ref:path>/pipeline.svg',
     '/<project:project_path>/-/badges/<ref:path>/pipeline.svg', auth=page_reader)
def badge_route(call: Call, project: Row, ref: str) -> bottle.HTTPResponse:
    """Draw the badge of a ref at the address that a README on GitLab has for it."""
    return show_badge_route(call, project, ref)


@web('GET', '/<project:project_path>/badges/<ref:path>/coverage.svg',
     '/<project:project_path>/-/badges/<ref:path>/coverage.svg', auth=page_reader)
def coverage_badge_route(call: Call, project: Row, ref: str) -> bottle.HTTPResponse:
    """Draw the coverage badge of a ref at the address that a README on GitLab has for it."""
    return show_coverage_badge_route(call, project, ref)
