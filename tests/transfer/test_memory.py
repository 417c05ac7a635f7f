"""What a run is expected to take of the memory; ``benchmarks.speed --parts run`` measures it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import tiny_params, write_params

from pipeline import paths
from pipeline.config.params import read_params
from pipeline.errors import UserError
from pipeline.networks.layers import LAYERS
from pipeline.runtime import device
from pipeline.runtime.device import available
from pipeline.stages.stylize import stylize
from pipeline.transfer.memory import (
    GIB,
    HEAP,
    IMAGES,
    TILES,
    Demand,
    check_fits,
    choose_tiles,
    demands,
    estimate,
)

VGG = {name: layer.channels_out for name, layer in LAYERS.items()}
NEEDS = {"squared_distance@content": ["conv4_2"], "gram_matrix": ["conv1_1"]}
DEMAND = Demand((768, 1024), [(768, 1024)], VGG, NEEDS, 20, "float32", "avg")
PIXELS = 768 * 1024


def test_bytes_of_two_layers_add_up() -> None:
    """By hand: a history of 1 is 5 images; maps of 8 and 16 channels of 4 bytes are the peak."""
    demand = DEMAND._replace(
        channels={"conv1_1": 8, "conv1_2": 16},
        needs={"gram_matrix": ["conv1_2"]},
        history_size=1,
    )
    kernels = 9 * (3 * 8 + 8 * 16) * 12
    maps = PIXELS * 4 * (8 + 16)
    kept = PIXELS * 4 * 16 + 2 * 4 * 16**2  # for the Gram matrix's gradient, and two of these
    expected = kernels + (5 + IMAGES) * 12 * PIXELS + maps + kept + HEAP
    assert estimate(demand) == expected


@pytest.mark.parametrize(
    "more",
    [
        {"size": (800, 1024)},
        {"style_sizes": [(4000, 4000)]},
        {"history_size": 21},
        {"precision": "bf16"},
        {"needs": NEEDS | {"gram_matrix": ["conv1_1", "conv1_2"]}},
        {"original": 200_000_000},
    ],
)
def test_more_takes_more(more: dict[str, object]) -> None:
    assert estimate(DEMAND._replace(**more)) > estimate(DEMAND)  # type: ignore[arg-type]


def test_targets_of_each_style_image_count_by_its_own_size() -> None:
    targets = {"conv1_1": 1}
    small, large = (
        estimate(DEMAND._replace(targets=targets, style_sizes=[(768, 1024), second]))
        for second in ((76, 102), (768, 1024))
    )
    activations = 64 * 4
    assert large - small == pytest.approx((activations + 4 * 4) * (PIXELS - 76 * 102))


def test_style_image_is_measured_before_there_is_a_history() -> None:
    """Unless a run of lower precision makes its second objective, in float32."""
    sizes = [(3072, 4096)]
    for precision, grows in (("float32", False), ("bf16", True)):
        demand = DEMAND._replace(style_sizes=sizes, precision=precision)
        assert (estimate(demand._replace(history_size=25)) > estimate(demand)) == grows


def test_what_fits_is_not_refused_and_what_is_advised_fits() -> None:
    needed = estimate(DEMAND)
    check_fits(DEMAND, needed, 1024)
    with pytest.raises(UserError) as refused:
        check_fits(DEMAND, needed - 1, 1024)
    message = str(refused.value)
    assert message.startswith(f"1024x768 pixels take {needed / GIB:.1f} GiB of memory, and")
    advised = re.search(r"What fits: size (\d+) or lbfgs.history_size (\d+)$", message)
    assert advised is not None
    check_fits(DEMAND.reduced(int(advised[1]) / 1024), needed - 1, 1024)
    check_fits(DEMAND._replace(history_size=int(advised[2])), needed - 1, 1024)
    with pytest.raises(UserError, match=r"GiB are free. Close what else takes memory"):
        check_fits(DEMAND, 1000, 1024)


def test_container_may_have_less_than_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    machine = available(cpu)
    assert machine > 0
    (tmp_path / "memory.max").write_text("max\n")
    assert available(cpu) == pytest.approx(machine, rel=0.5)
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1500\n")
    (tmp_path / "memory.stat").write_text("anon 800\ninactive_file 300\nactive_file 200\n")
    assert available(cpu) == 2000
    (tmp_path / "memory.max").unlink()
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("3000\n")
    (old / "memory.usage_in_bytes").write_text("1500\n")
    (old / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 100\n")
    assert available(cpu) == 1600


def test_run_that_does_not_fit_is_refused_before_it_begins(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.transfer.memory.available", lambda _: 900 * 2**20)
    params = tiny_params(weights_file)
    params["defaults"] |= {"size": 2000}  # type: ignore[operator]
    write_params(prepared, params)
    with pytest.raises(
        UserError,
        match=r"2000x1330 pixels in tiles of 256 take .* GiB are free. What fits: size \d+$",
    ):
        stylize("first")
    assert not (paths.EXPERIMENTS / "first/history.csv").exists()


def test_both_networks_of_a_warm_start_are_looked_at(prepared: Path, weights_file: Path) -> None:
    params = tiny_params(weights_file)
    params["defaults"] |= {"warm_start": "embedded", "style_resize": "own"}  # type: ignore[operator]
    write_params(prepared, params)
    experiment = read_params().experiments["first"]
    found = demands(experiment, torch.device("cpu"), "float32")
    assert [demand.channels["conv1_1"] for demand in found] == [16, 64]
    assert [demand.size for demand in found] == [(21, 32)] * 2
    assert found[0].style_sizes == [(32, 32)]
    on_a_gpu = demands(experiment, torch.device("cuda"), "float32")
    assert estimate(on_a_gpu[1]) - HEAP == pytest.approx(2.5 * (estimate(found[1]) - HEAP))


def test_tiles_are_the_largest_that_fit(
    prepared: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tiny_params(weights_file)
    params["defaults"] |= {"size": 3000}  # type: ignore[operator]
    write_params(prepared, params)
    settings = read_params().experiments["first"]
    cpu = torch.device("cpu")
    (whole,) = demands(settings, cpu, "float32")
    needed = {tile: estimate(whole._replace(tile=tile)) for tile in (None, *TILES)}
    assert list(needed.values()) == sorted(needed.values(), reverse=True)
    for tile, bytes_needed in needed.items():
        monkeypatch.setattr("pipeline.transfer.memory.available", lambda _, n=bytes_needed: n)
        assert choose_tiles(settings, cpu, "float32") == {"main": tile}
    assert choose_tiles(settings.model_copy(update={"tile": 128}), cpu, "float32")["main"] == 128
    sorted_positions = settings.model_copy(update={"histogram_weight": 1.0})
    for refused in (settings.model_copy(update={"tile": None}), sorted_positions):
        with pytest.raises(UserError, match=r"^3000x1995 pixels take"):
            choose_tiles(refused, cpu, "float32")


def test_devices_divide_the_pairs_of_lbfgs_and_processes_on_a_cpu_share_its_memory() -> None:
    demand = DEMAND._replace(tile=256)
    pairs = 2 * 21 * 12 * PIXELS
    assert estimate(demand) - estimate(demand._replace(devices=4)) == pairs * 3 // 4
    two = demand._replace(devices=2)
    assert estimate(two._replace(on_one_memory=True)) - HEAP == 2 * (estimate(two) - HEAP)


def test_several_devices_have_a_tile_each_in_every_stage(
    prepared: Path, weights_file: Path
) -> None:
    params = tiny_params(weights_file)
    settings = {"size": 1024, "devices": 2, "content_layers": {"conv4_2": 1.0}}
    params["defaults"] |= settings  # type: ignore[operator]
    write_params(prepared, params)
    chosen = choose_tiles(read_params().experiments["first"], torch.device("cpu"), "float32")
    assert chosen == {"main": 256}  # of 512, the stage from conv4_1 on has edges of 1024 pixels
