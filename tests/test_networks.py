"""The networks' shapes, counts, precision and dropout: what a speed-up must not change."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from consistency_edu import dropout
from consistency_edu.data import InputError
from consistency_edu.dropout import Dropout, same_dropout
from consistency_edu.networks import (
    KEEP,
    MLP,
    UNETS,
    Context,
    Conv,
    GapEmbedding,
    GroupNorm,
    LabelEmbedding,
    NoiseEmbedding,
    ResidualBlock,
    SelfAttention,
    UNet,
    UpPath,
    double,
    halve,
    named_unet,
)

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]


def awake(network, std=0.1):
    """Fill zero weights, so that a test can see them."""
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        if not p.any():
            p.data = std * torch.randn(p.shape, generator=generator)
    return network


def count(module):
    return sum(p.numel() for p in module.parameters())


# ------------------------------------------------------------------ EDM's shape


def block_size(inputs, outputs, *, is_resized=False, attends=False):
    """Parameters of EDM's block of 512 context numbers, less one of each pair of biases."""
    size = 2 * inputs + 9 * inputs * outputs + 513 * outputs + 2 * outputs
    size += 9 * outputs**2 + outputs
    if inputs != outputs or is_resized:
        size += inputs * outputs
    if attends:
        size += 2 * outputs + 3 * outputs * (outputs + 1) + outputs * (outputs + 1)
    return size


def test_edm_has_ddpmpps_parameters_stage_by_stage():
    with torch.device("meta"):
        network = named_unet("edm")
    w, attends = 256, dict(attends=True)
    down = [block_size(128, w)] + [block_size(w, w)] * 3 + [block_size(w, w, is_resized=True)]
    down += [block_size(w, w, **attends)] * 4 + [block_size(w, w, is_resized=True)]
    down += [block_size(w, w)] * 4
    cat = block_size(2 * w, w)
    up = [cat] * 5 + [block_size(w, w, is_resized=True)] + [cat] * 4
    up += [block_size(2 * w, w, **attends), block_size(w, w, is_resized=True)]
    up += [cat] * 4 + [block_size(w + 128, w)]
    assert [count(stage) for stage in network.down.stages] == down
    assert [count(stage) for stage in network.up.stages] == up
    assert [count(s) for s in network.middle] == [block_size(w, w, **attends), block_size(w, w)]
    assert count(network.context) == 129 * 512 + 513 * 512
    assert count(network) == 55_733_891 - 256 * (33 + 20) - 9 * 128


def test_edm_costs_what_ddpmpp_costs():
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        named_unet("edm")(torch.zeros(2, 3, 32, 32), torch.zeros(2))
    assert abs(counter.get_total_flops() / 2e9 - 42.38) < 0.02


def test_edm_embeds_noise_as_ddpmpp_does():
    """EDM's frequencies fall from 1 to 1e-4; ours rise, sines first."""
    with torch.device("meta"):
        context = named_unet("edm").context
    assert context.mix[0].in_features == 128
    ours = NoiseEmbedding(128, low=1e-4, high=1.0)(torch.tensor([-0.7, 0.4]))
    angle = torch.tensor([[-0.7], [0.4]]) * (1e-4) ** (torch.arange(64) / 63)
    theirs = torch.cat([angle.sin(), angle.cos()], 1)
    assert torch.allclose(ours, theirs.unflatten(1, (2, 64)).flip(2).flatten(1), atol=1e-5)


def test_the_named_sizes():
    sizes = {}
    for name in UNETS:
        with torch.device("meta"):
            sizes[name] = count(named_unet(name, 3, num_classes=10))
    assert sizes["tiny"] < 1e6 and 2 * sizes["mini"] < 16e6 and 17e6 < sizes["small"] < 22e6
    with pytest.raises(InputError, match="edm"):
        named_unet("emd")
    assert named_unet("tiny", 1, dropout=0.3).down.stages[0].block.dropout.p == 0.3


# ------------------------------------------------------------------ norm


def test_the_line_is_the_norm_and_has_its_gradients():
    torch.manual_seed(0)
    norm = GroupNorm(24).double()
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    assert norm.num_groups == 2 and norm.eps == 1e-6
    x = (2 + torch.randn(3, 24, 4, 6, dtype=torch.float64)).requires_grad_()
    shift = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    inputs, weight = [x, shift, *norm.parameters()], torch.randn(3, 24, 4, 6).double()
    a, b = norm.scale_and_shift(x, shift)
    line = a[..., None, None] * x + b[..., None, None]
    straight = F.group_norm(x + shift[..., None, None], 2, norm.weight, norm.bias, 1e-6)
    assert torch.allclose(line, straight, atol=1e-10)
    ours = torch.autograd.grad((weight * line).sum(), inputs)
    theirs = torch.autograd.grad((weight * straight).sum(), inputs)
    assert all(torch.allclose(p, q, atol=1e-9) for p, q in zip(ours, theirs))
    a, b = norm.scale_and_shift(x)
    assert torch.allclose(a[..., None, None] * x + b[..., None, None], norm(x), atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_the_norm_keeps_the_dtype_and_its_statistics_wide(device):
    norm = GroupNorm(8).to(device)
    x = 5 + torch.randn(4, 8, 16, 16, device=device)
    rounded = norm(x.bfloat16(), torch.ones(4, 8, device=device))
    assert rounded.dtype == torch.bfloat16
    assert norm.scale_and_shift(x.bfloat16())[0].dtype == torch.float32
    wide = norm.scale_and_shift(x.bfloat16().float())
    for ours, theirs in zip(norm.scale_and_shift(x.bfloat16()), wide):
        assert torch.allclose(ours, theirs, rtol=1e-5)
    exact = norm(x.bfloat16().float(), torch.ones(4, 8, device=device))
    assert (rounded.float() - exact).abs().max() < 0.05


def test_a_constant_channel_gives_no_nan():
    a, b = GroupNorm(4).scale_and_shift(torch.full((1, 4, 8, 8), 1000.1))
    assert a.isfinite().all() and b.isfinite().all()


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize("device", DEVICES)
def test_a_rounded_unet_is_near_the_exact_one(device):
    torch.manual_seed(0)
    network = awake(UNet(3, width=16, num_classes=4)).eval().to(device)
    x, c = torch.randn(8, 3, 8, 8, device=device), torch.linspace(-1.5, 1, 8, device=device)
    with torch.no_grad():
        exact = network(x, c)
        network.precision = torch.bfloat16
        rounded = network(x, c)
    assert rounded.dtype == torch.float32
    error = float((rounded - exact).norm() / exact.norm())
    assert 1e-4 < error < 0.03


def test_the_context_is_not_rounded():
    """Neighbouring noise levels differ by less than a step of bfloat16."""
    seen = []
    network = UNet(width=8, precision=torch.bfloat16)
    network.context.register_forward_hook(lambda m, i, out: seen.append((i[0].dtype, out.dtype)))
    for stage in (network.first, network.down.stages[0].block.conv1, network.last):
        stage.register_forward_pre_hook(lambda m, i: seen.append(i[0].dtype))
    network(torch.zeros(1, 1, 8, 8), torch.tensor([0.1]))
    assert seen == [(torch.float32, torch.float32)] + [torch.bfloat16] * 3
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_gradients_reach_the_float32_weights_of_a_rounded_unet():
    network = awake(UNet(width=8, precision=torch.bfloat16))
    network(torch.randn(4, 1, 8, 8), torch.zeros(4)).square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.norm() > 0 for p in network.parameters())


# ------------------------------------------------------------------ two levels


TWO_TIME = {
    "mlp": (lambda **options: MLP(num_classes=2, **options), (6, 2)),
    "unet": (lambda **options: UNet(width=8, num_classes=2, **options), (6, 1, 8, 8)),
}


def built(name, **options):
    """A network of the table from one seed, its inputs, and labels."""
    make, shape = TWO_TIME[name]
    torch.manual_seed(0)
    network = make(**options)
    x, c = torch.randn(shape), torch.linspace(-1, 1, 6)
    return network, (x, c, torch.tensor([0, 1, 2, 0, 1, 2]))


@pytest.mark.parametrize("name", TWO_TIME)
def test_without_a_gap_nothing_is_added(name):
    plain, inputs = built(name)
    off, _ = built(name, use_gap=False)
    assert list(plain.state_dict()) == list(off.state_dict())
    assert not [key for key in plain.state_dict() if "gap" in key]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), off.parameters()))
    with pytest.raises(InputError, match="use_gap=True"):
        plain(*inputs, torch.zeros(6))
    with pytest.raises(InputError, match="use_gap=True"):
        plain(*inputs, gap=torch.zeros(6))


@pytest.mark.parametrize("name", TWO_TIME)
def test_a_fresh_gap_changes_nothing_and_a_trained_one_is_heard(name):
    plain, inputs = built(name)
    told, _ = built(name, use_gap=True)
    awake(plain), awake(told)  # the gap's weights are drawn last, so the others are the same
    missing, unexpected = told.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and missing and all("embed_gap" in key for key in missing)
    extra = sum(p.numel() for p in told.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 32 * 32
    (mix,) = (part.mix for part in told.modules() if isinstance(part, GapEmbedding))
    gap, before = torch.linspace(0, 1, 6), mix.weight.data.clone()
    mix.weight.data.zero_()  # as it starts
    assert torch.equal(told(*inputs, gap), plain(*inputs))
    mix.weight.data.copy_(before)
    heard = told(*inputs, gap)
    assert not torch.allclose(heard, told(*inputs), atol=1e-4)
    assert torch.equal(told(*inputs), told(*inputs, gap=torch.zeros(6)))
    assert not torch.allclose(heard, told(*inputs, gap.flip(0)), atol=1e-4)
    x, c, labels = inputs
    alone = told(x[2:3], c[2:3], labels[2:3], gap[2:3])
    assert torch.allclose(heard[2:3], alone, atol=1e-5)
    with pytest.raises(InputError, match="the gap"):
        told(*inputs, torch.zeros(5))


@pytest.mark.parametrize("name", TWO_TIME)
def test_a_fresh_network_answers_alike_whatever_the_gap(name):
    network, inputs = built(name, use_gap=True)
    for key, p in network.named_parameters():
        p.data += 0.1 * torch.ones_like(p) if "gap" not in key else 0
    assert torch.equal(network(*inputs, torch.linspace(0, 1, 6)), network(*inputs))


def test_gaps_are_embedded_like_noise_and_with_its_frequencies():
    context = Context(8, embedding=16, frequencies=(0.5, 3.0), use_gap=True)
    assert torch.equal(context.embed_gap.embed.frequencies, context.embed.frequencies)
    torch.nn.init.normal_(context.embed_gap.mix.weight)
    levels, gap = torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.0])
    hidden = context.embed(levels) + context.embed_gap.mix(context.embed(gap))
    assert torch.allclose(context(levels, None, gap), context.mix(hidden))


# ------------------------------------------------------------------ dropout


@on_cuda
def test_two_compiled_passes_share_their_dropout_masks(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # it rounds to 1e-3
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    network = awake(UNet(width=8, dropout=0.5)).train().cuda()
    x, c = torch.randn(4, 1, 8, 8, device="cuda"), torch.zeros(4, device="cuda")
    network.compile(dynamic=False)
    goal, same = same_dropout((torch.no_grad()(network), x, c), (network, x, c))
    other = network(x, c)
    assert same.requires_grad and torch.allclose(goal, same, atol=1e-5)
    assert not torch.allclose(goal, other, atol=1e-3)
    assert torch.allclose(network.eval()(x, c), network(x, c), atol=1e-5)


def test_the_hashed_mask_is_fair_and_fresh():
    drop = Dropout(0.13)
    a, b = (drop.mask(torch.empty(16, 32, 16, 16)).double() for _ in range(2))
    assert a.shape == (16, 32, 16, 16)
    spread = math.sqrt(0.13 * 0.87 / a.numel())
    assert abs(a.mean() - 0.87) < 4 * spread
    assert a.mean((0, 2, 3)).std() < 2 * spread * math.sqrt(32)
    for other in (b, *(a.roll(1, axis) for axis in range(4))):
        assert abs((a * other).mean() - 0.87**2) < 6 * spread


@on_cuda
def test_dropout_on_cuda_keeps_the_mean():
    x = torch.ones(8, 32, 16, 16, device="cuda")
    thinned = Dropout(0.25)(x)
    assert abs(thinned.mean() - 1) < 0.02
    assert thinned.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(Dropout(0.25).eval()(x), x)


# ------------------------------------------------------------------ blocks


def test_a_block_does_what_its_formula_says():
    torch.manual_seed(0)
    block = awake(ResidualBlock(8, 16, 12, resize=halve)).double()
    x, context = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 12).double()
    h = F.conv2d(halve(F.silu(block.norm1(x))), block.conv1.weight, padding=1)
    h = h + block.shift(context)[..., None, None]
    h = F.silu(F.group_norm(h, 4, block.norm2.weight, block.norm2.bias, 1e-6))
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    expected = math.sqrt(0.5) * (F.conv2d(halve(x), block.skip.weight) + h)
    assert torch.allclose(block(x, context), expected, atol=1e-10)


def test_fresh_layers_start_as_they_should():
    torch.manual_seed(0)
    block, attention = ResidualBlock(64, 64, 32), SelfAttention(64)
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(block(x, torch.randn(2, 32)), KEEP * x)
    assert torch.equal(attention(x), KEEP * x)
    for layer, gain in ((block.conv1, 1.0), (attention.to_qkv, math.sqrt(0.2))):
        outs, ins, size, _ = layer.weight.shape
        bound = gain * math.sqrt(6 / (size**2 * (ins + outs)))
        assert 0.98 * bound < layer.weight.abs().max() <= bound
    assert not block.conv2.bias.any() and block.conv1.bias is None


def test_attention_is_softmax_attention_with_heads():
    torch.manual_seed(0)
    attention = awake(SelfAttention(32, head_size=8)).double()
    assert attention.heads == 4 and SelfAttention(256, 256).heads == 1
    x = torch.randn(2, 32, 3, 5).double()
    qkv = F.conv2d(attention.norm(x), attention.to_qkv.weight, attention.to_qkv.bias)
    q, k, v = (p.unflatten(1, (4, 8)).flatten(3) for p in qkv.chunk(3, 1))  # [B, heads, d, HW]
    weights = (q.transpose(2, 3) @ k / math.sqrt(8)).softmax(-1)
    h = (v @ weights.transpose(2, 3)).reshape(2, 32, 3, 5)
    h = F.conv2d(h, attention.out.weight, attention.out.bias)
    assert torch.allclose(attention(x), math.sqrt(0.5) * (x + h), atol=1e-10)


def test_halve_and_double():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert halve(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(double(x), F.interpolate(x, scale_factor=2, mode="nearest"))
    wide = torch.randn(2, 3, 4, 6)
    assert torch.equal(double(wide), F.interpolate(wide, scale_factor=2, mode="nearest"))


def test_every_stage_up_gets_its_partner():
    torch.manual_seed(0)
    up, got = UpPath([8, 8, 8, 8, 16, 16], [8, 16], [False, True], blocks=2, context=4), []
    for stage in up.stages:
        if stage.block.resize is not double:
            stage.register_forward_pre_hook(lambda m, inputs: got.append(inputs[0]))
    skips = [torch.randn(1, 8, 4, 4) for _ in range(3)]
    skips += [torch.randn(1, c, 2, 2) for c in (8, 16, 16)]
    out = up(skips[-1], skips, torch.zeros(1, 4))
    assert out.shape == (1, 8, 4, 4) and len(got) == 6
    for into, skip in zip(got, skips[::-1]):
        assert torch.equal(into[:, -skip.shape[1] :], skip)
    attends = [not isinstance(stage.attention, torch.nn.Identity) for stage in up.stages]
    assert attends == [False, False, True, False, False, False, False]


def test_labels_and_noise_levels_matter_and_rows_are_alone():
    torch.manual_seed(0)
    network = awake(UNet(width=8, num_classes=3)).eval()
    x, c = torch.randn(6, 1, 8, 8), torch.linspace(-1, 1, 6)
    zero, none = torch.zeros(6, dtype=torch.int64), torch.full((6,), 3)
    plain = network(x, c)
    assert torch.allclose(network(x, c, none), plain, atol=1e-6)
    assert not torch.allclose(network(x, c, zero), plain, atol=1e-3)
    assert not torch.allclose(network(x, c + 1), plain, atol=1e-3)
    assert torch.allclose(network(x[2:3], c[2:3]), plain[2:3], atol=1e-5)
    for wrong in (torch.full((6,), 4), torch.full((6,), -1)):
        with pytest.raises(InputError, match="0 … 3"):
            network(x, c, wrong)


def test_bad_sizes_are_refused_in_one_sentence():
    for wrong in (dict(width=6), dict(blocks=0), dict(attention=(True,)), dict(multipliers=())):
        with pytest.raises(InputError):
            UNet(**wrong)
    with pytest.raises(InputError, match="multiples of 2"):
        UNet(width=8)(torch.zeros(1, 1, 7, 8), torch.zeros(1))
    with pytest.raises(InputError, match="even"):
        NoiseEmbedding(3)
    with pytest.raises(InputError, match="points"):
        MLP()(torch.zeros(4, 3), torch.zeros(4))


def test_the_small_parts():
    torch.manual_seed(0)
    assert torch.equal(Conv(4, 8, gain=0.0)(torch.randn(1, 4, 5, 5)), torch.zeros(1, 8, 5, 5))
    embed = LabelEmbedding(5, 4)
    assert torch.equal(embed(None, torch.zeros(2)), embed.weight[5].expand(2, 4))
    context = Context(8, num_classes=2)
    levels, ones = torch.tensor([0.1, 0.2]), torch.ones(2, dtype=torch.int64)
    assert not torch.allclose(context(levels, ones), context(levels))
    hidden = context.embed(levels) + context.embed_label.weight[1]
    assert torch.allclose(context(levels, ones), context.mix(hidden))
    mlp = MLP(num_classes=2, depth=2)
    assert len(mlp.hidden) == 1
    x = torch.randn(3, 2)
    told = mlp(x, torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    assert not torch.allclose(told, mlp(x, torch.zeros(3)))
    assert not torch.allclose(told, mlp(x, torch.ones(3), torch.zeros(3, dtype=torch.int64)))
    assert dropout.scramble(torch.arange(4, dtype=torch.int32)).unique().numel() == 4
