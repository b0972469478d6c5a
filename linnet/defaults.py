"""What a call or a command uses when nothing is said. Imports nothing, so that the command line can show it at once."""

QUALITY = 60
LOWEST_QUALITY, HIGHEST_QUALITY = 1, 100
BACKEND = "auto"
BACKENDS = ("auto", "tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime", "reference")
FRAME = (3840, 2160)
"""The frames that `linnet build` prepares for."""
MORE_WORK_PERCENT = 25
"""What `linnet build` may let overlapping pieces cost, so that fewer engines do."""
DEVICES = ("orin-nano", "orin-nx", "agx-orin", "thor", "this")
OBSERVERS = ("minmax", "percentile", "entropy", "mse")
ROUNDINGS = ("adaptive", "nearest")
TUNING_STEPS = 1000
FORMATS = ("int8-exact", "int8", "w8a16b32")
