"""Made-up emoji sets and annotations in the format of the npm packages, for a data preparation without a network."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

from training.data import STYLES

# name: (code point, colour); the last two are not among the trained concepts
EMOJI = {
    "red-disc": ("1f534", "#e02020"),
    "green-disc": ("1f7e2", "#20c020"),
    "blue-disc": ("1f535", "#2040e0"),
    "yellow-disc": ("1f7e1", "#f0d020"),
    "purple-disc": ("1f7e3", "#a020c0"),
    "black-disc": ("26ab", "#101010"),
    "brown-disc": ("1f7e4", "#804020"),
    "white-disc": ("26aa", "#f0f0f0"),
}
CONCEPTS = [name.replace("-", " ") for name in [*EMOJI][:6]]
RADIUS = dict(zip(STYLES, (9, 10, 11, 12, 13), strict=True))  # of 32


def svg_body(colour: str, radius: int) -> str:
    return f'<circle cx="16" cy="16" r="{radius}" fill="{colour}"/>'


def draw(svg_string: str, width: int, height: int) -> bytes:
    """Renders `svg_body` as resvg_py does, which only training needs."""
    found = re.search(r'r="(\d+)" fill="(#\w+)"', svg_string)
    assert found
    return _disc(found[2], int(found[1]), width, "PNG")


def archives(folder: Path) -> dict[str, Path]:
    """The sets by style; the 3D set lacks one that the others have, Noto has one that the others lack."""
    folder.mkdir(parents=True, exist_ok=True)
    extra = {"pink-disc": ("1f338", "#ff80c0")}
    paths = {}
    for style in STYLES:
        path = folder / f"{style}.tgz"
        files: dict[str, bytes] = {}
        if style == "3d":
            for i, (code, colour) in enumerate(EMOJI.values()):
                suffix = "-fe0f" if i == 1 else ""  # the sets write it now and then
                files[f"assets/{code}{suffix}.webp"] = _disc(colour, RADIUS[style], 256, "WEBP")
        else:
            emoji = EMOJI | extra | ({"grey-disc": ("1f311", "#808080")} if style == "noto" else {})
            icons = {name: {"body": svg_body(colour, RADIUS[style])} for name, (_, colour) in emoji.items()}
            files["icons.json"] = json.dumps({"width": 32, "height": 32, "icons": icons}).encode()
            files["chars.json"] = json.dumps({code: name for name, (code, _) in emoji.items()}).encode()
        _pack(path, files)
        paths[style] = path
    return paths


def annotations(folder: Path) -> Path:
    """Unicode's keywords of all but one: each disc has "round", and its colour twice over, as "Scarlet" for red."""
    words = {"red-disc": "Scarlet", "green-disc": "lime", "blue-disc": "azure", "yellow-disc": "gold"}
    by_character = {
        chr(int(EMOJI[name][0], 16)) + ("\ufe0f" if name == "red-disc" else ""): {
            "default": ["round", word],
            "tts": [name.replace("-", " ")],
        }
        for name, word in words.items()
    }
    path = folder / "annotations.tgz"
    content = {"annotations": {"identity": {}, "annotations": by_character}}
    _pack(path, {"annotations/en/annotations.json": json.dumps(content).encode()})
    return path


def _disc(colour: str, radius: int, size: int, form: str) -> bytes:
    picture = Image.new("RGBA", (size, size))
    edge, scaled = size / 2, radius * size / 32
    ImageDraw.Draw(picture).ellipse([edge - scaled, edge - scaled, edge + scaled, edge + scaled], fill=colour)
    buffer = io.BytesIO()
    picture.save(buffer, form, lossless=True)
    return buffer.getvalue()


def _pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
