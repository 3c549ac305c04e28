"""The pages as a package: in a wheel, in a checkout, and minici.py alone without them."""

import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

import minici

CHECKOUT = Path(minici.__file__).parent
PACKAGE = CHECKOUT / 'examples' / 'minici_pages'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel of the project, as pip builds it, without asking any registry."""
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    for name in ('minici.py', 'setup.py', 'README.md', 'LICENSE'):
        shutil.copy(CHECKOUT / name, source)
    shutil.copytree(CHECKOUT / 'examples', source / 'examples', ignore=shutil.ignore_patterns('__pycache__'))
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-index', '--no-build-isolation',
                    '--wheel-dir', str(target), str(source)], check=True)
    return next(target.glob('*.whl'))


@pytest.fixture(scope='module')
def libraries(tmp_path_factory):
    """A directory with the libraries that minici needs, and nothing else that this environment has installed."""
    directory = tmp_path_factory.mktemp('libraries')
    for name in ('bottle', 'waitress', 'multipart', 'regex', 'yaml', 'cronsim'):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin)
        target = origin.parent if spec.submodule_search_locations else origin
        (directory / target.name).symlink_to(target)
    return directory


@contextmanager
def serving(directory, *command, path):
    """Serve by `command` of an interpreter that sees the directories of `path` alone; yield the address."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, path))}
    process = subprocess.Popen(
        [sys.executable, '-S', *map(str, command), '--db', str(directory / 'ci.sqlite'), '--port', '0', '--public'],
        env=environment, cwd=directory, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=30)


def fetch(url):
    """Return the type and the text of an answer."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.headers.get_content_type(), answer.read().decode()


def test_a_wheel_holds_the_module_and_every_file_of_the_pages(wheel):
    with zipfile.ZipFile(wheel) as bundle:
        packed = {name: bundle.read(name) for name in bundle.namelist()}
    files = [file for file in PACKAGE.rglob('*') if file.is_file() and '__pycache__' not in file.parts]
    assert {file.suffix for file in files} == {'.py', '.tpl', '.css', '.js'}
    for file in files:
        assert packed[f'minici_pages/{file.relative_to(PACKAGE).as_posix()}'] == file.read_bytes()
    assert packed['minici.py'] == (CHECKOUT / 'minici.py').read_bytes()


def test_an_installed_wheel_serves_the_pages(wheel, libraries, tmp_path):
    site = tmp_path / 'site'
    with zipfile.ZipFile(wheel) as bundle:
        bundle.extractall(site)
    with serving(tmp_path, '-m', 'minici', path=[site, libraries]) as url:
        kind, text = fetch(url)
        assert kind == 'text/html'
        assert '<title>Pipelines · minici</title>' in text
        assert fetch(f'{url}/-/minici.css')[0] == 'text/css'


def test_the_script_of_a_checkout_serves_the_pages_beside_it(libraries, tmp_path):
    with serving(tmp_path, CHECKOUT / 'minici.py', path=[libraries]) as url:
        assert '<title>Pipelines · minici</title>' in fetch(url)[1]


def test_the_module_alone_serves_all_but_the_pages_and_says_where_they_are(libraries, tmp_path):
    script = shutil.copy(CHECKOUT / 'minici.py', tmp_path)
    with serving(tmp_path, script, path=[libraries]) as url:
        kind, text = fetch(url)
        assert kind == 'text/plain'
        assert 'pages for browsers are not installed' in text
        assert 'minici_pages' in text
        with pytest.raises(urllib.error.HTTPError) as refusal:
            fetch(f'{url}/api/v4/projects')
        assert refusal.value.status == 401
        refusal.value.close()
