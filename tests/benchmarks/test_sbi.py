import bz2
import zipfile

import numpy as np
import pytest

from benchmarks.sbi import references
from experiment.common.errors import UserError


@pytest.fixture(scope="module")
def known():
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(2).astype(np.float32), rng.standard_normal((7, 2))) for _ in range(3)]


def csv(rows, name):
    lines = [",".join(f"{name}_{j + 1}" for j in range(rows.shape[1]))]
    return "\n".join([*lines, *(",".join(map(repr, map(float, row))) for row in rows)]).encode()


def test_both_forms_of_the_reference_say_the_same(known, tmp_path):
    names = {f"observation_{i + 1}": x for i, (x, _) in enumerate(known)}
    np.savez(tmp_path / "two_moons.npz", **names, **{f"posterior_{i + 1}": p for i, (_, p) in enumerate(known)})
    wheel = tmp_path / "sbibm-1.1.0-py2.py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for i, (x, posterior) in enumerate(known):
            folder = f"sbibm/tasks/two_moons/files/num_observation_{i + 1}"
            file.writestr(f"{folder}/observation.csv", csv(x[None], "data"))
            samples = bz2.compress(csv(posterior, "parameter"))
            file.writestr(f"{folder}/reference_posterior_samples.csv.bz2", samples)
    for path in (tmp_path / "two_moons.npz", wheel):
        found = references(path, "two_moons")
        assert len(found) == 3
        for (x, posterior), (x_found, posterior_found) in zip(known, found, strict=True):
            np.testing.assert_array_equal(x_found, x)
            np.testing.assert_array_equal(posterior_found, posterior)
    with pytest.raises(UserError, match="holds no observation of slcp"):
        references(wheel, "slcp")
    with pytest.raises(UserError, match="of another task than gaussian_linear"):
        references(tmp_path / "two_moons.npz", "gaussian_linear")


def test_no_reference(tmp_path):
    with pytest.raises(UserError, match="or the wheel"):
        references(tmp_path / "none.npz", "slcp")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match="cannot be read"):
        references(tmp_path / "broken.npz", "slcp")
