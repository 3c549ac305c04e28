"""Published clients in processes of their own: of another language, or of a version that cannot stand beside ours."""

import json
import subprocess


class ClientError(Exception):
    """What a client says when it was refused: the status and the server's words."""


class Elsewhere:
    """A client that evaluates expressions; use it as a context manager.

    `command` starts it; it gets the address of the server and a private token.
    """

    def __init__(self, command, url, token):
        self.process = subprocess.Popen([*map(str, command), url, token], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        with self.process:
            self.process.stdin.close()

    def __call__(self, expression, **names):
        """Return the value of an expression in the client's language, in which `names` are known."""
        print(json.dumps({'expression': expression, 'names': names}), file=self.process.stdin, flush=True)
        outcome = json.loads(self.process.stdout.readline())
        if 'error' in outcome:
            raise ClientError(outcome['error'])
        return outcome['value']
