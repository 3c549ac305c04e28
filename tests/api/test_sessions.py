"""Who is signed in, with what and for how long: sessions, private tokens, registration, trusted proxies."""

import stat
import subprocess
import sys

import pytest
from support import TOP, Client

import minici


def cookie_of(ci, session):
    return {'Cookie': f'minici_{ci.instance}={session}'}


def test_a_session_is_no_token_and_a_token_is_no_session(ci, client, token, project):
    for session in (ci.sign_in_with(token), ci.sign_in(ci.create_sign_in_code())):
        client.call('GET', '/-/tokens', headers=cookie_of(ci, session), status=200)
        client.call('GET', '/api/v4/projects', token=session, status=401)
        client.call('GET', '/api/v4/projects', headers={'Authorization': f'Bearer {session}'}, status=401)
    client.call('GET', '/-/tokens', headers=cookie_of(ci, token), status=401)


def test_a_session_ends_with_its_token_and_with_signing_out(ci, token):
    first, second = ci.sign_in_with(token), ci.sign_in_with(token)
    assert first != second
    ci.sign_out(first)
    assert (ci.find_session(first), ci.find_session(second)['scope']) == (None, 'api')
    ci.revoke_private_token(ci.find_user(token)['token_hash'])
    assert ci.find_session(second) is None
    with pytest.raises(minici.Forbidden):
        ci.sign_in_with(token)


def test_a_session_expires_by_itself_and_with_its_token(ci, clock):
    short, session = ci.create_private_token(lifetime=60), ci.sign_in(ci.create_sign_in_code())
    other = ci.sign_in_with(short)
    clock.advance(61)
    assert ci.find_session(other) is None
    assert ci.find_session(session)
    clock.advance(30 * 86400)
    assert ci.find_session(session) is None


def test_sessions_are_not_stored_readably_and_are_no_private_tokens(ci, token):
    session = ci.sign_in_with(token)
    with ci.db.read() as c:
        assert session not in '\n'.join(c.iterdump())
    assert len(ci.list_private_tokens()) == 1


@pytest.mark.parametrize('origin, status', [
    (None, 303), ('http://localhost:80', 403), ('http://localhost', 303), ('http://localhost:8080', 403),
    ('http://evil.example', 403), ('null', 403)])
def test_signing_in_checks_where_the_form_came_from(ci, client, token, origin, status):
    headers = {'Host': 'localhost', **({'Origin': origin} if origin else {})}
    client.call('POST', '/-/sign_in', form={'token': token}, headers=headers, status=status)


def test_a_private_token_says_when_it_was_last_used_and_that_is_written_now_and_then(ci, client, clock, token):
    assert ci.list_private_tokens()[0]['last_used_at'] is None
    used = []
    for _ in range(4):
        client.call('GET', '/api/v4/projects', token=token, status=200)
        used.append(ci.list_private_tokens()[0]['last_used_at'])
        clock.advance(400)
    assert used == [clock.now - 1600, clock.now - 1600, clock.now - 800, clock.now - 800]


def test_tokens_of_the_command_line_expire_after_a_year_unless_told_otherwise(tmp_path):
    with minici.Coordinator(tmp_path / 'ci.sqlite'):
        pass
    for options, days in (([], 365), (['--expires-in', '2 days'], 2), (['--expires-in', 'never'], None)):
        command = [sys.executable, TOP / 'minici.py', '--db', tmp_path / 'ci.sqlite', 'token', *options]
        subprocess.run(command, check=True, capture_output=True)
        with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
            newest = ci.list_private_tokens()[0]
        lifetime = newest['expires_at'] and round((newest['expires_at'] - newest['created_at']) / 86400)
        assert lifetime == days


def test_registration_by_token_can_be_switched_off(tmp_path):
    with minici.Coordinator(tmp_path / 'ci.sqlite', no_registration_token=True) as ci:
        client, project = Client(ci), ci.create_project('demo')
        for token in (ci.registration_token, project['runners_token']):
            for path in ('/api/v4/runners', '/ci/api/v1/runners/register'):
                answer = client.call('POST', path, json={'token': token}, status=403)
                assert 'switched off' in answer.text
        assert ci.create_runner()[1].startswith('glrt-')


def test_the_sign_in_link_is_printed_to_a_terminal_alone(ci, capsys, monkeypatch):
    minici.offer_sign_in(ci, 'http://localhost')
    told = capsys.readouterr().out
    path = ci.data / 'sign-in-link'
    assert str(path) in told
    assert 'code=' not in told
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    code = path.read_text().strip().rpartition('=')[2]
    assert ci.find_session(ci.sign_in(code))
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    minici.offer_sign_in(ci, 'http://localhost')
    assert 'http://localhost/-/sign_in?code=mcs-' in capsys.readouterr().out


@pytest.mark.parametrize('text', ['nonsense', '10.0.0.0/33', '1.2.3'])
def test_a_trusted_proxy_must_be_an_address(tmp_path, text):
    with pytest.raises(ValueError, match='does not appear'):
        minici.Coordinator(tmp_path / 'ci.sqlite', trusted_proxies=text)


def test_pages_with_secrets_are_kept_by_no_browser(ci, client, token, project):
    headers = cookie_of(ci, ci.sign_in_with(token))
    for path in ('/group/demo', '/-/runners', '/-/tokens'):
        answer = client.call('GET', path, headers=headers, status=200)
        assert 'no-store' in answer.headers['Cache-Control']


@pytest.mark.parametrize('value', ['/secret-(value/', '/secret-(?=value)/', '/^(a|aa)+$/'])
def test_no_message_quotes_a_pattern_that_came_from_a_variable(ci, project, monkeypatch, value):
    monkeypatch.setattr(minici, 'PATTERN_TIMEOUT', 0.05)
    ci.set_variable(project, 'PATTERN', value, masked=True)
    content = {'test': {'script': ['make'], 'rules': [{'if': f'"{"a" * 60}!" =~ $PATTERN'}]}}
    with pytest.raises(minici.BadRequest) as refusal:
        ci.create_pipeline(project, 'main', sha='1' * 40, content=content)
    assert value.strip('/$') not in str(refusal.value)
    assert 'variable' in str(refusal.value)
