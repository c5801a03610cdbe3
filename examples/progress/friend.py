"""Start a long job in service.py, and show how far it is: python3 friend.py [ADDRESS [LIMIT]].

The default address is that of service.py, which has to run meanwhile.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # finds microconnect.py
from microconnect import Friend

ADDRESS, LIMIT = 'http://127.0.0.1:5000', 1_000_000


def main(address=ADDRESS, limit=LIMIT):
    with Friend('progress', address) as aFriend:
        job_id = aFriend.send('/start', int(limit))
        result = None
        while result is None:
            time.sleep(0.1)
            percent, result = aFriend.send('/progress', job_id)
            print(f'{percent} %', flush=True)
        print(f'{result} primes')


if __name__ == '__main__':
    main(*sys.argv[1:])
