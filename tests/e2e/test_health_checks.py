"""The health checks of Dockerfile and compose file, run as they stand there but for the addresses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from typing import Any

import yaml

from plugin.ops.server import free_ports
from tests.support.front import running_front
from tests.support.paths import BIN, ROOT

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PATH = f"{BIN}:{os.environ['PATH']}"  # as in the image, where the environment comes first


# As Docker puts them into a container, with a port where nobody answers.
PROXIES = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
PROXIES |= dict.fromkeys(("no_proxy", "no_grpc_proxy"), "")


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **PROXIES, "PATH": PATH, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def of_the_image(grpc_url: str) -> list[str]:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (command,) = re.findall(r"^HEALTHCHECK .*\\\n\s+CMD (.*)$", dockerfile, re.MULTILINE)
    return ["/bin/sh", "-c", f"{command} --url {shlex.quote(grpc_url)}"]


def of_the_front(url: str) -> list[str]:
    kind, *command = SERVICES["front"]["healthcheck"]["test"]
    assert kind == "CMD"
    assert any("http://127.0.0.1:9000/" in each for each in command)
    return [each.replace("http://127.0.0.1:9000", url) for each in command]


def test_the_images_makes_a_picture_with_the_model_it_is_told(triton):
    before = triton.metrics()["taylorseer_requests_total ok"]
    checked = run(of_the_image(triton.grpc_url))
    assert checked.returncode == 0, checked.stderr
    assert triton.wait_until_idle()["taylorseer_requests_total ok"] == before + 1
    unknown = run(of_the_image(triton.grpc_url), TAYLORSEER_HEALTH_MODEL="unicorn")
    assert unknown.returncode == 1
    assert "unicorn" in unknown.stderr


def test_the_fronts_tells_whether_a_model_is_ready_behind_it(triton):
    (nobody,) = free_ports(1)
    with running_front(triton.grpc_url) as url:
        checked = run(of_the_front(url))
        assert checked.returncode == 0, checked.stderr
    with running_front(f"127.0.0.1:{nobody}") as url:
        checked = run(of_the_front(url))
        assert checked.returncode == 1
        assert "503" in checked.stderr


def test_grafanas_password_is_the_one_that_is_set_or_random():
    shell, option, script = SERVICES["grafana"]["entrypoint"]
    ends_with = "exec /run.sh"
    assert script.endswith(ends_with)
    # What the image's own script would be run with.
    script = script.removesuffix(ends_with).replace("$$", "$") + "env"

    def password(given: str) -> str:
        environment = run([shell, option, script], GRAFANA_PASSWORD=given).stdout
        assert "\nGRAFANA_PASSWORD=" not in f"\n{environment}"
        (found,) = re.findall(r"^GF_SECURITY_ADMIN_PASSWORD=(.*)$", environment, re.MULTILINE)
        return found

    assert password("a word of mine") == "a word of mine"
    first, second = password(""), password("")
    assert first != second
    assert len(first) == len(second) == 32
