"""What the clients make of answers that no served model gives: other models behind the same name do."""

from __future__ import annotations

import json
import struct

import pytest
from tritonclient.grpc import InferResult, service_pb2

from triton_taylorseer_client import GenerationError
from triton_taylorseer_client.messages import generation_of, is_last, outcome_of, progress_of


def answer(**outputs: object) -> InferResult:
    response = service_pb2.ModelInferResponse()
    for name, value in outputs.items():
        text = json.dumps(value).encode() if isinstance(value, dict) else str(value).encode()
        kind, raw = ("INT32", struct.pack("<i", value)) if isinstance(value, int) else ("BYTES", b"")
        response.outputs.add(name=name, datatype=kind, shape=(1,))
        response.raw_output_contents.append(raw or struct.pack("<I", len(text)) + text)
    return InferResult(response)


@pytest.mark.parametrize("read", [generation_of, lambda result: outcome_of(result, "localhost:8001")])
@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        ({}, "the answer has no output (image|report), must be of a model that triton-taylorseer serves"),
        ({"image": "pixels"}, "the answer has no output report, must be of"),
        ({"report": {"seed": 3}}, "the answer has no output image, must be of"),
        ({"image": "pixels", "report": "all went well"}, "the answer's report is not JSON: "),
    ],
)
def test_an_answer_without_a_result_is_told(read, outputs, sentence):
    with pytest.raises(GenerationError, match=sentence):
        read(answer(**outputs))


def test_a_stream_of_another_model_is_told():
    with pytest.raises(GenerationError, match="the answer has no output report"):
        is_last(answer(text="hello"))
    with pytest.raises(GenerationError, match="the answer has no output num_steps"):
        progress_of(answer(step=1))
