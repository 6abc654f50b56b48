"""The reader of a Jetson's state, on files like those of a Jetson."""

import time
from pathlib import Path

import pytest

from runtime.bench.jetson import Jetson, PowerMeter
from tests.runtime.jetson_tree import write_jetson


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_jetson(tmp_path)


@pytest.fixture
def jetson(root: Path) -> Jetson:
    found = Jetson.find(root)
    assert found
    return found


def test_state(jetson: Jetson) -> None:
    assert jetson.model == "NVIDIA Jetson Orin Nano Developer Kit"
    state = jetson.state()
    assert state.power_mode == "7W"
    assert state.clocks == {"cpu": 1_510_400_000, "gpu": 624_750_000}  # the memory clock needs root
    assert state.temperatures == {"cpu-thermal": 48.5, "gpu-thermal": 47.0}


def test_memory_clock_where_it_can_be_read(root: Path, jetson: Jetson) -> None:
    rate = root / "sys/kernel/debug/bpmp/debug/clk/emc/rate"
    rate.parent.mkdir(parents=True)
    rate.write_text("2133000000\n")
    assert jetson.state().clocks["emc"] == 2_133_000_000


def test_what_is_missing_is_left_out(root: Path, jetson: Jetson) -> None:
    (root / "etc/nvpmodel.conf").unlink()
    assert jetson.state().power_mode == "mode 1"
    (root / "var/lib/nvpmodel/status").unlink()
    assert jetson.state().power_mode is None


def test_rails(jetson: Jetson) -> None:
    assert {rail.name: rail.watts() for rail in jetson.rails} == {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 2.0}
    assert jetson.board_rail == "VDD_IN"


def test_other_machines_are_no_jetson(tmp_path: Path) -> None:
    assert Jetson.find(tmp_path) is None
    compatible = tmp_path / "proc/device-tree/compatible"
    compatible.parent.mkdir(parents=True)
    compatible.write_text("raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert Jetson.find(tmp_path) is None


def test_energy_is_power_over_time(jetson: Jetson) -> None:
    outer = time.monotonic()
    with PowerMeter(jetson.rails, interval=0.005) as meter:
        inner = time.monotonic()
        time.sleep(0.1)
        least = time.monotonic() - inner
    assert 6 * least <= meter.joules["VDD_IN"] <= 6 * (time.monotonic() - outer)
    assert meter.joules["VDD_CPU_GPU_CV"] == pytest.approx(meter.joules["VDD_IN"] / 3)


def test_power_that_changes(root: Path, jetson: Jetson) -> None:
    start = time.monotonic()
    with PowerMeter(jetson.rails, interval=0.005) as meter:
        time.sleep(0.1)
        (root / "later").write_text("12000")
        (root / "later").replace(root / "sys/class/hwmon/hwmon1/curr1_input")  # never empty, as the kernel's is not
        time.sleep(0.1)
    # These bounds also hold on a machine that is too busy to read between the start and the end.
    assert 9 * 0.2 < meter.joules["VDD_IN"] < 60 * (time.monotonic() - start)


def test_a_rail_that_fails_is_an_error(root: Path, jetson: Jetson) -> None:
    with pytest.raises(OSError, match="curr1_input"), PowerMeter(jetson.rails, interval=0.005):
        (root / "sys/class/hwmon/hwmon1/curr1_input").unlink()
        time.sleep(0.05)
