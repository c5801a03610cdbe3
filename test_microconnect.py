"""The tests of microconnect: ``python -m pytest -q``.

In the order of the module: values, messages, rules and tokens (in process, no socket), then the
listener (raw bytes), the friend (against services that misbehave), both together, the other
hosts, and what the documents promise.  Sockets are real, on port 0 of 127.0.0.1.
"""

import asyncio
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
import fractions
import functools
import gc
import importlib.util
import inspect
import io
import itertools
import json
import logging
import math
import os
import pathlib
import pickle
import pprint
import random
import re
import runpy
import select
import shutil
import signal
import socket
import socketserver
import ssl
import string
import struct
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import types
import typing
import urllib.request
import uuid
import warnings
import wsgiref.simple_server
import wsgiref.util
import wsgiref.validate
from pathlib import Path

import pytest

import microconnect
from microconnect import Friend, Microservice

TIMEOUT = 10  # seconds: no test waits longer for anything
microconnect._Listener.timeout = 0.005  # seconds: hundreds of services are stopped here


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


@contextlib.contextmanager
def serving(service=None, **options):
    """A service on a free port of loopback, stopped in any case."""
    service = service or make(**options)
    service.start(port=0, host='127.0.0.1')
    try:
        yield service
    finally:
        service.stop(grace=2)


def port_of(service):
    return int(service.address.rpartition(':')[2])


def connect(service):
    return socket.create_connection(('127.0.0.1', port_of(service)), TIMEOUT)


def request(body=b'{"args":["x"]}', path='/echo', method='POST', extra=b'', version=b'1.1'):
    """The bytes of a request."""
    head = b'%b %b HTTP/%b\r\nHost: localhost\r\nContent-Type: application/json\r\n'
    head = head % (method.encode(), path.encode(), version)
    return head + b'Content-Length: %d\r\n%b\r\n%b' % (len(body), extra, body)


def raw(service, data, end=True):
    """Send *data*, and give all that comes back until the service closes."""
    with connect(service) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)
        got = b''
        with contextlib.suppress(ConnectionResetError):
            while True:
                part = sock.recv(65536)
                if not part:
                    break
                got += part
        return got


def statuses(got):
    """The status of each reply in *got*."""
    return [int(status) for status in re.findall(rb'HTTP/1\.1 (\d{3}) ', got)]


@contextlib.contextmanager
def answering(*replies, then_close=True):
    """A peer that answers each connection's first request with the next of *replies* (bytes).

    Gives its address and the list of requests it got.
    """
    listener = socket.create_server(('127.0.0.1', 0)) if hasattr(socket, 'create_server') else None
    if listener is None:  # Python 3.7
        listener = socket.socket()
        listener.bind(('127.0.0.1', 0))
        listener.listen(16)
    listener.settimeout(TIMEOUT)
    got, kept = [], []

    def serve():
        for reply in replies:
            peer, _ = listener.accept()
            kept.append(peer)
            peer.settimeout(TIMEOUT)
            with contextlib.suppress(OSError):
                data = head = body = b''
                length = 0
                while not head or len(body) < length:
                    part = peer.recv(65536)
                    if not part:
                        return
                    data += part
                    head, _, body = data.partition(b'\r\n\r\n')
                    if head != data:
                        told = head.lower().partition(b'content-length:')[2]
                        length = int(told.split(b'\r\n')[0] or 0)
                    else:
                        head = b''
                got.append((head, body))
                peer.sendall(reply)
            if then_close:
                peer.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{listener.getsockname()[1]}', got
    finally:
        while thread.is_alive():  # it may wait for a connection that was never made
            with contextlib.suppress(OSError):
                socket.create_connection(listener.getsockname(), TIMEOUT).close()
            thread.join(0.1)
        listener.close()
        for peer in kept:
            peer.close()


JSON = {'Content-Type': 'application/json'}
OK_HEAD = microconnect._parse_reply(b'HTTP/1.1 200 OK\r\nContent-Type: application/json')


def ask(service, body=b'', path='/echo', method='POST', **headers):
    """Ask in process: the status, the headers and the decoded body of the reply."""
    headers = {**JSON, **{name.replace('_', '-'): value for name, value in headers.items()}}
    status, fields, reply = service.answer(method, path, headers, body)
    return status, dict(fields), json.loads(reply.decode())


def ok(body, kind='application/json', status='200 OK', extra=''):
    """The bytes of a reply, as another implementation may write it."""
    head = f'HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n'
    return f'{head}{extra}\r\n'.encode() + body


def friend_of(function, rule='/f', **options):
    """A friend of a service in this process that has *function* under *rule*."""
    service = Microservice('app1', **options)
    service.typing(rule)(function)
    return Friend('app1', service)


# ---------------------------------------------------------------------------------------- errors

ERRORS = [  # class, builtin it is too, sent, status
    ('MicroconnectError', Exception, False, None),
    ('Unreachable', ConnectionError, False, None),
    ('ConnectionLost', ConnectionError, True, None),
    ('CallTimeout', TimeoutError, True, None),
    ('BadReply', ValueError, True, None),
    ('BadCall', ValueError, False, 400),
    ('BadArguments', TypeError, False, 422),
    ('Forbidden', PermissionError, False, 401),
    ('UnknownRule', LookupError, False, 404),
    ('TooLarge', ValueError, False, 413),
    ('Busy', ConnectionError, False, 503),
    ('RemoteError', Exception, True, 500),
]
STATUSES = [  # the statuses that a reply tells an error by
    ('BadCall', (400, 411, 414, 415, 417, 505)),
    ('BadArguments', (422,)),
    ('Forbidden', (401, 403)),
    ('UnknownRule', (404, 405, 501)),
    ('TooLarge', (413, 431)),
    ('Busy', (408, 503)),
    ('RemoteError', (500,)),
    ('BadReply', (201, 204, 302, 418, 429, 502, 504)),  # not from a service of this kind
]
RAISED = sorted(
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
)
NEVER = ['StopIteration', 'StopAsyncIteration', 'ExceptionGroup', 'BaseExceptionGroup']
ODD = NEVER + ['SystemExit', 'KeyboardInterrupt', 'GeneratorExit', 'BaseException', 'Nonsense', '']
ODD += ['print', 'int', '__name__', 'json.JSONDecodeError', 'é\0\ud800', 'x' * 10000]


def raised(name, message='why', **facts):
    """The error for a reply that tells of an exception."""
    told = {'detail': f'{name}: {message}', 'exception': dict(type=name, message=message, **facts)}
    return microconnect._error_from_reply(500, json.dumps(told).encode())


def copies(error):
    yield copy.copy(error)
    yield copy.deepcopy(error)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(error, protocol))


class TestErrors:
    @pytest.mark.parametrize('name, builtin, sent, status', ERRORS)
    def test_classes(self, name, builtin, sent, status):
        """Each class is a MicroconnectError and a builtin, and knows `sent` and its status."""
        kind = getattr(microconnect, name)
        error = kind('why')
        assert issubclass(kind, microconnect.MicroconnectError)
        assert isinstance(error, builtin)
        assert (error.sent, error.status, error.rule, error.address) == (sent, status, None, None)
        assert str(error) == 'why'
        assert str(kind()) == ''
        assert kind.__doc__

    def test_no_builtin_is_shadowed(self):
        """No public name is one of the builtins."""
        assert not set(microconnect.__all__) & set(vars(builtins))

    @pytest.mark.parametrize('name', [name for name, *_ in ERRORS])
    def test_copies_keep_all(self, name):
        """A pickled or copied error keeps its class, message and attributes."""
        error = getattr(microconnect, name)('why é', status=499, sent=True, allow='GET')
        error.at('/rule', 'http://host')
        for again in copies(error):
            assert type(again) is type(error)
            assert str(again) == '/rule at http://host: why é'
            assert vars(again) == vars(error)
            assert (again.rule, again.address, again.status) == ('/rule', 'http://host', 499)

    @pytest.mark.parametrize('name, statuses', STATUSES)
    def test_status_to_error(self, name, statuses):
        """Each status a reply can have is one error, with that status and the detail."""
        kind = getattr(microconnect, name)
        for status in statuses:
            for body in (b'', b'<h1>no</h1>', b'\xff', b'[1]', b'{}', b'{"detail": null}'):
                error = microconnect._error_from_reply(status, body)
                assert (type(error), error.status, error.sent) == (kind, status, kind.sent)
                assert str(error).startswith(f'the service answered {status}, without saying why')
            told = microconnect._error_from_reply(status, b'{"detail": "why"}')
            assert (type(told), str(told)) == (kind, 'why')

    @pytest.mark.parametrize('name', [name for name in RAISED if name not in NEVER])
    def test_remote_error_is_the_builtin(self, name):
        """What a builtin exception is raised as is caught as that builtin exception too."""
        error = raised(name)
        with pytest.raises(getattr(builtins, name)) as caught:
            raise error
        assert isinstance(caught.value, microconnect.RemoteError)
        assert (error.type, str(error), error.sent) == (name, f'{name}: why', True)
        assert 'why' in repr(error)
        for again in copies(error.at('/f', 'app1')):
            assert type(again) is type(error)
            assert isinstance(again, getattr(builtins, name))
            assert (str(again), vars(again)) == (f'/f at app1: {name}: why', vars(error))

    @pytest.mark.parametrize('name', RAISED)
    def test_remote_error_is_printed(self, name):
        """The printed traceback of any remote error has its message."""
        error = raised(name)
        assert f'{name}: why' in ''.join(traceback.format_exception(type(error), error, None))

    @pytest.mark.parametrize('name', ODD, ids=lambda name: ascii(name)[:20])
    def test_odd_names_are_safe(self, name):
        """A name that is no usable builtin exception makes a RemoteError and nothing else."""
        error = raised(name, traceback='File ...')
        assert type(error) is microconnect.RemoteError
        assert (error.type, error.traceback) == (name, 'File ...')
        for again in copies(error):
            assert type(again) is microconnect.RemoteError
            assert vars(again) == vars(error)

    @pytest.mark.parametrize(
        'told', [None, 7, [], {}, {'type': 7}, {'type': None}, {'type': ['ValueError']}]
    )
    def test_malformed_exception_member(self, told):
        """An `exception` member of the wrong shape is still a RemoteError."""
        body = json.dumps({'detail': 'why', 'exception': told}).encode()
        error = microconnect._error_from_reply(500, body)
        assert type(error) is microconnect.RemoteError
        assert str(error) == 'why'
        assert isinstance(error.type, str)

    def test_end_to_end(self):
        """A rule's exception arrives with rule, address, status, type and message."""
        with pytest.raises(KeyError) as caught:
            Friend('app1', make()).send('/fail', 'KeyError', 'name é')
        error = caught.value
        assert str(error) == "/fail at app1 (in process): KeyError: 'name é'"
        assert (error.rule, error.address) == ('/fail', 'app1 (in process)')
        assert (error.status, error.type, error.sent) == (500, 'KeyError', True)
        assert error.traceback is None


# ---------------------------------------------------------------------------------------- values


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
    (Holder(b=1, a=Colour.RED), '{"a":"red","b":1}'),
    (types.SimpleNamespace(b=1, a=2, _c=3), '{"a":2,"b":1}'),
    (ValueError('why', 7), '{"args":["why",7]}'),
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
    (lambda: io.StringIO('a\nb'), '["a\\n","b"]'),
]


def cycle():
    value = {'list': []}
    value['list'].append(value)
    return value


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def object_cycle():
    value = Holder(items=[1])
    value.items.append(value)
    return value


NO_JSON = 'Out of range float values are not JSON compliant'
REFUSED = [  # what no JSON says, where in it, why, as which error
    (cycle(), "['list'][0]: holds itself", ValueError),
    (object_cycle(), '.items[1]: holds itself', ValueError),
    (make, ': function has no JSON form', TypeError),
    ([1, 2, {'k': (0, len)}], "[2]['k'][1]: builtin_function_or_method has no", TypeError),
    (Holder(items=[0, 1, 2, make]), '.items[3]: function has no JSON form', TypeError),
    (
        Holder(a=Holder(b={1: Broken()})),
        '.a.b[1]: its items raised LookupError: no items',
        ValueError,
    ),
    (Line([Point(1), Point(math.nan)]), f'.ends[1].y: {NO_JSON}', ValueError),
    ({'a': {(1, 2): 3}}, "['a']: a key is a tuple, and the keys of JSON are strings", TypeError),
    ([{b'k': 1}], '[0]: a key is a bytes, and the keys of JSON are strings', TypeError),
    ({Colour.RED: 1}, ': a key is a Colour, and the keys of JSON are strings', TypeError),
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
    (Broken(), ': its items raised LookupError: no items', ValueError),
    (deep(100000), ': nested too deeply', ValueError),
]
DEEP = 100000
# fmt: off
BAD_JSON = [
    b'NaN', b'[NaN]', b'[Infinity]', b'[-Infinity]', b'undefined', b' ',
    b'\xff', b'["\xff"]', b'["\xc3"]', b'["\xed\xa0\x80"]', b'["\n"]', b'["\\x"]', b'[\x00]',
    b'\xef\xbb\xbf[1]', '[1]'.encode('utf-16'), '[1]'.encode('utf-32'),
    b'[' * DEEP, b'{"a":' * DEEP, b'[' * DEEP + b']' * DEEP,
    b'[1', b'["a', b'[1,]', b'[1] [2]', b'[1]x', b'{"args": [1}', b"{'args': [1]}",
    b'[01]', b'[1.]', b'[+1]', b'[0x1]', b'// c\n[1]',
]
# fmt: on


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
        """What a function returns, and what is sent to it, has the JSON form of the table."""
        friend = friend_of(lambda *args: value)
        assert friend._places[0].micro.answer('POST', '/f', JSON)[2].decode() == f'[{text}]'
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

    @pytest.mark.parametrize('value, why, kind', REFUSED, ids=[why for _, why, _ in REFUSED])
    def test_refused_as_reply(self, value, why, kind):
        """A returned value without a JSON form is an error of the function, with its path."""
        with pytest.raises(microconnect.RemoteError) as caught:
            friend_of(lambda: value).send('/f')
        assert isinstance(caught.value, kind)
        told = str(caught.value).partition(f'{kind.__name__}: reply[0]')[2]
        if why == ': nested too deeply':
            assert told.endswith(f'...{why}')
            assert len(told) < 100
        else:
            assert told.startswith(why)

    @pytest.mark.parametrize('value, why, kind', REFUSED, ids=[why for _, why, _ in REFUSED])
    def test_refused_as_argument(self, value, why, kind):
        """An argument without a JSON form is a BadCall with its path, and nothing is sent."""
        service = make()
        friend = Friend('app1', service)
        for call in (
            lambda: friend.send('/echo', 'x', value),
            lambda: friend.send('/echo', key=value),
        ):
            with pytest.raises(microconnect.BadCall) as caught:
                call()
            assert why.lstrip(':') in str(caught.value)
            assert not caught.value.sent
            assert caught.value.rule == '/echo'
        assert "kwargs['key']" in str(caught.value)
        assert service.ran == []

    def test_refused_deep_in_the_stack(self):
        """A value nested too deeply is a BadCall however little of the stack is left."""
        friend = Friend('app1', make())

        def call(depth):
            return call(depth - 1) if depth else friend.send('/echo', deep(100000))

        for depth in range(0, 700, 50):
            with pytest.raises(microconnect.BadCall, match='nested too deeply'):
                call(depth)

    def test_several_values_refused(self):
        """The path counts the returned values."""
        with pytest.raises(TypeError, match=r'reply\[1\]\[0\]: _thread.lock has no JSON form'):
            friend_of(lambda: (1, [threading.Lock()], 3)).send('/f')

    @pytest.mark.skipif(not hasattr(sys, 'get_int_max_str_digits'), reason='integers are unlimited')
    def test_huge_integers(self):
        """An integer beyond the interpreter's limit of digits is an error with its path."""
        with pytest.raises(microconnect.BadCall, match=r'args\[0\]\[1\]: Exceeds the limit'):
            Friend('app1', make()).send('/echo', [0, 10**5000])
        with pytest.raises(microconnect.RemoteError, match=r'reply\[0\]: Exceeds the limit'):
            friend_of(lambda: 10**5000).send('/f')
        status, _, problem = ask(make(), b'{"args": [%b]}' % (b'1' * 5000))
        assert (status, problem['detail'][:24]) == (400, 'the body is not JSON: Ex')

    def test_random_round_trip(self):
        """Nested plain values arrive as they were sent, seeded at random."""
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

    @pytest.mark.parametrize('body', BAD_JSON, ids=lambda body: ascii(body[:20]))
    def test_bad_json(self, body):
        """What is not strict JSON in UTF-8 is refused, by the service and by the friend."""
        service = make()
        status, headers, problem = ask(service, body)
        assert status == 400
        assert problem['detail'].startswith('the body is not JSON: ')
        assert headers['Content-Type'] == 'application/problem+json'
        wrapped = ask(service, b'{"args": ' + body + b'}')
        assert wrapped[0] == 400
        assert service.ran == []
        with pytest.raises(microconnect.BadReply, match='the reply is not JSON: '):
            microconnect._returned(OK_HEAD, body)


# -------------------------------------------------------------------------------------- messages

WIRE = [  # args, kwargs, token, the body a friend sends
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
OTHERS = [  # bodies that others send, and what they call with
    (b'{"args": ["x", 1], "kwargs": {"k": 2}, "token": null}', ('x', 1), {'k': 2}),  # requests
    (b'{"args": ["x"], "kwargs": {}, "token": "unasked"}', ('x',), {}),
    (b'{"token": null, "kwargs": {}, "args": ["x"]}', ('x',), {}),
    (b'\r\n{\t"args" :\n[ "x" ] }\n', ('x',), {}),
    ('{"args": ["é"]}'.encode(), ('é',), {}),
    (b'{"kwargs": {"k": 1}}', (), {'k': 1}),
    (b'{"token": null}', (), {}),
    (b'{}', (), {}),
    (b'', (), {}),
    (b'{"args": [1], "args": [2]}', (2,), {}),
    (b'{"args": ["\\ud800"], "kwargs": {"\\udfff": 1}}', ('\ud800',), {'\udfff': 1}),
]
RETURNS = [  # what a function returns, the reply's body, what `send` gives
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
REPLIES = [  # bodies that others reply with, and what `send` gives
    (b'[7]\n', 7),
    (b'[\n  1, \n  "b", \n  null\n]\n', (1, 'b', None)),
    (b'[ [ 1, 2 ] ]', [1, 2]),
    (b' [ ] ', ()),
    ('["é"]'.encode(), 'é'),
    (b'[null]\r\n', None),
]
NO_REPLIES = [  # content type, further header, body, message
    ('application/json', '', b'{}', 'the reply is not an array of the returned values'),
    ('application/json', '', b'7', 'the reply is not an array of the returned values'),
    ('application/json', '', b'null', 'the reply is not an array of the returned values'),
    ('application/json', '', b'"[1]"', 'the reply is not an array of the returned values'),
    ('application/json', '', b'', 'the reply is not JSON: '),
    ('application/json', '', b'[1', 'the reply is not JSON: '),
    ('text/html', '', b'[7]', "the reply has Content-Type 'text/html'"),
    ('', '', b'[7]', "the reply has Content-Type ''"),
    ('application/jsonp', '', b'[7]', "the reply has Content-Type 'application/jsonp'"),
    ('application/json', 'Content-Encoding: gzip\r\n', b'[7]', 'the reply is compressed'),
]


class TestWire:
    @pytest.mark.parametrize('args, kwargs, token, body', WIRE)
    def test_call(self, args, kwargs, token, body):
        """A friend sends these bytes, and a service takes them."""
        with answering(ok(b'[null]')) as (address, got):
            with Friend('app1', address, token=token) as friend:
                assert friend.send('/echo', *args, **kwargs) is None
        assert got[0][1] == body
        service = make(token=token)
        assert ask(service, body)[0] == 200
        assert service.ran == [(args, kwargs)]

    def test_head(self):
        """The head of a call is this and no more."""
        with answering(ok(b'[1]')) as (address, got):
            with Friend('app1', address + '/base/') as friend:
                friend.send('/é b', 1)
        lines = got[0][0].decode().split('\r\n')
        assert lines == [
            'POST /base/%C3%A9%20b HTTP/1.1',
            'Host: ' + address.partition('://')[2],
            f'User-Agent: microconnect/{microconnect.__version__}',
            'Content-Type: application/json',
            f'Content-Length: {len(got[0][1])}',
        ]

    @pytest.mark.parametrize('body, args, kwargs', OTHERS)
    def test_calls_of_others(self, body, args, kwargs):
        """What other implementations send is taken: spaces, order, missing keys."""
        service = make()
        assert ask(service, body)[0] == 200
        assert service.ran == [(args, kwargs)]

    @pytest.mark.parametrize('value, body, given', RETURNS)
    def test_reply(self, value, body, given):
        """A function's return is these bytes, and these bytes are what `send` gives."""
        friend = friend_of(lambda: value)
        status, headers, reply = friend._places[0].micro.answer('POST', '/f', JSON)
        assert (status, dict(headers), reply) == (200, JSON, body)
        for again in (
            friend.send('/f'),
            microconnect._returned(OK_HEAD, body),
        ):
            assert again == given
            assert type(again) is type(given)

    @pytest.mark.parametrize('body, given', REPLIES)
    def test_replies_of_others(self, body, given):
        """What other implementations reply is understood."""
        for kind in ('application/json', 'Application/JSON; charset=utf-8'):
            with answering(ok(body, kind)) as (address, _), Friend('app1', address) as friend:
                assert friend.send('/f') == given

    @pytest.mark.parametrize('kind, extra, body, message', NO_REPLIES)
    def test_no_replies(self, kind, extra, body, message):
        """What is not a reply is a BadReply, and the call may have run."""
        with answering(ok(body, kind, extra=extra)) as (address, _):
            with Friend('app1', address) as friend:
                with pytest.raises(microconnect.BadReply) as caught:
                    friend.send('/f')
        assert str(caught.value).startswith(f'/f at {address}: {message}')
        assert caught.value.sent

    def test_problem_details(self):
        """A failure is RFC 9457 problem details, and names the exception where there was one."""
        service = make()
        status, headers, problem = ask(service, b'{"args": ["ValueError", "no"]}', '/fail')
        assert (status, headers) == (500, {'Content-Type': 'application/problem+json'})
        assert problem == {
            'title': 'Internal Server Error',
            'status': 500,
            'detail': 'ValueError: no',
            'exception': {'type': 'ValueError', 'message': 'no'},
        }
        assert ask(service, b'[]')[2] == {
            'title': 'Bad Request',
            'status': 400,
            'detail': 'the body has to be {"args": [...], "kwargs": {...}, "token": ...}',
        }


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
        process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-c', ORIGINAL],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        try:
            address = f'127.0.0.1:{int(process.stdout.readline())}'
            with Friend('original', address, timeout=TIMEOUT) as friend:
                friend.wait(TIMEOUT)
                assert friend.send('/several', 'é', key={'k': [1]}) == ('é', {'k': [1]}, None)
                assert friend.send('/list', [1], key=[2.5]) == [1, 2.5]
                assert friend.send('/none') is None
                with pytest.raises(microconnect.UnknownRule):
                    friend.send('/nothing')
                with pytest.raises(microconnect.RemoteError):
                    friend.send('/list')
                friend.setRule('/class', token='123456')
                told = friend.send('/class', {'a': Sample(1)})
                assert told == {'name': 'test', 'value': {'a': json.loads(SAMPLE % (1, 1, 1))}}
        finally:
            watchdog.cancel()
            process.kill()
            process.wait(TIMEOUT)
            process.stdout.close()


# --------------------------------------------------------------------------------------- parsing

HOST = b' HTTP/1.1\r\nHost: a\r\n'
HEADS = [  # head, but for its empty line; method, path, length, keep_alive, expects
    (b'GET /' + HOST, 'GET', '/', 0, True, False),
    (b'POST /a HTTP/1.1\r\nHost:a\r\nContent-Length: 12\r\n', 'POST', '/a', 12, True, False),
    (b'POST /a HTTP/1.0\r\nContent-Length: 1\r\n', 'POST', '/a', 1, False, False),
    (b'GET /a HTTP/1.9\r\nHost:\r\n', 'GET', '/a', 0, True, False),
    (b'BREW /' + HOST + b'Connection: x, Close\r\n', 'BREW', '/', 0, False, False),
    (b'get / HTTP/1.1\r\nhOST: a\r\nCONNECTION: close\r\n', 'get', '/', 0, False, False),
    (b'POST /a' + HOST + b'Transfer-Encoding: Chunked\r\n', 'POST', '/a', -1, True, False),
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
    (b'POST /' + HOST + b'Content-Length: 9%b\r\n' % (b'9' * 20), 'POST', '/', 10**15, True, False),
]
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
REFUSED_HEADS = [  # status, message, heads but for the empty line
    (400, MALFORMED, (
        b'GET /\r\n', b'GET  /' + HOST, b'GET / HTTP/1.1 \r\n', b'GET\t/\tHTTP/1.1\r\n',
        b'GET / http/1.1\r\n', b'GET / HTTP/1.10\r\n', b'G@T /' + HOST, b'G\xc9T /' + HOST,
        b'GET /\xe9' + HOST, b'GET /\0' + HOST, b'GET / HTTP/1.1\nHost: a\n',
    )),
    (505, NO_VERSION, (b'GET / HTTP/2.0\r\n', b'GET / HTTP/0.9\r\n', b'PRI * HTTP/2.0\r\n')),
    (400, NO_HOST, tuple(b'GET / HTTP/1.1\r\n' + lines for lines in (
        b'', b'Host: a\r\nHost: a\r\n', b'Host: a b\r\n', b'Host: a/b\r\n', b'Host: u@a\r\n',
        b'Host: a:b\r\n', b'Host: \xe9\r\n',
    ))),
    (400, NO_PATH, tuple(b'GET ' + target + HOST for target in (
        b'a', b'*', b'a:1', b'ftp://a/', b'http://u@a/', b'/a#b', b'/a?b#c', b'/%zz', b'/%a',
        b'/a\\b', b'/"<>', b'/{}',
    ))),
    (400, NO_UTF8, (b'GET /%ff' + HOST, b'GET /%ED%A0%80' + HOST)),
] + [
    (status, message, tuple(b'POST /' + HOST + line + b'\r\n' for line in lines))
    for status, message, lines in [
        (400, MALFORMED, (
            b'X : 1', b' X: 1', b'X: 1\r\n 2', b'X: 1\r2', b'X: 1\n2: 3', b'X: \0', b'X: \x7f',
            b': 1', b'X', CODING + b'\x0bchunked', 'É: 1'.encode(),
        )),
        (400, NO_LENGTH, tuple(b'Content-Length:' + value for value in (
            b'', b'-1', b'+1', b'0x1', b'1_0', b'\xb2', b'1 1', b'1, 1',
            b'1\r\nContent-Length: 2', b'1\r\ncontent-length: 1',
        ))),
        (400, TWO_LENGTHS, (b'Content-Length: 1\r\n' + CODING + b'chunked',)),
        (400, NO_CODING, tuple(CODING + value for value in (
            b'', b'identity', b'xchunked', b'"chunked"', b'chunked, gzip', b'chunked, chunked',
            b'chunked\r\n' + CODING + b'chunked',
        ))),
        (501, NO_CODING, (CODING + b'gzip, chunked', CODING + b'gzip\r\n' + CODING + b'chunked')),
        (417, 'the only expectation met is 100-continue', (b'Expect: tea',)),
    ]
] + [(400, TWO_LENGTHS, (b'POST / HTTP/1.0\r\n' + CODING + b'chunked\r\n',))]
# fmt: on
LENGTH = b'Content-Length: 3\r\n'
REPLY_HEADS = [  # head, but for its empty line; status, length, seconds kept alive
    (b'HTTP/1.1 200 OK\r\n' + LENGTH, 200, 3, 4.0),
    (b'HTTP/1.1 200 \r\n' + LENGTH, 200, 3, 4.0),
    (b'HTTP/1.1 200\r\n' + LENGTH, 200, 3, 4.0),
    (b'HTTP/1.1 404 N\xf6t f\tnd\r\nContent-Length: 0\r\n', 404, 0, 4.0),
    (b'HTTP/1.0 200 OK\r\n' + LENGTH, 200, 3, 0.0),
    (b'HTTP/1.1 200 OK\r\n', 200, -2, 0.0),
    (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n', 200, -1, 4.0),
    (b'HTTP/1.1 200 OK\r\nConnection: Close\r\n' + LENGTH, 200, 3, 0.0),
    (b'HTTP/1.1 200 OK\r\nKeep-Alive: max=9, timeout=10\r\n' + LENGTH, 200, 3, 9.0),
    (b'HTTP/1.1 204 No\r\n', 204, 0, 4.0),
    (b'HTTP/1.1 304 No\r\n' + LENGTH, 304, 0, 4.0),
]
# fmt: off
REFUSED_REPLY_HEADS = [  # status, message, heads but for the empty line
    (505, NO_VERSION, (b'HTTP/2 200 OK\r\n', b'HTTP/0.9 200 OK\r\n')),
    (400, MALFORMED, (
        b'HTTP/1.1 20 OK\r\n', b'HTTP/1.1 2000 OK\r\n', b'HTTP/1.1 600 OK\r\n',
        b'HTTP/1.1 099 OK\r\n', b'HTTP/1.1  200 OK\r\n', b'HTTP/1.1 200 O\0K\r\n',
        b'ICY 200 OK\r\n', b'220 smtp ready\r\n', b'HTTP/1.1 200 OK\r\nX : 1\r\n',
    )),
    (400, NO_LENGTH, (b'HTTP/1.1 200 OK\r\n' + LENGTH + LENGTH,)),
    (400, TWO_LENGTHS, (b'HTTP/1.1 200 OK\r\n' + LENGTH + CODING + b'chunked\r\n',)),
    (400, NO_CODING, (b'HTTP/1.1 200 OK\r\n' + CODING + b'gzip\r\n',)),
]
# fmt: on
CHUNKED = [  # chunked bodies, and what they hold
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
REFUSED_CHUNKED = [  # status, message, chunked bodies
    (400, SIZE, (
        b'\r\n', b'x\r\n', b'-1\r\n', b'+1\r\na\r\n', b'0x1\r\na\r\n', b' 1\r\na\r\n',
        b'1_0\r\n', b'1 2\r\n', b'1;\0\r\na', b'1' * 16 + b'\r\n',
    )),
    (400, LINE, (b'1\na\n0\n\n', b'1;' + b'x' * 300, b'0\r\n' + b'X: 1\r\n' * 100)),
    (400, 'a chunk is longer than its size (RFC 9112, 7.1)', (b'1\r\nab\r\n', b'1\r\na\n\n')),
    (400, 'a trailer is malformed (RFC 9112, 7.1.2)', (b'0\r\nX : 1\r\n\r\n',)),
    (400, CUT, (b'', b'5', b'5\r\nabc', b'1\r\na\r\n0\r\n')),
    (413, 'the body is over max_body=20 bytes', (
        b'15\r\n', b'f\r\n' + b'x' * 15 + b'\r\n6\r\n', b'f' * 15 + b'\r\n',
    )),
]
# fmt: on


class Source(io.BytesIO):
    """What a stream reads from, *step* bytes at a time."""

    def __init__(self, data, step):
        super().__init__(data)
        self.step = step

    def recv(self, size):
        return self.read(min(size, self.step or size))

    def recv_into(self, buffer):
        return self.readinto(buffer[: self.step or None])


def stream(data, step=0, reply=False, max_head=200):
    """A stream that gives *data*, *step* bytes at a time."""
    read = microconnect._Stream()
    read.sock, read.progress = Source(data, step), lambda count: None
    like = microconnect._Link if reply else microconnect._Connection
    read.first_line, read.parse, read.max_head = like.first_line, like.parse, max_head
    return read


def left(read):
    """What of a stream was not read yet."""
    return bytes(read.buffer) + read.sock.read()


def refused(call, *args):
    """The status and message by which *call* refuses."""
    with pytest.raises(microconnect.MicroconnectError) as caught:
        call(*args)
    return caught.value.status, str(caught.value)


class TestParsing:
    @pytest.mark.parametrize('head, method, path, length, keep_alive, expects', HEADS)
    def test_requests(self, head, method, path, length, keep_alive, expects):
        """A legal request head is understood, also byte by byte and with bytes after it."""
        for feed, rest in itertools.product((0, 1, 7), (b'', b'\r\nGET /')):
            read = stream(head + b'\r\n' + rest, feed)
            request = read.head()
            assert request[:2] == (method, path)
            assert request[4:] == (length, keep_alive, expects)
            assert request.count == head.count(b'\r\n') - 1
            assert left(read) == rest

    @pytest.mark.parametrize('status, message, heads', REFUSED_HEADS)
    def test_refused_requests(self, status, message, heads):
        """A head that RFC 9112 does not allow is refused, whole or byte by byte."""
        for head in heads:
            told = refused(microconnect._parse_request, head[:-2])
            assert told == (status, message), head
            for feed in (0, 1):
                read = stream(head + b'\r\n', feed)
                told = refused(read.head)
                assert told[1] in (message, MALFORMED, CUT), head

    def test_headers(self):
        """Names are lower case, values stripped, those of one name joined by a comma."""
        head = b'GET / HTTP/1.1\r\nHost: a\r\nX-A:\t 1 \t\r\nx-a: \xe9\r\nx-b:'
        request = microconnect._parse_request(head)
        assert request.headers == {'host': 'a', 'x-a': '1, \xe9', 'x-b': ''}
        assert request.count == 4

    @pytest.mark.parametrize('head, status, length, seconds', REPLY_HEADS)
    def test_replies(self, head, status, length, seconds):
        """A legal reply head is understood, also byte by byte and with bytes after it."""
        for feed, rest in itertools.product((0, 1, 7), (b'', b'[1]')):
            read = stream(head + b'\r\n' + rest, feed, reply=True)
            reply = read.head()
            assert (reply.status, reply.length) == (status, length)
            assert reply.keep_alive == pytest.approx(seconds)
            assert left(read) == rest

    @pytest.mark.parametrize('status, message, heads', REFUSED_REPLY_HEADS)
    def test_refused_replies(self, status, message, heads):
        """A reply head that RFC 9112 does not allow is refused."""
        for head in heads:
            told = refused(microconnect._parse_reply, head[:-2])
            assert told == (status, message), head

    def test_remembered_heads(self):
        """A head that comes again is not parsed again; long ones are not remembered."""
        for extra, is_remembered in ((b'', True), (b'X: %b\r\n' % (b'x' * 2000), False)):
            head = b'GET /a HTTP/1.1\r\nHost: a\r\n' + extra + b'\r\n'
            read = stream(head + head, max_head=9999)
            one, two = read.head(), read.head()
            assert one == two
            assert (one is two) is is_remembered

    @pytest.mark.parametrize('feed', [0, 1])
    def test_stream_heads(self, feed):
        """A stream gives message after message, and ignores empty lines before a head."""
        one, two = b'GET /a HTTP/1.1\r\nHost: a\r\n\r\n', b'POST / HTTP/1.1\r\nHost: a\r\n\r\n'
        read = stream(b'\r\n\r\n' + one + two + b'body\r\n' + one, feed)
        assert read.head() == microconnect._parse_request(one[:-4])
        assert read.head() == microconnect._parse_request(two[:-4])
        assert read.body(4, 10) == b'body'
        assert read.head() == microconnect._parse_request(one[:-4])
        assert refused(read.head) == (400, CUT)

    @pytest.mark.parametrize(
        'data, status, message',
        [
            (b'', 400, CUT),
            (b'GET / HT', 400, CUT),
            (b'GET / HTTP/1.1\r\nHost: a\r\n', 400, CUT),
            (b'\x16\x03\x01', 400, MALFORMED),  # a TLS handshake
            (b' GET / HTTP/1.1\r\n', 400, MALFORMED),
            (b'\nGET / HTTP/1.1', 400, MALFORMED),
            (b'\r\r', 400, MALFORMED),
            (b'GET / HTTP/1.1\nHost', 400, MALFORMED),
            (b'GET /\r\n', 400, MALFORMED),
            (b'\0', 400, MALFORMED),
            (b'GET / HTTP/1.15\r\n', 400, MALFORMED),
            (b'PRI * HTTP/2.0\r\n', 505, NO_VERSION),
            (b'GET /%b HTTP/1.1\r\n' % (b'x' * 200), 431, 'the head is over 200 bytes'),
            (b'GET / HTTP/1.1\r\n' + b'X: 1\r\n' * 40, 431, 'the head is over 200 bytes'),
            (b'\r\n' * 110, 431, 'the head is over 200 bytes'),
            (
                b'GET / HTTP/1.1\r\n' + b'X: 1\r\n' * 40 + b'\r\n',
                431,
                'the head is over 200 bytes',
            ),
        ],
    )
    def test_refused_streams(self, data, status, message):
        """What never will be a head is refused at once, without waiting for its end."""
        for feed in (0, 1):
            assert refused(stream(data, feed).head) == (status, message)

    def test_head_limit(self):
        """A head of just the allowed size passes, one byte more does not."""
        head = b'GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n'
        for size, feed in itertools.product((0, 1), (0, 1)):
            data = head % (b'x' * (200 + size - len(head % b'') + 4))
            if size:
                told = refused(stream(data, feed).head)
                assert told == (431, 'the head is over 200 bytes')
            else:
                assert stream(data, feed).head() == microconnect._parse_request(data[:-4])

    @pytest.mark.parametrize('feed', [0, 1])
    def test_bodies(self, feed):
        """A body has its told length, at most the limit, and may end with the connection."""
        assert stream(b'abcde', feed).body(3, 3) == b'abc'
        assert stream(b'', feed).body(0, 3) == b''
        told = refused(stream(b'abcde', feed).body, 4, 3)
        assert told == (413, 'the body of 4 bytes is over max_body=3')
        assert refused(stream(b'ab', feed).body, 3, 3) == (400, CUT)
        assert stream(b'abc', feed).body(microconnect._TO_THE_END, 3) == b'abc'
        told = refused(stream(b'abcd', feed).body, microconnect._TO_THE_END, 3)
        assert told == (413, 'the body is over max_body=3 bytes')

    @pytest.mark.parametrize('data, body', CHUNKED)
    def test_chunked(self, data, body):
        """A chunked body is put together; what follows it is left."""
        for feed, rest in itertools.product((0, 1), (b'', b'GET')):
            read = stream(data + rest, feed)
            assert read.body(microconnect._CHUNKED, 20) == body
            assert left(read) == rest

    def test_tiny_chunks(self):
        """Many chunks of a byte take no more memory than a few times what they hold."""
        read = stream(b'1\r\nx\r\n' * 20000 + b'0\r\n\r\n')
        tracemalloc.start()
        try:
            assert len(read.body(microconnect._CHUNKED, 100000)) == 20000
            assert tracemalloc.get_traced_memory()[1] < 300000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize('status, message, bodies', REFUSED_CHUNKED)
    def test_refused_chunked(self, status, message, bodies):
        """A chunked body that is not well formed, or too large, is refused."""
        for data, feed in itertools.product(bodies, (0, 1)):
            told = refused(stream(data, feed).body, microconnect._CHUNKED, 20)
            assert told == (status, message), data


# ----------------------------------------------------------------------------------------- rules

# fmt: off
PATHS = [
    '/simple', '/é', '/a b', '/日本/\U0001f600', '/a%20b', '/100%', '/a?b=c&d', '/a#b', '/a//b/',
    '/a/../b', '/a\\b"<>{}|^`', "/-._~!$&'()*+,;=:@", '//host/a', '/\r\nX: 1', '/\0',
]
# fmt: on


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
        """Either order, or `typing` alone, registers the function and hands it back as it was."""
        service = Microservice('app1')

        def add(a, b=1):
            return a + b

        assert decorate(service, add) is add
        assert add(1) == 2
        assert Friend('app1', service).send('/f', 1, b=2) == 3
        assert Friend('app1', service).send('f', 1) == 2

    def test_reply_alone_registers_nothing(self):
        """`reply` alone gives no rule."""
        service = Microservice('app1')
        service.reply(make)
        with pytest.raises(microconnect.UnknownRule):
            Friend('app1', service).send('/make')

    def test_one_function_under_two_rules(self):
        """A function may have several rules."""
        service = Microservice('app1')
        service.typing('/a')(service.typing('/b')(lambda: 7))
        assert [Friend('app1', service).send(rule) for rule in ('/a', 'b')] == [7, 7]

    @pytest.mark.parametrize(
        'use, kind, message',
        [
            (lambda s: s.typing(make), TypeError, "write @Micro.typing('/rule'), with the rule,"),
            (lambda s: s.typing(None), TypeError, "write @Micro.typing('/rule'), with the rule,"),
            (lambda s: s.typing(7), TypeError, "write @Micro.typing('/rule'), with the rule,"),
            (lambda s: s.typing(b'/f'), TypeError, "write @Micro.typing('/rule'), with the rule,"),
            (lambda s: s.typing(''), TypeError, "a rule is a string such as '/helloworld', not ''"),
            (lambda s: s.typing('/echo')(make), ValueError, "rule '/echo' is taken already"),
            (lambda s: s.typing('echo')(make), ValueError, "rule '/echo' is taken already"),
            (lambda s: s.typing('/f')(7), TypeError, 'write @Micro.reply above a function, not'),
            (lambda s: s.typing('/f')(None), TypeError, 'write @Micro.reply above a function, not'),
            (lambda s: s.reply('/f'), TypeError, 'write @Micro.reply above a function, not'),
            (
                lambda s: s.typing('/f', methods='GET'),
                ValueError,
                "methods is such as ('GET',), out of",
            ),
            (
                lambda s: s.typing('/f', methods=()),
                ValueError,
                "methods is such as ('GET',), out of",
            ),
            (
                lambda s: s.typing('/f', methods=['get']),
                ValueError,
                "methods is such as ('GET',), out of",
            ),
            (
                lambda s: s.typing('/f', methods=['HEAD']),
                ValueError,
                "methods is such as ('GET',), out",
            ),
            (
                lambda s: s.typing('/f', methods=None),
                ValueError,
                "methods is such as ('GET',), out of",
            ),
            (lambda s: s.typing('/f', token=''), TypeError, 'the token of /f has to be a non-emp'),
            (lambda s: s.typing('/f', token=7), TypeError, 'the token of /f has to be a non-empty'),
            (lambda s: s.typing('/f', token=b't'), TypeError, 'the token of /f has to be a non-em'),
            (lambda s: s.typing('/f', token=True), TypeError, 'the token of /f has to be a non-em'),
        ],
    )
    def test_wrong_use(self, use, kind, message):
        """A wrong use fails at decoration, says what to write instead, and registers nothing."""
        service = make()
        with pytest.raises(kind) as caught:
            use(service)
        assert str(caught.value).startswith(message)
        assert list(service._rules) == ['/echo', '/fail']
        assert len(service.token) == 0

    def test_a_taken_rule_keeps_its_token(self):
        """A rule refused as taken changes nothing of the one that has it."""
        service = make(token={'/echo': 'first'})
        with pytest.raises(ValueError):
            service.typing('/echo', token='second')(make)
        assert Friend('app1', service, token='first').send('/echo', 1) == 1

    def test_a_definition_run_again(self, monkeypatch):
        """At a prompt or in a notebook, a definition that is run again takes the rule over."""
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
        for other in (make, lambda: 4):
            with pytest.raises(ValueError, match='taken already'):
                service.typing('/f')(other)
        service.typing('/g')(lambda: 5)
        with pytest.raises(ValueError, match='taken already'):
            service.typing('/g')(lambda: 6)

    @pytest.mark.parametrize('rules', [PATHS[:7], PATHS[7:]], ids=['words', 'signs'])
    def test_any_rule(self, rules):
        """A rule may hold any character: it works end to end, and in process."""
        service = Microservice('app1')
        for rule in rules:
            service.typing(rule)(functools.partial(str, rule))
        with serving(service), Friend('app1', service.address) as friend:
            assert [friend.send(rule) for rule in rules] == rules
            assert [Friend('app1', service).send(rule) for rule in rules] == rules

    @pytest.mark.parametrize(
        'status, targets',
        [
            (200, '/%65cho /ech%6F /ech%6f /echo? http://else:1/echo'),
            (404, '/echo/ /Echo //echo /./echo /echo?x=1 /%2565cho'),
            (400, '/%ff /%6 /echo#x'),
        ],
    )
    def test_exact_match(self, status, targets):
        """A rule matches exactly, once its percent-encoding is decoded."""
        with serving() as service:
            for target in targets.split():
                assert statuses(raw(service, request(path=target))) == [status], target

    @pytest.mark.parametrize('method', ['GET', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'POST'])
    def test_methods(self, method):
        """A rule answers the methods it lists, and a friend uses the one set by `setRule`."""
        service = Microservice('app1')
        service.typing('/f', methods=(method,))(lambda *args, **kwargs: [args, kwargs])
        with serving(service), Friend('app1', service.address) as friend:
            friend.setRule('f', method=method)
            assert friend.send('/f', 1, k='é') == [[1], {'k': 'é'}]
            assert friend.send('f') == [[], {}]

    def test_get_without_body(self):
        """A rule opened to GET needs neither a body nor a content type."""
        service = Microservice('app1')
        service.typing('/f', methods=['GET', 'POST'])(lambda: 7)
        assert service.answer('GET', '/f', {}) == (200, tuple(JSON.items()), b'[7]')
        assert service.answer('GET', '/f', {}, b'{}')[0] == 415

    def test_wrong_method(self):
        """A method that the rule does not list is 405, with those that it does in Allow."""
        service = make()
        service.typing('/f', methods=('GET', 'PUT'))(make)
        status, headers, problem = ask(service, path='/f')
        assert (status, headers['Allow']) == (405, 'GET, PUT')
        assert problem['detail'] == '/f answers GET, PUT, not POST: setRule(rule, method=...)'
        for method in ('GET', 'HEAD', 'OPTIONS'):
            assert ask(service, method=method)[:2][1]['Allow'] == 'POST'
        with pytest.raises(microconnect.UnknownRule) as caught:
            Friend('app1', service).send('/f')
        assert caught.value.status == 405
        assert service.ran == []

    def test_unknown_method(self):
        """A method that no rule can have is 501."""
        for method in ('BREW', 'post', 'CONNECT', 'x' * 99):
            status, _, problem = ask(make(), method=method)
            assert status == 501
            assert problem['detail'] == f'method {method[:20]!r} is not one that rules answer'

    @pytest.mark.parametrize(
        'rule, hint',
        [
            ('/ech', "no rule '/ech' here: did you mean '/echo'?"),
            ('/Fail', "no rule '/Fail' here: did you mean '/fail'?"),
            ('/zzz', "no rule '/zzz' here: is it registered under that name?"),
            ('/', "no rule '/' here: is it registered under that name?"),
            (
                '/echo?x=1',
                "no rule '/echo?' here: the arguments of a call are in its body, not in a query",
            ),
        ],
    )
    def test_unknown_rule(self, rule, hint):
        """An unknown rule is 404, with the nearest known one."""
        with pytest.raises(microconnect.UnknownRule) as caught:
            Friend('app1', make()).send(rule)
        assert str(caught.value) == f'{rule} at app1 (in process): {hint}'
        assert caught.value.status == 404

    def test_secret_key(self):
        """`secretKey` says that it is not there yet, on both sides."""
        for use in (
            lambda: Microservice('app1', secretKey='k'),
            lambda: Friend('app1', '127.0.0.1:1', secretKey='k'),
            lambda: Friend('app1', '127.0.0.1:1', None, ''),
        ):
            with pytest.raises(NotImplementedError, match='secretKey: calls cannot be signed yet'):
                use()

    @pytest.mark.parametrize(
        'use, kind, message',
        [
            (lambda f: f.setRule('/f', method='get'), ValueError, 'method is one of'),
            (lambda f: f.setRule('/f', method='HEAD'), ValueError, 'method is one of'),
            (lambda f: f.setRule('/f', token=''), TypeError, 'the token of /f has to be'),
            (lambda f: f.setRule('/f', token=7), TypeError, 'the token of /f has to be'),
            (lambda f: f.setRule('/f', timeout=0), ValueError, 'timeout is a number'),
            (
                lambda f: f.setRule('/f', timeout=math.nan),
                ValueError,
                'timeout is a number (float) above 0',
            ),
            (lambda f: f.setRule('/f', timeout='5'), ValueError, 'timeout is a number'),
            (lambda f: f.setRule(7), TypeError, "a rule is a string such as '/helloworld', not 7"),
            (lambda f: f.setRule(''), TypeError, "a rule is a string such as '/helloworld', not"),
            (lambda f: f.send(7), TypeError, "a rule is a string such as '/helloworld', not 7"),
            (lambda f: f.send(''), TypeError, "a rule is a string such as '/helloworld', not ''"),
        ],
    )
    def test_wrong_settings(self, use, kind, message):
        """A friend refuses at once what cannot work."""
        with pytest.raises(kind) as caught:
            use(Friend('app1', make()))
        assert str(caught.value).startswith(message)


# ---------------------------------------------------------------------------------------- tokens

SECRET = 's3cret-token'


def wrong_tokens(token):
    """Bodies that do not hold *token*."""
    wrong = [None, '', 'wrong', token[:-1], token + 'x', token + '\0', ' ' + token, token.upper()]
    wrong += ['None', 'null', 7, 0, True, [token], {'token': token}, 'é', '\ud800']
    bodies = [json.dumps({'args': [1], 'token': given}).encode() for given in wrong]
    return bodies + [b'', b'{}', b'{"args": [1]}', json.dumps({'args': [token]}).encode()]


def is_guarded(service, rule, token):
    """Whether *rule* is refused without *token* and answered with it."""
    without = ask(service, b'{"args": [1]}', rule)[0]
    with_it = ask(service, json.dumps({'args': [1], 'token': token}).encode(), rule)[0]
    return (without, with_it) == (401, 200)


class TestTokens:
    @pytest.mark.parametrize('token', [{'ab'}, ['ab'], {'/a', '/b'}, 123, 0, False, b'ab'])
    def test_neither_dict_nor_string(self, token):
        """Tokens that are neither a dict nor a string are refused: they would leave rules open."""
        with pytest.raises(TypeError, match='one string for every rule, or a dict'):
            make(token=token)
        with pytest.raises(TypeError, match='one string for every rule, or a dict'):
            Friend('app1', 'http://127.0.0.1:5000', token)

    def test_token_as_method(self):
        """A token that is given in the place of the method is not shown."""
        with pytest.raises(ValueError, match='token=') as caught:
            Friend('app1', make()).setRule('/echo', SECRET)
        assert SECRET not in str(caught.value)

    def test_replaced(self):
        """To set `token` as a whole replaces them all, and one for all stays one for all."""
        service, other = make(token={'/fail': 'old'}), make(token='every')
        friend = Friend('app1', service)
        service.token = {'echo': 'new'}
        with pytest.raises(microconnect.Forbidden):
            friend.send('/echo', 1)
        friend.token = 'new'
        assert friend.send('/echo', 1) == 1
        service.token = other.token
        with pytest.raises(microconnect.Forbidden):
            friend.send('/echo', 1)
        with pytest.raises(TypeError, match='non-empty string'):
            service.token = {'/echo': 5}

    def test_replaced_meanwhile(self, monkeypatch):
        """While tokens are replaced, a rule whose decorator gave one is never without it."""
        service, got = make(), []
        service.typing('/guarded', token=SECRET)(fits)
        replace = microconnect._Tokens.__setitem__

        def called_meanwhile(tokens, *args):
            with pytest.raises(microconnect.Forbidden) as caught:
                Friend('app1', service).send('/guarded')
            got.append(caught.value.status)
            return replace(tokens, *args)

        monkeypatch.setattr(microconnect._Tokens, '__setitem__', called_meanwhile)
        service.token = {'/echo': 'new'}
        assert got == [401] * 2

    @pytest.mark.parametrize('token', [SECRET, 'ключ-é', '\ud800x', 'None'], ids=ascii)
    def test_wrong_tokens(self, token):
        """Whatever is not the token is 401 with WWW-Authenticate, and the function never runs."""
        service = make(token={'/echo': token})
        for body in wrong_tokens(token):
            if json.loads(body.decode() or '{}').get('token') == token:
                continue  # that one is right
            status, headers, problem = ask(service, body)
            assert (status, headers['WWW-Authenticate']) == (401, 'Token realm="microconnect"')
            given = json.loads(body.decode() or '{}').get('token')
            said = 'wants its token' if given is None else 'was given a wrong token'
            assert problem['detail'] == f"/echo {said}: setRule('/echo', token=...)"
        assert service.ran == []
        assert Friend('app1', service, {'/echo': token}).send('/echo', 1) == 1
        assert service.ran == [((1,), {})]

    def test_none(self):
        """None, such as an unset variable, is refused as a token: it would leave its rule open."""
        service = make(token={'/echo': SECRET})
        for give in (
            lambda: make(token={'/echo': None}),
            lambda: setattr(service, 'token', {'/echo': None}),
            lambda: service.token.update({'/echo': None}),
            lambda: service.token.setdefault('/fail', None),
        ):
            with pytest.raises(TypeError, match='the token of /.* has to be a non-empty string'):
                give()
        assert is_guarded_by(service, '/echo')

    def test_not_in_the_log(self, caplog):
        """A token is not logged or sent back, even where it was given in a query."""
        caplog.set_level('INFO')
        with serving(token=SECRET) as service:
            got = raw(service, request(path=f'/echo?token={SECRET}'))
        assert statuses(got) == [404]
        assert 'refused 404' in caplog.text
        assert SECRET not in caplog.text
        assert SECRET.encode() not in got

    def test_forbidden(self):
        """A friend without the token gets Forbidden, with 401."""
        with pytest.raises(microconnect.Forbidden) as caught:
            Friend('app1', make(token=SECRET)).send('/echo', 1)
        assert (caught.value.status, caught.value.sent) == (401, False)

    def test_ways_to_give_a_token(self):
        """A token may be given to the service, to the rule, and at any time later."""
        service = make(token={'/echo': 'a', 'fail': 'b'})
        service.typing('/f', token='c')(lambda x: x)
        service.typing('/g')(lambda x: x)
        assert is_guarded(service, '/echo', 'a')
        assert ask(service, b'{"args": ["ValueError"]}', '/fail')[0] == 401
        assert is_guarded(service, '/f', 'c')
        assert ask(service, b'{"args": [1]}', '/g')[0] == 200
        service.token['/g'] = 'd'
        service.token['f'] = 'e'
        assert is_guarded(service, '/g', 'd')
        assert is_guarded(service, '/f', 'e')
        assert not is_guarded(service, '/f', 'c')
        service.token.update({'g': 'h'})
        assert is_guarded(service, '/g', 'h')
        del service.token['/g'], service.token['/echo']
        assert ask(service, b'{"args": [1]}', '/g')[0] == 200
        assert ask(service, b'{"args": [1]}', '/echo')[0] == 200

    def test_new_tokens_for_all_rules(self):
        """To set `token` replaces the tokens, but what a decorator guards stays guarded."""
        service = make(token={'/fail': 'a'})
        service.typing('/f', token='b')(lambda x: x)
        service.token = {'/echo': 'c'}
        assert is_guarded(service, '/echo', 'c')
        assert is_guarded(service, '/f', 'b')
        assert dict(service.token) == {'/echo': 'c', '/f': 'b'}
        service.token = {'/f': 'd'}
        assert is_guarded(service, '/f', 'd')

    def test_one_token_for_all(self):
        """One string guards every rule, those that come later too; a rule's own goes before."""
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

    @pytest.mark.parametrize('token', ['', 7, b't', True, {'/f': ''}, {'/f': 7}, {7: 't'}], ids=str)
    def test_tokens_that_guard_nothing(self, token):
        """What cannot be a token is a TypeError, on both sides."""
        for use in (Microservice, lambda name, token: Friend(name, '127.0.0.1:1', token)):
            with pytest.raises((TypeError, ValueError)):
                use('app1', token=token)
        if isinstance(token, dict):
            return
        with pytest.raises(TypeError, match='the token of /f has to be a non-empty string'):
            make().token['/f'] = token

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
        with pytest.raises(microconnect.Forbidden):
            friends[1].send('/f')

    def test_the_token_is_never_shown(self, caplog):
        """No log line, repr, error or reply holds a token."""
        caplog.set_level(logging.DEBUG)
        secrets = [SECRET, 'an0ther-token']
        service = make(token=SECRET, debug=True)
        service.token['/fail'] = secrets[1]
        shown = []

        def once(address, token, **options):
            with Friend('app1', address, token, **options) as friend:
                friend.send('/echo')

        with serving(service), answering(ok(b'{}'), b'HTTP/9 x\r\n\r\n') as (bad, _):
            with Friend('app1', service.address, SECRET) as friend:
                friend.setRule('/fail', token=secrets[1])
                friend.setRule('/wrong', token=secrets[1])
                calls = [
                    lambda: friend.send('/fail', 'ValueError'),
                    lambda: friend.send('/fail', 'KeyError', too='many'),
                    lambda: friend.send('/wrong'),
                    lambda: friend.send('/echo', threading.Lock()),
                    lambda: friend.send('/echo', math.nan),
                    lambda: once(service.address, secrets[1]),
                    lambda: once(bad, SECRET),
                    lambda: once(bad, SECRET),
                    lambda: once('127.0.0.1:1', SECRET, timeout=1),
                    lambda: once(service.address, SECRET, max_body=9),
                    lambda: friend.setRule(f'/{7}', token=[SECRET]),
                    lambda: service.token.update({'/f': [SECRET]}),
                    lambda: service.typing('/f', token=(SECRET,)),
                ]
                for call in calls:
                    with pytest.raises((microconnect.MicroconnectError, TypeError)) as caught:
                        call()
                    error = caught.value
                    shown += [str(error), repr(error), repr(vars(error))]
                bodies = [b'"' + SECRET.encode(), b'{"token": "%b"' % SECRET.encode(), b'"' * 9]
                shown += [raw(service, request(body)).decode() for body in bodies]
                shown.append(raw(service, b'%b HTTP/1.1\r\n\r\n' % SECRET.encode()).decode())
                for value in (service, friend, service.token, friend.token):
                    shown += [str(value), repr(value), pprint.pformat(value), f'{value}']
        shown.append(caplog.text)
        assert len(shown) > 40
        assert 'refused 401' in caplog.text
        assert not [text for text in shown for secret in secrets if secret in text]


# ---------------------------------------------------------------------------------------- answer


def fits(a, b=1, *, c=2):
    return [a, b, c]


def raises_inside(a):
    raise TypeError('inside')


def calls_wrongly(a):
    return fits()


def calls_builtin_wrongly(a):
    return len(a, a)


def calls_itself(a):
    return calls_itself()


def yields(a):
    yield a
    raise TypeError('inside')


@functools.wraps(fits)
def wrapped(*args, **kwargs):
    return fits(*args, **kwargs)


class Methods:
    def method(self, a):
        return a

    def __call__(self, a):
        return a


class Failing:
    @property
    def wrong(self):
        raise KeyError('nothing there')


class Unreadable(Exception):
    def __str__(self):
        raise RuntimeError('no')

    __repr__ = __str__


MALFORMED_BODIES = [  # a body, its status
    (b'[]', 400),
    (b'7', 400),
    (b'null', 400),
    (b'"args"', 400),
    (b'true', 400),
    (b'{"arg": [1]}', 400),
    (b'{"args": [1], "x": 1}', 400),
    (b'{"args": [1], "": 1}', 400),
    (b'{"args": {}}', 400),
    (b'{"args": "x"}', 400),
    (b'{"args": null}', 400),
    (b'{"args": 7}', 400),
    (b'{"kwargs": []}', 400),
    (b'{"kwargs": null}', 400),
    (b'{"kwargs": "x"}', 400),
    (b'{"kwargs": {"a": 1}, "kwargs": 7}', 400),
    (b'{"kwargs": {"": 1, "a b": 2, "\\u0000": 3}}', 200),
    (b'{"args": [1], "token": 7}', 200),
    (b'{"args": [1], "token": {"a": []}}', 200),
    (b'{"args": ["\\ud800\\udc00\\udfff"]}', 200),
    (b'{"args": [1e400]}', 400),
    (b'{"args": [' + b'[' * 500 + b']' * 500 + b']}', 200),
    (b'{"args": ["' + b'x' * 10**7 + b'"]}', 200),
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
    @pytest.mark.parametrize(
        'args, kwargs',
        [
            ((), {}),
            ((1, 2, 3), {}),
            ((1,), {'d': 1}),
            ((1,), {'a': 1}),
            ((), {'b': 1}),
            ((1,), {'\ud800': 1}),
            ((1,), {'self': 1}),
        ],
    )
    def test_bad_arguments(self, args, kwargs):
        """Arguments that do not fit are a BadArguments, and the function did not run."""
        ran = []

        def function(a, b=1, *, c=2):
            ran.append(a)

        friend = friend_of(function)
        with pytest.raises(microconnect.BadArguments) as caught:
            friend.send('/f', *args, **kwargs)
        assert (caught.value.status, caught.value.sent, ran) == (422, False, [])
        assert 'function() ' in str(caught.value)
        assert isinstance(caught.value, TypeError)

    @pytest.mark.parametrize(
        'function',
        [Methods().method, Methods(), functools.partial(fits, 1, 2), lambda a: a],
        ids=['method', 'object', 'partial', 'lambda'],
    )
    def test_bad_arguments_of_callables(self, function):
        """So it is for methods, callable objects, partials and lambdas."""
        with pytest.raises(microconnect.BadArguments):
            friend_of(function).send('/f', 1, 2, 3)

    @pytest.mark.parametrize(
        'function, args',
        [
            (raises_inside, [1]),
            (calls_wrongly, [1]),
            (calls_builtin_wrongly, [1]),
            (calls_itself, [1]),
            (yields, [1]),
            (wrapped, []),
            (len, [7]),
            (lambda a: a + 'x', [1]),
            (lambda a: make, [1]),
        ],
    )
    def test_type_errors_inside(self, function, args):
        """A TypeError of a function that ran is a RemoteError."""
        with pytest.raises(microconnect.RemoteError) as caught:
            friend_of(function).send('/f', *args)
        assert isinstance(caught.value, TypeError)
        assert (caught.value.type, caught.value.status, caught.value.sent) == (
            'TypeError',
            500,
            True,
        )

    def test_unreadable_exception(self):
        """An exception whose message cannot be read is a RemoteError all the same."""

        def function():
            raise Unreadable

        with pytest.raises(microconnect.RemoteError) as caught:
            friend_of(function, debug=True).send('/f')
        assert caught.value.type == 'Unreadable'
        assert 'its message cannot be read: Unreadable.__str__ raised' in str(caught.value)

    @pytest.mark.parametrize('name', ['SystemExit', 'KeyboardInterrupt', 'GeneratorExit'])
    def test_exits_do_not_end_the_service(self, name):
        """SystemExit and its like, raised by a rule, are a RemoteError, and the service goes on."""
        with serving() as service, Friend('app1', service.address) as friend:
            with pytest.raises(microconnect.RemoteError) as caught:
                friend.send('/fail', name)
            assert caught.value.type == name
            assert type(caught.value) is microconnect.RemoteError
            assert friend.send('/echo', 1) == 1

    def test_an_exit_in_the_main_thread(self):
        """In the main thread, where signals raise them, they go through."""
        for name in ('SystemExit', 'KeyboardInterrupt'):
            with pytest.raises(getattr(builtins, name)):
                Friend('app1', make()).send('/fail', name)

    @pytest.mark.parametrize('inner', ['unreachable', 'busy', 'forbidden', 'arguments', 'rule'])
    def test_a_failed_call_inside_a_rule(self, inner):
        """A rule whose own call failed gives RemoteError, never an error that invites a retry."""
        middle = Microservice('middle')
        behind = make(token={'/fail': SECRET})
        behind.typing('/f')(fits)
        rules = {'forbidden': '/fail', 'arguments': '/f', 'rule': '/none'}

        @middle.typing('/call')
        def call():
            if inner == 'unreachable':
                return Friend('x', '127.0.0.1:1', timeout=1).send('/f')
            if inner == 'busy':
                with answering(ok(b'{}', status='503 Busy')) as (address, _):
                    with Friend('x', address) as friend:
                        return friend.send('/f')
            return Friend('x', behind).send(rules[inner])

        with pytest.raises(microconnect.RemoteError) as caught:
            Friend('middle', middle).send('/call')
        assert type(caught.value) is microconnect.RemoteError
        assert caught.value.sent
        assert caught.value.rule == '/call'

    @pytest.mark.parametrize('debug', [None, False, True])
    def test_traceback_in_debug_only(self, debug):
        """The traceback is told in debug only."""
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

    def test_traceback_that_cannot_be_told(self):
        """An exception of which Python makes no traceback is told without one."""

        def function():
            raise SyntaxError('why', ('f', 1, 'a', 'text'))

        service = Microservice('app1', debug=True)
        service.typing('/f')(function)
        logging.getLogger('microconnect').disabled = True  # it would fail at the same
        try:
            with pytest.raises(SyntaxError) as caught:
                Friend('app1', service).send('/f')
        finally:
            logging.getLogger('microconnect').disabled = False
        assert 'cannot be formatted' in caught.value.traceback

    def test_failures_are_logged(self, caplog):
        """What a function raises is logged with its traceback, at the service."""
        with pytest.raises(ValueError):
            Friend('app1', make()).send('/fail', 'ValueError', 'for the log')
        record = caplog.records[-1]
        assert (record.name, record.levelname) == ('microconnect', 'ERROR')
        assert record.getMessage() == '/fail raised'
        assert str(record.exc_info[1]) == 'for the log'

    @pytest.mark.parametrize('is_async', [False, True])
    def test_generator(self, is_async):
        """A rule that is a generator gives a list, and what it raises is what the rule raised."""
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

    def test_failing_property(self):
        """A property that raises is told with its place, and in debug with its own traceback."""
        with pytest.raises(ValueError, match=r'reply\[0\]: its wrong raised KeyError') as caught:
            friend_of(Failing, debug=True).send('/f')
        assert 'in wrong' in caught.value.traceback

    def test_context_variables(self):
        """A context variable set in one call is not seen by the next."""
        seen = contextvars.ContextVar('seen', default='nobody')
        service = Microservice('app1')

        @service.typing('/f')
        def function(name):
            before = seen.get()
            seen.set(name)
            return before

        with serving(service), Friend('app1', service.address) as served:
            for friend in (served, Friend('app1', service)):
                assert [friend.send('/f', name) for name in 'abc'] == ['nobody'] * 3
        assert seen.get() == 'nobody'

    def test_no_keyword_is_reserved(self):
        """Keywords of any name reach the function."""
        names = ['self', 'rule', 'timeout', 'args', 'kwargs', 'token', 'method', '__rule']
        names += ['__self', 'callable', 'function', 'cls', 'class', 'a b', 'é']
        kwargs = {name: i for i, name in enumerate(names)}
        service = make()
        with serving(service), Friend('app1', service.address) as served:
            for friend in (served, Friend('app1', service)):
                friend.send('/echo', **kwargs)
                assert service.ran.pop() == ((), kwargs)

        def function(self, rule, timeout=0, *, token, args):
            return self, rule, timeout, token, args

        told = friend_of(function).send('/f', 1, 2, timeout=3, token=4, args=5)
        assert told == (1, 2, 3, 4, 5)
        assert friend_of(function).send('/f', self=1, rule=2, token=4, args=5) == (1, 2, 0, 4, 5)

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
        with pytest.raises(microconnect.TooLarge):
            Friend('app1', make(max_body=50)).send('/echo', 'x' * 50)
        with pytest.raises(microconnect.TooLarge):
            Friend('app1', service, SECRET, max_body=50).send('/echo', 'x' * 50)
        assert repr(friend) == "<Friend 'app1' at app1 (in process)>"

    @pytest.mark.parametrize('body, status', MALFORMED_BODIES, ids=lambda x: ascii(x)[:40])
    def test_malformed_bodies(self, body, status):
        """A malformed body is 400 and runs nothing; an unusual one is answered right."""
        service = make()
        told = ask(service, body)
        assert told[0] == status
        assert len(service.ran) == (status == 200)
        if status == 200:
            sent = json.loads(body.decode())
            args = tuple(sent.get('args', ()))
            assert service.ran == [(args, sent.get('kwargs', {}))]
        else:
            assert told[2]['status'] == 400
            assert told[2]['title'] == 'Bad Request'

    def test_a_megabyte_of_surrogates(self):
        """Text of 10 MB, and lone surrogates, come back as they went."""
        friend = Friend('app1', make())
        for text in ('x' * 10**7, '\ud800' * 1000, 'é' * 10**5):
            assert friend.send('/echo', text) == text

    @pytest.mark.parametrize(
        'status, kinds',
        [
            (200, ['application/json', 'application/json; charset=utf-8', 'Application/JSON ;x']),
            (415, ['', 'text/plain', 'application/x-www-form-urlencoded', 'application/jsonx']),
            (415, ['multipart/form-data; x=application/json', 'text/plain, application/json']),
        ],
    )
    def test_content_type(self, status, kinds):
        """Only application/json is taken, as a browser does not send it unasked."""
        for kind in kinds:
            service = make()
            told = ask(service, b'{"args": [1]}', Content_Type=kind)
            assert (told[0], len(service.ran)) == (status, status == 200)
            if status == 415:
                expected = f'Content-Type has to be application/json, not {kind!r}'
                assert told[2]['detail'] == expected

    @pytest.mark.parametrize('host, origin, site, allowed', BROWSERS)
    @pytest.mark.parametrize('method', ['POST', 'GET'])
    def test_browsers(self, host, origin, site, allowed, method):
        """A web page of another origin is 403 and runs nothing; one of this service may call."""
        service = Microservice('app1')
        ran = []
        service.typing('/f', methods=('GET', 'POST'))(lambda: ran.append(1))
        headers = {'Host': host, 'ORIGIN': origin, 'Sec-Fetch-Site': site}
        headers = {name: value for name, value in headers.items() if value is not None}
        status, _, problem = ask(service, path='/f', method=method, **headers)
        assert (status, len(ran)) == ((200, 1) if allowed else (403, 0))
        if not allowed:
            assert 'may not call this service' in problem['detail']
            assert ask(service, path='/', method='GET', **headers)[0] == 403
            assert ask(service, path='/none', **headers)[0] == 403

    def test_the_name(self):
        """GET / tells the name, and HEAD / only its head, unless a rule has that path."""
        service = make(token=SECRET)
        assert service.answer('GET', '/', {}) == (200, tuple(JSON.items()), b'["app1"]')
        with serving(service):
            got = raw(service, request(b'', '/', 'HEAD', b'Connection: close\r\n'))
            assert statuses(got) == [200]
            assert b'\r\nContent-Length: 8\r\n' in got
            assert got.endswith(b'\r\n\r\n')
            for refused_head in (b'HEAD / HTTP/1.1\r\n\r\n', b'HEAD / HTTP/1.1\r\nHost: @\r\n\r\n'):
                got = raw(service, refused_head)
                assert statuses(got) == [400]
                assert got.endswith(b'\r\n\r\n')
            assert raw(service, request(b'', '/', 'GET')).endswith(b'\r\n\r\n["app1"]')
        assert ask(service, path='/')[0] == 404
        taken = Microservice('app1')
        taken.typing('/', methods=('GET',))(lambda: 'mine')
        assert taken.answer('GET', '/', {})[2] == b'["mine"]'

    def test_too_large(self):
        """A body, or a reply, over the limit is refused with both numbers."""
        service = make(max_body=30)
        status, _, problem = ask(service, b'{"args": ["%b"]}' % (b'x' * 30))
        assert (status, problem['title'][:7]) in ((413, 'Request'), (413, 'Content'))
        assert problem['detail'] == 'the body of 44 bytes is over max_body=30'
        assert service.ran == []
        with pytest.raises(ValueError, match='the reply of 44 bytes is over max_body=40'):
            friend_of(lambda: 'x' * 40, max_body=40).send('/f')


# ---------------------------------------------------------------------------------------- module

HEAVY = 'asyncio inspect argparse logging typing dataclasses difflib decimal uuid signal unittest'


def python(code, *options, **more):
    """Run *code* in a Python of its own, and give what it printed."""
    return subprocess.run(
        [sys.executable, '-W', 'error', *options, '-c', code],
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
        **more,
    ).stdout.decode()


def load(name):
    """Load the module once more, under *name*."""
    spec = importlib.util.spec_from_file_location(name, microconnect.__file__)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class TestModule:
    def test_public_names(self):
        """`__all__` is what the docstring tells of, and all that the module defines in public."""
        row = r'^    .{40,} ([A-Z]\w+) +(?:no|perhaps|yes)$'
        told = re.findall(row, microconnect.__doc__, re.M)
        names = {'Friend', 'Microservice', 'MicroconnectError', *told}
        assert set(microconnect.__all__) == names
        assert len(microconnect.__all__) == len(names)
        defined = {
            name
            for name, value in vars(microconnect).items()
            if getattr(value, '__module__', None) == 'microconnect' and not name.startswith('_')
        }
        assert defined == names

    def test_light_import(self):
        """Importing it, with -S and -I too, loads nothing heavy and starts no thread."""
        code = f"""
import sys
sys.path.insert(0, {os.path.dirname(os.path.abspath(microconnect.__file__))!r})
before = set(sys.modules)
import microconnect, threading
print(*(sys.modules.keys() - before) & set({HEAVY.split()!r}))
print(threading.active_count())
"""
        assert python(code, '-S', '-I').split() == ['1']

    def test_vendored(self, tmp_path):
        """A copy works as `from .vendor import microconnect`, under -S and -I."""
        vendor = tmp_path / 'project' / 'vendor'
        vendor.mkdir(parents=True)
        shutil.copy(microconnect.__file__, str(vendor / 'microconnect.py'))
        (vendor / '__init__.py').write_text('')
        (vendor.parent / '__init__.py').write_text("""
from .vendor import microconnect
Micro = microconnect.Microservice(__name__)
Micro.typing('/f')(lambda a: {'a': a})
with Micro.start(port=0, host='127.0.0.1'), microconnect.Friend('me', Micro.address) as friend:
    print(friend.send('/f', [1]))
    try:
        friend.send('/f', 1, 2)
    except microconnect.MicroconnectError as error:
        print(type(error))
""")
        code = f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import project'
        told = python(code, '-S', '-I').splitlines()
        assert told == ["{'a': [1]}", "<class 'project.vendor.microconnect.BadArguments'>"]

    def test_twice_in_one_process(self):
        """Two copies under two names live side by side, and call each other."""
        one, two = load('first_copy'), load('second_copy')
        try:
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
        finally:
            del sys.modules['first_copy'], sys.modules['second_copy']

    def test_no_warning(self):
        """A friend that was never closed leaves no ResourceWarning behind."""
        with answering(ok(b'[7]'), then_close=False) as (address, _):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                assert Friend('app1', address).send('/f') == 7
                gc.collect()
        assert caught == []

    def test_no_threads(self, monkeypatch):
        """Neither a service that does not serve nor a friend that only sends starts a thread."""

        def start(thread):
            raise AssertionError('a thread was started')

        close = 'Connection: close\r\n'

        with answering(ok(b'[7]', extra=close), ok(b'[8]', extra=close)) as (address, _):
            monkeypatch.setattr(threading.Thread, 'start', start)
            service = make()
            assert Friend('app1', service).send('/echo', 1) == 1
            with Friend('app1', address) as friend:
                assert [friend.send('/f'), friend.send('/f')] == [7, 8]
            assert load('third_copy')
            del sys.modules['third_copy']
            monkeypatch.undo()


@contextlib.contextmanager
def soon():
    """The block has to end long before what it waits for: that takes TIMEOUT, or for ever."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < TIMEOUT / 2


def until(condition):
    """Wait until *condition* holds: for what is over soon, and has no event that tells."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, 'it never came to hold'
        threading.Event().wait(0.005)


@contextlib.contextmanager
def background(function, *args):
    """Call *function* in a thread meanwhile; gives its Future."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield pool.submit(function, *args)


def receive(sock, wanted=b''):
    """All that comes until *wanted* does, or else until the peer closes."""
    sock.settimeout(TIMEOUT)
    got = b''
    with contextlib.suppress(ConnectionResetError):
        while not wanted or wanted not in got:
            part = sock.recv(65536)
            if not part:
                break
            got += part
    return got


def counting(service):
    """Add /count: the how manyth call it is on its connection, each of which has a thread."""
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


def resources():
    """How many threads there are, and descriptors where the system tells."""
    where = '/proc/self/fd'
    return threading.active_count(), len(os.listdir(where)) if os.path.exists(where) else 0


def until_released(before):
    """Wait until there are no more threads and descriptors than `resources()` were before."""
    until(lambda: all(now <= then for now, then in zip(resources(), before)))


HEAD = b'POST /echo HTTP/1.1\r\nHost: localhost\r\n'
CHUNKED_BYTES = b'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n'

REFUSED_BYTES = [  # what a request begins with, and how it is answered
    (b'POST /echo HTTP/1.1\r\n\r\n', 400),  # no Host
    (HEAD + b'Host: localhost\r\n\r\n', 400),
    (b'POST /echo HTTP/1.1\r\nHost: a/b\r\n\r\n', 400),
    (b'POST /echo HTTP/1.1\r\nHost: a@b\r\n\r\n', 400),
    (b'POST /echo HTTP/2.0\r\nHost: localhost\r\n\r\n', 505),
    (b'POST /echo http/1.1\r\nHost: localhost\r\n\r\n', 400),
    (b'POST /echo\r\nHost: localhost\r\n\r\n', 400),
    (b'POST  /echo HTTP/1.1\r\nHost: localhost\r\n\r\n', 400),
    (b'POST\t/echo HTTP/1.1\r\nHost: localhost\r\n\r\n', 400),
    (b' POST /echo HTTP/1.1\r\nHost: localhost\r\n\r\n', 400),
    (b'POST /echo#x HTTP/1.1\r\nHost: localhost\r\n\r\n', 400),
    (b'POST echo HTTP/1.1\r\nHost: localhost\r\n\r\n', 400),
    (b'POST * HTTP/1.1\r\nHost: localhost\r\n\r\n', 400),
    (b'POST /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n', 400),
    (b'POST /%ff HTTP/1.1\r\nHost: localhost\r\n\r\n', 400),
    (b'POST /\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n', 400),
    (b'CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n', 400),
    (b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03', 400),  # how TLS begins
    (HEAD + b'Content-Length: -1\r\n\r\n', 400),
    (HEAD + b'Content-Length: +1\r\n\r\n', 400),
    (HEAD + b'Content-Length: 1_0\r\n\r\n', 400),
    (HEAD + b'Content-Length: 0x1\r\n\r\n', 400),
    (HEAD + b'Content-Length: \xb2\r\n\r\n', 400),
    (HEAD + b'Content-Length:\r\n\r\n', 400),
    (HEAD + b'Content-Length: 0, 0\r\n\r\n', 400),
    (HEAD + b'Content-Length: 0\r\nContent-Length: 9\r\n\r\n', 400),
    (HEAD + b'Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', 400),
    (b'POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', 400),
    (HEAD + b'Transfer-Encoding: gzip, chunked\r\n\r\n', 501),
    (HEAD + b'Transfer-Encoding: identity\r\n\r\n', 400),
    (HEAD + b'Transfer-Encoding: xchunked\r\n\r\n', 400),
    (HEAD + b'Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n', 400),
    (HEAD + b'Content-Length : 0\r\n\r\n', 400),
    (HEAD + b'X: 1\r\n folded\r\n\r\n', 400),
    (HEAD + b'X: 1\nContent-Length: 0\r\n\r\n', 400),
    (HEAD + b'X: 1\rContent-Length: 0\r\n\r\n', 400),
    (HEAD + b'X: \0\r\n\r\n', 400),
    (HEAD + b'no colon\r\n\r\n', 400),
    (HEAD + b': no name\r\n\r\n', 400),
    (HEAD + b'Expect: the-spanish-inquisition\r\nContent-Length: 0\r\n\r\n', 417),
    (HEAD + CHUNKED_BYTES + b'zz\r\n', 400),
    (HEAD + CHUNKED_BYTES + b'-5\r\nx', 400),
    (HEAD + CHUNKED_BYTES + b'0x5\r\nhello\r\n0\r\n\r\n', 400),
    (HEAD + CHUNKED_BYTES + b'5\nhello\r\n0\r\n\r\n', 400),
    (HEAD + CHUNKED_BYTES + b'1\r\nhello\r\n0\r\n\r\n', 400),
    (HEAD + CHUNKED_BYTES + b'f' * 15 + b'\r\n', 413),
    (HEAD + CHUNKED_BYTES + b'f' * 16 + b'\r\n', 400),
    (HEAD + CHUNKED_BYTES + b'0\r\nno colon\r\n\r\n', 400),
]


@pytest.fixture(scope='class')
def service():
    """A service for all tests of a class."""
    with serving() as service:
        yield service


class TestRefusals:
    """What is no request, on the wire."""

    @pytest.mark.parametrize('start, status', REFUSED_BYTES)
    def test_refused(self, service, start, status):
        """What is no request is refused, and nothing after it is run as one."""
        got = raw(service, start + request(), end=False)
        assert statuses(got) == [status]
        assert b'\r\nConnection: close\r\n' in got
        assert json.loads(got.partition(b'\r\n\r\n')[2].decode())['status'] == status
        assert service.ran == []

    @pytest.mark.parametrize('length', [10**12, 10**30])
    def test_terabyte(self, service, length):
        """A length that is announced over the limit is refused without waiting for it."""
        got = raw(service, HEAD + b'Content-Length: %d\r\n\r\n' % length, end=False)
        assert statuses(got) == [413]

    @pytest.mark.parametrize(
        'data', [request()[:30], request()[:-1], HEAD + CHUNKED_BYTES + b'5\r\nab']
    )
    def test_cut_short(self, service, data):
        """A request that ends in its middle is not run."""
        assert statuses(raw(service, data)) == [400]
        assert service.ran == []


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
    def test_keep_alive(self, version, extra, kept):
        """A connection is kept where HTTP/1.1 has it so, and the reply says which."""
        with serving() as service:
            got = raw(service, request(version=version, extra=extra) * 2)
        assert statuses(got) == ([200, 200] if kept else [200])
        assert (b'\r\nKeep-Alive: timeout=60\r\n' in got) is kept
        assert (b'\r\nConnection: close\r\n' in got) is not kept
        assert got.endswith(b'\r\nContent-Length: 5\r\n\r\n["x"]')

    def test_idle_timeout_is_announced(self):
        """A client is told for how long its connection is kept, in seconds from 1 on."""
        for seconds, told_seconds in ((7, b'7'), (7.9, b'7'), (0.5, b'1')):
            with serving(idle_timeout=seconds) as service:
                got = raw(service, request())
            assert b'\r\nKeep-Alive: timeout=%b\r\n' % told_seconds in got

    def test_pipelining(self):
        """Requests sent in one write are answered one after the other, in their order."""
        bodies = [b'{"args":["%d"]}' % i for i in range(3)]
        with serving() as service:
            got = raw(service, b''.join(map(request, bodies)))
        assert statuses(got) == [200] * 3
        assert re.findall(rb'\["(.)"\]', got) == [b'0', b'1', b'2']

    def test_byte_by_byte(self):
        """A request may come in pieces of one byte."""
        with serving() as service, connect(service) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in request(extra=b'Connection: close\r\n'):
                sock.sendall(bytes([byte]))
            assert receive(sock).endswith(b'["x"]')

    def test_chunked_request(self):
        """A chunked body is put together, extensions and trailers are left out."""
        chunks = b'8;a=b\r\n{"args":\r\n006\r\n["yz"]\r\n1 ; c\r\n}\r\n0\r\nX: 1\r\nY:2\r\n\r\n'
        with serving() as service:
            got = raw(service, HEAD + CHUNKED_BYTES + chunks + request())
        assert statuses(got) == [200, 200]
        assert service.ran == [(('yz',), {}), (('x',), {})]

    def test_expect_continue(self):
        """Who expects it is told to continue, and then sends the body."""
        head, _, body = request(extra=b'Expect: 100-continue\r\n').partition(b'\r\n\r\n')
        with serving() as service, connect(service) as sock:
            sock.sendall(head + b'\r\n\r\n')
            assert receive(sock, b'\r\n\r\n') == b'HTTP/1.1 100 Continue\r\n\r\n'
            sock.sendall(body)
            assert statuses(receive(sock, b'["x"]')) == [200]

    def test_expect_continue_too_large(self):
        """Who expects to send too much is told so before sending it."""
        head = HEAD + b'Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n'
        with serving(max_body=1000) as service:
            assert statuses(raw(service, head, end=False)) == [413]

    def test_head(self):
        """HEAD gives the head that GET gives, and no body."""
        with serving() as service:
            got = raw(service, request(b'', '/', 'HEAD') + request(b'', '/', 'GET'))
        first, second, body = got.split(b'\r\n\r\n')
        assert (first, body) == (second, b'["app1"]')

    def test_after_head(self):
        """What the service says after the reply to HEAD has its body again."""
        with serving(idle_timeout=0.1) as service:
            got = raw(service, request(b'', '/', 'HEAD'), end=False)
        assert statuses(got) == [200, 408]
        assert json.loads(got.rpartition(b'\r\n\r\n')[2].decode())['status'] == 408

    @pytest.mark.parametrize(
        'head',
        [
            request(extra=b'X: %b\r\n' % (b'x' * 1000)),
            HEAD + b'X: ' + b'x' * 1000,  # and so on for ever
            b'POST /' + b'x' * 1000,
            HEAD + b'X: 1\r\n' * 8 + b'\r\n',
        ],
    )
    def test_head_limits(self, head):
        """A head over max_head, or with over max_headers lines, is refused."""
        with serving(max_head=1000, max_headers=8) as service:
            assert statuses(raw(service, head, end=False)) == [431]
        assert service.ran == []

    def test_head_limits_reached(self):
        """A head of exactly max_head and max_headers is taken."""
        size = len(request()) - len(b'{"args":["x"]}')
        with serving(max_head=size, max_headers=3) as service:
            assert statuses(raw(service, request())) == [200]

    def test_max_body(self):
        """A body of max_body bytes is taken, one more byte is not, chunked neither."""
        body = b'{"args":["xx"]}'
        chunks = HEAD + CHUNKED_BYTES + b'5\r\n{"arg\r\na\r\ns":["xx"]}\r\n0\r\n\r\n'
        with serving(max_body=len(body)) as service:
            assert statuses(raw(service, request(body) + chunks)) == [200, 200]
        with serving(max_body=len(body) - 1) as service:
            assert statuses(raw(service, request(body), end=False)) == [413]
            assert statuses(raw(service, chunks, end=False)) == [413]
        assert service.ran == []

    def test_refusal_arrives(self):
        """Who sends 5 MB too much gets to read why it is refused, each time."""
        body = b'{"args":["%b"]}' % (b'x' * 5000000)
        with serving(max_body=1000) as service:
            for _ in range(10):
                with connect(service) as sock, sock.makefile('rb') as replies:
                    sock.sendall(request(body))  # neither this is broken off, nor the reply
                    sock.shutdown(socket.SHUT_WR)
                    assert statuses(replies.read()) == [413]
            with Friend('app1', service.address) as friend:
                for _ in range(10):
                    with pytest.raises(microconnect.TooLarge, match='over max_body=1000') as caught:
                        friend.send('/echo', 'x' * 5000000)
                    assert (caught.value.status, caught.value.sent) == (413, False)
        assert service.ran == []

    def test_too_slow(self):
        """Who is silent, stops in the middle, or drips, is told 408; others are served on."""
        starts = [b'', HEAD, request()[:-1], HEAD + CHUNKED_BYTES + b'5\r\n', HEAD + b'Drip: ']
        with serving(read_timeout=0.5) as service, contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(service)) for _ in starts]
            for sock, start in zip(socks, starts):
                sock.sendall(start)
            until_then = time.monotonic() + TIMEOUT
            while not select.select(socks[-1:], (), (), 0.02)[0]:
                assert time.monotonic() < until_then
                socks[-1].sendall(b'x')
                assert statuses(raw(service, request())) == [200]
            assert [statuses(receive(sock)) for sock in socks] == [[408]] * len(starts)
        assert {args for args, _ in service.ran} == {('x',)}

    def test_large_body_has_time(self):
        """A body that keeps coming is read, however long it takes in all."""
        body = b'{"args":["%b"]}' % (b'x' * 3000000)
        data = memoryview(request(body, extra=b'Connection: close\r\n'))
        with serving(read_timeout=0.2) as service, connect(service) as sock:
            for start in range(0, len(data), 300000):
                sock.sendall(data[start : start + 300000])
                threading.Event().wait(0.025)
            assert statuses(receive(sock)) == [200]

    def test_idle_timeout(self):
        """A connection that is idle for too long is told so and closed."""
        with serving(idle_timeout=0.2) as service, connect(service) as sock:
            sock.sendall(request())
            got = receive(sock)
        assert statuses(got) == [200, 408]
        assert b'idle' in got

    def test_longest_idle_makes_room(self):
        """At max_connections, the connection that was idle for longest is closed for a new one."""
        with serving(max_connections=2) as service, contextlib.ExitStack() as stack:
            socks = []
            for _ in range(2):
                socks.append(stack.enter_context(connect(service)))
                socks[-1].sendall(request())
                receive(socks[-1], b'["x"]')
                until(lambda: len(service._listener.idle) == len(socks))
            assert statuses(raw(service, request())) == [200]
            assert statuses(receive(socks[0])) == [408]
            socks[1].sendall(request())
            assert statuses(receive(socks[1], b'["x"]')) == [200]

    def test_all_busy(self):
        """Where every connection is busy, a newcomer is told so at once, and none is harmed."""
        with serving(holding(make(max_connections=2))) as service, contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(service)) for _ in range(2)]
            for sock in socks:
                sock.sendall(request(b'', '/hold', extra=b'Connection: close\r\n'))
                assert service.held.acquire(timeout=TIMEOUT)
            for _ in range(20):
                assert statuses(raw(service, b'', end=False)) == [503]
                with Friend('app1', service.address) as friend:
                    with pytest.raises(microconnect.Busy) as caught:
                        friend.send('/echo', 1)
                    assert (caught.value.status, caught.value.sent) == (503, False)
            service.release.set()
            assert [statuses(receive(sock)) for sock in socks] == [[200]] * 2
            stack.close()
            until(lambda: not service._listener.connections)
            assert statuses(raw(service, request())) == [200]

    def test_reply_never_read(self, monkeypatch):
        """Who does not take the reply is cut off, and its thread ends."""
        monkeypatch.setattr(microconnect, '_LINGER', 0.05)
        service = make(read_timeout=0.1)
        service.typing('/large')(lambda: 'x' * 9000000)
        with serving(service):
            before = resources()
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.settimeout(TIMEOUT)
                sock.connect(('127.0.0.1', port_of(service)))
                sock.sendall(request(b'', '/large'))
                until(lambda: service._listener.connections)
                until(lambda: not service._listener.connections)
                assert len(receive(sock)) < 9000000
            until_released(before)

    def test_bad_company(self):
        """Silent and resetting clients keep nobody from calling, and leave nothing behind."""
        abort = struct.pack('hh' if os.name == 'nt' else 'ii', 1, 0)
        with serving() as service, contextlib.ExitStack() as stack:
            before = resources()
            for number in range(150):
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

    def test_burst(self):
        """A hundred clients that connect at once are all served."""
        barrier = threading.Barrier(100)

        def call(number):
            barrier.wait(TIMEOUT)
            with Friend('app1', service.address) as friend:
                return friend.send('/echo', number)

        with serving() as service, concurrent.futures.ThreadPoolExecutor(100) as pool:
            assert list(pool.map(call, range(100))) == list(range(100))


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


def by_name(service):
    """The address of a service, with the name that its certificate is for."""
    return service.address.replace('127.0.0.1', 'localhost')


class TestTls:
    """The same over TLS, given an ssl_context on both sides."""

    def test_call(self, tls_service, tls_client):
        """A call works, at an https address, with a large value too."""
        assert tls_service.address.startswith('https://127.0.0.1:')
        with Friend('app1', by_name(tls_service), ssl_context=tls_client) as friend:
            assert friend.send('/echo', 'x' * 1000000) == 'x' * 1000000

    def test_keep_alive(self, tls_service, tls_client):
        """The connection is kept for the next call, and its handshake with it."""
        with Friend('app1', by_name(tls_service), ssl_context=tls_client) as friend:
            assert [friend.send('/count') for _ in range(3)] == [1, 2, 3]

    @pytest.mark.parametrize(
        'sent', [request(), b'', request()[:20], request()[:-2]], ids=['call', '', 'head', 'body']
    )
    def test_too_slow(self, sent, tls_server, tls_client):
        """A client that is too slow, or idle, is told so over TLS, too."""
        is_idle = sent == request()
        service = make(read_timeout=TIMEOUT if is_idle else 0.5, idle_timeout=0.2)
        tls_client.options |= 0x80  # OP_IGNORE_UNEXPECTED_EOF: an end without a word is one, too
        with service.start(port=0, host='127.0.0.1', ssl_context=tls_server):
            with tls_client.wrap_socket(connect(service), server_hostname='localhost') as sock:
                sock.sendall(sent)
                assert statuses(receive(sock)) == ([200, 408] if is_idle else [408])

    def test_unasked_bytes(self, tls_server, tls_client):
        """A second reply that nobody asked for is not taken for the next call's."""

        def script(sock, number, _):
            with tls_server.wrap_socket(sock, server_side=True) as inside:
                large = told(b'["%b"]' % (b'x' * 40000))
                call_on(inside)
                inside.sendall(large + told(b'["unasked"]') if not number else told(b'["asked"]'))
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

    def test_no_tls(self, tls_service):
        """A client that speaks no TLS gets no reply, and nothing runs."""
        assert statuses(raw(tls_service, request())) == []
        assert tls_service.ran == []

    def test_unknown_issuer(self, tls_service):
        """A certificate of an issuer that is not trusted is Unreachable, which says so."""
        client = ssl.create_default_context()
        with Friend('app1', by_name(tls_service), ssl_context=client) as friend:
            with pytest.raises(microconnect.Unreachable, match='certificate verify failed') as got:
                friend.send('/echo', 1)
        assert got.value.sent is False
        assert tls_service.ran == []

    def test_wrong_host(self, tls_service, tls_client):
        """A certificate for another host is Unreachable, which says so."""
        with Friend('app1', tls_service.address, ssl_context=tls_client) as friend:
            with pytest.raises(microconnect.Unreachable, match=r"not valid for '127\.0\.0\.1'"):
                friend.send('/echo', 1)
        assert tls_service.ran == []

    def test_service_without_tls(self, tls_client):
        """An https address of a service that speaks no TLS is Unreachable."""
        with serving() as service:
            address = f'https://localhost:{port_of(service)}'
            with Friend('app1', address, ssl_context=tls_client) as friend:
                with pytest.raises(microconnect.Unreachable, match='SSL.*does it speak TLS'):
                    friend.send('/echo', 1)
        assert service.ran == []


@contextlib.contextmanager
def run_python(script):
    """Run *script* in a Python of its own, with pipes; a warning there is an error."""
    where = os.path.dirname(os.path.abspath(microconnect.__file__))
    script = f'import sys\nsys.path.insert(0, {where!r})\n{script}'
    pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
    with subprocess.Popen([sys.executable, '-W', 'error', '-c', script], **pipes) as process:
        watchdog = threading.Timer(3 * TIMEOUT, process.kill)  # readline has no timeout
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def outcome(process):
    """The exit code of *process*, and what it still printed and complained of."""
    printed, complaints = process.communicate(timeout=TIMEOUT)
    return process.returncode, printed.decode().split(), complaints.decode()


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


def answers(address):
    """Whether a service at *address* takes calls."""
    with Friend('app1', address) as friend:
        return friend.ping()


@contextlib.contextmanager
def called(process):
    """Call SLOW_SERVICE, run by *process*; gives its address, and the Future of the call."""
    address = re.search(r'http:[^;]+', process.stdout.readline().decode()).group()
    with Friend('app1', address, token='secret', timeout=TIMEOUT) as friend:
        with background(friend.send, '/hold') as call:
            assert process.stdout.readline() == b'called\n'
            yield address, call


LIMITS = ['max_body', 'max_head', 'max_headers', 'read_timeout', 'idle_timeout', 'max_connections']


class TestStopping:
    """start, run and stop."""

    @pytest.mark.parametrize('limit', LIMITS)
    @pytest.mark.parametrize('value', [0, -1, None, '20'])
    def test_bad_limit(self, limit, value):
        """A limit that is none is refused when the service is made, by its name."""
        with pytest.raises(ValueError, match=f'{limit} is a number .* above 0'):
            make(**{limit: value})

    @pytest.mark.parametrize('options', [{'port': '5000'}, {'port': 0, 'host': None}])
    def test_bad_address(self, options):
        """A port or host of the wrong type is refused with what they are."""
        options.setdefault('host', '127.0.0.1')
        service = Microservice('app1', host=options.pop('host'))
        with pytest.raises(TypeError, match='host is a string and port a number'):
            service.start(**options)

    def test_start(self):
        """A service serves from start, which gives the service, to the end of `with`."""
        service = make()
        with service.start(port=0, host='127.0.0.1') as same:
            assert same is service
            assert re.fullmatch(r'http://127\.0\.0\.1:[0-9]+', service.address)
            with pytest.raises(RuntimeError, match=f'serves already, at {service.address}'):
                service.start(port=0, host='127.0.0.1')
            assert statuses(raw(service, request())) == [200]
        with pytest.raises(RuntimeError, match='does not serve'):
            service.address  # noqa: B018

    def test_start_again(self):
        """A service that was stopped can be started again, and a friend goes on with it."""
        service = counting(make())
        with serving(service):
            port = port_of(service)
            friend = Friend('app1', service.address)
            assert friend.send('/count') == 1
        with service.start(port, '127.0.0.1'), friend:
            assert friend.send('/count') == 1

    def test_constructor_says_where(self):
        """Host and port may be given to the class."""
        service = Microservice('app1', 0, '127.0.0.1')
        with service.start():
            assert statuses(raw(service, request(b'', '/', 'GET'))) == [200]

    def test_port_in_use(self):
        """A port that is taken, by another or by a service, is an OSError that names it."""
        with socket.socket() as taken:
            taken.bind(('127.0.0.1', 0))
            taken.listen(1)
            port = taken.getsockname()[1]
            with pytest.raises(OSError, match=f'127.0.0.1:{port}: .*another port') as caught:
                make().start(port, '127.0.0.1')
            assert caught.value.errno == errno.EADDRINUSE
        with serving() as service:
            with pytest.raises(OSError, match=f'127.0.0.1:{port_of(service)}'):
                make().start(port_of(service), '127.0.0.1')
            assert statuses(raw(service, request())) == [200]

    def test_what_is_no_ssl_context(self):
        """What is no SSLContext is refused at once, by either side."""
        for use in (
            lambda: make().start(0, '127.0.0.1', ssl_context=('cert', 'key')),
            lambda: Friend('app1', 'https://127.0.0.1', ssl_context=True),
        ):
            with pytest.raises(TypeError, match='ssl_context is an ssl.SSLContext, not'):
                use()

    @pytest.mark.parametrize('port', [-1, 65536])
    def test_impossible_port(self, port):
        """A port that is none is an OSError that names it."""
        with pytest.raises(OSError, match=f'cannot listen on 127.0.0.1:{port}: '):
            make().start(port, '127.0.0.1')

    def test_stop_twice(self):
        """stop does nothing where nothing is to be stopped: before start, and the second time."""
        service = make()
        service.stop()
        with serving(service):
            service.stop()
            service.stop()

    def test_stop_in_rule(self):
        """A rule may stop its service: its reply still arrives."""
        service = make()
        service.typing('/stop')(lambda: service.stop() or 'bye')
        with serving(service), Friend('app1', service.address) as friend:
            assert friend.send('/stop') == 'bye'
            until(lambda: not service._listener.thread.is_alive())
            with pytest.raises(microconnect.Unreachable):
                friend.send('/echo', 1)

    @pytest.mark.skipif(not hasattr(signal, 'SIGUSR1'), reason='no such signal here')
    def test_stop_in_signal_handler(self):
        """A signal handler may stop the service, in the middle of a call of its own thread."""
        service = make()
        service.typing('/signal')(lambda: os.kill(os.getpid(), signal.SIGUSR1) or 'sent')
        before = signal.signal(signal.SIGUSR1, lambda *_: service.stop())
        try:
            with serving(service), Friend('app1', service.address) as friend:
                assert friend.send('/signal') == 'sent'
                until(lambda: service._listener.is_over)  # the handler may come after the reply
        finally:
            signal.signal(signal.SIGUSR1, before)

    def test_stop_finishes_calls(self):
        """stop waits for the calls in flight, whose replies arrive, and refuses new ones."""
        refusals = (microconnect.Busy, microconnect.Unreachable)

        def refused():
            with Friend('app1', address) as another:
                try:
                    return another.send('/echo', 'new') != 'new'
                except refusals as error:
                    return not error.sent

        with serving(holding(make())) as service, Friend('app1', service.address) as friend:
            address = service.address
            with background(friend.send, '/hold') as call, connect(service) as sock:
                sock.sendall(request(b'', '/hold'))
                for _ in range(2):
                    assert service.held.acquire(timeout=TIMEOUT)
                with background(service.stop) as stopping:
                    until(refused)
                    assert refused() and not call.done() and not stopping.done()
                    service.release.set()
                    assert call.result(TIMEOUT) == 'held'
                    assert statuses(receive(sock)) == [200]
                    sock.close()
                    stopping.result(TIMEOUT)
            with pytest.raises(refusals):
                friend.send('/echo', 1)

    def test_stop_cuts_off(self):
        """What still runs after the grace is cut off, and the caller told."""
        before = resources()
        with serving(holding(make())) as service, Friend('app1', service.address) as friend:
            with background(friend.send, '/hold') as call:
                assert service.held.acquire(timeout=TIMEOUT)
                with soon():
                    service.stop(grace=0.1)
                with pytest.raises(microconnect.ConnectionLost) as caught:
                    call.result(TIMEOUT)
                assert caught.value.sent is True
                service.release.set()
        until_released(before)

    def test_started_twice_at_once(self, monkeypatch):
        """Of two threads that start a service at once, one is told that it serves already."""
        service, listen = make(), microconnect._listen
        entered, go_on = threading.Event(), threading.Event()

        def slowly(*args):
            entered.set()
            go_on.wait(TIMEOUT)
            listen(*args)

        monkeypatch.setattr(microconnect, '_listen', slowly)
        start = functools.partial(service.start, 0, '127.0.0.1')
        with background(start) as first, background(start) as second:
            assert entered.wait(TIMEOUT)
            go_on.set()
            results = [call.exception(TIMEOUT) for call in (first, second)]
        service.stop()
        told = [str(error) for error in results if error]
        assert len(told) == 1 and 'serves already' in told[0]

    def test_stopped_by_a_handler_while_it_starts(self, monkeypatch):
        """A signal's handler that stops the service in the middle of its start does not wait."""
        service = make()
        monkeypatch.setattr(service, '_warn', lambda host: service.stop(), raising=False)
        starting = threading.Thread(target=service.start, args=(0, '127.0.0.1'), daemon=True)
        starting.start()
        starting.join(TIMEOUT)
        assert not starting.is_alive()
        until(lambda: service._listener.is_over)
        monkeypatch.undo()
        with serving(service):
            assert answers(service.address)

    @pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork')
    def test_fork_while_it_starts(self):
        """A child that was forked in the middle of the parent's start can start by itself."""
        script = """
import os, signal, threading, warnings
from microconnect import Friend, Microservice
warnings.simplefilter('ignore')
Micro = Microservice('app1', host='127.0.0.1')
def fork():
    global child
    del Micro._warn
    child = os.fork()
    if not child:
        signal.alarm(10)
        with Micro.start(port=0):
            os._exit(0)
def in_another_thread(host):
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
Micro._warn = in_another_thread
Micro.start(port=0)
print(os.waitpid(child, 0)[1])
with Friend('app1', Micro.address) as friend:
    print(friend.ping())
Micro.stop()
"""
        with run_python(script) as process:
            assert outcome(process) == (0, ['0', 'True'], '')

    def test_stopped_at_once(self, monkeypatch, capsys):
        """run ends in good order where another thread has stopped it before it could say so."""
        start = Microservice.start

        def start_and_stop(self, *args, **options):
            start(self, *args, **options).stop()
            return self

        monkeypatch.setattr(Microservice, 'start', start_and_stop)
        assert make().run(port=0, host='127.0.0.1') is None
        assert 'listening on 127.0.0.1:' in capsys.readouterr().out

    @pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork')
    def test_stop_after_a_fork(self):
        """After stop the port is free, though a child that was forked meanwhile lives on."""
        script = """
import os, warnings
from microconnect import Friend, Microservice
Micro = Microservice('app1', host='127.0.0.1')
warnings.simplefilter('ignore')
with Micro.start(port=0):
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
"""
        with run_python(script) as process:
            assert outcome(process) == (0, ['False', 'again'], '')

    def test_stop_under_newcomers(self):
        """stop ends though new connections come all the time."""
        with serving() as service:
            listener = service._listener

            def one_more():
                listener._accepted = True

            listener.handle_request = one_more
            with background(service.stop) as stopping:
                assert stopping.result(TIMEOUT) is None

    def test_stop_releases_everything(self):
        """After stop no thread and no descriptor is left, with clients still connected."""
        before = resources()
        with contextlib.ExitStack() as stack:
            with serving(make()) as service:
                friend = stack.enter_context(Friend('app1', service.address))
                assert friend.send('/echo', 1) == 1
                socks = [stack.enter_context(connect(service)) for _ in range(10)]
                assert statuses(raw(service, request())) == [200]
            assert [receive(sock).count(b'HTTP/1.1 408 ') for sock in socks] == [1] * 10
            stack.close()
            until_released(before)

    @pytest.mark.parametrize(
        'host, token, warned',
        [
            ('0.0.0.0', None, ['/echo', '/fail']),
            ('0.0.0.0', {'/echo': 'secret'}, ['/fail']),
            ('0.0.0.0', 'secret', []),
            ('127.0.0.1', None, []),
        ],
    )
    def test_announcement(self, host, token, warned, monkeypatch, capsys, caplog):
        """run prints where it listens, and warns once of the rules that anyone can reach."""
        listener = microconnect._Listener
        bind = listener.server_bind

        def bind_to_loopback(self):
            self.server_address = ('127.0.0.1', 0)
            bind(self)
            self.server_name = host

        monkeypatch.setattr(listener, 'server_bind', bind_to_loopback)
        service = make(token=token)
        with background(lambda: service.run(port=0, host=host)) as running:
            try:
                until(lambda: service._listener and service._listener.thread.is_alive())
                address = service.address
                bound = f'{host}:{port_of(service)}'
                assert answers(address)
            finally:
                service.stop()
            running.result(TIMEOUT)
        told = f'app1: listening on {bound}, here {address}; Ctrl-C stops it\n'
        assert capsys.readouterr().out == told
        warnings = [line.getMessage() for line in caplog.records if line.levelname == 'WARNING']
        assert len(warnings) == bool(warned)
        assert [rule for line in warnings for rule in re.findall(r'/\w+', line)] == warned
        assert all(host in line for line in warnings)

    def test_token_of_no_rule(self, caplog):
        """A token for a rule that is not there, which guards nothing, is warned of at the start."""
        with serving(make(token={'/ecko': 'secret', '/fail': 'secret'})):
            pass
        told = "a token is set, and there is no rule '/ecko': did you mean '/echo'?"
        assert [line.getMessage() for line in caplog.records] == [told]

    def test_misplaced_token_is_not_shown(self, caplog):
        """Where a token stands in the place of the rule, the warning does not show it."""
        with serving(make(token={'s3cret-token': '/echo'})):
            pass
        told = ['a token is set, and there is no rule for it']
        assert [line.getMessage() for line in caplog.records] == told

    def test_interrupted_warning(self, caplog):
        """A signal that comes while start warns leaves nothing that listens."""

        def interrupt(record):
            raise KeyboardInterrupt

        service = make(token={'/ecko': 'secret'})
        before = resources()
        caplog.handler.addFilter(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                service.start(port=0, host='127.0.0.1')
        finally:
            caplog.handler.removeFilter(interrupt)
        until_released(before)
        with serving(service):
            assert statuses(raw(service, request(b'', '/', 'GET'))) == [200]

    @pytest.mark.parametrize('host', ['wsgi', 'asgi', 'friend'])
    def test_token_of_no_rule_elsewhere(self, host, caplog):
        """So it is where others listen, and in process."""
        service = make(token={'/ecko': 'secret'})
        Friend('app1', service) if host == 'friend' else getattr(service, host)
        assert ["'/ecko'" in line.getMessage() for line in caplog.records] == [True]

    @pytest.mark.skipif(os.name == 'nt', reason='Windows has no such signals to send')
    @pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
    def test_signal(self, number):
        """SIGINT and SIGTERM finish the call in flight, refuse others, and end without a word."""
        with run_python(SLOW_SERVICE) as process, called(process) as (address, call):
            process.send_signal(number)
            until(lambda: not answers(address))
            assert not call.done()
            process.stdin.write(b'.')
            process.stdin.flush()
            assert call.result(TIMEOUT) == 'held'
            assert outcome(process) == (0, [], '')

    @pytest.mark.skipif(os.name == 'nt', reason='Windows has no such signals to send')
    @pytest.mark.parametrize('number', ['SIGINT', 'SIGTERM'])
    def test_signal_while_it_starts(self, number):
        """A signal that comes just as `run` has started ends the service all the same."""
        script = f"""
import os, signal
from microconnect import Microservice
Micro = Microservice('app1', token='secret')
start = Micro.start
def start_and_get_signal(*args, **kwargs):
    start(*args, **kwargs)
    os.kill(os.getpid(), signal.{number})
    return Micro
Micro.start = start_and_get_signal
before = signal.getsignal(signal.SIGTERM)
Micro.run(0, '127.0.0.1')
print('ended', signal.getsignal(signal.SIGTERM) is before)
try:
    Micro.address
except RuntimeError:
    print('stopped')
"""
        with run_python(script) as process:
            code, printed, complaints = outcome(process)
        assert (code, printed[-3:], complaints) == (0, ['ended', 'True', 'stopped'], '')

    @pytest.mark.skipif(os.name == 'nt', reason='Windows has no such signals to send')
    @pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
    def test_second_signal(self, number):
        """A second one ends at once."""
        with run_python(SLOW_SERVICE) as process, called(process) as (address, call):
            process.send_signal(number)
            until(lambda: not answers(address))
            process.send_signal(number)
            with pytest.raises(microconnect.ConnectionLost):
                call.result(TIMEOUT)
            assert outcome(process) == (0, [], '')

    def test_exit(self):
        """A process ends without a word while its service serves and its friend is connected."""
        script = (
            'from microconnect import Friend, Microservice\n'
            'Micro = Microservice("app1")\n'
            'Micro.typing("/plain")(lambda: 1)\n'
            '@Micro.typing("/async")\n'
            'async def later():\n'
            '    return 2\n'
            'friend = Friend("app1", Micro.start(port=0, host="127.0.0.1").address)\n'
            'print(friend.send("/plain"), friend.send("/async"))\n'
        )
        with run_python(script) as process:
            assert outcome(process) == (0, ['1', '2'], '')


def told(body=b'["x"]', status=b'200 OK', extra=b'Content-Type: application/json\r\n'):
    """The bytes of a reply."""
    return b'HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b' % (status, extra, len(body), body)


def call_on(sock):
    """Read one call's request from *sock*; b'' where none comes."""
    data = receive(sock, b'\r\n\r\n')
    head, _, body = data.partition(b'\r\n\r\n')
    length = re.search(rb'(?i)\r\ncontent-length: (\d+)', head)
    while length and len(body) < int(length.group(1)):
        body += sock.recv(65536)
    return head and head + b'\r\n\r\n' + body


@contextlib.contextmanager
def peer(script):
    """A peer that runs *script* for each connection, one after the other; gives its address.

    The script is given the socket, how many connections there were before, and an Event that is
    set when the test is over.
    """
    over = threading.Event()
    listener = socket.socket()
    listener.bind(('127.0.0.1', 0))
    listener.listen(16)

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


def several_addresses(monkeypatch):
    """Let each name that a friend looks up have four addresses, all the same."""
    look_up = socket.getaddrinfo

    def repeated(*args, **kwargs):
        found = look_up(*args, **kwargs)
        return found * 4 if kwargs else found  # socket.create_connection gives no keywords

    monkeypatch.setattr(socket, 'getaddrinfo', repeated)


def complaints():
    """What a garbage collection warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        gc.collect()
    return [str(warning.message) for warning in caught]


ERRORS_OF = [  # a reply's status; what send raises, and what that also is; may it have run?
    (400, 'BadCall', ValueError, False),
    (411, 'BadCall', ValueError, False),
    (414, 'BadCall', ValueError, False),
    (415, 'BadCall', ValueError, False),
    (417, 'BadCall', ValueError, False),
    (505, 'BadCall', ValueError, False),
    (422, 'BadArguments', TypeError, False),
    (401, 'Forbidden', PermissionError, False),
    (403, 'Forbidden', PermissionError, False),
    (404, 'UnknownRule', LookupError, False),
    (405, 'UnknownRule', LookupError, False),
    (501, 'UnknownRule', LookupError, False),
    (413, 'TooLarge', ValueError, False),
    (431, 'TooLarge', ValueError, False),
    (408, 'Busy', ConnectionError, False),
    (503, 'Busy', ConnectionError, False),
    (500, 'RemoteError', Exception, True),
    (418, 'BadReply', ValueError, True),
    (502, 'BadReply', ValueError, True),
    (204, 'BadReply', ValueError, True),
    (302, 'BadReply', ValueError, True),
    (304, 'BadReply', ValueError, True),
]

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n'
LONG = b'X: %b\r\n' % (b'x' * 1000)

NO_REPLY_BYTES = [  # what a peer answers, and what send says of it
    (b'', 'ConnectionLost', 'ended before a reply'),
    (b'HTTP/1.1 200', 'BadReply', 'ended in the middle'),
    (OK, 'BadReply', 'ended in the middle'),
    (OK + b'Content-Length: 9\r\n\r\n["x"]', 'BadReply', 'ended in the middle'),
    (OK + b'Content-Length: 4\r\n\r\n["x"]', 'BadReply', 'not JSON'),
    (OK + b'Content-Length: 5\r\nContent-Length: 4\r\n\r\n["x"]', 'BadReply', 'not a number'),
    (OK + b'Content-Length: -5\r\n\r\n["x"]', 'BadReply', 'not a number'),
    (OK + b'Transfer-Encoding: chunked\r\n\r\n5\r\n["x"]\r\n', 'BadReply', 'ended in the middle'),
    (OK + b'Transfer-Encoding: chunked\r\n\r\n4\r\n["x"]\r\n', 'BadReply', 'longer than its size'),
    (OK + b'Transfer-Encoding: gzip\r\n\r\n["x"]', 'BadReply', 'Transfer-Encoding'),
    (OK + LONG * 100, 'BadReply', 'the head is over'),
    (b'HTTP/1.1 100 Continue\r\n\r\n' * 100, 'BadReply', 'the connection ended'),
    (b'HTTP/2.0 200 OK\r\n\r\n', 'BadReply', 'only HTTP/1.1'),
    (b'HTTP/1.1 999 What\r\n\r\n', 'BadReply', 'malformed'),
    (b'SSH-2.0-OpenSSH_9.2\r\n', 'BadReply', 'malformed'),
    (b'\x15\x03\x01\x00\x02\x02\x46', 'BadReply', 'malformed'),  # an alert of TLS
    (told(b'<html></html>', extra=b'Content-Type: text/html\r\n'), 'BadReply', 'text/html'),
    (told(extra=b''), 'BadReply', 'Content-Type'),
    (told(b''), 'BadReply', 'not JSON'),
    (told(b'["x"'), 'BadReply', 'not JSON'),
    (told(b'["\xff"]'), 'BadReply', 'not JSON'),
    (told(b'[NaN]'), 'BadReply', 'not JSON'),
    (told(b'"x"'), 'BadReply', 'not an array'),
    (told(b'{"0":"x"}'), 'BadReply', 'not an array'),
    (told(b'[' * 100000), 'BadReply', 'not JSON'),
    (told(b'[' * 100000 + b']' * 100000), 'BadReply', 'nested too deeply'),
    (told(extra=OK[17:] + b'Content-Encoding: gzip\r\n'), 'BadReply', 'compressed'),
    (told(b'["%b"]' % (b'x' * 300000)), 'TooLarge', 'over max_body=250000'),
    (OK + b'\r\n["%b"]' % (b'x' * 300000), 'TooLarge', 'over max_body=250000'),
]

REPLY_BYTES = [  # what is a reply too, holding "x"
    told(),
    told(b' [ "x" ]\n'),
    OK + b'\r\n["x"]',  # it ends with the connection
    OK + b'Connection: close\r\nContent-Length: 5\r\n\r\n["x"]',
    OK.replace(b'1.1', b'1.0') + b'Content-Length: 5\r\n\r\n["x"]',
    OK.replace(b' OK', b'') + b'Content-Length: 5\r\n\r\n["x"]',
    OK.lower().replace(b'http', b'HTTP') + b'content-length:5\r\n\r\n["x"]',
    OK.replace(b'json', b'json; charset=utf-8') + b'Content-Length: 5\r\n\r\n["x"]',
    OK + b'Transfer-Encoding: chunked\r\n\r\n1;a=b\r\n[\r\n04\r\n"x"]\r\n0\r\nY: 1\r\n\r\n',
    b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n' + told(),
    OK + b'Content-Encoding: identity\r\nContent-Length: 5\r\n\r\n["x"]',
]


class TestFriend:
    """send, ping and wait, against peers that do as they like."""

    def failed(self, address, kind, match='', timeout=TIMEOUT):
        """How a call of /echo at *address* fails, with all that every failure tells."""
        with Friend('app1', address, timeout=timeout, max_body=250000) as friend:
            with pytest.raises(microconnect.MicroconnectError, match=match) as caught:
                friend.send('/echo', 'x')
        error = caught.value
        assert isinstance(error, getattr(microconnect, kind)), error
        assert (error.rule, error.address) == ('/echo', address)
        assert str(error).startswith(f'/echo at {address}: ')
        return error

    @pytest.mark.parametrize('status, kind, base, sent', ERRORS_OF)
    def test_statuses(self, status, kind, base, sent):
        """Each status is raised as what it tells of, with what a caller needs to act."""
        problem = b'' if status in (204, 304) else b'{"detail":"some reason"}'
        reply = told(problem, b'%d What' % status, b'Location: http://127.0.0.1:9/\r\n')
        with answering(reply) as (address, got):
            error = self.failed(address, kind, 'some reason' if problem else str(status))
        assert isinstance(error, base)
        assert (error.status, error.sent, len(got)) == (status, sent, 1)

    @pytest.mark.parametrize('reply, kind, match', NO_REPLY_BYTES)
    def test_no_reply(self, reply, kind, match):
        """What is no reply is never given as one, and the call is not sent again."""
        with answering(reply) as (address, got):
            error = self.failed(address, kind, match)
        assert (error.sent, len(got)) == (True, 1)

    @pytest.mark.parametrize('reply', REPLY_BYTES)
    def test_reply(self, reply):
        """A reply is understood in every form that HTTP has for it."""
        with answering(reply) as (address, _), Friend('app1', address) as friend:
            assert friend.send('/echo') == 'x'

    def test_failure_without_reason(self):
        """A failure whose body tells nothing is raised all the same."""
        with answering(told(b'<p>', b'404 Not Found')) as (address, _):
            self.failed(address, 'UnknownRule', 'the service answered 404, without saying why')

    def test_unreachable(self):
        """Where nobody listens the call is Unreachable, and was not sent."""
        with serving() as service:
            address = service.address
        error = self.failed(
            address,
            'Unreachable',
            'cannot connect to 127.0.0.1:[0-9]+: .*refused; is it running',
        )
        assert isinstance(error, ConnectionError)
        assert (error.status, error.sent) == (None, False)

    def test_too_large_to_send(self):
        """A call over max_body is not sent, and says both sizes."""
        with peer(lambda sock, *_: sock.sendall(told())) as address:
            with Friend('app1', address, max_body=30) as friend:
                with pytest.raises(microconnect.TooLarge, match=r'over max_body=30') as caught:
                    friend.send('/echo', 'x' * (40 - len('{"args":[""],"kwargs":{},"token":null}')))
        assert (caught.value.rule, caught.value.sent) == ('/echo', False)

    @pytest.mark.skipif(sys.platform != 'linux', reason='a reset may take the reply with it here')
    def test_refused_in_the_middle(self):
        """A service that answers before it has read the call, and closes, is heard."""

        def script(sock, *_):
            sock.recv(1000)
            sock.sendall(told(b'', b'413 Content Too Large'))

        with peer(script) as address, Friend('app1', address) as friend:
            with pytest.raises(microconnect.TooLarge) as caught:
                friend.send('/echo', 'x' * 12000000)
        assert (caught.value.status, caught.value.sent) == (413, False)

    def test_more_than_a_reply(self):
        """What follows a reply is not taken for the reply to the next call."""
        replies = [told() + told(b'["y"]'), told(b'["z"]')]
        kept = contextlib.ExitStack()

        def script(sock, number, _):
            kept.enter_context(sock.dup())
            call_on(sock)
            sock.sendall(replies[number])

        with kept, peer(script) as address, Friend('app1', address) as friend:
            assert [friend.send('/echo') for _ in range(2)] == ['x', 'z']

    def test_rule_without_utf8(self):
        """A rule that has no form on the wire is a BadCall that says so."""
        with Friend('app1', '127.0.0.1:1') as friend:
            with pytest.raises(microconnect.BadCall, match='lone surrogate'):
                friend.send('/\ud800')

    @pytest.mark.parametrize('copied', [copy.copy, copy.deepcopy, pickle.dumps])
    def test_not_copied(self, copied):
        """A friend is not copied, such as into a process by multiprocessing: it says what to do."""
        with pytest.raises(TypeError, match='make one in each process'):
            copied(Friend('app1', '127.0.0.1:1'))

    def test_request(self):
        """A call travels as one HTTP/1.1 request."""
        with answering(told()) as (address, got), Friend('app1', address) as friend:
            friend.send('/a b/é', 1, name='x')
        head, body = got[0]
        lines = head.decode().split('\r\n')
        assert lines[0] == 'POST /a%20b/%C3%A9 HTTP/1.1'
        assert f'Host: {address[7:]}' in lines
        assert 'Content-Type: application/json' in lines
        assert f'Content-Length: {len(body)}' in lines
        assert json.loads(body.decode()) == {'args': [1], 'kwargs': {'name': 'x'}, 'token': None}


def drip(start, more):
    """A script that answers with *start*, and then with *more* again and again."""

    def script(sock, number, over):
        until_then = time.monotonic() + TIMEOUT
        call_on(sock)
        sock.sendall(start)
        while time.monotonic() < until_then and not over.wait(0.05):
            sock.sendall(more)

    return script


@contextlib.contextmanager
def full():
    """A peer that takes no connection; gives its address."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(('127.0.0.1', 0))
        listener.listen(0)
        for _ in range(8):  # until its backlog is full
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield f'http://127.0.0.1:{listener.getsockname()[1]}'


class TestDeadline:
    """The timeout of a call is for all of it."""

    def timed(self, address, timeout=0.1, value='x'):
        """How a call with *timeout* fails, before the peer does."""
        with Friend('app1', address, timeout=timeout) as friend, soon():
            with pytest.raises(microconnect.MicroconnectError) as caught:
                friend.send('/echo', value)
        return caught.value

    @pytest.mark.parametrize(
        'start, more',
        [(b'', b''), (b'', b'\r\n'), (OK + b'X: ', b'x'), (OK + b'\r\n', b'[')],
        ids=['silent', 'empty lines', 'head', 'body'],
    )
    def test_slow_reply(self, start, more):
        """A peer that never answers, or drips, makes a CallTimeout; the call may have run."""
        with peer(drip(start, more)) as address:
            error = self.timed(address)
        assert type(error) is microconnect.CallTimeout
        assert str(error).startswith(f'/echo at {address}: no full reply within its timeout=')
        assert isinstance(error, TimeoutError)
        assert (error.status, error.sent) == (None, True)

    def test_never_accepted(self):
        """A peer that takes no connection is Unreachable once the time is over."""
        with full() as address:
            error = self.timed(address)
        assert (type(error), error.sent) == (microconnect.Unreachable, False)

    def test_never_accepted_by_many(self, monkeypatch):
        """The time is for all the addresses of a name together."""
        with full() as address:
            several_addresses(monkeypatch)
            error = self.timed(address, timeout=0.4)
        assert (type(error), error.sent) == (microconnect.Unreachable, False)

    def test_never_read(self):
        """A call that does not leave in time is a CallTimeout, and did not run."""
        with peer(lambda sock, number, over: over.wait(TIMEOUT)) as address:
            error = self.timed(address, value='x' * 12000000)
        assert (type(error), error.sent) == (microconnect.CallTimeout, False)

    def test_never_read_again(self):
        """The same holds on a kept connection."""

        def script(sock, number, over):
            call_on(sock)
            sock.sendall(told())
            over.wait(TIMEOUT)

        with peer(script) as address, Friend('app1', address) as friend:
            assert friend.send('/echo') == 'x'
            friend.setRule('/echo', timeout=0.1)
            with pytest.raises(microconnect.CallTimeout) as caught:
                friend.send('/echo', 'x' * 12000000)
        assert caught.value.sent is False

    @pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='there are no timers here')
    def test_signals(self):
        """Signals that come all the time do not put the end off."""
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        try:
            with peer(drip(b'', b'')) as address:
                signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
                assert type(self.timed(address)) is microconnect.CallTimeout
            # Nor on a connection that another thread has used before.
            with serving(holding(make())) as service:
                with Friend('app1', service.address, timeout=0.3) as friend:
                    with background(friend.send, '/echo', 1) as call:
                        assert call.result(TIMEOUT) == 1
                    with soon(), pytest.raises(microconnect.CallTimeout):
                        friend.send('/hold')
                service.release.set()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def test_set_rule(self):
        """A rule may have a timeout of its own, shorter or longer than the friend's."""
        with peer(drip(b'', b'')) as address, Friend('app1', address) as friend:
            friend.setRule('/echo', timeout=0.1)
            with pytest.raises(microconnect.CallTimeout):
                friend.send('/echo')
        with serving(holding(make())) as service:
            with Friend('app1', service.address, timeout=0.001) as friend:
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

        with serving(holding(make())) as service:
            with Friend('app1', service.address, timeout=TIMEOUT) as friend:
                friend.setRule('/hold', timeout=0.1)
                assert send(first, '/echo', 1) == 1
                with soon(), pytest.raises(microconnect.CallTimeout):
                    send(second, '/hold')
            service.release.set()

    @pytest.mark.parametrize('timeout', [0, -1, float('nan'), float('inf'), '1', None])
    def test_no_timeout(self, timeout):
        """What is no number of seconds is refused where it is given."""
        with pytest.raises(ValueError, match='timeout is a number .* above 0'):
            Friend('app1', 'http://127.0.0.1:9', timeout=timeout)
        with pytest.raises(ValueError, match='max_body is a number .* above 0'):
            Friend('app1', 'http://127.0.0.1:9', max_body=timeout)
        with Friend('app1', 'http://127.0.0.1:9') as friend:
            with pytest.raises(ValueError, match='timeout is a number .* above 0'):
                friend.wait(timeout)


BUSY = told(b'', b'503 Service Unavailable')
IDLE = told(b'', b'408 Request Timeout', b'Connection: close\r\n')


class TestAtMostOnce:
    """A call is sent a second time only where it is known not to have run."""

    def test_lost(self):
        """A call whose connection is dropped without a reply may have run, and is not repeated."""
        seen = []
        with peer(lambda sock, *_: seen.append(call_on(sock))) as address:
            with Friend('app1', address) as friend:
                with pytest.raises(microconnect.ConnectionLost, match='may have run') as caught:
                    friend.send('/echo')
            assert isinstance(caught.value, ConnectionError)
            assert caught.value.sent is True
        assert len(seen) == 1

    @pytest.mark.parametrize('several', [True, False])
    @pytest.mark.parametrize('kept', [True, False])
    @pytest.mark.parametrize(
        'raised, expected',
        [
            (TimeoutError('the alarm rang'), microconnect.CallTimeout),
            (ConnectionResetError('of something else'), microconnect.ConnectionLost),
            (ConnectionRefusedError(errno.ECONNREFUSED, 'of another'), microconnect.ConnectionLost),
            (microconnect.Unreachable().at('/other', 'elsewhere'), microconnect.Unreachable),
            (microconnect.UnknownRule().at('/other', 'elsewhere'), microconnect.UnknownRule),
        ],
        ids=lambda value: getattr(value, '__name__', ''),
    )
    def test_interrupted(self, raised, expected, kept, several):
        """A signal's handler that raises just after a call was sent does not get it sent again."""

        class Interrupted:
            def __init__(self, sock):
                self.sock = sock

            def send(self, message):
                self.sock.sendall(message)
                raise raised

            def __getattr__(self, name):
                return getattr(self.sock, name)

        with serving() as service, contextlib.ExitStack() as stack:
            addresses = [service.address] * (1 + several)
            friend = stack.enter_context(Friend('app1', addresses, timeout=TIMEOUT))
            for place in friend._places:
                if kept:
                    friend.send('/echo', 'before')
                    place.links[0].sock = Interrupted(place.links[0].sock)
                else:
                    place._dial = lambda deadline: Interrupted(connect(service))
            before = len(service.ran)
            with pytest.raises(microconnect.MicroconnectError) as caught:
                friend.send('/echo', 'once')
            assert type(caught.value) is expected
            assert caught.value.sent is True or caught.value is raised
            until(lambda: service.ran[before:])
        assert service.ran[before:] == [(('once',), {})]

    @pytest.mark.parametrize(
        'plan, unasked, second, asked',
        [
            ([[told(), told()]], b'', 'x', [2]),
            ([[told()], [told()]], b'', 'x', [1, 1]),
            ([[told()], [told()]], IDLE, 'x', [1, 1]),
            ([[told(), IDLE], [told()]], b'', 'x', [2, 1]),
            ([[told(), IDLE], [IDLE]], b'', ('Busy', False), [2, 1]),
            ([[told(), BUSY]], b'', ('Busy', False), [2]),
            ([[told(), b'']], b'', ('ConnectionLost', True), [2]),
            ([[told(), b'HTTP/1.1 200']], b'', ('BadReply', True), [2]),
            ([[told(extra=OK[17:] + b'Connection: close\r\n')], [told()]], b'', 'x', [1, 1]),
        ],
        ids=[
            'kept',
            'closed while idle',
            'told of it unasked',
            'told of it when asked',
            'told of it twice',
            'busy',
            'dropped',
            'cut off',
            'closing was announced',
        ],
    )
    def test_second_call(self, plan, unasked, second, asked):
        """The second call, on a kept connection: the peer does to each connection as planned."""
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
            except microconnect.MicroconnectError as error:
                outcome = type(error).__name__, error.sent
        assert (outcome, counts) == (second, asked)

    def test_idle_for_long(self):
        """A service that closes its idle connections costs its friends no error."""
        with serving(counting(make(idle_timeout=0.05))) as service:
            with Friend('app1', service.address) as friend:
                for _ in range(3):
                    assert friend.send('/count') == 1
                    until(lambda: not service._listener.connections)


class TestAddresses:
    """What may be given as an address."""

    @pytest.mark.parametrize(
        'form',
        [
            '127.0.0.1:%d',
            'http://127.0.0.1:%d',
            'HTTP://127.0.0.1:%d/',
            'localhost:%d',
            'http://LocalHost:%d',
            '0.0.0.0:%d',
        ],
    )
    def test_forms(self, form):
        """A scheme and a last slash may be there or not; 0.0.0.0 is this machine."""
        with serving() as service, Friend('app1', form % port_of(service)) as friend:
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
        with answering(told()) as (address, got), Friend('app1', address + prefix) as friend:
            assert friend.send('/echo') == 'x'
        assert got[0][0].decode().split('\r\n')[0] == line

    @pytest.mark.parametrize(
        'address, kind, match',
        [
            ('ftp://127.0.0.1:5000', ValueError, 'http and https are spoken, not ftp'),
            ('http://me:secret@127.0.0.1', ValueError, 'no user and password'),
            ('http://me@127.0.0.1', ValueError, 'no user and password'),
            ('', ValueError, 'give a host'),
            ('http://', ValueError, 'give a host'),
            (':5000', ValueError, 'give a host'),
            ('/helloworld', ValueError, 'give a host'),
            ('my host:5000', ValueError, 'give a host'),
            ('http://127.0.0.1:99999', ValueError, 'not like'),
            ('http://127.0.0.1:port', ValueError, 'not like'),
            ('http://127.0.0.1:-1', ValueError, 'not like'),
            ('http://[::1', ValueError, 'not like'),
            ('http://127.0.0.1:5000?x=1', ValueError, 'give a host, a port and'),
            ('http://127.0.0.1:5000#x', ValueError, 'give a host, a port and'),
            ('http://evil%2fhost', ValueError, 'give a host'),
            ('http//127.0.0.1:5000', ValueError, 'give a host'),
            ('https:/127.0.0.1:5000', ValueError, 'give a host'),
            ('5000', ValueError, 'give a host'),
            ('http://5000', ValueError, 'give a host'),
            (5000, TypeError, 'an address is a string'),
            (None, TypeError, 'an address is a string'),
            ([], ValueError, 'empty list'),
            (['127.0.0.1:5000', 'ftp://x'], ValueError, 'not ftp'),
        ],
    )
    def test_bad(self, address, kind, match):
        """What cannot be an address is refused where it is given, and told why."""
        with pytest.raises(kind, match=match) as caught:
            Friend('app1', address)
        assert 'secret' not in str(caught.value)

    @pytest.mark.parametrize('address', ['ftp://me:secret@x', 'http://me:secret@x:99999'])
    def test_password_is_not_shown(self, address):
        """A password in an address that is refused is in no message."""
        with pytest.raises(ValueError) as caught:
            Friend('app1', address)
        assert 'secret' not in str(caught.value)

    def test_a_family_that_is_not_there(self, monkeypatch):
        """A name's address of a family that the system lacks is passed over."""
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
            return [six] + look_up('127.0.0.1', port, *args, **kwargs)

        with serving() as service:
            address = service.address.replace('127.0.0.1', 'localhost')
            monkeypatch.setattr(socket, 'socket', Socket)
            monkeypatch.setattr(socket, 'getaddrinfo', both)
            with Friend('app1', address) as friend:
                assert friend.send('/echo', 1) == 1


class TestSeveralAddresses:
    """A list of addresses, of services that are the same."""

    def test_spread(self):
        """Calls are spread evenly."""
        services = [make() for _ in range(3)]
        with contextlib.ExitStack() as stack:
            addresses = [stack.enter_context(serving(service)).address for service in services]
            friend = stack.enter_context(Friend('app1', addresses))
            for number in range(9):
                assert friend.send('/echo', number) == number
        assert [len(service.ran) for service in services] == [3, 3, 3]

    def test_spread_over_the_rest(self):
        """The calls of an address that rests are spread evenly over the others."""
        services = [make() for _ in range(3)]
        with contextlib.ExitStack() as stack:
            addresses = [stack.enter_context(serving(service)).address for service in services]
            friend = stack.enter_context(Friend('app1', addresses))
            friend._places[1].rests_until = math.inf
            for number in range(8):
                assert friend.send('/echo', number) == number
        assert [len(service.ran) for service in services] == [4, 0, 4]

    def test_dead(self):
        """An address where nobody listens is passed over."""
        with serving() as gone:
            address = gone.address
        with serving() as service, Friend('app1', [address, service.address]) as friend:
            assert [friend.send('/echo', number) for number in range(4)] == [0, 1, 2, 3]

    def test_busy_rests(self):
        """A service that is busy is passed over, and left alone for a while."""
        tried = []

        def busy(sock, *_):
            tried.append(call_on(sock))
            sock.sendall(BUSY)

        start = time.monotonic()
        with peer(busy) as address, serving() as service:
            with Friend('app1', (address, service.address)) as friend:
                assert [friend.send('/echo', number) for number in range(20)] == list(range(20))
        assert 1 <= len(tried) <= 1 + (time.monotonic() - start) / 0.1

    def test_recovers(self):
        """An address that takes calls again has no rest before it: the next one is short again."""
        tried = []

        def busy_once(sock, *_):
            while call_on(sock):
                tried.append(1)
                sock.sendall(BUSY if len(tried) == 1 else told(b'["peer"]'))

        with peer(busy_once) as address, serving() as service:
            with Friend('app1', [address, service.address]) as friend:
                assert friend.send('/echo', 'service') == 'service'
                place = friend._places[0]
                assert place.pause == 0.1
                until(lambda: friend.send('/echo', 'service') == 'peer')
                assert (place.pause, place.rests_until) == (0, 0)

    def test_may_have_run(self):
        """A call that may have run at one address is not sent to another."""
        with peer(lambda sock, *_: call_on(sock)) as address, serving() as service:
            with Friend('app1', [address, service.address]) as friend:
                with pytest.raises(microconnect.ConnectionLost):
                    friend.send('/echo', 1)
        assert service.ran == []

    def test_none_left(self):
        """Where no address takes the call, the error names each, and why."""
        with serving() as one, serving() as two:
            addresses = [one.address, two.address]
        with Friend('app1', addresses) as friend:
            with pytest.raises(microconnect.Unreachable) as caught:
                friend.send('/echo', 1)
        error = caught.value
        assert all(
            f'/echo at {address}: cannot connect to 127.0.0.1:' in str(error)
            for address in addresses
        )
        assert (error.rule, error.sent) == ('/echo', False)

    def test_none_left_that_answered(self):
        """Where none is left and none said that it is busy, the error has no status of a reply."""

        def reset(sock, *_):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            sock.recv(1)

        with peer(reset) as one, peer(reset) as another:
            with Friend('app1', [one, another], timeout=TIMEOUT) as friend:
                with pytest.raises(microconnect.Unreachable) as caught:
                    friend.send('/echo', 'x' * 20000000)
        assert (caught.value.status, caught.value.sent) == (None, False)

    def test_none_left_but_busy(self):
        """Where one of them was busy, it is Busy: it may take the call later."""
        with serving() as gone:
            addresses = [gone.address]
        with answering(BUSY) as (address, _), Friend('app1', [*addresses, address]) as friend:
            with pytest.raises(microconnect.Busy) as caught:
                friend.send('/echo', 1)
        assert caught.value.sent is False

    def test_silent_does_not_use_up_the_time(self):
        """An address that takes no connection leaves time for the others."""
        with full() as address, serving() as service:
            with Friend('app1', [address, service.address], timeout=1) as friend:
                assert friend.send('/echo', 1) == 1


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
            (told(), True),
            (told(b'', b'404 Not Found'), True),
            (BUSY, False),
            (b'SSH-2.0\r\n', False),
        ],
    )
    def test_ping_replies(self, reply, alive):
        """A service that is busy, or something else that listens there, does not answer."""
        with answering(reply) as (address, got), Friend('app1', address) as friend:
            assert friend.ping() is alive
        assert got[0][0].startswith(b'GET / HTTP/1.1\r\n')

    def test_ping_is_bounded(self):
        """ping takes no longer than it is given."""
        with peer(drip(b'', b'')) as address, Friend('app1', address) as friend, soon():
            assert friend.ping(timeout=0.1) is False

    def test_ping_several(self):
        """ping is True where any of the addresses answers."""
        with serving() as gone:
            address = gone.address
        with serving() as service, Friend('app1', [address, service.address]) as friend:
            assert friend.ping() is True

    def test_ping_past_a_silent_one(self):
        """An address that is silent leaves time for the others."""
        with full() as silent, serving() as service:
            with Friend('app1', [silent, service.address]) as friend:
                assert friend.ping(timeout=1) is True
                friend.wait(timeout=1)

    def test_wait(self):
        """wait returns once the service has started."""
        with serving() as service:
            port = port_of(service)
        with Friend('app1', f'127.0.0.1:{port}') as friend:
            with background(friend.wait, TIMEOUT) as waiting:
                assert not waiting.done()
                with service.start(port, '127.0.0.1'):
                    assert waiting.result(TIMEOUT) is None
                    assert friend.send('/echo', 1) == 1

    def test_wait_in_vain(self):
        """wait raises CallTimeout where the service does not start; nothing was called."""
        with serving() as service:
            address = service.address
        with Friend('app1', address) as friend:
            told = f'^{address} did not answer within 0.1 s: cannot connect to .*refused'
            with soon(), pytest.raises(microconnect.CallTimeout, match=told) as caught:
                friend.wait(0.1)
        error = caught.value
        assert (error.rule, error.address, error.sent) == ('/', address, False)


@pytest.fixture
def proxies(monkeypatch):
    """Set the proxies of the environment, where none is set by default."""
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy', 'request_method'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def set_proxies(address):
        monkeypatch.setenv('http_proxy', address)
        monkeypatch.setenv('https_proxy', address)

    return set_proxies


class TestProxies:
    """The proxies that the environment names."""

    @pytest.mark.parametrize(
        'address',
        [
            '[::1]',
            '[0:0:0:0:0:0:0:1]',
            '[::ffff:127.0.0.1]',
            'localhost.',
            '127.0.0.2',
            'https://[::1]',
        ],
    )
    def test_loopback_by_other_names(self, address, proxies):
        """However this machine is spelled, no proxy is asked."""
        proxies('http://127.0.0.1:9')
        assert Friend('app1', address)._places[0].proxy is None

    @pytest.mark.parametrize('listed', ['service.invalid', 'service.invalid:5000', '.invalid', '*'])
    def test_no_proxy(self, listed, proxies, monkeypatch):
        """A host that no_proxy lists, with its port or without, is called directly."""
        proxies('http://127.0.0.1:9')
        monkeypatch.setenv('no_proxy', listed)
        assert Friend('app1', 'service.invalid:5000')._places[0].proxy is None
        monkeypatch.setenv('no_proxy', 'service.invalid:5001')
        assert Friend('app1', 'service.invalid:5000')._places[0].proxy is not None

    @pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '0.0.0.0'])
    def test_loopback(self, host, proxies):
        """A call to this machine goes through no proxy."""
        touched = []
        with peer(lambda sock, number, over: over.is_set() or touched.append(sock)) as trap:
            proxies(trap)
            with serving() as service:
                with Friend('app1', f'http://{host}:{port_of(service)}') as friend:
                    assert friend.send('/echo', 1) == 1
        assert touched == []

    @pytest.mark.parametrize(
        'address, line, host',
        [
            ('http://service.invalid:5000/v1', 'http://service.invalid:5000/v1/echo', ':5000'),
            ('service.invalid', 'http://service.invalid:80/echo', ':80'),
        ],
    )
    def test_http(self, address, line, host, proxies):
        """A call to another host is given to the proxy, with the whole address."""
        with answering(told()) as (trap, got):
            proxies(trap)
            with Friend('app1', address) as friend:
                assert friend.send('/echo') == 'x'
        lines = got[0][0].decode().split('\r\n')
        assert lines[0] == f'POST {line} HTTP/1.1'
        assert f'Host: service.invalid{host}' in lines

    def test_password(self, proxies):
        """The proxy is given the user and password of its URL."""
        with answering(told()) as (trap, got):
            proxies(trap.replace('//', '//me:se%20cret@'))
            with Friend('app1', 'service.invalid') as friend:
                assert friend.send('/echo') == 'x'
        assert b'\r\nProxy-Authorization: Basic bWU6c2UgY3JldA==\r\n' in got[0][0] + b'\r\n'

    def test_https(self, proxies, tls_server, tls_client):
        """A call over TLS is sent through a tunnel: the proxy sees the name, and no more."""
        seen = []

        def script(sock, *_):
            seen.append(call_on(sock))
            sock.sendall(b'HTTP/1.1 200 Connected\r\n\r\n')
            with tls_server.wrap_socket(sock, server_side=True) as inside:
                seen.append(call_on(inside))
                inside.sendall(told())
                call_on(inside)

        with peer(script) as trap:
            proxies(trap)
            with Friend('app1', 'https://service.invalid', ssl_context=tls_client) as friend:
                assert friend.send('/echo') == 'x'
        assert seen[0].startswith(b'CONNECT service.invalid:443 HTTP/1.1\r\n')
        assert seen[1].startswith(b'POST /echo HTTP/1.1\r\n')

    def test_refused(self, proxies):
        """A proxy that makes no tunnel makes the service Unreachable, and says why."""
        assert complaints() == []
        with answering(told(b'', b'403 Forbidden')) as (trap, _):
            proxies(trap)
            with Friend('app1', 'https://service.invalid') as friend:
                with pytest.raises(microconnect.Unreachable, match='proxy answered 403') as caught:
                    friend.send('/echo')
        assert caught.value.sent is False
        del caught
        assert complaints() == []

    def test_refused_again_and_again(self, proxies):
        """An error that is kept keeps no connection open."""
        ended = threading.Event()

        def script(sock, *_):
            call_on(sock)
            sock.sendall(told(b'', b'403 Forbidden'))
            if not sock.recv(1):
                ended.set()

        with peer(script) as trap:
            proxies(trap)
            with Friend('app1', 'https://service.invalid') as friend:
                with pytest.raises(microconnect.Unreachable) as caught:
                    friend.send('/echo')
                assert ended.wait(TIMEOUT)
        assert 'proxy answered 403' in str(caught.value)

    def test_slow_tunnel(self, proxies, monkeypatch):
        """The proxy may take as long as the call, however many addresses its name has."""
        several_addresses(monkeypatch)
        timeouts = []

        class Recorder:
            def __init__(self, sock):
                self.sock = sock

            def sendall(self, data):
                self.sock.sendall(data)
                timeouts.append(self.sock.gettimeout())

            def __getattr__(self, name):
                return getattr(self.sock, name)

        with answering(told(b'', b'403 Forbidden')) as (trap, _):
            proxies(trap)
            with Friend('app1', 'https://service.invalid', timeout=9) as friend:
                place = friend._places[0]
                dial = place._dial
                place._dial = lambda deadline: Recorder(dial(deadline))
                with pytest.raises(microconnect.Unreachable):
                    friend.send('/echo')
        assert 8 < timeouts[0] < 10

    def test_dead_proxy(self, proxies):
        """Where the proxy is not there the error names it, without its password."""
        with serving() as service:
            dead = f'127.0.0.1:{port_of(service)}'
        proxies(f'http://me:secret@{dead}')
        for address in ('http://service.invalid:5000', 'https://service.invalid:5000'):
            with Friend('app1', address) as friend:
                told = f'cannot connect to the proxy {dead}: '
                with pytest.raises(microconnect.Unreachable, match=told) as caught:
                    friend.send('/echo')
            assert 'secret' not in str(caught.value)

    def test_unknown_kind(self, proxies):
        """A proxy of another kind is refused, without showing its URL: it may hold a password."""
        proxies('socks5://me:secret@127.0.0.1:9')
        with pytest.raises(ValueError, match='proxy of the environment') as caught:
            Friend('app1', 'service.invalid')
        assert 'secret' not in str(caught.value)


class TestConnections:
    """How a friend keeps its connections."""

    def test_kept(self):
        """Calls one after the other share a connection, until close."""
        with serving(counting(make())) as service, Friend('app1', service.address) as friend:
            assert [friend.send('/count') for _ in range(3)] == [1, 2, 3]
            friend.close()
            assert [friend.send('/count') for _ in range(2)] == [1, 2]

    def test_crash(self):
        """A service that is gone without a word while its connection idles costs no call."""
        alive = b'Content-Type: application/json\r\nServer: microconnect\r\n'

        def answer_once(sock, number, over):
            call_on(sock)
            sock.sendall(told(b'[%d]' % number, extra=alive))

        with peer(answer_once) as address, Friend('app1', address) as friend:
            assert friend.send('/f') == 0
            link = friend._places[0].links[0]
            until(lambda: link.sock.recv(1, socket.MSG_PEEK) == b'')  # it is closed
            until(lambda: time.monotonic() > link.is_kept_until)  # and has been idle
            assert friend.send('/f') == 1

    def test_kept_over_failures(self):
        """A failure that is a whole reply costs no connection."""
        with serving(counting(make())) as service, Friend('app1', service.address) as friend:
            assert friend.send('/count') == 1
            with pytest.raises(ValueError, match='why'):
                friend.send('/fail', 'ValueError')
            with pytest.raises(microconnect.UnknownRule):
                friend.send('/nowhere')
            assert friend.send('/count') == 2

    def test_threads(self):
        """Threads that share a friend never get each other's replies."""
        barrier = threading.Barrier(32)

        def calls(thread):
            barrier.wait(TIMEOUT)
            return all(friend.send('/echo', [thread, i]) == [thread, i] for i in range(200))

        with serving() as service, Friend('app1', service.address) as friend:
            with concurrent.futures.ThreadPoolExecutor(32) as pool:
                assert all(pool.map(calls, range(32)))
        assert len(service.ran) == 32 * 200

    @pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork here')
    def test_fork(self):
        """A child opens connections of its own, and leaves its parent's as they are."""
        script = (
            'import os, threading, warnings\n'
            'from microconnect import Friend, Microservice\n'
            'warnings.simplefilter("ignore", DeprecationWarning)\n'
            'Micro = Microservice("app1")\n'
            'local = threading.local()\n'
            '@Micro.typing("/count")\n'
            'def count():\n'
            '    local.count = getattr(local, "count", 0) + 1\n'
            '    return local.count\n'
            'friend = Friend("app1", Micro.start(port=0, host="127.0.0.1").address, timeout=9)\n'
            'print(friend.send("/count"))\n'
            'child = os.fork()\n'
            'if not child:\n'
            '    status = friend.send("/count") * 10 + friend.send("/count")\n'
            '    os._exit(status)\n'
            'print(os.waitpid(child, 0)[1] >> 8)\n'
            'print(friend.send("/count"))\n'
        )
        with run_python(script) as process:
            assert outcome(process) == (0, ['1', '12', '2'], '')

    @pytest.mark.parametrize('registered', ['before the import', 'after it'])
    def test_call_at_exit(self, registered):
        """A function that runs at exit may call, whatever was called before."""
        imports, register = 'from microconnect import Friend', 'atexit.register(goodbye)'
        lines = (register, imports) if registered == 'before the import' else (imports, register)

        def script(sock, *_):
            while call_on(sock):
                sock.sendall(told())

        with peer(script) as address:
            source = f"""
import atexit
def goodbye():
    print(friend.send('/goodbye'))
    friend.close()
{lines[0]}
{lines[1]}
friend = Friend('app1', {address!r})
print(friend.send('/hello'))
"""
            with run_python(source) as process:
                assert outcome(process) == (0, ['x', 'x'], '')

    def test_many_descriptors(self):
        """Descriptors over 1,023, the most that select takes, make no difference."""
        resource = pytest.importorskip('resource')
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard not in (-1, resource.RLIM_INFINITY) and hard < 1500:
            pytest.skip('there are not so many here')
        taken = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
            taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
            with serving(counting(make())) as service, Friend('app1', service.address) as friend:
                assert [friend.send('/count') for _ in range(2)] == [1, 2]
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_never_closed(self):
        """A friend that is not closed releases its connections with itself, without a word."""
        with serving() as service:
            before = resources()
            friend = Friend('app1', service.address)
            friend.send('/echo', 1)
            friend.itself = friend
            del friend
            assert complaints() == []
            until_released(before)


EXAMPLES = Path(__file__).resolve().with_name('examples')
JSON_HEADERS = {'Content-Type': 'application/json'}
current = contextvars.ContextVar('current', default='unset')


def call_all(count, function):
    """Call *function* in *count* threads at once, and give what each returned, or raised."""
    outcomes = []

    def call():
        try:
            outcomes.append(function())
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    return outcomes


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


def free_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def process(*command, folder):
    """A process, ended in any case; it finds the module, and writes what it says to a file."""
    module = os.path.dirname(os.path.abspath(microconnect.__file__))
    log = Path(str(folder), 'log')
    with log.open('wb') as out:
        child = subprocess.Popen(
            [sys.executable, *command],
            cwd=str(folder),
            env=dict(os.environ, PYTHONPATH=module, HOME=str(folder)),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
        try:
            yield child
        except BaseException:
            print(log.read_text(errors='replace')[-3000:])
            raise
        finally:
            child.terminate()
            try:
                child.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(TIMEOUT)


class TestAsyncRules:
    """Async rules on the listener."""

    @pytest.mark.parametrize('value', [None, 7, [1, 2], {'a': 'ä'}])
    def test_value(self, value):
        """An async rule answers as a plain one does."""
        with serving(make_async()) as service, Friend('app1', service.address) as friend:
            assert friend.send('/aecho', value) == value

    def test_one_loop(self):
        """An asyncio.Event that one call made and awaits is set by the next call."""
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

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            got = []
            waiting = threading.Thread(target=lambda: got.append(friend.send('/await')))
            waiting.start()
            assert made.wait(TIMEOUT)
            friend.send('/set')
            waiting.join(TIMEOUT)
            assert got == ['woken']

    def test_lock(self):
        """An asyncio.Lock keeps concurrent calls apart."""
        service, state, log = make(), {}, []

        @service.typing('/locked')
        async def locked():
            async with state.setdefault('lock', asyncio.Lock()):
                log.append('in')
                await asyncio.sleep(0.001)
                log.append('out')

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            assert call_all(8, lambda: friend.send('/locked')) == [None] * 8
        assert log == ['in', 'out'] * 8

    def test_many_at_once(self):
        """A hundred calls are in one async rule at the same time."""
        service, inside = make(), []

        @service.typing('/meet')
        async def meet():
            inside.append(asyncio.get_running_loop().create_future())
            if len(inside) == 100:
                for future in inside:
                    future.set_result('all here')
            return await inside[-1]

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            assert call_all(100, lambda: friend.send('/meet')) == ['all here'] * 100

    def test_thread_from_the_first_call(self):
        """The loop's thread starts with the first async call, and ends with the service."""
        with serving(make_async()) as service, Friend('app1', service.address) as friend:
            friend.send('/echo', 1)
            before = set(threading.enumerate())
            friend.send('/loop')
            assert set(threading.enumerate()) - before == {service.loop_thread}
            assert service.loop_thread.daemon
            friend.send('/aecho', 1)
            assert set(threading.enumerate()) - before == {service.loop_thread}
        assert not service.loop_thread.is_alive()
        assert service.loop.is_closed()

    def test_loop_closed_in_process(self):
        """A service that never listened closes its loop by stop, too."""
        service = make_async()
        Friend('app1', service).send('/loop')
        service.stop()
        assert service.loop.is_closed()
        assert not service.loop_thread.is_alive()

    def test_leftover_tasks(self):
        """A task that a rule left behind goes on after its call, and is cancelled by stop."""
        service, cancelled = make(), threading.Event()

        @service.typing('/leave')
        async def leave():
            async def forever():
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    cancelled.set()
                    raise

            service.task = asyncio.ensure_future(forever())

        @service.typing('/look')
        async def look():
            return service.task.done()

        with serving(service), Friend('app1', service.address) as friend:
            friend.send('/leave')
            assert friend.send('/look') is False
        assert cancelled.wait(TIMEOUT)

    def test_started_again(self):
        """A service that was stopped and is started again answers async rules on a new loop."""
        service, loops = make_async(), []
        for _ in range(2):
            with serving(service), Friend('app1', service.address) as friend:
                friend.send('/loop')
                loops.append(service.loop)
        assert loops[0] is not loops[1]

    def test_in_flight_at_stop(self):
        """Stop waits for an async call in flight, which is answered."""
        service, entered, got = make(), threading.Event(), []

        @service.typing('/slow')
        async def slow():
            entered.set()
            while service._listener.stop_by is None:
                await asyncio.sleep(0.001)
            return 'whole'

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            calling = threading.Thread(target=lambda: got.append(friend.send('/slow')))
            calling.start()
            assert entered.wait(TIMEOUT)
            service.stop(grace=TIMEOUT)
            calling.join(TIMEOUT)
        assert got == ['whole']

    def test_cut_off_at_stop(self):
        """An async call that outlasts the grace of stop is cancelled."""
        service, entered, cancelled = make(), threading.Event(), threading.Event()

        @service.typing('/forever')
        async def forever():
            entered.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            calling = threading.Thread(target=call_all, args=(1, lambda: friend.send('/forever')))
            calling.start()
            assert entered.wait(TIMEOUT)
            service.stop(grace=0.05)
            assert cancelled.wait(TIMEOUT)
            calling.join(TIMEOUT)

    def test_stop_in_a_rule(self):
        """An async rule may stop its own service, and is answered."""
        service = make()

        @service.typing('/stop')
        async def stop():
            service.stop()
            return 'stopping'

        with serving(service), Friend('app1', service.address) as friend:
            assert friend.send('/stop') == 'stopping'
            service._listener.thread.join(TIMEOUT)
            assert not service._listener.thread.is_alive()

    @pytest.mark.parametrize('is_async', [True, False])
    def test_context(self, is_async):
        """What a call sets in a contextvars.ContextVar does not reach the connection's next."""
        service = make()

        def swap(value):
            before = current.get()
            current.set(value)
            return before

        async def aswap(value):
            await asyncio.sleep(0)
            return swap(value)

        service.typing('/swap')(aswap if is_async else swap)
        with serving(service), Friend('app1', service.address) as friend:
            assert [friend.send('/swap', i) for i in range(3)] == ['unset'] * 3

    @pytest.mark.parametrize(
        'name',
        ['ValueError', 'SystemExit', 'KeyboardInterrupt', 'CancelledError', 'GeneratorExit',
         'StopIteration', 'StopAsyncIteration'],
    )  # fmt: skip
    def test_raised(self, name):
        """Whatever an async rule raises is an error of that call, and the service serves on."""
        with serving(make_async()) as service, Friend('app1', service.address) as friend:
            with pytest.raises(microconnect.RemoteError) as raised:
                friend.send('/afail', name)
            if name != 'StopIteration':  # Python itself makes a RuntimeError of it
                assert raised.value.type == name
            assert friend.send('/aecho', 'on') == 'on'
            assert friend.send('/echo', 'on') == 'on'

    @pytest.mark.parametrize('name', ['SystemExit', 'KeyboardInterrupt'])
    @pytest.mark.filterwarnings('ignore')  # pytest's word for a thread that raised
    def test_raised_in_a_task(self, name):
        """A task that raises SystemExit, which ends its loop, leaves the service serving."""
        service = make_async()

        @service.typing('/task')
        async def task():
            async def fail():
                raise getattr(builtins, name)

            await asyncio.ensure_future(fail())

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            with pytest.raises(microconnect.RemoteError):
                friend.send('/task')
            assert friend.send('/aecho', 'on') == 'on'

    @pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='no timers here')
    def test_alarm(self):
        """What a signal's handler raises ends the wait for an async rule, and the rule."""
        service = Microservice('app1')
        ended = threading.Event()

        def alarm(*_):
            raise TimeoutError('the alarm rang')

        @service.typing('/f')
        async def function():
            try:
                # asyncio loses an OSError that is raised just while it wakes its loop: ring again.
                signal.setitimer(signal.ITIMER_REAL, 0.1, 5)
                await asyncio.sleep(2 * TIMEOUT)
            finally:
                ended.set()

        before = signal.signal(signal.SIGALRM, alarm)
        try:
            with pytest.raises(TimeoutError, match='the alarm rang'):
                Friend('app1', service).send('/f')
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert ended.wait(TIMEOUT)
        service.stop()

    def test_loop_that_ends_before_the_call(self, monkeypatch):
        """A call that a loop no longer takes up is an error, and no thread waits for it."""
        service = make_async()
        friend = Friend('app1', service)
        assert friend.send('/aecho', 1) == 1

        def lost(coroutine, loop):
            inspect.getcoroutinelocals(coroutine)['value'].close()
            coroutine.close()
            service._loop.close()
            return concurrent.futures.Future()

        with monkeypatch.context() as patch:
            patch.setattr(asyncio, 'run_coroutine_threadsafe', lost)
            with background(friend.send, '/aecho', 2) as call:
                with pytest.raises(microconnect.RemoteError):
                    call.result(TIMEOUT)
        assert friend.send('/aecho', 3) == 3
        service.stop()

    def test_arguments(self):
        """Arguments that do not fit an async rule are refused as for a plain one."""
        with serving(make_async()) as service, Friend('app1', service.address) as friend:
            with pytest.raises(microconnect.BadArguments, match='positional argument'):
                friend.send('/aecho', 1, 2)

    def test_send_to_itself(self):
        """An async rule that calls the blocking send of its own service gets an error at once."""
        service = make_async()
        local = Friend('app1', service, timeout=TIMEOUT)

        @service.typing('/itself')
        async def itself():
            return local.send('/aecho', 1)

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            with pytest.raises(microconnect.RemoteError, match='asend'):
                friend.send('/itself')
            assert friend.send('/aecho', 'on') == 'on'

    def test_send_to_itself_by_address(self):
        """So does one that calls its own service by its address."""
        service = make_async()

        @service.typing('/itself')
        async def itself():
            with Friend('app1', service.address, timeout=0.3) as inner:
                return inner.send('/aecho', 1)

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            with pytest.raises(microconnect.RemoteError, match='asend'):
                friend.send('/itself')
            assert friend.send('/aecho', 'on') == 'on'

    def test_send_under_another_loop(self):
        """So does one on the loop of another server; in a thread of its own, it may send."""
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

    def test_asend_to_itself(self):
        """An async rule calls its own service by asend."""
        service = make_async()

        @service.typing('/itself')
        async def itself():
            with Friend('app1', service.address, timeout=TIMEOUT) as inner:
                return await inner.asend('/aecho', await inner.asend('/echo', 5))

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            assert friend.send('/itself') == 5

    @pytest.mark.parametrize('host', ['listener', 'asgi'])
    @pytest.mark.parametrize(
        'wrap',
        [
            lambda f: f,
            lambda f: functools.partial(f, 1),
            lambda f: functools.partial(functools.partial(f, 1)),
            lambda f: functools.wraps(f)(lambda *args: f(*args)),
            lambda f: lambda *args: f(*args),
            lambda f: type('Callable', (), {'__call__': staticmethod(f)})(),
            lambda f: type('Method', (), {'go': lambda self, *args: f(*args)})().go,
            lambda f: functools.wraps(f)(lambda *args: asyncio.run(f(*args))),
        ],
        ids=['plain', 'partial', 'partials', 'wrapped', 'lambda', 'static', 'method', 'run'],
    )
    def test_callables(self, wrap, host):
        """Whatever callable gives a coroutine is awaited; a wrapper that runs one itself may."""
        service = make()

        async def last(*args):
            await asyncio.sleep(0)
            return args[-1]

        service.typing('/wrapped')(wrap(last))
        ask = by_asgi if host == 'asgi' else by_listener
        try:
            assert ask(service, 'POST', '/wrapped', JSON_HEADERS, b'{"args":["x"]}')[2] == b'["x"]'
        finally:
            service.stop()

    def test_async_call(self):
        """An object with an async __call__ is a rule like any other."""
        service = make()

        class Echo:
            async def __call__(self, value):
                await asyncio.sleep(0)
                return value

        service.typing('/object')(Echo())
        with serving(service), Friend('app1', service.address) as friend:
            assert friend.send('/object', 'x') == 'x'

    def test_stays_callable(self):
        """The decorated async function is still a coroutine function."""

        async def f(value):
            return value

        assert make().typing('/f')(f) is f
        assert make().reply(f) is f
        assert asyncio.run(f(3)) == 3


class TestAsend:
    """Friend.asend."""

    def test_value(self):
        """It gives what send gives."""
        with serving() as service, Friend('app1', service.address) as friend:

            async def main():
                return [await friend.asend('/echo', *args) for args in ((1,), (1, 2), ())]

            assert asyncio.run(main()) == [1, (1, 2), ()]

    def test_concurrent(self):
        """Fifty calls of a rule that takes 0.2 s take far less than their sum."""
        service = make()

        @service.typing('/slow')
        async def slow(value):
            await asyncio.sleep(0.2)
            return value

        async def main(friend):
            return await asyncio.gather(*(friend.asend('/slow', i) for i in range(50)))

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            with soon():  # one after the other they would take twice as long
                assert asyncio.run(main(friend)) == list(range(50))

    def test_loop_runs_on(self):
        """While a call waits, the loop serves others: the call needs one of them to end."""
        service, released = make(), threading.Event()

        @service.typing('/wait')
        def wait():
            return released.wait(TIMEOUT)

        async def main(friend):
            call = asyncio.ensure_future(friend.asend('/wait'))
            for _ in range(3):
                await asyncio.sleep(0)
            assert not call.done()
            released.set()
            return await call

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            assert asyncio.run(main(friend)) is True

    @pytest.mark.parametrize('how', ['cancel', 'wait_for'])
    def test_cancelled(self, how):
        """Cancelling gives CancelledError at once, while the call itself ends alone."""
        service, entered, released = make(), threading.Event(), threading.Event()

        @service.typing('/wait')
        def wait():
            entered.set()
            released.wait(TIMEOUT)
            service.ran.append('whole')

        async def main(friend):
            loop, settled, errors = asyncio.get_running_loop(), asyncio.Event(), []
            call = asyncio.ensure_future(friend.asend('/wait'))
            await loop.run_in_executor(None, entered.wait, TIMEOUT)
            if how == 'wait_for':
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(call, 0.01)
            else:
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            assert service.ran == []

            def settle(callback, *args, schedule=loop.call_soon_threadsafe):
                schedule(callback, *args)
                schedule(settled.set)

            loop.call_soon_threadsafe = settle
            loop.set_exception_handler(lambda _, context: errors.append(context))
            released.set()
            await asyncio.wait_for(settled.wait(), TIMEOUT)  # the reply nobody waits for
            assert errors == []

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            asyncio.run(main(friend))
        assert service.ran == ['whole']

    def test_loop_closed_meanwhile(self):
        """A loop that closes before the reply comes leaves nothing behind but the call's end."""
        service, entered, released = make(), threading.Event(), threading.Event()

        @service.typing('/wait')
        def wait():
            service.ran.append(threading.current_thread())
            entered.set()
            released.wait(TIMEOUT)

        async def main(friend):
            call = asyncio.ensure_future(friend.asend('/wait'))
            await asyncio.get_running_loop().run_in_executor(None, entered.wait, TIMEOUT)
            call.cancel()

        with serving(service), Friend('app1', service.address, timeout=TIMEOUT) as friend:
            before = set(threading.enumerate())
            asyncio.run(main(friend))
            released.set()
            for thread in set(threading.enumerate()) - before - set(service.ran):
                thread.join(TIMEOUT)
            assert friend.send('/echo', 1) == 1

    @pytest.mark.parametrize(
        'args, kind',
        [
            (('/nothing',), microconnect.UnknownRule),
            (('/fail',), microconnect.BadArguments),
            (('/fail', 'ValueError'), ValueError),
            (('/fail', 'StopIteration'), microconnect.RemoteError),
            (('/echo', object), microconnect.BadCall),
            (('/guarded',), microconnect.Forbidden),
            ((7,), TypeError),
        ],
    )
    def test_errors(self, args, kind):
        """It raises what send raises."""
        service = make()
        service.typing('/guarded', token='t')(lambda: None)
        with serving(service), Friend('app1', service.address) as friend:
            raised = []
            for call in (friend.send, lambda *args: asyncio.run(friend.asend(*args))):
                with pytest.raises(kind) as error:
                    call(*args)
                raised.append((type(error.value), str(error.value)))
            assert raised[0] == raised[1]

    def test_unreachable(self):
        """A service that does not run is Unreachable for asend too."""
        with Friend('nobody', f'127.0.0.1:{free_port()}', timeout=TIMEOUT) as friend:
            with pytest.raises(microconnect.Unreachable):
                asyncio.run(friend.asend('/echo'))

    def test_timeout(self):
        """No reply in time is a CallTimeout for asend too."""
        service, released = make(), threading.Event()
        service.typing('/wait')(lambda: released.wait(TIMEOUT))
        with serving(service), Friend('app1', service.address, timeout=0.05) as friend:
            with pytest.raises(microconnect.CallTimeout):
                asyncio.run(friend.asend('/wait'))
            released.set()


def by_listener(service, method, path, headers, body):
    """Ask the listener; the status, the headers in lower case, and the body."""
    with serving(service):
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
    }
    scope.update(extra)
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
    return sent[0]['status'], fields, sent[1]['body']


HOSTS = pytest.mark.parametrize('ask', [by_listener, by_wsgi, by_asgi])
REFUSED_EVERYWHERE = [
    # status, method, path, headers, body
    (404, 'POST', '/nothing', JSON_HEADERS, b''),
    (404, 'POST', '/ech', JSON_HEADERS, b'{}'),
    (404, 'POST', '/', JSON_HEADERS, b'{}'),
    (404, 'POST', '/echo/', JSON_HEADERS, b'{}'),
    (404, 'POST', '/echo?args=1', JSON_HEADERS, b'{}'),
    (404, 'GET', '/?x', {}, b''),
    (404, 'POST', '/%C3%A4', JSON_HEADERS, b''),
    (405, 'GET', '/echo', {}, b''),
    (405, 'DELETE', '/echo', JSON_HEADERS, b''),
    (501, 'BREW', '/echo', JSON_HEADERS, b''),
    (415, 'POST', '/echo', {'Content-Type': 'text/plain'}, b'{}'),
    (415, 'POST', '/echo', {'Content-Type': 'application/x-www-form-urlencoded'}, b'a=1'),
    (400, 'POST', '/echo', JSON_HEADERS, b'{'),
    (400, 'POST', '/echo', JSON_HEADERS, b'[]'),
    (400, 'POST', '/echo', JSON_HEADERS, b'\xff'),
    (400, 'POST', '/echo', JSON_HEADERS, b'{"args":[NaN]}'),
    (400, 'POST', '/echo', JSON_HEADERS, b'{"args":{}}'),
    (400, 'POST', '/echo', JSON_HEADERS, b'{"other":1}'),
    (401, 'POST', '/guarded', JSON_HEADERS, b'{}'),
    (401, 'POST', '/guarded', JSON_HEADERS, b'{"token":"wrong"}'),
    (403, 'POST', '/echo', dict(JSON_HEADERS, Origin='http://evil.example'), b'{}'),
    (403, 'GET', '/', {'Origin': 'http://evil.example'}, b''),
    (403, 'POST', '/echo', dict(JSON_HEADERS, **{'Sec-Fetch-Site': 'cross-site'}), b'{}'),
    (413, 'POST', '/echo', JSON_HEADERS, b'{"args":["%b"]}' % (b'x' * 200)),
    (422, 'POST', '/guarded', JSON_HEADERS, b'{"args":[1],"token":"right"}'),
    (500, 'POST', '/fail', JSON_HEADERS, b'{"args":["ValueError"]}'),
    (500, 'POST', '/afail', JSON_HEADERS, b'{"args":["ValueError"]}'),
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
        problems = [json.loads(reply.decode()) for _, _, reply in answers]
        assert problems[0]['status'] == status
        assert problems == [problems[0]] * 3
        for got, fields, reply in answers:
            assert got == status
            assert fields['content-type'] == 'application/problem+json'
            assert int(fields['content-length']) == len(reply)
            assert fields.get('allow') == ('POST' if status == 405 else None)
            assert ('www-authenticate' in fields) == (status == 401)

    @HOSTS
    @pytest.mark.parametrize('rule', ['/echo', '/aecho'])
    def test_call(self, ask, rule):
        """A call is answered by each host, of a plain rule and of an async one."""
        service = make_async()
        status, fields, reply = ask(service, 'POST', rule, JSON_HEADERS, b'{"args":["\xc3\xa4"]}')
        assert (status, fields['content-type']) == (200, 'application/json')
        assert json.loads(reply.decode()) == ['ä']
        service.stop()

    @HOSTS
    def test_get(self, ask):
        """A rule opened to GET is answered without a body and a content type."""
        service = make()
        service.typing('/now', methods=['GET'])(lambda: 'now')
        assert ask(service, 'GET', '/now', {}, b'')[::2] == (200, b'["now"]')

    @pytest.mark.parametrize('ask', [by_listener, by_wsgi])
    def test_path_not_utf8(self, ask):
        """A path that is not UTF-8 is malformed; under ASGI the server decodes it."""
        assert ask(make(), 'POST', '/%FF', JSON_HEADERS, b'')[0] == 400

    @HOSTS
    def test_rule_with_letters(self, ask):
        """A rule beyond ASCII is found by its percent-encoded path."""
        service = make()
        service.typing('/grüße dich')(lambda: 'da')
        assert ask(service, 'POST', '/gr%C3%BC%C3%9Fe%20dich', JSON_HEADERS, b'{}')[0] == 200

    @HOSTS
    @pytest.mark.parametrize('method, body', [('GET', b'["app1"]'), ('HEAD', b'')])
    @pytest.mark.parametrize('token', [None, 'secret'])
    def test_health(self, ask, method, body, token):
        """GET / names the service and HEAD / does so without a body; neither wants a token."""
        status, fields, reply = ask(make(token=token), method, '/', {}, b'')
        assert (status, reply) == (200, body)
        assert fields['content-type'] == 'application/json'
        assert fields['content-length'] == '8'

    @HOSTS
    def test_head_of_a_rule(self, ask):
        """HEAD of a rule is refused, without a body but with the length of the problem."""
        status, fields, reply = ask(make(), 'HEAD', '/echo', {}, b'')
        assert (status, fields['allow'], reply) == (405, 'POST', b'')
        assert int(fields['content-length']) > 0


class QuietHandler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *args):
        pass


class TestWsgi:
    """Micro.wsgi; the validator watches each call, in by_wsgi."""

    @pytest.mark.parametrize('length', ['x', '-1', '+1', '1.0', ' 2', '\xb2', '1_0', '0x2'])
    def test_bad_length(self, length):
        """A length that is no number is refused, whatever Python's int() would say of it."""
        told = []
        environ = {'REQUEST_METHOD': 'POST', 'PATH_INFO': '/echo', 'CONTENT_LENGTH': length}
        environ.update({'CONTENT_TYPE': 'application/json', 'wsgi.input': io.BytesIO(b'{}')})
        reply = b''.join(make().wsgi(environ, lambda status, headers: told.append(status)))
        assert told == ['400 Bad Request']
        assert b'Content-Length' in reply

    def test_short_body(self):
        """A body that ends before its length is refused, and the function does not run."""
        service = make()
        status = by_wsgi(service, 'POST', '/echo', JSON_HEADERS, b'{}', CONTENT_LENGTH='3')[0]
        assert (status, service.ran) == (400, [])

    def test_too_large_is_not_read(self):
        """A body over the limit is refused by its length, unread."""
        source = io.BytesIO(b'x' * 1000)
        service = make(max_body=100)
        options = {'wsgi.input': source, 'CONTENT_LENGTH': '1000'}
        assert by_wsgi(service, 'POST', '/echo', JSON_HEADERS, b'', **options)[0] == 413
        assert source.tell() == 0

    @pytest.mark.parametrize('size, status', [(100, 200), (101, 413)])
    def test_chunked(self, size, status):
        """A chunked body is read where the server marks its end, up to the limit."""
        body = b'{"args":["%b"]}' % (b'x' * (size - 13))
        options = {'CONTENT_LENGTH': '', 'HTTP_TRANSFER_ENCODING': 'chunked'}
        options['wsgi.input_terminated'] = True
        answer = by_wsgi(make(max_body=100), 'POST', '/echo', JSON_HEADERS, body, **options)
        assert answer[0] == status

    def test_chunked_without_an_end(self):
        """A chunked body is refused where the server does not mark its end, and nothing runs."""
        service = make()
        options = {'CONTENT_LENGTH': '', 'HTTP_TRANSFER_ENCODING': 'chunked'}
        assert by_wsgi(service, 'POST', '/echo', JSON_HEADERS, b'2\r\n{}', **options)[0] == 411
        assert service.ran == []

    def test_mounted(self):
        """Under a prefix the rule is what follows it."""
        got = by_wsgi(make(), 'POST', '/echo', JSON_HEADERS, b'{"args":[1]}', SCRIPT_NAME='/rpc')
        assert got[::2] == (200, b'[1]')

    def test_simple_server(self):
        """A Friend calls a service that wsgiref serves."""
        server = wsgiref.simple_server.make_server(
            '127.0.0.1',
            0,
            wsgiref.validate.validator(make().wsgi),
            handler_class=QuietHandler,
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            with Friend('app1', f'127.0.0.1:{server.server_port}', timeout=TIMEOUT) as friend:
                assert friend.ping(TIMEOUT)
                assert friend.send('/echo', 'ä', 2) == ('ä', 2)
                with pytest.raises(ValueError, match='why'):
                    friend.send('/fail', 'ValueError')
                with pytest.raises(microconnect.UnknownRule, match="did you mean '/echo'"):
                    friend.send('/ecko')
        finally:
            server.shutdown()
            server.server_close()
            thread.join(TIMEOUT)


class TestAsgi:
    """Micro.asgi."""

    @pytest.mark.parametrize('pieces', [1, 2, 7, 12])
    def test_pieces(self, pieces):
        """The body may come in any number of pieces."""
        body = b'{"args":[1]}'
        answer = by_asgi(make(), 'POST', '/echo', JSON_HEADERS, body, pieces=pieces)
        assert answer[::2] == (200, b'[1]')

    def test_disconnect(self):
        """A client that goes in the middle of its body gets no answer, and nothing runs."""
        service = make()
        body = b'{"args":[1]}'
        assert by_asgi(service, 'POST', '/echo', JSON_HEADERS, body, disconnect=True) is None
        assert service.ran == []

    def test_too_large_is_not_kept(self):
        """A body over the limit is refused as soon as it is: the rest is not asked for."""
        service = make(max_body=100)
        # With disconnect: whoever asked for more would find the client gone, and answer nothing.
        body = b'x' * 150
        answer = by_asgi(service, 'POST', '/echo', JSON_HEADERS, body, pieces=3, disconnect=True)
        assert answer[0] == 413

    @pytest.mark.parametrize(
        'root_path, path',
        [
            ('/rpc', '/rpc/echo'),
            ('/rpc', '/echo'),
            ('/rpc/', '/rpc/echo'),
            ('/', '/echo'),
            ('/ec', '/echo'),
            ('/echo', '/echo/echo'),
        ],
    )
    def test_mounted(self, root_path, path):
        """The rule is what follows root_path, which some servers leave out of the path."""
        answer = by_asgi(make(), 'POST', path, JSON_HEADERS, b'{"args":[1]}', root_path=root_path)
        assert answer[::2] == (200, b'[1]')

    def test_mounted_root(self):
        """The mount point itself is the health check."""
        answer = by_asgi(make(), 'GET', '/rpc', {}, b'', root_path='/rpc')
        assert answer[::2] == (200, b'["app1"]')

    def test_threads(self):
        """A plain rule runs in a thread, an async one on the running loop."""
        service = make_async()
        service.typing('/thread')(lambda: threading.current_thread() is threading.main_thread())
        assert by_asgi(service, 'POST', '/thread', JSON_HEADERS, b'')[2] == b'[false]'
        assert by_asgi(service, 'POST', '/loop', JSON_HEADERS, b'')[2] == b'[null]'
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
        """Another scope than http is refused by an error, as the specification wants it."""
        with pytest.raises(RuntimeError, match='websocket'):
            asyncio.run(make().asgi({'type': 'websocket', 'path': '/'}, None, None))

    def test_recognised(self):
        """Servers see that it is ASGI 3: by a coroutine function, or by an async __call__."""
        application = make().asgi
        kind = type(application)
        called = application if kind.__name__ == 'function' else kind.__call__
        assert asyncio.iscoroutinefunction(called)


HOSTED = """
import asyncio

from microconnect import Microservice

Micro = Microservice(__name__)
application = Micro.wsgi  # gunicorn takes a name, not an attribute


@Micro.typing('/str')
@Micro.reply
def string1(a, key):
    return a + '-' + key


@Micro.typing('/int3')
@Micro.reply
def int3(a, key):
    return a + key, key * key, a * a


@Micro.typing('/list3')
@Micro.reply
def list3(a, key):
    key.append('other value')
    return a, key, None


@Micro.typing('/class', token='123456')
@Micro.reply
def class1(a):
    class Thing:
        name = 'test'

        def __init__(self, value):
            self.value = value

    return Thing(a)


@Micro.typing('/sleep')
@Micro.reply
async def sleep(value):
    await asyncio.sleep(0.001)
    return value


@Micro.typing('/fail')
@Micro.reply
def fail(message):
    raise ValueError(message)
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
        """A Friend's calls are answered, and its errors told, under a server of others."""
        pytest.importorskip(SERVERS[server][0])
        (tmp_path / 'app1.py').write_text(HOSTED)
        port = str(free_port())
        command = ['-m'] + [part.replace('PORT', port) for part in SERVERS[server]]
        with process(*command, folder=tmp_path):
            with Friend('app1', f'http://127.0.0.1:{port}', timeout=TIMEOUT) as friend:
                friend.wait(TIMEOUT)
                assert friend.send('/str', 'A', key='B') == 'A-B'
                assert friend.send('/int3', 3.1427, key=1000000000)[0] == 1000000003.1427
                wanted = {'k': 1}, ['abc', 'zyz', 'other value'], None
                assert friend.send('/list3', {'k': 1}, key=['abc', 'zyz']) == wanted
                friend.setRule('/class', token='123456')
                assert friend.send('/class', [1]) == {'name': 'test', 'value': [1]}
                assert call_all(8, lambda: friend.send('/sleep', 'ä')) == ['ä'] * 8
                assert len(friend.send('/str', 'x' * 300000, key='')) == 300001
                friend.setRule('/class', token='wrong')
                with pytest.raises(microconnect.Forbidden):
                    friend.send('/class', 1)
                with pytest.raises(microconnect.UnknownRule, match="did you mean '/str'"):
                    friend.send('/strr')
                with pytest.raises(microconnect.BadArguments):
                    friend.send('/str', 1, 2, 3)
                with pytest.raises(ValueError, match='why') as raised:
                    friend.send('/fail', 'why')
                assert raised.value.type == 'ValueError'


class TestFrameworks:
    """The examples of services beside a framework's own routes, where it is installed."""

    @pytest.mark.parametrize('name', ['flask', 'sanic', 'starlette', 'fastapi'])
    def test_example(self, name, tmp_path):
        """The framework's own route, and the rules of the tutorial, are answered on one port."""
        pytest.importorskip(name)
        if name in ('starlette', 'fastapi'):
            pytest.importorskip('uvicorn')
        port = free_port()
        example = EXAMPLES / 'frameworks' / f'{name}_app.py'
        with process(str(example), str(port), folder=tmp_path):
            address = f'http://127.0.0.1:{port}'
            with Friend('app1', f'{address}/rpc', timeout=TIMEOUT) as friend:
                friend.wait(TIMEOUT)
                assert friend.send('/helloworld', 'Mr. Developer') == 'Welcome Mr. Developer'
                assert friend.send('/later', 2, delay=0.001) == 2
                check_tutorial(friend)
                with pytest.raises(microconnect.UnknownRule):
                    friend.send('/nothing')
                with pytest.raises(microconnect.BadArguments):
                    friend.send('/helloworld')
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f'{address}/', timeout=TIMEOUT) as reply:
                assert reply.read().decode().lower() == f'{name} answers here'


SHARING = """
import sys

from microconnect import Microservice

Micro = Microservice('second')
Micro.typing('/who')(lambda: 'second')
Micro.run(port=int(sys.argv[1]), host='127.0.0.1', reuse_port=True)
"""


class TestSharedPort:
    """start(reuse_port=True)."""

    @pytest.mark.skipif(not sys.platform.startswith('linux'), reason='only Linux spreads calls')
    def test_two_processes(self, tmp_path):
        """Two processes share a port, and both answer."""
        (tmp_path / 'second.py').write_text(SHARING)
        service = Microservice('first')
        service.typing('/who')(lambda: 'first')
        with service.start(port=0, host='127.0.0.1', reuse_port=True):
            port = port_of(service)
            seen, deadline = set(), time.monotonic() + TIMEOUT
            with process('second.py', str(port), folder=tmp_path):
                with Friend('both', f'127.0.0.1:{port}', timeout=TIMEOUT) as friend:
                    while len(seen) < 2 and time.monotonic() < deadline:
                        seen.add(friend.send('/who'))
                        friend.close()  # the next call connects anew
        assert seen == {'first', 'second'}

    def test_taken(self):
        """Unless both say so, a port that is taken is an OSError that names it."""
        with serving() as service:
            with pytest.raises(OSError, match=f'cannot listen on 127.0.0.1:{port_of(service)}'):
                make().start(port=port_of(service), host='127.0.0.1', reuse_port=True)

    def test_unsupported(self, monkeypatch):
        """A system without SO_REUSEPORT is told so, and nothing listens."""
        monkeypatch.delattr(socket, 'SO_REUSEPORT', raising=False)
        service = make()
        with pytest.raises(OSError, match='cannot share a port'):
            service.start(port=0, host='127.0.0.1', reuse_port=True)
        with pytest.raises(RuntimeError):
            service.address  # noqa: B018


AT_REST = """
import sys, threading

sys.path.insert(0, sys.argv[1])
from microconnect import Friend, Microservice

Micro = Microservice('app1')
Micro.typing('/echo')(lambda value: value)
friend = Friend('app1', sys.argv[2])
assert friend.send('/echo', 1) == 1
assert Friend('local', Micro).send('/echo', 1) == 1
assert friend.ping()
friend.close()
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
loaded = {'asyncio', 'concurrent.futures', 'multiprocessing', 'logging'} & set(sys.modules)
assert not loaded, loaded
"""


class TestAtRest:
    """What is not used costs nothing."""

    def test_nothing_runs(self):
        """Importing, making a service and calling start no thread, and load no event loop."""
        folder = os.path.dirname(os.path.abspath(microconnect.__file__))
        with serving() as service:
            command = [sys.executable, '-S', '-I', '-W', 'error', '-c', AT_REST]
            command += [folder, service.address]
            done = subprocess.run(command, stderr=subprocess.PIPE, timeout=TIMEOUT)
        assert (done.returncode, done.stderr.decode()) == (0, '')

    def test_plain_rules_need_no_loop(self):
        """A service of plain rules has one thread to accept, and one for each connection."""
        with serving() as service, Friend('app1', service.address) as friend:
            before = set(threading.enumerate())
            friend.send('/echo', 1)
            assert len(set(threading.enumerate()) - before) == 1


class TestEdges:
    """Rare conditions that must not hang, leak, let in or run a call twice."""

    def test_many_interim_replies(self):
        """However many interim replies come first, each call gets its own reply."""
        interim = b'HTTP/1.1 102 Processing\r\n\r\n' * 10

        def script(sock, *_):
            for body in (b'["A"]', b'["B"]'):
                call_on(sock)
                sock.sendall(interim + told(body))

        with peer(script) as address, Friend('app1', address, timeout=TIMEOUT) as friend:
            assert [friend.send('/a'), friend.send('/b')] == ['A', 'B']

    def test_408_of_an_open_connection(self):
        """A 408 that keeps the connection open does not tell of idleness: no call is repeated."""
        asked = []

        def script(sock, *_):
            for reply in (told(), told(b'{}', b'408 Request Timeout')):
                asked.append(call_on(sock))
                sock.sendall(reply)

        with peer(script) as address, Friend('app1', address, timeout=TIMEOUT) as friend:
            friend.send('/echo')
            with pytest.raises(microconnect.Busy):
                friend.send('/echo')
        assert len(asked) == 2

    def test_old_links_are_closed(self):
        """Connections of a burst that are not needed any more are closed in the course of calls."""
        with serving() as service, Friend('app1', service.address, timeout=TIMEOUT) as friend:
            links = [friend._places[0]._connect(time.monotonic() + TIMEOUT) for _ in range(5)]
            assert friend.send('/echo', 1) == 1
            kept = friend._places[0].links
            kept.extendleft(links)  # with a time to retire at that is past
            for left in range(5, 0, -1):
                assert friend.send('/echo', 1) == 1
                assert len(kept) == left
            assert [link.sock.fileno() for link in links] == [-1] * 5

    def test_default_timeout(self, monkeypatch):
        """A service waits as its own limits say, whatever the application's default timeout is."""
        with serving() as service:
            before = socket.getdefaulttimeout()
            socket.setdefaulttimeout(0.05)
            try:
                with connect(service) as sock:
                    sock.settimeout(TIMEOUT)
                    sock.sendall(request()[:-1])
                    assert not select.select([sock], [], [], 0.2)[0]  # nor was it closed
                    sock.sendall(request()[-1:])
                    assert statuses(sock.recv(65536)) == [200]
            finally:
                socket.setdefaulttimeout(before)

    def test_tokens_are_no_dict(self):
        """What reads or merges the tokens neither opens a rule for a moment, nor skips a check."""
        service = make(token={'/echo': 'secret'})
        assert dict(service.token) == {'/echo': 'secret'}
        assert not hasattr(service.token, 'copy')
        with pytest.raises(TypeError):
            service.token.update({'/fail': ''})
        service.token.update(fail='other')
        assert is_guarded_by(service, '/fail')
        del service.token['fail']
        assert not is_guarded_by(service, '/fail')

    def test_awaitable_that_fails(self):
        """A TypeError of an awaitable is the function's own: it has run."""
        service = Microservice('app1')

        class Broken:
            def __await__(self):
                return 5

        service.typing('/broken')(lambda: Broken())
        with pytest.raises(microconnect.RemoteError) as caught:
            Friend('app1', service).send('/broken')
        assert caught.value.sent is True
        service.stop()

    def test_answer_in_an_async_rule(self):
        """An async rule that has its own loop wait for itself gets an error at once."""
        service = Microservice('app1')

        @service.typing('/other')
        async def other():
            return 1

        @service.typing('/itself')
        async def itself():
            return service.answer('POST', '/other', {'content-type': 'application/json'}, b'{}')[0]

        assert Friend('app1', service).send('/itself') == 500
        service.stop()

    def test_loop_that_cannot_start(self, monkeypatch):
        """Where no event loop can be made, an async rule fails, and works when one can again."""
        service = Microservice('app1')

        @service.typing('/later')
        async def later():
            return 1

        def fail(main):
            main.close()

        friend = Friend('app1', service)
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, 'run', fail)
            with pytest.raises(microconnect.RemoteError, match='could not start'):
                friend.send('/later')
        assert friend.send('/later') == 1
        service.stop()

    def test_start_without_a_thread(self, monkeypatch):
        """A service that gets no thread says so, frees its port, and can be started again."""
        service = make()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, 'start', lambda self: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                service.start(port=0, host='127.0.0.1')
        service.stop()
        with serving(service):
            assert Friend('app1', service.address).ping()

    @pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork')
    def test_fork(self):
        """After a fork, async rules work in the child too, and stopping there does not wait."""
        script = """
import asyncio, os, signal
from microconnect import Friend, Microservice
Micro = Microservice('app1')
@Micro.typing('/later')
async def later():
    return 'done'
with Micro.start(port=0, host='127.0.0.1'):
    friend = Friend('app1', Micro)
    friend.send('/later')
    import warnings
    warnings.simplefilter('ignore')
    child = os.fork()
    if not child:
        signal.alarm(10)
        code = friend.send('/later') != 'done'
        Micro.stop()
        os._exit(code)
    print(os.waitpid(child, 0)[1])
"""
        with run_python(script) as process:
            assert outcome(process)[:2] == (0, ['0'])

    @pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork')
    def test_start_after_a_fork(self):
        """A child does not serve what its parent does; it may serve by itself."""
        script = """
import os, signal, warnings
from microconnect import Friend, Microservice
Micro = Microservice('app1')
Micro.typing('/pid')(os.getpid)
with Micro.start(port=0, host='127.0.0.1'):
    inherited = Micro._listener
    warnings.simplefilter('ignore')
    child = os.fork()
    if not child:
        signal.alarm(10)
        try:
            Micro.address
            os._exit(1)
        except RuntimeError:
            pass
        code = inherited.socket.fileno() >= 0
        with Micro.start(port=0, host='127.0.0.1'), Friend('app1', Micro.address) as friend:
            code |= friend.send('/pid') != os.getpid()
        os._exit(code)
    print(os.waitpid(child, 0)[1])
    with Friend('app1', Micro.address) as friend:
        print(friend.send('/pid') == os.getpid())
"""
        with run_python(script) as process:
            assert outcome(process)[:2] == (0, ['0', 'True'])

    @pytest.mark.parametrize('address', ['http://me:secret@[::1', 'http://me:secret@h\u2100:1'])
    def test_password_in_a_bad_address(self, address):
        """However wrong an address is, its password is not shown."""
        with pytest.raises(ValueError, match='no user and password') as caught:
            Friend('app1', address)
        assert 'secret' not in str(caught.value)

    def test_password_of_a_bad_proxy(self, monkeypatch):
        """However wrong the proxy of the environment is, its password is not shown."""
        monkeypatch.setenv('http_proxy', 'http://user:pa/secret@proxy:80')
        monkeypatch.delenv('no_proxy', raising=False)
        with pytest.raises(ValueError, match='proxy of the environment') as caught:
            Friend('app1', 'http://service.invalid')
        assert 'pa' not in str(caught.value)

    def test_object_with_every_attribute(self):
        """A value that claims to have every attribute is a value, and not waited for."""

        class Lax(dict):
            __getattr__ = dict.get

        class Strict:
            def __getattr__(self, name):
                raise KeyError(name)

        service = Microservice('app1')
        service.typing('/lax')(lambda: Lax(a=1))
        service.typing('/strict')(Strict)
        assert Friend('app1', service).send('/lax') == {'a': 1}
        assert Friend('app1', service).send('/strict') == {}

    def test_proxy_of_a_string(self):
        """What only passes for a string is refused, and not sent as something else."""

        class Proxy:
            __class__ = property(lambda self: str)

            def __getattr__(self, name):
                return getattr('text', name)

        with pytest.raises(microconnect.BadCall, match='Proxy'):
            Friend('app1', make()).send('/echo', [Proxy()])

    def test_tokens_stay(self):
        """What holds a friend, a service or its tokens is refused: the tokens would go along."""

        class App:
            def __init__(self, held):
                self.held = held

        service = make(token=SECRET)
        friend = Friend('app1', service, {'/echo': SECRET})
        for held in (friend, service, friend.token, service.token):
            with pytest.raises(microconnect.BadCall, match=r'args\[0\].held: .* has no JSON form'):
                friend.send('/echo', App(held))
        assert service.ran == []

    def test_what_numpy_has(self):
        """The type of what has no JSON form is told with its module, and what to send instead."""

        class Odd:
            __slots__ = ()
            tolist = __call__ = lambda self: 7

        Odd.__name__, Odd.__module__ = 'bool', 'numpy'
        told = r'args\[0\]: numpy.bool has no JSON form: send its .tolist\(\)$'
        with pytest.raises(microconnect.BadCall, match=told):
            Friend('app1', make()).send('/echo', Odd())

    def test_rests_are_logged(self, caplog):
        """An address that is left alone for a while is named in the log, at INFO."""
        caplog.set_level('INFO')
        with serving() as gone:
            address = gone.address
        with serving() as service, Friend('app1', [address, service.address]) as friend:
            assert [friend.send('/echo', 1) for _ in range(2)] == [1, 1]
        told = f'{address} rests for 0.1 s: /echo at {address}: cannot connect'
        assert caplog.messages[0].startswith(told)

    def test_short_time_limit_of_the_system(self, monkeypatch):
        """The longest wait that a system knows (Windows: 49 days) bounds times, and not sizes."""
        monkeypatch.setattr(threading, 'TIMEOUT_MAX', 4294967.0)
        friend = Friend('app1', make(max_body=1 << 32), max_body=1 << 32)
        assert friend.send('/echo', 1) == 1
        with pytest.raises(
            ValueError, match='timeout is a number .* above 0 to 4294967, not 4294968'
        ):
            friend.setRule('/echo', timeout=4294968)

    @pytest.mark.parametrize('size', [1e6, sys.maxsize, (1 << 32) + 1])
    def test_size_of_no_use(self, size):
        """A size that is a float, or that no machine has, is refused, and not found out later."""
        with pytest.raises(ValueError, match=r'max_body is a number \(int\) above 0 to 42949'):
            Friend('app1', 'http://127.0.0.1:9', max_body=size)

    def test_rule_of_another_type(self):
        """A rule that is no string is an error that says what one is, hashable or not."""
        for rule in (['/echo'], 7, None):
            with pytest.raises(TypeError, match="a rule is a string such as '/helloworld'"):
                Friend('app1', make()).send(rule)

    def test_service_left_behind(self):
        """A service that was only called in its process need not be stopped to free its loop."""
        before = resources()
        for _ in range(3):
            assert Friend('app1', make_async()).send('/aecho', 1) == 1
        gc.collect()
        until_released(before)

    @pytest.mark.parametrize('name', ['__bool__', '__len__', '__str__', '__repr__'])
    def test_exception_that_fails(self, name):
        """An exception with methods that raise is told to the caller like any other."""

        def fail(self):
            raise KeyError(name)

        def raising():
            raise type('Odd', (Exception,), {name: fail})

        service = make()
        service.typing('/odd')(raising)
        with serving(service), Friend('app1', service.address) as friend:
            with pytest.raises(microconnect.RemoteError) as caught:
                friend.send('/odd')
        assert caught.value.type == 'Odd'

    def test_log_that_fails(self, monkeypatch):
        """What fails in logging costs no caller its answer."""
        monkeypatch.setattr(logging.getLogger('microconnect'), 'error', lambda *_, **more: 1 / 0)
        with serving() as service, Friend('app1', service.address) as friend:
            with pytest.raises(microconnect.RemoteError) as caught:
                friend.send('/fail', 'KeyError')
        assert caught.value.type == 'KeyError'

    def test_handler_while_connecting(self):
        """An error that a signal's handler got from another call is not told of this one."""
        other = microconnect.Unreachable().at('/other', 'elsewhere')

        def dial(deadline):
            raise other

        with serving() as service:
            with Friend('app1', [service.address] * 2) as friend:
                for place in friend._places:
                    place._dial = dial
                with pytest.raises(microconnect.Unreachable) as caught:
                    friend.send('/echo')
        assert caught.value is other

    def test_name_that_cannot_be_looked_up(self):
        """A host's name that is too long for DNS is an address that cannot be reached."""
        with Friend('app1', f'http://{"a" * 64}.invalid:1') as friend:
            with pytest.raises(microconnect.Unreachable, match='cannot connect'):
                friend.send('/echo')

    def test_ssl_context_in_the_clear(self, tls_client):
        """An ssl_context for an address that is not https is refused: it would encrypt nothing."""
        with pytest.raises(ValueError, match="'localhost:5000' is not encrypted: write https://"):
            Friend('app1', 'localhost:5000', SECRET, ssl_context=tls_client)

    def test_no_descriptor_left(self, monkeypatch):
        """Where no descriptor is left for a newcomer, the longest idle connection makes room."""
        accept, failed = socketserver.TCPServer.get_request, []

        def fail_once(server):
            if failed:
                return accept(server)
            failed.append(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
            raise failed[0]

        with serving() as service, connect(service) as idle:
            idle.sendall(request())
            assert statuses(receive(idle, b'"x"]')) == [200]
            until(lambda: service._listener.idle)
            monkeypatch.setattr(socketserver.TCPServer, 'get_request', fail_once)
            with Friend('app1', service.address, timeout=TIMEOUT) as friend:
                assert friend.send('/echo', 1) == 1
            assert statuses(receive(idle)) == [408]

    def test_more_after_close(self):
        """A reply to who closes, but has sent more, arrives whole: nothing resets it."""
        asked = request(extra=b'Connection: close\r\n') + b'x' * 1000000
        with serving() as service:
            for _ in range(20):
                assert raw(service, asked).endswith(b'["x"]')

    def test_length_of_many_digits(self):
        """A length of thousands of digits is too large under WSGI as well."""
        answer = by_wsgi(make(), 'POST', '/echo', JSON_HEADERS, b'', CONTENT_LENGTH='9' * 4000)
        assert answer[0] == 413


def is_guarded_by(service, rule):
    """Whether *rule* of *service* refuses a call without a token."""
    try:
        Friend('app1', service).send(rule, 'ValueError')
    except microconnect.Forbidden:
        return True
    except ValueError:
        pass
    return False


HERE = Path(__file__).resolve().parent


def blocks():
    """The README's blocks of Python, each with what it prints if that follows: (code, printed)."""
    text = (HERE / 'README.md').read_text(encoding='utf-8')
    found = re.findall(r'^```(\w*)\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
    following = [code if kind == '' else '' for kind, code in found[1:]] + ['']
    return [(code, after) for (kind, code), after in zip(found, following) if kind == 'python']


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


class TestDocuments:
    """What README.md and the examples promise."""

    def test_first_blocks(self):
        """The README's first service and friend, as two programs, print its greeting."""
        (service, _), (friend, printed) = blocks()[:2]
        space = {'__name__': 'app1'}
        exec(service, space)
        out = io.StringIO()
        with serving(space['Micro']) as micro, contextlib.redirect_stdout(out):
            exec(friend.replace('http://127.0.0.1:5000', micro.address), {})
        assert out.getvalue() == printed == 'Welcome Mr. Developer\n'

    @pytest.mark.parametrize('number', range(2, len(blocks())))
    def test_blocks(self, number):
        """Each further block of the README runs, and prints what stands below it."""
        code, printed = blocks()[number]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, {'__name__': 'readme'})
        assert printed and out.getvalue() == printed

    def test_order(self):
        """The README shows code within ten lines, its output within thirty, then the limits."""
        lines = (HERE / 'README.md').read_text(encoding='utf-8').splitlines()
        assert '```python' in lines[:10]
        assert 'Welcome Mr. Developer' in lines[:30]
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

    def test_version(self):
        """The version stands in the module, and the README's changes tell of it."""
        readme = (HERE / 'README.md').read_text(encoding='utf-8')
        assert f'- {microconnect.__version__}:' in readme
