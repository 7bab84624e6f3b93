"""Other ways to write the U-Net's blocks, timed side by side; the losers are not in the package."""

import types
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from consistency_edu.networks import KEEP, GroupNorm, ResidualBlock, SelfAttention, Stage

# ------------------------------------------------------------------ one kernel for each norm


def fused_block(self, x: Tensor, context: Tensor) -> Tensor:
    """A residual block with norm, SiLU and dropout in one kernel."""
    from fused_norm import norm_silu

    y, x = norm_silu(x, self.norm1, hands_on=True)
    h = self.conv1(self.resize(y))
    y = norm_silu(h, self.norm2, self.shift(context), self.dropout.p if self.training else 0.0)
    return (self.skip(self.resize(x)) + self.conv2(y)) * KEEP


def fused_attention(self, x: Tensor) -> Tensor:
    """Self-attention with its norm in one kernel."""
    from fused_norm import norm_silu

    B, C, H, W = x.shape
    y, x = norm_silu(x, self.norm, is_active=False, hands_on=True)
    qkv = self.to_qkv(y).permute(0, 2, 3, 1).reshape(B, H * W, 3, self.heads, C // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return (x + self.out(h.reshape(B, H, W, C).permute(0, 3, 1, 2))) * KEEP


def use_fused_norm(module: nn.Module) -> None:
    """Let all blocks in `module` use the kernel."""
    for part in module.modules():
        if isinstance(part, ResidualBlock):
            part.forward = types.MethodType(fused_block, part)
        if isinstance(part, SelfAttention):
            part.forward = types.MethodType(fused_attention, part)


# ------------------------------------------------------------------ other changes


class GroupedNorm(GroupNorm):
    """The norm with one reduction over each group's pixels and channels."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        B, C, H, W = x.shape
        v = x.permute(0, 2, 3, 1).reshape(B, H * W, C).float()
        v = (v if shift is None else v + shift[:, None]).unflatten(2, (self.num_groups, -1))
        mean = v.mean((1, 3), keepdim=True)
        variance = v.square().mean((1, 3), keepdim=True) - mean**2
        y = ((v - mean) * (variance + self.eps).rsqrt()).flatten(2) * self.weight + self.bias
        return y.reshape(B, H, W, C).permute(0, 3, 1, 2).to(x.dtype)


class LibraryNorm(GroupNorm):
    """PyTorch's own group norm."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        x = x if shift is None else x + shift[..., None, None].to(x.dtype)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


def with_norm(kind: type) -> Callable:
    """Return a change that makes all norms of `kind`."""

    def change(module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, GroupNorm):
                part.__class__ = kind

    return change


def philox(module: nn.Module) -> None:
    """Use PyTorch's own dropout."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.__class__ = nn.Dropout


def no_dropout(module: nn.Module) -> None:
    """Drop nothing."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def split_block(self, x: Tensor | tuple, context: Tensor) -> Tensor:
    """A residual block that takes (h, skip) without stacking them first."""
    if not isinstance(x, tuple):
        return ResidualBlock.forward(self, x, context)
    norm, sizes = self.norm1, [part.shape[1] for part in x]
    mean = torch.cat([part.float().mean((2, 3)) for part in x], 1)
    square = torch.cat([part.float().square().mean((2, 3)) for part in x], 1)
    mean, square = (m.unflatten(1, (norm.num_groups, -1)).mean(2) for m in (mean, square))
    rate = (square - mean**2).clamp(min=0).add(norm.eps).rsqrt()
    mean, rate = (m.repeat_interleave(sum(sizes) // norm.num_groups, 1) for m in (mean, rate))
    a = norm.weight * rate
    lines = zip(x, a.split(sizes, 1), (norm.bias - a * mean).split(sizes, 1))
    y = [F.silu(m[..., None, None] * p + b[..., None, None]).to(p.dtype) for p, m, b in lines]
    h = F.silu(self.norm2(self.conv1(torch.cat(y, 1)), self.shift(context)))
    weights = self.skip.weight.to(h.dtype).split(sizes, 1)
    kept = sum(F.conv2d(part, weight) for part, weight in zip(x, weights))
    return (kept + self.conv2(self.dropout(h))) * KEEP


def split(module: nn.Module) -> None:
    """Let all blocks take pairs."""
    for part in module.modules():
        if isinstance(part, ResidualBlock):
            part.forward = types.MethodType(split_block, part)


class Stack(nn.Module):
    """Four stages of the edm U-Net at full size: two of the way up, two plain ones."""

    def __init__(self, width: int, pairs: bool):
        super().__init__()
        options = dict(context=2 * width, dropout=0.13)
        self.up = nn.ModuleList(Stage(2 * width, width, **options) for _ in range(2))
        self.plain = nn.ModuleList(Stage(width, width, **options) for _ in range(2))
        self.pairs = pairs

    def forward(self, h: Tensor, skips: list[Tensor], context: Tensor) -> Tensor:
        for stage, skip in zip(self.up, skips):
            h = stage((h, skip) if self.pairs else torch.cat([h, skip], 1), context)
        for stage in self.plain:
            h = stage(h, context)
        return h


def time_stack(bench, change: Callable | None, pairs: bool = False, **options) -> tuple:
    """Return (ms for forward and backward, GiB at the peak, seconds of the first call)."""
    torch.manual_seed(0)
    width, batch = (8, 4) if bench.args.tiny else (256, bench.args.batch)
    stack = Stack(width, pairs)
    for p in stack.parameters():
        if p.ndim > 1 and not p.any():
            nn.init.normal_(p, std=0.01)
    stack = stack.to(bench.device).to(memory_format=torch.channels_last).train()
    if change is not None:
        change(stack)
    shape = (batch, width, bench.size, bench.size)
    make = lambda: torch.randn(shape, device=bench.device, dtype=torch.bfloat16).contiguous(
        memory_format=torch.channels_last
    )
    h, skips, grad = make().requires_grad_(), [make().requires_grad_() for _ in range(2)], make()
    context = torch.randn(batch, 2 * width, device=bench.device)
    call = stack if not bench.is_gpu else torch.compile(stack, dynamic=False, **options)

    def step():
        call(h, skips, context).backward(grad)
        for p in (*stack.parameters(), h, *skips):
            p.grad = None

    start = bench.wait()
    step()
    first = bench.wait() - start
    ms = 1e3 * bench.seconds(step, least=0.6)
    memory = torch.cuda.max_memory_allocated() / 2**30 if bench.is_gpu else float("nan")
    return ms, memory, first


def disagreement(bench, change: Callable) -> float:
    """Return how far results and gradients of a compiled, changed stack are from the package's."""
    found = []
    for how in (None, change):
        torch.manual_seed(0)
        stack = Stack(256, False).to(bench.device).to(memory_format=torch.channels_last).eval()
        for p in stack.parameters():
            if p.ndim > 1 and not p.any():
                nn.init.normal_(p, std=0.01)
        if how is not None:
            how(stack)
        h, *skips = (torch.randn(8, 256, 32, 32, device=bench.device) for _ in range(3))
        context = torch.randn(8, 512, device=bench.device)
        h, skips = h.bfloat16().requires_grad_(), [s.bfloat16() for s in skips]
        out = torch.compile(stack, dynamic=False)(h, skips, context)
        out.float().square().mean().backward()
        found.append([out.detach(), h.grad, *(p.grad for p in stack.parameters())])
    pairs = ((a.float(), b.float()) for a, b in zip(*found))
    errors = [float((a - b).norm() / a.norm()) for a, b in pairs]
    return max(e if e == e else float("inf") for e in errors)


def stack_floor(bench) -> float:
    """Return the ms that the stack's convolutions take at the speed of the matrix product."""
    width, batch = (8, 4) if bench.args.tiny else (256, bench.args.batch)
    pixels = batch * bench.size**2
    macs = pixels * width**2 * (2 * (18 + 2 + 9) + 2 * 18)
    return 1e3 * 3 * 2 * macs / bench.peak


def time_kernels(bench, say: Callable) -> None:
    """Time the fused kernels alone, for some sizes of their tiles, in ms and TB/s."""
    import fused_norm

    batch, times = bench.args.batch, {}
    for C, size in ((256, 32), (512, 32), (256, 16)):
        norm = GroupNorm(C).to(bench.device)
        x, grad, residual = (
            torch.randn(batch, C, size, size, device=bench.device, dtype=torch.bfloat16).contiguous(
                memory_format=torch.channels_last
            )
            for _ in range(3)
        )
        shift = torch.randn(batch, C, device=bench.device)
        seed = torch.ones(1, device=bench.device, dtype=torch.int32)
        tiles = ((32, 64, 4), (32, 128, 8), (64, 32, 4), (64, 64, 8), (64, 128, 8), (128, 32, 8))
        for lanes, block, warps in tiles:
            fused_norm.LANES, fused_norm.BLOCK, fused_norm.WARPS = lanes, block, warps
            w, b, g = norm.weight.detach(), norm.bias.detach(), norm.num_groups
            forward = lambda: fused_norm.norm_forward(x, shift, w, b, seed, g, 1e-6, 0.13, True)
            _, mean, rate = forward()
            backward = lambda: fused_norm.norm_backward(
                x, grad, residual, shift, w, b, seed, mean, rate, g, 0.13, True
            )
            f, r = (1e3 * bench.seconds(k, least=0.1) for k in (forward, backward))
            size_tb = x.numel() * 2 / 1e12
            times[lanes, block, warps] = times.get((lanes, block, warps), 0) + f + r
            say(
                f"  kernel C {C} {size}x{size} lanes {lanes} block {block} warps {warps}: forward "
                f"{f:.3f} ms {2 * size_tb / f * 1e3:.2f} TB/s, backward {r:.3f} ms "
                f"{4 * size_tb / r * 1e3:.2f} TB/s"
            )
    fused_norm.LANES, fused_norm.BLOCK, fused_norm.WARPS = min(times, key=times.get)
    say("  chosen:", min(times, key=times.get))


CHANGES = {
    "as in the package": (None, {}),
    "fused norm kernel": (use_fused_norm, {}),
    "no dropout": (no_dropout, {}),
    "library dropout": (philox, {}),
    "pairs unstacked": (split, {"pairs": True}),
    "grouped norm": (with_norm(GroupedNorm), {}),
    "library norm": (with_norm(LibraryNorm), {}),
    "1x1 as products": (None, {"options": {"conv_1x1_as_mm": True}}),
    "tuned pointwise": (None, {"options": {"max_autotune_pointwise": True}}),
}


def compare(bench, attempt: Callable, say: Callable) -> Callable | None:
    """Time variants of a stack of blocks; return the fused norm if it is faster than none."""
    floor = stack_floor(bench)
    say(f"four stages at full size, forward and backward; their convolutions at P: {floor:.2f} ms")

    times = {}

    def one(name):
        change, options = CHANGES[name]
        ms, memory, first = times[name] = time_stack(bench, change, **options)
        say(
            f"  {name:20} {ms:8.2f} ms ({ms - floor:6.2f} above)  {memory:5.1f} GiB  "
            f"first {first:.0f} s"
        )

    if bench.is_gpu:
        attempt(bench, "kernels", 45, lambda: time_kernels(bench, say))
    for name in bench.args.which.split(",") if bench.args.which else CHANGES:
        if bench.is_gpu or "kernel" not in name and "options" not in CHANGES[name][1]:
            attempt(bench, name, 45, lambda name=name: one(name))
    plain, fused = (times.get(n, [1e9])[0] for n in list(CHANGES)[:2])
    if not bench.is_gpu or fused > plain:
        return None
    error = disagreement(bench, use_fused_norm)
    say(f"  fused norm: results and gradients differ by {error:.1e} from the package's")
    return use_fused_norm if error < 0.02 else None
