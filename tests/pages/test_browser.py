"""The browser of the tests: it sees what a person would, and what goes wrong on a page."""

import pytest

PAGE = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>demo</title>
<style>body { color-scheme: light dark; background: Canvas }</style><main><h1>Hello</h1>%s</main></html>"""


@pytest.fixture
def show(browser):
    """Show a page made of some markup, under the policy given."""
    def show(markup='', policy="default-src 'unsafe-inline'"):
        browser.page.route('**/demo', lambda route: route.fulfill(
            body=PAGE % markup, content_type='text/html', headers={'Content-Security-Policy': policy}))
        browser.open('/demo')
        return browser.page
    return show


def test_a_page_talks_to_the_server(browser, show, client):
    page = show(policy="default-src 'self' 'unsafe-inline'")
    answer = page.evaluate("fetch('/api/v4/version').then(response => response.json())")
    assert answer == client.call('GET', '/api/v4/version').json
    [message] = browser.console()
    assert '401' in message
    assert '/api/v4/version' in message


@pytest.mark.parametrize('width, dark', [(1280, False), (390, True)])
def test_a_window_has_the_size_and_the_scheme_asked_for(browser, show, tmp_path, width, dark):
    browser.size(width, 844, dark=dark)
    page = show('<p>text')
    assert page.evaluate('innerWidth') == width
    assert page.evaluate('matchMedia("(prefers-color-scheme: dark)").matches') is dark
    browser.screenshot(tmp_path / 'page.png')
    picture = (tmp_path / 'page.png').read_bytes()
    assert int.from_bytes(picture[16:20], 'big') == width * (2 if width == 390 else 1)


@pytest.mark.parametrize('markup, policy, complaint', [
    ('<script>1</script>', "default-src 'self'", 'Content Security Policy'),
    ('<script>missing()</script>', "default-src 'unsafe-inline'", 'exception: missing is not defined'),
    ('<img src="/nowhere.png" alt="">', "img-src 'self'", '/nowhere.png'),
    ('<img src="http://host.test/a.png" alt="">', 'img-src http:', 'ERR_NAME_NOT_RESOLVED'),
], ids=['policy', 'exception', 'missing', 'outside'])
def test_the_console_tells_what_went_wrong(browser, show, markup, policy, complaint):
    show(markup, policy)
    messages = browser.wait(browser.console)
    assert any(complaint in message for message in messages), messages
    browser.wait(lambda: not browser.console())


def test_axe_names_the_fault_and_the_markup(browser, show):
    show('<p>fine', "default-src 'none'; style-src 'unsafe-inline'")
    assert browser.axe() == []
    show('<img src="data:,">', "default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert [fault.split(':')[0] for fault in browser.axe()] == ['image-alt']


def test_cookies_last_from_size_to_size_and_no_longer_than_a_test(browser):
    browser.page.context.add_cookies([{'name': 'a', 'value': '1', 'url': 'http://127.0.0.1/', 'httpOnly': True}])
    browser.size(390, 844)
    assert [cookie['name'] for cookie in browser.page.context.cookies()] == ['a']


def test_a_new_browser_has_no_cookies(browser):
    assert browser.page.context.cookies() == []


def test_a_browser_whose_process_has_ended_is_started_again(chromium):
    chromium.process.close()
    with chromium.browser() as window:
        assert window.open('data:text/html,<h1>again</h1>') is None
        assert window.page.get_by_role('heading').inner_text() == 'again'
