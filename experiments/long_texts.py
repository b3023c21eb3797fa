"""Long texts out of real sentences, partners of quite another length, and texts in other scripts.

    python experiments/long_texts.py write --bundle sst2-minilm --data sst2/dev.tsv --length 32 --length 512 --out long
    python experiments/long_texts.py mix --bundle sst2-minilm --short long/8.tsv --long long/512.tsv
    python experiments/long_texts.py scripts --bundle sst2-minilm --data ru.txt --data th.txt

`write` makes OUT/LENGTH.tsv for every length: sentences of one label, drawn at random and joined, so that the label of
the whole is known; `revmux eval` then says how right and how like the plain model's answers are. It groups texts of
like length, as serving does where it can. `mix` does not: half of every composite is short, the other half long.
`scripts` needs no labels: it says how much of every file the vocabulary lacks and how like the plain model's answers
are.
`docs/performance/models.md` has what came of it ("Long texts and other scripts").
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from revmux_core.bundle import load_bundle
from revmux_core.data import read_examples
from revmux_core.evaluation import evaluate, evaluate_cascade, plain_answers
from revmux_core.offline import answer_plan
from revmux_core.plan import Group, MuxPlan, Tokens

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def write(
    bundle: Annotated[str, typer.Option(help="Whose tokens are counted.")],
    data: Annotated[Path, typer.Option(help="Labelled sentences.")],
    out: Annotated[Path, typer.Option(help="Folder for one file a length.")],
    length: Annotated[list[int], typer.Option(help="Tokens of every text; repeatable.")],
    count: Annotated[int, typer.Option(help="Texts a length.")] = 400,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Joins sentences of one label until a text has at least so many tokens, and cuts it to whole words."""
    tokenizer = load_bundle(bundle).tokenizer
    examples = [example for example in read_examples(data) if example.label is not None]
    labels = sorted({example.label for example in examples if example.label is not None})
    sentences = {label: [example.text.split() for example in examples if example.label == label] for label in labels}
    out.mkdir(parents=True, exist_ok=True)
    for tokens in length:
        draw = np.random.default_rng((seed, tokens))
        rows = ["sentence\tlabel"]
        for number in range(count):
            label = labels[number % len(labels)]
            words: list[str] = []
            while not words or len(tokenizer.encode([(" ".join(words), None)])[0].ids) < tokens:
                words += sentences[label][draw.integers(len(sentences[label]))]
            while len(tokenizer.encode([(" ".join(words), None)])[0].ids) > tokens:
                words.pop()
            rows.append(f"{' '.join(words)}\t{label}")
        (out / f"{tokens}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


@app.command()
def mix(
    bundle: Annotated[str, typer.Option()],
    short: Annotated[Path, typer.Option()],
    long: Annotated[Path, typer.Option()],
    width: Annotated[list[int] | None, typer.Option(help="Mux widths; repeatable. Default: 2 and 4.")] = None,
    draws: Annotated[int, typer.Option(help="Reshuffles of partners.")] = 3,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Agreement with the plain model of short and long texts, among their like and half and half."""
    loaded = load_bundle(bundle)
    classifier, pad_id = loaded.classifier, loaded.tokenizer.pad_id
    texts = {
        name: loaded.tokenizer([(e.text, None) for e in read_examples(path)])
        for name, path in (("short", short), ("long", long))
    }
    count = min(map(len, texts.values()))
    plain = {name: plain_answers(classifier, samples, pad_id)[:count] for name, samples in texts.items()}
    for number in width or [2, 4]:
        point = loaded.point(number)
        same: dict[tuple[str, str], list[float]] = {}
        for draw in range(draws):
            order = np.random.default_rng((seed, draw)).permutation(count)
            for first, second in (("short", "short"), ("long", "long"), ("short", "long")):
                shuffled = np.random.default_rng((seed, draw, 1)).permutation(count) if first != second else order
                composites = _composites(order, shuffled, number, first != second)
                for composite in composites:
                    names = [first if slot % 2 == 0 else second for slot in range(number)]
                    members: list[Tokens] = [texts[n][i] for n, i in zip(names, composite, strict=True)]
                    outcome = answer_plan(classifier, members, MuxPlan((Group(point, tuple(range(number))),)), pad_id)
                    for name, i, label in zip(names, composite, outcome.logits.argmax(dim=-1).tolist(), strict=True):
                        beside = "like" if first == second else "mixed"
                        same.setdefault((name, beside), []).append(label == plain[name][i])
        for (name, beside), hits in sorted(same.items()):
            typer.echo(f"width {number}  {name:>5}  {beside:>5}  {len(hits):>5} answers  agreement {np.mean(hits):.1%}")


@app.command()
def scripts(
    bundle: Annotated[str, typer.Option()],
    data: Annotated[list[Path], typer.Option(help="Texts of one script or language; repeatable.")],
    width: Annotated[list[int] | None, typer.Option(help="Mux widths; repeatable. Default: 2 and 4.")] = None,
    draws: Annotated[int, typer.Option(help="Reshuffles of partners.")] = 3,
) -> None:
    """Share of unknown tokens, and agreement with the plain model, demultiplexed as it comes and guaranteed."""
    loaded = load_bundle(bundle)
    classifier, tokenizer = loaded.classifier, loaded.tokenizer
    for path in data:
        samples = tokenizer([(example.text, None) for example in read_examples(path)])
        tokens = sum(map(len, samples))
        unknown = sum(map(tokenizer.unknown, samples)) / tokens
        typer.echo(f"{path.stem:>6}  {len(samples)} texts of {tokens / len(samples):.0f} tokens, {unknown:.1%} unknown")
        for number in width or [2, 4]:
            fast = evaluate(classifier, loaded.point(number), samples, None, tokenizer.pad_id, draws)
            sure = evaluate_cascade(classifier, loaded.cascade(number), samples, None, tokenizer.pad_id, draws)
            typer.echo(
                f"        width {number}: agreement {fast.agreement:.1%}, "
                f"guaranteed {sure.agreement:.1%} with {sure.escalation_rate:.1%} escalated"
            )


def _composites(order: np.ndarray, shuffled: np.ndarray, width: int, mixed: bool) -> list[list[int]]:
    """Indices of each composite's members; where it is mixed every other one is of `shuffled`."""
    if not mixed:
        return order[: len(order) // width * width].reshape(-1, width).tolist()
    half = width // 2
    composites = []
    for start in range(0, len(order) // half * half, half):
        pairs = zip(order[start : start + half], shuffled[start : start + half], strict=True)
        composites.append([int(i) for pair in pairs for i in pair])
    return composites


if __name__ == "__main__":
    app()
