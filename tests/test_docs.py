"""The documents against the code: commands are run or excused and parse, links and paths exist, messages and tables are
as the code has them. `tests/e2e/test_docs.py` runs what can be run; `tests/test_documented_numbers.py` has the numbers.
"""

from __future__ import annotations

import ast
import doctest
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from starlette.testclient import TestClient

from clients.openai_api import create_app
from plugin.cli.app import app
from plugin.config import ModelConfig
from plugin.denoising.generation import Report
from plugin.families import FAMILY_OF_TRANSFORMER, family_class
from plugin.families.base import Family
from plugin.families.declared import DeclaredFamily
from plugin.families.split import SplitFamily
from plugin.families.standing_in import Blocks
from plugin.fields import FIELDS, Field
from plugin.parameters import PARAMETERS
from plugin.request import InvalidRequest, parse_request
from plugin.tensors import HEARTBEAT_PARAMETER, INPUTS, STREAM_OUTPUTS
from tests.support.documented_commands import BLOCKS, NOT_RUN, RUN, SHELL, ids, is_run, reason_of
from tests.support.documents import (
    DOCUMENTS,
    ROOT,
    Block,
    anchors_of,
    blocks_of,
    inline_code_of,
    links_of,
    numbers_in,
    tables_of,
)
from tests.support.tiny import FAMILIES
from tests.support.tiny.declared import DECLARED

# The headings of docs/extending.md that have a table of what a family has
FAMILY_TABLES = ("What a declaration says", "Where the defaults do not fit", "What cannot be declared")
LANGUAGES = {"bash", "python", "pycon", "text", "json", "yaml", "typescript"}


def check_each(check: Callable[[Any], None], cases: Iterable[Any], place: Callable[[Any], object]) -> None:
    """Checks every case, and fails with all that is wrong: a line for each, with its place."""
    wrong = []
    for case in cases:
        try:
            check(case)
        except Exception as error:  # an assertion of ours, or what the command line's parser raises
            wrong.append(f"{place(case)}: {' '.join(str(error).split())}")
    assert not wrong, "\n".join(wrong)


def check_documents(items_of: Callable[[Path], Iterable[Any]], check: Callable[[Path, Any], None]) -> None:
    """Checks the items of all documents."""
    cases = [(path, item) for path in DOCUMENTS for item in items_of(path)]
    check_each(lambda case: check(*case), cases, lambda case: case[0].relative_to(ROOT))


# Commands


def test_a_block_says_what_it_is():
    assert not [block.place for block in BLOCKS if block.language not in LANGUAGES]


def test_every_command_is_run_or_has_a_reason_not_to_be():
    """Otherwise add a pattern to RUN or NOT_RUN."""
    commands = [(block.place, command) for block in SHELL for command in block.commands]
    assert not [each for each in commands if not is_run(each[1]) and not reason_of(each[1])]


def test_every_reason_is_needed():
    commands = [command for block in SHELL for command in block.commands]
    patterns = [*RUN, *NOT_RUN]
    assert not [each for each in patterns if not any(re.match(each, command) for command in commands)]


def programs_of(text: str) -> Iterator[list[str]]:
    """The words of each program of a command line: pipes and assignments taken away, and what follows an ellipsis."""
    words: list[str] = []
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;<>"):
            if words:
                yield words[: words.index("…")] if "…" in words else words
            words = []
        elif words or not re.match(r"\w+=", word):
            words.append(word.removeprefix(".venv/bin/"))


def commands_of(path: Path) -> Iterator[list[str]]:
    """All programs in the shell blocks and in the inline code of a document."""
    for block in blocks_of(path):
        if block.language == "bash":
            for command in block.commands:
                yield from programs_of(command)
    for code in inline_code_of(path):
        if re.match(r"(\w+=\S+ )*(\.venv/bin/)?(triton-taylorseer|python -m|pytest|make) [\w\"'.-]", code):
            yield from programs_of(code)


def test_commands_of_ours_have_the_options_that_are_given():
    check_documents(commands_of, check_command)


def check_command(_: Path, words: list[str]) -> None:
    match words:
        case ["triton-taylorseer", name, *arguments]:
            check_ours(name, arguments)
        case ["python", "-m", module, *arguments] if module.startswith("benchmarks."):
            check_options(module, arguments)
        case ["pytest", *arguments]:
            check_tests(arguments)
        case ["make", *targets]:
            known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            unknown = {target for target in targets if not target.startswith(".venv")} - {*known}
            assert not unknown, f"make has no target {unknown}"


def check_ours(name: str, arguments: list[str]) -> None:
    """Parses a command line of ours; nothing is run."""
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    if "--help" in arguments:
        return
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    context = command.make_context(name, list(ours), resilient_parsing=not ours)
    assert not context.args, f"{name} does not know {context.args}"


def check_options(module: str, arguments: list[str]) -> None:
    """Checks that a benchmark has the options."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    known = {
        argument.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }
    assert {each for each in arguments if each.startswith("-")} <= {*known, "--help"}, module


def check_tests(arguments: list[str]) -> None:
    """Checks that the files, the words of -k and the markers of a pytest command choose any test."""
    options = dict(pairwise(arguments))
    assert options.get("-m") in (None, "gpu")
    targets = [each for each in arguments if each.startswith("tests")]
    files = [
        file for each in targets for file in ([ROOT / each] if each.endswith(".py") else (ROOT / each).rglob("*.py"))
    ]
    assert all(file.is_file() for file in files)
    wanted = options.get("-k", "")
    assert re.fullmatch(r"\w*", wanted), "one word, which this test looks for in names and in what tests are given"
    assert (
        not targets
        or wanted in {**FAMILIES, **DECLARED}
        or any(wanted in file.read_text(encoding="utf-8") for file in files)
    )


def test_wrong_commands_are_noticed():
    """The checks above can fail."""
    with pytest.raises(Exception, match="No such option: --hight"):
        check_ours("plan", ["emoji", "--hight", "64"])
    with pytest.raises(AssertionError):
        check_ours("serve", ["--modle", "emoji"])
    with pytest.raises(AssertionError):
        check_options("benchmarks.soak", ["--hours", "1"])
    with pytest.raises(AssertionError):
        check_tests(["tests/plugin/engines/test_packer.py", "-k", "unheard_of"])
    assert [*programs_of("A=1 .venv/bin/x 'a | b' | y > z && w …")] == [["x", "a | b"], ["y"], ["z"], ["w"]]


# Links and paths


def test_links_lead_somewhere():
    check_documents(links_of, check_link)


def check_link(path: Path, link: str) -> None:
    if re.match(r"https?:", link):
        return
    target, _, anchor = link.partition("#")
    file = (path.parent / target).resolve() if target else path
    assert file.exists(), link
    assert not anchor or anchor in anchors_of(file), link


def test_paths_of_this_repository_exist():
    folders = {each.name for each in ROOT.iterdir() if each.is_dir() and each.name not in ("out", ".venv", "build")}

    def check_path(_: Path, text: str) -> None:
        found = re.fullmatch(r"(?:\.\./)*((\.?\w[\w-]*)/[\w./-]*)", text.strip("'\"()"))
        # `model_repository/emoji/1/model.py` is checked, `benchmarks/results/<name>.json` is not
        if found and found[2] in folders and not found[1].startswith("training/cache"):
            assert (ROOT / found[1]).exists(), text

    check_documents(words_in_code_of, check_path)


def words_in_code_of(path: Path) -> Iterator[str]:
    yield from inline_code_of(path)
    for block in blocks_of(path):
        yield from block.text.split()


# What is quoted


@cache
def texts_in_code() -> tuple[str, ...]:
    """Every string of the packages, an ellipsis in place of what is filled in."""
    scripts = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "clients/web").glob("*.js"))
    texts = re.findall(r'"([^"\n]+)"|`([^`\n]+)`', scripts)
    found = [one or re.sub(r"\$\{[^}]*\}", "…", other) for one, other in texts]
    for package in ("taylorseer", "triton_taylorseer", "plugin", "clients"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(each.value if isinstance(each, ast.Constant) else "…" for each in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return (*found, *refusals())


def refusals() -> Iterator[str]:
    """Messages about fields, which the code puts together from several strings."""
    config = ModelConfig.from_folder(ROOT / "model_repository/emoji_stream")
    of_videos = replace(config.limits, max_frames=129)
    of_labels = replace(config.limits, takes_prompt=False)
    prompt = {"prompt": b"star, 3d"}
    for values, limits in (
        ({"prompt": b"x" * 9000}, config.limits),
        ({"prompt": b"\xff"}, config.limits),
        ({"prompt": b"star\0"}, config.limits),
        ({**prompt, "num_inference_steps": 0}, config.limits),
        ({**prompt, "height": 60}, config.limits),
        ({**prompt, "guidance_scale": float("nan")}, config.limits),
        ({**prompt, "cache_preset": b"unheard"}, config.limits),
        ({**prompt, "num_frames": 5}, config.limits),
        ({**prompt, "num_frames": 4}, of_videos),
        (prompt, of_labels),
        ({"negative_prompt": b"star", "class_label": 1}, of_labels),
    ):
        with pytest.raises(InvalidRequest) as refused:
            parse_request(values, config.defaults, limits, 0, config.presets)
        yield str(refused.value)


def stands_in_code(message: str) -> bool:
    pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
    return any(pattern.search(text) for text in texts_in_code())


def quoted_messages() -> list[str]:
    """Of the tables of docs/troubleshooting.md, without that of others' messages."""
    tables = tables_of(ROOT / "docs/troubleshooting.md")
    assert len(tables) == 6
    ours = [row for heading, rows in tables.items() if heading != "Messages of Triton and others" for row in rows]
    return [message.strip("` ") for message, _ in ours if message != "message"]


def test_quoted_messages_stand_in_the_code():
    gone = [message for message in quoted_messages() if not stands_in_code(message)]
    assert not gone, "\n".join(gone)


def test_a_message_that_the_code_does_not_have_is_noticed():
    assert not stands_in_code("prompt is …, must be prettier")


def test_every_alert_has_its_section():
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    alerts = [rule["alert"].lower() for group in rules for rule in group["rules"]]
    assert {*alerts} <= anchors_of(ROOT / "docs/operating.md")


def metrics() -> set[str]:
    """The metrics' names, from the text of the file that makes them, which needs Triton's module."""
    return set(re.findall(r'"(taylorseer_\w+)"', (ROOT / "plugin/triton_model/metrics.py").read_text(encoding="utf-8")))


def of_the_front() -> set[str]:
    """The front's metrics, as a scrape has them."""
    answer = TestClient(create_app()).get("/metrics").text
    return set(re.findall(r"^# TYPE (\w+)", answer, re.MULTILINE))


def test_metrics_and_request_parameters_have_their_names():
    known = metrics() | of_the_front() | {HEARTBEAT_PARAMETER}
    known |= {f"{name}{suffix}" for name in known for suffix in ("_bucket", "_count", "_sum")}
    named = [
        (str(path.relative_to(ROOT)), name)
        for path in DOCUMENTS
        for name in re.findall(r"\btaylorseer_\w+[a-z]", path.read_text(encoding="utf-8"))
    ]
    assert not [each for each in named if each[1] not in known]


def names_in(rows: Iterable[list[str]]) -> list[str]:
    """The names in backticks of the first column."""
    return [name for row in rows for name in re.findall(r"`([a-z0-9_]+)[`<*]", row[0])]


def reference(heading: str) -> list[list[str]]:
    return tables_of(ROOT / "docs/reference.md")[heading][1:]


def test_every_input_is_in_the_reference_with_its_type_and_range():
    shown = {name: row[1:] for row in reference("Inputs") for name in names_in([row])}
    tritons = {"BYTES": "TYPE_STRING"}
    assert {name: tritons.get(kind, f"TYPE_{kind}") for name, (kind, _) in shown.items()} == INPUTS
    limits = ModelConfig.from_folder(ROOT / "model_repository/emoji_stream").limits

    def check_range(field: Field) -> None:
        text = shown[field.name][1].replace(",", "").replace("2^63-1", str(2**63 - 1))
        bounds, _, choices = field.values.allowed(limits).partition("one of: ")
        assert {*map(float, numbers_in(bounds))} <= {*map(float, numbers_in(text))}, bounds
        assert {*re.findall(r"\w+", choices.partition(", or ")[0])} <= {*re.findall(r"`(\w+)`", text)}, choices

    check_each(check_range, FIELDS, lambda field: field.name)


def test_every_output_and_every_field_of_the_report_is_in_the_reference():
    assert set(names_in(reference("Outputs"))) == {*STREAM_OUTPUTS, *(each.name for each in fields(Report))}


def test_every_parameter_is_in_the_reference_with_its_default():
    shown: dict[str, str] = {}
    for names, defaults, _ in reference("Model parameters"):
        shown |= zip(names_in([[names]]), defaults.replace("`", "").split(", "), strict=True)
    preset = shown.pop("cache_preset_")  # `cache_preset_<name>`, as many as a model wants
    assert preset == "none"
    none = {"(required)": "none", "the pipeline's": "none"}
    assert {name: none.get(text, text) for name, text in shown.items()} == {
        name: as_text(parameter.default) for name, parameter in PARAMETERS.items()
    }


def as_text(default: object) -> str:
    """A parameter's default as a document writes it."""
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_every_metric_is_in_the_reference():
    named = {name for row in reference("Metrics") for name in re.findall(r"`(taylorseer_\w+)`", row[0])}
    assert named == metrics()


def test_python_sessions_answer_what_is_written():
    blocks = [block for block in BLOCKS if block.language == "pycon"]
    check_each(check_session, blocks, ids)


def check_session(block: Block) -> None:
    session = doctest.DocTestParser().get_doctest(block.text, {}, block.place, None, None)
    assert session.examples
    result = doctest.DocTestRunner().run(session)
    assert result.failed == 0


def test_everything_that_a_family_must_say_is_in_its_recipe():
    tables = tables_of(ROOT / "docs/extending.md")
    named = {heading: names_in(tables[heading]) for heading in FAMILY_TABLES}
    declared, overridden, written = ({*names} for names in named.values())
    assert declared >= DeclaredFamily.__annotations__.keys() | {"name", "video", "batches_guidance", "example_call"}
    assert written >= Family.__abstractmethods__ | SplitFamily.__abstractmethods__ | {
        "name",
        "block_axes",
        "output_axes",
    }
    known = {*dir(DeclaredFamily), *Family.__annotations__, *DeclaredFamily.__annotations__, *Blocks.__annotations__}
    assert declared | overridden <= known
    assert written <= {*dir(SplitFamily), *Family.__annotations__}


def models() -> list[list[str]]:
    return [row for row in tables_of(ROOT / "docs/models.md")["Models"] if row[1].startswith("`")]


def test_the_table_of_models_has_every_class_once():
    classes = [name for row in models() for name in re.findall(r"`(\w+)`", row[1])]
    assert sorted(classes) == sorted(FAMILY_OF_TRANSFORMER)


def names_assigned(file: str, variable: str) -> set[str]:
    """The keys of a dict, or the strings in a tuple, that a test module assigns."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == variable
    )
    among = value.keys if isinstance(value, ast.Dict) else ast.walk(value)
    return {node.value for node in among if isinstance(node, ast.Constant)}


def test_what_the_table_of_models_calls_verified_is_tested():
    exports = "tests/plugin/engines/test_declared_exports.py"
    compiled = names_assigned(exports, "SERVED_MOST") | FAMILIES.keys()
    exported = names_assigned(exports, "EXPORTED") | compiled
    served = names_assigned("tests/e2e/test_families.py", "SERVED") | {"flux"}  # emoji is one, in all other tests there
    rows = {re.findall(r"\w+", row[1])[0]: row for row in models()}

    def check_model(name: str) -> None:
        known = vars(import_module(f"tests.support.tiny.{name}"))
        (transformer,) = known.keys() & FAMILY_OF_TRANSFORMER.keys()
        _, _, pipeline, _, _, verified = rows.pop(transformer)
        assert pipeline.strip("`") in known, pipeline
        words = {
            "parity": True,
            "requests": name in DECLARED,
            "ONNX": name in exported,
            "RTX": name in compiled,
            "Triton": name in served,
        }
        assert verified.split(", ") == [word for word, tested in words.items() if tested]

    check_each(check_model, (*FAMILIES, *DECLARED), str)
    assert not rows, "these have no test"


def test_guidance_and_text_in_the_table_of_models_are_those_of_the_families():
    for row in models():
        family: Any = family_class(re.findall(r"\w+", row[1])[0])
        assert row[3].startswith("one call") == family.batches_guidance, row
        assert row[4] == ("yes" if family.rows(0, 1) else "no"), row


def test_the_steps_to_a_predictor_lead_to_one(tmp_path):
    """docs/extending.md, followed in a copy of the package."""
    blocks = (block.text for block in blocks_of(ROOT / "docs/extending.md") if block.language == "python")
    function, line, test, *_ = blocks  # the others are those of a family: tests/plugin/families/test_recipe.py
    for folder in ("taylorseer", "tests/taylorseer", "tests/support"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests/__init__.py").touch()
    predictors = tmp_path / "taylorseer/predictors.py"
    before, table, after = predictors.read_text().partition("PREDICTORS: dict")
    rows, end, rest = after.partition("\n}\n")
    predictors.write_text(f"{before}{function}\n\n{table}{rows}\n    {line.strip()}{end}{rest}")
    tests = tmp_path / "tests/taylorseer/test_predictors.py"
    tests.write_text(f"{tests.read_text()}\n\n{test}")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "line", "tests/taylorseer/test_predictors.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 8, "its own five, and those of all predictors"
