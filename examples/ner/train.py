#!/usr/bin/env python3
"""Trains this folder's model on made-up sentences, and writes it.

    pip install jax==0.10.2 optax==0.2.8 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
    python examples/ner/train.py

A character BiLSTM-CRF: embeddings of 100, an LSTM of 128 in each direction, a linear layer to the tags O, B-BD and I-BD. It
takes about a quarter of an hour on one CPU core, and writes

    models/ner.onnx      ids INT64 [N,L], lengths INT32 [N]  ->  emissions FP32 [N,L,3]
    models/word2id.json  {"character": id}
    crf.json             the CRF's transitions, which are not in the graph

heldout.jsonl is only read, at the end; what was tuned, was tuned on the split dev of generate.py.
"""

import json
import os
import platform
import time
from collections import Counter
from pathlib import Path

# One core: the sums come in one order, so that a second run makes the same model.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import optax
from onnx import TensorProto, helper, numpy_helper

import evaluate
import generate
from evaluate import PAD, UNK

HERE = Path(__file__).resolve().parent
SEED = 1
TAGS = ["O", "B-BD", "I-BD"]
EMBEDDING, HIDDEN = 100, 128

SENTENCES, EPOCHS, BATCH = 60000, 4, 64
LEARNING_RATE, DROPOUT = 3e-3, 0.4
WIDTHS = [32, 48, 64, 96, 128, generate.LONGEST]  # the columns a batch is padded to; each is compiled once

# A character seen fewer times is <UNK> in training too, and so are these shares of the others, drawn anew in each epoch.
RAREST = 20
UNKNOWN_ANYWHERE, UNKNOWN_IN_NAMES, UNKNOWN_WHOLE_NAMES = [0, 0, 0.05, 0.1, 0.2], 0.15, 0.1  # the first: one of these a row
# But never these, without which there is no telling.
ALWAYS_KNOWN = frozenset("出生于日期年月")

# Never taken: I-BD follows B-BD or I-BD only. Finite, so that the sums stay numbers.
FORBIDDEN = -10000.0
ALLOWED = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)
ALLOWED_START = np.array([1, 1, 0], bool)


def main():
    versions = "Python %s, jax %s, optax %s, onnx %s, onnxruntime %s, numpy %s" % (
        platform.python_version(), jax.__version__, optax.__version__, onnx.__version__, onnxruntime.__version__, np.__version__)
    print(versions)
    generate.check()

    data, dev = Data("train", SENTENCES), Data("dev", 1000)
    word2id = vocabulary(data)
    print("%d sentences, %d characters known" % (len(data.texts), len(word2id)))
    parameters = train(data, dev, word2id)

    model = to_onnx(parameters, versions)
    onnx.checker.check_model(model, full_check=True)
    (HERE / "models").mkdir(exist_ok=True)
    onnx.save(model, str(HERE / "models/ner.onnx"))
    write_json(HERE / "models/word2id.json", word2id)
    write_crf(parameters)

    compare(parameters)
    evaluate.main()


class Data:
    """Sentences of one split, with a tag for each character and the ranges of names and places."""

    def __init__(self, split, count):
        writer = generate.Writer(split, SEED)
        rows = [writer.sentence() for _ in range(count)]
        self.texts = [text for text, _, _ in rows]
        self.spans = [[tuple(entity) for entity in entities] for _, entities, _ in rows]
        self.tags = [tags_of(text, entities) for text, entities, _ in rows]
        self.loose = [loose for _, _, loose in rows]


def tags_of(text, entities):
    tags = np.zeros(len(text), np.int32)
    for start, end, label in entities:
        tags[start] = TAGS.index("B-" + label)
        tags[start + 1:end] = TAGS.index("I-" + label)
    return tags


def vocabulary(data):
    counts = Counter(character for text in data.texts for character in text)
    known = sorted(character for character, count in counts.items() if count >= RAREST)
    return {"<PAD>": PAD, "<UNK>": UNK, **{character: number for number, character in enumerate(known, 2)}}


def batches(data, word2id, rng):
    """One epoch: sentences of like length together, in a random order, some characters unknown."""
    kept = [PAD] + [word2id[character] for character in sorted(ALWAYS_KNOWN)]
    order = rng.permutation(len(data.texts))
    full, waiting = [], {width: [] for width in WIDTHS}
    for row in order:
        width = next(width for width in WIDTHS if len(data.texts[row]) <= width)
        waiting[width].append(row)
        if len(waiting[width]) == BATCH:
            full.append((width, waiting[width]))
            waiting[width] = []
    for width, rows in full:
        ids = evaluate.to_ids([data.texts[row] for row in rows], word2id, width)
        tags = np.zeros((BATCH, width), np.int32)
        lengths = np.array([len(data.texts[row]) for row in rows], np.int32)
        unknown = rng.random(ids.shape) < rng.choice(UNKNOWN_ANYWHERE, size=(BATCH, 1))
        for at, row in enumerate(rows):
            tags[at, :lengths[at]] = data.tags[row]
            for start, end in data.loose[row]:
                share = 1.0 if rng.random() < UNKNOWN_WHOLE_NAMES else UNKNOWN_IN_NAMES
                unknown[at, start:end] |= rng.random(end - start) < share
        ids[unknown & ~np.isin(ids, kept)] = UNK
        yield ids, lengths, tags


# The network. The weights have the layout of ONNX's LSTM: gates in the order input, output, forget, cell; forwards first.


def initial(key, characters):
    keys = jax.random.split(key, 6)
    uniform = lambda key, shape, bound: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    bias = jnp.zeros((2, 4 * HIDDEN)).at[:, 2 * HIDDEN:3 * HIDDEN].set(1.0)  # remember, to begin with
    return {
        "embedding": 0.3 * jax.random.normal(keys[0], (characters, EMBEDDING)),
        "input": uniform(keys[1], (2, 4 * HIDDEN, EMBEDDING), (6 / (EMBEDDING + HIDDEN)) ** 0.5),
        "recurrent": uniform(keys[2], (2, 4 * HIDDEN, HIDDEN), HIDDEN ** -0.5),
        "bias": bias,
        "linear": uniform(keys[3], (2 * HIDDEN, len(TAGS)), (6 / (2 * HIDDEN)) ** 0.5),
        "linear_bias": jnp.zeros(len(TAGS)),
        "transitions": jnp.zeros((len(TAGS), len(TAGS))),
        "start": jnp.zeros(len(TAGS)),
        "end": jnp.zeros(len(TAGS)),
    }


def emissions_of(parameters, ids, lengths, key=None):
    """[N, L, T]; the columns past a row's length mean nothing. With a key: training, with dropout."""
    embedded = parameters["embedding"][ids]
    if key is not None:
        embedded = dropout(jax.random.fold_in(key, 0), embedded)
    # Each row backwards within its own length: padding stays last in both directions, and nothing after it is used.
    columns = jnp.arange(ids.shape[1])[None, :]
    mirrored = jnp.where(columns < lengths[:, None], lengths[:, None] - 1 - columns, columns)
    backwards = jnp.take_along_axis(embedded, mirrored[:, :, None], axis=1)
    first = lstm(embedded, *(parameters[name][0] for name in ("input", "recurrent", "bias")))
    second = lstm(backwards, *(parameters[name][1] for name in ("input", "recurrent", "bias")))
    both = jnp.concatenate([first, jnp.take_along_axis(second, mirrored[:, :, None], axis=1)], axis=2)
    if key is not None:
        both = dropout(jax.random.fold_in(key, 1), both)
    return both @ parameters["linear"] + parameters["linear_bias"]


def dropout(key, values):
    return jnp.where(jax.random.bernoulli(key, 1 - DROPOUT, values.shape), values / (1 - DROPOUT), 0.0)


def lstm(sequence, weight, recurrent, bias):
    """[N, L, EMBEDDING] -> [N, L, HIDDEN]"""
    gates = jnp.swapaxes(sequence @ weight.T + bias, 0, 1)

    def step(state, gate):
        hidden, cell = state
        into, out, forget, new = jnp.split(gate + hidden @ recurrent.T, 4, axis=1)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(into) * jnp.tanh(new)
        hidden = jax.nn.sigmoid(out) * jnp.tanh(cell)
        return (hidden, cell), hidden

    nothing = jnp.zeros((sequence.shape[0], HIDDEN))
    return jnp.swapaxes(jax.lax.scan(step, (nothing, nothing), gates)[1], 0, 1)


def crf_of(parameters):
    """Transitions, start and end, as they are used and written."""
    return (jnp.where(ALLOWED, parameters["transitions"], FORBIDDEN), jnp.where(ALLOWED_START, parameters["start"], FORBIDDEN),
            parameters["end"])


def loss_of(parameters, ids, lengths, tags, key):
    """The mean over the rows of -log p(tags), as a linear-chain CRF has it."""
    emissions = emissions_of(parameters, ids, lengths, key)
    transitions, start, end = crf_of(parameters)
    rows, inside = jnp.arange(ids.shape[0]), jnp.arange(ids.shape[1])[None, :] < lengths[:, None]

    gold = jnp.where(inside, jnp.take_along_axis(emissions, tags[:, :, None], axis=2)[:, :, 0], 0.0).sum(1)
    gold += jnp.where(inside[:, 1:], transitions[tags[:, :-1], tags[:, 1:]], 0.0).sum(1)
    gold += start[tags[:, 0]] + end[tags[rows, lengths - 1]]

    def step(score, column):
        emission, counts = column
        after = jax.nn.logsumexp(score[:, :, None] + transitions, axis=1) + emission
        return jnp.where(counts[:, None], after, score), None

    rest = (jnp.swapaxes(emissions, 0, 1)[1:], inside.T[1:])
    score = jax.lax.scan(step, start + emissions[:, 0], rest)[0]
    return jnp.mean(jax.nn.logsumexp(score + end, axis=1) - gold)


def train(data, dev, word2id):
    rng = np.random.default_rng(SEED)
    key = jax.random.key(SEED)
    parameters = initial(jax.random.fold_in(key, 0), len(word2id))
    steps = EPOCHS * (SENTENCES // BATCH)
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, 200, steps, LEARNING_RATE / 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    state = optimizer.init(parameters)

    @jax.jit
    def step(parameters, state, ids, lengths, tags, key):
        loss, gradient = jax.value_and_grad(loss_of)(parameters, ids, lengths, tags, key)
        updates, state = optimizer.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state, loss

    began, number = time.monotonic(), 0
    for epoch in range(EPOCHS):
        losses = []
        for ids, lengths, tags in batches(data, word2id, rng):
            number += 1
            parameters, state, loss = step(parameters, state, ids, lengths, tags, jax.random.fold_in(key, number))
            losses.append(float(loss))
            if number % 100 == 0:
                print("  step %d: loss %.4f, %.0f s" % (number, np.mean(losses[-100:]), time.monotonic() - began), flush=True)
        print("epoch %d: loss %.4f; dev: %s; %.0f s" % (
            epoch + 1, np.mean(losses), dev_score(parameters, dev, word2id), time.monotonic() - began), flush=True)
    return jax.tree.map(np.asarray, parameters)


forward = jax.jit(emissions_of)


def dev_score(parameters, dev, word2id):
    crf = [np.asarray(value) for value in crf_of(parameters)]
    found = []
    for first in range(0, len(dev.texts), 100):
        texts = dev.texts[first:first + 100]
        lengths = np.array([len(text) for text in texts], np.int32)
        emissions = np.asarray(forward(parameters, evaluate.to_ids(texts, word2id, generate.LONGEST), lengths))
        for row, length in zip(emissions, lengths):
            found.append(evaluate.spans(evaluate.viterbi(row[:length], *crf), TAGS))
    return evaluate.Score(found, dev.spans)


# What is written


def to_onnx(parameters, versions):
    """Embedding, LSTM and linear layer as a graph; `lengths` keeps padding out of both directions."""
    weights = {
        "embedding": parameters["embedding"],
        "input_weight": parameters["input"],
        "recurrent_weight": parameters["recurrent"],
        # ONNX has a second bias, for the recurrent product.
        "bias": np.concatenate([parameters["bias"], np.zeros_like(parameters["bias"])], axis=1),
        "linear_weight": parameters["linear"],
        "linear_bias": parameters["linear_bias"],
    }
    initializers = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([0, 0, 2 * HIDDEN], np.int64), "both_directions"))
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["embedding", "ids"], ["embedded"]),
            helper.make_node("Transpose", ["embedded"], ["columns_first"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["columns_first", "input_weight", "recurrent_weight", "bias", "lengths"], ["states"],
                             direction="bidirectional", hidden_size=HIDDEN),
            # [L, 2, N, H] -> [N, L, 2, H] -> [N, L, 2H]
            helper.make_node("Transpose", ["states"], ["rows_first"], perm=[2, 0, 1, 3]),
            helper.make_node("Reshape", ["rows_first", "both_directions"], ["joined"]),
            helper.make_node("MatMul", ["joined", "linear_weight"], ["product"]),
            helper.make_node("Add", ["product", "linear_bias"], ["emissions"]),
        ],
        "ner",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "L"]),
         helper.make_tensor_value_info("lengths", TensorProto.INT32, ["N"])],
        [helper.make_tensor_value_info("emissions", TensorProto.FLOAT, ["N", "L", len(TAGS)])],
        initializers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,  # what engines as old as ONNX Runtime 1.12 read
        producer_name="examples/ner/train.py",
        doc_string="Birth dates in Chinese legal sentences: the BiLSTM of a BiLSTM-CRF. The CRF is in crf.json.",
    )
    helper.set_model_props(model, {"made_with": versions})
    return model


def write_crf(parameters):
    transitions, start, end = (np.asarray(value, np.float32) for value in crf_of(parameters))
    # The shortest decimals that are the same FP32 numbers when read.
    exact = lambda row: [float(str(number)) for number in row]
    write_json(HERE / "crf.json", {
        "tags": TAGS, "orientation": "transitions[from][to]", "transitions": [exact(row) for row in transitions],
        "start": exact(start), "end": exact(end)})


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def compare(parameters):
    """The exported graph must compute what was trained."""
    tagger = evaluate.Tagger()
    texts = [row["text"] for row in evaluate.read_heldout()[:100]]
    lengths = np.array([len(text) for text in texts], np.int32)
    expected = np.asarray(forward(parameters, evaluate.to_ids(texts, tagger.word2id, generate.LONGEST), lengths))
    worst = max(float(np.abs(row[:len(found)] - found).max()) for row, found in zip(expected, tagger.emissions(texts)))
    print("the exported emissions differ from the trained network's by at most %.2g" % worst)
    assert worst < 1e-3
    for written, used in zip(tagger.crf, crf_of(parameters)):
        assert (written == np.asarray(used)).all()


if __name__ == "__main__":
    main()
