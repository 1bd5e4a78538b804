"""A language of expressions with the operator in front; `in` is the next number of the input.

+ in * in 2
"""

import sys


def evaluate(words: list[str], numbers: list[int]) -> int:
    """The value of the expression that begins here; its words are taken away."""
    word = words.pop(0)
    if word in ("+", "-", "*"):
        a, b = evaluate(words, numbers), evaluate(words, numbers)
        return a + b if word == "+" else a - b if word == "-" else a * b
    return numbers.pop(0) if word == "in" else int(word)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        program = file.read().split()
    given = [int(word) for word in sys.stdin.read().split()]
    while program:
        print(evaluate(program, given))
