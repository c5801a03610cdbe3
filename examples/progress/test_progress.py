"""The rules of service.py, and friend.py calling them."""

import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from microconnect import Friend

FOLDER = Path(__file__).parent
TIMEOUT = 30


@pytest.fixture
def service():
    """The module service.py, under a name that no other example has, while it serves."""
    spec = importlib.util.spec_from_file_location('progress_service', str(FOLDER / 'service.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Micro.start(port=0):
        yield module
    module.workers.shutdown()


def test_rules(service, monkeypatch):
    """The id comes at once; then the percent, and in the end the result."""
    halfway, go_on = threading.Event(), threading.Event()

    def work(job, limit):
        job['percent'] = 50
        halfway.set()
        assert go_on.wait(TIMEOUT)
        return limit

    monkeypatch.setattr(service, 'count_primes', work)
    with Friend('progress', service.Micro.address, timeout=TIMEOUT) as friend:
        job_id = friend.send('/start', 7)
        assert halfway.wait(TIMEOUT)
        assert friend.send('/progress', job_id) == (50, None)
        go_on.set()
        assert service.jobs[job_id]['future'].result(TIMEOUT) == 7
        assert friend.send('/progress', job_id) == (100, 7)
        with pytest.raises(KeyError):
            friend.send('/progress', 'unknown')


def test_a_job_that_fails(service):
    """What the job raises reaches whoever asks how far it is."""
    with Friend('progress', service.Micro.address, timeout=TIMEOUT) as friend:
        job_id = friend.send('/start', 'many')
        service.jobs[job_id]['future'].exception(TIMEOUT)
        with pytest.raises(TypeError, match='cannot be interpreted as an integer'):
            friend.send('/progress', job_id)


def test_friend(service):
    """friend.py, a program of its own, shows the progress and the result."""
    command = [sys.executable, str(FOLDER / 'friend.py'), service.Micro.address, '1000']
    printed = subprocess.check_output(command, timeout=TIMEOUT, universal_newlines=True)
    assert printed.endswith('100 %\n168 primes\n')
