//! Model files of a few kilobytes, written here so that each part of them can be damaged.

/// A GGUF file in parts, as its bytes will say them: sound until a test changes one.
#[derive(Clone)]
pub struct File {
    pub magic: [u8; 4],
    pub version: u32,
    /// How many keys and tensors the header promises; `None` is the truth.
    pub said_keys: Option<u64>,
    pub said_tensors: Option<u64>,
    /// Key, and its value with the number of its type before it.
    pub metadata: Vec<(Vec<u8>, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    /// Where tensor data begins and each tensor's data is put.
    pub alignment: usize,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: Vec<u8>,
    pub kind: u32,
    /// Columns first.
    pub dims: Vec<u64>,
    pub data: Vec<u8>,
    /// Where the header says the data is; `None` is the truth.
    pub said_offset: Option<u64>,
}

impl File {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.said_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.said_keys.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            string(&mut out, key);
            out.extend(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            tensor.write(data.len() as u64, &mut out);
            data.extend(&tensor.data);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }

    /// Gives `key` another value, or adds it.
    pub fn set(&mut self, key: &str, value: Vec<u8>) {
        self.remove(key);
        self.metadata.push((key.into(), value));
    }

    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(name, _)| name != key.as_bytes());
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name.as_bytes()).expect("a tensor of that name")
    }

    pub fn add(&mut self, name: &str, kind: u32, dims: &[u64], data: Vec<u8>) {
        let (name, dims) = (name.into(), dims.to_vec());
        self.tensors.push(Tensor { name, kind, dims, data, said_offset: None });
    }
}

impl Tensor {
    fn write(&self, offset: u64, out: &mut Vec<u8>) {
        string(out, &self.name);
        out.extend((self.dims.len() as u32).to_le_bytes());
        self.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(self.kind.to_le_bytes());
        out.extend(self.said_offset.unwrap_or(offset).to_le_bytes());
    }
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

/// A value: the number of its type, then its bytes.
pub fn value(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), bytes].concat()
}

pub fn number(n: u32) -> Vec<u8> {
    value(4, &n.to_le_bytes())
}

pub fn float(x: f32) -> Vec<u8> {
    value(6, &x.to_le_bytes())
}

pub fn double(x: f64) -> Vec<u8> {
    value(12, &x.to_le_bytes())
}

pub fn flag(flag: bool) -> Vec<u8> {
    value(7, &[u8::from(flag)])
}

pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    string(&mut bytes, text.as_bytes());
    value(8, &bytes)
}

/// An array that promises `len` elements of type `kind` and holds `bytes`.
pub fn array(kind: u32, len: u64, bytes: &[u8]) -> Vec<u8> {
    value(9, &[&kind.to_le_bytes()[..], &len.to_le_bytes(), bytes].concat())
}

pub fn texts(texts: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    texts.iter().for_each(|text| string(&mut bytes, text.as_bytes()));
    array(8, texts.len() as u64, &bytes)
}

pub fn integers(numbers: &[i32]) -> Vec<u8> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    array(5, numbers.len() as u64, &bytes)
}

/// How the weights of a tiny model are written.
#[derive(Clone, Copy, PartialEq)]
pub enum Weights {
    /// Plain F16 numbers: rows may be short, and the file with them.
    F16,
    /// Blocks of 128, the official layout.
    I2S,
}

/// Tokens of a tiny model: 256 bytes, two words, two special ones.
pub const VOCAB: usize = 260;

/// A sound model of one layer, `dim` wide.
pub fn model(dim: usize, weights: Weights) -> File {
    let mut file = File {
        magic: *b"GGUF",
        version: 3,
        said_keys: None,
        said_tensors: None,
        metadata: Vec::new(),
        tensors: Vec::new(),
        alignment: 32,
    };
    file.set("general.architecture", text("bitnet-b1.58"));
    for (key, n) in [
        ("context_length", 64),
        ("embedding_length", dim as u32),
        ("block_count", 1),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("feed_forward_length", dim as u32),
    ] {
        file.set(&format!("bitnet-b1.58.{key}"), number(n));
    }
    file.set("bitnet-b1.58.attention.layer_norm_rms_epsilon", float(1e-5));
    vocabulary(&mut file);
    tensors(&mut file, dim as u64, weights);
    file
}

/// The smallest model: about 10 KB.
pub fn small() -> File {
    model(8, Weights::F16)
}

/// The smallest model with blocks of 128 weights: about 95 KB, most of it the embedding.
pub fn blocks() -> File {
    model(128, Weights::I2S)
}

fn vocabulary(file: &mut File) {
    let mut tokens = byte_tokens();
    tokens.extend(["he", "the", "<|begin_of_text|>", "<|eot_id|>"].map(String::from));
    assert_eq!(tokens.len(), VOCAB);
    let mut kinds = vec![1; VOCAB];
    kinds[258..].fill(3);
    file.set("tokenizer.ggml.model", text("gpt2"));
    file.set("tokenizer.ggml.pre", text("llama-bpe"));
    file.set("tokenizer.ggml.tokens", texts(&tokens));
    file.set("tokenizer.ggml.token_type", integers(&kinds));
    file.set("tokenizer.ggml.merges", texts(&["h e".into(), "t he".into()]));
    file.set("tokenizer.ggml.bos_token_id", number(258));
    file.set("tokenizer.ggml.eos_token_id", number(259));
}

/// The single bytes as GPT-2 writes them: those that do not print are characters from U+0100 on.
pub fn byte_tokens() -> Vec<String> {
    let mut others = '\u{100}'..;
    let mut char_of = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => others.next().expect("there are 68 of them"),
    };
    (0..=255).map(|byte| char_of(byte).to_string()).collect()
}

fn tensors(file: &mut File, dim: u64, weights: Weights) {
    const F32: u32 = 0;
    const F16: u32 = 1;
    let ones = |len: u64| 1f32.to_le_bytes().repeat(len as usize);
    let embedding =
        (0..dim * VOCAB as u64).flat_map(|i| half::f16::from_f32((i % 17) as f32 / 16.0).to_le_bytes());
    file.add("token_embd.weight", F16, &[dim, VOCAB as u64], embedding.collect());
    file.add("output_norm.weight", F32, &[dim], ones(dim));
    for norm in ["attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm"] {
        file.add(&format!("blk.0.{norm}.weight"), F32, &[dim], ones(dim));
    }
    for (name, rows) in [
        ("attn_q", dim),
        ("attn_k", dim / 2),
        ("attn_v", dim / 2),
        ("attn_output", dim),
        ("ffn_gate", dim),
        ("ffn_up", dim),
        ("ffn_down", dim),
    ] {
        let (kind, data) = ternary(dim * rows, weights);
        file.add(&format!("blk.0.{name}.weight"), kind, &[dim, rows], data);
    }
}

/// Type and bytes of `len` ternary weights.
fn ternary(len: u64, weights: Weights) -> (u32, Vec<u8>) {
    match weights {
        Weights::F16 => {
            let numbers = (0..len).map(|i| half::f16::from_f32([-0.5, 0.0, 0.5][(i * 5 % 3) as usize]));
            (1, numbers.flat_map(half::f16::to_le_bytes).collect())
        }
        Weights::I2S => {
            let mut data = vec![0b00_01_10_01; len as usize / 4];
            data.extend(0.5f32.to_le_bytes());
            data.resize(data.len() + 28, 0);
            (36, data)
        }
    }
}
