# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) the microconnect authors. The full licence text is at the end of this file.
# ruff: noqa: BLE001 - other people's functions, handlers and values may raise anything
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
class), `base` (the nearest builtin class), `message`, `traceback` (in debug only), and of an
OSError `errno` (its name, such as ENOENT) and `strerror`}.
`Friend.send` raises a failure, and never returns it:

    what happened                                 status         raised           did it run?
    refused, DNS, TLS: never sent                                Unreachable      no
    connection lost after sending                                ConnectionLost   perhaps
    no full reply in time                                        CallTimeout      perhaps
    the reply is malformed or not believed                       BadReply         perhaps
    malformed request, not application/json       400, 415 ...   BadCall          no
    arguments do not fit the signature            422            BadArguments     no
    wrong token or signature; a foreign page      401, 403       Forbidden        no
    no such rule, wrong method                    404, 405       UnknownRule      no
    request too large / reply too large           413, 431       TooLarge         no / yes
    too busy, stopping, or the request too slow   503, 408       Busy             no
    the function raised                           500            RemoteError      yes
    a proxy or router says 502, 503               502, 503       ConnectionLost, Busy   perhaps
    a proxy or router says 504, 408               504, 408       CallTimeout      perhaps

A `secretKey` signs calls and replies.  It is an object with the four methods that `_checked_signer`
describes; `Keys` in examples/signed/signing.py is one (RFC 9421, a shared secret).

Limits.  A token is not encryption: give an `ssl_context` where the network is not yours.  A tuple
arrives as several values, so a tuple of one arrives as its element.  A class arrives as a dict of
its public attributes.  The keys of a dict arrive as strings.  NaN and the infinities have no JSON
form.  There is no discovery, no queue and no broker.  A call in progress holds a thread.
"""

from __future__ import annotations

import _thread
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
import hmac
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
from http.client import HTTPConnection, HTTPException  # as they are now: test tools replace them

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without the cost of importing typing
if TYPE_CHECKING:
    import ssl
    from typing import Any, Callable, Iterable, Iterator, Mapping, Self, Sequence, TypeVar

    Function = TypeVar('Function', bound=Callable[..., Any])
    Headers = tuple[tuple[str, str], ...]
    Fields = Mapping[str, str]
    Seconds = float | None
    Answer = tuple[int, Headers, bytes]
    Token = str | Sequence[str] | bool | None  # False: none is wanted
    Tokens = Token | Mapping[str, Token]

__version__ = '0.1.0'
__all__ = [
    'BadArguments', 'BadCall', 'BadReply', 'Busy', 'CallTimeout', 'ConnectionLost', 'Forbidden',
    'Friend', 'MicroconnectError', 'Microservice', 'RemoteError', 'TooLarge', 'UnknownRule',
    'Unreachable',
]  # fmt: skip


# ------------------------------------------------------------------------------------------ process
# What belongs to this process: its clock, log lines and prints, locks, and what a fork leaves.

# Bound once, here: freezegun replaces `time.monotonic` on modules, and would stop our deadlines.
_clock = types.SimpleNamespace(now=time.monotonic)


def _printable(text: str) -> str:
    """Replace what a terminal would obey: the text comes from the peer."""
    return ''.join(one if one.isprintable() else ' ' for one in text)


def _find_logger() -> Any:
    import logging  # imported late: it alone would add half of the import time

    return logging.getLogger('microconnect')


def _log(level: str, pattern: str, *args: Any, exc_info: Any = None, **facts: Any) -> None:
    """Log, with the facts of a call as fields of the record; each record has all of them."""
    extra = {**dict.fromkeys(('rule', 'status', 'milliseconds', 'caller')), **facts}
    with contextlib.suppress(Exception):  # a failing handler must not cost the caller the answer
        log = getattr(_find_logger(), level)
        log(pattern, *args, exc_info=exc_info, extra=extra, stacklevel=2)


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def _say(text: str, stream: Any) -> None:
    """Print a line, if there is a stream that takes it."""
    with contextlib.suppress(Exception):
        if stream is not None:  # print would take stdout
            # One write, so that lines of several threads do not mix.
            print(f'{text}\n', end='', file=stream, flush=True)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_locks: dict[tuple[int, str], Any] = {}


def _process_lock(name: str) -> Any:
    """A lock per process: a forked child could inherit a shared lock in its locked state."""
    # Reentrant: a signal's handler may stop a service while the code that it interrupts starts one.
    return _locks.setdefault((os.getpid(), name), threading.RLock())


# A forked child shares its parent's connections and ports.  It may use none of them: whoever holds
# one compares process ids, because a fork by C code (as of uWSGI) runs no hook.  Where a hook runs,
# the child closes its copies as well, or it would hold the parent's port and connections open.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_inherited() -> None:
    """Close the parent's sockets in a forked child; to shut them down would end the parent's."""
    _accepting.release()
    for sock in list(_sockets):
        sock.close()
    if _paused:
        gc.enable()


_paused: list[None] = []  # one while a large body is decoded without the collector

# Held while a connection is accepted, so that no fork falls before it is in `_sockets`; and while
# one is shut down or closed, so that no child inherits a lock that nobody will release.
_accepting = threading.RLock()
if hasattr(os, 'register_at_fork'):  # Windows has no forks
    os.register_at_fork(
        before=_accepting.acquire,
        after_in_parent=_accepting.release,
        after_in_child=_close_inherited,
    )


# ------------------------------------------------------------------------------------------- errors
# The classes; then both directions of one table: what a service answers for an exception (problem
# details, RFC 9457), and which exception a reply stands for.


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

    def with_call(self, rule: str, address: str) -> MicroconnectError:
        """Name the call that failed."""
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
        return _remote_error, (str(self), self.__dict__)  # its class is made as it is needed


class _RemoteTraceback(Exception):
    """The cause of a RemoteError: Python prints it, and so the traceback that a service sent."""


class _Raised(bytes):
    """The body of a reply, with the exception that it tells of: in process it is the cause."""

    cause: BaseException | None = None


_ERRORS: dict[int, type[MicroconnectError]] = {
    **dict.fromkeys((400, 411, 414, 415, 417, 505), BadCall),
    **dict.fromkeys((401, 403), Forbidden),
    **dict.fromkeys((404, 405, 501), UnknownRule),
    **dict.fromkeys((408, 503), Busy),
    **dict.fromkeys((413, 431), TooLarge),
    422: BadArguments,
}
# What a proxy or router between the two says.
_OUTAGES: Any = {408: CallTimeout, 502: ConnectionLost, 503: Busy, 504: CallTimeout}
_MOST_TEXT = 10_000  # characters of an error's text
# What may stand between us and a rule's own frame; on PyPy most of it is Python code.
_BETWEEN = ('asyncio', 'concurrent', 'contextvars', '_contextvars', 'functools')
_OTHER_PROGRAM = ': is another program on that port?'
# No cache may keep a reply: it would not see that the next caller has no token.
_NO_STORE = ('Cache-Control', 'no-store')
_PROBLEM = (('Content-Type', 'application/problem+json'), _NO_STORE)


def _over_max_body(what: str, limit: int) -> TooLarge:
    return TooLarge(f'{what} is over max_body={limit}')


def _bounded(text: str) -> str:
    """*text*, without its middle if that is long: an error may be as large as the arguments."""
    if len(text) <= _MOST_TEXT:
        return text
    half = _MOST_TEXT // 2
    return f'{text[:half]} ... ({len(text) - 2 * half} characters cut) ... {text[-half:]}'


def _text_of(error: BaseException, mask: Callable[[str], str] = str) -> str:
    try:
        return _bounded(mask(str(error)))
    except BaseException:
        return f'(its message cannot be read: {type(error).__name__}.__str__ raised)'


def _traceback_of(error: BaseException) -> str:
    import traceback

    try:
        return ''.join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception as failure:  # a SyntaxError with odd arguments fails, for one
        return f'the traceback cannot be formatted: {_text_of(failure)}'


def _clear_frames(error: BaseException | None) -> None:
    """Empty the frames of this file, and of the standard library under it: they hold tokens.

    Many tools show the variables of a traceback.  The frames of a user's functions keep theirs.
    """
    for _ in range(9):  # the error, what it replaced, and so on
        trace, is_under = error.__traceback__ if error else None, False
        while trace:
            name = trace.tb_frame.f_globals.get('__name__', '')
            is_under = is_under or name == __name__
            if is_under and name in (__name__, 'http.client', 'socket', 'ssl'):
                with contextlib.suppress(RuntimeError):  # it is still running
                    trace.tb_frame.clear()
            trace = trace.tb_next
        error = error.__context__ if error else None


def _is_ours(frame: Any) -> bool:
    name = frame.f_globals.get('__name__') or ''
    return name == __name__ or name.partition('.')[0] in _BETWEEN


def _for_log(error: BaseException) -> Any:
    """The `exc_info` of an error, without our frames at the start: they hold tokens."""
    trace = error.__traceback__
    while trace and _is_ours(trace.tb_frame):
        trace = trace.tb_next
    error.__traceback__ = trace
    return type(error), error, trace


def _description(error: BaseException, mask: Callable[[str], str]) -> dict[str, str]:
    """What a caller is told of an exception: its class, the nearest builtin one, its message."""
    kinds: tuple[type, ...] = type(error).__mro__
    name, message = _bounded(type(error).__name__), _text_of(error, mask)
    if isinstance(error, RemoteError):  # a service further on raised: its word counts
        name, message = _bounded(str(error.type)), _bounded(mask(str(error.message)))
    elif isinstance(error, MicroconnectError):  # a ConnectionError would invite a retry
        kinds = (Exception,)
    base = next(kind.__name__ for kind in kinds if vars(builtins).get(kind.__name__) is kind)
    if isinstance(error, (_NoForm, _BadForm)):
        name = base
    told = {'type': name, 'base': base, 'message': message}
    with contextlib.suppress(Exception):  # a subclass may compute them
        if isinstance(error, OSError) and error.errno:  # by name: the numbers of systems differ
            told['errno'] = errno.errorcode.get(error.errno, '')
            told['strerror'] = _bounded(mask(str(error.strerror)))
    return told


def _problem(status: int, detail: str, **members: Any) -> bytes:
    """RFC 9457 problem details."""
    detail = _bounded(detail)
    title = http.HTTPStatus(status).phrase
    return _encode(dict(title=title, status=status, detail=detail, **members), 'problem')


def _refusal(error: Any) -> Answer:
    """The answer to a request for which nothing has run."""
    if isinstance(error, MemoryError):
        error = Busy('no memory is left for this request')
    elif not hasattr(error, 'sent'):  # of a signer; a MicroconnectError may be of another copy
        _log('error', 'a call could not be checked', exc_info=_for_log(error))
        error = MicroconnectError('the call could not be checked')
    status = error.status or 500
    extra: Headers = getattr(error, 'headers', ())
    return status, _PROBLEM + extra, _problem(status, str(error))


def _error_from_reply(
    reply: _ReplyHead, body: bytes, via: str = '', seconds: float = -1
) -> MicroconnectError:
    """The error that a reply with a status other than 200 stands for."""
    status = reply.status
    try:
        problem = _decode(body, seconds)
    except (ValueError, Busy):
        problem = None
    members = problem if isinstance(problem, dict) else {}
    detail, ask = str(members.get('detail') or ''), ''
    if not detail:  # a proxy, or another server
        where = ', '.join(filter(None, (via, reply.server)))
        where = f' ({where})' if where else ''
        detail, ask = f'something{where} answered {status}, without saying why', _OTHER_PROGRAM
    if status == 500:
        told = members.get('exception')
        names = ('type', 'base', 'message', 'traceback', 'errno', 'strerror')
        facts = {name: told.get(name) for name in names} if isinstance(told, dict) else {}
        facts = {name: str(fact) for name, fact in facts.items() if fact is not None}
        cause = getattr(body, 'cause', None)
        if cause is not None:
            _for_log(cause)  # PyPy adds our frames again as it leaves an except clause
        return _remote_error(detail + ask, facts, cause)
    # Routers answer 408 and 503, too, some after they have handed the call on: only the problem
    # details of a service say that nothing ran.
    is_ours = _is_json(reply.headers.get('content-type', ''), 'application/problem+json')
    is_ours = is_ours and members.keys() == {'title', 'status', 'detail'}
    kind: type[MicroconnectError] = _ERRORS.get(status, BadReply)
    if status in _OUTAGES and not (is_ours and members['status'] == status):
        kind = _OUTAGES[status]
        return kind(f'{detail}; the call may have run', status=status, sent=True)
    # A proxy that answers these did not forward the call: redirect, proxy login, rate limit.
    sent = kind.sent and status not in (301, 307, 308, 407, 429)
    return kind(detail + ask, status=status, sent=sent)


def _remote_error(message: str, facts: dict[str, Any], cause: Any = None) -> RemoteError:
    base = facts.get('base', '')
    kind = _remote_error_class(base) if base in vars(builtins) else RemoteError
    error = kind(message, **facts)
    if isinstance(error, OSError):  # the number of this system; None where it has none
        numbers = {name: number for number, name in errno.errorcode.items()}
        error.errno, error.strerror = numbers.get(facts.get('errno', '')), facts.get('strerror')
    if cause is None and error.traceback:
        cause = _RemoteTraceback(f'\n"""\n{error.traceback}"""')
    if cause is not None:  # None would hide what the caller is handling
        error.__cause__ = cause
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


# ----------------------------------------------------------------------------------------- settings
# What both sides check and hold: numbers, seconds, contexts; addresses; tokens and signers.

_UNSET = 'is an environment variable not set?'
_METHODS = ('GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS')
_OWN_FIELDS = (  # header fields that a call or its signer sets
    'host', 'content-length', 'content-type', 'transfer-encoding', 'connection', 'keep-alive', 'te',
    'trailer', 'upgrade', 'expect', 'content-digest', 'signature-input', 'signature',
)  # fmt: skip


def _checked_number(name: str, value: Any, most: int = 1 << 32) -> Any:
    if type(value) is int and 0 < value <= most:
        return value
    raise ValueError(f'{name} is a number (int) above 0 to {most}, not {value!r}')


def _checked_seconds(name: str, value: Any) -> Any:
    if isinstance(value, (int, float)) and 0 < value <= threading.TIMEOUT_MAX:  # Windows: 49 days
        return value
    raise ValueError(f'{name} is a number of seconds above 0, not {value!r}; no wait is endless')


def _checked_context(ssl_context: Any, side: str) -> Any:
    """*side* is CLIENT or SERVER: a context made for one cannot serve the other."""
    given = getattr(getattr(ssl_context, 'protocol', None), 'name', repr(ssl_context))
    is_other = re.fullmatch('PROTOCOL_TLS_(?!' + side + ').*', given)
    if ssl_context is None or (hasattr(ssl_context, 'wrap_socket') and not is_other):
        return ssl_context
    raise TypeError(f'ssl_context is an ssl.SSLContext(ssl.PROTOCOL_TLS_{side}), not {given}')


def _path_of(rule: Any) -> str:
    if not isinstance(rule, str) or not rule:
        raise TypeError(f"a rule is a string such as '/helloworld', not {rule!r}")
    return rule if rule.startswith('/') else '/' + rule


def _checked_headers(headers: Any) -> Headers:
    """A friend's own header fields; an error does not show their values."""
    fields = tuple(dict(headers or {}).items())
    for name, value in fields:
        if not (isinstance(name, str) and re.fullmatch(_TCHARS, name.encode())):
            raise ValueError(f'{name!r} is not a valid header name (RFC 9110, 5.1)')
        if not isinstance(value, str) or not re.fullmatch(r'[\t\x20-\x7e\x80-\xff]*', value):
            raise ValueError(f'the header {name} has to be text without control characters')
        if name.lower() in _OWN_FIELDS:
            raise ValueError(f'the header {name} is set by each call itself')
    return fields


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
        raise ValueError('an address must not contain a user or password; use token=... instead')
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
        raise ValueError(f'{wrong}the scheme must be http or https, not {parts.scheme}')
    # Some versions of Python take the part in brackets for the whole host.
    is_netloc = re.fullmatch(r'(?:\[[^][\s]*:[^][\s]*\]|[^][:%\s]+)(?::[0-9]*)?', parts.netloc)
    # A host named like a number is a port without its host; one named http is a mistyped scheme.
    is_mistyped = port == 0 or re.fullmatch('https?|[0-9]+', host or '')
    if not (host and is_netloc) or is_mistyped or parts.query or parts.fragment:
        raise ValueError(f'{wrong}give a host, a port and, if need be, a path')
    host = host.replace('%25', '%', 1)  # before the scope of a link-local address (RFC 6874)
    base = urllib.parse.quote(parts.path.rstrip('/'), safe="/~!$&'()*+,;=:@%")
    return parts.scheme, host, port or (443 if parts.scheme == 'https' else 80), base


def _checked_token(rule: str, token: Any) -> Any:
    """Give the token, or a tuple of several: a friend sends the first, a service takes any."""
    if token is None or token is False:
        return token
    several = tuple(token) if isinstance(token, (list, tuple)) else (token,)
    if not several or not all(isinstance(one, str) and one for one in several):
        raise TypeError(f'the token of {rule} has to be a non-empty string, or a list of them')
    return token if isinstance(token, str) else several


def _same_token(given: Any, wanted: Any) -> bool:
    """Compare in constant time with the token, or with each of several."""
    if not isinstance(given, str):
        return False
    # `ascii()` gives bytes for any str; `encode()` would fail on a lone surrogate.
    forms = [ascii(one).encode() for one in ((wanted,) if isinstance(wanted, str) else wanted)]
    # A list: each is compared, so that the time does not tell which one it was.
    return True in [hmac.compare_digest(ascii(given).encode(), form) for form in forms]


class _Tokens(abc.MutableMapping):  # type: ignore[type-arg]
    """Rule -> token, for both sides; made of such a dict, or of one token for every rule.

    It never shows a token, and rejects an empty one.  `default` guards the rules that it does not
    list: None where a token was expected and is missing, False where none is wanted.
    """

    holds_tokens = True  # see _form_of

    def __init__(self, token: Tokens = False) -> None:
        if not isinstance(token, (type(None), bool, str, list, tuple, abc.Mapping)):
            forms = "a string for every rule, a list of them, or a dict {'/rule': 'token'}"
            raise TypeError(f'token is {forms}, not of type {type(token).__name__}')
        self.default: Token = getattr(token, 'default', False)
        self.by_rule: dict[str, Token] = {}
        self.slashed: set[str] = set()  # those that were given with their slash
        if isinstance(token, abc.Mapping):
            self.update(token)
        else:
            self.default = _checked_token('every rule', token)

    def __getitem__(self, rule: str) -> Token:
        return self.by_rule[_path_of(rule)]

    def __setitem__(self, rule: str, token: Token) -> None:
        self.by_rule[_path_of(rule)] = _checked_token(rule, token or '')
        if rule[0] == '/':
            self.slashed.add(rule)

    def __delitem__(self, rule: str) -> None:
        del self.by_rule[_path_of(rule)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_rule)

    def __len__(self) -> int:
        return len(self.by_rule)

    def __repr__(self) -> str:
        names = [repr(rule) for rule in self.by_rule]
        if self.default:
            names.append('every other rule' if names else 'every rule')
        return f'<tokens of {", ".join(names) or "no rule"}>'


def _checked_signer(signer: Any) -> Any:
    """Check a `secretKey`, which signs calls and replies; None and False are no signer.

    A signer is an object with these methods.  Header names are in lower case there, fields are
    tuples of (name, value), and *rule* is without the path prefix of an address::

        sign_call(method, rule, body)               gives the fields that a friend adds to a call
        check_call(method, rule, headers, body)     gives a proof that the call is signed, or raises
                                                    Forbidden; a reply is signed if it is not None
        sign_reply(proof, status, fields, body)     gives the fields that a service adds to a reply
        check_reply(fields, status, headers, body)  raises BadReply unless the reply answers the
                                                    call with these fields of sign_call

    A signer is a guard: it lets no unsigned call through.  So a service that has one counts as
    closed to strangers.
    """
    # Never test a signer's truth value: a falsy or empty object would silently guard nothing.
    names = ('sign_call', 'check_call', 'sign_reply', 'check_reply')
    if signer is None or signer is False or all(hasattr(type(signer), name) for name in names):
        return None if signer is False else signer
    if isinstance(signer, abc.Mapping):  # what microservices_connector has in this place
        raise TypeError("a method is set by setRule('/rule', method=...), not by this argument")
    where = 'a copy of examples/signed/signing.py of the project'
    raise TypeError(f"write secretKey=Keys('...'), from {where}")


class _Guarded:
    """What a service and a friend hold, and never show."""

    holds_tokens = True  # see _form_of
    secretKey = property(doc='Set in the constructor only; cannot be read back.')
    _tokens: _Tokens

    def _set_tokens(self, token: Tokens) -> None:
        self._tokens = _Tokens(token)

    token = property(lambda self: self._tokens, _set_tokens, doc='The tokens by rule.')


# ------------------------------------------------------------------------------------------- values
# JSON, strictly.  The encoder calls `_json_form` for what it does not know, so plain data stays at
# the speed of C.  Only where encoding fails does `_locate` walk the value, to name the place.

_NATIVE = (dict, list, tuple, str, int, float, bool, type(None))  # what json encodes by itself
_LISTS = (abc.Set, abc.Iterator, abc.ValuesView, collections.deque, collections.UserList, range)
_AS_TEXT = ('decimal', 'fractions', 'uuid', 'ipaddress')  # modules whose values travel as strings
_MOST_ITEMS = 8 << 20  # bytes of JSON from an iterator: as much as the default max_body


class _NoForm(TypeError):
    """A value of this type has no faithful JSON form."""


class _BadForm(ValueError):
    """This value has none, though others of its type have: NaN, a cycle, too deep, too long."""


class _OfValue(BaseException):
    """Carries what a property or an iterator raised through the encoder."""


def _json_form(value: Any) -> Any:
    """Give what *value*, which json does not know, travels as; the encoder calls this."""
    try:
        return _form_of(value)
    except BaseException as error:
        # Not an except clause: Python 3.14 passes over one where the stack is full.
        if isinstance(error, (_NoForm, _BadForm, RecursionError)):
            raise
        raise _OfValue(error) from None


def _form_of(value: Any) -> Any:
    # A str or int gets here only through a class that overrides __class__.
    lies_about_class = isinstance(value, (str, int, float, list, tuple, type(None)))
    # Friends and services hold tokens: never encode them.
    holds_tokens = getattr(type(value), 'holds_tokens', False)
    if lies_about_class or holds_tokens or _is_null_marker(value):
        raise _no_form(value)
    for kinds, form in _FORMS:
        if isinstance(value, kinds):
            return form(value)
    # Matched by module name: if nobody imported the module, no such value exists.
    return str(value) if _is_of(value, _AS_TEXT) else _attributes(value)


def _is_null_marker(value: Any) -> bool:
    """Whether it stands for no value, or for no finite one: NaN, NaT, NA."""
    if type(value).__name__ in ('NAType', 'NaTType'):
        return True
    if _is_of(value, ('decimal',)) and hasattr(value, 'is_finite'):
        return not value.is_finite()
    is_time = isinstance(value, (datetime.date, datetime.time, datetime.timedelta))
    return bool(is_time and value != value)  # noqa: PLR0124 - NaT is like NaN


def _is_of(value: Any, packages: tuple[str, ...]) -> bool:
    """Whether its class, or one that it is derived from, is of one of these packages."""
    return any(kind.__module__.partition('.')[0] in packages for kind in type(value).__mro__)


def _items(values: Iterable[Any], limit: int = 0) -> list[Any]:
    """The items of an iterator, which may be endless: as many as take *limit* bytes of JSON."""
    if hasattr(values, 'fileno'):  # a file
        raise _no_form(values)
    limit = limit or _MOST_ITEMS
    items, left = [], limit
    for item in values:
        items.append(item)
        left -= 2 + _size_of(item)  # at least a digit and a comma
        if left < 0:
            raise _BadForm(f'an iterator gave more than {limit} bytes')
    return items


def _size_of(value: Any, depth: int = 3) -> int:
    """About how many bytes of text *value* holds."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if depth and isinstance(value, (list, tuple, dict)):
        inner = value.values() if isinstance(value, dict) else value
        return sum(1 + _size_of(item, depth - 1) for item in inner)
    return 0


_FORMS: Any = (  # what the values of these classes travel as
    (enum.Enum, lambda value: value.value),
    ((bytes, bytearray, memoryview), lambda value: base64.b64encode(value).decode()),
    (os.PathLike, os.fspath),
    (abc.Mapping, dict),
    (collections.UserString, str),
    (_LISTS, _items),
    ((datetime.date, datetime.time), lambda value: value.isoformat()),
    (datetime.timedelta, lambda value: value.total_seconds()),
)
_PLAIN_FORMS = {  # an attribute by which to know classes of numpy, pandas and the like -> advice
    'tolist': '.tolist()',
    'to_records': ".to_dict('records')",
    'to_dicts': '.to_dicts()',
    'model_dump': '.model_dump()',
    '_asdict': '._asdict()',
    '__table__': 'columns as a dict',
    'fileno': '.read()',
    'cr_await': 'result, with await',
    'with_traceback': 'text, or raise it',  # an exception
}
_ADVICE = {  # the same, for what is refused anyway
    **_PLAIN_FORMS,
    '__code__': 'result',  # of a function
    '__mro__': '__name__',  # of a class
    'fullmatch': '.pattern',
    'imag': '.real and .imag',
    'keys': 'items as a dict',
}


def _attributes(value: Any) -> dict[str, Any]:
    """Give the public attributes of an object, callables left out, names sorted."""
    held = getattr(value, '__dict__', getattr(type(value), '__slots__', None))
    if callable(value) or isinstance(value, types.ModuleType) or held is None:
        raise _no_form(value)
    if hasattr(type(value), '__dataclass_fields__'):
        fields = sys.modules['dataclasses'].fields(value)
        return {f.name: getattr(value, f.name) for f in fields if not f.name.startswith('_')}
    if any(hasattr(type(value), attribute) for attribute in _PLAIN_FORMS):
        raise _no_form(value)
    names = [name for name in dir(value) if not name.startswith('_')]
    # `len` stands in for what dir() lists though it is absent: a callable, it is left out below.
    items = {name: getattr(value, name, len) for name in names}
    public = {name: item for name, item in items.items() if not callable(item)}
    if held and not public:
        raise _NoForm(f'{type(value).__name__} has no JSON form: all its attributes begin with _')
    return public


def _no_form(value: Any) -> _NoForm:
    name = re.sub(r'\A(builtins|_io)\.', '', f'{type(value).__module__}.{type(value).__name__}')
    form = next((form for attribute, form in _ADVICE.items() if hasattr(value, attribute)), '')
    return _NoForm(f'{name} has no JSON form' + (f': send its {form}' if form else ''))


def _locate(value: Any, path: str, above: tuple[Any, ...] = ()) -> str:
    """Find what in *value* has no JSON form: `reply[0].items[3]: function has no JSON form`."""
    if any(value is outer for outer in above):
        return f'{path}: holds itself'
    if len(above) > 200:
        return f'{path[:60]}...: nested too deeply'
    if isinstance(value, abc.Iterator) and not hasattr(value, 'fileno'):
        return ''  # it has been used up, and would go on
    try:
        form = value if issubclass(type(value), _NATIVE) else _json_form(value)
        if not isinstance(form, (list, tuple, dict)):
            _encoder.encode(form)
            return ''
    except _OfValue:  # it raised only now
        return ''
    except (TypeError, ValueError) as error:
        return f'{path}: {_text_of(error)}'
    items: Iterable[Any] = form.items() if isinstance(form, dict) else enumerate(form)
    # Otherwise the keys are the names that `_attributes` gave.
    has_items = not isinstance(form, dict) or isinstance(value, abc.Mapping)
    for key, item in items:
        if not isinstance(key, (str, int, float, type(None))):
            return f'{path}: a key is a {type(key).__name__}, and the keys of JSON are strings'
        step = f'[{key!r}]' if has_items else f'.{key}'
        found = _locate(item, path + step, above + (value,))
        if found:
            return found
    return ''


# `JSONEncoder.encode` makes a C encoder for every call, and `JSONDecoder.decode` looks for white
# space around the value by two regular expressions.  We avoid both through undocumented names of
# json: a fifth and a tenth of the speed (see examples/benchmark.py).
_encoder = json.JSONEncoder(allow_nan=False, separators=(',', ':'), default=_json_form)
_iterencode: Any = _encoder.iterencode
_make_encoder = getattr(json.encoder, 'c_make_encoder', None)  # PyPy has none
if _make_encoder:
    _string = json.encoder.encode_basestring_ascii
    _iterencode = _make_encoder(None, _json_form, _string, None, ':', ',', False, False, False)


def _encode(value: Any, part: str) -> bytes:
    """Encode *value*, which an error calls *part*.

    Raises _NoForm or _BadForm that names the path of what has no faithful form.  Any other error
    is one that the value itself raised, in a property or as an iterator.
    """
    try:
        return ''.join(_iterencode(value, 0)).encode()
    except _OfValue as carrier:
        raised = carrier.args[0]
    except (TypeError, ValueError, RecursionError) as error:
        kind = _NoForm if isinstance(error, TypeError) else _BadForm
        raise kind(_bounded(_locate(value, part) or f'{part}: {error}')) from None
    raise raised  # after the except clause: its context is the user's


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f'{text[:20]} is no finite number')
    return number


_decoder = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)
_scan: Any = getattr(_decoder, 'scan_once', None) or _decoder.raw_decode

_MOST_DEPTH = 200  # of arrays and objects: C code nests 10,000 deep whatever the stack holds
_LARGE = 1 << 15  # bytes of a body that is decoded alone
_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_ARRAYS = bytes.maketrans(b'{}', b'[]')
_STEPS = bytes.maketrans(b'[]', b'\x01\xff')  # up by one, and down


def _decode(body: bytes, seconds: float = -1) -> Any:
    """Decode JSON strictly; ValueError says what is wrong.

    A large body may have to wait for others: Busy after *seconds*, -1 for no limit.
    """
    if len(body) > _MOST_DEPTH:
        _check_depth(body)
    try:
        text = body.decode()
        if len(body) > _LARGE:
            with _large_body(seconds):
                return _decoder.decode(text)
        try:
            value, end = _scan(text, 0)
        except (StopIteration, ValueError):
            end = -1
        # The complete decoder takes white space around the value, and words its errors.
        return value if end == len(text) else _decoder.decode(text)
    except RecursionError:  # the caller's stack is nearly full
        raise ValueError('nested too deeply') from None


@contextlib.contextmanager
def _large_body(seconds: float) -> Iterator[None]:
    """Decode one large body at a time, since it may take 35 times its size: `[[]],` does.

    The collector would look at all the new lists again and again: 14 s for 62 MiB, not 2.
    """
    lock = _process_lock('decode')
    if not lock.acquire(timeout=seconds):
        raise Busy('other large bodies are being decoded; try again later')
    paused = [None] if gc.isenabled() else []
    try:
        _paused.extend(paused)
        gc.disable()
        yield
    finally:
        if paused:
            gc.enable()
            _paused.clear()
        lock.release()


def _check_depth(body: bytes) -> None:
    """Refuse nesting that nobody needs, before it uses up the stack."""
    if not (_has_many(body, b'[') or _has_many(body, b'{')):
        return
    # Leave only brackets: no escaped quotes, then no other characters, then no strings.
    if b'\\' in body:
        body = body.replace(b'\\\\', b'').replace(b'\\"', b'')
    body = body.translate(_ARRAYS, _NO_MARKS)
    marks = b''.join(body.replace(b'""', b'').split(b'"')[::2])  # every second part was a string
    steps = memoryview(marks.replace(b'[]', b'').translate(_STEPS)).cast('b')
    # One level went with the `[]` pairs: hence >=.
    if max(itertools.accumulate(steps), default=0) >= _MOST_DEPTH:
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


# --------------------------------------------------------------------------------------------- http
# HTTP/1.1 framing (RFC 9112) for both sides.  Nothing here knows a socket or the time.  A head is
# parsed by a pure function, and `_Reader` cuts a stream of bytes into heads and bodies.  The
# errors carry the status that a service answers them with.

_CHUNKED = -1  # a length: the body is chunked
_TO_THE_END = -2  # a length: the body ends with the connection
_FIRST_READ = 1 << 14  # bytes; most messages are smaller, and a waiting connection holds no more
_PIECE = 1 << 16  # bytes of a large body read at a time
_MOST_CACHED = 1024  # bytes of a head

# Plain strings: `re` compiles them on first use and caches them, which keeps the import fast.
_TCHARS = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD = _TCHARS + rb':[\t\x20-\x7e\x80-\xff]*'
_FIELDS = rb'((?:\r\n' + _FIELD + rb')*)'
_REQUEST_LINE = rb'(' + _TCHARS + rb') ([\x21-\x7e]+) HTTP/1\.([0-9])'
_STATUS_LINE = rb'HTTP/1\.([0-9]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?'
_BAD_BYTES = rb'(?<!\r)\n|\r(?!\n|\Z)|[\0-\x08\x0b\x0c\x0e-\x1f]'
# Browsers send the last four as they are, though RFC 3986 would have them encoded.
_PATH = rb"(?:[A-Za-z0-9._~!$&'()*+,;=:@/|^\[\]-]|%[0-9A-Fa-f]{2})*"
_NAME = rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"
_HOST = rb'(?:\[[0-9A-Fa-f:.]+\]|' + _NAME + rb')(?::[0-9]*)?'
_AUTHORITY = rb'(?:[Hh][Tt][Tt][Pp][Ss]?://(?=[^/?:])' + _HOST + rb')?'
_TARGET = _AUTHORITY + rb'(/' + _PATH + rb')?(?:\?([^#]*))?'
_CHUNK_LINE = rb'([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?'

# The last three have defaults for a request that another host read.
_RequestHead = collections.namedtuple(
    '_RequestHead', 'method path headers length keep_alive expects', defaults=(0, False, False)
)
_NO_HEAD = _RequestHead('', '', {})
_ReplyHead = collections.namedtuple('_ReplyHead', 'status length keep_alive fault server headers')


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
    # Keep only the '?' of a query: no rule matches, and a token in it is never logged.
    rule = _utf8(urllib.parse.unquote_to_bytes(path or b'/')) + ('?' if query else '')
    length, alive = _body_length(headers, minor, 0), _keeps_alive(headers, minor)
    return _RequestHead(method.decode(), rule, headers, length, alive, bool(expects))


@functools.lru_cache(maxsize=256)
def _parse_reply_head(head: bytes) -> _ReplyHead:
    """Parse a reply's head.

    `keep_alive` is in seconds, 0 where the peer closes.  `fault` says why the body holds no values,
    `server` who answered.
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
    fault = '' if _is_json(kind) else f'the reply has Content-Type {kind[:99]!r}{_OTHER_PROGRAM}'
    if coding != 'identity':
        fault = 'the reply is compressed, though nobody asked for that'
    known = (f'{k.title()}: {headers[k][:200]}' for k in ('server', 'location') if k in headers)
    server = _printable(', '.join(known))
    return _ReplyHead(int(status), length, seconds, fault, server, headers)


def _malformed(head: bytes) -> BadCall:
    """Say what is wrong with *head*, without repeating it: it may hold a secret."""
    # Judge only what precedes the first bad byte, so that it does not matter how much has come.
    if head[:1] == b'\x16':  # a handshake record
        return BadCall('the bytes are TLS: is only one side https?')
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
def _is_json(content_type: str, kind: str = 'application/json') -> bool:
    return content_type.partition(';')[0].strip().lower() == kind


def _utf8(path: bytes) -> str:
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise BadCall('the path is not percent-encoded UTF-8') from None


class _Reader:
    """Heads and bodies out of the bytes of one connection, however they were cut.

    *receive* gives some more of them, up to a number, and b'' at their end.  Bytes that cannot
    become a message are refused at once.
    """

    def __init__(self, receive: Any, parse: Any, first_line: bytes, max_head: int) -> None:
        self.receive = receive
        self.parse = parse  # makes a record of a head
        self.first_line = first_line + rb'\r\n'  # lets `head` refuse garbage early
        self.max_head = max_head  # bytes
        self.buffer: Any = b''  # what has come and is not read yet
        self.content = bytearray()  # of the chunks of a body so far
        self.last_head = b''  # as its bytes

    def head(self) -> Any:
        """Give the next head, parsed; None if the connection ends before it begins."""
        limit, seen = self.max_head, 0  # *seen* bytes of an unfinished head are checked already
        self.buffer = self.buffer or self.receive(_FIRST_READ)
        if not self.buffer:
            return None
        while True:
            if self.buffer[:1] == b'\r':  # RFC 9112, 2.2: ignore empty lines before a head
                text = re.sub(rb'\A(?:\r\n)+', b'', self.buffer, count=1)
                limit -= len(self.buffer) - len(text)
                self.buffer = text
            head, blank, rest = self.buffer.partition(b'\r\n\r\n')
            if blank and len(head) <= limit:
                self.buffer, self.last_head = rest, head
                # `__wrapped__` is the parser without its cache.
                return (self.parse if len(head) < _MOST_CACHED else self.parse.__wrapped__)(head)
            self._check_unfinished_head(head, blank, limit, seen)
            seen = max(len(head) - 3, 0)
            data = self.receive(_FIRST_READ)
            if not data and self.buffer in (b'', b'\r'):
                return None
            self._add(data)

    def _check_unfinished_head(self, head: bytes, blank: bytes, limit: int, seen: int) -> None:
        """Refuse what cannot become a head that is small enough."""
        window = head[: max(limit + 3, 0)]  # the last three may begin the empty line
        is_line = b'\r\n' not in window or re.match(self.first_line, window)
        if not is_line or re.compile(_BAD_BYTES).search(window, seen):
            raise _malformed(window)
        if blank or len(head) > limit + 3:
            raise TooLarge(f'the head is over {self.max_head} bytes', status=431)

    def body(self, length: int, limit: int) -> Any:
        """Give the body whose *length* the head told, up to *limit* bytes."""
        if length < 0:
            return self._chunked_body(limit) if length == _CHUNKED else self._rest(limit)
        if length > limit:
            raise _over_max_body(f'the body of {length} bytes', limit)
        if length > len(self.buffer):
            self.buffer = bytearray(self.buffer)  # grows in place
            self._fill(length)
        body = self.buffer
        if length == len(body):  # as most messages come
            self.buffer = b''
            return body
        self.buffer = bytes(body[length:])
        return bytes(body[:length])

    def _fill(self, count: int) -> None:
        """Receive until *count* bytes are there."""
        while len(self.buffer) < count:
            self._add(self.receive(_PIECE))

    def _add(self, data: bytes) -> None:
        if not data:
            raise BadCall('the connection ended in the middle of a message')
        self.buffer += data

    def _rest(self, limit: int) -> Any:
        """Read a body that ends with the connection."""
        body = self.buffer = bytearray(self.buffer)
        while len(body) <= limit:
            data = self.receive(_PIECE)
            if not data:
                self.buffer = b''
                return body
            body += data
        raise _over_max_body('the body', limit)

    def _chunked_body(self, limit: int) -> Any:
        """Read a chunked body (RFC 9112, 7.1), extensions and trailers left out."""
        self.buffer = bytearray(self.buffer)  # it is cut from the front in place, too
        body = self.content = bytearray()
        # A budget of framing bytes.  Tiny chunks cost more framing than content, so 8 bytes of
        # content earn one more byte of framing, and the budget never exceeds max_head.
        spare = self.max_head
        size = -1
        while size:
            line = self._line(max(spare, 0))
            found = re.fullmatch(_CHUNK_LINE, line)
            if not found:
                raise BadCall('a chunk size is malformed (RFC 9112, 7.1)')
            size = int(found.group(1), 16)
            spare = min(spare - len(line) - 4 + size // 8, self.max_head)
            if len(body) + size > limit:
                raise _over_max_body('the body', limit)
            if size:
                self._fill(size + 2)
                if self.buffer[size : size + 2] != b'\r\n':
                    raise BadCall('a chunk is longer than its size (RFC 9112, 7.1)')
                body += self.buffer[:size]
                del self.buffer[: size + 2]
        while line:  # after the last chunk: trailers, and an empty line
            line = self._line(max(spare, 0))
            spare -= len(line)
            if line and not re.fullmatch(_FIELD, line):
                raise BadCall('a trailer is malformed (RFC 9112, 7.1.2)')
        self.buffer, self.content = bytes(self.buffer), bytearray()
        return body

    def _line(self, limit: int) -> bytes:
        while True:
            line, end, _ = self.buffer[: limit + 2].partition(b'\r\n')
            if b'\n' in line or (not end and len(self.buffer) >= limit + 2):
                raise BadCall('a line of a chunked body is malformed or too long')
            if end:
                del self.buffer[: len(line) + 2]
                return bytes(line)
            self._fill(len(self.buffer) + 1)


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


# -------------------------------------------------------------------------------------------- calls
# The bodies: a call, and the values returned.

_JSON = (('Content-Type', 'application/json'),)
_REPLY = (*_JSON, _NO_STORE)
_CHALLENGE = (('WWW-Authenticate', 'Token realm="microconnect"'),)


def _parse_call(path: str, body: bytes, wanted: Token) -> tuple[list[Any], dict[str, Any]]:
    """Read args and kwargs from a request's body, and check its token."""
    try:
        call = _decode(body) if body else {}
    except ValueError as error:
        raise BadCall(f'the body is not JSON: {error}') from None
    if type(call) is not dict or not call.keys() <= {'args', 'kwargs', 'token'}:
        raise BadCall('the body is {"args": [...], "kwargs": {...}, "token": ...}, or part of it')
    args, kwargs, token = call.get('args', []), call.get('kwargs', {}), call.get('token')
    if type(args) is not list or type(kwargs) is not dict:
        raise BadCall('args has to be an array, and kwargs an object')
    if wanted and not _same_token(token, wanted):
        del call, args, kwargs  # the error must not keep them
        why = 'needs a token, and none was given' if token is None else 'got a wrong token'
        raise Forbidden(f'{path} {why}', headers=_CHALLENGE)
    return args, kwargs


def _returned(reply: _ReplyHead, body: bytes, deadline: float, via: str = '') -> Any:
    """The value that a reply holds; MicroconnectError where it holds none.

    *via* names the proxy through which it came, if there is one.
    """
    # Only a large body may have to wait.
    seconds = -1 if len(body) <= _LARGE else max(deadline - _clock.now(), 0)
    if reply.status != 200:
        raise _error_from_reply(reply, body, via, seconds)
    if reply.fault:
        raise BadReply(reply.fault, status=200)
    try:
        values = _decode(body, seconds)
    except Busy:
        raise CallTimeout('the reply could not be decoded in time; the call has run') from None
    except ValueError as error:
        raise BadReply(f'the reply is not JSON: {error}', status=200) from None
    if type(values) is not list:
        raise BadReply('the reply is not an array of the returned values', status=200)
    return values[0] if len(values) == 1 else tuple(values)


# ------------------------------------------------------------------------------------------ sockets
# Each wait is bounded by the socket's own timeout.  How a late call ends:
#
# A timeout bounds one `recv`, one `sendall` or one handshake, never a message.  So before each wait
# we allow only what is left until the deadline: a peer that drips bytes has no more time than a
# silent one.  No thread looks at clocks, and nothing is left behind after a call.
#
# To set a timeout costs a system call.  So one that is already set is kept if it is between 1 and
# 1.02 times the time left: a call on a kept connection sets none, no wait ends early, and none is
# more than 2 % late.
#
# A friend raises CallTimeout.  It says that the call did not leave only if its sending timed out
# *and* its deadline is past: a TimeoutError that a signal's handler raises is of the same class
# (Python 3.10).  A service ends two kinds of wait: for a request (it answers 408), and for its
# reply to be taken.  A function that runs has no limit.  A name look-up is not bounded.

_LONGEST = 1e6  # seconds: no socket takes more than 24 days
_LOOK = 0.05 if os.name == 'nt' else _LONGEST  # there `shutdown` wakes no recv (CPython 91913)

# A flow that a router has dropped is seen within minutes, not never.  The last is for macOS.
_OPTIONS = {'TCP_NODELAY': 1, 'SO_KEEPALIVE': 1, 'TCP_KEEPIDLE': 60, 'TCP_KEEPALIVE': 60}


class _TimedSocket:
    """A socket whose waits end in time."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.deadline = 0.0  # of whoever reads
        self.seconds = math.inf  # its timeout
        self.moved_at = 0.0  # when bytes of a large message moved
        self.recv: Callable[[int], bytes] = sock.recv
        # Neither TLS nor gevent nor Windows lets anybody write to the descriptor itself.
        self.is_plain = type(sock).__module__ == 'socket' and os.name == 'posix'
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # the peer may be gone already
            for name, value in _OPTIONS.items():
                if hasattr(socket, name):
                    level = socket.SOL_SOCKET if name[:3] == 'SO_' else socket.IPPROTO_TCP
                    sock.setsockopt(level, getattr(socket, name), value)
        _sockets.add(sock)

    def allow(self, seconds: float) -> None:
        """Bound the next wait; socket.timeout if no time is left."""
        if seconds <= 0:
            raise socket.timeout('timed out')
        self.seconds = 1.01 * seconds
        self.sock.settimeout(min(self.seconds, _LONGEST))

    def receive(self, size: int) -> bytes:
        """Give up to *size* bytes; socket.timeout if none come before the deadline."""
        left = self.deadline - _clock.now()
        if not left <= self.seconds <= 1.02 * left:
            self.allow(left)
        return self.recv(size)

    def sendall(self, data: Any, seconds: float) -> None:
        """Send *data*; socket.timeout if it is not taken within *seconds*."""
        try:  # what is sent mostly fits into the buffer, and `send` would poll first
            # The descriptor is asked for each time: a closed socket is EBADF, never another file.
            sent = os.write(self.sock.fileno(), data) if self.is_plain else 0
        except BlockingIOError as error:
            if _is_of_handler(error):  # perhaps after all has left
                raise
            sent = 0
        if sent < len(data):
            view, until = memoryview(data), _clock.now() + seconds
            while sent < len(data):
                self.moved_at = _clock.now()
                self.allow(until - self.moved_at)
                sent += self.sock.send(view[sent : sent + _PIECE])

    def shutdown(self, directions: int) -> None:
        with contextlib.suppress(OSError):
            # Not self.sock.shutdown: an SSLSocket would forget its TLS state, in use elsewhere.
            socket.socket.shutdown(self.sock, directions)


def _is_of_handler(error: BaseException) -> bool:
    """Whether a signal's handler raised it, in the middle of our work with a socket."""
    trace: Any = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get('__name__', '')
    return name != __name__ and name.partition('.')[0] not in ('socket', 'ssl', 'gevent')


# ------------------------------------------------------------------------------------------- Friend

_Setting = collections.namedtuple('_Setting', 'method timeout')
_NO_SETTING = _Setting('POST', None)
_REST = 5.0  # seconds for which an address that failed is tried last

# A request that raises one of these in `sendall` did not leave whole, so no function can run.
_NOT_SENT = (ConnectionError, getattr(sys.modules.get('ssl'), 'SSLError', ConnectionError))
# OpenSSL's names of the alerts that end a handshake: the service read no request.
_TLS_REFUSALS = 'ALERT_(.*CERT|UNKNOWN_CA|HANDSHAKE|ACCESS|DECRYPT_ERROR|PROTOCOL|NO_APPL)'


def _may_be_sent_again(error: MicroconnectError) -> bool:
    """Whether a call that failed is sent again, by the friend itself.

    At most once: a call is sent again only if it cannot have run.  Each failure says so by `sent`,
    which is decided where it happens: by `_Link.exchange` for a connection that fails, and by
    `_error_from_reply` for a status.  And only an outage (a ConnectionError) can end better: a
    connection that was not made or broke before the call had left, a service that is too busy or
    stopping.  Then the call goes to the next address, each once.  If a kept connection was closed
    before it was used again, that says nothing of the service: the call goes to the same address,
    by another connection.
    """
    return isinstance(error, ConnectionError) and not error.sent


class _Link:
    """A kept-alive connection to a service."""

    def __init__(self, sock: Any, max_body: int) -> None:
        self.process = os.getpid()
        self.timed = _TimedSocket(sock)
        self.reader = _Reader(self.timed.receive, _parse_reply_head, _STATUS_LINE, 64 << 10)
        self.max_body = max_body
        self.keep_until = 0.0  # when the service may close it; 0 unless it can be used again
        self.peek: Callable[[], Any] = functools.partial(select.select, [sock], (), (), 0)
        if hasattr(select, 'poll'):  # not on Windows; there select takes any descriptor
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            self.peek = functools.partial(poll.poll, 0)
        self.pending: Callable[[], int] = getattr(sock, 'pending', int)  # bytes that TLS holds
        # Not __del__: a collector may take the socket first.  Not at exit: a hook may still call.
        weakref.finalize(self, sock.close).atexit = False

    def close(self) -> None:
        self.timed.sock.close()

    def exchange(self, message: bytes, deadline: float) -> tuple[_ReplyHead, bytes]:
        """Send a request and give its reply.

        Raises a MicroconnectError that tells what failed, and whether the request was sent.
        """
        timed, reader, now = self.timed, self.reader, _clock.now()
        keep_until, self.keep_until = self.keep_until, 0.0
        # A forked child uses no connection of its parent.  If there is something to read, the peer
        # has closed the connection, or said what nobody asked for.
        if keep_until and (self.process != os.getpid() or now > keep_until or self.peek()):
            raise ConnectionLost('the connection was closed while it was idle', sent=False)
        unsent: OSError | None = None
        timed.deadline = deadline
        try:
            try:
                timed.sendall(message, deadline - now)
            except socket.timeout as error:
                if _clock.now() < deadline:  # raised by a signal's handler, perhaps afterwards
                    raise ConnectionLost(f'{error}; the call may have run') from None
                raise CallTimeout('the call could not be sent in time', sent=False) from None
            except _NOT_SENT as error:
                if _is_of_handler(error):
                    raise
                # A service that refuses what it has not read answers, and closes.
                unsent, timed.deadline = error, min(deadline, _clock.now() + 1)
            reply = reader.head()
            while reply and reply.status < 200:  # interim: the final one follows
                reply = reader.head()
            if not reply:
                raise OSError('the connection ended before a reply')
            body = reader.body(reply.length, self.max_body) if reply.length else b''
        except (OSError, MicroconnectError) as error:
            raise self._failure(error, unsent, is_fresh=not keep_until) from None
        # Bytes after the reply are not the next call's reply: do not use the connection again.
        if reply.keep_alive and not reader.buffer and not self.pending():
            self.keep_until = now + reply.keep_alive
        return reply, body

    def _failure(self, error: Exception, unsent: Any, is_fresh: bool) -> MicroconnectError:
        """The error of a call that *error* ended; *unsent* kept its request from leaving whole."""
        if isinstance(error, (CallTimeout, ConnectionLost)) and not _is_of_handler(error):
            return error
        is_plain = self.reader.buffer[:2] == b'\x15\x03'  # an alert of TLS in answer to HTTP
        reason = '' if self.reader.buffer else str(getattr(error, 'reason', ''))
        if is_fresh and (is_plain or re.search(_TLS_REFUSALS, reason)):
            # TLS 1.3 reports a refused client certificate after the client's handshake.
            why = 'https:// instead of http://' if is_plain else 'the right certificate'
            return Unreachable(f'the service refused the TLS handshake: {why}?')
        if isinstance(error, socket.timeout):
            # The socket is open still: a failed send may not have been its fault.
            text = (
                'it could not be sent whole, and no reply came'
                if unsent
                else 'no full reply in time'
            )
            return CallTimeout(f'{text}; the call may have run')
        if unsent:
            return ConnectionLost(f'the call could not be sent: {unsent}', sent=False)
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

    def __init__(self, address: str, ssl_context: Any, max_body: int, headers: Headers) -> None:
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
        self.proxy: Any = _proxy_for(self.scheme, self.host, self.netloc)
        self.via = f'the proxy {_netloc(*self.proxy[:2])}' if self.proxy else ''
        fields: Headers = (('Host', self.netloc), *headers)
        if 'user-agent' not in [name.lower() for name, _ in headers]:
            fields += (('User-Agent', f'microconnect/{__version__}'),)
        if self.proxy and self.scheme == 'http':
            base, fields = f'http://{self.netloc}{base}', fields + self.proxy.headers
        head = functools.partial(_request_head, base, fields)
        self.head = functools.lru_cache(maxsize=256)(head)
        self.links: collections.deque[_Link] = collections.deque()
        self.skip_until = 0.0

    def call(
        self, signer: Any, method: str, rule: str, body: bytes, deadline: float, connect_by: float
    ) -> Any:
        """Make a call and give its value; MicroconnectError tells what failed."""
        head: bytes = self.head(method, rule)
        fields: Any = None
        if signer is not None:
            fields = signer.sign_call(method, rule, body)
            head += _field_lines(fields)
        message = b'%bContent-Length: %d\r\n\r\n%b' % (head, len(body), body)
        while True:
            link: _Link | None = None
            try:
                link = self.links.pop()
            except IndexError:
                pass  # connect below: an error there must not show this one as its context
            is_kept = link is not None
            link = link or self._connect(connect_by)
            is_believed = signer is None
            try:
                reply, data = link.exchange(message, deadline)
                if signer is not None:
                    signer.check_reply(fields, reply.status, reply.headers, data)
                    is_believed = True
                return _returned(reply, data, deadline, self.via)
            except MicroconnectError as error:
                is_closed = isinstance(error, ConnectionLost) or error.status == 408
                if is_kept and is_closed and not link.keep_until and _may_be_sent_again(error):
                    continue
                # Someone in the middle may have forwarded the signed call, whatever we are told.
                error.sent = error.sent or not is_believed
                raise
            finally:
                if not link.keep_until:
                    link.close()
                else:
                    self.links.append(link)
                    if len(self.links) > 1:
                        self._prune()

    def _prune(self) -> None:
        """Close the connection that is idle the longest, if it is past its time."""
        with contextlib.suppress(IndexError):  # another thread took it meanwhile
            if self.links[0].keep_until < _clock.now():
                self.links.popleft().close()

    def close(self) -> None:
        with contextlib.suppress(IndexError):  # none is left; other threads may take some, too
            while True:
                self.links.pop().close()

    def _connect(self, deadline: float) -> _Link:
        """Connect, through a proxy and by TLS if need be: http.client knows how."""
        host, port = self.proxy[:2] if self.proxy else (_loopback(self.host), self.port)
        left = max(deadline - _clock.now(), 0.001)
        connection: Any = HTTPConnection(host, port, timeout=left)
        is_tunnel = self.proxy and self.ssl_context
        if is_tunnel:
            connection.set_tunnel(self.host, self.port, dict(self.proxy.headers))
        # A private name: by itself http.client gives each address of a name the whole time, and
        # each byte of a proxy.
        connection._create_connection = functools.partial(_dial, deadline, is_tunnel)
        try:
            connection.connect()
            sock = connection.sock
            if self.ssl_context:
                sock.settimeout(max(deadline - _clock.now(), 0.001))  # of the whole handshake
                sock = self.ssl_context.wrap_socket(sock, server_hostname=self.host)
            return _Link(sock, self.max_body)
        except (OSError, UnicodeError, HTTPException) as error:
            connection.close()
            is_tls = getattr(error, 'library', None) == 'SSL'
            why = str(getattr(error, 'strerror', None) or error)
            why = 'no answer in time' if isinstance(error, socket.timeout) else why
            ask = 'is it running on that port? The default of a service is 5000'
            if isinstance(error, (socket.gaierror, UnicodeError)):
                ask = 'is the name right?'
        # After the except clause: the context of the error would keep the socket open.
        if is_tls:  # without the place in the source of Python
            why = re.sub(r'\[.*?\] | \(_ssl\.c.*\)', '', why)
            ask = 'does it serve https, by a certificate that ssl_context or SSL_CERT_FILE trusts?'
        elif self.proxy:
            ask = 'is the proxy of the environment right?'
        raise Unreachable(f'cannot connect to {self.via or self.netloc}: {_printable(why)}; {ask}')


def _dial(deadline: float, is_tunnel: Any, place: tuple[str, int], *more: Any) -> Any:
    """Connect to one address of a host after the other: they share the time."""
    found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
    # Few listen on ::1, which stands first for localhost: Windows would try it for two seconds.
    found.sort(key=lambda one: one[4][0] == '::1')
    failure = OSError(f'{place[0]} has no address')
    for tried, (family, kind, protocol, _, where) in enumerate(found):
        sock: Any = None
        try:  # to make one is an error where the system has no IPv6
            sock = (_Tunnel if is_tunnel else socket.socket)(family, kind, protocol)
            _sockets.add(sock)  # at once: a fork may fall while it connects
            left = (deadline - _clock.now()) / (len(found) - tried)
            sock.settimeout(max(left, 0.001))
            sock.connect(where)
            sock.settimeout(max(deadline - _clock.now(), 0.001))
            if is_tunnel:
                sock.deadline = deadline
            return sock
        except OSError as error:
            if sock:
                sock.close()
            failure = error
    raise failure


class _Tunnel(socket.socket):
    """A connection to a proxy, which may answer byte by byte: http.client reads it as a file."""

    deadline = 0.0

    def recv_into(self, *args: Any) -> int:
        left = self.deadline - _clock.now()
        if left <= 0:
            raise socket.timeout('timed out')
        self.settimeout(left)
        return super().recv_into(*args)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # http.client may hold a file of it that is open still
            self.shutdown(socket.SHUT_RDWR)
        super().close()


class _InProcess:
    """A service of this process as an address: encoded, checked and decoded as ever."""

    def __init__(self, micro: Microservice, headers: Headers) -> None:
        getattr(micro, '_warn_once', bool)()
        self.micro, self.fields = micro, headers + _JSON
        self.address = f'{micro.name} (in process)'
        self.skip_until = 0.0

    def call(
        self, signer: Any, method: str, rule: str, body: bytes, deadline: float, connect_by: float
    ) -> Any:
        fields: Headers = () if signer is None else tuple(signer.sign_call(method, rule, body))
        given = dict(self.fields + fields)
        status, headers, data = self.micro.answer(method, rule, given, body)
        reply = _ReplyHead(status, len(data), 0.0, '', '', _joined(headers))
        if signer is not None:
            signer.check_reply(fields, status, reply.headers, data)
        return _returned(reply, data, deadline)

    def close(self) -> None:
        pass


class _Workers:
    """Daemon threads for the calls of `asend`: started as needed, and used again.

    Not an executor: its threads are few, and a program would wait for their calls at its end.
    """

    def __init__(self, queue: Any) -> None:
        self.calls = queue.SimpleQueue()
        self.idle: collections.deque[None] = collections.deque()  # one for each idle thread

    def do(self, call: Callable[[], None]) -> None:
        try:
            self.idle.pop()  # claims a thread
        except IndexError:
            threading.Thread(target=self._work, daemon=True).start()
        self.calls.put(call)

    def _work(self) -> None:
        while True:
            self.calls.get()()
            self.idle.append(None)


@functools.lru_cache(maxsize=1)
def _workers_of(process: int) -> _Workers:
    """The threads of this process: a forked child has none of its parent's."""
    import queue

    return _Workers(queue)


def _settle(future: Any, method: str, result: Any) -> None:
    if not future.done():  # else it was cancelled
        getattr(future, method)(result)


class Friend(_Guarded):
    """A service that this process calls.  Threads may share one.

    You call: `send`, or `asend` in async code, `within` before them; `setRule`; `ping` and `wait`;
    `close`.

    Args:
        name (str): what you call it.
        address: 'http://host:port', 'host:port' or 'https://...', with a path prefix if need be;
            a list of them, over which calls are spread; or a Microservice of this process.
        token (dict, str or list): rule -> token, or one for every rule; of a list the first.
        secretKey: what signs calls and checks that replies are signed, such as Keys('...') of
            examples/signed; see `_checked_signer`.  Only replies that are signed are believed.
        timeout (float): seconds for a whole call, connecting included, default 60.  A service of
            this process is called directly, and has no limit.
        ssl_context: for https, and only that; default: ssl.create_default_context().
        headers (dict): name -> value, sent with each call, such as an API key for a gateway.
        max_body (int): bytes of a request's or reply's body, default 8 MiB.

    Raises:
        TypeError, ValueError: for what cannot be an address, a token, a header or a timeout.
    """

    def __init__(
        self,
        name: str,
        address: str | Microservice | Sequence[str | Microservice],
        token: Tokens = None,
        secretKey: Any = None,
        *,
        timeout: float = 60,
        ssl_context: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        max_body: int = 8 << 20,
    ) -> None:
        if isinstance(address, str) and '://' in str(name) and '://' not in address:
            raise ValueError("write Friend('app1', 'http://host:5000'): the name, then the address")
        self.name = name
        self.token = token
        self._rule_tokens = _Tokens()  # of setRule
        self._signer = _checked_signer(secretKey)
        self.timeout = _checked_seconds('timeout', timeout)
        self.max_body = _checked_number('max_body', max_body)
        several = address if isinstance(address, (list, tuple)) else (address,)
        if not several:
            raise ValueError('address is an empty list: give at least one')
        fields = _checked_headers(headers)
        self._addresses: list[Any] = [  # a service may be of another copy of this module
            _InProcess(one, fields)
            if hasattr(type(one), 'aanswer')
            else _Address(one, ssl_context, max_body, fields)
            for one in several
        ]
        self._where = ', '.join(one.address for one in self._addresses)
        self._turn = itertools.count()
        self._settings: dict[str, _Setting] = {}
        self._within: float | None = None  # seconds

    def __repr__(self) -> str:
        return f'<Friend {self.name!r} at {self._where}>'

    def __reduce__(self) -> Any:
        raise TypeError('a Friend holds connections and is not copied: make one in each process')

    def setRule(
        self, rule: str, method: str | None = None, token: Token = None, timeout: Seconds = None
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
        self._settings[path] = _Setting(method or 'POST', seconds)
        if token:
            self._rule_tokens[path] = token
        else:
            self._rule_tokens.pop(path, None)

    def within(self, timeout: float) -> Friend:
        """This friend, with *timeout* seconds for a call: ``aFriend.within(2.5).send('/rule')``.

        It shares connections, tokens and settings, but for their timeouts.  A token that is
        assigned later, to ``aFriend.token`` as a whole, is not its own.
        """
        friend = object.__new__(type(self))
        friend.__dict__.update(self.__dict__, _within=_checked_seconds('timeout', timeout))
        return friend

    def send(self, rule: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function under *rule* and give what it returns.

        Every further argument is the remote function's, whatever its name.

        Returns:
            The value; a tuple where the function returned a tuple.

        Raises:
            MicroconnectError: for each way a call can fail; see the table at the top.
            Whatever a property or an iterator among the arguments raises.
        """
        if _async_service.get() is not None and _is_loop_running():
            raise RuntimeError('in an async rule, `await asend(...)`: `send` would block the loop')
        path = rule if isinstance(rule, str) and rule[:1] == '/' else _path_of(rule)
        tokens = self._tokens
        token = self._rule_tokens.by_rule.get(path) or tokens.by_rule.get(path) or tokens.default
        token = token[0] if type(token) is tuple else token
        body: Any = b''
        try:
            body = b'{"args":%b,"kwargs":%b,"token":%b}' % (
                _encode(args, 'args'),
                _encode(kwargs, 'kwargs') if kwargs else b'{}',
                _encode(token, 'token') if token else b'null',
            )
            if len(body) > self.max_body:
                too_large = _over_max_body(f'the call of {len(body)} bytes', self.max_body)
                raise too_large.with_call(path, self._where)
            return self._call(path, self._settings.get(path, _NO_SETTING), body)
        except (_NoForm, _BadForm) as error:
            raise BadCall(str(error)).with_call(path, self._where) from None
        except BaseException as error:
            _clear_frames(error)
            raise
        finally:
            token = body = None  # a traceback shows what this frame holds

    async def asend(self, rule: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call as `send` does, without blocking the event loop.

        Each call in flight holds a thread, which stays for later calls.  Cancelling the await does
        not stop the call, which runs to its end.
        """
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError('asend needs a running event loop of asyncio; use send') from None
        future = loop.create_future()
        send = functools.partial(self.send, rule, *args, **kwargs)
        send = functools.partial(contextvars.copy_context().run, send)

        def call(future: Any) -> None:
            try:
                method, result = 'set_result', send()
            except StopIteration as error:  # no future takes it
                method, result = 'set_exception', RuntimeError(f'raised {error!r}')
            except BaseException as error:
                method, result = 'set_exception', error
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_settle, future, method, result)
            del result, future  # the traceback holds this frame

        try:
            _workers_of(os.getpid()).do(functools.partial(call, future))
        except RuntimeError as no_thread:
            raise Busy(f'no call is possible: {no_thread}').with_call(rule, self._where) from None
        try:
            return await future
        finally:
            del future  # it holds the error, whose traceback holds this frame

    def ping(self, timeout: float = 5) -> bool:
        """Whether any address answers HTTP within *timeout* seconds."""
        return not self._unavailable_reason(_clock.now() + _checked_seconds('timeout', timeout))

    def wait(self, timeout: float = 60) -> None:
        """Wait until `ping` succeeds; after *timeout* seconds CallTimeout tells the reason."""
        deadline = _clock.now() + _checked_seconds('timeout', timeout)
        why = latest = self._unavailable_reason(deadline)
        while latest:
            left = deadline - _clock.now()
            if left <= 0:
                text = f'{self._where} did not answer within {timeout} s: {why}'
                raise CallTimeout(text, sent=False, rule='/', address=self._where)
            time.sleep(min(left, 0.1))
            latest = self._unavailable_reason(deadline)
            if left > 1:  # the last attempts have no time for a real reason
                why = latest

    def _unavailable_reason(self, deadline: float) -> str:
        """Why none of the addresses answers; an empty string where one does."""
        reasons: list[str] = []
        for address in self._addresses:
            now = _clock.now()
            by = now + (deadline - now) / (len(self._addresses) - len(reasons))
            try:
                address.call(None, 'GET', '/', b'', by, by)
                return ''
            except MicroconnectError as error:
                status = error.status
                if status and status < 500 and status != 408:
                    return ''
                why = f'it answered {status}' if status else str(error)
                reasons.append(why.partition('; the call may')[0])
            except BaseException as error:
                _clear_frames(error)
                raise
        return '; '.join(reasons)

    def close(self) -> None:
        """Close the idle connections; a later call opens new ones."""
        for address in self._addresses:
            address.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, rule: str, setting: _Setting, body: bytes) -> Any:
        """Call at one address after the other, until the call may have run at one."""
        now = _clock.now()
        seconds = self._within or setting.timeout or self.timeout
        deadline = now + seconds
        addresses = self._addresses if len(self._addresses) == 1 else self._in_turn(now)
        failures: list[MicroconnectError] = []
        for address in addresses:
            # An address that swallows packets must not use up the time of the others.
            connect_by = now + (deadline - now) / (len(addresses) - len(failures))
            try:
                return address.call(self._signer, setting.method, rule, body, deadline, connect_by)
            except MicroconnectError as error:
                if isinstance(error, CallTimeout):
                    error.args = (str(error).replace('in time', f'within timeout={seconds:g} s'),)
                if isinstance(error, BadArguments) and "'timeout'" in str(error):
                    error.args = (f'{error} (within(5).send(...) sets the seconds of a call)',)
                error.with_call(rule, address.address)
                if not _may_be_sent_again(error) or len(addresses) == 1:
                    raise
                failures.append(error)
            now = _clock.now()
            address.skip_until = now + _REST
            why = _printable(str(failures[-1]))
            _log('info', '%s rests for %.0f s: %s', address.address, _REST, why)
        kind = Busy if any(isinstance(error, Busy) for error in failures) else Unreachable
        why = 'no address accepted the call: ' + '; '.join(map(str, failures))
        raise kind(why).with_call(rule, self._where)

    def _in_turn(self, now: float) -> list[Any]:
        """The addresses in the order to try them: those that failed lately come last."""
        addresses = sorted(self._addresses, key=lambda one: one.skip_until > now)
        awake = sum(one.skip_until <= now for one in addresses) or len(addresses)
        first = next(self._turn) % awake
        return addresses[first:awake] + addresses[:first] + addresses[awake:]


# -------------------------------------------------------------------------------------------- rules
# How a request is answered; then what `_Rules` asks for it.

_DEBUG, _INFO = 10, 20  # logging's levels
_PATIENCE = 10.0  # seconds that a large request waits for others to be decoded

_Rule = collections.namedtuple('_Rule', 'path function methods')


class _Rules(_Guarded):
    """The rules and their tokens, and how a request is answered: nothing here knows a socket."""

    def __init__(
        self, name: str, debug: Any, token: Any, signer: Any, origins: Any, max_body: int
    ) -> None:
        self.name = name
        self.debug: bool | None = debug
        self.max_body = _checked_number('max_body', max_body)
        self.token = token
        self._rule_tokens = _Tokens()  # of typing
        self._signer = _checked_signer(signer)
        self._origins = _checked_origins(origins)
        self._rules: dict[str, _Rule] = {}
        self._loop: Any = None  # the one of the async rules, once one was called
        self._tasks: weakref.WeakSet[Any] = weakref.WeakSet()  # there, of this service
        self._logger = _find_logger()

    def typing(
        self, rule: str = '', token: Token = False, methods: Sequence[str] = ('POST',)
    ) -> Callable[[Function], Function]:
        """Decorate a function to answer under *rule*; it stays callable as usual.

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
            # At a prompt, as in a notebook, code is given again and again, and the latest counts.
            if path in self._rules and not hasattr(sys, 'ps1'):
                raise ValueError(f'rule {path!r} is taken already: give each function its own')
            self._rule_tokens.by_rule[path] = token  # before the rule: it is never open meanwhile
            self._rules[path] = _Rule(path, function, tuple(methods))
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
            'methods': ['POST'], 'token': whether it needs one}; plain data, sorted by rule.
        """
        import inspect

        listed = {}
        for path, rule in sorted(self._rules.copy().items()):
            signature, doc = '(...)', ''
            # Some builtins have no signature, and a repr may raise.
            with contextlib.suppress(Exception):
                doc = inspect.getdoc(getattr(rule.function, 'func', rule.function)) or ''
                signature = _bounded(str(inspect.signature(rule.function)))
            doc, token = _bounded(doc.partition('\n')[0]), bool(self._token_of(path))
            facts = {'signature': signature, 'doc': doc, 'methods': list(rule.methods)}
            listed[path] = {**facts, 'token': token}
        return listed

    def answer(
        self, method: str, path: str, headers: Fields, body: bytes = b'', caller: str = ''
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
        return self._handle(head, body, caller)

    async def aanswer(
        self, method: str, path: str, headers: Fields, body: bytes = b'', caller: str = ''
    ) -> Answer:
        """Answer as `answer` does: async rules on the running loop, plain ones in a thread."""
        import asyncio
        import inspect

        loop, begun = asyncio.get_running_loop(), _clock.now()
        head = _RequestHead(method, path, _joined(headers.items()))
        if len(body) > _LARGE:  # to check and decode it takes long
            admitted = await loop.run_in_executor(None, self._admit, head, body, None)
        else:
            admitted = self._admit(head, body, None)
        rule, args, kwargs, proof, answer = admitted
        if answer is None and inspect.iscoroutinefunction(rule.function):
            answer = await self._run_async(rule, args, kwargs)
            return self._finish(answer, caller, head, begun, proof)
        if answer is None and rule.methods:  # neither a refusal nor a builtin rule: it may block
            run: Any = contextvars.copy_context().run
            call = functools.partial(run, self._handle, head, body, caller, admitted=admitted)
            return await loop.run_in_executor(None, call)
        return self._handle(head, body, caller, admitted=admitted)

    def _handle(
        self, head: _RequestHead, body: bytes, caller: str, busy: Any = None, admitted: Any = None
    ) -> Answer:
        """`answer`, for header names in lower case; all hosts end here.

        *busy* is why nothing is run, and *admitted* what `_admit` gave, if it was asked before.
        """
        begun = _clock.now()
        admitted = admitted or self._admit(head, body, busy)
        rule, args, kwargs, proof, answer = admitted  # type: Any, Any, Any, Any, Any
        if answer is None:
            try:
                # A context of its own: what a call sets must not reach the connection's next one.
                context, function = contextvars.copy_context(), rule.function
                if kwargs:  # PyPy's `run` has parameters whose names the keywords may have
                    function = functools.partial(function, **kwargs)
                value = context.run(function, *args)
                # A plain callable may return a coroutine, too.  `isinstance` with an abstract class
                # is slow, so the usual types are told apart first: that is worth 3 % of a call.
                if type(value) not in _NATIVE and isinstance(value, abc.Awaitable):
                    value = context.run(self._result_of, value)
                answer = context.run(self._reply_with, value)
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)) and _in_main_thread():
                    raise
                answer = self._raised(rule, error, args, kwargs)
        is_told = self.debug or self._logger.isEnabledFor(_DEBUG)
        if is_told or proof is not None or self._origins or answer[0] != 200:
            return self._finish(answer, caller, head, begun, proof)
        return answer  # type: ignore[no-any-return]  # most calls: nothing to say or to add

    def _admit(self, head: _RequestHead, body: bytes, busy: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Ask whether a request may run, each question once, in this order.

        Returns (rule, args, kwargs, proof, None), or (None, [], {}, proof, refusal).
        """
        method, path, headers = head.method, head.path, head.headers
        proof, rule = None, self._rules.get(path)
        try:
            # A browser adds these fields unsigned: refuse them before looking at the signature.
            if 'origin' in headers or 'sec-fetch-site' in headers:
                _check_browser(headers, self._origins)
            builtin = None if method == 'POST' else self._builtin_rule(head, rule)
            if not builtin and len(body) > self.max_body:  # perhaps it was not read whole
                raise _over_max_body(f'the body of {len(body)} bytes', self.max_body)
            if not builtin and self._signer is not None:
                proof = self._signer.check_call(method, path, headers, body)
            if busy:
                raise busy
            if builtin:
                return builtin, [], {}, None, None
            if rule is None or method not in rule.methods:
                raise _no_rule(method, path, self._rules, self._open_rules())
            kind = headers.get('content-type', '')
            if (body or method != 'GET') and not _is_json(kind):
                raise BadCall(f'Content-Type has to be application/json, not {kind!r}', status=415)
            token = self._token_of(path)
            if len(body) <= _LARGE:
                args, kwargs = _parse_call(path, body, token)
                return rule, args, kwargs, proof, None
            # Held over the token check: a refused body is freed before the next one is decoded.
            with _large_body(_PATIENCE):
                args, kwargs = _parse_call(path, body, token)
            return rule, args, kwargs, proof, None
        except Exception as error:
            return None, [], {}, proof, _refusal(error)

    def _token_of(self, path: str) -> Token:
        """The token that guards a rule; the one given last counts."""
        tokens = self._tokens
        return tokens.by_rule.get(path) or self._rule_tokens.by_rule.get(path) or tokens.default

    def _builtin_rule(self, head: _RequestHead, rule: _Rule | None) -> _Rule | None:
        """What needs neither token nor signature: the name of the service, where no *rule* answers
        GET /, and what a browser asks before a page of an allowed origin calls."""
        is_preflight = head.method == 'OPTIONS' and 'access-control-request-method' in head.headers
        if is_preflight and head.headers.get('origin') in self._origins:
            return _Rule(head.path, lambda: None, ())
        is_ping = head.path == '/' and head.method in ('GET', 'HEAD')
        if is_ping and not (rule and head.method in rule.methods):
            return _Rule('/', lambda: self.name, ())
        return None

    def _open_rules(self) -> list[str]:
        """The rules that anyone can call."""
        if self._signer is not None:
            return []
        return [path for path in self._rules.copy() if not self._token_of(path)]

    def _reply_with(self, value: Any) -> Answer:
        if isinstance(value, types.GeneratorType):  # here, so that what it raises is the rule's
            value = _items(value, self.max_body)
        body = _encode(value if type(value) is tuple else (value,), 'reply')
        if len(body) > self.max_body:
            raise _BadForm(str(_over_max_body(f'the reply of {len(body)} bytes', self.max_body)))
        return 200, _REPLY, body

    def _raised(self, rule: _Rule, error: BaseException, args: Any, kwargs: Any) -> Answer:
        """The answer that tells what the function raised, or that it could not be called."""
        # Checked after the failure: to check the signature first would slow each call by a fifth.
        if isinstance(error, TypeError) and _is_misfit(error, rule.function, args, kwargs):
            return _refusal(BadArguments(str(error)))
        info = _for_log(error)
        members = _description(error, self._masked)
        detail = text = f'{members["type"]}: {members["message"]}'
        if not isinstance(error, (_NoForm, _BadForm)):  # else the path in the value says it all
            text = self._masked(_traceback_of(error))
        if text is detail or len(text) > 2 * _MOST_TEXT:
            info = None
        more = '' if info else f': {_bounded(text)}'
        _log('error', '%s raised%s', rule.path, more, exc_info=info, rule=rule.path, status=500)
        if self.debug:
            members['traceback'] = _bounded(text)
        body = _Raised(_problem(500, detail, exception=members))
        body.cause = error
        return 500, _PROBLEM, body

    def _masked(self, text: str) -> str:
        """*text* without the tokens of this service."""
        several: set[str] = set()
        for tokens in (self._tokens, self._rule_tokens):
            token: Any
            for token in (tokens.default, *tokens.by_rule.values()):
                several.update((token,) if isinstance(token, str) else token or ())
        for token in sorted(several, key=len, reverse=True):
            text = text.replace(token, '***').replace(repr(token)[1:-1], '***')
        return text

    def _finish(
        self, answer: Answer, caller: str, head: Any = _NO_HEAD, begun: float = 0, proof: Any = None
    ) -> Answer:
        """Log an answer, sign it if its call was signed, and allow a page to read it."""
        status, fields, body = answer
        level = _DEBUG if status in (200, 500) else _INFO
        if self.debug or self._logger.isEnabledFor(level):
            self._log_call(status, body, head.path, caller, begun)
        if proof is not None:  # None for a replayed call: its reply went out the first time
            try:
                fields += self._signer.sign_reply(proof, status, fields, body)
            except Exception as error:
                _log('error', 'a reply could not be signed', exc_info=_for_log(error))
                status, fields, body = 500, _PROBLEM, _problem(500, 'the reply could not be signed')
        if self._origins:
            fields += (('Vary', 'Origin'),)
            if head.headers.get('origin') in self._origins:
                fields += (('Access-Control-Allow-Origin', head.headers['origin']),)
                fields += (('Access-Control-Expose-Headers', '*'),)
                if 'access-control-request-method' in head.headers:
                    asked = head.headers.get('access-control-request-headers', '')
                    names = re.findall(_TCHARS.decode(), asked) or ['Content-Type']
                    fields += (*_PREFLIGHT, ('Access-Control-Allow-Headers', ', '.join(names)))
        return status, fields, body

    def _log_call(self, status: int, body: bytes, path: str, caller: str, begun: float) -> None:
        """One line for a call: at DEBUG, and in debug on stderr; for a refusal at INFO."""
        is_refusal = status not in (200, 500)
        rule = path.partition('?')[0][:200]
        spent = 1000 * (_clock.now() - begun) if begun else 0.0
        source = ' from %r' if caller else '%.0s'  # the latter prints nothing
        pattern = f'{"refused" if is_refusal else "answered"} %s: %r{source} in %.1f ms'
        args = [status, rule, caller, spent]
        if is_refusal:
            pattern, args = f'{pattern}: %r', [*args, _decode(body)['detail']]
        facts = {'rule': rule, 'status': status, 'milliseconds': spent, 'caller': caller}
        _log('info' if is_refusal else 'debug', pattern, *args, **facts)
        if self.debug:
            _say(f'{self.name}: {pattern % tuple(args)}', sys.stderr)

    async def _run_async(self, rule: _Rule, args: Any, kwargs: Any) -> Answer:
        """Run an async rule on the loop of whoever hosts the service."""
        import asyncio

        before = _async_service.get()
        _async_service.set(self)
        try:
            return self._reply_with(await rule.function(*args, **kwargs))
        except BaseException as error:
            is_exit = isinstance(error, (KeyboardInterrupt, SystemExit)) and _in_main_thread()
            if is_exit or isinstance(error, asyncio.CancelledError):
                raise
            return self._raised(rule, error, args, kwargs)
        finally:
            _async_service.set(before)

    def _result_of(self, awaitable: Any) -> Any:
        """Await it on the loop of async rules, and give its result."""
        import asyncio

        async def wait() -> Any:
            return await awaitable

        coroutine = wait()
        try:
            if _async_service.get() is not None and _is_loop_running():
                text = 'in an async rule, `await aanswer(...)`: `answer` would block the loop'
                raise RuntimeError(text)
            with _process_lock('loop'):
                self._loop = _loop_of(os.getpid())
            _async_service.set(self)  # in the context of this call, which its task inherits
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except Exception:
            coroutine.close()  # or Python warns that nobody awaited them
            getattr(awaitable, 'close', int)()
            raise
        try:
            return future.result()
        finally:
            future.cancel()  # nobody waits any more; a future that is done stays as it is

    def _cancel_tasks(self) -> None:
        """Cancel this service's calls of async rules, and what they left on the loop."""
        loop, tasks = self._loop, self._tasks
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # somebody closed the loop
                loop.call_soon_threadsafe(lambda: [task.cancel() for task in set(tasks)])


def _is_misfit(error: TypeError, function: Any, args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the call raised because its arguments do not fit, and the function did not run."""
    import inspect
    import traceback

    try:
        inspect.signature(function).bind(*args, **kwargs)
        return False
    except ValueError:  # some builtins have no signature
        return False
    except TypeError:
        pass
    # A decorator may have called the function with arguments of its own, and failed afterwards.  So
    # where one ran, believe Python alone: it says `name() takes ...`, with this function's name.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    frames = [frame for frame in frames if not _is_ours(frame)]
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    several = (inner, inspect.unwrap(inner))
    codes = [one.__code__ for one in several if hasattr(one, '__code__')]
    names = {code.co_name for code in codes} | {getattr(one, '__qualname__', '') for one in several}
    told = re.match(r'([\w.<>]+)\(\) (?:takes|missing|got) ', str(error))
    has_run = any(frame.f_code in codes[-1:] for frame in frames)
    return not frames or bool(told and told.group(1) in names and not has_run)


def _check_not_in_class(function: Any) -> None:
    """Refuse a method in the body of its class: there would be no object to call it on."""
    function = getattr(function, '__wrapped__', function)  # of a decorator
    if isinstance(function, types.FunctionType):
        owner, _, name = function.__qualname__.rpartition('.')
        is_method = function.__code__.co_varnames[:1] in (('self',), ('cls',))
        if is_method and owner and not owner.endswith('<locals>'):
            advice = f"register it bound: Micro.typing('/{name}')(obj.{name})"
            raise TypeError(f'{owner}.{name} is a method without an object; {advice}')


def _no_rule(method: str, path: str, rules: Mapping[str, _Rule], is_open: list[str]) -> UnknownRule:
    """Why there is no rule to call.  A stranger is told the names of open rules only."""
    if method not in _METHODS + ('HEAD',):
        return UnknownRule(f'method {method[:20]!r} is not one that rules answer', status=501)
    rule = rules.get(path)
    if rule is not None:
        methods = ', '.join(rule.methods)
        text = f'{path} answers {methods}, not {method}: call it by {rule.methods[0]}'
        text += f", or add {method!r} to the rule's methods" if method in _METHODS else ''
        return UnknownRule(text, status=405, headers=(('Allow', methods),))
    near = _nearest(path, is_open)
    hint = f'did you mean {near!r}?' if near else 'is it registered under that name?'
    if '?' in path:
        path = path[: path.index('?') + 1]  # what follows may be a token
        hint = 'the arguments of a call are in its body, not in a query'
    return UnknownRule(f'no rule {path[:200]!r} here: {hint}')


def _nearest(path: str, rules: Iterable[str]) -> str:
    """The rule that *path* is meant to be, perhaps; an empty string if none is like it."""
    import difflib

    several = list(rules)
    return ''.join(difflib.get_close_matches(path[:200], several, 1)) if len(several) <= 100 else ''


# Pages: a browser lets a page call only where its origin is allowed, and tells it in headers.

# A web origin (RFC 6454) as browsers write it: in lower case, without the default port.
_ORIGIN = (
    r'(?!http:.*:80\Z|https:.*:443\Z)'
    r'[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[1-9][0-9]{0,4})?'
)
_PREFLIGHT = (  # what a page of an allowed origin may send, for an hour (Fetch standard)
    ('Access-Control-Allow-Methods', ', '.join(_METHODS)),
    ('Access-Control-Max-Age', '3600'),
)


def _checked_origins(origins: Any) -> frozenset[str]:
    if isinstance(origins, str):
        raise TypeError(f'origins is a list: origins=({origins!r},)')
    for origin in origins:
        if not (isinstance(origin, str) and re.fullmatch(_ORIGIN, origin)):
            like = "'https://app.example' or 'http://localhost:8000'"
            raise ValueError(f'an origin is as browsers write it, such as {like}, not {origin!r}')
    return frozenset(origins)


def _check_browser(headers: Mapping[str, str], origins: frozenset[str]) -> None:
    """Refuse requests that a foreign web page makes through its visitor's browser.

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
    elif headers.get('sec-fetch-site') in ('cross-site', 'same-site'):  # such as another port
        raise Forbidden('web pages of other sites may not call this service', status=403)


# The event loop of async rules: one for a process, in a thread of its own.

# The service whose async rule runs here; its tasks inherit it.
_async_service: Any = contextvars.ContextVar('microconnect.async_service', default=None)


def _is_loop_running() -> bool:
    import asyncio

    with contextlib.suppress(RuntimeError):
        return bool(asyncio.get_running_loop())
    return False


@functools.lru_cache(maxsize=1)
def _loop_of(process: int) -> Any:
    """The event loop that the async rules of a process share."""
    import asyncio

    def make_task(loop: Any, coroutine: Any, **more: Any) -> Any:
        """Note the tasks of a service, so that `stop` can cancel them."""
        task = asyncio.Task(coroutine, loop=loop, **more)
        service = _async_service.get()
        if service is not None:
            service._tasks.add(task)
        return task

    loop = asyncio.new_event_loop()
    loop.set_task_factory(make_task)
    try:
        threading.Thread(target=_run_loop, args=(loop,), daemon=True).start()
    except RuntimeError:  # the system has no more threads
        loop.close()
        raise
    return loop


def _run_loop(loop: Any) -> None:
    import asyncio

    asyncio.set_event_loop(loop)
    while True:
        with contextlib.suppress(SystemExit, KeyboardInterrupt):  # of a task: the others go on
            loop.run_forever()


# --------------------------------------------------------------------------------------------- WSGI
# An adapter of `answer` (PEP 3333).


def _wsgi(service: _Rules, environ: dict[str, Any], start_response: Any) -> list[bytes]:
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
    return [] if method == 'HEAD' else [bytes(reply)]


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


# --------------------------------------------------------------------------------------------- ASGI
# An adapter of `aanswer` (ASGI 3).


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
    await send({'type': 'http.response.body', 'body': b'' if method == 'HEAD' else bytes(reply)})


# ----------------------------------------------------------------------------------------- listener
# Our own server: a thread for each connection.  How a stop goes, once `stop` was called:
#
# 1. `stop_by` is set, and the alarm wakes the listener's thread.  From now on a request that is
#    read whole is answered 503, and no connection is kept after its reply.
# 2. Those who connected last are still accepted, to be told 503; then the port is free.
# 3. Each connection is ended: the flag `is_ended` says that it reads no more, and those that wait
#    for a request are woken.  They answer 408, which says that nothing ran.
# 4. The listener waits once, for the connections that still answer a call (until `stop_by`) or
#    refuse one (for a second at the most).
# 5. What is left is cut, in both directions; the calls and tasks of async rules are cancelled.

_BLOCK = 1 << 18  # bytes that have to move within read_timeout
_HELD = 64 << 20  # bytes of requests and large replies at once, if max_body is not larger
_STALL = 2.0  # seconds without a byte: who holds much and stalls makes room for others
_LINGER = 2.0  # seconds; nginx's lingering_timeout is 5: here a thread waits
_LAST_WORDS = 0.1  # seconds that a refused peer has at stop to take its 408 or 503
_TLS_ALERT = b'\x15\x03\x01\x00\x02\x02\x0a'  # fatal: unexpected message (RFC 8446, 6)


class _Connection:
    """A connection to the listener, served in its own thread.

    Others may end its wait for a request (a newcomer needs room, the service stops), and it ends
    one itself that takes too long.  Then only the receiving half is shut down.  So the peer can be
    told 408, and knows that its request was not run.
    """

    def __init__(self, listener: _Listener, sock: socket.socket, address: Any) -> None:
        self.listener = listener
        micro = self.micro = listener.micro
        self.caller = _netloc(*address[:2])
        self.timed = _TimedSocket(sock)
        self.reader = _Reader(self._receive, _parse_request_head, _REQUEST_LINE, micro.max_head)
        self.thread: threading.Thread | None = None
        # What its own thread does, and what `end` does to it then:
        #   'new'        its thread has not begun                         wakes it, to answer 408
        #   'idle'       waits for the first bytes of a request           wakes it, to answer 408
        #   'reading'    has the first bytes, not the whole request       wakes it, to answer 408
        #   'answering'  runs the function                                lets it finish, then close
        #   'sending'    sends the reply                                  lets it finish, then close
        #   'refusing'   says why nothing was run                         lets it finish
        #   'closing'    waits for the peer to close, too                 shortens the wait
        self.state = 'new'
        self.is_ended = False  # reads no more requests; set by any thread
        self.idle_since = _clock.now()
        self.count = 0  # bytes that have come since the deadline was set
        self.held = 0  # bytes of the body that is being answered, or of a large reply
        # Spread, so that the connections of a burst do not all come back at once.
        self.retire_at = _clock.now() + micro.max_age * (1 - os.urandom(1)[0] / 2550)

    def serve(self) -> None:
        """Serve request after request until either side closes."""
        self.thread, self.state = threading.current_thread(), 'idle'
        head: _RequestHead | None = None
        seconds = self.micro.read_timeout  # for the first word; later idle_timeout
        try:
            if self.listener.ssl_context:
                self._begin_tls(self.listener.ssl_context)
            while True:
                head = None
                self.idle_since, self.state = _clock.now(), 'idle'
                self.timed.deadline = self.idle_since + seconds
                head = self.reader.head()
                if not head:
                    break
                if not self._serve_request(head):
                    self._linger()
                    break
                seconds = self.micro.idle_timeout
        except MicroconnectError as error:
            self._refuse(error, head)
        except MemoryError as error:
            if self.state not in ('answering', 'sending'):  # else the function may have run
                self._refuse(error, head)
        except OSError:
            pass  # the peer is gone, or was too slow to take its reply

    def _begin_tls(self, context: Any) -> None:
        import ssl

        # OpenSSL 3 would let nothing be sent after the receiving half is shut down, such as a 408.
        # Python names the option from 3.10 on.  It is needed while wrapping only, and the context
        # is the caller's.
        option = getattr(ssl, 'OP_IGNORE_UNEXPECTED_EOF', 0x80)
        with _process_lock('wrap'):
            options, context.options = context.options, context.options | option
            try:
                # The handshake is apart, so that `end` finds the socket of a silent peer.
                sock = context.wrap_socket(
                    self.timed.sock, server_side=True, do_handshake_on_connect=False
                )
            finally:
                context.options = options
        self.timed = _TimedSocket(sock)
        self.timed.deadline = _clock.now() + self.micro.read_timeout
        try:
            self._wait(sock.do_handshake)
        except OSError as error:
            _log('debug', 'a TLS handshake failed: %s', error)
            if getattr(error, 'reason', '') == 'HTTP_REQUEST':  # OpenSSL says nothing then
                socket.socket.send(sock, _TLS_ALERT)
            self._linger()  # or a reset takes the alert along
            raise

    def end(self, directions: int = socket.SHUT_RD) -> None:
        """Read no more requests, and wake the thread if it waits for one; any thread may ask.

        First the flag, then the shutdown: the thread looks at the flag before and after each wait.
        A flag raised after that look ends no call: the request is answered, and the connection
        closed after the reply.
        """
        self.is_ended = True
        is_cut, can_wake = directions == socket.SHUT_RDWR, _LOOK == _LONGEST
        if is_cut or (can_wake and self.state not in ('answering', 'sending', 'refusing')):
            with _accepting:  # nobody may be closing the descriptor meanwhile
                self.timed.shutdown(directions)

    def _wait(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Call what waits for the peer; socket.timeout if it is late, or the wait is ended.

        A shorter timeout left by an earlier wait may fire early; the loop then sets the right one.
        """
        timed, is_set = self.timed, False
        while not self.is_ended:
            left = min(timed.deadline - _clock.now(), _LOOK)
            if timed.seconds > 1.02 * left or (is_set and timed.seconds < left):
                timed.allow(left)
            try:
                return operation(*args)
            except socket.timeout:
                is_set = True
        raise socket.timeout('the wait was ended')

    def _receive(self, size: int) -> bytes:
        """Up to *size* bytes of a request; Busy where they do not come in time.

        What a peer has begun to say has read_timeout for each block of bytes.
        """
        reader = self.reader
        is_idle = self.state == 'idle' and reader.buffer in (b'', b'\r')  # no word yet
        if not is_idle and (self.state == 'idle' or self.count >= _BLOCK):
            self.timed.deadline, self.count = _clock.now() + self.micro.read_timeout, 0
            self.state = 'reading'
        try:
            data: bytes = self._wait(self.timed.recv, size)
        except socket.timeout:
            self.end()
        except OSError:
            data = b''
        if self.is_ended:
            # If a request is on its way just now, the 408 tells its sender that it did not run.
            idle = 'the connection was idle, or the service stops; send again'
            why = idle if is_idle else 'the request came too slowly'
            raise Busy(why, status=408, was_idle=is_idle)
        self.count += len(data)
        if len(reader.buffer) + len(data) + len(reader.content) > _PIECE:
            self.listener.wait_for_room(self)
        return data

    def _serve_request(self, head: _RequestHead) -> bool:
        """Read the rest of a request, and answer it; False where the connection is to be closed."""
        micro, reader = self.micro, self.reader
        self.state, self.count = 'reading', _BLOCK
        if head.expects and head.length <= micro.max_body and not reader.buffer:
            self.timed.sendall(b'HTTP/1.1 100 Continue\r\n\r\n', micro.read_timeout)
        body = reader.body(head.length, micro.max_body) if head.length else b''
        self.state, self.held = 'answering', len(body)
        busy = Busy('the service is stopping') if self.listener.stop_by else None
        status, headers, reply = micro._handle(head, body, self.caller, busy)
        self.held, self.state = 0, 'sending'
        keep = head.keep_alive and not self.is_ended and busy is None
        keep = keep and _clock.now() < self.retire_at
        self._send(status, headers, reply, keep)
        return keep

    def _send(self, status: int, headers: Headers, body: bytes, keep: bool) -> None:
        timed, seconds, length = self.timed, self.micro.read_timeout, len(body)
        head = _reply_head(status, headers, keep and self.micro.idle_timeout, int(time.time()))
        if self.reader.last_head[:5] == b'HEAD ':
            body = b''
        self.reader.last_head = b''  # what comes next, such as a 408, is no reply to it
        start = b'%bContent-Length: %d\r\n\r\n%b' % (head, length, body[:_PIECE])
        timed.sendall(start, seconds)
        if len(body) > _PIECE:  # a copy of a large body would cost as much memory again
            self.held, timed.moved_at, view = len(body), _clock.now(), memoryview(body)
            self.listener.make_room()  # never refuse a reply: its function has run
            for at in range(_PIECE, len(body), _BLOCK):
                timed.sendall(view[at : at + _BLOCK], seconds)
            self.held = 0

    def holds(self) -> int:
        """How many bytes of requests and large replies it holds."""
        return self.held + len(self.reader.buffer) + len(self.reader.content)

    def is_awaited(self, last: float) -> bool:
        """Whether a stopping listener waits for it: a call until `stop_by`, else until *last*."""
        until = self.listener.stop_by if self.state in ('answering', 'sending') else last
        return until is not None and _clock.now() < until

    def _refuse(self, error: MicroconnectError | MemoryError, head: _RequestHead | None) -> None:
        """Refuse an incomplete or invalid request, and read no more of them on this connection."""
        self.state = 'refusing'
        self.reader.buffer, self.reader.content = b'', bytearray()  # room for others
        with contextlib.suppress(OSError):
            answer = _refusal(error)
            if not getattr(error, 'was_idle', False):  # no call, nothing to log
                answer = self.micro._finish(answer, self.caller, head or _NO_HEAD)
            self._send(*answer, keep=False)
            self._linger()

    def _linger(self) -> None:
        """Close in stages (RFC 9112, 9.6): with bytes unread it would reset, and lose the reply."""
        self.timed.shutdown(socket.SHUT_WR)
        self.state = 'closing'
        until = _clock.now() + (_LAST_WORDS if self.listener.stop_by else _LINGER)
        data = b'...'
        while data:
            self.timed.allow(until - _clock.now())
            data = socket.socket.recv(self.timed.sock, _PIECE)  # raw, under TLS too


class _Listener(http.server.ThreadingHTTPServer):
    """Accepts connections, which socketserver calls requests.

    Its thread sleeps until one comes, or until `stop`.  socketserver calls, in this order:
    `get_request`, `process_request`, and in a thread of the connection's own `finish_request` and
    `shutdown_request`.
    """

    request_queue_size = 1024  # the stock 5 resets most of a burst of clients
    allow_reuse_address = os.name == 'posix'  # elsewhere two services could share a port
    timeout = 0  # `_accept` waits

    def __init__(
        self, micro: Microservice, address: tuple[str, int], ssl_context: Any, reuse_port: bool
    ) -> None:
        self.micro = micro
        self.process = os.getpid()
        self.ssl_context: Any = ssl_context
        # Python 3.11 knows it, too, but would pass over a system that has no such option.
        self.allow_reuse_port = reuse_port
        self.connections: set[_Connection] = set()
        self.stop_by: float | None = None
        self.signal = ''  # that asked `run` to stop
        self.watcher: Any = None  # a socket of `run`, which waits for the end
        self.has_ended = False
        self.address_family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
        super().__init__(address, http.server.BaseHTTPRequestHandler)
        self.socket.setblocking(False)  # a newcomer may be gone before it is accepted
        self.waking, self.alarm = socket.socketpair()
        self.alarm.setblocking(False)
        _sockets.update((self.socket, self.waking, self.alarm))
        self.thread = threading.Thread(target=self.serve, name='microconnect', daemon=True)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which can take seconds."""
        if self.allow_reuse_port:
            if not hasattr(socket, 'SO_REUSEPORT'):
                raise OSError(errno.ENOTSUP, 'this system cannot share a port: reuse_port=False')
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def url(self) -> str:
        scheme = 'https' if self.ssl_context else 'http'
        return f'{scheme}://{_netloc(_loopback(self.server_name), self.server_port)}'

    def stop(self, grace: float) -> None:
        """Begin to stop; calls in flight have *grace* seconds."""
        self.stop_by = min(self.stop_by or math.inf, _clock.now() + grace)
        with contextlib.suppress(OSError):  # it has ended, or was woken often
            self.alarm.send(b'\0')

    def serve(self) -> None:
        """Serve until `stop`, and until the calls in flight have ended; see the phases above."""
        try:
            while self.stop_by is None:
                self._accept(None)
            self._tell_of_stop()
            for _ in range(self.request_queue_size):
                if not self._accept(0):
                    break
            self.server_close()  # a successor may have the port
            for one in self.connections.copy():
                one.end()
            last = _clock.now() + 10 * _LAST_WORDS  # much, for a machine under load
            while any(one.is_awaited(last) for one in self.connections.copy()):
                time.sleep(0.002)
            for one in self.connections.copy():
                one.end(socket.SHUT_RDWR)
            self.micro._cancel_tasks()
            _log('info', '%s has stopped', self.micro.name)
        finally:
            self.close()

    def close(self) -> None:
        """Release the port and whatever else is held, but for the connections."""
        self.server_close()
        self.waking.close()
        self.alarm.close()
        self.has_ended = True
        if self.watcher:
            with contextlib.suppress(OSError):  # `run` has ended by an exception
                self.watcher.send(b'\0')

    def _tell_of_stop(self) -> None:
        """Say what is waited for."""
        busy = sum(one.state == 'answering' for one in self.connections.copy())
        text = f'{self.micro.name} stops' + (f' on {self.signal}' if self.signal else '')
        if busy:
            left = max((self.stop_by or 0) - _clock.now(), 0)
            text += f': {_count(busy, "call")} in progress, up to {left:.0f} s'
        _log('info', text)
        if busy and self.signal:
            _say(f'{text}; again to end at once', sys.stdout)

    def _accept(self, seconds: float | None) -> bool:
        """Take a connection, if one comes in time and before `stop`; say whether."""
        with getattr(selectors, 'PollSelector', selectors.SelectSelector)() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self.waking, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(seconds)]
        if self.socket in ready:
            self.handle_request()
        return self.socket in ready

    def make_room(self) -> bool:
        """Whether there is room for more bytes; else end the connection that stalled the longest.

        Unfinished requests come before replies, and none is ended whose bytes move.
        """
        everyone = self.connections.copy()
        if sum(one.holds() for one in everyone) <= max(_HELD, 2 * self.micro.max_body):
            return True
        since = _clock.now() - _STALL
        stalled = [one for one in everyone if one.holds() > _PIECE and one.timed.moved_at < since]
        reading = [one for one in stalled if one.state == 'reading' and not one.is_ended]
        sending = [one for one in stalled if one.state == 'sending']
        for one in sorted(reading or sending, key=lambda one: one.timed.moved_at)[:1]:
            one.end(socket.SHUT_RD if reading else socket.SHUT_RDWR)
        return False

    def wait_for_room(self, one: _Connection) -> None:
        """Wait for room for one more block of a request; Busy if there is none in time."""
        one.timed.moved_at = now = _clock.now()
        until = now + 2 * _STALL
        while not self.make_room():
            if now > until:
                raise Busy('too many large requests at once; try again later')
            time.sleep(0.02)
            one.timed.moved_at = now = _clock.now()  # it does not stall: it waits for us

    def _evict_idle(self) -> bool:
        """Close the connection that is idle the longest; False if none is idle."""
        idle = [one for one in self.connections.copy() if one.state in ('new', 'idle')]
        idle = [one for one in idle if not one.is_ended]
        if idle:
            oldest = min(idle, key=lambda one: one.idle_since)
            oldest.end()
            if oldest.state == 'new' and _clock.now() > oldest.idle_since + _STALL:
                self.shutdown_request(oldest)  # its thread never began
        return bool(idle)

    def get_request(self) -> Any:
        try:
            with _accepting:
                sock, address = super().get_request()
                try:
                    return _Connection(self, sock, address), address
                except BaseException:
                    sock.close()
                    raise
        except (OSError, MemoryError) as error:
            if not isinstance(error, BlockingIOError):  # mostly: no descriptor is left
                self._evict_idle()
                time.sleep(0.01)
            raise OSError('no connection could be accepted') from None

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a newcomer in a thread of its own, or tell it that there is none."""
        try:
            if len(self.connections) >= self.micro.max_connections and not self._evict_idle():
                raise RuntimeError('every connection is busy')
            self.connections.add(request)
            work = functools.partial(self.process_request_thread, request, client_address)
            thread = threading.Thread(target=work, daemon=True)
            # Thread.start waits for the birth of the thread, which may never come (CPython 140746):
            # so another thread waits for it, not the one that accepts.
            _thread.start_new_thread(self._begin, (thread, request))
        except (RuntimeError, MemoryError):  # or the system has no thread left
            self._reject(request)

    def _begin(self, thread: threading.Thread, request: _Connection) -> None:
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            self._reject(request)

    def _reject(self, request: _Connection) -> None:
        """Refuse a newcomer, without waiting for it."""
        self._evict_idle()  # for the next one
        sock = request.timed.sock
        with contextlib.suppress(OSError):
            if self.ssl_context is None:
                refusal = _refusal(Busy('every connection is busy; try again later'))
                answer = self.micro._finish(refusal, request.caller)
                request._send(*answer, keep=False)
            sock.setblocking(False)
            sock.recv(_BLOCK)
        self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.serve()

    def shutdown_request(self, request: Any) -> None:
        with _accepting:  # only here: so no descriptor that is free again is shut down
            request.timed.sock.close()
        self.connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _clear_frames(sys.exc_info()[1])
        _log('error', 'a connection failed', exc_info=True)


def _check_place(host: Any, port: Any) -> None:
    is_url = isinstance(host, str) and ('/' in host or host.count(':') == 1)  # or with a port
    if is_url or not isinstance(host, str) or not isinstance(port, int):
        forms = "host must be like '127.0.0.1', and port like 5000"
        raise TypeError(f'{forms}, not {host!r} and {port!r}')


def _listen(micro: Microservice, where: Any, ssl_context: Any, reuse_port: bool) -> _Listener:
    """Make the listener; an error says where it cannot be, and why."""
    try:
        return _Listener(micro, where, ssl_context, reuse_port)
    except (OSError, OverflowError) as error:
        number = getattr(error, 'errno', None) or errno.EINVAL
        why = getattr(error, 'strerror', None) or error
        if number == errno.EADDRINUSE:
            why = f'{why}: stop what listens there, or take another port (0: a free one)'
        raise OSError(number, f'cannot listen on {_netloc(*where)}: {why}') from None


@contextlib.contextmanager
def _stopping_signals(listener: _Listener) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop a listener, and every signal wake the watcher's peer."""
    import signal

    def stop(number: int, _: Any) -> None:
        if os.getpid() != listener.process:  # a forked child inherits this, but does not serve
            signal.signal(number, before.get(signal.Signals(number)) or signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        listener.signal = signal.Signals(number).name
        listener.stop(0 if listener.stop_by else 10)

    before: dict[signal.Signals, Any] = {}
    # Signals write to the watcher, too: one that comes just before the wait is not lost.
    listener.watcher.setblocking(False)
    wakeup = signal.set_wakeup_fd(listener.watcher.fileno(), warn_on_full_buffer=False)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        with contextlib.suppress(OSError, ValueError):  # the one before is closed
            signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(wakeup)


# ------------------------------------------------------------------------------------- Microservice

# The latest service of this name, host and port.
_served: weakref.WeakValueDictionary[Any, Microservice] = weakref.WeakValueDictionary()


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
            as of an environment variable that is not set.
        secretKey: what checks that calls are signed and signs replies, such as Keys('...') of
            examples/signed; see `_checked_signer`.  Only calls that are signed are answered.
        origins (list of str): the web pages that may call, such as 'https://app.example'; default:
            only those that this host itself serves, by the name localhost or its IP address.
        max_body (int): bytes of a request's or reply's body, default 8 MiB.  The worst JSON of
            that size takes 0.4 GB and a second to decode.
        max_head (int): bytes of a request's head, default 32 KiB: four times what nginx takes.
        read_timeout (float): seconds, default 20 as Apache's mod_reqtimeout: for a connection's
            first word, for a head, and for each 256 KiB of a body or of taking a reply.
        idle_timeout (float): seconds between requests, default 75: longer than the 60 of the usual
            balancer, so that it closes first; told to clients.
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
        secretKey: Any = None,
        *,
        origins: Sequence[str] = (),
        max_body: int = 8 << 20,
        max_head: int = 32 << 10,
        read_timeout: float = 20,
        idle_timeout: float = 75,
        max_connections: int = 1000,
        max_age: float = 300,
    ) -> None:
        super().__init__(name, debug, token, secretKey, origins, max_body)
        self.port = port
        self.host = host
        self.max_head = _checked_number('max_head', max_head)
        self.read_timeout = _checked_seconds('read_timeout', read_timeout)
        self.idle_timeout = _checked_seconds('idle_timeout', idle_timeout)
        self.max_connections = _checked_number('max_connections', max_connections)
        self.max_age = _checked_seconds('max_age', max_age)
        self._listener: _Listener | None = None
        self._how: Any = None  # it was started
        self._has_warned = False

    def __repr__(self) -> str:
        listener = self._serving()
        where = f'at {listener.url()}' if listener else '(it does not serve)'
        return f'<Microservice {self.name!r} {where}, {_count(len(self._rules), "rule")}>'

    def _serving(self) -> _Listener | None:
        """The listener, if it has not ended; one that a fork left behind here is released."""
        listener = self._listener
        if listener and listener.process != os.getpid():
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
        if not self._rules:
            text = 'put @Micro.typing above functions, and import them first'
            _log('warning', '%s has no rules: %s', self.name, text)
        for path in set(self.token) - set(self._rules):
            near = _nearest(path, self._rules)
            hint = f'{path!r}: did you mean {near!r}?' if near else repr(path)
            # Without a slash the key may be the token itself, so do not log it.
            hint = hint if near or path in self._tokens.slashed else 'for it'
            _log('warning', 'a token is set, but there is no rule %s', hint)
        is_open = self._open_rules()
        given = self._rule_tokens.by_rule
        missing = [path for path in is_open if None in (given[path], self._tokens.default)]
        if missing:
            _log('warning', 'token=None, so anyone can call %s: %s', ', '.join(missing), _UNSET)
        if _is_loopback(host):
            return
        if is_open:
            advice = "the network can call %s at %s: give each rule a token, or host='127.0.0.1'"
            _log('warning', advice, ', '.join(is_open), host)
        if self.debug:
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
            port, host, debug: in place of those given to the class.
            ssl_context: serve https by it.
            reuse_port: let other processes that say so too share the port (Linux, BSD).

        Raises:
            OSError: it cannot listen there; the message says where and why.
            RuntimeError: it serves already.
        """
        _checked_context(ssl_context, 'SERVER')
        where = (self.host if host is None else host, self.port if port is None else port)
        _check_place(*where)
        how = (where, debug, ssl_context, reuse_port)
        older = _served.get((self.name, where))
        if older and older is not self and hasattr(sys, 'ps1'):
            older.stop()  # the cell was run again; no other name is left for that service
        with _process_lock('start and stop'):
            if self._serving():
                if hasattr(sys, 'ps1') and how == self._how:  # the cell was run again
                    return self
                raise RuntimeError(f'{self.name} serves already, at {self.address}: stop it first')
            self._listener = listener = _listen(self, where, ssl_context, reuse_port)
            self._how = how
            self.debug = self.debug if debug is None else debug
            try:
                self._warn(listener.server_name)
                rules = _count(len(self._rules), 'rule')
                _log('info', '%s listens on %s, %s', self.name, listener.url(), rules)
                listener.thread.start()
            except BaseException:  # no more threads, or a signal
                listener.close()
                raise
            _served[self.name, where] = self
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
            self._cancel_tasks()
            return
        listener.stop(grace)
        threads = [connection.thread for connection in listener.connections.copy()]
        is_in_async_rule = _async_service.get() is not None and _is_loop_running()
        if threading.current_thread() in (*threads, listener.thread) or is_in_async_rule:
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
        waiting, watcher = socket.socketpair()
        try:
            self.start(port, host, debug, ssl_context=ssl_context, reuse_port=reuse_port)
            listener: Any = self._listener
            listener.watcher = watcher
            with _stopping_signals(listener) if _in_main_thread() else contextlib.nullcontext():
                where = _netloc(listener.server_name, listener.server_port)
                here = f'{where}, here {listener.url()}'
                _say(f'{self.name}: listening on {here}; Ctrl-C stops it', sys.stdout)
                while not listener.has_ended:
                    waiting.recv(_FIRST_READ)
        finally:
            self.stop(0)
            waiting.close()
            watcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


SanicApp = Microservice  # the original's other name for it


# -------------------------------------------------------------------------------------------- shell
# `python3 microconnect.py`, or `-m microconnect`.  An import loads nothing of what it needs.


def _shell(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and give its exit status."""
    parser = _command_line()
    options, more = parser.parse_known_args(arguments)
    # argparse ends the arguments of a call at the first option; what follows belongs to them.
    if more and (options.run is not _send or any(re.match('-[^0-9]', word) for word in more)):
        ask = '; write -- before words that begin with -' if options.run is _send else ''
        parser.error(f'unrecognized arguments: {" ".join(more)}{ask}')
    if options.run is _serve:  # not below: what the module raises is shown with its traceback
        options.target = _load_service(options.target, parser.error)
    try:
        options.more = more
        options.run(options)
        if sys.stdout:
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return 130  # as a shell counts a SIGINT
    except (MicroconnectError, OSError, TypeError, ValueError) as error:
        if type(error) is BrokenPipeError:  # nobody reads the output: let Python flush it nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        text = str(error)
        if isinstance(error, Forbidden):
            text += '; --token or MICROCONNECT_TOKEN gives a token; the shell signs nothing'
        _say(f'microconnect: {_printable(" ".join(text.split()))}', sys.stderr)
        # 2: what cannot be an address, a token, a service.
        return 1 if isinstance(error, (MicroconnectError, OSError)) else 2


def _command_line() -> Any:
    """Serve a service, or call one.

      python3 microconnect.py serve app1.py --port 5000
      python3 microconnect.py send http://127.0.0.1:5000 /helloworld 'Mr. Developer'
      python3 microconnect.py send http://127.0.0.1:5000 /divide 7 b=2 floor=true
      python3 microconnect.py rules http://127.0.0.1:5000
      python3 microconnect.py ping http://127.0.0.1:5000 --wait 30

    An argument is JSON if it can be read as such, else text; - reads it from standard input.  The
    exit status is 0, or 1 if the service or the call failed, or 2 if the command is wrong.
    """
    import argparse
    import inspect

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=inspect.getdoc(_command_line), formatter_class=raw)
    parser.add_argument('--version', action='version', version=__version__)
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
        option('--token', default=os.environ.get('MICROCONNECT_TOKEN') or None, help=told)
        option('--timeout', type=float, default=60, metavar='SECONDS', help='default: 60')
        option('--header', action='append', default=[], help="such as 'X-Api-Key: ...'")
    send('rule', metavar='/rule')
    send('arguments', metavar='ARG|key=ARG', nargs='*')
    send('--method', help='the HTTP method, default: POST')
    send('--raw', action='store_true', help='print a text as it is, not as JSON')
    ping('--wait', type=float, metavar='SECONDS', help='wait until it answers')
    return parser


def _serve(options: Any) -> None:
    options.target.run(options.port, options.host, options.debug, reuse_port=options.reuse_port)


def _load_service(target: str, fail: Callable[[str], Any]) -> Any:
    """Give the Microservice that *target* names; *fail* is told why there is none."""
    import importlib

    path, _, wanted = target.rpartition(':')
    if not (path and wanted.isidentifier()):  # it names a module alone, perhaps C:\app1.py
        path, wanted = target, ''
    folder, name = os.path.split(path[:-3]) if path.endswith('.py') else ('', path)
    sys.path.insert(0, os.path.abspath(folder))
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.partition('.')[0]):
            raise  # the module imports another one that is missing
        fail(f'there is no module {name} in {sys.path[0]}')
    # Ask the type: a lazy object or a mock may answer to any attribute.
    services = {k: v for k, v in vars(module).items() if hasattr(type(v), 'aanswer')}
    if not wanted and len(services) == 1:
        wanted = next(iter(services))
    if wanted not in services:
        names = ', '.join(f'{path}:{name}' for name in sorted(services))
        fail(f'name one of {names}' if names else f'there is no Microservice in {path}')
    return services[wanted]


def _friend(options: Any) -> Friend:
    parts = [header.partition(':') for header in options.header]
    if not all(colon for _, colon, _ in parts):
        raise ValueError("a header is such as 'X-Api-Key: ...'")
    headers = {name: value.strip() for name, _, value in parts}
    return Friend('', options.target, options.token, timeout=options.timeout, headers=headers)


def _argument(text: str) -> Any:
    if text == '-':
        text = sys.stdin.read().rstrip('\n') if sys.stdin and not sys.stdin.closed else ''
    text = {'True': 'true', 'False': 'false', 'None': 'null'}.get(text, text)
    try:
        return _decode(text.encode())
    except ValueError:
        return text


def _send(options: Any) -> None:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in options.arguments + options.more:
        found = re.fullmatch(r'([^\W\d]\w*)=(.*)', word, re.DOTALL)
        if found and found.group(1) in kwargs:
            raise ValueError(f'{found.group(1)} is given twice')
        if found:
            kwargs[found.group(1)] = _argument(found.group(2))
        else:
            args.append(_argument(word))
    with _friend(options) as friend:
        friend.setRule(options.rule, method=options.method)
        value = friend.send(options.rule, *args, **kwargs)
    text = value
    if not (options.raw and isinstance(value, str)):
        text = json.dumps(value, ensure_ascii=not _coding().lower().startswith('utf'))
        # What a terminal would obey, and a lone surrogate, by its escape.
        text = ''.join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)
    _print(text)


def _coding() -> str:
    return getattr(sys.stdout, 'encoding', None) or 'utf-8'


def _print(text: str) -> None:
    """Print *text*, by its escapes what the terminal has no letters for."""
    print(text.encode(_coding(), 'backslashreplace').decode(_coding()))


def _list_rules(options: Any) -> None:
    with _friend(options) as friend:
        try:
            told = friend.send('/rules')
        except UnknownRule:
            advice = "Micro.typing('/rules')(Micro.rules) in the service publishes them"
            raise BadReply(f'{options.target} does not tell its rules: {advice}') from None
    try:
        widths = [len(rule + facts['signature']) for rule, facts in told.items()]
        width = min(max(widths, default=0), 60)
        for rule, facts in told.items():
            notes = ['[token]'] if facts['token'] else []
            notes += [f'[{", ".join(facts["methods"])}]'] if facts['methods'] != ['POST'] else []
            call = rule + facts['signature']
            _print(_printable(f'{call:{width}}  {" ".join([*notes, facts["doc"]])}'.rstrip()))
    except (AttributeError, KeyError, TypeError):
        raise BadReply(f'what {options.target}/rules returns is not a list of rules') from None


def _ping(options: Any) -> None:
    with _friend(options) as friend:
        if options.wait is not None:
            friend.wait(options.wait)
        elif why := friend._unavailable_reason(_clock.now() + min(friend.timeout, 5)):
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
