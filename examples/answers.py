"""How an answer in words is compared with the right ones: exact match and token F1, by the definition of SQuAD.

ReCoRD, SQuAD 1.1 and 2.0 and the data sets after them share it. In 2.0 an empty answer says that there is none.

References:
    Rajpurkar, Jia, Liang: Know What You Don't Know: Unanswerable Questions for SQuAD, 2018, arXiv:1806.03822.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """In lower case, without punctuation, the articles a, an and the, and superfluous white space."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, right: str) -> float:
    """1 where both are the same after normalisation, else 0."""
    return float(normalised(answer) == normalised(right))


def token_f1(answer: str, right: str) -> float:
    """F1 of the tokens, each counted as often as it occurs; an empty answer agrees with an empty one and nothing else."""
    tokens, right_tokens = normalised(answer).split(), normalised(right).split()
    if not tokens or not right_tokens:
        return float(tokens == right_tokens)
    common = (Counter(tokens) & Counter(right_tokens)).total()
    return 2 * common / (len(tokens) + len(right_tokens))


def best(score: Callable[[str, str], float], answer: str, right: Sequence[str]) -> float:
    """The score against the right answer that it is highest for."""
    return max(score(answer, one) for one in right)
