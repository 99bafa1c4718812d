"""What `evaluate.py` does before its work: it tells mistakes without what the work alone needs."""

from tests.commands import fresh


def test_what_a_mistake_does_not_need_is_not_imported() -> None:
    slow = ("diffrax", "matplotlib", "scipy.stats", "sklearn", "tensorflow_datasets", "tensorboardX")
    code = f"import sys, experiment.report.of_run; print([m for m in {slow} if m in sys.modules])"
    done = fresh("-c", code)
    assert done.status == 0, done.err
    assert done.out.strip() == "[]"
