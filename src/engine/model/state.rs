//! What a session holds: the KV cache, and the buffers of one pass. Allocated once.

use super::Shape;
use super::lm_head::{Exact, Room, Screening};
use super::timings::{Timings, Watch};
use crate::engine::ops::Quantized;
use crate::engine::quant::{Blocks, Dense, Numbers, WriteRow, packed_row};
use crate::engine::thread_pool::{Pool, Wide, none};

/// What keys and values are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheForm {
    /// Nothing is rounded: for measurements against a reference.
    F32,
    /// Half precision.
    #[default]
    F16,
    /// Blocks of 32 int8 with a scale (Q8_0): 8.5 bits a number.
    Int8,
}

impl CacheForm {
    /// All there are.
    pub const ALL: [CacheForm; 3] = [CacheForm::F32, CacheForm::F16, CacheForm::Int8];

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            CacheForm::F32 => "f32",
            CacheForm::F16 => "f16",
            CacheForm::Int8 => "int8",
        }
    }

    /// The form of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == name)
    }

    /// Whether heads of `head_dim` numbers are whole blocks of it.
    pub fn takes(self, head_dim: usize) -> bool {
        self.numbers().row_bytes(head_dim).is_some()
    }

    pub(super) fn row_bytes(self, head_dim: usize) -> usize {
        self.numbers().row_bytes(head_dim).expect("asked before: `takes`")
    }

    fn numbers(self) -> Numbers {
        match self {
            CacheForm::F32 => Dense::F32.into(),
            CacheForm::F16 => Dense::F16.into(),
            CacheForm::Int8 => Blocks::Q8_0.into(),
        }
    }
}

/// Keys and values of the tokens so far.
#[derive(Debug)]
pub(super) struct Cache {
    keys: Vec<u8>,   // [layers, kv_heads, context, head_dim]
    values: Vec<u8>, // [layers, kv_heads, context, head_dim]
    /// Their format.
    pub kind: Numbers,
    write: WriteRow,
    kv_heads: usize,
    context: usize,
    head_dim: usize,
    /// Bytes of a head's row.
    width: usize,
}

impl Cache {
    fn new(shape: &Shape, context: usize, form: CacheForm) -> Self {
        let bytes = context * shape.cache_bytes_per_token(form) / 2;
        let (kv_heads, head_dim, kind) = (shape.kv_heads, shape.head_dim, form.numbers());
        let (write, width) = (kind.writer().expect("all of them are written"), form.row_bytes(head_dim));
        // Zeroed memory from the system takes no page before it is written.
        Cache {
            keys: vec![0; bytes],
            values: vec![0; bytes],
            kind,
            write,
            kv_heads,
            context,
            head_dim,
            width,
        }
    }

    fn start(&self, layer: usize, head: usize, position: usize) -> usize {
        ((layer * self.kv_heads + head) * self.context + position) * self.width
    }

    /// Keys and values of one head for positions `range`: `[range.len(), head_dim]` each.
    pub fn rows(&self, layer: usize, head: usize, range: std::ops::Range<usize>) -> (&[u8], &[u8]) {
        let bytes = self.start(layer, head, range.start)..self.start(layer, head, range.end);
        (&self.keys[bytes.clone()], &self.values[bytes])
    }

    /// Stores keys and values of the tokens from `position` on, `[n, kv_heads, head_dim]` each; at least `grain` heads
    /// go to one thread.
    pub fn store(
        &mut self,
        (layer, position): (usize, usize),
        (keys, values): (&[f32], &[f32]),
        (pool, grain): (&Pool, usize),
    ) {
        let (kv, size, width, write) = (self.kv_heads * self.head_dim, self.head_dim, self.width, self.write);
        assert!(keys.len() == values.len() && position + keys.len() / kv <= self.context);
        let layer = self.start(layer, 0, 0)..self.start(layer + 1, 0, 0);
        let (to, head) = ((&mut self.keys[layer.clone()], &mut self.values[layer]), self.context * width);
        pool.rows(((to.0, head), (to.1, head), none()), grain, |head, (to_keys, to_values, ..)| {
            let part = head * size..(head + 1) * size;
            for (row, (keys, values)) in (position..).zip(keys.chunks_exact(kv).zip(values.chunks_exact(kv)))
            {
                let bytes = row * width..(row + 1) * width;
                write(&mut to_keys[bytes.clone()], &keys[part.clone()]);
                write(&mut to_values[bytes], &values[part.clone()]);
            }
        });
    }
}

/// Rows quantised to int8, each padded to whole blocks.
#[derive(Debug)]
pub(super) struct QuantizedRows {
    pub q: Vec<i8>,           // [batch, padded width of the input at hand]
    pub made: Vec<Quantized>, // [batch]
    pub width: usize,         // padded width of the input at hand
}

impl QuantizedRows {
    /// Room for `n` rows of `cols` numbers, and for what is said of each: matrices with their widths.
    pub fn make(&mut self, cols: usize, n: usize) -> (Wide<'_, i8>, Wide<'_, Quantized>) {
        self.width = packed_row(cols) * 4;
        ((&mut self.q[..n * self.width], self.width), (&mut self.made[..n], 1))
    }

    /// Rows `range` of the quantised input: `[range.len(), width]`.
    pub fn rows(&self, range: std::ops::Range<usize>) -> &[i8] {
        &self.q[range.start * self.width..range.end * self.width]
    }
}

/// The cache of a session and the buffers of a pass over at most `batch` tokens.
#[derive(Debug)]
pub struct State {
    pub(super) cache: Cache,
    pub(super) len: usize,
    pub(super) context: usize,
    pub(super) batch: usize,
    pub(super) row: Vec<u8>, // a row of the embedding as it is in the file
    pub(super) x: Vec<f32>,  // [batch, dim], the residual stream
    pub(super) h: Vec<f32>,  // [batch, dim], its normalised copy, then a block's output
    pub(super) k: Vec<f32>,  // [batch, kv_heads * head_dim]
    pub(super) v: Vec<f32>,  // [batch, kv_heads * head_dim]
    /// `[batch, heads * head_dim]` twice: queries, and what they found; then `[batch, ffn]`: the gate's, times what
    /// the up matrix makes. Never both, and together they are half of a pass's buffers.
    pub(super) wide: Vec<f32>,
    pub(super) quantized: QuantizedRows,
    pub(super) cos: Vec<f32>,      // [batch, rope_dims / 2]
    pub(super) sin: Vec<f32>,      // [batch, rope_dims / 2]
    pub(super) last: Vec<f32>,     // [dim], one row on its way to the head
    pub(super) logits: Vec<f32>,   // [vocab]
    pub(super) screened: Vec<f32>, // [dim], the same row as a screen takes it; this and the rest only with one
    pub(super) room: Room,
    pub(super) exact: Exact,
    pub(super) screening: Screening,
    /// Tokens of this answer, one after the other, for which the whole head was read.
    pub(super) scans_in_a_row: u32,
    pub(super) watch: Watch,
}

impl State {
    /// `embedding_row`, `head_row`: bytes of a row; the second where the head is screened.
    pub(super) fn new(
        shape: &Shape,
        context: usize,
        batch: usize,
        cache: CacheForm,
        (embedding_row, head_row): (usize, Option<usize>),
    ) -> Self {
        let is_screened = head_row.is_some();
        let batch = batch.clamp(1, context.max(1));
        let floats = |row: usize| vec![0.0f32; batch * row];
        let kv = shape.kv_heads * shape.head_dim;
        State {
            cache: Cache::new(shape, context, cache),
            len: 0,
            context,
            batch,
            row: vec![0; embedding_row],
            x: floats(shape.dim),
            h: floats(shape.dim),
            k: floats(kv),
            v: floats(kv),
            wide: floats(shape.widest_buffer()),
            quantized: QuantizedRows {
                q: vec![0; batch * packed_row(shape.widest_input()) * 4],
                made: vec![Quantized::default(); batch],
                width: 0,
            },
            cos: floats(shape.rope_dims / 2),
            sin: floats(shape.rope_dims / 2),
            last: vec![0.0; shape.dim],
            logits: vec![0.0; shape.vocab],
            screened: vec![0.0; if is_screened { shape.dim } else { 0 }],
            room: if is_screened { Room::new(shape.vocab) } else { Room::default() },
            exact: head_row.map(Exact::new).unwrap_or_default(),
            screening: Screening::default(),
            scans_in_a_row: 0,
            watch: Watch::new(),
        }
    }

    /// What screening the head did with this state; `None` where the head is read whole.
    pub fn screening(&self) -> Option<Screening> {
        (!self.exact.logits.is_empty()).then_some(self.screening)
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens the cache can hold.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes of keys and values for each token.
    pub fn cache_bytes_per_token(&self) -> usize {
        (self.cache.keys.len() + self.cache.values.len()) / self.context.max(1)
    }

    /// Tokens that one pass can take.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// What passes and logits took since the last call.
    pub fn take_timings(&mut self) -> Timings {
        self.watch.take()
    }

    /// Of `n` rows of the stream, and of queries of `width`, the last `wanted` become the first.
    pub(super) fn keep_last(&mut self, (n, wanted): (usize, usize), width: usize) {
        if wanted < n {
            let dim = self.last.len();
            self.x.copy_within((n - wanted) * dim..n * dim, 0);
            self.wide.copy_within((n - wanted) * width..n * width, 0);
        }
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.scans_in_a_row = 0;
    }
}
