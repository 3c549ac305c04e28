"""Pipeline rules: what several jobs add up to, and which job's turn has come, without a database."""

import json

import pytest

import minici


def job(name, stage=0, *, status='created', when='on_success', needs=None, allow_failure=False, group=None,
        kind='build'):
    """Return a job as `next_statuses` reads it; its id is made of its name."""
    return {'id': name, 'kind': kind, 'name': name, 'stage_idx': stage, 'status': status, 'when_': when,
            'allow_failure': allow_failure, 'needs': needs if needs is None else json.dumps(needs),
            'resource_group': group}


@pytest.mark.parametrize('statuses, combined', [
    ([], 'success'), (['success', 'skipped'], 'success'), (['skipped', 'skipped'], 'skipped'),
    (['created', 'created'], 'created'), (['created', 'pending'], 'pending'), (['success', 'created'], 'running'),
    (['success', 'canceled'], 'canceled'), (['failed', 'canceled'], 'failed'), (['success', 'running'], 'running'),
    (['success', 'manual'], 'manual'), (['success', 'scheduled'], 'scheduled'), (['failed', 'pending'], 'running'),
    (['success', 'waiting_for_resource'], 'waiting_for_resource'), (['success', 'canceling'], 'canceling'),
    (['failed!', 'success'], 'success'), (['failed!'], 'success'), (['manual!', 'success'], 'success'),
    (['manual!'], 'skipped'), (['canceled!', 'success'], 'success'),
])
def test_jobs_add_up_to_one_status(statuses, combined):
    pairs = [(status.rstrip('!'), status.endswith('!')) for status in statuses]
    assert minici.composite_status(pairs) == combined


def test_a_skipped_job_makes_what_needs_it_skipped():
    assert minici.composite_status([('success', False), ('skipped', False)], needed=True) == 'skipped'


def test_the_first_stage_starts_and_the_others_wait():
    assert minici.next_statuses([job('a'), job('b', 1)]) == {'a': 'pending'}


@pytest.mark.parametrize('before, when, after', [
    ('success', 'on_success', 'pending'), ('failed', 'on_success', 'skipped'), ('failed', 'on_failure', 'pending'),
    ('success', 'on_failure', 'skipped'), ('failed', 'always', 'pending'), ('success', 'manual', 'manual'),
    ('failed', 'manual', 'skipped'), ('success', 'delayed', 'scheduled'), ('skipped', 'on_success', 'pending'),
])
def test_what_came_before_decides_by_when(before, when, after):
    assert minici.next_statuses([job('a', status=before), job('b', 1, when=when)]) == {'b': after}


def test_a_job_of_a_resource_group_waits_for_the_resource():
    assert minici.next_statuses([job('a', group='production')]) == {'a': 'waiting_for_resource'}


def test_a_bridge_needs_no_runner():
    assert minici.next_statuses([job('a', kind='bridge')]) == {'a': 'running'}


def test_needs_let_a_job_start_before_its_stage():
    jobs = [job('a', status='success'), job('slow', status='running'), job('b', 1, needs=['a']), job('c', 1)]
    assert minici.next_statuses(jobs) == {'b': 'pending'}


def test_a_job_runs_only_once_all_its_needs_have_ended():
    jobs = [job('a', status='failed'), job('slow', status='running'),
            job('b', 1, when='always', needs=['a', 'slow'])]
    assert minici.next_statuses(jobs) == {}


def test_a_skipped_job_frees_or_skips_those_after_it_at_once():
    jobs = [job('a', status='failed'), job('b', 1), job('c', 2), job('last', 3, when='always'),
            job('of b', 3, needs=['b'])]
    assert minici.next_statuses(jobs) == {'b': 'skipped', 'c': 'skipped', 'last': 'pending', 'of b': 'skipped'}
