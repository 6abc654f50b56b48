"""python -m tests.fuzz --inputs 100000: give damaged files to every reader, which must read or refuse each in one line.

An input may take two seconds of processor time and 500 MB. The first input that takes more, or raises another error,
ends the run; it is saved in `build/crash` with the traceback.
"""

from __future__ import annotations

import resource
import signal
import tempfile
import time
from pathlib import Path
from random import Random
from types import FrameType

import click

from runtime.errors import LENGTH, UNPRINTABLE, VarEdgeError
from runtime.memory import memory
from tests.fuzz.mutate import mutated
from tests.fuzz.readers import Reader, readers

SECONDS, BYTES = 2.0, 500 << 20
CRASH = Path("build/crash")
MEMORY = Path("/proc/self/statm")


class TooSlow(BaseException):
    """Raised when an input takes too long. Not an Exception, so that `except Exception` in a reader lets it pass."""


def one_input(reader: Reader, path: Path, data: bytes) -> bool:
    """Return whether the input was read. Raises every error that a reader must not raise.

    AssertionError means a message that is not one line.
    """
    path.write_bytes(data)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reader.read(path)
        return True
    except VarEdgeError as error:
        text = str(error)
        assert text and len(text) <= LENGTH and not UNPRINTABLE.search(text), text
        return False
    except MemoryError:
        if reader.name != "picture":  # an image of 89 megapixels may need more; the command then says "out of memory"
            raise
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def fuzz(reader: Reader, folder: Path, inputs: int, seed: int) -> str:
    """Read that many damaged files, and return a line with the counts. Raises what `one_input` raises."""
    random, path, read, slowest = Random(f"{seed} {reader.name}"), folder / reader.name, 0, 0.0
    for seed_file in reader.seeds:
        path.write_bytes(seed_file)
    for _ in range(inputs):
        data = mutated(random.choice(reader.seeds), reader.seeds, random)
        start = time.process_time()
        read += one_input(reader, path, data)
        slowest = max(slowest, time.process_time() - start)
    return f"{reader.name:20} {inputs:7} inputs, {read:6} read, the others refused; slowest {slowest:.3f} s"


def limited() -> None:
    """From now on, stop an input that takes too long, and limit how much more memory this process gets."""

    def too_slow(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    signal.signal(signal.SIGPROF, too_slow)
    held = int(MEMORY.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, resource.RLIM_INFINITY))


@click.command()
@click.option("--inputs", default=100_000, show_default=True, help="Of all readers together.")
@click.option("--seed", default=0, show_default=True, help="Another seed, other inputs.")
@click.option("--only", help="Name of one reader.")
def main(inputs: int, seed: int, only: str | None) -> None:
    """Read damaged files with every reader."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = [reader for reader in readers(folder) if only in (None, reader.name)]
        limited()
        for reader in chosen:
            try:
                click.echo(fuzz(reader, folder, inputs // len(chosen), seed))
            except BaseException:
                CRASH.parent.mkdir(exist_ok=True)
                CRASH.write_bytes((folder / reader.name).read_bytes())
                click.echo(f"{reader.name}: the input is kept in {CRASH}")
                raise
    found = memory()
    click.echo(f"peak {found.peak / 1e6:.0f} MB" if found else "")


if __name__ == "__main__":
    main()
