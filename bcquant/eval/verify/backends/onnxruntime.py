"""A folder with model.onnx in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcquant.errors import CheckpointError
from bcquant.eval.verify.backend import BackendKind, F32Array, require
from bcquant.eval.verify.backends._exact_graph import leave_rounding_out
from bcquant.io.mapped_file import MappedFile
from bcquant.runtime.token_backends import load_tokenizer_json

MODEL_FILE = "model.onnx"
PACKAGE = "onnxruntime"
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OrtBackend:
    """An open session; the folder's tokenizer.json is read by the `tokenizers` library.

    Attributes:
        vocab_size: columns of the logits.
    """

    def __init__(self, folder: Path, is_exact: bool = False) -> None:
        """Load the graph.

        Args:
            is_exact: compute every product in the type of the graph and round no activations,
                whatever the export asks for.
        Raises:
            CheckpointError: a file is missing or ONNX Runtime refuses the graph.
        """
        self._folder = folder
        self._is_exact = is_exact
        self._tokenizer = load_tokenizer_json(folder / "tokenizer.json").tokenizer
        self._session = self._load(leave_rounding_out if is_exact else None)
        self._caches = [
            (value.name, value.shape, _TYPES[value.type])
            for value in self._session.get_inputs()
            if value.name.startswith("past_key_values.")
        ]
        self.vocab_size = int(
            next(v for v in self._session.get_outputs() if v.name == "logits").shape[-1]
        )

    def encode(self, text: str) -> list[int]:
        """See `Backend.encode`."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def logits(self, ids: Sequence[int]) -> F32Array:
        """See `Backend.logits`."""
        return np.asarray(self._session.run(["logits"], self._feeds(ids))[0][0].astype(np.float32))

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """See `Backend.greedy`."""
        names = [value.name for value in self._session.get_outputs()]
        found: list[int] = []
        feeds = self._feeds(ids)
        while len(found) < num_tokens:
            values = dict(zip(names, self._session.run(None, feeds), strict=True))
            found.append(int(values["logits"][0, -1].argmax()))
            feeds = {
                "input_ids": np.array([found[-1:]], np.int64),
                "attention_mask": np.ones((1, len(ids) + len(found)), np.int64),
            }
            for name, _, _ in self._caches:
                feeds[name] = values[name.replace("past_key_values", "present")]
        return found

    def hidden(self, ids: Sequence[int]) -> list[F32Array]:
        """See `Backend.hidden`; the values `hidden.<i>` become outputs of a copy in memory."""
        names = [f"hidden.{i}" for i in range(len(self._caches) // 2)]
        found: list[str] = []

        def expose(model: Any) -> None:
            import onnx

            made = {output for node in model.graph.node for output in node.output}
            element = model.graph.output[0].type.tensor_type.elem_type
            for name in names:
                if name in made:
                    found.append(name)
                    model.graph.output.append(
                        onnx.helper.make_tensor_value_info(name, element, None)
                    )
            if self._is_exact:
                leave_rounding_out(model)

        session = self._load(expose)
        if len(found) != len(names):
            return []
        values = session.run(names, self._feeds(ids))
        return [value[0].astype(np.float32) for value in values]

    def close(self) -> None:
        """Drop the session."""
        self._session = None

    def _feeds(self, ids: Sequence[int]) -> dict[str, Any]:
        feeds: dict[str, Any] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
        }
        for name, shape, dtype in self._caches:
            feeds[name] = np.zeros((1, shape[1], 0, shape[3]), dtype)
        return feeds

    def _load(self, edit: Callable[[Any], None] | None) -> Any:
        """A session of the file, or of a copy of its graph that `edit` changed in memory."""
        ort = require("onnxruntime", PACKAGE)
        path = self._folder / MODEL_FILE
        with MappedFile(path):
            pass  # its own sentences for what is missing or empty
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        if self._is_exact:
            settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        model: str | bytes = str(path)
        if edit is not None:
            onnx = require("onnx", "onnx")
            proto = onnx.load(str(path), load_external_data=False)
            edit(proto)
            model = proto.SerializeToString()
            settings.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(self._folder)
            )
        try:
            return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common root below Exception
            said = " ".join(str(error).split())
            raise CheckpointError(f"{path}: ONNX Runtime cannot load it: {said}") from error


BACKEND = BackendKind(
    name="onnxruntime",
    package=PACKAGE,
    rank=2,
    accepts=lambda path: (path / MODEL_FILE).is_file(),
    open=lambda path, max_tokens: OrtBackend(path),
    open_exact=lambda path, max_tokens: OrtBackend(path, is_exact=True),
)
