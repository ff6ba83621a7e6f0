"""The work of small fixed problems beside the last entry of docs/benchmarks/work.json."""

import pytest
from claims import every

from validation.benchmarks.work import excess, on_record, problems

PROBLEMS = problems()


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_takes_no_more_work_than_on_record(name):
    problem = PROBLEMS[name]
    if not problem.installed:
        pytest.skip(f"{problem.package} is not installed")
    found = problem.count()
    assert every(number > 0 for number in found.values())
    fault = excess(name, found, on_record()[-1]["counts"])
    assert not fault, fault


def test_more_work_than_on_record_is_named_with_both_numbers_and_the_remedy():
    last = {"a head": {"gradients": 100, "Hessians": 10}}
    assert not excess("a head", {"gradients": 127, "Hessians": 18}, last)
    fault = excess("a head", {"gradients": 129, "Hessians": 18}, last)
    for part in ("a head: 129 gradients, 100 on record", "validation.benchmarks.work --record"):
        assert part in fault
    assert "Hessians" not in fault
    assert "not on record" in excess("a new one", {"gradients": 1}, last)
