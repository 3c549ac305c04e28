"""A browser without a screen: pages as trees of elements, cookies kept, buttons pressed as people press them."""

import contextlib
import re
from html.parser import HTMLParser
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urlencode, urlsplit

from support import Client

import minici

VOID = {'meta', 'link', 'input', 'br', 'hr', 'img'}


class Element:
    """An element of a page."""

    def __init__(self, tag, attributes=(), parent=None):
        self.tag, self.attributes, self.parent, self.children = tag, dict(attributes), parent, []
        assert len(self.attributes) == len(attributes), f'{tag} repeats an attribute: {attributes}'
        if parent is not None:
            parent.children.append(self)

    def __getitem__(self, name):
        return self.attributes[name]

    def __iter__(self):
        """Yield the element and all within it, in order."""
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child

    @property
    def raw(self):
        """The text within, as it is."""
        return ''.join(child.raw if isinstance(child, Element) else child for child in self.children)

    @property
    def text(self):
        """The text within, every run of blanks as one."""
        return ' '.join(self.raw.split())

    def all(self, tag='', **wanted):
        """Return the elements within of a tag and with these attributes; `class_` is one of its classes, None any."""
        def fits(element):
            given = {name: element.attributes.get(name.rstrip('_').replace('_', '-'), False) for name in wanted}
            return (not tag or element.tag == tag) and all(
                given[name] is not False and (value is None or given[name] == value
                                              or name == 'class_' and value in given[name].split())
                for name, value in wanted.items())
        return [element for element in self if fits(element)]

    def one(self, tag='', **wanted):
        """Return the only such element."""
        found = self.all(tag, **wanted)
        assert len(found) == 1, f'{len(found)} elements are {tag} {wanted}'
        return found[0]

    def texts(self, tag='', **wanted):
        """Return the texts of such elements."""
        return [element.text for element in self.all(tag, **wanted)]

    def within(self, tag):
        """Return the nearest element of a tag around this one."""
        element = self
        while element.tag != tag:
            element = element.parent
        return element

    def facts(self):
        """Return a list of terms and what they say, as a dict."""
        terms, said = self.texts('dt'), self.texts('dd')
        assert len(terms) == len(said)
        return dict(zip(terms, said, strict=True))


class Reader(HTMLParser):
    """Reads a page, strictly: every element is closed where it must be."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.root = self.at = Element('#page')
        self.feed(text)
        self.close()
        assert self.at is self.root, f'{self.at.tag} is never closed'

    def handle_starttag(self, tag, attributes):
        element = Element(tag, attributes, self.at)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag, attributes):
        Element(tag, attributes, self.at)

    def handle_endtag(self, tag):
        assert self.at.tag == tag, f'{tag} ends within {self.at.tag}'
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.children.append(data)

    def handle_comment(self, data):
        raise AssertionError(f'a comment: {data}')

    unknown_decl = handle_pi = handle_comment


def read_page(text):
    """Return a page as a tree."""
    return Reader(text).root


class Browser(Client):
    """Opens pages, keeps their cookie, fills in and sends their forms."""

    def __init__(self, ci, token=None, app=None, *, prefix='', host='localhost:80'):
        super().__init__(ci, app)
        self.cookiejar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session = token     # a text that is no private token is sent as it is
        with contextlib.suppress(minici.Forbidden):
            session = token and ci.sign_in_with(token)
        self.cookie = session and f'minici_{ci.instance}={session}'
        self.prefix, self.host = prefix, host

    def send(self, method, path, headers=None, **body):
        """Send a request as browsers do; keep the cookie that comes back."""
        headers = {'Accept': 'text/html', 'Host': self.host, **({'Cookie': self.cookie} if self.cookie else {}),
                   **(headers or {})}
        answer = self.call(method, path.partition('#')[0], headers=headers, **body)
        for cookie in answer.headers.getall('Set-Cookie'):
            pair, *options = cookie.split('; ')
            self.cookie = None if 'Max-Age=0' in options else pair
        return answer

    def open(self, path, status=200, **headers):
        """Open an address, lead where it may, and return the page; `page.answer` is how it came."""
        answer = self.send('GET', self.prefix + path, headers)
        for _ in range(3):
            if answer.status_int != 303:
                break
            answer = self.send('GET', answer.headers['Location'], headers)
        assert answer.status_int == status, (path, answer.status, answer.text[-2000:])
        page = read_page(answer.text)
        page.answer = answer
        return page

    def get(self, path, status=200, **headers):
        """Send a GET and return the answer, wherever it leads."""
        headers = {name.replace('_', '-'): value for name, value in headers.items()}
        answer = self.send('GET', self.prefix + path, headers)
        assert answer.status_int == status, (path, answer.status, answer.text[-2000:])
        return answer

    @property
    def csrf(self):
        """What the forms of this browser carry."""
        return self.open('/').all('input', name='csrf')[0]['value']

    def post(self, path, status=303, headers=None, /, **fields):
        """Send a form to an address; return the answer."""
        fields = {'csrf': self.csrf, **fields} if self.cookie else fields
        return self.submit(self.prefix + path, fields, status, headers)

    def submit(self, path, fields, status=303, headers=None):
        """Send fields as browsers do; return the answer."""
        pairs = [(name, '\r\n'.join(value.splitlines())) for name, value in fields.items() if value is not None]
        answer = self.send('POST', path, {'Content-Type': 'application/x-www-form-urlencoded', **(headers or {})},
                           data=urlencode(pairs).encode())
        assert answer.status_int == status, (path, answer.status, answer.text[-2000:])
        return answer

    def press(self, page, label, status=303, /, **changes):
        """Press the button of that name, its form filled in as it is but for `changes`; return what comes."""
        button, = [button for button in page.all('button')
                   if label == (button.attributes.get('aria-label') or button.text)]
        form = button.within('form')
        fields = {}
        for field in form:
            name = field.attributes.get('name')
            if field.tag == 'input' and field.attributes.get('type') not in ('checkbox',):
                fields[name] = field.attributes.get('value', '')
            elif field.tag == 'textarea':
                fields[name] = field.raw
            elif field.tag == 'select':
                chosen = [option for option in field.all('option') if 'selected' in option.attributes]
                option = (chosen or field.all('option'))[0]
                fields[name] = option.attributes.get('value', option.text)
        if 'name' in button.attributes:
            fields[button['name']] = button['value']
        assert set(changes) <= {field['name'] for field in form if 'name' in field.attributes}
        fields.update(changes)
        path = button.attributes.get('formaction') or form.attributes.get('action') \
            or urlsplit(page.answer.request.url).path
        if form.attributes.get('method') != 'post':
            return self.open(f'{path[len(self.prefix):]}?{urlencode(fields)}')
        answer = self.submit(path, fields, status)
        if answer.status_int == 303:
            return self.open(answer.headers['Location'][len(self.prefix):])
        answer.page = read_page(answer.text)
        answer.page.answer = answer
        return answer.page


def crawl(browser):
    """Follow every link that leads to a page of ours, from the home page on; yield each page and its address."""
    seen, todo = set(), ['/']
    while todo:
        path = todo.pop()
        if path in seen or re.search('/(raw|plain|artifacts/(file/.*|download))$', path.partition('?')[0]):
            continue
        seen.add(path)
        page = browser.open(path)
        yield path, page
        here = page.answer.request.path
        for link in page.all('a', href=None):
            href = link['href']
            if href.startswith(('#', '?')):
                href = here + ('' if href[0] == '#' else href)
            assert href.startswith(f'{browser.prefix}/'), href
            todo.append(href[len(browser.prefix):])
        for form in page.all('form', action=None):
            assert form['action'].startswith(f'{browser.prefix}/'), form['action']
