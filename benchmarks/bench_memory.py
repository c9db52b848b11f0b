"""Peak resident memory and seconds of `bcquant gptq` on checkpoints of Baichuan-7B's shape.

    python benchmarks/bench_memory.py --layers 8 --calib-tokens 16384 [--folder DIR] [--json FILE]

Makes a checkpoint with random bfloat16 weights (Baichuan-7B's names and shapes, sharded), runs the
quantizer in a process of its own and samples that process's high-water mark (VmHWM of
/proc/PID/status: anonymous and file-backed pages together) each time the journal says that a layer
is done. The tokenizer is the demo model's, whose ids fit the vocabulary.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bcquant.io.atomic import atomic_write_json
from bcquant.io.demo_model import fetch_demo_model
from bcquant.io.writer import RawTensor, TensorSpec, write_sharded
from bcquant.runtime.tokenizer_export import export_tokenizer

HIDDEN, INNER, VOCAB = 4096, 11008, 64000
RESULTS = Path(__file__).parent / "results"
# The command line has no switch for it: a third of the time of a layer at few tokens.
WITHOUT_RETARGET = """
import sys
from pathlib import Path
from bcquant.pipeline.quantize import quantize_model
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import CalibOptions, Recipe, SolveOptions
calib = CalibOptions(num_tokens=int(sys.argv[3]))
solve = SolveOptions(refine_sweeps=0)
recipe = Recipe(format=QuantFormat(4, 128), solve=solve, calib=calib, retarget_strengths=())
quantize_model(sys.argv[1], Path(sys.argv[2]), recipe)
"""


def make_checkpoint(folder: Path, num_layers: int) -> None:
    """A random model of Baichuan-7B's shape with `num_layers` layers."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.W_pack.weight": (3 * HIDDEN, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (HIDDEN, INNER),
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
        }
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    specs = [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]
    folder.mkdir(parents=True)
    write_sharded(folder, specs, lambda name: _random(shapes[name]), 2 << 30, {"format": "pt"})
    config = {
        "architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan", "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": num_layers,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    atomic_write_json(folder / "config.json", config)
    export_tokenizer(fetch_demo_model(), folder)


def _random(shape: tuple[int, ...]) -> RawTensor:
    if len(shape) == 1:
        values = torch.ones(shape, dtype=torch.bfloat16)
    else:
        values = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)
    return RawTensor("BF16", shape, values.view(torch.uint16).numpy())


def measure(folder: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run the quantizer; high-water mark in MB at each layer's end and at the run's."""
    command = [
        sys.executable, "-m", "bcquant", "gptq", str(folder), "-o", str(out), "--bits", "4",
        "--group-size", "128", "--calib-tokens", str(args.calib_tokens), "--json",
    ]  # fmt: skip
    if args.no_retarget:
        command = [sys.executable, "-c", WITHOUT_RETARGET, str(folder), str(out)]
        command.append(str(args.calib_tokens))
    start = time.monotonic()
    journal = out.with_name(out.name + ".work") / "journal.jsonl"
    curve: list[dict[str, float]] = []
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, _high_water_mb(process.pid))
            done = journal.read_bytes().count(b'{"layers_done"') if journal.exists() else 0
            if done > len(curve):
                seconds = round(time.monotonic() - start, 1)
                curve.append({"layers": done, "peak_mb": peak, "seconds": seconds})
                print(curve[-1], file=sys.stderr, flush=True)
            time.sleep(0.5)
        if process.returncode:
            raise SystemExit(process.returncode)
    return {
        "command": " ".join(command[2:]), "layers": args.layers, "calib_tokens": args.calib_tokens,
        "retarget": not args.no_retarget,
        "peak_mb": peak, "seconds": round(time.monotonic() - start, 1), "curve": curve,
    }  # fmt: skip


def _high_water_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith("VmHWM")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--calib-tokens", type=int, default=16384)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bcquant-7b-shape"))
    parser.add_argument("--no-retarget", action="store_true", help="RTN and GPTQ candidates only")
    parser.add_argument("--keep-source", action="store_true", help="use the checkpoint in --folder")
    parser.add_argument("--json", type=Path, default=RESULTS / "memory_7b.json")
    args = parser.parse_args()
    source, out = args.folder / f"source{args.layers}", args.folder / f"out{args.layers}"
    if not args.keep_source:
        shutil.rmtree(args.folder, ignore_errors=True)
        make_checkpoint(source, args.layers)
    row = measure(source, out, args)
    rows = json.loads(args.json.read_text())["rows"] if args.json.exists() else []
    args.json.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(args.json, {"rows": [*rows, row]})
    print(json.dumps(row))
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
