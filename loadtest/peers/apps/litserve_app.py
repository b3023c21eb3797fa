"""LitServe with a Transformers pipeline; `--max-batch` turns its dynamic batching on."""

import argparse

import litserve as ls
from transformers import pipeline

BATCH_TIMEOUT_SECONDS = 0.005


class Classifier(ls.LitAPI):
    def __init__(self, model, **settings):
        super().__init__(**settings)
        self.model = model

    def setup(self, device):
        self.pipe = pipeline("text-classification", model=self.model, device=device)

    def decode_request(self, request):
        return request["text"]

    def predict(self, texts):
        """One text, or with batching a list of them."""
        return self.pipe(texts, batch_size=len(texts)) if isinstance(texts, list) else self.pipe(texts)[0]

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-batch", type=int)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    batching = {"max_batch_size": options.max_batch, "batch_timeout": BATCH_TIMEOUT_SECONDS}
    api = Classifier(options.model, **(batching if options.max_batch else {}))
    server = ls.LitServer(api, accelerator="cpu")
    server.run(host=options.host, port=options.port, generate_client_file=False)
