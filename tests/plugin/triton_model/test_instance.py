"""What an instance makes of Triton's instance_group: its device, who shares that, and what its metrics are called."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plugin.triton_model.instance import count_on_device, device_of, label_of
from plugin.triton_model.settings import own_labels
from tests.support.pretend_triton import MetricFamily, Triton

CPU = {"kind": "KIND_CPU", "count": 2}
BOTH = {"kind": "KIND_GPU", "count": 1, "gpus": [0, 1]}
FIRST = {"kind": "KIND_GPU", "count": 2, "gpus": [0]}
SECOND = {"kind": "KIND_GPU", "count": 1, "gpus": [1]}


def told(groups: list[dict[str, Any]], name: str, kind: str, device_id: int = 0) -> dict[str, str]:
    """What Triton tells an instance."""
    return {
        "model_name": "flux_dev_stream",
        "model_instance_name": f"flux_dev_stream_{name}",
        "model_instance_kind": kind,
        "model_instance_device_id": str(device_id),
        "model_config": json.dumps({"instance_group": groups}),
    }


@pytest.mark.parametrize(
    ("args", "parameter", "device", "sharers", "label"),
    [
        (told([CPU], "0_0", "CPU"), "cpu", "cpu", 2, None),
        (told([CPU], "0_1", "CPU"), "cpu", "cpu", 2, "0_1"),
        (told([CPU], "0_1", "CPU"), "cuda:1", "cuda:1", 2, "0_1"),
        (told([BOTH], "0_0", "GPU", 0), "cuda:0", "cuda:0", 1, None),
        (told([BOTH], "0_0", "GPU", 1), "cuda:0", "cuda:1", 1, "0_0_gpu1"),
        (told([BOTH], "0_0", "KIND_GPU", 1), "cuda", "cuda:1", 1, "0_0_gpu1"),
        (told([FIRST, SECOND], "0_1", "GPU", 0), "cuda:0", "cuda:0", 2, "0_1"),
        (told([FIRST, SECOND], "1_0", "GPU", 1), "cuda:0", "cuda:1", 1, "1_0_gpu1"),
        (told([BOTH], "0_0", "GPU", 1), "cpu", "cpu", 2, "0_0_gpu1"),
        (told([BOTH, CPU], "1_1", "CPU"), "cuda:0", "cuda:0", 3, "1_1"),
    ],
)
def test_an_instance_knows_its_device_its_company_and_its_label(
    args: dict[str, str], parameter: str, device: str, sharers: int, label: str | None
):
    assert device_of(args, parameter) == device
    assert count_on_device(args, parameter) == sharers
    assert label_of(args) == label


@pytest.mark.parametrize("groups", [[BOTH], [FIRST, SECOND], [CPU]])
def test_no_two_instances_have_the_same_label(groups: list[dict[str, Any]]):
    labels = [
        label_of(told(groups, f"{index}_{number}", group["kind"], gpu))
        for index, group in enumerate(groups)
        for number in range(group["count"])
        for gpu in group.get("gpus", [0])
    ]
    assert len(set(labels)) == len(labels)
    assert labels.count(None) == 1


def test_no_label_of_a_metric_is_one_that_scraping_adds(triton: Triton):
    """Prometheus renames such a label to exported_…, and puts the target's own in its place."""
    from plugin.triton_model.metrics import Metrics

    Metrics(own_labels(told([BOTH], "0_1", "GPU", 1) | {"model_version": "2"}))
    labels = {
        label for family in MetricFamily.families.values() for metric in family.metrics for label in metric.labels
    }
    assert labels == {"model", "model_instance", "version", "kind", "outcome", "reason", "result"}
    assert not [label for label in labels if label.startswith(("exported_", "__"))]
    prometheus, kubernetes = {"job", "instance"}, {"pod", "namespace", "container", "endpoint", "service", "node"}
    assert not labels & (prometheus | kubernetes)
