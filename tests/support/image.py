"""What the container image is made from."""

from tests.support.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
