"""Parameters, ids, paging, ranges, durations and sizes: the small parsers that every route leans on."""

import json
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from support import PLAIN, SHA, TWO_STAGES, Runner

import minici

BOUNDARY = 'multipart/form-data; boundary=xyz'
OTHER_SHA = SHA[::-1]


def multipart(**fields):
    """Return a multipart body of text fields."""
    parts = [f'--xyz\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
             for name, value in fields.items()]
    return (''.join(parts) + '--xyz--\r\n').encode()


def registered(ci, response):
    """Return the row of the runner that a response registered."""
    return ci.find_runner(response.json['token'])


# -- where parameters come from

@pytest.mark.parametrize('how', ['query', 'urlencoded', 'multipart', 'json'])
def test_parameters_are_read_from_every_place(ci, client, how):
    given = {'token': ci.registration_token, 'description': 'Grün & ruhig', 'locked': 'true'}
    encoded = f'token={ci.registration_token}&description=Gr%C3%BCn+%26+ruhig&locked=true'
    path, request = '/api/v4/runners', {
        'query': {},
        'urlencoded': {'data': encoded.encode(), 'headers': {'Content-Type': 'application/x-www-form-urlencoded'}},
        'multipart': {'data': multipart(**given), 'headers': {'Content-Type': BOUNDARY}},
        'json': {'json': given},
    }[how]
    row = registered(ci, client.call('POST', path + (f'?{encoded}' if how == 'query' else ''), status=201, **request))
    assert (row['description'], bool(row['locked'])) == ('Grün & ruhig', True)


@pytest.mark.parametrize('content_type', [
    'application/json; charset=utf-8', 'APPLICATION/JSON', 'application/json ;x=y'])
def test_content_type_counts_up_to_its_semicolon(ci, client, content_type):
    body = json.dumps({'token': ci.registration_token, 'description': 'json'}).encode()
    response = client.call('POST', '/api/v4/runners', data=body, headers={'Content-Type': content_type}, status=201)
    assert registered(ci, response)['description'] == 'json'


def test_body_beats_query(ci, client):
    response = client.call('POST', '/api/v4/runners?description=query&locked=true', status=201,
                           json={'token': ci.registration_token, 'description': 'body'})
    row = registered(ci, response)
    assert (row['description'], bool(row['locked'])) == ('body', True)


def test_path_beats_body_and_query(ci, client, token, project):
    other = ci.create_project('other')
    client.call('POST', f'/api/v4/projects/{project["id"]}/pipeline?id={other["id"]}', token=token, status=201,
                json={'id': other['id'], 'ref': 'main', 'sha': SHA, 'content': PLAIN})
    assert ci.list_pipelines(project)[1] == 1
    assert ci.list_pipelines(other)[1] == 0


def test_body_of_a_get_and_a_delete_is_read(ci, client, runner, token, pipeline):
    listed = client.call('GET', f'/api/v4/projects/{pipeline["project_id"]}/jobs', token=token,
                         json={'scope': ['success']}, status=200)
    assert listed.json == []
    client.call('DELETE', '/api/v4/runners', json={'token': runner.token}, status=204)
    assert ci.find_runner(runner.token) is None


def test_content_type_of_a_request_without_body_is_ignored(client, token):
    for kind in ('application/json', BOUNDARY, 'application/x-www-form-urlencoded', 'text/plain', 'nonsense'):
        client.call('GET', '/api/v4/projects', token=token, headers={'Content-Type': kind}, status=200)


def test_unknown_parameters_are_ignored(ci, client):
    client.call('POST', '/api/v4/runners?x=1&y[z]=2', status=201,
                json={'token': ci.registration_token, 'new': {'a': [1]}})


# -- Rails-style names

@pytest.mark.parametrize('pairs, expected', [
    ([('a', '1')], {'a': '1'}),
    ([('a', '1'), ('a', '2')], {'a': ['1', '2']}),
    ([('a[]', '1')], {'a': ['1']}),
    ([('a[]', '1'), ('a[]', '2')], {'a': ['1', '2']}),
    ([('a[b]', '1'), ('a[c]', '2')], {'a': {'b': '1', 'c': '2'}}),
    ([('a[b][c]', '1')], {'a': {'b': {'c': '1'}}}),
    ([('a[b][]', '1'), ('a[b][]', '2')], {'a': {'b': ['1', '2']}}),
    ([('a[][k]', '1'), ('a[][v]', '2'), ('a[][k]', '3'), ('a[][v]', '4')],
     {'a': [{'k': '1', 'v': '2'}, {'k': '3', 'v': '4'}]}),
    ([('a[0]', '1'), ('a[1]', '2')], {'a': {'0': '1', '1': '2'}}),
    ([('a', '')], {'a': ''}),
    ([], {}),
])
def test_names_nest_as_in_rails(pairs, expected):
    assert minici.nest(pairs) == expected


@pytest.mark.parametrize('pairs', [
    [('a', '1'), ('a[b]', '2')], [('a[b]', '1'), ('a[]', '2')], [('a[]', '1'), ('a[b]', '2')],
])
def test_names_that_contradict_each_other_are_refused(pairs):
    with pytest.raises(minici.BadRequest):
        minici.nest(pairs)


def test_a_name_that_is_given_very_often_takes_no_longer_for_each_time():
    assert minici.nest([('a', number) for number in range(300_000)])['a'][-1] == 299_999   # it took minutes


@pytest.mark.parametrize('query', [
    'scope=success', 'scope[]=success', 'scope[0]=success', 'scope%5B%5D=success'])
def test_scope_may_be_written_in_every_way(ci, client, token, pipeline, query):
    path = f'/api/v4/projects/{pipeline["project_id"]}/jobs'
    assert client.call('GET', f'{path}?{query}', token=token, status=200).json == []
    assert len(client.call('GET', f'{path}?{query}&{query.replace("success", "pending")}'
                           .replace('[0]=pending', '[1]=pending'), token=token, status=200).json) == 1


@pytest.mark.parametrize('query', ['scope=nonsense', 'scope[]=pending&scope[]=nonsense', 'scope[][a]=pending'])
def test_scope_with_an_unknown_word_is_refused(client, token, project, query):
    response = client.call('GET', f'/api/v4/projects/{project["id"]}/jobs?{query}', token=token, status=400)
    assert response.json['error'] in ('scope does not have a valid value', 'scope is invalid')


@pytest.mark.parametrize('body', [
    b'variables[][key]=A&variables[][value]=1&variables[][key]=B&variables[][value]=2',
    b'variables[0][key]=A&variables[0][value]=1&variables[1][key]=B&variables[1][value]=2'])
def test_variables_arrive_from_a_form(ci, client, token, project, runner, body):
    content = quote(json.dumps(PLAIN))
    path = f'/api/v4/projects/{project["id"]}/pipeline?ref=main&sha={SHA}&content={content}'
    client.call('POST', path, token=token, data=body, status=201,
                headers={'Content-Type': 'application/x-www-form-urlencoded'})
    job = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    values = {item['key']: item['value'] for item in job['variables']}
    assert (values['A'], values['B']) == ('1', '2')


@pytest.mark.parametrize('request_', [
    {'json': {'tag_list': 'a,b'}}, {'json': {'tag_list': ' a , b ,'}}, {'json': {'tag_list': ['a', 'b']}},
    {'json': {'tag_list': ['a,b']}}, {'query': 'tag_list=a&tag_list=b'}, {'query': 'tag_list[]=a&tag_list[]=b'},
    {'query': 'tag_list=a%2Cb'}, {'query': 'tag_list[0]=a&tag_list[1]=b'},
])
def test_tag_list_comes_in_every_shape(ci, client, request_):
    path = f'/api/v4/runners?token={ci.registration_token}&{request_.pop("query", "")}'
    assert json.loads(registered(ci, client.call('POST', path, status=201, **request_))['tags']) == ['a', 'b']


def test_absent_tag_list_means_no_tags(ci, client):
    given = {'token': ci.registration_token, 'tag_list': None}
    response = client.call('POST', '/api/v4/runners', json=given, status=201)
    assert json.loads(registered(ci, response)['tags']) == []


def test_info_may_be_nested_in_a_form(ci, client):
    path = f'/ci/api/v1/runners/register?token={ci.registration_token}&info[version]=1.11&info[name]=old'
    info = json.loads(registered(ci, client.call('POST', path, status=201))['info'])
    assert (info['version'], info['name']) == ('1.11', 'old')


# -- booleans, ids, required parameters

@pytest.mark.parametrize('word, value', [
    *((word, True) for word in ('true', 'TRUE', 't', '1', 'on', 'yes', True, 1)),
    *((word, False) for word in ('false', 'False', 'f', '0', 'off', 'no', False, 0, '', None)),
])
def test_booleans_are_read_in_every_spelling(ci, client, word, value):
    given = {'token': ci.registration_token, 'locked': word}
    assert bool(registered(ci, client.call('POST', '/api/v4/runners', json=given, status=201))['locked']) is value


@pytest.mark.parametrize('word', ['maybe', '2', 'tru', ' ', [], {}, [True], 1.5])
def test_other_words_are_no_booleans(ci, client, word):
    given = {'token': ci.registration_token, 'locked': word}
    response = client.call('POST', '/api/v4/runners', json=given, status=400)
    assert response.json == {'error': 'locked is invalid'}


@pytest.mark.parametrize('word', [
    'abc', '1.0', '1e3', '%20', '1%20', '%2B1', '1_0', '%D9%A3', '0x1', '1' * 19, '--1', '1%0A', '1;', '1%00', '%FF'])
def test_ids_that_are_no_numbers_are_refused(client, token, project, word):
    for kind in ('jobs', 'pipelines'):
        response = client.call('GET', f'/api/v4/projects/{project["id"]}/{kind}/{word}', token=token, status=400)
        assert response.json['error'].endswith('id is invalid')
    assert client.call('PUT', f'/ci/api/v1/builds/{word}?token=x', status=None).status_int in (400, 404)


@pytest.mark.parametrize('number', ['0', '-1', '987654321', '-' + '9' * 18, '9' * 18])
def test_ids_that_name_nothing_are_not_found(client, token, project, number):
    for kind in ('jobs', 'pipelines'):
        client.call('GET', f'/api/v4/projects/{project["id"]}/{kind}/{number}', token=token, status=404)
    client.call('GET', f'/api/v4/projects/{number}', token=token, status=404)


def test_job_and_pipeline_of_another_project_are_not_found(ci, client, token, pipeline):
    other = ci.create_project('other')
    job = ci.list_jobs(pipeline=pipeline)[0]
    client.call('GET', f'/api/v4/projects/{other["id"]}/jobs/{job["id"]}', token=token, status=404)
    client.call('GET', f'/api/v4/projects/{other["id"]}/pipelines/{pipeline["id"]}', token=token, status=404)


def test_missing_parameters_are_named(client, token, project):
    response = client.call('POST', f'/api/v4/projects/{project["id"]}/pipeline', token=token, json={}, status=400)
    assert response.json == {'error': 'ref is missing'}
    response = client.call('POST', '/api/v4/runners', json={'token': ''}, status=400)
    assert response.json == {'error': 'token is missing'}


def test_missing_member_of_a_list_is_named(ci, client, token, project):
    spec = {'deploy': {'script': ['x'], 'when': 'manual'}}
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=spec)
    job = ci.list_jobs(pipeline=pipeline)[0]
    response = client.call('POST', f'/api/v4/projects/{project["id"]}/jobs/{job["id"]}/play', token=token,
                           json={'job_variables_attributes': [{'value': 'x'}]}, status=400)
    assert response.json == {'error': 'job_variables_attributes[0][key] is missing'}
    assert ci.find_job(job)['status'] == 'manual'


@pytest.mark.parametrize('body', [b'{', b'[]', b'"text"', b'1', b'true', b'{"a": NaN}', b'{"a": Infinity}', b'\xff',
                                  b'{"a": "\\ud800"}', b'[' * 100_000])
def test_body_that_is_no_json_object_is_refused(ci, client, body):
    response = client.call('POST', f'/api/v4/runners?token={ci.registration_token}', data=body, status=400,
                           headers={'Content-Type': 'application/json'})
    assert list(response.json) == ['error']


def test_null_is_a_body_without_parameters(ci, client, token, project):
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content={'a': {'script': ['x'], 'when': 'manual'}})
    [job] = ci.list_jobs(pipeline=pipeline)
    client.call('POST', f'/api/v4/projects/{project["id"]}/jobs/{job["id"]}/play', token=token, data=b'null',
                headers={'Content-Type': 'application/json'}, status=200)
    assert ci.find_job(job)['status'] == 'pending'


# -- paging

@pytest.fixture
def five(ci, project):
    """A project of five jobs."""
    for _ in range(5):
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    return f'/api/v4/projects/{project["id"]}/jobs'


def links(response):
    """Return the links of a response by their `rel`."""
    found = [item.rpartition('; ') for item in response.headers.get('Link', '').split(', ') if item]
    return {rel[5:-1]: url.strip('<>') for url, _, rel in found}


def test_first_page_carries_every_paging_header(client, token, five):
    response = client.call('GET', f'{five}?per_page=2', token=token, status=200)
    headers = {name: response.headers[name] for name in (
        'X-Page', 'X-Per-Page', 'X-Prev-Page', 'X-Next-Page', 'X-Total', 'X-Total-Pages')}
    assert headers == {'X-Page': '1', 'X-Per-Page': '2', 'X-Prev-Page': '', 'X-Next-Page': '2',
                       'X-Total': '5', 'X-Total-Pages': '3'}
    assert links(response).keys() == {'next', 'first', 'last'}


def test_last_page_has_no_next(client, token, five):
    response = client.call('GET', f'{five}?per_page=2&page=3', token=token, status=200)
    assert (len(response.json), response.headers['X-Next-Page'], response.headers['X-Prev-Page']) == (1, '', '2')
    assert links(response).keys() == {'prev', 'first', 'last'}


def test_page_past_the_end_is_an_empty_list(client, token, five):
    assert client.call('GET', f'{five}?per_page=2&page=4', token=token, status=200).json == []


def test_empty_list_has_one_page(client, token, project):
    response = client.call('GET', f'/api/v4/projects/{project["id"]}/jobs', token=token, status=200)
    assert (response.headers['X-Total'], response.headers['X-Total-Pages']) == ('0', '1')


def test_page_has_100_rows_at_most(client, token, five):
    assert client.call('GET', f'{five}?per_page=500', token=token, status=200).headers['X-Per-Page'] == '100'


@pytest.mark.parametrize('name', ['page', 'per_page'])
@pytest.mark.parametrize('value', ['0', '-1', 'abc', '1.5', '9' * 30, '%D9%A3', '[]'])
def test_page_numbers_that_are_none_are_refused(client, token, five, name, value):
    response = client.call('GET', f'{five}?{name}={value}', token=token, status=400)
    assert response.json['error'].startswith(f'{name} ')


@pytest.mark.parametrize('name', ['private_token', 'job_token'])
def test_links_keep_the_other_parameters_and_drop_the_token(client, token, five, runner, name):
    secret = token if name == 'private_token' else runner.claim().token
    query = f'{name}={secret}&scope[]=pending&scope[]=running&per_page=2&x=%26%3D'
    response = client.call('GET', f'{five}?{query}', status=200)
    assert secret not in str(response.headers)
    for url in links(response).values():
        query = parse_qs(urlsplit(url).query)
        assert (query['scope[]'], query['x'], query['per_page']) == (['pending', 'running'], ['&='], ['2'])
        assert name not in query


def test_following_the_links_visits_every_job_once(client, token, five):
    for start in (f'{five}?per_page=2', f'{five}?per_page=2&pagination=keyset'):
        seen, url = [], start
        while url:
            response = client.call('GET', url, token=token, status=200)
            seen += [job['id'] for job in response.json]
            url = links(response).get('next', '').replace('http://localhost:80', '')
        assert seen == sorted(seen, reverse=True)
        assert len(seen) == len(set(seen)) == 5


def test_keyset_pages_carry_only_a_link(client, token, five):
    response = client.call('GET', f'{five}?per_page=2&pagination=keyset', token=token, status=200)
    assert links(response).keys() == {'next'}
    assert not [name for name in response.headers if name.lower().startswith('x-') and 'page' in name.lower()]


@pytest.mark.parametrize('cursor', [
    'x', '%FF', '\u20ac', '=' * 9, '{}', 'null', '\u0661', '1_0', '9' * 5000, {'id': 1}, [1], 1.5, 1e300, 10 ** 20])
def test_cursors_that_are_none_are_refused(client, token, five, cursor):
    response = client.call('GET', f'{five}?pagination=keyset', token=token, json={'cursor': cursor}, status=400)
    assert list(response.json) == ['error']


# -- ranges

@pytest.mark.parametrize('header, start', [
    ('0-21', 0), ('0-20', 0), ('11-20', 11), ('28-32/5', 28), ('0-34/35', 0), ('20-19', 20), ('50-7', 50),
    ('787-787', 787), ('5-', 5), ('0-34/*', 0), ('bytes 11-20/21', 11), (' 3-4 ', 3),
])
def test_trace_offset_is_the_start_of_a_content_range(header, start):
    assert minici.trace_offset(header) == start


@pytest.mark.parametrize('header', [
    None, '', 'x', '-', '-5', 'bytes */5', '5', '1.5-2', '٣-4', '1_0-20', '+1-2', '1 -2', '0-1,3-4',
    '9' * 19 + '-1', '0-x', 'bytes'])
def test_malformed_content_range_is_refused(header):
    with pytest.raises(minici.BadRequest) as caught:
        minici.trace_offset(header)
    assert caught.value.body_key == 'error'


@pytest.mark.parametrize('header, expected', [
    ('bytes=0-9', (0, 10)), ('bytes=0-0', (0, 1)), ('bytes=90-', (90, 100)), ('bytes=90-500', (90, 100)),
    ('bytes=-10', (90, 100)), ('bytes=-500', (0, 100)), ('bytes=99-99', (99, 100)), (' bytes=1-2 ', (1, 3)),
    (None, None), ('', None), ('bytes=-', None), ('bytes=5-1', None), ('bytes=0-1,4-5', None), ('lines=1-2', None),
    ('bytes=a-b', None), ('bytes=٣-٤', None), ('0-5', None),
])
def test_byte_range_of_a_download_is_half_open(header, expected):
    assert minici.byte_range(header, 100) == expected


@pytest.mark.parametrize('header, size', [
    ('bytes=100-', 100), ('bytes=100-200', 100), ('bytes=0-', 0), ('bytes=-0', 100)])
def test_byte_range_beyond_the_file_cannot_be_satisfied(header, size):
    with pytest.raises(minici.RangeMismatch) as caught:
        minici.byte_range(header, size)
    assert caught.value.size == size


# -- times, slugs, durations, sizes

@pytest.mark.parametrize('seconds, text', [
    (None, None), (0, '1970-01-01T00:00:00.000Z'), (1_450_972_281.802, '2015-12-24T15:51:21.802Z'),
    (4_102_444_800, '2100-01-01T00:00:00.000Z'),
])
def test_times_are_utc_with_milliseconds(seconds, text):
    assert minici.iso_time(seconds) == text


@pytest.mark.parametrize('text, slug', [
    ('main', 'main'), ('Feature/New_Thing', 'feature-new-thing'), ('-x-', 'x'), ('v1.2.3', 'v1-2-3'),
    ('a' * 70, 'a' * 63), ('a' * 62 + '/b', 'a' * 62), ('ünï', 'n'), ('', ''),
])
def test_slug_is_gitlabs(text, slug):
    assert minici.slug(text) == slug


HOUR, DAY, WEEK, MONTH, YEAR = 3600, 86400, 7 * 86400, 30 * 86400, 365.25 * 86400


@pytest.mark.parametrize('text, seconds', [
    *((f'2 {unit}', 2 * size) for size, units in (
        (1, 's sec secs second seconds'), (60, 'm min mins minute minutes'), (HOUR, 'h hr hrs hour hours'),
        (DAY, 'd dy day days'), (WEEK, 'w wk wks week weeks'), (MONTH, 'mo mos month months'),
        (YEAR, 'y yr yrs year years')) for unit in units.split()),
    ('7 days', 7 * DAY), ('1h30m', 5400), ('2h15min', 8100), ('5 mins 6 sec', 306), ('6 mos 1 day', 6 * MONTH + DAY),
    ('4 weeks and 3 days', 31 * DAY), ('2 yrs 3 mos and 4d', 2 * YEAR + 3 * MONTH + 4 * DAY),
    ('4:01:01', 4 * HOUR + 61),
    ('1 day, 2 hours', DAY + 2 * HOUR), ('1 day with 2 hours', DAY + 2 * HOUR), ('1 day plus 2h', DAY + 2 * HOUR),
    ('1.5 hours', 5400), ('90', 90), ('1.5', 1.5), (' 7 DAYS ', 7 * DAY), ('1hour', HOUR), ('3 mins 4 sec', 184),
    ('2 hrs 20 min', 8400), ('2h20min', 8400), ('42', 42), ('1 week', WEEK), ('1 sec 1 sec', 2),
])
def test_durations_are_read_as_gitlab_reads_them(text, seconds):
    assert minici.parse_duration(text) == seconds


@pytest.mark.parametrize('text', ['never', 'Never', ' NEVER ', '0', '0 days', '0s', '00:00:00'])
def test_durations_without_end_are_none(text):
    assert minici.parse_duration(text) is None


@pytest.mark.parametrize('text', [
    '', ' ', 'nonsense', '7 dogs', 'days', '7 days ago', '-1 day', '1e3', '٣ days', '1 day or 2',
    '7 days;', 'and', '1:2:3:4', '1,5 hours', 'never ever', '1' * 50])
def test_other_durations_are_refused(text):
    with pytest.raises(ValueError, match='duration'):
        minici.parse_duration(text)


@pytest.mark.parametrize('text, size', [
    ('0', 0), ('1', 1), ('1048576', 2 ** 20), ('100K', 102400), ('100k', 102400), ('100KB', 102400), ('100KiB', 102400),
    ('1.5 GiB', 3 * 2 ** 29), ('2G', 2 ** 31), ('100M', 100 * 2 ** 20), (' 5 MB ', 5 * 2 ** 20), ('12b', 12),
])
def test_sizes_are_binary(text, size):
    assert minici.parse_size(text) == size


@pytest.mark.parametrize('text', ['', 'K', '-1', '1T', '1 000', 'nonsense', '1e3', '٣', '1..5', '0x10', '1MM'])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match='size'):
        minici.parse_size(text)


# -- the status of many jobs

@pytest.mark.parametrize('jobs, status', [
    ('', 'success'),
    ('skipped', 'skipped'), ('skipped skipped', 'skipped'), ('skipped manual?', 'skipped'), ('manual?', 'skipped'),
    ('success', 'success'), ('success skipped', 'success'), ('success failed?', 'success'), ('failed?', 'success'),
    ('success manual?', 'success'), ('canceled?', 'success'), ('failed? skipped', 'success'),
    ('created', 'created'), ('created created', 'created'), ('created failed?', 'created'),
    ('created manual?', 'created'),
    ('canceled', 'canceled'), ('canceled success skipped', 'canceled'), ('canceled failed?', 'canceled'),
    ('pending', 'pending'), ('pending created', 'pending'), ('pending created skipped', 'pending'),
    ('pending manual?', 'pending'), ('pending failed?', 'pending'),
    ('running', 'running'), ('running created skipped success', 'running'), ('pending success', 'running'),
    ('pending failed', 'running'), ('success manual pending', 'running'), ('running manual', 'running'),
    ('pending created skipped success', 'running'), ('running failed canceled', 'running'),
    ('manual', 'manual'), ('manual success', 'manual'), ('manual failed', 'manual'), ('manual created', 'manual'),
    ('manual scheduled', 'manual'),
    ('scheduled', 'scheduled'), ('scheduled success created', 'scheduled'), ('scheduled failed', 'scheduled'),
    ('created success', 'running'), ('created failed', 'running'), ('created canceled', 'running'),
    ('waiting_for_resource success', 'waiting_for_resource'), ('waiting_for_resource manual', 'waiting_for_resource'),
    ('failed', 'failed'), ('failed success', 'failed'), ('failed canceled', 'failed'), ('failed skipped', 'failed'),
    ('canceling', 'canceling'), ('failed manual?', 'failed'), ('failed failed?', 'failed'),
])
def test_status_of_many_jobs_follows_gitlabs_rules(jobs, status):
    """A question mark stands for `allow_failure`."""
    assert minici.composite_status((word.rstrip('?'), word.endswith('?')) for word in jobs.split()) == status


def test_order_of_jobs_does_not_change_their_status():
    words = [('success', False), ('failed', True), ('manual', True), ('pending', False)]
    assert len({minici.composite_status(words[turn:] + words[:turn]) for turn in range(4)}) == 1


def test_pipeline_has_the_status_of_its_jobs(ci, project):
    runner, seen = Runner(ci), []
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=TWO_STAGES)
    for state in ('success', 'failed'):
        seen.append(ci.find_pipeline(pipeline)['status'])
        runner.run(state)
    assert [*seen, ci.find_pipeline(pipeline)['status']] == ['pending', 'running', 'failed']
