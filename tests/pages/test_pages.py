"""Pages: what they show, what their forms do, and where their links lead."""

import dataclasses
import json
import re
from urllib.parse import quote, unquote, urlsplit

import minici_pages
import pytest
from browsing import Browser, crawl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import PLAIN, SHA, Origin, Runner, archive, dispatcher

import minici

JOB = '/group/demo/-/jobs/1'
PIPELINE = '/group/demo/-/pipelines/1'


@pytest.fixture
def browser(ci, token):
    """A browser that is signed in with scope `api`."""
    return Browser(ci, token)


@pytest.fixture
def reader(ci):
    """A browser that is signed in with scope `read_api`."""
    return Browser(ci, ci.create_private_token('ann', 'read_api'))


@pytest.fixture
def stranger(ci):
    """A browser that is not signed in, where --public lets it read."""
    ci.settings = dataclasses.replace(ci.settings, public=True)
    return Browser(ci)


@pytest.fixture
def run(ci, project):
    """A function that makes a pipeline of the given jobs."""
    def make(ref='main', sha=SHA, user=None, **content):
        return ci.create_pipeline(project, ref, sha=sha, content=content or PLAIN, user=user)
    return make


def job(**keywords):
    return {'script': ['make'], **keywords}


def keep(ci, claim, content=None, filename='artifacts.zip', **options):
    """Store an archive as the artifacts of a running job."""
    part = ci.artifacts.receive()
    part.filename = filename
    part.write(archive(a='b') if content is None else content)
    ci.store_artifacts(claim.job, part, **options)
    part.discard()


def finish(ci, claim, state='success', **facts):
    """Finish a job that was claimed."""
    job = ci.authenticate_job(claim.job['id'], claim.token)
    if not ci.trace_size(job):
        ci.append_trace(job, 0, b'a line\n')
    ci.update_job(job, state, **facts)


def icon(page):
    """Return the status that the browser's tab shows."""
    return re.fullmatch(r'.*/-/favicon/(\w+)\.svg', page.one('link', rel='icon')['href'])[1]


def states(page):
    """Return the class of every mark of the page, in order."""
    return [mark['class'].split()[1] for mark in page.all('svg', class_='mark')]


def actions(page):
    """Return what the buttons of a job or pipeline do."""
    return [urlsplit(button['formaction']).path.rpartition('/')[2] for button in page.all('button', formaction=None)]


# -- signing in

def test_who_is_not_signed_in_is_led_to_the_sign_in_page_and_back(ci, token, pipeline):
    browser = Browser(ci)
    page = browser.open(f'{PIPELINE}?a=b%20c')
    assert page.one('h1').text == 'Sign in'
    page = browser.press(page, 'Sign in', token=f'  {token}\n')
    assert page.answer.request.path_qs == f'{PIPELINE}?a=b%20c'
    assert page.one('title').text.startswith('pending · #1 · main · group/demo')


def test_wrong_token_is_refused_in_words_and_leaves_no_cookie(ci, runner):
    browser = Browser(ci)
    for wrong in ('', 'nonsense', runner.token, ci.registration_token):
        page = browser.press(browser.open('/-/sign_in'), 'Sign in', 403, token=wrong)
        assert page.one(role='alert').text == 'this is no private token of this minici'
        assert browser.cookie is None


def test_link_printed_at_start_signs_in(ci):
    browser = Browser(ci)
    page = browser.open(f'/-/sign_in?code={ci.create_sign_in_code()}')
    assert 'data-submit' in page.one('form').attributes  # the script sends it at once
    page = browser.press(page, 'Sign in')
    assert (page.one('h1').text, page.one('form', class_='who').one('span').text) == ('Pipelines', 'root')


def test_signing_out_forgets_the_browser_and_keeps_the_pasted_token(ci, browser, token):
    page = browser.press(browser.open('/'), 'Sign out')
    assert (page.one('h1').text, browser.cookie) == ('Sign in', None)
    assert ci.find_user(token)


def test_signing_out_voids_the_token_that_the_link_made(ci):
    browser = Browser(ci)
    browser.press(browser.open(f'/-/sign_in?code={ci.create_sign_in_code()}'), 'Sign in')
    kept = browser.cookie
    browser.press(browser.open('/'), 'Sign out')
    browser.cookie = kept
    assert browser.open('/').one('h1').text == 'Sign in'


def test_browser_stays_signed_in_for_a_month_and_no_longer(ci, clock):
    browser = Browser(ci)
    browser.press(browser.open(f'/-/sign_in?code={ci.create_sign_in_code()}'), 'Sign in')
    clock.advance(days=29)
    assert browser.open('/').one('h1').text == 'Pipelines'
    clock.advance(days=1)
    assert browser.open('/').one('h1').text == 'Sign in'


def test_two_installations_on_one_host_have_cookies_of_their_own(ci, tmp_path):
    with minici.Coordinator(tmp_path / 'other.sqlite', fsync=False) as other:
        names = {f'minici_{one.instance}' for one in (ci, other)}
        browser = Browser(other, ci.create_private_token())
        assert browser.open('/').one('h1').text == 'Sign in'
    assert len(names) == 2


# -- the frame

PAGES = ['/', '/-/projects', '/-/runners', '/-/tokens', '/-/pipelines/new', '/group/demo', PIPELINE, JOB,
         f'{JOB}/artifacts/browse', '/-/sign_in']


@pytest.mark.parametrize('path', PAGES)
def test_every_page_has_a_title_one_heading_and_names_for_what_can_be_pressed(ci, browser, job, path):
    keep(ci, job)
    page = browser.open(path)
    assert page.one('html')['lang'] == 'en'
    assert page.one('title').text.endswith(' · minici')
    assert len(page.one('main').all('h1')) == 1
    ids = [element['id'] for element in page.all(id=None)]
    assert len(ids) == len(set(ids))
    for control in (*page.all('button'), *page.all('a')):
        assert control.text or control.attributes.get('aria-label'), control.attributes
    for field in (*page.all('input'), *page.all('select'), *page.all('textarea')):
        labelled = field.attributes.get('type') == 'hidden' or 'aria-label' in field.attributes
        assert labelled or field.within('label').text or field.within('label').parent, field.attributes


@pytest.mark.parametrize('path', PAGES)
def test_forms_are_not_nested_and_all_that_change_anything_carry_the_csrf_token(ci, browser, job, path):
    keep(ci, job)
    for form in browser.open(path).all('form'):
        assert len(form.all('form')) == 1
        if form.attributes.get('method') == 'post' and not form['action' if 'action' in form.attributes
                                                               else 'method'].endswith('/sign_in'):
            assert len(form.all('input', name='csrf')) == 1


@pytest.mark.parametrize('path, name', [('/', 'Pipelines'), ('/-/projects', 'Projects'), ('/-/runners', 'Runners'),
                                        ('/-/tokens', 'Tokens')])
def test_navigation_leads_to_each_page_and_marks_where_one_is(browser, path, name):
    page = browser.open('/-/pipelines/new')
    link, = [link for link in page.one('nav', aria_label='Main').all('a') if link.text == name]
    assert link['href'] == path
    assert browser.open(path).one('a', aria_current='page').text == name


@pytest.mark.parametrize('path, name', [
    (PIPELINE, 'Pipelines'), (JOB, 'Pipelines'), (f'{JOB}/artifacts/browse', 'Pipelines'),
    ('/-/pipelines/new', 'Pipelines'), ('/group/demo', 'Projects')])
def test_navigation_marks_what_a_page_stands_below(ci, browser, job, path, name):
    keep(ci, job)
    link, = browser.open(path).one('nav', aria_label='Main').all('a', aria_current=None)
    assert (link.text, link['aria-current']) == (name, 'true')


def test_page_that_has_not_changed_is_304_and_a_changed_one_is_not(ci, browser, pipeline):
    for path in ('/', PIPELINE, JOB, '/-/runners'):
        first = browser.get(path)
        again = browser.get(path, status=304, If_None_Match=first.headers['ETag'])
        assert (again.body, again.headers['ETag']) == (b'', first.headers['ETag'])
    etag = browser.get(PIPELINE).headers['ETag']
    ci.cancel_pipeline(pipeline)
    assert browser.get(PIPELINE, If_None_Match=etag).headers['ETag'] != etag


def test_assets_are_kept_for_ever_under_an_address_that_changes_with_them(browser):
    page = browser.open('/')
    for asset, kind in ((page.one('link', rel='stylesheet')['href'], 'text/css; charset=utf-8'),
                        (page.one('script')['src'], 'text/javascript; charset=utf-8')):
        answer = browser.get(asset)
        assert (answer.headers['Content-Type'], urlsplit(asset).query) == (kind, minici_pages.ASSETS_VERSION)
        assert answer.headers['Cache-Control'] == 'public, max-age=31536000, immutable'
        assert len(answer.body) > 1000


@pytest.mark.parametrize('status', [*minici.JOB_STATUSES, 'warning'])
def test_every_status_has_a_favicon_that_is_an_image(client, status):
    answer = client.call('GET', f'/-/favicon/{status}.svg', status=200)
    assert answer.headers['Content-Type'] == 'image/svg+xml'
    assert answer.text.startswith('<svg xmlns="http://www.w3.org/2000/svg" ')
    assert minici_pages.MARKS[status] in answer.text


def test_favicon_of_an_unknown_status_is_the_plain_one(client):
    assert client.call('GET', '/-/favicon/nonsense.svg').text == client.call('GET', '/-/favicon/created.svg').text


@pytest.mark.parametrize('path', [
    '/nope', '/group/nope', '/group/demo/-/jobs/99', '/group/demo/-/jobs/x', '/group/demo/-/pipelines/99',
    '/group/demo/-/nothing', '/-/nothing', '/other/-/jobs/1', '/other/-/pipelines/1', '/?project=nope',
    f'{JOB}/artifacts/browse', f'{JOB}/artifacts/download', f'{JOB}/artifacts/file/a', '/group/demo/-/jobs/-1'])
def test_what_does_not_exist_is_a_404_page_that_leads_home(ci, browser, pipeline, path):
    ci.create_project('other')
    page = browser.open(path, 404)
    assert page.one('h1').text == '404 Not Found'
    assert page.one('main').one('a')['href'] == '/'


@pytest.mark.parametrize('path', [f'{JOB}/cancel', f'{PIPELINE}/retry', '/-/runners/1/pause', '/-/sign_out'])
def test_address_of_a_form_opened_by_hand_is_a_page_that_leads_home(ci, browser, pipeline, path):
    page = browser.open(path, 404)
    assert page.one('h1').text == '404 Not Found'
    assert page.one('main').one('a')['href'] == '/'


def test_refusals_to_what_is_no_browser_are_json(ci, client, pipeline):
    assert client.call('GET', PIPELINE, status=401).json['message'].startswith('401')
    cookie = {'Cookie': f'minici_{ci.instance}={ci.sign_in_with(ci.create_private_token())}'}
    assert client.call('GET', '/nope', status=404, headers=cookie).json['message'].startswith('404')


# -- pipelines

def test_pipelines_come_newest_first_with_all_that_tells_them_apart(ci, browser, run, clock, runner):
    run()
    runner.run()
    run('feature/x', 'ab' * 20, deploy=job(stage='deploy'), compile=job(stage='build'))
    clock.advance(5)
    claim = runner.claim()
    clock.advance(75)
    finish(ci, claim)
    page = browser.open('/')
    newest, oldest = page.all('li', class_='pipeline')
    assert newest.one('a', class_='status').text == 'running'
    assert newest.one('a', class_='title')['href'] == '/group/demo/-/pipelines/2'
    assert newest.one('p', class_='meta').text == '#2 · group/demo · feature/x · abababab'
    assert newest.one('ul', class_='stages').texts('li') == ['build: passed', 'deploy: pending']
    assert states(newest) == ['running', 'success', 'pending']
    assert newest.one('span', class_='span').text == '1:15'
    assert newest.one('time')['datetime'] == '2023-11-14T22:13:20Z'
    assert oldest.one('a', class_='status').text == 'passed'
    assert icon(page) == 'running'


def test_pipeline_shows_the_title_and_author_of_its_commit(ci, browser, tmp_path):
    origin = Origin(tmp_path / 'origin')
    origin.commit(message='Mend the <roof>\n\nIt leaked.', GIT_AUTHOR_NAME='Ann &lt;b&gt; & Co')
    project = ci.create_project('group/demo', import_url=origin.url)
    ci.create_pipeline(project, 'main')
    row = browser.open('/').one('li', class_='pipeline')
    assert row.one('a', class_='title').text == 'Mend the <roof>'
    assert row.one('p', class_='meta').text.endswith('· Ann &lt;b&gt; & Co')
    assert browser.open(PIPELINE).one('h1').text == 'pending Mend the <roof>'
    assert browser.open(JOB).one('aside').facts()['Commit'].endswith('Mend the <roof> (Ann &lt;b&gt; & Co)')


def test_pipelines_are_filtered_by_what_the_form_says(ci, browser, run, runner):
    other = ci.create_project('other')
    run()
    ci.create_pipeline(other, 'main', sha=SHA, content=PLAIN)
    run('dev')
    runner.run('failed')
    runner.run()

    def found(**wanted):
        page = browser.press(browser.open('/'), 'Filter', **wanted)
        form = page.one('form', class_='filters')
        assert form.one('input')['value'] == wanted.get('ref', '')
        chosen = {option.attributes.get('value', option.text) for option in form.all('option', selected=None)}
        assert chosen == {value for name, value in wanted.items() if name != 'ref'}
        return [int(re.search('#([0-9]+)', text)[1]) for text in page.one('main').texts('p', class_='meta')]

    assert found() == [3, 2, 1]
    assert found(project='group/demo') == [3, 1]
    assert found(ref='main') == [2, 1]
    assert found(status='failed') == [1]
    assert found(status='pending') == [3]
    assert found(project='group/demo', ref='main', status='failed') == [1]
    page = browser.press(browser.open('/'), 'Filter', ref='nowhere')
    assert page.one('p', class_='empty').text == 'No pipeline matches. Show all'


def test_filter_keeps_a_project_whatever_number_there_are(ci, browser, run):
    run()
    for number in range(100):
        ci.create_project(f'other/p{number}')
    for wanted in ('group/demo', '1'):
        page = browser.open(f'/?project={wanted}')
        assert page.one('select', name='project').one('option', selected=None).text == 'group/demo'
        page = browser.press(page, 'Filter', status='pending')
        assert len(page.all('li', class_='pipeline')) == 1


def test_ref_of_a_pipeline_leads_to_the_pipelines_of_that_ref(browser, run):
    for ref in ('main', 'feature/a&b=c#d'):
        run(ref)
    page = browser.open('/')
    link = page.all('a', class_='ref')[0]
    assert link.text == 'feature/a&b=c#d'
    assert browser.open(link['href']).texts('a', class_='ref') == ['feature/a&b=c#d']


def test_pages_of_a_long_list_lead_through_all_of_it_once(browser, run):
    for _ in range(45):
        run()
    seen, page, sizes = [], browser.open('/?ref=main'), []
    while True:
        found = [int(href.rpartition('/')[2]) for href in [a['href'] for a in page.all('a', class_='title')]]
        seen, sizes = seen + found, [*sizes, len(found)]
        older = page.all('a', rel='next')
        if not older:
            break
        page = browser.open(f'/{older[0]["href"]}')
    assert (seen, sizes) == (list(range(45, 0, -1)), [20, 20, 5])
    page = browser.open(f'/{page.one("a", rel="prev")["href"]}')
    assert page.all('a', class_='title')[0]['href'].endswith('/25')
    assert icon(page) == 'created'  # the tab tells the newest pipeline's status on the first page alone


def test_empty_list_of_pipelines_tells_the_next_step(ci, browser, reader):
    page = browser.open('/')
    assert page.one('main').one('h2').text == 'Nothing has run yet'
    assert 'submit PATH --follow' in page.one('pre').text
    links = {link.text: link['href'] for link in page.one('main').all('a')}
    assert links == {'add a project': '/-/projects', 'register a runner': '/-/runners'}
    assert {link.text for link in reader.open('/').one('main').all('a')} == {'register a runner'}
    ci.create_project('demo')
    assert 'New pipeline' in browser.open('/').texts('a')
    Runner(ci)
    assert 'register a runner' not in browser.open('/').text


def test_list_says_that_jobs_will_wait_when_there_is_no_runner(ci, browser, pipeline):
    notice = browser.open('/').one('p', class_='notice')
    assert notice.text == 'No runner is registered yet: jobs will wait. Register one'
    assert notice.one('a')['href'] == '/-/runners'
    Runner(ci)
    assert browser.open('/').all('p', class_='notice') == []


# -- a new pipeline

def test_form_makes_a_pipeline_with_variables_and_leads_to_it(ci, browser, token, project):
    form = browser.open('/-/pipelines/new?project=group%2Fdemo')
    page = browser.press(form, 'Run pipeline', ref='feature/x', sha=f' {SHA} ', content='test:\n  script: make',
                         variables='A=1\n\n  B=two = 2 \nC=')
    assert page.answer.request.path == PIPELINE
    row = ci.find_pipeline(1)
    assert (row['ref'], row['sha'], row['source'], row['username']) == ('feature/x', SHA, 'web', 'root')
    assert {item['key']: item['value'] for item in json.loads(row['variables'])} == {'A': '1', 'B': 'two = 2', 'C': ''}


def test_form_without_a_ref_takes_the_default_branch_of_the_repository(ci, browser, tmp_path):
    origin = Origin(tmp_path / 'origin')
    sha = origin.commit()
    ci.create_project('group/demo', import_url=origin.url)
    browser.press(browser.open('/-/pipelines/new'), 'Run pipeline')
    row = ci.find_pipeline(1)
    assert (row['ref'], row['sha']) == ('main', sha)


@pytest.mark.parametrize('given, told', [
    (dict(variables='no equals sign'), 'must be a line NAME=value for each'),
    (dict(variables='A-B=1'), "'A-B' is not a name"), (dict(variables='=1'), 'is not a name'),
    (dict(ref='a..b'), "Reference not found: 'a..b'"), (dict(sha='12'), 'must be a whole commit id'),
    (dict(content='test: {script: make, nonsense: 1}'), 'nonsense'), (dict(content='a: ['), ''),
    (dict(content='<script>alert(1)</script>'), ''), (dict(project='gone'), 'Project Not Found')])
def test_form_says_what_is_wrong_and_keeps_what_was_entered(ci, browser, project, given, told):
    fields = dict(ref='main', sha=SHA, content='test: {script: make}', variables='A=1') | given
    status = 404 if 'project' in given else 400
    page = browser.press(browser.open('/-/pipelines/new'), 'Run pipeline', status, **fields)
    assert told in page.one(role='alert').text
    form = page.one('form', class_='stack')
    assert form.one('input', name='ref')['value'] == fields['ref']
    assert form.one('input', name='sha')['value'] == fields['sha']
    assert form.one('textarea', name='content').raw == fields['content']
    assert form.one('textarea', name='variables').raw == fields['variables']
    assert 'open' in form.one('details').attributes
    assert ci.list_pipelines()[1] == 0


def test_form_without_a_project_leads_to_adding_one(browser):
    page = browser.open('/-/pipelines/new')
    assert page.one('main').one('a')['href'] == '/-/projects'
    assert page.one('main').all('form') == []


def test_button_of_a_project_chooses_it_in_the_form(ci, browser, project):
    ci.create_project('newer')
    link, = [link for link in browser.open('/group/demo').all('a') if link.text == 'New pipeline']
    assert browser.open(link['href']).one('select').one('option', selected=None).text == 'group/demo'


# -- a pipeline

def test_pipeline_shows_its_jobs_by_stage_with_status_and_duration(ci, browser, run, runner, clock):
    run(stages=['build', 'test', 'deploy'], compile=job(stage='build'), lint=job(stage='build', allow_failure=True),
        check=job(stage='test'), ship=job(stage='deploy', when='manual'))
    claim, other = runner.claim(), runner.claim()
    clock.advance(61)
    finish(ci, claim)
    finish(ci, other, 'failed', failure_reason='script_failure')
    page = browser.open(PIPELINE)
    assert page.texts('h2') == ['build', 'test', 'deploy']
    cards = {card.one('span', class_='name').text: card for card in page.all('li', class_='job')}
    assert list(cards) == ['compile', 'lint', 'check', 'ship']
    assert [states(card) for card in cards.values()] == [['success'], ['warning'], ['pending'], ['created']]
    assert [card.one('a')['title'] for card in cards.values()] == [
        'compile: passed', 'lint: warning', 'check: pending', 'ship: created']
    assert cards['compile'].one('span', class_='span').text == '1:01'
    assert cards['ship'].one('p', class_='why').text == 'it waits for check'
    assert '· 4 jobs · api' in page.one('div', class_='head').text
    assert '4 jobs' in page.one('div', class_='head').text


def wide(ci, run, runner):
    """Start a pipeline of 60 jobs in two stages, of which three fail."""
    run(stages=['test', 'deploy'], e2e=job(parallel=30), unit=job(parallel={'matrix': [{'OS': ['linux', 'macos']}]}),
        **{f'check {word}': job() for word in ('one', 'two', 'three', 'four')},
        **{f'ship {number:02d}': job(stage='deploy') for number in range(24)})
    while claim := runner.claim():
        broken = claim.job['name'] in ('e2e 3/30', 'e2e 17/30', 'check two')
        finish(ci, claim, 'failed' if broken else 'success')


def test_large_pipeline_names_its_failures_first_and_counts_its_jobs_by_status(ci, browser, run, runner):
    wide(ci, run, runner)
    page = browser.open(PIPELINE)
    failures = page.one('section', aria_label='Failed jobs')
    assert failures.texts('span', class_='name') == ['e2e 3/30', 'e2e 17/30', 'check two']
    assert page.texts('a', class_='kind') == ['3 failed', '33 passed', '24 skipped']
    assert [stage['aria-label'] for stage in page.all('section')] == [
        'Failed jobs', 'Stage test', 'Stage deploy']


def test_copies_of_a_job_stand_together_and_those_that_failed_stay_in_view(ci, browser, run, runner):
    wide(ci, run, runner)
    stage = browser.open(PIPELINE).one('section', aria_label='Stage test')
    assert stage.texts('summary') == ['e2e 30: 2 failed, 28 passed', 'unit 2: 2 passed', '3 passed']
    copies = stage.one('details', id='test/e2e')
    assert 'open' not in copies.attributes
    assert len(copies.all('li', class_='job')) == 28
    shown = [card for card in stage.all('li', class_='failed') if card not in list(copies)]
    assert [card.one('span', class_='name').text for card in shown] == ['check two', '3/30', '17/30']
    assert shown[1].one('a')['title'] == 'e2e 3/30: failed'


def test_few_copies_in_a_small_pipeline_are_shown_at_once(browser, run):
    run(unit=job(parallel={'matrix': [{'OS': ['linux', 'macos'], 'PY': ['3.12', '3.13']}]}), lint=job())
    page = browser.open(PIPELINE)
    assert 'open' in page.one('details', id='test/unit').attributes
    assert page.one('details').texts('span', class_='name')[1:] == [
        '[linux, 3.12]', '[linux, 3.13]', '[macos, 3.12]', '[macos, 3.13]']
    assert page.all('section', aria_label='Failed jobs') == []


def test_reason_that_several_jobs_of_a_stage_share_is_told_once(browser, run):
    run(stages=['build', 'test'], compile=job(stage='build'), **{name: job() for name in 'abc'})
    page = browser.open(PIPELINE)
    stage = page.one('section', aria_label='Stage test')
    assert stage.one('div', class_='stage').texts('p', class_='why') == ['3 jobs: waiting for build']
    assert [card.texts('p', class_='why') for card in stage.all('li', class_='job')] == [[], [], []]


def test_jobs_of_a_pipeline_are_filtered_by_status_and_name(ci, browser, run, runner):
    wide(ci, run, runner)
    names = {address: browser.open(PIPELINE + address).texts('span', class_='name')
             for address in ('?status=failed', '?name=SHIP+1', '?status=passed&name=check', '?name=nothing')}
    assert names['?status=failed'] == ['check two', 'e2e', '3/30', '17/30']
    assert names['?name=SHIP+1'] == [f'ship {number}' for number in range(10, 20)]
    assert names['?status=passed&name=check'] == ['check one', 'check three', 'check four']
    assert names['?name=nothing'] == []
    page = browser.open(f'{PIPELINE}?status=failed')
    assert page.one('a', class_='kind', aria_current='true').text == '3 failed'
    assert browser.press(page, 'Find', name='two').texts('span', class_='name') == ['check two']
    browser.open(f'{PIPELINE}?status=bogus', 400)


def test_bars_show_how_long_jobs_ran_beside_the_longest(ci, browser, run, runner, clock):
    run(short=job(), long=job())
    for seconds in (30, 120):
        claim = runner.claim()
        clock.advance(seconds)
        finish(ci, claim)
    bars = [card.one('svg', class_='took').one('rect')['width'] for card in browser.open(PIPELINE).all('li')]
    assert bars == ['25', '100']


@pytest.mark.parametrize('prepare, reason', [
    ('', 'no runner is registered for its project'),
    ('ci.register_runner(ci.registration_token, tag_list=["b"])',
     'no runner has all of its tags; the nearest lacks a<b'),
    ('ci.edit_runner(ci.register_runner(ci.registration_token, tag_list=["a<b"])[0], active=False)',
     'every runner that could take it is paused'),
    ('ci.register_runner(ci.registration_token, tag_list=["a<b"])', 'every runner that could take it is offline'),
    ('ci.contact(ci.register_runner(ci.registration_token, tag_list=["a<b"])[0], {}, None, "")',
     'runner 1 may take it when it asks again')])
def test_pending_job_says_why_it_waits(ci, browser, run, prepare, reason):
    run(test=job(tags=['a<b']))
    eval(prepare or 'None', {'ci': ci})
    assert browser.open(PIPELINE).one('p', class_='why').text == reason
    assert browser.open(JOB).one('p', class_='notice').text == f'{reason[0].upper()}{reason[1:]}.'
    assert browser.open('/-/runners').one('span', class_='why').text == reason


def test_jobs_that_wait_for_something_else_say_for_what(browser, run):
    run(stages=['build', 'test'], compile=job(stage='build'), check=job(stage='test', needs=['compile']),
        free=job(stage='test', needs=[]), deploy=job(stage='build', resource_group='prod'),
        again=job(stage='build', resource_group='prod'), ask=job(stage='build', when='manual'),
        later=job(stage='build', when='delayed', start_in='2 hours'))
    page = browser.open(PIPELINE)
    told = {card.one('span', class_='name').text: card.texts('p', class_='why')
            for card in page.all('li', class_='job')}
    assert told['check'] == ['it waits for compile']
    assert told['ask'] == ['waiting to be started by hand']
    assert told['later'] == ['it is delayed until 2023-11-15T00:13:20.000Z']
    assert told['again'] == ['job 2 (deploy) holds the resource group prod']
    needs = {card.one('span', class_='name').text: card.texts('p', class_='needs')
             for card in page.all('li', class_='job')}
    assert (needs['check'], needs['free'], needs['compile']) == (['needs compile'], ['needs nothing'], [])


STATUSES = {  # a status, and what a job in it offers
    'created': ['cancel'], 'pending': ['cancel'], 'running': ['cancel'], 'success': ['retry', 'erase'],
    'failed': ['retry', 'erase'], 'canceled': ['retry', 'erase'], 'skipped': [], 'manual': ['play'],
    'scheduled': ['play', 'cancel'], 'canceling': ['cancel'], 'waiting_for_resource': ['cancel']}


@pytest.fixture
def job_in(ci, run, clock):
    """A function that returns the page of a job in a status."""
    def reach(status):
        runner = Runner(ci)
        ci.contact(runner.row, {'features': ['cancel_gracefully']} if status == 'canceling' else {}, None, '')
        special = {'manual': dict(when='manual'), 'scheduled': dict(when='delayed', start_in='1 hour'),
                   'waiting_for_resource': dict(resource_group='one'), 'created': dict(stage='two'),
                   'skipped': dict(stage='two')}.get(status, {})
        run(stages=['one', 'two'], first=job(stage='one', **({'resource_group': 'one'} if 'w' in status else {})),
            target=job(**{'stage': 'one', **special}))
        first = runner.claim()
        if status == 'skipped':
            finish(ci, first, 'failed')
        if status in ('running', 'success', 'failed', 'canceled', 'canceling'):
            claim = runner.claim()
            clock.advance(3)
            if status in ('success', 'failed'):
                finish(ci, claim, status)
            elif status != 'running':
                ci.append_trace(ci.authenticate_job(claim.job['id'], claim.token), 0, b'a line\n')
                ci.cancel_job(claim.job)
        assert ci.find_job(2)['status'] == status
        return '/group/demo/-/jobs/2'
    return reach


@pytest.mark.parametrize('status', STATUSES)
def test_job_in_a_status_shows_it_in_title_mark_and_favicon_and_offers_what_can_be_done(browser, job_in, status):
    page = browser.open(job_in(status))
    word = {'success': 'passed', 'waiting_for_resource': 'waiting for resource'}.get(status, status)
    assert page.one('title').text == f'{word} · target #2 · group/demo · minici'
    assert page.one('h1').text == f'{word} target'
    assert (icon(page), states(page.one('h1'))) == (status, [status])
    assert actions(page) == STATUSES[status]
    card, = [card for card in browser.open(PIPELINE).all('li', class_='job') if card.one('a')['title'][:6] == 'target']
    assert states(card) == [status]
    assert actions(card) == [action for action in STATUSES[status] if action != 'erase'][:1]


@pytest.mark.parametrize('status', STATUSES)
def test_who_may_only_read_is_offered_nothing_that_changes_anything(reader, stranger, job_in, status):
    path = job_in(status)
    for browser in (reader, stranger):
        for address in (path, PIPELINE, '/', '/-/runners', '/group/demo', '/-/projects'):
            page = browser.open(address)
            assert actions(page) == []
            forms = [form for form in page.all('form', method='post') if form.all('button')]
            assert [form['action'] for form in forms] in ([], ['/-/sign_out'])


def test_card_of_a_failed_job_tells_any_reason_but_its_script(ci, browser, run, runner):
    run(a=job(), b=job(), c=job())
    for reason in ('script_failure', 'runner_system_failure', 'api_failure'):
        finish(ci, runner.claim(), 'failed', failure_reason=reason)
    assert browser.open(PIPELINE).texts('p', class_='why') == ['the runner broke down', 'api_failure']


def test_buttons_of_a_pipeline_cancel_and_retry_it(ci, browser, run, runner):
    run(a=job(), b=job())
    runner.run('failed')
    page = browser.open(PIPELINE)
    assert page.one('p', class_='actions').texts('button') == ['Retry', 'Cancel']
    page = browser.press(page, 'Cancel')
    assert page.answer.request.path == PIPELINE
    assert page.one('p', class_='actions').texts('button') == ['Retry']
    page = browser.press(page, 'Retry')
    assert page.one('p', class_='actions').texts('button') == ['Cancel']
    assert states(page.one('ul', class_='cards')) == ['pending', 'pending']
    assert [row['username'] for row in ci.list_jobs(include_retried=False)] == ['root', 'root']


def test_pipeline_that_has_passed_offers_nothing(browser, pipeline, runner):
    runner.run()
    assert browser.open(PIPELINE).all('p', class_='actions')[0].text == ''


def test_button_beside_a_job_comes_back_to_its_pipeline(ci, browser, run):
    run(a=job(), b=job(when='manual'))
    page = browser.press(browser.open(PIPELINE), 'Cancel a')
    assert page.answer.request.path == PIPELINE
    browser.press(page, 'Run b')
    assert [row['status'] for row in ci.list_jobs()] == ['pending', 'canceled']


# -- a job

def test_job_tells_what_is_known_of_it(ci, browser, token, run, clock):
    runner = Runner(ci, description='rack 2', tag_list=['a', 'b'],
                    info={'name': 'gitlab-runner', 'version': '18.1.0', 'platform': 'linux', 'executor': 'shell'})
    run('v1/x', user=ci.find_user(token), test=job(tags=['b', 'a'], environment={'name': 'prod'}))
    clock.advance(30)
    claim = runner.claim()
    clock.advance(3725)
    finish(ci, claim, 'failed', failure_reason='script_failure', exit_code=7)
    page = browser.open(JOB)
    facts = page.one('aside').facts()
    assert facts['Duration'] == '1:02:05'
    assert facts['Queued for'] == '0:30'
    assert facts['Started'] == '2023-11-14 22:13 UTC'
    assert facts['Runner'] == '#1 rack 2 gitlab-runner 18.1.0 linux shell'
    assert (facts['Tags'], facts['Stage'], facts['Branch'], facts['Environment']) == ('a b', 'test', 'v1/x', 'prod')
    assert (facts['Commit'], facts['Started by']) == (SHA[:8], 'root')
    assert page.one('p', class_='notice').text == 'Failed: the script exited with code 7.'
    assert [link['href'] for link in page.one('p', class_='crumbs').all('a')] == ['/group/demo', PIPELINE]


def test_allowed_failure_is_shown_as_a_warning(browser, run, runner):
    run(test=job(allow_failure=True))
    runner.run('failed')
    page = browser.open(JOB)
    assert (icon(page), states(page.one('h1'))) == ('warning', ['warning'])
    assert page.one('p', class_='notice').text.endswith('This job is allowed to fail.')
    assert states(browser.open('/').one('a', class_='status')) == ['success']


@pytest.mark.parametrize('reason, words', [*minici_pages.FAILURES.items(), ('api_failure', 'api_failure')])
def test_failure_is_told_in_words(ci, browser, job, reason, words):
    finish(ci, job, 'failed', failure_reason=reason)
    assert browser.open(JOB).one('p', class_='notice').text == f'Failed: {words}.'


def test_retry_leads_to_the_new_job_which_lists_all_attempts(ci, browser, pipeline, runner):
    finish(ci, runner.claim(), 'failed')
    page = browser.press(browser.open(JOB), 'Retry')
    assert page.answer.request.path == '/group/demo/-/jobs/2'
    attempts = page.one('ul', class_='plain').all('a')
    assert [(link['href'][-1], link.text) for link in attempts] == [('2', '#2 pending'), ('1', '#1 failed')]
    assert page.one('aside').one('a', aria_current='page').text == '#2 pending'
    assert actions(browser.open(JOB)) == ['erase']  # it was retried already


def test_play_asks_what_the_job_says_must_be_confirmed(ci, browser, run):
    run(test=job(when='manual', manual_confirmation='Really "ship" <it>?'))
    for path in (JOB, PIPELINE):
        assert browser.open(path).one('button', data_confirm=None)['data-confirm'] == 'Really "ship" <it>?'
    page = browser.press(browser.open(JOB), 'Run')
    assert (page.answer.request.path, ci.find_job(1)['status']) == (JOB, 'pending')


def test_erase_removes_log_and_artifacts_for_good(ci, browser, job):
    keep(ci, job)
    finish(ci, job)
    button, = [button for button in browser.open(JOB).all('button') if button.text == 'Erase']
    assert button['data-confirm']
    page = browser.press(browser.open(JOB), 'Erase')
    assert 'Erased' in page.one('aside').facts()
    assert (actions(page), page.all('h2')) == (['retry'], [])
    assert ci.traces.size(1) is None


def test_keep_lets_artifacts_never_expire(ci, browser, job, clock):
    keep(ci, job, expire_in='1 day')
    page = browser.open(JOB)
    assert page.one('aside').one('ul').one('time')['datetime'] == '2023-11-15T22:13:20Z'
    page = browser.press(page, 'Keep')
    assert 'Keep' not in page.texts('button')
    clock.advance(days=2)
    assert browser.get(f'{JOB}/artifacts/download').body


def test_variables_of_a_job_are_named_and_the_secret_ones_not_told(ci, browser, project, runner):
    ci.set_variable(project, 'PROJECT', 'secret of the project')
    ci.create_pipeline(project, 'main', sha=SHA, variables=[{'key': 'GIVEN', 'value': 'secret of the caller'}],
                       content={'variables': {'OPEN': 'from the file'}, 'test': job(variables={'MINE': '<b>'})})
    page = browser.open(JOB)
    facts = page.one('aside').one('details').facts()
    assert facts == {'OPEN': 'from the file', 'MINE': '<b>', 'GIVEN': 'hidden'}
    assert 'secret of' not in page.answer.text


@pytest.mark.parametrize('action', ['cancel', 'retry', 'play', 'erase', 'keep', 'nonsense'])
def test_action_that_cannot_be_done_is_refused_in_words(ci, browser, run, runner, action):
    run(test=job())
    if action == 'cancel':
        runner.run()
    status = {'cancel': 303, 'nonsense': 404, 'keep': 404, 'play': 400}.get(action, 403)
    before = ci.find_job(1)
    answer = browser.post(f'{JOB}/{action}', status)
    assert tuple(ci.find_job(1)) == tuple(before)
    assert status == 303 or '<h1>' in answer.text


# -- the log

def test_raw_log_is_sent_whole_or_in_ranges(ci, browser, job):
    ci.append_trace(job.job, 0, b'\x1b[31mhello\xff\n')
    answer = browser.get(f'{JOB}/raw')
    assert (answer.body, answer.headers['Content-Type']) == (b'\x1b[31mhello\xff\n', 'text/plain; charset=utf-8')
    answer = browser.get(f'{JOB}/raw', status=206, Range='bytes=5-9')
    assert (answer.body, answer.headers['Content-Range']) == (b'hello', 'bytes 5-9/12')
    answer = browser.get(f'{JOB}/raw', status=206, Range='bytes=11-999')
    assert (answer.body, answer.headers['Content-Range']) == (b'\n', 'bytes 11-11/12')
    assert browser.send('GET', f'{JOB}/raw', {'Range': 'bytes=12-', 'Accept': '*/*'}).status_int == 416


def test_log_before_there_is_one_is_empty(browser, pipeline):
    for path in ('raw', 'plain'):
        assert browser.get(f'{JOB}/{path}').body == b''
    assert browser.open(JOB).one(id='job')['data-size'] == '0'


def test_reading_the_log_counts_as_watching_it(ci, browser, job):
    ci.append_trace(job.job, 0, b'x')
    assert not ci.traces.is_watched(1)
    browser.get(f'{JOB}/raw', status=206, Range='bytes=0-')
    assert ci.traces.is_watched(1)


@pytest.mark.parametrize('trace, plain', [
    (b'', b''), (b'no end', b'no end'), (b'a\r\nb\r\n', b'a\nb\n'),
    (b'\x1b[0;31;1mred\x1b[0m \x1b[38;5;12mblue\n', b'red blue\n'),
    (b'10%\r20%\r100%\n', b'100%\n'), (b'\x1b]0;title\x07text', b'text'),
    (b'\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\', b'link'),
    (b'section_start:1600000000:build\r\x1b[0KBuild\nok\nsection_end:1600000009:build\r\x1b[0K', b'Build\nok\n'),
    (b'section_start:1:a.b-c[collapsed=true]\r\x1b[0KHead\n', b'Head\n'),
    (b'section_start: 1 is text', b'section_start: 1 is text'),
    (b'\x1b[2K\x1b[1Gx\x1b(B\n', b'x\n'), (b'<b>&amp;</b>\n', b'<b>&amp;</b>\n'), (b'\x1b\x1b[0m[0m', b'[0m')])
def test_plain_text_is_the_log_without_what_terminals_obey(ci, browser, job, trace, plain):
    ci.append_trace(job.job, 0, trace)
    answer = browser.get(f'{JOB}/plain')
    assert answer.body == plain
    assert answer.headers['Content-Type'] == 'text/plain; charset=utf-8'
    assert answer.headers['Content-Disposition'] == 'inline; filename="1.txt"'


def lines_of(trace):
    """Return the number, the offset and the text of each line of a log."""
    lines, offset = [], 0
    for number, line in enumerate(trace.split(b'\n'), 1):
        lines.append((number, offset, line))
        offset += len(line) + 1
    return lines


@pytest.fixture
def log(ci, browser, job):
    """A function that asks for lines of a log that it writes first."""
    def ask(trace, **query):
        ci.traces.replace(1, trace, lambda: None)
        return browser.get(f'{JOB}/lines?' + '&'.join(f'{name}={quote(str(value))}' for name, value in query.items()),
                           Accept='*/*').json['lines']
    return ask


PIECES = st.sampled_from([b'error', b'ERROR', b'a', b'', b' ', b'0 errors', b'no failures', b'Traceback (most',
                          b'failed', b'OSError: x', b'terror', b'\x1b[31m', b'err\x1b[0mor', b'\xff', b'\r',
                          'é'.encode(), b'.*'])
TRACES = st.lists(st.lists(PIECES, max_size=4).map(b' '.join), max_size=8).map(b'\n'.join)
CALM = settings(derandomize=True, deadline=None, database=None, max_examples=150,
                suppress_health_check=list(HealthCheck))


@CALM
@given(trace=TRACES, number=st.integers(-2, 12), offset=st.integers(-2, 200))
def test_lines_are_found_by_number_and_by_a_byte_of_theirs(log, trace, number, offset):
    lines = lines_of(trace) if trace else []
    assert log(trace, number=number) == [[n, at] for n, at, _ in lines if n == number]
    assert log(trace, offset=offset) == [
        [n, at] for n, at, text in lines if at <= offset <= at + len(text) and 0 <= offset < len(trace)]


@CALM
@given(trace=TRACES, search=st.sampled_from(['error', 'Error', 'a', 'é', '.*', '[0m', 'a error', 'nowhere']))
def test_lines_are_found_by_what_people_see_of_them(log, trace, search):
    def seen(text):
        return re.sub(rb'\x1b\[[0-9]*m', b'', text).lower()

    wanted = search.lower().encode()
    assert log(trace, search=search) == [[n, at] for n, at, text in lines_of(trace) if wanted in seen(text)]


@CALM
@given(trace=TRACES)
def test_first_error_is_the_first_line_that_tells_of_one_and_not_of_none(log, trace):
    def tells(text):
        words = re.split(rb'([^a-z0-9_])', re.sub(rb'\x1b\[[0-9]*m', b'', text).lower())
        return any(word.endswith((b'error', b'failed', b'traceback'))
                   and not (word in (b'error', b'failed') and words[at - 2:at] in ([b'0', b' '], [b'no', b' ']))
                   for at, word in enumerate(words))

    assert log(trace, errors=1) == [[n, at] for n, at, text in lines_of(trace) if tells(text)][:1]


def test_a_thousand_lines_are_found_at_most(log):
    assert log(b'hit\n' * 1500, search='hit') == [[n, 4 * n - 4] for n in range(1, 1001)]


def test_lines_want_something_to_look_for_and_without_a_log_there_are_none(ci, browser, pipeline):
    for query in ('', '?errors=0', '?number=', '?number=x', '?search='):
        assert 'error' in browser.get(f'{JOB}/lines{query}', 400, Accept='*/*').json
    assert browser.get(f'{JOB}/lines?number=1', Accept='*/*').json == {'lines': []}


# -- artifacts

ODD = ['a b.txt', 'ü/€.txt', 'q?x=1#y', 'per%25cent', '<b>"\'&', 'back\\slash', 'semi;colon', 'x' * 200,
       '.hidden', 'plus+']


def test_archive_is_browsed_folder_by_folder_and_its_files_come_as_they_are(ci, browser, job):
    files = {f'top/{name}': name for name in ODD} | {'a': 'A', 'top/deep/er/file': 'deep'}
    keep(ci, job, archive(**files))
    found, folders = {}, [f'{JOB}/artifacts/browse']
    while folders:
        page = browser.open(folders.pop())
        for link in page.one('ul', class_='files').all('a'):
            if '/artifacts/browse/' in link['href']:
                folders.append(link['href'])
            else:
                name = unquote(link['href']).partition('/artifacts/file/')[2]
                assert name.rpartition('/')[2] in (link.text, name)
                answer = browser.get(link['href'])
                assert answer.headers['Content-Disposition'].startswith('attachment; ')
                found[name] = answer.text
    assert found == files


def test_folders_come_first_and_sizes_are_told(ci, browser, job):
    keep(ci, job, archive(b='x' * 2048, a='', z__y='1'))
    page = browser.open(f'{JOB}/artifacts/browse')
    assert page.one('ul', class_='files').texts('li') == ['z/', 'a 0 B', 'b 2.0 KiB']
    page = browser.open(f'{JOB}/artifacts/browse/z')
    crumbs = page.all('p', class_='crumbs')[1]
    assert [(link.text, link['href']) for link in crumbs.all('a')] == [
        ('artifacts.zip', f'{JOB}/artifacts/browse'), ('z', f'{JOB}/artifacts/browse/z')]


def test_empty_archive_and_empty_folder_are_shown_as_such(ci, browser, job):
    keep(ci, job, archive(), expire_in='1 day')
    assert browser.open(f'{JOB}/artifacts/browse').one('p', class_='empty').text == 'This folder is empty.'
    keep(ci, job, archive(empty__=''), replace=True)
    link = browser.open(f'{JOB}/artifacts/browse').one('ul', class_='files').one('a')
    assert browser.open(link['href']).one('p', class_='empty').text == 'This folder is empty.'


def test_what_cannot_be_browsed_says_so(ci, browser, job, clock):
    keep(ci, job, b'this is no zip file', expire_in='1 day')
    page = browser.open(f'{JOB}/artifacts/browse', 400)
    assert 'The archive cannot be read' in page.one('main').text
    assert browser.get(f'{JOB}/artifacts/download').body == b'this is no zip file'
    clock.advance(days=1)
    browser.open(f'{JOB}/artifacts/browse', 404)
    assert browser.open(JOB).all('h2') == []


def test_long_folder_is_cut_and_says_so(ci, browser, job):
    keep(ci, job, archive(**{f'f{n:04}': '' for n in range(1003)}))
    page = browser.open(f'{JOB}/artifacts/browse')
    assert len(page.one('ul', class_='files').all('a')) == 1000
    assert page.one('div', class_='narrow').texts('p')[-1].startswith('and 3 more')


def test_reports_are_listed_and_sent_beside_the_archive(ci, browser, job):
    keep(ci, job)
    keep(ci, job, b'<xml/>', 'junit.xml.gz', file_type='junit', file_format='gzip')
    links = {link.text: link['href'] for link in browser.open(JOB).one('ul', class_='plain').all('a')}
    assert list(links) == ['artifacts.zip', 'Browse', 'junit.xml.gz']
    assert browser.get(links['junit.xml.gz']).body == b'<xml/>'
    assert browser.get(links['artifacts.zip']).body == archive(a='b')


# -- runners

def test_runners_tell_whether_they_are_there_and_what_they_run(ci, browser, run, clock):
    Runner(ci, description='silent')
    info = {'name': 'gitlab-runner', 'version': '18.1.0', 'platform': 'linux', 'architecture': 'amd64'}
    for name in ('away', 'idle', 'paused', 'busy'):
        if name == 'idle':
            clock.advance(hours=2)
        runner = Runner(ci, description=name, tag_list=['x', name], run_untagged=name == 'busy')
        ci.contact(runner.row, info, '10.0.0.1', '')
        if name == 'paused':
            ci.edit_runner(runner.row, active=False)
    run()
    runner.claim()
    clock.advance(42)
    rows = {row.one('a', class_='title').text: row for row in browser.open('/-/runners').all('li', class_='runner')}
    assert {name: row.one('span', class_='status').text for name, row in rows.items()} == {
        '#1 silent': 'never contacted', '#2 away': 'offline', '#3 idle': 'online', '#4 paused': 'paused',
        '#5 busy': 'online'}
    assert 'gitlab-runner 18.1.0 linux amd64' in rows['#5 busy'].text
    assert (rows['#5 busy'].texts('span', class_='tag'), 'only jobs with its tags' in rows['#3 idle'].text) == (
        ['busy', 'x'], True)
    running = rows['#5 busy'].one('div', class_='runs').one('a')
    assert (running.text, running['href'], states(running)) == ('test #1', JOB, ['running'])
    assert rows['#5 busy'].one('div', class_='runs').one('span').text == '0:42'
    assert rows['#1 silent'].all('time') == []


def test_buttons_pause_resume_and_remove_a_runner(ci, browser, runner):
    page = browser.press(browser.open('/-/runners'), 'Pause runner 1')
    assert not runner.row['active']
    page = browser.press(page, 'Resume runner 1')
    assert runner.row['active']
    assert page.one('button', aria_label='Remove runner 1')['data-confirm']
    page = browser.press(page, 'Remove runner 1')
    assert page.texts('p', class_='empty')[0] == 'No runner is registered yet. Jobs wait until one is.'
    assert ci.list_runners() == []
    browser.post('/-/runners/1/pause', 404)
    browser.post('/-/runners/x/pause', 404)


def test_queue_lists_what_waits_oldest_first_with_the_reasons(ci, browser, project):
    for number in range(22):
        ci.create_pipeline(project, 'main', sha=SHA, content={f'job {number}': job(tags=['rare'])})
    page = browser.open('/-/runners')
    queued = page.all('li', class_='queued')
    assert [row.one('a').text for row in queued] == [f'job {n} #{n + 1}' for n in range(20)]
    assert {row.one('span', class_='why').text for row in queued} == {'no runner is registered for its project'}
    assert 'and more behind these.' in page.text


def test_empty_runners_page_tells_how_to_register_one(ci, browser, client):
    page = browser.open('/-/runners')
    assert page.texts('p', class_='empty') == ['No runner is registered yet. Jobs wait until one is.',
                                               'No job waits for a runner.']
    command = page.one(id='register').text
    url, token = re.fullmatch('gitlab-runner register --non-interactive --url ([^ ]+) --registration-token ([^ ]+) '
                              '--executor shell', command).groups()
    assert url == 'http://localhost:80/'
    client.call('POST', f'{urlsplit(url).path}api/v4/runners', json={'token': token}, status=201)


# -- projects

def test_form_adds_a_project_and_leads_to_it(ci, browser):
    page = browser.press(browser.open('/-/projects'), 'Add', path=' group/new ', default_branch='trunk',
                         import_url='https://user:pass@host/group/new.git')
    assert page.one('h1').text == 'group/new'
    assert page.one('p', class_='meta').text == 'https://host/group/new.git · trunk'
    assert ci.find_project('group/new')['import_url'] == 'https://user:pass@host/group/new.git'
    assert page.one('p', class_='empty').text == 'Nothing has run yet.'


@pytest.mark.parametrize('given, told', [
    (dict(path='a b'), 'can contain only letters'), (dict(path='group/demo'), 'has already been taken'),
    (dict(import_url='git@host:x'), 'must be an address'), (dict(default_branch='a..b'), 'Reference not found')])
def test_project_that_cannot_be_added_is_told_with_what_was_entered(ci, browser, project, given, told):
    fields = dict(path='fresh', import_url='https://host/x.git') | given
    page = browser.press(browser.open('/-/projects'), 'Add', 400, **fields)
    assert told in page.one(role='alert').text
    assert page.one('input', name='path')['value'] == fields['path']
    assert page.one('input', name='import_url')['value'] == fields['import_url']
    assert page.one('input', name='default_branch')['value'] == fields.get('default_branch', 'main')
    assert ci.list_projects()[1] == 1


def test_projects_are_searched_and_paged(ci, browser):
    for number in range(25):
        ci.create_project(f'group/p{number:02}')
    ci.create_pipeline(ci.find_project('group/p24'), 'main', sha=SHA, content=PLAIN)
    page = browser.open('/-/projects')
    rows = page.all('li', class_='project')
    assert (len(rows), rows[0].one('a', class_='title').text) == (20, 'group/p24')
    assert rows[0].one('a', class_='status')['href'] == '/group/p24/-/pipelines/1'
    page = browser.open('/-/projects' + page.one('a', rel='next')['href'])
    names = [row.one('a').text for row in page.all('li', class_='project')]
    assert names == [f'group/p{number:02}' for number in range(4, -1, -1)]
    page = browser.press(browser.open('/-/projects'), 'Search', search='P1')
    assert len(page.all('li', class_='project')) == 10
    assert page.one('input', name='search')['value'] == 'P1'
    assert browser.open('/-/projects?search=zzz').one('p', class_='empty').text == 'No project matches.'


def test_pages_of_projects_lead_through_all_of_them_once(ci, browser):
    for number in range(12):
        ci.create_project(f'p{number}')
    seen, older = [], [{'href': '?per_page=5&search=p'}]
    while older:
        page = browser.open('/-/projects' + older[0]['href'])
        seen += [row.one('a').text for row in page.all('li', class_='project')]
        older = page.all('a', rel='next')
    assert seen == [f'p{number}' for number in range(11, -1, -1)]


def test_no_project_is_said(browser):
    assert browser.open('/-/projects').one('p', class_='empty').text == 'There is no project yet.'


def test_project_shows_its_newest_pipelines_and_leads_to_all(browser, run):
    for _ in range(7):
        run()
    page = browser.open('/group/demo')
    assert [a['href'][-1] for a in page.all('a', class_='title')] == ['7', '6', '5', '4', '3']
    assert icon(page) == 'pending'
    link, = [link for link in page.all('a') if link.text == 'All its pipelines']
    page = browser.open(link['href'])
    assert page.answer.request.path_qs == '/?project=group/demo'
    assert len(page.all('a', class_='title')) == 7


def test_badge_can_be_pasted(ci, stranger, run, runner):
    run()
    runner.run()
    text = stranger.open('/group/demo').one(id='badge').text
    badge, page = re.fullmatch(r'\[!\[pipeline\]\((.*)\)\]\((.*)\)', text).groups()
    assert 'passed' in stranger.get(badge.removeprefix('http://localhost:80')).text
    assert stranger.open(page.removeprefix('http://localhost:80')).one('h1').text == 'group/demo'


def test_variables_of_a_project_are_set_shown_and_removed(ci, browser, project):
    page = browser.press(browser.open('/group/demo'), 'Set', key='TOKEN', value='<long value>', variable_type='file',
                         masked='', protected='1')
    assert page.answer.request.path == '/group/demo'
    row = page.one('li', class_='variable')
    assert row.texts('code') == ['TOKEN', '<long value>']
    assert row.one('span', class_='meta').text == 'protected file'
    stored = ci.find_variable(project, 'TOKEN')
    assert (stored['variable_type'], stored['masked'], stored['protected']) == ('file', 0, 1)
    browser.press(page, 'Set', key='TOKEN', value='other')
    assert ci.find_variable(project, 'TOKEN')['value'] == 'other'
    browser.press(browser.open('/group/demo'), 'Remove TOKEN')
    assert ci.list_variables(project) == []
    browser.post('/group/demo/-/variables', 404, remove='TOKEN')


@pytest.mark.parametrize('given, told', [
    (dict(key='a-b', value='x'), 'is not a name'), (dict(key='', value='x'), 'is not a name'),
    (dict(key='A', value='short', masked='1'), 'cannot be masked'),
    (dict(key='A', value='x', variable_type='other'), 'must be env_var or file')])
def test_variable_that_cannot_be_set_is_told_in_words(ci, browser, project, given, told):
    answer = browser.post('/group/demo/-/variables', 400, **given)
    assert told in answer.text
    assert ci.list_variables(project) == []


def test_triggers_of_a_project_are_made_used_and_removed(ci, browser, client, project, tmp_path):
    origin = Origin(tmp_path / 'triggered')
    origin.commit()
    ci.edit_project(project, import_url=origin.url)
    page = browser.press(browser.open('/group/demo'), 'Add a trigger', description='nightly')
    row = page.one('form', action='/group/demo/-/triggers').one('li', class_='variable')
    assert (row.texts('span')[0], row.one('span', class_='meta').text) == ('nightly', 'never used')
    client.call('POST', '/api/v4/projects/1/trigger/pipeline', status=201, json={
        'token': row.one('code').text, 'ref': 'main'})
    page = browser.open('/group/demo')
    assert page.one('form', action='/group/demo/-/triggers').one('span', class_='meta').one('time')
    browser.press(page, 'Remove trigger 1')
    assert ci.list_triggers(project) == []
    browser.post('/group/demo/-/triggers', 404, remove='1')


def test_project_shows_its_own_tokens_to_who_may_change_it(ci, browser, reader, stranger, project):
    secret = {project['runners_token'], project['webhook_token'], ci.create_trigger(
        project, ci.find_user(ci.create_private_token()), 'x')['token']}
    ci.set_variable(project, 'A', 'value of a variable')
    assert {code.text for code in browser.open('/group/demo').all('code')} >= {*secret, 'value of a variable'}
    for other in (reader, stranger):
        text = other.open('/group/demo').answer.text
        assert not [word for word in (*secret, 'value of a variable', 'Variables') if word in text]


# -- tokens

def test_token_is_shown_once_works_and_can_be_revoked(ci, browser, clock):
    clock.advance(1)
    page = browser.press(browser.open('/-/tokens'), 'Make a token', 200, description='for <ann>', scope='read_api')
    fresh = page.one(id='fresh').text
    assert ci.find_user(fresh)['scope'] == 'read_api'
    assert page.answer.headers['Cache-Control'] == 'no-store'
    page = browser.open('/-/tokens')
    assert fresh not in page.answer.text
    row = page.all('li', class_='variable')[0]
    assert row.texts('span')[0] == 'for <ann>'
    assert row.one('span', class_='meta').text.startswith('root · read_api · made')
    browser.post('/-/tokens', revoke=row.one('button')['value'])
    assert ci.find_user(fresh) is None
    browser.post('/-/tokens', 404, revoke=row.one('button')['value'])


def test_tokens_page_marks_the_one_that_signed_this_browser_in_and_tells_when_it_ends(ci, clock):
    browser = Browser(ci)
    browser.post('/-/sign_in', token=ci.create_private_token(description='mine', lifetime=30 * 86400))
    clock.advance(1)
    ci.create_private_token()
    other, mine = browser.open('/-/tokens').all('li', class_='variable')
    assert ('this browser' in mine.text, 'this browser' in other.text) == (True, False)
    assert mine.texts('span')[0] == 'mine'
    assert '2023-12-14T22:13:20Z' in [moment['datetime'] for moment in mine.all('time')]


def test_revoking_the_token_of_this_browser_signs_it_out(browser):
    page = browser.open('/-/tokens')
    assert browser.press(page, 'Revoke').one('h1').text == 'Sign in'


def test_tokens_are_for_who_has_scope_api(browser, reader, stranger):
    assert reader.open('/-/tokens', 403).one('h1').text == '403 Forbidden'
    assert stranger.open('/-/tokens').one('h1').text == 'Sign in'
    for other in (reader, stranger):
        assert 'Tokens' not in other.open('/').one('nav', aria_label='Main').texts('a')
    browser.post('/-/tokens', 400, scope='everything')


# -- who may see what

def test_public_visitors_read_pages_and_are_offered_to_sign_in(ci, stranger, job):
    keep(ci, job)
    ci.append_trace(job.job, 0, b'log')
    for path in ('/', '/-/projects', '/-/runners', '/group/demo', PIPELINE, JOB, f'{JOB}/artifacts/browse'):
        page = stranger.open(path)
        assert page.one('a', class_='who')['href'] == '/-/sign_in'
    assert stranger.get(f'{JOB}/raw').body == stranger.get(f'{JOB}/plain').body == b'log'
    for path in ('/-/tokens', '/-/pipelines/new', f'{JOB}/artifacts/download', f'{JOB}/artifacts/file/a'):
        assert stranger.open(path).one('h1').text == 'Sign in'


def test_registration_token_is_for_who_has_scope_api(ci, browser, reader, stranger):
    assert ci.registration_token in browser.open('/-/runners').answer.text
    for other in (reader, stranger):
        page = other.open('/-/runners')
        assert ci.registration_token not in page.answer.text
        assert 'gitlab-runner register' not in page.text


def test_who_may_only_read_is_told_so(reader, project):
    page = reader.open('/-/pipelines/new', 403)
    assert page.one('h1').text == '403 Forbidden'
    assert page.one('main').texts('p')[0] == 'you are signed in with a token of scope read_api, this needs api'


# -- addresses

def test_addresses_in_the_api_lead_to_pages(ci, client, browser, token, tmp_path):
    origin = Origin(tmp_path / 'origin')
    origin.commit()
    ci.create_pipeline(ci.create_project('group/demo', import_url=origin.url), 'main')
    found = {}
    for name, path in (('job', '/jobs/1'), ('pipeline', '/pipelines/1'), ('project', '')):
        found[name] = client.call('GET', f'/api/v4/projects/1{path}', token=token).json
    urls = [found['job']['web_url'], found['job']['pipeline']['web_url'], found['pipeline']['web_url'],
            found['project']['web_url'], found['job']['commit']['web_url']]
    headings = [browser.open(url.removeprefix('http://localhost:80')).one('h1').text for url in urls]
    assert headings == ['pending test', 'pending change', 'pending change', 'group/demo', 'Pipelines']
    page = browser.open(urls[-1].removeprefix('http://localhost:80'))
    assert len(page.all('li', class_='pipeline')) == 1
    assert 'sha=' in page.answer.request.query_string


NAMES = ['test', 'a b: c', '"quoted" \'too\'', '<script>alert(1)</script>', 'naïve €', '100%', 'a/b/c', 'x' * 255,
         '$VAR {{y}}', '-dash', '&amp;', 'a\\b', '#1', '\u202eexe.gpj', '日本語']


@pytest.fixture
def crowd(ci, run):
    """Jobs, stages and refs of every name that GitLab allows, some finished, with artifacts."""
    runner = Runner(ci, description='<i>rack</i>', tag_list=['<t>', 'a&b'])
    run('feature/a#b%25c&d', stages=NAMES, **{name: job(stage=name, needs=[]) for name in NAMES})
    run("it's/ö<b>&\"q\"")
    for _ in range(3):
        claim = runner.claim()
        keep(ci, claim, filename='<a>"&.zip')
        finish(ci, claim, 'failed')
    ci.retry_job(claim.job)
    runner.claim()


def test_every_link_of_every_page_leads_somewhere_whatever_the_names(browser, reader, crowd):
    assert len(list(crawl(browser))) > 30
    assert len(list(crawl(reader))) > 25


def test_names_are_shown_as_they_are(browser, crowd):
    page = browser.open(PIPELINE)
    assert sorted(page.texts('span', class_='name')) == sorted(NAMES)
    assert page.texts('h2') == NAMES
    for number, name in enumerate(NAMES, 1):
        page = browser.open(f'/group/demo/-/jobs/{number}')
        assert page.one('h1').text.partition(' ')[2] == name
        assert f' · {name} #{number} · ' in page.one('title').text


@pytest.mark.parametrize('prefix', ['/ci', '/deep/er', '/odd%20name'])
def test_pages_below_a_prefix_stay_below_it(ci, token, crowd, prefix):
    browser = Browser(ci, token, dispatcher(minici.create_app(ci), unquote(prefix)), prefix=prefix)
    assert len(list(crawl(browser))) > 30
    page = browser.open('/')
    for element in (*page.all(src=None), *page.all('link')):
        browser.get((element.attributes.get('src') or element['href'])[len(prefix):])
    browser.press(browser.open(JOB), 'Retry')
    assert browser.press(browser.open('/'), 'Sign out').one('h1').text == 'Sign in'


def test_cookie_is_for_the_prefix_alone(ci, token):
    browser = Browser(ci, None, dispatcher(minici.create_app(ci), '/ci'), prefix='/ci')
    page = browser.press(browser.open('/-/runners'), 'Sign in', token=token)
    assert page.answer.request.path_info.endswith('/-/runners')
    answer = browser.post('/-/sign_in', token=token)
    assert '; Path=/ci; ' in answer.headers['Set-Cookie']


@pytest.mark.parametrize('url, root', [('https://ci.example.com', ''), ('https://ci.example.com/ci', '/ci')])
def test_external_url_makes_links_and_a_secure_cookie(ci, token, url, root):
    ci.settings = dataclasses.replace(ci.settings, external_url=url)
    ci.create_project('group/demo')
    browser = Browser(ci, host='ci.example.com')  # behind a proxy that takes the path away
    answer = browser.post('/-/sign_in', token=token, next=f'{root}/-/runners')
    assert answer.headers['Location'] == f'{root}/-/runners'
    assert answer.headers['Set-Cookie'].endswith('; HttpOnly; SameSite=Strict; Secure')
    assert f'; Path={root or "/"}; ' in answer.headers['Set-Cookie']
    page = browser.open('/group/demo')
    assert page.one(id='badge').text.endswith(f'({url}/group/demo)')
    assert page.one('script')['src'].startswith(f'{root}/-/minici.js?')
    assert f'--url {url}/ ' in browser.open('/-/runners').one(id='register').text


def test_cookie_over_plain_http_is_not_secure_and_never_for_scripts(ci, token):
    answer = Browser(ci).post('/-/sign_in', token=token)
    cookie = answer.headers['Set-Cookie']
    assert token not in cookie
    assert re.fullmatch(f'minici_{ci.instance}=[^;]+; Path=/; Max-Age=2592000; HttpOnly; SameSite=Strict', cookie)
