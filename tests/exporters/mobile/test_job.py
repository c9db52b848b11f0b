"""The whole export: files, what goes beside the tensors, refusals, and what a failure leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from export_run import quiet

from bcquant.cli import main
from bcquant.errors import CheckpointError, ConfigError, ExportError
from bcquant.exporters.mobile import EXPORTER
from bcquant.exporters.mobile.job import MobileJob
from bcquant.exporters.mobile.options import MobileOptions
from bcquant.io.package import open_package
from bcquant.io.package_index import BLOB_KINDS, MODEL_KINDS, ORIGIN
from bcquant.models.source import ModelSource, open_model
from bcquant.spec.export_plan import ExportPlan
from bcquant.spec.quant_format import QuantFormat

Export = Callable[..., ExportPlan]
Make = Callable[..., Path]
Q_PROJ = "model.layers.1.self_attn.q_proj"


# ---- files ----


def test_the_plan_knows_the_size_of_the_file_and_of_every_tensor(
    tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    plan = export(make_quantized(tmp_path / "m"), tmp_path / "m.bcq")
    assert plan.files == (("model.bcq", (tmp_path / "m.bcq").stat().st_size),)
    with open_package(tmp_path / "m.bcq") as package:
        sizes = {section.name: section.num_bytes for section in package.sections}
    for tensor in plan.tensors:
        suffix = "" if tensor.name.endswith((".weight", ".bias")) else ".weight"
        assert sizes[tensor.name + suffix] == tensor.num_bytes
    stored = {tensor.name: tensor.stored_as for tensor in plan.tensors}
    assert stored[Q_PROJ] == "4-bit, groups of 32" and stored["lm_head.weight"] == "F16"


def test_a_plan_reads_no_tensor(tmp_path: Path, make_quantized: Make) -> None:
    with open_model(make_quantized(tmp_path / "m")) as source:
        for reads in ("weight", "quantized", "raw"):
            setattr(source, reads, None)
        plan = EXPORTER.prepare(source, MobileOptions()).plan()
    assert len(plan.tensors) == 21 and not plan.lossy


def test_the_same_checkpoint_gives_the_same_bytes_anywhere(
    tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        source = make_quantized(tmp_path / place / "m")
        export(source, tmp_path / place / "m.bcq", split_mb=1)
    first, second = ((tmp_path / p / "m.bcq").read_bytes() for p in "ab")
    assert first == second


LARGE = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 16}


def test_shards_are_no_larger_than_asked_and_hold_the_same(
    tmp_path: Path, export: Export, make_float: Make
) -> None:
    source = make_float(tmp_path / "m", **LARGE)
    whole = export(source, tmp_path / "m.bcq")
    assert len(whole.files) == 1
    plan = export(source, tmp_path / "s.bcq", split_mb=1)
    names = [name for name, _ in plan.files]
    assert len(names) > 2 and names[1] == f"model-00002-of-{len(names):05d}.bcq"
    for name, size in plan.files:
        assert (tmp_path / name.replace("model", "s")).stat().st_size == size <= 1_000_000
    assert not (tmp_path / "s.bcq").exists()
    first = tmp_path / names[0].replace("model", "s")
    with open_package(first) as package, open_package(tmp_path / "m.bcq") as one:
        package.verify()
        assert [s.sha256 for s in package.sections] == [s.sha256 for s in one.sections]


def test_the_index_and_blobs_lie_where_the_format_says(
    tmp_path: Path, export: Export, make_float: Make
) -> None:
    export(make_float(tmp_path / "m"), tmp_path / "m.bcq")
    data = (tmp_path / "m.bcq").read_bytes()
    assert data[:8].hex() == "894243510d0a1a0a" and int.from_bytes(data[40:48], "little") == len(
        data
    )
    count = int.from_bytes(data[256:260], "little")
    for row in range(count):
        at = 264 + 64 * row
        kind = int.from_bytes(data[at : at + 2], "little")
        offset = int.from_bytes(data[at + 8 : at + 16], "little")
        assert offset % (16384 if kind in BLOB_KINDS else 64) == 0
        assert (data[offset : offset + 4] == b"BCQW") == (kind in BLOB_KINDS)


def test_a_tensor_that_no_shard_holds_is_refused(tmp_path: Path, make_float: Make) -> None:
    source = make_float(tmp_path / "m", **{**LARGE, "intermediate_size": 4096})
    with open_model(source) as opened:
        plan = EXPORTER.prepare(opened, MobileOptions(split_mb=1)).plan()
    assert len(plan.refusals) == 1
    assert "alone makes a file of 3 MB; give --split-mb 3 or more" in plan.refusals[0]


def test_a_long_index_may_leave_the_first_shard_to_itself(
    tmp_path: Path, export: Export, make_float: Make
) -> None:
    """26 layers make an index of more than a page; behind it the embedding ends above 2 MB."""
    shape = {"num_hidden_layers": 26, "vocab_size": 30880, "hidden_size": 16, "head_dim": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 16}
    source = make_float(tmp_path / "m", "qwen3", **shape, **heads)
    export(source, tmp_path / "m.bcq", split_mb=2)
    files = sorted(tmp_path.glob("m-*.bcq"))
    with open_package(files[0]) as package:
        package.verify()
        assert package.sections[0].shard == 1 and package.sections[1].shard == 1
        index = 136 + 64 * len(package.sections)
    assert index > 16384 and files[0].stat().st_size == 128 + index


# ---- what goes beside the tensors ----


def test_a_context_is_declared(tmp_path: Path, export: Export, make_float: Make) -> None:
    source = make_float(tmp_path / "m")
    export(source, tmp_path / "m.bcq", context=100)
    with open_package(tmp_path / "m.bcq") as package:
        assert package.model.max_positions == 100
    with open_model(source) as opened, pytest.raises(ConfigError, match="256 tokens at most"):
        EXPORTER.prepare(opened, MobileOptions(context=257))


def test_the_origin_names_the_sources_files(
    tmp_path: Path, export: Export, make_float: Make
) -> None:
    source = make_float(tmp_path / "m")
    export(source, tmp_path / "m.bcq")
    with open_package(tmp_path / "m.bcq") as package:
        origin = package.json(ORIGIN)
    assert origin is not None and str(tmp_path) not in json.dumps(origin)
    assert (origin["exporter"], origin["source"]["family"]) == ("mobile", "llama")
    for file in origin["source"]["files"]:
        data = (source / file["name"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
    assert [f["name"] for f in origin["source"]["files"]] == ["config.json", "model.safetensors"]


def test_a_token_that_names_nothing_is_left_out_with_a_note(
    tmp_path: Path, export: Export, make_float: Make
) -> None:
    source = make_float(tmp_path / "m", pad_token_id=96, eos_token_id=[2, 500])
    plan = export(source, tmp_path / "m.bcq")
    assert "the padding token 96 is not in the vocabulary of 96, so it is left out" in plan.notes
    with open_package(tmp_path / "m.bcq") as package:
        assert (package.model.pad_id, package.model.eos_ids) == (None, (2,))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ({"num_attention_heads": 8}, "head_dim is 8; the kernels need a multiple of 16"),
        ({"eos_token_id": list(range(9))}, "it has 9 end tokens; 8 at most have a place"),
        ({"rms_norm_eps": 1e-60}, "rms_norm_eps is 0.0; a float32 above 0 is needed"),
    ],
)
def test_a_model_that_no_package_holds_is_refused(
    make: dict[str, Any], message: str, tmp_path: Path, make_float: Make
) -> None:
    with open_model(make_float(tmp_path / "m", **make)) as source:
        plan = EXPORTER.prepare(source, MobileOptions()).plan()
    assert len(plan.refusals) == 1 and message in plan.refusals[0]


def test_groups_that_no_kernel_reads_are_refused(tmp_path: Path, make_quantized: Make) -> None:
    with open_model(make_quantized(tmp_path / "m", QuantFormat(4, 16))) as source:
        plan = EXPORTER.prepare(source, MobileOptions()).plan()
    assert "has group size 16; the kernels need a multiple of 32" in plan.refusals[0]


def test_writing_before_validating_is_refused(tmp_path: Path, make_float: Make) -> None:
    with open_model(make_float(tmp_path / "m")) as source:
        job = MobileJob(source, MobileOptions())
        with pytest.raises(ExportError, match="after it was validated"):
            job.write(tmp_path / "m.bcq", quiet)


# ---- failures ----


def validated(source: ModelSource, **options: Any) -> MobileJob:
    job = MobileJob(source, MobileOptions(**options))
    job.validate(quiet)
    return job


def test_a_source_that_shrinks_meanwhile_leaves_nothing(tmp_path: Path, make_float: Make) -> None:
    folder = make_float(tmp_path / "m", **LARGE)
    with open_model(folder) as source:
        job = validated(source, split_mb=1)
        os.truncate(folder / "model.safetensors", 2_000_000)
        with pytest.raises(CheckpointError, match="shrank"):
            job.write(tmp_path / "out" / "m.bcq", quiet)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("good_calls", [0, 1, 3])
def test_a_disk_that_fails_at_any_time_leaves_nothing(
    good_calls: int, call: str, tmp_path: Path, make_float: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(os, call), []

    def fail_later(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > good_calls:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **kwargs)

    with open_model(make_float(tmp_path / "m", **LARGE)) as source:
        job = validated(source, split_mb=1)
        monkeypatch.setattr(os, call, fail_later)
        with pytest.raises(ExportError, match="input/output error; check the disk"):
            job.write(tmp_path / "out" / "m.bcq", quiet)
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_visible_until_the_first_shard_appears_last(
    tmp_path: Path, make_float: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    real = os.replace

    def watched(source: Any, target: Any) -> None:
        shown.append(Path(target).name)
        real(source, target)

    with open_model(make_float(tmp_path / "m", **LARGE)) as source:
        job = validated(source, split_mb=1)
        monkeypatch.setattr(os, "replace", watched)
        job.write(tmp_path / "out" / "m.bcq", lambda *a: shown.append("section"))
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert shown[-len(files) :] == files[::-1] and shown[-len(files) - 1] == "section"


@pytest.mark.parametrize("split_mb", [None, 1])
def test_nothing_is_replaced(split_mb: int | None, tmp_path: Path, make_float: Make) -> None:
    with open_model(make_float(tmp_path / "m", **LARGE)) as source:
        job = validated(source, split_mb=split_mb)
        name = job.plan().files[-1][0].replace("model", "m")
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(ExportError, match=f"{name}: exists already"):
            job.write(tmp_path / "m.bcq", quiet)
        assert (tmp_path / name).read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["m", name])


# ---- the verb ----


def run(*argv: Any) -> int:
    return main(["export", "mobile", *map(str, argv)])


def test_the_verb_writes_a_package(
    tmp_path: Path, make_quantized: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = make_quantized(tmp_path / "m"), tmp_path / "m.bcq"
    assert run(source, "-o", out) == 0
    assert "4-bit, groups of 32" in capsys.readouterr().out
    with open_package(out) as package:
        package.verify()
        assert set(MODEL_KINDS) >= {s.kind for s in package.sections if s.layer is None}
    assert run(source, "-o", out) == 2
    assert f"{out}: exists already" in capsys.readouterr().err


def test_the_verb_asks_before_it_changes_weights(
    tmp_path: Path, make_float: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = make_float(tmp_path / "m", "baichuan2"), tmp_path / "m.bcq"
    assert run(source, "-o", out) == 2
    assert "1 of 21 tensors would change, most of all lm_head.weight" in capsys.readouterr().err
    assert not out.exists()
    assert run(source, "-o", out, "--allow-lossy") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split-mb", 0], "--split-mb is 0; at least 1 is needed"),
        (["--context", -1], "--context is -1; at least 1 is needed"),
        (["--context", 999], "the model was made for 256 tokens at most"),
        (["--certificate", "nowhere.json"], "nowhere.json: the file does not exist"),
    ],
)
def test_wrong_flags_are_refused(
    flags: list[Any], message: str, tmp_path: Path, make_float: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(make_float(tmp_path / "m"), "-o", tmp_path / "m.bcq", *flags) == 2
    assert message in capsys.readouterr().err


def test_the_default_name(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    assert EXPORTER.default_out(tmp_path / "x.gguf") == Path("x.bcq")
    assert EXPORTER.default_out(tmp_path) == Path(f"{tmp_path.name}.bcq")
