"""Low-rank products of a delta: in the file, applied and reverted, and refused if anything is wrong with them."""

import dataclasses
import hashlib
import json
import random
import re

import pytest
import tiny
import torch
from delta_files import Refusals, assert_same, header, linear, put, signed, without
from hypothesis import given
from hypothesis import strategies as st

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.backbone.fingerprint import digest
from taskedge.backbone.layers import linears
from taskedge.delta.apply import applied_to
from taskedge.delta.delta import Delta, Head, LowRankDelta, Provenance
from taskedge.delta.file import section_bytes
from taskedge.delta.filter_delta import FilterDelta
from taskedge.errors import BaseMismatch, DeltaError, InputError
from taskedge.selection.support import Support


def product(out, inputs, rank=2, scale=1.5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, inputs, generator=draw), torch.randn(out, rank, generator=draw)
    return LowRankDelta(a, b, scale, "float32", f"{seed:024x}")


def hybrid(model, dtype=torch.float32):
    """Train entries in the first linear, products in the others, and the head."""
    model.to(dtype)
    names = list(candidates(model))
    chosen = te.select(model, rule="random", per_neuron=1, linears=names[:1])
    support = Support(chosen.linears, chosen.model_parameters, low_rank=dict.fromkeys(names[1:], 2))
    te.install(model, support, alpha=3.0)
    if dtype == torch.float32:
        return tiny.train(model, lr=0.1)
    for name, parameter in model.named_parameters():
        if ".product." in name:
            parameter.data.normal_()
    return model


@pytest.fixture(params=sorted(tiny.MODELS))
def make(request):
    return tiny.MODELS[request.param]


def test_from_install_to_revert(make, tmp_path):
    model = hybrid(make())
    inputs = tiny.batch(model, seed=9)
    unfused = tiny.logits(model, inputs)
    path = te.save(te.extract(model), tmp_path / "x")
    te.fuse(model)
    expected = tiny.logits(model, inputs)
    torch.testing.assert_close(unfused, expected, rtol=1e-4, atol=1e-5)

    fresh = make()
    before = tiny.state(fresh)
    delta = te.load(path)
    te.apply(fresh, delta)
    assert tiny.same_bits(fresh.state_dict(), model.state_dict())
    te.apply(fresh, delta)  # again: from the base, not from what is there
    te.apply(fresh, te.load(path))
    assert tiny.same_bits(fresh.state_dict(), model.state_dict())
    te.revert(fresh, delta)
    assert tiny.same_bits(fresh.state_dict(), before)
    with te.applied(fresh, delta) as changed:
        assert torch.equal(tiny.logits(changed, inputs), expected)
    assert tiny.same_bits(fresh.state_dict(), before)


def test_the_trained_factors_are_extracted(bert):
    base = {name: own.weight.clone() for name, own in linears(bert).items()}
    delta = te.extract(hybrid(bert))
    assert delta.low_rank
    for name, own in delta.low_rank.items():
        trained = bert.get_submodule(name).product
        assert torch.equal(own.a, trained.a)
        assert torch.equal(own.b, trained.b)
        assert own.b.any()
        assert (own.scale, own.rank, own.shape) == (1.5, 2, linears(bert)[name].shape)
        assert (own.base_dtype, own.base_digest) == ("float32", digest(base[name]))
    assert delta.num_low_rank_parameters == sum(own.a.numel() + own.b.numel() for own in delta.low_rank.values())
    before = {name: own.b.clone() for name, own in delta.low_rank.items()}
    tiny.train(bert)
    assert all(torch.equal(own.b, before[name]) for name, own in delta.low_rank.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_gets_the_values_of_the_fused_model(dtype):
    trained = hybrid(tiny.mlp(), dtype)
    delta = te.extract(trained)
    fresh = tiny.mlp().to(dtype)
    before = tiny.state(fresh)
    te.apply(fresh, delta)
    assert tiny.same_bits(fresh.state_dict(), te.fuse(trained).state_dict())
    te.revert(fresh)
    assert tiny.same_bits(fresh.state_dict(), before)


def test_revert_gives_back_every_bit_of_odd_values(mlp):
    delta = te.extract(hybrid(tiny.mlp()))
    odd = torch.tensor([-0.0, 0.0, 1e-45, torch.finfo(torch.float32).max, torch.nan, torch.inf])
    for own in linears(mlp).values():
        own.weight.copy_(odd.repeat(own.weight.numel())[: own.weight.numel()].view(own.shape))
    before = tiny.state(mlp)
    te.apply(mlp, delta, force=True)
    assert not tiny.same_bits(mlp.state_dict(), before)
    te.revert(mlp)
    assert tiny.same_bits(mlp.state_dict(), before)


def nudge(model):
    model.second.weight.data[3, 4] += 1e-3  # one value anywhere


def narrower(model):
    model.second = torch.nn.Linear(10, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nudge, r"wrong base: 1 of 2 linears hold other values than the base of this delta, 'second' first"),
        (narrower, r"wrong base: linear 'second' is \[7, 10\], the delta was made for \[8, 10\]"),
        (lambda model: model.second.half(), "linear 'second' is float16, the delta was trained on float32"),
    ],
)
def test_a_wrong_base_is_refused(mlp, change, message):
    delta = te.extract(hybrid(tiny.mlp()))
    assert list(delta.low_rank) == ["second"]
    change(mlp)
    before = tiny.state(mlp)
    with pytest.raises(BaseMismatch, match=message):
        te.apply(mlp, delta)
    assert tiny.same_bits(mlp.state_dict(), before)
    assert applied_to(mlp) is None


def test_a_sum_that_the_base_cannot_hold_is_refused(mlp):
    delta = te.extract(hybrid(tiny.mlp()))
    huge = dataclasses.replace(delta.low_rank["second"], scale=1e39)
    before = tiny.state(mlp)
    with pytest.raises(BaseMismatch, match="'second' cannot hold its weight plus the delta's product as float32"):
        te.apply(mlp, dataclasses.replace(delta, low_rank={"second": huge}))
    assert tiny.same_bits(mlp.state_dict(), before)


def test_another_product_is_another_delta(mlp):
    delta = te.extract(hybrid(tiny.mlp()))
    own = delta.low_rank["second"]
    te.apply(mlp, delta)
    for other in (
        {"second": dataclasses.replace(own, scale=2.0)},
        {"second": dataclasses.replace(own, b=own.b + 1)},
        {},
    ):
        with pytest.raises(InputError, match="another delta is applied"):
            te.apply(mlp, dataclasses.replace(delta, low_rank=other))


# -- the file --------------------------------------------------------------------------------------------------------


@st.composite
def deltas(draw):
    names = draw(st.lists(st.text(max_size=8), unique=True, min_size=1, max_size=4))
    sizes = st.integers(1, 6)
    products = {
        name: product(draw(sizes), draw(sizes), draw(sizes), draw(st.floats(-1e6, 1e6)), draw(st.integers(0, 99)))
        for name in names
    }
    linears = {f"+{name}": linear((3, 4), [1, 5, 9]) for name in names if draw(st.booleans())}
    linears |= {name: linear(one.shape, [0]) for name, one in products.items() if draw(st.booleans())}
    return Delta(linears, {"w": torch.ones(2)}, Provenance(labels=("a",)), products)


def assert_all_same(one, other, values=torch.float32):
    assert_same(one, other, values)
    assert list(one.low_rank) == list(other.low_rank)
    for name, mine in one.low_rank.items():
        theirs = other.low_rank[name]
        assert (mine.scale, mine.base_dtype, mine.base_digest) == (theirs.scale, theirs.base_dtype, theirs.base_digest)
        assert torch.equal(mine.a.to(values).float(), theirs.a)
        assert torch.equal(mine.b.to(values).float(), theirs.b)


@pytest.mark.slow
@given(delta=deltas(), values=st.sampled_from(["fp32", "bf16"]))
def test_it_goes_round(tmp_path, delta, values):
    path = te.save(delta, tmp_path / "x", values=values)
    assert_all_same(delta, te.load(path), {"fp32": torch.float32, "bf16": torch.bfloat16}[values])
    before = path.read_bytes()
    assert te.save(te.load(path), path, values=values).read_bytes() == before
    sizes = section_bytes(path)
    width = 4 if values == "fp32" else 2
    assert (
        sum(size for name, size in sizes.items() if name.startswith("low_rank"))
        == width * delta.num_low_rank_parameters
    )


def test_a_delta_without_products_has_the_bytes_it_always_had(tmp_path):
    """A file without products has the bytes that version 0.1 wrote."""
    one, two = linear((2, 300), [5, 301]), linear((3, 4), [0, 1, 11])
    for each in (one, two):
        each.values.copy_(torch.arange(len(each)) / 8)
    linears = {"a.b": dataclasses.replace(one, base_digest=f"{7:024x}")}
    linears["c"] = dataclasses.replace(two, base_digest=f"{7:024x}")
    made = Provenance(base="b", labels=("x", "é"), training={"lr": 0.5})
    content = te.save(Delta(linears, {"head.weight": torch.arange(6.0).view(2, 3)}, made), tmp_path / "x").read_bytes()
    assert hashlib.blake2b(content, digest_size=16).hexdigest() == "c769219b082b1b03ca18c6a9efefc724"


def test_the_form_tells_readers_without_support_for_products(tmp_path):
    path = te.save(Delta({}, low_rank={"a": product(2, 3)}), tmp_path / "x")
    manifest = json.loads(header(path.read_bytes())["__metadata__"]["taskedge"])
    assert (manifest["format"], manifest["form"]) == ("taskedge-delta/1", "sparse+low_rank")


def test_the_form_tells_readers_that_do_not_know_entries_beside_a_product(tmp_path):
    path = te.save(Delta({"a": linear((3, 4), [1])}, low_rank={"a": product(3, 4)}), tmp_path / "x")
    manifest = json.loads(header(path.read_bytes())["__metadata__"]["taskedge"])
    assert (manifest["format"], manifest["form"]) == ("taskedge-delta/1", "sparse+low_rank+overlap")
    for form in ("sparse", "sparse+low_rank"):
        path.write_bytes(signed(path.read_bytes(), lambda m, form=form: m.update(form=form)))
        with pytest.raises(DeltaError, match=f"form '{re.escape(form)}' does not fit"):
            te.load(path)


@pytest.fixture
def good(tmp_path):
    return te.save(te.extract(hybrid(tiny.mlp())), tmp_path / "good")


class Strict(Refusals):
    def try_(self, content):
        error = super().try_(content)
        if error is None:
            assert_all_same(te.load(self.path), self.good)
        return error


@pytest.fixture
def refusals(tmp_path, good):
    return Strict(tmp_path, good)


@pytest.mark.slow
def test_every_flipped_byte_and_every_truncation_is_refused(good, refusals):
    content = good.read_bytes()
    draw = random.Random(0)
    for place in range(len(content)):
        flip = draw.randrange(1, 256)
        refusals.try_(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
    assert refusals.refused > 0.98 * len(content)
    for length in range(0, len(content), 7):
        assert refusals.try_(content[:length]) is not None
    refusals.check_model()


A, B = "low_rank_a/second", "low_rank_b/second"


def first_as(value):
    def change(tensor):
        tensor[0, 0] = value
        return tensor

    return change


TENSORS = {
    "a NaN": put(A, first_as(torch.nan)),
    "an infinity": put(B, first_as(torch.inf)),
    "no A": lambda tensors: {name: tensor for name, tensor in tensors.items() if name != A},
    "no B": lambda tensors: {name: tensor for name, tensor in tensors.items() if name != B},
    "A turned": put(A, lambda tensor: tensor.t().contiguous()),
    "B flat": put(B, lambda tensor: tensor.flatten()),
    "one rank less": lambda tensors: tensors | {A: tensors[A][:1].clone(), B: tensors[B][:, :1].clone()},
    "a column less": put(A, lambda tensor: tensor[:, 1:].clone()),
    "a row more": put(B, lambda tensor: torch.cat([tensor, tensor[:1]])),
    "A of another linear": lambda tensors: tensors | {"low_rank_a/first": tensors[A].clone()},
    "a third factor": lambda tensors: tensors | {"low_rank_c/second": tensors[A].clone()},
    "no factors": lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith("low_rank")},
    "a whole weight as well": lambda tensors: tensors | {"whole/second.weight": torch.zeros(8, 10)},
    **{
        f"A as {dtype}": put(A, lambda tensor, dtype=dtype: tensor.to(dtype))
        for dtype in (torch.float64, torch.float16, torch.int32, torch.bool, torch.float8_e4m3fn)
    },
}


@pytest.mark.parametrize("what", list(TENSORS))
def test_bad_factors_under_a_right_digest_are_refused(good, refusals, what):
    assert refusals.try_(signed(good.read_bytes(), change_tensors=TENSORS[what])) is not None
    refusals.check_model()


def entry(**changes):
    """Return a function that changes fields of the low-rank linear's row in the manifest."""
    places = ("name", "out", "inputs", "rank", "scale", "dtype", "digest")

    def change(manifest):
        for name, value in changes.items():
            manifest["low_rank"][0][places.index(name)] = value

    return change


MANIFESTS = {
    "form sparse": lambda m: m.update(form="sparse"),
    "no products": without("low_rank"),
    "products gone": lambda m: m.update(low_rank=[]),
    "products null": lambda m: m.update(low_rank=None),
    "products by name": lambda m: m.update(low_rank={"second": 2}),
    "a product twice": lambda m: m.update(low_rank=[m["low_rank"][0]] * 2),
    "entries as well": entry(name="first"),
    "a short row": without("low_rank", 0, 6),
    "another name": entry(name="third"),
    "no name": entry(name=None),
    "too few rows": entry(out=7),
    "no rows": entry(out=0),
    "rows beyond 64 bits": entry(out=2**70),
    "too wide": entry(inputs=11),
    "rank 0": entry(rank=0),
    "rank 3": entry(rank=3),
    "a negative rank": entry(rank=-2),
    "a huge rank": entry(rank=2**40),
    "a fraction of a rank": entry(rank=2.5),
    "rank as text": entry(rank="2"),
    "scale NaN": entry(scale=float("nan")),
    "scale infinite": entry(scale=float("inf")),
    "scale as text": entry(scale="1.5"),
    "scale as truth": entry(scale=True),
    "no scale": entry(scale=None),
    "a number for a digest": entry(digest=5),
    "a number for a dtype": entry(dtype=5),
}


@pytest.mark.parametrize("what", list(MANIFESTS))
def test_a_bad_manifest_under_a_right_digest_is_refused(good, refusals, what):
    assert refusals.try_(signed(good.read_bytes(), change_manifest=MANIFESTS[what])) is not None
    refusals.check_model()


def test_an_integer_scale_is_read_as_a_float(good, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(signed(good.read_bytes(), entry(scale=2)))
    assert te.load(path).low_rank["second"].scale == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"a": p.a[0]}, "factors of"),
        (lambda p: {"a": p.a[:1]}, "factors of"),
        (lambda p: {"a": p.a[:0], "b": p.b[:, :0]}, "factors of"),
        (lambda p: {"a": p.a[:, :0]}, "factors of"),
        (lambda p: {"scale": float("nan")}, "is scaled by nan"),
        (lambda p: {"a": p.a.double()}, "is torch.float64, not float32"),
        (lambda p: {"b": p.b * torch.inf}, "not a finite number"),
    ],
)
def test_a_product_that_contradicts_itself_cannot_be_made(change, message):
    own = product(4, 5)
    with pytest.raises(DeltaError, match=f"linear 'x'.*{message}"):
        Delta({}, low_rank={"x": dataclasses.replace(own, **change(own))})


def test_a_linear_with_a_product_may_have_entries_but_not_train_in_full():
    assert Delta({"x": linear((3, 4), [1])}, low_rank={"x": product(3, 4)}).overlap == ["x"]
    assert Delta({"x": linear((3, 4), [1])}, low_rank={"y": product(3, 4)}).overlap == []
    both = {"linears": {"x": linear((3, 4), [1])}, "low_rank": {"x": product(3, 4)}}
    with pytest.raises(DeltaError, match=r"'x' has .* the first are of \[3, 4\] in float32, the second of \[4, 3\]"):
        Delta(**both | {"low_rank": {"x": product(4, 3)}})
    with pytest.raises(DeltaError, match=r"the second of .* in bfloat16"):
        Delta(**both | {"low_rank": {"x": dataclasses.replace(product(3, 4), base_dtype="bfloat16")}})
    with pytest.raises(DeltaError, match="'x' has entries and a low-rank product, and the product has a filter"):
        Delta(
            **both,
            filters={"x": FilterDelta("cosine", {"c": torch.zeros(2, 3), "d": torch.zeros(3, 2), "v": torch.zeros(3)})},
        )
    with pytest.raises(DeltaError, match="'x' has entries and a low-rank product, and the delta has heads"):
        Delta(**both, heads={"a": Head({"w": torch.zeros(1)}, Provenance())})
    with pytest.raises(DeltaError, match="'x' is changed in two ways"):
        Delta({}, {"x.weight": torch.zeros(3, 4)}, low_rank={"x": product(3, 4)})
