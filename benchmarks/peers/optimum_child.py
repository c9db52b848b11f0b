"""optimum-onnx's export of a float folder with its cache, as a process of its own: SOURCE OUT."""

from __future__ import annotations

import sys

from optimum.exporters.onnx import main_export


def main() -> None:
    main_export(sys.argv[1], sys.argv[2], task="text-generation-with-past")


if __name__ == "__main__":
    main()
