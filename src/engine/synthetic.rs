//! Models with random weights in the shapes of well-known models, made in memory: they show how fast a device runs
//! a model before gigabytes are downloaded.
//!
//! Each is a GGUF image that is read like a file. Their output is noise.

use super::error::LoadError;
use super::gguf::{FileMap, GgufDraft, NewValue};
use super::quant::{BLOCK, TensorType};
use crate::random::Lcg;
use half::f16;
use std::io::Write;

/// The shape of a well-known model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SyntheticShape {
    /// Its name on the command line.
    pub name: &'static str,
    /// The model that has it.
    pub model: &'static str,
    arch: &'static str,
    layers: usize,
    dim: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    rope_base: f32,
    /// Whether the embedding is also the head.
    tied: bool,
}

/// All shapes. Sources: `config.json` of each model; that of Falcon-E-1B is derived from its published tensor
/// counts and size.
#[rustfmt::skip] // a table is read by its columns
pub const ALL: [SyntheticShape; 5] = [
    SyntheticShape { name: "b158-2b4t", model: "BitNet-b1.58-2B-4T", arch: "bitnet-b1.58", layers: 30, dim: 2560, heads: 20, kv_heads: 5, head_dim: 128, ffn: 6912, vocab: 128_256, context: 4096, rope_base: 500_000.0, tied: true },
    SyntheticShape { name: "large", model: "bitnet_b1_58-large", arch: "bitnet", layers: 24, dim: 1536, heads: 16, kv_heads: 16, head_dim: 96, ffn: 4096, vocab: 32_002, context: 2048, rope_base: 10_000.0, tied: true },
    SyntheticShape { name: "3b", model: "bitnet_b1_58-3B", arch: "bitnet", layers: 26, dim: 3200, heads: 32, kv_heads: 32, head_dim: 100, ffn: 8640, vocab: 32_002, context: 2048, rope_base: 10_000.0, tied: true },
    SyntheticShape { name: "falcon-e-1b", model: "Falcon-E-1B", arch: "llama", layers: 24, dim: 2048, heads: 16, kv_heads: 2, head_dim: 128, ffn: 8192, vocab: 32_768, context: 32_768, rope_base: 1_000_042.0, tied: false },
    SyntheticShape { name: "llama3-8b", model: "Llama3-8B-1.58", arch: "llama", layers: 32, dim: 4096, heads: 32, kv_heads: 8, head_dim: 128, ffn: 14_336, vocab: 128_256, context: 8192, rope_base: 500_000.0, tied: false },
];

/// Bytes of noise; longer tensors repeat them. A prime, so that the rows of one matrix begin at different places of
/// it.
const NOISE: usize = (1 << 20) + 7;

impl SyntheticShape {
    /// The shape with that name.
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|known| known.name == name)
    }

    /// The same with fewer layers and tokens, where the whole is too large.
    pub fn truncated(self, layers: usize, vocab: usize) -> Self {
        SyntheticShape { layers: self.layers.min(layers), vocab: self.vocab.min(vocab), ..self }
    }

    /// The size of its image, in bytes.
    pub fn bytes(&self) -> Result<u64, LoadError> {
        Ok(self.draft()?.file_bytes())
    }

    fn draft(&self) -> Result<GgufDraft, LoadError> {
        let mut draft = GgufDraft::default();
        self.set_metadata(&mut draft);
        self.plan_tensors(&mut draft)?;
        Ok(draft)
    }

    /// The model as the bytes of a file.
    pub fn build(&self) -> Result<FileMap, LoadError> {
        let draft = self.draft()?;
        let size = usize::try_from(draft.file_bytes()).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(|_| {
            let message = format!("takes {} MiB of memory; choose a smaller one", size >> 20);
            LoadError::new(format!("shape {}", self.name), message)
        })?;
        self.fill(&draft, &mut bytes).expect("writing to memory as planned");
        Ok(FileMap::from(bytes))
    }

    fn set_metadata(&self, draft: &mut GgufDraft) {
        draft.set("general.architecture", self.arch);
        draft.set("general.name", format!("{} (random weights)", self.model).as_str());
        let mut set = |key: &str, value: NewValue| draft.set(&format!("{}.{key}", self.arch), value);
        let number = |n: usize| NewValue::U32(n as u32);
        set("block_count", number(self.layers));
        set("context_length", number(self.context));
        set("embedding_length", number(self.dim));
        set("feed_forward_length", number(self.ffn));
        set("attention.head_count", number(self.heads));
        set("attention.head_count_kv", number(self.kv_heads));
        set("attention.key_length", number(self.head_dim));
        set("rope.dimension_count", number(self.head_dim));
        set("rope.freq_base", NewValue::F32(self.rope_base));
        set("attention.layer_norm_rms_epsilon", NewValue::F32(1e-5));
        draft.set("tokenizer.ggml.model", "gpt2");
        draft.set("tokenizer.ggml.pre", "llama-bpe");
        draft.set("tokenizer.ggml.tokens", NewValue::Texts(self.tokens()));
        draft.set("tokenizer.ggml.merges", NewValue::Texts(Vec::new()));
    }

    /// A token for each byte, as a byte-level vocabulary writes it, and names for the rest.
    fn tokens(&self) -> Vec<String> {
        let printable = |c: &char| matches!(c, '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{ff}');
        let own = ('\0'..='\u{ff}').filter(printable);
        let others = '\u{100}'..'\u{144}';
        let bytes = own.chain(others).map(String::from);
        bytes.chain((256..self.vocab).map(|id| format!("[{id}]"))).collect()
    }

    fn plan_tensors(&self, draft: &mut GgufDraft) -> Result<(), LoadError> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let sub_norms = self.arch != "llama";
        draft.tensor("token_embd.weight", TensorType::F16, &[self.dim, self.vocab])?;
        for layer in 0..self.layers {
            let mut add = |part: &str, kind, dims: &[usize]| {
                draft.tensor(&format!("blk.{layer}.{part}.weight"), kind, dims)
            };
            add("attn_norm", TensorType::F32, &[self.dim])?;
            add("ffn_norm", TensorType::F32, &[self.dim])?;
            if sub_norms {
                add("attn_sub_norm", TensorType::F32, &[q])?;
                add("ffn_sub_norm", TensorType::F32, &[self.ffn])?;
            }
            let matrices = [
                ("attn_q", self.dim, q),
                ("attn_k", self.dim, kv),
                ("attn_v", self.dim, kv),
                ("attn_output", q, self.dim),
                ("ffn_gate", self.dim, self.ffn),
                ("ffn_up", self.dim, self.ffn),
                ("ffn_down", self.ffn, self.dim),
            ];
            for (part, cols, rows) in matrices {
                add(part, ternary(cols), &[cols, rows])?;
            }
        }
        draft.tensor("output_norm.weight", TensorType::F32, &[self.dim])?;
        if !self.tied {
            draft.tensor("output.weight", TensorType::F16, &[self.dim, self.vocab])?;
        }
        Ok(())
    }

    fn fill(&self, draft: &GgufDraft, bytes: &mut Vec<u8>) -> std::io::Result<()> {
        let mut noise = Noise(Lcg::new(158));
        let codes = noise.codes();
        let numbers = noise.numbers();
        let mut writer = draft.begin(bytes)?;
        for tensor in draft.tensors() {
            let cols = tensor.dims[0];
            // With this scale the output of a random matrix has about the magnitude of its input.
            let scale: f32 = 1.0 / (0.58 * cols as f32).sqrt();
            match tensor.kind {
                TensorType::I2S => {
                    repeat(&mut writer, &codes, tensor.bytes as usize - 32)?;
                    writer.write_all(&scale.to_le_bytes())?;
                    writer.write_all(&[0; 28])?;
                }
                TensorType::Q4_0 => repeat(&mut writer, &noise.blocks(scale), tensor.bytes as usize)?,
                TensorType::F16 => repeat(&mut writer, &numbers, tensor.bytes as usize)?,
                _ => repeat(&mut writer, &1.0f32.to_le_bytes(), tensor.bytes as usize)?,
            }
            writer.end_tensor()?;
        }
        writer.finish().map(drop)
    }
}

/// I2_S where rows are whole blocks; otherwise Q4_0 with ternary numbers, as llama.cpp's quantiser leaves such
/// rows.
fn ternary(cols: usize) -> TensorType {
    if cols.is_multiple_of(BLOCK) { TensorType::I2S } else { TensorType::Q4_0 }
}

/// Writes `pattern` repeatedly, `len` bytes in all.
fn repeat(out: &mut impl Write, pattern: &[u8], len: usize) -> std::io::Result<()> {
    let mut left = len;
    while left > 0 {
        let part = left.min(pattern.len());
        out.write_all(&pattern[..part])?;
        left -= part;
    }
    Ok(())
}

/// Random weights.
struct Noise(Lcg);

impl Noise {
    /// A ternary weight, with -1, 0 and +1 as frequent as in BitNet-b1.58-2B-4T: 28.9, 42.2 and 28.9 %.
    fn code(byte: u8) -> u8 {
        match byte {
            0..74 => 0,
            74..182 => 1,
            182.. => 2,
        }
    }

    fn codes(&mut self) -> Vec<u8> {
        let byte = |word: u32| word.to_le_bytes().iter().fold(0, |packed, b| packed << 2 | Self::code(*b));
        (0..NOISE).map(|_| byte(self.0.next_u32())).collect()
    }

    /// Half-precision numbers of either sign, up to 1/16.
    fn numbers(&mut self) -> Vec<u8> {
        let number = |word: u32| f16::from_f32((word as f32 / u32::MAX as f32 - 0.5) / 8.0);
        (0..NOISE).flat_map(|_| number(self.0.next_u32()).to_le_bytes()).collect()
    }

    /// Q4_0 blocks of ternary weights: code 0 is -8 steps, 8 is zero, 15 the nearest to 8 steps up.
    fn blocks(&mut self, scale: f32) -> Vec<u8> {
        let nibble = |byte: u8| [0, 8, 15][usize::from(Self::code(byte))];
        let step = f16::from_f32(scale / 8.0).to_le_bytes();
        let mut blocks = Vec::new();
        while blocks.len() < NOISE {
            blocks.extend(step);
            // The weight that set the block's scale always has code 0.
            blocks.push(nibble(self.0.next_u32() as u8) << 4);
            blocks.extend((1..16).map(|_| {
                let [low, high, ..] = self.0.next_u32().to_le_bytes();
                nibble(high) << 4 | nibble(low)
            }));
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn tokens_of_all_bytes_come_first_and_none_twice() {
        let tokens = ALL[0].tokens();
        assert_eq!(tokens.len(), ALL[0].vocab);
        let mut sorted: Vec<&String> = tokens.iter().collect();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), tokens.len());
    }
}
