"""Runners: which there are, what they run, and what waits for them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import bottle

from minici import Call, NotFound, Row, runner_status

from .frame import View, page, seen, web
from .sessions import page_form, page_reader

#: Waiting jobs that the page lists.
SHOWN_JOBS = 20
#: Waiting jobs that the page of a runner looks at.
MAX_QUEUE = 200


@web('GET', '/-/runners', auth=page_reader)
def runners_route(call: Call) -> bottle.HTTPResponse:
    """Show the runners, what they run, and the queue."""
    now = call.ci.clock()
    queue = call.ci.list_queue(limit=SHOWN_JOBS + 1)
    runners = []
    for row in call.ci.list_runners():
        info = json.loads(row['info'])
        runners.append((row, info, runner_state(row, now)))
    view = View()
    view.runners = runners
    view.running = call.ci.list_running()
    view.queue = queue[:SHOWN_JOBS]
    view.more = len(queue) > SHOWN_JOBS
    view.reasons = call.ci.pending_reasons(queue)
    view.registration_token = call.ci.registration_token
    return page(call, 'runners', 'Runners', view)


def runner_state(row: Row, now: float) -> str:
    """Return the word that stands for a runner's state: ``paused``, ``online``, ``offline``, ..."""
    state = runner_status(row['active'], row['contacted_at'], now)
    if state['paused']:
        return 'paused'
    return state['status']


@web('GET', '/-/runners/<runner:runner>', auth=page_reader)
def runner_route(call: Call, runner: Row) -> bottle.HTTPResponse:
    """Show a runner: what it runs, which jobs of the queue it could take, and why not the others."""
    queue = call.ci.list_queue(limit=MAX_QUEUE)
    number = runner['id']
    running = [job for job in call.ci.list_running() if job['runner_id'] == number]
    fit, unfit = sort_queue(call, runner, queue)
    title = runner_title(runner)
    view = View()
    view.runner = runner
    view.heading = title
    view.info = json.loads(runner['info'])
    view.state = runner_state(runner, call.ci.clock())
    view.managers = call.ci.list_managers(runner)
    view.running = running
    view.fit = fit
    view.unfit = unfit
    view.shown = SHOWN_JOBS
    view.limit = MAX_QUEUE if len(queue) == MAX_QUEUE else None
    return page(call, 'runner', f'{title} · Runners', view, below='Runners')


def runner_title(runner: Row) -> str:
    """Return a runner's number and name."""
    info = json.loads(runner['info'])
    name = runner['description'] or info.get('name') or 'runner'
    return f'#{runner["id"]} {name}'


def sort_queue(call: Call, runner: Row, queue: Sequence[Row]) -> tuple[list[Row], dict[str, list[Row]]]:
    """Return the jobs that a runner could take, and by reason those that it could not."""
    fit: list[Row] = []
    unfit: dict[str, list[Row]] = {}
    for job in queue:
        reason = call.ci.unfit_reason(runner, job)
        if reason is None:
            fit.append(job)
        else:
            unfit.setdefault(reason, []).append(job)
    return fit, unfit


@web('POST', '/-/runners/<runner:runner>/<action>', auth=page_form)
def runner_action_route(call: Call, runner: Row, action: str) -> bottle.HTTPResponse:
    """Pause a runner, let it go on, or remove it."""
    ci = call.ci
    match action:
        case 'pause':
            ci.edit_runner(runner, active=False)
        case 'resume':
            ci.edit_runner(runner, active=True)
        case 'remove':
            ci.unregister_runner(runner)
        case _:
            raise NotFound('Action')
    if call.text('back') == 'runner' and action != 'remove':
        return seen(call, f'/-/runners/{runner["id"]}')
    return seen(call, '/-/runners')
