"""The command ``lpd-ext``: pictures from class labels, checkpoints, what runs on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from lpd_ext import cpu_variant
from lpd_ext.convert import convert
from lpd_ext.decode_request import CFG_SCHEDULES
from lpd_ext.files import write_together
from lpd_ext.info import info, versions
from lpd_ext.orders import ORDERS, read_orders
from lpd_ext.pipeline import LPDOutput, LPDPipeline
from lpd_ext.render import enlarge, gif_bytes, grid_image, png_bytes, reveal

_FAILED, _BAD_USAGE, _INTERRUPTED = 1, 2, 130
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PICTURE, _FOLDER = "lpd.png", "lpd-images"
_LEAST_WIDTH = 128  # pixels of an image in the grid, unless --zoom says otherwise
_MOST_COLUMNS = 20


class _UsageError(Exception):
    """The command line asks for something that cannot be."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : Sequence[str], optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit code: 0, 2 for a command line that cannot be followed, 1 for any other failure. Errors
        are one line on stderr.
    """
    commands = {"generate": _generate, "convert": _convert, "info": _info}
    try:
        args = _parser().parse_args(argv)
        return commands[args.command](args)
    except _UsageError as error:
        return _complain(error, _BAD_USAGE)
    except KeyboardInterrupt:
        return _complain("interrupted", _INTERRUPTED)
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError, ImportError) as error:
        return _complain(error, _FAILED)


def _complain(error: BaseException | str, code: int) -> int:
    lines = str(error).splitlines() or [type(error).__name__]
    print(f"lpd-ext: error: {lines[0]}", file=sys.stderr)
    return code


def _parser() -> _Parser:
    parser = _Parser("lpd-ext", description="Locality-aware Parallel Decoding of images.")
    parser.add_argument("--version", action="version", version=f"lpd_ext {versions()['lpd_ext']}")
    commands = parser.add_subparsers(dest="command", required=True)

    p = commands.add_parser(
        "generate",
        help="generate images of given classes",
        description="Generate images. Options left out take the model's recommended settings.",
    )
    add = p.add_argument_group("what").add_argument
    add(
        "--model",
        default="fashion-mnist",
        help="a packaged model, a folder, a checkpoint, a name on the hub [%(default)s]",
    )
    add("--vq", metavar="FILE", help="the tokenizer of a checkpoint, also by its name on the hub")
    add(
        "--classes",
        nargs="+",
        default=["all"],
        metavar="CLASS",
        help='names or numbers, separated by spaces or commas; "all"; "unconditional" [all]',
    )
    add("-n", "--per-class", type=_positive, default=1, metavar="N", help="images a class [1]")
    add("--seed", type=int, default=0, help="of the first image; each next one has 1 more [0]")

    add = p.add_argument_group("how").add_argument
    add("--steps", type=int, help="forward passes an image")
    order = p.add_mutually_exclusive_group()
    order.add_argument("--order", choices=tuple(ORDERS), help="which positions are decoded when")
    order.add_argument(
        "--order-file", type=Path, metavar="FILE", help="a JSON list of orders, one an image"
    )
    add("--cfg", type=float, metavar="SCALE", help="classifier-free guidance, 1 = off")
    add("--cfg-schedule", choices=CFG_SCHEDULES)
    add("--temperature", type=float, help="0 = always the most likely token")
    add("--top-k", type=int, metavar="K", help="draw among the K most likely tokens, 0 = all")
    add("--top-p", type=float, metavar="P", help="draw among the most likely mass P, 1 = all")

    add = p.add_argument_group("where").add_argument
    add("--device", default="cpu", help="[cpu]")
    add("--dtype", choices=tuple(_DTYPES), default="float32", help="[float32]")
    add("--batch-size", type=_positive, metavar="N", help="images decoded together [all, max 64]")
    add("--threads", type=_positive, metavar="N", help="CPU threads")

    add = p.add_argument_group("output").add_argument
    add(
        "-o",
        "--output",
        type=Path,
        metavar="PATH",
        help=f"a .png [{_PICTURE}], or with --separate a folder [{_FOLDER}]",
    )
    add("--separate", action="store_true", help="write one file an image, NAME-SEED.png")
    add("--zoom", type=_positive, metavar="N", help="enlargement [grid: to 128 pixels; files: 1]")
    add("--gif", type=Path, metavar="PATH", help="also animate the steps")
    add("--tokens", type=Path, metavar="PATH", help="also save the token ids, .npy or .npz")

    p = commands.add_parser(
        "convert",
        help="a checkpoint to safetensors with its configuration",
        description="Convert a .pth, .pt or .safetensors file; every tensor is compared.",
    )
    p.add_argument("source", metavar="SOURCE", help="a checkpoint, or its name on the hub")
    p.add_argument(
        "destination", type=Path, metavar="DESTINATION", help="a .safetensors; a folder with --vq"
    )
    p.add_argument("--vq", metavar="FILE", help="the tokenizer, to make a folder for generate")
    p.add_argument("--dtype", choices=tuple(_DTYPES), help="of the weights [as they are]")

    p = commands.add_parser("info", help="versions, build, devices and the state of the kernels")
    p.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return value


def _generate(args: argparse.Namespace) -> int:
    _check_files(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        pipeline = LPDPipeline.from_pretrained(args.model, vq=args.vq)
    except FileNotFoundError as error:
        raise _UsageError(error) from error
    start = time.perf_counter()
    try:
        output = _run(pipeline, args)
    except (ValueError, TypeError) as error:  # arguments are checked before anything is decoded
        raise _UsageError(error) from error
    seconds = time.perf_counter() - start

    files = _encode(pipeline, output, args)
    folder_is_new = args.separate and not args.output.exists()
    if folder_is_new:
        args.output.mkdir()
    try:
        write_together(files)
    except BaseException:
        if folder_is_new:
            with suppress(OSError):  # somebody else may have put a file there
                args.output.rmdir()
        raise
    written = [str(path) for path in (args.output, args.gif, args.tokens) if path is not None]
    print(f"wrote {', '.join(written)} (images: {len(output.images)}, {seconds:.1f} s)")
    return 0


def _run(pipeline: LPDPipeline, args: argparse.Namespace) -> LPDOutput:
    pipeline.to(args.device, _DTYPES[args.dtype])
    labels = _class_labels(pipeline, args.classes) * args.per_class
    order = args.order
    if args.order_file is not None:
        order = read_orders(args.order_file, pipeline.model.config.grid, len(labels))
    with tqdm(desc="decode", unit="step", disable=None) as bar:  # silent where stderr is no tty

        def advance(done: int, total: int, tokens: Tensor) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return pipeline(
            labels,
            num_steps=args.steps,
            order=order,
            seed=args.seed,
            cfg_scale=args.cfg,
            cfg_schedule=args.cfg_schedule,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            batch_size=args.batch_size,
            progress=advance,
        )


def _class_labels(pipeline: LPDPipeline, words: Sequence[str]) -> list[int]:
    labels: list[int] = []
    for entry in (part.strip() for word in words for part in word.split(",")):
        if entry == "all":
            labels += range(pipeline.classes.num_classes)
        elif re.fullmatch(r"-?\d+", entry):
            labels.append(pipeline.classes.label(int(entry)))
        elif entry:
            labels.append(pipeline.classes.label(entry))
    return labels


def _check_files(args: argparse.Namespace) -> None:
    """Find out before the work whether its results can be written, and its orders read."""
    if args.output is None:
        args.output = Path(_FOLDER if args.separate else _PICTURE)
    if args.separate:
        if args.output.exists() and not args.output.is_dir():
            raise _UsageError(f"--output {args.output}: expected a folder (--separate), got a file")
        _check_folder("--output", args.output, args.output.exists())
    else:
        _check_file("--output", args.output, (".png",))
    if args.gif is not None:
        _check_file("--gif", args.gif, (".gif",))
    if args.tokens is not None:
        _check_file("--tokens", args.tokens, (".npy", ".npz"))
    if args.order_file is not None and not args.order_file.is_file():
        raise _UsageError(f"--order-file {args.order_file}: no such file")


def _check_file(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes:
        wanted = " or ".join(suffixes)
        raise _UsageError(f"{option} {path}: expected a file that ends in {wanted}")
    if path.is_dir():
        raise _UsageError(f"{option} {path}: expected a file, got a folder")
    _check_folder(option, path, exists=False)


def _check_folder(option: str, path: Path, exists: bool) -> None:
    folder = path if exists else path.parent
    if not folder.is_dir():
        raise _UsageError(f"{option} {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _UsageError(f"{option} {path}: the folder {folder} cannot be written")


def _encode(
    pipeline: LPDPipeline, output: LPDOutput, args: argparse.Namespace
) -> dict[Path, bytes]:
    """Return every file to write, whole, so that a failure here leaves none."""
    names = [pipeline.classes.name(label) for label in output.class_labels]
    described = [
        {"class": name, "label": label, "seed": seed}
        for name, label, seed in zip(names, output.class_labels, output.seeds, strict=True)
    ]
    common = {
        "model": args.model,
        **({} if args.vq is None else {"vq": args.vq}),
        **({} if args.order_file is None else {"order_file": str(args.order_file)}),
        "settings": dataclasses.asdict(output.settings),
        "device": args.device,
        "dtype": args.dtype,
        "cpu_variant": cpu_variant.cpu_variant(),
        "threads": torch.get_num_threads(),
        "batch_size": output.batch_size,
        "versions": versions(),
    }
    software = f"lpd_ext {versions()['lpd_ext']} (torch {versions()['torch']})"
    columns = len(output.images) // args.per_class
    if not 1 < columns <= _MOST_COLUMNS:
        columns = min(_MOST_COLUMNS, round(len(output.images) ** 0.5))
    zoom = args.zoom or max(1, _LEAST_WIDTH // output.images[0].width)

    files = {}
    if args.separate:
        for image, name, about in zip(output.images, names, described, strict=True):
            path = args.output / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}-{about['seed']}.png"
            image = enlarge(image, args.zoom or 1)
            files[path] = png_bytes(image, software, common | {"images": [about]})
    else:
        picture = grid_image(output.images, names, columns, zoom)
        about_grid = {"images": described, "columns": columns}
        files[args.output] = png_bytes(picture, software, common | about_grid)
    if args.gif is not None:
        frames = reveal(output.images, output.steps, pipeline.model.config.grid)
        files[args.gif] = gif_bytes([grid_image(f, names, columns, zoom) for f in frames])
    if args.tokens is not None:
        files[args.tokens] = _token_bytes(output, args.tokens.suffix.lower())
    return files


def _token_bytes(output: LPDOutput, suffix: str) -> bytes:
    buffer = io.BytesIO()
    tokens = output.tokens.numpy()
    if suffix == ".npy":
        np.save(buffer, tokens)
    else:
        labels, seeds = np.array(output.class_labels), np.array(output.seeds)
        np.savez_compressed(buffer, tokens=tokens, class_labels=labels, seeds=seeds)
    return buffer.getvalue()


def _convert(args: argparse.Namespace) -> int:
    dtype = None if args.dtype is None else _DTYPES[args.dtype]
    try:
        done = convert(args.source, args.destination, vq=args.vq, dtype=dtype)
    except FileNotFoundError as error:
        raise _UsageError(error) from error
    for conversion in done:
        print(f"sha256 {conversion.source_sha256} {conversion.source}")
    tensors = sum(len(conversion.weights) for conversion in done)
    print(f"wrote {args.destination} (tensors, each compared with its source: {tensors})")
    return 0


def _info(args: argparse.Namespace) -> int:
    report = info()
    kernels = report["kernels"]
    states = [by_device for by_op in kernels.values() for by_device in by_op.values()]
    failed = any(entry["state"] == "failed" for entry in states)
    if args.json:
        print(json.dumps(report, indent=2))
        return _FAILED if failed else 0

    print(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    build = report["build"]
    print(f"build: {build['compiler']}, torch {build['torch']}, CUDA {build['cuda'] or 'none'}")
    print(f"       {build['flags']}")
    for device in report["devices"]:
        driver = f", driver {device['driver']}" if "driver" in device else ""
        print(f"{device['device']}: {device['name']}, {device['capability']}{driver}")
    variants = report["cpu_variants"]
    print(f"CPU kernels: {variants['in use']} (of {', '.join(variants['available'])})")
    print("kernels, compared with their plain-torch reference (on the CPU just now):")
    for op, by_device in kernels.items():
        for device_name, entry in by_device.items():
            when = ""
            if "checked" in entry:
                when = f" ({entry['checked']}, driver {entry['driver'] or 'unknown'})"
            print(f"  {op:16} {device_name:6} {entry['state']:10} {entry['detail']}{when}")
    print("CUDA kernels of this version:")
    for op, record in report["cuda_kernels"].items():
        print(f"  {op:16} {record}")
    return _FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
