"""Work spread over threads: every chunk once, and no error lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynalyze.models.kernels.threads import run_chunks


@given(st.integers(1, 40), st.integers(1, 6))
def test_every_chunk_is_computed_once(n_chunks, threads):
    done = []
    run_chunks(lambda first, last: done.extend(range(first, last)), n_chunks, threads)
    assert sorted(done) == list(range(n_chunks))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("bad", [0, 7, 19])
def test_an_error_in_any_chunk_reaches_the_caller(threads, bad):
    def compute(first, last):
        if first <= bad < last:
            raise ZeroDivisionError(f"chunk {bad}")

    with pytest.raises(ZeroDivisionError, match=f"chunk {bad}"):
        run_chunks(compute, 20, threads)
