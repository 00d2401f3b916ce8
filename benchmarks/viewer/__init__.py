"""How fast napari shows a slide: ``python -m benchmarks.viewer``.

`moves` says what is shown, `contestants` how each puts the slide into napari, `turn` runs one of them in a process of its
own, and `__main__` compares them.
"""
