"""A service beside the routes of a FastAPI application: the rules answer under /rpc.

    python3 examples/frameworks/fastapi_app.py 5000
    curl http://127.0.0.1:5000/

and, in another process, with Friend from microconnect:

    Friend('app1', 'http://127.0.0.1:5000/rpc').send('/helloworld', 'Mr. Developer')
"""

import asyncio
import pathlib
import sys

import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'tutorial'))
from service import Micro  # the rules of the tutorial; two more follow

app = FastAPI()
app.mount('/rpc', Micro.asgi)


@app.get('/', response_class=PlainTextResponse)
async def index():
    return 'FastAPI answers here'


@Micro.typing('/helloworld')
@Micro.reply
def helloworld(name):
    return f'Welcome {name}'


@Micro.typing('/later')
@Micro.reply
async def later(value, delay):  # on the server's event loop; plain rules run in threads
    await asyncio.sleep(delay)
    return value


if __name__ == '__main__':
    uvicorn.run(app, port=int(sys.argv[1]) if sys.argv[1:] else 5000)
