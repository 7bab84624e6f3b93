"""Group norm, SiLU and dropout in one Triton kernel each way: every number is read once from memory.

`norm_silu(x, norm, shift, p)` equals `dropout(silu(norm(x + shift)))`, for channels-last images.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _spread(values, GROUPS: tl.constexpr, PAD: tl.constexpr):
    """Replace the entries of each group `[GROUPS * PAD]` by their sum."""
    total = tl.sum(tl.reshape(values, [GROUPS, PAD]), axis=1)
    return tl.reshape(tl.broadcast_to(total[:, None], [GROUPS, PAD]), [GROUPS * PAD])


@triton.jit
def _keep(offsets, image, seed, threshold):
    """Decide by a hash of place and seed which entries dropout keeps."""
    h = (offsets.to(tl.uint32) + (image.to(tl.uint32) ^ seed.to(tl.uint32))) * 0x9E3779B1
    h = (h ^ (h >> 15)) * 0x85EBCA6B
    return (h >> 8).to(tl.int32) >= threshold


@triton.jit
def forward_kernel(
    x_ptr, shift_ptr, weight_ptr, bias_ptr, seed_ptr, y_ptr, mean_ptr, rate_ptr,
    C, threshold, eps,
    HW: tl.constexpr, GROUP: tl.constexpr, PAD: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK: tl.constexpr, HAS_SHIFT: tl.constexpr, DROPS: tl.constexpr, ACTIVE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, GROUPS * PAD)
    if PAD == GROUP:  # a mask that is known to be true does not hinder wide loads
        channel = tl.program_id(1) * GROUPS * GROUP + lane
        valid = tl.full([GROUPS * PAD], 1, tl.int1)
    else:
        channel = (tl.program_id(1) * GROUPS + lane // PAD) * GROUP + lane % PAD
        valid = lane % PAD < GROUP
    image = row * HW * C
    weight = tl.load(weight_ptr + channel, mask=valid, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=valid, other=0.0)
    if HAS_SHIFT:
        shift = tl.load(shift_ptr + row * C + channel, mask=valid, other=0.0)
    else:
        shift = tl.zeros([GROUPS * PAD], tl.float32)
    total = tl.zeros([BLOCK, GROUPS * PAD], tl.float32)
    square = tl.zeros([BLOCK, GROUPS * PAD], tl.float32)
    for start in range(0, HW, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        offsets = pixel[:, None] * C + channel[None, :]
        x = (
            tl.load(x_ptr + image + offsets, mask=valid[None, :], other=0.0).to(tl.float32)
            + shift[None, :]
        )
        total += x
        square += x * x
    count = HW * GROUP
    mean = _spread(tl.sum(total, 0), GROUPS, PAD) / count
    variance = _spread(tl.sum(square, 0), GROUPS, PAD) / count - mean * mean
    rate = tl.rsqrt(tl.maximum(variance, 0.0) + eps)
    tl.store(mean_ptr + row * C + channel, mean, mask=valid)
    tl.store(rate_ptr + row * C + channel, rate, mask=valid)
    a = weight * rate
    b = bias + a * (shift - mean)
    for start in range(0, HW, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        offsets = pixel[:, None] * C + channel[None, :]
        z = tl.load(x_ptr + image + offsets, mask=valid[None, :], other=0.0).to(tl.float32)
        z = z * a[None, :] + b[None, :]
        if ACTIVE:
            z = z * tl.sigmoid(z)
        if DROPS:
            seed = tl.load(seed_ptr)
            z = tl.where(
                _keep(offsets, image, seed, threshold),
                z * (1.0 / (1.0 - threshold / 16777216.0)),
                0.0,
            )
        tl.store(y_ptr + image + offsets, z.to(y_ptr.dtype.element_ty), mask=valid[None, :])


@triton.jit
def _slope(x_ptr, grad_ptr, image, offsets, valid, rate, offset, weight, bias, seed_ptr, threshold,
           DROPS: tl.constexpr, ACTIVE: tl.constexpr):  # fmt: skip
    """Return the normalised x and the loss's slope with respect to weight * x + bias."""
    x = tl.load(x_ptr + image + offsets, mask=valid[None, :], other=0.0).to(tl.float32)
    slope = tl.load(grad_ptr + image + offsets, mask=valid[None, :], other=0.0).to(tl.float32)
    x = x * rate[None, :] + offset[None, :]
    if DROPS:
        keep = _keep(offsets, image, tl.load(seed_ptr), threshold)
        slope = tl.where(keep, slope * (1.0 / (1.0 - threshold / 16777216.0)), 0.0)
    if ACTIVE:
        z = x * weight[None, :] + bias[None, :]
        s = tl.sigmoid(z)
        slope = slope * s * (1.0 + z * (1.0 - s))
    return x, slope


@triton.jit
def backward_kernel(
    x_ptr, grad_ptr, residual_ptr, shift_ptr, weight_ptr, bias_ptr, seed_ptr, mean_ptr, rate_ptr,
    out_ptr, grad_weight_ptr, grad_bias_ptr, grad_shift_ptr,
    C, threshold,
    HW: tl.constexpr, GROUP: tl.constexpr, PAD: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    DROPS: tl.constexpr, ACTIVE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, GROUPS * PAD)
    if PAD == GROUP:  # a mask that is known to be true does not hinder wide loads
        channel = tl.program_id(1) * GROUPS * GROUP + lane
        valid = tl.full([GROUPS * PAD], 1, tl.int1)
    else:
        channel = (tl.program_id(1) * GROUPS + lane // PAD) * GROUP + lane % PAD
        valid = lane % PAD < GROUP
    image = row * HW * C
    weight = tl.load(weight_ptr + channel, mask=valid, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=valid, other=0.0)
    mean = tl.load(mean_ptr + row * C + channel, mask=valid, other=0.0)
    rate = tl.load(rate_ptr + row * C + channel, mask=valid, other=0.0)
    if HAS_SHIFT:
        mean = mean - tl.load(shift_ptr + row * C + channel, mask=valid, other=0.0)
    offset = -mean * rate
    slopes = tl.zeros([BLOCK, GROUPS * PAD], tl.float32)
    products = tl.zeros([BLOCK, GROUPS * PAD], tl.float32)
    total = tl.zeros([BLOCK, GROUPS * PAD], tl.float32)
    for start in range(0, HW, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        offsets = pixel[:, None] * C + channel[None, :]
        x, slope = _slope(x_ptr, grad_ptr, image, offsets, valid, rate, offset, weight, bias, seed_ptr,
                          threshold, DROPS, ACTIVE)  # fmt: skip
        slopes += slope
        products += slope * x
        if HAS_SHIFT:
            total += x
    slope_sum, product_sum = tl.sum(slopes, 0), tl.sum(products, 0)
    tl.store(grad_bias_ptr + row * C + channel, slope_sum, mask=valid)
    tl.store(grad_weight_ptr + row * C + channel, product_sum, mask=valid)
    first = _spread(slope_sum * weight, GROUPS, PAD) / (HW * GROUP)
    second = _spread(product_sum * weight, GROUPS, PAD) / (HW * GROUP)
    if HAS_SHIFT:
        grad_shift = rate * (weight * slope_sum - HW * first - second * tl.sum(total, 0))
        tl.store(grad_shift_ptr + row * C + channel, grad_shift, mask=valid)
    for start in range(0, HW, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        offsets = pixel[:, None] * C + channel[None, :]
        x, slope = _slope(x_ptr, grad_ptr, image, offsets, valid, rate, offset, weight, bias, seed_ptr,
                          threshold, DROPS, ACTIVE)  # fmt: skip
        out = rate[None, :] * (weight[None, :] * slope - first[None, :] - x * second[None, :])
        if HAS_RESIDUAL:
            out += tl.load(residual_ptr + image + offsets, mask=valid[None, :], other=0.0).to(
                tl.float32
            )
        tl.store(out_ptr + image + offsets, out.to(out_ptr.dtype.element_ty), mask=valid[None, :])


LANES, BLOCK, WARPS = 32, 64, 4  # channels per program, pixels per turn of its loop, warps


def _shape(x: Tensor, groups: int) -> tuple[tuple, dict]:
    """Return the grid and the compile-time numbers for `x` `[B, C, H, W]`."""
    B, C, H, W = x.shape
    group = C // groups
    pad = triton.next_power_of_2(group)
    at_once = max(1, LANES // pad)
    while groups % at_once:
        at_once //= 2
    numbers = dict(HW=H * W, GROUP=group, PAD=pad, GROUPS=at_once, BLOCK=min(BLOCK, H * W))
    return (B, groups // at_once), numbers


def _or(value: Tensor | None, stand_in: Tensor) -> Tensor:
    """Return `value`, or a tensor in its place that no kernel will look at."""
    return stand_in if value is None else value


@torch.library.triton_op("consistency_edu::norm_forward", mutates_args=())
def norm_forward(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, seed: Tensor | None,
    groups: int, eps: float, p: float, is_active: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return y, and the mean and the rate of each channel's group, `[B, C]`."""
    B, C = x.shape[:2]
    y = torch.empty_like(x)
    mean, rate = (torch.empty(B, C, device=x.device, dtype=torch.float32) for _ in range(2))
    grid, numbers = _shape(x, groups)
    threshold = int(p * 2**24) if seed is not None else 0
    torch.library.wrap_triton(forward_kernel)[grid](
        x, _or(shift, weight), weight, bias, _or(seed, weight), y, mean, rate, C, threshold, eps,
        HAS_SHIFT=shift is not None, DROPS=seed is not None, ACTIVE=is_active, num_warps=WARPS, **numbers,
    )  # fmt: skip
    return y, mean, rate


@torch.library.triton_op("consistency_edu::norm_backward", mutates_args=())
def norm_backward(
    x: Tensor, grad: Tensor, residual: Tensor | None, shift: Tensor | None, weight: Tensor,
    bias: Tensor, seed: Tensor | None, mean: Tensor, rate: Tensor,
    groups: int, p: float, is_active: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, and per sample those of weight, bias and shift."""
    out = torch.empty_like(x)
    sums = [torch.empty_like(mean) for _ in range(3)]
    grid, numbers = _shape(x, groups)
    threshold = int(p * 2**24) if seed is not None else 0
    torch.library.wrap_triton(backward_kernel)[grid](
        x, grad, _or(residual, x), _or(shift, weight), weight, bias, _or(seed, weight), mean, rate, out,
        *sums, x.shape[1], threshold, HAS_SHIFT=shift is not None, HAS_RESIDUAL=residual is not None,
        DROPS=seed is not None, ACTIVE=is_active, num_warps=WARPS, **numbers,
    )  # fmt: skip
    return out, *sums


class NormSiLU(torch.autograd.Function):
    """(x, shift, weight, bias, seed, ...) -> (dropout(silu(norm(x + shift))), x)."""

    @staticmethod
    def forward(ctx, x, shift, weight, bias, seed, groups, eps, p, is_active, hands_on):
        y, mean, rate = norm_forward(x, shift, weight, bias, seed, groups, eps, p, is_active)
        ctx.save_for_backward(x, shift, weight, bias, seed, mean, rate)
        ctx.groups, ctx.p, ctx.is_active = groups, p, is_active
        return (y, x.view_as(x)) if hands_on else y

    @staticmethod
    def backward(ctx, grad, residual=None):
        x, shift, weight, bias, seed, mean, rate = ctx.saved_tensors
        last = torch.channels_last
        grad = grad.contiguous(memory_format=last)
        residual = None if residual is None else residual.contiguous(memory_format=last)
        out, by_weight, by_bias, by_shift = norm_backward(
            x, grad, residual, shift, weight, bias, seed, mean, rate,
            ctx.groups, ctx.p, ctx.is_active,
        )  # fmt: skip
        by_shift = None if shift is None else by_shift
        return out, by_shift, by_weight.sum(0), by_bias.sum(0), None, None, None, None, None, None


def norm_silu(x, norm, shift=None, p=0.0, *, is_active=True, hands_on=False):
    """Return dropout(silu(norm(x + shift))) with probability `p`; with `hands_on` x, too.

    Whoever goes on with that x has its gradient added inside the kernel.
    """
    seed = torch.randint(2**31 - 1, (1,), device=x.device, dtype=torch.int32) if p else None
    x = x.contiguous(memory_format=torch.channels_last)
    numbers = norm.num_groups, norm.eps, p, is_active, hands_on
    return NormSiLU.apply(x, shift, norm.weight, norm.bias, seed, *numbers)
