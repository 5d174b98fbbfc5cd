"""The key that model control takes: how it is made, checked and handed to tritonserver."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.ops.control import InvalidKey, check_key, grpc_headers, http_headers, new_key
from plugin.ops.guard import GuardConfig
from plugin.ops.installation import Installation
from plugin.ops.server import ServerConfig, ServerError, check, command


def test_new_keys_differ_and_are_valid():
    keys = {new_key() for _ in range(10)}
    assert len(keys) == 10
    for key in keys:
        check_key(key)


@pytest.mark.parametrize("key", ["", "fifteen-letters", "sixteen letters!", "abcdefghijklmnop=", "abcdefghijklmnop\n"])
def test_a_key_that_is_too_short_or_would_be_read_otherwise_is_refused_without_being_shown(key, tmp_path):
    range_ = "must be 16 or more letters, digits, - or _"
    with pytest.raises(InvalidKey, match=f"TAYLORSEER_CONTROL_KEY has {len(key)} characters, {range_}") as caught:
        check_key(key)
    assert not key or key not in str(caught.value)
    with pytest.raises(ServerError, match="TAYLORSEER_CONTROL_KEY"):
        check(ServerConfig(tmp_path, control_key=key))


def test_the_key_is_on_no_command_line_and_in_no_text(tmp_path):
    key = "0123456789abcdef"
    config = ServerConfig(tmp_path, control_key=key)
    arguments, _ = command(config, Installation(Path("t"), None, {}), tmp_path)
    assert key not in " ".join(arguments)
    assert key not in repr(config)
    assert key not in repr(config.guard(tmp_path))
    assert GuardConfig.from_json(config.guard(tmp_path).to_json()).control_key == key


def test_both_protocols_have_a_header_for_the_key():
    ((header, value),) = http_headers("0123456789abcdef").items()
    assert grpc_headers("0123456789abcdef") == {f"triton-grpc-protocol-{header}": value}


def test_each_server_has_a_key_of_its_own(tmp_path):
    assert ServerConfig(tmp_path).control_key != ServerConfig(tmp_path).control_key
