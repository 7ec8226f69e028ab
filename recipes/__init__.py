"""Recipes are files for `rlskit run` and scripts, not a package: the library is rlskit.recipes."""

raise ImportError("recipes/ holds files to run; the library is rlskit.recipes")
