"""Runs in the environment: `python tiny_model.py DIR` makes a chat model of half a million random weights.

Two layers of the Llama architecture and a byte-level BPE tokenizer trained on the standard library's source, so
that nothing is downloaded and a given Python gives the same model each time. It answers nonsense, at the speed
of light and with everything a client can see: tokens, roles, reasons to finish.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

VOCABULARY = 2_048
PADDING, TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}"
    + TURN + "{{ message['role'] }}\n{{ message['content'] }}" + END_OF_TURN + "\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + TURN + "assistant\n{% endif %}"
)  # fmt: skip
TEXTS = 120


def main(directory: str) -> None:
    """Write tokenizer and model to `directory`."""
    _tokenizer().save_pretrained(directory)
    _model().save_pretrained(directory)


def _tokenizer() -> Any:
    tokenizers: Any = importlib.import_module("tokenizers")
    transformers: Any = importlib.import_module("transformers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = byte_level(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PADDING, TURN, END_OF_TURN],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    texts = sorted(str(path) for path in Path(os.__file__).parent.glob("*.py"))[:TEXTS]
    bpe.train(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=PADDING, eos_token=END_OF_TURN, pad_token=PADDING
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _model() -> Any:
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=8_192,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


if __name__ == "__main__":
    main(sys.argv[1])
