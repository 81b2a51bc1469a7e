#!/usr/bin/env python3
"""Trains the image example's net on pictures of the handwritten digits.

    pip install jax==0.10.2 optax==0.2.8 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
    cargo run --release --example image-tensors -- FOLDER
    python examples/image/train.py FOLDER

Those are the versions that the committed file was made with; the script prints the ones it finds. The first command
writes what the preprocess stage makes of the pictures (tensors.rs), so that training sees what serving sees. This one
writes

    models/digits_cnn.onnx   image FP32 [N,3,32,32]  ->  scores FP32 [N,10]

Three convolutions of 3x3 (16, 32, 64 channels), each with Relu and halved by the largest of 2x2, and a layer of 10.
Four fifths of the digits are trained on; pictures of the others say how good it is.
"""

import argparse
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import optax
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
SEED = 1
CHANNELS = [3, 16, 32, 64]
SIDE = 32
EPOCHS = 14
BATCH = 64
RATE = 2e-3
# Pixels that a picture is moved by, at most.
SHIFT = 3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="what image-tensors wrote")
    folder = parser.parse_args().folder
    versions = "Python %s, jax %s, optax %s, onnx %s, onnxruntime %s, numpy %s" % (
        platform.python_version(), jax.__version__, optax.__version__, onnx.__version__, onnxruntime.__version__,
        np.__version__)
    print(versions)

    tensors = np.load(folder / "tensors.npy")
    labels = np.load(folder / "labels.npy")
    held_out = np.load(folder / "held_out.npy") == 1
    parameters = train(tensors[~held_out], labels[~held_out])

    model = to_onnx(parameters, versions)
    onnx.checker.check_model(model, full_check=True)
    path = HERE / "models" / "digits_cnn.onnx"
    onnx.save(model, str(path))
    verify(path, parameters, tensors, labels, held_out)


def beginning(random):
    """Weights of the size that keeps a Relu's outputs as large as its inputs (He)."""
    parameters = {}
    for layer, (before, after) in enumerate(zip(CHANNELS, CHANNELS[1:])):
        spread = np.sqrt(2 / (before * 9))
        parameters["conv%d_weight" % layer] = random.normal(0, spread, (after, before, 3, 3)).astype(np.float32)
        parameters["conv%d_bias" % layer] = np.zeros(after, np.float32)
    flat = CHANNELS[-1] * (SIDE // 2 ** (len(CHANNELS) - 1)) ** 2
    parameters["digit_weight"] = random.normal(0, np.sqrt(1 / flat), (flat, 10)).astype(np.float32)
    parameters["digit_bias"] = np.zeros(10, np.float32)
    return parameters


def scores(parameters, images, keep=None):
    x = images
    for layer in range(len(CHANNELS) - 1):
        x = jax.lax.conv_general_dilated(x, parameters["conv%d_weight" % layer], (1, 1), "SAME")
        x = jax.nn.relu(x + parameters["conv%d_bias" % layer][None, :, None, None])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = x.reshape(len(x), -1)
    if keep is not None:
        x = x * keep * 2
    return x @ parameters["digit_weight"] + parameters["digit_bias"]


def train(tensors, labels):
    random = np.random.default_rng(SEED)
    parameters = beginning(random)
    steps = EPOCHS * (len(labels) // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, steps), weight_decay=1e-3)
    state = optimizer.init(parameters)

    def loss(parameters, images, labels, keep):
        return optax.softmax_cross_entropy_with_integer_labels(scores(parameters, images, keep), labels).mean()

    @jax.jit
    def step(parameters, state, images, labels, keep):
        value, slope = jax.value_and_grad(loss)(parameters, images, labels, keep)
        updates, state = optimizer.update(slope, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    flat = parameters["digit_weight"].shape[0]
    for epoch in range(EPOCHS):
        losses = []
        order = random.permutation(len(labels))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start:start + BATCH]
            images = np.stack([moved(tensors[row], random) for row in rows])
            # Half of the last layer's inputs are left out, another half each time.
            keep = random.random((BATCH, flat), np.float32) < 0.5
            parameters, state, value = step(parameters, state, images, labels[rows], keep)
            losses.append(float(value))
        print("epoch %d: loss %.4f" % (epoch + 1, np.mean(losses)), flush=True)
    return {name: np.asarray(value) for name, value in parameters.items()}


def moved(image, random):
    """The picture, a few pixels further on; its edge fills the gap."""
    down, right = random.integers(0, 2 * SHIFT + 1, 2)
    wide = np.pad(image, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)), mode="edge")
    return wide[:, down:down + SIDE, right:right + SIDE]


def to_onnx(parameters, versions):
    nodes = []
    x = "image"
    for layer in range(len(CHANNELS) - 1):
        weights = ["conv%d_weight" % layer, "conv%d_bias" % layer]
        sums, kept, halved = "sums%d" % layer, "kept%d" % layer, "halved%d" % layer
        nodes += [
            helper.make_node("Conv", [x] + weights, [sums], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [sums], [kept]),
            helper.make_node("MaxPool", [kept], [halved], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        x = halved
    nodes += [
        helper.make_node("Flatten", [x], ["flat"]),
        helper.make_node("Gemm", ["flat", "digit_weight", "digit_bias"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "digits_cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in parameters.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,  # what engines as old as ONNX Runtime 1.12 read
        producer_name="examples/image/train.py",
        doc_string="Handwritten digits in pictures of 32x32. Data: https://doi.org/10.24432/C50P49",
    )
    helper.set_model_props(model, {
        "made_with": versions,
        "mean": "0.485 0.456 0.406",
        "std": "0.229 0.224 0.225",
    })
    return model


def verify(path, parameters, tensors, labels, held_out):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = np.concatenate([session.run(["scores"], {"image": part})[0] for part in np.array_split(tensors, 16)])
    assert found.dtype == np.float32 and found.shape == (len(labels), 10)
    np.testing.assert_allclose(found[:64], scores(parameters, tensors[:64]), atol=1e-3)

    right = found.argmax(1) == labels
    print("%d bytes; accuracy: %.4f on %d pictures of digits trained on, %.4f on %d pictures of held-out ones" % (
        path.stat().st_size, right[~held_out].mean(), (~held_out).sum(), right[held_out].mean(), held_out.sum()))
    assert right[held_out].mean() >= 0.97


if __name__ == "__main__":
    main()
