"""gptqmodel with its defaults, as a process of its own: SOURCE OUT BITS GROUP_SIZE TOKENS SEED.

The calibration is bcquant's: the same windows of the same text, those included that bcquant holds
out to choose among candidates.
"""

from __future__ import annotations

import sys

from gptqmodel import GPTQModel, QuantizeConfig

from bcquant.calib.dataset import calibration_tokens
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.recipe import CalibOptions


def main() -> None:
    source, out = sys.argv[1:3]
    bits, group_size, num_tokens, seed = map(int, sys.argv[3:7])
    options = CalibOptions(num_tokens=num_tokens, seed=seed)
    tokenizer = open_tokenizer(source)
    calib = calibration_tokens(options, lambda text: tokenizer.encode(text, False, False))
    windows = calib.ids_ST[: calib.num_train + calib.num_select].tolist()
    data = [{"input_ids": w, "attention_mask": [1] * len(w)} for w in windows]
    config = QuantizeConfig(bits=bits, group_size=group_size)
    model = GPTQModel.load(source, config, device="cpu")
    model.quantize(data, batch_size=1)
    model.save(out)


if __name__ == "__main__":
    main()
