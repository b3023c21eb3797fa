"""Ray Serve with a Transformers pipeline; `--max-batch` uses `@serve.batch` and gives the replica all cores."""

import argparse
import os
import signal
import sys

import ray
from ray import serve
from starlette.requests import Request
from transformers import pipeline

BATCH_WAIT_SECONDS = 0.005

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--max-batch", type=int, default=0)
parser.add_argument("--host")
parser.add_argument("--port", type=int)
options = parser.parse_args()
cores = len(os.sched_getaffinity(0))


@serve.deployment
class Classifier:
    def __init__(self, model):
        self.pipe = pipeline("text-classification", model=model)

    async def __call__(self, request: Request):
        return self.pipe((await request.json())["text"])[0]


# Ray gives a replica as many OpenMP threads as `num_cpus`, 1 by itself. It holds back requests beyond
# `max_ongoing_requests`, and a batch cannot be larger than what it lets in.
@serve.deployment(max_ongoing_requests=2 * max(options.max_batch, 1), ray_actor_options={"num_cpus": cores})
class BatchedClassifier:
    def __init__(self, model):
        self.pipe = pipeline("text-classification", model=model)

    @serve.batch(max_batch_size=max(options.max_batch, 1), batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def classify(self, texts: list[str]):
        return self.pipe(texts, batch_size=len(texts))

    async def __call__(self, request: Request):
        return await self.classify((await request.json())["text"])


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
# Whatever the machine has: fewer processors than Ray's own parts ask for would leave the replica waiting for ever.
ray.init(include_dashboard=False, num_cpus=max(2, cores))
serve.start(http_options={"host": options.host, "port": options.port})
deployment = BatchedClassifier if options.max_batch else Classifier
serve.run(deployment.bind(options.model), route_prefix="/classify", blocking=True)
