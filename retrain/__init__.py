"""From a trigger to a promoted or refused model: datasets, recipes, trainers, gates, the registry.

Imports :mod:`schemas` only. State lives in the tables of :mod:`retrain.tables` and, content-addressed, under the state
directory (:mod:`retrain.paths`). scikit-learn and river are imported by the trainers alone, in subprocesses, and by the
one function that loads an artifact.
"""
