"""The README is true: its route table, settings and commands are those of the code.

`python tests/core/test_readme.py` writes the two tables anew.
"""

import dataclasses
import re
import shlex
from pathlib import Path

import minici

TOP = Path(__file__).parents[2]
README = (TOP / 'README.md').read_text(encoding='utf-8')


def route_lines(ci):
    """Return the rows that the route table must have."""
    for route in minici.create_app(ci).routes:
        if route.path.startswith(('/api/v1/', '/ci/')) and not route.path.startswith('/ci/api/v1/'):
            continue  # the other two addresses of the old protocol
        path = re.sub(r'<(\w+)(?::\w+)?>', r':\1', route.path)
        purpose = (route.handler.__doc__ or '').strip().partition('\n')[0].rstrip('.')
        yield f'| {route.method} | `{path}` | {route.auth.__name__} | {purpose} |'


def default_of(setting):
    """Return the default of a setting as people write it."""
    if setting.default == '':
        return 'none'
    if not setting.metadata['help'].startswith('bytes'):
        return str(setting.default)
    units = (('K', 1024), ('M', 1024 ** 2), ('G', 1024 ** 3))
    unit, size = [(unit, size) for unit, size in units if setting.default % size == 0][-1]
    return f'{setting.default // size}{unit}'


def setting_lines():
    """Return the rows that the table of settings must have."""
    for item in dataclasses.fields(minici.Settings):
        yield f'| `{item.name}` | {default_of(item)} | {item.metadata["help"]} |'


def table_after(heading):
    section = README.partition(f'\n## {heading}\n')[2].partition('\n## ')[0]
    return [line for line in section.splitlines() if line.startswith('|')][2:]


def commands():
    return re.findall(r'^```sh\n(.*?)^```', README, re.M | re.S)


def test_the_route_table_lists_exactly_the_routes(ci):
    assert table_after('Routes') == list(route_lines(ci))


def test_no_two_handlers_have_one_address(ci):
    addresses = [(route.method, route.path) for route in minici.create_app(ci).routes]
    assert [address for address in addresses if addresses.count(address) > 1] == []


def test_the_settings_table_lists_exactly_the_settings():
    assert table_after('Settings') == list(setting_lines())


def test_the_second_command_is_what_ci_runs():
    command = commands()[1].strip()
    assert 'pytest' in command
    assert command in (TOP / '.ci' / 'run').read_text()


def test_the_command_lines_exist():
    for line in '\n'.join(commands()).splitlines():
        words = shlex.split(line, comments=True)
        if 'minici.py' in words:
            minici.build_parser().parse_args(words[words.index('minici.py') + 1:])
        for word in words:
            if word.startswith('examples/'):
                assert (TOP / word).exists()


def test_links_into_the_project_exist():
    for target in re.findall(r'\]\(([^):]+)\)', README):
        assert (TOP / target).exists(), target


def test_the_embedding_example_runs():
    example = re.search(r'^```python\n(import minici\n.*?)^```', README, re.M | re.S)[1]
    exec(compile(example, 'README.md', 'exec'), {})


def test_the_module_docstring_is_a_working_example(capsys):
    example = minici.__doc__.partition('or embed it::')[2].partition('The sections')[0]
    exec(compile(re.sub(r'^    ', '', example, flags=re.M), 'minici.py', 'exec'), {})
    assert capsys.readouterr().out.startswith('http://127.0.0.1:')


def write_table(text, heading, lines):
    """Return the README's text with the rows of the table after a heading replaced."""
    before, title, rest = text.partition(f'\n## {heading}\n')
    section, following, after = rest.partition('\n## ')
    intro, rule, _ = section.partition('|---')
    columns = rule + _.partition('\n')[0]
    return before + title + intro + columns + '\n' + ''.join(f'{line}\n' for line in lines) + following + after


if __name__ == '__main__':
    with minici.Coordinator() as coordinator:
        updated = write_table(README, 'Settings', setting_lines())
        updated = write_table(updated, 'Routes', route_lines(coordinator))
    (TOP / 'README.md').write_text(updated, encoding='utf-8')
