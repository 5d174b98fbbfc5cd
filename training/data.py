"""Prepares the training pictures: emoji of five sets, rendered at 64 px on white, with a prompt for each."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
CACHE = HERE / "cache"
SIZE = 64  # pixels
SUPERSAMPLING = 4  # SVGs are rendered this much larger and averaged down

# style: (npm package, version); licences and attribution are in NOTICE
PACKAGES = {
    "3d": ("@lobehub/fluent-emoji-3d", "1.1.0"),
    "noto": ("@iconify-json/noto", "1.2.9"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "fluent": ("@iconify-json/fluent-emoji", "1.2.7"),
}
STYLES = tuple(PACKAGES)


def prompt_of(concept: str, style: str) -> str:
    """The prompt of a cell, for example "red apple, 3d"."""
    return f"{concept}, {style}"


def read_lines(name: str) -> list[str]:
    """The non-empty lines of a text file beside this one."""
    return [line for line in (HERE / name).read_text(encoding="utf-8").splitlines() if line]


def trained_concepts() -> list[str]:
    """The concepts that the transformer is trained on."""
    return read_lines("concepts.txt")


def held_out_cells() -> set[str]:
    """The prompts of the (concept, style) cells that the transformer never sees."""
    return set(read_lines("held_out.txt"))


def training_prompts() -> list[str]:
    """The prompts that the transformer is trained on."""
    held_out = held_out_cells()
    prompts = [prompt_of(concept, style) for concept in trained_concepts() for style in STYLES]
    return [prompt for prompt in prompts if prompt not in held_out]


def load() -> tuple[list[str], npt.NDArray[np.uint8]]:
    """The prepared prompts and pictures (N, 64, 64, 3) uint8.

    Raises:
        FileNotFoundError: nothing has been prepared; `python -m training.data` does it.
    """
    prompts = json.loads((CACHE / "prompts.json").read_text(encoding="utf-8"))
    return prompts, np.load(CACHE / "pictures.npy")


def main() -> None:
    """Fetches the packages, renders every concept that all sets have, and saves prompts and pictures."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    CACHE.mkdir(exist_ok=True)
    archives = {style: _fetch(*package) for style, package in PACKAGES.items()}
    cells = _cells(archives)
    with ProcessPoolExecutor() as pool:
        pictures = list(tqdm(pool.map(_render, [source for _, source in cells], chunksize=32), total=len(cells)))
    np.save(CACHE / "pictures.npy", np.stack(pictures))
    (CACHE / "prompts.json").write_text(json.dumps([prompt for prompt, _ in cells]), encoding="utf-8")
    print(f"{len(cells)} pictures of {len(cells) // len(STYLES)} concepts in {CACHE}")


def _fetch(package: str, version: str) -> Path:
    archive = CACHE / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=CACHE, check=True)
    return archive


def _cells(archives: dict[str, Path]) -> list[tuple[str, bytes]]:
    """Every (prompt, SVG or WebP) of the concepts that all sets have, concept by concept."""
    sets = {style: _read_icons(path) for style, path in archives.items() if style != "3d"}
    with tarfile.open(archives["3d"]) as archive:
        assets = {Path(member.name).stem: member for member in archive if member.name.endswith(".webp")}
        names = {name: code for code, name in _read_json(archives["twemoji"], "chars.json").items()}
        common = set(names).intersection(*sets.values())
        cells = []
        for name in sorted(common):
            asset = assets.get(names[name]) or assets.get(f"{names[name]}-fe0f")
            if asset is None:
                continue
            concept = name.replace("-", " ")
            file = archive.extractfile(asset)
            assert file is not None
            sources = {"3d": file.read(), **{style: icons[name] for style, icons in sets.items()}}
            cells += [(prompt_of(concept, style), sources[style]) for style in STYLES]
    return cells


def _read_icons(path: Path) -> dict[str, bytes]:
    icons = _read_json(path, "icons.json")
    return {
        name: (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 '
            f'{icon.get("width", icons["width"])} {icon.get("height", icons["height"])}">{icon["body"]}</svg>'
        ).encode()
        for name, icon in icons["icons"].items()
    }


def _read_json(path: Path, name: str) -> dict:  # type: ignore[type-arg]
    with tarfile.open(path) as archive:
        file = archive.extractfile(f"package/{name}")
        assert file is not None
        return json.load(file)


def _render(source: bytes) -> npt.NDArray[np.uint8]:
    """(64, 64, 3): a picture on white."""
    if source.startswith(b"<svg"):
        import resvg_py

        large = SIZE * SUPERSAMPLING
        source = bytes(resvg_py.svg_to_bytes(svg_string=source.decode(), width=large, height=large))
    picture = Image.open(io.BytesIO(source)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return np.asarray(white.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX))


if __name__ == "__main__":
    main()
