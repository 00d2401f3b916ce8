"""What the project is measured with, each in one run and as a ratio to a peer or a limit: ``python -m benchmarks.NAME``.

read_tiles        tiles a second of each slide reader
viewer            how fast napari shows a slide (needs a display)
workspace         how quickly the docks answer, slide after slide (needs a display)
slide_time        seconds a slide from file to label, high resolution against low
stage2_step       what distillation adds to a training step
training_memory   memory of training on a large table
"""
