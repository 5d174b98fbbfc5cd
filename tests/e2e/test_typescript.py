"""The TypeScript client, installed from its lock file: types, a picture, a cancel and errors against a real Triton."""

from __future__ import annotations

import base64
import http.server
import io
import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from PIL import Image
from tritonclient.grpc import model_config_pb2, service_pb2

from plugin.ops.server import Server
from plugin.tensors import ERROR_REPORT_PARAMETER, HEARTBEAT_PARAMETER, INPUTS
from tests.support.fake_triton import Call, Picture, Step, fake_triton
from tests.support.paths import ROOT
from tests.support.serving import Triton

SOURCE = ROOT / "clients/typescript"
OLDEST_NODE = 18
LONG = {"num_inference_steps": 1000, "cache_interval": 1}  # half a minute of work, were it not cancelled


@dataclass(frozen=True)
class Package:
    """The client, installed and compiled."""

    folder: Path

    def command(self, *arguments: str) -> list[str]:
        return ["node", str(self.folder / "dist/main.js"), *arguments]

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`npm start -- …`, as a person types it."""
        command = ["npm", "start", "--silent", "--", *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60)

    def run(self, program: str) -> str:
        """What a program prints that has the module's names."""
        path = self.folder / "program.mjs"
        path.write_text('import * as client from "./dist/client.js";\n' + program)
        ran = subprocess.run(["node", str(path)], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm is not installed (Debian: apt-get install npm)")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node is {version.strip()}, must be {OLDEST_NODE} or later")
    folder = tmp_path_factory.mktemp("typescript") / "client"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules", "dist", "generated"))
    installed = subprocess.run(["npm", "ci"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert installed.returncode == 0, installed.stderr
    return Package(folder)


@pytest.fixture(scope="module")
def twin(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second server, on the same ports of another loopback address, as another pod has them."""
    config = replace(triton.server.config, host="127.0.0.2", models=("emoji",))
    with Server(config, log=tmp_path_factory.mktemp("twin") / "triton.log") as server:
        yield server


@pytest.fixture
def running(package: Package, triton: Triton) -> Iterator[subprocess.Popen[str]]:
    """The command line at work on a picture that takes long."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in LONG.items()]
    command = package.command("rocket, fluent", "--url", triton.grpc_url, *options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def cancelled(triton: Triton, expected: float | None = None) -> float:
    """How many requests have been cancelled; what is expected may take a moment to be told."""
    deadline = time.monotonic() + 5
    while True:
        number = triton.metrics()["taylorseer_requests_total cancelled"]
        if expected in (None, number) or time.monotonic() > deadline:
            return number
        time.sleep(0.05)


def test_its_protocol_is_that_of_the_python_client():
    protos = FileDescriptorSet()
    for module in (model_config_pb2, service_pb2):
        module.DESCRIPTOR.CopyToProto(protos.file.add())
    assert FileDescriptorSet.FromString((SOURCE / "triton.binpb").read_bytes()) == protos


def test_its_packages_are_pinned_and_no_registry_is_named():
    project, lock = (json.loads((SOURCE / f"package{part}.json").read_text()) for part in ("", "-lock"))
    for kind in ("dependencies", "devDependencies"):
        assert lock["packages"][""][kind] == project[kind]
        for name, version in project[kind].items():
            assert lock["packages"][f"node_modules/{name}"]["version"] == version
    for path, entry in lock["packages"].items():
        assert "resolved" not in entry
        assert path == "" or entry["integrity"].startswith("sha512-")


def test_it_knows_every_field_of_the_models(package: Package):
    fields = json.loads(package.run("console.log(JSON.stringify(client.FIELDS))"))
    expected = {name: dtype.removeprefix("TYPE_").replace("STRING", "BYTES") for name, dtype in INPUTS.items()}
    assert fields == {name: dtype for name, dtype in expected.items() if name != "response_format"}


def test_fields_are_typed(package: Package):
    program = package.folder / "src/program.ts"
    program.write_text(
        """
        import { Client } from "./client.js";
        const client = new Client();
        await client.generate({ prompt: "star", seed: 7, deadline_ms: 9000 });
        await client.generate({ seed: 7n, preview: true });
        const file = new Uint8Array(8);
        await client.generate({ input_image: file, mask_image: file, strength: 0.5 });
        await client.generate({ input_image: [file, Buffer.from("")] });
        // @ts-expect-error: a path is no picture
        await client.generate({ input_image: "apple.png" });
        // @ts-expect-error: one mask
        await client.generate({ mask_image: [file] });
        // @ts-expect-error: an error where there is none
        await client.generate({ seed: "seven" });
        // @ts-expect-error
        await client.generate({ sed: 7 });
        // @ts-expect-error
        for await (const update of client.stream({})) await update.save("a.png");
        """
    )
    checked = subprocess.run(["npx", "tsc", "--noEmit"], cwd=package.folder, capture_output=True, text=True)
    program.unlink()
    assert checked.returncode == 0, checked.stdout


def test_the_command_line_makes_the_picture_of_the_python_client(package: Package, triton: Triton, tmp_path: Path):
    ran = package.start("red apple, 3d", "--seed", "7", "-o", str(tmp_path / "apple.png"), "--url", triton.grpc_url)
    assert ran.returncode == 0, ran.stderr
    assert ": 12 of 50 steps full, " in ran.stdout
    assert ran.stdout.endswith("seed 7\n")
    with triton.client() as client:
        expected = client.generate("red apple, 3d", seed=7)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "apple.png")), expected.image[0])


def test_the_command_line_begins_with_a_picture_as_the_python_client_does(
    package: Package, triton: Triton, tmp_path: Path
):
    apple, mask = tmp_path / "apple.png", tmp_path / "mask.png"
    with triton.client() as client:
        client.generate("red apple, 3d", seed=7, num_inference_steps=12).save(apple)
    Image.fromarray(np.tile(np.uint8([[0, 255]]), (64, 32))).save(mask)
    options = ["--input-image", str(apple), "--mask-image", str(mask), "--strength", "0.5", "--seed", "7"]
    edited = ["-o", str(tmp_path / "edited.png"), "--url", triton.grpc_url]
    ran = package.start("red apple, noto", *options, *edited)
    assert ran.returncode == 0, ran.stderr
    with triton.client() as client:
        expected = client.generate("red apple, noto", seed=7, input_image=apple, mask_image=mask, strength=0.5)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "edited.png")), expected.image[0])


def test_a_stream_tells_steps_and_previews_then_the_picture(package: Package, triton: Triton):
    printed = package.run(
        f"""
        const triton = new client.Client({{ url: "{triton.grpc_url}" }});
        const fields = {{ prompt: "Käse 🧀, noto", seed: 2n ** 40n, num_inference_steps: 12, preview: true }};
        const previews = [], steps = [];
        for await (const update of triton.stream(fields)) {{
          if (update.kind === "progress") {{
            steps.push([update.step, update.numSteps]);
            const {{ height, width, data }} = update.preview ?? {{}};
            if (update.preview) previews.push([update.step, height, width, data.length]);
          }} else {{
            const file = Buffer.from(update.file).toString("base64");
            console.log(JSON.stringify({{ steps, previews, file, report: update.report }}));
          }}
        }}
        triton.close();
        """
    )
    told = json.loads(printed)
    steps = [step for step, num_steps in told["steps"] if num_steps == 12]
    assert steps == sorted(set(steps)), "progress that is not sent in time is replaced by what follows it"
    assert len(steps) == len(told["steps"]) > 2
    assert told["previews"], "previews are due at the steps 5 and 10"
    for _, *shape in told["previews"]:
        assert shape == [64, 64, 64 * 64 * 3]
    with triton.client() as client:
        expected = client.generate("Käse 🧀, noto", seed=2**40, num_inference_steps=12)
    picture = Image.open(io.BytesIO(base64.b64decode(told["file"])))
    assert np.array_equal(np.asarray(picture), expected.image[0])
    assert told["report"]["seed"] == 2**40
    assert told["report"]["full_steps"] == expected.report["full_steps"]


@pytest.mark.parametrize(
    "way",
    [
        "for await (const update of triton.stream(fields)) break;",
        """
        const controller = new AbortController();
        try {
          for await (const update of triton.stream(fields, { signal: controller.signal })) controller.abort();
        } catch (error) {
          if (error.code !== "CANCELLED") throw error;
        }
        """,
    ],
    ids=["loop left", "signal"],
)
def test_a_request_that_is_given_up_is_cancelled_at_the_server(package: Package, triton: Triton, way: str):
    before = cancelled(triton)
    began = time.monotonic()
    package.run(
        f"""
        const triton = new client.Client({{ url: "{triton.grpc_url}" }});
        const fields = {{ prompt: "rocket, fluent", ...{json.dumps(LONG)} }};
        {way}
        triton.close();
        """
    )
    assert cancelled(triton, before + 1) == before + 1
    assert time.monotonic() - began < 8, "1000 full steps take longer"


def test_ctrl_c_cancels(package: Package, triton: Triton, running: subprocess.Popen[str]):
    before = cancelled(triton)
    deadline = time.monotonic() + 20
    while not triton.metrics()["taylorseer_requests_in_flight"]:
        assert time.monotonic() < deadline, "the request must begin"
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=10)
    assert errors == "cancelled by the client\n"
    assert running.returncode == 130
    assert cancelled(triton, before + 1) == before + 1


def test_calls_take_turns_between_the_servers_of_a_name(package: Package, triton: Triton, twin: Server):
    url = f"ipv4:{triton.grpc_url},{twin.grpc_url}"  # what a headless service's name is resolved to
    before = triton.wait_until_idle()["taylorseer_requests_total ok"]
    package.run(
        f"""
        const pods = new client.Client({{ url: "{url}" }});
        for (let call = 0; call < 6; call++) await pods.generate({{ prompt: "star, noto", num_inference_steps: 2 }});
        pods.close();
        """
    )
    time.sleep(0.5)  # counts trail the last answer by milliseconds
    share = triton.wait_until_idle()["taylorseer_requests_total ok"] - before
    assert 2 <= share <= 4, "the first calls go to whoever is connected first"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a", "--cache-order", "99"], "cache_order is 99, must be an integer from 0 to 8"),
        (["a", "--seed", "9223372036854775808"], "seed is 9223372036854775808, must be an integer of 64 bits"),
        (["a", "--height", "tall"], "height is 'tall', must be an integer"),
        (["a", "--model", "unicorn"], "unicorn_stream"),
        (["a", "--url", "localhost:1"], "no server answers at localhost:1: start one with `triton-taylorseer serve`"),
        (["a", "b"], "one prompt is wanted, 2 were given: quote it"),
        (["a", "--input-image", "no.png"], "input_image is 'no.png', must be a file that can be read (ENOENT)"),
        (["a", "--mask-image", "src"], "mask_image is 'src', must be a file that can be read (EISDIR)"),
        (["a", "--strength", "half"], "strength is 'half', must be a number"),
        (["a", "-o", "a.gif"], "path is a.gif, must end in .png: the result has 1 frame"),
    ],
)
def test_errors_are_sentences(package: Package, triton: Triton, arguments: list[str], sentence: str):
    ran = package.start(*(["--url", triton.grpc_url] if "--url" not in arguments else []), *arguments)
    assert ran.returncode == 1
    assert sentence in ran.stderr
    assert ran.stderr.count("\n") == 1, "no stack trace"


@pytest.mark.parametrize(
    ("fields", "options", "code"),
    [
        ({"prompt": "a", "height": 33}, {}, "INVALID_ARGUMENT"),
        ({"prompt": "a", **LONG, "deadline_ms": 1}, {}, "DEADLINE_EXCEEDED"),
        ({"prompt": "a", **LONG}, {"timeoutMs": 300}, "DEADLINE_EXCEEDED"),
    ],
)
def test_errors_have_a_code(package: Package, triton: Triton, fields: dict, options: dict, code: str):
    program = f"""
        const triton = new client.Client({{ url: "{triton.grpc_url}" }});
        try {{
          await triton.generate({json.dumps(fields)}, {json.dumps(options)});
        }} catch (error) {{
          console.log(error instanceof client.GenerationError, error.code);
        }}
        triton.close();
    """
    assert package.run(program) == f"true {code}\n"


def test_what_cannot_be_sent_is_refused_before_it_is(package: Package):
    program = """
        const nowhere = new client.Client({ url: "localhost:1" });
        const aborted = { signal: AbortSignal.abort() };
        const tell = (error) => console.log(error.code, error.message);
        const wrong = [{ prompt: 7 }, { seed: 1.5 }, { height: 2 ** 31 }, { guidance_scale: "3" }, { preview: 1 },
                       { guidance_scale: 1e308 }, { cache_max_error: 1e-60 }];
        for (const fields of wrong)
          await nowhere.generate(fields).catch(tell);
        await nowhere.generate({ sed: 7 }).catch(tell);
        await nowhere.generate({ prompt: "a" }, aborted).catch(tell);
        nowhere.close();
    """
    told = package.run(program).splitlines()
    assert told[7].startswith("INVALID_ARGUMENT 'sed' is not a field, must be one of: prompt, negative_prompt, ")
    integer = "must be an integer of {} bits, as a bigint if a number is not exact"
    assert told[:7] + told[8:] == [
        "INVALID_ARGUMENT prompt is 7, must be text",
        f"INVALID_ARGUMENT seed is 1.5, {integer.format(64)}",
        f"INVALID_ARGUMENT height is 2147483648, {integer.format(32)}",
        "INVALID_ARGUMENT guidance_scale is 3, must be a number",
        "INVALID_ARGUMENT preview is 1, must be true or false",
        "INVALID_ARGUMENT guidance_scale is 1e+308, must be a number that 32 bits hold",
        "INVALID_ARGUMENT cache_max_error is 1e-60, must be a number that 32 bits hold",
        "CANCELLED cancelled before it was sent",
    ]


def test_pictures_that_cannot_be_sent_are_refused_before_they_are(package: Package):
    program = """
        const nowhere = new client.Client({ url: "localhost:1" });
        const tell = (error) => console.log(error.code, error.message);
        const file = new Uint8Array(10 ** 6);
        const wrong = [{ input_image: "a.png" }, { input_image: [] }, { input_image: [file, 7] },
                       { mask_image: [file] }, { mask_image: "x".repeat(10 ** 6) }, { strength: "0.5" }];
        for (const fields of wrong)
          await nowhere.generate(fields).catch(tell);
        nowhere.close();
    """
    one, several = "must be the bytes of a picture file", "must be the bytes of a picture file, or an array of them"
    assert package.run(program).splitlines() == [
        f"INVALID_ARGUMENT input_image is 'a.png', {several}",
        f"INVALID_ARGUMENT input_image is empty, {several}",
        f"INVALID_ARGUMENT input_image is 7, {several}",
        f"INVALID_ARGUMENT mask_image is [ [Uint8Array] ], {one}",
        f"INVALID_ARGUMENT mask_image is '{'x' * 60}'... 999940 more characters, {one}",
        "INVALID_ARGUMENT strength is 0.5, must be a number",
    ]


def test_pictures_are_sent_as_their_files(package: Package, tmp_path: Path):
    files = {"a.png": b"\x89PNG\0\xff", "b.png": b"another", "m.png": b"a mask"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    asked = []

    def behaviour(call: Call) -> Iterator[Picture]:
        asked.append(
            {name: call.fields[name] for name in ("input_image", "mask_image", "strength") if name in call.fields}
        )
        yield RESULT

    with fake_triton(behaviour) as url:
        options = ["--input-image", "a.png", "--input-image", "b.png", "--mask-image", "m.png", "--strength", "0.25"]
        command = package.command("star", *options, "--url", url)
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        package.run(
            f"""
            const triton = new client.Client({{ url: "{url}" }});
            const longer = Buffer.from("before a picture after");
            await triton.generate({{ input_image: longer.subarray(7, 16) }});
            await triton.generate({{ input_image: [longer.subarray(7, 16), new Uint8Array([0, 255])] }});
            triton.close();
            """
        )
    assert asked == [
        {"input_image": [files["a.png"], files["b.png"]], "mask_image": [files["m.png"]], "strength": 0.25},
        {"input_image": [b"a picture"]},
        {"input_image": [b"a picture", b"\0\xff"]},
    ]


SAID = """
    const told = [];
    try {
      for await (const update of triton.stream({ prompt: "star", seed: 2n ** 62n + 1n }, options)) {
        const place = update.queuePosition ? `place ${update.queuePosition}` : update.step;
        told.push(update.kind === "progress" ? place : `seed ${update.seed}`);
      }
    } catch (error) {
      told.push(`${error.code} ${error.message}`);
    }
    console.log(JSON.stringify(told));
    triton.close();
"""
RESULT = Picture({"seed": 2**62 + 1, "num_steps": 8, "full_steps": [0], "total_s": 0.1, "num_frames": 1})


@pytest.mark.parametrize(
    ("updates", "idle_ms", "told"),
    [
        ([Step(0, 8), Step(1, 8), None], 300, [1, "UNAVAILABLE emoji_stream has not been heard from for 0.3 s, {}"]),
        ([Step(0, 8), None], 300, ["UNAVAILABLE emoji_stream has not been heard from for 0.3 s, {}"]),
        ([1.0, Step(1, 8), RESULT], 300, [1, f"seed {2**62 + 1}"]),  # a request with pictures takes a while to arrive
        ([None], 100, ["UNAVAILABLE emoji_stream has not been heard from for 1 s, {}"]),
        ([*[Step(0, 8), 0.2] * 4, *[Step(1, 8), 0.2] * 4, RESULT], 500, [1, f"seed {2**62 + 1}"]),
        ([Step(8, 8), 1.0, RESULT], 300, [8, f"seed {2**62 + 1}"]),  # a large result takes longer than a sign of life
        ([Step(0, 8), 1.0, RESULT], None, [f"seed {2**62 + 1}"]),
        ([Step(1, 8), RESULT, None], 300, [1, f"seed {2**62 + 1}"]),
        (
            [*(Step(0, 8, queue_position=place) for place in (2, 2, 1, 0)), Step(1, 8), RESULT],
            300,
            ["place 2", "place 1", 0, 1, f"seed {2**62 + 1}"],
        ),
    ],
)
def test_a_stream_that_falls_silent_ends(package: Package, updates: list, idle_ms: int | None, told: list[object]):
    over, parameters = threading.Event(), set()

    def behaviour(call: Call) -> Iterator[Step | Picture]:
        parameters.update(call.parameters)
        for update in updates:
            if update is None or isinstance(update, float):
                over.wait(update)
            else:
                yield update

    idle = "Infinity" if idle_ms is None else idle_ms
    with fake_triton(behaviour) as url:
        program = f'const triton = new client.Client({{ url: "{url}" }}), options = {{ idleTimeoutMs: {idle} }};{SAID}'
        printed = json.loads(package.run(program))
        over.set()
    ended = "its process may have ended: try again"
    assert printed == [each.format(ended) if isinstance(each, str) else each for each in told]
    assert {ERROR_REPORT_PARAMETER, HEARTBEAT_PARAMETER} <= parameters


def at_once(call: Call) -> Iterator[Picture]:
    yield RESULT


def test_urls_with_a_scheme_and_no_proxy_for_this_machine(package: Package):
    with fake_triton(at_once) as url:
        local = url.replace("127.0.0.1", "localhost")
        for each in (f"http://{url}", f"grpc://{url}/", local, f"ipv4:{url}"):
            program = f"""
                for (const name of ["http_proxy", "https_proxy", "grpc_proxy"]) process.env[name] = "http://127.0.0.1:9";
                const triton = new client.Client({{ url: "{each}" }}), options = {{}};{SAID}"""
            assert json.loads(package.run(program)) == [f"seed {2**62 + 1}"]


def test_tls_by_the_scheme_and_by_its_certificates(package: Package):
    tls = ROOT / "tests/support/tls"
    pem = tls / "certificate.pem"
    credentials = grpc.ssl_server_credentials([((tls / "key.pem").read_bytes(), pem.read_bytes())])
    with fake_triton(at_once, credentials=credentials) as url:
        for each in (url, f"grpcs://{url}"):
            program = f"""
                import {{ readFileSync }} from "node:fs";
                const rootCertificates = readFileSync("{pem}");
                const triton = new client.Client({{ url: "{each}", rootCertificates }}), options = {{}};{SAID}"""
            assert json.loads(package.run(program)) == [f"seed {2**62 + 1}"]


def test_other_urls_and_a_port_of_http_are_told(package: Package):
    wrong = ["", "localhost", "localhost:99999", "::1:8001", "ftp://localhost:8001", "localhost:8001/v2", "me@host:1"]
    program = f"""
        for (const url of {json.dumps(wrong)}) {{
          try {{ new client.Client({{ url }}); }} catch (error) {{ console.log(error.name, error.message); }}
        }}"""
    must = "must be HOST:PORT of the server's gRPC, for example localhost:8001"
    assert package.run(program).splitlines() == [f"TypeError url is '{url}', {must}" for url in wrong]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web = f"127.0.0.1:{server.server_port}"
    program = f'const triton = new client.Client({{ url: "{web}" }}), options = {{ timeoutMs: 20000 }};{SAID}'
    sentence = f"what listens at {web} does not speak gRPC: name the server's gRPC port, by default 8001"
    assert json.loads(package.run(program)) == [f"UNAVAILABLE {sentence}"]
    server.shutdown()
    server.server_close()


def test_an_answer_of_another_model_is_told(package: Package):
    program = """
        import { Readable } from "node:stream";
        import { GRPCInferenceServiceClient } from "./dist/generated/grpc_service.js";

        const answer = { errorMessage: "", inferResponse: { outputs: [{ name: "text", shape: [1n] }] } };
        answer.inferResponse.rawOutputContents = [Buffer.from("hello")];
        const other = () => Object.assign(Readable.from([answer]), { write() {}, end() {}, cancel() {} });
        GRPCInferenceServiceClient.prototype.modelStreamInfer = other;
        await new client.Client().generate({}).catch((error) => console.log(error.code, error.message));
    """
    sentence = "the answer has no output report, must be of a model that triton-taylorseer serves"
    assert package.run(program) == f"INTERNAL {sentence}\n"


def test_a_stream_that_ends_without_a_picture_is_an_error(package: Package):
    """No server of ours does that: gRPC's call is an empty one here."""
    program = """
        import { Readable } from "node:stream";
        import { GRPCInferenceServiceClient } from "./dist/generated/grpc_service.js";

        const nothing = () => Object.assign(Readable.from([]), { write() {}, end() {}, cancel() {} });
        GRPCInferenceServiceClient.prototype.modelStreamInfer = nothing;
        await new client.Client().generate({}).catch((error) => console.log(error.code, error.message));
    """
    assert package.run(program) == "INTERNAL emoji_stream ended without a picture\n"
