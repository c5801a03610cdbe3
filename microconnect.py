# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) the microconnect authors. The licence stands whole at the end of this file.
"""Call a function in another process as if it were local: one file, standard library only.

A service lists functions under rules::

    from microconnect import Microservice

    Micro = Microservice(__name__)

    @Micro.typing('/helloworld')
    @Micro.reply
    def helloworld(name):
        return f'Welcome {name}'

    if __name__ == '__main__':
        Micro.run()

and a friend, in another process or on another machine, calls them::

    from microconnect import Friend

    aFriend = Friend('app1', 'http://127.0.0.1:5000')
    print(aFriend.send('/helloworld', 'Mr. Developer'))    # Welcome Mr. Developer

The wire is HTTP/1.1 (RFC 9112) and JSON (RFC 8259), that of microservices_connector:

    request   POST <rule>, Content-Type: application/json
    args      array: the positional arguments             missing means []
    kwargs    object: the keyword arguments               missing means {}
    token     string or null: the rule's token            missing means null

    reply     200, Content-Type: application/json, an array of the returned values
    return 7                [7]
    return a, b, None       [a, b, null]
    return [1, 2]           [[1, 2]]
    no return               [null]
    return ()               []

Any other status is a failure, told as RFC 9457 problem details (application/problem+json) with
`title`, `status`, `detail` and, where the function raised, `exception`: {`type`, `message`,
`traceback` (in debug only)}.  `Friend.send` raises it, never returns it:

    what happened                                 status         raised           did it run?
    refused, DNS, TLS: never sent                                Unreachable      no
    connection lost after sending                                ConnectionLost   perhaps
    no full reply in time                                        CallTimeout      perhaps
    the reply is not one                                         BadReply         perhaps
    malformed request, not application/json       400, 415 ...   BadCall          no
    arguments do not fit the signature            422            BadArguments     no
    token missing or wrong; a foreign web page    401, 403       Forbidden        no
    no such rule, wrong method                    404, 405       UnknownRule      no
    too large (or the reply was: then it ran)     413, 431       TooLarge         no
    too busy, stopping, or too slow to ask        503, 408       Busy             no
    the function raised                           500            RemoteError      yes

Limits.  A token is not encryption: give an `ssl_context` where the network is not yours.  A tuple
arrives as several values, so a tuple of one arrives as its element.  A class arrives as a dict of
its public attributes.  The keys of a dict arrive as strings.  NaN and the infinities have no JSON
form.  There is no discovery, no queue and no broker; a call in progress holds a thread.
"""

from __future__ import annotations

import base64
import builtins
import collections
import contextlib
import contextvars
import datetime
import email.utils
import enum
import errno
import functools
import hmac
import http
import http.server
import io
import itertools
import json
import math
import os
import re
import select
import socket
import socketserver
import struct
import sys
import threading
import time
import types
import urllib.parse
import urllib.request
import weakref
from collections import abc

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without the cost of importing typing
if TYPE_CHECKING:
    import ssl
    from typing import Any, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, TypeVar

    Function = TypeVar('Function', bound=Callable[..., Any])
    Headers = tuple[tuple[str, str], ...]
    Answer = tuple[int, Headers, bytes]
    Tokens = str | Mapping[str, str] | None

__version__ = '0.1.0'
# fmt: off
__all__ = [
    'BadArguments', 'BadCall', 'BadReply', 'Busy', 'CallTimeout', 'ConnectionLost', 'Forbidden',
    'Friend', 'MicroconnectError', 'Microservice', 'RemoteError', 'TooLarge', 'UnknownRule',
    'Unreachable',
]
# fmt: on


def _log(level: str, message: str, *args: Any, **more: Any) -> None:
    with contextlib.suppress(Exception):  # no line of a log is worth an answer
        import logging  # loaded by the first line logged: it is half as large as all the rest

        getattr(logging.getLogger('microconnect'), level)(message, *args, **more)


# ---------------------------------------------------------------------------------------- errors


class MicroconnectError(Exception):
    """The root of what a call can raise.

    Attributes:
        rule (str or None): the rule that was called.
        address (str or None): where it was called.
        status (int or None): the HTTP status that stands for the failure, if one does.
        sent (bool): False means that the function did not run: it is safe to send again.
    """

    rule: str | None = None
    address: str | None = None
    status: int | None = None
    sent = False

    def __init__(self, message: str = '', **facts: Any) -> None:
        # Not super(): beside a builtin exception the next class may want other arguments.
        Exception.__init__(self, message)
        self.__dict__.update(facts)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ''

    def at(self, rule: str, address: str) -> MicroconnectError:
        """Say of which call this is the failure."""
        self.rule, self.address = rule, address
        self.args = (f'{rule} at {address}: {self}',)
        return self


class Unreachable(MicroconnectError, ConnectionError):
    """No connection could be made (refused, DNS, TLS): nothing was sent."""


class ConnectionLost(MicroconnectError, ConnectionError):
    """The connection ended before a reply came: the function may have run."""

    sent = True


class CallTimeout(MicroconnectError, TimeoutError):
    """No full reply came in time: the function may have run."""

    sent = True


class BadReply(MicroconnectError, ValueError):
    """What came back is not a reply: the function may have run."""

    sent = True


class BadCall(MicroconnectError, ValueError):
    """The request is malformed, or has a value with no JSON form."""

    status = 400


class BadArguments(MicroconnectError, TypeError):
    """The arguments do not fit the function's signature."""

    status = 422


class Forbidden(MicroconnectError, PermissionError):
    """The token is missing or wrong (401), or a foreign web page asked (403)."""

    status = 401


class UnknownRule(MicroconnectError, LookupError):
    """The service has no such rule (404), or not for this method (405)."""

    status = 404


class TooLarge(MicroconnectError, ValueError):
    """The request is larger than the service takes, or the reply than the friend takes."""

    status = 413


class Busy(MicroconnectError, ConnectionError):
    """The service is too busy, or stopping (503), or the request came too slowly (408)."""

    status = 503


class RemoteError(MicroconnectError):
    """The function raised.  Where the type is a builtin exception, the error is one of it too.

    Attributes:
        type (str): the name of the exception's class.
        traceback (str or None): where it was raised; told by a service in debug only.
    """

    status = 500
    sent = True
    type = 'Exception'
    traceback: str | None = None

    def __reduce__(self) -> Any:
        return _remote_error, (str(self), self.__dict__)


def _remote_error(message: str, facts: dict[str, Any]) -> RemoteError:
    name = facts.get('type', '')
    kind = _remote_error_class(name) if name in vars(builtins) else RemoteError
    return kind(message, **facts)


@functools.lru_cache(maxsize=None)
def _remote_error_class(name: str) -> type[RemoteError]:
    """The RemoteError that is also the builtin *name*, if that is an exception."""
    kind = vars(builtins)[name]
    # The first two would silently end the loop around the call; a group is no message alone.
    never = ('StopIteration', 'StopAsyncIteration', 'ExceptionGroup')
    if name in never or not (isinstance(kind, type) and issubclass(kind, Exception)):
        return RemoteError
    members = {'__module__': __name__, 'msg': property(str)}  # SyntaxError prints its msg
    return type('RemoteError', (RemoteError, kind), members)


_ERRORS: dict[int, type[MicroconnectError]] = {
    **dict.fromkeys((400, 411, 414, 415, 417, 505), BadCall),
    **dict.fromkeys((401, 403), Forbidden),
    **dict.fromkeys((404, 405, 501), UnknownRule),
    **dict.fromkeys((408, 503), Busy),
    **dict.fromkeys((413, 431), TooLarge),
    422: BadArguments,
}
_JSON = (('Content-Type', 'application/json'),)
_PROBLEM = (('Content-Type', 'application/problem+json'),)
_CHALLENGE = (('WWW-Authenticate', 'Token realm="microconnect"'),)


def _problem(status: int, detail: str, **members: Any) -> bytes:
    """RFC 9457 problem details."""
    title = http.HTTPStatus(status).phrase
    return _encode(dict(title=title, status=status, detail=detail, **members), 'problem')


def _error_from_reply(status: int, body: bytes) -> MicroconnectError:
    """The error that a reply with another status than 200 tells of."""
    try:
        problem = _decode(body)
    except ValueError:
        problem = None
    told = problem if isinstance(problem, dict) else {}
    why = f'the service answered {status}, without saying why: does microconnect answer there?'
    detail = str(told.get('detail') or why)
    if status != 500:
        return _ERRORS.get(status, BadReply)(detail, status=status)
    raised = told.get('exception')
    facts = raised if isinstance(raised, dict) else {}
    return _remote_error(detail, {k: str(facts[k]) for k in ('type', 'traceback') if k in facts})


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return f'(its message cannot be read: {type(error).__name__}.__str__ raised)'


# ---------------------------------------------------------------------------------------- values


def _plain(value: Any) -> Any:
    """Give the JSON form of what json has none for: json calls it, so plain data is never walked.

    Raises TypeError where there is no faithful form.
    """
    # What json knows by itself, only a proxy brings here; what has tokens keeps them.
    if isinstance(value, (str, int, float, list, tuple, type(None), _Guarded, _Tokens)):
        raise _formless(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, abc.Mapping):
        return dict(value)
    if isinstance(value, (abc.Set, abc.Iterator, abc.ValuesView, collections.deque, range)):
        return list(value)
    for module, name in (('decimal', 'Decimal'), ('fractions', 'Fraction'), ('uuid', 'UUID')):
        # Not imported for this: where nobody has, there is no such value.
        if isinstance(value, getattr(sys.modules.get(module), name, ())):
            return str(value)
    return _attributes(value)


def _attributes(value: Any) -> dict[str, Any]:
    """Give what a class travels as: its public attributes, callables left out, names sorted."""
    has_attributes = hasattr(value, '__dict__') or hasattr(type(value), '__slots__')
    if callable(value) or isinstance(value, types.ModuleType) or not has_attributes:
        raise _formless(value)
    if hasattr(type(value), '__dataclass_fields__'):
        fields = sys.modules['dataclasses'].fields(value)
        return {f.name: getattr(value, f.name) for f in fields if not f.name.startswith('_')}
    items = {name: _attribute(value, name) for name in dir(value) if not name.startswith('_')}
    return {name: item for name, item in items.items() if not callable(item)}


def _formless(value: Any) -> TypeError:
    name = re.sub(r'\Abuiltins\.', '', f'{type(value).__module__}.{type(value).__name__}')
    hint = ': send its .tolist()' if hasattr(value, 'tolist') else ''  # of numpy and its like
    return TypeError(f'{name} has no JSON form{hint}')


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except Exception as error:  # a property's
        raise ValueError(f'its {name} raised {type(error).__name__}: {_said(error)}') from error


def _locate(value: Any, path: str, above: tuple[Any, ...] = ()) -> str:
    """Find what in *value* has no JSON form: `reply[0].items[3]: function has no JSON form`."""
    if any(value is outer for outer in above):
        return f'{path}: holds itself'
    if len(above) > 200:
        return f'{path[:60]}...: nested too deeply'
    try:
        native = issubclass(type(value), (str, int, float, list, tuple, dict, type(None)))
        form = value if native else _plain(value)
        if not isinstance(form, (list, tuple, dict)):
            _encoder.encode(form)
            return ''
    except Exception as error:
        return f'{path}: {_said(error)}'
    items: Iterable[Any] = form.items() if isinstance(form, dict) else enumerate(form)
    in_brackets = native or not isinstance(form, dict)  # and not after a dot, as an attribute
    for key, item in items:
        if not isinstance(key, (str, int, float, type(None))):
            return f'{path}: a key is a {type(key).__name__}, and the keys of JSON are strings'
        step = f'[{key!r}]' if in_brackets else f'.{key}'
        found = _locate(item, path + step, above + (value,))
        if found:
            return found
    return ''


_encoder = json.JSONEncoder(allow_nan=False, separators=(',', ':'), default=_plain)
_iterencode: Any = _encoder.iterencode
_make = getattr(json.encoder, 'c_make_encoder', None)  # PyPy has none
if _make:  # once: JSONEncoder.encode makes it anew for every value
    _text = json.encoder.encode_basestring_ascii
    _iterencode = _make(None, _plain, _text, None, ':', ',', False, False, False)


def _encode(value: Any, part: str) -> bytes:
    """Encode *value*, which an error calls *part*.

    Raises TypeError or ValueError that names the path of what has no faithful form.
    """
    try:
        return ''.join(_iterencode(value, 0)).encode()
    except Exception as error:
        try:
            detail = _locate(value, part) or f'{part}: {error}'
        except RecursionError:
            detail = f'{part}: nested too deeply'
        raise (TypeError if isinstance(error, TypeError) else ValueError)(detail) from error


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f'{text[:20]} is no finite number')
    return number


_decoder = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)
_scan = _decoder.scan_once  # type: ignore[attr-defined]


def _decode(body: bytes) -> Any:
    """Decode JSON strictly; ValueError says what is wrong."""
    try:
        text = body.decode()
        try:
            value, end = _scan(text, 0)
        except StopIteration:
            end = -1
        # With white space around it, or an error to tell of, the long way.
        return value if end == len(text) else _decoder.decode(text)
    except RecursionError:
        raise ValueError('nested too deeply') from None


# -------------------------------------------------------------------------------------- messages
# HTTP/1.1 framing (RFC 9112), for both sides.  Nothing here knows a socket: a head is parsed by
# a pure function, and a stream is whatever `recv` and `recv_into` give.  Its errors carry the
# status that a service answers them by.

_SERVER = 'microconnect'  # how a service names itself, which tells a friend how it closes
_CHUNKED = -1  # a length: the body is chunked
_TO_THE_END = -2  # a length: the body ends with the connection
_BLOCK = 1 << 18  # bytes of a body sent at a time; also what has to move within read_timeout
_FIRST_READ = 1 << 14  # most messages are smaller; a waiting connection holds no more than this

# Not compiled: importing is to be quick, and re keeps what it has compiled.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD = _TOKEN + rb':[\t\x20-\x7e\x80-\xff]*'
_FIELDS = rb'((?:\r\n' + _FIELD + rb')*)'
_REQUEST_LINE = rb'(' + _TOKEN + rb') ([\x21-\x7e]+) HTTP/1\.([0-9])'
_REQUEST = _REQUEST_LINE + _FIELDS
_STATUS_LINE = rb'HTTP/1\.([0-9]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?'
_REPLY = _STATUS_LINE + _FIELDS
_EMPTY_LINES = rb'\A(?:\r\n)+'
_BAD_BYTES = rb'(?<!\r)\n|\r(?!\n|\Z)|[\0-\x08\x0b\x0c\x0e-\x1f]'
_PATH = rb"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
_NAME = rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"
_HOST = rb'(?:\[[0-9A-Fa-f:.]+\]|' + _NAME + rb')(?::[0-9]*)?'
_AUTHORITY = rb'(?:[Hh][Tt][Tt][Pp][Ss]?://(?=[^/?:])' + _HOST + rb')?'
_TARGET = _AUTHORITY + rb'(/' + _PATH + rb')?(?:\?([^#]*))?'
_CHUNK_LINE = rb'([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?'

_Request = collections.namedtuple('_Request', 'method path headers count length keep_alive expects')
_Reply = collections.namedtuple('_Reply', 'status length keep_alive is_ours fault')


# A peer repeats its heads, and to parse one costs as much as the rest of a call.
@functools.lru_cache(maxsize=256)
def _parse_request(head: bytes) -> _Request:
    """Parse a request's head, without the empty line that ends it."""
    found = re.fullmatch(_REQUEST, head)
    if not found:
        raise _malformed(head)
    method, target, minor, lines = found.groups()
    headers = _parse_fields(lines)
    host = headers.get('host', '' if minor == b'0' else None)
    if host is None or not re.fullmatch(_HOST, host.encode('latin-1')):
        raise BadCall('a request needs one valid Host header (RFC 9112, 3.2)')
    place = re.fullmatch(_TARGET, target)
    if not place and (method, target) != (b'OPTIONS', b'*'):
        raise BadCall('the request target is not a path (RFC 9112, 3.2)')
    path, query = place.groups() if place else (target, None)
    expects = headers.get('expect', '').lower() if minor != b'0' else ''
    if expects not in ('', '100-continue'):
        raise BadCall('the only expectation met is 100-continue', status=417)
    return _Request(
        method.decode(),
        # Of a query the mark alone is kept: so no rule matches, and no one logs what it holds.
        _utf8(urllib.parse.unquote_to_bytes(path or b'/')) + ('?' if query else ''),
        headers,
        lines.count(b'\r\n'),
        _body_length(headers, minor, 0),
        _keeps_alive(headers, minor),
        bool(expects),
    )


@functools.lru_cache(maxsize=256)
def _parse_reply(head: bytes) -> _Reply:
    """Parse a reply's head.

    `keep_alive` is in seconds, 0 where the peer closes; `fault`, why the body holds no values.
    """
    found = re.fullmatch(_REPLY, head)
    if not found:
        raise _malformed(head)
    minor, status, lines = found.groups()
    headers = _parse_fields(lines)
    length = _body_length(headers, minor, _TO_THE_END)
    if status in (b'204', b'304') or status[:1] == b'1':
        length = 0
    seconds = 0.0
    if length != _TO_THE_END and _keeps_alive(headers, minor):
        told = re.search(r'timeout=([0-9]{1,6})\b', headers.get('keep-alive', ''))
        # Where none is told: below the 5 s of Node and uvicorn, the shortest in wide use.
        seconds = 0.9 * int(told.group(1)) if told else 4.0
    kind, coding = headers.get('content-type', ''), headers.get('content-encoding', 'identity')
    fault = '' if _is_json(kind) else f'the reply has Content-Type {kind[:99]!r}'
    if coding != 'identity':
        fault = 'the reply is compressed, which was not asked for'
    return _Reply(int(status), length, seconds, headers.get('server') == _SERVER, fault)


def _malformed(head: bytes) -> BadCall:
    """What to say of a head that is none.  Its text is not repeated: it may hold a secret."""
    if re.match(rb'(?:\S+ \S+ )?HTTP/(?!1\.[0-9])[0-9]', head):
        return BadCall('only HTTP/1.1 is spoken here', status=505)
    return BadCall('the head is malformed (RFC 9112): a first line, then Name: value lines')


def _parse_fields(lines: bytes) -> dict[str, str]:
    """Parse header lines that match _FIELDS; those of one name are joined (RFC 9110, 5.3)."""
    headers: dict[str, str] = {}
    for field in lines.decode('latin-1').split('\r\n')[1:]:
        name, _, value = field.partition(':')
        name, value = name.lower(), value.strip(' \t')
        headers[name] = f'{headers[name]}, {value}' if name in headers else value
    return headers


def _body_length(headers: Mapping[str, str], minor: bytes, otherwise: int) -> int:
    """How long the body is (RFC 9112, 6.3), *otherwise* where no header says."""
    length, coding = headers.get('content-length'), headers.get('transfer-encoding')
    if coding is not None:
        # Two statements of one length are how requests are smuggled past a proxy.
        if length is not None or minor == b'0':
            raise BadCall('Transfer-Encoding with Content-Length, or in HTTP/1.0, is refused')
        if coding.lower().strip(', \t') == 'chunked':  # a list may have empty elements
            return _CHUNKED
        known = re.fullmatch(r'(?:gzip|x-gzip|deflate|compress)\s*,\s*chunked', coding.lower())
        raise BadCall('the only Transfer-Encoding read is chunked', status=501 if known else 400)
    if length is None:
        return otherwise
    if not (length.isascii() and length.isdigit()):
        raise BadCall('Content-Length is not a number of bytes')
    length = length.lstrip('0') or '0'
    return int(length) if len(length) < 16 else 10**15


def _keeps_alive(headers: Mapping[str, str], minor: bytes) -> bool:
    options = headers.get('connection', '').lower().split(',')
    return minor != b'0' and 'close' not in map(str.strip, options)


@functools.lru_cache(maxsize=16)
def _is_json(content_type: str) -> bool:
    return content_type.partition(';')[0].strip().lower() == 'application/json'


def _utf8(path: bytes) -> str:
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise BadCall('the path is not percent-encoded UTF-8') from None


class _Stream:
    """Messages out of a stream of bytes."""

    sock: Any  # has recv and recv_into
    progress: Callable[[int], None]  # is told of each number of bytes that came
    first_line: bytes  # a pattern of what a head begins with: what never will be one is refused
    parse: Any  # what makes a record of a head
    max_head: int  # bytes
    buffer = b''  # what has come and is not read yet
    last_head = b''

    def _more(self) -> None:
        data = self.sock.recv(_FIRST_READ)
        if not data:
            raise BadCall('the connection ended in the middle of a message')
        self.progress(len(data))
        self.buffer += data  # which copies nothing where it was empty

    def _take(self, size: int, or_less: bool = False) -> bytes:
        """Give the next *size* bytes, or what there is till the end."""
        if size <= len(self.buffer):
            data, self.buffer = self.buffer[:size], self.buffer[size:]
            return data
        data = io.BufferedReader(_Raw(self), 1).read(size)
        if len(data) < size and not or_less:
            raise BadCall('the connection ended in the middle of a message')
        return data

    def head(self) -> Any:
        """Give the next head, parsed; what never will be one is refused, and not waited for."""
        most, seen = self.max_head, 0
        while True:
            if self.buffer[:1] == b'\r':  # RFC 9112, 2.2: ignore empty lines before, not for ever
                text = re.sub(_EMPTY_LINES, b'', self.buffer, count=1)
                most -= len(self.buffer) - len(text)
                self.buffer = text
            head, blank, rest = self.buffer.partition(b'\r\n\r\n')
            if blank or len(head) > most + 3:  # of which up to 3 may begin the empty line
                break
            is_line = b'\r\n' not in head or re.match(self.first_line + b'\r\n', head)
            if not is_line or re.compile(_BAD_BYTES).search(head, seen):
                raise _malformed(head)
            seen = max(len(head) - 3, 0)
            self._more()
        if len(head) > most:
            raise TooLarge(f'the head is over {self.max_head} bytes', status=431)
        self.last_head, self.buffer = head, rest
        # Only small ones are remembered, so that they stay few bytes.
        return (self.parse if len(head) < 1024 else self.parse.__wrapped__)(head)

    def body(self, length: int, limit: int) -> bytes:
        """Give the body that follows a head which told *length*."""
        if length == len(self.buffer) <= limit:  # as most messages come
            body, self.buffer = self.buffer, b''
            return body
        if 0 <= length <= limit:
            return self._take(length)
        if length == _CHUNKED:
            return self._chunks(limit)
        if length > limit:
            raise TooLarge(f'the body of {length} bytes is over max_body={limit}')
        rest = self._take(limit + 1, or_less=True)
        if len(rest) > limit:
            raise TooLarge(f'the body is over max_body={limit} bytes')
        return rest

    def _chunks(self, limit: int) -> bytes:
        """Give a chunked body (RFC 9112, 7.1); extensions and trailers are read and left."""
        body = bytearray()  # a list would keep 50 bytes beside each chunk of one
        spare = self.max_head  # what extensions and trailers may use up
        while True:
            line = self._line(spare)
            found = re.fullmatch(_CHUNK_LINE, line)
            if not found:
                raise BadCall('a chunk size is malformed (RFC 9112, 7.1)')
            spare -= len(line) - len(found.group(1))
            size = int(found.group(1), 16)
            if len(body) + size > limit:
                raise TooLarge(f'the body is over max_body={limit} bytes')
            if not size:
                break
            body += self._take(size)
            if self._take(2) != b'\r\n':
                raise BadCall('a chunk is longer than its size (RFC 9112, 7.1)')
        while line:
            line = self._line(spare)
            spare -= len(line)
            if line and not re.fullmatch(_FIELD, line):
                raise BadCall('a trailer is malformed (RFC 9112, 7.1.2)')
        return bytes(body)

    def _line(self, limit: int) -> bytes:
        while b'\r\n' not in self.buffer:
            if len(self.buffer) > limit or b'\n' in self.buffer:
                raise BadCall('a line of a chunked body is malformed or too long')
            self._more()
        return self._take(self.buffer.find(b'\r\n') + 2)[:-2]


class _Raw(io.RawIOBase):
    """A stream for BufferedReader.read: it fills memory in place, and takes only what comes."""

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        stream = self.stream
        start, stream.buffer = stream.buffer[: len(buffer)], stream.buffer[len(buffer) :]
        if start:
            buffer[: len(start)] = start
            return len(start)
        count: int = stream.sock.recv_into(buffer)
        stream.progress(count)
        return count


def _head(first_line: str, *fields: tuple[str, str]) -> bytes:
    """A message's head, but for the length and the empty line."""
    lines = [f'{name}: {value}\r\n' for name, value in fields]
    return f'{first_line}\r\n{"".join(lines)}'.encode('latin-1')


@functools.lru_cache(maxsize=64)
def _reply_head(status: int, headers: Headers, alive: float, second: int) -> bytes:
    """A reply's head; with *alive* 0 seconds the connection is closed."""
    first_line = f'HTTP/1.1 {status} {http.HTTPStatus(status).phrase}'
    date = email.utils.formatdate(second, usegmt=True)
    kept = ('Keep-Alive', f'timeout={max(1, int(alive))}') if alive else ('Connection', 'close')
    return _head(first_line, ('Server', _SERVER), ('Date', date), *headers, kept)


def _request_head(base: str, extra: Headers, method: str, rule: str) -> bytes:
    try:
        target = base + urllib.parse.quote(rule, safe="/~!$&'()*+,;=:@")
    except UnicodeEncodeError:
        raise BadCall('the rule holds a lone surrogate, which has no UTF-8 form') from None
    return _head(f'{method} {target} HTTP/1.1', *extra, *_JSON)


# ---------------------------------------------------------------------------------- Microservice

_METHODS = ('GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS')

_Rule = collections.namedtuple('_Rule', 'path function methods token')


class _Tokens(abc.MutableMapping):  # type: ignore[type-arg]
    """Rule -> token, one class for both sides; *token* is such a dict or one string for all.

    It never shows a token, and takes none that would guard nothing.
    """

    def __init__(self, token: Tokens) -> None:
        if not isinstance(token, (type(None), str, abc.Mapping)):
            raise TypeError("token is one string for every rule, or a dict {'/rule': 'token'}")
        self.for_all: str | None = getattr(token, 'for_all', None)
        self._by_rule: dict[str, str] = {}
        if isinstance(token, str):
            self.for_all, token = _checked_token('every rule', token), None
        self.update(token or {})

    def __getitem__(self, rule: str) -> str:
        return self._by_rule[_path_of(rule)]

    def __setitem__(self, rule: str, token: str) -> None:
        self._by_rule[_path_of(rule)] = _checked_token(rule, token or '')

    def __delitem__(self, rule: str) -> None:
        del self._by_rule[_path_of(rule)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_rule)

    def __len__(self) -> int:
        return len(self._by_rule)

    def of(self, rule: str) -> str | None:
        return self._by_rule.get(rule) or self.for_all


class _Guarded:
    """What has tokens: to set `token` replaces them, but for those that decorators gave."""

    _rules: Mapping[str, _Rule] = {}

    @property
    def token(self) -> _Tokens:
        return self._token

    @token.setter
    def token(self, token: Tokens) -> None:
        tokens = _Tokens(token)
        for rule in list(self._rules.values()):
            if rule.token:
                tokens.setdefault(rule.path, rule.token)
        self._token = tokens  # last: no call may find a guarded rule without its token


def _checked_token(rule: str, token: Any) -> Any:
    if token is None or (isinstance(token, str) and token):
        return token
    raise TypeError(f'the token of {rule} has to be a non-empty string')


def _path_of(rule: Any) -> str:
    if not isinstance(rule, str) or not rule:
        raise TypeError(f"a rule is a string such as '/helloworld', not {rule!r}")
    return rule if rule.startswith('/') else '/' + rule


def _code_flags(function: Any) -> int:
    """The flags of the code that calling *function* runs; 0 where it is not Python's."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, '__code__', getattr(type(function).__call__, '__code__', None))
    return code.co_flags if code else 0


def _refuse_secret_key(secret_key: str | None) -> None:
    if secret_key is not None:
        raise NotImplementedError('secretKey: calls cannot be signed yet; use token, and TLS')


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_in_async_rule = contextvars.ContextVar('microconnect.in_async_rule', default=False)


def _would_block_rules() -> bool:
    """Whether this is the code of an async rule, in the thread of the loop that it shares."""
    if not _in_async_rule.get():
        return False
    import asyncio

    return asyncio._get_running_loop() is not None


def _check_browser(headers: Mapping[str, str]) -> None:
    """Refuse what a foreign web page makes its visitor's browser ask.

    Under DNS rebinding Origin and Host agree on a name, so a name other than localhost is none.
    """
    origin, host = headers.get('origin'), headers.get('host', '')
    if origin is not None:
        name = re.sub(r':[0-9]*\Z', '', host)
        is_address = re.fullmatch(r'\[[0-9A-Fa-f:.]+\]|[0-9]{1,3}(?:\.[0-9]{1,3}){3}', name)
        if origin.partition('://')[2] != host or not (name == 'localhost' or is_address):
            raise Forbidden(f'web pages of {origin[:200]!r} may not call this service', status=403)
    elif headers.get('sec-fetch-site') == 'cross-site':
        raise Forbidden('web pages of other sites may not call this service', status=403)


def _parse_call(body: bytes) -> tuple[list[Any], dict[str, Any], Any]:
    """Read args, kwargs and token from a request's body."""
    try:
        call = _decode(body) if body else {}
    except ValueError as error:
        raise BadCall(f'the body is not JSON: {error}') from None
    is_object = type(call) is dict
    if is_object:
        args, kwargs, token = call.pop('args', []), call.pop('kwargs', {}), call.pop('token', None)
    if not is_object or call:  # or more than that
        raise BadCall('the body has to be {"args": [...], "kwargs": {...}, "token": ...}')
    if type(args) is not list or type(kwargs) is not dict:
        raise BadCall('args has to be an array, and kwargs an object')
    return args, kwargs, token


def _same_token(given: Any, wanted: str) -> bool:
    """Compare in constant time, as bytes: ascii() has them for each str, a lone surrogate too."""
    asked, right = ascii(given).encode(), ascii(wanted).encode()
    return isinstance(given, str) and hmac.compare_digest(asked, right)


def _is_again(before: Any, function: Any) -> bool:
    """Whether a notebook or a prompt has run the definition of a function once more."""
    name = getattr(function, '__qualname__', '<>')
    return hasattr(sys, 'ps1') and '<' not in name and name == getattr(before, '__qualname__', '')


def _nearest(path: str, rules: Iterable[str]) -> str:
    import difflib

    return ''.join(difflib.get_close_matches(path[:200], list(rules), 1))


def _no_rule(method: str, path: str, rules: Mapping[str, _Rule]) -> UnknownRule:
    """Why there is no rule to run."""
    if method not in _METHODS + ('HEAD',):
        return UnknownRule(f'method {method[:20]!r} is not one that rules answer', status=501)
    rule = rules.get(path)
    if rule is not None:
        return UnknownRule(
            f'{path} answers {", ".join(rule.methods)}, not {method}: setRule(rule, method=...)',
            status=405,
            headers=(('Allow', ', '.join(rule.methods)),),
        )
    near = _nearest(path, rules)
    hint = f'did you mean {near!r}?' if near else 'is it registered under that name?'
    if '?' in path:
        path = path[: path.index('?') + 1]  # what follows may be a token
        hint = 'the arguments of a call are in its body, not in a query'
    return UnknownRule(f'no rule {path[:200]!r} here: {hint}')


class _Loop(threading.Thread):
    """The event loop of a service's async rules, in a thread of its own."""

    def __init__(self, service: _Rulebook) -> None:
        super().__init__(daemon=True)
        self.service = weakref.ref(service, self.end)  # which may be left behind, never stopped
        self.is_open = threading.Event()
        self.start()
        while not self.is_open.wait(0.1):
            if not self.is_alive():  # such as without a descriptor left
                raise RuntimeError('the event loop of the async rules could not start')

    def run(self) -> None:
        import asyncio

        asyncio.run(self._until_closed())  # cancels what is left at the end, and closes the loop

    async def _until_closed(self) -> None:
        import asyncio

        self.loop = asyncio.get_running_loop()
        self.ending = asyncio.Event()
        self.is_open.set()
        try:
            await self.ending.wait()
        finally:  # also where a task's SystemExit ends the loop
            self.is_open.clear()

    def result_of(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        import asyncio
        import concurrent.futures

        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            # Not result(1): its TimeoutError might be another's, such as of a signal's handler.
            while self.is_alive() and not concurrent.futures.wait([future], 1).done:
                pass  # the loop may have ended before it took this up
        finally:
            future.cancel()  # what nobody waits for any more must not go on; one done stays
        return future.result()

    def end(self, _: Any = None) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self.loop.call_soon_threadsafe(self.ending.set)

    def close(self) -> None:
        self.end()
        with contextlib.suppress(RuntimeError):  # this is its thread
            self.join(2)


class _Rulebook(_Guarded):
    """The rules and their tokens, and the one `answer` that every host calls."""

    def __init__(self, name: str, debug: bool | None, token: Tokens, max_body: int) -> None:
        self.name = name
        self.debug = debug
        self.max_body = _checked_number('max_body', max_body)
        self._rules: dict[str, _Rule] = {}
        self.token = token
        self._loop: _Loop | None = None
        self._locks: dict[int, Any] = {}  # by process: a fork copies a lock as held as it is

    def _lock(self) -> Any:
        """The lock of what starts and stops; reentrant, for a signal's handler may stop too."""
        return self._locks.setdefault(os.getpid(), threading.RLock())

    def typing(
        self, rule: str, token: str | None = None, methods: Sequence[str] = ('POST',)
    ) -> Callable[[Function], Function]:
        """Decorate a function to answer under *rule*; it stays callable as usual.

        Args:
            rule: the path, matched exactly; a '/' is put before it if missing.
            token: what callers have to give, if anything.
            methods: the HTTP methods it answers, default POST alone.

        Raises:
            TypeError, ValueError: at decoration, for what cannot work.
        """
        if not isinstance(rule, str):
            raise TypeError(f"write @Micro.typing('/rule'), with the rule, not {rule!r}")
        path = _path_of(rule)
        if isinstance(methods, str) or not methods or not set(methods) <= set(_METHODS):
            raise ValueError(f"methods is such as ('GET',), out of {_METHODS}, not {methods!r}")
        _checked_token(rule, token)

        def register(function: Function) -> Function:
            self.reply(function)
            if path in self._rules and not _is_again(self._rules[path].function, function):
                raise ValueError(f'rule {path!r} is taken already: give each function its own')
            if token is not None:
                self.token[path] = token
            self._rules[path] = _Rule(path, function, tuple(methods), token)
            return function

        return register

    route = typing

    def reply(self, function: Function) -> Function:
        """Mark *function* as one that answers calls; `typing` alone does the same."""
        if not callable(function):
            raise TypeError(f'write @Micro.reply above a function, not above {function!r}')
        return function

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b''
    ) -> Answer:
        """Answer one request; every host calls this, or `aanswer`.

        Args:
            method: the HTTP method.
            path: the rule, percent-encoding decoded.
            headers: name -> value, in any case.
            body: the body, whole.

        Returns:
            (status, headers, body): int, a tuple of (name, value), bytes.  Never raises, but for
            a KeyboardInterrupt or SystemExit in the main thread, where signals raise them.
        """
        return self._answer(method, path, {k.lower(): v for k, v in headers.items()}, body)

    async def aanswer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b''
    ) -> Answer:
        """Answer as `answer` does: async rules on the running loop, plain ones in a thread."""
        import asyncio

        try:
            lowered = {name.lower(): value for name, value in headers.items()}
            rule, args, kwargs = self._admit(method, path, lowered, body)
        except MicroconnectError as refusal:
            return self._refusal(path, refusal)
        if not _code_flags(rule.function) & 0x80:  # it is not async
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, self._run, rule, args, kwargs)
        try:
            value = rule.function(*args, **kwargs)
        except BaseException as error:
            return self._failure(rule, error)
        return await self._run_async(rule, value)

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            rule, args, kwargs = self._admit(method, path, headers, body)
        except MicroconnectError as refusal:
            return self._refusal(path, refusal)
        return self._run(rule, args, kwargs)

    def _admit(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[_Rule, list[Any], dict[str, Any]]:
        """Check a request; MicroconnectError refuses it: until here nothing has run."""
        if 'origin' in headers or 'sec-fetch-site' in headers:
            _check_browser(headers)
        rule = self._rules.get(path)
        if rule is None or method not in rule.methods:
            if path == '/' and method in ('GET', 'HEAD'):
                return _Rule('/', lambda: self.name, ('GET', 'HEAD'), None), [], {}
            raise _no_rule(method, path, self._rules)
        if len(body) > self.max_body:
            raise TooLarge(f'the body of {len(body)} bytes is over max_body={self.max_body}')
        kind = headers.get('content-type', '')
        if (body or method != 'GET') and not _is_json(kind):
            raise BadCall(f'Content-Type has to be application/json, not {kind!r}', status=415)
        args, kwargs, given = _parse_call(body)
        wanted = self._token.of(path)
        if wanted is not None and not _same_token(given, wanted):
            told = 'wants its token' if given is None else 'was given a wrong token'
            raise Forbidden(f"{path} {told}: setRule('{path}', token=...)", headers=_CHALLENGE)
        return rule, args, kwargs

    def _run(self, rule: _Rule, args: list[Any], kwargs: dict[str, Any]) -> Answer:
        try:
            # A context of its own: what a call sets must not reach the connection's next one.
            context = contextvars.copy_context()
            value = context.run(rule.function, *args, **kwargs)
            if isinstance(value, abc.Awaitable):  # its code did not show that it is async
                return self._run_in_loop(rule, value)
            return context.run(self._reply, value)
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)) and _in_main_thread():
                raise
            return self._failure(rule, error)

    def _run_in_loop(self, rule: _Rule, awaitable: Any) -> Answer:
        try:
            if _would_block_rules():
                raise RuntimeError('in an async rule, `await aanswer(...)`: `answer` would stop it')
            with self._lock():
                loop = self._loop
                if not (loop and loop.is_open.is_set() and loop.is_alive()):  # as after a fork
                    self._loop = loop = _Loop(self)
            return loop.result_of(self._run_async(rule, awaitable))
        except RuntimeError:
            getattr(awaitable, 'close', int)()  # or Python warns that it was never awaited
            raise

    def _close_loop(self) -> None:
        with self._lock():
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    async def _run_async(self, rule: _Rule, value: Any) -> Answer:
        import asyncio

        before = _in_async_rule.get()
        _in_async_rule.set(True)
        try:
            return self._reply(await value)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return self._failure(rule, error, has_begun=True)
        finally:
            _in_async_rule.set(before)

    def _reply(self, value: Any) -> Answer:
        if isinstance(value, types.GeneratorType):
            value = list(value)  # what it raises is the rule's
        body = _encode(value if type(value) is tuple else (value,), 'reply')
        if len(body) > self.max_body:
            raise ValueError(f'the reply of {len(body)} bytes is over max_body={self.max_body}')
        return 200, _JSON, body

    def _refusal(self, path: str, refusal: MicroconnectError) -> Answer:
        status = refusal.status or 500
        _log('info', 'refused %d: %r: %r', status, path.partition('?')[0], str(refusal))
        extra: Headers = getattr(refusal, 'headers', ())
        return status, _PROBLEM + extra, _problem(status, str(refusal))

    def _failure(self, rule: _Rule, error: BaseException, has_begun: bool = False) -> Answer:
        """Tell what the function raised, or that it could not be called."""
        trace = error.__traceback__
        is_call = not has_begun and isinstance(error, TypeError) and trace and not trace.tb_next
        if is_call and _code_flags(rule.function):
            # One frame: Python code would have a second, had the function begun to run.
            return self._refusal(rule.path, BadArguments(str(error)))
        _log('error', '%s raised', rule.path, exc_info=(type(error), error, trace))
        told = {'type': type(error).__name__, 'message': _said(error)}
        if self.debug:
            import traceback

            try:
                told['traceback'] = ''.join(traceback.format_exception(type(error), error, trace))
            except Exception as failure:  # such as of a SyntaxError with odd arguments
                told['traceback'] = f'it cannot be formatted: {_said(failure)}'
        detail = f'{told["type"]}: {told["message"]}'
        return 500, _PROBLEM, _problem(500, detail, exception=told)


# ----------------------------------------------------------------------------------------- hosts

_LINGER = 2.0  # seconds; nginx's lingering_timeout is 5: here a thread waits
_AT_ONCE = getattr(socket, 'MSG_DONTWAIT', 0)  # Windows has none


class _Connection(_Stream):
    """A connection to the listener, served in its own thread.

    Its socket blocks.  The accepting thread watches `deadline` and ends what is past it, which
    costs a call nothing, bounds a peer that drips bytes, and serves reading, writing and TLS
    alike.  Only a connection in `listener.idle` may be evicted: taking it out of there, which
    is atomic, decides whether the next request is run.
    """

    first_line = _REQUEST_LINE
    parse = staticmethod(_parse_request)

    def __init__(self, listener: _Listener, sock: socket.socket) -> None:
        self.listener = listener
        self.micro = listener.micro
        self.max_head = self.micro.max_head
        self.sock: Any = sock
        sock.settimeout(None)  # whatever socket.setdefaulttimeout says
        self.thread: threading.Thread | None = None
        self.deadline = time.monotonic() + self.micro.read_timeout
        self.expired = False
        self.is_answering = False  # from a request read whole to its reply sent

    def serve(self) -> None:
        """Serve request after request until either side closes."""
        micro = self.micro
        waiting = micro.read_timeout  # for the first word; later idle_timeout
        self.thread = threading.current_thread()
        try:
            if self.listener.ssl_context:
                self.sock = self.listener.ssl_context.wrap_socket(
                    self.sock, server_side=True, do_handshake_on_connect=False
                )
                self.sock.do_handshake()  # apart, so that a silent peer's is seen by `expire`
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._await_request(waiting):
                if not self._serve_request():
                    self._linger()
                    break
                waiting = micro.idle_timeout
        except MicroconnectError as error:
            if self.expired and error.status == 400:  # cut off by `expire`
                error = Busy('the request came too slowly', status=408)
            self._refuse(error)
        except OSError:
            pass  # the peer is gone, or was too slow to take its reply

    def _await_request(self, waiting: float) -> bool:
        """Wait for a request's first bytes; False where the peer is done."""
        idle = self.listener.idle
        if not self.buffer or self.buffer == b'\r\n':  # RFC 9112, 2.2: some end a body so
            self.deadline = time.monotonic() + waiting
            idle[self] = None
            data = self.sock.recv(_FIRST_READ)
            if idle.pop(self, self) is self or (self.expired and not data):
                # Told so that a request which crosses this on its way is known not to have run.
                raise Busy('the connection was idle, or the service stops; send again', status=408)
            if not data:
                return False
            self.buffer = data
        self.deadline = time.monotonic() + self.micro.read_timeout
        return True

    def progress(self, count: int) -> None:
        self.deadline += count * self.micro.read_timeout / _BLOCK

    def _serve_request(self) -> bool:
        micro = self.micro
        request = self.head()
        if request.count > micro.max_headers:
            raise TooLarge(f'there are over {micro.max_headers} header lines', status=431)
        length = request.length
        if request.expects and length <= micro.max_body and not self.buffer:
            self.sock.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
        body = self.body(length, micro.max_body) if length else b''
        self.deadline = math.inf
        self.is_answering = True
        if self.listener.stop_by:
            raise Busy('the service is stopping')
        status, headers, reply = micro._answer(request.method, request.path, request.headers, body)
        keep = request.keep_alive and not self.listener.stop_by
        self._send(status, headers, reply, keep)
        self.is_answering = False
        return keep

    def _send(self, status: int, headers: Headers, body: bytes, keep: bool) -> None:
        head = _reply_head(status, headers, keep and self.micro.idle_timeout, int(time.time()))
        shown = b'' if self.last_head[:5] == b'HEAD ' else body
        self.last_head = b''  # whatever comes next, such as a 408, is no reply to it
        message = memoryview(b'%bContent-Length: %d\r\n\r\n%b' % (head, len(body), shown))
        sent = 0
        if len(message) > _BLOCK and _AT_ONCE and not self.listener.ssl_context:
            with contextlib.suppress(BlockingIOError):  # what there is room for waits for nobody
                sent = self.sock.send(message, _AT_ONCE)
        for start in range(sent, len(message), _BLOCK):
            self.deadline = time.monotonic() + self.micro.read_timeout
            self.sock.sendall(message[start : start + _BLOCK])

    def _refuse(self, error: MicroconnectError) -> None:
        """Answer what is no request; nothing after it on this connection is read as one."""
        with contextlib.suppress(OSError):
            self._send(*self.micro._refusal('', error), keep=False)
            self._linger()

    def _linger(self) -> None:
        """Close in stages (RFC 9112, 9.6): with bytes unread it would reset, and lose the reply."""
        socket.socket.shutdown(self.sock, socket.SHUT_WR)
        self.is_answering = False
        self.deadline = time.monotonic() + _LINGER
        while self.sock.recv(_BLOCK):
            pass

    def expire(self) -> None:
        """End what the peer is too slow at: first its sending, then all."""
        how = socket.SHUT_RDWR if self.expired else socket.SHUT_RD
        self.listener.idle.pop(self, None)
        self.expired = True
        self.deadline = time.monotonic() + _LINGER
        with contextlib.suppress(OSError):
            # Not self.sock.shutdown: an SSLSocket would forget its TLS state, in use elsewhere.
            socket.socket.shutdown(self.sock, how)


class _Listener(http.server.ThreadingHTTPServer):
    """Accepts connections, which socketserver calls requests, and watches their deadlines."""

    request_queue_size = 1024  # the stock 5 resets most of a burst of clients
    allow_reuse_address = os.name == 'posix'  # elsewhere two services could share a port
    allow_reuse_port = False  # 3.13 would set it; here it is the caller's choice
    timeout = 0.05  # seconds: how often deadlines, and whether to stop, are looked at

    def __init__(
        self,
        micro: Microservice,
        address: tuple[str, int],
        ssl_context: ssl.SSLContext | None,
        reuse_port: bool,
    ) -> None:
        self.micro = micro
        if ssl_context is not None:
            # OP_IGNORE_UNEXPECTED_EOF: OpenSSL 3 would not let `_Connection.expire` answer.
            ssl_context.options |= 0x80
        self.ssl_context = ssl_context
        self.reuse_port = reuse_port
        self.connections: set[_Connection] = set()
        self.idle: collections.OrderedDict[_Connection, None] = collections.OrderedDict()
        self.stop_by: float | None = None
        self.is_over = False
        self.process = os.getpid()
        self.address_family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
        super().__init__(address, http.server.BaseHTTPRequestHandler)
        self.thread = threading.Thread(target=self._serve, name='microconnect', daemon=True)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which can take seconds."""
        if self.reuse_port:
            if not hasattr(socket, 'SO_REUSEPORT'):
                raise OSError(errno.ENOTSUP, 'this system cannot share a port: reuse_port=False')
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def url(self) -> str:
        scheme = 'https' if self.ssl_context else 'http'
        return f'{scheme}://{_netloc(_loopback(self.server_name), self.server_port)}'

    def _serve(self) -> None:
        try:
            while not self._tick():
                self.handle_request()
            self.timeout = 0
            for _ in range(self.request_queue_size):  # those who came last get an answer too
                self._accepted = False
                self.handle_request()
                if not self._accepted:
                    break
            with contextlib.suppress(OSError):  # where a child was forked, close() keeps the port
                self.socket.shutdown(socket.SHUT_RDWR)
            self.server_close()
            self.stop_by = time.monotonic() + 0.1  # for those, and for what takes its reply
            while not self._tick():
                time.sleep(0.001)
            for connection in list(self.connections):
                connection.expired = True
                connection.expire()
            self.micro._close_loop()
        finally:
            self.server_close()
            self.is_over = True

    def _tick(self) -> bool:
        """End the connections that are past their deadline; True when serving is over."""
        now = time.monotonic()
        for connection in list(self.connections):
            # Once stopping, also those that answer no call: idle, half sent or lingering.
            is_spare = self.stop_by and not (connection.is_answering or connection.expired)
            if is_spare or connection.deadline < now:
                connection.expire()
        if self.stop_by is None:
            return False
        self.timeout = 0.002
        return not self.connections or now > self.stop_by

    def _evict(self) -> bool:
        """Close the connection that has been idle for longest."""
        with contextlib.suppress(KeyError):  # none is idle
            self.idle.popitem(last=False)[0].expire()
            return True
        return False

    def get_request(self) -> Any:
        try:
            sock, address = super().get_request()
        except OSError:  # mostly: no descriptor is left
            self._evict()
            time.sleep(0.01)
            raise
        return _Connection(self, sock), address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Make room for a newcomer, or tell it that there is none, without waiting for it."""
        self._accepted = True
        if len(self.connections) < self.micro.max_connections or self._evict():
            self.connections.add(request)
            return True
        request.sock.setblocking(False)
        refusal = Busy('every connection is busy; try again later')
        with contextlib.suppress(OSError):
            if self.ssl_context is None:
                request._send(*self.micro._refusal('', refusal), keep=False)
            request.sock.recv(_BLOCK)
        return False

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection; ThreadingMixIn calls this in a thread of its own."""
        request.serve()

    def shutdown_request(self, request: Any) -> None:
        self.idle.pop(request, None)
        request.sock.close()
        self.connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log('exception', 'a connection failed')


def _listen(micro: Microservice, where: tuple[str, int], *how: Any) -> None:
    """Make the listener of *micro* and set it going; OSError says where it cannot, and why."""
    try:
        micro._listener = listener = _Listener(micro, where, *how)
    except TypeError:
        raise TypeError(f'host is a string and port a number, not {where!r}') from None
    except (OSError, OverflowError) as error:
        number = getattr(error, 'errno', None) or errno.EINVAL
        why = getattr(error, 'strerror', None) or error
        if number == errno.EADDRINUSE:
            why = f'{why}: stop what listens there, or take another port (0: a free one)'
        raise OSError(number, f'cannot listen on {_netloc(*where)}: {why}') from None
    try:
        micro._warn(listener.server_name)
        listener.thread.start()
    except BaseException:  # no more threads, or a signal
        listener.server_close()
        listener.is_over = True
        raise


class _Gateways(_Rulebook):
    """The same answers where others do the listening."""

    def _warn(self, host: str = 'localhost') -> None:
        """Say which tokens guard nothing, and which rules anyone who reaches *host* can call."""
        for path in set(self.token) - set(self._rules):
            near = _nearest(path, self._rules)
            # Where nothing is near, it may be the token itself, misplaced.
            told = f'{path!r}: did you mean {near!r}?' if near else 'for it'
            _log('warning', 'a token is set, and there is no rule %s', told)
        is_open = [path for path in list(self._rules) if self.token.of(path) is None]
        if is_open and not _is_loopback(host):
            advice = "the network can call %s at %s: give each rule a token, or host='127.0.0.1'"
            _log('warning', advice, ', '.join(is_open), host)

    @property
    def wsgi(self) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
        """The WSGI application (PEP 3333): ``application = Micro.wsgi``."""
        self._warn()
        return self._wsgi

    def _wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        headers = {k[5:].replace('_', '-'): v for k, v in environ.items() if k[:5] == 'HTTP_'}
        headers['content-type'] = environ.get('CONTENT_TYPE', '')
        method = environ['REQUEST_METHOD']
        try:
            body = self._wsgi_body(environ)
            path = _utf8(environ.get('PATH_INFO', '').encode('latin-1')) or '/'
            path += '?' if environ.get('QUERY_STRING') else ''
            status, fields, reply = self.answer(method, path, headers, body)
        except MicroconnectError as refusal:
            status, fields, reply = self._refusal('', refusal)
        fields += (('Content-Length', str(len(reply))),)
        start_response(f'{status} {http.HTTPStatus(status).phrase}', list(fields))
        return [] if method == 'HEAD' else [reply]

    def _wsgi_body(self, environ: Mapping[str, Any]) -> bytes:
        length = _body_length({'content-length': environ.get('CONTENT_LENGTH') or '0'}, b'1', 0)
        if length > self.max_body:
            raise TooLarge(f'the body of {length} bytes is over max_body={self.max_body}')
        is_chunked = environ.get('HTTP_TRANSFER_ENCODING')
        if is_chunked and not environ.get('wsgi.input_terminated'):  # nobody says where it ends
            raise BadCall('a body needs a Content-Length here', status=411)
        body: bytes = environ['wsgi.input'].read(self.max_body + 1 if is_chunked else length)
        if len(body) < length:
            raise BadCall('the body is shorter than its Content-Length')
        return body

    @property
    def asgi(self) -> Callable[..., Any]:
        """The ASGI 3 application: ``uvicorn app1:Micro.asgi``."""
        self._warn()

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await self._asgi(scope, receive, send)

        return application  # a function: uvicorn takes a bound method for ASGI 2

    async def _asgi(self, scope: Any, receive: Any, send: Any) -> None:
        if scope['type'] == 'lifespan':
            for phase in ('startup', 'shutdown'):
                await receive()
                await send({'type': f'lifespan.{phase}.complete'})
            return
        if scope['type'] != 'http':
            raise RuntimeError(f'only http is answered, not {scope["type"]}')
        body, more = bytearray(), True
        while more and len(body) <= self.max_body:
            message = await receive()
            if message['type'] == 'http.disconnect':
                return
            body += message.get('body', b'')
            more = message.get('more_body', False)
        headers = {k.decode('latin-1'): v.decode('latin-1') for k, v in scope['headers']}
        path, root = scope['path'], scope.get('root_path', '').rstrip('/')
        path = (path[len(root) :] if f'{path}/'.startswith(f'{root}/') else path) or '/'
        path += '?' if scope.get('query_string') else ''
        status, fields, reply = await self.aanswer(scope['method'], path, headers, bytes(body))
        fields += (('Content-Length', str(len(reply))),)
        raw = [(name.lower().encode(), value.encode('latin-1')) for name, value in fields]
        await send({'type': 'http.response.start', 'status': status, 'headers': raw})
        reply = b'' if scope['method'] == 'HEAD' else reply
        await send({'type': 'http.response.body', 'body': reply})


class Microservice(_Gateways):
    """Functions that other processes call: the listener.

    You call: `typing` (or `route`) and `reply` to decorate, `run` to serve, `start` and `stop`
    to serve in the background, `answer`, `aanswer`, `wsgi` and `asgi` to be hosted elsewhere.

    Args:
        name (str): told by GET /; recommended: ``__name__``.
        port (int): where to listen, default 5000; 0 takes a free one.
        host (str): default '0.0.0.0': every interface; a warning names the rules open there.
        debug (bool): also send the caller the traceback of what a function raises.
        token (dict or str): rule -> token, or one for every rule.  It can be changed at any time
            by ``Micro.token['/rule'] = '...'``.
        secretKey: signing comes later: anything but None raises NotImplementedError.
        max_body (int): bytes of a request's or reply's body, default 64 MiB: JSON of that size
            takes about a second and 0.5 GB to decode.
        max_head (int): bytes of a request's head, default 32 KiB: four times what nginx takes.
        max_headers (int): header lines of a request, default 100, as http.client has it.
        read_timeout (float): seconds, default 20 as Apache's mod_reqtimeout: for a connection's
            first word, for a head, and for each 256 KiB of a body or of taking a reply.
        idle_timeout (float): seconds between requests, default 60; told to clients.
        max_connections (int): default 1,000, a thread each.  At the limit the longest idle one
            makes room; if all are busy the newcomer is answered 503.

    Attributes:
        token: the tokens, rule -> token.
        address (str): the URL for a Friend, while it serves.
    """

    def __init__(
        self,
        name: str,
        port: int = 5000,
        host: str = '0.0.0.0',
        debug: bool | None = None,
        token: Tokens = None,
        secretKey: str | None = None,
        *,
        max_body: int = 64 << 20,
        max_head: int = 32 << 10,
        max_headers: int = 100,
        read_timeout: float = 20,
        idle_timeout: float = 60,
        max_connections: int = 1000,
    ) -> None:
        _refuse_secret_key(secretKey)
        super().__init__(name, debug, token, max_body)
        self.port = port
        self.host = host
        self.max_head = _checked_number('max_head', max_head)
        self.max_headers = _checked_number('max_headers', max_headers)
        self.read_timeout = _checked_seconds('read_timeout', read_timeout)
        self.idle_timeout = _checked_seconds('idle_timeout', idle_timeout)
        self.max_connections = _checked_number('max_connections', max_connections)
        self._listener: _Listener | None = None

    def _serving(self) -> _Listener | None:
        """The listener, if it has not ended; what a fork left behind here is released."""
        listener = self._listener
        if listener and listener.process != os.getpid():
            listener.server_close()
            listener.is_over = True
        return None if listener is None or listener.is_over else listener

    @property
    def address(self) -> str:
        """The URL for a Friend on this machine; RuntimeError while it does not serve."""
        listener = self._serving()
        if listener is None:
            raise RuntimeError(f'{self.name} does not serve: call start() or run() first')
        return listener.url()

    def start(
        self,
        port: int | None = None,
        host: str | None = None,
        debug: bool | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        reuse_port: bool = False,
    ) -> Microservice:
        """Serve in the background; ready when it returns.  ``with Micro.start(): ...`` stops too.

        Args:
            port, host, debug: in place of those given to the class.
            ssl_context: serve https by it.
            reuse_port: let other processes that say so too share the port (Linux, BSD).

        Raises:
            OSError: it cannot listen there; the message says where and why.
            RuntimeError: it serves already.
        """
        with self._lock():
            if self._serving():
                raise RuntimeError(f'{self.name} serves already, at {self.address}')
            self.debug = self.debug if debug is None else debug
            where = (self.host if host is None else host, self.port if port is None else port)
            _listen(self, where, _checked_context(ssl_context), reuse_port)
        return self

    def stop(self, grace: float = 10) -> None:
        """Stop: calls in flight are finished, new ones refused; then everything is released.

        It may be called at any time, from anywhere, more than once.  In a rule it returns at
        once, and the service stops after the reply.

        Args:
            grace: seconds, default 10, until what still runs is cut off.
        """
        listener = self._serving()
        if listener is None:
            self._close_loop()
            return
        listener.stop_by = min(listener.stop_by or math.inf, time.monotonic() + grace)
        threads = [connection.thread for connection in list(listener.connections)]
        if threading.current_thread() in threads + [self._loop]:
            return
        # Asleep and awake, not in join() or wait(): a signal may come in the middle of those, be
        # it this call's own, and they do not survive it (in Python 3.11 join() forgets the thread).
        # Or this is a handler, in the middle of start(): what that starts then ends at once.
        while listener.thread.ident and not listener.is_over:
            time.sleep(0.002)

    def run(
        self,
        port: int | None = None,
        host: str | None = None,
        debug: bool | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        reuse_port: bool = False,
    ) -> None:
        """Serve as `start` does until Ctrl-C or SIGTERM, then `stop`; a second one ends at once."""
        import signal

        before: Any = None
        told: list[int] = []

        def end(number: int, _: Any) -> None:
            if told:
                raise KeyboardInterrupt
            told.append(number)  # and no exception: where it is raised, it may be lost

        if _in_main_thread():
            before = signal.signal(signal.SIGTERM, end)
        try:
            with self.start(port, host, debug, ssl_context=ssl_context, reuse_port=reuse_port):
                listener = self._listener
                assert listener
                bound = _netloc(listener.server_name, listener.server_port)
                where = f'{bound}, here {listener.url()}'  # self.address ends with the service
                print(f'{self.name}: listening on {where}; Ctrl-C stops it', flush=True)
                while not (told or listener.is_over):
                    time.sleep(0.1)
        except KeyboardInterrupt:  # maybe the second, or it came while the service started
            self.stop(grace=0)
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def __enter__(self) -> Microservice:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()


def _loopback(host: str) -> str:
    """Where to connect to reach *host*: an unspecified address is none everywhere."""
    return {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host)


def _is_loopback(host: str) -> bool:
    names = ('localhost', 'localhost.', '::1', '0:0:0:0:0:0:0:1')
    return host in names or host.startswith(('127.', '::ffff:127.'))


def _checked_number(name: str, value: Any, kind: Any = int, most: float = 1 << 32) -> Any:
    if isinstance(value, (int, kind)) and 0 < value <= most:
        return value
    raise ValueError(f'{name} is a number ({kind.__name__}) above 0 to {most:.0f}, not {value!r}')


def _checked_seconds(name: str, value: Any) -> Any:
    return _checked_number(name, value, float, threading.TIMEOUT_MAX)  # on Windows 49 days


def _checked_context(ssl_context: Any) -> Any:
    if ssl_context is None or hasattr(ssl_context, 'wrap_socket'):
        return ssl_context
    raise TypeError(f'ssl_context is an ssl.SSLContext, not {ssl_context!r}')


def _netloc(host: str, port: int) -> str:
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


# ---------------------------------------------------------------------------------------- Friend

_Setting = collections.namedtuple('_Setting', 'method token timeout')
_NO_SETTING = _Setting('POST', None, None)

# What a call needs of the system is one send and one recv.  Each further call that gives up the
# GIL makes the threads of a process queue for it once more: a third of what 16 of them can do.
# So where Linux can time a blocking socket itself, it does.
_HAS_KERNEL_TIME = sys.platform == 'linux' and struct.calcsize('l') == 8
_NOT_OF_SEND = (None, errno.ECONNREFUSED)  # what is raised by hand, or by a connect
_TIMEOUTS = (socket.timeout, TimeoutError, BlockingIOError)  # Python's, and the kernel's
# One for each fork that led to this process: quicker to ask than its id.  Windows has no forks.
_forks: list[None] = []
getattr(os, 'register_at_fork', dict)(after_in_child=lambda: _forks.append(None))


class _Link(_Stream):
    """A kept-alive connection to a service."""

    first_line = _STATUS_LINE
    parse = staticmethod(_parse_reply)
    max_head = 64 << 10

    def __init__(self, sock: socket.socket, max_body: int) -> None:
        self.sock = sock
        self.max_body = max_body
        weakref.finalize(self, sock.close)  # not __del__: a collector may take the socket first
        self.forks = len(_forks)  # a child that inherits it would get others' replies
        self.retire_at = self.is_kept_until = self.limit_holds_until = 0.0
        self.limit = -1.0  # the socket's timeout, as last set
        self.unsent: OSError | None = None  # why the call did not leave whole: nobody can run it
        self.thread = 0  # the last that used it
        # Neither TLS nor what gevent makes of a socket.
        self.is_plain = _HAS_KERNEL_TIME and isinstance(sock.recv, types.BuiltinMethodType)
        self.held: Callable[[], int] = getattr(sock, 'pending', int)  # bytes that TLS has read

    def is_usable(self, now: float) -> bool:
        """Whether the peer keeps it open and has said nothing unasked, as far as is known here."""
        if self.forks != len(_forks) or now > self.retire_at or self.sock.fileno() < 0:
            return False
        if now < self.is_kept_until:
            return True
        if not hasattr(select, 'poll'):  # Windows
            return not select.select([self.sock], (), (), 0)[0]
        poll = select.poll()  # select.select fails on descriptors over 1,023
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def _check_time(self, now: float) -> None:
        """Let the socket wait for what is left; to tell it is a system call, so only if need be."""
        left = self.deadline - now
        self.limit_holds_until = now + 0.05
        if left <= self.limit <= left + 0.05 and threading.get_ident() == self.thread:
            return
        if left <= 0:
            raise socket.timeout('timed out')
        self.thread = threading.get_ident()
        # A signal starts the kernel's time anew, so not in the thread that gets the signals.
        in_kernel = self.is_plain and not _in_main_thread()
        self.limit = limit = left + 0.01  # calls differ a little in what is left when they ask
        self.sock.settimeout(None if in_kernel else limit)
        if in_kernel:
            seconds = struct.pack('ll', int(limit), int(limit % 1 * 1e6))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    def progress(self, count: int = 0) -> None:
        now = time.monotonic()
        if now > self.limit_holds_until:
            self._check_time(now)

    def exchange(self, message: bytes, now: float, deadline: float) -> tuple[_Reply, bytes]:
        """Send a request and give its reply; MicroconnectError tells what failed."""
        self.deadline = deadline
        self.unsent = None
        try:
            self._check_time(now)
            sent = self.sock.send(message)
            while sent < len(message):
                self._check_time(time.monotonic())
                sent += self.sock.send(memoryview(message)[sent:])
        except OSError as error:
            # What a signal's handler raises is mostly another, and may come after all was sent.
            is_own = isinstance(error, ConnectionError) and error.errno not in _NOT_OF_SEND
            if not is_own and time.monotonic() < deadline - 0.01:
                raise _failure(error, None) from None
            # A service that refuses what it has not read answers, and closes: look for its reply.
            self.unsent = error
            self.deadline, self.limit_holds_until = min(deadline, time.monotonic() + 1), 0.0
        try:
            self.progress()
            self.buffer = self.sock.recv(_FIRST_READ)
            if not self.buffer:
                raise OSError('the connection ended before a reply')
            reply = self.head()
            while reply.status < 200:  # interim: the final one follows, or the deadline comes
                reply = self.head()
            body = self.body(reply.length, self.max_body) if reply.length else b''
        except (OSError, MicroconnectError) as error:
            raise _failure(error, self.unsent) from None
        now = time.monotonic()
        # What follows the reply was not asked for, and is no reply to the next call.
        is_kept = reply.keep_alive and not self.buffer and not self.held()
        self.retire_at = now + reply.keep_alive if is_kept else 0.0
        # Such a service says 408 before it closes, which is no reply to the next call.  So a link
        # in steady use is not asked each time; one that has idled is, for a service may crash.
        self.is_kept_until = now + 0.001 if reply.is_ours and self.is_plain else 0.0
        return reply, body


class _Place:
    """One address of a service, with its idle connections, and when it last failed."""

    def __init__(self, address: str, ssl_context: ssl.SSLContext | None, max_body: int) -> None:
        self.address = address
        self.max_body = max_body
        self.scheme, self.host, self.port, base = _parse_address(address)
        if ssl_context is not None and self.scheme == 'http':
            raise ValueError(f'{address!r} is not encrypted: write https:// or give no ssl_context')
        if ssl_context is None and self.scheme == 'https':
            import ssl

            ssl_context = ssl.create_default_context()
        self.ssl_context = _checked_context(ssl_context)
        self.netloc = _netloc(self.host, self.port)
        self.proxy = _proxy_for(self.scheme, self.host, self.netloc)
        fields = (('Host', self.netloc), ('User-Agent', f'microconnect/{__version__}'))
        if self.proxy and self.scheme == 'http':
            base, fields = f'http://{self.netloc}{base}', fields + self.proxy.headers
        head = functools.partial(_request_head, base, fields)
        self.head = functools.lru_cache(maxsize=256)(head)
        self.links: collections.deque[_Link] = collections.deque()
        self.pause = self.rests_until = 0.0

    def call(
        self, method: str, rule: str, body: bytes, deadline: float, connect_by: float
    ) -> tuple[_Reply, bytes]:
        """Make a call; MicroconnectError tells what failed."""
        head = self.head(method, rule)
        message = b'%bContent-Length: %d\r\n\r\n%b' % (head, len(body), body)
        while True:
            try:
                link, is_fresh = self.links.pop(), False
            except IndexError:
                link, is_fresh = self._connect(connect_by), True
            now = time.monotonic()
            if not (is_fresh or link.is_usable(now)):
                link.sock.close()
                continue
            try:
                reply, data = link.exchange(message, now, deadline)
            except BaseException as error:
                link.sock.close()
                # Not error.sent: what a signal's handler raises may be of another call.
                if link.unsent and not is_fresh and isinstance(error, ConnectionLost):
                    continue  # it was closed while idle
                raise
            if link.retire_at:
                self.links.append(link)
                if len(self.links) > 1:
                    self._prune()
            else:
                link.sock.close()
            # A 408 that closes a kept connection: it was idle, and the call was not read.
            if is_fresh or reply.keep_alive or reply.status != 408:
                return reply, data

    def _prune(self) -> None:
        """Close the link that has been idle for longest, if it is past its time."""
        with contextlib.suppress(IndexError):  # another thread took it meanwhile
            if self.links[0].retire_at < time.monotonic():
                self.links.popleft().sock.close()

    def _connect(self, deadline: float) -> _Link:
        link: _Link | None = None
        try:
            link = _Link(self._dial(deadline), self.max_body)
            if self.scheme == 'https':
                if self.proxy:
                    self._tunnel(link, self.proxy, deadline)
                link.sock.settimeout(max(deadline - time.monotonic(), 0.001))
                sock = self.ssl_context.wrap_socket(link.sock, server_hostname=self.host)
                link = _Link(sock, self.max_body)
            return link
        except (OSError, UnicodeError, MicroconnectError) as error:
            if link:
                link.sock.close()
            if getattr(error, 'rule', None):  # a call of a signal's handler
                raise
            why = getattr(error, 'strerror', None) or error
            why = 'no answer in time' if isinstance(error, _TIMEOUTS) else why
            is_tls = getattr(error, 'library', None) == 'SSL'
            ask = 'does it speak TLS, with a certificate to trust' if is_tls else 'is it running'
            where = f'the proxy {_netloc(*self.proxy[:2])}' if self.proxy else self.netloc
            raise Unreachable(f'cannot connect to {where}: {why}; {ask}?') from None

    def _dial(self, deadline: float) -> socket.socket:
        host, port = self.proxy[:2] if self.proxy else (_loopback(self.host), self.port)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        failure = OSError(f'{host} has no address')
        for tried, (*_, (address, *_)) in enumerate(found):
            # By itself, create_connection would give each address of a name the whole time.
            left = (deadline - time.monotonic()) / (len(found) - tried)
            try:
                sock = socket.create_connection((str(address), port), max(left, 0.001))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            except OSError as error:
                failure = error
        raise failure

    def _tunnel(self, link: _Link, proxy: _Proxy, deadline: float) -> None:
        head = _head(f'CONNECT {self.netloc} HTTP/1.1', ('Host', self.netloc), *proxy.headers)
        link.deadline = deadline
        link._check_time(time.monotonic())
        link.sock.sendall(head + b'\r\n')
        status = link.head().status
        if status != 200:
            raise OSError(f'the proxy answered {status}')


def _failure(error: Exception, unsent: OSError | None) -> MicroconnectError:
    """What a call ended by; *unsent* is why it did not leave whole, if it did not."""
    if isinstance(error, MicroconnectError) and error.rule:  # a call of a signal's handler
        return error
    if unsent:
        lost = CallTimeout if isinstance(unsent, _TIMEOUTS) else ConnectionLost
        return lost(f'the call could not be sent: {unsent}', sent=False)
    if isinstance(error, MicroconnectError):
        kind = TooLarge if error.status == 413 else BadReply
        return kind(f'no reply, but {error}; the call may have run', sent=True)
    if isinstance(error, _TIMEOUTS):
        return CallTimeout('no full reply within its timeout=; the call may have run')
    return ConnectionLost(f'{error}; the call may have run')


class _InProcess:
    """A service in this process as a place to call: encoded, checked and decoded as ever."""

    def __init__(self, micro: Microservice) -> None:
        micro._warn()
        self.micro = micro
        self.address = f'{micro.name} (in process)'
        self.links: collections.deque[_Link] = collections.deque()  # always empty
        self.pause = self.rests_until = 0.0

    def call(
        self, method: str, rule: str, body: bytes, deadline: float, connect_by: float
    ) -> tuple[_Reply, bytes]:
        headers = {'content-type': 'application/json'}
        status, _, reply = self.micro._answer(method, rule, headers, body)
        return _Reply(status, len(reply), 0.0, True, ''), reply


def _place_of(address: Any, ssl_context: Any, max_body: int) -> Any:
    is_here = isinstance(address, Microservice)
    return _InProcess(address) if is_here else _Place(address, ssl_context, max_body)


_Proxy = collections.namedtuple('_Proxy', 'host port headers')


def _parse_address(address: str) -> tuple[str, str, int, str]:
    """Split an address into scheme, host, port and path prefix."""
    if not isinstance(address, str):
        raise TypeError(f"an address is a string such as 'http://host:5000', not {address!r}")
    if '@' in address:  # which is not shown
        raise ValueError('an address holds no user and password: rules are guarded by token=...')
    wrong = f"address {address!r} is not like 'http://host:5000': "
    try:
        parts = urllib.parse.urlsplit(address if '://' in address else f'http://{address}')
        host, port = parts.hostname, parts.port
        if host and not host.isascii():
            host = host.encode('idna').decode()
    except ValueError as error:
        raise ValueError(f'{wrong}{error}') from None
    if parts.scheme not in ('http', 'https'):
        raise ValueError(f'{wrong}http and https are spoken, not {parts.scheme}')
    # A number is no host's name, and http is the scheme, mistyped.
    is_odd = port == 0 or re.search(r'[\s\\%]|^(?:https?|[0-9]+)$', host or '')
    if not host or is_odd or parts.query or parts.fragment:
        raise ValueError(f'{wrong}give a host, a port and, if need be, a path')
    base = urllib.parse.quote(parts.path.rstrip('/'), safe="/~!$&'()*+,;=:@%")
    return parts.scheme, host, port or (443 if parts.scheme == 'https' else 80), base


def _proxy_for(scheme: str, host: str, netloc: str) -> _Proxy | None:
    """The proxy that the environment names for *host*; this machine needs none."""
    bypass = urllib.request.proxy_bypass
    is_direct = _is_loopback(_loopback(host)) or bypass(host) or bypass(netloc)
    url = None if is_direct else urllib.request.getproxies().get(scheme)
    if not url:
        return None
    try:
        parts = urllib.parse.urlsplit(url if '://' in url else f'http://{url}')
        port = parts.port or 80
    except ValueError:
        parts = urllib.parse.urlsplit('')
    if parts.scheme != 'http' or not parts.hostname:  # not shown: it may hold a password
        raise ValueError(f'the {scheme} proxy of the environment is no http:// URL')
    headers: Headers = ()
    if parts.username is not None:
        user = urllib.parse.unquote(f'{parts.username}:{parts.password or ""}')
        headers = (('Proxy-Authorization', f'Basic {base64.b64encode(user.encode()).decode()}'),)
    return _Proxy(parts.hostname, port, headers)


class Friend(_Guarded):
    """A service that this process calls.  Threads may share one.

    You call: `send`, or `asend` in async code; `setRule`; `ping` and `wait`; `close`.

    Args:
        name (str): what you call it.
        address: 'http://host:port', 'host:port' or 'https://...', with a path prefix if need be;
            a list of them, over which calls are spread; or a Microservice of this process.
        token (dict or str): rule -> token, or one for every rule.
        secretKey: signing comes later: anything but None raises NotImplementedError.
        timeout (float): seconds for a whole call, connecting included, default 60.
        ssl_context: for https, and only that; default: ssl.create_default_context().
        max_body (int): bytes of a request's or reply's body, default 64 MiB.

    Raises:
        TypeError, ValueError: for what cannot be an address, a token or a timeout.
    """

    def __init__(
        self,
        name: str,
        address: str | Microservice | Sequence[str | Microservice],
        token: Tokens = None,
        secretKey: str | None = None,
        *,
        timeout: float = 60,
        ssl_context: ssl.SSLContext | None = None,
        max_body: int = 64 << 20,
    ) -> None:
        _refuse_secret_key(secretKey)
        self.name = name
        self.token = token
        self.timeout = _checked_seconds('timeout', timeout)
        self.max_body = _checked_number('max_body', max_body)
        several = address if isinstance(address, (list, tuple)) else (address,)
        if not several:
            raise ValueError('address is an empty list: give at least one')
        self._places = [_place_of(one, ssl_context, max_body) for one in several]
        self._where = ', '.join(place.address for place in self._places)
        self._turn = itertools.count()
        self._settings: dict[str, _Setting] = {}

    def __repr__(self) -> str:
        return f'<Friend {self.name!r} at {self._where}>'

    def __reduce__(self) -> Any:
        raise TypeError('a Friend holds connections and is not copied: make one in each process')

    def setRule(
        self,
        rule: str,
        method: str | None = None,
        token: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Set how *rule* is called from now on.

        Args:
            rule: the rule.
            method: the HTTP method, default POST.
            token: its token; None takes the friend's.
            timeout: seconds for a whole call; None takes the friend's.
        """
        path = _path_of(rule)
        if method is not None and method not in _METHODS:
            raise ValueError(f'method is one of {_METHODS}; a token is given by token=...')
        _checked_token(rule, token)
        seconds = None if timeout is None else _checked_seconds('timeout', timeout)
        self._settings[path] = _Setting(method or 'POST', token, seconds)

    # The two underscores keep `self` and `rule` free for the remote function, on Python 3.7 too.
    def send(__self, __rule: str, *args: Any, **kwargs: Any) -> Any:
        """Call the function under *rule* and give what it returns.

        Every further argument is the remote function's, whatever its name.

        Returns:
            The value; a tuple where the function returned a tuple.

        Raises:
            MicroconnectError: for each way a call can fail; see the table at the top.
        """
        if _would_block_rules():
            raise RuntimeError('in an async rule, `await asend(...)`: `send` would stop them all')
        rule = __rule if isinstance(__rule, str) and __rule[:1] == '/' else _path_of(__rule)
        setting = __self._settings.get(rule, _NO_SETTING)
        token = setting.token or __self._token.of(rule)
        try:
            body = b'{"args":%b,"kwargs":%b,"token":%b}' % (
                _encode(args, 'args'),
                _encode(kwargs, 'kwargs') if kwargs else b'{}',
                _encode(token, 'token') if token else b'null',
            )
        except (TypeError, ValueError) as error:
            raise BadCall(str(error)).at(rule, __self._where) from None
        if len(body) > __self.max_body:
            size = f'the call of {len(body)} bytes is over max_body={__self.max_body}'
            raise TooLarge(size).at(rule, __self._where)
        return __self._call(rule, setting, body)

    async def asend(__self, __rule: str, *args: Any, **kwargs: Any) -> Any:
        """Call as `send` does, without blocking the event loop.

        Each call in flight holds a thread.  Cancelling it leaves the call itself to end alone.
        """
        import asyncio
        import concurrent.futures

        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()

        def call() -> None:
            try:
                future.set_result(__self.send(__rule, *args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=call, daemon=True).start()
        return await asyncio.wrap_future(future)

    def ping(self, timeout: float = 5) -> bool:
        """Whether HTTP is answered at any of the addresses, within *timeout* seconds."""
        return not self._why_silent(time.monotonic() + _checked_seconds('timeout', timeout))

    def wait(self, timeout: float = 60) -> None:
        """Wait until `ping`; CallTimeout, with the reason, if not within *timeout* seconds."""
        deadline = time.monotonic() + _checked_seconds('timeout', timeout)
        why = self._why_silent(deadline)
        while why:
            left = deadline - time.monotonic()
            if left <= 0:
                told = f'{self._where} did not answer within {timeout} s: {why}'
                raise CallTimeout(told, sent=False, rule='/', address=self._where)
            time.sleep(min(left, 0.1))
            why = self._why_silent(deadline)

    def _why_silent(self, deadline: float) -> str:
        """Why none of the addresses answers; an empty string where one does."""
        told: list[str] = []
        for place in self._places:
            now = time.monotonic()
            by = now + (deadline - now) / (len(self._places) - len(told))
            try:
                status = place.call('GET', '/', b'', by, by)[0].status
                if status < 500 and status != 408:
                    return ''
                told.append(f'it answered {status}')
            except MicroconnectError as error:
                told.append(str(error))
        return '; '.join(told)

    def close(self) -> None:
        """Close the idle connections; a later call opens new ones."""
        for place in self._places:
            with contextlib.suppress(IndexError):  # none is left: other threads may take some, too
                while True:
                    place.links.pop().sock.close()

    def __enter__(self) -> Friend:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _call(self, rule: str, setting: _Setting, body: bytes) -> Any:
        """Call at one address after the other, until the call may have run at one."""
        now = time.monotonic()
        deadline = now + (setting.timeout or self.timeout)
        places = self._places if len(self._places) == 1 else self._in_turn(now)
        failures: list[MicroconnectError] = []
        for place in places:
            # An address that swallows packets must not use up the time of the others.
            connect_by = now + (deadline - now) / (len(places) - len(failures))
            try:
                reply, data = place.call(setting.method, rule, body, deadline, connect_by)
                if place.pause and reply.status not in (408, 503):
                    place.pause = place.rests_until = 0.0
                return _returned(reply, data)
            except MicroconnectError as error:
                if error.rule:  # a call of a signal's handler
                    raise
                failures.append(error.at(rule, place.address))
                if error.sent or not isinstance(error, ConnectionError) or len(places) == 1:
                    raise
            now = time.monotonic()
            place.pause = min(max(place.pause * 2, 0.1), 5.0)  # longer each time that it fails
            place.rests_until = now + place.pause
            _log('info', '%s rests for %.1f s: %s', place.address, place.pause, failures[-1])
        kind = Busy if any(isinstance(error, Busy) for error in failures) else Unreachable
        raise kind('no address took it: ' + '; '.join(map(str, failures))).at(rule, self._where)

    def _in_turn(self, now: float) -> list[Any]:
        """The places in the order to try them: those that failed lately come last."""
        places = sorted(self._places, key=lambda place: place.rests_until > now)
        awake = sum(place.rests_until <= now for place in places) or len(places)
        first = next(self._turn) % awake
        return places[first:awake] + places[:first] + places[awake:]


def _returned(reply: _Reply, body: bytes) -> Any:
    """The value that a reply holds; MicroconnectError where it holds none."""
    if reply.status != 200:
        raise _error_from_reply(reply.status, body)
    if reply.fault:
        raise BadReply(reply.fault)
    try:
        values = _decode(body)
    except ValueError as error:
        raise BadReply(f'the reply is not JSON: {error}') from None
    if type(values) is not list:
        raise BadReply('the reply is not an array of the returned values')
    return values[0] if len(values) == 1 else tuple(values)


# --------------------------------------------------------------------------------------- licence
# BSD 3-Clause License
#
# Copyright (c) 2026, the microconnect authors
#
# Redistribution and use in source and binary forms, with or without modification, are permitted
# provided that the following conditions are met:
#
# 1. Redistributions of source code must retain the above copyright notice, this list of
#    conditions and the following disclaimer.
#
# 2. Redistributions in binary form must reproduce the above copyright notice, this list of
#    conditions and the following disclaimer in the documentation and/or other materials provided
#    with the distribution.
#
# 3. Neither the name of the copyright holder nor the names of its contributors may be used to
#    endorse or promote products derived from this software without specific prior written
#    permission.
#
# THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR
# IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND
# FITNESS FOR A PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR
# CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL
# DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE,
# DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
# WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY
# WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
