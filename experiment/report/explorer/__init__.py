"""The explorer: one page of figures to drag and click, whose numbers are those of sde_lib."""
