"""The process of a function that `assay check --python` judges.

harness/candidates/python_process.h says what is said.
"""

from __future__ import annotations

import collections
import os
import socket
import sys
from typing import Any, Dict, List, Optional, Tuple

from ._arguments import kept_default
from ._frameworks import NAN, Finding
from ._kernel import Kernel
from ._run import Run, case_of, ended
from ._library import DTYPE_OF_CODE, suite
from ._load import load
from ._tensors import Tensor, tensor_of
from .errors import InputError

_REMEMBERED = 64  # calls whose answers are compared with those of the second call


def _one_line(text: str) -> str:
    return " ".join(text.split())[:4000] or "?"


class Server:
    def __init__(self, kernel: Kernel, stream: Any):
        self.kernel, self.stream = kernel, stream
        self.declared = kernel.declared()
        self.first: "collections.OrderedDict[Any, Tuple[bytes, ...]]" = collections.OrderedDict()

    def say(self, line: str) -> None:
        self.stream.write(line.encode("utf-8", "replace") + b"\n")
        self.stream.flush()

    def introduce(self) -> None:
        features = self.kernel.features
        self.say("kernel")
        self.say("lse " + {True: "yes", False: "no", None: "unknown"}[self.kernel.lse])
        self.say(" ".join(features))
        self.say(f"arithmetic {len(self.declared)}")
        for dtype, text in self.declared.items():
            self.say(f"{dtype} {_one_line(text)}")
        self.say(f"conventions {self.kernel.conventions or ''}")
        self.say(f"remarks {len(self.kernel.left)}")
        for name, ours in self.kernel.left.items():
            self.say(_one_line(kept_default(name, ours)))

    def probe(self) -> None:
        """Calls the function on a case that it should do: its answer has an LSE or not."""
        lines = (
            suite("tiny", 1, self.kernel.features)["cases"]
            or suite("plain", 1, self.kernel.features)["cases"][:1]
        )
        if "attention" in self.kernel.features:
            # Many kernels take none of the small heads.
            dtypes = [f for f in self.kernel.features if f.startswith("dtype=")]
            lines = lines + [f"attention b=1 h=1 l=64 d={d} {t}" for d in (64, 128) for t in dtypes]
        for line in lines:
            self.kernel.judge(line, power=False)
            if self.kernel.lse is not None:
                break
        self.say("lse " + ("no" if self.kernel.lse is False else "yes"))

    def tensors(self, count: int) -> List[Tuple[str, str, Tuple[int, ...], int]]:
        found = []
        for _ in range(count):
            name, code, bits, size, *shape = self.stream.readline().decode().split()
            found.append(
                (name, DTYPE_OF_CODE[(int(code), int(bits))], tuple(map(int, shape)), int(size))
            )
        return found

    def call(self, operation: str, inputs: int, outputs: int) -> None:
        line = self.stream.readline().decode().rstrip("\n")
        described = self.tensors(inputs + outputs)
        given: Dict[str, Tensor] = {}
        contents = []
        for name, dtype, shape, size in described[:inputs]:
            content = self.stream.read(size)
            contents.append(content)
            given[name] = tensor_of(content, dtype, shape)
        wanted = {
            name: tensor_of(bytes(size), dtype, shape)
            for name, dtype, shape, size in described[inputs:]
        }
        try:
            said = None if self.kernel.supports is None else case_of(operation, line, given, wanted)
            why = self.kernel.why_not(said) if said else ""
            if why:
                return self.say("declined " + _one_line(why))
            answers = self.answer(
                operation, line, given, wanted, (operation, line, hash(tuple(contents)))
            )
        except Finding as e:
            return self.say("finding " + _one_line(str(e)))
        except NotImplementedError as e:
            return self.say(
                "declined " + _one_line(str(e) or "the function raised NotImplementedError")
            )
        except Exception as e:
            lost = self.kernel.tool.is_lost()
            self.say(("lost " if lost else "finding ") + _one_line(ended(e)))
            return None
        self.say("done")
        for content in answers:
            self.stream.write(content)
        self.stream.flush()

    def answer(
        self,
        operation: str,
        line: str,
        given: Dict[str, Tensor],
        wanted: Dict[str, Tensor],
        key: Any,
    ) -> Tuple[bytes, ...]:
        run = Run(self.kernel, {})
        first = self.first.pop(key, None)
        if first is not None:
            found = run._again(operation, line, given, wanted, first)
            if run.note:
                raise Finding(run.note)
        else:
            found = run._call(operation, line, given, wanted, NAN)
        now = tuple(found[name].packed() for name in wanted)
        if first is None:
            self.first[key] = now
            if len(self.first) > _REMEMBERED:
                self.first.popitem(last=False)
        return now

    def serve(self) -> int:
        self.introduce()
        while True:
            words = self.stream.readline().decode().split()
            if not words:
                return 0
            if words[0] == "probe":
                self.probe()
            else:
                self.call(words[1], int(words[2]), int(words[3]))


def main() -> int:
    # The socket is that of the judge alone: a function that writes to descriptors hits others.
    connection = socket.socket(fileno=os.dup(3))
    os.close(3)
    stream = connection.makefile("rwb")
    os.dup2(2, 1)
    try:
        kernel = load(sys.argv[1])
        kernel.features  # the framework and the device are tried here
        server = Server(kernel, stream)
    except InputError as e:
        stream.write(b"refused " + _one_line(str(e)).encode() + b"\n")
        stream.flush()
        return 2
    return server.serve()


if __name__ == "__main__":
    sys.exit(main())
