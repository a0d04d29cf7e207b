"""Samplers by name: each word of a recipe is the solver it names, and runs on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from recipe_helpers import array_file, open_run, small
from sfumato.cli.sampler_options import SamplerOptions
from sfumato.denoiser import Counted
from sfumato.errors import ConfigError
from sfumato.noise import VE, VP, NoiseLevels, linear_betas
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model
from sfumato.recipes.sampler_config import SamplerConfig, SolverName
from sfumato.recipes.samplers import BETWEEN, solver_of, with_evaluations
from sfumato.solvers import DDIM, Ancestral, Churn, Euler, Multistep
from sfumato.solvers.restart import Restart

# The tuned solver is not made from a name: tests/test_tune_verb.py.
NAMES: tuple[SolverName, ...] = tuple(n for n in get_args(SolverName) if n != "tuned")
LADDER = NoiseLevels.from_betas(linear_betas(1000))


def trained(folder: Path, name: str) -> Model:
    made = open_run(folder / "run", array_file(folder), small(name, steps=2))
    for _ in made.steps():
        pass
    return load(folder / "run")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    names = ("edm-tiny", "ddpm-tiny", "vp-tiny")
    return {name: trained(tmp_path_factory.mktemp(name), name) for name in names}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["edm-tiny", "ddpm-tiny", "vp-tiny"])
def test_every_solver_draws_from_every_kind_of_model(
    models: dict[str, Model], model: str, name: SolverName
) -> None:
    chosen = models[model]
    sampler = SamplerConfig(solver=name, steps=4, batch=4, tolerance=0.1)
    if model == "ddpm-tiny":
        if name in BETWEEN:
            with pytest.raises(ConfigError, match="--interpolate"):
                chosen.sample(2, sampler=sampler)
            sampler = SamplerConfig(solver=name, steps=4, batch=4, tolerance=0.1, interpolate=True)
        if name == "euler-maruyama":
            with pytest.raises(ConfigError, match="use reverse-diffusion"):
                chosen.sample(2, sampler=sampler)
            return
    images = chosen.sample(2, sampler=sampler)
    assert images.shape == (2, 1, 8, 8)
    assert (images == chosen.sample(2, sampler=sampler)).all()
    assert (images[1:] == chosen.sample(1, seed=1, sampler=sampler)).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "rk45"])
def test_nfe_is_what_is_spent(models: dict[str, Model], name: SolverName) -> None:
    from sfumato.randomness import noise_for
    from sfumato.sampling import sample, start_from_prior

    model = models["edm-tiny"]
    config = SamplerConfig(solver=name, batch=4)
    nfe = next(n for n in range(6, 20) if _can(config, n))
    config = with_evaluations(config, nfe)
    counted = Counted(model.bound([0, 1], sampler=config))
    grid, noise = model.grid(config), noise_for(0, 2)
    x = start_from_prior(model.denoiser, grid[0], (1, 8, 8), noise)
    list(sample(counted, model.solver(config), grid, x, noise))
    assert counted.evaluations == nfe


def _can(config: SamplerConfig, nfe: int) -> bool:
    try:
        with_evaluations(config, nfe)
    except ConfigError:
        return False
    return True


def test_an_impossible_number_of_calls_names_the_possible_ones() -> None:
    with pytest.raises(ConfigError, match="1, 3, 5, 7"):
        with_evaluations(SamplerConfig(solver="heun"), 6)
    with pytest.raises(ConfigError, match="not known beforehand"):
        with_evaluations(SamplerConfig(solver="rk45"), 6)


def test_words_become_the_values_they_name() -> None:
    assert solver_of(SamplerConfig(solver="ddim", eta=0.5)) == DDIM(0.5)
    assert solver_of(SamplerConfig(solver="dpm++2m")) == Multistep(2, published=True)
    assert solver_of(SamplerConfig(solver="multistep", points=3)) == Multistep(3)
    assert solver_of(SamplerConfig(solver="ancestral")) == Ancestral()
    churned = solver_of(SamplerConfig(solver="euler", churn=4.0))
    assert churned == Churn(Euler(), 4.0)
    assert isinstance(solver_of(SamplerConfig(solver="heun", restarts=2)), Restart)
    for process in (VP(), VE(), LADDER):
        assert solver_of(SamplerConfig(solver="pc"), process).predictor.process == process


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"solver": "unipc", "churn": 1.0}, "churn wraps"),
        ({"solver": "heun", "points": 2}, "points 2 does not suit heun"),
        ({"solver": "unipc", "points": 4}, "points 4 does not suit unipc"),
        ({"restarts": 1, "restart_low": 2.0}, "restart_low < restart_high"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"heat": -1.0}, "heat must be 0 or more"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        SamplerConfig(**changes)


def test_options_of_the_runs_own_solver_stay_behind() -> None:
    own = SamplerConfig(solver="ddim", eta=0.5, steps=10)
    assert SamplerOptions(solver="unipc").over(own).eta == 0
    assert SamplerOptions(steps=7).over(own) == SamplerConfig(solver="ddim", eta=0.5, steps=7)
    assert SamplerOptions(solver="heun", nfe=9).over(own).steps == 5
    with pytest.raises(ConfigError, match="not both"):
        SamplerOptions(steps=7, nfe=7).over(own)


def test_more_steps_of_every_deterministic_solver_come_to_one_picture(
    models: dict[str, Model],
) -> None:
    """All walk the same probability flow, so with many steps the pictures agree."""
    model = models["edm-tiny"]
    names = ("heun", "rk4", "multistep", "unipc", "deis", "dpm++2s", "rk45")
    pictures = [
        model.sample(2, sampler=SamplerConfig(solver=name, steps=60, batch=4)).astype(float)
        for name in names
    ]
    for picture in pictures[1:]:
        assert np.abs(picture - pictures[0]).max() <= 2
