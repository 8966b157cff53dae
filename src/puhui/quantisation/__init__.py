"""Floor 2: encoders in ONNX, and in eight bits where that does no harm (extra `workshop`).

- `onnx_export`: from PyTorch to one ONNX file, checked by running it
- `quantise`: eight bits but for the matrices that would suffer (`sensitivity`), verified (`fidelity`)
"""
