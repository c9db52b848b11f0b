"""The calibration tokens of a model: text through its own tokenizer, or its own text."""

from __future__ import annotations

from bcquant.calib.dataset import CalibrationTokens, I64Array, calibration_tokens
from bcquant.models.source import ModelSource
from bcquant.runtime.self_sample import sample_sequences
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.recipe import CalibOptions


def tokens_for(source: ModelSource, calib: CalibOptions) -> CalibrationTokens:
    """See `calibration_tokens`.

    Raises:
        ConfigError: there is no such text, or too little of it.
    """
    tokenizer = open_tokenizer(source.path)

    def sample(num: int, seq_len: int, seed: int) -> I64Array:
        return sample_sequences(source, num, seq_len, seed, tokenizer.bos_id)

    return calibration_tokens(
        calib,
        lambda text: tokenizer.encode(text, add_special=False, parse_special=False),
        sample,
    )
