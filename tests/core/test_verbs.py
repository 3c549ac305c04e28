"""The verbs of the coordinator name their keywords: nothing that a caller chose becomes SQL or is ignored."""

import inspect

import pytest
from support import SHA

import minici

#: Calls with a keyword that does not exist.
UNKNOWN = {
    'create_project': lambda ci, project, runner, more: ci.create_project('other', **more),
    'edit_project': lambda ci, project, runner, more: ci.edit_project(project, **more),
    'list_projects': lambda ci, project, runner, more: ci.list_projects(**more),
    'set_variable': lambda ci, project, runner, more: ci.set_variable(project, 'A', 'b', **more),
    'register_runner': lambda ci, project, runner, more: ci.register_runner(ci.registration_token, **more),
    'create_runner': lambda ci, project, runner, more: ci.create_runner(project, **more),
    'edit_runner': lambda ci, project, runner, more: ci.edit_runner(runner, **more),
    'list_jobs': lambda ci, project, runner, more: ci.list_jobs(**more),
    'count_jobs': lambda ci, project, runner, more: ci.count_jobs(limit=1, **more),
    'list_pipelines': lambda ci, project, runner, more: ci.list_pipelines(project, **more),
    'create_pipeline': lambda ci, project, runner, more: ci.create_pipeline(project, 'main', sha=SHA, content={
        'test': {'script': ['make']}}, **more),
    'trigger_pipeline': lambda ci, project, runner, more: ci.trigger_pipeline(ci.create_trigger(
        project, ci.find_user(ci.create_private_token()), 'nightly'), 'main', **more),
    'request_job': lambda ci, project, runner, more: ci.request_job(runner, **more),
}


@pytest.mark.parametrize('keyword', ['bogus', "name = 'x', runners_token", 'runners_token', 'id'])
@pytest.mark.parametrize('verb', UNKNOWN)
def test_an_unknown_keyword_is_a_type_error_and_changes_nothing(ci, project, verb, keyword):
    runner, token = ci.register_runner(ci.registration_token, description='a')
    before = {key: dict(ci.find_project(project))[key] for key in ('name', 'runners_token', 'id')}
    with pytest.raises(TypeError, match='unexpected keyword'):
        UNKNOWN[verb](ci, project, ci.find_runner(token), {keyword: 'y'})
    assert {key: dict(ci.find_project(project))[key] for key in before} == before
    assert (ci.list_projects()[1], len(ci.list_runners()), ci.list_pipelines()[1]) == (1, 1, 0)


def test_only_the_settings_of_the_coordinator_come_as_a_mapping():
    verbs = inspect.getmembers(minici.Coordinator, inspect.isfunction)
    open_ended = [name for name, verb in verbs if not name.startswith('_')
                  and any(item.kind is item.VAR_KEYWORD for item in inspect.signature(verb).parameters.values())]
    assert open_ended == []
    with pytest.raises(TypeError, match='bogus'):
        minici.Coordinator(bogus=1)


def test_an_edit_changes_what_it_names_and_leaves_the_rest(ci, project):
    ci.edit_project(project, import_url='https://example.com/a.git', build_timeout=77)
    edited = ci.edit_project(project, name='New')     # `project` is as it was before the first edit
    assert (edited['name'], edited['import_url'], edited['build_timeout']) == ('New', 'https://example.com/a.git', 77)
    assert ci.edit_project(project, import_url=None)['import_url'] is None
    runner, _ = ci.register_runner(ci.registration_token, tag_list=['a'], maximum_timeout=700, description='old')
    edited = ci.edit_runner(runner, description='new')
    assert (edited['description'], edited['tags'], edited['maximum_timeout']) == ('new', '["a"]', 700)
    assert ci.edit_runner(runner, maximum_timeout=None)['maximum_timeout'] is None
    assert ci.edit_runner(runner, active=False)['description'] == 'new'


def test_every_verb_is_named_in_the_manual_of_the_coordinator():
    public = {name for name, value in inspect.getmembers(minici.Coordinator)
              if not name.startswith('_') and (inspect.isfunction(value) or isinstance(value, property))}
    named = {name for name in public if f'`{name}`' in minici.Coordinator.__doc__}
    assert {'create_pipeline', 'list_jobs', 'request_job', 'append_trace', 'wait', 'sweep'} <= named
    assert all(inspect.getdoc(getattr(minici.Coordinator, name)) for name in public)
