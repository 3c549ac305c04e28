"""Write the database that this version of minici makes as `schema-N.sql`, for the tests of later versions."""

import sqlite3
import tempfile
from pathlib import Path

import minici

HERE = Path(__file__).parent
CONTENT = {
    'stages': ['build', 'test', 'deploy'],
    'variables': {'A': '1'},
    'compile': {'stage': 'build', 'image': 'alpine:3', 'services': ['redis:7'], 'script': ['make'],
                'after_script': ['true'], 'cache': {'paths': ['c/'], 'key': 'k'}, 'tags': ['linux'],
                'artifacts': {'paths': ['out/'], 'expire_in': '1 week', 'reports': {'junit': 'r.xml'}}},
    'unit': {'stage': 'test', 'script': ['make check'], 'needs': ['compile'], 'coverage': r'/\d+%/', 'retry': 2,
             'parallel': 2, 'timeout': '1h'},
    'lint': {'stage': 'test', 'script': ['lint'], 'allow_failure': True, 'needs': []},
    'later': {'stage': 'test', 'script': ['x'], 'when': 'delayed', 'start_in': '5 minutes'},
    'ship': {'stage': 'deploy', 'script': ['ship'], 'when': 'manual', 'environment': 'prod', 'resource_group': 'prod'},
}


class Clock:
    """A clock that stands still until it is moved."""

    now = 1_700_000_000.0

    def __call__(self):
        return self.now


def fill(ci, clock):
    """Create three pipelines, finish one job, leave another running; return the runner's token."""
    project = ci.create_project('group/demo')
    _, token = ci.register_runner(ci.registration_token, tag_list=['linux'], run_untagged=True)
    for _ in range(3):
        ci.create_pipeline(project, 'main', sha='0123456789abcdef0123456789abcdef01234567', content=CONTENT)
        clock.now += 60
    for state in ('success', None):
        claim = ci.request_job(ci.find_runner(token))
        ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), state)
    return token


def main():
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        with minici.Coordinator(Path(directory, 'ci.sqlite'), clock=clock, fsync=False) as ci:
            token = fill(ci, clock)
        connection = sqlite3.connect(Path(directory, 'ci.sqlite'))
        version, = connection.execute('PRAGMA user_version').fetchone()
        lines = [f'-- Version {version} of the schema; its runner\'s token is {token}',
                 f'PRAGMA application_id = {minici.APPLICATION_ID};', f'PRAGMA user_version = {version};',
                 *connection.iterdump()]
        connection.close()
    (HERE / f'schema-{version}.sql').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
