"""EDM's pickles come in without being run, and their networks go back under EDM's names."""

import collections
import io
import math
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from consistency_edu import edm_weights, networks
from consistency_edu.bridges import unet_options
from consistency_edu.data import InputError
from consistency_edu.edm_weights import (
    check_tensors,
    edm_state,
    edm_teacher,
    from_edm_state,
    load_edm,
    read_pickle,
)
from consistency_edu.images.trainer import Trainer
from consistency_edu.networks import UNet, named_unet
from consistency_edu.pf_ode import EDMDenoiser

# ---- EDM's network, written from the paper's description (its table of the DDPM++ settings, and
# the released weights' names): plain functions of a dictionary of tensors, nothing of our U-Net.


def embed(state, c_noise, labels, classes):
    """Sines, then cosines, of geometric frequencies, plus the class, through two layers."""
    half = state["map_layer0.weight"].shape[1] // 2
    frequencies = torch.tensor([10_000 ** (-k / (half - 1)) for k in range(half)]).to(c_noise)
    angle = torch.outer(c_noise, frequencies)
    h = torch.cat([torch.sin(angle), torch.cos(angle)], 1)
    if classes:
        one_hot = torch.zeros(len(h), classes).to(h)
        if labels is not None:
            one_hot[range(len(h)), labels] = 1
        h = h + F.linear(
            one_hot * math.sqrt(classes), state["map_label.weight"], state["map_label.bias"]
        )
    for layer in ("map_layer0", "map_layer1"):
        h = F.silu(F.linear(h, state[f"{layer}.weight"], state[f"{layer}.bias"]))
    return h


def norm(state, name, x):
    groups = min(32, x.shape[1] // 4)
    return F.group_norm(x, groups, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def conv(state, name, x, resize=""):
    """Resize with a 2×2 box, then convolve."""
    if resize == "down":
        x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    if resize == "up":
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)


def block(state, name, x, emb):
    resize = name.rpartition("_")[2]
    h = conv(state, f"{name}.conv0", F.silu(norm(state, f"{name}.norm0", x)), resize)
    h = (
        h
        + F.linear(emb, state[f"{name}.affine.weight"], state[f"{name}.affine.bias"])[
            ..., None, None
        ]
    )
    h = conv(state, f"{name}.conv1", F.silu(norm(state, f"{name}.norm1", h)))
    skip = conv(state, f"{name}.skip", x, resize) if f"{name}.skip.weight" in state else x
    x = (h + skip) / math.sqrt(2)
    if f"{name}.qkv.weight" in state:
        qkv = conv(state, f"{name}.qkv", norm(state, f"{name}.norm2", x)).flatten(2)
        q, k, v = qkv[:, 0::3], qkv[:, 1::3], qkv[:, 2::3]  # [B, C, HW]
        weight = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(2)
        found = (v @ weight.transpose(1, 2)).reshape(x.shape)
        x = (x + conv(state, f"{name}.proj", found)) / math.sqrt(2)
    return x


def song_unet(state, shape, x, c_noise, labels=None):
    """The whole network on `x`: `shape` has sizes, blocks and classes."""
    emb = embed(state, c_noise, labels, shape["classes"])
    sizes, count = shape["sizes"], shape["blocks"]
    x = conv(state, f"enc.{sizes[0]}x{sizes[0]}_conv", x)
    skips = [x]
    for level, size in enumerate(sizes):
        for part in ["down"] * (level > 0) + [f"block{k}" for k in range(count)]:
            x = block(state, f"enc.{size}x{size}_{part}", x, emb)
            skips.append(x)
    for part in ("in0", "in1"):
        x = block(state, f"dec.{size}x{size}_{part}", x, emb)
    for level in range(len(sizes) - 1, -1, -1):
        name = f"dec.{sizes[level]}x{sizes[level]}"
        if level < len(sizes) - 1:
            x = block(state, f"{name}_up", x, emb)
        for k in range(count + 1):
            x = block(state, f"{name}_block{k}", torch.cat([x, skips.pop()], 1), emb)
    assert not skips
    return conv(state, f"{name}_aux_conv", F.silu(norm(state, f"{name}_aux_norm", x)))


def edm_denoiser(state, shape, x, sigma, labels=None):
    s = sigma[:, None, None, None]
    root = (s**2 + 0.25).sqrt()
    output = song_unet(state, shape, x / root, sigma.log() / 4, labels)
    return 0.25 / root**2 * x + 0.5 * s / root * output


def random_state(shape, generator):
    """Random weights of EDM's DDPM++ with `shape`, in EDM's names and order."""
    state, width, noise = {}, shape["width"], shape["noise"]

    def draw(name, *size, scale=None):
        scale = scale or 1 / math.sqrt(max(1, math.prod(size[1:])))
        state[f"{name}.weight"] = scale * torch.randn(size, generator=generator)
        state[f"{name}.bias"] = 0.3 * torch.randn(size[0], generator=generator)

    def group(name, size):
        state[f"{name}.weight"] = 1 + 0.3 * torch.randn(size, generator=generator)
        state[f"{name}.bias"] = 0.3 * torch.randn(size, generator=generator)

    def unit(name, inputs, outputs, attends=False):
        resizes = name.endswith(("_down", "_up"))
        group(f"{name}.norm0", inputs)
        draw(f"{name}.conv0", outputs, inputs, 3, 3)
        draw(f"{name}.affine", outputs, 4 * width)
        group(f"{name}.norm1", outputs)
        draw(f"{name}.conv1", outputs, outputs, 3, 3)
        if inputs != outputs or resizes:
            draw(f"{name}.skip", outputs, inputs, 1, 1)
        if resizes:
            for part in ("conv0", "skip"):
                state[f"{name}.{part}.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
        if attends:
            group(f"{name}.norm2", outputs)
            draw(f"{name}.qkv", 3 * outputs, outputs, 1, 1, scale=2 / math.sqrt(outputs))
            draw(f"{name}.proj", outputs, outputs, 1, 1)

    if shape["classes"]:
        draw("map_label", noise, shape["classes"])
    state["map_augment.weight"] = torch.randn(noise, 9, generator=generator)
    draw("map_layer0", 4 * width, noise)
    draw("map_layer1", 4 * width, 4 * width)
    sizes, now, skips = shape["sizes"], width, [width]
    draw(f"enc.{sizes[0]}x{sizes[0]}_conv", width, 3, 3, 3)
    for level, size in enumerate(sizes):
        if level:
            unit(f"enc.{size}x{size}_down", now, now)
            skips.append(now)
        for k in range(shape["blocks"]):
            wide = width * shape["multipliers"][level]
            unit(f"enc.{size}x{size}_block{k}", now, wide, shape["attends"][level])
            now = wide
            skips.append(now)
    unit(f"dec.{size}x{size}_in0", now, now, True)
    unit(f"dec.{size}x{size}_in1", now, now)
    for level in reversed(range(len(sizes))):
        name = f"dec.{sizes[level]}x{sizes[level]}"
        if level < len(sizes) - 1:
            unit(f"{name}_up", now, now)
        for k in range(shape["blocks"] + 1):
            wide = width * shape["multipliers"][level]
            attends = shape["attends"][level] and k == shape["blocks"]
            unit(f"{name}_block{k}", now + skips.pop(), wide, attends)
            now = wide
    group(f"{name}_aux_norm", now)
    draw(f"{name}_aux_conv", 3, now, 3, 3)
    return state


SHAPE = {
    "sizes": [16, 8, 4],
    "width": 32,
    "multipliers": [1, 1, 1],
    "blocks": 2,
    "attends": [False, True, False],
    "noise": 32,
    "classes": 0,
}


# ---- a pickle of the same structure as NVlabs' files

SOURCE = "raise SystemExit('the source code in the pickle was run')"


def reconstruct(meta):
    raise AssertionError("called while writing")


reconstruct.__module__ = "torch_utils.persistence"
reconstruct.__qualname__ = reconstruct.__name__ = "_reconstruct_persistent_obj"


class Persistent:
    """Pickles as an object of a class that NVlabs' decorator made persistent."""

    def __init__(self, class_name, **state):
        self.class_name, self.state = class_name, state

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": SOURCE}
        return reconstruct, ({**meta, "class_name": self.class_name, "state": self.state},), None


def module(class_name, tensors=(), children=(), **more):
    """A torch module of EDM's as it is pickled: all the attributes, most of them empty."""
    parameters = {k: nn.Parameter(v) for k, v in tensors if k != "resample_filter"}
    buffers = {k: v for k, v in tensors if k == "resample_filter"}
    return Persistent(
        class_name,
        training=False,
        _parameters=collections.OrderedDict(parameters),
        _buffers=collections.OrderedDict(buffers),
        _non_persistent_buffers_set=set(),
        _backward_hooks=collections.OrderedDict(),
        _modules=collections.OrderedDict(children),
        _init_args=(),
        _init_kwargs={"init_weight": np.sqrt(0.2)},
        skip_scale=np.sqrt(0.5),
        resample=np.float32(1),
        **more,
    )


def module_tree(state, class_name):
    """Nested modules from flat names; `enc` and `dec` are torch's own ModuleDict."""
    tensors, below = [], {}
    for name, value in state.items():
        head, dot, rest = name.partition(".")
        if dot:
            below.setdefault(head, {})[rest] = value
        else:
            tensors.append((name, value))
    children = {}
    for head, part in below.items():
        children[head] = module_tree(part, "UNetBlock")
        if head in ("enc", "dec"):
            own = nn.ModuleDict()
            own._modules.update(children[head].state["_modules"])
            children[head] = own
    return module(class_name, tensors, children)


class EasyDict(dict):
    pass


EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"


def edm_pickle(state, outer="EDMPrecond", inner="SongUNet", protocol=4, **more):
    """The bytes of a file like NVlabs' with the weights `state`."""
    network = module_tree(state, inner)
    embedding = module("PositionalEmbedding", max_positions=10_000)
    network.state["_modules"].setdefault("map_noise", embedding)
    precond = module(outer, children={"model": network}, sigma_data=0.5, sigma_max=float("inf"))
    content = {"ema": precond, "loss_fn": Persistent("EDMLoss", P_mean=-1.2), **more}
    content["augment_pipe"] = Persistent("AugmentPipe", p=0.12, xflip=1e8)
    content["dataset_kwargs"] = {"path": "cifar10.zip", "more": EasyDict(xflip=True)}
    homes = {
        "torch_utils": types.ModuleType("torch_utils"),
        "torch_utils.persistence": types.ModuleType("torch_utils.persistence"),
        "dnnlib": types.ModuleType("dnnlib"),
        "dnnlib.util": types.ModuleType("dnnlib.util"),
    }
    homes["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct
    homes["dnnlib.util"].EasyDict = EasyDict
    with pytest.MonkeyPatch.context() as patch:
        for name, home in homes.items():
            patch.setitem(sys.modules, name, home)
        return pickle.dumps(content, protocol=protocol)


@pytest.fixture
def weights(generator):
    return random_state(SHAPE, generator)


@pytest.fixture
def file(weights, tmp_path):
    path = tmp_path / "teacher.pkl"
    path.write_bytes(edm_pickle(weights))
    return path


def question(classes, generator, dtype=torch.float32):
    x = 20 * torch.randn(4, 3, 16, 16, generator=generator, dtype=dtype)
    sigma = torch.tensor([0.002, 0.4, 5.0, 80.0], dtype=dtype)
    labels = torch.tensor([0, classes - 1, 1, 0]) if classes else None
    return x, sigma, labels


@pytest.mark.parametrize("classes, protocol", [(0, 4), (10, 3)])
def test_edm_pickle_equals_the_reference(classes, protocol, tmp_path, generator):
    shape = {**SHAPE, "classes": classes}
    state = random_state(shape, generator)
    (tmp_path / "net.pkl").write_bytes(edm_pickle(state, protocol=protocol))
    model = load_edm(tmp_path / "net.pkl")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    x, sigma, labels = question(classes, generator)
    for given in (labels, None):
        answer = model(x, sigma, given)
        truth = edm_denoiser(state, shape, x, sigma, given)
        assert truth.std() > 0.1 and (answer - truth).abs().max() < 1e-5 * truth.abs().max()
    if classes:
        other = model(x, sigma, (labels + 1) % classes)
        assert (other - model(x, sigma, labels)).abs().max() > 1e-2
        assert (model(x, sigma, None) - model(x, sigma, labels)).abs().max() > 1e-2


def test_the_network_alone_equals_the_reference_in_double(weights, generator):
    unet, shape = from_edm_state(weights)
    assert shape.sizes == [16, 8, 4] and shape.channels == 3
    x, sigma, _ = question(0, generator, torch.float64)
    double = {k: v.double() for k, v in weights.items()}
    truth = song_unet(double, SHAPE, x, sigma.log() / 4)
    answer = unet.double()(x, sigma.log() / 4)
    assert (answer - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.mark.slow
def test_the_full_shape_is_that_of_named_unet_edm(generator):
    shape = {**SHAPE, "width": 128, "multipliers": [2, 2, 2], "blocks": 4, "noise": 128}
    shape["sizes"] = [8, 4, 2]
    state = random_state(shape, generator)
    unet, _ = from_edm_state(state)
    student = named_unet("edm")
    student.load_state_dict(unet.state_dict())
    x = torch.randn(1, 3, 8, 8, generator=generator)
    c_noise = torch.tensor([-0.4])
    truth = song_unet(state, shape, x, c_noise)
    for net in (unet, student):
        assert (net(x, c_noise) - truth).abs().max() < 1e-5 * truth.abs().max()
    assert unet_options(student)["head_size"] == 256
    count = sum(v.numel() for k, v in state.items() if "resample" not in k)
    assert count == 55_733_891  # EDM's own number of parameters


def test_teachers_shape_and_sigma_data(file):
    teacher = edm_teacher(file)
    assert teacher.shape == (3, 16, 16) and teacher.model.sigma_data == 0.5


@pytest.mark.parametrize("classes", [0, 3])
def test_edm_state_is_the_way_back(classes, generator):
    shape = {**SHAPE, "classes": classes}
    state = random_state(shape, generator)
    unet, _ = from_edm_state(state)
    back = edm_state(unet, 16)
    assert set(back) == set(state) - {"map_augment.weight"}
    assert all(back[k].shape == state[k].shape for k in back)
    x, sigma, labels = question(classes, generator)
    truth = song_unet(state, shape, x / 20, sigma.log() / 4, labels)
    again = song_unet(back, shape, x / 20, sigma.log() / 4, labels)
    assert (again - truth).abs().max() < 1e-5 * truth.abs().max()
    # one of ours, whose frequencies ascend, and whose labels follow them
    options = {**unet_options(unet), "frequencies": (1e-4, 1.0)}
    own = UNet(**options)
    torch.manual_seed(0)
    for p in own.parameters():
        nn.init.normal_(p, std=0.1)
    answer = own(x / 20, sigma.log() / 4, labels)
    theirs = song_unet(edm_state(own, 16), shape, x / 20, sigma.log() / 4, labels)
    assert answer.std() > 1e-2 and (theirs - answer).abs().max() < 1e-5 * answer.abs().max()


def test_edm_state_refuses_other_networks():
    for unet in (
        UNet(3, width=32, frequencies=(0.25, 8.0), multipliers=(1, 1)),
        UNet(3, width=32, frequencies=(1e-4, 1.0), multipliers=(1, 2), head_size=64),
        UNet(3, width=128, frequencies=(1e-4, 1.0), multipliers=(1, 1), head_size=64),
    ):
        with pytest.raises(InputError, match="edm|multiples of 128"):
            edm_state(unet, 16)


# ---- what does not come in


class Evil:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def storage_payload(first):
    """A storage whose first pickle is `first` instead of torch's magic number."""
    return b"".join(pickle.dumps(k, 4) for k in (first, 1001, {}, None, []))


def test_malicious_pickles_are_refused_by_name(weights, tmp_path):
    mark = tmp_path / "was_run"
    touch = Evil(eval, f"open({str(mark)!r}, 'w')")
    import os

    import torch.storage

    load = torch.storage._load_from_bytes
    nested = Evil(load, storage_payload(Evil(os.system, f"touch {mark}")))
    deeper = Evil(load, storage_payload(Evil(load, storage_payload(touch))))
    path = tmp_path / "evil.pkl"
    for thing, name in (
        (touch, "builtins.eval"),
        (Evil(os.system, f"touch {mark}"), "posix.system"),
        ({"ema": [touch]}, "builtins.eval"),
        (Evil(getattr, touch, "write"), "builtins.getattr"),
        (nested, "posix.system"),
        (deeper, "builtins.eval"),
        (Evil(pickle.loads, pickle.dumps(touch)), "_pickle.loads"),
        (Evil(torch.load, "x"), "torch.serialization.load"),
    ):
        path.write_bytes(pickle.dumps(thing))
        with pytest.raises(InputError, match=f"asks for {name}.*nothing was run"):
            read_pickle(path)
    path.write_bytes(edm_pickle(weights, extra=touch))  # a whole network, and one thing more
    with pytest.raises(InputError, match="builtins.eval"):
        load_edm(path)
    for text in (
        b"cos\nsystem\n(S'touch it'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        b"\x80\x04\x8c\x17torch_utils.persistence\x8c\x27_reconstruct_persistent_obj.__globals__\x93.",
        b"(S'x'\nios\nsystem\n.",
    ):
        path.write_bytes(text)
        with pytest.raises(InputError, match="asks for|not a whole pickle"):
            read_pickle(path)
    assert not mark.exists()


def test_what_is_allowed_cannot_be_changed_by_a_pickle(tmp_path, file):
    """setattr by BUILD reaches only things that are made anew for each wish."""
    head = b"ctorch.nn.modules.container\nModuleDict\n"
    path = tmp_path / "pollute.pkl"
    path.write_bytes(head + b"(N(dS'class_name'\nS'EDMPrecond'\nstb.")
    read_pickle(path)
    assert (
        edm_weights.Record.class_name == ""
        and "EDMPrecond" not in vars(edm_weights.Record).values()
    )
    function = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    path.write_bytes(function + b"(N(dS'__defaults__'\n(tstb.")
    read_pickle(path)
    assert load_edm(file)


def test_a_pickle_cannot_leave_a_mark_on_what_rebuilds(tmp_path):
    name = b"torch._utils._rebuild_tensor_v2"
    wish = b"c" + name[: name.rindex(b".")] + b"\n" + name[name.rindex(b".") + 1 :] + b"\n"
    mark = b"N}" + pickle.dumps("mark", 2)[2:-3] + b"K\x01s\x86b"  # BUILD with (None, {"mark": 1})
    (tmp_path / "m.pkl").write_bytes(b"\x80\x02" + wish + mark + b".")
    assert callable(read_pickle(tmp_path / "m.pkl"))
    assert not hasattr(edm_weights.rebuild_tensor, "mark")


def test_parts_that_a_module_has_left_out_have_no_tensor():
    record = edm_weights.Record()
    weight = torch.ones(2)
    vars(record).update(_parameters={"bias": None, "weight": weight}, _modules={"skip": None})
    assert list(edm_weights.named_tensors(record)) == [("weight", weight)]


def test_broken_files_are_refused(file, tmp_path):
    whole = file.read_bytes()
    for name, content in (
        ("half.pkl", whole[: len(whole) // 2]),
        ("empty.pkl", b""),
        ("text.pkl", b"hello"),
        ("page.pkl", b"<html>not found</html>"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="not a whole pickle"):
            load_edm(tmp_path / name)
    with pytest.raises(InputError, match="cannot read"):
        load_edm(tmp_path / "missing.pkl")
    with pytest.raises(InputError, match="is a folder, a pipe or a device"):
        load_edm(tmp_path)
    for thing in (None, 3, {"ema": None}, {"other": {}}, [1], {"ema": torch.zeros(3)}):
        (tmp_path / "other.pkl").write_bytes(pickle.dumps(thing))
        with pytest.raises(InputError, match="EDMPrecond around SongUNet"):
            load_edm(tmp_path / "other.pkl")


@pytest.mark.parametrize("field", ["_modules", "_parameters", "_buffers", "cycle"])
def test_nonsense_in_the_right_places_is_refused(field, weights, tmp_path, monkeypatch):
    build = module_tree

    def nonsense(state, class_name):
        tree = build(state, class_name)
        if field == "cycle":
            own = nn.ModuleDict()
            own._modules["again"] = own
            tree.state["_modules"]["map_noise"] = own
        else:
            tree.state[field] = {"model": 3, "other": 4} if field == "_modules" else ["nonsense"]
        return tree

    monkeypatch.setattr(sys.modules[__name__], "module_tree", nonsense)
    (tmp_path / "net.pkl").write_bytes(edm_pickle(weights))
    with pytest.raises(InputError, match="net.pkl"):
        load_edm(tmp_path / "net.pkl")


def test_a_tensor_larger_than_its_storage_is_refused():
    with pytest.raises(ValueError, match="larger than its storage"):
        edm_weights.rebuild_tensor(torch.zeros(1), 0, (10**9, 10**9), (0, 0))


def test_a_storage_that_is_cut_short_is_refused(tmp_path):
    storage = torch.arange(5.0).untyped_storage()
    options = {"wrap_storage": storage, "dtype": torch.float32, "_internal": True}
    storage, buffer = torch.storage.TypedStorage(**options), io.BytesIO()
    torch.save(storage, buffer, _use_new_zipfile_serialization=False)
    payload = buffer.getvalue()
    assert torch.equal(edm_weights.rebuild_storage(payload), torch.arange(5.0))
    for bad in (payload[:-1], payload + b"x", payload[:-20]):
        with pytest.raises(ValueError, match="not all there"):
            edm_weights.rebuild_storage(bad)
    with pytest.raises(RuntimeError, match="out of bounds"):
        edm_weights.rebuild_tensor(torch.arange(5.0), 3, (3,), (1,))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.int64, torch.bool])
def test_tensors_of_all_kinds_come_through(kind, tmp_path):
    base = torch.arange(24).reshape(2, 3, 4).to(kind)
    view = base.transpose(0, 2)[1:]
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"view": view, "same": view}))
    found = read_pickle(tmp_path / "t.pkl")["view"]
    assert found.dtype == kind and torch.equal(found, view)


def test_numbers_of_numpy_come_through(tmp_path):
    numbers = [np.float64(0.1), np.float32(0.5), np.int64(-3), np.int32(7), np.bool_(True)]
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(numbers))
    assert read_pickle(tmp_path / "n.pkl") == [0.1, 0.5, -3, 7, True]
    for bad in (np.complex128(1), np.array([object()]), np.datetime64("2020")):
        (tmp_path / "n.pkl").write_bytes(pickle.dumps(bad))
        with pytest.raises(InputError):
            read_pickle(tmp_path / "n.pkl")
    with pytest.raises(ValueError, match="byte order"):
        edm_weights.NumberKind("f8").__setstate__((3, ">", None, None, None, -1, -1, 0))


DROPPED, ADDED = None, torch.zeros(16)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("enc.8x8_down.conv0.bias", DROPPED, "'enc.8x8_down.conv0.bias' .32. is missing"),
        ("enc.8x8_aux_residual.weight", ADDED, "aux_residual.weight' has no place"),
        ("map_noise.freqs", ADDED, "'map_noise.freqs' has no place"),
        ("map_layer1.bias", ADDED, "'map_layer1.bias' is .16., expected .128."),
        ("enc.8x8_down.skip.resample_filter", torch.zeros(1, 1, 4, 4), "expected .1, 1, 2, 2."),
        ("enc.16x16_conv.weight", DROPPED, "no 'enc.16x16_conv.weight'.*DDPM"),
    ],
)
def test_other_architectures_are_named(name, value, words, weights, tmp_path):
    if value is DROPPED:
        del weights[name]
    else:
        weights[name] = value
    (tmp_path / "net.pkl").write_bytes(edm_pickle(weights))
    with pytest.raises(InputError, match=f"net.pkl.*{words}"):
        load_edm(tmp_path / "net.pkl")


def test_an_empty_network_is_named(tmp_path):
    (tmp_path / "net.pkl").write_bytes(edm_pickle({}))
    with pytest.raises(InputError, match="DDPM"):
        load_edm(tmp_path / "net.pkl")


def test_widths_that_grow_do_not_fit(generator, tmp_path):
    state = random_state({**SHAPE, "multipliers": [1, 2, 2]}, generator)
    (tmp_path / "net.pkl").write_bytes(edm_pickle(state))
    with pytest.raises(InputError, match="expected.*levels of one width"):
        load_edm(tmp_path / "net.pkl")
    state = random_state({**SHAPE, "width": 24, "blocks": 1}, generator)
    (tmp_path / "net.pkl").write_bytes(edm_pickle(state))
    with pytest.raises(InputError, match="net.pkl.*groups in EDM's network"):
        load_edm(tmp_path / "net.pkl")


@pytest.mark.parametrize(
    "outer, inner", [("VPPrecond", "SongUNet"), ("EDMPrecond", "DhariwalUNet")]
)
def test_other_classes_are_named(outer, inner, weights, tmp_path):
    (tmp_path / "net.pkl").write_bytes(edm_pickle(weights, outer, inner))
    with pytest.raises(InputError, match=f"{outer} around {inner}"):
        load_edm(tmp_path / "net.pkl")


def test_only_the_first_three_misfits_are_named():
    expected = {f"a{k}": [1] for k in range(5)}
    with pytest.raises(
        InputError, match=r"5 tensors do not fit.: 'a0' \[1\] is missing; .*'a2'"
    ) as error:
        check_tensors({}, expected)
    assert "a3" not in str(error.value)


# ---- training from a pickle


def test_a_recipe_starts_from_a_pickle(generator, tmp_path, monkeypatch):
    from consistency_edu.images.methods import override
    from consistency_edu.images.recipes import RECIPES
    from consistency_edu.images.runs import load_run
    from consistency_edu.images.trainer import train_recipe

    tiny = dict(width=32, multipliers=(1, 1, 1), blocks=2, attention=(False, True, False))
    tiny |= dict(head_size=256, embedding=32, frequencies=(1e-4, 1.0))
    monkeypatch.setitem(networks.UNETS, "edm", tiny)
    state = random_state(SHAPE, generator)
    (tmp_path / "edm.pkl").write_bytes(edm_pickle(state))
    images = (255 * torch.rand(12, 16, 16, 3, generator=generator)).byte().numpy()
    np.savez(tmp_path / "images.npz", images=images)
    recipe = RECIPES["cifar10-cd"]
    choices = {"device": "cpu", "precision": "float32", "compiles": "nothing", "batch": "4"}
    choices |= {"data": str(tmp_path / "images.npz"), "steps": "2"}
    recipe = override(recipe, choices)
    made = Trainer.from_recipe(recipe, tmp_path / "run", teacher=tmp_path / "edm.pkl")
    objective = made.objective
    x, sigma, _ = question(0, generator)
    truth = edm_denoiser(state, SHAPE, x, sigma)
    limit = 1e-5 * truth.abs().max()
    assert (objective.teacher(x, sigma) - truth).abs().max() < limit
    as_teacher = EDMDenoiser(objective.online.network)  # the student starts from its weights
    assert (as_teacher(x, sigma) - truth).abs().max() < limit
    run = load_run(train_recipe(recipe, tmp_path / "run", teacher=str(tmp_path / "edm.pkl")))
    assert run.sample(torch.randn(2, 3, 16, 16)).isfinite().all()
    with pytest.raises(InputError, match="labels"):
        labelled = override(recipe, {"labels": "true"})
        Trainer.from_recipe(labelled, tmp_path / "other", teacher=tmp_path / "edm.pkl")
    np.savez(tmp_path / "small.npz", images=images[:, :8, :8])
    small = override(recipe, {"data": str(tmp_path / "small.npz")})
    with pytest.raises(InputError, match=r"teacher makes images \[3, 16, 16\]"):
        Trainer.from_recipe(small, tmp_path / "other", teacher=tmp_path / "edm.pkl")


def test_a_pickle_gets_no_more_room_than_it_has_bytes(tmp_path):
    bomb = b"\x80\x02Nr" + (10**7).to_bytes(4, "little") + b"."
    for content in (bomb, b"Np10000000\n."):
        (tmp_path / "teacher.pkl").write_bytes(content)
        with pytest.raises(InputError, match="10,000,000 places to remember"):
            read_pickle(tmp_path / "teacher.pkl")
    with pytest.raises(InputError, match="folder, a pipe or a device"):
        read_pickle(tmp_path)
