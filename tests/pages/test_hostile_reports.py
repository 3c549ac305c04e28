"""Hostile junit files, names and attachments: pages and API show them as text, and nothing else of the machine.

MINICI_HOSTILE_REPORTS=5000 lets so many be made; the suite makes fewer.
"""

import contextlib
import gzip
import os
import random
import re
from xml.sax.saxutils import escape, quoteattr

import pytest
from browsing import Browser
from support import SHA, archive

import minici

COUNT = int(os.environ.get('MINICI_HOSTILE_REPORTS', 80))
CANARY = 'canary-of-a-file-beside'
MARKUP = [
    '<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "' onclick='alert(1)", '</pre></section>', '<!--',
    ']]>', '<a href="javascript:alert(1)">', 'javascript:alert(1)', '<base href="//host.test/">', '${x}', '{{7*7}}',
    '%s%n', '% end', '<iframe srcdoc="x">', '\u202e\u2066', '\u2028', '\ufeff', '&lt;b&gt;', '&#0;', 'x' * 300, 'a\nb',
    ' ', '\\', '\x7f', 'é' * 200]
PLACES = [
    '../../ci.sqlite', '/etc/passwd', '..%2f..%2fcanary.txt', '../canary.txt', '//host.test/x', 'http://host.test/x',
    'javascript:alert(1)', 'shots/a.png', '.', '', '\\\\host\\x', 'a/../../canary.txt', 'file:///etc/passwd',
    'x' * 3000]
TAGS = {
    '#page', 'html', 'head', 'meta', 'title', 'link', 'script', 'body', 'header', 'nav', 'main', 'footer', 'section',
    'aside', 'div', 'span', 'p', 'a', 'h1', 'h2', 'h3', 'ul', 'ol', 'li', 'dl', 'dt', 'dd', 'form', 'input', 'button',
    'label', 'select', 'option', 'details', 'summary', 'pre', 'code', 'time', 'svg', 'circle', 'path', 'rect', 'b',
    'kbd', 'noscript', 'strong', 'small', 'em', 'template', 'br', 'textarea', 'datalist', 'dialog', 'g', 'output'}


class Hostile:
    """Makes reports that mean harm, the same ones for the same seed."""

    def __init__(self, seed, canary):
        self.chance, self.canary = random.Random(seed), canary

    def text(self):
        return ''.join(self.chance.choices(MARKUP, k=self.chance.randint(1, 3)))

    def attribute(self, text):
        return quoteattr(''.join(letter for letter in text if letter >= ' ' or letter in '\t\n'))

    def place(self):
        return self.chance.choice([*PLACES, str(self.canary), f'file://{self.canary}'])

    def case(self):
        """Return a test case, in well-formed XML."""
        kind = self.chance.choice(['failure', 'error', 'skipped', 'system-out', 'flakyFailure', 'rerunFailure'])
        said = escape(self.text()).replace('\x7f', '')
        return (f'<testcase name={self.attribute(self.text())} classname={self.attribute(self.text())} '
                f'file={self.attribute(self.place())} time="{self.chance.choice(["1", "-1", "NaN", "9" * 400])}">'
                f'<{kind} message={self.attribute(self.text())}>{said}</{kind}>'
                f'<system-out>[[ATTACHMENT|{escape(self.place())}]]{said}</system-out></testcase>')

    def head(self):
        """Return what stands before the report: now and then it asks for files of the server or for the network."""
        return self.chance.choice([
            '', '', '<?xml version="1.0"?>', '<?xml version="1.0" encoding="UTF-7"?>',
            f'<!DOCTYPE x [<!ENTITY c SYSTEM "file://{self.canary}">]>', f'<!DOCTYPE x SYSTEM "file://{self.canary}">',
            f'<!DOCTYPE x [<!ENTITY % c SYSTEM "file://{self.canary}">%c;]>',
            f'<?xml-stylesheet href="file://{self.canary}"?>',
            '<!DOCTYPE x [<!ENTITY a "' + 'a' * 99 + '"><!ENTITY b "' + '&a;' * 99 + '">]>',
            f'<!DOCTYPE x PUBLIC "-//x" "http://127.0.0.1:9/x.dtd" [<!NOTATION n SYSTEM "file://{self.canary}">]>'])

    def file(self):
        """Return a junit file; now and then damaged."""
        include = f'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="file://{self.canary}" parse="text"/>'
        body = ''.join(self.case() for _ in range(self.chance.randint(0, 3)))
        depth = self.chance.choice([1, 1, 2, 150])
        suites = f'<testsuite name={self.attribute(self.text())}>' * depth
        text = f'{self.head()}{suites}{body}{self.chance.choice(["", include, "&c;", "&b;"])}{"</testsuite>" * depth}'
        data = text.encode(self.chance.choice(['utf-8', 'utf-8', 'utf-8', 'utf-16', 'utf-32', 'latin-1']), 'replace')
        if self.chance.random() < 0.2:
            start, end = sorted(self.chance.choices(range(len(data)), k=2))
            data = data[:start] + bytes(self.chance.choices(range(256), k=self.chance.randint(0, 9))) + data[end:]
        return data

    def upload(self):
        """Return the files as a runner sends them: each a member of one gzip file."""
        members = b''.join(gzip.compress(self.file()) for _ in range(self.chance.randint(1, 3)))
        if self.chance.random() < 0.1:
            return members[:self.chance.randint(0, len(members))] + b'\x1f\x8b'
        return members

    def name(self):
        """Return a name for a job, a stage or an environment."""
        return ''.join(letter for letter in self.text() if letter >= ' ' and letter != '$').strip(' .')[:200] or 'x'


def store(ci, job, content, file_type, file_format):
    part = ci.artifacts.receive()
    part.write(content)
    with contextlib.suppress(minici.BadRequest):
        ci.store_artifacts(job, part, file_type=file_type, file_format=file_format)
    part.discard()


def check_page(page, base):
    """Look at every element of a page: none does anything, none leads elsewhere."""
    for element in page:
        assert element.tag in TAGS, element.tag
        assert not [name for name in element.attributes if name.startswith('on') or name in ('style', 'srcdoc')]
        for name in ('href', 'src', 'action', 'formaction'):
            address = element.attributes.get(name, '/')
            assert re.match('/(?!/)|[#?]', address) or element.attributes.get('rel') == 'noopener noreferrer', address
    links = [link['href'] for link in page.all('a', href=None) if '/artifacts/file/' in link['href']]
    assert all(link.startswith(f'{base}/artifacts/file/') for link in links)
    return links


@pytest.fixture
def hostile(ci, project, runner, token):
    """A function that reports the tests of a hostile job and returns all that pages and API say of it."""
    browser = Browser(ci, token)

    def show(number, canary):
        make = Hostile(number, canary)
        stage = make.name()
        described = {'stage': stage, 'script': ['x'], 'environment': {'name': 'e', 'url': make.place()}}
        try:
            pipeline = ci.create_pipeline(project, 'main', sha=SHA, content={'stages': [stage], make.name(): described})
        except minici.BadRequest:   # not a name for a job
            pipeline = ci.create_pipeline(project, 'main', sha=SHA, content={'plain': {'script': ['x']}})
        job = runner.claim().job
        store(ci, job, make.upload(), 'junit', 'gzip')
        store(ci, job, archive(shots__a='picture'), 'archive', 'zip')
        ci.update_job(job, 'failed')
        base = f'/group/demo/-/jobs/{job["id"]}'
        told = []
        page = browser.open(base)
        links = check_page(page, base)
        told.append(page.answer)
        told += [browser.send('GET', link) for link in links]
        page = browser.open(f'/group/demo/-/pipelines/{pipeline["id"]}')
        check_page(page, base)
        told.append(page.answer)
        for name in ('test_report', 'test_report_summary'):
            path = f'/api/v4/projects/1/pipelines/{pipeline["id"]}/{name}'
            told.append(browser.call('GET', path, token=token, status=200))
        return told
    return show


def test_hostile_reports_and_names_show_as_text_and_leak_nothing(ci, hostile, runner, tmp_path):
    canary = tmp_path / 'canary.txt'
    canary.write_text(CANARY)
    before = {path for path in tmp_path.rglob('*') if 'ci-data' not in path.parts}
    for number in range(COUNT):
        for answer in hostile(number, canary):
            assert answer.status_int in (200, 400, 404), (number, answer.status)
            body = answer.body.decode(errors='replace')
            assert CANARY not in body, number
            assert 'root:x:0' not in body, number
            assert runner.token not in body, number
            assert b'SQLite format' not in answer.body, number
    assert {path for path in tmp_path.rglob('*') if 'ci-data' not in path.parts} == before
    assert not list((tmp_path / 'ci-data').rglob('*.part'))
