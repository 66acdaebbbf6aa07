"""What can be exported, by name."""

WHAT = {
    "data": "cells with counts and all results",
    "tables": "tables as CSV",
    "figures": "figures as SVG and PNG",
    "report": "report, one HTML file that opens without a network",
    "methods": "methods section for a paper",
    "script": "script that repeats the run and checks that the topics are the same",
}
FORMATS = ("h5ad", "zarr")  # of the cells
