"""One command for a machine with a GPU, `make gpu`: build, test, measure, sanitize, and a report.

report     the stages; needs neither torch nor gradalign in its own process
summary    which targets were met, as text and as a picture
driver     what compute-sanitizer runs: every CUDA kernel once
"""
