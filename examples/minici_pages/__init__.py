"""Web pages for minici: what people see in a browser.

An application of the module over its public verbs. minici serves these pages whenever this package is installed beside
it, and works without them. Browsers sign in with a cookie, which opens no route of the API, as the API's tokens open
no page. Everything is rendered here; the script makes logs live and keeps the rest fresh.

    frame       the frame of every page: templates, headers, refusals; `ROUTES`
    sessions    who is looking: cookie, forms, guards
    markup      status marks, moments, durations
    signing_in, pipelines, jobs, runners, projects, tokens, assets      the pages, each with its forms
    board       the jobs of a pipeline: cards, copies grouped, stages
    logs, archives      finding lines of a log, browsing an archive
    templates/*.tpl, static/minici.css, static/minici.js
"""

from typing import NoReturn

from minici import NotFound

from . import assets, jobs, pipelines, projects, runners, schedules, signing_in, tokens  # noqa: F401
from .board import FAILURES
from .frame import ASSETS_VERSION, ROUTES, web
from .logs import ERROR_LINE
from .markup import MARKS
from .sessions import csrf_token, page_reader

__all__ = ['ASSETS_VERSION', 'ERROR_LINE', 'FAILURES', 'MARKS', 'ROUTES', 'csrf_token']


@web('GET', '/-/<rest:path>', '/<project:project_path>/-/<rest:path>', auth=page_reader)
def no_page_route() -> NoReturn:
    """Say that there is no such page: whatever no other route has taken."""
    raise NotFound()
