"""The steps of LRMIL (Shin & Jeong, arXiv 2606.06864), fold by fold. They meet only through files in the run directory.

1. Embed HR tiles with the teacher encoder f (`embed_tiles`).
2. Train the teacher's head on HR bags, and keep what it says of every training slide (`heads`).
3. Stage 1: train the student encoder f' on LR tiles and their HR children (`distill_tiles`).
4. Embed LR tiles with f' (`embed_tiles`).
5. Stage 2: train the student's head on LR bags, with the teacher's words beside the labels (`heads`, `distill_slides`).
   Beside it, where the config asks for it: f' or f and a head trained together on the labels alone (`end_to_end`).
6. Ask each method about the test slides (`evaluate`, `shortcuts`), and export the student (`fit_trust`, `export`).
"""
