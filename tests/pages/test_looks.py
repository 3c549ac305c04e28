"""Every page as people see it: no fault that keeps anybody out, nothing beyond the edge, pictures of all."""

import contextlib
import dataclasses
import subprocess
import sys

import pytest
from screenshots import example, pages
from support import TOP, Runner

import minici

EMPTY = ('/', '/-/runners', '/-/projects', '/-/pipelines/new', '/-/tokens', '/-/pipelines/1')
REACH = """Array.from(document.querySelectorAll('body *')).filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('#trace, pre, .board, .bar nav, .sr'))
    .map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope='module')
def gallery(tmp_path_factory):
    """The example that pictures are taken of, served; its address, and the pages worth a look."""
    with example(tmp_path_factory.mktemp('gallery')) as (ci, ids), minici.Server(ci) as server:
        yield ci, server.url, pages(ids)


@pytest.fixture
def window(chromium, gallery):
    """A function that opens a window on the example, signed in with a token of some scope, or not at all."""
    ci, url, _ = gallery
    with contextlib.ExitStack() as stack:
        def make(scope=None):
            browser = stack.enter_context(chromium.browser(url))
            if scope:
                session = ci.sign_in_with(ci.create_private_token('ada', scope))
                browser.page.context.add_cookies([{
                    'name': f'minici_{ci.instance}', 'value': session, 'url': url}])
            return browser
        yield make


def faults(browser, addresses, *, dark=False):
    """Return what is wrong with some pages in light; with `dark`, their contrast in dark, too."""
    found = []
    for address in addresses:
        browser.page.emulate_media(color_scheme='light')
        browser.open(address)
        if browser.page.locator('#log').count():
            browser.page.locator('#trace .line').first.wait_for()
        found += [(address, fault) for fault in browser.axe()]
        if dark:
            browser.page.emulate_media(color_scheme='dark')
            found += [(address, 'dark', fault) for fault in browser.axe('color-contrast')]
        if browser.page.evaluate('document.documentElement.scrollWidth > innerWidth'):
            found.append((address, 'is wider than the window', browser.page.evaluate(REACH)))
    return found


@pytest.mark.parametrize('width', [1280, 390])
def test_no_page_has_a_serious_fault_in_light_or_dark(window, gallery, width):
    browser = window('api')
    browser.size(width, 844)
    assert faults(browser, gallery[2].values(), dark=width == 1280) == []   # a phone has the same colours


@pytest.mark.parametrize('width, height', [(1280, 800), (390, 844)])
def test_pipeline_of_150_jobs_fits_three_screens_with_all_failures_on_the_first(window, gallery, width, height):
    browser = window('api')
    browser.size(width, height)
    browser.open(gallery[2]['large-pipeline'])
    assert '150 jobs' in browser.page.locator('.head').inner_text()
    assert browser.page.evaluate('document.documentElement.scrollHeight') <= 3 * height
    failures = browser.page.locator('.failures .job').all()
    assert len(failures) == 4
    assert all(failure.bounding_box()['y'] + failure.bounding_box()['height'] <= height for failure in failures)


def test_long_names_make_no_page_wider_than_a_phone(chromium, browser, ci, token, server):
    project = ci.create_project('a-group-with-a-long-name/' + 'and-a-project-with-a-longer-one-' * 3)
    ci.create_pipeline(project, 'a-branch-with-a-name-of-some-length' * 2, sha='1' * 40, content={
        'a job with a name that goes on ' * 4: {'script': ['x'], 'tags': ['a-tag-with-a-long-name' * 3]}})
    claim = Runner(ci, tag_list=['a-tag-with-a-long-name' * 3]).claim()
    ci.append_trace(ci.authenticate_job(claim.job['id'], claim.token), 0, b'x' * 1000 + b'\n')
    session = ci.sign_in_with(token)
    browser.page.context.add_cookies([{'name': f'minici_{ci.instance}', 'value': session, 'url': server.url}])
    browser.size(390, 844)
    base = f'/{project["path"]}'
    assert faults(browser, [
        '/', '/-/pipelines/new', '/-/projects', base, f'{base}/-/pipelines/1', f'{base}/-/jobs/1', '/-/runners']) == []


def test_pages_of_readers_and_strangers_have_no_serious_fault(window, gallery, monkeypatch):
    ci, _, addresses = gallery
    readable = [addresses[name] for name in ('pipelines', 'pipeline', 'job', 'runners', 'project')]
    assert faults(window('read_api'), readable[1:]) == []
    monkeypatch.setattr(ci, 'settings', dataclasses.replace(ci.settings, public=True))
    assert faults(window(), readable) == []


def test_pages_of_an_empty_installation_have_no_serious_fault(chromium, browser, ci, token, server):
    session = ci.sign_in_with(token)
    browser.page.context.add_cookies([{'name': f'minici_{ci.instance}', 'value': session, 'url': server.url}])
    assert faults(browser, EMPTY) == []
    assert all('404' in message for message in browser.console())  # of the last


def test_one_command_takes_pictures_of_every_page(gallery, tmp_path):
    program = TOP / 'tests' / 'pages' / 'screenshots.py'
    done = subprocess.run([sys.executable, program, tmp_path / 'pictures', '390', 'dark'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pictures = {path.name: path.read_bytes() for path in (tmp_path / 'pictures').iterdir()}
    assert set(pictures) == {f'{name}-390-dark.png' for name in gallery[2]}
    assert {int.from_bytes(picture[16:20], 'big') for picture in pictures.values()} == {2 * 390}
