"""A small T5 and a small Llama trained from nothing on SST-2, as stand-ins for pre-trained ones.

    python experiments/from_scratch.py --family t5 --data sst2/train.tsv --out t5-tiny

The model learns to answer a text with the word bad or good: at the decoder's first step, or after the last token. It
is written as a Hugging Face folder with a tokenizer of its own, for `revmux train --model t5-tiny --prompt-tokens 0
--labels negative,positive --label-word negative=bad --label-word positive=good`. Run again to go on after a kill.
`docs/performance/models.md` has what came of it ("Other families").
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from revmux_core.batch import pad
from revmux_core.data import read_examples
from revmux_core.tokenization import Tokenizer
from revmux_core.training.loop import Schedule, default_precision, train_loop

SIZES: dict[str, Any] = {"vocab_size": 8000, "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1}
LAYERS, HIDDEN, HEADS = 6, 128, 4
WORDS = ("bad", "good")
MAX_TOKENS = 128


class Family(StrEnum):
    t5 = "t5"
    llama = "llama"


def make_tokenizer(texts: list[str], family: Family) -> PreTrainedTokenizerFast:
    """WordPiece learnt from the texts, with the family's own special token: T5's at the end, Llama's in front."""
    rust = RustTokenizer(models.WordPiece(unk_token="<unk>"))
    rust.normalizer = normalizers.BertNormalizer()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    rust.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=SIZES["vocab_size"], special_tokens=special))
    template = "$A </s>" if family == Family.t5 else "<s> $A"
    rust.post_processor = processors.TemplateProcessing(
        single=template, pair=template.replace("$A", "$A $B"), special_tokens=[("</s>", 1), ("<s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rust,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(family: Family) -> T5ForConditionalGeneration | LlamaForCausalLM:
    if family == Family.t5:
        sizes: dict[str, Any] = {"d_model": HIDDEN, "d_kv": HIDDEN // HEADS, "d_ff": 4 * HIDDEN, "num_heads": HEADS}
        sizes |= {"num_layers": LAYERS, "decoder_start_token_id": 0, "n_positions": MAX_TOKENS}
        return T5ForConditionalGeneration(T5Config(**SIZES, **sizes))
    return LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            bos_token_id=2,
            hidden_size=HIDDEN,
            # Three maps in place of two: two thirds of the usual four times d.
            intermediate_size=8 * HIDDEN // 3,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            max_position_embeddings=MAX_TOKENS,
        )
    )


def main(
    family: Annotated[Family, typer.Option()],
    data: Annotated[Path, typer.Option(help="The training text of SST-2.")],
    out: Annotated[Path, typer.Option(help="Folder for the model; checkpoints go to a folder beside it.")],
    epochs: Annotated[float, typer.Option()] = 2,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train a small model of a family from nothing to answer SST-2's texts with bad or good."""
    examples = [example for example in read_examples(data) if example.label is not None]
    own = make_tokenizer([example.text for example in examples], family)
    tokenizer = Tokenizer(own, MAX_TOKENS)
    samples = tokenizer([(example.text, None) for example in examples])
    words = [own.convert_tokens_to_ids(word) for word in WORDS]
    answers = torch.tensor([words[int(example.label or 0)] for example in examples])
    torch.manual_seed(seed)
    model: Any = make_model(family).train()
    side = "right" if family == Family.t5 else "left"

    def loss_function(indices: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        ids, mask, _ = pad([samples[i] for i in indices], tokenizer.pad_id, side)
        at: dict[str, Any] = {"logits_to_keep": 1}
        if family == Family.t5:
            at = {"decoder_input_ids": torch.zeros(len(ids), 1, dtype=torch.long)}
        logits = model(input_ids=ids, attention_mask=mask, **at).logits[:, -1].float()
        accuracy = float((logits.argmax(dim=-1) == answers[indices]).float().mean())
        return F.cross_entropy(logits, answers[indices]), {"accuracy": accuracy}

    lengths = [len(sample) for sample in samples]
    schedule = Schedule(epochs, learning_rate, batch_size=64)
    work = out.with_name(out.name + ".work")
    device = torch.device("cpu")
    train_loop(
        "scratch",
        dict(model.named_parameters()),
        loss_function,
        lengths,
        schedule,
        work,
        seed,
        device,
        default_precision(device),
    )
    model.eval().save_pretrained(out)
    own.save_pretrained(out)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
