"""A checkpoint that gptqmodel quantized goes out as ONNX and GGUF with gptqmodel's own integers.

Both exports are taken apart here by hand, from the layouts that their readers publish.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from judges.conftest import MakeSource
from safetensors.torch import load_file

from bcquant.cli import main

pytestmark = [
    pytest.mark.judge,
    # Third-party imports announce their own deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]

HEADS = {"q_proj": 4, "k_proj": 2}
GROUP = 32
# Of GGUF's blocks, by the end of a module's name.
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
Numbers = npt.NDArray[Any]


@pytest.fixture(scope="module")
def foreign(
    gptqmodel: Any, make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A GPTQ v1 folder, 4-bit symmetric in groups of 32, of gptqmodel's making."""
    generator = torch.Generator().manual_seed(0)
    calibration = [
        {
            "input_ids": torch.randint(3, 384, (1, 32), generator=generator),
            "attention_mask": torch.ones(1, 32, dtype=torch.long),
        }
        for _ in range(16)
    ]
    settings = gptqmodel.QuantizeConfig(
        bits=4, group_size=GROUP, sym=True, desc_act=False, format="gptq", offload_to_disk=False,
        pack_impl="original",  # its default compiles a C++ extension for half a minute
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("foreign") / "theirs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTQMODEL_CPU_WORKERS", "2")
        patch.chdir(folder.parent)
        source = make_source("llama", num_attention_heads=4, num_key_value_heads=2)
        model = gptqmodel.GPTQModel.load(str(source), settings, device="cpu", dtype=torch.float16)
        model.quantize(calibration, batch_size=1)
        model.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def theirs(foreign: Path) -> dict[str, tuple[Numbers, Numbers]]:
    """Module -> (code - zero as int, scales of each group) as gptqmodel unpacks its own words."""
    from gptqmodel.utils.model_dequant import unpack_cols, unpack_rows

    stored = load_file(foreign / "model.safetensors")
    found = {}
    for name in stored:
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix(".qweight")
        codes_KN = unpack_rows(stored[name], 4).numpy().astype(np.int32)
        zeros_GN = unpack_cols(stored[f"{module}.qzeros"], 4).numpy().astype(np.int32) + 1
        levels_KN = codes_KN - np.repeat(zeros_GN, GROUP, axis=0)
        found[module] = (levels_KN.T, stored[f"{module}.scales"].numpy().T)
    assert len(found) == 14
    return found


def test_onnx_carries_the_same_integers(
    foreign: Path, theirs: dict[str, tuple[Numbers, Numbers]], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    assert main(["export", "onnx", str(foreign), "-o", str(tmp_path / "out")]) == 0
    graph = onnx.load(str(tmp_path / "out" / "model.onnx")).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == len(theirs)
    seen = set()
    for node in nodes:
        data, scales = arrays[node.input[1]], arrays[node.input[2]]
        assert not any(node.input[3:4])  # no zero points: every zero is 8
        # Blocks of one group each: the low nibble comes first.
        codes = np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1)
        module = next(
            name
            for name, (levels, _) in theirs.items()
            if name not in seen and np.array_equal(levels, codes.astype(np.int32) - 8)
        )
        assert np.array_equal(scales.reshape(len(data), -1), theirs[module][1].astype(np.float32))
        seen.add(module)
    assert seen == set(theirs)


def test_gguf_carries_the_same_integers(
    foreign: Path, theirs: dict[str, tuple[Numbers, Numbers]], tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    assert main(["export", "gguf", str(foreign), "-o", str(tmp_path / "out.gguf")]) == 0
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for module, (levels, scales) in theirs.items():
        layer, _, end = module.removeprefix("model.layers.").partition(".")
        tensor = tensors[f"blk.{layer}.{GGUF_NAMES[end]}.weight"]
        assert tensor.tensor_type.name == "Q4_0"
        # A block: float16 scale, then byte j holds elements j (low) and j + 16 (high).
        blocks = tensor.data.reshape(len(levels), -1, 18)
        got_scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0]
        data = blocks[:, :, 2:]
        codes = np.concatenate([data & 15, data >> 4], axis=-1).reshape(levels.shape)
        heads = HEADS.get(module.rpartition(".")[2])
        if heads is not None:  # llama.cpp wants the halves of a head interleaved
            levels, scales = (
                a.reshape(heads, 2, -1, a.shape[1]).swapaxes(1, 2).reshape(a.shape)
                for a in (levels, scales)
            )
        assert np.array_equal(codes.astype(np.int32) - 8, levels), module
        assert np.array_equal(got_scales, scales), module
