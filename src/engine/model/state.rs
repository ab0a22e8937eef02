//! The state of a session: the KV cache with the sequences in it, and the buffers of one pass. All of it is allocated
//! once.
//!
//! The cache is made of blocks of [`KV_BLOCK`] tokens. A sequence is a list of blocks, so that sequences can share those
//! at their beginning (paged attention: Kwon et al., arXiv 2309.06180). Who owns a block is not decided here.

use super::lm_head::{MAX_RESCORED_ROWS, RescoreBuffers, ShortlistScratch, ShortlistStats, SingleRows};
use super::timings::{PassTimings, Stopwatch};
use super::{BATCH, Shape};
use crate::engine::ops::QuantizedRow;
use crate::engine::quant::{BlockFormat, FloatFormat, RowFormat, WriteRow, packed_row};
use crate::engine::thread_pool::{MatrixMut, ThreadPool};

/// Tokens of a block of the KV cache.
pub const KV_BLOCK: usize = 64;

/// The most sequences that one pass can take.
pub const MAX_SEQUENCES: usize = 16;

/// The most rows of a pass whose logits one call computes.
pub const MAX_LOGITS: usize = 16;

/// Rows whose logits one call computes besides one of each sequence, for tokens that are proposed.
pub(super) const SPARE_LOGITS: usize = 7;
const _: () = assert!(MAX_SEQUENCES <= MAX_LOGITS);

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

/// The keys and values of all sequences, one row a token. A block is [`KV_BLOCK`] rows.
#[derive(Debug)]
pub(super) struct KvCache {
    keys: Vec<u8>,   // [layers, kv_heads, rows, head_dim]
    values: Vec<u8>, // [layers, kv_heads, rows, head_dim]
    /// The format of both.
    pub format: RowFormat,
    write: WriteRow,
    kv_heads: usize,
    /// Rows of one head of one layer.
    rows: usize,
    head_dim: usize,
    /// Bytes of one head of one row.
    width: usize,
}

impl KvCache {
    fn new(shape: &Shape, rows: usize, form: KvCacheFormat) -> Self {
        let bytes = rows * shape.cache_bytes_per_token(form) / 2;
        let (kv_heads, head_dim, kind) = (shape.kv_heads, shape.head_dim, form.row_format());
        let (write, width) = (kind.writer().expect("all of them are written"), form.row_bytes(head_dim));
        // Zeroed memory takes no page before it is written.
        KvCache {
            keys: vec![0; bytes],
            values: vec![0; bytes],
            format: kind,
            write,
            kv_heads,
            rows,
            head_dim,
            width,
        }
    }

    fn row_start(&self, layer: usize, head: usize, row: usize) -> usize {
        ((layer * self.kv_heads + head) * self.rows + row) * self.width
    }

    /// The keys and values of one head in rows `range`: `[range.len(), head_dim]` each.
    pub fn rows(&self, layer: usize, head: usize, range: std::ops::Range<usize>) -> (&[u8], &[u8]) {
        let bytes = self.row_start(layer, head, range.start)..self.row_start(layer, head, range.end);
        (&self.keys[bytes.clone()], &self.values[bytes])
    }

    /// Bytes of one head of a layer, and those of it that belong to a block.
    fn block_bytes(&self, block: u32) -> (usize, std::ops::Range<usize>) {
        let bytes = KV_BLOCK * self.width;
        (self.rows * self.width, block as usize * bytes..(block as usize + 1) * bytes)
    }

    /// Stores the keys and values of tokens, `[rows.len(), kv_heads, head_dim]` each, in these rows. One thread gets at
    /// least `grain` heads.
    pub fn store(
        &mut self,
        layer: usize,
        rows: &[TokenRow],
        keys: &[f32],
        values: &[f32],
        pool: &ThreadPool,
        grain: usize,
    ) {
        let (kv, size, width, write) = (self.kv_heads * self.head_dim, self.head_dim, self.width, self.write);
        assert!(keys.len() == rows.len() * kv && values.len() == keys.len());
        let layer = self.row_start(layer, 0, 0)..self.row_start(layer + 1, 0, 0);
        let head_bytes = self.rows * width;
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
                    rows.iter().zip(keys.chunks_exact(kv).zip(values.chunks_exact(kv)))
                {
                    let bytes = row.cache_row * width..(row.cache_row + 1) * width;
                    write(&mut to_keys[bytes.clone()], &keys[part.clone()]);
                    write(&mut to_values[bytes], &values[part.clone()]);
                }
            },
        );
    }
}

/// One token of a pass.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TokenRow {
    pub sequence: usize,
    /// Its position in the sequence.
    pub position: usize,
    /// Its row of the KV cache.
    pub cache_row: usize,
}

/// One text in the KV cache.
#[derive(Debug)]
pub(super) struct Sequence {
    pub blocks: Vec<u32>, // [context / KV_BLOCK] at most, in order
    /// Tokens in the cache.
    pub len: usize,
    /// Tokens of this answer, one after the other, for which the whole head was read.
    pub full_scans_in_a_row: u32,
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

/// The part of a pass that belongs to one sequence.
#[derive(Debug, Clone, Copy, Default)]
pub struct Segment<'t> {
    /// The index of the sequence.
    pub sequence: usize,
    /// The tokens that come behind those that it has.
    pub tokens: &'t [u32],
    /// Of how many of the last tokens logits will be asked for.
    pub wanted: usize,
}

/// How large a state is.
#[derive(Debug, Clone, Copy)]
pub(super) struct StateSize {
    /// Tokens of a sequence.
    pub context: usize,
    /// Tokens of a pass.
    pub batch: usize,
    /// Sequences.
    pub sequences: usize,
}

/// The cache of a session and the buffers of a pass over at most `batch` tokens.
#[derive(Debug)]
pub struct State {
    pub(super) cache: KvCache,
    pub(super) sequences: Vec<Sequence>, // [sequences]
    pub(super) rows: Vec<TokenRow>, // [batch] at most, the tokens of the pass; after the last layer those that were wanted
    pub(super) wanted: Vec<u32>,    // [batch] at most, the rows of the pass whose logits may be asked for
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
    pub(super) cos: Vec<f32>,                       // [batch, rope_dims / 2]
    pub(super) sin: Vec<f32>,                       // [batch, rope_dims / 2]
    pub(super) logit_rows: usize,                   // requests of one call
    pub(super) final_hidden: Vec<f32>, // [logit_rows, dim], the normalised rows that the head multiplies
    pub(super) logits: Vec<f32>,       // [logit_rows, vocab]
    pub(super) full_scans_after: [u32; MAX_LOGITS], // [logit_rows], those in a row of the request's sequence behind each
    pub(super) single_rows: SingleRows,             // rows of tokens that a grammar allows
    pub(super) scaled_hidden: Vec<f32>, // [dim], such a row scaled for the shortlist; this and the following only with a shortlist
    pub(super) scratch: ShortlistScratch,
    pub(super) rescore: RescoreBuffers,
    pub(super) shortlist_stats: ShortlistStats,
    pub(super) stopwatch: Stopwatch,
}

impl State {
    /// Its sequences have no blocks yet. `row_bytes`: bytes of a row of the embedding and of the head.
    pub(super) fn new(shape: &Shape, size: StateSize, cache: KvCacheFormat, row_bytes: RowBytes) -> Self {
        let StateSize { context, batch, sequences } = size;
        assert!((1..=MAX_SEQUENCES).contains(&sequences));
        let has_shortlist = row_bytes.has_shortlist;
        let batch = batch.min(BATCH).min(context).max(sequences);
        let logit_rows = (sequences + SPARE_LOGITS).min(MAX_LOGITS).min(batch);
        let blocks = context.div_ceil(KV_BLOCK);
        let sequence = || Sequence { blocks: Vec::with_capacity(blocks), len: 0, full_scans_in_a_row: 0 };
        let floats = |row: usize| vec![0.0f32; batch * row];
        let kv = shape.kv_heads * shape.head_dim;
        State {
            cache: KvCache::new(shape, sequences * blocks * KV_BLOCK, cache),
            sequences: (0..sequences).map(|_| sequence()).collect(),
            rows: Vec::with_capacity(batch),
            wanted: Vec::with_capacity(batch),
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
            logit_rows,
            // Zeroed memory takes no page before it is written, which without proposed tokens it never is.
            final_hidden: vec![0.0; logit_rows * shape.dim],
            logits: vec![0.0; logit_rows * shape.vocab],
            full_scans_after: [0; MAX_LOGITS],
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
            stopwatch: Stopwatch::new(),
        }
    }

    /// What the shortlist did in this state; `None` where the head is read whole.
    pub fn shortlist_stats(&self) -> Option<ShortlistStats> {
        (!self.rescore.logits.is_empty()).then_some(self.shortlist_stats)
    }

    /// Tokens of a sequence that are in the cache.
    pub fn len_of(&self, sequence: usize) -> usize {
        self.sequences[sequence].len
    }

    /// Tokens that a sequence can have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// How many blocks the cache has: enough for all sequences.
    pub fn blocks(&self) -> usize {
        self.cache.rows / KV_BLOCK
    }

    /// The blocks of a sequence, in order.
    pub fn blocks_of(&self, sequence: usize) -> &[u32] {
        &self.sequences[sequence].blocks
    }

    /// Appends a block to a sequence.
    pub fn push_block(&mut self, sequence: usize, block: u32) {
        assert!((block as usize) < self.blocks(), "block {block} of {}", self.blocks());
        self.sequences[sequence].blocks.push(block);
    }

    /// Appends a block that has the keys and values of the sequence's next [`KV_BLOCK`] tokens already.
    pub fn push_full_block(&mut self, sequence: usize, block: u32) {
        self.push_block(sequence, block);
        let Sequence { blocks, len, .. } = &mut self.sequences[sequence];
        *len += KV_BLOCK;
        assert_eq!(*len, blocks.len() * KV_BLOCK, "at the border of a block");
    }

    /// The keys and values of a block: those of each head of each layer.
    pub fn block_parts(&self, block: u32) -> impl Iterator<Item = &[u8]> + Clone {
        let (head, bytes) = self.cache.block_bytes(block);
        let parts = self.cache.keys.chunks_exact(head).chain(self.cache.values.chunks_exact(head));
        parts.map(move |part| &part[bytes.clone()])
    }

    /// The same, to be written to. Their order is that of [`State::block_parts`].
    pub fn block_parts_mut(&mut self, block: u32) -> impl Iterator<Item = &mut [u8]> {
        let (head, bytes) = self.cache.block_bytes(block);
        let parts = self.cache.keys.chunks_exact_mut(head).chain(self.cache.values.chunks_exact_mut(head));
        parts.map(move |part| &mut part[bytes.clone()])
    }

    /// Empties a sequence, which then has no blocks.
    pub fn clear(&mut self, sequence: usize) {
        self.truncate_to(sequence, 0);
        self.sequences[sequence].blocks.clear();
    }

    /// Removes all tokens of a sequence from `len` on. Its blocks stay.
    pub fn truncate_to(&mut self, sequence: usize, len: usize) {
        let sequence = &mut self.sequences[sequence];
        sequence.len = sequence.len.min(len);
        sequence.full_scans_in_a_row = 0;
    }

    /// Removes the tokens of an answer from `len` on, which were proposed and not chosen; the answer goes on.
    pub fn reject_from(&mut self, sequence: usize, len: usize) {
        let sequence = &mut self.sequences[sequence];
        sequence.len = sequence.len.min(len);
    }

    /// The logits of the requests for a sequence behind `index`, of the last call, were not used: what they showed of the
    /// shortlist does not count.
    pub fn reject_logits_behind(&mut self, sequence: usize, index: usize) {
        self.sequences[sequence].full_scans_in_a_row = self.full_scans_after[index];
    }

    /// Bytes of keys and values for each token.
    pub fn cache_bytes_per_token(&self) -> usize {
        (self.cache.keys.len() + self.cache.values.len()) / self.cache.rows.max(1)
    }

    /// Tokens that one pass can take.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Of how many rows one call computes logits.
    pub fn logit_rows(&self) -> usize {
        self.logit_rows
    }

    /// The time that passes and logits took since the last call.
    pub fn take_timings(&mut self) -> PassTimings {
        self.stopwatch.take()
    }

    /// The logits that were computed for request `index` of the last call: `[vocab]`.
    pub fn logits_of(&mut self, index: usize) -> &mut [f32] {
        let vocab = self.logits.len() / self.logit_rows;
        &mut self.logits[index * vocab..(index + 1) * vocab]
    }

    /// Notes the rows of a pass, and returns how many there are and of how many logits are wanted.
    pub(super) fn begin_pass(&mut self, segments: &[Segment<'_>]) -> (usize, usize) {
        self.rows.clear();
        self.wanted.clear();
        for Segment { sequence, tokens, wanted } in segments {
            let Sequence { blocks, len, .. } = &self.sequences[*sequence];
            assert!(!tokens.is_empty() && *wanted <= tokens.len() && len + tokens.len() <= self.context);
            assert!(blocks.len() * KV_BLOCK >= len + tokens.len(), "the sequence has blocks for them");
            let first = self.rows.len();
            self.rows.extend((*len..len + tokens.len()).map(|position| TokenRow {
                sequence: *sequence,
                position,
                cache_row: blocks[position / KV_BLOCK] as usize * KV_BLOCK + position % KV_BLOCK,
            }));
            self.wanted.extend((first + tokens.len() - wanted..first + tokens.len()).map(|row| row as u32));
        }
        assert!((1..=self.batch).contains(&self.rows.len()));
        (self.rows.len(), self.wanted.len())
    }

    /// Moves the wanted rows of the residual stream, and of queries of `width`, to the front.
    pub(super) fn gather_wanted(&mut self, width: usize, dim: usize) {
        for (to, from) in self.wanted.iter().enumerate().map(|(to, from)| (to, *from as usize)) {
            if to != from {
                self.residual.copy_within(from * dim..(from + 1) * dim, to * dim);
                self.attn_or_ffn.copy_within(from * width..(from + 1) * width, to * width);
                self.rows[to] = self.rows[from];
            }
        }
        self.rows.truncate(self.wanted.len());
    }
}

/// A state with one sequence.
impl State {
    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len_of(0)
    }

    /// Whether the cache holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.truncate_to(0, len);
    }
}
