"""How many calls a second 1, 2 and 4 processes answer that share one port.

    python3 examples/scale/workers.py [SECONDS]    # for each row, default 2

Each process is a service started by run(reuse_port=True); the system spreads the connections.
More processes than cores gain nothing, and the callers need cores too.
"""

import multiprocessing
import os
import selectors
import socket
import sys
import time

from service import serve

from microconnect import Friend

CALL = (
    b'POST /helloworld HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
    b'Content-Length: 16\r\n\r\n{"args":["you"]}'
)
CALLERS = 2  # processes
CONNECTIONS = 16  # of each
SPAWN = multiprocessing.get_context('spawn')  # the same everywhere


def free_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def load(port, seconds, results):
    """Call without a pause on every connection; bare sockets, which cost less than a Friend."""
    selector = selectors.DefaultSelector()
    for _ in range(CONNECTIONS):
        sock = socket.create_connection(('127.0.0.1', port), 10)
        selector.register(sock, selectors.EVENT_READ)
        sock.sendall(CALL)
    answered, begun = 0, time.monotonic()
    while time.monotonic() < begun + seconds:
        for key, _ in selector.select(1):
            if not key.fileobj.recv(4096).startswith(b'HTTP/1.1 200 '):
                raise SystemExit('a call failed')
            answered += 1
            key.fileobj.sendall(CALL)
    results.put(answered / (time.monotonic() - begun))


def await_all(port, count):
    """Wait until *count* processes answer: each new connection may meet another one."""
    seen, deadline = set(), time.monotonic() + 20
    with Friend('workers', f'http://127.0.0.1:{port}') as friend:
        friend.wait(20)
        while len(seen) < count and time.monotonic() < deadline:
            seen.add(friend.send('/who'))
            friend.close()
    if len(seen) < count:
        raise SystemExit(f'only {len(seen)} of {count} processes answer')


def measure(count, seconds):
    """Give the calls per second that *count* processes answer."""
    port, results = free_port(), SPAWN.Queue()
    workers = [SPAWN.Process(target=serve, args=(port, True)) for _ in range(count)]
    callers = [SPAWN.Process(target=load, args=(port, seconds, results)) for _ in range(CALLERS)]
    try:
        for worker in workers:
            worker.start()
        await_all(port, count)
        for caller in callers:
            caller.start()
        return sum(results.get(timeout=seconds + 30) for _ in callers)
    finally:
        for process in callers + workers:
            if process.pid is not None:
                process.terminate()
                process.join(20)


def main():
    if not hasattr(socket, 'SO_REUSEPORT'):
        print('this system cannot share a port: run the services on ports of their own (run.py)')
        return
    seconds = float(sys.argv[1]) if sys.argv[1:] else 2
    rates = {count: measure(count, seconds) for count in (1, 2, 4)}
    print(f'\n{os.cpu_count()} cores, {CALLERS * CONNECTIONS} connections\n')
    print('processes   calls/s')
    for count, rate in rates.items():
        print(f'{count:9}   {rate:7,.0f}   {rate / rates[1]:.2f} x')


if __name__ == '__main__':
    main()
