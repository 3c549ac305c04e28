"""The pages in a real browser: what people see, press and follow there."""

import contextlib
import json
import re
import threading
from pathlib import Path

import pytest
from playwright.sync_api import expect
from support import SHA, Origin, Runner, Served, archive, load, stamped

import minici

JOB, PIPELINE = '/group/demo/-/jobs/1', '/group/demo/-/pipelines/1'
FOUND = 'Array.from(CSS.highlights.get("found") || [], range => String(range))'
MANUAL = {'deploy': {'script': ['make deploy'], 'when': 'manual', 'manual_confirmation': 'Deploy "it" <now>?'}}


def sign_in(browser, ci, token):
    """Give the browser the cookie that signing in gives."""
    session = ci.sign_in_with(token)
    browser.page.context.add_cookies([{
        'name': f'minici_{ci.instance}', 'value': session, 'url': browser.url, 'httpOnly': True, 'sameSite': 'Strict'}])


@pytest.fixture
def page(browser, ci, token, server):
    """A page that is signed in with scope `api`; its clock obeys `later`, and agrees with the coordinator's."""
    browser.url = server.url
    sign_in(browser, ci, token)
    browser.page.clock.install(time=ci.clock.now)
    return browser.page


def later(page, seconds):
    """Let time pass on a page."""
    page.clock.run_for(round(1000 * seconds))


class Log:
    """A job that this test plays the runner of."""

    def __init__(self, ci, runner, **job):
        project = ci.list_projects()[0] or [ci.create_project('group/demo')]
        ci.create_pipeline(project[0], 'main', sha=SHA, content={'test': {'script': ['make test'], **job}})
        self.ci, self.claim, self.size = ci, runner.claim(), 0

    @property
    def row(self):
        return self.ci.authenticate_job(self.claim.job['id'], self.claim.token)

    def write(self, data):
        """Write what comes next; text or bytes."""
        data = data.encode() if isinstance(data, str) else data
        self.ci.append_trace(self.row, self.size, data)
        self.size += len(data)

    def finish(self, state='success', **facts):
        self.ci.update_job(self.row, state, **facts)


@pytest.fixture
def log(ci, runner):
    return Log(ci, runner)


def icon(page):
    """Return the status that the browser's tab shows."""
    return re.search(r'/-/favicon/(\w+)\.svg', page.locator('#icon').get_attribute('href'))[1]


def lines(page):
    """Return the texts of all lines of the log."""
    return page.locator('#trace .line .text')


def in_view(page, line):
    """Return whether a line stands in the visible part of the log."""
    return page.evaluate('''line => {
        const [row, box] = [document.getElementById('L' + line), document.getElementById('trace')];
        const [inner, outer] = [row?.getBoundingClientRect(), box.getBoundingClientRect()];
        return Boolean(row) && inner.height > 0 && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
    }''', line)


def at_bottom(page):
    return page.evaluate('(({scrollTop, clientHeight, scrollHeight}) => scrollTop + clientHeight > scrollHeight - 8)'
                         '(document.getElementById("trace"))')


def stays(page):
    """Return a function that tells whether the page is still the one it was."""
    page.evaluate('window.stayed = true')
    return lambda: page.evaluate('window.stayed === true')


def small_pieces(page, size):
    """Let the next page load its log in pieces of so many bytes."""
    def fulfill(route):
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace('id="log"', f'id="log" data-piece="{size}"'))
    page.route(re.compile('/-/jobs/[0-9]+(#.*)?$'), fulfill, times=1)


# -- signing in

def test_link_printed_at_start_signs_in_once_and_says_so_the_second_time(chromium, tmp_path):
    with Served(tmp_path / 'served.sqlite') as served:
        named = next(line for line in served.process.stdout if 'sign in once' in line)
        link = Path(named.rpartition(' ')[2].strip()).read_text().strip()
        url = f'http://127.0.0.1:{served.port}'
        with chromium.browser(url) as first, chromium.browser(url) as second:
            first.open(link)
            expect(first.page.get_by_role('heading', level=1)).to_have_text('Pipelines')
            expect(first.page).to_have_url(f'{url}/')
            first.page.reload()
            expect(first.page.get_by_role('button', name='Sign out')).to_be_visible()
            second.open(link)
            expect(second.page.get_by_role('alert')).to_contain_text('used')
            expect(second.page.get_by_label('Private token')).to_be_focused()
            assert first.console() == []
            assert all('403' in message for message in second.console())




def test_pasting_a_token_leads_back_to_where_one_was_going_and_signing_out_ends_it(browser, ci, token, pipeline):
    page = browser.page
    browser.open(JOB)
    page.get_by_label('Private token').fill('nonsense')
    page.keyboard.press('Enter')
    expect(page.get_by_role('alert')).to_have_text('this is no private token of this minici')
    assert '403' in browser.console()[0]
    page.get_by_label('Private token').fill(f' {token} ')
    page.get_by_role('button', name='Sign in').click()
    expect(page.get_by_role('heading', level=1)).to_contain_text('test')
    assert page.url.endswith(JOB)
    assert page.evaluate('document.cookie') == ''
    page.get_by_role('button', name='Sign out').click()
    expect(page.get_by_role('heading', level=1)).to_have_text('Sign in')


def test_going_back_after_signing_out_shows_nothing(browser, page, pipeline):
    browser.open('/-/runners')
    page.get_by_role('button', name='Sign out').click()
    expect(page.get_by_role('heading', level=1)).to_have_text('Sign in')
    page.go_back()
    expect(page.get_by_role('heading', level=1)).to_have_text('Sign in')


def test_page_that_is_open_elsewhere_asks_to_sign_in_when_signed_out(browser, page, pipeline):
    browser.open(PIPELINE)
    page.context.clear_cookies()
    browser.wait(lambda: later(page, 3) or page.get_by_role('heading', level=1).text_content() == 'Sign in')


# -- a job from the first line to the last

@pytest.fixture
def shell(ci, server, tmp_path):
    """A function that starts the shell runner of the examples, which works until the test ends."""
    runner = load('shell_runner').Runner(server.url, builds_dir=tmp_path, interval=0.05, say=lambda text: None)
    thread = threading.Thread(target=runner.run_forever)

    def start():
        runner.register(ci.registration_token, description='box')
        thread.start()
    yield start
    runner.stopping.set()
    if thread.ident:
        thread.join(20)
    assert not thread.is_alive()


def test_pipeline_started_by_form_runs_before_ones_eyes(browser, page, ci, shell, tmp_path):
    repository, gate = Origin(tmp_path / 'repository'), tmp_path / 'gate'
    repository.commit(json.dumps({'speak': {'script': [
        'echo "$GREETING"', 'until [ -e "$GATE" ]; do sleep 0.02; done', r'printf "\033[1;32mgrüße\033[0m ☃\n"']}}))
    ci.create_project('group/demo', import_url=repository.url)
    browser.open('/')
    page.get_by_role('link', name='New pipeline').click()
    page.get_by_label('Variables').fill(f'GREETING=good morning\n\nGATE={gate}')
    page.get_by_role('button', name='Run pipeline').click()
    page.get_by_role('link', name='speak').click()
    expect(page.locator('#job')).to_contain_text('No runner is registered')
    expect(page.locator('#trace')).to_contain_text('The log starts when a runner takes this job')
    assert (icon(page), page.title().partition(' ')[0]) == ('pending', 'pending')
    stayed = stays(page)
    shell()
    browser.wait(lambda: later(page, 3) or icon(page) == 'running')
    expect(page.locator('#facts')).to_contain_text('box')
    browser.wait(lambda: later(page, 1) or lines(page).filter(has_text=re.compile('^good morning$')).count())
    assert not lines(page).filter(has_text=re.compile('^grüße')).count()
    gate.touch()
    browser.wait(lambda: later(page, 3) or icon(page) == 'success')
    said = lines(page).filter(has_text=re.compile('^grüße ☃$'))
    browser.wait(lambda: later(page, 1) or said.count())
    expect(said.locator('span')).to_have_css('color', 'rgb(86, 211, 100)')
    expect(said.locator('span')).to_have_css('font-weight', '700')
    assert page.title().startswith('passed · speak #1')
    assert stayed()


def test_job_is_canceled_and_retried_from_its_page(browser, page, ci, log, runner):
    log.write('working\n')
    browser.open(JOB)
    page.get_by_role('button', name='Cancel').click()
    expect(page.locator('h1 .status')).to_have_text('canceled')
    expect(lines(page)).to_have_text(['working'])
    page.get_by_role('button', name='Retry').click()
    page.wait_for_url('**/-/jobs/2')
    expect(page.locator('h1 .status')).to_have_text('pending')
    expect(page.locator('#facts')).to_contain_text('#1 canceled')
    stayed = stays(page)
    claim = runner.claim()
    browser.wait(lambda: later(page, 3) or icon(page) == 'running')
    ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), 'failed', exit_code=3)
    browser.wait(lambda: later(page, 3) or icon(page) == 'failed')
    expect(page.locator('#job')).to_contain_text('(exit code 3)')
    assert stayed()


def test_manual_job_asks_before_it_runs(browser, page, ci, project):
    asked = []
    ci.create_pipeline(project, 'main', sha=SHA, content=MANUAL)
    for answer, status in (('dismiss', 'manual'), ('accept', 'pending')):
        browser.open(JOB)
        page.once('dialog', lambda dialog, answer=answer: (asked.append(dialog.message), getattr(dialog, answer)()))
        page.get_by_role('button', name='Run', exact=True).click()
        expect(page.locator('h1 .status')).to_have_text(status)
        assert ci.find_job(1)['status'] == status
    assert asked == ['Deploy "it" <now>?'] * 2


def test_button_on_the_board_asks_too_and_stays_on_the_pipeline(browser, page, ci, project):
    ci.create_pipeline(project, 'main', sha=SHA, content=MANUAL)
    browser.open(PIPELINE)
    page.once('dialog', lambda dialog: dialog.dismiss())
    page.get_by_role('button', name='Run deploy').click()
    assert ci.find_job(1)['status'] == 'manual'
    page.once('dialog', lambda dialog: dialog.accept())
    page.get_by_role('button', name='Run deploy').click()
    expect(page.get_by_role('button', name='Cancel deploy')).to_be_visible()
    assert page.url.endswith(PIPELINE)


def test_erasing_removes_the_log_after_asking(browser, page, log):
    log.write('secret\n')
    log.finish()
    browser.open(JOB)
    expect(lines(page)).to_have_text(['secret'])
    page.once('dialog', lambda dialog: dialog.dismiss())
    page.get_by_role('button', name='Erase').click()
    expect(lines(page)).to_have_text(['secret'])
    page.once('dialog', lambda dialog: dialog.accept())
    page.get_by_role('button', name='Erase').click()
    expect(page.locator('#trace')).to_contain_text('There is no log.')
    expect(page.locator('#facts')).to_contain_text('Erased')


def test_single_file_of_an_archive_is_browsed_to_and_downloaded(browser, page, ci, log):
    content = {'out__bin__engine': bytes(range(256)).decode('latin-1') * 40, 'out__a b & <c>': 'odd'}
    part = ci.artifacts.receive()
    part.filename = 'artifacts.zip'
    part.write(archive(**content))
    ci.store_artifacts(log.row, part)
    part.discard()
    log.finish()
    browser.open(JOB)
    page.get_by_role('link', name='Browse').click()
    for folder in ('out', 'bin'):
        page.locator('.files').get_by_role('link', name=folder).click()
    with page.expect_download() as download:
        page.get_by_role('link', name='engine').click()
    assert download.value.suggested_filename == 'engine'
    assert download.value.path().read_bytes() == content['out__bin__engine'].encode()
    page.locator('.crumbs').get_by_role('link', name='out').click()
    with page.expect_download() as download:
        page.get_by_role('link', name='a b & <c>').click()
    assert download.value.path().read_bytes() == b'odd'


# -- the log

def test_lines_arrive_while_they_are_written_with_styles_kept_across_pieces(browser, page, log):
    pieces = ['plain \x1b[31mred', ' still\nred on ', 'the next \x1b[1;4', '8;2;10;20;30mstyled\x1b[',
              '0m gr\xfc'.encode()[:-1], '\xfc\xdfe\n'.encode()[1:], '\x1b[38;5;208morange\x1b[39m none\n']
    log.write(pieces[0])
    browser.open(JOB)
    stayed = stays(page)
    expect(lines(page)).to_have_text(['plain red'])
    for size, piece in enumerate(pieces[1:], 2):
        log.write(piece)
        later(page, 1.1)
        whole = b''.join(part if isinstance(part, bytes) else part.encode() for part in pieces[:size])
        shown = re.sub(r'\x1b\[[0-9;]*m?', '', whole.decode(errors='ignore')).removesuffix('\n').split('\n')
        expect(lines(page)).to_have_text(shown)
    found = page.locator('.text span').evaluate_all(
        'spans => spans.map(span => [span.textContent, span.className, span.getAttribute("style") || ""])')
    assert found == [
        ['red still', 'f1', ''], ['red on the next ', 'f1', ''],
        ['styled', 'b f1', 'background-color: rgb(10, 20, 30);'], ['orange', '', 'color: rgb(255, 135, 0);']]
    expect(page.get_by_text('red still')).to_have_css('color', 'rgb(255, 123, 114)')
    assert stayed()


def test_progress_overwrites_its_line(browser, page, log):
    log.write('loading  10%\rloading  60%')
    browser.open(JOB)
    expect(lines(page)).to_have_text(['loading  60%'])
    for piece, shown in (('\rloading 1', ['loading 1']), ('00%\r\n', ['loading 100%']),
                         ('next\r', ['loading 100%', 'next']), ('\x1b[K\rlast\n', ['loading 100%', 'last'])):
        log.write(piece)
        later(page, 1.1)
        expect(lines(page)).to_have_text(shown)


SECTIONS = (
    'before\n'
    'section_start:1700000000:outer\r\x1b[0K\x1b[36;1mThe outer one\x1b[0m\n'
    'within\n'
    'section_start:1700000010:inner[collapsed=true]\r\x1b[0KThe inner one\n'
    'deep\n'
    'section_end:1700000075:inner\r\x1b[0K'
    'section_end:1700003700:outer\r\x1b[0Kafter\n')


def test_sections_fold_by_click_and_key_and_tell_how_long_they_took(browser, page, log):
    log.write(SECTIONS)
    log.finish()
    browser.open(JOB)
    outer, inner = (page.get_by_role('button', name=f'Section {name}') for name in ('outer', 'inner'))
    within, deep, after = (page.get_by_text(text, exact=True) for text in ('within', 'deep', 'after'))
    expect(page.locator('.took')).to_have_text(['1:01:40', '1:05'])
    expect(outer).to_have_attribute('aria-expanded', 'true')
    expect(inner).to_have_attribute('aria-expanded', 'false')
    expect(deep).to_be_hidden()
    page.get_by_text('The inner one').click()
    expect(deep).to_be_visible()
    outer.click()
    expect(outer).to_have_attribute('aria-expanded', 'false')
    expect(within).to_be_hidden()
    expect(deep).to_be_hidden()
    expect(page.get_by_text('The outer one')).to_be_visible()
    expect(after).to_be_visible()
    outer.press('Enter')
    expect(deep).to_be_visible()
    inner.press(' ')
    expect(deep).to_be_hidden()
    expect(within).to_be_visible()
    assert page.locator('#trace .line').evaluate_all('rows => rows.map(row => row.id)') == [
        'L1', 'L2', 'L3', 'L4', 'L5', 'L6']


def test_titles_of_sections_stand_in_line_with_the_rest_however_long_the_log(browser, page, log):
    log.write('line\n' * 1200 + SECTIONS + 'section_start:1:x\r\x1b[0Kline\n')
    log.finish()
    for width in (1280, 390):
        browser.size(width, 800)
        browser.open(JOB)
        expect(lines(browser.page)).to_have_count(1207)
        edges = browser.page.evaluate("""['L1198', 'L1201', 'L1202', 'L1203', 'L1204', 'L1207'].map(
            id => document.querySelector(`#${id} .text`).getBoundingClientRect().left)""")
        assert set(edges[:4] + edges[5:]) == {edges[0]}  # the one left out is folded away with its section


def test_section_that_has_not_ended_takes_in_what_arrives(browser, page, log):
    log.write('section_start:1700000000:build[hide_duration=true]\r\x1b[0KBuilding\none\n')
    browser.open(JOB)
    page.get_by_text('Building').click()
    log.write('two\n')
    later(page, 1.1)
    expect(page.locator('.section .line')).to_have_count(3)
    expect(page.get_by_text('two', exact=True)).to_be_hidden()
    log.write('section_end:1700000003:build\r\x1b[0Kthree\n')
    later(page, 1.1)
    expect(page.get_by_text('three', exact=True)).to_be_visible()


def test_line_is_linked_to_and_found_again_even_in_a_folded_section(browser, page, log):
    log.write(SECTIONS + ''.join(f'line {number}\n' for number in range(7, 300)))
    log.finish()
    browser.open(JOB)
    page.locator('#L120 a').click()
    assert page.url.endswith(f'{JOB}#L120')
    expect(page.locator('.line.current')).to_have_attribute('id', 'L120')
    page.reload()
    expect(page.locator('.line.current .text')).to_have_text('line 120')
    assert in_view(page, 120)
    browser.open('about:blank')
    browser.open(f'{JOB}#L5')
    expect(page.get_by_text('deep', exact=True)).to_be_visible()
    expect(page.locator('.line.current')).to_have_count(1)
    assert in_view(page, 5)


def test_address_of_a_line_leads_there_on_the_page_that_is_open(browser, page, log):
    log.write(SECTIONS)
    log.finish()
    browser.open(JOB)
    expect(lines(page)).to_have_count(6)
    page.evaluate('location.hash = "#L5"')
    expect(page.locator('.line.current')).to_have_attribute('id', 'L5')
    expect(page.get_by_text('deep', exact=True)).to_be_visible()


def test_search_counts_steps_wraps_around_and_highlights(browser, page, log):
    log.write(''.join(f'line {number}{" NEEDLE here" * (number in (3, 150, 290))}\n' for number in range(1, 301)))
    log.finish()
    browser.open(JOB)
    field, output = page.get_by_label('Search the log'), page.locator('#find output')
    field.fill('needle')
    field.press('Enter')
    expect(output).to_have_text('1 of 3')
    expect(page.locator('.line.current')).to_have_attribute('id', 'L3')
    field.press('Enter')
    expect(page.locator('.line.current')).to_have_attribute('id', 'L150')
    assert in_view(page, 150)
    page.get_by_role('button', name='Next match').click()
    page.get_by_role('button', name='Next match').click()
    expect(output).to_have_text('1 of 3')
    page.get_by_role('button', name='Previous match').click()
    expect(output).to_have_text('3 of 3')
    assert page.evaluate(FOUND) == ['NEEDLE'] * 3
    field.fill('nothing like it')
    field.press('Enter')
    expect(output).to_have_text('no match')
    assert page.evaluate(FOUND) == []


def test_search_takes_any_text_for_what_it_is(browser, page, log):
    words = ['\ufb03 x', 'a.*(', 'gr\xfc\xdfe', '\U0001f980', '<b>&amp;']
    log.write(''.join('\u0130' * 4 + f' {word}\n' for word in words))  # their lower case is longer than they are
    log.finish()
    browser.open(JOB)
    for number, word in enumerate(words, 1):
        page.get_by_label('Search the log').fill(word)
        page.keyboard.press('Enter')
        expect(page.locator('.line.current')).to_have_attribute('id', f'L{number}')
        browser.wait(lambda word=word: page.evaluate(FOUND) == [word])


def test_search_is_in_the_address_and_is_repeated_there(browser, page, log):
    log.write(''.join(f'line {number}\n' for number in range(200)))
    log.finish()
    browser.open(JOB)
    lines(page).first.wait_for()
    page.keyboard.press('/')
    page.keyboard.type('line 17')
    page.keyboard.press('Enter')
    expect(page.locator('#find output')).to_have_text('1 of 11')
    assert page.url.endswith('/jobs/1?search=line+17')
    page.reload()
    expect(page.locator('#find output')).to_have_text('1 of 11')
    assert page.get_by_label('Search the log').input_value() == 'line 17'
    assert in_view(page, 18)


def test_keys_search_step_and_jump_and_are_listed(browser, page, log):
    log.write('needle\n' + 'hay\n' * 300 + 'needle\n')
    log.finish()
    browser.open(JOB)
    lines(page).first.wait_for()
    page.keyboard.press('G')
    browser.wait(lambda: in_view(page, 302))
    page.keyboard.press('g')
    browser.wait(lambda: in_view(page, 1))
    page.keyboard.press('/')
    page.keyboard.type('needlejk?')     # what is typed into a field is text
    assert page.get_by_label('Search the log').input_value() == 'needlejk?'
    for _ in range(3):
        page.keyboard.press('Backspace')
    page.keyboard.press('Enter')
    found = page.locator('#find output')
    expect(found).to_have_text('1 of 2')
    page.keyboard.press('Escape')
    page.keyboard.press('n')
    expect(found).to_have_text('2 of 2')
    browser.wait(lambda: in_view(page, 302))
    page.keyboard.press('N')
    expect(found).to_have_text('1 of 2')
    before = page.evaluate('document.getElementById("trace").scrollTop')
    page.keyboard.press('j')
    assert page.evaluate('document.getElementById("trace").scrollTop') == before + 20
    page.keyboard.press('k')
    assert page.evaluate('document.getElementById("trace").scrollTop') == before
    page.keyboard.press('?')
    dialog = page.get_by_role('dialog', name='Keys')
    expect(dialog).to_contain_text('Next match')
    dialog.get_by_role('button', name='Close').click()
    expect(dialog).to_have_count(0)


def test_keys_lead_from_row_to_row_of_a_list(browser, page, ci, project):
    for title in ('one', 'two', 'three'):
        ci.create_pipeline(project, 'main', sha=SHA, content={'workflow': {'name': title}, 'test': {'script': ['x']}})
    browser.open('/')
    for key, title in zip('jjkjjj', ['three', 'two', 'three', 'two', 'one', 'one'], strict=True):
        page.keyboard.press(key)
        assert page.evaluate('document.activeElement.textContent') == title
    page.keyboard.press('/')
    assert page.evaluate('document.activeElement.name') == 'ref'


def test_match_far_away_is_shown_with_the_lines_around_it(browser, page, long_log):
    browser.open(JOB)
    lines(page).first.wait_for()
    page.keyboard.press('/')
    page.keyboard.type('line    100')
    page.keyboard.press('Enter')
    expect(page.locator('.line.current')).to_have_count(1)
    number = int(page.locator('.line.current').get_attribute('id')[1:])
    for near in (number - 3, number, number + 3):
        assert in_view(page, near)


STAMPED = (
    '2026-08-22T10:00:01.123456Z 00O section_start:1787000000:prepare\r\x1b[0K\n'
    '2026-08-22T10:00:02.123456Z 00O+\x1b[36;1mPreparing\x1b[0;m\n'
    '2026-08-22T10:00:03.123456Z 01O progress 10%\r\n'
    '2026-08-22T10:00:04.123456Z 01O+progress 100%\n'
    '2026-08-22T10:00:05.123456Z 01E warning: of the compiler\n'
    '2026-08-22T10:00:06.123456Z 00O section_end:1787000009:prepare\r\x1b[0K\n'
    '2026-08-22T10:00:07.123456Z 00O done\n')


@pytest.mark.parametrize('size', [1, 7, 40, 1000])
def test_stamped_log_is_shown_without_its_stamps_which_are_a_column_to_ask_for(browser, page, log, size):
    browser.open(JOB)
    for start in range(0, len(STAMPED), size):
        log.write(STAMPED[start:start + size])
        if start % (16 * size) == 0:
            later(page, 1)
    log.finish()
    later(page, 5)
    expect(lines(page)).to_have_text(['Preparing', 'progress 100%', 'warning: of the compiler', 'done'])
    assert page.locator('.took').first.text_content() == '0:09'
    assert page.locator('.line.stderr .text').all_text_contents() == ['warning: of the compiler']
    stamps = page.locator('.stamp')
    assert not stamps.first.is_visible()
    page.get_by_label('Times (UTC)').check()
    assert stamps.first.is_visible()
    assert stamps.all_text_contents() == ['10:00:01', '10:00:03', '10:00:05', '10:00:07']
    assert stamps.nth(2).get_attribute('title') == '2026-08-22T10:00:05.123456Z, stderr'


def test_log_without_stamps_offers_no_times(browser, page, log):
    log.write('a line\n2026-08-22T10:00:05.123456Z 01E like a stamp\n')
    log.finish()
    browser.open(JOB)
    expect(lines(page)).to_have_text(['a line', '2026-08-22T10:00:05.123456Z 01E like a stamp'])
    assert not page.get_by_label('Times (UTC)').is_visible()


@pytest.mark.parametrize('seed', range(2))
def test_long_stamped_log_is_the_same_lines_from_its_end_and_from_its_top(browser, page, log, seed):
    text = ''.join(f'row {number} {"x" * (number % 50)}\r\x1b[0Krow {number}\n' for number in range(4000))
    log.write(stamped(text.encode(), 1_796_005_331.0 + seed))
    log.finish()
    browser.open(JOB)
    expect(lines(page).last).to_have_text('row 3999')
    for _ in range(20):
        earlier = page.get_by_role('button', name='Show earlier lines')
        if not earlier.is_visible():
            break
        count = lines(page).count()
        earlier.click()
        browser.wait(lambda count=count: lines(page).count() > count)
    assert lines(page).all_text_contents() == [f'row {number}' for number in range(4000)]
    numbers = page.locator('.line > a').all_text_contents()
    assert numbers == [str(number) for number in range(1, 4001)]


def test_long_lines_wrap_unless_they_must_not(browser, page, log):
    log.write('x' * 3000 + '\n')
    log.finish()
    browser.open(JOB)
    expect(lines(page)).to_have_count(1)
    wide = 'document.querySelector("#trace").scrollWidth > document.querySelector("#trace").clientWidth'
    assert not page.evaluate(wide)
    page.get_by_label('Wrap').uncheck()
    assert page.evaluate(wide)
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    page.get_by_label('Wrap').check()
    assert not page.evaluate(wide)


def test_jumps_lead_to_top_bottom_and_the_first_error(browser, page, log):
    log.write(''.join(f'line {number}\n' for number in range(1, 200)) + 'fatal: it broke\n' + 'more\n' * 100)
    log.finish()
    browser.open(JOB)
    expect(lines(page)).to_have_count(300)
    page.get_by_role('button', name='Bottom').click()
    browser.wait(lambda: in_view(page, 300))
    page.get_by_role('button', name='First error').click()
    expect(page.locator('.line.current')).to_have_attribute('id', 'L200')
    assert in_view(page, 200)
    page.get_by_role('button', name='Top').click()
    browser.wait(lambda: in_view(page, 1))


def test_jump_to_an_error_says_when_there_is_none(browser, page, log):
    log.write('0 errors\n')
    browser.open(JOB)
    page.get_by_role('button', name='First error').click()
    expect(page.locator('#find output')).to_have_text('no error')


def test_tools_of_a_log_that_is_not_there_say_so(browser, page, pipeline):
    browser.open(JOB)
    page.get_by_role('button', name='First error').click()
    expect(page.locator('#find output')).to_have_text('no error')
    page.get_by_label('Search the log').fill('x')
    page.keyboard.press('Enter')
    expect(page.locator('#find output')).to_have_text('no match')
    page.get_by_role('button', name='Bottom').click()
    page.get_by_role('button', name='Top').click()
    expect(page.locator('#trace')).to_contain_text('The log starts when a runner takes this job.')


def test_log_is_followed_only_while_one_looks_at_its_end(browser, page, log):
    log.write(''.join(f'line {number}\n' for number in range(1, 201)))
    browser.open(JOB)
    browser.wait(lambda: at_bottom(page))
    log.write('201\n')
    later(page, 1.1)
    expect(lines(page)).to_have_count(201)
    browser.wait(lambda: at_bottom(page))
    page.locator('#trace').hover()
    page.mouse.wheel(0, -1500)
    browser.wait(lambda: not at_bottom(page))
    place = browser.wait(lambda: page.evaluate('document.querySelector("#trace").scrollTop'))
    log.write('202\n')
    later(page, 1.1)
    expect(lines(page)).to_have_count(202)
    assert not at_bottom(page)
    assert abs(page.evaluate('document.querySelector("#trace").scrollTop') - place) < 400
    page.locator('#trace').press('End')
    browser.wait(lambda: at_bottom(page))
    log.write('203\n' * 30)
    later(page, 1.1)
    expect(lines(page)).to_have_count(232)
    browser.wait(lambda: at_bottom(page))


def test_log_of_a_finished_job_stays_where_it_was_opened(browser, page, log):
    log.write(''.join(f'line {number}\n' for number in range(1, 301)))
    log.finish()
    browser.open(JOB)
    expect(lines(page)).to_have_count(300)
    later(page, 3.1)
    assert in_view(page, 1)


def test_raw_and_plain_text_are_one_click_away(browser, page, log):
    log.write('\x1b[31mred\x1b[0m <b>\n')
    log.finish()
    browser.size(1280, 800)  # without the clock of `page`, which is a script, and those pages let none run
    page = browser.page
    browser.open(JOB)
    page.get_by_role('link', name='Plain text').click()
    expect(page.locator('body')).to_have_text('red <b>')
    page.go_back()
    page.get_by_role('link', name='Raw').click()
    assert page.evaluate('document.body.textContent') == '\x1b[31mred\x1b[0m <b>\n'


@pytest.fixture
def long_log(page, log):
    """The job's log of 2,000 lines of 20 bytes, which pages load in pieces of 4,000 bytes."""
    small_pieces(page, 4000)
    log.write(''.join(f'this is line {number:6}\n' for number in range(1, 2001)))
    return log


def shown_lines(page):
    """Return the numbers of the lines that the page holds, in order."""
    return [int(number) for number in page.locator('#trace .line a').all_text_contents()]


def test_long_log_shows_its_end_first_and_what_is_before_on_demand(browser, page, long_log):
    long_log.finish()
    browser.open(JOB)
    expect(lines(page).last).to_have_text('this is line   2000')
    assert shown_lines(page) == list(range(1801, 2001))
    browser.wait(lambda: in_view(page, 2000))
    page.locator('#trace').press('Home')
    browser.wait(lambda: in_view(page, 1801))
    for first in (1602, 1403):
        page.get_by_role('button', name='Show earlier lines').click()
        expect(page.locator(f'#L{first}')).to_have_text(re.compile('this is line'))
        browser.wait(lambda first=first: not in_view(page, first))  # what one has read stays where it is
    assert shown_lines(page) == list(range(shown_lines(page)[0], 2001))
    texts = lines(page).all_text_contents()
    assert texts == [f'this is line {number:6}' for number in shown_lines(page)]


def test_line_far_away_is_led_to_in_a_long_log(browser, page, long_log):
    long_log.finish()
    browser.open(f'{JOB}#L1000')
    expect(page.locator('.line.current .text')).to_have_text('this is line   1000')
    assert in_view(page, 1000)
    assert len(shown_lines(page)) <= 202
    page.get_by_label('Search the log').fill('LINE    100')
    page.keyboard.press('Enter')
    expect(page.locator('#L100.current')).to_be_visible()
    page.get_by_role('button', name='Show later lines').click()
    expect(page.locator('#L400')).to_be_attached()
    page.get_by_role('button', name='Top').click()
    browser.wait(lambda: in_view(page, 1))
    page.get_by_role('button', name='Bottom').click()
    browser.wait(lambda: page.locator('#L2000').count() and in_view(page, 2000))
    numbers = shown_lines(page)
    assert numbers == list(range(numbers[0], 2001))


def test_end_of_what_is_loaded_is_not_the_end_of_the_log(browser, page, long_log):
    browser.open(f'{JOB}#L1000')
    expect(page.locator('#L1000.current')).to_be_visible()
    page.locator('#trace').press('End')
    browser.wait(lambda: at_bottom(page))
    later(page, 3)
    page.get_by_role('button', name='Show later lines').click()
    expect(page.locator('#L1300')).to_be_attached()
    assert shown_lines(page)[-1] < 1900


def test_running_long_log_is_followed_from_its_end(browser, page, long_log):
    browser.open(JOB)
    browser.wait(lambda: page.locator('#L2000').count() and in_view(page, 2000))
    long_log.write(''.join(f'this is line {number:6}\n' for number in range(2001, 3001)))
    later(page, 1.1)
    browser.wait(lambda: page.locator('#L3000').count() and in_view(page, 3000))
    numbers = shown_lines(page)
    assert numbers == list(range(numbers[0], 3001))


def test_line_longer_than_a_piece_is_shown(browser, page, log):
    small_pieces(page, 1000)
    log.write('first\n' + '\u2603' * 1500 + '\nlast\n')
    log.finish()
    browser.open(JOB)
    expect(lines(page).last).to_have_text('last')
    for _ in range(5):
        page.locator('#trace').press('Home')
        button = page.get_by_role('button', name='Show earlier lines')
        if button.is_hidden():
            break
        size = len(page.locator('#trace').text_content())
        button.click()
        browser.wait(lambda size=size: len(page.locator('#trace').text_content()) != size)
    expect(lines(page).first).to_have_text('first')
    assert page.locator('#trace').text_content().count('\u2603') >= 1498


# -- what keeps itself up to date

def test_pipeline_and_list_follow_a_job_to_its_end(browser, page, ci, log):
    context = page.context
    listed = context.new_page()
    listed.clock.install(time=ci.clock.now)
    listed.goto('/')
    browser.open(PIPELINE)
    stayed = stays(page), stays(listed)
    for view in (page, listed):
        assert icon(view) == 'running'
    assert page.title().startswith('running · #1 · main')
    log.finish('failed')
    for view in (page, listed):
        browser.wait(lambda view=view: later(view, 3) or icon(view) == 'failed')
    assert page.title().startswith('failed · #1 · main')
    expect(page.locator('.job.failed')).to_contain_text('test')
    expect(page.get_by_role('button', name='Retry test')).to_be_visible()
    expect(listed.locator('.pipeline .status')).to_have_text('failed')
    assert all(stay() for stay in stayed)


def test_refresh_keeps_what_is_open_and_where_the_focus_is(browser, page, ci, runner):
    log = Log(ci, runner, variables={'LEVEL': '3'}, allow_failure=True)
    browser.open(JOB)
    page.get_by_text('Variables').click()
    expect(page.get_by_text('LEVEL')).to_be_visible()
    page.get_by_text('Variables').focus()
    log.finish('failed')
    browser.wait(lambda: later(page, 3) or icon(page) == 'warning')
    expect(page.get_by_text('LEVEL')).to_be_visible()
    expect(page.locator('summary', has_text='Variables')).to_be_focused()


def test_text_that_is_being_selected_stays_so_while_a_job_runs(browser, page, ci, clock, log):
    browser.open(PIPELINE)
    page.locator('.meta code').evaluate('code => getSelection().selectAllChildren(code)')
    for _ in range(2):
        clock.advance(10)
        with page.expect_response(lambda response: response.url.endswith(PIPELINE)):
            later(page, 3.1)
    assert page.evaluate('String(getSelection())') == SHA[:8]


def test_page_goes_on_when_the_server_is_back(browser, page, ci, server, log):
    log.write('one\n')
    browser.open(JOB)
    expect(lines(page)).to_have_text(['one'])
    stayed = stays(page)
    server.stop()
    later(page, 3.1)
    browser.wait(browser.console)
    log.write('two\n')
    log.finish()
    with minici.Server(ci, port=server.port):
        browser.wait(lambda: later(page, 3) or icon(page) == 'success')
        browser.wait(lambda: later(page, 3) or lines(page).count() == 2)
        assert stayed()
        browser.open('/')
        browser.console()
        expect(page.locator('.pipeline .status')).to_have_text('passed')


# -- the other pages

def test_runner_is_paused_resumed_and_removed(browser, page, ci, runner):
    browser.open('/-/runners')
    page.get_by_role('button', name='Pause runner 1').click()
    expect(page.locator('.runner .status')).to_have_text('paused')
    assert not runner.row['active']
    page.get_by_role('button', name='Resume runner 1').click()
    expect(page.locator('.runner .status')).not_to_have_text('paused')
    for answer, count in (('dismiss', 1), ('accept', 0)):
        page.once('dialog', lambda dialog, answer=answer: getattr(dialog, answer)())
        page.get_by_role('button', name='Remove runner 1').click()
        expect(page.locator('.runner')).to_have_count(count)


def test_runners_and_queue_are_kept_up_to_date(browser, page, ci, pipeline):
    browser.open('/-/runners')
    expect(page.locator('.queued .why')).to_have_text('no runner is registered for its project')
    runner = Runner(ci, description='late')
    browser.wait(lambda: later(page, 3) or page.locator('.runner').count())
    runner.claim()
    browser.wait(lambda: later(page, 3) or page.locator('.runner .runs a').count())
    expect(page.get_by_text('No job waits for a runner.')).to_be_visible()


def test_list_without_anything_in_it_is_no_empty_box(browser, page, project):
    for path in ('/-/runners', '/group/demo', '/-/projects?search=nothing'):
        browser.open(path)
        for box in page.locator('.rows').all():
            expect(box).to_be_hidden()


def test_filters_choose_pipelines(browser, page, ci, project):
    for ref in ('main', 'feature/x+y'):
        ci.create_pipeline(project, ref, sha=SHA, content=MANUAL)
    browser.open('/')
    page.get_by_label('Branch or tag').fill('feature/x+y')
    page.get_by_role('button', name='Filter').click()
    expect(page.locator('.pipeline')).to_have_count(1)
    expect(page.locator('.pipeline .ref')).to_have_text('feature/x+y')
    page.get_by_label('Status').select_option(label='running')
    page.get_by_role('button', name='Filter').click()
    page.get_by_role('link', name='Show all').click()
    expect(page.locator('.pipeline')).to_have_count(2)
    page.locator('.ref', has_text='main').click()
    expect(page.locator('.pipeline')).to_have_count(1)


def test_variables_and_triggers_are_set_and_removed_by_form(browser, page, ci, project):
    browser.open('/group/demo')
    form = page.locator('form[action$=variables]')
    form.get_by_label('Name').fill('DEPLOY_KEY')
    form.get_by_label('Value').fill('a <b> & "c"')
    form.get_by_label('protected').check()
    form.get_by_role('button', name='Set').click()
    row = page.locator('.variable', has_text='DEPLOY_KEY')
    expect(row).to_contain_text('protected')
    row.locator('summary').click()
    expect(row.locator('details code')).to_have_text('a <b> & "c"')
    page.get_by_role('button', name='Remove DEPLOY_KEY').click()
    expect(row).to_have_count(0)
    form = page.locator('form[action$=triggers]')
    form.get_by_label('For what').fill('nightly')
    form.get_by_role('button', name='Add a trigger').click()
    row = page.locator('.variable', has_text='nightly')
    row.locator('summary').click()
    expect(row.locator('code')).to_have_text(ci.list_triggers(project)[0]['token'])
    page.get_by_role('button', name='Remove trigger 1').click()
    expect(row).to_have_count(0)


@pytest.mark.parametrize('modern', [True, False], ids=['https', 'plain'])
def test_copy_button_copies_what_stands_beside_it(browser, page, ci, server, modern):
    page.context.grant_permissions(['clipboard-read', 'clipboard-write'])
    if not modern:  # as where a page came over plain http
        page.add_init_script('navigator.reader = navigator.clipboard;'
                             'Object.defineProperty(Navigator.prototype, "clipboard", {value: undefined})')
    browser.open('/-/runners')
    page.get_by_role('button', name='Copy').click()
    expect(page.get_by_role('button', name='Copied')).to_be_visible()
    copied = page.evaluate('(navigator.reader || navigator.clipboard).readText()')
    assert copied.split() == page.locator('#register').text_content().split()
    assert ci.registration_token in copied
    assert server.url in copied


def test_token_is_made_shown_once_and_revoked(browser, page, ci):
    browser.open('/-/tokens')
    page.get_by_label('For what').fill('laptop')
    page.get_by_label('Scope').select_option('read_api')
    page.get_by_role('button', name='Make a token').click()
    assert ci.find_user(page.locator('#fresh').text_content())['scope'] == 'read_api'
    row = page.locator('.variable', has_text='laptop')
    page.once('dialog', lambda dialog: dialog.accept())
    row.get_by_role('button', name='Revoke').click()
    expect(row).to_have_count(0)
    expect(page.locator('#fresh')).to_have_count(0)


# -- without a script, without a mouse

def test_pages_work_without_javascript(chromium, ci, server, token, log):
    log.write('\x1b[31mred\x1b[0m\n')
    context = chromium.process.new_context(java_script_enabled=False, base_url=server.url)
    with contextlib.closing(context):
        page = context.new_page()
        page.goto(JOB)
        page.get_by_label('Private token').fill(token)
        page.get_by_role('button', name='Sign in').click()
        expect(page.locator('h1 .status')).to_have_text('running')
        page.get_by_role('link', name='plain text', exact=True).click()
        expect(page.locator('body')).to_have_text('red')
        page.goto(PIPELINE)
        page.get_by_role('button', name='Cancel test').click()
        expect(page.locator('.job.canceled')).to_be_visible()
        page.goto(f'/-/sign_in?code={ci.create_sign_in_code()}')
        page.get_by_role('button', name='Sign in').first.click()


def focused(page):
    """Return the words of what has the focus."""
    return page.evaluate('(e => e.getAttribute("aria-label") || e.textContent.trim())(document.activeElement)')


def test_keyboard_alone_reaches_and_presses_everything(browser, page, log):
    log.write('line\n' * 200)
    browser.open(JOB)
    expect(lines(page)).to_have_count(200)
    page.keyboard.press('Tab')
    assert focused(page) == 'Skip to the content'
    box = page.locator('.skip').bounding_box()
    assert box['width'] > 50  # it can be seen now
    page.keyboard.press('Enter')
    passed = []
    while focused(page) != 'Cancel':
        page.keyboard.press('Tab')
        passed.append(focused(page))
        assert len(passed) < 10, passed
    assert 'Pipelines' not in passed
    while focused(page) != 'Keep me' and len(passed) < 40 and 'Lines of the log' not in passed:
        page.keyboard.press('Tab')
        passed.append(focused(page))
    assert {'Search the log', 'Next match', 'Top', 'First error', 'Bottom', 'Raw'} <= set(passed)
    before = page.evaluate('document.querySelector("#trace").scrollTop')
    page.keyboard.press('PageUp')
    browser.wait(lambda: page.evaluate('document.querySelector("#trace").scrollTop') < before)
    page.get_by_role('button', name='Cancel').focus()
    page.keyboard.press('Enter')
    expect(page.locator('h1 .status')).to_have_text('canceled')


def test_what_follows_the_log_is_a_few_keys_away(browser, page, ci, runner):
    log = Log(ci, runner, variables={'LEVEL': '3'})
    log.write('line\n' * 200)
    browser.open(JOB)
    expect(lines(page)).to_have_count(200)
    page.locator('#trace').focus()
    for _ in range(3):
        page.keyboard.press('Tab')
        if focused(page) == 'Variables':
            break
    assert focused(page) == 'Variables'
