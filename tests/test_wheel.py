"""What a stranger installs: the wheel holds sde_lib alone, needs three packages, shadows nothing and is typed."""

import os
import re
import subprocess
import sys
import textwrap
import zipfile
from importlib import metadata
from pathlib import Path

import jax
import pytest

from tests.commands import ROOT

pytest.importorskip("setuptools", minversion="77")  # what the test extra installs; older ones do not build this project

DRAW = """
from sde_lib import VP, ExactScore, GaussianMixture, sample
from sde_lib.samplers import EulerMaruyama
import jax
import jax.numpy as jnp

data = GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
s = sample(EulerMaruyama(steps=3), ExactScore(data, VP()), jax.random.key(0), n=4, shape=(2,))
"""


def run(*argv: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A command that sees no PYTHONPATH and has no way to a network."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(argv, cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a clean copy of the checkout's files."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    if listed.returncode:
        pytest.skip("this is no git checkout, so that its files cannot be told from what lies beside them")
    for name in filter(None, listed.stdout.split("\0")):
        copy = folder / "checkout" / name
        if (ROOT / name).is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    done = run(sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", folder, folder / "checkout", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def stranger(wheel, tmp_path_factory) -> Path:
    """A Python whose site-packages hold the unpacked wheel and, by a path file, the third parties; no checkout."""
    folder = tmp_path_factory.mktemp("stranger")
    done = run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    python = folder / "bin" / "python"
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", purelib, cwd=folder).stdout.strip())
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "third_parties.pth").write_text(f"{Path(jax.__file__).parents[1]}\n")
    return python


@pytest.mark.slow
def test_wheel_holds_the_typed_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"sde_lib"} and len(top) == 2
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "sde_lib").rglob("*.py")} | {"sde_lib/py.typed"}
    assert {name for name in names if name.startswith("sde_lib/")} == source


@pytest.mark.slow
def test_wheel_needs_three_packages_each_with_an_upper_bound(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    (found,) = metadata.distributions(path=[str(tmp_path)])
    needed = [line for line in found.requires or () if "extra ==" not in line]
    assert [re.match(r"[\w-]+", line)[0] for line in sorted(needed)] == ["diffrax", "jax", "numpy"]
    assert all("<" in line for line in needed)


@pytest.mark.slow
def test_wheel_draws_beside_a_users_own_models_and_configs(stranger, tmp_path):
    for name in ("models", "configs", "experiment"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "mine.py").write_text(
        DRAW
        + textwrap.dedent(
            """
            import sys

            import configs, experiment, models
            import sde_lib, sde_lib.samplers

            assert configs.MINE and experiment.MINE and models.MINE
            assert s.x.shape == (4, 2) and bool(jnp.isfinite(s.x).all())
            assert not {"flax", "optax", "absl", "ml_collections", "orbax", "matplotlib"} & {*sys.modules}
            print(sde_lib.__file__)
            """
        )
    )
    done = run(stranger, "mine.py", cwd=tmp_path, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(stranger.parents[1])


@pytest.mark.slow
def test_mypy_sees_the_types_of_the_wheel(stranger, tmp_path):
    right = DRAW + "reveal_type(s.x)\nreveal_type(s.nfe)\n"
    (tmp_path / "right.py").write_text(right)
    (tmp_path / "wrong.py").write_text(right.replace("steps=3", 'steps="three"').replace("n=4", 'n="four"'))
    command = (sys.executable, "-m", "mypy", "--strict", "--python-executable", stranger)
    done = run(*command, "right.py", "wrong.py", cwd=tmp_path)
    lines = done.stdout.splitlines()
    good, bad = ([line for line in lines if line.startswith(name)] for name in ("right.py", "wrong.py"))
    assert [line.partition("note: ")[2] for line in good] == [
        'Revealed type is "jax._src.basearray.Array"',
        'Revealed type is "int"',
    ], done.stdout
    errors = [line for line in bad if "error:" in line]
    assert len(errors) == 2 and 'Argument "steps"' in errors[0] and 'Argument "n"' in errors[1], done.stdout
