"""Runners: which there are, what they run, and what waits for them."""

from __future__ import annotations

import json

import bottle

from minici import Call, Row, runner_status

from .frame import page, perform, seen, web
from .sessions import page_form, page_reader

#: Waiting jobs that the page lists.
SHOWN_JOBS = 20


@web('GET', '/-/runners', auth=page_reader)
def runners_route(call: Call) -> bottle.HTTPResponse:
    """Show the runners, what they run, and the queue."""
    now = call.ci.clock()
    queue = call.ci.list_queue(limit=SHOWN_JOBS + 1)
    runners = [(row, json.loads(row['info']), runner_state(row, now)) for row in call.ci.list_runners()]
    return page(
        call, 'runners', 'Runners',
        runners=runners,
        running=call.ci.list_running(),
        queue=queue[:SHOWN_JOBS],
        more=len(queue) > SHOWN_JOBS,
        reasons=call.ci.pending_reasons(queue),
        registration_token=call.ci.registration_token,
    )


def runner_state(row: Row, now: float) -> str:
    """Return the word that stands for a runner's state: ``paused``, ``online``, ``offline``, ..."""
    state = runner_status(row['active'], row['contacted_at'], now)
    return 'paused' if state['paused'] else state['status']


@web('POST', '/-/runners/<runner:runner>/<action>', auth=page_form)
def runner_action_route(call: Call, runner: Row, action: str) -> bottle.HTTPResponse:
    """Pause a runner, let it go on, or remove it."""
    ci = call.ci
    perform(
        action,
        pause=lambda: ci.edit_runner(runner, active=False),
        resume=lambda: ci.edit_runner(runner, active=True),
        remove=lambda: ci.unregister_runner(runner),
    )
    return seen(call, '/-/runners')
