"""The tests of the examples beside it, each where its framework is installed."""

import urllib.request
from pathlib import Path

import pytest

from microconnect import BadArguments, Friend, UnknownRule
from test_microconnect import (
    TIMEOUT,
    check_tutorial,
    dead_address,
    live,
    raised,
    running,
    watch,
    watchdog,
)

__all__ = ['live', 'watch', 'watchdog']  # fixtures


class TestFrameworks:
    """The examples of services beside a framework's own routes, where it is installed."""

    @pytest.mark.parametrize('name', ['flask', 'sanic', 'starlette', 'fastapi'])
    def test_example(self, name, tmp_path, live):
        """One port answers the framework's own route, and the rules of the tutorial."""
        pytest.importorskip(name)
        if name in ('starlette', 'fastapi'):
            pytest.importorskip('uvicorn')
        address, example = dead_address(), Path(__file__).with_name(f'{name}_app.py')
        live(running(str(example), address.rpartition(':')[2], folder=tmp_path))
        friend = live(Friend('app1', f'{address}/rpc', timeout=TIMEOUT))
        friend.wait(TIMEOUT)
        assert friend.send('/helloworld', 'Mr. Developer') == 'Welcome Mr. Developer'
        assert friend.send('/later', 2, delay=0.001) == 2
        check_tutorial(friend)
        raised(UnknownRule, friend.send, '/nothing')
        raised(BadArguments, friend.send, '/helloworld')
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f'{address}/', timeout=TIMEOUT) as reply:
            assert reply.read().decode().lower() == f'{name} answers here'
