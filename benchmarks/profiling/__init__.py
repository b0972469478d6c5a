"""`linnet profile`: where the milliseconds of encoding and decoding go, stage by stage and layer by layer.

`session` measures frames through `pipeline`, `document` makes one JSON document of it; `table`, `page`, `trace` and
`compare` read that document and nothing else, so a report can be drawn again from an old file.
"""
