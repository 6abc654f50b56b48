"""The random numbers are a contract: another stream would draw other images for the same seed."""

import numpy as np
import pytest

from runtime import SettingsError
from runtime.uniforms import check_seed, gumbel_noise, uniforms


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32, 2**63, 2**64 - 1])
@pytest.mark.parametrize("sides", [(1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 2, 4)])
def test_equal_to_numpy_s_generator(seed: int, sides: tuple[int, ...]) -> None:
    counts = [side * side for side in sides]
    drawn = uniforms(seed, counts)
    expected = np.random.Generator(np.random.Philox(key=seed)).random(sum(counts), dtype=np.float32)
    assert [values.shape for values in drawn] == [(count,) for count in counts]
    assert all(values.dtype == np.float32 for values in drawn)
    assert np.array_equal(np.concatenate(drawn), expected)


def test_known_values() -> None:
    # Fixed values detect a change in numpy's stream; the test above would follow such a change.
    assert (uniforms(0, [4])[0] * 2**24).tolist() == [582872, 193722, 10266821, 4052523]


@pytest.mark.parametrize("vocab_size", [4096, 5])
def test_noise_is_the_same_stream_however_it_is_divided(vocab_size: int) -> None:
    """Each 64 bits of the generator give two words; with an odd number the second belongs to the next scale."""
    counts = [1, 4, 9]
    raw = np.random.Philox(key=np.array([7, 1], np.uint64)).random_raw(sum(counts) * vocab_size // 2 + 1)
    words = raw.astype("<u8").view("<u4")[: sum(counts) * vocab_size]
    expected = -np.log(-np.log(((words >> 8) + 0.5) * 2**-24))
    noise = list(gumbel_noise(7, counts, vocab_size))
    assert [values.shape for values in noise] == [(count, vocab_size) for count in counts]
    assert np.array_equal(np.concatenate(noise).ravel(), expected.astype(np.float32))


@pytest.mark.parametrize(("seed", "pictures"), [(-1, 1), (2**64, 1), (2**64 - 2, 3)])
def test_seeds_out_of_range(seed: int, pictures: int) -> None:
    with pytest.raises(SettingsError, match="seed: expected 0 to"):
        check_seed(seed, pictures)


def test_last_seeds() -> None:
    check_seed(2**64 - 3, 3)
