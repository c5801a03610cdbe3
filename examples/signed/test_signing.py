"""The tests of signed messages: ``python -m pytest examples/signed``, or with all the others.

They share the helpers of test_microconnect.py: real sockets on loopback, and every host.
"""

import asyncio
import base64
import collections
import contextlib
import copy
import datetime
import hmac
import io
import json
import logging
import os
import pickle
import pprint
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import types
import urllib.parse
from pathlib import Path

import pytest
import signing
from signing import Keys

import microconnect
from microconnect import (
    BadArguments,
    BadCall,
    BadReply,
    Busy,
    ConnectionLost,
    Forbidden,
    Friend,
    MicroconnectError,
    Microservice,
    RemoteError,
    UnknownRule,
)
from test_microconnect import (
    HOSTS,
    JSON,
    ORIGIN,
    SECRET,
    SERVERS,
    TIMEOUT,
    answers,
    by_asgi,
    by_listener,
    by_wsgi,
    call_all,
    call_on,
    dead_address,
    each,
    error_of,
    make,
    make_async,
    parse_request,
    peer,
    raw,
    request,
    response,
    running,
    serving,
    statuses,
    watch,
    watchdog,
)

__all__ = ['watch', 'watchdog']  # fixtures: a test that hangs ends the run

FOLDER = Path(signing.__file__).resolve().parent

SECRET_KEY = 'a key of this service: 32 bytes or more'
OTHER_SECRET_KEY = 'the key of another service: no shorter'
NOW = 1618884473
BODY = b'{"args":["Mr. Developer"],"kwargs":{},"token":null}'
REPLY = b'["Welcome Mr. Developer"]'
NAMES = ('"@method"', '"@path"', '"content-type"', '"content-digest"')
LISTED_NAMES = ' '.join(NAMES)
REST = 'nonce="n";keyid="k";alg="hmac-sha256"'
PARAMETERS = f';created={NOW};{REST}'

# By openssl: sha256 of the bodies, hmac of the lines.
CALL_DIGEST = 'sha-256=:GFneYLFT7hSDL3bP2agC7OunbgPatdOQRW+ifoK7XRU=:'
CALL_INPUT = (
    '("@method" "@path" "content-type" "content-digest");created=1618884473'
    ';nonce="000102030405060708090a0b0c0d0e0f";keyid="97c4221782c7178c";alg="hmac-sha256"'
)
CALL_BASE = f"""\
"@method": POST
"@path": /hello%20world
"content-type": application/json
"content-digest": {CALL_DIGEST}
"@signature-params": {CALL_INPUT}"""
CALL_SIGNATURE = ':8FRQu9IP/bzffQiUfGpmQ9d1ypL3C8IuCSOZzC0KAGQ=:'
REPLY_DIGEST = 'sha-256=:A2GcvI5Y5Js8K7CJPlTc0ZII4+2qRjxHInJneUl3+gI=:'
REPLY_INPUT = (
    '("@status" "signature";req;key="sig" "content-type" "content-digest");created=1618884474'
    ';nonce="000102030405060708090a0b0c0d0e0f";keyid="97c4221782c7178c";alg="hmac-sha256"'
)
REPLY_BASE = f"""\
"@status": 200
"signature";req;key="sig": {CALL_SIGNATURE}
"content-type": application/json
"content-digest": {REPLY_DIGEST}
"@signature-params": {REPLY_INPUT}"""
REPLY_SIGNATURE = ':XmFxVe1jAa0dlUGLP/k64YhNlVvtLHTi7Z/hBIdwZQk=:'


def hmac_of(base, key=SECRET_KEY):
    return (
        f':{base64.b64encode(hmac.new(key.encode(), base.encode(), "sha256").digest()).decode()}:'
    )


class Signed:
    """A signed message as the one who receives it sees it, to be altered: a call, or a reply."""

    def __init__(self, body=BODY, key=SECRET_KEY, to=None, status=200):
        self.method, self.path, self.body = 'POST', '/hello world', body
        self.to, self.status = to, status
        fields = Keys(key).sign(self.parts(), JSON['Content-Type'], body, NOW)
        self.headers = {name.lower(): value for name, value in (*JSON.items(), *fields)}

    def again(self):
        """The same call, signed anew."""
        fields = Keys(SECRET_KEY).sign(self.parts(), JSON['Content-Type'], self.body, NOW)
        self.headers = {name.lower(): value for name, value in (*JSON.items(), *fields)}
        return self

    def parts(self):
        if self.to is None:
            return signing._call_parts(self.method, self.path)
        return signing._reply_parts(self.status, self.to.headers['signature'])

    def resign(self, listed=LISTED_NAMES, parameters=PARAMETERS, label='sig', key=SECRET_KEY):
        """Sign it by the right key, but with other parts and parameters."""
        value = {
            '"@method"': self.method,
            '"@path"': '/hello%20world',
            '"content-type"': self.headers['content-type'],
            '"content-digest"': self.headers['content-digest'],
            '"date"': 'x',
        }
        lines = [f'{name}: {value.get(name, "")}\n' for name in listed.split()]
        given = f'({listed}){parameters}'
        self.headers['signature-input'] = f'{label}={given}'
        base = f'{"".join(lines)}"@signature-params": {given}'
        self.headers['signature'] = f'{label}={hmac_of(base, key)}'

    def take(self, by=SECRET_KEY):
        """Verify it by a key, or by a service."""
        if self.to is not None:
            call = (('Signature', self.to.headers['signature']),)
            return Keys(by).check_reply(call, self.status, self.headers, self.body)
        service = by if isinstance(by, Microservice) else signed_service(secretKey=Keys(by))
        status, headers, body = service.answer(self.method, self.path, self.headers, self.body)
        if status != 200:
            assert not {'Signature', 'Content-Digest'} & set(dict(headers))
            assert dict(headers)['WWW-Authenticate'] == 'Signature realm="microconnect"'
            raise error_of(status, body)
        return Signed.received(headers, body, self)

    @classmethod
    def received(cls, headers, body, to, status=200):
        reply = cls(body, to=to, status=status)
        reply.headers = {name.lower(): value for name, value in dict(headers).items()}
        return reply


def signed_service(**options):
    """A service that takes signed calls only, with the rule of `Signed`."""
    service = make(**{'secretKey': Keys(SECRET_KEY), **options})
    service.typing('/hello world')(lambda name: service.ran.append(name) or f'Welcome {name}')
    return service


@pytest.fixture
def at_noon(monkeypatch):
    """The time is `NOW`; the function it gives sets another."""
    time_now = [NOW + 0.5]
    monkeypatch.setattr(time, 'time', lambda: time_now[0])
    return lambda seconds: time_now.__setitem__(0, seconds)


def put(name, value):
    """Set a field, or by None leave it out."""

    def alter(message):
        message.headers.pop(name)
        if value is not None:
            message.headers[name] = value

    return alter


def change(name, old, new):
    """Replace a piece of a field."""

    def alter(message):
        before = message.headers[name]
        message.headers[name] = before.replace(old, new, 1)
        assert message.headers[name] != before

    return alter


def have(**attributes):
    return lambda message: vars(message).update(attributes)


def resigned(**how):
    return lambda message: message.resign(**how)


def again(name, joint=', '):
    """Send a field twice, as its receiver joins them."""
    return lambda message: message.headers.update({name: joint.join([message.headers[name]] * 2)})


def both(*several):
    def alter(message):
        for one in several:
            one(message)

    return alter


BROKEN_FIELDS = [
    '',
    ' ',
    'sig',
    'sig=',
    'sig=1',
    'sig=?1',
    'sig=:YQ==:',
    'sig="x"',
    'x',
    '()',
    'é',
    '\0',
]
BROKEN_FIELDS += [
    '=',
    'sig=()',
    'sig=(',
    ',',
    'sig=;',
    '(' * 9999,
    'sig=(' + '"@path" ' * 2000 + ')',
]
PARAMETER_SETS = [
    *(PARAMETERS.replace(one, '') for one in (f';created={NOW}', ';nonce="n"')),
    *(f';created={NOW}', ';nonce="n"', f';created={NOW};keyid="k";keyid="k"'),
    *(f';created={one};{REST}' for one in ('x', '"1618884473"', '-5', '0', '01618884473', '1e9')),
    *(
        f';created={one};{REST}'
        for one in (f'{NOW}.0', '9' * 16, f'@{NOW}', '', f'{NOW};created={NOW}')
    ),
    *(PARAMETERS.replace('"n"', one) for one in ('""', '"' + 'n' * 65 + '"', 'n', ':bg==:', '"é"')),
    *(PARAMETERS.replace('"n"', one) for one in ('"\\""', '"n', "'n'", '"n";nonce="n"', '"n"; ')),
    *(
        PARAMETERS.replace('hmac-sha256', one)
        for one in ('hmac-sha512', 'ed25519', 'none', 'HMAC-SHA256')
    ),
    *(PARAMETERS + one for one in (';tag=x', ';expires=0', ';sf', ';nonce="m"', ';', ' ')),
    PARAMETERS.replace('keyid', 'Keyid'),
    ' ' + PARAMETERS,
    '',
]

NOT_SIGNED = 'it is not signed; both sides need the same secretKey'
HOLDS_NOT, NOT_INPUT = 'its signature does not hold: ', 'its Signature-Input '
# What is altered of a signed call, and why it is refused.
ALTERED_CALLS = [
    ('body', 'its body is not the one', [have(body=BODY + b' '), have(body=b''), have(body=REPLY)]),
    (
        'path',
        HOLDS_NOT,
        [have(path=p) for p in ('/hello', '/hello world?', '/Hello world', '//', '')],
    ),
    ('method', HOLDS_NOT, [have(method=m) for m in ('GET', 'PUT', 'post', '')]),
    (
        'content type',
        HOLDS_NOT,
        [put('content-type', t) for t in ('text/plain', 'application/JSON', '')],
    ),
    (
        'digest',
        HOLDS_NOT + 'it was altered',
        [
            put('content-digest', d)
            for d in (REPLY_DIGEST, CALL_DIGEST.lower(), '', CALL_DIGEST + ' ')
        ],
    ),
    ('body and digest', HOLDS_NOT, [both(have(body=REPLY), put('content-digest', REPLY_DIGEST))]),
    ('signature', HOLDS_NOT, [put('signature', one) for one in BROKEN_FIELDS]),
    (
        'a piece of the signature',
        HOLDS_NOT,
        [
            *(change('signature', *pair) for pair in (('sig', 'pig'), ('=:', '=: '), ('=:', '='))),
            *(change('signature', ':', one) for one in (':A', ':=', '::')),
            lambda message: put('signature', message.headers['signature'] + ';a=1')(message),
            lambda message: put('signature', message.headers['signature'][:-2] + ':')(message),
            again('signature'),
            again('signature', ','),
        ],
    ),
    ('missing', NOT_SIGNED, [put('signature', None)]),
    ('missing', 'it has no Signature-Input', [put('signature-input', None)]),
    ('missing', 'it has no Content-Digest', [put('content-digest', None)]),
    ('missing', 'it has no Content-Type', [put('content-type', None)]),
    ('unsigned', NOT_SIGNED, [lambda m: (m.headers.clear(), m.headers.update(JSON))]),
    ('input', NOT_INPUT, [put('signature-input', one) for one in BROKEN_FIELDS]),
    (
        'a piece of the input',
        HOLDS_NOT,
        [
            change('signature-input', f'{NOW}', f'{NOW + 1}'),
            change('signature-input', 'nonce="', 'nonce="a'),
            change('signature-input', 'sig=', 'gis='),
        ],
    ),
    ('key', HOLDS_NOT + 'it is of another secretKey', [resigned(key=OTHER_SECRET_KEY)]),
    (
        'a piece of the input',
        NOT_INPUT,
        [
            again('signature-input'),
            again('signature-input', ','),
            again('signature-input', ' '),
            *(change('signature-input', 'sig', one) for one in (' sig', 'Sig', '1', '', '"sig"')),
            *(change('signature-input', ' ', one) for one in ('  ', '\t', ',', '')),
            change('signature-input', '"@path"', '@path'),
            change('signature-input', '"@path"', "'@path'"),
            change('signature-input', '"@path"', '"@path";req'),
            change('signature-input', '"content-type"', '"Content-Type"'),
        ],
    ),
    (
        'signed parts',
        NOT_INPUT,
        [
            *(resigned(listed=' '.join(n for n in NAMES if n != left)) for left in NAMES),
            *(
                resigned(listed=listed)
                for listed in (LISTED_NAMES + ' "@path"', LISTED_NAMES + ' "date"', '')
            ),
            resigned(listed=' '.join(NAMES[::-1])),
        ],
    ),
    ('parameters', NOT_INPUT, [resigned(parameters=one) for one in PARAMETER_SETS]),
    (
        'digest, signed',
        'its Content-Digest',
        [
            both(put('content-digest', one), resigned())
            for one in (
                *(REPLY_DIGEST, CALL_DIGEST.lower(), CALL_DIGEST.upper(), CALL_DIGEST[:-1], ''),
                *(f'{CALL_DIGEST}, {CALL_DIGEST}', CALL_DIGEST + ';a'),
                *('sha-256=', 'sha-512=:YQ==:', 'md5=:YQ==:', CALL_DIGEST.replace('-', ''), 'é'),
            )
        ],
    ),
    (
        'created',
        'signed 301 s ago, and two clocks may differ by 300 s',
        [resigned(parameters=f';created={NOW - 301};{REST}')],
    ),
    (
        'created',
        'signed 301 s ahead, and two',
        [resigned(parameters=f';created={NOW + 301};{REST}')],
    ),
    ('created', f'signed {NOW - 1} s ago', [resigned(parameters=f';created=1;{REST}')]),
]
ALTERED_REPLIES = [
    ('body', 'its body is not the one', [have(body=b'["x"]'), have(body=b''), have(body=BODY)]),
    ('status', HOLDS_NOT, [have(status=201), have(status=500), have(status=503)]),
    ('content type', HOLDS_NOT, [put('content-type', 'application/problem+json')]),
    ('another call', HOLDS_NOT, [have(to=Signed())]),
    ('unsigned', NOT_SIGNED, [have(headers=dict(JSON)), have(headers={})]),
    ('missing', 'it has no Content-Digest', [put('content-digest', None)]),
    ('signature', HOLDS_NOT, [put('signature', one) for one in BROKEN_FIELDS]),
    ('signature', HOLDS_NOT, [again('signature'), change('signature', ':', ':A')]),
    ('input', NOT_INPUT, [put('signature-input', one) for one in BROKEN_FIELDS]),
    ('input', NOT_INPUT, [change('signature-input', one, '') for one in (';req', ';key="sig"')]),
    ('input', NOT_INPUT, [change('signature-input', '"sig"', '"gis"'), again('signature-input')]),
    ('a call', NOT_INPUT, [lambda message: message.headers.update(message.to.headers)]),
    ('a call, resigned', NOT_INPUT, [resigned()]),
]


def altered_text(rnd, text):
    """*text* with one random alteration, such as those that structured fields can be broken by."""
    at, end = sorted(rnd.randrange(len(text) + 1) for _ in range(2))
    marks = rnd.choice(
        [*'\0\t "\\(),;:=?@*.-_019azAZ~\x7f\xe9\u20ac\ud800', 'sig=', '";nonce="', '()']
    )
    piece = rnd.choice(['', marks, text[at:end] * 2, text[at:end][::-1], text[at:end].upper()])
    return text[:at] + piece + text[end:]


@pytest.mark.usefixtures('at_noon')
class TestSignatures:
    """The signatures by `secretKey`: what is signed, and that nothing else is taken."""

    def test_example_of_the_standard(self):
        """The example of RFC 9421, B.2.5, has the signature that is published there."""
        key = base64.b64decode(
            'uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=='
        )
        parts = {
            '"date"': 'Tue, 20 Apr 2021 02:07:55 GMT',
            '"@authority"': 'example.com',
            '"content-type"': 'application/json',
        }
        params = (
            '("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"'
        )
        assert (
            signing._signature(key, parts, params)
            == ':pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:'
        )

    def test_fixed_messages(self, monkeypatch):
        """A call and its reply have the signatures of the lines written out here."""
        monkeypatch.setattr(os, 'urandom', lambda size: bytes(range(size)))
        keys, kind = Keys(SECRET_KEY), 'application/json'
        assert keys.sign(signing._call_parts('POST', '/hello world'), kind, BODY, NOW + 0.9) == (
            ('Content-Digest', CALL_DIGEST),
            ('Signature-Input', f'sig={CALL_INPUT}'),
            ('Signature', f'sig={CALL_SIGNATURE}'),
        )
        assert hmac_of(CALL_BASE) == CALL_SIGNATURE
        parts = signing._reply_parts(200, f'sig={CALL_SIGNATURE}')
        assert keys.sign(parts, kind, REPLY, NOW + 1) == (
            ('Content-Digest', REPLY_DIGEST),
            ('Signature-Input', f'sig={REPLY_INPUT}'),
            ('Signature', f'sig={REPLY_SIGNATURE}'),
        )
        assert hmac_of(REPLY_BASE) == REPLY_SIGNATURE

    def test_another_library(self):
        """Another library verifies what this one signs, and this one what that library signs."""
        library = pytest.importorskip('http_message_signatures')

        class Resolver(library.HTTPSignatureKeyResolver):
            def resolve_private_key(self, key_id):
                return SECRET_KEY.encode()

            resolve_public_key = resolve_private_key

        def message(signed, **members):
            headers = {name.title(): value for name, value in signed.headers.items()}
            return types.SimpleNamespace(headers=headers, **members)

        how = {'signature_algorithm': library.algorithms.HMAC_SHA256, 'key_resolver': Resolver()}
        verifier = library.HTTPMessageVerifier(**how)
        signer = library.HTTPMessageSigner(**how)

        def exchange(signed, sent, names):
            verifier.verify(sent, body=signed.body, require_components=names, max_age=None)
            signer.sign(
                sent,
                key_id='k',
                nonce='m',
                label='other',
                created=datetime.datetime.fromtimestamp(NOW),
                use_existing_digest=True,
                covered_component_ids=names,
            )
            signed.headers = {name.lower(): value for name, value in sent.headers.items()}
            signed.take()

        call = Signed()
        asked = message(call, method='POST', url='http://example.com/hello%20world')
        exchange(call, asked, [name.strip('"') for name in NAMES])
        reply = Signed(REPLY, to=call, status=500)
        names = ('@status', '"signature";req;key="other"', 'content-type', 'content-digest')
        exchange(reply, message(reply, status_code=500, request=asked), names)

    @pytest.mark.parametrize('what, why, alter', each(ALTERED_CALLS))
    def test_altered_calls(self, what, why, alter):
        """A call that was altered in any way is 401, runs nothing, and leaves the true one good."""
        call, service = Signed(), signed_service()
        true = copy.deepcopy(call)
        alter(call)
        with pytest.raises(Forbidden) as caught:
            call.take(service)
        assert str(caught.value).startswith('the call is refused: ')
        assert why in str(caught.value)
        assert caught.value.status == 401
        assert service.ran == []
        true.take(service)
        assert service.ran == ['Mr. Developer']

    @pytest.mark.parametrize('what, why, alter', each(ALTERED_REPLIES))
    def test_altered_replies(self, what, why, alter):
        """A reply that was altered in any way is a BadReply."""
        reply = Signed(REPLY, to=Signed())
        alter(reply)
        with pytest.raises(BadReply) as caught:
            reply.take()
        assert str(caught.value).startswith('the reply is refused: ')
        assert why in str(caught.value) and caught.value.sent
        assert caught.value.status == reply.status

    def test_altered_at_random(self):
        """Whatever is altered in a signed call or reply, it is refused, and by the right error."""
        rnd, call = random.Random(9421), Signed()
        for _ in range(2000):
            message = rnd.choice([Signed(), Signed(REPLY, to=call)])
            name = rnd.choice(list(message.headers))
            before = message.headers[name]
            message.headers[name] = altered_text(rnd, before)
            if message.headers[name] != before:
                with pytest.raises(Forbidden if message.to is None else BadReply):
                    message.take()

    def test_signed_at_random(self):
        """Parameters that are signed by the right key are taken only if they are of this form."""
        rnd, taken = random.Random(9530), 0
        form = r'(?=.*;created=[0-9])(?=.*;nonce="..*")'
        for _ in range(3000):
            message = Signed()
            parameters = altered_text(rnd, PARAMETERS)
            try:
                message.resign(parameters=parameters)
                message.take()
            except (Forbidden, UnicodeEncodeError):  # the test cannot sign a lone surrogate
                continue
            taken += parameters != PARAMETERS
            assert re.match(form, parameters) and len(parameters) < 200
        assert taken  # such as those with another nonce

    def test_ways_to_sign(self):
        """Label, nonce, keyid and the order of the parameters are free to whoever signs."""
        for how in (
            {},
            {'label': '*a-b_c.d*'},
            {'parameters': f';alg="hmac-sha256";keyid="a b";nonce=";created=5;";created={NOW}'},
            {'parameters': PARAMETERS.replace('"n"', '"' + '~' * 64 + '"')},
            {'parameters': f';created={NOW};nonce="n"'},
            {'parameters': f';keyid="k";created={NOW};nonce="n"'},
        ):
            call = Signed()
            call.resign(**how)
            call.take()
            reply = Signed(REPLY, to=call)
            assert f';key="{how.get("label", "sig")}"' in reply.headers['signature-input']
            reply.take()

    def test_encoded_anew(self):
        """The path is signed as a friend writes it, however a gateway encodes it."""
        for path, written in (
            ('/helloworld', '/helloworld'),
            ("/a-b.c_d~e!$&'()*+,;=:@/", "/a-b.c_d~e!$&'()*+,;=:@/"),
            ('/100%/a b?c#d', '/100%25/a%20b%3Fc%23d'),
            ('/é\u20ac', '/%C3%A9%E2%82%AC'),
        ):
            assert signing._call_parts('POST', path)['"@path"'] == written
            for target in (written, written.replace('~', '%7e').replace('%C3', '%c3')):
                head = b'POST %b HTTP/1.1\r\nHost: x' % target.encode()
                assert parse_request(head).path == path
        with pytest.raises(BadCall, match='lone surrogate'):
            signing._call_parts('POST', '/\ud800')

    def test_strangers_bodies(self, monkeypatch):
        """A body is not looked at before its call proves to be signed."""
        call, stranger, seen = Signed(), Signed(key=OTHER_SECRET_KEY), []
        digest_of = signing._content_digest
        monkeypatch.setattr(signing, '_content_digest', lambda b: seen.append(b) or digest_of(b))
        with pytest.raises(Forbidden):
            stranger.take()
        assert not seen
        call.take()
        assert seen[0] == BODY

    def test_unbelieved_refusal(self):
        """An unsigned refusal is told, but nobody is told by it that nothing ran."""
        reply = Signed(REPLY, to=Signed(), status=503)
        reply.headers, reply.body = dict(JSON), b'{"detail": "come back later"}'
        with pytest.raises(BadReply) as caught:
            reply.take()
        why = f'{NOT_SIGNED}; it says 503: come back later'
        assert str(caught.value) == f'the reply is refused: {why}'
        assert (caught.value.status, caught.value.sent) == (503, True)

    def test_long_refusal(self):
        """What an unsigned reply says is told if it is short, and not as a terminal obeys it."""
        reply = Signed(REPLY, to=Signed(), status=503)
        for detail, told in (('a\\u001b[2J', '; it says 503: a [2J'), ('x' * 20000, '')):
            reply.headers, reply.body = dict(JSON), b'{"detail": "%b"}' % detail.encode()
            with pytest.raises(BadReply) as caught:
                reply.take()
            assert str(caught.value) == f'the reply is refused: {NOT_SIGNED}{told}'

    @pytest.mark.parametrize(
        'body',
        [b'', b'<h1>502 Bad Gateway</h1>', b'[' * 9999, b'7', b'[]', b'{"detail": 7}', b'\xff'],
    )
    def test_refusal_of_a_proxy(self, body):
        """Of a reply that is no problem of ours the status is told."""
        reply = Signed(REPLY, to=Signed(), status=502)
        reply.headers, reply.body = {'content-type': 'text/html'}, body
        with pytest.raises(BadReply) as caught:
            reply.take()
        assert str(caught.value) == f'the reply is refused: {NOT_SIGNED}; its status is 502'

    def test_rotation(self):
        """Of a list of keys the first signs, and any verifies."""
        third = b'\xff' * 32
        for key, takes in (
            (
                SECRET_KEY,
                (
                    SECRET_KEY,
                    [SECRET_KEY],
                    [OTHER_SECRET_KEY, SECRET_KEY],
                    (third, OTHER_SECRET_KEY, SECRET_KEY),
                    SECRET_KEY.encode(),
                ),
            ),
            ([SECRET_KEY, OTHER_SECRET_KEY], (SECRET_KEY, [third, SECRET_KEY])),
            (third, ([SECRET_KEY, third],)),
        ):
            for one in takes:
                Signed(key=key).take(one)
                Signed(REPLY, key=key, to=Signed()).take(one)
        for key, one in (
            ([SECRET_KEY, OTHER_SECRET_KEY], OTHER_SECRET_KEY),
            (SECRET_KEY, [OTHER_SECRET_KEY, third]),
        ):
            with pytest.raises(Forbidden, match='another secretKey'):
                Signed(key=key).take(one)

    @pytest.mark.parametrize(
        'kind, wrong',
        [
            *(
                (TypeError, wrong)
                for wrong in (None, 7, True, {'k': SECRET_KEY}, {SECRET_KEY}, bytearray(40), [None])
            ),
            *(
                (ValueError, wrong)
                for wrong in ('', b'', [], (), [SECRET_KEY, ''], 'p4ssword', 'p4ss' * 7 + 'abc')
            ),
        ],
    )
    def test_wrong_keys(self, kind, wrong):
        """No key, or one that can be guessed, is refused with what to do, and is not shown."""
        with pytest.raises(kind, match='^secretKey (is|has) ') as caught:
            Keys(wrong)
        assert 'p4ss' not in f'{caught.value!r} {caught.value.__context__!r}'

    def test_key_is_never_shown(self):
        """No repr, signed field or error shows a key, and it is not encoded."""
        keys = Keys([SECRET_KEY, '\ud800' + OTHER_SECRET_KEY])
        shown = [repr(keys), f'{keys}', pprint.pformat(keys), *Signed().headers.values()]
        with pytest.raises(Forbidden) as caught:
            Signed(key=OTHER_SECRET_KEY).take()
        shown += [str(caught.value), repr(vars(caught.value))]
        with pytest.raises(BadCall, match='has no JSON form') as caught:
            Friend('app1', make()).send('/echo', keys)
        shown += [str(caught.value)]
        assert not [text for text in shown if 'key of' in text]


class TestNonces:
    """The nonces by which a service takes a call once."""

    def test_again(self, at_noon):
        """A call that comes again within the window is refused, however often and late."""
        at_noon(NOW - 400)
        service, call = signed_service(), Signed()
        for now in (NOW, NOW, NOW + 0.5, NOW - 300, NOW + 299, NOW + 300):
            at_noon(now)
            if not service.ran:
                call.take(service)
                continue
            with pytest.raises(Forbidden, match='it came before, and is taken once'):
                call.take(service)
        at_noon(NOW + 301)
        with pytest.raises(Forbidden, match='signed 301 s ago'):
            call.take(service)
        assert service.ran == ['Mr. Developer']

    def test_fork(self, monkeypatch):
        """A forked process takes nothing from before its first call: others may have taken it."""
        nonces = signing._Nonces(NOW - 400)
        nonces.spend(NOW - 9, 'n', NOW, NOW)
        monkeypatch.setattr(os, 'getpid', lambda: -1)
        with pytest.raises(Busy):
            nonces.spend(NOW - 1, 'm', NOW, NOW)
        nonces.spend(NOW, 'm', NOW + 1, NOW + 1)

    def test_fork_while_locked(self, monkeypatch):
        """A forked process does not wait for a lock that a thread of its parent held."""
        nonces, held, release = signing._Nonces(NOW), threading.Event(), threading.Event()
        nonces.spend(NOW, 'n', NOW, NOW)

        def hold(lock):
            with lock:
                held.set()
                release.wait(TIMEOUT)

        thread = threading.Thread(target=hold, args=(nonces.locks[os.getpid()],))
        thread.start()
        try:
            held.wait(TIMEOUT)
            monkeypatch.setattr(os, 'getpid', lambda: -1)
            nonces.spend(NOW, 'm', NOW, NOW)
            assert thread.is_alive()
        finally:
            release.set()
            thread.join(TIMEOUT)

    def test_same_nonce(self):
        """Another call with the same nonce is refused, too."""
        nonces = signing._Nonces(NOW - 400)
        nonces.spend(NOW, 'n', NOW, NOW)
        with pytest.raises(ValueError, match='it came before'):
            nonces.spend(NOW - 200, 'n', NOW, NOW)

    def test_window(self):
        """Clocks may differ by 300 seconds."""
        nonces = signing._Nonces(NOW - 400)
        for number, created in enumerate((NOW - 300, NOW + 300)):
            nonces.spend(created, str(number), NOW, NOW)
        for created in (NOW - 301, NOW + 301):
            with pytest.raises(ValueError, match='two clocks may differ by 300 s'):
                nonces.spend(created, 'n', NOW, NOW)

    def test_start(self):
        """A call from before the start is 503: it may have been taken then."""
        nonces = signing._Nonces(NOW + 0.9)
        nonces.spend(NOW, 'a', NOW + 1, NOW + 1)
        with pytest.raises(
            Busy, match='before the time that is remembered; sign it again'
        ) as caught:
            nonces.spend(NOW - 1, 'b', NOW + 1, NOW + 1)
        assert caught.value.status == 503

    def test_clock_set_back(self):
        """What was forgotten is not taken again after the clock is set back."""
        nonces = signing._Nonces(NOW, few=1)
        nonces.spend(NOW, 'a', NOW, NOW)
        nonces.spend(NOW + 1000, 'b', NOW + 1000, NOW + 1000)
        with pytest.raises(Busy):
            nonces.spend(NOW, 'a', NOW, NOW)

    @pytest.mark.parametrize('most', [1, 10, 100, 10000])
    def test_bound(self, most):
        """However many calls come, no more are held, and none is taken twice; new ones may wait."""
        rnd, now, taken, outcomes = random.Random(most), NOW, [], collections.Counter()
        nonces = signing._Nonces(now, most=most)
        for number in range(5000):
            now += rnd.choice([0, 0, 0.1, 1])
            call = (int(now) - rnd.randrange(-20, 40), str(number))
            if taken and rnd.random() < 0.4:
                call = rnd.choice(taken[-2000:])
            try:
                nonces.spend(*call, now, now)
            except (ValueError, Busy) as error:
                outcomes[type(error)] += 1
            else:
                outcomes['taken'] += 1
                assert call not in taken[-4000:]
                taken.append(call)
            assert len(nonces.spent) <= most
        assert len(set(taken)) == len(taken) > 30
        assert outcomes[Busy] > 0 and (outcomes[ValueError] > 0 or most < 100)

    def test_most_calls(self):
        """A service that takes more than it can hold takes new calls all the same."""
        nonces = signing._Nonces(NOW, most=1000)
        for number in range(10000):  # twenty a second
            nonces.spend(NOW + number // 20, str(number), NOW + number / 20, NOW + number / 20)

    def test_forgets(self):
        """It holds the nonces of the window, and not many more."""
        nonces = signing._Nonces(NOW, few=100)
        for second in range(2000):
            nonces.spend(NOW + second, str(second), NOW + second, NOW + second)
            assert min(second, 300) < len(nonces.spent) <= 2 * 301

    def test_threads(self):
        """Of the same call in many threads at once one is taken."""
        for _ in range(20):
            nonces, barrier = signing._Nonces(NOW), threading.Barrier(8)

            def take(_, nonces=nonces, barrier=barrier):
                barrier.wait(TIMEOUT)
                try:
                    nonces.spend(NOW, 'n', NOW, NOW)
                except ValueError:
                    return 0
                return 1

            assert sum(call_all(8, take)) == 1


EACH_ALTERATION = [(what, several[0]) for what, _, several in ALTERED_CALLS]


@pytest.mark.usefixtures('at_noon')
class TestSignedHosts:
    """Every host takes signed calls only, each once, and signs what it answers to them."""

    @HOSTS
    @pytest.mark.parametrize('rule', ['/hello world', '/aecho', '/fail', '/afail', '/none', '/'])
    def test_call(self, ask, rule):
        """A signed call gets a signed answer, whatever that says, from plain and async rules."""
        service, call = make_async(secretKey=Keys(SECRET_KEY)), Signed()
        service.typing('/hello world')('Welcome {}'.format)
        call.path = rule
        call = call.again()
        path = urllib.parse.quote(rule)
        status, fields, body = ask(service, 'POST', path, call.headers, call.body)
        known = {'/hello world': 200, '/aecho': 200, '/none': 404, '/': 404}
        assert status == known.get(rule, 500)
        reply = Signed.received(fields, body, call, status)
        reply.take()
        reply.body += b' '
        with pytest.raises(BadReply):
            reply.take()
        assert ask(service, 'POST', path, call.headers, call.body)[0] == 401
        service.stop()

    @pytest.mark.filterwarnings('ignore:Unknown REQUEST_METHOD')
    @HOSTS
    @pytest.mark.parametrize('what, alter', EACH_ALTERATION)
    def test_altered(self, ask, what, alter):
        """An altered call is 401 at each host, and runs nothing; the answer is not signed."""
        service, call = signed_service(), Signed()
        alter(call)
        path = urllib.parse.quote(call.path)
        status, fields, body = ask(service, call.method, path, call.headers, call.body)
        assert (status, service.ran) == (401, [])
        assert json.loads(body)['detail'].startswith('the call is refused: ')
        assert fields['www-authenticate'] == 'Signature realm="microconnect"'
        assert not {'signature', 'content-digest'} & set(fields)

    @pytest.mark.filterwarnings('ignore:Unknown REQUEST_METHOD')
    @HOSTS
    def test_unsigned(self, ask):
        """An unsigned call is 401, of a rule that there is and of one that there is not."""
        service = signed_service(token=SECRET)
        for method, path in (('POST', '/echo'), ('GET', '/echo'), ('POST', '/ecko'), ('BREW', '/')):
            body = json.dumps({'args': [1], 'token': SECRET}).encode()
            status, _, problem = ask(service, method, path, JSON, body)
            detail = json.loads(problem)['detail']
            assert (status, detail) == (401, f'the call is refused: {NOT_SIGNED}')
        assert service.ran == []

    @HOSTS
    def test_foreign_page(self, ask):
        """What the signature does not cover gets no signed refusal: anybody may have added it."""
        service = signed_service()
        headers = {**Signed().headers, 'Origin': 'https://evil.example'}
        status, fields, _ = ask(service, 'POST', '/helloworld', headers, BODY)
        assert status == 403
        assert 'signature' not in {name.lower() for name in fields}

    @HOSTS
    def test_health(self, ask):
        """GET / and HEAD / need no signature; a rule of that name does."""
        service = signed_service()
        assert ask(service, 'GET', '/', {}, b'')[::2] == (200, b'["app1"]')
        assert ask(service, 'HEAD', '/', {}, b'')[::2] == (200, b'')
        assert 'signature' not in ask(service, 'GET', '/', Signed().headers, b'')[1]
        service.typing('/', methods=['GET'])(lambda: service.ran.append(1))
        assert ask(service, 'GET', '/', {}, b'')[0] == 401
        assert service.ran == []

    @HOSTS
    @pytest.mark.parametrize('methods', [('POST',), ('POST', 'OPTIONS')])
    def test_preflight(self, ask, methods):
        """What a browser asks before a call needs no signature, and runs no rule."""
        service = signed_service(origins=[ORIGIN])
        service.typing('/f', methods=methods)(lambda: service.ran.append(1))
        asked = {'Origin': ORIGIN, 'Access-Control-Request-Method': 'POST'}
        status, fields, _ = ask(service, 'OPTIONS', '/f', asked, b'')
        assert (status, 'signature' in fields) == (200, False)
        for some in ({'Origin': ORIGIN}, {'Access-Control-Request-Method': 'POST'}, {}):
            assert ask(service, 'OPTIONS', '/f', some, b'')[0] == 401
            assert ask(service, 'POST', '/f', {**some, **JSON}, b'{}')[0] == 401
        assert service.ran == []

    @HOSTS
    def test_large_body(self, ask):
        """A body over max_body is 413, and not taken for an altered one."""
        service = signed_service(max_body=40)
        assert ask(service, 'POST', '/hello%20world', Signed().headers, BODY)[0] == 413

    def test_behind_a_prefix(self):
        """The prefix under which a server mounts the service is not a part of what is signed."""
        service = signed_service()
        for ask, how, path in (
            (by_wsgi, {'SCRIPT_NAME': '/rpc'}, '/hello%20world'),
            (by_asgi, {'root_path': '/rpc'}, '/rpc/hello%20world'),
        ):
            call = Signed()
            assert ask(service, 'POST', path, call.headers, call.body, **how)[0] == 200

    @pytest.mark.parametrize('ask', [by_listener, by_asgi, Microservice.answer])
    @pytest.mark.parametrize('name', ['signature', 'signature-input', 'content-digest'])
    def test_duplicate_fields(self, ask, name):
        """A field that comes twice is refused, though one of the two is right."""
        service, call = signed_service(), Signed()
        for value in (call.headers[name], 'sig=:YQ==:'):
            for headers in (
                {name.title(): value, **call.headers},
                {**call.headers, name.title(): value},
            ):
                assert ask(service, 'POST', '/hello%20world', headers, BODY)[0] == 401
        assert service.ran == []

    def test_another_framing(self):
        """The order and case of the lines, spaces around values, and chunks do not matter."""
        service = signed_service()
        with serving(service):
            for write in (str.title, str.upper, str.lower):
                call = Signed()
                lines = [f'{write(name)}:\t{value}  ' for name, value in call.headers.items()]
                lines += ['Transfer-Encoding: chunked', 'Connection: close', 'Host: y']
                head = '\r\n'.join(['POST /h%65llo%20world HTTP/1.1', *lines[::-1], '\r\n'])
                chunks = [BODY[at : at + 7] for at in range(0, len(BODY), 7)] + [b'']
                data = head.encode() + b''.join(b'%x\r\n%b\r\n' % (len(one), one) for one in chunks)
                assert statuses(raw(service, data)) == [200]
        assert service.ran == ['Mr. Developer'] * 3

    def test_replayed(self):
        """A call that is sent again on this or another connection is refused, and unsigned."""
        service, call = signed_service(), Signed()
        lines = ''.join(f'{name}: {value}\r\n' for name, value in list(call.headers.items())[1:])
        data = request(BODY, '/hello%20world', extra=lines.encode())
        with serving(service):
            first, second = raw(service, data * 2).split(b'HTTP/1.1 401')
            assert statuses(first) == [200] and b'\r\nSignature: ' in first
            assert b'it came before, and is taken once' in second
            assert b'\r\nSignature: ' not in second
            assert statuses(raw(service, data)) == [401]
        assert service.ran == ['Mr. Developer']

    def test_strangers_json(self, monkeypatch):
        """No JSON is parsed before the signature holds."""
        service, seen = signed_service(token=SECRET), []
        monkeypatch.setattr(microconnect, '_parse_call', lambda *call: seen.append(call))
        for call in (Signed(b'[' * 9999, key=OTHER_SECRET_KEY), Signed(b'{}')):
            call.body += b' '
            with pytest.raises(Forbidden):
                call.take(service)
        assert seen == []


SIGNED = f"""
from microconnect import Microservice
from signing import Keys

Micro = Microservice('app1', secretKey=Keys({SECRET_KEY!r}))
application = Micro.wsgi
Micro.typing('/grüße dich/100%')(lambda value: value)
Micro.typing('/fail')({{}}.__getitem__)

@Micro.typing('/later')
async def later(value):
    return value
"""


class TestSignedServers:
    """The servers that many use, where they are installed."""

    @pytest.mark.parametrize('server', SERVERS)
    def test_signed(self, server, tmp_path):
        """Signed calls and replies go through the server of another unharmed."""
        pytest.importorskip(SERVERS[server][0])
        (tmp_path / 'app1.py').write_text(SIGNED)
        shutil.copy(signing.__file__, tmp_path)
        port = dead_address().rpartition(':')[2]
        command = [part.replace('PORT', port) for part in SERVERS[server]]
        with running('-m', *command, folder=tmp_path):
            address = f'http://127.0.0.1:{port}'
            with Friend('app1', address, secretKey=Keys(SECRET_KEY), timeout=TIMEOUT) as friend:
                friend.wait(TIMEOUT)
                for rule in ('/grüße dich/100%', '/later'):
                    assert friend.send(rule, 'ä' * 50000) == 'ä' * 50000
                with pytest.raises(UnknownRule):
                    friend.send('/nothing')
                with pytest.raises(KeyError):
                    friend.send('/fail', 1)
            with Friend('app1', address, timeout=TIMEOUT) as friend:
                with pytest.raises(Forbidden):
                    friend.send('/later', 1)


class TestSignedFriend:
    """A friend with a secretKey signs what it sends, and believes only what is signed for it."""

    @pytest.mark.parametrize('over', ['in process', 'listener'])
    def test_calls(self, over):
        """Values and errors come as without a key, together with tokens, and from `asend`."""
        service = make_async(secretKey=Keys(SECRET_KEY), token={'/echo': SECRET}, debug=True)
        with contextlib.ExitStack() as stack:
            if over == 'listener':
                stack.enter_context(serving(service))
            address = service.address if over == 'listener' else service
            how = {'secretKey': Keys(SECRET_KEY), 'timeout': TIMEOUT}
            friend = stack.enter_context(Friend('app1', address, {'/echo': SECRET}, **how))
            assert friend.ping()
            assert [friend.send('/echo', number) for number in range(5)] == [0, 1, 2, 3, 4]
            assert friend.send('/aecho', 'ä\u20ac') == 'ä\u20ac'
            assert len(friend.send('/echo', 'x' * 1000000)) == 1000000
            assert asyncio.run(friend.asend('/echo', 'later')) == 'later'
            assert friend.within(TIMEOUT).send('/echo', 7) == 7
            with pytest.raises(KeyError) as caught:
                friend.send('/fail', 'KeyError')
            assert isinstance(caught.value, RemoteError) and 'fail' in caught.value.traceback
            assert caught.value.__cause__
            for kind, status, call in (
                (BadArguments, 422, lambda: friend.send('/fail', too='many')),
                (UnknownRule, 404, lambda: friend.send('/ecko')),
                (UnknownRule, 405, lambda: friend.send('/aecho')),
                (Forbidden, 401, lambda: friend.send('/echo', 1)),
                (BadCall, None, lambda: friend.send('/\ud800')),
            ):
                friend.setRule('/aecho', method='GET')
                friend.setRule('/echo', token='wrong')
                with pytest.raises(kind) as caught:
                    call()
                assert (caught.value.status, caught.value.sent) == (status or 400, False)

    @pytest.mark.parametrize('several', [False, True])
    def test_refused_by_somebody_on_the_way(self, several):
        """Who passes a call on, and then refuses it without a signature, gets it no second time."""
        service = signed_service()

        def pass_on(sock, *_):
            got = call_on(sock)
            raw(service, got)
            sock.sendall(b'\x15\x03\x01\x00\x02\x02\x0a')  # TLS: an alert

        with serving(service), peer(pass_on) as one, peer(pass_on) as two:
            with Friend(
                'app1', [one, two] if several else one, secretKey=Keys(SECRET_KEY)
            ) as friend:
                with pytest.raises(MicroconnectError) as caught:
                    friend.send('/echo', 1)
        assert caught.value.sent is True
        assert service.ran == [((1,), {})]

    def test_cut_off_by_somebody_on_the_way(self):
        """A signed call that did not leave whole may have run: its rest could be guessed."""

        def cut(sock, *_):
            sock.recv(4096)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))

        with peer(cut) as address:
            for keys in (Keys(SECRET_KEY), False):
                with Friend('app1', address, secretKey=keys, timeout=TIMEOUT) as friend:
                    with pytest.raises(ConnectionLost) as caught:
                        friend.send('/echo', 'x' * 8000000)
                assert caught.value.sent is bool(keys)

    @pytest.mark.parametrize('over', ['in process', 'listener'])
    def test_keys_that_do_not_fit(self, over):
        """Another key, or a key on one side only, gives an error that says so, and no value."""
        signed, plain = signed_service(), make()
        with serving(signed), serving(plain):
            for service, keys, kind, why, ran in (
                (signed, False, Forbidden, f'the call is refused: {NOT_SIGNED}', []),
                (signed, None, Forbidden, f'the call is refused: {NOT_SIGNED}', []),
                (
                    signed,
                    Keys(OTHER_SECRET_KEY),
                    BadReply,
                    f'the reply is refused: {NOT_SIGNED}; it says 401: the call is refused: '
                    'its signature does not hold: it is of another secretKey',
                    [],
                ),
                (
                    plain,
                    Keys(SECRET_KEY),
                    BadReply,
                    f'the reply is refused: {NOT_SIGNED}',
                    [((1,), {})],
                ),
            ):
                address = service.address if over == 'listener' else service
                with Friend('app1', address, secretKey=keys, timeout=TIMEOUT) as friend:
                    with pytest.raises(kind) as caught:
                        friend.send('/echo', 1)
                    where = address if over == 'listener' else 'app1 (in process)'
                    assert str(caught.value) == f'/echo at {where}: {why}'
                    assert caught.value.sent == (kind is BadReply)
                assert service.ran == ran
            friend = Friend('app1', plain, secretKey=Keys(SECRET_KEY))
            with pytest.raises(BadReply, match='; it says 500: ValueError: why'):
                friend.send('/fail', 'ValueError')

    def test_rotation(self):
        """Keys are replaced one side after the other, without refusing a call."""
        old, new = SECRET_KEY, OTHER_SECRET_KEY
        for one, other in (
            (old, [old, new]),
            ([old, new], [old, new]),
            ([new, old], [old, new]),
            ([new, old], new),
        ):
            for service_key, friend_key in ((one, other), (other, one)):
                service = make(secretKey=Keys(service_key))
                assert Friend('app1', service, secretKey=Keys(friend_key)).send('/echo', 1) == 1

    def test_in_the_middle(self):
        """A reply that is altered, or that is another call's, gives no value."""
        service, recorded = make(secretKey=Keys(SECRET_KEY)), []

        def through(alter):
            def script(sock, number, _):
                asked = call_on(sock)
                if asked:
                    asked = asked.replace(b'\r\n\r\n', b'\r\nConnection: close\r\n\r\n', 1)
                    got = raw(service, asked, end=False)
                    recorded.append(got)
                    sock.sendall(alter(got))

            return script

        def alter_status(got):
            return got.replace(b' 200 ', b' 503 ', 1)

        replies = [
            (lambda got: got, 2),
            (lambda got: got.replace(b'[2]', b'[3]'), None),
            (lambda got: recorded[0], None),
            (alter_status, None),
            (lambda got: re.sub(b'\r\nSignature:[^\r]*', b'', got), None),
            (lambda got: re.sub(b'nonce="[0-9a-f]*', b'nonce="x', got), None),
            (lambda got: got.replace(b'\r\nSignature: ', b'\r\nSignature: x=:YQ==:, '), None),
            (lambda got: response(b'[2]'), None),
            (lambda got: response(b'{"detail": "nothing ran"}', '503 Service Unavailable'), None),
            (lambda got: got.replace(b'\r\nSignature', b'\r\nX-More: 1\r\nsignature'), 2),
        ]
        with serving(service):
            for number, (alter, value) in enumerate(replies):
                with peer(through(alter)) as address, contextlib.ExitStack() as stack:
                    how = {'secretKey': Keys(SECRET_KEY), 'timeout': TIMEOUT}
                    # A second address: no call may be sent there.
                    friend = stack.enter_context(Friend('app1', [address, 'localhost:1'], **how))
                    if value is None:
                        with pytest.raises(BadReply, match='the reply is refused: ') as caught:
                            friend.send('/echo', 2)
                        assert caught.value.sent
                    else:
                        assert friend.send('/echo', 2) == value
                assert service.ran == [((2,), {})] * (number + 1)

    def test_what_is_sent(self):
        """The rule is signed without the prefix of the address, and each call anew."""
        got = []
        service = signed_service()  # first: it takes no call from before its start
        with peer(answers(*[b'HTTP/1.1 404 Not Found\r\n\r\n'] * 2, got=got)) as address:
            with Friend('app1', f'{address}/pre%20fix', secretKey=Keys(SECRET_KEY)) as friend:
                for _ in range(2):
                    with pytest.raises(BadReply):
                        friend.send('/hello world', 'Mr. Developer')
        assert len(set(got)) == 2
        for sent in got:
            head, _, body = sent.partition(b'\r\n\r\n')
            parsed = parse_request(head)
            assert parsed.path == '/pre fix/hello world'
            assert service.answer('POST', '/hello world', parsed.headers, body)[0] == 200

    def test_at_stop(self, monkeypatch):
        """A service that stops says so by a signed 503, so the friend calls the next address."""
        service, other = make(secretKey=Keys(SECRET_KEY)), make(secretKey=Keys(SECRET_KEY))
        with serving(service), serving(other):
            addresses = [service.address, other.address]
            with Friend('app1', addresses, secretKey=Keys(SECRET_KEY), timeout=TIMEOUT) as friend:
                handle = service._handle

                def stop_and_handle(*call):
                    return handle(*call[:-1], Busy('the service is stopping'))

                monkeypatch.setattr(service, '_handle', stop_and_handle)
                assert friend.send('/echo', 7) == 7
                with Friend('app1', service.address, secretKey=Keys(SECRET_KEY)) as alone:
                    with pytest.raises(Busy, match='is stopping') as caught:
                        alone.send('/echo', 7)
                    assert not caught.value.sent
        assert (service.ran, other.ran) == ([], [((7,), {})])

    def test_threads(self):
        """Threads share a signed friend, and no call is refused or taken twice."""
        with serving(make(secretKey=Keys(SECRET_KEY))) as service:
            with Friend(
                'app1', service.address, secretKey=Keys(SECRET_KEY), timeout=TIMEOUT
            ) as friend:
                got = call_all(8, lambda number: [friend.send('/echo', number)] * 20)
        assert got == [[number] * 20 for number in range(8)]

    def test_clocks(self, at_noon):
        """A clock that is wrong is told, with the difference, as what the service says."""
        service = make(secretKey=Keys(SECRET_KEY))
        friend = Friend('app1', service, secretKey=Keys(SECRET_KEY))
        sign = friend._signer.sign
        friend._signer.sign = lambda *parts: sign(*parts[:-1], NOW - 1000)
        with pytest.raises(BadReply, match='it says 401: .* was signed 1000 s ago, and two clocks'):
            friend.send('/echo', 1)
        friend._signer.sign = lambda *parts: sign(*parts[:-1], NOW - 10)  # before it started
        with pytest.raises(BadReply, match='it says 503: the call is from before the time'):
            friend.send('/echo', 1)
        assert service.ran == []

    def test_never_shown(self, caplog):
        """No log line, repr, error or reply holds the key."""
        caplog.set_level(logging.DEBUG)
        service, shown = make(secretKey=Keys(SECRET_KEY), debug=True), []
        with serving(service):
            for keys in (Keys(SECRET_KEY), Keys(OTHER_SECRET_KEY)):
                with Friend('app1', service.address, secretKey=keys, timeout=TIMEOUT) as friend:
                    for rule in ('/fail', '/none', '/echo'):
                        try:
                            friend.send(rule, 'ValueError')
                        except MicroconnectError as error:
                            shown += [traceback.format_exc(), repr(vars(error)), repr(error)]
                    for value in (friend, service):
                        shown += [repr(value), pprint.pformat(value)]
                        with pytest.raises(BadCall, match='has no JSON form') as caught:
                            friend.send('/echo', value)
                        shown += [str(caught.value)]
        assert 'refused 401' in caplog.text and len(shown) > 20
        assert not [
            text
            for text in (*shown, caplog.text)
            if SECRET_KEY[:9] in text or OTHER_SECRET_KEY[:9] in text
        ]

    def test_cannot_be_set(self):
        """A key is given when a service or a friend is made: setting it later is an error."""
        service = make()
        for one in (service, Friend('app1', service)):
            with pytest.raises(AttributeError):
                one.secretKey = SECRET_KEY

    def test_not_copied(self):
        """What holds a key is not pickled."""
        for one in (
            make(secretKey=Keys(SECRET_KEY))._signer,
            Friend('a', 'b:1', secretKey=Keys(SECRET_KEY)),
        ):
            with pytest.raises(TypeError, match='is not copied'):
                pickle.dumps(one)

    def test_missing_key(self):
        """A key from a variable that is not set is an error, on both sides."""
        with pytest.raises(TypeError, match='is an environment variable not set'):
            Friend('bank', '127.0.0.1:1', secretKey=Keys(os.environ.get('MICROCONNECT_NO_SUCH')))

    def test_not_open(self, caplog):
        """A service with a key is not warned of as open to the network."""
        make(secretKey=Keys(SECRET_KEY)).start(port=0, host='0.0.0.0').stop()
        assert caplog.messages == []

    def test_wrong_keys(self):
        """Both sides refuse a key that is not in Keys, and one that can be guessed."""
        for use in (Microservice, lambda name, secretKey: Friend(name, 'x:1', None, secretKey)):
            with pytest.raises(TypeError, match='from a copy of examples/signed/signing.py'):
                use('app1', secretKey=SECRET_KEY)
            with pytest.raises(ValueError, match='secretKey has 8 bytes, not 32'):
                use('app1', secretKey=Keys('p4ssword'))


class TestFiles:
    """What README.md and the files beside it promise."""

    def test_readme(self):
        """The block of the README runs, and prints the text below it."""
        text = (FOLDER / 'README.md').read_text(encoding='utf-8')
        code, printed = re.findall(r'^```(?:python)?\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, {'__name__': 'readme'})
        assert out.getvalue() == printed

    def test_run(self):
        """The example prints a value, and why the two other calls are refused."""
        done = subprocess.run(
            [sys.executable, str(FOLDER / 'run.py')], stdout=subprocess.PIPE, timeout=TIMEOUT
        )
        value, *refused = done.stdout.decode().splitlines()
        assert value == '100 paid to Bob'
        assert NOT_SIGNED in refused[0] and 'it came before, and is taken once' in refused[1]

    @pytest.mark.parametrize('signing_in, microconnect_in', [('.', '.'), ('a', 'a'), ('a', '.')])
    def test_vendored(self, signing_in, microconnect_in, tmp_path):
        """The pair works side by side, in a package, and with only signing.py in the package."""
        for name, folder in (
            (signing.__file__, signing_in),
            (microconnect.__file__, microconnect_in),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copy(name, tmp_path / folder)
        dot = {'.': '', 'a': 'a.'}
        (tmp_path / 'app1.py').write_text(f"""
from {dot[microconnect_in]}microconnect import Forbidden, Friend, Microservice
from {dot[signing_in]}signing import Keys

Micro = Microservice('app1', secretKey=Keys({SECRET_KEY!r}))
Micro.typing('/f')(lambda: 7)
with Micro.start(port=0, host='127.0.0.1'):
    print(Friend('app1', Micro.address, secretKey=Keys({SECRET_KEY!r})).send('/f'))
    try:
        Friend('app1', Micro.address).send('/f')
    except Forbidden:
        print('Forbidden')
""")
        with running('app1.py', folder=tmp_path) as process:
            out, err = process.communicate(timeout=TIMEOUT)
        assert (out.split(), err) == ([b'7', b'Forbidden'], b'')


# What a Signature-Input or a digest has that does not fit, and what the refusal says of it.
MISFITS = [
    ('is not label=(...) with parameters', put('signature-input', 'sig=:YQ==:')),
    ('must list once and in order "@method" "@path"', resigned(listed=' '.join(NAMES[::-1]))),
    ('must list once and in order "@method"', resigned(listed=LISTED_NAMES + ' "@path"')),
    *((f'does not list {n}', resigned(listed=LISTED_NAMES.replace(n, '"date"'))) for n in NAMES),
    ('lists \'"date"\', which is not signed here', resigned(listed=LISTED_NAMES + ' "date"')),
    ("lists '', which is not signed here", resigned(listed=LISTED_NAMES + ' ')),
    ('has no created', resigned(parameters=';' + REST)),
    ('has no nonce', resigned(parameters=f';created={NOW}')),
    ('has nonce twice', resigned(parameters=PARAMETERS + ';nonce="m"')),
    ('has created twice', resigned(parameters=f'{PARAMETERS};created={NOW}')),
    ("has ';created=x', which is not read here", resigned(parameters=';created=x;nonce="n"')),
    ('has \';alg="ed25519"\'', resigned(parameters=f';alg="ed25519";created={NOW};nonce="n"')),
    ("has ';sf', which is not read here", resigned(parameters=PARAMETERS + ';sf')),
    ('has \';x="y"\', which is not read here', resigned(parameters=PARAMETERS + ';x="y"')),
    ('is not label=(...) with parameters', resigned(label='a' * 65)),
    ('has \';expires="1"\'', resigned(parameters=PARAMETERS + ';expires="1"')),
    ("has ';tag=t'", resigned(parameters=PARAMETERS + ';tag=t')),
    ('has \';alg="hmac-sha256", sig=(', again('signature-input')),
]
DIGEST_MISFITS = ['', ',', 'md5=:YQ==:', f'{CALL_DIGEST},', f'{CALL_DIGEST}, {CALL_DIGEST}']
DIGEST_MISFITS += [f'{CALL_DIGEST}, {REPLY_DIGEST}', f'{CALL_DIGEST}, x', f'x=1, {CALL_DIGEST}']
DIGEST_MISFITS += [f'{CALL_DIGEST} md5=:YQ==:', f'{CALL_DIGEST}, MD5=:YQ==:', f'"{CALL_DIGEST}"']


@pytest.mark.usefixtures('at_noon')
class TestForms:
    """What else the standards allow a message to say is read, or named by the refusal."""

    @pytest.mark.parametrize('why, alter', MISFITS)
    def test_misfits(self, why, alter):
        """A refusal names the part of Signature-Input that does not fit."""
        call = Signed()
        alter(call)
        with pytest.raises(Forbidden) as caught:
            call.take()
        assert str(caught.value).startswith(f'the call is refused: its Signature-Input {why}')

    def test_label(self):
        """Another label in Signature than in Signature-Input is told."""
        for label in ('gis', 'si'):
            call = Signed()
            change('signature-input', 'sig=', f'{label}=')(call)
            with pytest.raises(Forbidden, match=f'it has not the label {label} of its Signature-I'):
                call.take()
        call.resign(label='a' * 64)
        call.take()

    def test_strangers_text(self):
        """A refusal repeats little of what anybody may have written, and in ASCII."""
        for part in (f' "\x1b\u20ac{"x" * 9999}")', f');é{"x" * 9999}'):
            call = Signed()
            call.headers['signature-input'] = f'sig=({LISTED_NAMES}{part}'
            with pytest.raises(Forbidden) as caught:
                call.take()
            assert str(caught.value).isascii() and str(caught.value).isprintable()
            assert len(str(caught.value)) < 200

    @pytest.mark.parametrize('late', [-1000, -1, 0, 1, 7])
    def test_expires(self, late):
        """A call or a reply is believed up to the second in which it expires, and no longer."""
        call, reply = Signed(), Signed(REPLY, to=Signed())
        call.resign(parameters=f'{PARAMETERS};expires={NOW - late}')
        listed, parameters = reply.headers['signature-input'][5:].split(')', 1)
        parameters += f';expires={NOW - late}'
        base = REPLY_BASE.partition('"@signature-params"')[0]
        base = base.replace(CALL_SIGNATURE, reply.to.headers['signature'][4:])
        base += f'"@signature-params": ({listed}){parameters}'
        reply.headers['signature-input'] = f'sig=({listed}){parameters}'
        reply.headers['signature'] = f'sig={hmac_of(base)}'
        for message, kind in ((call, Forbidden), (reply, BadReply)):
            if late < 1:
                message.take()
                continue
            with pytest.raises(kind, match=f'refused: its signature expired {late} s ago$'):
                message.take()

    def test_tag(self):
        """A tag is signed, and else not looked at."""
        call = Signed()
        call.resign(parameters=f';tag="an app";expires={NOW};{PARAMETERS[1:]}')
        true = copy.deepcopy(call)
        change('signature-input', 'an app', 'an ape')(call)
        with pytest.raises(Forbidden, match='its signature does not hold'):
            call.take()
        true.take()

    @pytest.mark.parametrize(
        'digest',
        [
            f'sha-512=:YQ==:, {CALL_DIGEST}',
            f'{CALL_DIGEST},sha-256-x=:YQ==:',
            f'md5=::\t , {CALL_DIGEST} ,\tx.y*z_0-=:YQ==:',
        ],
    )
    def test_several_digests(self, digest):
        """Of several digests that of sha-256 must hold, and the others are not looked at."""
        service = signed_service()
        for given, why in (
            (digest.replace(CALL_DIGEST, REPLY_DIGEST), 'its body is not the one'),
            (digest.replace(CALL_DIGEST, 'sha-256=::'), 'its body is not the one'),
            (digest, ''),
        ):
            call = Signed()
            call.headers['content-digest'] = given
            call.resign()
            if not why:
                call.take(service)
                continue
            with pytest.raises(Forbidden, match=why):
                call.take(service)
        assert service.ran == ['Mr. Developer']

    @pytest.mark.parametrize('digest', DIGEST_MISFITS)
    def test_wrong_digests(self, digest):
        """A signed Content-Digest without exactly one digest of sha-256 is refused."""
        call = Signed()
        call.headers['content-digest'] = digest
        call.resign()
        with pytest.raises(Forbidden, match='its Content-Digest is not a list .* one of sha-256$'):
            call.take()

    def test_digests_at_random(self):
        """However a signed Content-Digest is broken, it is refused, or says what the body is."""
        rnd = random.Random(9530)
        for _ in range(1000):
            call = Signed()
            digest = altered_text(rnd, f'md5=:YQ==:, {CALL_DIGEST}').replace('\ud800', '')
            call.headers['content-digest'] = digest
            call.resign()
            try:
                call.take()
            except Forbidden:
                continue
            assert digest.count(CALL_DIGEST) == digest.count('sha-256=') == 1

    @pytest.mark.parametrize('with_body', [False, True])
    def test_another_library(self, with_body):
        """Another library's `expires`, `tag`, digest and own order of the parameters are read."""
        library = pytest.importorskip('http_message_signatures')

        class Resolver(library.HTTPSignatureKeyResolver):
            def resolve_private_key(self, key_id):
                return SECRET_KEY.encode()

        how = {'signature_algorithm': library.algorithms.HMAC_SHA256, 'key_resolver': Resolver()}
        call = Signed()
        names = ['content-type', *([] if with_body else ['content-digest'])]
        headers = {name.title(): call.headers[name] for name in names}
        for late, why in ((-60, ''), (60, 'expired 60 s ago')):
            sent = types.SimpleNamespace(
                method='POST', url='http://example.com/hello%20world', headers=dict(headers)
            )
            library.HTTPMessageSigner(**how).sign(
                sent,
                key_id='k',
                nonce='m',
                tag='an app',
                created=datetime.datetime.fromtimestamp(NOW - 100),
                expires=datetime.datetime.fromtimestamp(NOW - late),
                covered_component_ids=[name.strip('"') for name in NAMES],
                **({'body': BODY} if with_body else {'use_existing_digest': True}),
            )
            call.headers = {name.lower(): value for name, value in sent.headers.items()}
            service = signed_service()
            service._signer.nonces.started -= 400
            if why:
                with pytest.raises(Forbidden, match=why):
                    call.take(service)
            else:
                call.take(service)


class Clocks:
    """The wall clock, which can be set, and the monotonic one, which only goes on."""

    def __init__(self, wall=NOW + 0.5, ticks=1000.25):
        self.wall, self.ticks = wall, ticks

    def wait(self, seconds):
        self.wall += seconds
        self.ticks += seconds

    def set_by(self, seconds):
        self.wall += seconds


@pytest.fixture
def clocks(monkeypatch):
    clocks = Clocks()
    monkeypatch.setattr(time, 'time', lambda: clocks.wall)
    monkeypatch.setattr(time, 'monotonic', lambda: clocks.ticks)
    return clocks


def signed_at(seconds):
    """A call that was signed when its friend's clock said so."""
    call = Signed()
    call.resign(parameters=f';created={int(seconds)};nonce="{os.urandom(8).hex()}"')
    return call


def answer(service, call):
    """What the service says of a call: the status, and why it refuses the call."""
    status, _, body = service.answer(call.method, call.path, call.headers, call.body)
    return status, '' if status == 200 else json.loads(body)['detail']


TAKEN = (200, '')
TAKEN_BEFORE = (401, 'the call is refused: it came before, and is taken once')
TOO_OLD = 'the call is from before the time that is remembered; sign it again'
STEPS = [-31536000, -3600, -601, -301, -299, -1, 1, 299, 301, 601, 3600, 31536000]


class TestClockSteps:
    """A clock that is set, in either direction, neither stops calls nor lets one be taken twice."""

    @pytest.mark.parametrize('ran', [0, 10, 1000, 10000])
    @pytest.mark.parametrize('step', STEPS)
    def test_started_wrong(self, clocks, step, ran):
        """A service whose clock was wrong as it started takes calls as soon as it is set."""
        service = signed_service()
        clocks.wait(ran)
        clocks.set_by(step)
        call = signed_at(clocks.wall)
        assert [answer(service, call) for _ in range(2)] == [TAKEN, TAKEN_BEFORE]
        # By a friend whose clock is behind.
        assert answer(service, signed_at(clocks.wall - min(ran, 300))) == TAKEN

    @pytest.mark.parametrize('step', STEPS)
    def test_start(self, clocks, step):
        """A call from before the start stays refused: an earlier process may have taken it."""
        service = signed_service()
        clocks.wait(100)
        clocks.set_by(step)
        assert answer(service, signed_at(clocks.wall - 101)) == (503, TOO_OLD)
        assert answer(service, signed_at(clocks.wall - 100)) == TAKEN

    @pytest.mark.parametrize('ran', [0, 10, 1000])
    @pytest.mark.parametrize('step', STEPS)
    def test_replays(self, clocks, step, ran):
        """A call that was taken before a step is refused after it, and as its time comes again."""
        service, taken = signed_service(), []
        for _ in range(2):
            clocks.wait(ran)
            for skew in (-min(ran, 300), 0, 300):
                call = signed_at(clocks.wall + skew)
                assert answer(service, call) == TAKEN
                taken.append((clocks.wall, call))
            clocks.set_by(step)
        for waited in (0, 10000):
            clocks.ticks += waited
            for wall, call in taken:
                clocks.wall = wall
                assert answer(service, call) == TAKEN_BEFORE
                assert {answer(service, other)[0] for _, other in taken} == {401}

    def test_there_and_back(self, clocks):
        """A clock that is wrong for a while leaves nothing behind: each call is taken, and once."""
        service, calls = signed_service(), []
        for step in (0, 3600, -3600, -3600, 3600, 86400, -86400):
            clocks.set_by(step)
            for _ in range(30):
                clocks.wait(30)
                calls.append(signed_at(clocks.wall - 20))
                assert answer(service, calls[-1]) == TAKEN
                assert {answer(service, call)[0] for call in calls} == {401}
        assert len(service.ran) == len(calls) == 7 * 30

    @pytest.mark.parametrize('few, most', [(1, 4), (8, 8), (10, 1000), (1000, 1000)])
    def test_at_random(self, clocks, few, most):
        """Whatever the clock does, and however little is remembered, no call is taken twice."""
        rnd, taken, waited = random.Random(few), [], 0
        nonces = signing._Nonces(clocks.ticks, few, most)
        for number in range(3000):
            clocks.wait(rnd.choice([0, 0.1, 1, 10, 400]))
            if rnd.random() < 0.05:
                clocks.set_by(rnd.choice(STEPS[1:-1]))
            call = (int(clocks.wall) + rnd.choice([0, 0, -3, 3, 300]), str(number))
            if taken and rnd.random() < 0.5:
                call = min(rnd.sample(taken, min(5, len(taken))), key=lambda c: abs(c[0] - call[0]))
            try:
                nonces.spend(*call, clocks.wall, clocks.ticks)
            except (ValueError, Busy) as error:
                waited += isinstance(error, Busy)
            else:
                assert call not in taken
                taken.append(call)
            assert len(nonces.spent) <= most
        assert len(taken) > 30
        assert bool(waited) == (few < 1000)  # none has to wait where none is forgotten

    def test_after_more_than_a_few(self, clocks):
        """What is forgotten stays refused after the clock is set back, and it says how long."""
        service = signed_service()
        service._signer.nonces.few = service._signer.nonces.room = 4
        calls = [signed_at(clocks.wall + 400 * number) for number in range(10)]
        for call in calls:
            assert answer(service, call) == TAKEN
            clocks.wait(400)
        clocks.set_by(-4000)
        # As the fifth, seventh and ninth came, the ones before were forgotten, but for two.
        for call in (calls[0], signed_at(clocks.wall)):
            assert answer(service, call) == (503, f'{TOO_OLD} in {5 * 400 + 1} s')
        clocks.wait(2000)
        assert answer(service, signed_at(clocks.wall))[1].endswith(' in 1 s')
        clocks.wait(1)
        assert answer(service, signed_at(clocks.wall)) == TAKEN

    def test_room(self):
        """There is room for twice the window, or for the few, and never for more than the most."""
        for at_once, rooms in ((5, (10, 10)), (10, (20, 10)), (15, (30, 10)), (25, (40, 10))):
            nonces = signing._Nonces(NOW, few=10, most=40)
            for number in range(at_once):
                nonces.spend(NOW, str(number), NOW, NOW)
            for now, room in zip((NOW, NOW + 301), rooms):
                nonces.forget(now)
                assert nonces.room == room

    def test_call_while_it_forgets(self):
        """A call that a signal's handler takes as others are forgotten is remembered."""
        nonces = signing._Nonces(NOW, few=4)

        class Interrupted(dict):
            interrupts = [NOW + 500]

            def pop(self, nonce, *default):
                while self.interrupts:
                    now = self.interrupts.pop()
                    nonces.spend(now, 'x', now, now)
                return super().pop(nonce, *default)

        for number in range(4):
            nonces.spend(NOW + number, str(number), NOW + number, NOW + number)
        nonces.spent = Interrupted(nonces.spent)
        nonces.spend(NOW + 500, 'y', NOW + 500, NOW + 500)
        assert {'x', 'y'} <= set(nonces.spent)

    def test_test_tools(self, clocks):
        """A tool that sets the monotonic clock back leaves a service that takes each call once."""
        service, call = signed_service(), signed_at(NOW)
        assert answer(service, call) == TAKEN
        for clocks.ticks in (1e9, 500.25):
            for _ in range(3):
                assert answer(service, signed_at(clocks.wall)) == TAKEN
                clocks.wait(1.5)
            assert answer(service, call) == TAKEN_BEFORE


class TestCommands:
    """The commands of README.md."""

    def test_commands(self):
        """Each runs from the root of a clone, and the key that one of them makes is taken."""
        text, root = (FOLDER / 'README.md').read_text(encoding='utf-8'), FOLDER.parents[1]
        for command in re.findall(r'^    python3 (.*)$', text, re.MULTILINE):
            if 'pytest' in command:
                assert (root / command.split()[-1]).samefile(FOLDER)
                continue
            args = [part.strip("'") for part in re.findall(r"'[^']*'|[^ ]+", command)]
            out = subprocess.check_output([sys.executable, *args], cwd=str(root), timeout=TIMEOUT)
            if 'secrets' in command:
                Keys(out.decode().strip())
