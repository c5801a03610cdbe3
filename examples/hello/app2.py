"""The caller of the two-terminal example: prints "Welcome Mr. Developer" while app1.py runs."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # finds microconnect.py
from microconnect import Friend

aFriend = Friend('app1', 'http://127.0.0.1:5000')
print(aFriend.send('/helloworld', 'Mr. Developer'))
