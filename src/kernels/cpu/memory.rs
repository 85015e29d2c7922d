//! Buffers that are written before they are read, without being zeroed first.
//!
//! Zeroing a large result costs a pass over memory. [`uninit`] skips it: the elements are [`MaybeUninit`] until the kernel
//! has written them and [`assume_init`] turns the buffer into an ordinary vector. [`build`] does both around a parallel
//! loop. A kernel that takes a [`Destination`] writes to initialised and uninitialised memory alike.
//!
//! Builds with debug assertions fill new buffers with a NaN of a fixed bit pattern, and `assume_init` panics if an element
//! still has that pattern.

use super::parallel::{for_each_chunk, for_each_piece};
use super::real::Real;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Returns `len` uninitialised elements.
pub(crate) fn uninit<T: Real>(len: usize) -> Vec<MaybeUninit<T>> {
    let mut data = Box::new_uninit_slice(len);
    if cfg!(debug_assertions) {
        data.fill(MaybeUninit::new(unwritten()));
    }
    data.into_vec()
}

/// Turns a buffer into a vector of its elements.
///
/// # Safety
/// Every element has been written.
pub(crate) unsafe fn assume_init<T: Real>(data: Vec<MaybeUninit<T>>) -> Vec<T> {
    // SAFETY: the caller has written every element.
    let data = unsafe { data.into_boxed_slice().assume_init() };
    debug_assert!(!data.iter().any(is_unwritten), "a kernel left elements of its result unwritten");
    data.into_vec()
}

/// Returns the elements of a slice.
///
/// # Safety
/// Every element has been written.
pub(crate) unsafe fn assume_init_mut<T: Real>(data: &mut [MaybeUninit<T>]) -> &mut [T] {
    // SAFETY: `MaybeUninit<T>` has the layout of `T`, and the caller has written every element.
    let data = unsafe { &mut *(std::ptr::from_mut(data) as *mut [T]) };
    debug_assert!(!data.iter().any(is_unwritten), "a kernel left elements of its result unwritten");
    data
}

/// Returns the elements of a slice.
///
/// # Safety
/// Every element has been written.
pub(crate) unsafe fn assume_init_ref<T: Real>(data: &[MaybeUninit<T>]) -> &[T] {
    // SAFETY: `MaybeUninit<T>` has the layout of `T`, and the caller has written every element.
    let data = unsafe { &*(std::ptr::from_ref(data) as *const [T]) };
    debug_assert!(!data.iter().any(is_unwritten), "a kernel left elements of its result unwritten");
    data
}

/// Returns a new vector of `len` elements, written in parallel by `write(i, piece)`.
///
/// Each piece has `size` elements; the last may be shorter.
///
/// # Safety
/// `write` writes every element of its piece.
pub(crate) unsafe fn build<T: Real>(
    len: usize,
    size: usize,
    write: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync,
) -> Vec<T> {
    let mut data = uninit(len);
    for_each_piece(&mut data, size, write);
    // SAFETY: the pieces cover the buffer, and `write` writes every element of each piece.
    unsafe { assume_init(data) }
}

/// The value of unwritten elements in builds with debug assertions: a NaN.
fn unwritten<T: Real>() -> T {
    // No arithmetic produces this payload by itself.
    const PATTERN: u64 = 0xfffd_5a5a_fffd_5a5a;
    const { assert!(size_of::<T>() == 4 || size_of::<T>() == 8) };
    // SAFETY: `Real` types are floats of at most 8 bytes, for which any bits are a value.
    unsafe { std::mem::transmute_copy(&PATTERN) }
}

fn is_unwritten<T: Real>(x: &T) -> bool {
    let unwritten = unwritten();
    // SAFETY: floats have no padding, so that all their bytes are initialised.
    let bytes =
        |x: &T| unsafe { std::slice::from_raw_parts(std::ptr::from_ref(x).cast::<u8>(), size_of::<T>()) };
    bytes(x) == bytes(&unwritten)
}

/// Copies `from` to `to`, which has the same length, and returns the initialised slice.
#[inline(always)]
pub(crate) fn write_copy<'a, T: Real>(to: &'a mut [MaybeUninit<T>], from: &[T]) -> &'a mut [T] {
    assert_eq!(to.len(), from.len());
    // SAFETY: both slices have `from.len()` elements and do not overlap, and the copy initialises all of `to`.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr().cast(), from.len());
        assume_init_mut(to)
    }
}

/// Writes `f(x)` for each x of `from`, which has the same length, and returns the initialised slice.
#[inline(always)]
pub(crate) fn write_map<'a, T: Real>(
    to: &'a mut [MaybeUninit<T>],
    from: &[T],
    f: impl Fn(T) -> T,
) -> &'a mut [T] {
    assert_eq!(to.len(), from.len());
    for (to, &x) in to.iter_mut().zip(from) {
        to.write(f(x));
    }
    // SAFETY: both slices have the same length, so that every element has been written.
    unsafe { assume_init_mut(to) }
}

/// Writes `value` to every element and returns the initialised slice.
#[inline(always)]
pub(crate) fn write_fill<T: Real>(to: &mut [MaybeUninit<T>], value: T) -> &mut [T] {
    to.fill(MaybeUninit::new(value));
    // SAFETY: every element has been written.
    unsafe { assume_init_mut(to) }
}

/// The elements that a kernel writes, initialised or not.
///
/// A kernel that adds to its destination requires the caller to have written it first.
pub(crate) struct Destination<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

impl<'a, T> From<&'a mut [T]> for Destination<'a, T> {
    fn from(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), _borrow: PhantomData }
    }
}

impl<'a, T> From<&'a mut Vec<T>> for Destination<'a, T> {
    fn from(data: &'a mut Vec<T>) -> Self {
        data.as_mut_slice().into()
    }
}

impl<'a, T> From<&'a mut [MaybeUninit<T>]> for Destination<'a, T> {
    fn from(data: &'a mut [MaybeUninit<T>]) -> Self {
        Self { start: data.as_mut_ptr().cast(), len: data.len(), _borrow: PhantomData }
    }
}

impl<'a, T> From<&'a mut Vec<MaybeUninit<T>>> for Destination<'a, T> {
    fn from(data: &'a mut Vec<MaybeUninit<T>>) -> Self {
        data.as_mut_slice().into()
    }
}

impl<T: Real> Destination<'_, T> {
    /// Returns the number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns a pointer to the first element, valid for writes of `len` elements.
    ///
    /// Only floats may be written, and elements may be read only once they are initialised.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.start
    }

    /// Calls `work(i, piece)` on consecutive pieces, in parallel.
    ///
    /// Each piece has `size` elements; the last may be shorter.
    pub(crate) fn for_each_piece(self, size: usize, work: impl Fn(usize, Destination<'_, T>) + Sync) {
        let (len, size) = (self.len, size.max(1));
        let start = SendPtr(self.start);
        for_each_chunk(len.div_ceil(size), |i| {
            let range = i * size..len.min((i + 1) * size);
            // SAFETY: the range is in bounds.
            let start = unsafe { start.get().add(range.start) };
            // The pieces do not overlap, and each is visited once.
            work(i, Destination { start, len: range.len(), _borrow: PhantomData });
        });
    }

    /// Calls `work(columns, strip)` on strips of `width` columns of a matrix of `row` columns, in parallel.
    ///
    /// A strip starts with its first element and extends to the end of the matrix. Other calls write the elements
    /// between its rows, so `work` must write to its own columns only.
    pub(crate) fn for_each_strip(
        self,
        row: usize,
        width: usize,
        work: impl Fn(Range<usize>, Destination<'_, T>) + Sync,
    ) {
        let (len, width) = (self.len, width.max(1));
        self.for_each_chunk(row.min(len).div_ceil(width), |i, Destination { start, .. }| {
            let columns = i * width..row.min((i + 1) * width);
            // SAFETY: the first column is below the length.
            let start = unsafe { start.add(columns.start) };
            let len = len - columns.start;
            work(columns, Destination { start, len, _borrow: PhantomData });
        });
    }

    /// Calls `work(i, destination)` for each `i < chunks`, in parallel.
    ///
    /// Each call gets the whole destination, so `work` must write to elements of its own only.
    pub(crate) fn for_each_chunk(self, chunks: usize, work: impl Fn(usize, Destination<'_, T>) + Sync) {
        let (len, start) = (self.len, SendPtr(self.start));
        for_each_chunk(chunks, |i| work(i, Destination { start: start.get(), len, _borrow: PhantomData }));
    }

    /// Borrows the destination again, for another call.
    pub(crate) fn reborrow(&mut self) -> Destination<'_, T> {
        Destination { start: self.start, len: self.len, _borrow: PhantomData }
    }
}

/// A pointer to memory that several threads write in disjoint parts.
struct SendPtr<T>(*mut T);

impl<T> SendPtr<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: the users of the pointer write disjoint parts; `T: Send` lets another thread write.
unsafe impl<T: Send> Sync for SendPtr<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_returns_the_pieces_in_order() {
        // SAFETY: every element is written.
        let data = unsafe { build(7, 3, |i, piece| _ = write_copy(piece, &[i as f32; 3][..piece.len()])) };
        assert_eq!(data, [0., 0., 0., 1., 1., 1., 2.]);
        // SAFETY: there is no element.
        assert!(unsafe { build::<f64>(0, 3, |_, _| unreachable!()) }.is_empty());
    }

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "left elements of its result unwritten")]
    fn a_forgotten_element_is_found() {
        let mut data = uninit::<f64>(3);
        write_fill(&mut data[..2], f64::NAN);
        // SAFETY: none of the elements is read, and `uninit` has filled them with a NaN under debug assertions.
        unsafe { assume_init(data) };
    }
}
