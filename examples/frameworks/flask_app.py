"""A service beside the routes of a Flask application: Flask at /, the rules under /rpc.

    python examples/frameworks/flask_app.py 5000

    from microconnect import Friend
    print(Friend('app1', 'http://127.0.0.1:5000/rpc').send('/helloworld', 'Mr. Developer'))
"""

import sys
from pathlib import Path

from flask import Flask
from service import Micro
from werkzeug.middleware.dispatcher import DispatcherMiddleware

app = Flask(__name__)
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {'/rpc': Micro.wsgi})


@app.get('/')
def index():
    return 'Flask answers here'


if __name__ == '__main__':
    app.run(port=int(sys.argv[1]))
