from __future__ import annotations

from typing import Any

import pytest
import torch
from factory import make_tiny, tiny_config

from bcquant.errors import ConfigError
from bcquant.models.architecture import find_architecture
from bcquant.models.decoder import Decoder
from bcquant.models.source import open_model
from bcquant.runtime.kv_cache import KvCache

# The same products summed in other batch and key shapes, in float32.
ATOL = 1e-4


@pytest.fixture(scope="module", params=["llama3", "mistral", "baichuan13b", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    with open_model(make_tiny(request.param, tmp_path_factory.mktemp(request.param))) as source:
        return Decoder.load(source)


def some_ids(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 96, (length,), generator=generator).tolist()


def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, place], mask[i, place] = torch.tensor(row), True
    return tokens, mask


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_decodes_like_each_sequence_alone(model: Decoder, side: str) -> None:
    prompts = [some_ids(n, n) for n in (5, 12, 9)]
    following = [some_ids(6, 50 + i) for i in range(3)]
    tokens, mask = padded(prompts, side)
    cache = KvCache(model.config, batch=3, max_tokens=20)
    steps = [model(tokens, mask, cache, last_only=True)]
    for i in range(6):
        step = torch.tensor([[row[i]] for row in following])
        steps.append(model(step, cache=cache))
    assert cache.lengths == [11, 18, 15]
    for row in range(3):
        alone = model(torch.tensor([prompts[row] + following[row]]))[0, len(prompts[row]) - 1 :]
        together = torch.cat([step[row] for step in steps])
        torch.testing.assert_close(together, alone, atol=ATOL, rtol=0)


def test_prefill_in_pieces_with_padding_equals_one_pass(model: Decoder) -> None:
    tokens, mask = padded([some_ids(10, 1), some_ids(6, 2)], "right")
    cache = KvCache(model.config, batch=2, max_tokens=10)
    pieces = [model(tokens[:, i : i + 4], mask[:, i : i + 4], cache) for i in (0, 4, 8)]
    want = model(tokens, mask)
    torch.testing.assert_close(torch.cat(pieces, 1)[mask], want[mask], atol=ATOL, rtol=0)


def config() -> Any:
    fields = tiny_config("llama3")
    return find_architecture(fields).parse(fields)


def test_overflow_is_refused_and_changes_nothing() -> None:
    cache = KvCache(config(), batch=2, max_tokens=4)
    cache.extend(3)
    with pytest.raises(ConfigError, match="2 more tokens after 3 need 5 slots but there are 4"):
        cache.extend(2)
    assert cache.num_slots == 3 and cache.lengths == [3, 3]


def test_reset_forgets_tokens_and_padding() -> None:
    cache = KvCache(config(), batch=1, max_tokens=4)
    cache.extend(2, torch.tensor([[False, True]]))
    assert cache.lengths == [1]
    cache.reset()
    positions, mask = cache.extend(2)
    assert positions.tolist() == [[0, 1]] and mask is None


def test_buffers_have_the_stated_size() -> None:
    cfg = config()
    cache = KvCache(cfg, batch=3, max_tokens=8, dtype=torch.bfloat16)
    assert cache.num_bytes == 2 * cfg.num_layers * 3 * cfg.kv_size * 8 * 2
    assert cache.batch == 3


def test_empty_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        KvCache(config(), batch=1, max_tokens=0)
