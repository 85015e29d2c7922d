//! Matrix products on one thread.

use super::host::Real;

/// A matrix in a slice: element (i, j) lies at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub data: &'a [T],
    pub row: usize,
    pub column: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows of `width` elements, one after the other.
    pub fn new(data: &'a [T], width: usize) -> Self {
        Self { data, row: width, column: 1 }
    }

    pub fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    /// Whether all elements of an (m, n) matrix lie inside the slice.
    fn holds(&self, m: usize, n: usize) -> bool {
        m == 0 || n == 0 || (m - 1) * self.row + (n - 1) * self.column < self.data.len()
    }
}

/// `into = a * b`, or `into += a * b` if `add`, for a (m, k) and b (k, n); `into` has rows of `stride` elements.
pub(super) fn gemm<T: Real>(
    (m, n, k): (usize, usize, usize),
    a: Matrix<T>,
    b: Matrix<T>,
    into: &mut [T],
    stride: usize,
    add: bool,
) {
    let target = Matrix { data: &*into, row: stride, column: 1 };
    assert!(a.holds(m, k) && b.holds(k, n) && target.holds(m, n) && stride >= n);
    // SAFETY: every element of the three matrices lies inside its slice, just checked.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            into.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        )
    }
}
