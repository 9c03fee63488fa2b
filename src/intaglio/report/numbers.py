"""Numbers as people read them, in English and in Russian. Pure."""

from __future__ import annotations

import math

_NARROW, _NBSP, _MINUS = "\u202f", "\u00a0", "\u2212"
_BIG = {"en": ((1e9, "billion"), (1e6, "million")), "ru": ((1e9, "млрд"), (1e6, "млн"))}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def significant(value: float, digits: int) -> str:
    """Plain decimal notation with at most `digits` significant ones, no trailing zeros."""
    if value == 0:
        return "0"
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    text = f"{round(value, digits - 1 - math.floor(math.log10(abs(value)))):.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class Numbers:
    """Formats numbers for one language; `None` gives `missing`, never a zero.

    Args:
        lang: "en" or "ru".
        missing: what stands where nothing was measured.
    """

    def __init__(self, lang: str, missing: str = "—") -> None:
        self.lang, self.missing = lang, missing

    def __call__(self, value: float | None, digits: int = 3) -> str:
        """1.2 million, 18,400, 3.14, 0.034, 2.1×10⁻⁶ (1,2 млн, 18 400, 3,14 ...)."""
        if value is None or not math.isfinite(value):
            return self.missing
        sign = _MINUS if value < 0 else ""
        size = abs(float(value))
        for bound, word in _BIG[self.lang]:
            if size >= bound * 0.9995:
                return f"{sign}{self._decimal(significant(size / bound, digits))}{_NBSP}{word}"
        if 0 < size < 1e-3:
            return sign + self._power(size)
        return sign + self._decimal(
            significant(size, max(digits, min(4, len(str(int(size)))) if size < 1e4 else digits))
        )

    def whole(self, count: int) -> str:
        """A count, to the last unit."""
        return self._decimal(str(count))

    def signed(self, value: float | None, digits: int = 3) -> str:
        """The same with a plus sign in front of what is above zero."""
        return ("+" if value and value > 0 else "") + self(value, digits)

    def signed_percent(self, share: float | None) -> str:
        """The same as `percent`, with its sign, however small: +41%, −3%, −<0.1%."""
        tiny_fall = share is not None and -0.001 < share < 0
        return ("+" if share and share > 0 else _MINUS if tiny_fall else "") + self.percent(share)

    def cosine(self, value: float | None) -> str:
        """Two decimals with the sign: +0.10, −0.03."""
        if value is None or not math.isfinite(value):
            return self.missing
        text = self._decimal(f"{abs(value):.2f}")
        return text if float(f"{value:.2f}") == 0 else (_MINUS if value < 0 else "+") + text

    def fine_percent(self, share: float | None) -> str:
        """Two significant digits however small: 0.034%."""
        if share is None or not math.isfinite(share):
            return self.missing
        return self(100 * share, 2) + (_NBSP if self.lang == "ru" else "") + "%"

    def percent(self, share: float | None) -> str:
        """41% or 41 %; one decimal under ten, <0.1% for what is nearly nothing."""
        if share is None or not math.isfinite(share):
            return self.missing
        value, gap = 100 * share, _NBSP if self.lang == "ru" else ""
        if 0 < abs(value) < 0.1:
            return f"<{self._decimal('0.1')}{gap}%"
        text = f"{abs(value):.1f}".removesuffix(".0") if abs(value) < 10 else f"{abs(value):.0f}"
        return (_MINUS if value < 0 else "") + self._decimal(text) + gap + "%"

    def plural(self, count: int) -> str:
        """The plural form of a count: one, few, many (Russian) or one, other (English)."""
        if self.lang == "en":
            return "one" if count == 1 else "other"
        tens, ones = count % 100, count % 10
        if ones == 1 and tens != 11:
            return "one"
        return "few" if 2 <= ones <= 4 and not 12 <= tens <= 14 else "many"

    @property
    def fraction_form(self) -> str:
        """The plural form after a fraction: 3.1 times, «3,1 раза»."""
        return "few" if self.lang == "ru" else "other"

    def _decimal(self, text: str) -> str:
        whole, _, rest = text.partition(".")
        if len(whole) > (4 if self.lang == "ru" else 3):
            whole = f"{int(whole):,}".replace(",", _NARROW if self.lang == "ru" else ",")
        return whole + (("," if self.lang == "ru" else ".") + rest if rest else "")

    def _power(self, size: float) -> str:
        digits, _, power = f"{size:.1e}".partition("e")  # rounded first: 9.96e-6 is 10^-5, not 10 times 10^-6
        exponent = int(power)
        mantissa = self._decimal(significant(float(digits), 2))
        power = f"10{str(exponent).translate(_SUPERSCRIPT)}"
        return power if mantissa == "1" else f"{mantissa}×{power}"
