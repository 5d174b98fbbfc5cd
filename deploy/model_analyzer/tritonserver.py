#!/usr/bin/env python3
"""The tritonserver of this environment as a program of its own, for Model Analyzer, which starts its server itself.

It is the one on PATH, as in Triton's containers, or else the one in the wheel, with the libraries and the Python
backend that it needs there. All arguments are handed on.
"""

import os
import sys

from plugin.ops.installation import ServerError, find_installation
from plugin.paths import python_path

try:
    found = find_installation()
except ServerError as error:
    sys.exit(str(error))
backends = [f"--backend-directory={found.backends}"] if found.backends else []
environment = {**os.environ, **found.environment, "PYTHONPATH": python_path()}
os.execve(found.binary, [str(found.binary), *backends, *sys.argv[1:]], environment)
