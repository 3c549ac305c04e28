"""Traces of runners from 18.7 on, whose lines begin with a time stamp, read as those of the runners before."""

import random
import re

import pytest
from minici_pages.logs import find_lines
from support import Clock, stamped

import minici

MIB = minici.MIB
LOG = (b'\x1b[0KRunning with gitlab-runner\x1b[0;m\n'
       b'section_start:1796005331:prepare_executor\r\x1b[0K\x1b[0K\x1b[36;1mPreparing the "shell" executor\x1b[0;m\n'
       b'Using Shell (bash) executor...\n'
       b'section_end:1796005331:prepare_executor\r\x1b[0Ksection_start:1796005332:step_script[collapsed=true]\r\x1b[0K'
       b'\x1b[36;1mExecuting\x1b[0;m\n'
       b'\rprogress 10%\rprogress 100%\r\n'
       b'\n'
       + b'x' * 20_000 + b'END-OF-LONG\n'
       b'TOTAL  120  12  90%\n'
       b'an error\n'
       b'section_end:1796005339:step_script\r\x1b[0K\n'
       b'pr\xc3\xbcfe \xe2\x9c\x93\n'
       b'\x1b[32;1mJob succeeded\x1b[0;m\n')
PLAIN = (b'Running with gitlab-runner\nPreparing the "shell" executor\nUsing Shell (bash) executor...\nExecuting\n'
         b'progress 100%\n\n' + b'x' * 20_000 + b'END-OF-LONG\nTOTAL  120  12  90%\nan error\n'
         b'pr\xc3\xbcfe \xe2\x9c\x93\nJob succeeded\n')


@pytest.fixture
def traces(tmp_path):
    store = minici.TraceStore(tmp_path / 'traces', clock=Clock(), fsync=False, max_size=100 * MIB)
    store.replace(1, LOG, lambda: None)
    store.replace(2, stamped(LOG), lambda: None)
    return store


def random_log(seed):
    chance = random.Random(seed)
    pieces = [b'a', b'text', b'\n', b'\n', b'\r', b'\r\n', b'\x1b[0K', b'\x1b[31m', b'section_start:12:one\r\x1b[0K',
              b'section_end:15:one\r\x1b[0K', b'section_', b'error', b'z' * 9000, b'\xc3\xbc', b'2026-', b'O+', b'E+',
              b'2026-11-30T02:22:11.861549Z 00O ', b'2026-11-30T02:22:11.861549Z 00O+']
    return b'started\n' + b''.join(chance.choices(pieces, k=200))


def test_helper_stamps_every_line_and_marks_what_continues_one():
    lines = stamped(b'one\ntwo\rthree\n' + b'y' * 9000).split(b'\n')
    assert [line[27:37] for line in lines] == [b' 01O one', b' 01O two\r', b' 01O+three', b' 01O yyyyy', b' 01O+yyyyy']


# -- what pages show

def test_plain_text_has_no_stamps_and_joins_continued_lines(traces):
    assert b''.join(traces.plain(1)) == PLAIN
    assert b''.join(traces.plain(2)) == PLAIN


@pytest.mark.parametrize('seed', range(20))
def test_plain_text_is_the_same_with_and_without_stamps(traces, seed):
    log = random_log(seed)
    traces.replace(3, log, lambda: None)
    traces.replace(4, stamped(log), lambda: None)
    assert b''.join(traces.plain(4)) == b''.join(traces.plain(3))


def test_megabytes_of_stamped_lines_read_the_same_as_without_stamps(traces):
    chance = random.Random(1)
    log = b''.join(b'line %d %s\n' % (number, b'p\r' * (number % 3) + b'y' * chance.choice((0, 10, 9000, 70_000)))
                   for number in range(200))
    log += b'z' * 4 * MIB + b'\nend\n'
    traces.replace(3, log, lambda: None)
    traces.replace(4, stamped(log), lambda: None)
    blocks = list(traces.blocks(4))
    assert len(blocks) > 3
    assert b''.join(block.data for block in blocks) == stamped(log)
    assert b''.join(block.text for block in blocks) == log
    assert max(len(block.data) for block in blocks) <= 4 * MIB
    assert b''.join(traces.plain(4)) == b''.join(traces.plain(3))
    for number in (1, 2, 100, 200, 201, 202):
        (_, begin), = find_lines(traces, 3, number=number)
        (found, offset), = find_lines(traces, 4, number=number)
        assert found == number
        assert stamped(log)[offset + 32:].startswith(log[begin:begin + 8])
        assert find_lines(traces, 4, offset=offset) == [(number, offset)]
    assert [number for number, _ in find_lines(traces, 4, pattern=re.compile(b'end'), limit=9)] == [202]


def test_line_numbers_and_offsets_count_a_continued_line_once(traces):
    log = stamped(LOG)
    numbers = [number for number, _ in find_lines(traces, 1, pattern=re.compile(b'.'), limit=99)]
    found = find_lines(traces, 2, pattern=re.compile(b'.'), limit=99)
    assert [number for number, _ in found] == numbers
    assert all(re.match(rb'.{27} 01[OE] ', log[offset:]) for _, offset in found)
    for at in range(0, len(log), 7):
        (number, offset), = find_lines(traces, 2, offset=at)
        assert offset <= at
        assert find_lines(traces, 2, number=number) == [(number, offset)]


def test_search_neither_sees_stamps_nor_the_cuts_between_them(traces):
    assert find_lines(traces, 2, pattern=re.compile(b'2026|01o'), limit=9) == []
    assert [number for number, _ in find_lines(traces, 2, pattern=re.compile(b'xend-of-long'))] == [7]


def test_log_without_stamps_may_print_lines_that_look_stamped(traces):
    log = b'cat of another log:\n' + stamped(b'a\rb\nc\n')
    traces.replace(3, log, lambda: None)
    assert b''.join(traces.plain(3)) == log.replace(b'a\r', b'a')
    assert [number for number, _ in find_lines(traces, 3, pattern=re.compile(b'.'), limit=9)] == [1, 2, 3, 4]


@pytest.mark.parametrize('write', [bytes, stamped], ids=['without', 'stamped'])
@pytest.mark.parametrize('log', [b'', b'a', b'a\n', b'\n', b'a\nb', b'a\n\nb\n', LOG, b'w' * 3 * MIB + b'\nend'],
                         ids=['empty', 'part', 'line', 'blank', 'two', 'gap', 'log', 'long'])
def test_lines_come_backwards_from_the_end(traces, write, log):
    traces.replace(3, write(log), lambda: None)
    lines = list(traces.lines_backwards(3))[::-1]
    if len(log) > MIB:
        assert b''.join(lines) == log.replace(b'\n', b'')
        assert lines[-1] == b'end'
    else:
        assert b'\n'.join(lines) == log


@pytest.mark.parametrize('seed', range(5))
def test_lines_come_backwards_whole_over_the_edges_of_what_is_read_at_once(traces, seed):
    chance = random.Random(seed)
    log = b'\n'.join(b'%d' % number + b'\rq' * (number % 2) + b'v' * chance.choice((1, 200, 30_000))
                     for number in range(300))
    traces.replace(3, stamped(log), lambda: None)
    assert list(traces.lines_backwards(3)) == log.split(b'\n')[::-1]


@pytest.mark.parametrize('mark', [
    b'section_start:1:a[', b'section_start:1:a', b'section_start:', b'section_start:1:a\r', b'section_start:1:a[b=c]',
    b'section_start:1:[', b'section_'], ids=repr)
def test_hostile_section_marks_cost_no_more_than_their_length(traces, mark):
    """A pattern that starts over at each of them would look at this line for minutes."""
    traces.replace(3, mark * (2 * MIB // len(mark)) + b'\n', lambda: None)
    assert b''.join(traces.plain(3)).count(b'\n') <= 1
    decoder = minici.TraceDecoder()
    for block in traces.blocks(3):
        decoder.feed(block.data)


# -- what arrives piece by piece

FOLLOWED = re.sub(rb'section_[a-z]+:[0-9]+:[a-z_]+(?:\[.*?\])?\r', b'', LOG).decode()


@pytest.mark.parametrize('write', [bytes, stamped], ids=['without', 'stamped'])
def test_text_is_the_same_however_its_bytes_are_cut(write):
    log = write(LOG.replace(b'x' * 20_000, b'x' * 200))
    wanted = FOLLOWED.replace('x' * 20_000, 'x' * 200)
    for cut in range(len(log) + 1):
        decoder = minici.TraceDecoder()
        assert decoder.feed(log[:cut]) + decoder.feed(log[cut:]) + decoder.feed(b'', final=True) == wanted, cut
    decoder = minici.TraceDecoder()
    assert ''.join(decoder.feed(log[at:at + 1]) for at in range(len(log))) + decoder.feed(b'', final=True) == wanted


@pytest.mark.parametrize('seed', range(10))
def test_text_of_anything_is_the_same_however_its_bytes_are_cut(seed):
    chance = random.Random(seed)
    for log in (random_log(seed), stamped(random_log(seed))):
        whole = minici.TraceDecoder().feed(log, final=True)
        decoder, text, at = minici.TraceDecoder(), '', 0
        while at < len(log):
            size = chance.choice((1, 3, 30, 400))
            text += decoder.feed(log[at:at + size])
            at += size
        assert text + decoder.feed(b'', final=True) == whole


def test_lines_are_shown_as_soon_as_they_are_there():
    decoder = minici.TraceDecoder()
    assert decoder.feed(b'1\n') == '1\n'
    assert decoder.feed(b'line 2\npart') == 'line 2\npart'
    decoder = minici.TraceDecoder()
    assert decoder.feed(stamped(b'line 1\n')) == 'line 1\n'
    assert decoder.feed(stamped(b'line 2\n')) == 'line 2\n'
    assert decoder.feed(stamped(b'progress 1%\r\n')) == 'progress 1%\r'     # the next stamp tells whether it goes on
    assert decoder.feed(stamped(b'\rprogress 2%\n')[34:]) == 'progress 2%\n'
