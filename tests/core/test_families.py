"""Encoder-decoders and decoders as bundles: label words, a soft prompt, last tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as RustTokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaModel,
)
from typer.testing import CliRunner

from revmux_core.backbones import view
from revmux_core.base_model import find_base
from revmux_core.bundle import load_bundle
from revmux_core.data import Example
from revmux_core.errors import RevmuxError
from revmux_core.export import ExportError, export_plain
from revmux_core.manifest import PROMPT_FILE, TOKENIZER_FILES, BundleError
from revmux_core.plan import Tokens
from revmux_core.tokenization import TextTokenizer
from revmux_core.training.cache import compute_states
from revmux_core.training.loop import Schedule
from revmux_core.training.prompt import verbalize
from revmux_core.training.run import Recipe, TrainingError, train
from server.cli import app
from tests.tiny import FAMILIES, PROMPT_TOKENS, SPECIAL, WORDS, save_family

TEXTS = ["a good film", "not very good .", "bad film word7 word8", "word9", "the film is bad", "very very bad"]


def untouched_probs(folder: Path, family: str, text: str) -> list[float]:
    """What the base model itself says of a text, given the prompt's and the text's embeddings."""
    base = folder / "base"
    ids = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        if family == "mistral":
            return AutoModelForSequenceClassification.from_pretrained(base).eval()(ids).logits[0].softmax(0).tolist()
        kind: Any = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
        model = kind.from_pretrained(base).eval()
        prompt = load_file(folder / PROMPT_FILE)["soft_prompt"]
        embedded = torch.cat([prompt, model.get_input_embeddings()(ids[0])]).unsqueeze(0)
        start = {"decoder_input_ids": torch.tensor([[0]])} if family == "t5" else {}
        logits = model(inputs_embeds=embedded, **start).logits[0, -1]
    words = json.loads((folder / "bundle.json").read_text())["verbalizer"].values()
    return logits[list(words)].softmax(0).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_answers_plainly_as_its_base_and_repeats_itself_multiplexed(
    family: str, family_bundle_paths: dict[str, Path]
) -> None:
    folder = family_bundle_paths[family]
    bundle = load_bundle(folder)
    for text, answer in zip(TEXTS, bundle.classify(TEXTS, point=1), strict=True):
        assert answer.probs == pytest.approx(untouched_probs(folder, family, text), abs=1e-5)
    answers = bundle.classify(TEXTS)
    assert answers == load_bundle(folder).classify(TEXTS)
    assert [answer.mux_width for answer in answers].count(4) == 4
    half = load_bundle(folder, dtype=torch.bfloat16).classify(TEXTS, point=1)
    for low, answer in zip(half, bundle.classify(TEXTS, point=1), strict=True):
        assert low.probs == pytest.approx(answer.probs, abs=0.15)


@pytest.mark.parametrize("family", ["t5", "llama", "qwen3"])
def test_a_soft_prompt_stays_where_a_text_is_cut(family: str, family_bundle_paths: dict[str, Path]) -> None:
    tokenizer = load_bundle(family_bundle_paths[family]).tokenizer
    prompt = [len(SPECIAL + WORDS) + i for i in range(PROMPT_TOKENS)]
    before, after = {"t5": ([], [3]), "llama": ([2], []), "qwen3": ([], [])}[family]
    (pair,) = tokenizer.encode([("a good film", "bad")])
    first, *rest, second = (len(SPECIAL) + WORDS.index(word) for word in ("a", "good", "film", "bad"))
    assert tokenizer.cut(pair, 64).ids == [*prompt, *before, first, *rest, second, *after]
    room = len(prompt) + len(before + after) + 2
    assert tokenizer.cut(pair, room).ids == [*prompt, *before, first, second, *after]
    elsewhere = TextTokenizer(RustTokenizer.from_str(tokenizer.to_json()), tokenizer.segmented, room)
    assert elsewhere([("a good film", "bad")]) == [tokenizer.cut(pair, room)], "as in a process that only speaks HTTP"


@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_refuses_what_cannot_share_a_row(family: str, family_bundle_paths: dict[str, Path]) -> None:
    with pytest.raises(RevmuxError, match="runs encoders only"):
        load_bundle(family_bundle_paths[family], backend="openvino")


def test_weights_in_several_files_are_all_checked(
    family_bundle_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of large models come, here from the hub's cache."""
    base = family_bundle_paths["llama"] / "base"
    snapshot = tmp_path / "models--org--large" / "snapshots" / "0123"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(snapshot, max_shard_size="20KB")
    for file in TOKENIZER_FILES:
        shutil.copy(base / file, snapshot)
    (tmp_path / "models--org--large" / "refs").mkdir()
    (tmp_path / "models--org--large" / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert len(find_base("org/large").weights) > 1
    recipe = Recipe("org/large", widths=(1,), labels=("bad", "good"), prompt_tokens=2, task=Schedule(0.1, 1e-3, 16))
    train(recipe, EXAMPLES, tmp_path / "bundle", "tiny")
    assert load_bundle(tmp_path / "bundle").manifest.verbalizer == {"bad": 188, "good": 187}
    damaged = find_base("org/large").weights[-1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match="trained on other weights"):
        load_bundle(tmp_path / "bundle")


def test_a_damaged_prompt_is_refused(family_bundle_paths: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(family_bundle_paths["t5"], folder)
    content = bytearray((folder / PROMPT_FILE).read_bytes())
    content[-1] ^= 1
    (folder / PROMPT_FILE).write_bytes(content)
    with pytest.raises(BundleError, match="damaged: task/prompt"):
        load_bundle(folder)


def test_a_soft_prompt_is_not_lost_in_an_export(family_bundle_paths: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has a soft prompt"):
        export_plain(family_bundle_paths["llama"], tmp_path)
    export_plain(family_bundle_paths["mistral"], tmp_path)
    bundle = load_bundle(family_bundle_paths["mistral"])
    ids = torch.tensor([bundle.tokenizer([("a good film", None)])[0].ids])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        probs = model(ids).logits[0].softmax(0).tolist()
    assert bundle.classify(["a good film"], point=1)[0].probs == pytest.approx(probs, abs=1e-5)


EXAMPLES = [
    Example(f"word{i // 2} {'good' if i % 2 else 'bad'} film {'very ' * (i % 5)}", label=str(i % 2)) for i in range(160)
]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_language_model_gets_a_prompt_and_adapters_from_the_command_line(family: str, tmp_path: Path) -> None:
    """The whole path of a user. Even a random model can be told by a prompt what is asked for, and not without it."""
    save_family(tmp_path / "model", family)
    data = tmp_path / "train.tsv"
    data.write_text("sentence\tlabel\n" + "".join(f"{e.text}\t{e.label}\n" for e in EXAMPLES))
    run = CliRunner()
    command = f"train --model {tmp_path / 'model'} --data {data} --labels negative,positive --width 2 --point n1-l3"
    command += " --delta-rank 2"
    command += " --label-word negative=bad --label-word positive=good --prompt-tokens 4 --task-batch-size 16"
    command += " --epochs 6 --learning-rate 2e-3 --batch-size 16 --task-epochs 12 --prompt-learning-rate 0.1"
    for name, more in (("mine", ""), ("unprompted", " --prompt-tokens 0 --epochs 0.1")):
        result = run.invoke(app, f"{command} --out {tmp_path / name}{more}".split(), catch_exceptions=False)
        assert result.exit_code == 0
    reports = []
    for name in ("mine", "unprompted"):
        evaluated = run.invoke(app, f"eval --bundle {tmp_path / name} --data {data} --width 2 --draws 2 --json".split())
        reports.append(json.loads(evaluated.stdout))
    assert reports[0]["plain_accuracy"] > 0.95 > 0.8 > reports[1]["plain_accuracy"]
    assert reports[0]["agreement"] > 0.95
    prompt = load_file(tmp_path / "mine" / PROMPT_FILE)["soft_prompt"]
    assert prompt.shape == (4, 32)
    answers = load_bundle(tmp_path / "mine").classify(["word3 good film", "word3 bad film"])
    assert [answer.label for answer in answers] == ["positive", "negative"]


def test_a_bare_decoder_is_tuned_like_a_bare_encoder(tmp_path: Path) -> None:
    save_family(tmp_path / "model", "llama")
    LlamaModel.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "model")
    schedule = Schedule(epochs=6, learning_rate=2e-3, batch_size=16)
    train(Recipe(str(tmp_path / "model"), widths=(1,), task=schedule), EXAMPLES, tmp_path / "bundle", "tiny")
    answers = load_bundle(tmp_path / "bundle").classify([example.text for example in EXAMPLES])
    right = [answer.label == example.label for answer, example in zip(answers, EXAMPLES, strict=True)]
    assert sum(right) > 0.95 * len(right)


def test_states_beyond_float16_are_kept_as_its_largest(tmp_path: Path) -> None:
    save_family(tmp_path, "t5")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    model.get_input_embeddings().weight.data *= 1e6
    model.config.label_word_ids = [4, 5]
    states = compute_states(view(model), [Tokens([4, 5, 6])], [1], tmp_path, 0, torch.device("cpu"), "fp32")
    assert abs(states.prefill[1]).max() == torch.finfo(torch.float16).max
    assert states.logits.isfinite().all()


@pytest.mark.parametrize(
    ("labels", "words", "problem"),
    [
        (["bad", "good"], {"fine": "good"}, "the labels are bad, good"),
        (["bad", "splendid"], {}, "the word splendid of label splendid is no single token"),
        (["bad", "fine"], {"fine": "good film"}, "no single token .* --label-word fine=WORD"),
        (["bad", "poor"], {"poor": "bad"}, "two labels have the word bad"),
    ],
)
def test_label_words_that_cannot_be_scored_are_refused(
    labels: list[str], words: dict[str, str], problem: str, family_bundle_paths: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(family_bundle_paths["llama"] / "base")
    with pytest.raises(RevmuxError, match=problem):
        verbalize(tokenizer, labels, words)


def test_settings_that_do_not_fit_the_model_are_refused(family_bundle_paths: dict[str, Path], tmp_path: Path) -> None:
    def attempt(family: str, examples: list[Example], **settings: Any) -> None:
        model = str(family_bundle_paths[family] / "base")
        train(Recipe(model, widths=(2,), **settings), examples, tmp_path / "bundle", "tiny")

    unlabelled = [Example(example.text) for example in EXAMPLES]
    with pytest.raises(TrainingError, match="no language model: leave out --label-word"):
        attempt("mistral", EXAMPLES, label_words={"negative": "bad"})
    with pytest.raises(TrainingError, match="a soft prompt needs labelled text"):
        attempt("t5", unlabelled, labels=("bad", "good"))
    with pytest.raises(TrainingError, match="leaves no room for text"):
        attempt("t5", EXAMPLES, labels=("bad", "good"), prompt_tokens=64)
