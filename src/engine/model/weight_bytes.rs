//! The memory that a model's weights will take, worked out from the file's header before anything is loaded.

use super::Shape;
use super::lm_head::{HeadFormat, SCAN_ROWS};
use super::weights::{EMBEDDING, HEAD, Layout, float_format, has_duplicate_head, is_matrix};
use crate::engine::gguf::{Gguf, TensorInfo};
use crate::engine::quant::{TensorType, packed_row};

/// Bytes around a read that the kernel may also load at each end: since Linux 6.18 a whole large page of the file,
/// before that `fault_around_bytes`, 64 KiB.
const AROUND: usize = 2 << 20;

/// Bytes of memory that the weights of a file take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WeightBytes {
    /// Read from the file's own pages.
    pub mapped: usize,
    /// Repacked into allocated memory.
    pub copied: usize,
}

impl WeightBytes {
    /// What loading `file` would take, without loading it.
    pub fn plan(file: &Gguf, shape: &Shape, layout: Layout, form: HeadFormat) -> Self {
        let mut plan = WeightBytes::default();
        let unread = if has_duplicate_head(file) { HEAD } else { "" };
        let head = if file.tensor(HEAD).is_some() && unread.is_empty() { HEAD } else { EMBEDDING };
        // The part of a table read row by row that is in memory while it is scanned as a whole.
        let some_rows = |tensor: &TensorInfo| {
            let row = tensor.bytes.len() / tensor.dims.get(1).copied().unwrap_or(1).max(1);
            tensor.bytes.len().min(SCAN_ROWS * row + 2 * AROUND)
        };
        for tensor in file.tensors().iter().filter(|tensor| tensor.name != unread) {
            let in_place = tensor.kind == TensorType::I2S && layout == Layout::Blocks128;
            let is_dense = || float_format(tensor.kind, &file.data(tensor), tensor.dims[0]).is_some();
            if tensor.name == head && form != HeadFormat::File {
                plan.mapped += some_rows(tensor) + form.image_bytes(shape);
            } else if tensor.name == EMBEDDING && head == HEAD {
                plan.mapped += some_rows(tensor);
            } else if is_matrix(tensor) && !in_place && !is_dense() {
                plan.copied += tensor.dims[1] * packed_row(tensor.dims[0]);
            } else {
                plan.mapped += tensor.bytes.len();
            }
        }
        plan
    }
}
