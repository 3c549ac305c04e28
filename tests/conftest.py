"""Fixtures: a coordinator with a clock that tests move, and clients for it."""

import contextlib
import fcntl
import gc
import os
import shutil
import subprocess
import tempfile
import venv
from pathlib import Path

import gitlab
import pytest
from browser import Chromium
from support import PLAIN, SHA, TOP, Client, Clock, Runner

import minici


def pytest_configure(config):
    config.addinivalue_line('filterwarnings', 'error')
    if os.environ.pop('PYTHONDONTWRITEBYTECODE', ''):   # tests start many processes, and compiling takes a second
        cache = tempfile.TemporaryDirectory(prefix='minici-tests-')
        config.add_cleanup(cache.cleanup)
        os.environ['PYTHONPYCACHEPREFIX'] = cache.name


def pytest_collection_finish():
    """Let the garbage collector pass over the thousands of tests and modules, which stay to the end."""
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Let a test begin once more when its browser process ends in the middle; the summary counts such a test."""
    again = pytest.mark.flaky(reruns=1, only_rerun='has been closed')
    for item in items:
        if 'chromium' in getattr(item, 'fixturenames', ()):
            item.add_marker(again)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ci(tmp_path, clock):
    """A coordinator without fsync, at a moment that tests choose."""
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False) as coordinator:
        yield coordinator


@pytest.fixture
def client(ci):
    return Client(ci)


@pytest.fixture
def token(ci):
    """A private token of scope `api`."""
    return ci.create_private_token()


@pytest.fixture
def project(ci):
    return ci.create_project('group/demo')


@pytest.fixture
def pipeline(ci, project):
    """A pipeline of one pending job."""
    return ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)


@pytest.fixture
def runner(ci):
    return Runner(ci, description='fixture')


@pytest.fixture
def job(ci, pipeline, runner):
    """A claim of the pipeline's job: `job.job` is its row, `job.token` its token."""
    return runner.claim()


@pytest.fixture
def server(ci):
    """The coordinator behind a real socket."""
    with minici.Server(ci) as running:
        yield running


@pytest.fixture(scope='module')
def chromium():
    """Headless Chromium: one process a module, for asyncio.run refuses to work in this thread until it has ended."""
    if Chromium.path is None:
        (pytest.fail if os.environ.get('CI') else pytest.skip)('no Chromium here: apt install chromium-headless-shell')
    with Chromium() as process:
        yield process


@pytest.fixture
def browser(chromium, server):
    """A window on the server, without cookies; its console must be free of errors in the end."""
    with chromium.browser(server.url) as window:
        yield window
        assert window.console() == []


@pytest.fixture
def gl(server, token):
    """python-gitlab with a private token."""
    with gitlab.Gitlab(server.url, private_token=token) as client:
        yield client


@pytest.fixture
def demo(gl, project):
    """The project group/demo as python-gitlab sees it."""
    return gl.projects.get('group/demo')


@contextlib.contextmanager
def alone():
    """Keep the other processes of the suite from installing anything meanwhile."""
    handle = os.open(TOP / 'tests', os.O_RDONLY)    # a directory can be locked, and no file is left behind
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def environment(name, package):
    """Return the interpreter of a virtual environment beside the project's own; it is made once.

    MINICI_GPR_VENV and the like name another one.
    """
    home = Path(os.environ.get(f'MINICI_{name.upper()}_VENV') or TOP / f'.venv-{name}')
    python = home / 'bin' / 'python'
    with alone():
        if not any(home.glob(f'lib/*/site-packages/{package}.dist-info')):
            venv.create(home, with_pip=True)
            requirements = TOP / 'tests' / f'requirements-{name}.txt'
            subprocess.run([python, '-m', 'pip', 'install', '-q', '-r', requirements], check=True)
    return python


@pytest.fixture(scope='session')
def gpr_python():
    """The interpreter of an environment with gitlab-python-runner."""
    return environment('gpr', 'gitlab_python_runner-14.3.20')


@pytest.fixture(scope='session')
def old_gitlab():
    """The command of a python-gitlab of 2021 that evaluates expressions."""
    return [environment('oldgl', 'python_gitlab-2.10.1'), TOP / 'tests' / 'clients' / 'old_gitlab.py']


@pytest.fixture(scope='session')
def gitbeaker():
    """The command of a client in JavaScript that evaluates expressions."""
    if shutil.which('npm') is None:
        (pytest.fail if os.environ.get('CI') else pytest.skip)('no npm here: apt install npm')
    with alone():
        if not (TOP / 'tests' / 'node_modules' / '@gitbeaker').exists():
            done = subprocess.run(['npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund', '--fetch-retries=1',
                                   '--prefix', TOP / 'tests'], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f'npm cannot install the client here: {done.stderr[-300:]}')
    return ['node', TOP / 'tests' / 'clients' / 'gitbeaker.mjs']
