"""The dispatcher: exit statuses, one-line errors, and a help that loads nothing heavy."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

import bcquant
from bcquant import cli
from bcquant.cli.verb import Verb
from bcquant.errors import CheckpointError

Run = Callable[[argparse.Namespace], int]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Replace every verb by one named `probe` that runs the given function."""

    def install(run: Run) -> None:
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--count", type=int, default=0)

        verb = Verb("probe", "try something", add_arguments, run, examples="bcquant probe")
        monkeypatch.setattr(cli, "verb_names", lambda: ["probe"])
        monkeypatch.setattr(cli.registry, "load", lambda *args: verb)

    return install


def raising(error: BaseException) -> Run:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_status_of_the_verb_is_the_exit_status(plant: Callable[[Run], None]) -> None:
    plant(lambda args: args.count)
    assert cli.main(["probe", "--count", "7"]) == 7


def test_bcquant_error_is_one_line_and_status_2(
    plant: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    plant(raising(CheckpointError("model.bin: is truncated;\n  download it again")))
    assert cli.main(["probe"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "bcquant: error: model.bin: is truncated; download it again\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "out/x"), "out/x: Permission denied"),
        (MemoryError(), "out of memory"),
    ],
)
def test_failure_of_the_device_is_one_line_and_status_2(
    plant: Callable[[Run], None],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    line: str,
) -> None:
    plant(raising(error))
    assert cli.main(["probe"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"bcquant: error: {line}")
    assert err.count("\n") == 1


def test_ctrl_c_is_one_line_and_status_130(
    plant: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    plant(raising(KeyboardInterrupt()))
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "bcquant: interrupted\n"


def test_sigint_ends_the_process_with_130_and_no_traceback() -> None:
    code = (
        "import signal, sys, time\n"
        "from bcquant import cli\n"
        "from bcquant.cli.verb import Verb\n"
        # a shell's background job, as CI may be one, ignores it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def run(args):\n"
        "    print('started', flush=True)\n"
        "    time.sleep(60)\n"
        "    return 0\n"
        "cli.verb_names = lambda: ['probe']\n"
        "cli.registry.load = lambda *a: Verb('probe', 'h', lambda p: None, run)\n"
        "sys.argv = ['bcquant', 'probe']\n"
        "cli.entry()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "bcquant: interrupted\n")


def test_closed_pipe_is_quiet() -> None:
    code = (
        "import sys\n"
        "from bcquant import cli\n"
        "from bcquant.cli.verb import Verb\n"
        "def run(args):\n"
        "    for i in range(10**6):\n"
        "        print('line', i)\n"
        "    return 0\n"
        "cli.verb_names = lambda: ['probe']\n"
        "cli.registry.load = lambda *a: Verb('probe', 'h', lambda p: None, run)\n"
        "sys.argv = ['bcquant', 'probe']\n"
        "cli.entry()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=30)
    assert (process.returncode, err) == (141, "")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["gptqq"], "did you mean 'gptq'?"),
        (["verb"], "'verb' is not a verb"),
        (["inspect"], "see `bcquant inspect --help`"),
        (["inspect", "x", "--jso"], "--jso"),
        (["--colour"], "--colour"),
    ],
)
def test_usage_error_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("bcquant: error: ")
    assert words in err
    assert err.count("\n") == 1


def test_no_arguments_print_the_help_and_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "verbs:" in capsys.readouterr().err


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"bcquant {bcquant.__version__}\n"


def test_help_lists_every_verb_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in cli.verb_names():
        assert f"  {name} " in out
    assert "examples:\n  bcquant demo\n" in out


@pytest.mark.parametrize("name", cli.verb_names())
def test_verb_help_has_examples(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: bcquant {name} ")
    assert f"examples:\n  bcquant {name}" in out


def test_help_imports_no_heavy_package() -> None:
    # Speed is not asserted; what makes `bcquant --help` slow is.
    code = (
        "import sys\n"
        "from bcquant.cli import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'tokenizers', 'safetensors', 'gguf'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
