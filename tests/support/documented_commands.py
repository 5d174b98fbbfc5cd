"""The commands in README and docs: which of them `tests/e2e/test_docs.py` runs, and why the others are not run."""

from __future__ import annotations

import re

from tests.support.documents import WITH_COMMANDS, Block, blocks_of

BLOCKS = [block for path in WITH_COMMANDS for block in blocks_of(path)]
SHELL = [block for block in BLOCKS if block.language == "bash"]

# Commands that `tests/e2e/test_docs.py` runs, in the order of their block.
RUN = [
    r"(\.venv/bin/)?triton-taylorseer (generate|plan|health|front)\b",
    r"curl (-s |-X POST )?localhost:(8000|8002|9000)\b",
    r"(printf|echo) '",
    r"python3 -c '",
    r'export PATH="\$HOME/',
]
# Commands that are not run here, with the reason; these come first.
NOT_RUN = {
    r"make ": "installs the environment that this test runs in; .ci/run begins with `make test` in a fresh clone",
    r"(\.venv/bin/)?pytest ": "is part of the suite itself",
    r"(TAYLORSEER_EMOJI_ENGINE=\S+ )?triton-taylorseer serve": "stays in the foreground: tests/e2e/test_faults.py "
    "starts servers by it",
    r"(\w+=\S+ )*triton-taylorseer serve --model flux_dev": "needs a GPU and a download",
    r"triton-taylorseer front --model": "stays in the foreground: tests/clients/test_other_clients.py starts fronts so",
    r"triton-taylorseer build": "needs a GPU, or compiles for minutes: tests/plugin/engines/tensorrt/",
    r"triton-taylorseer plan --memory": "takes half a minute: tests/plugin/cli/test_memory_tables.py",
    r"triton-taylorseer tune": "takes minutes, writes beside the weights: tests/plugin/building/test_tuning.py",
    r"triton-taylorseer evaluate": "takes minutes: tests/plugin/building/test_evaluate.py",
    r"\S*triton-taylorseer generate .*--model (wan2_1_t2v|dit_xl_2_256)": "needs weights from a hub: "
    "tests/e2e/test_families.py asks tiny models so",
    r"curl -s (-X DELETE )?localhost:9000/v1/videos": "needs a model of videos: tests/clients/test_videos.py",
    r"\.venv/bin/python -m benchmarks\.load": "takes eight minutes, and downloads: tests/benchmarks/test_load.py",
    r"perf_analyzer ": "takes a minute and more; tests/benchmarks/test_load.py measures with it where it is installed",
    r"aiperf ": "takes a minute and needs an environment of its own",
    r"(python3 -m venv out/analyzer|mkdir -p out/model_analyzer|out/analyzer/)": "is a download, and takes minutes: "
    "tests/deploy/test_model_analyzer.py starts the server that it starts",
    r"(pip download|unzip|mkdir -p lib|cp \.venv|LD_LIBRARY_PATH=lib|python3 -m venv aiperf-venv)": "is a download of "
    "100 MB and more",
    r"pip install 'triton-taylorseer\[tracing\]'": "is part of `make test`'s own environment",
    r"OTEL_EXPORTER_OTLP_ENDPOINT=": "stays in the foreground, and needs a collector: tests/e2e/test_tracing.py",
    r"(python3 -m venv audit|python3 -c \"import tomllib|audit/bin/)": "asks a service of advisories over the network",
    r"(helm|kubectl) ": "needs a cluster: tests/deploy/ renders and checks what they install",
    r"((HF_TOKEN|MODEL)=\S+ )*(SIZES=\S+ )?docker ": "there is no Docker here: tests/deploy/test_containers.py",
}


def reason_of(command: str) -> str | None:
    """Why a command is not run, or None where it is."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command)), None)


def is_run(command: str) -> bool:
    return reason_of(command) is None and any(re.match(pattern, command) for pattern in RUN)


def ids(block: Block) -> str:
    return block.place
