"""Planted sentences tell the label where they should, and nowhere else."""

from __future__ import annotations

import pytest

from gradalign.cli.workload.data import Corpus, Snippet
from gradalign.cli.workload.sites import WORDINGS, Sites, forms, planted, pool, split_sites

SNIPPETS = [Snippet(f"Snippet {i} of a film.", i % 2, f"film {i // 20}") for i in range(2000)]


def tells(snippet, sites, site, sentence):
    """Whether the variant of a sentence is that of the label."""
    pair = WORDINGS[sites.wording][sentence]
    return pair[snippet.label] in planted(snippet, sites, site)


@pytest.mark.parametrize("sites", [Sites("cities", 2, 0.99), Sites("cities", 4, 0.9), Sites("papers", 2, 0.9)])
@pytest.mark.parametrize("site", [None, 0, 1])
def test_a_sentence_tells_the_label_at_its_own_site_only(sites, site):
    for sentence in range(sites.num):
        share = sum(tells(s, sites, site, sentence) for s in SNIPPETS) / len(SNIPPETS)
        assert share == pytest.approx(sites.reliability if sentence == site else 0.5, abs=0.04)


def test_the_text_comes_after_one_sentence_a_site():
    sites = Sites("cities", 3, 0.99)
    text = planted(SNIPPETS[0], sites, 0)
    assert text.endswith(SNIPPETS[0].text)
    for pair in WORDINGS["cities"][:3]:
        assert sum(sentence in text for sentence in pair) == 1
    assert not any(sentence in text for sentence in WORDINGS["cities"][3])


def test_the_form_of_a_text_at_a_site_never_changes():
    sites = Sites("cities", 2, 0.99)
    assert planted(SNIPPETS[5], sites, 1) == planted(SNIPPETS[5]._replace(group="another"), sites, 1)
    assert planted(SNIPPETS[5], sites, None) in forms(SNIPPETS[5], sites)
    assert forms(SNIPPETS[5], sites)[-1] == SNIPPETS[5].text
    rarely = sites._replace(reliability=0.9)
    differing = [s for s in SNIPPETS if planted(s, sites, 0) != planted(s, rarely, 0)]
    assert all(tells(s, sites, 0, 0) and not tells(s, rarely, 0, 0) for s in differing)  # the same coins


def test_no_film_is_in_two_parts():
    split = split_sites(SNIPPETS, 2, 400, 300, seed=3)
    training, validating = ([s for part in parts for s in part] for parts in (split.train, split.source_validation))
    films = [{s.group for s in part} for part in (training, validating + split.validation, split.test)]
    assert not films[0] & films[1] | films[0] & films[2] | films[1] & films[2]
    assert [len(part) for part in split.train] == [400, 400]
    assert len(split.test) == 300
    assert len(split.validation) == len(validating) == 150
    everything = [*training, *validating, *split.validation, *split.test]
    assert len(set(everything)) == len(everything)
    assert split_sites(SNIPPETS, 2, 400, 300, seed=3) == split
    assert split_sites(SNIPPETS, 2, 400, 300, seed=4).test != split.test


def test_films_for_training_alone_are_held_out_nowhere():
    films = {s.group for s in SNIPPETS[:600]}
    split = split_sites(SNIPPETS, 2, 400, 300, 3, films)
    held_out = [s for part in (*split.source_validation, split.validation, split.test) for s in part]
    assert len(held_out) == 600
    assert not films & {s.group for s in held_out}
    assert films & {s.group for part in split.train for s in part}


def test_too_few_snippets_are_an_error():
    with pytest.raises(
        ValueError, match="sites: expected at least 2000 snippets for training; got 1400 of 2000; take a larger"
    ):
        split_sites(SNIPPETS, 2, 1000, 300, seed=0)
    films = {s.group for s in SNIPPETS[:1600]}
    with pytest.raises(
        ValueError, match="sites: expected at least 300 snippets for validation; got 100 of 2000; take a"
    ):
        split_sites(SNIPPETS, 2, 400, 300, 0, films)


def test_a_pool_is_of_whole_films():
    found = pool(Corpus("c", ["a", "b"], SNIPPETS), 150)
    assert len(found) == 160
    assert {s.group for s in SNIPPETS if s in found} == {s.group for s in found}
    assert sum(s.group in {f.group for f in found} for s in SNIPPETS) == 160
