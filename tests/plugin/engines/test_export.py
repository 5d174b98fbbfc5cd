"""Exports: kept where a folder for them is named, used by every engine of the same weights, made again when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plugin.engines import export
from plugin.engines.engine_cache import CannotWrite, build_once
from plugin.engines.export import exported_onnx, optimized_onnx
from plugin.families import family_of
from plugin.families.base import Family


@pytest.fixture
def family(flux) -> Family:
    return family_of(flux.transformer)


@pytest.fixture
def exports(monkeypatch) -> list[Path]:
    """The files that are exported from now on; a few bytes stand in for each."""
    written: list[Path] = []

    def write(family: Family, stack: torch.nn.Module, path: Path) -> None:
        path.write_bytes(b"graph")
        path.with_name("model.onnx.data").write_bytes(b"weights")
        written.append(path)

    monkeypatch.setattr(export, "export_onnx", write)
    return written


def test_nothing_is_kept_unless_a_folder_is_named(family, exports, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_TAYLORSEER_EXPORTS")
    path = exported_onnx(family, family.export_stack(), tmp_path)
    assert path == exports[0] == tmp_path / "model.onnx"
    assert {each.name for each in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}


def test_equal_stacks_are_exported_once(family, make_flux, exports, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_TAYLORSEER_EXPORTS", str(tmp_path / "kept"))
    monkeypatch.setattr(export, "_optimize", lambda exported, optimized, device: optimized.write_bytes(b""))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    first = exported_onnx(family, family.export_stack(), scratch)
    assert first.parent.parent == tmp_path / "kept"
    assert first.with_name("model.onnx.data").read_bytes() == b"weights"
    again = family_of(make_flux().transformer)
    assert exported_onnx(again, again.export_stack(), scratch) == first
    optimized_onnx(again, tmp_path / "cache")
    assert len(exports) == 1
    assert not list(scratch.iterdir())

    half = family_of(make_flux(dtype=torch.float16).transformer)
    assert exported_onnx(half, half.export_stack(), scratch) != first
    assert len(exports) == 2


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "sha256.json"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"gr")])
def test_a_damaged_export_is_made_again(family, exports, tmp_path, monkeypatch, name, damage):
    monkeypatch.setenv("TRITON_TAYLORSEER_EXPORTS", str(tmp_path / "kept"))
    path = exported_onnx(family, family.export_stack(), tmp_path)
    damage(path.with_name(name))
    assert exported_onnx(family, family.export_stack(), tmp_path) == path
    assert len(exports) == 2
    assert [path.with_name(each).read_bytes() for each in ("model.onnx", "model.onnx.data")] == [b"graph", b"weights"]


def test_a_folder_for_exports_that_cannot_be_written_is_named(family, exports, tmp_path, monkeypatch):
    """Once, although the export is part of another build that cannot be done."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_TAYLORSEER_EXPORTS", str(tmp_path / "file"))
    sentence = rf"^no engine can be built in {tmp_path}/file \(.*\): .* another folder with TRITON_TAYLORSEER_EXPORTS$"
    with pytest.raises(CannotWrite, match=sentence):
        optimized_onnx(family, tmp_path / "cache")
    with pytest.raises(CannotWrite, match=r"another folder with TRITON_TAYLORSEER_CACHE$"):
        build_once(tmp_path / "file" / "engine", lambda: False, lambda scratch: None)
    assert exports == []


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage inside": lambda path: path.write_bytes(_with_garbage(path.read_bytes())),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def _with_garbage(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(each ^ 0xFF for each in content[middle : middle + 64]) + content[middle + 64 :]


@pytest.mark.compiles
def test_a_damaged_engine_is_said_set_aside_and_built_again(family, engine_cache, tmp_path, caplog):
    """ONNX Runtime would refuse it, or compute something else."""
    whole = optimized_onnx(family, tmp_path)
    names = {each.name for each in whole.parent.iterdir()}
    assert "optimized.bin" in names
    expected = {name: (whole.parent / name).read_bytes() for name in names - {"optimized.onnx"}}
    for name in sorted(names):
        for damage, apply in DAMAGES.items():
            apply(whole.parent / name)
            caplog.clear()
            assert optimized_onnx(family, tmp_path) == whole
            assert "is damaged" in caplog.text, (name, damage)
            assert f"set aside as {whole.parent.name}.damaged and built again" in caplog.text
            for each, content in expected.items():
                if each != "sha256.json":
                    assert (whole.parent / each).read_bytes() == content, (name, damage)
            caplog.clear()
            optimized_onnx(family, tmp_path)
            assert not caplog.text, "a whole one is used as it is"
    folders = sorted(each.name for each in whole.parent.parent.iterdir() if each.is_dir())
    assert folders == [whole.parent.name, f"{whole.parent.name}.damaged"], "one is kept aside, and no scratch"
