"""Masking: what a trace must not tell anybody but the runner that wrote it, wherever a piece of it begins."""

import pytest
from support import Runner

import minici

VALUE, OTHER = 'very-secret-value', 'ünïcödé-secret'


@pytest.fixture
def told(ci, project, pipeline):
    """A finished job whose trace tells every secret; with the secrets that it tells."""
    ci.set_variable(project, 'KEY', VALUE, masked=True)
    ci.set_variable(None, 'OTHER', OTHER, masked=True)
    ci.edit_project(project, import_url='https://ann:p%40ss-of-the-url@git.example.com/x.git')
    runner = Runner(ci)
    job = runner.claim()
    project = ci.find_project(project)
    secrets = [job.token, runner.token, project['runners_token'], ci.registration_token, VALUE, OTHER,
               ci.create_private_token(), project['webhook_token'], 'p@ss-of-the-url', 'p%40ss-of-the-url']
    text = 'begin\n' + ''.join(f'{"x" * number} {secret} ({secret})\n' for number, secret in enumerate(secrets))
    text += f'commit {"0123456789abcdef0123456789abcdef01234567"} stays\n'
    ci.append_trace(ci.authenticate_job(job.job['id'], job.token), 0, text.encode())
    return job, secrets, text.encode()


def masked(secrets, text):
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret.encode(), b'*' * len(secret.encode()))
    return text


def test_secrets_are_masked_by_as_many_bytes_for_everybody_but_the_runner(ci, client, told, token):
    job, secrets, text = told
    cookie = {'Cookie': f'minici_{ci.instance}={ci.sign_in_with(token)}'}
    expected = masked(secrets, text)
    assert len(expected) == len(text)
    path = f'/api/v4/projects/1/jobs/{job.job["id"]}/trace'
    assert client.call('GET', path, token=token, status=200).body == expected
    page = f'/group/demo/-/jobs/{job.job["id"]}'
    assert client.call('GET', f'{page}/raw', headers=cookie, status=200).body == expected
    assert client.call('GET', f'{page}/plain', headers=cookie, status=200).body == expected
    assert ci.read_trace(job.job) == text
    assert b'0123456789abcdef0123456789abcdef01234567 stays' in expected


def test_secrets_stay_masked_wherever_a_piece_of_the_trace_begins_and_ends(ci, client, told, token):
    job, secrets, text = told
    expected = masked(secrets, text)
    path = f'/api/v4/projects/1/jobs/{job.job["id"]}/trace'
    for start in range(0, len(text), 7):
        stop = min(len(text), start + 11)
        answer = client.call('GET', path, token=token, headers={'Range': f'bytes={start}-{stop - 1}'}, status=206)
        assert answer.body == expected[start:stop]


def test_a_search_does_not_tell_what_is_masked(ci, client, told, token):
    job, _, _ = told
    headers = {'Cookie': f'minici_{ci.instance}={ci.sign_in_with(token)}'}
    path = f'/group/demo/-/jobs/{job.job["id"]}/lines?search='
    assert client.call('GET', f'{path}begin', headers=headers, status=200).json['lines'] == [[1, 0]]
    for text in ('very-secret', VALUE):
        assert client.call('GET', path + text, headers=headers, status=200).json['lines'] == []


def test_a_value_that_is_no_secret_any_more_is_shown(ci, client, told, token):
    job, _, text = told
    ci.set_variable(ci.find_project(1), 'KEY', VALUE)
    path = f'/api/v4/projects/1/jobs/{job.job["id"]}/trace'
    assert VALUE.encode() in client.call('GET', path, token=token, status=200).body
    assert minici.Secrets([], []).mask(b'nothing') == b'nothing'
    assert text


def test_tokens_are_told_by_their_looks_whatever_stands_around_them():
    commit, held, other = ('0123456789' * 4, 'ab' * 20, 'cd' * 20)
    secrets = minici.Secrets(['word', 'password'], [minici.token_hash(held)])
    shown = {
        held: '*' * 40, commit: commit, f'x{held}y': f'x{"*" * 40}y', f'a{held}': f'a{held}', f'{held}0': f'{held}0',
        f'mcb-{other}': '*' * 44, f'mcb-17-{other}a': '*' * 47 + 'a', f'glrt-{commit}{commit}': '*' * 45 + commit,
        f'xmcp-{other}': 'x' + '*' * 44, f'mc-{other}': f'mc-{other}', f'mcb-{other[1:]}': f'mcb-{other[1:]}',
        f'{commit} {held} {commit}': f'{commit} {"*" * 40} {commit}', f'-{held}-{other}': f'-{"*" * 40}-{other}',
        f'mcb-{other}mcb-{other}': '*' * 88, 'passwordword': '*' * 12, 'passwor': 'passwor',
        f'word{held}word': '*' * 48, held.upper(): held.upper()}
    for text, wanted in shown.items():
        for before, after in (('', ''), (' ', '\n'), (f'{commit} ', f' {held}'), ('é' * 40, 'mcb-')):
            masked_end = after.replace(held, '*' * 40)
            assert secrets.mask(f'{before}{text}{after}'.encode()).decode() == f'{before}{wanted}{masked_end}'
