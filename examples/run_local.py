#!/usr/bin/env python3
"""Run the pipeline of a working tree on this machine as it stands, uncommitted changes included.

    python run_local.py PATH                   all of it, as a push of its branch would
    python run_local.py PATH JOB               one job, even a manual one, and what it needs

The exit status is 0 when the pipeline succeeds and 1 when it fails; 2 says that it could not be run. Nothing
remains: the working tree is not touched, the jobs run in a copy of it, in a plain shell, as you.
"""

import argparse
import dataclasses
import json
import re
import sys
import tempfile
import threading
from pathlib import Path

import quickstart
import shell_runner
from quickstart import Problem

try:
    import minici
except ModuleNotFoundError as error:
    sys.exit(f'{error}. In the directory of minici.py, run:  python -m pip install ".[yaml]"')


def compile_tree(url, sha, branch, project, scratch):
    """Return the pipeline that a push of the commit would make."""
    with minici.Repository(url, scratch) as repository:
        content = repository.file(sha, minici.PIPELINE_FILE)
        if content is None:
            raise Problem(f'there is no {minici.PIPELINE_FILE}')
        facts = dict(ref=branch, tag=False, sha=sha, before_sha='0' * len(sha), source='push',
                     commit_info=json.dumps(repository.commit(sha)), project_id=project['id'],
                     project_path=project['path'], project_name=project['name'], default_branch=branch)
        variables = {name: str(value) for name, value in minici.pipeline_variables(facts).items() if value is not None}
        return minici.compile_pipeline(content, facts=facts, variables=variables, repository=repository)


def only(spec, name):
    """Return a pipeline of the jobs of a name, and of those whose artifacts or success they need.

    The copies of a parallel job have its name, too. Jobs are run at once, whatever they would wait for otherwise.
    """
    wanted = [job for job in spec.jobs if name in (job.name, re.sub(r'(: \[.*\]| \d+/\d+)$', '', job.name))]
    if not wanted:
        raise Problem(f'there is no job {name}; this pipeline has {", ".join(job.name for job in spec.jobs)}')
    kept = {}
    while wanted:
        job = wanted.pop()
        kept[job.name] = dataclasses.replace(job, when='on_success', start_in=None)
        earlier = spec.stages[:spec.stages.index(job.stage)]
        names = job.dependencies
        if job.needs is not None:
            names = [need['name'] for need in job.needs]
        wanted += [other for other in spec.jobs if other.name not in kept and (
            other.name in names if names is not None else other.stage in earlier and other.artifacts)]
    return dataclasses.replace(spec, jobs=[kept[job.name] for job in spec.jobs if job.name in kept])


def run(options, screen, work):
    """Do it all in the directory `work`; return the exit status."""
    repository, branch, dirty = quickstart.find_repository(Path(options.path).resolve())
    url, sha = minici.snapshot(repository, branch, work / 'snapshot.git')
    with minici.Coordinator(work / 'ci.sqlite', fsync=False) as ci, minici.Server(ci) as server:
        project = ci.create_project('local/project', name=repository.name, import_url=url, default_branch=branch)
        spec = compile_tree(url, sha, branch, project, work)
        if options.job:
            spec = only(spec, options.job)
        pipeline = ci.create_pipeline(project, branch, sha=sha, content=spec, source='push')
        screen.line(f'{repository}, {branch}{" with what is not committed" if dirty else ""}: {len(spec.jobs)} job(s)')
        tags = sorted({tag for job in spec.jobs for tag in job.tag_list})
        runner = shell_runner.Runner(server.url, builds_dir=work, interval=0.1, say=lambda text: None)
        runner.register(ci.registration_token, description='run_local', tag_list=tags, run_untagged=True)
        thread = threading.Thread(target=runner.run_forever, name='runner')
        thread.start()
        try:
            pipeline = quickstart.follow(ci, pipeline, screen, thread)
        finally:
            runner.stopping.set()
            thread.join()
        jobs = sorted(ci.list_jobs(pipeline=pipeline, limit=10_000), key=lambda job: job['id'])
        quickstart.summarize(pipeline, jobs, quickstart.collect(ci, jobs, work), screen)
    return 0 if pipeline['status'] == 'success' else 1


def main():
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description='Run the pipeline of a working tree on this machine as it stands.')
    parser.add_argument('path', help='the working tree')
    parser.add_argument('job', nargs='?', help='the only job to run, with what it needs (default: all)')
    options = parser.parse_args()
    sys.stdout.reconfigure(errors='replace')
    with tempfile.TemporaryDirectory(prefix='minici-local-', ignore_cleanup_errors=True) as work:
        try:
            return run(options, quickstart.Screen(), Path(work).resolve())
        except KeyboardInterrupt:
            print('\nrun_local: interrupted, the job that was running is stopped', file=sys.stderr)
            return 130
        except minici.CIError as error:
            print('run_local: the pipeline cannot be made\n  ' + '\n  '.join(error.problems), file=sys.stderr)
        except (Problem, shell_runner.Failed, OSError) as error:
            print(f'run_local: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
    sys.exit(main())
