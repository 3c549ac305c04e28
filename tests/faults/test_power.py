"""A power cut at any flush: what was acknowledged is on disk, and what was not leaves no half."""

import os
import random
from pathlib import Path

import workload

import minici


class Flushed:
    """What would be left of a directory after a power cut: files as they were at their last fsync, and names as their
    directory had them at its own. The database is taken as it was committed: SQLite flushes each commit."""

    def __init__(self, root, monkeypatch, cut):
        self.root, self.cut, self.fsync = Path(root), cut, os.fsync
        self.contents, self.names = {}, {}
        for path in [self.root, *self.root.rglob('*')]:
            self.note(path)
        monkeypatch.setattr(os, 'fsync', self.flush)

    def note(self, path):
        found = path.stat()
        if path.is_dir():
            self.names[found.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.contents[found.st_ino] = path.read_bytes()

    def flush(self, handle):
        self.cut()      # before it reaches the disk
        self.fsync(handle)
        wanted = os.fstat(handle).st_ino
        for path in [self.root, *self.root.rglob('*')]:
            if path.stat().st_ino == wanted:
                self.note(path)

    def build(self, target, inode=None):
        """Make `target` what is left."""
        target.mkdir(mode=0o700, exist_ok=True)
        for name, number in self.names[inode or self.root.stat().st_ino].items():
            if number in self.names:
                self.build(target / name, number)
            elif number in self.contents:
                (target / name).write_bytes(self.contents[number])
            else:
                (target / name).write_bytes(b'')    # the name was flushed, the content never


def test_after_a_power_cut_at_a_flush_everything_acknowledged_is_there(tmp_path, form, figures, monkeypatch):
    steps, share = form((40, 0.3), (300, 1.0))
    root = tmp_path / 'disk'
    root.mkdir()
    token = workload.prepare(root / 'ci.sqlite')
    chance, lines, cuts = random.Random(5), [], []
    inside = False

    def cut():
        nonlocal inside
        if inside or chance.random() > share:
            return
        inside = True   # the copies below are flushed, too
        after = tmp_path / f'after-{len(cuts)}'
        after.mkdir()
        disk.build(after / 'ci-data')
        ci.db.copy_to(after / 'ci.sqlite')
        with minici.Coordinator(after / 'ci.sqlite', fsync=False) as copy:
            cuts.append(workload.verify(copy, lines))
        inside = False

    with minici.Coordinator(root / 'ci.sqlite') as ci:
        disk = Flushed(ci.data, monkeypatch, cut)
        work = workload.Work(ci, token, lambda *line: (lines.append(list(line)), cut()), 7)
        for _ in range(steps):
            work.step()
    assert [missing for missing in cuts if missing] == []
    assert len(cuts) > form(10, 300)
    figures('all start, 0 acknowledged bytes lost', f'{len(cuts)} cuts of the files\' disk, {len(lines)} '
            'acknowledgements, 0 lost')
