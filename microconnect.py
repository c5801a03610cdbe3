# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) the microconnect authors. The full licence text is at the end of this file.
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

Any other status is a failure, described by RFC 9457 problem details (application/problem+json):
`title`, `status`, `detail` and, where the function raised, `exception`: {`type` (the name of its
class), `base` (the nearest builtin class), `message`, `traceback` (in debug only)}.
`Friend.send` raises a failure, and never returns it:

    what happened                                 status         raised           did it run?
    refused, DNS, TLS: never sent                                Unreachable      no
    connection lost after sending                                ConnectionLost   perhaps
    no full reply in time                                        CallTimeout      perhaps
    the reply cannot be read, or is not signed                   BadReply         perhaps
    malformed request, not application/json       400, 415 ...   BadCall          no
    arguments do not fit the signature            422            BadArguments     no
    wrong token, not signed; a foreign web page   401, 403       Forbidden        no
    no such rule, wrong method                    404, 405       UnknownRule      no
    request too large / reply too large           413, 431       TooLarge         no / yes
    too busy, stopping, or too slow to ask        503, 408       Busy             no
    the function raised                           500            RemoteError      yes

With a `secretKey` calls and replies are signed: Content-Digest (RFC 9530), Signature-Input and
Signature (RFC 9421, hmac-sha256); see the section "signatures".

Limits.  A token is not encryption: give an `ssl_context` where the network is not yours.  A tuple
arrives as several values, so a tuple of one arrives as its element.  A class arrives as a dict of
its public attributes.  The keys of a dict arrive as strings.  NaN and the infinities have no JSON
form.  There is no discovery, no queue and no broker.  A call in progress holds a thread.
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
import gc
import hashlib
import hmac
import http
import http.client
import http.server
import itertools
import json
import math
import os
import re
import select
import selectors
import socket
import socketserver
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
    Token = str | Sequence[str] | bool | None  # False: none is wanted
    Tokens = Token | Mapping[str, Token]
    SecretKey = str | bytes | Sequence[str | bytes] | bool | None  # False: calls are not signed

__version__ = '0.1.0'
__all__ = [
    'BadArguments', 'BadCall', 'BadReply', 'Busy', 'CallTimeout', 'ConnectionLost', 'Forbidden',
    'Friend', 'MicroconnectError', 'Microservice', 'RemoteError', 'TooLarge', 'UnknownRule',
    'Unreachable',
]  # fmt: skip


def _printable(text: str) -> str:
    """Without what a terminal would obey: the text comes from somebody else."""
    return ''.join(one if one.isprintable() else ' ' for one in text)


_logger: Any = None


def _find_logger() -> Any:
    """The logger of this module; None if nobody has imported logging yet."""
    global _logger
    if 'logging' in sys.modules:
        import logging

        _logger = logging.getLogger('microconnect')
    return _logger


def _log(level: str, message: str, *args: Any, **more: Any) -> None:
    with contextlib.suppress(Exception):  # a failing handler must not cost the caller the answer
        import logging  # imported late: it alone would add half of the import time

        getattr(logging.getLogger('microconnect'), level)(message, *args, **more)


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def _say(text: str, stream: Any) -> None:
    """Print a line, if there is a stream that takes it."""
    with contextlib.suppress(Exception):
        if stream is not None:  # print would take stdout
            print(f'{text}\n', end='', file=stream, flush=True)  # whole, among other threads' lines


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

    def __init__(self, message: str = '', /, **facts: Any) -> None:
        # Not super(): in `BadReply(MicroconnectError, ValueError)` the next class may take
        # other arguments.
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
    """The token or the signature is missing or wrong (401), or a foreign page asked (403)."""

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
    """The function raised.  The error is also one of the nearest builtin class, such as KeyError.

    Attributes:
        type (str): the name of the exception's class.
        message (str): what the exception said.
        traceback (str or None): where it was raised; sent by a service in debug only.
    """

    status = 500
    sent = True
    type = 'Exception'
    message = ''
    traceback: str | None = None

    def __reduce__(self) -> Any:
        return _remote_error, (str(self), self.__dict__)


class _RemoteTraceback(Exception):
    """The cause of a RemoteError: Python prints it, and so the traceback that a service sent."""


_ERRORS: dict[int, type[MicroconnectError]] = {
    **dict.fromkeys((400, 411, 414, 415, 417, 505), BadCall),
    **dict.fromkeys((401, 403), Forbidden),
    **dict.fromkeys((404, 405, 501), UnknownRule),
    **dict.fromkeys((408, 503), Busy),
    **dict.fromkeys((413, 431), TooLarge),
    422: BadArguments,
}

# -------------------------------------------------------------------------------------- settings
# What both sides check and hold: numbers, seconds, rules, addresses and tokens.

_UNSET = 'is a variable of the environment not set?'
_METHODS = ('GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS')
_ORIGIN = r'([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([1-9][0-9]{0,4}))?'


def _checked_number(name: str, value: Any, kind: Any = int, most: float = 1 << 32) -> Any:
    if isinstance(value, (int, kind)) and 0 < value <= most:
        return value
    raise ValueError(f'{name} is a number ({kind.__name__}) above 0 to {most:.0f}, not {value!r}')


def _checked_seconds(name: str, value: Any) -> Any:
    return _checked_number(name, value, float, threading.TIMEOUT_MAX)  # on Windows 49 days


def _checked_context(ssl_context: Any, side: str) -> Any:
    """*side* is CLIENT or SERVER: what is made for one cannot be used by the other."""
    given = getattr(getattr(ssl_context, 'protocol', None), 'name', repr(ssl_context))
    is_other = re.fullmatch('PROTOCOL_TLS_(?!' + side + ').*', given)
    if ssl_context is None or (hasattr(ssl_context, 'wrap_socket') and not is_other):
        return ssl_context
    raise TypeError(f'ssl_context is an ssl.SSLContext(ssl.PROTOCOL_TLS_{side}), not {given}')


def _checked_token(rule: str, token: Any) -> Any:
    """Give the token, or a tuple of several: a friend sends the first, a service takes any."""
    if token is None or token is False:
        return token
    several = tuple(token) if isinstance(token, (list, tuple)) else (token,)
    if not several or not all(isinstance(one, str) and one for one in several):
        raise TypeError(f'the token of {rule} has to be a non-empty string, or a list of them')
    return token if isinstance(token, str) else several


def _checked_origins(origins: Any) -> frozenset[str]:
    """Give web origins (RFC 6454) as browsers write them: lower case, no default port."""
    if isinstance(origins, str):
        raise TypeError(f'origins is a list: origins=({origins!r},)')
    found = set()
    for origin in origins:
        is_text = isinstance(origin, str) and origin.isascii()
        parts = re.fullmatch(_ORIGIN, origin.lower()) if is_text else None
        if not parts:
            like = "'https://app.example' or 'http://localhost:8000'"
            raise ValueError(f'an origin is a scheme and a host, such as {like}, not {origin!r}')
        scheme, host, port = parts.groups()
        is_default = port == {'http': '80', 'https': '443'}.get(scheme)
        found.add(f'{scheme}://{host}' + ('' if is_default or not port else f':{port}'))
    return frozenset(found)


def _path_of(rule: Any) -> str:
    if not isinstance(rule, str) or not rule:
        raise TypeError(f"a rule is a string such as '/helloworld', not {rule!r}")
    return rule if rule.startswith('/') else '/' + rule


def _netloc(host: str, port: int) -> str:
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def _loopback(host: str) -> str:
    """Where to connect to reach *host*: not every system connects to an unspecified address."""
    return {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host)


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        address = ipaddress.ip_address(host.partition('%')[0])
    except ValueError:
        return host.lower() in ('localhost', 'localhost.')
    return (getattr(address, 'ipv4_mapped', None) or address).is_loopback


def _parse_address(address: str) -> tuple[str, str, int, str]:
    """Split an address into scheme, host, port and path prefix."""
    if not isinstance(address, str):
        raise TypeError(f"an address is a string such as 'http://host:5000', not {address!r}")
    if '@' in address:  # do not show it: it may hold a password
        raise ValueError('an address holds no user and password: rules are guarded by token=...')
    wrong = f"address {address!r} is not like 'http://host:5000': "
    if re.search(r'[\0-\x1f\x7f\\]', address):  # urlsplit drops some of them
        raise ValueError(f'{wrong}it holds a backslash or a control character')
    try:
        parts = urllib.parse.urlsplit(address if '://' in address else f'http://{address}')
        host, port = parts.hostname, parts.port
        if host and not host.isascii():
            host = host.encode('idna').decode()
    except ValueError as error:
        raise ValueError(f'{wrong}{error}') from None
    if parts.scheme not in ('http', 'https'):
        raise ValueError(f'{wrong}http and https are spoken, not {parts.scheme}')
    # A host named like a number is a port without its host; one named http is a mistyped scheme.
    # Some versions of Python take the part in brackets for the whole host.
    is_netloc = re.fullmatch(r'(?:\[[^][\s]*:[^][\s]*\]|[^][:%\s]+)(?::[0-9]*)?', parts.netloc)
    is_odd = port == 0 or re.fullmatch('https?|[0-9]+', host or '')
    if not (host and is_netloc) or is_odd or parts.query or parts.fragment:
        raise ValueError(f'{wrong}give a host, a port and, if need be, a path')
    host = host.replace('%25', '%', 1)  # before the scope of a link-local address (RFC 6874)
    base = urllib.parse.quote(parts.path.rstrip('/'), safe="/~!$&'()*+,;=:@%")
    return parts.scheme, host, port or (443 if parts.scheme == 'https' else 80), base


class _Tokens(abc.MutableMapping):  # type: ignore[type-arg]
    """Rule -> token, for both sides; made of such a dict, or of what guards every rule.

    It never shows a token, and takes none that would guard nothing.  `for_all` is None where a
    token was expected and is missing, and False where none is wanted.
    """

    holds_tokens = True  # see _json_form

    def __init__(self, token: Tokens) -> None:
        if not isinstance(token, (type(None), bool, str, list, tuple, abc.Mapping)):
            forms = "a string for every rule, a list of them, or a dict {'/rule': 'token'}"
            raise TypeError(f'token is {forms}, not of type {type(token).__name__}')
        self.for_all: Token = getattr(token, 'for_all', False)
        self.by_rule: dict[str, Token] = {}
        if isinstance(token, abc.Mapping):
            self.update(token)
        else:
            self.for_all = _checked_token('every rule', token)

    def __getitem__(self, rule: str) -> Token:
        return self.by_rule[_path_of(rule)]

    def __setitem__(self, rule: str, token: Token) -> None:
        self.by_rule[_path_of(rule)] = _checked_token(rule, token or '')

    def __delitem__(self, rule: str) -> None:
        del self.by_rule[_path_of(rule)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_rule)

    def __len__(self) -> int:
        return len(self.by_rule)


def _set_tokens(owner: Any, token: Tokens) -> None:
    owner._tokens = _Tokens(token)


_token_property = property(lambda owner: owner._tokens, _set_tokens, doc='The tokens by rule.')
_key_property = property(doc='Given when it is made, and never shown.')  # setting it is an error


_locks: dict[tuple[int, str], Any] = {}


def _lock_of_process(purpose: str) -> Any:
    """A lock of this process: a forked child would inherit a common one locked."""
    # Reentrant: a signal's handler may stop a service while the code that it interrupts starts one.
    return _locks.setdefault((os.getpid(), purpose), threading.RLock())


# ---------------------------------------------------------------------------------------- values
# JSON, strictly.  The encoder calls `_json_form` for what it does not know, so plain data stays at
# the speed of C.  Only where encoding fails does `_locate` walk the value, to name the place.


_NATIVE = (dict, list, tuple, str, int, float, bool, type(None))  # what json encodes by itself
_LISTS = (
    abc.Set, abc.Iterator, abc.ValuesView, collections.deque, collections.UserList, range
)  # fmt: skip
_AS_TEXT = ('decimal', 'fractions', 'uuid', 'ipaddress')  # modules whose values travel as strings
_MOST_TEXT = 10_000  # characters of an error's text
_MOST_ITEMS = 1 << 23  # bytes of JSON from an iterator: as much as the default max_body


def _json_form(value: Any) -> Any:
    """Give what *value*, which json does not know, travels as.

    Raises TypeError where there is no faithful form.
    """
    # Only an object that lies about its class gets here as a str or int.  Friends and services
    # hold tokens: never encode them.
    is_odd = isinstance(value, (str, int, float, list, tuple, type(None)))
    if is_odd or getattr(type(value), 'holds_tokens', False):
        raise _no_json_form(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, abc.Mapping):
        return dict(value)
    if isinstance(value, collections.UserString):
        return value.data
    if isinstance(value, _LISTS) and not hasattr(value, 'fileno'):
        return _items(value)
    if _is_missing(value):
        raise _no_json_form(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    # Do not import their modules: if nobody did, no such value exists.
    if _is_of(value, _AS_TEXT):
        if str(value).endswith('Infinity'):
            raise _no_json_form(value)
        return str(value)
    return _attributes(value)


def _is_missing(value: Any) -> bool:
    """Whether it stands for no value: NaN, NaT and NA are not equal to themselves."""
    if type(value).__name__ in ('NAType', 'NaTType'):
        return True
    is_asked = isinstance(value, (datetime.date, datetime.time, datetime.timedelta))
    try:
        return bool((is_asked or _is_of(value, ('decimal',))) and value != value)
    except ArithmeticError:  # a signaling NaN
        return True


def _is_of(value: Any, packages: tuple[str, ...]) -> bool:
    """Whether its class, or one that it is derived from, is of one of these packages."""
    return any(kind.__module__.partition('.')[0] in packages for kind in type(value).__mro__)


def _items(values: Iterable[Any], limit: int | None = None) -> list[Any]:
    """The items of an iterator, which may be endless: as many as take *limit* bytes of JSON."""
    limit = limit or _MOST_ITEMS
    items, left = [], limit
    for item in values:
        items.append(item)
        left -= 2 + _size_of(item)  # at least a digit and a comma
        if left < 0:
            raise ValueError(f'an iterator gave more than {limit} bytes')
    return items


def _size_of(value: Any, depth: int = 3) -> int:
    """About how many bytes of text *value* holds."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if depth and isinstance(value, (list, tuple, dict)):
        inner = value.values() if isinstance(value, dict) else value
        return sum(1 + _size_of(item, depth - 1) for item in inner)
    return 0


_PACKAGES = (
    '_io', 'io', 'numpy', 'pandas', 'polars', 'pydantic', 'socket', 'sqlalchemy', 'tempfile',
    'torch',
)  # fmt: skip
_FORMS = {  # what marks classes of well-known packages, and the plain form that they offer
    'to_dict': ".to_dict(), of a DataFrame .to_dict('records')",
    'tolist': '.tolist()',
    'model_dump': '.model_dump()',
    '_asdict': '._asdict()',
    '__table__': 'columns as a dict',
    'fileno': '.read()',
    '__code__': 'result',  # of a function
    'cr_await': 'result, with await',
}


def _attributes(value: Any) -> dict[str, Any]:
    """Give the public attributes of an object, callables left out, names sorted."""
    has_attributes = hasattr(value, '__dict__') or hasattr(type(value), '__slots__')
    if callable(value) or isinstance(value, types.ModuleType) or not has_attributes:
        raise _no_json_form(value)
    if hasattr(type(value), '__dataclass_fields__'):
        fields = sys.modules['dataclasses'].fields(value)
        return {f.name: getattr(value, f.name) for f in fields if not f.name.startswith('_')}
    if _is_of(value, _PACKAGES) and any(hasattr(type(value), mark) for mark in _FORMS):
        raise _no_json_form(value)
    items = {name: _attribute(value, name) for name in dir(value) if not name.startswith('_')}
    return {name: item for name, item in items.items() if not callable(item)}


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, len)  # absent though dir() lists it: left out, as callables are
    except Exception as error:  # raised by a property
        raise ValueError(f'its {name} raised {type(error).__name__}: {_text_of(error)}') from error


def _no_json_form(value: Any) -> TypeError:
    name = re.sub(r'\A(builtins|_io)\.', '', f'{type(value).__module__}.{type(value).__name__}')
    form = next((form for mark, form in _FORMS.items() if hasattr(value, mark)), '')
    return TypeError(f'{name} has no JSON form' + (f': send its {form}' if form else ''))


def _bounded(text: str) -> str:
    """*text*, without its middle if that is long: an error may be as large as the arguments."""
    if len(text) <= _MOST_TEXT:
        return text
    half = _MOST_TEXT // 2
    return f'{text[:half]} ... ({len(text) - 2 * half} characters cut) ... {text[-half:]}'


def _text_of(error: BaseException) -> str:
    try:
        return _bounded(str(error))
    except BaseException:
        return f'(its message cannot be read: {type(error).__name__}.__str__ raised)'


def _locate(value: Any, path: str, above: tuple[Any, ...] = ()) -> str:
    """Find what in *value* has no JSON form: `reply[0].items[3]: function has no JSON form`."""
    if any(value is outer for outer in above):
        return f'{path}: holds itself'
    if len(above) > 200:
        return f'{path[:60]}...: nested too deeply'
    try:
        form = value if issubclass(type(value), _NATIVE) else _json_form(value)
        if not isinstance(form, (list, tuple, dict)):
            _encoder.encode(form)
            return ''
    except Exception as error:
        return f'{path}: {_text_of(error)}'
    items: Iterable[Any] = form.items() if isinstance(form, dict) else enumerate(form)
    has_items = not isinstance(form, dict) or isinstance(value, abc.Mapping)  # else attributes
    for key, item in items:
        if not isinstance(key, (str, int, float, type(None))):
            return f'{path}: a key is a {type(key).__name__}, and the keys of JSON are strings'
        step = f'[{key!r}]' if has_items else f'.{key}'
        found = _locate(item, path + step, above + (value,))
        if found:
            return found
    return ''


# `JSONEncoder.encode` makes a C encoder for every call, and `JSONDecoder.decode` looks for white
# space around the value by two regular expressions.  Both are kept out of a call's way by names
# that json does not document: a fifth and a tenth of the speed (see examples/benchmark.py).
_encoder = json.JSONEncoder(allow_nan=False, separators=(',', ':'), default=_json_form)
_iterencode: Any = _encoder.iterencode
_make_encoder = getattr(json.encoder, 'c_make_encoder', None)  # PyPy has none
if _make_encoder:
    _string = json.encoder.encode_basestring_ascii
    _iterencode = _make_encoder(None, _json_form, _string, None, ':', ',', False, False, False)


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
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(_bounded(detail)) from error


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f'{text[:20]} is no finite number')
    return number


_decoder = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)
_scan = _decoder.scan_once  # type: ignore[attr-defined]


_MOST_DEPTH = 200  # of arrays and objects: C code nests 10,000 deep whatever the stack holds
_gc_pauses: list[None] = []  # one for each large body that is being decoded
_LARGE = 1 << 18  # bytes of a body that is decoded alone, and without a look for garbage
_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_ARRAYS = bytes.maketrans(b'{}', b'[]')
_STEPS = bytes.maketrans(b'[]', b'\x01\xff')  # up by one, and down


def _decode(body: bytes) -> Any:
    """Decode JSON strictly; ValueError says what is wrong."""
    if len(body) > _MOST_DEPTH:
        _check_depth(body)
    try:
        text = body.decode()
        if len(body) > _LARGE:
            return _decode_large(text)
        try:
            value, end = _scan(text, 0)
        except StopIteration:
            end = -1
        # The complete decoder takes white space around the value, and words its errors.
        return value if end == len(text) else _decoder.decode(text)
    except RecursionError:  # the caller's stack is nearly full
        raise ValueError('nested too deeply') from None


def _decode_large(text: str) -> Any:
    """Decode by itself what may take 35 times its size: `[[]],` does."""
    with _lock_of_process('decode'):
        # The collector would look at all the new lists again and again: 14 s for 62 MiB, not 2.
        if not gc.isenabled():
            return _decoder.decode(text)
        _gc_pauses.append(None)
        gc.disable()
        try:
            return _decoder.decode(text)
        finally:
            gc.enable()
            _gc_pauses.pop()


def _check_depth(body: bytes) -> None:
    """Refuse nesting that nobody needs, before it uses up the stack."""
    if not (_has_many(body, b'[') or _has_many(body, b'{')):
        return
    # Leave only brackets: no escaped quotes, then no other characters, then no strings.
    if b'\\' in body:
        body = body.replace(b'\\\\', b'').replace(b'\\"', b'')
    body = body.translate(_ARRAYS, _NO_MARKS)
    marks = b''.join(body.replace(b'""', b'').split(b'"')[::2])
    steps = memoryview(marks.replace(b'[]', b'').translate(_STEPS)).cast('b')
    if max(itertools.accumulate(steps), default=0) >= _MOST_DEPTH:  # and the pairs just removed
        raise ValueError(f'nested too deeply: over {_MOST_DEPTH} arrays or objects')


def _has_many(body: bytes, mark: bytes) -> bool:
    """Whether *mark* comes so often that there may be too deep nesting.

    `count` would take longer: for a text of 1 MB an eighth of the call.
    """
    at = -1
    for _ in range(_MOST_DEPTH // 2):
        at = body.find(mark, at + 1)
        if at < 0:
            return False
    return True


# -------------------------------------------------------------------------------------- messages
# HTTP/1.1 framing (RFC 9112) for both sides.  Nothing here knows a socket or the time.  A head is
# parsed by a pure function, and `_Reader` cuts a stream of bytes into heads and bodies.  The
# errors carry the status that a service answers them with.

_CHUNKED = -1  # a length: the body is chunked
_TO_THE_END = -2  # a length: the body ends with the connection
_CUT_SHORT = 'the connection ended in the middle of a message'
_OTHER_PROGRAM = 'is another program on that port?'

# Plain strings: `re` compiles them on first use and caches them, which keeps the import fast.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD = _TOKEN + rb':[\t\x20-\x7e\x80-\xff]*'
_FIELDS = rb'((?:\r\n' + _FIELD + rb')*)'
_REQUEST_LINE = rb'(' + _TOKEN + rb') ([\x21-\x7e]+) HTTP/1\.([0-9])'
_STATUS_LINE = rb'HTTP/1\.([0-9]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?'
_BAD_BYTES = rb'(?<!\r)\n|\r(?!\n|\Z)|[\0-\x08\x0b\x0c\x0e-\x1f]'
_PATH = rb"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
_NAME = rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"
_HOST = rb'(?:\[[0-9A-Fa-f:.]+\]|' + _NAME + rb')(?::[0-9]*)?'
_AUTHORITY = rb'(?:[Hh][Tt][Tt][Pp][Ss]?://(?=[^/?:])' + _HOST + rb')?'
_TARGET = _AUTHORITY + rb'(/' + _PATH + rb')?(?:\?([^#]*))?'
_CHUNK_LINE = rb'([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?'

_RequestHead = collections.namedtuple(
    '_RequestHead',
    'method path headers count length keep_alive expects',
    defaults=(0, 0, False, False),  # of a request that another host read
)
_NO_HEAD = _RequestHead('', '', {})
_ReplyHead = collections.namedtuple('_ReplyHead', 'status length keep_alive fault origin headers')


# A peer repeats its heads, and to parse one costs as much as the rest of a call.
@functools.lru_cache(maxsize=256)
def _parse_request_head(head: bytes) -> _RequestHead:
    """Parse a request's head, without the empty line that ends it."""
    found = re.fullmatch(_REQUEST_LINE + _FIELDS, head)
    if not found:
        raise _malformed(head)
    method, target, minor, lines = found.groups()
    headers = _parse_fields(lines)
    host = headers.get('host', '' if minor == b'0' else None)
    if host is None or not re.fullmatch(_HOST, host.encode('latin-1')):
        raise BadCall('a request needs one valid Host header (RFC 9112, 3.2)')
    parts = re.fullmatch(_TARGET, target)
    if not parts and (method, target) != (b'OPTIONS', b'*'):
        raise BadCall('the request target is not a path (RFC 9112, 3.2)')
    path, query = parts.groups() if parts else (target, None)
    expects = headers.get('expect', '').lower() if minor != b'0' else ''
    if expects not in ('', '100-continue'):
        raise BadCall('the only expectation met is 100-continue', status=417)
    return _RequestHead(
        method.decode(),
        # Keep only the '?' of a query: no rule matches, and a token in it is never logged.
        _utf8(urllib.parse.unquote_to_bytes(path or b'/')) + ('?' if query else ''),
        headers,
        lines.count(b'\r\n'),
        _body_length(headers, minor, 0),
        _keeps_alive(headers, minor),
        bool(expects),
    )


@functools.lru_cache(maxsize=256)
def _parse_reply_head(head: bytes) -> _ReplyHead:
    """Parse a reply's head.

    `keep_alive` is in seconds, 0 where the peer closes.  `fault` says why the body holds no values,
    `origin` who answered.
    """
    found = re.fullmatch(_STATUS_LINE + _FIELDS, head)
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
        # If the peer does not say: 4 s, below the 5 s of Node and uvicorn.
        seconds = 0.9 * int(told.group(1)) if told else 4.0
    kind, coding = headers.get('content-type', ''), headers.get('content-encoding', 'identity')
    fault = '' if _is_json(kind) else f'the reply has Content-Type {kind[:99]!r}: {_OTHER_PROGRAM}'
    if coding != 'identity':
        fault = 'the reply is compressed, though nobody asked for that'
    known = (f'{k.title()}: {headers[k][:200]}' for k in ('server', 'location') if k in headers)
    return _ReplyHead(int(status), length, seconds, fault, ', '.join(known), headers)


def _malformed(head: bytes) -> BadCall:
    """Why *head* cannot be one.  Its text is not repeated: it may hold a secret."""
    # Judge only what precedes the first bad byte, so that it does not matter how much has come.
    line = re.split(_BAD_BYTES, head, maxsplit=1)[0].partition(b'\r\n')[0]
    if re.match(rb'(?:\S+ \S+ )?HTTP/(?!1\.[0-9])[0-9]', line):
        return BadCall('only HTTP/1.1 is spoken here', status=505)
    return BadCall('the head is malformed (RFC 9112): a first line, then Name: value lines')


def _parse_fields(lines: bytes) -> dict[str, str]:
    """Parse header lines that match _FIELDS."""
    fields = [line.partition(':') for line in lines.decode('latin-1').split('\r\n')[1:]]
    return _joined([(name, value.strip(' \t')) for name, _, value in fields])


def _joined(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name in lower case -> value; those of one name joined (RFC 9110, 5.3)."""
    headers: dict[str, str] = {}
    for name, value in fields:
        name = name.lower()
        headers[name] = f'{headers[name]}, {value}' if name in headers else value
    return headers


def _body_length(headers: Mapping[str, str], minor: bytes, default: int) -> int:
    """How long the body is (RFC 9112, 6.3); *default* where no header says."""
    length, coding = headers.get('content-length'), headers.get('transfer-encoding')
    if coding is not None:
        # Requests are smuggled past a proxy by giving two lengths.
        if length is not None or minor == b'0':
            raise BadCall('Transfer-Encoding with Content-Length, or in HTTP/1.0, is refused')
        if coding.lower().strip(', \t') == 'chunked':  # a list may have empty elements
            return _CHUNKED
        known = re.fullmatch(r'(?:gzip|x-gzip|deflate|compress)\s*,\s*chunked', coding.lower())
        raise BadCall('the only Transfer-Encoding read is chunked', status=501 if known else 400)
    if length is None:
        return default
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


def _over_max_body(what: str, limit: int) -> TooLarge:
    return TooLarge(f'{what} is over max_body={limit}')


class _Reader:
    """Heads and bodies out of the bytes of one connection, however they were cut.

    `feed` it what came, and b'' at the end.  `head` and `body` give what is complete, or None if
    they need more.  Bytes that cannot become a message are refused at once.
    """

    max_cached = 1024  # bytes of a head; 0 where they are signed, and no two alike

    def __init__(self, parse: Any, first_line: bytes, max_head: int) -> None:
        self.parse = parse  # makes a record of a head
        self.first_line = first_line + rb'\r\n'  # lets `head` refuse garbage early
        self.max_head = max_head  # bytes
        self.buffer: Any = b''  # what has come and is not read yet
        self.has_ended = False
        self.last_head = b''
        self.skipped = 0  # bytes of empty lines before the head
        self.seen = 0  # bytes of an unfinished head that hold nothing bad
        self.chunks: Iterator[None] | None = None  # reads the chunked body that has begun
        self.content = bytearray()  # of its chunks so far

    def feed(self, data: bytes) -> None:
        if self.buffer:
            self.buffer += data
        else:
            self.buffer = data
        self.has_ended = not data

    def head(self) -> Any:
        """Give the next head, parsed."""
        if self.buffer[:1] == b'\r':  # RFC 9112, 2.2: ignore empty lines before a head
            text = re.sub(rb'\A(?:\r\n)+', b'', self.buffer, count=1)
            self.skipped += len(self.buffer) - len(text)
            self.buffer = text
        head, blank, rest = self.buffer.partition(b'\r\n\r\n')
        limit = self.max_head - self.skipped
        if not blank or len(head) > limit:
            return self._check_unfinished_head(head, blank, limit)
        self.buffer, self.last_head = rest, head
        self.skipped = self.seen = 0
        return (self.parse if len(head) < self.max_cached else self.parse.__wrapped__)(head)

    def _check_unfinished_head(self, head: bytes, blank: bytes, limit: int) -> None:
        """Refuse what cannot become a head that is small enough."""
        window = head[: max(limit + 3, 0)]  # the last three may begin the empty line
        is_line = b'\r\n' not in window or re.match(self.first_line, window)
        if not is_line or re.compile(_BAD_BYTES).search(window, self.seen):
            raise _malformed(window)
        if blank or len(head) > limit + 3:
            raise TooLarge(f'the head is over {self.max_head} bytes', status=431)
        if self.has_ended:
            raise BadCall(_CUT_SHORT)
        self.seen = max(len(head) - 3, 0)

    def body(self, length: int, limit: int) -> bytes | None:
        """Give the body whose *length* the head told, up to *limit* bytes."""
        buffer = self.buffer
        if length == len(buffer) <= limit:  # as most messages come
            self.buffer = b''
            return buffer  # type: ignore[no-any-return]
        if length == _CHUNKED:
            return self._chunked_body(limit)
        if length > limit:
            raise _over_max_body(f'the body of {length} bytes', limit)
        if length == _TO_THE_END:
            if len(buffer) > limit:
                raise _over_max_body('the body', limit)
            length = len(buffer) if self.has_ended else limit + 1
        if length <= len(buffer):
            self.buffer = bytes(buffer[length:])
            return bytes(buffer[:length])
        if self.has_ended:
            raise BadCall(_CUT_SHORT)
        if isinstance(buffer, bytes):
            self.buffer = bytearray(buffer)  # grows in place
        return None

    def _chunked_body(self, limit: int) -> bytes | None:
        self.buffer = bytearray(self.buffer)  # it is cut from the front in place, too
        self.chunks = self.chunks or self._read_chunks(limit)
        try:
            next(self.chunks)
        except StopIteration as end:
            self.buffer, self.chunks, self.content = bytes(self.buffer), None, bytearray()
            return end.value  # type: ignore[no-any-return]
        if self.has_ended:
            raise BadCall(_CUT_SHORT)
        return None

    def _read_chunks(self, limit: int) -> Any:
        """Read a chunked body (RFC 9112, 7.1), extensions and trailers left out.

        A generator: it yields if it needs more, and returns the body.
        """
        body = self.content = bytearray()
        spare = self.max_head  # bytes of framing that its content does not account for
        size = -1
        while size:
            line = yield from self._read_line(max(spare, 0))
            found = re.fullmatch(_CHUNK_LINE, line)
            if not found:
                raise BadCall('a chunk size is malformed (RFC 9112, 7.1)')
            size = int(found.group(1), 16)
            # Many small chunks cost more than their bytes: one of 40 bytes pays for its framing.
            spare = min(spare - len(line) - 4 + size // 8, self.max_head)
            if len(body) + size > limit:
                raise _over_max_body('the body', limit)
            end = len(body) + size
            while len(body) < end:
                if not self.buffer:
                    yield
                missing = end - len(body)
                body += self.buffer[:missing]
                del self.buffer[:missing]
            while size and len(self.buffer) < 2:
                yield
            if size and self.buffer[:2] != b'\r\n':
                raise BadCall('a chunk is longer than its size (RFC 9112, 7.1)')
            del self.buffer[: 2 if size else 0]
        while line:
            line = yield from self._read_line(max(spare, 0))
            spare -= len(line)
            if line and not re.fullmatch(_FIELD, line):
                raise BadCall('a trailer is malformed (RFC 9112, 7.1.2)')
        return body

    def _read_line(self, limit: int) -> Any:
        while True:
            line, end, _ = self.buffer[: limit + 2].partition(b'\r\n')
            if b'\n' in line or (not end and len(self.buffer) >= limit + 2):
                raise BadCall('a line of a chunked body is malformed or too long')
            if end:
                del self.buffer[: len(line) + 2]
                return bytes(line)
            yield


def _head(first_line: str, *fields: tuple[str, str]) -> bytes:
    """A message's head, without the length and the empty line."""
    return first_line.encode('latin-1') + b'\r\n' + _field_lines(fields)


def _field_lines(fields: Headers) -> bytes:
    return ''.join([f'{name}: {value}\r\n' for name, value in fields]).encode('latin-1')


@functools.lru_cache(maxsize=64)
def _reply_head(status: int, headers: Headers, alive: float, second: int) -> bytes:
    """A reply's head; *alive* is how many seconds the connection is kept, 0 closes it."""
    first_line = f'HTTP/1.1 {status} {http.HTTPStatus(status).phrase}'
    date = email.utils.formatdate(second, usegmt=True)
    kept = ('Keep-Alive', f'timeout={max(1, int(alive))}') if alive else ('Connection', 'close')
    return _head(first_line, ('Server', 'microconnect'), ('Date', date), *headers, kept)


def _request_head(base: str, fields: Headers, method: str, rule: str) -> bytes:
    return _head(f'{method} {base}{_quoted(rule)} HTTP/1.1', *fields, *_JSON)


def _quoted(rule: str) -> str:
    """The path of *rule*, percent-encoded."""
    try:
        return urllib.parse.quote(rule, safe="/~!$&'()*+,;=:@")
    except UnicodeEncodeError:
        raise BadCall('the rule holds a lone surrogate, which has no UTF-8 form') from None


# The bodies: a call and the values returned, or the problem.

_JSON = (('Content-Type', 'application/json'),)
_PROBLEM = (('Content-Type', 'application/problem+json'),)
_CHALLENGE = (('WWW-Authenticate', 'Token realm="microconnect"'),)


def _parse_call(path: str, body: bytes, wanted: Token) -> tuple[list[Any], dict[str, Any]]:
    """Read args and kwargs from a request's body, and check its token."""
    try:
        call = _decode(body) if body else {}
    except ValueError as error:
        raise BadCall(f'the body is not JSON: {error}') from None
    is_object = type(call) is dict
    if is_object:
        args, kwargs, token = call.pop('args', []), call.pop('kwargs', {}), call.pop('token', None)
    if not is_object or call:  # there were other keys
        raise BadCall('the body has to be {"args": [...], "kwargs": {...}, "token": ...}')
    if type(args) is not list or type(kwargs) is not dict:
        raise BadCall('args has to be an array, and kwargs an object')
    if wanted and not _same_token(token, wanted):
        del args, kwargs  # the error must not keep them
        why = 'wants its token' if token is None else 'was given a wrong token'
        raise Forbidden(f"{path} {why}: setRule('{path}', token=...)", headers=_CHALLENGE)
    return args, kwargs


def _same_token(given: Any, wanted: Any) -> bool:
    """Compare in constant time with the token, or with each of several."""
    if not isinstance(given, str):
        return False
    # `ascii()` gives bytes for any str; `encode()` would fail on a lone surrogate.
    forms = [ascii(one).encode() for one in ((wanted,) if isinstance(wanted, str) else wanted)]
    # A list: each is compared, so that the time does not tell which one it was.
    return any([hmac.compare_digest(ascii(given).encode(), form) for form in forms])


def _returned(reply: _ReplyHead, body: bytes, via: str = '') -> Any:
    """The value that a reply holds; MicroconnectError where it holds none.

    *via* names the proxy through which it came, if there is one.
    """
    if reply.status != 200:
        origin = ', '.join(filter(None, (via, reply.origin)))
        raise _error_from_reply(reply.status, body, origin)
    if reply.fault:
        raise BadReply(reply.fault)
    try:
        values = _decode(body)
    except ValueError as error:
        raise BadReply(f'the reply is not JSON: {error}') from None
    if type(values) is not list:
        raise BadReply('the reply is not an array of the returned values')
    return values[0] if len(values) == 1 else tuple(values)


def _problem(status: int, detail: str, **members: Any) -> bytes:
    """RFC 9457 problem details."""
    detail = _bounded(detail)
    title = http.HTTPStatus(status).phrase
    return _encode(dict(title=title, status=status, detail=detail, **members), 'problem')


def _error_from_reply(status: int, body: bytes, origin: str = '') -> MicroconnectError:
    """The error that a reply with another status than 200 stands for."""
    try:
        problem = _decode(body)
    except ValueError:
        problem = None
    members = problem if isinstance(problem, dict) else {}
    detail = str(members.get('detail') or '')
    if not detail:  # not from a service of this kind: a proxy, or another server
        where = f' ({origin})' if origin else ''
        detail = f'something{where} answered {status}, without saying why: {_OTHER_PROGRAM}'
    if status != 500:
        kind = _ERRORS.get(status, BadReply)
        # These are said before a function could run: use another address, log in, slow down.
        has_run = kind.sent and status not in (301, 307, 308, 407, 429)
        return kind(detail, status=status, sent=has_run)
    raised = members.get('exception')
    facts = raised if isinstance(raised, dict) else {}
    names = ('type', 'base', 'message', 'traceback')
    told = {name: str(facts[name]) for name in names if facts.get(name) is not None}
    return _remote_error(detail, told)


def _remote_error(message: str, facts: dict[str, Any]) -> RemoteError:
    base = facts.get('base', '')
    kind = _remote_error_class(base) if base in vars(builtins) else RemoteError
    error = kind(message, **facts)
    if error.traceback:
        error.__cause__ = _RemoteTraceback(f'\n"""\n{error.traceback}"""')
    return error


@functools.lru_cache(maxsize=None)
def _remote_error_class(name: str) -> type[RemoteError]:
    """The RemoteError that is also the builtin *name*, if that is an exception."""
    kind = vars(builtins)[name]
    # StopIteration would silently end a loop around the call; an ExceptionGroup needs its members.
    never = ('Exception', 'StopIteration', 'StopAsyncIteration', 'ExceptionGroup')
    if name in never or not (isinstance(kind, type) and issubclass(kind, Exception)):
        return RemoteError
    members = {'__module__': __name__, 'msg': property(str)}  # SyntaxError prints its msg
    return type('RemoteError', (RemoteError, kind), members)


# ----------------------------------------------------------------------------------------- clock
# Sockets block, and one thread a process ends what is late.  A timeout set on the socket for each
# wait would cost every call several system calls, and would bound a wait, not a call.

_POLL = 0.05  # seconds between looks where there can be no clock
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()  # what a forked child closes
_wakeups: list[int] = []  # the descriptors to which `run` has signals written


def _close_inherited() -> None:
    """Close what a fork left in this child: it belongs to the parent, so do not shut it down."""
    _accepting.release()
    if _gc_pauses:  # the threads that decode are not here to end them
        gc.enable()
    for sock in list(_sockets):
        sock.close()
    if _wakeups:  # signals would be written to whatever has that number next
        import signal

        signal.set_wakeup_fd(-1)


# Held while a connection is accepted, so that no fork falls before it is in `_sockets`.
_accepting = threading.RLock()
if hasattr(os, 'register_at_fork'):  # Windows has no forks
    os.register_at_fork(
        before=_accepting.acquire,
        after_in_parent=_accepting.release,
        after_in_child=_close_inherited,
    )


class _Clock:
    """Ends what is late: a daemon thread that sleeps until the earliest deadline.

    Each wait is an entry of its own, and is ended by whoever pops the entry: the thread that
    waited, the clock, or a listener that makes room or is stopped.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.entries: dict[int, tuple[float, _TimedSocket]] = {}
        self.keys = itertools.count(1)  # a later wait has a larger one
        self.wakes_at = math.inf
        self.alarm = threading.Lock()  # its release wakes the thread
        self.alarm.acquire()
        self.thread: threading.Thread | None = None
        self.lock = threading.RLock()  # reentrant: a signal's handler may call, too

    def wake(self) -> bool:
        """Have the thread look at the entries; False where there can be no such thread."""
        # On Windows `shutdown` wakes no blocked recv (CPython issue 91913).
        if os.name == 'nt' or sys.is_finalizing():
            return False
        with self.lock:
            if not (self.thread and self.thread.is_alive()):
                thread = threading.Thread(target=self._run, name='microconnect-clock', daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system has no more threads
                    return False
                self.thread = thread
        with contextlib.suppress(RuntimeError):  # a wake-up is pending already
            self.alarm.release()
        return True

    def _run(self) -> None:
        while True:
            self.wakes_at = math.inf  # first, so that a deadline set meanwhile wakes it again
            self.wakes_at = self._end_late()
            left = self.wakes_at - time.monotonic()
            self.alarm.acquire(timeout=min(max(left, 0), threading.TIMEOUT_MAX))

    def _end_late(self) -> float:
        """End what is late, and give the earliest deadline that is left."""
        earliest, now = math.inf, time.monotonic()
        for key, (deadline, timed) in self.entries.copy().items():
            if deadline <= now:
                timed.end(key)
            else:
                earliest = min(earliest, deadline)
        return earliest


_clock = _Clock()


def _clock_of_process() -> _Clock:
    """The clock of this process: a forked child has another than its parent."""
    global _clock
    # Not every fork runs what is registered at fork.
    if _clock.process != os.getpid() or sys.is_finalizing():
        _clock = _Clock()
    return _clock


_OPTIONS = (  # a flow that a router has dropped is seen within minutes, not never
    (socket.IPPROTO_TCP, 'TCP_NODELAY', 1),
    (socket.SOL_SOCKET, 'SO_KEEPALIVE', 1),
    (socket.IPPROTO_TCP, 'TCP_KEEPIDLE', 60),
    (socket.IPPROTO_TCP, 'TCP_KEEPALIVE', 60),  # the same on macOS
)


class _TimedSocket:
    """A socket whose waits the clock bounds: `begin` before one, `finish` after it."""

    def __init__(self, sock: Any, clock: _Clock) -> None:
        self.sock = sock
        self.clock = clock
        self.key = 0  # of the present or last wait
        self.directions = socket.SHUT_RDWR  # what the end of a wait shuts down
        self.uses_own_timeout = False  # where there can be no clock
        self.recv: Callable[[int], bytes] = sock.recv
        self.sendall: Callable[[Any], Any] = sock.sendall
        sock.settimeout(None)  # whatever socket.setdefaulttimeout says
        with contextlib.suppress(OSError):  # the peer may be gone already
            for level, name, value in _OPTIONS:
                if hasattr(socket, name):
                    sock.setsockopt(level, getattr(socket, name), value)
        _sockets.add(sock)

    def begin(self, deadline: float, directions: int = socket.SHUT_RDWR) -> None:
        clock = self.clock
        self.directions = directions
        self.key = key = next(clock.keys)
        clock.entries[key] = (deadline, self)
        if deadline < clock.wakes_at and not self.uses_own_timeout and not clock.wake():
            self.uses_own_timeout = True
            self.recv = functools.partial(self.wait_for, self.sock.recv)
            self.sendall = self._send_pieces

    def finish(self) -> bool:
        """End the wait; False if another thread ended it first, because it was late for one."""
        if self.clock.entries.pop(self.key, None) is not None:
            return True
        with self.clock.lock:  # wait until whoever ended it has finished with the socket
            return False

    def end(self, key: int, cut: bool = False) -> bool:
        """End the wait with this *key* from another thread, or by *cut* whatever goes on.

        False if there is no such wait: its thread ended it first.
        """
        with self.clock.lock:
            is_waiting = self.clock.entries.pop(key, None) is not None
            if cut or (is_waiting and not self.uses_own_timeout):
                self.shutdown(socket.SHUT_RDWR if cut else self.directions)
        return is_waiting

    def shutdown(self, directions: int) -> None:
        with contextlib.suppress(OSError):
            # Not self.sock.shutdown: an SSLSocket would forget its TLS state, in use elsewhere.
            socket.socket.shutdown(self.sock, directions)

    def close(self) -> None:
        if self.clock.process != os.getpid():  # a fork copies a lock as held as it is
            self.sock.close()
            return
        with self.clock.lock:  # nobody may be shutting down the descriptor that this frees
            self.clock.entries.pop(self.key, None)
            self.sock.close()

    def wait_for(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Call what may wait on the socket; without a clock, look now and then whether it ended."""
        while self.uses_own_timeout:
            entry = self.clock.entries.get(self.key)
            left = entry[0] - time.monotonic() if entry else 0
            if left <= 0:
                self.clock.entries.pop(self.key, None)
                raise ConnectionAbortedError('timed out')
            self.sock.settimeout(min(left, _POLL))
            with contextlib.suppress(socket.timeout):
                return operation(*args)
        return operation(*args)

    def _send_pieces(self, data: Any) -> None:
        data = memoryview(data)
        while data:
            data = data[self.wait_for(self.sock.send, data) :]


# ------------------------------------------------------------------------------------ signatures
# HTTP Message Signatures (RFC 9421) by hmac-sha256, over a Content-Digest (RFC 9530).  Both sides
# sign the content type and the digest of the body; a call also its method and path, a reply also
# its status and the signature of its call, so that it is no reply to another.  Of structured
# fields (RFC 9651) only this one form is read.
#
# @authority is not signed: a reverse proxy sends another Host, and a service does not know by
# which names it is called.  The key says which service is meant.  @path is the rule alone: a
# prefix of the address is for the proxy or server that cuts it off.  Each side encodes it anew,
# because gateways do.

_WINDOW = 300  # seconds that two clocks may differ, as in Kerberos
_SPAN = 30  # seconds: the nonces of such a time are forgotten together
_LEAST_KEY = 32  # bytes, as many as the hash has (RFC 7518, 3.2)

_SIGNED_FIELDS = ('content-type', 'content-digest', 'signature-input', 'signature')
_PARAMETER = r';(?:created=([1-9][0-9]{0,14})|(nonce|keyid|alg)="([ !#-\[\]-~]{1,64})")'
_SIGNATURE_INPUT = rf'([a-z*][a-z0-9_.*-]*)=(\(([^()]*)\)((?:{_PARAMETER}){{2,4}}))'
_SIGNED_CHALLENGE = (('WWW-Authenticate', 'Signature realm="microconnect"'),)


def _checked_key(key: Any) -> bytes:
    """*key* as bytes; an error does not show it."""
    if isinstance(key, str):
        key = key.encode('utf-8', 'surrogatepass')
    if not isinstance(key, bytes):
        raise TypeError('secretKey is a string or bytes, or a list of them')
    if len(key) < _LEAST_KEY:
        advice = "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
        raise ValueError(f'secretKey has {len(key)} bytes, not {_LEAST_KEY} random ones: {advice}')
    return key


def _content_digest(body: bytes) -> str:
    return f'sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:'


def _signature(key: bytes, parts: Mapping[str, str], covered: str) -> str:
    """The signature of *parts*, identifier -> value (RFC 9421, 2.5).

    *covered* lists the identifiers, with the parameters of the signature.
    """
    lines = [f'{identifier}: {value}' for identifier, value in parts.items()]
    base = '\n'.join([*lines, f'"@signature-params": {covered}']).encode('utf-8', 'surrogatepass')
    return f':{base64.b64encode(hmac.digest(key, base, "sha256")).decode()}:'


def _call_parts(method: str, path: str) -> dict[str, str]:
    return {'"@method"': method, '"@path"': _quoted(path)}


def _reply_parts(status: int, signature: str) -> dict[str, str]:
    """Of a reply to the call with this field Signature."""
    label, _, value = signature.partition('=')
    return {'"@status"': str(status), f'"signature";req;key="{label}"': value}


class _Keys:
    """The secretKey of a service or a friend; of a list the first signs, and any verifies."""

    holds_tokens = True  # see _json_form

    def __init__(self, secret_key: SecretKey) -> None:
        several = secret_key if isinstance(secret_key, (list, tuple)) else (secret_key,)
        if not several:
            raise ValueError('secretKey is an empty list: give at least one')
        self.keys = [_checked_key(key) for key in several]
        # Each message tells its id, so that an error can tell another key from an altered message.
        self.ids = [hmac.digest(key, b'keyid', 'sha256')[:8].hex() for key in self.keys]

    def __reduce__(self) -> Any:
        raise TypeError('a secretKey is not copied: give it to each process')

    def sign(self, parts: dict[str, str], kind: str, body: bytes, now: float) -> Headers:
        """Give the fields that sign *parts*, the content type and the body."""
        digest = _content_digest(body)
        parts = {**parts, '"content-type"': kind, '"content-digest"': digest}
        covered = f'({" ".join(parts)});created={int(now)};nonce="{os.urandom(16).hex()}"'
        covered += f';keyid="{self.ids[0]}";alg="hmac-sha256"'
        signature = _signature(self.keys[0], parts, covered)
        return (
            ('Content-Digest', digest),
            ('Signature-Input', f'sig={covered}'),
            ('Signature', f'sig={signature}'),
        )

    def verify(
        self, parts: dict[str, str], headers: Mapping[str, str], body: bytes
    ) -> tuple[int, str]:
        """Give `created` and `nonce`; ValueError says why the signature does not hold."""
        if 'signature' not in headers:
            raise ValueError('it is not signed; both sides need the same secretKey')
        missing = [name.title() for name in _SIGNED_FIELDS if name not in headers]
        if missing:
            raise ValueError(f'it has no {missing[0]}')
        kind, digest, given, signature = (headers[name] for name in _SIGNED_FIELDS)
        parts = {**parts, '"content-type"': kind, '"content-digest"': digest}
        found = re.fullmatch(_SIGNATURE_INPUT, given)
        label, covered, listed, parameters = found.groups()[:4] if found else [''] * 4
        each = re.findall(_PARAMETER, parameters)
        values = {name or 'created': created or value for created, name, value in each}
        has_all = len(values) == len(each) and {'created', 'nonce'} <= values.keys()
        wanted = ' '.join(parts)
        if listed != wanted or not has_all or values.get('alg', 'hmac-sha256') != 'hmac-sha256':
            rest = 'created, nonce and perhaps keyid and alg="hmac-sha256"'
            raise ValueError(f'its Signature-Input is not label=({wanted}) with {rest}')
        signatures = [f'{label}={_signature(key, parts, covered)}' for key in self.keys]
        if not _same_token(signature, signatures):
            is_known = values.get('keyid') in self.ids
            why = 'it was altered on its way' if is_known else 'it is of another secretKey'
            raise ValueError(f'its signature does not hold: {why}')
        if digest != _content_digest(body):  # last: the body of a stranger is not worth the time
            raise ValueError('its body is not the one of its Content-Digest')
        return int(values['created']), values['nonce']


def _keys_of(secret_key: SecretKey) -> Any:
    """None where a key was expected and is missing, and False where none is wanted."""
    return secret_key if secret_key is None or secret_key is False else _Keys(secret_key)


class _Nonces:
    """The nonces of the calls that a service took, so that it takes none twice.

    A call that was signed before `since` may have been taken already, and is refused.  `since` is
    the start of the process, and moves on when nonces are dropped.  Each process knows only those
    that it took itself.
    """

    def __init__(self, now: float, most: int = 1 << 20) -> None:
        self.process = os.getpid()
        self.since = int(now)  # the calls of its first second are taken, too
        self.most = most  # 130 MB; above 3,000 calls/s they do not reach back the whole window
        self.spent: dict[int, set[str]] = {}  # by the time of their calls

    def spend(self, created: int, nonce: str, now: float) -> None:
        """Note that a call is taken; ValueError or Busy if it must not be."""
        age = int(now) - created
        if abs(age) > _WINDOW:
            when = f'{abs(age)} s {"ago" if age > 0 else "ahead"}'
            raise ValueError(f'it was signed {when}, and two clocks may differ by {_WINDOW} s')
        with _lock_of_process('nonces'):
            if self.process != os.getpid():  # after a fork: its parent and siblings took others
                self.process, self.since = os.getpid(), max(self.since, int(now))
            while self.spent:
                oldest = min(self.spent)
                end = (oldest + 1) * _SPAN
                if end + _WINDOW > now and sum(map(len, self.spent.values())) < self.most:
                    break
                del self.spent[oldest]
                self.since = max(self.since, end)
            if created < self.since:
                raise Busy('the call is from before the time that is remembered; sign it again')
            if any(nonce in spent for spent in self.spent.values()):
                raise ValueError('it came before, and is taken once')
            self.spent.setdefault(created // _SPAN, set()).add(nonce)


def _check_reply(keys: _Keys, signature: str, reply: _ReplyHead, body: bytes) -> None:
    """BadReply if a reply to the call with this field Signature is not signed by one of *keys*."""
    try:
        keys.verify(_reply_parts(reply.status, signature), reply.headers, body)
    except ValueError as error:
        told = ''
        if reply.status != 200 and len(body) <= _MOST_TEXT:
            # Tell what it says, but do not believe that nothing ran.
            says = _printable(str(_error_from_reply(reply.status, body)))
            told = f'; it says {reply.status}: {says}'
        raise BadReply(f'the reply is refused: {error}{told}', status=reply.status) from None


# ----------------------------------------------------------------------------------------- rules

_DEBUG, _INFO = 10, 20  # logging's levels
_PREFLIGHT = (  # what a page of an allowed origin may send, for an hour (Fetch standard)
    ('Access-Control-Allow-Methods', ', '.join(_METHODS)),
    ('Access-Control-Allow-Headers', 'Content-Type'),
    ('Access-Control-Max-Age', '3600'),
)

_Rule = collections.namedtuple(
    '_Rule', 'path function methods token signature cell', defaults=(None, None, None)
)


def _without_partial(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _code_flags(function: Any) -> int:
    """The flags of the code that calling *function* runs; 0 where it is not Python's."""
    function = _without_partial(function)
    if not isinstance(function, (types.FunctionType, types.MethodType)):
        function = type(function).__call__
    code = getattr(function, '__code__', None)
    return code.co_flags if code else 0


def _signature_of(function: Any) -> Any:
    """What to bind arguments to before the call; None where the call itself tells a misfit.

    A plain function of CPython does not begin to run then.  A decorator's wrapper does, and a
    class or a builtin does not show it.
    """
    is_plain = isinstance(function, (types.FunctionType, types.MethodType))
    if is_plain and not hasattr(function, '__wrapped__') and sys.implementation.name == 'cpython':
        return None
    import inspect

    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return None


def _check_arguments(rule: _Rule, args: list[Any], kwargs: dict[str, Any]) -> None:
    try:
        rule.signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(rule.function, '__qualname__', rule.path)
        is_wrapped = hasattr(rule.function, '__wrapped__')
        hint = ': its decorator may have to set __signature__' if is_wrapped else ''
        raise BadArguments(f'{name}() {error}{hint}') from None


def _check_not_in_class(function: Any) -> None:
    """Refuse a method in the body of its class: a call would have no object to go with it."""
    attributes = getattr(function, '__dict__', None)
    if isinstance(attributes, dict):
        function = attributes.get('__wrapped__', function)  # of a decorator
    if not isinstance(function, types.FunctionType):
        return
    owner, _, name = function.__qualname__.rpartition('.')
    code = function.__code__
    is_method = code.co_varnames[: code.co_argcount][:1] in (('self',), ('cls',))
    if owner and is_method and not owner.endswith('<locals>'):
        advice = f"register it bound: Micro.typing('/{name}')(obj.{name})"
        raise TypeError(f'{owner}.{name} is a method, and has no object here; {advice}')


def _cell() -> Any:
    """The notebook cell that runs, where the front end names it: JupyterLab and VS Code do."""
    with contextlib.suppress(Exception):
        return sys.modules['IPython'].get_ipython().get_parent()['metadata']['cellId']
    return None


def _is_redefinition(rule: _Rule, function: Any) -> bool:
    """Whether a prompt defined the function again, or a notebook cell that may have renamed it."""
    name = getattr(function, '__qualname__', '<>')
    is_again = '<' not in name and name == getattr(rule.function, '__qualname__', '')
    is_same_cell = rule.cell is not None and rule.cell == _cell()
    return hasattr(sys, 'ps1') and (is_again or is_same_cell)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


# A list in which a friend in this process finds the exception that its call raised.
_caught: Any = contextvars.ContextVar('microconnect.caught', default=None)
_in_async_rule = contextvars.ContextVar('microconnect.in_async_rule', default=False)


def _would_block_rules() -> bool:
    """Whether the caller is an async rule on a running loop: to wait here would stop the others."""
    import asyncio

    return _in_async_rule.get() and asyncio._get_running_loop() is not None


def _check_browser(headers: Mapping[str, str], origins: frozenset[str]) -> None:
    """Refuse what a foreign web page makes its visitor's browser ask.

    Under DNS rebinding Origin and Host agree on a name: therefore only localhost and IP addresses
    count as the same origin.
    """
    origin, host = headers.get('origin'), headers.get('host', '')
    if origin in origins:
        return
    if origin is not None:
        name = re.sub(r':[0-9]*\Z', '', host)
        is_address = re.fullmatch(r'\[[0-9A-Fa-f:.]+\]|[0-9]{1,3}(?:\.[0-9]{1,3}){3}', name)
        if origin.partition('://')[2] != host or not (name == 'localhost' or is_address):
            advice = f'Microservice(..., origins=({origin[:200]!r},)) lets them'
            if not re.fullmatch(_ORIGIN, origin):
                advice = f'{origin[:200]!r} cannot be allowed; serve the page by http'
            raise Forbidden(f'pages of that origin may not call this service: {advice}', status=403)
    elif headers.get('sec-fetch-site') == 'cross-site':
        raise Forbidden('web pages of other sites may not call this service', status=403)


def _nearest(path: str, rules: Iterable[str]) -> str:
    import difflib

    return ''.join(difflib.get_close_matches(path[:200], list(rules), 1))


def _no_rule(method: str, path: str, rules: Mapping[str, _Rule], is_open: list[str]) -> UnknownRule:
    """Why there is no rule to call.  A stranger is told the names of open rules only."""
    if method not in _METHODS + ('HEAD',):
        return UnknownRule(f'method {method[:20]!r} is not one that rules answer', status=501)
    rule = rules.get(path)
    if rule is not None:
        advice = f"setRule('{path}', method='{rule.methods[0]}') in the caller"
        advice += f", or methods=('{method}',) in the service" if method in _METHODS else ''
        methods = ', '.join(rule.methods)
        text = f'{path} answers {methods}, not {method}: {advice}'
        return UnknownRule(text, status=405, headers=(('Allow', methods),))
    near = _nearest(path, is_open) if len(is_open) <= 100 else ''  # 2 ms of comparing names
    hint = f'did you mean {near!r}?' if near else 'is it registered under that name?'
    if '?' in path:
        path = path[: path.index('?') + 1]  # what follows may be a token
        hint = 'the arguments of a call are in its body, not in a query'
    return UnknownRule(f'no rule {path[:200]!r} here: {hint}')


def _refusal(error: MicroconnectError | MemoryError) -> Answer:
    """The answer to a request for which nothing has run."""
    if isinstance(error, MemoryError):
        error = Busy('no memory is left for this request')
    status = error.status or 500
    extra: Headers = getattr(error, 'headers', ())
    return status, _PROBLEM + extra, _problem(status, str(error))


def _description(error: BaseException) -> dict[str, str]:
    """What a caller is told of an exception: its class, the nearest builtin one, its message."""
    kinds: tuple[type, ...] = type(error).__mro__
    name, message = _bounded(type(error).__name__), _text_of(error)
    if isinstance(error, RemoteError):  # a service further on raised: its word counts
        name, message = _bounded(error.type), _bounded(error.message)
    elif isinstance(error, MicroconnectError):  # a ConnectionError would invite a retry
        kinds = (Exception,)
    bases = (kind.__name__ for kind in kinds if vars(builtins).get(kind.__name__) is kind)
    return {'type': name, 'base': next(bases), 'message': message}


def _traceback_of(error: BaseException) -> str:
    import traceback

    try:
        return ''.join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception as failure:  # a SyntaxError with odd arguments fails, for one
        return f'it cannot be formatted: {_text_of(failure)}'


class _Rules:
    """The rules and their tokens, and how a request is answered: nothing here knows a socket."""

    holds_tokens = True  # see _json_form
    token = _token_property
    secretKey = _key_property
    _tokens: _Tokens

    def __init__(
        self, name: str, debug: Any, token: Any, secret_key: Any, origins: Any, max_body: int
    ) -> None:
        self.name = name
        self.debug: bool | None = debug
        self.max_body = _checked_number('max_body', max_body)
        self.token = token
        self._keys = _keys_of(secret_key)
        self._nonces = _Nonces(time.time())
        self._origins = _checked_origins(origins)
        self._rules: dict[str, _Rule] = {}
        self._loop = _Loop()
        self._debug_of_start: bool | None = None  # while it serves
        self._is_told = True  # whether each answer is logged, printed or for a page
        self._looks_at = 0.0  # when that is looked up again

    def typing(
        self, rule: str = '', token: Token = False, methods: Sequence[str] = ('POST',)
    ) -> Callable[[Function], Function]:
        """Decorate a function to answer under *rule*; it stays callable as usual.

        Arguments have to fit `inspect.signature` of the function.  So a decorator that hands over
        arguments of its own has to set `__signature__`.

        Args:
            rule: the path, matched exactly; a '/' is put before it if missing.
            token (str, or a list of them): what callers have to give.
            methods: the HTTP methods it answers, default POST alone.

        Raises:
            TypeError, ValueError: at decoration, for what cannot work.
        """
        if not isinstance(rule, str) or not rule:
            name = getattr(rule, '__name__', 'rule')
            raise TypeError(f"write @Micro.typing('/{name}'), with the rule in brackets")
        path = _path_of(rule)
        if re.search(r'/(?:<[\w:]+>|\{[\w:]+\})(?:/|\Z)', path):  # of Flask or FastAPI
            raise ValueError(f'a rule has no variables, as in {path!r}: pass arguments instead')
        if isinstance(methods, str) or not methods or not set(methods) <= set(_METHODS):
            raise ValueError(f"methods is such as ('GET',), out of {_METHODS}, not {methods!r}")
        token = _checked_token(rule, token)

        def register(function: Function) -> Function:
            self.reply(function)
            _check_not_in_class(function)
            if path in self._rules and not _is_redefinition(self._rules[path], function):
                raise ValueError(f'rule {path!r} is taken already: give each function its own')
            signature = _signature_of(function)
            self._rules[path] = _Rule(path, function, tuple(methods), token, signature, _cell())
            if token:
                self.token.pop(path, None)  # this one takes the place of one given before
            return function

        return register

    route = typing

    def reply(self, function: Function = None) -> Function:  # type: ignore[assignment]
        """Mark *function* as one that answers calls; `typing` alone does the same."""
        if not callable(function):
            raise TypeError('write @Micro.reply above a function, without brackets')
        return function

    def rules(self) -> dict[str, dict[str, Any]]:
        """Tell how each rule is called.

        Others can ask once this is a rule, too: ``Micro.typing('/rules')(Micro.rules)``.  They
        also see the defaults of arguments.

        Returns:
            rule -> {'signature': '(a, b=1)', 'doc': the first line of the docstring,
            'methods': ['POST'], 'token': whether it wants one}; plain data, sorted by rule.
        """
        import inspect

        tokens, told = self._tokens, {}
        for path, rule in sorted(self._rules.copy().items()):
            signature, doc = '(...)', ''
            with contextlib.suppress(Exception):  # some builtins have none; a repr may raise
                signature = _bounded(str(inspect.signature(rule.function)))
            with contextlib.suppress(Exception):
                doc = inspect.getdoc(_without_partial(rule.function)) or ''
            told[path] = {
                'signature': signature,
                'doc': _bounded(doc.partition('\n')[0]),
                'methods': list(rule.methods),
                'token': bool(tokens.by_rule.get(path) or rule.token or tokens.for_all),
            }
        return told

    def answer(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes = b'',
        caller: str = '',
    ) -> Answer:
        """Answer one request, in any server.

        Args:
            method: the HTTP method.
            path: the rule, percent-encoding decoded.
            headers: name -> value, in any case.
            body: the body, whole.
            caller: the address that the log names.

        Returns:
            (status, headers, body): int, a tuple of (name, value), bytes.  Never raises, but for
            a KeyboardInterrupt or SystemExit in the main thread, where signals raise them.
        """
        head = _RequestHead(method, path, _joined(headers.items()))
        return self._handle(head, body, caller, time.monotonic())

    async def aanswer(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes = b'',
        caller: str = '',
    ) -> Answer:
        """Answer as `answer` does: async rules on the running loop, plain ones in a thread."""
        import asyncio

        begun, signed = time.monotonic(), ''
        head = _RequestHead(method, path, _joined(headers.items()))
        rule = self._rules.get(path)
        if rule is None or not _code_flags(rule.function) & 0x80:  # it is not async
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, self._handle, head, body, caller, begun)
        try:
            if self._keys:
                signed = self._verify(head, body)
            rule, args, kwargs = self._check_request(head, body)
        except (MicroconnectError, MemoryError) as error:
            return self._finish(_refusal(error), caller, head, begun, signed)
        try:
            value = rule.function(*args, **kwargs)
        except BaseException as error:
            answer = self._raised(rule, error)
        else:
            answer = await self._await(rule, value)
        return self._finish(answer, caller, head, begun, signed)

    def _handle(
        self, head: _RequestHead, body: bytes, caller: str, begun: float, busy: Busy | None = None
    ) -> Answer:
        """`answer`, for header names in lower case; *busy* is why nothing is run."""
        signed = ''
        try:
            if self._keys:
                signed = self._verify(head, body)
            if busy:
                raise busy
            rule, args, kwargs = self._check_request(head, body)
        except (MicroconnectError, MemoryError) as error:
            return self._finish(_refusal(error), caller, head, begun, signed)
        try:
            # A context of its own: what a call sets must not reach the connection's next one.
            context = contextvars.copy_context()
            # A partial: PyPy's `run` has parameters whose names the keywords may have.
            value = context.run(functools.partial(rule.function, *args, **kwargs))
            # A plain callable may return a coroutine, too.  `isinstance` with an abstract class is
            # slow, so the usual types are told apart first: that is worth 3 % of a call.
            if type(value) not in _NATIVE and isinstance(value, abc.Awaitable):
                answer = self._loop.result_of(self._await(rule, value), value)
            else:
                answer = context.run(self._reply_with, value)
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)) and _in_main_thread():
                raise
            answer = self._raised(rule, error)
        if begun >= self._looks_at:  # once a second: to ask logging each time slows all calls down
            logger = _logger or _find_logger()
            is_logged = logger and logger.isEnabledFor(_DEBUG)
            self._is_told = bool(is_logged or self._origins or self._is_in_debug())
            self._looks_at = begun + 1
        if signed or self._is_told or answer[0] != 200:
            return self._finish(answer, caller, head, begun, signed)
        return answer

    def _finish(
        self,
        answer: Answer,
        caller: str,
        head: _RequestHead = _NO_HEAD,
        begun: float = math.inf,
        signed: str = '',
    ) -> Answer:
        """Log an answer, sign it if its call was *signed*, and allow a page to read it."""
        status, fields, body = answer
        self._log_call(status, body, head.path, caller, begun)
        if signed:
            # It is empty for a call that came again: a signed refusal would pass for its reply.
            parts = _reply_parts(status, signed)
            fields += self._keys.sign(parts, fields[0][1], body, time.time())
        if self._origins:
            fields += (('Vary', 'Origin'),)
            if head.headers.get('origin') in self._origins:
                fields += (('Access-Control-Allow-Origin', head.headers['origin']),)
                if 'access-control-request-method' in head.headers:
                    fields += _PREFLIGHT
        return status, fields, body

    def _log_call(self, status: int, body: bytes, path: str, caller: str, begun: float) -> None:
        """One line for a call: at DEBUG, and in debug on stderr; for a refusal at INFO."""
        is_refusal = status not in (200, 500)
        logger = _logger or _find_logger()
        is_logged = logger and logger.isEnabledFor(_INFO if is_refusal else _DEBUG)
        if not (is_logged or self._is_in_debug()):
            return
        rule = path.partition('?')[0][:200]
        spent = 1000 * max(time.monotonic() - begun, 0)
        line = f'{"refused" if is_refusal else "answered"} {status}: {rule!r}'
        line += f' from {caller!r}' if caller else ''
        line += f' in {spent:.1f} ms'
        if is_refusal:
            line += f': {_decode(body)["detail"]!r}'
        if is_logged:
            facts = {'rule': rule, 'status': status, 'milliseconds': spent, 'caller': caller}
            _log('info' if is_refusal else 'debug', '%s', line, extra=facts)
        if self._is_in_debug():
            _say(f'{self.name}: {line}', sys.stderr)

    def _is_in_debug(self) -> bool:
        return bool(self.debug if self._debug_of_start is None else self._debug_of_start)

    def _is_preflight(self, head: _RequestHead) -> bool:
        """Whether a browser asks if a page of an allowed origin may call."""
        is_asked = head.method == 'OPTIONS' and 'access-control-request-method' in head.headers
        return is_asked and head.headers.get('origin') in self._origins

    def _is_health(self, head: _RequestHead) -> bool:
        """Whether it asks for the name of the service, which no rule answers."""
        rule = self._rules.get('/')
        is_asked = head.path == '/' and head.method in ('GET', 'HEAD')
        return is_asked and not (rule and head.method in rule.methods)

    def _check_request(
        self, head: _RequestHead, body: bytes
    ) -> tuple[_Rule, list[Any], dict[str, Any]]:
        """Check a request; MicroconnectError refuses it: until here nothing has run."""
        method, path, headers = head.method, head.path, head.headers
        if 'origin' in headers or 'sec-fetch-site' in headers:
            _check_browser(headers, self._origins)
            if self._is_preflight(head):
                return _Rule(path, lambda: None, (method,)), [], {}
        rule = self._rules.get(path)
        if rule is None or method not in rule.methods:
            if self._is_health(head):
                return _Rule(path, lambda: self.name, (method,)), [], {}
            raise _no_rule(method, path, self._rules, self._open_rules())
        if len(body) > self.max_body:
            raise _over_max_body(f'the body of {len(body)} bytes', self.max_body)
        kind = headers.get('content-type', '')
        if (body or method != 'GET') and not _is_json(kind):
            raise BadCall(f'Content-Type has to be application/json, not {kind!r}', status=415)
        tokens = self._tokens
        wanted = tokens.by_rule.get(path) or rule.token or tokens.for_all
        if len(body) <= _LARGE:
            args, kwargs = _parse_call(path, body, wanted)
        else:
            # What a stranger sent is dropped before the next large body is decoded.
            with _lock_of_process('decode'):
                args, kwargs = _parse_call(path, body, wanted)
        if rule.signature:
            _check_arguments(rule, args, kwargs)
        return rule, args, kwargs

    def _verify(self, head: _RequestHead, body: bytes) -> str:
        """Give the signature of a call that is signed and new, else raise Forbidden or Busy.

        An empty string for what runs no function: GET / and what a browser asks before a call.
        """
        # First: the signature does not cover what this looks at, so this refusal is not signed.
        _check_browser(head.headers, self._origins)
        if self._is_health(head) or self._is_preflight(head):
            return ''
        if len(body) > self.max_body:  # perhaps it was not read whole
            raise _over_max_body(f'the body of {len(body)} bytes', self.max_body)
        try:
            parts = _call_parts(head.method, head.path)
            created, nonce = self._keys.verify(parts, head.headers, body)
            self._nonces.spend(created, nonce, time.time())
        except ValueError as error:
            raise Forbidden(f'the call is refused: {error}', headers=_SIGNED_CHALLENGE) from None
        return str(head.headers['signature'])

    def _open_rules(self) -> list[str]:
        """The rules that anyone can call."""
        tokens = self._tokens
        rules = [] if tokens.for_all or self._keys else self._rules.copy().values()
        return [r.path for r in rules if not (r.token or r.path in tokens.by_rule)]

    async def _await(self, rule: _Rule, value: Any) -> Answer:
        import asyncio

        before = _in_async_rule.get()
        _in_async_rule.set(True)
        try:
            return self._reply_with(await value if isinstance(value, abc.Awaitable) else value)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return self._raised(rule, error, has_begun=True)
        finally:
            _in_async_rule.set(before)

    def _reply_with(self, value: Any) -> Answer:
        if isinstance(value, types.GeneratorType):  # here, so that what it raises is the rule's
            value = _items(value, self.max_body)
        body = _encode(value if type(value) is tuple else (value,), 'reply')
        if len(body) > self.max_body:
            raise ValueError(str(_over_max_body(f'the reply of {len(body)} bytes', self.max_body)))
        return 200, _JSON, body

    def _raised(self, rule: _Rule, error: BaseException, has_begun: bool = False) -> Answer:
        """The answer that tells what the function raised, or that it could not be called."""
        trace = error.__traceback__
        is_call = not has_begun and isinstance(error, TypeError) and trace and not trace.tb_next
        if is_call and _code_flags(rule.function):
            # One frame: Python code would have a second, had the function begun to run.
            return _refusal(BadArguments(str(error)))
        slot = _caught.get()
        if slot:
            slot[0] = error
        text = _traceback_of(error)
        is_long = len(text) > 2 * _MOST_TEXT
        more = f': {_bounded(text)}' if is_long else ''
        info = None if is_long else (type(error), error, trace)
        _log('error', '%s raised%s', rule.path, more, exc_info=info)
        members = _description(error)
        if self._is_in_debug():
            members['traceback'] = _bounded(text)
        detail = f'{members["type"]}: {members["message"]}'
        return 500, _PROBLEM, _problem(500, detail, exception=members)


class _Loop:
    """The event loop that async rules share, in a thread that starts with their first call."""

    def __init__(self) -> None:
        self.process = 0
        self.loop: Any = None
        self.has_ended = threading.Event()
        self.thread: threading.Thread | None = None

    def result_of(self, coroutine: Coroutine[Any, Any, Answer], value: Any) -> Answer:
        """Run *coroutine*, which awaits *value*, on the loop, and give what it returns."""
        import concurrent.futures

        try:
            future, has_ended = self._schedule(coroutine)
        except Exception:
            coroutine.close()  # or Python warns that nobody awaited them
            getattr(value, 'close', int)()
            raise
        try:
            # Not result(1): its TimeoutError could be another's, such as of a signal's handler.
            while not (has_ended.is_set() or concurrent.futures.wait([future], 1).done):
                pass  # the loop may have ended before it took this up
        finally:
            future.cancel()  # nobody waits any more; a future that is done stays as it is
        return future.result()  # type: ignore[no-any-return]

    def _schedule(self, coroutine: Coroutine[Any, Any, Answer]) -> tuple[Any, threading.Event]:
        import asyncio

        if _would_block_rules():
            raise RuntimeError('in an async rule, `await aanswer(...)`: `answer` would stop it')
        with _lock_of_process('start and stop'):
            if self.process != os.getpid() or not self.thread or self.has_ended.is_set():
                loop, has_ended = asyncio.new_event_loop(), threading.Event()
                thread = threading.Thread(target=_run_loop, args=(loop, has_ended), daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system has no more threads
                    loop.close()
                    raise
                self.process, self.loop, self.has_ended = os.getpid(), loop, has_ended
                self.thread = thread
                # A service may be left behind, never stopped.
                weakref.finalize(self, _stop_loop, loop).atexit = False
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop), self.has_ended

    def close(self) -> None:
        with _lock_of_process('start and stop'):
            thread, self.thread = self.thread, None
        if thread and self.process == os.getpid():
            _stop_loop(self.loop)
            if thread is not threading.current_thread():
                thread.join(2)


def _stop_loop(loop: Any) -> None:
    with contextlib.suppress(RuntimeError):  # it has ended by itself
        loop.call_soon_threadsafe(loop.stop)


def _run_loop(loop: Any, has_ended: threading.Event) -> None:
    """Run *loop* until it is stopped or a task raises SystemExit; then cancel what is left."""
    import asyncio

    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        has_ended.set()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


# ----------------------------------------------------------------------------------------- hosts
# What receives requests and sends the answers of `_Rules`: WSGI, ASGI, and our own listener.


def _wsgi(
    service: _Rules, environ: dict[str, Any], start_response: Callable[..., Any]
) -> list[bytes]:
    names = (name for name in environ if name[:5] == 'HTTP_')
    headers = {name[5:].replace('_', '-').lower(): environ[name] for name in names}
    headers['content-type'] = environ.get('CONTENT_TYPE', '')
    method, caller = environ['REQUEST_METHOD'], environ.get('REMOTE_ADDR', '')
    try:
        body = _wsgi_body(environ, service.max_body)
        path = _utf8(environ.get('PATH_INFO', '').encode('latin-1')) or '/'
        path += '?' if environ.get('QUERY_STRING') else ''
        answer = service.answer(method, path, headers, body, caller)
    except MicroconnectError as error:
        answer = service._finish(_refusal(error), caller, _RequestHead(method, '', headers))
    status, fields, reply = answer
    fields += (('Content-Length', str(len(reply))),)
    start_response(f'{status} {http.HTTPStatus(status).phrase}', list(fields))
    return [] if method == 'HEAD' else [reply]


def _wsgi_body(environ: Mapping[str, Any], limit: int) -> bytes:
    length = _body_length({'content-length': environ.get('CONTENT_LENGTH') or '0'}, b'1', 0)
    if length > limit:
        raise _over_max_body(f'the body of {length} bytes', limit)
    is_chunked = environ.get('HTTP_TRANSFER_ENCODING')
    if is_chunked and not environ.get('wsgi.input_terminated'):  # nobody says where it ends
        raise BadCall('a body needs a Content-Length here', status=411)
    body: bytes = environ['wsgi.input'].read(limit + 1 if is_chunked else length)
    if len(body) < length:
        raise BadCall('the body is shorter than its Content-Length')
    return body


async def _asgi(service: _Rules, scope: Any, receive: Any, send: Any) -> None:
    if scope['type'] == 'lifespan':
        for phase in ('startup', 'shutdown'):
            await receive()
            await send({'type': f'lifespan.{phase}.complete'})
        return
    if scope['type'] != 'http':
        raise RuntimeError(f'only http is answered, not {scope["type"]}')
    body, more = bytearray(), True
    while more and len(body) <= service.max_body:
        message = await receive()
        if message['type'] == 'http.disconnect':
            return
        body += message.get('body', b'')
        more = message.get('more_body', False)
    headers = _joined((k.decode('latin-1'), v.decode('latin-1')) for k, v in scope['headers'])
    path, root = scope['path'], scope.get('root_path', '').rstrip('/')
    path = (path[len(root) :] if f'{path}/'.startswith(f'{root}/') else path) or '/'
    path += '?' if scope.get('query_string') else ''
    host, port = scope.get('client') or ('', None)
    caller = _netloc(host, port) if port else host  # a Unix socket has no port
    method = scope['method']
    status, fields, reply = await service.aanswer(method, path, headers, bytes(body), caller)
    fields += (('Content-Length', str(len(reply))),)
    raw = [(name.lower().encode(), value.encode('latin-1')) for name, value in fields]
    await send({'type': 'http.response.start', 'status': status, 'headers': raw})
    await send({'type': 'http.response.body', 'body': b'' if method == 'HEAD' else reply})


_FIRST_READ = 1 << 14  # bytes; most messages are smaller, and a waiting connection holds no more
_PIECE = 1 << 16  # bytes of a large body read at a time
_BLOCK = 1 << 18  # bytes that have to move within read_timeout
_HELD = 64 << 20  # bytes of unfinished requests at once, if max_body is not larger
_LINGER = 2.0  # seconds; nginx's lingering_timeout is 5: here a thread waits
_LAST_WORDS = 0.1  # seconds that a refused peer has at stop to take its 408 or 503
_TLS_ALERT = b'\x15\x03\x01\x00\x02\x02\x0a'  # fatal: unexpected message (RFC 8446, 6)
_UNEXPECTED_EOF = 0x80  # ssl.OP_IGNORE_UNEXPECTED_EOF, which Python names from 3.10


class _Connection:
    """A connection to the listener, served in its own thread.

    Each wait has a deadline.  If a wait for a request is ended early (it was too slow, a newcomer
    needed room, the service stops), only the receiving half is shut down.  So the peer can be told
    408, and knows that its request was not run.
    """

    def __init__(self, listener: _Listener, sock: socket.socket, address: Any) -> None:
        self.listener = listener
        self.micro = listener.micro
        self.caller = _netloc(*address[:2])
        self.reader = _Reader(_parse_request_head, _REQUEST_LINE, self.micro.max_head)
        if self.micro._keys:
            self.reader.max_cached = 0
        self.timed = _TimedSocket(sock, listener.clock)
        self.thread: threading.Thread | None = None
        self.is_idle = True  # waits for a request's first bytes
        self.is_answering = False  # from a request read whole to its reply sent
        self.is_refusing = False  # says that nothing was run
        self.held = 0  # bytes of the body that is being answered
        # Spread, so that the connections of a burst do not all come back at once.
        self.retire_at = time.monotonic() + self.micro.max_age * (1 - os.urandom(1)[0] / 2550)

    def serve(self) -> None:
        """Serve request after request until either side closes."""
        self.thread = threading.current_thread()
        head: _RequestHead | None = None
        waiting = self.micro.read_timeout  # for the first word; later idle_timeout
        try:
            if self.listener.ssl_context:
                self._begin_tls(self.listener.ssl_context)
            while True:
                head = None
                head = self._read(self.reader.head, waiting=waiting)
                if not head:
                    break
                if not self._serve_request(head):
                    self._linger()
                    break
                waiting = self.micro.idle_timeout
        except MicroconnectError as error:
            self._refuse(error, head)
        except MemoryError as error:
            if not self.is_answering:  # else the function may have run
                self._refuse(error, head)
        except OSError:
            pass  # the peer is gone, or was too slow to take its reply

    def _begin_tls(self, context: Any) -> None:
        plain = self.timed.sock
        with _lock_of_process('wrap'):
            # OpenSSL 3 would let nothing be sent after the receiving half is shut down.  The
            # option is needed while wrapping only: the context is the caller's.
            options = context.options
            context.options |= _UNEXPECTED_EOF
            try:
                sock = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            finally:
                context.options = options
        self.timed = _TimedSocket(sock, self.timed.clock)
        self.timed.begin(time.monotonic() + self.micro.read_timeout)
        try:
            if not self.listener.stop_by:
                # Apart from wrapping, so that the clock sees a silent peer.
                self.timed.wait_for(sock.do_handshake)
        except OSError as error:
            _log('debug', 'a TLS handshake failed: %s', error)
            if getattr(error, 'reason', '') == 'HTTP_REQUEST':  # OpenSSL says nothing then
                socket.socket.send(self.timed.sock, _TLS_ALERT)
            self.timed.finish()
            self._linger()  # or a reset takes the alert along
            raise
        if not self.timed.finish():  # what was received is still there, but no reply could be sent
            raise OSError('the TLS handshake was ended')

    def _read(self, take: Callable[..., Any], *args: Any, waiting: float = 0) -> Any:
        """Read until *take* gives something.

        *waiting* is how long the peer may say nothing; None if it then closes.  What it has begun
        to say has read_timeout for each block of bytes.
        """
        reader, timed = self.reader, self.timed
        idle_until = time.monotonic() + waiting
        count = _BLOCK
        got = take(*args) if reader.buffer else None
        while got is None:
            is_idle = self.is_idle = waiting > 0 and reader.buffer in (b'', b'\r')  # no word yet
            if is_idle:
                deadline = idle_until
            elif count >= _BLOCK:
                deadline, count = time.monotonic() + self.micro.read_timeout, 0
            timed.begin(deadline, socket.SHUT_RD)
            if self.listener.stop_by:  # it ended the waits that it saw, perhaps not this one
                timed.end(timed.key)
            try:
                data = timed.recv(_FIRST_READ if is_idle else _PIECE)
            except OSError:
                data = b''
            self.is_idle = False
            if not timed.finish():
                # If a request is on its way just now, the 408 tells its sender that it did not run.
                idle = 'the connection was idle, or the service stops; send again'
                why = idle if is_idle else 'the request came too slowly'
                raise Busy(why, status=408, was_idle=is_idle)
            if is_idle and not data:
                return None
            count += len(data)
            reader.feed(data)
            if len(reader.buffer) + len(reader.content) > _PIECE:
                self.listener.check_room()
            got = take(*args)
        return got

    def _serve_request(self, head: _RequestHead) -> bool:
        """Read the rest of a request, and answer it; False where the connection is to be closed."""
        micro, reader = self.micro, self.reader
        if head.count > micro.max_headers:
            raise TooLarge(f'there are over {micro.max_headers} header lines', status=431)
        if head.expects and head.length <= micro.max_body and not reader.buffer:
            self.timed.begin(time.monotonic() + micro.read_timeout)
            self.timed.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
            self.timed.finish()
        body = reader.body(head.length, micro.max_body) if head.length else b''
        if body is None:
            body = self._read(reader.body, head.length, micro.max_body)
        self.is_answering = True
        self.held = len(body)
        busy = Busy('the service is stopping') if self.listener.stop_by else None
        now = time.monotonic()
        status, headers, reply = micro._handle(head, body, self.caller, now, busy)
        self.held = 0
        keep = head.keep_alive and not (now > self.retire_at or self.listener.stop_by)
        self._send(status, headers, reply, keep)
        self.is_answering = False
        return keep

    def _send(self, status: int, headers: Headers, body: bytes, keep: bool) -> None:
        make = _reply_head.__wrapped__ if self.micro._keys else _reply_head  # signed: no two alike
        head = make(status, headers, keep and self.micro.idle_timeout, int(time.time()))
        head = b'%bContent-Length: %d\r\n\r\n' % (head, len(body))
        if self.reader.last_head[:5] == b'HEAD ':
            body = b''
        self.reader.last_head = b''  # what comes next, such as a 408, is no reply to it
        pieces: list[Any] = [head + body[:_PIECE]]
        if len(body) > _PIECE:  # a copy of a large body would cost as much memory again
            view, starts = memoryview(body), range(_PIECE, len(body), _BLOCK)
            pieces += [view[start : start + _BLOCK] for start in starts]
        for piece in pieces:
            self.timed.begin(time.monotonic() + self.micro.read_timeout)
            self.timed.sendall(piece)
            if not self.timed.finish():
                raise OSError('the peer was too slow to take its reply')

    def _refuse(self, error: MicroconnectError | MemoryError, head: _RequestHead | None) -> None:
        """Answer what is no whole request; nothing after it on this connection is read as one."""
        self.is_answering, self.is_refusing = False, True
        self.reader.buffer, self.reader.content = b'', bytearray()  # room for others
        with contextlib.suppress(OSError):
            answer = _refusal(error)
            if not getattr(error, 'was_idle', False):  # else nobody called: no news for the log
                answer = self.micro._finish(answer, self.caller, head or _NO_HEAD)
            self._send(*answer, keep=False)
            self._linger()

    def _linger(self) -> None:
        """Close in stages (RFC 9112, 9.6): with bytes unread it would reset, and lose the reply."""
        self.timed.shutdown(socket.SHUT_WR)
        self.is_answering = self.is_refusing = False
        self.timed.begin(time.monotonic() + (_LAST_WORDS if self.listener.stop_by else _LINGER))
        receive = functools.partial(socket.socket.recv, self.timed.sock)  # raw, under TLS too
        while self.timed.wait_for(receive, _PIECE):
            pass


class _Listener(http.server.ThreadingHTTPServer):
    """Accepts connections, which socketserver calls requests.

    Its thread sleeps until one comes, or until `wake`.
    """

    request_queue_size = 1024  # the stock 5 resets most of a burst of clients
    allow_reuse_address = os.name == 'posix'  # elsewhere two services could share a port
    allow_reuse_port = False  # 3.13 would set it; here it is the caller's choice
    timeout = 0  # `_accept` waits

    def __init__(
        self,
        micro: Microservice,
        address: tuple[str, int],
        ssl_context: ssl.SSLContext | None,
        reuse_port: bool,
    ) -> None:
        self.micro = micro
        self.clock = _clock_of_process()
        self.ssl_context: Any = ssl_context
        self.reuse_port = reuse_port
        self.connections: set[_Connection] = set()
        self.stop_by: float | None = None
        self.signal = ''  # that asked `run` to stop
        self.has_ended = False
        self.address_family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
        super().__init__(address, http.server.BaseHTTPRequestHandler)
        self.socket.setblocking(False)  # a newcomer may be gone before it is accepted
        self.waking, self.alarm = socket.socketpair()
        self.alarm.setblocking(False)
        _sockets.update((self.socket, self.waking, self.alarm))
        self.thread = threading.Thread(target=self.serve_in_thread, name='microconnect')
        self.thread.daemon = True

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

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # it is full, and wakes already; or the listener ended
            self.alarm.send(b'\0')

    def stop(self, grace: float) -> None:
        """Begin to stop: connections that answer no call end now, the others after *grace*."""
        self.stop_by = min(self.stop_by or math.inf, time.monotonic() + grace)
        self.wake()

    def close(self) -> None:
        """Release the port and whatever else is held, but for the connections."""
        self.micro._debug_of_start, self.micro._looks_at = None, 0.0
        self.server_close()
        self.waking.close()
        self.alarm.close()
        self.has_ended = True

    def serve_in_thread(self) -> None:
        try:
            self.serve()
        finally:
            self.close()

    def serve(self) -> None:
        """Serve until `stop`, and until the calls in flight have ended."""
        while self.stop_by is None:
            self._accept(None)
        self._tell_of_stop()
        for key, timed, connection in self._waits():
            if not (connection.is_answering or connection.is_refusing):
                timed.end(key)
        while self.stop_by > time.monotonic() and not self._are_all(answering=False):
            self._accept(self.stop_by - time.monotonic())
        for _ in range(self.request_queue_size):  # those who came last get an answer too
            if not self._accept(0):
                break
        self.server_close()
        last = time.monotonic() + 10 * _LAST_WORDS  # much, for a machine under load
        while time.monotonic() < last and not self._are_all(answering=True):
            time.sleep(0.001)
        for connection in self.connections.copy():
            connection.timed.end(connection.timed.key, cut=True)
        self.micro._loop.close()
        _log('info', '%s has stopped', self.micro.name)

    def _tell_of_stop(self) -> None:
        """Say what is waited for."""
        busy = sum(one.is_answering for one in self.connections.copy())
        text = f'{self.micro.name} stops' + (f' on {self.signal}' if self.signal else '')
        if busy:
            left = max((self.stop_by or 0) - time.monotonic(), 0)
            text += f': {_count(busy, "call")} in progress, up to {left:.0f} s'
            text += '; again to end at once' if self.signal else ''
        _log('info', text)
        if self.signal and busy:
            _say(text, sys.stdout)

    def _accept(self, seconds: float | None) -> bool:
        """Take a connection, if one comes in time and `wake` is not called; say whether."""
        with getattr(selectors, 'PollSelector', selectors.SelectSelector)() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self.waking, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(seconds)]
        if self.waking in ready:
            self.waking.recv(4096)
        if self.socket in ready:
            self.handle_request()
        return self.socket in ready

    def check_room(self) -> None:
        """Refuse one more block of a request if all of them hold too much already."""
        held = 0
        for one in self.connections.copy():
            held += one.held + len(one.reader.buffer) + len(one.reader.content)
        if held > max(_HELD, 2 * self.micro.max_body):
            raise Busy('too many large requests at once; try again later')

    def _are_all(self, answering: bool) -> bool:
        """Whether each connection is answering a call, or whether none is."""
        return all(one.is_answering == answering for one in self.connections.copy())

    def _make_room(self) -> bool:
        """Close the connection that is idle the longest; False if none is idle."""
        return any(one.is_idle and timed.end(key) for key, timed, one in self._waits())

    def _waits(self) -> list[tuple[int, _TimedSocket, _Connection]]:
        """The present or last wait of each connection, the earliest first.

        Look at the key before the connection: if that is idle afterwards, the key is that of an
        idle wait, or of one that has ended.
        """
        waits = [(one.timed.key, one.timed, one) for one in self.connections.copy()]
        return sorted(waits, key=lambda wait: wait[0])  # a later wait has a larger key

    def get_request(self) -> Any:
        try:
            with _accepting:
                sock, address = super().get_request()
                return _Connection(self, sock, address), address
        except BlockingIOError:
            raise
        except OSError:  # mostly: no descriptor is left
            self._make_room()
            time.sleep(0.01)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Make room for a newcomer, or tell it that there is none, without waiting for it."""
        if len(self.connections) < self.micro.max_connections or self._make_room():
            self.connections.add(request)
            return True
        self._turn_away(request)
        return False

    def _turn_away(self, request: _Connection) -> None:
        sock = request.timed.sock
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            if self.ssl_context is None:
                refusal = _refusal(Busy('every connection is busy; try again later'))
                answer = self.micro._finish(refusal, request.caller)
                request._send(*answer, keep=False)
            sock.setblocking(False)
            sock.recv(_BLOCK)

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except (RuntimeError, MemoryError):  # the system has no thread left
            self._make_room()
            self._turn_away(request)
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection; ThreadingMixIn calls this in a thread of its own."""
        request.serve()

    def shutdown_request(self, request: Any) -> None:
        request.timed.close()
        self.connections.discard(request)
        if self.stop_by is not None:
            self.wake()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log('exception', 'a connection failed')


# ---------------------------------------------------------------------------------- Microservice


_served: weakref.WeakSet[Microservice] = weakref.WeakSet()


class Microservice(_Rules):
    """Functions that other processes call: the service.

    You call: `typing` (or `route`) and `reply` to decorate, `rules` to list, `run` to serve,
    `start` and `stop` to serve in the background, `answer`, `aanswer`, `wsgi` and `asgi` to be
    hosted elsewhere.

    Args:
        name (str): told by GET /; recommended: ``__name__``.
        port (int): where to listen, default 5000; 0 takes a free one.
        host (str): default '0.0.0.0': every interface; a warning names the rules open there.
        debug (bool): print a line for each call, and send callers the traceback of what a
            function raises.
        token (dict, str or list): rule -> token, or one for every rule.  It can be changed at any
            time by ``Micro.token['/rule'] = '...'``.  Of a list each token is taken, so that
            callers can change theirs one after the other.  A warning at start tells of None, such
            as of a variable of the environment that is not set.
        secretKey (str, bytes or a list of them): only calls that are signed by it are answered,
            each once, and their replies are signed.  Of a list the first signs, and any verifies.
        origins (list of str): the web pages that may call, such as 'https://app.example'; default:
            only those that this host itself serves, by the name localhost or its IP address.
        max_body (int): bytes of a request's or reply's body, default 8 MiB.  The worst JSON of
            that size takes 0.4 GB and a second to decode.
        max_head (int): bytes of a request's head, default 32 KiB: four times what nginx takes.
        max_headers (int): header lines of a request, default 100, as http.client has it.
        read_timeout (float): seconds, default 20 as Apache's mod_reqtimeout: for a connection's
            first word, for a head, and for each 256 KiB of a body or of taking a reply.
        idle_timeout (float): seconds between requests, default 60; told to clients.
        max_connections (int): default 1,000, a thread each.  At the limit the longest idle one
            makes room; if all are busy the newcomer is answered 503.
        max_age (float): seconds, default 300, after which a connection is closed with a reply, so
            that friends spread over new instances, as gRPC's MAX_CONNECTION_AGE does.

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
        token: Tokens = False,
        secretKey: SecretKey = False,
        *,
        origins: Sequence[str] = (),
        max_body: int = 8 << 20,
        max_head: int = 32 << 10,
        max_headers: int = 100,
        read_timeout: float = 20,
        idle_timeout: float = 60,
        max_connections: int = 1000,
        max_age: float = 300,
    ) -> None:
        super().__init__(name, debug, token, secretKey, origins, max_body)
        self.port = port
        self.host = host
        self.max_head = _checked_number('max_head', max_head)
        self.max_headers = _checked_number('max_headers', max_headers)
        self.read_timeout = _checked_seconds('read_timeout', read_timeout)
        self.idle_timeout = _checked_seconds('idle_timeout', idle_timeout)
        self.max_connections = _checked_number('max_connections', max_connections)
        self.max_age = _checked_seconds('max_age', max_age)
        self._listener: _Listener | None = None
        self._has_warned = False

    def __repr__(self) -> str:
        listener = self._serving()
        where = f'at {listener.url()}' if listener else '(it does not serve)'
        return f'<Microservice {self.name!r} {where}, {_count(len(self._rules), "rule")}>'

    def _serving(self) -> _Listener | None:
        """The listener, if it has not ended; one that a fork left behind here is released."""
        listener = self._listener
        if listener and listener.clock.process != os.getpid():
            listener.close()
        return None if listener is None or listener.has_ended else listener

    @property
    def address(self) -> str:
        """The URL for a Friend on this machine; RuntimeError while it does not serve."""
        listener = self._serving()
        if listener is None:
            raise RuntimeError(f'{self.name} does not serve: call start() or run() first')
        return listener.url()

    @property
    def wsgi(self) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
        """The WSGI application (PEP 3333): ``application = Micro.wsgi``."""
        self._warn_once()
        return functools.partial(_wsgi, self)

    @property
    def asgi(self) -> Callable[..., Any]:
        """The ASGI 3 application: ``uvicorn app1:Micro.asgi``."""
        self._warn_once()

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await _asgi(self, scope, receive, send)

        return application  # a function: uvicorn takes another callable for ASGI 2

    def _warn_once(self) -> None:
        """Warn where others do the listening, or nobody does: once, however often it is asked."""
        if not self._has_warned:
            self._has_warned = True
            self._warn('localhost')

    def _warn(self, host: str) -> None:
        """Say which tokens guard nothing, and which rules anyone who reaches *host* can call."""
        for path in set(self.token) - set(self._rules):
            near = _nearest(path, self._rules)
            # No similar rule: the key may be the token itself, so do not log it.
            hint = f'{path!r}: did you mean {near!r}?' if near else 'for it'
            _log('warning', 'a token is set, and there is no rule %s', hint)
        is_open = self._open_rules()
        if self._keys is None:
            _log('warning', 'secretKey=None, so no call is signed: %s', _UNSET)
        missing = [p for p in is_open if None in (self._rules[p].token, self._tokens.for_all)]
        if missing:
            _log('warning', 'token=None, so anyone can call %s: %s', ', '.join(missing), _UNSET)
        if _is_loopback(host):
            return
        if is_open:
            advice = "the network can call %s at %s: give each rule a token, or host='127.0.0.1'"
            _log('warning', advice, ', '.join(is_open), host)
        if self._is_in_debug():
            advice = "debug sends tracebacks to all at %s: leave it out, or host='127.0.0.1'"
            _log('warning', advice, host)

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
            port, host, debug: until it stops, in place of those given to the class.
            ssl_context: serve https by it.
            reuse_port: let other processes that say so too share the port (Linux, BSD).

        Raises:
            OSError: it cannot listen there; the message says where and why.
            RuntimeError: it serves already.
        """
        self._take_over(port)
        with _lock_of_process('start and stop'):
            self._open(port, host, debug, ssl_context, reuse_port, background=True)
        return self

    def _take_over(self, port: int | None) -> None:
        """In a notebook, end the service that the cell started before, and keep its rules."""
        for older in list(_served) if hasattr(sys, 'ps1') else ():
            listener = older._serving()
            where = listener.server_port if listener and older is not self else None
            if older.name == self.name and where == (self.port if port is None else port):
                older.stop()
                tokens = older._tokens
                for path, rule in older._rules.items():
                    token = tokens.by_rule.get(path) or rule.token
                    token = token or (not self._tokens.for_all and tokens.for_all)
                    self._rules.setdefault(path, rule._replace(token=token))
        _served.add(self)

    def _open(
        self, port: Any, host: Any, debug: Any, ssl_context: Any, reuse_port: bool, background: bool
    ) -> _Listener:
        """Make the listener; OSError says where it cannot be, and why."""
        if self._serving():
            raise RuntimeError(f'{self.name} serves already, at {self.address}: call stop() first')
        _checked_context(ssl_context, 'SERVER')
        where = (self.host if host is None else host, self.port if port is None else port)
        try:
            if '/' in where[0] or where[0].count(':') == 1:  # a URL, or with a port
                raise TypeError
            self._listener = listener = _Listener(self, where, ssl_context, reuse_port)
        except TypeError:
            forms = "host is such as '127.0.0.1', and port such as 5000"
            raise TypeError(f'{forms}, not {where[0]!r} and {where[1]!r}') from None
        except (OSError, OverflowError) as error:
            number = getattr(error, 'errno', None) or errno.EINVAL
            why = getattr(error, 'strerror', None) or error
            if number == errno.EADDRINUSE:
                why = f'{why}: stop what listens there, or take another port (0: a free one)'
            raise OSError(number, f'cannot listen on {_netloc(*where)}: {why}') from None
        self._debug_of_start, self._looks_at = debug, 0.0
        try:
            if not self._rules:
                advice = '%s has no rules: put @Micro.typing above functions, and import them first'
                _log('warning', advice, self.name)
            self._warn(listener.server_name)
            rules = _count(len(self._rules), 'rule')
            _log('info', '%s listens on %s, %s', self.name, listener.url(), rules)
            if background:
                listener.thread.start()
            else:
                listener.thread = threading.current_thread()
        except BaseException:  # no more threads, or a signal
            listener.close()
            raise
        return listener

    def stop(self, grace: float = 10) -> None:
        """Stop: calls in flight are finished, new ones refused; then everything is released.

        It may be called at any time, from anywhere, more than once.  In a rule it returns at
        once, and the service stops after the reply.

        Args:
            grace: seconds, default 10, until what still runs is cut off.
        """
        listener = self._serving()
        if listener is None:
            self._loop.close()
            return
        listener.stop(grace)
        threads = [connection.thread for connection in listener.connections.copy()]
        if threading.current_thread() in (*threads, self._loop.thread, listener.thread):
            return
        # Not join() or wait(): a signal's handler may raise or call `stop` in the middle of them,
        # and they do not survive it (in Python 3.11 join() forgets the thread).  A handler may
        # even interrupt start(): the thread then has no ident yet, and will see that it is to stop.
        while listener.thread.ident and not listener.has_ended:
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

        process = os.getpid()

        def stop(number: int, _: Any) -> None:
            if os.getpid() != process:  # a forked child inherits the handler, but does not serve
                raise KeyboardInterrupt
            listener.signal = signal.Signals(number).name
            listener.stop(0 if listener.stop_by else 10)

        before: dict[signal.Signals, Any] = {}
        wakeup: int | None = None
        self._take_over(port)
        with _lock_of_process('start and stop'):
            listener = self._open(port, host, debug, ssl_context, reuse_port, background=False)
        try:
            if _in_main_thread():
                # Signals write to `alarm`, too: one that comes just before the wait is not lost.
                _wakeups.append(listener.alarm.fileno())
                wakeup = signal.set_wakeup_fd(_wakeups[-1], warn_on_full_buffer=False)
                for number in (signal.SIGINT, signal.SIGTERM):
                    if signal.getsignal(number) is not signal.SIG_IGN:
                        before[number] = signal.signal(number, stop)
            where = f'{_netloc(listener.server_name, listener.server_port)}, here {listener.url()}'
            _say(f'{self.name}: listening on {where}; Ctrl-C stops it', sys.stdout)
            listener.serve()
        finally:
            for number in before:
                signal.signal(number, before[number] or signal.SIG_DFL)
            if wakeup is not None:
                _wakeups.pop()
                with contextlib.suppress(OSError, ValueError):  # the one before is closed
                    signal.set_wakeup_fd(-1)
                    signal.set_wakeup_fd(wakeup)
            listener.close()

    def __enter__(self) -> Microservice:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()


SanicApp = Microservice  # the original's other name for it


# ---------------------------------------------------------------------------------------- Friend

_Setting = collections.namedtuple('_Setting', 'method token timeout')
_NO_SETTING = _Setting('POST', None, None)

# A request that raises one of these in `sendall` did not leave whole, so no function can run.
_NOT_SENT = (ConnectionError, getattr(sys.modules.get('ssl'), 'SSLError', ConnectionError))


# Alerts of a handshake: the service read no request.
_REFUSED_HANDSHAKE = 'ALERT_(.*CERT|UNKNOWN_CA|HANDSHAKE|ACCESS|DECRYPT_ERROR|PROTOCOL|NO_APPL)'


class _Link:
    """A kept-alive connection to a service."""

    def __init__(self, sock: Any, max_body: int) -> None:
        self.reader = _Reader(_parse_reply_head, _STATUS_LINE, 64 << 10)
        self.timed = _TimedSocket(sock, _clock_of_process())
        self.max_body = max_body
        self.retire_at = 0.0
        self.poll = select.poll() if hasattr(select, 'poll') else None  # Windows has none
        if self.poll:
            self.poll.register(sock, select.POLLIN)
        self.pending: Callable[[], int] = getattr(sock, 'pending', int)  # bytes that TLS holds
        weakref.finalize(self, sock.close)  # not __del__: a collector may take the socket first

    def is_usable(self) -> bool:
        """Whether the peer keeps it open, and has said nothing unasked."""
        sock, clock = self.timed.sock, self.timed.clock
        # A link of another process was inherited over a fork.  At exit the clock stands still.
        is_ours = clock.process == os.getpid() and not sys.is_finalizing()
        if not is_ours or sock.fileno() < 0 or time.monotonic() > self.retire_at:
            return False
        if self.poll:
            return not self.poll.poll(0)
        return not select.select([sock], (), (), 0)[0]  # fails on descriptors over 1,023

    def exchange(self, message: bytes, deadline: float) -> tuple[_ReplyHead, bytes]:
        """Send a request and give its reply.

        Raises a MicroconnectError that tells what failed, and whether the request was sent.
        """
        timed, reader = self.timed, self.reader
        unsent: OSError | None = None
        is_late = False
        timed.begin(deadline)
        try:
            try:
                timed.sendall(message)
            except _NOT_SENT as error:
                # A service that refuses what it has not read answers, and closes.
                unsent, is_late = error, not timed.finish()
                timed.begin(min(deadline, time.monotonic() + 1))
            reader.feed(timed.recv(_FIRST_READ))
            if not reader.buffer:
                raise OSError('the connection ended before a reply')
            reply = reader.head()
            while reply is None or reply.status < 200:  # interim: the final one follows
                if reply is None:
                    reader.feed(timed.recv(_PIECE))
                reply = reader.head()
            body = reader.body(reply.length, self.max_body) if reply.length else b''
            while body is None:
                reader.feed(timed.recv(_PIECE))
                body = reader.body(reply.length, self.max_body)
            if reader.has_ended and not timed.finish():
                raise OSError('late')  # the clock ended the body, not the peer
        except (OSError, MicroconnectError) as error:
            if not timed.finish() and not is_late:
                # The connection is still open: perhaps it was not the connection that failed.
                is_late, unsent = True, None
            is_plain = reader.buffer[:2] == b'\x15\x03'  # an alert of TLS in answer to HTTP
            reason = '' if reader.buffer else str(getattr(error, 'reason', ''))
            if not self.retire_at and (is_plain or re.search(_REFUSED_HANDSHAKE, reason)):
                # TLS 1.3 reports a refused client certificate after the client's handshake.
                why = 'https:// instead of http://' if is_plain else 'the right certificate'
                raise Unreachable(f'the service refused the TLS handshake: {why}?') from None
            raise _call_failure(error, unsent, is_late) from None
        # Bytes after the reply are not the next call's reply: do not reuse the connection.
        is_kept = timed.finish() and reply.keep_alive and not reader.buffer and not self.pending()
        self.retire_at = time.monotonic() + reply.keep_alive if is_kept else 0.0
        return reply, body


def _call_failure(error: Exception, unsent: OSError | None, is_late: bool) -> MicroconnectError:
    """The error of a call that *error* ended; *unsent* kept its request from leaving whole."""
    if unsent and is_late:
        return CallTimeout('the call could not be sent in time', sent=False)
    if unsent:
        return ConnectionLost(f'the call could not be sent: {unsent}', sent=False)
    if is_late:
        return CallTimeout('no full reply in time; the call may have run')
    if isinstance(error, MicroconnectError):
        kind = TooLarge if error.status == 413 else BadReply
        return kind(f'no reply, but {error}; the call may have run', sent=True)
    return ConnectionLost(f'{error}; the call may have run')


_Proxy = collections.namedtuple('_Proxy', 'host port headers')


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
    if parts.scheme != 'http' or not parts.hostname:  # do not show it: it may hold a password
        raise ValueError(f'the {scheme} proxy of the environment is no http:// URL')
    headers: Headers = ()
    if parts.username is not None:
        user = urllib.parse.unquote(f'{parts.username}:{parts.password or ""}')
        headers = (('Proxy-Authorization', f'Basic {base64.b64encode(user.encode()).decode()}'),)
    return _Proxy(parts.hostname, port, headers)


class _Address:
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
        self.ssl_context = _checked_context(ssl_context, 'CLIENT')
        self.netloc = _netloc(self.host.partition('%')[0], self.port)
        self.proxy = _proxy_for(self.scheme, self.host, self.netloc)
        self.via = f'the proxy {_netloc(*self.proxy[:2])}' if self.proxy else ''
        fields = (('Host', self.netloc), ('User-Agent', f'microconnect/{__version__}'))
        if self.proxy and self.scheme == 'http':
            base, fields = f'http://{self.netloc}{base}', fields + self.proxy.headers
        head = functools.partial(_request_head, base, fields)
        self.head = functools.lru_cache(maxsize=256)(head)
        self.links: collections.deque[_Link] = collections.deque()
        self.pause = self.rests_until = 0.0

    def call(
        self,
        method: str,
        rule: str,
        body: bytes,
        deadline: float,
        connect_by: float,
        signed: Headers = (),
    ) -> tuple[_ReplyHead, bytes]:
        """Make a call; MicroconnectError tells what failed."""
        head = self.head(method, rule)
        if signed:
            head += _field_lines(signed)
        message = b'%bContent-Length: %d\r\n\r\n%b' % (head, len(body), body)
        while True:
            try:
                link, is_fresh = self.links.pop(), False
            except IndexError:
                link, is_fresh = self._connect(connect_by), True
            if not (is_fresh or link.is_usable()):
                link.timed.close()
                continue
            if signed:
                link.reader.max_cached = 0
            try:
                reply, data = link.exchange(message, deadline)
            except BaseException as error:
                link.timed.close()
                if is_fresh or not isinstance(error, ConnectionLost) or error.sent:
                    if signed and isinstance(error, MicroconnectError):
                        error.sent = True  # whoever is on the way can call, and then cause it
                    raise
                continue  # the connection was closed while idle
            if link.retire_at:
                self.links.append(link)
                if len(self.links) > 1:
                    self._prune()
            else:
                link.timed.close()
            # A 408 that closes a kept connection: it was idle, and the call was not read.
            if is_fresh or reply.keep_alive or reply.status != 408:
                return reply, data

    def _prune(self) -> None:
        """Close the link that is idle the longest, if it is past its time."""
        with contextlib.suppress(IndexError):  # another thread took it meanwhile
            if self.links[0].retire_at < time.monotonic():
                self.links.popleft().timed.close()

    def close(self) -> None:
        with contextlib.suppress(IndexError):  # none is left; other threads may take some, too
            while True:
                self.links.pop().timed.close()

    def _connect(self, deadline: float) -> _Link:
        """Connect, through a proxy and by TLS if need be: http.client knows how."""
        host, port = self.proxy[:2] if self.proxy else (_loopback(self.host), self.port)
        connection: Any
        if self.scheme == 'https':
            connection = http.client.HTTPSConnection(host, port, context=self.ssl_context)
            if self.proxy:
                connection.set_tunnel(self.host, self.port, dict(self.proxy.headers))
        else:
            connection = http.client.HTTPConnection(host, port)
        clock = _clock_of_process()
        dialed: list[_TimedSocket] = []

        def dial(where: tuple[str, int], *_: Any) -> socket.socket:
            sock = _dial(where[0], where[1], deadline)
            dialed.append(_TimedSocket(sock, clock))
            dialed[0].begin(deadline)  # a proxy may answer byte by byte
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            return sock

        # A private name: by itself http.client gives each address of a name the whole time.
        connection._create_connection = dial
        try:
            connection.connect()
            return _Link(connection.sock, self.max_body)
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            connection.close()
            with contextlib.suppress(OSError):
                for one in dialed:  # what http.client still holds of it would keep it open
                    one.sock.shutdown(socket.SHUT_RDWR)
            is_tls = getattr(error, 'library', None) == 'SSL'
            why = str(getattr(error, 'strerror', None) or error)
            is_late = isinstance(error, socket.timeout) or not all(one.finish() for one in dialed)
            why = 'no answer in time' if is_late else why
        finally:
            for one in dialed:
                one.finish()
        # After the except clause: the context of the error would keep the socket open.
        ask = 'is it running on that port? The default of a service is 5000'
        if is_tls:  # without the place in the source of Python
            why = re.sub(r'\[.*?\] | \(_ssl\.c.*\)', '', why)
            ask = 'does it serve https, with a certificate that ssl_context trusts?'
        raise Unreachable(f'cannot connect to {self.via or self.netloc}: {why}; {ask}')


def _dial(host: str, port: int, deadline: float) -> socket.socket:
    """Connect to one address of *host* after the other: they share the time."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # Few listen on ::1, which stands first for localhost: Windows would try it for two seconds.
    found.sort(key=lambda one: one[4][0] == '::1')
    failure = OSError(f'{host} has no address')
    for tried, (*_, (address, _, *scope)) in enumerate(found):
        left = (deadline - time.monotonic()) / (len(found) - tried)
        zone = f'%{scope[1]}' if scope and scope[1] else ''  # of a link-local IPv6 address
        try:
            return socket.create_connection((f'{address}{zone}', port), max(left, 0.001))
        except OSError as error:
            failure = error
    raise failure


class _InProcess:
    """A service of this process as an address: encoded, checked and decoded as ever."""

    def __init__(self, micro: Microservice) -> None:
        getattr(micro, '_warn_once', bool)()
        self.micro = micro
        self.address = f'{micro.name} (in process)'
        self.via = ''
        self.pause = self.rests_until = 0.0

    def call(
        self,
        method: str,
        rule: str,
        body: bytes,
        deadline: float,
        connect_by: float,
        signed: Headers = (),
    ) -> tuple[_ReplyHead, bytes]:
        headers = dict(_JSON + signed)
        slot: list[Any] = [None]
        before = _caught.set(slot)
        try:
            status, fields, reply = self.micro.answer(method, rule, headers, body)
        finally:
            _caught.reset(before)
        told = _joined(fields)
        is_believed = not signed or 'signature' in told
        try:
            if status == 500 and slot[0] is not None and is_believed:  # for pytest and pdb
                raise _error_from_reply(status, reply) from slot.pop()
        finally:
            slot.clear()  # a task or thread that outlives the call keeps its context
        return _ReplyHead(status, len(reply), 0.0, '', '', told), reply

    def close(self) -> None:
        pass


def _address_of(address: Any, ssl_context: Any, max_body: int) -> Any:
    if hasattr(type(address), 'aanswer'):  # a service, perhaps of another copy of this module
        return _InProcess(address)
    return _Address(address, ssl_context, max_body)


class _Workers:
    """Daemon threads for the calls of `asend`: started as needed, gone when idle for a while."""

    def __init__(self) -> None:
        import queue

        self.process = os.getpid()
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.nothing_came = queue.Empty
        self.idle: collections.deque[None] = collections.deque()  # one for each idle thread

    def do(self, call: Callable[[], None]) -> None:
        try:
            self.idle.pop()  # claims a thread
        except IndexError:
            threading.Thread(target=self._work, daemon=True).start()
        self.calls.put(call)

    def _work(self) -> None:
        while True:
            with contextlib.suppress(self.nothing_came):
                self.calls.get(timeout=_WORKER_IDLE)()
                self.idle.append(None)
                continue
            try:
                self.idle.pop()
                return
            except IndexError:
                pass  # it was claimed this moment: a call comes


_WORKER_IDLE = 5.0  # seconds
_workers: _Workers | None = None


def _workers_of_process() -> _Workers:
    global _workers
    if _workers is None or _workers.process != os.getpid():
        _workers = _Workers()
    return _workers


def _settle(future: Any, value: Any, error: BaseException | None) -> None:
    if future.done():
        return  # it was cancelled
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


class Friend:
    """A service that this process calls.  Threads may share one.

    You call: `send`, or `asend` in async code, `within` before them; `setRule`; `ping` and `wait`;
    `close`.

    Args:
        name (str): what you call it.
        address: 'http://host:port', 'host:port' or 'https://...', with a path prefix if need be;
            a list of them, over which calls are spread; or a Microservice of this process.
        token (dict, str or list): rule -> token, or one for every rule; of a list the first.
        secretKey (str, bytes or a list of them): that of the service.  Calls are signed by it, and
            only replies that are signed are believed.  Of a list the first signs, any verifies.
        timeout (float): seconds for a whole call, connecting included, default 60.
        ssl_context: for https, and only that; default: ssl.create_default_context().
        max_body (int): bytes of a request's or reply's body, default 8 MiB.

    Raises:
        TypeError, ValueError: for what cannot be an address, a token or a timeout.
    """

    holds_tokens = True  # see _json_form
    token = _token_property
    secretKey = _key_property
    _tokens: _Tokens

    def __init__(
        self,
        name: str,
        address: str | Microservice | Sequence[str | Microservice],
        token: Tokens = None,
        secretKey: SecretKey = False,
        *,
        timeout: float = 60,
        ssl_context: ssl.SSLContext | None = None,
        max_body: int = 8 << 20,
    ) -> None:
        if isinstance(address, str) and '://' in str(name) and '://' not in address:
            raise ValueError("write Friend('app1', 'http://host:5000'): the name, then the address")
        self.name = name
        self.token = token
        self._keys = _keys_of(secretKey)
        if self._keys is None:
            _log('warning', 'secretKey=None, so calls to %s are not signed: %s', name, _UNSET)
        self.timeout = _checked_seconds('timeout', timeout)
        self.max_body = _checked_number('max_body', max_body)
        several = address if isinstance(address, (list, tuple)) else (address,)
        if not several:
            raise ValueError('address is an empty list: give at least one')
        self._addresses: list[Any] = [_address_of(one, ssl_context, max_body) for one in several]
        self._where = ', '.join(one.address for one in self._addresses)
        self._turn = itertools.count()
        self._settings: dict[str, _Setting] = {}
        self._within: float | None = None  # seconds

    def __repr__(self) -> str:
        return f'<Friend {self.name!r} at {self._where}>'

    def __reduce__(self) -> Any:
        raise TypeError('a Friend holds connections and is not copied: make one in each process')

    def setRule(
        self,
        rule: str,
        method: str | None = None,
        token: Token = None,
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
        token = _checked_token(rule, token)
        seconds = None if timeout is None else _checked_seconds('timeout', timeout)
        self._settings[path] = _Setting(method or 'POST', token, seconds)

    def within(self, timeout: float) -> Friend:
        """This friend, with *timeout* seconds for a call: ``aFriend.within(2.5).send('/rule')``.

        It shares connections, tokens and settings, but for their timeouts.
        """
        kind: Any = type(self)
        friend: Any = object.__new__(_view_of(kind))
        friend._origin, friend._within = self, _checked_seconds('timeout', timeout)
        return friend  # type: ignore[no-any-return]

    def send(self, rule: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function under *rule* and give what it returns.

        Every further argument is the remote function's, whatever its name.

        Returns:
            The value; a tuple where the function returned a tuple.

        Raises:
            MicroconnectError: for each way a call can fail; see the table at the top.
        """
        if _in_async_rule.get() and _would_block_rules():
            raise RuntimeError('in an async rule, `await asend(...)`: `send` would block them all')
        path = rule if isinstance(rule, str) and rule[:1] == '/' else _path_of(rule)
        setting = self._settings.get(path, _NO_SETTING)
        tokens = self._tokens
        token = setting.token or tokens.by_rule.get(path) or tokens.for_all
        try:
            body = b'{"args":%b,"kwargs":%b,"token":%b}' % (
                _encode(args, 'args'),
                _encode(kwargs, 'kwargs') if kwargs else b'{}',
                _encode(token[0] if type(token) is tuple else token, 'token') if token else b'null',
            )
        except (TypeError, ValueError) as error:
            raise BadCall(str(error)).at(path, self._where) from None
        if len(body) > self.max_body:
            too_large = _over_max_body(f'the call of {len(body)} bytes', self.max_body)
            raise too_large.at(path, self._where)
        return self._call(path, setting, body)

    async def asend(self, rule: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call as `send` does, without blocking the event loop.

        Each call in flight holds a thread.  Cancelling it leaves the call itself to end alone.
        """
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError('asend needs a running event loop of asyncio; use send') from None
        future = loop.create_future()

        def call(future: Any) -> None:
            value, error = None, None
            try:
                value = self.send(rule, *args, **kwargs)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_settle, future, value, error)
            del error, future  # the traceback holds this frame

        try:
            _workers_of_process().do(functools.partial(call, future))
        except RuntimeError as no_thread:
            raise Busy(f'no call is possible: {no_thread}').at(rule, self._where) from None
        try:
            return await future
        finally:
            del future  # it holds the error, whose traceback holds this frame

    def ping(self, timeout: float = 5) -> bool:
        """Whether HTTP is answered at any of the addresses, within *timeout* seconds."""
        return not self._why_silent(time.monotonic() + _checked_seconds('timeout', timeout))

    def wait(self, timeout: float = 60) -> None:
        """Wait until `ping`; CallTimeout, with the reason, if not within *timeout* seconds."""
        deadline = time.monotonic() + _checked_seconds('timeout', timeout)
        why = told = self._why_silent(deadline)
        while told:
            left = deadline - time.monotonic()
            if left <= 0:
                text = f'{self._where} did not answer within {timeout} s: {why}'
                raise CallTimeout(text, sent=False, rule='/', address=self._where)
            time.sleep(min(left, 0.1))
            told = self._why_silent(deadline)
            if left > 1:  # the last attempts have no time for a real reason
                why = told

    def _why_silent(self, deadline: float) -> str:
        """Why none of the addresses answers; an empty string where one does."""
        reasons: list[str] = []
        for address in self._addresses:
            now = time.monotonic()
            by = now + (deadline - now) / (len(self._addresses) - len(reasons))
            try:
                status = address.call('GET', '/', b'', by, by)[0].status
                if status < 500 and status != 408:
                    return ''
                reasons.append(f'it answered {status}')
            except MicroconnectError as error:
                reasons.append(str(error).partition('; the call may')[0])
        return '; '.join(reasons)

    def close(self) -> None:
        """Close the idle connections; a later call opens new ones."""
        for address in self._addresses:
            address.close()

    def __enter__(self) -> Friend:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _call(self, rule: str, setting: _Setting, body: bytes) -> Any:
        """Call at one address after the other, until the call may have run at one."""
        now = time.monotonic()
        seconds = self._within or setting.timeout or self.timeout
        deadline = now + seconds
        addresses = self._addresses if len(self._addresses) == 1 else self._in_turn(now)
        failures: list[MicroconnectError] = []
        for address in addresses:
            # An address that swallows packets must not use up the time of the others.
            connect_by = now + (deadline - now) / (len(addresses) - len(failures))
            try:
                signed: Headers = ()
                if self._keys:
                    parts = _call_parts(setting.method, rule)
                    signed = self._keys.sign(parts, _JSON[0][1], body, time.time())
                reply, data = address.call(setting.method, rule, body, deadline, connect_by, signed)
                if signed:
                    _check_reply(self._keys, signed[-1][1], reply, data)
                if address.pause and reply.status not in (408, 503):
                    address.pause = address.rests_until = 0.0
                return _returned(reply, data, address.via)
            except MicroconnectError as error:
                if isinstance(error, CallTimeout):
                    error.args = (str(error).replace('in time', f'within timeout={seconds:g} s'),)
                error.at(rule, address.address)
                if error.sent or not isinstance(error, ConnectionError) or len(addresses) == 1:
                    raise
                failures.append(error)
            now = time.monotonic()
            address.pause = min(max(address.pause * 2, 0.1), 5.0)  # longer each time that it fails
            address.rests_until = now + address.pause
            _log('info', '%s rests for %.1f s: %s', address.address, address.pause, failures[-1])
        kind = Busy if any(isinstance(error, Busy) for error in failures) else Unreachable
        raise kind('no address took it: ' + '; '.join(map(str, failures))).at(rule, self._where)

    def _in_turn(self, now: float) -> list[Any]:
        """The addresses in the order to try them: those that failed lately come last."""
        addresses = sorted(self._addresses, key=lambda one: one.rests_until > now)
        awake = sum(one.rests_until <= now for one in addresses) or len(addresses)
        first = next(self._turn) % awake
        return addresses[first:awake] + addresses[:first] + addresses[awake:]


class _View:
    """A friend by `within`: all but its time is that of the friend that it was made of."""

    # Not in Friend: a class with it has slower attributes.
    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['_origin'], name)


@functools.lru_cache(maxsize=None)
def _view_of(kind: type) -> type:
    return kind if issubclass(kind, _View) else type(kind.__name__, (_View, kind), {})


# ----------------------------------------------------------------------------------------- shell
# `python3 microconnect.py`, or `-m microconnect`.  An import loads nothing of what it needs.

_HELP = """\
Serve a service, or call one.

  python3 microconnect.py serve app1.py --port 5000
  python3 microconnect.py send http://127.0.0.1:5000 /helloworld 'Mr. Developer'
  python3 microconnect.py send http://127.0.0.1:5000 /divide 7 b=2 floor=true
  python3 microconnect.py rules http://127.0.0.1:5000
  python3 microconnect.py ping http://127.0.0.1:5000 --wait 30

An argument is JSON if it can be read as such, else text; - reads it from standard input.  The exit
status is 0, or 1 if the service or the call failed, or 2 if the command is wrong.
"""


def _shell(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and give its exit status."""
    parser = _command_line()
    options, more = parser.parse_known_args(arguments)
    # argparse ends the arguments of a call at the first option; what follows belongs to them.
    if more and (options.run is not _send or any(re.match('-[^0-9]', word) for word in more)):
        parser.error(f'unrecognized arguments: {" ".join(more)}')
    if options.run is _serve:  # not below: what the module raises is shown with its traceback
        options.target = _load_service(options.target, parser.error)
    try:
        options.more = more
        options.run(options)
        return 0
    except KeyboardInterrupt:
        return 130  # as a shell counts a SIGINT
    except (MicroconnectError, OSError) as error:
        status, text = 1, str(error)
    except (TypeError, ValueError) as error:  # what cannot be an address, a token, a service
        status, text = 2, str(error)
    _say(f'microconnect: {_printable(" ".join(text.split()))}', sys.stderr)
    return status


def _command_line() -> Any:
    import argparse

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=_HELP, formatter_class=raw)
    commands = parser.add_subparsers(metavar='COMMAND', required=True)

    def add(run: Any, name: str, argument: str, what: str) -> Any:
        command = commands.add_parser(name, help=what, description=what)
        command.set_defaults(run=run)
        command.add_argument('target', metavar=argument)
        return command.add_argument

    serve = add(_serve, 'serve', 'app1:Micro|app1.py', 'serve the Microservice of a module or file')
    serve('--host', help='where to listen; default: where the service says')
    serve('--port', type=int, help='0 takes a free one')
    serve('--debug', action='store_true', default=None, help='print calls, send tracebacks')
    serve('--reuse-port', action='store_true', help='share the port with other processes')
    send = add(_send, 'send', 'URL', 'call a rule, and print the value that it returns as JSON')
    rules = add(_list_rules, 'rules', 'URL', 'list the rules that a service publishes')
    ping = add(_ping, 'ping', 'URL', 'ask whether a service answers')
    for option in (send, rules, ping):
        told = 'default: $MICROCONNECT_TOKEN, which ps does not show'
        option('--token', default=_environ('TOKEN'), help=told)
        option('--timeout', type=float, default=60, metavar='SECONDS', help='default: 60')
        option('--cacert', metavar='FILE', help='the certificate to trust, for https')
    send('rule', metavar='/rule')
    send('arguments', metavar='ARG|key=ARG', nargs='*')
    send('--raw', action='store_true', help='print a text as it is, not as JSON')
    ping('--wait', type=float, metavar='SECONDS', help='wait until it answers')
    return parser


def _serve(options: Any) -> None:
    options.target.run(options.port, options.host, options.debug, reuse_port=options.reuse_port)


def _load_service(target: str, fail: Callable[[str], Any]) -> Any:
    """Give the Microservice that *target* names; *fail* is told why there is none."""
    path, _, wanted = target.rpartition(':')
    if not (path and wanted.isidentifier()):  # it names a module alone, perhaps C:\app1.py
        path, wanted = target, ''
    module = _load_module(path, fail)
    # Ask the type: a lazy object or a mock may answer to any attribute.
    services = {k: v for k, v in vars(module).items() if hasattr(type(v), 'aanswer')}
    if not wanted and len(services) == 1:
        wanted = next(iter(services))
    if wanted not in services:
        names = ', '.join(f'{path}:{name}' for name in sorted(services))
        fail(f'name one of {names}' if names else f'there is no Microservice in {path}')
    return services[wanted]


def _load_module(path: str, fail: Callable[[str], Any]) -> Any:
    import importlib.util

    is_file = path.endswith('.py')
    sys.path.insert(0, os.path.abspath(os.path.dirname(path) if is_file else ''))
    if is_file:
        if not os.path.isfile(path):
            fail(f'there is no file {path}')
        name = os.path.basename(path)[:-3]
        spec: Any = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(name, module)
        spec.loader.exec_module(module)
        return module
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name not in (path, path.partition('.')[0]):
            raise  # the module imports another one that is missing
        fail(f'there is no module {path} in {sys.path[0]}')


def _friend(options: Any) -> Friend:
    context = None
    if options.cacert:
        import ssl

        try:
            context = ssl.create_default_context(cafile=options.cacert)
        except OSError as error:
            raise ValueError(f'--cacert {options.cacert}: {error.strerror or error}') from None
    return Friend(
        'service',
        options.target,
        options.token,
        _environ('SECRET_KEY') or False,
        timeout=options.timeout,
        ssl_context=context,
    )


def _environ(name: str) -> str | None:
    """A secret from the environment, which ps does not show."""
    return os.environ.get(f'MICROCONNECT_{name}') or None


def _argument(text: str) -> Any:
    text = sys.stdin.read().rstrip('\n') if text == '-' else text
    try:
        return _decode(text.encode())
    except ValueError:
        return text


def _send(options: Any) -> None:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in options.arguments + options.more:
        found = re.fullmatch(r'([^\W\d]\w*)=(.*)', text, re.S)
        if found:
            kwargs[found.group(1)] = _argument(found.group(2))
        else:
            args.append(_argument(text))
    with _friend(options) as friend:
        value = friend.send(options.rule, *args, **kwargs)
    coding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    text = value
    if not (options.raw and isinstance(value, str)):
        text = json.dumps(value, ensure_ascii=not coding.lower().startswith('utf'))
    print(text.encode(coding, 'backslashreplace').decode(coding))  # a lone surrogate by its escape


def _list_rules(options: Any) -> None:
    with _friend(options) as friend:
        try:
            told = friend.send('/rules')
        except UnknownRule:
            advice = "Micro.typing('/rules')(Micro.rules) in the service publishes them"
            raise BadReply(f'{options.target} does not tell its rules: {advice}') from None
    try:
        width = max((len(rule + facts['signature']) for rule, facts in told.items()), default=0)
        for rule, facts in told.items():
            notes = ['[token]'] if facts['token'] else []
            notes += [f'[{", ".join(facts["methods"])}]'] if facts['methods'] != ['POST'] else []
            call = rule + facts['signature']
            print(_printable(f'{call:{width}}  {" ".join([*notes, facts["doc"]])}'.rstrip()))
    except (AttributeError, KeyError, TypeError):
        raise BadReply(f'what {options.target}/rules gives is no list of rules') from None


def _ping(options: Any) -> None:
    with _friend(options) as friend:
        if options.wait is not None:
            friend.wait(options.wait)
        elif why := friend._why_silent(time.monotonic() + min(friend.timeout, 5)):
            raise Unreachable(why)
    print(f'{options.target} answers')


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


if __name__ == '__main__':
    sys.exit(_shell())
