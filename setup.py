"""Where the wheel keeps the packages: `taylorseer` and `triton_taylorseer` at the top, the others in a private folder.

pyproject.toml says everything else. A checkout is worked on as it is: an editable installation finds each folder by its
own name. `triton_taylorseer/__init__.py` says why, and opens the private folder.
"""

import sys

from setuptools import find_packages, setup

PUBLIC = ["taylorseer", "triton_taylorseer"]
PRIVATE = ["plugin", "clients", "benchmarks"]


def inside(*folders: str) -> list[str]:
    """The packages in some folders; those of `clients` that are installed on their own are none of them."""
    include = [f"{folder}{end}" for folder in folders for end in ("", ".*")]
    return find_packages(include=include, exclude=["clients.comfyui*", "clients.python*"])


if "editable_wheel" in sys.argv:
    prefix, packages, places = "", inside(*PUBLIC, *PRIVATE), {}
else:
    prefix = "triton_taylorseer.rooms."
    packages = [*inside(*PUBLIC), *(prefix + name for name in inside(*PRIVATE))]
    places = {prefix + folder: folder for folder in PRIVATE}

setup(packages=packages, package_dir=places, package_data={f"{prefix}clients": ["web/*"]})
