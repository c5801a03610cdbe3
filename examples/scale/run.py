"""Two services behind nginx: calls reach both, and go on when one is lost.

    python3 examples/scale/run.py

Everything runs on free ports of loopback and is stopped at the end.  Where nginx is not installed
the friend gets both addresses, and spreads the calls itself.
"""

import collections
import contextlib
import multiprocessing
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

from service import serve

from microconnect import Friend, MicroconnectError

CALLS = 200
CONFIG = pathlib.Path(__file__).with_name('nginx.conf')


def free_ports(count):
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(('127.0.0.1', 0))
        return [sock.getsockname()[1] for sock in socks]


@contextlib.contextmanager
def nginx(command, port, services):
    """Run nginx by nginx.conf with these ports in place of those it names."""
    text = CONFIG.read_text(encoding='utf-8')
    for old, new in zip((8000, 5001, 5002), [port] + services):
        text = text.replace(f'127.0.0.1:{old}', f'127.0.0.1:{new}')
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, 'nginx.conf').write_text(text, encoding='utf-8')
        options = ['-p', folder + os.sep, '-c', 'nginx.conf', '-e', 'stderr', '-g', 'daemon off;']
        process = subprocess.Popen([command, *options])
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)


def call(friend, names):
    """Call, and count who answered; give how many calls failed."""
    counts = collections.Counter()
    for _ in range(CALLS):
        try:
            counts[names[friend.send('/who')]] += 1
        except MicroconnectError as error:
            counts['nobody'] += 1
            print(f'  {error}')
    told = ', '.join(f'{counts[name]} by {name}' for name in sorted(counts))
    print(f'{CALLS} calls: {told}', flush=True)
    return counts['nobody']


def try_it(address, processes):
    names = {process.pid: f'service {i + 1}' for i, process in enumerate(processes)}
    with Friend('services', address, timeout=10) as friend:
        friend.wait(10)
        failed = call(friend, names)
        processes[0].kill()
        processes[0].join()
        print('service 1 is killed')
        return failed + call(friend, names)


def main():
    port, *ports = free_ports(3)
    processes = [multiprocessing.Process(target=serve, args=(each,)) for each in ports]
    addresses = [f'http://127.0.0.1:{each}' for each in ports]
    # Daemons such as nginx are often outside the PATH of a user.
    command = shutil.which('nginx', path=os.environ.get('PATH', '') + os.pathsep + '/usr/sbin')
    try:
        for process, address in zip(processes, addresses):
            process.start()
            Friend('service', address).wait(20)
        if command:
            print(f'nginx at http://127.0.0.1:{port} spreads the calls', flush=True)
            with nginx(command, port, ports):
                return try_it(f'http://127.0.0.1:{port}', processes)
        print('nginx is not installed: the friend spreads the calls', flush=True)
        return try_it(addresses, processes)
    finally:
        for process in processes:
            process.terminate()
            process.join(20)


if __name__ == '__main__':
    sys.exit(1 if main() else 0)
