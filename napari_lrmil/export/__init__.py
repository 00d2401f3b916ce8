"""Predictions and annotations as files: a module for each thing that is exported.

result      the JSON document of a prediction, the CSV of its tiles, and back
tables      predictions.csv of many slides
images      heatmap as PNG and as OME-Zarr, painted by painting
slide_report  one page as HTML and PDF
geojson     annotations and heatmap for QuPath, and annotations back
"""
