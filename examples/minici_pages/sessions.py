"""Who is looking at the pages: the browser's cookie, its forms, and the guards of the routes."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import urllib.parse

from minici import Call, Forbidden, Misdirected, Row, Unauthorized, is_for_everybody, same_secret


def root(call: Call) -> str:
    """Return the path that this application is mounted at, without a trailing slash."""
    return urllib.parse.urlsplit(call.base_url).path


def check_host(call: Call) -> None:
    """Raise Misdirected for a host name that is not ours: a hostile site can point its own name here."""
    host = re.sub(':[0-9]*$', '', call.environ.get('HTTP_HOST', '')).rstrip('.').lower()
    ours = urllib.parse.urlsplit(call.ci.settings.external_url).hostname
    if host == ours or re.fullmatch(r'([a-z0-9_-]+\.)*localhost', host):
        return
    try:
        ipaddress.ip_address(host.strip('[]'))
    except ValueError:
        raise Misdirected('pages answer to IP addresses, localhost and the host of --external-url; '
                          'start minici with --external-url and this address') from None


def visitor(call: Call) -> Row | None:
    """Return the user whom the browser's cookie signs in, or None; raise Misdirected for a foreign host name."""
    check_host(call)
    if call.method == 'POST':
        check_origin(call)
    cookie = session_cookie(call)
    return call.ci.find_session(cookie) if cookie else None


def check_origin(call: Call) -> None:
    """Raise Forbidden for a form that a page of another site, or of another port, has sent."""
    origin = call.header('Origin')
    ours = (urllib.parse.urlsplit(call.base_url).netloc, call.header('Host'))
    elsewhere = origin is not None and urllib.parse.urlsplit(origin).netloc not in ours
    if elsewhere or call.header('Sec-Fetch-Site') not in (None, 'same-origin', 'none'):
        raise Forbidden('another site sent this form')


def session_cookie(call: Call) -> str:
    """Return the session in the browser's cookie, '' without one."""
    wanted = cookie_name(call)
    pairs = (pair.strip().partition('=') for pair in (call.header('Cookie') or '').split(';'))
    return next((value for name, _, value in pairs if name == wanted), '')


def cookie_name(call: Call) -> str:
    """Return a name of this installation's own: browsers share cookies among all ports of a host."""
    return f'minici_{call.ci.instance}'


def session_header(call: Call, session: str, lifetime: int) -> dict[str, str]:
    """Return the header that makes a browser keep `session` for `lifetime` seconds, hidden from scripts and sites."""
    path = root(call) or '/'
    cookie = f'{cookie_name(call)}={session}; Path={path}; Max-Age={lifetime}; HttpOnly; SameSite=Strict'
    if call.base_url.startswith('https:'):
        cookie += '; Secure'
    return {'Set-Cookie': cookie}


def csrf_token(call: Call) -> str:
    """Return the secret that this browser's forms must carry, so that no other site can send one."""
    key = session_cookie(call).encode('utf-8', 'surrogatepass')
    return hmac.new(key, b'csrf', hashlib.sha256).hexdigest()


def check_csrf(call: Call) -> None:
    """Raise Forbidden unless this form was made for this browser."""
    if not same_secret(call.text('csrf'), csrf_token(call)):
        raise Forbidden('the form is out of date: go back, load the page again and repeat')


def page_user(call: Call) -> Row:
    """Let in users who are signed in."""
    user = visitor(call)
    if user is None:
        raise Unauthorized('sign in first')
    return user


def page_reader(call: Call) -> Row | None:
    """Let in users who are signed in; with --public, everybody."""
    return visitor(call) if is_for_everybody(call) else page_user(call)


def is_owner(user: Row | None) -> bool:
    """Tell whether a user may change things, which needs the scope `api`."""
    return user is not None and user['scope'] == 'api'


def page_owner(call: Call) -> Row:
    """Let in users who are signed in with a token of scope `api`."""
    user = page_user(call)
    if not is_owner(user):
        raise Forbidden('you are signed in with a token of scope read_api, this needs api')
    return user


def page_form(call: Call) -> Row:
    """Let in a form of ours, made for this browser, from a user who may change things."""
    user = page_owner(call)
    call.trusted = True     # the session is good; the token against forgery may stand anywhere in the form
    check_csrf(call)
    return user
