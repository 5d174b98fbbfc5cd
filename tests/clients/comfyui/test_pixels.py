"""Pictures and masks between ComfyUI's tensors and the levels that travel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from triton_taylorseer_client import InvalidArgument

LEVELS = np.arange(256, dtype=np.uint8)


@pytest.fixture
def pixels(module):
    return module("pixels")


def test_every_level_goes_there_and_back(pixels):
    image = np.stack([LEVELS.reshape(16, 16), LEVELS[::-1].reshape(16, 16), LEVELS.reshape(16, 16).T], -1)
    tensor = pixels.images_of([image[None]])
    assert tensor.dtype == torch.float32
    assert tensor.shape == (1, 16, 16, 3)
    assert np.array_equal(tensor.numpy(), (image[None] / np.float32(255)).astype(np.float32))
    (back,) = pixels.pictures_of("image", tensor)
    assert np.array_equal(back, image)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_numbers_are_taken_as_they_are(pixels, dtype):
    tensor = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=dtype).reshape(1, 2, 2, 1).expand(1, 2, 2, 3)
    (picture,) = pixels.pictures_of("image", tensor)
    assert picture[..., 0].tolist() == [[0, 64], [128, 255]]


def test_what_is_beyond_the_range_is_cut_off_and_grey_becomes_rgb(pixels):
    (picture,) = pixels.pictures_of("image", torch.tensor([-1.0, 0.5, 2.0, 1.0]).reshape(1, 2, 2, 1))
    assert picture.shape == (2, 2, 3)
    assert picture[..., 2].tolist() == [[0, 128], [255, 255]]


@pytest.mark.parametrize("shape", [(4, 4, 3), (0, 4, 4, 3), (1, 4, 4, 2), (1, 3, 4, 5)])
def test_another_shape_is_refused(pixels, shape):
    with pytest.raises(InvalidArgument, match=r"image has shape .*, must be \[B, H, W, C\] with C 1, 3 or 4"):
        pixels.pictures_of("image", torch.zeros(shape))


def test_what_is_no_number_is_refused(pixels):
    with pytest.raises(InvalidArgument, match="image has values that are no numbers, must be from 0 to 1"):
        pixels.pictures_of("image", torch.full((1, 4, 4, 3), float("nan")))


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (1, 1, 2, 3), (1, 2, 3, 1)])
def test_a_mask_of_each_documented_shape_is_white_where_it_is_one(pixels, shape):
    (mask,) = pixels.masks_of("mask", torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0, 0.0]).reshape(shape))
    assert mask.tolist() == [[0, 255, 128], [255, 0, 0]]


def test_a_batch_of_masks_is_several(pixels):
    masks = pixels.masks_of("mask", torch.eye(3).reshape(1, 3, 3).repeat(4, 1, 1))
    assert len(masks) == 4
    assert np.array_equal(masks[3], np.eye(3, dtype=np.uint8) * 255)


def test_an_empty_mask_is_refused(pixels):
    """As Load Image gives one for a picture without transparent parts."""
    with pytest.raises(
        InvalidArgument, match="mask marks nothing, must be above 0 where the picture is to be repainted"
    ):
        pixels.masks_of("mask", torch.zeros(1, 64, 64))
    with pytest.raises(InvalidArgument, match=r"mask has shape \(1, 2, 3, 4\), must be \[H, W\] or \[B, H, W\]"):
        pixels.masks_of("mask", torch.ones(1, 2, 3, 4))


def test_previews_lie_side_by_side_and_those_that_have_not_come_are_black(pixels):
    assert pixels.preview_sheet([None, None]) is None
    one, other = (np.full((4, 6, 3), level, np.uint8) for level in (50, 200))
    sheet = pixels.preview_sheet([one, None, other])
    assert isinstance(sheet, Image.Image)
    assert sheet.size == (12, 8)
    levels = np.asarray(sheet)
    assert (levels[:4, :6] == 50).all()
    assert (levels[:4, 6:] == 0).all()
    assert (levels[4:, :6] == 200).all()
    assert (np.asarray(pixels.preview_sheet([one])) == one).all()
