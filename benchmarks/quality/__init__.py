"""Where agreement helps: arms beside plain training on tasks, with tuned settings and paired seeds.

    task                     what a task is
    tasks/                   the tasks, one module each
    archives, sampling       data and draws that tasks share; assets.txt says where the data are from
    arms                     the ways to fill .grad, and their trials
    training                 one run through the library
    replicas                 many runs at once, the same methods from their equations
    protocol, pool, rows     what is run, on which processes, and what is kept
    statistics, comparison   intervals and tests; the table of a task
    page, plot               docs/evidence.md and figures from the rows

The rows are in benchmarks/results/quality/, one file a task.
"""
