"""A tokenizer for a model that is built from nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from rlhf_ray.data.chat import SPECIAL_TOKENS
from rlhf_ray.errors import ConfigError

PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|im_end|>"
TURN_TOKENS = tuple(token for tokens in SPECIAL_TOKENS.values() for token in tokens)


def train_bpe_tokenizer(
    texts: Iterable[str], vocab_size: int, turn_tokens: Sequence[str] = TURN_TOKENS
) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on ``texts``; the same texts give the same tokenizer.

    Every text can be written, since all 256 bytes are in the vocabulary. Padding is token 0, EOS (the end of a turn) is
    token 1, then follow ``turn_tokens``: by default those of every built-in chat template. The vocabulary is smaller
    than ``vocab_size`` where the texts have too few different words.
    """
    special_tokens = [PAD_TOKEN, EOS_TOKEN, *turn_tokens]
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise ConfigError(
            "model.scratch.vocab_size",
            vocab_size,
            f"must be at least {smallest}: 256 bytes and {len(special_tokens)} special tokens",
            "use 1024 or more",
        )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        extra_special_tokens=list(turn_tokens),
        clean_up_tokenization_spaces=False,
    )
