"""The whole idea in one file: call a function that runs in another process.

    python3 examples/quickstart.py

prints "Welcome Mr. Developer".  The service is this script too, started a second time.
"""

import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # finds microconnect.py
from microconnect import Friend, Microservice

Micro = Microservice(__name__)


@Micro.typing('/helloworld')
@Micro.reply
def helloworld(name):
    return f'Welcome {name}'


def serve():
    """Serve on a free port, and tell it, until the caller ends our input."""
    with Micro.start(port=0, host='127.0.0.1'):
        print(Micro.address, flush=True)
        sys.stdin.read()


def call():
    """Start the service as a process of its own, call it, and stop it."""
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'universal_newlines': True}
    service = subprocess.Popen([sys.executable, __file__, 'serve'], **pipes)
    try:
        with Friend('quickstart', service.stdout.readline().strip()) as aFriend:
            print(aFriend.send('/helloworld', 'Mr. Developer'))
        service.communicate(timeout=10)  # ends its input, and waits
    finally:
        service.kill()  # does nothing to one that has ended


if __name__ == '__main__':
    serve() if sys.argv[1:] == ['serve'] else call()
