#!/usr/bin/env python3
"""Says how well the committed NER model finds the birth dates of heldout.jsonl, and that padding changes nothing.

    pip install onnxruntime==1.31.1 numpy==2.4.6
    python examples/ner/evaluate.py

It is also the shortest description of what a client of the model does: characters to ids, the model, Viterbi, spans.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
BATCH = 32
PAD, UNK = 0, 1


def main():
    tagger = Tagger()
    rows = read_heldout()
    emissions = tagger.emissions([row["text"] for row in rows])
    print("padding changes an emission by at most %.2g" % padding_error(tagger, rows, emissions))
    found = [spans(viterbi(row, *tagger.crf), tagger.tags) for row in emissions]
    score = Score(found, [gold_spans(row) for row in rows])
    print("held out: %s" % score)
    assert score.f1 >= 0.98


def read_heldout():
    with open(HERE / "heldout.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def gold_spans(row):
    return [(start, end, label) for start, end, label in row["entities"]]


class Tagger:
    """The committed files: the model, its characters and its CRF."""

    def __init__(self):
        self.session = onnxruntime.InferenceSession(str(HERE / "models/ner.onnx"), providers=["CPUExecutionProvider"])
        self.word2id = json.loads((HERE / "models/word2id.json").read_text(encoding="utf-8"))
        crf = json.loads((HERE / "crf.json").read_text(encoding="utf-8"))
        self.tags = crf["tags"]
        self.crf = [np.array(crf[name], np.float32) for name in ("transitions", "start", "end")]

    def emissions(self, texts, batch=BATCH):
        """[characters, tags] for each text."""
        made = []
        for first in range(0, len(texts), batch):
            some = texts[first:first + batch]
            ids = to_ids(some, self.word2id)
            lengths = np.array([len(text) for text in some], np.int32)
            (out,) = self.session.run(["emissions"], {"ids": ids, "lengths": lengths})
            assert out.dtype == np.float32 and out.shape == ids.shape + (len(self.tags),)
            made += [row[:length] for row, length in zip(out, lengths)]
        return made


def to_ids(texts, word2id, columns=None):
    """[rows, columns], as wide as the longest text unless told."""
    ids = np.full((len(texts), columns or max(map(len, texts))), PAD, np.int64)
    for row, text in enumerate(texts):
        ids[row, :len(text)] = [word2id.get(character, UNK) for character in text]
    return ids


def viterbi(emissions, transitions, start, end):
    """The best path, as tag numbers. transitions[i][j] is for going from tag i to tag j; the first of equals wins."""
    score, back = start + emissions[0], []
    for emission in emissions[1:]:
        paths = score[:, None] + transitions
        back.append(paths.argmax(axis=0))
        score = paths.max(axis=0) + emission
    path = [int((score + end).argmax())]
    for best in reversed(back):
        path.append(int(best[path[-1]]))
    return path[::-1]


def spans(path, tags):
    """[(start, end, label)]: a B- tag and the I- tags of its label that follow it."""
    found, start, label = [], None, None
    for at, tag in enumerate([tags[number] for number in path] + ["O"]):
        if start is not None and tag != "I-" + label:
            found.append((start, at, label))
            start = None
        if tag.startswith("B-"):
            start, label = at, tag[2:]
    return found


class Score:
    """Spans are right when start, end and label are."""

    def __init__(self, found, gold):
        self.right = sum(len(set(one) & set(other)) for one, other in zip(found, gold))
        self.found, self.gold = sum(map(len, found)), sum(map(len, gold))
        self.exact = sum(one == other for one, other in zip(found, gold))
        self.rows = len(gold)
        self.precision, self.recall = self.right / max(self.found, 1), self.right / max(self.gold, 1)
        self.f1 = 2 * self.right / max(self.found + self.gold, 1)

    def __str__(self):
        return "span F1 %.6f (%d right of %d found and %d there; precision %.6f, recall %.6f), %d of %d sentences wholly right" % (
            self.f1, self.right, self.found, self.gold, self.precision, self.recall, self.exact, self.rows)


def padding_error(tagger, rows, emissions):
    """The largest change of an emission when each sentence runs alone, and when it runs in twice the columns."""
    worst = 0.0
    for row, together in list(zip(rows, emissions))[:200]:
        text = row["text"]
        lengths = np.array([len(text)], np.int32)
        for columns in (len(text), 2 * len(text)):
            (alone,) = tagger.session.run(["emissions"], {"ids": to_ids([text], tagger.word2id, columns), "lengths": lengths})
            worst = max(worst, float(np.abs(alone[0, :len(text)] - together).max()))
    assert worst < 1e-4
    return worst


if __name__ == "__main__":
    main()
