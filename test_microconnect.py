"""The tests of microconnect: ``python -m pytest -q``.

All helpers come first.  The tests follow in the order of the module: errors, settings, values,
messages, the clock, signatures, rules, hosts, Microservice, Friend; then what the documents
promise.  One table of bad bytes is read in memory and on the wire.  Sockets are real, on port 0
of 127.0.0.1.
"""

import asyncio
import base64
import builtins
import collections
import concurrent.futures
import contextlib
import contextvars
import copy
import dataclasses
import datetime
import decimal
import enum
import errno
import faulthandler
import fractions
import functools
import gc
import hashlib
import http.server
import importlib.util
import inspect
import io
import ipaddress
import itertools
import json
import logging
import math
import operator
import os
import pathlib
import pickle
import pprint
import queue
import random
import re
import runpy
import select
import shlex
import shutil
import signal
import socket
import ssl
import string
import struct
import subprocess
import sys
import threading
import time
import traceback
import types
import typing
import urllib.request
import uuid
import warnings
import weakref
import wsgiref.simple_server
import wsgiref.util
import wsgiref.validate
from pathlib import Path

import pytest

import microconnect
from microconnect import (
    BadArguments,
    BadCall,
    BadReply,
    Busy,
    CallTimeout,
    ConnectionLost,
    Forbidden,
    Friend,
    MicroconnectError,
    Microservice,
    RemoteError,
    TooLarge,
    UnknownRule,
    Unreachable,
)


def each(table):
    """The rows of *table*, one for each element of the list in its last column."""
    return [(*row, one) for *row, several in table for one in several]


TIMEOUT = 10  # seconds: no test waits longer for anything
HERE = Path(__file__).resolve().parent
EXAMPLES = HERE / 'examples'
MODULE = os.path.dirname(os.path.abspath(microconnect.__file__))  # may be an installed one
SECRET = 's3cret-token'
JSON = {'Content-Type': 'application/json'}
REPLY = {**JSON, 'Cache-Control': 'no-store'}  # the fields of a reply

needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
needs_signals = pytest.mark.skipif(os.name == 'nt', reason='Windows has no such signals to send')
needs_timers = pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='no timers here')


# Windows tries a port where nobody listens for two seconds: a shorter timeout ends before that.
REFUSED_SOON = 'in time' if os.name == 'nt' else 'refused'


# ------------------------------------------------------------------- helpers: names of the module
# The tests use private names only through these, so a renaming in the module is one line here.

CHUNKED, TO_THE_END = microconnect._CHUNKED, microconnect._TO_THE_END  # instead of a body's length
parse_request = microconnect._parse_request_head
parse_reply = microconnect._parse_reply_head


def error_of(status, body, kind='application/problem+json', server=''):
    """The error that a reply stands for."""
    reply = microconnect._ReplyHead(status, len(body), 0.0, '', server, {'content-type': kind})
    return microconnect._error_from_reply(reply, body)


def value_of(body):
    """What `send` gives for a reply with *body*."""
    head = parse_reply(b'HTTP/1.1 200 OK\r\nContent-Type: application/json')
    return microconnect._returned(head, body, time.monotonic() + TIMEOUT)


def decodes(body):
    """Why the module does not decode *body*; an empty string where it does."""
    try:
        microconnect._decode(body)
    except ValueError as error:
        return str(error)
    return ''


def bound_iterators(monkeypatch, most):
    """Let an iterator have up to *most* items."""
    monkeypatch.setattr(microconnect, '_MOST_ITEMS', most)


class Reader:
    """The module's reader, fed with *data* by *cut*, which gives the size of each piece.

    As the end of a connection does, b'' follows; then a message that is still unfinished is a
    failure of the reader.
    """

    def __init__(self, data, cut, reply, max_head):
        module = microconnect
        parse = module._parse_reply_head if reply else module._parse_request_head
        line = module._STATUS_LINE if reply else module._REQUEST_LINE
        self.inner = module._Reader(self.receive, parse, line, max_head)
        self.left, self.cut = data, cut

    def receive(self, most):
        size = min(self.cut(self.left), most)
        given, self.left = self.left[:size], self.left[size:]
        return given

    def head(self):
        got = self.inner.head()
        if got is None:  # as the owners of a reader take it
            raise BadCall('the connection ended in the middle of a message')
        return got

    def body(self, length, limit):
        return self.inner.body(length, limit)


def reader(data, step=0, reply=False, max_head=200, seed=None):
    """What reads messages: *data* comes whole, *step* bytes at a time, or in random pieces."""
    cut = random.Random(seed).randrange if seed is not None else None
    size = (lambda left: cut(1, 9)) if cut else (lambda left: step or len(left) or 1)
    return Reader(data, size, reply, max_head)


def unread(stream):
    """The bytes that a reader has not returned yet."""
    return bytes(stream.inner.buffer) + stream.left


def read_reply(data, max_body=250000):
    """What `send` gives for a reply of these bytes, read in memory."""
    stream = reader(data, reply=True, max_head=64 << 10)
    head = stream.head()
    while head.status < 200:
        head = stream.head()
    body = stream.body(head.length, max_body)
    return microconnect._returned(head, body, time.monotonic() + TIMEOUT)


def connections_of(service):
    """The connections that a service has open."""
    return service._listener.connections


def idle_connections_of(service):
    """The open connections that wait for a request."""
    return [one for one in connections_of(service).copy() if one.state == 'idle']


def is_stopping(service):
    return service._listener.stop_by is not None


def sockets_of(service, friend):
    """The sockets of the connections between a service and a friend with one address."""
    return [one.timed.sock for one in (*connections_of(service).copy(), *links_of(friend))]


def unread_bytes_of(service):
    """How many bytes of unfinished requests a service holds."""
    return sum(len(one.reader.buffer) for one in connections_of(service).copy())


def links_of(friend):
    """The idle connections of a friend with one address."""
    return friend._addresses[0].links


def replace_links(friend, links):
    friend._addresses[0].links = links


def make_old(link):
    """Let *link* be past the time for which its peer keeps it."""
    link.keep_until = 0.1


def proxy_of(friend):
    """The proxy through which a friend with one address calls, or None."""
    return friend._addresses[0].proxy


@pytest.fixture(params=['at once', 'by looks'])
def each_way(request, monkeypatch):
    """What ends a wait wakes its thread, and, as on Windows, the thread looks now and then."""
    if request.param == 'by looks':
        monkeypatch.setattr(microconnect, '_LOOK', 0.05)


def end_wait(connection):
    """End the wait of a connection, as for a newcomer that needs room."""
    connection.end()


def linger_briefly(monkeypatch):
    """Let a closing service wait only 50 ms for its peer to close, too."""
    monkeypatch.setattr(microconnect, '_LINGER', 0.05)


def shorten_queue(monkeypatch, size):
    """Let *size* connections wait to be accepted, not 1,024."""
    monkeypatch.setattr(microconnect._Listener, 'request_queue_size', size)


def hold_at_most(monkeypatch, size):
    """Let a service hold *size* bytes of unfinished requests, if twice max_body is not more."""
    monkeypatch.setattr(microconnect, '_HELD', size)


def forget_idle_threads():
    """Let the next asend need a new thread."""
    microconnect._workers_of.cache_clear()


def fail_to_read(monkeypatch, size):
    """Let no memory be left once a connection has sent *size* bytes."""
    receive = microconnect._Connection._receive

    def receive_or_fail(connection, most):
        data = receive(connection, most)
        if len(connection.reader.buffer) + len(data) >= size:
            raise MemoryError
        return data

    monkeypatch.setattr(microconnect._Connection, '_receive', receive_or_fail)


def look_up_by(monkeypatch, found, tried):
    """Let every name have the addresses *found*, and note in *tried* what is connected to."""

    def connect(_, address):
        tried.append(address)
        raise OSError(errno.ECONNREFUSED, 'nobody listens')

    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: found)
    monkeypatch.setattr(socket.socket, 'connect', connect)


# ------------------------------------------------------------------------------ helpers: services


def make(**options):
    """A service with a few rules; `service.ran` lists what each call was given."""
    service = Microservice('app1', **options)
    service.ran = []

    @service.typing('/echo')
    @service.reply
    def echo(*args, **kwargs):
        service.ran.append((args, kwargs))
        return args[0] if len(args) == 1 and not kwargs else args

    @service.typing('/fail')
    @service.reply
    def fail(name, message='why'):
        service.ran.append(((name, message), {}))
        raise getattr(builtins, name)(message)

    return service


def make_async(**options):
    """A service of `make` with async rules too."""
    service = make(**options)

    @service.typing('/aecho')
    @service.reply
    async def aecho(value):
        await asyncio.sleep(0)
        return value

    @service.typing('/loop')
    @service.reply
    async def loop():
        service.loop = asyncio.get_running_loop()
        service.loop_thread = threading.current_thread()

    @service.typing('/afail')
    @service.reply
    async def afail(name):
        await asyncio.sleep(0)
        raise {'CancelledError': asyncio.CancelledError}.get(name) or getattr(builtins, name)

    return service


def service_of(function, **options):
    """A service with *function* under /f."""
    service = Microservice('app1', **options)
    service.typing('/f')(function)
    return service


def friend_of(function, **options):
    """A friend, in this process, of a service with *function* under /f."""
    return Friend('app1', service_of(function, **options))


def counting(service):
    """Add /count, which returns how many times its connection (a thread) has called it."""
    local = threading.local()

    @service.typing('/count')
    def count():
        local.count = getattr(local, 'count', 0) + 1
        return local.count

    return service


def holding(service):
    """Add /hold, which returns when `service.release` is set; `service.held` counts its calls."""
    service.held, service.release = threading.Semaphore(0), threading.Event()

    @service.typing('/hold')
    def hold():
        service.held.release()
        service.release.wait(TIMEOUT)
        return 'held'

    return service


@contextlib.contextmanager
def serving(service=None, **options):
    """A service on a free port of loopback, stopped in any case."""
    service = service or make(**options)
    service.start(port=0, host='127.0.0.1')
    try:
        yield service
    finally:
        service.stop(grace=2)


@contextlib.contextmanager
def calling(service=None, timeout=TIMEOUT, **options):
    """A service that serves, and a friend of it."""
    with serving(service, **options) as service:
        with Friend('app1', service.address, timeout=timeout) as friend:
            yield service, friend


@pytest.fixture(scope='class')
def shared_service(request):
    with serving(counting(make_async(**getattr(request.cls, 'options', {})))) as service:
        yield service


@pytest.fixture
def service(shared_service):
    """A service that all tests of a class share, because starting one costs more than a call."""
    shared_service.ran.clear()
    return shared_service


@pytest.fixture
def friend(service):
    """A friend of that service, over a socket."""
    with Friend('app1', service.address, timeout=TIMEOUT) as friend:
        yield friend


def port_of(service):
    return int(service.address.rpartition(':')[2])


def is_serving(service):
    try:
        return bool(service.address)
    except RuntimeError:
        return False


def dead_address():
    """An address where nobody listens."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        return f'http://127.0.0.1:{listener.getsockname()[1]}'


def ask(service, body=b'', path='/echo', method='POST', **headers):
    """Ask in process: the status, the headers and the decoded body of the reply."""
    headers = {**JSON, **{name.replace('_', '-'): value for name, value in headers.items()}}
    status, fields, reply = service.answer(method, path, headers, body)
    return status, dict(fields), json.loads(reply)


def is_guarded(service, rule, token=SECRET):
    """Whether *rule* refuses a call without *token*, and takes one with it."""
    calls = ({'args': [1]}, {'args': [1], 'token': token})
    without, with_it = (ask(service, json.dumps(call).encode(), rule)[0] for call in calls)
    return without == 401 != with_it


# --------------------------------------------------------------------------------- helpers: bytes


def request(body=b'{"args":["x"]}', path='/echo', method='POST', extra=b'', version=b'1.1'):
    """The bytes of a request."""
    head = b'%b %b HTTP/%b\r\nHost: localhost\r\nContent-Type: application/json\r\n'
    head = head % (method.encode(), path.encode(), version)
    return head + b'Content-Length: %d\r\n%b\r\n%b' % (len(body), extra, body)


def response(body=b'["x"]', status='200 OK', kind='application/json', extra=''):
    """The bytes of a reply; no Content-Type where *kind* is None."""
    content = '' if kind is None else f'Content-Type: {kind}\r\n'
    head = f'HTTP/1.1 {status}\r\n{content}{extra}Content-Length: {len(body)}\r\n\r\n'
    return head.encode() + body


def connect(service):
    return socket.create_connection(('127.0.0.1', port_of(service)), TIMEOUT)


def receive(sock, wanted=b''):
    """All that comes until *wanted* does, or else until the peer closes."""
    sock.settimeout(TIMEOUT)
    got = b''
    with contextlib.suppress(ConnectionResetError):
        while (not wanted or wanted not in got) and (part := sock.recv(65536)):
            got += part
    return got


def raw(service, data, end=True):
    """Send *data*, and give all that comes back until the service closes."""
    with connect(service) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)
        return receive(sock)


def two_idle(service, stack):
    """Two connections that have got a reply each, and wait since, the first one for longer."""
    socks = []
    for _ in range(2):
        socks.append(stack.enter_context(connect(service)))
        socks[-1].sendall(request())
        receive(socks[-1], b'["x"]')
        until(lambda: len(idle_connections_of(service)) == len(socks))
    return socks


def statuses(got):
    """The status of each reply in *got*."""
    return [int(status) for status in re.findall(rb'HTTP/1\.1 (\d{3}) ', got)]


@contextlib.contextmanager
def failing(kind, match=None, **facts):
    """Check that the block raises *kind*, with these attributes."""
    with pytest.raises(kind, match=match) as caught:
        yield
    assert {name: getattr(caught.value, name) for name in facts} == facts


def refused(call, *args):
    """The status and message by which *call* refuses."""
    with pytest.raises(MicroconnectError) as caught:
        call(*args)
    return caught.value.status, str(caught.value)


# --------------------------------------------------------------------------------- helpers: peers


@contextlib.contextmanager
def peer(script):
    """A peer that runs *script* for each connection, one after the other; gives its address.

    The script is given the socket, how many connections there were before, and an Event that is
    set when the test is over.
    """
    over = threading.Event()
    listener = socket.create_server(('127.0.0.1', 0), backlog=16)

    def serve():
        for number in itertools.count():
            sock, _ = listener.accept()
            with sock:
                if over.is_set():
                    break
                sock.settimeout(TIMEOUT)
                with contextlib.suppress(OSError):
                    script(sock, number, over)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f'http://127.0.0.1:{listener.getsockname()[1]}'
    finally:
        over.set()
        socket.create_connection(listener.getsockname(), TIMEOUT).close()
        thread.join(TIMEOUT)
        listener.close()


def call_on(sock):
    """Read one call's request from *sock*; b'' where none comes."""
    data = receive(sock, b'\r\n\r\n')
    head, _, body = data.partition(b'\r\n\r\n')
    length = re.search(rb'(?i)\r\ncontent-length: (\d+)', head)
    while length and len(body) < int(length.group(1)):
        body += sock.recv(65536)
    return head and head + b'\r\n\r\n' + body


def answers(*replies, got=None):
    """A script that answers the first request of each connection by the next of *replies*.

    It adds every request to *got*, even one for which no reply is left.
    """

    def script(sock, number, _):
        asked = call_on(sock)
        if asked and got is not None:
            got.append(asked)
        sock.sendall(replies[number] if asked and number < len(replies) else b'')

    return script


def drip(start, more):
    """A script that answers with *start*, and then with *more* again and again."""

    def script(sock, number, over):
        until_then = time.monotonic() + TIMEOUT
        call_on(sock)
        sock.sendall(start)
        while time.monotonic() < until_then and not over.wait(0.02):
            sock.sendall(more)

    return script


@contextlib.contextmanager
def full():
    """The address of a peer that accepts no connection."""
    with socket.create_server(('127.0.0.1', 0), backlog=0) as listener:
        with contextlib.ExitStack() as stack:
            for _ in range(8):  # until its backlog is full
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
            yield f'http://127.0.0.1:{listener.getsockname()[1]}'


class Wrapped:
    """A socket that behaves like another; subclasses change how it sends."""

    def __init__(self, sock):
        self.sock = sock

    def __getattr__(self, name):
        return getattr(self.sock, name)


def connect_by(monkeypatch, wrap):
    """From now on, let *wrap* replace the socket of each new connection."""
    dial = microconnect._dial
    monkeypatch.setattr(microconnect, '_dial', lambda *args: wrap(dial(*args)))


def several_addresses(monkeypatch):
    """Let each name that a friend looks up have four addresses, all the same."""
    look_up = socket.getaddrinfo

    def repeated(*args, **kwargs):
        return look_up(*args, **kwargs) * 4

    monkeypatch.setattr(socket, 'getaddrinfo', repeated)


@pytest.fixture
def proxies(monkeypatch):
    """Sets the proxies of the environment, which has none otherwise."""
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy', 'request_method'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def set_proxies(address):
        monkeypatch.setenv('http_proxy', address)
        monkeypatch.setenv('https_proxy', address)

    return set_proxies


# ----------------------------------------------------------------------- helpers: time and threads


@pytest.fixture(scope='session')
def watch(pytestconfig):
    """Sets the watchdog, which writes to where pytest does: the stderr of a test is captured."""
    with pytestconfig.pluginmanager.getplugin('capturemanager').global_and_fixture_disabled():
        stderr = os.fdopen(os.dup(2), 'w')
    set_at = -math.inf

    def set_again():
        nonlocal set_at
        if time.monotonic() - set_at > 5:  # it takes a thread, and most tests a millisecond
            set_at = time.monotonic()
            faulthandler.dump_traceback_later(65, exit=True, file=stderr)

    with stderr:
        yield set_again
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def watchdog(watch):
    """After a minute, a test that hangs prints the stack of each thread and ends the run."""
    watch()


@pytest.fixture(scope='session', autouse=True)
def frozen():
    """What pytest itself holds is no garbage: collections need not look at it again and again."""
    if hasattr(gc, 'freeze'):  # PyPy has none
        gc.freeze()


@pytest.fixture
def clock(monkeypatch):
    """A stopped clock; `clock.shift(seconds)` moves it forward, `go_on` starts it again."""
    real = microconnect._clock.now
    stopped = types.SimpleNamespace(now=real())
    stopped.shift = lambda seconds: vars(stopped).update(now=stopped.now + seconds)
    stopped.go_on = lambda: monkeypatch.setattr(microconnect._clock, 'now', real)
    monkeypatch.setattr(microconnect._clock, 'now', lambda: stopped.now)
    yield stopped
    stopped.go_on()


@pytest.fixture
def sleepless(clock, monkeypatch):
    """A stopped clock that only `time.sleep` moves, at once."""
    with monkeypatch.context() as patch:
        patch.setattr(time, 'sleep', clock.shift)
        yield


@contextlib.contextmanager
def soon():
    """Check that the block ends early: what it must not wait for takes TIMEOUT, or for ever."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < TIMEOUT / 2


def until(condition):
    """Wait until *condition* holds; for changes that no event announces."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, 'it never came to hold'
        threading.Event().wait(0.002)


@contextlib.contextmanager
def background(function, *args):
    """Call *function* in a thread during the block; gives its Future."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield pool.submit(function, *args)


def call_all(count, function):
    """Call *function* in *count* threads at once, and give what each returned."""
    barrier = threading.Barrier(count)

    def call(number):
        barrier.wait(TIMEOUT)
        return function(number)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def resources():
    """How many threads there are, and descriptors where the system tells."""
    where = '/proc/self/fd'
    return threading.active_count(), len(os.listdir(where)) if os.path.exists(where) else 0


def until_released(before):
    """Wait until there are no more threads and descriptors than `resources()` were before."""
    until(lambda: all(now <= then for now, then in zip(resources(), before)))


def complaints():
    """What a garbage collection warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        gc.collect()
    return [str(warning.message) for warning in caught]


@contextlib.contextmanager
def handling(number, handler):
    """Let *handler* take the signal *number* during the block; then stop the timer for it."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        if hasattr(signal, 'setitimer'):
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(number, before)


@contextlib.contextmanager
def warning(caplog, react):
    """Call *react* in the middle of each warning that is logged during the block."""
    caplog.handler.addFilter(react)
    try:
        yield
    finally:
        caplog.handler.removeFilter(react)


# ----------------------------------------------------------------------------- helpers: processes


@contextlib.contextmanager
def running(*command, folder=None):
    """A new Python process with pipes; it finds the module, and is stopped in any case."""
    environ = dict(os.environ, PYTHONPATH=MODULE, **({'HOME': str(folder)} if folder else {}))
    pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
    command = [sys.executable, *command]
    # If a shell has started the tests in its background, they ignore SIGINT, as a child would.
    with handling(signal.SIGINT, signal.default_int_handler):
        process = subprocess.Popen(command, cwd=folder, env=environ, **pipes)
    with process:
        timer = threading.Timer(3 * TIMEOUT, process.kill)  # readline has no timeout
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.terminate()  # which a server passes on to its workers
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
            process.kill()


def woken(process, seconds):
    """How many times the threads of *process* go to sleep anew within *seconds*."""

    def sleeps():
        statuses = Path(f'/proc/{process.pid}/task').glob('*/status')
        texts = '\n'.join(status.read_text() for status in statuses)
        return sum(map(int, re.findall(r'\nvoluntary_ctxt_switches:\s+([0-9]+)', texts)))

    before = sleeps()
    threading.Event().wait(seconds)
    return sleeps() - before


def announced(process):
    """The address that *process* announces."""
    return re.search(r'http:[^;]+', process.stdout.readline().decode()).group()


def outcome(process):
    """The exit code of *process*, the words that it printed, and its standard error."""
    printed, complaint = process.communicate(timeout=3 * TIMEOUT)
    lines = complaint.decode().replace('\r\n', '\n')  # as Windows ends them
    return process.returncode, printed.decode().split(), lines


def run(script, *arguments, options=()):
    """Run *script* in a new Python process, where warnings are errors; gives the outcome."""
    find = f'import sys\nsys.path.insert(0, {MODULE!r})\n'  # -I ignores PYTHONPATH
    with running('-W', 'error', *options, '-c', find + script, *arguments) as process:
        return outcome(process)


SLOW_SERVICE = """
import os
from microconnect import Microservice
Micro = Microservice('app1', token='secret')
@Micro.typing('/hold')
def hold():
    print('called', flush=True)
    os.read(0, 1)
    return 'held'
Micro.run(port=0, host='127.0.0.1')
"""


@contextlib.contextmanager
def called():
    """SLOW_SERVICE in the middle of a call; gives its process, its address, and the call."""
    with running('-W', 'error', '-c', SLOW_SERVICE) as process:
        address = announced(process)
        with Friend('app1', address, token='secret', timeout=TIMEOUT) as friend:
            with background(friend.send, '/hold') as call:
                assert process.stdout.readline() == b'called\n'
                yield process, address, call


def is_answering(address):
    """Whether a service at *address* takes calls."""
    with Friend('app1', address) as friend:
        return friend.ping()


# ----------------------------------------------------------------------------------- helpers: TLS

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBjzCCATagAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBvmh3uurQ7w/TkQ
8DbFgtiHVMLmoNA6YxTvFq7kV6Vwhdr5Qq43DSGXiGJgMx3mCG9eCcN9jQtlSi77
zBf73bGjdzB1MCUGA1UdEQQeMByCCWxvY2FsaG9zdIIPc2VydmljZS5pbnZhbGlk
MAwGA1UdEwEB/wQCMAAwHQYDVR0OBBYEFLrH+MadBU97rsUKlVurwI5ucjcxMB8G
A1UdIwQYMBaAFLrH+MadBU97rsUKlVurwI5ucjcxMAoGCCqGSM49BAMCA0cAMEQC
IGFThqPZXDny3r8XES+qr5NKcwyCTS7S5BnEgnpBXZqHAiBmuoEQdwZ3GIz64AWO
38eP7mkJ0rnpDMhAiAV077/7mw==
-----END CERTIFICATE-----
"""  # its own issuer, for localhost and service.invalid, from 2020 to 2120
KEY = """\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIEmRwsx0dgbITjlMQVBBiwhUh7HY3k2c6E1OcU306ZMWoAoGCCqGSM49
AwEHoUQDQgAEG+aHe66tDvD9ORDwNsWC2IdUwuag0DpjFO8WruRXpXCF2vlCrjcN
IZeIYmAzHeYIb14Jw32NC2VKLvvMF/vdsQ==
-----END EC PRIVATE KEY-----
"""  # of the certificate above: it guards nothing


@pytest.fixture
def tls_server(tmp_path):
    """The settings of a server that is localhost and service.invalid."""
    pem = tmp_path / 'server.pem'
    pem.write_text(KEY + CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(pem))
    return context


@pytest.fixture
def tls_client():
    """The settings of a client that trusts the certificate above."""
    return ssl.create_default_context(cadata=CERTIFICATE)


@pytest.fixture
def tls_service(tls_server):
    """A service over TLS."""
    service = counting(make())
    with service.start(port=0, host='127.0.0.1', ssl_context=tls_server):
        yield service


TLS_ALERT = b'\x15\x03\x01\x00\x02\x02\x0a'  # fatal: an unexpected message


def by_name(service):
    """The address of a service, with the name that its certificate is for."""
    return service.address.replace('127.0.0.1', 'localhost')


# ------------------------------------------------------------------------- helpers: WSGI and ASGI


def by_listener(service, method, path, headers, body):
    """Ask the listener; the status, the headers in lower case, and the body."""
    with contextlib.nullcontext() if is_serving(service) else serving(service):
        lines = ''.join(f'{name}: {value}\r\n' for name, value in headers.items())
        head = f'{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}'
        got = raw(service, f'{head}Content-Length: {len(body)}\r\n\r\n'.encode('latin-1') + body)
    head, _, reply = got.partition(b'\r\n\r\n')
    fields = (line.partition(': ') for line in head.decode('latin-1').split('\r\n')[1:])
    return statuses(head)[0], {name.lower(): value for name, _, value in fields}, reply


def by_wsgi(service, method, path, headers, body, **environ):
    """Ask the WSGI application, watched by wsgiref's validator."""
    path, _, query = path.partition('?')
    asked = {
        'REQUEST_METHOD': method,
        'SCRIPT_NAME': '',
        'PATH_INFO': urllib.request.unquote(path, 'latin-1'),
        'QUERY_STRING': query,
        'CONTENT_LENGTH': str(len(body)),
        'wsgi.input': io.BytesIO(body),
    }
    for name, value in headers.items():
        name = name.upper().replace('-', '_')
        asked[name if name == 'CONTENT_TYPE' else f'HTTP_{name}'] = value
    asked.update(environ)
    asked.setdefault('HTTP_HOST', 'localhost')
    wsgiref.util.setup_testing_defaults(asked)
    told = []
    answer = wsgiref.validate.validator(service.wsgi)(asked, lambda *start: told.extend(start[:2]))
    reply = b''.join(answer)
    answer.close()
    return int(told[0][:3]), {name.lower(): value for name, value in told[1]}, reply


def by_asgi(service, method, path, headers, body, pieces=1, disconnect=False, **extra):
    """Ask the ASGI application, with the body in *pieces*; None where it answers nothing."""
    path, _, query = path.partition('?')
    headers = dict({'Host': 'localhost', 'Content-Length': len(body)}, **headers)
    scope = {
        'type': 'http',
        'asgi': {'version': '3.0'},
        'http_version': '1.1',
        'method': method,
        'path': urllib.request.unquote(path),
        'query_string': query.encode(),
        'headers': [(k.lower().encode(), str(v).encode('latin-1')) for k, v in headers.items()],
        **extra,
    }
    size = -(-len(body) // pieces) or 1
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b'']
    messages = [{'type': 'http.request', 'body': part, 'more_body': True} for part in parts]
    if disconnect:
        messages.append({'type': 'http.disconnect'})
    else:
        del messages[-1]['more_body']
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(service.asgi(scope, receive, send))
    if not sent:
        return None
    assert [m['type'] for m in sent] == ['http.response.start', 'http.response.body']
    fields = {name.decode(): value.decode() for name, value in sent[0]['headers']}
    assert len(fields) == len(sent[0]['headers'])
    return sent[0]['status'], fields, sent[1]['body']


HOSTS = pytest.mark.parametrize('ask', [by_listener, by_wsgi, by_asgi])


# ---------------------------------------------------------------------------- helpers: documents


def blocks():
    """The README's blocks of Python, each with what it prints if that follows: (code, printed)."""
    text = (HERE / 'README.md').read_text(encoding='utf-8')
    found = re.findall(r'^```(\w*)\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
    following = [code if kind == '' else '' for kind, code in found[1:]] + ['']
    return [(code, after) for (kind, code), after in zip(found, following) if kind == 'python']


def commands():
    """The README's commands for a shell, each with what it prints: (command, printed)."""
    text = (HERE / 'README.md').read_text(encoding='utf-8')
    found = ''.join(re.findall(r'^```console\n(.*?)^```$', text, re.DOTALL | re.MULTILINE))
    lines = [part.partition('\n') for part in re.split(r'^\$ ', found, flags=re.MULTILINE)[1:]]
    return [(command, printed) for command, _, printed in lines]


def moving(column):
    """The names and calls in a column of the README's table for users of the original."""
    text = (HERE / 'README.md').read_text(encoding='utf-8')
    section = text.split('## Moving from microservices_connector\n')[1].split('\n## ')[0]
    rows = [line.split(' | ') for line in section.splitlines() if line.startswith('| ')]
    return [code for row in rows for code in re.findall('`(.+?)`', row[column])]


def check_name(code, things):
    """Check that *code*, an import, or a name or a call of *things*, fits what is there."""
    if code.startswith('from '):
        exec(code, {})
        return
    name, _, arguments = code.lstrip('@').rstrip(')').partition('(')
    found = operator.attrgetter(name)(types.SimpleNamespace(**things))
    if arguments:
        parameters = inspect.signature(found).parameters.values()
        known = [re.match(r'[*]*\w+', str(one)).group() for one in parameters]
        in_order = [one for one in arguments.split(', ') if re.fullmatch(r'\w+', one)]
        assert known[: len(in_order)] == in_order
        by_name = {one.partition('=')[0] for one in arguments.split(', ')}
        assert by_name <= set(known) or '**options' in known


def tutorial(name):
    """What a file of the tutorial defines."""
    folder = str(EXAMPLES / 'tutorial')
    with contextlib.ExitStack() as stack:
        stack.callback(sys.path.remove, folder)
        sys.path.insert(0, folder)
        return runpy.run_path(str(Path(folder) / name))


OBJECT = {'Purpose': 'For test only', 'empty': None, 'name': 'test'}
TOLD = {
    '/str': 'A variable value-A keyword variable value',
    '/int': 2330,
    '/float': 5.138,
    '/int3': (1000000003.1427, 1000000000000000000, 9.87656329),
    '/list': [12, 34, 45, 'abc', 'zyz'],
    '/dict': {'dict': {'keyword': ['anything']}, 'float': 0.2323, 'int': 20, 'str': 'adfafsa'},
    '/list3': ({'keyword': ['anything']}, ['abc', 'zyz', 'other value'], None),
    '/None': None,
    '/class': dict(OBJECT, value={'keyword': ['anything']}),
    '/class2': (
        dict(OBJECT, value={'int': 20, 'str': 'adfafsa', 'float': 0.2323}),
        {'keyword': ['anything']},
        None,
    ),
}


def check_tutorial(friend):
    """Check that the tutorial's calls give the values of the original's document."""
    got = dict(tutorial('friend.py')['calls'](friend))
    assert {rule: got[rule] for rule in TOLD} == TOLD
    assert len(got['/str2']) == 3
    x, y, z = got['/class3']
    one, two = dict(OBJECT, value='value1'), dict(OBJECT, value='value2')
    assert x == dict(OBJECT, value={'t1': one, 't2': two, 'list': [one, two]})
    assert y == dict(OBJECT, value=[one, two])
    assert z == [y, x]


# ------------------------------------------------------------------------------ helpers: a browser

EXPLORER = EXAMPLES / 'explorer' / 'index.html'
BROWSER = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
    '',
)

# Works the explorer, in a frame, as a person would, and reports what that person sees.
DRIVER = """<!doctype html><body><script>
const asked = ASKED;
const texts = (node, what) => [...node.querySelectorAll(what)].map(one => one.textContent);

function until(view, find) {
  return new Promise(resolve => {
    const observer = new MutationObserver(look);
    function look() {
      const found = find(view.document);
      if (found) observer.disconnect(), resolve(found);
    }
    observer.observe(view.document, {childList: true, subtree: true});
    look();
  });
}

async function open(search) {
  const frame = document.createElement('iframe');
  const loaded = new Promise(resolve => { frame.onload = resolve; });
  frame.src = '/index.html' + search;
  document.body.append(frame);
  await loaded;
  return frame.contentWindow;
}

async function list(address) {
  const view = await open('?service=' + address);
  await until(view, page => page.querySelector('details, #status .wrong'));
  return view;
}

async function call(view, [rule, fields, token]) {
  const page = view.document;
  page.getElementById('token').value = token;
  const details = [...page.querySelectorAll('details')]
    .find(one => one.querySelector('b').textContent === rule);
  details.open = true;
  for (const label of details.querySelectorAll('label')) {
    label.control.value = fields[label.querySelector('code').textContent] ?? '';
  }
  details.querySelector('output').replaceChildren();
  details.querySelector('button').click();
  await until(view, () => !['', 'Calling…'].includes(details.querySelector('output').textContent));
  return texts(details.querySelector('output'), 'p, pre');
}

async function work() {
  const view = await list(asked.services[0]), page = view.document, calls = [];
  const rules = [...page.querySelectorAll('summary')].map(one => texts(one, 'code, span'));
  for (const one of asked.calls) calls.push(await call(view, one));
  const kept = [view.localStorage.length, view.sessionStorage.length, page.cookie];
  const others = [];
  for (const one of asked.services.slice(1)) {
    others.push(texts((await list(one)).document, '#status p').join(' '));
  }
  return {rules, calls, others, kept, url: view.location.href, title: texts(page, 'h2')[0],
    notice: getComputedStyle(page.getElementById('from-disk')).display,
    markup: page.querySelectorAll('main :is(img, i, script)').length + (window.hit ?? 0),
    signatures: asked.signatures.map(one => view.parseSignature(one))};
}

work().catch(error => ({error: String(error.stack)}))
  .then(seen => fetch('/seen', {method: 'POST', body: JSON.stringify(seen)}));
</script>"""


@contextlib.contextmanager
def web_server(pages, events):
    """Serve *pages* (path -> text); *events* gets the paths asked for, and what is posted."""

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = TIMEOUT

        def answer(self, page=None):
            self.send_response(200 if page else 404)
            self.send_header('Content-Type', 'text/html; charset=utf-8')
            self.end_headers()
            self.wfile.write((page or 'nothing here').encode())

        def do_GET(self):
            path = self.path.partition('?')[0]
            events.put(path)
            self.answer(pages.get(path))

        def do_POST(self):
            data = self.rfile.read(int(self.headers['Content-Length']))
            if self.path == '/seen':
                events.put(json.loads(data))
            self.answer()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}'
        finally:
            server.shutdown()
            thread.join(TIMEOUT)


@contextlib.contextmanager
def browser(folder, *arguments):
    """A browser without a window, its profile in *folder*; it is stopped in any case."""
    if not BROWSER:
        pytest.skip('no Chromium or Chrome was found')
    options = ['--headless', '--disable-gpu', '--no-first-run', f'--user-data-dir={folder}']
    if hasattr(os, 'getuid') and os.getuid() == 0:
        options.append('--no-sandbox')  # it has none for root
    streams = {'stdin': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    command = [BROWSER, *options, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, **streams) as process:
        timer = threading.Timer(6 * TIMEOUT, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TIMEOUT)
            process.kill()


def driven(folder, events, origin):
    """What the page /driver posts, once a browser has run it."""
    with browser(folder, f'{origin}/driver') as process:
        end = threading.Thread(target=lambda: (process.wait(), events.put('the end')))
        end.start()
        try:
            if events.get(timeout=7 * TIMEOUT) != '/driver':
                pytest.skip('the browser does not run here')
            while isinstance(seen := events.get(timeout=7 * TIMEOUT), str):
                assert seen != 'the end', 'the browser ended before the driver did'
            return seen
        finally:
            process.terminate()
            end.join(TIMEOUT)


def explored(origin):
    """A service with rules of every kind, and with markup wherever it can have some."""
    service = Microservice(f'<i>{MARKUP}', origins=(origin,), debug=True)

    @service.typing('/mixed')
    def mixed(a, b=2, /, c='x, y', *rest, d: int = 4, **more):
        """The first line.

        The second.
        """
        return [a, b, c, rest, d, more]

    @service.typing('/plain')
    def plain(*values):
        return values

    @service.typing('/secret', token=SECRET)
    def secret():
        return 'told'

    @service.typing('/fail')
    def fail(message):
        raise json.JSONDecodeError(message, '', 0)

    @service.typing('/get', methods=('GET',))
    def get(a=1):
        return a

    @service.typing('/put', methods=('GET', 'PUT'))
    def put(a=1):
        return a

    @service.typing(f'/<i>? %#{MARKUP}')
    def markup(a=MARKUP):
        return a

    markup.__doc__ = MARKUP

    @service.typing('/rules')
    def rules():
        told = service.rules()
        told['/plain']['signature'] = '(...)'
        return told

    return service


MARKUP = '<img src="x" onerror="top.hit = 1"><script>top.hit = 1</script>'


# ------------------------------------------------------------------------------------------- errors

ERRORS = [  # class, the builtin that it is too, `sent`, its status, all statuses raised as it
    (MicroconnectError, Exception, False, None, ()),
    (Unreachable, ConnectionError, False, None, ()),
    (ConnectionLost, ConnectionError, True, None, (502,)),
    (CallTimeout, TimeoutError, True, None, (504,)),
    (BadReply, ValueError, True, None, (201, 204, 301, 302, 304, 307, 407, 418, 429)),
    (BadCall, ValueError, False, 400, (400, 411, 414, 415, 417, 505)),
    (BadArguments, TypeError, False, 422, (422,)),
    (Forbidden, PermissionError, False, 401, (401, 403)),
    (UnknownRule, LookupError, False, 404, (404, 405, 501)),
    (TooLarge, ValueError, False, 413, (413, 431)),
    (Busy, ConnectionError, False, 503, ()),
    (RemoteError, Exception, True, 500, (500,)),
]

NEVER_RAN = (301, 307, 407, 429)  # said by who did not let the call through

ANSWERED = [(kind, builtin, statuses) for kind, builtin, *_, statuses in ERRORS if statuses]

RAISED = sorted(
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
)

NEVER = ['StopIteration', 'StopAsyncIteration', 'ExceptionGroup', 'BaseExceptionGroup']

ODD = [*NEVER, 'SystemExit', 'KeyboardInterrupt', 'GeneratorExit', 'BaseException', 'Nonsense', '']
ODD += ['print', 'int', '__name__', 'json.JSONDecodeError', 'é\0\ud800', 'x' * 10000]


STRANGERS = [  # status line, what is raised, `sent`
    ('301 Moved Permanently', BadReply, False),
    ('302 Found', BadReply, True),  # what many answer after they have run a POST
    ('307 Temporary Redirect', BadReply, False),
    ('308 Permanent Redirect', BadReply, False),
    ('403 Forbidden', Forbidden, False),
    ('404 Not Found', UnknownRule, False),
    ('429 Too Many Requests', BadReply, False),
    ('500 Internal Server Error', RemoteError, True),
    ('408 Request Timeout', CallTimeout, True),
    ('502 Bad Gateway', ConnectionLost, True),
    ('503 Service Unavailable', Busy, True),
    ('504 Gateway Timeout', CallTimeout, True),
]


def remote_error(name, message='why', **facts):
    """The error for a reply that tells of an exception."""
    told = {'detail': f'{name}: {message}', 'exception': dict(type=name, base=name, **facts)}
    return error_of(500, json.dumps(told).encode())


def copies(error):
    yield copy.copy(error)
    yield copy.deepcopy(error)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(error, protocol))


class TestErrors:
    @pytest.mark.parametrize('kind, builtin, sent, status, _', ERRORS)
    def test_classes(self, kind, builtin, sent, status, _):
        """Each class is a MicroconnectError and a builtin, and knows `sent` and its status."""
        error = kind('why')
        assert issubclass(kind, MicroconnectError)
        assert isinstance(error, builtin)
        assert (error.sent, error.status, error.rule, error.address) == (sent, status, None, None)
        assert (str(error), str(kind())) == ('why', '')
        assert kind.__doc__

    @pytest.mark.parametrize('kind', [kind for kind, *_ in ERRORS])
    def test_copies_keep_all(self, kind):
        """A pickled or copied error keeps its class, message and attributes."""
        error = kind('why é', status=499, sent=True, allow='GET')
        error.with_call('/rule', 'http://host')
        for again in copies(error):
            assert type(again) is type(error)
            assert str(again) == '/rule at http://host: why é'
            assert vars(again) == vars(error)
            assert (again.rule, again.address, again.status) == ('/rule', 'http://host', 499)

    @pytest.mark.parametrize('kind, builtin, statuses', ANSWERED)
    def test_status_to_error(self, kind, builtin, statuses):
        """Each status of a reply makes one class of error, with that status and the detail."""
        for status in statuses:
            sent = kind.sent and status not in NEVER_RAN
            for body in (b'', b'<h1>no</h1>', b'\xff', b'[1]', b'{}', b'{"detail": null}'):
                error = error_of(status, body)
                assert (type(error), error.status, error.sent) == (kind, status, sent)
                assert str(error).startswith(f'something answered {status}, without saying why')
            error = error_of(status, b'{"detail": "why"}')
            assert (type(error), str(error).partition(';')[0]) == (kind, 'why')

    @pytest.mark.parametrize('kind, builtin, statuses', ANSWERED)
    def test_status_on_the_wire(self, kind, builtin, statuses):
        """`send` raises that error, sends the call once, and does not follow redirections."""
        for status in statuses:
            body = b'' if status in (204, 304) else b'{"detail":"some reason"}'
            reply = response(body, f'{status} What', extra='Location: http://127.0.0.1:9/\r\n')
            got = []
            with peer(answers(reply, got=got)) as address, Friend('app1', address) as friend:
                with pytest.raises(kind, match='some reason' if body else str(status)) as caught:
                    friend.send('/echo', 'x')
            error = caught.value
            assert isinstance(error, builtin)
            sent = kind.sent and status not in NEVER_RAN
            assert (error.status, error.sent, len(got)) == (status, sent, 1)
            assert (error.rule, error.address) == ('/echo', address)
            assert str(error).startswith(f'/echo at {address}: ')

    @pytest.mark.parametrize('status, kind, sent', STRANGERS)
    def test_answer_of_something_else(self, status, kind, sent):
        """An answer that says nothing is told by its status, its Server and its Location."""
        extra = 'Server: nginx/1.2\r\nLocation: https://login.invalid/\r\n'
        replies = [response(b'<p>no', status, 'text/html', more) for more in (extra, '')]
        with peer(answers(*replies)) as address, Friend('app1', address) as friend:
            for origin in (' (Server: nginx/1.2, Location: https://login.invalid/)', ''):
                with pytest.raises(kind) as caught:
                    friend.send('/echo')
                told = f'something{origin} answered {status[:3]}, without saying why'
                assert told in str(caught.value)
                assert (caught.value.status, caught.value.sent) == (int(status[:3]), sent)
                friend.close()

    def test_long_location(self):
        """Of a long Location only the beginning is told."""
        reply = response(b'', '302 Found', extra=f'Location: /{"x" * 9000}\r\n')
        with peer(answers(reply)) as address, Friend('app1', address) as friend:
            with failing(BadReply, r'\(Location: /x{199}\) answered 302', sent=True):
                friend.send('/echo')

    def test_remote_error_is_the_builtin(self):
        """The function's builtin exception can be caught here as that builtin exception."""
        for name in RAISED:
            error = remote_error(name)
            printed = ''.join(traceback.format_exception(type(error), error, None))
            assert f'{name}: why' in printed
            if name in NEVER:
                continue
            with pytest.raises(getattr(builtins, name)) as caught:
                raise error
            assert isinstance(caught.value, RemoteError), name
            assert (error.type, str(error), error.sent) == (name, f'{name}: why', True)
            assert 'why' in repr(error), name
            for again in copies(error.with_call('/f', 'app1')):
                assert type(again) is type(error)
                assert isinstance(again, getattr(builtins, name))
                assert (str(again), vars(again)) == (f'/f at app1: {name}: why', vars(error))

    @pytest.mark.parametrize('name', ODD, ids=lambda name: ascii(name)[:20])
    def test_odd_names_are_safe(self, name):
        """Any name other than that of a usable builtin exception makes a plain RemoteError."""
        error = remote_error(name, traceback='File ...')
        assert type(error) is RemoteError
        assert (error.type, error.traceback) == (name, 'File ...')
        for again in copies(error):
            assert type(again) is RemoteError
            assert vars(again) == vars(error)

    @pytest.mark.parametrize(
        'told', [None, 7, [], {}, {'type': 7}, {'type': None}, {'type': ['ValueError']}]
    )
    def test_malformed_exception_member(self, told):
        """An `exception` member of the wrong shape still makes a RemoteError."""
        error = error_of(500, json.dumps({'detail': 'why', 'exception': told}).encode())
        assert type(error) is RemoteError
        assert str(error) == 'why'
        assert isinstance(error.type, str)


# ----------------------------------------------------------------------------------------- settings

TAKEN = "rule '/echo' is taken already"

NO_RULE = "a rule is a string such as '/helloworld', "

NO_FUNCTION = 'write @Micro.reply above a function, without brackets'

NO_TOKEN = 'the token of /f has to be a non-empty string'

TYPING = "write @Micro.typing('/{}'), with the rule in brackets"

WRONG_TYPING = [  # what it raises, what that says; what `typing` is given
    (TypeError, TYPING.format('make'), [{'rule': make}]),
    (TypeError, TYPING.format('rule'), [{'rule': rule} for rule in (None, 7, b'/f', '')]),
    (ValueError, TAKEN, [{'rule': '/echo'}, {'rule': 'echo'}]),
    (TypeError, NO_FUNCTION, [{'function': 7}, {'function': None}]),
    (
        ValueError,
        "methods is such as ('GET',), out of",
        [{'methods': methods} for methods in ('GET', (), ['get'], ['HEAD'], None)],
    ),
    (TypeError, NO_TOKEN, [{'token': token} for token in ('', 7, b't', True)]),
]

WRONG_SET_RULE = [  # what it raises, what that says; what `setRule` is given
    (ValueError, 'method is one of', [{'method': 'get'}, {'method': 'HEAD'}]),
    (TypeError, NO_TOKEN, [{'token': ''}, {'token': 7}]),
    (
        ValueError,
        'timeout is a number of seconds above 0',
        [{'timeout': timeout} for timeout in (0, math.nan, '5')],
    ),
    (TypeError, NO_RULE, [{'rule': rule} for rule in (7, '', ['/f'], None)]),
]


class TestRuleSettings:
    @pytest.mark.parametrize('kind, message, given', each(WRONG_TYPING))
    def test_typing(self, kind, message, given):
        """A wrong use of `typing` fails at decoration, and registers nothing."""
        service = make()
        with pytest.raises(kind) as caught:
            options = {'rule': '/f', 'function': make, **given}
            function = options.pop('function')
            service.typing(**options)(function)
        assert str(caught.value).startswith(message)
        assert ask(service, path='/f')[0] == 404
        assert ask(service)[0] == 200
        assert len(service.token) == 0

    def test_reply(self):
        """`reply` without a function says where to write it."""
        with pytest.raises(TypeError, match=NO_FUNCTION):
            make().reply('/f')

    def test_a_taken_rule_keeps_its_token(self):
        """A failed attempt to take a rule does not change the token of the rule."""
        service = make(token={'/echo': 'first'})
        with pytest.raises(ValueError, match=TAKEN):
            service.typing('/echo', token='second')(make)
        assert Friend('app1', service, token='first').send('/echo', 1) == 1

    def test_method_in_its_class(self):
        """A method in the body of its class is refused, and the error says what to write."""
        service = make()
        told = r"\.get is a method, and has no object here; .*: Micro.typing\('/get'\)\(obj.get\)"
        for line in (
            'def get(self): pass',
            'def get(self, key, *, more=1): pass',
            'def get(cls): pass',
            'async def get(self): pass',
        ):
            with pytest.raises(TypeError, match=told):
                body = f'class Box:\n    @service.typing("/f")\n    {line}'
                exec(body, {'service': service, '__name__': '__main__'})

        class Local:
            def get(self, a=1):
                """Without an object, too."""

        with pytest.raises(TypeError, match=told):
            service.typing('/f')(Local.get)
        assert ask(service, path='/f')[0] == 404

    def test_what_looks_like_a_method(self):
        """Bound methods, static ones and functions with a parameter `self` are no such methods."""

        class Box:
            def bound(self, a):
                return a

            @classmethod
            def of_class(cls, a):
                return a

            @staticmethod
            def static(a):
                return a

            class Inner:
                def __call__(self, a):
                    return a

        def nested(self):
            return self

        space = {'__name__': '__main__'}
        exec('class Box:\n    def static(a): return a\n\ndef plain(self): return self', space)
        named = lambda self: self  # noqa: E731
        for function in (
            *(Box().bound, Box.of_class, Box().of_class, Box.static, Box().static),
            *(Box.Inner(), nested, named, space['plain']),
            *(space['Box'].static, functools.partial(Box.bound, Box())),
        ):
            assert friend_of(function).send('/f', 7) == 7

    def test_a_definition_run_again(self, monkeypatch):
        """A definition that is run again at a prompt or in a notebook replaces the old one."""
        service = Microservice('app1')

        def define(value):
            cell = f"@service.typing('/f')\ndef function():\n    return {value}"
            exec(cell, {'service': service, '__name__': '__main__'})

        define(1)
        with pytest.raises(ValueError, match='taken already'):
            define(2)
        monkeypatch.setattr(sys, 'ps1', '>>> ', raising=False)
        define(3)
        assert Friend('app1', service).send('/f') == 3
        service.typing('/f')(lambda: 4)
        assert Friend('app1', service).send('/f') == 4

    @pytest.mark.parametrize('kind, message, given', each(WRONG_SET_RULE))
    def test_set_rule(self, kind, message, given):
        """`setRule` refuses at once what cannot work."""
        with pytest.raises(kind) as caught:
            Friend('app1', make()).setRule(**{'rule': '/f', **given})
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize('rule', [7, '', ['/echo'], None])
    def test_send(self, rule):
        """`send` refuses a rule that is empty or not a string."""
        with pytest.raises(TypeError, match=NO_RULE):
            Friend('app1', make()).send(rule)


NOT_ENCRYPTED = "'localhost:5000' is not encrypted: write https://"

WRONG_ADDRESSES = [  # what it raises, what that says; addresses
    (ValueError, 'http and https are spoken, not ftp', ['ftp://a:5000', ['127.0.0.1', 'ftp://x']]),
    (
        ValueError,
        'no user and password',
        [
            *('http://me:secret@127.0.0.1', 'http://me@127.0.0.1', 'ftp://me:secret@x'),
            *('http://me:secret@x:99999', 'http://me:secret@[::1', 'http://me:secret@h\u2100:1'),
        ],
    ),
    (
        ValueError,
        'give a host, a port and, if need be, a path',
        [
            *('', 'http://', ':5000', '/helloworld', 'my host:5000', 'http://evil%2fhost'),
            *('http//127.0.0.1:5000', 'https:/127.0.0.1:5000', '5000', 'http://5000'),
            *('http://127.0.0.1:5000?x=1', 'http://127.0.0.1:5000#x'),
            *('good[::1]', 'good[::1]:80', '[::1]good', '[::1]good:80', 'http://[::1].evil'),
            *('http://[::1]]', 'http://a b', 'http://127.0.0.1%1', 'http://a%00b'),
        ],
    ),
    (
        ValueError,
        'a backslash or a control character',
        [
            *('http://127.0.0.1\0.evil.example', 'http://127.0.0.1\t.evil.example'),
            *('http://a\n', 'http://a\r:80', 'http://a:5000/b\x7f', 'a\x1b', 'http://a\\b'),
        ],
    ),
    (
        ValueError,
        "is not like 'http://host:5000': ",
        ['http://a:99999', 'http://a:port', 'http://a:-1', 'http://[::1'],
    ),
    (TypeError, 'an address is a string', [5000, None, Microservice]),
    (ValueError, 'empty list', [[]]),
]


class TestAddressSettings:
    @pytest.mark.parametrize('kind, message, address', each(WRONG_ADDRESSES))
    def test_friend(self, kind, message, address):
        """A friend refuses at once what cannot be an address, and never shows a password."""
        with pytest.raises(kind, match=message) as caught:
            Friend('app1', address)
        assert 'secret' not in str(caught.value)

    def test_ssl_context_in_the_clear(self, tls_client):
        """An ssl_context for an address without https is refused: it would encrypt nothing."""
        with pytest.raises(ValueError, match=NOT_ENCRYPTED):
            Friend('app1', 'localhost:5000', SECRET, ssl_context=tls_client)

    def test_ssl_context(self, tls_server):
        """Both sides refuse an ssl_context that is not an SSLContext, or is for the other side."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        told = r'ssl_context is an ssl.SSLContext\(ssl.PROTOCOL_TLS_{}\), not {}'
        for given, shown in ((('pem',), r"\('pem',\)"), (client, 'PROTOCOL_TLS_CLIENT')):
            with pytest.raises(TypeError, match=told.format('SERVER', shown)):
                make().start(0, '127.0.0.1', ssl_context=given)
        for given, shown in ((True, 'True'), (tls_server, 'PROTOCOL_TLS_SERVER')):
            with pytest.raises(TypeError, match=told.format('CLIENT', shown)):
                Friend('app1', 'https://127.0.0.1', ssl_context=given)

    @pytest.mark.parametrize(
        'port, host',
        [
            ('5000', '127.0.0.1'),
            ('127.0.0.1', 0),
            (0, None),
            (0, 'localhost:0'),
            (0, 'http://[::1]'),
        ],
    )
    def test_service_of_wrong_types(self, port, host):
        """What cannot be a port or host is refused, and the error says what they are."""
        with pytest.raises(TypeError, match='host is such as .*, and port such as 5000, not'):
            Microservice('app1', host=host).start(port)

    @pytest.mark.parametrize('port', [-1, 65536])
    def test_impossible_port(self, port):
        """A port out of range is an OSError that names it."""
        with pytest.raises(OSError, match=f'cannot listen on 127.0.0.1:{port}: '):
            make().start(port, '127.0.0.1')


class TestTokenSettings:
    @pytest.mark.parametrize('token', [{'ab'}, {'/a', '/b'}, 123, 0, b'ab'])
    def test_neither_dict_nor_string(self, token):
        """Tokens that are neither a dict nor a string are refused: they would leave rules open."""
        for use in (Microservice, lambda name, token: Friend(name, '127.0.0.1:1', token)):
            with pytest.raises(TypeError, match='string for every rule, a list of them, or a dict'):
                use('app1', token=token)

    @pytest.mark.parametrize('token', ['', 7, b't', True, None, False, 0, [], ['t', '']], ids=str)
    def test_of_one_rule(self, token):
        """A token that would guard nothing is a TypeError, however it is given."""
        service = make(token={'/f': SECRET})
        service.typing('/f')(make)
        for give in (
            lambda: make(token={'/f': token}),
            lambda: Friend('app1', '127.0.0.1:1', {'/f': token}),
            lambda: setattr(service, 'token', {'/f': token}),
            lambda: service.token.update({'f': token}),
            lambda: service.token.__setitem__('/f', token),
            lambda: service.token.setdefault('/g', token),
        ):
            with pytest.raises(TypeError, match='the token of .* has to be a non-empty string'):
                give()
        assert is_guarded(service, '/f')

    @pytest.mark.parametrize('token', ['', {7: 't'}, True, [], (), ['t', None]], ids=str)
    def test_of_every_rule(self, token):
        """No token where one is due, or a rule that is no string, is a TypeError on both sides."""
        for use in (Microservice, lambda name, token: Friend(name, '127.0.0.1:1', token)):
            with pytest.raises(TypeError):
                use('app1', token=token)

    def test_token_as_method(self):
        """A token that is given in the place of the method is not shown."""
        with pytest.raises(ValueError, match='token=') as caught:
            Friend('app1', make()).setRule('/echo', SECRET)
        assert SECRET not in str(caught.value)


LIMITS = ['max_body', 'max_head', 'read_timeout', 'idle_timeout', 'max_connections']
LIMITS += ['max_age']


class TestNumbers:
    @pytest.mark.parametrize('limit', LIMITS)
    def test_limits_of_a_service(self, limit):
        """A service refuses a wrong limit when it is made; the error names the limit."""
        for value in (0, -1, None, '20'):
            with pytest.raises(ValueError, match=f'{limit} is a number .* above 0'):
                make(**{limit: value})

    @pytest.mark.parametrize('value', [0, -1, math.nan, math.inf, '1', None])
    def test_limits_of_a_friend(self, value):
        """A friend refuses a wrong timeout or size where it is given."""
        with pytest.raises(ValueError, match='timeout is a number .* above 0'):
            Friend('app1', 'http://127.0.0.1:9', timeout=value)
        with pytest.raises(ValueError, match='max_body is a number .* above 0'):
            Friend('app1', 'http://127.0.0.1:9', max_body=value)
        with pytest.raises(ValueError, match='timeout is a number .* above 0'):
            Friend('app1', 'http://127.0.0.1:9').wait(value)

    def test_defaults(self):
        """The limits and times that nobody gives are those that the docstrings tell."""
        service, friend = Microservice('app1'), Friend('app1', 'http://127.0.0.1:9')
        told = {'port': 5000, 'host': '0.0.0.0', 'max_body': 8 << 20, 'max_head': 32 << 10}
        told.update(read_timeout=20, idle_timeout=75, max_connections=1000)
        assert {name: getattr(service, name) for name in told} == told
        assert (friend.timeout, friend.max_body) == (60, 8 << 20)
        for function, last in ((Friend.ping, 5), (Friend.wait, 60), (Microservice.stop, 10)):
            assert function.__defaults__ == (last,)

    @pytest.mark.parametrize('size', [1e6, sys.maxsize, (1 << 32) + 1])
    def test_size_of_no_use(self, size):
        """A size that is a float, or that no machine has, is refused."""
        with pytest.raises(ValueError, match=r'max_body is a number \(int\) above 0 to 42949'):
            Friend('app1', 'http://127.0.0.1:9', max_body=size)

    def test_default_max_body(self):
        """By default both sides take bodies of up to 8 MiB, to the byte."""
        friend = Friend('app1', make())
        around = len('{"args":[""],"kwargs":{},"token":null}')
        most = (8 << 20) - around
        assert len(friend.send('/echo', 'x' * most)) == most
        with pytest.raises(TooLarge, match='the call of 8388609 bytes is over max_body=8388608'):
            friend.send('/echo', 'x' * (most + 1))
        body = b'{"args":["%b"]}' % (b'x' * ((8 << 20) - 12))
        assert ask(make(), body)[0] == 413
        large = Friend('app1', make(max_body=9 << 20))
        with pytest.raises(ValueError, match='the reply of .* is over max_body=8388608'):
            friend_of(lambda: 'x' * (8 << 20)).send('/f')
        with pytest.raises(TooLarge):
            large.send('/echo', 'x' * (8 << 20))

    def test_short_time_limit_of_the_system(self, monkeypatch):
        """The longest wait that a system knows (Windows: 49 days) bounds times, not sizes."""
        monkeypatch.setattr(threading, 'TIMEOUT_MAX', 4294967.0)
        friend = Friend('app1', make(max_body=1 << 32), max_body=1 << 32)
        assert friend.send('/echo', 1) == 1
        with pytest.raises(ValueError, match='seconds above 0, not 4294968'):
            friend.setRule('/echo', timeout=4294968)


# ------------------------------------------------------------------------------------------- values


class Colour(enum.Enum):
    RED = 'red'
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Named(str, enum.Enum):
    A = 'a'


class Sample:
    """As in the original's tutorial."""

    name = 'test'
    Purpose = 'For test only'
    empty = None
    _hidden = 1

    def __init__(self, value):
        self.value = value
        self._private = 2
        self.function = len

    def method(self):
        """Left out."""

    @classmethod
    def make(cls):
        """Left out."""

    @staticmethod
    def helper():
        """Left out."""

    @property
    def twice(self):
        return [self.value, self.value]


class Slots:
    __slots__ = ('b', 'a', '_c')

    def __init__(self):
        self.a, self.b, self._c = 1, 2, 3


class Broken:
    @property
    def items(self):
        raise LookupError('no items')


class Holder:
    def __init__(self, **attributes):
        vars(self).update(attributes)


@dataclasses.dataclass
class Point:
    y: float
    x: float = 0.0
    _note: str = ''
    kind = 'point'  # no field

    def norm(self):
        """Left out."""


@dataclasses.dataclass
class Line:
    ends: typing.List[Point]


class Pair(typing.NamedTuple):
    a: int
    b: str = 'x'


class Config(collections.abc.Mapping):
    def __getitem__(self, key):
        return {'z': 1, 'a': (2,)}[key]

    def __iter__(self):
        return iter('za')

    def __len__(self):
        return 2


class Nobody:
    """Has no attribute at all."""


class Lax(dict):
    """Claims to have every attribute."""

    __getattr__ = dict.get


class Strict:
    """Raises another error than AttributeError for an attribute that it has not."""

    def __getattr__(self, name):
        raise KeyError(name)


class Missing:
    """Is not equal to itself, as NaN is; subclasses say how."""

    __hash__ = None

    def __eq__(self, other):
        return False

    def __ne__(self, other):
        return True


class NotATime(Missing, datetime.datetime):
    """As pandas.NaT is."""


class NotADuration(Missing, datetime.timedelta):
    """As the NaT of a timedelta may be."""


class NotThere:
    """As pandas.NA: to compare it gives itself, which is neither true nor false."""

    __hash__ = None

    def __eq__(self, other):
        return self

    __ne__ = __eq__

    def __bool__(self):
        raise TypeError('boolean value of NA is ambiguous')


NotThere.__name__, NotThere.__module__ = 'NAType', 'pandas'


class Unsaved:
    """Equal to nothing, not even to itself, as records without a key often are."""

    id = None

    def __eq__(self, other):
        raise LookupError('never compared')

    __ne__ = __eq__
    __hash__ = None


class Ghost:
    """Lists an attribute that it has not, as a lazy loader does."""

    a = 1

    def __dir__(self):
        return ['a', 'absent']


UTC = datetime.timezone.utc

ID = uuid.UUID('12345678-1234-5678-1234-567812345678')

SAMPLE = '{"Purpose":"For test only","empty":null,"name":"test","twice":[%s,%s],"value":%s}'

VALUES = [  # what a function returns, and its JSON
    (None, 'null'),
    (True, 'true'),
    (0, '0'),
    (-(2**70), '-1180591620717411303424'),
    (2.5, '2.5'),
    (1e300, '1e+300'),
    (-0.0, '-0.0'),
    ('', '""'),
    ('a"\\\n\0é\u2028\U0001f600', '"a\\"\\\\\\n\\u0000\\u00e9\\u2028\\ud83d\\ude00"'),
    ('\ud800', '"\\ud800"'),
    ([], '[]'),
    ([1, [2, []]], '[1,[2,[]]]'),
    ([(1, 2)], '[[1,2]]'),
    ({}, '{}'),
    ({'b': 1, 'a': {'c': None}}, '{"b":1,"a":{"c":null}}'),
    ({1: 'a', None: 'b', False: 'c', 2.5: 'd'}, '{"1":"a","null":"b","false":"c","2.5":"d"}'),
    ({Level.LOW: 1, Named.A: 2}, '{"1":1,"a":2}'),
    (Sample(7), SAMPLE % (7, 7, 7)),
    (Sample([Sample('v')]), SAMPLE % (('[' + SAMPLE % (('"v"',) * 3) + ']',) * 3)),
    (Slots(), '{"a":1,"b":2}'),
    (Nobody(), '{}'),
    (Unsaved(), '{"id":null}'),
    (Holder(b=1, a=Colour.RED), '{"a":"red","b":1}'),
    (types.SimpleNamespace(b=1, a=2, _c=3), '{"a":2,"b":1}'),
    (datetime.datetime(2024, 2, 29, 23, 59, 58, 7, UTC), '"2024-02-29T23:59:58.000007+00:00"'),
    (datetime.datetime(2024, 2, 29), '"2024-02-29T00:00:00"'),
    (datetime.date(2024, 2, 29), '"2024-02-29"'),
    (datetime.time(1, 2, 3), '"01:02:03"'),
    (datetime.timedelta(days=1, milliseconds=-1), '86399.999'),
    (decimal.Decimal('1.10'), '"1.10"'),
    (fractions.Fraction(1, 3), '"1/3"'),
    (ID, '"12345678-1234-5678-1234-567812345678"'),
    (pathlib.PurePosixPath('/a b/é'), '"/a b/\\u00e9"'),
    (Colour.RED, '"red"'),
    (Colour.PAIR, '[1,2]'),
    (Level.LOW, '1'),
    (Named.A, '"a"'),
    (b'\x00\xff', '"AP8="'),
    (bytearray(b'a'), '"YQ=="'),
    (memoryview(b'a'), '"YQ=="'),
    (ipaddress.ip_address('127.0.0.1'), '"127.0.0.1"'),
    (ipaddress.ip_address('fe80::1'), '"fe80::1"'),
    (ipaddress.ip_network('10.0.0.0/8'), '"10.0.0.0/8"'),
    (ipaddress.ip_interface('::1/64'), '"::1/64"'),
    (collections.UserList([1, (2,)]), '[1,[2]]'),
    (collections.UserString('a"'), '"a\\""'),
    (collections.UserDict(b=1, a=None), '{"b":1,"a":null}'),
    (Ghost(), '{"a":1}'),
    ({1}, '[1]'),
    (frozenset('a'), '["a"]'),
    (collections.deque([1, 2]), '[1,2]'),
    (range(3), '[0,1,2]'),
    ({'a': 1}.keys(), '["a"]'),
    ({'a': 1}.values(), '[1]'),
    ({'a': 1}.items(), '[["a",1]]'),
    (Point(1.5), '{"y":1.5,"x":0.0}'),
    (Line([Point(1, 2)]), '{"ends":[{"y":1,"x":2}]}'),
    ([Pair(1)], '[[1,"x"]]'),
    (Pair(1), '[1,"x"]'),
    (Config(), '{"z":1,"a":[2]}'),
    (types.MappingProxyType({'a': 1}), '{"a":1}'),
    (collections.OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
    (collections.Counter('aab'), '{"a":2,"b":1}'),
    (collections.defaultdict(list, a=[1]), '{"a":[1]}'),
]

STREAMS = [  # what gives an iterator, and its JSON
    (lambda: (x * x for x in range(3)), '[0,1,4]'),
    (lambda: iter([1, Point(2)]), '[1,{"y":2,"x":0.0}]'),
    (lambda: map(str, [1]), '["1"]'),
    (lambda: zip('a', [1]), '[["a",1]]'),
    (lambda: itertools.count(1) and iter(()), '[]'),
]


def cycle():
    value = {'list': []}
    value['list'].append(value)
    return value


def object_cycle():
    value = Holder(items=[1])
    value.items.append(value)
    return value


NO_JSON = 'Out of range float values are not JSON compliant'
NO_STRING = 'and the keys of JSON are strings'
REFUSED = [  # what no JSON says; where in it, and why; as which error
    (cycle(), "['list'][0]: holds itself", ValueError),
    (object_cycle(), '.items[1]: holds itself', ValueError),
    (make, ': function has no JSON form', TypeError),
    ([1, 2, {'k': (0, len)}], f"[2]['k'][1]: {type(len).__name__} has no", TypeError),
    (Holder(items=[0, 1, 2, make]), '.items[3]: function has no JSON form', TypeError),
    (Line([Point(1), Point(math.nan)]), f'.ends[1].y: {NO_JSON}', ValueError),
    ({'a': {(1, 2): 3}}, f"['a']: a key is a tuple, {NO_STRING}", TypeError),
    ([{b'k': 1}], f'[0]: a key is a bytes, {NO_STRING}', TypeError),
    ({Colour.RED: 1}, f': a key is a Colour, {NO_STRING}', TypeError),
    ([math.nan], f'[0]: {NO_JSON}', ValueError),
    ({'x': math.inf}, f"['x']: {NO_JSON}", ValueError),
    ({-math.inf}, f'[0]: {NO_JSON}', ValueError),
    ([threading.Lock()], '[0]: _thread.lock has no JSON form', TypeError),
    ({'m': os}, "['m']: module has no JSON form", TypeError),
    ([Sample], '[0]: type has no JSON form', TypeError),
    ([Point], '[0]: type has no JSON form', TypeError),
    ([object()], '[0]: object has no JSON form', TypeError),
    ([1j], '[0]: complex has no JSON form', TypeError),
    ([...], '[0]: ellipsis has no JSON form', TypeError),
    ([functools.partial(len)], '[0]: functools.partial has no JSON form', TypeError),
    ([re.compile('x')], '[0]: ', TypeError),
    ([NotATime(2024, 2, 29)], f'[0]: {__name__}.NotATime has no JSON form', TypeError),
    ({'a': NotADuration(1)}, f"['a']: {__name__}.NotADuration has no JSON", TypeError),
    (Holder(a=[1, NotThere()]), '.a[1]: pandas.NAType has no JSON form', TypeError),
    ([decimal.Decimal('NaN')], '[0]: decimal.Decimal has no JSON form', TypeError),
    ([decimal.Decimal('sNaN')], '[0]: decimal.Decimal has no JSON form', TypeError),
    (collections.UserList([1, math.nan]), f'[1]: {NO_JSON}', ValueError),
]

OFFERED = [  # a method or attribute, and what its objects offer to be sent
    ('tolist', '.tolist()'),
    ('to_records', ".to_dict('records')"),
    ('to_dicts', '.to_dicts()'),
    ('model_dump', '.model_dump()'),
    ('_asdict', '._asdict()'),
    ('__table__', 'columns as a dict'),
    ('fileno', '.read()'),
]

ENDLESS = [itertools.count, lambda: (1 for _ in itertools.count()), lambda: itertools.repeat('x')]

# fmt: off
BAD_JSON = [
    b'NaN', b'[NaN]', b'[Infinity]', b'[-Infinity]', b'undefined', b' ',
    b'\xff', b'["\xff"]', b'["\xc3"]', b'["\xed\xa0\x80"]', b'["\n"]', b'["\\x"]', b'[\x00]',
    b'\xef\xbb\xbf[1]', '[1]'.encode('utf-16'), '[1]'.encode('utf-32'),
    b'[1', b'["a', b'[1,]', b'[1] [2]', b'[1]x', b'{"args": [1}', b"{'args': [1]}",
    b'[01]', b'[1.]', b'[+1]', b'[0x1]', b'// c\n[1]',
]
# fmt: on

# Each of these exhausts the stack.  They run in a process of their own, because pytest itself may
# fail to show a failure after that.
DEEP = """
import logging
from microconnect import BadCall, BadReply, Friend, Microservice
logging.disable()
if sys.implementation.name == 'pypy':
    __import__('pypyjit').set_param('off')  # it would compile the recursion again and again

DEEP = 50000
Micro = Microservice('app1')
Micro.typing('/echo')(lambda *args, **kwargs: args)
friend = Friend('app1', Micro)

def deep():
    value = []
    for _ in range(DEEP):
        value = [value]
    return value

def told(kind, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind as error:
        return str(error)

def at_depth(depth):
    return at_depth(depth - 1) if depth else told(BadCall, friend.send, '/echo', deep())

Micro.typing('/deep')(deep)
texts = [told(ValueError, friend.send, '/deep')]
texts.append(told(BadCall, friend.send, '/echo', 'x', deep()))
texts.append(told(BadCall, friend.send, '/echo', key=deep()))
texts.extend(at_depth(depth) for depth in (300, 600))
for text in texts:
    print(text.endswith(': nested too deeply'), len(text) < 150)

for body in (b'[' * DEEP, b'{"a":' * DEEP, b'[' * DEEP + b']' * DEEP):
    for sent in (body, b'{"args": ' + body + b'}'):
        print(Micro.answer('POST', '/echo', {'Content-Type': 'application/json'}, sent)[0])

for address in sys.argv[1:]:
    with Friend('app1', address) as peer:
        print('the reply is not JSON: ' in told(BadReply, peer.send, '/echo'))
"""


BRACKETS = [(b'[', b']'), (b'{"a":', b'}'), (b'[{"":', b'}]'), (b'[[],{"]":', b'}]')]
TOO_DEEP = 'nested too deeply: over 200 arrays or objects'
SMALL_STACK = """
import sys, threading
threading.stack_size(1 << 20)
from microconnect import BadReply, Friend, Microservice
def call():
    try:
        Friend('app1', sys.argv[1]).send('/echo')
    except BadReply as error:
        print(error, flush=True)
thread = threading.Thread(target=call)
thread.start()
thread.join()
Micro = Microservice('app1', token='secret')
Micro.typing('/echo')(lambda *args: args)
Micro.run(port=0, host='127.0.0.1')
"""


def bracketed(rnd):
    """JSON nested about 200 deep, with brackets, quotes and escapes in its strings."""

    def text():
        return json.dumps(''.join(rnd.choice('[]{}"\\\\,:é') for _ in range(rnd.randrange(6))))

    value = text()
    for _ in range(rnd.randrange(190, 212)):
        beside = [rnd.choice(['[]', '{}', '7', text()]) for _ in range(rnd.randrange(3))]
        beside.insert(rnd.randrange(len(beside) + 1), value)
        if rnd.random() < 0.5:
            value = '[' + rnd.choice([',', ' ,\n']).join(beside) + ']'
        else:
            value = '{' + ','.join(f'{text()} :{item}' for item in beside) + '}'
    return value.encode()


def depth_of(body):
    """How deep JSON is nested, counted character by character."""
    depth = deepest = 0
    is_string = is_escaped = False
    for char in body.decode():
        if is_string:
            is_string = is_escaped or char != '"'
            is_escaped = char == '\\' and not is_escaped
        elif char == '"':
            is_string = True
        elif char in '[{':
            depth += 1
            deepest = max(deepest, depth)
        elif char in ']}':
            depth -= 1
    return deepest


def random_value(rnd, depth=0):
    kind = rnd.randrange(8 if depth < 4 else 6)
    if kind == 0:
        return rnd.choice([None, True, False])
    if kind == 1:
        return rnd.getrandbits(rnd.randrange(1, 200)) * rnd.choice([1, -1])
    if kind == 2:
        return rnd.choice([rnd.random(), rnd.uniform(-1e300, 1e300), 5e-324, -0.0, 1e16])
    if kind < 6:
        alphabet = string.printable + '\0\x7fé\u2028\ud7ff\ue000\uffff\U00010000\U0010ffff'
        return ''.join(rnd.choice(alphabet) for _ in range(rnd.randrange(12)))
    items = [random_value(rnd, depth + 1) for _ in range(rnd.randrange(5))]
    return items if kind == 6 else {random_value(rnd, 4).__str__(): item for item in items}


class TestValues:
    @pytest.mark.parametrize('value, text', VALUES, ids=[text[:30] for _, text in VALUES])
    def test_encoding(self, value, text):
        """A returned value and an argument have the JSON form of the table."""
        service = service_of(lambda *args: value)
        assert service.answer('POST', '/f', JSON)[2].decode() == f'[{text}]'
        echo = Friend('app1', make())
        assert echo.send('/echo', value) == json.loads(text)
        assert echo.send('/echo', [value]) == [json.loads(text)]

    @pytest.mark.parametrize('make_value, text', STREAMS, ids=[text for _, text in STREAMS])
    def test_iterators(self, make_value, text):
        """Generators and other iterators are arrays, in a reply and in a call."""
        assert friend_of(make_value).send('/f') == json.loads(text)
        assert Friend('app1', make()).send('/echo', make_value()) == json.loads(text)

    def test_encoding_changes_nothing(self):
        """The encoded object is left as it was."""
        value = {'p': Point(1), 's': Sample([1]), 't': (1, {2})}
        before = dict(vars(value['s']))
        friend_of(lambda: value).send('/f')
        assert value == {'p': Point(1), 's': value['s'], 't': (1, {2})}
        assert vars(value['s']) == before

    def test_random_round_trip(self):
        """Random nested values (from a fixed seed) arrive as they were sent."""
        rnd = random.Random(20240229)
        service = make()
        friend = Friend('app1', service)
        for _ in range(300):
            value = random_value(rnd)
            again = friend.send('/echo', value)
            assert (again, type(again), repr(again)) == (value, type(value), repr(value))
        args, kwargs = [random_value(rnd) for _ in range(9)], {'k': random_value(rnd)}
        assert friend.send('/echo', *args, **kwargs) == tuple(args)
        assert service.ran[-1] == (tuple(args), kwargs)

    def test_long_text(self):
        """Text of 10 MB, and lone surrogates, come back as they were sent."""
        friend = Friend('app1', make())
        for text in ('x' * 8 * 10**6, '\ud800' * 1000, 'é' * 10**5):
            assert friend.send('/echo', text) == text

    def test_object_with_every_attribute(self):
        """An object that claims to have every attribute is encoded, and not awaited."""
        assert friend_of(lambda: Lax(a=1)).send('/f') == {'a': 1}
        assert friend_of(Strict).send('/f') == {}

    @pytest.mark.parametrize('value, why, kind', REFUSED, ids=[why for _, why, _ in REFUSED])
    def test_refused(self, value, why, kind):
        """A value without a JSON form is an error of the function or a BadCall, with its path."""
        with pytest.raises(RemoteError) as caught:
            friend_of(lambda: value).send('/f')
        assert isinstance(caught.value, kind)
        told = str(caught.value).partition(f'{kind.__name__}: reply[0]')[2]
        assert told.startswith(why)
        service = make()
        friend = Friend('app1', service)
        for args, kwargs, path in (
            (('x', value), {}, 'args[1]'),
            ((), {'k': value}, "kwargs['k']"),
        ):
            with pytest.raises(BadCall) as caught:
                friend.send('/echo', *args, **kwargs)
            assert path + why in str(caught.value)
            assert (caught.value.sent, caught.value.rule) == (False, '/echo')
        assert service.ran == []

    def test_several_values_refused(self):
        """The path counts the returned values."""
        with pytest.raises(TypeError, match=r'reply\[1\]\[0\]: _thread.lock has no JSON form'):
            friend_of(lambda: (1, [threading.Lock()], 3)).send('/f')

    def test_nested_too_deeply(self):
        """What is nested too deeply is refused, in calls and replies."""
        value = object()
        for _ in range(250):
            value = [value]
        with pytest.raises(BadCall, match=r'args[][0]+\.\.\.: nested too deeply'):
            Friend('app1', make()).send('/echo', value)

        class Deep(bytes):
            def decode(self):
                raise RecursionError

        assert ask(make(), Deep(b'['))[2]['detail'] == 'the body is not JSON: nested too deeply'
        replies = response(b'[' * 100000), response(b'[' * 100000 + b']' * 100000)
        with peer(answers(*replies)) as address:
            printed = ['True'] * 10 + ['400'] * 6 + ['True'] * 2
            assert run(DEEP, address, address) == (0, printed, '')

    @pytest.mark.parametrize('opening, closing', BRACKETS, ids=lambda text: text.decode())
    def test_depth_of_json(self, opening, closing):
        """JSON nested 200 deep is decoded; one level more is refused, and 20,000 too."""
        for depth in (1, 199, 200, 201, 202, 20001):
            times, more = divmod(depth, len(closing))
            body = b'[' * more + opening * times + b'1' + closing * times + b']' * more
            assert decodes(body) == (TOO_DEEP if depth > 200 else ''), depth
            assert decodes(b' \n' + body + b'\t') == decodes(body)

    @pytest.mark.parametrize('depth', [199, 200, 201, 202, 5000])
    def test_depth_of_messages(self, depth):
        """A call or a reply of 200 levels is taken, one of more is refused and runs nothing."""
        nested = [b'[' * levels + b']' * levels for levels in range(depth - 2, depth + 1)]
        service = make()
        calls = [b'{"args":%b}', b'{"token":%b}']
        for body in (b'{"kwargs":{"a":%b}}' % nested[0], *(call % nested[1] for call in calls)):
            status, _, problem = ask(service, body)
            assert status == (400 if depth > 200 else 200)
            if depth > 200:
                assert problem['detail'] == f'the body is not JSON: {TOO_DEEP}'
        assert len(service.ran) == (0 if depth > 200 else 3)
        with peer(answers(response(nested[2]))) as address, Friend('app1', address) as friend:
            if depth > 200:
                with pytest.raises(BadReply, match=f'the reply is not JSON: {TOO_DEEP}'):
                    friend.send('/echo')
            else:
                assert friend.send('/echo') == json.loads(nested[1])

    def test_depth_by_counting(self):
        """Random JSON (from a fixed seed) is refused if, and only if, a slow count finds 201."""
        rnd = random.Random(20240229)
        seen = set()
        for _ in range(40):
            body = bracketed(rnd)
            json.loads(body)
            is_deep = depth_of(body) > 200
            seen.add(is_deep)
            assert decodes(body) == (TOO_DEEP if is_deep else ''), body
        assert seen == {False, True}

    @pytest.mark.parametrize(
        'text',
        ['[' * 500, '{' * 500, '"' * 500, '\\' * 501, '\\"[' * 300, ']}' * 300, '"[\\' * 250],
    )
    def test_brackets_in_strings(self, text):
        """Brackets in strings are no nesting, whatever escapes and quotes are around them."""
        friend = Friend('app1', make())
        for value in (text, [text, text], {text: text}, [[text], {'a': text}]):
            assert friend.send('/echo', value) == value
            assert decodes(json.dumps([value]).encode()) == ''

    def test_depth_is_found_in_linear_time(self):
        """To look for the depth of many brackets takes no long time, whatever is between them."""
        size = 1 << 17
        with soon():
            assert decodes(b'[' * size) == TOO_DEEP
            assert decodes(b'[' * size + b']' * size) == TOO_DEEP
            assert decodes(b'[' * 199 + b'[],' * (size // 2) + b'[]' + b']' * 199) == ''
            assert decodes(b'[{"a":' * size) == TOO_DEEP
            assert decodes(b'"' + b'\\\\' * size + b'"') == ''
            assert decodes(b'"' * size) != ''
            assert decodes(b'[' * 200 + b'"' + b'\\"[' * size) != ''

    def test_small_stacks(self):
        """Deep JSON does not end a process whose threads have stacks of 1 MiB."""
        token = b'[' * 18000 + b']' * 18000
        with peer(answers(response(token))) as address, contextlib.ExitStack() as stack:
            process = stack.enter_context(running('-W', 'error', '-c', SMALL_STACK, address))
            assert TOO_DEEP in process.stdout.readline().decode()
            address = announced(process)
            port = int(address.rpartition(':')[2])
            for body in (b'{"token":%b}' % token, b'{"args":%b}' % token):
                with socket.create_connection(('127.0.0.1', port), TIMEOUT) as sock:
                    sock.sendall(request(body, extra=b'Connection: close\r\n'))
                    assert statuses(receive(sock)) == [400]
            assert is_answering(address)

    @pytest.mark.skipif(not hasattr(gc, 'callbacks'), reason='the collector tells nothing here')
    @pytest.mark.parametrize('size', [100, 1 << 19])
    @pytest.mark.parametrize('is_enabled', [True, False])
    @pytest.mark.parametrize('is_json', [True, False])
    def test_garbage_collection(self, size, is_enabled, is_json):
        """Large bodies are decoded without the collector, which is left as it was afterwards."""
        body = b'[' + b'[],' * (size // 3) + (b'[]]' if is_json else b'x]')
        runs = []

        def note(phase, info):
            runs.append(phase)

        gc.collect(0)
        gc.callbacks.append(note)
        try:
            if not is_enabled:
                gc.disable()
            assert (decodes(body) == '') is is_json
            assert gc.isenabled() is is_enabled
            while_decoding = len(runs)
        finally:
            gc.callbacks.remove(note)
            gc.enable()
        assert while_decoding <= 2  # it may run as soon as it is enabled again

    def test_large_bodies_of_many_threads(self):
        """Large bodies that come at once are decoded one after the other."""
        body = b'[' + b'[],' * 100000 + b'[]]'
        told = call_all(4, lambda number: decodes(body + b'x' * (number % 2)) == '')
        assert told == [True, False] * 2

    @pytest.mark.skipif(not hasattr(sys, 'get_int_max_str_digits'), reason='integers are unlimited')
    def test_huge_integers(self):
        """An integer beyond the interpreter's limit of digits is an error with its path."""
        with pytest.raises(BadCall, match=r'args\[0\]\[1\]: Exceeds the limit'):
            Friend('app1', make()).send('/echo', [0, 10**5000])
        with pytest.raises(RemoteError, match=r'reply\[0\]: Exceeds the limit'):
            friend_of(lambda: 10**5000).send('/f')
        status, _, problem = ask(make(), b'{"args": [%b]}' % (b'1' * 5000))
        assert (status, problem['detail'][:24]) == (400, 'the body is not JSON: Ex')

    def test_failing_property(self):
        """What a property raises is the error of the call; in debug its traceback is there, too."""
        with pytest.raises(LookupError, match='LookupError: no items') as caught:
            friend_of(lambda: [Holder(a=Broken())], debug=True).send('/f')
        assert 'in items' in caught.value.traceback
        with pytest.raises(LookupError, match='^no items$'):
            Friend('app1', make()).send('/echo', Broken())

    def test_failing_iterator(self):
        """What an iterator raises is the error of the call, and it is not asked again."""
        for kind, told in (
            (KeyError, 'no'),
            (ValueError, 'no'),
            (TypeError, 'no'),
            (StopAsyncIteration, 'no'),
        ):
            taken = []

            def item(number, taken=taken, kind=kind):
                taken.append(number)
                if number == 2:
                    raise kind('no')
                return number

            with pytest.raises(kind, match=f'^.?{told}.?$'):
                Friend('app1', make()).send('/echo', {'a': map(item, range(9))})
            assert taken == [0, 1, 2]

    @needs_signals
    @needs_timers
    def test_signal_while_encoding(self):
        """What a signal's handler raises is not taken for an error of the value."""

        class Late(Exception):
            pass

        class Slow:
            @property
            def items(self):
                signal.raise_signal(signal.SIGALRM)

        def handle(*_):
            raise Late

        with handling(signal.SIGALRM, handle), pytest.raises(Late):
            Friend('app1', make()).send('/echo', Slow())

    def test_proxy_of_a_string(self):
        """An object that only pretends to be a string is refused."""

        class Proxy:
            __class__ = property(lambda self: str)

            def __getattr__(self, name):
                return getattr('text', name)

        with pytest.raises(BadCall, match='Proxy'):
            Friend('app1', make()).send('/echo', [Proxy()])

    def test_tokens_stay(self):
        """An object that holds a friend, a service or tokens is refused: tokens would leak."""

        class App:
            def __init__(self, held):
                self.held = held

        service = make(token=SECRET)
        friend = Friend('app1', service, {'/echo': SECRET})
        for held in (friend, service, friend.token, service.token):
            with pytest.raises(BadCall, match=r'args\[0\].held: .* has no JSON form'):
                friend.send('/echo', App(held))
        assert service.ran == []

    def test_what_numpy_has(self):
        """The error for a numpy value names its type, and what to send instead."""

        class Odd:
            __slots__ = ()
            tolist = __call__ = lambda self: 7

        Odd.__name__, Odd.__module__ = 'bool', 'numpy'
        told = r'args\[0\]: numpy.bool has no JSON form: send its .tolist\(\)$'
        with pytest.raises(BadCall, match=told):
            Friend('app1', make()).send('/echo', Odd())

    @pytest.mark.parametrize('name, form', OFFERED)
    def test_what_offers_a_form(self, name, form):
        """The error for an object that offers a plain form says to send that."""

        class Known(Holder):
            pass

        setattr(Known, name, lambda self: {'a': 1})
        Known.__module__ = 'pandas.core'
        told = f'args[0][1].row: pandas.core.Known has no JSON form: send its {form}'
        service = make()
        with pytest.raises(BadCall) as caught:
            Friend('app1', service).send('/echo', [1, Holder(row=Known(a=1))])
        assert str(caught.value).endswith(told)
        assert service.ran == []

    @pytest.mark.parametrize('kind', [open, io.StringIO, socket.socket])
    def test_open_files(self, kind):
        """An open file, or what is like one, is refused, and not read."""
        with kind(os.devnull) if kind is open else kind() as file:
            with pytest.raises(BadCall, match=r'args\[0\]: .* no JSON form: send its \.read\(\)'):
                Friend('app1', make()).send('/echo', file)

    @pytest.mark.parametrize('name', ['NaT', 'NA'])
    def test_missing_values_of_pandas(self, name):
        """A missing value of pandas is refused wherever it stands, as NaN is."""
        pandas = pytest.importorskip('pandas')
        value = getattr(pandas, name)
        with pytest.raises(BadCall, match=r"args\[0\]\['a'\]: .* has no JSON form"):
            Friend('app1', make()).send('/echo', {'a': value})
        with pytest.raises(TypeError, match=r'reply\[0\]: .* has no JSON form'):
            friend_of(lambda: value).send('/f')

    @pytest.mark.parametrize('endless', ENDLESS)
    def test_endless(self, endless, monkeypatch):
        """An iterator without an end is an error, in a call and in a reply, wherever it stands."""
        bound_iterators(monkeypatch, 1000)
        service = make()
        for wrap in (lambda v: v, lambda v: [1, {'k': v}]):
            with pytest.raises(BadCall, match='args: an iterator gave more than 1000 bytes'):
                Friend('app1', service).send('/echo', wrap(endless()))
            kind = 'an iterator gave more than|the reply of .* is over max_body'
            with pytest.raises(ValueError, match=kind):
                friend_of(lambda wrap=wrap: wrap(endless()), max_body=1000).send('/f')
        assert service.ran == []

    def test_endless_takes_bounded_memory(self, monkeypatch):
        """A generator without an end is given up once its items cannot fit in a reply."""
        taken = []

        def endless():
            for number in itertools.count():
                taken.append(number)
                yield 1

        with pytest.raises(ValueError, match='an iterator gave more than 1000 bytes'):
            friend_of(endless, max_body=1000).send('/f')
        assert len(taken) <= 501  # an item takes two bytes at least
        bound_iterators(monkeypatch, 500)
        for value in (endless, lambda: [endless()]):
            taken.clear()
            with pytest.raises(BadCall, match='an iterator gave more than 500 bytes'):
                Friend('app1', make()).send('/echo', value())
            assert len(taken) <= 2 * 251  # once to encode, and once to name the place

    def test_iterator_that_just_fits(self, monkeypatch):
        """An iterator of as many items as are allowed is sent whole."""
        bound_iterators(monkeypatch, 1000)
        echo = Friend('app1', make())
        assert echo.send('/echo', iter(range(500))) == list(range(500))
        reply = friend_of(lambda: (1 for _ in range(499)), max_body=1001)  # "[[1,...,1]]"
        assert reply.send('/f') == [1] * 499

    @pytest.mark.parametrize('body', BAD_JSON, ids=lambda body: ascii(body[:20]))
    def test_bad_json(self, body):
        """The service and the friend accept only strict JSON in UTF-8."""
        service = make()
        status, headers, problem = ask(service, body)
        assert status == 400
        assert problem['detail'].startswith('the body is not JSON: ')
        assert headers['Content-Type'] == 'application/problem+json'
        assert ask(service, b'{"args": ' + body + b'}')[0] == 400
        assert service.ran == []
        with pytest.raises(BadReply, match='the reply is not JSON: '):
            value_of(body)


# ----------------------------------------------------------------------------------------- messages

WIRE = [  # args, kwargs, token; the body that a friend sends
    ((), {}, None, b'{"args":[],"kwargs":{},"token":null}'),
    (('x',), {}, None, b'{"args":["x"],"kwargs":{},"token":null}'),
    ((1, 2.5, None, True), {}, 't', b'{"args":[1,2.5,null,true],"kwargs":{},"token":"t"}'),
    ((), {'k': [1]}, None, b'{"args":[],"kwargs":{"k":[1]},"token":null}'),
    (
        ([], [[]], {}),
        {'a': {}, 'b': ''},
        'é"',
        b'{"args":[[],[[]],{}],"kwargs":{"a":{},"b":""},"token":"\\u00e9\\""}',
    ),
    (
        ({'a': [1]}, 'é'),
        {'self': 1, 'rule': 2, 'token': 3, 'args': 4},
        '123456',
        b'{"args":[{"a":[1]},"\\u00e9"],"kwargs":{"self":1,"rule":2,"token":3,"args":4},'
        b'"token":"123456"}',
    ),
]

NESTED = b'[' * 198 + b']' * 198  # with the call around it, as deep as is allowed
OTHERS = [  # bodies that others send; what they call with
    (b'{"args": ["x", 1], "kwargs": {"k": 2}, "token": null}', ('x', 1), {'k': 2}),  # requests
    (b'{"args": ["x"], "kwargs": {}, "token": "unasked"}', ('x',), {}),
    (b'{"token": null, "kwargs": {}, "args": ["x"]}', ('x',), {}),
    (b'\r\n{\t"args" :\n[ "x" ] }\n', ('x',), {}),
    ('{"args": ["é"]}'.encode(), ('é',), {}),
    (b'{"kwargs": {"k": 1}}', (), {'k': 1}),
    (b'{"kwargs": {"": 1, "a b": 2, "\\u0000": 3}}', (), {'': 1, 'a b': 2, '\0': 3}),
    (b'{"args": [1], "token": {"a": []}}', (1,), {}),
    (b'{"args": [1], "token": 7}', (1,), {}),
    (b'{"token": null}', (), {}),
    (b'{"args": [%b]}' % NESTED, (json.loads(NESTED),), {}),
    (b'{}', (), {}),
    (b'', (), {}),
    (b'{"args": [1], "args": [2]}', (2,), {}),
    (b'{"args": ["\\ud800"], "kwargs": {"\\udfff": 1}}', ('\ud800',), {'\udfff': 1}),
    (b'{"args": ["\\ud800\\udc00\\udfff"]}', ('\U00010000\udfff',), {}),
]

NO_CALL = 'the body has to be {"args": [...], "kwargs": {...}, "token": ...}'
MALFORMED_CALLS = [  # what the service says; bodies
    (
        NO_CALL,
        [
            *(b'[]', b'7', b'null', b'"args"', b'true'),
            *(b'{"arg": [1]}', b'{"args": [1], "x": 1}', b'{"args": [1], "": 1}'),
        ],
    ),
    (
        'args has to be an array, and kwargs an object',
        [
            *(b'{"args": {}}', b'{"args": "x"}', b'{"args": null}', b'{"args": 7}'),
            *(b'{"kwargs": []}', b'{"kwargs": null}', b'{"kwargs": "x"}'),
            b'{"kwargs": {"a": 1}, "kwargs": 7}',
        ],
    ),
    ('the body is not JSON: 1e400 is no finite number', [b'{"args": [1e400]}']),
]

RETURNS = [  # what a function returns; the reply's body; what `send` gives
    (7, b'[7]', 7),
    ('é', b'["\\u00e9"]', 'é'),
    (None, b'[null]', None),
    ((1, 'b', None), b'[1,"b",null]', (1, 'b', None)),
    ([1, 2], b'[[1,2]]', [1, 2]),
    ([], b'[[]]', []),
    ((), b'[]', ()),
    ((1,), b'[1]', 1),
    (((1, 2),), b'[[1,2]]', [1, 2]),
    (([1], (2, 3)), b'[[1],[2,3]]', ([1], [2, 3])),
    ((None, None), b'[null,null]', (None, None)),
    ({'a': (1,)}, b'[{"a":[1]}]', {'a': [1]}),
    (Pair(1, 'b'), b'[[1,"b"]]', [1, 'b']),
    (False, b'[false]', False),
]


class TestCalls:
    """The bodies of requests and replies."""

    @pytest.mark.parametrize('args, kwargs, token, body', WIRE)
    def test_call(self, args, kwargs, token, body):
        """A friend sends these bytes, and a service takes them."""
        got = []
        with peer(answers(response(b'[null]'), got=got)) as address:
            with Friend('app1', address, token=token) as friend:
                assert friend.send('/echo', *args, **kwargs) is None
        assert got[0].partition(b'\r\n\r\n')[2] == body
        service = make(token=token)
        assert ask(service, body)[0] == 200
        assert service.ran == [(args, kwargs)]

    def test_head(self):
        """The head of a call is this and no more."""
        got = []
        with peer(answers(response(), got=got)) as address:
            with Friend('app1', address + '/base/') as friend:
                friend.send('/é b', 1)
        head, _, body = got[0].decode().partition('\r\n\r\n')
        assert head.split('\r\n') == [
            'POST /base/%C3%A9%20b HTTP/1.1',
            'Host: ' + address.partition('://')[2],
            f'User-Agent: microconnect/{microconnect.__version__}',
            'Content-Type: application/json',
            f'Content-Length: {len(body)}',
        ]

    @pytest.mark.parametrize('body, args, kwargs', OTHERS)
    def test_calls_of_others(self, body, args, kwargs):
        """A service takes what other implementations send: spaces, any order, missing keys."""
        service = make()
        assert ask(service, body)[0] == 200
        assert service.ran == [(args, kwargs)]

    @pytest.mark.parametrize('detail, body', each(MALFORMED_CALLS))
    def test_malformed_calls(self, detail, body):
        """JSON that is not a call is 400, and nothing runs."""
        service = make()
        status, _, problem = ask(service, body)
        assert (status, service.ran) == (400, [])
        assert problem == {'title': 'Bad Request', 'status': 400, 'detail': detail}

    @pytest.mark.parametrize('value, body, given', RETURNS)
    def test_reply(self, value, body, given):
        """A service encodes a return value as these bytes, and `send` decodes them."""
        service = service_of(lambda: value)
        status, headers, reply = service.answer('POST', '/f', JSON)
        assert (status, dict(headers), reply) == (200, REPLY, body)
        for again in (Friend('app1', service).send('/f'), value_of(body)):
            assert again == given
            assert type(again) is type(given)

    def test_problem_details(self):
        """A failure is RFC 9457 problem details, and names the exception where there was one."""
        status, headers, problem = ask(make(), b'{"args": ["ValueError", "no"]}', '/fail')
        kind = 'application/problem+json'
        assert (status, headers) == (500, {**REPLY, 'Content-Type': kind})
        assert problem == {
            'title': 'Internal Server Error',
            'status': 500,
            'detail': 'ValueError: no',
            'exception': {'type': 'ValueError', 'base': 'ValueError', 'message': 'no'},
        }


HOST = b' HTTP/1.1\r\nHost: a\r\n'
HEADS = [  # head, but for its empty line; method, path, length, keep_alive, expects
    (b'GET /' + HOST, 'GET', '/', 0, True, False),
    (b'POST /a HTTP/1.1\r\nHost:a\r\nContent-Length: 12\r\n', 'POST', '/a', 12, True, False),
    (b'POST /a HTTP/1.0\r\nContent-Length: 1\r\n', 'POST', '/a', 1, False, False),
    (b'GET /a HTTP/1.9\r\nHost:\r\n', 'GET', '/a', 0, True, False),
    (b'BREW /' + HOST + b'Connection: x, Close\r\n', 'BREW', '/', 0, False, False),
    (b'get / HTTP/1.1\r\nhOST: a\r\nCONNECTION: close\r\n', 'get', '/', 0, False, False),
    (b'POST /a' + HOST + b'Transfer-Encoding: Chunked\r\n', 'POST', '/a', CHUNKED, True, False),
    (b'GET / HTTP/1.1\r\nHost: [::1]:80\r\n', 'GET', '/', 0, True, False),
    (b'PUT /%C3%A9%20b%3F%2f' + HOST, 'PUT', '/é b?/', 0, True, False),
    (b'PUT /' + HOST + b'Expect: 100-Continue\r\n', 'PUT', '/', 0, True, True),
    (b'PUT / HTTP/1.0\r\nExpect: 100-continue\r\n', 'PUT', '/', 0, False, False),
    (b'POST http://a:80/b' + HOST, 'POST', '/b', 0, True, False),
    (b'POST HTTPS://a' + HOST, 'POST', '/', 0, True, False),
    (b'OPTIONS *' + HOST, 'OPTIONS', '*', 0, True, False),
    (b'GET /a?b=%20c' + HOST, 'GET', '/a?', 0, True, False),
    (b'GET /a?' + HOST, 'GET', '/a', 0, True, False),
    (b'GET /a+b//../c;d=1' + HOST, 'GET', '/a+b//../c;d=1', 0, True, False),
    (b'POST /' + HOST + b'Content-Length: 0007\r\n', 'POST', '/', 7, True, False),
    (b'POST /' + HOST + b'Content-Length: %032d\r\n' % 7, 'POST', '/', 7, True, False),
    (b'POST /' + HOST + b'Content-Length: 9%b\r\n' % (b'9' * 20), 'POST', '/', 10**15, True, False),
]

IS_TLS = 'the bytes are TLS: is only one side https?'
MALFORMED = 'the head is malformed (RFC 9112): a first line, then Name: value lines'
NO_HOST = 'a request needs one valid Host header (RFC 9112, 3.2)'
NO_PATH = 'the request target is not a path (RFC 9112, 3.2)'
NO_UTF8 = 'the path is not percent-encoded UTF-8'
NO_LENGTH = 'Content-Length is not a number of bytes'
TWO_LENGTHS = 'Transfer-Encoding with Content-Length, or in HTTP/1.0, is refused'
NO_CODING = 'the only Transfer-Encoding read is chunked'
NO_VERSION = 'only HTTP/1.1 is spoken here'
CODING = b'Transfer-Encoding: '

# fmt: off
REFUSED_HEADS = [  # status, message; heads but for the empty line
    (400, MALFORMED, [
        b'GET /\r\n', b'GET  /' + HOST, b'GET / HTTP/1.1 \r\n', b'GET\t/\tHTTP/1.1\r\n',
        b'GET / http/1.1\r\n', b'GET / HTTP/1.10\r\n', b'G@T /' + HOST, b'G\xc9T /' + HOST,
        b'GET /\xe9' + HOST, b'GET /\0' + HOST, b'GET / HTTP/1.1\nHost: a\n', b' GET /' + HOST,
    ]),
    (400, IS_TLS, [b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n']),
    (505, NO_VERSION, [b'GET / HTTP/2.0\r\n', b'GET / HTTP/0.9\r\n', b'PRI * HTTP/2.0\r\n']),
    (400, NO_HOST, [b'GET / HTTP/1.1\r\n' + lines for lines in (
        b'', b'Host: a\r\nHost: a\r\n', b'Host: a b\r\n', b'Host: a/b\r\n', b'Host: u@a\r\n',
        b'Host: a:b\r\n', b'Host: \xe9\r\n',
    )]),
    (400, NO_PATH, [b'GET ' + target + HOST for target in (
        b'a', b'*', b'a:1', b'ftp://a/', b'http://u@a/', b'/a#b', b'/a?b#c', b'/%zz', b'/%a',
        b'/a\\b', b'/"<>', b'/{}',
    )] + [b'CONNECT localhost:80' + HOST]),
    (400, NO_UTF8, [b'GET /%ff' + HOST, b'GET /%ED%A0%80' + HOST]),
    (400, TWO_LENGTHS, [b'POST / HTTP/1.0\r\n' + CODING + b'chunked\r\n']),
] + [
    (status, message, [b'POST /echo' + HOST + line + b'\r\n' for line in lines])
    for status, message, lines in [
        (400, MALFORMED, (
            b'X : 1', b' X: 1', b'X: 1\r\n 2', b'X: 1\r2', b'X: 1\n2: 3', b'X: \0', b'X: \x7f',
            b': 1', b'X', CODING + b'\x0bchunked', 'É: 1'.encode(), b'Content-Length : 0',
        )),
        (400, NO_LENGTH, [b'Content-Length:' + value for value in (
            b'', b'-1', b'+1', b'0x1', b'1_0', b'\xb2', b'1 1', b'1, 1', b'0, 0',
            b'1\r\nContent-Length: 2', b'1\r\ncontent-length: 1',
        )]),
        (400, TWO_LENGTHS, (b'Content-Length: 1\r\n' + CODING + b'chunked',)),
        (400, NO_CODING, [CODING + value for value in (
            b'', b'identity', b'xchunked', b'"chunked"', b'chunked, gzip', b'chunked, chunked',
            b'chunked\r\n' + CODING + b'chunked',
        )]),
        (501, NO_CODING, (CODING + b'gzip, chunked', CODING + b'gzip\r\n' + CODING + b'chunked')),
        (417, 'the only expectation met is 100-continue', (b'Expect: tea',)),
    ]
]
# fmt: on

TOO_LONG = 'the head is over 200 bytes'
REFUSED_STARTS = [  # status, message; what a connection begins with
    (400, 'the connection ended in the middle of a message', [b'', b'GET / HT', b'GET /' + HOST]),
    (
        400,
        MALFORMED,
        [
            *(b' GET / HTTP/1.1\r\n', b'\nGET / HTTP/1.1', b'\r\r', b'\0'),
            *(b'GET / HTTP/1.1\nHost', b'GET /\r\n', b'GET / HTTP/1.15\r\n'),
        ],
    ),
    (400, IS_TLS, [b'\x16', b'\x16\x03\x01']),
    (505, NO_VERSION, [b'PRI * HTTP/2.0\r\n']),
    (
        431,
        TOO_LONG,
        [
            *(b'GET /%b HTTP/1.1\r\n' % (b'x' * 200), b'GET / HTTP/1.1\r\n' + b'X: 1\r\n' * 40),
            *(b'\r\n' * 110, b'GET / HTTP/1.1\r\n' + b'X: 1\r\n' * 40 + b'\r\n'),
        ],
    ),
]

CHUNKED_BODIES = [  # chunked bodies; what they hold
    (b'0\r\n\r\n', b''),
    (b'3\r\nabc\r\n0\r\n\r\n', b'abc'),
    (b'1\r\na\r\n0A\r\n0123456789\r\n00\r\n\r\n', b'a0123456789'),
    (b'2 ;x=1;y="2"\r\nab\r\n0;z\r\n\r\n', b'ab'),
    (b'2\r\n\r\n\r\n0\r\nX-Trailer: 1\r\nY:\r\n\r\n', b'\r\n'),
]

SIZE = 'a chunk size is malformed (RFC 9112, 7.1)'
LINE = 'a line of a chunked body is malformed or too long'
CUT = 'the connection ended in the middle of a message'

# fmt: off
REFUSED_CHUNKED = [  # status, message; chunked bodies
    (400, SIZE, [
        b'\r\n', b'x\r\n', b'-1\r\n', b'+1\r\na\r\n', b'0x1\r\na\r\n', b' 1\r\na\r\n',
        b'1_0\r\n', b'1 2\r\n', b'1;\0\r\na', b'1' * 16 + b'\r\n',
    ]),
    (400, LINE, [b'1\na\n0\n\n', b'1;' + b'x' * 300, b'0\r\n' + b'X: 1\r\n' * 100]),
    (400, 'a chunk is longer than its size (RFC 9112, 7.1)', [b'1\r\nab\r\n', b'1\r\na\n\n']),
    (400, 'a trailer is malformed (RFC 9112, 7.1.2)', [b'0\r\nX : 1\r\n\r\n']),
    (413, 'the body is over max_body=20', [
        b'15\r\n', b'f\r\n' + b'x' * 15 + b'\r\n6\r\n', b'f' * 15 + b'\r\n',
    ]),
]
# fmt: on

CUT_SHORT = [b'', b'5', b'5\r\nabc', b'1\r\na\r\n0\r\n']  # chunked bodies
HEAD = b'POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
CHUNKED_HEAD = HEAD + b'Transfer-Encoding: chunked\r\n\r\n'
GET = b'GET / HTTP/1.1\r\nHost: a\r\n\r\n'

STREAMS_OF_MESSAGES = {
    'messages': [GET + GET + b'\r\n\r\n' + request(b'{}') + b'\r\n' + GET],
    'refused heads, and more': [head + b'\r\n' + GET for *_, head in each(REFUSED_HEADS)],
    'refused heads': [head + b'\r\n' for *_, head in each(REFUSED_HEADS)],
    'refused starts': [data for *_, data in each(REFUSED_STARTS)],
    'refused chunks': [CHUNKED_HEAD + data + GET for *_, data in each(REFUSED_CHUNKED)],
    'chunks cut short': [CHUNKED_HEAD + data for data in CUT_SHORT],
    'chunks': [CHUNKED_HEAD + data + GET for data, _ in CHUNKED_BODIES],
    'long chunk lines': [
        CHUNKED_HEAD + b'1;' + b'x' * 40000 + b'\r\nx\r\n0\r\n\r\n',
        CHUNKED_HEAD + b'1;' + b'x' * 190 + b'\r\nx\r\n0;' + b'x' * 190 + b'\r\n\r\n',
    ],
    'other versions': [b'GET /\0 HTTP/2.0\r\n\r\n', b'GET / HTTP/2\0\r\n\r\n'],
    'heads of about the limit': [
        b'GET / HTTP/1.1\r\nX: %b%b\r\n\r\n' % (b'x' * size, end)
        for size, end in itertools.product(range(175, 190), (b'\0', b''))
    ],
    'empty lines': [b'\r\n' * count + GET for count in range(80, 104, 3)],
}


class TestRequests:
    """Requests in memory: whole, byte by byte, and with bytes after them."""

    @pytest.mark.parametrize('head, method, path, length, keep_alive, expects', HEADS)
    def test_heads(self, head, method, path, length, keep_alive, expects):
        """A legal request head is understood."""
        for step, rest in itertools.product((0, 1, 7), (b'', b'\r\nGET /')):
            stream = reader(head + b'\r\n' + rest, step)
            request = stream.head()
            assert (request.method, request.path, request.length) == (method, path, length)
            assert (request.keep_alive, request.expects) == (keep_alive, expects)
            assert unread(stream) == rest

    @pytest.mark.parametrize('status, message, heads', REFUSED_HEADS)
    def test_refused_heads(self, status, message, heads):
        """A head that RFC 9112 does not allow is refused."""
        for head in heads:
            assert refused(parse_request, head[:-2]) == (status, message), head
            for step in (0, 1):
                stream = reader(head + b'\r\n', step, max_head=999)
                assert refused(stream.head) == (status, message), head

    @pytest.mark.parametrize('streams', STREAMS_OF_MESSAGES.values(), ids=STREAMS_OF_MESSAGES)
    def test_cutting(self, streams):
        """However a stream is cut, it holds the same messages and fails by the same error."""

        def messages(data, **cut):
            stream, got = reader(data, **cut), []
            try:
                while unread(stream):
                    got.append(stream.head())
                    got.append(bytes(stream.body(got[-1].length, 20)))
            except MicroconnectError as error:
                got.append((error.status, str(error)))
            return got

        for data in streams:
            whole = messages(data)
            assert messages(data, step=1) == whole, data
            for seed in range(6):
                assert messages(data, seed=seed) == whole, (data, seed)

    def test_fields(self):
        """Names become lower case, values are stripped, and values of one name are joined."""
        head = b'GET / HTTP/1.1\r\nHost: a\r\nX-A:\t 1 \t\r\nx-a: \xe9\r\nx-b:'
        request = parse_request(head)
        assert request.headers == {'host': 'a', 'x-a': '1, \xe9', 'x-b': ''}

    def test_remembered_heads(self):
        """A head that comes again is not parsed again; long ones are not remembered."""
        for extra, is_remembered in ((b'', True), (b'X: %b\r\n' % (b'x' * 2000), False)):
            head = b'GET /a HTTP/1.1\r\nHost: a\r\n' + extra + b'\r\n'
            stream = reader(head + head, max_head=9999)
            one, two = stream.head(), stream.head()
            assert one == two
            assert (one is two) is is_remembered

    @pytest.mark.parametrize('step', [0, 1])
    def test_one_after_the_other(self, step):
        """A reader returns message after message, and ignores empty lines before a head."""
        one, two = b'GET /a HTTP/1.1\r\nHost: a\r\n\r\n', b'POST / HTTP/1.1\r\nHost: a\r\n\r\n'
        stream = reader(b'\r\n\r\n' + one + two + b'body\r\n' + one, step)
        assert stream.head() == parse_request(one[:-4])
        assert stream.head() == parse_request(two[:-4])
        assert stream.body(4, 10) == b'body'
        assert stream.head() == parse_request(one[:-4])
        assert refused(stream.head) == (400, CUT)

    @pytest.mark.parametrize('status, message, starts', REFUSED_STARTS)
    def test_refused_starts(self, status, message, starts):
        """Bytes that cannot become a head are refused at once, without waiting for its end."""
        for data, step in itertools.product(starts, (0, 1)):
            assert refused(reader(data, step).head) == (status, message), data

    def test_head_limit(self):
        """A head of exactly the allowed size passes, one byte more does not."""
        head = b'GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n'
        just = head % (b'x' * (204 - len(head % b'')))
        over = just.replace(b'x', b'xx', 1)
        for step in (0, 1):
            assert reader(just, step).head() == parse_request(just[:-4])
            assert refused(reader(over, step).head) == (431, TOO_LONG)

    @pytest.mark.parametrize('step', [0, 1])
    def test_bodies(self, step):
        """A body has the length that its head says, or ends with the connection."""
        assert reader(b'abcde', step).body(3, 3) == b'abc'
        assert reader(b'', step).body(0, 3) == b''
        told = refused(reader(b'abcde', step).body, 4, 3)
        assert told == (413, 'the body of 4 bytes is over max_body=3')
        assert refused(reader(b'ab', step).body, 3, 3) == (400, CUT)
        assert reader(b'abc', step).body(TO_THE_END, 3) == b'abc'
        told = refused(reader(b'abcd', step).body, TO_THE_END, 3)
        assert told == (413, 'the body is over max_body=3')

    @pytest.mark.parametrize('data, body', CHUNKED_BODIES)
    def test_chunked(self, data, body):
        """A chunked body is put together; the bytes after it are left."""
        for step, rest in itertools.product((0, 1), (b'', b'GET')):
            stream = reader(data + rest, step)
            assert stream.body(CHUNKED, 20) == body
            assert unread(stream) == rest

    def test_tiny_chunks(self):
        """Many chunks of one byte take little more memory than their bytes."""
        tracemalloc = pytest.importorskip('tracemalloc')  # PyPy has none
        stream = reader(b'1\r\nx\r\n' * 2000 + b'0\r\n\r\n', max_head=32768)
        tracemalloc.start()
        try:
            assert len(stream.body(CHUNKED, 100000)) == 2000
            assert tracemalloc.get_traced_memory()[1] < 50000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        'size, is_taken', [(1, False), (8, False), (24, False), (64, True), (1000, True)]
    )
    def test_small_chunks(self, size, is_taken):
        """A body of many chunks has to have chunks that are worth their framing."""
        chunks = b'%x\r\n%b\r\n' % (size, b'x' * size) * 2000 + b'0\r\n\r\n'
        for step in (0, 999):
            stream = reader(chunks, step, max_head=4096)
            if is_taken:
                assert len(stream.body(CHUNKED, 1 << 24)) == 2000 * size
            else:
                assert refused(stream.body, CHUNKED, 1 << 24) == (400, LINE)

    def test_large_chunks_pay_for_no_more(self):
        """Large chunks do not save up for extensions, trailers or tiny chunks without a bound."""
        large = b'fffff\r\n%b\r\n' % (b'x' * 0xFFFFF)
        for rest in (b'1;%b\r\nx\r\n' % (b'y' * 5000), b'1\r\nx\r\n' * 2000):
            stream = reader(large + rest + b'0\r\n\r\n', max_head=4096)
            assert refused(stream.body, CHUNKED, 1 << 24) == (400, LINE)
        for rest in (b'0;%b\r\n\r\n' % (b'y' * 5000), b'0\r\nX: %b\r\n\r\n' % (b'y' * 5000)):
            stream = reader(large + rest, max_head=4096)
            assert refused(stream.body, CHUNKED, 1 << 24) == (400, LINE)
        ended = b'1;%b\r\nx\r\n0\r\nX: 1\r\n\r\n' % (b'y' * 3000)
        assert len(reader(large + ended, max_head=4096).body(CHUNKED, 1 << 24)) == 1 << 20

    @pytest.mark.parametrize('status, message, bodies', [*REFUSED_CHUNKED, (400, CUT, CUT_SHORT)])
    def test_refused_chunked(self, status, message, bodies):
        """A chunked body that is malformed, too large or cut short is refused."""
        for data, step in itertools.product(bodies, (0, 1)):
            assert refused(reader(data, step).body, CHUNKED, 20) == (status, message), data


class TestRequestsOnTheWire:
    """The same bytes, sent to a service."""

    options = {'max_body': 20}  # of the service

    def check_refused(self, service, start, status):
        got = raw(service, start + request(), end=False)
        assert statuses(got) == [status], start
        assert b'\r\nConnection: close\r\n' in got
        assert json.loads(got.partition(b'\r\n\r\n')[2])['status'] == status
        assert service.ran == [], start

    @pytest.mark.parametrize('status, _, heads', REFUSED_HEADS)
    def test_refused_heads(self, service, status, _, heads):
        """A request with such a head is refused, and nothing after it is run as another."""
        for head in heads:
            self.check_refused(service, head + b'\r\n', status)

    @pytest.mark.parametrize('status, _, bodies', REFUSED_CHUNKED)
    def test_refused_chunked(self, service, status, _, bodies):
        """A request with such a body is refused, and nothing after it is run as another."""
        for data in bodies:
            self.check_refused(service, CHUNKED_HEAD + data, status)

    @pytest.mark.parametrize('length', [10**12, 10**30])
    def test_terabyte(self, service, length):
        """A length over the limit is refused without waiting for the body."""
        got = raw(service, HEAD + b'Content-Length: %d\r\n\r\n' % length, end=False)
        assert statuses(got) == [413]

    @pytest.mark.parametrize(
        'data', [request()[:30], request()[:-1], *(CHUNKED_HEAD + data for data in CUT_SHORT)]
    )
    def test_cut_short(self, service, data):
        """A request that ends in its middle is not run."""
        assert statuses(raw(service, data)) == [400]
        assert service.ran == []


OK = b'HTTP/1.1 200 OK\r\n'
OK_JSON = OK + b'Content-Type: application/json\r\n'
LENGTH = b'Content-Length: 3\r\n'
REPLY_HEADS = [  # head, but for its empty line; status, length, seconds kept alive
    (OK + LENGTH, 200, 3, 4.0),
    (b'HTTP/1.1 200 \r\n' + LENGTH, 200, 3, 4.0),
    (b'HTTP/1.1 200\r\n' + LENGTH, 200, 3, 4.0),
    (b'HTTP/1.1 404 N\xf6t f\tnd\r\nContent-Length: 0\r\n', 404, 0, 4.0),
    (b'HTTP/1.0 200 OK\r\n' + LENGTH, 200, 3, 0.0),
    (OK, 200, TO_THE_END, 0.0),
    (OK + b'Transfer-Encoding: chunked\r\n', 200, CHUNKED, 4.0),
    (OK + b'Connection: Close\r\n' + LENGTH, 200, 3, 0.0),
    (OK + b'Keep-Alive: max=9, timeout=10\r\n' + LENGTH, 200, 3, 9.0),
    (b'HTTP/1.1 204 No\r\n', 204, 0, 4.0),
    (b'HTTP/1.1 304 No\r\n' + LENGTH, 304, 0, 4.0),
]

REPLIES = [  # the bytes of replies that others may send; what `send` gives
    (
        'x',
        [
            response(),
            response(b' [ "x" ]\n'),
            response(kind='Application/JSON; charset=utf-8'),
            response(extra='Connection: close\r\n'),
            response(extra='Content-Encoding: identity\r\n'),
            response(status='200'),
            response().replace(b'1.1', b'1.0'),
            OK_JSON.lower().replace(b'http', b'HTTP') + b'content-length:5\r\n\r\n["x"]',
            OK_JSON + b'\r\n["x"]',  # it ends with the connection
            OK_JSON + CODING + b'chunked\r\n\r\n1;a=b\r\n[\r\n04\r\n"x"]\r\n0\r\nY: 1\r\n\r\n',
            b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: <x>\r\n\r\n' + response(),
        ],
    ),
    (7, [response(b'[7]\n')]),
    ((1, 'b', None), [response(b'[\n  1, \n  "b", \n  null\n]\n')]),
    ([1, 2], [response(b'[ [ 1, 2 ] ]')]),
    ((), [response(b' [ ] ')]),
    ('é', [response('["é"]'.encode())]),
    (None, [response(b'[null]\r\n')]),
]

NO_ARRAY = 'the reply is not an array of the returned values'
KIND = 'the reply has Content-Type '
X_BODY = b'\r\n["x"]'
LONG = b'["%b"]' % (b'x' * 250000)

# fmt: off
REFUSED_REPLIES = [  # what the error says; bytes that are no reply
    (NO_VERSION, [b'HTTP/2 200 OK\r\n\r\n', b'HTTP/0.9 200 OK\r\n\r\n']),
    (MALFORMED, [
        b'HTTP/1.1 20 OK\r\n\r\n', b'HTTP/1.1 2000 OK\r\n\r\n', b'HTTP/1.1 600 OK\r\n\r\n',
        b'HTTP/1.1 099 OK\r\n\r\n', b'HTTP/1.1  200 OK\r\n\r\n', b'HTTP/1.1 200 O\0K\r\n\r\n',
        b'ICY 200 OK\r\n\r\n', b'220 smtp ready\r\n', b'SSH-2.0-OpenSSH_9.2\r\n',
        OK + b'X : 1\r\n\r\n',
    ]),
    (NO_LENGTH, [OK_JSON + LENGTH + LENGTH + X_BODY, OK_JSON + b'Content-Length: -5\r\n' + X_BODY]),
    (TWO_LENGTHS, [OK_JSON + LENGTH + CODING + b'chunked\r\n' + X_BODY]),
    (NO_CODING, [OK_JSON + CODING + b'gzip\r\n' + X_BODY]),
    (CUT, [
        b'HTTP/1.1 200', OK_JSON, OK_JSON + b'Content-Length: 9\r\n' + X_BODY,
        OK_JSON + CODING + b'chunked\r\n\r\n5\r\n["x"]\r\n',
    ]),
    ('a chunk is longer than its size', [OK_JSON + CODING + b'chunked\r\n\r\n4\r\n["x"]\r\n']),
    ('the head is over 65536 bytes', [OK_JSON + b'X: %b\r\n' % (b'x' * 1000) * 100]),
    (NO_ARRAY, [response(body) for body in (b'{}', b'7', b'null', b'"[1]"', b'{"0":"x"}')]),
    ('the reply is not JSON: ', [
        response(body) for body in (b'', b'[1', b'["\xff"]', b'[NaN]')
    ] + [OK_JSON + b'Content-Length: 4\r\n' + X_BODY]),
    (KIND + "'text/html'", [response(b'<p>', kind='text/html'), response(kind='text/html')]),
    (KIND + "''", [response(kind=''), response(kind=None)]),
    (KIND + "'application/jsonp'", [response(kind='application/jsonp')]),
    ('the reply is compressed', [response(extra='Content-Encoding: gzip\r\n')]),
]
# fmt: on

TOO_LARGE_REPLIES = [response(LONG), OK_JSON + b'\r\n' + LONG]


class TestReplies:
    """Replies, in memory and from a peer."""

    def check_refused(self, data, kind, message):
        got = []
        with peer(answers(data, got=got)) as address:
            with Friend('app1', address, timeout=TIMEOUT, max_body=250000) as friend:
                with pytest.raises(kind) as caught:
                    friend.send('/echo', 'x')
        error = caught.value
        assert str(error).startswith(f'/echo at {address}: ')
        assert message in str(error)
        assert (error.rule, error.address) == ('/echo', address)
        assert (error.sent, len(got)) == (True, 1)

    @pytest.mark.parametrize('head, status, length, seconds', REPLY_HEADS)
    def test_heads(self, head, status, length, seconds):
        """A legal reply head is understood, also byte by byte and with bytes after it."""
        for step, rest in itertools.product((0, 1, 7), (b'', b'[1]')):
            stream = reader(head + b'\r\n' + rest, step, reply=True)
            reply = stream.head()
            assert (reply.status, reply.length) == (status, length)
            assert reply.keep_alive == pytest.approx(seconds)
            assert unread(stream) == rest

    @pytest.mark.parametrize('value, data', each(REPLIES))
    def test_forms(self, value, data):
        """A reply is understood in every form that HTTP and JSON have for it."""
        assert read_reply(data) == value
        with peer(answers(data)) as address, Friend('app1', address) as friend:
            assert friend.send('/echo') == value

    @pytest.mark.parametrize('message, replies', REFUSED_REPLIES)
    def test_refused(self, message, replies):
        """Malformed replies are a BadReply; the call may have run, and is not repeated."""
        for data in replies:
            assert message in refused(read_reply, data)[1], data
            self.check_refused(data, BadReply, message)

    def test_only_interim(self):
        """If the connection ends after interim replies, the call is lost."""
        with peer(answers(b'HTTP/1.1 100 Continue\r\n\r\n' * 100)) as address:
            with Friend('app1', address) as friend, failing(ConnectionLost, sent=True):
                friend.send('/echo')

    @pytest.mark.parametrize('data', TOO_LARGE_REPLIES, ids=['with length', 'without'])
    def test_too_large(self, data):
        """A reply over max_body is TooLarge: the call has run."""
        assert 'over max_body=250000' in refused(read_reply, data)[1]
        self.check_refused(data, TooLarge, 'over max_body=250000')


ORIGINAL = """
from microservices_connector.Interservices import Microservice
from werkzeug.serving import make_server
Micro = Microservice('original')

class Sample:
    name = 'test'
    def __init__(self, value):
        self.value = value
    def method(self):
        pass

@Micro.typing('/several')
@Micro.reply
def several(a, key):
    return a, key, None

@Micro.typing('/list')
@Micro.reply
def list1(a, key):
    a.extend(key)
    return a

@Micro.typing('/class', token='123456')
@Micro.reply
def class1(a):
    return Sample(a)

@Micro.typing('/none')
@Micro.reply
def none():
    pass

server = make_server('127.0.0.1', 0, Micro.app)
print(server.port, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope='module')
def original():
    """microservices_connector itself, where it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return pytest.importorskip('microservices_connector.Interservices')


class TestOriginal:
    """The wire is that of microservices_connector, where it is installed."""

    def test_its_friend_calls_us(self, original):
        """Its Friend gets from our service what it would get from its own."""
        service = make()
        service.typing('/several')(lambda a, key: (a, key, None))
        service.typing('/class', token='123456')(lambda a: Sample(a))
        service.typing('/none', methods=('PUT', 'POST'))(lambda *args, **kwargs: None)
        with serving(service):
            friend = original.Friend('app1', service.address, {}, {})
            assert friend.send('/echo', 'é') == 'é'
            assert friend.send('/echo', [1, {'a': None}]) == [1, {'a': None}]
            assert friend.send('/several', {'k': [1]}, key='b') == [{'k': [1]}, 'b', None]
            assert friend.send('/none', 1, k=2) is None
            assert friend.send('/echo', Holder(value=3)) == {'value': 3}
            assert friend.send('/class', 1) is None  # its way to say Forbidden
            assert friend.lastreply.status_code == 401
            friend.setRule('/class', token='123456')
            assert friend.send('/class', [1]) == json.loads(SAMPLE % (('[1]',) * 3))
            friend.setRule('/none', method='PUT')
            assert friend.send('/none') is None
            assert friend.lastreply.status_code == 200

    def test_we_call_its_service(self, original):
        """Our Friend gets from its service what it would get from ours."""
        with running('-W', 'ignore', '-c', ORIGINAL) as process:
            address = f'127.0.0.1:{int(process.stdout.readline())}'
            with Friend('original', address, timeout=TIMEOUT) as friend:
                friend.wait(TIMEOUT)
                assert friend.send('/several', 'é', key={'k': [1]}) == ('é', {'k': [1]}, None)
                assert friend.send('/list', [1], key=[2.5]) == [1, 2.5]
                assert friend.send('/none') is None
                with pytest.raises(UnknownRule):
                    friend.send('/nothing')
                with pytest.raises(RemoteError):
                    friend.send('/list')
                friend.setRule('/class', token='123456')
                told = friend.send('/class', {'a': Sample(1)})
                assert told == {'name': 'test', 'value': {'a': json.loads(SAMPLE % (1, 1, 1))}}

    def test_what_we_do_otherwise(self, original):
        """It lets wrong tokens in, fails with None, and more that the README says of it."""
        service = original.Microservice('moving')
        service.typing('/post', methods=['POST'])(lambda: 'text')
        assert service.app.test_client().post('/post').status_code == 405
        with running('-W', 'ignore', '-c', ORIGINAL) as process:
            address = f'127.0.0.1:{int(process.stdout.readline())}'
            friend = original.Friend('original', address)
            assert friend.send('/nothing') is friend.send('/list') is None  # 404, 500
            assert friend.send('/several', {'b': 1, 'a': 2}, key=3) == [{'a': 2, 'b': 1}, 3, None]
            assert list(friend.lastMessage[0]) == ['a', 'b']
            friend.setRule('/class', token='wrong')
            assert friend.send('/class', 1) == {'name': 'test', 'value': 1}
            assert original.Friend('another', address).token is friend.token

    def test_names(self, original):
        """It has each name, with those arguments, that the README lists as its own."""
        things = {**vars(sys.modules['microservices_connector']), **vars(original)}
        things['Micro'] = original.Microservice('moving')
        things['aFriend'] = original.Friend('moving', '127.0.0.1:5000')
        for code in moving(0):
            check_name(code, things)


# ------------------------------------------------------------------------------------------ time

SLOW_REPLIES = [  # how they begin, and go on
    (b'', b''),
    (b'', b'\r\n'),
    (OK + b'X: ', b'x'),
    (OK_JSON + b'\r\n', b'['),
    (OK_JSON + b'\r\n["x"]', b''),  # as if whole: its end is that of the connection
    (OK_JSON + b'\r\n["x"]', b' '),
]

TOO_SLOW = [b'', HEAD, request()[:-1], CHUNKED_HEAD + b'5\r\n', HEAD + b'Drip: ']


@pytest.mark.usefixtures('each_way')
class TestTimeOfTheService:
    """How long a service waits for its clients."""

    def check_too_slow(self):
        """A client that is silent, stops or drips gets a 408; others are served meanwhile."""
        with serving(read_timeout=0.2) as service, contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(service)) for _ in TOO_SLOW]
            for sock, start in zip(socks, TOO_SLOW):
                sock.sendall(start)
            until_then = time.monotonic() + TIMEOUT
            while not select.select(socks[-1:], (), (), 0.02)[0]:
                assert time.monotonic() < until_then
                socks[-1].sendall(b'x')
                assert statuses(raw(service, request())) == [200]
            assert [statuses(receive(sock)) for sock in socks] == [[408]] * len(TOO_SLOW)
        assert {args for args, _ in service.ran} == {('x',)}

    def check_too_slow_over_tls(self, tls_server, tls_client):
        """A client that is too slow, or idle, also gets its 408 over TLS."""
        service = make(read_timeout=0.3, idle_timeout=0.1)
        tls_client.options |= 0x80  # OP_IGNORE_UNEXPECTED_EOF: a bare end is an end, too
        sent = [request(), b'', request()[:20], request()[:-2]]
        with service.start(port=0, host='127.0.0.1', ssl_context=tls_server):
            with contextlib.ExitStack() as stack:
                socks = [
                    tls_client.wrap_socket(connect(service), server_hostname='localhost')
                    for _ in sent
                ]
                for sock, data in zip(socks, sent):
                    stack.enter_context(sock).sendall(data)
                assert [statuses(receive(sock)) for sock in socks] == [[200, 408]] + [[408]] * 3

    def check_silent_before_tls(self, tls_server):
        """A client that begins no TLS, or only begins it, is cut off."""
        service = make(read_timeout=0.1)
        with service.start(port=0, host='127.0.0.1', ssl_context=tls_server), soon():
            sent = b'', b'\x16\x03'
            assert call_all(2, lambda i: raw(service, sent[i], end=False)) == [b'', b'']
            until(lambda: not connections_of(service))

    def check_silent_after_much(self):
        """A client that stops has read_timeout for its silence, however much it sent before."""
        head = HEAD + b'Content-Length: 8000000\r\n\r\n'
        with serving(read_timeout=0.15) as service:
            start = time.monotonic()
            assert statuses(raw(service, head + b'x' * 5000000, end=False)) == [408]
            assert time.monotonic() - start < 1.5  # each 256 KiB of it may take as long

    def check_idle_timeout(self):
        """A connection that is idle for too long gets a 408 that says so, and is closed."""
        with serving(idle_timeout=0.05) as service:
            got = raw(service, request(), end=False)
        assert statuses(got) == [200, 408]
        assert b'idle' in got

    def check_408_after_head(self):
        """A 408 that follows the reply to HEAD has a body."""
        with serving(idle_timeout=0.05) as service:
            got = raw(service, request(b'', '/', 'HEAD'), end=False)
        assert statuses(got) == [200, 408]
        assert json.loads(got.rpartition(b'\r\n\r\n')[2])['status'] == 408

    def test_late_clients(self, tls_server, tls_client):
        """Clients that are late or idle in many ways, all at once: what the checks above say."""
        checks = [
            self.check_too_slow,
            functools.partial(self.check_too_slow_over_tls, tls_server, tls_client),
            functools.partial(self.check_silent_before_tls, tls_server),
            self.check_silent_after_much,
            self.check_idle_timeout,
            self.check_408_after_head,
        ]
        call_all(len(checks), lambda number: checks[number]())

    def test_long_call(self, monkeypatch):
        """A function may take far longer than its peer: it is answered, and the next one, too."""
        linger_briefly(monkeypatch)
        service = service_of(threading.Event().wait, read_timeout=0.05)
        with calling(service) as (_, friend):
            assert [friend.send('/f', 0.2), friend.send('/f', 0)] == [False, False]

    def test_end_of_an_old_wait(self):
        """What would end a wait that is over ends no call: the connection is closed after it."""
        with calling(holding(counting(make()))) as (service, friend):
            assert friend.send('/count') == 1
            (connection,) = connections_of(service)
            until(lambda: connection.state == 'idle')
            with background(friend.send, '/hold') as call:
                assert service.held.acquire(timeout=TIMEOUT)
                end_wait(connection)
                service.release.set()
                assert call.result(TIMEOUT) == 'held'
            assert friend.send('/count') == 1  # on a new connection

    def test_large_body_has_time(self):
        """A body that keeps coming is read, however long it takes in all."""
        body = b'{"args":["%b"]}' % (b'x' * 3000000)
        data = memoryview(request(body, extra=b'Connection: close\r\n'))
        with serving(read_timeout=0.1) as service, connect(service) as sock:
            for start in range(0, len(data), 300000):
                sock.sendall(data[start : start + 300000])
                threading.Event().wait(0.015)
            assert statuses(receive(sock)) == [200]

    @pytest.mark.parametrize('seconds, told', [(7, b'7'), (7.9, b'7'), (0.5, b'1')])
    def test_idle_timeout_is_announced(self, seconds, told):
        """A reply tells for how many whole seconds the connection is kept, at least 1."""
        with serving(idle_timeout=seconds) as service:
            assert b'\r\nKeep-Alive: timeout=%b\r\n' % told in raw(service, request())

    def test_reply_never_read(self, monkeypatch):
        """A client that does not take its reply is cut off, and its thread ends."""
        linger_briefly(monkeypatch)
        service = make(read_timeout=0.05)
        service.typing('/large')(lambda: 'x' * 8000000)
        with serving(service):
            before = resources()
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.settimeout(TIMEOUT)
                sock.connect(('127.0.0.1', port_of(service)))
                sock.sendall(request(b'', '/large'))
                until(lambda: connections_of(service))
                until(lambda: not connections_of(service))
                assert len(receive(sock)) < 8000000
            until_released(before)

    def test_default_timeout(self, monkeypatch):
        """A service obeys its own limits, and ignores socket.setdefaulttimeout."""
        with serving() as service:
            before = socket.getdefaulttimeout()
            socket.setdefaulttimeout(0.05)
            try:
                with connect(service) as sock:
                    sock.settimeout(TIMEOUT)
                    sock.sendall(request()[:-1])
                    assert not select.select([sock], [], [], 0.1)[0]  # nor was it closed
                    sock.sendall(request()[-1:])
                    assert statuses(sock.recv(65536)) == [200]
            finally:
                socket.setdefaulttimeout(before)


@pytest.mark.usefixtures('each_way')
class TestTimeOfACall:
    """The timeout of a call is for all of it."""

    def failed(self, address, timeout=0.05):
        """How a call with *timeout* fails, before the peer does."""
        with Friend('app1', address, timeout=timeout) as friend, soon():
            with pytest.raises(MicroconnectError) as caught:
                friend.send('/echo', 'x')
        return caught.value

    def test_slow_reply(self):
        """A peer that never answers, or drips, makes a CallTimeout; the call may have run."""

        def fails(number):
            with peer(drip(*SLOW_REPLIES[number])) as address:
                error = self.failed(address, timeout=0.15)
            assert type(error) is CallTimeout, SLOW_REPLIES[number]
            assert str(error).startswith(f'/echo at {address}: no full reply within timeout=0.15 s')
            assert isinstance(error, TimeoutError)
            assert (error.status, error.sent) == (None, True), SLOW_REPLIES[number]

        call_all(len(SLOW_REPLIES), fails)

    def test_never_accepted(self):
        """A peer that accepts no connection is Unreachable once the time is over."""
        with full() as address:
            error = self.failed(address)
        assert (type(error), error.sent) == (Unreachable, False)

    def test_never_accepted_by_many(self, monkeypatch):
        """All the addresses of a name share the time."""
        with full() as address:
            several_addresses(monkeypatch)
            start = time.monotonic()
            error = self.failed(address, timeout=0.2)
        assert time.monotonic() - start < 0.6  # four times the timeout would be more
        assert (type(error), error.sent) == (Unreachable, False)

    @pytest.mark.skipif(sys.platform != 'linux', reason='127.0.0.2 may not exist')
    def test_silent_address_of_a_name(self, monkeypatch):
        """A silent address of a name leaves time for the other addresses of the name."""
        look_up = socket.getaddrinfo

        def both(host, *args, **kwargs):
            hosts = ('127.0.0.1', '127.0.0.2') if host == 'localhost' else (host,)
            return [found for host in hosts for found in look_up(host, *args, **kwargs)]

        monkeypatch.setattr(socket, 'getaddrinfo', both)
        with full() as silent:
            port = int(silent.rpartition(':')[2])
            with make().start(port, '127.0.0.2'):
                with Friend('app1', f'localhost:{port}', timeout=0.4) as friend:
                    assert friend.send('/echo', 1) == 1

    def test_never_read(self):
        """A call that does not leave in time is a CallTimeout, and did not run."""

        def call(kept):
            def script(sock, number, over):
                if kept:
                    call_on(sock)
                    sock.sendall(response())
                over.wait(TIMEOUT)

            with peer(script) as address, Friend('app1', address) as friend:
                if kept:
                    assert friend.send('/echo') == 'x'
                friend.setRule('/echo', timeout=0.2)
                with soon(), pytest.raises(CallTimeout) as caught:
                    friend.send('/echo', 'x' * 8000000)
            assert caught.value.sent is False or os.name == 'nt'  # which may take it whole

        call_all(2, call)

    @needs_timers
    def test_signals(self):
        """Signals that arrive all the time do not extend the timeout."""
        if sys.implementation.name == 'pypy':
            pytest.skip('after each signal, PyPy begins the timeout of a socket anew')
        with handling(signal.SIGALRM, lambda *_: None):
            with peer(drip(b'', b'')) as address:
                signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
                assert type(self.failed(address)) is CallTimeout
            # Nor on a connection that another thread has used before.
            with calling(holding(make())) as (service, friend):
                friend.setRule('/hold', timeout=0.05)
                with background(friend.send, '/echo', 1) as call:
                    assert call.result(TIMEOUT) == 1
                with soon(), pytest.raises(CallTimeout):
                    friend.send('/hold')
                service.release.set()

    def test_within(self):
        """`within` gives calls a time of their own, whatever setRule says; all else is shared."""
        service = holding(make(token={'/echo': SECRET}))
        with calling(service) as (_, friend):
            friend.setRule('/hold', timeout=TIMEOUT)
            friend.setRule('/echo', token=SECRET)
            hasty = friend.within(0.05)
            assert repr(hasty) == repr(friend)
            assert hasty.send('/echo', 1, within=2, timeout=3) == 1
            assert service.ran == [((1,), {'within': 2, 'timeout': 3})]
            assert len(links_of(hasty)) == len(links_of(friend)) == 1
            for call in (hasty.send, lambda rule: asyncio.run(hasty.asend(rule))):
                with pytest.raises(CallTimeout):
                    call('/hold')
            service.release.set()
            assert hasty.within(TIMEOUT).send('/hold') == friend.send('/hold') == 'held'
            for wrong in (0, -1, '1', None):
                with pytest.raises(ValueError, match='timeout is a number'):
                    friend.within(wrong)
            patient = hasty.within(TIMEOUT)
            service.token = 'new'
            friend.setRule('/echo', token='new')
            assert patient.send('/echo', 1) == 1
            with pytest.raises(AttributeError, match="'Friend' object has no attribute 'sned'"):
                patient.sned('/echo')

    def test_set_rule(self):
        """A rule may have a timeout of its own, shorter or longer than the friend's."""
        with calling(holding(make()), timeout=0.001) as (service, friend):
            friend.setRule('/hold', timeout=TIMEOUT)
            with background(friend.send, '/hold') as call:
                assert service.held.acquire(timeout=TIMEOUT)
                service.release.set()
                assert call.result(TIMEOUT) == 'held'

    @pytest.mark.parametrize('first', ['main', 'other'])
    @pytest.mark.parametrize('second', ['main', 'other'])
    def test_on_a_kept_connection(self, first, second):
        """On a kept connection each call has its own timeout, whichever threads make them."""

        def send(thread, *args):
            if thread == 'main':
                return friend.send(*args)
            with background(friend.send, *args) as call:
                return call.result(TIMEOUT)

        with calling(holding(make())) as (service, friend):
            friend.setRule('/hold', timeout=0.02)
            assert send(first, '/echo', 1) == 1
            with soon(), pytest.raises(CallTimeout):
                send(second, '/hold')
            service.release.set()


# -------------------------------------------------------------------------------------------- rules

# fmt: off
PATHS = [
    '/simple', '/é', '/a b', '/日本/\U0001f600', '/a%20b', '/100%', '/a?b=c&d', '/a#b', '/a//b/',
    '/a/../b', '/a\\b"<>{}|^`', "/-._~!$&'()*+,;=:@", '//host/a', '/\r\nX: 1', '/\0',
]
# fmt: on

EXACT = [  # status; targets of requests
    (200, ['/%65cho', '/ech%6F', '/ech%6f', '/echo?', 'http://else:1/echo']),
    (404, ['/echo/', '/Echo', '//echo', '/./echo', '/echo?x=1', '/%2565cho']),
    (400, ['/%ff', '/%6', '/echo#x']),
]

NO_RULE_HERE = [  # rule; what the error says
    ('/ech', "no rule '/ech' here: did you mean '/echo'?"),
    ('/Fail', "no rule '/Fail' here: did you mean '/fail'?"),
    ('/zzz', "no rule '/zzz' here: is it registered under that name?"),
    ('/', "no rule '/' here: is it registered under that name?"),
    ('/echo?x=1', "no rule '/echo?' here: the arguments of a call are in its body, not in a query"),
]


class TestRules:
    @pytest.mark.parametrize(
        'decorate',
        [
            lambda s, f: s.typing('/f')(s.reply(f)),
            lambda s, f: s.reply(s.typing('/f')(f)),
            lambda s, f: s.route('/f')(s.reply(f)),
            lambda s, f: s.typing('/f')(f),
            lambda s, f: s.route('f')(f),
        ],
        ids=['typing, reply', 'reply, typing', 'route', 'typing alone', 'without slash'],
    )
    def test_decorators(self, decorate):
        """Either order, or `typing` alone, registers the function and returns it unchanged."""
        service = Microservice('app1')

        def add(a, b=1):
            return a + b

        assert decorate(service, add) is add
        assert add(1) == 2
        assert Friend('app1', service).send('/f', 1, b=2) == 3
        assert Friend('app1', service).send('f', 1) == 2

    def test_reply_alone_registers_nothing(self):
        """`reply` alone registers no rule."""
        service = Microservice('app1')
        service.reply(make)
        with pytest.raises(UnknownRule):
            Friend('app1', service).send('/make')

    def test_one_function_under_two_rules(self):
        """A function may have several rules."""
        service = Microservice('app1')
        service.typing('/a')(service.typing('/b')(lambda: 7))
        assert [Friend('app1', service).send(rule) for rule in ('/a', 'b')] == [7, 7]

    @pytest.mark.parametrize('rules', [PATHS[:7], PATHS[7:]], ids=['words', 'signs'])
    def test_any_rule(self, rules):
        """A rule may hold any character, over a socket and in process."""
        service = Microservice('app1')
        for rule in rules:
            service.typing(rule)(functools.partial(str, rule))
        with serving(service), Friend('app1', service.address) as friend:
            assert [friend.send(rule) for rule in rules] == rules
            assert [Friend('app1', service).send(rule) for rule in rules] == rules

    @pytest.mark.parametrize('status, target', each(EXACT))
    def test_exact_match(self, service, status, target):
        """A rule matches exactly, once its percent-encoding is decoded."""
        assert statuses(raw(service, request(path=target))) == [status]

    @pytest.mark.parametrize('rule, hint', NO_RULE_HERE)
    def test_unknown_rule(self, rule, hint):
        """An unknown rule is 404, with the nearest known one."""
        with pytest.raises(UnknownRule) as caught:
            Friend('app1', make()).send(rule)
        assert str(caught.value) == f'{rule} at app1 (in process): {hint}'
        assert caught.value.status == 404

    def test_hint_names_no_guarded_rule(self):
        """The hint offers open rules only, however a rule is guarded."""
        service = Microservice('app1', token={'/secret1': SECRET})
        for rule, token in (('/secret1', None), ('/secret2', SECRET), ('/secre', None)):
            service.typing(rule, token=token)(fits)
        for path in ('/secret1x', '/secret2x', '/secret', '/secrex'):
            problem = ask(service, path=path)[2]
            assert problem['detail'] == f"no rule '{path}' here: did you mean '/secre'?"
        service.token['/secre'] = SECRET
        assert 'did you mean' not in ask(service, path='/secrex')[2]['detail']
        del service.token['/secre']
        service.token = SECRET
        for path in ('/secret1x', '/secrex'):
            detail = ask(service, path=path)[2]['detail']
            assert detail == f'no rule {path!r} here: is it registered under that name?'
            body = json.dumps({'token': SECRET}).encode()
            assert ask(service, body, path=path)[2]['detail'] == detail

    @pytest.mark.parametrize('count, is_hinted', [(100, True), (101, False), (5000, False)])
    def test_hint_among_many_rules(self, count, is_hinted):
        """Names are compared with up to 100 open rules, not counting guarded ones."""
        service = Microservice('app1')
        for number in range(count):
            service.typing(f'/rule{number}')(fits)
        for number in range(50):
            service.typing(f'/guarded{number}', token=SECRET)(fits)
        detail = ask(service, path='/Rule7')[2]['detail']
        assert ("did you mean '/rule7'" in detail) is is_hinted
        assert ('is it registered' in detail) is not is_hinted

    @pytest.mark.parametrize('method', ['GET', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'POST'])
    def test_methods(self, method):
        """A rule answers the methods it lists, and a friend uses the one set by `setRule`."""
        service = Microservice('app1')
        service.typing('/f', methods=(method,))(lambda *args, **kwargs: [args, kwargs])
        with calling(service) as (_, friend):
            friend.setRule('f', method=method)
            assert friend.send('/f', 1, k='é') == [[1], {'k': 'é'}]
            assert friend.send('f') == [[], {}]

    def test_all_methods(self):
        """A rule may answer every method."""
        service, methods = (
            Microservice('app1'),
            ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'],
        )
        service.typing('/f', methods=methods)(lambda: 7)
        assert [ask(service, path='/f', method=method)[0] for method in methods] == [200] * 6

    def test_get_without_body(self):
        """A rule opened to GET needs neither a body nor a content type."""
        service = Microservice('app1')
        service.typing('/f', methods=['GET', 'POST'])(lambda: 7)
        assert service.answer('GET', '/f', {}) == (200, tuple(REPLY.items()), b'[7]')
        assert service.answer('GET', '/f', {}, b'{}')[0] == 415

    def test_wrong_method(self):
        """A method that the rule does not list is 405, and Allow names those that it does."""
        service = make()
        service.typing('/f', methods=('GET', 'PUT'))(make)
        status, headers, problem = ask(service, path='/f')
        assert (status, headers['Allow']) == (405, 'GET, PUT')
        assert problem['detail'].startswith('/f answers GET, PUT, not POST: call it by GET')
        for method in ('GET', 'HEAD', 'OPTIONS'):
            assert ask(service, method=method)[1]['Allow'] == 'POST'
        with pytest.raises(UnknownRule) as caught:
            Friend('app1', service).send('/f')
        assert caught.value.status == 405
        assert service.ran == []

    def test_unknown_method(self):
        """A method that no rule can have is 501."""
        for method in ('BREW', 'post', 'CONNECT', 'x' * 99):
            status, _, problem = ask(make(), method=method)
            assert status == 501
            assert problem['detail'] == f'method {method[:20]!r} is not one that rules answer'


def wrong_tokens(token):
    """Bodies that do not hold *token*."""
    wrong = [None, '', 'wrong', token[:-1], token + 'x', token + '\0', ' ' + token, token.upper()]
    wrong += ['None', 'null', 7, 0, True, [token], {'token': token}, 'é', '\ud800']
    bodies = [json.dumps({'args': [1], 'token': given}).encode() for given in wrong]
    return bodies + [b'', b'{}', b'{"args": [1]}', json.dumps({'args': [token]}).encode()]


class TestTokens:
    @pytest.mark.parametrize('token', [SECRET, 'ключ-é', '\ud800x', 'None'], ids=ascii)
    def test_wrong_tokens(self, token):
        """A wrong token is 401 with WWW-Authenticate, and the function never runs."""
        service = make(token={'/echo': token})
        for body in wrong_tokens(token):
            given = json.loads(body or '{}').get('token')
            if given == token:
                continue  # that one is right
            status, headers, problem = ask(service, body)
            assert (status, headers['WWW-Authenticate']) == (401, 'Token realm="microconnect"')
            none, wrong = 'needs a token, and none was given', 'got a wrong token'
            said = none if given is None else wrong
            assert problem['detail'] == f'/echo {said}'
        assert service.ran == []
        assert Friend('app1', service, {'/echo': token}).send('/echo', 1) == 1
        assert service.ran == [((1,), {})]

    def test_ways_to_give_a_token(self):
        """A token may be given to the service, to the rule, and at any time later."""
        service = make(token={'/echo': 'a', 'fail': 'b'})
        service.typing('/f', token='c')(lambda x: x)
        service.typing('/g')(lambda x: x)
        assert is_guarded(service, '/echo', 'a')
        assert is_guarded(service, '/fail', 'b')
        assert is_guarded(service, '/f', 'c')
        assert not is_guarded(service, '/g')
        service.token['/g'] = 'd'
        service.token['f'] = 'e'
        assert is_guarded(service, '/g', 'd')
        assert is_guarded(service, '/f', 'e')
        assert not is_guarded(service, '/f', 'c')
        service.token.update({'g': 'h'})
        assert is_guarded(service, '/g', 'h')
        del service.token['g'], service.token['/echo']
        assert ask(service, b'{"args": [1]}', '/g')[0] == 200
        assert ask(service, b'{"args": [1]}', '/echo')[0] == 200

    def test_one_token_for_all(self):
        """One string guards every rule, even later ones; the own token of a rule comes first."""
        service = make(token='all')
        service.typing('/late')(lambda x: x)
        service.typing('/own', token='own')(lambda x: x)
        assert is_guarded(service, '/echo', 'all')
        assert is_guarded(service, '/late', 'all')
        assert is_guarded(service, '/own', 'own')
        assert not is_guarded(service, '/own', 'all')
        friend = Friend('app1', service, 'all')
        friend.setRule('own', token='own')
        assert [friend.send(rule, 1) for rule in ('/echo', '/late', '/own')] == [1, 1, 1]

    def test_turned_over(self):
        """Tokens are replaced side by side: at no moment is a caller refused."""
        service = make(token={'/echo': 'old'})
        friend = Friend('app1', service, token='old')
        steps = [
            lambda: service.token.update({'/echo': ['new', 'old']}),
            lambda: setattr(friend, 'token', ['new', 'old']),
            lambda: service.token.update({'/echo': 'new'}),
            lambda: setattr(friend, 'token', 'new'),
        ]
        for step in steps:
            assert friend.send('/echo', 1) == 1
            step()
        assert friend.send('/echo', 1) == 1
        assert is_guarded(service, '/echo', 'new')

    @pytest.mark.parametrize('tokens', [['one', 'two'], ('one', 'two')], ids=['list', 'tuple'])
    def test_several(self, tokens):
        """A service takes any of several tokens, and a friend sends the first, wherever given."""
        ways = [Microservice('app1'), Microservice('app1', token=tokens)]
        ways += [Microservice('app1', token={'/f': tokens})]
        for number, service in enumerate(ways):
            service.typing('/f', **({} if number else {'token': tokens}))(int)
            for given in ('one', 'two'):
                assert is_guarded(service, '/f', given)
                assert Friend('app1', service, {'/f': given}).send('/f') == 0
        service = make(token='one')
        friends = [Friend('app1', service, given) for given in (tokens, {'/echo': tokens}, None)]
        friends[2].setRule('/echo', token=tokens)
        assert [friend.send('/echo', 1) for friend in friends] == [1, 1, 1]
        service.token = 'two'
        for friend in friends:
            with pytest.raises(Forbidden):
                friend.send('/echo')

    def test_replaced(self):
        """A new `token` replaces all tokens, except those that decorators gave."""
        service = make(token={'/fail': 'a'})
        service.typing('/f', token='b')(lambda x: x)
        service.token = {'echo': 'c'}
        assert is_guarded(service, '/echo', 'c')
        assert is_guarded(service, '/f', 'b')
        assert dict(service.token) == {'/echo': 'c'}
        service.token = {'/f': 'd'}
        assert is_guarded(service, '/f', 'd')
        service.token = make(token='every').token  # one for all stays one for all
        assert is_guarded(service, '/echo', 'every')
        friend = Friend('app1', service)
        friend.token = 'every'
        assert friend.send('/echo', 1) == 1

    def test_replaced_meanwhile(self):
        """A rule with a token from its decorator stays guarded while `token` is replaced."""
        service, got = make(), []
        service.typing('/guarded', token=SECRET)(fits)

        def call(frame, *_):
            if frame.f_code.co_filename != microconnect.__file__:
                return None
            got.append(ask(service, b'{"args":[1]}', '/guarded')[0])
            return call

        before = sys.gettrace()
        sys.settrace(call)  # at every line of the module, that is
        try:
            service.token = {'/echo': 'new'}
        finally:
            sys.settrace(before)
        assert set(got) == {401}

    @pytest.mark.parametrize('replaced_by', [None, {'/echo': 'new'}, {'/f': 'new'}, 'new'])
    def test_replaced_while_a_rule_is_added(self, replaced_by):
        """A rule added with a token is never open, whenever another thread replaces `token`."""

        def add(line):
            service, lines, got = make(token={'/f': 'old'}), itertools.count(), []

            def look(frame, *_):
                if frame.f_code.co_filename != microconnect.__file__:
                    return None
                number = next(lines)
                if number == line:
                    service.token = replaced_by
                if number >= line:  # before that, all is as in the first round
                    got.append(ask(service, b'{"args":[1]}', '/f')[0])
                return look

            before = sys.gettrace()
            sys.settrace(look)  # at every line of the module, that is
            try:
                service.typing('/f', token=SECRET)(fits)
            finally:
                sys.settrace(before)
            assert set(got) <= {404, 401} and ask(service, path='/f')[0] == 401
            return next(lines) > line  # there was such a line

        lines = itertools.count(-1)  # where nothing is replaced
        while add(next(lines)):
            pass
        assert next(lines) > 10

    def test_no_copy(self):
        """Tokens can be read like a dict, but have no `copy`, which would lose the checks."""
        service = make(token={'/echo': SECRET})
        assert dict(service.token) == {'/echo': SECRET}
        assert not hasattr(service.token, 'copy')

    def test_ways_a_friend_gives_it(self):
        """A friend gives a rule's token from its dict, its string, or `setRule`."""
        service = make(token='t')
        friends = [Friend('app1', service, token=t) for t in ('t', {'/echo': 't'}, {'echo': 't'})]
        friends += [Friend('app1', service), Friend('app1', service, 'wrong')]
        friends[3].setRule('/echo', token='t')
        friends[4].setRule('echo', None, 't')
        friends.append(Friend('app1', service))
        friends[5].token['/echo'] = 't'
        assert [friend.send('/echo', 7) for friend in friends] == [7] * 6

    def test_nothing_is_shared(self):
        """Two services and two friends share no rule and no token, not even the caller's dict."""
        mine = {'/echo': 'a'}
        one, two = make(token=mine), make(token=mine)
        one.token['/echo'] = 'b'
        one.typing('/f', token='c')(lambda: 1)
        assert mine == {'/echo': 'a'}
        assert dict(two.token) == mine
        assert ask(two, path='/f')[0] == 404
        assert dict(Microservice('app2').token) == {}
        friends = [Friend('app1', one), Friend('app1', one)]
        friends[0].setRule('/echo', token='b', method='PUT')
        friends[0].token['/f'] = 'c'
        assert dict(friends[1].token) == {}
        with pytest.raises(Forbidden):
            friends[1].send('/f')

    def test_never_shown(self, caplog):
        """No log line, repr, error or reply holds a token."""
        caplog.set_level(logging.DEBUG)
        other, shown = 'an0ther-token', []
        service = make(token=SECRET, debug=True)
        service.token['/fail'] = other

        def once(address, token, **options):
            with Friend('app1', address, token, **options) as friend:
                friend.send('/echo')

        bad_replies = answers(response(b'{}'), b'HTTP/9 x\r\n\r\n')
        with serving(service), peer(bad_replies) as bad:
            with Friend('app1', service.address, SECRET) as friend:
                friend.setRule('/fail', token=other)
                friend.setRule('/wrong', token=other)
                for call in (
                    lambda: friend.send('/fail', 'ValueError'),
                    lambda: friend.send('/fail', 'KeyError', too='many'),
                    lambda: friend.send('/wrong'),
                    lambda: friend.send('/echo', threading.Lock()),
                    lambda: friend.send('/echo', math.nan),
                    lambda: once(service.address, other),
                    lambda: once(bad, SECRET),
                    lambda: once(bad, SECRET),
                    lambda: once('127.0.0.1:1', SECRET, timeout=1),
                    lambda: once(service.address, SECRET, max_body=9),
                    lambda: friend.setRule('/7', token=[SECRET, 7]),
                    lambda: service.token.update({'/f': {SECRET}}),
                    lambda: service.typing('/f', token=(SECRET, '')),
                ):
                    with pytest.raises((MicroconnectError, TypeError)) as caught:
                        call()
                    shown += [str(caught.value), repr(caught.value), repr(vars(caught.value))]
                bodies = [b'"' + SECRET.encode(), b'{"token": "%b"' % SECRET.encode(), b'"' * 9]
                asked = [request(body) for body in bodies]
                asked += [b'%b HTTP/1.1\r\n\r\n' % SECRET.encode()]
                asked += [request(path=f'/echo?token={SECRET}')]
                shown += [raw(service, data).decode() for data in asked]
                for value in (service, friend, service.token, friend.token):
                    shown += [str(value), repr(value), pprint.pformat(value), f'{value}']
        shown.append(caplog.text)
        assert len(shown) > 40
        assert 'refused 401' in caplog.text and 'refused 404' in caplog.text
        assert not [text for text in shown if SECRET in text or other in text]


def fits(a, b=1, *, c=2):
    return [a, b, c]


def raises_inside(a):
    raise TypeError('inside')


def calls_itself(a):
    return calls_itself()


def yields(a):
    yield a
    raise TypeError('inside')


class Methods:
    def method(self, a):
        return a

    def __call__(self, a):
        return a


def through(inner):
    """A decorator's function around *inner*."""

    @functools.wraps(inner)
    def wrapper(*args, **kwargs):
        return inner(*args, **kwargs)

    return wrapper


def noting(ran):
    """A function of one or two arguments that notes its calls."""

    def function(a, b=1):
        ran.append(a)

    return function


def later(ran):
    """The same, async."""

    async def function(a, b=1):
        await asyncio.sleep(0)
        ran.append(a)

    return function


def with_self(ran):
    """The same as a method."""

    async def method(self, a, b=1):
        ran.append(a)

    return method


def called_as(ran, base=object, **members):
    """A class with these members, which note their calls."""
    return type('Called', (base,), {name: member(ran) for name, member in members.items()})


DECORATED = {  # what is made around a function that notes its calls
    'plain': noting,
    'wraps': lambda ran: through(noting(ran)),
    'wraps, twice': lambda ran: through(through(noting(ran))),
    'lru_cache': lambda ran: functools.lru_cache(maxsize=None)(noting(ran)),
    'singledispatch': lambda ran: functools.singledispatch(noting(ran)),
    'partial': lambda ran: functools.partial(noting(ran)),
    'partial of wraps': lambda ran: functools.partial(through(noting(ran))),
    'class': lambda ran: called_as(ran, __init__=lambda ran: lambda self, a, b=1: ran.append(a)),
    'object': lambda ran: called_as(ran, __call__=lambda ran: lambda self, a, b=1: ran.append(a))(),
    'static': lambda ran: called_as(ran, get=lambda ran: staticmethod(noting(ran))).get,
    'async': later,
    'async wraps': lambda ran: through(later(ran)),
    'async partial': lambda ran: functools.partial(later(ran)),
    'async object': lambda ran: called_as(ran, __call__=with_self)(),
}

BAD_ARGUMENTS = [  # args, kwargs that do not fit
    ((), {}),
    ((1, 2, 3), {}),
    ((1,), {'d': 1}),
    ((1,), {'a': 1}),
    ((), {'b': 1}),
    ((1,), {'\ud800': 1}),
    ((1,), {'self': 1}),
]

CONTENT_TYPES = [  # status; content types
    (200, ['application/json', 'application/json; charset=utf-8', 'Application/JSON ;x']),
    (415, ['', 'text/plain', 'application/x-www-form-urlencoded', 'application/jsonx']),
    (415, ['multipart/form-data; x=application/json', 'text/plain, application/json']),
]

BROWSERS = [  # Host, Origin, Sec-Fetch-Site, whether it may call
    ('localhost:5000', 'http://localhost:5000', None, True),
    ('localhost', 'http://localhost', 'same-origin', True),
    ('127.0.0.1:5000', 'http://127.0.0.1:5000', 'same-origin', True),
    ('192.168.1.7:5000', 'http://192.168.1.7:5000', None, True),
    ('[::1]:5000', 'http://[::1]:5000', None, True),
    ('localhost:5000', 'https://localhost:5000', None, True),
    ('app1.internal:5000', None, None, True),
    ('localhost:5000', None, 'same-origin', True),
    ('localhost:5000', None, 'none', True),
    ('localhost:5000', 'http://evil.example', None, False),
    ('localhost:5000', 'http://evil.example', 'cross-site', False),
    ('localhost:5000', 'null', None, False),
    ('', 'null', None, False),
    ('localhost:5000', '', None, False),
    ('', '', None, False),
    ('localhost:5000', 'http://localhost:3000', None, False),
    ('localhost:5000', 'http://localhost', None, False),
    ('localhost:5000', 'localhost:5000', None, False),
    ('localhost:5000', 'http://localhost:5000/', None, False),
    ('localhost:5000', 'http://localhost:5000.evil.example', None, False),
    ('localhost:5000', 'http://evil.example, http://localhost:5000', None, False),
    ('127.0.0.1:5000', 'http://localhost:5000', None, False),
    # DNS rebinding: the page's own name leads here
    ('evil.example:5000', 'http://evil.example:5000', None, False),
    ('127.0.0.1.evil.example', 'http://127.0.0.1.evil.example', None, False),
    ('localhost.evil.example', 'http://localhost.evil.example', 'same-origin', False),
    ('2130706433', 'http://2130706433', None, False),
    ('localhost:5000', None, 'cross-site', False),
]


class TestAnswer:
    """How a call is answered."""

    @pytest.mark.parametrize('args, kwargs', BAD_ARGUMENTS)
    @pytest.mark.parametrize('is_async', [False, True])
    def test_bad_arguments(self, args, kwargs, is_async):
        """Arguments that do not fit are a BadArguments, and the function did not run."""
        ran = []

        def function(a, b=1, *, c=2):
            ran.append(a)

        async def afunction(a, b=1, *, c=2):
            ran.append(a)

        with pytest.raises(BadArguments, match=r'function\(\) ') as caught:
            friend_of(afunction if is_async else function).send('/f', *args, **kwargs)
        assert (caught.value.status, caught.value.sent, ran) == (422, False, [])
        assert isinstance(caught.value, TypeError)

    @pytest.mark.parametrize(
        'function',
        [Methods().method, Methods(), functools.partial(fits, 1, 2), lambda a: a],
        ids=['method', 'object', 'partial', 'lambda'],
    )
    def test_bad_arguments_of_callables(self, function):
        """Methods, callable objects, partials and lambdas have their arguments checked, too."""
        with pytest.raises(BadArguments):
            friend_of(function).send('/f', 1, 2, 3)

    @pytest.mark.parametrize('wrap', DECORATED.values(), ids=DECORATED)
    def test_bad_arguments_of_decorated(self, wrap):
        """Whatever is around a function, or it is, arguments that do not fit run nothing."""
        ran = []
        wrong = ((), {}), ((1, 2, 3), {}), ((1,), {'d': 1}), ((1,), {'self': 2})
        for ask in (by_listener, by_wsgi, by_asgi):
            ran.clear()
            with serving(service_of(wrap(ran))) as service:
                for args, kwargs in wrong:
                    body = json.dumps({'args': args, 'kwargs': kwargs}).encode()
                    status, _, reply = ask(service, 'POST', '/f', JSON, body)
                    assert (status, ran) == (422, []), (ask, json.loads(reply))
                    assert error_of(status, reply).sent is False
                status, _, reply = ask(service, 'POST', '/f', JSON, b'{"args":[1]}')
                assert status == 200 and ran, ask

    @pytest.mark.parametrize('wrap', DECORATED.values(), ids=DECORATED)
    def test_type_errors_inside_decorated(self, wrap):
        """A TypeError that is raised inside stays the rule's, whatever is around it."""

        class Raising(list):
            def append(self, item):
                raise TypeError('inside')

        service = service_of(wrap(Raising()))
        status, _, problem = ask(service, b'{"args":[1]}', '/f')
        assert (status, problem['exception']['message']) == (500, 'inside')
        service.stop()

    def test_argument_of_a_decorator(self):
        """A decorator may hand over an argument of its own, as it may in a local call."""

        def with_session(function):
            @functools.wraps(function)
            def call(*args, **kwargs):
                return function('session', *args, **kwargs)

            return call

        friend = friend_of(with_session(lambda session, a: [session, a + 1]))
        assert friend.send('/f', 1) == ['session', 2]
        for wrong in ((), (1, 2, 3)):
            with failing(BadArguments, status=422, sent=False):
                friend.send('/f', *wrong)
        with failing(RemoteError, type='TypeError', sent=True):  # it ran
            friend.send('/f', 'x')

    @pytest.mark.parametrize('function', [len, divmod, operator.add], ids=lambda f: f.__name__)
    def test_bad_arguments_of_builtins(self, function):
        """The arguments of a builtin that shows its signature are checked before the call."""
        args = {len: ['abc'], divmod: [7, 2], operator.add: [1, 2]}[function]
        friend = friend_of(function)
        assert friend.send('/f', *args) in (3, (3, 1))
        for wrong in ((), (1, 2, 3)):
            with failing(BadArguments, status=422, sent=False):
                friend.send('/f', *wrong)

    def test_self_as_a_keyword(self):
        """A keyword `self` reaches what takes it, decorated or not."""

        def function(self, context=None, function=None):
            return [self, context, function]

        keywords = {'self': 1, 'context': 2, 'function': 3}
        for decorate in (
            lambda f: f,
            functools.lru_cache(maxsize=None),
            lambda f: functools.wraps(f)(lambda *args, **kwargs: f(*args, **kwargs)),
            functools.partial,
            lambda f: lambda **kwargs: f(**kwargs),
        ):
            assert friend_of(decorate(function)).send('/f', **keywords) == [1, 2, 3]

    @pytest.mark.parametrize(
        'function, args',
        [
            (raises_inside, [1]),
            (lambda a: fits(), [1]),
            (lambda a: len(a, a), [1]),
            (calls_itself, [1]),
            (yields, [1]),
            (len, [7]),
            (lambda a: a + 'x', [1]),
            (lambda a: make, [1]),
        ],
    )
    def test_type_errors_inside(self, function, args):
        """A TypeError of a function that ran is a RemoteError."""
        with pytest.raises(RemoteError) as caught:
            friend_of(function).send('/f', *args)
        error = caught.value
        assert isinstance(error, TypeError)
        assert (error.type, error.status, error.sent) == ('TypeError', 500, True)

    def test_remote_error(self):
        """A rule's exception arrives with rule, address, status, type and message."""
        with pytest.raises(KeyError) as caught:
            Friend('app1', make()).send('/fail', 'KeyError', 'name é')
        error = caught.value
        assert str(error) == "/fail at app1 (in process): KeyError: 'name é'"
        assert (error.rule, error.address) == ('/fail', 'app1 (in process)')
        assert (error.status, error.type, error.sent) == (500, 'KeyError', True)
        assert error.traceback is None

    def test_context(self, friend):
        """An error raised while another one is handled shows that one, too."""
        with pytest.raises(KeyError) as caught:
            try:
                raise OSError('first')
            except OSError:
                friend.send('/fail', 'KeyError')
        assert not caught.value.__suppress_context__

    @pytest.mark.parametrize('name', ['__bool__', '__len__', '__str__', '__repr__'])
    def test_exception_that_fails(self, name):
        """An exception whose own methods raise is a RemoteError like any other."""

        def fail(self):
            raise KeyError(name)

        def raising():
            raise type('Odd', (Exception,), {name: fail})

        with pytest.raises(RemoteError) as caught:
            friend_of(raising, debug=True).send('/f')
        assert caught.value.type == 'Odd'
        if name == '__str__':
            assert 'its message cannot be read: Odd.__str__ raised' in str(caught.value)

    def test_exception_whose_text_exits(self):
        """An exception whose text raises SystemExit does not end the program."""

        def raising():
            raise type('Odd', (Exception,), {'__str__': lambda self: sys.exit()})

        with pytest.raises(RemoteError, match='its message cannot be read'):
            friend_of(raising).send('/f')

    @pytest.mark.parametrize('name', ['SystemExit', 'KeyboardInterrupt', 'GeneratorExit'])
    def test_exits_do_not_end_the_service(self, service, friend, name):
        """SystemExit and its like, raised by a rule, are a RemoteError; the service goes on."""
        with pytest.raises(RemoteError) as caught:
            friend.send('/fail', name)
        assert caught.value.type == name
        assert type(caught.value) is RemoteError
        assert friend.send('/echo', 1) == 1

    @pytest.mark.parametrize('name', ['SystemExit', 'KeyboardInterrupt'])
    def test_an_exit_in_the_main_thread(self, name):
        """SystemExit and KeyboardInterrupt pass through in the main thread, for signals."""
        with pytest.raises(getattr(builtins, name)):
            Friend('app1', make()).send('/fail', name)

    @pytest.mark.parametrize('inner', ['unreachable', 'busy', 'forbidden', 'arguments', 'rule'])
    def test_a_failed_call_inside_a_rule(self, inner):
        """A rule whose own call failed gives RemoteError, never an error that invites a retry."""
        behind = make(token={'/fail': SECRET})
        behind.typing('/f')(fits)
        rules = {'forbidden': '/fail', 'arguments': '/f', 'rule': '/none'}

        def call():
            if inner == 'unreachable':
                return Friend('x', '127.0.0.1:1', timeout=1).send('/f')
            if inner == 'busy':
                with peer(answers(response(b'{}', '503 Busy'))) as address:
                    with Friend('x', address) as friend:
                        return friend.send('/f')
            return Friend('x', behind).send(rules[inner])

        with pytest.raises(RemoteError) as caught:
            friend_of(call).send('/f')
        assert type(caught.value) is RemoteError
        assert (caught.value.sent, caught.value.rule) == (True, '/f')

    def test_an_error_of_a_service_further_on(self):
        """What a service raised is told as it was by those that called it, and no longer."""
        call = functools.partial(Friend('app1', make()).send, '/fail', 'KeyError', 'x')
        for _ in range(3):
            call = functools.partial(friend_of(lambda call=call: call()).send, '/f')
            with pytest.raises(KeyError) as caught:
                call()
            assert (caught.value.type, caught.value.message) == ('KeyError', "'x'")
            assert str(caught.value) == "/f at app1 (in process): KeyError: 'x'"

    @pytest.mark.parametrize('debug', [None, False, True])
    def test_traceback_in_debug_only(self, debug):
        """The reply has a traceback in debug only."""
        with pytest.raises(ValueError) as caught:
            Friend('app1', make(debug=debug)).send('/fail', 'ValueError')
        if debug:
            assert re.search(
                '(?s)^Traceback .* in fail.*ValueError: why\n$', caught.value.traceback
            )
        else:
            assert caught.value.traceback is None
            body = make(debug=debug).answer('POST', '/fail', JSON, b'{"args":["ValueError"]}')[2]
            assert b'File' not in body
            assert b'traceback' not in body

    def test_traceback_is_shown(self):
        """In debug Python prints the remote traceback above the friend's own, after a copy too."""
        with calling(debug=True) as (_, friend):
            with pytest.raises(KeyError) as caught:
                friend.send('/fail', 'KeyError')
        for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
            shown = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
            first, second = shown.split('was the direct cause of')
            assert 'in fail' in first and "KeyError: 'why'" in first
            assert 'RemoteError: /fail at ' in second

    @pytest.mark.parametrize('rule', ['/fail', '/afail'])
    def test_cause_in_this_process(self, rule):
        """In process the cause is the exception itself, so that a debugger finds the rule."""
        with pytest.raises(ValueError) as caught:
            Friend('app1', make_async()).send(rule, 'ValueError')
        cause = caught.value.__cause__
        assert type(cause) is ValueError
        assert traceback.extract_tb(cause.__traceback__)[-1].name == rule[1:]

    def test_cause_of_a_call_in_a_call(self):
        """A failure that a rule has caught is not the cause of its own."""
        inner = make()
        friend = Friend('app1', inner)

        def fail():
            with contextlib.suppress(KeyError):
                friend.send('/fail', 'KeyError')
            inner.answer('POST', '/fail', JSON, b'{"args":["OSError"]}')
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as caught:
            friend_of(fail).send('/f')
        assert type(caught.value.__cause__) is ZeroDivisionError

    @pytest.mark.parametrize('is_async', [False, True])
    def test_cause_is_not_kept(self, is_async, caplog):
        """Once the error of a call in this process is gone, so is what its cause held."""
        caplog.set_level(logging.CRITICAL, 'microconnect')  # a record would hold it
        held = []

        def fail():
            local = Strict()
            held.append(weakref.ref(local))
            raise KeyError

        friend = friend_of(fail)

        async def call_thrice():
            for _ in range(3):
                with contextlib.suppress(KeyError):
                    await friend.asend('/f') if is_async else friend.send('/f')

        asyncio.run(call_thrice())
        until(lambda: gc.collect() >= 0 and [one() for one in held] == [None] * 3)

    def test_context_that_outlives_its_call(self, caplog):
        """What fails in the context of a call that has ended is not kept for its caller."""
        caplog.set_level(logging.CRITICAL, 'microconnect')
        contexts, held = [], []
        other = make()

        class Kept(Exception):
            pass

        def fail():
            error = Kept()
            held.append(weakref.ref(error))
            raise error

        other.typing('/f')(fail)
        friend_of(lambda: contexts.append(contextvars.copy_context())).send('/f')
        assert contexts[0].run(other.answer, 'POST', '/f', JSON, b'{}')[0] == 500
        gc.collect()
        assert held[0]() is None

    def test_traceback_that_cannot_be_formatted(self, monkeypatch):
        """An exception that Python cannot format arrives without its traceback."""

        def function():
            raise SyntaxError('why', ('f', 1, 'a', 'text'))

        # The logging of pytest would fail at the same.
        monkeypatch.setattr(logging.getLogger('microconnect'), 'disabled', True)
        with pytest.raises(SyntaxError) as caught:
            friend_of(function, debug=True).send('/f')
        assert 'cannot be formatted' in caught.value.traceback

    def test_failures_are_logged(self, caplog):
        """The service logs a function's exception with its traceback."""
        with pytest.raises(ValueError):
            Friend('app1', make()).send('/fail', 'ValueError', 'for the log')
        record = caplog.records[-1]
        assert (record.name, record.levelname) == ('microconnect', 'ERROR')
        assert record.getMessage() == '/fail raised'
        assert str(record.exc_info[1]) == 'for the log'

    def test_long_log(self, caplog):
        """However long the exceptions behind an exception are, the log line is cut."""

        def fail():
            raise ValueError('short') from KeyError('x' * 1000000)

        with pytest.raises(ValueError, match='short'):
            friend_of(fail).send('/f')
        assert len(caplog.text) < 12000
        assert 'characters cut' in caplog.text

    @pytest.mark.parametrize('debug', [False, True])
    def test_long_failure(self, debug, caplog):
        """An error of a megabyte is its own kind still; its texts are cut, and say so."""
        caplog.set_level(logging.DEBUG)

        def fail():
            raise KeyError('a' + 'x' * 1000000 + 'z')

        with serving(service_of(fail, debug=debug)) as service:
            with Friend('app1', service.address, timeout=TIMEOUT, max_body=40000) as friend:
                with pytest.raises(KeyError) as caught:
                    friend.send('/f')
        error = caught.value
        assert (error.type, error.status, error.sent) == ('KeyError', 500, True)
        assert (error.traceback is None) is not debug
        logged = next(line.getMessage() for line in caplog.records if line.levelname == 'ERROR')
        texts = [str(error), error.message, logged]
        texts += [error.traceback] if debug else []
        for text in texts:
            assert 9000 < len(text) < 11000
            assert re.search(r' \.\.\. \([0-9]+ characters cut\) \.\.\. ', text)
        assert error.message.startswith("'ax") and error.message.endswith("xz'")
        assert '(990004 characters cut)' in error.message
        assert len(caplog.text) < 12000

    def test_failure_that_is_just_not_too_long(self):
        """A message of 10,000 characters arrives whole, one of more is cut in its middle."""
        with pytest.raises(ValueError) as caught:
            Friend('app1', make()).send('/fail', 'ValueError', 'é' * 10000)
        assert caught.value.message == 'é' * 10000
        with pytest.raises(ValueError) as caught:
            Friend('app1', make()).send('/fail', 'ValueError', 'é' * 10001)
        assert caught.value.message == 'é' * 5000 + ' ... (1 characters cut) ... ' + 'é' * 5000

    @pytest.mark.parametrize('kind', ['arguments', 'decorated', 'content type', 'json', 'path'])
    def test_long_refusal(self, kind, caplog):
        """What a caller sent is not given back at full length, nor logged."""
        caplog.set_level(logging.DEBUG)
        service = service_of(through(fits) if kind == 'decorated' else fits)
        long = 'x' * 1000000
        body, path, headers = b'{"args":[1],"kwargs":{"%b":1}}' % long.encode(), '/f', {}
        if kind == 'content type':
            headers['Content-Type'] = f'text/{long}'
        elif kind == 'json':
            body = b'{"args":[1e%b]}' % (b'9' * 1000000)
        elif kind == 'path':
            path = '/f?' + long
        status, _, problem = ask(service, body, path, **headers)
        assert status in (400, 404, 415, 422)
        is_cut = kind in ('arguments', 'decorated', 'content type')
        assert ('characters cut' in problem['detail']) is is_cut
        assert len(problem['detail']) < 11000
        assert 0 < len(caplog.text) < 12000

    def test_log_that_fails(self, monkeypatch):
        """A failure of logging costs no caller its answer."""
        monkeypatch.setattr(logging.getLogger('microconnect'), 'error', lambda *_, **more: 1 / 0)
        with pytest.raises(RemoteError) as caught:
            Friend('app1', make()).send('/fail', 'KeyError')
        assert caught.value.type == 'KeyError'

    @pytest.mark.parametrize('is_async', [False, True])
    def test_generator(self, is_async):
        """A generator is a list in the reply; its exception is an exception of the rule."""
        seen = contextvars.ContextVar('seen', default='nobody')

        def rows(last):
            seen.set('its own context')
            yield 1
            yield seen.get()
            if last is not None:
                raise KeyError(last)

        async def later(last):
            return rows(last)

        friend = friend_of(later if is_async else rows, debug=True)
        assert friend.send('/f', None) == [1, 'its own context']
        with pytest.raises(KeyError) as caught:
            friend.send('/f', 'no such row')
        assert "KeyError: 'no such row'" in str(caught.value)
        assert 'in rows' in caught.value.traceback
        assert seen.get() == 'nobody'

    @pytest.mark.parametrize('is_async', [False, True])
    def test_context_variables(self, is_async):
        """A context variable that one call sets is not seen by the connection's next."""
        seen = contextvars.ContextVar('seen', default='nobody')

        def swap(name):
            before = seen.get()
            seen.set(name)
            return before

        async def aswap(name):
            await asyncio.sleep(0)
            return swap(name)

        with calling(service_of(aswap if is_async else swap)) as (service, served):
            for friend in (served, Friend('app1', service)):
                assert [friend.send('/f', name) for name in 'abc'] == ['nobody'] * 3
        assert seen.get() == 'nobody'

    def test_no_keyword_is_reserved(self, service, friend):
        """Keywords of any name reach the function."""
        names = ['self', 'rule', 'timeout', 'args', 'kwargs', 'token', 'method', '__rule']
        names += ['__self', 'callable', 'function', 'cls', 'class', 'a b', 'é']
        kwargs = {name: i for i, name in enumerate(names)}
        for each_friend in (friend, Friend('app1', service)):
            each_friend.send('/echo', **kwargs)
            assert service.ran.pop() == ((), kwargs)

        def function(self, rule, timeout=0, *, token, args):
            return self, rule, timeout, token, args

        told = friend_of(function).send('/f', 1, 2, timeout=3, token=4, args=5)
        assert told == (1, 2, 3, 4, 5)
        assert friend_of(function).send('/f', self=1, rule=2, token=4, args=5) == (1, 2, 0, 4, 5)

    def test_too_large(self):
        """The error for a body or reply over the limit has both sizes."""
        service = make(max_body=30)
        status, _, problem = ask(service, b'{"args": ["%b"]}' % (b'x' * 30))
        assert (status, problem['title'][:7]) in ((413, 'Request'), (413, 'Content'))
        assert problem['detail'] == 'the body of 44 bytes is over max_body=30'
        assert service.ran == []
        with pytest.raises(ValueError, match='the reply of 44 bytes is over max_body=40'):
            friend_of(lambda: 'x' * 40, max_body=40).send('/f')

    @pytest.mark.parametrize('status, kind', each(CONTENT_TYPES))
    def test_content_type(self, status, kind):
        """A service takes only application/json, which a web page cannot send without asking."""
        service = make()
        told = ask(service, b'{"args": [1]}', Content_Type=kind)
        assert (told[0], len(service.ran)) == (status, status == 200)
        if status == 415:
            assert told[2]['detail'] == f'Content-Type has to be application/json, not {kind!r}'

    @pytest.mark.parametrize('host, origin, site, allowed', BROWSERS)
    def test_browsers(self, host, origin, site, allowed):
        """A web page of another origin is 403 and runs nothing; one of this service may call."""
        service = Microservice('app1')
        ran = []
        service.typing('/f', methods=('GET', 'POST'))(lambda: ran.append(1))
        headers = {'Host': host, 'ORIGIN': origin, 'Sec-Fetch-Site': site}
        headers = {name: value for name, value in headers.items() if value is not None}
        for count, method in enumerate(('POST', 'GET'), 1):
            status, _, problem = ask(service, path='/f', method=method, **headers)
            assert (status, len(ran)) == ((200, count) if allowed else (403, 0)), method
        if not allowed:
            assert 'may not call this service' in problem['detail']
            assert ask(service, path='/', method='GET', **headers)[0] == 403
            assert ask(service, path='/none', **headers)[0] == 403

    def test_name(self, service):
        """GET / tells the name without a token, unless a rule has that path."""
        assert make(token=SECRET).answer('GET', '/', {}) == (200, tuple(REPLY.items()), b'["app1"]')
        assert ask(service, path='/')[0] == 404
        taken = Microservice('app1')
        taken.typing('/', methods=('GET',))(lambda: 'mine')
        assert taken.answer('GET', '/', {})[2] == b'["mine"]'


RULES = {  # what a service tells of its rules
    '/divide': ('(a, b, *, floor=False)', 'Divide a by b.', ['POST'], False),
    '/later': ('(seconds: float = 1.5)', '', ['POST'], False),
    '/list': (
        "() -> 'dict[str, dict[str, Any]]'",
        'Tell how each rule is called.',
        ['GET', 'POST'],
        True,
    ),
    '/odd': ('(...)', '', ['POST'], False),
    '/partial': ('(b, *, floor=False)', 'Divide a by b.', ['POST'], True),
}


class TestListOfRules:
    @staticmethod
    def make():
        service = Microservice('app1', token={'/partial': SECRET})

        @service.typing('/later')
        async def later(seconds: float = 1.5):
            pass

        @service.typing('/divide')
        def divide(a, b, *, floor=False):
            """
            Divide a by b.

            What else there is to say stays here.
            """

        service.typing('/partial')(functools.partial(divide, 7))
        odd = type('Odd', (), {'__repr__': lambda self: 1 / 0})()
        service.typing('/odd')(lambda value=odd: value)
        service.typing('/list', token=SECRET, methods=('GET', 'POST'))(service.rules)
        return service

    def test_rules(self):
        """`rules` tells of each rule its signature, docstring, methods, and if it wants a token."""
        told = self.make().rules()
        assert list(told) == sorted(told)
        keys = ('signature', 'doc', 'methods', 'token')
        assert told == {rule: dict(zip(keys, row)) for rule, row in RULES.items()}

    def test_published(self):
        """As a rule, with a token here, it tells others what it tells at home."""
        service = self.make()
        assert Friend('app1', service, SECRET).send('/list') == service.rules()
        with pytest.raises(Forbidden):
            Friend('app1', service).send('/list')

    def test_repr(self):
        """The repr of a service says its name, its address and how many rules it has."""
        service = Microservice('app1')
        assert repr(service) == "<Microservice 'app1' (it does not serve), 0 rules>"
        service.typing('/f')(int)
        with serving(service):
            assert repr(service) == f"<Microservice 'app1' at {service.address}, 1 rule>"


def lines_of(caplog):
    """The level and text of each log line, with times and ports left out."""
    return [
        f'{line.levelname} {re.sub(r"[0-9.]+ ms", "N ms", line.getMessage())}'.replace(
            repr(getattr(line, 'caller', None)), 'ME'
        )
        for line in caplog.records
    ]


class TestLog:
    """What an operator sees: the logger microconnect."""

    def test_calls(self, caplog):
        """One line for a call at DEBUG, for a refusal at INFO, and for start and stop."""
        caplog.set_level(logging.DEBUG, 'microconnect')
        with calling(token={'/fail': SECRET}) as (service, friend):
            friend.send('/echo', 1)
            for rule in ('/fail', '/missing'):
                with pytest.raises(MicroconnectError):
                    friend.send(rule)
            assert raw(service, b'GET\r\n\r\n').startswith(b'HTTP/1.1 400 ')
            address = service.address
        lines = lines_of(caplog)
        assert lines[:3] == [
            f'INFO app1 listens on {address}, 2 rules',
            "DEBUG answered 200: '/echo' from ME in N ms",
            "INFO refused 401: '/fail' from ME in N ms: '/fail needs a token, and none was given'",
        ]
        assert lines[3].startswith("INFO refused 404: '/missing' from ME in N ms: ")
        assert lines[4].startswith("INFO refused 400: '' from ME in N ms: ")
        assert lines[5:] == ['INFO app1 stops', 'INFO app1 has stopped']

    def test_fields(self, caplog):
        """A line of a call has its facts as fields, for a formatter of one's own."""
        caplog.set_level(logging.DEBUG, 'microconnect')
        service = make()
        by_proxy = functools.partial(by_wsgi, REMOTE_ADDR='127.0.0.1')
        by_client = functools.partial(by_asgi, client=('127.0.0.1', 5))
        for host in (by_listener, by_proxy, by_client):
            caplog.clear()
            host(service, 'POST', '/echo', JSON, b'{"args": [1]}')
            assert all(hasattr(line, 'rule') for line in caplog.records)
            (line,) = [line for line in caplog.records if line.rule]
            assert (line.rule, line.status) == ('/echo', 200)
            assert 0 < line.milliseconds < 1000 * TIMEOUT
            assert line.caller.startswith('127.0.0.1')
        caplog.clear()
        service.answer('POST', '/f?secret', JSON, b'', caller='a proxy')
        (line,) = caplog.records
        assert (line.rule, line.status, line.caller) == ('/f', 404, 'a proxy')

    def test_failures(self, caplog):
        """What a rule raises is logged at ERROR with its traceback, besides the call."""
        caplog.set_level(logging.DEBUG, 'microconnect')
        with pytest.raises(KeyError):
            Friend('app1', make()).send('/fail', 'KeyError')
        assert lines_of(caplog) == ['ERROR /fail raised', "DEBUG answered 500: '/fail' in N ms"]
        assert 'KeyError' in caplog.records[0].exc_text

    def test_off(self, caplog, monkeypatch):
        """At the default level a call that succeeds is not even timed for the log."""
        monkeypatch.setattr(Microservice, '_log_call', pytest.fail)
        with calling() as (_, friend):
            assert friend.send('/echo', 1) == 1
        assert not caplog.records

    @pytest.mark.parametrize('is_async', [False, True])
    def test_every_refusal(self, is_async, caplog):
        """At INFO each refusal has its line, that of a plain function's arguments too."""
        caplog.set_level(logging.INFO, 'microconnect')
        service = make_async(max_body=99, origins=[ORIGIN])
        path = '/aecho' if is_async else '/fail'
        for host in (by_listener, by_wsgi, by_asgi):
            caplog.clear()
            assert host(service, 'POST', path, JSON, b'{}')[0] == 422
            assert host(service, 'POST', path, {**JSON, 'Origin': ORIGIN}, b'x' * 100)[0] == 413
            told = [line for line in lines_of(caplog) if 'refused' in line]
            assert [line[:18] for line in told] == ['INFO refused 422: ', 'INFO refused 413: ']
            assert host is by_wsgi or repr(path) in told[1]

    def test_callers_forge_no_line(self, caplog):
        """What a proxy calls the caller cannot make a line of its own."""
        caplog.set_level(logging.DEBUG, 'microconnect')
        make().answer('POST', '/echo\nforged', JSON, b'{}', caller='me\nforged')
        assert '\n' not in caplog.messages[0]

    def test_client_of_asgi(self, caplog):
        """A client on a Unix socket has no port, and may be unknown."""
        caplog.set_level(logging.DEBUG, 'microconnect')
        for client in (None, ('/run/socket', None), ('::1', 5)):
            by_asgi(make(), 'POST', '/echo', JSON, b'{}', client=client)
        assert [line.caller for line in caplog.records] == ['', '/run/socket', '[::1]:5']

    @pytest.mark.parametrize('is_logged', [False, True])
    def test_debug(self, is_logged, caplog, capsys):
        """In debug a line for each call is printed, whatever the log shows."""
        if is_logged:
            caplog.set_level(logging.DEBUG, 'microconnect')
        service = make(debug=True)
        for rule in ('/echo', '/missing'):
            ask(service, path=rule)
        printed = capsys.readouterr().err.splitlines()
        told = ["answered 200: '/echo", "refused 404: '/missi"]
        assert [line[:26] for line in printed] == [f'app1: {line}' for line in told]
        assert [line[:20] for line in caplog.messages] == (told if is_logged else [])

    def test_debug_without_stderr(self, monkeypatch, capsys):
        """A program that has no stderr gets no lines on its stdout instead."""
        monkeypatch.setattr(sys, 'stderr', None)
        assert ask(make(debug=True))[0] == 200
        assert not capsys.readouterr().out


ORIGIN = 'https://app.example'

ORIGINS = [  # what is given; what a browser says
    ('https://app.example', 'https://app.example'),
    ('http://localhost:8000', 'http://localhost:8000'),
    ('http://[::1]:8000', 'http://[::1]:8000'),
    ('capacitor://localhost', 'capacitor://localhost'),
]

NO_ORIGINS = [  # what cannot be an origin
    *('*', 'null', '', 'app.example', 'https://app.example/', 'https://app.example/page', 7, None),
    *('https://*.example', 'https://', 'https://user@app.example', 'https://app.example:x', '://x'),
    *('HTTPS://App.Example', 'https://app.example:443', 'http://localhost:80'),
    *('https://app.example:0', 'https://app.example:080', 'https://\u212aelvin.example'),
]


class TestPages:
    """What web pages may call: `origins`, and the Fetch standard's protocol for them."""

    @staticmethod
    def asked(host, service, origin, method='POST', path='/echo', **headers):
        """The status of an answer, the headers that a browser looks at, and the body."""
        headers = dict(JSON, **headers, **({'Origin': origin} if origin else {}))
        status, fields, body = host(service, method, path, headers, b'{"args":[1]}')
        names = ('access-control-allow-origin', 'vary')
        told = {name.lower(): value for name, value in fields.items()}
        return (status, *(told.get(name) for name in names)), told, body

    @HOSTS
    def test_allowed(self, ask):
        """A page of an allowed origin calls, and reads answers and refusals; others are refused."""
        service = make(origins=[ORIGIN], token=SECRET)
        assert self.asked(ask, service, ORIGIN)[0] == (401, ORIGIN, 'Origin')
        service.token = False
        assert self.asked(ask, service, ORIGIN)[0] == (200, ORIGIN, 'Origin')
        assert self.asked(ask, service, None)[0] == (200, None, 'Origin')
        for other in ('http://app.example', f'{ORIGIN}:8443', f'{ORIGIN}.evil', 'null'):
            seen, _, body = self.asked(ask, service, other)
            assert seen == (403, None, 'Origin')
            advice = 'serve the page by http' if other == 'null' else f"origins=('{other}',)"
            assert advice in json.loads(body)['detail']
        assert len(service.ran) == 2

    @HOSTS
    def test_preflight(self, ask):
        """What a browser asks first is answered, without a token, and runs no function."""
        service = make_async(origins=[ORIGIN], token=SECRET)
        asks = {'method': 'OPTIONS', 'Access-Control-Request-Method': 'POST'}
        seen, told, _ = self.asked(ask, service, ORIGIN, **asks)
        assert seen == (200, ORIGIN, 'Origin')
        assert 'POST' in told['access-control-allow-methods']
        assert told['access-control-allow-headers'] == 'Content-Type'
        assert self.asked(ask, service, ORIGIN, path='/aecho', **asks)[0] == seen
        for other, refusing in (('https://evil.example', service), (ORIGIN, make())):
            seen, told, _ = self.asked(ask, refusing, other, **asks)
            assert seen[:2] == (403, None) and 'access-control-allow-methods' not in told
        assert not service.ran

    @pytest.mark.parametrize('given, said', ORIGINS)
    def test_forms(self, given, said):
        """An origin is scheme, host and port, as browsers write it."""
        assert self.asked(by_wsgi, make(origins=(given,)), said)[0][:2] == (200, said)

    @pytest.mark.parametrize('given', NO_ORIGINS)
    def test_not_an_origin(self, given):
        """What is not an origin is a ValueError that shows two that are."""
        with pytest.raises(ValueError, match="such as 'https://app.example' or .*, not "):
            Microservice('app1', origins=[given])

    def test_options_rule(self):
        """A rule that answers OPTIONS is called by it, unless a page of elsewhere asks first."""
        service = service_of(lambda: 'ran')
        service.typing('/o', methods=('OPTIONS',))(lambda: 'ran')
        for headers in ({'Sec-Fetch-Site': 'same-origin'}, {'Origin': 'http://localhost'}):
            asked = {**JSON, **headers, 'Host': 'localhost', 'Access-Control-Request-Method': 'X'}
            assert service.answer('OPTIONS', '/o', asked, b'{}')[2] == b'["ran"]'

    @pytest.mark.parametrize('ask', [by_listener, by_wsgi])
    def test_too_large(self, ask):
        """A page can read that its call was too large."""
        service = make(origins=[ORIGIN], max_body=9)
        assert self.asked(ask, service, ORIGIN)[0][:2] == (413, ORIGIN)

    def test_a_string(self):
        """One origin without a list around it is a TypeError that says what to write."""
        with pytest.raises(TypeError, match=r"origins=\('https://app.example',\)"):
            Microservice('app1', origins=ORIGIN)

    @pytest.mark.parametrize('origin, status', [(ORIGIN, 200), ('https://evil.example', 403)])
    def test_middleware(self, origin, status):
        """Behind the CORSMiddleware of Starlette or FastAPI pages are allowed once."""
        cors = pytest.importorskip('starlette.middleware.cors')
        origins = [ORIGIN]
        how = {'allow_origins': origins, 'allow_methods': ['POST']}
        inner = make(origins=origins).asgi
        host = types.SimpleNamespace(asgi=cors.CORSMiddleware(inner, **how))
        seen, _, _ = self.asked(by_asgi, host, origin)
        assert seen[:2] == (status, ORIGIN if status == 200 else None)
        assert set(seen[2].split(', ')) == {'Origin'}
        asks = {'method': 'OPTIONS', 'Access-Control-Request-Method': 'POST'}
        asks['Access-Control-Request-Headers'] = 'Content-Type'
        seen, _, _ = self.asked(by_asgi, host, origin, **asks)
        assert seen[:2] == ((200, ORIGIN) if status == 200 else (400, None))

    def test_default(self):
        """Without origins no answer has a header for pages."""
        assert self.asked(by_wsgi, make(), None)[0] == (200, None, None)


class AsyncCall:
    async def __call__(self, value):
        await asyncio.sleep(0)
        return value


AWAITED = {  # what is made around an async function
    'plain': lambda f: f,
    'partial': lambda f: functools.partial(f, 1),
    'partials': lambda f: functools.partial(functools.partial(f, 1)),
    'wrapped': lambda f: functools.wraps(f)(lambda *args: f(*args)),
    'lambda': lambda f: lambda *args: f(*args),
    'static': lambda f: type('Callable', (), {'__call__': staticmethod(f)})(),
    'object': lambda f: AsyncCall(),
    'method': lambda f: type('Method', (), {'go': lambda self, *args: f(*args)})().go,
    'run': lambda f: functools.wraps(f)(lambda *args: asyncio.run(f(*args))),
}


class TestAsyncRules:
    """Async rules, all of one service on one event loop."""

    @pytest.mark.parametrize('value', [None, 7, [1, 2], {'a': 'ä'}])
    def test_value(self, friend, value):
        """An async rule answers as a plain one does."""
        assert friend.send('/aecho', value) == value

    def test_stays_callable(self):
        """The decorated async function is still a coroutine function."""

        async def f(value):
            return value

        assert make().typing('/f')(f) is f
        assert make().reply(f) is f
        assert asyncio.run(f(3)) == 3

    @pytest.mark.parametrize('ask', [by_asgi, by_listener])
    @pytest.mark.parametrize('wrap', AWAITED.values(), ids=AWAITED)
    def test_callables(self, wrap, ask):
        """A coroutine is awaited whatever kind of callable returned it."""

        async def last(*args):
            await asyncio.sleep(0)
            return args[-1]

        service = service_of(wrap(last))
        try:
            assert ask(service, 'POST', '/f', JSON, b'{"args":["x"]}')[2] == b'["x"]'
        finally:
            service.stop()

    def test_awaitable_that_fails(self):
        """A TypeError of an awaitable is the function's own: it has run."""

        class Broken:
            def __await__(self):
                return 5

        service = service_of(Broken)
        with failing(RemoteError, sent=True):
            Friend('app1', service).send('/f')
        service.stop()

    def test_raised(self, friend):
        """Any exception of an async rule is an error of that call; the service goes on."""
        names = ['ValueError', 'SystemExit', 'KeyboardInterrupt', 'CancelledError']
        for name in (*names, 'GeneratorExit', 'StopIteration', 'StopAsyncIteration'):
            # Python itself makes a RuntimeError of a StopIteration.
            told = 'RuntimeError' if name == 'StopIteration' else name
            with failing(RemoteError, type=told):
                friend.send('/afail', name)
            assert friend.send('/aecho', 'on') == 'on'
            assert friend.send('/echo', 'on') == 'on'

    @pytest.mark.parametrize('name', ['SystemExit', 'KeyboardInterrupt'])
    @pytest.mark.filterwarnings('ignore')  # pytest's, of a thread that raised
    def test_raised_in_a_task(self, name):
        """A task that raises SystemExit fails alone; the loop goes on."""
        service = make_async()

        @service.typing('/task')
        async def task():
            async def fail():
                raise getattr(builtins, name)

            await asyncio.ensure_future(fail())

        with calling(service) as (_, friend):
            with pytest.raises(RemoteError):
                friend.send('/task')
            assert friend.send('/aecho', 'on') == 'on'

    def test_one_loop(self):
        """One call can wake another: both run on the same loop."""
        service, made, kept = make(), threading.Event(), []

        @service.typing('/await')
        async def wait():
            kept.append(asyncio.Event())
            made.set()
            await kept[0].wait()
            return 'woken'

        @service.typing('/set')
        async def wake():
            kept[0].set()

        with calling(service) as (_, friend), background(friend.send, '/await') as waiting:
            assert made.wait(TIMEOUT)
            friend.send('/set')
            assert waiting.result(TIMEOUT) == 'woken'

    def test_lock(self):
        """An asyncio.Lock keeps concurrent calls apart."""
        state, log = {}, []

        async def locked():
            async with state.setdefault('lock', asyncio.Lock()):
                log.append('in')
                await asyncio.sleep(0.001)
                log.append('out')

        with calling(service_of(locked)) as (_, friend):
            assert call_all(8, lambda _: friend.send('/f')) == [None] * 8
        assert log == ['in', 'out'] * 8

    def test_many_at_once(self):
        """A hundred calls can be inside one async rule at the same time."""
        inside = []

        async def meet():
            inside.append(asyncio.get_running_loop().create_future())
            if len(inside) == 100:
                for future in inside:
                    future.set_result('all here')
            return await inside[-1]

        with calling(service_of(meet)) as (_, friend):
            assert call_all(100, lambda _: friend.send('/f')) == ['all here'] * 100

    def test_thread_of_the_loop(self):
        """All services of a process share one loop, in a daemon thread that stop leaves."""
        services = [make_async(), make_async()]
        with calling(services[0]) as (_, friend):
            friend.send('/loop')
        Friend('app1', services[1]).send('/loop')
        assert services[0].loop is services[1].loop
        assert services[0].loop_thread.is_alive() and services[0].loop_thread.daemon

    def test_leftover_tasks(self):
        """A task that a rule left behind goes on after its call, and is cancelled by stop."""
        service, cancelled = make(), threading.Event()

        async def forever():
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                threading.Event().wait(0.02)  # stop waits for that, too
                cancelled.set()

        @service.typing('/leave')
        async def leave():
            service.task = asyncio.ensure_future(forever())

        @service.typing('/look')
        async def look():
            return service.task.done()

        with calling(service) as (_, friend):
            friend.send('/leave')
            assert friend.send('/look') is False
        assert cancelled.wait(TIMEOUT)

    def test_in_flight_at_stop(self):
        """stop waits for an async call in flight, which is answered."""
        entered = threading.Event()

        async def slow():
            entered.set()
            while not is_stopping(service):
                await asyncio.sleep(0.001)
            return 'whole'

        with calling(service_of(slow)) as (service, friend):
            with background(friend.send, '/f') as call:
                assert entered.wait(TIMEOUT)
                service.stop(grace=TIMEOUT)
                assert call.result(TIMEOUT) == 'whole'

    def test_cut_off_at_stop(self):
        """An async call that outlasts the grace of stop is cancelled."""
        entered, cancelled = threading.Event(), threading.Event()

        async def forever():
            entered.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()

        with calling(service_of(forever)) as (service, friend):
            with background(friend.send, '/f') as call:
                assert entered.wait(TIMEOUT)
                service.stop(grace=0.05)
                assert cancelled.wait(TIMEOUT)
                assert isinstance(call.exception(TIMEOUT), MicroconnectError)

    def test_stop_in_a_rule(self):
        """An async rule may stop its own service, and is answered."""

        async def stop():
            service.stop()
            return 'stopping'

        with calling(service_of(stop)) as (service, friend):
            assert friend.send('/f') == 'stopping'
            until(lambda: not is_serving(service))

    @pytest.mark.parametrize('by_address', [False, True])
    def test_send_to_itself(self, by_address):
        """An async rule that calls the blocking send of its own service gets an error at once."""
        service = make_async()

        @service.typing('/itself')
        async def itself():
            with Friend('app1', service.address if by_address else service, timeout=1) as inner:
                return inner.send('/aecho', 1)

        with calling(service) as (_, friend):
            with soon(), pytest.raises(RemoteError, match='asend'):
                friend.send('/itself')
            assert friend.send('/aecho', 'on') == 'on'

    def test_send_under_another_loop(self):
        """An async rule may not block the loop of another server either; its threads may send."""
        service = make_async()
        friend = Friend('app1', service, timeout=TIMEOUT)

        @service.typing('/itself')
        async def itself(in_thread):
            send = functools.partial(friend.send, '/echo', 'sent')
            if not in_thread:
                return send()
            run = contextvars.copy_context().run  # as asyncio.to_thread does
            return await asyncio.get_running_loop().run_in_executor(None, run, send)

        async def ask(body):
            status, _, reply = await service.aanswer('POST', '/itself', JSON, body)
            assert friend.send('/echo', 'after it') == 'after it'
            return status, reply

        status, reply = asyncio.run(ask(b'{"args":[false]}'))
        assert status == 500
        assert b'asend' in reply
        assert asyncio.run(ask(b'{"args":[true]}')) == (200, b'["sent"]')

    def test_answer_in_an_async_rule(self):
        """An async rule that calls `answer` on its own loop gets an error at once."""
        service = Microservice('app1')

        @service.typing('/other')
        async def other():
            return 1

        @service.typing('/itself')
        async def itself():
            return service.answer('POST', '/other', {'content-type': 'application/json'}, b'{}')[0]

        assert Friend('app1', service).send('/itself') == 500
        service.stop()

    def test_asend_to_itself(self, service, friend):
        """An async rule calls its own service by asend."""

        async def itself():
            with Friend('app1', service.address, timeout=TIMEOUT) as inner:
                return await inner.asend('/aecho', await inner.asend('/echo', 5))

        assert friend_of(itself).send('/f') == 5

    @needs_timers
    def test_alarm(self):
        """An exception of a signal handler cancels the async rule that the call waits for."""
        ended = threading.Event()

        def alarm(*_):
            raise TimeoutError('the alarm rang')

        async def function():
            try:
                # asyncio loses an OSError that is raised just while it wakes its loop: ring again.
                signal.setitimer(signal.ITIMER_REAL, 0.05, 2)
                await asyncio.sleep(2 * TIMEOUT)
            finally:
                ended.set()

        service = service_of(function)
        with handling(signal.SIGALRM, alarm):
            with pytest.raises(TimeoutError, match='the alarm rang'):
                Friend('app1', service).send('/f')
        assert ended.wait(TIMEOUT)
        service.stop()

    def test_loop_that_cannot_start(self, monkeypatch):
        """An async rule fails while no event loop can be made, and works afterwards."""

        async def later():
            return 1

        service = service_of(later)
        friend = Friend('app1', service)

        def fail():
            raise OSError(errno.EMFILE, 'no descriptor is left')

        with monkeypatch.context() as patch:
            patch.setattr(asyncio, 'new_event_loop', fail)
            microconnect._loop_of.cache_clear()
            with pytest.raises(OSError, match='no descriptor is left'):
                friend.send('/f')
        assert friend.send('/f') == 1
        service.stop()


# -------------------------------------------------------------------------------------------- hosts


class TestListener:
    """Raw bytes, as a client could send them."""

    @pytest.mark.parametrize(
        'version, extra, kept',
        [
            (b'1.1', b'', True),
            (b'1.1', b'Connection: keep-alive\r\n', True),
            (b'1.1', b'Connection: close\r\n', False),
            (b'1.1', b'Connection: TE, Close\r\n', False),
            (b'1.0', b'', False),
            (b'1.0', b'Connection: keep-alive\r\n', False),
        ],
    )
    def test_keep_alive(self, service, version, extra, kept):
        """A connection is kept as HTTP/1.1 defines, and the reply says whether it is."""
        got = raw(service, request(version=version, extra=extra) * 2)
        assert statuses(got) == ([200, 200] if kept else [200])
        assert (b'\r\nKeep-Alive: timeout=75\r\n' in got) is kept
        assert (b'\r\nConnection: close\r\n' in got) is not kept
        assert len(service.ran) == 1 + kept
        assert got.endswith(b'\r\nContent-Length: 5\r\n\r\n["x"]')

    def test_pipelining(self, service):
        """Requests sent in one write are answered one after the other, in their order."""
        bodies = [b'{"args":["%d"]}' % i for i in range(3)]
        got = raw(service, b''.join(map(request, bodies)))
        assert statuses(got) == [200] * 3
        assert re.findall(rb'\["(.)"\]', got) == [b'0', b'1', b'2']

    def test_byte_by_byte(self, service):
        """A request may come in pieces of one byte."""
        with connect(service) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in request(extra=b'Connection: close\r\n'):
                sock.sendall(bytes([byte]))
            assert receive(sock).endswith(b'["x"]')

    def test_chunked_request(self, service):
        """A chunked body is put together; extensions and trailers are left out."""
        chunks = b'8;a=b\r\n{"args":\r\n006\r\n["yz"]\r\n1 ; c\r\n}\r\n0\r\nX: 1\r\nY:2\r\n\r\n'
        assert statuses(raw(service, CHUNKED_HEAD + chunks + request())) == [200, 200]
        assert service.ran == [(('yz',), {}), (('x',), {})]

    def test_expect_continue(self, service):
        """A client that expects it is told to continue, and then sends the body."""
        head, _, body = request(extra=b'Expect: 100-continue\r\n').partition(b'\r\n\r\n')
        with connect(service) as sock:
            sock.sendall(head + b'\r\n\r\n')
            assert receive(sock, b'\r\n\r\n') == b'HTTP/1.1 100 Continue\r\n\r\n'
            sock.sendall(body)
            assert statuses(receive(sock, b'["x"]')) == [200]

    def test_head(self, service):
        """HEAD gives the head that GET gives, and no body."""
        got = raw(service, request(b'', '/', 'HEAD') + request(b'', '/', 'GET'))
        first, second, body = got.split(b'\r\n\r\n')
        assert (first, body) == (second, b'["app1"]')
        assert b'\r\nContent-Length: 8' in first

    @pytest.mark.parametrize(
        'data', [b'HEAD / HTTP/1.1\r\n\r\n', b'HEAD / HTTP/1.1\r\nHost: @\r\n\r\n']
    )
    def test_refused_head(self, service, data):
        """A refused HEAD has no body either."""
        got = raw(service, data)
        assert statuses(got) == [400]
        assert got.endswith(b'\r\n\r\n')

    @pytest.mark.parametrize(
        'data, status',
        [
            (request(extra=b'X: %b\r\n' % (b'x' * 1000)), 431),
            (HEAD + b'X: ' + b'x' * 1000, 431),  # and so on for ever
            (b'POST /' + b'x' * 1000, 431),
            (HEAD + b'Expect: 100-continue\r\nContent-Length: 101\r\n\r\n', 413),
            (request(b'{"args":["%b"]}' % (b'x' * 88)), 413),
            (CHUNKED_HEAD + b'65\r\n', 413),
        ],
    )
    def test_limits(self, data, status):
        """A request over max_head or max_body is refused before it is read."""
        with serving(max_head=1000, max_body=100) as service:
            assert statuses(raw(service, data, end=False)) == [status]
        assert service.ran == []

    def test_limits_reached(self):
        """A request of exactly max_head and max_body is taken."""
        body = b'{"args":["%b"]}' % (b'x' * 87)
        size = len(request(body)) - len(body)
        with serving(max_head=size, max_body=len(body)) as service:
            assert statuses(raw(service, request(body))) == [200]
        with serving(max_body=len(body)) as service:
            chunked = CHUNKED_HEAD + b'32\r\n%b\r\n32\r\n%b\r\n0\r\n\r\n' % (body[:50], body[50:])
            assert statuses(raw(service, chunked)) == [200]

    def test_refusal_arrives(self):
        """A client that sends 5 MB too much can read why it is refused, each time."""
        body = b'{"args":["%b"]}' % (b'x' * 5000000)
        with calling(max_body=1000) as (service, friend):
            for _ in range(4):
                with connect(service) as sock, sock.makefile('rb') as replies:
                    sock.sendall(request(body))  # neither this is broken off, nor the reply
                    sock.shutdown(socket.SHUT_WR)
                    assert statuses(replies.read()) == [413]
                with failing(TooLarge, 'over max_body=1000', status=413, sent=False):
                    friend.send('/echo', 'x' * 5000000)
        assert service.ran == []

    def test_more_after_close(self, service):
        """A reply arrives whole, though the client sent more after asking to close."""
        asked = request(extra=b'Connection: close\r\n') + b'x' * 1000000
        for _ in range(10):
            assert raw(service, asked).endswith(b'["x"]')

    @pytest.mark.usefixtures('each_way')
    def test_longest_idle_makes_room(self):
        """At max_connections, the longest-idle connection is closed for a new one."""
        with serving(max_connections=2) as service, contextlib.ExitStack() as stack:
            socks = two_idle(service, stack)
            assert statuses(raw(service, request())) == [200]
            assert statuses(receive(socks[0])) == [408]
            socks[1].sendall(request())
            assert statuses(receive(socks[1], b'["x"]')) == [200]

    @pytest.mark.parametrize('over_tls', [False, True])
    def test_silent_makes_room(self, over_tls, tls_server, tls_client):
        """At max_connections, a connection that has said nothing is closed for a new one."""
        service, context = make(max_connections=1), tls_client if over_tls else None
        service.start(0, '127.0.0.1', ssl_context=tls_server if over_tls else None)
        with service, connect(service) as silent:
            until(lambda: connections_of(service))
            with Friend('app1', by_name(service), ssl_context=context) as friend:
                assert friend.send('/echo', 1) == 1
                assert statuses(receive(silent)) == ([] if over_tls else [408])

    def test_no_delay(self, service, friend):
        """Neither side holds back what it sends until the other confirms what came before."""
        assert friend.send('/echo', 1) == 1
        for one in (*links_of(friend), *connections_of(service)):
            assert one.timed.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def test_no_descriptor_left(self, monkeypatch):
        """The longest-idle connection is also closed if no descriptor is left."""
        accept, failed = socket.socket.accept, []

        def fail_once(listener):
            if failed:
                return accept(listener)
            failed.append(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
            raise failed[0]

        with serving() as service, connect(service) as idle:
            idle.sendall(request())
            assert statuses(receive(idle, b'"x"]')) == [200]
            until(lambda: idle_connections_of(service))
            monkeypatch.setattr(socket.socket, 'accept', fail_once)
            with Friend('app1', service.address, timeout=TIMEOUT) as friend:
                assert friend.send('/echo', 1) == 1
            assert statuses(receive(idle)) == [408]

    def test_no_thread_left(self, monkeypatch):
        """A newcomer that gets no thread is told 503, and the longest idle makes room."""
        start, failed = threading.Thread.start, []

        def fail_once(thread):
            if failed:
                return start(thread)
            failed.append(thread)
            raise RuntimeError("can't start new thread")

        with serving() as service, contextlib.ExitStack() as stack:
            socks = two_idle(service, stack)
            for number, idle in enumerate(socks):
                failed.clear()
                with monkeypatch.context() as patch:
                    patch.setattr(threading.Thread, 'start', fail_once)
                    if number:
                        assert statuses(raw(service, b'', end=False)) == [503]
                    else:
                        with Friend('app1', service.address, timeout=TIMEOUT) as friend:
                            with failing(Busy, status=503, sent=False):
                                friend.send('/echo', 1)
                assert statuses(receive(idle)) == [408]
                assert statuses(raw(service, request())) == [200]
        assert len(service.ran) == 4

    @pytest.mark.parametrize('is_friend', [False, True])
    def test_no_memory_left(self, is_friend, monkeypatch):
        """A request for which no memory is left is 503 and not run; others are served."""
        with calling() as (service, friend):
            fail_to_read(monkeypatch, 500000)
            if is_friend:
                with failing(Busy, 'no memory is left', status=503, sent=False):
                    friend.send('/echo', 'x' * 5000000)
            else:
                assert statuses(raw(service, request(b'["%b"]' % (b'x' * 600000)))) == [503]
            assert service.ran == []
            assert friend.send('/echo', 'x' * 1000) == 'x' * 1000

    def test_no_memory_for_the_reply(self, monkeypatch):
        """If the memory ends after a function ran, the caller is not told to send again."""
        format_date, failed = microconnect.email.utils.formatdate, []

        def fail_once(*args, **options):
            if not failed:
                failed.append(True)
                raise MemoryError
            return format_date(*args, **options)

        with calling(idle_timeout=77) as (service, friend):  # so that no head is remembered
            monkeypatch.setattr(microconnect.email.utils, 'formatdate', fail_once)
            with failing(ConnectionLost, sent=True):
                friend.send('/echo', 1)
            assert friend.send('/echo', 2) == 2
        assert len(service.ran) == 2

    def test_small_requests_beside_large_ones(self, monkeypatch):
        """A small request is served while large ones hold all that they may, in pieces too."""
        hold_at_most(monkeypatch, 300000)
        with calling(max_body=100000) as (service, _), contextlib.ExitStack() as stack:
            for count in (1, 2, 3):
                sock = stack.enter_context(connect(service))
                sock.sendall(request(b'x' * 99000)[:-30000])
                until(lambda count=count: unread_bytes_of(service) > count * 60000)
            hold_at_most(monkeypatch, 1)  # so the three hold too much, and none is refused any more
            small = stack.enter_context(connect(service))
            for piece in (request()[:-5], request()[-5:]):
                small.sendall(piece)
                until(lambda: len(connections_of(service)) == 4)
            assert statuses(receive(small, b'["x"]')) == [200]

    def test_many_large_requests(self, monkeypatch):
        """Beyond a bound of unfinished requests more are 503; small calls are answered."""
        hold_at_most(monkeypatch, 300000)
        body = b'{"args":["%b"]}' % (b'x' * 90000)
        with calling(max_body=100000) as (service, friend), contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(service)) for _ in range(3)]
            for count, sock in enumerate(socks, 1):
                sock.sendall(request(body)[:-100])
                until(lambda count=count: unread_bytes_of(service) > count * 89000)
            assert friend.send('/echo', 'small') == 'small'
            # The one that has stalled the longest makes room, and knows that it did not run.
            monkeypatch.setattr(microconnect, '_STALL', 0.05)
            assert friend.send('/echo', 'x' * 90000) == 'x' * 90000
            assert statuses(receive(socks[0])) == [408]
            socks[1].sendall(request(body)[-100:])
            assert statuses(receive(socks[1], b'x"]')) == [200]

    def test_two_of_the_largest_requests(self, monkeypatch):
        """However large max_body is, two bodies of that size may come at once."""
        hold_at_most(monkeypatch, 1)
        data = request(b'{"args":["%b"]}' % (b'x' * 999986))
        with serving(max_body=1000000) as service, contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(service)) for _ in range(2)]
            for count, sock in enumerate(socks, 1):
                sock.sendall(data[:-1])
                until(lambda count=count: unread_bytes_of(service) > count * 999000)
            for sock in socks:
                sock.sendall(data[-1:])
                assert statuses(receive(sock, b'x"]')) == [200]

    @pytest.mark.parametrize('seconds, kept', [(269, True), (301, False)])
    def test_old_connection(self, seconds, kept, clock):
        """A connection of about 300 seconds is closed with a reply, and no call is lost."""
        service = counting(make(idle_timeout=9999))
        with calling(service) as (_, friend), connect(service) as sock:
            sock.sendall(request())
            assert b'\r\nKeep-Alive: ' in receive(sock, b'["x"]')
            assert friend.send('/count') == 1
            clock.shift(seconds)
            sock.sendall(request())
            assert (b'\r\nConnection: close\r\n' in receive(sock, b'["x"]')) is not kept
            assert [friend.send('/count') for _ in range(2)] == ([2, 3] if kept else [2, 1])
            clock.go_on()

    def test_old_connections_of_many(self):
        """With connections that get old all the time, 16 threads lose no call."""
        service = make(max_age=0.01)

        def calls(thread):
            return all(friend.send('/echo', [thread, i]) == [thread, i] for i in range(60))

        with calling(service) as (_, friend):
            assert all(call_all(16, calls))
        assert len(service.ran) == 16 * 60

    def test_keep_alive_probes(self, friend, service):
        """Both sides ask the system to probe a silent connection, first after a minute."""
        friend.send('/echo', 1)
        socks = sockets_of(service, friend)
        assert len(socks) >= 2
        for sock in socks:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            for name in ('TCP_KEEPIDLE', 'TCP_KEEPALIVE'):
                if hasattr(socket, name):
                    assert sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == 60

    def test_all_busy(self):
        """If every connection is busy, a newcomer gets 503 at once."""
        with serving(holding(make(max_connections=2))) as service, contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(service)) for _ in range(2)]
            for sock in socks:
                sock.sendall(request(b'', '/hold', extra=b'Connection: close\r\n'))
                assert service.held.acquire(timeout=TIMEOUT)
            for _ in range(20):
                assert statuses(raw(service, b'', end=False)) == [503]
                with Friend('app1', service.address) as friend:
                    with failing(Busy, status=503, sent=False):
                        friend.send('/echo', 1)
            service.release.set()
            assert [statuses(receive(sock)) for sock in socks] == [[200]] * 2
            stack.close()
            until(lambda: not connections_of(service))
            assert statuses(raw(service, request())) == [200]

    def test_bad_company(self):
        """Silent and resetting clients hinder nobody, and leave nothing behind."""
        abort = struct.pack('hh' if os.name == 'nt' else 'ii', 1, 0)
        with serving() as service, contextlib.ExitStack() as stack:
            before = resources()
            for number in range(60):
                sock = connect(service)
                if number % 3:
                    stack.enter_context(sock)
                else:
                    sock.sendall(request()[: number + 1])
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abort)
                    sock.close()
                if number % 10 == 0:
                    assert statuses(raw(service, request())) == [200]
            stack.close()
            until_released(before)

    def test_burst(self, service):
        """A hundred clients that connect at once are all served."""

        def call(number):
            with Friend('app1', service.address) as friend:
                return friend.send('/echo', number)

        assert call_all(100, call) == list(range(100))


REFUSED_EVERYWHERE = [
    # status, method, path, headers, body
    (404, 'POST', '/nothing', JSON, b''),
    (404, 'POST', '/ech', JSON, b'{}'),
    (404, 'POST', '/', JSON, b'{}'),
    (404, 'POST', '/echo/', JSON, b'{}'),
    (404, 'POST', '/echo?args=1', JSON, b'{}'),
    (404, 'GET', '/?x', {}, b''),
    (404, 'POST', '/%C3%A4', JSON, b''),
    (405, 'GET', '/echo', {}, b''),
    (405, 'DELETE', '/echo', JSON, b''),
    (501, 'BREW', '/echo', JSON, b''),
    (415, 'POST', '/echo', {'Content-Type': 'text/plain'}, b'{}'),
    (415, 'POST', '/echo', {'Content-Type': 'application/x-www-form-urlencoded'}, b'a=1'),
    (400, 'POST', '/echo', JSON, b'{'),
    (400, 'POST', '/echo', JSON, b'[]'),
    (400, 'POST', '/echo', JSON, b'\xff'),
    (400, 'POST', '/echo', JSON, b'{"args":[NaN]}'),
    (400, 'POST', '/echo', JSON, b'{"args":{}}'),
    (400, 'POST', '/echo', JSON, b'{"other":1}'),
    (401, 'POST', '/guarded', JSON, b'{}'),
    (401, 'POST', '/guarded', JSON, b'{"token":"wrong"}'),
    (403, 'POST', '/echo', {**JSON, 'Origin': 'http://evil.example'}, b'{}'),
    (403, 'GET', '/', {'Origin': 'http://evil.example'}, b''),
    (403, 'POST', '/echo', {**JSON, 'Sec-Fetch-Site': 'cross-site'}, b'{}'),
    (413, 'POST', '/echo', JSON, b'{"args":["%b"]}' % (b'x' * 200)),
    (422, 'POST', '/guarded', JSON, b'{"args":[1],"token":"right"}'),
    (422, 'POST', '/aecho', JSON, b'{"args":[1,2]}'),
    (500, 'POST', '/fail', JSON, b'{"args":["ValueError"]}'),
    (500, 'POST', '/afail', JSON, b'{"args":["ValueError"]}'),
]


ANSWERED_EVERYWHERE = [  # method, path, headers, body; the reply
    ('POST', '/echo', JSON, b'{"args":["\xc3\xa4"]}', b'["\\u00e4"]'),
    ('POST', '/aecho', JSON, b'{"args":["\xc3\xa4"]}', b'["\\u00e4"]'),
    ('GET', '/now', {}, b'', b'["now"]'),
    ('POST', '/gr%C3%BC%C3%9Fe%20dich', JSON, b'{}', b'["da"]'),
]


class TestEveryHost:
    """The listener, WSGI and ASGI give one answer."""

    @pytest.mark.filterwarnings('ignore:Unknown REQUEST_METHOD')  # the validator's, of BREW
    @pytest.mark.parametrize('status, method, path, headers, body', REFUSED_EVERYWHERE)
    def test_refused(self, status, method, path, headers, body):
        """A refused request gets the same status and the same problem from each host."""
        answers = []
        for ask in (by_listener, by_wsgi, by_asgi):
            service = make_async(max_body=200)
            service.typing('/guarded', token='right')(lambda: None)
            answers.append(ask(service, method, path, headers, body))
            assert service.ran == [] or status == 500
            service.stop()
        problems = [json.loads(reply) for _, _, reply in answers]
        assert problems[0]['status'] == status
        assert problems == [problems[0]] * 3
        for got, fields, reply in answers:
            assert got == status
            assert fields['content-type'] == 'application/problem+json'
            assert int(fields['content-length']) == len(reply)
            assert fields.get('allow') == ('POST' if status == 405 else None)
            assert ('www-authenticate' in fields) == (status == 401)

    @HOSTS
    @pytest.mark.parametrize('method, path, headers, body, told', ANSWERED_EVERYWHERE)
    def test_answered(self, ask, method, path, headers, body, told):
        """A call of a plain rule, of an async one and by GET is answered by each host."""
        service = make_async()
        service.typing('/now', methods=['GET'])(lambda: 'now')
        service.typing('/grüße dich')(lambda: 'da')
        status, fields, reply = ask(service, method, path, headers, body)
        assert (status, fields['content-type'], reply) == (200, 'application/json', told)
        service.stop()

    @pytest.mark.parametrize('ask', [by_listener, by_wsgi])
    def test_path_not_utf8(self, ask):
        """A path that is not UTF-8 is malformed; under ASGI the server decodes it."""
        assert ask(make(), 'POST', '/%FF', JSON, b'')[0] == 400

    @HOSTS
    @pytest.mark.parametrize('method, body', [('GET', b'["app1"]'), ('HEAD', b'')])
    def test_health(self, ask, method, body):
        """GET / names the service and HEAD / does so without a body; neither wants a token."""
        for token in (None, 'secret'):
            status, fields, reply = ask(make(token=token), method, '/', {}, b'')
            assert (status, reply) == (200, body)
            assert fields['content-type'] == 'application/json'
            assert fields['content-length'] == '8'

    @HOSTS
    def test_head_of_a_rule(self, ask):
        """HEAD of a rule is refused without a body, but with its length."""
        status, fields, reply = ask(make(), 'HEAD', '/echo', {}, b'')
        assert (status, fields['allow'], reply) == (405, 'POST', b'')
        assert int(fields['content-length']) > 0


class QuietHandler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *args):
        pass


class TestWsgi:
    """Micro.wsgi; the validator watches each call, in by_wsgi."""

    @pytest.mark.parametrize('length', ['x', '-1', '+1', '1.0', ' 2', '\xb2', '1_0', '0x2'])
    def test_bad_length(self, length, caplog):
        """A length that is not a plain number is refused, even if int() would take it."""
        caplog.set_level('INFO', 'microconnect')
        told = []
        environ = {'REQUEST_METHOD': 'POST', 'PATH_INFO': '/echo', 'CONTENT_LENGTH': length}
        environ.update({'CONTENT_TYPE': 'application/json', 'wsgi.input': io.BytesIO(b'{}')})
        reply = b''.join(make().wsgi(environ, lambda status, headers: told.append(status)))
        assert told == ['400 Bad Request']
        assert b'Content-Length' in reply
        assert re.match(r"refused 400: '' in \S+ ms: .*Content-Length", caplog.messages[-1])

    def test_length_of_many_digits(self):
        """A length of thousands of digits is too large, as it is for the listener."""
        answer = by_wsgi(make(), 'POST', '/echo', JSON, b'', CONTENT_LENGTH='9' * 4000)
        assert answer[0] == 413

    def test_short_body(self):
        """A body that ends before its length is refused, and nothing runs."""
        service = make()
        status = by_wsgi(service, 'POST', '/echo', JSON, b'{}', CONTENT_LENGTH='3')[0]
        assert (status, service.ran) == (400, [])

    def test_too_large_is_not_read(self):
        """A body over the limit is refused by its length, without reading it."""
        source = io.BytesIO(b'x' * 1000)
        service = make(max_body=100)
        options = {'wsgi.input': source, 'CONTENT_LENGTH': '1000'}
        assert by_wsgi(service, 'POST', '/echo', JSON, b'', **options)[0] == 413
        assert source.tell() == 0

    @pytest.mark.parametrize('is_terminated', [True, False])
    @pytest.mark.parametrize('size, status', [(100, 200), (101, 413)])
    def test_chunked(self, size, status, is_terminated):
        """A chunked body is read, up to the limit, but only if the server marks its end."""
        service, body = make(max_body=100), b'{"args":["%b"]}' % (b'x' * (size - 13))
        options = {'CONTENT_LENGTH': '', 'HTTP_TRANSFER_ENCODING': 'chunked'}
        options.update({'wsgi.input_terminated': True} if is_terminated else {})
        answer = by_wsgi(service, 'POST', '/echo', JSON, body, **options)
        assert answer[0] == (status if is_terminated else 411)
        assert len(service.ran) == (answer[0] == 200)

    def test_mounted(self):
        """Under a prefix, the rule is what follows the prefix."""
        got = by_wsgi(make(), 'POST', '/echo', JSON, b'{"args":[1]}', SCRIPT_NAME='/rpc')
        assert got[::2] == (200, b'[1]')

    def test_simple_server(self):
        """A Friend calls a service that wsgiref serves."""
        application = wsgiref.validate.validator(make().wsgi)
        server = wsgiref.simple_server.make_server(
            '127.0.0.1', 0, application, handler_class=QuietHandler
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            with Friend('app1', f'127.0.0.1:{server.server_port}', timeout=TIMEOUT) as friend:
                assert friend.ping(TIMEOUT)
                assert friend.send('/echo', 'ä', 2) == ('ä', 2)
                with pytest.raises(ValueError, match='why'):
                    friend.send('/fail', 'ValueError')
                with pytest.raises(UnknownRule, match="did you mean '/echo'"):
                    friend.send('/ecko')
        finally:
            server.shutdown()
            server.server_close()
            thread.join(TIMEOUT)


# fmt: off
MOUNTED = [  # root_path, path
    ('/rpc', '/rpc/echo'), ('/rpc', '/echo'), ('/rpc/', '/rpc/echo'), ('/', '/echo'),
    ('/ec', '/echo'), ('/echo', '/echo/echo'),
]
# fmt: on


class TestAsgi:
    """Micro.asgi."""

    @pytest.mark.parametrize('pieces', [1, 2, 7, 12])
    def test_pieces(self, pieces):
        """The body may come in any number of pieces."""
        body = b'{"args":[1]}'
        answer = by_asgi(make(), 'POST', '/echo', JSON, body, pieces=pieces)
        assert answer[::2] == (200, b'[1]')

    def test_disconnect(self):
        """If the client disconnects in the middle of its body, nothing runs."""
        service = make()
        body = b'{"args":[1]}'
        assert by_asgi(service, 'POST', '/echo', JSON, body, disconnect=True) is None
        assert service.ran == []

    def test_too_large_is_not_kept(self):
        """A body is refused as soon as it is over the limit: its rest is not read."""
        service = make(max_body=100)
        # With disconnect: whoever asked for more would find the client gone, and answer nothing.
        body = b'x' * 150
        answer = by_asgi(service, 'POST', '/echo', JSON, body, pieces=3, disconnect=True)
        assert answer[0] == 413

    def test_mounted(self):
        """The rule is what follows root_path, which some servers leave out of the path."""
        for root_path, path in MOUNTED:
            answer = by_asgi(make(), 'POST', path, JSON, b'{"args":[1]}', root_path=root_path)
            assert answer[::2] == (200, b'[1]'), (root_path, path)
        # The mount point itself is the health check.
        answer = by_asgi(make(), 'GET', '/rpc', {}, b'', root_path='/rpc')
        assert answer[::2] == (200, b'["app1"]')

    def test_threads(self):
        """A plain rule runs in a thread, an async one on the running loop."""
        service = make_async()
        service.typing('/thread')(lambda: threading.current_thread() is threading.main_thread())
        assert by_asgi(service, 'POST', '/thread', JSON, b'')[2] == b'[false]'
        assert by_asgi(service, 'POST', '/loop', JSON, b'')[2] == b'[null]'
        assert service.loop_thread is threading.current_thread()

    def test_lifespan(self):
        """Startup and shutdown are acknowledged."""
        messages = [{'type': 'lifespan.startup'}, {'type': 'lifespan.shutdown'}]
        sent = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message['type'])

        asyncio.run(make().asgi({'type': 'lifespan'}, receive, send))
        assert sent == ['lifespan.startup.complete', 'lifespan.shutdown.complete']

    def test_websocket(self):
        """A scope other than http raises an error, as the specification demands."""
        with pytest.raises(RuntimeError, match='websocket'):
            asyncio.run(make().asgi({'type': 'websocket', 'path': '/'}, None, None))

    def test_recognised(self):
        """Servers recognise it as ASGI 3: it is a coroutine function."""
        application = make().asgi
        kind = type(application)
        called = application if kind.__name__ == 'function' else kind.__call__
        assert asyncio.iscoroutinefunction(called)


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

SERVERS = {
    'gunicorn-sync': ['gunicorn', '-b', '127.0.0.1:PORT', 'app1'],
    'gunicorn-gthread': ['gunicorn', '--threads', '4', '-b', '127.0.0.1:PORT', 'app1'],
    'waitress': ['waitress', '--listen', '127.0.0.1:PORT', 'app1:Micro.wsgi'],
    'uvicorn': ['uvicorn', '--port', 'PORT', 'app1:Micro.asgi'],
    'hypercorn': ['hypercorn', '-b', '127.0.0.1:PORT', 'app1:Micro.asgi'],
}


class TestServers:
    """The servers that many use, where they are installed."""

    @pytest.mark.parametrize('server', SERVERS)
    def test_tutorial(self, server, tmp_path):
        """The tutorial's service gives its values and errors under the server of another."""
        pytest.importorskip(SERVERS[server][0])
        (tmp_path / 'app1.py').write_text(HOSTED)
        shutil.copy(EXAMPLES / 'tutorial' / 'service.py', tmp_path)
        port = dead_address().rpartition(':')[2]
        command = [part.replace('PORT', port) for part in SERVERS[server]]
        with running('-m', *command, folder=tmp_path):
            with Friend('app1', f'http://127.0.0.1:{port}', timeout=TIMEOUT) as friend:
                friend.wait(TIMEOUT)
                check_tutorial(friend)
                assert call_all(8, lambda _: friend.send('/sleep', 'ä')) == ['ä'] * 8
                assert len(friend.send('/str', 'x' * 300000, key='')) == 300001
                friend.setRule('/class', token='wrong')
                with pytest.raises(Forbidden):
                    friend.send('/class', 1)
                with pytest.raises(UnknownRule, match='did you mean'):
                    friend.send('/strr')
                with pytest.raises(BadArguments):
                    friend.send('/str', 1, 2, 3)
                with pytest.raises(ValueError, match='why') as caught:
                    friend.send('/fail', 'why')
                assert caught.value.type == 'ValueError'


class TestFrameworks:
    """The examples of services beside a framework's own routes, where it is installed."""

    @pytest.mark.parametrize('name', ['flask', 'sanic', 'starlette', 'fastapi'])
    def test_example(self, name, tmp_path):
        """One port answers the framework's own route, and the rules of the tutorial."""
        pytest.importorskip(name)
        if name in ('starlette', 'fastapi'):
            pytest.importorskip('uvicorn')
        address = dead_address()
        example = EXAMPLES / 'frameworks' / f'{name}_app.py'
        with running(str(example), address.rpartition(':')[2], folder=tmp_path):
            with Friend('app1', f'{address}/rpc', timeout=TIMEOUT) as friend:
                friend.wait(TIMEOUT)
                assert friend.send('/helloworld', 'Mr. Developer') == 'Welcome Mr. Developer'
                assert friend.send('/later', 2, delay=0.001) == 2
                check_tutorial(friend)
                with pytest.raises(UnknownRule):
                    friend.send('/nothing')
                with pytest.raises(BadArguments):
                    friend.send('/helloworld')
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f'{address}/', timeout=TIMEOUT) as reply:
                assert reply.read().decode().lower() == f'{name} answers here'


# ------------------------------------------------------------------------------------- Microservice

SHARING = """
import sys
from microconnect import Microservice
Micro = Microservice('second')
Micro.typing('/who')(lambda: 'second')
Micro.run(port=int(sys.argv[1]), host='127.0.0.1', reuse_port=True)
"""


class TestStart:
    def test_start(self):
        """start returns the service, which serves until the end of `with`."""
        service = make()
        with service.start(port=0, host='127.0.0.1') as same:
            assert same is service
            assert re.fullmatch(r'http://127\.0\.0\.1:[0-9]+', service.address)
            with pytest.raises(RuntimeError, match=f'serves already, at {service.address}'):
                service.start(port=0, host='127.0.0.1')
            assert statuses(raw(service, request())) == [200]
        with pytest.raises(RuntimeError, match='does not serve'):
            service.address  # noqa: B018

    def test_host_and_port_of_the_class(self):
        """Host and port may be given to the class instead."""
        with Microservice('app1', 0, '127.0.0.1').start() as service:
            assert statuses(raw(service, request(b'', '/', 'GET'))) == [200]

    def test_start_again(self):
        """A service that was stopped can start again, and a friend goes on with it."""
        service = counting(make())
        with serving(service):
            port = port_of(service)
            friend = Friend('app1', service.address)
            assert friend.send('/count') == 1
        with service.start(port, '127.0.0.1'), friend:
            assert friend.send('/count') == 1

    @pytest.mark.parametrize('of_class', [None, False, True])
    def test_debug(self, of_class):
        """debug of start takes the place of that of the class."""
        service = make(debug=of_class)

        def has_traceback():
            return 'traceback' in ask(service, b'{"args":["KeyError"]}', '/fail')[2]['exception']

        expected = bool(of_class)
        for of_start in (None, True, None, False, None):
            expected = expected if of_start is None else of_start
            with service.start(port=0, host='127.0.0.1', debug=of_start):
                assert (has_traceback(), bool(service.debug)) == (expected, expected)

    def test_debug_of_a_running_service(self, caplog, capsys):
        """A level or debug that is set while a service answers counts from the next call on."""
        service = make()
        ask(service)
        caplog.set_level(logging.DEBUG, 'microconnect')
        ask(service)
        assert len(caplog.messages) == 1
        service.debug = True
        ask(service)
        assert capsys.readouterr().err.startswith("app1: answered 200: '/echo'")

    @pytest.mark.parametrize('reuse_port', [False, True])
    def test_port_in_use(self, service, reuse_port):
        """A port that is taken is an OSError that names it and says what to do."""
        if reuse_port and not hasattr(socket, 'SO_REUSEPORT'):
            pytest.skip('this system cannot share a port')
        port = port_of(service)
        with pytest.raises(OSError, match=f'127.0.0.1:{port}: .*another port') as caught:
            make().start(port, '127.0.0.1', reuse_port=reuse_port)
        assert caught.value.errno == errno.EADDRINUSE
        assert statuses(raw(service, request())) == [200]

    def test_started_twice_at_once(self, monkeypatch):
        """If two threads start a service at once, one of them fails: it serves already."""
        service, listen = make(), socket.socket.listen
        entered, go_on = threading.Event(), threading.Event()

        def slowly(*args):
            entered.set()
            go_on.wait(TIMEOUT)
            listen(*args)

        monkeypatch.setattr(socket.socket, 'listen', slowly)
        start = functools.partial(service.start, 0, '127.0.0.1')
        with background(start) as first, background(start) as second:
            assert entered.wait(TIMEOUT)
            go_on.set()
            results = [call.exception(TIMEOUT) for call in (first, second)]
        service.stop()
        told = [str(error) for error in results if error]
        assert len(told) == 1 and 'serves already' in told[0]

    def test_without_a_thread(self, monkeypatch):
        """A service that gets no thread says so, frees its port, and can start again."""
        service = make()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, 'start', lambda self: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                service.start(port=0, host='127.0.0.1')
        service.stop()
        with calling(service) as (_, friend):
            assert friend.ping()

    def test_interrupted(self, caplog):
        """After a signal in the middle of start, nothing listens."""

        def interrupt(record):
            raise KeyboardInterrupt

        service = make(token={'/ecko': 'secret'})
        before = resources()
        with warning(caplog, interrupt), pytest.raises(KeyboardInterrupt):
            service.start(port=0, host='127.0.0.1')
        until_released(before)
        with calling(service) as (_, friend):
            assert friend.ping()

    def test_stopped_by_a_handler(self, caplog):
        """A signal handler that stops the service in the middle of its start does not wait."""
        service = make(token={'/ecko': 'secret'})
        with warning(caplog, lambda record: service.stop() or True):
            with background(service.start, 0, '127.0.0.1') as starting:
                starting.result(TIMEOUT)
        until(lambda: not is_serving(service))
        with calling(service) as (_, friend):
            assert friend.ping()

    def test_a_cell_run_again(self, monkeypatch):
        """In a notebook a service ends the one of its name that was started there before."""

        def run_cell(number, name='app1'):
            service = Microservice(name, port, '127.0.0.1')
            service.typing('/f')(lambda: number)
            return service

        port = int(dead_address().rpartition(':')[2])
        first = run_cell(1)
        first.typing('/other')(lambda: 'kept')
        with contextlib.ExitStack() as stack:
            stack.enter_context(first.start())
            with pytest.raises(OSError, match='cannot listen'):
                run_cell(2).start()
            monkeypatch.setattr(sys, 'ps1', '>>> ', raising=False)
            with pytest.raises(OSError, match='cannot listen'):
                run_cell(2, name='another').start()
            with serving(run_cell(3)):
                assert is_serving(first)  # at another port, each lives on
            again = stack.enter_context(run_cell(4).start())
            assert not is_serving(first)
            with Friend('app1', again.address, timeout=TIMEOUT) as friend:
                assert friend.send('/f') == 4
                with pytest.raises(UnknownRule):
                    friend.send('/other')

    @pytest.mark.skipif(not sys.platform.startswith('linux'), reason='only Linux spreads calls')
    def test_shared_port(self):
        """Two processes that say reuse_port share a port, and both answer."""
        service = Microservice('first')
        service.typing('/who')(lambda: 'first')
        with service.start(port=0, host='127.0.0.1', reuse_port=True):
            port = port_of(service)
            seen, deadline = set(), time.monotonic() + TIMEOUT
            with running('-c', SHARING, str(port)):
                with Friend('both', f'127.0.0.1:{port}', timeout=TIMEOUT) as friend:
                    while len(seen) < 2 and time.monotonic() < deadline:
                        seen.add(friend.send('/who'))
                        friend.close()  # the next call connects anew
        assert seen == {'first', 'second'}

    def test_shared_port_is_unsupported(self, monkeypatch):
        """A system without SO_REUSEPORT is an OSError, and nothing listens."""
        monkeypatch.delattr(socket, 'SO_REUSEPORT', raising=False)
        service = make()
        with pytest.raises(OSError, match='cannot share a port'):
            service.start(port=0, host='127.0.0.1', reuse_port=True)
        assert not is_serving(service)


WARNINGS = [  # host, options; the warnings
    ('0.0.0.0', {}, ['the network can call /echo, /fail at 0.0.0.0: ']),
    ('0.0.0.0', {'token': {'/echo': 'secret'}}, ['the network can call /fail at 0.0.0.0: ']),
    ('0.0.0.0', {'token': 'secret'}, []),
    ('127.0.0.1', {}, []),
    ('127.0.0.1', {'token': False}, []),
    ('127.0.0.1', {'token': None}, ['token=None, so anyone can call /echo, /fail: ']),
    ('0.0.0.0', {'token': None}, ['token=None, so anyone can call /', 'the network can call /']),
    (
        '0.0.0.0',
        {'token': 'secret', 'debug': True},
        ['debug sends tracebacks to all'],
    ),
    ('127.0.0.1', {'debug': True}, []),
]


class TestWarnings:
    @pytest.mark.parametrize('host, options, told', WARNINGS)
    def test_at_start(self, host, options, told, caplog):
        """start warns of rules that anyone can call, of a token that is missing, and of debug."""
        make(**options).start(port=0, host=host).stop()
        assert len(caplog.messages) == len(told)
        for line, beginning in zip(caplog.messages, told):
            assert line.startswith(beginning)

    def test_missing_token_of_a_rule(self, caplog):
        """A rule whose token is None is warned of, until one is set."""
        service = make()
        service.typing('/f', token=os.environ.get('MICROCONNECT_NO_SUCH_VARIABLE'))(int)
        service.start(port=0, host='127.0.0.1').stop()
        assert [line.partition(':')[0] for line in caplog.messages] == [
            'token=None, so anyone can call /f'
        ]
        service.token['/f'] = SECRET
        service.start(port=0, host='127.0.0.1').stop()
        assert len(caplog.messages) == 1

    def test_no_rules(self, caplog):
        """A service without rules says so when it starts."""
        Microservice('app1').start(port=0, host='127.0.0.1').stop()
        assert [line[:18] for line in caplog.messages] == ['app1 has no rules:']

    @pytest.mark.parametrize('host', ['listener', 'wsgi', 'asgi', 'friend'])
    @pytest.mark.parametrize(
        'token, told',
        [
            ({'/ecko': SECRET, '/fail': SECRET}, "'/ecko': did you mean '/echo'?"),
            ({SECRET: '/echo'}, 'for it'),  # misplaced: it must not be shown
        ],
        ids=['rule', 'token'],
    )
    def test_token_of_no_rule(self, host, token, told, caplog):
        """A token without its rule guards nothing: every host warns, and shows no token."""
        service = make(token=token)
        if host == 'listener':
            service.start(port=0, host='127.0.0.1').stop()
        else:
            Friend('app1', service) if host == 'friend' else getattr(service, host)
        assert caplog.messages == [f'a token is set, and there is no rule {told}']


class TestStop:
    def test_twice(self):
        """stop does nothing before start, and the second time."""
        service = make()
        service.stop()
        with serving(service):
            service.stop()
            service.stop()

    def test_in_a_rule(self):
        """A rule may stop its service: its reply still arrives."""
        with calling(service_of(lambda: service.stop() or 'bye')) as (service, friend):
            assert friend.send('/f') == 'bye'
            until(lambda: not is_serving(service))
            with pytest.raises(Unreachable):
                friend.send('/f')

    @needs_signals
    def test_in_a_signal_handler(self):
        """A signal handler may stop the service, in the middle of a call of its own thread."""
        service = service_of(lambda: os.kill(os.getpid(), signal.SIGUSR1) or 'sent')
        with handling(signal.SIGUSR1, lambda *_: service.stop()):
            with calling(service) as (_, friend):
                assert friend.send('/f') == 'sent'
                until(lambda: not is_serving(service))  # the handler may come after the reply

    def test_finishes_calls(self):
        """stop waits for the calls in flight, whose replies arrive, and refuses new ones."""
        refusals = (Busy, Unreachable)

        def is_refused():
            with Friend('app1', address) as another:
                try:
                    return another.send('/echo', 'new') != 'new'
                except refusals as error:
                    return not error.sent

        with calling(holding(make())) as (service, friend):
            address = service.address
            with background(friend.send, '/hold') as call, connect(service) as sock:
                sock.sendall(request(b'', '/hold'))
                for _ in range(2):
                    assert service.held.acquire(timeout=TIMEOUT)
                with background(service.stop) as stopping:
                    until(is_refused)
                    assert is_refused() and not call.done() and not stopping.done()
                    service.release.set()
                    assert call.result(TIMEOUT) == 'held'
                    assert statuses(receive(sock)) == [200]
                    sock.close()
                    stopping.result(TIMEOUT)
            with pytest.raises(refusals):
                friend.send('/echo', 1)

    def test_cuts_off(self):
        """A call that outlasts the grace is cut off: its caller gets ConnectionLost."""
        before = resources()
        with calling(holding(make())) as (service, friend):
            with background(friend.send, '/hold') as call:
                assert service.held.acquire(timeout=TIMEOUT)
                with soon():
                    service.stop(grace=0.05)
                with failing(ConnectionLost, sent=True):
                    call.result(TIMEOUT)
                service.release.set()
        until_released(before)

    @pytest.mark.parametrize('sent', [request(), request()[:-1], b''], ids=['all', 'half', 'none'])
    def test_answers_those_who_came_last(self, sent, monkeypatch):
        """Who connected before stop, and was not accepted by then, is told that nothing ran."""
        accept, held, go_on = socket.socket.accept, threading.Event(), threading.Event()

        def slowly(listener):
            held.set()
            assert go_on.wait(TIMEOUT)
            return accept(listener)

        with serving() as service, contextlib.ExitStack() as stack:
            monkeypatch.setattr(socket.socket, 'accept', slowly)
            socks = [stack.enter_context(connect(service)) for _ in range(20)]
            for sock in socks:
                sock.sendall(sent)
            assert held.wait(TIMEOUT)
            stopping = stack.enter_context(background(service.stop))
            until(lambda: is_stopping(service))
            go_on.set()
            got = [statuses(receive(sock)) for sock in socks]
            stopping.result(TIMEOUT)
        assert all(told in ([408], [503]) for told in got), got
        assert service.ran == []

    def test_under_newcomers(self, monkeypatch):
        """stop ends though new connections come all the time."""
        shorten_queue(monkeypatch, 100)
        with serving() as service:
            address = ('127.0.0.1', port_of(service))
            started = threading.Event()

            def knock():
                while is_serving(service):
                    with contextlib.suppress(OSError):
                        # Linux may lose one as the port closes: it would try again after 1 s.
                        socket.create_connection(address, 0.05).close()
                        started.set()

            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                for _ in range(4):
                    pool.submit(knock)
                assert started.wait(TIMEOUT)
                with soon():
                    service.stop()

    @pytest.mark.usefixtures('each_way')
    def test_releases_everything(self):
        """After stop no thread and no descriptor is left, with clients still connected."""
        before = resources()
        with contextlib.ExitStack() as stack:
            with serving(make()) as service:
                friend = stack.enter_context(Friend('app1', service.address))
                assert friend.send('/echo', 1) == 1
                socks = [stack.enter_context(connect(service)) for _ in range(10)]
                for sock in socks[::2]:
                    sock.sendall(request()[:-1])
                assert statuses(raw(service, request())) == [200]
            assert [receive(sock).count(b'HTTP/1.1 408 ') for sock in socks] == [1] * 10
            stack.close()
            until_released(before)

    def test_left_behind(self):
        """A service that was only called in its process leaves nothing but the shared loop."""
        Friend('app1', make_async()).send('/aecho', 1)
        before = resources()
        for _ in range(3):
            assert Friend('app1', make_async()).send('/aecho', 1) == 1
        gc.collect()
        until_released(before)


SIGNALLED = """
import builtins, os, signal
from microconnect import Microservice
Micro = Microservice('app1', token='secret')
show = print
def show_and_get_signal(*words, **how):
    show(*words, **how)
    os.kill(os.getpid(), number)
builtins.print = show_and_get_signal
Micro.typing('/f')(int)
before = signal.getsignal(signal.SIGTERM)
for number in (signal.SIGINT, signal.SIGTERM):
    Micro.run(0, '127.0.0.1')
    show('ended', signal.getsignal(signal.SIGTERM) is before)
    try:
        Micro.address
    except RuntimeError:
        show('stopped')
"""


IDLE_PAIR = """
from microconnect import Friend, Microservice
Other, Micro = Microservice('app2'), Microservice('app1', port=0, host='127.0.0.1')
Other.typing('/f')(lambda: 7)
Micro.typing('/f')(lambda: 7)
friend = Friend('app2', Other.start(0, '127.0.0.1').address)
Micro.typing('/ask')(lambda: friend.send('/f'))
Micro.run()
"""

UNANNOUNCED = """
import os, sys
from microconnect import Microservice
Micro = Microservice('app1')
Micro.typing('/stop')(lambda: Micro.stop() or 'bye')
os.close(1)  # as by the parent: what is opened next has its number
Micro.run(port=int(sys.argv[1]), host='127.0.0.1')
print('ended', file=sys.stderr, flush=True)
os._exit(0)  # or Python itself complains of what it cannot flush
"""


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream


def broken_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, 'w')


NO_STDOUT = {  # what stands in the way of the announcement
    'closed': closed_stream,
    'none': lambda: None,
    'full': functools.partial(open, '/dev/full', 'w'),
    'broken': broken_pipe,
    'narrow': lambda: io.TextIOWrapper(io.BytesIO(), 'cp1252'),
}


CLOSED_MEANWHILE = """
import builtins, signal, socket, threading
from microconnect import Microservice
ours, theirs = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())
Micro = Microservice('app1', token='secret')
def close_and_stop(*words, **how):
    theirs.close()
    threading.Thread(target=Micro.stop).start()
builtins.print = close_and_stop
Micro.typing('/f')(int)
Micro.run(0, '127.0.0.1')
Micro.run(0, '127.0.0.1')
ours.close()
sys.stdout.write('ended twice')
"""


class TestRun:
    def test_announcement(self, capsys):
        """run prints where it listens, and what address to give to a friend here."""
        service = make(token=SECRET)
        with background(functools.partial(service.run, port=0, host='0.0.0.0')) as running:
            try:
                until(lambda: is_serving(service))
                address = service.address
                assert is_answering(address)
            finally:
                service.stop()
            running.result(TIMEOUT)
        bound = address.replace('http://127.0.0.1', '0.0.0.0')
        told = f'app1: listening on {bound}, here {address}; Ctrl-C stops it\n'
        assert capsys.readouterr().out == told

    @pytest.mark.parametrize('opened', NO_STDOUT.values(), ids=NO_STDOUT)
    def test_cannot_announce(self, opened, monkeypatch):
        """A service serves though it cannot print its announcement."""
        try:
            stdout = opened()
        except OSError:
            pytest.skip('there is no /dev/full here')
        service = Microservice('\u0441\u0435\u0440\u0432\u0438\u0441', 0, '127.0.0.1', token=SECRET)
        monkeypatch.setattr(sys, 'stdout', stdout)
        with background(service.run) as running:
            until(lambda: is_serving(service))
            assert is_answering(service.address)
            service.stop()
            assert running.result(TIMEOUT) is None
        with contextlib.suppress(AttributeError, OSError):
            stdout.close()

    def test_stdout_closed_by_the_parent(self):
        """A service serves though it was started without a standard output."""
        address = dead_address()
        with running('-c', UNANNOUNCED, address.rpartition(':')[2]) as process:
            with Friend('app1', address, timeout=TIMEOUT) as friend:
                friend.wait(TIMEOUT)
                assert friend.send('/stop') == 'bye'
            code, printed, complaint = outcome(process)
        assert (code, printed, complaint) == (0, [], 'ended\n')

    def test_stopped_at_once(self, monkeypatch, capsys):
        """run ends in good order, even if another thread stopped it before it could say so."""
        service, show = make(), print

        def stop_and_show(*words, **how):
            threading.Thread(target=service.stop).start()
            until(lambda: is_stopping(service))
            show(*words, **how)

        monkeypatch.setattr(builtins, 'print', stop_and_show)
        assert service.run(port=0, host='127.0.0.1') is None
        assert 'listening on 127.0.0.1:' in capsys.readouterr().out

    @pytest.mark.skipif(sys.platform != 'linux', reason='only Linux counts what a process does')
    def test_idle(self):
        """While nobody calls, run, start, and a friend with a kept connection wake nothing."""
        with running('-W', 'error', '-c', IDLE_PAIR) as process:
            address = announced(process)
            with Friend('app1', address, timeout=TIMEOUT) as friend:
                assert friend.send('/f') == friend.send('/ask') == 7
                until(lambda: woken(process, 0.25) == 0)

    @needs_signals
    @pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
    def test_signal(self, number):
        """SIGINT and SIGTERM finish the call in flight, refuse others, and say what is awaited."""
        with called() as (process, address, call):
            process.send_signal(number)
            told = process.stdout.readline().decode()
            name = signal.Signals(number).name
            assert told.startswith(f'app1 stops on {name}: 1 call in progress, up to ')
            until(lambda: not is_answering(address))
            assert not call.done()
            process.stdin.write(b'.')
            process.stdin.flush()
            assert call.result(TIMEOUT) == 'held'
            assert outcome(process) == (0, [], '')

    @needs_signals
    @pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
    def test_second_signal(self, number):
        """A second signal ends the service at once."""
        with called() as (process, address, call):
            process.send_signal(number)
            until(lambda: not is_answering(address))
            process.send_signal(number)
            with pytest.raises(ConnectionLost):
                call.result(TIMEOUT)
            code, _, complaint = outcome(process)
            assert (code, complaint) == (0, '')

    def test_wakeup_descriptor_closed_meanwhile(self):
        """run ends in good order, even if the wakeup descriptor of before is closed by then."""
        assert run(CLOSED_MEANWHILE) == (0, ['ended', 'twice'], '')

    @needs_signals
    def test_signal_while_it_starts(self):
        """A signal that comes just as `run` has started still ends the service."""
        code, printed, complaint = run(SIGNALLED)
        told = [word for word in printed if word in ('ended', 'True', 'stopped')]
        assert (code, told, complaint) == (0, ['ended', 'True', 'stopped'] * 2, '')


AT_EXIT = """
import asyncio
from microconnect import Friend, Microservice
Micro = Microservice('app1')
Micro.typing('/plain')(lambda: 1)
@Micro.typing('/async')
async def later():
    return 2
friend = Friend('app1', Micro.start(port=0, host='127.0.0.1').address)
print(friend.send('/plain'), friend.send('/async'))
"""


class TestExit:
    def test_while_it_serves(self):
        """A process ends without a word while its service serves and its friend is connected."""
        assert run(AT_EXIT) == (0, ['1', '2'], '')


FORKING = """
import os, signal, threading, warnings
from microconnect import Friend, Microservice
warnings.simplefilter('ignore')  # Python 3.12 warns of a fork beside threads
JSON = {'Content-Type': 'application/json'}
Micro = Microservice('app1', port=0, host='127.0.0.1')
local = threading.local()

@Micro.typing('/count')
def count():  # the calls on a connection, which has a thread
    local.count = getattr(local, 'count', 0) + 1
    return local.count

@Micro.typing('/later')
async def later():
    return 'done'

def in_child(function):
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return status >> 8 or -status
    signal.alarm(10)
    try:
        code = function()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 99
    os._exit(code)
"""

BY_C = """
import ctypes
def fork(fork=ctypes.PyDLL(None).fork):
    threading.Event().wait(0.1)  # it copies Python's own locks as they are: let them be free
    return fork()
os.fork = fork
"""

FORKS = {  # what holds; a script that shows it, and what it prints
    'a child has connections of its own': (
        """
friend = Friend('app1', Micro.start().address, timeout=9)
print(friend.send('/count'))
print(in_child(lambda: friend.send('/count') * 10 + friend.send('/count')))
print(friend.send('/count'))
""",
        '1 12 2',
    ),
    'async rules work in a child, and stop does not wait': (
        """
with Micro.start():
    friend = Friend('app1', Micro)
    friend.send('/later')
    def child():
        failed = friend.send('/later') != 'done'
        Micro.stop()
        return failed
    print(in_child(child))
""",
        '0',
    ),
    'a child keeps time': (
        """
from microconnect import CallTimeout
silent = __import__('socket').create_server(('127.0.0.1', 0))
friend = Friend('app1', '127.0.0.1:%d' % silent.getsockname()[1], timeout=0.1)
def is_late():
    try:
        return friend.send('/f')
    except CallTimeout:
        return 7
print(is_late(), in_child(is_late), is_late())
""",
        '7 7 7',
    ),
    'asend works in a child': (
        """
import asyncio
with Micro.start():
    friend = Friend('app1', Micro.address, timeout=9)
    async def calls():
        return await asyncio.gather(*(friend.asend('/count') for _ in range(9)))
    def child():
        return 0 if len(asyncio.run(calls())) == 9 else 1
    print(len(asyncio.run(calls())), *(in_child(child) for _ in range(3)))
    print(len(asyncio.run(calls())))
""",
        '9 0 0 0 9',
    ),
    'a child does not serve what its parent does': (
        """
def is_open(port):
    for descriptor in range(64):
        try:
            with __import__('socket').socket(fileno=os.dup(descriptor)) as sock:
                if sock.getsockname()[1] == port:
                    return True
        except (OSError, IndexError):
            pass
    return False
Micro.typing('/pid')(os.getpid)
with Micro.start():
    port = int(Micro.address.rpartition(':')[2])
    print(is_open(port))
    def child():
        try:
            Micro.address
            return 1
        except RuntimeError:
            if is_open(port):
                return 2
        with Micro.start(), Friend('app1', Micro.address) as friend:
            return 0 if friend.send('/pid') == os.getpid() else 3
    print(in_child(child))
    with Friend('app1', Micro.address) as friend:
        print(friend.send('/pid') == os.getpid())
""",
        'True 0 True',
    ),
    'a child forked in the middle of the start can start': (
        """
import logging
def fork():
    def child():
        with Micro.start():
            return 0
    del Micro.token['/none']
    print(in_child(child))
class InAnotherThread(logging.Handler):
    def emit(self, record):
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
handler = InAnotherThread()
handler.createLock = handler.acquire = handler.release = lambda: None
logging.getLogger('microconnect').addHandler(handler)
Micro.token['/none'] = 'of which start warns'
Micro.start()
with Friend('app1', Micro.address) as friend:
    print(friend.ping())
Micro.stop()
""",
        '0 True',
    ),
    'after stop the port is free, though a child lives on': (
        """
with Micro.start():
    address = Micro.address
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
with Friend('app1', address) as friend:
    print(friend.ping())
with Micro.start(port=int(address.rpartition(':')[2])):
    print('again')
os.close(theirs)
os.waitpid(child, 0)
""",
        'False again',
    ),
}

SIDE_BY_SIDE = """
import json, os, signal
import microconnect  # once for all
children = []
for script in sys.argv[1:]:
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(25)
        os.dup2(theirs, 1), os.dup2(theirs, 2), os.close(theirs)
        exec(script)
        break
    os.close(theirs)
    children.append((child, ours))
else:
    told = []
    for child, ours in children:
        with open(ours) as output:
            told.append((output.read(), os.waitpid(child, 0)[1]))
    print(json.dumps(told))
"""

ORPHANING = (
    FORKING
    + """
friend = Friend('app1', sys.argv[1], timeout=20)
Micro.typing('/relay')(friend.send)

@Micro.typing('/fork')
def fork():
    child = os.fork()
    if not child:
        signal.alarm(20)
        os.read(os.pipe()[0], 1)  # for ever
    return child

Micro.run()
"""
)

# The rest needs Python's help: after stop, and in a thread other than the main one.
# Not where many threads run at the fork: Python itself then may hang as it starts one in the child.
BY_C_TOO = [holds for holds in FORKS if not re.search('after stop|in the middle|asend', holds)]


@pytest.fixture(scope='class')
def forked():
    """What each script of FORKS prints, and its exit status; the second list is of forks by C."""
    scripts = [FORKING + script for script, _ in FORKS.values()]
    if sys.platform == 'linux' and sys.implementation.name == 'cpython':
        scripts += [FORKING + BY_C + FORKS[holds][0] for holds in BY_C_TOO]
    code, printed, complaint = run(SIDE_BY_SIDE, *scripts)
    assert (code, complaint) == (0, '')
    told = json.loads(' '.join(printed))
    return dict(zip(FORKS, told)), dict(zip(BY_C_TOO, told[len(FORKS) :]))


@needs_fork
class TestForks:
    @pytest.mark.parametrize('holds', FORKS)
    def test_fork(self, holds, forked):
        """A forked child neither disturbs its parent nor is disturbed by what it inherits."""
        text, status = forked[0][holds]
        assert (text.split(), status) == (FORKS[holds][1].split(), 0)

    @pytest.mark.parametrize('holds', BY_C_TOO)
    def test_fork_by_c(self, holds, forked):
        """The same holds for a child of which Python does not know: a C library forked it."""
        if not forked[1]:
            pytest.skip('a child of which Python does not know cannot go on here')
        text, status = forked[1][holds]
        assert (text.split(), status) == (FORKS[holds][1].split(), 0)

    def test_orphan(self):
        """A forked child ends no connection of its parent, and keeps none when the parent dies."""
        with calling(holding(counting(make()))) as (service, _), contextlib.ExitStack() as last:
            process = last.enter_context(running('-c', 'import sys' + ORPHANING, service.address))
            address = announced(process)
            friend = last.enter_context(Friend('app2', address, timeout=TIMEOUT))
            call = last.enter_context(background(friend.send, '/relay', '/hold'))
            assert service.held.acquire(timeout=TIMEOUT)
            assert [friend.send('/count'), friend.send('/relay', '/count')] == [1, 1]
            last.callback(os.kill, friend.send('/fork'), signal.SIGKILL)
            assert [friend.send('/count'), friend.send('/relay', '/count')] == [2, 2]
            process.kill()
            process.wait(TIMEOUT)
            with soon():
                assert isinstance(call.exception(TIMEOUT), ConnectionLost)
                with pytest.raises(Unreachable):
                    friend.send('/count')
                service.release.set()
                until(lambda: not connections_of(service))
                make().start(int(address.rpartition(':')[2]), '127.0.0.1').stop()


# ------------------------------------------------------------------------------------------- Friend


class TestFriend:
    def test_unreachable(self):
        """A call is Unreachable, and not sent, if nobody listens at the address."""
        address = dead_address()
        with Friend('app1', address) as friend:
            message = f'^/echo at {address}: cannot connect to 127.0.0.1:[0-9]+: .*refused; is it'
            with pytest.raises(Unreachable, match=message) as caught:
                friend.send('/echo')
        error = caught.value
        assert isinstance(error, ConnectionError)
        assert (error.rule, error.address) == ('/echo', address)
        assert (error.status, error.sent) == (None, False)

    def test_too_large_to_send(self):
        """A call over max_body is not sent; the error says both sizes."""
        with Friend('app1', '127.0.0.1:1', max_body=39) as friend:
            with pytest.raises(
                TooLarge, match='the call of 40 bytes is over max_body=39'
            ) as caught:
                friend.send('/echo', 'x' * (40 - len('{"args":[""],"kwargs":{},"token":null}')))
        assert (caught.value.rule, caught.value.sent) == ('/echo', False)

    def test_rule_without_utf8(self):
        """A rule with a lone surrogate has no form on the wire: it is a BadCall."""
        with Friend('app1', '127.0.0.1:1') as friend:
            with pytest.raises(BadCall, match='lone surrogate'):
                friend.send('/\ud800')

    @pytest.mark.skipif(sys.platform != 'linux', reason='a reset may take the reply with it here')
    def test_refused_in_the_middle(self):
        """A friend hears a service that answers and closes before it has read the call."""

        def script(sock, *_):
            sock.recv(1000)
            sock.sendall(response(b'', '413 Content Too Large'))

        with peer(script) as address, Friend('app1', address) as friend:
            with failing(TooLarge, status=413, sent=False):
                friend.send('/echo', 'x' * 8000000)

    def test_more_than_a_reply(self):
        """Bytes after a reply are not the reply to the next call."""
        replies = [response() + response(b'["y"]'), response(b'["z"]')]
        kept = contextlib.ExitStack()

        def script(sock, number, _):
            kept.enter_context(sock.dup())
            call_on(sock)
            sock.sendall(replies[number])

        with kept, peer(script) as address, Friend('app1', address) as friend:
            assert [friend.send('/echo') for _ in range(2)] == ['x', 'z']

    def test_more_after_a_reply(self):
        """A second reply that follows the first one is not the reply to the next call."""

        def script(sock, number, _):
            call_on(sock)
            sock.sendall(response(b'[%d]' % number))
            if number == 0:
                assert returned.wait(TIMEOUT)
                sock.sendall(response(b'["unasked"]'))
                sent.set()
                assert not call_on(sock)

        returned, sent = threading.Event(), threading.Event()
        with peer(script) as address, Friend('app1', address, timeout=TIMEOUT) as friend:
            assert friend.send('/echo') == 0
            returned.set()
            assert sent.wait(TIMEOUT)
            assert friend.send('/echo') == 1

    def test_many_interim_replies(self):
        """However many interim replies come first, each call gets its own reply."""
        interim = b'HTTP/1.1 102 Processing\r\n\r\n' * 10

        def script(sock, *_):
            for body in (b'["A"]', b'["B"]'):
                call_on(sock)
                sock.sendall(interim + response(body))

        with peer(script) as address, Friend('app1', address, timeout=TIMEOUT) as friend:
            assert [friend.send('/a'), friend.send('/b')] == ['A', 'B']

    def test_without_the_connections_of_others(self, service, monkeypatch):
        """What replaces http.client's connections, as vcrpy does, does not disturb a call."""
        monkeypatch.setattr(http.client, 'HTTPConnection', None)
        with Friend('app1', service.address) as friend:
            assert friend.send('/echo', 1) == 1

    def test_in_process(self):
        """A friend of a service in this process encodes, checks and decodes as over a socket."""
        service = make(token=SECRET)
        friend = Friend('app1', service, SECRET)
        value = {'a': [1, 2.5, None]}
        again = friend.send('/echo', value)
        assert again == value
        assert again is not value
        assert service.ran[0][0][0] is not value
        assert friend.send('/echo', (1, 2)) == [1, 2]
        assert friend.ping() is True
        assert friend.wait(1) is None
        friend.close()
        with pytest.raises(TooLarge):
            Friend('app1', make(max_body=50)).send('/echo', 'x' * 50)
        with pytest.raises(TooLarge):
            Friend('app1', service, SECRET, max_body=50).send('/echo', 'x' * 50)
        assert repr(friend) == "<Friend 'app1' at app1 (in process)>"

    @pytest.mark.parametrize('copied', [copy.copy, copy.deepcopy, pickle.dumps])
    def test_not_copied(self, copied):
        """A friend cannot be copied or pickled; the error says what to do instead."""
        with pytest.raises(TypeError, match='make one in each process'):
            copied(Friend('app1', '127.0.0.1:1'))


class TestAddresses:
    """The forms of an address."""

    @pytest.mark.parametrize(
        'form',
        [
            *('127.0.0.1:%d', 'http://127.0.0.1:%d', 'HTTP://127.0.0.1:%d/'),
            *('localhost:%d', 'http://LocalHost:%d', '0.0.0.0:%d'),
        ],
    )
    def test_forms(self, service, form):
        """A scheme and a last slash may be there or not; 0.0.0.0 is this machine."""
        with Friend('app1', form % port_of(service)) as friend:
            assert friend.send('/echo', 1) == 1

    @pytest.mark.parametrize('host', ['::1', '::'])
    def test_ipv6(self, host):
        """An IPv6 address stands in brackets, in Micro.address too."""
        service = make()
        try:
            service.start(port=0, host='::1')
        except OSError:
            pytest.skip('there is no IPv6 here')
        with service:
            assert service.address == f'http://[::1]:{port_of(service)}'
            with Friend('app1', f'[{host}]:{port_of(service)}') as friend:
                assert friend.send('/echo', 1) == 1

    @pytest.mark.parametrize(
        'prefix, line',
        [
            ('', 'POST /echo HTTP/1.1'),
            ('/', 'POST /echo HTTP/1.1'),
            ('/api/v1', 'POST /api/v1/echo HTTP/1.1'),
            ('/api/v1/', 'POST /api/v1/echo HTTP/1.1'),
            ('/a b/%2F', 'POST /a%20b/%2F/echo HTTP/1.1'),
        ],
    )
    def test_prefix(self, prefix, line):
        """A path in the address comes before the rule."""
        got = []
        with peer(answers(response(), got=got)) as address:
            with Friend('app1', address + prefix) as friend:
                assert friend.send('/echo') == 'x'
        assert got[0].decode().split('\r\n')[0] == line

    def test_a_family_that_is_not_there(self, monkeypatch):
        """An address of a family that the system lacks is skipped; the name's next one is tried."""
        real, look_up = socket.socket, socket.getaddrinfo

        class Socket(real):
            def __init__(self, family=socket.AF_INET, *args, **kwargs):
                if family == socket.AF_INET6:
                    raise OSError(errno.EAFNOSUPPORT, 'no such family')
                real.__init__(self, family, *args, **kwargs)

        def both(host, port, *args, **kwargs):
            if host != 'localhost':
                return look_up(host, port, *args, **kwargs)
            six = (socket.AF_INET6, socket.SOCK_STREAM, 6, '', ('::1', port, 0, 0))
            return [six, *look_up('127.0.0.1', port, *args, **kwargs)]

        with serving() as service:
            monkeypatch.setattr(socket, 'socket', Socket)
            monkeypatch.setattr(socket, 'getaddrinfo', both)
            with Friend('app1', by_name(service)) as friend:
                assert friend.send('/echo', 1) == 1

    def test_each_is_tried_once(self, monkeypatch):
        """The only address of a name is tried once, and has the whole time."""
        tried = []

        def refuse(sock, _):
            tried.append(sock.gettimeout())
            raise ConnectionRefusedError

        monkeypatch.setattr(socket.socket, 'connect', refuse)
        with Friend('app1', '127.0.0.1:9', timeout=9) as friend, pytest.raises(Unreachable):
            friend.send('/echo')
        assert len(tried) == 1 and 8 < tried[0] <= 9

    def test_localhost(self, monkeypatch):
        """Of the addresses of localhost, ::1 is tried last: most services do not listen there."""
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, '', ('::1', 5000, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, '', ('127.0.0.1', 5000)),
        ]
        tried = []
        look_up_by(monkeypatch, found, tried)
        with Friend('app1', 'localhost:5000') as friend, pytest.raises(Unreachable):
            friend.send('/echo')
        assert tried == [('127.0.0.1', 5000), ('::1', 5000, 0, 0)]

    def test_scope_of_ipv6(self, monkeypatch, proxies):
        """The scope of a link-local address is kept to connect by, and left out of Host."""
        found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, '', ('fe80::1', 5000, 0, 7))]
        tried, asked, got = [], [], []
        with monkeypatch.context() as patch:
            look_up_by(patch, found, tried)
            with Friend('app1', '[fe80::1%eth0]:5000') as friend:
                with pytest.raises(Unreachable, match=r'cannot connect to \[fe80::1\]:5000'):
                    friend.send('/echo')
        assert tried == [('fe80::1', 5000, 0, 7)]
        with peer(answers(response(), got=got)) as address:
            port = int(address.rpartition(':')[2])
            local = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', ('127.0.0.1', port))]

            def look_up(host, *args, look_up=socket.getaddrinfo, **kwargs):
                asked.append(host)
                return local if 'fe80' in host else look_up(host, *args, **kwargs)

            monkeypatch.setattr(socket, 'getaddrinfo', look_up)
            with Friend('app1', f'[fe80::1%eth0]:{port}') as friend:
                assert friend.send('/echo') == 'x'
        assert asked[0] == 'fe80::1%eth0'
        assert f'Host: [fe80::1]:{port}' in got[0].decode().split('\r\n')

    def test_name_that_cannot_be_looked_up(self):
        """A host name that is too long for DNS is Unreachable."""
        with Friend('app1', f'http://{"a" * 64}.invalid:1') as friend:
            with pytest.raises(Unreachable, match='cannot connect'):
                friend.send('/echo')


CLOSE = 'Connection: close\r\n'  # or the next call could meet the end of the connection


def refused_by(status, phrase, extra=CLOSE, **members):
    """The bytes of a refusal as a service writes it: problem details."""
    body = json.dumps({'title': phrase, 'status': status, 'detail': 'why', **members}).encode()
    return response(body, f'{status} {phrase}', 'application/problem+json', extra)


BUSY = refused_by(503, 'Service Unavailable')
IDLE = refused_by(408, 'Request Timeout')


class TestSeveralAddresses:
    """A list of addresses, of services that are the same."""

    def test_spread(self):
        """Calls are spread evenly."""
        services = [make() for _ in range(3)]
        with contextlib.ExitStack() as stack:
            addresses = [stack.enter_context(serving(service)).address for service in services]
            friend = stack.enter_context(Friend('app1', addresses))
            assert [friend.send('/echo', number) for number in range(9)] == list(range(9))
        assert [len(service.ran) for service in services] == [3, 3, 3]

    def test_spread_over_the_rest(self, clock):
        """While an address rests, its calls are spread evenly over the others."""
        one, other = make(), make()
        with one.start(0, '127.0.0.1'), other.start(0, '127.0.0.1'):
            addresses = [one.address, dead_address(), other.address]
            with Friend('app1', addresses) as friend:
                assert [friend.send('/echo', number) for number in (1, 2)] == [1, 2]
                one.ran.clear()
                other.ran.clear()
                assert [friend.send('/echo', number) for number in range(8)] == list(range(8))
            clock.go_on()
        assert (len(one.ran), len(other.ran)) == (4, 4)

    def test_dead(self, service):
        """An address where nobody listens is passed over."""
        with Friend('app1', [dead_address(), service.address]) as friend:
            assert [friend.send('/echo', number) for number in range(4)] == [0, 1, 2, 3]

    def test_busy_rests(self, service, clock):
        """A busy service is passed over, and then avoided for 5 seconds."""
        tried = []
        with peer(lambda sock, *_: tried.append(call_on(sock)) or sock.sendall(BUSY)) as address:
            with Friend('app1', (address, service.address)) as friend:
                for rests in (1, 2):
                    for number in range(10):
                        assert friend.send('/echo', number) == number
                    assert len(tried) == rests
                    clock.shift(5.01)

    def test_recovers(self, service, clock, caplog):
        """After its rest an address is called again."""
        caplog.set_level('INFO', 'microconnect')
        replies = [BUSY, *[response(b'["peer"]')] * 9]
        with peer(answers(*replies)) as address:
            with Friend('app1', [address, service.address]) as friend:
                assert [friend.send('/echo', 'service') for _ in range(4)] == ['service'] * 4
                clock.shift(5.01)
                assert 'peer' in [friend.send('/echo', 'service') for _ in range(2)]
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith(f'{address} rests for 5 s: /echo at {address}: ')

    def test_all_rest(self, clock):
        """If all addresses rest, they are tried nevertheless."""
        with peer(answers(BUSY, response(b'["peer"]'))) as address:
            with Friend('app1', [address, dead_address()]) as friend:
                with pytest.raises(Busy):
                    friend.send('/echo')
                assert friend.send('/echo') == 'peer'

    def test_may_have_run(self, service):
        """A call that may have run at one address is not sent to another."""
        with peer(lambda sock, *_: call_on(sock)) as address:
            with Friend('app1', [address, service.address]) as friend:
                with pytest.raises(ConnectionLost):
                    friend.send('/echo', 1)
        assert service.ran == []

    def test_none_left(self):
        """If no address takes the call, the error names each, and why."""
        addresses = [dead_address(), dead_address()]
        with Friend('app1', addresses) as friend:
            with pytest.raises(Unreachable) as caught:
                friend.send('/echo', 1)
        error = caught.value
        for address in addresses:
            assert f'/echo at {address}: cannot connect to 127.0.0.1:' in str(error)
        assert (error.rule, error.sent) == ('/echo', False)

    def test_none_left_that_answered(self):
        """If no address took the call and none was busy, the error is Unreachable."""

        def reset(sock, *_):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            sock.recv(1)

        with peer(reset) as one, peer(reset) as another:
            with Friend('app1', [one, another], timeout=TIMEOUT) as friend:
                with failing(Unreachable, status=None, sent=False):
                    friend.send('/echo', 'x' * 8000000)

    def test_none_left_but_busy(self):
        """If one of the addresses was busy, the error is Busy: a later call may succeed."""
        with peer(answers(BUSY)) as address:
            with Friend('app1', [dead_address(), address]) as friend:
                with failing(Busy, sent=False):
                    friend.send('/echo', 1)

    def test_silent_does_not_use_up_the_time(self, service):
        """An address that accepts no connection leaves time for the others."""
        with full() as address:
            with Friend('app1', [address, service.address], timeout=0.4) as friend:
                assert friend.send('/echo', 1) == 1


CALLS_AT_EXIT = """
import atexit
def goodbye():
    print(friend.send('/goodbye'))
atexit.register(lambda: friend.close())  # the last to run
atexit.register(goodbye)
from microconnect import Friend
atexit.register(goodbye)
friend = Friend('app1', sys.argv[1])
print(friend.send('/hello'))
"""


class TestConnections:
    """How a friend keeps its connections."""

    def test_kept(self, friend):
        """Calls one after the other share a connection, until close."""
        assert [friend.send('/count') for _ in range(3)] == [1, 2, 3]
        friend.close()
        assert [friend.send('/count') for _ in range(2)] == [1, 2]

    def test_kept_over_failures(self, friend):
        """A failure that is a whole reply costs no connection."""
        assert friend.send('/count') == 1
        with pytest.raises(ValueError, match='why'):
            friend.send('/fail', 'ValueError')
        with pytest.raises(UnknownRule):
            friend.send('/nowhere')
        assert friend.send('/count') == 2

    def test_old_ones_are_closed(self):
        """Calls close the connections of a burst that are not needed any more."""
        with calling(holding(counting(make()))) as (service, friend):
            with concurrent.futures.ThreadPoolExecutor(6) as pool:
                calls = [pool.submit(friend.send, '/hold') for _ in range(6)]
                for _ in calls:
                    assert service.held.acquire(timeout=TIMEOUT)
                service.release.set()
                assert [call.result(TIMEOUT) for call in calls] == ['held'] * 6
            *old, _ = links_of(friend)
            for link in old:
                make_old(link)
            for left in range(5, 0, -1):
                assert friend.send('/echo', 1) == 1
                assert len(links_of(friend)) == left
            assert [link.timed.sock.fileno() for link in old] == [-1] * 5

    def test_old_ones_are_taken_meanwhile(self, friend):
        """A call succeeds though other threads take all connections as it looks for old ones."""

        class Taken(collections.deque):
            def __len__(self):
                return 2

            def __getitem__(self, index):
                raise IndexError('taken meanwhile')

        replace_links(friend, Taken())
        assert friend.send('/echo', 1) == 1

    def test_threads(self, service, friend):
        """Threads that share a friend never get each other's replies."""

        def calls(thread):
            return all(friend.send('/echo', [thread, i]) == [thread, i] for i in range(25))

        assert all(call_all(32, calls))
        assert len(service.ran) == 32 * 25

    def test_call_at_exit(self):
        """A function that runs at exit may still call, registered before the import or after."""

        def answer_all(sock, *_):
            while call_on(sock):
                sock.sendall(response())

        with peer(answer_all) as address:
            assert run(CALLS_AT_EXIT, address) == (0, ['x', 'x', 'x'], '')

    def test_many_descriptors(self):
        """Descriptors over 1,023, the most that select takes, make no difference."""
        resource = pytest.importorskip('resource')
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard not in (-1, resource.RLIM_INFINITY) and hard < 1500:
            pytest.skip('there are not so many here')
        with contextlib.ExitStack() as stack:
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
            for _ in range(1100):
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            with calling(counting(make())) as (_, friend):
                assert [friend.send('/count') for _ in range(2)] == [1, 2]

    def test_never_closed(self, service):
        """A friend that is not closed releases its connections with itself, without a warning."""
        before = resources()
        friend = Friend('app1', service.address)
        friend.send('/echo', 1)
        friend.itself = friend
        del friend
        assert complaints() == []
        until_released(before)


ALARMS = [  # what a handler raises; what send raises
    (TimeoutError('the alarm rang'), ConnectionLost),
    (LookupError('of something else'), LookupError),
    (UnknownRule().with_call('/other', 'elsewhere'), BadReply),
]

PLANS = {  # replies on each connection; unasked bytes; what the second call gives; calls on each
    'kept': ([[response(), response()]], b'', 'x', [2]),
    'closed while idle': ([[response()], [response()]], b'', 'x', [1, 1]),
    'told of it unasked': ([[response()], [response()]], IDLE, 'x', [1, 1]),
    'a reply too many': ([[response()], [response(b'["z"]')]], response(b'["y"]'), 'z', [1, 1]),
    'told of it when asked': ([[response(), IDLE], [response()]], b'', 'x', [2, 1]),
    'told of it twice': ([[response(), IDLE], [IDLE]], b'', (Busy, False), [2, 1]),
    'a 408 that keeps the connection': (
        [[response(), refused_by(408, 'Request Timeout', extra='')]],
        b'',
        (Busy, False),
        [2],
    ),
    'a 408 of a router': (
        [[response(), response(b'', '408 Request Timeout', extra=CLOSE)]],
        b'',
        (CallTimeout, True),
        [2],
    ),
    'busy': ([[response(), BUSY]], b'', (Busy, False), [2]),
    'dropped': ([[response(), b'']], b'', (ConnectionLost, True), [2]),
    'cut off': ([[response(), b'HTTP/1.1 200']], b'', (BadReply, True), [2]),
    'closing was announced': (
        [[response(extra='Connection: close\r\n')], [response()]],
        b'',
        'x',
        [1, 1],
    ),
}


class TestAtMostOnce:
    """A call is sent a second time only where it is known not to have run."""

    def test_lost(self):
        """A call whose connection ends without a reply may have run, and is not repeated."""
        got = []
        with peer(answers(b'', got=got)) as address, Friend('app1', address) as friend:
            message = 'ended before a reply; the call may have run'
            with pytest.raises(ConnectionLost, match=message) as caught:
                friend.send('/echo')
        assert isinstance(caught.value, ConnectionError)
        assert (caught.value.sent, len(got)) == (True, 1)

    @pytest.mark.parametrize('plan, unasked, second, asked', PLANS.values(), ids=PLANS)
    def test_second_call(self, plan, unasked, second, asked):
        """The second call, on a kept connection, is sent again only if it cannot have run."""
        counts, returned, settled = [], threading.Event(), threading.Event()

        def script(sock, number, _):
            counts.append(0)
            for answer in plan[number]:
                if not call_on(sock):
                    return
                counts[-1] += 1
                sock.sendall(answer)
            returned.wait(TIMEOUT)
            sock.sendall(unasked)
            sock.close()
            settled.set()

        with peer(script) as address, Friend('app1', address) as friend:
            assert friend.send('/echo') == 'x'
            returned.set()
            if len(plan[0]) == 1:
                assert settled.wait(TIMEOUT)
            try:
                outcome = friend.send('/echo')
            except MicroconnectError as error:
                outcome = type(error), error.sent
        assert (outcome, counts) == (second, asked)

    def test_idle_for_long(self):
        """A service that closes its idle connections costs its friends no error."""
        with calling(counting(make(idle_timeout=0.03))) as (service, friend):
            for _ in range(3):
                assert friend.send('/count') == 1
                until(lambda: not connections_of(service))

    def test_closed_this_moment(self, service, monkeypatch):
        """A call that cannot leave, because its connection closes this moment, is sent again."""
        armed = []

        class Closing(Wrapped):
            def send(self, message):
                if armed and armed.pop():
                    self.sock.shutdown(socket.SHUT_RDWR)
                return self.sock.send(message)

            def sendall(self, message):
                self.send(message)

        connect_by(monkeypatch, Closing)
        with Friend('app1', service.address, timeout=TIMEOUT) as friend:
            assert friend.send('/echo', 1) == 1
            armed.append(True)
            assert friend.send('/echo', 2) == 2
        assert service.ran == [((1,), {}), ((2,), {})]

    @pytest.mark.parametrize('several', [True, False])
    @pytest.mark.parametrize('kept', [True, False])
    @pytest.mark.parametrize('raised, expected', ALARMS, ids=lambda v: getattr(v, '__name__', ''))
    def test_interrupted(self, service, monkeypatch, raised, expected, kept, several):
        """A signal handler that raises just after a call was sent does not repeat the call."""
        if os.name == 'nt' and isinstance(raised, TimeoutError):
            pytest.skip('on Windows it passes for a timeout of the socket')
        armed = []

        class Interrupted(Wrapped):
            def send(self, message):
                self.sock.sendall(message)
                if armed:
                    raise raised
                return len(message)

            sendall = send

        connect_by(monkeypatch, Interrupted)
        addresses = [service.address] * (1 + several)
        with Friend('app1', addresses, timeout=TIMEOUT) as friend:
            for _ in addresses if kept else ():
                friend.send('/echo', 'before')
            before = len(service.ran)
            armed.append(True)
            with pytest.raises(expected) as caught:
                friend.send('/echo', 'once')
            assert getattr(caught.value, 'sent', True) is True
            until(lambda: service.ran[before:])
        assert service.ran[before:] == [(('once',), {})]

    @needs_timers
    def test_interrupted_is_closed(self):
        """A call that Ctrl-C ends closes its connection at once, though the error is kept."""
        ended = threading.Event()

        def script(sock, *_):
            call_on(sock)
            os.kill(os.getpid(), signal.SIGALRM)
            if not sock.recv(1):
                ended.set()

        def interrupt(*_):
            raise KeyboardInterrupt

        with handling(signal.SIGALRM, interrupt), peer(script) as address:
            with Friend('app1', address, timeout=TIMEOUT) as friend:
                with pytest.raises(KeyboardInterrupt) as caught:
                    friend.send('/echo')
                with soon():
                    assert ended.wait(TIMEOUT)
                del caught


class TestWaiting:
    """ping and wait."""

    def test_ping(self):
        """ping tells whether a service takes calls, without a rule or a token."""
        with serving(token='secret') as service, Friend('app1', service.address) as friend:
            assert friend.ping() is True
            service.stop()
            assert friend.ping() is False

    @pytest.mark.parametrize(
        'reply, alive',
        [
            (response(), True),
            (response(b'', '404 Not Found'), True),
            (BUSY, False),
            (b'SSH-2.0\r\n', False),
        ],
    )
    def test_ping_replies(self, reply, alive):
        """ping is False for a busy service, and for a listener that does not speak HTTP."""
        got = []
        with peer(answers(reply, got=got)) as address, Friend('app1', address) as friend:
            assert friend.ping() is alive
        assert got[0].startswith(b'GET / HTTP/1.1\r\n')

    def test_ping_is_bounded(self):
        """ping takes no longer than it is given."""
        with peer(drip(b'', b'')) as address, Friend('app1', address) as friend, soon():
            assert friend.ping(timeout=0.05) is False

    def test_ping_several(self, service):
        """ping is True if any address answers, even beside a dead or silent one."""
        with Friend('app1', [dead_address(), service.address]) as friend:
            assert friend.ping() is True
        with full() as silent, Friend('app1', [silent, service.address]) as friend:
            assert friend.ping(timeout=0.2) is True
            friend.wait(timeout=0.2)

    def test_wait(self):
        """wait returns once the service has started."""
        service, address = make(), dead_address()
        with Friend('app1', address) as friend:
            with background(friend.wait, TIMEOUT) as waiting:
                assert not waiting.done()
                with service.start(int(address.rpartition(':')[2]), '127.0.0.1'):
                    assert waiting.result(TIMEOUT) is None
                    assert friend.send('/echo', 1) == 1

    def test_wait_in_vain(self):
        """wait raises CallTimeout, and tells of each address why it does not answer."""
        address, other = dead_address(), dead_address()
        told = f'^{address} did not answer within 0.1 s: cannot connect to .*{REFUSED_SOON}'
        with Friend('app1', address) as friend, soon():
            with failing(CallTimeout, told, rule='/', address=address, sent=False):
                friend.wait(0.1)
        with Friend('app1', [address, other]) as friend:
            told = f'{REFUSED_SOON}.*; cannot connect to .*{REFUSED_SOON}'
            with pytest.raises(CallTimeout, match=told):
                friend.wait(0.05)

    @pytest.mark.parametrize('reason', ['503', 'certificate verify failed', 'https://'])
    @pytest.mark.parametrize('timeout', [0.9, 2.0])
    def test_wait_tells_the_reason(self, reason, timeout, tls_service, sleepless):
        """The error tells why the service does not answer, and not that there was no time."""
        script = lambda sock, *_: call_on(sock) and sock.sendall(BUSY)  # noqa: E731
        with peer(script) as busy:
            address = {
                '503': busy,
                'certificate verify failed': by_name(tls_service),
                'https://': tls_service.address.replace('https:', 'http:'),
            }[reason]
            with Friend('app1', address) as friend:
                with soon(), pytest.raises(CallTimeout, match=reason) as caught:
                    friend.wait(timeout)
        assert f'did not answer within {timeout} s: ' in str(caught.value)
        assert 'in time' not in str(caught.value)
        assert caught.value.sent is False

    def test_wait_tells_the_last_reason(self, sleepless):
        """If the reason changes, the error tells the last one that had time to be real."""
        replies = [response(b'', '502 Bad Gateway', extra=CLOSE), *[BUSY] * 99]
        with peer(answers(*replies)) as address, Friend('app1', address) as friend:
            with pytest.raises(CallTimeout, match='within 1.4 s: it answered 503'):
                friend.wait(1.4)


DIRECT = ['[::1]', '[0:0:0:0:0:0:0:1]', '[::ffff:127.0.0.1]', 'localhost.', '127.0.0.2']


class Signer:
    """What can be given as secretKey: it notes what each of its methods is given."""

    def __init__(self, word='word', proof='proof'):
        self.word, self.proof, self.seen = word, proof, []

    def sign_call(self, *call):
        self.seen.append(('sign_call', *call))
        return (('X-Word', self.word),)

    def check_call(self, *call):
        self.seen.append(('check_call', *call))
        if call[2].get('x-word') != self.word:
            raise Forbidden('it does not say the word')
        return self.proof

    def sign_reply(self, *reply):
        self.seen.append(('sign_reply', *reply))
        return (('X-Proof', self.proof),)

    def check_reply(self, *reply):
        self.seen.append(('check_reply', *reply))
        if reply[2].get('x-proof') != self.proof:
            raise BadReply('it holds no proof')


class Silent(Signer):
    """One that adds no field to a call, and is false, as an empty collection is."""

    def __len__(self):
        return 0

    def sign_call(self, *call):
        return ()


class Half:
    """What has only two of the four methods."""

    sign_call = check_call = print


class TestSigner:
    """The four methods of a secretKey."""

    @pytest.mark.parametrize('over', ['in process', 'listener'])
    def test_silent(self, over):
        """It checks calls and replies though it is false and adds nothing to a call."""
        plain, signed = make(), make(secretKey=Silent())
        with serving(plain), serving(signed):
            for service, keys, kind in ((plain, Silent(), BadReply), (signed, None, Forbidden)):
                address = service.address if over == 'listener' else service
                with Friend('app1', address, secretKey=keys, timeout=TIMEOUT) as friend:
                    for rule in ('/echo', '/fail'):
                        with pytest.raises(kind):
                            friend.send(rule, 'ValueError')

    @pytest.mark.parametrize('over', ['in process', 'listener'])
    @pytest.mark.parametrize('rule, status', [('/echo', 200), ('/fail', 500), ('/ecko', 404)])
    def test_call(self, over, rule, status):
        """A call and its reply are signed and checked, whatever the reply says."""
        one, two = Signer(), Signer()
        with serving(make(secretKey=one)) as service:
            address = service.address if over == 'listener' else service
            with Friend('app1', address, secretKey=two, timeout=TIMEOUT) as friend:
                with (
                    contextlib.nullcontext() if status == 200 else pytest.raises(MicroconnectError)
                ):
                    assert friend.send(rule, 'ValueError') == 'ValueError'
        body = b'{"args":["ValueError"],"kwargs":{},"token":null}'
        (*called, headers, sent), (*answered, fields, reply) = one.seen
        assert (called, sent) == (['check_call', 'POST', rule], body)
        assert (headers['x-word'], headers['content-type']) == ('word', 'application/json')
        assert answered == ['sign_reply', 'proof', status]
        assert dict(fields)['Content-Type'].endswith('json') and type(json.loads(reply)) is not str
        assert two.seen[0] == ('sign_call', 'POST', rule, body)
        *checked, told, data = two.seen[1]
        assert checked == ['check_reply', (('X-Word', 'word'),), status]
        assert (told['x-proof'], data) == ('proof', reply)

    @HOSTS
    def test_refused(self, ask):
        """A call that is refused runs nothing, and its reply is not signed."""
        service = make_async(secretKey=Signer())
        for method, path in (
            ('POST', '/echo'),
            ('POST', '/aecho'),
            ('POST', '/ecko'),
            ('GET', '/f'),
        ):
            status, fields, body = ask(service, method, path, {**JSON, 'X-Word': 'wrong'}, b'[')
            assert (status, json.loads(body)['detail']) == (401, 'it does not say the word')
            assert 'x-proof' not in fields
        assert ask(service, 'GET', '/', {}, b'')[::2] == (200, b'["app1"]')
        assert service.ran == []

    @HOSTS
    @pytest.mark.parametrize('rule', ['/echo', '/aecho'])
    @pytest.mark.parametrize('proof', ['proof', 0, None])
    def test_proof(self, ask, rule, proof):
        """The reply is signed if `check_call` gives anything to sign it by."""
        service = make_async(secretKey=Signer(proof=proof))
        service._signer.sign_reply = lambda proof, *reply: (
            ('X-Proof', f'{proof} of {len(reply)}'),
        )
        status, fields, _ = ask(service, 'POST', rule, {**JSON, 'X-Word': 'word'}, b'{"args":[1]}')
        assert (status, fields.get('x-proof')) == (200, None if proof is None else f'{proof} of 3')
        service.stop()

    @HOSTS
    @pytest.mark.parametrize(
        'error', [KeyError('s3cret'), PermissionError('s3cret'), RecursionError()]
    )
    def test_bug(self, ask, error, caplog):
        """What else `check_call` raises is a 500, logged with its traceback, and runs nothing."""
        service = make(secretKey=Signer())

        def fail(*_):
            raise error

        service._signer.check_call = fail
        status, _, body = ask(service, 'POST', '/echo', {**JSON, 'X-Word': 'word'}, b'')
        assert (status, json.loads(body)['detail']) == (500, 'the call could not be checked')
        assert service.ran == [] and [line.exc_info[1] for line in caplog.records] == [error]

    def test_another_copy(self):
        """A refusal of another copy of this module is one, too."""
        spec = importlib.util.spec_from_file_location('another', microconnect.__file__)
        another = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(another)
        with calling(secretKey=Signer()) as (service, friend):
            service._signer.check_call = lambda *_: (_ for _ in ()).throw(another.Forbidden('no'))
            with pytest.raises(Forbidden, match='no'):
                friend.send('/echo', 1)

    @pytest.mark.parametrize('over', ['in process', 'listener'])
    def test_one_side(self, over):
        """Without it on one side, a call is refused or its reply is not believed."""
        signed, plain = make(secretKey=Signer()), make()
        with serving(signed), serving(plain):
            for service, keys, kind, ran in (
                (signed, None, Forbidden, 0),
                (signed, False, Forbidden, 0),
                (signed, Signer('another'), BadReply, 0),
                (plain, Signer(), BadReply, 1),
            ):
                address = service.address if over == 'listener' else service
                with Friend('app1', address, secretKey=keys, timeout=TIMEOUT) as friend:
                    with pytest.raises(kind):
                        friend.send('/echo', 1)
                    assert len(service.ran) == ran
                    with pytest.raises(kind):
                        friend.send('/fail', 'ValueError')

    def test_lost(self):
        """A call with such fields may have run, however it failed: somebody may have sent it on."""

        def cut(sock, *_):
            sock.recv(4096)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))

        with peer(cut) as address:
            for keys in (Signer(), Silent(), None):
                with Friend('app1', address, secretKey=keys, timeout=TIMEOUT) as friend:
                    with pytest.raises(ConnectionLost) as caught:
                        friend.send('/echo', 'x' * 8000000)
                assert caught.value.sent is (keys is not None)

    @pytest.mark.parametrize(
        'wrong', ['a text', b'bytes', '', 7, True, [], object(), Signer, Half()]
    )
    def test_wrong(self, wrong):
        """What cannot sign is refused, and not shown; the error says what to do."""
        for use in (Microservice, lambda name, secretKey: Friend(name, 'x:1', None, secretKey)):
            with pytest.raises(
                TypeError, match='from a copy of examples/signed/signing.py'
            ) as caught:
                use('app1', secretKey=wrong)
            assert 'text' not in str(caught.value)

    def test_read_only(self):
        """It is given when a service or a friend is made: setting it later is an error."""
        for one in (make(), Friend('app1', 'x:1')):
            with pytest.raises(AttributeError):
                one.secretKey = Signer()

    def test_not_open(self, caplog):
        """A service with one is not warned of as open to the network."""
        make(secretKey=Signer()).start(port=0, host='0.0.0.0').stop()
        assert caplog.messages == []


class TestProxies:
    """The proxies that the environment names."""

    @pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '0.0.0.0'])
    def test_loopback(self, service, host, proxies):
        """A call to this machine goes through no proxy."""
        touched = []
        with peer(lambda sock, number, over: over.is_set() or touched.append(sock)) as trap:
            proxies(trap)
            with Friend('app1', f'http://{host}:{port_of(service)}') as friend:
                assert friend.send('/echo', 1) == 1
        assert touched == []

    @pytest.mark.parametrize('address', [*DIRECT, 'https://[::1]'])
    def test_loopback_by_other_names(self, address, proxies, tls_client):
        """This machine is called directly, however its name is spelled."""
        proxies('http://127.0.0.1:9')
        context = tls_client if address.startswith('https') else None
        assert proxy_of(Friend('app1', address, ssl_context=context)) is None

    @pytest.mark.parametrize(
        'host',
        [
            *('127.evil.example', '127.0.0.1.evil.example', 'localhost.evil.example', '128.0.0.1'),
            *('127.0.0.1.', '[::2]', '[fe80::1]', '[::ffff:128.0.0.1]'),
        ],
    )
    def test_not_this_machine(self, host, proxies):
        """What only looks like a loopback address is called through the proxy."""
        proxies('http://127.0.0.1:9')
        assert proxy_of(Friend('app1', f'http://{host}:5000')) is not None

    @pytest.mark.parametrize('listed', ['service.invalid', 'service.invalid:5000', '.invalid', '*'])
    def test_no_proxy(self, listed, proxies, monkeypatch):
        """A host that no_proxy lists, with its port or without, is called directly."""
        proxies('http://127.0.0.1:9')
        monkeypatch.setenv('no_proxy', listed)
        assert proxy_of(Friend('app1', 'service.invalid:5000')) is None
        monkeypatch.setenv('no_proxy', 'service.invalid:5001,2001:db8::1')
        assert proxy_of(Friend('app1', '[2001:db8::1]:5000')) is None
        assert proxy_of(Friend('app1', 'service.invalid:5000')) is not None

    @pytest.mark.parametrize(
        'address, line, host',
        [
            ('http://service.invalid:5000/v1', 'http://service.invalid:5000/v1/echo', ':5000'),
            ('service.invalid', 'http://service.invalid:80/echo', ':80'),
        ],
    )
    def test_http(self, address, line, host, proxies):
        """The proxy gets a call to another host, with the whole address and its own password."""
        got = []
        with peer(answers(response(), got=got)) as trap:
            proxies(trap.replace('//', '//me:se%20cret@'))
            with Friend('app1', address) as friend:
                assert friend.send('/echo') == 'x'
        lines = got[0].decode().split('\r\n')
        assert lines[0] == f'POST {line} HTTP/1.1'
        assert f'Host: service.invalid{host}' in lines
        assert 'Proxy-Authorization: Basic bWU6c2UgY3JldA==' in lines

    def test_without_password(self, proxies):
        """A proxy without a user is given no password, and names are spelled as DNS has them."""
        got = []
        with peer(answers(response(), got=got)) as trap:
            proxies(trap)
            with Friend('app1', 'http://b\xfccher.invalid') as friend:
                assert friend.send('/echo') == 'x'
        lines = got[0].decode().lower().split('\r\n')
        assert lines[0] == 'post http://xn--bcher-kva.invalid:80/echo http/1.1'
        assert 'host: xn--bcher-kva.invalid:80' in lines
        assert not [line for line in lines if 'authorization' in line]

    def test_https(self, proxies, tls_server, tls_client):
        """A call over TLS goes through a tunnel: the proxy sees the name, and no more."""
        seen = []

        def script(sock, *_):
            seen.append(call_on(sock))
            sock.sendall(b'HTTP/1.1 200 Connected\r\n\r\n')
            with tls_server.wrap_socket(sock, server_side=True) as inside:
                seen.append(call_on(inside))
                inside.sendall(response())
                call_on(inside)

        with peer(script) as trap:
            proxies(trap)
            with Friend('app1', 'https://service.invalid', ssl_context=tls_client) as friend:
                assert friend.send('/echo') == 'x'
        assert seen[0].startswith(b'CONNECT service.invalid:443 HTTP/1.')
        assert seen[1].startswith(b'POST /echo HTTP/1.1\r\n')

    def test_refused(self, proxies, tls_client):
        """A proxy that makes no tunnel makes the service Unreachable, and leaves nothing open."""
        ended = threading.Event()

        def script(sock, *_):
            call_on(sock)
            sock.sendall(response(b'', '403 Forbidden'))
            if not sock.recv(1):
                ended.set()

        assert complaints() == []
        with peer(script) as trap:
            proxies(trap)
            with Friend('app1', 'https://service.invalid', ssl_context=tls_client) as friend:
                with pytest.raises(Unreachable, match='proxy .*403 Forbidden') as caught:
                    friend.send('/echo')
                assert ended.wait(TIMEOUT)  # though the error is kept
        assert caught.value.sent is False
        del caught
        assert complaints() == []

    @pytest.mark.parametrize('status', ['403 Forbidden', '502 Bad Gateway', '407 Log In'])
    def test_refused_in_the_clear(self, status, proxies):
        """The error names the proxy if that refuses a call by http://."""
        with peer(answers(response(b'no', status, 'text/plain'))) as trap:
            proxies(trap)
            with Friend('app1', 'http://service.invalid') as friend:
                with pytest.raises(MicroconnectError, match=trap.partition('//')[2]) as caught:
                    friend.send('/echo')
        assert caught.value.sent is status.startswith('502')

    def test_dripping_tunnel(self, proxies, tls_client):
        """A proxy that answers byte by byte has no more time than the call."""
        with peer(drip(b'HTTP/1.1 200 ', b'x')) as trap:
            proxies(trap)
            options = {'ssl_context': tls_client, 'timeout': 0.2}
            with Friend('app1', 'https://service.invalid', **options) as friend, soon():
                with failing(Unreachable, 'no answer in time', sent=False):
                    friend.send('/echo')

    def test_slow_tunnel(self, proxies, tls_client, monkeypatch):
        """The proxy may take as long as the call, however many addresses its name has."""
        several_addresses(monkeypatch)
        timeouts = []

        def record(sock, data):
            timeouts.append(sock.gettimeout())
            socket.socket.sendall(sock, data)

        with peer(answers(response(b'', '403 Forbidden'))) as trap:
            proxies(trap)
            with monkeypatch.context() as patch:
                patch.setattr(microconnect._Tunnel, 'sendall', record, raising=False)
                with Friend('a', 'https://service.invalid', ssl_context=tls_client, timeout=9) as f:
                    with pytest.raises(Unreachable):
                        f.send('/echo')
        assert 8 < timeouts[0] < 10

    def test_dead_proxy(self, proxies, tls_client):
        """An error of a proxy that is not there names it, without its password."""
        dead = dead_address().partition('//')[2]
        proxies(f'http://me:secret@{dead}')
        for scheme, context in (('http', None), ('https', tls_client)):
            with Friend('app1', f'{scheme}://service.invalid:5000', ssl_context=context) as friend:
                told = f'cannot connect to the proxy {dead}: '
                with pytest.raises(Unreachable, match=told) as caught:
                    friend.send('/echo')
            assert 'secret' not in str(caught.value)

    @pytest.mark.parametrize(
        'url', ['socks5://me:secret@127.0.0.1:9', 'http://user:pa/secret@proxy:80']
    )
    def test_wrong_proxy(self, url, proxies):
        """A proxy of another kind is refused, without showing its URL: it may hold a password."""
        proxies(url)
        with pytest.raises(ValueError, match='proxy of the environment') as caught:
            Friend('app1', 'service.invalid')
        assert 'pa/' not in str(caught.value) and 'secret' not in str(caught.value)


class TestTls:
    """TLS on both sides, by an ssl_context."""

    def test_call(self, tls_service, tls_client):
        """A call works at an https address, and a large value too."""
        assert tls_service.address.startswith('https://127.0.0.1:')
        with Friend('app1', by_name(tls_service), ssl_context=tls_client) as friend:
            assert friend.send('/echo', 'x' * 1000000) == 'x' * 1000000
            assert [friend.send('/count') for _ in range(3)] == [1, 2, 3]  # and it is kept

    def test_unasked_bytes(self, tls_server, tls_client):
        """A second reply that nobody asked for is not taken for the next call's."""

        def script(sock, number, _):
            with tls_server.wrap_socket(sock, server_side=True) as inside:
                large = response(b'["%b"]' % (b'x' * 40000))
                replies = large + response(b'["unasked"]'), response(b'["asked"]')
                call_on(inside)
                inside.sendall(replies[number])
                assert not call_on(inside)

        with peer(script) as address:
            address = address.replace('http://127.0.0.1', 'https://localhost')
            with Friend('app1', address, ssl_context=tls_client) as friend:
                assert len(friend.send('/echo')) == 40000
                assert friend.send('/echo') == 'asked'

    def test_silent_client(self, tls_service, tls_client):
        """A client that connects and says nothing stops nobody."""
        with connect(tls_service), connect(tls_service) as sock:
            sock.sendall(b'\x16\x03\x01')
            with Friend('app1', by_name(tls_service), ssl_context=tls_client) as friend:
                assert friend.send('/echo', 1) == 1

    def test_all_busy(self, tls_server, tls_client):
        """If every connection is busy, a newcomer is cut off: no word comes before TLS."""
        service = holding(make(max_connections=1))
        with service.start(port=0, host='127.0.0.1', ssl_context=tls_server):
            with Friend('app1', by_name(service), ssl_context=tls_client) as friend:
                with background(friend.send, '/hold') as call:
                    assert service.held.acquire(timeout=TIMEOUT)
                    assert raw(service, b'', end=False) == b''
                    with soon(), pytest.raises(Unreachable):
                        friend.send('/echo', 1)
                    service.release.set()
                    assert call.result(TIMEOUT) == 'held'
        assert service.ran == []

    def test_client_without_tls(self, tls_service):
        """A client that speaks no TLS gets no reply, and nothing runs."""
        assert statuses(raw(tls_service, request())) == []
        assert tls_service.ran == []

    @pytest.mark.parametrize(
        'message',
        ['certificate verify failed', r"not valid for '127\.0\.0\.1'", 'does it serve https'],
    )
    def test_unreachable(self, service, tls_service, tls_client, message):
        """An untrusted issuer, a wrong host, or a service without TLS is Unreachable."""
        address, context = by_name(tls_service), tls_client
        if message == 'certificate verify failed':
            context = None
        elif message == 'does it serve https':
            address = by_name(service).replace('http:', 'https:')
        else:
            address = tls_service.address
        with Friend('app1', address, ssl_context=context) as friend:
            with failing(Unreachable, message, sent=False):
                friend.send('/echo', 1)
        assert service.ran == tls_service.ran == []

    @pytest.mark.parametrize('start', [b'', b'\x16\x03\x01', b'\x16\x03\x01\x02\x00\x01'])
    def test_silent_client_makes_room(self, start, tls_server, tls_client):
        """At max_connections, a client that does not finish its handshake makes room."""
        service = make(max_connections=2)
        with service.start(port=0, host='127.0.0.1', ssl_context=tls_server):
            with connect(service) as first, contextlib.ExitStack() as stack:
                first.sendall(start)
                until(lambda: len(idle_connections_of(service)) == 1)
                stack.enter_context(connect(service)).sendall(start)  # waits the shorter time
                until(lambda: len(idle_connections_of(service)) == 2)
                with Friend('app1', by_name(service), ssl_context=tls_client) as friend:
                    assert friend.send('/echo', 1) == 1
                    assert receive(first) in (b'', TLS_ALERT)
                    assert friend.send('/echo', 2) == 2

    def test_told_at_stop(self, tls_server, tls_client):
        """A peer that waits at stop is told by a 408, under TLS too, that nothing was run."""
        service = make()
        with service.start(port=0, host='127.0.0.1', ssl_context=tls_server):
            sock = tls_client.wrap_socket(connect(service), server_hostname='localhost')
            with sock:
                sock.sendall(request())
                assert sock.recv(99)[:12] == b'HTTP/1.1 200'
                until(lambda: len(idle_connections_of(service)) == 1)
                service.stop()
                assert b'HTTP/1.1 408' in receive(sock)

    @pytest.mark.parametrize('version', ['TLSv1_2', 'TLSv1_3'])
    def test_client_certificate(self, version, tls_server, tls_client, tmp_path, caplog):
        """A service may want a certificate: without the right one a friend runs nothing."""
        caplog.set_level(logging.DEBUG)
        tls_server.verify_mode = ssl.CERT_REQUIRED
        tls_server.load_verify_locations(cadata=CERTIFICATE)
        tls_server.maximum_version = getattr(ssl.TLSVersion, version)
        service = make()
        with service.start(port=0, host='127.0.0.1', ssl_context=tls_server):
            for number in (1, 2):
                with Friend('app1', by_name(service), ssl_context=tls_client) as friend:
                    with pytest.raises(Unreachable) as caught:
                        friend.send('/echo', 1)
                    assert caught.value.sent is False
                    assert 'certificate' in str(caught.value)
                until(lambda number=number: caplog.text.count('a TLS handshake failed: ') == number)
            assert caplog.text.count('DEBUG') == caplog.text.count('\n') - 1 == 2
            tls_client.load_cert_chain(str(tmp_path / 'server.pem'))
            with Friend('app1', by_name(service), ssl_context=tls_client) as friend:
                assert friend.send('/echo', 1) == 1
            assert len(service.ran) == 1

    def test_http_to_a_tls_port(self, tls_service, tls_client, caplog):
        """A call by http:// to a service of https:// is Unreachable, and says what to write."""
        caplog.set_level(logging.DEBUG)
        for number, value in enumerate((1, 'x' * 1000000), 1):
            address = tls_service.address.replace('https:', 'http:')
            with Friend('app1', address, timeout=TIMEOUT) as friend:
                with failing(Unreachable, 'https:// instead of http://', sent=False):
                    friend.send('/echo', value)
            until(lambda number=number: len(caplog.messages) == number)
        assert {record.levelname for record in caplog.records} == {'DEBUG'}
        assert all(line.startswith('a TLS handshake failed: ') for line in caplog.messages)
        with Friend('app1', by_name(tls_service), ssl_context=tls_client) as friend:
            assert friend.send('/echo', 1) == 1
        assert tls_service.ran == [((1,), {})]

    @pytest.mark.parametrize('alert', [b'\x02\x0a', b'\x02\x46', b'\x01\x00'])
    def test_peer_that_answers_by_an_alert(self, alert):
        """A TLS alert in answer to a first call by http:// says that it was not read."""
        with peer(answers(b'\x15\x03\x03\x00\x02' + alert)) as address:
            with Friend('app1', address) as friend:
                with failing(Unreachable, 'https:// instead of http://', sent=False):
                    friend.send('/echo')

    @pytest.mark.parametrize(
        'reason, kind, sent',
        [
            ('TLSV13_ALERT_CERTIFICATE_REQUIRED', Unreachable, False),
            ('TLSV1_ALERT_UNKNOWN_CA', Unreachable, False),
            ('SSLV3_ALERT_HANDSHAKE_FAILURE', Unreachable, False),
            ('SSLV3_ALERT_BAD_RECORD_MAC', ConnectionLost, True),
            ('TLSV1_ALERT_INTERNAL_ERROR', ConnectionLost, True),
            (None, ConnectionLost, True),
        ],
    )
    def test_alert_instead_of_a_reply(self, service, monkeypatch, reason, kind, sent):
        """An alert means that nothing ran only if it refuses a handshake."""

        class Alerted(Wrapped):
            def recv(self, size):
                error = ssl.SSLError(1, 'an alert')
                error.reason = reason
                raise error

        connect_by(monkeypatch, Alerted)
        with Friend('app1', service.address) as friend:
            with failing(kind, sent=sent):
                friend.send('/echo')

    def test_alert_on_a_kept_connection(self):
        """Bytes like an alert where HTTP was spoken are no reply: the call may have run."""

        def script(sock, *_):
            for reply in (response(), TLS_ALERT):
                call_on(sock)
                sock.sendall(reply)

        with peer(script) as address, Friend('app1', address) as friend:
            assert friend.send('/echo') == 'x'
            with failing(BadReply, sent=True):
                friend.send('/echo')


class TestAsend:
    """Friend.asend."""

    def test_value(self, friend):
        """It gives what send gives."""

        async def main():
            return [await friend.asend('/echo', *args) for args in ((1,), (1, 2), ())]

        assert asyncio.run(main()) == [1, (1, 2), ()]

    def test_context(self):
        """A call sees the context variables of the code that makes it."""
        user = contextvars.ContextVar('user', default='nobody')

        class Telling(Friend):
            def send(self, *args):
                return super().send(*args, user.get())

        async def main(name):
            user.set(name)
            return await friend.asend('/echo')

        friend = Telling('app1', make())
        assert [asyncio.run(main(name)) for name in ('Ann', 'Bob')] == ['Ann', 'Bob']

    def test_concurrent(self):
        """Calls made at once run at once: each one waits here for all the others."""
        barrier = threading.Barrier(30)

        async def main():
            return await asyncio.gather(*(friend.asend('/f', i) for i in range(30)))

        def meet(value):
            barrier.wait(TIMEOUT)
            return value

        with calling(service_of(meet)) as (_, friend):
            assert asyncio.run(main()) == list(range(30))

    def test_loop_runs_on(self):
        """While a call waits, the loop serves others: the call needs one of them to end."""

        async def main():
            call = asyncio.ensure_future(friend.asend('/hold'))
            for _ in range(3):
                await asyncio.sleep(0)
            assert not call.done()
            service.release.set()
            return await call

        with calling(holding(make())) as (service, friend):
            assert asyncio.run(main()) == 'held'

    @pytest.mark.parametrize('how', ['cancel', 'wait_for'])
    def test_cancelled(self, how):
        """Cancelling raises CancelledError at once; the call itself goes on to its end."""
        ran, entered, released = [], threading.Event(), threading.Event()

        def wait():
            entered.set()
            released.wait(TIMEOUT)
            ran.append('whole')

        async def main():
            loop, settled, errors = asyncio.get_running_loop(), asyncio.Event(), []
            call = asyncio.ensure_future(friend.asend('/f'))
            await loop.run_in_executor(None, entered.wait, TIMEOUT)
            if how == 'wait_for':
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(call, 0.01)
            else:
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            assert ran == []

            def settle(callback, *args, schedule=loop.call_soon_threadsafe):
                schedule(callback, *args)
                schedule(settled.set)

            loop.call_soon_threadsafe = settle
            loop.set_exception_handler(lambda _, context: errors.append(context))
            released.set()
            await asyncio.wait_for(settled.wait(), TIMEOUT)  # the reply nobody waits for
            assert errors == []

        with calling(service_of(wait)) as (_, friend):
            asyncio.run(main())
        assert ran == ['whole']

    def test_loop_closed_meanwhile(self):
        """A loop that closes before the reply comes leaves nothing behind but the call's end."""

        async def main():
            call = asyncio.ensure_future(friend.asend('/hold'))
            acquire = functools.partial(service.held.acquire, timeout=TIMEOUT)
            await asyncio.get_running_loop().run_in_executor(None, acquire)
            call.cancel()

        with calling(holding(make())) as (service, friend):
            before = threading.active_count()
            asyncio.run(main())
            service.release.set()
            # Two more may stay: that of the connection, and the one that made the call.
            until(lambda: threading.active_count() <= before + 2)
            assert friend.send('/echo', 1) == 1

    @pytest.mark.parametrize(
        'args, kind',
        [
            (('/nothing',), UnknownRule),
            (('/fail',), BadArguments),
            (('/fail', 'ValueError'), ValueError),
            (('/fail', 'StopIteration'), RemoteError),
            (('/echo', object), BadCall),
            ((7,), TypeError),
        ],
    )
    def test_errors(self, friend, args, kind):
        """It raises what send raises."""
        raised = []
        for call in (friend.send, lambda *args: asyncio.run(friend.asend(*args))):
            with pytest.raises(kind) as caught:
                call(*args)
            raised.append((type(caught.value), str(caught.value)))
        assert raised[0] == raised[1]

    def test_without_a_thread(self, monkeypatch):
        """If the system has no thread for the call, asend says so, and nothing was sent."""

        def fail(thread):
            raise RuntimeError("can't start new thread")

        friend = Friend('app1', make())
        monkeypatch.setattr(threading.Thread, 'start', fail)
        forget_idle_threads()
        with failing(Busy, "no call is possible: can't start new thread", sent=False):
            asyncio.run(friend.asend('/echo', 1))

    def test_without_asyncio(self):
        """Without a loop of asyncio, asend says so, and calls nothing."""
        service = make()
        friend = Friend('app1', service)
        for call in (friend.asend('/echo', 1), friend.asend('/echo', object())):
            with pytest.raises(RuntimeError, match='asyncio'):
                call.send(None)  # as another kind of loop would
        with background(lambda: friend.asend('/echo', 1).send(None)) as call:
            with pytest.raises(RuntimeError, match='asyncio'):
                call.result(TIMEOUT)
        assert service.ran == []

    def test_threads_are_used_again(self, service):
        """Calls one after the other need a thread or two, not one each, in several loops too."""
        used = set()

        class Noting(Friend):
            def send(self, *args):
                used.add(threading.get_ident())
                return super().send(*args)

        async def main():
            for number in range(50):
                assert await friend.asend('/echo', number) == number

        forget_idle_threads()
        with Noting('app1', service.address, timeout=TIMEOUT) as friend:
            for _ in range(3):
                asyncio.run(main())
        assert len(used) <= 5

    def test_many_at_once(self):
        """100 calls of 0.1 seconds at once end in far less time than one after the other."""

        async def nap(value):
            await asyncio.sleep(0.1)
            return value

        async def main():
            return await asyncio.gather(*(friend.asend('/f', i) for i in range(100)))

        with calling(service_of(nap)) as (_, friend):
            with soon():
                assert asyncio.run(main()) == list(range(100))

    def test_cancelled_calls_disturb_nobody(self):
        """Calls beside and after cancelled ones, also before they began, get their own replies."""

        async def main():
            held = [asyncio.ensure_future(friend.asend('/hold')) for _ in range(3)]
            unbegun = asyncio.ensure_future(friend.asend('/echo', 'never'))
            unbegun.cancel()
            for _ in held:
                acquire = functools.partial(service.held.acquire, timeout=TIMEOUT)
                await asyncio.get_running_loop().run_in_executor(None, acquire)
            for call in held[:2]:
                call.cancel()
            assert await asyncio.gather(*(friend.asend('/echo', i) for i in range(20))) == [
                *range(20)
            ]
            service.release.set()
            assert await held[2] == 'held'
            for number in range(20):
                assert await friend.asend('/echo', number) == number
            for call in (*held[:2], unbegun):
                with pytest.raises(asyncio.CancelledError):
                    await call

        with calling(holding(make())) as (service, friend):
            asyncio.run(main())
        assert (('never',), {}) not in service.ran

    def test_service_of_this_process(self):
        """asend reaches plain and async rules of a service of this process."""

        async def main(friend):
            return await asyncio.gather(*(friend.asend(f'/{rule}echo', 1) for rule in ('', 'a')))

        service = make_async()
        assert asyncio.run(main(Friend('app1', service))) == [1, 1]
        service.stop()

    def test_timeout(self):
        """No reply in time is a CallTimeout for asend too."""
        with calling(holding(make()), timeout=0.05) as (service, friend):
            with pytest.raises(CallTimeout):
                asyncio.run(friend.asend('/hold'))
            service.release.set()


# -------------------------------------------------------------------------------------------- shell

APP = """
from microconnect import Microservice
Micro = Microservice(__name__)

@Micro.typing('/divide')
def divide(a, b, *, floor=False):
    'Divide a by b.'
    return divmod(a, b) if floor else a / b

@Micro.typing('/echo', token='s3cret-token', methods=('GET', 'POST'))
def echo(*args, **kwargs):
    return (args, kwargs) if kwargs or len(args) != 1 else args[0]

@Micro.typing('/lines')
def lines():
    raise ValueError('one\\ntwo')
"""

LISTED = """\
/divide(a, b, *, floor=False)            Divide a by b.
/echo(*args, **kwargs)                   [token] [GET, POST]
/lines()
/rules() -> 'dict[str, dict[str, Any]]'  Tell how each rule is called.
"""

COMMANDS = [  # the arguments; URL stands for the service's
    # status, what is printed, what is said on stderr
    ('send URL /divide 7 2', 0, '3.5', ''),
    ('send URL /divide 7 b=2 floor=true', 0, '[3, 1]', ''),
    ('send URL /divide 7 --timeout 5 2', 0, '3.5', ''),
    ('send URL /divide 7 0', 1, '', 'microconnect: /divide at URL: ZeroDivisionError: division by'),
    ('send URL /lines', 1, '', 'microconnect: /lines at URL: ValueError: one two\n'),
    ('send URL /divide 7', 1, '', 'microconnect: /divide at URL: '),
    ('send URL /divid 7 2', 1, '', "microconnect: /divid at URL: no rule '/divid' here: did you"),
    ('send URL /echo', 1, '', 'microconnect: /echo at URL: /echo needs a token'),
    ('--token s3cret-token URL /echo text', 0, '"text"', ''),
    ('--token s3cret-token URL /echo --raw text', 0, 'text', ''),
    ('--token s3cret-token URL /echo --raw ""', 0, '\n', ''),
    ('--token s3cret-token URL /echo --raw [1,"a"]', 0, '[1, "a"]', ''),
    ('--token s3cret-token URL /echo "7"', 0, '"7"', ''),
    ('--token s3cret-token URL /echo NaN', 0, '"NaN"', ''),
    ('--token s3cret-token URL /echo \xfc', 0, '"\xfc"', ''),
    ('--token s3cret-token URL /echo 1 x=a=b y=null', 0, '[[1], {"x": "a=b", "y": null}]', ''),
    ('--token s3cret-token URL /echo http://a/?b=c', 0, '"http://a/?b=c"', ''),
    ('--token s3cret-token URL /echo -', 0, '["from", "stdin"]', ''),
    ('--token s3cret-token URL /echo -7 --raw 8', 0, '[[-7, 8], {}]', ''),
    ('--token s3cret-token URL /echo "--raw"', 0, '"--raw"', ''),
    ('rules URL', 0, LISTED.rstrip(), ''),
    ('ping URL', 0, 'URL answers', ''),
    ('ping URL --wait 5', 0, 'URL answers', ''),
    ('ping 127.0.0.1:1', 1, '', 'microconnect: cannot connect to 127.0.0.1:1: '),
    ('ping 127.0.0.1:1 --wait 0.01', 1, '', 'microconnect: 127.0.0.1:1 did not answer within 0.01'),
    ('send ftp://x /f', 2, '', "microconnect: address 'ftp://x' is not like 'http://host:5000'"),
    ('send URL', 2, '', 'usage: '),
    ('send URL /echo --rwa text', 2, '', 'usage: '),
    ('ping URL /echo', 2, '', 'usage: '),
    ('send URL /f --timeout soon', 2, '', 'usage: '),
    ('send URL /f --timeout 0', 2, '', 'microconnect: timeout is a number'),
    ('ping URL --cacert missing.pem', 2, '', 'usage: ... unrecognized arguments: --cacert'),
    ('serve nothing.py', 2, '', 'usage: ... there is no module nothing in '),
    ('serve nothing:Micro', 2, '', 'usage: ... there is no module nothing in '),
    ('serve app1:echo', 2, '', 'usage: ... name one of app1:Micro'),
    ('serve app2.py', 2, '', 'usage: ... name one of app2.py:A, app2.py:B'),
    ('serve json', 2, '', 'usage: ... there is no Microservice in json'),
    ('serve :', 2, '', 'usage: ... there is no module : in '),
    ('', 2, '', 'usage: '),
]


APPS = """
from microconnect import Microservice
A, B = Microservice('a'), Microservice('b')
class Lazy:
    def __getattr__(self, name):
        raise RuntimeError('not now')
lazy = Lazy()
"""


@pytest.fixture(scope='module')
def app():
    """The service of APP, which also publishes its rules."""
    space = {'__name__': 'app1'}
    exec(APP, space)
    with serving(space['Micro']) as service:
        service.typing('/rules')(service.rules)
        yield service


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a service in app1.py, and two in app2.py."""
    folder = tmp_path_factory.mktemp('shell')
    (folder / 'app1.py').write_text(APP)
    (folder / 'app2.py').write_text(APPS)
    return folder


class TestShell:
    @pytest.mark.parametrize('line, status, printed, said', COMMANDS)
    def test_commands(self, line, status, printed, said, app, folder, monkeypatch, capsys):
        """Each command prints its result, or one line that says what failed."""
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, 'path', list(sys.path))
        monkeypatch.setattr(sys, 'stdin', io.StringIO('["from", "stdin"]\n'))
        words = line.replace('URL', app.address).split()
        if words[:1] == ['--token']:
            words = ['send', *words[2:4], *words[:2], *words[4:]]
        try:
            ended = microconnect._shell(words)
        except SystemExit as end:  # argparse does so
            ended = end.code
        out, err = (text.replace(app.address, 'URL') for text in capsys.readouterr())
        assert (ended, out) == (status, printed.rstrip('\n') + '\n' if printed else '')
        said, _, why = said.partition('... ')
        assert err.startswith(said) and why in err and bool(err) == bool(said)
        assert err.count('\n') <= 1 or said == 'usage: '
        assert SECRET not in out + err

    def test_no_rules_published(self, service, capsys):
        """Where a service does not publish its rules, the command says how it can."""
        assert microconnect._shell(['rules', service.address]) == 1
        assert "Micro.typing('/rules')(Micro.rules)" in capsys.readouterr().err

    def test_other_rules(self, capsys):
        """A rule of that name that gives something else is not taken for a list."""
        service = Microservice('app1')
        service.typing('/rules')(lambda: ['a', 'b'])
        with serving(service):
            assert microconnect._shell(['rules', service.address]) == 1
        assert 'is no list of rules' in capsys.readouterr().err

    def test_token_of_the_environment(self, app, monkeypatch, capsys):
        """The token is taken from the environment, so that no list of processes shows it."""
        monkeypatch.setenv('MICROCONNECT_TOKEN', SECRET)
        assert microconnect._shell(['send', app.address, '/echo', '1']) == 0
        assert capsys.readouterr().out == '1\n'

    def test_certificate(self, tls_service, tmp_path, monkeypatch, capsys):
        """SSL_CERT_FILE in the environment says which certificate to trust, as the error does."""
        (tmp_path / 'ca.pem').write_text(CERTIFICATE)
        words = ['send', by_name(tls_service), '/echo', '1']
        assert microconnect._shell(words) == 1
        assert 'SSL_CERT_FILE' in capsys.readouterr().err
        monkeypatch.setenv('SSL_CERT_FILE', str(tmp_path / 'ca.pem'))
        assert microconnect._shell(words) == 0
        assert capsys.readouterr().out == '1\n'

    def test_no_standard_input(self, app, monkeypatch, capsys):
        """Where there is no standard input, - stands for an empty text."""
        monkeypatch.setattr(sys, 'stdin', None)
        words = ['send', app.address, '/echo', '-', '--token', SECRET]
        assert microconnect._shell(words) == 0
        assert capsys.readouterr().out == '""\n'

    @needs_signals
    @pytest.mark.parametrize('target', ['app1:Micro', 'app1.py', 'app1.py:Micro'])
    def test_serve(self, target, folder):
        """serve runs the service of a module or file until a signal, with the options given."""
        command = [microconnect.__file__, 'serve', target, '--port', '0', '--host', '127.0.0.1']
        with running(*command, '--debug', '--reuse-port', folder=folder) as process:
            address = re.search(r'http:[^;]+', process.stdout.readline().decode()).group()
            with Friend('app1', address, timeout=TIMEOUT) as friend:
                with pytest.raises(ValueError) as caught:
                    friend.send('/lines')
            assert 'app1.py' in caught.value.traceback
            process.send_signal(signal.SIGTERM)
            code, _, said = outcome(process)
        assert code == 0
        assert "app1: answered 500: '/lines' from '127.0.0.1:" in said

    def test_module_that_fails(self, tmp_path):
        """What a module raises as it is imported is shown as Python shows it."""
        (tmp_path / 'app1.py').write_text('int("x")')
        with running(microconnect.__file__, 'serve', 'app1.py', folder=tmp_path) as process:
            code, _, said = outcome(process)
        assert code == 1
        assert 'Traceback' in said and 'app1.py' in said and said.rstrip().endswith("'x'")

    def test_what_a_terminal_obeys(self, capsys):
        """Nothing that a service says reaches the terminal as a control character."""
        service = Microservice('app1')
        facts = {'signature': '()', 'doc': 'a\x1b[2Jb', 'methods': ['POST'], 'token': False}
        service.typing('/rules')(lambda: {'/\x1b[31m': facts})
        with serving(service):
            assert microconnect._shell(['rules', service.address]) == 0
            with pytest.raises(SystemExit):
                microconnect._shell(['send', service.address, '/x\x1b[2J', '--z\x1b'])
            assert microconnect._shell(['send', service.address, '/x\x1b[2J']) == 1
        out, err = capsys.readouterr()
        assert out == '/ [31m()  a [2Jb\n'
        assert '\x1b' not in err.splitlines()[-1]

    def test_interrupted(self, monkeypatch):
        """Ctrl-C ends a command as a shell expects."""
        monkeypatch.setattr(Friend, 'send', lambda *_: signal.default_int_handler(2, None))
        assert microconnect._shell(['send', '127.0.0.1:1', '/f']) == 130

    @pytest.mark.parametrize('coding', ['ascii', 'latin-1', 'utf-8'])
    def test_narrow_stdout(self, coding, app, monkeypatch):
        """The JSON that is printed is JSON under any encoding of stdout."""
        written = io.BytesIO()
        monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(written, coding, newline='\n'))
        text = 'a\xfc\u20ac\U0001f600\ud800'
        words = ['send', app.address, '/echo', json.dumps(text), '--token', SECRET]
        assert microconnect._shell(words) == 0
        sys.stdout.flush()
        assert json.loads(written.getvalue().decode(coding)) == text

    @pytest.mark.parametrize('words', [['--help'], ['send', '--help'], ['serve', '-h']], ids=str)
    def test_help(self, words, capsys):
        """--help tells the usage, and shows examples."""
        with pytest.raises(SystemExit) as caught:
            microconnect._shell(words)
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        assert printed.startswith('usage: ')
        assert (' send http://127.0.0.1:5000 /helloworld' in printed) == (words == ['--help'])

    def test_version(self, capsys):
        """--version tells the version."""
        with pytest.raises(SystemExit) as caught:
            microconnect._shell(['--version'])
        assert (caught.value.code, capsys.readouterr().out) == (0, f'{microconnect.__version__}\n')


# ------------------------------------------------------------------------------------------- module

HEAVY = 'asyncio inspect argparse logging typing dataclasses difflib decimal uuid signal unittest'
IMPORTED = """
before = set(sys.modules)
import microconnect, threading
print(*(sys.modules.keys() - before) & set(sys.argv[1:]))
print(threading.active_count())
"""

AT_REST = """
import threading
from microconnect import Friend, Microservice

Micro = Microservice('app1')
Micro.typing('/echo')(lambda value: value)
friend = Friend('app1', sys.argv[1])
print(friend.send('/echo', 1), Friend('local', Micro).send('/echo', 1), friend.ping())
friend.close()
print(*(thread.name for thread in threading.enumerate()))
print(*{'asyncio', 'concurrent.futures', 'multiprocessing'} & set(sys.modules))
"""

VENDORED = """
from .vendor import microconnect
Micro = microconnect.Microservice(__name__)
Micro.typing('/f')(lambda a: {'a': a})
with Micro.start(port=0, host='127.0.0.1'), microconnect.Friend('me', Micro.address) as friend:
    print(friend.send('/f', [1]))
    try:
        friend.send('/f', 1, 2)
    except microconnect.MicroconnectError as error:
        print(type(error).__module__)
"""


@pytest.fixture
def load(monkeypatch):
    """Gives another copy of the module in this process, under a name."""

    def load_as(name):
        spec = importlib.util.spec_from_file_location(name, microconnect.__file__)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load_as


class TestModule:
    def test_public_names(self):
        """`__all__` is what the docstring lists, and all that the module defines in public."""
        row = r'^    .{40,} ([A-Z]\w+) +(?:no|perhaps|yes|no / yes)$'
        told = re.findall(row, microconnect.__doc__, re.M)
        names = {'Friend', 'Microservice', 'MicroconnectError', *told}
        assert set(microconnect.__all__) == names
        assert len(microconnect.__all__) == len(names)
        defined = {
            name
            for name, value in vars(microconnect).items()
            if getattr(value, '__module__', None) == 'microconnect' and not name.startswith('_')
        }
        assert defined == names | {'SanicApp'}
        assert microconnect.SanicApp is Microservice  # what the original also calls it
        assert not names & set(vars(builtins))  # none is shadowed

    def test_light_import(self):
        """Importing it, with -S and -I too, loads nothing heavy and starts no thread."""
        assert run(IMPORTED, *HEAVY.split(), options=('-S', '-I')) == (0, ['1'], '')

    def test_light_use(self, service):
        """A friend, and a service in process, start no thread, and no event loop."""
        expected = ['1', '1', 'True', 'MainThread']
        assert run(AT_REST, service.address, options=('-S', '-I')) == (0, expected, '')

    def test_threads(self, friend):
        """A service of plain rules has one thread to accept, and one for each connection."""
        before = set(threading.enumerate())
        friend.send('/echo', 1)
        assert len(set(threading.enumerate()) - before) == 1

    def test_vendored(self, tmp_path):
        """A copy works as `from .vendor import microconnect`, under -S and -I."""
        vendor = tmp_path / 'project' / 'vendor'
        vendor.mkdir(parents=True)
        shutil.copy(microconnect.__file__, str(vendor / 'microconnect.py'))
        (vendor / '__init__.py').write_text('')
        (vendor.parent / '__init__.py').write_text(VENDORED)
        script = 'sys.path.insert(0, sys.argv[1])\nimport project'
        printed = ["{'a':", '[1]}', 'project.vendor.microconnect']
        assert run(script, str(tmp_path), options=('-S', '-I')) == (0, printed, '')

    def test_twice_in_one_process(self, load):
        """Two copies under two names live side by side, and call each other."""
        one, two = load('first_copy'), load('second_copy')
        service = one.Microservice('one')
        service.typing('/f')(lambda a: a + 1)
        with service.start(port=0, host='127.0.0.1'):
            for module in (one, two, microconnect):
                with module.Friend('one', service.address) as friend:
                    assert friend.send('/f', 1) == 2
                    with pytest.raises(module.RemoteError) as caught:
                        friend.send('/f', 'x')
                    assert isinstance(caught.value, TypeError)
                    assert type(caught.value).__module__ == module.__name__
                    again = pickle.loads(pickle.dumps(caught.value))
                    assert type(again) is type(caught.value)

    def test_service_of_another_copy(self, load):
        """A service of another copy of the module is an address in this process."""
        one = load('first_copy')
        service = one.Microservice('one', token=SECRET)
        service.typing('/f')(lambda a: a + 1)
        subclass = type('Sub', (one.Microservice,), {})('sub')
        subclass.typing('/f')(lambda a: a + 1)
        for address in (service, subclass, [service, subclass]):
            friend = Friend('app1', address, token=SECRET)
            assert [friend.send('/f', number) for number in range(4)] == [1, 2, 3, 4]
            assert friend.ping()
        friend = Friend('app1', service, token=SECRET)
        assert repr(friend) == "<Friend 'app1' at one (in process)>"
        with pytest.raises(TypeError) as caught:
            friend.send('/f', 'x')
        assert type(caught.value).__module__ == 'microconnect'
        with pytest.raises(BadArguments):
            friend.send('/f')
        with pytest.raises(Forbidden):
            Friend('app1', service).send('/f', 1)
        mine = one.Friend('app1', make())
        assert mine.send('/echo', 1) == 1
        for held in (friend, service, mine):
            for caller in (Friend('app1', make()), mine):
                with pytest.raises(ValueError, match='has no JSON form'):
                    caller.send('/echo', held)
        for wrong in (one, one.Microservice, mine, 7):
            with pytest.raises(TypeError):
                Friend('app1', wrong).send('/f', 1)


NUMBER = '1.0, 1152921504606846977'  # JavaScript by itself would round the one and cut the other
SENT = 'sent {"args":%s,"kwargs":%s}'

EXPLORED = [  # rule, what its fields hold, the token, what is seen: a part of each paragraph
    ('/mixed', {'a': '1'}, '', ['returned 1 value', '', SENT % ('[1]', '{}')]),
    (
        '/mixed',
        {'a': 'x', 'b': '"2"', 'd': '[]'},
        '',
        ['', '', SENT % ('["x","2"]', '{"d":[]}')],
    ),
    (
        '/mixed',
        {'a': 'True', 'c': 'null'},
        '',
        ['', '', SENT % ('[true]', '{"c":null}')],
    ),
    (
        '/mixed',
        {'a': '"True"', 'b': 'None', 'c': ' False ', 'd': 'true story'},
        '',
        ['', '', SENT % ('["True",null,false]', '{"d":"true story"}')],
    ),
    (
        '/mixed',
        {'b': '1'},
        '',
        ['a cannot be left out, because b is given by position'],
    ),
    (
        '/mixed',
        {'a': '1', '*rest': '[2]'},
        '',
        ['b cannot be left out, because rest is given by'],
    ),
    ('/plain', {'*args': '2'}, '', ['args has to be JSON such as [1, "two"]']),
    ('/mixed', {'**more': 'x=1'}, '', ['more has to be JSON such as {"key": "value"}']),
    ('/mixed', {'d': '1', '**more': '{"d": 2}'}, '', ['d is given twice']),
    (
        '/mixed',
        {'a': '1', 'b': '2', 'c': '3', '*rest': '[4, 5]', '**more': '{"__proto__": 6}'},
        '',
        ['', '"__proto__": 6', SENT % ('[1,2,3,4,5]', '{"__proto__":6}')],
    ),
    ('/mixed', {}, '', ["'a'", '422 Unprocessable', SENT % ('[]', '{}')]),
    ('/plain', {}, '', ['returned ()', SENT % ('[]', '{}')]),
    (
        '/plain',
        {'*args': f'[{NUMBER}]'},
        '',
        ['returned 2 values', *NUMBER.split(', '), NUMBER[:3]],
    ),
    ('/plain', {'*args': '[{"a": [1]}]'}, '', ['', '{\n  "a": [\n    1\n  ]\n}', '']),
    ('/plain', {'**kwargs': '{"a": 1}'}, '', ["'a'", '422', SENT % ('[]', '{"a":1}')]),
    (
        '/secret',
        {},
        '',
        ['needs a token', 'Fill in its token', '401 Unauthorized', ''],
    ),
    (
        '/secret',
        {},
        'guess',
        ['wrong token', 'is not the one that it wants', '401', ''],
    ),
    ('/secret', {}, SECRET, ['returned 1 value', '"told"', SENT % ('[]', '{}')]),
    (
        '/fail',
        {'message': MARKUP},
        '',
        [
            f'JSONDecodeError: {MARKUP}',
            ' ms; it is a kind of ValueError',
            'Traceback (most recent call last)',
            'sent',
        ],
    ),
    ('/get', {}, '', ['returned 1 value', '1']),
    ('/put', {'a': '5'}, '', ['returned 1 value', '5', SENT % ('[5]', '{}')]),
    (f'/<i>? %#{MARKUP}', {}, '', ['returned', json.dumps(MARKUP), 'sent']),
]


def signature_of(text):
    """The signature of a function that is defined with it, as inspect gives it."""
    space = dict(globals())
    exec(f'def function{text}: pass', space)
    return inspect.signature(space['function'])


SIGNATURES = [
    signature_of(text)
    for text in [
        '()',
        '(a)',
        '(a, b=1, /, c=2, *, d, e=None)',
        '(*args, **kwargs)',
        '(a, *rest, b=(1, 2), **more)',
        '(a, /)',
        '(*, größe_1)',
        '(a="x, y", b=",", c=\')\', d="it\'s \\\\", e=\'"\', f="it\'s \\"so\\"", g="=", h="\\n")',
        '(a={"k": [1, (2,)]}, b=[], c={1, 2}, d=frozenset({1}), e=-1.5e300, f=b"\', ", g=...)',
        '(a=object(), b=lambda x, y: x, c=Colour.RED, d=print, e=datetime.date(2020, 1, 1), f=len)',
        '(a: int, b: float = 1.0, *rest: str, c: typing.Any = None, **more: bytes) -> int',
        '(a: "list[int]" = (), b: typing.Callable[[int, str], bool] = print) -> "dict[str, int]"',
        '(a: "Annotated[int, Field(gt=0)]", b: typing.Tuple[int, ...] = ()) -> None',
        '(a=inspect.signature(check_tutorial), b=type, c=threading.main_thread(), d=object)',
    ]
]

UNREADABLE = [
    '(...)',
    '',
    '(a',
    '(a, b=[1, 2)',
    "(a='x, b)",
    '(a b)',
    '(a, b=<x, y)',
    'a, b)',
    '(1)',
    '(a=x y, z)',
]


def parameters_of(signature):
    """The name, the kind and the default of each parameter, as the page should read them."""
    return [
        [
            name,
            one.kind.name.lower().replace('_', ' '),
            None if one.default is one.empty else repr(one.default),
        ]
        for name, one in signature.parameters.items()
    ]


@pytest.fixture(scope='class')
def seen(tmp_path_factory):
    """What the driver has seen of the explorer."""
    pages, events = {'/index.html': EXPLORER.read_text(encoding='utf-8')}, queue.Queue()
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(web_server(pages, events))
        services = [explored(origin), make(), make(origins=(origin,)), explored(origin)]
        services[3].token = SECRET
        addresses = [stack.enter_context(serving(one)).address for one in services]
        asked = {
            'services': [*addresses, origin, 'ftp://x'],
            'calls': [row[:3] for row in EXPLORED],
            'signatures': [*map(str, SIGNATURES), *UNREADABLE],
        }
        # Without '<': the first '</script>' would end the driver's own script.
        told = json.dumps(asked).replace('<', '\\u003c')
        pages['/driver'] = DRIVER.replace('ASKED', told, 1)
        seen = driven(tmp_path_factory.mktemp('browser'), events, origin)
    assert 'error' not in seen, seen['error']
    return dict(seen, origin=origin, address=addresses[0])


class TestExplorer:
    """The page of examples/explorer, in a browser if there is one."""

    def test_list(self, seen):
        """The page lists each rule with its signature, methods, need of a token and doc."""
        assert seen['title'] == f'<i>{MARKUP} at {seen["address"]}'
        assert seen['rules'] == [
            [f'/<i>? %#{MARKUP}(a={MARKUP!r})', 'POST', MARKUP],
            ['/fail(message)', 'POST'],
            ['/get(a=1)', 'GET'],
            ["/mixed(a, b=2, /, c='x, y', *rest, d: int = 4, **more)", 'POST', 'The first line.'],
            ['/plain(...)', 'POST'],
            ['/put(a=1)', 'GET', 'PUT'],
            ['/rules()', 'POST'],
            ['/secret()', 'POST', 'token'],
        ]

    @pytest.mark.parametrize('number', range(len(EXPLORED)))
    def test_calls(self, seen, number):
        """A form sends what its fields hold, and shows the values or what went wrong."""
        expected, got = EXPLORED[number][-1], seen['calls'][number]
        assert len(got) == len(expected), got
        for part, paragraph in zip(expected, got):
            assert part in paragraph

    def test_no_list(self, seen):
        """Where the rules cannot be listed, the page says what to do."""
        expected = [
            f"Microservice(..., origins=('{seen['origin']}',))",
            "does not publish its rules Add to the service: Micro.typing('/rules')(Micro.rules)",
            '401 Unauthorized',
            'does not publish its rules',
            'An address is such as http://127.0.0.1:5000',
        ]
        assert len(seen['others']) == len(expected)
        for part, text in zip(expected, seen['others']):
            assert part in text

    def test_markup(self, seen):
        """What a service sends stays text, whatever it is."""
        assert seen['markup'] == 0

    def test_token(self, seen):
        """The page keeps a token neither in its address nor in the browser."""
        assert seen['kept'] == [0, 0, '']
        assert SECRET not in seen['url']

    def test_signatures(self, seen):
        """The page reads a signature as inspect does; where it cannot, it knows that."""
        expected = [parameters_of(signature) for signature in SIGNATURES]
        got = [
            one and [[part['name'], part['kind'], part.get('default')] for part in one]
            for one in seen['signatures']
        ]
        assert got == expected + [None] * len(UNREADABLE)

    def test_from_disk(self, seen, tmp_path):
        """A page that was opened from disk, and only such a page, says that this cannot work."""
        assert seen['notice'] == 'none'
        with browser(tmp_path, '--dump-dom', EXPLORER.as_uri()) as process:
            page = process.stdout.read().decode()
        assert '<div id="from-disk" class="notice">' in page

    def test_policy(self):
        """The page lets the browser run its own script and nothing else."""
        page = EXPLORER.read_text(encoding='utf-8')
        (script,) = re.findall(r'<script>(.*?)</script>', page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}';" in page
        assert not re.search(r'innerHTML|outerHTML|insertAdjacent|document\.write|eval\(', script)


def helloworld(name):
    return f'Welcome {name}'


@pytest.fixture
def newcomer(monkeypatch, proxies, tls_service):
    """What the code of a newcomer finds: names, and the numbers behind PORT and the like.

    At NOBODY and 80 nobody listens, and AIRPLAY is the macOS program that takes port 5000.
    """
    connect = socket.socket.connect

    def connect_but_to_80(sock, address):
        if address[1] == 80:
            raise OSError(errno.ECONNREFUSED, REFUSED)
        connect(sock, address)

    monkeypatch.setattr(socket.socket, 'connect', connect_but_to_80)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    service = holding(Microservice('app1'))
    service.typing('/helloworld')(helloworld)
    service.typing('/secret', token=SECRET)(make)
    airplay = response(b'', '403 Forbidden', None, 'Server: AirTunes/595.13.1\r\n')
    with calling(service) as (_, friend), peer(answers(airplay)) as taken, open(__file__) as file:
        names = {'Micro': service, 'aFriend': friend, 'file': file, 'helloworld': helloworld}
        names.update(Friend=Friend, Microservice=Microservice, urlopen=opener.open)
        where = {'PORT': service.address, 'HTTPS': tls_service.address}
        where.update(NOBODY=dead_address(), AIRPLAY=taken)
        yield names, {word: address.rpartition(':')[2] for word, address in where.items()}
        service.release.set()


REFUSED, IN_USE = os.strerror(errno.ECONNREFUSED), os.strerror(errno.EADDRINUSE)

TOO_MANY = 'takes 1 positional argument but 2 were given'
if sys.implementation.name != 'cpython':
    TOO_MANY = 'too many positional arguments'

CALLED_SEND = 'Friend.send' if sys.version_info >= (3, 10) else 'send'

FIRST_MISTAKES = [  # what is written; what it raises; what that says, where WHY is OpenSSL's word
    # A service.
    (
        '@Micro.typing\ndef hello(name): ...',
        TypeError,
        "write @Micro.typing('/hello'), with the rule in brackets",
    ),
    (
        '@Micro.typing()\ndef hello(name): ...',
        TypeError,
        "write @Micro.typing('/rule'), with the rule in brackets",
    ),
    (
        "@Micro.typing('/hello')\n@Micro.reply()\ndef hello(name): ...",
        TypeError,
        'write @Micro.reply above a function, without brackets',
    ),
    (
        "@Micro.typing('/helloworld')\ndef hello(name): ...",
        ValueError,
        "rule '/helloworld' is taken already: give each function its own",
    ),
    (
        "@Micro.typing('/hello/<name>')\ndef hello(name): ...",
        ValueError,
        "a rule has no variables, as in '/hello/<name>': pass arguments instead",
    ),
    (
        "@Micro.typing('/hello', token=123456)\ndef hello(name): ...",
        TypeError,
        'the token of /hello has to be a non-empty string, or a list of them',
    ),
    (
        "Microservice('app2').start(host='http://127.0.0.1')",
        TypeError,
        "host is such as '127.0.0.1', and port such as 5000, not 'http://127.0.0.1' and 5000",
    ),
    (
        "Microservice('app2').start(PORT, '127.0.0.1')",
        OSError,
        f'[Errno {errno.EADDRINUSE}] cannot listen on 127.0.0.1:PORT: {IN_USE}: '
        'stop what listens there, or take another port (0: a free one)',
    ),
    (
        'Micro.start()',
        RuntimeError,
        'app1 serves already, at http://127.0.0.1:PORT: call stop() first',
    ),
    # A friend.
    (
        "Friend('http://127.0.0.1:5000', 'app1')",
        ValueError,
        "write Friend('app1', 'http://host:5000'): the name, then the address",
    ),
    (
        "Friend('app1', 'http://127.0.0.1').send('/helloworld', 'you')",
        Unreachable,
        f'/helloworld at http://127.0.0.1: cannot connect to 127.0.0.1:80: {REFUSED}; '
        'is it running on that port? The default of a service is 5000',
    ),
    (
        "Friend('app1', 'http://127.0.0.1:NOBODY').send('/helloworld', 'you')",
        Unreachable,
        '/helloworld at http://127.0.0.1:NOBODY: cannot connect to 127.0.0.1:NOBODY: '
        f'{REFUSED}; is it running on that port? The default of a service is 5000',
    ),
    (
        "Friend('app1', 'http://127.0.0.1:AIRPLAY').send('/helloworld', 'you')",
        Forbidden,
        '/helloworld at http://127.0.0.1:AIRPLAY: something (Server: AirTunes/595.13.1) '
        'answered 403, without saying why: is another program on that port?',
    ),
    (
        "Friend('app1', 'https://127.0.0.1:PORT').send('/helloworld', 'you')",
        Unreachable,
        '/helloworld at https://127.0.0.1:PORT: cannot connect to 127.0.0.1:PORT: WHY; '
        'does it serve https, by a certificate that ssl_context or SSL_CERT_FILE trusts?',
    ),
    (
        "Friend('app1', 'http://127.0.0.1:HTTPS').send('/helloworld', 'you')",
        Unreachable,
        '/helloworld at http://127.0.0.1:HTTPS: the service refused the TLS handshake: '
        'https:// instead of http://?',
    ),
    (
        f"aFriend.setRule('/secret', {SECRET!r})",
        ValueError,
        "method is one of ('GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'); "
        'a token is given by token=...',
    ),
    # A call.
    (
        "aFriend.send(rule='/helloworld', name='you')",
        TypeError,
        f"{CALLED_SEND}() missing 1 required positional argument: 'rule'",
    ),
    (
        "aFriend.send('/helloword', 'you')",
        UnknownRule,
        "/helloword at http://127.0.0.1:PORT: no rule '/helloword' here: "
        "did you mean '/helloworld'?",
    ),
    (
        "aFriend.send('/helloworld', 'you', 'me')",
        BadArguments,
        f'/helloworld at http://127.0.0.1:PORT: helloworld() {TOO_MANY}',
    ),
    (
        "aFriend.send('/helloworld', file)",
        BadCall,
        '/helloworld at http://127.0.0.1:PORT: '
        'args[0]: TextIOWrapper has no JSON form: send its .read()',
    ),
    (
        "Micro.typing('/hello')(lambda: helloworld)\naFriend.send('/hello')",
        RemoteError,
        '/hello at http://127.0.0.1:PORT: '
        'TypeError: reply[0]: function has no JSON form: send its result',
    ),
    (
        "aFriend.send('/secret')",
        Forbidden,
        '/secret at http://127.0.0.1:PORT: /secret needs a token, and none was given',
    ),
    (
        f"aFriend.token = '{SECRET}2'\naFriend.send('/secret')",
        Forbidden,
        '/secret at http://127.0.0.1:PORT: /secret got a wrong token',
    ),
    (
        "aFriend.within(0.05).send('/hold')",
        CallTimeout,
        '/hold at http://127.0.0.1:PORT: no full reply within timeout=0.05 s; '
        'the call may have run',
    ),
    # A browser, and a client of another kind without a Content-Type.
    (
        "urlopen('http://127.0.0.1:PORT/helloworld')",
        urllib.error.HTTPError,
        '/helloworld answers POST, not GET: call it by POST, '
        "or add methods=('GET',) in the service",
    ),
    (
        "urlopen('http://127.0.0.1:PORT/helloworld', b'{}')",
        urllib.error.HTTPError,
        "Content-Type has to be application/json, not 'application/x-www-form-urlencoded'",
    ),
]


class TestFirstMistakes:
    """What a newcomer does wrong first: the error says what was wrong, and what to do."""

    @pytest.mark.parametrize('code, kind, message', FIRST_MISTAKES)
    def test_message(self, newcomer, code, kind, message):
        """The message is in the words of what was written, and shows no token and no internals."""
        names, ports = newcomer
        for word, port in ports.items():
            code, message = code.replace(word, port), message.replace(word, port)
        with pytest.raises(kind) as caught:
            exec(code, names)
        error = caught.value
        told = json.load(error)['detail'] if hasattr(error, 'read') else str(error)
        assert re.fullmatch(re.escape(message).replace('WHY', '[a-z ]+'), told)
        assert SECRET not in told and '123456' not in told
        assert not re.search(r'\b_\w|\b0x', told)


class TestDocuments:
    """What README.md and the examples promise."""

    def test_first_blocks(self):
        """The README's first service and friend, as two programs, print its greeting."""
        (service, _), (friend, _) = blocks()[:2]
        space = {'__name__': 'app1'}
        exec(service, space)
        out = io.StringIO()
        with serving(space['Micro']) as micro, contextlib.redirect_stdout(out):
            exec(friend.replace('http://127.0.0.1:5000', micro.address), {})
        assert out.getvalue() == 'Welcome Mr. Developer\n'

    @pytest.mark.parametrize('number', range(2, len(blocks())))
    def test_blocks(self, number, tmp_path, monkeypatch, caplog):
        """Each further block of the README runs, warns of nothing, and prints the text below it."""
        code, printed = blocks()[number]
        monkeypatch.chdir(tmp_path)
        for name in ('cert.pem', 'key.pem'):
            Path(name).write_text(CERTIFICATE + KEY)
        code = code.replace('5443', dead_address().rpartition(':')[2])
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, {'__name__': 'readme'})
        assert printed and out.getvalue() == printed
        assert not [line for line in caplog.records if line.levelname == 'WARNING']

    @needs_signals
    def test_commands(self, tmp_path):
        """Each command of the README prints what stands below it, the service's warning too."""
        port = dead_address().rpartition(':')[2]
        shutil.copy(microconnect.__file__, str(tmp_path / 'microconnect.py'))
        for number, name in enumerate(('app1.py', 'app2.py')):
            code = blocks()[number][0].replace('5000', port).replace('run()', f'run({port})')
            (tmp_path / name).write_text(code)
        (_, service_prints), *others = commands()
        with running('app1.py', folder=tmp_path) as service:
            Friend('app1', f'127.0.0.1:{port}').wait(TIMEOUT)
            for command, printed in others:
                words = shlex.split(command.replace('5000', port))
                words[0] = sys.executable if words[0] == 'python3' else shutil.which(words[0])
                if words[0] is None:
                    continue  # no curl here
                pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
                done = subprocess.run(words, cwd=tmp_path, timeout=TIMEOUT, **pipes)
                assert done.stdout.decode().rstrip('\n') == printed.replace('5000', port).rstrip(
                    '\n'
                )
            service.terminate()
            out, err = service.communicate(timeout=TIMEOUT)
        # The service may not have noted yet that its last reply is sent, and then tells of it.
        assert (err + out).decode().startswith(service_prints.replace('5000', port))

    def test_order(self):
        """The README shows code within ten lines, its output within forty, then the limits."""
        lines = (HERE / 'README.md').read_text(encoding='utf-8').splitlines()
        assert '```python' in lines[:10]
        assert 'Welcome Mr. Developer' in lines[:40]
        headings = [line for line in lines if line.startswith('## ')]
        assert headings[0] == '## What it does not do'

    @pytest.mark.parametrize('where', ['in process', 'over a socket'])
    def test_tutorial(self, where):
        """The tutorial's calls give the values of the original's document."""
        micro = tutorial('service.py')['Micro']
        with contextlib.ExitStack() as stack:
            if where == 'over a socket':
                stack.enter_context(serving(micro))
            address = micro if where == 'in process' else micro.address
            caller = stack.enter_context(Friend('tutorial', address, timeout=TIMEOUT))
            check_tutorial(caller)

    def test_errors_table(self):
        """The error tables of the README and of the docstring name every error there is."""
        readme = (HERE / 'README.md').read_text(encoding='utf-8')
        for name in microconnect.__all__:
            assert name in microconnect.__doc__ or name == 'MicroconnectError'
            assert f'`{name}`' in readme or name in ('Friend', 'Microservice')

    def test_names_for_movers(self):
        """Each name that the README gives to users of the original exists, with those arguments."""
        service = make()
        things = dict(vars(microconnect), Micro=service, aFriend=Friend('moving', service))
        for code in moving(1):
            check_name(code, things)

    def test_version(self):
        """The README's changes mention the version of the module."""
        readme = (HERE / 'README.md').read_text(encoding='utf-8')
        assert f'- {microconnect.__version__}:' in readme
