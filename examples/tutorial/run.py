"""Serve the tutorial until Ctrl-C: python3 run.py [PORT], default 5000.

A file apart from the service, so that importing the service never starts it.
"""

import sys

from service import Micro

if __name__ == '__main__':
    Micro.run(port=int(sys.argv[1]) if sys.argv[1:] else 5000, host='127.0.0.1')
