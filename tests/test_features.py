"""The networks that judge say which images they take, and refuse others."""

import pytest
import torch

from consistency_edu.features import DigitClassifier, Pixels, as_rgb, load_features
from consistency_edu.files import InputError

GREY = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8).expand(-1, 3, -1, -1)


@pytest.fixture(scope="module")
def digits():
    return load_features("digits")


def test_a_judge_of_digits_takes_digits(digits):
    assert digits(GREY).shape[0] == 2 and digits.takes == "grey images of 8 x 8 pixels"


@pytest.mark.parametrize(
    "pixels, words",
    [
        (GREY.repeat(1, 1, 2, 2), "not uint8 .2, 3, 16, 16."),
        (GREY.repeat(1, 1, 1, 2), "not uint8 .2, 3, 8, 16."),
        (GREY.float(), "not float32 .2, 3, 8, 8."),
        (GREY[:, :1], "not uint8 .2, 1, 8, 8."),
        (GREY[0], "not uint8 .3, 8, 8."),
        (GREY + torch.tensor([0, 1, 2], dtype=torch.uint8)[:, None, None], "not colour"),
    ],
)
def test_a_judge_of_digits_refuses_all_else(digits, pixels, words):
    with pytest.raises(InputError, match=f"takes grey images of 8 x 8 pixels, {words}"):
        digits(pixels)


def test_pixels_take_any_one_size():
    assert Pixels()(GREY.repeat(1, 1, 3, 1)).shape == (2, 3 * 24 * 8)
    assert Pixels().takes == "grey or colour images of any one size"


def test_grey_images_become_colour_once():
    assert torch.equal(as_rgb(GREY[:, :1]), GREY) and torch.equal(as_rgb(GREY), GREY)
    assert DigitClassifier.is_grey
