"""Measures of generated texts and of tagged entities, by the packages that define them.

ROUGE is that of ``rouge-score`` (F1, no stemming, its own tokenizer, which keeps Latin letters and digits only); BLEU
and chrF are those of ``sacrebleu`` for the whole corpus with its defaults (tokenizer 13a; chrF2). Entity F1 is that of
``seqeval``. A package that is not installed leaves its measures out.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

_TEXT_PACKAGES = {"rouge_score": "ROUGE", "sacrebleu": "BLEU and chrF"}
_ROUGE = ("rouge1", "rouge2", "rougeL")


def missing_text_metrics() -> str:
    """Return a clause about the measures whose packages are not installed; empty if all are."""
    missing = [measures for package, measures in _TEXT_PACKAGES.items() if find_spec(package) is None]
    return f"{' and '.join(missing)} will not be measured, because their packages are not installed" if missing else ""


def text_metrics(texts: Sequence[str], references: Sequence[str]) -> dict[str, float | None]:
    """Return ROUGE-1, -2 and -L (means over rows, 0 to 1), BLEU and chrF (0 to 100), as far as they can be measured.

    Args:
        texts: the generated texts; at least one.
        references: one for each.
    """
    measures: dict[str, float | None] = {}
    if find_spec("rouge_score") is not None:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(_ROUGE, use_stemmer=False)
        scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
        measures |= {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in _ROUGE}
    if find_spec("sacrebleu") is not None:
        import sacrebleu

        measures["bleu"] = float(sacrebleu.corpus_bleu(list(texts), [list(references)]).score)
        measures["chrf"] = float(sacrebleu.corpus_chrf(list(texts), [list(references)]).score)
    return measures


def entity_metrics(tags: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """Return precision, recall and F1 of whole entities (micro averages, IOB2 read leniently); empty without seqeval.

    Args:
        tags: predicted tags of each row's tokens, such as ``B-PER``.
        truth: the true ones.
    """
    if find_spec("seqeval") is None:
        return {}
    import warnings

    from seqeval.metrics import f1_score, precision_score, recall_score

    functions: dict[str, Any] = {
        "entity_precision": precision_score, "entity_recall": recall_score, "entity_f1": f1_score,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about no entities at all, which scores 0
        lists = [list(row) for row in truth], [list(row) for row in tags]
        return {name: float(function(*lists)) for name, function in functions.items()}
