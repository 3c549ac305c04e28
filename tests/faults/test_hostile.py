"""With ten hostile clients side by side, a runner is answered throughout and the server's memory stays bounded."""

import pytest
from hostile import ATTACKS, MIB, arena, attacked

SECONDS = 2         # of each attack here; `python tests/benchmarks --only hostile` has ten, and a new server for each
STALL = 3.0         # seconds: three times the target


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Yield a server and the facts about it that the attacks need."""
    with arena(tmp_path_factory.mktemp('hostile'), git=True) as (server, facts):
        yield server, facts


@pytest.mark.parametrize('row', ATTACKS)
def test_a_runner_is_answered_while_ten_clients_are_hostile(place, row):
    found = attacked(*place, row, SECONDS)
    print(f'{row}: {found}')
    assert found.answers > 0
    assert max(found.poll, found.patch, found.final) < STALL
    assert found.memory < 200 * MIB
