"""Pure data, standard library only: what a model, a format, a run and a result are."""
