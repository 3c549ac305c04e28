"""What a test suite adds to the pytest plugin that comes with minici: copy this file into your tests and change it.

The fixture `minici_server` is there once minici is installed; what your own tests share, you write over it::

    import urllib.error
    import urllib.request

    import pytest

    def my_client(ci, path):                # stands for what you test
        headers = {'PRIVATE-TOKEN': ci.private_token}
        with urllib.request.urlopen(urllib.request.Request(ci.api_url + path, headers=headers)) as answer:
            return answer.read()

    def test_the_client_reads_a_trace(ci):
        job = ci.enqueue('make test', project='group/demo')
        ci.run_job('3 passed')
        assert my_client(ci, f'/projects/{ci.demo.id}/jobs/{job.id}/trace') == b'3 passed'

    def test_the_client_notices_an_outage(ci):
        ci.faults.add('GET', '/api/v4/version', status=503)
        with pytest.raises(urllib.error.HTTPError, match='503') as caught:
            my_client(ci, '/version')
        caught.value.close()
        assert b'version' in my_client(ci, '/version')

    def test_a_silent_job_is_failed_after_ten_minutes(ci):
        job = ci.enqueue('sleep 9999')
        ci.claim().write('zzz')
        ci.clock.advance(minutes=11)
        ci.ci.sweep()
        assert ci.wait(job).failure_reason == 'stuck_or_timeout_failure'

More is in examples/minici_testing/README.md.
"""

import pytest


@pytest.fixture
def ci(minici_server):
    """A GitLab CI with what all tests of this suite begin with: a project and a variable of the instance."""
    minici_server.demo = minici_server.add_project('group/demo')
    minici_server.ci.set_variable(None, 'MODE', 'test')
    return minici_server
