"""Allowed classes: what they are stored as, and what becomes of it when the code changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, make_dataclass
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, auto
from typing import Any

import pytest

from state_manager import classes, codec
from state_manager.codec import allow, decode, encode
from state_manager.errors import NotStorable


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test allows is forgotten after it."""
    for name in ("BY_NAME", "BY_CLASS"):
        monkeypatch.setattr(classes, name, {})
        monkeypatch.setattr(codec, name, getattr(classes, name))


def returned(value: Any) -> Any:
    """Return the value after a round trip, which has changed neither it nor its type."""
    again = decode(encode(value))
    assert type(again) is type(value)
    assert again == value
    return again


def refusal(value: object) -> str:
    with pytest.raises(NotStorable) as caught:
        encode(value)
    return str(caught.value)


class Colour(Enum):
    RED = 1
    BLUE = 2


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Right(Flag):
    READ = auto()
    WRITE = auto()
    BOTH = READ | WRITE
    RUN = auto()


class Bits(IntFlag):
    ONE = 1


@dataclass
class Cart:
    owner: str
    items: list[Any] = field(default_factory=list)
    total: int = 0


@pytest.mark.parametrize("value", [Colour.BLUE, Level.HIGH, Right.READ, Right.BOTH, Right.READ | Right.RUN, Right(0)])
def test_enums(value: Enum) -> None:
    allow(type(value))
    assert returned([value])[0] is value
    assert returned({value: (value,)})


def test_an_enum_is_stored_by_name() -> None:
    allow(Colour, name="colour")
    stored = encode(Colour.RED)
    classes.BY_NAME.clear()

    @allow(name="colour")
    class Renumbered(Enum):
        BLUE = 1
        RED = 2

    assert decode(stored) is Renumbered.RED
    classes.BY_NAME.clear()

    @allow(name="colour")
    class Smaller(Enum):
        BLUE = 1

    with pytest.raises(NotStorable, match=r"'RED' of .*Smaller"):
        decode(stored)


def test_bits_without_a_name_are_refused() -> None:
    allow(Bits)
    returned([Bits.ONE, Bits(0)])
    assert "no member" in refusal(Bits(9))


def test_dataclasses() -> None:
    made = []

    @allow
    @dataclass(frozen=True, slots=True, order=True)
    class Item:
        name: str
        prices: tuple[Decimal, ...]
        code: int = field(init=False, default=7)
        scale: InitVar[int] = 1

        def __post_init__(self, scale: int) -> None:
            made.append(self.name)

    allow(Cart)
    item = Item("pen", (Decimal("1.50"),), scale=2)
    object.__setattr__(item, "code", 9)
    cart = returned(Cart("alice", [item, {item: Cart("bob", [])}], total=3))
    assert cart == Cart("alice", [item, {item: Cart("bob", [])}], total=3)
    assert cart.items[0].code == 9
    assert made == ["pen"]  # reading makes no second one


def test_a_dataclass_whose_fields_have_changed() -> None:
    allow(Cart, name="cart")
    stored = encode([Cart("alice", [1], total=3)])
    classes.BY_NAME.clear()

    grown = make_dataclass("Grown", [("owner", str), ("tags", list, field(default_factory=list)), ("n", int, 5)])
    allow(grown, name="cart")
    assert decode(stored) == [grown("alice", [], 5)]
    assert decode(stored)[0].tags is not decode(stored)[0].tags
    classes.BY_NAME.clear()

    allow(make_dataclass("Stricter", ["owner", "needed"]), name="cart")
    with pytest.raises(NotStorable, match="no field 'needed': give the field a default"):
        decode(stored)


def test_a_dataclass_with_an_unset_field_is_refused() -> None:
    allow(Cart)
    cart = Cart("alice")
    del cart.owner
    assert "owner" in refusal([cart])


class Money:
    """A class that is no dataclass."""

    def __init__(self, amount: Decimal, currency: str) -> None:
        self.amount, self.currency = amount, currency

    def __repr__(self) -> str:
        return f"{self.amount} {self.currency}"

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]


def allow_money(**options: Any) -> None:
    allow(Money, encode=lambda money: (money.amount, money.currency), decode=lambda parts: Money(*parts), **options)


def test_another_class_with_encode_and_decode() -> None:
    allow_money()
    allow(Cart)
    returned(Cart("alice", [Money(Decimal("1.50"), "EUR"), {(1, 2): Money(Decimal(0), "USD")}]))


def test_the_result_of_encode_is_checked_too() -> None:
    allow(Money, encode=lambda money: {"amount": memoryview(b"")}, decode=lambda state: state)
    assert refusal([1, Money(Decimal(1), "EUR")]).startswith("value[1]['amount']: an object of type memoryview")
    allow(Money, encode=lambda money: money, decode=lambda state: state)
    assert "inside itself" in refusal(Money(Decimal(1), "EUR"))


def test_an_error_of_encode_is_the_callers() -> None:
    allow(Money, encode=lambda money: 1 // 0, decode=lambda state: state)
    with pytest.raises(ZeroDivisionError):
        encode(Money(Decimal(1), "EUR"))


def test_encode_and_decode_may_use_the_codec() -> None:
    allow_money(name="money")
    inner = Money(Decimal(1), "EUR")

    @allow(encode=lambda box: encode(box.inside), decode=lambda stored: Box(decode(stored)))
    class Box:
        def __init__(self, inside: Any) -> None:
            self.inside = inside

    box = decode(encode([Box((inner, {"box": Box({1})})), "after"]))
    assert box[0].inside[0] == inner
    assert box[0].inside[1]["box"].inside == {1}
    assert box[1] == "after"


@pytest.mark.parametrize("decoder", [lambda state: state, lambda state: 1 // 0])
def test_a_decode_that_fails_is_a_value_error(decoder: Callable[[Any], Any]) -> None:
    allow(Money, encode=lambda money: money.currency, decode=decoder)
    with pytest.raises(ValueError, match=r"decode=|ZeroDivisionError"):
        decode(encode(Money(Decimal(1), "EUR")))


def test_a_class_that_is_not_allowed_here() -> None:
    allow_money()
    stored = encode([Money(Decimal(1), "EUR")])
    classes.BY_NAME.clear()
    with pytest.raises(NotStorable, match=r"Money.*state_manager\.allow"):
        decode(stored)


def test_a_subclass_of_an_allowed_class_is_not_allowed() -> None:
    allow(Cart)

    @dataclass
    class Bigger(Cart):
        more: int = 0

    assert "Bigger" in refusal(Bigger("alice"))


def test_allow_again_replaces_and_another_class_of_that_name_does_not() -> None:
    def reloaded() -> Any:
        @dataclass
        class Module:
            n: int

        return allow(Module)

    old = reloaded()
    stored = encode(old(1))
    new = reloaded()
    assert type(decode(stored)) is new
    assert "Module" in refusal(old(1))  # it would come back as the new class
    with pytest.raises(ValueError, match=r"is the name of .*Module: give .*Cart another name="):
        allow(Cart, name=next(iter(classes.BY_NAME)))
    assert type(decode(stored)) is new


def test_a_class_that_was_moved_is_found_by_its_old_name() -> None:
    stored = encode([allow(Cart)("alice")])
    allow(Cart, name="new")
    assert decode(stored) == decode(encode([Cart("alice")])) == [Cart("alice")]
    assert b"new" in encode(Cart("alice"))  # type: ignore[operator]


class Undecorated(Cart):
    pass


@dataclass
class OfDict(dict[str, int]):
    n: int = 0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: allow(Money), "encode= and decode="),
        (lambda: allow(Undecorated), "encode= and decode="),
        (lambda: allow(OfDict), "encode= and decode="),
        (lambda: allow(Money, encode=repr), "both"),
        (lambda: allow(Money, decode=repr), "both"),
        (lambda: allow(Cart("alice")), "takes a class"),  # type: ignore[call-overload]
        (lambda: allow(dict), "as it is"),
        (lambda: allow(Decimal), "as it is"),
        (lambda: allow(Cart, name=""), "not empty"),
        (lambda: allow(Cart, name=5), "is a str"),  # type: ignore[call-overload]
        (lambda: allow(Cart, name="\ud800"), "surrogates not allowed"),
    ],
)
def test_what_allow_refuses(call: Callable[[], object], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call()
    assert not classes.BY_NAME
