"""The network as an ONNX model: any batch, height and width from 8 pixels; the selective scan is ONNX's Scan.

PyTorch's exporter translates everything but the scan, which it sees as one operation (`models.ops.selective_scan`).
The model pads by reflection to multiples of 8 pixels and crops, as prediction does.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op

from models.images import MULTIPLE

OPSET = 18
INPUT, OUTPUT = "image", "restored"
SMALLEST_HALF = 256  # values: below this, storing in fp16 saves nothing worth a Cast

for _name in ("onnxscript", "onnx_ir"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # a thousand lines on each export otherwise


def to_onnx(program: torch.export.ExportedProgram, half: bool = False, **facts: object) -> onnx.ModelProto:
    """An ONNX model, ``image`` (batch, 3, height, width) in [-0.5, 0.5] -> ``restored``, same shape, not clamped.

    Args:
        program: of a network without padding, see `formats.export_program`.
        half: store weights in fp16 where they are exact in it, see `formats.round_to_half`; computing is in fp32.
        facts: what to write into the model's metadata.
    """
    model = translate(program)
    pad_and_crop(model.graph)
    if half:
        store_half(model.graph)
    helper.set_model_props(model, {name: str(value) for name, value in facts.items()})
    onnx.checker.check_model(model, full_check=True)
    return model


def translate(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    """A program in ONNX's operations, without notes for debugging, which would be a megabyte, and without the shapes.

    Raises:
        torch.onnx.errors.OnnxExporterError: an operation that ONNX or the exporter does not have.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter's own deprecations
        model = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table={torch.ops.xyscannet.selective_scan.default: _translate_scan},
            external_data=False,
            verbose=False,
        ).model_proto
    _strip(model.graph)
    return model


@script()
def _recurrence(
    delta: FLOAT[None, None, None],
    x: FLOAT[None, None, None],
    B: FLOAT[None, None, None],
    C: FLOAT[None, None, None],
    A: FLOAT[None, None],
    start: FLOAT[None, None, None],
) -> FLOAT[None, None, None]:
    """y_t = C_t h_t, h_t = exp(delta_t A) h_{t-1} + B_t x_t; delta, x, y (l, b, d), B, C (l, b, n), A (n, d)."""

    @graph()
    def step(
        h: FLOAT[None, None, None],
        delta_t: FLOAT[None, None],
        x_t: FLOAT[None, None],
        B_t: FLOAT[None, None],
        C_t: FLOAT[None, None],
    ):
        n_axis = op.Constant(value_ints=[-2])
        d_axis = op.Constant(value_ints=[-1])
        decay = op.Exp(op.Unsqueeze(delta_t, n_axis) * A)
        h_t = decay * h + op.Unsqueeze(B_t, d_axis) * op.Unsqueeze(x_t, n_axis)
        y_t = op.Squeeze(op.MatMul(op.Unsqueeze(C_t, n_axis), h_t), n_axis)
        return h_t, y_t

    end, y = op.Scan(start, delta, x, B, C, body=step, num_scan_inputs=4)
    return y


def _translate_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, backend="auto"):
    """`selective_scan` in ONNX's operations; u (*batch, d, l), of which * are one or two dimensions."""
    rank, (channels, states) = len(u.shape), A.shape
    if delta_bias is not None:
        delta = op.Add(delta, op.Unsqueeze(delta_bias, [-1]))
    if delta_softplus:
        delta = op.Softplus(delta)

    def time_first(x, size: int):
        """(*batch, size, l) -> (l, b, size)."""
        return op.Reshape(op.Transpose(x, perm=[rank - 1, *range(rank - 1)]), [0, -1, size])

    steps, inputs = time_first(delta, channels), time_first(op.Mul(delta, u), channels)
    batch = op.Shape(steps, start=1, end=2)
    start = op.ConstantOfShape(op.Concat(batch, op.Constant(value_ints=[states, channels]), axis=0))
    y = _recurrence(steps, inputs, time_first(B, states), time_first(C, states), op.Transpose(A, perm=[1, 0]), start)
    length, others = op.Shape(u, start=-1), op.Shape(u, start=0, end=-1)
    y = op.Transpose(op.Reshape(y, op.Concat(length, others, axis=0)), perm=[*range(1, rank), 0])
    if D is not None:
        y = op.Add(y, op.Mul(op.Unsqueeze(D, [-1]), u))
    if z is not None:
        y = op.Mul(y, op.Mul(z, op.Sigmoid(z)))
    return y


def _strip(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]


def pad_and_crop(graph: onnx.GraphProto) -> None:
    """Around the whole graph: reflect padding to multiples of 8 before it, a crop to the input's size after it."""
    (padded,), (whole,) = (value.name for value in graph.input), (value.name for value in graph.output)
    constants = {"multiple": [MULTIPLE], "no_padding": [0] * 6, "origin": [0, 0], "sides": [2, 3]}
    graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    before = [
        helper.make_node("Shape", [INPUT], ["size"], start=2),
        helper.make_node("Neg", ["size"], ["minus_size"]),
        helper.make_node("Mod", ["minus_size", "multiple"], ["missing"]),
        helper.make_node("Concat", ["no_padding", "missing"], ["padding"], axis=0),
        helper.make_node("Pad", [INPUT, "padding"], [padded], mode="reflect"),
    ]
    after = helper.make_node("Slice", [whole, "origin", "size", "sides"], [OUTPUT])
    nodes = [*before, *graph.node, after]
    for values, name in ((graph.input, INPUT), (graph.output, OUTPUT)):
        del values[:]
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, "height", "width"]))
    del graph.node[:]
    graph.node.extend(nodes)


def store_half(graph: onnx.GraphProto) -> None:
    """Store the larger weights that are exact in fp16 so, each with a Cast to fp32 before its use."""
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        if values.size >= SMALLEST_HALF and np.array_equal(half, values):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
