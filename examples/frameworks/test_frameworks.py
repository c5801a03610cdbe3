"""The tests of the examples beside it, and of the servers that many use, where installed."""

import shutil
import urllib.request
from pathlib import Path

import pytest
from test_documents import check_tutorial

from microconnect import BadArguments, Forbidden, Friend, UnknownRule
from test_microconnect import (
    EXAMPLES,
    SERVERS,
    TIMEOUT,
    call_all,
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


HOSTED = """
from service import Micro

application = Micro.wsgi  # gunicorn takes a name, not an attribute
Micro.typing('/fail')(lambda message: int(message))

@Micro.typing('/sleep')
async def sleep(value):
    import asyncio
    await asyncio.sleep(0.001)
    return value
"""


class TestServers:
    """The servers that many use, where they are installed."""

    @pytest.mark.parametrize('server', SERVERS)
    def test_tutorial(self, server, tmp_path, live):
        """The tutorial's service gives its values and errors under the server of another."""
        pytest.importorskip(SERVERS[server][0])
        (tmp_path / 'app1.py').write_text(HOSTED)
        shutil.copy(EXAMPLES / 'tutorial' / 'service.py', tmp_path)
        port = dead_address().rpartition(':')[2]
        command = [part.replace('PORT', port) for part in SERVERS[server]]
        live(running('-m', *command, folder=tmp_path))
        friend = live(Friend('app1', f'http://127.0.0.1:{port}', timeout=TIMEOUT))
        friend.wait(TIMEOUT)
        check_tutorial(friend)
        assert call_all(8, lambda _: friend.send('/sleep', 'ä')) == ['ä'] * 8
        assert len(friend.send('/str', 'x' * 300000, key='')) == 300001
        friend.setRule('/class', token='wrong')
        raised(Forbidden, friend.send, '/class', 1)
        raised(UnknownRule, friend.send, '/strr', match='did you mean')
        raised(BadArguments, friend.send, '/str', 1, 2, 3)
        raised(ValueError, friend.send, '/fail', 'why', match='why', type='ValueError')
