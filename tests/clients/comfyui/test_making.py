"""What the nodes send, and what they make of the answers: against a server in this process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np

from tests.support.comfyui.behaviours import NOWHERE, of_seed
from tests.support.comfyui.executor import Run
from tests.support.comfyui.prompts import given, node, pictures_of
from tests.support.fake_triton import PICTURE, Call, Failure, Picture, Step, fake_triton, four_steps
from tests.support.waiting import wait_for

FULL = Failure("UNAVAILABLE", "the queue is full with 64 requests: try again in 0.1 s")
GONE = Failure("UNAVAILABLE", "emoji has failed: its engine is gone")


def received(run: Run, place: int = 0) -> dict:
    """The fields that the server had of a picture."""
    return json.loads(run.output("make", 1))[place]["report"]["received"]


def test_what_the_widgets_say_is_what_is_sent(ui):
    cache = {"cache_interval": 4, "cache_order": 0, "cache_max_error": 0.5, "cache_preset": "paper"}
    with fake_triton() as url:
        prompt = pictures_of(
            ui,
            "TextToImage",
            url,
            cache=cache,
            prompt="star, noto",
            seed=2**53 + 1,
            num_inference_steps=20,
            guidance_scale=2.5,
            width=64,
            height=96,
        )
        run = ui.run(prompt)
    assert received(run) == {
        "prompt": "star, noto",
        "seed": 2**53 + 1,
        "num_inference_steps": 20,
        "guidance_scale": 2.5,
        "width": 64,
        "height": 96,
        "num_frames": 1,
        "preview": True,
        **cache,
    }
    images = run.output("make")
    assert np.array_equal(images.numpy(), PICTURE.astype(np.float32) / np.float32(255))


def test_a_class_label_goes_without_a_prompt(ui):
    with fake_triton(parameters={"takes_prompt": "false", "num_classes": "1000"}) as url:
        run = ui.run(pictures_of(ui, "TextToImage", url, class_label=207, width=64, height=64))
        beyond = ui.run(pictures_of(ui, "TextToImage", url, class_label=1000, width=64, height=64))
    assert received(run)["class_label"] == 207
    assert "prompt" not in received(run)
    assert str(beyond.error) == "class_label is 1000, must be an integer from 0 to 999"


def test_the_report_has_the_model_the_fields_and_what_the_server_reports(ui):
    with fake_triton(of_seed) as url:
        run = ui.run(pictures_of(ui, "TextToImage", url, prompt="star", seed=8, width=64, height=64))
    (record,) = json.loads(run.output("make", 1))
    assert record["model"] == "emoji"
    assert record["fields"]["prompt"] == "star"
    assert "preview" not in record["fields"]
    assert record["report"] == {"seed": 8, "fps": 8}


def test_a_batch_has_one_seed_after_the_other_and_is_sent_side_by_side(ui):
    """Each waits on the server until all are there: one after the other they would wait for ever."""
    together = threading.Barrier(6, timeout=20)

    def waiting(call: Call) -> Iterator[Step | Picture]:
        together.wait()
        yield from of_seed(call)

    with fake_triton(waiting) as url:
        run = ui.run(pictures_of(ui, "TextToImage", url, prompt="star", seed=5, batch_size=6, width=64, height=64))
    images = run.output("make")
    assert images.shape == (6, 4, 6, 3)
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [5, 6, 7, 8, 9, 10]
    assert [record["report"]["seed"] for record in json.loads(run.output("make", 1))] == [5, 6, 7, 8, 9, 10]


def test_no_seed_of_a_batch_is_beyond_the_largest(ui):
    with fake_triton(of_seed) as url:
        run = ui.run(pictures_of(ui, "TextToImage", url, prompt="star", seed=2**63 - 2, batch_size=3))
    assert str(run.error) == f"seed is {2**63 - 2}, must be at most {2**63 - 3} for 3 pictures"


def test_progress_and_previews_are_on_the_bar_of_the_node(ui):
    steps = threading.Semaphore(0)

    def slow(call: Call) -> Iterator[Step | Picture]:
        for update in four_steps(call):
            steps.acquire(timeout=20)
            yield update

    def run_it() -> None:
        runs.append(ui.run(pictures_of(ui, "TextToImage", url, prompt="a", batch_size=2, width=64, height=64)))

    runs: list[Run] = []
    with fake_triton(slow) as url:
        thread = threading.Thread(target=run_it)
        thread.start()
        for _ in range(10):
            steps.release()
            time.sleep(0.15)  # longer than the node waits between two looks
        thread.join(20)
    assert runs[0].ended == "execution_success"
    shown = [each for each in ui.host.progress if each.node == "make"]
    assert [each.value for each in shown] == sorted(each.value for each in shown)
    assert shown[-1].value == shown[-1].total == 8
    assert len(shown) >= 4
    previews = [each.preview for each in shown if each.preview is not None]
    assert {preview.size for preview in previews} == {(12, 4)}  # two of 6 x 4 side by side
    assert np.asarray(previews[-1])[0, 0, 0] == 4, "the preview of the last step"


def test_without_previews_none_is_asked_for(ui):
    with fake_triton() as url:
        run = ui.run(pictures_of(ui, "TextToImage", url, prompt="star", preview=False, width=64, height=64))
    assert "preview" not in received(run)
    assert all(each.preview is None for each in ui.host.progress)


def test_what_has_not_changed_is_not_made_again(ui):
    calls = []

    def counted(call: Call) -> Iterator[Step | Picture]:
        calls.append(call)
        yield from of_seed(call)

    with fake_triton(counted) as url:
        first = pictures_of(ui, "TextToImage", url, prompt="star", seed=5, width=64, height=64)
        for prompt, ran in (
            (first, ["server", "make", "shown"]),
            (first, ["shown"]),
            (pictures_of(ui, "TextToImage", url, prompt="star", seed=6, width=64, height=64), ["make", "shown"]),
            (pictures_of(ui, "TextToImage", url, prompt="moon", seed=6, width=64, height=64), ["make", "shown"]),
        ):
            assert ui.run(prompt).ran == ran
    assert [(call.fields["prompt"], call.fields["seed"]) for call in calls] == [("star", 5), ("star", 6), ("moon", 6)]


def test_what_the_server_refuses_is_told_in_its_own_words(ui):
    sentence = "negative_prompt is given, must be left out: Flux2Pipeline takes none"
    with fake_triton(lambda _: iter([Failure("INVALID_ARG", sentence)])) as url:
        run = ui.run(pictures_of(ui, "TextToImage", url, prompt="star", batch_size=2, width=64, height=64))
    assert str(run.error) == sentence


def test_a_full_server_is_asked_again_when_it_says(ui):
    answers = iter([FULL, FULL])

    def full_at_first(call: Call) -> Iterator[Step | Picture | Failure]:
        refusal = next(answers, None)
        yield from of_seed(call) if refusal is None else [refusal]

    with fake_triton(full_at_first) as url:
        run = ui.run(pictures_of(ui, "TextToImage", url, prompt="star", width=64, height=64))
    assert run.ended == "execution_success"
    assert next(answers, None) is None


def test_servers_take_turns_and_one_that_is_gone_is_left_out(ui):
    asked: dict[str, list[int]] = {"a": [], "b": []}

    def of(name: str):
        def behave(call: Call) -> Iterator[Step | Picture]:
            asked[name].append(call.fields["seed"])
            yield from of_seed(call)

        return behave

    with fake_triton(of("a")) as first, fake_triton(of("b")) as second:
        urls = f"{first}\n{NOWHERE}\n{second}"
        run = ui.run(pictures_of(ui, "TextToImage", urls, prompt="star", seed=10, batch_size=8, width=64, height=64))
        again = ui.run(pictures_of(ui, "TextToImage", urls, prompt="star", seed=20, batch_size=4, width=64, height=64))
    assert (run.output("make")[:, 0, 0, 0] * 255).round().tolist() == [*range(10, 18)]
    assert (again.output("make")[:, 0, 0, 0] * 255).round().tolist() == [*range(20, 24)]
    assert sorted(asked["a"] + asked["b"]) == [*range(10, 18), *range(20, 24)]
    assert len([seed for seed in asked["a"] if seed < 20]) in (3, 4, 5), "about half of them each"
    assert [len([seed for seed in asked[name] if seed >= 20]) for name in "ab"] == [2, 2], "the third is left out"


def test_a_server_that_fails_in_the_middle_is_left_and_the_picture_made_by_the_next(ui):
    def breaks(call: Call) -> Iterator[Step | Failure]:
        yield Step(1, 4)
        yield GONE

    with fake_triton(breaks) as first, fake_triton(of_seed) as second:
        urls = f"{first}\n{second}"
        run = ui.run(pictures_of(ui, "TextToImage", urls, prompt="star", seed=9, width=64, height=64))
    assert (run.output("make") * 255).round().unique().tolist() == [9]


def test_a_server_that_takes_connections_and_says_nothing_is_left_out(ui, module, monkeypatch):
    monkeypatch.setattr(module("connection"), "_ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, fake_triton(of_seed) as url:
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
        run = ui.run(pictures_of(ui, "TextToImage", f"{nobody}\n{url}", prompt="a", width=64, height=64))
        assert run.ended == "execution_success", run.error
        run = ui.run(pictures_of(ui, "TextToImage", nobody, prompt="a", width=64, height=64))
    assert str(run.error) == f"{nobody} has not answered within 0.5 s"


def test_where_no_server_answers_each_is_named(ui):
    run = ui.run(pictures_of(ui, "TextToImage", f"{NOWHERE}\nlocalhost:2", prompt="star"))
    assert run.ended == "execution_error"
    assert "no server answers at 127.0.0.1:1" in str(run.error)
    assert "no server answers at localhost:2" in str(run.error)


def test_values_that_come_from_other_nodes_are_held_to_the_models_limits_too(ui):
    asked = []
    with fake_triton(lambda call: asked.append(call) or of_seed(call)) as url:
        prompt: dict = {}
        width = given(ui, prompt, "INT", "wide", 264)
        run = ui.run(prompt | pictures_of(ui, "TextToImage", url, prompt="star", width=width, height=64))
    assert str(run.error) == "width is 264, must be a multiple of 16 from 16 to 128"
    assert not asked, "it is refused before it is sent"


def test_model_limits_are_asked_in_each_run(ui):
    description = {"pipeline": "FluxPipeline", "tasks": [{"pipeline": "FluxImg2ImgPipeline", "strength": 0.6}]}
    with fake_triton(models=("emoji", "flux"), description=description) as url:
        prompt = {"server": node(ui, "Server", url=url), "ask": node(ui, "ModelLimits", server=["server", 0])}
        prompt["shown"] = node(ui, "PreviewAny", source=["ask", 0])
        told = json.loads(ui.run(prompt).output("ask"))
        assert ui.run(prompt).ran == ["ask", "shown"]
    assert told["server"] == url
    assert told["models"] == ["emoji", "flux"]
    assert told["limits"]["max_size"] == 128
    assert told["tasks"] == description["tasks"]


def test_the_threads_of_a_run_end_with_it(ui):
    before = {*threading.enumerate()}
    with fake_triton(of_seed) as url:
        for seed in range(3):
            ui.run(pictures_of(ui, "TextToImage", url, prompt="star", seed=seed, width=64, height=64)).output("make")
    # gRPC's poller stays for as long as its process has seen an event loop; what is ours must not.
    wait_for(
        lambda: not [each for each in {*threading.enumerate()} - before if not each.daemon or "fulfil" in each.name],
        timeout_s=10,
    )
