"""The README's table of tokens says what each opens, and nothing more."""

import fnmatch
import re

from support import TOP

import minici

GUARDS = {
    'private': {'private_token', 'job_or_private_token', 'badge_reader'},
    'registration': {'registration_token'},
    'runner': {'runner_token', 'named_runner_token'},
    'job': {'job_token', 'build_token', 'artifacts_token', 'running_job', 'job_or_private_token'},
    'trigger': {'trigger_token'},
    'webhook': {'webhook_token'},
}


def rows():
    """Return the patterns of addresses in the table, by token."""
    section = (TOP / 'README.md').read_text().partition('## Security')[2].partition('\n## ')[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if len(cells) == 4 and cells[0] in GUARDS:
            found[cells[0]] = re.findall(r'`((?:GET|POST|PUT|PATCH|DELETE|\*) [^`]+)`', cells[3])
    return found


def addresses(guards):
    """Return the method and address of each route with one of these guards, the prefixes of 2016 counted once."""
    for route in minici.ROUTES:
        if route.auth.__name__ in guards:
            path = re.sub(r'<[^>]*>', ':id', route.path)
            yield f'{route.method} {re.sub("^(/api/v1|/ci(?!/api))/", "/ci/api/v1/", path)}'


def test_the_table_of_tokens_in_the_readme_is_that_of_the_routes():
    found = rows()
    assert found.keys() == GUARDS.keys()
    for token, guards in GUARDS.items():
        opened = set(addresses(guards))
        patterns = [pattern.replace('[', '[[]') for pattern in found[token]]
        assert opened
        matched = {address for pattern in patterns for address in fnmatch.filter(opened, pattern)}
        assert opened - matched == set()
        assert [pattern for pattern in patterns if not fnmatch.filter(opened, pattern)] == []


def test_every_guard_of_the_api_stands_for_a_token_or_says_why_not():
    known = set().union(*GUARDS.values()) | {'public', 'monitor', 'repository_reader'}
    assert {route.auth.__name__ for route in minici.ROUTES} <= known
