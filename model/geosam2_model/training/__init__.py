"""How the embedded model was trained, and how a person adapts a model to their own polygons.

`python -m geosam2_model.training RECIPE.toml` runs a recipe; `recipes/nano.toml` made the weights
that ship. Needs the `train` extra (scikit-image, scipy, tifffile, matplotlib).
"""
