"""Floor 1: experts on a page, in a worker or in Node, in JavaScript without dependencies.

- `puhui.js`: loads a static expert's bundle, checks it, and answers as `models.static` does
- `puhui-encoder.js`: the same for encoders, on an onnxruntime-web that the caller brings
- `device.html`, `device.css`, `device.js`, `device-worker.js`: the page that a node offers at /device

`FOLDER` is where they lie. Nothing here is Python: `gateway.device` serves the files as they are.
"""

import pathlib

__all__ = ["FOLDER"]

FOLDER = pathlib.Path(__file__).parent
