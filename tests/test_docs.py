"""Every Python snippet of the README and docs runs as written, on small networks, briefly."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What would take too long here, and what stands in for it.
SHORTER = {
    "minutes=10": "minutes=0.02",
    'sfumato.recipe("edm-tiny")': "tiny_recipe()",
}
SNIPPETS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    )
]


class YourNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.conv(x) + level.reshape(-1, 1, 1, 1) * 1e-3


def tiny_recipe() -> object:
    from dataclasses import replace

    import sfumato

    recipe = sfumato.recipe("edm-tiny")
    network = replace(recipe.network, width=8, multipliers=(1, 2), blocks=1, attention=())
    sampler = replace(recipe.sampler, steps=2, batch=8)
    return replace(recipe, network=network, sampler=sampler, batch=8, precision="float32")


def test_there_are_snippets_to_run() -> None:
    assert len(SNIPPETS) >= 6


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    torch.manual_seed(0)
    names = {"your_network": YourNetwork(), "tiny_recipe": tiny_recipe}
    exec(compile(code, "snippet", "exec"), names)
    if "save_images" in code:
        written = sorted((tmp_path / "new-photos").glob("*.png"))
        assert len(written) == 16
        assert Image.open(written[0]).size == (32, 32)
    if "next(pictures)" in code:
        images = names["images"]
        assert isinstance(images, Tensor)
        assert images.shape == (4, 3, 32, 32)
        assert images.isfinite().all()
