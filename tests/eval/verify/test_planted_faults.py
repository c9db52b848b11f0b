"""Faults in an export that `verify` must refuse, and name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import planted_faults as faults
import pytest

from bcquant.errors import CheckpointError
from bcquant.spec.quant_format import QuantFormat

pytestmark = pytest.mark.judge
pytest.importorskip("onnxruntime", reason="onnxruntime, which runs the exports, is not installed")
pytest.importorskip("llama_cpp", reason="llama-cpp-python, which runs GGUF, is not installed")

UP = "model.layers.1.mlp.up_proj"
Q = "model.layers.0.self_attn.q_proj"
HEAD_DIM = 16
Fixture = Callable[..., Any]


def failed(certificate: Any) -> dict[str, str]:
    return {check.name: check.problem for check in certificate.checks if not check.passed}


def scale_of_onnx(values: Any) -> None:
    values[3, 1] *= np.float32(1.5)


def scale_of_gguf(rows: Any) -> None:
    scale = rows[3, 18:20].view("<f2")  # of the second Q4_0 block
    scale *= np.float16(1.5)


@pytest.mark.parametrize("kind", ["onnx", "gguf"])
def test_one_changed_scale_is_named(
    kind: str, make_source: Fixture, make_export: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    export = own(make_export(source, kind))
    if kind == "onnx":
        faults.edit_onnx_tensor(export, f"{UP}.scales", scale_of_onnx, "<f4")
    else:
        faults.edit_gguf_tensor(export, "blk.1.ffn_up.weight", scale_of_gguf)
    found = run_verify(source, export)
    assert not found.passed and found.diverges == f"{UP}.weight"
    figures = next(check.figures for check in found.checks if check.name == "weights")
    # float16: 1.5 times a scale is exact or off by half a unit in the last place
    assert figures["scale_change"] == pytest.approx(0.5, abs=1e-3)
    assert (figures["changed"], figures["rejected"]) == (0, 1)


@pytest.mark.parametrize("kind", ["onnx", "gguf"])
def test_two_swapped_nibbles_are_named(
    kind: str, make_source: Fixture, make_export: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    export = own(make_export(source, kind))
    if kind == "onnx":
        faults.edit_onnx_tensor(export, f"{UP}.b", faults.swap_first_nibbles, "u1")
    else:
        faults.edit_gguf_tensor(
            export, "blk.1.ffn_up.weight", lambda rows: faults.swap_first_nibbles(rows[:1, 2:18])
        )
    found = run_verify(source, export)
    assert not found.passed and found.diverges == f"{UP}.weight"
    figures = next(check.figures for check in found.checks if check.name == "weights")
    assert figures["changed"] == 2 / (128 * 64)
    assert f"{UP}.weight, stored as" in failed(found)["weights"]


@pytest.mark.parametrize("kind", ["onnx", "gguf"])
def test_rows_of_q_in_the_wrong_rotary_order_are_named(
    kind: str, make_source: Fixture, make_export: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    export = own(make_export(source, kind))
    if kind == "onnx":
        for part, dtype in (("b", "u1"), ("scales", "<f4")):
            faults.edit_onnx_tensor(
                export, f"{Q}.{part}", lambda rows: faults.interleave_heads(rows, HEAD_DIM), dtype
            )
    else:
        faults.edit_gguf_tensor(
            export, "blk.0.attn_q.weight", lambda rows: faults.separate_heads(rows, HEAD_DIM)
        )
    found = run_verify(source, export)
    assert found.diverges == f"{Q}.weight"
    assert {"weights", "logits"} <= set(failed(found))


def test_gguf_space_prefix_that_is_off_is_named(
    make_source: Fixture, make_export: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source("baichuan")
    export = own(make_export(source, "gguf"))
    faults.set_gguf_key(export, "tokenizer.ggml.add_space_prefix", False)
    problems = failed(run_verify(source, export))
    assert set(problems) == {"tokens"} or set(problems) == {"tokens", "greedy"}
    assert "the first being" in problems["tokens"]


def test_onnx_tokenizer_with_another_prefix_is_named(
    make_source: Fixture, make_export: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    export = own(make_export(source, "onnx"))
    path = export / "tokenizer.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["normalizer"] = {"type": "Prepend", "prepend": " "}
    path.write_text(json.dumps(settings), encoding="utf-8")
    found = run_verify(source, export)
    assert set(failed(found)) == {"tokens"}
    assert "texts get other token ids, the first being" in failed(found)["tokens"]
    assert found.diverges is None  # the model itself is right


@pytest.mark.parametrize("level", ["0", "4"])
def test_norm_epsilon_of_one_layer_is_found_in_the_graph(
    level: str, make_source: Fixture, make_export: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    export = own(make_export(source, "onnx", "--accuracy-level", level))

    def soften(node: Any) -> None:
        if "layers.1" in node.name and "LayerNormalization" in node.op_type:
            for attribute in node.attribute:
                attribute.f *= 1000 if attribute.name == "epsilon" else 1

    faults.edit_onnx_nodes(export, soften)
    found = run_verify(source, export)
    problems = failed(found)
    assert "weights" not in problems and "layers.1" in problems["settings"]
    # At level 4 the noise of int8 activations hides it; the graph without them shows it.
    assert ("graph" if level == "4" else "logits") in problems
    assert found.diverges is not None and found.diverges.startswith("layer 1: ")


def test_rotary_angles_are_found_in_the_graph(
    make_source: Fixture, make_export: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    export = own(make_export(source, "onnx"))

    def turn(table: Any) -> None:
        table[:, 3] = table[:, 4]  # one frequency as if theta were another

    for name in ("rotary/cos", "rotary/sin"):
        faults.edit_onnx_tensor(export, name, turn, "<f4")
    found = run_verify(source, export)
    assert "graph" in failed(found) and "weights" not in failed(found)
    assert found.diverges is not None and found.diverges.startswith("layer 0: ")


def test_w8a8_that_rounds_activations_otherwise_is_found(
    make_source: Fixture, make_export: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source("llama", "int-quantized", QuantFormat(8, -1, True, "int8_token"))
    export = own(make_export(source, "onnx"))

    def widen(top: Any) -> None:
        top[...] = 126.5  # of int8 codes a token's largest value takes

    faults.edit_onnx_tensor(export, "int8/top", widen, "<f4")
    found = run_verify(source, export)
    # Without rounding the step cancels out, so that the graph alone is right.
    assert "rounding" in failed(found) and not {"graph", "weights"} & set(failed(found))
    assert found.diverges is not None


@pytest.mark.parametrize(
    ("key", "value", "setting"),
    [
        ("llama.attention.layer_norm_rms_epsilon", 1e-3, "rms_norm_eps"),
        ("llama.rope.freq_base", 20000.0, "rope_theta"),
    ],
)
def test_gguf_setting_is_named(
    key: str,
    value: float,
    setting: str,
    make_source: Fixture,
    make_export: Fixture,
    own: Fixture,
    run_verify: Fixture,
) -> None:
    source = make_source()
    export = own(make_export(source, "gguf"))
    faults.set_gguf_key(export, key, value)
    problems = failed(run_verify(source, export))
    assert problems["settings"].startswith(f"{setting} is ") and "weights" not in problems


def test_float_value_is_named(
    make_source: Fixture, make_export: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    export = own(make_export(source, "gguf"))

    def flip(rows: Any) -> None:
        rows[7, 4] ^= 1  # the last bit of one float16 of the embedding

    faults.edit_gguf_tensor(export, "token_embd.weight", flip)
    found = run_verify(source, export)
    assert set(failed(found)) == {"weights"}
    assert found.diverges == "model.embed_tokens.weight"


def test_a_value_that_is_not_finite_is_an_error(
    make_source: Fixture, make_export: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    export = own(make_export(source, "gguf"))

    def break_it(rows: Any) -> None:
        rows[0, :4].view("<f4")[:] = np.nan

    faults.edit_gguf_tensor(export, "output_norm.weight", break_it)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds a value"):
        run_verify(source, export)


def test_rounded_export_passes_only_when_the_user_accepts_it(
    make_source: Fixture, make_export: Fixture, run_verify: Fixture
) -> None:
    source = make_source(fmt=QuantFormat(4, 32, symmetric=False))
    export: Path = make_export(source, "gguf", "--asym-as", "q4_1", "--allow-lossy")
    refused = run_verify(source, export)
    assert set(failed(refused)) == {"weights"}
    figures = next(check.figures for check in refused.checks if check.name == "weights")
    assert figures["changed"] == 0  # the codes are kept, the minimum is rounded
    # A float16 minimum of up to 15 scales: 2^-11 of it against weights of about 4 scales.
    assert 0 < figures["error"] < 1e-3
    assert run_verify(source, export, max_weight_error=1e-3).passed
