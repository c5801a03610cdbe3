"""The tests of what README.md and the module's docstring promise, and of the original beside them.

They share the helpers of test_microconnect.py.
"""

import base64
import builtins
import collections
import contextlib
import datetime
import decimal
import fractions
import inspect
import io
import ipaddress
import itertools
import json
import operator
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

import microconnect
from microconnect import Friend, MicroconnectError, Microservice, RemoteError, UnknownRule
from test_microconnect import (
    CERTIFICATE,
    ERRORS,
    EXAMPLES,
    HERE,
    ID,
    KEY,
    LONG,
    OUTAGES,
    SAMPLE,
    STATUSES,
    TIMEOUT,
    Colour,
    Holder,
    Point,
    Sample,
    answers,
    both_ways,
    dead_address,
    error_of,
    friend_of,
    live,
    make,
    needs_signals,
    peer,
    raised,
    response,
    running,
    serving,
    shell,
    watch,
    watchdog,
)

__all__ = ['both_ways', 'live', 'watch', 'watchdog']  # fixtures

README = (HERE / 'README.md').read_text(encoding='utf-8')


def blocks():
    """The README's blocks of Python, each with what it prints if that follows: (code, printed)."""
    found = re.findall(r'^```(\w*)\n(.*?)^```$', README, re.DOTALL | re.MULTILINE)
    following = [code if kind == '' else '' for kind, code in found[1:]] + ['']
    return [(code, after) for (kind, code), after in zip(found, following) if kind == 'python']


def commands():
    """The README's commands for a shell, each with what it prints: (command, printed)."""
    found = ''.join(re.findall(r'^```console\n(.*?)^```$', README, re.DOTALL | re.MULTILINE))
    lines = [part.partition('\n') for part in re.split(r'^\$ ', found, flags=re.MULTILINE)[1:]]
    return [(command, printed) for command, _, printed in lines]


def moving(column):
    """The names and calls in a column of the README's table for users of the original."""
    section = README.split('## Moving from microservices_connector\n')[1].split('\n## ')[0]
    rows = [line.split(' | ') for line in section.splitlines() if line.startswith('| ')]
    return [code for row in rows for code in re.findall('`(.+?)`', row[column])]


def table(before, header):
    """The rows of the README's table with this header, after the text *before*: their cells."""
    lines = README.partition(before)[2].partition(f'| {header} |\n')[2].splitlines()[1:]
    rows = list(itertools.takewhile(lambda line: line.startswith('|'), lines))
    assert rows, 'there is no such table'
    return [[cell.strip() for cell in row.split('|')[1:-1]] for row in rows]


def told_errors(rows):
    """(status, name of the class, whether it ran) for each status of rows of a table of errors."""
    for statuses, kinds, ran in rows:
        codes, kinds = re.findall('[0-9]+', statuses) or [0], re.findall(r'\w+', kinds)
        for number, code in enumerate(codes):
            yield int(code), kinds[number % len(kinds)], ran.split(' / ')[0]
        yield int(codes[0]), kinds[0], ran.split(' / ')[-1]  # 'no / yes'


# fmt: off
SAMPLES = {  # what the README calls a value; such a one, and what is sent
    'str': ('x', 'x'), 'int': (7, 7), 'float': (2.5, 2.5), 'bool': (True, True),
    'None': (None, None), 'list': ([1], [1]), 'tuple': ((1, 2), [1, 2]),
    'dict or another mapping': (types.MappingProxyType({1: 2}), {'1': 2}), 'set': ({1}, [1]),
    'frozenset': (frozenset([1]), [1]), 'deque': (collections.deque([1]), [1]),
    'range': (range(2), [0, 1]), 'generator or another iterator': (iter([1]), [1]),
    'datetime': (datetime.datetime(2024, 2, 29), '2024-02-29T00:00:00'),
    'date': (datetime.date(2024, 2, 29), '2024-02-29'), 'time': (datetime.time(1), '01:00:00'),
    'timedelta': (datetime.timedelta(minutes=1), 60.0), 'Decimal': (decimal.Decimal('1.0'), '1.0'),
    'Fraction': (fractions.Fraction(1, 3), '1/3'), 'UUID': (ID, str(ID)),
    'Path': (pathlib.PurePosixPath('/a'), '/a'),
    'IP address': (ipaddress.ip_address('::1'), '::1'), 'bytes': (b'\x00\xff', 'AP8='),
    'bytearray': (bytearray(b'a'), 'YQ=='), 'memoryview': (memoryview(b'a'), 'YQ=='),
    'Enum': (Colour.RED, 'red'), 'dataclass': (Point(1.5), {'y': 1.5, 'x': 0.0}),
    'any other object': (Holder(b=1, _c=2, f=len), {'b': 1}), 'function': (make, ...),
    'class': (Sample, ...), 'exception': (ValueError(), ...), 'file': (io.StringIO(), ...),
    'or an object whose attributes all begin with `_`': (Holder(_a=1), ...),
}
# fmt: on


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


def printed_by(words, folder, capsys):
    """What a command prints; None where its program is not installed."""
    if words[1:2] == ['microconnect.py'] and words[2] != 'ping':  # ping is run for real
        shell(words[2:])
        return ''.join(capsys.readouterr())
    words[0] = sys.executable if words[0] == 'python3' else shutil.which(words[0])
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    done = words[0] and subprocess.run(words, cwd=folder, timeout=3 * TIMEOUT, **pipes)
    return done and done.stdout.decode()


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
    def test_commands(self, tmp_path, capsys, live):
        """Each command of the README prints what stands below it, the service's warning too."""
        port = dead_address().rpartition(':')[2]
        shutil.copy(microconnect.__file__, str(tmp_path / 'microconnect.py'))
        for number, name in enumerate(('app1.py', 'app2.py')):
            code = blocks()[number][0].replace('5000', port).replace('run()', f'run({port})')
            (tmp_path / name).write_text(code)
        (_, service_prints), *others = commands()
        service = live(running('app1.py', folder=tmp_path))
        Friend('app1', f'127.0.0.1:{port}').wait(TIMEOUT)
        for command, printed in others:
            told = printed_by(shlex.split(command.replace('5000', port)), tmp_path, capsys)
            assert told is None or told.rstrip('\n') == printed.replace('5000', port).rstrip('\n')
        service.terminate()
        out, err = service.communicate(timeout=TIMEOUT)
        # The service may not have noted yet that its last reply is sent, and then tells of it.
        assert (err + out).decode().startswith(service_prints.replace('5000', port))

    def test_order(self):
        """The README shows code within ten lines, its output within forty, then the limits."""
        lines = README.splitlines()
        assert '```python' in lines[:10] and 'Welcome Mr. Developer' in lines[:40]
        assert re.search('^## (.*)', README, re.M).group(1) == 'What it does not do'

    def test_tutorial(self, both_ways):
        """The tutorial's calls give the values of the original's document."""
        check_tutorial(both_ways(tutorial('service.py')['Micro']))

    def test_names(self):
        """The README and the docstring name every error there is, and the README the version."""
        for name in microconnect.__all__:
            assert name in microconnect.__doc__ or name == 'MicroconnectError'
            assert f'`{name}`' in README or name in ('Friend', 'Microservice')
        assert f'- {microconnect.__version__}:' in README

    def test_errors(self, live):
        """The table of errors tells of each class its base, its statuses, and whether it ran."""
        rows = table('## Errors', 'what happened | status | raised | also is a | did it run?')
        seen, outages, never = {}, {}, {}
        for happened, statuses, name, base, ran in rows:
            kind, codes = getattr(microconnect, name.strip('`')), re.findall('[0-9]+', statuses)
            base = getattr(builtins, base.strip('`'), None)  # a RemoteError's varies
            assert kind.__bases__ == (MicroconnectError, base)[: 1 + bool(base)], happened
            codes, sent = [int(code) for code in codes], {'no': False, 'perhaps': True, 'yes': True}
            if not codes or ('proxy' not in happened and sent[ran] == kind.sent):
                assert (kind.status, kind.sent) == ((codes or [None])[0], sent[ran]), happened
                seen.update(dict.fromkeys(codes, kind))
            elif 'proxy' in happened:
                for code in codes:
                    error = error_of(code, b'')
                    assert (type(error), error.sent) == (kind, sent[ran]), (happened, code)
                (outages if sent[ran] else never).update(dict.fromkeys(codes, kind))
            else:  # the friend itself says so
                friend = live(Friend('app1', live(peer(answers(response(LONG)))), max_body=99))
                raised(kind, friend.send, '/f', status=codes[0], sent=sent[ran])
        assert (seen, outages) == ({**STATUSES, 500: RemoteError}, OUTAGES)
        assert set(never) == {301, 307, 308, 407, 429}
        told = {row[2].strip('`') for row in rows}
        assert told == {kind.__name__ for kind, *_ in ERRORS} - {'MicroconnectError'}

    def test_errors_of_the_docstring(self):
        """The table in the module's docstring says nothing else, and leaves out proxies' words."""
        lines = microconnect.__doc__.partition('what happened')[2].partition('\n\n')[0]
        row = r'(?m)^    .{46}(.{15})(\S.*?) +(no / yes|no|yes|perhaps)$'
        docstring = set(told_errors(re.findall(row, lines)))
        rows = table('## Errors', 'what happened | status | raised | also is a | did it run?')
        readme = set(told_errors((row[1], row[2], row[4]) for row in rows))
        assert len(docstring) > 20 and docstring <= readme
        missing = {one[1:] for one in readme} - {one[1:] for one in docstring}
        assert missing == {('BadReply', 'no')}

    @pytest.mark.parametrize('kind', [Microservice, Friend])
    def test_settings(self, kind):
        """The tables of settings list what the classes take, in their order, with the defaults."""
        call = re.search(rf'`{kind.__name__}\((.*), \*, \.\.\.\)` takes', README)
        rows = table(call.group(), 'name | default | meaning')
        told = [(name.strip('`'), default.strip('`')) for name, default, _ in rows]
        told = [
            (name, eval(default) if default else inspect.Parameter.empty) for name, default in told
        ]
        parameters = inspect.signature(kind).parameters.values()
        assert [(one.name, one.default) for one in parameters] == told
        in_order = [one.name for one in parameters if one.kind is not one.KEYWORD_ONLY]
        assert in_order == call.group(1).split(', ')

    def test_values(self):
        """The table of values tells what a service sends."""
        seen, kinds = [], {'string': str, 'array': list, 'object': dict, 'number': (int, float)}
        details = {
            'ISO 8601': lambda value: value.isoformat(),
            'its value': operator.attrgetter('value'),
        }
        details['seconds'] = lambda value: value.total_seconds()
        details['base64'] = lambda value: base64.b64encode(value).decode()
        for names, told in table('## Values', 'Python | JSON'):
            for name in names.split(', '):
                value, expected = SAMPLES[name]
                seen.append(name)
                friend = friend_of(lambda value=value: [value])
                if told == 'refused':
                    raised(TypeError, friend.send, '/f')
                    continue
                assert friend.send('/f') == [expected], name
                kind = kinds.get(re.match(r'[\w`]+', told).group())
                assert isinstance(expected, kind) if kind else told[:5] in ('its v', '`true'), name
                for detail, form in details.items():
                    assert detail not in told or form(value) == expected, name
        assert seen == list(SAMPLES)
        assert friend_of(lambda: (1,)).send('/f') == 1  # as the README says beside the table

    def test_names_for_movers(self):
        """Each name that the README gives to users of the original exists, with those arguments."""
        service = make()
        things = dict(vars(microconnect), Micro=service, aFriend=Friend('moving', service))
        for code in moving(1):
            check_name(code, things)


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

    def test_we_call_its_service(self, original, live):
        """Our Friend gets from its service what it would get from ours."""
        process = live(running('-W', 'ignore', '-c', ORIGINAL))
        address = f'127.0.0.1:{int(process.stdout.readline())}'
        friend = live(Friend('original', address, timeout=TIMEOUT))
        friend.wait(TIMEOUT)
        assert friend.send('/several', 'é', key={'k': [1]}) == ('é', {'k': [1]}, None)
        assert friend.send('/list', [1], key=[2.5]) == [1, 2.5]
        assert friend.send('/none') is None
        raised(UnknownRule, friend.send, '/nothing')
        raised(RemoteError, friend.send, '/list')
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
