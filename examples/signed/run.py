"""Signed calls: one that is answered, one that is not signed, and one that comes twice.

python3 examples/signed/run.py
"""

import pathlib
import secrets
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # finds microconnect.py
from signing import Keys

from microconnect import Forbidden, Friend, Microservice

KEY = secrets.token_urlsafe()  # a real one comes from where both sides, and nobody else, can read
Micro = Microservice('bank', secretKey=Keys(KEY))


@Micro.typing('/pay')
def pay(amount, to):
    return f'{amount} paid to {to}'


class Recorder(Keys):
    """Keeps what it signs, as somebody on the way could."""

    def sign_call(self, method, rule, body):
        fields = super().sign_call(method, rule, body)
        self.last = method, rule, dict([('Content-Type', 'application/json'), *fields]), body
        return fields


def main():
    recorder = Recorder(KEY)
    with Micro.start(port=0, host='127.0.0.1'):
        with Friend('owner', Micro.address, secretKey=recorder) as owner:
            print(owner.send('/pay', 100, 'Bob'))
        with Friend('stranger', Micro.address) as stranger:
            try:
                stranger.send('/pay', 100, 'Eve')
            except Forbidden as error:
                print(str(error).partition(': ')[2])
    status, _, body = Micro.answer(*recorder.last)
    print(status, body.decode())


if __name__ == '__main__':
    main()
