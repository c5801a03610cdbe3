"""The service of the two-terminal example: run this one first, then app2.py in the other."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # finds microconnect.py
from microconnect import Microservice

Micro = Microservice(__name__, host='127.0.0.1')


@Micro.typing('/helloworld')
@Micro.reply
def helloworld(name):
    return f'Welcome {name}'


if __name__ == '__main__':
    Micro.run()
