"""Measures linnet beside the codecs people would use instead: rate-distortion, speed and windows, one module per command.

`rd`, `speed` and `region` each offer `add_arguments(parser)` and `run(arguments) -> exit status`, which `linnet bench` calls.
Nothing here is needed on a device, and nothing is imported until a benchmark runs.
"""
