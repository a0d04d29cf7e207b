"""Raw values to [-1, 1] and back: exact for every 8- and 16-bit value."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import numpy as np
import pytest
import tomli_w
import torch

from sfumato.data.pixels import PixelFormat, float_range, from_model, pixel_format, to_model
from sfumato.errors import DataError


@pytest.mark.parametrize(("dtype", "values"), [("uint8", 256), ("uint16", 65536)])
def test_every_integer_survives_the_round_trip(dtype, values):
    raw = np.arange(values, dtype=dtype).reshape(1, 1, 16, -1)
    fmt = pixel_format((1, 16, values // 16), dtype, None)
    x = to_model(raw, fmt)
    exact = np.arange(values) / ((values - 1) / 2) - 1
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.flatten().numpy(), exact, atol=1.2e-7, rtol=0)
    assert (x.min(), x.max()) == (-1, 1)
    np.testing.assert_array_equal(from_model(x, fmt), raw)
    np.testing.assert_array_equal(from_model(x.double(), fmt), raw)


def test_eight_bit_matches_the_published_formula_to_the_bit():
    raw = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    expected = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16) / 127.5 - 1
    assert torch.equal(to_model(raw, pixel_format((1, 16, 16), "uint8", None)), expected)


def test_a_stated_range_maps_its_ends_to_minus_one_and_one():
    twelve_bit = pixel_format((1, 1, 3), "uint16", (0, 4095))
    raw = np.array([0, 1000, 4095], np.uint16).reshape(1, 1, 1, 3)
    x = to_model(raw, twelve_bit)
    np.testing.assert_allclose(x.flatten().numpy(), [-1, 2000 / 4095 - 1, 1], atol=1e-7)
    np.testing.assert_array_equal(from_model(x, twelve_bit), raw)
    assert twelve_bit.levels == 4096

    kelvin = pixel_format((1, 1, 3), "float32", (250, 310))
    raw = np.array([250, 265, 310], np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(to_model(raw, kelvin).flatten().numpy(), [-1, -0.5, 1], atol=1e-6)
    np.testing.assert_allclose(from_model(to_model(raw, kelvin), kelvin), raw, atol=1e-4)


def test_output_is_clipped_and_rounded_to_nearest():
    fmt = pixel_format((1, 1, 4), "uint8", None)
    x = torch.tensor([-7.0, 3.0, 10.4 / 127.5 - 1, 10.6 / 127.5 - 1]).reshape(1, 1, 1, 4)
    np.testing.assert_array_equal(from_model(x, fmt).ravel(), [0, 255, 10, 11])
    with pytest.raises(ValueError, match="NaN"):
        from_model(x * torch.nan, fmt)
    with pytest.raises(ValueError, match="3 x 1 x 4"):
        from_model(x, pixel_format((3, 1, 4), "uint8", None))


def test_negative_strides_and_low_precision_are_accepted():
    raw = np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3)
    fmt = pixel_format((1, 2, 3), "uint8", None)
    np.testing.assert_array_equal(from_model(to_model(raw[..., ::-1], fmt), fmt), raw[..., ::-1])
    assert from_model(torch.ones(1, 1, 2, 3, dtype=torch.bfloat16), fmt).min() == 255


@pytest.mark.parametrize(
    "fmt",
    [
        PixelFormat(3, 32, 48, "uint8", 0.0, 255.0),
        PixelFormat(5, 7, 9, "uint16", 0.0, 4095.0),
        PixelFormat(1, 8, 8, "float32", -0.1, 1e-3),
    ],
)
def test_the_format_survives_toml(fmt):
    assert PixelFormat.from_toml(tomllib.loads(tomli_w.dumps(fmt.to_toml()))) == fmt


def test_bits_levels_and_bytes():
    assert pixel_format((3, 4, 5), "uint8", None).bits == 8
    assert pixel_format((3, 4, 5), "uint16", None).bits == 16
    assert pixel_format((3, 4, 5), "uint16", None).nbytes == 120
    assert pixel_format((3, 4, 5), "float32", (0, 1)).levels is None


def test_formats_that_make_no_sense_are_refused():
    with pytest.raises(DataError, match="channels, height"):
        PixelFormat.from_toml({"channels": 3})
    with pytest.raises(DataError, match=r"uint8, uint16, float32.*'int32'"):
        PixelFormat(1, 2, 2, "int32", 0, 1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="LOW < HIGH, got 1 0"):
        PixelFormat(1, 2, 2, "float32", 1, 0)
    with pytest.raises(DataError, match=r"0..255, got 0 300"):
        PixelFormat(1, 2, 2, "uint8", 0, 300)
    with pytest.raises(DataError, match="--value-range LOW HIGH"):
        pixel_format((1, 2, 2), "float32", None)
    with pytest.raises(DataError, match="at least one channel"):
        PixelFormat(0, 2, 2, "uint8", 0, 255)


def test_the_default_range_of_floats():
    assert float_range(0, 1, "a") == (0, 1)
    assert float_range(0.2, 0.3, "a") == (0, 1)
    assert float_range(-1e-6, 0.5, "a") == (-1, 1)
    with pytest.raises(DataError, match=r"a: .*\[0, 255\].*--value-range LOW HIGH"):
        float_range(0, 255, "a")


def test_importing_the_package_loads_no_torch():
    code = "import sys, sfumato.data; sys.exit(bool({'torch', 'PIL', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
