"""bcq_sample against numpy_sampler.py, against a Python twin of its integers, and by itself."""

from __future__ import annotations

import ctypes
import math
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from mobile_parts import SANITIZERS, build_library, build_program, run

from bcquant.runtime import numpy_sampler
from bcquant.runtime.sampling_options import SamplingOptions

F32Array = npt.NDArray[np.float32]
U64Array = npt.NDArray[np.uint64]
PARTS = ("sample", "random", "error")
BAD_ARGUMENT = 1
UNIT = 2**42
LN2, ONE = np.uint64(2977044472), np.uint64(2**32)
SIXTEENTHS = np.array([round(2 ** (31 - i / 16)) for i in range(16)], np.uint64)
NUM_CASES = 2000


class Sampling(ctypes.Structure):
    _fields_ = (
        ("temperature", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("repetition_penalty", ctypes.c_float),
        ("presence_penalty", ctypes.c_float),
    )

    def options(self) -> SamplingOptions:
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return SamplingOptions(**{name: getattr(self, name) for name in names})


class Library:
    """bcq_sample with numpy arrays."""

    def __init__(self, folder: Path) -> None:
        self.c = build_library(folder, PARTS)

    def call(
        self, logits: F32Array, sampling: Sampling, seed: int = 0, previous: tuple[int, ...] = ()
    ) -> tuple[int, int, F32Array, int]:
        """Status, id, what is left in the logits, the seed afterwards."""
        left, ids = np.array(logits, np.float32), np.array(previous, np.int32)
        scratch = np.full(left.size, 2**64 - 1, np.uint64)
        state, token = ctypes.c_uint64(seed), ctypes.c_int32(-1)
        status = self.c.bcq_sample(
            left.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(left.size),
            ctypes.byref(sampling), ids.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(ids.size),
            ctypes.byref(state), scratch.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_size_t(scratch.nbytes), ctypes.byref(token),
        )  # fmt: skip
        return status, token.value, left, state.value

    def error(self) -> str:
        return str(self.c.bcq_error_text().decode())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(tmp_path_factory.mktemp("sample"))


def settings(**changed: float) -> Sampling:
    values = {
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, **changed,
    }  # fmt: skip
    return Sampling(**values)  # type: ignore[arg-type]


# ---- the twin: the same integers by sorting and by Python's own arithmetic


def random_bits(state: int) -> tuple[int, int]:
    """SplitMix64: (bits, next state)."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    bits = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
    return bits ^ (bits >> 31), state


def seed_of(bits: int) -> int:
    """The state from which `random_bits` gives these bits: each of its steps can be undone."""
    mask = 2**64 - 1
    bits = bits ^ (bits >> 31) ^ (bits >> 62)
    bits = (bits * pow(0x94D049BB133111EB, -1, 2**64)) & mask
    bits = bits ^ (bits >> 27) ^ (bits >> 54)
    bits = (bits * pow(0xBF58476D1CE4E5B9, -1, 2**64)) & mask
    bits = bits ^ (bits >> 30) ^ (bits >> 60)
    return (bits - 0x9E3779B97F4A7C15) & mask


def twin_weights(scores: F32Array) -> U64Array:
    steps = (scores.max().astype(np.float64) - scores.astype(np.float64)) * (2**32 / math.log(2))
    is_in = steps < 43 * 2**32
    whole = np.where(is_in, steps, 0).astype(np.uint64)
    octaves, sixteenth = whole >> np.uint64(32), (whole >> np.uint64(28)) & np.uint64(15)
    t = ((whole & np.uint64(2**28 - 1)) * LN2) >> np.uint64(32)
    power = ONE
    for n in (5, 4, 3, 2, 1):
        power = ONE - ((t * power) >> np.uint64(32)) // np.uint64(n)
    weights = (power * SIXTEENTHS[sixteenth.astype(int)]) >> (np.uint64(21) + octaves)
    return np.where(is_in, weights, np.uint64(0))


def twin_scores(logits: F32Array, previous: tuple[int, ...], s: Sampling) -> F32Array:
    scores = logits.copy()
    for i in {i for i in previous if 0 <= i < scores.size}:
        value = float(scores[i])
        value = value * s.repetition_penalty if value < 0 else value / s.repetition_penalty
        scores[i] = np.float32(value - s.presence_penalty)
    return scores / np.float32(s.temperature)


def twin_sample(
    logits: F32Array, s: Sampling, seed: int, previous: tuple[int, ...]
) -> tuple[int, F32Array]:
    scores = twin_scores(logits, previous, s)
    if 0 < s.top_k < scores.size:
        scores[scores < np.sort(scores)[-s.top_k]] = -np.inf
    weights = twin_weights(scores)
    if s.top_p < 1:
        total = sum(map(int, weights))
        limit = min(int((1.0 - s.top_p) * float(total)), total - 1)
        mass = 0
        for i in np.argsort(scores, kind="stable"):
            mass += int(weights[i])
            if mass <= limit:
                scores[i], weights[i] = -np.inf, 0
    if s.min_p > 0:
        is_out = weights.astype(np.float64) < s.min_p * UNIT
        scores[is_out], weights[is_out] = -np.inf, 0
    total = sum(map(int, weights))
    point = random_bits(seed)[0] * total >> 64
    cumulated = np.cumsum(weights)
    return int(np.searchsorted(cumulated, np.uint64(point), side="right")), scores


def random_case(seed: int) -> tuple[F32Array, Sampling, tuple[int, ...]]:
    r = np.random.default_rng(seed)
    size = int(r.choice([1, 2, 7, 50, 300, 3000], p=[0.05, 0.1, 0.2, 0.3, 0.3, 0.05]))
    logits = r.standard_normal(size, np.float32) * np.float32(r.choice([0.1, 3, 12]))
    if r.random() < 0.3:
        logits = np.round(logits)  # ties, and zeros of both signs
    if r.random() < 0.3:
        logits[1:][r.random(size - 1) < 0.2] = -np.inf
    sampling = settings(
        temperature=float(r.uniform(0.05, 2)),
        top_k=int(r.integers(0, size + 3)) if r.random() < 0.5 else 0,
        top_p=float(r.uniform(0.01, 1)) if r.random() < 0.5 else 1.0,
        min_p=float(r.uniform(0, 0.3)) if r.random() < 0.3 else 0.0,
        repetition_penalty=float(r.uniform(0.6, 1.8)) if r.random() < 0.5 else 1.0,
    )
    previous = tuple(int(i) for i in r.integers(-1, size + 1, int(r.integers(0, 9))))
    return logits, sampling, previous


# ---- equality


def test_what_survives_is_what_numpy_sampler_keeps(library: Library) -> None:
    num_ruled_out = 0
    for case in range(NUM_CASES):
        logits, sampling, previous = random_case(case)
        options = sampling.options()
        scores = numpy_sampler.penalize(logits, previous, options.repetition_penalty)
        wanted = numpy_sampler.filter_scores(scores, options)
        status, token, left, _ = library.call(logits, sampling, case, previous)
        assert status == 0, library.error()
        # Bit for bit: both divide and multiply in float32. A mass beside a border of top-p or
        # min-p could differ (weights are right to 2^-29); in these cases none is that close.
        assert np.array_equal(left, wanted), (case, options)
        assert math.isfinite(wanted[token])
        num_ruled_out += int(np.isinf(wanted).sum() - np.isinf(logits).sum())
    assert num_ruled_out > 100_000  # the filters had something to do


def test_draws_are_those_of_the_twin(library: Library) -> None:
    for case in range(NUM_CASES):
        logits, sampling, previous = random_case(case)
        sampling.presence_penalty = (case % 3) * 0.7 - 0.7
        wanted, scores = twin_sample(logits, sampling, case, previous)
        status, token, left, seed = library.call(logits, sampling, case, previous)
        assert (status, token) == (0, wanted), (case, library.error())
        assert np.array_equal(left, scores)
        assert seed == random_bits(case)[1]  # one step


def test_greedy_ids_are_those_of_numpy_sampler(library: Library) -> None:
    for case in range(NUM_CASES):
        logits, sampling, previous = random_case(case)
        sampling.temperature = 0.0
        wanted = numpy_sampler.sample(logits, previous, sampling.options())
        assert library.call(logits, sampling, 7, previous)[:2] == (0, wanted)


def test_greedy_takes_the_lowest_of_equal_ids_and_no_random_number(library: Library) -> None:
    logits = np.array([1, 3, 0, 3, 3], np.float32)
    status, token, left, seed = library.call(logits, settings(temperature=0), 99)
    assert (status, token, seed) == (0, 1, 99)
    assert np.array_equal(left, logits)


def test_presence_penalty_counts_an_id_once(library: Library) -> None:
    logits = np.array([5, 4.5, 4, 1], np.float32)
    greedy = settings(temperature=0, presence_penalty=0.75)
    assert library.call(logits, greedy, previous=(0, 0, 0))[:2] == (0, 1)
    left = library.call(logits, greedy, previous=(0, 0, 1, 7, -1))[2]
    assert left.tolist() == [4.25, 3.75, 4, 1]


# ---- probabilities and random numbers


def test_weights_are_exponentials(library: Library) -> None:
    weight_of = library.c["_ZN3bcq9weight_ofEff"]  # bcq::weight_of(float, float)
    weight_of.restype = ctypes.c_uint64
    r = np.random.default_rng(1)
    best = np.float32(3.25)
    scores = np.concatenate([best - r.uniform(0, 31, 20_000), [best, -np.inf, -1e38]])
    worst = 0.0
    twins = twin_weights(np.append(scores, best).astype(np.float32))
    for score, twin in zip(scores.astype(np.float32), twins, strict=False):
        found = weight_of(ctypes.c_float(score), ctypes.c_float(best))
        assert found == twin
        wanted = UNIT * math.exp(float(score) - float(best))
        worst = max(worst, (abs(found - wanted) - 1) / max(wanted, 1e-300))
    assert worst < 2**-29  # as sample.h says: roundings of 2^-32 in a product of three factors
    assert weight_of(ctypes.c_float(best), ctypes.c_float(best)) == UNIT
    assert weight_of(ctypes.c_float(-math.inf), ctypes.c_float(best)) == 0


def test_random_bits_are_splitmix64(library: Library) -> None:
    bits = library.c["_ZN3bcq11random_bitsEPm"]
    bits.restype = ctypes.c_uint64
    state = ctypes.c_uint64(1234567)
    # The sequence that Vigna's and Java's SplittableRandom documentation give for this seed.
    assert [bits(ctypes.byref(state)) for _ in range(5)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1])
def test_random_below_is_the_high_word_of_a_product(library: Library, n: int) -> None:
    below = library.c["_ZN3bcq12random_belowEPmm"]
    below.restype = ctypes.c_uint64
    state = ctypes.c_uint64(n)
    for _ in range(200):
        bits, after = random_bits(state.value)
        assert below(ctypes.byref(state), ctypes.c_uint64(n)) == bits * n >> 64
        assert state.value == after


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_draws_follow_the_probabilities(library: Library, seed: int) -> None:
    probabilities = np.array([0.3, 0.001, 0.2, 0.05, 0.149, 0.1, 0.0999, 0.0001, 0.1])
    logits, num = np.log(probabilities).astype(np.float32), 20_000
    counts = np.zeros(9)
    state = seed
    for _ in range(num):
        status, token, _, state = library.call(logits, settings(), state)
        assert status == 0
        counts[token] += 1
    expected = num * probabilities
    chi_square = float(((counts - expected) ** 2 / expected)[expected >= 5].sum())
    # 7 or 8 degrees of freedom: larger than 26.1 once in 1000 fair samplers; seeds are fixed
    assert chi_square < 26.1, counts


def test_a_draw_is_the_first_id_whose_cumulated_weight_exceeds_the_point(library: Library) -> None:
    even = np.zeros(4, np.float32)
    wanted = {0: 0, 2**62 - 1: 0, 2**62: 1, 2**63 - 1: 1, 2**63: 2, 3 * 2**62: 3, 2**64 - 1: 3}
    for bits, token in wanted.items():
        assert random_bits(seed_of(bits))[0] == bits
        assert library.call(even, settings(), seed_of(bits))[:2] == (0, token)
    logits = np.array([-np.inf, 0, -200, 0, -np.inf], np.float32)
    for bits, token in {0: 1, 2**63 - 1: 1, 2**63: 3, 2**64 - 1: 3}.items():
        assert library.call(logits, settings(), seed_of(bits))[:2] == (0, token)


@pytest.mark.parametrize("top_p", [1e-30, 1e-16, 1e-9])
def test_the_best_token_stays_under_every_top_p(library: Library, top_p: float) -> None:
    logits = np.array([0, 2, 1, 2, -np.inf], np.float32)
    for seed in range(20):
        status, token, left, _ = library.call(logits, settings(top_p=top_p), seed)
        assert (status, token, np.isfinite(left).sum()) == (0, 3, 1)  # as numpy_sampler does


def test_a_token_that_is_ruled_out_is_never_drawn(library: Library) -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    drawn = {library.call(logits, settings(), seed)[1] for seed in range(200)}
    assert drawn == {1, 3}


def test_a_large_vocabulary_is_drawn_from(library: Library) -> None:
    logits = np.zeros(2**21, np.float32)  # weights add up to 2^63, the most that is held
    status, token, left, _ = library.call(logits, settings(top_p=0.5), 3)
    assert status == 0, library.error()
    assert np.isinf(left).sum() == 2**20
    assert token >= 2**20  # of equal tokens the lowest ids go first


# ---- refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 30, 49])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_have_a_status(
    library: Library, bad: float, at: int, temperature: float
) -> None:
    logits = np.zeros(50, np.float32)
    logits[at] = bad
    status, token, _, seed = library.call(logits, settings(temperature=temperature), 4)
    assert (status, token, seed) == (BAD_ARGUMENT, -1, 4)
    assert "logits are broken" in library.error()


def test_no_finite_logit_has_a_status(library: Library) -> None:
    assert library.call(np.full(9, -np.inf, np.float32), settings())[0] == BAD_ARGUMENT


@pytest.mark.parametrize(
    ("logit", "changed"),
    [(1.0, {"temperature": 1e-44}), (3e38, {"repetition_penalty": 1e-3}),
     (-3e38, {"repetition_penalty": 1e3}), (3e38, {"presence_penalty": -3e38})],
)  # fmt: skip
def test_settings_under_which_no_score_is_finite(
    library: Library, logit: float, changed: dict[str, float]
) -> None:
    status = library.call(np.array([logit], np.float32), settings(**changed), previous=(0,))[0]
    assert status == BAD_ARGUMENT
    assert "no logit is finite after" in library.error()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, math.nan, math.inf]),
        ("top_k", [-1]),
        ("top_p", [0.0, -1.0, 1.1, math.nan]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0.0, -1.0, math.inf, math.nan]),
        ("presence_penalty", [math.inf, -math.inf, math.nan]),
    ],
)
def test_settings_out_of_range_are_refused(
    library: Library, name: str, values: list[float]
) -> None:
    for value in values:
        status = library.call(np.zeros(3, np.float32), settings(**{name: value}))[0]
        assert (status, library.error()) == (
            BAD_ARGUMENT, f"bcq_sample: {name} is out of its range"
        )  # fmt: skip


def test_null_sizes_and_scratch_are_checked(library: Library) -> None:
    logits, scratch = (ctypes.c_float * 4)(), (ctypes.c_uint64 * 5)()
    seed, token, sampling = ctypes.c_uint64(0), ctypes.c_int32(), settings()
    ids = (ctypes.c_int32 * 1)()
    size, big = ctypes.c_size_t, ctypes.c_int64
    good = [
        logits, big(4), ctypes.byref(sampling), ids, big(1), ctypes.byref(seed),
        ctypes.byref(scratch), size(32), ctypes.byref(token),
    ]  # fmt: skip
    assert library.c.bcq_sample(*good) == 0
    wrong = [(at, None) for at in (0, 2, 3, 5, 6, 8)]
    wrong += [(1, big(n)) for n in (0, -1, 5, 2**21 + 1, 2**62)]
    wrong += [(4, big(-1)), (7, size(31)), (7, size(0)), (6, ctypes.byref(scratch, 4))]
    for at, value in wrong:
        assert library.c.bcq_sample(*good[:at], value, *good[at + 1 :]) == BAD_ARGUMENT, at


# ---- programs


def test_random_cases_under_the_sanitizers(tmp_path: Path) -> None:
    program = build_program(tmp_path, "sample_test", PARTS, SANITIZERS)
    assert len(run([program, "5000"])) == 17


def test_every_build_and_machine_draws_the_same_tokens(tmp_path: Path) -> None:
    plain = run([build_program(tmp_path / "plain", "sample_test", PARTS, ("-O0",))])
    fused = ("-O3", "-mfma", "-mavx2", "-ffp-contract=fast")
    if "avx2" in Path("/proc/cpuinfo").read_text():
        assert run([build_program(tmp_path / "fused", "sample_test", PARTS, fused)]) == plain
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    arm_flags = ("-O3", "-static", "-ffp-contract=fast")
    arm = build_program(tmp_path / "arm", "sample_test", PARTS, arm_flags, "aarch64-linux-gnu-")
    assert run(["qemu-aarch64", arm]) == plain
