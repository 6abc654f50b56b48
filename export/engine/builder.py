"""Build one TensorRT plan from one ONNX graph, with Polygraphy. It imports no torch: it runs on the device."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from export.engine.build_log import Layer, inspected, logged
from runtime.backends import trt_engine
from runtime.bundle.engine_record import Built
from runtime.errors import VarEdgeError
from runtime.progress import Progress

SERIOUS = ("ERROR", "INTERNAL_ERROR")  # severities of the builder's log
# How the ONNX parser logs a node that it cannot parse: the node's number, then the node itself between two marks.
NODE_NAME = re.compile(r"(?:^|\n)(?:Node name: |name: \")([^\n\"]+)")
OF_NODE = re.compile(r"While parsing node number|--- (?:Begin|End) node ---")
IN_SOURCE = re.compile(r"^\w+\.cpp:\d+: (?:ERROR: )?")
Shapes = dict[str, tuple[int, ...]]


class BuildError(VarEdgeError):
    """TensorRT cannot build a graph. `reason` is all that its builder said; the message may lack the middle of it."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Options:
    """Build options that change a plan, besides its graph and its profiles."""

    workspace_bytes: int | None = None  # scratch memory that a plan may use; None: all memory of the device
    hardware_compatible: bool = False
    version_compatible: bool = False
    tf32: bool = False  # its 10-bit products of FP32 change 0.1 to 3 % of the draws; engines that have it are rebuilt


def load_tensorrt(flavour: str) -> ModuleType:
    """Import and return this TensorRT, and make Polygraphy use it. Raises SettingsError if it is not installed."""
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(flavour == "tensorrt_rtx"))  # read when Polygraphy is imported
    return trt_engine.load_tensorrt(flavour)


class Builder:
    """Builds plans for one kind of device. The builder's messages go to `log` and are not printed."""

    def __init__(self, trt: ModuleType, built: Built, options: Options, timing_cache: Path | None) -> None:
        import polygraphy.backend.trt.util as polygraphy_trt
        from polygraphy.logger import G_LOGGER

        self._trt, self._built, self._options, self._cache = trt, built, options, timing_cache
        self.on_gpu = built.gpu is not None  # of this machine, so that a plan can be opened
        self.log = _log(trt)
        polygraphy_trt.TRT_LOGGER = self.log  # Polygraphy uses this one logger everywhere; without it, it makes its own
        G_LOGGER.module_severity = G_LOGGER.CRITICAL + 1  # silent: its errors are raised as exceptions too

    def build(self, graph: Path, profiles: Sequence[Shapes], progress: Progress) -> bytes:
        """Build the plan of the ONNX file `graph`, whose weights are in the same folder. Raises BuildError."""
        from polygraphy.backend.trt import engine_bytes_from_network, network_from_onnx_path
        from polygraphy.exception import PolygraphyException

        self.log.lines.clear()
        strong = self._built.flavour == "tensorrt" and int(self._built.version.split(".")[0]) < 11  # the default in 11
        try:
            network = network_from_onnx_path(str(graph), strongly_typed=strong)
            config = self._config(profiles, _monitor(self._trt, graph.stem, progress))
            return bytes(engine_bytes_from_network(network, config, save_timing_cache=self._timing_cache()))
        except PolygraphyException as error:
            reason = self._reason(error)
            raise BuildError(f"{graph}: {self._built.flavour} cannot build it: {reason}", reason) from None

    def layers(self) -> list[Layer]:
        """Return the layers of the plan that was built last, as the builder logged them; [] if it did not."""
        return logged(self.log.lines)

    def inspect(self, plan: bytes) -> list[Layer]:
        """Return the layers of a plan from TensorRT itself; [] if it cannot be opened here."""
        runtime = self._trt.Runtime(self.log)
        if self._built.version_compatible:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return []
        return inspected(engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON))

    def foreign_cache(self) -> str | None:
        """Return a warning if the timing cache was of another TensorRT or GPU: the build ignored and replaced it."""
        said = [text for severity, text in self.log.lines if severity == "WARNING"]
        if self._cache and any("deserialize timing cache" in text for text in said):
            return f"{self._cache}: not a timing cache of this {self._built.flavour} and GPU; ignored and replaced"
        return None

    def _config(self, profiles: Sequence[Shapes], monitor: Any) -> Any:
        from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile

        trt, options = self._trt, self._options
        settings: dict[str, Any] = {
            "profiles": [_fixed(Profile(), shapes) for shapes in profiles],
            "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
            "progress_monitor": monitor,
            "load_timing_cache": self._timing_cache(),
            "version_compatible": options.version_compatible or None,
        }
        if options.workspace_bytes:
            settings["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace_bytes}
        if options.hardware_compatible:
            settings["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if self._built.flavour == "tensorrt":
            return PostprocessConfig(CreateConfig(**settings), self._set_flags)
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        if not self._built.gpu:
            capabilities = [tuple(map(int, text.split("."))) for text in self._built.compute_capabilities]
            settings["compute_capabilities"] = capabilities
        return PostprocessConfig(CreateConfigRTX(use_gpu=bool(self._built.gpu), **settings), self._set_flags)

    def _set_flags(self, _builder: Any, _network: Any, config: Any) -> None:
        """Set the flags that Polygraphy leaves as they are."""
        flags = self._trt.BuilderFlag
        (config.set_flag if self._options.tf32 else config.clear_flag)(flags.TF32)  # TensorRT sets it by default
        # Plans that allocate nothing while they run: a CUDA graph cannot record an allocation.
        if hasattr(flags, "REQUIRE_USER_ALLOCATION"):  # TensorRT for RTX 1.2 and later
            config.set_flag(flags.REQUIRE_USER_ALLOCATION)

    def _timing_cache(self) -> str | None:
        return str(self._cache) if self._cache else None

    def _reason(self, error: Exception) -> str:
        """Return the errors that the builder logged, else Polygraphy's text, then the name of the node.

        The node comes last because a long error text loses its middle, not its end.
        """
        errors = dict.fromkeys(text for severity, text in self.log.lines if severity in SERIOUS)
        node = NODE_NAME.search("\n".join(errors))
        said = [IN_SOURCE.sub("", text) for text in errors if not (node and OF_NODE.search(text))]
        reason = "; ".join(said) or str(error)
        return f"{reason} (node {node[1]!r})" if node else reason


def _fixed(profile: Any, shapes: Shapes) -> Any:
    for name, shape in shapes.items():
        profile.add(name, min=shape, opt=shape, max=shape)
    return profile


def _log(trt: ModuleType) -> Any:
    class Log(trt.ILogger):  # type: ignore[name-defined, misc]
        """Keeps (severity, text) of every message."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.lines.append((severity.name, text))

    return Log()


def _monitor(trt: ModuleType, graph: str, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.sizes: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.sizes[name] = steps
            progress(f"{graph}: {name.lower()}", 0, steps)

        def phase_finish(self, name: str) -> None:
            self.sizes.pop(name, None)

        def step_complete(self, name: str, step: int) -> bool:
            progress(f"{graph}: {name.lower()}", step + 1, self.sizes.get(name, step + 1))
            return True  # continue the build

    return Monitor()
