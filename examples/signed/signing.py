# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) the microconnect authors.  The licence text is at the end of microconnect.py.
# mypy: disable-error-code="import-not-found, no-redef"
"""Signed calls and replies for microconnect.  Copy this file to where your microconnect.py is.

Both sides share a key, and nobody without it can forge, alter or repeat a call or its reply::

    import os
    from microconnect import Friend, Microservice
    from signing import Keys

    Micro = Microservice('bank', secretKey=Keys(os.environ['BANK_KEY']))
    aFriend = Friend('bank', 'http://127.0.0.1:5000', secretKey=Keys(os.environ['BANK_KEY']))

They are HTTP Message Signatures (RFC 9421) by hmac-sha256, over a Content-Digest (RFC 9530).  Both
sides sign the content type and the digest of the body; a call also its method and path, a reply
also its status and the signature of its call, so that it is no reply to another.  A message has one
signature, and of structured fields (RFC 9651) only the forms of these fields are read.

@authority is not signed: a reverse proxy sends another Host, and a service does not know by which
names it is called.  The key says which service is meant.  @path is the rule alone: a prefix of the
address is for the proxy or server that cuts it off.  Each side encodes it anew, as gateways do.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import threading
import time
import urllib.parse

try:  # the one beside this file in a package, whatever else is installed
    from .microconnect import BadCall, BadReply, Busy, Forbidden
except ImportError:
    from microconnect import BadCall, BadReply, Busy, Forbidden

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping, Sequence

    Headers = tuple[tuple[str, str], ...]
    Fields = Mapping[str, str]

__all__ = ['Keys']

_WINDOW = 300  # seconds that two clocks may differ, as in Kerberos
_LEAST_KEY = 32  # bytes, as many as the hash has (RFC 7518, 3.2)
_MOST_TEXT = 10_000  # bytes of a refusal that an error repeats

_CONTENT_TYPE = 'application/json'  # of each call
_SIGNED_FIELDS = ('content-type', 'content-digest', 'signature-input', 'signature')
_LABEL = '[a-z*][a-z0-9_.*-]{0,63}'
_SIGNATURE_INPUT = rf'({_LABEL})=(\(([^()]*)\)(.*))'
_PARAMETER = (
    r';(?:(?:created|expires)=[1-9][0-9]{0,14}|(?:nonce|keyid|tag)="[ !#-\[\]-~]{1,64}"'
    r'|alg="hmac-sha256")(?=;|\Z)'
)
_DIGEST = rf'{_LABEL}=:[A-Za-z0-9+/=]*:'
_CHALLENGE = (('WWW-Authenticate', 'Signature realm="microconnect"'),)


def _checked_key(key: Any) -> bytes:
    """*key* as bytes; an error does not show it."""
    if isinstance(key, str):
        key = key.encode('utf-8', 'surrogatepass')
    if not isinstance(key, bytes):
        unset = '; is an environment variable not set?' if key is None else ''
        raise TypeError(f'secretKey is a string or bytes, or a list of them{unset}')
    if len(key) < _LEAST_KEY:
        advice = "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
        raise ValueError(f'secretKey has {len(key)} bytes, not {_LEAST_KEY} random ones: {advice}')
    return key


def _content_digest(body: bytes) -> str:
    return f'sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:'


def _signature(key: bytes, parts: Fields, covered: str) -> str:
    """The signature of *parts*; *covered* lists them, with its parameters (RFC 9421, 2.5)."""
    lines = [f'{identifier}: {value}' for identifier, value in parts.items()]
    base = _bytes('\n'.join([*lines, f'"@signature-params": {covered}']))
    return f':{base64.b64encode(hmac.digest(key, base, "sha256")).decode()}:'


def _bytes(text: str) -> bytes:
    return text.encode('utf-8', 'surrogatepass')


def _call_parts(method: str, rule: str) -> dict[str, str]:
    try:
        path = urllib.parse.quote(rule, safe="/~!$&'()*+,;=:@")
    except UnicodeEncodeError:
        raise BadCall('the rule holds a lone surrogate, which has no UTF-8 form') from None
    return {'"@method"': method, '"@path"': path}


def _reply_parts(status: int, signature: str) -> dict[str, str]:
    """Of a reply to the call with this field Signature."""
    label, _, value = signature.partition('=')
    return {'"@status"': str(status), f'"signature";req;key="{label}"': value}


class Keys:
    """The key of a service and its friends: what both are given as secretKey.

    Args:
        secret_key (str, bytes or a list of them): 32 random bytes or more.  Of a list the first
            signs, and any verifies, so that keys can be replaced one side after the other.
    """

    holds_tokens = True  # microconnect never sends such an object as a value

    def __init__(self, secret_key: str | bytes | Sequence[str | bytes]) -> None:
        several = secret_key if isinstance(secret_key, (list, tuple)) else (secret_key,)
        if not several:
            raise ValueError('secretKey is an empty list: give at least one')
        self.keys = [_checked_key(key) for key in several]
        # Each message tells its id, so that an error can tell another key from an altered message.
        self.ids = [hmac.digest(key, b'keyid', 'sha256')[:8].hex() for key in self.keys]
        self.nonces = _Nonces(time.monotonic())

    def __reduce__(self) -> Any:
        raise TypeError('a secretKey is not copied: give it to each process')

    # What microconnect calls; see the top of microconnect.py.

    def sign_call(self, method: str, rule: str, body: bytes) -> Headers:
        """Give the fields that a friend adds to a call."""
        return self.sign(_call_parts(method, rule), _CONTENT_TYPE, body, time.time())

    def check_call(self, method: str, rule: str, headers: Fields, body: bytes) -> str:
        """Give the signature of a call that is signed and new, else raise Forbidden or Busy."""
        try:
            created, nonce = self.verify(_call_parts(method, rule), headers, body)
            self.nonces.spend(created, nonce, time.time(), time.monotonic())
        except ValueError as error:
            raise Forbidden(f'the call is refused: {error}', headers=_CHALLENGE) from None
        return headers['signature']

    def sign_reply(self, call: str, status: int, fields: Headers, body: bytes) -> Headers:
        """Give the fields that a service adds to its reply to the call with this signature."""
        kind = dict(fields)['Content-Type']
        return self.sign(_reply_parts(status, call), kind, body, time.time())

    def check_reply(self, call: Headers, status: int, headers: Fields, body: bytes) -> None:
        """Raise BadReply if a reply to the call with these fields is not signed by a key."""
        try:
            self.verify(_reply_parts(status, dict(call)['Signature']), headers, body)
        except ValueError as error:
            told = '' if status == 200 else _told(status, body)
            raise BadReply(f'the reply is refused: {error}{told}', status=status) from None

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

    def verify(self, parts: dict[str, str], headers: Fields, body: bytes) -> tuple[int, str]:
        """Give `created` and `nonce`; ValueError says why the signature does not hold."""
        if 'signature' not in headers:
            raise ValueError('it is not signed; both sides need the same secretKey')
        missing = [name.title() for name in _SIGNED_FIELDS if name not in headers]
        if missing:
            raise ValueError(f'it has no {missing[0]}')
        kind, digest, given, signature = (headers[name] for name in _SIGNED_FIELDS)
        parts = {**parts, '"content-type"': kind, '"content-digest"': digest}
        label, covered, values = _read_input(given, list(parts))
        signatures = [f'{label}={_signature(key, parts, covered)}' for key in self.keys]
        # A list: each is compared, and in constant time, so that the time tells nothing of them.
        if True not in [hmac.compare_digest(_bytes(signature), _bytes(one)) for one in signatures]:
            is_known = values.get('keyid') in self.ids
            why = 'it was altered on its way' if is_known else 'it is of another secretKey'
            if not signature.startswith(f'{label}='):
                why = f'it has not the label {label} of its Signature-Input'
            raise ValueError(f'its signature does not hold: {why}')
        late = time.time() - float(values.get('expires', 'inf'))
        if late >= 1:
            raise ValueError(f'its signature expired {int(late)} s ago')
        _check_digest(digest, body)  # last: the body of a stranger is not worth the time
        return int(values['created']), values['nonce']


def _read_input(given: str, wanted: list[str]) -> tuple[str, str, dict[str, str]]:
    """Give label, covered text and parameters; an error repeats little, since anybody wrote it."""
    found = re.fullmatch(_SIGNATURE_INPUT, given)
    if not found:
        raise ValueError('its Signature-Input is not label=(...) with parameters')
    label, covered, listed, parameters = found.groups()
    names = listed.split(' ')
    for name in wanted:
        if name not in names:
            raise ValueError(f'its Signature-Input does not list {name}')
    for name in names:
        if name not in wanted:
            raise ValueError(f'its Signature-Input lists {name[:40]!a}, which is not signed here')
    if names != wanted:
        raise ValueError(f'its Signature-Input must list once and in order {" ".join(wanted)}')
    rest = re.sub(_PARAMETER, '', parameters)
    if rest:
        raise ValueError(f'its Signature-Input has {rest[:40]!a}, which is not read here')
    values: dict[str, str] = {}
    for one in re.findall(_PARAMETER, parameters):
        name, _, value = one[1:].partition('=')
        if name in values:
            raise ValueError(f'its Signature-Input has {name} twice')
        values[name] = value.strip('"')
    for name in ('created', 'nonce'):
        if name not in values:
            raise ValueError(f'its Signature-Input has no {name}')
    return label, covered, values


def _check_digest(given: str, body: bytes) -> None:
    """ValueError unless a Content-Digest holds; digests of other algorithms are not looked at."""
    each = [one.strip(' \t') for one in given.split(',')]
    ours = [one for one in each if one.startswith('sha-256=')]
    if len(ours) != 1 or not all(re.fullmatch(_DIGEST, one) for one in each):
        raise ValueError('its Content-Digest is not a list of digests with one of sha-256')
    if ours[0] != _content_digest(body):
        raise ValueError('its body is not the one of its Content-Digest')


def _told(status: int, body: bytes) -> str:
    """What a refusal says that nobody signed: told, but not believed."""
    if len(body) > _MOST_TEXT:
        return ''
    try:
        detail = json.loads(body)['detail']
        says = ''.join(one if one.isprintable() else ' ' for one in detail)  # a terminal obeys some
    except (
        ValueError,
        TypeError,
        LookupError,
        RecursionError,
    ):  # it is not from a service of this kind
        return f'; its status is {status}'
    return f'; it says {status}: {says}'


class _Nonces:
    """The nonces of the calls that a service took, so that it takes none twice.

    A clock can be set at any time.  The start of the process is therefore kept by the monotonic
    clock: a call signed before may have been taken then.  A nonce is kept by the time that its call
    bears, which no clock changes: a forgotten one is from before `since`, and stays refused.  Each
    process knows only the calls that it took itself.
    """

    def __init__(self, ticks: float, few: int = 1 << 16, most: int = 1 << 20) -> None:
        self.process = os.getpid()
        self.started = ticks  # the calls of its first second are taken, too
        self.since = 0
        self.few = few  # 10 MB: as many stay beyond the window, for a clock that is set back
        self.most = most  # 200 MB; above 1,700 calls/s they do not reach back the whole window
        self.room = min(few, most)
        self.spent: dict[str, int] = {}  # nonce -> the time that its call bears
        self.locks: dict[int, Any] = {}  # by process: a child would inherit a common one locked

    def spend(self, created: int, nonce: str, now: float, ticks: float) -> None:
        """Note that a call is taken; ValueError or Busy if it must not be."""
        age = int(now) - created
        if abs(age) > _WINDOW:
            when = f'{abs(age)} s {"ago" if age > 0 else "ahead"}'
            raise ValueError(f'it was signed {when}, and two clocks may differ by {_WINDOW} s')
        # Reentrant: a signal's handler may answer a call, too.
        with self.locks.setdefault(os.getpid(), threading.RLock()):
            # After a fork others took calls, too.  Only test tools set the ticks back.
            if self.process != os.getpid() or ticks < self.started:
                self.process, self.started = os.getpid(), ticks
            if len(self.spent) >= self.room:
                self.forget(now)
            if nonce in self.spent:
                raise ValueError('it came before, and is taken once')
            since = max(self.since, int(now - (ticks - self.started)))
            if created < since:
                when = f' in {since - int(now)} s' if since > now else ''
                advice = f'sign it again{when}'
                raise Busy(f'the call is from before the time that is remembered; {advice}')
            self.spent[nonce] = created

    def forget(self, now: float) -> None:
        """Keep those of the window, or half of the few or the most, and make room for as many."""
        times = sorted(self.spent.values())
        recent = sum(created >= int(now) - _WINDOW for created in times)
        keep = min(max(recent, self.few // 2), self.most // 2)
        if keep < len(times):
            self.since = times[-keep - 1] + 1
            for nonce, created in list(self.spent.items()):  # in place, for a signal's handler
                if created < self.since:
                    self.spent.pop(nonce, None)
        self.room = 2 * keep
