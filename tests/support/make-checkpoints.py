#!/usr/bin/env python3
"""Makes the checkpoint folders of tests/data/checkpoints that transformers has a class for.

Run once, with torch 2.15 and transformers 5.23 on a CPU (and accelerate, sentencepiece); its output is committed. Each folder is written as
the published models of its family are, read back by transformers in float32, and run on one prompt: those
logits are the right answer. Nothing of it is made by bitnetd.

    TORCHDYNAMO_DISABLE=1 python3 make-checkpoints.py OUT
"""

import io
import json
import pathlib
import sys

import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.bitnet import AutoBitLinear, pack_weights

TEXT = [
    "turn on the kitchen lights", "set the heating in the bedroom to twenty degrees", "is the garage door closed",
    "what is the temperature in the living room", "turn off all the lights upstairs", "dim the lamp to ten percent",
]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def llama3_tokenizer(specials):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(__import__("tokenizers").Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=296, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    begin = specials[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))])
    return tokenizer


def sentence_piece_tokenizer():
    """As the Llama 2 vocabulary is written: bytes for what has no token, U+2581 for a space."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    # The bytes are tokens like any other there, not special ones.
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][:3]
    made["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    made["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    return json.dumps(made, ensure_ascii=False)


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if "norm" in name else noise * (0.05 if "proj" in name else 0.5)


def packed(state, dtype):
    """Codes four a byte, and the factor that made them: transformers divides by it."""
    out = {}
    for name, tensor in state.items():
        if not any(part in name for part in MATRICES):
            out[name] = tensor.to(dtype)
            continue
        factor = (1.0 / tensor.abs().mean().clamp(min=1e-5)).to(dtype)
        codes = (tensor * factor.float()).round().clamp(-1, 1)
        out[name] = pack_weights(codes.to(torch.int8)).contiguous()
        out[name.replace(".weight", ".weight_scale")] = factor.reshape(1)
    return out


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def finish(folder, tokenizer, tokenizer_config, logits, tokens):
    (folder / "tokenizer.json").write_text(tokenizer if isinstance(tokenizer, str) else tokenizer.to_str())
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    (folder / "case0.logits.f32").write_bytes(logits.float().numpy().tobytes())
    write_json(folder / "expected.json",
               {"tokens": tokens, "logits_file": "case0.logits.f32", "logits_shape": list(logits.shape)})
    for file in folder.iterdir():
        file.chmod(0o644)
    print(folder.name, sum(f.stat().st_size for f in folder.iterdir()), "bytes, largest logit", logits.abs().max().item())


def run(folder, tokens):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "BitLinear", "transformers did not see a BitNet"
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def llama(out, name, seed, shards, **numbers):
    """As HF1BitLLM/Llama3-8B-1.58-100B-tokens and tiiuae/Falcon3-*-1.58bit are published."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = llama3_tokenizer(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    vocab = tokenizer.get_vocab_size()
    begin, end = (tokenizer.token_to_id(text) for text in ("<|begin_of_text|>", "<|end_of_text|>"))
    config = LlamaConfig(vocab_size=vocab, bos_token_id=begin, eos_token_id=end, rms_norm_eps=1e-5,
                         max_position_embeddings=512, hidden_act="silu", **numbers)
    model = LlamaForCausalLM(config)
    randomise(model, seed)
    state = packed({key: value for key, value in model.state_dict().items()
                    if key != "lm_head.weight" or not config.tie_word_embeddings}, torch.bfloat16)
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names, index = sorted(state), {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = names[shard::shards]
            save_file({key: state[key] for key in part}, folder / file, metadata={"format": "pt"})
            index.update({key: file for key in part})
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    published = numbers | {
        "vocab_size": vocab, "bos_token_id": begin, "eos_token_id": end, "model_type": "llama", "hidden_act": "silu",
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": None}}
    write_json(folder / "config.json", published)
    tokens = [begin, *tokenizer.encode(TEXT[0], add_special_tokens=False).ids]
    finish(folder, tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
           run(folder, tokens), tokens)


def bitnet_large(out, name, seed):
    """As 1bitLLM/bitnet_b1_58-large and -3B are published: plain numbers that become ternary at run time,
    sub-norms under other names, heads of 100, matrices that fit no block of 128. transformers' BitNet is the
    same network once its activation is SiLU."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = sentence_piece_tokenizer()
    vocab = len(json.loads(tokenizer)["model"]["vocab"])
    numbers = {"hidden_size": 200, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
               "num_key_value_heads": 1, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu",
               "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}
    # Two rows beyond the vocabulary, as the published models have.
    model = BitNetForCausalLM(BitNetConfig(vocab_size=vocab + 2, rope_theta=10000.0, **numbers))
    randomise(model, seed)
    # The numbers as they will be read: in half precision. Not model.half(): that rounds the rotation too.
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    for parent in list(model.modules()):
        for child, linear in list(parent.named_children()):
            if child in MATRICES:
                made = AutoBitLinear(linear.in_features, linear.out_features, bias=False, online_quant=True)
                made.weight.data = linear.weight.data
                setattr(parent, child, made)
    names = {"self_attn.attn_sub_norm": "self_attn.inner_attn_ln", "mlp.ffn_sub_norm": "mlp.ffn_layernorm"}
    state = {}
    for key, value in model.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        if key != "lm_head.weight":
            state[key] = value.half().contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", numbers | {
        "vocab_size": vocab + 2, "rope_theta": 10000.0, "rope_scaling": None, "model_type": "llama",
        "architectures": ["BitnetForCausalLM"], "weight_bits": 1, "input_bits": 8, "torch_dtype": "float16"})
    tokens = [1, *Tokenizer.from_str(tokenizer).encode(TEXT[1], add_special_tokens=False).ids]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    finish(folder, tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True},
           logits, tokens)


def sentence_piece_model(out):
    """A tokenizer.model without tokenizer.json, as 1bitLLM publishes its vocabulary (which is Llama 2's), and ids by
    the sentencepiece package itself."""
    folder = out / "sentence-piece"
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 3), model_writer=model, model_type="bpe", vocab_size=330, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, character_coverage=1.0,
        pad_id=-1)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    texts = [*TEXT, "  two  spaces", "42 degrees", "unknown: \u00e9\U0001f600 Z", "a\nb\tc"]
    write_json(folder / "ids.json", {text: processor.encode(text) for text in texts})


def main():
    out = pathlib.Path(sys.argv[1])
    sentence_piece_model(out)
    llama(out, "llama-tiny-packed", 3, 1, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
          num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, rope_theta=500000.0,
          rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 64})
    llama(out, "falcon-tiny-sharded", 4, 3, hidden_size=128, intermediate_size=384, num_hidden_layers=1,
          num_attention_heads=4, num_key_value_heads=1, head_dim=64, tie_word_embeddings=False, rope_theta=1000042.0)
    bitnet_large(out, "bitnet-tiny-f16", 5)


main()
