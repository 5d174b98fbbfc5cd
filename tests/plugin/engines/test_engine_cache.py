"""The engine cache: a file or folder is written as a whole or not at all."""

from __future__ import annotations

import pytest

from plugin.engines.engine_cache import replace_file


def test_a_file_that_cannot_be_replaced_leaves_no_other(tmp_path):
    (tmp_path / "runtime.cache").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(tmp_path / "runtime.cache", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["runtime.cache"]
