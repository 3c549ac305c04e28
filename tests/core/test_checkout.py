"""Checkouts read as they stand: committed, changed, untracked, ignored, detached, unborn, linked, hostile."""

import os
import subprocess

import pytest
from support import commit, git

import minici

FILE = {'.gitlab-ci.yml': 'test:\n  script: [make]\n'}


@pytest.fixture
def store(tmp_path):
    return tmp_path / 'store' / 'demo.git'


@pytest.fixture
def checkout(tmp_path):
    """A working copy with one commit on `main`."""
    directory = tmp_path / 'demo'
    commit(directory, **FILE, **{'README': 'read me\n', '.gitignore': '*.log\n'})
    return directory


def snapshot(path, store, ref='main', **options):
    """Return the sha, whether anything was uncommitted, and the files by path."""
    sha, dirty = minici.Checkout(path, store).snapshot(ref, **options)
    listed = git(store, 'ls-tree', '-r', '--name-only', '-z', sha).split('\0')[:-1]
    return sha, dirty, {name: git(store, 'show', f'{sha}:{name}') for name in listed}


def test_a_clean_checkout_is_its_own_commit(checkout, store):
    sha, dirty, _ = snapshot(checkout, store)
    assert (sha, dirty) == (git(checkout, 'rev-parse', 'HEAD'), False)


def test_what_is_changed_added_removed_or_untracked_is_taken_as_it_stands(checkout, store):
    (checkout / 'README').write_text('changed\n')
    (checkout / 'new file').write_text('untracked\n')
    (checkout / 'noise.log').write_text('ignored\n')
    (checkout / 'forced.log').write_text('added all the same\n')
    git(checkout, 'add', '--force', 'forced.log')
    (checkout / 'staged').write_text('staged\n')
    git(checkout, 'add', 'staged')
    (checkout / 'staged').write_text('staged, then changed\n')
    before = git(checkout, 'status', '--porcelain')
    sha, dirty, files = snapshot(checkout, store)
    assert dirty
    assert files == {**{name: text.strip() for name, text in FILE.items()}, 'README': 'changed', '.gitignore': '*.log',
                     'new file': 'untracked', 'forced.log': 'added all the same', 'staged': 'staged, then changed'}
    assert git(store, 'rev-parse', f'{sha}^') == git(checkout, 'rev-parse', 'HEAD')
    assert git(checkout, 'status', '--porcelain') == before
    (checkout / 'README').unlink()
    assert 'README' not in snapshot(checkout, store)[2]


def test_the_same_files_make_the_same_commit_and_take_no_space(checkout, store):
    (checkout / 'README').write_text('changed\n')
    sha, _, _ = snapshot(checkout, store)
    objects = git(store, 'count-objects')
    assert snapshot(checkout, store)[0] == sha
    assert git(store, 'count-objects') == objects


def test_hidden_paths_and_what_the_checkout_excludes_stay_out(checkout, store):
    for name in ('ci.sqlite', 'ci.sqlite-wal', 'private'):
        (checkout / name).write_text('not for jobs')
    (checkout / '.git' / 'info' / 'exclude').write_text('private\n')
    (checkout / 'ci-data').mkdir()
    (checkout / 'ci-data' / 'trace').write_text('not for jobs')
    _, dirty, files = snapshot(checkout, store, hidden=[checkout / 'ci.sqlite', checkout / 'ci-data'])
    assert not dirty
    assert sorted(files) == ['.gitignore', '.gitlab-ci.yml', 'README']


def test_a_detached_head_an_unborn_branch_and_a_plain_directory_are_read(checkout, tmp_path, store):
    git(checkout, 'checkout', '--quiet', '--detach')
    detached = minici.Checkout(checkout, store)
    assert (detached.branch, detached.snapshot('main')[1]) == (None, False)
    unborn = tmp_path / 'unborn'
    unborn.mkdir()
    git(unborn, 'init', '--quiet', '--initial-branch', 'trunk')
    plain = tmp_path / 'plain'
    plain.mkdir()
    for directory, branch in ((unborn, 'trunk'), (plain, None)):
        (directory / 'file').write_text('text\n')
        own = tmp_path / f'{directory.name}.git'
        sha, dirty, files = snapshot(directory, own)
        assert (minici.Checkout(directory, own).branch, dirty, files) == (branch, True, {'file': 'text'})
        assert git(own, 'log', '--format=%s', sha) == 'Uncommitted changes'


def test_a_linked_working_tree_and_a_directory_inside_are_the_same_repository(checkout, tmp_path, store):
    git(checkout, 'branch', 'feature')
    git(checkout, 'worktree', 'add', '--quiet', str(tmp_path / 'linked'), 'feature')
    (tmp_path / 'linked' / 'deep' / 'down').mkdir(parents=True)
    (tmp_path / 'linked' / 'deep' / 'file').write_text('deep\n')
    linked = minici.Checkout(tmp_path / 'linked' / 'deep' / 'down', store)
    assert (linked.root, linked.branch) == (tmp_path / 'linked', 'feature')
    _, dirty, files = snapshot(tmp_path / 'linked', store, 'feature')
    assert (dirty, files['deep/file']) == (True, 'deep')


def test_branches_and_tags_come_along(checkout, store):
    git(checkout, 'branch', 'other')
    git(checkout, 'tag', 'v1')
    snapshot(checkout, store, 'v2', tag=True)
    assert git(store, 'for-each-ref', '--format=%(refname)').splitlines() == [
        'refs/heads/main', 'refs/heads/other', 'refs/minici/head', 'refs/tags/v1', 'refs/tags/v2']


def test_a_submodule_is_its_commit_and_a_repository_inside_is_left_out(checkout, tmp_path, store):
    commit(tmp_path / 'library', file='text\n')
    git(checkout, '-c', 'protocol.file.allow=always', 'submodule', '--quiet', 'add', str(tmp_path / 'library'), 'lib')
    git(checkout, 'commit', '--quiet', '--message', 'Add a submodule')
    commit(checkout / 'inside', file='text\n')
    sha, dirty = minici.Checkout(checkout, store).snapshot('main')
    assert (sha, dirty) == (git(checkout, 'rev-parse', 'HEAD'), False)


def test_nothing_that_the_repository_configures_is_run(checkout, tmp_path, store):
    marker = tmp_path / 'marker'
    script = tmp_path / 'evil.sh'
    script.write_text(f'#!/bin/sh\necho "$0 $*" >> {marker}\ncat\n')
    script.chmod(0o755)
    for hook in ('post-checkout', 'pre-commit', 'post-index-change', 'reference-transaction', 'fsmonitor-watchman'):
        (checkout / '.git' / 'hooks').mkdir(exist_ok=True)
        (checkout / '.git' / 'hooks' / hook).write_bytes(script.read_bytes())
        (checkout / '.git' / 'hooks' / hook).chmod(0o755)
    (checkout / '.gitattributes').write_text('* filter=evil diff=evil\n')
    for key in ('core.fsmonitor', 'filter.evil.clean', 'filter.evil.smudge', 'filter.evil.process', 'diff.evil.command',
                'core.sshCommand', 'core.askPass', 'uploadpack.packObjectsHook', 'core.alternateRefsCommand',
                'credential.helper', 'core.pager', 'core.editor', 'diff.external', 'gpg.program'):
        git(checkout, 'config', key, str(script))
    git(checkout, 'config', 'core.hooksPath', str(checkout / '.git' / 'hooks'))
    (checkout / 'README').write_text('changed\n')
    marker.unlink(missing_ok=True)
    _, dirty, files = snapshot(checkout, store)
    assert (dirty, files['README']) == (True, 'changed')
    assert not marker.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can give a directory to somebody else')
def test_a_checkout_that_belongs_to_somebody_else_is_read(checkout, store):
    subprocess.run(['chown', '-R', '12345', str(checkout)], check=True)
    assert snapshot(checkout, store)[1] is False


def test_what_the_user_ignores_everywhere_stays_out(checkout, tmp_path, store, monkeypatch):
    (tmp_path / 'ignored').write_text('*.swp\n')
    (tmp_path / 'config').write_text(f'[core]\n\texcludesFile = {tmp_path}/ignored\n')
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'config').rename(tmp_path / '.gitconfig')
    (checkout / 'notes.swp').write_text('mine\n')
    assert snapshot(checkout, store)[1] is False


def test_a_shallow_checkout_is_read(checkout, tmp_path, store):
    commit(checkout, 'Second', README='again\n')
    git(tmp_path, 'clone', '--quiet', '--depth', '1', f'file://{checkout}', 'shallow')
    assert snapshot(tmp_path / 'shallow', store)[1] is False


def test_the_remote_is_known(checkout, tmp_path, store):
    git(tmp_path, 'clone', '--quiet', f'file://{checkout}', 'clone')
    clone = minici.Checkout(tmp_path / 'clone', store)
    assert (clone.remote_url, clone.remote_default_branch) == (f'file://{checkout}', 'main')
    git(checkout, 'checkout', '--quiet', '-b', 'feature')
    git(checkout, 'pack-refs', '--all')
    here = minici.Checkout(checkout, store)
    assert (here.branch, here.default_branch, clone.default_branch) == ('feature', 'main', 'main')
    assert (here.remote_url, here.remote_default_branch) == (None, None)


def test_git_does_not_look_where_the_process_stands(checkout, monkeypatch):
    git(checkout, 'config', 'alias.here', 'rev-parse --show-toplevel')
    monkeypatch.chdir(checkout)
    assert minici.run_git(['here'], None).returncode == 1
    git(checkout, 'config', 'remote.origin.url', 'https://host.test/demo.git')
    assert minici.Checkout(minici.Path('.'), checkout.parent / 'store').remote_url == 'https://host.test/demo.git'
