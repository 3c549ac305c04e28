"""Finding lines in a log: by number, by byte, by text."""

from __future__ import annotations

import re

from minici import ESCAPES, Secrets, TraceBlock, TraceStore, remove_matches

ERROR_LINE = re.compile(rb'(?:error|exception|fatal|panic|failed|traceback)\b'
                        rb'(?<!\b0 error)(?<!\bno error)(?<!\b0 failed)(?<!\bno failed)')
Pattern = re.Pattern[bytes]


def text_pattern(text: str) -> Pattern:
    """Return the pattern that finds a text in lines of small letters."""
    return re.compile(re.escape(text.encode().lower()))


def find_lines(traces: TraceStore, job_id: int, *, hidden: Secrets | None = None, number: int | None = None,
               offset: int | None = None, pattern: Pattern | None = None, limit: int = 1) -> list[tuple[int, int]]:
    """Return the numbers (from 1) and offsets of the lines that have a number, hold a byte, or match `pattern`.

    Escape sequences, which move a terminal's cursor or colour its text, are no part of a line here. `pattern` sees
    small letters alone, which is much faster than one that ignores case. Raises NotFound when there is no log.
    """
    found: list[tuple[int, int]] = []
    for block in traces.blocks(job_id, hidden):
        wanted: list[int] = []
        if pattern is not None:
            wanted = matching_lines(block, pattern)
        elif number is not None and block.first_line <= number <= block.first_line + block.count_ends():
            wanted = [number - block.first_line]
        elif offset is not None and block.offset <= offset < block.offset + len(block.data):
            wanted = [block.count_ends(offset - block.offset)]
        starts = block.line_starts() if wanted else []
        for line in wanted:
            if not found or found[-1][0] != block.first_line + line:    # a long line goes on in the next block
                found.append((block.first_line + line, block.offset + starts[line]))
        if len(found) >= limit:
            break
    return found[:limit]


def matching_lines(block: TraceBlock, pattern: Pattern) -> list[int]:
    """Return which lines of a block match, counted from 0."""
    text = remove_matches(ESCAPES, block.text).lower()
    matching: list[int] = []
    line = position = 0
    for match in pattern.finditer(text):
        line += text.count(b'\n', position, match.start())
        position = match.start()
        if matching[-1:] != [line]:
            matching.append(line)
    return matching
