"""Private tokens: which there are, a new one, and revoking one."""

from __future__ import annotations

import bottle

from minici import TOKEN_LIFETIME, Call, same_secret

from .frame import page, seen, web
from .sessions import page_form, page_owner


@web('GET', '/-/tokens', auth=page_owner)
def tokens_route(call: Call, fresh: str = '') -> bottle.HTTPResponse:
    """Show which private tokens there are."""
    tokens = call.ci.list_private_tokens()
    return page(call, 'tokens', 'Tokens', tokens=tokens, fresh=fresh, same_secret=same_secret)


@web('POST', '/-/tokens', auth=page_form)
def change_tokens_route(call: Call) -> bottle.HTTPResponse:
    """Create a private token and show it this once, or revoke one."""
    if call.has('revoke'):
        call.ci.revoke_private_token(call.text('revoke'))
        return seen(call, '/-/tokens')
    description = call.text('description')[:200]
    token = call.ci.create_private_token(call.actor['username'], call.text('scope') or 'api', description=description,
                                         lifetime=TOKEN_LIFETIME)
    return tokens_route(call, token)
