"""The studies of docs/results.md, each command run as ``python -m training.studies.NAME``.

Data made ready for them:

    kfold_table      a generated cohort as a table to be dealt into folds
    osteosarcoma     real tissue as slides: single regions (`regions`) and mosaics of them (`mosaics`)

What is read from their finished runs:

    results          several seeds of an experiment (`runs`) as one table, with attention against known lesions
                     (`attention`)
    diagnose         why distillation helped, or didn't
"""
