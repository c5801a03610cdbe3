"""A service of which several run at once: `/who` tells the process that answered.

    python3 examples/scale/service.py 5001            # alone on its port, behind a proxy
    python3 examples/scale/service.py 5000 --share    # several processes on one port (Linux)

The port is 5000 if none is given.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # finds microconnect.py
from microconnect import Microservice

Micro = Microservice(__name__)


@Micro.typing('/who')
@Micro.reply
def who():
    return os.getpid()


@Micro.typing('/helloworld')
@Micro.reply
def helloworld(name):
    return f'Welcome {name}'


def serve(port, share=False):
    Micro.run(port=port, host='127.0.0.1', reuse_port=share)


if __name__ == '__main__':
    serve(int(sys.argv[1]) if sys.argv[1:] else 5000, '--share' in sys.argv)
