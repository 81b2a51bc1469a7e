#!/usr/bin/env python3
"""Makes this folder's files: the digit images, their labels and a classifier for them.

    pip install scikit-learn==1.9.1 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
    python examples/digits/train.py

Those are the versions that the committed files were made with; the script prints the ones it finds. It writes

    digits.onnx   image FP32 [N,64] (0 to 16)  ->  label INT64 [N], probability FP32 [N,10]
    images.npy    float32 [1797,64]: all images, a row of 8x8 pixels each, as the model takes them
    labels.npy    int64 [1797]: the digit that each shows

The model is a perceptron, 64-64-10, trained on half of the images; the other half says how good it is.

Data: 1,797 images of handwritten digits, the test set of "Optical Recognition of Handwritten Digits", E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, under the Creative Commons
Attribution 4.0 licence (https://creativecommons.org/licenses/by/4.0/), as bundled with scikit-learn
(`sklearn.datasets.load_digits`). Changed only in its form: images.npy and labels.npy hold the same numbers.
"""

import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import sklearn
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).resolve().parent
SEED = 1
BRIGHTEST = 16.0


def main():
    versions = "Python %s, scikit-learn %s, onnx %s, onnxruntime %s, numpy %s" % (
        platform.python_version(), sklearn.__version__, onnx.__version__, onnxruntime.__version__, np.__version__)
    print(versions)

    digits = load_digits()
    images = digits.data.astype(np.float32)
    labels = digits.target.astype(np.int64)

    train, held_out = train_test_split(np.arange(len(labels)), test_size=0.5, random_state=SEED, stratify=labels)
    classifier = MLPClassifier(hidden_layer_sizes=(64,), alpha=0.01, max_iter=1000, random_state=SEED)
    classifier.fit(images[train] / BRIGHTEST, labels[train])

    model = to_onnx(classifier, versions)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(HERE / "digits.onnx"))
    np.save(HERE / "images.npy", images)
    np.save(HERE / "labels.npy", labels)
    verify(images, labels, train, held_out, classifier)


def to_onnx(classifier, versions):
    """The classifier as a graph of its own: scaling inside, and one symbol N for the rows of everything."""
    weights = {
        "brightest": np.float32(BRIGHTEST),
        "hidden_weight": classifier.coefs_[0].astype(np.float32),
        "hidden_bias": classifier.intercepts_[0].astype(np.float32),
        "digit_weight": classifier.coefs_[1].astype(np.float32),
        "digit_bias": classifier.intercepts_[1].astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Div", ["image", "brightest"], ["scaled"]),
            helper.make_node("Gemm", ["scaled", "hidden_weight", "hidden_bias"], ["sums"]),
            helper.make_node("Relu", ["sums"], ["hidden"]),
            helper.make_node("Gemm", ["hidden", "digit_weight", "digit_bias"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probability"], axis=1),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 64])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 10]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,  # what engines as old as ONNX Runtime 1.12 read
        producer_name="examples/digits/train.py",
        doc_string="Handwritten digits, 8x8 pixels of 0 to 16: a perceptron, 64-64-10. Data: https://doi.org/10.24432/C50P49",
    )
    helper.set_model_props(model, {"made_with": versions})
    return model


def verify(images, labels, train, held_out, classifier):
    session = onnxruntime.InferenceSession(str(HERE / "digits.onnx"), providers=["CPUExecutionProvider"])
    found, probability = session.run(["label", "probability"], {"image": images})
    assert found.dtype == np.int64 and found.shape == labels.shape
    assert probability.dtype == np.float32 and probability.shape == (len(labels), 10)
    np.testing.assert_allclose(probability, classifier.predict_proba(images / BRIGHTEST), atol=1e-5)

    right = found == labels
    print("accuracy: %.4f on all %d rows (%d right), %.4f on the %d rows not trained on" % (
        right.mean(), len(right), right.sum(), right[held_out].mean(), len(held_out)))
    assert right.mean() > 0.97


if __name__ == "__main__":
    main()
