"""What README.md shows is true of the code."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_python_runs_as_it_stands():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    exec(code, names)
    # It ends with the log-densities of its last samples, which the mixture knows exactly.
    data, score_fn, s, r = (names[name] for name in ("data", "score_fn", "s", "r"))
    np.testing.assert_allclose(r.nats, data.at(score_fn.sde, score_fn.sde.t_min).log_prob(s.x), atol=1e-3)
    assert s.nfe == 1000 and r.latent.shape == s.x.shape


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_each_link_leads_to_a_file(target):
    assert (ROOT / target).exists()
