"""Measure microconnect beside other ways to call a function in another process.

    python3 examples/benchmark.py               about two minutes
    python3 examples/benchmark.py --one-core    about four minutes
    python3 examples/benchmark.py --quick       a few seconds, for a first look
    python3 examples/benchmark.py --only microconnect xmlrpc

Every server runs in a process of its own on a free port of the loopback interface; this process
is the client.  The floor is what Python can do at best: JSON over a bare TCP connection, with no
HTTP.  Pyro5, RPyC, gRPC and Flask with requests take part where they are installed.

    one thread     calls of hello('Mr. Developer') one after the other, in calls/s
    16 threads     the same from 16 threads at once, in calls/s: microconnect shares one Friend;
                   the others have a connection for each thread, as they advise
    1 MB echo      a string of 1 MB there and back, one thread, in echoes/s
    first call     a new client, its connection and its first call, in ms

A second table has the calls/s of that many asyncio tasks at once on the service of microconnect: by
`asend`, by `send` in an executor, and by aiohttp and httpx where they are installed.

Contenders take turns within each round, so that what disturbs the machine disturbs them alike.
The figures are medians over the rounds; so are the ratios, each taken within one round.

Usually the system places the processes, as it would for any user.  A call from one thread then
mostly measures how fast a sleeping core wakes, which varies several times over from run to run.
With --one-core all processes share one core, so the figures measure the work of both sides added
together.  The rounds are shorter, and there are more of them.  Since other programs only ever slow
a round down, the figures are then quartiles: the upper one of the rates, the lower one of the
times.  The ratios are medians either way.
"""

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import http.server
import importlib.util
import json
import multiprocessing.managers
import os
import pathlib
import platform
import random
import socket
import socketserver
import statistics
import string
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import xmlrpc.client
import xmlrpc.server

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # finds microconnect.py
import microconnect

HOST = '127.0.0.1'
NAME = 'Mr. Developer'
# Letters at random, because a gzip or a cache that made it small would not be measured by a user.
TEXT = ''.join(random.Random(1).choices(string.ascii_letters + ' ', k=1000000))
THREADS = 16
BACKLOG = 128  # with the 5 of socketserver some of 16 simultaneous connections are reset
WARM_UP_CALLS = 20
FIRST_CALLS = 50  # in each round: enough for a median, few enough to leave ports for the rest
START_SECONDS = 30  # that a server may take to start


########################################################################
# What is called
########################################################################


def hello(name):
    return f'Welcome {name}'


def echo(text):
    return text


FUNCTIONS = {'hello': hello, 'echo': echo}


class Service:
    """The two functions as methods, for those that publish objects."""

    def hello(self, name):
        return hello(name)

    def echo(self, text):
        return echo(text)


########################################################################
# The contenders
########################################################################


class Contender:
    """One way to call.  The class is the server; an instance is one client.

    `serve` runs in the server's process and tells its port by *announce*.  An instance has
    `hello` and `echo` to call, and `close`.
    """

    title = ''
    needs = ()  # what has to be installed
    shared = False  # whether all threads use one client

    @staticmethod
    def serve(announce):
        raise NotImplementedError

    def close(self):
        pass


class Floor(Contender):
    """A length of 4 bytes, then JSON; a thread for each connection, no delay by Nagle."""

    title = 'raw TCP (floor)'

    @staticmethod
    def serve(announce):
        with FloorServer((HOST, 0), FloorHandler) as server:
            announce(server.server_address[1])
            server.serve_forever()

    def __init__(self, port):
        self.channel = Channel(socket.create_connection((HOST, port)))
        self.hello = functools.partial(self.call, 'hello')
        self.echo = functools.partial(self.call, 'echo')

    def call(self, name, *args):
        self.channel.send([name, args])
        return self.channel.receive()[0]

    def close(self):
        self.channel.close()


class Channel:
    """JSON values over a connection, each after its length."""

    encode = json.JSONEncoder(separators=(',', ':')).encode

    def __init__(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.reader = sock.makefile('rb')

    def send(self, value):
        body = self.encode(value).encode()
        self.sock.sendall(struct.pack('>I', len(body)) + body)

    def receive(self):
        """Give the next value; EOFError where there is none."""
        head = self.reader.read(4)
        if not head:
            raise EOFError
        return json.loads(self.reader.read(*struct.unpack('>I', head)).decode())

    def close(self):
        self.reader.close()
        self.sock.close()


class FloorServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = BACKLOG


class FloorHandler(socketserver.BaseRequestHandler):
    def handle(self):
        channel = Channel(self.request)
        with contextlib.suppress(EOFError):
            while True:
                name, args = channel.receive()
                channel.send([FUNCTIONS[name](*args)])


class Microconnect(Contender):
    title = 'microconnect'
    shared = True

    @staticmethod
    def serve(announce):
        micro = microconnect.Microservice('benchmark')
        for name, function in FUNCTIONS.items():
            micro.typing(f'/{name}')(function)
        with micro.start(port=0, host=HOST):
            announce(int(micro.address.rpartition(':')[2]))
            threading.Event().wait()

    def __init__(self, port):
        friend = microconnect.Friend('benchmark', f'http://{HOST}:{port}')
        self.hello = functools.partial(friend.send, '/hello')
        self.echo = functools.partial(friend.send, '/echo')
        self.close = friend.close


class Managers(Contender):
    """Proxies of multiprocessing: pickle instead of JSON, so for trusted peers alone."""

    title = 'multiprocessing.managers'

    class Manager(multiprocessing.managers.BaseManager):
        pass

    Manager.register('service', Service)

    @staticmethod
    def serve(announce):
        server = Managers.Manager((HOST, 0), b'benchmark').get_server()
        announce(server.address[1])
        server.serve_forever()

    def __init__(self, port):
        manager = self.Manager((HOST, port), b'benchmark')
        manager.connect()
        service = manager.service()
        self.hello, self.echo = service.hello, service.echo

    def close(self):
        del self.hello, self.echo  # a proxy has no close: it disconnects when nobody holds it


class XmlRpc(Contender):
    title = 'xmlrpc, HTTP/1.1'

    @staticmethod
    def serve(announce):
        with XmlRpcServer((HOST, 0), XmlRpcHandler, logRequests=False) as server:
            for name, function in FUNCTIONS.items():
                server.register_function(function, name)
            announce(server.server_address[1])
            server.serve_forever()

    def __init__(self, port):
        proxy = xmlrpc.client.ServerProxy(f'http://{HOST}:{port}')
        self.hello, self.echo = proxy.hello, proxy.echo
        self.close = proxy('close')


class XmlRpcServer(socketserver.ThreadingMixIn, xmlrpc.server.SimpleXMLRPCServer):
    daemon_threads = True
    request_queue_size = BACKLOG


class XmlRpcHandler(xmlrpc.server.SimpleXMLRPCRequestHandler):
    protocol_version = 'HTTP/1.1'  # keeps connections
    encode_threshold = None  # gzip would make the echo several times slower


class Obvious(Contender):
    """What one writes first: http.server as it comes, urlopen and json."""

    title = 'http.server and urlopen'

    @staticmethod
    def serve(announce):
        with ObviousServer((HOST, 0), ObviousHandler) as server:
            announce(server.server_address[1])
            server.serve_forever()

    def __init__(self, port):
        self.url = f'http://{HOST}:{port}/'
        self.hello = functools.partial(self.call, 'hello')
        self.echo = functools.partial(self.call, 'echo')

    def call(self, name, *args):
        with urllib.request.urlopen(self.url + name, json.dumps(args).encode(), 30) as reply:
            return json.load(reply)


class ObviousServer(http.server.ThreadingHTTPServer):
    request_queue_size = BACKLOG


class ObviousHandler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        args = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        body = json.dumps(FUNCTIONS[self.path[1:]](*args)).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Pyro(Contender):
    title = 'Pyro5, json'
    needs = ('Pyro5',)

    @staticmethod
    def serve(announce):
        from Pyro5.api import Daemon, expose

        with Daemon(host=HOST, port=0) as daemon:
            daemon.register(expose(Service)(), 'service')
            announce(daemon.sock.getsockname()[1])
            daemon.requestLoop()

    def __init__(self, port):
        from Pyro5.api import Proxy, config

        config.SERIALIZER = 'json'
        proxy = Proxy(f'PYRO:service@{HOST}:{port}')
        self.hello, self.echo, self.close = proxy.hello, proxy.echo, proxy._pyroRelease


class Rpyc(Contender):
    title = 'RPyC'
    needs = ('rpyc',)

    @staticmethod
    def serve(announce):
        import rpyc.utils.server

        class Exposed(rpyc.Service):
            exposed_hello = staticmethod(hello)
            exposed_echo = staticmethod(echo)

        server = rpyc.utils.server.ThreadedServer(Exposed, hostname=HOST, port=0)
        announce(server.port)
        server.start()

    def __init__(self, port):
        import rpyc

        self.connection = rpyc.connect(HOST, port)
        self.close = self.connection.close

    def hello(self, name):
        return self.connection.root.hello(name)

    def echo(self, text):
        return self.connection.root.echo(text)


class Grpc(Contender):
    """Generic handlers with JSON, which needs no code generated from a .proto file."""

    title = 'gRPC, json'
    needs = ('grpc',)

    @staticmethod
    def serve(announce):
        import grpc

        def handler(function):
            return grpc.unary_unary_rpc_method_handler(
                lambda args, _: function(*args), json.loads, Grpc.encode
            )

        handlers = {name: handler(function) for name, function in FUNCTIONS.items()}
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(THREADS))
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler('benchmark', handlers)]
        )
        announce(server.add_insecure_port(f'{HOST}:0'))
        server.start()
        server.wait_for_termination()

    @staticmethod
    def encode(value):
        return json.dumps(value).encode()

    def __init__(self, port):
        import grpc

        # Without this option all channels of a process share one connection.
        options = [('grpc.use_local_subchannel_pool', 1)]
        channel = grpc.insecure_channel(f'{HOST}:{port}', options)
        self.call_hello = channel.unary_unary('/benchmark/hello', self.encode, json.loads)
        self.call_echo = channel.unary_unary('/benchmark/echo', self.encode, json.loads)
        self.close = channel.close

    def hello(self, name):
        return self.call_hello([name])

    def echo(self, text):
        return self.call_echo([text])


class Flask(Contender):
    """Flask's own server, and a session of requests, which keeps its connection."""

    title = 'Flask and requests'
    needs = ('flask', 'requests')

    @staticmethod
    def serve(announce):
        import logging

        import flask
        import werkzeug.serving

        logging.getLogger('werkzeug').setLevel(logging.ERROR)  # no line for each request
        app = flask.Flask('benchmark')

        @app.route('/<name>', methods=['POST'])
        def call(name):
            return flask.jsonify(FUNCTIONS[name](*flask.request.get_json()))

        server = werkzeug.serving.make_server(HOST, 0, app, threaded=True)
        announce(server.server_port)
        server.serve_forever()

    def __init__(self, port):
        import requests

        self.url = f'http://{HOST}:{port}/'
        self.session = requests.Session()
        self.close = self.session.close

    def hello(self, name):
        return self.session.post(self.url + 'hello', json=[name], timeout=30).json()

    def echo(self, text):
        return self.session.post(self.url + 'echo', json=[text], timeout=30).json()


CONTENDERS = {
    'floor': Floor,
    'microconnect': Microconnect,
    'managers': Managers,
    'xmlrpc': XmlRpc,
    'obvious': Obvious,
    'pyro5': Pyro,
    'rpyc': Rpyc,
    'grpc': Grpc,
    'flask': Flask,
}


########################################################################
# The servers' processes
########################################################################


def serve(name):
    """Be the server of the contender *name* until the parent closes our input, or is gone."""

    def end_with_parent():
        os.read(0, 1)
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    CONTENDERS[name].serve(functools.partial(print, flush=True))


@contextlib.contextmanager
def servers(names, seconds):
    """Start the servers; give name -> port; end them, after *seconds* at the latest."""
    processes = {}
    # A server that is gone fails the call that waits for it: this bounds every call below.
    watchdog = threading.Timer(seconds, lambda: [p.kill() for p in processes.values()])
    watchdog.daemon = True
    watchdog.start()
    try:
        for name in names:
            command = [sys.executable, __file__, '--serve', name]
            pipe = subprocess.PIPE
            processes[name] = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        yield {name: port_of(name, process) for name, process in processes.items()}
    finally:
        watchdog.cancel()
        for process in processes.values():
            end(process)


def port_of(name, process):
    """Wait for the port that a server announces."""
    timer = threading.Timer(START_SECONDS, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line.strip():
        raise SystemExit(f'the server of {name} did not start')
    return int(line)


def end(process):
    process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


########################################################################
# Measuring
########################################################################


@contextlib.contextmanager
def warm_client(contender, port):
    """Give a client that has been shown to work and has done its first calls."""
    with contextlib.closing(contender(port)) as client:
        warm_up(client)
        yield client


def warm_up(client):
    for _ in range(WARM_UP_CALLS):
        if client.hello(NAME) != f'Welcome {NAME}':
            raise SystemExit(f'{type(client).__name__} gives a wrong answer')


def repeat(function, argument, seconds):
    """Call for some *seconds*; give how often, and when it began and ended."""
    clock = time.perf_counter
    count = 0
    start = now = clock()
    stop = start + seconds
    while now < stop:
        function(argument)
        count += 1
        now = clock()
    return count, start, now


def one_thread(contender, port, seconds):
    with warm_client(contender, port) as client:
        count, start, end = repeat(client.hello, NAME, seconds)
    return count / (end - start)


def many_threads(contender, port, seconds):
    barrier = threading.Barrier(THREADS)

    def work(client):
        barrier.wait(START_SECONDS)
        warm_up(client)  # all at once, so that a shared client has its connections too
        barrier.wait(START_SECONDS)
        return repeat(client.hello, NAME, seconds)

    def work_alone(_):
        with warm_client(contender, port) as client:  # some clients belong to their thread
            return work(client)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        if contender.shared:
            with warm_client(contender, port) as client:
                results = list(pool.map(work, [client] * THREADS))
        else:
            results = list(pool.map(work_alone, range(THREADS)))
    counts, starts, ends = zip(*results)
    return sum(counts) / (max(ends) - min(starts))


def large_echo(contender, port, seconds):
    with warm_client(contender, port) as client:
        if client.echo(TEXT) != TEXT:
            raise SystemExit(f'{contender.title} gives a wrong echo')
        count, start, end = repeat(client.echo, TEXT, seconds)
    return count / (end - start)


def first_call(contender, port, seconds):
    times = []
    stop = time.perf_counter() + seconds
    while len(times) < FIRST_CALLS and (not times or time.perf_counter() < stop):
        start = time.perf_counter()
        client = contender(port)
        client.hello(NAME)
        times.append(1000 * (time.perf_counter() - start))
        client.close()
    return statistics.median(times)


# heading -> how to measure it, decimals to show, the quantile to show with --one-core
MEASUREMENTS = {
    'one thread': (one_thread, 0, 0.75),
    f'{THREADS} threads': (many_threads, 0, 0.75),
    '1 MB echo': (large_echo, 0, 0.75),
    'first call': (first_call, 2, 0.25),
}


def measure(names, ports, rounds, seconds):
    """Give (heading, name) -> a figure for each round."""
    figures = collections.defaultdict(list)
    for _ in range(rounds):
        for heading, (measurement, *_) in MEASUREMENTS.items():
            # Shuffled: how the system placed the threads of one run tells in the next.
            for name in random.sample(names, len(names)):
                figure = measurement(CONTENDERS[name], ports[name], seconds)
                figures[heading, name].append(figure)
    return figures


########################################################################
# Calls from asyncio
########################################################################

WIDTHS = (1, 16, 100)  # tasks at once
BODY = json.dumps({'args': [NAME]}).encode()
HEADERS = {'Content-Type': 'application/json'}


@contextlib.asynccontextmanager
async def asend(url):
    with microconnect.Friend('benchmark', url) as friend:
        yield functools.partial(friend.asend, '/hello', NAME)


@contextlib.asynccontextmanager
async def executor(url):
    with microconnect.Friend('benchmark', url) as friend:
        with concurrent.futures.ThreadPoolExecutor(max(WIDTHS)) as pool:
            run = asyncio.get_running_loop().run_in_executor
            yield functools.partial(run, pool, friend.send, '/hello', NAME)


@contextlib.asynccontextmanager
async def aiohttp(url):
    import aiohttp

    async def call():
        async with session.post(f'{url}/hello', data=BODY, headers=HEADERS) as reply:
            return json.loads(await reply.read())[0]

    connector = aiohttp.TCPConnector(limit=max(WIDTHS))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield call


@contextlib.asynccontextmanager
async def httpx(url):
    import httpx

    async def call():
        reply = await client.post(f'{url}/hello', content=BODY, headers=HEADERS)
        return reply.json()[0]

    async with httpx.AsyncClient(timeout=30) as client:
        yield call


ASYNC_CLIENTS = {
    'asend': asend,
    'send in an executor': executor,
    'aiohttp': aiohttp,
    'httpx': httpx,
}


async def async_rate(client, url, width, seconds):
    """Give the calls/s of *width* tasks that share a client."""

    async def work(call):
        count = 0
        while time.perf_counter() < stop:
            if await call() != f'Welcome {NAME}':
                raise SystemExit(f'{client.__name__} gives a wrong answer')
            count += 1
        return count

    async with client(url) as call:
        await asyncio.gather(*(call() for _ in range(width)))  # the connections are made
        start = time.perf_counter()
        stop = start + seconds
        counts = await asyncio.gather(*(work(call) for _ in range(width)))
        return sum(counts) / (time.perf_counter() - start)


def measure_async(port, rounds, seconds):
    """Give (client, width) -> a figure for each round."""
    figures = collections.defaultdict(list)
    missing = [n for n in ('aiohttp', 'httpx') if importlib.util.find_spec(n) is None]
    clients = [name for name in ASYNC_CLIENTS if name not in missing]
    for _ in range(rounds):
        for width in WIDTHS:
            for name in random.sample(clients, len(clients)):
                rate = async_rate(ASYNC_CLIENTS[name], f'http://{HOST}:{port}', width, seconds)
                figures[name, width].append(asyncio.run(rate))
    return figures


def async_table(figures, one_core):
    width = max(map(len, ASYNC_CLIENTS))
    yield f'\n{"tasks":{width}}' + ''.join(f'{tasks:>12}' for tasks in WIDTHS)
    for name in ASYNC_CLIENTS:
        if (name, WIDTHS[0]) not in figures:
            continue
        rates = (typical(figures[name, tasks], 0.75, one_core) for tasks in WIDTHS)
        yield f'{name:{width}}' + ''.join(f'{rate:12,.0f}' for rate in rates)


########################################################################
# The table
########################################################################


def typical(figures, quantile, one_core):
    return sorted(figures)[int(quantile * len(figures))] if one_core else statistics.median(figures)


def table(names, figures, one_core):
    """Give the lines: for each contender its figures, and its ratios to the floor."""
    width = max(len(CONTENDERS[name].title) for name in names)
    yield ' ' * width + ''.join(f'{heading:>12}   ratio' for heading in MEASUREMENTS)
    for name in names:
        line = f'{CONTENDERS[name].title:{width}}'
        for heading, (_, decimals, quantile) in MEASUREMENTS.items():
            own, floor = figures[heading, name], figures[heading, 'floor']
            ratio = statistics.median(a / b for a, b in zip(own, floor))
            figure = typical(own, quantile, one_core)
            line += f'{figure:12,.{decimals}f}{ratio:8.2f}'
        yield line


def is_installed(name):
    return all(importlib.util.find_spec(package) for package in CONTENDERS[name].needs)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--one-core', action='store_true', help='run all processes on one core')
    parser.add_argument('--rounds', type=int, help='default 7, with --one-core 30')
    parser.add_argument(
        '--seconds', type=float, help='per measurement, default 0.6, with --one-core 0.1'
    )
    parser.add_argument('--quick', action='store_true', help='2 rounds of 0.1 s')
    parser.add_argument(
        '--only', nargs='+', choices=CONTENDERS, metavar='NAME', help=', '.join(CONTENDERS)
    )
    parser.add_argument('--serve', choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_core and not hasattr(os, 'sched_setaffinity'):
        parser.error('--one-core needs os.sched_setaffinity, which this system does not have')
    if options.quick:
        options.rounds, options.seconds = 2, 0.1
    rounds, seconds = (30, 0.1) if options.one_core else (7, 0.6)
    if options.rounds is None:
        options.rounds = rounds
    if options.seconds is None:
        options.seconds = seconds
    return options


def main():
    options = arguments()
    # urllib and requests would send even calls of this machine through a proxy.
    os.environ['no_proxy'] = os.environ['NO_PROXY'] = HOST
    if options.serve:
        serve(options.serve)
        return
    if options.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the servers inherit it
    chosen = ['floor', *(options.only or CONTENDERS)]  # there is no ratio without the floor
    chosen = [name for name in CONTENDERS if name in chosen]
    names = [name for name in chosen if is_installed(name)]
    columns = len(MEASUREMENTS) * len(names) + len(WIDTHS) * len(ASYNC_CLIENTS)
    with servers(names, 60 + 5 * options.rounds * options.seconds * columns) as ports:
        figures = measure(names, ports, options.rounds, options.seconds)
        print('\n'.join(table(names, figures, options.one_core)))
        if 'microconnect' in ports:
            figures = measure_async(ports['microconnect'], options.rounds, options.seconds)
            print('\n'.join(async_table(figures, options.one_core)))
    print(
        f'\n{platform.python_implementation()} {platform.python_version()}, '
        f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores; '
        f'{"all on one core, quartiles" if options.one_core else "medians"} '
        f'of {options.rounds} rounds of {options.seconds:g} s'
    )
    if names != chosen:
        print('not installed:', ', '.join(name for name in chosen if name not in names))


if __name__ == '__main__':
    main()
