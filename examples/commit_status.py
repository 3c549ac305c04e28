#!/usr/bin/env python3
"""Tell a forge what becomes of its commits: a status for each pipeline, or for each job.

    minici --hook 'python commit_status.py gitea https://git.example.org --token-file /etc/minici/token'

The first argument is `gitea`, `forgejo`, `github` or `gitlab`, the second the forge's address (for GitHub itself
https://api.github.com). Projects of minici go by the same path at the forge, unless `--repository OWNER/NAME` says
otherwise. The hook's standard input is described in notify.sh. When the forge cannot be reached the exit status is
1, and minici runs the hook again a few times. Needs nothing but Python.
"""

import argparse
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

FORGES = ('gitea', 'forgejo', 'github', 'gitlab')
# What minici's statuses are called at each forge; those that are left out are not told.
GITHUB = {'pending': 'pending', 'running': 'pending', 'success': 'success', 'failed': 'failure', 'canceled': 'error',
          'manual': 'pending', 'skipped': 'success', 'waiting_for_resource': 'pending', 'scheduled': 'pending'}
GITLAB = {'pending': 'pending', 'running': 'running', 'success': 'success', 'failed': 'failed', 'canceled': 'canceled',
          'skipped': 'skipped', 'waiting_for_resource': 'pending', 'scheduled': 'pending'}
WORDS = {'success': 'passed', 'manual': 'waits to be started by hand', 'waiting_for_resource': 'pending',
         'scheduled': 'delayed'}


def read_event(told, per):
    """Return the sha, ref, status, name and address that a message is about, or None if it is not to be told."""
    if told['kind'] != per:
        return None
    item = told[per]
    commit = item['pipeline'] if per == 'job' else item
    name = f'minici/{item["name"]}' if per == 'job' else 'minici'
    status = told['status']
    words = WORDS.get(status, status)
    if per == 'job' and item['allow_failure'] and status == 'failed':
        status, words = 'success', 'failed, which is allowed'
    return {'sha': commit['sha'], 'ref': commit['ref'], 'status': status, 'name': name, 'url': item['web_url'],
            'words': f'{"Job" if per == "job" else "Pipeline"} {item["id"]} {words}'}


def request_for(forge, address, repository, token, event):
    """Return the HTTP request with which a forge wants to be told of a status, None for a status that it has not."""
    address = address.rstrip('/')
    if forge == 'gitlab':
        state = GITLAB.get(event['status'])
        path = f'{address}/api/v4/projects/{urllib.parse.quote(repository, safe="")}/statuses/{event["sha"]}'
        body = {'state': state, 'ref': event['ref'], 'name': event['name'], 'target_url': event['url'],
                'description': event['words'][:255]}
        headers = {'PRIVATE-TOKEN': token}
    else:
        state = GITHUB.get(event['status'])
        base = address if forge == 'github' else f'{address}/api/v1'
        path = f'{base}/repos/{urllib.parse.quote(repository)}/statuses/{event["sha"]}'
        body = {'state': state, 'context': event['name'], 'target_url': event['url'],
                'description': event['words'][:140]}
        headers = {'Authorization': f'Bearer {token}' if forge == 'github' else f'token {token}'}
    if state is None:
        return None
    headers |= {'Content-Type': 'application/json', 'Accept': 'application/json', 'User-Agent': 'minici'}
    return urllib.request.Request(path, json.dumps(body).encode(), headers)


def send(request):
    """Send a request; return what went wrong if it is worth another try, '' otherwise."""
    try:
        with urllib.request.urlopen(request, timeout=30):
            return ''
    except urllib.error.HTTPError as error:
        with error:
            answer = error.read(500).decode(errors='replace')
        if error.code == 400 and 'Cannot transition status' in answer:
            return ''   # GitLab has the status already
        return f'{request.full_url} is answered {error.code}: {answer}'
    except OSError as error:
        return f'{request.full_url}: {error}'


def main():
    """Tell the forge of the message on the standard input; return the exit status."""
    parser = argparse.ArgumentParser(description='Tell a forge what becomes of its commits.')
    parser.add_argument('forge', choices=FORGES)
    parser.add_argument('address', help='https://git.example.org, for GitHub https://api.github.com')
    parser.add_argument('--token-file', type=Path, required=True, help='a file that holds the token, and nothing else')
    parser.add_argument('--repository', metavar='OWNER/NAME', help="(default: the path of minici's project)")
    parser.add_argument('--per', choices=('pipeline', 'job'), default='pipeline', help='(default: %(default)s)')
    options = parser.parse_args()
    told = json.load(sys.stdin)
    event = read_event(told, options.per)
    if event is None:
        return 0
    token = options.token_file.read_text(encoding='utf-8').strip()
    request = request_for(options.forge, options.address, options.repository or told['project'], token, event)
    problem = send(request) if request else ''
    if problem:
        print(f'commit_status: {problem}', file=sys.stderr)
    return 1 if problem else 0


if __name__ == '__main__':
    sys.exit(main())
