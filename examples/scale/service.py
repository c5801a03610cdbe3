"""A service of which several run at once: `/who` tells the process that answered.

    python3 examples/scale/service.py 5001            # alone on its port, behind a proxy
    python3 examples/scale/service.py 5000 --share    # several processes on one port (Linux)

The port is 5000 if none is given.  If the environment variable TOKEN_FILE names a file, the token
in it guards every rule: systemd, Docker and Kubernetes can all hand over a secret as a file.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # finds microconnect.py
from microconnect import Microservice

Micro = Microservice('service')


@Micro.typing('/who')
@Micro.reply
def who():
    return os.getpid()


@Micro.typing('/helloworld')
@Micro.reply
def helloworld(name):
    return f'Welcome {name}'


def serve(port, share=False, host='127.0.0.1'):
    Micro.run(port=port, host=host, reuse_port=share)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('port', type=int, nargs='?', default=5000)
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0 in a container')
    parser.add_argument('--share', action='store_true', help='let other processes share the port')
    chosen = parser.parse_args()
    if 'TOKEN_FILE' in os.environ:  # an empty or missing file ends the program
        Micro.token = pathlib.Path(os.environ['TOKEN_FILE']).read_text(encoding='utf-8').strip()
    serve(chosen.port, chosen.share, chosen.host)


if __name__ == '__main__':
    main()
