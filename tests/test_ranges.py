"""Factors of input channels are those of the papers, written out in plain numpy."""

from __future__ import annotations

import numpy as np

from llmcompile.ranges import GROUP_OF, STEPS, search_columns, smoothing_columns


def test_smoothing_divides_inputs_by_what_it_multiplies_weights_with() -> None:
    """SmoothQuant's s = inputs ** a / weights ** (1 - a), inverted: with a of one half both ranges become equal."""
    inputs, weights = np.array([16, 1, 100], np.float32), np.array([1, 4, 0.01], np.float32)

    columns = smoothing_columns(inputs, weights)

    assert np.allclose(columns, [0.25, 2.0, 0.01])
    assert np.allclose(inputs * columns, weights / columns)


def test_a_channel_without_anything_is_left_alone() -> None:
    """Nothing goes in, or no weight reads it: its factor is one."""
    columns = smoothing_columns(np.array([0, 3, 0], np.float32), np.array([2, 0, 0], np.float32))

    assert columns.tolist() == [1, 1, 1]


def test_factors_stay_within_what_float16_holds() -> None:
    """Neither infinite nor subnormal, however far apart inputs and weights are."""
    columns = smoothing_columns(np.array([1e30, 1e-30], np.float32), np.array([1e-30, 1e30], np.float32))

    assert columns.tolist() == [2**-12, 2**12]


def test_the_search_tries_powers_of_the_mean_balanced() -> None:
    """Scales are mean ** a, divided by the root of its largest times its smallest; the factors are their inverse."""
    means = np.array([0.5, 2.0, 8.0], np.float32)

    tried = search_columns(means)

    assert len(tried) == STEPS
    assert tried[0].tolist() == [1, 1, 1]
    for step, columns in enumerate(tried):
        scales = means ** (step / 10)
        assert np.allclose(columns, np.sqrt(scales.max() * scales.min()) / scales, rtol=1e-6)


def test_the_search_leaves_silent_channels_alone() -> None:
    """A channel that is always zero has the factor one, whatever the exponent."""
    assert [columns[1] for columns in search_columns(np.array([3.0, 0.0], np.float32))] == [1] * STEPS


def test_what_is_fused_is_one_group() -> None:
    """q, k and v share their figures, and so do gate and up."""
    assert {GROUP_OF[role] for role in ("attn.q", "attn.k", "attn.v")} == {"attn.qkv"}
    assert GROUP_OF["mlp.gate"] == GROUP_OF["mlp.up"] != GROUP_OF["mlp.down"]
