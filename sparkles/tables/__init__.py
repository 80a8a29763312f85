"""Experiment grids: a table is a file of rows, its runs are kept and found by what they depend on."""
