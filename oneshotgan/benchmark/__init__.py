"""Many trainings and their figures as one table: suites, the runner, the table.

suite.py      a TOML file -> cases; every mistake in it, one line each
pace.py       how many steps of a method fit into a number of seconds
case.py       one case: train, evaluate, and what is on record about it
board.py      one line of progress per running case
runner.py     the cases of a suite, on local processes
cluster.py    the same on a Ray cluster
published.py  the paper's Table 1, and when ours may stand beside it
table.py      run directories -> the table
suites/       the suites that come with the package
"""
