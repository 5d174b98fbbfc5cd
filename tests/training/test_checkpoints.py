"""Checkpoints: small files, complete or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from training import checkpoints
from training.checkpoints import (
    MAX_FILE_BYTES,
    Checkpoint,
    last_checkpoint,
    of_prefix,
    optimizer_tensors,
    random_tensors,
    read_checkpoint,
    restore_optimizer,
    restore_random,
    with_prefix,
    write_checkpoint,
)

CPU = torch.device("cpu")


def some(step: int, count: int = 7) -> Checkpoint:
    tensors = {f"part.{i}": torch.full((2**16,), float(step * 100 + i)) for i in range(count)}  # 256 KiB each
    return Checkpoint(tensors | {"count": torch.tensor(step)}, {"step": step, "plan": {"minutes": 1.5}})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3, some(3), max_bytes=2**20)
    assert len(list(path.glob("*.safetensors"))) > 1
    read = read_checkpoint(path)
    assert read.values == some(3).values
    assert read.tensors.keys() == some(3).tensors.keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in some(3).tensors.items())


@pytest.mark.parametrize("max_bytes", [2**19, 2**20, 5 * 2**20])
def test_no_file_is_larger_than_allowed(tmp_path: Path, max_bytes: int) -> None:
    path = write_checkpoint(tmp_path, 1, some(1, 40), max_bytes)
    sizes = [each.stat().st_size for each in path.iterdir()]
    assert max(sizes) <= max_bytes
    assert sum(sizes) >= 40 * 2**18


def test_names_and_shapes_of_many_small_tensors_fit_too(tmp_path: Path) -> None:
    tensors = {f"a_module.with.a_long_name.{i:05d}.{'x' * 60}": torch.ones(1) for i in range(9_000)}
    limit = checkpoints._HEADER_BYTES + 2**12
    path = write_checkpoint(tmp_path, 1, Checkpoint(tensors, {}), limit)
    assert max(each.stat().st_size for each in path.iterdir()) <= limit
    assert read_checkpoint(path).tensors.keys() == tensors.keys()


def test_the_limit_is_16_mib() -> None:
    assert MAX_FILE_BYTES == 16_777_216


def test_a_tensor_larger_than_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"part.0 has 262144 bytes, a file of a checkpoint holds 131072"):
        write_checkpoint(tmp_path, 1, some(1), max_bytes=2**18)
    assert last_checkpoint(tmp_path) is None


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    weight = torch.arange(4.0)
    path = write_checkpoint(tmp_path, 1, Checkpoint({"one": weight, "tied": weight, "rows": weight[::2]}, {}))
    read = read_checkpoint(path).tensors
    assert torch.equal(read["tied"], weight)
    assert read["rows"].tolist() == [0.0, 2.0]


def test_a_later_checkpoint_takes_the_earlier_ones_place(tmp_path: Path) -> None:
    for step in (9, 10, 1000):
        write_checkpoint(tmp_path, step, some(step))
    assert last_checkpoint(tmp_path) == tmp_path / "step_00001000"
    assert [each.name for each in tmp_path.iterdir()] == ["step_00001000"]


@pytest.mark.parametrize("survivors", [0, 1, 2])
def test_an_interrupted_write_keeps_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survivors: int
) -> None:
    write_checkpoint(tmp_path, 1, some(1), max_bytes=2**20)
    save_file, written = checkpoints.save_file, []

    def interrupted(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if len(written) == survivors:
            path.write_bytes(b"half of")
            raise KeyboardInterrupt
        written.append(path)
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, 2, some(2), max_bytes=2**20)
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert read_checkpoint(last).values == some(1).values
    assert torch.equal(read_checkpoint(last).tensors["part.3"], some(1).tensors["part.3"])

    assert last_checkpoint(write_checkpoint(tmp_path, 2, some(2)).parent) == tmp_path / "step_00000002"
    assert [each.name for each in tmp_path.iterdir()] == ["step_00000002"]  # what was left half done is gone


def test_a_crash_before_the_earlier_one_goes_leaves_the_later_one_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, 1, some(1))

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 2, some(2))
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert read_checkpoint(last).values["step"] == 2


def test_prefixes_come_off_again() -> None:
    tensors = with_prefix("average", {"weight": torch.ones(1)}) | with_prefix("average_2", {"bias": torch.zeros(1)})
    assert of_prefix("average", tensors) == {"weight": torch.ones(1)}


def test_a_restored_optimizer_makes_the_same_step() -> None:
    def trained(steps: int) -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        for step in range(steps):
            descend(layer, optimizer, step)
        return layer, optimizer

    def descend(layer: nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        layer(torch.full((1, 3), 1.0 + step)).square().sum().backward()
        optimizer.step()

    whole, _ = trained(5)
    layer, optimizer = trained(4)
    again = nn.Linear(3, 2)
    again.load_state_dict(layer.state_dict())
    fresh = torch.optim.AdamW(again.parameters(), lr=0.1)
    restore_optimizer(fresh, optimizer_tensors(optimizer))
    descend(again, fresh, 4)
    assert torch.equal(again.weight, whole.weight)


def test_random_numbers_go_on_where_they_were() -> None:
    torch.manual_seed(5)
    states = random_tensors(CPU)
    expected = torch.rand(3)
    torch.manual_seed(6)
    restore_random(CPU, states)
    assert torch.equal(torch.rand(3), expected)
