"""The work of the platform: one package per stage, from a typed config and input paths to output paths."""

from components import arithmetic

arithmetic.pin()  # before the first import of NumPy: see there
