"""Residual and Swin blocks against their definitions, written out pixel by pixel."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from qsr.blocks import (
    ResidualBlock,
    Shortcut,
    SwinBlock,
    SwinLayer,
    WindowAttention,
    from_windows,
    relative_position_index,
    shift_mask,
    to_windows,
)
from qsr.layers import Matmul

WINDOW = 4


def swin_block(learnable=True, layers=2):
    return SwinBlock(
        6, nn.Conv2d, learnable, linear=nn.Linear, matmul=Matmul,
        layers=layers, heads=2, window=WINDOW, mlp_ratio=2,
    )  # fmt: skip


def test_a_residual_block_is_shortcut_plus_two_convolutions():
    block = ResidualBlock(5, nn.Conv2d, True)
    nn.init.constant_(block.shortcut.scale, 0.7)
    x = torch.randn(2, 5, 4, 6)
    expected = 0.7 * x + block.conv2(F.relu(block.conv1(x)))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("make", [lambda s: ResidualBlock(6, nn.Conv2d, s), swin_block])
def test_a_skipped_block_still_multiplies_by_its_shortcut(make):
    x = torch.randn(1, 6, WINDOW, WINDOW)
    block = make(True)
    nn.init.constant_(block.shortcut.scale, 0.5)
    assert torch.equal(block.skip(x), 0.5 * x)
    fixed = make(False)
    assert torch.equal(fixed.skip(x), x)
    assert not any("shortcut" in name for name in fixed.state_dict())


def test_what_is_left_of_a_sliced_block_is_its_shortcut():
    shortcut = Shortcut(learnable=True)
    nn.init.constant_(shortcut.scale, -2.0)
    x = torch.randn(3)
    assert torch.equal(shortcut(x), -2 * x)
    assert torch.equal(shortcut.skip(x), shortcut(x))


@settings(deadline=None)
@given(n=st.integers(1, 2), rows=st.integers(1, 3), columns=st.integers(1, 3), c=st.integers(1, 3))
def test_windows_are_the_squares_of_the_picture_in_reading_order(n, rows, columns, c):
    x = torch.randn(n, rows * WINDOW, columns * WINDOW, c)
    windows = to_windows(x, WINDOW)
    squares = [
        x[i, y * WINDOW : (y + 1) * WINDOW, z * WINDOW : (z + 1) * WINDOW].reshape(-1, c)
        for i in range(n)
        for y in range(rows)
        for z in range(columns)
    ]
    assert torch.equal(windows, torch.stack(squares))
    assert torch.equal(from_windows(windows, x.shape), x)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 8), (12, 8)])
def test_the_mask_parts_exactly_the_pixels_that_the_roll_brought_together(height, width):
    # Two pixels of a shifted window may see each other if the roll kept their relative position.
    mask = shift_mask(height, width, WINDOW, torch.device("cpu"))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    origin = torch.stack([y, x], -1)
    shift = WINDOW // 2
    before = to_windows(origin.roll((-shift, -shift), dims=(0, 1))[None], WINDOW).tolist()
    after = to_windows(origin[None], WINDOW).tolist()
    for w, (old, new) in enumerate(zip(before, after, strict=True)):
        for i in range(WINDOW**2):
            for j in range(WINDOW**2):
                together = all(old[i][k] - old[j][k] == new[i][k] - new[j][k] for k in (0, 1))
                assert mask[w, i, j].item() == (0 if together else -100)


def test_each_relative_position_has_one_row_of_the_bias_table():
    index = relative_position_index(WINDOW)
    rows = {}
    for i in range(WINDOW**2):
        for j in range(WINDOW**2):
            offset = (i // WINDOW - j // WINDOW, i % WINDOW - j % WINDOW)
            assert rows.setdefault(offset, index[i, j].item()) == index[i, j].item()
    assert sorted(rows.values()) == list(range((2 * WINDOW - 1) ** 2))


def test_attention_is_that_of_pytorch_with_the_bias_as_mask():
    attention = WindowAttention(6, 2, WINDOW, nn.Linear, Matmul)
    nn.init.normal_(attention.position_bias)
    x = torch.randn(4, WINDOW**2, 6)
    mask = shift_mask(WINDOW, 2 * WINDOW, WINDOW, x.device)
    q, k, v = attention.qkv(x).view(4, 16, 3, 2, 3).permute(2, 0, 3, 1, 4)
    bias = attention.position_bias[attention.position_index].permute(2, 0, 1)
    bias = bias + mask.repeat(2, 1, 1)[:, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    expected = attention.proj(mixed.transpose(1, 2).reshape(4, 16, 6))
    torch.testing.assert_close(attention(x, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_layer_mixes_the_pixels_of_its_windows_and_no_others(shifted):
    layer = SwinLayer(6, 2, WINDOW, shifted, 2, nn.Linear, Matmul)
    x = torch.randn(1, 12, 12, 6)
    mask = shift_mask(12, 12, WINDOW, x.device)
    touched = x.clone()
    touched[0, 5, 6] = torch.randn(6)
    changed = (layer(touched, mask) != layer(x, mask)).any(-1)[0]
    expected = torch.zeros(12, 12, dtype=torch.bool)
    if shifted:  # windows begin at 2 and 6
        expected[2:6, 6:10] = True
    else:
        expected[4:8, 4:8] = True
    assert torch.equal(changed, expected)


def test_a_swin_block_is_shortcut_plus_convolution_of_alternating_layers():
    block = swin_block(layers=3)
    nn.init.constant_(block.shortcut.scale, 0.7)
    assert [layer.shift for layer in block.layers] == [0, WINDOW // 2, 0]
    x = torch.randn(2, 6, 8, 4)
    mask = shift_mask(8, 4, WINDOW, x.device)
    deep = functools.reduce(lambda h, layer: layer(h, mask), block.layers, x.permute(0, 2, 3, 1))
    torch.testing.assert_close(block(x), 0.7 * x + block.conv(deep.permute(0, 3, 1, 2)))
