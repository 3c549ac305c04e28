"""The frame that all pages share: templates, headers, refusals, and how a page declares its route."""

from __future__ import annotations

import functools
import hashlib
import shlex
import types
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

import bottle

from minici import (
    Call,
    CIError,
    Route,
    Row,
    Unauthorized,
    empty_response,
    error_response,
    is_local,
    page_link,
    route,
    status_words,
)

from . import markup
from .sessions import csrf_token, is_owner, root

HERE = Path(__file__).parent
STYLE = (HERE / 'static' / 'minici.css').read_text(encoding='utf-8')
SCRIPT = (HERE / 'static' / 'minici.js').read_text(encoding='utf-8')
#: Part of the addresses of style and script, so that browsers may keep both for ever.
ASSETS_VERSION = hashlib.sha256((STYLE + SCRIPT).encode()).hexdigest()[:12]
PAGE_HEADERS = {
    'Content-Type': 'text/html; charset=utf-8',
    'Cache-Control': 'private, no-cache',
    'Referrer-Policy': 'same-origin',
    'X-Frame-Options': 'DENY',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Content-Security-Policy': "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
                               "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}
#: The pages that show tokens or values of variables: no browser keeps them.
SECRET_PAGES = ('project', 'runners', 'tokens')
#: What an error page says when the refusal itself names nothing but its status.
EXPLANATIONS = {
    404: 'There is nothing at this address; it may have been removed.',
    500: 'Something broke while this page was made. It is not your fault; the log of the server has the details.',
    503: 'The server is busy or in trouble. Try again in a moment; if this stays, its log says why.',
}
#: The names that forms give to fields of the API.
LABELS = {
    'content': 'Pipeline file',
    'cron': 'When',
    'cron_timezone': 'Time zone',
    'default_branch': 'Default branch',
    'description': 'Description',
    'import_url': 'Repository',
    'inputs': 'Input',
    'key': 'Name',
    'path': 'Path',
    'ref': 'Branch or tag',
    'sha': 'Commit',
    'value': 'Value',
    'variables': 'Variables',
}
#: The pages' own routes, in the order of their declaration.
ROUTES: list[Route] = []


# -- templates

class Template(bottle.SimpleTemplate):
    """A template whose values are escaped by their type: markup stays, everything else is text."""

    def prepare(self, **options: object) -> None:
        """Prepare as bottle does, with our way to escape."""
        super().prepare(**options)
        self._escape = markup.escape
        self.defaults = HELPERS


@functools.cache
def template(name: str) -> Template:
    """Return the template of that name, compiled once."""
    return Template(name=name, lookup=[str(HERE / 'templates')])


def project_path(row: Row) -> str:
    """Return the path below which the pages about a project's pipeline or job stand."""
    return f'/{row["project_path"]}/-'


def project_path_of(project: Row) -> str:
    """Return the path below which the pages about a project stand."""
    return f'/{project["path"]}/-'


#: What every template may use, by name.
HELPERS: dict[str, object] = {helper.__name__: helper for helper in (
    markup.about, markup.clock, markup.mark, markup.moment, markup.size_text, markup.span, markup.tag_marks,
    markup.trend, markup.trend_text, page_link, project_path)}
HELPERS.update(quote=urllib.parse.quote, version=ASSETS_VERSION, word=status_words)


# -- pages

class View(types.SimpleNamespace):
    """The values that a template sees, by name."""


def page(call: Call, name: str, title: str, view: View | None = None, /, *, below: str = '', status: str = '',
         refusal: CIError | None = None, **values: object) -> bottle.HTTPResponse:
    """Return a page: the template `name`, which sees `view` and `values`, within the frame that all pages share.

    `below` is the item of the navigation that the page belongs to, if that is not its title. The browser's tab shows
    `status`. `refusal` says what was wrong with the form that came. A page that has not changed is answered with 304.
    """
    names = common_names(call)
    names.update(title=title, below=below or title, status=status)
    names['problem'] = complaint(refusal) if refusal else ''
    names.update(vars(view or View()))
    names.update(values)
    names['title'] = for_eyes(call, title)
    content = markup.Markup(for_eyes(call, template(name).render(names)))
    body = template('layout').render(names, content=content).encode()
    response = page_response(call, body, refusal)
    if name in SECRET_PAGES:
        response.headers['Cache-Control'] = 'no-store'
    return response


def for_eyes(call: Call, text: str) -> str:
    """Return a part of a page as whoever asks for it may see it: visitors see no masked value, whatever it got into."""
    if call.actor is not None:
        return text
    values = sorted(call.ci.masked_values(), key=len, reverse=True)
    for value in values:
        for written in value, urllib.parse.quote(value), markup.escape(value):
            text = text.replace(written, '*' * len(value))
    return text


def common_names(call: Call) -> dict[str, object]:
    """Return what every template sees of a call."""
    user = call.actor
    return {
        'call': call,
        'root': root(call),
        'user': user,
        'owner': is_owner(user),
        'csrf': csrf_token(call) if user else '',
        'public': call.ci.settings.public,
        'now': call.ci.clock(),
        'database': database_name(call),
    }


def database_name(call: Call) -> str:
    """Return the path of the database for a command line, to whoever sits at this machine; others get a word."""
    in_process = not call.environ.get('REMOTE_ADDR')
    if in_process or is_local(call):
        return shlex.quote(str(call.ci.db.path))
    return 'DATABASE'


def page_response(call: Call, body: bytes, refusal: CIError | None) -> bottle.HTTPResponse:
    """Return a page as an answer: 304 when the browser has it, the refusal's status when there is one."""
    headers = dict(PAGE_HEADERS)
    if refusal:
        headers.update(refusal.headers)
        return bottle.HTTPResponse(body, refusal.status, headers)
    digest = hashlib.sha256(body).hexdigest()[:32]
    headers['ETag'] = f'"{digest}"'
    if call.header('If-None-Match') == headers['ETag']:
        return empty_response(304, headers)
    return bottle.HTTPResponse(body, 200, headers)


def complaint(refusal: CIError) -> str:
    """Return what was wrong, a line for each fault: a field's name stands before its fault, the status is left out."""
    if isinstance(refusal.message, str):
        return refusal.message.removeprefix(f'{refusal.status} {refusal.phrase} - ')
    lines = []
    for name, faults in refusal.message.items():
        prefix = '' if name == 'base' else f'{LABELS.get(name, name)} '
        lines += [prefix + fault for fault in faults]
    return '\n'.join(lines)


def page_refusal(call: Call, error: CIError) -> bottle.HTTPResponse:
    """Show a refusal to a person, who may have to sign in first; anything but a browser gets JSON."""
    if 'text/html' not in (call.header('Accept') or ''):
        return error_response(error)
    if isinstance(error, Unauthorized):
        return sign_in_first(call)
    title = f'{error.status} {error.phrase}'
    explanation = complaint(error)
    if explanation == title:
        explanation = EXPLANATIONS.get(error.status, title)
    return page(call, 'error', title, refusal=error, explanation=explanation)


def sign_in_first(call: Call) -> bottle.HTTPResponse:
    """Send a browser to the page for signing in, which leads back to a page but not to a form."""
    if call.method != 'GET':
        return seen(call, '/-/sign_in')
    here = root(call) + call.environ['minici.path']
    query = call.environ.get('QUERY_STRING')
    if query:
        here += f'?{query}'
    return seen(call, f'/-/sign_in?next={urllib.parse.quote(here, safe="")}')


def seen(call: Call, path: str, headers: Mapping[str, str] | None = None) -> bottle.HTTPResponse:
    """Send the browser on to a page of ours, as the answer to a form."""
    return empty_response(303, {'Location': root(call) + path, **(headers or {})})


#: Declares the handler of a page or form: as `minici.route` does, with refusals that people can read.
web = functools.partial(route, refuse=page_refusal, table=ROUTES)
