"""Where agreement helps: arms beside plain training on tasks, with tuned settings and paired seeds.

task         what a task is
tasks/       the tasks, one module each
"""
