"""Signing in and out."""

from __future__ import annotations

import re

import bottle

from minici import SIGNED_IN_FOR, Call, CIError, Forbidden

from .frame import page, seen, web
from .sessions import check_csrf, root, session_cookie, session_header, visitor


@web('GET', '/-/sign_in', auth=visitor)
def sign_in_page_route(call: Call, refusal: CIError | None = None) -> bottle.HTTPResponse:
    """Ask for a private token, or take the code of the sign-in link."""
    code = '' if refusal else call.text('code')
    return page(call, 'sign_in', 'Sign in', refusal=refusal, code=code)


@web('POST', '/-/sign_in', auth=visitor)
def sign_in_route(call: Call) -> bottle.HTTPResponse:
    """Sign a browser in with the code of the sign-in link or a private token."""
    code = call.text('code')
    try:
        session = call.ci.sign_in(code) if code else call.ci.sign_in_with(call.text('token').strip())
    except Forbidden as refusal:
        return sign_in_page_route(call, refusal)
    return seen(call, page_after_signing_in(call), session_header(call, session, SIGNED_IN_FOR))


def page_after_signing_in(call: Call) -> str:
    """Return the page that `next` names, or the first one when `next` would lead away from our pages."""
    following = call.text('next')
    mounted = root(call)
    path = following.partition('?')[0]
    ours = re.fullmatch(r'/(?![/\\])[\x21-\x7e]*', following) and f'{path}/'.startswith(f'{mounted}/')
    if not ours or re.search(r'/(\.|%2e){2}', path, re.I):
        return '/'
    return following[len(mounted):]


@web('POST', '/-/sign_out', auth=visitor)
def sign_out_route(call: Call) -> bottle.HTTPResponse:
    """End a browser's session."""
    if call.actor is not None:
        check_csrf(call)
        call.ci.sign_out(session_cookie(call))
    headers = session_header(call, '', 0)
    headers['Clear-Site-Data'] = '"cache"'
    return seen(call, '/-/sign_in', headers)
