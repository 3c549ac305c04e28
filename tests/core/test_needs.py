"""Jobs that run by what they need: order, skips, artifacts, retries in the middle, many at once."""

import collections
import gzip
import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SHA, Clock, Runner, archive

import minici


class Course:
    """A pipeline whose jobs are started as soon as they may, and finished when a test says so."""

    def __init__(self, ci, project, runner, content):
        self.ci, self.runner, self.claims = ci, runner, {}
        self.pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=content)
        self.go()

    @property
    def jobs(self):
        """The jobs that stand for the pipeline, by name, oldest first."""
        jobs = self.ci.list_jobs(pipeline=self.pipeline, include_retried=False, limit=1000)
        return {job['name']: job for job in sorted(jobs, key=lambda job: (job['stage_idx'], job['id']))}

    def go(self, *steps):
        """Take steps such as `success compile` or `retry compile`, and start what may start after each.

        Return what it all comes to: `running: compile=success test=running`.
        """
        for step in steps or ['']:
            verb, _, name = step.partition(' ')
            if verb in ('success', 'failed'):
                claim = self.claims.pop(name)
                self.ci.update_job(self.ci.authenticate_job(claim.job['id'], claim.token), verb)
            elif verb:
                getattr(self.ci, f'{verb}_job' if name else f'{verb}_pipeline')(
                    self.jobs[name] if name else self.pipeline)
            while claim := self.runner.claim():
                self.claims[claim.job['name']] = claim
        jobs = ' '.join(f'{name}={job["status"]}' for name, job in self.jobs.items())
        return f'{self.ci.find_pipeline(self.pipeline)["status"]}: {jobs}'


@pytest.fixture
def course(ci, project, runner):
    return lambda content: Course(ci, project, runner, content)


# -- order and skips: a pipeline file, then steps and what everything has come to after each

COURSES = {
    'a job starts when its needs have succeeded, before earlier stages end': '''
        fast: {stage: build, script: x}
        slow: {stage: build, script: x}
        test: {script: x, needs: [fast]}
        ship: {stage: deploy, script: x}
        ---
        start                -> running: fast=running slow=running test=created ship=created
        success fast         -> running: fast=success slow=running test=running ship=created
        success test         -> running: fast=success slow=running test=success ship=created
        success slow         -> running: fast=success slow=success test=success ship=running
        success ship         -> success: fast=success slow=success test=success ship=success
    ''',
    'a job that needs nothing starts at once': '''
        build: {stage: build, script: x}
        lint: {script: x, needs: []}
        ---
        start                -> running: build=running lint=running
        failed build         -> running: build=failed lint=running
        success lint         -> failed: build=failed lint=success
    ''',
    'a job waits for all of its needs': '''
        a: {stage: build, script: x}
        b: {stage: build, script: x}
        test: {script: x, needs: [a, b]}
        ---
        success a            -> running: a=success b=running test=created
        success b            -> running: a=success b=success test=running
    ''',
    'jobs of one stage may need each other': '''
        second: {script: x, needs: [first]}
        first: {script: x}
        ---
        start                -> running: second=created first=running
        success first        -> running: second=running first=success
    ''',
    'a failed need skips what needs it and what needs that, unless it runs always or on failure': '''
        build: {stage: build, script: x}
        test: {script: x, needs: [build]}
        ship: {stage: deploy, script: x, needs: [test]}
        clean: {script: x, needs: [build], when: always}
        rescue: {script: x, needs: [build], when: on_failure}
        ask: {script: x, needs: [build], when: manual}
        ---
        failed build         -> running: build=failed test=skipped clean=running rescue=running ask=skipped ship=skipped
    ''',
    'a success skips what runs on failure, and a skipped need skips what needs it': '''
        build: {stage: build, script: x}
        rescue: {script: x, needs: [build], when: on_failure}
        tell: {stage: deploy, script: x, needs: [rescue]}
        clean: {stage: deploy, script: x, needs: [rescue], when: always}
        ---
        success build        -> running: build=success rescue=skipped tell=skipped clean=running
        success clean        -> success: build=success rescue=skipped tell=skipped clean=success
    ''',
    'a failure that is allowed holds nothing up': '''
        build: {stage: build, script: x, allow_failure: true}
        test: {script: x, needs: [build]}
        rescue: {script: x, needs: [build], when: on_failure}
        ---
        failed build         -> running: build=failed test=running rescue=skipped
        success test         -> success: build=failed test=success rescue=skipped
    ''',
    'a canceled need skips what needs it, even what runs always': '''
        build: {stage: build, script: x}
        test: {script: x, needs: [build]}
        clean: {script: x, needs: [build], when: always}
        ---
        cancel build         -> canceled: build=canceled test=skipped clean=skipped
    ''',
    'a manual need that may be left out skips what needs it until it is played': '''
        gate: {stage: build, script: x, when: manual}
        test: {script: x, needs: [gate]}
        other: {script: x}
        ---
        start                -> running: gate=manual test=skipped other=running
        success other        -> success: gate=manual test=skipped other=success
        play gate            -> running: gate=running test=created other=success
        success gate         -> running: gate=success test=running other=success
    ''',
    'a manual need that must be played holds what needs it and nothing else': '''
        gate: {stage: build, script: x, when: manual, allow_failure: false}
        test: {script: x, needs: [gate]}
        lint: {script: x, needs: []}
        ---
        success lint         -> manual: gate=manual test=created lint=success
        play gate            -> running: gate=running test=created lint=success
        success gate         -> running: gate=success test=running lint=success
    ''',
    'a manual job with needs is manual when they have succeeded': '''
        build: {stage: build, script: x}
        slow: {stage: build, script: x}
        ship: {script: x, needs: [build], when: manual}
        ---
        start                -> running: build=running slow=running ship=created
        success build        -> running: build=success slow=running ship=manual
    ''',
    'an optional need that is not there counts for nothing': '''
        absent: {stage: build, script: x, only: [tags]}
        build: {stage: build, script: x}
        one: {script: x, needs: [{job: absent, optional: true}, build]}
        two: {script: x, needs: [{job: absent, optional: true}]}
        ---
        start                -> running: build=running one=created two=running
        success build        -> running: build=success one=running two=running
    ''',
    'what runs always waits until each of its needs has ended, whatever one of them came to': '''
        build: {stage: build, script: x}
        slow: {stage: build, script: x}
        rescue: {script: x, needs: [build], when: on_failure}
        clean: {stage: deploy, script: x, needs: [rescue, slow], when: always}
        ---
        success build        -> running: build=success slow=running rescue=skipped clean=created
        failed slow          -> running: build=success slow=failed rescue=skipped clean=running
    ''',
    'a need on a parallel job is one on each of its copies': '''
        unit: {stage: build, script: x, parallel: 2}
        all: {script: x, needs: [unit]}
        first: {script: x, needs: [unit 1/2]}
        ---
        success unit 1/2     -> running: unit 1/2=success unit 2/2=running all=created first=running
        success unit 2/2     -> running: unit 1/2=success unit 2/2=success all=running first=running
    ''',
    'a need on a matrix is one on each of its copies, or on those it names': '''
        os: {stage: build, script: x, parallel: {matrix: [{OS: [mac, linux]}]}}
        all: {script: x, needs: [os]}
        mac: {script: x, needs: [{job: os, parallel: {matrix: [{OS: mac}]}}]}
        ---
        success os: [mac]    -> running: os: [mac]=success os: [linux]=running all=created mac=running
        success os: [linux]  -> running: os: [mac]=success os: [linux]=success all=running mac=running
    ''',
    'a retry in the middle lets what was skipped after it wait again, and leaves what ran alone': '''
        build: {stage: build, script: x}
        other: {stage: build, script: x}
        test: {script: x, needs: [build]}
        lint: {script: x, needs: [other]}
        ship: {stage: deploy, script: x, needs: [test]}
        ---
        success other        -> running: build=running other=success test=created lint=running ship=created
        success lint         -> running: build=running other=success test=created lint=success ship=created
        failed build         -> failed: build=failed other=success test=skipped lint=success ship=skipped
        retry build          -> running: other=success build=running test=created lint=success ship=created
        success build        -> running: other=success build=success test=running lint=success ship=created
        success test         -> running: other=success build=success test=success lint=success ship=running
    ''',
    'a retry of one need leaves what another failure skipped': '''
        a: {stage: build, script: x}
        b: {stage: build, script: x}
        after a: {script: x, needs: [a]}
        after b: {script: x, needs: [b]}
        ---
        failed a             -> running: a=failed b=running after a=skipped after b=created
        failed b             -> failed: a=failed b=failed after a=skipped after b=skipped
        retry a              -> running: b=failed a=running after a=created after b=skipped
        success a            -> running: b=failed a=success after a=running after b=skipped
    ''',
    'a retried pipeline runs again what failed, what was canceled and what was skipped after them': '''
        a: {stage: build, script: x}
        b: {stage: build, script: x}
        after a: {script: x, needs: [a]}
        after b: {script: x, needs: [b]}
        ---
        success b            -> running: a=running b=success after a=created after b=running
        failed a             -> running: a=failed b=success after a=skipped after b=running
        cancel after b       -> failed: a=failed b=success after a=skipped after b=canceled
        retry                -> running: b=success a=running after a=created after b=running
        success a            -> running: b=success a=success after a=running after b=running
    ''',
    'a canceled pipeline starts nothing that only waited': '''
        a: {stage: build, script: x}
        b: {script: x, needs: [a]}
        c: {script: x, needs: [b], when: always}
        ---
        cancel               -> canceled: a=canceled b=canceled c=canceled
    ''',
}


@pytest.mark.parametrize('text', COURSES.values(), ids=COURSES)
def test_needs_go_on_as_in_gitlab(course, text):
    file, _, steps = text.partition('---')
    running = course('\n'.join(line[8:] for line in file.splitlines()))
    for line in filter(None, map(str.strip, steps.splitlines())):
        step, expected = line.split(' -> ')
        assert running.go('' if step.strip() == 'start' else step.strip()) == expected, step


def test_a_retried_job_waits_for_no_one_but_what_needs_it_waits_for_the_new_one(ci, course):
    running = course({'a': {'stage': 'build', 'script': 'x'}, 'b': {'script': 'x', 'needs': ['a']},
                      'c': {'stage': 'deploy', 'script': 'x', 'needs': ['b']}})
    running.go('success a', 'failed b')
    before = running.jobs
    assert running.go('retry b', 'success b') == 'running: a=success b=success c=running'
    after = running.jobs
    assert (after['a']['id'], after['c']['id']) == (before['a']['id'], before['c']['id'])
    assert after['b']['id'] != before['b']['id']
    assert (ci.find_job(before['b'])['status'], ci.find_job(before['b'])['retried']) == ('failed', 1)


# -- what a job gets from those it needs

FILES = '''
one: {stage: build, script: x, artifacts: {paths: [one]}}
two: {stage: build, script: x, artifacts: {paths: [two]}}
plain: {stage: deploy, script: x}
named: {stage: deploy, script: x, needs: [two]}
none: {stage: deploy, script: x, needs: []}
bare: {stage: deploy, script: x, needs: [one, {job: two, artifacts: false}]}
chosen: {stage: deploy, script: x, needs: [one, two], dependencies: [one]}
'''
WANTED = {'plain': ['one', 'two'], 'named': ['two'], 'none': [], 'bare': ['one'], 'chosen': ['one']}


def build_both(ci, runner, dotenv=False):
    """Run the jobs `one` and `two`, each with an archive or a dotenv report."""
    for _ in range(2):
        claim = runner.claim()
        job = ci.authenticate_job(claim.job['id'], claim.token)
        part = ci.artifacts.receive()
        part.write(gzip.compress(f'FROM_{job["name"]}=yes\n'.encode()) if dotenv else archive(**{job['name']: b'1'}))
        if dotenv:
            ci.store_artifacts(job, part, file_type='dotenv', file_format='gzip')
        else:
            ci.store_artifacts(job, part)
        ci.update_job(job, 'success')


def answers(client, runner, path='/api/v4/jobs/request'):
    """Return the answers to a runner that takes all there is, by the job's name."""
    found = {}
    while (answer := client.call('POST', path, json={'token': runner.token})).status_int == 201:
        found[answer.json.get('name') or answer.json['job_info']['name']] = answer.json
    return found


@pytest.fixture
def prepared(ci, project):
    """Two jobs of the stage `build` that have run, with archives; those after them wait for a runner."""
    def prepare(**options):
        tagged = FILES.replace('stage: build,', 'stage: build, tags: [first],').replace('none: {', 'none: {tags: [],')
        ci.create_pipeline(project, 'main', sha=SHA, content=tagged)
        build_both(ci, Runner(ci, tag_list=['first'], run_untagged=False), **options)
        return Runner(ci)
    return prepare


def test_a_job_downloads_from_those_it_needs_unless_told_not_to(client, prepared):
    found = answers(client, prepared())
    assert {name: [each['name'] for each in answer['dependencies']] for name, answer in found.items()} == WANTED
    assert found['named']['dependencies'][0]['artifacts_file']['filename'] == 'artifacts.zip'
    assert {each['token'] for each in found['plain']['dependencies']} == {found['plain']['token']}


def test_an_old_runner_learns_the_same_names(client, prepared):
    found = answers(client, prepared(), '/ci/api/v1/builds/register')
    for name, answer in found.items():
        offered = [each['name'] for each in answer['depends_on_builds']]
        chosen = answer['options'].get('dependencies', offered)
        assert [each for each in offered if each in chosen] == WANTED[name], name
    assert len(found) == len(WANTED)


def test_variables_of_a_dotenv_report_reach_those_that_take_its_jobs_artifacts(client, prepared):
    for name, answer in answers(client, prepared(dotenv=True)).items():
        keys = [each['key'] for each in answer['variables'] if each['key'].startswith('FROM_')]
        assert keys == [f'FROM_{job}' for job in WANTED[name]], name


def test_a_job_token_reads_the_artifacts_of_needed_jobs_alone(ci, client, prepared):
    found = answers(client, prepared())
    one, two = (each['id'] for each in found['plain']['dependencies'])
    for job, status in ((two, 200), (one, 403)):
        answer = client.call('GET', f'/api/v4/jobs/{job}/artifacts', headers={'JOB-TOKEN': found['named']['token']})
        assert answer.status_int == status


def test_a_retried_need_hands_on_the_artifacts_of_its_latest_run(ci, client, course, runner):
    running = course({'build': {'stage': 'build', 'script': 'x'}, 'test': {'script': 'x', 'needs': ['build']}})
    running.go('failed build', 'retry build', 'success build')
    assert [row['id'] for row in running.claims['test'].dependencies] == [running.jobs['build']['id']]
    assert running.jobs['build']['id'] > 2


# -- many

def large_dag():
    """Return a pipeline of 150 jobs: a matrix of 40, chains after each, and jobs that join them."""
    jobs = {'make': {'stage': 'build', 'script': 'x', 'needs': [], 'parallel': {'matrix': [
        {'OS': ['a', 'b', 'c', 'd'], 'V': [str(number) for number in range(10)]}]}}}
    for number in range(100):
        system, version = 'abcd'[number % 4], str(number // 4 % 10)
        jobs[f'test {number}'] = {'script': 'x', 'needs': [
            {'job': 'make', 'parallel': {'matrix': [{'OS': system, 'V': version}]}},
            *([f'test {number - 10}', f'test {number - 7}'] if number >= 10 else [])]}
    for number in range(10):
        jobs[f'ship {number}'] = {'stage': 'deploy', 'script': 'x', 'needs': [
            f'test {place}' for place in range(90 - number, 100 - number)]}
    return jobs


def test_150_jobs_run_once_each_after_their_needs_under_eight_runners(ci, project):
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=large_dag())
    needs = {name: [row['name'] for row in json.loads(job['spec'])['needs']] for name, job in
             ((job['name'], job) for job in ci.list_jobs(pipeline=pipeline, limit=1000))}
    runners, finished, claimed, early, troubles = [Runner(ci) for _ in range(8)], set(), [], [], []

    def work(runner):
        try:
            while len(finished) < len(needs) and not troubles:
                if (claim := runner.claim()) is None:
                    continue
                name = claim.job['name']
                claimed.append(name)
                early.extend((name, need) for need in needs[name] if need not in finished)
                finished.add(name)  # before the others can see that it has
                ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), 'success')
        except Exception as error:
            troubles.append(error)

    threads = [threading.Thread(target=work, args=[runner]) for runner in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(needs), troubles, early) == (150, [], [])
    assert collections.Counter(claimed) == dict.fromkeys(needs, 1)
    assert ci.find_pipeline(pipeline)['status'] == 'success'


JOB = st.fixed_dictionaries({
    'stage': st.integers(0, 2), 'when': st.sampled_from(['on_success'] * 4 + ['always', 'on_failure', 'manual']),
    'allow_failure': st.booleans(), 'outcome': st.sampled_from(['success', 'success', 'failed', 'canceled']),
    'needs': st.none() | st.sets(st.integers(0, 11), max_size=3)})


def graph(drawn):
    """Return random jobs in the order of their stages, each needing only some of those before it."""
    jobs = {}
    for number, job in enumerate(sorted(drawn, key=lambda job: job['stage'])):
        needs = None if job['needs'] is None else [str(need) for need in sorted(job['needs']) if need < number]
        jobs[str(number)] = {**job, 'needs': needs}
    return jobs


def before(jobs, name):
    """Return the names of the jobs that one waits for."""
    job = jobs[name]
    return [other for other in jobs if (jobs[other]['stage'] < job['stage'] if job['needs'] is None
                                        else other in job['needs'])]


@pytest.fixture(scope='module')
def drained():
    """A coordinator for many examples, a project and a runner."""
    with minici.Coordinator(clock=Clock(), fsync=False) as ci:
        yield ci, ci.create_project('group/many'), Runner(ci)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.lists(JOB, min_size=1, max_size=12).map(graph), st.lists(st.integers(0, 11), max_size=20))
def test_in_any_graph_no_job_starts_before_its_needs_and_none_is_left_behind(drained, jobs, order):
    ci, project, runner = drained
    spec = minici.PipelineSpec('012', [minici.JobSpec(
        name, ['x'], stage=str(job['stage']), when=job['when'], allow_failure=job['allow_failure'],
        needs=None if job['needs'] is None else [{'name': need, 'artifacts': True} for need in job['needs']])
        for name, job in jobs.items()])
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=spec)

    def rows():
        return {job['name']: job for job in ci.list_jobs(pipeline=pipeline, limit=100)}

    def holds(row):
        return row['status'] not in minici.FINISHED and not (row['status'] == 'manual' and row['allow_failure'])

    running, turns = [], list(order)
    while True:
        claim = runner.claim()
        if claim:
            now = rows()
            assert [name for name in before(jobs, claim.job['name']) if holds(now[name])] == []
            running.append(claim)
        elif running:
            claim = running.pop(turns.pop() % len(running) if turns else 0)
            job, outcome = ci.authenticate_job(claim.job['id'], claim.token), jobs[claim.job['name']]['outcome']
            ci.cancel_job(job) if outcome == 'canceled' else ci.update_job(job, outcome)
        else:
            break
    found = rows()
    assert {row['status'] for row in found.values()} <= {*minici.FINISHED, 'manual', 'created'}
    for name, row in found.items():
        assert row['status'] != 'created' or any(holds(found[other]) for other in before(jobs, name))
    assert ci.find_pipeline(pipeline)['status'] == minici.composite_status(
        (row['status'], row['allow_failure']) for row in found.values())
