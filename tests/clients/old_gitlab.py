"""Evaluates expressions with an old python-gitlab: each line of input is a call, each line printed its outcome."""

import json
import sys

import gitlab


def plain(thing):
    """Return what the server said of an object, without what the client adds to it."""
    return thing.attributes


host, token = sys.argv[1:]
gl = gitlab.Gitlab(host, private_token=token)
for line in sys.stdin:
    call = json.loads(line)
    try:
        outcome = {'value': eval(call['expression'], {'gl': gl, **call['names']})}
    except gitlab.GitlabError as error:
        outcome = {'error': f'{error.response_code} {error.error_message}'}
    print(json.dumps(outcome, default=plain), flush=True)
