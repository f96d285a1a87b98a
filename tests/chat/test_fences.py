"""Reading code in fences: a table of cases by hand."""

import pytest

from nemo_openmath.chat.fences import FenceReading, read_fences

GO_ON = FenceReading()
OPEN = FenceReading(open=True)


def runs(text: str, *, ended: bool = False, **others) -> str | None:
    call = read_fences(text, ended=ended, **others).call
    return None if call is None else call.code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("So:\n```python\nprint(1)\n```\n", "print(1)"),
        ("```py\nprint(1)\n```\n", "print(1)"),
        ("```Python3 title='a b' linenos\nprint(1)\n```\n", "print(1)"),
        ("``` python\nprint(1)\n``` \n", "print(1)"),
        ("```{python}\nprint(1)\n```\n", "print(1)"),
        ("```{.python .numberLines}\nprint(1)\n```\n", "print(1)"),
        ("~~~python\nprint(1)\n```\n2\n~~~\n", "print(1)\n```\n2"),
        ("````python\ns = '''\n```\n'''\n````\n", "s = '''\n```\n'''"),
        ("````python\ns = '''\n```output\n1\n```\n'''\n````\n", "s = '''\n```output\n1\n```\n'''"),
        ("```python\nprint(1)\n`````\n", "print(1)"),
        ("   ```python\n   if 1:\n       print(1)\n   ```\n", "if 1:\n    print(1)"),
        ("1. ```python\n   x = 1\n\n   x\n   ```\n", "x = 1\n\nx"),
        ("\t```python\n\tprint(1)\n\t```\n", "print(1)"),
        ("We run it: ```python\nprint(1)\n```\n", "print(1)"),
        ("```python\r\nprint(1)\r\nprint(2)\r\n```\r\n", "print(1)\nprint(2)"),
        ("```python\n\n\nprint('Ä\u2028 π')\n\n```\n", "print('Ä\u2028 π')"),
        ("```python\ndef f(x):\n    return x\n```\n", "def f(x):\n    return x"),
        ("```python\nx = \n```\n", "x = "),  # its error is the output
        ("```python\n1\n```\n```python\n2\n```\n", "1"),  # the first of several
        ("```\nfor i in range(3):\n    print(i)\n```\n", "for i in range(3):\n    print(i)"),
        ("```text\n1 + 1\n```\n```python\n2\n```\n", "2"),
        ("```python\nprint(1)```\n", "print(1)"),
        ("```\n\nSo:\n```python\n1\n```\n", "1"),  # an end of nothing, in front
        ("Then print the list:\n```\nprint([1])\n```\n", "print([1])"),
    ],
)
def test_a_program_that_closed_is_run(text: str, code: str) -> None:
    assert runs(text) == code
    call = read_fences(text, ended=True).call
    assert call is not None
    assert text[call.end - 1] == "\n"
    assert text[call.start :].lstrip(" \t").startswith(call.fence)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no fence",
        "a `code` span, ```another``` and ```python inline```\n",
        "```java\nclass A {}\n```\n",
        "```cpp\nprint(1)\n```\n",
        "```python\n```\n",
        "```python\n \n```\n",
        "```\n42\n```\n",
        "```\nx\n```\n",
        "```\n(1, 2)\n```\n",
        "```\nx^2 + y^2\n```\n",
        "```\nE = m * c**2\n```\n",
        "```\nAnswer: 5\n```\n",
        "```\nThe sum is 5.\n```\n",
        "```latex\nx = 5\n```\n",
        "````\n```python\nprint(1)\n```\n````\n",
        "```\n" + "(" * 5000 + "\n```\n",
        "```\n" + "-" * 15000 + "1\n```\n",
        "```\nprint('a\0')\n```\n",
    ],
)
def test_what_is_no_program_goes_on(text: str) -> None:
    assert read_fences(text, ended=True) == GO_ON


def test_names_of_earlier_programs_are_known() -> None:
    text = "```\ny = x + 1\nprint(y)\n```\n"
    assert runs(text) is None
    assert runs(text, ran=["x = 1"]) == "y = x + 1\nprint(y)"
    assert runs("```\nprint(sin(pi))\n```\n", ran=["from sympy import *"]) == "print(sin(pi))"


@pytest.mark.parametrize("text", ["```python\nprint(1)", "```python\nprint(1)\n", "```python\nprint(1)\n````x\n"])
def test_a_fence_that_stays_open_runs_nothing(text: str) -> None:
    assert read_fences(text, ended=False) == read_fences(text, ended=True) == OPEN


def test_a_closing_fence_counts_once_its_line_is_whole() -> None:
    text = "```python\nprint(1)\n```"
    assert read_fences(text, ended=False) == OPEN, "it may go on: ```` or ```output"
    assert runs(text, ended=True) == "print(1)"


@pytest.mark.parametrize(
    ("text", "kept", "code"),
    [
        ("So\n```output", "So\n", None),
        ("So\n  ~~~ Output\n5\n", "So\n  ", None),
        ("```python\nprint(1)\n```output", "```python\nprint(1)\n", "print(1)"),
        ("```python\nprint(1)\n\n```Output\n1\n```\n", "```python\nprint(1)\n\n", "print(1)"),
        ("```\nprint(1)\n```output", "```\nprint(1)\n", "print(1)"),
        ("I run print(1).\n\nOutput:\n```\n1\n```\n", "I run print(1).\n\nOutput:\n", None),
        ("**The output of this code is:**\n\n```text\n1\n```\n", "**The output of this code is:**\n\n", None),
        ("Result:\n```console\n1\n```\n", "Result:\n", None),
        ("```tool_output\n1\n```\n", "", None),
    ],
)
def test_an_output_that_the_model_makes_up(text: str, kept: str, code: str | None) -> None:
    reading = read_fences(text, ended=False)
    assert reading.invented == len(kept)
    assert (None if reading.call is None else reading.call.code) == code


def test_what_a_program_printed_may_be_quoted() -> None:
    text = "\nOutput:\n```\n1  2\n```\n"
    assert read_fences(text, ended=False, outputs=["1\n2\n"]) == GO_ON
    assert read_fences(text, ended=False, outputs=["3\n"]).invented is not None
    assert read_fences("\n```text\n7\n```\n", ended=False, outputs=["3\n"]).invented == 1, "right behind an output"
    assert read_fences("\nSo\n```text\n7\n```\n", ended=False, outputs=["3\n"]) == GO_ON
    assert read_fences("a `b` ```output``` and\n```text\n```output\n```\n", ended=True) == GO_ON, "it speaks of one"


def test_a_long_text_is_read_in_a_moment() -> None:
    """Fences of 200,000 characters, and as many fences."""
    for text in (
        "```python\n" + "x = 1\n" * 33_000 + "```\n",
        "```\n" * 50_000,
        "`" * 200_000,
        "a" * 200_000,
        "output:" * 30_000 + "\n```\n1\n```\n",
        "a " * 100_000 + "```",
        "```\n1 +\n```\n" * 20_000,
    ):
        read_fences(text, ended=True)
    assert runs("```text\n1\n```\n" * 15_000 + "```python\n1\n```\n") == "1"
