"""Token classification: every word is read, multiplexed, passed on and evaluated as a sample is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

from revmux_core.backends import BackendName
from revmux_core.batch import collate
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.cascade import Cascade
from revmux_core.composites import multiplex
from revmux_core.evaluation import evaluate, plain_answers
from revmux_core.offline import run_all, run_cascade
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint
from revmux_core.problems import ProblemType
from revmux_core.tokenization import PairError, Tokenizer
from tests.tiny import EARLY, HIDDEN, LAYERS, random_samples

KIND: ProblemType = "token_classification"


@pytest.fixture(scope="module")
def bundle(task_bundle_paths: dict[ProblemType, Path]) -> Bundle:
    return load_bundle(task_bundle_paths[KIND])


def samples_of(*words: list[int], length: int = 16) -> list[Tokens]:
    """Texts whose words begin at these positions."""
    return [
        Tokens([2, *((7 * i + j) % 180 + 4 for j in range(length - i)), 3], [0] * (length - i + 2), own)
        for i, own in enumerate(words)
    ]


def logits(bundle: Bundle, samples: list[Tokens], *groups: Group) -> Tensor:
    return bundle.classifier(collate(samples, MuxPlan(groups), bundle.tokenizer.pad_id)).logits


def same(found: Tensor, expected: Tensor) -> None:
    """Equal where a text has words, and NaN where neither has."""
    columns = max(found.shape[-2], expected.shape[-2])
    rows = [torch.nn.functional.pad(t, (0, 0, 0, columns - t.shape[-2]), value=torch.nan) for t in (found, expected)]
    torch.testing.assert_close(*rows, atol=2e-5, rtol=1e-4, equal_nan=True)


WORDS = st.lists(st.integers(1, 7), max_size=7, unique=True).map(sorted)


@settings(max_examples=20)
@given(order=st.permutations(range(8)), words=st.lists(WORDS, min_size=8, max_size=8))
def test_words_are_read_in_their_own_text_whatever_stands_beside_it(
    bundle: Bundle, order: list[int], words: list[list[int]]
) -> None:
    """Plain texts, exits and composites of two widths in one batch, padded to the longest; some without any word."""
    samples = samples_of(*words)
    two, four = bundle.point(2), bundle.point(4)
    groups = [
        Group(four, tuple(order[:4])),
        Group(EARLY, (order[4],)),
        Group(two, tuple(order[5:7])),
        Group(bundle.classifier.plain, (order[7],)),
    ]
    together = logits(bundle, samples, *groups)
    assert (~together[..., 0].isnan()).sum(dim=1).tolist() == list(map(len, words))
    for group in groups:
        members = list(group.members)
        alone = logits(bundle, [samples[i] for i in members], Group(group.point, tuple(range(len(members)))))
        same(together[members], alone)


def test_plain_words_have_the_logits_of_the_untouched_model(
    bundle: Bundle, task_bundle_paths: dict[ProblemType, Path]
) -> None:
    model = AutoModelForTokenClassification.from_pretrained(task_bundle_paths[KIND] / "base").eval()
    _, samples = random_samples(bundle, 12)
    found, _ = run_all(bundle.classifier, samples, bundle.classifier.plain, 0, 200)
    for row, sample in zip(found, samples, strict=True):
        assert sample.words is not None
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([sample.ids])).logits[0, sample.words]
        torch.testing.assert_close(row[: len(sample.words)], expected, atol=1e-5, rtol=1e-5)


def test_a_word_is_demultiplexed_from_its_own_position_slot_and_state(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: composites run over the upper layers, then every word by itself."""
    point = bundle.point(2)
    backbone, multiplexer = bundle.classifier.backbone, bundle.classifier.adapters_of(point).multiplexer
    samples = samples_of([1, 4], [2, 3, 9], [], [5])
    seen: list[tuple[Tensor, ...]] = []

    def spy(*arguments: Tensor) -> Tensor:
        seen.append(arguments)
        return arguments[0]

    monkeypatch.setattr(multiplexer, "demultiplex", spy)
    logits(bundle, samples, Group(point, (0, 1, 2, 3)))
    ((pooled, slots, own, _),) = seen
    batch = collate(samples, MuxPlan((Group(point, (0, 1, 2, 3)),)), bundle.tokenizer.pad_id)
    with torch.inference_mode():
        hidden = backbone.embed(batch.ids, batch.mask, batch.type_ids)
        hidden = backbone.run(hidden, batch.mask, backbone.layers(0, point.prefill))
        composites = multiplex(backbone, multiplexer, hidden, batch.mask)
        upper = backbone.run(composites.hidden, composites.mask, backbone.layers(point.prefill, LAYERS))
    words = [(sample, position) for sample, tokens in enumerate(samples) for position in tokens.words or ()]
    assert slots.tolist() == [sample % 2 for sample, _ in words]
    for row, (sample, position) in enumerate(words):
        torch.testing.assert_close(pooled[row], upper[sample // 2, position], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own[row, :HIDDEN], hidden[sample, position], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own[row, HIDDEN:], composites.own[sample, 0, HIDDEN:], atol=1e-5, rtol=1e-5)


def test_words_go_along_with_what_is_passed_on(bundle: Bundle) -> None:
    """A cascade that is never sure answers plainly in the end; one in between answers each text as one point does."""
    classifier = bundle.classifier
    _, samples = random_samples(bundle, 30)
    plain, _ = run_all(classifier, samples, classifier.plain, 0, 200)
    early, _ = run_all(classifier, samples, EARLY, 0, 200)
    never, left_at = run_cascade(classifier, samples, Cascade((EARLY,), (2.0,), LAYERS), 0, 200)
    same(never, plain)
    confidences = classifier.backbone.problem.confidence(early).numpy()
    known = np.sort(confidences)
    cascade = Cascade((EARLY,), (float(known[14] + known[15]) / 2,), LAYERS)
    mixed, left_at = run_cascade(classifier, samples, cascade, 0, 200)
    assert left_at == cascade.leaves_at(confidences[:, None]).tolist()
    same(mixed, torch.stack([(early, plain)[step][i] for i, step in enumerate(left_at)]))


def test_evaluation_counts_texts_and_words(bundle: Bundle) -> None:
    _, samples = random_samples(bundle, 41)
    reference = plain_answers(bundle.classifier, samples, 0)
    targets = np.where(reference < 0, -100, reference)
    result = evaluate(bundle.classifier, bundle.point(2), samples, targets, 0, draws=3, reference=reference)
    assert result.metrics["plain_word_accuracy"] == 1
    assert result.metrics["word_accuracy"] == pytest.approx(result.closeness["word_agreement"])
    assert 0 <= result.agreement < result.closeness["word_agreement"] < 1
    plain = evaluate(bundle.classifier, bundle.classifier.plain, samples, targets, 0, draws=1)
    assert (plain.agreement, plain.closeness["word_agreement"]) == (1, 1)


@pytest.mark.parametrize("backend", ["openvino", "inductor"])
def test_a_compiled_backend_reads_the_same_words(
    task_bundle_paths: dict[ProblemType, Path], bundle: Bundle, backend: BackendName
) -> None:
    compiled = load_bundle(task_bundle_paths[KIND], backend=backend)
    compiled.classifier.executor.limit(bundle.classifier.points)
    _, samples = random_samples(bundle, 30)
    for point in bundle.classifier.points:
        found, _ = run_all(compiled.classifier, samples, point, 0, 200)
        expected, _ = run_all(bundle.classifier, samples, point, 0, 200)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3, equal_nan=True)


def test_words_and_where_they_stand_are_the_tokenizers_own(tmp_path: Path, bundle: Bundle) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "film", "##s", "good", ",", "na", "##ive"]
    rust = type(bundle.tokenizer._backend).from_str(bundle.tokenizer.to_json())
    rust.model = type(rust.model)({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    whole = PreTrainedTokenizerFast(tokenizer_object=rust, model_input_names=["input_ids"])
    tokenizer = Tokenizer(whole, 64, by_word=True)
    text = "Good  films, \u200bna\u00efve?"
    (tokens,) = tokenizer([(text, None)])
    assert tokens.ids == [2, 6, 4, 5, 7, 8, 9, 1, 3]
    assert tokens.words == [1, 2, 4, 5, 7]
    assert tokens.spans is not None
    assert [text[start:end] for start, end in tokens.spans] == ["Good", "films", ",", "na\u00efve", "?"]
    cut = tokenizer.cut(tokenizer.encode([(text, None)])[0], 4)
    assert (cut.ids, cut.words, cut.spans) == ([2, 6, 4, 3], [1, 2], [(0, 4), (6, 10)]), "a word may be cut, too"
    with pytest.raises(PairError, match="single texts"):
        tokenizer([("good", "films")])


def test_answers_are_entities(bundle: Bundle) -> None:
    text = "a  good film , not bad"
    (answer,) = bundle.classify([text], point=1)
    _, samples = [text], bundle.tokenizer([(text, None)])
    (found,) = plain_answers(bundle.classifier, samples, 0)
    labels = [bundle.manifest.labels[index] for index in found]
    assert answer.entities is not None
    assert [(entity["entity"], entity["word"]) for entity in answer.entities] == [
        (label, word) for label, word in zip(labels, text.split(), strict=True) if label != "O"
    ]
    assert all(text[e["start"] : e["end"]] == e["word"] for e in answer.entities)
    assert 0 < len(answer.entities) < 6
    assert (answer.label, answer.probs) == (None, [])
    assert replace(answer, entities=None) == replace(bundle.classify([text], point=EARLY.name)[0], entities=None)


def test_a_text_without_words_has_an_answer(bundle: Bundle) -> None:
    for point in ("n1-l4", EARLY.name):
        (empty,) = bundle.classify(["\u200b"], point=point)
        assert empty.entities == []
    assert OperatingPoint.parse(EARLY.name) == EARLY
