"""Read the state of a Jetson without root: power mode, clocks, temperatures, and the power of its rails."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

ROOT = Path("/")
INTERVAL = 0.05  # seconds between two readings of the rails
GPU = re.compile(r"gpu|g[abmpv]\d+b")  # devfreq devices: 17000000.gpu, 17000000.ga10b, 17000000.gv11b, gpu-gpc-0
BOARD_RAILS = ("VDD_IN", "VIN", "POM_5V_IN")  # names of the rail that feeds the whole module, if it has that sensor


@dataclass(frozen=True)
class State:
    """The state at one moment: clocks in Hz, temperatures in °C. Values that only root can read may be missing."""

    power_mode: str | None
    clocks: dict[str, int]
    temperatures: dict[str, float]


@dataclass(frozen=True)
class Rail:
    """One channel of a power monitor: the files with its voltage and current."""

    name: str
    voltage: Path  # mV
    current: Path  # mA

    def watts(self) -> float:
        return int(self.voltage.read_text()) * int(self.current.read_text()) / 1e6


@dataclass(frozen=True)
class Jetson:
    """A Jetson module and its power rails, read from the files below `root`."""

    root: Path
    model: str
    rails: tuple[Rail, ...]

    @classmethod
    def find(cls, root: Path = ROOT) -> Jetson | None:
        """Return this machine, or None if it is not a Jetson."""
        compatible = _read(root / "proc/device-tree/compatible") or ""
        if "nvidia,tegra" not in compatible:
            return None
        model = _read(root / "proc/device-tree/model") or compatible
        return cls(root, model.strip("\0"), _rails(root))

    @property
    def board_rail(self) -> str | None:
        """The rail that feeds all others; None if every sensor sits on a part of the module."""
        return next((name for name in BOARD_RAILS if any(rail.name == name for rail in self.rails)), None)

    def state(self) -> State:
        return State(self._power_mode(), self._clocks(), self._temperatures())

    def _power_mode(self) -> str | None:
        """Return the current mode of nvpmodel, by its name in the configuration of nvpmodel."""
        found = re.search(r"pmode:(\d+)", _read(self.root / "var/lib/nvpmodel/status") or "")
        if not found:
            return None
        number = int(found[1])
        configuration = _read(self.root / "etc/nvpmodel.conf") or ""
        name = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=(\S+)", configuration)
        return name[1] if name else f"mode {number}"

    def _clocks(self) -> dict[str, int]:
        """Return the clocks of the fastest CPU, the GPU and the memory controller in Hz."""
        system = self.root / "sys"
        cpus = [
            int(text) * 1000  # kHz
            for path in system.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
            if (text := _read(path))
        ]
        gpus = [
            int(text)
            for path in system.glob("class/devfreq/*/cur_freq")
            if GPU.search(path.parent.name) and (text := _read(path))
        ]
        emc = _read(system / "kernel/debug/bpmp/debug/clk/emc/rate")  # root only
        clocks = {"cpu": max(cpus, default=0), "gpu": max(gpus, default=0), "emc": int(emc or 0)}
        return {name: rate for name, rate in clocks.items() if rate}

    def _temperatures(self) -> dict[str, float]:
        zones = sorted(self.root.glob("sys/class/thermal/thermal_zone*"))
        readings = {_read(zone / "type"): _read(zone / "temp") for zone in zones}
        return {name: int(text) / 1000 for name, text in readings.items() if name and text}


class PowerMeter:
    """Integrates the power of all rails in a thread while its `with` block runs.

    >>> with PowerMeter(jetson.rails) as meter: ...
    >>> meter.joules  # {"VDD_IN": 61.2, …}

    The end of the block raises OSError if a rail could not be read.
    """

    def __init__(self, rails: tuple[Rail, ...], interval: float = INTERVAL) -> None:
        self.joules = {rail.name: 0.0 for rail in rails}
        self._rails, self._interval = rails, interval
        self._stop = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PowerMeter:
        self._latest = time.monotonic(), self._watts()  # read here, because the thread may start late
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure and not error:
            raise self._failure

    def _run(self) -> None:
        try:
            self._integrate()
        except OSError as failure:
            self._failure = failure

    def _integrate(self) -> None:
        """Integrate by the trapezoidal rule; the last interval ends when the block ends."""
        then, before = self._latest
        stopped = False
        while not stopped:
            stopped = self._stop.wait(self._interval)
            now, watts = time.monotonic(), self._watts()
            for name, power in watts.items():
                self.joules[name] += (power + before[name]) / 2 * (now - then)
            then, before = now, watts

    def _watts(self) -> dict[str, float]:
        return {rail.name: rail.watts() for rail in self._rails}


def _rails(root: Path) -> tuple[Rail, ...]:
    """Return the labelled channels of every INA3221 power monitor; each has three."""
    monitors = [path for path in sorted(root.glob("sys/class/hwmon/hwmon*")) if _read(path / "name") == "ina3221"]
    rails = []
    for monitor in monitors:
        for label in sorted(monitor.glob("in[0-9]*_label")):
            channel = label.name.removeprefix("in").removesuffix("_label")
            rail = Rail(_read(label) or "", monitor / f"in{channel}_input", monitor / f"curr{channel}_input")
            if rail.name not in ("", "NC") and _read(rail.voltage) and _read(rail.current):
                rails.append(rail)
    return tuple(rails)


def _read(path: Path) -> str | None:
    """Return the stripped text of a file; None if it is missing, needs root, or its sensor is off."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
