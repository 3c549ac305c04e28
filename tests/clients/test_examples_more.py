"""A pipeline of a working tree as it stands, by submit, and the news that notify.sh tells."""

import http.server
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
from support import EXAMPLES, PLAIN, SHA, Runner, commit, git

import minici

FILE = """
stages: [build, test, deploy]
compile:
  stage: build
  script: [cat note.txt > out.txt]
  artifacts: {paths: [out.txt]}
other: {stage: build, script: [echo nobody needs this]}
check: {stage: test, script: [cat out.txt, test -e new.txt, '! test -e secret.txt'], tags: [special]}
copies: {stage: test, parallel: 2, needs: [], script: ['echo "copy $CI_NODE_INDEX"']}
branch only: {stage: test, script: ['true'], rules: [{if: '$CI_COMMIT_TAG'}]}
ship: {stage: deploy, needs: [check], when: manual, script: [echo shipped]}
"""


@pytest.fixture
def tree(tmp_path):
    """A working tree with a changed, a new and an ignored file."""
    directory = tmp_path / 'tree'
    commit(directory, **{'.gitlab-ci.yml': FILE, 'note.txt': 'committed\n', '.gitignore': 'secret.txt\n'})
    for name in ('note.txt', 'new.txt', 'secret.txt'):
        directory.joinpath(name).write_text('not committed\n')
    return directory


# -- submit --uncommitted

@pytest.fixture
def submit(tmp_path, capsys):
    """Submit a tree on the command line; return the pipeline and its project."""
    def run(*arguments):
        assert minici.main(['--db', str(tmp_path / 'ci.sqlite'), 'submit', *map(str, arguments)]) == 0
        with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
            pipeline = ci.find_pipeline(int(capsys.readouterr().out.split()[1]))
            return pipeline, ci.find_project(pipeline['project_id'])
    return run


def content(project, pipeline, path, scratch):
    """Return a file of the commit that a pipeline is of."""
    with minici.Repository(project['import_url'], scratch) as repository:
        return repository.file(pipeline['sha'], path)


def test_submit_takes_what_is_not_committed_on_request_alone(submit, tree, tmp_path):
    head = git(tree, 'rev-parse', 'HEAD').strip()
    committed, project = submit(tree)
    assert (committed['sha'], project['path']) == (head, 'tree')
    assert content(project, committed, 'note.txt', tmp_path) == b'committed\n'
    pipeline, project = submit(tree, '--uncommitted')
    assert (pipeline['ref'], project['path']) == ('main', 'tree-uncommitted')
    assert pipeline['sha'] != head
    assert content(project, pipeline, 'note.txt', tmp_path) == b'not committed\n'
    assert content(project, pipeline, 'new.txt', tmp_path) == b'not committed\n'
    assert content(project, pipeline, 'secret.txt', tmp_path) is None


def test_submit_of_uncommitted_changes_leaves_the_tree_as_it_was(submit, tree):
    tree.joinpath('staged.txt').write_text('staged\n')
    git(tree, 'add', 'staged.txt')
    before = [git(tree, *words.split()) for words in ('status --porcelain', 'for-each-ref', 'log --oneline --all')]
    submit(tree, '--uncommitted')
    assert [git(tree, *words.split()) for words in
            ('status --porcelain', 'for-each-ref', 'log --oneline --all')] == before


def test_submit_of_uncommitted_changes_again_makes_a_pipeline_of_the_newer_tree(submit, tree, tmp_path):
    _, project = submit(tree, '--uncommitted')
    tree.joinpath('note.txt').write_text('later\n')
    again, same = submit(tree, '--uncommitted')
    assert same['id'] == project['id']
    assert content(project, again, 'note.txt', tmp_path) == b'later\n'


# -- notify.sh

class Listener(http.server.ThreadingHTTPServer):
    """A server that notes what it is sent, in `news`, and answers as it is told."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Answer)
        self.news, self.status, self.url = [], 200, f'http://127.0.0.1:{self.server_port}'


class Answer(http.server.BaseHTTPRequestHandler):
    """Notes one request."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        self.server.news.append((self.path, self.headers['Content-Type'], body.decode()))
        self.send_response(self.server.status)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def listener():
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def mail(tmp_path):
    """A directory with a command `mail`, which keeps what it is told."""
    command = tmp_path / 'bin' / 'mail'
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\n{{ printf "<%s>" "$@"; echo; cat; }} > {tmp_path}/mail.txt\n')
    command.chmod(0o755)
    return command.parent


def notify(told, **environment):
    """Run notify.sh as the hook does; return its exit status."""
    done = subprocess.run(['sh', EXAMPLES / 'notify.sh'], input=json.dumps(told).encode(), timeout=60,
                          capture_output=True, env={**os.environ, 'no_proxy': '*', **environment})
    return done.returncode


def pipeline_told(status, previous, ref='main'):
    """Return what the hook tells of a pipeline."""
    return {'kind': 'pipeline', 'status': status, 'before': 'running',
            'project': 'group/demo', 'previous_status': previous,
            'pipeline': {'id': 7, 'ref': ref, 'sha': SHA, 'web_url': 'http://ci.example/group/demo/-/pipelines/7'}}


@pytest.mark.parametrize('status, previous, words', [
    ('failed', 'success', 'is broken'), ('failed', None, 'is broken'), ('success', 'failed', 'works again')])
def test_notify_tells_ntfy_when_a_branch_breaks_or_recovers(listener, status, previous, words):
    assert notify(pipeline_told(status, previous), NTFY_URL=f'{listener.url}/builds') == 0
    (path, _, text), = listener.news
    assert path == '/builds'
    assert text == f'group/demo main {words}: pipeline 7 at 01234567\nhttp://ci.example/group/demo/-/pipelines/7\n'


@pytest.mark.parametrize('told', [
    pipeline_told('failed', 'failed'), pipeline_told('success', 'success'), pipeline_told('success', None),
    pipeline_told('running', 'failed'), pipeline_told('canceled', 'failed'),
    {'kind': 'job', 'status': 'failed', 'before': 'running', 'job': {'id': 1, 'name': 'test'}}])
def test_notify_is_silent_about_all_else(listener, told):
    assert notify(told, NTFY_URL=listener.url) == 0
    assert listener.news == []


def test_notify_tells_each_result_if_asked_to(listener):
    for status in ('success', 'canceled', 'running'):
        assert notify(pipeline_told(status, status), NTFY_URL=listener.url, NOTIFY='always') == 0
    assert [text.split(': ')[0] for _, _, text in listener.news] == [
        f'group/demo main {status}' for status in ('success', 'canceled')]


def test_notify_uses_all_ways_that_are_set_and_quotes_hostile_names(listener, mail, tmp_path):
    ref = 'x"$(touch${IFS}pwned);é'
    told = pipeline_told('failed', 'success', ref)
    assert notify(told, NTFY_URL=f'{listener.url}/ntfy', CHAT_URL=f'{listener.url}/chat', MAIL_TO='team@example.org',
                  PATH=f'{mail}:{os.environ["PATH"]}') == 0
    news = {path: (kind, text) for path, kind, text in listener.news}
    assert ref in news['/ntfy'][1]
    assert news['/chat'][0] == 'application/json'
    assert json.loads(news['/chat'][1]) == {'text': news['/ntfy'][1]}
    first, rest = tmp_path.joinpath('mail.txt').read_text().split('\n', 1)
    assert first == f'<-s><{news["/ntfy"][1].splitlines()[0]}><team@example.org>'
    assert rest == news['/ntfy'][1]
    assert not Path('pwned').exists()


def test_notify_fails_when_a_message_was_not_taken_and_still_tries_the_rest(listener):
    listener.status = 503
    told = pipeline_told('failed', 'success')
    assert notify(told, NTFY_URL=f'{listener.url}/ntfy', CHAT_URL=f'{listener.url}/chat') != 0
    assert [path for path, _, _ in listener.news] == ['/ntfy', '/chat']


def test_notify_as_the_hook_tells_once_that_main_broke_and_recovered(ci, project, listener, monkeypatch):
    told = threading.Semaphore(0)
    monkeypatch.setenv('NTFY_URL', listener.url)
    monkeypatch.setenv('no_proxy', '*')
    hook = minici.Hook(ci, 'http://ci.example', f'sh {EXAMPLES}/notify.sh')

    def tell(kind, row, before):
        if kind == 'pipeline' and row['status'] in minici.FINISHED:
            hook(kind, row, before)
            told.release()

    ci.on_change(tell)
    runner = Runner(ci)
    for state in ('success', 'failed', 'failed', 'canceled', 'success'):
        pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
        runner.run(state) if state != 'canceled' else ci.cancel_pipeline(pipeline)
        assert told.acquire(timeout=20)
    assert [text.partition(' at ')[0] for _, _, text in listener.news] == [
        'group/demo main is broken: pipeline 2', 'group/demo main works again: pipeline 5']
