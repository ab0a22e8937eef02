//! The state of a session: the KV cache, and the buffers of one pass. All of it is allocated once.

use super::Shape;
use super::lm_head::{MAX_RESCORED_ROWS, RescoreBuffers, ShortlistScratch, ShortlistStats, SingleRows};
use super::timings::{PassTimings, Stopwatch};
use crate::engine::ops::QuantizedRow;
use crate::engine::quant::{BlockFormat, FloatFormat, RowFormat, WriteRow, packed_row};
use crate::engine::thread_pool::{MatrixMut, ThreadPool};

/// The format of keys and values in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvCacheFormat {
    /// No rounding, for comparisons with a reference.
    F32,
    /// Half precision.
    #[default]
    F16,
    /// Blocks of 32 int8 with a scale (Q8_0): 8.5 bits a number.
    Int8,
}

impl KvCacheFormat {
    /// All formats.
    pub const ALL: [KvCacheFormat; 3] = [KvCacheFormat::F32, KvCacheFormat::F16, KvCacheFormat::Int8];

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            KvCacheFormat::F32 => "f32",
            KvCacheFormat::F16 => "f16",
            KvCacheFormat::Int8 => "int8",
        }
    }

    /// The format with that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == name)
    }

    /// Whether a head of `head_dim` numbers is whole blocks of the format.
    pub fn supports(self, head_dim: usize) -> bool {
        self.row_format().row_bytes(head_dim).is_some()
    }

    pub(super) fn row_bytes(self, head_dim: usize) -> usize {
        self.row_format().row_bytes(head_dim).expect("asked before: `takes`")
    }

    fn row_format(self) -> RowFormat {
        match self {
            KvCacheFormat::F32 => FloatFormat::F32.into(),
            KvCacheFormat::F16 => FloatFormat::F16.into(),
            KvCacheFormat::Int8 => BlockFormat::Q8_0.into(),
        }
    }
}

/// The keys and values of the tokens so far.
#[derive(Debug)]
pub(super) struct KvCache {
    keys: Vec<u8>,   // [layers, kv_heads, context, head_dim]
    values: Vec<u8>, // [layers, kv_heads, context, head_dim]
    /// The format of both.
    pub format: RowFormat,
    write: WriteRow,
    kv_heads: usize,
    context: usize,
    head_dim: usize,
    /// Bytes of one head of one position.
    width: usize,
}

impl KvCache {
    fn new(shape: &Shape, context: usize, form: KvCacheFormat) -> Self {
        let bytes = context * shape.cache_bytes_per_token(form) / 2;
        let (kv_heads, head_dim, kind) = (shape.kv_heads, shape.head_dim, form.row_format());
        let (write, width) = (kind.writer().expect("all of them are written"), form.row_bytes(head_dim));
        // Zeroed memory takes no page before it is written.
        KvCache {
            keys: vec![0; bytes],
            values: vec![0; bytes],
            format: kind,
            write,
            kv_heads,
            context,
            head_dim,
            width,
        }
    }

    fn row_start(&self, layer: usize, head: usize, position: usize) -> usize {
        ((layer * self.kv_heads + head) * self.context + position) * self.width
    }

    /// The keys and values of one head for positions `range`: `[range.len(), head_dim]` each.
    pub fn rows(&self, layer: usize, head: usize, range: std::ops::Range<usize>) -> (&[u8], &[u8]) {
        let bytes = self.row_start(layer, head, range.start)..self.row_start(layer, head, range.end);
        (&self.keys[bytes.clone()], &self.values[bytes])
    }

    /// Stores the keys and values of the tokens from `position` on, `[n, kv_heads, head_dim]` each. One thread gets
    /// at least `grain` heads.
    pub fn store(
        &mut self,
        layer: usize,
        position: usize,
        keys: &[f32],
        values: &[f32],
        pool: &ThreadPool,
        grain: usize,
    ) {
        let (kv, size, width, write) = (self.kv_heads * self.head_dim, self.head_dim, self.width, self.write);
        assert!(keys.len() == values.len() && position + keys.len() / kv <= self.context);
        let layer = self.row_start(layer, 0, 0)..self.row_start(layer + 1, 0, 0);
        let head_bytes = self.context * width;
        let to_keys = MatrixMut::new(&mut self.keys[layer.clone()], head_bytes);
        let to_values = MatrixMut::new(&mut self.values[layer], head_bytes);
        pool.for_each_row(
            to_keys,
            to_values,
            MatrixMut::<()>::none(),
            grain,
            |head, to_keys, to_values, _| {
                let part = head * size..(head + 1) * size;
                for (row, (keys, values)) in
                    (position..).zip(keys.chunks_exact(kv).zip(values.chunks_exact(kv)))
                {
                    let bytes = row * width..(row + 1) * width;
                    write(&mut to_keys[bytes.clone()], &keys[part.clone()]);
                    write(&mut to_values[bytes], &values[part.clone()]);
                }
            },
        );
    }
}

/// Rows quantised to int8, each padded to whole blocks.
#[derive(Debug)]
pub(super) struct QuantizedRows {
    pub q: Vec<i8>,                // [batch, width]
    pub scales: Vec<QuantizedRow>, // [batch], scale and sum of each row
    pub width: usize,              // the padded width of the current input
}

impl QuantizedRows {
    /// Matrices to write `n` rows of `cols` numbers to: the codes, and the scale and sum of each row.
    pub fn split_for(&mut self, cols: usize, n: usize) -> (MatrixMut<'_, i8>, MatrixMut<'_, QuantizedRow>) {
        self.width = packed_row(cols) * 4;
        (MatrixMut::new(&mut self.q[..n * self.width], self.width), MatrixMut::new(&mut self.scales[..n], 1))
    }

    /// Rows `range` of the quantised input: `[range.len(), width]`.
    pub fn rows(&self, range: std::ops::Range<usize>) -> &[i8] {
        &self.q[range.start * self.width..range.end * self.width]
    }
}

/// Bytes of single rows that a session reads from the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowBytes {
    /// A row of the embedding.
    pub embedding: usize,
    /// A row of the head.
    pub head: usize,
    /// Whether a shortlist is used.
    pub has_shortlist: bool,
}

/// The cache of a session and the buffers of a pass over at most `batch` tokens.
#[derive(Debug)]
pub struct State {
    pub(super) cache: KvCache,
    pub(super) len: usize,
    pub(super) context: usize,
    pub(super) batch: usize,
    pub(super) embedding_row: Vec<u8>, // one row of the embedding, in the file's format
    pub(super) residual: Vec<f32>,     // [batch, dim], the residual stream
    pub(super) hidden: Vec<f32>,       // [batch, dim], the normalised residual, then the output of a block
    pub(super) k: Vec<f32>,            // [batch, kv_heads * head_dim]
    pub(super) v: Vec<f32>,            // [batch, kv_heads * head_dim]
    /// `[batch, heads * head_dim]` twice: the queries and the attention output. In the feed-forward block `[batch,
    /// ffn]`: the gate, then its product with `up`. The two are never needed together, and are half of all buffers
    /// of a pass.
    pub(super) attn_or_ffn: Vec<f32>,
    pub(super) quantized: QuantizedRows,
    pub(super) cos: Vec<f32>,           // [batch, rope_dims / 2]
    pub(super) sin: Vec<f32>,           // [batch, rope_dims / 2]
    pub(super) final_hidden: Vec<f32>,  // [dim], the normalised row that the head multiplies
    pub(super) logits: Vec<f32>,        // [vocab]
    pub(super) single_rows: SingleRows, // rows of tokens that a grammar allows
    pub(super) scaled_hidden: Vec<f32>, // [dim], the same row scaled for the shortlist; this and the following only with a shortlist
    pub(super) scratch: ShortlistScratch,
    pub(super) rescore: RescoreBuffers,
    pub(super) shortlist_stats: ShortlistStats,
    /// Tokens of this answer, one after the other, for which the whole head was read.
    pub(super) full_scans_in_a_row: u32,
    pub(super) stopwatch: Stopwatch,
}

impl State {
    /// `row_bytes`: bytes of a row of the embedding and of the head.
    pub(super) fn new(
        shape: &Shape,
        context: usize,
        batch: usize,
        cache: KvCacheFormat,
        row_bytes: RowBytes,
    ) -> Self {
        let has_shortlist = row_bytes.has_shortlist;
        let batch = batch.clamp(1, context.max(1));
        let floats = |row: usize| vec![0.0f32; batch * row];
        let kv = shape.kv_heads * shape.head_dim;
        State {
            cache: KvCache::new(shape, context, cache),
            len: 0,
            context,
            batch,
            embedding_row: vec![0; row_bytes.embedding],
            residual: floats(shape.dim),
            hidden: floats(shape.dim),
            k: floats(kv),
            v: floats(kv),
            attn_or_ffn: floats(shape.widest_buffer()),
            quantized: QuantizedRows {
                q: vec![0; batch * packed_row(shape.widest_input()) * 4],
                scales: vec![QuantizedRow::default(); batch],
                width: 0,
            },
            cos: floats(shape.rope_dims / 2),
            sin: floats(shape.rope_dims / 2),
            final_hidden: vec![0.0; shape.dim],
            logits: vec![0.0; shape.vocab],
            single_rows: SingleRows::new(row_bytes.head),
            scaled_hidden: vec![0.0; if has_shortlist { shape.dim } else { 0 }],
            scratch: if has_shortlist {
                ShortlistScratch::new(shape.vocab)
            } else {
                ShortlistScratch::default()
            },
            rescore: if has_shortlist {
                RescoreBuffers::new(MAX_RESCORED_ROWS, row_bytes.head)
            } else {
                RescoreBuffers::default()
            },
            shortlist_stats: ShortlistStats::default(),
            full_scans_in_a_row: 0,
            stopwatch: Stopwatch::new(),
        }
    }

    /// What the shortlist did in this state; `None` where the head is read whole.
    pub fn shortlist_stats(&self) -> Option<ShortlistStats> {
        (!self.rescore.logits.is_empty()).then_some(self.shortlist_stats)
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

    /// The time that passes and logits took since the last call.
    pub fn take_timings(&mut self) -> PassTimings {
        self.stopwatch.take()
    }

    /// Moves the last `kept` of `n` rows of the residual stream, and of queries of `width`, to the front.
    pub(super) fn keep_last_rows(&mut self, n: usize, kept: usize, width: usize) {
        if kept < n {
            let dim = self.final_hidden.len();
            self.residual.copy_within((n - kept) * dim..n * dim, 0);
            self.attn_or_ffn.copy_within((n - kept) * width..n * width, 0);
        }
    }

    /// Removes all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.full_scans_in_a_row = 0;
    }
}
