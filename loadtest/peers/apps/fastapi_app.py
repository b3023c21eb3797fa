"""FastAPI and a Transformers pipeline.

Without `--batched` as FastAPI's documentation writes a blocking endpoint; with it as Transformers' page on web servers
does it: one loop reads a queue and batches what arrives within a millisecond.
"""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

MAX_BATCH = 64
WAIT_SECONDS = 0.001

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--batched", action="store_true")
parser.add_argument("--host")
parser.add_argument("--port", type=int)
options = parser.parse_args()


class Query(BaseModel):
    text: str


async def server_loop(queue):
    pipe = pipeline("text-classification", model=options.model)
    # One thread for the model: every thread that calls it would get OpenMP workers of its own.
    model_thread = ThreadPoolExecutor(max_workers=1)
    loop = asyncio.get_running_loop()
    while True:
        waiting = [await queue.get()]
        while len(waiting) < MAX_BATCH:
            try:
                waiting.append(await asyncio.wait_for(queue.get(), WAIT_SECONDS))
            except TimeoutError:
                break
        texts = [text for text, _ in waiting]
        outputs = await loop.run_in_executor(model_thread, partial(pipe, texts, batch_size=len(texts)))
        for (_, response), output in zip(waiting, outputs, strict=True):
            if not response.cancelled():
                response.set_result(output)


@asynccontextmanager
async def lifespan(app):
    if options.batched:
        app.state.queue = asyncio.Queue()
        loop = asyncio.create_task(server_loop(app.state.queue))
        yield
        loop.cancel()
    else:
        app.state.pipe = pipeline("text-classification", model=options.model)
        yield


app = FastAPI(lifespan=lifespan)

if options.batched:

    @app.post("/classify")
    async def classify(query: Query):
        response = asyncio.get_running_loop().create_future()
        await app.state.queue.put((query.text, response))
        return await response

else:

    @app.post("/classify")
    def classify(query: Query):
        return app.state.pipe(query.text)[0]


uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
