"""A service beside the routes of a Flask application: the rules answer under /rpc.

    python3 examples/frameworks/flask_app.py 5000
    curl http://127.0.0.1:5000/

and, in another process, with Friend from microconnect:

    Friend('app1', 'http://127.0.0.1:5000/rpc').send('/helloworld', 'Mr. Developer')
"""

import asyncio
import pathlib
import sys

from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'tutorial'))
from service import Micro  # the rules of the tutorial; two more follow

app = Flask(__name__)
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {'/rpc': Micro.wsgi})


@app.get('/')
def index():
    return 'Flask answers here'


@Micro.typing('/helloworld')
@Micro.reply
def helloworld(name):
    return f'Welcome {name}'


@Micro.typing('/later')
@Micro.reply
async def later(value, delay):  # on the service's own event loop, which all calls share
    await asyncio.sleep(delay)
    return value


if __name__ == '__main__':
    app.run(port=int(sys.argv[1]) if sys.argv[1:] else 5000)
