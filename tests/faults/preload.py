"""The library that is loaded before a process, and the disk that its journal tells of."""

import random
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name('preload.c')


def library(directory):
    """Compile the library into a directory; the full forms need a C compiler."""
    path = directory / 'preload.so'
    subprocess.run([shutil.which('gcc') or 'cc', '-shared', '-fPIC', '-O1', '-w', '-o', path, SOURCE, '-ldl',
                    '-lpthread'], check=True)
    return path


def records(path):
    """Yield what a journal holds: kind, path, other path, offset and bytes."""
    with open(path, 'rb') as file:
        while head := file.readline():
            kind, name, other, offset, length = head.decode('utf-8', 'surrogateescape').rstrip('\n').split('\t')
            yield kind, name, other, int(offset), file.read(int(length))


class File:
    """A file's content, as it is and as it was last flushed."""

    def __init__(self, content=b''):
        self.content, self.flushed = bytearray(content), bytes(content)


class Disk:
    """A directory tree that remembers what of it was flushed: contents by file, names by directory."""

    def __init__(self, root):
        self.names, self.flushed = {}, {}
        self.directories = {root}
        for path in Path(root).rglob('*'):
            if path.is_dir():
                self.directories.add(str(path))
                self.names[str(path)] = None
            else:
                self.names[str(path)] = File(path.read_bytes())
        self.flushed = dict(self.names)

    def apply(self, kind, name, other, offset, data):
        """Do what one record says."""
        file = self.names.get(name)
        if kind == 'create':
            self.names[name] = File()
        elif kind == 'mkdir':
            self.names[name] = None
            self.directories.add(name)
        elif kind == 'write' and file:
            file.content.extend(bytes(max(0, offset - len(file.content))))
            file.content[offset:offset + len(data)] = data
        elif kind == 'truncate' and file:
            file.content.extend(bytes(max(0, offset - len(file.content))))
            del file.content[offset:]
        elif kind == 'rename':
            self.names[other] = self.names.pop(name, None)
        elif kind == 'unlink':
            self.names.pop(name, None)
        elif kind == 'fsync' and name in self.directories:
            self._flush_names(name)
        elif kind == 'fsync' and file:
            file.flushed = bytes(file.content)

    def _flush_names(self, directory):
        inside = {name for name in {*self.names, *self.flushed} if name.rpartition('/')[0] == directory}
        for name in inside:
            if name in self.names:
                self.flushed[name] = self.names[name]
            else:
                self.flushed.pop(name, None)

    def dirty(self):
        """Return the files and names that a power cut would lose."""
        lost = {name for name, file in self.names.items() if self.flushed.get(name, 0) is not file}
        return lost | {name for name, file in self.names.items() if file and bytes(file.content) != file.flushed}

    def build(self, root, target, chance=None):
        """Make `target` what the disk holds after a power cut; with `chance` some that was not flushed survives."""
        kept = dict(self.flushed)
        if chance:
            kept.update((name, file) for name, file in self.names.items() if chance.random() < 0.5)
        for name, file in sorted(kept.items()):
            path = Path(target) / Path(name).relative_to(root)
            if file is None:
                path.mkdir(parents=True, exist_ok=True)
            elif path.parent.is_dir():
                whole = chance and chance.random() < 0.5
                path.write_bytes(bytes(file.content) if whole else file.flushed)


def chances(seed, count, last):
    """Return `count` random points of a journal of `last` records."""
    return sorted(random.Random(seed).sample(range(1, last + 1), min(count, last)))
