"""Throw what a network throws at a service and a friend, and print what held.

    python3 examples/stress.py            # about a minute and a half
    python3 examples/stress.py --quick    # about half a minute

Each row counts what was tried and what was lost; anything lost makes the exit status 1.  The
service runs in a process of its own; everything stays on loopback.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

# Found beside this folder in a clone; not needed where microconnect is installed or copied.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from microconnect import Busy, ConnectionLost, Friend, MicroconnectError, Microservice, Unreachable

HEAD = b'POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'
CALL = HEAD + b'Content-Length: 14\r\n\r\n{"args":["x"]}'
LIMITS = {'port': 0, 'read_timeout': 3, 'idle_timeout': 30, 'max_connections': 1500}
BIG = 5_000_000  # bytes of the reply of /big


# ------------------------------------------------------------------------------------ the service


def serve(limits):
    """The service process: counts its calls, and tells what it holds."""
    micro = Microservice('stressed', **limits)
    counts = {'echo': 0, 'big': 0, 'forked': 0}
    lock, start = threading.Lock(), threading.Thread.start

    @micro.typing('/echo')
    def echo(value):
        with lock:
            counts['echo'] += 1
        return value

    @micro.typing('/big')
    def big():
        with lock:
            counts['big'] += 1
        return 'x' * BIG

    @micro.typing('/guarded', token='known to friends')
    def guarded(*_):
        raise AssertionError('a stranger was let in')

    @micro.typing('/nap')
    async def nap(seconds):
        await asyncio.sleep(seconds)
        return seconds

    @micro.typing('/block')
    def block(seconds):
        time.sleep(seconds)

    @micro.typing('/fork')
    def fork():
        warnings.simplefilter('ignore')  # Python 3.12 warns of a fork beside threads
        ready, tell = os.pipe()
        if not os.fork():
            os.write(tell, b'.')
            os.read(0, 1)  # until the parent of the service closes it
            os._exit(0)
        os.read(ready, 1)
        counts['forked'] += 1
        time.sleep(60)

    @micro.typing('/starve')
    def starve(seconds):
        """Let no thread start beyond those there are, as a system does that has no more."""
        most, end = threading.active_count(), time.monotonic() + seconds

        def start_if_there_is_room(thread):
            if threading.active_count() >= most and time.monotonic() < end:
                raise RuntimeError("can't start new thread")
            start(thread)

        threading.Thread.start = start_if_there_is_room

    @micro.typing('/stats')
    def stats():
        return {
            'calls': counts['echo'],
            'big': counts['big'],
            'forked': counts['forked'],
            'process': os.getpid(),
            'threads': threading.active_count(),
            'descriptors': len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc') else 0,
            'kilobytes': resident(),
            'peak': resident('VmHWM'),
        }

    with micro.start(host='127.0.0.1'):
        print(micro.address, flush=True)
        sys.stdin.read()  # until the parent closes it


def resident(what='VmRSS'):
    """How much memory this process holds (KiB), or held at most; 0 where /proc does not tell."""
    with contextlib.suppress(OSError), open('/proc/self/status') as status:
        for line in status:
            if line.startswith(what):
                return int(line.split()[1])
    return 0


@contextlib.contextmanager
def service(environ=(), **limits):
    """A service process; gives its address."""
    command = [sys.executable, os.path.abspath(__file__), '--serve']
    command.append(json.dumps({**LIMITS, **limits}))
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    child = subprocess.Popen(command, env={**os.environ, **dict(environ)}, text=True, **pipes)
    try:
        yield child.stdout.readline().strip()
    finally:
        child.stdin.close()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


# ----------------------------------------------------------------------------------------- helpers


def connect(address):
    host, _, port = address.rpartition('//')[2].rpartition(':')
    return socket.create_connection((host, int(port)), 10)


def request(rule, body=b'{}'):
    head = HEAD.replace(b'/echo', rule.encode())
    return head + b'Content-Length: %d\r\n\r\n%b' % (len(body), body)


def read_to_end(sock):
    """Give all that comes until the peer closes; a reset is an OSError."""
    return b''.join(iter(lambda: sock.recv(1 << 16), b''))


def timed(call, *args):
    """Give what the call returns or raises, and how many seconds that took."""
    began = time.monotonic()
    try:
        value = call(*args)
    except MicroconnectError as error:
        value = error
    return value, time.monotonic() - began


def in_threads(count, work):
    """Run work(number) in *count* threads released at once; give the errors."""
    errors, barrier = [], threading.Barrier(count)

    def run(number):
        barrier.wait(30)
        try:
            work(number)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return errors


def too_long(seconds, limit, quick):
    """Whether *seconds* are over the limit; a quick run may share its machine, and gets more."""
    return seconds > limit * (5 if quick else 1)


def settled(friend, baseline, seconds=15):
    """Whether the service's threads and descriptors come back to *baseline* within *seconds*."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = friend.send('/stats')
        if all(now[key] <= baseline[key] + 1 for key in ('threads', 'descriptors')):
            return True
        time.sleep(0.1)
    return False


# -------------------------------------------------------------------------------------------- rows


def bursts(quick):
    """Clients released by a barrier, each on a new connection."""
    clients, times = (100, 2) if quick else (200, 10)
    lost = 0
    with service() as address:

        def one(number):
            with Friend('burst', address, timeout=30) as friend:
                assert friend.send('/echo', number) == number

        for _ in range(times):
            lost += len(in_threads(clients, one))
    return clients * times, lost, f'{times} bursts of {clients} clients'


def many_connections(quick):
    """Connections kept open, and used in turn."""
    count = 300 if quick else 1000
    lost = 0
    with service() as address, Friend('control', address) as friend:
        before = friend.send('/stats')['kilobytes']
        open_ones = [connect(address) for _ in range(count)]
        for _ in range(2):
            for sock in open_ones:
                sock.sendall(CALL)
                lost += not sock.recv(4096).endswith(b'["x"]')
        each = (friend.send('/stats')['kilobytes'] - before) / count
        for sock in open_ones:
            sock.close()
    return 2 * count, lost, f'{count} connections kept open: {each:.0f} KiB each'


def rude_clients(quick):
    """Silent, dripping, resetting and never reading clients, and normal calls meanwhile."""
    silent, dripping, resetting, deaf = (50, 20, 20, 5) if quick else (500, 200, 200, 50)
    with service() as address, Friend('normal', address, timeout=10) as friend:
        friend.send('/echo', 1)
        baseline = friend.send('/stats')
        rude = [connect(address) for _ in range(silent)]
        drips = [connect(address) for _ in range(dripping)]
        for _ in range(resetting):
            sock = connect(address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
            sock.sendall(CALL[:40])
            sock.close()
        for _ in range(deaf):
            sock = connect(address)
            sock.sendall(CALL.replace(b'/echo', b'/big').replace(b'["x"]', b'[]   '))
            rude.append(sock)
        slowest, calls, lost = 0.0, 0, 0
        for position in range(6):
            for sock in drips:
                with contextlib.suppress(OSError):
                    sock.sendall(CALL[position : position + 1])
            pause = time.monotonic() + 1
            while time.monotonic() < pause:
                began = time.monotonic()
                lost += friend.send('/echo', calls) != calls
                calls += 1
                slowest = max(slowest, time.monotonic() - began)
                time.sleep(0.01)
        back = settled(friend, baseline)
        for sock in rude + drips:
            sock.close()
    told = f'{silent} silent, {dripping} dripping, {resetting} resetting, {deaf} never reading: '
    told += f'slowest call {slowest * 1000:.0f} ms'
    return calls + 1, lost + too_long(slowest, 1, quick) + (not back), told


HOSTILE = (
    b'GET / HTTP/1.1\r\n\r\n',
    b'GET /\r\n',
    b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',
    HEAD + b'Content-Length: -1\r\n\r\n',
    HEAD + b'Content-Length: +14\r\n\r\n{"args":["x"]}',
    HEAD + b'Content-Length: 1_4\r\n\r\n{"args":["x"]}',
    HEAD + b'Content-Length: 14, 14\r\n\r\n{"args":["x"]}',
    HEAD + b'Content-Length: 14\r\nContent-Length: 15\r\n\r\n{"args":["x"]}',
    HEAD + b'Content-Length: 1000000000000\r\n\r\n',
    HEAD + b'Content-Length: 14\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    HEAD + b'Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n',
    HEAD + b'Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n',
    HEAD + b'Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n',
    HEAD + b'Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n',
    HEAD + b'Transfer-Encoding: chunked\r\n\r\n0x5\r\n{"a":\r\n',
    HEAD + b'Transfer-Encoding: chunked\r\n\r\n1;' + b'x' * 70000,
    HEAD + b'X: y\r\n folded\r\nContent-Length: 14\r\n\r\n{"args":["x"]}',
    HEAD + b'X: \0\r\n\r\n',
    HEAD + b'X: a\rb\r\n\r\n',
    HEAD.replace(b'\r\n', b'\n') + b'\n',
    HEAD + b'X: ' + b'y' * 70000 + b'\r\n\r\n',
    HEAD + b'X: y\r\n' * 200 + b'\r\n',
    HEAD.replace(b'Host: x\r\n', b'Host: x\r\nHost: y\r\n') + b'\r\n',
    HEAD + b'Content-Length: 100000\r\n\r\n' + b'[' * 100000,
    HEAD + b'Content-Length: 20010\r\n\r\n{"args":[' + b'1' * 19999 + b']}',
    HEAD + b'Content-Length: 4\r\n\r\n\xff\xfe\0\0',
    HEAD + b'Content-Length: 2\r\n\r\n[]',
    HEAD + b'Content-Length: 11\r\n\r\n{"args":{}}',
)


def hostile_requests(quick):
    """Bytes that are no call: each is refused, and what follows is never run."""
    times = 2 if quick else 20
    lost = 0
    with service() as address, Friend('control', address) as friend:
        before = friend.send('/stats')['calls']
        for data in HOSTILE * times:
            with connect(address) as sock, contextlib.suppress(OSError):
                sock.sendall(data + CALL)
                sock.shutdown(socket.SHUT_WR)
                reply = sock.recv(65536)
                lost += not reply.startswith(b'HTTP/1.1 4') and not reply.startswith(b'HTTP/1.1 5')
        ran = friend.send('/stats')['calls'] - before
    # Where the framing is sound and only the JSON is bad, the connection goes on: CALL is run.
    return len(HOSTILE) * times, lost, f'{len(HOSTILE)} kinds; {ran} calls ran, after sound framing'


def rolling_restart(quick):
    """Two services, restarted in turn under calling threads: no call fails, none runs twice."""
    restarts, wanted, callers = (4, 2000, 8) if quick else (10, 20000, 16)
    kept, lock = [], threading.Lock()

    def build():
        micro = Microservice('restarted')

        @micro.typing('/count')
        def count(number):
            with lock:
                kept.append(number)
            return number

        return micro

    pair = [build(), build()]
    for micro in pair:
        micro.start(port=0, host='127.0.0.1')
    ports = [int(micro.address.rpartition(':')[2]) for micro in pair]
    friend = Friend('pair', [micro.address for micro in pair], timeout=30)
    done, made = threading.Event(), [0] * callers

    def call(number):
        while not done.is_set() or sum(made) < wanted:
            made[number] += friend.send('/count', number) == number

    errors = []
    runner = threading.Thread(target=lambda: errors.extend(in_threads(callers, call)))
    runner.start()
    for number in range(restarts):
        time.sleep(0.2)
        pair[number % 2].stop()
        time.sleep(0.1)
        pair[number % 2].start(port=ports[number % 2], host='127.0.0.1')
    done.set()
    runner.join(120)
    friend.close()
    for micro in pair:
        micro.stop()
    for error in errors[:3]:
        print('   ', type(error).__name__, error)
    lost = len(errors) + abs(len(kept) - sum(made))
    return sum(made), lost, f'{restarts} restarts; the services counted {len(kept)}'


def async_rule(quick):
    """Callers of a rule that awaits a second: all are answered within three."""
    count = 200 if quick else 1000
    body = b'{"args":[1]}  '
    with service() as address:
        callers = [connect(address) for _ in range(count)]
        began = time.monotonic()
        for sock in callers:
            sock.sendall(CALL.replace(b'/echo', b'/nap').replace(b'{"args":["x"]}', body))
        lost = sum(not sock.recv(4096).endswith(b'[1]') for sock in callers)
        took = time.monotonic() - began
        for sock in callers:
            sock.close()
    return count, lost + too_long(took, 3, quick), f'{count} callers of a rule of 1 s: {took:.1f} s'


def async_friend(quick):
    """Calls of one second, awaited together: all end within two."""
    count = 50 if quick else 200

    async def together(friend):
        calls = (friend.asend('/nap', 1) for _ in range(count))
        return await asyncio.gather(*calls, return_exceptions=True)

    with service() as address, Friend('awaited', address) as friend:
        began = time.monotonic()
        lost = sum(value != 1 for value in asyncio.run(together(friend)))
        took = time.monotonic() - began
    return count, lost + too_long(took, 2, quick), f'{count} awaited calls of 1 s: {took:.1f} s'


def soak(quick):
    """Calls from eight threads: nothing grows."""
    calls = 5_000 if quick else 100_000
    with service() as address, Friend('soak', address) as friend:

        def work(count):
            for number in range(count):
                assert friend.send('/echo', number) == number

        in_threads(8, lambda _: work(calls // 80))
        before, own = friend.send('/stats'), resident()
        errors = in_threads(8, lambda _: work(calls // 8))
        after = friend.send('/stats')
        own = resident() - own
        friend.close()
        back = settled(friend, {'threads': 3, 'descriptors': before['descriptors']})
    grown = after['kilobytes'] - before['kilobytes']
    lost = len(errors) + (max(grown, own) > 5 * 1024) + (not back)
    return calls, lost, f'the service grew by {grown} KiB, the friend by {own} KiB'


def forked_and_killed(quick):
    """A service with a forked child is killed: its calls end at once, and its port is free."""
    if not hasattr(os, 'fork'):
        return 0, 0, 'this system has no fork'
    kills, refusals = (2, 5) if quick else (10, 20)
    right, slowest = 0, 0.0

    def kill(address):
        """Kill the service while a call is in flight; give what it and further calls end by."""
        ended = []
        with Friend('in flight', address, timeout=10) as one, Friend('kept', address) as friend:
            process = friend.send('/stats')['process']
            one.send('/echo', 1)
            caller = threading.Thread(target=lambda: ended.append(timed(one.send, '/fork')[0]))
            caller.start()
            while caller.is_alive() and not friend.send('/stats')['forked']:
                time.sleep(0.01)
            os.kill(process, signal.SIGKILL)
            _, took = timed(caller.join)
            os.waitpid(process, 0)  # its connections end a moment before its port is closed
            return [(ended[0], took)] + [timed(friend.send, '/echo', 1) for _ in range(refusals)]

    with contextlib.ExitStack() as stack:  # the children live until its end
        first = stack.enter_context(service())
        for _ in range(kills):
            (error, took), *others = kill(first)
            right += isinstance(error, ConnectionLost)
            right += sum(isinstance(error, Unreachable) for error, _ in others)
            slowest = max(slowest, took, *(took for _, took in others))
            again = stack.enter_context(service(port=int(first.rpartition(':')[2])))
            if again != first:
                break  # the port was not free
    tried = kills * (refusals + 1)
    lost = tried - right + (again != first) + too_long(slowest, 1, quick)
    return tried, lost, f'{kills} kills and restarts: slowest failure {slowest * 1000:.0f} ms'


def large_json(quick):
    """JSON that is all brackets, from strangers: how long another call waits, and what it takes."""
    limit = Microservice('defaults').max_body
    data = request('/guarded', b'{"args":[' + b'[[]],' * ((limit - 12) // 5) + b'0]}')

    def besiege(strangers):
        """Give the errors, the seconds that other calls took, and by how many MiB it grew."""
        errors, waits = [], []

        def stranger(_):
            with connect(address) as sock:
                sock.settimeout(60)
                sock.sendall(data)
                assert sock.recv(4096).startswith(b'HTTP/1.1 401')

        with service() as address, Friend('normal', address) as friend:
            before = friend.send('/stats')['kilobytes']
            crowd = threading.Thread(target=lambda: errors.extend(in_threads(strangers, stranger)))
            crowd.start()
            while crowd.is_alive():
                value, took = timed(friend.send, '/echo', 1)
                errors += [value] if value != 1 else []
                waits.append(took)
                time.sleep(0.001)
            return errors, waits, (friend.send('/stats')['peak'] - before) / 1024

    tried, lost, told = 0, 0, f'{limit >> 20} MiB of brackets'
    for strangers in (1, 4):
        errors, waits, grown = besiege(strangers)
        tried += strangers + len(waits)
        lost += len(errors) + too_long(max(waits), 1, quick) + (grown > 400)
        told += f'; from {strangers}: another call waits {max(waits):.2f} s, {grown:.0f} MiB more'
    return tried, lost, told


MUCH = (
    HEAD + b'X: ' + b'y' * 20_000,
    HEAD + b'Content-Length: 8000000\r\n\r\n' + b'x' * 4_000_000,
    HEAD + b'Transfer-Encoding: chunked\r\n\r\n' + b'7a1200\r\n' + b'x' * 4_000_000,
    HEAD + b'Transfer-Encoding: chunked\r\n\r\n' + b'1000\r\n%b\r\n' % (b'x' * 4096) * 1000,
    CALL * 1000 + CALL[:40],
)


def sudden_silence(quick):
    """Peers that send much at once and then nothing more are ended after one read_timeout."""
    times = 2 if quick else 4
    ended = []

    def peer(number):
        with connect(address) as sock:
            sock.sendall(MUCH[number % len(MUCH)])
            reply, took = timed(read_to_end, sock)
            ended.append(took)
            assert b'HTTP/1.1 408 ' in reply

    with service(read_timeout=1) as address, Friend('control', address) as friend:
        friend.send('/echo', 1)
        baseline = friend.send('/stats')
        errors = in_threads(len(MUCH) * times, peer)
        back = settled(friend, baseline)
    slowest = max(ended, default=0)
    told = f'{len(MUCH)} kinds, read_timeout 1 s: the last is ended after {slowest:.2f} s'
    return len(MUCH) * times, len(errors) + too_long(slowest, 2, quick) + (not back), told


def no_thread_left(quick):
    """Newcomers while no thread can start: served if an idle one makes room, else Busy."""
    count = 20 if quick else 100
    outcomes, slowest = collections.Counter(), []

    def newcomer(number):
        with Friend('newcomer', address, timeout=10) as friend:
            value, took = timed(friend.send, '/echo', number)
        is_busy = isinstance(value, Busy) and not value.sent
        outcomes['served' if value == number else 'Busy' if is_busy else type(value).__name__] += 1
        slowest.append(took)

    with service() as address, Friend('control', address) as friend:
        for data in (CALL, request('/block', b'{"args":[2]}')):  # all others are idle, or busy
            others = [connect(address) for _ in range(count // 2)]
            for sock in others:
                sock.sendall(data)
            friend.send('/nap', 0.5)  # by then their calls have begun
            friend.send('/starve', 1.5)
            in_threads(count, newcomer)
            time.sleep(1.5)
            for sock in others:
                sock.close()
        told = ', '.join(f'{number} {outcome}' for outcome, number in outcomes.most_common())
        lost = 2 * count - outcomes['served'] - outcomes['Busy']
        outcomes.clear()
        in_threads(count, newcomer)  # there are threads again
        lost += count - outcomes['served']
    return 3 * count, lost, f'{told}; the slowest is told after {max(slowest):.2f} s'


# The C library of Linux keeps much of what Python frees for later, unless it is told not to.
RETURN_WHAT_IS_FREED = {'MALLOC_MMAP_THRESHOLD_': '1000000'}


def deaf_readers(quick):
    """Clients that do not read a large reply: the service holds little more than one copy each."""
    count = 10 if quick else 50
    copies, lost = [], 0
    for environ in (RETURN_WHAT_IS_FREED, {}):
        with service(environ, read_timeout=30) as address, Friend('control', address) as friend:
            before = friend.send('/stats')
            deaf = [connect(address) for _ in range(count)]
            for sock in deaf:
                sock.sendall(request('/big'))
            end, seen, held = time.monotonic() + 20, None, before
            while (held['big'] < count or held != seen) and time.monotonic() < end:
                time.sleep(0.5)
                held, seen = friend.send('/stats'), held
            for sock in deaf:
                sock.close()
            lost += count - held['big'] + (not settled(friend, before))
        copies.append((held['kilobytes'] - before['kilobytes']) * 1024 / (BIG * count))
    told = f'{count} replies of {BIG // 10**6} MB not read: {copies[0]:.2f} copies of each held'
    told += f'; the C library keeps {copies[1] - copies[0]:.2f} for later'
    return 2 * count, lost + (copies[0] > 1.3), told


ROWS = (
    bursts,
    many_connections,
    rude_clients,
    hostile_requests,
    rolling_restart,
    async_rule,
    async_friend,
    soak,
    forked_and_killed,
    large_json,
    sudden_silence,
    no_thread_left,
    deaf_readers,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--serve', type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)
    failed = False
    print(f'{"what":18} {"tried":>8} {"lost":>5}')
    for row in ROWS:
        try:
            tried, lost, told = row(options.quick)
        except (MicroconnectError, OSError, AssertionError) as error:
            tried, lost, told = 1, 1, f'{type(error).__name__}: {error}'
        failed = failed or bool(lost)
        print(f'{row.__name__:18} {tried:8,} {lost:5} {told}', flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
