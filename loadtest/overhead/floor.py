"""The least that a server of this stack does: uvicorn, JSON, tokens, and an answer that is always the same.

No routes, validation, queue, metrics or model: what is left cannot be avoided without another HTTP server, tokenizer or
language. Started as `python -m loadtest.overhead.floor`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from tokenizers import Tokenizer

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def main(
    tokenizer: Annotated[Path, typer.Option(help="The model's tokenizer.json.")],
    answer: Annotated[Path, typer.Option(help="The body of every answer.")],
    host: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
) -> None:
    encoder, body = Tokenizer.from_file(str(tokenizer)), answer.read_bytes()
    # What the exported tokenizer is set to do with long texts and batches: the server does without both.
    encoder.no_truncation()
    encoder.no_padding()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        request, more = b"", True
        while more:
            message = await receive()
            request += message.get("body", b"")
            more = message.get("more_body", False)
        asked = json.loads(request)["input"]
        for encoding in encoder.encode_batch_fast([asked] if isinstance(asked, str) else asked):
            # Python's own list, which a model would be given.
            _ = encoding.ids
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, lifespan="off", ws="none")


if __name__ == "__main__":
    typer.run(main)
