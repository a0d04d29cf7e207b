"""Recipes: published settings, files, contradictions, and that every one trains and samples."""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image
from torch.nn.utils import parameters_to_vector

from recipe_helpers import BATCH, QUIET, in_memory, small
from sfumato.data.pixels import to_model
from sfumato.errors import ConfigError
from sfumato.networks.config import ADMConfig, UNetConfig
from sfumato.recipes import build
from sfumato.recipes.config import EmaConfig, NoiseConfig, OptimizerConfig, ProcessConfig, Recipe
from sfumato.recipes.model import Model
from sfumato.recipes.plan import objective_of, plan_of
from sfumato.recipes.presets import names, recipe
from sfumato.recipes.preview import Preview, preview_sampler
from sfumato.recipes.progress import Every, Progress
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import Arithmetic, Bookkeeping, DataConfig, RunConfig
from sfumato.recipes.run_log import RunLog
from sfumato.recipes.sampler_config import SamplerConfig
from sfumato.recipes.samplers import solver_of
from sfumato.recipes.toml import difference, from_toml, to_toml
from sfumato.training.loop import Record, train
from sfumato.training.objectives import DDIMBound, MeanError
from sfumato.training.optimizer import NoDecay
from sfumato.training.state import TrainState

F64 = torch.float64


def through_a_file(value: Recipe) -> Recipe:
    return from_toml(tomllib.loads(tomli_w.dumps(to_toml(value))))


@pytest.mark.parametrize("name", names())
def test_a_recipe_survives_its_file(name: str) -> None:
    assert through_a_file(recipe(name)) == recipe(name)


def test_every_unusual_field_survives_its_file() -> None:
    value = Recipe(
        network=ADMConfig(width=8, multipliers=(1,), attention=()),
        process=ProcessConfig(sigma_data=0.25),
        sampler=SamplerConfig(sigma_min=0.01, sigma_max=10.0, churn_high=float("inf"), clip=True),
        seed=7,
    )
    assert through_a_file(value) == value
    assert through_a_file(value).process.sigma_data == 0.25


def test_a_run_config_survives_its_file(tmp_path: Path) -> None:
    config = RunConfig(
        recipe("ncsn-tiny"),
        DataConfig(data="x", size=(9, 13), value_range=(0.0, 2.5), layout="NCHW", classes=True),
        Bookkeeping(minutes=1.5, threads=3),
        Arithmetic("bfloat16", channels_last=True),
    )
    config.write(tmp_path / "config.toml")
    assert RunConfig.read(tmp_path / "config.toml") == config
    text = (tmp_path / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(text.replace('"bfloat16"', '"int8"'))
    with pytest.raises(ConfigError, match="unknown arithmetic 'int8'"):
        RunConfig.read(tmp_path / "config.toml")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("edn", "'edm'"), ("ddpm-tinny", "'ddpm-tiny'"), ("subvpp", "'subvp'"), ("EDM", None)],
)
def test_an_unknown_recipe_suggests_the_nearest(wrong: str, near: str | None) -> None:
    with pytest.raises(ConfigError, match="unknown recipe") as error:
        recipe(wrong)
    if near:
        assert f"did you mean {near}?" in str(error.value)
    assert "ncsn" in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("batchsize",), 3, "batchsize"),
        (("optimizer", "learningrate"), 3, "learningrate"),
        (("network", "widht"), 3, "widht"),
        (("network", "kind"), "vit", "vit"),
        (("batch",), "big", "batch"),
        (("batch",), 1.5, "batch"),
        (("flip",), "false", "flip"),
        (("sampler", "steps"), "many", "steps"),
        (("sampler", "solver"), "hoin", "solver"),
        (("process", "kind"), "edmm", "kind"),
        (("network",), 3, "network"),
        (("optimizer",), 3, "optimizer"),
        (("network", "multipliers"), 2, "multipliers"),
        (("network", "multipliers"), ["a"], "multipliers"),
    ],
)
def test_a_wrong_entry_of_a_file_is_named(path: tuple[str, ...], value: object, named: str) -> None:
    tables = to_toml(recipe("edm-tiny"))
    place = tables
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ConfigError, match=named):
        from_toml(tables)


def test_a_whole_number_is_a_float_in_a_file() -> None:
    tables = to_toml(recipe("edm"))
    tables["process"]["high"] = 80
    assert from_toml(tables) == recipe("edm")
    assert isinstance(from_toml(tables).process.high, float)


def test_published_settings_of_ddpm() -> None:
    # Ho et al. 2020, appendix B, and the published code's run_cifar.
    r = recipe("ddpm")
    assert (r.process.kind, r.process.steps, r.process.betas) == ("ladder", 1000, "linear")
    assert r.optimizer.learning_rate == 2e-4
    assert r.optimizer.ramp_images == 5000 * 128
    assert r.optimizer.clip == 1.0
    assert (r.batch, r.images) == (128, 128 * 800_000)
    assert (r.ema.kind, r.ema.decay) == ("constant", 0.9999)
    assert r.flip
    assert r.augment == 0
    assert (r.predicts, r.objective, r.variance) == ("noise", "simple", "unit-gaussian")
    assert (r.sampler.solver, r.sampler.steps) == ("ancestral", 1000)
    assert isinstance(r.network, UNetConfig)
    assert (r.network.width, r.network.multipliers, r.network.blocks) == (128, (1, 2, 2, 2), 2)
    assert (r.network.attention, r.network.dropout) == ((16,), 0.1)
    levels = build.process_of(r.process)
    # Linear betas from 1e-4 to 0.02: sigma_1^2 = beta_1 / (1 - beta_1).
    assert levels is not None
    assert levels.range.low == pytest.approx((1e-4 / (1 - 1e-4)) ** 0.5, rel=1e-12)
    abar = np.prod(1 - np.linspace(1e-4, 0.02, 1000))
    assert levels.range.high == pytest.approx((1 / abar - 1) ** 0.5, rel=1e-9)


@pytest.mark.parametrize("name", ["edm", "edm-ve"])
def test_published_settings_of_edm(name: str) -> None:
    # Karras et al. 2022, Tables 1, 7 and appendix F.3 (CIFAR-10).
    r = recipe(name)
    assert (r.optimizer.learning_rate, r.optimizer.ramp_images) == (1e-3, 10_000_000)
    assert (r.optimizer.beta2, r.optimizer.clip) == (0.999, 0.0)
    assert (r.batch, r.images) == (512, 200_000_000)
    assert (r.ema.kind, r.ema.halflife_images, r.ema.ramp_up) == ("half-life", 500_000, 0.05)
    assert r.augment == 0.12
    assert (r.noise.mean, r.noise.std) == (-1.2, 1.2)
    assert (r.process.low, r.process.high) == (0.002, 80.0)
    assert (r.sampler.solver, r.sampler.steps, r.sampler.rho) == ("heun", 18, 7.0)
    assert isinstance(r.network, UNetConfig)
    assert (r.network.width, r.network.multipliers, r.network.blocks) == (128, (2, 2, 2), 4)
    assert (r.network.attention, r.network.dropout) == ((16,), 0.13)
    assert (r.network.encoder == "residual") == (name == "edm-ve")


def test_published_settings_of_score_sde_and_ncsn() -> None:
    # Song et al. 2021: VE from 0.01 to 50; EMA 0.9999 for VP, 0.999 for VE. NCSNv2: 232 levels.
    assert recipe("vp").ema.decay == recipe("subvp").ema.decay == 0.9999
    assert recipe("ve").ema.decay == 0.999
    assert (recipe("ve").process.low, recipe("ve").process.high) == (0.01, 50.0)
    for name in ("vp", "ve", "subvp"):
        r = recipe(name)
        assert (r.optimizer.learning_rate, r.optimizer.clip, r.batch) == (2e-4, 1.0, 128)
    ncsn = recipe("ncsn").process
    assert (ncsn.kind, ncsn.steps, ncsn.low, ncsn.high) == ("ncsn", 232, 0.01, 50.0)


LADDER = {"process": ProcessConfig(kind="ladder"), "noise": NoiseConfig(draws="levels")}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": 0}, "images and batch must be at least 1"),
        ({"batch": 0}, "images and batch must be at least 1"),
        ({"micro_batch": -1}, "micro_batch at least 0"),
        ({"batch": 6, "micro_batch": 4}, "micro_batch 4 must divide batch 6"),
        ({"augment": 1.5}, r"probability in \[0, 1\], not 1.5"),
        ({"augment": -0.1}, "probability"),
        ({"predicts": "noise"}, "predicts edm belongs to process kind edm"),
        ({"process": ProcessConfig(kind="vp")}, "predicts edm belongs to process kind edm"),
        ({"predicts": "mean", "process": ProcessConfig(kind="vp")}, "mean needs a ladder"),
        ({"objective": "bound"}, "bound needs a ladder"),
        (
            {
                "process": ProcessConfig(kind="ladder", zero_terminal_snr=True),
                "noise": NoiseConfig(draws="levels"),
                "predicts": "noise",
            },
            "zero terminal SNR: choose predicts v or x0",
        ),
        ({"noise": NoiseConfig(draws="levels")}, "draws levels and loss-aware belong to a ladder"),
        (
            {**LADDER, "noise": NoiseConfig(), "predicts": "v"},
            "draws levels and loss-aware belong to a ladder",
        ),
        (
            {**LADDER, "predicts": "v", "noise": NoiseConfig(draws="time")},
            "draws time needs process kind vp, subvp or edm",
        ),
        ({"variance": "learned"}, "variance learned belongs to pairs of levels"),
        (
            {**LADDER, "predicts": "v", "noise": NoiseConfig(draws="levels"), "variance": "free"},
            "taught by the objectives hybrid and bound, not by",
        ),
        ({"objective": "hybrid"}, "the objective hybrid needs a ladder"),
        ({"objective": "mean"}, "the objective mean needs a ladder"),
        ({"bound_eta": 0.0}, r"bound_eta lies in \(0, 1\], not 0.0"),
        (
            {
                **LADDER,
                "predicts": "v",
                "noise": NoiseConfig(draws="levels"),
                "objective": "hybrid",
            },
            "choose variance learned or free",
        ),
        ({"process": ProcessConfig(low=1.0, high=1.0)}, "0 < low < high"),
        ({"process": ProcessConfig(low=0.0)}, "0 < low < high"),
        ({"process": ProcessConfig(sigma_data=0.0)}, "sigma_data"),
        ({"noise": NoiseConfig(std=0.0)}, "std"),
        ({**LADDER, "predicts": "v", "process": ProcessConfig(kind="ladder", steps=1)}, "steps"),
        ({"min_snr": 0.0}, "min_snr"),
        ({"seed": -1}, "seed"),
        ({"process": ProcessConfig(zero_terminal_snr=True)}, "zero_terminal_snr .* edm has none"),
        ({"optimizer": OptimizerConfig(learning_rate=0.0)}, "learning_rate must be above 0"),
        ({"optimizer": OptimizerConfig(learning_rate=-1e-3)}, "learning_rate must be above 0"),
        ({"optimizer": OptimizerConfig(learning_rate=float("nan"))}, "learning_rate .* not nan"),
        ({"optimizer": OptimizerConfig(matrix_rate=0.0)}, "matrix_rate must be above 0"),
        ({"optimizer": OptimizerConfig(beta2=1.0)}, r"beta2 lies in \[0, 1\), not 1"),
        ({"optimizer": OptimizerConfig(beta2=-0.1)}, "beta2"),
        ({"optimizer": OptimizerConfig(clip=-1.0)}, r"clip \(-1.0\) must be 0 or more"),
        ({"optimizer": OptimizerConfig(ramp_images=-1)}, r"ramp_images \(-1\)"),
        ({"ema": EmaConfig(decay=1.5)}, r"decay lies in \[0, 1\), not 1.5"),
        ({"ema": EmaConfig(decay=-0.5)}, "decay"),
        ({"ema": EmaConfig(halflife_images=0)}, "halflife_images"),
        ({"ema": EmaConfig(ramp_up=-0.1)}, "ramp_up"),
    ],
)
def test_a_contradiction_is_refused_with_its_reason(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        Recipe(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eta": 0.5}, "eta belongs to the ddim solver"),
        ({"solver": "ddim", "churn": 1.0}, "churn wraps heun, euler"),
        ({"solver": "ancestral", "churn": 1.0}, "churn wraps heun, euler"),
        ({"solver": "ddim", "eta": 1.5}, r"eta lies in \[0, 1\]"),
        ({"solver": "ddim", "eta": -0.1}, r"eta lies in \[0, 1\]"),
        ({"alpha": 0.0}, "alpha lies in"),
        ({"churn": -1.0}, "churn"),
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        solver_of(SamplerConfig(**changes))  # type: ignore[arg-type]


def test_the_difference_of_recipes_names_fields() -> None:
    ours = replace(recipe("edm"), batch=64, sampler=SamplerConfig(steps=9))
    assert difference(ours, recipe("edm")) == {"batch": 64, "sampler.steps": 9}
    assert difference(recipe("edm"), recipe("edm")) == {}


def trained(chosen: Recipe, folder: Path, **data: int) -> Run:
    images = in_memory(**data)
    config = RunConfig(chosen, DataConfig(classes=bool(data.get("classes"))), QUIET)
    run = Run.open(config, folder, images=images)
    losses = [record.loss for record in run.steps()]
    assert len(losses) == chosen.images // chosen.batch
    assert np.isfinite(losses).all()
    return run


@pytest.mark.parametrize("name", names())
def test_every_recipe_trains_and_samples(name: str, tmp_path: Path) -> None:
    run = trained(small(name), tmp_path)
    raw = run.model().sample(2)
    assert raw.shape == (2, 1, 8, 8)
    assert raw.dtype == np.uint8
    # Different seeds are different pictures.
    assert (raw[0] != raw[1]).any()


LADDERS = ("ladder", "ncsn")


def with_its_sampler(name: str, levels: int, **sampler: object) -> Recipe:
    """The small recipe with the sampler it really has, on a ladder of so many levels."""
    base = recipe(name)
    process = replace(base.process, steps=levels, sigma_data=0.5)
    steps = base.sampler.steps
    if process.kind in LADDERS and base.sampler.grid != "all":
        steps = min(steps, levels)
    own = replace(base.sampler, **{"batch": 2, "steps": steps, **sampler})  # type: ignore[arg-type]
    return small(name, process=process, sampler=own)


OWN_SAMPLERS = [
    *(pytest.param(with_its_sampler(name, 30), id=name) for name in names() if "tiny" in name),
    pytest.param(with_its_sampler("ncsn-tiny", 10), id="ncsn-10-levels"),
    pytest.param(with_its_sampler("ddpm-tiny", 22), id="ddpm-22-levels"),
    pytest.param(
        with_its_sampler(
            "ddpm-tiny", 30, solver="euler", grid="karras", steps=28, sigma_min=0.1, sigma_max=5.0
        ),
        id="ddpm-karras-within-bounds",
    ),
]


@pytest.mark.parametrize("chosen", OWN_SAMPLERS)
def test_a_recipes_own_sampler_and_its_preview_draw(chosen: Recipe, tmp_path: Path) -> None:
    images = in_memory()
    network = build.network_of(chosen, images.format.shape, 0).eval().requires_grad_(False)
    model = Model(chosen, network, images.format)
    assert model.sample(1).std() > 0
    log = RunLog(tmp_path, 1, print)
    Preview(tmp_path, chosen, log, Every(1, 0, 0.0)).look(model, step=1)
    (file,) = (tmp_path / "samples").iterdir()
    assert Image.open(file).size[0] > 6 * 8
    # A look in between must not take long, and shows the same noise every time.
    short = preview_sampler(chosen)
    walked = len(build.grid_of(short, model.denoiser)) - 1
    assert walked <= 25
    if chosen.process.steps == 30 and chosen.process.kind in LADDERS:
        assert (walked, short.solver) == (18, "ddim")


@pytest.mark.parametrize(("value", "level"), [(0.0, 0), (1.0, 255)])
def test_a_preview_shows_values_in_their_range(
    value: float, level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = in_memory(dtype="float32")
    assert (images.format.low, images.format.high) == (0.0, 1.0)
    chosen = with_its_sampler("edm-tiny", 30)
    model = Model(chosen, build.network_of(chosen, images.format.shape, 0), images.format)
    flat = np.full((36, 1, 8, 8), value, np.float32)
    monkeypatch.setattr(Model, "sample", lambda *arguments, **options: flat)
    Preview(tmp_path, chosen, RunLog(tmp_path, 1, print), Every(1, 0, 0.0)).look(model, step=1)
    (file,) = (tmp_path / "samples").iterdir()
    assert np.asarray(Image.open(file))[4, 4] == level


def test_every_counts_steps_or_marks_of_the_progress() -> None:
    by_step = Every(4, 5, 0.0)
    assert [step for step in range(1, 13) if by_step.due(step, step / 12)] == [4, 8, 12]
    by_mark = Every(0, 5, 0.0)
    assert [step for step in range(1, 101) if by_mark.due(step, step / 100)] == [
        20,
        40,
        60,
        80,
        100,
    ]
    # A resumed run starts behind the marks it has passed; a rollback does not pass them again.
    resumed = Every(0, 5, 0.39)
    assert not resumed.due(1, 0.395)
    assert resumed.due(2, 0.41)
    assert not resumed.due(3, 0.3)
    assert not resumed.due(4, 0.42)
    assert resumed.due(5, 0.99)


def test_progress_tells_the_share_waited() -> None:
    progress = Progress(100, 0.0)
    assert progress.waited_share == 0
    for images, seconds, waited in ((10, 1.0, 0.5), (20, 3.0, 0.5)):
        progress.add(Record(1, images, 10, 0.0, 0.0, 0.0, seconds, waited))
    assert progress.waited_share == pytest.approx(1 / 4)
    assert (progress.images, progress.seconds, progress.share) == (20, 4.0, 0.2)


def test_what_a_time_limit_leaves_is_told_at_the_pace_of_now() -> None:
    progress = Progress(1000, 100.0)
    assert progress.expected_images() == 1000
    progress.go_on(100, {"seconds": 50.0})  # a slow session: 2 images a second
    assert progress.expected_images() == 200
    assert progress.expected_images(6.0) == 100 + 6 * 50
    assert progress.expected_images(60.0) == 1000
    progress.go_on(200, {"seconds": 120.0})
    assert progress.expected_images(6.0) == 200
    assert Progress(1000, 0.0, images=100).expected_images(6.0) == 1000
    assert Progress(1000, 0.0, images=1056).expected_images() == 1056  # by its last batch


DRAWS = {"edm": "log-normal", "vp": "time", "subvp": "time", "ve": "log-uniform"}
PREDICTS = ("edm", "noise", "x0", "v", "mean", "score")
OF_A_LADDER = ("bound", "ddim-bound", "mean")
OBJECTIVES = ("edm", "simple", "v", "x0", "min-snr", *OF_A_LADDER)


def meaningful(kind: str, predicts: str, objective: str) -> bool:
    if (kind == "edm") != (predicts == "edm"):
        return False
    return kind in LADDERS or (predicts != "mean" and objective not in OF_A_LADDER)


def combination(kind: str, predicts: str, objective: str) -> Recipe:
    process = ProcessConfig(kind=kind, steps=8, betas="cosine", low=0.01, high=50.0, sigma_data=0.5)  # type: ignore[arg-type]
    draws = DRAWS.get(kind, "levels")
    grid = "uniform" if kind in LADDERS else "karras"
    base = small("edm-tiny", steps=1)
    return replace(
        base,
        process=process,
        noise=NoiseConfig(draws=draws),  # type: ignore[arg-type]
        predicts=predicts,
        skip="spectral" if predicts == "edm" else "scalar",
        objective=objective,
        sampler=SamplerConfig(grid=grid, steps=3, batch=2),
    )


@pytest.mark.parametrize("kind", ["edm", "ladder", "vp", "subvp", "ve", "ncsn"])
def test_every_meaningful_combination_trains_and_the_others_are_refused(kind: str) -> None:
    count = 0
    for predicts in PREDICTS:
        for objective in OBJECTIVES:
            if not meaningful(kind, predicts, objective):
                with pytest.raises(ConfigError, match="does not fit together"):
                    combination(kind, predicts, objective)
                continue
            fitted(combination(kind, predicts, objective))
            count += 1
    assert count == {"edm": 5, "ladder": 40, "ncsn": 40}.get(kind, 20)


def test_objectives_of_neighbouring_levels_know_their_ladder() -> None:
    chosen = replace(combination("ladder", "noise", "ddim-bound"), bound_eta=0.4)
    found = objective_of(chosen, 1 / 255)
    assert isinstance(found, DDIMBound)
    assert found.eta == 0.4
    assert len(found.levels) == 8
    assert isinstance(objective_of(replace(chosen, objective="mean"), 1 / 255), MeanError)


@dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    labels: None = None
    condition: None = None


def fitted(chosen: Recipe) -> Model:
    """Train without a run folder; the loss must be finite and the weights must move."""
    images = in_memory()
    network = build.network_of(chosen, images.format.shape, 0)
    plan = plan_of(chosen, 1 / 255, 0, NoDecay())
    state = TrainState.start(network, plan)
    before = parameters_to_vector(network.parameters()).clone()
    batch = Batch(to_model(images.read(range(BATCH)), images.format))
    records = list(train(state, itertools.repeat(batch), plan, images=chosen.images))
    assert len(records) == chosen.images // BATCH
    assert all(np.isfinite(record.loss) and not record.skipped for record in records)
    assert (parameters_to_vector(network.parameters()) != before).any()
    return Model(chosen, network.eval().requires_grad_(False), images.format)


SOLVERS = (
    {"solver": "heun"},
    {"solver": "heun", "alpha": 0.5},
    {"solver": "euler"},
    {"solver": "ddim"},
    {"solver": "ddim", "eta": 1.0},
    {"solver": "ancestral"},
    {"solver": "heun", "churn": 2.0},
    {"solver": "euler", "churn": 2.0},
)


@pytest.mark.parametrize("kind", ["edm", "ladder", "vp", "subvp", "ve", "ncsn"])
def test_every_adapter_samples_with_every_solver(kind: str) -> None:
    for predicts in PREDICTS:
        if not meaningful(kind, predicts, "simple"):
            continue
        model = fitted(combination(kind, predicts, "simple"))
        for solver in SOLVERS:
            sampler = replace(model.recipe.sampler, **solver)  # type: ignore[arg-type]
            if kind in LADDERS and solver.get("alpha", 1.0) != 1.0:
                # The midpoint is no trained level.
                with pytest.raises(ConfigError, match="alpha"):
                    model.sample(2, sampler=sampler)
                continue
            raw = model.sample(2, sampler=sampler)
            assert raw.shape == (2, 1, 8, 8)
            assert raw.std() > 0


@pytest.mark.parametrize("kind", ["ladder", "ncsn", "edm", "vp", "ve"])
@pytest.mark.parametrize("grid", ["karras", "vp", "ve", "iddpm", "geometric"])
def test_named_grids_lie_inside_the_trained_range_and_on_the_ladder(kind: str, grid: str) -> None:
    chosen = combination(kind, "edm" if kind == "edm" else "v", "simple")
    denoise = build.adapt(replace(chosen, skip="scalar"), torch.nn.Identity())
    sampler = SamplerConfig(grid=grid, steps=6)  # type: ignore[arg-type]
    sigmas = build.grid_of(sampler, denoise)
    denoise.range.check(sigmas)
    assert sigmas.dtype == F64
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] == 0
    assert 2 <= len(sigmas) <= 7
    if kind in LADDERS:
        assert denoise.range.levels is not None
        assert set(sigmas[:-1].tolist()) <= set(denoise.range.levels.tolist())
    elif grid in ("karras", "ve", "geometric"):
        # These are laid over the range itself.
        assert len(sigmas) == 7
        torch.testing.assert_close(float(sigmas[0]), denoise.range.high)
        torch.testing.assert_close(float(sigmas[-2]), denoise.range.low)


def ladder(steps: int = 8) -> build.Adapted:
    process = ProcessConfig(kind="ladder", steps=steps, betas="cosine")
    value = replace(combination("ladder", "v", "simple"), process=process)
    return build.adapt(replace(value, skip="scalar"), torch.nn.Identity())


def test_sub_sequences_of_a_ladder() -> None:
    denoise = ladder(8)
    levels = denoise.range.levels
    assert levels is not None
    whole = build.grid_of(SamplerConfig(grid="all", steps=3), denoise)
    assert whole.tolist() == [*reversed(levels.tolist()), 0.0]
    for grid in ("uniform", "quadratic"):
        part = build.grid_of(SamplerConfig(grid=grid, steps=4), denoise)  # type: ignore[arg-type]
        assert len(part) == 5
        assert float(part[0]) == float(levels[-1])
        assert set(part.tolist()) <= {*levels.tolist(), 0.0}
    uniform = build.grid_of(SamplerConfig(grid="uniform", steps=8), denoise)
    assert torch.equal(uniform, whole)


@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
def test_more_steps_than_levels_are_refused(grid: str) -> None:
    with pytest.raises(ConfigError, match="1 to 8 steps, not 9"):
        build.grid_of(SamplerConfig(grid=grid, steps=9), ladder(8))  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", ["uniform", "quadratic", "all"])
def test_a_sub_sequence_needs_a_ladder(grid: str) -> None:
    chosen = replace(combination("edm", "edm", "edm"), skip="scalar")
    denoise = build.adapt(chosen, torch.nn.Identity())
    with pytest.raises(ConfigError, match="this model has none"):
        build.grid_of(SamplerConfig(grid=grid), denoise)  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", ["karras", "geometric"])
def test_sigma_min_and_max_bound_the_grid(grid: str) -> None:
    chosen = replace(combination("edm", "edm", "edm"), skip="scalar")
    denoise = build.adapt(chosen, torch.nn.Identity())
    sampler = SamplerConfig(grid=grid, steps=5, sigma_min=0.1, sigma_max=10.0)  # type: ignore[arg-type]
    sigmas = build.grid_of(sampler, denoise)
    assert float(sigmas[0]) == pytest.approx(10.0)
    assert float(sigmas[-2]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "bounds",
    [
        {"sigma_min": 10.0, "sigma_max": 1.0},
        {"sigma_max": 1000.0},
        {"sigma_min": 1e-6},
        {"sigma_min": 0.0},
        {"sigma_min": -1.0},
    ],
)
def test_bounds_outside_the_trained_range_are_refused(bounds: dict[str, float]) -> None:
    chosen = replace(combination("edm", "edm", "edm"), skip="scalar")
    denoise = build.adapt(chosen, torch.nn.Identity())
    with pytest.raises(ConfigError, match=r"sigma_min < sigma_max within .* 0\.01 to 50"):
        build.grid_of(SamplerConfig(steps=5, **bounds), denoise)
