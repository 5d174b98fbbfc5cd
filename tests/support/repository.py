"""Builds a model repository for tests: the shipped models, and copies of them that fail on purpose."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.paths import REPOSITORY

SHIPPED = REPOSITORY

FAULTY_MODEL = '''
"""The emoji model with faults: pictures 40 high break the engine, seed 666 breaks the response thread."""

from triton_taylorseer import StreamModel
from tests.support.engines import GuardedEngine


def break_at_a_height_of_40(inputs):
    if inputs["hidden_states"].shape[1] == 5 * 8:
        raise RuntimeError("the engine broke on purpose")


class TritonPythonModel(StreamModel):
    def load_host(self):
        host = super().load_host()
        host.engines["transformer"] = GuardedEngine(host.engines["transformer"], break_at_a_height_of_40)
        return host

    def send(self, job):
        if job.request.seed == 666:
            raise RuntimeError("the response thread broke on purpose")
        super().send(job)
'''


def make_repository(folder: Path) -> Path:
    """A repository with `emoji` as shipped and `faulty`, which has 2 slots, room for 1 to wait, and faults."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("emoji", "emoji_stream"):
        (folder / name).symlink_to(SHIPPED / name)
    for suffix in ("", "_stream"):
        _copy(folder, "emoji" + suffix, "faulty" + suffix)
    (folder / "faulty_stream/1/model.py").write_text(FAULTY_MODEL)
    _set_parameters(folder / "faulty_stream/config.pbtxt", max_in_flight="2", max_waiting="1")
    return folder


def copy_model(folder: Path, name: str, **parameters: str) -> None:
    """A copy of the shipped `emoji` under another name, with some parameters of its own."""
    for suffix in ("", "_stream"):
        _copy(folder, "emoji" + suffix, name + suffix)
    path = folder / f"{name}_stream/config.pbtxt"
    present = {key for key in parameters if f'key: "{key}"' in path.read_text()}
    _set_parameters(path, **{key: parameters[key] for key in present}, pipeline=str(SHIPPED / "emoji/1/pipeline"))
    with path.open("a") as file:
        for key in parameters.keys() - present:
            file.write(f'parameters {{ key: "{key}" value: {{ string_value: "{parameters[key]}" }} }}\n')


def _copy(folder: Path, source: str, target: str) -> None:
    (folder / target / "1").mkdir(parents=True)
    (folder / target / "1/model.py").write_text((SHIPPED / source / "1/model.py").read_text())
    config = (SHIPPED / source / "config.pbtxt").read_text().replace(f'name: "{source}"', f'name: "{target}"')
    (folder / target / "config.pbtxt").write_text(config)


def _set_parameters(path: Path, **parameters: str) -> None:
    text = path.read_text()
    for name, value in parameters.items():
        text, count = re.subn(rf'(key: "{name}" value: {{ string_value: )"[^"]*"', rf'\g<1>"{value}"', text)
        assert count == 1, name
    path.write_text(text)


def write_pair(repository: Path, name: str, parameters: dict[str, str]) -> None:
    """Writes the two models of a served pipeline with these parameters; plain calls go one at a time."""
    for source, target in (("emoji", name), ("emoji_stream", f"{name}_stream")):
        (repository / target / "1").mkdir(parents=True)
        (repository / target / "1/model.py").write_text((SHIPPED / source / "1/model.py").read_text())
        lines = [f'name: "{target}"', 'backend: "python"', "instance_group [ { kind: KIND_CPU, count: 1 } ]"]
        if target != name:
            lines += [
                f'parameters {{ key: "{key}" value: {{ string_value: "{parameters[key]}" }} }}' for key in parameters
            ]
        (repository / target / "config.pbtxt").write_text("\n".join(lines))
