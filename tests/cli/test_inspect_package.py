"""`bcquant inspect NAME.bcq`: values counted from a package made by hand, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import make_checkpoint
from tiny_package import Row, TinyPackage, tiny_package
from tiny_quantized import quantize_folder

from bcquant.cli import main
from bcquant.io.package_signature import Signature, signature_path
from bcquant.spec.quant_format import QuantFormat

CHECKS = [{"name": "logits", "passed": True, "figures": {"kl_mean": 0.00012345, "windows": 4}}]
CERTIFICATE = {"verdict": "pass", "backend": "bcq_run", "versions": {}, "checks": CHECKS}
ORIGIN = {"exporter": "mobile", "bcquant": "9.9", "source": {"name": "a\x1b[2Jb", "kind": "gguf"}}


def with_texts(**texts: Any) -> TinyPackage:
    """A tiny package with JSON in sections named by kind, as k68."""
    package = tiny_package()
    for name, value in texts.items():
        kind = int(name[1:])
        package.rows = [row for row in package.rows if row.kind != kind]
        package.rows.append(Row(kind, 65535, json.dumps(value).encode()))
    package.rows.sort(key=lambda row: (row.kind, row.layer))
    return package


def inspect(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert main(["inspect", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_values_are_those_that_were_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_texts(k68=CERTIFICATE, k69=ORIGIN).write(tmp_path)
    found = inspect(capsys, str(path))
    assert (found["kind"], found["format"]) == ("package", "bcq_package_v1")
    assert found["shards"] == [{"name": "tiny.bcq", "bytes": path.stat().st_size}]
    assert found["file_bytes"] == path.stat().st_size
    model = found["model"]
    assert (model["vocab_size"], model["hidden_size"], model["num_layers"]) == (8, 16, 1)
    assert (model["activations"], model["eos_ids"], model["ties_head"]) == ("exact", [2], True)
    # Embedding of 8 x 16, seven weights of 16 x 16, a bias, five norms of 16 with the last one.
    assert found["num_weights"] == 8 * 16 + 7 * 256 + 16 + 5 * 16
    groups = {row["name"]: row for row in found["sections"]}
    assert groups["self_attn.q_proj.weight"]["format"] == "float16"
    assert groups["model.norm.weight"]["num_bytes"] == 4 * 16
    assert found["tokenizer"] is None
    assert found["chat"] == {"has_template": True, "roles": None}
    assert found["generation"] == {"temperature": 0.5}
    assert found["certificate"] == CERTIFICATE
    assert found["origin"] == ORIGIN
    assert found["signed_by"] is None
    signature_path(path).write_bytes(Signature(bytes(range(32)), bytes(64)).to_bytes())
    assert inspect(capsys, str(path))["signed_by"] == bytes(range(32)).hex()


def test_plan_is_of_the_context_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tiny_package().write(tmp_path))
    whole, few, beyond = (
        inspect(capsys, path, *argv)["plan"]
        for argv in ((), ("--context", "32"), ("--context", "65"))
    )
    assert (whole["context"], few["context"]) == (64, 32)  # the model has 64 positions
    # A key and a value of one head of 16 float16 for each of 32 tokens more.
    assert whole["kv_bytes"] - few["kv_bytes"] == 32 * 2 * 16 * 2
    assert "65" in beyond["problem"] and "total_bytes" not in beyond


def test_bits_of_a_quantized_package_with_its_tokenizer_in_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "dtype": "F16"}
    source = make_checkpoint("llama", tmp_path / "source", **sizes)
    quantize_folder(source, "v1", QuantFormat(4, 32))
    argv = ["export", "mobile", str(source), "-o", str(tmp_path / "m.bcq"), "--split-mb", "1"]
    assert main(argv) == 0
    capsys.readouterr()
    first, *others = sorted(tmp_path.glob("*.bcq"))
    found = inspect(capsys, str(first))
    assert [row["name"] for row in found["shards"]] == [first.name, *(p.name for p in others)]
    assert found["file_bytes"] == sum(path.stat().st_size for path in (first, *others))
    (group,) = (r for r in found["sections"] if r["name"] == "self_attn.q_proj.weight")
    assert group["format"] == "4-bit, groups of 32, symmetric"
    # A float16 scale for 32 weights, beside a header of 64 bytes.
    assert 8 * group["num_bytes"] / group["num_weights"] == pytest.approx(4.5, abs=0.01)
    assert found["tokenizer"]["kind"] == "byte-level BPE"
    assert found["origin"]["source"]["name"] == "source"
    assert found["certificate"] is None


def test_report_says_it_in_lines_that_no_name_can_break(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    path = with_texts(k68=CERTIFICATE, k69=ORIGIN).write(tmp_path)
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "a\N{REPLACEMENT CHARACTER}[2Jb (gguf" in out
    assert "verdict pass: 1 of 1 checks passed, measured with bcq_run" in out
    assert "kl_mean 0.0001234, windows 4" in out
    assert "a Jinja template without frames" in out
    assert "none beside it" in out
    assert "none here; only ids go in and out" in out
    assert "MB for 64 tokens in f16: weights" in out


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ({"k66": {"bos": ""}}, "the chat frames have no roles"),
        ({"k68": {"verdict": "pass"}}, "the certificate lists no checks"),
        ({"k68": {"checks": [{"name": "x"}]}}, "the certificate lists no checks"),
        ({"k69": [1]}, "the origin"),
    ],
)
def test_a_damaged_text_is_one_line(
    texts: dict[str, Any], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(with_texts(**texts).write(tmp_path))]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and named in err


@pytest.mark.parametrize(
    ("change", "argv", "named"),
    [
        (lambda data: data[:4000], [], "header says"),
        (lambda data: data[:300] + b"\xff" + data[301:], [], "index is damaged"),
        (lambda data: b"GGUF" + data[4:], [], "does not begin as a package does"),
        (lambda data: data, ["--context", "0"], "--context is 0"),
    ],
)
def test_a_bad_package_is_the_reader_s_line(
    change: Any, argv: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_package().write(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    assert main(["inspect", str(path), *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and named in err


def test_context_is_of_packages_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_checkpoint("llama", tmp_path / "source")
    assert main(["inspect", str(source), "--context", "64"]) == 2
    assert "--context is of packages" in capsys.readouterr().err
