"""Four repositories of the kinds that people have, run by `minici run` as a person would run them."""

import re
import shutil
import textwrap
import zipfile

import pytest
from support import commit, git

import minici

PYTHON = {
    '.gitlab-ci.yml': """
        stages: [test, report]
        default: {image: 'python:3.12'}
        unit:
          stage: test
          script:
            - python -m pytest -q --junitxml=junit.xml test_sums.py
            - python -c "print('TOTAL coverage 92.5%')"
            - echo "VERSION=$(cat VERSION)" > build.env
          coverage: '/TOTAL coverage (\\d+\\.\\d+)%/'
          artifacts:
            when: always
            paths: [junit.xml]
            reports: {junit: junit.xml, dotenv: build.env}
        publish:
          stage: report
          needs: [unit]
          script: ['test "$VERSION" = 1.4.0', 'test -e junit.xml']
        """,
    'VERSION': '1.4.0\n',
    'test_sums.py': 'def test_sum():\n    assert 1 + 1 == 2\n\n\ndef test_other():\n    assert 2 * 2 == 4\n',
}
NODE = {
    '.gitlab-ci.yml': """
        stages: [install, test]
        cache: &cache {key: {files: [package.json]}, paths: [node_modules/]}
        install:
          stage: install
          script: ['test -e node_modules/left/index.js && echo "from the cache" || sh install.sh']
        test:
          stage: test
          cache: {<<: *cache, policy: pull}
          script: [node test.js]
        """,
    'package.json': '{"name": "demo"}\n',
    'install.sh': 'mkdir -p node_modules/left\necho "module.exports = 42" > node_modules/left/index.js\necho made\n',
    'test.js': 'if (require("left") !== 42) process.exit(1); console.log("right")\n',
}
MATRIX = {
    '.gitlab-ci.yml': """
        build:
          parallel:
            matrix:
              - OS: [linux, bsd]
                CC: [gcc, clang]
          script: ['echo "$OS $CC" > "$OS-$CC.txt"']
          artifacts: {paths: ['$OS-$CC.txt']}
        collect:
          stage: deploy
          script: ['cat *.txt | sort']
        """,
}
MONOREPO = {
    '.gitlab-ci.yml': """
        include: [{local: 'services/*/ci.yml'}]
        stages: [build, deploy]
        workflow: {rules: [{if: $CI_PIPELINE_SOURCE == "merge_request_event"}, {if: $CI_COMMIT_BRANCH}]}
        deploy:
          stage: deploy
          needs: [{job: build api, optional: true}, {job: build web, optional: true}]
          when: manual
          environment: {name: review/$CI_COMMIT_REF_SLUG, url: 'https://$CI_ENVIRONMENT_SLUG.example.com'}
          script: ['echo "deploying to $CI_ENVIRONMENT_NAME"']
        """,
    'services__api__ci.yml': """
        build api:
          stage: build
          script: [mkdir -p out && cp services/api/main out/api]
          rules: [{changes: [services/api/**/*]}]
          artifacts: {paths: [out/]}
        """,
    'services__web__ci.yml': """
        build web:
          stage: build
          script: [mkdir -p out && cp services/web/main out/web]
          rules: [{changes: [services/web/**/*]}]
          artifacts: {paths: [out/]}
        """,
    'services__api__main': 'api\n',
    'services__web__main': 'web\n',
}


@pytest.fixture
def make(tmp_path):
    """A way to make a repository of files."""
    def make(files):
        directory = tmp_path / 'demo'
        for name, text in files.items():
            (directory / name.replace('__', '/')).parent.mkdir(parents=True, exist_ok=True)
            (directory / name.replace('__', '/')).write_text(textwrap.dedent(text).lstrip())
        commit(directory)
        return directory
    return make


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """A way to run the pipeline of a repository; return the exit status, the results of the jobs and the output."""
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path / 'state'))
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))

    def run(directory, *arguments):
        status = minici.main(['run', str(directory), *arguments])
        out = capfd.readouterr().out
        words = '|'.join(word for _, word, _ in minici.OUTCOMES.values())
        found = re.findall(rf'^  \S+ +(.+?) +\S ({words})(?:  |$)', out[out.index('  stage '):], re.M)
        return status, dict(found), out
    return run


@pytest.fixture
def artifacts(tmp_path):
    """A way to see which files the artifacts of a job of the newest run hold."""
    def artifacts(name):
        with minici.Coordinator(tmp_path / 'state' / 'minici' / 'minici.sqlite', fsync=False) as ci:
            pipeline = ci.list_pipelines()[0][0]
            job = next(job for job in ci.list_jobs(pipeline=pipeline) if job['name'] == name)
            _, archive = ci.open_artifacts(job)
            with archive, zipfile.ZipFile(archive) as bundle:
                return sorted(bundle.namelist())
    return artifacts


def test_python_with_tests_coverage_junit_and_dotenv(make, run, artifacts):
    status, results, out = run(make(PYTHON))
    assert (status, results) == (0, {'unit': 'passed', 'publish': 'passed'}), out
    assert '2 tests, coverage 92.5%' in out
    assert artifacts('unit') == ['junit.xml']


@pytest.mark.skipif(not shutil.which('node'), reason='node is not installed')
def test_node_with_a_cache_by_the_lock_file(make, run):
    directory = make(NODE)
    status, results, out = run(directory)
    assert (status, results) == (0, {'install': 'passed', 'test': 'passed'}), out
    assert '\nmade\n' in out.replace('install │ ', '').replace('test    │ ', '')
    assert 'from the cache' in run(directory)[2]
    commit(directory, 'New', **{'package.json': '{"name": "demo", "version": "2"}\n'})
    assert 'made' in run(directory)[2]


def test_a_matrix_and_what_collects_it(make, run, artifacts):
    status, results, out = run(make(MATRIX))
    copies = [f'build: [{os}, {cc}]' for os in ('linux', 'bsd') for cc in ('gcc', 'clang')]
    assert (status, results) == (0, {**dict.fromkeys(copies, 'passed'), 'collect': 'passed'}), out
    assert artifacts('build: [bsd, clang]') == ['bsd-clang.txt']
    order = [out.index(f'{text}\n') for text in ('bsd clang', 'bsd gcc', 'linux clang', 'linux gcc')]
    assert order == sorted(order)


def test_a_monorepo_with_includes_changes_needs_a_manual_deploy_and_an_environment(make, run, artifacts):
    directory = make(MONOREPO)
    git(directory, 'checkout', '--quiet', '-b', 'feature/api')
    (directory / 'services' / 'api' / 'main').write_text('changed\n')
    status, results, out = run(directory, '--changed-since', 'main')
    assert (status, results) == (0, {'build api': 'passed', 'deploy': 'manual'}), out
    assert artifacts('build api') == ['out/api']
    status, results, out = run(directory, '--as', 'merge_request', '--manual', 'deploy')
    assert (status, results) == (0, {'build api': 'passed', 'deploy': 'passed'}), out
    assert 'deploying to review/feature-api\n' in out
