//! Disjoint columns or rows of one matrix, for parts of a job that write at the same time.

use std::ops::Range;

/// Some columns of a row-major matrix. No other stripe of the same job shares an element with it.
#[derive(Debug)]
pub struct ColumnStripe<'a, T> {
    start: *mut T,
    width: usize,
    rows: usize,
    cols: Range<usize>,
    matrix: std::marker::PhantomData<&'a mut [T]>,
}

impl<T> ColumnStripe<'_, T> {
    /// The columns of the stripe.
    pub fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// The stripe's part of a row: `[cols.len()]`.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: `start` points to `rows * width` elements that are borrowed mutably for the whole job; `row` and
        // `cols` lie within them, stripes of one job have disjoint columns, and this borrow of the stripe keeps its
        // rows from being handed out twice at a time.
        unsafe {
            let first = self.start.add(row * self.width + self.cols.start);
            std::slice::from_raw_parts_mut(first, self.cols.len())
        }
    }
}

/// A pointer to a matrix that the threads of a job split into stripes.
pub(super) struct SendPtr<T>(*mut T);

// SAFETY: the pointer is used only to build stripes with disjoint elements of a `T: Send`.
unsafe impl<T: Send> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    pub fn new(matrix: &mut [T]) -> Self {
        SendPtr(matrix.as_mut_ptr())
    }

    /// The columns `cols` of the matrix.
    ///
    /// # Safety
    /// The matrix has `rows` rows of `width` elements, `cols` lies within them, and no other stripe that lives at
    /// the same time has one of these columns.
    pub unsafe fn stripe(&self, width: usize, rows: usize, cols: Range<usize>) -> ColumnStripe<'_, T> {
        ColumnStripe { start: self.0, width, rows, cols, matrix: std::marker::PhantomData }
    }
}

/// A matrix of which each row goes to one part.
pub(super) struct DisjointRows<'a, T> {
    start: *mut T,
    width: usize,
    rows: usize,
    matrix: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer is used only to hand out different rows of a `T: Send`.
unsafe impl<T: Send> Sync for DisjointRows<'_, T> {}

impl<'a, T> DisjointRows<'a, T> {
    /// # Panics
    /// When the matrix does not have exactly `rows` rows of its width.
    pub fn new(matrix: &'a mut [T], width: usize, rows: usize) -> Self {
        assert_eq!(matrix.len(), rows * width, "not {rows} rows of {width}");
        DisjointRows { start: matrix.as_mut_ptr(), width, rows, matrix: std::marker::PhantomData }
    }

    /// Row `row`.
    ///
    /// # Safety
    /// Nobody else has this row at the same time.
    #[expect(clippy::mut_from_ref, reason = "the caller answers for it")]
    pub unsafe fn row(&self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: `start` points to `rows * width` elements that are borrowed mutably for as long as this lives,
        // and the caller ensures that nobody else has this row.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.width), self.width) }
    }
}
