"""The compiler's settings."""

from __future__ import annotations

import pytest

from plugin.engines.tensorrt.compiler import configure
from plugin.engines.tensorrt.options import BuildOptions, SizeClass
from plugin.engines.tensorrt.package import Messages

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")


def test_float32_is_not_rounded_to_tf32():
    """TensorRT multiplies float32 in TF32 by default, with the mantissa of float16."""
    config = trt.Builder(Messages(trt).logger).create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32), "is what it does by itself"
    configure(trt, config, BuildOptions((1, 1, 1), (SizeClass("16x16", {"image_tokens": 16}),), ("SM89",)))
    assert not config.get_flag(trt.BuilderFlag.TF32)
