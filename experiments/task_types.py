"""Real text for the task types beside single labels, from data sets of other tasks; nothing of it is kept here.

    python experiments/task_types.py --data ../shared/data --out tasks

writes for each task `TASK-train.jsonl`, `TASK-calibrate.jsonl` and `TASK-test.jsonl`, no text in two of them:

- `similarity`: STS-B as it is, a pair's score from 0 to 5; its development set is cut in two.
- `intents`: one to three of CLINC150's texts in a row, whose labels are the intents of all of them; 60 intents of 150.
  Its validation and test texts together are cut in two, as those for validation alone are too few to certify 0.99.
- `truecasing`: sentences of QNLI and MRPC in lower case, and how each word was written: Capitalised, UPPER, or neither
  (O). It is a task with real labels for any amount of text, and no trivial one for an uncased model.

What came of it has not been measured yet.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tokenizers.pre_tokenizers import BertPreTokenizer

INTENTS = 60
ROUNDS = 2
"""How often training's texts are joined anew; the others are joined once, so that no two hold the same text."""

Rows = Iterable[dict[str, Any]]


def read_tsv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def similarity(data: Path) -> Iterator[tuple[str, Rows]]:
    def rows(part: Sequence[dict[str, str]]) -> Rows:
        return [{"text": row["sentence1"], "text_pair": row["sentence2"], "label": float(row["score"])} for row in part]

    held_out = read_tsv(data / "stsb" / "dev.tsv")
    yield "train", rows(read_tsv(data / "stsb" / "train.tsv"))
    yield "calibrate", rows(held_out[1::2])
    yield "test", rows(held_out[::2])


def intents(data: Path) -> Iterator[tuple[str, Rows]]:
    parts = json.loads((data / "clinc150" / "data_full.json").read_text())
    names = set(sorted({label for _, label in parts["train"]})[:INTENTS])

    def joined(texts: Sequence[tuple[str, str]], rounds: int) -> Iterator[dict[str, Any]]:
        own = [(text, label) for text, label in texts if label in names]
        for number in range(rounds):
            generator = np.random.default_rng(number)
            order = generator.permutation(len(own)).tolist()
            while order:
                taken = [own[order.pop()] for _ in range(min(len(order), int(generator.integers(1, 4))))]
                yield {"text": " ".join(text for text, _ in taken), "label": sorted({label for _, label in taken})}

    # Sorted by intent: every other text is half of each.
    held_out = sorted(parts["val"] + parts["test"], key=itemgetter(1))
    yield "train", joined(parts["train"], ROUNDS)
    yield "calibrate", joined(held_out[1::2], 1)
    yield "test", joined(held_out[::2], 1)


def truecasing(data: Path) -> Iterator[tuple[str, Rows]]:
    split = BertPreTokenizer().pre_tokenize_str

    def case(word: str) -> str:
        if len(word) > 1 and word.isupper():
            return "UPPER"
        return "Capitalised" if word[0].isupper() else "O"

    def rows(sentences: Iterable[str]) -> Iterator[dict[str, Any]]:
        for sentence in sentences:
            words = [word for word, _ in split(sentence)]
            yield {"tokens": [word.lower() for word in words], "label": [case(word) for word in words]}

    qnli = sorted({row["sentence"] for row in read_tsv(data / "qnli" / "dev.tsv")})
    order = np.random.default_rng(0).permutation(len(qnli)).tolist()
    fifth = len(qnli) // 5
    mrpc = [row["#1 String"] for row in read_tsv(data / "mrpc" / "train.tsv")]
    yield "train", rows([*(qnli[i] for i in order[2 * fifth :]), *mrpc])
    yield "calibrate", rows(qnli[i] for i in order[:fifth])
    yield "test", rows(qnli[i] for i in order[fifth : 2 * fifth])


def main(
    data: Annotated[Path, typer.Option(help="Folder with stsb, clinc150, qnli and mrpc.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Write training, calibration and test text of each task."""
    out.mkdir(parents=True, exist_ok=True)
    for task in (similarity, intents, truecasing):
        for part, rows in task(data):
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            (out / f"{task.__name__}-{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            typer.echo(f"{task.__name__}-{part}: {len(lines)} texts")


if __name__ == "__main__":
    typer.run(main)
