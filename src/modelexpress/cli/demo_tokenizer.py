"""The demonstration model's tokenizer: byte-pair encoding, trained in a moment on a text of our own."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

VOCABULARY_SIZE = 512  # 256 bytes, three special tokens, and merges for the rest

_TEXT = """
A model begins as a file and ends as a number of processes that answer questions. Between the two lies a
journey: the weights leave a disk, cross a bus or a network, and come to rest in the memory of an accelerator.
The first process that makes this journey pays for it in full. Every later one could ask its neighbour.

A neighbour who holds the weights is called a source. It tells a registry what it holds and that it is alive,
and it hears from those who want to read. A reader asks for a lease, compares names and shapes with its own,
makes a plan, and copies. Each piece that arrives is checked against the digest that the source has published,
so that a flipped bit is found and named before anybody computes with it.

When many readers come at once, they do not stand in a queue before the same door. The first reads from the
source, the second from the first, the third from the second, and the water flows down the whole chain while
it is still being poured in at the top. Should one of them fall, the next one keeps what it has and looks for
another place to drink from.

The quick brown fox jumps over the lazy dog. In 2024 there were 365 days and one more; 1, 2, 3, 4, 5, 6, 7, 8
and 9 are digits, and 0 is another. "Why is it so fast?" she asked. "Because nothing is moved twice," he said.
"""


def build_tokenizer() -> Any:
    """Return a `PreTrainedTokenizerFast` of at most `VOCABULARY_SIZE` tokens that can encode any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def tokenizer_files() -> dict[str, bytes]:
    """Return the files from which `AutoTokenizer` builds the tokenizer again, by name."""
    with TemporaryDirectory() as folder:
        build_tokenizer().save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
