#!/usr/bin/env python3
"""Makes a file with the shapes, vocabulary and quirks of Microsoft's ggml-model-i2_s.gguf, and random weights.

    tests/support/make-look-alike.py OUT.gguf [--april-2025 | --arch bitnet]

The official file of BitNet-b1.58-2B-4T has 1.19 GB; this one too, so it is made when asked and never committed.
Its quirks: no `tokenizer.ggml.pre`, a chat template the model was not trained with, and answers that end with
either of two tokens (128001, 128009) of which it names one. `--april-2025` makes the first release: architecture
`bitnet-25`, and a copy of the embedding as head. `--arch bitnet` is the name that llama.cpp knows: the file is then
for its benchmark, once converted to types that it knows too.

Vocabulary and merges come from the npm package `llama3-tokenizer-js` (fetched with `npm pack`); what is said about
the file is in the project-willamette documents and in issue 339 of ik_llama.cpp. Only Python's own library is used.
"""

import argparse
import base64
import pathlib
import random
import re
import struct
import subprocess
import tarfile
import tempfile

LAYERS, DIM, FFN, HEADS, KV_HEADS, HEAD_DIM = 30, 2560, 6912, 20, 5, 128
VOCAB, BOS, EOS = 128256, 128000, 128001
F32, F16, I2S = 0, 1, 36
UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5
NORMAL, CONTROL = 1, 3
# A prime, so that no two rows are alike.
NOISE = (1 << 20) + 7

# What the file says; the model was trained with `User: ...<|eot_id|>Assistant: `.
WRONG_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ 'Human: ' + message['content'] + '\\n\\nBITNETAssistant: ' + eos_token }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def vocabulary():
    """Tokens and merges of Llama 3, as byte-level texts."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", "llama3-tokenizer-js@1.2.0"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archive = next(pathlib.Path(folder).glob("*.tgz"))
        with tarfile.open(archive) as package:
            source = package.extractfile("package/src/data-converted.js").read().decode()
    data = dict(re.findall(r'const (\w+) = "([^"]*)"', source))
    tokens = base64.b64decode(data["llama_vocab_base64"]).decode().split("\n")
    bits = int.from_bytes(packed := base64.b64decode(data["llama_merges_binary"]), "big")
    text = f"{bits:0{len(packed) * 8}b}"
    # 17 bits an id, two ids a merge.
    ids = [int(text[at : at + 17], 2) for at in range(0, len(text) - 16, 17)]
    merges = [f"{tokens[left]} {tokens[right]}" for left, right in zip(ids[::2], ids[1::2])]
    return tokens + specials(), merges


def specials():
    named = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    unnamed = iter(range(256))
    return [f"<|{named[at]}|>" if at in named else f"<|reserved_special_token_{next(unnamed)}|>" for at in range(256)]


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(kind, value):
    if kind == STRING:
        return text(value)
    return struct.pack({UINT32: "<I", FLOAT32: "<f", BOOL: "<?", INT32: "<i"}[kind], value)


def entry(key, kind, value):
    return text(key) + struct.pack("<I", kind) + scalar(kind, value)


def array(key, kind, values):
    return text(key) + struct.pack("<IIQ", ARRAY, kind, len(values)) + b"".join(scalar(kind, value) for value in values)


def metadata(arch):
    tokens, merges = vocabulary()
    assert len(tokens) == VOCAB, len(tokens)
    kinds = [CONTROL if at >= BOS else NORMAL for at in range(VOCAB)]
    return [
        entry("general.architecture", STRING, arch),
        entry("general.name", STRING, "bitnet2b (random weights)"),
        entry(f"{arch}.vocab_size", UINT32, VOCAB),
        entry(f"{arch}.context_length", UINT32, 4096),
        entry(f"{arch}.embedding_length", UINT32, DIM),
        entry(f"{arch}.block_count", UINT32, LAYERS),
        entry(f"{arch}.feed_forward_length", UINT32, FFN),
        entry(f"{arch}.rope.dimension_count", UINT32, HEAD_DIM),
        entry(f"{arch}.attention.head_count", UINT32, HEADS),
        entry(f"{arch}.attention.head_count_kv", UINT32, KV_HEADS),
        entry(f"{arch}.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        entry(f"{arch}.rope.freq_base", FLOAT32, 500000.0),
        entry("tokenizer.ggml.add_bos_token", BOOL, True),
        entry("general.file_type", UINT32, 40),
        entry("tokenizer.ggml.model", STRING, "gpt2"),
        array("tokenizer.ggml.tokens", STRING, tokens),
        array("tokenizer.ggml.scores", FLOAT32, [0.0] * VOCAB),
        array("tokenizer.ggml.token_type", INT32, kinds),
        array("tokenizer.ggml.merges", STRING, merges),
        entry("tokenizer.ggml.bos_token_id", UINT32, BOS),
        entry("tokenizer.ggml.eos_token_id", UINT32, EOS),
        entry("tokenizer.ggml.padding_token_id", UINT32, EOS),
        entry("tokenizer.chat_template", STRING, WRONG_TEMPLATE),
        entry("general.quantization_version", UINT32, 2),
    ]


def tensors(with_head):
    """Name, type and dimensions, columns first."""
    yield "token_embd.weight", F16, (DIM, VOCAB)
    kv = KV_HEADS * HEAD_DIM
    for layer in range(LAYERS):
        parts = [
            ("attn_norm", F32, (DIM,)),
            ("ffn_down", I2S, (FFN, DIM)),
            ("ffn_sub_norm", F32, (FFN,)),
            ("ffn_gate", I2S, (DIM, FFN)),
            ("ffn_up", I2S, (DIM, FFN)),
            ("ffn_norm", F32, (DIM,)),
            ("attn_sub_norm", F32, (DIM,)),
            ("attn_k", I2S, (DIM, kv)),
            ("attn_output", I2S, (DIM, DIM)),
            ("attn_q", I2S, (DIM, DIM)),
            ("attn_v", I2S, (DIM, kv)),
        ]
        yield from ((f"blk.{layer}.{part}.weight", kind, dims) for part, kind, dims in parts)
    yield "output_norm.weight", F32, (DIM,)
    if with_head:
        yield "output.weight", F16, (DIM, VOCAB)


def size(kind, dims):
    elements = dims[0] * (dims[1] if len(dims) > 1 else 1)
    return {F32: 4 * elements, F16: 2 * elements, I2S: elements // 4 + 32}[kind]


def patterns():
    """Noise of each type. The codes are as often -1, 0, +1 as in the real model: 28.9, 42.2, 28.9 %."""
    draw = random.Random(158)
    quads = [a << 6 | b << 4 | c << 2 | d for a, b, c, d in zip(*[iter(draw.choices((0, 1, 2), (289, 422, 289), k=4 << 16))] * 4)]
    codes = bytes(draw.choices(quads, k=NOISE))
    numbers = struct.pack(f"<{NOISE}e", *(draw.uniform(-1 / 16, 1 / 16) for _ in range(NOISE)))
    return {F32: struct.pack("<f", 1.0), F16: numbers, I2S: codes}


def repeat(out, pattern, count):
    whole, rest = divmod(count, len(pattern))
    for _ in range(whole):
        out.write(pattern)
    out.write(pattern[:rest])


def write(out, arch, with_head):
    keys, planned = metadata(arch), list(tensors(with_head))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(planned), len(keys)) + b"".join(keys)
    offset = 0
    for name, kind, dims in planned:
        header += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        offset += -(-size(kind, dims) // 32) * 32
    out.write(header + bytes(-len(header) % 32))
    noise = patterns()
    for _, kind, dims in planned:
        count = size(kind, dims)
        if kind == I2S:
            repeat(out, noise[kind], count - 32)
            out.write(struct.pack("<f", (0.58 * dims[0]) ** -0.5) + bytes(28))
        else:
            repeat(out, noise[kind], count)
        out.write(bytes(-count % 32))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--april-2025", action="store_true")
    which.add_argument("--arch", default="bitnet-b1.58")
    args = parser.parse_args()
    partial = args.out.with_name(args.out.name + ".part")
    with partial.open("wb") as out:
        write(out, "bitnet-25" if args.april_2025 else args.arch, args.april_2025)
    partial.rename(args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
