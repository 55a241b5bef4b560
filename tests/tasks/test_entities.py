from __future__ import annotations

import numpy as np
import pytest

from edgesmith.tasks.entities import entity_counts, join_tags, kind_of, tag_words
from edgesmith.tasks.scoring import ratio_of_sums

WORDS = [(0, 3), (4, 7), (8, 12), (13, 14)]


# Expected values are those that seqeval and the CoNLL script give.
@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        (["O", "O", "O", "O"], []),
        (["B-PER", "I-PER", "O", "B-LOC"], [(0, 2, "PER"), (3, 4, "LOC")]),
        (["B-PER", "B-PER", "I-PER", "O"], [(0, 1, "PER"), (1, 3, "PER")]),
        (["I-PER", "I-PER", "O", "I-LOC"], [(0, 2, "PER"), (3, 4, "LOC")]),
        (["B-PER", "I-LOC", "I-LOC", "O"], [(0, 1, "PER"), (1, 3, "LOC")]),
        (["O", "O", "B-ORG", "I-ORG"], [(2, 4, "ORG")]),
        (["B-A-B", "I-A-B", "O", "O"], [(0, 2, "A-B")]),
        (["PER", "PER", "O", "LOC"], [(0, 2, "PER"), (3, 4, "LOC")]),
        (["S-PER", "B-LOC", "I-LOC", "E-LOC"], [(0, 1, "PER"), (1, 4, "LOC")]),
    ],
)
def test_tags_spell_the_entities_that_the_conll_script_reads(tags, entities):
    assert join_tags(WORDS, tags) == entities


@pytest.mark.parametrize("tags", [["B-P", "I-P", "O", "B-L"], ["O", "B-P", "B-P", "I-P"], ["B-L", "B-P", "O", "O"]])
def test_entities_give_their_tags_back(tags):
    spans = [(WORDS[first][0], WORDS[last - 1][1], kind) for first, last, kind in join_tags(WORDS, tags)]
    assert tag_words(WORDS, spans) == tags


@pytest.mark.parametrize(
    ("right", "said", "f1"),
    [
        ([[]], [[]], 1.0),
        ([[(0, 3, "P")]], [[]], 0.0),
        ([[(0, 3, "P")]], [[(0, 3, "L")]], 0.0),
        ([[(0, 3, "P")]], [[(0, 7, "P")]], 0.0),
        ([[(0, 3, "P")], [(4, 7, "L")]], [[(0, 3, "P")], []], 2 / 3),
        ([[(0, 3, "P")], [(0, 3, "L")]], [[(0, 3, "L")], [(0, 3, "P")]], 0.0),  # texts are not mixed up
        ([[(0, 3, "P"), (4, 7, "P"), (8, 12, "L")]], [[(0, 3, "P"), (8, 12, "L"), (13, 14, "L")]], 2 / 3),
    ],
)
def test_f1_counts_whole_entities(right, said, f1):
    assert ratio_of_sums(np.array(entity_counts(right, said))) == pytest.approx(f1)


def test_a_plain_name_is_its_own_kind():
    assert kind_of("Q-7") == ("I", "Q-7")
