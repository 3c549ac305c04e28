"""A real browser for tests and pictures: the system's Chromium without windows, which Playwright drives."""

import shutil
import time

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import expect, sync_playwright

PATIENCE = 20  # seconds; a busy machine is slow, a wrong page stays wrong
FLAGS = [
    '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost',  # ask nobody outside
    '--no-proxy-server',
    '--in-process-gpu',     # a process of its own for it may die on a busy machine, and with the sixth the browser ends
    '--disable-gpu-watchdog',
]
#: axe-core tells of what is right, too, at such length that carrying it here took longer than finding it.
FAULTS = """async options => {
    const {violations} = await axe.run({...options, resultTypes: ['violations']});
    return violations.filter(({impact}) => ['serious', 'critical'].includes(impact))
        .flatMap(({id, help, nodes}) => nodes.map(({html}) => `${id}: ${help}: ${html}`));
}"""


class Chromium:
    """A browser process. Use it as a context manager; `browser()` opens a window without any history.

    An asyncio loop runs in this thread until it is closed.
    """

    #: The shell draws what one looks at and no windows around it: a page costs a fifth of the whole browser's work.
    path = shutil.which('chromium-headless-shell') or shutil.which('chromium')
    #: What takes pictures: in one of a whole page, the shell leaves parts empty that it has not drawn yet.
    camera = shutil.which('chromium') or path

    def __init__(self, path=None):
        self._path = path or self.path
        self._playwright = sync_playwright().start()
        try:
            self._launch()
        except BaseException:
            self._playwright.stop()
            raise
        expect.set_options(timeout=PATIENCE * 1000)

    def _launch(self):
        self.process = self._playwright.chromium.launch(executable_path=self._path, args=FLAGS)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.close()
        self._playwright.stop()

    def browser(self, base_url=None):
        """Return a new window; in a new process if the old one has ended, which happens to Chromium."""
        if not self.process.is_connected():
            self._launch()
        return Browser(self.process, base_url)


class Browser:
    """A window with cookies and a console of its own: `page` is Playwright's page, for everything not here."""

    def __init__(self, process, base_url=None):
        self._process, self._base_url, self._console, self._context = process, base_url, [], None
        self.size(1280, 800)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._context.close()

    def size(self, width, height, *, dark=False):
        """Go on in a window of this size, a phone's when it is narrow: the cookies stay, the page does not."""
        phone = width < 600
        cookies = None
        if self._context:
            self._settle()
            cookies = self._context.storage_state()
            self._context.close()
        self._context = self._process.new_context(
            viewport={'width': width, 'height': height}, color_scheme='dark' if dark else 'light', is_mobile=phone,
            has_touch=phone, device_scale_factor=2 if phone else 1, base_url=self._base_url, storage_state=cookies)
        self._context.set_default_timeout(PATIENCE * 1000)
        self._context.on('console', self._note)
        self._context.on('weberror', lambda event: self._console.append(f'exception: {event.error}'))
        self.page = self._context.new_page()

    def open(self, url):
        """Go to a URL, or to a path below the base URL; return the response."""
        return self.page.goto(url)

    def screenshot(self, path, *, full=True):
        """Write a picture of the whole page, or of the part in view."""
        self.page.screenshot(path=path, full_page=full, animations='disabled')

    def console(self):
        """Return the errors and warnings since the last call, and forget them.

        They include uncaught exceptions, answers of 400 and up, requests that failed, and what the
        Content-Security-Policy stopped.
        """
        self._settle()
        messages, self._console = self._console, []
        return messages

    def axe(self, *rules):
        """Return the serious and critical faults that axe-core finds, by all rules or these, each with its markup."""
        if not self.page.evaluate('Boolean(window.axe)'):
            self.page.evaluate(AXE_SCRIPT)
        return self.page.evaluate(FAULTS, {'runOnly': list(rules)} if rules else {})

    def wait(self, condition, timeout=PATIENCE):
        """Return the first true value of condition(), while the page goes on; raise TimeoutError after some seconds."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f'not so after {timeout} s, on {self.page.url}')
            self.page.wait_for_timeout(20)
        return value

    def _note(self, message):
        own = message.text.startswith('Blocked script execution')  # what _settle asks of a raw log, which is sandboxed
        if message.type in ('error', 'warning', 'assert') and not own:
            self._console.append(f'{message.type}: {message.text} ({message.location["url"]})')

    def _settle(self):
        """Take in what the pages have said so far."""
        for page in self._context.pages:
            page.evaluate('0')
