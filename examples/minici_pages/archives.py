"""Browsing an archive of artifacts without unpacking it."""

from __future__ import annotations

from minici import ArtifactStore, NotFound


def list_entries(store: ArtifactStore, stored_as: str, folder: str = '') -> list[tuple[str, int | None]]:
    """Return what a folder of a stored archive holds: names and sizes in bytes, None for folders, which come first.

    `folder` is '' or ends in a slash. Raises NotFound when the archive or the folder is gone, BadRequest when the
    archive cannot be read.
    """
    folders: set[str] = set()
    files: dict[str, int] = {}
    with store.opened_zip(stored_as) as bundle:
        inside = [entry for entry in bundle.infolist() if entry.filename.startswith(folder)]
    if folder and not inside:
        raise NotFound('File')
    for entry in inside:
        name, slash, _ = entry.filename[len(folder):].partition('/')
        if slash:
            folders.add(name + slash)
        elif name:  # without a name, it is the folder itself
            files[name] = entry.file_size
    return [*((name, None) for name in sorted(folders)), *sorted(files.items())]
