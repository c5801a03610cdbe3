"""The service of the tutorial: text, numbers, lists, dicts, nothing, and objects behind a token.

run.py serves it, friend.py calls it.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # finds microconnect.py
from microconnect import Microservice

Micro = Microservice(__name__)
TOKEN = '123456'  # a real one comes from the environment or a file, not from the source


# Text and numbers; a tuple arrives as several values.


@Micro.typing('/str')
@Micro.reply
def joined(a, key):
    return f'{a}-{key}'


@Micro.typing('/str2')
@Micro.reply
def both_and_joined(a, key):
    return a, key, f'{a}-{key}'


@Micro.typing('/int')
@Micro.reply
def sum_of_integers(a, key):
    return a + key


@Micro.typing('/float')
@Micro.reply
def sum_of_floats(a, key):
    return a + key


@Micro.typing('/int3')
@Micro.reply
def sum_and_squares(a, key):
    return a + key, key * key, a * a


# Lists and dicts. What arrived is a copy: changing it does not change the caller's.


@Micro.typing('/list')
@Micro.reply
def extended(a, key):
    a.extend(key)
    return a


@Micro.typing('/dict')
@Micro.reply
def with_one_more(a, key):
    key['dict'] = a
    return key


@Micro.typing('/list3')
@Micro.reply
def three_kinds(a, key):
    key.append('other value')
    return a, key, None


@Micro.typing('/None')
@Micro.reply
def without_return(a, key):
    key.append('changed here only')


# Objects arrive as a dict of their public attributes, those of the class included.


class Sample:
    name = 'test'
    Purpose = 'For test only'
    empty = None

    def __init__(self, value):
        self.value = value

    def describe(self):  # a method: it does not travel
        return f'{self.name}: {self.value}'


@Micro.typing('/class', token=TOKEN)
@Micro.reply
def one_object(a, key):
    return Sample(a)


@Micro.typing('/class2', token=TOKEN)
@Micro.reply
def object_and_more(a, key):
    return Sample(key), a, None


@Micro.typing('/class3', token=TOKEN)
@Micro.reply
def nested_objects(a, key):
    x, y = Sample(key), Sample(a)
    return x, y, [y, x]
