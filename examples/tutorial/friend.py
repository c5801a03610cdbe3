"""Call every rule of the tutorial and print what it gives: python3 friend.py [ADDRESS].

The default address is that of run.py, which has to run meanwhile.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # finds microconnect.py
from microconnect import Friend

ADDRESS = 'http://127.0.0.1:5000'
TOKEN = '123456'


class Sample:
    """Is sent as a dict; the two sides share no code, so each has a class of its own."""

    name = 'test'
    Purpose = 'For test only'
    empty = None

    def __init__(self, value):
        self.value = value

    def describe(self):
        return f'{self.name}: {self.value}'


def calls(friend):
    """Call every rule of service.py by *friend*; yield (rule, what it gave)."""
    text = ('A variable value', 'A keyword variable value')
    mixed = {'int': 20, 'str': 'adfafsa', 'float': 0.2323}
    one, two = Sample('value1'), Sample('value2')
    for rule in ('/class', '/class2', '/class3'):
        friend.setRule(rule, token=TOKEN)
    for rule, a, key in [
        ('/str', *text),
        ('/str2', *text),
        ('/int', 2018, 312),
        ('/float', 2.018, 3.12),
        ('/int3', 3.1427, 1000000000),
        ('/list', [12, 34, 45], ['abc', 'zyz']),
        ('/dict', {'keyword': ['anything']}, mixed),
        ('/list3', {'keyword': ['anything']}, ['abc', 'zyz']),
        ('/None', [12, 34, 45], ['abc', 'zyz']),
        ('/class', {'keyword': ['anything']}, mixed),
        ('/class2', {'keyword': ['anything']}, mixed),
        ('/class3', [one, two], {'t1': one, 't2': two, 'list': [one, two]}),
    ]:
        yield rule, friend.send(rule, a, key=key)


def main():
    with Friend('tutorial', sys.argv[1] if sys.argv[1:] else ADDRESS) as friend:
        for rule, given in calls(friend):
            print(rule)
            for value in given if isinstance(given, tuple) else (given,):
                print(f'    {type(value).__name__:8} {value!r}')


if __name__ == '__main__':
    main()
