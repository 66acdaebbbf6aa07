"""Files and job specifications that are damaged in many ways, and what must hold whatever comes.

`damage` says what can be done to a file, `targets` which files there are and who reads them, `child` reads them in a
process with limits, and `explore` puts them together for the short test and the long run.
"""
