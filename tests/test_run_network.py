"""A run's network: what makes it quick, and what happens where that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.data.pixels import pixel_format
from sfumato.errors import ConfigError
from sfumato.networks.config import UNetConfig
from sfumato.recipes.config import Recipe
from sfumato.recipes.run_config import Bookkeeping
from sfumato.recipes.run_network import NetworkMaker
from sfumato.training.team import Team

NETWORK = UNetConfig(width=8, multipliers=(1,), blocks=1, attention=(), dropout=0.0)


def maker(said: list[str], **options: Any) -> NetworkMaker:
    recipe = Recipe(network=NETWORK, batch=4, **options)
    form = pixel_format((3, 8, 8), "uint8", None)
    return NetworkMaker(recipe, form, 2, None, "cpu", Team(), said.append)


def test_off_a_gpu_a_network_is_left_as_it_is() -> None:
    said: list[str] = []
    made = maker(said)
    network = made.network("cpu")
    made.quicken(network, Bookkeeping())
    assert network._compiled_call_impl is None
    assert not said


def test_graphs_need_a_gpu() -> None:
    made = maker([])
    with pytest.raises(ConfigError, match="--compile graphs needs a CUDA device"):
        made.quicken(made.network("cpu"), Bookkeeping(compile="graphs"))


def test_a_network_that_cannot_be_compiled_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine without a compiler meets."""

    def broken(*arguments: object, **options: object) -> Any:
        def call(*given: object, **more: object) -> None:
            raise RuntimeError("no C++ compiler\nand a long traceback")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    said: list[str] = []
    made = maker(said, augment=0.1)
    network = made.network("cpu")
    made._compile(network, must=False)
    assert said[-1] == "the network is not compiled, and trains more slowly: no C++ compiler"
    told = {"class_labels": torch.zeros(4, 2), "augment_labels": torch.zeros(4, 9)}
    assert network(torch.zeros(4, 3, 8, 8), torch.zeros(4), **told).shape == (4, 3, 8, 8)


def test_a_network_that_must_be_compiled_says_why_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: object, **options: object) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    made = maker([])
    with pytest.raises(RuntimeError, match="no C"):
        made.quicken(made.network("cpu"), Bookkeeping(compile="on"))
