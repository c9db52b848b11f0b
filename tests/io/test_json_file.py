from __future__ import annotations

import pytest

from bcquant.errors import CheckpointError
from bcquant.io import json_file
from bcquant.io.json_file import parse_json_object, read_json_object


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "an object is needed"),
        (b"null", "an object is needed"),
        (b'{"a": 1, "a": 1}', "'a' appears twice"),
        (b'{"x": {"a": 1, "a": 2}}', "'a' appears twice"),
        (b'{"\xff": 1}', "not UTF-8 at byte 2"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_parse_json_object_refuses(data, message):
    with pytest.raises(CheckpointError, match=f"here: .*{message}"):
        parse_json_object(data, "here")


def test_parse_json_object_accepts_a_byte_order_mark():
    assert parse_json_object(b'\xef\xbb\xbf{"a": [1]}', "here") == {"a": [1]}


def test_read_json_object_refuses_a_huge_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_file, "MAX_JSON_BYTES", 10)
    (tmp_path / "config.json").write_text('{"a": "0123456789"}')
    with pytest.raises(CheckpointError, match="at most 10 are read"):
        read_json_object(tmp_path / "config.json")
