"""The README's pictures from the notebooks' committed outputs: `python notebooks/gallery.py` writes them to
notebooks/gallery/.
"""

import base64
import json
from pathlib import Path

HERE = Path(__file__).parent
SHOWN = {  # notebook: which of its pictures
    "1_score_and_langevin": 1,
    "2_a_die_from_gaussian_noise": 2,
    "4_forward_and_backward": 1,
    "5_the_noise_compass": 4,
    "6_sde_and_ode": 0,
    "7_likelihood": 6,
}


def pictures(notebook: Path) -> list[bytes]:
    """The PNGs that a notebook shows, in their order."""
    cells = json.loads(notebook.read_text())["cells"]
    found = [
        output["data"]["image/png"]
        for cell in cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    return [base64.b64decode(picture) for picture in found]


def gallery() -> dict[str, bytes]:
    """Each shown picture by its notebook's name."""
    return {name: pictures(HERE / f"{name}.ipynb")[i] for name, i in SHOWN.items()}


if __name__ == "__main__":
    for name, picture in gallery().items():
        (HERE / "gallery").mkdir(exist_ok=True)
        (HERE / "gallery" / f"{name}.png").write_bytes(picture)
