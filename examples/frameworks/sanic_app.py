"""A service beside the routes of a Sanic application: the rules answer under /rpc.

    python3 examples/frameworks/sanic_app.py 5000
    curl http://127.0.0.1:5000/

and, in another process, with Friend from microconnect:

    Friend('app1', 'http://127.0.0.1:5000/rpc').send('/helloworld', 'Mr. Developer')
"""

import asyncio
import pathlib
import sys

from sanic import HTTPResponse, Sanic, text

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'tutorial'))
from service import Micro  # the rules of the tutorial; two more follow

app = Sanic('app1')


@app.get('/')
async def index(request):
    return text('Sanic answers here')


@app.route('/rpc/<rule:path>', methods=['GET', 'POST'], unquote=True)
async def rpc(request, rule):
    asked = request.method, f'/{rule}', request.headers, request.body
    status, headers, body = await Micro.aanswer(*asked)
    return HTTPResponse(body, status, dict(headers))


@Micro.typing('/helloworld')
@Micro.reply
def helloworld(name):
    return f'Welcome {name}'


@Micro.typing('/later')
@Micro.reply
async def later(value, delay):  # on Sanic's event loop; plain rules run in threads
    await asyncio.sleep(delay)
    return value


if __name__ == '__main__':
    app.run(port=int(sys.argv[1]) if sys.argv[1:] else 5000, single_process=True)
