"""A run's network: what makes it quick, and what happens where that cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sfumato.data.pixels import pixel_format
from sfumato.errors import ConfigError
from sfumato.networks.config import UNetConfig
from sfumato.recipes import run_network
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


CHOICES = [
    # kernels, parameters, micro-batch, minutes: how
    (True, 10, 0, 0.0, "graphs"),
    (True, 10**8, 0, 0.0, "graphs"),
    (True, 10**8, 2, 0.0, "off"),
    (False, 10, 0, 0.0, "graphs"),
    (False, 10**8, 0, 0.0, "on"),
    (False, 10**8, 0, 9.0, "off"),
    (False, 10**8, 2, 0.0, "on"),
]


@pytest.mark.parametrize(("kernels", "parameters", "micro", "minutes", "how"), CHOICES)
def test_what_a_gpu_is_to_do_by_itself(
    monkeypatch: pytest.MonkeyPatch,
    kernels: bool,
    parameters: int,
    micro: int,
    minutes: float,
    how: str,
) -> None:
    monkeypatch.setattr(run_network.gpu, "why_not", lambda _: "" if kernels else "no triton")
    chosen: list[str] = []
    monkeypatch.setattr(NetworkMaker, "_compile", lambda *_, **__: chosen.append("on"))
    monkeypatch.setattr(NetworkMaker, "_replay", lambda *_, **__: chosen.append("graphs"))
    made = replace(maker([], micro_batch=micro), device="cuda")
    network = torch.nn.Module()
    network.register_parameter("p", torch.nn.Parameter(torch.empty(parameters, device="meta")))
    made.quicken(network, Bookkeeping(minutes=minutes))  # pyright: ignore
    assert (chosen or ["off"]) == [how]


def test_a_network_that_cannot_be_replayed_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(run_network, "replay_training", broken)
    said: list[str] = []
    made = maker(said)
    made._replay(made.network("cpu"), must=False)
    assert said == ["the network is not replayed as CUDA graphs: CUDA out of memory."]
    with pytest.raises(torch.OutOfMemoryError):
        made._replay(made.network("cpu"), must=True)
