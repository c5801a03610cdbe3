"""The tests of microconnect: ``python -m pytest -q``, or one class by ``-k TestFriend``.

First the helpers that several sections share; the other ones stand before the class that uses
them.  Then a section for each section of the module, in its order and by its name: process,
errors, settings, values, http, calls, sockets, Friend, rules, WSGI, ASGI, listener,
Microservice, shell.  What the documents promise is tested in examples/test_documents.py, and the
servers and frameworks of others in examples/frameworks.

The tables: MISTAKES (what is refused at once, with the whole message), VALUES (what has a JSON
form), HEADS (heads and other bytes, in memory and on the wire), EXCHANGES (what a service
answers to bytes), PLAYS (what a friend makes of a peer), REFUSED_EVERYWHERE (one answer from
every host), SCRIPTS (what runs in another process).

Sockets are real, on port 0 of 127.0.0.1.  Nothing that has to succeed has less time than TIMEOUT.
"""

import asyncio
import atexit
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
import random
import re
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
import textwrap
import threading
import time
import traceback
import types
import urllib.error
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

from microconnect import (  # isort: skip
    BadArguments, BadCall, BadReply, Busy, CallTimeout, ConnectionLost, Forbidden, Friend,
    MicroconnectError, Microservice, RemoteError, TooLarge, UnknownRule, Unreachable,
)  # fmt: skip


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
CALL = b'{"args":[1]}'

needs_signals = pytest.mark.skipif(os.name == 'nt', reason='Windows has no such signals to send')
needs_timers = pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='no timers here')


# ------------------------------------------------------------------- helpers: names of the module
# The tests use private names only through these, so a renaming in the module is one line here.

CHUNKED, TO_THE_END = microconnect._CHUNKED, microconnect._TO_THE_END  # instead of a body's length
shell, Listener = microconnect._shell, microconnect._Listener
parse_request = microconnect._parse_request_head
parse_reply = microconnect._parse_reply_head
TimedSocket, process_lock = microconnect._TimedSocket, microconnect._process_lock
CONNECTION, DECODE = '_Connection', '_decode'  # for `fail_once`
RULES_DOC = microconnect._Rules.rules.__doc__
STATUSES, OUTAGES = microconnect._ERRORS, microconnect._OUTAGES  # status -> error, of whom
LIMITS = {'items': '_MOST_ITEMS', 'held': '_HELD', 'linger': '_LINGER', 'look': '_LOOK'}
LIMITS.update(stall='_STALL', patience='_PATIENCE')


def limit(monkeypatch, **values):
    """Give limits of the module other values."""
    for name, value in values.items():
        monkeypatch.setattr(microconnect, LIMITS[name], value)


@pytest.fixture(params=['at once', 'by looks'])
def each_way(request, monkeypatch):
    """What ends a wait wakes its thread, and, as on Windows, the thread looks now and then."""
    if request.param == 'by looks':
        limit(monkeypatch, look=0.05)


def value_of(body, head=None):
    """What `send` gives for a reply with *body*."""
    head = head or parse_reply(b'HTTP/1.1 200 OK\r\nContent-Type: application/json')
    return microconnect._returned(head, body, time.monotonic() + TIMEOUT)


def decodes(body):
    """Why the module does not decode *body*; an empty string where it does."""
    try:
        microconnect._decode(body)
    except ValueError as error:
        return str(error)
    return ''


def connections_of(service, state=''):
    """The connections that a service has open, in this state."""
    return [one for one in service._listener.connections.copy() if state in (one.state, '')]


def is_stopping(service):
    return service._listener.stop_by is not None


def watch_calls(monkeypatch, name, seen):
    """Note in *seen* the thread of each call of a private function of the module."""
    owner, _, attribute = name.rpartition('.')
    owner = getattr(microconnect, owner) if owner else microconnect
    function = getattr(owner, attribute)

    def note(*args, **options):
        seen.append(threading.current_thread())
        return function(*args, **options)

    monkeypatch.setattr(owner, attribute, note)


def address_of(friend):
    """What a friend with one address holds of it: `links`, its idle connections, and `proxy`."""
    return friend._addresses[0]


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


# -------------------------------------------------------------------------------- helpers: services


def make(**options):
    """A service with a few rules; `service.ran` lists what each call was given."""
    service = Microservice('app1', **options)
    service.ran = []

    @service.typing('/echo')
    def echo(*args, **kwargs):
        service.ran.append((args, kwargs))
        return args[0] if len(args) == 1 and not kwargs else args

    @service.typing('/fail')
    def fail(name, message='why'):
        service.ran.append(((name, message), {}))
        raise getattr(builtins, name)(message)

    return service


def make_async(**options):
    """A service of `make` with async rules too."""
    service = make(**options)

    @service.typing('/aecho')
    async def aecho(value):
        await asyncio.sleep(0)
        return value

    @service.typing('/loop')
    async def loop():
        service.loop = asyncio.get_running_loop()
        service.loop_thread = threading.current_thread()

    @service.typing('/afail')
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
    """Add /hold, which returns when `release` is set; `held` and `returned` count its calls."""
    service.held, service.release, service.returned = threading.Semaphore(0), threading.Event(), 0

    @service.typing('/hold')
    def hold():
        service.held.release()
        service.release.wait(TIMEOUT)
        service.returned += 1
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


# ----------------------------------------------------------------------------------- helpers: bytes


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


def statuses(got):
    """The status of each reply in *got*."""
    return [int(status) for status in re.findall(rb'HTTP/1\.1 (\d{3}) ', got)]


@pytest.fixture
def live():
    """Opens what has to be open until the test is over: `live(serving())`."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


def raised(kind, call, *args, match=None, **facts):
    """The error of *kind* by which *call* fails, with these attributes."""
    with pytest.raises(kind, match=match) as caught:
        call(*args)
    assert {name: getattr(caught.value, name) for name in facts} == facts
    return caught.value


def raise_(error):
    raise error


def refused(call, *args):
    """The status and message by which *call* refuses."""
    with pytest.raises(MicroconnectError) as caught:
        call(*args)
    return caught.value.status, str(caught.value)


# ----------------------------------------------------------------------------------- helpers: peers


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


# ------------------------------------------------------------------------ helpers: time and threads


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


@contextlib.contextmanager
def soon():
    """Check that the block ends early: what it must not wait for takes TIMEOUT, or for ever."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < TIMEOUT / 2


def until(condition):
    """Wait until *condition* holds; for changes that no event announces."""
    deadline = time.perf_counter() + TIMEOUT
    while not condition():
        assert time.perf_counter() < deadline, 'it never came to hold'
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


# ------------------------------------------------------------------------------- helpers: processes


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


SERVERS = {  # those of others that examples/frameworks and examples/signed are tested under
    'gunicorn-sync': ['gunicorn', '-b', '127.0.0.1:PORT', 'app1'],
    'gunicorn-gthread': ['gunicorn', '--threads', '4', '-b', '127.0.0.1:PORT', 'app1'],
    'waitress': ['waitress', '--listen', '127.0.0.1:PORT', 'app1:Micro.wsgi'],
    'uvicorn': ['uvicorn', '--port', 'PORT', 'app1:Micro.asgi'],
    'hypercorn': ['hypercorn', '-b', '127.0.0.1:PORT', 'app1:Micro.asgi'],
}


# ------------------------------------------------------------------------------------- helpers: TLS

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


def by_name(service):
    """The address of a service, with the name that its certificate is for."""
    return service.address.replace('127.0.0.1', 'localhost')


# ------------------------------------------------------------------------------------------ process


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
        public = {name: one for name, one in vars(microconnect).items() if name[0] != '_'}
        defined = {n for n, v in public.items() if getattr(v, '__module__', '') == 'microconnect'}
        assert defined == names | {'SanicApp'}
        assert microconnect.SanicApp is Microservice  # what the original also calls it
        assert not names & set(vars(builtins))  # none is shadowed

    def test_threads(self, friend):
        """A service of plain rules has one thread to accept, and one for each connection."""
        before = set(threading.enumerate())
        friend.send('/echo', 1)
        assert len(set(threading.enumerate()) - before) == 1

    def test_twice_in_one_process(self, load, live):
        """Two copies under two names live side by side, and call each other."""
        one, two = load('first_copy'), load('second_copy')
        service = one.Microservice('one')
        service.typing('/f')(lambda a: a + 1)
        live(service.start(port=0, host='127.0.0.1'))
        for module in (one, two, microconnect):
            friend = live(module.Friend('one', service.address))
            assert friend.send('/f', 1) == 2
            error = raised(module.RemoteError, friend.send, '/f', 'x')
            assert isinstance(error, TypeError) and type(error).__module__ == module.__name__
            assert type(pickle.loads(pickle.dumps(error))) is type(error)

    def test_service_of_another_copy(self, load):
        """A service of another copy of the module is an address in this process."""
        one = load('first_copy')
        service = one.Microservice('one', token=SECRET)
        subclass = type('Sub', (one.Microservice,), {})('sub')
        for micro in (service, subclass):
            micro.typing('/f')(lambda a: a + 1)
        for address in (service, subclass, [service, subclass]):
            friend = Friend('app1', address, token=SECRET)
            assert [friend.send('/f', number) for number in range(4)] == [1, 2, 3, 4]
            assert friend.ping()
        friend, mine = Friend('app1', service, token=SECRET), one.Friend('app1', make())
        assert repr(friend) == "<Friend 'app1' at one (in process)>"
        assert type(raised(TypeError, friend.send, '/f', 'x')).__module__ == 'microconnect'
        raised(BadArguments, friend.send, '/f')
        raised(Forbidden, Friend('app1', service).send, '/f', 1)
        assert mine.send('/echo', 1) == 1

    def test_what_is_of_another_copy(self, load):
        """What holds tokens there is not sent, and what is no service there is no address."""
        one = load('first_copy')
        service, mine = one.Microservice('one'), one.Friend('app1', make())
        for held in (Friend('app1', service), service, mine):
            for caller in (Friend('app1', make()), mine):
                raised(ValueError, caller.send, '/echo', held, match='has no JSON form')
        for wrong in (one, one.Microservice, mine, 7):
            raised(TypeError, Friend, 'app1', wrong)


class TestWithoutPrivateNames:
    """The undocumented names of other modules are a help: without each of them the module works."""

    def check(self, module):
        service = module.Microservice('app1')
        service.typing('/echo')(lambda *args: args)
        friend, value = module.Friend('app1', service), ([1, 2.5, {'a': None}], 'x')
        assert friend.send('/echo', *value) == value
        told = r'args\[0\]\[0\]: function has no JSON form'
        raised(module.BadCall, friend.send, '/echo', [make], match=told)
        for bad in (b'[1', b'[1]]', b' [1] x', b'nul', b''):
            assert service.answer('POST', '/echo', JSON, b'{"args":%b}' % bad)[0] == 400
        assert service.answer('POST', '/echo', JSON, b' {"args":[ 1 ]} ')[2] == b'[1]'

    def test_c_make_encoder(self, load, monkeypatch):
        """Without json.encoder.c_make_encoder, as on PyPy, the documented encoder is used."""
        monkeypatch.delattr(json.encoder, 'c_make_encoder', raising=False)
        self.check(load('another'))

    def test_scan_once(self, load, monkeypatch):
        """Without JSONDecoder.scan_once the documented raw_decode is used."""

        class Decoder(json.JSONDecoder):
            def __init__(self, **options):
                super().__init__(**options)
                self.scan = vars(self).pop('scan_once')

            def raw_decode(self, s, idx=0):
                try:
                    return self.scan(s, idx)
                except StopIteration as error:
                    raise json.JSONDecodeError('no value', s, error.value) from None

        monkeypatch.setattr(json, 'JSONDecoder', Decoder)
        self.check(load('another'))

    def test_create_connection(self, monkeypatch, service, live):
        """If http.client connects in a way of its own, a call works and has a limit."""

        def connect(self):
            self.sock = socket.create_connection((self.host, self.port), self.timeout)

        monkeypatch.setattr(http.client.HTTPConnection, 'connect', connect)
        assert live(Friend('app1', service.address)).send('/echo', 1) == 1
        friend = live(Friend('app1', live(peer(drip())), timeout=0.05))
        with soon():
            raised(CallTimeout, friend.send, '/f')

    def test_option_of_openssl(self, monkeypatch, live, tls_server, tls_client):
        """Python names an option of TLS from 3.10 on; the caller's context keeps its own ones."""
        monkeypatch.delattr(ssl, 'OP_IGNORE_UNEXPECTED_EOF', raising=False)
        options = tls_server.options
        service = live(make().start(0, '127.0.0.1', ssl_context=tls_server))
        friend = live(Friend('app1', by_name(service), ssl_context=tls_client))
        assert friend.send('/echo', 1) == 1
        assert tls_server.options == options


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


class TestImport:
    def test_light_import(self):
        """Importing it, with -S and -I too, loads nothing heavy and starts no thread."""
        assert run(IMPORTED, *HEAVY.split(), options=('-S', '-I')) == (0, ['1'], '')

    def test_light_use(self, service):
        """A friend, and a service in process, start no thread, and no event loop."""
        expected = ['1', '1', 'True', 'MainThread']
        assert run(AT_REST, service.address, options=('-S', '-I')) == (0, expected, '')

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


needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')

SCRIPTS = {}  # function -> what it prints


def prints(told):
    return lambda function: SCRIPTS.setdefault(function, told) and function


def in_child(function):
    """The exit status of a forked child: what *function* returns there."""
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


PRELUDE = """
import asyncio, atexit, builtins, contextlib, gc, logging, os, signal, socket, sys
import threading, warnings
from microconnect import *
warnings.simplefilter('ignore')  # Python 3.12 warns of a fork beside threads
"""

BY_C = """
def fork(fork=__import__('ctypes').PyDLL(None).fork):
    threading.Event().wait(0.1)  # it copies Python's own locks as they are: let them be free
    return fork()
os.fork = fork
"""


def program(function, more=''):
    """A program that calls *function* with a service."""
    parts = (counting, make, make_async, in_child, function)
    sources = [textwrap.dedent(re.sub(r'(?m)\A\s*@.*\n', '', inspect.getsource(f))) for f in parts]
    call = f"{function.__name__}(counting(make_async(port=0, host='127.0.0.1', token=False)))"
    return '\n'.join([PRELUDE, more, *sources, call])


@prints('1 12 2')
def a_child_has_connections_of_its_own(Micro):
    friend = Friend('app1', Micro.start().address, timeout=9)
    print(friend.send('/count'))
    print(in_child(lambda: friend.send('/count') * 10 + friend.send('/count')))
    print(friend.send('/count'))


@prints('0')
def async_rules_work_in_a_child_and_stop_does_not_wait(Micro):
    def child():
        failed = friend.send('/aecho', 'done') != 'done'
        Micro.stop()
        return failed

    with Micro.start():
        friend = Friend('app1', Micro)
        friend.send('/aecho', 1)
        print(in_child(child))


@prints('7 7 7')
def a_child_keeps_time(Micro):
    def is_late():
        try:
            return friend.send('/f')
        except CallTimeout:
            return 7

    with socket.create_server(('127.0.0.1', 0)) as silent:
        friend = Friend('app1', f'127.0.0.1:{silent.getsockname()[1]}', timeout=0.1)
        print(is_late(), in_child(is_late), is_late())


@prints('9 0 0 0 9')
def asend_works_in_a_child(Micro):
    async def calls(count):
        return len(await asyncio.gather(*(friend.asend('/count') for _ in range(count))))

    with Micro.start():
        friend = Friend('app1', Micro.address, timeout=9)
        print(asyncio.run(calls(9)))
        # Fewer than there are idle threads in the parent: a child that counts on those would hang.
        print(*(in_child(lambda: asyncio.run(calls(2)) - 2) for _ in range(3)))
        print(asyncio.run(calls(9)))


@prints('True 0 True')
def a_child_does_not_serve_what_its_parent_does(Micro):
    def is_open(port):
        for descriptor in range(64):
            try:
                with socket.socket(fileno=os.dup(descriptor)) as sock:
                    if sock.getsockname()[1] == port:
                        return True
            except (OSError, IndexError):
                pass
        return False

    def child():
        try:
            return Micro.address and 1
        except RuntimeError:
            if is_open(port):
                return 2
        with Micro.start(), Friend('app1', Micro.address) as friend:
            return 0 if friend.send('/pid') == os.getpid() else 3

    Micro.typing('/pid')(os.getpid)
    with Micro.start():
        port = int(Micro.address.rpartition(':')[2])
        print(is_open(port), in_child(child))
        with Friend('app1', Micro.address) as friend:
            print(friend.send('/pid') == os.getpid())


@prints('0 True')
def a_child_forked_in_the_middle_of_the_start_can_start(Micro):
    def child():
        with Micro.start():
            return 0

    def fork():
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
    with Micro.start(), Friend('app1', Micro.address) as friend:
        print(friend.ping())


@prints('False 1 True')
def a_child_forked_while_a_large_body_is_decoded_collects_garbage(Micro):
    class Body(bytes):
        def decode(self):
            print(gc.isenabled(), in_child(gc.isenabled))
            return '{}'

    Micro.answer('POST', '/echo', {'Content-Type': 'application/json'}, Body(300000))
    print(gc.isenabled())


@prints('False again')
def after_stop_the_port_is_free_though_a_child_lives_on(Micro):
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


@prints('1 2 3')
def a_process_ends_without_a_word_while_it_serves_and_is_connected(Micro):
    friend = globals()['friend'] = Friend('app1', Micro.start().address)
    atexit.register(lambda: print(friend.send('/aecho', 3)))
    print(friend.send('/echo', 1), friend.send('/aecho', 2))


@prints('left')
def a_process_ends_though_an_asend_that_nobody_awaits_has_no_reply(Micro):
    async def leave():
        call = Friend('app1', f'127.0.0.1:{silent.getsockname()[1]}').asend('/f')
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(call, 0.05)

    silent = globals()['silent'] = socket.create_server(('127.0.0.1', 0))
    asyncio.run(leave())
    print('left')


@prints('-15 stopped')
def a_signal_to_a_child_of_run_ends_the_child_alone(Micro):
    def child():
        os.kill(os.getpid(), signal.SIGTERM)
        os.read(os.pipe()[0], 1)

    def fork_and_stop():
        show(in_child(child))
        Micro.stop()

    show = print
    builtins.print = lambda *_, **how: threading.Thread(target=fork_and_stop).start()
    Micro.run()
    show('stopped')


@prints('True True True')
def run_leaves_an_ignored_signal_ignored_and_gives_the_wakeup_descriptor_back(Micro):
    def ignore_and_stop(*_, **how):
        os.kill(os.getpid(), signal.SIGINT)
        show(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGTERM)

    show, (_, theirs) = print, socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    builtins.print = ignore_and_stop
    Micro.run()
    show(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
    show(signal.set_wakeup_fd(-1) == theirs.fileno())


@prints('ended twice')
def run_ends_though_the_wakeup_descriptor_of_before_is_closed(Micro):
    def close_and_stop(*words, **how):
        theirs.close()
        threading.Thread(target=Micro.stop).start()

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    builtins.print = close_and_stop
    Micro.run()
    Micro.run()
    ours.close()
    sys.stdout.write('ended twice')


@prints('ended True stopped ended True stopped')
def a_signal_that_comes_just_as_run_has_started_ends_it(Micro):
    show, before = print, signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        builtins.print = lambda *_, number=number, **how: os.kill(os.getpid(), number)
        Micro.run()
        show('ended', signal.getsignal(signal.SIGTERM) is before)
        try:
            show(Micro.address)
        except RuntimeError:
            show('stopped')


SIDE_BY_SIDE = """
import json
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
            told.append((output.read().split(), os.waitpid(child, 0)[1]))
    print(json.dumps(told))
"""

# The rest needs Python's help: after stop, and in a thread other than the main one.
# Not where many threads run at the fork: Python itself then may hang as it starts one in the child.
BY_C_TOO = [f for f in SCRIPTS if re.match('async_|a_child_(has|keeps|does)', f.__name__)]
EACH = [(f, '') for f in SCRIPTS] + [(f, BY_C) for f in BY_C_TOO]


@pytest.fixture(scope='class')
def told():
    """(script, how it forks) -> what it prints, and its exit status."""
    has_c = sys.platform == 'linux' and sys.implementation.name == 'cpython'
    each = [one for one in EACH if has_c or not one[1]]
    if not hasattr(os, 'fork'):
        each = [one for one in each if 'fork' not in program(one[0]).replace('os.fork()', '')]
    code, printed, complaint = run(PRELUDE + SIDE_BY_SIDE, *(program(*one) for one in each))
    assert (code, complaint) == (0, '')
    return dict(zip(each, json.loads(' '.join(printed))))


def relay_and_fork(Micro):
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


@needs_fork
class TestProcesses:
    @pytest.mark.parametrize(
        'script, by', EACH, ids=[f'{f.__name__}{by and "-c"}' for f, by in EACH]
    )
    def test_script(self, script, by, told):
        """A forked child, of C too, neither disturbs its parent nor is disturbed; and more."""
        if (script, by) not in told:
            pytest.skip('a child of which Python does not know cannot go on here')
        assert told[script, by] == [SCRIPTS[script].split(), 0]

    def test_orphan(self, live):
        """A forked child ends no connection of its parent, and keeps none when the parent dies."""
        service = live(serving(holding(counting(make()))))
        process = live(running('-c', program(relay_and_fork), service.address))
        address = announced(process)
        friend = live(Friend('app2', address, timeout=TIMEOUT))
        call = live(background(friend.send, '/relay', '/hold'))
        assert service.held.acquire(timeout=TIMEOUT)
        assert [friend.send('/count'), friend.send('/relay', '/count')] == [1, 1]
        child = friend.send('/fork')
        try:
            assert [friend.send('/count'), friend.send('/relay', '/count')] == [2, 2]
            process.kill()
            process.wait(TIMEOUT)
            with soon():
                assert isinstance(call.exception(TIMEOUT), ConnectionLost)
                raised(Unreachable, friend.send, '/count')
                service.release.set()
                until(lambda: not connections_of(service))
                make().start(int(address.rpartition(':')[2]), '127.0.0.1').stop()
        finally:
            os.kill(child, signal.SIGKILL)


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

RAISED = [name for name in sorted(vars(builtins)) if isinstance(getattr(builtins, name), type)]
RAISED = [name for name in RAISED if issubclass(getattr(builtins, name), Exception)]

NEVER = ['StopIteration', 'StopAsyncIteration', 'ExceptionGroup', 'BaseExceptionGroup']

ODD = [*NEVER, 'SystemExit', 'KeyboardInterrupt', 'GeneratorExit', 'BaseException', 'Nonsense', '']
ODD += ['print', 'int', '__name__', 'json.JSONDecodeError', 'é\0\ud800', 'x' * 10000]

# fmt: off
STRANGERS = [  # status line, what is raised, `sent`
    ('301 Moved Permanently', BadReply, False),
    ('302 Found', BadReply, True),  # what many answer after they have run a POST
    ('307 Temporary Redirect', BadReply, False), ('308 Permanent Redirect', BadReply, False),
    ('403 Forbidden', Forbidden, False), ('404 Not Found', UnknownRule, False),
    ('429 Too Many Requests', BadReply, False), ('500 Internal Server Error', RemoteError, True),
    ('408 Request Timeout', CallTimeout, True), ('502 Bad Gateway', ConnectionLost, True),
    ('503 Service Unavailable', Busy, True), ('504 Gateway Timeout', CallTimeout, True),
]
# fmt: on


def error_of(status, body):
    """The error that a reply stands for."""
    headers = {'content-type': 'application/problem+json'}
    reply = microconnect._ReplyHead(status, len(body), 0.0, '', '', headers)
    return microconnect._error_from_reply(reply, body)


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
        assert isinstance(error, MicroconnectError) and isinstance(error, builtin) and kind.__doc__
        assert (error.sent, error.status, error.rule, error.address) == (sent, status, None, None)
        assert (str(error), str(kind())) == ('why', '')

    @pytest.mark.parametrize('kind', [kind for kind, *_ in ERRORS])
    def test_copies_keep_all(self, kind):
        """A pickled or copied error keeps its class, message and attributes."""
        error = kind('why é', status=499, sent=True, allow='GET').with_call('/rule', 'http://host')
        for again in copies(error):
            assert (type(again), vars(again)) == (type(error), vars(error))
            assert str(again) == '/rule at http://host: why é'
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
    def test_status_on_the_wire(self, kind, builtin, statuses, live):
        """`send` raises that error, sends the call once, and does not follow redirections."""
        for status in statuses:
            body = b'' if status in (204, 304) else b'{"detail":"some reason"}'
            reply = response(body, f'{status} What', extra='Location: http://127.0.0.1:9/\r\n')
            got, told = [], 'some reason' if body else str(status)
            address = live(peer(answers(reply, got=got)))
            facts = {'status': status, 'sent': kind.sent and status not in NEVER_RAN}
            facts.update(rule='/echo', address=address)
            friend = live(Friend('app1', address))
            error = raised(kind, friend.send, '/echo', 'x', match=told, **facts)
            assert isinstance(error, builtin) and str(error).startswith(f'/echo at {address}: ')
            assert len(got) == 1

    @pytest.mark.parametrize('status, kind, sent', STRANGERS)
    def test_answer_of_something_else(self, status, kind, sent, live):
        """An answer that says nothing is told by its status, its Server and its Location."""
        extra = 'Server: nginx/1.2\r\nLocation: https://login.invalid/\r\n'
        replies = [response(b'<p>no', status, 'text/html', more) for more in (extra, '')]
        friend = live(Friend('app1', live(peer(answers(*replies)))))
        for origin in (r' \(Server: nginx/1.2, Location: https://login.invalid/\)', ''):
            told = f'something{origin} answered {status[:3]}, without saying why'
            raised(kind, friend.send, '/echo', match=told, status=int(status[:3]), sent=sent)
            friend.close()

    def test_long_location(self, live):
        """Of a long Location only the beginning is told."""
        reply = response(b'', '302 Found', extra=f'Location: /{"x" * 9000}\r\n')
        friend = live(Friend('app1', live(peer(answers(reply)))))
        told = r'\(Location: /x{199}\) answered 302'
        raised(BadReply, friend.send, '/echo', match=told, sent=True)

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

    @pytest.mark.parametrize('told', [None, 7, [], {}, {'type': 7}, {'type': None}, {'type': [1]}])
    def test_malformed_exception_member(self, told):
        """An `exception` member of the wrong shape still makes a RemoteError."""
        error = error_of(500, json.dumps({'detail': 'why', 'exception': told}).encode())
        assert (type(error), str(error), type(error.type)) == (RemoteError, 'why', str)

    def test_errno(self):
        """An OSError arrives with the number that this system has for its name, if it has one."""

        def fail(name):
            number = getattr(errno, name)
            raise OSError(number, os.strerror(number), 'a file')

        friend = friend_of(fail)
        for name in ('ENOTEMPTY', 'ENOENT'):
            number = getattr(errno, name)
            facts = {'errno': number, 'strerror': os.strerror(number)}
            raised(OSError, friend.send, '/f', name, **facts)
        for name in ('EWINDOWS', 'errorcode', ''):
            assert remote_error('OSError', errno=name).errno is None
        no_number = friend_of(lambda: raise_(OSError('no number')))
        raised(OSError, no_number.send, '/f', errno=None)

    def test_words_of_the_peer(self, live, caplog):
        """What a peer says is printable in the log, and in an error its headers are."""
        caplog.set_level('INFO', 'microconnect')
        told = {'title': '', 'status': 503, 'detail': 'a\nERROR forged \x1b[31m\x9b'}
        bad = response(json.dumps(told).encode(), '503 Busy', 'application/problem+json')
        other = live(serving())
        friend = live(Friend('app1', [live(peer(answers(bad))), other.address]))
        assert friend.send('/echo', 1) == 1
        (line,) = [line for line in caplog.messages if 'rests' in line]
        assert line.isprintable() and 'ERROR forged' in line
        reply = response(b'', '404 No', extra='Server: ng\x9b31m\r\nLocation: /\x85x\r\n')
        friend = live(Friend('app1', live(peer(answers(reply)))))
        assert str(raised(UnknownRule, friend.send, '/f')).isprintable()


HEADER = 'Bearer hdr-s3cret-value'


def shown(error):
    """What a tool shows that prints the variables of a traceback, of all errors in the chain."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    return ''.join(told.format())


def connect_by(monkeypatch, wrap):
    """From now on, let *wrap* replace the socket of each new connection."""
    dial = microconnect._dial
    monkeypatch.setattr(microconnect, '_dial', lambda *args: wrap(dial(*args)))


class TestTracebacks:
    """Tools that show the variables of a traceback show no token."""

    @pytest.mark.parametrize('host', ['in process', 'socket', 'tls'])
    def test_of_a_friend(self, host, live, tls_server, tls_client):
        """An error that leaves `send` holds neither the token nor the friend's own headers."""
        service = make(token={'/fail': SECRET, '/echo': 'another-token'})
        options = {'ssl_context': tls_client} if host == 'tls' else {}
        if host != 'in process':
            live(service.start(0, '127.0.0.1', ssl_context=tls_server if options else None))
        where = service if host == 'in process' else by_name(service)
        friend = live(Friend('app1', where, SECRET, headers={'X-Key': HEADER}, **options))
        for rule, value, kind in (
            ('/fail', 1, ValueError),
            ('/fail', ..., BadCall),
            ('/none', 1, UnknownRule),
            ('/echo', 1, Forbidden),
        ):
            told = shown(raised(kind, friend.send, rule, 'ValueError', value))
            assert SECRET not in told and HEADER not in told, rule

    def test_of_a_call_that_was_not_answered(self, live, proxies, tls_client):
        """Nor does the error of one that found nobody, was cut off or met a bad proxy."""
        cut, dead = live(peer(answers(b''))), dead_address()
        for address in (cut, dead, [dead, cut]):
            friend = live(Friend('app1', address, SECRET, headers={'X-Key': HEADER}))
            told = shown(raised(MicroconnectError, friend.send, '/f', 1))
            assert SECRET not in told and HEADER not in told
        proxy = live(peer(answers(response(b'', '403 Forbidden'))))
        proxies(proxy.replace('http://', 'http://user:hdr-s3cret-value@'))
        friend = live(Friend('app1', 'https://service.invalid', SECRET, ssl_context=tls_client))
        assert 'hdr-s3cret-value' not in shown(raised(Unreachable, friend.send, '/f'))

    def test_frames_of_users(self):
        """The frames of a user's own functions keep their variables."""

        class Item:
            @property
            def price(self):
                own = 'my variable'
                raise LookupError(own)

        service = make(token=SECRET)

        @service.typing('/own')
        def own():
            mine = 'my variable'
            raise KeyError(mine)

        friend = Friend('app1', service, SECRET)
        for call in ('/echo', Item()), ('/own',):
            told = shown(raised(LookupError, friend.send, *call))
            assert "= 'my variable'" in told and SECRET not in told

    def test_log(self, caplog):
        """The log of a rule that raised begins at the rule's own frame, and holds no token."""
        service = make_async(token=SECRET)
        for rule in ('/fail', '/afail'):
            caplog.clear()
            body = json.dumps({'args': ['ValueError'], 'token': SECRET}).encode()
            assert service.answer('POST', rule, JSON, body)[0] == 500
            (record,) = caplog.records
            assert SECRET not in shown(record.exc_info[1])
            assert traceback.extract_tb(record.exc_info[2])[0].filename == __file__
        service.stop()

    @pytest.mark.parametrize('name', ['check_call', 'sign_reply'])
    def test_log_of_a_signer(self, name, caplog):
        """Nor does the log of a signer that raised hold one, or a header."""
        setattr(signer := Signer(), name, len)  # which has no frame of its own
        body = json.dumps({'args': [1], 'token': SECRET}).encode()
        service = make(token=SECRET, secretKey=signer)
        assert ask(service, body, X_Word='word', X_Key=HEADER)[0] == 500
        (record,) = caplog.records
        assert not re.search(f'{SECRET}|{HEADER}', shown(record.exc_info[1]))

    @pytest.mark.parametrize('name', ['ping', 'wait', 'send'])
    def test_interrupted(self, name, monkeypatch, live):
        """Nor does what a signal handler raises while a friend waits."""
        connect_by(monkeypatch, lambda sock: Wrapped(sock, recv=lambda _: raise_(LookupError())))
        friend = live(Friend('app1', live(serving()).address, SECRET, headers={'X-Key': HEADER}))
        told = shown(raised(LookupError, getattr(friend, name), *['/echo'] * (name == 'send')))
        assert not re.search(f'{SECRET}|{HEADER}', told)

    def test_masked(self, caplog):
        """A token in what a rule raises is masked whole in the reply, in a sent traceback, too."""
        several = ['t0ken' + '-m0re' * count for count in range(9)]
        service = Microservice('app1', debug=True, token={'/b': several})
        service.typing('/a', token=SECRET)(lambda: {}['s3cret-token'])
        service.typing('/b')(lambda: {}[several[-1]])
        cut = 'p' * 4990 + SECRET + 'q' * 9000  # the middle of what is long is left out
        service.typing('/c', token=SECRET)(lambda: raise_(KeyError(cut)))
        for rule, token, count in (('/a', SECRET, 3), ('/b', 't0ken', 3), ('/c', SECRET, 1)):
            body = json.dumps({'token': token}).encode()
            status, _, reply = service.answer('POST', rule, JSON, body)
            assert status == 500 and reply.count(b'***') >= count
            assert not re.search(b's3c|t0ken|-m0re', reply)


# ----------------------------------------------------------------------------------------- settings


def helloworld(name):
    return f'Welcome {name}'


def through(inner):
    """A decorator's function around *inner*."""
    return functools.wraps(inner)(lambda *args, **kwargs: inner(*args, **kwargs))


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


MISTAKES = r"""
# The error, as far as '...'; what raises it; each value of X in the lines of code above it.
# NAME is what X is given to.
# --- a service
TypeError: write @Micro.typing('/hello'), with the rule in brackets
    @Micro.typing\ndef hello(name): ...
TypeError: write @Micro.typing('/rule'), with the rule in brackets
    @Micro.typing()\ndef hello(name): ...
    Micro.typing(X)(hello)
        None, 7, b'/f', ''
TypeError: write @Micro.reply above a function, without brackets
    @Micro.typing('/hello')\n@Micro.reply()\ndef hello(name): ...
    Micro.reply('/hello')
    Micro.typing('/hello')(X)
        7, None
ValueError: rule '/helloworld' is taken already: give each function its own
    @Micro.typing('/helloworld')\ndef hello(name): ...
    Micro.typing('helloworld', token='second')(hello)
ValueError: a rule has no variables, as in '/hello/<name>': pass arguments instead
    @Micro.typing('/hello/<name>')\ndef hello(name): ...
ValueError: methods is such as ('GET',), out of ('GET', 'POST', 'PUT', 'PATCH', 'DELETE', ...
    Micro.typing('/hello', methods=X)(hello)
        'GET', (), ['get'], ['HEAD'], None
TypeError: the token of /hello has to be a non-empty string, or a list of them
    Micro.typing('/hello', token=X)(hello)
        123456, '', 7, b't', True, [], ['t', '']
    Micro.token.update({'/hello': X})
    Micro.token['/hello'] = X
    Micro.token.setdefault('/hello', X)
    Micro.token = {'/hello': X}
    Microservice('app2', token={'/hello': X})
    Friend('app1', '127.0.0.1:1', {'/hello': X})
        '', 7, b't', True, None, False, 0, [], ['t', '']
TypeError: token is a string for every rule, a list of them, or a dict {'/rule': 'token'}, not of...
    Microservice('app2', token=X)
    Friend('app1', '127.0.0.1:1', X)
        {'ab'}, {'/a', '/b'}, 123, 0, b'ab'
TypeError: ...
    Microservice('app2', token=X)
    Friend('app1', '127.0.0.1:1', X)
        '', {7: 't'}, True, [], (), ['t', None]
TypeError: Box.get is a method without an object; register it bound: Micro.typing('/get')(...
    class Box:\n    @Micro.typing('/get')\n    def get(self): pass
    class Box:\n    @Micro.typing('/get')\n    def get(self, key, *, more=1): pass
    class Box:\n    @Micro.typing('/get')\n    def get(cls): pass
    class Box:\n    @Micro.typing('/get')\n    async def get(self): pass
    class Box:\n    @Micro.typing('/get')\n    @through\n    def get(self): pass
    class Box:\n    def get(self): pass\nMicro.typing('/get')(Box.get)
TypeError: host must be like '127.0.0.1', and port like 5000, not ...
    Microservice('app2').start(host=X)
        'http://127.0.0.1', 'localhost:0', 'http://[::1]', 0
    Microservice('app2', host=None).start(0)
    Microservice('app2').start('5000', '127.0.0.1')
OSError: [Errno EADDRINUSE] cannot listen on 127.0.0.1:PORT: IN_USE:
  stop what listens there, or take another port (0: a free one)
    Microservice('app2').start(PORT, '127.0.0.1')
OSError: ...cannot listen on 127.0.0.1:...
    Microservice('app2').start(X, '127.0.0.1')
        -1, 65536
RuntimeError: app1 serves already, at http://127.0.0.1:PORT: stop it first
    Micro.start()
TypeError: ssl_context is an ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), not PROTOCOL_TLS_CLIENT
    Microservice('app2').start(0, '127.0.0.1', ssl_context=client)
TypeError: ssl_context is an ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), not ('pem',)
    Microservice('app2').start(0, '127.0.0.1', ssl_context=('pem',))
TypeError: ssl_context is an ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), not ...
    Friend('app1', 'https://127.0.0.1', ssl_context=X)
        True, server
ValueError: an origin is as browsers write it, such as 'https://app.example' or 'http://localhost...
    Microservice('app2', origins=[X])
        '*', 'null', '', 'app.example', 'https://app.example/', 'https://app.example/page', 7, None
        'https://*.example', 'https://', 'https://user@app.example', 'https://app.example:x', '://x'
        'https://app.example:0', 'https://app.example:080', 'https://\u212aelvin.example'
        'HTTPS://App.Example', 'https://app.example:443', 'http://localhost:80'
TypeError: origins is a list: origins=('https://app.example',)
    Microservice('app2', origins='https://app.example')
# --- numbers and signers
ValueError: NAME is a number (int) above 0 to 4294967296, not ...
    Microservice('app2', max_body=X)
    Microservice('app2', max_head=X)
    Microservice('app2', max_connections=X)
    Friend('app1', '127.0.0.1:1', max_body=X)
        0, -1, None, True, '20', nan, inf, 1e6, (1 << 32) + 1, 1 << 63
ValueError: NAME is a number of seconds above 0, not ...; no wait is endless
    Microservice('app2', read_timeout=X)
    Microservice('app2', idle_timeout=X)
    Microservice('app2', max_age=X)
    Friend('app1', '127.0.0.1:1', timeout=X)
    aFriend.within(timeout=X)
    aFriend.wait(timeout=X)
    aFriend.ping(timeout=X)
        0, -1, nan, inf, None, '20'
    aFriend.setRule('/hello', timeout=X)
        0, nan, '5'
TypeError: write secretKey=Keys('...'), from a copy of examples/signed/signing.py of the project
    Microservice('app2', secretKey=X)
    Friend('app1', '127.0.0.1:1', secretKey=X)
        'p4ssword', b'p4ss', '', 7, True, [], object(), Signer, Half()
TypeError: a method is set by setRule('/rule', method=...), not by this argument
    Friend('app1', '127.0.0.1:1', None, {'/f': 'GET'})
AttributeError: ...
    Micro.secretKey = None
    aFriend.secretKey = None
# --- a friend
ValueError: write Friend('app1', 'http://host:5000'): the name, then the address
    Friend('http://127.0.0.1:5000', 'app1')
ValueError: ...the scheme must be http or https, not ftp
    Friend('app1', X)
        'ftp://a:5000', ['127.0.0.1', 'ftp://x']
ValueError: an address must not contain a user or password; use token=... instead
    Friend('app1', X)
        'http://me:secret@127.0.0.1', 'http://me@127.0.0.1', 'ftp://me:secret@x'
        'http://me:secret@x:99999', 'http://me:secret@[::1', 'http://me:secret@h\u2100:1'
ValueError: ...give a host, a port and, if need be, a path
    Friend('app1', X)
        '', 'http://', ':5000', '/helloworld', 'my host:5000', 'http://evil%2fhost'
        'http//127.0.0.1:5000', 'https:/127.0.0.1:5000', '5000', 'http://5000'
        'http://127.0.0.1:5000?x=1', 'http://127.0.0.1:5000#x', 'http://a b'
        'http://127.0.0.1%1', 'http://a%00b'
ValueError: ...it holds a backslash or a control character
    Friend('app1', X)
        'http://127.0.0.1\0.evil.example', 'http://127.0.0.1\t.evil.example'
        'http://a\n', 'http://a\r:80', 'http://a:5000/b\x7f', 'a\x1b', 'http://a\\b'
ValueError: address ... is not like 'http://host:5000': ...
    Friend('app1', X)
        'http://a:99999', 'http://a:port', 'http://a:-1', 'http://[::1', 'http://[::1]]'
        'good[::1]', 'good[::1]:80', '[::1]good', '[::1]good:80', 'http://[::1].evil'
TypeError: an address is a string such as 'http://host:5000', not ...
    Friend('app1', X)
        5000, None, Microservice
ValueError: address is an empty list: give at least one
    Friend('app1', [])
ValueError: 'localhost:5000' is not encrypted: write https:// or give no ssl_context
    Friend('app1', 'localhost:5000', ssl_context=client)
ValueError: the header ... is set by each call itself
    Friend('app1', '127.0.0.1:1', headers={X: 'v'})
        'Host', 'content-length', 'Content-Type', 'Transfer-Encoding', 'Connection', 'Keep-Alive'
        'TE', 'Trailer', 'Upgrade', 'Expect', 'Content-Digest', 'Signature-Input', 'Signature'
ValueError: ... is not a valid header name (RFC 9110, 5.1)
    Friend('app1', '127.0.0.1:1', headers={X: 'v'})
        'X A', 'X-\xe9', '', 7, 'X\n', 'X:'
ValueError: the header X-Key has to be text without control characters
    Friend('app1', '127.0.0.1:1', headers={'X-Key': X})
        'p4ss\r\nY: 1', b'p4ss', 'p4ss\u20ac', None, 'p4ss\n'
ValueError: method is one of ('GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS');
  a token is given by token=...
    aFriend.setRule('/secret', X)
        SECRET, 'get', 'HEAD'
TypeError: the token of /hello has to be a non-empty string, or a list of them
    aFriend.setRule('/hello', token=X)
        '', 7
TypeError: a rule is a string such as '/helloworld', not ...
    aFriend.setRule(X)
    aFriend.send(X)
        7, '', ['/echo'], None
# --- a call
TypeError: SEND() missing 1 required positional argument: 'rule'
    aFriend.send(rule='/helloworld', name='you')
Unreachable: /helloworld at http://127.0.0.1: cannot connect to 127.0.0.1:80: REFUSED;
  is it running on that port? The default of a service is 5000
    Friend('app1', 'http://127.0.0.1').send('/helloworld', 'you')
Unreachable: /helloworld at http://127.0.0.1:NOBODY: cannot connect to 127.0.0.1:NOBODY: REFUSED;
  is it running on that port? The default of a service is 5000
    Friend('app1', 'http://127.0.0.1:NOBODY').send('/helloworld', 'you')
Forbidden: /helloworld at http://127.0.0.1:AIRPLAY: something (Server: AirTunes/595.13.1)
  answered 403, without saying why: is another program on that port?
    Friend('app1', 'http://127.0.0.1:AIRPLAY').send('/helloworld', 'you')
Unreachable: /helloworld at https://127.0.0.1:PORT: cannot connect to 127.0.0.1:PORT: ...;
  does it serve https, by a certificate that ssl_context or SSL_CERT_FILE trusts?
    Friend('app1', 'https://127.0.0.1:PORT').send('/helloworld', 'you')
Unreachable: /helloworld at http://127.0.0.1:HTTPS: the service refused the TLS handshake:
  https:// instead of http://?
    Friend('app1', 'http://127.0.0.1:HTTPS').send('/helloworld', 'you')
UnknownRule: /helloword at http://127.0.0.1:PORT: no rule '/helloword' here:
  did you mean '/helloworld'?
    aFriend.send('/helloword', 'you')
BadArguments: /helloworld at http://127.0.0.1:PORT: helloworld()
  takes 1 positional argument but 2 were given...
    aFriend.send('/helloworld', 'you', 'me')
BadCall: /helloworld at http://127.0.0.1:PORT:
  args[0]: TextIOWrapper has no JSON form: send its .read()
    aFriend.send('/helloworld', file)
RemoteError: /file at http://127.0.0.1:PORT:
  TypeError: reply[0]: function has no JSON form: send its result
    aFriend.send('/file')
Forbidden: /secret at http://127.0.0.1:PORT: /secret needs a token, and none was given
    aFriend.send('/secret')
Forbidden: /secret at http://127.0.0.1:PORT: /secret got a wrong token
    stranger.send('/secret')
CallTimeout: /hold at http://127.0.0.1:PORT: no full reply within timeout=0.05 s;
  the call may have run
    aFriend.within(0.05).send('/hold')
HTTPError: /helloworld answers POST, not GET: call it by POST,
  or add 'GET' to the rule's methods
    urlopen('http://127.0.0.1:PORT/helloworld')
HTTPError: Content-Type has to be application/json, not 'application/x-www-form-urlencoded'
    urlopen('http://127.0.0.1:PORT/helloworld', b'{}')
"""


def mistakes():
    """(kind, message, code, values) of each line of code in MISTAKES."""
    blocks = re.findall(r'^(\w+: .*\n(?:  \S.*\n)*)((?:    .*\n)+)', MISTAKES, re.M)
    for error, uses in blocks:
        kind, _, message = re.sub(r'\n *', ' ', error.strip()).partition(': ')
        for codes, values in re.findall(r'((?:    \S.*\n)+)((?:        .*\n)*)', uses):
            for code in codes.splitlines():
                name = ''.join(re.findall(r'(\w+)=X', code))
                code = code.strip().replace('\\n', '\n')
                yield kind, message.replace('NAME', name), code, values.replace('\n', ',')


@pytest.fixture(scope='class')
def newcomer(request):
    """The names that the code of a newcomer finds, and what PORT and the like stand for.

    At NOBODY and 80 nobody listens, and AIRPLAY is the macOS program that takes port 5000.
    """
    connect, patch = socket.socket.connect, pytest.MonkeyPatch()

    def connect_but_to_80(sock, address):
        if address[1] == 80:
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        connect(sock, address)

    with contextlib.ExitStack() as stack:
        live = stack.enter_context
        stack.callback(patch.undo)
        patch.setattr(socket.socket, 'connect', connect_but_to_80)
        folder = request.getfixturevalue('tmp_path_factory').mktemp('mistakes')
        (folder / 'server.pem').write_text(KEY + CERTIFICATE)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(str(folder / 'server.pem'))
        service = holding(Microservice('app1'))
        service.typing('/helloworld')(helloworld)
        service.typing('/secret', token=SECRET)(make)
        service.typing('/file')(lambda: helloworld)
        _, friend = live(calling(service))
        stack.callback(service.release.set)
        airplay = response(b'', '403 Forbidden', None, 'Server: AirTunes/595.13.1\r\n')
        where = {'PORT': service.address, 'NOBODY': dead_address()}
        where['HTTPS'] = live(make().start(0, '127.0.0.1', ssl_context=server)).address
        where['AIRPLAY'] = live(peer(answers(airplay)))
        names = {'Micro': service, 'aFriend': friend, 'hello': helloworld, 'server': server}
        names.update(client=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), file=live(open(__file__)))  # noqa: SIM115
        names['urlopen'] = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        names['stranger'] = live(Friend('app1', service.address, SECRET + '2'))
        names.update(Friend=Friend, Microservice=Microservice, through=through, SECRET=SECRET)
        half = type('Half', (), {'sign_call': print, 'check_call': print})  # two of four methods
        names.update(Signer=Signer, Half=half)
        words = {word: address.rpartition(':')[2] for word, address in where.items()}
        words.update(REFUSED=os.strerror(errno.ECONNREFUSED), EADDRINUSE=str(errno.EADDRINUSE))
        words['IN_USE'] = os.strerror(errno.EADDRINUSE)
        words['SEND'] = 'Friend.send' if sys.version_info >= (3, 10) else 'send'
        yield dict(names, nan=math.nan, inf=math.inf, __name__='__main__'), words


class TestMistakes:
    @pytest.mark.parametrize('kind, message, code, values', list(mistakes()))
    def test_mistake(self, newcomer, kind, message, code, values):
        """Each mistake is refused by this message, and changes no rule and no token."""
        names, words = newcomer
        for word, text in words.items():
            code, message = (re.sub(rf'\b{word}\b', text, one) for one in (code, message))
        pattern = '.*'.join(map(re.escape, message.split('...')))
        micro = names['Micro']
        before = micro.rules(), dict(micro.token)
        for x in eval(f'[{values or None}]', names):
            kinds = {**vars(builtins), **vars(microconnect), 'HTTPError': urllib.error.HTTPError}
            with pytest.raises(kinds[kind]) as caught:
                exec(code, {**names, 'X': x})
            error = caught.value
            told = json.load(error)['detail'] if hasattr(error, 'read') else str(error)
            getattr(error, 'close', int)()
            assert re.fullmatch(pattern, told, re.S), x
            assert not re.search(rf'{SECRET}|\b_\w|\b0x', told)
            assert not re.search('secret@|p4ss|123456', told + repr(error.__context__))
            assert (micro.rules(), dict(micro.token)) == before
        calls = (b'{}', b'{"token":"%b"}' % SECRET.encode())  # it is guarded still
        assert [ask(micro, call, '/secret')[0] for call in calls] == [401, 500]

    def test_what_looks_like_a_method(self):
        """Bound methods, static ones and functions with a parameter `self` are no such methods."""
        code = 'class Box:\n    def static(a): return a\n\ndef plain(self): return self'
        exec(code, space := {'__name__': '__main__'})

        class Box:
            def bound(self, a):
                return a

            of_class, static = classmethod(bound), staticmethod(lambda a: a)
            __call__ = bound

        nested = lambda self: self  # noqa: E731
        bound = (Box().bound, Box.of_class, Box().of_class, functools.partial(Box.bound, Box()))
        for function in (*bound, Box.static, Box(), nested, space['plain'], space['Box'].static):
            assert friend_of(function).send('/f', 7) == 7

    def test_a_definition_run_again(self, monkeypatch):
        """A definition that is run again at a prompt or in a notebook replaces the old one."""
        service = Microservice('app1')

        def define(value):
            cell = f"@service.typing('/f')\ndef function():\n    return {value}"
            exec(cell, {'service': service, '__name__': '__main__'})

        define(1)
        raised(ValueError, define, 2, match='taken already')
        monkeypatch.setattr(sys, 'ps1', '>>> ', raising=False)
        define(3)
        assert Friend('app1', service).send('/f') == 3
        service.typing('/f')(lambda: 4)
        assert Friend('app1', service).send('/f') == 4

    def test_defaults(self):
        """The limits and times that nobody gives are those that the docstrings tell."""
        service, friend = Microservice('app1'), Friend('app1', 'http://127.0.0.1:9')
        told = {'port': 5000, 'host': '0.0.0.0', 'max_body': 8 << 20, 'max_head': 32 << 10}
        told.update(read_timeout=20, idle_timeout=75, max_connections=1000, max_age=300)
        assert {name: getattr(service, name) for name in told} == told
        assert (friend.timeout, friend.max_body) == (60, 8 << 20)
        for function, last in ((Friend.ping, 5), (Friend.wait, 60), (Microservice.stop, 10)):
            assert function.__defaults__ == (last,)
        run, start = map(inspect.signature, (Microservice.run, Microservice.start))
        assert run.parameters == start.parameters

    def test_default_max_body(self):
        """By default both sides take bodies of up to 8 MiB, to the byte."""
        most = (8 << 20) - len('{"args":[""],"kwargs":{},"token":null}')
        friend, large = Friend('app1', make()), Friend('app1', make(max_body=9 << 20))
        assert len(friend.send('/echo', 'x' * most)) == most
        told = 'the call of 8388609 bytes is over max_body=8388608'
        raised(TooLarge, friend.send, '/echo', 'x' * (most + 1), match=told)
        assert ask(make(), b'{"args":["%b"]}' % (b'x' * ((8 << 20) - 12)))[0] == 413
        too_large = friend_of(lambda: 'x' * (8 << 20))
        raised(ValueError, too_large.send, '/f', match='the reply of .* is over max_body=8388608')
        raised(TooLarge, large.send, '/echo', 'x' * (8 << 20))

    def test_short_time_limit_of_the_system(self, monkeypatch):
        """The longest wait that a system knows (Windows: 49 days) bounds times, not sizes."""
        monkeypatch.setattr(threading, 'TIMEOUT_MAX', 4294967.0)
        friend = Friend('app1', make(max_body=1 << 32), max_body=1 << 32)
        assert friend.send('/echo', 1) == 1
        with pytest.raises(ValueError, match='seconds above 0, not 4294968'):
            friend.setRule('/echo', timeout=4294968)


# ------------------------------------------------------------------------------------------- values


Colour = enum.Enum('Colour', {'RED': 'red', 'PAIR': (1, 2)})
Level = enum.IntEnum('Level', 'LOW')
Named = enum.Enum('Named', {'A': 'a'}, type=str)
Pair = collections.namedtuple('Pair', 'a b', defaults=['x'])
Nobody = type('Nobody', (), {})  # has no attribute at all


class Sample:
    """As in the original's tutorial."""

    name, Purpose, empty, _hidden = 'test', 'For test only', None, 1

    def __init__(self, value):
        self.value, self._private, self.function = value, 2, len

    def method(self):
        """Left out."""

    of_class, static = classmethod(method), staticmethod(method)

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
    ends: list


class Config(collections.abc.Mapping):
    def __getitem__(self, key):
        return {'z': 1, 'a': (2,)}[key]

    def __iter__(self):
        return iter('za')

    def __len__(self):
        return 2


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


class Proxy:
    """Says that it is a string, as lazy ones do."""

    __class__ = property(lambda self: str)

    def __getattr__(self, name):
        return getattr('text', name)


class Odd:
    __slots__ = ()
    tolist = __call__ = lambda self: 7


Odd.__name__, Odd.__module__ = 'bool', 'numpy'

UTC = datetime.timezone.utc

ID = uuid.UUID('12345678-1234-5678-1234-567812345678')

SAMPLE = '{"Purpose":"For test only","empty":null,"name":"test","twice":[%s,%s],"value":%s}'

# fmt: off
VALUES = [  # what a function returns, and its JSON
    (None, 'null'), (True, 'true'), (0, '0'), (-(2**70), '-1180591620717411303424'), (2.5, '2.5'),
    (1e300, '1e+300'), (-0.0, '-0.0'), ('', '""'),
    ('a"\\\n\0é\u2028\U0001f600', '"a\\"\\\\\\n\\u0000\\u00e9\\u2028\\ud83d\\ude00"'),
    ('\ud800', '"\\ud800"'), ([], '[]'), ([1, [2, []]], '[1,[2,[]]]'), ([(1, 2)], '[[1,2]]'),
    ({}, '{}'), ({'b': 1, 'a': {'c': None}}, '{"b":1,"a":{"c":null}}'),
    ({1: 'a', None: 'b', False: 'c', 2.5: 'd'}, '{"1":"a","null":"b","false":"c","2.5":"d"}'),
    ({Level.LOW: 1, Named.A: 2}, '{"1":1,"a":2}'), (Sample(7), SAMPLE % (7, 7, 7)),
    (Sample([Sample('v')]), SAMPLE % (('[' + SAMPLE % (('"v"',) * 3) + ']',) * 3)),
    (Slots(), '{"a":1,"b":2}'), (Nobody(), '{}'), (Unsaved(), '{"id":null}'),
    (Holder(b=1, a=Colour.RED), '{"a":"red","b":1}'),
    (types.SimpleNamespace(b=1, a=2, _c=3), '{"a":2,"b":1}'),
    (datetime.datetime(2024, 2, 29, 23, 59, 58, 7, UTC), '"2024-02-29T23:59:58.000007+00:00"'),
    (datetime.datetime(2024, 2, 29), '"2024-02-29T00:00:00"'),
    (datetime.date(2024, 2, 29), '"2024-02-29"'), (datetime.time(1, 2, 3), '"01:02:03"'),
    (datetime.timedelta(days=1, milliseconds=-1), '86399.999'), (decimal.Decimal('1.10'), '"1.10"'),
    (fractions.Fraction(1, 3), '"1/3"'), (ID, '"12345678-1234-5678-1234-567812345678"'),
    (pathlib.PurePosixPath('/a b/é'), '"/a b/\\u00e9"'), (Colour.RED, '"red"'),
    (Colour.PAIR, '[1,2]'), (Level.LOW, '1'), (Named.A, '"a"'), (b'\x00\xff', '"AP8="'),
    (bytearray(b'a'), '"YQ=="'), (memoryview(b'a'), '"YQ=="'),
    (ipaddress.ip_address('127.0.0.1'), '"127.0.0.1"'),
    (ipaddress.ip_address('fe80::1'), '"fe80::1"'),
    (ipaddress.ip_network('10.0.0.0/8'), '"10.0.0.0/8"'),
    (ipaddress.ip_interface('::1/64'), '"::1/64"'), (collections.UserList([1, (2,)]), '[1,[2]]'),
    (collections.UserString('a"'), '"a\\""'),
    (collections.UserDict(b=1, a=None), '{"b":1,"a":null}'), (Ghost(), '{"a":1}'), ({1}, '[1]'),
    (frozenset('a'), '["a"]'), (collections.deque([1, 2]), '[1,2]'), (range(3), '[0,1,2]'),
    ({'a': 1}.keys(), '["a"]'), ({'a': 1}.values(), '[1]'), ({'a': 1}.items(), '[["a",1]]'),
    (Point(1.5), '{"y":1.5,"x":0.0}'), (Line([Point(1, 2)]), '{"ends":[{"y":1,"x":2}]}'),
    ([Pair(1)], '[[1,"x"]]'), (Pair(1), '[1,"x"]'), (Config(), '{"z":1,"a":[2]}'),
    (types.MappingProxyType({'a': 1}), '{"a":1}'),
    (collections.OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
    (collections.Counter('aab'), '{"a":2,"b":1}'),
    (collections.defaultdict(list, a=[1]), '{"a":[1]}'),
]
# fmt: on

STREAMS = [  # what gives an iterator, and its JSON
    (lambda: (x * x for x in range(3)), '[0,1,4]'),
    (lambda: iter([1, Point(2)]), '[1,{"y":2,"x":0.0}]'),
    (lambda: map(str, [1]), '["1"]'),
    (lambda: zip('a', [1]), '[["a",1]]'),
    (lambda: itertools.count(1) and iter(()), '[]'),
]

LOOP, LOOPED = {'list': []}, Holder(items=[1])  # they hold themselves
LOOP['list'].append(LOOP)
LOOPED.items.append(LOOPED)

NO_JSON = 'Out of range float values are not JSON compliant'
NO_STRING = 'and the keys of JSON are strings'
REFUSED = [  # what no JSON says; where in it, and why; as which error
    (LOOP, "['list'][0]: holds itself", ValueError),
    (LOOPED, '.items[1]: holds itself', ValueError),
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
    ([Sample], '[0]: type has no JSON form: send its __name__', TypeError),
    ([Point], '[0]: type has no JSON form', TypeError),
    ([object()], '[0]: object has no JSON form', TypeError),
    ([1j], '[0]: complex has no JSON form: send its .real and .imag', TypeError),
    ([ValueError()], '[0]: ValueError has no JSON form: send its text, or raise it', TypeError),
    ([Holder(_a=1)], '[0]: Holder has no JSON form: all its attributes begin with _', TypeError),
    ([...], '[0]: ellipsis has no JSON form', TypeError),
    ([functools.partial(len)], '[0]: functools.partial has no JSON form', TypeError),
    ([re.compile('x')], '[0]: re.Pattern has no JSON form: send its .pattern', TypeError),
    ([NotATime(2024, 2, 29)], f'[0]: {__name__}.NotATime has no JSON form', TypeError),
    ({'a': NotADuration(1)}, f"['a']: {__name__}.NotADuration has no JSON", TypeError),
    (Holder(a=[1, NotThere()]), '.a[1]: pandas.NAType has no JSON form', TypeError),
    ([decimal.Decimal('NaN')], '[0]: decimal.Decimal has no JSON form', TypeError),
    ([decimal.Decimal('sNaN')], '[0]: decimal.Decimal has no JSON form', TypeError),
    ([decimal.Decimal('Infinity')], '[0]: decimal.Decimal has no JSON form', TypeError),
    ([decimal.Decimal('-Infinity')], '[0]: decimal.Decimal has no JSON form', TypeError),
    (collections.UserList([1, math.nan]), f'[1]: {NO_JSON}', ValueError),
]

OFFERED = {  # a method or attribute, and what its objects offer to be sent
    'tolist': '.tolist()', 'to_records': ".to_dict('records')", 'to_dicts': '.to_dicts()',
    'model_dump': '.model_dump()', '_asdict': '._asdict()', '__table__': 'columns as a dict',
    'fileno': '.read()',
}  # fmt: skip

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
    print(': nested too deeply' in text, len(text) < 150)

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


def is_answering(address):
    """Whether a service at *address* takes calls."""
    with Friend('app1', address) as friend:
        return friend.ping()


class TestValues:
    @pytest.mark.parametrize('value, text', VALUES, ids=[text[:30] for _, text in VALUES])
    def test_encoding(self, value, text):
        """A returned value and an argument have the JSON form of the table."""
        service = service_of(lambda *args: value)
        assert service.answer('POST', '/f', JSON)[2].decode() == f'[{text}]'
        echo = Friend('app1', make())
        assert echo.send('/echo', value) == json.loads(text)
        assert echo.send('/echo', [value]) == [json.loads(text)]

    def test_iterators(self):
        """Generators and other iterators are arrays, in a reply and in a call."""
        for make_value, text in STREAMS:
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
        error = raised(RemoteError, friend_of(lambda: value).send, '/f')
        assert isinstance(error, kind)
        assert str(error).partition(f'{kind.__name__}: reply[0]')[2].startswith(why)
        service = make()
        for path, args, kwargs in (
            ('args[1]', ('x', value), {}),
            ("kwargs['k']", (), {'k': value}),
        ):
            call = functools.partial(Friend('app1', service).send, '/echo', *args, **kwargs)
            assert path + why in str(raised(BadCall, call, sent=False, rule='/echo'))
        assert service.ran == []

    def test_several_values_refused(self):
        """The path counts the returned values."""
        told = r'reply\[1\]\[0\]: _thread.lock has no JSON form'
        raised(TypeError, friend_of(lambda: (1, [threading.Lock()], 3)).send, '/f', match=told)

    def test_nested_too_deeply(self, live):
        """What is nested too deeply is refused, in calls and replies."""
        value = object()
        for _ in range(250):
            value = [value]
        told = r'args[][0]+\.\.\.: nested too deeply'
        raised(BadCall, Friend('app1', make()).send, '/echo', value, match=told)

        class Deep(bytes):
            def decode(self):
                raise RecursionError

        assert ask(make(), Deep(b'['))[2]['detail'] == 'the body is not JSON: nested too deeply'
        replies = response(b'[' * 100000), response(b'[' * 100000 + b']' * 100000)
        address = live(peer(answers(*replies)))
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
        for arrays in (1, 100, 102, 200):  # then objects
            text = '[' * arrays + '{"a":' * (201 - arrays) + '1' + '}' * (201 - arrays)
            assert decodes((text + ']' * arrays).encode()) == TOO_DEEP
            assert decodes((text[1:] + ']' * (arrays - 1)).encode()) == ''

    @pytest.mark.parametrize('depth', [199, 200, 201, 202, 5000])
    def test_depth_of_messages(self, depth, live):
        """A call or a reply of 200 levels is taken, one of more is refused and runs nothing."""
        nested = [b'[' * levels + b']' * levels for levels in range(depth - 2, depth + 1)]
        service, calls = make(), [b'{"args":%b}', b'{"token":%b}']
        for body in (b'{"kwargs":{"a":%b}}' % nested[0], *(call % nested[1] for call in calls)):
            status, _, problem = ask(service, body)
            assert status == (400 if depth > 200 else 200)
            assert status == 200 or problem['detail'] == f'the body is not JSON: {TOO_DEEP}'
        assert len(service.ran) == (0 if depth > 200 else 3)
        friend = live(Friend('app1', live(peer(answers(response(nested[2]))))))
        if depth > 200:
            raised(BadReply, friend.send, '/echo', match=f'the reply is not JSON: {TOO_DEEP}')
        else:
            assert friend.send('/echo') == json.loads(nested[1])

    def test_depth_by_counting(self):
        """Random JSON (from a fixed seed) is refused if, and only if, a slow count finds 201."""
        rnd, seen = random.Random(20240229), set()
        for _ in range(40):
            body = bracketed(rnd)
            json.loads(body)
            is_deep = depth_of(body) > 200
            seen.add(is_deep)
            assert decodes(body) == (TOO_DEEP if is_deep else ''), body
        assert seen == {False, True}

    def test_brackets_in_strings(self):
        """Brackets in strings are no nesting, whatever escapes and quotes are around them."""
        friend = Friend('app1', make())
        for piece in ('[', '{', '"', '\\', '\\"[', ']}', '"[\\'):
            text = piece * (501 // len(piece))
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

    def test_small_stacks(self, live):
        """Deep JSON does not end a process whose threads have stacks of 1 MiB."""
        token = b'[' * 18000 + b']' * 18000
        address = live(peer(answers(response(token))))
        process = live(running('-W', 'error', '-c', SMALL_STACK, address))
        assert TOO_DEEP in process.stdout.readline().decode()
        address = announced(process)
        port = int(address.rpartition(':')[2])
        for body in (b'{"token":%b}' % token, b'{"args":%b}' % token):
            sock = live(socket.create_connection(('127.0.0.1', port), TIMEOUT))
            sock.sendall(request(body, extra=b'Connection: close\r\n'))
            assert statuses(receive(sock)) == [400]
        assert is_answering(address)

    @pytest.mark.skipif(not hasattr(gc, 'callbacks'), reason='the collector tells nothing here')
    @pytest.mark.parametrize('size', [100, 1 << 19])
    @pytest.mark.parametrize('is_enabled', [True, False])
    @pytest.mark.parametrize('is_json', [True, False])
    def test_garbage_collection(self, size, is_enabled, is_json, live):
        """Large bodies are decoded without the collector, which is left as it was afterwards."""
        body = b'[' + b'[],' * (size // 3) + (b'[]]' if is_json else b'x]')
        runs, stack = [], live(contextlib.ExitStack())

        def note(phase, info):
            runs.append(phase)

        stack.callback(gc.enable)
        stack.callback(gc.callbacks.remove, note)
        gc.collect(0)
        gc.callbacks.append(note)
        if not is_enabled:
            gc.disable()
        assert (decodes(body) == '') is is_json
        assert gc.isenabled() is is_enabled and len(runs) <= 2  # it may run once it is enabled

    def test_large_bodies_of_many_threads(self):
        """Large bodies that come at once are decoded one after the other."""
        body = b'[' + b'[],' * 100000 + b'[]]'
        told = call_all(4, lambda number: decodes(body + b'x' * (number % 2)) == '')
        assert told == [True, False] * 2

    @pytest.mark.skipif(not hasattr(sys, 'get_int_max_str_digits'), reason='integers are unlimited')
    def test_huge_integers(self):
        """An integer beyond the interpreter's limit of digits is an error with its path."""
        send, told = Friend('app1', make()).send, r'args\[0\]\[1\]: Exceeds the limit'
        raised(BadCall, send, '/echo', [0, 10**5000], match=told)
        huge = friend_of(lambda: 10**5000)
        raised(RemoteError, huge.send, '/f', match=r'reply\[0\]: Exceeds the limit')
        status, _, problem = ask(make(), b'{"args": [%b]}' % (b'1' * 5000))
        assert (status, problem['detail'][:24]) == (400, 'the body is not JSON: Ex')

    def test_failing_property(self):
        """What a property raises is the error of the call; in debug its traceback is there, too."""
        friend = friend_of(lambda: [Holder(a=Broken())], debug=True)
        error = raised(LookupError, friend.send, '/f', match='LookupError: no items')
        assert 'in items' in error.traceback
        raised(LookupError, Friend('app1', make()).send, '/echo', Broken(), match='^no items$')

    @pytest.mark.parametrize('kind', [KeyError, ValueError, TypeError, StopAsyncIteration])
    def test_failing_iterator(self, kind):
        """What an iterator raises is the error of the call, and it is not asked again."""
        taken = []

        def item(number):
            taken.append(number)
            if number == 2:
                raise kind('no')
            return number

        value = {'a': map(item, range(9))}
        raised(kind, Friend('app1', make()).send, '/echo', value, match='^.?no.?$')
        assert taken == [0, 1, 2]

    @needs_signals
    @needs_timers
    def test_signal_while_encoding(self, live):
        """What a signal's handler raises is not taken for an error of the value."""

        class Slow:
            @property
            def items(self):
                signal.raise_signal(signal.SIGALRM)

        live(handling(signal.SIGALRM, signal.default_int_handler))
        raised(KeyboardInterrupt, Friend('app1', make()).send, '/echo', Slow())

    def test_what_to_send_instead(self, live):
        """The error for an object names its type, and a plain form that it offers, or to read."""
        refused = [(Proxy(), 'Proxy'), (Odd(), ': numpy.bool has no JSON form: send its .tolist()')]
        for name, form in OFFERED.items():
            members = {name: lambda self: {'a': 1}, '__module__': 'pandas.x'}
            told = f'[1].row: pandas.x.Known has no JSON form: send its {form}'
            refused.append(([1, Holder(row=type('Known', (Holder,), members)(a=1))], told))
        service = make(token=SECRET)
        friend = Friend('app1', service, {'/echo': SECRET})
        for held in (friend, service, friend.token, service.token):  # tokens would leak
            refused.append((Holder(held=held), 'held: microconnect.'))
        for one in (live(open(os.devnull)), io.StringIO(), live(socket.socket())):  # noqa: SIM115
            refused.append((one, ' has no JSON form: send its .read()'))
        for value, told in refused:
            error = raised(BadCall, friend.send, '/echo', value, match=r'args\[0\]')
            assert told in str(error)
        assert service.ran == []

    @pytest.mark.parametrize('name', ['NaT', 'NA'])
    def test_missing_values_of_pandas(self, name):
        """A missing value of pandas is refused wherever it stands, as NaN is."""
        value = getattr(pytest.importorskip('pandas'), name)
        told = r"args\[0\]\['a'\]: .* has no JSON form"
        raised(BadCall, Friend('app1', make()).send, '/echo', {'a': value}, match=told)
        told = r'reply\[0\]: .* has no JSON form'
        raised(TypeError, friend_of(lambda: value).send, '/f', match=told)

    @pytest.mark.parametrize('endless', ENDLESS)
    def test_endless(self, endless, monkeypatch):
        """An iterator without an end is an error, in a call and in a reply, wherever it stands."""
        limit(monkeypatch, items=1000)
        service = make()
        for wrap in (lambda v: v, lambda v: [1, {'k': v}]):
            told = 'args: an iterator gave more than 1000 bytes'
            raised(BadCall, Friend('app1', service).send, '/echo', wrap(endless()), match=told)
            friend = friend_of(lambda wrap=wrap: wrap(endless()), max_body=1000)
            told = 'an iterator gave more than|the reply of .* is over max_body'
            raised(ValueError, friend.send, '/f', match=told)
        assert service.ran == []

    def test_endless_takes_bounded_memory(self, monkeypatch):
        """A generator without an end is given up once its items cannot fit in a reply."""
        taken = []

        def endless():
            for number in itertools.count():
                taken.append(number)
                yield 1

        told = 'an iterator gave more than 1000 bytes'
        raised(ValueError, friend_of(endless, max_body=1000).send, '/f', match=told)
        assert len(taken) <= 501  # an item takes two bytes at least
        limit(monkeypatch, items=500)
        for value in (endless, lambda: [endless()]):
            taken.clear()
            told = 'an iterator gave more than 500 bytes'
            raised(BadCall, Friend('app1', make()).send, '/echo', value(), match=told)
            assert len(taken) <= 2 * 251  # once to encode, and once to name the place

    def test_iterator_that_just_fits(self, monkeypatch):
        """An iterator of as many items as are allowed is sent whole."""
        limit(monkeypatch, items=1000)
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
        raised(BadReply, value_of, body, match='the reply is not JSON: ')

    @pytest.mark.skipif(sys.implementation.name == 'pypy', reason='its rows have attributes')
    def test_row(self, live):
        """A row of sqlite3 is refused with the advice to send it as a dict."""
        sqlite3 = pytest.importorskip('sqlite3')
        base = live(contextlib.closing(sqlite3.connect(':memory:')))
        row, send = sqlite3.Row(base.execute('select 1 as a'), (1,)), Friend('app1', make()).send
        raised(BadCall, send, '/echo', row, match='send its items as a dict')
        assert send('/echo', dict(row)) == {'a': 1}

    def test_another_large_body(self, monkeypatch, live):
        """Whoever waits for another large body to be decoded waits no longer than its own call."""
        service, friend = live(calling())
        large, locked, go_on = 'x' * (1 << 19), threading.Event(), threading.Event()

        def hold():
            with process_lock('decode'):
                locked.set()
                go_on.wait(TIMEOUT)

        live(background(hold))
        live(contextlib.ExitStack()).callback(go_on.set)
        assert locked.wait(TIMEOUT)
        limit(monkeypatch, patience=0.05)
        told = 'being decoded; try again later'
        raised(Busy, friend.send, '/echo', large, match=told, sent=False)
        short = live(peer(answers(response(json.dumps([large]).encode()))))
        short = live(Friend('app1', short, timeout=0.2))
        raised(
            CallTimeout,
            short.send,
            '/f',
            match='could not be decoded within .*; the call has run',
            sent=True,
        )
        go_on.set()
        limit(monkeypatch, patience=TIMEOUT)
        assert friend.send('/echo', large) == large and len(service.ran) == 1


# --------------------------------------------------------------------------------------------- http


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
        (501, NO_CODING, (CODING + b'GZIP , Chunked', CODING + b'gzip\r\n' + CODING + b'chunked')),
        (417, 'the only expectation met is 100-continue', (b'Expect: tea',)),
    ]
]
# fmt: on

TOO_LONG = 'the head is over 200 bytes'
# fmt: off
REFUSED_STARTS = [  # status, message; what a connection begins with
    (400, 'the connection ended in the middle of a message', [b'', b'GET / HT', b'GET /' + HOST]),
    (400, MALFORMED, [
        b' GET / HTTP/1.1\r\n', b'\nGET / HTTP/1.1', b'\r\r', b'\0',
        b'GET / HTTP/1.1\nHost', b'GET /\r\n', b'GET / HTTP/1.15\r\n',
    ]),
    (400, IS_TLS, [b'\x16', b'\x16\x03\x01']),
    (505, NO_VERSION, [b'PRI * HTTP/2.0\r\n']),
    (431, TOO_LONG, [
        b'GET /%b HTTP/1.1\r\n' % (b'x' * 200), b'GET / HTTP/1.1\r\n' + b'X: 1\r\n' * 40,
        b'\r\n' * 110, b'GET / HTTP/1.1\r\n' + b'X: 1\r\n' * 40 + b'\r\n',
    ]),
]
# fmt: on

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


def new_reader(receive, max_head, is_reply):
    """The module's reader of requests or replies; *receive* gives it bytes."""
    module = microconnect
    kind = (parse_request, module._REQUEST_LINE), (parse_reply, module._STATUS_LINE)
    return module._Reader(receive, *kind[is_reply], max_head)


class Reader:
    """The module's reader, fed with *data* by *cut*, which gives the size of each piece."""

    def __init__(self, data, cut, max_head, is_reply):
        self.inner = new_reader(self.receive, max_head, is_reply)
        self.left, self.cut, self.body = data, cut, self.inner.body

    def receive(self, most):
        size = min(self.cut(self.left), most)
        given, self.left = self.left[:size], self.left[size:]
        return given

    def head(self):
        got = self.inner.head()
        if got is None:  # as the owners of a reader take it
            raise BadCall('the connection ended in the middle of a message')
        return got

    def unread(self):
        return bytes(self.inner.buffer) + self.left


def reader(data, step=0, reply=False, max_head=200, seed=None):
    """What reads messages: *data* comes whole, *step* bytes at a time, or in random pieces."""
    cut = random.Random(seed).randrange if seed is not None else None
    size = (lambda left: cut(1, 9)) if cut else (lambda left: step or len(left) or 1)
    return Reader(data, size, max_head, reply)


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
            assert stream.unread() == rest

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
                while stream.unread():
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
        assert parse_request(head).headers == {'host': 'a', 'x-a': '1, \xe9', 'x-b': ''}

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
        for data, length, body in (
            (b'abcde', 3, b'abc'),
            (b'', 0, b''),
            (b'abc', TO_THE_END, b'abc'),
        ):
            assert reader(data, step).body(length, 3) == body
        for data, length, told in (
            (b'abcde', 4, (413, 'the body of 4 bytes is over max_body=3')),
            (b'ab', 3, (400, CUT)),
            (b'abcd', TO_THE_END, (413, 'the body is over max_body=3')),
        ):
            assert refused(reader(data, step).body, length, 3) == told

    @pytest.mark.parametrize('data, body', CHUNKED_BODIES)
    def test_chunked(self, data, body):
        """A chunked body is put together; the bytes after it are left."""
        for step, rest in itertools.product((0, 1), (b'', b'GET')):
            stream = reader(data + rest, step)
            assert stream.body(CHUNKED, 20) == body
            assert stream.unread() == rest

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

    def test_small_chunks(self):
        """A body of many chunks has to have chunks that are worth their framing."""
        for size, step in itertools.product((1, 8, 24, 64, 1000), (0, 999)):
            chunks = b'%x\r\n%b\r\n' % (size, b'x' * size) * 2000 + b'0\r\n\r\n'
            stream = reader(chunks, step, max_head=4096)
            if size > 24:
                assert len(stream.body(CHUNKED, 1 << 24)) == 2000 * size
            else:
                assert refused(stream.body, CHUNKED, 1 << 24) == (400, LINE)

    def test_large_chunks_pay_for_no_more(self):
        """Large chunks do not save up for extensions, trailers or tiny chunks without a bound."""
        large, end = b'fffff\r\n%b\r\n' % (b'x' * 0xFFFFF), b'0\r\n\r\n'
        for rest in (
            b'1;%b\r\nx\r\n' % (b'y' * 5000) + end,
            b'1\r\nx\r\n' * 2000 + end,
            b'0;%b\r\n\r\n' % (b'y' * 5000),
            b'0\r\nX: %b\r\n\r\n' % (b'y' * 5000),
        ):
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

    def test_terabyte(self, service):
        """A length over the limit is refused without waiting for the body."""
        for length in (10**12, 10**30):
            got = raw(service, HEAD + b'Content-Length: %d\r\n\r\n' % length, end=False)
            assert statuses(got) == [413]

    def test_cut_short(self, service):
        """A request that ends in its middle is not run."""
        for data in (request()[:30], request()[:-1], *(CHUNKED_HEAD + data for data in CUT_SHORT)):
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
    (b'HTTP/1.1 103 Early\r\n' + LENGTH, 103, 0, 4.0),
    (b'HTTP/1.1 204 No\r\n', 204, 0, 4.0),
    (b'HTTP/1.1 304 No\r\n' + LENGTH, 304, 0, 4.0),
]

# fmt: off
REPLIES = [  # what `send` gives; the bytes of replies that others may send
    ('x', [
        response(), response(b' [ "x" ]\n'), response(kind='Application/JSON; charset=utf-8'),
        response(extra='Connection: close\r\n'), response(extra='Content-Encoding: identity\r\n'),
        response(status='200'), response().replace(b'1.1', b'1.0'),
        OK_JSON.lower().replace(b'http', b'HTTP') + b'content-length:5\r\n\r\n["x"]',
        OK_JSON + b'\r\n["x"]',  # it ends with the connection
        OK_JSON + CODING + b'chunked\r\n\r\n1;a=b\r\n[\r\n04\r\n"x"]\r\n0\r\nY: 1\r\n\r\n',
        b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: <x>\r\n\r\n' + response(),
    ]),
    (7, [response(b'[7]\n')]),
    ((1, 'b', None), [response(b'[\n  1, \n  "b", \n  null\n]\n')]),
    ([1, 2], [response(b'[ [ 1, 2 ] ]')]),
    ((), [response(b' [ ] ')]),
    ('é', [response('["é"]'.encode())]),
    (None, [response(b'[null]\r\n')]),
]
# fmt: on

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


def read_reply(data, max_body=250000):
    """What `send` gives for a reply of these bytes, read in memory."""
    stream = reader(data, reply=True, max_head=64 << 10)
    head = stream.head()
    while head.status < 200:
        head = stream.head()
    return value_of(stream.body(head.length, max_body), head)


class TestReplies:
    def check_refused(self, data, kind, message):
        got = []
        with peer(answers(data, got=got)) as address:
            friend = Friend('app1', address, timeout=TIMEOUT, max_body=250000)
            facts = {'rule': '/echo', 'address': address, 'sent': True}
            told = f'/echo at {address}: .*{re.escape(message)}'
            raised(kind, friend.send, '/echo', 'x', match=told, **facts)
        assert len(got) == 1

    @pytest.mark.parametrize('head, status, length, seconds', REPLY_HEADS)
    def test_heads(self, head, status, length, seconds):
        """A legal reply head is understood, also byte by byte and with bytes after it."""
        for step, rest in itertools.product((0, 1, 7), (b'', b'[1]')):
            stream = reader(head + b'\r\n' + rest, step, reply=True)
            reply = stream.head()
            assert (reply.status, reply.length) == (status, length)
            assert reply.keep_alive == pytest.approx(seconds)
            assert stream.unread() == rest

    @pytest.mark.parametrize('value, data', each(REPLIES))
    def test_forms(self, value, data, live):
        """A reply is understood in every form that HTTP and JSON have for it."""
        assert read_reply(data) == value
        assert live(Friend('app1', live(peer(answers(data))))).send('/echo') == value

    @pytest.mark.parametrize('message, replies', REFUSED_REPLIES)
    def test_refused(self, message, replies):
        """Malformed replies are a BadReply; the call may have run, and is not repeated."""
        for data in replies:
            assert message in refused(read_reply, data)[1], data
            self.check_refused(data, BadReply, message)

    def test_only_interim(self, live):
        """If the connection ends after interim replies, the call is lost."""
        address = live(peer(answers(b'HTTP/1.1 100 Continue\r\n\r\n' * 100)))
        raised(ConnectionLost, live(Friend('app1', address)).send, '/echo', sent=True)

    @pytest.mark.parametrize('data', TOO_LARGE_REPLIES, ids=['with length', 'without'])
    def test_too_large(self, data):
        """A reply over max_body is TooLarge: the call has run."""
        assert 'over max_body=250000' in refused(read_reply, data)[1]
        self.check_refused(data, TooLarge, 'over max_body=250000')


# -------------------------------------------------------------------------------------------- calls


# fmt: off
WIRE = [  # args, kwargs, token; the body that a friend sends
    ((), {}, None, b'{"args":[],"kwargs":{},"token":null}'),
    (('x',), {}, None, b'{"args":["x"],"kwargs":{},"token":null}'),
    ((1, 2.5, None, True), {}, 't', b'{"args":[1,2.5,null,true],"kwargs":{},"token":"t"}'),
    ((), {'k': [1]}, None, b'{"args":[],"kwargs":{"k":[1]},"token":null}'),
    (([], [[]], {}), {'a': {}, 'b': ''}, 'é"',
     b'{"args":[[],[[]],{}],"kwargs":{"a":{},"b":""},"token":"\\u00e9\\""}'),
    (({'a': [1]}, 'é'), {'self': 1, 'rule': 2, 'token': 3, 'args': 4}, '123456',
     b'{"args":[{"a":[1]},"\\u00e9"],"kwargs":{"self":1,"rule":2,"token":3,"args":4},'
     b'"token":"123456"}'),
]
# fmt: on

NESTED = b'[' * 198 + b']' * 198  # with the call around it, as deep as is allowed
# fmt: off
OTHERS = [  # bodies that others send; what they call with
    (b'{"args": ["x", 1], "kwargs": {"k": 2}, "token": null}', ('x', 1), {'k': 2}),  # requests
    (b'{"args": ["x"], "kwargs": {}, "token": "unasked"}', ('x',), {}),
    (b'{"token": null, "kwargs": {}, "args": ["x"]}', ('x',), {}),
    (b'\r\n{\t"args" :\n[ "x" ] }\n', ('x',), {}), ('{"args": ["é"]}'.encode(), ('é',), {}),
    (b'{"kwargs": {"k": 1}}', (), {'k': 1}),
    (b'{"kwargs": {"": 1, "a b": 2, "\\u0000": 3}}', (), {'': 1, 'a b': 2, '\0': 3}),
    (b'{"args": [1], "token": {"a": []}}', (1,), {}), (b'{"args": [1], "token": 7}', (1,), {}),
    (b'{"token": null}', (), {}), (b'{"args": [%b]}' % NESTED, (json.loads(NESTED),), {}),
    (b'{}', (), {}), (b'', (), {}), (b'{"args": [1], "args": [2]}', (2,), {}),
    (b'{"args": ["\\ud800"], "kwargs": {"\\udfff": 1}}', ('\ud800',), {'\udfff': 1}),
    (b'{"args": ["\\ud800\\udc00\\udfff"]}', ('\U00010000\udfff',), {}),
]
# fmt: on

NO_CALL = 'the body is {"args": [...], "kwargs": {...}, "token": ...}, or part of it'
# fmt: off
MALFORMED_CALLS = [  # what the service says; bodies
    (NO_CALL, [
        b'[]', b'7', b'null', b'"args"', b'true',
        b'{"arg": [1]}', b'{"args": [1], "x": 1}', b'{"args": [1], "": 1}',
    ]),
    ('args has to be an array, and kwargs an object', [
        b'{"args": {}}', b'{"args": "x"}', b'{"args": null}', b'{"args": 7}', b'{"kwargs": []}',
        b'{"kwargs": null}', b'{"kwargs": "x"}', b'{"kwargs": {"a": 1}, "kwargs": 7}',
    ]),
    ('the body is not JSON: 1e400 is no finite number', [b'{"args": [1e400]}']),
]
# fmt: on

# fmt: off
RETURNS = [  # what a function returns; the reply's body; what `send` gives
    (7, b'[7]', 7), ('é', b'["\\u00e9"]', 'é'), (None, b'[null]', None),
    ((1, 'b', None), b'[1,"b",null]', (1, 'b', None)), ([1, 2], b'[[1,2]]', [1, 2]),
    ([], b'[[]]', []), ((), b'[]', ()), ((1,), b'[1]', 1), (((1, 2),), b'[[1,2]]', [1, 2]),
    (([1], (2, 3)), b'[[1],[2,3]]', ([1], [2, 3])), ((None, None), b'[null,null]', (None, None)),
    ({'a': (1,)}, b'[{"a":[1]}]', {'a': [1]}), (Pair(1, 'b'), b'[[1,"b"]]', [1, 'b']),
    (False, b'[false]', False),
]
# fmt: on


class TestCalls:
    @pytest.mark.parametrize('args, kwargs, token, body', WIRE)
    def test_call(self, args, kwargs, token, body, live):
        """A friend sends these bytes, and a service takes them."""
        address = live(peer(answers(response(b'[null]'), got=(got := []))))
        assert live(Friend('app1', address, token=token)).send('/echo', *args, **kwargs) is None
        assert got[0].partition(b'\r\n\r\n')[2] == body
        service = make(token=token)
        assert ask(service, body)[0] == 200
        assert service.ran == [(args, kwargs)]

    def test_head(self, live):
        """The head of a call is this and no more."""
        address = live(peer(answers(response(), got=(got := []))))
        live(Friend('app1', address + '/base/')).send('/é b', 1)
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


# ------------------------------------------------------------------------------------------ sockets


SLOW_REPLIES = [  # how they begin, and go on
    (b'', b''),
    (b'', b'\r\n'),
    (OK + b'X: ', b'x'),
    (OK_JSON + b'\r\n', b'['),
    (OK_JSON + b'\r\n["x"]', b''),  # as if whole: its end is that of the connection
    (OK_JSON + b'\r\n["x"]', b' '),
]

TOO_SLOW = [b'', HEAD, request()[:-1], CHUNKED_HEAD + b'5\r\n', HEAD + b'Drip: ']


def drip(start=b'', more=b'', first=b''):
    """A script that answers with *start*, and then with *more* again and again.

    Before that it answers a call with *first*, if there is one.
    """

    def script(sock, number, over):
        until_then = time.monotonic() + TIMEOUT
        for begin in (first, start) if first else (start,):
            call_on(sock)
            sock.sendall(begin)
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


class AllAtOnce:
    """Most of these tests wait, so they wait together, each `check_` in a thread of its own."""

    def all_at_once(self, **given):
        checks = [getattr(self, name) for name in dir(self) if name.startswith('check_')]
        call_all(len(checks), lambda number: checks[number](**given))


def unread_bytes_of(service):
    """How many bytes of unfinished requests a service holds."""
    return sum(len(one.reader.buffer) for one in connections_of(service))


@pytest.mark.usefixtures('each_way')
class TestTimeOfTheService(AllAtOnce):
    """How long a service waits for its clients."""

    def check_too_slow(self, **_):
        """A client that is silent, stops or drips gets a 408; others are served meanwhile."""
        service = make(read_timeout=0.2)
        with serving(service), contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(service)) for _ in TOO_SLOW]
            for sock, start in zip(socks, TOO_SLOW):
                sock.sendall(start)
            until(lambda: len(connections_of(service)) == len(TOO_SLOW))
            until(lambda: all(one.timed.deadline for one in connections_of(service)))
            until(lambda: len(connections_of(service, 'idle')) <= 1)  # the silent one
            service.read_timeout = TIMEOUT  # for the others
            while not select.select(socks[-1:], (), (), 0.02)[0]:
                socks[-1].sendall(b'x')
                assert statuses(raw(service, request())) == [200]
            assert [statuses(receive(sock)) for sock in socks] == [[408]] * len(TOO_SLOW)
        assert {args for args, _ in service.ran} == {('x',)}

    def over_tls(self, data, server, client, **limit):
        """What a client is told that sends *data*; [] where not even the handshake was in time."""
        service, got = make(**limit), b''
        with service.start(0, '127.0.0.1', ssl_context=server), contextlib.suppress(OSError):
            inside = client.wrap_socket(connect(service), server_hostname='localhost')
            inside.sendall(data)
            got = receive(inside)
            inside.close()
        return statuses(got)

    def check_too_slow_over_tls(self, server, client):
        """A client that is too slow, or idle, also gets its 408 over TLS."""
        client.options |= 0x80  # OP_IGNORE_UNEXPECTED_EOF: a bare end is an end, too
        told = functools.partial(self.over_tls, server=server, client=client)
        sent = [b'', request()[:20], request()[:-2]]
        call_all(3, lambda i: until(lambda: told(sent[i], read_timeout=0.2) == [408]))
        assert told(request(), idle_timeout=0.05) == [200, 408]

    def check_silent_before_tls(self, server, client):
        """A client that begins no TLS, or only begins it, is cut off."""
        with make(read_timeout=0.1).start(0, '127.0.0.1', ssl_context=server) as service, soon():
            sent = b'', b'\x16\x03'
            assert call_all(2, lambda i: raw(service, sent[i], end=False)) == [b'', b'']
            until(lambda: not connections_of(service))

    def check_silent_after_much(self, **_):
        """A client that stops has read_timeout for its silence, however much it sent before."""
        data = HEAD + b'Content-Length: 8000000\r\n\r\n' + b'x' * 7900000
        with serving(read_timeout=0.3) as service, soon():  # each 256 KiB of it may take as long
            assert statuses(raw(service, data, end=False)) == [408]

    def check_long_call(self, **_):
        """A function may take far longer than its peer: it is answered, and the next one, too."""

        def slow(seconds):
            service.read_timeout = 0.05
            return threading.Event().wait(seconds)

        service = service_of(slow)
        with calling(service) as (_, friend):
            assert [friend.send('/f', 0.1), friend.send('/f', 0)] == [False, False]

    def check_idle_timeout(self, **_):
        """An idle connection gets a 408 that says so, with a body though HEAD was before it."""
        with serving(idle_timeout=0.05) as service:
            got = raw(service, request(), end=False)
            assert statuses(got) == [200, 408] and b'idle' in got
            got = raw(service, request(b'', '/', 'HEAD'), end=False)
            assert statuses(got) == [200, 408]
        assert json.loads(got.rpartition(b'\r\n\r\n')[2])['status'] == 408

    def check_end_of_an_old_wait(self, **_):
        """What would end a wait that is over ends no call: the connection is closed after it."""
        service = holding(counting(make()))
        with calling(service) as (_, friend):
            assert friend.send('/count') == 1
            until(lambda: connections_of(service, 'idle'))
            (connection,) = connections_of(service)
            calls = threading.Thread(target=friend.send, args=('/hold',))
            calls.start()
            assert service.held.acquire(timeout=TIMEOUT)
            connection.end()  # as for a newcomer that needs room
            service.release.set()
            calls.join(TIMEOUT)
            assert (service.returned, friend.send('/count')) == (1, 1)  # on a new connection

    def check_announced(self, **_):
        """A reply tells for how many whole seconds the connection is kept, at least 1."""
        for seconds, told in ((7, b'7'), (7.9, b'7'), (0.5, b'1')):
            with serving(idle_timeout=seconds) as service:
                assert b'\r\nKeep-Alive: timeout=%b\r\n' % told in raw(service, request())

    def test_all(self, tls_server, tls_client):
        """What the checks above say, all at once."""
        self.all_at_once(server=tls_server, client=tls_client)

    def test_large_body_has_time(self, clock, live):
        """A body that keeps coming is read, however long it takes in all."""
        data = request(b'{"args":["%b"]}' % (b'x' * 3000000), extra=b'Connection: close\r\n')
        service = live(serving(read_timeout=10))
        sock = live(connect(service))
        for end in range(300000, 3000001, 300000):
            sock.sendall(data[end - 300000 : end])
            until(lambda end=end: unread_bytes_of(service) > end - 1000)
            clock.shift(9)
        sock.sendall(data[end:])
        assert statuses(receive(sock)) == [200]

    def test_reply_never_read(self, monkeypatch, live):
        """A client that does not take its reply is cut off, and its thread ends."""
        limit(monkeypatch, linger=0.05)
        service = live(serving(service_of(lambda: 'x' * 8000000, read_timeout=0.05)))
        before = resources()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(TIMEOUT)
            sock.connect(('127.0.0.1', port_of(service)))
            sock.sendall(request(b'', '/f'))
            until(lambda: connections_of(service))
            until(lambda: not connections_of(service))
            assert len(receive(sock)) < 8000000
        until_released(before)

    def test_default_timeout(self, live):
        """A service obeys its own limits, and ignores socket.setdefaulttimeout."""
        service, before = live(serving()), socket.getdefaulttimeout()
        socket.setdefaulttimeout(0.03)
        try:
            with connect(service) as sock:
                sock.settimeout(TIMEOUT)
                sock.sendall(request()[:-1])
                assert not select.select([sock], [], [], 0.06)[0]  # nor was it closed
                sock.sendall(request()[-1:])
                assert statuses(sock.recv(65536)) == [200]
        finally:
            socket.setdefaulttimeout(before)


class TestKeptTimeouts:
    """The timeout that a socket has is left as it is while it fits."""

    def test_no_system_call(self, monkeypatch, live):
        """A call on a kept connection sets no timeout, on either side."""
        _, friend = live(calling())
        for number in range(3):
            friend.send('/echo', number)
        watch_calls(monkeypatch, '_TimedSocket.allow', sets := [])
        assert [friend.send('/echo', number) for number in range(9)] == list(range(9))
        assert sets == []

    def test_shorter_one_is_waited_out(self, live, clock):
        """A connection may be idle for longer than a request may take to come."""
        service = live(serving(read_timeout=0.05, idle_timeout=60))
        sock = live(connect(service))
        for _ in range(2):
            sock.sendall(request()[:-3])
            until(lambda: connections_of(service, 'reading'))
            sock.sendall(request()[-3:])
            assert statuses(receive(sock, b'"x"]')) == [200]
            until(lambda: connections_of(service, 'idle'))
            threading.Event().wait(0.1)  # in which the socket's own timeout runs out
        assert len(connections_of(service, 'idle')) == 1

    def test_frozen_clock(self, monkeypatch, live):
        """Whoever stops `time.monotonic`, as freezegun does, stops no call and no wait."""
        friend = live(Friend('app1', live(peer(drip())), timeout=0.05))
        monkeypatch.setattr(time, 'monotonic', lambda: 1000.0)
        raised(CallTimeout, friend.send, '/f')
        assert friend.ping(0.05) is False
        raised(CallTimeout, friend.wait, 0.05)

    def test_closed_socket(self, live):
        """What is sent on a closed connection is an error, and never goes into another file."""
        ours, _ = map(live, socket.socketpair())
        timed = TimedSocket(ours)
        ours.close()
        live(open(os.devnull, 'wb'))  # noqa: SIM115 - it may get the same descriptor
        raised(OSError, timed.sendall, b'secret', 1)

    def test_slow_but_steady(self, live):
        """A send that takes its time has one limit in all, however often some bytes move."""
        ours, theirs = map(live, socket.socketpair())
        timed = TimedSocket(ours)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def read():
            while theirs.recv(1024):
                threading.Event().wait(0.005)

        live(background(read))
        live(contextlib.ExitStack()).callback(ours.shutdown, socket.SHUT_WR)
        with soon():
            raised(socket.timeout, timed.sendall, b'x' * (4 << 20), 0.1)


class TestTimeOfACall(AllAtOnce):
    """The timeout of a call is for all of it."""

    def late(self, start=b'', more=b''):
        """How a call on a kept connection fails whose reply begins and goes on like this."""
        address = peer(drip(start, more, first=response()))
        with address as address, Friend('app1', address, timeout=TIMEOUT) as friend, soon():
            assert friend.send('/echo') == 'x'
            friend.setRule('/echo', timeout=0.05)
            facts = {'address': address, 'status': None, 'sent': True}
            return raised(CallTimeout, friend.send, '/echo', 'x', **facts)

    def check_slow_reply(self):
        """A peer that never answers, or drips, makes a CallTimeout; the call may have run."""
        for error in call_all(len(SLOW_REPLIES), lambda i: self.late(*SLOW_REPLIES[i])):
            told = f'/echo at {error.address}: no full reply within timeout=0.05 s; the call may'
            assert str(error).startswith(told) and isinstance(error, TimeoutError)

    def check_never_accepted(self):
        """A peer that accepts no connection is Unreachable once the time is over."""
        with full() as address, Friend('app1', address, timeout=0.05) as friend, soon():
            raised(Unreachable, friend.send, '/echo', sent=False)

    def never_read(self, is_kept):
        """How a call fails that does not leave, perhaps on a kept connection."""

        def script(sock, number, over):
            if is_kept:
                call_on(sock)
                sock.sendall(response())
            over.wait(TIMEOUT)

        with peer(script) as address, Friend('app1', address) as friend, soon():
            assert not is_kept or friend.send('/echo') == 'x'
            friend.setRule('/echo', timeout=0.1)
            return raised(CallTimeout, friend.send, '/echo', 'x' * 8000000)

    def check_never_read(self):
        """A call that does not leave in time is a CallTimeout, and did not run."""
        for error in call_all(2, self.never_read):
            assert error.sent is False or os.name == 'nt'  # which may take it whole

    def check_set_rule(self):
        """A rule may have a timeout of its own, shorter or longer than the friend's."""
        service = holding(make())
        with calling(service, timeout=0.001) as (_, friend):
            friend.setRule('/hold', timeout=TIMEOUT)
            threading.Timer(0.02, service.release.set).start()
            assert friend.send('/hold') == 'held'

    def test_all(self):
        """What the checks above say, all at once."""
        self.all_at_once()

    def test_within(self, live):
        """`within` gives calls a time of their own, whatever setRule says; all else is shared."""
        service, friend = live(calling(holding(make(token={'/echo': SECRET}))))
        friend.setRule('/hold', timeout=TIMEOUT)
        friend.setRule('/echo', token=SECRET)
        hasty, patient = friend.within(0.05), friend.within(0.05).within(TIMEOUT)
        assert repr(hasty) == repr(friend)
        for call in (hasty.send, lambda rule: asyncio.run(hasty.asend(rule))):
            assert patient.send('/echo', 1, within=2, timeout=3) == 1
            assert service.ran.pop() == ((1,), {'within': 2, 'timeout': 3})
            assert len(address_of(hasty).links) == len(address_of(friend).links) == 1
            raised(CallTimeout, call, '/hold')
        service.release.set()
        assert patient.send('/hold') == friend.send('/hold') == 'held'
        service.token = 'new'
        friend.setRule('/echo', token='new')
        assert patient.send('/echo', 1) == 1
        told = "'Friend' object has no attribute 'sned'"
        raised(AttributeError, lambda: patient.sned('/echo'), match=told)

    def test_within_of_a_subclass(self):
        """`within` of a class derived from Friend is of that class."""
        sub = type('Sub', (Friend,), {})
        assert type(sub('app1', make()).within(1)) is sub

    @needs_timers
    def test_signals(self, live):
        """Signals that arrive all the time do not extend the timeout."""
        if sys.implementation.name == 'pypy':
            pytest.skip('after each signal, PyPy begins the timeout of a socket anew')
        live(handling(signal.SIGALRM, lambda *_: None))
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        self.late()
        # Nor on a connection that another thread has used before.
        service, friend = live(calling(holding(make())))
        friend.setRule('/hold', timeout=0.05)
        with background(friend.send, '/echo', 1) as call:
            assert call.result(TIMEOUT) == 1
        with soon():
            raised(CallTimeout, friend.send, '/hold')
        service.release.set()

    def test_on_a_kept_connection(self, live):
        """On a kept connection each call has its own timeout, whichever threads make them."""

        def send(is_main, *args):
            if is_main:
                return friend.send(*args)
            with background(friend.send, *args) as call:
                return call.result(TIMEOUT)

        for first, second in itertools.product((True, False), repeat=2):
            service, friend = live(calling(holding(make())))
            friend.setRule('/hold', timeout=0.02)
            assert send(first, '/echo', 1) == 1
            with soon():
                raised(CallTimeout, send, second, '/hold')
            service.release.set()

    def test_timeout_as_an_argument(self):
        """Who passes timeout= to a function that has none is told of `within`."""
        service = make()
        service.typing('/one')(lambda a: a)
        service.typing('/two')(lambda timeout: timeout)
        friend = Friend('app1', service)
        call = functools.partial(friend.send, '/one', 1, timeout=5)
        told = re.escape('(within(5).send(...) sets the seconds of a call)') + '$'
        raised(BadArguments, call, match=told)
        status, _, told = ask(service, b'{"kwargs":{"timeout":5}}', '/one')
        assert status == 422 and 'within' not in told['detail']  # the wire knows no Friend
        assert friend.send('/two', timeout=5) == 5


def found_at(*address):
    """What a name that leads to *address* is looked up as."""
    family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, '', address)


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


@pytest.fixture
def silent(monkeypatch, proxies, clock):
    """Lets 192.0.2.1 accept no connection: to try takes its time, of a stopped clock, at once.

    Gives the timeouts of the attempts.
    """
    connect, tried = socket.socket.connect, []

    def connect_in_vain(sock, address):
        if address[0] != '192.0.2.1':
            return connect(sock, address)
        tried.append(round(sock.gettimeout(), 3))
        clock.shift(tried[-1])
        raise socket.timeout('timed out')

    monkeypatch.setattr(socket.socket, 'connect', connect_in_vain)
    return tried


class TestTimeOfAName:
    def test_silent_ones(self, monkeypatch, silent, live):
        """Each silent address leaves its part to the next ones, and all of them end in time."""
        found = [found_at('192.0.2.1', 80)] * 4
        monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: found)
        friend = live(Friend('app1', 'service.invalid', timeout=8))
        raised(Unreachable, friend.send, '/echo', match='no answer in time', sent=False)
        assert silent == [2, 2, 2, 2]

    def test_one_that_is_not(self, monkeypatch, silent, live):
        """The last address of a name is called though the others are silent."""
        port = port_of(live(serving()))
        found = [found_at('192.0.2.1', port), found_at('127.0.0.1', port)]

        def look_up(host, *args, look_up=socket.getaddrinfo, **kwargs):
            return found if host == 'service.invalid' else look_up(host, *args, **kwargs)

        monkeypatch.setattr(socket, 'getaddrinfo', look_up)
        friend = live(Friend('app1', f'service.invalid:{port}', timeout=8))
        assert (friend.send('/echo', 1), silent) == (1, [4])


# ------------------------------------------------------------------------------------------- Friend


class TestFriend:
    def test_in_process(self):
        """A friend of a service in this process encodes, checks and decodes as over a socket."""
        service, value = make(token=SECRET), {'a': [1, 2.5, None]}
        friend = Friend('app1', service, SECRET)
        again = friend.send('/echo', value)
        assert again == value and again is not value and service.ran[0][0][0] is not value
        assert friend.send('/echo', (1, 2)) == [1, 2]
        assert friend.ping() is True and friend.wait(1) is None
        friend.close()
        raised(TooLarge, Friend('app1', make(max_body=50)).send, '/echo', 'x' * 50)
        raised(TooLarge, Friend('app1', service, SECRET, max_body=50).send, '/echo', 'x' * 50)
        assert repr(friend) == "<Friend 'app1' at app1 (in process)>"

    def test_without_the_connections_of_others(self, service, monkeypatch, live):
        """What replaces http.client's connections, as vcrpy does, does not disturb a call."""
        monkeypatch.setattr(http.client, 'HTTPConnection', None)
        assert live(Friend('app1', service.address)).send('/echo', 1) == 1

    def test_unreachable(self, live):
        """A call is Unreachable, and not sent, if nobody listens, or no name can be looked up."""
        address = dead_address()
        friend = live(Friend('app1', address))
        told = f'^/echo at {address}: cannot connect to 127.0.0.1:[0-9]+: .*refused; is it'
        facts = {'rule': '/echo', 'address': address, 'status': None, 'sent': False}
        error = raised(Unreachable, friend.send, '/echo', match=told, **facts)
        assert isinstance(error, ConnectionError) and error.__context__ is None  # one traceback
        too_long = live(Friend('app1', f'http://{"a" * 64}.invalid:1'))
        raised(Unreachable, too_long.send, '/echo', match='cannot connect')

    def test_not_sent(self, live):
        """A call over max_body, or of a rule that has no UTF-8, is not sent."""
        friend, empty = live(Friend('app1', '127.0.0.1:1', max_body=39)), '{"args":[""],"kwargs":{}'
        told = 'the call of 40 bytes is over max_body=39'
        text = 'x' * (40 - len(empty + ',"token":null}'))
        raised(TooLarge, friend.send, '/echo', text, match=told, rule='/echo', sent=False)
        raised(BadCall, friend.send, '/\ud800', match='lone surrogate')

    def test_not_copied(self):
        """A friend cannot be copied or pickled; the error says what to do instead."""
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            friend = Friend('app1', '127.0.0.1:1')
            raised(TypeError, copied, friend, match='make one in each process')

    def test_own_headers(self, live):
        """A friend's own headers go with each call, of `send`, `asend` and `ping`."""
        headers, got = {'X-Api-Key': 'k', 'User-Agent': 'mine/1'}, []
        address = live(peer(answers(*[response(extra=CLOSE)] * 3, got=got)))
        friend = live(Friend('app1', address, headers=headers))
        friend.send('/f')
        asyncio.run(friend.asend('/f'))
        assert friend.ping() and len(got) == 3
        for data in got:
            lines = data.partition(b'\r\n\r\n')[0].decode().split('\r\n')
            assert 'X-Api-Key: k' in lines
            assert [line for line in lines if 'agent' in line.lower()] == ['User-Agent: mine/1']


def look_up_by(monkeypatch, found, tried):
    """Let every name have the addresses *found*, and note in *tried* what is connected to."""

    def connect(_, address):
        tried.append(address)
        raise OSError(errno.ECONNREFUSED, 'nobody listens')

    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: found)
    monkeypatch.setattr(socket.socket, 'connect', connect)


PREFIXES = {'': '', '/': '', '/v1': '/v1', '/api/v1/': '/api/v1', '/a b/%2F': '/a%20b/%2F'}


class TestAddresses:
    def test_forms(self, service, live):
        """A scheme and a last slash may be there or not; 0.0.0.0 is this machine."""
        hosts = ('127.0.0.1:{}', 'http://127.0.0.1:{}', 'HTTP://127.0.0.1:{}/', 'localhost:{}')
        for form in (*hosts, 'http://LocalHost:{}', '0.0.0.0:{}'):
            friend = live(Friend('app1', form.format(port_of(service))))
            assert friend.send('/echo', 1) == 1

    def test_ipv6(self, live):
        """An IPv6 address stands in brackets, in Micro.address too."""
        try:
            service = live(make().start(port=0, host='::1'))
        except OSError:
            pytest.skip('there is no IPv6 here')
        assert service.address == f'http://[::1]:{port_of(service)}'
        for host in ('::1', '::'):
            assert live(Friend('app1', f'[{host}]:{port_of(service)}')).send('/echo', 1) == 1

    def test_prefix(self, live):
        """A path in the address comes before the rule."""
        address = live(peer(answers(*[response()] * len(PREFIXES), got=(got := []))))
        for prefix, path in PREFIXES.items():
            with Friend('app1', address + prefix) as friend:
                assert friend.send('/echo') == 'x'
            assert got[-1].decode().startswith(f'POST {path}/echo HTTP/1.1\r\n')

    def test_a_family_that_is_not_there(self, monkeypatch, live):
        """An address of a family that the system lacks is skipped; the name's next one is tried."""
        real, service = socket.socket, live(serving())

        class Socket(real):
            def __init__(self, family=socket.AF_INET, *args, **kwargs):
                if family == socket.AF_INET6:
                    raise OSError(errno.EAFNOSUPPORT, 'no such family')
                real.__init__(self, family, *args, **kwargs)

        def both(host, port, *args, look_up=socket.getaddrinfo, **kwargs):
            if host != 'localhost':
                return look_up(host, port, *args, **kwargs)
            return [found_at('::2', port, 0, 0), found_at('127.0.0.1', port)]

        monkeypatch.setattr(socket, 'socket', Socket)
        monkeypatch.setattr(socket, 'getaddrinfo', both)
        assert live(Friend('app1', by_name(service))).send('/echo', 1) == 1

    def test_each_is_tried_once(self, monkeypatch):
        """The only address of a name is tried once, and has the whole time."""
        tried = []

        def refuse(sock, _):
            tried.append(sock.gettimeout())
            raise ConnectionRefusedError

        monkeypatch.setattr(socket.socket, 'connect', refuse)
        raised(Unreachable, Friend('app1', '127.0.0.1:9', timeout=9).send, '/echo')
        assert len(tried) == 1 and 8 < tried[0] <= 9

    def test_localhost(self, monkeypatch, live):
        """Of the addresses of localhost, ::1 is tried last: most services do not listen there."""
        tried = []
        look_up_by(monkeypatch, [found_at('::1', 5000, 0, 0), found_at('127.0.0.1', 5000)], tried)
        raised(Unreachable, live(Friend('app1', 'localhost:5000')).send, '/echo')
        assert tried == [('127.0.0.1', 5000), ('::1', 5000, 0, 0)]

    def test_scope_of_ipv6(self, monkeypatch, proxies, live):
        """The scope of a link-local address is kept to connect by, and left out of Host."""
        tried, asked, got = [], [], []
        with monkeypatch.context() as patch:
            look_up_by(patch, [found_at('fe80::1', 5000, 0, 7)], tried)
            friend = live(Friend('app1', '[fe80::1%eth0]:5000'))
            raised(Unreachable, friend.send, '/echo', match=r'cannot connect to \[fe80::1\]:5000')
        assert tried == [('fe80::1', 5000, 0, 7)]
        port = int(live(peer(answers(response(), response(), got=got))).rpartition(':')[2])

        def look_up(host, *args, look_up=socket.getaddrinfo, **kwargs):
            asked.append(host)
            is_it = 'fe80' in host
            return [found_at('127.0.0.1', port)] if is_it else look_up(host, *args, **kwargs)

        monkeypatch.setattr(socket, 'getaddrinfo', look_up)
        assert live(Friend('app1', f'[fe80::1%eth0]:{port}')).send('/echo') == 'x'
        assert live(Friend('app1', f'[fe80::1%25eth0]:{port}')).send('/echo') == 'x'  # RFC 6874
        assert asked[:2] == ['fe80::1%eth0'] * 2
        assert f'Host: [fe80::1]:{port}' in got[0].decode().split('\r\n')


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


def complaints():
    """What a garbage collection warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        gc.collect()
    return [str(warning.message) for warning in caught]


def is_closed_by_forks(sock):
    return sock in microconnect._sockets


class TestConnections:
    def test_kept(self, friend):
        """Calls one after the other share a connection, over failures too, until close."""
        assert [friend.send('/count') for _ in range(3)] == [1, 2, 3]
        raised(ValueError, friend.send, '/fail', 'ValueError', match='why')
        raised(UnknownRule, friend.send, '/nowhere')
        assert friend.send('/count') == 4
        friend.close()
        assert [friend.send('/count') for _ in range(2)] == [1, 2]

    def test_old_ones_are_closed(self, live):
        """Calls close the connections of a burst that are not needed any more."""
        service, friend = live(calling(holding(counting(make()))))
        calls = [live(background(friend.send, '/hold')) for _ in range(6)]
        assert all(service.held.acquire(timeout=TIMEOUT) for _ in calls)
        service.release.set()
        assert [call.result(TIMEOUT) for call in calls] == ['held'] * 6
        *old, _ = address_of(friend).links
        for link in old:
            link.keep_until = 0.1
        for left in range(5, 0, -1):
            assert friend.send('/echo', 1) == 1
            assert len(address_of(friend).links) == left
        assert [link.timed.sock.fileno() for link in old] == [-1] * 5

    def test_old_ones_are_taken_meanwhile(self, friend):
        """A call succeeds though other threads take all connections as it looks for old ones."""

        class Taken(collections.deque):
            def __len__(self):
                return 2

            def __getitem__(self, index):
                raise IndexError('taken meanwhile')

        address_of(friend).links = Taken()
        assert friend.send('/echo', 1) == 1

    def test_threads(self, service, friend):
        """Threads that share a friend never get each other's replies."""

        def calls(thread):
            return all(friend.send('/echo', [thread, i]) == [thread, i] for i in range(25))

        assert all(call_all(32, calls))
        assert len(service.ran) == 32 * 25

    def test_call_at_exit(self, live):
        """A function that runs at exit may still call, registered before the import or after."""

        def answer_all(sock, *_):
            while call_on(sock):
                sock.sendall(response())

        assert run(CALLS_AT_EXIT, live(peer(answer_all))) == (0, ['x', 'x', 'x'], '')

    def test_many_descriptors(self, live):
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
            _, friend = stack.enter_context(calling(counting(make())))
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

    def test_forked_while_it_connects(self, monkeypatch):
        """A fork that falls while a friend connects inherits no connection."""
        seen = []

        def connect(sock, _):
            seen.append(is_closed_by_forks(sock))
            raise ConnectionRefusedError

        monkeypatch.setattr(socket.socket, 'connect', connect)
        raised(Unreachable, Friend('app1', '127.0.0.1:9').send, '/f')
        assert seen == [True]


CLOSE = 'Connection: close\r\n'  # or the next call could meet the end of the connection


def refusal(status, phrase, extra=CLOSE):
    """The bytes of a refusal as a service writes it: problem details."""
    body = json.dumps({'title': phrase, 'status': status, 'detail': 'why'}).encode()
    return response(body, f'{status} {phrase}', 'application/problem+json', extra)


BUSY, IDLE = refusal(503, 'Service Unavailable'), refusal(408, 'Request Timeout')


def reset(sock, *_):
    """A script that resets the connection in the middle of a call."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    sock.recv(1)


class TestSeveralAddresses:
    def test_spread(self, live):
        """Calls are spread evenly."""
        services = [live(serving()) for _ in range(3)]
        friend = live(Friend('app1', [service.address for service in services]))
        assert [friend.send('/echo', number) for number in range(9)] == list(range(9))
        assert [len(service.ran) for service in services] == [3, 3, 3]

    def test_spread_over_the_rest(self, clock, live):
        """While an address rests, its calls are spread evenly over the others."""
        one, other = live(serving()), live(serving())
        friend = live(Friend('app1', [one.address, dead_address(), other.address]))
        for numbers in (range(2), range(8)):
            one.ran.clear()
            other.ran.clear()
            assert [friend.send('/echo', number) for number in numbers] == list(numbers)
        clock.go_on()
        assert (len(one.ran), len(other.ran)) == (4, 4)

    def test_busy_rests(self, service, clock, live):
        """A busy service is passed over, and then avoided for 5 seconds."""
        tried = []
        busy = live(peer(lambda sock, *_: tried.append(call_on(sock)) or sock.sendall(BUSY)))
        friend = live(Friend('app1', (busy, service.address)))
        for rests in (1, 2):
            for number in range(10):
                assert friend.send('/echo', number) == number
            assert len(tried) == rests
            clock.shift(5.01)

    def test_recovers(self, service, clock, caplog, live):
        """After its rest an address is called again; if all rest, they are tried nevertheless."""
        caplog.set_level('INFO', 'microconnect')
        address = live(peer(answers(BUSY, *[response(b'["peer"]')] * 9)))
        friend = live(Friend('app1', [address, service.address]))
        assert [friend.send('/echo', 'service') for _ in range(4)] == ['service'] * 4
        clock.shift(5.01)
        assert 'peer' in [friend.send('/echo', 'service') for _ in range(2)]
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith(f'{address} rests for 5 s: /echo at {address}: ')
        address = live(peer(answers(BUSY, response(b'["peer"]'))))
        friend = live(Friend('app1', [address, dead_address()]))
        raised(Busy, friend.send, '/echo')
        assert friend.send('/echo') == 'peer'

    def test_may_have_run(self, service, live):
        """A call that may have run at one address is not sent to another."""
        friend = live(Friend('app1', [live(peer(answers())), service.address]))
        raised(ConnectionLost, friend.send, '/echo', 1)
        assert service.ran == []

    def test_none_left(self, live):
        """If no address takes the call, the error names each, and is Busy if one of them was."""
        dead = [dead_address(), dead_address()]
        friend = live(Friend('app1', dead))
        told = '.*'.join(f'/echo at {address}: cannot connect to 127.0.0.1:' for address in dead)
        raised(Unreachable, friend.send, '/echo', 1, match=told, rule='/echo', sent=False)
        friend = live(Friend('app1', [live(peer(reset)) for _ in range(2)], timeout=TIMEOUT))
        raised(Unreachable, friend.send, '/echo', 'x' * 8000000, status=None, sent=False)
        friend = live(Friend('app1', [dead_address(), live(peer(answers(BUSY)))]))
        raised(Busy, friend.send, '/echo', 1, sent=False)

    def test_silent_does_not_use_up_the_time(self, service, silent, live):
        """An address that accepts no connection leaves time for the others."""
        friend = live(Friend('app1', ['192.0.2.1', service.address], timeout=9))
        assert (friend.send('/echo', 1), silent) == (1, [4.5])

    @pytest.mark.parametrize('status', [408, 502, 503, 504])
    def test_outage_of_a_proxy(self, status, service, live):
        """What a proxy says of an outage proves nothing: no other address is tried."""
        told = json.dumps({'title': 'x', 'status': 1, 'detail': 'd'}).encode()
        bodies = [(b'', 'text/html'), (told, 'application/problem+json'), (told, None)]
        for body, kind in bodies:
            reply = response(body, f'{status} No', kind)
            friend = live(Friend('app1', [live(peer(answers(reply))), service.address]))
            raised(MicroconnectError, friend.send, '/echo', 1, sent=True, status=status)
        assert service.ran == []


@pytest.fixture
def tls_service(tls_server):
    """A service over TLS."""
    service = counting(make())
    with service.start(port=0, host='127.0.0.1', ssl_context=tls_server):
        yield service


# Windows tries a port where nobody listens for two seconds: a shorter timeout ends before that.
REFUSED_SOON = 'in time' if os.name == 'nt' else 'refused'


@pytest.fixture
def sleepless(clock, monkeypatch):
    """A stopped clock that only `time.sleep` moves, at once."""
    with monkeypatch.context() as patch:
        patch.setattr(time, 'sleep', clock.shift)
        yield


class TestWaiting:
    def test_ping(self, live):
        """ping tells whether a service takes calls, without a rule or a token."""
        service = live(serving(token='secret'))
        friend = live(Friend('app1', service.address))
        assert friend.ping() is True
        service.stop()
        assert friend.ping() is False

    def test_ping_replies(self, live):
        """ping is False for a busy service, and for a listener that does not speak HTTP."""
        replies, got = {response(): True, response(b'', '404 Not Found', extra=CLOSE): True}, []
        replies.update({BUSY: False, b'SSH-2.0\r\n': False})
        for status in (408, 500, 502, 503, 504):  # of a proxy in front of it
            replies[response(b'', f'{status} No', extra=CLOSE)] = False
        address = live(peer(answers(*replies, got=got)))
        for alive in replies.values():
            with Friend('app1', address) as friend:
                assert friend.ping() is alive
            assert got[-1].startswith(b'GET / HTTP/1.1\r\n')

    def test_ping_is_bounded(self, live):
        """ping takes no longer than it is given."""
        friend = live(Friend('app1', live(peer(drip()))))
        with soon():
            assert friend.ping(timeout=0.05) is False

    def test_ping_several(self, service, silent, live):
        """ping is True if any address answers, even beside a dead or silent one."""
        for other in (dead_address(), '192.0.2.1'):
            friend = live(Friend('app1', [other, service.address]))
            assert friend.ping(timeout=8) is True
            friend.wait(timeout=8)
        assert silent == [4, 4]

    def test_wait(self, live):
        """wait returns once the service has started."""
        address = dead_address()
        friend = live(Friend('app1', address))
        waiting = live(background(friend.wait, TIMEOUT))
        assert not waiting.done()
        live(make().start(int(address.rpartition(':')[2]), '127.0.0.1'))
        assert waiting.result(TIMEOUT) is None
        assert friend.send('/echo', 1) == 1

    def test_wait_in_vain(self, live):
        """wait raises CallTimeout, and tells of each address why it does not answer."""
        address, other = dead_address(), dead_address()
        told = f'^{address} did not answer within 0.05 s: cannot connect to .*{REFUSED_SOON}'
        with soon():
            facts = {'match': told, 'rule': '/', 'address': address, 'sent': False}
            raised(CallTimeout, live(Friend('app1', address)).wait, 0.05, **facts)
        both = live(Friend('app1', [address, other]))
        raised(CallTimeout, both.wait, 0.05, match=f'{REFUSED_SOON}.*; cannot .*{REFUSED_SOON}')

    def test_wait_tells_the_reason(self, tls_service, sleepless, live):
        """The error tells why the service does not answer, and not that there was no time."""
        busy = live(peer(lambda sock, *_: call_on(sock) and sock.sendall(BUSY)))
        for address, reason in (
            (busy, '503'),
            (by_name(tls_service), 'certificate verify failed'),
            (tls_service.address.replace('https:', 'http:'), 'https://'),
        ):
            for timeout in (0.9, 2.0):
                friend = live(Friend('app1', address))
                error = raised(CallTimeout, friend.wait, timeout, match=reason, sent=False)
                assert f'did not answer within {timeout} s: ' in str(error)
                assert 'in time' not in str(error)

    def test_wait_tells_the_last_reason(self, sleepless, live):
        """If the reason changes, the error tells the last one that had time to be real."""
        replies = [response(b'', '502 Bad Gateway', extra=CLOSE), *[BUSY] * 99]
        friend = live(Friend('app1', live(peer(answers(*replies)))))
        raised(CallTimeout, friend.wait, 1.4, match='within 1.4 s: it answered 503')

    def test_wait_asks_often(self, clock, monkeypatch, live):
        """wait asks ten times a second."""
        slept = []
        monkeypatch.setattr(time, 'sleep', lambda s: slept.append(s) or clock.shift(s))
        raised(CallTimeout, live(Friend('app1', dead_address())).wait, 1)
        assert slept[:9] == [0.1] * 9


X, Y, Z = response(), response(b'["y"]'), response(b'["z"]')

INTERIM = b'HTTP/1.1 102 Processing\r\n\r\n' * 10

TLS_ALERT = b'\x15\x03\x01\x00\x02\x02\x0a'  # fatal: an unexpected message

HTTPS = (Unreachable, False, 'https:// instead of http://')

MAY_HAVE_RUN = (ConnectionLost, True, 'ended before a reply; the call may have run')

# fmt: off
PLAYS = [
    # What happens.  For each connection: the answer to each call on it, and after None what
    # comes unasked once the call has returned; then the peer closes, but for None at the end.
    # What each call gives.
    ('it is kept', [[X, Y, Z]], ['x', 'y', 'z']),
    ('it is closed while idle', [[X], [Y]], ['x', 'y']),
    ('closing was announced', [[response(extra=CLOSE)], [Y]], ['x', 'y']),
    ('a 408 comes unasked', [[X, None, IDLE], [Y]], ['x', 'y']),
    ('a reply comes unasked', [[X, None, Y], [Z]], ['x', 'z']),
    ('the same, and it stays open', [[X, None, Y, None], [Z]], ['x', 'z']),
    ('a reply too many comes with the first', [[X + Y, None, None], [Z]], ['x', 'z']),
    ('many interim replies', [[INTERIM + X, INTERIM + Y]], ['x', 'y']),
    ('a 408 comes when asked', [[X, IDLE], [Y]], ['x', 'y']),
    ('a 408 comes twice', [[X, IDLE], [IDLE]], ['x', (Busy, False, 'why')]),
    ('a 408 keeps the connection', [[X, refusal(408, 'What', '')]], ['x', (Busy, False, 'why')]),
    ('a 408 of a router', [[X, response(b'', '408 What', extra=CLOSE)]],
     ['x', (CallTimeout, True, '408')]),
    ('busy', [[X, BUSY]], ['x', (Busy, False, 'why')]),
    ('dropped at once', [[b'']], [MAY_HAVE_RUN]),
    ('dropped', [[X, b'']], ['x', MAY_HAVE_RUN]),
    ('cut off', [[X, b'HTTP/1.1 200']], ['x', (BadReply, True, 'in the middle')]),
    ('an alert of TLS', [[TLS_ALERT]], [HTTPS]),
    ('an alert of TLS 1.2', [[b'\x15\x03\x03\x00\x02\x02\x46']], [HTTPS]),
    ('an alert of who closes', [[b'\x15\x03\x03\x00\x02\x01\x00']], [HTTPS]),
    ('an alert where HTTP was spoken', [[X, TLS_ALERT]], ['x', (BadReply, True, 'malformed')]),
]
# fmt: on

ALARMS = [  # what a handler raises; what send raises
    (TimeoutError('the alarm rang'), (ConnectionLost, CallTimeout)),
    (LookupError('of something else'), LookupError),
    (UnknownRule().with_call('/other', 'elsewhere'), BadReply),
    (BlockingIOError('its own pipe is full'), ConnectionLost),
    (ConnectionLost('of another call', sent=False), BadReply),
    (CallTimeout('of another call', sent=False), MicroconnectError),
]

SSL_REASONS = [  # of an SSLError in place of a reply; what send raises; sent
    ('TLSV13_ALERT_CERTIFICATE_REQUIRED', Unreachable, False),
    ('TLSV1_ALERT_UNKNOWN_CA', Unreachable, False),
    ('SSLV3_ALERT_HANDSHAKE_FAILURE', Unreachable, False),
    ('SSLV3_ALERT_BAD_RECORD_MAC', ConnectionLost, True),
    ('TLSV1_ALERT_INTERNAL_ERROR', ConnectionLost, True),
    (None, ConnectionLost, True),
]


class Wrapped:
    """A socket that behaves like another, but for some of its methods."""

    def __init__(self, sock, **methods):
        self.sock = sock
        vars(self).update(methods)

    def __getattr__(self, name):
        return getattr(self.sock, name)


class Play:
    """A script that plays the *parts* of a row of PLAYS, and counts the calls on each."""

    def __init__(self, parts):
        self.parts, self.counts = parts, []
        self.expected = [[*part, None].index(None) for part in parts]
        self.returned, self.settled = threading.Event(), threading.Event()

    def __call__(self, sock, number, _):
        self.counts.append(0)
        count = self.expected[number]
        for answer in self.parts[number][:count]:
            if not call_on(sock):
                return
            self.counts[-1] += 1
            sock.sendall(answer)
        assert not answer or self.returned.wait(TIMEOUT)
        unasked = self.parts[number][count + 1 :]
        sock.sendall(b''.join(filter(None, unasked)))
        if None not in unasked:
            sock.close()
        self.settled.set()
        assert None not in unasked or not call_on(sock)


class TestAtMostOnce:
    """Each call gets its own reply, and is sent again only where it is known not to have run."""

    @pytest.mark.parametrize('parts, given', [row[1:] for row in PLAYS], ids=[r[0] for r in PLAYS])
    def test_play(self, parts, given, live):
        """One friend calls a peer, which hears of each call as often as PLAYS says."""
        play = Play(parts)
        friend = live(Friend('app1', live(peer(play)), timeout=TIMEOUT))
        for number, one in enumerate(given):
            if isinstance(one, str):
                assert friend.send('/echo') == one
            else:
                kind, sent, told = one
                raised(kind, friend.send, '/echo', match=told, sent=sent)
            play.returned.set()
            assert number or play.expected[0] > 1 or play.settled.wait(TIMEOUT)
        assert play.counts == play.expected

    def test_idle_for_long(self, live):
        """A service that closes its idle connections costs its friends no error."""
        service, friend = live(calling(counting(make(idle_timeout=0.03))))
        for _ in range(3):
            assert friend.send('/count') == 1
            until(lambda: not connections_of(service))

    def test_closed_this_moment(self, service, monkeypatch, live):
        """A call that cannot leave, because its connection closes this moment, is sent again."""
        armed = []

        def closing(sock):
            def close_and_send(data):
                if armed and armed.pop():
                    sock.shutdown(socket.SHUT_RDWR)
                return sock.sendall(data)

            return Wrapped(sock, sendall=close_and_send)

        connect_by(monkeypatch, closing)
        friend = live(Friend('app1', service.address, timeout=TIMEOUT))
        assert friend.send('/echo', 1) == 1
        armed.append(True)
        assert friend.send('/echo', 2) == 2
        assert service.ran == [((1,), {}), ((2,), {})]

    @pytest.mark.parametrize('name', ['write', 'send', 'recv'])
    @pytest.mark.parametrize(
        'error, expected', ALARMS, ids=[type(row[0]).__name__ for row in ALARMS]
    )
    def test_interrupted(self, service, monkeypatch, name, error, expected, live):
        """A signal handler that raises once a call was sent does not repeat the call."""
        if os.name == 'nt' and (name == 'write' or isinstance(error, TimeoutError)):
            pytest.skip('on Windows it passes for a timeout of the socket, and none is written to')
        armed, here = [], threading.current_thread()

        def interrupted(function):
            def call(*args):
                done = () if armed and name == 'recv' else function(*args)
                return raise_(error) if armed and threading.current_thread() is here else done

            return call

        if name == 'write':
            monkeypatch.setattr(os, name, interrupted(os.write))
        else:
            wrap = lambda sock: Wrapped(sock, **{name: interrupted(getattr(sock, name))})  # noqa: E731
            connect_by(monkeypatch, wrap)
        for count, is_kept in itertools.product((1, 2), (False, True)):
            friend = live(Friend('app1', [service.address] * count, timeout=TIMEOUT))
            for _ in range(count * is_kept):
                friend.send('/echo', 'before')
            armed.append(service.ran.clear())
            got = raised(expected, friend.send, '/echo', 'once')
            assert getattr(got, 'sent', True) is True
            until(lambda: service.ran)
            armed.clear()
            assert friend.ping() and service.ran == [(('once',), {})]

    @needs_timers
    def test_interrupted_is_closed(self, live):
        """A call that Ctrl-C ends closes its connection at once, though the error is kept."""
        ended = threading.Event()

        def script(sock, *_):
            call_on(sock)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
            if not sock.recv(1):
                ended.set()

        live(handling(signal.SIGALRM, signal.default_int_handler))
        friend = live(Friend('app1', live(peer(script)), timeout=TIMEOUT))
        with pytest.raises(KeyboardInterrupt) as caught, soon():
            friend.send('/echo')
        with soon():
            assert ended.wait(TIMEOUT)
        del caught

    @pytest.mark.skipif(sys.platform != 'linux', reason='a reset may take the reply with it here')
    def test_refused_in_the_middle(self, live):
        """A friend hears a service that answers and closes before it has read the call."""

        def script(sock, *_):
            sock.recv(1000)
            sock.sendall(response(b'', '413 Content Too Large'))

        friend = live(Friend('app1', live(peer(script))))
        raised(TooLarge, friend.send, '/echo', 'x' * 8000000, status=413, sent=False)

    @pytest.mark.parametrize('reason, kind, sent', SSL_REASONS)
    def test_alert_instead_of_a_reply(self, service, monkeypatch, reason, kind, sent, live):
        """An alert means that nothing ran only if it refuses a handshake."""
        error = ssl.SSLError(1, 'an alert')
        error.reason = reason
        connect_by(monkeypatch, lambda sock: Wrapped(sock, recv=lambda size: raise_(error)))
        raised(kind, live(Friend('app1', service.address)).send, '/echo', sent=sent)


class Silent(Signer):
    """One that adds no field to a call, and is false, as an empty collection is."""

    def __len__(self):
        return 0

    def sign_call(self, *call):
        return ()


@pytest.fixture(params=['in process', 'over a socket'])
def both_ways(request, live):
    """Gives a friend of a service in this process, or of one that serves."""

    def friend_of_service(service, *args, **options):
        if request.param == 'over a socket':
            live(contextlib.nullcontext() if is_serving(service) else serving(service))
            service = service.address
        return live(Friend('app1', service, *args, **{'timeout': TIMEOUT, **options}))

    return friend_of_service


class TestSigner:
    @pytest.mark.parametrize('rule, status', [('/echo', 200), ('/fail', 500), ('/ecko', 404)])
    def test_call(self, both_ways, rule, status):
        """A call and its reply are signed and checked, whatever the reply says."""
        one, two = Signer(), Signer()
        friend = both_ways(make(secretKey=one), secretKey=two, headers={'X-Api-Key': 'k'})
        if status == 200:
            assert friend.send(rule, 'ValueError') == 'ValueError'
        else:
            raised(MicroconnectError, friend.send, rule, 'ValueError')
        body = b'{"args":["ValueError"],"kwargs":{},"token":null}'
        (*called, headers, sent), (*answered, fields, reply) = one.seen
        assert (called, sent) == (['check_call', 'POST', rule], body)
        assert (headers['x-word'], headers['content-type']) == ('word', 'application/json')
        assert headers['x-api-key'] == 'k'  # the friend's own
        assert answered == ['sign_reply', 'proof', status]
        assert dict(fields)['Content-Type'].endswith('json') and type(json.loads(reply)) is not str
        assert two.seen[0] == ('sign_call', 'POST', rule, body)
        *checked, told, data = two.seen[1]
        assert checked == ['check_reply', (('X-Word', 'word'),), status]
        assert (told['x-proof'], data) == ('proof', reply)

    def test_one_side(self, both_ways):
        """Without it on one side, a call is refused or its reply is not believed."""
        for mine, theirs, kind, ran in (
            (Signer(), None, Forbidden, 0),
            (Signer(), False, Forbidden, 0),
            (Signer(), Signer('another'), BadReply, 0),
            (None, Signer(), BadReply, 1),
            # Also one that is false, and adds nothing to a call.
            (Silent(), None, Forbidden, 0),
            (None, Silent(), BadReply, 1),
        ):
            service = make(secretKey=mine)
            friend = both_ways(service, secretKey=theirs)
            error = raised(kind, friend.send, '/echo', 'ValueError')
            assert (error.sent, len(service.ran)) == (kind is BadReply, ran)
            raised(kind, friend.send, '/fail', 'ValueError')

    def test_lost(self, live):
        """A signed call may have run, however it failed: somebody may have sent it on."""
        address = live(peer(reset))
        for signer in (Signer(), Silent(), None):
            friend = live(Friend('app1', address, secretKey=signer, timeout=TIMEOUT))
            sent = signer is not None
            raised(ConnectionLost, friend.send, '/echo', 'x' * 8000000, sent=sent)

    def test_another_copy(self, load):
        """A refusal of another copy of this module is one, too."""
        signer, another = Signer(), load('another')
        signer.check_call = lambda *_: raise_(another.Forbidden('no'))
        raised(Forbidden, Friend('app1', make(secretKey=signer)).send, '/echo', 1, match='no')


DIRECT = ['[::1]', '[0:0:0:0:0:0:0:1]', '[::ffff:127.0.0.1]', 'localhost.', '127.0.0.2']

NOT_THIS_MACHINE = ['127.evil.example', '127.0.0.1.evil.example', 'localhost.evil.example']

NOT_THIS_MACHINE += ['128.0.0.1', '127.0.0.1.', '[::2]', '[fe80::1]', '[::ffff:128.0.0.1]']


def several_addresses(monkeypatch):
    """Let each name that a friend looks up have four addresses, all the same."""
    look_up = socket.getaddrinfo

    def repeated(*args, **kwargs):
        return look_up(*args, **kwargs) * 4

    monkeypatch.setattr(socket, 'getaddrinfo', repeated)


def endless_head(sock, _, over):
    """A proxy that sends line after line of a head."""
    call_on(sock)
    sock.sendall(b'HTTP/1.1 200 OK\r\n')
    deadline = time.monotonic() + TIMEOUT
    while not over.is_set() and time.monotonic() < deadline:
        sock.sendall(b'a: b\r\n' * 1000)


def tell_tunnels(monkeypatch, tell):
    """Call *tell* with the socket of a proxy's tunnel, before anything is written to it."""

    def send(sock, data):
        tell(sock)
        socket.socket.sendall(sock, data)

    monkeypatch.setattr(microconnect._Tunnel, 'sendall', send, raising=False)


class TestProxies:
    def test_loopback(self, service, proxies, tls_client, live):
        """A call to this machine goes through no proxy, however it is named."""
        touched = []
        trap = live(peer(lambda sock, number, over: over.is_set() or touched.append(sock)))
        proxies(trap)
        for host in ('127.0.0.1', 'localhost', '0.0.0.0'):
            friend = live(Friend('app1', f'http://{host}:{port_of(service)}'))
            assert friend.send('/echo', 1) == 1
        assert touched == []
        for address in DIRECT:
            assert address_of(Friend('app1', address)).proxy is None
        assert address_of(Friend('app1', 'https://[::1]', ssl_context=tls_client)).proxy is None
        for host in NOT_THIS_MACHINE:
            assert address_of(Friend('app1', f'http://{host}:5000')).proxy is not None, host

    @pytest.mark.parametrize('listed', ['service.invalid', 'service.invalid:5000', '.invalid', '*'])
    def test_no_proxy(self, listed, proxies, monkeypatch):
        """A host that no_proxy lists, with its port or without, is called directly."""
        proxies('http://127.0.0.1:9')
        monkeypatch.setenv('no_proxy', listed)
        assert address_of(Friend('app1', 'service.invalid:5000')).proxy is None
        monkeypatch.setenv('no_proxy', 'service.invalid:5001,2001:db8::1')
        assert address_of(Friend('app1', '[2001:db8::1]:5000')).proxy is None
        assert address_of(Friend('app1', 'service.invalid:5000')).proxy is not None

    def test_http(self, proxies, live):
        """The proxy gets a call to another host, with the whole address and its own password."""
        for user, address, line, host in (
            ('me:se%20cret@', 'http://service.invalid:5000/v1', ':5000/v1/echo', ':5000'),
            ('me:se%20cret@', 'service.invalid', ':80/echo', ':80'),
            ('me@', 'service.invalid', ':80/echo', ':80'),
            ('', 'http://b\xfccher.invalid', ':80/echo', ':80'),
        ):
            got = []
            proxies(live(peer(answers(response(), got=got))).replace('//', f'//{user}'))
            assert live(Friend('app1', address)).send('/echo') == 'x'
            lines = got[0].decode().split('\r\n')
            name = 'service.invalid' if user else 'xn--bcher-kva.invalid'
            assert lines[0] == f'POST http://{name}{line} HTTP/1.1'
            assert f'Host: {name}{host}' in lines
            passwords = [line for line in lines if 'authorization' in line.lower()]
            known = {'me:se%20cret@': 'bWU6c2UgY3JldA==', 'me@': 'bWU6'}
            known = [f'Proxy-Authorization: Basic {known[user]}'] if user else []
            assert passwords == known

    def test_https(self, proxies, tls_server, tls_client, live):
        """A call over TLS goes through a tunnel: the proxy sees the name, and no more."""
        seen = []

        def script(sock, *_):
            seen.append(call_on(sock))
            sock.sendall(b'HTTP/1.1 200 Connected\r\n\r\n')
            with tls_server.wrap_socket(sock, server_side=True) as inside:
                seen.append(call_on(inside))
                inside.sendall(response())
                call_on(inside)

        proxies(live(peer(script)))
        friend = live(Friend('app1', 'https://service.invalid', ssl_context=tls_client))
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
            friend = Friend('app1', 'https://service.invalid', ssl_context=tls_client)
            error = raised(Unreachable, friend.send, '/echo', match='proxy .*403', sent=False)
            assert ended.wait(TIMEOUT)  # though the error is kept
        del error, friend
        assert complaints() == []

    @pytest.mark.parametrize('status', ['403 Forbidden', '502 Bad Gateway', '407 Log In'])
    def test_refused_in_the_clear(self, status, proxies, live):
        """The error names the proxy if that refuses a call by http://."""
        trap = live(peer(answers(response(b'no', status, 'text/plain'))))
        proxies(trap)
        facts = {'match': trap.partition('//')[2], 'sent': status.startswith('502')}
        friend = live(Friend('app1', 'http://service.invalid'))
        raised(MicroconnectError, friend.send, '/echo', **facts)

    def test_proxy_that_speaks_no_http(self, proxies, tls_client, live):
        """A proxy whose answer to CONNECT is not HTTP makes the service Unreachable."""
        proxies(live(peer(answers(b'SSH-2.0-OpenSSH\r\n'))))
        friend = live(Friend('app1', 'https://service.invalid', ssl_context=tls_client))
        raised(Unreachable, friend.send, '/echo', match='cannot connect to the proxy')

    @pytest.mark.parametrize('script', [drip(b'HTTP/1.1 200 ', b'x'), endless_head])
    def test_dripping_tunnel(self, script, proxies, tls_client, live):
        """A proxy that answers byte by byte, or without end, has no more time than the call."""
        proxies(live(peer(script)))
        options = {'ssl_context': tls_client, 'timeout': 0.1}
        friend = live(Friend('app1', 'https://service.invalid', **options))
        with soon():  # some Pythons read no more than a hundred headers
            told = 'no answer in time' + '|100 headers' * (script is endless_head)
            raised(Unreachable, friend.send, '/echo', match=told, sent=False)

    def test_slow_tunnel(self, proxies, tls_client, monkeypatch, live):
        """The proxy may take as long as the call, however many addresses its name has."""
        several_addresses(monkeypatch)
        timeouts = []
        tell_tunnels(monkeypatch, lambda sock: timeouts.append(sock.gettimeout()))
        proxies(live(peer(answers(response(b'', '403 Forbidden')))))
        friend = Friend('a', 'https://service.invalid', ssl_context=tls_client, timeout=9)
        raised(Unreachable, friend.send, '/echo')
        assert 8 < timeouts[0] < 10

    def test_dead_proxy(self, proxies, tls_client, live):
        """An error of a proxy that is not there names it, without its password."""
        dead = dead_address().partition('//')[2]
        proxies(f'http://me:secret@{dead}')
        for scheme, context in (('http', None), ('https', tls_client)):
            friend = live(Friend('app1', f'{scheme}://service.invalid:5000', ssl_context=context))
            told = f'cannot connect to the proxy {dead}: '
            assert 'secret' not in str(raised(Unreachable, friend.send, '/echo', match=told))

    def test_wrong_proxy(self, proxies):
        """A proxy of another kind is refused, without showing its URL: it may hold a password."""
        for url in ('socks5://me:secret@127.0.0.1:9', 'http://user:pa/secret@proxy:80'):
            proxies(url)
            call = functools.partial(Friend, 'app1', 'service.invalid')
            told = str(raised(ValueError, call, match='proxy of the environment'))
            assert 'pa/' not in told and 'secret' not in told


class TestTls:
    def test_call(self, tls_service, tls_client, live):
        """A call works at an https address, and a large value too."""
        assert tls_service.address.startswith('https://127.0.0.1:')
        friend = live(Friend('app1', by_name(tls_service), ssl_context=tls_client))
        assert friend.send('/echo', 'x' * 1000000) == 'x' * 1000000
        assert [friend.send('/count') for _ in range(3)] == [1, 2, 3]  # and it is kept

    def test_unasked_bytes(self, tls_server, tls_client, live):
        """A second reply that nobody asked for is not taken for the next call's."""

        def script(sock, number, _):
            with tls_server.wrap_socket(sock, server_side=True) as inside:
                large = response(b'["%b"]' % (b'x' * 40000))
                replies = large + response(b'["unasked"]'), response(b'["asked"]')
                call_on(inside)
                inside.sendall(replies[number])
                assert not call_on(inside)

        address = live(peer(script)).replace('http://127.0.0.1', 'https://localhost')
        friend = live(Friend('app1', address, ssl_context=tls_client))
        assert len(friend.send('/echo')) == 40000
        assert friend.send('/echo') == 'asked'

    def test_all_busy(self, tls_server, tls_client, live):
        """If every connection is busy, a newcomer is cut off: no word comes before TLS."""
        service = holding(make(max_connections=1))
        live(service.start(port=0, host='127.0.0.1', ssl_context=tls_server))
        friend = live(Friend('app1', by_name(service), ssl_context=tls_client))
        call = live(background(friend.send, '/hold'))
        assert service.held.acquire(timeout=TIMEOUT)
        assert raw(service, b'', end=False) == b''
        with soon():
            raised(Unreachable, friend.send, '/echo', 1)
        service.release.set()
        assert call.result(TIMEOUT) == 'held'
        assert service.ran == []

    def test_client_without_tls(self, tls_service):
        """A client that speaks no TLS gets no reply, and nothing runs."""
        assert statuses(raw(tls_service, request())) == []
        assert tls_service.ran == []

    def test_unreachable(self, service, tls_service, tls_client, live):
        """An untrusted issuer, a wrong host, or a service without TLS is Unreachable."""
        for address, context, told in (
            (by_name(tls_service), None, 'certificate verify failed'),
            (tls_service.address, tls_client, r"not valid for '127\.0\.0\.1'"),
            (by_name(service).replace('http:', 'https:'), tls_client, 'does it serve https'),
        ):
            friend = live(Friend('app1', address, ssl_context=context))
            raised(Unreachable, friend.send, '/echo', 1, match=told, sent=False)
        assert service.ran == tls_service.ran == []

    @pytest.mark.parametrize('start', [b'', b'\x16\x03\x01', b'\x16\x03\x01\x02\x00\x01'])
    def test_silent_client_makes_room(self, start, tls_server, tls_client, live):
        """At max_connections, a client that does not finish its handshake makes room."""
        service = live(make(max_connections=2).start(0, '127.0.0.1', ssl_context=tls_server))
        socks = []
        for count in (1, 2):  # the second waits the shorter time
            socks.append(live(connect(service)))
            socks[-1].sendall(start)
            until(lambda count=count: len(connections_of(service, 'idle')) == count)
        friend = live(Friend('app1', by_name(service), ssl_context=tls_client))
        assert friend.send('/echo', 1) == 1
        assert receive(socks[0]) in (b'', TLS_ALERT)
        assert friend.send('/echo', 2) == 2

    def test_told_at_stop(self, tls_service, tls_client, live):
        """A peer that waits at stop is told by a 408, under TLS too, that nothing was run."""
        sock = live(tls_client.wrap_socket(connect(tls_service), server_hostname='localhost'))
        sock.sendall(request())
        assert sock.recv(99)[:12] == b'HTTP/1.1 200'
        until(lambda: connections_of(tls_service, 'idle'))
        tls_service.stop()
        assert b'HTTP/1.1 408' in receive(sock)

    @pytest.mark.parametrize('version', ['TLSv1_2', 'TLSv1_3'])
    def test_client_certificate(self, version, tls_server, tls_client, tmp_path, caplog, live):
        """A service may want a certificate: without the right one a friend runs nothing."""
        caplog.set_level(logging.DEBUG)
        tls_server.verify_mode = ssl.CERT_REQUIRED
        tls_server.load_verify_locations(cadata=CERTIFICATE)
        tls_server.maximum_version = getattr(ssl.TLSVersion, version)
        service = live(make().start(port=0, host='127.0.0.1', ssl_context=tls_server))
        for number in (1, 2):
            friend = live(Friend('app1', by_name(service), ssl_context=tls_client))
            raised(Unreachable, friend.send, '/echo', 1, match='certificate', sent=False)
            until(lambda number=number: caplog.text.count('a TLS handshake failed: ') == number)
        assert caplog.text.count('DEBUG') == caplog.text.count('\n') - 1 == 2
        tls_client.load_cert_chain(str(tmp_path / 'server.pem'))
        friend = live(Friend('app1', by_name(service), ssl_context=tls_client))
        assert friend.send('/echo', 1) == 1
        assert len(service.ran) == 1

    def test_http_to_a_tls_port(self, tls_service, tls_client, caplog, live):
        """A call by http:// to a service of https:// is Unreachable, and says what to write."""
        caplog.set_level(logging.DEBUG)
        for number, value in enumerate((1, 'x' * 1000000), 1):
            address = tls_service.address.replace('https:', 'http:')
            friend = live(Friend('app1', address, timeout=TIMEOUT))
            told = 'https:// instead of http://'
            raised(Unreachable, friend.send, '/echo', value, match=told, sent=False)
            until(lambda number=number: len(caplog.messages) == number)
        assert {record.levelname for record in caplog.records} == {'DEBUG'}
        assert all(line.startswith('a TLS handshake failed: ') for line in caplog.messages)
        friend = live(Friend('app1', by_name(tls_service), ssl_context=tls_client))
        assert friend.send('/echo', 1) == 1
        assert tls_service.ran == [((1,), {})]

    def test_stop_in_a_call(self, tls_server, tls_client, live):
        """At stop a call in flight still gets its reply."""
        service = holding(make())
        live(service.start(0, '127.0.0.1', ssl_context=tls_server))
        friend = live(Friend('app1', by_name(service), ssl_context=tls_client))
        call = live(background(friend.send, '/hold'))
        assert service.held.acquire(timeout=TIMEOUT)
        stopping = live(background(service.stop))
        until(lambda: is_stopping(service) and all(c.is_ended for c in connections_of(service)))
        service.release.set()
        assert call.result(TIMEOUT) == 'held' and stopping.result(TIMEOUT) is None

    def test_ended_in_the_handshake(self, tls_server, tls_client, monkeypatch, live):
        """A call that comes with a handshake after which the connection is ended is not run."""
        shake, service, sent = ssl.SSLSocket.do_handshake, make(), threading.Event()

        def shake_and_end(sock, *args):
            shake(sock, *args)
            if sock.server_side:
                sent.wait(TIMEOUT)
                connections_of(service)[0].end()

        monkeypatch.setattr(ssl.SSLSocket, 'do_handshake', shake_and_end)
        live(service.start(0, '127.0.0.1', ssl_context=tls_server))
        sock = live(tls_client.wrap_socket(connect(service), server_hostname='localhost'))
        sock.sendall(request())
        sent.set()
        assert statuses(receive(sock)) == [408] and service.ran == []


async def until_held(service):
    """Wait for a call of /hold, without blocking the loop."""
    acquire = functools.partial(service.held.acquire, timeout=TIMEOUT)
    assert await asyncio.get_running_loop().run_in_executor(None, acquire)


def next_callback(loop):
    """An event that is set once another thread has called something in *loop*."""
    settled, schedule = asyncio.Event(), loop.call_soon_threadsafe

    def schedule_both(callback, *args):
        schedule(callback, *args)
        schedule(settled.set)

    loop.call_soon_threadsafe = schedule_both
    return settled


def forget_threads():
    """Let the next `asend` need a new thread, and the next async rule a new event loop."""
    microconnect._workers_of.cache_clear()
    microconnect._loop_of.cache_clear()


class TestAsend:
    def test_value(self, service, friend):
        """It gives what send gives, of plain and async rules, of a service in this process too."""

        async def main(friend):
            calls = [('/echo', 1), ('/echo', 1, 2), ('/echo',), ('/aecho', 1)]
            return await asyncio.gather(*(friend.asend(*call) for call in calls))

        for one in (friend, Friend('app1', service)):
            assert asyncio.run(main(one)) == [1, (1, 2), (), 1]

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

    def test_concurrent(self, live):
        """Calls made at once run at once: each one waits here for all the others."""
        barrier = threading.Barrier(30)

        async def main():
            return await asyncio.gather(*(friend.asend('/f', i) for i in range(30)))

        _, friend = live(calling(service_of(lambda value: (barrier.wait(TIMEOUT), value)[1])))
        assert asyncio.run(main()) == list(range(30))

    def test_loop_runs_on(self, live):
        """While a call waits, the loop serves others: the call needs one of them to end."""

        async def main():
            call = asyncio.ensure_future(friend.asend('/hold'))
            for _ in range(3):
                await asyncio.sleep(0)
            assert not call.done()
            service.release.set()
            return await call

        service, friend = live(calling(holding(make())))
        assert asyncio.run(main()) == 'held'

    @pytest.mark.parametrize('how', ['cancel', 'wait_for'])
    def test_cancelled(self, how, live):
        """Cancelling raises CancelledError at once; the call itself goes on to its end."""
        errors = []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: errors.append(context))
            call = asyncio.ensure_future(friend.asend('/hold'))
            await until_held(service)
            if how == 'cancel':
                call.cancel()
            with pytest.raises(asyncio.CancelledError if how == 'cancel' else asyncio.TimeoutError):
                await (call if how == 'cancel' else asyncio.wait_for(call, 0.01))
            settled = next_callback(loop)
            service.release.set()
            await asyncio.wait_for(settled.wait(), TIMEOUT)  # the reply nobody waits for

        service, friend = live(calling(holding(make())))
        asyncio.run(main())
        assert (errors, service.returned) == ([], 1)

    def test_loop_closed_meanwhile(self, live):
        """A loop that closes before the reply comes leaves nothing behind but the call's end."""

        async def main():
            call = asyncio.ensure_future(friend.asend('/hold'))
            await until_held(service)
            call.cancel()

        service, friend = live(calling(holding(make())))
        before = threading.active_count()
        asyncio.run(main())
        service.release.set()
        # Two more may stay: that of the connection, and the one that made the call.
        until(lambda: threading.active_count() <= before + 2)
        assert friend.send('/echo', 1) == 1

    def test_errors(self, friend):
        """It raises what send raises."""
        for args, kind in (
            (('/nothing',), UnknownRule),
            (('/fail',), BadArguments),
            (('/fail', 'ValueError'), ValueError),
            (('/fail', 'StopIteration'), RemoteError),
            (('/echo', object), BadCall),
            ((7,), TypeError),
        ):
            one = raised(kind, friend.send, *args)
            other = raised(kind, lambda args=args: asyncio.run(friend.asend(*args)))
            assert (type(one), str(one)) == (type(other), str(other))

    def test_stop_iteration(self):
        """A StopIteration of an argument is a RuntimeError, as Python makes it in a coroutine."""

        async def main():
            await asyncio.wait_for(Friend('app1', make()).asend('/echo', value), TIMEOUT)

        value = type('Odd', (), {'x': property(lambda self: raise_(StopIteration()))})()
        raised(RuntimeError, lambda: asyncio.run(main()), match='StopIteration')

    def test_without_a_thread(self, monkeypatch):
        """If the system has no thread for the call, asend says so, and nothing was sent."""
        friend = Friend('app1', make())
        error = RuntimeError("can't start new thread")
        monkeypatch.setattr(threading.Thread, 'start', lambda thread: raise_(error))
        forget_threads()
        told = "no call is possible: can't start new thread"
        raised(Busy, asyncio.run, friend.asend('/echo', 1), match=told, sent=False)

    def test_without_asyncio(self):
        """Without a loop of asyncio, asend says so, and calls nothing."""
        service = make()
        friend = Friend('app1', service)
        for call in (friend.asend('/echo', 1), friend.asend('/echo', object())):
            raised(RuntimeError, call.send, None, match='asyncio')
        with background(lambda: friend.asend('/echo', 1).send(None)) as call:
            raised(RuntimeError, call.result, TIMEOUT, match='asyncio')
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

        forget_threads()
        with Noting('app1', service.address, timeout=TIMEOUT) as friend:
            for _ in range(3):
                asyncio.run(main())
        assert len(used) <= 5

    def test_cancelled_calls_disturb_nobody(self, live):
        """Calls beside and after cancelled ones, also before they began, get their own replies."""

        async def main():
            held = [asyncio.ensure_future(friend.asend('/hold')) for _ in range(3)]
            unbegun = asyncio.ensure_future(friend.asend('/echo', 'never'))
            unbegun.cancel()
            for _ in held:
                await until_held(service)
            for call in held[:2]:
                call.cancel()
            calls = [friend.asend('/echo', i) for i in range(20)]
            assert await asyncio.gather(*calls) == list(range(20))
            service.release.set()
            assert await held[2] == 'held'
            assert [await friend.asend('/echo', number) for number in range(20)] == list(range(20))
            assert all(call.cancelled() for call in (*held[:2], unbegun))

        service, friend = live(calling(holding(make())))
        asyncio.run(main())
        assert (('never',), {}) not in service.ran

    def test_timeout(self, live):
        """No reply in time is a CallTimeout for asend too."""
        service, friend = live(calling(holding(make())))
        friend.setRule('/hold', timeout=0.05)
        assert friend.send('/echo', 1) == 1  # so that it is connected
        raised(CallTimeout, asyncio.run, friend.asend('/hold'))
        service.release.set()


# -------------------------------------------------------------------------------------------- rules


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
        'REQUEST_METHOD': method, 'SCRIPT_NAME': '',
        'PATH_INFO': urllib.request.unquote(path, 'latin-1'), 'QUERY_STRING': query,
        'HTTP_HOST': 'localhost', 'CONTENT_LENGTH': str(len(body)), 'wsgi.input': io.BytesIO(body),
    }  # fmt: skip
    for name, value in headers.items():
        name = name.upper().replace('-', '_')
        asked[name if name == 'CONTENT_TYPE' else f'HTTP_{name}'] = value
    asked.update(environ)
    wsgiref.util.setup_testing_defaults(asked)
    told = []
    answer = wsgiref.validate.validator(service.wsgi)(asked, lambda *start: told.extend(start[:2]))
    reply = b''.join(answer)
    answer.close()
    return int(told[0][:3]), {name.lower(): value for name, value in told[1]}, reply


def by_messages(application, scope, messages):
    """What an ASGI application sends that receives *messages*."""
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    return sent


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
    sent = by_messages(service.asgi, scope, messages)
    if not sent:
        return None
    assert [m['type'] for m in sent] == ['http.response.start', 'http.response.body']
    fields = {name.decode(): value.decode() for name, value in sent[0]['headers']}
    assert len(fields) == len(sent[0]['headers'])
    return sent[0]['status'], fields, sent[1]['body']


HOSTS = pytest.mark.parametrize('ask', [by_listener, by_wsgi, by_asgi])

# fmt: off
METHODS = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS']
PATHS = [
    '/simple', '/é', '/a b', '/日本/\U0001f600', '/a%20b', '/100%', '/a?b=c&d', '/a#b', '/a//b/',
    '/a/../b', '/a\\b"<>{}|^`', "/-._~!$&'()*+,;=:@", '//host/a', '/\r\nX: 1', '/\0',
]
# fmt: on

EXACT = [  # status; targets of requests
    (200, ['/%65cho', '/ech%6F', '/ech%6f', '/echo?', 'http://else:1/echo']),
    (404, ['/echo/', '/Echo', '//echo', '/./echo', '/echo?x=1', '/%2565cho', '/a|b[c]^d']),
    (400, ['/%ff', '/%6', '/echo#x']),
]

UNKNOWN = 'is it registered under that name?'
NO_RULE_HERE = {  # rule: what the error says
    '/ech': "did you mean '/echo'?", '/Fail': "did you mean '/fail'?", '/zzz': UNKNOWN,
    '/': UNKNOWN, '/echo?x=1': 'the arguments of a call are in its body, not in a query',
}  # fmt: skip


def fits(a, b=1, *, c=2):
    return [a, b, c]


class TestRules:
    def test_decorators(self):
        """In either order, or `typing` alone, they register a function and return it unchanged."""
        for decorate in (
            lambda s, f: s.typing('/f')(s.reply(f)),
            lambda s, f: s.reply(s.typing('/f')(f)),
            lambda s, f: s.route('/f')(f),
            lambda s, f: s.route('f')(s.reply(f)),
        ):
            service = Microservice('app1')
            assert decorate(service, fits) is fits
            for rule in ('/f', 'f'):
                assert Friend('app1', service).send(rule, 1, b=3) == [1, 3, 2]
        service.reply(make)  # this alone registers nothing
        service.typing('/a')(service.typing('/b')(fits))  # a function may have several rules
        assert list(service.rules()) == ['/a', '/b', '/f']

    def test_any_rule(self, live):
        """A rule may hold any character, over a socket and in process."""
        service, friend = live(calling(Microservice('app1')))
        for rule in PATHS:
            service.typing(rule)(functools.partial(str, rule))
        for one in (friend, Friend('app1', service)):
            assert [one.send(rule) for rule in PATHS] == PATHS

    @pytest.mark.parametrize('status, targets', EXACT)
    def test_exact_match(self, service, status, targets):
        """A rule matches exactly, once its percent-encoding is decoded."""
        for target in targets:
            assert statuses(raw(service, request(path=target))) == [status], target

    @pytest.mark.parametrize('rule, hint', NO_RULE_HERE.items())
    def test_unknown_rule(self, rule, hint):
        """An unknown rule is 404, with the nearest known one; of a query only the '?' is told."""
        error = raised(UnknownRule, Friend('app1', make()).send, rule, status=404)
        shown = re.sub(r'\?.*', '?', rule)
        assert str(error) == f"{rule} at app1 (in process): no rule '{shown}' here: {hint}"

    def test_hint_names_no_guarded_rule(self):
        """The hint offers open rules only, however a rule is guarded."""

        def hint(path, body=b''):
            return ask(service, body, path)[2]['detail'].partition(' here: ')[2]

        service = Microservice('app1', token={'/secret1': SECRET})
        for rule, token in (('/secret1', None), ('/secret2', SECRET), ('/secre', None)):
            service.typing(rule, token=token)(fits)
        for path in ('/secret1x', '/secret2x', '/secret', '/secrex'):
            assert hint(path) == "did you mean '/secre'?"
        service.token['/secre'] = SECRET
        assert hint('/secrex') == UNKNOWN
        del service.token['/secre']
        service.token = SECRET
        assert hint('/secrex') == hint('/secrex', b'{"token":"%b"}' % SECRET.encode()) == UNKNOWN

    @pytest.mark.parametrize('count', [100, 101, 5000])
    def test_hint_among_many_rules(self, count):
        """Names are compared with up to 100 open rules, not counting guarded ones."""
        service = Microservice('app1')
        for number in range(count):
            service.typing(f'/rule{number}')(fits)
        for number in range(50):
            service.typing(f'/guarded{number}', token=SECRET)(fits)
        detail = ask(service, path='/Rule7')[2]['detail']
        assert detail.endswith("did you mean '/rule7'?" if count == 100 else UNKNOWN)

    def test_methods(self, live):
        """A rule answers the methods it lists, and a friend uses the one set by `setRule`."""
        service, friend = live(calling(Microservice('app1')))
        service.typing('/all', methods=METHODS)(fits)
        for method in METHODS:
            service.typing(method, methods=(method,))(lambda *args, **kwargs: [args, kwargs])
            friend.setRule(method, method=method)
            assert friend.send(f'/{method}', 1, k='é') == [[1], {'k': 'é'}]
            assert friend.send(method) == [[], {}]
            assert ask(service, CALL, '/all', method)[0] == 200

    def test_get_without_body(self):
        """A rule opened to GET needs neither a body nor a content type."""
        service = Microservice('app1')
        service.typing('/f', methods=['GET', 'POST'])(lambda: 7)
        assert service.answer('GET', '/f', {}) == (200, tuple(REPLY.items()), b'[7]')
        assert service.answer('GET', '/f', {}, b'{}')[0] == 415

    def test_wrong_method(self):
        """A method that the rule does not list is 405, with those that it does; others are 501."""
        service = make()
        service.typing('/f', methods=('GET', 'PUT'))(make)
        status, headers, problem = ask(service, path='/f')
        assert (status, headers['Allow']) == (405, 'GET, PUT')
        assert problem['detail'].startswith('/f answers GET, PUT, not POST: call it by GET')
        for method in ('GET', 'HEAD', 'OPTIONS'):
            assert ask(service, method=method)[1]['Allow'] == 'POST'
        raised(UnknownRule, Friend('app1', service).send, '/f', status=405)
        for method in ('BREW', 'post', 'CONNECT', 'x' * 99):
            status, _, problem = ask(service, method=method)
            told = f'method {method[:20]!r} is not one that rules answer'
            assert (status, problem['detail']) == (501, told)
        assert service.ran == []


def takes(service):
    """Rule -> which of the tokens 'a' to 'e' it takes; 'open' where it needs none."""

    def taken(rule, tokens):
        calls = ((t, json.dumps({'args': [1], 'token': t}).encode()) for t in tokens)
        return [token for token, call in calls if ask(service, call, rule)[0] != 401]

    rules = service.rules()
    return {one: 'open' if taken(one, [None]) else ''.join(taken(one, 'abcde')) for one in rules}


@contextlib.contextmanager
def at_each_line(react):
    """Call *react* before each line of the module that this thread runs in the block."""

    def look(frame, *_):
        if frame.f_code.co_filename != microconnect.__file__:
            return None
        react()
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


OTHER = 'an0ther-token'


def leaks(service, friend, bad):
    """Calls that fail, whose errors could show a token; *bad* is no service."""

    def once(address, token=SECRET, **options):
        with Friend('app1', address, token, **options) as one:
            one.send('/echo')

    return [
        lambda: friend.send('/fail', 'ValueError'),
        lambda: friend.send('/fail', 'KeyError', too='many'), lambda: friend.send('/wrong'),
        lambda: friend.send('/echo', threading.Lock()), lambda: friend.send('/echo', math.nan),
        lambda: once(service.address, OTHER), lambda: once(bad), lambda: once(bad),
        lambda: once('127.0.0.1:1', timeout=1), lambda: once(service.address, max_body=9),
        lambda: friend.setRule('/7', token=[SECRET, 7]),
        lambda: service.token.update({'/f': {SECRET}}),
        lambda: service.typing('/f', token=(SECRET, '')),
    ]  # fmt: skip


class TestTokens:
    def test_ways_to_give_a_token(self):
        """A token may be given to the service, to the rule, and at any time later."""
        service = make(token={'/echo': 'a', 'fail': 'b'})
        service.typing('/f', token='c')(fits)
        service.typing('/g')(fits)
        assert takes(service) == {'/echo': 'a', '/fail': 'b', '/f': 'c', '/g': 'open'}
        service.token['/g'], service.token['f'] = 'd', 'e'
        assert takes(service) == {'/echo': 'a', '/fail': 'b', '/f': 'e', '/g': 'd'}
        service.token.update({'g': 'a'})
        assert takes(service)['/g'] == 'a'
        del service.token['g'], service.token['/echo']
        assert takes(service) == {'/echo': 'open', '/fail': 'b', '/f': 'e', '/g': 'open'}

    def test_one_token_for_all(self):
        """One string guards every rule, even later ones; the own token of a rule comes first."""
        service = make(token='a')
        service.typing('/late')(fits)
        service.typing('/own', token='b')(fits)
        assert takes(service) == {'/echo': 'a', '/fail': 'a', '/late': 'a', '/own': 'b'}
        friend = Friend('app1', service, 'a')
        friend.setRule('own', token='b')
        assert [friend.send(rule, 1) for rule in ('/echo', '/own')] == [1, [1, 1, 2]]

    def test_replaced(self):
        """A new `token` replaces all tokens, except those that decorators gave."""
        service, friend = make(token={'/fail': 'a'}), Friend('app1', make(token='e'))
        service.typing('/f', token='b')(fits)
        service.token = {'echo': 'c'}
        assert takes(service) == {'/echo': 'c', '/f': 'b', '/fail': 'open'}
        assert dict(service.token) == {'/echo': 'c'} and len(service.token) == 1
        assert not hasattr(service.token, 'copy')  # it would lose the checks
        service.token = {'/f': 'd'}
        assert takes(service) == {'/echo': 'open', '/f': 'd', '/fail': 'open'}
        service.token = make(token='e').token  # one for all stays one for all
        assert takes(service) == {'/echo': 'e', '/f': 'b', '/fail': 'e'}
        friend.token = 'e'
        assert friend.send('/echo', 1) == 1
        service = make(token={'/f': 'older', '/echo': 'c'})
        service.typing('/f', token='b')(fits)  # the one given last counts
        assert takes(service) == {'/echo': 'c', '/f': 'b', '/fail': 'open'}

    def test_turned_over(self):
        """Tokens are replaced side by side: at no moment is a caller refused."""
        service = make(token={'/echo': 'a'})
        friend = Friend('app1', service, token='a')
        for step in (
            lambda: service.token.update({'/echo': ['b', 'a']}),
            lambda: setattr(friend, 'token', ['b', 'a']),
            lambda: service.token.update({'/echo': 'b'}),
            lambda: setattr(friend, 'token', 'b'),
        ):
            step()
            assert friend.send('/echo', 1) == 1
        assert takes(service)['/echo'] == 'b'

    @pytest.mark.parametrize('several', [['a', 'b'], ('a', 'b')], ids=['list', 'tuple'])
    def test_several(self, several):
        """A service takes any of several tokens, and a friend sends the first, wherever given."""
        for of_all, of_rule in ((several, False), ({'/f': several}, False), (False, several)):
            service = Microservice('app1', token=of_all)
            service.typing('/f', token=of_rule)(int)
            assert takes(service) == {'/f': 'ab'}
        friends = [Friend('app1', service, given) for given in (several, {'/f': several}, None)]
        friends[2].setRule('/f', token=several)
        assert [friend.send('/f', 7) for friend in friends] == [7, 7, 7]
        service.token = {'/f': 'b'}
        for friend in friends:
            raised(Forbidden, friend.send, '/f')

    def test_ways_a_friend_gives_it(self):
        """A friend gives a rule's token from its dict, its string, or `setRule`."""
        service, given = make(token='t'), ('t', {'/echo': 't'}, {'echo': 't'}, None, 'wrong', None)
        friends = [Friend('app1', service, token=token) for token in given]
        friends[3].setRule('/echo', token='t')
        friends[4].setRule('echo', None, 't')
        friends[5].token['/echo'] = 't'
        assert [friend.send('/echo', 7) for friend in friends] == [7] * 6

    def test_nothing_is_shared(self):
        """Two services and two friends share no rule and no token, not even the caller's dict."""
        mine = {'/echo': 'a'}
        one, two = make(token=mine), make(token=mine)
        one.token['/echo'] = 'b'
        one.typing('/f', token='c')(lambda: 1)
        assert mine == dict(two.token) == {'/echo': 'a'} and list(two.rules()) == ['/echo', '/fail']
        friends = [Friend('app1', one), Friend('app1', one)]
        friends[0].setRule('/echo', token='b', method='PUT')
        friends[0].token['/f'] = 'c'
        assert dict(friends[1].token) == dict(Microservice('app2').token) == {}
        raised(Forbidden, friends[1].send, '/f')

    def test_replaced_meanwhile(self):
        """A rule with a token from its decorator stays guarded while `token` is replaced."""
        service, got = make(), set()
        service.typing('/guarded', token=SECRET)(fits)
        with at_each_line(lambda: got.add(ask(service, CALL, '/guarded')[0])):
            service.token = {'/echo': 'new'}
        assert got == {401}

    @pytest.mark.parametrize('replaced_by', [None, {'/echo': 'new'}, {'/f': 'new'}, 'new'])
    def test_replaced_while_a_rule_is_added(self, replaced_by):
        """A rule added with a token is never open, whenever another thread replaces `token`."""

        def add(line):
            """Replace the tokens before this line; False if there are not so many."""
            service, lines, got = make(token={'/f': 'old'}), itertools.count(), set()

            def replace_and_look():
                number = next(lines)
                if number == line:
                    service.token = replaced_by
                if number >= line:  # before that, all is as in the first round
                    got.add(ask(service, CALL, '/f')[0])

            with at_each_line(replace_and_look):
                service.typing('/f', token=SECRET)(fits)
            assert got <= {404, 401} and ask(service, path='/f')[0] == 401
            return next(lines) > line

        assert len(list(itertools.takewhile(add, itertools.count()))) > 10

    @pytest.mark.parametrize('token', [SECRET, 'ключ-é', '\ud800x', 'None'], ids=ascii)
    def test_wrong_tokens(self, token):
        """A wrong token is 401 with WWW-Authenticate, and the function never runs."""
        service = make(token={'/echo': token})
        wrong = [
            None, '', 'wrong', token[:-1], token + 'x', token + '\0', ' ' + token, token.upper(),
        ]  # fmt: skip
        wrong += ['None', 'null', 7, 0, True, [token], {'token': token}, 'é', '\ud800']
        calls = [{'args': [1], 'token': one} for one in wrong if one != token]
        for call in (*calls, {}, {'args': [1]}, {'args': [token]}):
            status, headers, problem = ask(service, json.dumps(call).encode())
            assert (status, headers['WWW-Authenticate']) == (401, 'Token realm="microconnect"')
            none, wrong = 'needs a token, and none was given', 'got a wrong token'
            said = none if call.get('token') is None else wrong
            assert problem['detail'] == f'/echo {said}'
        assert (ask(service)[0], service.ran) == (401, [])
        assert Friend('app1', service, {'/echo': token}).send('/echo', 1) == 1

    def test_never_shown(self, caplog, live):
        """No log line, repr, error or reply holds a token."""
        caplog.set_level(logging.DEBUG)
        service = live(serving(token=SECRET, debug=True))
        service.token['/fail'] = OTHER
        friend = live(Friend('app1', service.address, SECRET))
        friend.setRule('/fail', token=OTHER)
        friend.setRule('/wrong', token=OTHER)
        bad = live(peer(answers(response(b'{}'), b'HTTP/9 x\r\n\r\n')))
        kinds = (MicroconnectError, TypeError)
        errors = [raised(kinds, call) for call in leaks(service, friend, bad)]
        shown = [told for one in errors for told in (str(one), repr(one), repr(vars(one)))]
        secret = SECRET.encode()
        asked = [request(body) for body in (b'"' + secret, b'{"token": "%b"' % secret, b'"' * 9)]
        asked += [secret + b' HTTP/1.1\r\n\r\n', request(path=f'/echo?token={SECRET}')]
        shown += [raw(service, data).decode() for data in asked]
        for value in (service, friend, service.token, friend.token):
            shown += [str(value), repr(value), pprint.pformat(value), f'{value}']
        assert len(shown) > 40 and re.search('(?s)refused 404.*refused 401', caplog.text)
        assert not [text for text in (*shown, caplog.text) if SECRET in text or OTHER in text]


def callables(ran):
    """Callables of every kind that note their calls, with `a` and perhaps `b`, in *ran*."""

    def plain(a, b=1):
        ran.append(a)

    async def later(a, b=1):
        await asyncio.sleep(0)
        ran.append(a)

    def through(inner):
        return functools.wraps(inner)(lambda *args, **kwargs: inner(*args, **kwargs))

    class Made:
        def __init__(self, a, b=1):
            ran.append(a)

    class Called:
        def __call__(self, a, b=1):
            ran.append(a)

    class CalledLater:
        async def __call__(self, a, b=1):
            ran.append(a)

    return {
        'plain': plain, 'lambda': lambda a, b=1: ran.append(a), 'wraps': through(plain),
        'wraps, twice': through(through(plain)),
        'lru_cache': functools.lru_cache(maxsize=None)(plain),
        'singledispatch': functools.singledispatch(plain), 'partial': functools.partial(plain),
        'partial of wraps': functools.partial(through(plain)), 'class': Made, 'object': Called(),
        'method': Called().__call__, 'async': later, 'async wraps': through(later),
        'async partial': functools.partial(later), 'async object': CalledLater(),
    }  # fmt: skip


class Raising(list):
    """What a callable of the above fails to note its calls in."""

    def append(self, item):
        raise TypeError('inside')


BUILTINS = {len: ['abc'], divmod: [7, 2], operator.add: [1, 2], fits: 'a'}

MISFITS = [((), {}), ((1, 2, 3), {}), ((), {'b': 1})]  # args, kwargs
MISFITS += [((1,), {name: 1}) for name in ('a', 'd', 'self', '\ud800')]

CONTENT_TYPES = [  # status; content types
    (200, ['application/json', 'application/json; charset=utf-8', 'Application/JSON ;x']),
    (415, ['', 'text/plain', 'application/x-www-form-urlencoded', 'application/jsonx']),
    (415, ['multipart/form-data; x=application/json', 'text/plain, application/json']),
]

SELF, EVIL = 'http://localhost:5000', 'http://evil.example'
BROWSERS = [  # Host, Origin, Sec-Fetch-Site, whether it may call
    ('localhost:5000', SELF, None, True),
    ('localhost', 'http://localhost', 'same-origin', True),
    ('127.0.0.1:5000', 'http://127.0.0.1:5000', 'same-origin', True),
    ('192.168.1.7:5000', 'http://192.168.1.7:5000', None, True),
    ('[::1]:5000', 'http://[::1]:5000', None, True),
    ('localhost:5000', 'https://localhost:5000', None, True),
    ('app1.internal:5000', None, None, True),
    *(('localhost:5000', None, site, True) for site in ('same-origin', 'none')),
    *(('localhost:5000', origin, None, False) for origin in (EVIL, 'null', '', SELF + '/')),
    *(('localhost:5000', f'http://localhost{rest}', None, False) for rest in (':3000', '')),
    *(('localhost:5000', f'{one}', None, False) for one in ('localhost:5000', SELF + '.evil')),
    ('localhost:5000', f'{EVIL}, {SELF}', None, False),
    ('localhost:5000', EVIL, 'cross-site', False),
    *(('localhost:5000', None, site, False) for site in ('cross-site', 'same-site')),
    ('127.0.0.1:5000', SELF, None, False),
    *(('', origin, None, False) for origin in ('null', '')),
    # DNS rebinding: the page's own name leads here
    *((f'{name}', f'http://{name}', None, False) for name in ('evil.example:5000', '2130706433')),
    *((f'{name}.evil', f'http://{name}.evil', None, False) for name in ('127.0.0.1', 'localhost')),
]


class TestAnswer:
    @pytest.mark.parametrize('kind', callables([]))
    def test_arguments(self, kind):
        """Whatever is called, arguments that do not fit run nothing; TypeErrors inside stay its."""
        for host in (by_wsgi, by_asgi):
            ran = []
            service = service_of(callables(ran)[kind])
            for args, kwargs in MISFITS:
                body = json.dumps({'args': args, 'kwargs': kwargs}).encode()
                status, _, reply = host(service, 'POST', '/f', JSON, body)
                assert (status, ran) == (422, []), (args, kwargs, json.loads(reply))
                assert error_of(status, reply).sent is False
            assert host(service, 'POST', '/f', JSON, CALL)[0] == 200 and ran
            service.stop()
        service = service_of(callables(Raising())[kind])
        status, _, problem = ask(service, CALL, '/f')
        assert (status, problem['exception']['message']) == (500, 'inside')
        service.stop()

    @pytest.mark.parametrize('function, args', BUILTINS.items())
    def test_arguments_of_others(self, function, args):
        """So are those of builtins that show their signature; the error names the function."""
        friend = friend_of(function)
        assert friend.send('/f', *args)
        for wrong in ((), (1, 2, 3, 4)):
            told = r'fits\(\) ' if function is fits else None
            facts = {'match': told, 'status': 422, 'sent': False}
            assert isinstance(raised(BadArguments, friend.send, '/f', *wrong, **facts), TypeError)

    def test_argument_of_a_decorator(self):
        """A decorator may hand over an argument of its own, as it may in a local call."""

        def with_session(function):
            return functools.wraps(function)(lambda *args: function('session', *args))

        friend = friend_of(with_session(lambda session, a: [session, a + 1]))
        assert friend.send('/f', 1) == ['session', 2]
        for wrong in ((), (1, 2, 3)):
            raised(BadArguments, friend.send, '/f', *wrong, status=422, sent=False)
        raised(RemoteError, friend.send, '/f', 'x', type='TypeError', sent=True)  # it ran

    def test_self_as_a_keyword(self):
        """A keyword `self` reaches what takes it, decorated or not."""

        def function(self, context=None, function=None):
            return [self, context, function]

        for decorate in (
            lambda f: f,
            functools.lru_cache(maxsize=None),
            lambda f: functools.wraps(f)(lambda *args, **kwargs: f(*args, **kwargs)),
            functools.partial,
            lambda f: lambda **kwargs: f(**kwargs),
        ):
            friend = friend_of(decorate(function))
            assert friend.send('/f', self=1, context=2, function=3) == [1, 2, 3]

    def test_type_errors_inside(self):
        """A TypeError of a function that ran is a RemoteError."""

        def yields(a):
            yield a
            raise TypeError('inside')

        calls = (lambda a: fits(), lambda a: len(a, a), lambda a: a + 'x', lambda a: make)
        for function in (yields, len, *calls):
            facts = {'type': 'TypeError', 'status': 500, 'sent': True}
            error = raised(RemoteError, friend_of(function).send, '/f', 1, **facts)
            assert isinstance(error, TypeError)

    def test_remote_error(self):
        """A rule's exception arrives with rule, address, status, type and message."""
        facts = {'rule': '/fail', 'address': 'app1 (in process)', 'status': 500, 'sent': True}
        call = functools.partial(Friend('app1', make()).send, '/fail', 'KeyError', 'name é')
        error = raised(KeyError, call, type='KeyError', traceback=None, **facts)
        assert str(error) == "/fail at app1 (in process): KeyError: 'name é'"

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
        """An exception whose own methods raise, or exit, is a RemoteError like any other."""

        def raising():
            fail = operator.truediv if name != '__str__' else sys.exit
            raise type('Odd', (Exception,), {name: fail})

        error = raised(RemoteError, friend_of(raising, debug=True).send, '/f', type='Odd')
        told = 'its message cannot be read: Odd.__str__ raised'
        assert (told in str(error)) is (name == '__str__')

    @pytest.mark.parametrize('name', ['SystemExit', 'KeyboardInterrupt', 'GeneratorExit'])
    def test_exits(self, service, friend, name):
        """A SystemExit or its like ends no service; in the main thread it passes, for signals."""
        assert type(raised(RemoteError, friend.send, '/fail', name, type=name)) is RemoteError
        assert friend.send('/echo', 1) == 1
        if name != 'GeneratorExit':
            raised(getattr(builtins, name), Friend('app1', service).send, '/fail', name)

    def test_a_failed_call_inside_a_rule(self, live):
        """A rule whose own call failed gives RemoteError, never an error that invites a retry."""
        behind = service_of(fits)
        behind.typing('/guarded', token=SECRET)(fits)
        busy = live(peer(answers(response(b'{}', '503 Busy'))))
        calls = [(behind, '/f'), (behind, '/guarded'), (behind, '/none'), (busy, '/f')]
        for address, rule in (*calls, (dead_address(), '/f')):
            call = functools.partial(Friend('x', address).send, rule)
            error = raised(RemoteError, friend_of(lambda call=call: call()).send, '/f', sent=True)
            assert type(error) is RemoteError

    def test_an_error_of_a_service_further_on(self):
        """What a service raised is told as it was by those that called it, and no longer."""
        call = functools.partial(Friend('app1', make()).send, '/fail', 'KeyError', 'x')
        for _ in range(3):
            call = functools.partial(friend_of(lambda call=call: call()).send, '/f')
            error = raised(KeyError, call, type='KeyError', message="'x'")
            assert str(error) == "/f at app1 (in process): KeyError: 'x'"

    def test_traceback(self, live):
        """In debug only, the reply has a traceback: Python prints it, of a copied error too."""
        for debug in (None, False):
            service = make(debug=debug)
            raised(ValueError, Friend('app1', service).send, '/fail', 'ValueError', traceback=None)
            body = service.answer('POST', '/fail', JSON, b'{"args":["ValueError"]}')[2]
            assert not re.search(b'File|traceback', body)
        _, friend = live(calling(debug=True))
        error = raised(KeyError, friend.send, '/fail', 'KeyError')
        assert re.search("(?s)^Traceback .* in fail.*KeyError: 'why'\n$", error.traceback)
        for one in (error, pickle.loads(pickle.dumps(error))):
            shown = ''.join(traceback.format_exception(type(one), one, one.__traceback__))
            first, second = shown.split('was the direct cause of')
            assert 'in fail' in first and "KeyError: 'why'" in first
            assert 'RemoteError: /fail at ' in second

    @pytest.mark.parametrize('rule', ['/fail', '/afail'])
    def test_cause_in_this_process(self, rule):
        """In process the cause is the exception itself, so that a debugger finds the rule."""
        cause = raised(ValueError, Friend('app1', make_async()).send, rule, 'ValueError').__cause__
        assert type(cause) is ValueError
        assert traceback.extract_tb(cause.__traceback__)[-1].name == rule[1:]

    def test_cause_of_a_call_in_a_call(self):
        """A failure that a rule has caught is not the cause of its own."""
        inner = make()

        def fail():
            raised(KeyError, Friend('app1', inner).send, '/fail', 'KeyError')
            inner.answer('POST', '/fail', JSON, b'{"args":["OSError"]}')
            raise ZeroDivisionError

        error = raised(ZeroDivisionError, friend_of(fail).send, '/f')
        assert type(error.__cause__) is ZeroDivisionError

    @pytest.mark.parametrize('is_async', [False, True])
    def test_cause_is_not_kept(self, is_async, caplog):
        """Once the error of a call in this process is gone, so is what its cause held."""
        caplog.set_level(logging.CRITICAL, 'microconnect')  # a record would hold it
        held = []

        def fail():
            local = Strict()
            held.append(weakref.ref(local))
            raise KeyError

        async def call_thrice():
            friend = friend_of(fail)
            for _ in range(3):
                with contextlib.suppress(KeyError):
                    await friend.asend('/f') if is_async else friend.send('/f')

        asyncio.run(call_thrice())
        until(lambda: (gc.collect(), [one() for one in held])[1] == [None] * 3)

    def test_context_that_outlives_its_call(self, caplog):
        """What fails in the context of a call that has ended is not kept for its caller."""
        caplog.set_level(logging.CRITICAL, 'microconnect')
        contexts, held = [], []

        class Kept(Exception):
            def __init__(self):
                held.append(weakref.ref(self))

        def fail():
            raise Kept

        friend_of(lambda: contexts.append(contextvars.copy_context())).send('/f')
        assert contexts[0].run(service_of(fail).answer, 'POST', '/f', JSON, b'{}')[0] == 500
        gc.collect()
        assert held[0]() is None

    def test_traceback_that_cannot_be_formatted(self, monkeypatch):
        """An exception that Python cannot format arrives without its traceback."""
        fails = type('Fails', (Exception,), {'__str__': lambda self: 1 / 0})
        for failure in (ValueError('why'), fails()):
            # As some Pythons do for a SyntaxError with odd arguments.
            monkeypatch.setattr(traceback, 'format_exception', lambda *_, e=failure: raise_(e))
            error = raised(KeyError, Friend('app1', make(debug=True)).send, '/fail', 'KeyError')
            assert 'cannot be formatted' in error.traceback

    @pytest.mark.parametrize('debug', [False, True])
    def test_long_failure(self, debug, caplog, live):
        """An error of a megabyte is its own kind still; its texts are cut, and say so."""
        caplog.set_level(logging.DEBUG)
        failure = KeyError('a' + 'x' * 1000000 + 'z')
        service = live(serving(service_of(lambda: raise_(failure), debug=debug)))
        friend = live(Friend('app1', service.address, timeout=TIMEOUT, max_body=40000))
        error = raised(KeyError, friend.send, '/f', type='KeyError', status=500, sent=True)
        assert (error.traceback is None) is not debug
        logged = next(line.getMessage() for line in caplog.records if line.levelname == 'ERROR')
        for text in filter(None, (str(error), error.message, logged, error.traceback)):
            assert 9000 < len(text) < 11000
            assert re.search(r' \.\.\. \([0-9]+ characters cut\) \.\.\. ', text)
        assert re.fullmatch(r"'ax+ .*\(990004 characters cut\).* x+z'", error.message)
        assert len(caplog.text) < 12000

    def test_odd_failures(self):
        """Whatever a rule raises, and wherever it is from, the answer is a 500."""
        exec('def bare(): raise KeyError', space := {})
        unreadable = type('Unreadable', (), {'__str__': lambda self: 1 / 0})()
        failing = type('Failing', (OSError,), {'errno': property(lambda self: 1 / 0)})
        errors = OSError([1], 'x'), OSError(5, unreadable), failing(5, 'x')
        for function in (space['bare'], *(functools.partial(raise_, one) for one in errors)):
            assert ask(service_of(function), path='/f')[0] == 500

    def test_just_not_too_long(self):
        """A message of 10,000 characters arrives whole, one of more is cut in its middle."""
        half, send = 'é' * 5000, Friend('app1', make()).send
        cut = half + ' ... (1 characters cut) ... ' + half
        for text, told in ((half * 2, half * 2), (half + 'é' + half, cut)):
            raised(ValueError, send, '/fail', 'ValueError', text, message=told)

    def test_long_cause(self, caplog):
        """However long the exceptions behind an exception are, the log line is cut."""

        def fail():
            raise ValueError('short') from KeyError('x' * 1000000)

        raised(ValueError, friend_of(fail).send, '/f', match='short')
        assert len(caplog.text) < 12000 and 'characters cut' in caplog.text

    @pytest.mark.parametrize('kind', ['arguments', 'decorated', 'content type', 'json', 'path'])
    def test_long_refusal(self, kind, caplog):
        """What a caller sent is not given back at full length, nor logged."""
        caplog.set_level(logging.DEBUG)
        service = service_of(through(fits) if kind == 'decorated' else fits)
        long, headers = 'x' * 1000000, {'Content-Type': f'text/{"x" * 1000000}'}
        body = b'{"args":[1],"kwargs":{"%b":1}}' % long.encode()
        body = b'{"args":[1e%b]}' % (b'9' * 1000000) if kind == 'json' else body
        path, headers = '/f?' + long if kind == 'path' else '/f', headers if 'type' in kind else {}
        status, _, problem = ask(service, body, path, **headers)
        assert status in (400, 404, 415, 422)
        is_cut = kind in ('arguments', 'decorated', 'content type')
        assert ('characters cut' in problem['detail']) is is_cut
        assert len(problem['detail']) < 11000 and 0 < len(caplog.text) < 12000

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
        error = raised(KeyError, friend.send, '/f', 'no such row', message="'no such row'")
        assert 'in rows' in error.traceback
        assert seen.get() == 'nobody'

    @pytest.mark.parametrize('is_async', [False, True])
    def test_context_variables(self, is_async, live):
        """A context variable that one call sets is not seen by the connection's next."""
        seen = contextvars.ContextVar('seen', default='nobody')

        def swap(name):
            before = seen.get()
            seen.set(name)
            return before

        async def aswap(name):
            await asyncio.sleep(0)
            return swap(name)

        service, friend = live(calling(service_of(aswap if is_async else swap)))
        for one in (friend, Friend('app1', service)):
            assert [one.send('/f', name) for name in 'abc'] == ['nobody'] * 3
        assert seen.get() == 'nobody'

    def test_no_keyword_is_reserved(self, service, friend):
        """Keywords of any name reach the function."""
        names = 'self rule timeout args kwargs token method __rule __self callable function cls'
        kwargs = {name: i for i, name in enumerate([*names.split(), 'class', 'a b', 'é'])}
        for one in (friend, Friend('app1', service)):
            one.send('/echo', **kwargs)
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
        assert (status, problem['detail']) == (413, 'the body of 44 bytes is over max_body=30')
        assert re.match('Request|Content', problem['title']) and service.ran == []
        friend = friend_of(lambda: 'x' * 40, max_body=40)
        raised(ValueError, friend.send, '/f', match='the reply of 44 bytes is over max_body=40')

    @pytest.mark.parametrize('status, kinds', CONTENT_TYPES)
    def test_content_type(self, status, kinds):
        """A service takes only application/json, which a web page cannot send without asking."""
        for kind in kinds:
            service = make()
            told = ask(service, CALL, Content_Type=kind)
            assert (told[0], len(service.ran)) == (status, status == 200)
            said = f'Content-Type has to be application/json, not {kind!r}'
            assert status == 200 or told[2]['detail'] == said

    @pytest.mark.parametrize('host, origin, site, allowed', BROWSERS)
    def test_browsers(self, host, origin, site, allowed):
        """A web page of another origin is 403 and runs nothing; one of this service may call."""
        service, ran = Microservice('app1'), []
        service.typing('/f', methods=('GET', 'POST'))(lambda: ran.append(1))
        headers = {'Host': host, 'ORIGIN': origin, 'Sec-Fetch-Site': site}
        headers = {name: value for name, value in headers.items() if value is not None}
        told = [ask(service, path='/f', method=method, **headers) for method in ('POST', 'GET')]
        assert [status for status, *_ in told] == ([200, 200] if allowed else [403, 403])
        assert len(ran) == (2 if allowed else 0)
        if not allowed:
            assert 'may not call this service' in told[0][2]['detail']
            assert ask(service, path='/', method='GET', **headers)[0] == 403
            assert ask(service, path='/none', **headers)[0] == 403

    def test_name(self):
        """GET / tells the name without a token, unless a rule has that path."""
        service = make(token=SECRET)
        assert service.answer('GET', '/', {}) == (200, tuple(REPLY.items()), b'["app1"]')
        assert ask(service, path='/')[0] == 404
        service.typing('/', methods=('GET',), token='mine')(lambda: 'mine')
        assert service.answer('GET', '/', JSON, b'{"token":"mine"}')[2] == b'["mine"]'

    def test_decorator_that_fails_afterwards(self):
        """A function that ran is never told as one that did not, whatever its decorator raises."""
        ran = []

        def adding(function):
            @functools.wraps(function)
            def wrapper(*args):
                function(1, 2, *args)
                raise TypeError('the decorator failed')

            return wrapper

        rule = adding(lambda a, b, c: ran.append(c))
        raised(RemoteError, friend_of(rule).send, '/f', 3, sent=True)
        rule = functools.singledispatch(lambda a: None)
        rule.register(int, lambda a, b: ran.append(b) or fits())
        raised(RemoteError, friend_of(rule).send, '/f', 3, 4, sent=True)
        assert ran == [3, 4]

    def test_no_memory_to_read_a_call(self, monkeypatch):
        """Where no memory is left to read a call, it is 503 and not run, an async one too."""
        service, call = make_async(), ('POST', '/aecho', JSON, CALL)
        fail_once(monkeypatch, microconnect, DECODE, MemoryError())
        assert service.answer(*call)[0] == 503
        fail_once(monkeypatch, microconnect, DECODE, MemoryError())
        assert asyncio.run(service.aanswer(*call))[0] == 503

    def test_large_call_of_a_stranger(self, monkeypatch):
        """Until a stranger's large call is refused, no other large body is decoded."""
        service, free = make(token=SECRET), []

        def refuse(*_):
            with background(process_lock('decode').acquire, False) as other:
                free.append(other.result(TIMEOUT))
            return False

        monkeypatch.setattr(microconnect.hmac, 'compare_digest', refuse)
        assert ask(service, b'{"args":["%b"],"token":"x"}' % (b'x' * 300000))[0] == 401
        assert free == [False]


RULES = {  # what a service tells of its rules
    '/divide': ('(a, b, *, floor=False)', 'Divide a by b.', ['POST'], False),
    '/later': ('(seconds: float = 1.5)', '', ['POST'], False),
    '/list': ("() -> 'dict[str, dict[str, Any]]'", RULES_DOC.split('\n')[0], ['GET', 'POST'], True),
    '/odd': ('(...)', '', ['POST'], False),
    '/partial': ('(b, *, floor=False)', 'Divide a by b.', ['POST'], True),
}


def divide(a, b, *, floor=False):
    """
    Divide a by b.

    What else there is to say stays here.
    """


async def later(seconds: float = 1.5):
    pass


class TestListOfRules:
    def test_rules(self):
        """`rules` tells of each rule its signature, docstring, methods, and if it wants a token."""
        service = Microservice('app1', token={'/partial': SECRET})
        odd = type('Odd', (), {'__repr__': lambda self: 1 / 0})()
        partial = functools.partial(divide, 7)
        rules = {
            'later': later,
            'divide': divide,
            'partial': partial,
            'odd': lambda value=odd: value,
        }
        for rule, function in rules.items():
            service.typing(rule)(function)
        service.typing('/list', token=SECRET, methods=('GET', 'POST'))(service.rules)
        told = service.rules()
        assert list(told) == sorted(told)
        keys = ('signature', 'doc', 'methods', 'token')
        assert told == {rule: dict(zip(keys, row)) for rule, row in RULES.items()}
        assert Friend('app1', service, SECRET).send('/list') == told
        raised(Forbidden, Friend('app1', service).send, '/list')
        odd = type('Odd', (), {'__signature__': 7, '__call__': lambda self: 7})()
        assert service_of(odd).rules()['/f']['signature'] == '(...)'

    def test_repr(self):
        """A repr says a service's name, address and number of rules, and the rules with tokens."""
        service = Microservice('app1', token={'/f': SECRET})
        assert repr(service) == "<Microservice 'app1' (it does not serve), 0 rules>"
        every = Microservice('app2', token=SECRET).token
        assert f'{service.token} {every}' == "<tokens of '/f'> <tokens of every rule>"
        service.typing('/f')(int)
        with serving(service):
            assert repr(service) == f"<Microservice 'app1' at {service.address}, 1 rule>"


@pytest.fixture
def lines(caplog):
    """Gives the log from DEBUG on: the level and text of each line, without times and ports."""
    caplog.set_level(logging.DEBUG, 'microconnect')

    def told(line):
        text = re.sub(r'[0-9.]+ ms', 'N ms', line.getMessage())
        return f'{line.levelname} {text}'.replace(repr(getattr(line, 'caller', None)), 'ME')

    return lambda: [told(line) for line in caplog.records]


def never_log_calls(monkeypatch):
    """Let a line that is logged for a call be a failure."""
    monkeypatch.setattr(Microservice, '_log_call', pytest.fail)


class TestLog:
    """What an operator sees: the logger microconnect."""

    def test_calls(self, lines):
        """One line for a call at DEBUG, for a refusal at INFO, and for start and stop."""
        with calling(token={'/fail': SECRET}) as (service, friend):
            address = service.address
            friend.send('/echo', 1)
            for rule in ('/fail', '/missing'):
                raised(MicroconnectError, friend.send, rule)
            assert raw(service, b'GET\r\n\r\n').startswith(b'HTTP/1.1 400 ')
            until(lambda: not connections_of(service, 'answering'))
        wanted = [
            f'INFO app1 listens on {address}, 2 rules',
            "DEBUG answered 200: '/echo' from ME in N ms",
            "INFO refused 401: '/fail' from ME in N ms: '/fail needs a token, and none was given'",
            "INFO refused 404: '/missing' from ME in N ms: ",
            "INFO refused 400: '' from ME in N ms: ", 'INFO app1 stops', 'INFO app1 has stopped',
        ]  # fmt: skip
        told = lines()
        assert told[:3] + told[5:] == wanted[:3] + wanted[5:]
        assert all(map(str.startswith, told, wanted))

    def test_failures(self, lines, caplog):
        """What a rule raises is logged at ERROR with its traceback, besides the call."""
        raised(KeyError, Friend('app1', make()).send, '/fail', 'KeyError', 'for the log')
        assert lines() == ['ERROR /fail raised', "DEBUG answered 500: '/fail' in N ms"]
        assert caplog.records[0].name == 'microconnect'
        assert "KeyError: 'for the log'" in caplog.records[0].exc_text
        raised(TypeError, friend_of(lambda: make).send, '/f')
        told = 'TypeError: reply[0]: function has no JSON form: send its result'
        assert lines()[2] == f'ERROR /f raised: {told}'

    def test_fields(self, caplog):
        """A line of a call has its facts as fields, for a formatter of one's own."""
        caplog.set_level(logging.DEBUG, 'microconnect')
        service = make()
        by_proxy = functools.partial(by_wsgi, REMOTE_ADDR='127.0.0.1')
        by_client = functools.partial(by_asgi, client=('127.0.0.1', 5))
        for host in (by_listener, by_proxy, by_client):
            host(service, 'POST', '/echo', JSON, CALL)
        service.answer('POST', '/f\nforged?secret', JSON, b'', caller='127.0.0.1\nforged')
        assert all(hasattr(line, 'rule') for line in caplog.records)
        told = [line for line in caplog.records if line.rule]
        assert [(line.rule, line.status) for line in told[:3]] == [('/echo', 200)] * 3
        assert (told[3].rule, told[3].status) == ('/f\nforged', 404)
        assert all(0 < line.milliseconds < 1000 * TIMEOUT for line in told)
        assert all(line.caller.startswith('127.0.0.1') for line in told)
        assert '\n' not in caplog.messages[-1]  # what a caller says cannot make a line of its own

    def test_records(self, caplog):
        """Each record has all the fields, a pattern to group by, and the place that logs."""
        caplog.set_level(logging.DEBUG, 'microconnect')
        with serving() as service:
            for rule in ('/echo', '/fail', '/none'):
                ask(service, b'{"args": ["ValueError"]}', rule)
        for record in caplog.records:
            assert {'rule', 'status', 'caller', 'milliseconds'} <= set(vars(record))
            assert record.funcName not in ('_log', 'error', 'info', 'debug', 'warning')
        patterns = {record.msg for record in caplog.records}
        assert 'answered %s: %r%.0s in %.1f ms' in patterns and '%s raised%s' in patterns
        assert 'refused %s: %r%.0s in %.1f ms: %r' in patterns
        (error,) = [record for record in caplog.records if record.levelname == 'ERROR']
        assert (error.rule, error.status) == ('/fail', 500)

    def test_off(self, caplog, monkeypatch, live):
        """At the default level a call that succeeds is not even timed for the log."""
        never_log_calls(monkeypatch)
        _, friend = live(calling())
        assert friend.send('/echo', 1) == 1
        assert not caplog.records

    def test_that_fails(self, monkeypatch):
        """A failure of logging costs no caller its answer."""
        monkeypatch.setattr(logging.getLogger('microconnect'), 'error', lambda *_, **more: 1 / 0)
        raised(RemoteError, Friend('app1', make()).send, '/fail', 'KeyError', type='KeyError')

    @HOSTS
    @pytest.mark.parametrize('path', ['/fail', '/aecho'])
    def test_every_refusal(self, ask, path, lines):
        """Each refusal has its line, that of a plain function's arguments too."""
        service = make_async(max_body=99, origins=[ORIGIN])
        assert ask(service, 'POST', path, JSON, b'{}')[0] == 422
        assert ask(service, 'POST', path, {**JSON, 'Origin': ORIGIN}, b'x' * 100)[0] == 413
        told = [line for line in lines() if 'refused' in line]
        assert [line[:18] for line in told] == ['INFO refused 422: ', 'INFO refused 413: ']
        assert ask is by_wsgi or repr(path) in told[1]

    def test_client_of_asgi(self, caplog):
        """A client on a Unix socket has no port, and may be unknown."""
        caplog.set_level(logging.DEBUG, 'microconnect')
        for client in (None, ('/run/socket', None), ('::1', 5)):
            by_asgi(make(), 'POST', '/echo', JSON, b'{}', client=client)
        assert [line.caller for line in caplog.records] == ['', '/run/socket', '[::1]:5']

    @pytest.mark.parametrize('level', ['WARNING', 'DEBUG'])
    def test_debug(self, level, caplog, capsys, monkeypatch):
        """In debug a line for each call is printed, whatever the log shows, to stderr only."""
        caplog.set_level(level, 'microconnect')
        for rule in ('/echo', '/missing'):
            ask(make(debug=True), path=rule)
        told = ["answered 200: '/echo", "refused 404: '/missi"]
        printed = capsys.readouterr().err.splitlines()
        assert [line[:26] for line in printed] == [f'app1: {line}' for line in told]
        assert [line[:20] for line in caplog.messages] == (told if level == 'DEBUG' else [])
        monkeypatch.setattr(sys, 'stderr', None)
        assert ask(make(debug=True))[0] == 200
        assert not capsys.readouterr().out


ORIGIN = 'https://app.example'

ORIGINS = [ORIGIN, 'http://localhost:8000', 'http://[::1]:8000', 'capacitor://localhost']

PREFLIGHT = {'method': 'OPTIONS', 'Access-Control-Request-Method': 'POST'}


def asked(host, service, origin, method='POST', path='/echo', **headers):
    """The status of an answer, two headers that a browser looks at, all of them, and the body."""
    headers = dict(JSON, **headers, **({'Origin': origin} if origin else {}))
    status, fields, body = host(service, method, path, headers, CALL)
    told = {name.lower(): value for name, value in fields.items()}
    return (status, told.get('access-control-allow-origin'), told.get('vary')), told, body


class TestPages:
    """What web pages may call: `origins`, and the Fetch standard's protocol for them."""

    @HOSTS
    def test_allowed(self, ask):
        """A page of an allowed origin calls, and reads answers and refusals; others are refused."""
        service = make(origins=[ORIGIN], token=SECRET)
        assert asked(ask, service, ORIGIN)[0] == (401, ORIGIN, 'Origin')
        service.token = False
        assert asked(ask, service, ORIGIN)[0] == (200, ORIGIN, 'Origin')
        assert asked(ask, service, None)[0] == (200, None, 'Origin')
        for other in ('http://app.example', f'{ORIGIN}:8443', f'{ORIGIN}.evil', 'null'):
            seen, _, body = asked(ask, service, other)
            assert seen == (403, None, 'Origin')
            advice = 'serve the page by http' if other == 'null' else f"origins=('{other}',)"
            assert advice in json.loads(body)['detail']
        assert len(service.ran) == 2
        if ask is not by_asgi:
            assert asked(ask, make(origins=[ORIGIN], max_body=9), ORIGIN)[0][:2] == (413, ORIGIN)
        assert asked(ask, make(), None)[0] == (200, None, None)

    @HOSTS
    def test_preflight(self, ask):
        """What a browser asks first is answered, without a token, and runs no function."""
        service = make_async(origins=[ORIGIN], token=SECRET)
        seen, told, _ = asked(ask, service, ORIGIN, **PREFLIGHT)
        assert seen == (200, ORIGIN, 'Origin')
        assert 'POST' in told['access-control-allow-methods']
        assert told['access-control-allow-headers'] == 'Content-Type'
        assert asked(ask, service, ORIGIN, path='/aecho', **PREFLIGHT)[0] == seen
        for names, allowed in (
            ('content-type, signature, traceparent', 'content-type, signature, traceparent'),
            ('x-a;\x0b evil', 'x-a, evil'),
        ):
            wanted = {**PREFLIGHT, 'Access-Control-Request-Headers': names}
            if ask is not by_listener or names.isprintable():
                told = asked(ask, service, ORIGIN, **wanted)[1]
                assert told['access-control-allow-headers'] == allowed
                assert told['access-control-expose-headers'] == '*'
        for other, refusing in (('https://evil.example', service), (ORIGIN, make())):
            seen, told, _ = asked(ask, refusing, other, **PREFLIGHT)
            assert seen[:2] == (403, None) and 'access-control-allow-methods' not in told
        assert not service.ran

    def test_forms(self):
        """An origin is given as a browser writes it, and only so (the rest is in MISTAKES)."""
        for origin in ORIGINS:
            assert asked(by_wsgi, make(origins=(origin,)), origin)[0][:2] == (200, origin)

    def test_options_rule(self):
        """A rule that answers OPTIONS is called by it, unless a page of elsewhere asks first."""
        service = Microservice('app1')
        service.typing('/o', methods=('OPTIONS',))(lambda: 'ran')
        for headers in ({'Sec-Fetch-Site': 'same-origin'}, {'Origin': 'http://localhost'}):
            headers = {**JSON, **headers, 'Host': 'localhost', 'Access-Control-Request-Method': 'X'}
            assert service.answer('OPTIONS', '/o', headers, b'{}')[2] == b'["ran"]'

    @pytest.mark.parametrize('origin, status', [(ORIGIN, 200), ('https://evil.example', 403)])
    def test_middleware(self, origin, status):
        """Behind the CORSMiddleware of Starlette or FastAPI pages are allowed once."""
        cors = pytest.importorskip('starlette.middleware.cors')
        how = {'allow_origins': [ORIGIN], 'allow_methods': ['POST']}
        host = types.SimpleNamespace(asgi=cors.CORSMiddleware(make(origins=[ORIGIN]).asgi, **how))
        seen, _, _ = asked(by_asgi, host, origin)
        assert seen[:2] == (status, ORIGIN if status == 200 else None)
        assert set(seen[2].split(', ')) == {'Origin'}
        wanted = {**PREFLIGHT, 'Access-Control-Request-Headers': 'Content-Type'}
        seen, _, _ = asked(by_asgi, host, origin, **wanted)
        assert seen[:2] == ((200, ORIGIN) if status == 200 else (400, None))


class TestSignerOfAService:
    """What a service does with the secretKey that its calls are signed by."""

    @HOSTS
    def test_refused(self, ask):
        """A call that is refused runs nothing, and its reply is not signed."""
        service = make_async(secretKey=Signer())
        calls = (('POST', '/echo'), ('POST', '/aecho'), ('POST', '/ecko'), ('GET', '/f'))
        for method, path in calls:
            status, fields, body = ask(service, method, path, {**JSON, 'X-Word': 'wrong'}, b'[')
            assert (status, json.loads(body)['detail']) == (401, 'it does not say the word')
            assert 'x-proof' not in fields
        assert ask(service, 'GET', '/', {}, b'')[::2] == (200, b'["app1"]')
        assert service.ran == []

    @HOSTS
    @pytest.mark.parametrize('proof', ['proof', 0, None])
    def test_proof(self, ask, proof):
        """The reply is signed if `check_call` gives anything to sign it by."""
        signer = Signer(proof=proof)
        service = make_async(secretKey=signer)
        signer.sign_reply = lambda proof, *reply: (('X-Proof', f'{proof} of {len(reply)}'),)
        for rule in ('/echo', '/aecho'):
            status, fields, _ = ask(service, 'POST', rule, {**JSON, 'X-Word': 'word'}, CALL)
            told = None if proof is None else f'{proof} of 3'
            assert (status, fields.get('x-proof')) == (200, told)
        service.stop()

    @HOSTS
    @pytest.mark.parametrize('kind', [KeyError, PermissionError, RecursionError])
    def test_bug(self, ask, kind, caplog):
        """What else `check_call` raises is a 500, logged with its traceback, and runs nothing."""
        signer = Signer()
        service = make(secretKey=signer)
        signer.check_call = lambda *_: raise_(kind('s3cret'))
        status, _, body = ask(service, 'POST', '/echo', {**JSON, 'X-Word': 'word'}, b'')
        assert (status, json.loads(body)['detail']) == (500, 'the call could not be checked')
        assert service.ran == [] and [line.exc_info[0] for line in caplog.records] == [kind]

    def test_not_open(self, caplog):
        """A service with one is not warned of as open to the network."""
        make(secretKey=Signer()).start(port=0, host='0.0.0.0').stop()
        assert caplog.messages == []


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


async def endless(entered, ended):
    """Sets *entered*, waits until it is cancelled, and then sets *ended*."""
    entered.set()
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        threading.Event().wait(0.02)  # whoever cancels it waits for that, too
        ended.set()


class TestAsyncRules:
    """Async rules, all of one service on one event loop."""

    @pytest.mark.parametrize('wrap', AWAITED.values(), ids=AWAITED)
    def test_callables(self, wrap):
        """A coroutine is awaited whatever kind of callable returned it; typing changes none."""

        async def last(*args):
            await asyncio.sleep(0)
            return args[-1]

        function, service = wrap(last), Microservice('app1')
        assert service.reply(service.typing('/f')(function)) is function
        for ask in (by_asgi, by_listener):
            for value in (b'null', b'7', b'[1,2]', b'{"a":"\\u00e4"}'):
                told = ask(service, 'POST', '/f', JSON, b'{"args":[%b]}' % value)
                assert told[2] == b'[%b]' % value
        service.stop()

    def test_awaitable_that_fails(self):
        """A TypeError of an awaitable is the function's own: it has run."""

        class Broken:
            def __await__(self):
                return 5

        service = service_of(lambda: Broken())
        raised(RemoteError, Friend('app1', service).send, '/f', sent=True)
        service.stop()

    def test_raised(self, friend):
        """Any exception of an async rule is an error of that call; the service goes on."""
        names = 'ValueError SystemExit KeyboardInterrupt CancelledError GeneratorExit'
        for name in (*names.split(), 'StopIteration', 'StopAsyncIteration'):
            # Python itself makes a RuntimeError of a StopIteration.
            told = 'RuntimeError' if name == 'StopIteration' else name
            raised(RemoteError, friend.send, '/afail', name, type=told)
            assert [friend.send(rule, 'on') for rule in ('/aecho', '/echo')] == ['on'] * 2

    @pytest.mark.parametrize('name', ['SystemExit', 'KeyboardInterrupt'])
    @pytest.mark.filterwarnings('ignore')  # pytest's, of a thread that raised
    def test_raised_in_a_task(self, name, live):
        """A task that raises SystemExit fails alone; the loop goes on."""
        service, friend = live(calling(make_async()))

        async def fail():
            raise getattr(builtins, name)

        @service.typing('/task')
        async def task():
            await asyncio.ensure_future(fail())

        raised(RemoteError, friend.send, '/task')
        assert friend.send('/aecho', 'on') == 'on'

    def test_one_loop(self, live):
        """All calls run on one loop: they share its locks, and a hundred can be inside at once."""
        state, log, inside = {}, [], []

        async def locked():
            async with state.setdefault('lock', asyncio.Lock()):
                log.append('in')
                await asyncio.sleep(0.001)
                log.append('out')

        async def meet():
            inside.append(asyncio.get_running_loop().create_future())
            if len(inside) == 100:
                for future in inside:
                    future.set_result('all here')
            return await inside[-1]

        service, friend = live(calling(service_of(locked)))
        service.typing('/meet')(meet)
        assert call_all(8, lambda _: friend.send('/f')) == [None] * 8
        assert log == ['in', 'out'] * 8
        assert call_all(100, lambda _: friend.send('/meet')) == ['all here'] * 100

    def test_thread_of_the_loop(self, live):
        """All services of a process share one loop, in a daemon thread that stop leaves."""
        one, other = make_async(), make_async()
        _, friend = live(calling(one))
        friend.send('/loop')
        one.stop()
        Friend('app1', other).send('/loop')
        assert one.loop is other.loop
        assert one.loop_thread.is_alive() and one.loop_thread.daemon

    def test_leftover_tasks(self, live):
        """A task that a rule left behind goes on after its call, and is cancelled by stop."""
        service, friend = live(calling(make()))
        cancelled = threading.Event()

        @service.typing('/leave')
        async def leave():
            service.task = asyncio.ensure_future(endless(threading.Event(), cancelled))

        service.typing('/look')(lambda: service.task.done())
        friend.send('/leave')
        assert friend.send('/look') is False
        service.stop()
        assert cancelled.wait(TIMEOUT)

    def test_in_flight_at_stop(self, live):
        """stop waits for an async call in flight, which is answered."""
        entered = threading.Event()

        async def slow():
            entered.set()
            while not is_stopping(service):
                await asyncio.sleep(0.001)
            return 'whole'

        service, friend = live(calling(service_of(slow)))
        call = live(background(friend.send, '/f'))
        assert entered.wait(TIMEOUT)
        service.stop(grace=TIMEOUT)
        assert call.result(TIMEOUT) == 'whole'

    def test_cut_off_at_stop(self, live):
        """An async call that outlasts the grace of stop is cancelled."""
        entered, cancelled = threading.Event(), threading.Event()
        service, friend = live(calling(service_of(lambda: endless(entered, cancelled))))
        call = live(background(friend.send, '/f'))
        assert entered.wait(TIMEOUT)
        service.stop(grace=0.05)
        assert cancelled.wait(TIMEOUT)
        assert isinstance(call.exception(TIMEOUT), MicroconnectError)

    def test_stop_in_a_rule(self, live):
        """An async rule may stop its own service, and is answered."""

        async def stop():
            service.stop()
            return 'stopping'

        service, friend = live(calling(service_of(stop)))
        assert friend.send('/f') == 'stopping'
        until(lambda: not is_serving(service))

    @pytest.mark.parametrize('by_address', [False, True])
    def test_send_to_itself(self, by_address, live):
        """An async rule that calls the blocking send of its own service gets an error at once."""
        service, friend = live(calling(make_async()))

        @service.typing('/itself')
        async def itself():
            return Friend('app1', service.address if by_address else service).send('/aecho', 1)

        @service.typing('/answer')
        async def answer():
            return service.answer('POST', '/aecho', JSON, CALL)[0]

        with soon():
            raised(RemoteError, friend.send, '/itself', match='asend')
            assert friend.send('/answer') == 500
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
        assert status == 500 and b'asend' in reply
        assert asyncio.run(ask(b'{"args":[true]}')) == (200, b'["sent"]')

    def test_asend_to_itself(self, service):
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
            # asyncio loses an OSError that is raised just while it wakes its loop: ring again.
            signal.setitimer(signal.ITIMER_REAL, 0.02, 2)
            await endless(threading.Event(), ended)

        service = service_of(function)
        with handling(signal.SIGALRM, alarm):
            raised(TimeoutError, Friend('app1', service).send, '/f', match='the alarm rang')
        assert ended.wait(TIMEOUT)
        service.stop()

    def test_loop_that_cannot_start(self, monkeypatch):
        """An async rule fails while no event loop can be made, and works afterwards."""
        service = make_async()
        friend = Friend('app1', service)
        with monkeypatch.context() as patch:
            fail_once(patch, asyncio, 'new_event_loop', OSError('no descriptor is left'))
            forget_threads()
            raised(OSError, friend.send, '/aecho', 1, match='no descriptor is left')
        assert friend.send('/aecho', 1) == 1
        service.stop()

    def test_stop_of_another_service(self):
        """stop cancels the async calls and tasks of its own service; those of another go on."""
        ended, services = [], [make_async(), make_async()]

        async def wait(service):
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(service)

        async def leave(service):
            service.left = asyncio.ensure_future(wait(service))
            await asyncio.sleep(0)

        for service in services:
            service.typing('/leave')(lambda service=service: leave(service))
            Friend('app1', service).send('/leave')
        services[0].stop()
        until(lambda: ended)
        assert Friend('app1', services[1]).send('/aecho', 1) == 1
        assert ended == services[:1]
        services[1].stop()
        until(lambda: len(ended) == 2)

    def test_no_thread_for_the_loop(self, monkeypatch):
        """An async rule that gets no thread fails and leaves no loop open; later it works."""
        service, new, loops = make_async(), asyncio.new_event_loop, []
        forget_threads()
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, 'new_event_loop', lambda: loops.append(new()) or loops[-1])
            fail_once(patch, threading.Thread, 'start', RuntimeError("can't start new thread"))
            assert ask(service, CALL, '/aecho')[0] == 500
        assert [loop.is_closed() for loop in loops] == [True]
        assert Friend('app1', service).send('/aecho', 1) == 1


# --------------------------------------------------------------------------------------------- WSGI


class TestWsgi:
    @pytest.mark.parametrize('length', ['x', '-1', '+1', '1.0', ' 2', '\xb2', '1_0', '0x2'])
    def test_bad_length(self, length, caplog):
        """A length that is not a plain number is refused, even if int() would take it."""
        caplog.set_level('INFO', 'microconnect')
        told = []
        environ = {'REQUEST_METHOD': 'POST', 'PATH_INFO': '/echo', 'CONTENT_LENGTH': length}
        environ.update({'CONTENT_TYPE': 'application/json', 'wsgi.input': io.BytesIO(b'{}')})
        reply = b''.join(make().wsgi(environ, lambda status, headers: told.append(status)))
        assert told == ['400 Bad Request'] and b'Content-Length' in reply
        assert re.match(r"refused 400: '' in \S+ ms: .*Content-Length", caplog.messages[-1])

    def test_length_that_does_not_fit(self):
        """A length of many digits is too large; a body that ends before its length is refused."""
        service = make()
        for length, status in (('9' * 4000, 413), ('3', 400)):
            got = by_wsgi(service, 'POST', '/echo', JSON, b'{}', CONTENT_LENGTH=length)
            assert (got[0], service.ran) == (status, [])

    def test_too_large_is_not_read(self):
        """A body over the limit is refused by its length, without reading it."""
        options = {'wsgi.input': io.BytesIO(b'x' * 1000), 'CONTENT_LENGTH': '1000'}
        assert by_wsgi(make(max_body=100), 'POST', '/echo', JSON, b'', **options)[0] == 413
        assert options['wsgi.input'].tell() == 0

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

    def test_simple_server(self, live, monkeypatch):
        """A Friend calls a service that wsgiref serves."""
        application, module = wsgiref.validate.validator(make().wsgi), wsgiref.simple_server
        monkeypatch.setattr(module.WSGIRequestHandler, 'log_message', lambda *_: None)
        server = live(module.make_server('127.0.0.1', 0, application))
        live(background(server.serve_forever, 0.01))
        live(contextlib.ExitStack()).callback(server.shutdown)
        friend = live(Friend('app1', f'127.0.0.1:{server.server_port}', timeout=TIMEOUT))
        assert friend.ping(TIMEOUT)
        assert friend.send('/echo', 'ä', 2) == ('ä', 2)
        raised(ValueError, friend.send, '/fail', 'ValueError', match='why')
        raised(UnknownRule, friend.send, '/ecko', match="did you mean '/echo'")

    def test_bare_environ(self):
        """An empty path is /, and what is no HTTP_... is no header; CONTENT_TYPE may be missing."""
        told, more = [], {'FAKE_ORIGIN': 'http://evil.example', 'wsgi.input': io.BytesIO()}
        for method, path in (('GET', ''), ('GET', '/'), ('POST', '/echo')):
            environ = {'REQUEST_METHOD': method, 'PATH_INFO': path, **more}
            make().wsgi(environ, lambda status, fields: told.append(status[:3]))
        assert told == ['200', '200', '415']


# --------------------------------------------------------------------------------------------- ASGI


# fmt: off
MOUNTED = [  # root_path, path
    ('/rpc', '/rpc/echo'), ('/rpc', '/echo'), ('/rpc/', '/rpc/echo'), ('/', '/echo'),
    ('/ec', '/echo'), ('/echo', '/echo/echo'),
]
# fmt: on


class TestAsgi:
    def test_pieces(self):
        """The body may come in any number of pieces; if the client disconnects, nothing runs."""
        for pieces in (1, 2, 7, 12):
            assert by_asgi(make(), 'POST', '/echo', JSON, CALL, pieces=pieces)[::2] == (200, b'[1]')
        service = make()
        assert by_asgi(service, 'POST', '/echo', JSON, CALL, disconnect=True) is None
        assert service.ran == []

    def test_too_large_is_not_kept(self):
        """A body is refused as soon as it is over the limit: its rest is not read."""
        # With disconnect: whoever asked for more would find the client gone, and answer nothing.
        how = {'pieces': 3, 'disconnect': True}
        assert by_asgi(make(max_body=100), 'POST', '/echo', JSON, b'x' * 150, **how)[0] == 413

    def test_mounted(self):
        """The rule is what follows root_path, which some servers leave out of the path."""
        for root_path, path in MOUNTED:
            answer = by_asgi(make(), 'POST', path, JSON, CALL, root_path=root_path)
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
        variable = contextvars.ContextVar('variable', default=0)
        variable.set(7)
        service.typing('/look')(variable.get)  # a plain rule sees the context of its request
        assert by_asgi(service, 'POST', '/look', JSON, b'')[2] == b'[7]'
        assert service.loop_thread is threading.current_thread()

    def test_lifespan(self):
        """Startup and shutdown are acknowledged."""
        messages = [{'type': f'lifespan.{phase}'} for phase in ('startup', 'shutdown')]
        sent = by_messages(make().asgi, {'type': 'lifespan'}, messages)
        assert sent == [{'type': f'lifespan.{phase}.complete'} for phase in ('startup', 'shutdown')]

    def test_websocket(self):
        """A scope other than http raises an error, as the specification demands."""
        scope = {'type': 'websocket', 'path': '/'}
        raised(RuntimeError, by_messages, make().asgi, scope, [], match='websocket')

    def test_recognised(self):
        """Servers recognise it as ASGI 3: it is a coroutine function."""
        assert inspect.iscoroutinefunction(make().asgi)

    def test_at_once(self):
        """While plain rules keep the loop's threads busy, what needs none is answered at once."""
        service = holding(make(origins=[ORIGIN], token={'/echo': SECRET}))
        asked = {'origin': ORIGIN, 'access-control-request-method': 'POST'}
        requests = [('GET', '/', {}), ('OPTIONS', '/echo', asked), ('POST', '/none', JSON)]
        for headers in ({'content-type': 'text/plain'}, JSON, {**JSON, 'origin': 'http://evil'}):
            requests.append(('POST', '/echo', headers))

        async def ask_all():
            loop = asyncio.get_running_loop()
            loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
            busy = asyncio.ensure_future(service.aanswer('POST', '/hold', JSON, b'{}'))
            while not service.held.acquire(blocking=False):
                await asyncio.sleep(0.001)
            calls = [service.aanswer(*one, b'{}') for one in requests]
            answers = [await asyncio.wait_for(call, TIMEOUT) for call in calls]
            assert not service.returned
            service.release.set()
            return (await busy)[0], [status for status, _, _ in answers]

        assert asyncio.run(ask_all()) == (200, [200, 200, 404, 415, 401, 403])

    def test_large_body(self, monkeypatch):
        """A large body is decoded off the loop, a small one for an async rule on it."""
        service, here = make_async(), threading.current_thread()
        watch_calls(monkeypatch, '_parse_call', threads := [])
        for size in (10, 1 << 19):
            body = json.dumps({'args': ['x' * size]}).encode()
            assert by_asgi(service, 'POST', '/aecho', JSON, body)[0] == 200
        assert [thread is here for thread in threads] == [True, False]

    @pytest.mark.parametrize('kind', [KeyboardInterrupt, SystemExit])
    def test_exits(self, kind):
        """Ctrl-C in an async rule passes through in the main thread, as in a plain one."""
        body = b'{"args":["%b"]}' % kind.__name__.encode()
        raised(kind, lambda: asyncio.run(make_async().aanswer('POST', '/afail', JSON, body)))

    def test_cancelled(self):
        """A call that the server cancels is cancelled, and not answered as an error of the rule."""

        async def cancel(ended):
            call = asyncio.ensure_future(service.aanswer('POST', '/f', JSON, b'{}'))
            while not entered.is_set():
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            return ended.is_set()

        async def wait():
            await endless(entered, cancelled)

        entered, cancelled = threading.Event(), threading.Event()
        service = service_of(wait)
        assert asyncio.run(cancel(cancelled)) is True


# ----------------------------------------------------------------------------------------- listener


KEPT, CLOSED = b'\r\nKeep-Alive: timeout=75\r\n', b'\r\nConnection: close\r\n'
KEEP, END = b'Connection: keep-alive\r\n', b'Connection: close\r\n'
CHUNKS = b'8;a=b\r\n{"args":\r\n006\r\n["yz"]\r\n1 ; c\r\n}\r\n0\r\nX: 1\r\nY:2\r\n\r\n'
NUMBERED = [request(b'{"args":["%d"]}' % i) for i in range(3)]
# fmt: off
EXCHANGES = [  # what a client sends; statuses, and what the bytes that come back match
    # A connection is kept as HTTP/1.1 defines, and the reply says whether it is.
    (request() * 2, [200, 200], KEPT + rb'.*\["x"\].*Content-Length: 5\r\n\r\n\["x"\]$'),
    (request(extra=KEEP) * 2, [200, 200], KEPT),
    (request(extra=END) * 2, [200], CLOSED),
    (request(extra=b'Connection: TE, Close\r\n') * 2, [200], CLOSED),
    (request(extra=b'Expect: 100-continue\r\n'), [200], KEPT),  # its body is there already
    (request(version=b'1.0') * 2, [200], CLOSED),
    (request(version=b'1.0', extra=KEEP) * 2, [200], CLOSED),
    # Requests in one write are answered in their order; a chunked body is put together.
    (b''.join(NUMBERED), [200] * 3, rb'\["0"\].*\["1"\].*\["2"\]'),
    (CHUNKED_HEAD + CHUNKS + request(), [200, 200], rb'\["yz"\].*\["x"\]'),
    # HEAD gives the head that GET gives, and no body; a refused one neither.
    (request(b'', '/', 'HEAD') + request(b'', '/', 'GET'), [200, 200],
     rb'^(.*Content-Length: 8.*\r\n\r\n)\1\["app1"\]$'),
    (b'HEAD / HTTP/1.1\r\n\r\n', [400], rb'\r\n\r\n$'),
    (b'HEAD / HTTP/1.1\r\nHost: @\r\n\r\n', [400], rb'\r\n\r\n$'),
]

LIMITED = [  # what is over max_head=1000 or max_body=100; status
    (request(extra=b'X: %b\r\n' % (b'x' * 1000)), 431),
    (HEAD + b'X: ' + b'x' * 1000, 431),  # and so on for ever
    (b'POST /' + b'x' * 1000, 431),
    (HEAD + b'Expect: 100-continue\r\nContent-Length: 101\r\n\r\n', 413),
    (request(b'{"args":["%b"]}' % (b'x' * 88)), 413),
    (CHUNKED_HEAD + b'65\r\n', 413),
]
# fmt: on


def fail_once(monkeypatch, owner, name, error):
    """Let the next call of a function of *owner* raise *error*."""
    real, errors = getattr(owner, name), [error]

    def fail_or_call(*args, **options):
        if errors:
            raise errors.pop()
        return real(*args, **options)

    monkeypatch.setattr(owner, name, fail_or_call)


def two_idle(service, live):
    """Two connections that have got a reply each, and wait since, the first one for longer."""
    socks = []
    for _ in range(2):
        socks.append(live(connect(service)))
        socks[-1].sendall(request())
        receive(socks[-1], b'["x"]')
        until(lambda: len(connections_of(service, 'idle')) == len(socks))
    return socks


class TestListener:
    """Raw bytes, as a client could send them."""

    @pytest.mark.parametrize('data, expected, pattern', EXCHANGES)
    def test_exchange(self, service, data, expected, pattern):
        """What is sent at once is answered so, and no more of it runs than is answered."""
        got = raw(service, data)
        assert statuses(got) == expected and re.search(pattern, got, re.S)
        is_kept = b'close' not in pattern and expected != [400]
        assert ((KEPT in got), (CLOSED in got)) == (is_kept, not is_kept)
        calls = [args for args, _ in service.ran]
        assert len(calls) == (got.count(b'["') - got.count(b'["app1"]'))

    def test_byte_by_byte(self, service, live):
        """A request may come in pieces of one byte."""
        sock = live(connect(service))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request(extra=END):
            sock.sendall(bytes([byte]))
        assert receive(sock).endswith(b'["x"]')

    def test_expect_continue(self, service, live):
        """A client that expects it is told to continue, and then sends the body."""
        head, _, body = request(extra=b'Expect: 100-continue\r\n').partition(b'\r\n\r\n')
        sock = live(connect(service))
        sock.sendall(head + b'\r\n\r\n')
        assert receive(sock, b'\r\n\r\n') == b'HTTP/1.1 100 Continue\r\n\r\n'
        sock.sendall(body)
        assert statuses(receive(sock, b'["x"]')) == [200]

    def test_limits(self, live):
        """A request over a limit is refused before it is read; one that reaches it is taken."""
        service = live(serving(max_head=1000, max_body=100))
        for data, status in LIMITED:
            assert statuses(raw(service, data, end=False)) == [status]
        assert service.ran == []
        body = b'{"args":["%b"]}' % (b'x' * 87)
        size = len(request(body)) - len(body)
        service = live(serving(max_head=size, max_body=len(body)))
        assert statuses(raw(service, request(body))) == [200]
        chunked = CHUNKED_HEAD + b'32\r\n%b\r\n32\r\n%b\r\n0\r\n\r\n' % (body[:50], body[50:])
        assert statuses(raw(live(serving(max_body=len(body))), chunked)) == [200]

    def test_refusal_arrives(self, live):
        """A client that sends 5 MB too much can read why it is refused, each time."""
        body = b'{"args":["%b"]}' % (b'x' * 5000000)
        service, friend = live(calling(max_body=1000))
        for _ in range(4):
            with connect(service) as sock, sock.makefile('rb') as replies:
                sock.sendall(request(body))  # neither this is broken off, nor the reply
                sock.shutdown(socket.SHUT_WR)
                assert statuses(replies.read()) == [413]
            call = functools.partial(friend.send, '/echo', 'x' * 5000000)
            raised(TooLarge, call, match='over max_body=1000', status=413, sent=False)
        assert service.ran == []

    def test_more_after_close(self, service):
        """A reply arrives whole, though the client sent more after asking to close."""
        for _ in range(10):
            assert raw(service, request(extra=END) + b'x' * 1000000).endswith(b'["x"]')

    @pytest.mark.usefixtures('each_way')
    def test_longest_idle_makes_room(self, live):
        """At max_connections, the longest-idle connection is closed for a new one."""
        service = live(serving(max_connections=2))
        socks = two_idle(service, live)
        assert statuses(raw(service, request())) == [200]
        assert statuses(receive(socks[0])) == [408]
        socks[1].sendall(request())
        assert statuses(receive(socks[1], b'["x"]')) == [200]

    def test_silent_makes_room(self, live):
        """At max_connections, a connection that has said nothing is closed for a new one."""
        service = live(serving(max_connections=1))
        silent = live(connect(service))
        until(lambda: connections_of(service))
        assert statuses(raw(service, request())) == [200]
        assert statuses(receive(silent)) == [408]

    def test_options_of_sockets(self, service, friend):
        """Both sides send at once, and ask the system to probe a peer silent for a minute."""
        assert friend.send('/echo', 1) == 1
        both = (*connections_of(service), *address_of(friend).links)
        assert len(both) >= 2
        for sock in (one.timed.sock for one in both):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            for name in ('TCP_KEEPIDLE', 'TCP_KEEPALIVE'):
                if hasattr(socket, name):
                    assert sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == 60

    def test_no_descriptor_left(self, monkeypatch, live):
        """The longest-idle connection is also closed if no descriptor is left."""
        service = live(serving())
        idle = live(connect(service))
        idle.sendall(request())
        assert statuses(receive(idle, b'"x"]')) == [200]
        until(lambda: connections_of(service, 'idle'))
        error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        fail_once(monkeypatch, socket.socket, 'accept', error)
        assert live(Friend('app1', service.address, timeout=TIMEOUT)).send('/echo', 1) == 1
        assert statuses(receive(idle)) == [408]

    def test_no_thread_left(self, monkeypatch, live):
        """A newcomer that gets no thread is told 503, and the longest idle makes room."""
        service, error = live(serving()), RuntimeError("can't start new thread")
        for number, idle in enumerate(two_idle(service, live)):
            with monkeypatch.context() as patch:
                fail_once(patch, threading.Thread, 'start', error)
                if number:
                    assert statuses(raw(service, b'', end=False)) == [503]
                else:
                    friend = live(Friend('app1', service.address, timeout=TIMEOUT))
                    raised(Busy, friend.send, '/echo', 1, status=503, sent=False)
            assert statuses(receive(idle)) == [408]
            assert statuses(raw(service, request())) == [200]
        assert len(service.ran) == 4

    @pytest.mark.parametrize('is_friend', [False, True])
    def test_no_memory_left(self, is_friend, monkeypatch, live):
        """A request for which no memory is left is 503 and not run; others are served."""
        service, friend = live(calling())
        monkeypatch.setattr(Listener, 'wait_for_room', lambda *_: raise_(MemoryError()))
        if is_friend:
            call = functools.partial(friend.send, '/echo', 'x' * 5000000)
            raised(Busy, call, match='no memory is left', status=503, sent=False)
        else:
            assert statuses(raw(service, request(b'["%b"]' % (b'x' * 600000)))) == [503]
        assert service.ran == []
        assert friend.send('/echo', 'x' * 1000) == 'x' * 1000

    def test_no_memory_for_the_reply(self, monkeypatch, live):
        """If the memory ends after a function ran, the caller is not told to send again."""
        service, friend = live(calling(idle_timeout=77))  # so that no head is remembered
        fail_once(monkeypatch, microconnect.email.utils, 'formatdate', MemoryError())
        raised(ConnectionLost, friend.send, '/echo', 1, sent=True)
        assert friend.send('/echo', 2) == 2
        assert len(service.ran) == 2

    def test_small_requests_beside_large_ones(self, monkeypatch, live):
        """A small request is served while large ones hold all that they may, in pieces too."""
        limit(monkeypatch, held=300000)
        service = live(serving(max_body=100000))
        for count in (1, 2, 3):
            live(connect(service)).sendall(request(b'x' * 99000)[:-30000])
            until(lambda count=count: unread_bytes_of(service) > count * 60000)
        limit(monkeypatch, held=1)  # so the three hold too much, and none is refused any more
        small = live(connect(service))
        for piece in (request()[:-5], request()[-5:]):
            small.sendall(piece)
            until(lambda: len(connections_of(service)) == 4)
        assert statuses(receive(small, b'["x"]')) == [200]

    def test_many_large_requests(self, monkeypatch, live):
        """Beyond a bound of unfinished requests more are 503; small calls are answered."""
        limit(monkeypatch, held=300000)
        data = request(b'{"args":["%b"]}' % (b'x' * 90000))
        service, friend = live(calling(max_body=100000))
        socks = [live(connect(service)) for _ in range(3)]
        for count, sock in enumerate(socks, 1):
            sock.sendall(data[:-100])
            until(lambda count=count: unread_bytes_of(service) > count * 89000)
        assert friend.send('/echo', 'small') == 'small'
        # The one that has stalled the longest makes room, and knows that it did not run.
        limit(monkeypatch, stall=0.05)
        assert friend.send('/echo', 'x' * 90000) == 'x' * 90000
        assert statuses(receive(socks[0])) == [408]
        socks[1].sendall(data[-100:])
        assert statuses(receive(socks[1], b'x"]')) == [200]

    def test_who_moves_is_kept(self, monkeypatch, live, clock):
        """No request is ended whose bytes move; a newcomer that finds no room in time is 503."""
        limit(monkeypatch, held=300000, stall=2)
        data = request(b'{"args":["%b"]}' % (b'x' * 90000))
        service, friend = live(calling(max_body=100000))
        socks = [live(connect(service)) for _ in range(3)]
        for sock in socks:
            sock.sendall(data[:-100])
        until(lambda: unread_bytes_of(service) > 3 * 89000)
        call = live(background(friend.send, '/echo', 'x' * 90000))
        until(lambda: unread_bytes_of(service) > 300000)
        clock.shift(0.5)
        for sock in socks:
            sock.sendall(data[-100:-99])
        for seconds in (0, 1.5, 1.5):  # all of them wait for room from now on
            clock.shift(seconds)
            until(lambda: all(c.timed.moved_at == clock.now for c in connections_of(service)))
        with Friend('app1', service.address) as other:
            assert other.send('/echo', 'small') == 'small' and not call.done()
        clock.shift(0.51)
        told = 'too many large requests at once'
        raised(Busy, call.result, TIMEOUT, match=told, status=503, sent=False)
        for sock in socks:
            sock.sendall(data[-99:])
            assert statuses(receive(sock, b'x"]')) == [200]

    def test_reply_that_nobody_takes(self, monkeypatch, live, clock):
        """A large reply that nobody takes is cut when room for another one is needed."""
        limit(monkeypatch, held=0)
        service, friend = live(calling(max_body=800000, read_timeout=9999, idle_timeout=9999))
        service.typing('/large')(lambda: 'x' * 700000)

        def sending():
            return [one for one in connections_of(service, 'sending') if one.held]

        socks = [live(connect(service)) for _ in range(2)]
        until(lambda: len(connections_of(service)) == 2)
        for sock in (*socks, *(one.timed.sock for one in connections_of(service))):
            for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # so that they hold no reply
                sock.setsockopt(socket.SOL_SOCKET, name, 1 << 16)
        for count, sock in enumerate(socks, 1):
            sock.sendall(request(b'{}', '/large'))
            until(lambda count=count: len(sending()) == count)
        assert len(friend.send('/large')) == 700000
        assert friend.send('/echo', 7) == 7 and len(sending()) == 2  # for nobody stalls
        until(lambda: clock.shift(3) or (friend.send('/large') and len(sending()) == 1))
        cut, whole = sorted(len(receive(sock, b'x"]')) for sock in socks)
        assert cut < 700000 < whole

    def test_no_memory_for_a_newcomer(self, monkeypatch, live):
        """A newcomer for which no memory is left is dropped; the others are served."""
        _, friend = live(calling())
        fail_once(monkeypatch, microconnect, CONNECTION, MemoryError())
        raised(ConnectionLost, friend.send, '/echo', 1)
        assert friend.send('/echo', 2) == 2

    def test_thread_that_is_never_born(self, monkeypatch, live, clock):
        """A connection whose thread never begins holds up no other one, nor the stop."""
        start, hung, never = threading.Thread.start, [], threading.Event()

        def hang_once(thread):
            if hung:
                return start(thread)
            hung.append(thread)
            never.wait(TIMEOUT)

        service = live(serving(max_connections=1))
        monkeypatch.setattr(threading.Thread, 'start', hang_once)
        sock = live(connect(service))
        until(lambda: hung)
        clock.shift(2.01)
        with soon():
            assert live(Friend('app1', service.address)).send('/echo', 1) == 1
            assert receive(sock) == b''
            clock.go_on()
            service.stop()
        never.set()

    def test_two_of_the_largest_requests(self, monkeypatch, live):
        """However large max_body is, two bodies of that size may come at once."""
        limit(monkeypatch, held=1)
        data = request(b'{"args":["%b"]}' % (b'x' * 999986))
        service = live(serving(max_body=1000000))
        socks = [live(connect(service)) for _ in range(2)]
        for count, sock in enumerate(socks, 1):
            sock.sendall(data[:-1])
            until(lambda count=count: unread_bytes_of(service) > count * 999000)
        for sock in socks:
            sock.sendall(data[-1:])
            assert statuses(receive(sock, b'x"]')) == [200]

    @pytest.mark.parametrize('seconds, kept', [(269, True), (301, False)])
    def test_old_connection(self, seconds, kept, clock, live):
        """A connection of about 300 seconds is closed with a reply, and no call is lost."""
        service, friend = live(calling(counting(make(idle_timeout=9999))))
        sock = live(connect(service))
        sock.sendall(request())
        assert b'\r\nKeep-Alive: ' in receive(sock, b'["x"]')
        assert friend.send('/count') == 1
        clock.shift(seconds)
        sock.sendall(request())
        assert (CLOSED in receive(sock, b'["x"]')) is not kept
        assert [friend.send('/count') for _ in range(2)] == ([2, 3] if kept else [2, 1])
        clock.go_on()

    def test_old_connections_of_many(self, live):
        """With connections that get old all the time, 16 threads lose no call."""
        service, friend = live(calling(max_age=0.01))

        def calls(thread):
            return all(friend.send('/echo', [thread, i]) == [thread, i] for i in range(60))

        assert all(call_all(16, calls))
        assert len(service.ran) == 16 * 60

    def test_all_busy(self, live):
        """If every connection is busy, a newcomer gets 503 at once."""
        service = live(serving(holding(make(max_connections=2))))
        socks = [live(connect(service)) for _ in range(2)]
        for sock in socks:
            sock.sendall(request(b'', '/hold', extra=END))
            assert service.held.acquire(timeout=TIMEOUT)
        for _ in range(20):
            assert statuses(raw(service, b'', end=False)) == [503]
            friend = live(Friend('app1', service.address))
            raised(Busy, friend.send, '/echo', 1, status=503, sent=False)
        service.release.set()
        assert [statuses(receive(sock)) for sock in socks] == [[200]] * 2
        for sock in socks:
            sock.close()
        until(lambda: not connections_of(service))
        assert statuses(raw(service, request())) == [200]

    def test_bad_company(self, live):
        """Silent and resetting clients hinder nobody, and leave nothing behind."""
        abort = struct.pack('hh' if os.name == 'nt' else 'ii', 1, 0)
        service, before, socks = live(serving()), resources(), []
        for number in range(60):
            socks.append(connect(service))
            if number % 3 == 0:
                sock = socks.pop()
                sock.sendall(request()[: number + 1])
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abort)
                sock.close()
            if number % 10 == 0:
                assert statuses(raw(service, request())) == [200]
        for sock in socks:
            sock.close()
        until_released(before)

    def test_burst(self, service):
        """A hundred clients that connect at once are all served."""

        def call(number):
            with Friend('app1', service.address, timeout=TIMEOUT) as friend:
                return friend.send('/echo', number)

        assert call_all(100, call) == list(range(100))

    def test_refused_between_requests(self, live):
        """What is refused after a request is no answer to that one, in its headers and body."""
        service = live(serving(origins=[ORIGIN]))
        origin = f'Origin: {ORIGIN}\r\n'.encode()
        for method in ('POST', 'HEAD'):
            got = raw(service, request(b'', '/echo', method, origin) + b'GET\r\n\r\n')
            first, second = re.split(rb'(?=HTTP/1.1 400)', got)
            assert b'Allow-Origin' in first and b'Allow-Origin' not in second
            assert b'malformed' in second

    def test_what_is_held(self, live):
        """The body that is answered counts as held, and that of a refused request does not."""
        service = live(serving(holding(make(max_body=100000))))
        sock, refused = live(connect(service)), live(connect(service))
        sock.sendall(request(b'{"args":[]%b}' % (b' ' * 90000), '/hold'))
        assert service.held.acquire(timeout=TIMEOUT)
        assert [one.holds() > 90000 for one in connections_of(service)].count(True) == 1
        refused.sendall(CHUNKED_HEAD + b'15f90\r\n%b\r\nffff\r\n' % (b' ' * 90000))
        assert statuses(receive(refused, b'max_body')) == [413]
        assert sum(one.holds() for one in connections_of(service)) < 91000
        service.release.set()
        assert statuses(receive(sock, b'held')) == [200]

    def test_connection_that_fails(self, monkeypatch, caplog, capfd, live):
        """What fails in a connection's thread is logged, not printed; others go on."""
        service, friend = live(calling())
        with monkeypatch.context() as patch:
            patch.setattr(Listener, 'finish_request', lambda *_: 1 / 0)
            assert raw(service, b'') == b''
        assert friend.send('/echo', 1) == 1
        assert 'a connection failed' in caplog.messages and capfd.readouterr().err == ''

    def test_newcomer_that_is_gone_again(self, monkeypatch, live):
        """A newcomer that is gone before it is accepted costs no idle connection its place."""
        service = live(serving())
        for sock in two_idle(service, live):
            fail_once(monkeypatch, socket.socket, 'accept', BlockingIOError())
            assert statuses(raw(service, request())) == [200]
            sock.sendall(request())
            assert statuses(receive(sock, b'["x"]')) == [200]

    def test_ended_ones_make_no_room(self, live):
        """A connection that is ended already does not count as an idle one that makes room."""
        service = live(serving(max_connections=2))
        _, second = two_idle(service, live)
        min(connections_of(service), key=lambda one: one.idle_since).is_ended = True
        assert statuses(raw(service, request())) == [200]
        assert statuses(receive(second)) == [408]

    def test_turned_away_with_its_request_unread(self, monkeypatch, live):
        """A newcomer that is turned away reads its 503, though its request is unread."""
        service, sent = live(serving(holding(make(max_connections=1)))), threading.Event()
        busy, accept = live(connect(service)), socket.socket.accept
        busy.sendall(request(b'', '/hold'))
        assert service.held.acquire(timeout=TIMEOUT)
        late = lambda listener: sent.wait(TIMEOUT) and accept(listener)  # noqa: E731
        monkeypatch.setattr(socket.socket, 'accept', late)
        newcomer = live(connect(service))
        newcomer.sendall(request())
        sent.set()
        assert statuses(newcomer.recv(65536)) == [503]
        assert newcomer.recv(1) == b''  # not a reset
        service.release.set()

    def test_ages_of_a_burst(self, live, clock):
        """The connections of a burst do not all get old at once."""
        service = live(serving())
        socks = [live(connect(service)) for _ in range(20)]
        until(lambda: len(connections_of(service)) == len(socks))
        ages = {one.retire_at - clock.now for one in connections_of(service)}
        assert len(ages) > 1 and 269 < min(ages) <= max(ages) <= 300


# fmt: off
REFUSED_EVERYWHERE = [
    # status, method, path, headers, body
    (404, 'POST', '/nothing', JSON, b''), (404, 'POST', '/ech', JSON, b'{}'),
    (404, 'POST', '/', JSON, b'{}'), (404, 'POST', '/echo/', JSON, b'{}'),
    (404, 'POST', '/echo?args=1', JSON, b'{}'), (404, 'GET', '/?x', {}, b''),
    (404, 'POST', '/%C3%A4', JSON, b''), (405, 'GET', '/echo', {}, b''),
    (405, 'DELETE', '/echo', JSON, b''), (501, 'BREW', '/echo', JSON, b''),
    (415, 'POST', '/echo', {'Content-Type': 'text/plain'}, b'{}'),
    (415, 'POST', '/echo', {'Content-Type': 'application/x-www-form-urlencoded'}, b'a=1'),
    (400, 'POST', '/echo', JSON, b'{'), (400, 'POST', '/echo', JSON, b'[]'),
    (400, 'POST', '/echo', JSON, b'\xff'), (400, 'POST', '/echo', JSON, b'{"args":[NaN]}'),
    (400, 'POST', '/echo', JSON, b'{"args":{}}'), (400, 'POST', '/echo', JSON, b'{"other":1}'),
    (401, 'POST', '/guarded', JSON, b'{}'), (401, 'POST', '/guarded', JSON, b'{"token":"wrong"}'),
    (403, 'POST', '/echo', {**JSON, 'Origin': 'http://evil.example'}, b'{}'),
    (403, 'GET', '/', {'Origin': 'http://evil.example'}, b''),
    (403, 'POST', '/echo', {**JSON, 'Sec-Fetch-Site': 'cross-site'}, b'{}'),
    (413, 'POST', '/echo', JSON, b'{"args":["%b"]}' % (b'x' * 200)),
    (422, 'POST', '/guarded', JSON, b'{"args":[1],"token":"right"}'),
    (422, 'POST', '/aecho', JSON, b'{"args":[1,2]}'),
    (500, 'POST', '/fail', JSON, b'{"args":["ValueError"]}'),
    (500, 'POST', '/afail', JSON, b'{"args":["ValueError"]}'),
]
# fmt: on

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
        posted, gotten = make(), make()
        posted.typing('/')(make)  # a rule for another method
        gotten.typing('/', methods=['GET'])(lambda: 'mine')
        for service in (make(token=None), make(token='secret'), posted):
            status, fields, reply = ask(service, method, '/', {}, b'')
            assert (status, reply) == (200, body)
            assert (fields['content-type'], fields['content-length']) == ('application/json', '8')
        assert ask(gotten, method, '/', {}, b'')[2] == (b'["mine"]' if method == 'GET' else b'')

    @HOSTS
    def test_head_of_a_rule(self, ask):
        """HEAD of a rule is refused without a body, but with its length."""
        status, fields, reply = ask(make(), 'HEAD', '/echo', {}, b'')
        assert (status, fields['allow'], reply) == (405, 'POST', b'')
        assert int(fields['content-length']) > 0


# ------------------------------------------------------------------------------------- Microservice


@contextlib.contextmanager
def warning(caplog, react):
    """Call *react* in the middle of each warning that is logged during the block."""
    caplog.handler.addFilter(react)
    try:
        yield
    finally:
        caplog.handler.removeFilter(react)


class TestStart:
    def test_start(self):
        """start returns the service, which serves until the end of `with`, and again later."""
        service = counting(Microservice('app1', 0, '127.0.0.1'))
        with service.start() as same:
            assert same is service
            assert re.fullmatch(r'http://127\.0\.0\.1:[0-9]+', service.address)
            raised(RuntimeError, service.start, 0, match=f'serves already, at {service.address}')
            port, friend = port_of(service), Friend('app1', service.address)
            assert friend.send('/count') == 1
        with pytest.raises(RuntimeError, match='does not serve'):
            service.address  # noqa: B018
        with Microservice('app1', 5, '127.0.0.2').start(0, '127.0.0.1') as other:
            assert other.address.startswith('http://127.0.0.1:')
        with service.start(port), friend:
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
        caplog.set_level(logging.WARNING, 'microconnect')
        ask(service)
        assert len(caplog.messages) == 1
        assert capsys.readouterr().err == ''
        service.debug = True
        ask(service)
        assert capsys.readouterr().err.startswith("app1: answered 200: '/echo'")

    @pytest.mark.parametrize('reuse_port', [False, True])
    def test_port_in_use(self, service, reuse_port):
        """A port that is taken is an OSError that names it and says what to do."""
        if reuse_port and not hasattr(socket, 'SO_REUSEPORT'):
            pytest.skip('this system cannot share a port')
        port = port_of(service)
        start = functools.partial(make().start, port, '127.0.0.1', reuse_port=reuse_port)
        raised(OSError, start, match=f'127.0.0.1:{port}: .*another port', errno=errno.EADDRINUSE)
        assert statuses(raw(service, request())) == [200]

    def test_started_twice_at_once(self, monkeypatch, live):
        """If two threads start a service at once, one of them fails: it serves already."""
        service, listen = make(), socket.socket.listen
        entered, go_on = threading.Event(), threading.Event()

        def slowly(*args):
            entered.set()
            go_on.wait(TIMEOUT)
            listen(*args)

        monkeypatch.setattr(socket.socket, 'listen', slowly)
        calls = [live(background(service.start, 0, '127.0.0.1')) for _ in range(2)]
        assert entered.wait(TIMEOUT)
        go_on.set()
        told = [str(error) for error in (call.exception(TIMEOUT) for call in calls) if error]
        service.stop()
        assert len(told) == 1 and 'serves already' in told[0]

    def test_failed(self, monkeypatch, caplog):
        """A start without a thread, or that a signal ends or its handler stops, leaves nothing."""
        service, before = make(token={'/ecko': 'secret'}), resources()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, 'start', lambda self: 1 / 0)
            raised(ZeroDivisionError, service.start, 0, '127.0.0.1')
        service.stop()
        with warning(caplog, lambda record: raise_(KeyboardInterrupt())):
            raised(KeyboardInterrupt, service.start, 0, '127.0.0.1')
        until_released(before)
        stop = functools.partial(warning, caplog, lambda record: service.stop() or True)
        with stop(), background(service.start, 0, '127.0.0.1') as starting:
            starting.result(TIMEOUT)
        until(lambda: not is_serving(service))
        with calling(service) as (_, friend):
            assert friend.ping()

    def test_a_cell_run_again(self, monkeypatch, live):
        """In a notebook a service ends the one of its name that was started there before."""
        port = int(dead_address().rpartition(':')[2])

        def cell(number, name='app1'):
            service = Microservice(name, port, '127.0.0.1')
            service.typing('/f')(lambda: number)
            return service

        first = cell(1)
        first.typing('/other')(lambda: 'kept')
        live(first.start())
        raised(OSError, cell(2).start, match='cannot listen')
        monkeypatch.setattr(sys, 'ps1', '>>> ', raising=False)
        raised(OSError, cell(2, name='another').start, match='cannot listen')
        with serving(cell(3)):
            assert is_serving(first)  # at another port, each lives on
        again = live(cell(4).start())
        assert not is_serving(first)
        friend = live(Friend('app1', again.address, timeout=TIMEOUT))
        assert friend.send('/f') == 4
        raised(UnknownRule, friend.send, '/other')

    def test_the_same_cell_run_again(self, monkeypatch, live):
        """In a notebook a cell that starts the service again, in the same way, returns it."""
        service = live(make().start(0, '127.0.0.1'))
        again = functools.partial(raised, RuntimeError, service.start, 0, match='serves already')
        again('127.0.0.1')
        monkeypatch.setattr(sys, 'ps1', '>>> ', raising=False)
        assert service.start(0, '127.0.0.1') is service
        again('127.0.0.1', True)
        again('localhost')

    def test_what_a_cell_ends(self, monkeypatch, live):
        """A cell ends the older service of its name, host and port alone, and takes nothing."""
        monkeypatch.setattr(sys, 'ps1', '>>> ', raising=False)
        port = int(dead_address().rpartition(':')[2])
        older = live(make(token=SECRET).start(port, '127.0.0.1'))
        elsewhere = live(make().start(port, '127.0.0.2'))
        wrong = functools.partial(make().start, port, '127.0.0.1', ssl_context='x')
        raised(TypeError, wrong)
        assert is_serving(older)
        newer = live(Microservice('app1').start(port, '127.0.0.1'))
        assert not is_serving(older) and is_serving(elsewhere)
        assert newer.rules() == {} and not newer.token

    @pytest.mark.skipif(not sys.platform.startswith('linux'), reason='only Linux spreads calls')
    def test_shared_port(self, live):
        """Two processes that say reuse_port share a port, and both answer."""

        def second(Micro):
            Micro.typing('/who')(lambda: 'second')
            Micro.run(port=int(sys.argv[1]), reuse_port=True)

        service = service_of(lambda: 'first')
        service.typing('/who')(lambda: 'first')
        live(service.start(port=0, host='127.0.0.1', reuse_port=True))
        live(running('-c', program(second), str(port_of(service))))
        friend, seen = live(Friend('both', service.address, timeout=TIMEOUT)), set()
        until(lambda: friend.close() or seen.add(friend.send('/who')) or len(seen) == 2)

    def test_shared_port_is_unsupported(self, monkeypatch):
        """A system without SO_REUSEPORT is an OSError, and nothing listens."""
        monkeypatch.delattr(socket, 'SO_REUSEPORT', raising=False)
        service = make()
        start = functools.partial(service.start, 0, '127.0.0.1', reuse_port=True)
        raised(OSError, start, match='cannot share a port')
        assert not is_serving(service)


OPEN, NO_TOKEN = 'the network can call {} at 0.0.0.0: ', 'token=None, so anyone can call {}: '
WARNINGS = [  # host, options; the warnings
    ('0.0.0.0', {}, [OPEN.format('/echo, /fail')]),
    ('0.0.0.0', {'token': {'/echo': 'secret'}}, [OPEN.format('/fail')]),
    ('0.0.0.0', {'token': 'secret'}, []),
    ('127.0.0.1', {}, []),
    ('127.0.0.1', {'token': None}, [NO_TOKEN.format('/echo, /fail')]),
    ('0.0.0.0', {'token': None}, [one.format('/echo, /fail') for one in (NO_TOKEN, OPEN)]),
    ('0.0.0.0', {'token': 'secret', 'debug': True}, ['debug sends tracebacks to all']),
    ('127.0.0.1', {'debug': True}, []),
]


class TestWarnings:
    @pytest.mark.parametrize('host, options, told', WARNINGS)
    def test_at_start(self, host, options, told, caplog):
        """start warns of rules that anyone can call, of a token that is missing, and of debug."""
        make(**options).start(port=0, host=host).stop()
        assert len(caplog.messages) == len(told)
        assert all(map(str.startswith, caplog.messages, told))

    def test_missing_token_of_a_rule(self, caplog):
        """A rule whose token is None is warned of, until one is set."""
        service = make()
        service.typing('/f', token=os.environ.get('MICROCONNECT_NO_SUCH_VARIABLE'))(int)
        for _ in range(2):
            service.start(port=0, host='127.0.0.1').stop()
            service.token['/f'] = SECRET
        assert [line[:34] for line in caplog.messages] == [NO_TOKEN.format('/f')[:34]]

    def test_no_rules(self, caplog):
        """A service without rules says so when it starts."""
        Microservice('app1').start(port=0, host='127.0.0.1').stop()
        assert [line[:18] for line in caplog.messages] == ['app1 has no rules:']

    @pytest.mark.parametrize('host', ['listener', 'wsgi', 'asgi', 'friend'])
    def test_token_of_no_rule(self, host, caplog):
        """A token without its rule guards nothing: every host warns, and shows no token."""
        misplaced = {SECRET: '/echo'}, 'for it'
        for token, told in (({'/ecko': SECRET}, "'/ecko': did you mean '/echo'?"), misplaced):
            caplog.clear()
            service = make(token=token)
            if host == 'listener':
                service.start(port=0, host='127.0.0.1').stop()
            else:
                Friend('app1', service) if host == 'friend' else getattr(service, host)
            assert caplog.messages == [f'a token is set, but there is no rule {told}']


class TestStop:
    def test_at_any_time(self):
        """stop does nothing before start, and the second time."""
        service = make()
        service.stop()
        with serving(service):
            service.stop()
            service.stop()
            assert not is_serving(service)

    def test_in_a_rule(self, live):
        """A rule may stop its service, as often as it likes: its reply still arrives."""
        stop = lambda: [service.stop() for _ in range(1000)] and 'bye'  # noqa: E731
        service, friend = live(calling(service_of(stop)))
        assert friend.send('/f') == 'bye'
        until(lambda: not is_serving(service))
        raised(Unreachable, friend.send, '/f')

    @needs_signals
    def test_in_a_signal_handler(self, live):
        """A signal handler may stop the service, in the middle of a call of its own thread."""
        live(handling(signal.SIGUSR1, lambda *_: service.stop()))
        kill = functools.partial(os.kill, os.getpid(), signal.SIGUSR1)
        service, friend = live(calling(service_of(lambda: kill() or 'sent')))
        assert friend.send('/f') == 'sent'
        until(lambda: not is_serving(service))  # the handler may come after the reply

    def test_finishes_calls(self, live):
        """stop waits for the calls in flight, whose replies arrive, and refuses new ones."""
        service, friend = live(calling(holding(make())))
        another = Friend('app1', service.address)

        def is_refused():
            another.close()
            try:
                return another.send('/echo', 'new') != 'new'
            except ConnectionError as error:  # ConnectionLost: reset as the port was closed
                return not (error.sent or isinstance(error, ConnectionLost))

        call, sock = live(background(friend.send, '/hold')), live(connect(service))
        sock.sendall(request(b'', '/hold'))
        assert all(service.held.acquire(timeout=TIMEOUT) for _ in range(2))
        stopping = live(background(service.stop))
        until(is_refused)
        assert is_refused() and not call.done() and not stopping.done()
        service.release.set()
        assert (call.result(TIMEOUT), statuses(receive(sock))[0]) == ('held', 200)
        sock.close()
        stopping.result(TIMEOUT)
        raised((Busy, Unreachable), friend.send, '/echo')

    def test_cuts_off(self):
        """A call that outlasts the grace is cut off: its caller gets ConnectionLost."""
        before, service = resources(), holding(make())
        with calling(service) as (_, friend), background(friend.send, '/hold') as call, soon():
            assert service.held.acquire(timeout=TIMEOUT)
            service.stop(grace=0.05)
            raised(ConnectionLost, call.result, TIMEOUT, sent=True)
            service.release.set()
        until_released(before)

    def test_second_stop(self, live):
        """A second stop with a longer grace does not extend the first one."""
        service, friend = live(calling(holding(make())))
        call = live(background(friend.send, '/hold'))
        assert service.held.acquire(timeout=TIMEOUT)
        live(background(service.stop, 0.05))
        until(lambda: is_stopping(service))
        with soon():
            service.stop(grace=TIMEOUT)
        service.release.set()
        raised(ConnectionLost, call.result, TIMEOUT)

    @pytest.mark.parametrize('sent', [request(), request()[:-1], b''], ids=['all', 'half', 'none'])
    def test_answers_those_who_came_last(self, sent, monkeypatch, live):
        """Who connected before stop, and was not accepted by then, is told that nothing ran."""
        accept, held, go_on = socket.socket.accept, threading.Event(), threading.Event()

        def slowly(listener):
            held.set()
            assert go_on.wait(TIMEOUT)
            return accept(listener)

        service = live(serving())
        monkeypatch.setattr(socket.socket, 'accept', slowly)
        socks = [live(connect(service)) for _ in range(20)]
        for sock in socks:
            sock.sendall(sent)
        assert held.wait(TIMEOUT)
        stopping = live(background(service.stop))
        until(lambda: is_stopping(service))
        go_on.set()
        got = [statuses(receive(sock)) for sock in socks]
        stopping.result(TIMEOUT)
        assert all(told in ([408], [503]) for told in got), got
        assert service.ran == []

    def test_under_newcomers(self, monkeypatch, live):
        """stop ends though new connections come all the time."""
        monkeypatch.setattr(Listener, 'request_queue_size', 100)  # not 1,024
        service, started = live(serving()), threading.Event()
        address = ('127.0.0.1', port_of(service))

        def knock():
            while is_serving(service):
                with contextlib.suppress(OSError):
                    # Linux may lose one as the port closes: it would try again after 1 s.
                    socket.create_connection(address, 0.05).close()
                    started.set()

        for _ in range(4):
            live(background(knock))
        assert started.wait(TIMEOUT)
        with soon():
            service.stop()

    @pytest.mark.usefixtures('each_way')
    def test_releases_everything(self):
        """After stop no thread and no descriptor is left, with clients still connected."""
        Friend('app1', make_async()).send('/aecho', 1)  # the loop of a process stays
        before, service = resources(), make()
        with contextlib.ExitStack() as stack:
            stack.callback(service.stop)
            service.start(port=0, host='127.0.0.1')
            friend = stack.enter_context(Friend('app1', service.address))
            assert friend.send('/echo', 1) == 1
            socks = [stack.enter_context(connect(service)) for _ in range(10)]
            for sock in socks[::2]:
                sock.sendall(request()[:-1])
            assert statuses(raw(service, request())) == [200]
            service.stop(grace=2)
            assert [receive(sock).count(b'HTTP/1.1 408 ') for sock in socks] == [1] * 10
        for _ in range(3):  # nor if it was only called in process, and is never stopped
            assert Friend('app1', make_async()).send('/aecho', 1) == 1
        gc.collect()
        until_released(before)

    def test_what_is_not_in_progress(self, caplog, live):
        """A call whose reply has left is not in progress any more."""
        caplog.set_level('INFO', 'microconnect')
        service, friend = live(calling())
        for number in range(5):
            friend.send('/echo', number)
            assert not connections_of(service, 'answering')
        service.stop()
        assert 'app1 stops' in caplog.messages


def broken_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, 'w')


NO_STDOUT = {  # what stands in the way of the announcement
    'closed': lambda: (stream := io.StringIO()).close() or stream, 'none': lambda: None,
    'full': functools.partial(open, '/dev/full', 'w'), 'broken': broken_pipe,
    'narrow': lambda: io.TextIOWrapper(io.BytesIO(), 'cp1252'),
}  # fmt: skip


def woken(process, seconds):
    """How many times the threads of *process* go to sleep anew within *seconds*."""

    def sleeps():
        statuses = Path(f'/proc/{process.pid}/task').glob('*/status')
        texts = '\n'.join(status.read_text() for status in statuses)
        return sum(map(int, re.findall(r'\nvoluntary_ctxt_switches:\s+([0-9]+)', texts)))

    before = sleeps()
    threading.Event().wait(seconds)
    return sleeps() - before


def slow_service(Micro):
    """It takes a call of /hold, and answers it once something is written to its stdin."""
    Micro.typing('/hold')(lambda: print('called', flush=True) or (os.read(0, 1) and 'held'))
    Micro.run()


@contextlib.contextmanager
def called():
    """`slow_service` in the middle of a call; gives its process, its address, and the call."""
    with running('-W', 'error', '-c', program(slow_service)) as process:
        address = announced(process)
        friend = Friend('app1', address, timeout=TIMEOUT)
        with friend, background(friend.send, '/hold') as call:
            assert process.stdout.readline() == b'called\n'
            yield process, address, call


class TestRun:
    def test_announcement(self, capsys):
        """run prints where it listens, and what address to give to a friend here."""
        service = make(token=SECRET)
        with background(functools.partial(service.run, port=0, host='0.0.0.0')):
            until(lambda: is_serving(service))
            address = service.address
            is_there = is_answering(address)
            service.stop()
        assert is_there
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
            is_there = is_answering(service.address)
            service.stop()
            assert is_there and running.result(TIMEOUT) is None
        with contextlib.suppress(AttributeError, OSError):
            stdout.close()

    def test_stdout_closed_by_the_parent(self, live):
        """A service serves though it was started without a standard output."""

        def unannounced(Micro):
            Micro.typing('/stop')(lambda: Micro.stop() or 'bye')
            os.close(1)  # as by the parent: what is opened next has its number
            Micro.run(port=int(sys.argv[1]))
            print('ended', file=sys.stderr, flush=True)
            os._exit(0)  # or Python itself complains of what it cannot flush

        address = dead_address()
        process = live(running('-c', program(unannounced), address.rpartition(':')[2]))
        friend = live(Friend('app1', address, timeout=TIMEOUT))
        friend.wait(TIMEOUT)
        assert friend.send('/stop') == 'bye'
        assert outcome(process) == (0, [], 'ended\n')

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

    def test_no_descriptor_left(self, monkeypatch):
        """run that lacks a descriptor raises, and leaves nothing that serves."""
        service, real = make(), socket.socketpair

        def socketpair():
            of_run = sys._getframe(1).f_code.co_name == 'run'
            return raise_(OSError(errno.EMFILE, 'none is left')) if of_run else real()

        monkeypatch.setattr(socket, 'socketpair', socketpair)
        raised(OSError, service.run, 0, '127.0.0.1', match='none is left')
        assert not is_serving(service)

    @pytest.mark.skipif(sys.platform != 'linux', reason='only Linux counts what a process does')
    def test_idle(self, live):
        """While nobody calls, run, start, and a friend with a kept connection wake nothing."""

        def idle_pair(Micro):
            other = Microservice('app2')
            other.typing('/f')(lambda: 7)
            friend = Friend('app2', other.start(0, '127.0.0.1').address)
            Micro.typing('/ask')(lambda: friend.send('/f'))
            Micro.run()

        process = live(running('-W', 'error', '-c', program(idle_pair)))
        friend = live(Friend('app1', announced(process), timeout=TIMEOUT))
        assert (friend.send('/echo', 7), friend.send('/ask')) == (7, 7)
        woken(process, 0.02)  # until its threads sleep
        until(lambda: woken(process, 0.2) == 0)

    @needs_signals
    def test_signal(self):
        """A signal finishes the call in flight, refuses others, and says what is awaited."""
        with called() as (process, address, call):
            process.send_signal(signal.SIGINT)
            told = process.stdout.readline().decode()
            assert told.startswith('app1 stops on SIGINT: 1 call in progress, up to 10 s')
            until(lambda: not is_answering(address))
            threading.Event().wait(0.05)  # in which it would be cut off
            assert not call.done()
            process.stdin.write(b'.')
            process.stdin.flush()
            assert call.result(TIMEOUT) == 'held'
            assert outcome(process) == (0, [], '')

    @needs_signals
    def test_second_signal(self):
        """A second signal ends the service at once."""
        with called() as (process, address, call):
            process.send_signal(signal.SIGTERM)
            until(lambda: not is_answering(address))
            process.send_signal(signal.SIGINT)
            raised(ConnectionLost, call.result, TIMEOUT)
            code, _, complaint = outcome(process)
            assert (code, complaint) == (0, '')


# -------------------------------------------------------------------------------------------- shell


APP = """
from microconnect import Microservice
Micro = Microservice(__name__)

@Micro.typing('/divide')
def divide(a, b, *, floor=False):
    'Divide a by b (\\xf7).'
    return divmod(a, b) if floor else a / b

@Micro.typing('/echo', token='s3cret-token', methods=('GET', 'POST'))
def echo(*args, **kwargs):
    return (args, kwargs) if kwargs or len(args) != 1 else args[0]

@Micro.typing('/lines')
def lines():
    raise ValueError('one\\ntwo')
"""

LISTED = """\
/divide(a, b, *, floor=False)            Divide a by b (\xf7).
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
    ('send URL /echo', 1, '', 'microconnect: /echo at URL: /echo needs a token... signs nothing'),
    ('send URL /f a=1 a=2', 2, '', 'microconnect: a is given twice\n'),
    ('send URL /f -x', 2, '', 'usage: ... write -- before words that begin with -'),
    ('--token s3cret-token URL /echo text', 0, '"text"', ''),
    ('--token s3cret-token URL /echo --raw text', 0, 'text', ''),
    ('--token s3cret-token URL /echo --raw ""', 0, '\n', ''),
    ('--token s3cret-token URL /echo --raw [1,"a"]', 0, '[1, "a"]', ''),
    ('--token s3cret-token URL /echo True', 0, 'true', ''),
    ('--token s3cret-token URL /echo a=False b=None', 0, '[[], {"a": false, "b": null}]', ''),
    ('--token s3cret-token URL /echo "True"', 0, '"True"', ''),
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
    ('send URL /f --header bad', 2, '', "microconnect: a header is such as 'X-Api-Key: ...'\n"),
    ('send URL /f --timeout 0', 2, '', 'microconnect: timeout is a number'),
    ('ping URL --cacert missing.pem', 2, '', 'usage: ... unrecognized arguments: --cacert'),
    ('serve nothing.py', 2, '', 'usage: ... there is no module nothing in '),
    ('serve nothing:Micro', 2, '', 'usage: ... there is no module nothing in '),
    ('serve app1:echo', 2, '', 'usage: ... name one of app1:Micro'),
    ('serve app2.py', 2, '', 'usage: ... name one of app2.py:A, app2.py:B'),
    ('serve json', 2, '', 'usage: ... there is no Microservice in json'),
    ('serve :', 2, '', 'usage: ... there is no module : in '),
    ('serve app1.py --host http://127.0.0.1', 2, '', "microconnect: host must be like '127.0.0.1'"),
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
            ended = shell(words)
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
        assert shell(['rules', service.address]) == 1
        assert "Micro.typing('/rules')(Micro.rules)" in capsys.readouterr().err

    def test_other_rules(self, capsys, live):
        """A rule of that name that gives something else is not taken for a list."""
        service = live(serving(Microservice('app1')))
        service.typing('/rules')(lambda: ['a', 'b'])
        assert shell(['rules', service.address]) == 1
        assert 'is not a list of rules' in capsys.readouterr().err

    def test_token_of_the_environment(self, app, monkeypatch, capsys):
        """The token is taken from the environment, so that no list of processes shows it."""
        monkeypatch.setenv('MICROCONNECT_TOKEN', SECRET)
        assert shell(['send', app.address, '/echo', '1']) == 0
        monkeypatch.setattr(sys, 'stdin', None)  # then - stands for an empty text
        assert shell(['send', app.address, '/echo', '-']) == 0
        assert capsys.readouterr().out == '1\n""\n'

    def test_certificate(self, tls_service, tmp_path, monkeypatch, capsys):
        """SSL_CERT_FILE in the environment says which certificate to trust, as the error does."""
        (tmp_path / 'ca.pem').write_text(CERTIFICATE)
        words = ['send', by_name(tls_service), '/echo', '1']
        assert shell(words) == 1
        assert 'SSL_CERT_FILE' in capsys.readouterr().err
        monkeypatch.setenv('SSL_CERT_FILE', str(tmp_path / 'ca.pem'))
        assert shell(words) == 0 and capsys.readouterr().out == '1\n'

    @needs_signals
    @pytest.mark.parametrize('target', ['app1:Micro', 'app1.py', 'app1.py:Micro'])
    def test_serve(self, target, folder, live):
        """serve runs the service of a module or file until a signal, with the options given."""
        command = ['-m', 'microconnect', 'serve', target, '--port', '0', '--host', '127.0.0.1']
        process = live(running(*command, '--debug', '--reuse-port', folder=folder))
        friend = live(Friend('app1', announced(process), timeout=TIMEOUT))
        assert 'app1.py' in raised(ValueError, friend.send, '/lines').traceback
        process.send_signal(signal.SIGTERM)
        code, _, said = outcome(process)
        assert code == 0
        assert "app1: answered 500: '/lines' from '127.0.0.1:" in said

    def test_module_that_fails(self, tmp_path):
        """What a module raises as it is imported is shown as Python shows it."""
        (tmp_path / 'app1.py').write_text('int("x")')
        with running('-m', 'microconnect', 'serve', 'app1.py', folder=tmp_path) as process:
            code, _, said = outcome(process)
        assert code == 1
        assert 'Traceback' in said and 'app1.py' in said and said.rstrip().endswith("'x'")

    def test_module_that_imports_a_missing_one(self, tmp_path, monkeypatch):
        """A module that is missing in the one to be served is told as Python tells it."""
        (tmp_path / 'app8.py').write_text('import no_such_module')
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'path', list(sys.path))
        raised(ModuleNotFoundError, shell, ['serve', 'app8'], match='no_such_module')

    def test_what_a_terminal_obeys(self, capsys, live):
        """Nothing that a service says reaches the terminal as a control character."""
        facts = {'signature': '()', 'doc': 'a\x1b[2Jb', 'methods': ['POST'], 'token': False}
        service = live(serving(Microservice('app1')))
        service.typing('/rules')(lambda: {'/\x1b[31m': facts})
        assert shell(['rules', service.address]) == 0
        raised(SystemExit, shell, ['send', service.address, '/x\x1b[2J', '--z\x1b'])
        assert shell(['send', service.address, '/x\x1b[2J']) == 1
        out, err = capsys.readouterr()
        assert out == '/ [31m()  a [2Jb\n'
        service.typing('/f')(lambda: 'a\x9b\x7f\u202e\u200fb\xe9')
        assert shell(['send', service.address, '/f']) == 0
        assert capsys.readouterr().out == '"a\\u009b\\u007f\\u202e\\u200fb\xe9"\n'
        assert '\x1b' not in err.splitlines()[-1]

    def test_interrupted(self, monkeypatch):
        """Ctrl-C ends a command as a shell expects."""
        monkeypatch.setattr(Friend, 'send', lambda *_: signal.default_int_handler(2, None))
        assert shell(['send', '127.0.0.1:1', '/f']) == 130

    @pytest.mark.parametrize('coding', ['ascii', 'latin-1', 'utf-8'])
    def test_narrow_stdout(self, coding, app, monkeypatch):
        """The JSON that is printed is JSON under any encoding of stdout; rules are listed, too."""
        written = io.BytesIO()
        monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(written, coding, newline='\n'))
        text = 'a\xfc\u20ac\U0001f600\ud800'
        words = ['send', app.address, '/echo', json.dumps(text), '--token', SECRET]
        assert [shell(words), shell(['rules', app.address])] == [0, 0]
        sys.stdout.flush()
        first, rules = written.getvalue().decode(coding).split('\n', 1)
        assert json.loads(first) == text and '/lines()\n' in rules

    @pytest.mark.parametrize('words', [['--help'], ['send', '--help'], ['serve', '-h']], ids=str)
    def test_help(self, words, capsys):
        """--help tells the usage, and shows examples; --version tells the version."""
        raised(SystemExit, shell, words, code=0)
        printed = capsys.readouterr().out
        assert printed.startswith('usage: ')
        assert (' send http://127.0.0.1:5000 /helloworld' in printed) == (words == ['--help'])
        raised(SystemExit, shell, ['--version'], code=0)
        assert capsys.readouterr().out == f'{microconnect.__version__}\n'

    def test_options_of_a_call(self, live, capsys):
        """--method and --header go with the call."""
        address = live(peer(answers(response(), got=(got := []))))
        headers = ('--header', 'X-Api-Key: a: b', '--header', 'X-Two:2')
        assert shell(['send', address, '/f', '--method', 'PUT', *headers]) == 0
        assert capsys.readouterr().out == '"x"\n'
        head = got[0].partition(b'\r\n\r\n')[0].decode().split('\r\n')
        assert head[0] == 'PUT /f HTTP/1.1' and {'X-Api-Key: a: b', 'X-Two: 2'} <= set(head)

    def test_wide_rules(self, live, capsys):
        """The list of rules is padded to a bounded width."""
        facts = {'signature': '()', 'doc': 'd', 'methods': ['POST'], 'token': False}
        service = live(serving(Microservice('app1')))
        service.typing('/rules')(lambda: {'/' + 'x' * 100000: facts, '/a': facts})
        assert shell(['rules', service.address]) == 0
        assert len(capsys.readouterr().out) < 100200

    def test_broken_pipe(self, live):
        """Where nobody reads the output a command ends with 1, and says nothing."""
        service = live(serving(service_of(lambda: 'x' * 1000000)))
        command = [sys.executable, microconnect.__file__, 'send', service.address]
        service.typing('/small')(lambda: 'x')
        for rule in ('/f', '/small'):
            ours, theirs = os.pipe()
            os.close(ours)
            how = {'env': {**os.environ, 'PYTHONUNBUFFERED': ''}, 'timeout': 3 * TIMEOUT}
            how.update(stdout=theirs, stderr=subprocess.PIPE)
            done = subprocess.run([*command, rule], **how)
            os.close(theirs)
            assert (done.returncode, done.stderr) == (1, b'')

    @needs_signals
    def test_closed_input(self, live):
        """- with a closed standard input is an empty text."""
        words = [sys.executable, microconnect.__file__, 'send', live(serving()).address]
        command = f'exec {" ".join(map(shlex.quote, words))} /echo - <&-'
        done = subprocess.run(['sh', '-c', command], stdout=subprocess.PIPE, timeout=3 * TIMEOUT)
        assert (done.returncode, done.stdout) == (0, b'""\n')
