"""Text that lies on every machine with Python: sources and docs of what is installed.

Files go by the order of their names' hashes, so that a cut is a sample of everything.
Every 50th is held out: what the trained model continues, it has never seen.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_SUFFIXES = {".py", ".pyi", ".rst", ".md", ".txt"}
_SMALLEST, _LARGEST = 1_000, 200_000
_HELD_OUT = 50
END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|im_end|>"
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] or '' }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def read_texts(max_bytes: int) -> tuple[list[str], list[str]]:
    """Return texts to train on, `max_bytes` of them at most, and texts held out."""
    train: list[str] = []
    held_out: list[str] = []
    left = max_bytes
    for number, path in enumerate(sorted(_files(), key=_order)):
        if left <= 0:
            break
        text = path.read_text(encoding="utf-8", errors="ignore")
        (train if number % _HELD_OUT else held_out).append(text)
        left -= len(text)
    return train, held_out


def train_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """Return a byte-level BPE tokenizer with a chat template, trained on `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _TEMPLATE
    return fast


def encode(tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Return all texts as one row of uint16 tokens, each ended by the end of text."""
    end = np.array([tokenizer.eos_token_id], np.uint16)
    rows: list[np.ndarray] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
        rows += [np.array(encoding.ids, np.uint16), end]
    return np.concatenate(rows)


def _files() -> Iterator[Path]:
    folders = {Path(name) for name in sys.path if name and Path(name).is_dir()}
    folders |= {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
    seen = set()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.suffix not in _SUFFIXES or path in seen or path.is_symlink():
                continue
            seen.add(path)
            if path.is_file() and _SMALLEST <= path.stat().st_size <= _LARGEST:
                yield path


def _order(path: Path) -> bytes:
    return hashlib.blake2b("/".join(path.parts[-3:]).encode(), digest_size=8).digest()
