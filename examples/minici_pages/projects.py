"""Projects: the list of them and the page of one, with its variables and triggers."""

from __future__ import annotations

import urllib.parse

import bottle

from minici import (
    BadRequest,
    Call,
    CIError,
    Row,
    page_of,
    redacted_url,
)

from .frame import View, page, seen, web
from .jobs import commit_of
from .sessions import page_form, page_reader

#: Pipelines that the line about a branch goes back.
HISTORY = 40


@web('GET', '/-/projects', auth=page_reader)
def projects_route(call: Call, refusal: CIError | None = None) -> bottle.HTTPResponse:
    """Show the projects."""
    number, per_page = page_of(call)
    search = call.text('search')
    rows, total = call.ci.list_projects(search=search, limit=per_page, offset=(number - 1) * per_page)
    view = View()
    view.projects = rows
    view.search = search
    view.newest = call.ci.newest_pipelines(rows)
    view.number = number
    view.more = total > number * per_page
    return page(call, 'projects', 'Projects', view, refusal=refusal)


@web('POST', '/-/projects', auth=page_form)
def add_project_route(call: Call) -> bottle.HTTPResponse:
    """Create a project from the form, or say what is wrong with it."""
    try:
        project = call.ci.create_project(
            call.text('path').strip(),
            import_url=call.text('import_url').strip() or None,
            default_branch=call.text('default_branch') or 'main',
        )
    except BadRequest as refusal:
        return projects_route(call, refusal)
    return seen(call, f'/{project["path"]}')


@web('GET', '/<project:project_path>', auth=page_reader)
def project_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """Show a project: its newest pipelines, badge, variables, triggers and tokens."""
    pipelines, _ = call.ci.list_pipelines(project, limit=5, count_to=1)
    view = View()
    view.project = project
    view.address = redacted_url(project['import_url'])
    if view.address and call.actor is None:
        view.address = 'from a repository'      # whose host is nobody else's business
    view.pipelines = pipelines
    view.commit_of = commit_of
    view.stages = call.ci.list_stages(pipelines)
    view.variables = call.ci.list_variables(project)
    view.triggers = call.ci.list_triggers(project)
    view.history = branch_history(call, project)
    view.badge = badge_url(call, project, 'pipeline')
    view.coverage_badge = badge_url(call, project, 'coverage')
    status = ''
    if pipelines:
        status = pipelines[0]['status']
    return page(call, 'project', project['path'], view, below='Projects', status=status)


def branch_history(call: Call, project: Row) -> list[Row]:
    """Return the last finished pipelines of a project's default branch, newest first."""
    return call.ci.list_pipelines(
        project, ref=project['default_branch'], scope='finished', limit=HISTORY, count_to=1)[0]


def badge_url(call: Call, project: Row, kind: str) -> str:
    """Return the address of a badge (`pipeline` or `coverage`) of a project's default branch."""
    path = urllib.parse.quote(project['path'], safe='')
    branch = urllib.parse.quote(project['default_branch'])
    return f'{call.base_url}/api/v4/projects/{path}/badges/{branch}/{kind}.svg'


@web('POST', '/<project:project_path>/-/variables', auth=page_form)
def variables_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """Set a variable of a project, or remove it."""
    if call.has('remove'):
        call.ci.delete_variable(project, call.text('remove'))
    else:
        call.ci.set_variable(
            project,
            call.text('key'),
            call.text('value'),
            variable_type=call.text('variable_type') or 'env_var',
            masked=call.flag('masked'),
            protected=call.flag('protected'),
        )
    return seen(call, f'/{project["path"]}#variables')


@web('POST', '/<project:project_path>/-/triggers', auth=page_form)
def triggers_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """Create a trigger token of a project, or remove one."""
    if call.has('remove'):
        trigger = call.ci.find_trigger(project, call.integer('remove'))
        call.ci.edit_trigger(trigger, None)
    else:
        call.ci.create_trigger(project, call.actor, call.text('description'))
    return seen(call, f'/{project["path"]}#triggers')
