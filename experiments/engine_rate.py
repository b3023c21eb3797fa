"""How many single-text requests a second the process that holds the model carries, were the model free and the front
ends many.

    python -m experiments.engine_rate --data sst2/dev.tsv --backend openvino

Serves a random BERT of one layer and d = 16, which costs next to nothing, behind a front end that nobody asks. The
requests come over the engine's own socket, in the messages that front ends send, of real sentences' tokens: the next
one of each of IN_FLIGHT as soon as its answer is there. Linux only. `docs/performance/serving.md` has what came of it
("20,000 requests a second").
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import msgspec
import torch
import typer
import uvloop
from transformers import BertConfig, BertForSequenceClassification

from loadtest.overhead.drive import engine_of
from loadtest.processes import command_of, thread_seconds
from loadtest.servers import raise_errors, running
from revmux_core.base_model import sha256
from revmux_core.bundle import load_bundle
from revmux_core.data import read_examples
from revmux_core.manifest import TOKENIZER_FILES, BaseEntry, resolve_bundle
from revmux_core.plan import Tokens
from revmux_core.problems import make_problem
from revmux_core.saving import save_bundle
from server.answers import Terms
from server.channel import Channel
from server.child import ENGINE
from server.messages import Answered, Hello, Refused, Sample, Submit, ToFrontEnd

SERVED = "sst2-minilm"
"""The bundle whose tokenizer and vocabulary are taken."""

TERMS = Terms(max_width=1, timeout=60.0)


class FrontEnd(Channel[ToFrontEnd]):
    """Stands in for a front end that always has `in_flight` requests of `samples` with the engine."""

    def __init__(self, samples: list[Tokens], in_flight: int) -> None:
        super().__init__(msgspec.msgpack.Decoder(ToFrontEnd))
        self._samples = [Sample.of(tokens) for tokens in samples]
        self._in_flight = in_flight
        self._sent: dict[int, float] = {}
        self._number = 0
        self.latencies: list[float] = []
        self.refused = 0

    def heard(self, message: ToFrontEnd) -> None:
        if isinstance(message, Hello):
            for _ in range(self._in_flight):
                self._ask()
        elif isinstance(message, Answered):
            self.latencies.append(time.perf_counter() - self._sent.pop(message.number))
            self._ask()
        elif isinstance(message, Refused):
            self.refused += 1
        else:
            raise RuntimeError(f"the engine says {message}")

    def lost(self) -> None:
        """Nothing is asked any more."""

    def _ask(self) -> None:
        self._number += 1
        self._sent[self._number] = time.perf_counter()
        self.send(Submit(self._number, [self._samples[self._number % len(self._samples)]], TERMS))


async def drive(path: str, samples: list[Tokens], front_ends: int, in_flight: int, seconds: float) -> tuple[float, ...]:
    """Requests a second, and the median and 99th percentile of their latencies in seconds."""
    loop = asyncio.get_running_loop()
    connected = [
        (await loop.create_unix_connection(lambda: FrontEnd(samples, in_flight // front_ends), path))[1]
        for _ in range(front_ends)
    ]
    # Its first batches pay for kernels and memory.
    await asyncio.sleep(1)
    for one in connected:
        one.latencies.clear()
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    latencies = [latency for one in connected for latency in one.latencies]
    if any(one.refused for one in connected):
        raise RuntimeError("requests were refused: take fewer in flight")
    for one in connected:
        assert one.transport is not None
        one.transport.abort()
    cuts = statistics.quantiles(latencies, n=100)
    return len(latencies) / took, cuts[49], cuts[98]


def save_free_model(folder: Path) -> Path:
    """A bundle of a model that costs next to nothing, with a real tokenizer."""
    source, base = resolve_bundle(SERVED) / "backbone", folder / "base"
    base.mkdir()
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32)
    BertForSequenceClassification(config).save_pretrained(base)
    for file in TOKENIZER_FILES:
        (base / file).write_bytes((source / file).read_bytes())
    save_bundle(
        folder / "bundle",
        name="free",
        base=BaseEntry(model_id=str(base), sha256=sha256(base / "model.safetensors")),
        problem=make_problem("single_label_classification", ["negative", "positive"]),
        max_tokens=512,
        source=base,
        task=None,
        adapters={},
        num_layers=1,
        training={},
    )
    return folder / "bundle"


def main(
    data: Annotated[Path, typer.Option(help="Sentences: .tsv, .csv or .txt.")],
    backend: Annotated[str, typer.Option(help="As of `revmux serve`.")] = "openvino",
    front_ends: Annotated[int, typer.Option(help="Connections to the engine.")] = 4,
    in_flight: Annotated[int, typer.Option(help="Requests that wait for their answers, over all of them.")] = 2048,
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens a batch.")] = 16384,
    seconds: Annotated[float, typer.Option(help="Length of a round.")] = 5,
    rounds: Annotated[int, typer.Option(help="Rounds of the same server.")] = 5,
) -> None:
    """Prints requests a second, latencies, and what a request takes of the engine's threads."""
    samples = load_bundle(SERVED).tokenizer([(example.text, None) for example in read_examples(data)])
    options = ["--width", "1", "--http-workers", "1", "--threads", "1", "--max-batch-tokens", str(batch_tokens)]
    with tempfile.TemporaryDirectory() as scratch, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        folder = Path(scratch)
        served = ["serve", "--bundle", str(save_free_model(folder)), "--backend", backend, *options]
        with running([sys.executable, "-m", "server.cli", *served], folder / "server.log") as server:
            engine = engine_of(server)
            # Where it listens is among its arguments.
            listens = f"{command_of(engine)[-3]}/{ENGINE}"
            for _ in range(rounds):
                before, began = thread_seconds(engine), time.perf_counter()
                rate, median, worst = runner.run(drive(listens, samples, front_ends, in_flight, seconds))
                took = time.perf_counter() - began
                spent = {thread: now - before.get(thread, 0.0) for thread, now in thread_seconds(engine).items()}
                loop = spent.pop((engine, engine)) / took
                print(
                    f"{rate:,.0f} requests/s, p50 {1e3 * median:.0f} ms, p99 {1e3 * worst:.0f} ms; of a core the event "
                    f"loop took {loop:.2f}, other threads {sum(spent.values()) / took:.2f}",
                    flush=True,
                )
        raise_errors(folder / "server.log")


if __name__ == "__main__":
    typer.run(main)
