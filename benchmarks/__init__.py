"""Measures linnet beside what people would use instead: rate-distortion, speed, windows; one module per command.

`rd`, `speed` and `region` offer `add_arguments(parser)` and `run(arguments) -> exit status`; `linnet bench` calls them.
Nothing here is needed on a device, and nothing is imported until a benchmark runs.
"""
