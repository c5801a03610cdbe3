"""Throw what a network throws at a service and a friend, and print what held.

    python3 examples/stress.py            # about two minutes
    python3 examples/stress.py --quick    # about fifteen seconds

Each row counts what was tried and what was lost; anything lost makes the exit status 1.  The
service runs in a process of its own; everything stays on loopback.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

# Found beside this folder in a clone; not needed where microconnect is installed or copied.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from microconnect import Friend, MicroconnectError, Microservice

HEAD = b'POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'
CALL = HEAD + b'Content-Length: 14\r\n\r\n{"args":["x"]}'


# ------------------------------------------------------------------------------------ the service


def serve():
    """The service process: counts its calls, and tells what it holds."""
    micro = Microservice('stressed', read_timeout=3, idle_timeout=30, max_connections=1500)
    counts = {'echo': 0}
    lock = threading.Lock()

    @micro.typing('/echo')
    def echo(value):
        with lock:
            counts['echo'] += 1
        return value

    @micro.typing('/big')
    def big():
        return 'x' * 5_000_000

    @micro.typing('/nap')
    async def nap(seconds):
        await asyncio.sleep(seconds)
        return seconds

    @micro.typing('/stats')
    def stats():
        return {
            'calls': counts['echo'],
            'threads': threading.active_count(),
            'descriptors': len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc') else 0,
            'kilobytes': resident(),
        }

    with micro.start(port=0, host='127.0.0.1'):
        print(micro.address, flush=True)
        sys.stdin.read()  # until the parent closes it


def resident():
    """How much memory this process holds (KiB); 0 where /proc does not tell."""
    with contextlib.suppress(OSError), open('/proc/self/status') as status:
        for line in status:
            if line.startswith('VmRSS'):
                return int(line.split()[1])
    return 0


@contextlib.contextmanager
def service():
    """A service process; gives its address."""
    command = [sys.executable, os.path.abspath(__file__), '--serve']
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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


def in_threads(count, work):
    """Run work(number) in *count* threads released at once; give the errors."""
    errors, barrier = [], threading.Barrier(count)

    def run(number):
        barrier.wait(30)
        try:
            work(number)
        except Exception as error:
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


ROWS = (
    bursts,
    many_connections,
    rude_clients,
    hostile_requests,
    rolling_restart,
    async_rule,
    async_friend,
    soak,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
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
