"""Schedules: pipelines by the clock."""

from __future__ import annotations

import bottle

from minici import BadRequest, Call, CIError, NotFound, Row

from .frame import page, project_path_of, seen, web
from .sessions import page_form, page_owner

SCHEDULES = '/<project:project_path>/-/pipeline_schedules'


@web('GET', SCHEDULES, auth=page_owner)
def schedules_route(call: Call, project: Row, refusal: CIError | None = None) -> bottle.HTTPResponse:
    """Show the schedules of a project, and the form for a new one."""
    schedules = call.ci.list_schedules(project)
    return page(call, 'schedules', f'Schedules · {project["path"]}', below='Projects', refusal=refusal,
                project=project, schedules=schedules)


@web('POST', SCHEDULES, auth=page_form)
def add_schedule_route(call: Call, project: Row) -> bottle.HTTPResponse:
    """Create a schedule from the form, or say what is wrong with it."""
    try:
        call.ci.create_schedule(
            project,
            call.actor,
            description=call.text('description'),
            ref=call.text('ref') or project['default_branch'],
            cron=call.text('cron'),
            cron_timezone=call.text('cron_timezone') or 'UTC',
        )
    except BadRequest as refusal:
        return schedules_route(call, project, refusal)
    return seen(call, f'{project_path_of(project)}/pipeline_schedules')


@web('POST', f'{SCHEDULES}/<schedule:schedule>/<action>', auth=page_form)
def schedule_action_route(call: Call, project: Row, schedule: Row, action: str) -> bottle.HTTPResponse:
    """Run the pipeline of a schedule now, pause the schedule, resume or remove it."""
    ci, here = call.ci, project_path_of(project)
    match action:
        case 'play':
            pipeline = ci.play_schedule(schedule, call.actor)
            return seen(call, f'{here}/pipelines/{pipeline["id"]}')
        case 'pause':
            ci.edit_schedule(schedule, active=False)
        case 'resume':
            ci.edit_schedule(schedule, active=True)
        case 'remove':
            ci.delete_schedule(schedule)
        case _:
            raise NotFound('Action')
    return seen(call, f'{here}/pipeline_schedules')
