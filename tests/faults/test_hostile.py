"""With ten hostile clients side by side, a runner is answered throughout and the server's memory stays bounded."""

import pytest
from hostile import ATTACKS, MIB, measure

SECONDS = 3         # of each attack here; `python tests/benchmarks --only hostile` has ten
STALL = 3.0         # seconds: three times the target


@pytest.mark.parametrize('row', ATTACKS)
def test_a_runner_is_answered_while_ten_clients_are_hostile(row):
    found = measure(row, SECONDS)
    print(f'{row}: {found}')
    assert found.answers > 3
    assert max(found.poll, found.patch, found.final) < STALL
    assert found.memory < 200 * MIB
