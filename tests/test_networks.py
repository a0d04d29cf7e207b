"""The networks against published counts, closed formulas and independent constructions."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sfumato.errors import ConfigError
from sfumato.networks.base import Network, attending, pad_to_multiple
from sfumato.networks.blocks import Block, Resolution, SelfAttention, Style
from sfumato.networks.build import build_network
from sfumato.networks.config import ADMConfig, NetworkConfig, UNetConfig
from sfumato.networks.embeddings import FourierEmbedding, PositionalEmbedding
from sfumato.networks.layers import (
    Conv,
    Resample,
    StridedConv,
    kaiming,
    xavier,
)
from sfumato.networks.norm import GroupNorm, dropout, largest_divisor

SMALL = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
CONFIGS: dict[str, NetworkConfig] = {
    "ddpm": replace(UNetConfig.ddpm(), **SMALL),
    "ddpmpp": replace(UNetConfig.ddpmpp(), **SMALL),
    "ncsnpp": replace(UNetConfig.ncsnpp(), **SMALL),
    "skips": replace(
        UNetConfig(encoder="skip", decoder="skip", resample_filter=(1, 3, 3, 1)), **SMALL
    ),
    "adm": ADMConfig(channels_per_head=16, **SMALL),
}


@pytest.fixture(params=CONFIGS, name="config")
def each_config(request: pytest.FixtureRequest) -> NetworkConfig:
    return CONFIGS[request.param]


def make(config: NetworkConfig, size: tuple[int, int] = (8, 8), **options: int) -> Network:
    """A small network whose silent layers speak: every parameter is random and of order one."""
    torch.manual_seed(1)
    network = build_network(
        config, in_channels=2, out_channels=3, height=size[0], width=size[1], **options
    )
    for p in network.parameters():
        nn.init.normal_(p, std=1 / math.sqrt(max(p[0].numel(), 4)))
    return network.eval()


def inputs(batch: int = 4, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 2, *size, generator=generator)
    return x, torch.linspace(-1.5, 1.0, batch)


# ---- published facts


@pytest.mark.parametrize(
    ("config", "size", "options", "count"),
    [
        (UNetConfig.ddpm(), 32, {}, 35_746_307),
        (UNetConfig.ddpmpp(), 32, {"augment_labels": 9}, 55_733_891),
        (UNetConfig.ncsnpp(), 32, {"augment_labels": 9}, 56_397_827),
        (ADMConfig.adm(), 64, {"classes": 1000}, 295_899_267),
    ],
    ids=["ddpm", "ddpmpp", "ncsnpp", "adm"],
)
def test_published_parameter_counts(
    config: NetworkConfig, size: int, options: dict[str, int], count: int
):
    with torch.device("meta"):
        network = build_network(
            config, in_channels=3, out_channels=3, height=size, width=size, **options
        )
    assert sum(p.numel() for p in network.parameters()) == count


def test_attention_rule_equals_edm_on_powers_of_two_and_extends_it():
    for side, levels in ((32, 3), (64, 4), (256, 6)):
        for resolution in (8, 16, 32):
            edm = [side >> level == resolution for level in range(levels)]
            assert attending((resolution,), side, side, levels) == edm
    assert attending((16,), 28, 28, 3) == [False, True, False]  # 28, 14, 7 count as 32, 16, 8
    assert attending((32, 8), 28, 28, 3) == [True, False, True]
    assert attending((16,), 5, 30, 3) == [False, True, False]  # the longer side, padded to 32


def test_importing_the_configuration_does_not_import_torch():
    code = "import sys, sfumato.networks.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- embeddings


def test_positional_embeddings_follow_their_papers():
    label, n = 0.7, 32
    half = n // 2
    ddpm = [10000 ** (-j / (half - 1)) * label for j in range(half)]
    improved = [10000 ** (-j / half) * label for j in range(half)]
    sin, cos = (lambda v: [math.sin(a) for a in v]), (lambda v: [math.cos(a) for a in v])
    x = torch.tensor([label], dtype=torch.float64)
    ours = PositionalEmbedding(n, endpoint=True, sine_first=True)(x)[0]
    assert ours.tolist() == pytest.approx(sin(ddpm) + cos(ddpm), abs=1e-12)
    ours = PositionalEmbedding(n, endpoint=False, sine_first=False)(x)[0]
    assert ours.tolist() == pytest.approx(cos(improved) + sin(improved), abs=1e-12)


def test_networks_use_the_embedding_of_their_paper():
    x = torch.tensor([0.3])
    unet, adm = make(CONFIGS["ddpm"]), make(CONFIGS["adm"])
    assert unet.features(x)[0, 0] == pytest.approx(math.sin(0.3))
    assert unet.features(x)[0, 7] == pytest.approx(math.sin(0.3e-4))
    assert adm.features(x)[0, 0] == pytest.approx(math.cos(0.3))
    assert adm.features(x)[0, 15] == pytest.approx(math.sin(0.3 * 10000 ** (-7 / 8)))


def test_fourier_embedding_is_random_fixed_and_saved():
    torch.manual_seed(0)
    embedding = FourierEmbedding(4096)
    assert embedding.frequencies.std() == pytest.approx(16, rel=0.05)
    assert not list(embedding.parameters())
    assert "features.frequencies" in make(CONFIGS["ncsnpp"]).state_dict()
    x = torch.tensor([0.25, -1.0], dtype=torch.float64)
    angle = 2 * np.pi * np.outer(x.numpy(), embedding.frequencies.double().numpy())
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(embedding(x).numpy(), expected, atol=1e-9)


# ---- layers


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2)])
def test_resampling_equals_scipy(taps: tuple[int, ...]):
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 8))
    line = np.array(taps) / sum(taps)
    kernel, pad = np.outer(line, line), len(taps) // 2 - 1

    def down(image: np.ndarray) -> np.ndarray:
        # A convolution layer correlates: the kernel is not flipped.
        return signal.correlate2d(np.pad(image, pad), kernel, mode="valid")[::2, ::2]

    def up(image: np.ndarray) -> np.ndarray:
        zeros = np.zeros((2 * image.shape[0], 2 * image.shape[1]))
        zeros[::2, ::2] = 4 * image
        full = signal.convolve2d(zeros, kernel, mode="full")
        return full[pad : pad + zeros.shape[0], pad : pad + zeros.shape[1]]

    for filtered, expected in (
        (Resample(taps, up=False), np.array([[down(c) for c in b] for b in x])),
        (Resample(taps, up=True), np.array([[up(c) for c in b] for b in x])),
    ):
        ours = filtered.double()(torch.from_numpy(x))
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-7)


def test_smooth_resampling_keeps_a_constant_inside():
    x = torch.full((1, 1, 8, 8), 3.0)
    for up in (False, True):
        inside = Resample((1, 3, 3, 1), up=up)(x)[:, :, 1:-1, 1:-1]
        torch.testing.assert_close(inside, torch.full_like(inside, 3.0))


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [(2, 4, 6), (5, 16, 14)])
def test_a_convolution_of_resampled_images_may_be_done_with_less_work(
    taps: tuple[int, ...], up: bool, kernel: int, size: tuple[int, int, int]
):
    """The plain order, resampling and then torch's convolution, to the last digits; gradients too.

    The larger of the sizes is where taps are added first.
    """
    batch, height, width = size
    generator = torch.Generator().manual_seed(0)
    conv, resample = Conv(3, 4, kernel, kaiming).double(), Resample(taps, up=up).double()
    x = torch.randn(batch, 3, height, width, dtype=torch.float64, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    plain = F.conv2d(resample(x), conv.weight, conv.bias, padding=kernel // 2)
    ours = resample.then(conv, x)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    seed = torch.randn(plain.shape, dtype=torch.float64, generator=generator)
    inputs = (x, conv.weight, conv.bias)
    pairs = (torch.autograd.grad(y, inputs, seed) for y in (ours, plain))
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_doubled_convolutions_multiply_less():
    conv, resample = Conv(3, 4, 3, kaiming), Resample((1, 1), up=True)
    x = torch.randn(4, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        resample.then(conv, x)
    assert counter.get_total_flops() == 2 * 4 * 16 * 16 * 16 * 3 * 4  # 16 taps, not 36


def test_ddpm_halving_pads_the_far_edges_only():
    conv = StridedConv(1, xavier())
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0, 0] = 1  # picks the top left pixel of every window
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert conv(x).flatten().tolist() == [0, 2, 8, 10]


def test_gain_scales_the_convolution():
    conv = Conv(3, 5, 3, kaiming)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(conv(x, gain=0.3), 0.3 * conv(x))


def test_initial_weights_have_the_stated_ranges():
    torch.manual_seed(0)
    conv = Conv(8, 24, 3, xavier(2.0))
    bound = 2 * math.sqrt(6 / (9 * 32))
    assert 0.98 * bound < conv.weight.abs().max() <= bound
    assert conv.bias.abs().max() == 0
    conv = Conv(8, 24, 3, kaiming)
    assert 0.98 / math.sqrt(72) < conv.weight.abs().max() <= 1 / math.sqrt(72)
    assert conv.bias.abs().max() > 0.5 / math.sqrt(72)


def test_groups_divide_the_channels():
    assert [largest_divisor(c, min(32, c // 4)) for c in (128, 64, 96, 144, 48)] == [
        32,
        16,
        24,
        24,
        12,
    ]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_standardises_every_group(dtype: torch.dtype, layout: torch.memory_format):
    torch.manual_seed(0)
    norm = GroupNorm(16, 1e-6)
    x = (5 + 3 * torch.randn(2, 16, 6, 6)).to(dtype).contiguous(memory_format=layout)
    y = norm(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)
    groups = y.double().reshape(2, 4, -1)
    assert groups.mean(2).abs().max() < 2e-3
    assert (groups.var(2, correction=0) - 1).abs().max() < 2e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("p", [0.13, 0.5])
def test_dropout_statistics(p: float, layout: torch.memory_format):
    torch.manual_seed(0)
    x = torch.ones(8, 33, 32, 31).contiguous(memory_format=layout)
    y = dropout(x, p)
    n = x.numel()
    kept = y != 0
    assert kept.double().mean() == pytest.approx(1 - p, abs=4 * math.sqrt(p * (1 - p) / n) + 1e-5)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)), rtol=1e-4, atol=0)
    # Neighbours in memory and images of the batch are independent of each other.
    flags = kept.double() - kept.double().mean()
    for a, b in ((flags[..., 1:], flags[..., :-1]), (flags[:, 1:], flags[:, :-1])):
        assert abs((a * b).mean()) < 5 * p * (1 - p) / math.sqrt(n)


def test_dropout_repeats_with_the_seed_and_differentiates():
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    torch.manual_seed(3)
    y = dropout(x, 0.4)
    torch.manual_seed(3)
    assert torch.equal(y, dropout(x, 0.4))
    assert not torch.equal(y, dropout(x, 0.4))
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope * x, y)
    assert dropout(x, 0.0) is x


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("per_head", [0, 8])
def test_attention_equals_its_formula(per_head: int, layout: torch.memory_format):
    torch.manual_seed(0)
    init = xavier()
    style = Style(4, 0.0, 0.5, 1e-6, False, per_head, (1, 1), True, init, init, init)
    attention = SelfAttention(16, style).double()
    nn.init.normal_(attention.qkv.bias)
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64).contiguous(memory_format=layout)
    heads = 1 if per_head == 0 else 2
    h = F.group_norm(x, 4, eps=1e-6).flatten(2)
    w = attention.qkv.weight[:, :, 0, 0]
    q, k, v = (torch.einsum("oc,bcn->bon", w, h) + attention.qkv.bias[:, None]).chunk(3, dim=1)
    parts = []
    for i in range(heads):
        rows = slice(i * 16 // heads, (i + 1) * 16 // heads)
        scores = torch.einsum("bcn,bcm->bnm", q[:, rows], k[:, rows]) / math.sqrt(16 / heads)
        parts.append(torch.einsum("bnm,bcm->bcn", scores.softmax(2), v[:, rows]))
    mixed = torch.einsum("oc,bcn->bon", attention.proj.weight[:, :, 0, 0], torch.cat(parts, 1))
    expected = 0.5 * (x + mixed.reshape(x.shape) + attention.proj.bias[:, None, None])
    torch.testing.assert_close(attention(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("resolution", ["same", "up", "down"])
def test_residual_block_equals_its_formula(resolution: Resolution, adaptive: bool):
    torch.manual_seed(0)
    init = xavier()
    style = Style(6, 0.0, 0.7, 1e-5, adaptive, 0, (1, 1), False, init, init, init)
    block = Block(8, 12, style, resolution=resolution).double()
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    x, e = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 6).double()

    def resize(x: Tensor) -> Tensor:
        if resolution == "up":
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)) if resolution == "down" else x

    def conv(layer: Conv, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[2] // 2)

    def norm(layer: GroupNorm, x: Tensor) -> Tensor:
        g = x.reshape(len(x), -1, 4, *x.shape[2:])
        mean, var = g.mean((2, 3, 4), keepdim=True), g.var((2, 3, 4), correction=0, keepdim=True)
        g = ((g - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
        return g * layer.weight[:, None, None] + layer.bias[:, None, None]

    def swish(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    h = conv(block.conv0, resize(swish(norm(block.norm0, x))))
    c = (e @ block.affine.weight.T + block.affine.bias)[:, :, None, None]
    if adaptive:
        h = swish(norm(block.norm1, h) * (1 + c[:, :12]) + c[:, 12:])
    else:
        h = swish(norm(block.norm1, h + c))
    expected = 0.7 * (conv(block.conv1, h) + conv(block.skip, resize(x)))
    torch.testing.assert_close(block(x, e), expected, rtol=1e-10, atol=1e-10)


# ---- whole networks


def diffusers_key(key: str, levels: int) -> str:
    """Where diffusers keeps a tensor of DDPM's network (q, k, v and Linear shapes apart)."""
    fixed = {"map0": "time_embedding.linear_1", "map1": "time_embedding.linear_2"}
    fixed |= {"norm": "conv_norm_out", "head": "conv_out", "encoder.0.entry.0": "conv_in"}
    fixed |= {
        "decoder.0.entry.0": "mid_block.resnets.0",
        "decoder.0.entry.1": "mid_block.resnets.1",
    }
    for level in range(1, levels):
        fixed[f"encoder.{level}.entry.0"] = f"down_blocks.{level - 1}.downsamplers.0.conv"
        fixed[f"decoder.{level}.entry.0.1"] = f"up_blocks.{level - 1}.upsamplers.0.conv"
    if key.startswith("decoder.0.entry.0.attention"):
        key = key.replace("decoder.0.entry.0.attention", "mid_block.attentions.0")
    for ours, theirs in fixed.items():
        if key.startswith(ours + "."):
            key = theirs + key[len(ours) :]
            break
    key = re.sub(r"encoder\.(\d+)\.blocks\.(\d+)\.attention", r"down_blocks.\1.attentions.\2", key)
    key = re.sub(r"decoder\.(\d+)\.blocks\.(\d+)\.attention", r"up_blocks.\1.attentions.\2", key)
    key = re.sub(r"encoder\.(\d+)\.blocks", r"down_blocks.\1.resnets", key)
    key = re.sub(r"decoder\.(\d+)\.blocks", r"up_blocks.\1.resnets", key)
    if ".attentions." in key:
        return key.replace(".norm.", ".group_norm.").replace(".proj.", ".to_out.0.")
    key = re.sub(r"(resnets\.\d+)\.norm1", r"\1.norm2", key).replace(".norm0.", ".norm1.")
    key = re.sub(r"(resnets\.\d+)\.conv1", r"\1.conv2", key).replace(".conv0.", ".conv1.")
    return key.replace(".affine.", ".time_emb_proj.").replace(".skip.", ".conv_shortcut.")


def test_ddpm_equals_diffusers_with_the_same_weights():
    from diffusers import UNet2DModel

    theirs = UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=3,
        block_out_channels=(128, 256, 256),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
    ).eval()
    config = replace(UNetConfig.ddpm(), multipliers=(1, 2, 2), blocks=1, attention=(4,))
    ours = make(config)
    state: dict[str, Tensor] = {}
    for key, value in ours.state_dict().items():
        name = diffusers_key(key, levels=3)
        flat = value[:, :, 0, 0] if ".attentions." in name and value.ndim == 4 else value
        if ".qkv." in name:
            for part, rows in zip("qkv", flat.chunk(3), strict=True):
                state[name.replace("qkv", f"to_{part}")] = rows
        else:
            state[name] = flat
    theirs.load_state_dict(state)  # strict: every tensor has its place
    x, _ = inputs()
    steps = torch.tensor([0, 10, 500, 999])
    with torch.no_grad():
        expected = theirs(x, steps).sample
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x, steps), expected, rtol=1e-4, atol=1e-4)


def test_output_responds_to_everything(config: NetworkConfig):
    network = make(config, classes=3, augment_labels=9)
    x, level = inputs()
    label = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    augment = torch.randn(4, 9)
    base = network(x, level, label, augment)
    assert base.shape == (4, 3, 8, 8)
    assert base.std() > 0.1
    for changed in (
        network(x + 0.1, level, label, augment),
        network(x, level + 0.5, label, augment),
        network(x, level, label.roll(1, 1), augment),
        network(x, level, label, augment + 1),
    ):
        assert (changed - base).abs().mean() > 1e-3
    # Images do not see each other.
    torch.testing.assert_close(
        network(x[1:2], level[1:2], label[1:2], augment[1:2]), base[1:2], rtol=1e-4, atol=1e-4
    )


def test_missing_labels_are_zeros(config: NetworkConfig):
    network = make(config, classes=3, augment_labels=9)
    x, level = inputs()
    zeros = network(x, level, torch.zeros(4, 3), torch.zeros(4, 9))
    torch.testing.assert_close(network(x, level), zeros)


def test_label_dropout_hides_whole_rows_while_training(config: NetworkConfig):
    network = make(replace(config, label_dropout=0.3), classes=5)
    labels = F.one_hot(torch.arange(5000) % 5, 5).float()
    torch.manual_seed(0)
    assert torch.equal(network.drop_labels(labels), labels)  # not in evaluation
    network.train()
    rows = network.drop_labels(labels)
    hidden = rows.sum(1) == 0
    assert torch.equal(rows[~hidden], labels[~hidden])
    assert hidden.double().mean() == pytest.approx(0.3, abs=0.03)
    # It reaches the output: a hidden class is no class.
    network = make(replace(config, label_dropout=1 - 1e-9, dropout=0.0), classes=5)
    x, level = inputs()
    expected = network(x, level)
    torch.testing.assert_close(network.train()(x, level, labels[:4]), expected)


def test_gradient_reaches_every_parameter(config: NetworkConfig):
    network = make(config, classes=3, augment_labels=9).train()
    x, level = inputs()
    label, augment = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float(), torch.randn(4, 9)
    torch.manual_seed(0)
    network(x, level, label, augment).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", [(7, 5), (8, 6), (1, 3)])
def test_odd_sizes_are_padded_by_repetition_and_cropped(
    config: NetworkConfig, size: tuple[int, int]
):
    network = make(config, size)
    x, level = inputs(size=size)
    rows = torch.arange(-(-size[0] // 2) * 2).clamp(max=size[0] - 1)
    columns = torch.arange(-(-size[1] // 2) * 2).clamp(max=size[1] - 1)
    padded = x[:, :, rows][:, :, :, columns]
    y = network(x, level)
    assert y.shape == (4, 3, *size)
    torch.testing.assert_close(y, network(padded, level)[:, :, : size[0], : size[1]])


def test_exact_sizes_are_not_copied():
    x = torch.randn(1, 2, 8, 12)
    assert pad_to_multiple(x, 4) is x


@pytest.mark.parametrize("channels_last", [False, True])
def test_low_precision_stays_close_to_float32(config: NetworkConfig, channels_last: bool):
    network = make(config, classes=3)
    x, level = inputs()
    label = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    exact = network(x, level, label)
    seen: list[torch.dtype] = []
    network.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    network.encoder[1].blocks[0].conv1.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].dtype)
    )
    network.set_compute(torch.float32, channels_last=channels_last)
    torch.testing.assert_close(network(x, level, label), exact, rtol=1e-4, atol=1e-4)
    network.set_compute(torch.bfloat16, channels_last=channels_last)
    rough = network(x, level, label)
    assert rough.dtype == torch.float32
    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.float32]
    error = (rough - exact).std() / exact.std()
    assert 1e-5 < error < 0.03  # bfloat16 has 8 bits; exactly 0 would mean it was not used


def test_float64_runs_in_float64_throughout(config: NetworkConfig):
    network = make(config, classes=3)
    network.set_compute(torch.bfloat16, channels_last=True)
    x, level = inputs()
    label = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    network.double()
    y = network(x.double(), level.double(), label)
    assert y.dtype == torch.float64
    # Any float32 step inside would leave an asymmetry of 1e-7 in this central difference.
    direction, h = torch.randn(x.shape, dtype=torch.float64), 1e-5
    up, down = (network(x.double() + s * h * direction, level.double(), label) for s in (1, -1))
    half = [network(x.double() + s * h / 2 * direction, level.double(), label) for s in (1, -1)]
    slope, finer = (up - down) / (2 * h), (half[0] - half[1]) / h
    assert (slope - finer).abs().max() < 1e-6 * slope.abs().max()


def test_silent_networks_start_silent():
    x, level = inputs()
    for config, largest in (
        (CONFIGS["ddpm"], 0.0),
        (CONFIGS["adm"], 0.0),
        (CONFIGS["ddpmpp"], 1e-3),
    ):
        torch.manual_seed(0)
        network = build_network(config, in_channels=2, out_channels=3, height=8, width=8).eval()
        y = network(x, level).abs().max()
        assert y <= largest
        assert (y > 0) == (largest > 0)


def test_dropout_acts_in_training_only(config: NetworkConfig):
    network = make(replace(config, dropout=0.5))
    x, level = inputs()
    assert torch.equal(network(x, level), network(x, level))
    network.train()
    assert not torch.equal(network(x, level), network(x, level))


def test_the_jacobian_transpose_is_the_derivative(config: NetworkConfig):
    """What guidance and likelihood rely on: vjp agrees with a finite difference."""
    network = make(config).double()
    x, level = inputs(batch=2)
    x, level = x.double().requires_grad_(), level.double()
    v, u = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 2, 8, 8).double()
    (back,) = torch.autograd.grad((network(x, level) * v).sum(), x)
    h = 1e-5
    with torch.no_grad():
        slope = (network(x + h * u, level) - network(x - h * u, level)) / (2 * h)
    assert (back * u).sum().item() == pytest.approx((slope * v).sum().item(), rel=1e-5)
    _, forward = torch.func.jvp(lambda x: network(x, level), (x.detach(),), (u,))
    torch.testing.assert_close(forward, slope, rtol=1e-5, atol=1e-6)


def test_state_dict_round_trip(config: NetworkConfig):
    network, other = make(config), make(config)
    for p in other.parameters():
        nn.init.constant_(p, 0.1)
    other.load_state_dict(network.state_dict())
    x, level = inputs()
    assert torch.equal(network(x, level), other(x, level))


# ---- bad input


def test_wrong_shapes_are_refused():
    network = make(CONFIGS["ddpmpp"])
    x, level = inputs()
    with pytest.raises(ValueError, match=r"takes images \[B, 2, H, W\]"):
        network(x[:, :1], level)
    with pytest.raises(ValueError, match="one value per image"):
        network(x, level[:1])
    with pytest.raises(ValueError, match="built without class_labels"):
        network(x, level, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
        network.set_compute(torch.float64)
    with pytest.raises(ValueError, match="height must be at least 1"):
        build_network(CONFIGS["adm"], in_channels=1, out_channels=1, height=0, width=8)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 30},
        {"multipliers": ()},
        {"blocks": 0},
        {"dropout": 1.0},
        {"label_dropout": -0.1},
        {"resample_filter": (1, 2, 1)},
        {"resample_filter": (1, -1)},
    ],
)
def test_impossible_configurations_are_refused(wrong: dict[str, object]):
    with pytest.raises(ConfigError):
        replace(UNetConfig(), **wrong)
