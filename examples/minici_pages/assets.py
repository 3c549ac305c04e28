"""What the pages refer to: style, script and the icon of the browser's tab."""

from __future__ import annotations

import bottle

from minici import BADGE_COLOURS, Call, public

from .frame import SCRIPT, STYLE, web
from .markup import MARKS


def asset(content: str, content_type: str) -> bottle.HTTPResponse:
    """Return a file that never changes under its address."""
    return bottle.HTTPResponse(content.encode(), 200, {
        'Content-Type': content_type,
        'Cache-Control': 'public, max-age=31536000, immutable',
        'Content-Security-Policy': "default-src 'none'",
    })


@web('GET', '/-/minici.css', auth=public)
def style_route(call: Call) -> bottle.HTTPResponse:
    """Send the style of the pages."""
    return asset(STYLE, 'text/css; charset=utf-8')


@web('GET', '/-/minici.js', auth=public)
def script_route(call: Call) -> bottle.HTTPResponse:
    """Send the script of the pages."""
    return asset(SCRIPT, 'text/javascript; charset=utf-8')


@web('GET', '/-/favicon/<status>.svg', '/favicon.ico', auth=public)
def favicon_route(call: Call, status: str = '') -> bottle.HTTPResponse:
    """Draw a status for the browser's tab."""
    if status not in MARKS:
        status = 'created'
    colour = BADGE_COLOURS.get(status, '#868f99')
    if status == 'warning':
        colour = BADGE_COLOURS['pending']
    return asset(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
                 f'<circle cx="8" cy="8" r="7.5" fill="{colour}"/><path d="{MARKS[status]}" fill="none" stroke="#fff" '
                 'stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round"/></svg>', 'image/svg+xml')
