"""Serve a few rules, and the page that lists and calls them: python3 run.py [PORT [PAGE_PORT]].

Both are on this machine only. The ports are 5000 and 8000 by default; 0 takes a free one.
Ctrl-C or SIGTERM ends it.
"""

import asyncio
import contextlib
import functools
import http.server
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # finds microconnect.py
from microconnect import Microservice

HERE = str(pathlib.Path(__file__).resolve().parent)
port, page_port = [*map(int, sys.argv[1:]), *(5000, 8000)[len(sys.argv) - 1 :]]

handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=HERE)
page = http.server.ThreadingHTTPServer(('127.0.0.1', page_port), handler)
origin = f'http://127.0.0.1:{page.server_port}'

# Only pages of this origin may call the service: the browser refuses all others.
Micro = Microservice('calculator', port, '127.0.0.1', debug=True, origins=(origin,))


@Micro.typing('/greet')
def greet(name, greeting='Welcome'):
    """Greet somebody."""
    return f'{greeting} {name}'


@Micro.typing('/divide')
def divide(a: float, b: float, *, floor: bool = False):
    """Divide a by b; with floor, give the quotient and the rest."""
    return divmod(a, b) if floor else a / b


@Micro.typing('/total')
def total(*numbers, **named):
    """Add up all numbers."""
    return sum(numbers) + sum(named.values())


@Micro.typing('/later')
async def later(value, delay=0.5):
    """Return the value after a while."""
    await asyncio.sleep(delay)
    return value


@Micro.typing('/secret', token='123456')
def secret():
    """Tell a secret to those who have the token, 123456."""
    return {'answer': 42}


Micro.typing('/rules')(Micro.rules)  # the page asks for the rules by this one

if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with page, Micro.start(), contextlib.suppress(KeyboardInterrupt):
        print(f'open {origin}/?service={Micro.address}', flush=True)
        page.serve_forever()
