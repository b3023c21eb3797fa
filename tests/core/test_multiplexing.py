"""The multiplexer is exactly reversible and never sees padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revmux_core.multiplexing import load_multiplexer
from revmux_core.multiplexing.reversible import AttentionPool, ReversibleCoupling, ReversibleMultiplexer

# The error of one addition and one subtraction at each precision, with room for a chain of up to 16 of them.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.25}


@settings(max_examples=60)
@given(
    width=st.integers(2, 16),
    block=st.integers(1, 24),
    rows=st.integers(1, 5),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**32 - 1),
)
def test_inverse_undoes_the_coupling(width: int, block: int, rows: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    coupling = ReversibleCoupling(width, block, hidden=width * block).to(dtype)
    x = torch.randn(rows, width, block, dtype=dtype)
    with torch.no_grad():
        coupled = coupling(x)
        assert not torch.equal(coupled, x)
        torch.testing.assert_close(coupling.inverse(coupled), x, atol=TOLERANCE[dtype], rtol=0)


@settings(max_examples=30)
@given(width=st.integers(2, 8), block=st.integers(1, 16), length=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_every_sample_comes_back_from_its_own_slot(width: int, block: int, length: int, seed: int) -> None:
    """With identity layers between them, the demultiplexer recovers the down projection that the multiplexer made."""
    torch.manual_seed(seed)
    multiplexer = ReversibleMultiplexer(width, width * block).double().eval()
    hidden = torch.randn(3, width, length, width * block, dtype=torch.float64)
    with torch.no_grad():
        composite, mask = multiplexer.multiplex(hidden, torch.ones(3, width, length))
        assert torch.equal(mask, torch.ones(3, length))
        assert composite.shape == (3, length, width * block)
        pooled = composite[:, 0].repeat_interleave(width, dim=0)
        samples = hidden.flatten(0, 1)
        own = multiplexer.shortcut(samples, torch.ones(samples.shape[:2]), samples[:, 0])
        answers = multiplexer.demultiplex(pooled, torch.arange(3 * width) % width, own, composite[:, :0])
        expected = multiplexer.up(torch.cat([multiplexer.down(samples[:, 0]), own], dim=-1))
    torch.testing.assert_close(answers, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pool_reads_texts_of_a_row_as_if_alone_and_nothing_of_none(dtype: torch.dtype) -> None:
    """NaN of a cell without a text would be the whole row's where a kernel is not careful with it."""
    torch.manual_seed(0)
    pool, hidden = AttentionPool(64).to(dtype), torch.randn(2, 9, 64, dtype=dtype)
    segments = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        read = pool(hidden, segments.unsqueeze(1) == torch.arange(1, 4).view(1, -1, 1))
        assert read.isfinite().all()
        for row, text, held in ((0, 0, slice(4)), (0, 1, slice(4, 7)), (1, 0, slice(9))):
            alone = hidden[row : row + 1, held]
            torch.testing.assert_close(read[row, text], pool(alone, torch.ones(alone.shape[:2]))[0])


def test_a_width_that_does_not_divide_the_hidden_size_is_refused() -> None:
    with pytest.raises(ValueError, match="divide the hidden size 32"):
        ReversibleMultiplexer(3, 32)


@pytest.mark.parametrize("coupling_size", [None, 32])
def test_weights_tell_how_large_couplings_are(coupling_size: int | None) -> None:
    """Bundles of before have larger ones."""
    weights = ReversibleMultiplexer(2, 32, coupling_size).state_dict()
    loaded = load_multiplexer("revmux", 2, 32, weights).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_only_training_does_without_the_shortcut() -> None:
    torch.manual_seed(0)
    multiplexer = ReversibleMultiplexer(2, 32)
    pooled, slots, own = torch.randn(1, 32).expand(64, -1), torch.zeros(64, dtype=torch.long), torch.ones(64, 64)
    with torch.no_grad():
        blank = multiplexer.eval().demultiplex(pooled, slots, torch.zeros(64, 64), pooled[:, :0])
        served = multiplexer.demultiplex(pooled, slots, own, pooled[:, :0])
        trained = multiplexer.train().demultiplex(pooled, slots, own, pooled[:, :0])
    dropped = torch.isclose(trained, blank, atol=1e-6).all(dim=1)
    kept = torch.isclose(trained, served, atol=1e-6).all(dim=1)
    assert torch.equal(dropped, ~kept)
    assert 0 < int(dropped.sum()) < 64
