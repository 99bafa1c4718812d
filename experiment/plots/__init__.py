"""The pictures: their look, and what notebooks and reports draw."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiment.plots.base import (
        COLOURS,
        DPI,
        SCATTER_POINTS,
        bars,
        captioned_images,
        cycle,
        draw_cloud,
        ellipses,
        histograms,
        image_rows,
        line_style,
        lines,
        measured,
        panels_in_a_row,
        png,
        scatter,
        show_image,
        slider,
    )
    from experiment.plots.images import Picture, image_grid, pictures, tile
    from experiment.plots.limits import common_limit

__all__ = [
    "COLOURS",
    "DPI",
    "SCATTER_POINTS",
    "Picture",
    "bars",
    "captioned_images",
    "common_limit",
    "cycle",
    "draw_cloud",
    "ellipses",
    "histograms",
    "image_grid",
    "image_rows",
    "line_style",
    "lines",
    "measured",
    "panels_in_a_row",
    "pictures",
    "png",
    "scatter",
    "show_image",
    "slider",
    "tile",
]


# Imported on demand: a grid of images needs no matplotlib.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'experiment.plots' has no attribute {name!r}")
    from experiment.plots import images

    if hasattr(images, name):
        return getattr(images, name)
    from experiment.plots import base

    return getattr(base, name)
