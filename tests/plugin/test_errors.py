"""What clients read of an error: bounded, UTF-8, without the server's paths."""

from __future__ import annotations

import pytest

from plugin.errors import MAX_MESSAGE_BYTES, InvalidRequest, message_of, shortened


def test_a_long_value_loses_its_middle_and_keeps_field_and_range():
    message = message_of(InvalidRequest(f"cache_schedule is {'9' * 100_000!r}, must be one of: interval, even"))
    assert len(message.encode()) <= MAX_MESSAGE_BYTES
    assert message.startswith("cache_schedule is '999")
    assert message.endswith("999', must be one of: interval, even")
    assert " […] " in message


@pytest.mark.parametrize("text", ["é" * 5000, "🍎" * 5000, "\ud800" * 5000, "a\ud800"])
def test_what_is_sent_is_utf_8(text):
    assert len(shortened(text).encode("utf-8")) <= MAX_MESSAGE_BYTES


def test_an_unexpected_error_is_named_and_tells_no_path():
    error = RuntimeError(
        "cannot open /srv/models/secret/1/pipeline/weights.bin or ./x/y: gone\n\nAt:\n  /srv/x.py(3): f"
    )
    assert message_of(error) == "RuntimeError: cannot open …weights.bin or ./x/y: gone"


def test_a_short_message_is_left_as_it_is():
    assert message_of(InvalidRequest("height is 7, must be 8")) == "height is 7, must be 8"
