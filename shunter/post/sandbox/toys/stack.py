"""A stack language: numbers are pushed; + - * dup swap drop pop and print; read pushes a number of the input.

read read + print
"""

import sys


def run(words: list[str], numbers: list[int]) -> list[int]:
    """What a program prints. Raises ValueError and IndexError for what has no meaning."""
    stack: list[int] = []
    printed: list[int] = []
    for word in words:
        if word == "read":
            stack.append(numbers.pop(0))
        elif word == "print":
            printed.append(stack.pop())
        elif word == "dup":
            stack.append(stack[-1])
        elif word == "drop":
            stack.pop()
        elif word == "swap":
            stack[-2:] = stack[:-3:-1]
        elif word in ("+", "-", "*"):
            b, a = stack.pop(), stack.pop()
            stack.append(a + b if word == "+" else a - b if word == "-" else a * b)
        else:
            stack.append(int(word))
    return printed


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        program = file.read().split()
    for number in run(program, [int(word) for word in sys.stdin.read().split()]):
        print(number)
