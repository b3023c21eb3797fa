"""FastAPI around a function of encoded texts, with the dynamic batching that one would write by hand.

For runtimes that are no servers (ONNX Runtime, OpenVINO): `POST /classify` with `{"text": ...}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from tokenizers import Tokenizer

# (ids, mask, types), each batch x longest, int64, to logits, batch x labels.
Run = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def arguments() -> argparse.ArgumentParser:
    """The options that every such application takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True, help="Folder with the tokenizer and the configuration.")
    parser.add_argument("--max-batch", type=int, default=1, help="1: every request on its own.")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    return parser


class Batcher:
    """Takes all that waits, sorts it by length, and runs it in batches padded to their longest."""

    def __init__(self, run: Run, max_batch: int) -> None:
        self._run = run
        self._max_batch = max_batch
        self._waiting: asyncio.Queue[tuple[list[int], asyncio.Future[np.ndarray]]] = asyncio.Queue()

    async def submit(self, ids: list[int]) -> np.ndarray:
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        await self._waiting.put((ids, future))
        return await future

    async def work(self) -> None:
        # One thread for the model: some runtimes keep workers for every thread that calls them.
        thread, loop = ThreadPoolExecutor(max_workers=1), asyncio.get_running_loop()
        while True:
            taken = [await self._waiting.get()]
            while not self._waiting.empty():
                taken.append(self._waiting.get_nowait())
            taken.sort(key=lambda item: len(item[0]))
            for start in range(0, len(taken), self._max_batch):
                batch = taken[start : start + self._max_batch]
                try:
                    logits = await loop.run_in_executor(thread, self._run, *padded([ids for ids, _ in batch]))
                except Exception as error:
                    for _, future in batch:
                        future.set_exception(error)
                else:
                    for (_, future), row in zip(batch, logits, strict=True):
                        if not future.cancelled():
                            future.set_result(row)


def padded(samples: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.zeros((len(samples), max(map(len, samples))), np.int64)
    mask = np.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)] = sample
        mask[row, : len(sample)] = 1
    return ids, mask, np.zeros_like(ids)


def serve(run: Run, options: argparse.Namespace) -> None:
    """Serves until SIGTERM."""
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    tokenizer.enable_truncation(json.loads((options.model / "tokenizer_config.json").read_text())["model_max_length"])
    config = json.loads((options.model / "config.json").read_text())
    labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    batcher = Batcher(run, options.max_batch)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.work())
        yield
        worker.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        logits = await batcher.submit(tokenizer.encode((await request.json())["text"]).ids)
        probs = np.exp(logits - logits.max())
        best = int(logits.argmax())
        return {"label": labels[best], "score": float(probs[best] / probs.sum())}

    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
