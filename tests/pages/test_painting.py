"""Hostile logs and names in a real browser: whatever they hold, they are shown as text."""

import json
import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import SHA, Runner

import minici

MARKUP = [
    '<script>canary()</script>', '<img src=x onerror=canary()>', '"><svg onload=canary()>', "' onclick='canary()",
    '</span></div></body>', '<a href="javascript:canary()">', '<iframe srcdoc="<script>parent.canary()</script>">',
    '<style>*{display:none}</style>', '<base href="http://host.test/">', '<link rel=stylesheet href=//host.test/x>',
    '&lt;', '&#60;script&#62;', '<!--', ']]>', 'javascript:canary()', '${canary()}', '{{canary()}}', '\\u003cb\\u003e',
    'L1', '#L1', '__proto__', 'constructor', '% import os', '<meta http-equiv=refresh content="0;url=//host.test">']
WORDS = st.sampled_from(MARKUP) | st.text(st.characters(exclude_categories=()), max_size=6)
NUMBERS = ['', '38', '48', '98', '38;5', '38:2:', '48;2', '999999999999999999999999', '-1', '1e3', '0' * 300]
NAMES = ['build', 'step_script', '__proto__', 'constructor', 'toString', '.', '<b>', 'a b', 'x' * 200]
TIMES = ['0', '1700000000', '1700000100', '9' * 40, '-5', '']
OPTIONS = ['', '', '[collapsed=true]', '[collapsed=true', '[<b onclick=canary()>]', '[]', '[a][b]']
CONTROLS = [*'\n\n\n\r\r\t\0\b\x1b\x7f\x9b\u202e\u2066\u200f\u0301\ufeff', '\r\n']
LONG = ['x' * 300, '\x1b[1;31mx' * 40, 'ab\r' * 40, '\x1b[' + '1;' * 200 + 'm', '\x1b' * 100]


class Traces:
    """Makes hostile traces of pieces that a die chooses: Hypothesis's own choices cost more than what is tested."""

    def __init__(self, die):
        self.die = die
        self.kinds = [self.word, self.word, self.control, self.style, self.sequence, self.escape, self.command,
                      self.section, self.long]

    def one(self, texts):
        return self.die.choice(texts)

    def some(self, first, last, most):
        """Return up to so many characters of a range."""
        return ''.join(chr(self.die.randint(ord(first), ord(last))) for _ in range(self.die.randint(0, most)))

    def word(self):
        last = self.one('\x7f\u07ff\uffff\U0010ffff')
        return self.one([self.one(MARKUP), self.some('\0', last, 6)])

    def control(self):
        return self.one(CONTROLS)

    def number(self):
        return self.one([str(self.die.randint(0, 9)), str(self.die.randint(0, 300)), self.one(NUMBERS)])

    def style(self):
        codes = [self.number() for _ in range(self.die.randint(0, 6))]
        return f'\x1b[{";".join(codes)}m'

    def sequence(self):
        return '\x1b[' + self.some('0', '?', 5) + self.some(' ', '/', 2) + self.some('@', '~', 1)

    def escape(self):
        return '\x1b' + self.some(' ', '/', 2) + self.some('0', '~', 1)

    def command(self):
        kind, end = self.one(['8;;', '8;id=1;', '0;', '52;c;', '']), self.one(['\x07', '\x1b\\', '', '\x9c', '\n'])
        return f'\x1b]{kind}{self.word()}{end}'

    def section(self):
        edge, end = self.one(['start', 'end', 'start', 'end', 'middle']), self.one(['\r\x1b[0K', '\r', '\n', ''])
        return f'section_{edge}:{self.one(TIMES)}:{self.one(NAMES)}{self.one(OPTIONS)}{end}'

    def long(self):
        return self.one(LONG)

    def trace(self):
        return ''.join(self.one(self.kinds)() for _ in range(self.die.randint(0, 14)))


#: The beginning of an escape sequence, of which more may come.
UNFINISHED = re.compile(r'\x1b(\[[0-?]*)?[ -/]*\Z')
MARK = re.compile(r'section_(?:start|end):[0-9]+:[A-Za-z0-9_.-]+(?:\[[^\[\]]*\])?\Z')


def after_escape(text, at):
    """Return where the escape sequence that begins at `at` ends; what is none ends at once."""
    def skip(at, first, last):
        while text[at:at + 1] and first <= text[at] <= last:
            at += 1
        return at
    kind = text[at + 1:at + 2]
    if kind == ']':
        end = at + 2
        while text[end:end + 1] not in ('', '\x07', '\x1b'):
            end += 1
        return end + (text[end:end + 1] == '\x07') + 2 * (text[end:end + 2] == '\x1b\\')
    end = skip(skip(at + 2, '0', '?') if kind == '[' else at + 1, ' ', '/')
    if ('@' if kind == '[' else '0') <= text[end:end + 1] <= '~':
        return end + 1
    return at + 2 if kind == '[' else at + 1


def what_shows(text):
    """Return the visible characters of a text, and whether it erases its line."""
    shown, erases, at = '', False, 0
    while at < len(text):
        if text[at] == '\x1b':
            end = after_escape(text, at)
            erases = erases or text[at:end] in ('\x1b[K', '\x1b[0K', '\x1b[1K', '\x1b[2K')
            at = end
        else:
            if text[at] == '\t' or not (text[at] < ' ' or '\x7f' <= text[at] <= '\x9f'):
                shown += text[at]
            at += 1
    return shown, erases


def model(trace):
    """Return the rows that a trace should show: the number of each line, and its text."""
    rows, lines = [], json.loads(json.dumps(trace)).split('\n')
    for number, line in enumerate(lines, 1):
        complete, row, marks = number < len(lines), '', 0
        for piece in (line if complete else UNFINISHED.sub('', line)).split('\r'):
            mark = MARK.search(piece)
            shown, erases = what_shows(piece[:mark.start()] if mark else piece)
            row = shown if shown or erases else row
            if mark and complete:
                marks += 1
                rows += [[number, row]] if row else []
                row = ''
        if row or complete and not marks:
            rows.append([number, row])
    return rows


PAINT = r"""([traces, steps]) => {
    const ALLOWED = {
        DIV: /^(section|section folded|header|lines|line)$/, A: /^$/, BUTTON: /^fold$/,
        SPAN: /^(text|took|([bdiurs]|[fg]([0-9]|1[0-5]))?( ([bdiurs]|[fg]([0-9]|1[0-5])))*)$/};
    const ATTRIBUTES = {
        class: /^/, 'aria-label': /^Section [A-Za-z0-9_.-]+$/, 'aria-expanded': /^(true|false)$/, id: /^L[0-9]+$/,
        href: /^#L[0-9]+$/, tabindex: /^-1$/,
        style: /^(color: rgb\(\d+, \d+, \d+\);)?( ?background-color: rgb\(\d+, \d+, \d+\);)?$/};
    const HOLDERS = {'aria-label': 'BUTTON', 'aria-expanded': 'BUTTON', id: 'DIV', href: 'A', tabindex: 'A',
                     style: 'SPAN'};
    const draw = cuts => {
        const root = document.body.appendChild(document.createElement('div'));
        const painter = new minici.Painter(root, 1);
        for (const cut of cuts) painter.feed(cut);
        root.remove();
        return root;
    };
    const cut = text => {
        const cuts = [];
        for (let at = 0, turn = 0; at < text.length; turn += 1) {
            const step = steps[turn % steps.length] * Math.ceil(text.length / 100);
            cuts.push(text.slice(at, at + step));
            at += step;
        }
        return cuts;
    };
    return JSON.stringify(JSON.parse(traces).map(text => {
        const root = draw([text]), faults = [];
        for (const element of root.querySelectorAll('*')) {
            if (!ALLOWED[element.tagName]?.test(element.className)) faults.push(element.outerHTML.slice(0, 200));
            for (const {name, value} of element.attributes)
                if (!ATTRIBUTES[name]?.test(value) || element.tagName !== (HOLDERS[name] || element.tagName))
                    faults.push(`${element.tagName} ${name}=${value}`);
        }
        for (const node of root.querySelectorAll('.took'))
            if (!/^([0-9]+:)?[0-9]+:[0-9]{2}$/.test(node.textContent)) faults.push('took ' + node.textContent);
        if (draw(cut(text)).outerHTML !== root.outerHTML) faults.push('it depends on how it is cut');
        const rows = Array.from(root.querySelectorAll('.line'),
            row => [+row.querySelector('a').textContent, row.querySelector('.text').textContent]);
        return {faults, rows};
    }));
}"""


@pytest.fixture
def canary(browser):
    """A page with the script, where nothing may be asked for and nothing said from now on."""
    browser.open('/-/sign_in')
    browser.page.evaluate('() => { window.canary = () => { window.sung = true; }; }')
    heard = []
    browser.page.on('request', lambda request: heard.append(request.url))
    browser.page.on('console', lambda message: heard.append(message.text))
    browser.page.on('dialog', lambda dialog: heard.append(dialog.message))
    yield browser.page
    assert [text for text in heard if '/-/favicon/' not in text] == []  # a browser asks for it when it likes
    assert browser.page.evaluate('window.sung') is None


def test_hostile_traces_become_text_in_a_closed_set_of_elements(canary):
    @settings(max_examples=52, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=True))
    def paint(die):
        made = Traces(die)
        traces = [made.trace() for _ in range(100)]
        steps = [die.randint(1, 9) for _ in range(die.randint(1, 5))]   # how large the pieces are
        painted = json.loads(canary.evaluate(PAINT, [json.dumps(traces), steps]))
        for trace, found in zip(traces, painted, strict=True):
            assert found['faults'] == [], repr(trace)
            assert found['rows'] == model(trace), repr(trace)
    paint()


SHOWN = {
    '\x1b]8;;https://host.test/\x07link\x1b]8;;\x07\n': [[1, 'link']],
    '10%\r50%\r\x1b[K100%\r\n': [[1, '100%']],
    'progress\r\x0f\n': [[1, 'progress']],
    'a\x1b[1': [[1, 'a']],
    '\x1b(': [],
    'one\nsection_end:5:never\r\x1b[0Ktwo\n': [[1, 'one'], [2, 'two']],
    '\n\n': [[1, ''], [2, '']],
    '\x1b[1;31m<b>\x1b[m' * 2500: [[1, '<b>' * 2500]],
    '\x1b[' + '1;' * 5000 + 'mx': [[1, 'x']],
    '<' * 100_000: [[1, '<' * 100_000]],
    'section_start:1:a\r' * 300 + 'deep\n': [[1, 'deep']],
}


def test_trace_shows_what_a_terminal_would(canary):
    painted = json.loads(canary.evaluate(PAINT, [json.dumps(list(SHOWN)), [1]]))
    assert [found['faults'] for found in painted] == [[]] * len(SHOWN)
    assert [found['rows'] for found in painted] == list(SHOWN.values())
    assert [model(trace) for trace in SHOWN] == list(SHOWN.values())


STYLES = {
    '31': 'f1', '91;44': 'f9 g4', '1;2;3;4;9': 'b d i u s', '1;22': '', '31;39': '', '0;1;0': '', '98': '', '38;5': '',
    '38;5;9': 'f9', '38;5;196': 'color: rgb(255, 0, 0);', '38;5;244': 'color: rgb(128, 128, 128);',
    '48;2;1;2;3': 'background-color: rgb(1, 2, 3);', '38:2:1:2:3': 'color: rgb(1, 2, 3);',
    '38:2::1:2:3': 'color: rgb(1, 2, 3);', '38;2;300;2;3;1': 'b color: rgb(255, 2, 3);', '58;5;31': '', '4:3': 'u',
    '4;4:0': '',
    '7': 'r', '7;31': 'g1', '7;31;42': 'f2 g1', '7;38;2;1;2;3': 'background-color: rgb(1, 2, 3);', '7;27;31': 'f1',
}


def test_codes_of_a_terminal_become_classes_and_colours(canary):
    painted = canary.evaluate(r"""all => Object.fromEntries(all.map(codes => {
        const root = document.createElement('div');
        new minici.Painter(root, 1).feed(`\x1b[${codes}mtext\n`);
        const span = root.querySelector('.text span');
        return [codes, span ? `${span.className} ${span.getAttribute('style') || ''}`.trim() : ''];
    }))""", list(STYLES))
    assert painted == STYLES


def test_endless_lines_and_styles_stay_quick(canary):
    """Each would take minutes if its cost grew with the square of its length."""
    for text, count in (('\x1b[1;3;31;44mx\x1b[0my', 40000), ('progress 10%\r', 40000), ('\x1b[', 200000),
                        ('\x1b]8;;', 50000), ('section_start:1:', 30000), ('section_start:1:a\r', 3000),
                        ('section_start:1:a[', 17000)):
        canary.evaluate("""([text, count]) => {
            const painter = new minici.Painter(document.createElement('div'), 1);
            for (let turn = 0; turn < 4; turn += 1) painter.feed(text.repeat(count / 4));
        }""", [text, count])


NAMED = st.lists(st.builds(str.__add__, WORDS, WORDS).map(
    lambda text: re.sub('[$\x00-\x1f\x7f-\x9f\ud800-\udfff]', '', text).strip(' .')).filter(bool),
    min_size=4, max_size=12, unique=True)
COUNT = """() => [document.querySelectorAll('*').length,
    Array.from(document.querySelectorAll('.name'), name => name.textContent),
    Array.from(document.querySelectorAll('*')).some(
        node => Array.from(node.attributes).some(({name}) => name.startsWith('on')))]"""


def make_pipeline(ci, project, names, plain=False):
    """Make a pipeline whose jobs, stages, variables and environments have these names, or as many plain ones."""
    names = [f'plain {number}' for number in range(len(names))] if plain else names
    content = {'stages': names, 'workflow': {'name': names[0]}, **{name: {
        'stage': name, 'script': ['true'], 'tags': [name], 'variables': {'NAME': name}, 'needs': []} for name in names}}
    return ci.create_pipeline(project, 'main', sha=SHA, content=content, variables=[{'key': 'A', 'value': names[-1]}])


def test_hostile_names_are_text_on_every_page(browser, ci, token, project, server):
    session = ci.sign_in_with(token)
    browser.page.context.add_cookies([{'name': f'minici_{ci.instance}', 'value': session, 'url': server.url}])
    page, asked = browser.page, []
    page.on('request', lambda request: asked.append(request.url))

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(NAMED)
    def show(names):
        try:
            hostile = make_pipeline(ci, project, names)
        except minici.BadRequest:  # not a name for a job
            return
        plain = make_pipeline(ci, project, names, plain=True)
        seen = []
        for pipeline in (hostile, plain):
            browser.open(f'/group/demo/-/pipelines/{pipeline["id"]}')
            seen.append(page.evaluate(COUNT))
            browser.open(f'/group/demo/-/jobs/{ci.list_jobs(pipeline=pipeline, limit=1)[0]["id"]}')
            seen.append(page.evaluate(COUNT))
        assert seen[0][1] == names
        assert [found[::2] for found in seen[:2]] == [found[::2] for found in seen[2:]]
    show()
    runner = Runner(ci, description=MARKUP[0], tag_list=MARKUP[:3], info={'name': MARKUP[1], 'version': MARKUP[2]})
    ci.create_trigger(project, ci.find_user(token), MARKUP[3])
    ci.set_variable(project, 'HOSTILE', MARKUP[2])
    for path in ('/', '/-/runners', '/group/demo', f'/?ref={MARKUP[0]}', f'/-/projects?search={MARKUP[2]}'):
        browser.open(path)
        assert page.locator('script, img, iframe, base').count() == 1  # our own script
    assert runner.row
    assert {url for url in asked if not url.startswith(server.url)} == set()
