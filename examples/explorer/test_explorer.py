"""The tests of the page, in a browser if there is one: ``python -m pytest examples/explorer``.

They share the helpers of test_microconnect.py.
"""

import base64
import contextlib
import datetime
import enum
import hashlib
import http.server
import inspect
import json
import os
import queue
import re
import shutil
import subprocess
import threading
import typing
from pathlib import Path

import pytest

from microconnect import Microservice
from test_microconnect import SECRET, TIMEOUT, make, serving, watch, watchdog

__all__ = ['watch', 'watchdog']  # fixtures: a test that hangs ends the run

EXPLORER = Path(__file__).resolve().parent / 'index.html'
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


class Colour(enum.Enum):
    RED = 'red'


def signature_of(text):
    """The signature of a function that is defined with it, as inspect gives it."""
    space = dict(globals(), datetime=datetime, typing=typing)
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
        '(a=inspect.signature(make), b=type, c=threading.main_thread(), d=object)',
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
        folders = [tmp_path_factory.mktemp('browser') for _ in range(2)]
        on_disk = stack.enter_context(browser(folders[0], '--dump-dom', EXPLORER.as_uri()))
        seen = driven(folders[1], events, origin)
        page = on_disk.stdout.read().decode()
    assert 'error' not in seen, seen['error']
    return dict(seen, origin=origin, address=addresses[0], on_disk=page)


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

    def test_from_disk(self, seen):
        """A page that was opened from disk, and only such a page, says that this cannot work."""
        assert seen['notice'] == 'none'
        assert '<div id="from-disk" class="notice">' in seen['on_disk']

    def test_policy(self):
        """The page lets the browser run its own script and nothing else."""
        page = EXPLORER.read_text(encoding='utf-8')
        (script,) = re.findall(r'<script>(.*?)</script>', page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}';" in page
        assert not re.search(r'innerHTML|outerHTML|insertAdjacent|document\.write|eval\(', script)
