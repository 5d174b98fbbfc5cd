"""Prepares the training pictures: emoji of five sets, rendered at 64 px on white, with a prompt for each."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
PIPELINE = HERE.parent / "model_repository/emoji/1/pipeline"  # what is shipped
CACHE = HERE / "cache"
DATA = CACHE / "data"  # what is prepared, and all that training reads
SIZE = 64  # pixels
SUPERSAMPLING = 4  # SVGs are rendered this much larger and averaged down
HELD_OUT_SHARE = 0.04

# style: (npm package, version); licences and attribution are in NOTICE
PACKAGES = {
    "3d": ("@lobehub/fluent-emoji-3d", "1.1.0"),
    "noto": ("@iconify-json/noto", "1.2.9"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "fluent": ("@iconify-json/fluent-emoji", "1.2.7"),
}
STYLES = tuple(PACKAGES)
ANNOTATIONS = ("cldr-annotations-full", "48.2.0")  # keywords of the emoji, Unicode-3.0


def prompt_of(concept: str, style: str) -> str:
    """The prompt of a cell, for example "red apple, 3d"."""
    return f"{concept}, {style}"


def cell_of(prompt: str) -> tuple[str, str]:
    """The concept and the style of a prompt that `prompt_of` made."""
    concept, style = prompt.rsplit(", ", 1)
    return concept, style


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line]


def trained_concepts(choice: str | None = None, data: Path = DATA) -> list[str]:
    """The concepts that the transformer is trained on.

    Args:
        choice: a file with one on each line, "all" for those of the prepared data, or None for concepts.txt.
        data: the prepared folder; only "all" reads it.
    """
    if choice == "all":
        return list(dict.fromkeys(cell_of(prompt)[0] for prompt in load_prompts(data)))
    return read_lines(HERE / "concepts.txt" if choice is None else Path(choice))


def held_out_cells(concepts: Sequence[str] | None = None) -> set[str]:
    """The prompts of the (concept, style) cells that are never trained: held_out.txt for concepts.txt.

    For other concepts those of held_out.txt that are among them, and as many more as make 4 % of all cells: each of a
    concept of its own, of the style that has lost the fewest, the concepts in the order of their SHA-256. Those of
    concepts.txt come last, for the shipped weights have seen them.
    """
    fixed, default = read_lines(HERE / "held_out.txt"), set(trained_concepts())
    if concepts is None or set(concepts) == default:
        return set(fixed)
    held_out = [cell for cell in fixed if cell_of(cell)[0] in concepts]
    spent = {cell_of(cell)[0] for cell in held_out}
    lost = Counter(cell_of(cell)[1] for cell in held_out)
    count = max(len(STYLES), round(HELD_OUT_SHARE * len(concepts) * len(STYLES)))
    candidates = sorted(
        set(concepts) - spent, key=lambda name: (name in default, hashlib.sha256(name.encode()).digest())
    )
    for concept in candidates[: max(0, count - len(held_out))]:
        style = min(STYLES, key=lambda each: lost[each])
        lost[style] += 1
        held_out.append(prompt_of(concept, style))
    return set(held_out)


def training_prompts(concepts: Sequence[str] | None = None) -> list[str]:
    """The prompts that the transformer is trained on, of these concepts or of concepts.txt."""
    held_out = held_out_cells(concepts)
    chosen = trained_concepts() if concepts is None else concepts
    prompts = [prompt_of(concept, style) for concept in chosen for style in STYLES]
    return [prompt for prompt in prompts if prompt not in held_out]


def load(data: Path = DATA) -> tuple[list[str], npt.NDArray[np.uint8]]:
    """The prepared prompts and pictures (N, 64, 64, 3) uint8.

    Raises:
        FileNotFoundError: nothing has been prepared; `python -m training.data` does it.
    """
    return load_prompts(data), np.load(data / "pictures.npz")["pictures"]


def load_prompts(data: Path = DATA) -> list[str]:
    """The prepared prompts, concept by concept.

    Raises:
        FileNotFoundError: nothing has been prepared; `python -m training.data` does it.
    """
    return json.loads((data / "prompts.json").read_text(encoding="utf-8"))


def load_keywords(data: Path = DATA) -> dict[str, list[str]]:
    """Unicode's keywords of each prepared concept that it annotates, as they are there.

    Raises:
        FileNotFoundError: nothing has been prepared; `python -m training.data` does it.
    """
    return json.loads((data / "keywords.json").read_text(encoding="utf-8"))


def prepare(archives: dict[str, Path], annotations: Path, data: Path) -> int:
    """Renders every concept that all sets have, saves prompts, pictures and keywords, and returns how many concepts.

    Args:
        archives: the npm package of each style, as `npm pack` makes it.
        annotations: the npm package of Unicode's annotations.
        data: where it is saved: pictures.npz, prompts.json and keywords.json.
    """
    cells = _cells(archives)
    with ProcessPoolExecutor() as pool:
        pictures = list(tqdm(pool.map(_render, [source for _, source in cells], chunksize=32), total=len(cells)))
    data.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(data / "pictures.npz", pictures=np.stack(pictures))
    (data / "prompts.json").write_text(json.dumps([prompt for prompt, _ in cells]), encoding="utf-8")
    concepts = dict.fromkeys(cell_of(prompt)[0] for prompt, _ in cells)
    keywords = _keywords(annotations, _names(archives["twemoji"]), concepts)
    (data / "keywords.json").write_text(json.dumps(keywords), encoding="utf-8")
    return len(concepts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetches the packages, renders every concept that all sets have, and saves prompts, pictures and keywords."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--archives", type=Path, default=CACHE / "archives", help="where the packages are kept")
    parser.add_argument(
        "--output", type=Path, default=DATA, help="where the prepared data goes: all that training reads"
    )
    chosen = parser.parse_args(arguments)
    chosen.archives.mkdir(parents=True, exist_ok=True)
    archives = {style: _fetch(chosen.archives, *package) for style, package in PACKAGES.items()}
    concepts = prepare(archives, _fetch(chosen.archives, *ANNOTATIONS), chosen.output)
    size_mb = sum(path.stat().st_size for path in chosen.output.iterdir()) / 1e6
    print(f"{concepts * len(STYLES)} pictures of {concepts} concepts in {chosen.output}, {size_mb:.1f} MB")


def _fetch(folder: Path, package: str, version: str) -> Path:
    archive = folder / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True)
    return archive


def _cells(archives: dict[str, Path]) -> list[tuple[str, bytes]]:
    """Every (prompt, SVG or WebP) of the concepts that all sets have, concept by concept."""
    sets = {style: _read_icons(path) for style, path in archives.items() if style != "3d"}
    with tarfile.open(archives["3d"]) as archive:
        assets = {Path(member.name).stem: member for member in archive if member.name.endswith(".webp")}
        names = _names(archives["twemoji"])
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


def _names(path: Path) -> dict[str, str]:
    """The code points of each name of a set, for example {"red-apple": "1f34e"}."""
    return {name: code for code, name in _read_json(path, "chars.json").items()}


def _keywords(path: Path, names: dict[str, str], concepts: Iterable[str]) -> dict[str, list[str]]:
    """The name and the keywords that Unicode has in English for each concept that it annotates."""
    annotations = _read_json(path, "annotations/en/annotations.json")["annotations"]["annotations"]
    by_code = {_code(character): each for character, each in annotations.items()}
    codes = {name.replace("-", " "): code.replace("-fe0f", "") for name, code in names.items()}
    found = {concept: by_code.get(codes[concept]) for concept in concepts}
    return {concept: [*each.get("tts", []), *each.get("default", [])] for concept, each in found.items() if each}


def _code(character: str) -> str:
    return "-".join(f"{ord(each):x}" for each in character if each != "\ufe0f")


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
