"""Addresses that people and READMEs know from GitLab lead to the pages and badges that they mean."""

import pytest
from browsing import Browser
from support import SHA


@pytest.fixture
def browser(ci, token, project):
    ci.create_pipeline(project, 'main', sha=SHA, content={'x': {'script': ['x']}})
    return Browser(ci, token)


@pytest.mark.parametrize('old, new', [
    ('/group/demo/pipelines/1', '/group/demo/-/pipelines/1'), ('/group/demo/-/jobs', '/?project=group/demo'),
    ('/group/demo/-/pipelines', '/?project=group/demo')])
def test_an_old_address_leads_to_its_page(browser, old, new):
    answer = browser.send('GET', old)
    assert (answer.status_int, answer.headers['Location']) == (303, new)


@pytest.mark.parametrize('path', ['/group/demo/badges/main/pipeline.svg', '/group/demo/-/badges/main/pipeline.svg',
                                  '/group/demo/badges/main/coverage.svg', '/group/demo/-/badges/main/coverage.svg'])
def test_a_badge_has_the_address_that_it_has_on_gitlab(browser, path):
    answer = browser.send('GET', path)
    assert (answer.status_int, answer.headers['Content-Type']) == (200, 'image/svg+xml')


def test_a_badge_of_a_public_project_is_for_everybody(ci, browser, project, client):
    client.call('GET', '/group/demo/badges/main/pipeline.svg', status=401)
    ci.edit_project(project, visibility='public')
    client.call('GET', '/group/demo/badges/main/pipeline.svg', status=200)
