from pathlib import Path

import pytest

from loadtest.workload import (
    MAX_SAMPLES,
    DataError,
    Sample,
    joined,
    name_labels,
    poisson_arrivals,
    read_samples,
    shuffled,
)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_tsv_is_raw_and_csv_is_quoted(tmp_path):
    tsv = write(tmp_path, "a.tsv", 'sentence\tlabel\n"an open quote\t1\nplain\t0\n')
    csv = write(tmp_path, "a.csv", 'text,category\n"one, two",good\n')
    assert read_samples(tsv) == [Sample('"an open quote', "1"), Sample("plain", "0")]
    assert read_samples(csv) == [Sample("one, two", "good")]
    assert read_samples(write(tmp_path, "a.txt", "one\n\n two \n")) == [Sample("one"), Sample("two")]


def test_columns_can_be_named(tmp_path):
    path = write(tmp_path, "a.csv", "review,stars\nfine,5\n")
    assert read_samples(path, "review", "stars") == [Sample("fine", "5")]
    with pytest.raises(DataError, match="name one with --text-column"):
        read_samples(path)
    with pytest.raises(DataError, match="no column 'mood'"):
        read_samples(path, "review", "mood")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("a.txt", "\n", "no sentences"), ("a.tsv", "", "name one"), ("a.doc", "x", "unknown format")],
)
def test_unusable_files_say_why(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_samples(write(tmp_path, name, text))


def test_large_files_are_sampled_alike(tmp_path):
    path = write(tmp_path, "a.txt", "".join(f"line {i}\n" for i in range(MAX_SAMPLES + 100)))
    assert len(read_samples(path)) == MAX_SAMPLES
    assert read_samples(path) == read_samples(path)


def test_labels_may_be_names_or_indices():
    samples = [Sample("a", "1"), Sample("b", "negative"), Sample("c")]
    assert name_labels(samples, ["negative", "positive"]) == ["positive", "negative", None]
    with pytest.raises(DataError, match="'2' is none of the model's: negative, positive"):
        name_labels([Sample("a", "2")], ["negative", "positive"])


def test_orders_and_arrivals_follow_their_seed():
    first = [index for index, _ in zip(shuffled(5, seed=1), range(10), strict=False)]
    assert sorted(first[:5]) == [0, 1, 2, 3, 4]
    assert first[:5] == first[5:]
    arrivals = poisson_arrivals(rate=100, seconds=50, seed=1)
    assert arrivals == poisson_arrivals(rate=100, seconds=50, seed=1)
    assert arrivals == sorted(arrivals)
    assert arrivals[0] > 0
    assert arrivals[-1] < 50
    assert len(arrivals) == pytest.approx(5000, rel=0.05)


def test_joined_texts_are_of_mixed_lengths_and_of_the_sentences_words():
    sentences = [Sample("a gripping film", "1"), Sample("two hours of it", "0")] * 100
    texts = joined(sentences, 300)
    lengths = [len(sample.text.split()) for sample in texts]
    assert len(texts) == 200
    assert (min(lengths) >= 8, max(lengths) <= 300) == (True, True)
    # Half of the texts are under the geometric middle of 8 and 300.
    assert 80 < sum(length < 49 for length in lengths) < 120
    words = {word for sample in texts for word in sample.text.split()}
    assert words == {"a", "gripping", "film", "two", "hours", "of", "it"}
    assert texts == joined(sentences, 300)
