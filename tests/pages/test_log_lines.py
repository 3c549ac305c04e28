"""Logs as pages read them: in blocks that end with a line, by line, by search, and as plain text."""

import random
import re

import minici_pages
import pytest
from minici_pages.logs import find_lines
from support import Clock

import minici

MIB = minici.MIB


@pytest.fixture
def traces(tmp_path):
    (tmp_path / 'traces').mkdir()
    return minici.TraceStore(tmp_path / 'traces', clock=Clock(), fsync=False, max_size=100 * MIB)


def write(traces, data):
    traces.replace(1, data, lambda: None)
    return data


#: Makes one of six bytes of each, none of which ends a line.
LETTERS = bytes(b'abc \xff\r'[byte % 6] for byte in range(256))


def long_log(seed=1, size=3 * MIB):
    """Return a log of more than `size` bytes, with lines of all lengths."""
    chance, lines, length = random.Random(seed), [], 0
    while length <= size:
        lines.append(chance.randbytes(chance.choice((0, 1, 10, 80, 3000, 70_000))).translate(LETTERS))
        length += len(lines[-1]) + 1
    return b'\n'.join(lines)


def starts(data):
    """Return the offset of each line."""
    return [0, *(match.end() for match in re.finditer(b'\n', data))]


# -- blocks

@pytest.mark.parametrize('data', [
    b'x', b'\n', b'a\nb', b'a\n' * (MIB // 2), b'a\n' * (MIB // 2) + b'b', b'ab\n' * MIB,
    long_log(1), long_log(2) + b'\n',
    b'x' * (MIB - 1) + b'\n' + b'y' * 10, b'x' * MIB + b'\n' + b'y\n', b'x' * (MIB + 1) + b'\ny'],
    ids=['one', 'line', 'two', 'exact', 'over', 'many', 'long', 'long-end', 'before', 'at', 'after'])
def test_blocks_join_to_the_log_and_each_begins_a_line_whose_number_it_tells(traces, data):
    write(traces, data)
    blocks, begins = list(traces.blocks(1)), starts(data)
    assert b''.join(block.data for block in blocks) == data
    position = 0
    for block in blocks:
        assert (block.offset, begins[block.first_line - 1]) == (position, position)
        assert block.data
        position += len(block.data)
    assert all(block.data.endswith(b'\n') for block in blocks[:-1])


def test_empty_log_has_no_blocks_and_a_missing_one_is_not_found(traces):
    with pytest.raises(minici.NotFound):
        list(traces.blocks(1))
    write(traces, b'')
    assert list(traces.blocks(1)) == []


def test_blocks_of_a_log_that_is_one_endless_line_stay_small(traces):
    data = write(traces, b'x' * (5 * MIB) + b'\nend')
    blocks = list(traces.blocks(1))
    assert b''.join(block.data for block in blocks) == data
    assert max(len(block.data) for block in blocks) <= 2 * MIB
    assert {block.first_line for block in blocks} in ({1}, {1, 2})


# -- lines

@pytest.mark.parametrize('seed', [1, 2])
def test_lines_of_a_long_log_are_found_by_number_and_by_offset(traces, seed):
    data = write(traces, long_log(seed))
    begins, chance = starts(data), random.Random(seed)
    edges = [block.offset + near for block in traces.blocks(1) for near in (-1, 0, 1) if block.offset + near >= 0]
    for at in [*edges, *(chance.randrange(len(data)) for _ in range(15)), len(data) - 1]:
        number = data.count(b'\n', 0, at) + 1
        assert find_lines(traces, 1, offset=at) == [(number, begins[number - 1])]
        assert find_lines(traces, 1, number=number) == [(number, begins[number - 1])]
    for beyond in (0, -1, len(begins) + 1, 10 ** 17):
        assert find_lines(traces, 1, number=beyond) == []
    for beyond in (-1, len(data), 10 ** 17):
        assert find_lines(traces, 1, offset=beyond) == []


def test_matches_are_found_in_every_block_in_order_up_to_the_limit(traces):
    data = write(traces, b''.join(b'%d needle\n' % n if n % 1000 == 0 else b'%d hay\n' % n for n in range(400_000)))
    begins = starts(data)
    wanted = [(n + 1, begins[n]) for n in range(0, 400_000, 1000)]
    assert len(list(traces.blocks(1))) > 3
    assert find_lines(traces, 1, pattern=re.compile(b'needle'), limit=1000) == wanted
    assert find_lines(traces, 1, pattern=re.compile(b'needle'), limit=7) == wanted[:7]
    assert find_lines(traces, 1, pattern=re.compile(b'needle')) == wanted[:1]
    assert find_lines(traces, 1, pattern=re.compile(b'nothing'), limit=7) == []


def test_match_at_the_end_of_a_log_without_a_last_newline_is_found(traces):
    write(traces, b'one\ntwo needle')
    assert find_lines(traces, 1, pattern=re.compile(b'needle')) == [(2, 4)]


def test_line_with_two_matches_is_found_once(traces):
    write(traces, b'x needle needle\nneedle\n')
    assert find_lines(traces, 1, pattern=re.compile(b'needle'), limit=9) == [(1, 0), (2, 16)]


def test_colours_and_links_within_a_word_do_not_hide_it(traces):
    write(traces, b'\x1b]0;title\x07\x1b[1mnee\x1b[0m\x1b[31mdle\x1b[0m\n')
    assert find_lines(traces, 1, pattern=re.compile(b'^needle$')) == [(1, 0)]
    assert find_lines(traces, 1, pattern=re.compile(b'title')) == []


def test_line_longer_than_a_block_is_one_line(traces):
    write(traces, b'first\n' + b'x' * (5 * MIB) + b'needle' + b'x' * MIB + b'\nlast needle\n')
    assert find_lines(traces, 1, number=2) == [(2, 6)]
    last = 6 + 6 * MIB + 7
    assert find_lines(traces, 1, number=3) == [(3, last)]
    assert find_lines(traces, 1, offset=last + 3) == [(3, last)]
    found = find_lines(traces, 1, pattern=re.compile(b'needle'), limit=9)
    assert [number for number, _ in found] == [2, 3]
    found = find_lines(traces, 1, pattern=re.compile(b'x'), limit=9)
    assert [number for number, _ in found] == [2]
    (number, offset), = find_lines(traces, 1, offset=6 + 4 * MIB)
    assert number == 2
    assert 6 <= offset <= 6 + 4 * MIB


@pytest.mark.parametrize('data', [
    b'a', b'a ', b'errorx', b'\x1b[', b'\x1b', b'\x1b]', b'section_start:1:', b'\r', b'0 ', b'aerrorb ', b'no ',
    b'\x1b[0;', b'; '],
    ids=repr)
def test_megabytes_of_anything_without_an_error_hold_none(traces, data):
    write(traces, (b'\x1b[' if data == b'; ' else b'') + data * (MIB // len(data)))
    assert find_lines(traces, 1, pattern=minici_pages.ERROR_LINE) == []
    assert b'\x1b' not in b''.join(traces.plain(1))


# -- plain text

def test_plain_text_of_a_long_log_is_the_same_as_of_its_lines(traces):
    lines = [b'\x1b[3%dm%d\x1b[0m' % (n % 8, n) + b' progress 1%\r progress 2%\r' * (n % 2) + b'done'
             for n in range(70_000)]
    write(traces, b'\n'.join(lines))
    assert len(list(traces.blocks(1))) > 2
    assert b''.join(traces.plain(1)) == b'\n'.join(
        b'done' if n % 2 else b'%ddone' % n for n in range(70_000))


@pytest.mark.parametrize('data', [b'', b'\n', b'no end', b'end\n', b'\n\n\n', b'\r\n', b'a\rb\r\n', b'\r'])
def test_plain_text_keeps_the_lines(traces, data):
    write(traces, data)
    assert b''.join(traces.plain(1)).count(b'\n') == data.count(b'\n')


def test_plain_text_holds_no_escape_of_a_hostile_log(traces):
    chance = random.Random(1)
    pieces = [b'\x1b', b'[', b']', b'0', b';', b'm', b'\x07', b'\\', b'(', b'B', b'\n', b'\r', b'text', b'\xff', b' ']
    for _ in range(1500):
        write(traces, b''.join(chance.choices(pieces, k=12)))
        assert b'\x1b' not in b''.join(traces.plain(1))


def test_plain_text_of_a_huge_log_is_its_end_and_says_how_much_is_left_out(traces, monkeypatch):
    monkeypatch.setattr(minici, 'MAX_PLAIN_TRACE', 2 * MIB)
    write(traces, b''.join(b'line %07d\n' % number for number in range(400_000)))
    first, *lines = b''.join(traces.plain(1)).splitlines()
    left_out = int(re.match(rb'\[(\d+) lines are left out here', first)[1])
    assert lines == [b'line %07d' % number for number in range(left_out, 400_000)]
    assert 2 * MIB <= len(lines) * 13 <= 4 * MIB
