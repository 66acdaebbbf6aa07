"""How each kind of job is run, once `mira_core.run` has claimed it."""
