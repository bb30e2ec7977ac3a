"""One command for a machine with a GPU, `make gpu`: build, test, measure, sanitize, and a report.

report         the stages; needs neither torch nor gradalign in its own process
schedule       how the time is shared among them
process        their commands, ended in time
device_tests   the tests that need a GPU, a process for each file
summary        which targets were met, as text and as a picture
driver         what compute-sanitizer runs: every CUDA kernel once
"""
